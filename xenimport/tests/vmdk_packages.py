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

"""Writes VMDKs for tests, as VMware's tools write them.

Written after VMware's "Virtual Disk Format" note. It shares nothing with
the product, so that a mistake on one side does not hide the same mistake
on the other.
"""

from __future__ import annotations

from collections.abc import Sequence
import io
import typing
import zlib

SECTOR = 512
GRAIN = 128
TABLE = 512
NEWLINE_TEST = 1
REDUNDANT = 2
ZEROED = 4
COMPRESSED = 0x10000
MARKERS = 0x20000
AT_END = b'\xff' * 8
STREAM_FLAGS = NEWLINE_TEST | COMPRESSED | MARKERS


def number(value: int, length: int) -> bytes:
    """A little-endian number."""
    return value.to_bytes(length, 'little')


def to_sector(data: bytes) -> bytes:
    """The data, padded with zeros to whole sectors."""
    return data + bytes(-len(data) % SECTOR)


def patched(data: bytes, offset: int, part: bytes) -> bytes:
    """The data with other bytes at ``offset``."""
    return data[:offset] + part + data[offset + len(part) :]


def header(
    capacity: int,
    *,
    version: int = 1,
    flags: int = NEWLINE_TEST | REDUNDANT,
    grain: int = GRAIN,
    descriptor: tuple[int, int] = (1, 20),
    table_entries: int = TABLE,
    redundant: int = 0,
    directory: bytes = bytes(8),
    overhead: int = 128,
    unclean: int = 0,
    newlines: bytes = b'\n \r\n',
    compression: int = 0,
) -> bytes:
    """A sparse extent's header; all numbers are sectors.

    :param directory: the eight bytes of the field
    """
    parts = (
        b'KDMV',
        number(version, 4),
        number(flags, 4),
        number(capacity, 8),
        number(grain, 8),
        number(descriptor[0], 8),
        number(descriptor[1], 8),
        number(table_entries, 4),
        number(redundant, 8),
        directory,
        number(overhead, 8),
        bytes((unclean,)),
        newlines,
        number(compression, 2),
    )
    return b''.join(parts).ljust(SECTOR, b'\0')


def descriptor(
    kind: str,
    extents: Sequence[str],
    *,
    parent: str = 'ffffffff',
    more: str = '',
) -> bytes:
    """The text that describes a disk."""
    lines = [
        '# Disk DescriptorFile',
        'version=1',
        'CID=7b6a21cd',
        f'parentCID={parent}',
        'isNativeSnapshot="no"',
        f'createType="{kind}"',
        '',
        '# Extent description',
        *extents,
        '',
        '# The Disk Data Base',
        '#DDB',
        '',
        'ddb.adapterType = "lsilogic"',
        'ddb.geometry.cylinders = "2"',
        'ddb.virtualHWVersion = "8"',
        more,
    ]
    return '\n'.join(lines).encode() + b'\n'


