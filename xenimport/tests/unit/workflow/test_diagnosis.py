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

import unittest

from xenimport import exceptions
from xenimport.guest import guest as guest_room
from xenimport import model
from xenimport.remediation import base
from xenimport.workflow import diagnosis


REQUEST = base.Request(
    model.VirtualSystem('guest', model.Package('guest.ova', 'ova'), ())
)


class FakeGuest(guest_room.Guest):
    """Broken things by name; a check mends its own."""

    operating_system: model.OperatingSystem | None = None

    def __init__(self, *broken):  # no appliance: nothing to pass on
        self.broken = set(broken)
        self.commits = 0

    def commit(self):
        self.commits += 1


class FakeCheck(base.Check):
    title = 'a fake'

    def __init__(self, check_id, request=None, repairable=True):
        super().__init__(request)
        setattr(self, 'id', check_id)  # noqa: B010 - one class, many ids
        self.repairable = repairable

    def diagnose(self, guest):
        if self.id in guest.broken:
            yield finding(
                self.id, repair='mend it' if self.repairable else None
            )

    def repair(self, guest, item):
        guest.broken.discard(self.id)
        return [model.Change(item.id, '/dev/sda', 'p', 'a', 'b', 'why', 'how')]


class FakeRemediation(base.Remediation):
    def __init__(self, *checks, match=True, generic=False):
        super().__init__()
        setattr(self, 'generic', generic)  # noqa: B010 - both kinds
        self._checks = checks
        self._match = match

    def matches(self, operating_system):
        return self._match

    def checks(self, request):
        return self._checks

    def describe(self, guest):
        return {'broken': sorted(guest.broken)}

    def hardware(self, guest, request):
        return {'disk_bus': 'ide' if guest.broken else 'virtio'}


def finding(finding_id, severity='blocker', repair=None, loss=None):
    return model.Finding(
        finding_id,
        model.Severity(severity),
        'title',
        'evidence',
        'fix',
        repair=repair,
        loss=loss,
    )


class DoctorTest(unittest.TestCase):
    def test_nothing_is_written_before_commit(self):
        guest = FakeGuest('linux.a')
        doctor = diagnosis.Doctor(
            guest, [FakeRemediation(FakeCheck('linux.a'))], REQUEST
        )
        doctor.diagnose()
        doctor.repair()
        self.assertEqual(0, guest.commits)
        doctor.commit()
        self.assertEqual(1, guest.commits)

    def test_remediations_tell_of_the_guest_as_it_is(self):
        guest = FakeGuest('linux.a')
        doctor = diagnosis.Doctor(
            guest,
            [
                FakeRemediation(FakeCheck('linux.a')),
                FakeRemediation(match=False),
            ],
            REQUEST,
        )
        doctor.diagnose()
        self.assertEqual({'broken': ['linux.a']}, doctor.describe())
        self.assertEqual({'disk_bus': 'ide'}, doctor.hardware())
        doctor.repair()
        self.assertEqual({'disk_bus': 'virtio'}, doctor.hardware())

    def test_repair_mends_what_can_be_mended(self):
        guest = FakeGuest('linux.a', 'linux.b')
        doctor = diagnosis.Doctor(
            guest,
            [
                FakeRemediation(
                    FakeCheck('linux.a'),
                    FakeCheck('linux.b', repairable=False),
                    FakeCheck('linux.c'),
                )
            ],
            REQUEST,
        )
        found = doctor.diagnose()
        self.assertEqual(['linux.a', 'linux.b'], [item.id for item in found])
        self.assertEqual(
            ['linux.a'], [item.finding for item in doctor.repair()]
        )
        self.assertEqual(
            ['linux.b'], [item.id for item in doctor.diagnose('verify')]
        )
        self.assertEqual(
            [
                ('linux.a', 'diagnose', 1),
                ('linux.b', 'diagnose', 1),
                ('linux.c', 'diagnose', 0),
                ('linux.a', 'repair', 1),
                ('linux.a', 'verify', 0),
                ('linux.b', 'verify', 1),
                ('linux.c', 'verify', 0),
            ],
            [(run.id, run.phase, run.findings) for run in doctor.runs],
        )

    def test_disabled_and_foreign_checks_do_not_run(self):
        guest = FakeGuest('linux.a', 'linux.b', 'windows.c')
        doctor = diagnosis.Doctor(
            guest,
            [
                FakeRemediation(FakeCheck('linux.a'), FakeCheck('linux.b')),
                FakeRemediation(FakeCheck('windows.c'), match=False),
            ],
            REQUEST,
            disabled=['linux.b'],
        )
        self.assertEqual(['linux.a'], [item.id for item in doctor.diagnose()])


class FamilyTest(unittest.TestCase):
    """A guest that nobody knows must not pass as healthy."""

    def findings(self, *remediations, family='windows'):
        guest = FakeGuest()
        if family:
            guest.operating_system = model.OperatingSystem(
                family, 'win2k8r2', 6, 1, 'Windows Server 2008 R2',
                'x86_64', '/dev/sda2',
            )  # fmt: skip
        doctor = diagnosis.Doctor(guest, remediations, REQUEST)
        return [item.id for item in doctor.diagnose()]

    def test_only_generic_checks_are_not_enough(self):
        for remediations in (
            [FakeRemediation(generic=True)],
            [FakeRemediation(match=False), FakeRemediation(generic=True)],
            [],
        ):
            self.assertEqual(
                ['guest.family-unsupported'], self.findings(*remediations)
            )

    def test_one_that_matches_is(self):
        self.assertEqual(
            [],
            self.findings(FakeRemediation(generic=True), FakeRemediation()),
        )

    def test_no_system_is_the_business_of_another_check(self):
        self.assertEqual(
            [], self.findings(FakeRemediation(generic=True), family=None)
        )


class BlockersTest(unittest.TestCase):
    def test_only_blockers_that_are_not_accepted(self):
        lossy = finding('linux.a', loss='the data disk')
        hard = finding('linux.b')
        warning = finding('linux.c', 'warning')
        with self.assertRaises(exceptions.BlockedError) as caught:
            diagnosis.refuse_blockers(
                [lossy, hard, warning], {'linux.a'}, repairable=True
            )
        self.assertEqual((hard,), caught.exception.findings)
        self.assertEqual(3, caught.exception.exit_code)

    def test_what_states_no_loss_cannot_be_accepted(self):
        self.assertEqual(
            1,
            len(
                diagnosis.blockers(
                    [finding('linux.b')], {'linux.b'}, repairable=True
                )
            ),
        )

    def test_before_the_repair_only_what_has_none_counts(self):
        mendable = finding('linux.a', repair='mend it')
        diagnosis.refuse_blockers([mendable], set(), repairable=False)
        with self.assertRaises(exceptions.BlockedError):
            diagnosis.refuse_blockers([mendable], set(), repairable=True)
