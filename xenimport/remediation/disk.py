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

"""Checks of the disks themselves, whatever is on them.

Source of facts: the UEFI specification's chapter on the GUID partition
table for the table's layout, and oslo.utils' format_inspector for what
Glance and Nova refuse. Sectors have 512 bytes, as on every disk of Xen.
"""

from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Sequence
import dataclasses
import struct
import uuid

from xenimport.guest import guest as guest_room
from xenimport import model
from xenimport.remediation import base

SECTOR = 512
SIGNATURE = b'\x55\xaa'
_TABLE = 446
_ENTRY = 16
_PROTECTIVE = 0xEE
#: The CHS address of LBA 1, the only one that is accepted.
_FIRST_CHS = b'\x00\x02\x00'
_EXTENDED = frozenset((0x05, 0x0F, 0x85))
#: More logical partitions than any system makes: a chain may be a loop.
_CHAIN_LIMIT = 128
#: UEFI says at least 128 entries of 128 bytes; no tool makes many more.
_ENTRIES_LIMIT = 1024
_ENTRY_SIZES = (128, 256, 512)


@dataclasses.dataclass(frozen=True)
class Slot:
    """One used entry of an MBR.

    :ivar number: 0 to 3
    :ivar start: and ``count`` in sectors
    """

    number: int
    kind: int
    chs: bytes
    start: int
    count: int
    active: bool = False


@dataclasses.dataclass(frozen=True)
class Gpt:
    """What a GPT's header says, in sectors."""

    alternate: int
    entries: int
    number: int
    entry_size: int


@dataclasses.dataclass(frozen=True)
class Extent:
    """A partition's place, in sectors; ``end`` is the one behind it.

    :ivar kind: a GPT's type GUID in upper case, '' in an MBR
    """

    name: str
    start: int
    end: int
    kind: str = ''


@dataclasses.dataclass(frozen=True)
class Table:
    """A drive's partition table, as the bytes on it say.

    Not as parted says: it refuses tables with errors, those that the
    checks here are about, and takes a second a call.

    :ivar sector: the first one
    :ivar extents: primary partitions, or all of a GPT
    """

    sector: bytes
    slots: tuple[Slot, ...]
    gpt: Gpt | None
    extents: tuple[Extent, ...]

    @property
    def protective(self) -> bool:
        """Whether it says that the disk has a GPT."""
        return any(slot.kind == _PROTECTIVE for slot in self.slots)


def parse_mbr(sector: bytes) -> list[Slot]:
    """The used entries of an MBR; none where there is no signature."""
    if len(sector) < SECTOR or sector[510:512] != SIGNATURE:
        return []
    if _is_file_system(sector):
        return []
    slots = []
    for number in range(4):
        at = _TABLE + number * _ENTRY
        entry = sector[at : at + _ENTRY]
        start, count = struct.unpack_from('<II', entry, 8)
        if entry[4]:
            active = entry[0] == 0x80
            slots.append(
                Slot(number, entry[4], entry[1:4], start, count, active)
            )
    return slots


def _is_file_system(sector: bytes) -> bool:
    """NTFS and FAT on the whole disk have the signature and no table."""
    return sector[3:11] in (b'NTFS    ', b'EXFAT   ') or (
        sector[54:57] == b'FAT' or sector[82:85] == b'FAT'
    )


def parse_gpt(sector: bytes) -> Gpt | None:
    """A GPT's header, None where there is none or it is nonsense."""
    if sector[:8] != b'EFI PART':
        return None
    (alternate,) = struct.unpack_from('<Q', sector, 32)
    entries, number, size = struct.unpack_from('<QII', sector, 72)
    if number > _ENTRIES_LIMIT or size not in _ENTRY_SIZES:
        return None
    return Gpt(alternate, entries, number, size)


def gpt_extents(gpt: Gpt, data: bytes) -> list[Extent]:
    """The partitions that a GPT's array of entries names."""
    found = []
    for number in range(gpt.number):
        entry = data[number * gpt.entry_size :][:128]
        if len(entry) == 128 and any(entry[:16]):
            first, last = struct.unpack_from('<QQ', entry, 32)
            kind = str(uuid.UUID(bytes_le=entry[:16])).upper()
            found.append(
                Extent(f'partition {number + 1}', first, last + 1, kind)
            )
    return found


