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


"""A Windows guest in memory: volumes, hives and disks, no appliance."""

from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Mapping
import typing

from xenimport import exceptions
from xenimport.guest import guest as guest_room
from xenimport.guest import registry
from xenimport.guest import volumes
from xenimport import model
from xenimport.remediation import base

#: Keys with their values; subkeys are made of the paths.
Tree = dict[str, list[registry.Value]]


def system(**fields: typing.Any) -> model.OperatingSystem:
    values: dict[str, typing.Any] = {
        'family': 'windows',
        'distribution': 'windows',
        'major': 6,
        'minor': 1,
        'product': 'Windows Server 2008 R2 Standard',
        'architecture': 'x86_64',
        'root': '/dev/sda2',
        'mountpoints': {'/': '/dev/sda2'},
    }
    return model.OperatingSystem(**{**values, **fields})


class FakeHive:
    """A tree that a real :class:`registry.Hive` reads from."""

    def __init__(self, tree: Mapping[str, list[registry.Value]]) -> None:
        self.tree: Tree = {'': []}
        for path, values in tree.items():
            self.put(path, values)

    def put(self, path: str, values: list[registry.Value]) -> None:
        parts = path.split('\\') if path else []
        for count in range(len(parts)):
            self.tree.setdefault('\\'.join(parts[: count + 1]), [])
        self.tree[path] = list(values)

    def subkeys(self, path: str) -> list[str]:
        prefix = f'{path}\\'.upper() if path else ''
        return [
            item.rpartition('\\')[2]
            for item in self.tree
            if item
            and item.upper().startswith(prefix)
            and '\\' not in item[len(prefix) :]
        ]

    def fetch(self, path: str, depth: int) -> list[registry.Record]:
        real = next(
            (item for item in self.tree if item.upper() == path.upper()), None
        )
        if real is None:
            return []
        names = self.subkeys(real)
        records: list[registry.Record] = [
            (
                real,
                [(v.name, v.type, v.data) for v in self.tree[real]],
                names,
            )
        ]
        if depth:
            for name in names:
                below = f'{real}\\{name}' if real else name
                records += self.fetch(below, depth - 1)
        return records

    def apply(self, edit: registry.Edit) -> None:
        real = {item.upper(): item for item in self.tree}
        path = real.get(edit.key.upper(), edit.key)
        if edit.name is None:
            if edit.after is None:
                for item in list(self.tree):
                    if f'{item}\\'.upper().startswith(f'{path}\\'.upper()):
                        del self.tree[item]
            else:
                self.put(path, [])
            return
        values = [
            value
            for value in self.tree[path]
            if value.name.upper() != edit.name.upper()
        ]
        if isinstance(edit.after, registry.Value):
            values.append(edit.after)
        self.tree[path] = values


class FakeVolume(volumes.Volume):
    """Files by their path, in the guest's own spelling."""

    def __init__(
        self,
        guest: FakeWindows,
        device: str,
        files: Mapping[str, bytes],
        file_system: str = 'ntfs',
    ) -> None:
        super().__init__(
            typing.cast(guest_room.Guest, guest),
            device,
            file_system,
            '/' + device.removeprefix('/dev/'),
        )
        for path, data in files.items():
            guest.files[f'{self.mount_point}/{path.strip("/")}'] = data


