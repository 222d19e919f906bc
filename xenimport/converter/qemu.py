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

"""What the formats share that are read through qemu's drivers.

qemu reads what nobody else reads as well, but trusts its files: an image
may name others. So each format has its own converter, which proves that
the image stands alone and that all its tables point into the file,
before qemu sees it.
"""

from __future__ import annotations

import abc
from collections.abc import Callable
from collections.abc import Iterator
import dataclasses
import os
import typing

from oslo_utils.imageutils import format_inspector

from xenimport.converter import base
from xenimport.converter import qemu_server
from xenimport.converter import region
from xenimport import exceptions
from xenimport import model
from xenimport import stream as stream_room

SECTOR = 512
#: Bytes of the largest disk that is believed: what a VHDX can hold.
MAX_SIZE = 64 << 40
#: Bytes of the largest file that is looked at: a sparse one may be said
#: to have far more, and a note is made of every block.
MAX_FILE = 2 * MAX_SIZE
#: Bytes in which the header and the metadata of an image are: in a VHDX
#: they may come after the block table, of half of this at most.
_HEAD = 1 << 30

Extents = Iterator[tuple[int, int, bool]]


@dataclasses.dataclass(frozen=True)
class Layout:
    """What a converter has found out about an image that it trusts.

    :ivar virtual_size: bytes
    :ivar extents: what is allocated, where qemu's driver does not tell
    """

    virtual_size: int
    creator: str | None = None
    findings: tuple[model.Finding, ...] = ()
    extents: Callable[[], Extents] | None = None


class QemuImage(region.RegionImage):
    """An image that a qemu-nbd of its own reads."""

    def __init__(
        self,
        reader: region.RegionReader,
        server: qemu_server.Server,
        layout: Layout,
    ) -> None:
        super().__init__(reader)
        self.virtual_size = layout.virtual_size
        self.creator = layout.creator
        self.findings = layout.findings
        self.regions = (reader.region,)
        self.server = server
        self._extents = layout.extents or server.extents

    def extents(self) -> Extents:
        return self._extents()

    def pread_into(self, buffer: memoryview, offset: int) -> None:
        self.server.read_into(buffer, offset)

    def close(self) -> None:
        self.server.close()
        super().close()


class QemuConverter(base.Converter):
    """Base of the converters whose images qemu reads."""

    #: The converter's and qemu's name of the format.
    format: typing.ClassVar[str]
    #: What the format is called in messages.
    title: typing.ClassVar[str]
    #: The bytes that tell it, and where they stand.
    magic: typing.ClassVar[bytes]
    magic_offset: typing.ClassVar[int] = 0
    #: More options for qemu's driver.
    options_of_driver: typing.ClassVar[dict[str, object]] = {}

    @classmethod
    def unusable_because(cls) -> str | None:
        return qemu_server.unusable_because()

    def probe(self, package: model.Package, disk: model.Disk) -> bool:
        if disk.region.decoder or not disk.region.seekable:
            return False
        reader = region.RegionReader(disk.region)
        try:
            found = reader.read(self.magic_offset, len(self.magic))
        finally:
            reader.release()
        return found == self.magic

    def probe_stream(
        self, disk: model.Disk, stream: stream_room.Stream
    ) -> bool:
        head = stream.peek(self.magic_offset + len(self.magic))
        return head[self.magic_offset :] == self.magic

    def open_stream(
        self, disk: model.Disk, stream: stream_room.Stream
    ) -> base.ForwardImage:
        raise base.NotForward(
            f'the tables of a {self.title} image may lie anywhere in it, '
            'after the data that they place'
        )

    def open(self, package: model.Package, disk: model.Disk) -> base.DiskImage:
        reader = region.RegionReader(disk.region)
        try:
            file = _place(reader)
            layout = self._layout(reader)
            _inspect(reader, self.format, self.title)
            server = qemu_server.Server(
                self.format, file, self.options_of_driver, reader.where
            )
        except BaseException:
            reader.release()
            raise
        image = QemuImage(reader, server, layout)
        image.format = self.format
        if server.size != layout.virtual_size:
            image.close()
            raise exceptions.DiskImageError(
                'disk-image.size-differs',
                'qemu sees a disk of another size than the image states',
                where=reader.where,
                expected=f'{layout.virtual_size} bytes',
                found=f'{server.size} bytes',
                fix='convert the image to RAW with the program that wrote '
                'it, and import that',
            )
        return image

    @abc.abstractmethod
    def _layout(self, reader: region.RegionReader) -> Layout:
        """Prove the image safe and whole.

        :raises xenimport.exceptions.DiskImageError: if it is not
        """