def mended_table(sector: bytes) -> bytes:
    """The MBR with its only entry, a protective one, as UEFI wants it."""
    (slot,) = parse_mbr(sector)
    at = _TABLE + slot.number * _ENTRY
    entry = bytearray(sector[at : at + _ENTRY])
    entry[0] = entry[0] if entry[0] in (0x00, 0x80) else 0
    entry[1:4] = _FIRST_CHS
    entry[8:12] = struct.pack('<I', 1)
    made = bytearray(sector)
    made[_TABLE : _TABLE + 4 * _ENTRY] = bytes(entry) + bytes(3 * _ENTRY)
    return bytes(made)


def _size(guest: guest_room.Guest, drive: str) -> int:
    """In sectors."""
    return int(guest.call('blockdev_getsize64', drive)) // SECTOR


def read_table(guest: guest_room.Guest, drive: str) -> Table:
    """The partition table of a drive."""
    # What most tables need, in one call: MBR, header, 128 entries.
    head = guest.read_device(drive, 0, 34 * SECTOR)
    sector = head[:SECTOR]
    slots = tuple(parse_mbr(sector))
    if any(slot.kind == _PROTECTIVE for slot in slots):
        gpt = parse_gpt(head[SECTOR : 2 * SECTOR])
        extents = _gpt_extents_of(guest, drive, gpt, head) if gpt else []
        return Table(sector, slots, gpt, tuple(extents))
    extents = [
        Extent(
            f'partition {slot.number + 1}',
            slot.start,
            slot.start + slot.count,
        )
        for slot in slots
    ]
    return Table(sector, slots, None, tuple(extents))


def _gpt_extents_of(
    guest: guest_room.Guest, drive: str, gpt: Gpt, head: bytes
) -> list[Extent]:
    length = gpt.number * gpt.entry_size
    entries = head[2 * SECTOR :]
    if gpt.entries != 2 or length > len(entries):
        if gpt.entries >= _size(guest, drive):
            return []
        entries = guest.read_device(drive, gpt.entries * SECTOR, length)
    return gpt_extents(gpt, entries)


class NoOperatingSystem(base.Check):
    """A virtual system without any operating system."""

    id = 'disk.no-operating-system'
    title = 'There is an operating system on the disks'

    def diagnose(self, guest: guest_room.Guest) -> Iterator[model.Finding]:
        if guest.operating_system is None:
            yield model.Finding(
                self.id,
                model.Severity.BLOCKER,
                'No operating system was found',
                'inspected ' + ', '.join(guest.drives),
                'check that the package holds the disk with the operating '
                'system; for disks of data only, use --no-repair',
                subject=guest.drives[0] if guest.drives else '',
                loss='nothing is repaired: if there is a system after all, '
                'it may not boot',
            )


class HybridMbr(base.Check):
    """A GPT with more than the protective entry in its MBR."""

    id = 'disk.hybrid-mbr'
    title = 'No GPT has a hybrid MBR'

    def diagnose(self, guest: guest_room.Guest) -> Iterator[model.Finding]:
        for drive in guest.drives:
            table = read_table(guest, drive)
            if table.protective and len(table.slots) > 1:
                kinds = ', '.join(
                    f'{slot.number + 1}: {slot.kind:#04x}'
                    for slot in table.slots
                )
                yield model.Finding(
                    self.id,
                    model.Severity.BLOCKER,
                    'Glance refuses a hybrid MBR',
                    f'{drive}: sector 0 has the entries {kinds}',
                    'in the source, leave only the protective entry, for '
                    'example with gdisk (x, n, w), and export again',
                    subject=drive,
                )


class ProtectiveEntry(base.Check):
    """The MBR entry that guards a GPT, as Glance and Nova want it."""

    id = 'disk.protective-entry'
    title = "Each GPT's protective entry is as Glance wants it"

    def diagnose(self, guest: guest_room.Guest) -> Iterator[model.Finding]:
        for drive in guest.drives:
            table = read_table(guest, drive)
            if not table.protective or len(table.slots) != 1:
                continue
            if mended_table(table.sector) == table.sector:
                continue
            slot = table.slots[0]
            yield model.Finding(
                self.id,
                model.Severity.BLOCKER,
                'Glance would refuse the protective entry of the GPT',
                f'{drive}: entry {slot.number + 1} of sector 0 starts at CHS '
                f'{slot.chs.hex(" ")}, LBA {slot.start}; expected entry 1, '
                'CHS 00 02 00, LBA 1',
                'have gdisk write the protective MBR anew (x, n, w)',
                subject=drive,
                repair='writes these values; the GPT itself stays',
            )

    def repair(
        self, guest: guest_room.Guest, finding: model.Finding
    ) -> Sequence[model.Change]:
        drive = finding.subject
        table = read_table(guest, drive)
        if len(table.slots) != 1 or not table.protective:
            return ()
        sector = table.sector
        mended = mended_table(sector)
        if mended == sector:
            return ()
        guest.write_device(drive, 0, mended)
        before, after = sector[_TABLE:510], mended[_TABLE:510]
        return [
            model.Change(
                self.id,
                drive,
                'sector 0, bytes 446-509',
                before=before.hex(' ', 4),
                after=after.hex(' ', 4),
                reason='Glance and Nova accept no other protective entry',
                undo='write the bytes before to the same place',
            )
        ]


