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

"""Stream-optimized VMDKs as they come: once, forward.

Such a disk is made to be read so: every grain has a marker that says
where it belongs. VMware's tools put the tables after the grains that
they name, qemu-img puts all tables first.
"""

from __future__ import annotations

import collections
from collections.abc import Iterator
from concurrent import futures
import dataclasses

from xenimport.converter import base
from xenimport.converter import vmdk_descriptor
from xenimport.converter import vmdk_format
from xenimport.converter import vmdk_grain
from xenimport.converter import vmdk_order
from xenimport.converter import vmdk_tables
from xenimport import exceptions
from xenimport import model
from xenimport import stream as stream_room

SECTOR = vmdk_format.SECTOR
#: Threads that decompress while the stream is read.
_THREADS = 2
#: Runs that are being decompressed, or wait to be taken.
_AHEAD = 4
#: Bytes that are taken from the stream at once.
_READ = 512 * 1024
#: Bytes of tables that are read ahead: those of 128 GiB, twice.
_PEEK = 20 * 1024 * 1024


def open_stream(
    disk: model.Disk, stream: stream_room.Stream
) -> base.ForwardImage:
    """Open a stream-optimized disk.

    :raises xenimport.converter.base.NotForward: if it is of another kind
    :raises xenimport.exceptions.DiskImageError: if it is damaged
    """
    header = vmdk_format.parse_header(stream.peek(SECTOR))
    if header is None or not header.compressed:
        raise base.NotForward('only a stream-optimized VMDK comes in order')
    if not header.size:
        raise base.NotForward('its size stands at its end')
    where = f'{disk.region.path}: {disk.region.name}'
    vmdk_format.check_header(header, where)
    vmdk_format.check_descriptor(header, where)
    order: vmdk_order.TablesFirst | vmdk_order.TablesLast
    if header.directory == vmdk_format.AT_END:
        order = vmdk_order.TablesLast(header, where)
    else:
        tables = _tables_first(header, stream, where)
        order = vmdk_order.TablesFirst(header, where, tables)
    return StreamImage(disk.region.name, where, header, stream, order)


def _tables_first(
    header: vmdk_format.Header, stream: stream_room.Stream, where: str
) -> vmdk_tables.Tables:
    """The tables that stand before all grains.

    :raises xenimport.converter.base.NotForward: if they do not
    """
    size = header.overhead * SECTOR
    if size > _PEEK:
        raise base.NotForward('its tables are too large to be read ahead')
    start = _Start(where, stream.peek(size), stream.size)
    try:
        return vmdk_tables.load(start, header, header.directory)
    except _Beyond as error:
        raise base.NotForward('its tables stand among its data') from error


class _Beyond(Exception):
    """What is wanted lies beyond what was peeked at."""


class _Start:
    """The start of a stream, as it would be read from a file."""

    def __init__(self, where: str, data: bytes, size: int | None) -> None:
        self.where = where
        self._data = data
        # A number of a sector cannot reach further.
        self.size = size or 1 << 41

    def read(self, offset: int, length: int) -> bytes:
        if offset + length > len(self._data):
            raise _Beyond
        return self._data[offset : offset + length]


