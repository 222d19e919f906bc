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


"""The drivers that Windows itself needs to reach any disk.

Which they are was read in genuine Windows 7 to 10 hives, where all of
them start at boot; Microsoft publishes no such list, so that one of them
is indispensable is an inference.
"""

from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Sequence
import dataclasses

from xenimport.guest import guest as guest_room
from xenimport.guest import registry
from xenimport import model
from xenimport.remediation.windows import base
from xenimport.remediation.windows import services
from xenimport.remediation.windows import system

#: Without one of these there is no disk at all.
_CORE = ('acpi', 'pci', 'disk', 'partmgr', 'volmgr', 'mountmgr')
#: These start at boot where they are there.
_OTHERS = (
    'CLFS',
    'fvevol',
    'msisadrv',
    'vdrvroot',
    'volsnap',
    'volume',
    'Wdf01000',
)


@dataclasses.dataclass(frozen=True)
class _Problem:
    service: str
    control_set: str
    text: str
    repairable: bool


class BootServices(base.WindowsCheck):
    """Windows' own drivers that must be loaded before the disk is."""

    id = 'windows.boot-services'
    title = "Windows' own boot drivers start at boot and are there"

    def examine(self, guest: guest_room.Guest) -> Iterator[model.Finding]:
        for control_set in system.control_sets(guest):
            for name in _CORE + _OTHERS:
                problem = self._problem(guest, control_set, name)
                if problem is not None:
                    yield self._finding(problem)

    def _problem(
        self, guest: guest_room.Guest, control_set: str, name: str
    ) -> _Problem | None:
        hive = system.system_hive(guest)
        found = services.service(hive, control_set, name)
        path = system.full_name(hive.name, f'{control_set}\\Services\\{name}')
        if found is None:
            if name not in _CORE:
                return None
            return _Problem(name, control_set, f'{path} is not there', False)
        if found.file and not system.volume(guest).is_file(found.file):
            return _Problem(
                name,
                control_set,
                f'{path}: its file {found.file} is not there',
                False,
            )
        if found.start == services.BOOT:
            return None
        shown = 'absent' if found.start is None else str(found.start)
        return _Problem(
            name, control_set, f'{path}, value Start is {shown}, not 0', True
        )

    def _finding(self, problem: _Problem) -> model.Finding:
        return model.Finding(
            self.id,
            model.Severity.BLOCKER
            if problem.service in _CORE or not problem.repairable
            else model.Severity.WARNING,
            f"Windows' own driver {problem.service} does not start at boot",
            problem.text,
            'set Start to 0'
            if problem.repairable
            else 'restore the driver in Windows on Xen ("sfc /scannow"), and '
            'export the guest again',
            subject=f'{problem.control_set}\\Services\\{problem.service}',
            repair='sets Start to 0' if problem.repairable else None,
            loss=None
            if problem.repairable
            else 'if the driver is needed, Windows stops with 0x7B',
        )

    def repair(
        self, guest: guest_room.Guest, finding: model.Finding
    ) -> Sequence[model.Change]:
        edits = system.system_hive(guest).set_value(
            finding.subject, registry.Value.dword('Start', services.BOOT)
        )
        return self.changes(
            guest, edits, 'the disk cannot be reached without this driver'
        )