class GptBackup(base.Check):
    """The second copy of a GPT, in the last sector of the disk."""

    id = 'disk.gpt-backup'
    title = 'Each GPT has its backup at the end of the disk'

    def diagnose(self, guest: guest_room.Guest) -> Iterator[model.Finding]:
        for drive in guest.drives:
            gpt = read_table(guest, drive).gpt
            if gpt is None:
                continue
            last = _size(guest, drive) - 1
            found = parse_gpt(guest.read_device(drive, last * SECTOR, SECTOR))
            if found is not None and gpt.alternate == last:
                continue
            yield model.Finding(
                self.id,
                model.Severity.WARNING,
                'The GPT has no backup at the end of the disk',
                f'{drive}: the header names sector {gpt.alternate}, the '
                f'last one is {last}, which holds '
                + ('a header' if found else 'no header'),
                'in the source guest, move the backup to the end of that '
                'disk (sgdisk --move-second-header) and export it again',
                subject=drive,
                repair='writes the backup into the last sectors',
            )

    def repair(
        self, guest: guest_room.Guest, finding: model.Finding
    ) -> Sequence[model.Change]:
        drive = finding.subject
        if not any(found.subject == drive for found in self.diagnose(guest)):
            return ()
        guest.call('part_expand_gpt', drive)
        return [
            model.Change(
                self.id,
                drive,
                'the last 33 sectors, and sector 1',
                before=finding.evidence,
                after='the backup of the GPT at the end of the disk',
                reason='a damaged first copy could not be mended without it',
                undo='none needed',
            )
        ]


class PartitionOutside(base.Check):
    """A partition that ends behind the end of its disk."""

    id = 'disk.partition-outside'
    title = 'Every partition ends inside its disk'

    def diagnose(self, guest: guest_room.Guest) -> Iterator[model.Finding]:
        for drive in guest.drives:
            size = _size(guest, drive)
            for extent in self._extents(guest, drive):
                if not extent.start < extent.end <= size:
                    yield self._finding(drive, extent, size)

    def _finding(self, drive: str, extent: Extent, size: int) -> model.Finding:
        return model.Finding(
            self.id,
            model.Severity.BLOCKER,
            'A partition reaches beyond the end of the disk',
            f'{drive}: {extent.name} has the sectors {extent.start} to '
            f'{extent.end - 1}, the disk ends with {size - 1}',
            'the package is not whole, or its disk was made smaller: export '
            'the guest again',
            subject=f'{drive} {extent.name}',
            loss='what was behind the end of the disk',
        )

    def _extents(
        self, guest: guest_room.Guest, drive: str
    ) -> Iterator[Extent]:
        table = read_table(guest, drive)
        yield from table.extents
        for slot in table.slots:
            if slot.kind in _EXTENDED and not table.protective:
                yield from self._logical(guest, drive, slot.start)

    def _logical(
        self, guest: guest_room.Guest, drive: str, first: int
    ) -> Iterator[Extent]:
        """The chain of records in an extended partition.

        A record's partition is counted from the record itself, the next
        record from the start of the extended partition.
        """
        record, size = first, _size(guest, drive)
        for number in range(5, 5 + _CHAIN_LIMIT):
            if record >= size:
                return
            sector = guest.read_device(drive, record * SECTOR, SECTOR)
            following = None
            for slot in parse_mbr(sector)[:2]:
                if slot.kind in _EXTENDED:
                    following = first + slot.start
                else:
                    start = record + slot.start
                    yield Extent(
                        f'partition {number}', start, start + slot.count
                    )
            if following is None or following <= record:
                return
            record = following


class DiskRemediation(base.Remediation):
    """What holds for every disk, with an operating system or without."""

    generic = True
    handles = 'partition tables of any guest'

    CHECKS: tuple[type[base.Check], ...] = (
        NoOperatingSystem,
        PartitionOutside,
        HybridMbr,
        ProtectiveEntry,
        GptBackup,
    )

    def matches(self, operating_system: model.OperatingSystem | None) -> bool:
        return True

    def checks(self, request: base.Request) -> Sequence[base.Check]:
        return [check(request) for check in self.CHECKS]
