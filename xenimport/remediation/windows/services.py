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


"""Services and drivers, as the registry of a Windows guest names them.

Source: Microsoft's "HKLM\\SYSTEM\\CurrentControlSet\\Services Registry
Tree": the meaning of Start and Type, and the forms of ImagePath.
"""

from __future__ import annotations

import dataclasses

from xenimport.guest import registry
from xenimport.remediation.windows import system

#: Values of Start.
BOOT = 0
SYSTEM = 1
AUTOMATIC = 2
MANUAL = 3
DISABLED = 4
#: Values of Type that are drivers: kernel, file system, recognizer.
_DRIVER_TYPES = frozenset((1, 2, 8))


@dataclasses.dataclass(frozen=True)
class Service:
    """A service's key in one control set.

    :ivar path: of the key, from the hive's root
    :ivar start: ``BOOT`` ... ``DISABLED``, None where it is not said
    :ivar file: its binary in the system volume with ``/`` between names,
        '' where it is on another volume or has arguments of a kind that
        is not understood
    """

    name: str
    path: str
    start: int | None
    type: int | None
    file: str

    @property
    def is_driver(self) -> bool:
        return self.type in _DRIVER_TYPES


def service(
    hive: registry.Hive, control_set: str, name: str
) -> Service | None:
    """A service of a control set, None where there is no such."""
    path = f'{control_set}\\Services\\{name}'
    key = hive.key(path)
    return _service(key) if key else None


def services(hive: registry.Hive, control_set: str) -> dict[str, Service]:
    """All services of a control set, by their name in upper case."""
    return {
        key.name.upper(): _service(key)
        for key in hive.keys(f'{control_set}\\Services')
    }


def _service(key: registry.Key) -> Service:
    kind = key.number('Type')
    return Service(
        key.name,
        key.path,
        key.number('Start'),
        kind,
        binary(key.text('ImagePath'), key.name, kind in _DRIVER_TYPES),
    )


def binary(image_path: str, name: str, driver: bool) -> str:
    """The file that an ImagePath means, in the system volume.

    Without one a driver is ``System32\\drivers\\NAME.sys``. A relative
    path starts at \\Windows, as does ``\\SystemRoot``.
    """
    text = image_path.strip().replace('/', '\\')
    if not text:
        return f'{system.DRIVERS}/{name}.sys' if driver else ''
    if text.startswith('"'):
        text = text[1:].partition('"')[0]
    elif not driver and '.exe' in text.lower():
        end = text.lower().index('.exe') + len('.exe')
        text = text[:end]
    text = text.removeprefix('\\??\\')
    upper = text.upper()
    for prefix in ('%SYSTEMROOT%\\', '\\SYSTEMROOT\\', '%WINDIR%\\'):
        if upper.startswith(prefix):
            return _path('Windows\\' + text[len(prefix) :])
    if upper.startswith('C:\\'):
        # The system's own volume has this letter unless somebody was odd.
        return _path(text[3:])
    if upper[1:3] == ':\\' or upper.startswith('%') or '\\' not in text:
        return ''
    return _path('Windows\\' + text.lstrip('\\'))


def _path(text: str) -> str:
    return text.replace('\\', '/')
