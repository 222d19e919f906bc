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


"""Plain partition tables, read from their sectors.

parted takes some 0.3 s a question under TCG (measured), and there are four
to six of them a partition. So what needs no judgement is read here; of
everything else (extended partitions, a damaged table, a file system on
the whole drive) parted decides.

Sources: the UEFI specification 2.10, chapter 5, for both tables. Sectors
have 512 bytes, as on every disk of Xen.
"""

from __future__ import annotations

import dataclasses
import struct
import uuid
import zlib

SECTOR = 512
#: Bytes that an MBR, or a GPT with its usual 128 entries, takes up.
LENGTH = 34 * SECTOR
_EXTENDED = frozenset((0x05, 0x0F, 0x85))
_PROTECTIVE = 0xEE
_ENTRIES = 128
_ENTRY = 128
#: Bytes of a GPT's header that its checksum covers.
_HEADER = 92
#: Bit 2 of a GPT entry's attributes: legacy BIOS bootable.
GPT_BIOS_BOOTABLE = 0x4


@dataclasses.dataclass(frozen=True)
class Entry:
    """One partition; ``start`` and ``size`` in bytes.

    :ivar type: the MBR id as ``0x83``, or the GPT type GUID in upper case
    :ivar bootable: active in an MBR, legacy BIOS bootable in a GPT
    """

    number: int
    start: int
    size: int
    type: str
    bootable: bool


@dataclasses.dataclass(frozen=True)
class Table:
    """A table without a flaw. ``kind`` as parted: ``msdos`` or ``gpt``."""

    kind: str
    entries: tuple[Entry, ...]


def parse(data: bytes, size: int) -> Table | None:
    """The table in a drive's first sectors, None where parted shall judge.

    :param data: :data:`LENGTH` bytes
    :param size: the drive's, in bytes
    """
    if len(data) < LENGTH or data[510:512] != b'\x55\xaa':
        return None
    if data[3:11] in (b'NTFS    ', b'EXFAT   ') or b'FAT' in (
        data[54:57],
        data[82:85],
    ):
        return None
    slots = [data[446 + 16 * n : 462 + 16 * n] for n in range(4)]
    if any(slot[4] == _PROTECTIVE for slot in slots):
        table = _gpt(data, size)
    else:
        table = _mbr(slots)
    if table is None or not _sound(table, size):
        return None
    return table


def _mbr(slots: list[bytes]) -> Table | None:
    found = []
    for number, slot in enumerate(slots, 1):
        if slot[0] not in (0x00, 0x80) or slot[4] in _EXTENDED:
            return None
        if slot[4]:
            start, count = struct.unpack_from('<II', slot, 8)
            found.append(
                Entry(
                    number,
                    start * SECTOR,
                    count * SECTOR,
                    f'{slot[4]:#04x}',
                    slot[0] == 0x80,
                )
            )
    return Table('msdos', tuple(found))


def _gpt(data: bytes, size: int) -> Table | None:
    header = data[SECTOR : SECTOR + _HEADER]
    length, checksum = struct.unpack_from('<II', header, 12)
    if header[:8] != b'EFI PART' or length != _HEADER:
        return None
    if zlib.crc32(header[:16] + bytes(4) + header[20:]) != checksum:
        return None
    own, backup = struct.unpack_from('<QQ', header, 24)
    entries, count, each, checksum = struct.unpack_from('<QIII', header, 72)
    if (own, entries, count, each) != (1, 2, _ENTRIES, _ENTRY):
        return None
    if (backup + 1) * SECTOR != size:
        return None
    array = data[2 * SECTOR : 2 * SECTOR + count * each]
    if zlib.crc32(array) != checksum:
        return None
    return Table('gpt', tuple(_gpt_entries(array)))


def _gpt_entries(array: bytes) -> list[Entry]:
    found = []
    for number in range(_ENTRIES):
        entry = array[number * _ENTRY : (number + 1) * _ENTRY]
        if any(entry[:16]):
            first, last, attributes = struct.unpack_from('<QQQ', entry, 32)
            found.append(
                Entry(
                    number + 1,
                    first * SECTOR,
                    (last + 1 - first) * SECTOR,
                    str(uuid.UUID(bytes_le=entry[:16])).upper(),
                    bool(attributes & GPT_BIOS_BOOTABLE),
                )
            )
    return found


def _sound(table: Table, size: int) -> bool:
    """Whether the partitions lie inside the drive and none in another."""
    end = SECTOR
    for entry in sorted(table.entries, key=lambda item: item.start):
        if entry.start < end or entry.size <= 0:
            return False
        end = entry.start + entry.size
    return end <= size
