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

"""The runs of a VHD that comes once, forward."""

from __future__ import annotations

import array
from collections.abc import Iterable
from collections.abc import Iterator
import itertools

from xenimport.converter import base
from xenimport.converter import vhd_format
from xenimport.converter import vhd_table
from xenimport import exceptions
from xenimport import stream as stream_room

SECTOR = vhd_format.SECTOR
#: Blocks smaller than this are read many at a time.
_SMALL_BLOCK = 64 * 1024
#: Bytes after the last block that may come before the footer, where
#: nobody knows how many will.
_MAX_TRAILING = 64 * 1024 * 1024
_STEP = 256 * 1024


class _Forward(base.ForwardImage):
    """What both kinds have in common."""

    format = 'vhd'

    def __init__(self, stream: stream_room.Stream, name: str) -> None:
        self._stream = stream
        self._name = name
        self._where = stream.where

    def _differs(self, expected: str, found: str) -> exceptions.DiskImageError:
        return vhd_format.error(
            self._where,
            'vhd.footer-differs',
            'The end of the VHD says something else than its start',
            expected=expected,
            found=found,
            fix='give the VHD as a file by itself: then the footer at its '
            'end is read first',
        )


class FixedForward(_Forward):
    """A fixed VHD: the disk's bytes, then the footer."""

    ascending = True

    def __init__(self, stream: stream_room.Stream, name: str) -> None:
        super().__init__(stream, name)
        self.virtual_size = None
        if stream.size is not None:
            self.virtual_size = stream.size - _footer_length(stream.size)
            if self.virtual_size <= 0:
                raise vhd_format.no_footer(
                    self._where, stream.size, stream.peek(8)
                )
        self.data_size = self.virtual_size

    def runs(self) -> Iterator[tuple[int, memoryview]]:
        buffer = memoryview(bytearray(base.MAX_RUN + SECTOR))
        held = position = 0
        head = self._stream.peek(8)
        while count := self._stream.read_into(buffer[held:]):
            held += count
            if held == len(buffer):
                # The last bytes may be the footer.
                yield position, buffer[: base.MAX_RUN]
                position += base.MAX_RUN
                buffer[:SECTOR] = buffer[base.MAX_RUN :]
                held = SECTOR
        total = position + held
        length = min(_footer_length(total), held)
        footer = self._checked(bytes(buffer[held - length : held]), head)
        end = total - length
        if footer.current_size > end:
            raise vhd_format.error(
                self._where,
                'vhd.truncated',
                'The fixed VHD is shorter than the disk in it',
                expected=f'{footer.current_size} bytes of data',
                found=f'{end} bytes',
            )
        if footer.current_size < position or (
            self.virtual_size not in (None, footer.current_size)
        ):
            raise self._differs(
                f'a disk of {end} bytes, as there are before the footer',
                f'a disk of {footer.current_size} bytes',
            )
        self.virtual_size = footer.current_size
        self.creator = footer.creator_name
        self.findings = vhd_format.geometry_findings(
            footer, self._where, self._name
        )
        if footer.current_size > position:
            yield position, buffer[: footer.current_size - position]

    def _checked(self, data: bytes, head: bytes) -> vhd_format.Footer:
        """The footer, if it is one of a fixed disk.

        :raises xenimport.exceptions.DiskImageError: if it is not
        """
        data = data.ljust(SECTOR, b'\0')
        footer = vhd_format.parse_footer(data)
        if footer is None:
            raise vhd_format.no_footer(
                self._where, self._stream.position, head
            )
        if not vhd_format.footer_is_intact(data, footer):
            raise vhd_format.damaged_footer(
                self._where,
                self._stream.position - SECTOR,
                footer.checksum,
                vhd_format.checksum(data, 64),
            )
        vhd_format.check_footer(footer, self._where)
        if footer.kind != vhd_format.FIXED:
            raise self._differs(
                'a fixed VHD (2), as the start is of no other kind',
                f'kind {footer.kind}',
            )
        return footer


