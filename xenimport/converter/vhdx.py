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

"""VHDX: dynamic and fixed images of Hyper-V.

After Microsoft's [MS-VHDX]. An image may have a parent, and a log whose
changes are not yet in their places; both are refused. What is allocated
is read from the block table here: qemu's driver cannot tell.
"""

from __future__ import annotations

import functools
import struct
import uuid

from xenimport.converter import qemu
from xenimport.converter import region
from xenimport.converter import vhdx_table
from xenimport import exceptions

_MAGIC = b'vhdxfile'
_MIB = 1 << 20
_KIB = 1 << 10
#: The two headers and the two region tables: signature, places, bytes.
_HEADERS = (b'head', (64 * _KIB, 128 * _KIB), 4 * _KIB)
_REGION_TABLES = (b'regi', (192 * _KIB, 256 * _KIB), 64 * _KIB)
#: Signature, checksum, sequence number, three UUIDs (of the file, of its
#: data, of the log), versions of log and format, length and offset of the
#: log.
_HEADER = struct.Struct('<4sIQ16s16s16sHHIQ')
#: Signature, checksum, entries; then UUID, offset, length, required.
_TABLE = struct.Struct('<4sIII')
_REGION = struct.Struct('<16sQII')
_MAX_REGIONS = 2047
#: Signature, entries; then UUID, offset in the region, length, flags.
_METADATA = struct.Struct('<8s2xH20x')
_ITEM = struct.Struct('<16sIII4x')
_MAX_ITEMS = 2047
_MAX_ITEM = 1 << 20
#: Bytes of the largest log; the format's own bound is higher, but a log
#: is read through.
_MAX_LOG = 256 << 20
_LOG_SECTOR = 4 * _KIB
_LOG_ENTRY = b'loge'
#: Where in a log's entry its log's UUID stands.
_LOG_UUID = slice(32, 48)
_HAS_PARENT = 2
_BLOCKS = range(_MIB, 256 * _MIB + 1)


def _known(text: str) -> bytes:
    return uuid.UUID(text).bytes_le


_BAT = _known('2dc27766-f623-4200-9d64-115e9bfd4a08')
_METADATA_REGION = _known('8b7ca206-4790-4b9a-b8fe-575f050f886e')
_FILE_PARAMETERS = _known('caa16737-fa36-4d43-b3b6-33f0aa44e76b')
_DISK_SIZE = _known('2fa54224-cd1b-4876-b211-5dbed83bf4b8')
_SECTOR_SIZE = _known('8141bf1d-a96f-4709-ba47-f233a8faab5f')
_PARENT_LOCATOR = _known('a8d35f2d-b30b-454d-abf7-d3d84834ab0c')
#: Fields of the metadata that every image has.
_FIELDS = {
    _FILE_PARAMETERS: struct.Struct('<II'),
    _DISK_SIZE: struct.Struct('<Q'),
    _SECTOR_SIZE: struct.Struct('<I'),
}


class VhdxConverter(qemu.QemuConverter):
    """Opens VHDX images that stand alone."""

    handles = 'VHDX images, dynamic and fixed'
    format = 'vhdx'
    title = 'VHDX'
    magic = _MAGIC

    def _layout(self, reader: region.RegionReader) -> qemu.Layout:
        _check_log(reader)
        regions = _regions(reader)
        block, size = _disk(_items(regions[_METADATA_REGION], reader), reader)
        offset, length = regions[_BAT]
        table = vhdx_table.Table(offset, block, size)
        if table.entries * 8 > length:
            raise vhdx_table.damaged(
                reader,
                f'a block table of {table.entries} entries',
                f'{length} bytes for it',
            )
        vhdx_table.check_blocks(table, reader)
        return qemu.Layout(
            size,
            creator=_creator(reader),
            extents=functools.partial(vhdx_table.extents, table, reader),
        )


def _creator(reader: region.RegionReader) -> str | None:
    """What wrote the image, as it says after its signature."""
    text = reader.read(8, 512).decode('utf-16-le', 'replace')
    text = text.partition('\0')[0].strip()
    return exceptions.one_line(text) or None


def _checked(
    kind: tuple[bytes, tuple[int, int], int], reader: region.RegionReader
) -> list[bytes]:
    """Those of two copies of a structure that are intact."""
    signature, places, length = kind
    found = []
    for place in places:
        data = reader.read(place, length)
        if len(data) != length or not data.startswith(signature):
            continue
        plain = data[:4] + bytes(4) + data[8:]
        if _crc32c(plain) == int.from_bytes(data[4:8], 'little'):
            found.append(data)
    if not found:
        raise vhdx_table.damaged(
            reader,
            f'an intact structure "{signature.decode()}"',
            'none, or a wrong checksum',
        )
    return found


@functools.cache
def _crc_table() -> tuple[int, ...]:
    table = []
    for value in range(256):
        for _bit in range(8):
            value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)
        table.append(value)
    return tuple(table)


def _crc32c(data: bytes) -> int:
    """The checksum of RFC 3720."""
    table = _crc_table()
    value = 0xFFFFFFFF
    for byte in data:
        value = table[(value ^ byte) & 0xFF] ^ value >> 8
    return value ^ 0xFFFFFFFF


def _check_log(reader: region.RegionReader) -> None:
    """Refuse an image that was not closed: its log is to be replayed."""
    headers = [
        _HEADER.unpack_from(data) for data in _checked(_HEADERS, reader)
    ]
    current = max(headers, key=lambda fields: int(fields[2]))
    log, version, length, offset = current[5], *current[7:10]
    if version != 1:
        raise vhdx_table.damaged(reader, 'version 1', f'version {version}')
    if log == bytes(16):
        return
    if length > _MAX_LOG or offset + length > reader.size:
        raise vhdx_table.damaged(
            reader,
            'a log inside the file',
            f'{length} bytes at offset {offset}',
        )
    for start in range(offset, offset + length, _MIB):
        data = reader.read(start, min(_MIB, offset + length - start))
        for place in range(0, len(data), _LOG_SECTOR):
            entry = data[place : place + _LOG_UUID.stop]
            if entry.startswith(_LOG_ENTRY) and entry[_LOG_UUID] == log:
                raise _open_log(reader)


