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


"""Takes driver packages out of a guest, as ``dism /remove-driver`` does.

What goes: the package's entries in DriverDatabase or, before Windows 8, in
CriticalDeviceDatabase; its services; its INF, catalog, directory in the
driver store, and its binaries. What stays: a service that a filter list
names, with its package; whatever another package needs; binaries that have
no name of Xen's; the entries of the event log and of installed programs.

Sources: real hives of Windows 10 for DriverDatabase (OemInfMap has a bit a
number, the first bit is the highest); the registry files of
lxc/distrobuilder for Owners and PnpLockdownFiles.
"""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Sequence
import itertools
import posixpath

from xenimport.guest import guest as guest_room
from xenimport.guest import registry
from xenimport import model
from xenimport.remediation.windows import base
from xenimport.remediation.windows import device_filters
from xenimport.remediation.windows import driver_packages
from xenimport.remediation.windows import inf
from xenimport.remediation.windows import services
from xenimport.remediation.windows import system
from xenimport.remediation.windows import xen_families

_DATABASE = driver_packages.DATABASE
_LOCKDOWN = 'Microsoft\\Windows\\CurrentVersion\\Setup\\PnpLockdownFiles'
_CATALOGS = 'Windows/System32/CatRoot/{F750E6C3-38EE-11D1-85E5-00C04FC295EE}'
#: Where INFs put binaries: directory ids 12, 11, and 11 of 32 bits.
_BINARIES = (system.DRIVERS, 'Windows/System32', 'Windows/SysWOW64')
_REASON = 'the drivers of Xen were to be removed'


class Remover:
    """Removes packages of one guest.

    :param finding: the id for the changes
    """

    def __init__(self, guest: guest_room.Guest, finding: str) -> None:
        self._guest = guest
        self._finding = finding
        self._volume = system.volume(guest)
        self._hive = system.system_hive(guest)
        self._control_sets = system.control_sets(guest)

    def remove(
        self,
        packages: Iterable[driver_packages.DriverPackage],
        among: Iterable[driver_packages.DriverPackage],
    ) -> list[model.Change]:
        """Remove packages.

        One that has a driver which a filter list still names stays.

        :param among: all packages of the guest
        """
        busy = frozenset[str]().union(
            *(
                device_filters.filtering(self._hive, control_set)
                for control_set in self._control_sets
            )
        )
        gone = [
            package
            for package in packages
            if not busy & _xen_services(package)
        ]
        kept = [package for package in among if package not in gone]
        changes: list[model.Change] = []
        files: list[tuple[driver_packages.DriverPackage, list[str]]] = []
        for package in gone:
            edits, binaries = self._services(package, kept)
            edits += self._database(package)
            edits += self._lockdown(package)
            changes += [
                base.change(self._finding, self._guest, edit, _REASON)
                for edit in edits
            ]
            files.append((package, [*binaries, *self._binaries(package)]))
        needed = self._needed(kept) if gone else frozenset()
        for package, paths in files:
            changes += self._files(package, paths, needed)
        return changes

    def _services(
        self,
        package: driver_packages.DriverPackage,
        kept: Sequence[driver_packages.DriverPackage],
    ) -> tuple[list[registry.Edit], list[str]]:
        """Delete a package's services; gives their binaries too."""
        names = _xen_services(package) - {
            name.upper() for other in kept for name in other.services
        }
        edits: list[registry.Edit] = []
        binaries = []
        for control_set in self._control_sets:
            deleted = set()
            for name in sorted(names):
                service = services.service(self._hive, control_set, name)
                if service is None:
                    continue
                if self._others(service.path, package):
                    edits += self._disown(self._hive, service.path, package)
                    continue
                edits += self._hive.delete_key(service.path)
                binaries.append(service.file)
                deleted.add(name)
            edits += self._critical_devices(control_set, deleted)
        return edits, binaries

    def _others(
        self, path: str, package: driver_packages.DriverPackage
    ) -> list[str]:
        """Owners of a key besides a package."""
        key = self._hive.key(path)
        return _other_owners(key, package) if key else []

    def _disown(
        self,
        hive: registry.Hive,
        path: str,
        package: driver_packages.DriverPackage,
    ) -> list[registry.Edit]:
        """Take a package out of the owners of a key that others own."""
        key = hive.key(path)
        if key is None or package.published not in _owners(key):
            return []
        others = _other_owners(key, package)
        return hive.set_value(path, registry.Value.multi_sz('Owners', others))

    def _critical_devices(
        self, control_set: str, names: set[str]
    ) -> list[registry.Edit]:
        edits: list[registry.Edit] = []
        path = f'{control_set}\\Control\\CriticalDeviceDatabase'
        for key in list(self._hive.keys(path)) if names else ():
            if key.text('Service').upper() in names:
                edits += self._hive.delete_key(key.path)
        return edits

    def _database(
        self, package: driver_packages.DriverPackage
    ) -> list[registry.Edit]:
        """Delete what the driver databases say of a package."""
        edits: list[registry.Edit] = []
        for hive in driver_packages.databases(self._guest):
            for _, key in list(
                driver_packages.stored_names(hive, package.published)
            ):
                if key.text('').lower() == package.published:
                    edits += hive.delete_key(key.path)
            edits += hive.delete_key(
                f'{_DATABASE}\\DriverInfFiles\\{package.published}'
            )
            edits += _device_ids(hive, package.published)
            edits += _free_number(hive, package.published)
        return edits

    def _lockdown(
        self, package: driver_packages.DriverPackage
    ) -> list[registry.Edit]:
        """Files that only their package may change."""
        edits: list[registry.Edit] = []
        hive = system.software_hive(self._guest)
        for key in list(hive.keys(_LOCKDOWN)):
            if package.published in _owners(key):
                if _other_owners(key, package):
                    edits += self._disown(hive, key.path, package)
                else:
                    edits += hive.delete_key(key.path)
        return edits

    def _needed(
        self, kept: Iterable[driver_packages.DriverPackage]
    ) -> frozenset[str]:
        """Names of files of what stays, in upper case.

        :param kept: packages that stay; all services that are left do
        """
        of_packages = (
            name
            for package in kept
            for name in inf.parse(
                driver_packages.read_inf(self._volume, package.published)
            ).files()
        )
        of_services = (
            posixpath.basename(service.file)
            for control_set in self._control_sets
            for service in services.services(self._hive, control_set).values()
        )
        names = itertools.chain(of_packages, of_services)
        return frozenset(name.upper() for name in names)

    def _binaries(
        self, package: driver_packages.DriverPackage
    ) -> Iterator[str]:
        """Where a package's binaries may be."""
        data = driver_packages.read_inf(self._volume, package.published)
        for name in inf.parse(data).files():
            for directory in _BINARIES:
                yield f'{directory}/{name}'

    def _files(
        self,
        package: driver_packages.DriverPackage,
        binaries: Iterable[str],
        needed: frozenset[str],
    ) -> Iterator[model.Change]:
        for path in dict.fromkeys(binaries):
            name = posixpath.basename(path)
            if xen_families.is_file(name) and name.upper() not in needed:
                yield from self._remove_file(path)
        if self._is_stored(package):
            yield from self._remove_directory(
                f'{driver_packages.STORE}/{package.stored}'
            )
        stem = package.published.removesuffix('.inf')
        yield from self._remove_file(f'{_CATALOGS}/{stem}.cat')
        yield from self._remove_file(f'{driver_packages.INF}/{stem}.pnf')
        # Last: by its INF a second run would know the package.
        yield from self._remove_file(f'{driver_packages.INF}/{stem}.inf')

    def _is_stored(self, package: driver_packages.DriverPackage) -> bool:
        """Whether the directory is the package's: it has the same INF."""
        name = package.stored.rpartition('.inf_')[0] + '.inf'
        path = f'{driver_packages.STORE}/{package.stored}/{name}'
        data = driver_packages.read_inf(self._volume, package.published)
        if not package.stored or not data:
            return False
        return (
            self._volume.size(path) == len(data)
            and self._volume.read(path, inf.SIZE_LIMIT) == data
        )

    def _remove_file(self, path: str) -> Iterator[model.Change]:
        size = self._volume.size(path)
        if size is not None:
            yield self._change(path, f'a file of {size} bytes')

    def _remove_directory(self, path: str) -> Iterator[model.Change]:
        if self._volume.is_dir(path):
            count = len(self._volume.listing(path))
            yield self._change(path, f'a directory with {count} names')

    def _change(self, path: str, before: str) -> model.Change:
        place = (self._volume.path(path) or path).removeprefix(
            self._volume.mount_point
        )
        self._volume.remove(path)
        return model.Change(
            self._finding,
            self._volume.device,
            place,
            before=before,
            after='absent',
            reason=_REASON,
            undo='install the drivers of Xen again',
        )


