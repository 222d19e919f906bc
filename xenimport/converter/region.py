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
import errno
import os
import threading

from xenimport.converter import base
from xenimport import exceptions
from xenimport import model


_SECTOR = 512


class RegionReader:
    """Reads a region's bytes; safe from several threads at once.

    :raises xenimport.exceptions.DiskImageError: if the file cannot be
        opened, is shorter than the region, or can be read only forward
    """

    def __init__(self, region: model.Region) -> None:
        self._where = f'{region.path}: {region.name}'
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
        self._descriptor: int | None = self._open(region.path)
        self._state = self._stat()
        needed = max(
            (piece.offset + piece.length for piece in region.pieces),
            default=0,
        )
        if self._state[0] < needed:
            self.release()
            raise self._truncated(needed, self._state[0])

    def _open(self, path: str) -> int:
        try:
            return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise exceptions.DiskImageError(
                'package.unreadable',
                'The package cannot be opened',
                where=self._where,
                found=os.strerror(error.errno or 0),
                fix='check the path and the permissions',
            ) from error

    def _stat(self) -> tuple[int, int]:
        status = os.fstat(self.descriptor)
        return status.st_size, status.st_mtime_ns

    @property
    def descriptor(self) -> int:
        """The open file's number."""
        if self._descriptor is None:
            raise ValueError('the reader is closed')
        return self._descriptor

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

        :raises xenimport.exceptions.DiskImageError: if the file has
            become shorter, or cannot be read
        """
        done = 0
        index = bisect.bisect_right(self._starts, offset) - 1
        while done < len(buffer):
            piece = self._pieces[index]
            inside = offset + done - piece.region_offset
            part = min(len(buffer) - done, piece.length - inside)
            self._fill(buffer[done : done + part], piece.offset + inside)
            done += part
            index += 1
        with self._lock:
            self._bytes_read += done

    def _fill(self, buffer: memoryview, position: int) -> None:
        """Fill ``buffer`` from ``position`` of the file."""
        while len(buffer):
            try:
                count = os.preadv(self.descriptor, [buffer], position)
            except OSError as error:
                raise exceptions.DiskImageError(
                    'package.read-failed',
                    'The package cannot be read',
                    where=f'{self._where}, file offset {position}',
                    found=os.strerror(error.errno or 0),
                    fix='check the disk or the network share it is on',
                ) from error
            if count == 0:
                raise self._truncated(position + len(buffer), self._stat()[0])
            buffer = buffer[count:]
            position += count

    def extents(self, size: int) -> Iterator[tuple[int, int, bool]]:
        """Yield (offset, length, has data) of the first ``size`` bytes.

        Only the holes of the file itself are known as such.
        """
        return _aligned(self._data_runs(), size)

    def _data_runs(self) -> Iterator[tuple[int, int, bool]]:
        """Yield (offset, length, has data) as the file system knows it."""
        for piece in self._pieces:
            end = piece.offset + piece.length
            position = piece.offset
            while position < end:
                start = min(self._seek(position, os.SEEK_DATA, end), end)
                stop = start
                if start < end:
                    stop = min(self._seek(start, os.SEEK_HOLE, end), end)
                shift = piece.region_offset - piece.offset
                if start > position:
                    yield position + shift, start - position, False
                if stop > start:
                    yield start + shift, stop - start, True
                position = stop

    def _seek(self, position: int, whence: int, end: int) -> int:
        """The next data or hole; ``end`` when there is none."""
        try:
            return os.lseek(self.descriptor, position, whence)
        except OSError as error:
            if error.errno == errno.ENXIO:
                return end
            # The file system does not know holes: all is data.
            return position if whence == os.SEEK_DATA else end

    def check_unchanged(self) -> None:
        """Make sure that nobody has written to the package meanwhile.

        :raises xenimport.exceptions.DiskImageError: if somebody has
        """
        if self._stat() != self._state:
            raise exceptions.DiskImageError(
                'package.changed',
                'The package was changed while it was read',
                where=self._where,
                expected=f'{self._state[0]} bytes, not modified',
                found=f'{self._stat()[0]} bytes, modified',
                fix='wait until the export or the copy of the package has '
                'finished, then run the import again',
            )

    def release(self) -> None:
        """Close the file. A second call does nothing."""
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            os.close(descriptor)

    def _truncated(
        self, expected: int, found: int
    ) -> exceptions.DiskImageError:
        return exceptions.DiskImageError(
            'package.truncated',
            'The package ends before its contents do',
            where=self._where,
            expected=f'at least {expected} bytes',
            found=f'{found} bytes',
            fix='copy the package again, or export it again',
        )


def _aligned(
    runs: Iterator[tuple[int, int, bool]], size: int
) -> Iterator[tuple[int, int, bool]]:
    """Widen runs of data to whole sectors; holes shrink.

    A disk inside a tar starts anywhere in a block of the file system.
    """
    start = end = 0  # of the run of data that is being collected
    for offset, length, data in runs:
        if not data:
            continue
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

    def check_unchanged(self) -> None:
        self.reader.check_unchanged()

    def close(self) -> None:
        self.reader.release()
