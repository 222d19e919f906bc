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

"""The footer and the dynamic header of a VHD.

After Microsoft's "Virtual Hard Disk Image Format Specification" 1.0, and
where it is silent or not followed, after blktap (libvhd), whose files are
what Xen writes. The size of the disk is always the footer's current size,
never its geometry: xapi's files lose up to a mebibyte by geometry.
"""

from __future__ import annotations

import dataclasses
import struct
import typing
import uuid

from xenimport import exceptions
from xenimport import model

if typing.TYPE_CHECKING:
    from xenimport.converter import region

SECTOR = 512
COOKIES = (b'conectix', b'v_poison')
_POISON = b'v_poison'
HEADER_COOKIE = b'cxsparse'
_BATMAP_COOKIE = b'tdbatmap'
#: Where the batmap's header says whether there is a key's hash.
_KEY_HASH = 29
FIXED, DYNAMIC, DIFFERENCING = 2, 3, 4
HEADER_SIZE = 1024
NO_UUID = bytes(16)
_LARGEST_GEOMETRY = 65535 * 16 * 255 * SECTOR
_SMALLEST_BLOCK = 4096
_LARGEST_BLOCK = 256 * 1024 * 1024
#: blktap's very first version, whose bitmaps have the lowest bit first.
_FIRST_VERSION = 0x00000001
#: The versions that set "hidden" without a new checksum.
_HIDDEN_VERSIONS = (_FIRST_VERSION, 0x00010001)

_FOOTER = struct.Struct('>8sIIQI4sI4sQQHBBII16sBB426x')
_HEADER = struct.Struct('>8sQQIIII16sII512s192s256x')
_LOCATOR = struct.Struct('>4sIIIQ')


@dataclasses.dataclass(frozen=True)
class Footer:
    """The fields of a footer that are used; sizes in bytes."""

    data_offset: int
    creator: bytes
    creator_version: int
    current_size: int
    geometry: tuple[int, int, int]
    kind: int
    checksum: int
    uuid: bytes
    hidden: int
    poisoned: bool

    @property
    def geometry_size(self) -> int:
        """The size that cylinders, heads and sectors multiply to."""
        cylinders, heads, sectors = self.geometry
        return cylinders * heads * sectors * SECTOR

    @property
    def creator_name(self) -> str:
        """What wrote the VHD, as text."""
        return self.creator.rstrip(b'\0 ').decode('ascii', 'backslashreplace')

    @property
    def by_blktap(self) -> bool:
        """Whether blktap wrote it, and so its extensions may be there."""
        return self.creator.startswith(b'tap')

    @property
    def lowest_bit_first(self) -> bool:
        """Whether the bitmaps' bits stand in the other order."""
        return self.by_blktap and self.creator_version == _FIRST_VERSION


@dataclasses.dataclass(frozen=True)
class Locator:
    """Where a name of the parent stands; bytes."""

    code: bytes
    offset: int
    length: int


