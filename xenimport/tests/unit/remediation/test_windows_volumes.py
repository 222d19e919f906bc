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


"""Which state Windows left its NTFS volumes in.

The exit codes are those of ntfs-3g.probe(8); what ntfs-3g does with each
state is shown in tests/functional/test_windows_boot.py.
"""

from __future__ import annotations

import typing
import unittest

from xenimport import exceptions
from xenimport.guest import guest as guest_room
from xenimport import model
from xenimport.remediation import base
from xenimport.remediation.windows import volumes
from xenimport.tests.unit.guest import test_ntfs
from xenimport.tests.unit.remediation import windows_fakes

_HIBERNATED = 14
_UNCLEAN = 15


def guest(
    states: dict[str, int] | None = None,
    flags: int = 0,
    hibernation: bytes | None = None,
    **more: typing.Any,
) -> typing.Any:
    """Boot files on sda1, Windows on sda2."""
    system = {'Windows/explorer.exe': b'MZ'}
    if hibernation is not None:
        system['HiberFil.sys'] = hibernation
    found = states or {}
    return windows_fakes.FakeWindows(
        {'/dev/sda1': {'bootmgr': b'x'}, '/dev/sda2': system},
        partitions=(
            guest_room.Partition(1, '/dev/sda1', 1 << 20, 9, '0x07', True),
            guest_room.Partition(2, '/dev/sda2', 101 << 20, 9, '0x07'),
        ),
        devices={
            '/dev/sda1': bytes(test_ntfs.volume()),
            '/dev/sda2': bytes(test_ntfs.volume(flags)),
        },
        answers={
            'ntfs_3g_probe': lambda writable, device: found.get(device, 0)
        },
        **more,
    )


def check(kind: type[base.Check], *accept: str) -> base.Check:
    package = model.Package('p', 'disk')
    return kind(
        base.Request(
            model.VirtualSystem('v', package, ()), accept=frozenset(accept)
        )
    )


class HibernatedTest(unittest.TestCase):
    def found(self, patient, *accept):
        return list(check(volumes.NtfsHibernated, *accept).diagnose(patient))

    def test_sound(self):
        for hibernation in (None, bytes(4096), b'wake' + bytes(4092)):
            self.assertEqual([], self.found(guest({}, 0, hibernation)))

    def test_other_states(self):
        for state in (13, _UNCLEAN):
            self.assertEqual([], self.found(guest({'/dev/sda2': state})))

    def test_active_file(self):
        for start in (b'hibr', b'HIBR', b''):
            patient = guest({'/dev/sda2': _HIBERNATED}, 0, start)
            (finding,) = self.found(patient)
            self.assertEqual('windows.ntfs-hibernated', finding.id)
            self.assertIs(model.Severity.BLOCKER, finding.severity)
            self.assertEqual('/dev/sda2', finding.subject)
            self.assertIn('hiberfil.sys is active', finding.evidence)
            self.assertIn('powercfg /h off', finding.fix)
            self.assertIn('shutdown /s /f /t 0', finding.fix)
            self.assertIn('hibernated session', finding.loss)
            self.assertIsNone(finding.repair)

    def test_journal_of_a_running_guest(self):
        for hibernation in (None, bytes(4096)):
            patient = guest({'/dev/sda1': _HIBERNATED}, 0, hibernation)
            (finding,) = self.found(patient)
            self.assertEqual('/dev/sda1', finding.subject)
            self.assertIn('$LogFile', finding.evidence)

    def test_diagnosis_writes_nothing(self):
        patient = guest({'/dev/sda2': _HIBERNATED}, 0, b'hibr')
        self.found(patient, volumes.NtfsHibernated.id)
        names = {name for name, _arguments in patient.calls}
        self.assertLessEqual(names, {'ntfs_3g_probe', 'file_size', 'pread'})

    def test_accepted(self):
        states = {'/dev/sda1': _HIBERNATED, '/dev/sda2': _HIBERNATED}
        patient = guest(states, 0, b'hibr')
        doctor = check(volumes.NtfsHibernated, volumes.NtfsHibernated.id)
        first, second = doctor.diagnose(patient)
        self.assertIn('hiberfil.sys', first.repair)
        patient.calls.clear()
        (change,) = doctor.repair(patient, first)
        self.assertEqual('/dev/sda2', change.target)
        self.assertEqual('windows.ntfs-hibernated', change.finding)
        self.assertIn('hiberfil.sys', change.path)
        # The journal first: with one of version 2 the mount is refused.
        calls = [
            (name, arguments[0])
            for name, arguments in patient.calls
            if name in ('ntfsfix', 'mount_options')
        ]
        self.assertEqual(
            [('ntfsfix', '/dev/sda2'), ('mount_options', 'ro')], calls[:2]
        )
        self.assertIn('remove_hiberfile', calls[2][1].split(','))
        self.assertEqual([], list(doctor.repair(patient, first)))
        self.assertEqual([second], list(doctor.diagnose(patient)))

    def test_ntfsfix_complains(self):
        def refuse(device):
            raise exceptions.GuestError('guest.libguestfs-failed', 'no')

        patient = guest({'/dev/sda2': _HIBERNATED}, 0, b'hibr')
        patient.answers['ntfsfix'] = refuse
        doctor = check(volumes.NtfsHibernated, volumes.NtfsHibernated.id)
        (finding,) = doctor.diagnose(patient)
        self.assertEqual(1, len(doctor.repair(patient, finding)))

    def test_it_stays_read_only(self):
        patient = guest({'/dev/sda2': _HIBERNATED}, 0, b'hibr')
        patient.answers['statvfs'] = {'flag': 1}
        doctor = check(volumes.NtfsHibernated, volumes.NtfsHibernated.id)
        (finding,) = doctor.diagnose(patient)
        with self.assertRaises(exceptions.GuestError) as caught:
            doctor.repair(patient, finding)
        self.assertEqual('guest.volume-read-only', caught.exception.id)

    def test_one_volume_for_both(self):
        patient = guest({'/dev/sda2': _HIBERNATED}, 0, b'hibr')
        patient.files['/sda2/bootmgr'] = b'x'
        del patient.files['/sda1/bootmgr']
        self.assertEqual(1, len(self.found(patient)))

    def test_no_windows(self):
        patient = guest({'/dev/sda2': _HIBERNATED})
        patient.operating_system = None
        self.assertEqual([], self.found(patient))


