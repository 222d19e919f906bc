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


"""File systems of Windows in files, made and read by their own tools.

mkntfs and ntfs-3g (through FUSE; where that is not to be had, through
libguestfs), ntfscat, mkfs.vfat, mtools. Nothing of the product is used.
"""

from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Mapping
import functools
import io
import os
import pathlib
import struct
import subprocess
import tarfile
import tempfile
import typing

SECTOR = 512


class Place(typing.Protocol):
    """A partition: first sector and how many."""

    @property
    def start(self) -> int: ...

    @property
    def size(self) -> int: ...


def run(*command: str | os.PathLike[str], data: bytes = b'') -> bytes:
    """Run a tool; its output, or an error with all that it said."""
    done = subprocess.run(
        [os.fspath(part) for part in command], input=data, capture_output=True
    )
    if done.returncode:
        raise RuntimeError(
            f'{command}: {done.returncode}\n'
            + (done.stdout + done.stderr).decode('utf-8', 'replace')
        )
    return done.stdout


def _blank(path: str, place: Place) -> None:
    with open(path, 'wb') as stream:
        stream.truncate(place.size * SECTOR)


def make_ntfs(path: str, place: Place, files: Mapping[str, bytes]) -> None:
    """An NTFS volume with files, for a place on a disk."""
    _blank(path, place)
    run(
        '/usr/sbin/mkntfs', '-q', '-F', '-Q', '-s', '512', '-H', '255',
        '-S', '63', '-p', str(place.start), path,
    )  # fmt: skip
    add_to_ntfs(path, files)


def add_to_ntfs(path: str, files: Mapping[str, bytes]) -> None:
    """Put files into an NTFS volume, over those that are there."""
    add = _add_mounted if can_mount() else _add_in_appliance
    add(path, in_one_case(files))


def in_one_case(files: Mapping[str, bytes]) -> dict[str, bytes]:
    """Files with one spelling a name, the first one, as Windows has it."""
    spelled: dict[str, str] = {}
    result = {}
    for path, data in files.items():
        place = ''
        for name in path.split('/'):
            wanted = f'{place}/{name}' if place else name
            place = spelled.setdefault(wanted.upper(), wanted)
        result[place] = data
    return result


def _mount(path: str, directory: str) -> bool:
    done = subprocess.run(['ntfs-3g', path, directory], capture_output=True)
    return done.returncode == 0


@functools.cache
def can_mount() -> bool:
    """Whether this user may mount a file with ntfs-3g."""
    with tempfile.TemporaryDirectory() as directory:
        path = os.path.join(directory, 'volume')
        with open(path, 'wb') as stream:
            stream.truncate(4 << 20)
        run('/usr/sbin/mkntfs', '-q', '-F', '-Q', path)
        place = os.path.join(directory, 'place')
        os.mkdir(place)
        if not _mount(path, place):
            return False
        run('umount', place)
        return True


def _add_mounted(path: str, files: Mapping[str, bytes]) -> None:
    with tempfile.TemporaryDirectory() as directory:
        if not _mount(path, directory):
            raise RuntimeError(f'ntfs-3g does not mount {path}')
        try:
            root = pathlib.Path(directory)
            for name, data in files.items():
                file = root / name
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_bytes(data)
        finally:
            run('umount', directory)


def _add_in_appliance(path: str, files: Mapping[str, bytes]) -> None:
    import guestfs

    with tempfile.NamedTemporaryFile(suffix='.tar') as archive:
        with tarfile.open(fileobj=archive, mode='w') as writer:
            for name, data in files.items():
                member = tarfile.TarInfo(name)
                member.size = len(data)
                writer.addfile(member, io.BytesIO(data))
        archive.flush()
        appliance = guestfs.GuestFS(python_return_dict=True)
        appliance.add_drive_opts(path, format='raw')
        appliance.launch()
        appliance.mount('/dev/sda', '/')
        appliance.tar_in(archive.name, '/')
        appliance.shutdown()
        appliance.close()


