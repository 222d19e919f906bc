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

"""The block table of a dynamic VHD, and the bitmaps of its blocks.

A table may have half a thousand million entries (blocks of 4 KiB), nearly
all of them unused: only its pages with a block in them are kept.
"""

from __future__ import annotations

import array
import bisect
from collections.abc import Callable
from collections.abc import Iterator
import itertools
import re
import sys

from xenimport.converter import vhd_format
from xenimport import exceptions

SECTOR = vhd_format.SECTOR
UNUSED = 0xFFFFFFFF
#: Entries that are kept or left out together.
PAGE = 1024
_PAGE_BYTES = PAGE * 4
_EMPTY_PAGE = b'\xff' * _PAGE_BYTES
#: Bytes of the table that are read at once.
_STEP = 256 * _PAGE_BYTES
#: What one table may keep: 64 MiB.
_MAX_PAGES = 1 << 14
#: Blocks that have data: 8 TiB in blocks of 2 MiB, more than the 2 TiB
#: that the table's sector numbers reach; 16 GiB in blocks of 4 KiB.
_MAX_BLOCKS = 1 << 22
#: Zeros in a bitmap that are not worth a run of their own: 60 KiB.
_SPAN = re.compile(rb'[^\0]+(?:\0{1,15}[^\0]+)*')
_UNSET = re.compile('0+')
_REVERSED = bytes(int(f'{byte:08b}'[::-1], 2) for byte in range(256))

EMPTY, FULL, PARTIAL = 1, 2, 3


