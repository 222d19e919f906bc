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

"""VHD: fixed and dynamic disks.

After Microsoft's "Virtual Hard Disk Image Format Specification" 1.0, and
where it is silent or not followed, after blktap, whose files are what
Xen writes. The size of the disk is always the footer's current size,
never its geometry: xapi's files lose up to a mebibyte by geometry.
"""

from __future__ import annotations

import array
import bisect
from collections.abc import Iterator
import dataclasses
import itertools
import struct
import sys

from xenimport.converter import base
from xenimport.converter import region
from xenimport import exceptions
from xenimport import model

SECTOR = 512
_COOKIE = b'conectix'
_POISON = b'v_poison'
_HEADER_COOKIE = b'cxsparse'
_UNUSED = 0xFFFFFFFF
_FIXED, _DYNAMIC, _DIFFERENCING = 2, 3, 4
#: Bounds the table's memory; a VHD ends at 2 TiB by its sector numbers.
MAX_ENTRIES = 1 << 21
_LARGEST_GEOMETRY = 65535 * 16 * 255 * SECTOR
#: So many bitmaps are read whatever their blocks' size to find holes ...
_MANY_BLOCKS = 1 << 16
#: ... and more only for blocks of this size: small ones hide small holes.
_LARGE_BLOCK = 64 * 1024
_MAX_BLOCK = 256 * 1024 * 1024

_FOOTER = struct.Struct('>8sIIQI4sI4sQQHBBII16sBB426x')
_HEADER = struct.Struct('>8sQQIIII16sII512s192s256x')
_UNKNOWN, _FULL, _PARTIAL, _EMPTY = range(4)


@dataclasses.dataclass(frozen=True)
class Footer:
    """The fields of a footer that are used; sizes in bytes."""

    data_offset: int
    creator: bytes
    creator_version: int
    current_size: int
    geometry: tuple[int, int, int]
    kind: int
    checksum: int
    hidden: int
    poisoned: bool

    @property
    def geometry_size(self) -> int:
        """The size that cylinders, heads and sectors multiply to."""
        cylinders, heads, sectors = self.geometry
        return cylinders * heads * sectors * SECTOR


def _checksum(data: bytes, offset: int) -> int:
    """The one's complement of the sum, the field itself left out."""
    total = sum(data) - sum(data[offset : offset + 4])
    return ~total & 0xFFFFFFFF


def parse_footer(data: bytes) -> Footer | None:
    """Decode 512 bytes; None if they are no footer.

    The checksum is judged by :func:`footer_is_intact`.
    """
    if len(data) < SECTOR:
        return None
    fields = _FOOTER.unpack(data[:SECTOR])
    cookie = fields[0]
    if cookie not in (_COOKIE, _POISON):
        return None
    return Footer(
        data_offset=fields[3],
        creator=fields[5],
        creator_version=fields[6],
        current_size=fields[9],
        geometry=(fields[10], fields[11], fields[12]),
        kind=fields[13],
        checksum=fields[14],
        hidden=fields[17],
        poisoned=cookie == _POISON,
    )


def footer_is_intact(data: bytes, footer: Footer) -> bool:
    """Whether the checksum is right.

    blktap's first versions set "hidden" without a new checksum.
    """
    if _checksum(data, 64) == footer.checksum:
        return True
    if (
        footer.hidden
        and footer.creator == b'tap\0'
        and footer.creator_version in (0x00000001, 0x00010001)
    ):
        plain = data[:85] + b'\0' + data[86:]
        return _checksum(plain, 64) == footer.checksum
    return False


@dataclasses.dataclass(frozen=True)
class _Located:
    """A footer and where it stood.

    :ivar data_end: where the data ends in the region
    """

    footer: Footer
    data_end: int
    at_start: bool


