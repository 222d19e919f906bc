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


"""Installing a driver package into a Windows that is not running.

What Windows itself writes when it installs a package was read in a
genuine Windows 10 hive (a storage driver of another vendor's, published as
oem5.inf): service, driver database, files. Before Windows 8 there is no
driver database; what must be bound before Plug and Play runs stands in the
``CriticalDeviceDatabase`` (Microsoft's documentation of it for Windows XP
and 7). No Windows was booted from the result: see the user guide.
"""

from __future__ import annotations

from collections.abc import Iterator

from xenimport.guest import guest as guest_room
from xenimport.guest import registry
from xenimport import model
from xenimport.remediation.windows import base
from xenimport.remediation.windows import binding
from xenimport.remediation.windows import driver_database
from xenimport.remediation.windows import driver_packages
from xenimport.remediation.windows import system
from xenimport.remediation.windows import virtio_package

CATALOGS = 'Windows/System32/CatRoot/{F750E6C3-38EE-11D1-85E5-00C04FC295EE}'
#: The classes whose packages stand in the SYSTEM hive: what boots. The
#: others' stand in a hive of their own (a guess, for want of a real one).
_BOOT_CLASSES = frozenset(('SCSIADAPTER', 'HDC', 'SYSTEM'))


def unfit(guest: guest_room.Guest, package: virtio_package.Package) -> str:
    """Why a package cannot be installed as a whole, '' where it can.

    Windows 7 binds a disk before Plug and Play runs, and nothing else: how
    it would find another driver whose package it did not stage itself is
    not known.
    """
    if _database(guest, package) is not None or _is_boot_class(package):
        return ''
    return (
        f'{package.driver} cannot be installed from outside: the guest has '
        f'no driver database for the class {package.class_name}'
    )


def _is_boot_class(package: virtio_package.Package) -> bool:
    return package.class_name.upper() in _BOOT_CLASSES


def _database(
    guest: guest_room.Guest, package: virtio_package.Package
) -> registry.Hive | None:
    """The hive whose driver database the package goes into."""
    hive = system.system_hive(guest)
    if hive.key(driver_database.DATABASE) is None:
        return None
    if _is_boot_class(package):
        return hive
    drivers = system.drivers_hive(guest)
    return (
        drivers if drivers and drivers.key(driver_database.DATABASE) else None
    )


