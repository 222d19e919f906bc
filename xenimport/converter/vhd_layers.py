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

"""The layers that a VHD's disk is made of: one, or a chain of them.

A layer gives the bytes that it holds, and says which it does not.
"""

from __future__ import annotations

import abc
from collections.abc import Iterator

from xenimport.converter import region
from xenimport.converter import vhd_format
from xenimport.converter import vhd_table

SECTOR = vhd_format.SECTOR
#: So many bitmaps are read whatever their blocks' size to find holes ...
_MANY_BLOCKS = 1 << 16
#: ... and more only for blocks of this size: small ones hide small holes.
_LARGE_BLOCK = 64 * 1024


class Layer(abc.ABC):
    """One file of a chain. Reads are safe from several threads at once.

    :ivar size: bytes of the disk as this layer knows it
    """

    size: int

    def __init__(self, reader: region.RegionReader) -> None:
        self.reader = reader

    @abc.abstractmethod
    def runs(self) -> Iterator[tuple[int, int]]:
        """Yield (start, end) of where it holds data, in order."""

    @abc.abstractmethod
    def read(self, buffer: memoryview, offset: int) -> list[tuple[int, int]]:
        """Fill the buffer as far as this layer holds the bytes.

        :param offset: on the disk; all of the buffer lies within the size
        :returns: (start, end) in the buffer of what it does not hold,
            whose bytes are then undefined
        """


class PlainLayer(Layer):
    """The disk's bytes themselves: a fixed VHD, or a RAW parent."""

    def __init__(self, reader: region.RegionReader, size: int) -> None:
        super().__init__(reader)
        self.size = size

    def runs(self) -> Iterator[tuple[int, int]]:
        for offset, length, data in self.reader.extents(self.size):
            if data:
                yield offset, offset + length

    def read(self, buffer: memoryview, offset: int) -> list[tuple[int, int]]:
        self.reader.read_into(buffer, offset)
        return []


class SparseLayer(Layer):
    """Blocks found through a table, each with a bitmap.

    :param data_end: where the data ends in the file; a last block that
        was not written to its end reads as zeros there, as blktap does
    """

    def __init__(
        self,
        reader: region.RegionReader,
        layout: vhd_table.Layout,
        data_end: int,
    ) -> None:
        super().__init__(reader)
        self.size = layout.size
        self._layout = layout
        self._table = layout.table
        self._block = layout.block
        self._data_end = data_end
        # By page of the table, and so only where there are blocks.
        self._states: dict[int, bytearray] = {}

    def runs(self) -> Iterator[tuple[int, int]]:
        # A read for each of a million blocks of 4 KiB takes long; what
        # is taken for data without a look is only copied as zeros.
        look = (
            self._block >= _LARGE_BLOCK or self._table.blocks <= _MANY_BLOCKS
        )
        for index, entry in self._table.allocated():
            start = index * self._block
            state = self._state(index, entry) if look else vhd_table.FULL
            if state == vhd_table.FULL:
                yield start, start + self._layout.length(index)
            elif state == vhd_table.PARTIAL:
                for first, last in vhd_table.spans(
                    self._bits(entry), self._layout.length(index)
                ):
                    yield start + first, start + last

    def read(self, buffer: memoryview, offset: int) -> list[tuple[int, int]]:
        missing: list[tuple[int, int]] = []
        done = 0
        while done < len(buffer):
            index, inside = divmod(offset + done, self._block)
            length = min(len(buffer) - done, self._block - inside)
            entry = self._table[index]
            state = vhd_table.EMPTY
            if entry != vhd_table.UNUSED:
                state = self._state(index, entry)
            if state == vhd_table.EMPTY:
                if missing and missing[-1][1] == done:
                    missing[-1] = missing[-1][0], done + length
                else:
                    missing.append((done, done + length))
            else:
                self._fill(buffer[done : done + length], entry, inside)
            if state == vhd_table.PARTIAL:
                shift = done - inside
                missing.extend(
                    (start + shift, end + shift)
                    for start, end in vhd_table.gaps(
                        self._bits(entry), inside, inside + length
                    )
                )
            done += length
        return missing

    def _state(self, index: int, entry: int) -> int:
        number, place = divmod(index, vhd_table.PAGE)
        states = self._states.get(number)
        if states is None:
            states = self._states.setdefault(number, bytearray(vhd_table.PAGE))
        if not states[place]:
            states[place] = self._layout.state(self._bits(entry), index)
        return states[place]

    def _bits(self, entry: int) -> bytes:
        return self._layout.bits(
            self.reader.read(entry * SECTOR, self._layout.bitmap)
        )

    def _fill(self, part: memoryview, entry: int, inside: int) -> None:
        start = entry * SECTOR + self._layout.bitmap + inside
        present = max(0, min(len(part), self._data_end - start))
        if present:
            self.reader.read_into(part[:present], start)
        if present < len(part):
            part[present:] = bytes(len(part) - present)
