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


"""Firmware, partition table, boot code and boot files of Windows guests."""

from __future__ import annotations

import struct
import typing
import unittest
import uuid

from xenimport import exceptions
from xenimport.guest import guest as guest_room
from xenimport import model
from xenimport.remediation import base
from xenimport.remediation.windows import boot
from xenimport.remediation.windows import boot_files
from xenimport.remediation.windows import boot_sector
from xenimport.remediation.windows import master_boot_code
from xenimport.remediation.windows import partitions
from xenimport.remediation.windows import release
from xenimport.remediation.windows import volumes
from xenimport.tests.unit.guest import test_ntfs
from xenimport.tests.unit.remediation import windows_fakes

_ESP = 'C12A7328-F81F-11D2-BA4B-00A0C93EC93B'
_BASIC = 'EBD0A0A2-B9E5-4433-87C0-68B6B72699C7'
_SIZE = 2048 * 512
#: No control set and no version: what asks for one goes on without.
_HIVES: dict[str, typing.Any] = {
    '/dev/sda2': {
        f'Windows/System32/config/{name}': {'': []}
        for name in ('SYSTEM', 'SOFTWARE')
    }
}
_MANAGER = 'EFI/Microsoft/Boot/bootmgfw.efi'
_FALLBACK = '\\EFI\\BOOT\\BOOTX64.EFI'


def program(machine: int) -> bytes:
    """The start of a PE ([MS] PE format): its header is at 0x80."""
    header = b'MZ'.ljust(0x3C, b'\0') + struct.pack('<I', 0x80)
    return header.ljust(0x80, b'\0') + b'PE\0\0' + struct.pack('<H', machine)


def mbr(*active: int, code: bytes = b'\xeb\x63\x90') -> bytes:
    """A first sector whose entries with these numbers are active."""
    sector = bytearray(512)
    sector[: len(code)] = code
    sector[440:446] = b'\x78\x56\x34\x12\0\0'
    for number, start in ((1, 2048), (2, 206848)):
        struct.pack_into(
            '<B3sB3sII', sector, 430 + 16 * number,
            0x80 if number in active else 0, b'\xfe\xff\xff', 7,
            b'\xfe\xff\xff', start, 32768,
        )  # fmt: skip
    sector[510:] = b'\x55\xaa'
    return bytes(sector)


def volume(hidden: int = 2048, total: int = 2047) -> bytearray:
    """A system partition as Windows 7 formats it."""
    data = bytearray(_SIZE)
    sector = test_ntfs.boot_sector(hidden=hidden, total=total)
    data[:512] = data[-512:] = sector
    data[512:528] = b'\x07\0' + 'BOOTMGR'.encode('utf-16-le')
    return data


def partition(
    number: int, kind: str = '0x07', active: bool = False, drive: str = 'sda'
) -> guest_room.Partition:
    start = {1: 1 << 20, 2: 101 << 20}.get(number, 200 << 20)
    return guest_room.Partition(
        number, f'/dev/{drive}{number}', start, _SIZE, kind, active
    )


def bios(**more: typing.Any) -> typing.Any:
    """Windows 7: System Reserved on sda1, Windows on sda2."""
    values: dict[str, typing.Any] = {
        'files': {
            '/dev/sda1': {'bootmgr': b'boot manager', 'Boot/BCD': b'regf'},
            '/dev/sda2': {'Windows/Boot/PCAT/bootmgr': b'boot manager'},
        },
        'partitions': (partition(1, active=True), partition(2)),
        'devices': {
            '/dev/sda': mbr(1),
            '/dev/sda1': bytes(volume()),
            '/dev/sda2': test_ntfs.boot_sector(hidden=7),
        },
        'answers': {'getxattr': b'\x26\0\0\0'},
    }
    return windows_fakes.FakeWindows(**{**values, **more})


