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


"""Devices of the boot configuration, against the partition table.

Expectations: the verdicts of genuine boot managers in the docstring of
:mod:`xenimport.remediation.windows.boot_devices`.
"""

from __future__ import annotations

import unittest

from xenimport import model
from xenimport.remediation.windows import boot_devices
from xenimport.remediation.windows import disk_signature
from xenimport.tests import bcd_stores
from xenimport.tests.unit.remediation import windows_boot
from xenimport.tests.unit.remediation import windows_fakes

OTHER = 0x0BADCAFE
#: As after a converter that moved everything to another disk.
STALE_SYSTEM = bcd_stores.mbr_device(OTHER, 63 * 512)
STALE_WINDOWS = bcd_stores.mbr_device(OTHER, 99 << 20)
IMAGE = {'Recovery/WindowsRE/Winre.wim': b'MSWIM'}
SDI = {**IMAGE, 'Recovery/WindowsRE/boot.sdi': b'$SDI'}


def element(identifier: str, digits: str) -> str:
    return f'Objects\\{identifier}\\Elements\\{digits}'


class DevicesTest(unittest.TestCase):
    def setUp(self) -> None:
        self.check = boot_devices.BootDevices(windows_boot.request())

    def diagnose(
        self, guest: windows_fakes.FakeWindows
    ) -> list[model.Finding]:
        return list(self.check.diagnose(windows_boot.real(guest)))

    def repair(
        self, guest: windows_fakes.FakeWindows, path: str = 'Boot/BCD'
    ) -> tuple[dict[str, bytes], list[model.Change]]:
        """Mend what can be; the devices that then differ, by key."""
        before = values(guest, path)
        changes: list[model.Change] = []
        for finding in self.diagnose(guest):
            if finding.repair:
                changes += self.check.repair(windows_boot.real(guest), finding)
        guest.commit()
        after = values(guest, path)
        self.assertEqual(before.keys(), after.keys())
        differing = {
            key: after[key] for key in after if after[key] != before[key]
        }
        self.assertEqual(
            sorted(f'BCD\\{key}, value Element' for key in differing),
            sorted(change.path for change in changes),
        )
        left = [item for item in self.diagnose(guest) if item.repair]
        self.assertEqual([], left)
        return differing, changes


def values(guest: windows_fakes.FakeWindows, path: str) -> dict[str, bytes]:
    tree = guest.hive('/dev/sda1', path)
    return {
        key: item.data
        for key, items in tree.items()
        for item in items
        if item.name == 'Element'
    }


class SoundTest(DevicesTest):
    def test_mbr(self) -> None:
        store = windows_boot.genuine(recovery=windows_boot.WINDOWS)
        self.assertEqual([], self.diagnose(windows_boot.guest(store)))

    def test_gpt(self) -> None:
        store = bcd_stores.store(
            'uefi', windows_boot.GPT_SYSTEM, windows_boot.GPT_WINDOWS
        )
        guest = windows_boot.guest(store, uefi=True)
        self.assertEqual([], self.diagnose(guest))

    def test_locate_and_boot_name_no_disk(self) -> None:
        for device in (
            bcd_stores.locate_device(0x12000002),
            bcd_stores.boot_device(),
        ):
            store = windows_boot.genuine(system=device, windows=device)
            self.assertEqual([], self.diagnose(windows_boot.guest(store)))

    def test_unknown_and_legacy_are_left(self) -> None:
        for kind in (2, 11):
            device = bytearray(STALE_WINDOWS)
            device[16] = kind
            store = windows_boot.genuine(windows=bytes(device))
            self.assertEqual([], self.diagnose(windows_boot.guest(store)))

    def test_manager_on_another_partition_that_is_there(self) -> None:
        store = windows_boot.genuine(system=windows_boot.WINDOWS)
        self.assertEqual([], self.diagnose(windows_boot.guest(store)))

    def test_no_store(self) -> None:
        self.assertEqual([], self.diagnose(windows_boot.guest()))