@dataclasses.dataclass(frozen=True)
class Header:
    """The fields of a dynamic header that are used; sizes in bytes."""

    table_offset: int
    entries: int
    block_size: int
    parent_uuid: bytes
    parent_name: bytes
    locators: tuple[Locator, ...]

    @property
    def batmap_offset(self) -> int:
        """Where blktap puts the header of its batmap."""
        return self.table_offset + -(-self.entries * 4 // SECTOR) * SECTOR


def checksum(data: bytes, offset: int) -> int:
    """The one's complement of the sum, the field itself left out."""
    total = sum(data) - sum(data[offset : offset + 4])
    return ~total & 0xFFFFFFFF


def uuid_text(data: bytes) -> str:
    """A uuid as people write it."""
    return str(uuid.UUID(bytes=data))


def parse_footer(data: bytes) -> Footer | None:
    """Decode 512 bytes; None if they are no footer.

    The checksum is judged by :func:`footer_is_intact`.
    """
    if len(data) < SECTOR:
        return None
    fields = _FOOTER.unpack(data[:SECTOR])
    cookie = fields[0]
    if cookie not in COOKIES:
        return None
    return Footer(
        data_offset=fields[3],
        creator=fields[5],
        creator_version=fields[6],
        current_size=fields[9],
        geometry=(fields[10], fields[11], fields[12]),
        kind=fields[13],
        checksum=fields[14],
        uuid=fields[15],
        hidden=fields[17],
        poisoned=cookie == _POISON,
    )


def footer_is_intact(data: bytes, footer: Footer) -> bool:
    """Whether the checksum is right.

    blktap's first versions set "hidden" without a new checksum.
    """
    if checksum(data, 64) == footer.checksum:
        return True
    if footer.by_blktap and footer.creator_version in _HIDDEN_VERSIONS:
        plain = data[:85] + b'\0' + data[86:]
        return checksum(plain, 64) == footer.checksum
    return False


@dataclasses.dataclass(frozen=True)
class Located:
    """A footer and where it stood.

    :ivar data_end: where the data ends in the region
    """

    footer: Footer
    data_end: int
    at_start: bool


def locate(reader: region.RegionReader) -> Located:
    """The footer: at the end, the short one, or the copy at the start.

    :raises xenimport.exceptions.DiskImageError: if there is none intact
    """
    size = reader.size
    candidates = [(size - SECTOR, size - SECTOR, SECTOR)]
    if size > 511 and (size - 511) % SECTOR == 0:
        # Early Virtual PC left the last byte, a zero, out.
        candidates.append((size - 511, size - 511, 511))
    candidates.append((0, size, SECTOR))
    damaged = None
    for offset, data_end, length in candidates:
        if offset < 0:
            continue
        data = reader.read(offset, length).ljust(SECTOR, b'\0')
        footer = parse_footer(data)
        if footer is None:
            continue
        # A fixed disk has no copy at the start: a "copy" that says so
        # would be the disk's own bytes.
        if data_end == size and footer.kind == FIXED:
            continue
        if footer_is_intact(data, footer):
            return Located(footer, data_end, data_end == size)
        damaged = damaged or (offset, footer.checksum, checksum(data, 64))
    if damaged is not None:
        raise damaged_footer(reader.where, *damaged)
    raise no_footer(reader.where, size, reader.read(0, 8))


def damaged_footer(
    where: str, offset: int, stated: int, computed: int
) -> exceptions.DiskImageError:
    """The error of a footer whose checksum is wrong."""
    return error(
        f'{where}, offset {offset}',
        'vhd.checksum',
        'The footer of the VHD is damaged',
        expected=f'checksum {computed:#010x}',
        found=f'{stated:#010x}',
    )


def no_footer(where: str, size: int, head: bytes) -> exceptions.DiskImageError:
    """The error of a file without a footer."""
    return error(
        where,
        'vhd.no-footer',
        'The VHD has no footer: it is cut short, or it is no VHD',
        expected='"conectix" in the last 512 bytes or in the first',
        found=f'{size} bytes that start with {head.hex(" ") or "nothing"}',
    )


def check_footer(footer: Footer, where: str) -> None:
    """Make sure that the disk is of a kind and size that can be read.

    :raises xenimport.exceptions.DiskImageError: if it is not
    """
    if footer.poisoned:
        raise error(
            where,
            'vhd.poisoned',
            'The VHD was disabled by the storage manager',
            found='the cookie "v_poison"',
            fix='repair the storage repository, then export again',
        )
    if footer.kind not in (FIXED, DYNAMIC, DIFFERENCING):
        raise error(
            where,
            'vhd.kind',
            'The VHD is of an unknown kind',
            expected='a fixed (2), dynamic (3) or differencing (4) VHD',
            found=f'kind {footer.kind}',
        )
    if footer.current_size == 0 or footer.current_size % SECTOR:
        raise error(
            where,
            'vhd.size',
            'The size in the footer of the VHD is not possible',
            expected='a multiple of 512 bytes, and not zero',
            found=f'{footer.current_size} bytes',
        )


def parse_header(data: bytes, offset: int, where: str) -> Header:
    """Decode a dynamic header.

    :param offset: where it stands, for an error
    :raises xenimport.exceptions.DiskImageError: if it is missing or
        damaged, or its block size is not possible
    """
    if len(data) < HEADER_SIZE or data[:8] != HEADER_COOKIE:
        raise error(
            where,
            'vhd.header',
            'The dynamic header of the VHD is missing',
            expected=f'"cxsparse" at offset {offset}',
            found=data[:8].hex(' ') or 'the end of the file',
        )
    fields = _HEADER.unpack(data)
    if fields[6] != checksum(data, 36):
        raise error(
            where,
            'vhd.checksum',
            'The dynamic header of the VHD is damaged',
            expected=f'checksum {checksum(data, 36):#010x}',
            found=f'{fields[6]:#010x}',
        )
    block = fields[5]
    if block & (block - 1) or not _SMALLEST_BLOCK <= block <= _LARGEST_BLOCK:
        raise error(
            where,
            'vhd.block-size',
            'The block size of the VHD is not possible',
            expected=f'a power of two from {_SMALLEST_BLOCK} to '
            f'{_LARGEST_BLOCK}',
            found=f'{block}',
        )
    return Header(
        table_offset=fields[2],
        entries=fields[4],
        block_size=block,
        parent_uuid=fields[7],
        parent_name=fields[10],
        locators=tuple(
            Locator(code, place, length)
            for code, _space, length, _reserved, place in _LOCATOR.iter_unpack(
                fields[11]
            )
        ),
    )


def check_not_encrypted(batmap: bytes, footer: Footer, where: str) -> None:
    """Make sure that blktap's batmap header names no key.

    :param batmap: the bytes at :attr:`Header.batmap_offset`
    :raises xenimport.exceptions.DiskImageError: if it does
    """
    if (
        footer.by_blktap
        and batmap[:8] == _BATMAP_COOKIE
        and batmap[_KEY_HASH : _KEY_HASH + 1] == b'\x01'
    ):
        raise error(
            where,
            'vhd.encrypted',
            'The VHD is encrypted',
            found="a key's hash in the header of its batmap",
            fix='export the guest decrypted',
        )


def geometry_findings(
    footer: Footer, where: str, name: str
) -> tuple[model.Finding, ...]:
    """A note where the geometry gives another size."""
    # The largest geometry says nothing: nobody goes by it.
    if footer.geometry_size in (footer.current_size, _LARGEST_GEOMETRY):
        return ()
    return (
        model.Finding(
            id='vhd.geometry-differs',
            severity=model.Severity.NOTE,
            title='The geometry in the VHD gives another size',
            evidence=f'{where}: cylinders, heads and '
            f'sectors {footer.geometry} make {footer.geometry_size} '
            f'bytes, the disk has {footer.current_size}',
            fix='nothing: the current size is used; other tools that '
            'go by geometry cut this disk or refuse it',
            subject=name,
        ),
    )


def copy_finding(where: str, name: str) -> model.Finding:
    """The warning that only the footer's copy at the start is intact."""
    return model.Finding(
        id='vhd.footer-copy',
        severity=model.Severity.WARNING,
        title='The VHD lacks its footer; the copy was used',
        evidence=f'{where}: no intact footer in the '
        'last 512 bytes, but all blocks are there',
        fix='export the guest again if the copy of the package '
        'was interrupted',
        subject=name,
    )


def error(
    where: str,
    error_id: str,
    message: str,
    *,
    expected: str | None = None,
    found: str | None = None,
    fix: str = 'copy the disk again, or export the guest again',
) -> exceptions.DiskImageError:
    """An error about one VHD."""
    return exceptions.DiskImageError(
        error_id,
        message,
        where=where,
        expected=expected,
        found=found,
        fix=fix,
    )
