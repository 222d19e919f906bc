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

"""The bytes of a finished RAW file, as an HTTP body and as a digest.

A hole is sent and hashed as the zeros it reads as, but never read.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent import futures
import errno
import hashlib
import os
import types

from xenimport import model

#: Bytes handed over at a time; large enough that the interpreter's own
#: cost vanishes, small enough to stay in the CPU's cache.
CHUNK = 1 << 20
#: Chunks that may wait for the hash while others are sent.
_DEPTH = 4
_ZEROS = bytes(CHUNK)
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
        for offset in range(start, end, CHUNK):
            yield offset, min(CHUNK, end - offset), data

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


class Body:
    """A file as the body of one request, hashed while it is sent.

    It has a length and is iterated, and has no read(): so requests sends
    Content-Length, and urllib3 hands each chunk to the socket whole
    instead of asking for 16 KiB at a time. The hash runs in a thread of
    its own; both it and the socket let go of the interpreter's lock.

    :param path: the file
    :param algorithm: a name that hashlib knows
    :param progress: called with the bytes handed over so far
    """

    def __init__(
        self,
        path: str,
        algorithm: str = 'sha512',
        progress: model.Progress = model.no_progress,
    ) -> None:
        self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self.size = os.fstat(self._descriptor).st_size
        self._hash = hashlib.new(algorithm, usedforsecurity=False)
        self._progress = progress
        self._thread = futures.ThreadPoolExecutor(max_workers=1)
        #: Bytes handed over so far.
        self.sent = 0

    def __len__(self) -> int:
        return self.size

    def __bool__(self) -> bool:
        return True

    def __iter__(self) -> Iterator[memoryview]:
        buffers = [memoryview(bytearray(CHUNK)) for _ in range(_DEPTH)]
        pending: list[futures.Future[None] | None] = [None] * _DEPTH
        zeros = memoryview(_ZEROS)
        for number, (offset, length, data) in enumerate(
            _pieces(self._descriptor, self.size)
        ):
            slot = number % _DEPTH
            waiting = pending[slot]
            if waiting is not None:
                waiting.result()
            if data:
                view = buffers[slot][:length]
                _fill(self._descriptor, view, offset)
            else:
                view = zeros[:length]
            pending[slot] = self._thread.submit(self._hash.update, view)
            yield view
            self.sent += length
            self._progress(self.sent, self.size)

    def hexdigest(self) -> str:
        """The digest of what was handed over; ends the hashing."""
        self._thread.shutdown(wait=True)
        return self._hash.hexdigest()

    def close(self) -> None:
        """Release the file and the thread. A second call does nothing."""
        self._thread.shutdown(wait=True, cancel_futures=True)
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

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
    path: str,
    algorithm: str,
    progress: model.Progress = model.no_progress,
) -> str:
    """The file's digest in hexadecimal.

    Its time is linear in the file's size, holes included.

    :raises ValueError: if hashlib does not know the algorithm
    """
    with Body(path, algorithm, progress) as body:
        for _ in body:
            pass
        return body.hexdigest()
