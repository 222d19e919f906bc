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

"""VDI: dynamic and fixed images of VirtualBox.

After the header in VirtualBox' sources (VDICore.h), as qemu reads it. A
differencing image names its parent by a UUID; it is refused.
"""

from __future__ import annotations

import array
import dataclasses
import struct
import sys

from xenimport.converter import qemu
from xenimport.converter import region
from xenimport import exceptions

_MAGIC_OFFSET = 64
_MAGIC = b'\x7f\x10\xda\xbe'
#: From offset 64: signature, version, header's size, kind, flags, comment,
#: offsets of map and data, geometry, sector size, (unused,) size of the
#: disk and of a block, extra bytes a block, blocks, blocks with data, and
#: the UUIDs of the image, its last snapshot, its link and its parent.
_HEADER = struct.Struct('<IIIII256sIIIIIIIQIIII16s16s16s16s')
_VERSION = 1, 1
_DYNAMIC, _FIXED, _UNDO, _DIFFERENCING = 1, 2, 3, 4
_KINDS = {_UNDO: 'an undo image', _DIFFERENCING: 'a differencing image'}
#: The one size of a block that is written, and that qemu reads.
_BLOCK = 1 << 20
_NO_UUID = bytes(16)
#: From here on a map's entry is no block: discarded, or never written.
_NO_BLOCK = 0xFFFFFFFE
#: Bytes of the map that are read at once.
_STEP = 1 << 20
_UNUSED = b'\xff' * _STEP


@dataclasses.dataclass(frozen=True)
class _Header:
    """The fields of a header that are used; sizes in bytes."""

    version: tuple[int, int]
    kind: int
    map_offset: int
    data_offset: int
    sector: int
    size: int
    block: int
    extra: int
    blocks: int
    linked: bool


class VdiConverter(qemu.QemuConverter):
    """Opens VDI images that stand alone."""

    handles = 'VDI images, dynamic and fixed'
    format = 'vdi'
    title = 'VDI'
    magic = _MAGIC
    magic_offset = _MAGIC_OFFSET

    def _layout(self, reader: region.RegionReader) -> qemu.Layout:
        header = _header(reader)
        _check_kind(header, reader)
        qemu.check_size('vdi.size', 'VDI', header.size, reader)
        _check_header(header, reader)
        _check_map(header, reader)
        return qemu.Layout(header.size)


def _header(reader: region.RegionReader) -> _Header:
    data = reader.read(_MAGIC_OFFSET, _HEADER.size)
    if len(data) < _HEADER.size:
        raise qemu.truncated('VDI', _MAGIC_OFFSET + _HEADER.size, reader)
    fields = _HEADER.unpack(data)
    return _Header(
        version=(fields[1] >> 16, fields[1] & 0xFFFF),
        kind=fields[3],
        map_offset=fields[6],
        data_offset=fields[7],
        sector=fields[11],
        size=fields[13],
        block=fields[14],
        extra=fields[15],
        blocks=fields[16],
        linked=fields[20:22] != (_NO_UUID, _NO_UUID),
    )


def _check_kind(header: _Header, reader: region.RegionReader) -> None:
    if header.version != _VERSION:
        raise exceptions.DiskImageError(
            'vdi.version',
            'The image is of a version of VDI that is not read',
            where=reader.where,
            expected='version 1.1',
            found='version {}.{}'.format(*header.version),
            fix='open it once in a VirtualBox of today, or convert it to '
            'RAW with "VBoxManage clonemedium"',
        )
    if header.linked or header.kind in _KINDS:
        raise exceptions.DiskImageError(
            'vdi.parent',
            'The image holds only what differs from another image',
            where=reader.where,
            expected='an image that is complete in itself',
            found=_KINDS.get(header.kind, "another image's UUID"),
            fix='clone the disk with "VBoxManage clonemedium", which joins '
            'it with its parents, and import the clone',
        )
    if header.kind not in (_DYNAMIC, _FIXED):
        raise _damaged(
            reader, 'a dynamic or fixed image', f'kind {header.kind}'
        )


def _check_header(header: _Header, reader: region.RegionReader) -> None:
    for name, found, expected in (
        ('bytes a sector', header.sector, qemu.SECTOR),
        ('bytes a block', header.block, _BLOCK),
        ('extra bytes a block', header.extra, 0),
    ):
        if found != expected:
            raise _damaged(reader, f'{expected} {name}', str(found))
    needed = -(-header.size // _BLOCK)
    if header.blocks < needed:
        raise _damaged(
            reader, f'at least {needed} blocks', f'{header.blocks} blocks'
        )
    for name, offset in (
        ('map', header.map_offset),
        ('data', header.data_offset),
    ):
        if not offset or offset % qemu.SECTOR:
            raise _damaged(
                reader,
                f'the {name} at the start of a sector',
                f'offset {offset}',
            )
    end = header.map_offset + header.blocks * 4
    if end > reader.size:
        raise qemu.truncated('VDI', end, reader)


def _check_map(header: _Header, reader: region.RegionReader) -> None:
    """Look whether the blocks lie in the file, each once."""
    size = min(reader.size, qemu.MAX_FILE)
    available = max(0, size - header.data_offset)
    seen = bytearray(available // _BLOCK + 1)
    length = -(-header.size // _BLOCK) * 4
    last = length // 4 - 1
    for start in range(0, length, _STEP):
        data = reader.read(
            header.map_offset + start, min(_STEP, length - start)
        )
        if data == _UNUSED[: len(data)]:
            continue
        entries = array.array('I', data)
        if sys.byteorder == 'big':
            entries.byteswap()
        for index, entry in enumerate(entries, start // 4):
            if entry >= _NO_BLOCK:
                continue
            # What a disk's last block holds beyond it need not be there.
            block = _BLOCK
            if index == last:
                block = header.size - index * _BLOCK
            end = entry * _BLOCK + block
            if end > available:
                raise qemu.truncated('VDI', header.data_offset + end, reader)
            if seen[entry]:
                raise _damaged(
                    reader, 'each block in one place', f'block {entry} in two'
                )
            seen[entry] = 1


def _damaged(
    reader: region.RegionReader, expected: str, found: str
) -> exceptions.DiskImageError:
    return exceptions.DiskImageError(
        'vdi.header',
        'The VDI image is damaged, or of a kind that nobody writes',
        where=reader.where,
        expected=expected,
        found=found,
        fix='copy the disk again, or convert it to RAW with "VBoxManage '
        'clonemedium" and import that',
    )