class StreamImage(base.ForwardImage):
    """A stream-optimized VMDK that is read once."""

    format = 'vmdk'

    def __init__(
        self,
        name: str,
        where: str,
        header: vmdk_format.Header,
        stream: stream_room.Stream,
        order: vmdk_order.TablesFirst | vmdk_order.TablesLast,
    ) -> None:
        self.virtual_size = header.size
        self.ascending = order.ascending
        self.data_size = order.data_size
        self._where = where
        self._header = header
        self._stream = _Buffered(stream)
        self._order = order
        if header.unclean:
            self.findings = (vmdk_format.unclean(name, where),)

    def runs(self) -> Iterator[tuple[int, memoryview]]:
        pool = futures.ThreadPoolExecutor(_THREADS, 'vmdk-inflate')
        ahead: collections.deque[_Work] = collections.deque()
        free = [bytearray(base.MAX_RUN) for _ in range(_AHEAD)]
        try:
            for batch in self._batches():
                if not free:
                    work = ahead.popleft()
                    yield work.offset, work.future.result()
                    free.append(work.buffer)
                buffer = free.pop()
                future = pool.submit(batch.inflate, buffer)
                ahead.append(_Work(batch.offset, buffer, future))
            while ahead:
                work = ahead.popleft()
                yield work.offset, work.future.result()
        finally:
            pool.shutdown(cancel_futures=True)

    def _batches(self) -> Iterator[_Batch]:
        """Yield grains that follow each other on the disk, a run each."""
        self._read_start()
        batch = _Batch(self._header, self._where)
        for index, sector, data in self._grains():
            if not batch.add(index, sector, data):
                yield batch
                batch = _Batch(self._header, self._where)
                batch.add(index, sector, data)
        if batch.grains:
            yield batch

    def _read_start(self) -> None:
        """Read the header, the descriptor, and what pads them."""
        header = self._header
        start = max(1, header.descriptor_offset) * SECTOR
        size = header.descriptor_size * SECTOR
        self._stream.skip(start)
        vmdk_descriptor.parse(
            bytes(self._stream.take(size)), self._where, embedded=True
        )
        self._stream.skip(
            max(0, header.overhead * SECTOR - self._stream.position)
        )

    def _grains(self) -> Iterator[tuple[int, int, bytes]]:
        """Yield (index, sector, marker with data); check all metadata."""
        header, source = self._header, self._stream
        while not self._order.complete:
            sector = source.position // SECTOR
            marker = vmdk_format.parse_marker(source.peek(16))
            if not marker.size:
                if self._metadata(marker):
                    return
                continue
            index, inside = divmod(marker.value * SECTOR, header.grain)
            if inside or index * header.grain >= header.size:
                raise self._error(
                    'grains of the disk, each at a multiple of their size',
                    f'a grain of sector {marker.value}',
                )
            if marker.size > header.most_compressed:
                raise vmdk_grain.damaged(
                    f'{self._where}, sector {sector}',
                    f'1 to {header.most_compressed} bytes, compressed',
                    f'{marker.size} bytes',
                )
            self._order.add(index, sector)
            length = vmdk_format.GRAIN_MARKER + marker.size
            yield index, sector, source.take(-(-length // SECTOR) * SECTOR)
        # Nothing has to follow; an end-of-stream marker is a zero.
        if not source.only_zeros():
            raise self._error('the end of the disk', 'more bytes')

    def _metadata(self, marker: vmdk_format.Marker) -> bool:
        """Check what a marker announces; whether it is the end."""
        source, header, order = self._stream, self._header, self._order
        if isinstance(order, vmdk_order.TablesFirst):
            raise order.differs(
                'all grains that the tables name', f'a marker {marker.kind}'
            )
        source.skip(SECTOR)
        sector = source.position // SECTOR
        size = marker.value * SECTOR
        entries = header.directory_entries * 4
        if marker.kind == vmdk_format.END_OF_STREAM and not size:
            order.check_end()
            if not source.at_end():
                raise self._error('the end of the disk', 'more bytes')
            return True
        if (
            marker.kind == vmdk_format.GRAIN_TABLE
            and size == vmdk_format.TABLE_SIZE
        ):
            order.add_table(sector, vmdk_tables.numbers(source.take(size)))
        elif (
            marker.kind == vmdk_format.GRAIN_DIRECTORY
            and entries <= size < entries + SECTOR
        ):
            directory = vmdk_tables.numbers(source.take(size)[:entries])
            order.add_directory(sector, directory)
        elif marker.kind == vmdk_format.FOOTER and size == SECTOR:
            order.add_footer(source.take(SECTOR))
        else:
            raise self._error(
                'the marker of a grain, a table, a directory, the footer or '
                'the end',
                f'kind {marker.kind}, {marker.value} sectors',
            )
        return False

    def _error(self, expected: str, found: str) -> exceptions.DiskImageError:
        return vmdk_format.error(
            'vmdk.marker',
            'The VMDK holds what does not belong there',
            f'{self._where}, offset {self._stream.position}',
            expected=expected,
            found=found,
        )


@dataclasses.dataclass
class _Work:
    """A run that is being decompressed."""

    offset: int
    buffer: bytearray
    future: futures.Future[memoryview]


class _Batch:
    """Compressed grains that follow each other on the disk.

    :ivar grains: the first one's number is ``offset`` over the size
    """

    def __init__(self, header: vmdk_format.Header, where: str) -> None:
        self._header = header
        self._where = where
        self._first = 0
        self.grains: list[tuple[int, bytes]] = []

    @property
    def offset(self) -> int:
        """Where the run starts on the disk, in bytes."""
        return self._first * self._header.grain

    def add(self, index: int, sector: int, data: bytes) -> bool:
        """Take one more grain, unless it does not fit."""
        count = len(self.grains)
        if not count:
            self._first = index
        elif (
            index != self._first + count
            or (count + 1) * self._header.grain > base.MAX_RUN
        ):
            return False
        self.grains.append((sector, data))
        return True

    def inflate(self, buffer: bytearray) -> memoryview:
        """Decompress all into the buffer."""
        view = memoryview(buffer)
        done = 0
        for number, (sector, data) in enumerate(self.grains):
            plain = vmdk_grain.grain(
                self._header,
                self._first + number,
                memoryview(data),
                f'{self._where}, sector {sector}',
            )
            view[done : done + len(plain)] = plain
            done += len(plain)
        self.grains.clear()
        return view[:done]


class _Buffered:
    """Takes large parts from a stream, and gives small ones.

    :ivar position: bytes given so far
    """

    def __init__(self, stream: stream_room.Stream) -> None:
        self._stream = stream
        self._buffer = memoryview(bytearray(_READ))
        self._start = self._end = 0
        self.position = 0

    def peek(self, length: int) -> memoryview:
        """The next ``length`` bytes, left in place; valid until more."""
        while self._end - self._start < length:
            if not self._more(length):
                raise self._stream.truncated(
                    self.position + length,
                    self.position + self._end - self._start,
                )
        return self._buffer[self._start : self._start + length]

    def take(self, length: int) -> bytes:
        """Take exactly ``length`` bytes.

        :raises xenimport.exceptions.PackageError: if fewer are left
        """
        data = bytes(self.peek(length))
        self._start += length
        self.position += length
        return data

    def skip(self, length: int) -> None:
        """Pass over ``length`` bytes.

        :raises xenimport.exceptions.PackageError: if fewer are left
        """
        while length:
            step = min(length, _READ)
            self.peek(step)
            self._start += step
            self.position += step
            length -= step

    def at_end(self) -> bool:
        """Whether nothing is left."""
        return self._start == self._end and not self._more(1)

    def only_zeros(self) -> bool:
        """Whether nothing is left but zeros."""
        while not self.at_end():
            if any(self._buffer[self._start : self._end]):
                return False
            self._start = self._end
        return True

    def _more(self, length: int) -> int:
        """Read on; how many bytes, 0 only at the end."""
        left = self._end - self._start
        size = max(_READ, length)
        if self._start + size > len(self._buffer):
            buffer = self._buffer
            if size > len(buffer):
                buffer = memoryview(bytearray(size))
            buffer[:left] = bytes(self._buffer[self._start : self._end])
            self._buffer = buffer
            self._start, self._end = 0, left
        count = self._stream.read_into(self._buffer[self._end :])
        self._end += count
        return count
