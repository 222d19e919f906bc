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


"""The devices that the boot configuration names, against the real disks.

Measured with genuine boot managers: a loader's device with another disk
signature, offset or GUID than the disk has stops with 0xc000000e; elements
rewritten to the layout of :mod:`xenimport.guest.bcd_device` are accepted.
``locate`` and ``boot`` name no disk, are accepted, and so are left alone.
The device of the boot manager itself does not count. A recovery entry with
a wrong device hides the cause of another failure.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses

from xenimport import exceptions
from xenimport.guest import bcd
from xenimport.guest import bcd_device
from xenimport.guest import guest as guest_room
from xenimport.guest import volumes
from xenimport import model
from xenimport.remediation.windows import base
from xenimport.remediation.windows import boot_configuration
from xenimport.remediation.windows import disk_identity
from xenimport.remediation.windows import disk_signature
from xenimport.remediation.windows import system

#: Where Windows PE for recovery is, unless the element says otherwise.
_RECOVERY_IMAGE = '\\Recovery\\WindowsRE\\Winre.wim'
_RECOVERY_LIMIT = 16
#: Characters of a value that a person is shown.
_SHOWN = 200
_NAMES = {
    bcd.APPLICATION_DEVICE: 'ApplicationDevice',
    bcd.OS_DEVICE: 'OSDevice',
    bcd.SDI_DEVICE: 'SdiDevice',
}
_LOADER = 'loader'
#: What names a partition for a device of an object, in libguestfs' naming;
#: None where nothing tells.
Chooser = Callable[[bcd.Object, bcd_device.Device], str | None]


@dataclasses.dataclass(frozen=True)
class Wrong:
    """An element that names no partition, or another than it should.

    :ivar role: what the object is, for a person
    :ivar key: the element's, from the store's root
    :ivar number: the element's
    :ivar device: the partition that is meant, None where nothing tells
    :ivar found: what the element is, for a person
    :ivar wanted: the element as it should be
    """

    role: str
    key: str
    number: int
    device: str | None
    found: str
    wanted: bcd_device.Device | None


class Examiner:
    """Compares the elements of a store with the partitions.

    :param partitions: what those of all drives are known by, by device
    """

    def __init__(
        self,
        guest: guest_room.Guest,
        configuration: boot_configuration.Configuration,
        partitions: Mapping[str, bcd_device.Partition],
    ) -> None:
        self._guest = guest
        self._configuration = configuration
        self._partitions = partitions

    def wrong(self) -> Iterator[Wrong]:
        """Every wrong element that has to do with starting Windows."""
        store = self._configuration.store
        loader = self._configuration.loader
        if store is None or loader is None:
            return
        seen: set[str] = set()
        for role, found, chooser in self._objects(store, loader):
            if found is not None and found.id not in seen:
                seen.add(found.id)
                yield from self._of_object(role, found, chooser)

    def _objects(
        self, store: bcd.Store, loader: bcd.Object
    ) -> Iterator[tuple[str, bcd.Object | None, Chooser]]:
        yield _LOADER, loader, self._windows
        yield 'boot manager', store.manager, self._system
        yield 'memory test', store.objects.get(bcd.MEMDIAG), self._system
        for name in loader.objects(bcd.ASSOCIATED_RESUME_OBJECT):
            yield 'resume loader', store.objects.get(name), self._windows
        for name in loader.objects(bcd.RECOVERY_SEQUENCE)[:_RECOVERY_LIMIT]:
            recovery = store.objects.get(name)
            yield 'recovery', recovery, self._holder
            for option in sorted(_options(recovery)):
                found = store.objects.get(option)
                yield 'recovery options', found, self._holder

    def _of_object(
        self, role: str, found: bcd.Object, chooser: Chooser
    ) -> Iterator[Wrong]:
        numbers = {
            number
            for number, element in found.elements.items()
            if element.is_device
        }
        if role == _LOADER:
            numbers |= {bcd.APPLICATION_DEVICE, bcd.OS_DEVICE}
        for number in sorted(numbers):
            wrong = self._examine(role, found, number, chooser)
            if wrong is not None:
                yield wrong

    def _examine(
        self, role: str, found: bcd.Object, number: int, chooser: Chooser
    ) -> Wrong | None:
        element = found.elements.get(number)
        device = element.device if element else None
        if element is None or device is None:
            if role == _LOADER:
                return self._unreadable(found, number)
            return None
        old = device.partition
        if old is None:
            return None
        right = old in self._partitions.values()
        is_file = device.descriptor.parent is not None
        # A loader's own partition has to be the one with Windows on it.
        if right and (is_file or role != _LOADER):
            return None
        choose = self._holder if is_file else chooser
        place = choose(found, device)
        new = self._partitions.get(place) if place else None
        if new == old or (new is None and right):
            return None
        wanted = device.replaced(new) if new else None
        return Wrong(role, element.key, number, place, str(device), wanted)

    def _unreadable(self, found: bcd.Object, number: int) -> Wrong:
        """A loader's device that is missing, or not to be read."""
        element = found.elements.get(number)
        place = system.volume(self._guest).device
        new = self._partitions.get(place)
        return Wrong(
            _LOADER,
            found.element_key(number),
            number,
            place,
            f'{element.value}'[:_SHOWN]
            if element and element.value
            else 'missing',
            bcd_device.partition_device(new) if new else None,
        )

    def _windows(self, _found: object, _device: object) -> str:
        return system.volume(self._guest).device

    def _system(self, _found: object, _device: object) -> str:
        return self._configuration.volume.device

    def _holder(
        self, found: bcd.Object, device: bcd_device.Device
    ) -> str | None:
        """The partition that holds the file which a device is about."""
        path = device.path or found.text(bcd.SDI_PATH) or _RECOVERY_IMAGE
        for name in self._partitions:
            volume = self._volume(name)
            if volume is not None and volume.is_file(path):
                return name
        return None

    def _volume(self, device: str) -> volumes.Volume | None:
        try:
            return self._guest.volume(device)
        except exceptions.GuestError:
            # One that cannot be mounted does not hold what is looked for.
            return None


