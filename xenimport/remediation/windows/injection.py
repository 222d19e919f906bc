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
from xenimport.remediation.windows import driver_packages
from xenimport.remediation.windows import services
from xenimport.remediation.windows import system
from xenimport.remediation.windows import virtio_package

DATABASE = 'DriverDatabase'
CRITICAL = 'Control\\CriticalDeviceDatabase'
CATALOGS = 'Windows/System32/CatRoot/{F750E6C3-38EE-11D1-85E5-00C04FC295EE}'
#: What a hardware id leads to: a third party's INF, of any rank. Measured
#: in genuine hives; virtio_package.Model.match says what else there is.
MATCH = b'\x01\xff\x00\x00'
#: SignerScore of a driver that Microsoft signed, as in the genuine hive.
_WHQL = 0x0D000005
_STATUS = 0x112
#: ConfigScope of what sets values of a service, and of a device as well
#: (measured).
_SCOPE = 5
_DEVICE_SCOPE = 7
#: The classes whose packages stand in the SYSTEM hive: what boots. The
#: others' stand in a hive of their own (a guess, for want of a real one).
_BOOT_CLASSES = frozenset(('SCSIADAPTER', 'HDC', 'SYSTEM'))


def bound_ids(
    guest: guest_room.Guest, control_set: str, service: str
) -> set[str]:
    """The PCI ids, upper case, that lead to a service at boot."""
    hive = system.system_hive(guest)
    if hive.key(DATABASE) is None:
        return set(_critical_ids(hive, control_set, service))
    found = set()
    infs: dict[str, bool] = {}
    for key in hive.keys(f'{DATABASE}\\DeviceIds\\PCI'):
        if not key.name.upper().startswith('VEN_1AF4&'):
            continue
        for value in key.values:
            name = value.name.lower()
            if name not in infs:
                infs[name] = _leads_to(hive, name, service)
            if infs[name]:
                found.add(f'PCI\\{key.name.upper()}')
    return found


def _critical_ids(
    hive: registry.Hive, control_set: str, service: str
) -> Iterator[str]:
    for key in hive.keys(f'{control_set}\\{CRITICAL}'):
        if key.text('Service').upper() == service.upper():
            yield key.name.upper().replace('#', '\\')


def _leads_to(hive: registry.Hive, inf_name: str, service: str) -> bool:
    """Whether a published INF's active package configures a service."""
    key = hive.key(f'{DATABASE}\\DriverInfFiles\\{inf_name}')
    if key is None:
        return False
    stored = key.text('Active') or key.text('')
    place = f'{DATABASE}\\DriverPackages\\{stored}\\Configurations'
    return bool(stored) and any(
        item.text('Service').upper() == service.upper()
        for item in hive.keys(place)
    )


def is_installed(
    guest: guest_room.Guest, package: virtio_package.Package
) -> bool:
    """Whether the same driver is there with its service."""
    volume = system.volume(guest)
    path = f'{system.DRIVERS}/{package.service.binary}'
    if volume.size(path) != len(package.binary):
        return False
    if volume.read(path) != package.binary:
        return False
    hive = system.system_hive(guest)
    return all(
        services.service(hive, name, package.service.name) is not None
        for name in system.control_sets(guest)
    )


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
    if hive.key(DATABASE) is None:
        return None
    if _is_boot_class(package):
        return hive
    drivers = system.drivers_hive(guest)
    return drivers if drivers and drivers.key(DATABASE) else None


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
            edits += _Database(hive, package, published).write()
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
            for key in hive.keys(f'{DATABASE}\\DriverInfFiles'):
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
        if self._hive.key(DATABASE) is None:
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
        if self._hive.key(DATABASE) is not None:
            values.append(registry.Value.multi_sz('Owners', [published]))
        edits: list[registry.Edit] = []
        for value in values:
            edits += self._hive.set_value(path, value)
        for setting in service.settings:
            edits += self._hive.set_value(
                _join(path, setting.key), setting.value
            )
        return edits

    def _critical(
        self, control_set: str, package: virtio_package.Package
    ) -> list[registry.Edit]:
        edits: list[registry.Edit] = []
        for hardware_id in hardware_ids(package):
            edits += bind_critical(
                self._hive,
                control_set,
                hardware_id,
                package.service.name,
                package.class_guid,
            )
        return edits


def hardware_ids(package: virtio_package.Package) -> list[str]:
    """The ids of a package, each with its short form as well.

    A device of any revision has the short one among its own ids.
    """
    found: dict[str, None] = {}
    for item in package.models:
        found[item.hardware_id] = None
        found['&'.join(item.hardware_id.split('&')[:2])] = None
    return list(found)


def bind_critical(
    hive: registry.Hive,
    control_set: str,
    hardware_id: str,
    service: str,
    class_guid: str,
) -> list[registry.Edit]:
    """Have a device of Windows 7 bound to a service at boot."""
    name = hardware_id.lower().replace('\\', '#')
    path = f'{control_set}\\{CRITICAL}\\{name}'
    return hive.set_value(
        path, registry.Value.sz('Service', service)
    ) + hive.set_value(path, registry.Value.sz('ClassGUID', class_guid))


