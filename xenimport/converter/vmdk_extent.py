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

"""The extents that a VMDK's disk consists of, each read in its own way."""

from __future__ import annotations

import abc
from collections.abc import Iterator
import threading

from xenimport.converter import region
from xenimport.converter import vmdk_format
from xenimport.converter import vmdk_grain
from xenimport.converter import vmdk_tables

#: Bytes of compressed grains that are read at once.
_READ = 2 * 1024 * 1024
SECTOR = vmdk_format.SECTOR
GRAIN_MARKER = vmdk_format.GRAIN_MARKER


class Extent(abc.ABC):
    """A run of the disk; reads are safe from several threads at once.

    :ivar size: bytes
    """

    size: int

    @abc.abstractmethod
    def extents(self) -> Iterator[tuple[int, int, bool]]:
        """As of a :class:`xenimport.converter.base.DiskImage`."""

    @abc.abstractmethod
    def read_into(self, buffer: memoryview, offset: int) -> None:
        """Fill the buffer with the bytes at ``offset`` of the extent.

        :raises xenimport.exceptions.DiskImageError: if it is damaged
        """


class ZeroExtent(Extent):
    """Nothing but zeros."""

    def __init__(self, size: int) -> None:
        self.size = size

    def extents(self) -> Iterator[tuple[int, int, bool]]:
        yield 0, self.size, False

    def read_into(self, buffer: memoryview, offset: int) -> None:
        buffer[:] = bytes(len(buffer))


class FlatExtent(Extent):
    """The disk's bytes as they are, from ``start`` of the file."""

    def __init__(
        self, reader: region.RegionReader, size: int, start: int
    ) -> None:
        self.size = size
        self._reader = reader
        self._start = start

    def extents(self) -> Iterator[tuple[int, int, bool]]:
        start = self._start
        for offset, length, allocated in self._reader.extents(
            start + self.size
        ):
            first = max(start, offset)
            if offset + length > first:
                yield first - start, offset + length - first, allocated

    def read_into(self, buffer: memoryview, offset: int) -> None:
        self._reader.read_into(buffer, self._start + offset)


class SparseExtent(Extent):
    """Grains as they are, found through tables."""

    def __init__(
        self,
        reader: region.RegionReader,
        header: vmdk_format.Header,
        tables: vmdk_tables.Tables,
    ) -> None:
        self.size = header.size
        self._reader = reader
        self._header = header
        self._grain = header.grain
        self._tables = tables

    def extents(self) -> Iterator[tuple[int, int, bool]]:
        return self._tables.extents()

    def read_into(self, buffer: memoryview, offset: int) -> None:
        """Grains that follow each other in the file are one read."""
        grain = self._grain
        position = 0
        while position < len(buffer):
            index, inside = divmod(offset + position, grain)
            sector = self._tables.sector(index)
            end = position + grain - inside
            following = sector
            while end < len(buffer):
                index += 1
                if sector:
                    following += grain // SECTOR
                if self._tables.sector(index) != following:
                    break
                end += grain
            part = buffer[position:end]
            if sector:
                self._reader.read_into(part, sector * SECTOR + inside)
            else:
                part[:] = bytes(len(part))
            position = end


class CompressedExtent(SparseExtent):
    """Grains that are compressed, each after a marker that names it.

    Grains stand in the file in the order in which they were written,
    mostly that of the disk, so that neighbours are read at once.
    """

    def __init__(
        self,
        reader: region.RegionReader,
        header: vmdk_format.Header,
        tables: vmdk_tables.Tables,
    ) -> None:
        super().__init__(reader, header, tables)
        self._most = GRAIN_MARKER + header.most_compressed
        self._local = threading.local()

    def read_into(self, buffer: memoryview, offset: int) -> None:
        grain = self._grain
        first = offset // grain
        last = (offset + len(buffer) - 1) // grain
        if first == last and first == getattr(self._local, 'index', None):
            inside = offset - first * grain
            buffer[:] = self._local.plain[inside : inside + len(buffer)]
            return
        sectors = [
            self._tables.sector(index) for index in range(first, last + 1)
        ]
        # What follows the last grain tells how far it can reach.
        sectors.append(self._tables.sector(last + 1))
        number = 0
        while number <= last - first:
            if sectors[number]:
                end, length = self._group(sectors, number)
                data = self._read(sectors[number], length)
                self._place(
                    buffer, offset, first, sectors[number:end], data, number
                )
                number = end
            else:
                start = (first + number) * grain - offset
                part = buffer[max(0, start) : start + grain]
                part[:] = bytes(len(part))
                number += 1

    def _group(self, sectors: list[int], position: int) -> tuple[int, int]:
        """Grains to read at once: where they end, and their bytes."""
        first = sectors[position]
        end = position + 1
        while True:
            step = (sectors[end] - sectors[end - 1]) * SECTOR
            near = 0 < step <= self._most + SECTOR
            length = (sectors[end - 1] - first) * SECTOR
            # The list's last entry is not asked for.
            if not near or end == len(sectors) - 1 or length > _READ:
                return end, length + (step if near else self._most)
            end += 1

    def _read(self, sector: int, length: int) -> memoryview:
        """Bytes of the file, in a buffer of this thread's own."""
        start = sector * SECTOR
        length = min(length, self._reader.size - start)
        buffer: memoryview | None = getattr(self._local, 'buffer', None)
        if buffer is None or len(buffer) < length:
            # Whole steps, so that it is not made anew each time.
            buffer = memoryview(bytearray(-(-length // _READ) * _READ))
            self._local.buffer = buffer
        self._reader.read_into(buffer[:length], start)
        return buffer[:length]

    def _place(
        self,
        buffer: memoryview,
        offset: int,
        first: int,
        sectors: list[int],
        data: memoryview,
        number: int,
    ) -> None:
        """Decompress neighbouring grains to their places in the buffer.

        :param first: the grain in which the buffer begins
        :param number: the grain in which the data begin, counted from
            the first
        """
        ends = [(sector - sectors[0]) * SECTOR for sector in sectors[1:]]
        begin = 0
        for position, end in enumerate((*ends, len(data))):
            index = first + number + position
            plain = self._plain(index, sectors[position], data[begin:end])
            begin = end
            start = index * self._grain - offset
            part = buffer[max(0, start) : start + self._grain]
            skip = max(0, -start)
            part[:] = plain[skip : skip + len(part)]
            if len(part) < len(plain):
                # Small reads in order ask for the same grain again.
                self._local.index = index
                self._local.plain = plain

    def _plain(self, index: int, sector: int, data: memoryview) -> memoryview:
        """A grain's bytes, decompressed.

        :param data: of the file, from its marker to at least its end
        """
        where = f'{self._reader.where}, sector {sector}'
        return vmdk_grain.grain(self._header, index, data, where)