def _place(reader: region.RegionReader) -> tuple[int, int, int | None]:
    """Where qemu shall read: descriptor, offset, and bytes if bounded.

    :raises xenimport.exceptions.DiskImageError: if the bytes are not one
        run of one file
    """
    pieces = reader.region.pieces
    piece = pieces[0] if len(pieces) == 1 else None
    if (
        piece is None
        or piece.checksum is not None
        or (piece.region_offset, piece.length) != (0, reader.size)
    ):
        raise exceptions.DiskImageError(
            'disk-image.scattered',
            'The image lies in several parts, and qemu reads one',
            where=reader.where,
            expected='an image that is one run of bytes in one file',
            found=f'{len(pieces)} parts',
            fix='join the parts into one file, in order, and import that',
        )
    # qemu counts in sectors: an image that ends within one gets the rest
    # of it, which in a tar is padding.
    size = -(-piece.length // SECTOR) * SECTOR
    if piece.offset + size > os.fstat(reader.descriptor).st_size:
        return reader.descriptor, piece.offset, None
    return reader.descriptor, piece.offset, size


def _inspect(reader: region.RegionReader, name: str, title: str) -> None:
    """Have the image judged as Glance, Nova and Cinder would.

    :raises xenimport.exceptions.DiskImageError: if they would refuse it
    """
    inspector = format_inspector.ALL_FORMATS[name]()
    offset = 0
    failure: str | None = None
    try:
        while not inspector.complete and offset < min(_HEAD, reader.size):
            chunk = reader.read(offset, 1 << 20)
            inspector.eat_chunk(chunk)
            offset += len(chunk)
        inspector.finish()
        inspector.safety_check()
    except format_inspector.SafetyCheckFailed as error:
        failure = '; '.join(
            f'check "{check}" fails: {reason}'
            for check, reason in sorted(error.failures.items())
        )
    except exceptions.XenImportError:
        raise
    except Exception as error:  # hostile input meets a parser
        failure = f'{type(error).__name__}: {error}'
    if failure is not None:
        raise exceptions.DiskImageError(
            'disk-image.unsafe',
            f'The {title} image is not safe to open',
            where=reader.where,
            expected='an image that OpenStack would accept',
            found=failure[:300],
            fix='convert it to RAW where you trust it, and import that',
        )


def check_size(
    error_id: str, title: str, size: int, reader: region.RegionReader
) -> None:
    """Judge the size of the disk that an image states.

    :raises xenimport.exceptions.DiskImageError: if it is not possible
    """
    if not 0 < size <= MAX_SIZE or size % SECTOR:
        raise exceptions.DiskImageError(
            error_id,
            f'The size of the disk in the {title} image is not possible',
            where=reader.where,
            expected='a multiple of 512 bytes, above zero and at most '
            f'{MAX_SIZE}',
            found=f'{size} bytes',
            fix='export the guest again; do not trust this package',
        )


def truncated(
    title: str, end: int, reader: region.RegionReader
) -> exceptions.DiskImageError:
    """The error of an image whose tables point past its end."""
    return exceptions.DiskImageError(
        'disk-image.truncated',
        f'The {title} image ends before its data do',
        where=reader.where,
        expected=f'at least {end} bytes',
        found=f'{reader.size} bytes',
        fix='copy the disk again, or export the guest again',
    )
