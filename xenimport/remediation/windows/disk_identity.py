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


"""How Windows tells disks and partitions apart, as the disks have it.

A disk with an MBR has a signature, four bytes at 0x1B8 of sector 0, and its
partitions are known by where they start; a GPT has a GUID for the disk and
one for each partition. The boot manager and the mount manager
(``HKLM\\SYSTEM\\MountedDevices``) both go by these.

Sources: the UEFI specification, chapter 5, for the GPT; elements and
MountedDevices of genuine guests for what is stored.
"""

from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Mapping
import struct
import uuid

from xenimport import exceptions
from xenimport.guest import bcd_device
from xenimport.guest import guest as guest_room
from xenimport.guest import registry
from xenimport.remediation import disk
from xenimport.remediation.windows import system

MOUNTED_DEVICES = 'MountedDevices'
#: Where in sector 0 the signature of an MBR stands.
SIGNATURE_AT = 0x1B8
_CURRENT_VERSION = 'Microsoft\\Windows NT\\CurrentVersion'
_GPT_NAME = b'DMIO:ID:'


def signature(guest: guest_room.Guest, drive: str) -> int | None:
    """The signature of a drive's MBR; None where it has no MBR."""
    if guest.partition_table(drive) != 'msdos':
        return None
    sector = guest.table_sectors(drive)
    return int.from_bytes(sector[SIGNATURE_AT:][:4], 'little')


def partitions(
    guest: guest_room.Guest, signatures: Mapping[str, int] | None = None
) -> dict[str, bcd_device.Partition]:
    """What the partitions of all drives are known by, by device.

    :param signatures: of MBRs that are to be another by then, by drive
    """
    found = {}
    for drive in guest.drives:
        table = guest.partition_table(drive)
        if table == 'msdos':
            number = (signatures or {}).get(drive, signature(guest, drive))
            for item in guest.partitions(drive):
                found[item.device] = bcd_device.Partition.of_mbr(
                    number or 0, item.start
                )
        elif table == 'gpt':
            names = dict(_gpt_names(guest, drive))
            for item in guest.partitions(drive):
                if item.start in names:
                    found[item.device] = names[item.start]
    return found


def _gpt_names(
    guest: guest_room.Guest, drive: str
) -> Iterator[tuple[int, bcd_device.Partition]]:
    """The partitions of a GPT, by their first byte."""
    head = guest.table_sectors(drive)
    header = head[disk.SECTOR : 2 * disk.SECTOR]
    gpt = disk.parse_gpt(header)
    if gpt is None:
        return
    disk_guid = uuid.UUID(bytes_le=header[56:72])
    data = _gpt_entries(guest, drive, gpt, head)
    for at in range(0, len(data) - 127, gpt.entry_size):
        entry = data[at : at + 128]
        if any(entry[:16]):
            (first,) = struct.unpack_from('<Q', entry, 32)
            partition = uuid.UUID(bytes_le=entry[16:32])
            name = bcd_device.Partition.of_gpt(disk_guid, partition)
            yield first * disk.SECTOR, name


def _gpt_entries(
    guest: guest_room.Guest, drive: str, gpt: disk.Gpt, head: bytes
) -> bytes:
    length = gpt.number * gpt.entry_size
    start = gpt.entries * disk.SECTOR
    if disk.SECTOR < start and start + length <= len(head):
        return head[start : start + length]
    size = int(guest.call('blockdev_getsize64', drive))
    if not disk.SECTOR < start < size:
        return b''
    return guest.read_device(drive, start, length)


def mounted_name(partition: bcd_device.Partition) -> bytes:
    """What MountedDevices has for a partition.

    The signature and the first byte in 12 bytes, or a word and the
    partition's GUID, as in genuine hives.
    """
    if partition.style == bcd_device.MBR:
        return partition.disk[:4] + partition.partition[:8]
    return _GPT_NAME + partition.partition


def parse_mounted_name(data: bytes) -> tuple[int, int] | uuid.UUID | None:
    """A signature and a first byte, or a GUID; None for other devices."""
    if len(data) == 12:
        number, offset = struct.unpack('<IQ', data)
        return number, offset
    if len(data) == 24 and data.startswith(_GPT_NAME):
        return uuid.UUID(bytes_le=data[len(_GPT_NAME) :])
    return None


def system_letter(guest: guest_room.Guest) -> str:
    """The drive letter that Windows gives its own volume: ``C:``."""
    key = system.software_hive(guest).key(_CURRENT_VERSION)
    root = key.text('SystemRoot') if key else ''
    if root[1:2] == ':' and root[0].isascii() and root[0].isalpha():
        return root[:2].upper()
    return 'C:'


def mounted_system(guest: guest_room.Guest) -> registry.Value | None:
    """What the mount manager remembers of Windows' own volume.

    None where it remembers nothing, as after sysprep.
    """
    key = system.system_hive(guest).key(MOUNTED_DEVICES)
    name = f'\\DosDevices\\{system_letter(guest)}'
    return key.value(name) if key else None


def windows_drive(guest: guest_room.Guest) -> str | None:
    """The drive that Windows is on, None where that cannot be told."""
    try:
        return guest.drive_of(system.volume(guest).device)
    except exceptions.GuestError:
        return None


def shown(data: bytes) -> str:
    """A name in MountedDevices, for a person."""
    name = parse_mounted_name(data)
    if isinstance(name, uuid.UUID):
        return f'the partition {name}'
    if name is None:
        return data[:24].hex(' ') or 'nothing'
    return (
        f'the partition at byte {name[1]} of the disk with the signature '
        f'{name[0]:#010x}'
    )
