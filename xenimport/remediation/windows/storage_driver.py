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


"""The driver of the disk that KVM will give a Windows guest.

Windows reaches its disk at boot only if the driver's service starts at
boot, its file is there and is accepted, and the disk's PCI ids lead to it
without Plug and Play having run. Sources: the INF files of virtio-win for
ids and services; Microsoft's documentation of 0x7B; genuine hives for
what binds a device before Plug and Play runs (see :mod:`.injection`).
"""

from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Sequence

from xenimport.guest import guest as guest_room
from xenimport.guest import registry
from xenimport import model
from xenimport.remediation import base as remediation_base
from xenimport.remediation.windows import driver_database
from xenimport.remediation.windows import base
from xenimport.remediation.windows import binding
from xenimport.remediation.windows import disk_bus
from xenimport.remediation.windows import injection
from xenimport.remediation.windows import services
from xenimport.remediation.windows import system

#: A virtio device's ids: as QEMU's machine pc shows it, and as q35 does.
IDS = {
    'viostor': ('PCI\\VEN_1AF4&DEV_1001', 'PCI\\VEN_1AF4&DEV_1042'),
    'vioscsi': ('PCI\\VEN_1AF4&DEV_1004', 'PCI\\VEN_1AF4&DEV_1048'),
}
#: The class of disk controllers, devguid.h.
SCSI_ADAPTER = '{4d36e97b-e325-11ce-bfc1-08002be10318}'
_GET = (
    'name the virtio-win ISO with --virtio-win (fedorapeople.org and the '
    "distributions' virtio-win packages have it), or leave out --disk-bus"
)


class DriverCheck(base.WindowsCheck):
    """A check that knows the drivers; one look serves all of them."""

    def __init__(
        self, request: remediation_base.Request, drivers: disk_bus.Drivers
    ) -> None:
        super().__init__(request)
        self.drivers = drivers