def uefi(**more: typing.Any) -> typing.Any:
    """Windows 10: an ESP on sda1, Windows on sda2."""
    amd64 = program(0x8664)
    values: dict[str, typing.Any] = {
        'files': {
            '/dev/sda1': {_MANAGER: amd64, 'EFI/Boot/bootx64.efi': amd64},
            '/dev/sda2': {'Windows/Boot/EFI/bootmgfw.efi': amd64},
        },
        'file_systems': {'/dev/sda1': 'vfat'},
        'partitions': (partition(1, _ESP), partition(2, _BASIC)),
        'devices': {
            '/dev/sda': mbr(code=b''),
            '/dev/sda1': bytes(512),
            '/dev/sda2': test_ntfs.boot_sector(hidden=7),
        },
        'table': 'gpt',
        'operating_system': windows_fakes.system(major=10, minor=0),
    }
    return windows_fakes.FakeWindows(**{**values, **more})


def request(
    firmware: model.Firmware | None = None, *accept: str
) -> base.Request:
    package = model.Package('p', 'disk')
    return base.Request(
        model.VirtualSystem('v', package, (), firmware=firmware),
        accept=frozenset(accept),
    )


class CheckTestCase(unittest.TestCase):
    kind: type[base.Check]

    def found(self, patient):
        return list(self.kind(request()).diagnose(patient))

    def one(self, patient):
        (finding,) = self.found(patient)
        self.assertEqual(self.kind.id, finding.id)
        return finding

    def mended(self, patient):
        """Repair, and see that it is good and that once is enough."""
        check = self.kind(request())
        changes: list[model.Change] = []
        for finding in list(check.diagnose(patient)):
            self.assertTrue(finding.repair)
            changes += check.repair(patient, finding)
            self.assertEqual([], list(check.repair(patient, finding)))
        self.assertTrue(changes)
        self.assertEqual({self.kind.id}, {item.finding for item in changes})
        self.assertEqual([], list(check.diagnose(patient)))
        return changes


class FirmwareTest(unittest.TestCase):
    def test_files_decide(self):
        self.assertIs(model.Firmware.BIOS, boot.firmware(bios()))
        self.assertIs(model.Firmware.UEFI, boot.firmware(uefi()))
        # An ESP in an MBR.
        patient = uefi(
            table='msdos', partitions=(partition(1, '0xef'), partition(2))
        )
        self.assertIs(model.Firmware.UEFI, boot.firmware(patient))
        self.assertEqual('/dev/sda1', boot.system_partition(patient).device)
        self.assertEqual(_MANAGER[:-12] + 'BCD', boot.store_path(patient))

    def test_table_decides_without_files(self):
        for made, expected in (
            (uefi, model.Firmware.UEFI),
            (bios, model.Firmware.BIOS),
        ):
            patient = made(files={'/dev/sda1': {}, '/dev/sda2': {}})
            self.assertIs(expected, boot.firmware(patient))
            self.assertEqual(
                '/dev/sda1', boot.system_partition(patient).device
            )

    def test_table_decides_between_both(self):
        both = {
            '/dev/sda1': {_MANAGER: b'MZ'},
            '/dev/sda2': {'bootmgr': b'x'},
        }
        for table, expected in (
            ('gpt', model.Firmware.UEFI),
            ('msdos', model.Firmware.BIOS),
        ):
            patient = uefi(files=both, table=table)
            self.assertIs(expected, boot.firmware(patient))

    def test_nothing_is_a_bios_file_on_a_gpt(self):
        patient = uefi(
            files={'/dev/sda1': {}, '/dev/sda2': {'bootmgr': b'x'}},
            partitions=(partition(2, _BASIC),),
        )
        self.assertIs(model.Firmware.UEFI, boot.firmware(patient))
        self.assertIsNone(boot.system_partition(patient))
        self.assertIsNone(boot.system_volume(patient))
        self.assertIsNone(boot.store(patient))

    def test_hardware(self):
        self.assertEqual(
            {'firmware': 'uefi'},
            boot.firmware_and_machine(uefi(), request()),
        )
        patient = uefi()
        patient.operating_system = None
        self.assertEqual({}, boot.firmware_and_machine(patient, request()))

    def test_finding(self):
        for made, stated in (
            (uefi, model.Firmware.BIOS),
            (bios, model.Firmware.UEFI),
        ):
            other = {'bios': 'uefi', 'uefi': 'bios'}[stated.value]
            check = partitions.Firmware(request(stated))
            (finding,) = check.diagnose(made())
            self.assertEqual('windows.firmware', finding.id)
            self.assertIs(model.Severity.WARNING, finding.severity)
            self.assertIn(f'hw_firmware_type={other}', finding.fix)
            for same in (None, model.Firmware(other)):
                check = partitions.Firmware(request(same))
                self.assertEqual([], list(check.diagnose(made())))


