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

"""The block table of a VHDX image: what lies where, and what nowhere."""

from __future__ import annotations

import array
from collections.abc import Iterator
import dataclasses
import sys

from xenimport.converter import qemu
from xenimport.converter import region
from xenimport import exceptions

_MIB = 1 << 20
#: Entries of the block table that are read at once.
_STEP = 1 << 17
_UNUSED = bytes(8 * _STEP)
#: States of a block that hold data: whole, or in part the parent's.
_FULL, _PARTIAL = 6, 7
_STATES = 7
_ENTRY_OFFSET = -1 << 20 & (1 << 64) - 1


@dataclasses.dataclass(frozen=True)
class Table:
    """The block table: where it lies, and what it places."""

    offset: int
    block: int
    size: int

    @property
    def blocks(self) -> int:
        return -(-self.size // self.block)

    @property
    def chunk(self) -> int:
        """Blocks before an entry that places a sector bitmap."""
        return (qemu.SECTOR << 23) // self.block

    @property
    def entries(self) -> int:
        return self.blocks + (self.blocks - 1) // self.chunk


def _allocated(
    table: Table, reader: region.RegionReader
) -> Iterator[tuple[int, int]]:
    """Yield (number, entry) of the blocks that hold data."""
    period = table.chunk + 1
    for start in range(0, table.entries, _STEP):
        count = min(_STEP, table.entries - start)
        data = reader.read(table.offset + start * 8, count * 8)
        if data == _UNUSED[: len(data)]:
            continue
        entries = array.array('Q', data)
        if sys.byteorder == 'big':
            entries.byteswap()
        for index, entry in enumerate(entries, start):
            if entry & _STATES in (_FULL, _PARTIAL):
                chunk, inside = divmod(index, period)
                if inside < table.chunk:
                    yield chunk * table.chunk + inside, entry


def check_blocks(table: Table, reader: region.RegionReader) -> None:
    """Look whether the blocks lie in the file, each in its place."""
    size = min(reader.size, qemu.MAX_FILE)
    seen = bytearray(size // _MIB + 1)
    for number, entry in _allocated(table, reader):
        if entry & _STATES == _PARTIAL:
            raise damaged(
                reader, 'blocks that are whole', f'a part of block {number}'
            )
        offset = entry & _ENTRY_OFFSET
        # What the last block holds beyond the disk need not be there.
        length = min(table.block, table.size - number * table.block)
        if offset + length > size:
            raise qemu.truncated('VHDX', offset + length, reader)
        if not offset or seen[offset // _MIB]:
            raise damaged(
                reader,
                'blocks beyond the header, each in a place of its own',
                f'block {number} at offset {offset}',
            )
        seen[offset // _MIB] = 1


def extents(table: Table, reader: region.RegionReader) -> qemu.Extents:
    """Yield (offset, length, allocated), neighbours joined."""
    start = end = 0  # of the run of data that is being collected
    for number, _entry in _allocated(table, reader):
        offset = number * table.block
        if offset > end:
            if end > start:
                yield start, end - start, True
            yield end, offset - end, False
            start = offset
        end = min(offset + table.block, table.size)
    if end > start:
        yield start, end - start, True
    if table.size > end:
        yield end, table.size - end, False


def damaged(
    reader: region.RegionReader, expected: str, found: str
) -> exceptions.DiskImageError:
    return exceptions.DiskImageError(
        'vhdx.header',
        'The VHDX image is damaged',
        where=reader.where,
        expected=expected,
        found=found,
        fix='copy the disk again, or export the guest again',
    )
