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


"""The OVF source: a descriptor beside its files, in a directory."""

from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Mapping
import contextlib
import dataclasses
import errno
import os
import stat

from xenimport import exceptions
from xenimport import model
from xenimport.source import base
from xenimport.source import manifest
from xenimport.source import ovf
from xenimport.source import ovf_xml
from xenimport.source import package as packages
from xenimport.source import parts
from xenimport.source import tarindex
from xenimport import stream as stream_room

_SUFFIX = '.ovf'
#: Enough of a file to see that it is a descriptor.
_HEAD = 4096
_DIRECTORY = os.O_RDONLY | os.O_CLOEXEC | os.O_DIRECTORY
#: A named pipe must not hang us, nor a link lead us outside.
_FILE = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOFOLLOW


class OvfSource(base.Source):
    """An OVF package that is not packed into a tar."""

    handles = 'OVF package as files (.ovf, or the directory it is in)'

    def probe(self, path: str) -> bool:
        if os.path.isdir(path):
            return bool(_descriptors(path))
        if path.lower().endswith(_SUFFIX):
            return True
        if not os.path.isfile(path):
            return False
        return _is_envelope(_head(path))

    def probe_stream(self, stream: stream_room.Stream) -> bool:
        return _is_envelope(stream.peek(_HEAD))

    def open_stream(
        self, stream: stream_room.Stream, request: base.Request = base.DEFAULT
    ) -> model.VirtualSystem:
        raise exceptions.PackageError(
            'package.not-forward',
            'A descriptor that comes in a stream comes without its disks',
            where=stream.where,
            expected='an .ova, which holds the disks as well',
            found='an OVF descriptor alone',
            fix='put the .ovf and its files into a directory, and give that',
        )

    def open(
        self, path: str, request: base.Request = base.DEFAULT
    ) -> model.VirtualSystem:
        folder, name = _split(path)
        contents = _Folder(folder, name)
        descriptor_region = contents.find(name)
        if descriptor_region is None:
            raise _unreadable(os.path.join(folder, name), errno.ENOENT)
        text = packages.read(folder, descriptor_region, ovf_xml.MAX_SIZE)
        if request.verify_manifest:
            contents.read_manifest(text)
        descriptor = ovf.parse(text, contents.where, request.system)
        disks = [
            (disk, packages.resolve(contents, file))
            for disk, file in packages.with_data(descriptor, contents.where)
        ]
        contents.find_all(descriptor)
        stem = os.path.splitext(name)[0]
        return packages.system(
            model.Package(path=path, format='ovf', members=contents.members),
            stem,
            descriptor,
            disks,
        )


def _head(path: str) -> bytes:
    try:
        with open(path, 'rb') as stream:
            return stream.read(_HEAD)
    except OSError as error:
        raise _unreadable(path, error.errno) from error


def _is_envelope(head: bytes) -> bool:
    text = head.lstrip(b'\xef\xbb\xbf \t\r\n')
    return text.startswith(b'<') and b'Envelope' in text


def _descriptors(path: str) -> list[str]:
    try:
        return sorted(
            name for name in os.listdir(path) if packages.is_descriptor(name)
        )
    except OSError as error:
        raise _unreadable(path, error.errno) from error


def _split(path: str) -> tuple[str, str]:
    """The package's directory and its descriptor's name.

    :raises xenimport.exceptions.PackageError: if there is not exactly one
    """
    if not os.path.isdir(path):
        return os.path.dirname(path) or '.', os.path.basename(path)
    names = _descriptors(path)
    if not names:
        raise packages.no_descriptor(path, 'a directory without one')
    if len(names) > 1:
        raise packages.several_descriptors(path, names)
    return path, names[0]


