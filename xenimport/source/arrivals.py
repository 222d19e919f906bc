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


"""An OVF package in a tar that comes once, forward.

The descriptor comes first (DMTF DSP0243, clause 5.3). The manifest may
follow it, or come last: then digests of everything are computed as it
passes, and compared when the manifest is there.
"""

from __future__ import annotations

from collections.abc import Iterator
import os

from xenimport import exceptions
from xenimport import model
from xenimport.source import base
from xenimport.source import manifest
from xenimport.source import ovf
from xenimport.source import ovf_disks
from xenimport.source import ovf_xml
from xenimport.source import package as packages
from xenimport.source import parts
from xenimport.source import tarindex
from xenimport import stream as stream_room
from xenimport import stream_decoders

_CERTIFICATE = '.cert'
_MANIFEST = '.mf'
#: Bytes that may follow the archive's last member.
_PADDING = 64 << 20


def open_stream(
    stream: stream_room.Stream, request: base.Request
) -> model.VirtualSystem:
    """Read a package up to its first disk.

    :raises xenimport.exceptions.PackageError: if it is damaged, hostile,
        or not in the order that one forward pass needs
    """
    passing = _Passing(stream, request.verify_manifest)
    name, text = passing.take_descriptor()
    passing.take_manifest()
    where = f'{stream.where}: {name}'
    descriptor = ovf.parse(text, where, request.system)
    expected = _Expected(where, os.path.dirname(name))
    disks = []
    for disk, file in packages.with_data(descriptor, where):
        region = expected.add(file, stream.where)
        disks.append((disk, region))
    package = model.Package(
        path=stream.where,
        format='ova',
        members={region.name: region for _disk, region in disks},
        arrivals=_arrivals(stream, passing, expected),
    )
    return packages.system(package, _stem(stream.where), descriptor, disks)


def _stem(where: str) -> str:
    name = where.rstrip('/').rpartition('/')[2]
    for suffix in ('.gz', '.zst', '.ova'):
        if name.lower().endswith(suffix):
            name = name[: -len(suffix)]
    return name


def _is_beside(name: str) -> bool:
    """Whether a member may stand anywhere: a certificate, or macOS' own."""
    base_name = name.rpartition('/')[2].lower()
    return base_name.endswith(_CERTIFICATE) or base_name.startswith('._')


class _Wanted:
    """A disk's file that is to come.

    :ivar region: as the disk knows it
    """

    def __init__(
        self, region: model.Region, file: ovf_disks.File, where: str
    ) -> None:
        self.region = region
        self.file = file
        self.gzip = packages.is_gzip(file, where)
        self.arrived = False


class _Expected:
    """The disks' files, by the names under which they may come."""

    def __init__(self, where: str, folder: str) -> None:
        self.where = where
        self._prefix = f'{folder}/' if folder else ''
        self._whole: dict[str, _Wanted] = {}
        self._cut: dict[str, _Wanted] = {}

    def add(self, file: ovf_disks.File, path: str) -> model.Region:
        """Expect a disk's file; its region, which has no bytes yet."""
        names = [
            self._prefix + name
            for name in packages.names(file.href, self.where)
        ]
        if any(name in self._whole for name in names):
            raise not_forward(
                self.where,
                'each file for one disk',
                f'several disks with the file {file.href[:200]!r}',
            )
        region = model.Region(path, names[-1], (), seekable=False)
        wanted = _Wanted(region, file, self.where)
        for name in names:
            self._whole[name] = wanted
            if file.chunk_size:
                self._cut[name] = wanted
        return region

    def whole(self, name: str) -> _Wanted | None:
        """The file that a member is."""
        return self._whole.get(name)

    def cut(self, name: str) -> tuple[_Wanted, int] | None:
        """The file that a member is a part of, and the part's number."""
        part = parts.part_of(name)
        if part is None or part[0] not in self._cut:
            return None
        return self._cut[part[0]], part[1]

    def check_arrived(self) -> None:
        """Make sure that no disk is missing.

        :raises xenimport.exceptions.PackageError: if one is
        """
        for wanted in self._whole.values():
            if not wanted.arrived:
                raise packages.missing_file(
                    self.where, wanted.file, 'the end of the package'
                )


