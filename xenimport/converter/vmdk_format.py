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

"""The structures of a VMDK's sparse extent: header, markers, deflate.

After VMware's "Virtual Disk Format 5.0" (technical note, version 1.1 of
the format). All numbers are little-endian, and count sectors unless a
name says otherwise.
"""

from __future__ import annotations

import dataclasses
import struct
import typing

from xenimport import exceptions
from xenimport import model

SECTOR = 512
MAGIC = b'KDMV'
#: What ESX's sparse disks start with: another format.
COWD_MAGIC = b'COWD'
SESPARSE_MAGIC = b'\xbe\xba\xfe\xca\0\0\0\0'
#: In a header whose grain directory stands in the footer.
AT_END = (1 << 64) - 1
#: Entries of a grain table; the format allows no other number.
TABLE_ENTRIES = 512
#: Bytes of a grain table.
TABLE_SIZE = TABLE_ENTRIES * 4
#: Bytes; VMware's own limit is 62 TiB.
MAX_SIZE = 1 << 46
#: Sectors in a grain; the format's default is 128.
_GRAINS = (16, 2048)
MAX_DESCRIPTOR = 1 << 20

NEWLINE_TEST = 1 << 0
REDUNDANT = 1 << 1
ZEROED_GRAINS = 1 << 2
COMPRESSED = 1 << 16
MARKERS = 1 << 17
#: A reader may pass over flags that it does not know in the lower half
#: only.
_INCOMPATIBLE = 0xFFFF0000 & ~(COMPRESSED | MARKERS)
_DEFLATE = 1

END_OF_STREAM, GRAIN_TABLE, GRAIN_DIRECTORY, FOOTER = range(4)

_HEADER = struct.Struct('<4sIIQQQQIQQQB4sH433x')
_MARKER = struct.Struct('<QII')
#: Bytes before the data in a grain's marker.
GRAIN_MARKER = 12
_NEWLINES = b'\n \r\n'


