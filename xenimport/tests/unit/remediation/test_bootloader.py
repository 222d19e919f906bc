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


from __future__ import annotations

import os
import struct
import unittest
from unittest import mock

from xenimport import exceptions
from xenimport import model
from xenimport.remediation.linux import boot_files
from xenimport.remediation.linux import bootloader
from xenimport.remediation.linux import grub_layout
from xenimport.tests.unit.remediation import fakes

_GRUB_CFG = """\
set default="1"
menuentry 'Old' {
\tlinux /boot/vmlinuz-5 root=/dev/xvda1 ro
}
menuentry 'New' --class debian {
\tlinux /boot/vmlinuz-6 root=/dev/xvda1 ro console=hvc0
\tinitrd /boot/initrd.img-6
}
"""
_MENU_LST = """\
default 0
# kopt=root=/dev/xvda1 ro
title Debian
root (hd0,0)
kernel /boot/vmlinuz-6 root=/dev/xvda1 ro quiet
initrd /boot/initrd.img-6
"""


def master_boot_record(
    start: int = 2048, code: bytes = b'', active: bool = False
) -> bytes:
    """A disk of 2200 sectors with one partition."""
    disk = bytearray(2200 * 512)
    disk[: len(code)] = code
    disk[440:444] = b'\xde\xad\xbe\xef'
    entry = struct.pack(
        '<B3sB3sII', 0x80 if active else 0, b'\0' * 3, 0x83, b'\0' * 3,
        start, 2200 - start
    )  # fmt: skip
    disk[446:462] = entry
    disk[510:512] = b'\x55\xaa'
    return bytes(disk)


class BootFilesTest(unittest.TestCase):
    def test_entries_of_grub_cfg(self) -> None:
        old, new = boot_files.entries(_GRUB_CFG)
        self.assertEqual(
            ('Old', '/boot/vmlinuz-5', None),
            (old.title, old.kernel, old.initrd),
        )
        self.assertEqual('/boot/initrd.img-6', new.initrd)
        self.assertEqual(('root=/dev/xvda1', 'ro'), old.arguments)
        self.assertEqual(1, boot_files.default_entry(_GRUB_CFG))

    def test_entries_of_menu_lst(self) -> None:
        (entry,) = boot_files.entries(_MENU_LST)
        self.assertEqual('Debian', entry.title)
        self.assertEqual('/boot/initrd.img-6', entry.initrd)

    def test_edits_kernel_lines_only(self) -> None:
        editor = boot_files.with_argument('net.ifnames=0')
        self.assertEqual(
            _MENU_LST.replace('ro quiet', 'ro quiet net.ifnames=0').replace(
                '# kopt=root=/dev/xvda1 ro',
                '# kopt=root=/dev/xvda1 ro net.ifnames=0',
            ),
            boot_files.edit(_MENU_LST, 'legacy', editor),
        )

    def test_edits_the_defaults(self) -> None:
        text = "GRUB_CMDLINE_LINUX_DEFAULT='quiet'\nGRUB_CMDLINE_LINUX=''\n"
        self.assertEqual(
            "GRUB_CMDLINE_LINUX_DEFAULT='quiet'\nGRUB_CMDLINE_LINUX='a=1'\n",
            boot_files.edit(text, 'default', boot_files.with_argument('a=1')),
        )

    def test_with_argument_replaces_its_like(self) -> None:
        editor = boot_files.with_argument('net.ifnames=0')
        self.assertEqual(
            ['ro', 'net.ifnames=0'], editor(['net.ifnames=1', 'ro'])
        )

    def test_a_link_counts_once(self) -> None:
        guest = fakes.FakeGuest(
            {'/boot/grub/grub.conf': _MENU_LST},
            links={'/boot/grub/menu.lst': 'grub.conf'},
        )
        self.assertEqual(1, len(boot_files.find(guest)))


