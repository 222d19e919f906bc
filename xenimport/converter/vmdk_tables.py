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

"""The grain directory and grain tables of a VMDK: where each grain is."""

from __future__ import annotations

import array
from collections.abc import Iterable
from collections.abc import Iterator
import itertools
import sys
import typing

from xenimport.converter import vmdk_format
from xenimport import exceptions

#: Bounds the memory: with grains of 64 KiB these hold 2 TiB of data,
#: where the numbers of sectors end.
MAX_TABLES = 1 << 16
#: Places for grains in a file: 2 TiB, with grains of 64 KiB.
_MAX_SLOTS = (1 << 25) + 3
#: Bytes of tables that are read at once.
_READ = 1024 * 1024
#: Tables that are there at all: 8 TiB, the most that VMware makes with
#: all tables in place.
_MAX_PLACES = 1 << 18
#: Entries of a directory: 64 TiB with grains of 64 KiB.
_MAX_ENTRIES = 1 << 21
_TABLE_SECTORS = vmdk_format.TABLE_SIZE // vmdk_format.SECTOR
_EMPTY_TABLE = bytes(vmdk_format.TABLE_SIZE)


def numbers(data: bytes | memoryview) -> array.array[int]:
    """Little-endian unsigned 32-bit numbers."""
    result = array.array('I')
    if result.itemsize != 4:
        raise NotImplementedError('unsigned int is not 32 bits here')
    result.frombytes(data)
    if sys.byteorder == 'big':
        result.byteswap()
    return result


class Reader(typing.Protocol):
    """What tables are read from: a region, or the start of a stream."""

    size: int

    @property
    def where(self) -> str: ...

    def read(self, offset: int, length: int) -> bytes: ...


class Tables:
    """The sector of every grain, 0 where there is none.

    :param tables: one for each entry of the directory; None where no
        grain is
    """

    def __init__(
        self, header: vmdk_format.Header, tables: list[array.array[int] | None]
    ) -> None:
        self._grain = header.grain
        self._size = header.size
        self._tables = tables

    def sector(self, index: int) -> int:
        """Where a grain starts in the file, 0 if it is all zeros."""
        number, entry = divmod(index, vmdk_format.TABLE_ENTRIES)
        if number >= len(self._tables):
            return 0
        table = self._tables[number]
        return 0 if table is None else table[entry]

    def sectors(self) -> Iterator[int]:
        """Yield where each grain starts that is there, in disk order."""
        for table in self._tables:
            if table is not None:
                yield from filter(None, table)

    def extents(self) -> Iterator[tuple[int, int, bool]]:
        """Yield (offset, length, allocated) of the disk, in order."""
        return merged(self._runs())

    def _runs(self) -> Iterator[tuple[int, int, bool]]:
        span = self._grain * vmdk_format.TABLE_ENTRIES
        for number, table in enumerate(self._tables):
            position = number * span
            if table is None:
                yield position, min(span, self._size - position), False
                continue
            for allocated, group in itertools.groupby(table, bool):
                length = min(
                    len(list(group)) * self._grain, self._size - position
                )
                if length <= 0:
                    break
                yield position, length, allocated
                position += length


def merged(
    runs: Iterable[tuple[int, int, bool]],
) -> Iterator[tuple[int, int, bool]]:
    """Join neighbouring runs that are both allocated or both not."""
    start = end = 0
    current = False
    for offset, length, allocated in runs:
        if allocated != current and end > start:
            yield start, end - start, current
            start = offset
        current = allocated
        end = offset + length
    if end > start:
        yield start, end - start, current


def load(reader: Reader, header: vmdk_format.Header, directory: int) -> Tables:
    """Read and validate a grain directory and its tables.

    :param directory: the sector where it starts
    :raises xenimport.exceptions.DiskImageError: if any part of it, or a
        grain that it names, lies outside the file or on another
    """
    return _Loader(reader, header, directory).load()


