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


"""The chunks that the disks of an XVA are cut into.

A disk is a directory in the tar, named for its VDI. In it are chunks with
a number for a name, each followed by a member with its checksum. The
rules are those of xapi's stream_vdi.ml:

* The number counts. A number that is left out stands for a chunk of
  zeros, as long as the disk's first chunk.
* A chunk without bytes is there to keep a connection alive. It takes a
  number and stands for nothing.
* The first and the last chunk are always there. The last one may be
  short; Xen Orchestra fills it up beyond the end of the disk.
"""

from __future__ import annotations

from collections.abc import Container
from collections.abc import Mapping
import hashlib
import re
import typing

import xxhash

from xenimport import exceptions
from xenimport.source import tarindex

#: Bytes of the longest chunk. Those of all known writers have 1 MiB.
MAX_CHUNK = 64 << 20
#: More bytes than a member with a checksum has.
MAX_TEXT = 128

_NAME = re.compile(r'(.+)/([0-9]{8,18})(\.xxhash|\.checksum)?', re.DOTALL)
ALGORITHMS = {'.xxhash': 'xxh64', '.checksum': 'sha1'}
_DIGITS = {'.xxhash': 16, '.checksum': 40}
AGAIN = 'copy the package again, or export the guest again'


class Disks(typing.NamedTuple):
    """What the description says of the disks.

    :ivar sizes: in bytes, by VDI, of those that are wanted
    :ivar known: every VDI of the description
    """

    sizes: Mapping[str, int]
    known: Container[str]


class Name(typing.NamedTuple):
    """A member's name, taken apart.

    :ivar suffix: of a checksum, empty for a chunk
    """

    disk: str
    number: int
    suffix: str


class Hash(typing.Protocol):
    """What hashlib's objects and xxhash's do."""

    def update(self, data: memoryview, /) -> None: ...

    def hexdigest(self) -> str: ...


def new_hash(algorithm: str) -> Hash:
    """What computes a checksum of the algorithm."""
    if algorithm == 'xxh64':
        return xxhash.xxh64()
    return hashlib.sha1(usedforsecurity=False)


def compare(where: str, stated: str, hashes: Mapping[str, Hash]) -> None:
    """Compare what a checksum states with what was computed.

    :param where: the chunk, for errors
    :param hashes: by algorithm; the stated one is among them
    :raises xenimport.exceptions.PackageError: if it differs
    """
    algorithm = stated.partition(':')[0]
    found = f'{algorithm}:{hashes[algorithm].hexdigest()}'
    if found != stated:
        raise exceptions.PackageError(
            'package.chunk-damaged',
            'A part of a disk is not what its checksum says',
            where=where,
            expected=stated,
            found=found,
            fix=AGAIN,
        )


class Layout:
    """Where the chunks of one disk lie on it.

    :param size: of the disk, bytes
    :param where: the disk in its package, for errors
    """

    def __init__(self, size: int, where: str) -> None:
        self._size = size
        self._where = where
        self._number = -1
        self._first = 0
        self._end = 0

    def place(self, number: int, length: int) -> int:
        """The offset on the disk of the next chunk.

        :raises xenimport.exceptions.PackageError: if it cannot be the
            next, or lies outside the disk
        """
        if number <= self._number:
            raise exceptions.PackageError(
                'package.xva-chunk-order',
                'The chunks of a disk are not in order',
                where=self._where,
                expected=f'a number above {self._number}',
                found=f'chunk {number}',
                fix=AGAIN,
            )
        if self._number < 0 and (number or not length):
            raise self._missing('first', f'chunk {number}, {length} bytes')
        if length > MAX_CHUNK:
            raise exceptions.PackageError(
                'package.chunk-too-long',
                'A chunk of a disk is too long',
                where=f'{self._where}, chunk {number}',
                expected=f'at most {MAX_CHUNK} bytes; most have 1 MiB',
                found=f'{length} bytes',
                fix=AGAIN,
            )
        offset = self._end + (number - self._number - 1) * self._first
        if offset >= self._size:
            raise exceptions.PackageError(
                'package.xva-chunk-outside',
                'A chunk lies beyond the end of its disk',
                where=f'{self._where}, chunk {number}',
                expected=f'an offset below {self._size}, where the disk ends',
                found=f'offset {offset}',
                fix=AGAIN,
            )
        self._number = number
        self._first = self._first or length
        self._end = offset + length
        return offset

    def finish(self) -> None:
        """Make sure that the chunks reach the end of the disk.

        :raises xenimport.exceptions.PackageError: if they do not
        """
        if self._end < self._size:
            found = f'data up to offset {self._end}'
            raise self._missing('last', found if self._end else 'no chunk')

    def _missing(self, which: str, found: str) -> exceptions.PackageError:
        return exceptions.PackageError(
            'package.xva-chunk-missing',
            f'The {which} chunk of a disk is missing',
            where=self._where,
            expected=f'chunks up to offset {self._size}, the first and the '
            'last among them',
            found=found,
            fix='export the guest again; the export was probably cut short',
        )


