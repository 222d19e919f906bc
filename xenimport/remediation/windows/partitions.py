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


"""Partitions that cannot be worked on, and the one that is booted.

Sources: Microsoft's list of partition types (``PARTITION_INFORMATION_GPT``
and the MBR's 0x42) for dynamic disks; libbde's description of the format
for BitLocker's signatures. Neither has been tried on a real such disk.
"""

from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Sequence
import uuid

from xenimport.guest import guest as guest_room
from xenimport import model
from xenimport.remediation import base
from xenimport.remediation import disk
from xenimport.remediation.windows import base as windows_base
from xenimport.remediation.windows import boot

#: Partitions of the Logical Disk Manager: its database, its volumes.
_DYNAMIC = frozenset(
    (
        '0x42',
        '5808C8AA-7E8F-42E0-85D2-E1E90434CFB3',
        'AF9B60A0-1431-4F62-BC68-3311714A69AD',
    )
)
_BITLOCKER = b'-FVE-FS-'
#: BitLocker To Go looks like FAT, with this at its offset.
_TO_GO = uuid.UUID('4967d63b-2e29-4ad8-8399-f6a339e3d001').bytes_le
_TO_GO_AT = 424
_TABLE = 446
_ENTRY = 16
_ACTIVE = 0x80


def _severity(guest: guest_room.Guest) -> model.Severity:
    """Of what hides a volume: Windows was found, or it is behind it."""
    if boot.windows_partition(guest) is None:
        return model.Severity.BLOCKER
    return model.Severity.WARNING


class BitLocker(base.Check):
    """A volume that is encrypted with BitLocker."""

    id = 'windows.bitlocker'
    title = 'No volume is encrypted with BitLocker'

    def diagnose(self, guest: guest_room.Guest) -> Iterator[model.Finding]:
        for drive in guest.drives:
            devices = [item.device for item in guest.partitions(drive)]
            for device in devices or [drive]:
                if is_bitlocker(boot.head(guest, device)):
                    yield self._finding(guest, device)

    def _finding(self, guest: guest_room.Guest, device: str) -> model.Finding:
        return model.Finding(
            self.id,
            _severity(guest),
            'A volume is encrypted with BitLocker',
            f'the first sector of {device} has its signature',
            'in the guest on Xen run "manage-bde -off C:" (with the '
            'volume\'s letter), wait until "manage-bde -status" says that '
            'it is fully decrypted, shut it down with '
            '"shutdown /s /f /t 0", and export it again; or have the '
            'recovery key at hand where it holds data only',
            subject=device,
        )


def is_bitlocker(sector: bytes) -> bool:
    """Whether a volume starts as BitLocker's volumes do."""
    return sector[3:11] == _BITLOCKER or (
        sector[_TO_GO_AT : _TO_GO_AT + len(_TO_GO)] == _TO_GO
    )


class DynamicDisk(base.Check):
    """A disk that Windows' Logical Disk Manager divides."""

    id = 'windows.dynamic-disk'
    title = 'No disk is a dynamic disk'

    def diagnose(self, guest: guest_room.Guest) -> Iterator[model.Finding]:
        for drive in guest.drives:
            found = [
                f'{item.number}: {item.type}'
                for item in guest.partitions(drive)
                if item.type in _DYNAMIC
            ]
            if found:
                yield model.Finding(
                    self.id,
                    _severity(guest),
                    'A disk is a dynamic disk',
                    f'{drive}: partition ' + ', '.join(found),
                    'on Xen, back up the disk and restore it onto a basic '
                    'disk (Windows converts an empty disk only), and export '
                    'the guest again',
                    subject=drive,
                )


