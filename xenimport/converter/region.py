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


"""Reading a region of the package in place."""

from __future__ import annotations

import bisect
from collections.abc import Iterator
import hashlib
import threading

import xxhash

from xenimport.converter import base
from xenimport.converter import files
from xenimport import exceptions
from xenimport import model


_SECTOR = 512
#: Bytes of the longest piece with a checksum of its own: it is read at
#: once, whatever part of it is wanted.
_MAX_CHECKED = 64 << 20


class RegionReader:
    """Reads a region's bytes; safe from several threads at once.

    Gaps between the pieces, and what lies between the last piece and the
    end, read as zeros. A piece with a checksum is verified before any of
    its bytes is handed out.

    :raises xenimport.exceptions.DiskImageError: if a file cannot be
        opened, is shorter than the region, or can be read only forward
    """

    def __init__(self, region: model.Region) -> None:
        self._where = f'{region.path}: {region.name}'
        self.region = region
        self.name = region.name
        self.size = region.size
        self._pieces = region.pieces
        self._starts = [piece.region_offset for piece in region.pieces]
        self._lock = threading.Lock()
        self._bytes_read = 0
        if region.decoder or not region.seekable:
            raise exceptions.DiskImageError(
                'package.compressed-disk',
                'A disk of the package is compressed as a whole',
                where=self._where,
                expected='a disk that can be read in place',
                found=f'{region.decoder or "a stream"}',
                fix='unpack the package and the disk, then give the disk',
            )
        #: Which pieces have been compared with their checksums.
        self._checked = bytearray(len(region.pieces))
        self._files = files.Files(self._where, region)

    @property
    def descriptor(self) -> int:
        """The number of the open file that the first piece lies in."""
        return self._files.first()

    @property
    def where(self) -> str:
        """The region, for an error."""
        return self._where

    @property
    def bytes_read(self) -> int:
        """Bytes read so far."""
        return self._bytes_read

    def read(self, offset: int, length: int) -> bytes:
        """At most ``length`` bytes; fewer only at the region's end."""
        length = max(0, min(length, self.size - offset))
        buffer = bytearray(length)
        if length:
            self.read_into(memoryview(buffer), offset)
        return bytes(buffer)

    def read_into(self, buffer: memoryview, offset: int) -> None:
        """Fill ``buffer`` from ``offset`` of the region.

        :raises xenimport.exceptions.DiskImageError: if a file has become
            shorter or cannot be read, or a piece is damaged
        """
        done = 0
        index = bisect.bisect_right(self._starts, offset) - 1
        while done < len(buffer):
            place = offset + done
            inside = left = 0
            if index >= 0:
                piece = self._pieces[index]
                inside = place - piece.region_offset
                left = piece.length - inside
            if left > 0:
                part = min(len(buffer) - done, left)
                self._read_piece(index, buffer[done : done + part], inside)
            else:
                index += 1
                part = len(buffer) - done
                if index < len(self._starts):
                    part = min(part, self._starts[index] - place)
                buffer[done : done + part] = bytes(part)
            done += part
        with self._lock:
            self._bytes_read += done

    def _read_piece(self, index: int, buffer: memoryview, inside: int) -> None:
        """Fill the buffer from ``inside`` a piece on."""
        piece = self._pieces[index]
        if piece.checksum is None or self._checked[index]:
            self._files.fill(piece, buffer, inside)
        elif len(buffer) == piece.length:
            self._files.fill(piece, buffer, 0)
            self._compare(piece, buffer)
            self._checked[index] = 1
        else:
            whole = memoryview(bytearray(self._bounded(piece)))
            self._files.fill(piece, whole, 0)
            self._compare(piece, whole)
            self._checked[index] = 1
            buffer[:] = whole[inside : inside + len(buffer)]

    def _bounded(self, piece: model.Piece) -> int:
        """The length of a piece that has to be read at once."""
        if piece.length > _MAX_CHECKED:
            raise exceptions.DiskImageError(
                'package.chunk-too-long',
                'A part of the package with a checksum is too long',
                where=f'{self._where}, file offset {piece.offset}',
                expected=f'at most {_MAX_CHECKED} bytes',
                found=f'{piece.length} bytes',
                fix='export the guest again',
            )
        return piece.length

    def _compare(self, piece: model.Piece, data: memoryview) -> None:
        found = _checksum(f'{piece.checksum}'.partition(':')[0], data)
        if found != piece.checksum:
            raise exceptions.DiskImageError(
                'package.chunk-damaged',
                'A part of a disk is not what its checksum says',
                where=f'{self._where}, offset {piece.region_offset} of the '
                f'disk, offset {piece.offset} of the file',
                expected=piece.checksum,
                found=found,
                fix='copy the package again, or export the guest again',
            )

    def extents(self, size: int) -> Iterator[tuple[int, int, bool]]:
        """Yield (offset, length, has data) of the first ``size`` bytes.

        Holes are the gaps between the pieces, and those of the files
        themselves.
        """
        return _aligned(self._data_runs(), size)

    def _data_runs(self) -> Iterator[tuple[int, int]]:
        """Yield (offset, length) of data as far as is known."""
        for piece in self._pieces:
            if piece.checksum is None:
                yield from self._files.data_runs(piece)
            else:
                # A hole may be what a broken copy has left; only its
                # checksum tells.
                yield piece.region_offset, piece.length

    def check_unchanged(self) -> None:
        """Make sure that nobody has written to the package meanwhile.

        :raises xenimport.exceptions.DiskImageError: if somebody has
        """
        self._files.check_unchanged()

    def release(self) -> None:
        """Close the files. A second call does nothing."""
        self._files.release()


def _checksum(algorithm: str, data: memoryview) -> str:
    if algorithm == 'xxh64':
        return f'xxh64:{xxhash.xxh64_hexdigest(data)}'
    value = hashlib.new(algorithm, data, usedforsecurity=False).hexdigest()
    return f'{algorithm}:{value}'


def _aligned(
    runs: Iterator[tuple[int, int]], size: int
) -> Iterator[tuple[int, int, bool]]:
    """Widen runs of data to whole sectors; holes shrink.

    A disk inside a tar starts anywhere in a block of the file system.
    """
    start = end = 0  # of the run of data that is being collected
    for offset, length in runs:
        if offset >= size:
            break
        first = max(end, offset // _SECTOR * _SECTOR)
        last = min(size, -(-(offset + length) // _SECTOR) * _SECTOR)
        if first > end:
            if end > start:
                yield start, end - start, True
            yield end, first - end, False
            start = first
        end = max(end, last)
    if end > start:
        yield start, end - start, True
    if size > end:
        yield end, size - end, False


class RegionImage(base.DiskImage):
    """A disk image over one region."""

    def __init__(self, reader: RegionReader) -> None:
        self.reader = reader
        self.regions = (reader.region,)

    def check_unchanged(self) -> None:
        self.reader.check_unchanged()

    def close(self) -> None:
        self.reader.release()