class SystemPartitionTest(unittest.TestCase):
    def place(self, *parts, **files):
        patient = bios(
            files={f'/dev/{name}': found for name, found in files.items()},
            partitions=parts,
            drives=('/dev/sda', '/dev/sdb'),
        )
        found = boot.system_partition(patient)
        return found and found.device

    def test_files_before_flags(self):
        files = {'bootmgr': b'x'}
        one, two = partition(1), partition(2)
        active = partition(2, active=True)
        self.assertEqual('/dev/sda1', self.place(one, active, sda1=files))
        self.assertEqual('/dev/sda1', self.place(one, two, sda1=files))
        store = {'BOOT/bcd': b'regf'}
        self.assertEqual('/dev/sda1', self.place(one, two, sda1=store))

    def test_flag_between_two_with_files(self):
        files = {'bootmgr': b'x'}
        self.assertEqual(
            '/dev/sda2',
            self.place(
                partition(1),
                partition(2, active=True),
                sda1=files,
                sda2=files,
            ),
        )

    def test_without_files(self):
        one, two = partition(1, active=True), partition(2)
        self.assertEqual('/dev/sda1', self.place(one, two, sda1={}))
        self.assertEqual('/dev/sda2', self.place(partition(1), two, sda1={}))
        # Active, but nothing that Windows could read.
        self.assertEqual('/dev/sda2', self.place(one, two))

    def test_logical_partitions_cannot_be_booted(self):
        files = {'bootmgr': b'x'}
        logical = partition(5)
        self.assertEqual(
            '/dev/sda2', self.place(logical, partition(2), sda5=files)
        )

    def test_on_another_disk(self):
        files = {'bootmgr': b'x'}
        other = partition(1, active=True, drive='sdb')
        self.assertEqual(
            '/dev/sdb1', self.place(partition(2), other, sdb1=files)
        )

    def test_esp_of_the_same_disk_first(self):
        files = {_MANAGER: b'MZ'}
        patient = uefi(
            files={'/dev/sda1': files, '/dev/sdb1': files, '/dev/sdb2': {}},
            partitions=(
                partition(1, _ESP),
                partition(1, _ESP, drive='sdb'),
                partition(2, _BASIC, drive='sdb'),
            ),
            drives=('/dev/sda', '/dev/sdb'),
            operating_system=windows_fakes.system(root='/dev/sdb2'),
        )
        self.assertEqual('/dev/sdb1', boot.system_partition(patient).device)

    def test_a_damaged_neighbour(self):
        patient = bios()
        original = patient.volume

        def volume_of(device):
            if device == '/dev/sda1':
                raise exceptions.GuestError('guest.libguestfs-failed', 'no')
            return original(device)

        patient.volume = volume_of
        self.assertEqual('/dev/sda2', boot.system_partition(patient).device)

    def test_windows_elsewhere(self):
        patient = bios(operating_system=windows_fakes.system(root='/dev/sda2'))
        self.assertEqual('/dev/sda', boot.windows_drive(patient))
        patient.operating_system = windows_fakes.system(
            root='/dev/mapper/ldm_vol_x'
        )
        self.assertIsNone(boot.windows_partition(patient))
        self.assertEqual('/dev/sda', boot.windows_drive(patient))


