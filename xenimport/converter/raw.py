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

"""RAW disks: the bytes of the region are the bytes of the disk."""

from __future__ import annotations

from collections.abc import Iterator

from oslo_utils.imageutils import format_inspector

from xenimport.converter import base
from xenimport.converter import region
from xenimport import exceptions
from xenimport import model

_SECTOR = 512
#: No signature of a container lies further on, but for a footer's.
_HEAD = 512 * 1024
_STEP = 64 * 1024
#: Formats of the content that a plain disk may well have.
_PLAIN = frozenset(('raw', 'gpt', 'iso', 'luks'))
_VHD_COOKIES = (b'conectix', b'v_poison')
_FOREIGN_SUFFIXES = ('.vhd', '.vhdx', '.vmdk', '.vdi', '.qcow2', '.gz')
_STREAMS = (b'\x1f\x8b', b'\x28\xb5\x2f\xfd', b'BZh', b'\xfd7zXZ\0')


class RawImage(region.RegionImage):
    """A RAW disk; holes of the file are known as such."""

    format = 'raw'

    def __init__(self, reader: region.RegionReader) -> None:
        super().__init__(reader)
        self.virtual_size = reader.size

    def extents(self) -> Iterator[tuple[int, int, bool]]:
        return self.reader.extents(self.virtual_size)

    def pread_into(self, buffer: memoryview, offset: int) -> None:
        self.reader.read_into(buffer, offset)


class RawConverter(base.Converter):
    """Whatever is no container of another format."""

    handles = 'RAW disks, holes kept'

    def probe(self, package: model.Package, disk: model.Disk) -> bool:
        if disk.region.decoder or not disk.region.seekable:
            return False
        if disk.region.name.lower().endswith(_FOREIGN_SUFFIXES):
            return False
        reader = region.RegionReader(disk.region)
        try:
            return container(reader) is None
        finally:
            reader.release()

    def open(self, package: model.Package, disk: model.Disk) -> base.DiskImage:
        reader = region.RegionReader(disk.region)
        try:
            _validate(reader)
        except BaseException:
            reader.release()
            raise
        return RawImage(reader)


def _validate(reader: region.RegionReader) -> None:
    found = container(reader)
    if found is not None:
        raise exceptions.DiskImageError(
            'raw.is-container',
            'The disk is not RAW but an image of another format',
            where=reader.where,
            expected='the bytes of a disk',
            found=found,
            fix='enable the converter of this format, or convert the disk '
            'to RAW or VHD first',
        )
    if reader.size == 0 or reader.size % _SECTOR:
        raise exceptions.DiskImageError(
            'raw.size',
            'The RAW disk does not end at the end of a sector',
            where=reader.where,
            expected='a multiple of 512 bytes, and not zero',
            found=f'{reader.size} bytes',
            fix='copy the disk again; it was probably cut short',
        )


def container(reader: region.RegionReader) -> str | None:
    """Which other format the bytes are of, None if they are a disk's."""
    head = reader.read(0, _STEP)
    tail = reader.read(max(0, reader.size - _SECTOR), _SECTOR)
    for cookie in _VHD_COOKIES:
        # A footer of 511 bytes is what early Virtual PC wrote.
        if cookie in (head[:8], tail[:8], tail[1:9]):
            return 'vhd'
    if head.startswith(_STREAMS):
        return 'a compressed stream'
    inspectors = {
        name: kind()
        for name, kind in format_inspector.ALL_FORMATS.items()
        if name not in _PLAIN
    }
    for offset in range(0, min(reader.size, _HEAD), _STEP):
        chunk = reader.read(offset, _STEP)
        for name, inspector in list(inspectors.items()):
            if not _eats(inspector, chunk):
                del inspectors[name]
            elif inspector.format_match:
                return name
    return None


def _eats(inspector: format_inspector.FileInspector, chunk: bytes) -> bool:
    """Whether the bytes may still be of the inspector's format."""
    try:
        inspector.eat_chunk(chunk)
    except Exception:  # hostile input; it is not of that format then
        # A damaged image of a known format must not pass for RAW.
        return bool(inspector.format_match)
    return True