class LayoutTest(unittest.TestCase):
    def test_boot_sector(self) -> None:
        old = master_boot_record()[:512]
        boot = bytes([0xAB]) * 512
        new = grub_layout.patch_boot_sector(old, boot, 0x123456789A)
        # GRUB's documented places: 0x5c the sector of core.img, 0x64 the
        # drive, 0x66 the check of it; 0x1b8 the disk's own.
        self.assertEqual(bytes.fromhex('9a78563412000000'), new[0x5C:0x64])
        self.assertEqual(0xFF, new[0x64])
        self.assertEqual(b'\x90\x90', new[0x66:0x68])
        self.assertEqual(old[0x1B8:], new[0x1B8:])
        self.assertEqual(old[3:0x5A], new[3:0x5A])
        self.assertEqual(boot[:3], new[:3])
        self.assertEqual(boot[0x68:0x1B8], new[0x68:0x1B8])

    def test_core(self) -> None:
        core = bytes([0xCD]) * (5 * 512 + 7)
        new = grub_layout.patch_core(core, 34)
        self.assertEqual(6 * 512, len(new))
        # The rest of it: five sectors from 35 on, loaded at 0x8200.
        self.assertEqual(
            bytes.fromhex('2300000000000000 0500 2008'), new[500:512]
        )
        self.assertEqual(core[:500], new[:500])
        self.assertEqual(core[512:], new[512 : len(core)])

    def test_refuses_what_is_not_grub(self) -> None:
        for arguments in ((b'', b'', 1), (bytes(512), bytes(512), 1)):
            with self.assertRaises(grub_layout.LayoutError):
                grub_layout.patch_boot_sector(*arguments)
        for size in (512, 1 << 20):
            with self.assertRaises(grub_layout.LayoutError):
                grub_layout.patch_core(bytes(size), 1)


class BootCodeTest(unittest.TestCase):
    def setUp(self) -> None:
        super().setUp()
        self.check = bootloader.BootCode(fakes.request())
        made = mock.patch.object(
            bootloader, 'make_core', autospec=True, side_effect=self._core
        )
        made.start()
        self.addCleanup(made.stop)
        if not os.path.exists(f'{bootloader.GRUB_DIRECTORY}/boot.img'):
            self.skipTest('no GRUB for BIOS here')

    def _core(self, uuid: str, path: str, names: list[str]) -> bytes:
        self.assertEqual(('aaaa-1111', '/boot/grub/grub.cfg'), (uuid, path))
        large = len(names) > 12
        return b'\xc0' * (500 * 512 if large else 100 * 512)

    def _guest(self, disk: bytes) -> fakes.FakeGuest:
        return fakes.FakeGuest(
            disks={'/dev/sda': disk}, system=fakes.operating_system()
        )

    def test_no_code(self) -> None:
        guest = self._guest(master_boot_record())
        found, changes, left = fakes.run(self.check, guest)
        self.assertIn('no boot code', found[0].evidence)
        self.assertEqual('sectors 0 and 1-500', changes[0].path)
        self.assertEqual([], left)
        self.assertEqual(
            b'\xde\xad\xbe\xef', bytes(guest.disks['/dev/sda'][440:444])
        )
        self.assertEqual(
            1, grub_layout.core_sector(bytes(guest.disks['/dev/sda'][:512]))
        )

    def test_a_small_gap_takes_the_small_core(self) -> None:
        guest = self._guest(master_boot_record(start=400))
        _found, changes, left = fakes.run(self.check, guest)
        self.assertEqual('sectors 0 and 1-100', changes[0].path)
        self.assertEqual([], left)

    def test_no_room(self) -> None:
        guest = self._guest(master_boot_record(start=63))
        found, changes, _left = fakes.run(self.check, guest)
        self.assertIsNone(found[0].repair)
        self.assertIn('room for GRUB 2: 62 sectors', found[0].evidence)
        self.assertEqual([], changes)
        with self.assertRaises(exceptions.GuestError):
            self.check.repair(
                self._guest(master_boot_record(start=63)), found[0]
            )

    def test_grub_without_its_core(self) -> None:
        code = bytearray(440)
        code[:2] = b'\xeb\x63'
        code[0x5C:0x64] = struct.pack('<Q', 1)
        code[0x180:0x184] = b'GRUB'
        guest = self._guest(master_boot_record(code=bytes(code)))
        (finding,) = self.check.diagnose(guest)
        self.assertIn('loads sector 1, which is empty', finding.evidence)
        guest.disks['/dev/sda'][512:516] = b'core'
        self.assertEqual([], list(self.check.diagnose(guest)))

    def test_generic_code(self) -> None:
        disk = bytearray(master_boot_record(code=b'\xfa\x33', active=True))
        (finding,) = self.check.diagnose(self._guest(bytes(disk)))
        self.assertIn('starts the active partition', finding.evidence)
        disk[2048 * 512 : 2048 * 512 + 2] = b'\xeb\x58'
        disk[2048 * 512 + 510 : 2049 * 512] = b'\x55\xaa'
        self.assertEqual(
            [], list(self.check.diagnose(self._guest(bytes(disk))))
        )

    def test_uefi_needs_none(self) -> None:
        check = bootloader.BootCode(
            fakes.request(firmware=model.Firmware.UEFI)
        )
        guest = self._guest(master_boot_record())
        self.assertEqual([], list(check.diagnose(guest)))