def grains_of(data: bytes, grain: int = GRAIN) -> dict[int, bytes]:
    """The grains that are not all zeros, padded to their size."""
    size = grain * SECTOR
    found = {}
    for start in range(0, len(data), size):
        part = data[start : start + size]
        if part.strip(b'\0'):
            found[start // size] = part.ljust(size, b'\0')
    return found


def sparse(
    data: bytes,
    *,
    grain: int = GRAIN,
    kind: str = 'monolithicSparse',
    order: typing.Callable[[list[int]], list[int]] = list,
    embedded: bool = True,
    zeroed: Sequence[int] = (),
    gap: int = 0,
    text: bytes = b'',
    **fields: typing.Any,
) -> bytes:
    """A hosted sparse extent: two sets of tables, then the grains.

    :param order: in which the grains are written
    :param zeroed: grains that the table names as zeros (entry 1)
    :param gap: sectors that are left between two grains
    :param text: another descriptor
    """
    capacity = -(-len(data) // SECTOR)
    tables = -(-capacity // (grain * TABLE))
    directory_sectors = -(-tables * 4 // SECTOR)
    redundant = 21
    first = redundant + directory_sectors
    directory = first + tables * 4
    second = directory + directory_sectors
    start = -(-(second + tables * 4) // grain) * grain
    content = grains_of(data, grain)
    entries = [0] * (tables * TABLE)
    for index in zeroed:
        entries[index] = 1
        content.pop(index, None)
    body = b''
    for index in order(sorted(content)):
        entries[index] = start + len(body) // SECTOR
        body += content[index] + bytes(gap * SECTOR)
    raw_tables = b''.join(number(entry, 4) for entry in entries)
    parts = [
        header(
            capacity,
            grain=grain,
            redundant=redundant,
            directory=number(directory, 8),
            overhead=start,
            descriptor=(1, 20) if embedded else (0, 0),
            **fields,
        ),
        (
            text
            or (
                descriptor(kind, [f'RW {capacity} SPARSE "d.vmdk"'])
                if embedded
                else b''
            )
        ).ljust(20 * SECTOR, b'\0'),
    ]
    for place in (first, second):
        parts.append(
            to_sector(
                b''.join(
                    number(place + 4 * index, 4) for index in range(tables)
                )
            )
        )
        parts.append(raw_tables)
    return b''.join(parts).ljust(start * SECTOR, b'\0') + body


def grain_marker(sector: int, packed: bytes, size: int | None = None) -> bytes:
    """A compressed grain with its marker.

    :param sector: of the disk
    :param size: what the marker states; by default the truth
    """
    size = len(packed) if size is None else size
    return to_sector(number(sector, 8) + number(size, 4) + packed)


def marker(kind: int, content: bytes, sectors: int | None = None) -> bytes:
    """A marker with the metadata that it announces."""
    if sectors is None:
        sectors = len(content) // SECTOR
    head = number(sectors, 8) + number(0, 4) + number(kind, 4)
    return to_sector(head) + content


class Stream:
    """Writes a stream-optimized disk step by step.

    :param out: where to; by default memory
    """

    def __init__(
        self,
        capacity: int,
        *,
        grain: int = GRAIN,
        text: bytes = b'',
        out: typing.BinaryIO | None = None,
        **fields: typing.Any,
    ) -> None:
        self.out = out or io.BytesIO()
        self.capacity = capacity
        self.grain = grain
        self.fields = {
            'grain': grain,
            'version': 3,
            'flags': STREAM_FLAGS,
            'compression': 1,
            **fields,
        }
        text = text or descriptor(
            'streamOptimized', [f'RDONLY {capacity} SPARSE "d.vmdk"']
        )
        start = header(capacity, directory=AT_END, **self.fields)
        start += text.ljust(20 * SECTOR, b'\0')
        self.out.write(start.ljust(128 * SECTOR, b'\0'))
        self.entries: dict[int, int] = {}
        self.tables: dict[int, int] = {}
        self.directory = 0

    @property
    def sector(self) -> int:
        """Where the next part will stand."""
        return self.out.tell() // SECTOR

    def add(
        self,
        index: int,
        data: bytes,
        *,
        size: int | None = None,
        lba: int | None = None,
        level: int = 6,
    ) -> None:
        """A grain, compressed."""
        self.entries[index] = self.sector
        lba = index * self.grain if lba is None else lba
        packed = zlib.compress(data, level)
        self.out.write(grain_marker(lba, packed, size))

    def add_table(self, table: int) -> None:
        """The table of grains ``512 * table`` and the following."""
        content = b''.join(
            number(self.entries.get(table * TABLE + entry, 0), 4)
            for entry in range(TABLE)
        )
        self.out.write(marker(1, content))
        self.tables[table] = self.sector - 4

    def add_directory(self) -> None:
        """The directory of the tables."""
        count = -(-self.capacity // (self.grain * TABLE))
        content = to_sector(
            b''.join(
                number(self.tables.get(table, 0), 4) for table in range(count)
            )
        )
        self.out.write(marker(2, content))
        self.directory = self.sector - len(content) // SECTOR

    def add_footer(self, **fields: typing.Any) -> None:
        """The footer and the end."""
        changed = {
            'directory': number(self.directory, 8),
            **self.fields,
            **fields,
        }
        self.out.write(marker(3, header(self.capacity, **changed)))
        self.out.write(bytes(SECTOR))

    @property
    def content(self) -> bytes:
        """What was written to memory so far."""
        assert isinstance(self.out, io.BytesIO)
        return self.out.getvalue()

    def finish(self) -> None:
        """All tables that are missing, the directory and the footer."""
        for table in sorted({index // TABLE for index in self.entries}):
            if table not in self.tables:
                self.add_table(table)
        self.add_directory()
        self.add_footer()


def stream_optimized(
    data: bytes,
    *,
    grain: int = GRAIN,
    level: int = 6,
    **fields: typing.Any,
) -> bytes:
    """A stream-optimized disk, as VMware's OVF tools write it.

    Each table follows its grains.
    """
    stream = Stream(-(-len(data) // SECTOR), grain=grain, **fields)
    content = grains_of(data, grain)
    tables: list[int] = []
    for index in sorted(content):
        table = index // TABLE
        if tables and tables[-1] != table:
            stream.add_table(tables[-1])
        if not tables or tables[-1] != table:
            tables.append(table)
        stream.add(index, content[index], level=level)
    stream.finish()
    return stream.content


def tables_first(
    data: bytes,
    *,
    order: typing.Callable[[list[int]], list[int]] = list,
    level: int = 6,
    **fields: typing.Any,
) -> bytes:
    """A stream-optimized disk as qemu-img writes it, one table long.

    The directory and the table stand before the grains; no markers but
    those of the grains, and no footer.
    """
    content = grains_of(data)
    entries = [0] * TABLE
    body = b''
    for index in order(sorted(content)):
        entries[index] = 128 + len(body) // SECTOR
        body += grain_marker(
            index * GRAIN, zlib.compress(content[index], level)
        )
    capacity = -(-len(data) // SECTOR)
    changed = {
        'version': 3,
        'flags': STREAM_FLAGS,
        'compression': 1,
        'directory': number(30, 8),
        **fields,
    }
    start = header(capacity, **changed) + descriptor(
        'streamOptimized', [f'RW {capacity} SPARSE "d.vmdk"']
    )
    start = start.ljust(30 * SECTOR, b'\0') + to_sector(number(31, 4))
    start += b''.join(number(entry, 4) for entry in entries)
    return start.ljust(128 * SECTOR, b'\0') + body
