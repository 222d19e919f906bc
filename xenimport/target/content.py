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

"""The bytes of an image, as an HTTP body and as a digest.

A hole of a file is sent and hashed as the zeros it reads as, but never
read.
"""

from __future__ import annotations

import collections
from collections.abc import Generator
from collections.abc import Iterator
from concurrent import futures
import errno
import hashlib
import os
import types

from xenimport import exceptions
from xenimport import model
from xenimport.target import base

_ZEROS = bytes(base.CHUNK)
#: Bytes of the beginning that a body keeps.
_HEAD = 512
#: The digests that can be computed here.
ALGORITHMS = frozenset(
    name
    for name in hashlib.algorithms_available
    if not name.startswith('shake')
)


def data_ranges(descriptor: int, size: int) -> Iterator[tuple[int, int]]:
    """Yield (offset, length) of what is not a hole, in order.

    On a file system that knows no holes, all of it.
    """
    position = 0
    while position < size:
        try:
            start = os.lseek(descriptor, position, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:
                return
            raise
        start = min(start, size)
        end = min(os.lseek(descriptor, start, os.SEEK_HOLE), size)
        if end > start:
            yield start, end - start
        position = end


def _pieces(descriptor: int, size: int) -> Iterator[tuple[int, int, bool]]:
    """Yield (offset, length, is data) of at most a chunk, without gaps."""

    def cut(
        start: int, end: int, data: bool
    ) -> Iterator[tuple[int, int, bool]]:
        for offset in range(start, end, base.CHUNK):
            yield offset, min(base.CHUNK, end - offset), data

    position = 0
    for offset, length in data_ranges(descriptor, size):
        yield from cut(position, offset, False)
        yield from cut(offset, offset + length, True)
        position = offset + length
    yield from cut(position, size, False)


def _fill(descriptor: int, view: memoryview, offset: int) -> None:
    done = 0
    while done < len(view):
        count = os.preadv(descriptor, [view[done:]], offset + done)
        if not count:
            raise OSError(
                errno.EIO, f'the file ends at {offset + done} by now'
            )
        done += count


class FileContent:
    """A finished file, whose holes are not read.

    :param path: the file
    :raises xenimport.exceptions.MachineError: if there is none
    """

    repeatable = True

    def __init__(self, path: str) -> None:
        self.path = path
        try:
            self.size = os.stat(path).st_size
        except OSError as error:
            raise _unreadable(path, error) from error

    def chunks(self) -> Iterator[memoryview]:
        """Yield the file's bytes in order.

        :raises xenimport.exceptions.MachineError: if it cannot be read,
            or became shorter
        """
        try:
            descriptor = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise _unreadable(self.path, error) from error
        try:
            yield from self._chunks(descriptor)
        finally:
            os.close(descriptor)

    def _chunks(self, descriptor: int) -> Iterator[memoryview]:
        buffers = [
            memoryview(bytearray(base.CHUNK)) for _ in range(base.DEPTH)
        ]
        zeros = memoryview(_ZEROS)
        pieces = _pieces(descriptor, self.size)
        number = 0
        while True:
            try:
                offset, length, data = next(pieces)
                view = zeros[:length]
                if data:
                    view = buffers[number % base.DEPTH][:length]
                    _fill(descriptor, view, offset)
            except StopIteration:
                return
            except OSError as error:
                raise _unreadable(self.path, error) from error
            number += 1
            yield view


def _unreadable(path: str, error: OSError) -> exceptions.MachineError:
    return exceptions.MachineError(
        'machine.read-failed',
        'A finished disk cannot be read again',
        where=path,
        expected='the file as it was written',
        found=error.strerror,
        fix='see what the log of the kernel says of the file system, and '
        'that nothing else writes to the work directory',
    )


class Body:
    """A content as the body of one request, hashed while it is sent.

    It has a length and is iterated, and has no read(): so requests sends
    Content-Length, and urllib3 hands each chunk to the socket whole
    instead of asking for 16 KiB at a time. The hash runs in a thread of
    its own; both it and the socket let go of the interpreter's lock.

    :param content: what is sent
    :param algorithm: a name that hashlib knows
    :param progress: called with the bytes handed over so far
    :ivar taken: bytes that the content has given
    :ivar handed: bytes handed over, and in the digest
    :ivar sent: bytes after which more was asked for
    :ivar head: the first 512 bytes
    :ivar failure: what the content, or the progress, has raised: on its
        way through the libraries that send, it may be taken for another
    """

    def __init__(
        self,
        content: base.Content,
        algorithm: str = 'sha512',
        progress: model.Progress = model.no_progress,
    ) -> None:
        self.size = content.size
        self.taken = 0
        self.handed = 0
        self.sent = 0
        self.head = b''
        self.failure: BaseException | None = None
        self._content = content
        self._hash = hashlib.new(algorithm, usedforsecurity=False)
        self._progress = progress
        self._thread = futures.ThreadPoolExecutor(max_workers=1)
        self._running: Generator[memoryview, None, None] | None = None

    def __len__(self) -> int:
        return self.size

    def __bool__(self) -> bool:
        return True

    @property
    def complete(self) -> bool:
        """Whether all bytes were handed over."""
        return self.handed == self.size and self.failure is None

    def __iter__(self) -> Iterator[memoryview]:
        self._running = self._chunks()
        try:
            yield from self._running
        except GeneratorExit:
            raise
        except BaseException as error:
            self.failure = error
            raise

    def _chunks(self) -> Generator[memoryview, None, None]:
        pending: collections.deque[futures.Future[None]] = collections.deque()
        for view in self._withheld():
            pending.append(self._thread.submit(self._hash.update, view))
            self.handed += len(view)
            yield view
            self.sent += len(view)
            self._progress(self.sent, self.size)
            # The content may use a chunk again once DEPTH more were asked
            # for, and one is always asked for ahead.
            if len(pending) == base.DEPTH - 1:
                pending.popleft().result()

    def _withheld(self) -> Iterator[memoryview]:
        """The chunks, each only after the next has come.

        Some sources know at their end alone that they were damaged. The
        service must not have all bytes by then.
        """
        waiting: memoryview | None = None
        for view in self._content.chunks():
            if not self.taken:
                self.head = bytes(view[:_HEAD])
            self.taken += len(view)
            if self.taken > self.size:
                break
            if waiting is not None:
                yield waiting
            waiting = view
        if self.taken != self.size:
            raise RuntimeError(
                f'a content of {self.size} bytes gave {self.taken}'
            )
        if waiting is not None:
            yield waiting

    def hexdigest(self) -> str:
        """The digest of what was handed over; ends the hashing."""
        self._thread.shutdown(wait=True)
        return self._hash.hexdigest()

    def close(self) -> None:
        """Release thread and content. A second call does nothing."""
        if self._running is not None:
            self._running.close()
        self._thread.shutdown(wait=True, cancel_futures=True)

    def __enter__(self) -> Body:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: types.TracebackType | None,
    ) -> None:
        self.close()


def digest(
    content: base.Content,
    algorithm: str,
    progress: model.Progress = model.no_progress,
) -> str:
    """The digest of a content that can be read again, in hexadecimal.

    Its time is linear in the size, holes included.

    :raises ValueError: if hashlib does not know the algorithm
    :raises xenimport.exceptions.XenImportError: if it cannot be read
    """
    with Body(content, algorithm, progress) as body:
        for _ in body:
            pass
        return body.hexdigest()
