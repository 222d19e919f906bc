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


"""Which devices Windows binds to a driver before Plug and Play has run.

Before Windows 8 by the ``CriticalDeviceDatabase`` (Microsoft's
documentation of it). Since then by the driver database: a device's id
leads to an INF's published name, that to the active package, and that
package's description of the device to the section which names the service
(read in a genuine Windows 10 hive).
"""

from __future__ import annotations

from collections.abc import Iterator

from xenimport.guest import guest as guest_room
from xenimport.guest import registry
from xenimport.remediation.windows import driver_database
from xenimport.remediation.windows import system

CRITICAL = 'Control\\CriticalDeviceDatabase'
_DATABASE = driver_database.DATABASE
_INF_FILES = f'{_DATABASE}\\DriverInfFiles'
_PACKAGES = f'{_DATABASE}\\DriverPackages'


def bound_ids(
    guest: guest_room.Guest, control_set: str, service: str
) -> set[str]:
    """The PCI ids, upper case, that lead to a service at boot."""
    hive = system.system_hive(guest)
    if hive.key(_DATABASE) is None:
        return set(_critical_ids(hive, control_set, service))
    found = set()
    infs: dict[str, bool] = {}
    for key in hive.keys(f'{_DATABASE}\\DeviceIds\\PCI'):
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
    key = hive.key(f'{_DATABASE}\\DriverInfFiles\\{inf_name}')
    if key is None:
        return False
    stored = key.text('Active') or key.text('')
    place = f'{_DATABASE}\\DriverPackages\\{stored}\\Configurations'
    return bool(stored) and any(
        item.text('Service').upper() == service.upper()
        for item in hive.keys(place)
    )


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


def serving_package(
    hive: registry.Hive, service: str
) -> tuple[str, str, str] | None:
    """What leads to a service: published INF, stored package, section.

    None where the driver database knows nothing of it.
    """
    for key in hive.keys(_INF_FILES):
        stored = key.text('Active') or key.text('')
        if not stored:
            continue
        place = f'{_PACKAGES}\\{stored}\\Configurations'
        for section in hive.keys(place):
            if section.text('Service').upper() == service.upper():
                return key.name, stored, section.name
    return None


def is_half(hive: registry.Hive, service: str) -> bool:
    """A service of which the driver database knows no package.

    No id can be bound to such a one, for Windows 8 and later bind an id to
    a package, not to a service.
    """
    return (
        hive.key(_DATABASE) is not None
        and serving_package(hive, service) is None
    )


def bind(
    hive: registry.Hive, hardware_id: str, service: str
) -> list[registry.Edit]:
    """Have a device lead to a service; nothing where none serves it.

    :param hardware_id: ``PCI\\VEN_1AF4&DEV_1042``
    """
    found = serving_package(hive, service)
    if found is None:
        return []
    published, stored, section = found
    edits = hive.set_value(
        f'{_DATABASE}\\DeviceIds\\{hardware_id}',
        registry.Value.binary(published, driver_database.MATCH),
    )
    return edits + hive.set_value(
        f'{_PACKAGES}\\{stored}\\Descriptors\\{hardware_id}',
        registry.Value.sz('Configuration', section),
    )
