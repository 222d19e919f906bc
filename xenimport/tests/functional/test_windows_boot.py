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


"""Windows' boot path for real: NTFS volumes, tables, boot code.

Needs python3-guestfs, QEMU, ntfs-3g (mkntfs, ntfscluster, ntfsinfo,
ntfssecaudit),
dosfstools, fdisk and, for the boot code, binutils; runs under TCG.
"""

from __future__ import annotations

import json
import pathlib
import re
import struct
import subprocess
import tempfile
import time
import typing
import unittest

from xenimport import exceptions
from xenimport.guest import guest as guest_room
from xenimport.guest import session
from xenimport import model
from xenimport.remediation import base
from xenimport.remediation.windows import boot
from xenimport.remediation.windows import boot_files
from xenimport.remediation.windows import boot_sector
from xenimport.remediation.windows import master_boot_code
from xenimport.remediation.windows import partitions
from xenimport.remediation.windows import volumes

_SECTOR = 512
#: Start and length in sectors.
_SYSTEM = (2048, 32768)
_WINDOWS = (34816, 65536)
_ESP = (2048, 20480)
_DISK = 112640 * _SECTOR
_BOOTMGR = 'BOOTMGR'.encode('utf-16-le')
_CHECKS: tuple[type[base.Check], ...] = (
    volumes.NtfsHibernated,
    volumes.NtfsDirty,
    volumes.NtfsDamaged,
    partitions.BitLocker,
    partitions.DynamicDisk,
    partitions.Firmware,
    partitions.BootDisk,
    partitions.ActivePartition,
    master_boot_code.MasterBootCode,
    boot_sector.HiddenSectors,
    boot_sector.VolumeBootRecord,
    boot_files.BootManager,
    boot_files.UefiFallback,
)
#: The start of a PE for AMD64 ([MS] PE format: machine 0x8664).
_PROGRAM = (
    b'MZ'.ljust(0x3C, b'\0') + b'\x40\0\0\0' + b'PE\0\0\x64\x86'
).ljust(512, b'\0')
#: Security identifiers as they are stored: S-1-1-0 is everyone,
#: S-1-5-32-544 the administrators, S-1-5-32-545 the users.
_EVERYONE = bytes.fromhex('010100000000000100000000')
_ADMINISTRATORS = bytes.fromhex('01020000000000052000000020020000')
_USERS = bytes.fromhex('01020000000000052000000021020000')
#: Read and execute, as an access mask.
_READ = struct.pack('<I', 0x1200A9)


def _run(*command: typing.Any) -> str:
    done = subprocess.run(
        [str(part) for part in command],
        check=True,
        capture_output=True,
        stdin=subprocess.DEVNULL,
    )
    return done.stdout.decode()


def _journal(in_use: bool, major: int) -> bytes:
    """A restart page of $LogFile, 2 MiB long, as NTFS describes it.

    Source: the structures in the Linux kernel's fs/ntfs/logfile.h.
    """
    page = bytearray(4096)
    struct.pack_into(
        '<4sHHQIIHhh', page, 0,
        b'RSTR', 0x1E, 9, 0, 4096, 4096, 0x30, 2 - major, major,
    )  # fmt: skip
    struct.pack_into(
        '<QHHHHIHHQIHHII', page, 0x30,
        0x100000, 1, 0xFFFF if in_use else 0, 0 if in_use else 0xFFFF,
        0 if in_use else 2, 45, 0xE0, 0x40, 2 << 20, 0, 0x30, 0x40, 1, 0,
    )  # fmt: skip
    struct.pack_into(
        '<QQHHH6xI', page, 0x70, 0x100000, 0x100000, 0xFFFF, 0xFFFF, 0, 8
    )
    page[0x90:0x98] = 'NTFS'.encode('utf-16-le')
    page[0x1E:0x20] = b'\x01\x00'
    for block in range(8):
        end = (block + 1) * 512 - 2
        page[0x20 + 2 * block : 0x22 + 2 * block] = page[end : end + 2]
        page[end : end + 2] = b'\x01\x00'
    return bytes(page) * 2


