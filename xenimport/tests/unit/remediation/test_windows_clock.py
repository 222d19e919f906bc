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


"""The clock and the policy for data disks."""

import typing
import unittest

from xenimport.guest import guest as guest_room
from xenimport.guest import registry
from xenimport import model
from xenimport.remediation.windows import clock
from xenimport.remediation.windows import san_policy
from xenimport.tests.unit.remediation import fakes
from xenimport.tests.unit.remediation import windows_fakes

_SYSTEM = 'Windows/System32/config/SYSTEM'
_SOFTWARE = 'Windows/System32/config/SOFTWARE'
_NAME = 'RealTimeIsUniversal'


def make(
    tree: windows_fakes.Tree,
    kind: str = 'Server',
    drives: tuple[str, ...] = ('/dev/sda',),
) -> windows_fakes.FakeWindows:
    select = {
        'Select': [
            registry.Value.dword('Current', 1),
            registry.Value.dword('Default', 1),
        ],
        'ControlSet001': [],
    }
    version = [registry.Value.sz('InstallationType', kind)]
    return windows_fakes.FakeWindows(
        hives={
            '/dev/sda2': {
                _SYSTEM: select | tree,
                _SOFTWARE: {'Microsoft\\Windows NT\\CurrentVersion': version},
            }
        },
        drives=drives,
    )


class ClockTest(unittest.TestCase):
    def values(
        self, guest: windows_fakes.FakeWindows, number: int = 1
    ) -> list[registry.Value]:
        tree = guest.hive('/dev/sda2', _SYSTEM)
        place = f'ControlSet{number:03d}\\Control\\TimeZoneInformation'
        return [item for item in tree[place] if item.name == _NAME]

    def guest(self, *values: registry.Value) -> windows_fakes.FakeWindows:
        # Not the fake of a guest whose clock is set: other values too.
        bias = registry.Value.dword('Bias', 0xFFFFFFC4)
        path = 'ControlSet001\\Control\\TimeZoneInformation'
        return make({path: [bias, *values]})

    def test_auto_says_nothing_of_local_time(self):
        for values in (
            (),
            (registry.Value.dword(_NAME, 0),),
            (registry.Value.sz(_NAME, '1'),),
        ):
            with self.subTest(values):
                check = clock.Clock(fakes.request())
                self.assertEqual(
                    ([], []), windows_fakes.treat(check, self.guest(*values))
                )

    def test_auto_notes_utc_and_changes_nothing(self):
        for value in (
            registry.Value.dword(_NAME, 1),
            registry.Value(_NAME, registry.QWORD, b'\1' + bytes(7)),
        ):
            with self.subTest(value):
                guest = self.guest(value)
                found, changes = windows_fakes.treat(
                    clock.Clock(fakes.request()), guest
                )
                self.assertEqual(['windows.clock'], [f.id for f in found])
                self.assertIs(model.Severity.NOTE, found[0].severity)
                self.assertIsNone(found[0].repair)
                self.assertEqual([], changes)
                self.assertEqual([value], self.values(guest))

    def test_utc(self):
        for values in (
            (),
            (registry.Value.dword(_NAME, 0),),
            (registry.Value.sz(_NAME, 'x'),),
            (registry.Value.binary(_NAME, b''),),
        ):
            with self.subTest(values):
                guest = self.guest(*values)
                check = clock.Clock(fakes.request(clock='utc'))
                found, changes = windows_fakes.treat(check, guest)
                self.assertEqual(1, len(found))
                self.assertEqual(
                    [registry.Value(_NAME, registry.DWORD, b'\1\0\0\0')],
                    self.values(guest),
                )
                self.assertEqual(1, len(changes))
                self.assertEqual('REG_DWORD 0x1', changes[0].after)
                self.assertEqual(([], []), windows_fakes.treat(check, guest))

    def test_utc_as_it_is_already(self):
        value = registry.Value(_NAME, registry.QWORD, b'\1' + bytes(7))
        guest = self.guest(value)
        check = clock.Clock(fakes.request(clock='utc'))
        self.assertEqual(([], []), windows_fakes.treat(check, guest))

    def test_local_time(self):
        guest = self.guest(registry.Value.dword(_NAME, 1))
        check = clock.Clock(fakes.request(clock='localtime'))
        found, changes = windows_fakes.treat(check, guest)
        self.assertEqual(1, len(found))
        self.assertEqual([], self.values(guest))
        self.assertEqual('absent', changes[0].after)
        self.assertEqual(([], []), windows_fakes.treat(check, guest))

    def test_local_time_where_nobody_knows_what_the_value_means(self):
        guest = self.guest(registry.Value.sz(_NAME, '1'))
        check = clock.Clock(fakes.request(clock='localtime'))
        windows_fakes.treat(check, guest)
        self.assertEqual([], self.values(guest))

    def test_local_time_as_it_is_already(self):
        for values in ((), (registry.Value.dword(_NAME, 0),)):
            with self.subTest(values):
                check = clock.Clock(fakes.request(clock='localtime'))
                self.assertEqual(
                    ([], []), windows_fakes.treat(check, self.guest(*values))
                )

    def test_every_control_set_in_use(self):
        guest = make(
            {
                'Select': [
                    registry.Value.dword('Current', 1),
                    registry.Value.dword('Default', 3),
                    registry.Value.dword('LastKnownGood', 2),
                ],
                'ControlSet001\\Control\\TimeZoneInformation': [],
                'ControlSet002\\Control\\TimeZoneInformation': [],
                'ControlSet003\\Control\\TimeZoneInformation': [],
            }
        )
        check = clock.Clock(fakes.request(clock='utc'))
        found, changes = windows_fakes.treat(check, guest)
        self.assertEqual(2, len(found))
        self.assertEqual(2, len(changes))
        self.assertEqual(
            [1, 0, 1], [len(self.values(guest, at)) for at in (1, 2, 3)]
        )

    def test_repair_twice(self):
        guest = typing.cast(guest_room.Guest, self.guest())
        check = clock.Clock(fakes.request(clock='utc'))
        (finding,) = check.diagnose(guest)
        self.assertEqual(1, len(check.repair(guest, finding)))
        self.assertEqual([], list(check.repair(guest, finding)))

    def test_no_windows(self):
        guest = self.guest()
        guest.operating_system = None
        check = clock.Clock(fakes.request(clock='utc'))
        self.assertEqual(([], []), windows_fakes.treat(check, guest))


