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

"""The text that describes a VMDK: its kind, its parent, its extents."""

from __future__ import annotations

import dataclasses

from xenimport.converter import vmdk_format

#: How such a text starts, in lower case.
SIGNATURE = b'# disk descriptorfile'
MAX_EXTENTS = 4096
_MAX_LINES = 16384
_NO_PARENT = 'ffffffff'
_ACCESS = ('RW', 'RDONLY')
#: Kinds that are read, in lower case.
_ONE_FILE = frozenset(('monolithicsparse', 'streamoptimized'))
_SEVERAL_FILES = frozenset(
    ('monolithicflat', 'twogbmaxextentflat', 'twogbmaxextentsparse', 'vmfs')
)


@dataclasses.dataclass(frozen=True)
class Extent:
    """A run of the disk and the file that holds it.

    :ivar size: bytes of the disk
    :ivar kind: ``FLAT``, ``SPARSE``, ``ZERO`` or ``VMFS``
    :ivar name: the file, empty for ``ZERO``
    :ivar offset: where the run starts in a flat file, bytes
    """

    size: int
    kind: str
    name: str = ''
    offset: int = 0


@dataclasses.dataclass(frozen=True)
class Descriptor:
    """What a descriptor says.

    :ivar kind: the create type, in lower case
    """

    kind: str
    extents: tuple[Extent, ...]


def parse(data: bytes, where: str, *, embedded: bool) -> Descriptor:
    """Read and validate a descriptor.

    :param embedded: whether it stands inside of the disk's only file
    :raises xenimport.exceptions.DiskImageError: if it is damaged, or of
        a disk that cannot be read
    """
    lines = _lines(data, where)
    fields: dict[str, str] = {}
    extents: list[Extent] = []
    for line in lines:
        if line.split(None, 1)[0] in (*_ACCESS, 'NOACCESS'):
            extents.append(_extent(line, where))
            if len(extents) > MAX_EXTENTS:
                raise _invalid(where, f'at most {MAX_EXTENTS} extents', 'more')
            continue
        key, _, value = line.partition('=')
        fields.setdefault(key.strip().lower(), value.strip().strip('"'))
    kind = fields.get('createtype', '').lower()
    _check_kind(kind, where, embedded)
    _check_parent(fields, where)
    if not extents:
        raise _invalid(where, 'at least one extent', 'none')
    if embedded and (len(extents) > 1 or extents[0].kind != 'SPARSE'):
        raise _invalid(
            where,
            'one sparse extent: the file itself',
            f'{len(extents)} of kind {extents[0].kind}',
        )
    return Descriptor(kind, tuple(extents))


def _lines(data: bytes, where: str) -> list[str]:
    """The lines that say something."""
    # Inside of a disk the text is padded with NUL bytes.
    data = data.split(b'\0', 1)[0]
    if not data[: len(SIGNATURE)].lower() == SIGNATURE:
        raise _invalid(
            where,
            'the words "# Disk DescriptorFile"',
            repr(data[:32].decode('ascii', 'backslashreplace')),
        )
    if data.count(b'\n') > _MAX_LINES:
        raise _invalid(where, f'at most {_MAX_LINES} lines', 'more')
    try:
        text = data.decode('utf-8')
    except UnicodeDecodeError:
        text = data.decode('latin-1')
    lines = (line.strip() for line in text.split('\n'))
    return [line for line in lines if line and not line.startswith('#')]


def _extent(line: str, where: str) -> Extent:
    """A line ``ACCESS SECTORS KIND "FILE" OFFSET``."""
    head, quote, rest = line.partition('"')
    name, closing, tail = rest.partition('"')
    words = head.split()
    if len(words) != 3 or len(closing) != len(quote):
        raise _invalid(where, 'an extent: access, size, kind, file', line)
    access, sectors, kind = words
    if access not in _ACCESS:
        raise vmdk_format.unsupported(where, f'an extent of access {access}')
    kind = kind.upper()
    if kind not in ('FLAT', 'SPARSE', 'ZERO', 'VMFS'):
        raise vmdk_format.unsupported(where, f'an extent of kind {kind[:20]}')
    if (kind == 'ZERO') == bool(name):
        raise _invalid(where, 'a file for all but zeros', line)
    size = _bytes(sectors, line, where)
    if not size:
        raise _invalid(where, 'an extent that is not empty', line)
    offset = _bytes((tail.split() or ['0'])[0], line, where)
    return Extent(size, kind, name, offset)


def _bytes(sectors: str, line: str, where: str) -> int:
    """A number of sectors, in bytes."""
    if sectors.isascii() and sectors.isdigit() and len(sectors) < 20:
        size = int(sectors) * vmdk_format.SECTOR
        if size <= vmdk_format.MAX_SIZE:
            return size
    raise _invalid(where, 'a possible number of sectors', line)


def _check_kind(kind: str, where: str, embedded: bool) -> None:
    known = _ONE_FILE if embedded else _ONE_FILE | _SEVERAL_FILES
    if kind not in known:
        raise vmdk_format.unsupported(
            where, f'createType "{kind[:40]}"' if kind else 'no createType'
        )


def _check_parent(fields: dict[str, str], where: str) -> None:
    parent = fields.get('parentcid', _NO_PARENT).lower()
    hint = fields.get('parentfilenamehint')
    if parent != _NO_PARENT or hint:
        raise vmdk_format.error(
            'vmdk.delta',
            'The VMDK holds only the differences to a parent disk',
            where,
            expected=f'parentCID={_NO_PARENT}',
            found=f'parentCID={parent[:16]}'
            + (f', parent "{hint[:80]}"' if hint else ''),
            fix='export the guest itself rather than a snapshot, or '
            'delete its snapshots and export it again',
        )


def _invalid(
    where: str, expected: str, found: str
) -> vmdk_format.exceptions.DiskImageError:
    return vmdk_format.error(
        'vmdk.descriptor',
        'The descriptor of the VMDK cannot be read',
        where,
        expected=expected,
        found=found[:120],
    )
