# Licensed under the Apache License, Version 2.0 (the "License"); you may
# not use this file except in compliance with the License. You may obtain
# a copy of the License at
#
#      http://www.apache.org/licenses/LICENSE-2.0
#
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS, WITHOUT
# WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied. See the
# License for the specific language governing permissions and limitations
# under the License.


"""Bytes that come once, in order.

A stream may be peeked at, read and skipped, never sought in. Wrappers cut
a member out of it, join several, or compute digests of what passes; others
decode it (``stream_decoders.py``). Where streams come from is told in
``stream_files.py``, ``stream_http.py`` and ``stream_packages.py``.
"""

from __future__ import annotations

import abc
from collections.abc import Iterable
from collections.abc import Sequence
import hashlib

from xenimport import exceptions
from xenimport import model

#: Bytes read from a file or decoder at a time.
CHUNK = 256 * 1024


class Stream(abc.ABC):
    """Bytes that come once.

    :ivar where: what they are, for an error
    :ivar position: bytes taken so far
    :ivar size: bytes in all, None if that is not known
    """

    size: int | None = None

    def __init__(self, where: str) -> None:
        self.where = where
        self.position = 0
        self._ahead = b''

    @abc.abstractmethod
    def _read_into(self, buffer: memoryview) -> int:
        """Read at least a byte into the buffer; 0 at the end."""

    def read_into(self, buffer: memoryview) -> int:
        """Take some bytes; how many, 0 only at the end.

        :raises xenimport.exceptions.PackageError: if it breaks off
        """
        if self._ahead:
            count = min(len(buffer), len(self._ahead))
            buffer[:count] = self._ahead[:count]
            self._ahead = self._ahead[count:]
        else:
            count = self._read_into(buffer) if len(buffer) else 0
        self.position += count
        return count

    def read(self, length: int) -> bytes:
        """Take ``length`` bytes, fewer only at the end."""
        data = bytearray(length)
        view = memoryview(data)
        done = 0
        while done < length:
            count = self.read_into(view[done:])
            if not count:
                break
            done += count
        return bytes(view[:done])

    def fill(self, buffer: memoryview) -> None:
        """Fill the buffer.

        :raises xenimport.exceptions.PackageError: if the stream ends
            before that
        """
        done = 0
        while done < len(buffer):
            count = self.read_into(buffer[done:])
            if not count:
                raise self.truncated(
                    self.position + len(buffer) - done, self.position
                )
            done += count

    def take(self, length: int) -> bytes:
        """Take exactly ``length`` bytes.

        :raises xenimport.exceptions.PackageError: if fewer are left
        """
        data = bytearray(length)
        self.fill(memoryview(data))
        return bytes(data)

    def peek(self, length: int) -> bytes:
        """The next ``length`` bytes, left in place; fewer at the end."""
        missing = length - len(self._ahead)
        parts = [self._ahead]
        while missing > 0:
            part = bytearray(min(missing, CHUNK))
            count = self._read_into(memoryview(part))
            if not count:
                break
            parts.append(bytes(part[:count]))
            missing -= count
        self._ahead = b''.join(parts)
        return self._ahead[:length]

    def skip(self, length: int) -> int:
        """Pass over bytes; how many, fewer than asked only at the end."""
        done = 0
        if self._ahead:
            done = min(length, len(self._ahead))
            self._ahead = self._ahead[done:]
            self.position += done
        if done < length:
            count = self._skip(length - done)
            self.position += count
            done += count
        return done

    def _skip(self, length: int) -> int:
        buffer = memoryview(bytearray(min(length, CHUNK)))
        done = 0
        while done < length:
            count = self._read_into(buffer[: length - done])
            if not count:
                break
            done += count
        return done

    def finish(self) -> None:
        """Read to the end, so that what is checked there is checked.

        :raises xenimport.exceptions.PackageError: if that fails
        """
        while self.skip(1 << 30):
            pass

    def close(self) -> None:  # noqa: B027 - optional
        """Release what it reads from. A second call does nothing."""

    def truncated(self, expected: int, found: int) -> exceptions.PackageError:
        """The error of a stream that ended too early."""
        return exceptions.PackageError(
            'package.truncated',
            'The package ends before its contents do',
            where=self.where,
            expected=f'at least {expected} bytes',
            found=f'{found} bytes',
            fix='copy the package again, or export it again',
        )


