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


"""The signature of an MBR, and Windows' drive letter.

Expectations: a genuine boot manager stops with 0xc000000e where sector 0
has no signature; MountedDevices of genuine guests have 12 bytes, the
signature and the partition's first byte.
"""

from __future__ import annotations

import struct
import unittest
from unittest import mock
import uuid

from xenimport.guest import registry
from xenimport import model
from xenimport.remediation.windows import disk_signature
from xenimport.tests import bcd_stores
from xenimport.tests.unit.remediation import windows_boot
from xenimport.tests.unit.remediation import windows_fakes

OTHER = 0x0BADCAFE
LOCATED = bcd_stores.locate_device(0x22000002)


def signature_of(guest: windows_fakes.FakeWindows) -> bytes:
    return bytes(guest.devices['/dev/sda'][0x1B8:0x1BC])


class SignatureTest(unittest.TestCase):
    def setUp(self) -> None:
        self.check = disk_signature.DiskSignature(windows_boot.request())

    def diagnose(
        self, guest: windows_fakes.FakeWindows
    ) -> list[model.Finding]:
        return list(self.check.diagnose(windows_boot.real(guest)))

    def restored(self, guest: windows_fakes.FakeWindows) -> model.Change:
        before = bytes(guest.devices['/dev/sda'])
        (finding,) = self.diagnose(guest)
        self.assertEqual(model.Severity.BLOCKER, finding.severity)
        (change,) = self.check.repair(windows_boot.real(guest), finding)
        after = bytes(guest.devices['/dev/sda'])
        self.assertEqual(b'\x4d\x3c\x2b\x1a', signature_of(guest))
        self.assertEqual(before[:0x1B8], after[:0x1B8])
        self.assertEqual(before[0x1BC:], after[0x1BC:])
        self.assertEqual([], self.diagnose(guest))
        self.assertEqual(
            [], list(self.check.repair(windows_boot.real(guest), finding))
        )
        return change

    def test_sound(self) -> None:
        guest = windows_boot.guest(
            windows_boot.genuine(), system_keys=windows_boot.mounted()
        )
        self.assertEqual([], self.diagnose(guest))

    def test_lost(self) -> None:
        guest = windows_boot.guest(
            windows_boot.genuine(),
            device=windows_boot.mbr(0),
            system_keys=windows_boot.mounted(),
        )
        (finding,) = self.diagnose(guest)
        self.assertIn(
            'the BCD and MountedDevices name 0x1a2b3c4d', finding.evidence
        )
        change = self.restored(guest)
        self.assertEqual('0x00000000', change.before)
        self.assertEqual('0x1a2b3c4d', change.after)
        self.assertEqual('/dev/sda', change.target)

    def test_another(self) -> None:
        guest = windows_boot.guest(
            windows_boot.genuine(),
            device=windows_boot.mbr(OTHER),
            system_keys=windows_boot.mounted(),
        )
        self.assertEqual('0x0badcafe', self.restored(guest).before)

    def test_another_and_one_witness(self) -> None:
        # The store alone may be the one that is wrong.
        for store, keys in (
            (windows_boot.genuine(), windows_boot.mounted(OTHER)),
            (windows_boot.genuine(), {}),
            (None, windows_boot.mounted()),
            (
                windows_boot.genuine(windows=LOCATED),
                windows_boot.mounted(),
            ),
        ):
            guest = windows_boot.guest(
                store, device=windows_boot.mbr(OTHER), system_keys=keys
            )
            self.assertEqual([], self.diagnose(guest))

    def test_lost_and_one_witness(self) -> None:
        for store, keys, word in (
            (windows_boot.genuine(), {}, 'the BCD names 0x1a2b3c4d'),
            (None, windows_boot.mounted(), 'MountedDevices names 0x1a2b3c4d'),
            # What the boot manager looks for comes first.
            (
                windows_boot.genuine(),
                windows_boot.mounted(OTHER),
                'the BCD names 0x1a2b3c4d',
            ),
        ):
            guest = windows_boot.guest(
                store, device=windows_boot.mbr(0), system_keys=keys
            )
            (finding,) = self.diagnose(guest)
            self.assertIn(word, finding.evidence)
            self.restored(guest)

    def test_lost_and_no_witness(self) -> None:
        guest = windows_boot.guest(
            windows_boot.genuine(windows=LOCATED, system=LOCATED),
            device=windows_boot.mbr(0),
        )
        (finding,) = self.diagnose(guest)
        self.assertEqual(model.Severity.WARNING, finding.severity)
        self.assertEqual(
            1, len(self.check.repair(windows_boot.real(guest), finding))
        )
        self.assertNotEqual(bytes(4), signature_of(guest))
        self.assertEqual([], self.diagnose(guest))

    def test_two_disks_never_get_one_signature(self) -> None:
        for signature in (0, OTHER):
            guest = windows_boot.guest(
                windows_boot.genuine(),
                device=windows_boot.mbr(signature),
                system_keys=windows_boot.mounted(),
            )
            guest.drives = ('/dev/sda', '/dev/sdb')
            guest.devices['/dev/sdb'] = bytearray(windows_boot.mbr())
            findings = self.diagnose(guest)
            self.assertEqual(signature == 0, bool(findings))
            for finding in findings:
                self.assertEqual(model.Severity.WARNING, finding.severity)
                self.check.repair(windows_boot.real(guest), finding)
                self.assertNotIn(
                    signature_of(guest), (bytes(4), b'\x4d\x3c\x2b\x1a')
                )
                self.assertEqual([], self.diagnose(guest))

    def test_new_one_is_no_other_disks(self) -> None:
        guest = windows_boot.guest(device=windows_boot.mbr(0))
        guest.drives = ('/dev/sda', '/dev/sdb')
        guest.devices['/dev/sdb'] = bytearray(windows_boot.mbr())
        (finding,) = self.diagnose(guest)
        with mock.patch.object(
            disk_signature.secrets,
            'randbelow',
            autospec=True,
            side_effect=[windows_boot.SIGNATURE - 1, 0x41],
        ):
            self.check.repair(windows_boot.real(guest), finding)
        self.assertEqual(b'\x42\0\0\0', signature_of(guest))

    def test_gpt_has_none(self) -> None:
        guest = windows_boot.guest(
            bcd_stores.store(
                'uefi', windows_boot.GPT_SYSTEM, windows_boot.GPT_WINDOWS
            ),
            uefi=True,
        )
        self.assertEqual([], self.diagnose(guest))

    def test_damaged_store(self) -> None:
        guest = windows_boot.guest(
            device=windows_boot.mbr(0),
            system_files={'Boot/BCD': b'junk'},
            system_keys=windows_boot.mounted(),
        )
        self.restored(guest)