def _display_name(service: virtio_package.Service, published: str) -> str:
    """As Windows writes it: where the text is, and the text."""
    if service.display_name.startswith('%'):
        return f'@{published},{service.display_name};{service.display_text}'
    return service.display_name


def _lower_tokens(text: str) -> str:
    """Tokens are in lower case in a driver database (measured)."""
    return text.lower() if text.startswith('%') else text


def _join(path: str, key: str) -> str:
    return f'{path}\\{key}' if key else path


def _number(name: str) -> int | None:
    """The N of ``oemN.inf``, None for any other name."""
    try:
        return driver_packages.number(name)
    except ValueError:
        return None


def _numbers_in_use(hive: registry.Hive) -> set[int]:
    """What OemInfMap says: a bit a number, the highest of a byte first."""
    key = hive.key(DATABASE)
    value = key.value('OemInfMap') if key else None
    if value is None:
        return set()
    return {
        8 * place + bit
        for place, byte in enumerate(value.data[:128])
        for bit in range(8)
        if byte & (0x80 >> bit)
    }


class _Database:
    """The entries of one package in a driver database."""

    def __init__(
        self,
        hive: registry.Hive,
        package: virtio_package.Package,
        published: str,
    ) -> None:
        known = driver_packages.stored_names(hive, published)
        self._stored = next((name for name, _ in known), package.stored)
        self._hive = hive
        self._package = package
        self._published = published
        self._edits: list[registry.Edit] = []

    def write(self) -> list[registry.Edit]:
        """Stage the entries; gives what changed."""
        self._inf_file()
        self._description()
        self._configurations()
        self._ids()
        self._strings()
        self._mark_number()
        return self._edits

    def _set(self, path: str, value: registry.Value) -> None:
        self._edits += self._hive.set_value(f'{DATABASE}\\{path}', value)

    def _inf_file(self) -> None:
        path = f'DriverInfFiles\\{self._published}'
        stored = self._stored
        self._set(path, registry.Value.multi_sz('', [stored]))
        self._set(path, registry.Value.sz('Active', stored))
        self._set(
            path, registry.Value.multi_sz('Configurations', self._sections())
        )

    def _sections(self) -> list[str]:
        return list(
            dict.fromkeys(item.section for item in self._package.models)
        )

    def _description(self) -> None:
        package = self._package
        path = f'DriverPackages\\{self._stored}'
        for value in (
            registry.Value.sz('', self._published),
            registry.Value.binary('Version', package.version_data()),
            registry.Value.sz('Provider', package.provider),
            registry.Value.sz('InfName', package.inf_name),
            registry.Value.dword('SignerScore', _WHQL),
            registry.Value.dword('StatusFlags', _STATUS),
        ):
            self._set(path, value)
        if package.catalog_name:
            self._set(path, registry.Value.sz('Catalog', package.catalog_name))

    def _configurations(self) -> None:
        package = self._package
        for section in self._sections():
            path = f'DriverPackages\\{self._stored}\\Configurations\\'
            path += section
            self._set(path, registry.Value.sz('Service', package.service.name))
            scope = _DEVICE_SCOPE if package.device_settings else _SCOPE
            self._set(path, registry.Value.dword('ConfigScope', scope))
            self._set(path, registry.Value.dword('ConfigFlags', 0))
            for setting in package.device_settings:
                self._set(_join(f'{path}\\Device', setting.key), setting.value)
            for setting in package.service.settings:
                self._set(
                    _join(
                        f'{path}\\Services\\{package.service.name}',
                        setting.key,
                    ),
                    setting.value,
                )

    def _ids(self) -> None:
        sections = {
            item.hardware_id: item for item in reversed(self._package.models)
        }
        first = self._package.models[0]
        for hardware_id in hardware_ids(self._package):
            model_of = sections.get(hardware_id, first)
            bus, _, device = hardware_id.partition('\\')
            self._set(
                f'DeviceIds\\{bus}\\{device}',
                registry.Value.binary(
                    self._published,
                    model_of.match
                    if model_of.hardware_id == hardware_id
                    else MATCH,
                ),
            )
            path = f'DriverPackages\\{self._stored}\\Descriptors\\'
            path += f'{bus}\\{device}'
            for name, text in (
                ('Configuration', model_of.section),
                ('Description', _lower_tokens(model_of.description)),
                ('Manufacturer', _lower_tokens(model_of.manufacturer)),
            ):
                self._set(path, registry.Value.sz(name, text))
        self._set(
            f'DeviceIds\\{self._package.class_guid}',
            registry.Value(self._published, registry.NONE, b''),
        )

    def _strings(self) -> None:
        for token, text in self._package.strings:
            self._set(
                f'DriverPackages\\{self._stored}\\Strings',
                registry.Value.sz(token, text),
            )

    def _mark_number(self) -> None:
        """Set the bit of the number that the package is published as."""
        number = driver_packages.number(self._published)
        key = self._hive.key(DATABASE)
        old = key.value('OemInfMap') if key else None
        data = bytearray(old.data if old else b'')
        data += bytes(max(0, number // 8 + 1 - len(data)))
        data[number // 8] |= 0x80 >> number % 8
        self._set_map(bytes(data))

    def _set_map(self, data: bytes) -> None:
        self._edits += self._hive.set_value(
            DATABASE, registry.Value.binary('OemInfMap', data)
        )