class StaleTest(DevicesTest):
    def test_mbr(self) -> None:
        store = windows_boot.genuine(
            system=STALE_SYSTEM, windows=STALE_WINDOWS, recovery=STALE_WINDOWS
        )
        guest = windows_boot.guest(store, files=SDI)
        blockers = [
            finding.subject
            for finding in self.diagnose(guest)
            if finding.severity is model.Severity.BLOCKER
        ]
        self.assertEqual(
            [
                element(bcd_stores.LOADER, '11000001'),
                element(bcd_stores.LOADER, '21000001'),
            ],
            blockers,
        )
        differing, _ = self.repair(guest)
        self.assertEqual(
            {
                key: value
                for key, value in values(
                    windows_boot.guest(
                        windows_boot.genuine(recovery=windows_boot.WINDOWS)
                    ),
                    'Boot/BCD',
                ).items()
                if key.endswith(('1000001', '31000003'))
            },
            differing,
        )

    def test_each_field_of_an_mbr(self) -> None:
        for device in (
            bcd_stores.mbr_device(OTHER, windows_boot.WINDOWS_OFFSET),
            bcd_stores.mbr_device(windows_boot.SIGNATURE, 99 << 20),
            windows_boot.GPT_WINDOWS,
            # There, but Windows is not on it.
            windows_boot.SYSTEM,
        ):
            guest = windows_boot.guest(windows_boot.genuine(windows=device))
            differing, _ = self.repair(guest)
            self.assertEqual(
                windows_boot.WINDOWS,
                differing[element(bcd_stores.LOADER, '21000001')],
            )

    def test_each_field_of_a_gpt(self) -> None:
        other = 'ffffffff-aaaa-4bbb-8ccc-0123456789ab'
        for device in (
            bcd_stores.gpt_device(other, windows_boot.WINDOWS_GUID),
            bcd_stores.gpt_device(windows_boot.DISK_GUID, other),
            windows_boot.WINDOWS,
            windows_boot.GPT_SYSTEM,
        ):
            store = bcd_stores.store('uefi', windows_boot.GPT_SYSTEM, device)
            guest = windows_boot.guest(store, uefi=True)
            differing, _ = self.repair(guest, 'EFI/Microsoft/Boot/BCD')
            self.assertEqual(
                windows_boot.GPT_WINDOWS,
                differing[element(bcd_stores.LOADER, '21000001')],
            )

    def test_missing_or_unreadable(self) -> None:
        for data in (None, b'', windows_boot.WINDOWS[:40]):
            store = windows_boot.genuine()
            key = element(bcd_stores.LOADER, '21000001')
            store[key] = [('Element', 3, data)] if data is not None else []
            guest = windows_boot.guest(store)
            (finding,) = self.diagnose(guest)
            self.assertEqual(model.Severity.BLOCKER, finding.severity)
            self.check.repair(windows_boot.real(guest), finding)
            guest.commit()
            self.assertEqual([], self.diagnose(guest))
            self.assertEqual(
                windows_boot.WINDOWS, values(guest, 'Boot/BCD')[key]
            )

    def test_no_element_at_all(self) -> None:
        store = windows_boot.genuine()
        key = element(bcd_stores.LOADER, '11000001')
        del store[key]
        guest = windows_boot.guest(store)
        (finding,) = self.diagnose(guest)
        self.check.repair(windows_boot.real(guest), finding)
        guest.commit()
        self.assertEqual(windows_boot.WINDOWS, values(guest, 'Boot/BCD')[key])

    def test_one_finding_one_element(self) -> None:
        guest = windows_boot.guest(windows_boot.genuine(windows=STALE_WINDOWS))
        for finding in reversed(self.diagnose(guest)):
            (change,) = self.check.repair(windows_boot.real(guest), finding)
            self.assertEqual(
                f'BCD\\{finding.subject}, value Element', change.path
            )
            self.assertEqual('/dev/sda1', change.target)
            self.assertIn('0x0badcafe', change.before)
            self.assertIn('0x1a2b3c4d', change.after)

    def test_windows_on_a_virtual_disk(self) -> None:
        # Its file counts, and not where another Windows is.
        store = windows_boot.genuine(
            windows=bcd_stores.virtual_disk_partition(
                STALE_WINDOWS, '\\disks\\windows.vhd'
            )
        )
        guest = windows_boot.guest(
            store, system_files={'disks/windows.vhd': b'conectix'}
        )
        differing, _ = self.repair(guest)
        self.assertEqual(
            bcd_stores.virtual_disk_partition(
                windows_boot.SYSTEM, '\\disks\\windows.vhd'
            ),
            differing[element(bcd_stores.LOADER, '21000001')],
        )

    def test_other_bytes_stay(self) -> None:
        device = STALE_WINDOWS[:72] + b'sixteen bytes...' + b'and more'
        guest = windows_boot.guest(windows_boot.genuine(windows=device))
        differing, _ = self.repair(guest)
        self.assertEqual(
            windows_boot.WINDOWS[:72] + b'sixteen bytes...' + b'and more',
            differing[element(bcd_stores.LOADER, '11000001')],
        )

    def test_key_in_upper_case(self) -> None:
        store = windows_boot.genuine(windows=STALE_WINDOWS)
        upper = {key.upper(): items for key, items in store.items()}
        guest = windows_boot.guest(upper)
        differing, _ = self.repair(guest)
        self.assertIn(
            element(bcd_stores.LOADER, '21000001').upper(), differing
        )

    def test_default_that_will_be_chosen(self) -> None:
        # windows.boot-store makes the loader the default again.
        store = windows_boot.genuine(windows=STALE_WINDOWS)
        bcd_stores.put_element(
            store,
            bcd_stores.BOOTMGR,
            '23000003',
            bcd_stores.text('{00000000-0000-0000-0000-000000000000}'),
        )
        differing, _ = self.repair(windows_boot.guest(store))
        self.assertIn(element(bcd_stores.LOADER, '21000001'), differing)


