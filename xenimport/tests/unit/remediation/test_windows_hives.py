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

import unittest
from unittest import mock

from xenimport import exceptions
from xenimport.guest import registry
from xenimport import model
from xenimport.remediation.windows import base as windows_base
from xenimport.remediation.windows import boot
from xenimport.remediation.windows import hives
from xenimport.remediation.windows import system
from xenimport.tests.unit.remediation import fakes
from xenimport.tests.unit.remediation import windows_fakes

DWORD = registry.Value.dword
CONFIG = 'Windows/System32/config'
REQUEST = fakes.request()


def guest(damaged=(), **trees):
    """A guest whose hives hold these trees; '' are damaged."""
    found = {'SYSTEM': {'ControlSet001': []}, 'SOFTWARE': {}, **trees}
    return windows_fakes.FakeWindows(
        {'/dev/sda2': {f'{CONFIG}/{name}': b'' for name in damaged}},
        {
            '/dev/sda2': {
                f'{CONFIG}/{name}': tree
                for name, tree in found.items()
                if tree is not None
            }
        },
    )


def select(current, default, *sets):
    tree: windows_fakes.Tree = {'Select': []}
    for name, number in (('Current', current), ('Default', default)):
        if number is not None:
            tree['Select'].append(DWORD(name, number))
    return guest(SYSTEM={**tree, **{name: [] for name in sets}})


class HiveDamagedTestCase(unittest.TestCase):
    check = hives.HiveDamaged(REQUEST)

    def findings(self, fake):
        return [
            (finding.id, finding.severity.value, finding.subject)
            for finding in self.check.diagnose(fake)
        ]

    def test_sound(self):
        self.assertEqual([], self.findings(guest()))
        self.assertEqual([], self.findings(guest(DRIVERS={})))

    def test_damaged_or_missing(self):
        for name in ('SYSTEM', 'SOFTWARE', 'DRIVERS'):
            self.assertEqual(
                [('windows.hive-damaged', 'blocker', name)],
                self.findings(guest([name], **{name: None})),
            )
        for name in ('SYSTEM', 'SOFTWARE'):
            self.assertEqual(
                [('windows.hive-damaged', 'blocker', name)],
                self.findings(guest(**{name: None})),
            )

    def test_the_evidence(self):
        (finding,) = self.check.diagnose(guest(['SYSTEM'], SYSTEM=None))
        self.assertIn(f'{CONFIG}/SYSTEM: no hive', finding.evidence)
        self.assertIsNone(finding.repair)
        self.assertIsNone(finding.loss)

    def test_no_windows(self):
        fake = guest()
        fake.operating_system = None
        self.assertEqual([], self.findings(fake))

    def test_an_error_of_another_kind_passes(self):
        fake = guest()

        def refuse(*args):
            raise exceptions.GuestError('guest.libguestfs-failed', 'no')

        with mock.patch.object(fake, 'open', refuse):
            with self.assertRaises(exceptions.GuestError):
                self.findings(fake)


class OtherChecksTestCase(unittest.TestCase):
    """A check that reads a damaged hive says nothing of it."""

    class Reads(windows_base.WindowsCheck):
        id = 'windows.reads'
        title = 'Reads a hive'

        def examine(self, fake):
            yield from system.system_hive(fake).walk('')

    def test_damaged(self):
        check = self.Reads(REQUEST)
        self.assertEqual(2, len(list(check.diagnose(guest()))))
        fake = guest(['SYSTEM'], SYSTEM=None)
        self.assertEqual([], list(check.diagnose(fake)))
        with mock.patch.object(
            boot, 'store', autospec=True, return_value=None
        ):
            self.assertEqual([], list(hives.HiveDirty(REQUEST).diagnose(fake)))
        self.assertEqual([], list(hives.ControlSet(REQUEST).diagnose(fake)))

    def test_other_damage_is_not_passed_over(self):
        # Of a BCD, and of a hive that could be opened.
        check = self.Reads(REQUEST)
        for path in ('/sda1/Boot/BCD', f'{CONFIG}/SYSTEM'):
            fake = guest()
            error = registry.damaged(path, 'a cell outside the hive')
            hive = system.system_hive(fake)
            with (
                mock.patch.object(
                    hive, 'walk', autospec=True, side_effect=error
                ),
                self.assertRaises(exceptions.GuestError),
            ):
                list(check.diagnose(fake))


