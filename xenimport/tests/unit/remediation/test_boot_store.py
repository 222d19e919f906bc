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


"""The boot configuration itself: mended, or made anew.

What a new one has to hold is what :mod:`xenimport.tests.bcd_stores` has
from genuine stores.
"""

from __future__ import annotations

import re
import unittest
import uuid

from xenimport import model
from xenimport.remediation.windows import boot_devices
from xenimport.remediation.windows import boot_loader
from xenimport.remediation.windows import boot_store
from xenimport.tests import bcd_stores
from xenimport.tests.unit.remediation import windows_boot
from xenimport.tests.unit.remediation import windows_fakes

PCAT = {
    'Windows/Boot/PCAT/bootmgr': b'MGR',
    'Windows/Boot/PCAT/memtest.exe': b'MEM',
    'Windows/Boot/PCAT/de-DE/bootmgr.exe.mui': b'DE',
    'Windows/Boot/PCAT/en-US/bootmgr.exe.mui': b'EN',
    'Windows/Boot/PCAT/fr-FR/bootmgr.exe.mui': b'FR',
    'Windows/Boot/Fonts/wgl4_boot.ttf': b'TTF',
}
NONE = '{00000000-0000-0000-0000-000000000000}'


def renamed(
    store: bcd_stores.Store | windows_fakes.Tree, names: dict[str, str]
) -> dict[str, dict[str, tuple[int, bytes]]]:
    """A store with the ids that are made anew replaced, to be compared."""

    def text(value: str) -> str:
        for old, new in names.items():
            value = value.replace(old, new)
        return value

    def data(value: bytes) -> bytes:
        for old, new in names.items():
            value = value.replace(
                old.encode('utf-16-le'), new.encode('utf-16-le')
            )
        return value

    found: dict[str, dict[str, tuple[int, bytes]]] = {}
    for path, values in store.items():
        found[text(path)] = {}
        for item in values:
            name, kind, content = (
                item
                if isinstance(item, tuple)
                else (item.name, item.type, item.data)
            )
            found[text(path)][name] = kind, data(content)
    return found


class StoreTest(unittest.TestCase):
    def setUp(self) -> None:
        self.check = boot_store.BootStore(windows_boot.request())

    def diagnose(
        self, guest: windows_fakes.FakeWindows
    ) -> list[model.Finding]:
        return list(self.check.diagnose(windows_boot.real(guest)))

    def repair(self, guest: windows_fakes.FakeWindows) -> list[model.Change]:
        (finding,) = self.diagnose(guest)
        self.assertEqual(model.Severity.BLOCKER, finding.severity)
        self.assertIsNotNone(finding.repair)
        changes = list(self.check.repair(windows_boot.real(guest), finding))
        guest.commit()
        for kind in (
            boot_store.BootStore,
            boot_devices.BootDevices,
            boot_loader.BootLoader,
        ):
            check = kind(windows_boot.request())
            self.assertEqual(
                [], list(check.diagnose(windows_boot.real(guest)))
            )
        self.assertEqual(
            [], list(self.check.repair(windows_boot.real(guest), finding))
        )
        return changes


class SoundTest(StoreTest):
    def test_genuine(self) -> None:
        guest = windows_boot.guest(windows_boot.genuine())
        self.assertEqual([], self.diagnose(guest))

    def test_before_vista(self) -> None:
        guest = windows_boot.guest(major=5, minor=2)
        self.assertEqual([], self.diagnose(guest))