class Injector:
    """Installs packages.

    :param finding: the id that the changes name
    """

    def __init__(self, guest: guest_room.Guest, finding: str) -> None:
        self._guest = guest
        self._finding = finding
        self._volume = system.volume(guest)
        self._hive = system.system_hive(guest)

    def inject(
        self, package: virtio_package.Package, reason: str
    ) -> list[model.Change]:
        """Install a package in every control set in use.

        :param reason: why, for the report
        """
        published = self._published(package)
        changes = list(self._copy(package, published, reason))
        edits: list[registry.Edit] = []
        for control_set in system.control_sets(self._guest):
            edits += self._service(control_set, package, published)
        hive = _database(self._guest, package)
        if hive is not None:
            edits += driver_database.Database(hive, package, published).write()
        else:
            for control_set in system.control_sets(self._guest):
                edits += self._critical(control_set, package)
        changes += [
            base.change(self._finding, self._guest, edit, reason)
            for edit in edits
        ]
        return changes

    def _published(self, package: virtio_package.Package) -> str:
        """The name it has already, or the first that is free."""
        data = package.files[package.inf_name]
        taken: set[int | None] = set()
        for name in self._volume.listing(driver_packages.INF).values():
            number = _number(name)
            if number is None:
                continue
            if driver_packages.read_inf(self._volume, name) == data:
                return name.lower()
            taken.add(number)
        for hive in driver_packages.databases(self._guest):
            for key in hive.keys(
                f'{driver_database.DATABASE}\\DriverInfFiles'
            ):
                taken.add(_number(key.name))
            taken |= _numbers_in_use(hive)
        free = next(n for n in range(len(taken) + 1) if n not in taken)
        return f'oem{free}.inf'

    def _copy(
        self, package: virtio_package.Package, published: str, reason: str
    ) -> Iterator[model.Change]:
        """The package's files, each where Windows has it."""
        binary = package.service.binary
        places = {f'{system.DRIVERS}/{binary}': package.binary}
        directory = self._stored(package, published)
        for name, data in package.files.items():
            stored = f'{driver_packages.STORE}/{directory}'
            places[f'{stored}/{name}'] = data
        places[f'{driver_packages.INF}/{published}'] = package.files[
            package.inf_name
        ]
        if package.catalog is not None:
            name = published.replace('.inf', '.cat')
            places[f'{CATALOGS}/{name}'] = package.catalog
        for path, data in places.items():
            if not self._holds(path, data):
                before = self._volume.size(path)
                self._volume.write(path, data)
                yield model.Change(
                    self._finding,
                    self._volume.device,
                    '\\' + path.replace('/', '\\'),
                    before='absent' if before is None else f'{before} bytes',
                    after=f'{len(data)} bytes, from {package.origin}',
                    reason=reason,
                    undo='in Windows run "pnputil /delete-driver '
                    f'{published} /uninstall"',
                )

    def _holds(self, path: str, data: bytes) -> bool:
        return (
            self._volume.size(path) == len(data)
            and self._volume.read(path) == data
        )

    def _stored(self, package: virtio_package.Package, published: str) -> str:
        """Its directory in the driver store, the one it has already first."""
        for hive in driver_packages.databases(self._guest):
            for name, _ in driver_packages.stored_names(hive, published):
                return name
        if self._hive.key(driver_database.DATABASE) is None:
            # Windows 7 says of each package which language it is for.
            head, _, digest = package.stored.rpartition('_')
            return f'{head}_neutral_{digest}'
        return package.stored

    def _service(
        self,
        control_set: str,
        package: virtio_package.Package,
        published: str,
    ) -> list[registry.Edit]:
        service = package.service
        path = f'{control_set}\\Services\\{service.name}'
        values = [
            registry.Value.dword('Type', service.type),
            registry.Value.dword('Start', service.start),
            registry.Value.dword('ErrorControl', service.error_control),
            registry.Value.expand_sz(
                'ImagePath', f'System32\\drivers\\{service.binary}'
            ),
        ]
        if service.group:
            values.append(registry.Value.sz('Group', service.group))
        if service.display_name:
            values.append(
                registry.Value.sz(
                    'DisplayName', _display_name(service, published)
                )
            )
        if self._hive.key(driver_database.DATABASE) is not None:
            values.append(registry.Value.multi_sz('Owners', [published]))
        edits: list[registry.Edit] = []
        for value in values:
            edits += self._hive.set_value(path, value)
        for setting in service.settings:
            edits += self._hive.set_value(
                driver_database.join(path, setting.key), setting.value
            )
        return edits

    def _critical(
        self, control_set: str, package: virtio_package.Package
    ) -> list[registry.Edit]:
        edits: list[registry.Edit] = []
        for hardware_id in driver_database.hardware_ids(package):
            edits += binding.bind_critical(
                self._hive,
                control_set,
                hardware_id,
                package.service.name,
                package.class_guid,
            )
        return edits


def _display_name(service: virtio_package.Service, published: str) -> str:
    """As Windows writes it: where the text is, and the text."""
    if service.display_name.startswith('%'):
        return f'@{published},{service.display_name};{service.display_text}'
    return service.display_name


def _number(name: str) -> int | None:
    """The N of ``oemN.inf``, None for any other name."""
    try:
        return driver_packages.number(name)
    except ValueError:
        return None


def _numbers_in_use(hive: registry.Hive) -> set[int]:
    """What OemInfMap says: a bit a number, the highest of a byte first."""
    key = hive.key(driver_database.DATABASE)
    value = key.value('OemInfMap') if key else None
    if value is None:
        return set()
    return {
        8 * place + bit
        for place, byte in enumerate(value.data[:128])
        for bit in range(8)
        if byte & (0x80 >> bit)
    }
