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

"""Runs the checks: diagnoses, repairs, and diagnoses again."""

from __future__ import annotations

from collections.abc import Collection
from collections.abc import Iterable
from collections.abc import Sequence
import time
import typing

from oslo_log import log as logging

from xenimport import exceptions
from xenimport.guest import guest as guest_room
from xenimport import model
from xenimport.remediation import base

LOG = logging.getLogger(__name__)


class Doctor:
    """The checks that apply to one guest.

    :ivar runs: every check that ran, in order
    """

    def __init__(
        self,
        guest: guest_room.Guest,
        remediations: Iterable[base.Remediation],
        request: base.Request,
        disabled: Collection[str] = (),
    ) -> None:
        self._guest = guest
        matching = [
            remediation
            for remediation in remediations
            if remediation.matches(guest.operating_system)
        ]
        self._matching = matching
        self._request = request
        self._known = not all(item.generic for item in matching)
        self._checks: list[base.Check] = [
            check
            for remediation in matching
            for check in remediation.checks(request)
            if check.id not in disabled
        ]
        self._found: list[tuple[base.Check, model.Finding]] = []
        self.runs: list[model.CheckRun] = []

    def diagnose(self, phase: str = 'diagnose') -> tuple[model.Finding, ...]:
        """Every finding, in the order of the checks.

        :param phase: ``diagnose``, or ``verify`` after a repair
        """
        self._found = []
        for check in self._checks:
            started = time.monotonic()
            findings = list(check.diagnose(self._guest))
            self._found += [(check, finding) for finding in findings]
            self._record(check, phase, len(findings), started)
        found = tuple(finding for _check, finding in self._found)
        system = self._guest.operating_system
        if system is None or self._known:
            return found
        return (_unsupported(system), *found)

    def repair(self) -> tuple[model.Change, ...]:
        """Mend what the last diagnosis found, where a check can."""
        changes: list[model.Change] = []
        for check in self._checks:
            mine = [
                finding
                for owner, finding in self._found
                if owner is check and finding.repair
            ]
            if not mine:
                continue
            started = time.monotonic()
            for finding in mine:
                LOG.info('repairing %s %s', finding.id, finding.subject)
                changes += check.repair(self._guest, finding)
            self._record(check, 'repair', len(mine), started)
        return tuple(changes)

    def commit(self) -> None:
        """Write what the repair has staged; a new diagnosis sees it."""
        self._guest.commit()

    def describe(self) -> dict[str, typing.Any]:
        """What the remediations have to say of the guest, for a report."""
        found: dict[str, typing.Any] = {}
        for remediation in self._matching:
            found |= remediation.describe(self._guest)
        return found

    def hardware(self) -> dict[str, str]:
        """The hardware that the guest needs, as the remediations say."""
        found: dict[str, str] = {}
        for remediation in self._matching:
            found |= remediation.hardware(self._guest, self._request)
        return found

    def _record(
        self, check: base.Check, phase: str, findings: int, started: float
    ) -> None:
        seconds = time.monotonic() - started
        self.runs.append(
            model.CheckRun(check.id, check.title, phase, findings, seconds)
        )


def _unsupported(system: model.OperatingSystem) -> model.Finding:
    """Nobody here knows what a guest of this family needs."""
    return model.Finding(
        id='guest.family-unsupported',
        severity=model.Severity.BLOCKER,
        title='No remediation knows guests of this family',
        evidence=f'the operating system is {system.family} '
        f'({system.product or system.distribution}, {system.architecture})',
        fix='enable a remediation that handles it, or prepare the guest for '
        'KVM on Xen (virtio drivers, boot loader) and export it again',
        subject=system.family,
        loss='nothing in the guest is looked at or repaired: it may not boot',
    )


def blockers(
    findings: Sequence[model.Finding],
    accepted: Collection[str],
    *,
    repairable: bool,
) -> list[model.Finding]:
    """The findings that stop a run.

    :param accepted: ids that the user named; they count only where the
        finding says what is lost
    :param repairable: whether findings with a repair count as well
    """
    return [
        finding
        for finding in findings
        if finding.severity is model.Severity.BLOCKER
        and (repairable or not finding.repair)
        and not (finding.loss and finding.id in accepted)
    ]


def refuse_blockers(
    findings: Sequence[model.Finding],
    accepted: Collection[str],
    *,
    repairable: bool,
) -> None:
    """Stop the run where blockers are left.

    :raises xenimport.exceptions.BlockedError: naming them
    """
    left = blockers(findings, accepted, repairable=repairable)
    if left:
        raise exceptions.BlockedError(left)
