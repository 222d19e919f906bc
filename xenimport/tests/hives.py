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


"""Registry hives made byte by byte, clean and dirty.

To the layout that M. Suhanov's "Windows registry file format
specification" describes (https://github.com/msuhanov/regf); nothing of
the product is used. A tree maps paths from the root, names divided by
backslashes, to values: ``{'Select': [('Current', 4, b'\\1\\0\\0\\0')]}``;
'' is the root, and keys above one need not be named.
"""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import struct

#: Name, type and data of a value; a name of '' is the default one.
Value = tuple[str, int, bytes]
Tree = Mapping[str, Sequence[Value]]

PAGE = 4096
NOWHERE = 0xFFFFFFFF
#: FILETIME of 2019-01-01T00:00:00Z.
WRITTEN = 131_907_744_000_000_000
#: Bytes that a piece of a value larger than that has.
PIECE = 16344


def sz(text: str) -> bytes:
    """A REG_SZ's data."""
    return text.encode('utf-16-le') + b'\0\0'


def multi_sz(*texts: str) -> bytes:
    """A REG_MULTI_SZ's data."""
    return b''.join(map(sz, texts)) + b'\0\0'


def dword(number: int) -> bytes:
    """A REG_DWORD's data."""
    return struct.pack('<I', number)


class _Key:
    def __init__(self, name: str) -> None:
        self.name = name
        self.values: Sequence[Value] = ()
        self.below: dict[str, _Key] = {}


