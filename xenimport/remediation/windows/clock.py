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


"""Whether Windows takes the hardware clock for UTC or for local time.

Nova starts a guest whose ``os_type`` is ``windows`` with the hardware
clock at the local time of its host, any other with UTC (``_set_clock`` of
its libvirt driver). Windows takes it for the local time of its own time
zone, unless ``RealTimeIsUniversal`` is set.

Source: Microsoft's KB 2687252 for ``RealTimeIsUniversal``, whose support
it calls limited; libyal's winreg-kb for its type, REG_DWORD. Some guides
for 64-bit Windows have REG_QWORD: both are understood.
"""

from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Sequence

from xenimport.guest import guest as guest_room
from xenimport.guest import registry
from xenimport import model
from xenimport.remediation.windows import base
from xenimport.remediation.windows import system

_NAME = 'RealTimeIsUniversal'
_FIX = (
    'nothing where the time in the guest is right; else --clock utc where '
    "the cloud's hosts have their clocks at UTC, as most have, or --clock "
    'localtime'
)


class Clock(base.WindowsCheck):
    """What Windows expects the hardware clock to show."""

    id = 'windows.clock'
    title = 'Windows reads the hardware clock as asked'

    def examine(self, guest: guest_room.Guest) -> Iterator[model.Finding]:
        hive = system.system_hive(guest)
        for control_set in system.control_sets(guest):
            path = _path(control_set)
            key = hive.key(path)
            value = key.value(_NAME) if key else None
            if self._is_wrong(value):
                yield self._finding(path, value)

    def _is_wrong(self, value: registry.Value | None) -> bool:
        if self.request.clock == 'utc':
            return value is None or value.number != 1
        if self.request.clock == 'localtime':
            return value is not None and value.number != 0
        # Nothing is asked for, but whoever set this expected UTC.
        return value is not None and bool(value.number)

    def _finding(
        self, path: str, value: registry.Value | None
    ) -> model.Finding:
        evidence = (
            f'{system.full_name("SYSTEM", path)}, value {_NAME}: '
            f'{value or "absent"}'
        )
        if self.request.clock == 'auto':
            return model.Finding(
                self.id,
                model.Severity.NOTE,
                'Windows takes the hardware clock for UTC',
                f'{evidence}; os_type=windows makes Nova give it the local '
                'time of its host',
                _FIX,
                subject=path,
            )
        utc = self.request.clock == 'utc'
        return model.Finding(
            self.id,
            model.Severity.NOTE,
            'Windows does not read the hardware clock as asked for',
            f'{evidence}; --clock {self.request.clock} was given',
            f'set {_NAME} to 1' if utc else f'delete {_NAME}',
            subject=path,
            repair=f'sets {_NAME} to 1' if utc else f'deletes {_NAME}',
        )

    def repair(
        self, guest: guest_room.Guest, finding: model.Finding
    ) -> Sequence[model.Change]:
        hive = system.system_hive(guest)
        edits: list[registry.Edit] = []
        for control_set in system.control_sets(guest):
            path = _path(control_set)
            if path != finding.subject:
                continue
            if self.request.clock == 'utc':
                wanted = registry.Value.dword(_NAME, 1)
                edits += hive.set_value(path, wanted)
            elif self.request.clock == 'localtime':
                edits += hive.delete_value(path, _NAME)
        return self.changes(
            guest, edits, f'--clock {self.request.clock} asks for it'
        )


def _path(control_set: str) -> str:
    return f'{control_set}\\Control\\TimeZoneInformation'
