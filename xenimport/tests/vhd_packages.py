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

"""Writes VHDs that belong to a chain, and the archives that hold them.

Written after Microsoft's specification and what blktap is known to write;
it shares nothing with the product.
"""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import gzip
import io
import tarfile
import typing

from xenimport.tests import packages

SECTOR = 512
NO_UUID = bytes(16)


def uuid_of(number: int) -> bytes:
    """A uuid for each small number."""
    return bytes((number,)) * 6 + b'\x40\x01\x80' + bytes((number,)) * 7


def w2ru(path: str) -> tuple[bytes, bytes]:
    """A locator with a relative Windows path."""
    return b'W2ru', path.encode('utf-16-le')


def w2ku(path: str) -> tuple[bytes, bytes]:
    """A locator with an absolute Windows path."""
    return b'W2ku', path.encode('utf-16-le')


def macx(url: str) -> tuple[bytes, bytes]:
    """A locator with a file's URL, which is what blktap writes first."""
    return b'MacX', url.encode()


@dataclasses.dataclass
class Vhd:
    """A dynamic or differencing VHD.

    :ivar size: of the disk, bytes
    :ivar writes: data by its offset on the disk, in whole sectors; only
        these sectors have their bit set
    :ivar identity: the uuid
    :ivar parent: the uuid of the parent; None for a dynamic VHD
    :ivar locators: codes with their data
    :ivar space_in_bytes: what the locators' space counts: the
        specification says sectors, some write bytes
    :ivar order: the blocks' numbers as they are to stand in the file
    :ivar gap: bytes between two blocks, whole sectors
    :ivar entries: of the table, where they are more than the disk needs
    :ivar table_last: whether the table stands behind the blocks
    :ivar batmap: whether blktap's batmap follows the table
    :ivar key_hash: the batmap's mark of an encrypted disk
    :ivar lowest_bit_first: as blktap's first version wrote bitmaps
    """

    size: int
    writes: Mapping[int, bytes] = dataclasses.field(default_factory=dict)
    block_size: int = packages.BLOCK_SIZE
    identity: bytes = uuid_of(1)
    parent: bytes | None = None
    parent_name: str = ''
    locators: Sequence[tuple[bytes, bytes]] = ()
    space_in_bytes: bool = False
    order: Sequence[int] | None = None
    gap: int = 0
    entries: int | None = None
    table_last: bool = False
    batmap: bool = False
    key_hash: int = 0
    lowest_bit_first: bool = False
    creator: bytes = b'tap\0'
    creator_version: int = 0x00010003
    hidden: int = 0

    def footer(self) -> bytes:
        """The footer, which also stands at the start."""
        kind = (
            packages.DYNAMIC if self.parent is None else packages.DIFFERENCING
        )
        plain = packages.footer(
            self.size,
            kind,
            creator=self.creator,
            creator_version=self.creator_version,
            hidden=self.hidden,
        )
        return packages.with_checksum(
            plain[:68] + self.identity + plain[84:], 64
        )

    def write(self, stream: typing.BinaryIO) -> None:
        """Write it at the start of a file."""
        entries = self.entries or -(-self.size // self.block_size)
        position = 1536
        places = []
        for _, data in self.locators:
            places.append(position)
            stream.seek(position)
            stream.write(data)
            position += -(-len(data) // SECTOR) * SECTOR
        table_size = -(-entries * 4 // SECTOR) * SECTOR
        table_offset = position
        if not self.table_last:
            position += table_size
            if self.batmap:
                stream.seek(position)
                stream.write(self._batmap(entries, position))
                position += SECTOR + self._batmap_size(entries)
        table, position = self._write_blocks(stream, position)
        if self.table_last:
            table_offset = position
            position += table_size
        stream.seek(position)
        stream.write(self.footer())
        stream.seek(0)
        stream.write(self.footer())
        stream.write(self._header(entries, table_offset, places))
        self._write_table(stream, table_offset, entries, table)

    def build(self) -> bytes:
        """All of it in memory."""
        stream = io.BytesIO()
        self.write(stream)
        return stream.getvalue()

    def _blocks(self) -> dict[int, tuple[bytearray, set[int]]]:
        """The data of each block, and its sectors that are written."""
        blocks: dict[int, tuple[bytearray, set[int]]] = {}
        for offset, data in self.writes.items():
            for place in range(0, len(data), SECTOR):
                number, inside = divmod(offset + place, self.block_size)
                if number not in blocks:
                    # What is not written must not be read: no zeros.
                    blank = bytearray(b'?' * self.block_size)
                    blocks[number] = blank, set()
                content, written = blocks[number]
                content[inside : inside + SECTOR] = data[
                    place : place + SECTOR
                ]
                written.add(inside // SECTOR)
        return blocks

    def _write_blocks(
        self, stream: typing.BinaryIO, position: int
    ) -> tuple[dict[int, int], int]:
        blocks = self._blocks()
        bitmap_size = -(-self.block_size // SECTOR // 8 // SECTOR) * SECTOR
        table = {}
        for number in self.order or sorted(blocks):
            content, written = blocks[number]
            position += self.gap
            table[number] = position // SECTOR
            bitmap = bytearray(bitmap_size)
            for sector in written:
                shift = sector % 8 if self.lowest_bit_first else 7 - sector % 8
                bitmap[sector // 8] |= 1 << shift
            stream.seek(position)
            stream.write(bitmap + content)
            position += bitmap_size + self.block_size
        return table, position

    def _write_table(
        self,
        stream: typing.BinaryIO,
        offset: int,
        entries: int,
        table: Mapping[int, int],
    ) -> None:
        stream.seek(offset)
        size = -(-entries * 4 // SECTOR) * SECTOR
        stream.write(b'\xff' * size)
        for number, sector in table.items():
            stream.seek(offset + number * 4)
            stream.write(sector.to_bytes(4, 'big'))

    def _header(
        self, entries: int, table_offset: int, places: Sequence[int]
    ) -> bytes:
        plain = packages.dynamic_header(
            entries, table_offset=table_offset, block_size=self.block_size
        )
        locators = b''
        for (code, data), place in zip(self.locators, places, strict=True):
            sectors = -(-len(data) // SECTOR)
            space = sectors * SECTOR if self.space_in_bytes else sectors
            locators += (
                code
                + space.to_bytes(4, 'big')
                + len(data).to_bytes(4, 'big')
                + bytes(4)
                + place.to_bytes(8, 'big')
            )
        parts = (
            plain[:40],
            self.parent or NO_UUID,
            bytes(8),
            self.parent_name.encode('utf-16-be').ljust(512, b'\0'),
            locators.ljust(192, b'\0'),
            plain[768:],
        )
        return packages.with_checksum(b''.join(parts), 36)

    def _batmap_size(self, entries: int) -> int:
        return -(-entries // 8 // SECTOR) * SECTOR

    def _batmap(self, entries: int, position: int) -> bytes:
        size = self._batmap_size(entries)
        # It says that every block is full, which is not to be believed.
        content = b'\xff' * size
        header = (
            b'tdbatmap'
            + (position + SECTOR).to_bytes(8, 'big')
            + (size // SECTOR).to_bytes(4, 'big')
            + (0x00010002).to_bytes(4, 'big')
            + (0xFFFFFFFF - sum(content)).to_bytes(4, 'big')
            + bytes((0, self.key_hash))
        )
        return header.ljust(SECTOR, b'\0') + content


def short_block_first(data: bytes, block: int, sectors: int) -> bytes:
    """A dynamic VHD whose last block stands first, cut to some sectors.

    The table has one sector, and so at most 128 entries.
    """
    count = -(-len(data) // block)
    last = data[(count - 1) * block :][: sectors * SECTOR]
    others = [
        data[index * block : (index + 1) * block] for index in range(count - 1)
    ]
    first = 5 + sectors
    step = 1 + block // SECTOR
    table = [first + index * step for index in range(count - 1)] + [4]
    entries = b''.join(entry.to_bytes(4, 'big') for entry in table)
    bitmap = b'\xff' * SECTOR
    tail = packages.footer(len(data))
    parts = [
        tail,
        packages.dynamic_header(count, block_size=block),
        entries.ljust(SECTOR, b'\xff'),
        bitmap,
        last.ljust(sectors * SECTOR, b'?'),
    ]
    for content in others:
        parts += [bitmap, content]
    return b''.join([*parts, tail])


def overlaid(*layers: bytes | Mapping[int, bytes], size: int) -> bytes:
    """What a chain reads as: the base first, then what was written."""
    result = bytearray(size)
    for layer in layers:
        writes = {0: layer} if isinstance(layer, bytes) else layer
        for offset, data in writes.items():
            part = data[: max(0, size - offset)]
            result[offset : offset + len(part)] = part
    return bytes(result)


def tar(
    members: Sequence[tuple[str, bytes]],
    *,
    compressed: bool = False,
    directory: str | None = None,
) -> bytes:
    """A tar as Nova's plugin makes it with ``tar -zc .``.

    :param directory: a member for the directory, before the others
    """
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode='w') as archive:
        if directory is not None:
            folder = tarfile.TarInfo(directory)
            folder.type = tarfile.DIRTYPE
            archive.addfile(folder)
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    data = stream.getvalue()
    return gzip.compress(data, 1) if compressed else data
