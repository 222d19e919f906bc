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


"""What the hives of a disk hold, and how two of them differ.

Read with ntfscat, mtools and hivex alone. A difference is told in the
words of a report's changes, so that the two can be compared as they are.
"""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Mapping
import pathlib
import re
import struct
import tempfile
import typing

import hivex

from xenimport.tests.functional import windows_disks
from xenimport.tests.functional import windows_volumes

#: A key's values by their name: type and data.
Values = dict[str, tuple[int, bytes]]
Hive = dict[str, Values]
_NAMES = {
    0: 'REG_NONE',
    1: 'REG_SZ',
    2: 'REG_EXPAND_SZ',
    3: 'REG_BINARY',
    4: 'REG_DWORD',
    7: 'REG_MULTI_SZ',
    11: 'REG_QWORD',
}
_SHOWN = 24
_KEY = 'a key'
_MEANING = re.compile(r'^(REG_BINARY .*\(\d+ bytes\)): .*$', re.DOTALL)
_VALUE = ', value '


def read(data: bytes) -> Hive:
    """A clean hive's keys, by their path from the root."""
    with tempfile.NamedTemporaryFile() as stream:
        stream.write(data)
        stream.flush()
        handle = hivex.Hivex(stream.name)
        return dict(_keys(handle, handle.root(), ''))


def _keys(handle: typing.Any, node: int, path: str) -> Iterator[
    tuple[str, Values]
]:  # fmt: skip
    values = {}
    for value in handle.node_values(node):
        kind, data = handle.value_value(value)
        values[handle.value_key(value)] = (kind, data)
    yield path, values
    for child in handle.node_children(node):
        name = handle.node_name(child)
        yield from _keys(handle, child, f'{path}\\{name}' if path else name)


class Snapshot:
    """The hives of a disk as it is now.

    :ivar hives: by the name that a report has for them
    """

    def __init__(
        self, disk: pathlib.Path, made: windows_disks.WindowsDisk
    ) -> None:
        self.disk = disk
        self.made = made
        self.hives = {}
        for name in ('SYSTEM', 'SOFTWARE', 'DRIVERS'):
            path = f'{windows_disks.CONFIG}/{name}'
            data = self.file('windows', path)
            if data is not None:
                self.hives[f'HKLM\\{name}'] = read(data)
        store = self.file(made.system_part, made.store_path)
        if store is not None:
            self.hives['BCD'] = read(store)

    def file(self, part: str, name: str) -> bytes | None:
        """A file's content, None where there is no such file."""
        place = self.made.parts[part]
        reader = (
            windows_volumes.read_fat
            if self.made.uefi and part == 'system'
            else windows_volumes.read_ntfs
        )
        with windows_disks.volume(self.disk, place) as path:
            try:
                return reader(path, name)
            except RuntimeError:
                return None

    def sector(self, number: int = 0) -> bytes:
        """A sector of the disk."""
        with open(self.disk, 'rb') as stream:
            stream.seek(number * 512)
            return stream.read(512)


def shown(value: tuple[int, bytes] | None) -> str:
    """A value as a report has it."""
    if value is None:
        return 'absent'
    kind, data = value
    name = _NAMES.get(kind, f'type {kind:#x}')
    if kind == 4 and len(data) == 4:
        return f'{name} {struct.unpack("<I", data)[0]:#x}'
    if kind in (1, 2):
        return f'{name} "{data.decode("utf-16-le").partition(chr(0))[0]}"'
    if kind == 7:
        texts = [item for item in data.decode('utf-16-le').split('\0') if item]
        return f'{name} {texts}'
    text = data[:_SHOWN].hex(' ')
    if len(data) > _SHOWN:
        text += f' ... ({len(data)} bytes)'
    return f'{name} {text}'.rstrip()


#: Where, what was there, what is there.
Change = tuple[str, str, str]


def differences(
    before: Mapping[str, Hive], after: Mapping[str, Hive]
) -> set[Change]:
    """How the hives of two snapshots differ.

    Of keys that are gone only the topmost is told, as a report does.
    """
    found: set[Change] = set()
    for name in before.keys() | after.keys():
        found.update(
            _hive_differences(name, before.get(name, {}), after.get(name, {}))
        )
    return found


def _hive_differences(
    name: str, before: Hive, after: Hive
) -> Iterator[Change]:
    for path, values in before.items():
        if path not in after:
            above = path.rpartition('\\')[0]
            if not path or above in after:
                yield _key(name, path), _KEY, 'absent'
            continue
        for value in values.keys() | after[path].keys():
            old, new = values.get(value), after[path].get(value)
            if old != new:
                yield _value(name, path, value), shown(old), shown(new)
    for path in after.keys() - before.keys():
        if path:
            yield _key(name, path), 'absent', _KEY
        for value, data in after[path].items():
            yield _value(name, path, value), 'absent', shown(data)


def _key(hive: str, path: str) -> str:
    return f'{hive}\\{path}' if path else hive


def _value(hive: str, path: str, name: str) -> str:
    return f'{_key(hive, path)}{_VALUE}{name or "(Default)"}'


def reported(
    changes: Iterable[Mapping[str, typing.Any]], hives: Iterable[str]
) -> set[Change]:
    """A report's changes of hives, as what comes of them in the end.

    What was changed twice counts once; what was changed in a key that
    went later does not count.
    """
    names = tuple(hives)
    ends: dict[str, tuple[str, str]] = {}
    for change in changes:
        path = change['path']
        if path.startswith(tuple(f'{name}\\' for name in names)):
            first = ends.get(path, (change['before'], ''))[0]
            ends[path] = first, change['after']
    gone = {
        path
        for path, (_, after) in ends.items()
        if after == 'absent' and _VALUE not in path
    }
    return {
        (path, _plain(before), _plain(after))
        for path, (before, after) in ends.items()
        if before != after and not _goes_with(path, gone)
    }


def _goes_with(path: str, gone: Iterable[str]) -> bool:
    """Whether a key above went, or the key of a value."""
    key, is_value, _ = path.partition(_VALUE)
    return any(
        key.startswith(f'{item}\\') or (is_value and key == item)
        for item in gone
    )


def _plain(text: str) -> str:
    """Without what a report says beyond a value's type and data.

    Of a key it says how many values it had, of a device of the boot
    configuration what it means.
    """
    if text.startswith(f'{_KEY} with '):
        return _KEY
    return _MEANING.sub(r'\1', text)
