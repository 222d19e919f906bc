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

"""Where the members of a tar archive lie, read in place.

Only headers are read; a member's data is skipped by seeking. The rules
are those of POSIX.1-2017 pax ("ustar" and "pax" interchange formats) and
of GNU tar's long names and base-256 numbers.

The standard library's tarfile is not used: it follows links, takes
sparse members for plain ones, and reads extended headers of any size
into memory.
"""

from __future__ import annotations

from collections.abc import Iterator
import dataclasses
import os
import stat
import typing

from xenimport import exceptions
from xenimport.source import tarheader
from xenimport import stream as stream_room

BLOCK = tarheader.BLOCK
#: More members than any package has; bounds time and memory.
MAX_MEMBERS = 10_000
#: Bytes of one extended header (a PAX record set or a GNU long name).
MAX_EXTENDED = 256 * 1024


@dataclasses.dataclass(frozen=True)
class Member:
    """A regular file in the archive.

    :ivar offset: where its data starts in the archive, bytes
    :ivar size: bytes
    """

    name: str
    offset: int
    size: int


def is_tar(path: str) -> bool:
    """Whether the file starts with a tar header whose checksum is right.

    :raises xenimport.exceptions.PackageError: if it cannot be read
    """
    if os.path.isdir(path):
        return False
    with _opened(path) as descriptor:
        block = descriptor.pread(BLOCK, 0)
        return tarheader.is_header(block)


def first_name(path: str) -> str | None:
    """The name of the first member, None if it is no regular file.

    :raises xenimport.exceptions.PackageError: as :func:`index` does
    """
    member = next(walk(path), None)
    return member.name if member and member.offset == BLOCK else None


def walk(path: str, limit: int = MAX_MEMBERS) -> Iterator[Member]:
    """Yield the archive's regular files, in the archive's order.

    :param limit: the most headers that it may have
    :raises xenimport.exceptions.PackageError: if it is not a tar, is cut
        short, or holds what no package may hold
    """
    with _opened(path) as descriptor:
        yield from _Reader(path, descriptor, limit).members()


def arriving(
    stream: stream_room.Stream, limit: int = MAX_MEMBERS
) -> Iterator[tuple[Member, stream_room.Stream]]:
    """Yield the regular files of an archive that comes in a stream.

    What was not read of a member is skipped when the next is asked for.

    :raises xenimport.exceptions.PackageError: as :func:`walk` does
    """
    for member in _Reader(stream.where, _Forward(stream), limit).members():
        yield (
            member,
            stream_room.Limited(
                stream, member.size, f'{stream.where}: {member.name}'
            ),
        )


def starts_tar(stream: stream_room.Stream) -> bool:
    """Whether a stream starts with a tar header whose checksum is right."""
    return tarheader.is_header(stream.peek(BLOCK))


def index(path: str) -> dict[str, Member]:
    """The archive's regular files by name, in the archive's order.

    :raises xenimport.exceptions.PackageError: as :func:`walk` does, and
        if two have the same name
    """
    members: dict[str, Member] = {}
    for member in walk(path):
        if member.name in members:
            raise duplicate(path, member.name)
        members[member.name] = member
    return members


def duplicate(where: str, name: str) -> exceptions.PackageError:
    """The error of two members with the same name."""
    return exceptions.PackageError(
        'package.duplicate-member',
        'Two members of the package have the same name',
        where=f'{where}: {name!r}',
        fix='export the guest again',
    )


class _Input(typing.Protocol):
    """Where headers are read; ``size`` in bytes, None if not known."""

    size: int | None

    def pread(self, length: int, offset: int) -> bytes: ...


class _Forward:
    """A stream, as far as a walk from header to header needs it."""

    size: int | None = None

    def __init__(self, stream: stream_room.Stream) -> None:
        self._stream = stream

    def pread(self, length: int, offset: int) -> bytes:
        missing = offset - self._stream.position
        if missing:
            skipped = self._stream.skip(missing)
            # Padding after the last member's data may be left out.
            if missing - skipped >= BLOCK:
                raise self._stream.truncated(offset, self._stream.position)
        return self._stream.read(length)


class _Descriptor:
    """A regular file opened for reading, closed at the end of a block."""

    def __init__(self, path: str, number: int, size: int) -> None:
        self._path = path
        self.number = number
        self.size: int | None = size

    def pread(self, length: int, offset: int) -> bytes:
        try:
            return os.pread(self.number, length, offset)
        except OSError as error:
            raise exceptions.read_failed(
                f'{self._path}, offset {offset}', error
            ) from error

    def __enter__(self) -> _Descriptor:
        return self

    def __exit__(self, *exc_info: object) -> None:
        os.close(self.number)