class HiveDirtyTestCase(unittest.TestCase):
    def findings(self, **states):
        fake = guest(DRIVERS={})
        fake.put_hive('/dev/sda2', 'Boot/BCD', {})
        bcd = fake.registry.open(fake.windows, 'Boot/BCD')
        for name, state in states.items():
            hive = bcd
            if name != 'BCD':
                hive = fake.registry.open(fake.windows, f'{CONFIG}/{name}')
            hive.state = state
        with mock.patch.object(boot, 'store', autospec=True, return_value=bcd):
            return list(hives.HiveDirty(REQUEST).diagnose(fake))

    def test_a_store_of_the_boot_manager(self):
        (finding,) = self.findings(BCD=registry.State(True, 1, ('BCD.LOG1',)))
        self.assertIs(model.Severity.NOTE, finding.severity)
        self.assertEqual('BCD', finding.subject)
        (finding,) = self.findings(BCD=registry.State(True, lost='no log'))
        self.assertIs(model.Severity.WARNING, finding.severity)

    def test_a_damaged_store_of_the_boot_manager(self):
        error = registry.damaged('/sda1/Boot/BCD', 'nonsense')
        with mock.patch.object(
            boot, 'store', autospec=True, side_effect=error
        ):
            self.assertEqual(
                [], list(hives.HiveDirty(REQUEST).diagnose(guest()))
            )

    def test_clean(self):
        self.assertEqual([], self.findings())

    def test_replayed(self):
        (finding,) = self.findings(
            SYSTEM=registry.State(True, 3, ('SYSTEM.LOG2', 'SYSTEM.LOG1'))
        )
        self.assertEqual('windows.hive-dirty', finding.id)
        self.assertIs(model.Severity.NOTE, finding.severity)
        self.assertEqual('SYSTEM', finding.subject)
        self.assertIn(
            '3 entries of SYSTEM.LOG2 and SYSTEM.LOG1', finding.evidence
        )
        (finding,) = self.findings(
            DRIVERS=registry.State(True, 1, ('DRIVERS.LOG',))
        )
        self.assertIn('1 entry of DRIVERS.LOG', finding.evidence)

    def test_lost(self):
        (finding,) = self.findings(
            SOFTWARE=registry.State(True, lost='it has no logs')
        )
        self.assertIs(model.Severity.BLOCKER, finding.severity)
        self.assertIn('it has no logs', finding.evidence)
        self.assertIn('shutdown', finding.fix)
        self.assertIn('SOFTWARE', finding.loss)
        self.assertIsNone(finding.repair)


class ControlSetTestCase(unittest.TestCase):
    def findings(self, fake):
        return list(hives.ControlSet(REQUEST).diagnose(fake))

    def test_sound(self):
        self.assertEqual([], self.findings(select(1, 1, 'ControlSet001')))

    def test_two_in_use(self):
        (finding,) = self.findings(
            select(1, 2, 'ControlSet001', 'ControlSet002')
        )
        self.assertIs(model.Severity.NOTE, finding.severity)
        self.assertIsNone(finding.repair)
        self.assertIn('Current is ControlSet001', finding.evidence)
        self.assertIn('Default is ControlSet002', finding.evidence)

    def test_none_is_there(self):
        for fake, evidence in (
            (select(1, 1), 'ControlSet001, which is not there'),
            (select(None, None, 'ControlSet001'), 'Current is absent'),
            (select(0, 0, 'ControlSet000'), 'ControlSet000'),
            (guest(), 'Default is absent'),
        ):
            (finding,) = self.findings(fake)
            self.assertIs(model.Severity.BLOCKER, finding.severity)
            self.assertIsNone(finding.repair)
            self.assertIsNone(finding.loss)
            self.assertIn(evidence, finding.evidence)

    def test_one_is_missing(self):
        for current, default, sets, edits in (
            (1, 3, ['ControlSet001'], [('Default', 3, 1)]),
            (7, 2, ['ControlSet002'], [('Current', 7, 2)]),
            (None, 1, ['ControlSet001'], [('Current', None, 1)]),
        ):
            fake = select(current, default, *sets)
            (finding,) = self.findings(fake)
            self.assertIs(model.Severity.BLOCKER, finding.severity)
            self.assertIn(sets[0], finding.repair)
            check = hives.ControlSet(REQUEST)
            changes = check.repair(fake, finding)
            hive = system.system_hive(fake)
            self.assertEqual(
                edits,
                [
                    (
                        edit.name,
                        edit.before.number if edit.before else None,
                        edit.after.number,
                    )
                    for edit in hive.edits
                ],
            )
            self.assertEqual(
                [f'HKLM\\SYSTEM\\Select, value {edits[0][0]}'],
                [change.path for change in changes],
            )
            self.assertEqual([], list(check.repair(fake, finding)))
            fake.commit()
            self.assertEqual([], self.findings(fake))

    def test_values_that_are_no_numbers(self):
        fake = guest(
            SYSTEM={
                'Select': [
                    registry.Value.sz('Current', '1'),
                    registry.Value.binary('Default', b'\1'),
                ],
                'ControlSet001': [],
            }
        )
        (finding,) = self.findings(fake)
        self.assertIs(model.Severity.BLOCKER, finding.severity)
