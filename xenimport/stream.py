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


"""Bytes that come once, in order: pipes, URLs, compressed files.

A stream may be peeked at, read and skipped, never sought in. Wrappers
decode it, cut a member out of it, or compute digests of what passes.
"""

from __future__ import annotations

import abc
from collections.abc import Iterable
from collections.abc import Sequence
import hashlib
import os
import re
import stat
import sys
import typing
from urllib import parse

from xenimport import exceptions
from xenimport import model

#: Bytes read from a file or decoder at a time.
CHUNK = 256 * 1024
#: How standard input is named on the command line.
STANDARD_INPUT = '-'
_URLS = ('http://', 'https://')
_GZIP = b'\x1f\x8b\x08'
_ZSTD = b'\x28\xb5\x2f\xfd'
#: How a frame that zstd's decoders pass over begins, but for the first
#: byte: 0x50 to 0x5f.
_ZSTD_SKIPPED = b'\x2a\x4d\x18'
_LONGEST_SKIPPED = 64
#: Bytes that a decoder may keep of what it has decoded: zstd's "--ultra
#: --long=27", the most that its command line takes unasked.
_WINDOW = 1 << 27
#: Bytes of decoded data that may follow the last that was wanted.
_EXCESS = 64 << 20
#: Seconds to connect to a server, and that it may stay silent.
_TIMEOUT = (30.0, 120.0)


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


class FileStream(Stream):
    """A file, a pipe or standard input.

    :param path: ``-`` is standard input
    :raises xenimport.exceptions.PackageError: if it cannot be opened
    """

    def __init__(self, path: str) -> None:
        standard = path == STANDARD_INPUT
        super().__init__('standard input' if standard else path)
        self._owned = not standard
        if standard:
            self._descriptor = _standard_input()
        else:
            self._descriptor = _opened(path)
        self._state = self._stat()
        if self._state is not None:
            self.size = self._state[0]

    def _stat(self) -> tuple[int, int] | None:
        status = os.fstat(self._descriptor)
        if not stat.S_ISREG(status.st_mode):
            return None
        return status.st_size, status.st_mtime_ns

    def _read_into(self, buffer: memoryview) -> int:
        try:
            count = os.readv(self._descriptor, [buffer])
        except OSError as error:
            raise exceptions.PackageError(
                'package.read-failed',
                'The package cannot be read',
                where=f'{self.where}, offset {self.position}',
                found=os.strerror(error.errno or 0),
                fix='check the disk or the network share it is on',
            ) from error
        if not count and self._stat() != self._state:
            raise exceptions.PackageError(
                'package.changed',
                'The package was changed while it was read',
                where=self.where,
                expected='a file that nobody writes to',
                found='another size or time of change than at the start',
                fix='wait until the export or the copy of the package has '
                'finished, then run the import again',
            )
        return count

    def close(self) -> None:
        if self._owned and self._descriptor >= 0:
            os.close(self._descriptor)
        self._descriptor = -1


def _standard_input() -> int:
    descriptor = sys.__stdin__.fileno() if sys.__stdin__ else 0
    if os.isatty(descriptor):
        raise exceptions.PackageError(
            'package.unreadable',
            'Standard input is a terminal',
            where=STANDARD_INPUT,
            expected='a package in a pipe or a file',
            fix='pipe the package in, or name a file',
        )
    return descriptor


def _opened(path: str) -> int:
    try:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise exceptions.PackageError(
            'package.unreadable',
            'The package cannot be opened',
            where=path,
            found=os.strerror(error.errno or 0),
            fix='check the path and the permissions',
        ) from error


class HttpStream(Stream):
    """What an ``http://`` or ``https://`` URL gives.

    Certificates are verified, and proxies taken from the environment.

    :raises xenimport.exceptions.PackageError: if the server does not
        answer, or not with the package
    """

    def __init__(self, url: str) -> None:
        super().__init__(shown_url(url))
        # Only who reads from a URL waits for this.
        import requests

        try:
            self._response = requests.get(
                url,
                stream=True,
                timeout=_TIMEOUT,
                headers={'Accept-Encoding': 'identity'},
            )
        except (requests.RequestException, ValueError) as error:
            raise self._failed(str(error)) from error
        if self._response.status_code != 200:
            found = f'{self._response.status_code} {self._response.reason}'
            self.close()
            raise self._failed(found)
        length = self._response.headers.get('Content-Length', '')
        if length.isascii() and length.isdigit() and len(length) < 19:
            self.size = int(length)

    def _read_into(self, buffer: memoryview) -> int:
        from urllib3 import exceptions as http_exceptions

        try:
            data: bytes = self._response.raw.read(len(buffer))
        except (http_exceptions.HTTPError, OSError) as error:
            raise self._failed(
                f'{error} after {self.position} bytes'
            ) from error
        buffer[: len(data)] = data
        return len(data)

    def _failed(self, found: str) -> exceptions.PackageError:
        return exceptions.PackageError(
            'package.download-failed',
            'The package cannot be downloaded',
            where=self.where,
            expected='200 OK and the whole package',
            found=_without_secrets(found)[:300],
            fix='check the address, and that it needs no log-in; or '
            'download the package and import the file',
        )

    def close(self) -> None:
        self._response.close()