class WindowsBootTest(unittest.TestCase):
    """One appliance, two disks: an MBR of Windows 7, a GPT of Windows 10."""

    def setUp(self):
        super().setUp()
        directory = tempfile.TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        self.directory = pathlib.Path(directory.name)
        self.mbr = self.directory / 'mbr.raw'
        self.gpt = self.directory / 'gpt.raw'
        self.make(
            self.mbr,
            'label: dos\nlabel-id: 0x12345678\n'
            f'start={_SYSTEM[0]}, size={_SYSTEM[1]}, type=7, bootable\n'
            f'start={_WINDOWS[0]}, size={_WINDOWS[1]}, type=7\n',
        )
        self.make(
            self.gpt,
            f'label: gpt\nstart={_ESP[0]}, size={_ESP[1]}, type=U\n'
            f'start={_WINDOWS[0]}, size={_WINDOWS[1]}, '
            'type=EBD0A0A2-B9E5-4433-87C0-68B6B72699C7\n',
        )
        # -C: the root directory hands down compression.
        self.ntfs(self.mbr, _SYSTEM, '-C')
        self.journal = self.ntfs(self.mbr, _WINDOWS)
        self.ntfs(self.gpt, _WINDOWS)
        self.fat(self.gpt, _ESP)

    def make(self, path: pathlib.Path, script: str) -> None:
        with open(path, 'wb') as stream:
            stream.truncate(_DISK)
        subprocess.run(
            ['/usr/sbin/sfdisk', '--quiet', path],
            input=script.encode(),
            check=True,
        )

    def put(self, disk: pathlib.Path, place: tuple[int, int]) -> None:
        data = (self.directory / 'part').read_bytes()
        with open(disk, 'r+b') as stream:
            stream.seek(place[0] * _SECTOR)
            stream.write(data)

    def blank(self, place: tuple[int, int]) -> pathlib.Path:
        path = self.directory / 'part'
        with open(path, 'wb') as stream:
            stream.truncate(place[1] * _SECTOR)
        return path

    def ntfs(
        self, disk: pathlib.Path, place: tuple[int, int], *more: str
    ) -> int:
        """An NTFS with Windows' mark; gives where its journal is."""
        path = self.blank(place)
        _run(
            '/usr/sbin/mkntfs', '-q', '-F', '-s', 512, '-H', 255, '-S', 63,
            '-p', place[0], *more, path,
        )  # fmt: skip
        with open(path, 'r+b') as stream:
            stream.seek(_SECTOR)
            stream.write(struct.pack('<H', 7) + _BOOTMGR)
        self.put(disk, place)
        found = _run('ntfscluster', '-f', '-F', '$LogFile', path)
        row = re.search(r'VCN +LCN +Length\s+0 +(\d+) ', found)
        self.assertIsNotNone(row, found)
        return int(row.group(1)) * 4096

    def fat(self, disk: pathlib.Path, place: tuple[int, int]) -> None:
        _run('/usr/sbin/mkfs.vfat', self.blank(place))
        self.put(disk, place)

    def fill(
        self, device: str, files: dict[str, bytes], how: str = ''
    ) -> None:
        """Put files into a volume, without anything of xenimport's."""
        call = self.appliance.call
        call('umount_all')
        call('mkmountpoint', '/fill')
        call('mount_options', how, device, '/fill')
        for path, data in files.items():
            call('mkdir_p', f'/fill/{path.rpartition("/")[0]}')
            call('rm_f', f'/fill/{path}')
            call('write', f'/fill/{path}', data)
        call('umount', '/fill')
        call('rmmountpoint', '/fill')

    def guest(self, root: str) -> guest_room.Guest:
        """The guest, opened anew; it need not be found: it is told."""
        self.appliance.call('umount_all')
        for place in ('/sda1', '/sda2', '/sdb1', '/sdb2'):
            try:
                self.appliance.call('rmmountpoint', place)
            except exceptions.GuestError:
                pass
        guest = guest_room.Guest(self.appliance)
        guest.operating_system = model.OperatingSystem(
            'windows', 'windows', 6, 1, 'Windows 7', 'x86_64', root
        )
        return guest

    def checks(self, *accept: str) -> list[base.Check]:
        """The checks of this step, with what the user accepts."""
        package = model.Package('p', 'disk')
        request = base.Request(
            model.VirtualSystem('v', package, ()), accept=frozenset(accept)
        )
        return [check(request) for check in self.kinds]

    def found(
        self, guest: guest_room.Guest, checks: list[base.Check]
    ) -> list[tuple[base.Check, model.Finding]]:
        return [
            (check, finding)
            for check in checks
            for finding in check.diagnose(guest)
        ]

    def ids(self, guest: guest_room.Guest, *accept: str) -> list[str]:
        found = self.found(guest, self.checks(*accept))
        return [f'{item.id} {item.subject}' for _check, item in found]

    def repair(
        self, guest: guest_room.Guest, *accept: str
    ) -> list[model.Change]:
        changes: list[model.Change] = []
        for check, finding in self.found(guest, self.checks(*accept)):
            if finding.repair:
                changes += check.repair(guest, finding)
                self.assertEqual(
                    [], list(check.repair(guest, finding)), finding.id
                )
        return changes

    def device(self, device: str, offset: int, data: bytes) -> None:
        self.appliance.call('pwrite_device', device, data, offset)

    def test_boot_path(self):
        work = self.directory / 'work'
        work.mkdir()
        self.appliance = session.Appliance(
            [session.Drive(str(self.mbr)), session.Drive(str(self.gpt))],
            str(work),
        )
        self.addCleanup(self.appliance._kill)
        self.appliance.start()
        self.fill(
            '/dev/sda1',
            {'BootMgr': b'x' * 9000, 'Boot/BCD': b'regf'},
            'nocompression',
        )
        self.fill('/dev/sda2', {'Windows/System32/drivers/a.sys': b'MZ'})
        self.fill('/dev/sdb2', {'Windows/System32/drivers/a.sys': b'MZ'})
        self.fill('/dev/sdb1', {'EFI/Microsoft/Boot/bootmgfw.efi': _PROGRAM})
        self.kinds = _CHECKS
        self.bios_disk()
        self.uefi_disk()
        self.encrypted()
        self.kinds = (partitions.ActivePartition,)
        self.flags()
        self.kinds = (boot_sector.HiddenSectors, boot_files.BootManager)
        self.hidden()
        self.compressed()
        self.new_files()
        self.kinds = (volumes.NtfsHibernated, volumes.NtfsDirty)
        self.journal_open()
        self.cached()
        self.hibernated()
        self.appliance.close()
        self.judge()

    def bios_disk(self):
        guest = self.guest('/dev/sda2')
        self.assertIs(model.Firmware.BIOS, boot.firmware(guest))
        self.assertEqual('/dev/sda1', boot.system_partition(guest).device)
        self.assertEqual(
            '/sda1/Boot/BCD',
            boot.system_volume(guest).path(boot.store_path(guest)),
        )
        # Nothing wrote any boot code so far.
        self.assertEqual(['windows.boot-code /dev/sda'], self.ids(guest))
        before = guest.read_device('/dev/sda', 0, _SECTOR)
        self.assertEqual(1, len(self.repair(guest)))
        after = guest.read_device('/dev/sda', 0, _SECTOR)
        self.assertEqual(before[440:], after[440:])
        self.assertEqual([], self.ids(guest))

    def flags(self):
        for wrong in (b'\0\0', b'\x80\x80', b'\0\x80'):
            self.device('/dev/sda', 446, wrong[:1])
            self.device('/dev/sda', 462, wrong[1:])
            guest = self.guest('/dev/sda2')
            self.assertEqual(
                ['windows.active-partition /dev/sda'], self.ids(guest)
            )
            self.assertEqual(1, len(self.repair(guest)))
            self.assertEqual([], self.ids(guest))

    def hidden(self):
        last = (_SYSTEM[1] - 1) * _SECTOR
        for place in (0, last):
            self.device('/dev/sda1', place + 0x1C, b'\x3f\0\0\0')
        guest = self.guest('/dev/sda2')
        self.assertEqual(['windows.hidden-sectors /dev/sda1'], self.ids(guest))
        self.assertEqual(2, len(self.repair(guest)))
        self.assertEqual([], self.ids(self.guest('/dev/sda2')))
        for place in (0, last):
            self.assertEqual(
                (2048).to_bytes(4, 'little'),
                guest.read_device('/dev/sda1', place + 0x1C, 4),
            )

    def compressed(self):
        self.fill('/dev/sda1', {'BootMgr': b'x' * 90000})
        guest = self.guest('/dev/sda2')
        ((_check, finding),) = self.found(guest, self.checks())
        self.assertEqual('windows.boot-manager', finding.id)
        self.assertIn('is compressed', finding.evidence)
        volume = guest.volume('/dev/sda1')
        volume.remove('BOOTMGR')
        volume.write('BOOTMGR', b'y' * 90000)
        self.assertEqual([], self.ids(guest))

    def uefi_disk(self):
        guest = self.guest('/dev/sdb2')
        self.assertIs(model.Firmware.UEFI, boot.firmware(guest))
        self.assertEqual('/dev/sdb1', boot.system_partition(guest).device)
        fallback = 'windows.uefi-fallback /dev/sdb1 \\EFI\\BOOT\\BOOTX64.EFI'
        self.assertEqual(
            ['windows.boot-disk /dev/sdb1', fallback], self.ids(guest)
        )
        self.assertEqual(1, len(self.repair(guest)))
        guest = self.guest('/dev/sdb2')
        self.assertEqual(['windows.boot-disk /dev/sdb1'], self.ids(guest))
        volume = guest.volume('/dev/sdb1')
        self.assertEqual(_PROGRAM, volume.read('efi\\boot\\bootx64.efi'))

    def new_files(self):
        """A new file has what its directory hands down, not Everyone."""
        guest = self.guest('/dev/sda2')
        volume = guest.windows
        volume.write('windows/SYSTEM32/Drivers/old.sys', b'old')
        volume.write('Made/By/us.sys', b'MZ')
        volume.copy('made/by/US.SYS', 'Made/copy.sys')
        volume.write('MADE/BY/US.sys', b'MZ again')
        root = self.descriptor(volume, '')
        self.assertIn(_USERS, root)
        for path in ('Made', 'made/by', 'made/by/us.sys', 'made/copy.sys'):
            found = self.descriptor(volume, path)
            self.assertNotIn(_EVERYONE, found, path)
            self.assertIn(_READ + bytes.fromhex('01020000'), found, path)
            self.assertIn(_USERS, found, path)
            owner = int.from_bytes(found[4:8], 'little')
            self.assertEqual(_ADMINISTRATORS, found[owner : owner + 16])
        self.assertEqual(b'MZ again', volume.read('made/by/us.sys'))
        self.assertTrue(volume.remove('MADE'))
        volume.forget()
        self.assertFalse(volume.exists('Made'))
        self.assertEqual({}, dict(volume.listing('made')))

    def descriptor(self, volume: typing.Any, path: str) -> bytes:
        return self.appliance.call(
            'getxattr', volume.path(path), 'system.ntfs_acl'
        )

    def journal_open(self):
        self.unmount()
        self.device('/dev/sda2', self.journal, _journal(False, 1))
        self.assertEqual([], self.ids(self.guest('/dev/sda2')))
        self.unmount()
        self.device('/dev/sda2', self.journal, _journal(True, 1))
        guest = self.guest('/dev/sda2')
        ((check, finding),) = self.found(guest, self.checks())
        self.assertEqual('windows.ntfs-dirty', finding.id)
        self.assertIn('is open', finding.evidence)
        self.assertIsNone(finding.repair)
        self.assertEqual(1, len(self.repair(guest, 'windows.ntfs-dirty')))
        # What is left is the mark that ntfsfix set.
        guest = self.guest('/dev/sda2')
        ((check, finding),) = self.found(guest, self.checks())
        self.assertIn('dirty flag', finding.evidence)
        self.assertIs(model.Severity.BLOCKER, finding.severity)
        accepted = self.checks('windows.ntfs-dirty')
        ((check, finding),) = self.found(guest, accepted)
        self.assertIs(model.Severity.NOTE, finding.severity)
        guest.windows.write('still/marked', b'')
        self.assertEqual(
            ['windows.ntfs-dirty /dev/sda2'],
            self.ids(self.guest('/dev/sda2')),
        )

    def cached(self):
        """A journal of version 2: Windows 8 and later had it open."""
        self.unmount()
        self.device('/dev/sda2', self.journal, _journal(True, 2))
        self.hibernation('the journal')

    def hibernated(self):
        self.unmount()
        self.fill('/dev/sda2', {'hiberfil.sys': b'HIBR' + bytes(9000)})
        self.hibernation('hiberfil.sys is active')
        self.assertFalse(
            self.guest('/dev/sda2').windows.exists('HIBERFIL.SYS')
        )

    def hibernation(self, evidence: str) -> None:
        guest = self.guest('/dev/sda2')
        found = self.found(guest, self.checks())
        self.assertEqual(
            ['windows.ntfs-hibernated', 'windows.ntfs-dirty'],
            [finding.id for _check, finding in found],
        )
        self.assertIn(evidence, found[0][1].evidence)
        with self.assertRaises(exceptions.GuestError) as caught:
            guest.windows.write('refused', b'')
        self.assertEqual('guest.volume-read-only', caught.exception.id)
        accept = 'windows.ntfs-hibernated'
        guest = self.guest('/dev/sda2')
        self.assertEqual(1, len(self.repair(guest, accept)))
        guest.windows.write('taken', b'')
        guest = self.guest('/dev/sda2')
        ((_check, finding),) = self.found(guest, self.checks(accept))
        self.assertEqual('windows.ntfs-dirty', finding.id)
        self.assertIs(model.Severity.NOTE, finding.severity)

    def unmount(self) -> None:
        self.appliance.call('umount_all')

    def encrypted(self):
        """No Windows is found behind these."""
        self.unmount()
        self.device('/dev/sda2', 3, b'-FVE-FS-')
        self.device('/dev/sda', 462 + 4, b'\x42')
        guest = self.guest('/dev/sda2')
        guest.operating_system = None
        self.assertEqual(
            ['windows.bitlocker /dev/sda2', 'windows.dynamic-disk /dev/sda'],
            self.ids(guest),
        )
        self.device('/dev/sda2', 3, b'NTFS    ')
        self.device('/dev/sda', 462 + 4, b'\x07')

    def judge(self) -> None:
        """What other programs say of the disks in the end."""
        table = json.loads(_run('/usr/sbin/sfdisk', '--json', self.mbr))
        self.assertEqual(
            [True, None],
            [
                item.get('bootable')
                for item in table['partitiontable']['partitions']
            ],
        )
        self.assertEqual('0x12345678', table['partitiontable']['id'])
        with open(self.mbr, 'rb') as stream:
            stream.seek(_WINDOWS[0] * _SECTOR)
            data = stream.read(_WINDOWS[1] * _SECTOR)
        part = self.directory / 'part'
        part.write_bytes(data)
        self.assertRegex(
            _run('ntfsinfo', '-f', '-m', part), r'Volume Flags: 0x0001'
        )
        audit = _run('ntfssecaudit', '-r', part, '/')
        self.assertIn('No errors were found', audit)