def _xen_services(package: driver_packages.DriverPackage) -> frozenset[str]:
    """A package's services that are known as Xen's, in upper case."""
    names = frozenset(name.upper() for name in package.services)
    return names & xen_families.service_names()


def _owners(key: registry.Key) -> list[str]:
    return [name.lower() for name in key.strings('Owners')]


def _other_owners(
    key: registry.Key, package: driver_packages.DriverPackage
) -> list[str]:
    return [
        name
        for name in key.strings('Owners')
        if name.lower() != package.published
    ]


def _device_ids(hive: registry.Hive, published: str) -> list[registry.Edit]:
    """Devices that a package serves, or served; empty keys go as well."""
    edits: list[registry.Edit] = []
    root = f'{_DATABASE}\\DeviceIds'
    touched = []
    for key in list(hive.walk(root, 2)):
        if key.path.upper() != root.upper() and key.value(published):
            edits += hive.delete_value(key.path, published)
            touched.append(key.path)
    for path in touched:
        # An id, then the bus above it.
        for place in (path, path.rpartition('\\')[0]):
            left = hive.key(place)
            if left is None or place.upper() == root.upper():
                continue
            if not left.values and not left.subkeys:
                edits += hive.delete_key(place)
    return edits


def _free_number(hive: registry.Hive, published: str) -> list[registry.Edit]:
    """Note that an oemN.inf is free again."""
    database = hive.key(_DATABASE)
    value = database.value('OemInfMap') if database else None
    index, bit = divmod(driver_packages.number(published), 8)
    if value is None or index >= len(value.data):
        return []
    data = bytearray(value.data)
    data[index] &= ~(0x80 >> bit) & 0xFF
    return hive.set_value(
        _DATABASE, registry.Value(value.name, value.type, bytes(data))
    )