class Members:
    """Takes names apart, and sees that each disk's chunks stand together.

    :param where: the package, for errors
    """

    def __init__(self, where: str, disks: Disks) -> None:
        self._where = where
        self._disks = disks
        self._disk = ''
        #: Of the disk's checksums, empty until the first has come.
        self._suffix = ''
        self._seen: set[str] = set()

    def name(self, member: tarindex.Member) -> Name | None:
        """The name of a chunk or checksum, None for another member.

        :raises xenimport.exceptions.PackageError: if it is none, but
            lies among them, or belongs to no disk
        """
        match = _NAME.fullmatch(member.name)
        disk = match[1] if match else member.name.rpartition('/')[0]
        if match is None:
            if disk in self._disks.known:
                raise self._stray(member, 'a number of eight or more digits')
            return None
        if disk != self._disk:
            self._enter(disk)
        return Name(disk, int(match[2]), match[3] or '')

    def _enter(self, disk: str) -> None:
        if disk not in self._disks.known:
            raise exceptions.PackageError(
                'package.xva-unknown-disk',
                'The package holds a disk that is not described',
                where=f'{self._where}: {disk}',
                expected='a VDI of this name in ova.xml',
                fix='export the guest again',
            )
        if disk in self._seen:
            raise exceptions.PackageError(
                'package.xva-chunk-order',
                'The chunks of a disk do not stand together',
                where=f'{self._where}: {disk}',
                expected='all chunks of a disk before the next disk',
                found='a chunk after those of another disk',
                fix=AGAIN,
            )
        self._seen.add(disk)
        self._disk = disk
        self._suffix = ''

    def _stray(
        self, member: tarindex.Member, expected: str
    ) -> exceptions.PackageError:
        return exceptions.PackageError(
            'package.xva-member',
            'A member of the package does not belong where it stands',
            where=f'{self._where}: {member.name}',
            expected=expected,
            fix=AGAIN,
        )

    def checksum(
        self,
        member: tarindex.Member,
        name: Name,
        chunk: Name | None,
        text: bytes,
    ) -> str:
        """What a checksum states of the chunk before it.

        :returns: ``algorithm:hexadecimal``
        :raises xenimport.exceptions.PackageError: if it is not the
            chunk's, no checksum, or not of the kind of those before
        """
        if chunk is None or name[:2] != chunk[:2]:
            raise self._stray(member, 'a checksum right after its chunk')
        if self._suffix not in ('', name.suffix):
            raise self._stray(
                member, 'checksums of one kind for all chunks of a disk'
            )
        self._suffix = name.suffix
        digits = text.strip().lower()
        length = _DIGITS[name.suffix]
        if not re.fullmatch(rb'[0-9a-f]{%d}' % length, digits):
            raise self._stray(member, f'{length} hexadecimal digits')
        return f'{ALGORITHMS[name.suffix]}:{digits.decode()}'