class RecoveryTest(DevicesTest):
    def test_on_windows_own_partition(self) -> None:
        store = windows_boot.genuine(recovery=STALE_WINDOWS)
        guest = windows_boot.guest(store, files=SDI)
        differing, changes = self.repair(guest)
        expected = bcd_stores.ramdisk_device(
            windows_boot.WINDOWS,
            bcd_stores.RECOVERY_PATH,
            bcd_stores.RECOVERY_OPTIONS,
        )
        self.assertEqual(
            {
                element(bcd_stores.RECOVERY, '11000001'): expected,
                element(bcd_stores.RECOVERY, '21000001'): expected,
                element(
                    bcd_stores.RECOVERY_OPTIONS, '31000003'
                ): windows_boot.WINDOWS,
            },
            differing,
        )
        self.assertEqual(3, len(changes))

    def test_on_the_system_partition(self) -> None:
        store = windows_boot.genuine(recovery=STALE_SYSTEM)
        guest = windows_boot.guest(store, system_files=SDI)
        differing, _ = self.repair(guest)
        self.assertEqual(
            windows_boot.SYSTEM,
            differing[element(bcd_stores.RECOVERY_OPTIONS, '31000003')],
        )

    def test_other_path(self) -> None:
        # Windows 7 has its image in a directory with a GUID for a name.
        path = 'Recovery\\2cd3b1f6-0a65-11e1-9a3c-e02f6d1c5b77\\Winre.wim'
        store = windows_boot.genuine(recovery=STALE_WINDOWS)
        image = bcd_stores.ramdisk_device(
            STALE_WINDOWS, f'\\{path}', bcd_stores.RECOVERY_OPTIONS
        )
        for digits in ('11000001', '21000001'):
            bcd_stores.put_element(
                store, bcd_stores.RECOVERY, digits, (3, image)
            )
        files = {path.replace('\\', '/'): b'MSWIM'}
        guest = windows_boot.guest(store, files=files)
        differing, _ = self.repair(guest)
        self.assertEqual(
            bcd_stores.ramdisk_device(
                windows_boot.WINDOWS, f'\\{path}', bcd_stores.RECOVERY_OPTIONS
            ),
            differing[element(bcd_stores.RECOVERY, '21000001')],
        )

    def test_nowhere(self) -> None:
        store = windows_boot.genuine(recovery=STALE_WINDOWS)
        guest = windows_boot.guest(store)
        findings = self.diagnose(guest)
        self.assertEqual(3, len(findings))
        for finding in findings:
            self.assertEqual(model.Severity.WARNING, finding.severity)
            self.assertIsNone(finding.repair)
        differing, _ = self.repair(guest)
        self.assertEqual({}, differing)

    def test_evidence_is_bounded(self) -> None:
        store = windows_boot.genuine(recovery=STALE_WINDOWS)
        image = bcd_stores.ramdisk_device(
            STALE_WINDOWS, 'x' * 30_000, bcd_stores.RECOVERY_OPTIONS
        )
        for identifier, digits, value in (
            (bcd_stores.RECOVERY, '11000001', (3, image)),
            (bcd_stores.LOADER, '11000001', bcd_stores.text('y' * 100_000)),
        ):
            bcd_stores.put_element(store, identifier, digits, value)
        findings = self.diagnose(windows_boot.guest(store))
        self.assertEqual(4, len(findings))
        for finding in findings:
            self.assertLess(len(finding.evidence), 800)

    def test_sequence_that_loops(self) -> None:
        store = windows_boot.genuine(recovery=STALE_WINDOWS)
        bcd_stores.put_element(
            store,
            bcd_stores.LOADER,
            '14000008',
            bcd_stores.texts(
                *([bcd_stores.LOADER, bcd_stores.RECOVERY] * 1000)
            ),
        )
        guest = windows_boot.guest(store, files=SDI)
        self.assertEqual(3, len(self.diagnose(guest)))


class SignatureFirstTest(DevicesTest):
    """A lost signature is restored, and then no element is written."""

    def test_only_the_signature(self) -> None:
        store = windows_boot.genuine(recovery=windows_boot.WINDOWS)
        guest = windows_boot.guest(
            store,
            device=windows_boot.mbr(0),
            system_keys=windows_boot.mounted(),
        )
        self.assertEqual([], self.diagnose(guest))
        first = disk_signature.DiskSignature(windows_boot.request())
        (lost,) = first.diagnose(windows_boot.real(guest))
        first.repair(windows_boot.real(guest), lost)
        self.assertEqual([], self.diagnose(guest))

    def test_signature_and_one_element(self) -> None:
        store = windows_boot.genuine()
        bcd_stores.put_element(
            store, bcd_stores.RESUME, '11000001', (3, STALE_WINDOWS)
        )
        guest = windows_boot.guest(
            store,
            device=windows_boot.mbr(0),
            system_keys=windows_boot.mounted(),
        )
        (finding,) = self.diagnose(guest)
        first = disk_signature.DiskSignature(windows_boot.request())
        (lost,) = first.diagnose(windows_boot.real(guest))
        first.repair(windows_boot.real(guest), lost)
        changes = self.check.repair(windows_boot.real(guest), finding)
        self.assertEqual(1, len(changes))
        guest.commit()
        found = values(guest, 'Boot/BCD')
        key = element(bcd_stores.RESUME, '11000001')
        self.assertEqual(windows_boot.WINDOWS, found[key])
