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


"""The XVA source: what XenServer and XCP-ng export.

A tar whose first member describes the guest and whose others are the
chunks of its disks. In a plain file the chunks are read in place; from a
pipe or a compressed file the disks come one after the other.
"""

from __future__ import annotations

from collections.abc import Iterator
import os

from xenimport import exceptions
from xenimport import model
from xenimport.source import base
from xenimport.source import tarindex
from xenimport.source import xva_chunks
from xenimport.source import xva_description
from xenimport.source import xva_index
from xenimport.source import xva_stream
from xenimport import stream as stream_room

_DESCRIPTION = 'ova.xml'
#: Members of a package of any size: two a mebibyte make 8 TiB.
_MOST_MEMBERS = 1 << 24
#: Members of a plain file: there may be as many as these without any
#: data, and four for each mebibyte.
_FEW_MEMBERS = 20_000
_MIB = 1 << 20
#: Bytes in which the first member's header is: tar may put directories
#: and extended headers before it.
_HEAD = 16 * 1024


class XvaSource(base.Source):
    """Exports of XenServer, XCP-ng and Xen Orchestra."""

    handles = 'XVA (.xva): XenServer, XCP-ng, Xen Orchestra'

    def probe(self, path: str) -> bool:
        if os.path.isdir(path):
            return False
        if tarindex.is_tar(path):
            return _is_description(next(tarindex.walk(path), None))
        # What is called .xva is claimed whatever it holds: opening it
        # then says what is wrong with it.
        return path.lower().endswith('.xva')

    def open(
        self, path: str, request: base.Request = base.DEFAULT
    ) -> model.VirtualSystem:
        members = tarindex.walk(path, _limit(path))
        description = xva_description.parse(
            _read_in_place(path, next(members, None)),
            f'{path}: {_DESCRIPTION}',
            request,
        )
        pieces = xva_index.index(path, members, _disks(description, path))
        regions = {
            disk.id: model.Region(
                path=path,
                name=disk.id,
                pieces=pieces[disk.id],
                length=disk.size,
            )
            for disk in description.disks
        }
        return _system(description, model.Package(path, 'xva', regions))

    def probe_stream(self, stream: stream_room.Stream) -> bool:
        if not tarindex.starts_tar(stream):
            return False
        members = tarindex.arriving(_Peeked(stream))
        try:
            first, _ = next(members, (None, None))
        except exceptions.PackageError:
            return False
        return _is_description(first)

    def open_stream(
        self,
        stream: stream_room.Stream,
        request: base.Request = base.DEFAULT,
    ) -> model.VirtualSystem:
        where = stream.where
        members = tarindex.arriving(stream, _MOST_MEMBERS)
        first, content = next(members, (None, None))
        _check_first(where, first)
        text = content.take(first.size) if first and content else b''
        description = xva_description.parse(
            text, f'{where}: {_DESCRIPTION}', request
        )
        disks = _disks(description, where)
        regions = {
            disk.id: model.Region(
                path=where,
                name=disk.id,
                pieces=(),
                seekable=False,
                length=disk.size,
            )
            for disk in description.disks
        }
        arriving = xva_stream.Arriving(members, disks, where)
        return _system(
            description,
            model.Package(where, 'xva', regions, _arrivals(arriving, stream)),
        )


class _Peeked(stream_room.Stream):
    """The start of another stream, which stays in place."""

    def __init__(self, inner: stream_room.Stream) -> None:
        super().__init__(inner.where)
        self._ahead = inner.peek(_HEAD)

    def _read_into(self, buffer: memoryview) -> int:
        return 0


def _is_description(member: tarindex.Member | None) -> bool:
    return member is not None and member.name == _DESCRIPTION


def _arrivals(
    arriving: xva_stream.Arriving, stream: stream_room.Stream
) -> Iterator[tuple[str, stream_room.Stream]]:
    yield from arriving.disks()
    stream.finish()


def _limit(path: str) -> int:
    """The most members that a file of this size may have."""
    try:
        size = os.stat(path).st_size
    except OSError:
        # Opening it will fail as well, and say why.
        size = 0
    return min(_MOST_MEMBERS, _FEW_MEMBERS + 4 * (size // _MIB))


def _check_first(where: str, member: tarindex.Member | None) -> None:
    """Make sure that the first member is a description.

    :raises xenimport.exceptions.PackageError: if not, or it is too large
    """
    if not _is_description(member):
        raise exceptions.PackageError(
            'package.xva-description',
            'The XVA does not start with its description',
            where=where,
            expected=f'{_DESCRIPTION} as the first member',
            found=repr(member.name) if member else 'no member',
            fix='give the .xva file as it was exported',
        )
    if member and member.size > xva_description.MAX_SIZE:
        raise exceptions.PackageError(
            'package.member-too-large',
            'A text file of the package is too large',
            where=f'{where}: {_DESCRIPTION}',
            expected=f'at most {xva_description.MAX_SIZE} bytes',
            found=f'{member.size} bytes',
            fix='export the guest again',
        )


def _read_in_place(path: str, member: tarindex.Member | None) -> bytes:
    """All of the description."""
    _check_first(path, member)
    if member is None:
        return b''
    try:
        with open(path, 'rb') as file:
            file.seek(member.offset)
            return file.read(member.size)
    except OSError as error:
        raise exceptions.read_failed(
            f'{path}: {_DESCRIPTION}', error
        ) from error


def _disks(
    description: xva_description.Description, where: str
) -> xva_chunks.Disks:
    """What is looked for in the package.

    :raises xenimport.exceptions.PackageError: if there is no disk
    """
    if not description.disks:
        raise exceptions.PackageError(
            'package.no-disks',
            'The package has no disk with data',
            where=f'{where}: {_DESCRIPTION}',
            expected='at least one VBD of the type Disk',
            fix='export the guest with its disks',
        )
    return xva_chunks.Disks(
        {disk.id: disk.size for disk in description.disks}, description.vdis
    )


def _system(
    description: xva_description.Description, package: model.Package
) -> model.VirtualSystem:
    stem = os.path.splitext(os.path.basename(package.path))[0]
    return model.VirtualSystem(
        name=description.name or stem,
        package=package,
        disks=tuple(
            model.Disk(
                id=disk.id,
                name=disk.name,
                index=index,
                region=package.members[disk.id],
                capacity=disk.size,
                format='raw',
            )
            for index, disk in enumerate(description.disks)
        ),
        vcpus=description.vcpus,
        memory=description.memory,
        firmware=description.firmware,
        nics=description.nics,
        creator=description.creator,
        settings=description.settings,
        findings=description.findings,
    )
