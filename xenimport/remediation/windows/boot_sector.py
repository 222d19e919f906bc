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


"""The boot sector of the partition that a BIOS starts Windows from.

Measured with genuine boot managers: with wrong hidden sectors on this
partition the boot hangs in silence; on any other they do no harm.
"""

from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Sequence
import struct

from xenimport import exceptions
from xenimport.guest import guest as guest_room
from xenimport.guest import ntfs
from xenimport import model
from xenimport.remediation import disk
from xenimport.remediation.windows import base as windows_base
from xenimport.remediation.windows import boot

#: What the loader of Windows Vista and later has in it: the name of the
#: file that it loads, on NTFS and on FAT.
_LOADERS = ('BOOTMGR'.encode('utf-16-le'), b'BOOTMGR')
_FAT32 = b'FAT32   '
_FAT32_AT = 82
#: Which sector of FAT32 has the copy of the boot sector, as it says.
_FAT32_BACKUP_AT = 50


class _SystemSector(windows_base.WindowsCheck):
    """A check of the first sectors of the BIOS' system partition."""

    def _partition(
        self, guest: guest_room.Guest
    ) -> guest_room.Partition | None:
        if boot.firmware(guest) is not model.Firmware.BIOS:
            return None
        return boot.system_partition(guest)


class HiddenSectors(_SystemSector):
    """Where the boot sector believes that it is on the disk."""

    id = 'windows.hidden-sectors'
    title = 'The boot sector knows where its partition starts'

    def examine(self, guest: guest_room.Guest) -> Iterator[model.Finding]:
        partition = self._partition(guest)
        if partition is None:
            return
        sector = guest.head(partition.device)[: disk.SECTOR]
        expected = partition.start // disk.SECTOR
        found = _hidden(sector)
        if found is None or found == expected:
            return
        yield model.Finding(
            self.id,
            model.Severity.BLOCKER,
            'The boot sector has another place for its partition than the '
            'partition table',
            f'{partition.device}: {found} hidden sectors at offset 0x1c; the '
            f'partition starts at sector {expected}',
            'from an installation medium of Windows on Xen run '
            '"bootsect /nt60 SYS"',
            subject=partition.device,
            repair=f'writes {expected} there, and in the backup',
        )

    def repair(
        self, guest: guest_room.Guest, finding: model.Finding
    ) -> Sequence[model.Change]:
        partition = self._partition(guest)
        if partition is None:
            return ()
        expected = partition.start // disk.SECTOR
        if expected >> 32:
            return ()
        return [
            self._write(guest, partition, number, found, expected)
            for number, found in _copies(guest, partition)
            if found != expected
        ]

    def _write(
        self,
        guest: guest_room.Guest,
        partition: guest_room.Partition,
        number: int,
        found: int,
        expected: int,
    ) -> model.Change:
        """Patch the copy in one sector of the partition."""
        guest.write_device(
            partition.device,
            number * disk.SECTOR + ntfs.HIDDEN_SECTORS,
            struct.pack('<I', expected),
        )
        return model.Change(
            self.id,
            partition.device,
            f'sector {number}, bytes 28-31',
            before=str(found),
            after=str(expected),
            reason='the boot code reads the disk from there',
            undo='write the number before to the same place',
        )


def _hidden(sector: bytes) -> int | None:
    """The field of a boot sector of NTFS or FAT; None of anything else."""
    if len(sector) < disk.SECTOR or sector[510:512] != ntfs.SIGNATURE:
        return None
    fat = sector[54:57] == b'FAT' or sector[82:85] == b'FAT'
    if sector[3:11] != ntfs.NAME and not fat:
        return None
    found: int = struct.unpack_from('<I', sector, ntfs.HIDDEN_SECTORS)[0]
    return found


def _copies(
    guest: guest_room.Guest, partition: guest_room.Partition
) -> Iterator[tuple[int, int]]:
    """The sectors with the boot sector in them, and what each says."""
    first = guest.head(partition.device)[: disk.SECTOR]
    numbers = [0]
    if first[3:11] == ntfs.NAME:
        numbers.append(partition.size // disk.SECTOR - 1)
    elif first[_FAT32_AT : _FAT32_AT + 8] == _FAT32:
        numbers += struct.unpack_from('<H', first, _FAT32_BACKUP_AT)
    for number in dict.fromkeys(numbers):
        sector = guest.read_device(
            partition.device, number * disk.SECTOR, disk.SECTOR
        )
        found = _hidden(sector)
        if found is not None:
            yield number, found


class VolumeBootRecord(_SystemSector):
    """The loader in the first sectors of the system partition."""

    id = 'windows.boot-sector'
    title = 'The boot sector of the system partition loads BOOTMGR'

    def examine(self, guest: guest_room.Guest) -> Iterator[model.Finding]:
        partition = self._partition(guest)
        if partition is None or boot.is_before_vista(guest):
            return
        data = guest.head(partition.device)
        wrong = _wrong(data, partition)
        if wrong:
            yield model.Finding(
                self.id,
                model.Severity.BLOCKER,
                'The boot sector of the system partition cannot start Windows',
                f'{partition.device}: ' + '; '.join(wrong),
                'from an installation medium of Windows on Xen run '
                '"bootsect /nt60 SYS", and export the guest again',
                subject=partition.device,
                loss='the server will not boot from this disk',
            )


def _wrong(data: bytes, partition: guest_room.Partition) -> list[str]:
    """What is wrong with a boot sector and the loader behind it."""
    wrong = []
    if data[510:512] != ntfs.SIGNATURE:
        wrong.append('it does not end with 55 aa')
    if _hidden(data[: disk.SECTOR]) is None:
        wrong.append('it is not one of NTFS or FAT')
        return wrong
    if not any(loader in data for loader in _LOADERS):
        wrong.append('there is no loader that looks for BOOTMGR')
    try:
        parsed = ntfs.parse_boot_sector(data[: disk.SECTOR])
    except exceptions.GuestError as error:
        wrong.append(f'it has {error.found}')
        return wrong
    if parsed is not None:
        sectors = partition.size // parsed.sector_size
        if parsed.total_sectors >= sectors:
            wrong.append(
                f'its file system has {parsed.total_sectors} sectors, and '
                f'the partition {sectors}'
            )
    return wrong
