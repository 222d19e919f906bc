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

from xenimport.converter import base
from xenimport.converter import raw_content
from xenimport.converter import raw_stream
from xenimport.converter import region
from xenimport import model
from xenimport import stream as stream_room

_FOREIGN_SUFFIXES = ('.vhd', '.vhdx', '.vmdk', '.vdi', '.qcow2', '.gz')


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
        if disk.format is not None:
            return disk.format == RawImage.format
        if disk.region.decoder or not disk.region.seekable:
            return False
        if disk.region.name.lower().endswith(_FOREIGN_SUFFIXES):
            return False
        reader = region.RegionReader(disk.region)
        try:
            return _content(reader) is None
        finally:
            reader.release()

    def open(self, package: model.Package, disk: model.Disk) -> base.DiskImage:
        reader = region.RegionReader(disk.region)
        try:
            # Where the package says that it is a disk, what the guest has
            # on it may begin like anything.
            if disk.format is None:
                raw_content.refuse(_content(reader), reader.where)
            raw_content.check_size(reader.size, reader.where)
        except BaseException:
            reader.release()
            raise
        return RawImage(reader)

    def probe_stream(
        self, disk: model.Disk, stream: stream_room.Stream
    ) -> bool:
        if disk.format is not None:
            return disk.format == RawImage.format
        name = disk.region.name.lower().removesuffix('.gz')
        if name.endswith(_FOREIGN_SUFFIXES):
            return False
        head = stream.peek(raw_content.HEAD)
        return raw_content.container(head) is None

    def open_stream(
        self, disk: model.Disk, stream: stream_room.Stream
    ) -> base.ForwardImage:
        if disk.format is None:
            raw_content.refuse(
                raw_content.container(stream.peek(raw_content.HEAD)),
                stream.where,
            )
        if isinstance(stream, stream_room.Sparse):
            return raw_stream.SparseImage(stream)
        return raw_stream.PlainImage(stream, disk)


def _content(reader: region.RegionReader) -> str | None:
    """Which other format a region is of, None if it is a disk's."""
    return raw_content.container(
        reader.read(0, raw_content.HEAD),
        reader.read(
            max(0, reader.size - raw_content.SECTOR), raw_content.SECTOR
        ),
    )
