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


"""What Xen's drivers remember of devices that they took away.

xen.sys unplugs the emulated disks and network cards when it finds what
its drivers noted here, and xenfilt notes which device is the active one.
Neither holds on KVM, nor for drivers that are installed anew.

Source: win-xenbus (xen/unplug.c, xenfilt, its co-installer); XenBootFix
and XenClean for what to delete.
"""

from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Sequence

from xenimport.guest import guest as guest_room
from xenimport.guest import registry
from xenimport import model
from xenimport.remediation.windows import base
from xenimport.remediation.windows import inf
from xenimport.remediation.windows import system

#: Keys below Services.
_KEYS = ('XEN\\ForceUnplug', 'XEN\\Unplug', 'xenfilt\\Unplug')
_PARAMETERS = ('xenfilt\\Parameters', 'xenbus\\Parameters')
_VALUES = ('ActiveDeviceID', 'ActiveInstanceID', 'ActiveLocationInformation')


class XenUnplug(base.WindowsCheck):
    """Requests to unplug emulated devices."""

    id = 'windows.xen-unplug'
    title = 'Nothing asks Xen to unplug emulated devices'

    def examine(self, guest: guest_room.Guest) -> Iterator[model.Finding]:
        hive = system.system_hive(guest)
        for control_set in system.control_sets(guest):
            for path in _keys(control_set):
                key = hive.key(path)
                # The INFs of today write zeros, for "nothing".
                if key and any(value.number != 0 for value in key.values):
                    yield self._finding(path, _content(key))
            for path, value in _values(hive, control_set):
                yield self._finding(
                    f'{path}, value {value.name}', f'{value}'[:200]
                )

    def _finding(self, place: str, found: str) -> model.Finding:
        return model.Finding(
            self.id,
            model.Severity.WARNING,
            'Drivers of Xen are told to take emulated devices away',
            inf.printable(f'{system.full_name("SYSTEM", place)}: {found}'),
            'delete it',
            subject=place,
            repair='deletes it',
        )

    def repair(
        self, guest: guest_room.Guest, finding: model.Finding
    ) -> Sequence[model.Change]:
        hive = system.system_hive(guest)
        edits: list[registry.Edit] = []
        for control_set in system.control_sets(guest):
            for path in _keys(control_set):
                if path == finding.subject:
                    edits += hive.delete_key(path)
            for path, value in list(_values(hive, control_set)):
                if f'{path}, value {value.name}' == finding.subject:
                    edits += hive.delete_value(path, value.name)
        return self.changes(
            guest, edits, 'KVM has no device that could be unplugged so'
        )


def _keys(control_set: str) -> list[str]:
    return [f'{control_set}\\Services\\{name}' for name in _KEYS]


def _values(
    hive: registry.Hive, control_set: str
) -> Iterator[tuple[str, registry.Value]]:
    for name in _PARAMETERS:
        key = hive.key(f'{control_set}\\Services\\{name}')
        for wanted in _VALUES if key else ():
            value = key.value(wanted) if key else None
            if key is not None and value is not None:
                yield key.path, value


def _content(key: registry.Key) -> str:
    """What a key holds, for a person."""
    texts = [f'{value.name}: {value}'[:100] for value in key.values[:5]]
    return ', '.join(texts) or 'an empty key'