_TESTED = """
        .code16
        .intel_syntax noprefix
        mov     bl, dl
        mov     dx, 0x3F8
        mov     al, 'O'
        out     dx, al
        mov     al, 'K'
        out     dx, al
        mov     al, bl
        out     dx, al
        mov     al, [si + 4]
        out     dx, al
        mov     dx, 0x501
        out     dx, al
        hlt
"""


class BootCodeTest(unittest.TestCase):
    """The boot code, assembled anew, and run by SeaBIOS."""

    def setUp(self):
        super().setUp()
        directory = tempfile.TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        self.directory = pathlib.Path(directory.name)

    def assemble(self, source: pathlib.Path, address: int) -> bytes:
        made = self.directory / 'made.o'
        _run('as', '--32', '-o', made, source)
        _run(
            'ld', '-m', 'elf_i386', f'-Ttext={address:#x}', '--oformat',
            'binary', '-e', '0', '-o', self.directory / 'made', made,
        )  # fmt: skip
        return (self.directory / 'made').read_bytes()

    def disk(self, active: int | None, start: int = 4096) -> bytearray:
        """A disk with two partitions; the second has a boot sector."""
        source = self.directory / 'tested.s'
        source.write_text(_TESTED)
        data = bytearray(4 << 20)
        data[: len(master_boot_code.CODE)] = master_boot_code.CODE
        for number, (kind, first) in enumerate(((7, 2048), (0x27, start))):
            struct.pack_into(
                '<B3sB3sII', data, 446 + 16 * number,
                0x80 if number == active else 0, b'\xfe\xff\xff', kind,
                b'\xfe\xff\xff', first, 2048,
            )  # fmt: skip
        data[510:512] = b'\x55\xaa'
        sector = self.assemble(source, 0x7C00).ljust(510, b'\0')
        data[4096 * 512 : 4097 * 512] = sector + b'\x55\xaa'
        return data

    def run_it(self, data: bytes, last: bytes) -> bytes:
        """What the machine says on its serial port, up to ``last``."""
        path = self.directory / 'disk.raw'
        path.write_bytes(data)
        machine = subprocess.Popen(
            [
                'qemu-system-x86_64', '-accel', 'tcg', '-m', '64',
                '-machine', 'pc,graphics=off', '-display', 'none',
                '-monitor', 'none', '-nic', 'none', '-serial', 'stdio',
                '-device', 'isa-debug-exit,iobase=0x501',
                '-drive', f'file={path},format=raw,if=ide',
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
        )  # fmt: skip
        self.addCleanup(machine.wait)
        self.addCleanup(machine.kill)
        self.addCleanup(machine.stdout.close)
        said = b''
        deadline = time.monotonic() + 60
        while last not in said and time.monotonic() < deadline:
            piece = machine.stdout.read1(4096)
            if not piece:
                break
            said += piece
        self.assertIn(last, said)
        return said

    def test_source_gives_these_bytes(self):
        source = pathlib.Path(master_boot_code.__file__).with_suffix('.s')
        self.assertEqual(master_boot_code.CODE, self.assemble(source, 0x600))
        self.assertLessEqual(len(master_boot_code.CODE), 440)

    def test_active_partition_is_started(self):
        # The drive in DL, and SI at the entry: its type is read there.
        self.run_it(bytes(self.disk(1)), b'OK\x80\x27')

    def test_without_an_active_partition(self):
        self.run_it(bytes(self.disk(None)), b'No partition')

    def test_without_a_boot_sector(self):
        self.run_it(bytes(self.disk(0)), b'no boot sector')

    def test_behind_the_end_of_the_disk(self):
        self.run_it(bytes(self.disk(1, 1 << 30)), b'cannot be read')
