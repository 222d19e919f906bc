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


"""The guest's registry: hives as keys and values, changed in one write.

A hive is downloaded once; the worker process (:mod:`.hive_worker`) replays
its logs, reads it and, at the very end, writes it. In between, changes are
staged here: what is read shows them already. ``Registry.commit`` writes
each changed hive once, checks what was written and uploads it.

Keys and values are found without regard to case, as Windows does.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Sequence
import dataclasses
import struct
import time
import typing

from xenimport import exceptions

if typing.TYPE_CHECKING:
    from xenimport.guest import volumes

#: The types of values, as winnt.h numbers them.
NONE = 0
SZ = 1
EXPAND_SZ = 2
BINARY = 3
DWORD = 4
DWORD_BIG_ENDIAN = 5
LINK = 6
MULTI_SZ = 7
QWORD = 11
_NAMES = {
    NONE: 'REG_NONE',
    SZ: 'REG_SZ',
    EXPAND_SZ: 'REG_EXPAND_SZ',
    BINARY: 'REG_BINARY',
    DWORD: 'REG_DWORD',
    DWORD_BIG_ENDIAN: 'REG_DWORD_BIG_ENDIAN',
    LINK: 'REG_LINK',
    MULTI_SZ: 'REG_MULTI_SZ',
    QWORD: 'REG_QWORD',
}
#: Bytes of binary data that a person is shown.
_SHOWN = 24
#: Characters of a guest's own names that an error shows.
_SHOWN_TEXT = 300
#: What is put behind the name of a hive for the copy of it that stays.
BACKUP = '.xenimport.bak'


@dataclasses.dataclass(frozen=True, slots=True)
class Value:
    """A value of a key.

    :ivar name: empty for the default value
    :ivar type: ``SZ``, ``DWORD``, ... or a number that has no name here
    :ivar data: as it stands in the hive
    """

    name: str
    type: int
    data: bytes

    @classmethod
    def sz(cls, name: str, text: str) -> Value:
        """A REG_SZ."""
        return cls(name, SZ, _utf16(text))

    @classmethod
    def expand_sz(cls, name: str, text: str) -> Value:
        """A REG_EXPAND_SZ."""
        return cls(name, EXPAND_SZ, _utf16(text))

    @classmethod
    def multi_sz(cls, name: str, texts: Iterable[str]) -> Value:
        """A REG_MULTI_SZ."""
        return cls(name, MULTI_SZ, b''.join(map(_utf16, texts)) + b'\0\0')

    @classmethod
    def dword(cls, name: str, number: int) -> Value:
        """A REG_DWORD."""
        return cls(name, DWORD, struct.pack('<I', number))

    @classmethod
    def binary(cls, name: str, data: bytes) -> Value:
        """A REG_BINARY."""
        return cls(name, BINARY, data)

    @property
    def text(self) -> str:
        """Its text; empty where it is of no type that holds one."""
        if self.type not in (SZ, EXPAND_SZ, LINK, MULTI_SZ):
            return ''
        return _decode(self.data).partition('\0')[0]

    @property
    def strings(self) -> tuple[str, ...]:
        """Its texts; a single text counts as one, an empty one as none."""
        if self.type != MULTI_SZ:
            return (self.text,) if self.text else ()
        return tuple(filter(None, _decode(self.data).split('\0')))

    @property
    def number(self) -> int | None:
        """Its number; None where it is of no type or size that has one."""
        if self.type == DWORD and len(self.data) == 4:
            return int.from_bytes(self.data, 'little')
        if self.type == DWORD_BIG_ENDIAN and len(self.data) == 4:
            return int.from_bytes(self.data, 'big')
        if self.type == QWORD and len(self.data) == 8:
            return int.from_bytes(self.data, 'little')
        return None

    def __str__(self) -> str:
        """For a person: ``REG_DWORD 0x3``."""
        kind = _NAMES.get(self.type, f'type {self.type:#x}')
        if self.number is not None:
            return f'{kind} {self.number:#x}'
        if self.type == MULTI_SZ:
            return f'{kind} {list(self.strings)}'
        if self.type in (SZ, EXPAND_SZ, LINK):
            return f'{kind} "{self.text}"'
        shown = self.data[:_SHOWN].hex(' ')
        if len(self.data) > _SHOWN:
            shown += f' ... ({len(self.data)} bytes)'
        return f'{kind} {shown}'.rstrip()


def _utf16(text: str) -> bytes:
    return text.encode('utf-16-le', 'surrogatepass') + b'\0\0'


def _decode(data: bytes) -> str:
    """UTF-16, with whatever Windows itself would put up with."""
    even = data[: len(data) & ~1]
    return even.decode('utf-16-le', 'surrogatepass')


@dataclasses.dataclass(frozen=True)
class Key:
    """A key as it is at one moment, staged changes included.

    :ivar path: from the hive's root, without a leading backslash
    :ivar values: in the hive's order
    :ivar subkeys: names
    """

    path: str
    values: tuple[Value, ...]
    subkeys: tuple[str, ...]

    @property
    def name(self) -> str:
        return self.path.rpartition('\\')[2]

    def value(self, name: str) -> Value | None:
        """The value of that name; '' is the default one."""
        wanted = name.upper()
        for value in self.values:
            if value.name.upper() == wanted:
                return value
        return None

    def text(self, name: str) -> str:
        """A value's text, '' where there is none."""
        value = self.value(name)
        return value.text if value else ''

    def strings(self, name: str) -> tuple[str, ...]:
        """A value's texts, () where there is none."""
        value = self.value(name)
        return value.strings if value else ()

    def number(self, name: str) -> int | None:
        """A value's number, None where there is none."""
        value = self.value(name)
        return value.number if value else None