class _Passing:
    """The members of the archive, with digests computed as they pass."""

    def __init__(self, stream: stream_room.Stream, verify: bool) -> None:
        self._where = stream.where
        self._members = tarindex.arriving(stream)
        self._next: tuple[tarindex.Member, stream_room.Stream] | None = None
        self._verify = verify
        self._folder = ''
        self._manifest_name = ''
        self._manifest: manifest.Manifest | None = None
        #: Of every member so far, what was computed of it.
        self._found: dict[str, tuple[model.Digest, ...]] = {}

    def peek(self) -> tuple[tarindex.Member, stream_room.Stream] | None:
        """The next member, left in place; None at the archive's end."""
        if self._next is None:
            self._next = next(self._members, None)
            if self._next and self._next[0].name in self._found:
                raise tarindex.duplicate(self._where, self._next[0].name)
        return self._next

    def take(self) -> tuple[tarindex.Member, stream_room.Stream] | None:
        """The next member; its digests are checked by :meth:`finish`."""
        found = self.peek()
        self._next = None
        if found is None:
            return None
        member, stream = found
        self._found[member.name] = ()
        if not self._verify:
            return member, stream
        if self._manifest is not None:
            stated = self._manifest.of(self._relative(member.name))
            return member, stream_room.Digested(stream, stated)
        return member, stream_room.Digested(
            stream, algorithms=manifest.ALGORITHMS
        )

    def finish(self, name: str, stream: stream_room.Stream) -> None:
        """Take the rest of a member, and check it.

        :raises xenimport.exceptions.PackageError: if its digest differs
        """
        stream.finish()
        if isinstance(stream, stream_room.Digested):
            self._found[name] = stream.digests()

    def take_descriptor(self) -> tuple[str, bytes]:
        """The descriptor's name and text.

        :raises xenimport.exceptions.PackageError: if it does not come
            before everything but small files
        """
        early: dict[str, bytes] = {}
        while found := self.take():
            member, stream = found
            name = member.name
            if packages.is_descriptor(name):
                text = self._text(member, stream, ovf_xml.MAX_SIZE)
                self._folder = os.path.dirname(name)
                self._manifest_name = name.rpartition('.')[0] + _MANIFEST
                for other, content in early.items():
                    if self.is_manifest(other):
                        self._read_manifest(other, content)
                return name, text
            if _is_beside(name):
                pass
            elif name.lower().endswith(_MANIFEST) and not early:
                early[name] = self._text(member, stream, manifest.MAX_SIZE)
            else:
                raise not_forward(
                    self._where,
                    'the OVF descriptor as its first member',
                    f'{name[:200]!r} before it',
                )
            self.finish(name, stream)
        raise packages.no_descriptor(
            self._where, ', '.join(self._found) or 'an empty archive'
        )

    def take_manifest(self) -> None:
        """Read the manifest, where it comes before the disks."""
        while found := self.peek():
            member, stream = found
            if self.is_manifest(member.name):
                self._next = None
                self.read_manifest(member, stream)
            elif _is_beside(member.name):
                self.take()
            else:
                return

    def is_manifest(self, name: str) -> bool:
        """Whether a member is the descriptor's manifest."""
        return name.lower() == self._manifest_name.lower()

    def read_manifest(
        self, member: tarindex.Member, stream: stream_room.Stream
    ) -> None:
        """Take in the manifest, and check what has passed before it.

        :raises xenimport.exceptions.PackageError: if something differs,
            or it is not understood
        """
        self._found.setdefault(member.name, ())
        self._read_manifest(
            member.name, self._text(member, stream, manifest.MAX_SIZE)
        )

    def _read_manifest(self, name: str, content: bytes) -> None:
        if not self._verify:
            return
        where = f'{self._where}: {name}'
        self._manifest = manifest.Manifest(content, where)
        for member, digests in self._found.items():
            stream_room.compare_digests(
                f'{self._where}: {member}',
                self._manifest.of(self._relative(member)),
                digests,
            )

    def check_complete(self) -> None:
        """Make sure that all has come that the manifest names.

        :raises xenimport.exceptions.PackageError: if something has not
        """
        if self._manifest is not None:
            self._manifest.check_complete(
                frozenset(self._relative(name) for name in self._found)
            )

    def _text(
        self,
        member: tarindex.Member,
        stream: stream_room.Stream,
        limit: int,
    ) -> bytes:
        packages.check_size(stream.where, member.size, limit)
        text = stream.take(member.size)
        self.finish(member.name, stream)
        return text

    def _relative(self, name: str) -> str:
        if not self._folder:
            return name
        return name.removeprefix(f'{self._folder}/')


