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


"""The default entry's loader, and its settings for tests and repair."""

from __future__ import annotations

import struct
import unittest

from xenimport import model
from xenimport.remediation.windows import boot_loader
from xenimport.tests import bcd_stores
from xenimport.tests.unit.remediation import windows_boot
from xenimport.tests.unit.remediation import windows_fakes

LOADER = 'Windows/System32/winload.exe'
PATH = f'Objects\\{bcd_stores.LOADER}\\Elements\\12000002'
ROOT = f'Objects\\{bcd_stores.LOADER}\\Elements\\22000002'


def program(machine: int) -> bytes:
    data = bytearray(windows_boot.PROGRAM)
    data[0x44:0x46] = struct.pack('<H', machine)
    return bytes(data)


class LoaderTest(unittest.TestCase):
    def setUp(self) -> None:
        self.check = boot_loader.BootLoader(windows_boot.request())

    def diagnose(
        self, guest: windows_fakes.FakeWindows
    ) -> list[model.Finding]:
        return list(self.check.diagnose(windows_boot.real(guest)))

    def guest_with(
        self, key: str, text: str | None
    ) -> windows_fakes.FakeWindows:
        store = windows_boot.genuine()
        del store[key]
        if text is not None:
            bcd_stores.put_element(
                store, bcd_stores.LOADER, key[-8:], bcd_stores.text(text)
            )
        return windows_boot.guest(store)

    def assert_repaired(
        self, guest: windows_fakes.FakeWindows, key: str, text: str
    ) -> None:
        (finding,) = self.diagnose(guest)
        self.assertEqual(model.Severity.BLOCKER, finding.severity)
        self.assertEqual(key, finding.subject)
        changes = self.check.repair(windows_boot.real(guest), finding)
        self.assertTrue(all(key in change.path for change in changes))
        guest.commit()
        tree = guest.hive('/dev/sda1', 'Boot/BCD')
        self.assertEqual(text, tree[key][0].text)
        self.assertEqual([], self.diagnose(guest))
        self.assertEqual(
            [], list(self.check.repair(windows_boot.real(guest), finding))
        )

    def test_sound(self) -> None:
        for text in (
            '\\Windows\\system32\\winload.exe',
            '\\WINDOWS\\SYSTEM32\\WINLOAD.EXE',
        ):
            self.assertEqual([], self.diagnose(self.guest_with(PATH, text)))
        for text in ('\\Windows', '\\WINDOWS\\'):
            self.assertEqual([], self.diagnose(self.guest_with(ROOT, text)))

    def test_sound_uefi(self) -> None:
        store = bcd_stores.store(
            'uefi', windows_boot.GPT_SYSTEM, windows_boot.GPT_WINDOWS
        )
        guest = windows_boot.guest(store, uefi=True)
        self.assertEqual([], self.diagnose(guest))

    def test_other_path_that_is_there(self) -> None:
        # Windows has a second copy in System32\Boot.
        store = windows_boot.genuine()
        text = '\\Windows\\system32\\boot\\winload.exe'
        bcd_stores.put_element(
            store, bcd_stores.LOADER, '12000002', bcd_stores.text(text)
        )
        path = 'Windows/System32/Boot/winload.exe'
        guest = windows_boot.guest(store, files={path: windows_boot.PROGRAM})
        self.assertEqual([], self.diagnose(guest))
        guest = windows_boot.guest(store, files={path: program(0x14C)})
        (finding,) = self.diagnose(guest)
        self.assertIn('0x014c', finding.evidence)

    def test_wrong_path(self) -> None:
        for text in (
            None,
            '',
            '\\Windows\\system32\\winload.efi',
            '\\Windows\\nowhere\\winload.exe',
            '\\..\\winload.exe',
            'x' * 10_000 + '.exe',
        ):
            self.assert_repaired(
                self.guest_with(PATH, text),
                PATH,
                '\\Windows\\system32\\winload.exe',
            )

    def test_bios_loader_on_uefi(self) -> None:
        store = bcd_stores.store(
            'uefi', windows_boot.GPT_SYSTEM, windows_boot.GPT_WINDOWS
        )
        text = '\\Windows\\system32\\winload.exe'
        bcd_stores.put_element(
            store, bcd_stores.LOADER, '12000002', bcd_stores.text(text)
        )
        # Both are there in every Windows.
        guest = windows_boot.guest(
            store, uefi=True, files={LOADER: windows_boot.PROGRAM}
        )
        (finding,) = self.diagnose(guest)
        self.check.repair(windows_boot.real(guest), finding)
        guest.commit()
        tree = guest.hive('/dev/sda1', 'EFI/Microsoft/Boot/BCD')
        self.assertEqual(
            '\\Windows\\system32\\winload.efi', tree[PATH][0].text
        )

    def test_wrong_root(self) -> None:
        for text in (None, '', '\\WINNT', '\\'):
            self.assert_repaired(
                self.guest_with(ROOT, text), ROOT, '\\Windows'
            )

    def test_one_finding_one_element(self) -> None:
        store = windows_boot.genuine()
        for key in (PATH, ROOT):
            store[key] = []
        guest = windows_boot.guest(store)
        for finding in reversed(self.diagnose(guest)):
            (change,) = self.check.repair(windows_boot.real(guest), finding)
            self.assertEqual(
                f'BCD\\{finding.subject}, value Element', change.path
            )

    def test_no_loader_at_all(self) -> None:
        guest = windows_boot.guest(windows_boot.genuine())
        del guest.files[f'/sda2/{LOADER}']
        (finding,) = self.diagnose(guest)
        self.assertEqual(model.Severity.BLOCKER, finding.severity)
        self.assertIsNone(finding.repair)
        self.assertIn('/dev/sda2', finding.evidence)
        self.assertEqual(
            [], list(self.check.repair(windows_boot.real(guest), finding))
        )

    def test_machine(self) -> None:
        for data, architecture, word in (
            (program(0x8664), 'x86_64', None),
            (program(0x014C), 'i386', None),
            (program(0xAA64), 'aarch64', None),
            (program(0x014C), 'x86_64', 'machine 0x014c'),
            (program(0x8664), 'i386', 'machine 0x8664'),
            (b'', 'x86_64', 'no PE file'),
            (b'MZ', 'x86_64', 'no PE file'),
            (b'ZM' + windows_boot.PROGRAM[2:], 'x86_64', 'no PE file'),
            (b'MZ' + b'\xff' * 100, 'x86_64', 'no PE file'),
            (windows_boot.PROGRAM[:0x44], 'x86_64', 'no PE file'),
        ):
            guest = windows_boot.guest(
                windows_boot.genuine(),
                files={LOADER: data},
                architecture=architecture,
            )
            findings = self.diagnose(guest)
            self.assertEqual(word is not None, bool(findings), data[:2])
            for finding in findings:
                self.assertIn(word or '', finding.evidence)
                self.assertIsNone(finding.repair)

    def test_store_is_of_no_use(self) -> None:
        self.assertEqual([], self.diagnose(windows_boot.guest()))
        self.assertEqual([], self.diagnose(windows_boot.guest({'': []})))


