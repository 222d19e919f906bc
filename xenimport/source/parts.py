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


"""Files that are cut into parts (``ovf:chunkSize``, DMTF DSP0243, 7.1)."""

from __future__ import annotations

from collections.abc import Mapping
import dataclasses
import re

from xenimport import exceptions
from xenimport import model
from xenimport.source import ovf_disks

#: Digits in the number of a part: ``disk.vhd.000000000``.
_PART_DIGITS = 9
_PART = re.compile(rf'^(.*)\.([0-9]{{{_PART_DIGITS}}})$', re.DOTALL)


def part_name(name: str, number: int) -> str:
    """How a part of a file is named."""
    return f'{name}.{number:0{_PART_DIGITS}d}'


def part_of(name: str) -> tuple[str, int] | None:
    """The file that a part belongs to, and its number; None if it is none.

    It is only the name of one: whether the descriptor cuts that file into
    parts is another matter.
    """
    match = _PART.match(name)
    return (match[1], int(match[2])) if match else None


def joined(
    name: str,
    parts: Mapping[int, model.Region],
    file: ovf_disks.File,
    where: str,
) -> model.Region | None:
    """A file's parts as one region, None if there are none.

    :raises xenimport.exceptions.PackageError: if one is missing or has a
        wrong size
    """
    if not parts:
        return None
    pieces: list[model.Piece] = []
    check = PartSizes(name, file, where)
    for number in range(len(parts)):
        if number not in parts:
            raise check.missing(number)
        part = parts[number]
        check.add(part.size)
        pieces.append(
            dataclasses.replace(
                part.pieces[0],
                region_offset=check.total - part.size,
                path=None if part.path == parts[0].path else part.path,
            )
        )
    check.finish()
    return model.Region(
        path=parts[0].path,
        name=_beside(parts[0].name, name),
        pieces=tuple(pieces),
        parts=tuple(parts[number].name for number in range(len(parts))),
    )


def _beside(part: str, name: str) -> str:
    """The name of the whole file in the package, given that of a part."""
    found = part_of(part)
    return found[0] if found else name


class PartSizes:
    """Checks the sizes of a file's parts, one after the other.

    All but the last have the stated size, and the last is no larger.

    :ivar total: bytes in the parts so far
    """

    def __init__(self, name: str, file: ovf_disks.File, where: str) -> None:
        self._name = name
        self._where = where
        self._size = file.size
        self._chunk = file.chunk_size or 0
        self._count = 0
        self._last = self._chunk
        self.total = 0

    def add(self, size: int) -> None:
        """Take in the size of the next part.

        :raises xenimport.exceptions.PackageError: if there can be none
        """
        if self._last != self._chunk or size > self._chunk:
            raise self._wrong(
                f'parts of {self._chunk} bytes, the last no larger',
                f'part {self._count - 1} has {self._last} bytes'
                if self._last != self._chunk
                else f'part {self._count} has {size} bytes',
            )
        self._count += 1
        self._last = size
        self.total += size

    def finish(self) -> None:
        """Say that there are no more.

        :raises xenimport.exceptions.PackageError: if there should be
        """
        if self._size is not None and self.total != self._size:
            raise self._wrong(
                f'{-(-self._size // self._chunk)} parts with '
                f'{self._size} bytes in all',
                f'{self._count} parts with {self.total} bytes',
            )

    def missing(self, number: int) -> exceptions.PackageError:
        """The error of a part that is not where it should be."""
        return self._wrong(
            f'a member {part_name(self._name, number)[-200:]!r}',
            'parts after it, but not this one',
        )

    def _wrong(self, expected: str, found: str) -> exceptions.PackageError:
        return exceptions.PackageError(
            'package.parts',
            'The parts of a file are not complete',
            where=f'{self._where}: {self._name[-200:]}',
            expected=expected,
            found=found,
            fix='copy the package again, or export it again',
        )
