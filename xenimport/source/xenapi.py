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

"""Images of OpenStack clouds on XenServer: a tar of numbered VHDs.

Nova's XenAPI driver packed the chain of a disk as ``0.vhd``, the newest,
to ``n.vhd``, the base; before that as ``snap.vhd``, ``image.vhd`` and
``base.vhd``. Nothing else describes the guest. The tar, which usually is
compressed with gzip, has its members in any order.
"""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Mapping
import itertools
import os
import re

from xenimport import exceptions
from xenimport import model
from xenimport.source import base
from xenimport.source import tarindex
from xenimport import stream as stream_room
from xenimport import stream_files

#: Members that are looked at; such an archive has few.
_MAX_LOOKS = 100
#: Bytes of a stream that are looked at.
_AHEAD = 64 * 1024
_SUFFIX = '.vhd'
_NUMBERED = re.compile(r'(0|[1-9][0-9]{0,3})\.vhd')
#: Before the numbers: the newest first.
_NAMED = ('snap.vhd', 'image.vhd', 'base.vhd')
#: A swap disk that old versions packed as well; it is made anew.
_SWAP = 'swap.vhd'
#: Of a footer, whose copy stands at the start of the other two kinds.
_FOOTER = 512
_COOKIE = b'conectix'
_DYNAMIC = b'\0\0\0\x03'
#: The rank of a name that Nova gives no disk.
_OTHER = 10_000
_DESCRIPTION = 'ova.xml'
_ENDINGS = re.compile(r'(\.vhd)?(\.tgz|\.gz|\.tar|\.tar\.gz|\.ova)?$', re.I)


class XenapiSource(base.Source):
    """The images of clouds that ran on XenServer."""

    handles = 'image of an OpenStack cloud on XenServer: tar of 0.vhd, ...'

    def probe(self, path: str) -> bool:
        if not tarindex.is_tar(path):
            return False
        try:
            members = itertools.islice(tarindex.walk(path), _MAX_LOOKS)
            return _is_image(member.name for member in members)
        except exceptions.PackageError:
            # A damaged tar is for whoever reads any tar to refuse.
            return False

    def open(
        self, path: str, request: base.Request = base.DEFAULT
    ) -> model.VirtualSystem:
        members = tarindex.index(path)
        newest = _newest([name for name in members if _is_disk(name)], path)
        _check_chain(
            {
                name: _starts_whole(_head(path, members[name]))
                for name in members
                if _is_disk(name)
            },
            path,
        )
        regions = {
            member.name: model.Region(
                path,
                member.name,
                (model.Piece(member.offset, member.size, 0),),
            )
            for member in members.values()
        }
        package = model.Package(path, 'xenapi', regions)
        return _system(package, regions[newest])

    def probe_stream(self, stream: stream_room.Stream) -> bool:
        return tarindex.starts_tar(stream) and _is_image(_names_ahead(stream))

    def open_stream(
        self, stream: stream_room.Stream, request: base.Request = base.DEFAULT
    ) -> model.VirtualSystem:
        where = stream.where
        names = [name for name in _names_ahead(stream) if _is_disk(name)]
        if not names:
            raise _bad_sequence(where, names)
        newest = min(names, key=_rank)
        folder, _, name = newest.rpartition('/')
        if name not in _NAMED:
            newest = f'{folder}/0.vhd' if folder else '0.vhd'
        region = model.Region(where, newest, (), seekable=False)
        package = model.Package(
            where, 'xenapi', {newest: region}, _arrivals(stream, newest)
        )
        return _system(package, region)


def _arrivals(
    stream: stream_room.Stream, newest: str
) -> Iterator[tuple[str, stream_room.Stream]]:
    """Yield the VHDs; they must be a sequence that starts with ``newest``.

    :raises xenimport.exceptions.PackageError: if they are not
    """
    seen: dict[str, bool] = {}
    for member, content in tarindex.arriving(stream):
        if _is_description(member.name):
            raise _bad_order(stream.where, member.name)
        if not _is_disk(member.name):
            continue
        if member.name in seen:
            raise tarindex.duplicate(stream.where, member.name)
        seen[member.name] = _starts_whole(content.peek(_FOOTER))
        if _rank(member.name) < _rank(newest):
            raise _bad_order(stream.where, member.name)
        yield member.name, content
    _newest(list(seen), stream.where)
    _check_chain(seen, stream.where)
    stream.finish()


