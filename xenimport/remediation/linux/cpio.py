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

"""The newc cpio archive: the format of an initramfs, read and written.

Source of facts: Documentation/driver-api/early-userspace/buffer-format.rst
of the Linux kernel. A header is ``070701`` and thirteen fields of eight
hexadecimal digits; name and data are padded to four bytes.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Iterator
import dataclasses
import stat
import typing

MAGICS = (b'070701', b'070702')
HEADER = 110
TRAILER = 'TRAILER!!!'
#: The kernel takes names up to PATH_MAX.
NAME_LIMIT = 4096
#: More than any initramfs has; a hostile one ends here.
ENTRY_LIMIT = 200_000
#: Wanted files are configuration and indexes, none larger.
WANTED_LIMIT = 8 << 20
#: The kernel takes links up to PATH_MAX as well.
LINK_LIMIT = 4096
#: What all archives of one initramfs may take together: several times
#: what the largest of distributions have.
LIMITS = {
    'members': ENTRY_LIMIT,
    'bytes of names': 32 << 20,
    'bytes of wanted files': 32 << 20,
    'bytes unpacked': 1 << 30,
}


class DamagedError(ValueError):
    """The bytes are not the archive they should be."""


class Budget:
    """What is left of :data:`LIMITS` while one initramfs is read."""

    def __init__(self) -> None:
        self._left = dict(LIMITS)

    def take(self, what: str, amount: int) -> None:
        """Use some of it.

        :raises DamagedError: when there is not enough left
        """
        self._left[what] -= amount
        if self._left[what] < 0:
            raise DamagedError(f'more than {LIMITS[what]} {what}')


@dataclasses.dataclass(frozen=True)
class Entry:
    """One member.

    :ivar name: without a leading slash
    :ivar mode: file type and permissions as in ``st_mode``
    :ivar data: a link's target, a wanted file's content, else None
    """

    name: str
    mode: int
    size: int = 0
    data: bytes | None = None

    @property
    def is_directory(self) -> bool:
        return stat.S_ISDIR(self.mode)

    @property
    def is_link(self) -> bool:
        return stat.S_ISLNK(self.mode)


class Reader(typing.Protocol):
    """What an archive is read from."""

    def read(self, size: int, /) -> bytes: ...


def directory(name: str) -> Entry:
    """An entry that makes a directory."""
    return Entry(name, stat.S_IFDIR | 0o755)


def regular(name: str, data: bytes) -> Entry:
    """An entry that makes a file."""
    return Entry(name, stat.S_IFREG | 0o644, len(data), data)


def pack(entries: Iterable[Entry]) -> bytes:
    """The archive of the entries, its end padded to 512 bytes."""
    archive = bytearray()
    for number, entry in enumerate(entries, start=1):
        _pack_one(archive, number, entry.name, entry.mode, entry.data or b'')
    _pack_one(archive, 0, TRAILER, 0, b'')
    archive.extend(bytes(-len(archive) % 512))
    return bytes(archive)


def _pack_one(
    archive: bytearray, number: int, name: str, mode: int, data: bytes
) -> None:
    encoded = name.encode('utf-8', 'surrogateescape') + b'\0'
    links = 2 if stat.S_ISDIR(mode) else 1
    # inode, mode, uid, gid, links, mtime, size, device (four fields),
    # length of the name, checksum (newc has none)
    fields = (number, mode, 0, 0, links, 0, len(data), 0, 0, 0, 0)
    archive.extend(b'070701')
    for field in (*fields, len(encoded), 0):
        archive.extend(b'%08X' % field)
    archive.extend(encoded)
    archive.extend(bytes(-len(archive) % 4))
    archive.extend(data)
    archive.extend(bytes(-len(archive) % 4))


def read(
    source: Reader,
    wanted: Callable[[str], bool],
    budget: Budget | None = None,
) -> Iterator[Entry]:
    """The members of one archive, up to and including its trailer.

    :param source: stands at the archive's first byte
    :param wanted: whether a file's content is to be kept
    :param budget: shared by all archives of one file
    :raises DamagedError: if it is cut short, no archive, or too large
    """
    budget = budget or Budget()
    while True:
        entry = _read_one(source, wanted, budget)
        if entry.name == TRAILER:
            return
        yield entry


def _read_one(
    source: Reader, wanted: Callable[[str], bool], budget: Budget
) -> Entry:
    header = _exactly(source, HEADER)
    if header[:6] not in MAGICS:
        raise DamagedError(f'no newc header but {header[:6]!r}')
    try:
        fields = [
            int(header[start : start + 8], 16) for start in range(6, HEADER, 8)
        ]
    except ValueError:
        raise DamagedError('a header field is not hexadecimal') from None
    mode, size, name_size = fields[1], fields[6], fields[11]
    if not 0 < name_size <= NAME_LIMIT:
        raise DamagedError(f'a name of {name_size} bytes')
    budget.take('members', 1)
    budget.take('bytes of names', name_size)
    raw = _exactly(source, name_size)[:-1]
    _exactly(source, -(HEADER + name_size) % 4)
    name = normal(raw.decode('utf-8', 'surrogateescape'))
    if stat.S_ISLNK(mode) and size > LINK_LIMIT:
        raise DamagedError(f'a link of {size} bytes')
    keep = size <= WANTED_LIMIT and (stat.S_ISLNK(mode) or wanted(name))
    if keep:
        budget.take('bytes of wanted files', size)
    data = _exactly(source, size) if keep else None
    if data is None:
        _skip(source, size)
    _exactly(source, -size % 4)
    return Entry(name, mode, size, data)


def normal(name: str) -> str:
    """A member's name without leading ``/`` and ``./``."""
    while name.startswith(('/', './')):
        name = name[1:] if name[0] == '/' else name[2:]
    return name


def _exactly(source: Reader, size: int) -> bytes:
    data = source.read(size) if size else b''
    if len(data) != size:
        raise DamagedError('it ends in the middle of a member')
    return data


def _skip(source: Reader, size: int) -> None:
    while size:
        size -= len(_exactly(source, min(size, 1 << 20)))