class BootDiskTest(CheckTestCase):
    kind = partitions.BootDisk

    def test_on_the_first(self):
        self.assertEqual([], self.found(bios()))
        self.assertEqual([], self.found(uefi()))

    def test_on_the_second(self):
        patient = bios(
            files={'/dev/sdb1': {'bootmgr': b'x'}},
            partitions=(partition(2), partition(1, drive='sdb')),
            drives=('/dev/sda', '/dev/sdb'),
        )
        finding = self.one(patient)
        self.assertEqual('/dev/sdb1', finding.subject)
        self.assertTrue(finding.loss)

    def test_nowhere(self):
        for patient, wanted in (
            (uefi(partitions=(partition(2, _BASIC),)), 'EFI system'),
            (bios(partitions=(partition(5),)), 'primary'),
        ):
            finding = self.one(patient)
            self.assertIn(wanted, finding.evidence)
            self.assertIsNone(finding.loss)


class HiddenVolumesTest(unittest.TestCase):
    """BitLocker and dynamic disks, with Windows behind them or not."""

    def found(self, kind, patient):
        return list(kind(request()).diagnose(patient))

    def both(self, kind, patient, subject):
        (finding,) = self.found(kind, patient)
        self.assertEqual(subject, finding.subject)
        self.assertIs(model.Severity.WARNING, finding.severity)
        patient.operating_system = None
        (finding,) = self.found(kind, patient)
        self.assertIs(model.Severity.BLOCKER, finding.severity)
        self.assertIsNone(finding.loss)
        return finding

    def test_sound(self):
        for kind in (partitions.BitLocker, partitions.DynamicDisk):
            self.assertEqual([], self.found(kind, bios()))
            self.assertEqual([], self.found(kind, uefi()))

    def test_bitlocker(self):
        patient = bios()
        patient.devices['/dev/sda1'][3:11] = b'-FVE-FS-'
        finding = self.both(partitions.BitLocker, patient, '/dev/sda1')
        self.assertIn('manage-bde -off C:', finding.fix)

    def test_partition_that_is_not_there(self):
        def refuse(device):
            raise exceptions.GuestError('guest.libguestfs-failed', 'no')

        patient = bios()
        patient.head = refuse
        self.assertEqual([], self.found(partitions.BitLocker, patient))
        patient.operating_system = None
        self.assertEqual([], self.found(volumes.NtfsDamaged, patient))

    def test_bitlocker_to_go(self):
        # libbde: the identifier is at 424 of a sector that looks like FAT.
        patient = bios()
        patient.devices['/dev/sda1'][3:11] = b'MSWIN4.1'
        patient.devices['/dev/sda1'][424:440] = uuid.UUID(
            '4967d63b-2e29-4ad8-8399-f6a339e3d001'
        ).bytes_le
        self.both(partitions.BitLocker, patient, '/dev/sda1')

    def test_bitlocker_on_a_whole_disk(self):
        patient = bios(
            drives=('/dev/sda', '/dev/sdb'),
            devices={
                '/dev/sda1': bytes(512),
                '/dev/sda2': bytes(512),
                '/dev/sdb': b'\xeb\x58\x90-FVE-FS-'.ljust(512, b'\0'),
            },
        )
        self.both(partitions.BitLocker, patient, '/dev/sdb')

    def test_dynamic_disks(self):
        for kind in (
            '0x42',
            '5808C8AA-7E8F-42E0-85D2-E1E90434CFB3',
            'AF9B60A0-1431-4F62-BC68-3311714A69AD',
        ):
            patient = bios(partitions=(partition(1, kind), partition(2)))
            finding = self.both(partitions.DynamicDisk, patient, '/dev/sda')
            self.assertIn(kind, finding.evidence)

    def test_windows_on_a_dynamic_volume(self):
        patient = bios(
            partitions=(partition(1, '0x42'),),
            operating_system=windows_fakes.system(root='/dev/sda2'),
        )
        (finding,) = self.found(partitions.DynamicDisk, patient)
        self.assertIs(model.Severity.BLOCKER, finding.severity)


