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


"""The files that a region of the package lies in."""

from __future__ import annotations

from collections.abc import Iterator
import errno
import os

from xenimport import exceptions
from xenimport import model

#: Files that are kept open; others are opened again for each read. Most
#: processes may have 1024 files.
_MOST_OPEN = 64


class Files:
    """The files that a region lies in; safe from several threads.

    :param where: the region, for errors
    """

    def __init__(self, where: str, region: model.Region) -> None:
        self._where = where
        self._path = region.path
        self._descriptors: dict[str, int] = {}
        self._states: dict[str, tuple[int, int]] = {}
        self._closed = False
        try:
            for path, needed in self._needed(region).items():
                self._add(path, needed)
        except BaseException:
            self.release()
            raise

    def _needed(self, region: model.Region) -> dict[str, int]:
        """The least size of each file."""
        needed: dict[str, int] = {} if region.pieces else {region.path: 0}
        for piece in region.pieces:
            path = piece.path or region.path
            end = piece.offset + piece.length
            needed[path] = max(end, needed.get(path, 0))
        return needed

    def _add(self, path: str, needed: int) -> None:
        descriptor = self._open(path)
        try:
            self._states[path] = _state(descriptor)
            if self._states[path][0] < needed:
                raise self._truncated(needed, self._states[path][0])
        except BaseException:
            os.close(descriptor)
            raise
        if len(self._descriptors) < _MOST_OPEN:
            self._descriptors[path] = descriptor
        else:
            os.close(descriptor)

    def _open(self, path: str) -> int:
        try:
            return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise exceptions.DiskImageError(
                'package.unreadable',
                'The package cannot be opened',
                where=self._where,
                found=f'{path}: {os.strerror(error.errno or 0)}',
                fix='check the path and the permissions',
            ) from error

    def fill(
        self, piece: model.Piece, buffer: memoryview, inside: int
    ) -> None:
        """Fill the buffer from ``inside`` a piece on."""
        path = piece.path or self._path
        descriptor = self._descriptors.get(path)
        if descriptor is not None:
            self._fill(descriptor, buffer, piece.offset + inside)
            return
        descriptor = self._reopened(path)
        try:
            self._fill(descriptor, buffer, piece.offset + inside)
        finally:
            os.close(descriptor)

    def _reopened(self, path: str) -> int:
        """One of the files that are not kept open."""
        if self._closed:
            raise ValueError('the reader is closed')
        return self._open(path)

    def _fill(
        self, descriptor: int, buffer: memoryview, position: int
    ) -> None:
        while len(buffer):
            try:
                count = os.preadv(descriptor, [buffer], position)
            except OSError as error:
                raise exceptions.DiskImageError(
                    'package.read-failed',
                    'The package cannot be read',
                    where=f'{self._where}, file offset {position}',
                    found=os.strerror(error.errno or 0),
                    fix='check the disk or the network share it is on',
                ) from error
            if count == 0:
                raise self._truncated(
                    position + len(buffer), _state(descriptor)[0]
                )
            buffer = buffer[count:]
            position += count

    def first(self) -> int:
        """The file that was opened first."""
        if self._closed:
            raise ValueError('the reader is closed')
        return next(iter(self._descriptors.values()))

    def data_runs(self, piece: model.Piece) -> Iterator[tuple[int, int]]:
        """Yield (offset in the region, length) of a piece's data.

        As the file system knows it.
        """
        path = piece.path or self._path
        kept = self._descriptors.get(path)
        descriptor = self._reopened(path) if kept is None else kept
        try:
            end = piece.offset + piece.length
            shift = piece.region_offset - piece.offset
            start = _seek(descriptor, piece.offset, os.SEEK_DATA, end)
            while start < end:
                stop = min(_seek(descriptor, start, os.SEEK_HOLE, end), end)
                yield start + shift, stop - start
                start = _seek(descriptor, stop, os.SEEK_DATA, end)
        finally:
            if kept is None:
                os.close(descriptor)

    def check_unchanged(self) -> None:
        """Compare size and time of change of every file.

        :raises xenimport.exceptions.DiskImageError: if one has changed
        """
        for path, state in self._states.items():
            descriptor = self._descriptors.get(path)
            if descriptor is not None:
                found = _state(descriptor)
            else:
                descriptor = self._reopened(path)
                found = _state(descriptor)
                os.close(descriptor)
            if found != state:
                raise exceptions.DiskImageError(
                    'package.changed',
                    'The package was changed while it was read',
                    where=self._where,
                    expected=f'{path}: {state[0]} bytes, not modified',
                    found=f'{found[0]} bytes, modified',
                    fix='wait until the export or the copy of the package '
                    'has finished, then run the import again',
                )

    def release(self) -> None:
        """Close them. A second call does nothing."""
        self._closed = True
        while self._descriptors:
            os.close(self._descriptors.popitem()[1])

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


def _state(descriptor: int) -> tuple[int, int]:
    """Size and time of change of an open file."""
    status = os.fstat(descriptor)
    return status.st_size, status.st_mtime_ns


def _seek(descriptor: int, position: int, whence: int, end: int) -> int:
    """The next data or hole; ``end`` when there is none."""
    try:
        return os.lseek(descriptor, position, whence)
    except OSError as error:
        if error.errno == errno.ENXIO:
            return end
        # The file system does not know holes: all is data.
        return position if whence == os.SEEK_DATA else end
