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


"""NTFS as its bytes say: the boot sector and the flags of the volume.

Pure parsing of what a hostile guest may have written; every number is
held against what it may be. Sources: Microsoft's "How NTFS Works" for the
boot sector; the layout of file records, attributes and
$VOLUME_INFORMATION as the Linux kernel's fs/ntfs3 describes it.
"""

from __future__ import annotations

from collections.abc import Callable
import dataclasses
import struct

from xenimport import exceptions

NAME = b'NTFS    '
SIGNATURE = b'\x55\xaa'
#: Where the boot sector, of NTFS and of FAT, says which sector it is in.
HIDDEN_SECTORS = 0x1C
#: The volume wants a check: flag of $VOLUME_INFORMATION.
DIRTY = 0x0001

_SECTOR_SIZES = (512, 1024, 2048, 4096)
#: The largest cluster, of Windows 10 (1709) and later.
_CLUSTER_LIMIT = 2 << 20
#: Far more than any volume has, and an offset that can be asked for.
_VOLUME_LIMIT = 1 << 60
_RECORD_SIZES = (1024, 2048, 4096)
#: The number of the file $Volume, and of its attribute.
_VOLUME = 3
_VOLUME_INFORMATION = 0x70
_END = 0xFFFFFFFF
#: Fixups guard blocks of this size, whatever the sectors have.
_STRIDE = 512

#: Gives bytes of the volume at an offset, fewer behind its end.
Read = Callable[[int, int], bytes]


@dataclasses.dataclass(frozen=True)
class BootSector:
    """What the boot sector says of the volume.

    :ivar sector_size: in bytes, as ``cluster_size`` and ``record_size``
    :ivar hidden_sectors: those before the volume on its disk
    :ivar total_sectors: of the volume, less the one of the backup
    :ivar table: where the master file table starts, in bytes
    """

    sector_size: int
    cluster_size: int
    record_size: int
    hidden_sectors: int
    total_sectors: int
    table: int


def parse_boot_sector(sector: bytes) -> BootSector | None:
    """The boot sector of an NTFS volume; None where it is no such.

    :raises GuestError: ``guest.ntfs-damaged``, if it makes no sense
    """
    if len(sector) < _STRIDE or sector[3:11] != NAME:
        return None
    size, clusters = struct.unpack_from('<HB', sector, 11)
    (hidden,) = struct.unpack_from('<I', sector, HIDDEN_SECTORS)
    total, table = struct.unpack_from('<QQ', sector, 0x28)
    (records,) = struct.unpack_from('<b', sector, 0x40)
    if size not in _SECTOR_SIZES:
        raise damaged('boot sector', f'sectors of {size} bytes')
    # Above 128 it is the exponent of two, negative.
    if clusters > 0x80:
        clusters = 1 << min(256 - clusters, 32)
    cluster = clusters * size
    if not 0 < cluster <= _CLUSTER_LIMIT or clusters & (clusters - 1):
        raise damaged('boot sector', f'clusters of {cluster} bytes')
    record = 1 << min(-records, 32) if records < 0 else records * cluster
    if record not in _RECORD_SIZES:
        raise damaged('boot sector', f'file records of {record} bytes')
    if not 0 < table * cluster < total * size < _VOLUME_LIMIT:
        raise damaged('boot sector', f'a file table at cluster {table}')
    return BootSector(size, cluster, record, hidden, total, table * cluster)


def volume_flags(boot: BootSector, read: Read) -> int:
    """The flags of the volume, :data:`DIRTY` among them.

    The first sixteen file records follow each other at the table's start,
    and $Volume is one of them.

    :raises GuestError: ``guest.ntfs-damaged``, if they cannot be found
    """
    record = _record(boot, read, _VOLUME)
    value = _resident(record, _VOLUME_INFORMATION)
    if len(value) < 12:
        raise damaged('$Volume', f'{len(value)} bytes of information')
    flags: int = struct.unpack_from('<H', value, 10)[0]
    return flags


def _record(boot: BootSector, read: Read, number: int) -> bytes:
    """A file record, its fixups undone."""
    size = boot.record_size
    data = bytearray(read(boot.table + number * size, size))
    if len(data) != size or data[:4] != b'FILE':
        raise damaged(f'file record {number}', data[:4].hex(' ') or 'nothing')
    offset, count = struct.unpack_from('<HH', data, 4)
    if count != size // _STRIDE + 1 or offset + 2 * count > _STRIDE - 2:
        raise damaged(f'file record {number}', f'{count} fixups at {offset}')
    array = data[offset : offset + 2 * count]
    for index in range(1, count):
        end = index * _STRIDE
        if data[end - 2 : end] != array[:2]:
            raise damaged(f'file record {number}', 'a torn write')
        data[end - 2 : end] = array[2 * index : 2 * index + 2]
    return bytes(data)


def _resident(record: bytes, kind: int) -> bytes:
    """The value of a record's first attribute of a kind, b'' without."""
    (at,) = struct.unpack_from('<H', record, 0x14)
    while at + 0x18 <= len(record):
        found, length = struct.unpack_from('<II', record, at)
        if found == _END:
            break
        if length < 0x18 or length % 8 or at + length > len(record):
            raise damaged('file record', f'an attribute of {length} bytes')
        if found == kind:
            if record[at + 8]:
                raise damaged('file record', 'information outside of it')
            size, offset = struct.unpack_from('<IH', record, at + 0x10)
            if offset + size > length:
                raise damaged('file record', f'a value of {size} bytes')
            return record[at + offset : at + offset + size]
        at += length
    return b''


def damaged(where: str, found: str) -> exceptions.GuestError:
    """The structures of an NTFS volume make no sense."""
    return exceptions.GuestError(
        'guest.ntfs-damaged',
        'An NTFS volume of the guest is damaged',
        where=where,
        expected='a sound file system',
        found=found,
        fix='in the guest on Xen run "chkdsk /f" on that volume, shut it '
        'down with "shutdown /s /f /t 0", and export it again',
    )