class StorageDriver(DriverCheck):
    """The driver of the chosen bus is there, starts and is bound."""

    id = 'windows.storage-driver'
    title = 'Windows can reach its disk on KVM'

    def examine(self, guest: guest_room.Guest) -> Iterator[model.Finding]:
        # The first of the checks that ask: the guest may have changed.
        self.drivers.forget()
        choice = self.drivers.choose(guest)
        name = disk_bus.DRIVERS.get(choice.bus)
        if name is None:
            return
        driver = self.drivers.driver(guest, name)
        if driver.refused:
            # StorageSignature tells of it.
            return
        if not driver.usable:
            yield self._missing(driver, choice.bus)
        elif driver.service is None:
            yield self._to_inject(driver)
        else:
            yield from self._installed(guest, driver)

    def _missing(self, driver: disk_bus.Driver, bus: str) -> model.Finding:
        return model.Finding(
            self.id,
            model.Severity.BLOCKER,
            f'Windows has no driver for the disk bus {bus}',
            driver.problem,
            _GET,
            subject=driver.name,
        )

    def _to_inject(self, driver: disk_bus.Driver) -> model.Finding:
        origin = driver.package.origin if driver.package else ''
        return model.Finding(
            self.id,
            model.Severity.BLOCKER,
            'Windows has no virtio driver for its disk',
            f'there is no {driver.name} in it that it could use',
            f'install {driver.name} in Windows on Xen, and export again',
            subject=driver.name,
            repair=f'installs {driver.name} from {origin}',
        )

    def _installed(
        self, guest: guest_room.Guest, driver: disk_bus.Driver
    ) -> Iterator[model.Finding]:
        """What keeps a driver that is there from being used."""
        name = driver.name
        problems = list(self._problems(guest, name))
        if not problems:
            return
        yield model.Finding(
            self.id,
            model.Severity.BLOCKER,
            f'The driver {name} is there, but not used at boot',
            '; '.join(problems),
            f'in Windows on Xen install {name} anew with "pnputil '
            '/add-driver", and set Start to 0; or name the virtio-win ISO '
            'with --virtio-win',
            subject=name,
            repair='has it start at boot, and the disk bound to it',
        )

    def _problems(self, guest: guest_room.Guest, name: str) -> Iterator[str]:
        hive = system.system_hive(guest)
        for control_set in system.control_sets(guest):
            place = f'{control_set}\\Services\\{name}'
            shown = system.full_name(hive.name, place)
            found = services.service(hive, control_set, name)
            if found is None:
                yield f'{shown} is not there'
                continue
            if found.start != services.BOOT:
                yield f'{shown}, value Start is {found.start}, not 0'
            missing = self._unbound(guest, control_set, name)
            if missing:
                yield (
                    f'{" and ".join(missing)} do not lead to {name} in '
                    f'{database(guest, control_set)}'
                )
            if database_is_off(guest, control_set):
                yield (
                    f'{pnp(control_set)}, value DisableCDDB is 1, so that '
                    'this database is not looked at'
                )

    def _unbound(
        self, guest: guest_room.Guest, control_set: str, name: str
    ) -> list[str]:
        bound = binding.bound_ids(guest, control_set, name)
        return [
            wanted
            for wanted in IDS[name]
            if not any(
                item == wanted or item.startswith(f'{wanted}&')
                for item in bound
            )
        ]

    def repair(
        self, guest: guest_room.Guest, finding: model.Finding
    ) -> Sequence[model.Change]:
        name = finding.subject
        driver = self.drivers.driver(guest, name)
        if driver.service is None and driver.package is not None:
            return injection.Injector(guest, self.id).inject(
                driver.package, 'the disk will be on the bus of this driver'
            )
        return self._mend(guest, name)

    def _mend(self, guest: guest_room.Guest, name: str) -> list[model.Change]:
        hive = system.system_hive(guest)
        edits: list[registry.Edit] = []
        current = system.control_sets(guest)[0]
        model_place = f'{current}\\Services\\{name}'
        for control_set in system.control_sets(guest):
            place = f'{control_set}\\Services\\{name}'
            if hive.key(place) is None:
                for key in list(hive.walk(model_place)):
                    where = place + key.path[len(model_place) :]
                    for value in key.values:
                        edits += hive.set_value(where, value)
            edits += hive.set_value(
                place, registry.Value.dword('Start', services.BOOT)
            )
            edits += self._bind(guest, control_set, name)
            if database_is_off(guest, control_set):
                edits += hive.set_value(
                    f'{control_set}\\Control\\Pnp',
                    registry.Value.dword('DisableCDDB', 0),
                )
        return self.changes(
            guest, edits, 'Windows reaches the disk through this driver'
        )

    def _bind(
        self, guest: guest_room.Guest, control_set: str, name: str
    ) -> list[registry.Edit]:
        hive = system.system_hive(guest)
        edits: list[registry.Edit] = []
        for hardware_id in self._unbound(guest, control_set, name):
            if hive.key(driver_database.DATABASE) is None:
                edits += binding.bind_critical(
                    hive, control_set, hardware_id, name, SCSI_ADAPTER
                )
            else:
                edits += binding.bind(hive, hardware_id, name)
        return edits


def pnp(control_set: str) -> str:
    return system.full_name('SYSTEM', f'{control_set}\\Control\\Pnp')


def database_is_off(guest: guest_room.Guest, control_set: str) -> bool:
    """Whether Windows 7 is told to bind nothing before Plug and Play."""
    hive = system.system_hive(guest)
    if hive.key(driver_database.DATABASE) is not None:
        return False
    key = hive.key(f'{control_set}\\Control\\Pnp')
    return key is not None and key.number('DisableCDDB') == 1


def database(guest: guest_room.Guest, control_set: str) -> str:
    hive = system.system_hive(guest)
    if hive.key(driver_database.DATABASE) is None:
        return system.full_name(
            hive.name, f'{control_set}\\{binding.CRITICAL}'
        )
    return system.full_name(
        hive.name, f'{driver_database.DATABASE}\\DeviceIds'
    )


