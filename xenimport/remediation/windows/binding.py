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


"""Binding one more PCI id to a driver that Windows 8 or later has.

The driver database leads from a device's id to an INF's published name,
from there to the active package, and by that package's description of
the device to the section that names the service (read in a genuine
Windows 10 hive).
"""

from __future__ import annotations

from xenimport.guest import registry
from xenimport.remediation.windows import injection

_INF_FILES = f'{injection.DATABASE}\\DriverInfFiles'
_PACKAGES = f'{injection.DATABASE}\\DriverPackages'


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
        f'{injection.DATABASE}\\DeviceIds\\{hardware_id}',
        registry.Value.binary(published, injection.MATCH),
    )
    return edits + hive.set_value(
        f'{_PACKAGES}\\{stored}\\Descriptors\\{hardware_id}',
        registry.Value.sz('Configuration', section),
    )