def _footer_length(size: int) -> int:
    """Bytes of the footer of a file: early Virtual PC wrote 511."""
    return 511 if size % SECTOR == 511 else SECTOR


class DynamicForward(_Forward):
    """A dynamic VHD whose tables come before its blocks."""

    def __init__(
        self,
        stream: stream_room.Stream,
        name: str,
        footer: vhd_format.Footer,
        layout: vhd_table.Layout,
    ) -> None:
        super().__init__(stream, name)
        self.virtual_size = footer.current_size
        self.creator = footer.creator_name
        self.findings = vhd_format.geometry_findings(footer, self._where, name)
        self._footer = footer
        self._layout = layout
        # The blocks' numbers as they come in the file.
        self._order = array.array('I', layout.in_file_order())
        self.data_size = sum(layout.length(index) for index in self._order)
        self.ascending = all(
            index < following
            for index, following in itertools.pairwise(self._order)
        )

    def runs(self) -> Iterator[tuple[int, memoryview]]:
        buffer = memoryview(bytearray(base.MAX_RUN))
        order = self._order
        if self._layout.block < _SMALL_BLOCK:
            yield from self._small_blocks(order[:-1], buffer)
        else:
            for index in order[:-1]:
                yield from self._block(index, buffer)
        if order:
            yield from self._last_block(order[-1], buffer)
        self._check_end()

    def _go_to(self, index: int) -> None:
        """Pass over what lies before a block."""
        place = self._layout.table[index] * SECTOR
        distance = place - self._stream.position
        if self._stream.skip(distance) < distance:
            raise self._stream.truncated(place, self._stream.position)

    def _block(
        self, index: int, buffer: memoryview
    ) -> Iterator[tuple[int, memoryview]]:
        layout = self._layout
        self._go_to(index)
        bits = layout.bits(self._stream.take(layout.bitmap))
        state = layout.state(bits, index)
        if state == vhd_table.EMPTY:
            return
        start = index * layout.block
        length = layout.length(index)
        for inside in range(0, length, len(buffer)):
            part = buffer[: length - inside]
            self._stream.fill(part)
            if state == vhd_table.PARTIAL:
                _clear(part, bits, inside)
            yield start + inside, part

    def _small_blocks(
        self, order: Iterable[int], buffer: memoryview
    ) -> Iterator[tuple[int, memoryview]]:
        """Many blocks that follow each other in the file at a time."""
        layout = self._layout
        span = layout.bitmap + layout.block
        source = memoryview(bytearray(len(buffer) // span * span))
        for group in self._groups(order, len(source) // span):
            if layout.length(group[0]) < layout.block:
                # The disk's last block need not be there to its end.
                yield from self._block(group[0], buffer)
                continue
            self._go_to(group[0])
            data = source[: len(group) * span]
            self._stream.fill(data)
            begin = end = 0  # of the run on the disk, in the buffer below
            for number, index in enumerate(group):
                place = number * span
                bits = layout.bits(bytes(data[place : place + layout.bitmap]))
                state = layout.state(bits, index)
                start = index * layout.block
                length = layout.length(index)
                if start != end or state == vhd_table.EMPTY:
                    if end > begin:
                        yield begin, buffer[: end - begin]
                    begin = end = start
                if state == vhd_table.EMPTY:
                    continue
                part = buffer[end - begin : end - begin + length]
                place += layout.bitmap
                part[:] = data[place : place + length]
                if state == vhd_table.PARTIAL:
                    _clear(part, bits, 0)
                end += length
            if end > begin:
                yield begin, buffer[: end - begin]

    def _groups(self, order: Iterable[int], most: int) -> Iterator[list[int]]:
        """Blocks between which nothing lies in the file."""
        layout = self._layout
        sectors = (layout.bitmap + layout.block) // SECTOR
        group: list[int] = []
        following = 0
        for index in order:
            entry = layout.table[index]
            whole = layout.length(index) == layout.block
            if group and (
                entry != following or len(group) == most or not whole
            ):
                yield group
                group = []
            group.append(index)
            following = entry + sectors if whole else -1
        if group:
            yield group

    def _last_block(
        self, index: int, buffer: memoryview
    ) -> Iterator[tuple[int, memoryview]]:
        """The last in the file, which may not have been written whole.

        What is missing of it reads as zeros, as blktap does; but with the
        footer gone as well, the file was cut.
        """
        layout = self._layout
        self._go_to(index)
        bits = layout.bits(self._stream.take(layout.bitmap))
        state = layout.state(bits, index)
        start = index * layout.block
        length = layout.length(index) if state != vhd_table.EMPTY else 0
        for inside in range(0, length, len(buffer)):
            part = buffer[: length - inside]
            present = self._present(len(part))
            if present is None:
                raise vhd_table.outside(
                    self._where, layout.table[index], self._stream.position
                )
            self._stream.fill(part[:present])
            if state == vhd_table.PARTIAL:
                _clear(part[:present], bits, inside)
            if present:
                yield start + inside, part[:present]
            if present < len(part):
                return

    def _present(self, length: int) -> int | None:
        """How many of so many bytes come before the footer.

        None if the stream ends before them, and without a footer.
        """
        ahead = self._stream.peek(length + SECTOR)
        if len(ahead) == length + SECTOR:
            return length
        tail = _footer_length(self._stream.position + len(ahead))
        if _intact_footer(ahead[-tail:]) is not None:
            return min(length, len(ahead) - tail)
        return length if len(ahead) >= length else None

    def _check_end(self) -> None:
        """Read the rest, and compare the footer with its copy.

        :raises xenimport.exceptions.DiskImageError: if they differ
        :raises xenimport.exceptions.PackageError: if the rest is far
            longer than a footer
        """
        tail = b''
        trailing = 0
        while data := self._stream.read(_STEP):
            tail = (tail + data)[-SECTOR:]
            trailing += len(data)
            if self._stream.size is None and trailing > _MAX_TRAILING:
                raise exceptions.PackageError(
                    'package.excess-data',
                    'Far more follows the blocks of the VHD than a footer',
                    where=self._where,
                    expected=f'at most {_MAX_TRAILING} bytes',
                    found='more',
                    fix='export the guest again; do not trust this package',
                )
        length = _footer_length(self._stream.position)
        footer = _intact_footer(tail[-length:])
        if footer is None:
            self.findings += (
                vhd_format.copy_finding(self._where, self._name),
            )
            return
        vhd_format.check_footer(footer, self._where)
        if _essence(footer) != _essence(self._footer):
            raise self._differs(_described(self._footer), _described(footer))


def _intact_footer(data: bytes) -> vhd_format.Footer | None:
    """The footer in the last bytes of a file, None if there is none."""
    if len(data) < 511:
        return None
    data = data.ljust(SECTOR, b'\0')
    footer = vhd_format.parse_footer(data)
    if footer is None or not vhd_format.footer_is_intact(data, footer):
        return None
    return footer


def _essence(
    footer: vhd_format.Footer,
) -> tuple[int, int, int, bool, bool]:
    """What the reading of the blocks went by."""
    return (
        footer.kind,
        footer.current_size,
        footer.data_offset,
        # The writer decides how bitmaps are read, and whether there may
        # be the mark of an encrypted disk.
        footer.by_blktap,
        footer.lowest_bit_first,
    )


def _described(footer: vhd_format.Footer) -> str:
    return (
        f'kind {footer.kind}, {footer.current_size} bytes, '
        f'header at {footer.data_offset}, written by '
        f'{footer.creator_name or "nobody"} {footer.creator_version:#010x}'
    )


def _clear(part: memoryview, bits: bytes, inside: int) -> None:
    """Zero the sectors of a part of a block whose bit is not set."""
    for start, end in vhd_table.gaps(bits, inside, inside + len(part)):
        part[start - inside : end - inside] = bytes(end - start)
