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


"""Windows' own boot drivers, on a guest in memory."""

import unittest

from xenimport.guest import registry
from xenimport import model
from xenimport.remediation.windows import boot_services
from xenimport.tests.unit.remediation import fakes
from xenimport.tests.unit.remediation import windows_fakes

VALUE = registry.Value
CONFIG = 'Windows/System32/config'
#: As a genuine Windows 10 hive has them: name, file.
CHAIN = {
    'ACPI': 'System32\\drivers\\ACPI.sys',
    'pci': 'System32\\drivers\\pci.sys',
    'disk': 'System32\\drivers\\disk.sys',
    'partmgr': 'System32\\drivers\\partmgr.sys',
    'volmgr': 'System32\\drivers\\volmgr.sys',
    'mountmgr': 'System32\\drivers\\mountmgr.sys',
    'volsnap': 'System32\\drivers\\volsnap.sys',
    'fvevol': 'System32\\DRIVERS\\fvevol.sys',
    'Wdf01000': 'system32\\drivers\\Wdf01000.sys',
}


def guest(*, starts=(), absent=(), without_file=(), sets=(1,)):
    tree = {
        'Select': [
            VALUE.dword('Current', sets[0]),
            VALUE.dword('Default', sets[-1]),
        ]
    }
    for number in sets:
        for name, path in CHAIN.items():
            if name not in absent:
                tree[f'ControlSet{number:03d}\\Services\\{name}'] = [
                    VALUE.dword('Type', 1),
                    VALUE.dword('Start', dict(starts).get(name, 0)),
                    VALUE.expand_sz('ImagePath', path),
                ]
    files = {
        f'Windows/System32/drivers/{path.rpartition(chr(92))[2]}': b'MZ'
        for name, path in CHAIN.items()
        if name not in without_file
    }
    return windows_fakes.FakeWindows(
        {'/dev/sda2': files},
        {'/dev/sda2': {f'{CONFIG}/SYSTEM': tree}},
    )


class BootServicesTest(unittest.TestCase):
    def setUp(self):
        super().setUp()
        self.check = boot_services.BootServices(fakes.request())

    def found(self, patient):
        return list(self.check.diagnose(patient))

    def test_sound(self):
        self.assertEqual([], self.found(guest()))

    def test_disabled_is_set_right_in_every_control_set(self):
        patient = guest(starts={'pci': 4}, sets=(1, 2))
        found = self.found(patient)
        self.assertEqual(
            ['ControlSet001\\Services\\pci', 'ControlSet002\\Services\\pci'],
            [item.subject for item in found],
        )
        self.assertEqual(
            {model.Severity.BLOCKER}, {item.severity for item in found}
        )
        changes = [
            change
            for item in found
            for change in self.check.repair(patient, item)
        ]
        patient.commit()
        self.assertEqual([], self.found(patient))
        self.assertEqual(
            [
                (
                    f'HKLM\\SYSTEM\\ControlSet00{number}\\Services\\pci, '
                    'value Start',
                    'REG_DWORD 0x4',
                    'REG_DWORD 0x0',
                )
                for number in (1, 2)
            ],
            [(item.path, item.before, item.after) for item in changes],
        )

    def test_repair_is_idempotent(self):
        patient = guest(starts={'pci': 4})
        (found,) = self.found(patient)
        self.assertEqual(1, len(self.check.repair(patient, found)))
        self.assertEqual([], self.check.repair(patient, found))

    def test_missing_file_cannot_be_repaired(self):
        (found,) = self.found(guest(without_file=('disk',)))
        self.assertIsNone(found.repair)
        self.assertIn('disk.sys', found.evidence)
        self.assertIs(model.Severity.BLOCKER, found.severity)

    def test_missing_service(self):
        (found,) = self.found(guest(absent=('mountmgr',)))
        self.assertIn('Services\\mountmgr', found.evidence)
        self.assertIsNone(found.repair)

    def test_what_older_windows_lack_is_not_missed(self):
        self.assertEqual([], self.found(guest(absent=('volsnap', 'fvevol'))))

    def test_lesser_ones_warn(self):
        (found,) = self.found(guest(starts={'Wdf01000': 3}))
        self.assertIs(model.Severity.WARNING, found.severity)
        self.assertIsNotNone(found.repair)
