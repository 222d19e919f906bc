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


"""Recovery of a hive from its transaction logs.

Windows writes changes of a hive to a log first. A guest that was stopped
hard, or whose disks were copied while it ran, has the newest of them in
the logs alone, and hivex would have Windows forget them: it marks the
hive as clean. So they are replayed as Windows would.

Source of every rule: M. Suhanov, "Windows registry file format
specification" (https://github.com/msuhanov/regf), chapters "Format of
transaction log files", "Dirty state of a hive" and "Multiple transaction
log files".
"""

from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Mapping
import dataclasses
import struct
import typing

from xenimport.guest import hive_file

#: Bytes of a log that are looked at, which bounds the time that it takes
#: to hash them: some 20 s.
LOG_LIMIT = 128 << 20
#: Where the entries of a log in the new format start.
_ENTRIES = 512
#: Bytes of an entry before the references to its pages.
_ENTRY_HEAD = 40
_ENTRY = struct.Struct('<4sIIIII8s8s')
_PAGE = struct.Struct('<II')
#: Bytes of a page in the old format, whatever a sector of the disk has.
_OLD_PAGE = 512
#: Offset of the flags in the base block, and the one that entries set.
_FLAGS = 144
_LOCKED = 1
#: Offsets of the base block's fields that recovery writes or reads.
_KIND = 28
_SIZE = 40
_FACTOR = 44
#: Offset of the time in the first hive bin.
_BIN_TIME = hive_file.BASE + 20


@dataclasses.dataclass(frozen=True)
class Recovery:
    """What the logs made of a hive.

    :ivar data: the hive, recovered; as it was where nothing was applied
    :ivar replayed: entries that were applied; a log in the old format is
        one entry
    :ivar logs: names of the logs they came from
    :ivar lost: why the logs could not be used, '' where they could
    """

    data: bytearray
    replayed: int = 0
    logs: tuple[str, ...] = ()
    lost: str = ''


@dataclasses.dataclass(frozen=True)
class _Log:
    name: str
    data: bytearray
    base: hive_file.BaseBlock


class _Entry(typing.NamedTuple):
    """An entry of a log in the new format.

    :ivar size: bytes of the hive bins once it is applied
    :ivar pages: offset in the hive bins, start and end in the log
    """

    number: int
    flags: int
    size: int
    pages: list[tuple[int, int, int]]


def recover(data: bytearray, logs: Mapping[str, bytearray]) -> Recovery:
    """Replay a dirty hive's logs.

    :param data: the whole hive; it is not changed
    :param logs: contents by name, in the order LOG1, LOG2, LOG
    """
    usable = [
        _Log(name, log, base)
        for name, log in logs.items()
        if (base := hive_file.base_block(log)) is not None
        and base.valid
        and len(log) <= LOG_LIMIT
    ]
    new = [log for log in usable if log.base.kind == hive_file.NEW_LOG]
    old = [log for log in usable if log.base.kind in hive_file.OLD_LOGS]
    if len(data) < _BIN_TIME + 8:
        found = Recovery(data, lost='the hive is cut')
    elif new:
        found = _recover_new(data, new)
    elif old:
        found = _recover_old(data, old)
    elif logs:
        found = Recovery(data, lost='its logs are empty or damaged')
    else:
        found = Recovery(data, lost='it has no logs')
    if not found.lost and not _bins_are_sound(found.data):
        return Recovery(data, lost='its logs do not fit to it')
    return found


def _bins_are_sound(data: bytearray) -> bool:
    """Whether each hive bin is where it says that it is."""
    (size,) = struct.unpack_from('<I', data, _SIZE)
    offset = 0
    while offset < size:
        start = hive_file.BASE + offset
        if len(data) < start + 12:
            return False
        signature, place, length = struct.unpack_from('<4sII', data, start)
        if signature != b'hbin' or place != offset:
            return False
        if not length or length % hive_file.BASE:
            return False
        offset += length
    return offset == size


def _recover_new(data: bytearray, logs: list[_Log]) -> Recovery:
    """From logs as Windows 8.1 and later write them."""
    base = hive_file.base_block(data)
    result = bytearray(data)
    lowest = 0
    if base is not None and base.valid:
        # Both logs are used, the one with the earlier entries first.
        logs = sorted(logs, key=lambda log: log.base.primary)
        lowest = base.secondary
    else:
        # The base block is the log's; only the log with the latest
        # entries is used.
        logs = [max(logs, key=lambda log: log.base.primary)]
        _take_base_block(result, logs[0])
    expected = None
    replayed = 0
    names = []
    for log in logs:
        first = log.base.primary
        if first < lowest or expected not in (None, first):
            continue
        for entry in _entries(log):
            _apply(result, log, entry)
            replayed += 1
            expected = entry.number + 1
            if log.name not in names:
                names.append(log.name)
    if expected is None:
        return Recovery(
            data, lost='its logs hold nothing that follows its last write'
        )
    hive_file.set_sequence(result, expected - 1)
    return Recovery(result, replayed, tuple(names))


def _take_base_block(data: bytearray, log: _Log) -> None:
    data[: hive_file.SECTOR] = log.data[: hive_file.SECTOR]
    struct.pack_into('<I', data, _KIND, hive_file.PRIMARY)