class BootDisk(windows_base.WindowsCheck):
    """The boot files on another disk than the one that is booted."""

    id = 'windows.boot-disk'
    title = 'The boot files are on the first disk'

    def examine(self, guest: guest_room.Guest) -> Iterator[model.Finding]:
        partition = boot.system_partition(guest)
        if partition is None:
            yield self._none(guest)
            return
        drive = boot.drive_of(guest, partition)
        if drive != guest.drives[0]:
            yield model.Finding(
                self.id,
                model.Severity.BLOCKER,
                'The boot files are not on the first disk',
                f'they are on {partition.device}; the disk that is booted '
                f'is {guest.drives[0]}',
                'make that disk the first one of the virtual machine on Xen '
                'and export it again',
                subject=partition.device,
                loss='the server boots only if it is started from a volume '
                'made of that disk',
            )

    def _none(self, guest: guest_room.Guest) -> model.Finding:
        kind = boot.firmware(guest)
        wanted = (
            'EFI system partition'
            if kind is model.Firmware.UEFI
            else ('primary partition with a file system of Windows')
        )
        return model.Finding(
            self.id,
            model.Severity.BLOCKER,
            'No partition can hold the boot files',
            ', '.join(guest.drives) + f': there is no {wanted}',
            'export the guest with all its disks; if it has all, it boots '
            'from none on Xen either',
            subject=guest.drives[0],
        )


class Firmware(windows_base.WindowsCheck):
    """A package that names another firmware than the disk is made for."""

    id = 'windows.firmware'
    title = 'The package names the firmware that the disk is made for'

    def examine(self, guest: guest_room.Guest) -> Iterator[model.Finding]:
        stated = self.request.virtual_system.firmware
        found = boot.firmware(guest)
        if stated is None or stated is found:
            return
        partition = boot.system_partition(guest)
        table = guest.partition_table(boot.windows_drive(guest))
        yield model.Finding(
            self.id,
            model.Severity.WARNING,
            'The disk is made for another firmware than the package names',
            f'the package says {stated.value}; the disk has a partition '
            f'table of type {table}, and its boot files are for '
            f'{found.value}'
            + (f', on {partition.device}' if partition else ''),
            f'nothing: the image gets hw_firmware_type={found.value}',
            subject=guest.drives[0],
        )


class ActivePartition(windows_base.WindowsCheck):
    """The flag that tells the BIOS' boot code what to start."""

    id = 'windows.active-partition'
    title = 'The partition with the boot files is the active one'

    def examine(self, guest: guest_room.Guest) -> Iterator[model.Finding]:
        partition = boot.system_partition(guest)
        if partition is None or _needs_no_flag(guest):
            return
        drive = boot.drive_of(guest, partition)
        sector = guest.head(drive)[: disk.SECTOR]
        if len(sector) < disk.SECTOR or _flagged(sector, partition) == sector:
            return
        yield model.Finding(
            self.id,
            model.Severity.BLOCKER,
            'The partition with the boot files is not the active one, '
            'or not the only one',
            f'{drive}: the flags of its four entries are '
            f'{_flags(sector).hex(" ")}; the boot files are on '
            f'partition {partition.number}',
            f'in the guest on Xen run diskpart: "select disk 0", "select '
            f'partition {partition.number}", "active"',
            subject=drive,
            repair=f'makes partition {partition.number} the active one',
        )

    def repair(
        self, guest: guest_room.Guest, finding: model.Finding
    ) -> Sequence[model.Change]:
        partition = boot.system_partition(guest)
        if partition is None or _needs_no_flag(guest):
            return ()
        drive = boot.drive_of(guest, partition)
        sector = guest.head(drive)[: disk.SECTOR]
        mended = _flagged(sector, partition)
        if len(sector) < disk.SECTOR or mended == sector:
            return ()
        for number in range(4):
            at = _TABLE + number * _ENTRY
            if mended[at] != sector[at]:
                guest.write_device(drive, at, mended[at : at + 1])
        return [
            model.Change(
                self.id,
                drive,
                'sector 0, bytes 446, 462, 478 and 494',
                before=_flags(sector).hex(' '),
                after=_flags(mended).hex(' '),
                reason='the boot code starts the one active partition',
                undo='write the bytes before to the same places',
            )
        ]


def _needs_no_flag(guest: guest_room.Guest) -> bool:
    return boot.firmware(guest) is not model.Firmware.BIOS


def _flagged(sector: bytes, partition: guest_room.Partition) -> bytes:
    """The sector with this partition active and no other."""
    made = bytearray(sector)
    for number in range(4):
        own = number + 1 == partition.number
        made[_TABLE + number * _ENTRY] = _ACTIVE if own else 0
    return bytes(made)


def _flags(sector: bytes) -> bytes:
    return sector[_TABLE : _TABLE + 4 * _ENTRY : _ENTRY]