def shown_url(url: str) -> str:
    """A URL as it may be shown: no password, and no signed query."""
    try:
        parts = parse.urlsplit(url)
    except ValueError:
        return 'the address that was given'
    host = parts.netloc.rpartition('@')[2]
    return parse.urlunsplit((parts.scheme, host, parts.path, '', ''))


def _without_secrets(text: str) -> str:
    """A library's message without the passwords and queries of URLs."""
    return re.sub(r'//[^/\s]*@', '//', re.sub(r'\?\S*', '', text))


class RegionStream(Stream):
    """A region of a file, its pieces one after the other.

    Gaps between pieces are not for a stream: the region has none.

    :raises xenimport.exceptions.PackageError: if a file cannot be opened
    """

    def __init__(self, region: model.Region) -> None:
        super().__init__(f'{region.path}: {region.name}')
        self.size = region.size
        self._region = region
        self._descriptors: dict[str, int] = {}
        self._index = 0
        self._inside = 0

    def _read_into(self, buffer: memoryview) -> int:
        pieces = self._region.pieces
        while self._index < len(pieces):
            piece = pieces[self._index]
            left = piece.length - self._inside
            if left:
                part = buffer[: min(left, len(buffer))]
                place = piece.offset + self._inside
                count = self._read(piece.path, part, place)
                self._inside += count
                return count
            self._index += 1
            self._inside = 0
        return 0

    def _read(self, path: str | None, part: memoryview, place: int) -> int:
        path = path or self._region.path
        if path not in self._descriptors:
            self._descriptors[path] = _opened(path)
        try:
            count = os.preadv(self._descriptors[path], [part], place)
        except OSError as error:
            raise exceptions.PackageError(
                'package.read-failed',
                'The package cannot be read',
                where=f'{self.where}, file offset {place}',
                found=os.strerror(error.errno or 0),
                fix='check the disk or the network share it is on',
            ) from error
        if not count:
            raise self.truncated(place + len(part), place)
        return count

    def close(self) -> None:
        while self._descriptors:
            os.close(self._descriptors.popitem()[1])


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


class _Decoder(typing.Protocol):
    """What zlib's decompression objects do."""

    @property
    def eof(self) -> bool: ...

    @property
    def unused_data(self) -> bytes: ...

    @property
    def unconsumed_tail(self) -> bytes: ...

    def decompress(self, data: bytes, max_length: int) -> bytes: ...


class GzipStream(Stream):
    """What a gzip stream holds; several members follow each other.

    Memory is bounded whatever the ratio: no more is decoded at a time
    than was asked for.
    """

    def __init__(self, inner: Stream) -> None:
        super().__init__(inner.where)
        self._inner = inner
        self._decoder = _gzip_decoder()
        self._buffer = memoryview(bytearray(CHUNK))
        self._pending = b''
        self._between = False

    def _read_into(self, buffer: memoryview) -> int:
        while True:
            if not self._pending:
                count = self._inner.read_into(self._buffer)
                self._pending = bytes(self._buffer[:count])
            if not self._pending:
                if self._between:
                    return 0
                raise self.truncated(
                    self._inner.position + 1, self._inner.position
                )
            # Zeros may pad the file after the last member.
            if self._between and not self._pending.strip(b'\0'):
                self._pending = b''
                continue
            data = self._decode(len(buffer))
            if data:
                buffer[: len(data)] = data
                return len(data)

    def _decode(self, length: int) -> bytes:
        try:
            data = self._decoder.decompress(self._pending, length)
        except Exception as error:  # each decoder has errors of its own
            raise _undecodable(self.where, 'gzip', error) from error
        self._between = self._decoder.eof
        if self._decoder.eof:
            self._pending = self._decoder.unused_data
            self._decoder = _gzip_decoder()
        else:
            self._pending = self._decoder.unconsumed_tail
        return data

    def finish(self) -> None:
        _drain(self)
        self._inner.finish()

    def close(self) -> None:
        self._inner.close()


def _gzip_decoder() -> _Decoder:
    """The fastest streaming decoder that is installed."""
    try:
        from isal import isal_zlib
    except ImportError:
        import zlib

        return zlib.decompressobj(31)
    decoder: _Decoder = isal_zlib.decompressobj(31)
    return decoder


