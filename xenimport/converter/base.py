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

if typing.TYPE_CHECKING:
    from types import TracebackType


class DiskImage(abc.ABC):
    """A disk in its container format, as a read-only sparse device.

    Reads are safe from several threads at once.

    :ivar format: the converter's name, for example ``vhd``
    :ivar virtual_size: bytes
    :ivar creator: what wrote the image, if the format says so
    :ivar findings: what is odd about the image
    """

    format: str
    virtual_size: int
    creator: str | None = None
    findings: tuple[model.Finding, ...] = ()

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


class Converter(driver.Driver, abc.ABC):
    """Opens the disk images of one format."""

    @abc.abstractmethod
    def probe(self, package: model.Package, disk: model.Disk) -> bool:
        """Whether the disk's bytes are of this format."""

    @abc.abstractmethod
    def open(self, package: model.Package, disk: model.Disk) -> DiskImage:
        """Parse and validate all that will be trusted, then open.

        :raises xenimport.exceptions.DiskImageError: if it is damaged,
            hostile or of a kind that is not supported
        """
