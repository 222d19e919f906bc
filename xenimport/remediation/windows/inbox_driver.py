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


"""What Windows itself brings for an emulated disk.

Sources: genuine hives of Windows 7 to 10, all of which bind the ids below
to these services; QEMU, whose machine pc has a PIIX3 for IDE and whose
machine q35 an ICH9 with AHCI.
"""

from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Sequence
import dataclasses

from xenimport.guest import guest as guest_room
from xenimport.guest import registry
from xenimport import model
from xenimport.remediation.windows import driver_database
from xenimport.remediation.windows import binding
from xenimport.remediation.windows import disk_bus
from xenimport.remediation.windows import services
from xenimport.remediation.windows import storage_driver
from xenimport.remediation.windows import system

#: The class of IDE and AHCI controllers, devguid.h.
_HDC = '{4d36e96a-e325-11ce-bfc1-08002be10318}'


@dataclasses.dataclass(frozen=True)
class _Controller:
    """An emulated controller.

    :ivar services: that its disks need
    :ivar ids: any of which may lead to the first of them, the best first
    """

    services: tuple[str, ...]
    ids: tuple[str, ...]


_IDE = ('PCI\\VEN_8086&DEV_7010', 'PCI\\CC_0101')
_AHCI = ('PCI\\CC_010601', 'PCI\\CC_0106', 'PCI\\VEN_8086&DEV_2922')
#: By the bus, and whether Windows is 8 or later.
_CONTROLLERS = {
    ('ide', False): _Controller(('intelide', 'atapi'), _IDE),
    ('ide', True): _Controller(('intelide', 'atapi'), _IDE),
    ('sata', False): _Controller(('msahci', 'atapi'), _AHCI),
    ('sata', True): _Controller(('storahci',), _AHCI),
}


class InboxDriver(storage_driver.DriverCheck):
    """On an emulated bus Windows' own driver has to reach the disk."""

    id = 'windows.inbox-driver'
    title = "Windows' own driver reaches an emulated disk"

    def examine(self, guest: guest_room.Guest) -> Iterator[model.Finding]:
        bus = self.drivers.choose(guest).bus
        if bus in disk_bus.DRIVERS:
            return
        controller = _controller(guest, bus)
        for control_set in system.control_sets(guest):
            missing = self._missing(guest, control_set, controller)
            if missing:
                yield self._not_there(bus, control_set, missing)
                continue
            problems = list(self._problems(guest, control_set, controller))
            if problems:
                yield self._not_used(guest, bus, control_set, problems)

    def _missing(
        self,
        guest: guest_room.Guest,
        control_set: str,
        controller: _Controller,
    ) -> list[str]:
        hive = system.system_hive(guest)
        found = []
        for name in controller.services:
            service = services.service(hive, control_set, name)
            if service is None or not system.volume(guest).is_file(
                service.file
            ):
                found.append(name)
        return found

    def _problems(
        self,
        guest: guest_room.Guest,
        control_set: str,
        controller: _Controller,
    ) -> Iterator[str]:
        hive = system.system_hive(guest)
        for name in controller.services:
            service = services.service(hive, control_set, name)
            if service is not None and service.start != services.BOOT:
                shown = system.full_name(hive.name, service.path)
                yield f'{shown}, value Start is {service.start}, not 0'
        if not _is_bound(guest, control_set, controller):
            yield (
                f'none of {", ".join(controller.ids)} leads to a driver in '
                f'{storage_driver.database(guest, control_set)}'
            )
        if storage_driver.database_is_off(guest, control_set):
            yield (
                f'{storage_driver.pnp(control_set)}, value DisableCDDB is 1, '
                'so that this database is not looked at'
            )

    def _not_there(
        self, bus: str, control_set: str, names: list[str]
    ) -> model.Finding:
        return model.Finding(
            self.id,
            model.Severity.BLOCKER,
            f"Windows' own driver for the disk bus {bus} is not there",
            f'{control_set}: {" and ".join(names)}, or the file, is not there',
            'name the virtio-win ISO with --virtio-win, or another bus with '
            '--disk-bus',
            subject=control_set,
            loss='Windows stops with 0x7B if no other driver takes the disk',
        )

    def _not_used(
        self,
        guest: guest_room.Guest,
        bus: str,
        control_set: str,
        problems: list[str],
    ) -> model.Finding:
        controller = _controller(guest, bus)
        # Since Windows 8 an id is bound to a package: one of Windows' own
        # that is not bound is broken in a way that is not known here.
        repairable = _is_critical(guest) or _is_bound(
            guest, control_set, controller
        )
        return model.Finding(
            self.id,
            model.Severity.BLOCKER,
            f"Windows' own driver for the disk bus {bus} is not used at boot",
            '; '.join(problems),
            'name the virtio-win ISO with --virtio-win, or another bus with '
            '--disk-bus',
            subject=control_set,
            repair='has it start at boot, and the disk bound to it'
            if repairable
            else None,
            loss=None
            if repairable
            else 'Windows stops with 0x7B if no other driver takes the disk',
        )

    def repair(
        self, guest: guest_room.Guest, finding: model.Finding
    ) -> Sequence[model.Change]:
        hive = system.system_hive(guest)
        control_set = finding.subject
        controller = _controller(guest, self.drivers.choose(guest).bus)
        edits: list[registry.Edit] = []
        for name in controller.services:
            edits += hive.set_value(
                f'{control_set}\\Services\\{name}',
                registry.Value.dword('Start', services.BOOT),
            )
        if not _is_bound(guest, control_set, controller):
            edits += binding.bind_critical(
                hive,
                control_set,
                controller.ids[0],
                controller.services[0],
                _HDC,
            )
        if storage_driver.database_is_off(guest, control_set):
            edits += hive.set_value(
                f'{control_set}\\Control\\Pnp',
                registry.Value.dword('DisableCDDB', 0),
            )
        return self.changes(
            guest, edits, 'the disk will be on the bus of this driver'
        )


def _controller(guest: guest_room.Guest, bus: str) -> _Controller:
    return _CONTROLLERS[bus, system.release(guest).version >= (6, 2)]


def _is_critical(guest: guest_room.Guest) -> bool:
    """Whether ids are bound by CriticalDeviceDatabase, as in Windows 7."""
    return system.system_hive(guest).key(driver_database.DATABASE) is None


def _is_bound(
    guest: guest_room.Guest, control_set: str, controller: _Controller
) -> bool:
    """Whether any of the controller's ids leads anywhere."""
    hive = system.system_hive(guest)
    for hardware_id in controller.ids:
        if _is_critical(guest):
            name = hardware_id.replace('\\', '#')
            key = hive.key(f'{control_set}\\{binding.CRITICAL}\\{name}')
            if key is not None and key.text('Service'):
                return True
        else:
            key = hive.key(
                f'{driver_database.DATABASE}\\DeviceIds\\{hardware_id}'
            )
            if key is not None and key.values:
                return True
    return False