class ActivePartitionTest(CheckTestCase):
    kind = partitions.ActivePartition

    def test_sound(self):
        self.assertEqual([], self.found(bios()))
        self.assertEqual([], self.found(uefi()))

    def test_repair(self):
        for active in ((), (2,), (1, 2)):
            patient = bios()
            patient.devices['/dev/sda'][:] = mbr(*active)
            finding = self.one(patient)
            self.assertEqual('/dev/sda', finding.subject)
            (change,) = self.mended(patient)
            self.assertEqual('80 00 00 00', change.after)
            self.assertEqual(mbr(1), bytes(patient.devices['/dev/sda']))

    def test_nonsense_flags(self):
        patient = bios()
        patient.devices['/dev/sda'][446 + 48] = 0x7F
        (change,) = self.mended(patient)
        self.assertEqual('80 00 00 7f', change.before)

    def test_no_place_for_it(self):
        self.assertEqual([], self.found(bios(partitions=(partition(5),))))


class MasterBootCodeTest(CheckTestCase):
    kind = master_boot_code.MasterBootCode

    def test_sound(self):
        self.assertEqual([], self.found(bios()))
        self.assertEqual([], self.found(uefi()))

    def test_repair(self):
        for filler in (b'\0', b'\xff', b'\xf6'):
            patient = bios()
            patient.devices['/dev/sda'][:440] = filler * 440
            self.mended(patient)
            sector = bytes(patient.devices['/dev/sda'])
            self.assertEqual(mbr(1)[440:], sector[440:])
            self.assertEqual(b'\xfa\x31\xc0', sector[:3])
            self.assertIn(b'No partition of this disk is active', sector)

    def test_other_code_stays(self):
        patient = bios()
        patient.devices['/dev/sda'][:440] = bytes(439) + b'\x01'
        self.assertEqual([], self.found(patient))
        finding = model.Finding('', model.Severity.BLOCKER, '', '', '')
        check = self.kind(request())
        self.assertEqual((), check.repair(patient, finding))
        self.assertEqual((), check.repair(uefi(), finding))


class HiddenSectorsTest(CheckTestCase):
    kind = boot_sector.HiddenSectors

    def test_sound(self):
        # The one of Windows' partition is wrong, and does no harm.
        self.assertEqual([], self.found(bios()))
        self.assertEqual([], self.found(uefi()))

    def test_repair(self):
        patient = bios()
        patient.devices['/dev/sda1'][:] = volume(hidden=63)
        finding = self.one(patient)
        self.assertIn('63 hidden sectors', finding.evidence)
        changes = self.mended(patient)
        self.assertEqual(
            ['sector 0, bytes 28-31', 'sector 2047, bytes 28-31'],
            [change.path for change in changes],
        )
        self.assertEqual(volume(), patient.devices['/dev/sda1'])

    def test_the_backup_alone_is_no_finding(self):
        patient = bios()
        patient.devices['/dev/sda1'][-512 + 0x1C] = 9
        self.assertEqual([], self.found(patient))

    def test_something_else_at_the_end(self):
        patient = bios()
        data = volume(hidden=63)
        data[-512:] = b'data' * 128
        patient.devices['/dev/sda1'][:] = data
        self.assertEqual(1, len(self.mended(patient)))
        self.assertEqual(b'data' * 128, patient.devices['/dev/sda1'][-512:])

    def test_fat32(self):
        """Microsoft's FAT specification: the backup is in sector 6."""
        data = bytearray(_SIZE)
        sector = bytearray(512)
        sector[3:11] = b'MSDOS5.0'
        sector[0x1C] = 63
        sector[50] = 6
        sector[82:90] = b'FAT32   '
        sector[510:] = b'\x55\xaa'
        data[:512] = data[6 * 512 : 7 * 512] = sector
        patient = bios()
        patient.devices['/dev/sda1'][:] = data
        self.assertEqual(2, len(self.mended(patient)))
        self.assertEqual(
            2048, patient.devices['/dev/sda1'][6 * 512 + 0x1D] << 8
        )

    def test_fat16(self):
        """It has no backup, and its name at another place."""
        data = bytearray(_SIZE)
        data[54:62] = b'FAT16   '
        data[510:512] = b'\x55\xaa'
        patient = bios()
        patient.devices['/dev/sda1'][:] = data
        self.assertEqual(1, len(self.mended(patient)))

    def test_other_file_systems(self):
        patient = bios()
        for sector in (
            bytes(512),
            bytes(510) + b'\x55\xaa',
            bytes(test_ntfs.boot_sector(hidden=63)[:510]) + b'\0\0',
        ):
            patient.devices['/dev/sda1'][:512] = sector
            self.assertEqual([], self.found(patient))

    def test_beyond_32_bits(self):
        far = guest_room.Partition(
            1, '/dev/sda1', 1 << 42, _SIZE, '0x07', True
        )
        patient = bios(partitions=(far, partition(2)))
        finding = self.one(patient)
        check = self.kind(request())
        self.assertEqual((), check.repair(patient, finding))


