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


"""The plain case of a Windows guest, found without libguestfs' search.

``inspect_os`` mounts and looks through everything: 6 s under TCG for a
Windows disk with two partitions, half of all that its repair takes
(measured). Where every file system is one of Windows' own and exactly one
of them holds a registry, there is nothing left to search for. Anything
else is left to ``inspect_os``.

Sources: Microsoft's documentation of ``CurrentVersion`` and of the PE
header; libguestfs' manual for what it looks at (the same files).
"""

from __future__ import annotations

import struct
import typing

from xenimport import exceptions
from xenimport.guest import registry
from xenimport.guest import volumes
from xenimport import model

if typing.TYPE_CHECKING:
    from xenimport.guest import guest as guest_room

_CONFIG = 'Windows/System32/config'
_VERSION = 'Microsoft\\Windows NT\\CurrentVersion'
#: What a partition of a Windows disk may hold, as libguestfs names it; ''
#: is none, as in Microsoft's reserved partition.
_KINDS = volumes.FILE_SYSTEMS | {''}
#: The programs whose machine type tells the system's, the best first.
_PROGRAMS = ('ntoskrnl.exe', 'cmd.exe')
#: Bytes of a program in which its PE header starts.
_HEAD = 4096
#: IMAGE_FILE_MACHINE_*, as libguestfs names architectures.
_MACHINES = {0x014C: 'i386', 0x8664: 'x86_64', 0xAA64: 'aarch64'}


def inspect(guest: guest_room.Guest) -> model.OperatingSystem | None:
    """The Windows of a guest that has nothing else; None leaves it open."""
    devices = _devices(guest)
    if devices is None:
        return None
    found = [volume for volume in devices if _has_system(volume)]
    if len(found) != 1:
        return None
    return _describe(guest, found[0])


def _devices(guest: guest_room.Guest) -> list[volumes.Volume] | None:
    """The NTFS volumes; None where there is anything else as well."""
    found = []
    for drive in guest.drives:
        partitions = guest.partitions(drive)
        devices = [partition.device for partition in partitions] or [drive]
        for device in devices:
            kind = guest.file_system(device)
            if kind not in _KINDS:
                return None
            if kind == 'ntfs':
                try:
                    volume = guest.volume(device)
                except exceptions.GuestError:
                    return None
                if volume is not None:
                    found.append(volume)
    return found


def _has_system(volume: volumes.Volume) -> bool:
    return all(
        volume.is_file(f'{_CONFIG}/{name}') for name in ('SYSTEM', 'SOFTWARE')
    )


def _hive(
    guest: guest_room.Guest, volume: volumes.Volume, name: str
) -> registry.Hive | None:
    """None as well where it is damaged: a check tells of that."""
    try:
        return guest.registry.open(volume, f'{_CONFIG}/{name}')
    except exceptions.GuestError as error:
        if not error.id.startswith('registry.'):
            raise
        return None


def _describe(
    guest: guest_room.Guest, volume: volumes.Volume
) -> model.OperatingSystem:
    software = _hive(guest, volume, 'SOFTWARE')
    version = software.key(_VERSION) if software else None
    major, minor = _version(version)
    return model.OperatingSystem(
        family='windows',
        distribution='windows',
        major=major,
        minor=minor,
        product=version.text('ProductName') if version else '',
        architecture=_architecture(guest, volume),
        root=volume.device,
        hostname=_host_name(_hive(guest, volume, 'SYSTEM')),
        mountpoints={'/': volume.device},
    )


def _version(key: registry.Key | None) -> tuple[int, int]:
    """(10, 0) or (6, 1); (0, 0) where it is not said.

    Since Windows 10 ``CurrentVersion`` stays 6.3 and two numbers of their
    own tell the truth.
    """
    if key is None:
        return 0, 0
    major = key.number('CurrentMajorVersionNumber')
    if major:
        return major, key.number('CurrentMinorVersionNumber') or 0
    first, _, second = key.text('CurrentVersion').partition('.')
    if not (_is_number(first) and _is_number(second)):
        return 0, 0
    return int(first), int(second)


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdecimal() and len(text) < 4


def _architecture(guest: guest_room.Guest, volume: volumes.Volume) -> str:
    for program in _PROGRAMS:
        place = volume.path(f'Windows/System32/{program}')
        if place is None or not guest.is_file(place):
            continue
        found = _MACHINES.get(_machine(guest.call('pread', place, _HEAD, 0)))
        if found:
            return found
    return 'unknown'


def _machine(head: bytes) -> int:
    """A PE header's machine type, 0 where there is no such header."""
    if len(head) < 64 or head[:2] != b'MZ':
        return 0
    (at,) = struct.unpack_from('<I', head, 0x3C)
    if at > len(head) - 6 or head[at : at + 4] != b'PE\0\0':
        return 0
    return int.from_bytes(head[at + 4 : at + 6], 'little')


def _host_name(hive: registry.Hive | None) -> str:
    if hive is None:
        return ''
    select = hive.key('Select')
    number = select.number('Current') if select else None
    key = hive.key(f'ControlSet{number or 1:03d}\\Services\\Tcpip\\Parameters')
    return (key.text('Hostname') or key.text('NV Hostname')) if key else ''