class Table:
    """For each block of the disk the sector of its bitmap.

    :ivar blocks: how many blocks the file has
    """

    def __init__(self, length: int) -> None:
        if array.array('I').itemsize != 4:
            raise NotImplementedError('unsigned int is not 32 bits here')
        self._length = length
        self._pages: list[array.array[int] | None] = []
        self.blocks = 0
        self.pages_kept = 0

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> int:
        page = self._pages[index // PAGE]
        return UNUSED if page is None else page[index % PAGE]

    def extend(self, data: bytes) -> None:
        """Take in the next entries, whole pages but for the last."""
        for start in range(0, len(data), _PAGE_BYTES):
            part = data[start : start + _PAGE_BYTES]
            if _EMPTY_PAGE.startswith(part):
                self._pages.append(None)
                continue
            page = array.array('I')
            page.frombytes(part)
            if sys.byteorder == 'little':
                page.byteswap()
            self._pages.append(page)
            self.pages_kept += 1
            self.blocks += len(page) - page.count(UNUSED)

    def allocated(self) -> Iterator[tuple[int, int]]:
        """Yield (block, sector) of the blocks that the file has."""
        for number, page in enumerate(self._pages):
            if page is not None:
                for index, entry in enumerate(page, number * PAGE):
                    if entry != UNUSED:
                        yield index, entry


def used_entries(
    footer: vhd_format.Footer,
    header: vhd_format.Header,
    size: int | None,
    where: str,
) -> int:
    """The number of entries that the disk uses.

    :param size: bytes of the file, None if that is not known
    :raises xenimport.exceptions.DiskImageError: if they are not there
    """
    used = -(-footer.current_size // header.block_size)
    if used > header.entries:
        raise vhd_format.error(
            where,
            'vhd.table',
            'The block table of the VHD is too small for the disk',
            expected=f'at least {used} entries',
            found=f'{header.entries}',
        )
    offset = header.table_offset
    if offset % SECTOR or (size is not None and offset + used * 4 > size):
        raise vhd_format.error(
            where,
            'vhd.table',
            'The block table of the VHD lies outside the file',
            expected=f'{used * 4} bytes at a sector inside the '
            f'{"" if size is None else size} bytes of the file',
            found=f'offset {offset}',
        )
    return used


def read_table(
    read: Callable[[int, int], bytes],
    header: vhd_format.Header,
    used: int,
    where: str,
) -> Table:
    """Read the entries that the disk uses.

    :param read: gives the bytes at an offset of the file, by their length
    :raises xenimport.exceptions.DiskImageError: if more blocks are in it
        than can be handled
    """
    table = Table(used)
    for done in range(0, used * 4, _STEP):
        length = min(_STEP, used * 4 - done)
        table.extend(read(header.table_offset + done, length))
        if table.blocks > _MAX_BLOCKS or table.pages_kept > _MAX_PAGES:
            raise vhd_format.error(
                where,
                'vhd.table',
                'The VHD has more blocks than can be handled',
                expected=f'at most {_MAX_BLOCKS} blocks, in at most '
                f'{_MAX_PAGES} pages of the table',
                found='more',
                fix='write the disk with blocks of 2 MiB, as Xen does',
            )
    return table


class Layout:
    """Where the blocks of one VHD lie in its file.

    :param where: the VHD, for an error
    """

    def __init__(
        self,
        footer: vhd_format.Footer,
        header: vhd_format.Header,
        table: Table,
        where: str,
    ) -> None:
        self.size = footer.current_size
        self.block = header.block_size
        self.bitmap = bitmap_size(header.block_size)
        self.table = table
        self.lowest_bit_first = footer.lowest_bit_first
        self._footer = footer
        self._header = header
        self._where = where
        self._last = table[len(table) - 1]

    def in_file_order(self) -> list[int]:
        """The numbers of the blocks in the order of the file."""
        numbers = [index for index, _ in self.table.allocated()]
        numbers.sort(key=self.table.__getitem__)
        return numbers

    def length(self, index: int) -> int:
        """Bytes of the disk in a block; the last may have fewer."""
        return min(self.block, self.size - index * self.block)

    def state(self, bits: bytes, index: int) -> int:
        """Whether a block's bitmap is all ones, all zeros, or mixed."""
        whole, rest = divmod(self.length(index) // SECTOR, 8)
        last = bits[whole] >> (8 - rest) if rest else 0
        if not last and bits.startswith(bytes(whole)):
            return EMPTY
        if (not rest or last == (1 << rest) - 1) and bits.startswith(
            b'\xff' * whole
        ):
            return FULL
        return PARTIAL

    def bits(self, data: bytes) -> bytes:
        """A bitmap with the highest bit first."""
        return data.translate(_REVERSED) if self.lowest_bit_first else data

    def check(self, data_end: int | None, whole: bool) -> None:
        """Every block lies inside the file, and none on another.

        :param data_end: where the data ends in the file, None if that is
            not known
        :param whole: whether the last block must be there to its end
        :raises xenimport.exceptions.DiskImageError: if one does not
        """
        starts = sorted(entry for _, entry in self.table.allocated())
        self._check_apart(starts)
        if not starts or data_end is None:
            return
        # A last block that was not written to its end is read as blktap
        # reads it; but with its footer gone, the file itself was cut.
        final = starts[-1]
        present = data_end // SECTOR
        if final + self.bitmap // SECTOR > present or (
            whole and self._end(final) > present
        ):
            raise outside(self._where, final, data_end)

    def _check_apart(self, starts: list[int]) -> None:
        span = (self.bitmap + self.block) // SECTOR
        for entry, following in itertools.pairwise(starts):
            if following - entry < span and self._end(entry) > following:
                raise self._overlap(entry, 'another block')
        # In sectors: the footer's copy, the header, the table.
        for start, length in (
            (0, 1),
            (self._footer.data_offset // SECTOR, 2),
            (
                self._header.table_offset // SECTOR,
                -(-len(self.table) * 4 // SECTOR),
            ),
        ):
            place = bisect.bisect_left(starts, start + length)
            if place and self._end(starts[place - 1]) > start:
                raise self._overlap(starts[place - 1], 'the metadata')

    def _end(self, entry: int) -> int:
        """The sector after a block that starts at sector ``entry``."""
        length = self.block
        # The disk's last block need not be there beyond the disk's end.
        if entry == self._last:
            length = self.length(len(self.table) - 1)
        return entry + (self.bitmap + length) // SECTOR

    def _overlap(self, entry: int, other: str) -> exceptions.DiskImageError:
        return vhd_format.error(
            self._where,
            'vhd.blocks-overlap',
            'A block of the VHD lies on other data of the file',
            expected='every block at a place of its own',
            found=f'the block at sector {entry} lies on {other}',
        )


def outside(
    where: str, entry: int, data_end: int
) -> exceptions.DiskImageError:
    """The error of a block that the file ends before."""
    return vhd_format.error(
        where,
        'vhd.block-outside',
        'A block of the VHD lies outside the file',
        expected=f'all blocks before byte {data_end}',
        found=f'a block at byte {entry * SECTOR}',
    )


def bitmap_size(block_size: int) -> int:
    """Bytes of the bitmap before a block: a bit a sector, in sectors."""
    return -(-block_size // (SECTOR * 8 * SECTOR)) * SECTOR


def spans(bits: bytes, length: int) -> Iterator[tuple[int, int]]:
    """Yield (start, end) in bytes of where a block has data.

    Short stretches without data are taken for data: only what is read
    at once is told from what is not.

    :param length: bytes of the disk in the block
    """
    for match in _SPAN.finditer(bits[: -(-length // (SECTOR * 8))]):
        start = match.start() * 8 * SECTOR
        yield start, min(length, match.end() * 8 * SECTOR)


def gaps(bits: bytes, start: int, end: int) -> Iterator[tuple[int, int]]:
    """Yield (start, end) in bytes of the sectors whose bit is not set.

    :param start: and ``end``: the part of the block that is looked at
    """
    first = start // (SECTOR * 8)
    part = bits[first : -(-end // (SECTOR * 8))]
    text = f'{int.from_bytes(part, "big"):0{len(part) * 8}b}'
    base = first * SECTOR * 8
    for match in _UNSET.finditer(text):
        low = max(start, base + match.start() * SECTOR)
        high = min(end, base + match.end() * SECTOR)
        if low < high:
            yield low, high
