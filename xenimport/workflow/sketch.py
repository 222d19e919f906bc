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


"""The parts of a disk by which it is verified, in a sparse file.

A disk that goes straight into the target stands nowhere as a file. What
the verification looks at does: the first and last mebibytes, where MBR
and GPT are, and the sectors that link logical partitions.
"""

from __future__ import annotations

import os
import struct

from xenimport.converter import base as converter_base
from xenimport.converter import copy
from xenimport import model
from xenimport.verify import disk as verify_disk

#: Bytes kept of the start and of the end of a disk.
_END = 2 << 20
_SECTOR = 512
#: More logical partitions than this have nobody.
_LINKS = 128
_EXTENDED = (0x05, 0x0F, 0x85)


class Sketch:
    """Filled with all of a disk's bytes, or with what it asks for.

    :param path: a new sparse file of the disk's size is made there
    :raises xenimport.exceptions.MachineError: if it cannot be written
    """

    def __init__(self, path: str, size: int) -> None:
        self.path = path
        self._size = size
        self._tail = max(0, size - _END)
        #: Where the sectors lie that link logical partitions, in bytes.
        self._links: set[int] = set()
        self._seen: set[int] = set()
        self._extended = 0
        self._descriptor = -1
        try:
            self._descriptor = os.open(
                path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600
            )
            os.ftruncate(self._descriptor, size)
        except OSError as error:
            self.close()
            raise copy.write_error(path, error) from error

    def feed(self, offset: int, data: memoryview) -> None:
        """Keep what matters of a run of the disk's bytes."""
        end = offset + len(data)
        if offset == 0:
            self._follow(0, data[:_SECTOR])
        for start, stop in ((0, _END), (self._tail, self._size)):
            first, last = max(offset, start), min(end, stop)
            if first < last:
                self._write(data[first - offset : last - offset], first)
        # One link may lead to another in the same run.
        while places := [p for p in self._links if offset <= p < end]:
            place = min(places)
            self._links.discard(place)
            sector = data[place - offset : place - offset + _SECTOR]
            self._write(sector, place)
            self._follow(place, sector)

    def _write(self, part: memoryview, place: int) -> None:
        try:
            os.pwrite(self._descriptor, part, place)
        except OSError as error:
            raise copy.write_error(self.path, error) from error

    def _follow(self, place: int, sector: memoryview) -> None:
        """Note where the next link of the chain is."""
        self._seen.add(place)
        if len(sector) < _SECTOR or sector[510:512] != b'\x55\xaa':
            return
        for number in range(4):
            entry = sector[446 + 16 * number : 462 + 16 * number]
            (start,) = struct.unpack_from('<I', entry, 8)
            if entry[4] not in _EXTENDED or not start:
                continue
            if not place:
                self._extended = start
            next_place = (
                start if not place else self._extended + start
            ) * _SECTOR
            if next_place not in self._seen and len(self._seen) < _LINKS:
                self._links.add(next_place)

    def fill(self, image: converter_base.DiskImage) -> None:
        """Take from an image that can be read at any place."""
        for offset in sorted({0, self._tail}):
            length = min(_END, self._size - offset)
            self.feed(offset, memoryview(image.pread(offset, length)))
        while self._links:
            place = min(self._links)
            sector = memoryview(image.pread(place, _SECTOR))
            self._links.discard(place)
            if len(sector) == _SECTOR:
                self._links.add(place)
                self.feed(place, sector)

    def verify(self) -> list[model.Finding]:
        """What is wrong with the disk, as far as the sketch tells."""
        return verify_disk.verify(self.path, self._size)

    def close(self) -> None:
        """Remove the file."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
            os.unlink(self.path)
