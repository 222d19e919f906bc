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


"""Keys and values of a hive's bytes.

python-registry gives the records' fields. What it leaves to its caller is
done here: every cell is looked up within bounds, no list is followed
further than it can be long, and nothing is lost. (Its own decoding reads
names as Windows-1252, cuts a value's type to 12 bits and takes a resident
REG_MULTI_SZ for empty, so names, types and data are decoded here.)
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Iterator
import struct
import typing

from Registry import RegistryParse

from xenimport.guest import hive_file
from xenimport.guest import registry

#: How deep keys may nest (Microsoft, "Registry element size limits").
DEPTH_LIMIT = 512
#: Bytes of a value's data from which on it is kept in pieces (a "db"
#: record), and of each piece but the last.
SEGMENT = 16344
#: Bytes that the smallest cell of a value takes.
_SMALLEST_VALUE = 24
_CELL = struct.Struct('<i')
_RESIDENT = 0x80000000
_Record = typing.TypeVar('_Record')


class Reader:
    """Reads one hive.

    Keys go by the offset of their cell, counted from the first hive bin.

    :param data: the whole file, base block first
    :param subject: the hive's path in the guest, for messages
    :raises GuestError: ``registry.damaged``, here and in every method
    :ivar empty_lists: lists of subkeys below an index root that were read
        and are empty; Windows removes such
    """

    def __init__(self, data: bytes | bytearray, subject: str) -> None:
        self.base = hive_file.checked(data, subject)
        self.subject = subject
        self._data = data
        self._end = self.base.size
        self._children: dict[int, dict[str, int]] = {}
        self.empty_lists = 0
        self.start()
        self._hbin = self._guard(
            lambda: RegistryParse.HBINBlock(data, hive_file.BASE, None)
        )
        self.root = self.base.root
        self._key(self.root)

    def start(self) -> None:
        """Begin to count anew what is read.

        No sound hive uses a cell twice, so there cannot be more than its
        size has room for.
        """
        self._values_left = len(self._data) // _SMALLEST_VALUE
        self._bytes_left = len(self._data)

    def _guard(self, read: Callable[[], _Record]) -> _Record:
        """A record that python-registry may not be able to make."""
        try:
            return read()
        except (RegistryParse.RegistryException, struct.error) as error:
            raise self._damaged(str(error)) from None

    def _damaged(self, found: str) -> Exception:
        return registry.damaged(self.subject, found)

    def _cell(self, offset: int, needed: int) -> int:
        """Where a cell's data start in the file.

        :param needed: bytes that it must have at least
        """
        if offset % 4 or not 32 <= offset <= self._end - 8:
            raise self._damaged(f'a cell at {offset:#x}, outside the hive')
        start = hive_file.BASE + offset
        # Negative: the cell is in use.
        (size,) = _CELL.unpack_from(self._data, start)
        if not offset - self._end <= size < 0:
            raise self._damaged(f'a cell at {offset:#x} that is in no use')
        if -size - 4 < needed:
            raise self._damaged(f'a cell at {offset:#x} that is too short')
        return start + 4

    def _room(self, start: int) -> int:
        """Bytes of data in the cell whose data start there."""
        (size,) = _CELL.unpack_from(self._data, start - 4)
        return int(-size - 4)

    def _key(self, offset: int) -> RegistryParse.NKRecord:
        start = self._cell(offset, 76)
        return self._guard(
            lambda: RegistryParse.NKRecord(self._data, start, self._hbin)
        )

    def name(self, offset: int) -> str:
        """A key's name."""
        start = self._cell(offset, 76)
        flags, length = struct.unpack_from('<2xH68xH', self._data, start)
        return self._text(start, 76, length, bool(flags & 0x20))

    def _text(self, start: int, where: int, length: int, narrow: bool) -> str:
        if where + length > self._room(start):
            raise self._damaged(f'a name that is {length} bytes long')
        name = bytes(self._data[start + where : start + where + length])
        if narrow:
            return name.decode('latin-1')
        return name[: length & ~1].decode('utf-16-le', 'surrogatepass')

    def children(self, offset: int) -> dict[str, int]:
        """Names of a key's subkeys, with their offsets, in its order."""
        known = self._children.get(offset)
        if known is None:
            known = {}
            for child in self._subkeys(offset):
                name = self.name(child)
                if name in known:
                    raise self._damaged(f'two keys {name} in one')
                known[name] = child
            self._children[offset] = known
        return known

    def _subkeys(self, offset: int) -> Iterator[int]:
        record = self._key(offset)
        count = record.subkey_number()
        if not count:
            return
        place = record.unpack_dword(0x1C)
        found = 0
        for leaf in self._leaves(place):
            step = 4 if self._kind(leaf) == b'li' else 8
            for child in self._entries(leaf, step):
                found += 1
                if found > count:
                    raise self._damaged(
                        f'a key at {offset:#x} with more than its {count} '
                        'subkeys'
                    )
                yield child
        if found != count:
            raise self._damaged(
                f'a key at {offset:#x} with {found} of its {count} subkeys'
            )

    def _kind(self, place: int) -> bytes:
        start = self._cell(place, 4)
        return bytes(self._data[start : start + 2])

    def _leaves(self, place: int) -> Iterator[int]:
        """The lists of subkeys that one leads to, itself perhaps."""
        kind = self._kind(place)
        if kind in (b'lf', b'lh', b'li'):
            yield place
        elif kind == b'ri':
            for leaf in self._entries(place, 4):
                if self._kind(leaf) not in (b'lf', b'lh', b'li'):
                    raise self._damaged(f'no list of subkeys at {leaf:#x}')
                (count,) = struct.unpack_from(
                    '<H', self._data, hive_file.BASE + leaf + 6
                )
                self.empty_lists += not count
                yield leaf
        else:
            raise self._damaged(f'no list of subkeys at {place:#x}')

    def _entries(self, place: int, step: int) -> Iterator[int]:
        start = self._cell(place, 4)
        (count,) = struct.unpack_from('<2xH', self._data, start)
        if 4 + count * step > self._room(start):
            raise self._damaged(f'a list at {place:#x} of {count} entries')
        for index in range(count):
            (entry,) = struct.unpack_from(
                '<I', self._data, start + 4 + index * step
            )
            yield entry

    def values(self, offset: int) -> list[tuple[str, int, bytes]]:
        """Names, types and data of a key's values, in its order."""
        record = self._key(offset)
        count = record.values_number()
        if not count:
            return []
        self._values_left -= count
        if self._values_left < 0:
            raise self._damaged('more values than it has room for')
        start = self._cell(record.unpack_dword(0x28), 4 * count)
        places = struct.unpack_from(f'<{count}I', self._data, start)
        return [self._value(place) for place in places]

    def _value(self, place: int) -> tuple[str, int, bytes]:
        start = self._cell(place, 20)
        record = self._guard(
            lambda: RegistryParse.VKRecord(self._data, start, self._hbin)
        )
        length = record.unpack_word(0x2)
        name = self._text(start, 20, length, record.has_ascii_name())
        data = self._value_data(record, start)
        return name, record.unpack_dword(0xC), data

    def _value_data(self, record: RegistryParse.VKRecord, start: int) -> bytes:
        size = record.raw_data_length()
        if size & _RESIDENT:
            size -= _RESIDENT
            if size > 4:
                raise self._damaged(f'{size} bytes where 4 have room')
            return bytes(self._data[start + 8 : start + 8 + size])
        if not size:
            return b''
        self._bytes_left -= size
        if self._bytes_left < 0:
            raise self._damaged('more data than it has room for')
        place = record.unpack_dword(0x8)
        if self.in_pieces(size) and self._kind(place) == b'db':
            return self._pieces(place, size)
        where = self._cell(place, 0)
        return bytes(self._data[where : where + min(size, self._room(where))])

    def in_pieces(self, size: int) -> bool:
        """Whether data of so many bytes are kept in pieces."""
        return size > SEGMENT and self.base.minor > 3

    def _pieces(self, place: int, size: int) -> bytes:
        start = self._cell(place, 8)
        count, segments = struct.unpack_from('<2xHI', self._data, start)
        if count != -(-size // SEGMENT):
            raise self._damaged(f'{size} bytes of data in {count} pieces')
        listed = self._cell(segments, 4 * count)
        result = bytearray()
        for piece in struct.unpack_from(f'<{count}I', self._data, listed):
            wanted = min(SEGMENT, size - len(result))
            where = self._cell(piece, wanted)
            result += self._data[where : where + wanted]
        return bytes(result)

    def find(self, path: str) -> tuple[int, str] | None:
        """A key by its path, case aside: its offset, its own path."""
        offset, names = self.root, []
        for part in path.split('\\') if path else []:
            wanted = part.upper()
            for name, child in self.children(offset).items():
                if name.upper() == wanted:
                    offset = child
                    names.append(name)
                    break
            else:
                return None
        return offset, '\\'.join(names)

    def records(self, path: str, depth: int) -> Iterator[registry.Record]:
        """A key and those below it, parents first.

        :param path: from the root; '' is the root itself
        :param depth: how far below, -1 for all
        """
        found = self.find(path)
        if found is None:
            return
        level = found[1].count('\\') + 1 if found[1] else 0
        stack = [(*found, level)]
        last = level + (DEPTH_LIMIT + 1 if depth < 0 else depth)
        seen: set[int] = set()
        while stack:
            offset, where, level = stack.pop()
            if offset in seen:
                raise self._damaged(f'the key {where} inside itself')
            seen.add(offset)
            children = self.children(offset)
            yield where, self.values(offset), tuple(children)
            if children and level >= DEPTH_LIMIT:
                raise self._damaged(f'keys nested more than {level} deep')
            if level >= last:
                continue
            prefix = f'{where}\\' if where else ''
            stack.extend(
                (child, prefix + name, level + 1)
                for name, child in reversed(children.items())
            )
