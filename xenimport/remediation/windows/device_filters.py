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


"""Filter drivers of device classes and devices (UpperFilters, LowerFilters).

Windows starts a device only when every filter that its class or its own
key names can be loaded. Xen's filters cannot without Xen: a class filter
that fails stops all controllers of the class, the boot disk's too (stop
0x7B). So filters go before the services that they name are disabled.

Sources: Microsoft's "Registry Entries for Device Objects and Driver
Stacks"; XenBootFix for xenfilt and scsifilt; the INF files of GPLPV.
"""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Sequence
import dataclasses
import itertools
import re

from xenimport.guest import guest as guest_room
from xenimport.guest import registry
from xenimport import model
from xenimport.remediation.windows import base
from xenimport.remediation.windows import inf
from xenimport.remediation.windows import services
from xenimport.remediation.windows import system
from xenimport.remediation.windows import xen_families

#: Of a class's or a device's key.
_VALUES = ('UpperFilters', 'LowerFilters')
_GUID = re.compile(r'\{[0-9a-f-]{36}\}', re.IGNORECASE)
#: Of devices: enumerator, device, instance.
_ENUM_DEPTH = 3
#: The classes that the boot disk, or the network, hangs on.
_PATH_CLASSES = {
    '{4D36E97D-E325-11CE-BFC1-08002BE10318}': 'System',
    '{4D36E96A-E325-11CE-BFC1-08002BE10318}': 'HDC',
    '{4D36E97B-E325-11CE-BFC1-08002BE10318}': 'SCSIAdapter',
    '{4D36E967-E325-11CE-BFC1-08002BE10318}': 'DiskDrive',
    '{71A27CDD-812A-11D0-BEC7-08002BE2092F}': 'Volume',
    '{4D36E972-E325-11CE-BFC1-08002BE10318}': 'Net',
}
#: How many names or keys a finding shows.
_SHOWN = 5
#: Filters that are not Xen's: more than any system has.
_NAMES_LIMIT = 200


@dataclasses.dataclass(frozen=True)
class FilterList:
    """One value that names filters.

    :ivar key: of the class or the device
    :ivar device: whether it is a device's
    """

    key: registry.Key
    value: registry.Value
    device: bool

    @property
    def class_guid(self) -> str:
        """The class, in upper case; '' where a device says none."""
        if self.device:
            return self.key.text('ClassGUID').upper()
        return self.key.name.upper()

    @property
    def xen(self) -> tuple[str, ...]:
        """Those of Xen, in order, each once."""
        names = {
            name.upper(): name for name in self.value.strings if _is_xen(name)
        }
        return tuple(names.values())

    def __str__(self) -> str:
        return system.full_name('SYSTEM', self.key.path)


def _is_xen(name: str) -> bool:
    return name.strip().upper() in xen_families.filter_names()


def filter_lists(
    hive: registry.Hive, control_set: str
) -> Iterator[FilterList]:
    """Every filter list of a control set: of classes, then of devices."""
    for key in hive.keys(f'{control_set}\\Control\\Class'):
        if _GUID.fullmatch(key.name):
            yield from _lists(key, False)
    for key in hive.walk(f'{control_set}\\Enum', _ENUM_DEPTH):
        yield from _lists(key, True)


def _lists(key: registry.Key, device: bool) -> Iterator[FilterList]:
    for name in _VALUES:
        value = key.value(name)
        if value is not None:
            yield FilterList(key, value, device)


def filtering(hive: registry.Hive, control_set: str) -> frozenset[str]:
    """Xen's drivers that some filter list still names, in upper case."""
    return frozenset(
        name.strip().upper()
        for item in filter_lists(hive, control_set)
        for name in item.xen
    )


class XenFilters(base.WindowsCheck):
    """Filters of Xen, which cannot load on KVM."""

    id = 'windows.xen-filters'
    title = 'No class or device has a filter driver of Xen'

    def examine(self, guest: guest_room.Guest) -> Iterator[model.Finding]:
        hive = system.system_hive(guest)
        for control_set in system.control_sets(guest):
            devices = []
            for item in filter_lists(hive, control_set):
                if not item.xen:
                    continue
                if item.device:
                    devices.append(item)
                else:
                    yield self._finding(item)
            if devices:
                yield self._of_devices(control_set, devices)

    def _finding(self, item: FilterList) -> model.Finding:
        kind = inf.printable(item.key.text('Class'))
        return model.Finding(
            self.id,
            model.Severity.BLOCKER,
            'A device class has a filter driver of Xen, which cannot load '
            'on KVM',
            f'{item}, value {item.value.name}: {", ".join(item.xen)}'
            + (f' (class {kind[:40]})' if kind else ''),
            f'take {", ".join(item.xen)} out of that value, before the '
            'drivers are removed',
            subject=f'{item.key.path}, {item.value.name}',
            repair='takes them out; the other filters stay as they are',
        )

    def _of_devices(
        self, control_set: str, items: Sequence[FilterList]
    ) -> model.Finding:
        shown = [
            f'{item}, value {item.value.name}: {", ".join(item.xen)}'
            for item in items[:_SHOWN]
        ]
        if len(items) > _SHOWN:
            shown.append(f'and {len(items) - _SHOWN} more')
        return model.Finding(
            self.id,
            model.Severity.BLOCKER,
            'Devices have a filter driver of Xen, which cannot load on KVM',
            '; '.join(map(inf.printable, shown)),
            'take these names out of those values, before the drivers are '
            'removed',
            subject=f'{control_set}\\Enum',
            repair='takes them out; the other filters stay as they are',
        )

    def repair(
        self, guest: guest_room.Guest, finding: model.Finding
    ) -> Sequence[model.Change]:
        hive = system.system_hive(guest)
        edits: list[registry.Edit] = []
        for item in list(_meant(hive, finding.subject)):
            if item.xen:
                edits += _without(hive, item)
        return self.changes(
            guest, edits, 'without Xen a filter of Xen stops its devices'
        )