class DefaultTest(StoreTest):
    """Windows' entry is there, but it is not the default."""

    def assert_chosen(self, store: bcd_stores.Store) -> None:
        guest = windows_boot.guest(store)
        changes = self.repair(guest)
        self.assertEqual(1, len(changes))
        self.assertEqual('/dev/sda1', changes[0].target)
        self.assertIn('\\23000003', changes[0].path)
        tree = guest.hive('/dev/sda1', 'Boot/BCD')
        key = f'Objects\\{bcd_stores.BOOTMGR}\\Elements\\23000003'
        self.assertEqual(bcd_stores.LOADER, tree[key][0].text)
        self.assertNotIn('/sda1/Boot/BCD.xenimport.bak', guest.files)

    def test_nowhere(self) -> None:
        store = windows_boot.genuine()
        bcd_stores.put_element(
            store, bcd_stores.BOOTMGR, '23000003', bcd_stores.text(NONE)
        )
        self.assert_chosen(store)

    def test_evidence_is_bounded(self) -> None:
        store = windows_boot.genuine()
        bcd_stores.put_element(
            store, bcd_stores.BOOTMGR, '23000003', bcd_stores.text('x' * 90000)
        )
        (finding,) = self.diagnose(windows_boot.guest(store))
        self.assertLess(len(finding.evidence), 300)

    def test_windows_pe(self) -> None:
        store = windows_boot.genuine(recovery=windows_boot.WINDOWS)
        bcd_stores.put_element(
            store,
            bcd_stores.BOOTMGR,
            '23000003',
            bcd_stores.text(bcd_stores.RECOVERY),
        )
        guest = windows_boot.guest(store)
        (finding,) = self.diagnose(guest)
        self.assertIn('Windows PE', finding.evidence)
        self.assert_chosen(store)

    def test_no_loader(self) -> None:
        store = windows_boot.genuine()
        bcd_stores.put_element(
            store,
            bcd_stores.BOOTMGR,
            '23000003',
            bcd_stores.text(bcd_stores.MEMDIAG),
        )
        guest = windows_boot.guest(store)
        (finding,) = self.diagnose(guest)
        self.assertIn('0x10200005', finding.evidence)
        self.assert_chosen(store)

    def test_not_in_the_menu(self) -> None:
        store = windows_boot.genuine()
        for digits, value in (
            ('23000003', bcd_stores.text(NONE)),
            ('24000001', bcd_stores.texts(bcd_stores.MEMDIAG)),
        ):
            bcd_stores.put_element(store, bcd_stores.BOOTMGR, digits, value)
        guest = windows_boot.guest(store)
        self.assertEqual(2, len(self.repair(guest)))
        tree = guest.hive('/dev/sda1', 'Boot/BCD')
        key = f'Objects\\{bcd_stores.BOOTMGR}\\Elements\\24000001'
        self.assertEqual(
            (bcd_stores.LOADER, bcd_stores.MEMDIAG), tree[key][0].strings
        )