class Sparse(Stream):
    """A stream of runs of data; what lies between them is zeros.

    :ivar size: bytes with the zeros, never None
    """

    @abc.abstractmethod
    def next_run(self) -> tuple[int, int] | None:
        """Go to the next run: its offset and length, None after the last.

        Reading then ends at the end of the run. What was not read of the
        run before is skipped.

        :raises xenimport.exceptions.PackageError: if a run is damaged
        """


class Limited(Stream):
    """The next ``size`` bytes of another stream: a member of it."""

    def __init__(self, inner: Stream, size: int, where: str) -> None:
        super().__init__(where)
        self.size: int = size
        self._inner = inner
        self._left = size

    def _read_into(self, buffer: memoryview) -> int:
        part = buffer[: min(self._left, len(buffer))]
        if not len(part):
            return 0
        count = self._inner.read_into(part)
        if not count:
            raise self.truncated(self.size, self.size - self._left)
        self._left -= count
        return count

    def _skip(self, length: int) -> int:
        length = min(length, self._left)
        count = self._inner.skip(length)
        if count < length:
            raise self.truncated(self.size, self.size - self._left + count)
        self._left -= count
        return count


class Joined(Stream):
    """Several streams, one after the other; each is finished at its end.

    :param streams: closed with this one
    """

    def __init__(self, streams: Sequence[Stream], where: str) -> None:
        super().__init__(where)
        self._streams = list(streams)
        self._index = 0
        sizes = [stream.size for stream in streams]
        if None not in sizes:
            self.size = sum(size or 0 for size in sizes)

    def _read_into(self, buffer: memoryview) -> int:
        while self._index < len(self._streams):
            stream = self._streams[self._index]
            count = stream.read_into(buffer)
            if count:
                return count
            stream.finish()
            self._index += 1
        return 0

    def close(self) -> None:
        for stream in self._streams:
            stream.close()


class Digested(Stream):
    """Another stream, with digests computed of all that passes.

    :param algorithms: names that hashlib knows
    :param stated: what :meth:`finish` compares with
    """

    def __init__(
        self,
        inner: Stream,
        stated: Sequence[model.Digest] = (),
        algorithms: Iterable[str] = (),
    ) -> None:
        super().__init__(inner.where)
        self.size = inner.size
        self._inner = inner
        self._stated = tuple(stated)
        names = {digest.algorithm for digest in stated} | set(algorithms)
        self._hashes = {
            name: hashlib.new(name, usedforsecurity=False) for name in names
        }

    def _read_into(self, buffer: memoryview) -> int:
        count = self._inner.read_into(buffer)
        for hashing in self._hashes.values():
            hashing.update(buffer[:count])
        return count

    def digests(self) -> tuple[model.Digest, ...]:
        """Those of what has passed so far."""
        return tuple(
            model.Digest(name, hashing.hexdigest())
            for name, hashing in self._hashes.items()
        )

    def finish(self) -> None:
        super().finish()
        self._inner.finish()
        compare_digests(self.where, self._stated, self.digests())

    def close(self) -> None:
        self._inner.close()


def compare_digests(
    where: str,
    stated: Sequence[model.Digest],
    found: Sequence[model.Digest],
) -> None:
    """Compare every stated digest with the one found of its algorithm.

    :raises xenimport.exceptions.PackageError: if one differs
    """
    values = {digest.algorithm: digest.value for digest in found}
    for digest in stated:
        value = values.get(digest.algorithm)
        if value is not None and value != digest.value:
            raise exceptions.PackageError(
                'package.digest-mismatch',
                'A file of the package is not what its manifest says',
                where=where,
                expected=f'{digest.algorithm} {digest.value}',
                found=f'{digest.algorithm} {value}',
                fix='copy the package again, or export it again; where it '
                'was changed on purpose, use --no-verify-manifest',
            )
