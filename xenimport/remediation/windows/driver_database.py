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


"""The driver database of Windows 8 and later: what a package has in it.

As read in a genuine Windows 10 hive: an INF's published name leads to a
stored package, a device's id to the published name, and the package's own
key says what its sections set. What no source explains (the bits of
``StatusFlags``, how a score comes about) is written as it stands there.
"""

from __future__ import annotations

from xenimport.guest import registry
from xenimport.remediation.windows import driver_packages
from xenimport.remediation.windows import virtio_package

DATABASE = 'DriverDatabase'
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


def hardware_ids(package: virtio_package.Package) -> list[str]:
    """The ids of a package, each with its short form as well.

    A device of any revision has the short one among its own ids.
    """
    found: dict[str, None] = {}
    for item in package.models:
        found[item.hardware_id] = None
        found['&'.join(item.hardware_id.split('&')[:2])] = None
    return list(found)


def lower_tokens(text: str) -> str:
    """Tokens are in lower case in a driver database (measured)."""
    return text.lower() if text.startswith('%') else text


def join(path: str, key: str) -> str:
    return f'{path}\\{key}' if key else path


class Database:
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
                self._set(join(f'{path}\\Device', setting.key), setting.value)
            for setting in package.driver_settings:
                self._set(join(f'{path}\\Driver', setting.key), setting.value)
            for setting in package.service.settings:
                self._set(
                    join(
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
                ('Description', lower_tokens(model_of.description)),
                ('Manufacturer', lower_tokens(model_of.manufacturer)),
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
