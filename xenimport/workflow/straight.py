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


"""Disks that go straight into the target, without a workfile."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Iterator
from concurrent import futures
import itertools

from xenimport.converter import base as converter_base
from xenimport import exceptions
from xenimport.target import base as target_base
from xenimport.workflow import sketch

#: Chunks that are read ahead of the one that is sent.
_AHEAD = 4
_ZEROS = memoryview(bytes(target_base.CHUNK))


class ImageContent:
    """A disk image as a target takes it; read again for each try.

    :param threads: how many read ahead
    :param before_end: called before the last bytes are handed over, so
        that nothing becomes of a disk that it raises for
    """

    repeatable = True
    path: str | None = None

    def __init__(
        self,
        image: converter_base.DiskImage,
        threads: int,
        before_end: Callable[[], None],
    ) -> None:
        self._image = image
        self._threads = threads
        self._before_end = before_end
        self.size = image.virtual_size

    def chunks(self) -> Iterator[memoryview]:
        """Yield all bytes in order; what is not allocated is not read."""
        slots = _AHEAD + target_base.DEPTH + 1
        buffers = [
            memoryview(bytearray(target_base.CHUNK)) for _ in range(slots)
        ]
        with futures.ThreadPoolExecutor(self._threads) as pool:
            try:
                yield from self._read(pool, buffers)
            finally:
                pool.shutdown(wait=True, cancel_futures=True)

    def _read(
        self, pool: futures.Executor, buffers: list[memoryview]
    ) -> Iterator[memoryview]:
        def start(
            number: int, offset: int, length: int, allocated: bool
        ) -> tuple[memoryview, futures.Future[None] | None, int]:
            if not allocated:
                return _ZEROS[:length], None, offset + length
            view = buffers[number % len(buffers)][:length]
            reading = pool.submit(self._image.pread_into, view, offset)
            return view, reading, offset + length

        started = (
            start(number, *piece)
            for number, piece in enumerate(_pieces(self._image))
        )
        waiting = list(itertools.islice(started, _AHEAD))
        while waiting:
            view, reading, end = waiting.pop(0)
            waiting += itertools.islice(started, 1)
            if reading is not None:
                reading.result()
            if end == self.size:
                self._before_end()
            yield view


def _pieces(
    image: converter_base.DiskImage,
) -> Iterator[tuple[int, int, bool]]:
    """Yield (offset, length, allocated) of at most a chunk."""
    for offset, length, allocated in image.extents():
        end = offset + length
        while offset < end:
            part = min(target_base.CHUNK, end - offset)
            yield offset, part, allocated
            offset += part


class ForwardContent:
    """A disk that comes once, in its own order, as a target takes it.

    :param image: ascending, and of a known size
    :param kept: is fed with all that passes
    :param before_end: called when all has been read and found sound, but
        the last bytes are not handed over yet
    """

    repeatable = False
    path: str | None = None

    def __init__(
        self,
        image: converter_base.ForwardImage,
        kept: sketch.Sketch,
        before_end: Callable[[], None],
    ) -> None:
        if image.virtual_size is None or not image.ascending:
            raise ValueError('the image cannot be streamed')
        self._image = image
        self._sketch = kept
        self._before_end = before_end
        self.size = image.virtual_size

    def chunks(self) -> Iterator[memoryview]:
        """Yield all bytes in order, once."""
        held: tuple[int, memoryview] | None = None
        position = 0
        for chunk in self._chunks():
            if held is not None:
                yield held[1]
            held = (position, chunk)
            self._sketch.feed(position, chunk)
            position += len(chunk)
        self._before_end()
        if held is not None:
            yield held[1]

    def _chunks(self) -> Iterator[memoryview]:
        chunks = _Chunks()
        position = 0
        for offset, run in self._image.runs():
            if offset < position or offset + len(run) > self.size:
                raise _disorder(offset, position, self.size)
            yield from chunks.zeros(offset - position)
            yield from chunks.data(run)
            position = offset + len(run)
        yield from chunks.zeros(self.size - position)
        yield from chunks.rest()


class _Chunks:
    """Puts runs and gaps together to chunks, in a few buffers."""

    def __init__(self) -> None:
        self._slots = itertools.cycle(
            [
                memoryview(bytearray(target_base.CHUNK))
                for _ in range(target_base.DEPTH + 2)
            ]
        )
        self._buffer = next(self._slots)
        self._filled = 0

    def zeros(self, length: int) -> Iterator[memoryview]:
        """Add a gap; yields the chunks that are full by then."""
        while length:
            if not self._filled and length >= target_base.CHUNK:
                yield _ZEROS
                length -= target_base.CHUNK
                continue
            part = _ZEROS[: min(length, target_base.CHUNK - self._filled)]
            length -= len(part)
            yield from self.data(part)

    def data(self, run: memoryview) -> Iterator[memoryview]:
        """Add data; yields the chunks that are full by then."""
        while len(run):
            part = min(len(run), target_base.CHUNK - self._filled)
            end = self._filled + part
            self._buffer[self._filled : end] = run[:part]
            self._filled = end
            run = run[part:]
            if end == target_base.CHUNK:
                yield from self.rest()

    def rest(self) -> Iterator[memoryview]:
        """Yield what has been put together so far."""
        if self._filled:
            yield self._buffer[: self._filled]
            self._buffer, self._filled = next(self._slots), 0


def _disorder(
    offset: int, position: int, size: int
) -> exceptions.DiskImageError:
    return exceptions.DiskImageError(
        'disk-image.disorder',
        'The parts of the disk image are not in the order of the disk',
        expected=f'the next part between bytes {position} and {size}',
        found=f'a part at byte {offset}',
        fix='save the package as a file and import that',
    )
