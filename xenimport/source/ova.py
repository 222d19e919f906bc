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

"""The OVA source: an OVF package in a tar, read in place."""

from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Mapping
import os
import re
from urllib import parse

from xenimport import exceptions
from xenimport import model
from xenimport.source import base
from xenimport.source import manifest
from xenimport.source import ovf
from xenimport.source import tarindex


_XVA_DESCRIPTION = 'ova.xml'


class OvaSource(base.Source):
    """Exports of XenCenter, Xen Orchestra and other OVF writers."""

    handles = 'OVF package in a tar (.ova): XenCenter, Xen Orchestra'

    def probe(self, path: str) -> bool:
        # What is called .ova is claimed whatever it holds: opening it
        # then says what is wrong with it.
        if tarindex.is_tar(path):
            return True
        return path.lower().endswith('.ova')

    def open(self, path: str) -> model.VirtualSystem:
        # An XVA has a member for each mebibyte: not to be indexed here.
        if tarindex.first_name(path) == _XVA_DESCRIPTION:
            raise exceptions.PackageError(
                'package.xva',
                'The package is an XVA, which cannot be read yet',
                where=path,
                expected='an OVF package in a tar',
                found=f'a tar that starts with {_XVA_DESCRIPTION}',
                fix='export the guest as OVF/OVA',
            )
        members = tarindex.index(path)
        name = _descriptor_name(path, members)
        text = _read(path, members[name], ovf.MAX_SIZE)
        descriptor = ovf.parse(text, f'{path}: {name}')
        package = model.Package(
            path=path, format='ova', members=_regions(path, members, name)
        )
        disks = _disks(package, name, descriptor)
        if not disks:
            raise exceptions.PackageError(
                'package.no-disks',
                'The package has no disk with data',
                where=f'{path}: {name}',
                expected='at least one Disk with a file',
                fix='export the guest with its disks',
            )
        stem = os.path.splitext(os.path.basename(path))[0]
        return model.VirtualSystem(
            name=descriptor.name or stem,
            package=package,
            disks=disks,
            vcpus=descriptor.vcpus,
            memory=descriptor.memory,
            firmware=descriptor.firmware,
            nics=descriptor.nics,
            creator=descriptor.creator,
            settings=descriptor.settings,
            findings=(
                *descriptor.findings,
                *_manifest_findings(members, name),
            ),
        )


def _descriptor_name(path: str, members: Mapping[str, tarindex.Member]) -> str:
    names = [name for name in members if name.lower().endswith('.ovf')]
    if len(names) == 1:
        return names[0]
    listed = ', '.join(list(members)[:10]) or 'an empty archive'
    if not names:
        raise exceptions.PackageError(
            'package.no-ovf',
            'The package is a tar without an OVF descriptor',
            where=path,
            expected='one member whose name ends in .ovf',
            found=listed,
            fix='export the guest as OVF/OVA, with "create a single file"',
        )
    raise exceptions.PackageError(
        'package.several-ovf',
        'The package has several OVF descriptors',
        where=path,
        expected='one member whose name ends in .ovf',
        found=', '.join(names[:10]),
        fix='export one guest at a time',
    )


def _read(path: str, member: tarindex.Member, limit: int) -> bytes:
    """All of a small member.

    :param limit: the most bytes it may have
    """
    if member.size > limit:
        raise exceptions.PackageError(
            'package.member-too-large',
            'A text file of the package is too large',
            where=f'{path}: {member.name}',
            expected=f'at most {limit} bytes',
            found=f'{member.size} bytes',
            fix='export the guest again',
        )
    try:
        with open(path, 'rb') as stream:
            stream.seek(member.offset)
            return stream.read(member.size)
    except OSError as error:
        raise exceptions.PackageError(
            'package.unreadable',
            'The package cannot be read',
            where=f'{path}: {member.name}',
            found=os.strerror(error.errno or 0),
            fix='check the file and the disk it is on',
        ) from error


def _regions(
    path: str, members: Mapping[str, tarindex.Member], descriptor: str
) -> dict[str, model.Region]:
    """Every member's region, with the digests the manifest states."""
    digests: Mapping[str, tuple[model.Digest, ...]] = {}
    name = _manifest_name(descriptor)
    if name in members:
        text = _read(path, members[name], manifest.MAX_SIZE)
        digests = manifest.parse(text, f'{path}: {name}')
    folder = os.path.dirname(descriptor)
    return {
        member.name: model.Region(
            path=path,
            name=member.name,
            pieces=(model.Piece(member.offset, member.size, 0),),
            digests=digests.get(_relative(member.name, folder), ()),
        )
        for member in members.values()
    }


