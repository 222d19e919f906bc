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

"""A guest in memory: files, links and disks, without any appliance."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
import contextlib
import fnmatch
import posixpath
import typing

from xenimport import exceptions
from xenimport.guest import guest as guest_room
from xenimport import model
from xenimport.remediation import base


def operating_system(**fields: typing.Any) -> model.OperatingSystem:
    values: dict[str, typing.Any] = {
        'family': 'linux',
        'distribution': 'debian',
        'major': 12,
        'minor': 0,
        'product': 'Debian GNU/Linux 12',
        'architecture': 'x86_64',
        'root': '/dev/sda1',
        'mountpoints': {'/': '/dev/sda1'},
        'kernels': ('6.1.0',),
        'init': 'systemd',
    }
    return model.OperatingSystem(**{**values, **fields})


def request(**fields: typing.Any) -> base.Request:
    system = {
        name: fields.pop(name)
        for name in ('firmware', 'nics')
        if name in fields
    }
    virtual_system = model.VirtualSystem(
        'guest', model.Package('guest.ova', 'ova'), (), **system
    )
    return base.Request(virtual_system, **fields)


class FakeTree:
    """Of Augeas just what a table of fields needs.

    Like Augeas it refuses a node whose place among the fields is wrong.
    """

    FIELDS: typing.ClassVar = {
        '/etc/fstab': ['spec', 'file', 'vfstype', 'opt', 'dump', 'passno'],
        '/etc/crypttab': ['target', 'device', 'password', 'opt'],
    }

    def __init__(self, guest: FakeGuest) -> None:
        self.guest = guest
        self.lines: dict[str, list[tuple[str, str]]] = {}
        for file, names in self.FIELDS.items():
            rows = [
                line.split()
                for line in guest.files.get(file, b'').decode().splitlines()
                if line.strip() and not line.startswith('#')
            ]
            for number, row in enumerate(rows, 1):
                if len(row) < 2:
                    raise exceptions.GuestError(
                        'guest.config-not-parsed',
                        'no',
                        where=file,
                        found='a line of one word',
                    )
                nodes = []
                for name, value in zip(names, row, strict=False):
                    values = value.split(',') if name == 'opt' else [value]
                    nodes += [(name, one) for one in values]
                self.lines[f'/files{file}/{number}'] = nodes

    def _find(self, path: str) -> tuple[str, str, list[int]]:
        parent, name = path.rsplit('/', 1)
        name, _, index = name.partition('[')
        found = [
            i
            for i, (n, _) in enumerate(self.lines.get(parent, []))
            if n == name
        ]
        if index == 'last()]':
            found = found[-1:]
        elif index:
            found = found[int(index[:-1]) - 1 :][:1]
        return parent, name, found

    def match(self, path: str) -> list[str]:
        parent, name, found = self._find(path)
        if name == '*':
            return [p for p in self.lines if p.rsplit('/', 1)[0] == parent]
        many = len(found) > 1
        return [
            f'{parent}/{name}[{i + 1}]' if many else f'{parent}/{name}'
            for i in range(len(found))
        ]

    def get(self, path: str) -> str | None:
        parent, _name, found = self._find(path)
        return self.lines[parent][found[0]][1] if found else None

    def set(self, path: str, value: str) -> None:
        parent, name, found = self._find(path)
        if found:
            self.lines[parent][found[0]] = (name, value)
        else:
            self.lines[parent].append((name, value))

    def insert(self, path: str, name: str) -> None:
        parent, _name, found = self._find(path)
        self.lines[parent].insert(found[0] + 1, (name, ''))

    def save(self) -> None:
        for file, names in self.FIELDS.items():
            rows = []
            for parent, nodes in self.lines.items():
                if not parent.startswith(f'/files{file}/'):
                    continue
                places = [names.index(name) for name, _ in nodes]
                assert places == sorted(places), nodes
                row = []
                for name in names:
                    values = [v for n, v in nodes if n == name]
                    if values:
                        row.append(','.join(values))
                rows.append(' '.join(row))
            if rows:
                self.guest.files[file] = ('\n'.join(rows) + '\n').encode()


class FakeGuest(guest_room.Guest):
    """What a test puts into ``files`` (bytes by path), ``links`` (targets)
    and ``disks`` (bytes by device) is the guest.

    :ivar writes: how many times anything was changed
    """

    def __init__(
        self,
        files: Mapping[str, str | bytes] | None = None,
        *,
        links: Mapping[str, str] | None = None,
        disks: Mapping[str, bytes] | None = None,
        uuids: Mapping[str, str] | None = None,
        system: model.OperatingSystem | None = None,
        partitions: Sequence[guest_room.Partition] = (),
    ) -> None:
        self.files = {
            path: data.encode() if isinstance(data, str) else data
            for path, data in (files or {}).items()
        }
        self.links = dict(links or {})
        self.disks = {
            device: bytearray(data) for device, data in (disks or {}).items()
        }
        self.uuids = dict(uuids or {'/dev/sda1': 'aaaa-1111'})
        self.operating_system = system
        self.drives = tuple(self.disks) or ('/dev/sda',)
        self.made = list(partitions) or [
            guest_room.Partition(1, '/dev/sda1', 1 << 20, 1 << 30, '0x83')
        ]
        self.commands: list[list[str]] = []
        self.writes = 0
        self.tree: FakeTree | None = None

    def _real(self, path: str) -> str:
        for _ in range(8):
            if path not in self.links:
                break
            directory = posixpath.dirname(path)
            path = posixpath.normpath(
                posixpath.join(directory, self.links[path])
            )
        return path

    def exists(self, path: str) -> bool:
        return self.is_file(path) or self.is_dir(path)

    def is_file(self, path: str) -> bool:
        return self._real(path) in self.files

    def is_dir(self, path: str) -> bool:
        prefix = path.rstrip('/') + '/'
        return any(p.startswith(prefix) for p in (*self.files, *self.links))

    def listdir(self, path: str) -> list[str]:
        prefix = path.rstrip('/') + '/'
        return sorted(
            {
                p[len(prefix) :].split('/')[0]
                for p in (*self.files, *self.links)
                if p.startswith(prefix)
            }
        )

    def glob(self, pattern: str) -> list[str]:
        return sorted(
            p
            for p in (*self.files, *self.links)
            if fnmatch.fnmatchcase(p, pattern)
            and p.count('/') == pattern.count('/')
        )

    def read(self, path: str, limit: int = 16 << 20) -> bytes:
        data = self.files[self._real(path)]
        assert len(data) <= limit
        return data

    def write(self, path: str, data: bytes, mode: int | None = None) -> None:
        self.writes += 1
        self.files[self._real(path)] = data

    @contextlib.contextmanager
    def augeas(
        self, files: Mapping[str, Sequence[str]]
    ) -> Iterator[typing.Any]:
        self.tree = FakeTree(self)
        try:
            yield self.tree
        finally:
            self.tree = None

    def partitions(self, drive: str) -> tuple[guest_room.Partition, ...]:
        return tuple(p for p in self.made if p.device.startswith(drive))

    def partition_table(self, drive: str) -> str | None:
        return 'msdos'

    def read_device(self, device: str, offset: int, length: int) -> bytes:
        return bytes(self.disks[device][offset : offset + length])

    def write_device(self, device: str, offset: int, data: bytes) -> None:
        self.writes += 1
        self.disks[device][offset : offset + len(data)] = data

    def uuid(self, device: str) -> str | None:
        return self.uuids.get(device)

    def call(
        self, name: str, *args: typing.Any, **kw: typing.Any
    ) -> typing.Any:
        function: Callable[..., typing.Any] = getattr(self, f'_call_{name}')
        return function(*args, **kw)

    def _call_realpath(self, path: str) -> str:
        return self._real(path)

    def _call_readlinklist(self, path: str, names: list[str]) -> list[str]:
        return [self.links.get(f'{path}/{name}', '') for name in names]

    def _call_rm_f(self, path: str) -> None:
        self.writes += 1
        self.links.pop(path, None)
        self.files.pop(path, None)

    def _call_ln_sf(self, target: str, path: str) -> None:
        self.writes += 1
        self.links[path] = target

    def _call_mkdir_p(self, path: str) -> None:
        pass

    def _call_rename(self, old: str, new: str) -> None:
        self.writes += 1
        place = self.links if old in self.links else self.files
        typing.cast(dict[str, typing.Any], place)[new] = place.pop(old)

    def _call_pwrite(self, path: str, data: bytes, offset: int) -> int:
        self.writes += 1
        old = self.files[path]
        self.files[path] = (
            old[:offset].ljust(offset, b'\0')
            + data
            + old[offset + len(data) :]
        )
        return len(data)

    def _call_truncate_size(self, path: str, size: int) -> None:
        self.files[path] = self.files[path][:size]

    def _call_aug_insert(self, path: str, label: str, before: int) -> None:
        assert self.tree is not None
        self.tree.insert(path, label)

    def _call_vfs_type(self, device: str) -> str:
        return 'ext4'

    def _call_blockdev_getsize64(self, device: str) -> int:
        return len(self.disks[device])

    def _call_command(self, command: list[str], limit: float) -> str:
        self.commands.append(command)
        return ''


def run(
    check: base.Check, guest: FakeGuest
) -> tuple[list[model.Finding], list[model.Change], list[model.Finding]]:
    """Diagnose, repair all that can be, and diagnose again.

    A diagnosis must write nothing, a second repair neither: both are
    looked at here, for every test that uses this.
    """
    before = guest.writes
    found = list(check.diagnose(guest))
    assert guest.writes == before, 'the diagnosis wrote something'
    changes = [
        change
        for finding in found
        if finding.repair
        for change in check.repair(guest, finding)
    ]
    left = list(check.diagnose(guest))
    writes = guest.writes
    for finding in found:
        if finding.repair:
            again = list(check.repair(guest, finding))
            assert not again, f'repaired twice: {again}'
    assert guest.writes == writes, 'the second repair wrote something'
    return found, changes, left