def _entries(log: _Log) -> Iterator[_Entry]:
    """Entries from the one that the base block names, in sequence."""
    offset = _ENTRIES
    number = log.base.primary
    while (entry := _entry(log.data, offset)) is not None:
        if entry.number != number:
            return
        yield entry
        number += 1
        offset += struct.unpack_from('<I', log.data, offset + 4)[0]


def _entry(data: bytearray, offset: int) -> _Entry | None:
    """The entry at an offset, None where there is no valid one."""
    if len(data) - offset < _ENTRY_HEAD:
        return None
    signature, length, flags, number, size, count, first, second = (
        _ENTRY.unpack_from(data, offset)
    )
    room = length - _ENTRY_HEAD
    if (
        signature != b'HvLE'
        or length % _ENTRIES
        or not _PAGE.size * count <= room
        or length > len(data) - offset
        or not 0 < size <= hive_file.SIZE_LIMIT
        or size % hive_file.BASE
        or second != marvin32(data[offset : offset + 32])
        or first != marvin32(data[offset + _ENTRY_HEAD : offset + length])
    ):
        return None
    pages = []
    at = offset + _ENTRY_HEAD
    start = at + _PAGE.size * count
    for index in range(count):
        place, amount = _PAGE.unpack_from(data, at + _PAGE.size * index)
        if place + amount > size or start + amount > offset + length:
            return None
        pages.append((place, start, start + amount))
        start += amount
    return _Entry(number, flags, size, pages)


def _apply(data: bytearray, log: _Log, entry: _Entry) -> None:
    _set_size(data, entry.size)
    for place, start, end in entry.pages:
        at = hive_file.BASE + place
        data[at : at + end - start] = log.data[start:end]
    (flags,) = struct.unpack_from('<I', data, _FLAGS)
    flags = flags & ~_LOCKED | entry.flags & _LOCKED
    struct.pack_into('<I', data, _FLAGS, flags)


def _set_size(data: bytearray, size: int) -> None:
    """Have so many bytes of hive bins, longer file and all."""
    data.extend(bytes(max(0, hive_file.BASE + size - len(data))))
    struct.pack_into('<I', data, _SIZE, size)


def marvin32(data: bytes | bytearray) -> bytes:
    """The Marvin32 hash with the seed of the registry's logs.

    Source of the algorithm: .NET's Marvin (MIT licence) describes it as
    rounds of additions, exclusive ors and rotations of two words.
    """
    low, high = 0x7A4E55C5, 0x82EF4D88
    whole = len(data) & ~3
    tail = bytes(data[whole:]) + b'\x80'
    words = struct.unpack_from(f'<{whole >> 2}I', data)
    for word in (*words, int.from_bytes(tail, 'little'), 0):
        low = (low + word) & 0xFFFFFFFF
        high ^= low
        low = ((low << 20 | low >> 12) + high) & 0xFFFFFFFF
        high = (high << 9 | high >> 23) & 0xFFFFFFFF ^ low
        low = ((low << 27 | low >> 5) + high) & 0xFFFFFFFF
        high = (high << 19 | high >> 13) & 0xFFFFFFFF
    return struct.pack('<II', low, high)


def _recover_old(data: bytearray, logs: list[_Log]) -> Recovery:
    """From a log as Windows before 8.1 writes it.

    The first that was written together with the hive is used, as the boot
    loader does.
    """
    base = hive_file.base_block(data)
    valid = base is not None and base.valid
    # The first hive bin has a copy of the time.
    (written,) = struct.unpack_from('<Q', data, _BIN_TIME)
    if base is not None and base.valid:
        written = base.written
    for log in logs:
        if (
            log.base.primary == log.base.secondary
            and log.base.written == written
            and (pages := _old_pages(log)) is not None
        ):
            result = bytearray(data)
            if not valid:
                _take_base_block(result, log)
            _set_size(result, log.base.size)
            for place, start in pages:
                at = hive_file.BASE + place
                result[at : at + _OLD_PAGE] = log.data[
                    start : start + _OLD_PAGE
                ]
            number = max(log.base.primary, base.primary if base else 0)
            hive_file.set_sequence(
                result, number if valid else log.base.primary
            )
            return Recovery(result, 1, (log.name,))
    return Recovery(data, lost='its logs are those of another write, or cut')


def _old_pages(log: _Log) -> list[tuple[int, int]] | None:
    """Offset in the hive bins, and in the log, of each page in it.

    None where the log is cut or damaged.
    """
    (factor,) = struct.unpack_from('<I', log.data, _FACTOR)
    size = log.base.size
    if not 1 <= factor <= 8 or not 0 < size <= hive_file.SIZE_LIMIT:
        return None
    sector = factor * hive_file.SECTOR
    bits = log.data[sector + 4 : sector + 4 + size // _OLD_PAGE // 8]
    if log.data[sector : sector + 4] != b'DIRT' or size % hive_file.BASE:
        return None
    if len(bits) < size // _OLD_PAGE // 8:
        return None
    start = sector + (4 + len(bits) + sector - 1) // sector * sector
    pages = []
    for index, byte in enumerate(bits):
        if not byte:
            continue
        for bit in range(8):
            if byte >> bit & 1:
                pages.append(((index * 8 + bit) * _OLD_PAGE, start))
                start += _OLD_PAGE
    return pages if start <= len(log.data) else None