def _locate(reader: region.RegionReader) -> _Located:
    """The footer: at the end, the short one, or the copy at the start.

    :raises xenimport.exceptions.DiskImageError: if there is none intact
    """
    size = reader.size
    candidates = [(size - SECTOR, size - SECTOR, SECTOR)]
    if size > 511 and (size - 511) % SECTOR == 0:
        # Early Virtual PC left the last byte, a zero, out.
        candidates.append((size - 511, size - 511, 511))
    candidates.append((0, size, SECTOR))
    damaged = None
    for offset, data_end, length in candidates:
        if offset < 0:
            continue
        data = reader.read(offset, length).ljust(SECTOR, b'\0')
        footer = parse_footer(data)
        if footer is None:
            continue
        # A fixed disk has no copy at the start: a "copy" that says so
        # would be the disk's own bytes.
        if data_end == size and footer.kind == _FIXED:
            continue
        if footer_is_intact(data, footer):
            return _Located(footer, data_end, data_end == size)
        damaged = damaged or (offset, footer.checksum, _checksum(data, 64))
    raise _no_footer(reader, damaged)


def _no_footer(
    reader: region.RegionReader, damaged: tuple[int, int, int] | None
) -> exceptions.DiskImageError:
    if damaged is not None:
        offset, stated, computed = damaged
        return exceptions.DiskImageError(
            'vhd.checksum',
            'The footer of the VHD is damaged',
            where=f'{reader.where}, offset {offset}',
            expected=f'checksum {computed:#010x}',
            found=f'{stated:#010x}',
            fix='copy the disk again, or export the guest again',
        )
    return exceptions.DiskImageError(
        'vhd.no-footer',
        'The VHD has no footer: it is cut short, or it is no VHD',
        where=reader.where,
        expected='"conectix" in the last 512 bytes or in the first',
        found=f'{reader.size} bytes that start with '
        f'{reader.read(0, 8).hex(" ") or "nothing"}',
        fix='copy the disk again, or export the guest again',
    )


class VhdImage(region.RegionImage):
    """A VHD's data as a read-only device."""

    format = 'vhd'

    def __init__(
        self,
        reader: region.RegionReader,
        footer: Footer,
        findings: tuple[model.Finding, ...],
    ) -> None:
        super().__init__(reader)
        self.virtual_size = footer.current_size
        self.creator = footer.creator.rstrip(b'\0 ').decode(
            'ascii', 'backslashreplace'
        )
        self.findings = findings


class FixedImage(VhdImage):
    """A fixed VHD: the disk's bytes, then the footer."""

    def extents(self) -> Iterator[tuple[int, int, bool]]:
        return self.reader.extents(self.virtual_size)

    def pread_into(self, buffer: memoryview, offset: int) -> None:
        self.reader.read_into(buffer, offset)