class LetterTest(unittest.TestCase):
    def setUp(self) -> None:
        self.check = disk_signature.DriveLetter(windows_boot.request())

    def diagnose(
        self, guest: windows_fakes.FakeWindows
    ) -> list[model.Finding]:
        return list(self.check.diagnose(windows_boot.real(guest)))

    def repaired(self, guest: windows_fakes.FakeWindows) -> dict[str, bytes]:
        (finding,) = self.diagnose(guest)
        self.assertEqual(windows_boot.LETTER, finding.subject)
        changes = self.check.repair(windows_boot.real(guest), finding)
        guest.commit()
        self.assertEqual([], self.diagnose(guest))
        self.assertEqual(
            [], list(self.check.repair(windows_boot.real(guest), finding))
        )
        path = f'{windows_boot.CONFIG}/SYSTEM'
        values = guest.hive('/dev/sda2', path)['MountedDevices']
        named = {value.name for value in values}
        self.assertTrue(all('MountedDevices' in c.path for c in changes))
        self.assertIn(windows_boot.LETTER, named)
        return {value.name: value.data for value in values}

    def test_sound(self) -> None:
        guest = windows_boot.guest(system_keys=windows_boot.mounted())
        self.assertEqual([], self.diagnose(guest))

    def test_nothing_remembered(self) -> None:
        # As sysprep leaves it.
        for guest in (
            windows_boot.guest(),
            windows_boot.guest(system_keys={'MountedDevices': []}),
        ):
            self.assertEqual([], self.diagnose(guest))

    def test_another_signature(self) -> None:
        # The store does not say what it was: the new one is taken.
        guest = windows_boot.guest(system_keys=windows_boot.mounted(OTHER))
        data = self.repaired(guest)
        expected = struct.pack(
            '<IQ', windows_boot.SIGNATURE, windows_boot.WINDOWS_OFFSET
        )
        self.assertEqual(expected, data[windows_boot.LETTER])
        self.assertEqual(expected, data[windows_boot.VOLUME])
        # Another volume of that disk keeps its letter as well.
        self.assertEqual(
            struct.pack(
                '<IQ', windows_boot.SIGNATURE, windows_boot.SYSTEM_OFFSET
            ),
            data['\\DosDevices\\E:'],
        )
        self.assertEqual(
            '\\??\\IDE#CdRom'.encode('utf-16-le'), data['\\DosDevices\\D:']
        )

    def test_another_offset(self) -> None:
        guest = windows_boot.guest(system_keys=windows_boot.mounted(offset=63))
        data = self.repaired(guest)
        self.assertEqual(
            struct.pack(
                '<IQ', windows_boot.SIGNATURE, windows_boot.WINDOWS_OFFSET
            ),
            data[windows_boot.VOLUME],
        )

    def test_another_signature_and_offset(self) -> None:
        # Nothing says then where the other volumes of that disk went.
        keys = windows_boot.mounted(OTHER, 63)
        data = self.repaired(windows_boot.guest(system_keys=keys))
        self.assertEqual(
            struct.pack('<IQ', OTHER, windows_boot.SYSTEM_OFFSET),
            data['\\DosDevices\\E:'],
        )

    def test_restored_signature_is_awaited(self) -> None:
        guest = windows_boot.guest(
            windows_boot.genuine(),
            device=windows_boot.mbr(0),
            system_keys=windows_boot.mounted(),
        )
        self.assertEqual([], self.diagnose(guest))

    def test_gpt(self) -> None:
        old = b'DMIO:ID:' + uuid.UUID(int=7).bytes_le
        new = b'DMIO:ID:' + uuid.UUID(windows_boot.WINDOWS_GUID).bytes_le
        for data in (new, old):
            guest = windows_boot.guest(
                uefi=True,
                system_keys={
                    'MountedDevices': [
                        registry.Value.binary(windows_boot.LETTER, data)
                    ]
                },
            )
            if data == new:
                self.assertEqual([], self.diagnose(guest))
            else:
                self.assertEqual(
                    new, self.repaired(guest)[windows_boot.LETTER]
                )

    def test_windows_on_another_letter(self) -> None:
        guest = windows_boot.guest(system_keys=windows_boot.mounted(OTHER))
        guest.put_hive(
            '/dev/sda2',
            f'{windows_boot.CONFIG}/SOFTWARE',
            {
                'Microsoft\\Windows NT\\CurrentVersion': [
                    registry.Value.sz('SystemRoot', 'E:\\Windows')
                ]
            },
        )
        (finding,) = self.diagnose(guest)
        self.assertEqual('\\DosDevices\\E:', finding.subject)

    def test_hostile_values(self) -> None:
        for data in (b'', b'\0', b'DMIO:ID:', bytes(1 << 16)):
            guest = windows_boot.guest(
                system_keys={
                    'MountedDevices': [
                        registry.Value.binary(windows_boot.LETTER, data)
                    ]
                }
            )
            (finding,) = self.diagnose(guest)
            self.assertLess(len(finding.evidence), 500)
            self.repaired(guest)