def _opened(path: str) -> _Descriptor:
    try:
        # Not blocking: a named pipe must not hang us.
        number = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise exceptions.unreadable(path, error) from error
    status = os.fstat(number)
    if not stat.S_ISREG(status.st_mode):
        os.close(number)
        raise exceptions.PackageError(
            'package.unreadable',
            'The package is not a regular file',
            where=path,
            expected='a regular file',
            fix='give the file that was exported',
        )
    return _Descriptor(path, number, status.st_size)


class _Reader:
    """Walks the headers of one archive."""

    def __init__(self, path: str, source: _Input, limit: int) -> None:
        self._path = path
        self._input = source
        self._limit = limit

    def members(self) -> Iterator[Member]:
        """Yield every regular file."""
        pending: dict[str, str] = {}
        count = 0
        offset = 0
        while header := self._header(offset):
            count += 1
            if count > self._limit:
                raise self._error(
                    'package.too-many-members',
                    'The package has too many members',
                    offset,
                    expected=f'at most {self._limit}',
                    fix='give the exported guest alone',
                )
            data = offset + BLOCK
            size = header.size
            if (
                header.kind in tarheader.REGULAR
                or header.kind == tarheader.DIRECTORY
            ):
                name, size = self._resolve(header, pending)
                pending = {}
                # A directory's size is not the length of any data.
                if header.kind == tarheader.DIRECTORY or name.endswith('/'):
                    size = 0
                else:
                    self._check_fits(name, data, size)
                    yield Member(name, data, size)
            else:
                self._extended(header, pending)
            offset = data + -(-size // BLOCK) * BLOCK

    def _header(self, offset: int) -> tarheader.Header | None:
        """The header at ``offset``, None at the end of the archive."""
        block = self._input.pread(BLOCK, offset)
        # Some writers leave out the two zero blocks that end a tar.
        if offset and (not block or block == bytes(BLOCK)):
            return None
        if not tarheader.is_header(block):
            raise self._bad_header(block, offset)
        try:
            size = tarheader.number(block[124:136])
        except ValueError as error:
            raise self._bad_header(block, offset) from error
        name = block[:100].split(b'\0', 1)[0]
        if block[257:263] == b'ustar\0':
            prefix = block[345:500].split(b'\0', 1)[0]
            if prefix:
                name = prefix + b'/' + name
        return tarheader.Header(name, size, block[156:157], offset)

    def _bad_header(
        self, block: bytes, offset: int
    ) -> exceptions.PackageError:
        if offset == 0:
            return exceptions.PackageError(
                'package.not-a-tar',
                'The package is not a tar archive',
                where=self._path,
                expected='a tar header at offset 0, as every .ova has',
                found=tarheader.describe(block),
                fix='give the .ova file as it was exported; a bare disk '
                'must be named .vhd or .raw',
            )
        if len(block) < BLOCK:
            return self._error(
                'package.truncated',
                'The package ends in the middle of a tar header',
                offset,
                fix='copy the package again, or export it again',
            )
        return self._error(
            'package.damaged',
            'A tar header in the package is damaged',
            offset,
            expected='a tar header with a right checksum',
            found=tarheader.describe(block),
            fix='copy the package again, or export it again',
        )

    def _extended(
        self, header: tarheader.Header, pending: dict[str, str]
    ) -> None:
        """Take in a header that describes the members after it.

        :raises xenimport.exceptions.PackageError: for any other kind
        """
        if header.kind in tarheader.PAX:
            pending.update(self._pax_records(header))
        elif header.kind == tarheader.PAX_GLOBAL:
            records = self._pax_records(header)
            if 'path' in records or 'size' in records:
                raise self._unsafe(
                    header, 'a global header that names a path or size'
                )
        elif header.kind == tarheader.GNU_NAME:
            data = self._extended_data(header)
            pending['path'] = self._text(header, data.split(b'\0', 1)[0])
        elif header.kind == tarheader.GNU_LINK_NAME:
            raise self._unsafe(header, 'link')
        else:
            kind = tarheader.KINDS.get(header.kind, f'kind {header.kind!r}')
            raise self._unsafe(header, kind)

    def _extended_data(self, header: tarheader.Header) -> bytes:
        if header.size > MAX_EXTENDED:
            raise self._error(
                'package.damaged',
                'An extended header in the package is too large',
                header.offset,
                expected=f'at most {MAX_EXTENDED} bytes',
                found=f'{header.size} bytes',
                fix='export the guest again',
            )
        self._check_fits('(header)', header.offset + BLOCK, header.size)
        return self._input.pread(header.size, header.offset + BLOCK)

    def _pax_records(self, header: tarheader.Header) -> dict[str, str]:
        """The records ``LENGTH KEY=VALUE`` of a PAX header."""
        data = self._extended_data(header)
        records: dict[str, str] = {}
        position = 0
        while position < len(data) and data[position]:
            space = data.find(b' ', position, position + 12)
            digits = data[position:space] if space > 0 else b''
            if not digits.isdigit():
                raise self._bad_pax(header)
            end = position + int(digits)
            record = data[space + 1 : end]
            if (
                end > len(data)
                or not record.endswith(b'\n')
                or b'=' not in record
            ):
                raise self._bad_pax(header)
            key, value = record[:-1].split(b'=', 1)
            if key in (b'path', b'size') or key.startswith(b'GNU.sparse'):
                records[self._text(header, key)] = self._text(header, value)
            position = end
        return records

    def _bad_pax(self, header: tarheader.Header) -> exceptions.PackageError:
        return self._error(
            'package.damaged',
            'A PAX header in the package is damaged',
            header.offset,
            expected='records of the form LENGTH KEY=VALUE',
            fix='copy the package again, or export it again',
        )

    def _resolve(
        self, header: tarheader.Header, pending: dict[str, str]
    ) -> tuple[str, int]:
        """The member's name and size after its extended headers."""
        if any(key.startswith('GNU.sparse') for key in pending):
            raise self._unsafe(header, tarheader.KINDS[tarheader.GNU_SPARSE])
        name = pending.get('path')
        if name is None:
            name = self._text(header, header.name)
        size = header.size
        if 'size' in pending:
            digits = pending['size']
            # Twenty digits hold any 64-bit number.
            if len(digits) > 20 or not (digits.isascii() and digits.isdigit()):
                raise self._bad_pax(header)
            size = int(digits)
        return self._safe_name(header, name), size

    def _safe_name(self, header: tarheader.Header, name: str) -> str:
        """The name without a leading ``./``.

        :raises xenimport.exceptions.PackageError: if it leads outside
        """
        parts = name.split('/')
        if name.startswith('/') or '..' in parts or '\0' in name:
            raise self._error(
                'package.unsafe-name',
                'A member of the package has a name that leads outside',
                header.offset,
                expected='a relative name without ".."',
                found=repr(name[:200]),
                fix='do not trust this package',
            )
        tail = '/' if name.endswith('/') else ''
        return '/'.join(p for p in parts if p not in ('', '.')) + tail

    def _text(self, header: tarheader.Header, data: bytes) -> str:
        try:
            return data.decode('utf-8')
        except UnicodeDecodeError as error:
            raise self._error(
                'package.unsafe-name',
                'A name in the package is not UTF-8',
                header.offset,
                found=repr(data[:200]),
                fix='export the guest again under a plain name',
            ) from error

    def _check_fits(self, name: str, offset: int, size: int) -> None:
        total = self._input.size
        if total is not None and size > total - offset:
            raise exceptions.PackageError(
                'package.truncated',
                'The package ends before its contents do',
                where=f'{self._path}: {name}',
                expected=f'{size} bytes from offset {offset}',
                found=f'{max(0, total - offset)} bytes',
                fix='copy the package again, or export it again',
            )

    def _unsafe(
        self, header: tarheader.Header, kind: str
    ) -> exceptions.PackageError:
        return self._error(
            'package.unsafe-member',
            f'The package holds a {kind}',
            header.offset,
            expected='regular files only',
            found=f'{kind} {header.name[:100]!r}',
            fix='export the guest again, or pack its files with plain tar',
        )

    def _error(
        self,
        error_id: str,
        message: str,
        offset: int,
        *,
        expected: str | None = None,
        found: str | None = None,
        fix: str | None = None,
    ) -> exceptions.PackageError:
        return exceptions.PackageError(
            error_id,
            message,
            where=f'{self._path}, offset {offset}',
            expected=expected,
            found=found,
            fix=fix,
        )