class FakeWindows:
    """What the checks call of :class:`guest_room.Guest`.

    :param files: by device, then by path in that volume
    :param hives: trees by device, then by path in that volume; the file
        itself is there as well
    """

    def __init__(
        self,
        files: Mapping[str, Mapping[str, bytes]] | None = None,
        hives: Mapping[str, Mapping[str, Mapping[str, list[registry.Value]]]]
        | None = None,
        *,
        operating_system: model.OperatingSystem | None = None,
        drives: tuple[str, ...] = ('/dev/sda',),
        partitions: tuple[guest_room.Partition, ...] = (),
        devices: Mapping[str, bytes] | None = None,
        table: str | None = 'msdos',
        file_systems: Mapping[str, str] | None = None,
        answers: Mapping[str, typing.Any] | None = None,
    ) -> None:
        self.files: dict[str, bytes] = {}
        self.directories: set[str] = set()
        self.operating_system: model.OperatingSystem | None = (
            operating_system or system()
        )
        self.drives = drives
        self.devices = {
            name: bytearray(data) for name, data in (devices or {}).items()
        }
        self.table = table
        #: What a call by that name gives: a value, or a function.
        self.answers = dict(answers or {})
        self.calls: list[tuple[str, tuple[typing.Any, ...]]] = []
        self._partitions = partitions
        self._volumes: dict[str, FakeVolume] = {}
        self._hives: dict[tuple[str, str], FakeHive] = {}
        self.registry = registry.Registry(self)
        kinds = file_systems or {}
        hives = hives or {}
        for device in {**(files or {}), **hives, '/dev/sda2': {}}:
            self._volumes[device] = FakeVolume(
                self,
                device,
                (files or {}).get(device, {}),
                kinds.get(device, 'ntfs'),
            )
        for device, trees in hives.items():
            for path, tree in trees.items():
                self.put_hive(device, path, tree)

    def put_hive(
        self,
        device: str,
        path: str,
        tree: Mapping[str, list[registry.Value]],
    ) -> None:
        place = f'/{device.removeprefix("/dev/")}/{path}'
        self.files.setdefault(place, b'regf')
        self._hives[(device, path.upper())] = FakeHive(tree)
        self._volumes[device].forget()

    def hive(self, device: str, path: str) -> Tree:
        """What a hive's file holds, for a test to look at."""
        return self._hives[(device, path.upper())].tree

    # What a registry.Store does.
    def open(
        self, volume: volumes.Volume, path: str, name: str
    ) -> registry.Hive:
        fake = self._hives.get((volume.device, path.upper()))
        if fake is None:
            raise registry.damaged(path, 'no hive')
        return registry.Hive(name, volume.join(path), fake.fetch)

    def create(
        self, volume: volumes.Volume, path: str, name: str
    ) -> registry.Hive:
        fake = FakeHive({})
        self._hives[(volume.device, path.upper())] = fake
        return registry.Hive(name, volume.join(path), fake.fetch)

    def write(self, hive: registry.Hive) -> None:
        for (device, path), fake in self._hives.items():
            volume = self._volumes[device]
            if volume.join(path).upper() == hive.path.upper():
                for edit in hive.edits:
                    fake.apply(edit)
                self.files.setdefault(volume.join(path), b'regf')
        hive.edits.clear()

    # What a Guest does.
    def volume(self, device: str) -> FakeVolume | None:
        return self._volumes.get(device)

    def file_system(self, device: str) -> str:
        return self._volumes[device].file_system

    @property
    def windows(self) -> FakeVolume | None:
        found = self.operating_system
        return self._volumes[found.root] if found else None

    def commit(self) -> None:
        self.registry.commit()
        for volume in self._volumes.values():
            volume.forget()

    def partitions(self, drive: str) -> tuple[guest_room.Partition, ...]:
        return tuple(
            item for item in self._partitions if item.device.startswith(drive)
        )

    def partition_table(self, drive: str) -> str | None:
        return self.table

    def table_sectors(self, drive: str) -> bytes:
        return self.read_device(drive, 0, 34 * 512)

    def drive_of(self, device: str) -> str:
        return device.rstrip('0123456789')

    def read_device(self, device: str, offset: int, length: int) -> bytes:
        return bytes(self.devices[device][offset : offset + length])

    def head(self, device: str) -> bytes:
        return self.read_device(device, 0, 16 * 512)

    def write_device(self, device: str, offset: int, data: bytes) -> None:
        self.devices[device][offset : offset + len(data)] = data

    def _below(self, path: str) -> Iterator[str]:
        prefix = path.rstrip('/') + '/'
        for item in (*self.files, *self.directories):
            if item.startswith(prefix):
                yield item[len(prefix) :]

    def listdir(self, path: str) -> list[str]:
        return sorted({item.split('/')[0] for item in self._below(path)})

    def is_file(self, path: str) -> bool:
        return path in self.files

    def file_size(self, path: str) -> int | None:
        self.calls.append(('file_size', (path,)))
        return len(self.files[path]) if path in self.files else None

    def is_dir(self, path: str) -> bool:
        return path in self.directories or any(self._below(path))

    def exists(self, path: str) -> bool:
        return self.is_file(path) or self.is_dir(path)

    def read(self, path: str, limit: int = 16 << 20) -> bytes:
        if path not in self.files:
            raise exceptions.GuestError(
                'guest.file-missing', 'no such file', where=path
            )
        if len(self.files[path]) > limit:
            raise exceptions.GuestError(
                'guest.file-too-large', 'too large', where=path
            )
        return self.files[path]

    def overwrite(self, path: str, data: bytes) -> None:
        self.files[path] = data

    def call(self, name: str, *args: typing.Any) -> typing.Any:
        self.calls.append((name, args))
        if name in self.answers:
            answer = self.answers[name]
            return answer(*args) if callable(answer) else answer
        match name, args:
            case 'mkdir', [path]:
                self.directories.add(path)
            case 'rm_f', [path]:
                self.files.pop(path, None)
            case 'rm_rf', [path]:
                for item in list(self.files):
                    if item == path or item.startswith(f'{path}/'):
                        del self.files[item]
            case 'copy_file_to_file', [source, target]:
                self.files[target] = self.files[source]
            case 'blockdev_getsize64', [device]:
                return len(self.devices[device])
            case 'pread', [path, length, offset]:
                return self.files[path][offset : offset + length]
            case 'ntfs_3g_probe', _:
                return 0
            case 'getxattr', [_, 'system.ntfs_attrib']:
                # FILE_ATTRIBUTE_ARCHIVE.
                return b'\x20\0\0\0'
            case 'statvfs', [_]:
                return {'flag': 0}
            case ('umount', _) | ('mount_options', _) | ('mkmountpoint', _):
                pass
            case ('write', ['/xenimport-users', _]) | ('ntfsfix', _):
                pass
            case _:
                raise AssertionError(f'the fake has no {name}{args}')
        return None


def treat(
    check: base.Check, fake: FakeWindows
) -> tuple[list[model.Finding], list[model.Change]]:
    """Diagnose, repair what says that it is repaired, and write it.

    The changes of the registry must be all of its difference.
    """
    real = typing.cast(guest_room.Guest, fake)
    found = list(check.diagnose(real))
    changes: list[model.Change] = []
    for finding in found:
        if finding.repair:
            changes += check.repair(real, finding)
    edits = sum(len(hive.edits) for hive in fake.registry.hives)
    told = [item for item in changes if item.path.startswith('HKLM')]
    if len(told) != edits:
        raise AssertionError(f'{edits} edits, but {told}')
    fake.commit()
    return found, changes
