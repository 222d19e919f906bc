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


"""Streams of files, pipes and standard input, and of a region's pieces."""

from __future__ import annotations

import os
import stat
import sys

from xenimport import exceptions
from xenimport import model
from xenimport import stream as stream_room

#: How standard input is named on the command line.
STANDARD_INPUT = '-'


class FileStream(stream_room.Stream):
    """A file, a pipe or standard input.

    :param path: ``-`` is standard input
    :raises xenimport.exceptions.PackageError: if it cannot be opened
    """

    def __init__(self, path: str) -> None:
        standard = path == STANDARD_INPUT
        super().__init__('standard input' if standard else path)
        self._owned = not standard
        if standard:
            self._descriptor = _standard_input()
        else:
            self._descriptor = _opened(path)
        self._state = self._stat()
        if self._state is not None:
            self.size = self._state[0]

    def _stat(self) -> tuple[int, int] | None:
        status = os.fstat(self._descriptor)
        if not stat.S_ISREG(status.st_mode):
            return None
        return status.st_size, status.st_mtime_ns

    def _read_into(self, buffer: memoryview) -> int:
        try:
            count = os.readv(self._descriptor, [buffer])
        except OSError as error:
            raise exceptions.read_failed(
                f'{self.where}, offset {self.position}', error
            ) from error
        if not count and self._stat() != self._state:
            raise exceptions.PackageError(
                'package.changed',
                'The package was changed while it was read',
                where=self.where,
                expected='a file that nobody writes to',
                found='another size or time of change than at the start',
                fix='wait until the export or the copy of the package has '
                'finished, then run the import again',
            )
        return count

    def close(self) -> None:
        if self._owned and self._descriptor >= 0:
            os.close(self._descriptor)
        self._descriptor = -1


def _standard_input() -> int:
    descriptor = sys.__stdin__.fileno() if sys.__stdin__ else 0
    if os.isatty(descriptor):
        raise exceptions.PackageError(
            'package.unreadable',
            'Standard input is a terminal',
            where=STANDARD_INPUT,
            expected='a package in a pipe or a file',
            fix='pipe the package in, or name a file',
        )
    return descriptor


def _opened(path: str) -> int:
    try:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise exceptions.unreadable(path, error) from error


class RegionStream(stream_room.Stream):
    """A region of a file, its pieces one after the other.

    Gaps between pieces are not for a stream: the region has none.

    :raises xenimport.exceptions.PackageError: if a file cannot be opened
    """

    def __init__(self, region: model.Region) -> None:
        super().__init__(f'{region.path}: {region.name}')
        self.size = region.size
        self._region = region
        self._descriptors: dict[str, int] = {}
        self._index = 0
        self._inside = 0

    def _read_into(self, buffer: memoryview) -> int:
        pieces = self._region.pieces
        while self._index < len(pieces):
            piece = pieces[self._index]
            left = piece.length - self._inside
            if left:
                part = buffer[: min(left, len(buffer))]
                place = piece.offset + self._inside
                count = self._read(piece.path, part, place)
                self._inside += count
                return count
            self._index += 1
            self._inside = 0
        return 0

    def _read(self, path: str | None, part: memoryview, place: int) -> int:
        path = path or self._region.path
        if path not in self._descriptors:
            self._descriptors[path] = _opened(path)
        try:
            count = os.preadv(self._descriptors[path], [part], place)
        except OSError as error:
            raise exceptions.read_failed(
                f'{self.where}, file offset {place}', error
            ) from error
        if not count:
            raise self.truncated(place + len(part), place)
        return count

    def close(self) -> None:
        while self._descriptors:
            os.close(self._descriptors.popitem()[1])