class SanPolicyTest(unittest.TestCase):
    DISKS = ('/dev/sda', '/dev/sdb', '/dev/sdc')
    KEY = 'ControlSet001\\Services\\partmgr\\Parameters'

    def findings(
        self,
        policy: int | None,
        kind: str = 'Server',
        drives: tuple[str, ...] = DISKS,
    ) -> list[model.Finding]:
        values = (
            []
            if policy is None
            else [registry.Value.dword('SanPolicy', policy)]
        )
        guest = make({self.KEY: values}, kind, drives)
        found, changes = windows_fakes.treat(
            san_policy.SanPolicy(fakes.request()), guest
        )
        self.assertEqual([], changes)
        return found

    def test_offline(self):
        for policy, word in (
            (2, 'OfflineShared'),
            (3, 'OfflineAll'),
            (4, 'OfflineInternal'),
            (99, 'unknown'),
        ):
            with self.subTest(policy):
                (found,) = self.findings(policy)
                self.assertEqual('windows.san-policy', found.id)
                self.assertIs(model.Severity.WARNING, found.severity)
                self.assertIn(word, found.evidence)
                self.assertIn('/dev/sdb, /dev/sdc', found.evidence)
                self.assertIsNone(found.repair)

    def test_online(self):
        self.assertEqual([], self.findings(1))

    def test_one_disk(self):
        self.assertEqual([], self.findings(3, drives=('/dev/sda',)))

    def test_default_of_a_server_and_of_a_client(self):
        (found,) = self.findings(None)
        self.assertIs(model.Severity.NOTE, found.severity)
        self.assertEqual([], self.findings(None, 'Client'))


if __name__ == '__main__':
    unittest.main()
