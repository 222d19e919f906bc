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


"""Where the boot files of a Windows guest are, and who reads them.

Sources: the UEFI specification for the ESP; Microsoft's "Boot and UEFI"
for BOOTMGR and bootmgfw.efi, and its "Windows and GPT FAQ": Windows
starts from a GPT under UEFI alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Mapping

from xenimport import exceptions
from xenimport.guest import guest as guest_room
from xenimport.guest import registry
from xenimport.guest import volumes
from xenimport import model
from xenimport.remediation import base

#: The type of an EFI system partition, in a GPT and in an MBR.
ESP_TYPES = frozenset(('C12A7328-F81F-11D2-BA4B-00A0C93EC93B', '0xef'))
MANAGERS = {
    model.Firmware.UEFI: 'EFI/Microsoft/Boot/bootmgfw.efi',
    model.Firmware.BIOS: 'bootmgr',
}
_STORES = {
    model.Firmware.UEFI: 'EFI/Microsoft/Boot/BCD',
    model.Firmware.BIOS: 'Boot/BCD',
}
#: Partitions that an MBR itself names; only those can be active.
_PRIMARY = 4


def firmware(guest: guest_room.Guest) -> model.Firmware:
    """The firmware that the disks are made for.

    Where there are boot files for both, or for none, the table of the
    drive that Windows is on decides.
    """
    uefi = _has_files_for(guest, model.Firmware.UEFI)
    gpt = guest.partition_table(windows_drive(guest)) == 'gpt'
    if uefi and gpt:
        return model.Firmware.UEFI
    if uefi != _has_files_for(guest, model.Firmware.BIOS):
        return model.Firmware.UEFI if uefi else model.Firmware.BIOS
    return model.Firmware.UEFI if gpt else model.Firmware.BIOS


def _has_files_for(guest: guest_room.Guest, kind: model.Firmware) -> bool:
    return any(has_boot_files(guest, item, kind) for item in _all(guest, kind))


def windows_drive(guest: guest_room.Guest) -> str:
    """The drive that Windows is on; the first one where nobody knows.

    A dynamic volume, for one, is on no partition.
    """
    partition = windows_partition(guest)
    return drive_of(guest, partition) if partition else guest.drives[0]


def windows_partition(
    guest: guest_room.Guest,
) -> guest_room.Partition | None:
    """Windows' own partition; None where it is on none, as if dynamic."""
    found = guest.operating_system
    if found is None:
        return None
    for drive in guest.drives:
        for partition in guest.partitions(drive):
            if partition.device == found.root:
                return partition
    return None


def drive_of(guest: guest_room.Guest, partition: guest_room.Partition) -> str:
    """The drive that a partition is on."""
    return next(
        drive
        for drive in guest.drives
        if any(
            item.device == partition.device for item in guest.partitions(drive)
        )
    )


def _all(
    guest: guest_room.Guest, kind: model.Firmware
) -> Iterator[guest_room.Partition]:
    """Every partition that can be the system partition, best place first."""
    drives = list(guest.drives)
    if kind is model.Firmware.UEFI:
        # The firmware looks at every drive: Windows' own comes first.
        drives.sort(key=lambda drive: drive != windows_drive(guest))
    for drive in drives:
        partitions = guest.partitions(drive)
        if kind is model.Firmware.UEFI:
            yield from (part for part in partitions if part.type in ESP_TYPES)
        elif guest.partition_table(drive) == 'msdos':
            primary = [
                part
                for part in partitions
                if part.number <= _PRIMARY and part.type not in ESP_TYPES
            ]
            yield from sorted(primary, key=lambda part: not part.bootable)


def volume_of(
    guest: guest_room.Guest, partition: guest_room.Partition
) -> volumes.Volume | None:
    """A partition's volume; None where it has none that can be read.

    The partitions that are searched are not all Windows' own, and one of
    them may well be damaged.
    """
    try:
        return guest.volume(partition.device)
    except exceptions.GuestError:
        return None


def head(guest: guest_room.Guest, device: str) -> bytes:
    """The first sectors of a partition; none where it is not there.

    A damaged table names partitions that the disk does not have, which
    other checks tell of.
    """
    try:
        return guest.head(device)
    except exceptions.GuestError:
        return b''


def has_boot_files(
    guest: guest_room.Guest,
    partition: guest_room.Partition,
    kind: model.Firmware,
) -> bool:
    """Whether a boot manager or its BCD is there."""
    volume = volume_of(guest, partition)
    return volume is not None and (
        bool(volume.size(MANAGERS[kind])) or volume.is_file(_STORES[kind])
    )


def system_partition(
    guest: guest_room.Guest,
) -> guest_room.Partition | None:
    """Microsoft's word for where the boot files are, or belong.

    Under UEFI an ESP. Under BIOS the partition with boot files, active or
    not (a check sees to that), the active one of several; without any
    boot files the active one, or else Windows' own.

    None where there is none that could be it.
    """
    kind = firmware(guest)
    candidates = list(_all(guest, kind))
    for partition in candidates:
        if has_boot_files(guest, partition, kind):
            return partition
    if kind is model.Firmware.UEFI:
        return candidates[0] if candidates else None
    active = [part for part in candidates if part.bootable]
    own = windows_partition(guest)
    readable = [part for part in active if volume_of(guest, part)]
    if readable:
        return readable[0]
    return own if own in candidates else None


def system_volume(guest: guest_room.Guest) -> volumes.Volume | None:
    """The system partition's volume."""
    partition = system_partition(guest)
    return volume_of(guest, partition) if partition else None


def store_path(guest: guest_room.Guest) -> str:
    """Where the BCD is in the system volume."""
    return _STORES[firmware(guest)]


def store(guest: guest_room.Guest) -> registry.Hive | None:
    """The BCD, None where there is none.

    :raises GuestError: ``registry.*``, if it is damaged
    """
    volume = system_volume(guest)
    if volume is None:
        return None
    return guest.registry.open(volume, store_path(guest), 'BCD')


def is_before_vista(guest: guest_room.Guest) -> bool:
    """Whether NTLDR and boot.ini start it, which no check looks at."""
    found = guest.operating_system
    return found is not None and found.major < 6


def firmware_and_machine(
    guest: guest_room.Guest, request: base.Request
) -> Mapping[str, str]:
    """What hardware() says of the firmware; the machine follows from it."""
    if guest.windows is None:
        return {}
    return {'firmware': firmware(guest).value}