def _names_ahead(stream: stream_room.Stream) -> Iterator[str]:
    """The names of the first members, as far as they can be seen."""
    ahead = _Ahead(stream.where, stream.peek(_AHEAD))
    try:
        for member, _ in tarindex.arriving(ahead):
            yield member.name
    except exceptions.PackageError:
        # It ends in the midst of a member, as it was cut.
        return


class _Ahead(stream_room.Stream):
    """The start of a stream."""

    def __init__(self, where: str, data: bytes) -> None:
        super().__init__(where)
        self._left = data

    def _read_into(self, buffer: memoryview) -> int:
        part = self._left[: len(buffer)]
        self._left = self._left[len(part) :]
        buffer[: len(part)] = part
        return len(part)


def _is_image(names: Iterable[str]) -> bool:
    """Whether all VHDs are named as Nova does, and nothing describes them."""
    disks = 0
    for name in names:
        if _is_description(name):
            return False
        if _is_disk(name):
            if _rank(name) == _OTHER:
                return False
            disks += 1
    return disks > 0


def _is_description(name: str) -> bool:
    return name.lower().endswith('.ovf') or name == _DESCRIPTION


def _is_disk(name: str) -> bool:
    base_name = name.rpartition('/')[2]
    return base_name.lower().endswith(_SUFFIX) and base_name != _SWAP


def _rank(name: str) -> int:
    """A disk's place in the chain by its name: 0 for the newest."""
    base_name = name.rpartition('/')[2]
    if base_name in _NAMED:
        return _NAMED.index(base_name)
    match = _NUMBERED.fullmatch(base_name)
    return int(match[1]) if match else _OTHER


def _newest(names: list[str], where: str) -> str:
    """The disk itself, the others being its chain.

    :raises xenimport.exceptions.PackageError: if they are no sequence
    """
    ordered = sorted(names, key=_rank)
    folders = {name.rpartition('/')[0] for name in names}
    plain = [name.rpartition('/')[2] for name in ordered]
    numbered = [f'{number}.vhd' for number in range(len(names))]
    named = [name for name in _NAMED if name in plain]
    if len(folders) != 1 or plain not in (numbered, named):
        raise _bad_sequence(where, names)
    return ordered[0]


def _starts_whole(head: bytes) -> bool:
    """Whether a disk is dynamic by its start: it can have no parent."""
    return head.startswith(_COOKIE) and head[60:64] == _DYNAMIC


def _head(path: str, member: tarindex.Member) -> bytes:
    """The first bytes of a member."""
    region = model.Region(
        path, member.name, (model.Piece(member.offset, member.size, 0),)
    )
    stream = stream_files.RegionStream(region)
    try:
        return stream.peek(_FOOTER)
    finally:
        stream.close()


def _check_chain(whole: Mapping[str, bool], where: str) -> None:
    """Only the base may be a whole disk: what is below one is not used.

    :param whole: for each disk whether it is one
    :raises xenimport.exceptions.PackageError: if another is
    """
    ordered = sorted(whole, key=_rank)
    for name, below in itertools.pairwise(ordered):
        if whole[name]:
            raise exceptions.PackageError(
                'package.vhd-sequence',
                'The VHDs of the image do not belong together',
                where=where,
                expected=f'{name} to hold the differences to {below}',
                found=f'{name} is a whole disk',
                fix='give the VHDs as bare files, each disk by itself',
            )


def _bad_sequence(where: str, names: list[str]) -> exceptions.PackageError:
    return exceptions.PackageError(
        'package.vhd-sequence',
        'The VHDs of the image are not numbered one after the other',
        where=where,
        expected='0.vhd, 1.vhd and so on in one directory; or some of '
        + ', '.join(_NAMED),
        found=', '.join(sorted(names)[:10]) or 'no VHD at the start',
        fix='download the image again; or give the VHDs of one disk as '
        'bare files',
    )


def _bad_order(where: str, name: str) -> exceptions.PackageError:
    return exceptions.PackageError(
        'package.vhd-order',
        'A member of the image comes too late to be taken into account',
        where=where,
        expected='the newest disk before its parents',
        found=repr(name),
        fix='decompress the package, and give the tar file',
    )


def _system(
    package: model.Package, region: model.Region
) -> model.VirtualSystem:
    name = os.path.basename(package.path)
    stem = _ENDINGS.sub('', name) or name
    return model.VirtualSystem(
        name=stem,
        package=package,
        disks=(model.Disk(stem, stem, 0, region, format='vhd'),),
    )