@dataclasses.dataclass(frozen=True)
class Header:
    """The fields of a sparse extent's header that are used.

    :ivar size: bytes of the disk in this extent
    :ivar grain: bytes of a grain
    """

    version: int
    flags: int
    size: int
    grain: int
    descriptor_offset: int
    descriptor_size: int
    table_entries: int
    redundant_directory: int
    directory: int
    overhead: int
    unclean: bool
    newlines: bytes
    compression: int

    @property
    def compressed(self) -> bool:
        """Whether its grains are compressed, each with a marker."""
        return bool(self.flags & COMPRESSED)

    @property
    def most_compressed(self) -> int:
        """The most bytes that a compressed grain may have.

        Deflate adds five bytes to a block that it cannot compress; this
        leaves room for an encoder of very small blocks.
        """
        return self.grain + self.grain // 8 + 64

    @property
    def directory_entries(self) -> int:
        """Entries of the grain directory that are used."""
        return -(-self.size // (self.grain * TABLE_ENTRIES))


def parse_header(data: bytes) -> Header | None:
    """Decode 512 bytes; None if they are no header."""
    if len(data) < SECTOR or data[:4] != MAGIC:
        return None
    fields = _HEADER.unpack(data[:SECTOR])
    return Header(
        version=fields[1],
        flags=fields[2],
        size=fields[3] * SECTOR,
        grain=fields[4] * SECTOR,
        descriptor_offset=fields[5],
        descriptor_size=fields[6],
        table_entries=fields[7],
        redundant_directory=fields[8],
        directory=fields[9],
        overhead=fields[10],
        unclean=bool(fields[11]),
        newlines=fields[12],
        compression=fields[13],
    )


def error(
    error_id: str,
    message: str,
    where: str,
    *,
    expected: str | None = None,
    found: str | None = None,
    fix: str = 'copy the disk again, or export the guest again',
) -> exceptions.DiskImageError:
    """An error about a VMDK."""
    return exceptions.DiskImageError(
        error_id,
        message,
        where=where,
        expected=expected,
        found=found,
        fix=fix,
    )


def unsupported(where: str, found: str) -> exceptions.DiskImageError:
    """The error of a VMDK that is of another kind than those we read."""
    return error(
        'vmdk.kind',
        'The VMDK is of a kind that cannot be read',
        where,
        expected='a monolithic, stream-optimized, flat or split VMDK',
        found=found,
        fix='export the guest again as an OVA, or convert the disk with '
        'the tools of the hypervisor it comes from',
    )


def read_header(data: bytes, where: str) -> Header:
    """Decode the first sector of a sparse extent; not judged yet.

    :raises xenimport.exceptions.DiskImageError: if it is no header
    """
    if data.startswith(COWD_MAGIC):
        raise unsupported(where, 'a sparse disk of ESX ("COWD")')
    if data.startswith(SESPARSE_MAGIC):
        raise unsupported(where, 'a space-efficient sparse disk of ESX')
    header = parse_header(data)
    if header is None:
        raise error(
            'vmdk.no-header',
            'The file is no VMDK, or its start is damaged',
            where,
            expected='"KDMV", or "# Disk DescriptorFile"',
            found=data[:8].hex(' ') or 'an empty file',
            fix='copy the disk again; if it is the data of a flat disk, '
            'give the small .vmdk file that describes it as the disk',
        )
    return header


def check_header(header: Header, where: str) -> None:
    """Refuse what cannot be trusted or read.

    :raises xenimport.exceptions.DiskImageError: if it is such
    """
    if header.flags & NEWLINE_TEST and header.newlines != _NEWLINES:
        raise error(
            'vmdk.text-transfer',
            'The VMDK was changed by a transfer as text',
            where,
            expected=f'the bytes {_NEWLINES.hex(" ")} in the header',
            found=header.newlines.hex(' '),
            fix='copy the disk again, in binary mode',
        )
    _check_kind(header, where)
    grain, remainder = divmod(header.grain, SECTOR)
    if remainder or grain & (grain - 1) or not _within(grain, _GRAINS):
        raise error(
            'vmdk.header',
            'The grain size in the header of the VMDK is not possible',
            where,
            expected=f'a power of two, {_GRAINS[0]} to {_GRAINS[1]} sectors',
            found=f'{grain} sectors',
        )
    if header.table_entries != TABLE_ENTRIES:
        raise error(
            'vmdk.header',
            'The grain tables of the VMDK have an impossible size',
            where,
            expected=f'{TABLE_ENTRIES} entries',
            found=f'{header.table_entries}',
        )
    if not 0 < header.size <= MAX_SIZE:
        raise error(
            'vmdk.header',
            'The size in the header of the VMDK is not possible',
            where,
            expected=f'1 to {MAX_SIZE // SECTOR} sectors',
            found=f'{header.size // SECTOR} sectors',
        )


def check_descriptor(header: Header, where: str) -> None:
    """Refuse a file that is only a part of a disk.

    :raises xenimport.exceptions.DiskImageError: if it is
    """
    if not header.descriptor_offset:
        raise error(
            'vmdk.no-descriptor',
            'The file is one of several that a VMDK consists of',
            where,
            expected='a descriptor, as in the only file of a disk',
            found='none',
            fix='give the small .vmdk file that describes the disk, and '
            'with it all files that it names',
        )
    if not 0 < header.descriptor_size <= MAX_DESCRIPTOR // SECTOR:
        raise error(
            'vmdk.descriptor',
            'The size of the descriptor in the VMDK is not possible',
            where,
            expected=f'1 to {MAX_DESCRIPTOR // SECTOR} sectors',
            found=f'{header.descriptor_size}',
        )


def no_footer(where: str) -> exceptions.DiskImageError:
    """The error of a stream-optimized disk that has no end."""
    return error(
        'vmdk.no-footer',
        'The stream-optimized VMDK has no footer: it is cut short',
        where,
        expected='a footer and an end-of-stream marker at the end',
        found='other bytes',
    )


def check_footer(header: Header, footer: Header, where: str) -> None:
    """The footer repeats the header, but knows where the directory is.

    :raises xenimport.exceptions.DiskImageError: if it does not
    """
    if (
        (header.size or footer.size, header.grain, header.flags)
        != (footer.size, footer.grain, footer.flags)
    ) or footer.directory == AT_END:
        raise error(
            'vmdk.footer',
            'The footer of the VMDK is not that of its header',
            where,
            expected=f'{header.size} bytes in grains of {header.grain}, '
            f'flags {header.flags:#x}',
            found=f'{footer.size} bytes in grains of {footer.grain}, '
            f'flags {footer.flags:#x}, directory {footer.directory}',
        )


def unclean(name: str, where: str) -> model.Finding:
    """What it means that the disk was not closed."""
    return model.Finding(
        id='vmdk.unclean-shutdown',
        severity=model.Severity.WARNING,
        title='The VMDK was not closed when its writer ended',
        evidence=f'{where}: the header says so; all its tables are sound',
        fix='export the guest again after it was shut down, if you can',
        subject=name,
    )


def _check_kind(header: Header, where: str) -> None:
    if header.version not in (1, 2, 3):
        raise unsupported(where, f'version {header.version}')
    if header.flags & _INCOMPATIBLE:
        raise unsupported(where, f'flags {header.flags:#010x}')
    if bool(header.flags & COMPRESSED) != bool(header.flags & MARKERS):
        raise unsupported(
            where, f'flags {header.flags:#010x}: compression without markers'
        )
    if header.compressed and header.compression != _DEFLATE:
        raise unsupported(where, f'compression {header.compression}')


def _within(value: int, bounds: tuple[int, int]) -> bool:
    return bounds[0] <= value <= bounds[1]


class Marker(typing.NamedTuple):
    """What stands before grains and metadata in a stream.

    :ivar value: a grain's first sector on the disk; else the sectors of
        metadata that follow
    :ivar size: bytes of compressed data; 0 for metadata
    :ivar kind: of the metadata
    """

    value: int
    size: int
    kind: int


def parse_marker(data: bytes | memoryview, offset: int = 0) -> Marker:
    """Decode 16 bytes; the kind means nothing where ``size`` is not 0."""
    return Marker(*_MARKER.unpack_from(data, offset))