@dataclasses.dataclass(frozen=True)
class Edit:
    """One staged change.

    :ivar hive: the hive's name, for example ``SYSTEM``
    :ivar key: path from the hive's root
    :ivar name: of the value; None where the key itself comes or goes
    :ivar before: None where there was no such value or key
    :ivar after: None where it goes
    """

    hive: str
    key: str
    name: str | None
    before: Value | Key | None
    after: Value | Key | None


@dataclasses.dataclass(frozen=True)
class State:
    """What the base block and the logs of a hive tell.

    :ivar dirty: it was not written out before the guest was stopped
    :ivar replayed: log entries that were applied to it
    :ivar logs: the logs they came from, file names in the guest
    :ivar lost: why its logs could not be used, '' where they could, or
        where there was no need
    """

    dirty: bool = False
    replayed: int = 0
    logs: tuple[str, ...] = ()
    lost: str = ''


@dataclasses.dataclass
class _Node:
    path: str
    values: dict[str, Value]
    #: Names by their upper case; None in place of the nodes not yet read.
    subkeys: dict[str, str]

    def freeze(self) -> Key:
        return Key(
            self.path,
            tuple(self.values.values()),
            tuple(self.subkeys.values()),
        )


#: One key as the worker gives it: path, values, names of subkeys.
Record = tuple[str, Sequence[tuple[str, int, bytes]], Sequence[str]]
#: Called with a key's path and a depth: that key and all below it down to
#: that depth (0: the key alone, -1: everything), parents first; empty
#: where there is no such key.
Fetch = Callable[[str, int], Sequence[Record]]


