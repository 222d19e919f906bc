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


"""What the forms of an OVF package share: files, parts and disks."""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import re
import typing
from urllib import parse

from xenimport import exceptions
from xenimport import model
from xenimport.source import ovf
from xenimport.source import ovf_disks
from xenimport.source import parts


class Contents(typing.Protocol):
    """The files of a package that can be read at any place.

    :ivar where: the package and its descriptor, for errors
    """

    where: str

    def find(self, name: str) -> model.Region | None:
        """The region of a file, by its name beside the descriptor."""

    def parts(self, name: str) -> Mapping[int, model.Region]:
        """The parts that there are of a file, by their numbers."""

    def listed(self) -> str:
        """Some of the names that there are, for an error."""


def names(href: str, where: str) -> list[str]:
    """The names that a reference may mean, the likeliest first.

    :param where: the descriptor, for errors
    :raises xenimport.exceptions.PackageError: if it leads outside
    """
    found = inside(href)
    if not found:
        raise exceptions.PackageError(
            'package.unsafe-reference',
            'The descriptor refers to a file outside the package',
            where=where,
            expected='the name of a member of the package',
            found=repr(href[:200]),
            fix='do not trust this package; or export the guest again '
            'with its disks inside',
        )
    return found


def inside(href: str) -> list[str]:
    """The same, none at all for a reference that leads outside."""
    found: list[str] = []
    # A reference is a URI, so a blank may be written as %20.
    for name in (href, parse.unquote(href)):
        parts = name.split('/')
        if (
            name.startswith('/')
            or '\\' in name
            or '\0' in name
            or '..' in parts
            or re.match(r'^[A-Za-z][A-Za-z0-9+.-]*:', name)
            or not name.strip('./')
        ):
            return []
        plain = '/'.join(part for part in parts if part not in ('', '.'))
        if plain not in found:
            found.append(plain)
    return found


def resolve(contents: Contents, file: ovf_disks.File) -> model.Region:
    """The region of a disk's file.

    :raises xenimport.exceptions.PackageError: if its name leads outside,
        or the package does not hold it
    """
    for name in names(file.href, contents.where):
        region = None
        if file.chunk_size:
            found = contents.parts(name)
            region = parts.joined(name, found, file, contents.where)
        if region is None:
            region = contents.find(name)
        if region is not None:
            return with_decoder(region, file, contents.where)
    raise missing_file(contents.where, file, contents.listed())


def missing_file(
    where: str, file: ovf_disks.File, found: str
) -> exceptions.PackageError:
    """The error of a file that the package does not hold."""
    return exceptions.PackageError(
        'package.missing-file',
        'The descriptor names a file that the package does not hold',
        where=where,
        expected=f'a member {file.href[:200]!r}',
        found=found,
        fix='copy the package again, or export it again',
    )


def is_gzip(file: ovf_disks.File, where: str) -> bool:
    """Whether a file is compressed, by the descriptor or its name.

    :raises xenimport.exceptions.PackageError: if it is in another way
    """
    compression = (file.compression or 'identity').lower()
    if compression not in ('identity', 'gzip'):
        raise exceptions.PackageError(
            'package.compression-unknown',
            'A file of the package is compressed in an unknown way',
            where=where,
            expected='gzip, or none',
            found=repr(compression[:80]),
            fix='export the guest without compression',
        )
    return compression == 'gzip' or file.href.lower().endswith('.gz')


def with_decoder(
    region: model.Region, file: ovf_disks.File, where: str
) -> model.Region:
    """The region, marked if it is compressed.

    :raises xenimport.exceptions.PackageError: if it is in an unknown way
    """
    if not is_gzip(file, where):
        return region
    return dataclasses.replace(region, seekable=False, decoder='gzip')


def read(path: str, region: model.Region, limit: int) -> bytes:
    """All of a small file.

    :param path: of the package, for errors
    :param limit: the most bytes that it may have
    :raises xenimport.exceptions.PackageError: if it has more, or cannot
        be read
    """
    where = f'{path}: {region.name}'
    check_size(where, region.size, limit)
    piece = region.pieces[0]
    try:
        with open(region.path, 'rb') as stream:
            stream.seek(piece.offset)
            return stream.read(piece.length)
    except OSError as error:
        raise exceptions.read_failed(where, error) from error


def check_size(where: str, size: int, limit: int) -> None:
    """Make sure that a text file may be read as a whole.

    :raises xenimport.exceptions.PackageError: if it is too large
    """
    if size > limit:
        raise exceptions.PackageError(
            'package.member-too-large',
            'A text file of the package is too large',
            where=where,
            expected=f'at most {limit} bytes',
            found=f'{size} bytes',
            fix='export the guest again',
        )


def several_descriptors(
    where: str, found: Sequence[str]
) -> exceptions.PackageError:
    """The error of a package with more than one descriptor."""
    return exceptions.PackageError(
        'package.several-ovf',
        'The package has several OVF descriptors',
        where=where,
        expected='one member whose name ends in .ovf',
        found=', '.join(found[:10]),
        fix='export one guest at a time',
    )


def no_descriptor(where: str, found: str) -> exceptions.PackageError:
    """The error of a package without a descriptor."""
    return exceptions.PackageError(
        'package.no-ovf',
        'The package has no OVF descriptor',
        where=where,
        expected='one member whose name ends in .ovf',
        found=found,
        fix='export the guest as OVF/OVA, with "create a single file"',
    )


def is_descriptor(name: str) -> bool:
    """Whether a member's name is that of a descriptor.

    What macOS puts beside a file (``._guest.ovf``) is none.
    """
    base = name.rpartition('/')[2]
    return base.lower().endswith('.ovf') and not base.startswith('._')


def with_data(
    descriptor: ovf.Descriptor, where: str
) -> Iterator[tuple[ovf_disks.VirtualDisk, ovf_disks.File]]:
    """The disks that have a file, in boot order.

    :raises xenimport.exceptions.PackageError: if there are none
    """
    found = False
    for disk in descriptor.disks:
        if disk.file is not None:
            found = True
            yield disk, disk.file
    if not found:
        raise exceptions.PackageError(
            'package.no-disks',
            'The package has no disk with data',
            where=where,
            expected='at least one Disk with a file',
            fix='export the guest with its disks',
        )


def system(
    package: model.Package,
    stem: str,
    descriptor: ovf.Descriptor,
    disks: Iterable[tuple[ovf_disks.VirtualDisk, model.Region]],
) -> model.VirtualSystem:
    """The virtual system of a package.

    :param stem: its name where the descriptor has none
    :param disks: with their regions, in boot order
    """
    return model.VirtualSystem(
        name=descriptor.name or stem,
        package=package,
        disks=tuple(
            model.Disk(
                id=disk.id,
                name=disk.name,
                index=index,
                region=region,
                capacity=disk.capacity,
            )
            for index, (disk, region) in enumerate(disks)
        ),
        vcpus=descriptor.vcpus,
        memory=descriptor.memory,
        firmware=descriptor.firmware,
        nics=descriptor.nics,
        creator=descriptor.creator,
        settings=descriptor.settings,
        findings=descriptor.findings,
    )