class DirtyTest(unittest.TestCase):
    def found(self, patient, *accept):
        return list(check(volumes.NtfsDirty, *accept).diagnose(patient))

    def test_sound(self):
        # 0x4000 and the like are Windows' own business.
        for flags in (0, 0x4000, 0x0002):
            self.assertEqual([], self.found(guest({}, flags)))

    def test_marked(self):
        (finding,) = self.found(guest({}, 0x4001))
        self.assertEqual('windows.ntfs-dirty', finding.id)
        self.assertIs(model.Severity.BLOCKER, finding.severity)
        self.assertEqual('/dev/sda2', finding.subject)
        self.assertIn('dirty flag', finding.evidence)
        self.assertIn('chkdsk /f', finding.fix)
        self.assertTrue(finding.loss)
        self.assertIsNone(finding.repair)

    def test_marked_and_accepted(self):
        for accepted in ('windows.ntfs-dirty', 'windows.ntfs-hibernated'):
            (finding,) = self.found(guest({}, 1), accepted)
            self.assertIs(model.Severity.NOTE, finding.severity)
            self.assertIsNone(finding.repair)
        (finding,) = self.found(guest({}, 1), 'windows.release')
        self.assertIs(model.Severity.BLOCKER, finding.severity)

    def test_open_journal(self):
        patient = guest({'/dev/sda2': _UNCLEAN}, 1)
        (finding,) = self.found(patient)
        self.assertIn('$LogFile', finding.evidence)
        self.assertIs(model.Severity.BLOCKER, finding.severity)
        self.assertIsNone(finding.repair)
        self.assertIn('journal', finding.loss)

    def test_open_journal_accepted(self):
        states = {'/dev/sda2': _UNCLEAN}
        patient = guest(states)
        doctor = check(volumes.NtfsDirty, volumes.NtfsDirty.id)
        (finding,) = doctor.diagnose(patient)
        self.assertTrue(finding.repair)
        (change,) = doctor.repair(patient, finding)
        self.assertEqual('$LogFile', change.path)
        self.assertIn(('ntfsfix', ('/dev/sda2',)), patient.calls)
        # As ntfsfix leaves it.
        states.clear()
        patient.devices['/dev/sda2'][:] = test_ntfs.volume(1)
        patient.calls.clear()
        self.assertEqual([], list(doctor.repair(patient, finding)))
        self.assertNotIn('ntfsfix', dict(patient.calls))
        (finding,) = doctor.diagnose(patient)
        self.assertIs(model.Severity.NOTE, finding.severity)

    def test_open_for_writing_is_not_asked_again(self):
        patient = guest({'/dev/sda2': _UNCLEAN})
        patient.windows.write('x', b'')
        self.assertEqual([], self.found(patient))

    def test_fat_has_neither(self):
        patient = guest(
            {'/dev/sda1': _UNCLEAN}, file_systems={'/dev/sda1': 'vfat'}
        )
        self.assertEqual([], self.found(patient))

    def test_damage(self):
        patient = guest()
        patient.devices['/dev/sda2'][3 * 1024 + 16384] = 0
        with self.assertRaises(exceptions.GuestError) as caught:
            self.found(patient)
        self.assertEqual('guest.ntfs-damaged', caught.exception.id)


class DamagedTest(unittest.TestCase):
    def found(self, patient):
        return list(check(volumes.NtfsDamaged).diagnose(patient))

    def test_no_windows_was_found(self):
        patient = guest({'/dev/sda1': 13, '/dev/sda2': _HIBERNATED})
        self.assertEqual([], self.found(patient))
        patient.operating_system = None
        (finding,) = self.found(patient)
        self.assertEqual('windows.ntfs-damaged', finding.id)
        self.assertEqual('/dev/sda1', finding.subject)
        self.assertIs(model.Severity.BLOCKER, finding.severity)
        self.assertIn('chkdsk /f', finding.fix)

    def test_other_file_systems_are_not_asked(self):
        patient = guest({'/dev/sda1': 13})
        patient.operating_system = None
        patient.devices['/dev/sda1'][3:11] = b'MSDOS5.0'
        self.assertEqual([], self.found(patient))
