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


"""Checks of the registry's hives themselves.

Sources: M. Suhanov, "Windows registry file format specification", chapter
"Dirty state of a hive"; Microsoft, "HKLM\\SYSTEM\\CurrentControlSet\\Control
and HKLM\\SYSTEM\\Select" (KB 100010) for the numbers of control sets.
"""

from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Sequence
import functools

from xenimport import exceptions
from xenimport.guest import guest as guest_room
from xenimport.guest import registry
from xenimport import model
from xenimport.remediation.windows import base
from xenimport.remediation.windows import boot
from xenimport.remediation.windows import system

_CLEANLY = (
    'start the guest on Xen, shut it down with "shutdown /s /t 0" and '
    'export it again'
)


def _openable(guest: guest_room.Guest) -> Iterator[registry.Hive]:
    """The hives that checks and repairs work on, the BCD among them.

    Of those that cannot be read other checks tell.
    """
    for opened in (
        *(
            functools.partial(system.hive, guest, name)
            for name in system.HIVES
        ),
        functools.partial(boot.store, guest),
    ):
        try:
            hive = opened()
        except exceptions.GuestError as error:
            if error.id not in system.UNREADABLE:
                raise
        else:
            if hive is not None:
                yield hive


class HiveDamaged(base.WindowsCheck):
    """A hive that cannot be read, or is not there."""

    id = 'windows.hive-damaged'
    title = 'The hives of the registry can be read'

    def examine(self, guest: guest_room.Guest) -> Iterator[model.Finding]:
        for name in system.HIVES:
            try:
                system.hive(guest, name)
            except exceptions.GuestError as error:
                if error.id not in system.UNREADABLE:
                    raise
                yield model.Finding(
                    self.id,
                    model.Severity.BLOCKER,
                    f"Windows' registry hive {name} cannot be read",
                    f'{error.where}: {error.found}',
                    error.fix or _CLEANLY,
                    subject=name,
                )


class HiveDirty(base.WindowsCheck):
    """A hive whose newest changes are in its logs."""

    id = 'windows.hive-dirty'
    title = 'The registry was written out before the guest was stopped'

    def examine(self, guest: guest_room.Guest) -> Iterator[model.Finding]:
        for hive in _openable(guest):
            if not hive.state.dirty:
                continue
            if hive.state.lost:
                yield self._lost(hive)
            else:
                yield self._replayed(hive)

    def _lost(self, hive: registry.Hive) -> model.Finding:
        # What a BCD says is compared with what is on the disks; nobody
        # can know what else was in SYSTEM.
        severity = model.Severity.BLOCKER
        if hive.name not in system.HIVES:
            severity = model.Severity.WARNING
        return model.Finding(
            self.id,
            severity,
            f'The newest changes of the registry hive {hive.name} cannot be '
            'recovered',
            f'{hive.path} is marked as half written, and {hive.state.lost}',
            _CLEANLY,
            subject=hive.name,
            loss=f'what Windows changed last in the hive {hive.name}, '
            'perhaps drivers and services that it needs to start',
        )

    def _replayed(self, hive: registry.Hive) -> model.Finding:
        logs = ' and '.join(hive.state.logs)
        entries = 'entry' if hive.state.replayed == 1 else 'entries'
        return model.Finding(
            self.id,
            model.Severity.NOTE,
            f'The newest changes of the registry hive {hive.name} are in '
            'its logs',
            f'{hive.path} is marked as half written; {hive.state.replayed} '
            f'{entries} of {logs} complete it',
            'nothing: the hive is read with its logs, and written so where '
            'it has to be changed; else Windows does the same',
            subject=hive.name,
        )


class ControlSet(base.WindowsCheck):
    """Select names control sets that are there."""

    id = 'windows.control-set'
    title = 'The control sets that Windows starts with are there'

    def examine(self, guest: guest_room.Guest) -> Iterator[model.Finding]:
        hive = system.system_hive(guest)
        select = hive.key('Select')
        numbers = {
            word: select.number(word) if select else None
            for word in ('Current', 'Default')
        }
        sets = system.control_sets(guest)
        names = {
            word: None if number is None else f'ControlSet{number:03d}'
            for word, number in numbers.items()
        }
        evidence = ', '.join(
            f'{word} is {_shown(name, sets)}' for word, name in names.items()
        )
        evidence = f'{system.full_name(hive.name, "Select")}: {evidence}'
        missing = [word for word, name in names.items() if name not in sets]
        if missing:
            yield self._missing(missing, sets, evidence)
        elif len(sets) > 1:
            yield model.Finding(
                self.id,
                model.Severity.NOTE,
                'Windows starts next with another control set than last',
                evidence,
                'nothing: both are changed alike',
                subject='Select',
            )

    def _missing(
        self, missing: Sequence[str], sets: Sequence[str], evidence: str
    ) -> model.Finding:
        return model.Finding(
            self.id,
            model.Severity.BLOCKER,
            'The control set that Windows starts with is not there',
            evidence,
            'start the guest on Xen and let Windows repair itself; shut it '
            'down cleanly and export it again',
            subject='Select',
            repair=f'{" and ".join(missing)} is set to the number of {sets[0]}'
            if sets
            else None,
        )

    def repair(
        self, guest: guest_room.Guest, finding: model.Finding
    ) -> Sequence[model.Change]:
        """Have Select name the control set that is there."""
        hive = system.system_hive(guest)
        sets = system.control_sets(guest)
        select = hive.key('Select')
        edits: list[registry.Edit] = []
        for word in ('Current', 'Default'):
            number = select.number(word) if select else None
            if number is None or f'ControlSet{number:03d}' not in sets:
                value = registry.Value.dword(
                    word, int(sets[0].removeprefix('ControlSet'))
                )
                edits += hive.set_value('Select', value)
        return self.changes(
            guest, edits, 'Windows starts with the control set it names'
        )


def _shown(name: str | None, sets: Sequence[str]) -> str:
    if name is None:
        return 'absent'
    return name if name in sets else f'{name}, which is not there'