class DynamicImage(VhdImage):
    """A dynamic VHD: blocks found through a table, each with a bitmap.

    :param table: for each block the sector of its bitmap
    :param data_end: where the data ends; a last block that was not
        written to its end reads as zeros there, as blktap does
    """

    def __init__(
        self,
        reader: region.RegionReader,
        footer: Footer,
        findings: tuple[model.Finding, ...],
        table: array.array[int],
        block_size: int,
        data_end: int,
    ) -> None:
        super().__init__(reader, footer, findings)
        self._table = table
        self._block = block_size
        self._bitmap = bitmap_size(block_size)
        self._data_end = data_end
        self._states = bytearray(len(table))

    def extents(self) -> Iterator[tuple[int, int, bool]]:
        start = position = 0
        current = False
        # A read for each of two million blocks of 4 KiB takes long;
        # what is taken for data without a look is only copied as zeros.
        look = self._block >= _LARGE_BLOCK or len(self._table) <= _MANY_BLOCKS
        for index, entry in enumerate(self._table):
            allocated = entry != _UNUSED
            if allocated and look:
                allocated = self._state(index) != _EMPTY
            if allocated != current:
                if position > start:
                    yield start, position - start, current
                start, current = position, allocated
            position = min(position + self._block, self.virtual_size)
        if position > start:
            yield start, position - start, current

    def pread_into(self, buffer: memoryview, offset: int) -> None:
        done = 0
        while done < len(buffer):
            index, inside = divmod(offset + done, self._block)
            length = min(len(buffer) - done, self._block - inside)
            part = buffer[done : done + length]
            state = self._state(index)
            if state == _EMPTY:
                part[:] = bytes(length)
            else:
                self._read_block(part, index, inside)
                if state == _PARTIAL:
                    self._clear_unset(part, index, inside)
            done += length

    def _state(self, index: int) -> int:
        """Whether the block's bitmap is all ones, all zeros, or mixed."""
        state = self._states[index]
        if state == _UNKNOWN:
            state = _EMPTY
            if self._table[index] != _UNUSED:
                state = self._bitmap_state(index)
            self._states[index] = state
        return state

    def _bitmap_state(self, index: int) -> int:
        sectors = self._sectors(index)
        bits = self._read_bitmap(index)
        whole, rest = divmod(sectors, 8)
        last = bits[whole] >> (8 - rest) if rest else 0
        if bits.startswith(bytes(whole)) and not last:
            return _EMPTY
        ones = bits.startswith(b'\xff' * whole)
        if ones and (not rest or last == (1 << rest) - 1):
            return _FULL
        return _PARTIAL

    def _sectors(self, index: int) -> int:
        """Sectors of the disk in a block; the last may have fewer."""
        length = min(self._block, self.virtual_size - index * self._block)
        return -(-length // SECTOR)

    def _read_bitmap(self, index: int) -> bytes:
        return self.reader.read(self._table[index] * SECTOR, self._bitmap)

    def _read_block(self, part: memoryview, index: int, inside: int) -> None:
        start = self._table[index] * SECTOR + self._bitmap + inside
        present = max(0, min(len(part), self._data_end - start))
        if present:
            self.reader.read_into(part[:present], start)
        if present < len(part):
            part[present:] = bytes(len(part) - present)

    def _clear_unset(self, part: memoryview, index: int, inside: int) -> None:
        """Zero the sectors whose bit is not set."""
        bits = self._read_bitmap(index)
        position = 0
        while position < len(part):
            sector, skip = divmod(inside + position, SECTOR)
            end = min(len(part), position + SECTOR - skip)
            if not bits[sector // 8] >> (7 - sector % 8) & 1:
                part[position:end] = bytes(end - position)
            position = end


def bitmap_size(block_size: int) -> int:
    """Bytes of the bitmap before a block: a bit a sector, in sectors."""
    return -(-block_size // (SECTOR * 8 * SECTOR)) * SECTOR


class VhdConverter(base.Converter):
    """Opens fixed and dynamic VHDs."""

    handles = 'VHD, fixed and dynamic'

    def probe(self, package: model.Package, disk: model.Disk) -> bool:
        name = disk.region.name.lower()
        if disk.region.decoder or not disk.region.seekable:
            # Opening it says that it cannot be read in place.
            return name.removesuffix('.gz').endswith('.vhd')
        reader = region.RegionReader(disk.region)
        try:
            head = reader.read(0, 8)
            tail = reader.read(max(0, reader.size - SECTOR), 9)
        finally:
            reader.release()
        for cookie in (_COOKIE, _POISON):
            if cookie in (head, tail[:8], tail[1:9]):
                return True
        # A fixed VHD that was cut short has no mark left but its name,
        # and must not be taken for RAW.
        return name.endswith('.vhd')

    def open(self, package: model.Package, disk: model.Disk) -> base.DiskImage:
        reader = region.RegionReader(disk.region)
        try:
            return _Opener(reader).open()
        except BaseException:
            reader.release()
            raise


class _Opener:
    """Parses and validates one VHD."""

    def __init__(self, reader: region.RegionReader) -> None:
        self._reader = reader
        self._located = _locate(reader)
        self._footer = self._located.footer

    def open(self) -> VhdImage:
        footer = self._footer
        self._check_kind()
        if footer.current_size == 0 or footer.current_size % SECTOR:
            raise self._error(
                'vhd.size',
                'The size in the footer of the VHD is not possible',
                expected='a multiple of 512 bytes, and not zero',
                found=f'{footer.current_size} bytes',
            )
        findings = tuple(self._findings())
        if footer.kind == _FIXED:
            self._check_fixed()
            return FixedImage(self._reader, footer, findings)
        return self._open_dynamic(findings)

    def _check_kind(self) -> None:
        footer = self._footer
        if footer.poisoned:
            raise self._error(
                'vhd.poisoned',
                'The VHD was disabled by the storage manager',
                found='the cookie "v_poison"',
                fix='repair the storage repository, then export again',
            )
        if footer.kind == _DIFFERENCING:
            raise self._error(
                'vhd.differencing',
                'The VHD holds only the differences to a parent disk',
                expected='a fixed (2) or dynamic (3) VHD',
                found='a differencing (4) VHD',
                fix='export the guest itself rather than a snapshot; or '
                'merge the chain with "vhd-util coalesce" first',
            )
        if footer.kind not in (_FIXED, _DYNAMIC):
            raise self._error(
                'vhd.kind',
                'The VHD is of an unknown kind',
                expected='a fixed (2) or dynamic (3) VHD',
                found=f'kind {footer.kind}',
            )

    def _check_fixed(self) -> None:
        if self._footer.current_size > self._located.data_end:
            raise self._error(
                'vhd.truncated',
                'The fixed VHD is shorter than the disk in it',
                expected=f'{self._footer.current_size} bytes of data',
                found=f'{self._located.data_end} bytes',
            )

    def _findings(self) -> Iterator[model.Finding]:
        footer = self._footer
        # The largest geometry says nothing: nobody goes by it.
        if footer.geometry_size not in (
            footer.current_size,
            _LARGEST_GEOMETRY,
        ):
            yield model.Finding(
                id='vhd.geometry-differs',
                severity=model.Severity.NOTE,
                title='The geometry in the VHD gives another size',
                evidence=f'{self._reader.where}: cylinders, heads and '
                f'sectors {footer.geometry} make {footer.geometry_size} '
                f'bytes, the disk has {footer.current_size}',
                fix='nothing: the current size is used; other tools that '
                'go by geometry cut this disk or refuse it',
                subject=self._reader.name,
            )
        if self._located.at_start:
            yield model.Finding(
                id='vhd.footer-copy',
                severity=model.Severity.WARNING,
                title='The VHD lacks its footer; the copy was used',
                evidence=f'{self._reader.where}: no intact footer in the '
                'last 512 bytes, but all blocks are there',
                fix='export the guest again if the copy of the package '
                'was interrupted',
                subject=self._reader.name,
            )

    def _open_dynamic(
        self, findings: tuple[model.Finding, ...]
    ) -> DynamicImage:
        offset = self._footer.data_offset
        data = self._reader.read(offset, _HEADER.size)
        if len(data) < _HEADER.size or data[:8] != _HEADER_COOKIE:
            raise self._error(
                'vhd.header',
                'The dynamic header of the VHD is missing',
                expected=f'"cxsparse" at offset {offset}',
                found=data[:8].hex(' ') or 'the end of the file',
            )
        fields = _HEADER.unpack(data)
        table_offset, entries, block = fields[2], fields[4], fields[5]
        stated = fields[6]
        if stated != _checksum(data, 36):
            raise self._error(
                'vhd.checksum',
                'The dynamic header of the VHD is damaged',
                expected=f'checksum {_checksum(data, 36):#010x}',
                found=f'{stated:#010x}',
            )
        # blktap keeps the mark of an encrypted disk in the reserved part.
        if data[768] == 1:
            raise self._error(
                'vhd.encrypted',
                'The VHD is encrypted',
                found='a key hash in the dynamic header',
                fix='export the guest decrypted',
            )
        used = self._check_table(table_offset, entries, block)
        table = self._read_table(table_offset, used)
        self._check_blocks(table, block, table_offset)
        return DynamicImage(
            self._reader,
            self._footer,
            findings,
            table,
            block,
            self._located.data_end,
        )

    def _check_table(self, offset: int, entries: int, block: int) -> int:
        """The number of entries that are used."""
        if block & (block - 1) or not SECTOR * 8 <= block <= _MAX_BLOCK:
            raise self._error(
                'vhd.block-size',
                'The block size of the VHD is not possible',
                expected=f'a power of two from 4096 to {_MAX_BLOCK}',
                found=f'{block}',
            )
        used = -(-self._footer.current_size // block)
        if used > entries:
            raise self._error(
                'vhd.table',
                'The block table of the VHD is too small for the disk',
                expected=f'at least {used} entries',
                found=f'{entries}',
            )
        if used > MAX_ENTRIES:
            raise self._error(
                'vhd.table',
                'The block table of the VHD is larger than any can be',
                expected=f'at most {MAX_ENTRIES} entries',
                found=f'{used}',
            )
        if offset % SECTOR or offset + used * 4 > self._reader.size:
            raise self._error(
                'vhd.table',
                'The block table of the VHD lies outside the file',
                expected=f'{used * 4} bytes at a sector inside the '
                f'{self._reader.size} bytes of the file',
                found=f'offset {offset}',
            )
        return used

    def _read_table(self, offset: int, used: int) -> array.array[int]:
        table = array.array('I')
        if table.itemsize != 4:
            raise NotImplementedError('unsigned int is not 32 bits here')
        table.frombytes(self._reader.read(offset, used * 4))
        if sys.byteorder == 'little':
            table.byteswap()
        return table

    def _check_blocks(
        self, table: array.array[int], block: int, table_offset: int
    ) -> None:
        """Every block lies inside the file, and none on another."""
        footer = self._footer
        bitmap = bitmap_size(block)
        data_end = self._located.data_end
        starts = sorted(entry for entry in table if entry != _UNUSED)
        span = (bitmap + block) // SECTOR
        # The disk's last block need not be there beyond the disk's end.
        last = len(table) - 1
        ending = -(-(footer.current_size - last * block) // SECTOR)

        def end(entry: int) -> int:
            if entry == table[last]:
                return entry + bitmap // SECTOR + ending
            return entry + span

        for entry, following in itertools.pairwise(starts):
            if end(entry) > following:
                raise self._overlap(entry, 'another block')
        # In sectors: the footer's copy, the header, the table.
        for start, length in (
            (0, 1),
            (footer.data_offset // SECTOR, 2),
            (table_offset // SECTOR, -(-len(table) * 4 // SECTOR)),
        ):
            place = bisect.bisect_left(starts, start + length)
            if place and end(starts[place - 1]) > start:
                raise self._overlap(starts[place - 1], 'the metadata')
        if not starts:
            return
        # A last block that was not written to its end is read as blktap
        # reads it; but with its footer gone, the file itself was cut.
        final = starts[-1]
        present = data_end // SECTOR
        if final + bitmap // SECTOR > present or (
            end(final) > present and self._located.at_start
        ):
            raise self._outside(final, data_end)

    def _overlap(self, entry: int, other: str) -> exceptions.DiskImageError:
        return self._error(
            'vhd.blocks-overlap',
            'A block of the VHD lies on other data of the file',
            expected='every block at a place of its own',
            found=f'the block at sector {entry} lies on {other}',
        )

    def _outside(self, entry: int, data_end: int) -> exceptions.DiskImageError:
        return self._error(
            'vhd.block-outside',
            'A block of the VHD lies outside the file',
            expected=f'all blocks before byte {data_end}',
            found=f'a block at byte {entry * SECTOR}',
        )

    def _error(
        self,
        error_id: str,
        message: str,
        *,
        expected: str | None = None,
        found: str | None = None,
        fix: str = 'copy the disk again, or export the guest again',
    ) -> exceptions.DiskImageError:
        return exceptions.DiskImageError(
            error_id,
            message,
            where=self._reader.where,
            expected=expected,
            found=found,
            fix=fix,
        )
