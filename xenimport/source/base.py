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

"""The contract of a source: package in, virtual system out."""

from __future__ import annotations

import abc
from collections.abc import Sequence
import dataclasses

from xenimport import driver
from xenimport import exceptions
from xenimport import model
from xenimport import stream as stream_room


@dataclasses.dataclass(frozen=True)
class Request:
    """What the user asked of a source.

    :ivar system: the virtual system to take, where there are several
    :ivar verify_manifest: whether the digests in a manifest count
    """

    system: str | None = None
    verify_manifest: bool = True


#: Nothing in particular was asked.
DEFAULT = Request()


class Source(driver.Driver, abc.ABC):
    """Reads one kind of package. Extracts nothing, writes nothing.

    A package is a file (or directory) that can be read at any place, or
    a stream that comes once: standard input, a URL, or a file that is
    compressed as a whole. A source that can do with one forward pass has
    the second pair of methods too.
    """

    @abc.abstractmethod
    def probe(self, path: str) -> bool:
        """Whether the package is of this kind, judged by its content.

        :raises xenimport.exceptions.PackageError: if it cannot be read
        """

    @abc.abstractmethod
    def open(
        self, path: str, request: Request = DEFAULT
    ) -> model.VirtualSystem:
        """Read the description and find the regions of the disks.

        :raises xenimport.exceptions.PackageError: if it is damaged,
            hostile or of a form that is not supported
        """

    def open_several(
        self, paths: Sequence[str], request: Request = DEFAULT
    ) -> model.VirtualSystem:
        """The same for several files that are one package together.

        :raises xenimport.exceptions.PackageError: if packages of this
            kind are one file each
        """
        raise exceptions.PackageError(
            'package.one-at-a-time',
            'Only bare disks can be given several at once',
            where=paths[0],
            expected='one package, or several bare disk files',
            found=f'{len(paths)} files, the first of which is a package: '
            f'{self.handles}',
            fix='import one package at a time',
        )

    def probe_stream(self, stream: stream_room.Stream) -> bool:
        """Whether what arrives is of this kind; it may only be peeked at."""
        return False

    def open_stream(
        self, stream: stream_room.Stream, request: Request = DEFAULT
    ) -> model.VirtualSystem:
        """Read the description from a stream, up to the first disk.

        The package's ``arrivals`` then give the disks. Their regions are
        not seekable, and have no pieces.

        :raises xenimport.exceptions.PackageError: as :meth:`open` does
        """
        raise NotImplementedError(f'{type(self)} reads no stream')