class BootConfigurationTest(unittest.TestCase):
    def setUp(self) -> None:
        super().setUp()
        self.check = bootloader.BootConfiguration(fakes.request())
        self.files: dict[str, str | bytes] = {
            '/boot/vmlinuz-6': b'',
            '/boot/initrd.img-6': b'',
        }

    def _guest(self, **fields: object) -> fakes.FakeGuest:
        system = fakes.operating_system(kernels=('6',), **fields)
        return fakes.FakeGuest(
            self.files,
            disks={'/dev/sda': master_boot_record()},
            system=system,
        )

    def test_names_root_by_uuid(self) -> None:
        self.files['/boot/grub/grub.cfg'] = _GRUB_CFG
        guest = self._guest()
        found, changes, left = fakes.run(self.check, guest)
        self.assertIn(
            '/boot/grub/grub.cfg:3: root=/dev/xvda1', found[0].evidence
        )
        self.assertEqual(1, len(changes))
        self.assertEqual([], left)
        self.assertEqual(
            _GRUB_CFG.replace('root=/dev/xvda1', 'root=UUID=aaaa-1111'),
            guest.read_text('/boot/grub/grub.cfg'),
        )

    def test_another_system_is_not_made_this_one(self) -> None:
        text = _GRUB_CFG + _GRUB_CFG.replace('xvda1', 'xvdq1')
        self.files['/boot/grub/grub.cfg'] = text
        guest = self._guest()
        found, changes, left = fakes.run(self.check, guest)
        self.assertEqual(
            [model.Severity.BLOCKER, model.Severity.NOTE],
            [finding.severity for finding in found],
        )
        self.assertIn('root=/dev/xvdq1', found[1].evidence)
        self.assertEqual(1, len(changes))
        self.assertEqual([found[1]], left)
        edited = guest.read_text('/boot/grub/grub.cfg')
        self.assertIn('root=/dev/xvdq1', edited)
        self.assertIn('root=UUID=aaaa-1111', edited)
        self.assertNotIn('root=/dev/xvda1', edited)

    def test_default_entry_of_another_system_blocks(self) -> None:
        text = _GRUB_CFG.replace('xvda1', 'xvdq1') + _GRUB_CFG
        self.files['/boot/grub/grub.cfg'] = text
        found, _changes, left = fakes.run(self.check, self._guest())
        self.assertEqual(model.Severity.BLOCKER, left[0].severity)
        self.assertIsNone(left[0].repair)

    def test_only_root_is_the_one_that_was_found(self) -> None:
        # The letters have a gap: xvde is the first disk of the package.
        self.files['/boot/grub/grub.cfg'] = _GRUB_CFG.replace('xvda1', 'xvde1')
        guest = self._guest()
        _found, _changes, left = fakes.run(self.check, guest)
        self.assertEqual([], left)
        self.assertIn(
            'root=UUID=aaaa-1111', guest.read_text('/boot/grub/grub.cfg')
        )

    def test_entry_file_of_another_system_is_left(self) -> None:
        # The Boot Loader Specification: one file an entry.
        for name, device in (('a', 'xvda1'), ('b', 'xvdq1')):
            self.files[f'/boot/loader/entries/{name}.conf'] = (
                f'title {name}\nlinux /boot/vmlinuz-6\n'
                f'initrd /boot/initrd.img-6\noptions root=/dev/{device} ro\n'
            )
        guest = self._guest()
        _found, _changes, left = fakes.run(self.check, guest)
        self.assertIn(
            'root=UUID=aaaa-1111',
            guest.read_text('/boot/loader/entries/a.conf'),
        )
        self.assertIn(
            'root=/dev/xvdq1', guest.read_text('/boot/loader/entries/b.conf')
        )
        self.assertIn('xvdq1', left[-1].evidence)

    def test_one_root_in_several_files_is_mended_in_all(self) -> None:
        # A gap in the letters: the order of the disks tells nothing.
        for path, text in (('grub.cfg', _GRUB_CFG), ('menu.lst', _MENU_LST)):
            self.files[f'/boot/grub/{path}'] = text.replace('xvda1', 'xvde1')
        guest = self._guest()
        _found, _changes, left = fakes.run(self.check, guest)
        self.assertEqual([], left)
        for path in ('grub.cfg', 'menu.lst'):
            text = guest.read_text(f'/boot/grub/{path}')
            self.assertIn('root=UUID=aaaa-1111', text)
            self.assertNotIn('xvde1', text)

    def test_hostile_default_and_form_feed(self) -> None:
        self.files['/boot/grub/menu.lst'] = (
            'default ' + '9' * 5000 + '\n' + _MENU_LST
        ).replace('ro quiet\n', 'ro quiet\x0c\n')
        guest = self._guest()
        _found, _changes, left = fakes.run(self.check, guest)
        self.assertEqual([], left)

    def test_makes_one_from_menu_lst(self) -> None:
        self.files['/boot/grub/menu.lst'] = _MENU_LST
        guest = self._guest()
        found, _changes, left = fakes.run(self.check, guest)
        self.assertEqual(
            ['/boot/grub/menu.lst', 'grub.cfg'], [f.subject for f in found]
        )
        self.assertEqual([], left)
        made = guest.read_text('/boot/grub/grub.cfg')
        self.assertIn(
            '\tlinux /boot/vmlinuz-6 root=UUID=aaaa-1111 ro quiet\n', made
        )
        self.assertIn('\tinitrd /boot/initrd.img-6\n', made)
        self.assertIn('--fs-uuid --set=root aaaa-1111\n', made)

    def test_makes_one_from_the_kernels(self) -> None:
        guest = self._guest()
        _found, _changes, left = fakes.run(self.check, guest)
        self.assertEqual([], left)
        self.assertIn(
            'linux /boot/vmlinuz-6 root=UUID=aaaa-1111 ro',
            guest.read_text('/boot/grub/grub.cfg'),
        )

    def test_keeps_one_that_names_a_removed_kernel(self) -> None:
        text = _GRUB_CFG.replace('vmlinuz-6', 'vmlinuz-7')
        self.files['/boot/grub/grub.cfg'] = text.replace('xvda1', 'vg/r')
        guest = self._guest()
        found, _changes, left = fakes.run(self.check, guest)
        self.assertIn('/boot/vmlinuz-7, which does not', found[0].evidence)
        self.assertEqual([], left)
        self.assertIn('/boot/grub/grub.cfg.before-xenimport', guest.files)

    def test_boot_of_its_own(self) -> None:
        self.files['/boot/grub/menu.lst'] = _MENU_LST.replace('/boot/', '/')
        guest = self._guest(
            mountpoints={'/': '/dev/sda2', '/boot': '/dev/sda1'},
            root='/dev/sda2',
        )
        guest.uuids['/dev/sda2'] = 'bbbb-2222'
        _found, _changes, left = fakes.run(self.check, guest)
        self.assertEqual([], left)
        made = guest.read_text('/boot/grub/grub.cfg')
        self.assertIn('\tlinux /vmlinuz-6 root=UUID=bbbb-2222 ', made)
        self.assertIn('--set=root aaaa-1111\n', made)

    def test_kernels_in_a_boot_of_its_own(self) -> None:
        guest = self._guest(
            mountpoints={'/': '/dev/sda2', '/boot': '/dev/sda1'},
            root='/dev/sda2',
        )
        guest.uuids['/dev/sda2'] = 'bbbb-2222'
        _found, _changes, left = fakes.run(self.check, guest)
        self.assertEqual([], left)
        made = guest.read_text('/boot/grub/grub.cfg')
        self.assertIn('\tlinux /vmlinuz-6 root=UUID=bbbb-2222 ro\n', made)

    def test_a_title_cannot_add_commands(self) -> None:
        entry = boot_files.Entry("x' {\nreboot #", '/k', (), None)
        made = bootloader.make_configuration([entry], 'u')
        self.assertNotIn('\nreboot', made)

    def test_nothing_to_do(self) -> None:
        self.files['/boot/grub/grub.cfg'] = _GRUB_CFG.replace(
            '/dev/xvda1', 'UUID=aaaa-1111'
        )
        self.assertEqual([], list(self.check.diagnose(self._guest())))