def _manifest_name(descriptor: str) -> str:
    return os.path.splitext(descriptor)[0] + '.mf'


def _manifest_findings(
    members: Mapping[str, tarindex.Member], descriptor: str
) -> Iterator[model.Finding]:
    name = _manifest_name(descriptor)
    if name in members:
        yield model.Finding(
            id='package.manifest-unchecked',
            severity=model.Severity.NOTE,
            title='The digests in the manifest are not compared yet',
            evidence=f'{name} states digests of the files in the package',
            fix='to be sure that the package was copied whole, unpack it '
            'and compare them with sha256sum or sha1sum',
            subject=name,
        )


def _relative(name: str, folder: str) -> str:
    """A member's name as the descriptor and the manifest call it."""
    if folder and name.startswith(folder + '/'):
        return name[len(folder) + 1 :]
    return name


def _disks(
    package: model.Package, descriptor_name: str, descriptor: ovf.Descriptor
) -> tuple[model.Disk, ...]:
    disks: list[model.Disk] = []
    for disk in descriptor.disks:
        if disk.file is not None:
            disks.append(
                model.Disk(
                    id=disk.id,
                    name=disk.name,
                    index=len(disks),
                    region=_find(package, descriptor_name, disk.file),
                    capacity=disk.capacity,
                )
            )
    return tuple(disks)


def _find(
    package: model.Package, descriptor_name: str, file: ovf.File
) -> model.Region:
    """The region of a referenced file.

    :raises xenimport.exceptions.PackageError: if its name leads outside,
        or the package does not hold it
    """
    where = f'{package.path}: {descriptor_name}'
    # A reference is a URI, so a blank may be written as %20.
    for href in (file.href, parse.unquote(file.href)):
        _check_reference(href, where)
        region = _member(package, descriptor_name, href, file)
        if region is not None:
            return _with_decoder(region, file, where)
    raise exceptions.PackageError(
        'package.missing-file',
        'The descriptor names a file that the package does not hold',
        where=where,
        expected=f'a member {file.href[:200]!r}',
        found=', '.join(list(package.members)[:10]),
        fix='copy the package again, or export it again',
    )


def _check_reference(href: str, where: str) -> None:
    if (
        not href
        or href.startswith(('/', '\\'))
        or '..' in re.split(r'[/\\]', href)
        or re.match(r'^[A-Za-z][A-Za-z0-9+.-]*:', href)
    ):
        raise exceptions.PackageError(
            'package.unsafe-reference',
            'The descriptor refers to a file outside the package',
            where=where,
            expected='the name of a member of the package',
            found=repr(href[:200]),
            fix='do not trust this package; or export the guest again with '
            'its disks inside',
        )


def _member(
    package: model.Package, descriptor_name: str, href: str, file: ovf.File
) -> model.Region | None:
    folder = os.path.dirname(descriptor_name)
    name = '/'.join(
        part for part in f'{folder}/{href}'.split('/') if part not in ('', '.')
    )
    region = package.members.get(name)
    if region is None and file.chunk_size:
        region = _joined_chunks(package, name)
    return region


def _joined_chunks(package: model.Package, name: str) -> model.Region | None:
    """The chunks ``name.000000000``, ``name.000000001``, ... as one."""
    pieces: list[model.Piece] = []
    position = 0
    while True:
        chunk = package.members.get(f'{name}.{len(pieces):09d}')
        if chunk is None:
            break
        piece = chunk.pieces[0]
        pieces.append(model.Piece(piece.offset, piece.length, position))
        position += piece.length
    if not pieces:
        return None
    return model.Region(package.path, name, tuple(pieces))


def _with_decoder(
    region: model.Region, file: ovf.File, where: str
) -> model.Region:
    compression = (file.compression or 'identity').lower()
    if compression == 'identity' and not region.name.endswith('.gz'):
        return region
    if compression not in ('identity', 'gzip'):
        raise exceptions.PackageError(
            'package.compression-unknown',
            'A file of the package is compressed in an unknown way',
            where=where,
            expected='gzip, or none',
            found=repr(compression[:80]),
            fix='export the guest without compression',
        )
    return model.Region(
        path=region.path,
        name=region.name,
        pieces=region.pieces,
        seekable=False,
        decoder='gzip',
        digests=region.digests,
    )
