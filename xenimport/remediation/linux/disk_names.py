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

"""The names of disks: what Xen calls them, and what they are here.

Source of facts: the kernel's admin-guide/devices.txt (majors and minors)
and xen-vbd-interface(7) of Xen (the numbers in xen-vbd-N).
"""

from __future__ import annotations

import dataclasses
import re

from xenimport.guest import guest as guest_room

_NAME = re.compile(r'/dev/(?:xvd|hd|sd)([a-z]{1,2})([1-9]\d{0,2})?\Z')
_VBD = re.compile(
    r'/dev/disk/by-path/(?:xen-)?vbd-(\d{1,9})(?:-part([1-9]\d{0,2}))?\Z'
)
_XEN_MAJOR = 202
_EXTENDED = 1 << 28


@dataclasses.dataclass(frozen=True)
class DiskName:
    """A disk or partition as the guest names it.

    :ivar disk: 0 for the first disk (xvda)
    :ivar partition: its number, None for the whole disk
    """

    disk: int
    partition: int | None


def parse(name: str) -> DiskName | None:
    """What a device's name means, None if it is not one that changes."""
    matched = _NAME.match(name)
    if matched:
        letters, partition = matched.groups()
        disk = 0
        for letter in letters:
            disk = disk * 26 + ord(letter) - ord('a') + 1
        return DiskName(disk - 1, int(partition) if partition else None)
    matched = _VBD.match(name)
    if matched:
        number, partition = int(matched[1]), matched[2]
        return DiskName(_vbd_disk(number), int(partition or 0) or None)
    return None


def _vbd_disk(number: int) -> int:
    if number & _EXTENDED:
        return (number & (_EXTENDED - 1)) >> 8
    major, minor = number >> 8, number & 0xFF
    if major == _XEN_MAJOR:
        return minor >> 4
    if major in (3, 22):
        return (0 if major == 3 else 2) + (minor >> 6)
    return minor >> 4


class Devices:
    """The guest's devices in libguestfs' naming, looked up once."""

    def __init__(self, guest: guest_room.Guest) -> None:
        self._guest = guest
        self._partitions: dict[str, dict[int, str]] = {}
        self._uuids: dict[str, str | None] = {}

    def find(self, name: str, mount_point: str = '') -> str | None:
        """The device that a name of the guest stands for.

        The root's is known from the inspection; the others follow from
        the order of the disks.

        :param mount_point: where the guest mounts it
        :returns: None if the package has no such disk or partition
        """
        system = self._guest.operating_system
        if system and mount_point and mount_point in system.mountpoints:
            return system.mountpoints[mount_point]
        meant = parse(name)
        if meant is None or meant.disk >= len(self._guest.drives):
            return None
        drive = self._guest.drives[meant.disk]
        if meant.partition is None:
            return drive
        if drive not in self._partitions:
            self._partitions[drive] = {
                partition.number: partition.device
                for partition in self._guest.partitions(drive)
            }
        return self._partitions[drive].get(meant.partition)

    def uuid(self, device: str) -> str | None:
        """The UUID of what is on a device, None if it has none."""
        if device not in self._uuids:
            self._uuids[device] = self._guest.uuid(device)
        return self._uuids[device]

    def stable(self, name: str, mount_point: str = '') -> str | None:
        """``UUID=...`` for a name that changes, None if there is none."""
        device = self.find(name, mount_point)
        uuid = self.uuid(device) if device else None
        return f'UUID={uuid}' if uuid else None


class Lookup:
    """The devices of the guest at hand, for the checks that share it.

    Each question to the appliance takes a tenth of a second, and neither
    partitions nor UUIDs change while the checks run.
    """

    def __init__(self) -> None:
        self._guest: guest_room.Guest | None = None
        self._devices: Devices | None = None

    def of(self, guest: guest_room.Guest) -> Devices:
        """The devices of a guest."""
        if self._devices is None or self._guest is not guest:
            self._guest, self._devices = guest, Devices(guest)
        return self._devices
