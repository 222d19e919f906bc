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


"""Services of Xen: drivers and programs that have no use on KVM.

They are disabled, not deleted: that can be taken back, and the vendor's
uninstaller still works. A driver that a filter list still names is never
touched: disabled, it would stop the devices that it filters.

Source: XenBootFix, which disables the same services.
"""

from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Sequence

from xenimport.guest import guest as guest_room
from xenimport.guest import registry
from xenimport import model
from xenimport.remediation import base as remediation_base
from xenimport.remediation.windows import base
from xenimport.remediation.windows import device_filters
from xenimport.remediation.windows import services
from xenimport.remediation.windows import system
from xenimport.remediation.windows import xen_families

_WORDS = {
    services.BOOT: 'boot',
    services.SYSTEM: 'system',
    services.AUTOMATIC: 'automatic',
    services.MANUAL: 'manual',
}


class XenServices(base.WindowsCheck):
    """Services of Xen that start by themselves."""

    id = 'windows.xen-services'
    title = 'No service of Xen starts by itself'

    def __init__(self, request: remediation_base.Request) -> None:
        super().__init__(request)
        self._left: dict[str, frozenset[str]] = {}

    def examine(self, guest: guest_room.Guest) -> Iterator[model.Finding]:
        self._left.clear()
        found: dict[str, list[services.Service]] = {}
        for service in self._active(guest):
            found.setdefault(service.name.upper(), []).append(service)
        for name, items in found.items():
            yield self._finding(name, items)

    def _active(self, guest: guest_room.Guest) -> Iterator[services.Service]:
        """Those of any control set that the request wants to be disabled."""
        last = services.AUTOMATIC
        if self.request.xen_drivers == 'remove':
            last = services.MANUAL
        hive = system.system_hive(guest)
        for control_set in system.control_sets(guest):
            for name, service in services.services(hive, control_set).items():
                start = service.start
                if name in xen_families.service_names() and (
                    start is not None and start <= last
                ):
                    yield service

    def _finding(
        self, name: str, items: Sequence[services.Service]
    ) -> model.Finding:
        early = any(
            item.start in (services.BOOT, services.SYSTEM) for item in items
        )
        evidence = '; '.join(
            f'{system.full_name("SYSTEM", item.path)}: Start is '
            f'{item.start} ({_WORDS[item.start or 0]})'
            for item in items
        )
        return model.Finding(
            self.id,
            model.Severity.BLOCKER if early else model.Severity.WARNING,
            f'The Xen service {items[0].name} starts by itself'
            if early or items[0].start == services.AUTOMATIC
            else f'The Xen service {items[0].name} can start',
            evidence,
            f'disable it: sc config {items[0].name} start= disabled',
            subject=name,
            repair='sets Start to 4 (disabled), once no filter list names it',
            loss='drivers of Xen start without Xen: old ones are said to '
            'stop Windows (0x7E)',
        )

    def _filtering(
        self, hive: registry.Hive, control_set: str
    ) -> frozenset[str]:
        """The filters that are left, looked for once a repair.

        Those of Xen have been taken out before; to look through every
        device takes 0.2 s (measured).
        """
        if control_set not in self._left:
            self._left[control_set] = device_filters.filtering(
                hive, control_set
            )
        return self._left[control_set]

    def repair(
        self, guest: guest_room.Guest, finding: model.Finding
    ) -> Sequence[model.Change]:
        hive = system.system_hive(guest)
        edits: list[registry.Edit] = []
        for service in list(self._active(guest)):
            if service.name.upper() != finding.subject:
                continue
            control_set = service.path.partition('\\')[0]
            if finding.subject in self._filtering(hive, control_set):
                continue
            edits += hive.set_value(
                service.path,
                registry.Value.dword('Start', services.DISABLED),
            )
        return self.changes(
            guest, edits, 'there is no Xen for it to work with'
        )
