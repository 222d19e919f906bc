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


"""The signature of the disk that Windows is on, and its drive letter.

A converter that makes the first sector anew, or leaves it out, loses the
four bytes by which the boot manager and Windows know the disk. Measured
with a genuine boot manager: with a signature of zeros, and a store that is
right otherwise, it stops with 0xc000000e.
"""

from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Sequence
import dataclasses
import secrets

from xenimport.guest import bcd
from xenimport.guest import guest as guest_room
from xenimport import model
from xenimport.remediation.windows import base
from xenimport.remediation.windows import boot_configuration
from xenimport.remediation.windows import disk_identity
from xenimport.remediation.windows import system


@dataclasses.dataclass(frozen=True)
class Lost:
    """A signature that is not what it was.

    :ivar found: on the disk
    :ivar wanted: what it was; None where nothing tells, or another disk
        has that one
    :ivar witnesses: what tells, with a verb
    """

    drive: str
    found: int
    wanted: int | None
    witnesses: str


def lost(guest: guest_room.Guest) -> Lost | None:
    """What the signature of Windows' disk was, where it is another now.

    A signature that is not zero may be a new one for a good reason: it
    has to be the store and MountedDevices that both name the other one.
    """
    drive = disk_identity.windows_drive(guest)
    if drive is None:
        return None
    found = disk_identity.signature(guest, drive)
    if found is None:
        return None
    mounted = _from_mounted_devices(guest)
    if found and mounted in (None, found):
        return None
    named = _from_store(guest)
    if found and named != mounted:
        return None
    wanted = named or mounted
    if wanted in _others(guest, drive):
        if found:
            return None
        wanted = None
    words = [
        word
        for word, number in (('the BCD', named), ('MountedDevices', mounted))
        if number == wanted
    ]
    verb = 'names' if len(words) == 1 else 'name'
    return Lost(drive, found, wanted, f'{" and ".join(words)} {verb}')


def _from_store(guest: guest_room.Guest) -> int | None:
    """The signature by which the boot manager looks for Windows."""
    configuration = boot_configuration.load(guest)
    loader = configuration.loader if configuration else None
    for number in (bcd.OS_DEVICE, bcd.APPLICATION_DEVICE):
        element = loader.elements.get(number) if loader else None
        device = element.device if element else None
        partition = device.partition if device else None
        if partition is not None and partition.signature:
            return partition.signature
    return None


def _from_mounted_devices(guest: guest_room.Guest) -> int | None:
    """The signature by which the mount manager knows Windows' volume."""
    value = disk_identity.mounted_system(guest)
    name = disk_identity.parse_mounted_name(value.data) if value else None
    return name[0] or None if isinstance(name, tuple) else None


def _others(guest: guest_room.Guest, drive: str) -> set[int | None]:
    """Signatures of the other drives: two of one kind may not meet."""
    return {
        disk_identity.signature(guest, other)
        for other in guest.drives
        if other != drive
    } - {None}


class DiskSignature(base.WindowsCheck):
    """The four bytes by which Windows knows its disk."""

    id = 'windows.disk-signature'
    title = "The disk has the signature that Windows' boot files name"

    def examine(self, guest: guest_room.Guest) -> Iterator[model.Finding]:
        found = lost(guest)
        if found is None:
            return
        if found.wanted is None:
            yield model.Finding(
                self.id,
                model.Severity.WARNING,
                'The disk has no signature',
                f'{found.drive}: bytes 0x1b8 to 0x1bb of sector 0 are zero; '
                'nothing tells what they were, or another disk has that '
                'signature',
                'nothing, Windows gives a disk without one a new one',
                subject=found.drive,
                repair='writes a new one',
            )
            return
        yield model.Finding(
            self.id,
            model.Severity.BLOCKER,
            'The disk has lost the signature that Windows knows it by',
            f'{found.drive}: {found.found:#010x} at byte 0x1b8 of sector 0; '
            f'{found.witnesses} {found.wanted:#010x}',
            'export the guest again with a tool that copies sector 0 as it is',
            subject=found.drive,
            repair='writes the four bytes back',
        )

    def repair(
        self, guest: guest_room.Guest, finding: model.Finding
    ) -> Sequence[model.Change]:
        found = lost(guest)
        if found is None or found.drive != finding.subject:
            return ()
        wanted = found.wanted
        while wanted is None or wanted in _others(guest, found.drive):
            wanted = 1 + secrets.randbelow(0xFFFFFFFE)
        offset = disk_identity.SIGNATURE_AT
        guest.write_device(found.drive, offset, wanted.to_bytes(4, 'little'))
        return [
            model.Change(
                self.id,
                found.drive,
                'sector 0, bytes 0x1b8-0x1bb',
                before=f'{found.found:#010x}',
                after=f'{wanted:#010x}',
                reason='the boot manager looks for Windows on the disk with '
                'that signature',
                undo='write the number before to the same place, the lowest '
                'byte first',
            )
        ]


class DriveLetter(base.WindowsCheck):
    """What the mount manager remembers of Windows' own volume.

    Windows gives a volume that it does not know the next free letter; its
    own must stay what it was, for the registry and the user's profile
    name it everywhere.
    """

    id = 'windows.drive-letter'
    title = 'Windows keeps the drive letter of its own volume'

    def examine(self, guest: guest_room.Guest) -> Iterator[model.Finding]:
        value = disk_identity.mounted_system(guest)
        wanted = _wanted_name(guest)
        if value is None or wanted is None or value.data == wanted:
            return
        key = system.full_name('SYSTEM', disk_identity.MOUNTED_DEVICES)
        yield model.Finding(
            self.id,
            model.Severity.WARNING,
            'Windows would give its own volume another drive letter',
            f'{key}: {value.name} is {disk_identity.shown(value.data)}; '
            f'Windows is on {disk_identity.shown(wanted)}',
            f'in Windows PE, correct {value.name} in that key',
            subject=value.name,
            repair='corrects the value, and the name of the same volume',
        )

    def repair(
        self, guest: guest_room.Guest, finding: model.Finding
    ) -> Sequence[model.Change]:
        value = disk_identity.mounted_system(guest)
        # The disk as it is now: its signature has been repaired.
        wanted = _wanted_name(guest)
        hive = system.system_hive(guest)
        key = hive.key(disk_identity.MOUNTED_DEVICES)
        if value is None or wanted is None or key is None:
            return ()
        edits = []
        for item in key.values:
            data = _moved(item.data, value.data, wanted)
            if data != item.data:
                new = dataclasses.replace(item, data=data)
                edits += hive.set_value(key.path, new)
        reason = 'volumes keep their drive letters and their names'
        return self.changes(guest, edits, reason)


def _moved(data: bytes, before: bytes, after: bytes) -> bytes:
    """What a volume is remembered by, once Windows' own is by ``after``.

    Where only the signature is another, the same holds for all volumes of
    that disk.
    """
    if data == before:
        return after
    if len(data) == len(before) == len(after) == 12:
        if data[:4] == before[:4] and before[4:] == after[4:]:
            return after[:4] + data[4:]
    return data


def _wanted_name(guest: guest_room.Guest) -> bytes | None:
    """What MountedDevices should have for Windows' own volume.

    None where it is on no plain partition.
    """
    gone = lost(guest)
    restored = {gone.drive: gone.wanted} if gone and gone.wanted else {}
    device = system.volume(guest).device
    partition = disk_identity.partitions(guest, restored).get(device)
    return disk_identity.mounted_name(partition) if partition else None
