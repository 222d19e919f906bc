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

"""The contracts of a converter and of the disk image it opens."""

from __future__ import annotations

import abc
from collections.abc import Iterator
import typing

from xenimport import driver
from xenimport import model
from xenimport import stream as stream_room

if typing.TYPE_CHECKING:
    from types import TracebackType


#: Bytes of the longest run of a :class:`ForwardImage`.
MAX_RUN = 2 * 1024 * 1024


class DiskImage(abc.ABC):
    """A disk in its container format, as a read-only sparse device.

    Reads are safe from several threads at once.

    :ivar format: the converter's name, for example ``vhd``
    :ivar virtual_size: bytes
    :ivar creator: what wrote the image, if the format says so
    :ivar findings: what is odd about the image
    :ivar regions: every region of the package that it reads, its own
        first; parents and extents after it
    """

    format: str
    virtual_size: int
    creator: str | None = None
    findings: tuple[model.Finding, ...] = ()
    regions: tuple[model.Region, ...] = ()

    @abc.abstractmethod
    def extents(self) -> Iterator[tuple[int, int, bool]]:
        """Yield (offset, length, allocated), in order, without gaps.

        Offsets and lengths are multiples of 512 bytes but for the last
        length. What is not allocated reads as zeros.
        """

    @abc.abstractmethod
    def pread_into(self, buffer: memoryview, offset: int) -> None:
        """Fill ``buffer`` with the bytes at ``offset`` of the disk.

        The range lies within ``virtual_size``.

        :raises xenimport.exceptions.DiskImageError: if the package has
            changed or ends before its data
        """

    def pread(self, offset: int, length: int) -> bytes:
        """The bytes at ``offset``, short only at the end of the disk."""
        length = max(0, min(length, self.virtual_size - offset))
        buffer = bytearray(length)
        if length:
            self.pread_into(memoryview(buffer), offset)
        return bytes(buffer)

    def check_unchanged(self) -> None:  # noqa: B027 - optional
        """Make sure that the package is as it was when it was opened.

        To be called after the last read that counts.

        :raises xenimport.exceptions.DiskImageError: if it is not
        """

    @abc.abstractmethod
    def close(self) -> None:
        """Release the files. A second call does nothing."""

    def __enter__(self) -> DiskImage:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


class NotForward(Exception):
    """Why a disk cannot be read in one forward pass, for a person."""


class ForwardImage(abc.ABC):
    """A disk that is read once, in the order of the package.

    :ivar format: the converter's name, for example ``vhd``
    :ivar virtual_size: bytes; None until :meth:`runs` has ended where
        only the end of the stream tells
    :ivar ascending: whether the runs come in the order of the disk
    :ivar data_size: the most bytes that the runs hold, None if unknown
    :ivar creator: as of a :class:`DiskImage`
    :ivar findings: complete when :meth:`runs` has ended
    """

    format: str
    virtual_size: int | None
    ascending: bool
    data_size: int | None = None
    creator: str | None = None
    findings: tuple[model.Finding, ...] = ()

    @abc.abstractmethod
    def runs(self) -> Iterator[tuple[int, memoryview]]:
        """Yield (offset on the disk, bytes), once.

        No two runs overlap; what is in none reads as zeros. A run has at
        most :data:`MAX_RUN` bytes and is valid until the next is asked
        for. When the iterator ends, all that follows the data in the
        format (footers, end markers) has been read and found sound.

        :raises xenimport.exceptions.DiskImageError: if it is damaged
        :raises xenimport.exceptions.PackageError: if the stream is
        """


class Converter(driver.Driver, abc.ABC):
    """Opens the disk images of one format."""

    @abc.abstractmethod
    def probe(self, package: model.Package, disk: model.Disk) -> bool:
        """Whether the disk's bytes are of this format.

        Asked only for a region that is seekable and needs no decoder.
        """

    @abc.abstractmethod
    def open(self, package: model.Package, disk: model.Disk) -> DiskImage:
        """Parse and validate all that will be trusted, then open.

        Asked only for a region that is seekable and needs no decoder.

        :raises xenimport.exceptions.DiskImageError: if it is damaged,
            hostile or of a kind that is not supported
        """

    def probe_stream(
        self, disk: model.Disk, stream: stream_room.Stream
    ) -> bool:
        """Whether a disk that arrives in a stream is of this format.

        Judged by :meth:`xenimport.stream.Stream.peek` and the region's
        name (without ``.gz``); nothing is taken from the stream.
        """
        return False

    def open_stream(
        self, disk: model.Disk, stream: stream_room.Stream
    ) -> ForwardImage:
        """Open a disk that arrives in a stream.

        :raises NotForward: if this one cannot be read in one pass; then
            nothing has been taken from the stream
        :raises xenimport.exceptions.DiskImageError: as :meth:`open` does
        """
        raise NotForward(f'{self.handles}: read at many places at once')