class VolumeBootRecordTest(CheckTestCase):
    kind = boot_sector.VolumeBootRecord

    def wrong(self, data):
        patient = bios()
        patient.devices['/dev/sda1'][: len(data)] = data
        finding = self.one(patient)
        self.assertTrue(finding.loss)
        self.assertIsNone(finding.repair)
        return finding.evidence

    def test_sound(self):
        self.assertEqual([], self.found(bios()))
        self.assertEqual([], self.found(uefi()))

    def test_wrong(self):
        data = volume()
        self.assertIn('not one of NTFS or FAT', self.wrong(bytes(512)))
        self.assertIn('55 aa', self.wrong(data[:510] + b'\0\0'))
        self.assertIn('BOOTMGR', self.wrong(data[:512] + bytes(512)))
        self.assertIn('2048', self.wrong(volume(total=2048)[:512]))
        nonsense = test_ntfs.boot_sector(clusters=3)
        self.assertIn('clusters of 1536 bytes', self.wrong(nonsense))

    def test_old_windows(self):
        patient = bios(operating_system=windows_fakes.system(major=5))
        patient.devices['/dev/sda1'][512:528] = bytes(16)
        self.assertEqual([], self.found(patient))


class BootManagerTest(CheckTestCase):
    kind = boot_files.BootManager

    def test_sound(self):
        self.assertEqual([], self.found(bios()))
        self.assertEqual([], self.found(uefi()))

    def test_wrong(self):
        patient = bios()
        del patient.files['/sda1/bootmgr']
        self.assertIn('is not there', self.one(patient).evidence)
        patient.files['/sda1/bootmgr'] = b''
        patient.volume('/dev/sda1').forget()
        self.assertIn('is empty', self.one(patient).evidence)
        # FILE_ATTRIBUTE_COMPRESSED is 0x800.
        patient = bios(answers={'getxattr': b'\x20\x08\0\0'})
        self.assertIn('is compressed', self.one(patient).evidence)

    def test_no_file_system(self):
        patient = uefi()
        mounted = {'/dev/sda1': None, '/dev/sda2': patient.windows}
        patient.volume = mounted.get
        finding = self.one(patient)
        self.assertIn('cannot be read', finding.evidence)
        self.assertIn('/dev/sda1', finding.subject)
        self.assertIsNone(finding.repair)

    def test_machines(self):
        """Microsoft's PE format: IMAGE_FILE_MACHINE_I386, _ARM64."""
        for architecture, machine in (('i686', 0x14C), ('aarch64', 0xAA64)):
            patient = uefi(
                operating_system=windows_fakes.system(
                    architecture=architecture
                )
            )
            self.assertIn('is for machine', self.one(patient).evidence)
            patient.files[f'/sda1/{_MANAGER}'] = program(machine)
            self.assertEqual([], self.found(patient))

    def test_without_a_copy(self):
        patient = bios()
        del patient.files['/sda1/bootmgr']
        self.assertTrue(self.one(patient).repair)
        del patient.files['/sda2/Windows/Boot/PCAT/bootmgr']
        patient.windows.forget()
        self.assertIsNone(self.one(patient).repair)

    def test_attributes_that_cannot_be_read(self):
        def refuse(path, name):
            raise exceptions.GuestError('guest.libguestfs-failed', 'no')

        for answer in (refuse, b'\xff'):
            self.assertEqual(
                [], self.found(bios(answers={'getxattr': answer}))
            )

    def test_program_of_another_machine(self):
        for data, text in (
            (program(0x14C), '0x014c, not 0x8664'),
            (b'MZ' + bytes(10), 'no program'),
            (b'MZ'.ljust(0x3C, b'\0') + b'\xff\xff\xff\xff', 'no program'),
            (b'MZ'.ljust(4096, b'\0'), 'no program'),
        ):
            patient = uefi()
            patient.files[f'/sda1/{_MANAGER}'] = data
            self.assertIn(text, self.one(patient).evidence)

    def test_repair(self):
        """What is copied is boot_files_copy's matter."""
        for made, path, wrong in (
            (bios, '/sda1/bootmgr', None),
            (bios, '/sda1/bootmgr', b''),
            (uefi, f'/sda1/{_MANAGER}', b'no program'),
        ):
            patient = made(hives=_HIVES)
            del patient.files[path]
            if wrong is not None:
                patient.files[path] = wrong
            self.mended(patient)
            self.assertTrue(patient.files[path])

    def test_compressed_one_is_made_anew(self):
        attributes = {'/sda1/bootmgr': b'\x20\x08\0\0'}
        patient = bios(hives=_HIVES)
        patient.answers['getxattr'] = lambda path, name: attributes[path]

        def remove(path):
            del patient.files[path]
            attributes[path] = b'\x20\0\0\0'

        patient.answers['rm_f'] = remove
        removed, copied = self.mended(patient)
        self.assertEqual('is compressed', removed.before)
        self.assertEqual('\\bootmgr', copied.path)

    def test_old_windows(self):
        patient = bios(operating_system=windows_fakes.system(major=5))
        del patient.files['/sda1/bootmgr']
        self.assertEqual([], self.found(patient))