def _options(found: bcd.Object | None) -> set[str]:
    """Objects with the options of an object's devices."""
    names = set()
    for element in found.elements.values() if found else ():
        device = element.device if element.is_device else None
        if device is not None and device.options_object:
            names.add(device.options_object)
    return names


def find(guest: guest_room.Guest) -> list[Wrong]:
    """The wrong elements of the store.

    A disk that has lost its signature counts as if it had it back: that
    is repaired first.
    """
    configuration = boot_configuration.load(guest)
    if configuration is None:
        return []
    gone = disk_signature.lost(guest)
    signatures = {gone.drive: gone.wanted} if gone and gone.wanted else {}
    partitions = disk_identity.partitions(guest, signatures)
    return list(Examiner(guest, configuration, partitions).wrong())


class BootDevices(base.WindowsCheck):
    """What the store names exists, and is what is meant."""

    id = 'windows.boot-devices'
    title = 'The boot configuration names the partitions that there are'

    def examine(self, guest: guest_room.Guest) -> Iterator[model.Finding]:
        for wrong in find(guest):
            yield self._finding(wrong)

    def _finding(self, wrong: Wrong) -> model.Finding:
        name = _NAMES.get(wrong.number, 'device')
        critical = wrong.role == _LOADER
        evidence = f'BCD: {name} of the {wrong.role} is {wrong.found}'
        if wrong.wanted is None:
            evidence += ', and nothing tells which partition is meant'
        else:
            evidence += f'; it should be {wrong.wanted} ({wrong.device})'
        return model.Finding(
            self.id,
            model.Severity.BLOCKER if critical else model.Severity.WARNING,
            'The boot configuration names a partition that is not there, or '
            'the wrong one',
            evidence,
            'run "bcdboot C:\\Windows" from an installation medium, and '
            'export the guest again'
            if critical
            else 'in the guest, look at "bcdedit /enum all"; "reagentc '
            '/enable" makes a new recovery entry',
            subject=wrong.key,
            repair='writes the right partition into the element'
            if wrong.wanted is not None
            else None,
        )

    def repair(
        self, guest: guest_room.Guest, finding: model.Finding
    ) -> Sequence[model.Change]:
        configuration = boot_configuration.load(guest)
        if configuration is None or configuration.store is None:
            return ()
        hive = configuration.store.hive
        for wrong in find(guest):
            if wrong.key == finding.subject and wrong.wanted is not None:
                value = bcd.device_value(wrong.wanted)
                edits = hive.set_value(wrong.key, value)
                reason = (
                    f'the {wrong.role} looks for its files on a partition '
                    'that is not there'
                )
                changes = boot_configuration.changes(
                    self.id, guest, configuration, edits, reason
                )
                return [_told(change, wrong) for change in changes]
        return ()


def _told(change: model.Change, wrong: Wrong) -> model.Change:
    """A change with what the bytes mean."""
    if not change.path.endswith('value Element'):
        return change
    return dataclasses.replace(
        change,
        before=f'{change.before}: {wrong.found}',
        after=f'{change.after}: {wrong.wanted}',
    )
