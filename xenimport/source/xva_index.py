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


"""Where the chunks of an XVA lie, in a file that is read in place."""

from __future__ import annotations

from collections.abc import Iterable
import contextlib
import os

from xenimport import exceptions
from xenimport import model
from xenimport.source import tarindex
from xenimport.source import xva_chunks

#: Chunks by which the reading of headers goes ahead.
_AHEAD = 32
#: Bytes of a checksum's header, the checksum, and the next header.
_HEADERS = 2048


def index(
    path: str, members: Iterable[tarindex.Member], disks: xva_chunks.Disks
) -> dict[str, tuple[model.Piece, ...]]:
    """The pieces of each disk that is wanted, by VDI.

    Only headers and checksums are read.

    :param members: those after the description
    :raises xenimport.exceptions.PackageError: if chunks are missing or
        do not fit
    """
    builder = _Index(path, disks)
    descriptor = -1
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        for member in members:
            builder.add(member, descriptor)
    except OSError as error:
        raise exceptions.read_failed(path, error) from error
    finally:
        if descriptor >= 0:
            os.close(descriptor)
    return builder.finish()


class _Index:
    """Collects the pieces of disks from the members of a package."""

    def __init__(self, path: str, disks: xva_chunks.Disks) -> None:
        self._path = path
        self._members = xva_chunks.Members(path, disks)
        self._layouts = {
            disk: xva_chunks.Layout(size, f'{path}: {disk}')
            for disk, size in disks.sizes.items()
        }
        self._pieces: dict[str, list[model.Piece]] = {
            disk: [] for disk in disks.sizes
        }
        #: The chunk whose checksum may come next, and where it lies.
        self._chunk: xva_chunks.Name | None = None
        self._place = (0, 0, 0)

    def add(self, member: tarindex.Member, descriptor: int) -> None:
        """Take in the next member; its checksum is read if it is one."""
        name = self._members.name(member)
        if name is None:
            return
        if not name.suffix:
            self._flush(None)
            self._chunk = name
            layout = self._layouts.get(name.disk)
            if layout is not None:
                offset = layout.place(name.number, member.size)
                self._advise(member, descriptor)
                self._place = (member.offset, member.size, offset)
        else:
            length = min(member.size, xva_chunks.MAX_TEXT)
            text = os.pread(descriptor, length, member.offset)
            self._flush(
                self._members.checksum(member, name, self._chunk, text)
            )

    def _advise(self, member: tarindex.Member, descriptor: int) -> None:
        """Have headers read from the disk that come some chunks later.

        Waiting for each by itself takes twice as long (measured). They
        are where they would be if all chunks were as long as this one.
        """
        step = member.offset - self._place[0]
        place = member.offset + member.size + _AHEAD * step
        # Some file systems cannot; nothing is lost then.
        with contextlib.suppress(OSError):
            os.posix_fadvise(
                descriptor, place, _HEADERS, os.POSIX_FADV_WILLNEED
            )

    def _flush(self, checksum: str | None) -> None:
        """Keep the chunk that was last, with its checksum."""
        chunk, self._chunk = self._chunk, None
        pieces = self._pieces.get(chunk.disk) if chunk else None
        if chunk is None or pieces is None:
            return
        if self._place[1]:
            pieces.append(model.Piece(*self._place, checksum=checksum))
        elif checksum:
            algorithm = checksum.partition(':')[0]
            xva_chunks.compare(
                f'{self._path}: {chunk.disk}/{chunk.number:08d}',
                checksum,
                {algorithm: xva_chunks.new_hash(algorithm)},
            )

    def finish(self) -> dict[str, tuple[model.Piece, ...]]:
        """All pieces, now that the package has ended."""
        self._flush(None)
        for layout in self._layouts.values():
            layout.finish()
        return {disk: tuple(found) for disk, found in self._pieces.items()}