def _meant(hive: registry.Hive, subject: str) -> Iterator[FilterList]:
    """The lists that a finding is about: of a class, or of all devices.

    Only those are read: there may be many findings.
    """
    if subject.endswith('\\Enum'):
        for key in hive.walk(subject, _ENUM_DEPTH):
            yield from _lists(key, True)
        return
    path, _, name = subject.rpartition(', ')
    found = hive.key(path)
    value = found.value(name) if found else None
    if found is not None and value is not None:
        yield FilterList(found, value, False)


def _without(hive: registry.Hive, item: FilterList) -> list[registry.Edit]:
    """Take Xen's filters out of a list; an empty list goes itself.

    The rest stays byte for byte: what stands behind an empty string, and
    so may not count for Windows, must not count because of us.
    """
    data = item.value.data
    text = data[: len(data) & ~1].decode('utf-16-le', 'surrogatepass')
    stay = [name for name in text.split('\0') if not _is_xen(name)]
    if not any(stay):
        return hive.delete_value(item.key.path, item.value.name)
    text = '\0'.join(stay)
    if not text.endswith('\0\0'):
        text = text.rstrip('\0') + '\0\0'
    data = text.encode('utf-16-le', 'surrogatepass')
    value = dataclasses.replace(item.value, data=data)
    return hive.set_value(item.key.path, value)


class FilterMissing(base.WindowsCheck):
    """Filters of others, on the way to the disk, that cannot load."""

    id = 'windows.filter-missing'
    title = 'The filter drivers of the disk path can load'

    def examine(self, guest: guest_room.Guest) -> Iterator[model.Finding]:
        hive = system.system_hive(guest)
        for control_set in system.control_sets(guest):
            places: dict[str, list[FilterList]] = {}
            names: dict[str, str] = {}
            for item in filter_lists(hive, control_set):
                if item.class_guid in _PATH_CLASSES:
                    for name in _others(item):
                        names.setdefault(name.upper(), name)
                        places.setdefault(name.upper(), []).append(item)
            for upper, items in itertools.islice(places.items(), _NAMES_LIMIT):
                why = _why_not(guest, hive, control_set, names[upper])
                if why:
                    yield self._finding(control_set, names[upper], why, items)

    def _finding(
        self, control_set: str, name: str, why: str, items: list[FilterList]
    ) -> model.Finding:
        where = [
            f'{item}, value {item.value.name} '
            f'({_PATH_CLASSES[item.class_guid]})'
            for item in items[:_SHOWN]
        ]
        shown = inf.printable(name)[:80]
        return model.Finding(
            self.id,
            model.Severity.WARNING,
            'A filter driver on the way to the disk or the network cannot '
            'load',
            inf.printable(f'{shown}: {why}; named by {"; ".join(where)}'),
            f'if Windows stops with 0x7B, take {shown} out of that value; '
            'if it belongs to a program, repair or remove that program',
            subject=f'{control_set}: {shown}',
        )


def _others(item: FilterList) -> Iterable[str]:
    """Filters that are not Xen's, each once."""
    gone = {name.upper() for name in item.xen}
    names = {name.upper(): name for name in item.value.strings}
    return [name for upper, name in names.items() if upper not in gone]


def _why_not(
    guest: guest_room.Guest, hive: registry.Hive, control_set: str, name: str
) -> str:
    """Why a filter cannot load, '' where nothing speaks against it."""
    if '\\' in name:
        return 'this can be no name of a service'
    service = services.service(hive, control_set, name)
    if service is None:
        return f'there is no service of that name in {control_set}'
    if service.start == services.DISABLED:
        return 'its service is disabled'
    if service.file and not system.volume(guest).is_file(service.file):
        return f'{service.file} is not there'
    return ''