class StorageSignature(DriverCheck):
    """Windows accepts the signature of the driver of the chosen bus."""

    id = disk_bus.SIGNATURE
    title = "Windows accepts the disk driver's signature"

    def examine(self, guest: guest_room.Guest) -> Iterator[model.Finding]:
        choice = self.drivers.choose(guest)
        name = disk_bus.DRIVERS.get(choice.bus)
        if name is None:
            return
        driver = self.drivers.driver(guest, name)
        if driver.verdict is None or driver.verdict.accepted:
            return
        if driver.problem and not driver.refused:
            # StorageDriver tells of what is worse.
            return
        yield model.Finding(
            self.id,
            model.Severity.BLOCKER,
            'Windows may refuse the signature of its disk driver',
            f'{name}: {driver.verdict.reason}',
            'use a driver that is signed for this Windows, or leave out '
            '--disk-bus: a bus is taken that Windows has its own driver for',
            subject=name,
            loss='if Windows refuses the driver, it stops with 0xc0000428',
        )


class FallbackBus(DriverCheck):
    """Without a virtio driver, an emulated disk is better than none."""

    id = 'windows.fallback-bus'
    title = 'The disk can be on virtio'

    def examine(self, guest: guest_room.Guest) -> Iterator[model.Finding]:
        choice = self.drivers.choose(guest)
        if not choice.reasons:
            return
        yield model.Finding(
            self.id,
            model.Severity.WARNING,
            f'THE DISK WILL BE ON {choice.bus.upper()}, NOT ON VIRTIO: '
            'slower, but it boots',
            '; '.join(choice.reasons),
            'name the virtio-win ISO with --virtio-win; or install the '
            'drivers in the running guest later and set hw_disk_bus then',
            subject=choice.bus,
        )


class OtherDrivers(DriverCheck):
    """What else of virtio can be installed in one go."""

    id = 'windows.virtio-drivers'
    title = 'Network and the other disk bus have their virtio drivers too'

    def examine(self, guest: guest_room.Guest) -> Iterator[model.Finding]:
        choice = self.drivers.choose(guest)
        chosen = disk_bus.DRIVERS.get(choice.bus)
        for name in (*disk_bus.DRIVERS.values(), disk_bus.NETWORK):
            driver = self.drivers.driver(guest, name)
            there = driver.usable and driver.service is not None
            if name == chosen or there:
                continue
            if driver.usable:
                yield self._to_inject(driver)
            elif name == disk_bus.NETWORK:
                yield self._no_network(driver)

    def _to_inject(self, driver: disk_bus.Driver) -> model.Finding:
        origin = driver.package.origin if driver.package else ''
        network = driver.name == disk_bus.NETWORK
        return model.Finding(
            self.id,
            model.Severity.WARNING if network else model.Severity.NOTE,
            f'Windows has no virtio driver {driver.name}',
            f'there is no {driver.name} in it that it could use',
            f'install {driver.name} in the running guest',
            subject=driver.name,
            repair=f'installs {driver.name} from {origin}',
        )

    def _no_network(self, driver: disk_bus.Driver) -> model.Finding:
        return model.Finding(
            self.id,
            model.Severity.WARNING,
            'THE NETWORK CARD WILL BE AN E1000, NOT VIRTIO: slower, but '
            'Windows has a driver for it',
            driver.problem,
            'name the virtio-win ISO with --virtio-win; or install netkvm in '
            'the running guest later and set hw_vif_model=virtio then',
            subject=driver.name,
        )

    def repair(
        self, guest: guest_room.Guest, finding: model.Finding
    ) -> Sequence[model.Change]:
        driver = self.drivers.driver(guest, finding.subject)
        if driver.service is not None or driver.package is None:
            return ()
        return injection.Injector(guest, self.id).inject(
            driver.package, 'devices of KVM that have no driver yet'
        )