class Hive:
    """One hive, with changes staged.

    :ivar name: ``SYSTEM``, ``SOFTWARE``, ``BCD``, ...
    :ivar path: the file in the guest, as the appliance knows it
    :ivar state: clean, or what was done about it
    :ivar edits: what :meth:`Registry.commit` will write, in order
    """

    def __init__(
        self, name: str, path: str, fetch: Fetch, state: State | None = None
    ) -> None:
        self.name = name
        self.path = path
        self.state = state or State()
        self.edits: list[Edit] = []
        self._fetch = fetch
        self._nodes: dict[str, _Node | None] = {}
        #: Keys that came or went here: the file says nothing about them.
        self._staged: set[str] = set()
        #: Keys of which everything below has been read.
        self._whole: set[str] = set()

    def key(self, path: str) -> Key | None:
        """The key at a path from the root; '' is the root itself."""
        node = self._node(path)
        return node.freeze() if node else None

    def keys(self, path: str) -> Iterator[Key]:
        """The subkeys of a key; none where it is not there."""
        self.prefetch(path, 1)
        node = self._node(path)
        for name in tuple(node.subkeys.values()) if node else ():
            child = self._node(_join(path, name))
            if child:
                yield child.freeze()

    def walk(self, path: str, depth: int = -1) -> Iterator[Key]:
        """A key and all below it, parents first.

        :param depth: how far below, -1 for all
        """
        self.prefetch(path, depth)
        waiting = [(path, depth)]
        while waiting:
            where, left = waiting.pop()
            node = self._node(where)
            if node is None:
                continue
            yield node.freeze()
            if left:
                waiting.extend(
                    (_join(node.path, name), left - 1)
                    for name in reversed(tuple(node.subkeys.values()))
                )

    def prefetch(self, path: str, depth: int) -> None:
        """Read a key and what is below it in one go."""
        parts = path.upper().split('\\')
        if self._is_staged(path) or any(
            '\\'.join(parts[:count]) in self._whole
            for count in range(len(parts) + 1)
        ):
            return
        known = self._nodes.get(path.upper())
        if (
            depth in (0, 1)
            and known is not None
            and all(
                _join(path, name).upper() in self._nodes
                for name in known.subkeys.values()
            )
        ):
            return
        self._read(path, depth)
        if depth < 0:
            self._whole.add(path.upper())

    def _read(self, path: str, depth: int) -> None:
        records = self._fetch(path, depth)
        if not records:
            self._nodes.setdefault(path.upper(), None)
        for where, values, subkeys in records:
            # What is known may have been changed here since.
            if where.upper() not in self._nodes and not self._is_staged(where):
                self._nodes[where.upper()] = _Node(
                    where,
                    {
                        name.upper(): Value(name, kind, data)
                        for name, kind, data in values
                    },
                    {name.upper(): name for name in subkeys},
                )

    def _is_staged(self, path: str) -> bool:
        """Whether the key, or one above it, came or went here."""
        parts = path.upper().split('\\')
        return any(
            '\\'.join(parts[:count]) in self._staged
            for count in range(1, len(parts) + 1)
        )

    def _node(self, path: str) -> _Node | None:
        place = path.upper()
        if place not in self._nodes and not self._is_staged(path):
            self._read(path, 0)
        return self._nodes.get(place)

    def set_value(self, path: str, value: Value) -> list[Edit]:
        """Set a value; keys that are not there are made.

        :returns: what changed; empty where it was so already
        """
        edits = self.create_key(path)
        node = self._node(path)
        if node is None:
            raise RuntimeError(f'{path} was not made')
        before = node.values.get(value.name.upper())
        if before is not None and (before.type, before.data) == (
            value.type,
            value.data,
        ):
            return edits
        if before is not None:
            value = dataclasses.replace(value, name=before.name)
        node.values[value.name.upper()] = value
        return edits + self._stage(node.path, value.name, before, value)

    def delete_value(self, path: str, name: str) -> list[Edit]:
        """Delete a value; nothing happens where it is not there."""
        node = self._node(path)
        before = node.values.pop(name.upper(), None) if node else None
        if node is None or before is None:
            return []
        return self._stage(node.path, before.name, before, None)

    def create_key(self, path: str) -> list[Edit]:
        """Make a key and those above it, where they are not there."""
        if self._node(path) is not None:
            return []
        above, _, name = path.rpartition('\\')
        edits = self.create_key(above) if path else []
        parent = self._node(above)
        if not path or parent is None:
            raise RuntimeError(f'{self.name} has no root')
        parent.subkeys[name.upper()] = name
        made = _Node(_join(parent.path, name), {}, {})
        self._nodes[path.upper()] = made
        self._staged.add(path.upper())
        return edits + self._stage(made.path, None, None, made.freeze())

    def delete_key(self, path: str) -> list[Edit]:
        """Delete a key and all below it; nothing where it is not there."""
        node = self._node(path)
        above, _, name = path.rpartition('\\')
        parent = self._node(above)
        if node is None or parent is None or not path:
            return []
        before = node.freeze()
        del parent.subkeys[name.upper()]
        prefix = path.upper() + '\\'
        for place in [item for item in self._nodes if item.startswith(prefix)]:
            del self._nodes[place]
        self._nodes[path.upper()] = None
        self._staged.add(path.upper())
        return self._stage(node.path, None, before, None)

    def _stage(
        self,
        key: str,
        name: str | None,
        before: Value | Key | None,
        after: Value | Key | None,
    ) -> list[Edit]:
        edit = Edit(self.name, key, name, before, after)
        self.edits.append(edit)
        return [edit]