def make_fat(path: str, place: Place, files: Mapping[str, bytes]) -> None:
    """A FAT32 volume with files."""
    _blank(path, place)
    run('/usr/sbin/mkfs.vfat', '-F', '32', '-h', str(place.start), path)
    known: set[str] = set()
    for name, data in files.items():
        parents = pathlib.PurePosixPath(name).parents
        for parent in [str(item) for item in parents][-2::-1]:
            if parent.upper() not in known:
                known.add(parent.upper())
                run('mmd', '-i', path, f'::{parent}')
        with tempfile.NamedTemporaryFile() as stream:
            stream.write(data)
            stream.flush()
            run('mcopy', '-i', path, stream.name, f'::{name}')


def _pieces(
    descriptor: int, start: int, end: int
) -> Iterator[tuple[int, int]]:
    """Where a file has data: offset and length."""
    at = start
    while at < end:
        try:
            at = os.lseek(descriptor, at, os.SEEK_DATA)
        except OSError:
            return
        hole = min(os.lseek(descriptor, at, os.SEEK_HOLE), end)
        if at >= end:
            return
        yield at, hole - at
        at = hole


def _move(
    source: str | os.PathLike[str], start: int, size: int,
    target: str | os.PathLike[str], offset: int,
) -> None:  # fmt: skip
    with open(source, 'rb') as reader, open(target, 'r+b') as writer:
        for at, length in _pieces(reader.fileno(), start, start + size):
            reader.seek(at)
            writer.seek(offset + at - start)
            while length:
                data = reader.read(min(length, 4 << 20))
                writer.write(data)
                length -= len(data)


def copy(volume: str, disk: str | os.PathLike[str], offset: int) -> None:
    """Put a volume onto a disk; what is not in it stays a hole."""
    _move(volume, 0, os.path.getsize(volume), disk, offset)


def extract(disk: str | os.PathLike[str], place: Place, path: str) -> None:
    """Take a volume from a disk."""
    _blank(path, place)
    _move(disk, place.start * SECTOR, place.size * SECTOR, path, 0)


def read_ntfs(volume: str | os.PathLike[str], name: str) -> bytes:
    """A file of an NTFS volume."""
    return run('ntfscat', '-f', volume, name)


def read_fat(volume: str | os.PathLike[str], name: str) -> bytes:
    """A file of a FAT volume."""
    return run('mtype', '-i', volume, f'::{name}')


def names(volume: str | os.PathLike[str]) -> list[str]:
    """All files and directories of an NTFS volume, by their path."""
    found = []
    directory = ''
    for line in (
        run('ntfsls', '-f', '-R', '-p', '/', volume).decode().split('\n')
    ):
        if line.startswith('/') and line.endswith(':'):
            directory = line[:-1].rstrip('/')
        elif line not in ('', '.', '..'):
            found.append(f'{directory}/{line}')
    return found


def set_dirty(disk: str | os.PathLike[str], place: Place) -> None:
    """Mark an NTFS volume on a disk for a check.

    The flag is in $VOLUME_INFORMATION (type 0x70) of $Volume, the fourth
    record of the file table and of its mirror, as the Linux kernel's
    fs/ntfs describes it.
    """
    with open(disk, 'r+b') as stream:
        start = place.start * SECTOR
        stream.seek(start)
        sector = stream.read(SECTOR)
        for field in (0x30, 0x38):
            (cluster,) = struct.unpack_from('<Q', sector, field)
            at = start + cluster * sector[13] * SECTOR + 3 * 1024
            stream.seek(at)
            record = _marked(stream.read(1024))
            stream.seek(at)
            stream.write(record)


def _marked(data: bytes) -> bytes:
    """The record of $Volume with the flag set."""
    record = bytearray(data)
    (attribute,) = struct.unpack_from('<H', record, 0x14)
    while struct.unpack_from('<I', record, attribute)[0] != 0x70:
        attribute += struct.unpack_from('<I', record, attribute + 4)[0]
    (value,) = struct.unpack_from('<H', record, attribute + 0x14)
    record[attribute + value + 10] |= 1
    return bytes(record)
