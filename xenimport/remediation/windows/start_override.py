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


"""StartOverride: drivers that Windows has put aside for this machine.

Since Windows 8, a boot driver whose device was not there at the last
boots gets a key ``StartOverride`` whose value, named by the hardware
configuration, replaces Start. On Xen the disk's driver was Xen's, so those
that KVM's disk needs may have one: Start is 0 and the driver is not loaded
at boot all the same (stop 0x7B). Which configuration a value's name means
is not documented, so the whole key goes. Windows makes it again.

Sources: real hives of Windows 8 to 10; XenBootFix, which deletes it for
stornvme, storahci and pciide; issue 147 of Azure's SAP-on-Azure scripts
for the stop code.
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

#: On the way to any disk.
_PATH = (
    'acpi',
    'atapi',
    'CLFS',
    'disk',
    'fvevol',
    'mountmgr',
    'msisadrv',
    'partmgr',
    'pci',
    'vdrvroot',
    'volmgr',
    'volmgrx',
    'volsnap',
    'volume',
    'Wdf01000',
)
#: On the way to a disk on one bus, by the bus.
_BUSES = {
    'virtio': ('viostor',),
    'scsi': ('vioscsi',),
    'sata': ('storahci', 'msahci'),
    'ide': ('intelide', 'pciide'),
}
_OTHERS = ('netkvm',)
#: Values of one key that a finding shows.
_SHOWN = 5


def override(
    hive: registry.Hive, control_set: str, service: str
) -> registry.Key | None:
    """The key that keeps a driver from starting; None where none does.

    One whose values are all 0 says "start at boot", and hinders nothing.
    """
    key = hive.key(f'{control_set}\\Services\\{service}\\StartOverride')
    if key is None or not any(value.number != 0 for value in key.values):
        return None
    return key


class StartOverride(base.WindowsCheck):
    """Drivers of the disk path that are not started at boot after all."""

    id = 'windows.start-override'
    title = "No driver that KVM's disk needs is overridden"

    def examine(self, guest: guest_room.Guest) -> Iterator[model.Finding]:
        hive = system.system_hive(guest)
        for control_set in system.control_sets(guest):
            for service in self._services():
                key = override(hive, control_set, service)
                if key is not None:
                    yield self._finding(service, key)

    def _services(self) -> Iterator[str]:
        yield from _PATH
        for services in _BUSES.values():
            yield from services
        yield from _OTHERS

    def _needed(self, service: str) -> bool:
        """Whether the disk is certainly on this driver's path.

        With ``auto``, virtio is what the target will be if it can.
        """
        if service in _PATH:
            return True
        buses: tuple[str, ...] = (self.request.disk_bus,)
        if self.request.disk_bus == 'auto':
            buses = 'virtio', 'scsi'
        return any(service in _BUSES.get(bus, ()) for bus in buses)

    def _finding(self, service: str, key: registry.Key) -> model.Finding:
        values = ', '.join(
            f'{value.name[:20]}: {value}'[:80] for value in key.values[:_SHOWN]
        )
        name = system.full_name('SYSTEM', key.path)
        return model.Finding(
            self.id,
            model.Severity.BLOCKER
            if self._needed(service)
            else model.Severity.WARNING,
            f'Windows has put the driver {service} aside for this machine',
            inf.printable(f'{name}: {values}'),
            f'delete the key {name}',
            subject=key.path,
            repair='deletes the key; Start holds again',
        )

    def repair(
        self, guest: guest_room.Guest, finding: model.Finding
    ) -> Sequence[model.Change]:
        hive = system.system_hive(guest)
        edits: list[registry.Edit] = []
        for control_set in system.control_sets(guest):
            for service in self._services():
                key = override(hive, control_set, service)
                if key is not None and key.path == finding.subject:
                    edits += hive.delete_key(key.path)
        return self.changes(
            guest, edits, "KVM's disk needs this driver at boot"
        )