class ZstdStream(Stream):
    """What a zstd stream holds; several frames follow each other."""

    def __init__(self, inner: Stream) -> None:
        super().__init__(inner.where)
        import zstandard

        self._inner = inner
        self._frames = _Frames(inner)
        self._error = zstandard.ZstdError
        decoder = zstandard.ZstdDecompressor(max_window_size=_WINDOW)
        source: typing.Any = self._frames
        self._reader: typing.Any = decoder.stream_reader(
            source, read_size=CHUNK, read_across_frames=True
        )

    def _read_into(self, buffer: memoryview) -> int:
        try:
            count: int = self._reader.readinto(buffer)
        except self._error as error:
            raise _undecodable(self.where, 'zstd', error) from error
        if not count and not self._frames.complete:
            # The decoder takes a cut stream for one that has ended.
            raise self.truncated(
                self._inner.position + 1, self._inner.position
            )
        return count

    def finish(self) -> None:
        _drain(self)
        self._inner.finish()

    def close(self) -> None:
        self._inner.close()


class _Frames:
    """The input of the zstd decoder, followed block by block (RFC 8878).

    :ivar complete: whether all that was read ends with a whole frame
    """

    def __init__(self, inner: Stream) -> None:
        self._inner = inner
        self._head = b''
        self._skip = 0
        self._in_frame = False
        self._last = False
        self._checksum = False
        self.complete = False

    def read(self, length: int = CHUNK) -> bytes:
        data = self._inner.read(min(length, CHUNK))
        self._follow(data)
        return data

    def _follow(self, data: bytes) -> None:
        position = 0
        while position < len(data):
            if self._skip:
                step = min(self._skip, len(data) - position)
                self._skip -= step
                position += step
            else:
                wanted = 3 if self._in_frame else self._header_size()
                step = min(wanted - len(self._head), len(data) - position)
                self._head += data[position : position + step]
                position += step
                if len(self._head) == wanted:
                    self._header()
            self.complete = not (self._skip or self._in_frame or self._head)

    def _header_size(self) -> int:
        """Bytes needed to know a frame's header, by what there is."""
        if len(self._head) < 5:
            return 5
        if self._head[:4] != _ZSTD:
            return 8  # a skippable frame: magic and length
        flags = self._head[4]
        single = flags >> 5 & 1
        content = (single, 2, 4, 8)[flags >> 6]
        return 5 + (not single) + (0, 1, 2, 4)[flags & 3] + content

    def _header(self) -> None:
        """Act on a whole header of a frame or block."""
        head = self._head
        if not self._in_frame and len(head) < self._header_size():
            return
        self._head = b''
        if self._in_frame:
            fields = int.from_bytes(head, 'little')
            self._last = bool(fields & 1)
            kind, size = fields >> 1 & 3, fields >> 3
            self._skip = 1 if kind == 1 else size  # 1: one byte repeated
            if self._last:
                self._in_frame = False
                self._skip += 4 * self._checksum
        elif head[:4] == _ZSTD:
            self._in_frame = True
            self._checksum = bool(head[4] & 4)
        else:
            self._skip = int.from_bytes(head[4:8], 'little')


def _drain(decoded: Stream) -> None:
    """Read what is left: little, or the stream is not what it seems.

    :raises xenimport.exceptions.PackageError: if much is left
    """
    if decoded.skip(_EXCESS) == _EXCESS:
        raise exceptions.PackageError(
            'package.excess-data',
            'Far more is compressed in the package than belongs to it',
            where=decoded.where,
            expected=f'at most {_EXCESS} bytes after the last that is used',
            found='more',
            fix='export the guest again; do not trust this package',
        )


def _undecodable(
    where: str, kind: str, error: Exception
) -> exceptions.PackageError:
    return exceptions.PackageError(
        'package.undecodable',
        'The package cannot be decompressed',
        where=where,
        expected=f'an intact {kind} stream',
        found=str(error)[:200],
        fix='copy the package again, or export it again',
    )


def decoded(inner: Stream) -> Stream:
    """The stream, decompressed if it is gzip or zstd; one layer only."""
    head = inner.peek(_LONGEST_SKIPPED + 12)
    if head.startswith(_GZIP):
        return GzipStream(inner)
    if head[1:4] == _ZSTD_SKIPPED and head[0] >> 4 == 5:
        # pzstd begins with a frame that only states a size.
        head = head[8 + int.from_bytes(head[4:8], 'little') :]
    if head.startswith(_ZSTD):
        return ZstdStream(inner)
    return inner


def is_url(path: str) -> bool:
    """Whether a package is named by an address."""
    return path.lower().startswith(_URLS)


def open_package(path: str) -> Stream | None:
    """A package that can only be read forward; None if it is seekable.

    :param path: a file's, ``-`` for standard input, or a URL
    :raises xenimport.exceptions.PackageError: if it cannot be opened
    """
    if is_url(path):
        return decoded(HttpStream(path))
    if path == STANDARD_INPUT:
        return decoded(FileStream(path))
    if os.path.isdir(path):
        return None
    stream = FileStream(path)
    if stream.size is None:
        return decoded(stream)
    result = decoded(stream)
    if result is stream:
        stream.close()
        return None
    return result
