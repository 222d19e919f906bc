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


"""The base block of a hive and of its logs, and limits of both.

Source: M. Suhanov, "Windows registry file format specification"
(https://github.com/msuhanov/regf), chapters "Base block" and "Dirty state
of a hive".
"""

from __future__ import annotations

from collections.abc import Iterable
import dataclasses
import functools
import operator
import os
import struct

from xenimport import exceptions
from xenimport.guest import registry

#: Bytes of the base block; offsets in a hive count from behind it.
BASE = 4096
#: Bytes of the base block that its checksum covers, checksum included.
SECTOR = 512
#: Bytes that a hive, or one of its logs, may have. Windows itself stops a
#: SYSTEM hive at some hundred mebibytes; the largest SOFTWARE hives seen
#: have less than 200.
SIZE_LIMIT = 512 << 20
#: What the file type field of a base block says.
PRIMARY = 0
OLD_LOGS = (1, 2)
NEW_LOG = 6
#: Sequence numbers have 32 bits; near their end they start anew.
_SEQUENCE_LIMIT = 0xFFFF_0000
_SIGNATURE = b'regf'
_HEAD = struct.Struct('<4sIIQIIIIIII')
_SEQUENCES = struct.Struct('<II')
_WORDS = struct.Struct('<127I')
_CHECKSUM = struct.Struct('<I')


@dataclasses.dataclass(frozen=True, slots=True)
class BaseBlock:
    """The fields of a base block that matter here.

    :ivar primary: sequence number, counted up before a write
    :ivar secondary: sequence number, counted up after a write
    :ivar written: when, as a FILETIME; not kept since Windows 8.1
    :ivar kind: ``PRIMARY``, ``NEW_LOG`` or one of ``OLD_LOGS``
    :ivar root: offset of the root key's cell, from the end of this block
    :ivar size: bytes of the hive bins
    :ivar valid: whether signature and checksum are right
    """

    primary: int
    secondary: int
    written: int
    major: int
    minor: int
    kind: int
    root: int
    size: int
    valid: bool

    @property
    def dirty(self) -> bool:
        """Whether the hive has to be recovered from its logs."""
        return not self.valid or self.primary != self.secondary


def base_block(data: bytes | bytearray) -> BaseBlock | None:
    """The base block at the start of a file, None where there is none."""
    if len(data) < SECTOR:
        return None
    head = _HEAD.unpack_from(data)
    signature, primary, secondary, written, major, minor, kind = head[:7]
    (found,) = _CHECKSUM.unpack_from(data, SECTOR - 4)
    return BaseBlock(
        primary=primary,
        secondary=secondary,
        written=written,
        major=major,
        minor=minor,
        kind=kind,
        root=head[8],
        size=head[9],
        valid=signature == _SIGNATURE and found == checksum(data),
    )


def checksum(data: bytes | bytearray) -> int:
    """The checksum that a base block should have."""
    result = functools.reduce(operator.xor, _WORDS.unpack_from(data))
    if result == 0xFFFFFFFF:
        return 0xFFFFFFFE
    return result or 1


def set_sequence(data: bytearray, number: int) -> None:
    """Mark a hive as clean, as of a write of this number."""
    _SEQUENCES.pack_into(data, 4, number, number)
    update_checksum(data)


def free_sequence(base: BaseBlock, logs: Iterable[tuple[bytes, int]]) -> int:
    """A sequence number above those of a hive and of all its logs' entries.

    Were it not, entries of a stale log could one day be taken for those
    that follow a write.

    :param logs: the first sector and the length of each
    """
    highest = max(base.primary, base.secondary)
    for sector, length in logs:
        block = base_block(sector)
        if block is not None and block.valid:
            # The number of its first entry, and each takes a sector.
            highest = max(highest, block.primary + length // SECTOR)
    return highest + 1 if highest < _SEQUENCE_LIMIT else 1


def update_checksum(data: bytearray) -> None:
    """Make a base block's checksum right again."""
    _CHECKSUM.pack_into(data, SECTOR - 4, checksum(data))


def load(path: str, subject: str) -> bytearray:
    """The bytes of a hive's, or a log's, local copy.

    :param subject: the file's path in the guest, for messages
    :raises GuestError: if it is too large
    """
    size = os.path.getsize(path)
    if size > SIZE_LIMIT:
        raise too_large(subject, f'{size} bytes', f'{SIZE_LIMIT} bytes')
    with open(path, 'rb') as stream:
        # No more than that: room for all that is asked for is made first.
        return bytearray(stream.read(size))


def too_large(subject: str, found: str, limit: str) -> exceptions.GuestError:
    """A hive, or what is asked of it, that memory should not hold."""
    return exceptions.GuestError(
        'registry.too-large',
        'A registry hive of the guest is larger than any should be',
        where=subject,
        expected=f'at most {limit}',
        found=found,
        fix='look at that hive in the guest, and export the guest again',
    )


def checked(data: bytes | bytearray, subject: str) -> BaseBlock:
    """The base block of a hive that can be read.

    :raises GuestError: if it is none, or lacks a part of its bins
    """
    block = base_block(data)
    if block is None or data[:4] != _SIGNATURE:
        raise registry.damaged(subject, 'a file that is no hive')
    if not block.valid:
        raise registry.damaged(subject, 'a base block of wrong checksum')
    if block.kind != PRIMARY:
        raise registry.damaged(subject, f'a hive file of type {block.kind}')
    if block.major != 1 or block.minor < 3:
        raise registry.damaged(
            subject, f'a hive of version {block.major}.{block.minor}'
        )
    if not 0 < block.size <= len(data) - BASE or block.size % BASE:
        raise registry.damaged(
            subject,
            f'{block.size} bytes of hive bins in a file of {len(data)}',
        )
    return block
