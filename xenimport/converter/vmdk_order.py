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

"""Whether the grains of a stream are those that its tables name."""

from __future__ import annotations

import array

from xenimport.converter import vmdk_format
from xenimport.converter import vmdk_tables
from xenimport import exceptions


class Order:
    """What comes, and what the tables say of it.

    :ivar ascending: whether the grains come in the order of the disk
    :ivar complete: whether all grains have come that the tables name
    :ivar data_size: bytes of the disk in all grains, None if unknown
    """

    ascending = True
    complete = False
    data_size: int | None = None

    def __init__(self, header: vmdk_format.Header, where: str) -> None:
        self._header = header
        self._where = where

    def differs(self, expected: str, found: str) -> exceptions.DiskImageError:
        """The error of tables that do not fit."""
        return vmdk_format.error(
            'vmdk.tables-differ',
            'The tables of the VMDK do not fit its grains',
            self._where,
            expected=expected,
            found=found,
        )


class TablesFirst(Order):
    """The tables are known before the first grain comes."""

    def __init__(
        self,
        header: vmdk_format.Header,
        where: str,
        tables: vmdk_tables.Tables,
    ) -> None:
        super().__init__(header, where)
        self._tables = tables
        self._left = 0
        last = 0
        for sector in tables.sectors():
            self._left += 1
            self.ascending = self.ascending and sector > last
            last = sector
        self.complete = not self._left
        self.data_size = min(self._left * header.grain, header.size)

    def add(self, index: int, sector: int) -> None:
        """A grain has come."""
        if self._tables.sector(index) != sector:
            raise self.differs(
                f'grain {index} at sector {self._tables.sector(index)}',
                f'sector {sector}',
            )
        self._left -= 1
        self.complete = not self._left


class TablesLast(Order):
    """The tables follow the grains that they name."""

    def __init__(self, header: vmdk_format.Header, where: str) -> None:
        super().__init__(header, where)
        self._last = -1
        self._tables: dict[int, array.array[int]] = {}
        #: A table by the sector of its first grain.
        self._first: dict[int, int] = {}
        #: Where the tables stand; those without a grain by themselves.
        self._places: dict[int, int] = {}
        self._empty: set[int] = set()
        self._directory = 0
        self._footer = False

    def add(self, index: int, sector: int) -> None:
        """A grain has come."""
        if index <= self._last:
            raise vmdk_format.error(
                'vmdk.grain-order',
                'The grains of the VMDK do not come in order',
                f'{self._where}, sector {sector}',
                expected=f'a grain after number {self._last}',
                found=f'grain {index}',
                fix='unpack the package, and give the disk as a plain file',
            )
        self._last = index
        number, entry = divmod(index, vmdk_format.TABLE_ENTRIES)
        table = self._tables.get(number)
        if table is None:
            if len(self._tables) == vmdk_tables.MAX_TABLES:
                raise self.differs('no more tables', 'one more')
            table = vmdk_tables.numbers(bytes(vmdk_format.TABLE_SIZE))
            self._tables[number] = table
            self._first[sector] = number
        if number in self._places or self._directory:
            raise self.differs('no grain after its table', f'grain {index}')
        table[entry] = sector

    def add_table(self, sector: int, table: array.array[int]) -> None:
        """A grain table has come."""
        if self._header.flags & vmdk_format.ZEROED_GRAINS:
            table = vmdk_tables.without_zeroed(table)
        first = next(filter(None, table), 0)
        if not first:
            self._empty.add(sector)
            if len(self._empty) > vmdk_tables.MAX_TABLES:
                raise self.differs('no more tables', 'one more')
            return
        number = self._first.get(first)
        if number is None or self._tables[number] != table:
            raise self.differs(
                'a table of the grains before it',
                f'another at sector {sector}',
            )
        self._places[number] = sector

    def add_directory(self, sector: int, directory: array.array[int]) -> None:
        """The grain directory has come."""
        for number, place in enumerate(directory):
            if number in self._tables:
                right = place == self._places.get(number)
            else:
                right = not place or place in self._empty
            if not right:
                raise self.differs(
                    f'the directory names table {number} where it stands',
                    f'sector {place}',
                )
        self._directory = sector

    def add_footer(self, data: bytes) -> None:
        """The footer has come."""
        footer = vmdk_format.parse_header(data)
        if footer is None:
            raise vmdk_format.no_footer(self._where)
        vmdk_format.check_footer(self._header, footer, self._where)
        if not self._directory or footer.directory != self._directory:
            raise self.differs(
                f'a footer that names the directory at {self._directory}',
                f'sector {footer.directory}',
            )
        self._footer = True

    def check_end(self) -> None:
        """The end may have come only after the footer."""
        if not self._footer:
            raise vmdk_format.no_footer(self._where)