def _open_log(reader: region.RegionReader) -> exceptions.DiskImageError:
    return exceptions.DiskImageError(
        'vhdx.open-log',
        'The image was not closed properly: changes wait in its log',
        where=reader.where,
        expected='an image that was closed',
        found='a log that is not yet replayed',
        fix='shut the guest down and export it again; or have the log of a '
        'copy replayed, by "Mount-VHD" and "Dismount-VHD" in Windows or by '
        '"qemu-img check -f vhdx -r all", and import that',
    )


def _regions(reader: region.RegionReader) -> dict[bytes, tuple[int, int]]:
    """Offset and length of the regions, by their UUID."""
    tables = [
        _table(data, reader) for data in _checked(_REGION_TABLES, reader)
    ]
    # Programs differ in which copy they read.
    if any(table != tables[0] for table in tables):
        raise vhdx_table.damaged(
            reader, 'two region tables that agree', 'two others'
        )
    for name, found in ('BAT', _BAT), ('metadata', _METADATA_REGION):
        if found not in tables[0]:
            raise vhdx_table.damaged(reader, f'a region "{name}"', 'none')
    return tables[0]


def _table(
    data: bytes, reader: region.RegionReader
) -> dict[bytes, tuple[int, int]]:
    count = _TABLE.unpack_from(data)[2]
    if count > _MAX_REGIONS:
        raise vhdx_table.damaged(
            reader, f'at most {_MAX_REGIONS} regions', f'{count}'
        )
    found: dict[bytes, tuple[int, int]] = {}
    for index in range(count):
        name, offset, length, required = _REGION.unpack_from(
            data, _TABLE.size + index * _REGION.size
        )
        if name in found:
            raise vhdx_table.damaged(reader, 'each region once', 'one twice')
        if name not in (_BAT, _METADATA_REGION) and required & 1:
            raise vhdx_table.damaged(
                reader,
                'no required region but the BAT and the metadata',
                f'region {uuid.UUID(bytes_le=name)}',
            )
        if offset < _MIB or offset % _MIB:
            raise vhdx_table.damaged(
                reader, 'a region at a whole mebibyte', f'offset {offset}'
            )
        if offset + length > reader.size:
            raise qemu.truncated('VHDX', offset + length, reader)
        found[name] = offset, length
    return found


def _items(
    place: tuple[int, int], reader: region.RegionReader
) -> dict[bytes, tuple[int, int]]:
    """Offset and length of the metadata's items, by their UUID."""
    start, size = place
    data = reader.read(start, min(size, 64 * _KIB))
    if len(data) < 64 * _KIB:
        raise vhdx_table.damaged(
            reader, 'metadata of at least 64 KiB', f'{len(data)} bytes'
        )
    signature, count = _METADATA.unpack_from(data)
    if signature != b'metadata' or count > _MAX_ITEMS:
        raise vhdx_table.damaged(
            reader, f'metadata of at most {_MAX_ITEMS} items', f'{count}'
        )
    found: dict[bytes, tuple[int, int]] = {}
    for index in range(count):
        name, offset, length, _flags = _ITEM.unpack_from(
            data, _METADATA.size + index * _ITEM.size
        )
        if name in found:
            raise vhdx_table.damaged(reader, 'each item once', 'one twice')
        if length > _MAX_ITEM or offset + length > size:
            raise vhdx_table.damaged(
                reader,
                'items inside the metadata',
                f'{length} bytes at offset {offset}',
            )
        found[name] = start + offset, length
    return found


def _disk(
    items: dict[bytes, tuple[int, int]], reader: region.RegionReader
) -> tuple[int, int]:
    """Bytes of a block and of the disk."""
    values = {}
    for name, kind in _FIELDS.items():
        offset, length = items.get(name, (0, 0))
        data = reader.read(offset, kind.size)
        if length < kind.size or len(data) < kind.size:
            raise vhdx_table.damaged(
                reader,
                "the disk's size, its sectors' and its blocks'",
                'one is missing',
            )
        values[name] = kind.unpack(data)
    block, flags = values[_FILE_PARAMETERS]
    size, sector = values[_DISK_SIZE][0], values[_SECTOR_SIZE][0]
    if flags & _HAS_PARENT or _PARENT_LOCATOR in items:
        raise exceptions.DiskImageError(
            'vhdx.parent',
            'The image holds only what differs from another image',
            where=reader.where,
            expected='an image that is complete in itself',
            found='a differencing image',
            fix='join it with its parents in Hyper-V ("Merge-VHD", or '
            '"Convert-VHD" to a new disk), and import what that writes',
        )
    if sector != qemu.SECTOR:
        raise exceptions.DiskImageError(
            'vhdx.sector-size',
            'The disk has sectors of a size that is not supported',
            where=reader.where,
            expected=f'sectors of {qemu.SECTOR} bytes',
            found=f'{sector} bytes',
            fix='copy the guest to a disk with sectors of 512 bytes: its '
            'partition table counts in sectors',
        )
    if block not in _BLOCKS or block & (block - 1):
        raise vhdx_table.damaged(
            reader, 'blocks of 1 to 256 MiB', f'blocks of {block} bytes'
        )
    qemu.check_size('vhdx.size', 'VHDX', size, reader)
    return block, size