class NewTest(StoreTest):
    def assert_as_genuine(
        self,
        guest: windows_fakes.FakeWindows,
        path: str,
        expected: bcd_stores.Store,
    ) -> None:
        tree = guest.hive('/dev/sda1', path)
        manager = f'Objects\\{bcd_stores.BOOTMGR}\\Elements'
        names = {
            tree[f'{manager}\\23000003'][0].text: bcd_stores.LOADER,
            tree[f'{manager}\\23000006'][0].text: bcd_stores.RESUME,
        }
        for name in names:
            self.assertRegex(name, re.compile(r'^\{[0-9a-f-]{36}\}$'))
            self.assertEqual(4, uuid.UUID(name).version)
        self.assertEqual(renamed(expected, {}), renamed(tree, names))

    def test_missing(self) -> None:
        guest = windows_boot.guest(files=PCAT)
        changes = self.repair(guest)
        self.assert_as_genuine(
            guest,
            'Boot/BCD',
            windows_boot.genuine(
                locale='de-DE', description='Windows Server 2008 R2 Standard'
            ),
        )
        copied = {
            change.path for change in changes if 'copied' in change.after
        }
        self.assertEqual(
            {
                '\\Boot\\memtest.exe',
                '\\Boot\\de-DE\\bootmgr.exe.mui',
                '\\Boot\\en-US\\bootmgr.exe.mui',
                '\\Boot\\Fonts\\wgl4_boot.ttf',
            },
            copied,
        )
        # It was there, and stays.
        self.assertEqual(b'boot manager', guest.files['/sda1/bootmgr'])

    def test_every_value_is_a_change(self) -> None:
        guest = windows_boot.guest()
        changes = [item for item in self.repair(guest) if 'value' in item.path]
        tree = guest.hive('/dev/sda1', 'Boot/BCD')
        self.assertEqual(
            sorted(
                f'BCD\\{path}, value {item.name}'
                for path, values in tree.items()
                for item in values
            ),
            sorted(change.path for change in changes),
        )

    def test_missing_uefi(self) -> None:
        guest = windows_boot.guest(uefi=True)
        self.repair(guest)
        expected = bcd_stores.store(
            'uefi',
            windows_boot.GPT_SYSTEM,
            windows_boot.GPT_WINDOWS,
            description='Windows Server 2008 R2 Standard',
        )
        self.assert_as_genuine(guest, 'EFI/Microsoft/Boot/BCD', expected)

    def test_windows_10(self) -> None:
        guest = windows_boot.guest(
            uefi=True, major=10, minor=0, product='Windows 10 Pro'
        )
        self.repair(guest)
        tree = guest.hive('/dev/sda1', 'EFI/Microsoft/Boot/BCD')
        names = {item.name for item in tree['Description']}
        self.assertEqual({'KeyName', 'System', 'TreatAsSystem'}, names)
        policies = [
            values[0].data
            for path, values in tree.items()
            if path.lower().endswith('250000c2')
        ]
        self.assertEqual([b'\1' + bytes(7)], policies)

    def test_damaged(self) -> None:
        guest = windows_boot.guest(system_files={'Boot/BCD': b'junk'})
        changes = self.repair(guest)
        self.assertEqual(b'junk', guest.files['/sda1/Boot/BCD.xenimport.bak'])
        self.assertEqual('\\Boot\\BCD.xenimport.bak', changes[0].path)

    def test_older_copy_is_never_lost(self) -> None:
        guest = windows_boot.guest(
            system_files={
                'Boot/BCD': b'junk',
                'Boot/BCD.xenimport.bak': b'older',
            }
        )
        self.repair(guest)
        self.assertEqual(b'older', guest.files['/sda1/Boot/BCD.xenimport.bak'])

    def test_of_no_use(self) -> None:
        no_manager = windows_boot.genuine()
        for path in list(no_manager):
            if bcd_stores.BOOTMGR in path:
                del no_manager[path]
        no_loader = windows_boot.genuine(recovery=windows_boot.WINDOWS)
        for path in list(no_loader):
            if bcd_stores.LOADER in path:
                del no_loader[path]
        useless: list[bcd_stores.Store] = [{'': []}, {'Objects': []}]
        for store in (no_manager, no_loader, *useless):
            guest = windows_boot.guest(store)
            self.repair(guest)
            self.assertIn('/sda1/Boot/BCD.xenimport.bak', guest.files)

    def test_product_that_is_hostile(self) -> None:
        guest = windows_boot.guest(product='\x1b[2J\n' + 'x' * 10_000)
        self.repair(guest)
        tree = guest.hive('/dev/sda1', 'Boot/BCD')
        texts = [
            values[0].text
            for path, values in tree.items()
            if path.endswith('12000004')
        ]
        self.assertTrue(all(len(item) < 100 for item in texts))
        self.assertTrue(all(item.isprintable() for item in texts))

    def test_no_partition_to_name(self) -> None:
        # A GPT whose header is nonsense.
        guest = windows_boot.guest(uefi=True, device=bytes(1 << 16))
        (finding,) = self.diagnose(guest)
        self.assertIsNone(finding.repair)
        self.assertEqual(
            [], list(self.check.repair(windows_boot.real(guest), finding))
        )