class _Loader:
    def __init__(
        self,
        reader: Reader,
        header: vmdk_format.Header,
        directory: int,
    ) -> None:
        self._reader = reader
        self._header = header
        self._offset = directory
        #: Whole sectors in the file.
        self._sectors = reader.size // vmdk_format.SECTOR

    def load(self) -> Tables:
        directory = self._read_directory()
        tables: list[array.array[int] | None] = [None] * len(directory)
        if len(directory) - directory.count(0) > _MAX_PLACES:
            raise self._too_many(_MAX_PLACES)
        places = sorted(
            (sector, number)
            for number, sector in enumerate(directory)
            if sector
        )
        self._check_places(places)
        for number, table in self._read_tables(places):
            tables[number] = table
        if self._header.compressed:
            self._check_compressed(tables)
        else:
            _Places(self._reader, self._header, self._sectors).check(
                tables, self._metadata(places, len(directory))
            )
        return Tables(self._header, tables)

    def _read_directory(self) -> array.array[int]:
        if self._header.directory_entries > _MAX_ENTRIES:
            raise self._error(
                'The grain directory of the VMDK is larger than any can be',
                f'at most {_MAX_ENTRIES} entries',
                f'{self._header.directory_entries}',
            )
        size = self._header.directory_entries * 4
        start = self._offset * vmdk_format.SECTOR
        if not self._offset or start + size > self._reader.size:
            raise self._error(
                'The grain directory of the VMDK lies outside the file',
                f'{size} bytes inside the {self._reader.size} bytes of the '
                'file',
                f'offset {start}',
            )
        return numbers(self._reader.read(start, size))

    def _check_places(self, places: list[tuple[int, int]]) -> None:
        """Every table lies inside the file, and none on another."""
        if not places:
            return
        for (sector, _), (following, _) in itertools.pairwise(places):
            if sector + _TABLE_SECTORS > following:
                raise self._error(
                    'Two grain tables of the VMDK lie on each other',
                    'every table at a place of its own',
                    f'tables at sectors {sector} and {following}',
                )
        last = places[-1][0]
        if last + _TABLE_SECTORS > self._sectors:
            raise self._error(
                'A grain table of the VMDK lies outside the file',
                f'all tables before sector {self._sectors}',
                f'a table at sector {last}',
            )

    def _read_tables(
        self, places: list[tuple[int, int]]
    ) -> Iterator[tuple[int, array.array[int]]]:
        """Yield each table in which a grain is; neighbours in one read."""
        zeroed = bool(self._header.flags & vmdk_format.ZEROED_GRAINS)
        most = _READ // vmdk_format.TABLE_SIZE
        position = count = 0
        while position < len(places):
            first = places[position][0]
            end = position + 1
            while (
                end < len(places)
                and end - position < most
                and places[end][0] == places[end - 1][0] + _TABLE_SECTORS
            ):
                end += 1
            data = memoryview(
                self._reader.read(
                    first * vmdk_format.SECTOR,
                    (end - position) * vmdk_format.TABLE_SIZE,
                )
            )
            for _, number in places[position:end]:
                part = data[: vmdk_format.TABLE_SIZE]
                data = data[vmdk_format.TABLE_SIZE :]
                if part == _EMPTY_TABLE:
                    continue
                count += 1
                if count > MAX_TABLES:
                    raise self._too_many(MAX_TABLES)
                table = numbers(part)
                if zeroed:
                    table = without_zeroed(table)
                yield number, table
            position = end

    def _too_many(self, most: int) -> exceptions.DiskImageError:
        return self._error(
            'The VMDK has more grain tables than can be read',
            f'at most {most}',
            'more',
        )

    def _check_compressed(self, tables: list[array.array[int] | None]) -> None:
        """All grains start inside the file, no more than it has sectors.

        That none is named twice is seen by its marker when it is read.
        """
        count = 0
        for table in tables:
            if table is None:
                continue
            count += vmdk_format.TABLE_ENTRIES - table.count(0)
            if max(table) >= self._sectors:
                raise outside(self._reader, max(table))
        if count > self._sectors:
            raise overlap(self._reader, f'{count} in {self._sectors} sectors')

    def _metadata(
        self, places: list[tuple[int, int]], entries: int
    ) -> Iterator[tuple[int, int]]:
        """Yield (sector, sectors) of what is not a grain.

        The header is not needed: nothing can name its sector, the first.
        """
        header = self._header
        yield header.descriptor_offset, header.descriptor_size
        yield self._offset, -(-entries * 4 // vmdk_format.SECTOR)
        start = end = 0
        for sector, _ in places:
            if sector != end:
                yield start, end - start
                start = sector
            end = sector + _TABLE_SECTORS
        yield start, end - start

    def _error(
        self, message: str, expected: str, found: str
    ) -> exceptions.DiskImageError:
        return vmdk_format.error(
            'vmdk.directory',
            message,
            self._reader.where,
            expected=expected,
            found=found,
        )


def without_zeroed(table: array.array[int]) -> array.array[int]:
    """The table with grains of zeros as if they were not there."""
    if 1 in table:
        return array.array('I', (0 if n == 1 else n for n in table))
    return table


class _Places:
    """Finds grains that lie on each other, on metadata or outside.

    The file is cut into slots of a grain's size, so that two grains that
    overlap start in one slot or in neighbours.
    """

    def __init__(
        self,
        reader: Reader,
        header: vmdk_format.Header,
        sectors: int,
    ) -> None:
        self._reader = reader
        self._grain = header.grain // vmdk_format.SECTOR
        self._size = header.size // vmdk_format.SECTOR
        self._sectors = sectors
        self._slots = array.array('I')

    def check(
        self,
        tables: list[array.array[int] | None],
        metadata: Iterator[tuple[int, int]],
    ) -> None:
        """:raises xenimport.exceptions.DiskImageError: if one is wrong"""
        highest = max((max(t) for t in tables if t is not None), default=0)
        if highest >= self._sectors:
            raise outside(self._reader, highest)
        # One more at each end spares the tests for the ends.
        count = highest // self._grain + 3
        if count > _MAX_SLOTS:
            raise vmdk_format.error(
                'vmdk.directory',
                'The VMDK is too large for its small grains',
                self._reader.where,
                expected=f'at most {_MAX_SLOTS} grains',
                found=f'{count}',
            )
        self._slots = array.array('I', bytes(4)) * count
        for number, table in enumerate(tables):
            if table is not None:
                self._place(number, table)
        for sector, sectors in metadata:
            self._check_metadata(sector, sectors)

    def _place(self, number: int, table: array.array[int]) -> None:
        slots, grain = self._slots, self._grain
        # The disk's last grain need not be there beyond the disk's end.
        limit = self._sectors - grain
        for entry, sector in enumerate(table):
            if not sector:
                continue
            slot = sector // grain + 1
            before, after = slots[slot - 1], slots[slot + 1]
            if (
                slots[slot]
                or (before and before + grain > sector)
                or (after and sector + grain > after)
            ):
                raise overlap(self._reader, f'a grain at sector {sector}')
            slots[slot] = sector
            if sector > limit:
                start = (number * vmdk_format.TABLE_ENTRIES + entry) * grain
                length = min(grain, self._size - start)
                if sector + length > self._sectors:
                    raise outside(self._reader, sector)

    def _check_metadata(self, start: int, sectors: int) -> None:
        slots, grain = self._slots, self._grain
        if not sectors:
            return
        first = start // grain
        last = min((start + sectors) // grain + 1, len(slots) - 1)
        for slot in range(first, last + 1):
            sector = slots[slot]
            if sector and sector + grain > start and sector < start + sectors:
                raise overlap(
                    self._reader, f'a grain at sector {sector}, on metadata'
                )


def overlap(reader: Reader, found: str) -> exceptions.DiskImageError:
    """The error of a grain that lies on something else."""
    return vmdk_format.error(
        'vmdk.grains-overlap',
        'A grain of the VMDK lies on other data of the file',
        reader.where,
        expected='every grain at a place of its own',
        found=found,
    )


def outside(reader: Reader, sector: int) -> exceptions.DiskImageError:
    """The error of a grain that the file does not have."""
    return vmdk_format.error(
        'vmdk.grain-outside',
        'A grain of the VMDK lies outside the file',
        reader.where,
        expected=f'all grains within {reader.size} bytes',
        found=f'a grain at byte {sector * vmdk_format.SECTOR}',
    )