class Writer:
    """Lays out one hive.

    :ivar places: offset of each key's cell in the file, by its path
    :param leaf: of lists of subkeys: ``lh``, ``lf`` or ``li``
    :param leaf_limit: entries in one; more make an index root over them
    """

    def __init__(
        self, *, minor: int = 5, leaf: str = 'lh', leaf_limit: int = 500
    ) -> None:
        self.minor = minor
        self.leaf = leaf
        self.leaf_limit = leaf_limit
        self.places: dict[str, int] = {}
        self._data = bytearray()
        self._free = 0

    def cell(self, data: bytes) -> int:
        """Put data into a cell of their own; gives its offset."""
        size = (4 + len(data) + 7) // 8 * 8
        left = len(self._data) - self._free
        if size > left or 0 < left - size < 8:
            self._close_bin()
            room = (32 + size + PAGE - 1) // PAGE * PAGE
            self._free = len(self._data) + 32
            self._data += struct.pack(
                '<4sIIQQI', b'hbin', len(self._data), room, 0, WRITTEN, 0
            ).ljust(room, b'\0')
        offset = self._free
        struct.pack_into('<i', self._data, offset, -size)
        self._data[offset + 4 : offset + 4 + len(data)] = data
        self._free += size
        return offset

    def _close_bin(self) -> None:
        left = len(self._data) - self._free
        if left:
            struct.pack_into('<i', self._data, self._free, left)
        self._free = len(self._data)

    def hive(
        self, tree: Tree, root_name: str, *, sequence: int, file_name: str
    ) -> bytes:
        """The file."""
        root = _Key(root_name)
        count = 1
        for path, values in tree.items():
            key = root
            for name in path.split('\\') if path else []:
                if name.upper() not in key.below:
                    key.below[name.upper()] = _Key(name)
                    count += 1
                key = key.below[name.upper()]
            key.values = values
        # The root's cell comes first, so the security record's is known
        # once it is there.
        place = self._key(root, '', NOWHERE, 0x2C)
        security = self._security(count)
        self._point_to_security(security)
        self._close_bin()
        return self._base(place, sequence, file_name) + bytes(self._data)

    def _key(self, key: _Key, path: str, parent: int, flags: int) -> int:
        name, narrow = _name(key.name)
        place = self.cell(bytes(76) + name)
        self.places[path] = PAGE + place
        below = sorted(key.below.values(), key=lambda item: item.name.upper())
        prefix = f'{path}\\' if path else ''
        children = []
        for item in below:
            child = self._key(item, prefix + item.name, place, 0)
            children.append((item.name, child))
        struct.pack_into(
            '<2sHQIIIIIIIIIIIIIIIHH',
            self._data,
            place + 4,
            b'nk',
            flags | 0x20 if narrow else flags & ~0x20,
            WRITTEN,
            0,
            parent,
            len(children),
            0,
            self._list(children) if children else NOWHERE,
            NOWHERE,
            len(key.values),
            self._values(key.values) if key.values else NOWHERE,
            NOWHERE,
            NOWHERE,
            max((2 * len(item.name) for item in below), default=0),
            0,
            max((2 * len(item[0]) for item in key.values), default=0),
            max((len(item[2]) for item in key.values), default=0),
            0,
            len(name),
            0,
        )
        return place

    def _list(self, children: Sequence[tuple[str, int]]) -> int:
        leaves = [
            self._leaf(children[start : start + self.leaf_limit])
            for start in range(0, len(children), self.leaf_limit)
        ]
        if len(leaves) == 1:
            return leaves[0]
        return self.cell(
            struct.pack(f'<2sH{len(leaves)}I', b'ri', len(leaves), *leaves)
        )

    def _leaf(self, children: Sequence[tuple[str, int]]) -> int:
        data = struct.pack('<2sH', self.leaf.encode(), len(children))
        for name, place in children:
            data += struct.pack('<I', place)
            if self.leaf == 'lf':
                data += name.encode('latin-1', 'replace')[:4].ljust(4, b'\0')
            elif self.leaf == 'lh':
                data += struct.pack('<I', _hash(name))
        return self.cell(data)

    def _values(self, values: Sequence[Value]) -> int:
        places = [self._value(*value) for value in values]
        return self.cell(struct.pack(f'<{len(places)}I', *places))

    def _value(self, name: str, kind: int, data: bytes) -> int:
        encoded, narrow = _name(name)
        if len(data) <= 4:
            size = len(data) | 0x80000000
            place = int.from_bytes(data.ljust(4, b'\0'), 'little')
        else:
            size = len(data)
            place = self._data_cell(data)
        return self.cell(
            struct.pack(
                '<2sHIIIHH',
                b'vk',
                len(encoded),
                size,
                place,
                kind,
                int(narrow and bool(name)),
                0,
            )
            + encoded
        )

    def _data_cell(self, data: bytes) -> int:
        if len(data) <= PIECE or self.minor < 4:
            return self.cell(data)
        pieces = [
            self.cell(data[start : start + PIECE])
            for start in range(0, len(data), PIECE)
        ]
        listed = self.cell(struct.pack(f'<{len(pieces)}I', *pieces))
        return self.cell(struct.pack('<2sHI', b'db', len(pieces), listed))

    def _security(self, count: int) -> int:
        # Owner and group S-1-5-18, and a discretionary list of one entry
        # that lets S-1-5-18 do everything.
        sid = bytes.fromhex('010100000000000512000000')
        entry = struct.pack('<BBHI', 0, 2, 8 + len(sid), 0xF003F) + sid
        acl = struct.pack('<BBHHH', 2, 0, 8 + len(entry), 1, 0) + entry
        owner = 20 + len(acl)
        descriptor = struct.pack(
            '<BBHIIII', 1, 0, 0x8004, owner, owner + len(sid), 0, 20
        )
        descriptor += acl + sid + sid
        place = self.cell(bytes(20 + len(descriptor)))
        struct.pack_into(
            '<2sHIIII', self._data, place + 4,
            b'sk', 0, place, place, count, len(descriptor),
        )  # fmt: skip
        start = place + 4 + 20
        self._data[start : start + len(descriptor)] = descriptor
        return place

    def _point_to_security(self, security: int) -> None:
        for place in self.places.values():
            struct.pack_into(
                '<I', self._data, place - PAGE + 4 + 0x2C, security
            )

    def _base(self, root: int, sequence: int, file_name: str) -> bytes:
        block = bytearray(PAGE)
        struct.pack_into(
            '<4sIIQIIIIIII64s', block, 0,
            b'regf', sequence, sequence, WRITTEN, 1, self.minor, 0, 1,
            root, len(self._data), 1, file_name.encode('utf-16-le'),
        )  # fmt: skip
        return bytes(sealed(block))


def _name(name: str) -> tuple[bytes, bool]:
    """A name as it stands in a record, and whether in one byte each."""
    try:
        return name.encode('latin-1'), True
    except UnicodeEncodeError:
        return name.encode('utf-16-le', 'surrogatepass'), False


def _hash(name: str) -> int:
    result = 0
    for character in name.upper():
        result = (result * 37 + ord(character)) & 0xFFFFFFFF
    return result


def sealed(block: bytes | bytearray) -> bytearray:
    """A base block, or a file that starts with one, with its checksum."""
    result = bytearray(block)
    total = 0
    for (word,) in struct.iter_unpack('<I', result[:508]):
        total ^= word
    total = {0: 1, 0xFFFFFFFF: 0xFFFFFFFE}.get(total, total)
    struct.pack_into('<I', result, 508, total)
    return result


def write(
    tree: Tree,
    root_name: str = 'ROOT',
    *,
    minor: int = 5,
    sequence: int = 1,
    file_name: str = '',
    leaf: str = 'lh',
    leaf_limit: int = 500,
) -> bytes:
    """A clean hive."""
    writer = Writer(minor=minor, leaf=leaf, leaf_limit=leaf_limit)
    return writer.hive(tree, root_name, sequence=sequence, file_name=file_name)


