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


"""The disks of an XVA that comes once, forward."""

from __future__ import annotations

from collections.abc import Iterator
import typing

from xenimport.source import tarindex
from xenimport.source import xva_chunks
from xenimport import stream as stream_room


class _Arrived(typing.NamedTuple):
    """A chunk or checksum, and its bytes."""

    name: xva_chunks.Name
    member: tarindex.Member
    stream: stream_room.Stream


class Arriving:
    """The members of a package that comes once, forward.

    :param members: those after the description
    :param where: the package, for errors
    """

    def __init__(
        self,
        members: Iterator[tuple[tarindex.Member, stream_room.Stream]],
        disks: xva_chunks.Disks,
        where: str,
    ) -> None:
        self.where = where
        self._arriving = members
        self._disks = disks
        self._members = xva_chunks.Members(where, disks)
        #: None when the package has ended.
        self.arrived: _Arrived | None = None

    def advance(self) -> None:
        """Go on to the next chunk or checksum."""
        self.arrived = None
        for member, stream in self._arriving:
            name = self._members.name(member)
            if name is not None:
                self.arrived = _Arrived(name, member, stream)
                break

    def checksum(self, chunk: xva_chunks.Name | None) -> str | None:
        """The checksum of the chunk that has just been read, if any.

        :raises xenimport.exceptions.PackageError: if it is not the
            chunk's, no checksum, or not of the kind of those before
        """
        if self.arrived is None or not self.arrived.name.suffix:
            return None
        name, member, stream = self.arrived
        text = stream.read(min(member.size, xva_chunks.MAX_TEXT))
        found = self._members.checksum(member, name, chunk, text)
        self.advance()
        return found

    def disks(self) -> Iterator[tuple[str, stream_room.Stream]]:
        """Yield each disk that is wanted, in the package's order.

        :raises xenimport.exceptions.PackageError: if chunks are missing,
            damaged or do not fit
        """
        missing = dict(self._disks.sizes)
        self.advance()
        while self.arrived is not None:
            disk = self.arrived.name.disk
            if disk in missing:
                yield disk, ChunkStream(self, disk, missing.pop(disk))
            # What nobody asked for is not verified either.
            while self.arrived and self.arrived.name.disk == disk:
                self.advance()
        for absent, size in missing.items():
            xva_chunks.Layout(size, f'{self.where}: {absent}').finish()


class ChunkStream(stream_room.Sparse):
    """One disk as it arrives, chunk by chunk.

    A chunk's checksum comes after it, and is compared before the next
    chunk is handed out.
    """

    def __init__(self, arriving: Arriving, disk: str, size: int) -> None:
        super().__init__(f'{arriving.where}: {disk}')
        self.size: int = size
        self._arriving = arriving
        self._disk = disk
        self._layout = xva_chunks.Layout(size, self.where)
        self._rest = memoryview(bytearray(stream_room.CHUNK))
        self._chunk: _Arrived | None = None
        self._offset = 0
        self._left = 0
        #: Which checksums the disk has; any until the first has come.
        self._algorithms = tuple(xva_chunks.ALGORITHMS.values())
        self._hashes: dict[str, xva_chunks.Hash] = {}

    def next_run(self) -> tuple[int, int] | None:
        self._end_chunk()
        while (arrived := self._arriving.arrived) is not None:
            if arrived.name.disk != self._disk:
                break
            if arrived.name.suffix:
                # No chunk has come before it: this raises.
                self._arriving.checksum(None)
            length = self._start_chunk(arrived)
            if length:
                return self._offset, length
            self._end_chunk()
        self._layout.finish()
        return None

    def _start_chunk(self, arrived: _Arrived) -> int:
        """Begin a chunk; the bytes of it that are the disk's."""
        length = arrived.member.size
        self._offset = self._layout.place(arrived.name.number, length)
        self._chunk = arrived
        # What a writer has padded the last chunk with is no data.
        self._left = min(length, self.size - self._offset)
        self._hashes = {
            algorithm: xva_chunks.new_hash(algorithm)
            for algorithm in self._algorithms
        }
        return self._left

    def _end_chunk(self) -> None:
        """Read the rest of the chunk, and compare its checksum."""
        chunk, self._chunk = self._chunk, None
        if chunk is None:
            return
        self._ahead = b''
        self._left = 0
        while count := chunk.stream.read_into(self._rest):
            self._update(self._rest[:count])
        self._arriving.advance()
        stated = self._arriving.checksum(chunk.name)
        if stated is not None:
            self._algorithms = (stated.partition(':')[0],)
            xva_chunks.compare(
                f'{self._arriving.where}: {chunk.member.name}, offset '
                f'{self._offset} of the disk',
                stated,
                self._hashes,
            )

    def _update(self, data: memoryview) -> None:
        for hashing in self._hashes.values():
            hashing.update(data)

    def _read_into(self, buffer: memoryview) -> int:
        if not self._left or self._chunk is None:
            return 0
        part = buffer[: self._left]
        count = self._chunk.stream.read_into(part)
        self._update(part[:count])
        self._left -= count
        return count

    def finish(self) -> None:
        while self.next_run() is not None:
            pass
