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


"""Boot files, copied as bcdboot copies them.

Source of the expected places: Microsoft's "BCDBoot Command-Line Options".
"""

from __future__ import annotations

import unittest

from xenimport import exceptions
from xenimport import model
from xenimport.guest import registry
from xenimport.remediation.windows import boot_files_copy
from xenimport.tests.unit.remediation import windows_boot
from xenimport.tests.unit.remediation import windows_fakes

PCAT = {
    'Windows/Boot/PCAT/bootmgr': b'MGR',
    'Windows/Boot/PCAT/bootnxt': b'NXT',
    'Windows/Boot/PCAT/memtest.exe': b'MEM',
    'Windows/Boot/PCAT/de-DE/bootmgr.exe.mui': b'DE',
    'Windows/Boot/PCAT/fr-FR/bootmgr.exe.mui': b'FR',
    'Windows/Boot/Fonts/wgl4_boot.ttf': b'TTF',
}
EFI = {
    'Windows/Boot/EFI/bootmgfw.efi': b'MGFW',
    'Windows/Boot/EFI/bootmgr.efi': b'MGR',
    'Windows/Boot/EFI/memtest.efi': b'MEM',
    'Windows/Boot/EFI/de-DE/bootmgfw.efi.mui': b'DE',
    'Windows/Boot/Fonts/wgl4_boot.ttf': b'TTF',
}


def copy(
    guest: windows_fakes.FakeWindows, firmware: model.Firmware
) -> list[model.Change]:
    return boot_files_copy.copy_boot_files(
        windows_boot.real(guest), firmware, 'windows.some-finding'
    )


def files(guest: windows_fakes.FakeWindows) -> dict[str, bytes]:
    return {
        path.removeprefix('/sda1/'): data
        for path, data in guest.files.items()
        if path.startswith('/sda1/')
    }


class CopyTest(unittest.TestCase):
    def test_bios(self) -> None:
        guest = windows_boot.guest(files=PCAT, system_files={'bootmgr': b''})
        changes = copy(guest, model.Firmware.BIOS)
        self.assertEqual(
            {
                'bootmgr': b'MGR',
                'bootnxt': b'NXT',
                'Boot/memtest.exe': b'MEM',
                'Boot/de-DE/bootmgr.exe.mui': b'DE',
                'Boot/Fonts/wgl4_boot.ttf': b'TTF',
            },
            files(guest),
        )
        self.assertEqual(5, len(changes))
        for change in changes:
            self.assertEqual('windows.some-finding', change.finding)
            self.assertEqual('/dev/sda1', change.target)
        by_path = {change.path: change for change in changes}
        self.assertEqual('empty', by_path['\\bootmgr'].before)
        self.assertIn('3 bytes', by_path['\\bootmgr'].after)
        self.assertEqual([], copy(guest, model.Firmware.BIOS))

    def test_uefi(self) -> None:
        guest = windows_boot.guest(uefi=True, files=EFI)
        copy(guest, model.Firmware.UEFI)
        self.assertEqual(
            {
                # It was there.
                'EFI/Microsoft/Boot/bootmgfw.efi': windows_boot.PROGRAM,
                'EFI/BOOT/BOOTX64.EFI': b'MGFW',
                'EFI/Microsoft/Boot/bootmgr.efi': b'MGR',
                'EFI/Microsoft/Boot/memtest.efi': b'MEM',
                'EFI/Microsoft/Boot/de-DE/bootmgfw.efi.mui': b'DE',
                'EFI/Microsoft/Boot/Fonts/wgl4_boot.ttf': b'TTF',
            },
            files(guest),
        )

    def test_case_of_existing_names(self) -> None:
        guest = windows_boot.guest(
            files=PCAT, system_files={'BOOT/MEMTEST.EXE': b'own'}
        )
        copy(guest, model.Firmware.BIOS)
        found = files(guest)
        self.assertEqual(b'own', found['BOOT/MEMTEST.EXE'])
        self.assertEqual(b'DE', found['BOOT/de-DE/bootmgr.exe.mui'])

    def test_nothing_to_copy_from(self) -> None:
        guest = windows_boot.guest()
        for firmware in model.Firmware:
            self.assertFalse(
                boot_files_copy.can_copy(windows_boot.real(guest), firmware)
            )
            with self.assertRaises(exceptions.GuestError) as caught:
                copy(guest, firmware)
            self.assertEqual('windows.boot-files-missing', caught.exception.id)

    def test_can_copy(self) -> None:
        guest = windows_boot.guest(files={**PCAT, **EFI})
        for firmware in model.Firmware:
            self.assertTrue(
                boot_files_copy.can_copy(windows_boot.real(guest), firmware)
            )


class LocaleTest(unittest.TestCase):
    def locale(
        self, text: str | None, files: dict[str, bytes] | None = None
    ) -> str:
        key = 'ControlSet001\\Control\\Nls\\Language'
        values = []
        if text is not None:
            values.append(registry.Value.sz('InstallLanguage', text))
        guest = windows_boot.guest(
            files=PCAT if files is None else files, system_keys={key: values}
        )
        return boot_files_copy.locale(windows_boot.real(guest))

    def test_installed(self) -> None:
        self.assertEqual('de-DE', self.locale('0407'))
        self.assertEqual('fr-FR', self.locale('040c'))

    def test_without_files(self) -> None:
        self.assertEqual('en-US', self.locale('0411'))
        self.assertEqual('en-US', self.locale('0407', {}))

    def test_nonsense(self) -> None:
        for text in (None, '', 'zz', '-1', '0' * 9999, '²', '\ud800', 'FFFF'):
            self.assertEqual('en-US', self.locale(text))