@dataclasses.dataclass
class Dirty:
    """A hive that was not written out.

    :ivar hive: the primary file
    :ivar logs: contents by ``.LOG1``, ``.LOG2``
    """

    hive: bytes
    logs: dict[str, bytes]


def numbered(hive: bytes, primary: int, secondary: int) -> bytes:
    """A hive with these sequence numbers."""
    result = bytearray(hive)
    struct.pack_into('<II', result, 4, primary, secondary)
    return bytes(sealed(result))


def pages(before: bytes, after: bytes) -> list[tuple[int, bytes]]:
    """Pages of hive bins in which two hives differ: offset, new bytes."""
    return [
        (start - PAGE, after[start : start + PAGE])
        for start in range(PAGE, len(after), PAGE)
        if after[start : start + PAGE] != before[start : start + PAGE]
    ]


def marvin32(data: bytes) -> bytes:
    """Marvin32 with the seed that Windows' logs are hashed with."""
    low, high = struct.unpack('<II', bytes.fromhex('82EF4D887A4E55C5')[::-1])
    whole = len(data) // 4 * 4
    rest = data[whole:] + b'\x80'
    words = struct.unpack(f'<{whole // 4}I', data[:whole])
    for word in (*words, int.from_bytes(rest, 'little'), 0):
        low = (low + word) & 0xFFFFFFFF
        high ^= low
        low = (_turn(low, 20) + high) & 0xFFFFFFFF
        high = _turn(high, 9) ^ low
        low = (_turn(low, 27) + high) & 0xFFFFFFFF
        high = _turn(high, 19)
    return struct.pack('<II', low, high)


def _turn(word: int, count: int) -> int:
    return ((word << count) | (word >> (32 - count))) & 0xFFFFFFFF


def entry(
    number: int, changed: Sequence[tuple[int, bytes]], size: int
) -> bytes:
    """One entry of a log in the format of Windows 8.1 and later.

    :param number: its sequence number
    :param size: bytes of the hive bins once it is applied
    """
    body = b''.join(
        struct.pack('<II', offset, len(data)) for offset, data in changed
    ) + b''.join(data for _, data in changed)
    total = (40 + len(body) + 511) // 512 * 512
    body = body.ljust(total - 40, b'\0')
    head = struct.pack('<4sIIIII', b'HvLE', total, 0, number, size,
                       len(changed))  # fmt: skip
    head += marvin32(body)
    return head + marvin32(head) + body


def log_base(hive: bytes, kind: int, number: int) -> bytes:
    """The first sector of a log: the hive's own, changed."""
    result = bytearray(hive[:512])
    struct.pack_into('<II', result, 4, number, number)
    struct.pack_into('<I', result, 28, kind)
    return bytes(sealed(result))


def new_log(hive: bytes, number: int, entries: Sequence[bytes]) -> bytes:
    """A log in the format of Windows 8.1 and later.

    :param number: sequence number of the first entry
    """
    return log_base(hive, 6, number) + b''.join(entries)


def dirty(
    before: bytes, *after: bytes, first: int = 1, split: int | None = None
) -> Dirty:
    """A hive whose later states are in logs, format of Windows 8.1.

    :param after: the states, each an entry
    :param first: which log holds the first entries, 1 or 2
    :param split: entries in that log; the others are in the other one
    """
    (number,) = struct.unpack_from('<I', before, 4)
    entries, last = [], before
    for count, state in enumerate(after, 1):
        entries.append(
            entry(number + count, pages(last, state), len(state) - PAGE)
        )
        last = state
    split = len(entries) if split is None else split
    logs = {f'.LOG{first}': new_log(before, number + 1, entries[:split])}
    if split < len(entries):
        logs[f'.LOG{3 - first}'] = new_log(
            before, number + 1 + split, entries[split:]
        )
    return Dirty(numbered(before, number + 1, number), logs)


def old_log(hive: bytes, after: bytes, number: int, kind: int = 1) -> bytes:
    """A log in the format of Windows before 8.1.

    :param hive: whose base block tells size and time
    :param after: the state that it leads to
    """
    bits = bytearray((len(after) - PAGE) // 512 // 8)
    changed = b''
    for offset, data in pages(hive, after):
        bits[offset // PAGE] = 0xFF
        changed += data
    vector = b'DIRT' + bytes(bits)
    vector = vector.ljust((len(vector) + 511) // 512 * 512, b'\0')
    return log_base(after, kind, number) + vector + changed


def dirty_old(before: bytes, after: bytes) -> Dirty:
    """A hive whose later state is in a log, format before Windows 8.1.

    The base block is that of the write that did not end.
    """
    (number,) = struct.unpack_from('<I', before, 4)
    hive = numbered(after[:512] + before[512:], number + 1, number)
    return Dirty(hive, {'.LOG1': old_log(before, after, number + 1)})