class _Joined(stream_room.Stream):
    """The parts of a file, which come one after the other."""

    def __init__(
        self,
        passing: _Passing,
        expected: _Expected,
        wanted: _Wanted,
        first: tuple[tarindex.Member, stream_room.Stream],
    ) -> None:
        super().__init__(f'{expected.where}: {wanted.region.name}')
        self.size = wanted.file.size
        self._passing = passing
        self._expected = expected
        self._wanted = wanted
        self._number = 0
        self._sizes = parts.PartSizes(
            wanted.region.name, wanted.file, expected.where
        )
        self._part: tuple[tarindex.Member, stream_room.Stream] | None = first
        self._sizes.add(first[0].size)

    def _read_into(self, buffer: memoryview) -> int:
        while self._part is not None:
            count = self._part[1].read_into(buffer)
            if count:
                return count
            self._passing.finish(self._part[0].name, self._part[1])
            self._part = self._following()
        return 0

    def _following(self) -> tuple[tarindex.Member, stream_room.Stream] | None:
        """The next part, None if there are no more.

        :raises xenimport.exceptions.PackageError: if one is missing
        """
        following = self._passing.peek()
        part = following and self._expected.cut(following[0].name)
        if part is None or part[0] is not self._wanted:
            self._sizes.finish()
            return None
        self._number += 1
        if part[1] != self._number:
            raise self._sizes.missing(self._number)
        found = self._passing.take()
        if found is not None:
            self._sizes.add(found[0].size)
        return found


def _arrivals(
    stream: stream_room.Stream, passing: _Passing, expected: _Expected
) -> Iterator[tuple[str, stream_room.Stream]]:
    """Yield every member after the descriptor, decoded and checked."""
    while following := passing.peek():
        if passing.is_manifest(following[0].name):
            passing.take_manifest()
            continue
        found = passing.take()
        if found is None:
            break
        member, raw = found
        name = member.name
        if packages.is_descriptor(name):
            raise packages.several_descriptors(
                stream.where, [expected.where, name]
            )
        wanted = expected.whole(name)
        part = expected.cut(name) if wanted is None else None
        if part is not None:
            wanted = part[0]
            if part[1] or wanted.arrived:
                raise parts.PartSizes(
                    wanted.region.name, wanted.file, expected.where
                ).missing(0)
            raw = _Joined(passing, expected, wanted, found)
        decoded = raw
        if wanted is not None:
            name = wanted.region.name
            wanted.arrived = True
            if wanted.gzip:
                decoded = stream_decoders.decoded(raw)
        yield name, decoded
        # What nobody has read is not decoded only to be thrown away.
        if decoded is not raw and decoded.position:
            decoded.finish()
        passing.finish(member.name, raw)
    passing.check_complete()
    expected.check_arrived()
    if stream.skip(_PADDING) == _PADDING:
        raise exceptions.PackageError(
            'package.excess-data',
            'Far more data follows the package than belongs to it',
            where=stream.where,
            expected=f'at most {_PADDING} bytes after the last member',
            found='more',
            fix='export the guest again; do not trust this package',
        )


def not_forward(
    where: str, expected: str, found: str
) -> exceptions.PackageError:
    """The error of a package that must be read at any place."""
    return exceptions.PackageError(
        'package.not-forward',
        'The package cannot be read in one forward pass',
        where=where,
        expected=expected,
        found=found,
        fix='save the package as a file, decompress it if it is compressed, '
        'and give that file',
    )
