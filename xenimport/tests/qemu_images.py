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

"""Writes qcow2, VDI and VHDX images for tests, sound and hostile ones.

Written after QEMU's docs/interop/qcow2.txt, VirtualBox' VDICore.h and
Microsoft's [MS-VHDX]. It shares nothing with the product, so that a
mistake on one side does not hide the same mistake on the other. That the
sound ones are sound is judged by qemu-img, in the functional tests.
"""

from __future__ import annotations

from collections.abc import Mapping
import functools
import struct
import typing
import uuid

KIB = 1024
MIB = 1024 * KIB


# qcow2


def qcow2(
    data: Mapping[int, bytes],
    size: int,
    *,
    cluster_bits: int = 12,
    stated_size: int | None = None,
    l2_entries: Mapping[int, int] | None = None,
    l1_entries: Mapping[int, int] | None = None,
    **fields: typing.Any,
) -> bytes:
    """An image of version 3.

    :param data: clusters of the disk by their number
    :param stated_size: the size to write instead
    :param l2_entries: entries of the first L2 table to write instead
    :param l1_entries: entries of the L1 table to write instead
    :param fields: fields of the header to write instead
    """
    cluster = 1 << cluster_bits
    per_table = cluster // 8
    tables = max(1, -(-size // (cluster * per_table)))
    l1_clusters = -(-tables * 8 // cluster)
    # Header, refcount table, refcount block, L1 table, L2 tables, data.
    first_l2 = 3 + l1_clusters
    used = sorted({number // per_table for number in data} | {0})
    l2_place = {table: first_l2 + index for index, table in enumerate(used)}
    place = {
        number: first_l2 + len(used) + index
        for index, number in enumerate(sorted(data))
    }
    clusters = first_l2 + len(used) + len(place)
    parts = [
        _qcow2_header(
            cluster_bits,
            size if stated_size is None else stated_size,
            tables,
            fields,
        ).ljust(cluster, b'\0'),
        struct.pack('>Q', 2 * cluster).ljust(cluster, b'\0'),
        (b'\0\1' * clusters).ljust(cluster, b'\0'),
    ]
    l1 = [
        l2_place[table] * cluster | 1 << 63 if table in l2_place else 0
        for table in range(tables)
    ]
    for index, entry in (l1_entries or {}).items():
        l1[index] = entry
    parts.append(
        struct.pack(f'>{tables}Q', *l1).ljust(l1_clusters * cluster, b'\0')
    )
    for table in used:
        entries = [0] * per_table
        for number, where in place.items():
            if number // per_table == table:
                entries[number % per_table] = where * cluster | 1 << 63
        if table == 0:
            for index, entry in (l2_entries or {}).items():
                entries[index] = entry
        parts.append(struct.pack(f'>{per_table}Q', *entries))
    parts += [data[number].ljust(cluster, b'\0') for number in sorted(data)]
    return b''.join(parts)


def _qcow2_header(
    cluster_bits: int,
    size: int,
    l1_size: int,
    fields: Mapping[str, typing.Any],
) -> bytes:
    cluster = 1 << cluster_bits
    values: dict[str, typing.Any] = {
        'magic': b'QFI\xfb',
        'version': 3,
        'backing_offset': 0,
        'backing_size': 0,
        'cluster_bits': cluster_bits,
        'size': size,
        'encryption': 0,
        'l1_size': l1_size,
        'l1_offset': 3 * cluster,
        'refcount_offset': cluster,
        'refcount_clusters': 1,
        'snapshots': 0,
        'snapshots_offset': 0,
        'incompatible': 0,
        'compatible': 0,
        'autoclear': 0,
        'refcount_order': 4,
        'header_length': 104,
    }
    unknown = set(fields) - set(values)
    if unknown:
        raise ValueError(f'no such field: {unknown}')
    return struct.pack(
        '>4sIQIIQIIQQIIQQQQII', *(values | dict(fields)).values()
    )


# VDI


def vdi(
    data: Mapping[int, bytes],
    size: int,
    *,
    map_entries: Mapping[int, int] | None = None,
    stated_size: int | None = None,
    **fields: typing.Any,
) -> bytes:
    """A dynamic image.

    :param data: blocks of 1 MiB by their number
    :param map_entries: entries of the map to write instead
    :param stated_size: the size to write instead
    :param fields: fields of the header to write instead
    """
    blocks = -(-size // MIB)
    table = [0xFFFFFFFF] * blocks
    for index, number in enumerate(sorted(data)):
        table[number] = index
    for index, entry in (map_entries or {}).items():
        table[index] = entry
    map_length = -(-blocks * 4 // 512) * 512
    values: dict[str, typing.Any] = {
        'text': b'<<< QEMU VM Virtual Disk Image >>>\n',
        'signature': 0xBEDA107F,
        'version': 0x00010001,
        'header_size': 0x180,
        'kind': 1,
        'flags': 0,
        'comment': b'',
        'map_offset': 512,
        'data_offset': 512 + map_length,
        'cylinders': 0,
        'heads': 0,
        'sectors': 0,
        'sector_size': 512,
        'unused': 0,
        'size': size if stated_size is None else stated_size,
        'block': MIB,
        'extra': 0,
        'blocks': blocks,
        'allocated': len(data),
        'uuid': b'i' * 16,
        'snapshot_uuid': b's' * 16,
        'link_uuid': bytes(16),
        'parent_uuid': bytes(16),
    }
    unknown = set(fields) - set(values)
    if unknown:
        raise ValueError(f'no such field: {unknown}')
    header = struct.pack(
        '<64sIIIII256sIIIIIIIQIIII16s16s16s16s',
        *(values | dict(fields)).values(),
    )
    return b''.join(
        (
            header.ljust(512, b'\0'),
            struct.pack(f'<{blocks}I', *table).ljust(map_length, b'\0'),
            *(data[number].ljust(MIB, b'\0') for number in sorted(data)),
        )
    )


# VHDX

FULL = 6
PARTIAL = 7
BAT = '2dc27766-f623-4200-9d64-115e9bfd4a08'
METADATA = '8b7ca206-4790-4b9a-b8fe-575f050f886e'
FILE_PARAMETERS = 'caa16737-fa36-4d43-b3b6-33f0aa44e76b'
DISK_SIZE = '2fa54224-cd1b-4876-b211-5dbed83bf4b8'
LOGICAL_SECTOR = '8141bf1d-a96f-4709-ba47-f233a8faab5f'
PHYSICAL_SECTOR = 'cda348c7-445d-4471-9cc9-e9885251c556'
DISK_ID = 'beca12ab-b2e6-4523-93ef-c309e000c746'
PARENT_LOCATOR = 'a8d35f2d-b30b-454d-abf7-d3d84834ab0c'
_LOG, _METADATA_PLACE, _BAT_PLACE, _DATA = MIB, 2 * MIB, 3 * MIB, 4 * MIB


@functools.cache
def crc32c(data: bytes) -> int:
    """CRC-32C, bit by bit; of ``123456789`` it is 0xE3069283."""
    value = 0xFFFFFFFF
    for byte in data:
        value ^= byte
        for _bit in range(8):
            odd = value & 1
            value >>= 1
            if odd:
                value ^= 0x82F63B78
    return value ^ 0xFFFFFFFF


def _sealed(data: bytes, length: int) -> bytes:
    """A structure with its checksum at offset 4."""
    data = data[:4] + bytes(4) + data[8:].ljust(length - 8, b'\0')
    # What stands behind the data is zeros, and they count as well.
    return data[:4] + struct.pack('<I', crc32c(data)) + data[8:]


def vhdx_header(
    sequence: int = 1, log: bytes = bytes(16), **fields: typing.Any
) -> bytes:
    """One of the two headers."""
    values: dict[str, typing.Any] = {
        'signature': b'head',
        'checksum': 0,
        'sequence': sequence,
        'file': b'f' * 16,
        'data': b'd' * 16,
        'log': log,
        'log_version': 0,
        'version': 1,
        'log_length': MIB,
        'log_offset': _LOG,
    }
    packed = struct.pack(
        '<4sIQ16s16s16sHHIQ', *(values | dict(fields)).values()
    )
    return _sealed(packed, 4 * KIB)


def vhdx_regions(
    regions: Mapping[str, tuple[int, int, int]] | None = None,
) -> bytes:
    """A region table: offset, length and "required" by UUID."""
    if regions is None:
        regions = {
            BAT: (_BAT_PLACE, MIB, 1),
            METADATA: (_METADATA_PLACE, MIB, 1),
        }
    packed = struct.pack('<4sIII', b'regi', 0, len(regions), 0)
    for name, place in regions.items():
        packed += uuid.UUID(name).bytes_le + struct.pack('<QII', *place)
    return _sealed(packed, 64 * KIB)


def vhdx_metadata(items: Mapping[str, bytes]) -> bytes:
    """The region of metadata: values by UUID."""
    table = struct.pack('<8s2xH20x', b'metadata', len(items))
    values = b''
    for name, value in items.items():
        # "Required", and "of the disk" but for the parameters.
        flags = 4 if name in (FILE_PARAMETERS, PARENT_LOCATOR) else 6
        table += uuid.UUID(name).bytes_le + struct.pack(
            '<III4x', 64 * KIB + len(values), len(value), flags
        )
        values += value
    return (table.ljust(64 * KIB, b'\0') + values).ljust(MIB, b'\0')


def vhdx_items(
    size: int, *, block: int = MIB, flags: int = 0, sector: int = 512
) -> dict[str, bytes]:
    """The items that every image has."""
    return {
        FILE_PARAMETERS: struct.pack('<II', block, flags),
        DISK_SIZE: struct.pack('<Q', size),
        LOGICAL_SECTOR: struct.pack('<I', sector),
        PHYSICAL_SECTOR: struct.pack('<I', 4096),
        DISK_ID: b'p' * 16,
    }


def vhdx(
    data: Mapping[int, bytes],
    size: int,
    *,
    items: Mapping[str, bytes] | None = None,
    headers: tuple[bytes, bytes] | None = None,
    tables: tuple[bytes, bytes] | None = None,
    log: bytes = b'',
    bat_entries: Mapping[int, int] | None = None,
    creator: str = 'xenimport test',
) -> bytes:
    """A dynamic image with blocks of 1 MiB.

    :param data: blocks by their number
    :param bat_entries: entries of the block table to write instead
    """
    blocks = -(-size // MIB)
    # After so many blocks an entry for a sector bitmap comes between.
    chunk = 4096
    bat = [0] * (blocks + (blocks - 1) // chunk)
    for index, number in enumerate(sorted(data)):
        bat[number + number // chunk] = (_DATA + index * MIB) | FULL
    for index, entry in (bat_entries or {}).items():
        bat[index] = entry
    headers = headers or (vhdx_header(1), vhdx_header(2))
    table = vhdx_regions() if tables is None else b''
    first, second = tables or (table, table)
    return b''.join(
        (
            (b'vhdxfile' + creator.encode('utf-16-le')).ljust(64 * KIB, b'\0'),
            headers[0].ljust(64 * KIB, b'\0'),
            headers[1].ljust(64 * KIB, b'\0'),
            first,
            second.ljust(_LOG - 256 * KIB, b'\0'),
            log.ljust(MIB, b'\0'),
            vhdx_metadata(vhdx_items(size) if items is None else items),
            struct.pack(f'<{len(bat)}Q', *bat).ljust(MIB, b'\0'),
            *(data[number].ljust(MIB, b'\0') for number in sorted(data)),
        )
    )


def vhdx_log_entry(log: bytes) -> bytes:
    """The start of an entry of the log, as much as tells it."""
    return struct.pack(
        '<4sIIIQII16s', b'loge', 0, 4096, 0, 1, 0, 0, log
    ).ljust(4 * KIB, b'\0')