class UefiFallbackTest(CheckTestCase):
    kind = boot_files.UefiFallback

    def test_sound(self):
        self.assertEqual([], self.found(uefi()))
        self.assertEqual([], self.found(bios()))

    def test_repair(self):
        for left in (None, b''):
            patient = uefi()
            del patient.files['/sda1/EFI/Boot/bootx64.efi']
            if left is not None:
                patient.files['/sda1/EFI/Boot/bootx64.efi'] = left
            finding = self.one(patient)
            self.assertIn(_FALLBACK, finding.subject)
            (change,) = self.mended(patient)
            self.assertEqual(_FALLBACK, change.path)
            self.assertEqual(
                program(0x8664),
                patient.volume('/dev/sda1').read(_FALLBACK),
            )

    def test_architectures(self):
        for architecture, name in (
            ('i386', 'BOOTIA32.EFI'),
            ('aarch64', 'BOOTAA64.EFI'),
        ):
            patient = uefi(
                operating_system=windows_fakes.system(
                    major=10, minor=0, architecture=architecture
                )
            )
            self.assertIn(name, self.one(patient).subject)
        patient = uefi(
            operating_system=windows_fakes.system(architecture='ia64')
        )
        self.assertEqual([], self.found(patient))


class ReleaseTest(CheckTestCase):
    kind = release.Release

    def of(self, major, minor):
        return bios(
            operating_system=windows_fakes.system(major=major, minor=minor)
        )

    def test_known(self):
        for version in ((6, 1), (6, 2), (6, 3), (10, 0)):
            self.assertEqual([], self.found(self.of(*version)))

    def test_too_old(self):
        for version in ((5, 0), (5, 1), (5, 2), (6, 0)):
            finding = self.one(self.of(*version))
            self.assertIs(model.Severity.BLOCKER, finding.severity)
            self.assertTrue(finding.loss)

    def test_newer(self):
        for version in ((6, 4), (10, 1), (11, 0)):
            finding = self.one(self.of(*version))
            self.assertIs(model.Severity.NOTE, finding.severity)

    def test_without_a_name(self):
        patient = bios(
            operating_system=windows_fakes.system(major=5, product='')
        )
        self.assertIn('Windows, version 5.1', self.one(patient).evidence)
