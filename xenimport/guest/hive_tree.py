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


"""A hive's whole content in memory: what is meant, and what is there."""

from __future__ import annotations

import dataclasses

from xenimport import exceptions
from xenimport.guest import hive_reader
from xenimport.guest import registry

#: A value's own name, type and data.
_Value = tuple[str, int, bytes]


@dataclasses.dataclass(frozen=True, slots=True)
class Change:
    """One edit as :mod:`.hive_worker` has it.

    :ivar key: path from the root
    :ivar name: of the value; None where the key itself comes or goes
    :ivar type: None where the value or key goes
    """

    key: str
    name: str | None
    type: int | None
    data: bytes | None


class Tree:
    """Keys and their values, by names in upper case."""

    def __init__(self, reader: hive_reader.Reader) -> None:
        reader.start()
        self._reader = reader
        self._keys: dict[str, dict[str, _Value]] = {}
        #: Keys that shall get a new subkey.
        self._parents: set[str] = set()
        for path, values, _ in reader.records('', -1):
            self._keys[path.upper()] = {
                name.upper(): (name, kind, data) for name, kind, data in values
            }

    def apply(self, change: Change) -> None:
        """What an edit shall do.

        :raises GuestError: if hivex would not write it as Windows does
        """
        place = change.key.upper()
        self._check(change)
        if change.name is None:
            if change.type is not None:
                self._keys.setdefault(place, {})
                self._parents.add(place.rpartition('\\')[0])
                return
            for key in [
                key
                for key in self._keys
                if key == place or key.startswith(f'{place}\\')
            ]:
                del self._keys[key]
            return
        values = self._keys[place]
        name = change.name.upper()
        if change.type is None or change.data is None:
            values.pop(name, None)
        else:
            own = values[name][0] if name in values else change.name
            values[name] = (own, change.type, change.data)

    def _check(self, change: Change) -> None:
        """Refuse what hivex would write in a way that Windows misreads.

        It sorts and hashes names of keys by their UTF-8 bytes, and never
        keeps data in pieces.
        """
        place = change.key.upper()
        found = ''
        if change.name is None:
            name = change.key.rpartition('\\')[2]
            if change.type is not None and not name.isascii():
                found = f'a new key {name}, whose name is not ASCII'
        elif place not in self._keys:
            found = 'no such key'
        else:
            for name, _, data in self._keys[place].values():
                if self._reader.in_pieces(len(data)):
                    found = f'value {name} of {len(data)} bytes in that key'
            if change.data and self._reader.in_pieces(len(change.data)):
                found = f'value {change.name} of {len(change.data)} bytes'
        if found:
            raise exceptions.GuestError(
                'registry.cannot-edit',
                'A key of the registry cannot be changed offline',
                where=f'{self._reader.subject}, key '
                f'{registry.shortened(change.key)}',
                expected='ASCII names, and values of at most '
                f'{hive_reader.SEGMENT} bytes',
                found=registry.shortened(found),
                fix='make the change inside the guest, and export it again',
            )

    def difference(self, other: Tree) -> str:
        """What another tree has that this one should not, '' if nothing.

        :param other: as it was written, where this one is as it was meant
        """
        for key, values in self._keys.items():
            found = other._keys.get(key)
            if found is None:
                return f'no key {key}'
            if found != values:
                return f'other values in the key {key}'
        for key in other._keys:
            if key not in self._keys:
                return f'a key {key}'
        # Where Windows looks for a key it reads the last entry of a list,
        # and takes for granted that there is one; hivex leaves it empty.
        if other._reader.empty_lists > self._reader.empty_lists:
            return 'an empty list of subkeys'
        for key in self._parents:
            if not other._is_sorted(key):
                return f'the subkeys of the key {key} out of order'
        return ''

    def _is_sorted(self, path: str) -> bool:
        """Whether Windows will find each of a key's subkeys."""
        found = self._reader.find(path)
        names = [
            name.upper()
            for name in (self._reader.children(found[0]) if found else ())
            if name.isascii()
        ]
        return names == sorted(names)