class FlagsTest(unittest.TestCase):
    def options(self, *elements: tuple[str, tuple[int, bytes]]) -> list[str]:
        store = windows_boot.genuine()
        for digits, value in elements:
            bcd_stores.put_element(store, bcd_stores.LOADER, digits, value)
        check = boot_loader.BootFlags(windows_boot.request())
        guest = windows_boot.real(windows_boot.guest(store))
        found = list(check.diagnose(guest))
        for finding in found:
            self.assertEqual(model.Severity.WARNING, finding.severity)
            self.assertIsNone(finding.repair)
        return [finding.subject for finding in found]

    def test_none(self) -> None:
        self.assertEqual([], self.options())
        no = bcd_stores.boolean(False)
        self.assertEqual([], self.options(('16000049', no), ('16000048', no)))

    def test_each(self) -> None:
        # Numbers: Microsoft's BcdLibraryElementTypes and
        # BcdOSLoaderElementTypes.
        yes = bcd_stores.boolean(True)
        for digits, option in (
            ('16000049', 'testsigning'),
            ('16000048', 'nointegritychecks'),
            ('260000a0', 'debug'),
            ('260000A0', 'debug'),
            ('16000010', 'bootdebug'),
        ):
            self.assertEqual([option], self.options((digits, yes)))

    def test_safe_mode_is_a_kind(self) -> None:
        for kind in (0, 1, 2):
            self.assertEqual(
                ['safeboot'],
                self.options(('25000080', bcd_stores.integer(kind))),
            )

    def test_wrong_types(self) -> None:
        self.assertEqual([], self.options(('25000080', (4, b'\1\0\0\0'))))