def _join(path: str, name: str) -> str:
    return f'{path}\\{name}' if path else name


class Store(typing.Protocol):
    """What opens and writes hives: the worker process, or a test's own."""

    def open(self, volume: volumes.Volume, path: str, name: str) -> Hive:
        """Download a hive, with its logs replayed.

        :param path: in the volume, of a file that is there
        """

    def create(self, volume: volumes.Volume, path: str, name: str) -> Hive:
        """An empty hive for a file that is not there, or is worthless."""

    def write(self, hive: Hive) -> None:
        """Write a hive's edits, check the result, put it in the guest."""


class Registry:
    """The hives of one guest, each opened once.

    :ivar seconds: spent on opening hives so far
    """

    def __init__(self, store: Store) -> None:
        self.seconds = 0.0
        self._store = store
        self._hives: dict[tuple[str, str], Hive] = {}
        #: Those that no file of the guest's was read for.
        self._made: set[tuple[str, str]] = set()
        self._errors: dict[tuple[str, str], exceptions.GuestError] = {}

    def open(
        self, volume: volumes.Volume, path: str, name: str = ''
    ) -> Hive | None:
        """A hive by its path in a volume, None where there is no file.

        :param name: for reports; the file's own by default
        :raises GuestError: ``registry.*``, if it is damaged
        """
        place = volume.path(path)
        key = _key(volume, path)
        if place is None:
            return self._hives.get(key)
        if key in self._errors:
            # Not downloaded again for every check that asks for it.
            raise self._errors[key]
        if key not in self._hives:
            name = name or place.rpartition('/')[2].upper()
            started = time.monotonic()
            try:
                self._hives[key] = self._store.open(volume, path, name)
            except exceptions.GuestError as error:
                self._errors[key] = error
                raise
            finally:
                self.seconds += time.monotonic() - started
        return self._hives[key]

    def create(
        self, volume: volumes.Volume, path: str, name: str = ''
    ) -> Hive:
        """An empty hive in place of what the path leads to, if anything."""
        name = name or path.replace('\\', '/').rpartition('/')[2].upper()
        hive = self._store.create(volume, path, name)
        self._errors.pop(_key(volume, path), None)
        self._hives[_key(volume, path)] = hive
        self._made.add(_key(volume, path))
        return hive

    @property
    def hives(self) -> tuple[Hive, ...]:
        """Those that are open, in the order in which they were opened."""
        return tuple(self._hives.values())

    def commit(self) -> None:
        """Write every hive that has edits, and read it anew afterwards.

        :raises GuestError: if one cannot be written, or what was written
            is not what was meant
        """
        for place, hive in list(self._hives.items()):
            if hive.edits:
                self._store.write(hive)
            elif place not in self._made:
                # Its file is as it was read.
                continue
            del self._hives[place]
        self._made.clear()
        self._errors.clear()

    def forget(self) -> None:
        """The next reader sees what the guest's files hold."""
        self._hives.clear()
        self._made.clear()
        self._errors.clear()


def _key(volume: volumes.Volume, path: str) -> tuple[str, str]:
    """What a hive is known by, however its path is written."""
    parts = path.upper().replace('\\', '/').split('/')
    return volume.device, '/'.join(filter(None, parts))


def shortened(text: str) -> str:
    """Text with names of a guest in it, as much as a person reads."""
    if len(text) <= _SHOWN_TEXT:
        return text
    return f'{text[: _SHOWN_TEXT // 2]} ... {text[-_SHOWN_TEXT // 2 :]}'


def damaged(path: str, found: str) -> exceptions.GuestError:
    """A hive that cannot be read."""
    return exceptions.GuestError(
        'registry.damaged',
        'A registry hive of the guest is damaged',
        where=path,
        expected='a hive that Windows can load',
        found=shortened(found),
        fix='start the guest on Xen, let Windows load or repair it, shut it '
        'down cleanly and export it again',
    )