class _Folder:
    """The files of a directory, as far as the descriptor names them.

    :ivar members: what was found so far
    """

    def __init__(self, path: str, descriptor: str) -> None:
        self.where = os.path.join(path, descriptor)
        self.members: dict[str, model.Region] = {}
        self._path = path
        self._descriptor = descriptor
        self._manifest: manifest.Manifest | None = None
        self._parts: dict[str, dict[str, dict[int, str]]] = {}

    def find(self, name: str) -> model.Region | None:
        """The region of a file; None if there is none of that name.

        :raises xenimport.exceptions.PackageError: if it is not a regular
            file, or leads outside
        """
        if name in self.members:
            return self.members[name]
        size = self._size(name)
        if size is None:
            return None
        if len(self.members) >= tarindex.MAX_MEMBERS:
            raise exceptions.PackageError(
                'package.too-many-members',
                'The package has too many members',
                where=self.where,
                expected=f'at most {tarindex.MAX_MEMBERS}',
                fix='give the exported guest alone',
            )
        region = model.Region(
            path=os.path.join(self._path, name),
            name=name,
            pieces=(model.Piece(0, size, 0),),
            digests=self._manifest.of(name) if self._manifest else (),
        )
        self.members[name] = region
        return region

    def parts(self, name: str) -> Mapping[int, model.Region]:
        """The parts of a file, by their numbers."""
        folder, _slash, base_name = name.rpartition('/')
        if folder not in self._parts:
            self._parts[folder] = self._parts_in(folder)
        found: dict[int, model.Region] = {}
        for number, part in self._parts[folder].get(base_name, {}).items():
            region = self.find(f'{folder}/{part}' if folder else part)
            if region is not None:
                found[number] = region
        return found

    def listed(self) -> str:
        """Some of the names that the directory has."""
        names = sorted(self._names(''))
        return ', '.join(names[:10])

    def read_manifest(self, text: bytes) -> None:
        """Read the manifest, if there is one, and check the descriptor.

        :param text: the descriptor
        :raises xenimport.exceptions.PackageError: if it differs, or a file
            is missing that the manifest names
        """
        name = manifest.name_for(self._descriptor, self._names(''))
        region = None if name is None else self.find(name)
        if region is None:
            return
        content = packages.read(self._path, region, manifest.MAX_SIZE)
        stated = manifest.Manifest(
            content, os.path.join(self._path, region.name)
        )
        stated.check(self._descriptor, text)
        self._manifest = stated
        for member in self.members.values():
            self.members[member.name] = dataclasses.replace(
                member, digests=stated.of(member.name)
            )
        for stated_name in stated.names:
            for plain in packages.names(stated_name, region.name):
                self.find(plain)
        stated.check_complete(self.members)

    def find_all(self, descriptor: ovf.Descriptor) -> None:
        """Find every file that the descriptor refers to and that is there.

        An image of a CD, for example, may have been left out.
        """
        for file in descriptor.files:
            # Nor does it matter that such a one is said to be elsewhere.
            for name in packages.inside(file.href):
                self.find(name)

    # The file system

    @contextlib.contextmanager
    def _opened(self, folder: str) -> Iterator[int]:
        """A directory of the package, reached through no link."""
        descriptor = os.open(self._path, _DIRECTORY)
        try:
            for part in folder.split('/') if folder else ():
                inner = os.open(
                    part, _DIRECTORY | os.O_NOFOLLOW, dir_fd=descriptor
                )
                os.close(descriptor)
                descriptor = inner
            yield descriptor
        finally:
            os.close(descriptor)

    def _size(self, name: str) -> int | None:
        """Bytes in a regular file, None if there is none of that name."""
        folder, _slash, base_name = name.rpartition('/')
        try:
            with self._opened(folder) as directory:
                descriptor = os.open(base_name, _FILE, dir_fd=directory)
                try:
                    status = os.fstat(descriptor)
                finally:
                    os.close(descriptor)
        except OSError as error:
            # What is too long to be a name is that of no file.
            if error.errno in (errno.ENOENT, errno.ENAMETOOLONG):
                return None
            # A link, a link among its directories, or a socket.
            if error.errno in (errno.ELOOP, errno.ENOTDIR, errno.ENXIO):
                raise self._unsafe(name) from error
            raise _unreadable(
                os.path.join(self._path, name), error.errno
            ) from error
        except ValueError:
            return None
        if not stat.S_ISREG(status.st_mode):
            raise self._unsafe(name)
        return status.st_size

    def _names(self, folder: str) -> list[str]:
        try:
            with self._opened(folder) as directory:
                return os.listdir(directory)
        except (OSError, ValueError):
            return []

    def _parts_in(self, folder: str) -> dict[str, dict[int, str]]:
        """The names of parts in a directory, by whole name and number."""
        found: dict[str, dict[int, str]] = {}
        for name in self._names(folder):
            part = parts.part_of(name)
            if part is not None:
                found.setdefault(part[0], {})[part[1]] = name
        return found

    def _unsafe(self, name: str) -> exceptions.PackageError:
        return exceptions.PackageError(
            'package.unsafe-member',
            'A file of the package is not a regular file',
            where=os.path.join(self._path, name),
            expected='a regular file, reached through no link',
            found='a link, a directory, a pipe or a device',
            fix='put the file itself there, if you trust the package',
        )


def _unreadable(path: str, number: int | None) -> exceptions.PackageError:
    return exceptions.PackageError(
        'package.unreadable',
        'The package cannot be opened',
        where=path,
        found=os.strerror(number or 0),
        fix='check the path and the permissions',
    )
