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


"""The disk source: bare disk files, without any description."""

from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Sequence
import os
import stat
from urllib import parse

from xenimport import exceptions
from xenimport import model
from xenimport.source import base
from xenimport.source import tarheader
from xenimport.source import tarindex
from xenimport import stream as stream_room
from xenimport import stream_packages

_VHD_COOKIE = b'conectix'
_DISK_SUFFIXES = (
    '.vhd',
    '.vhdx',
    '.vmdk',
    '.qcow2',
    '.vdi',
    '.raw',
    '.img',
)
_COMPRESSED = ('.gz', '.zst')
#: Enough of the file's start for every signature below.
_HEAD = 128 * 1024
#: Signatures of disks: (offset, bytes).
_CONTENTS = (
    (0, _VHD_COOKIE),
    (0, b'vhdxfile'),
    (0, b'KDMV'),  # VMDK
    (0, b'COWD'),  # VMDK of old ESX hosts
    (0, b'# Disk DescriptorFile'),  # VMDK, the text
    (0, b'QFI\xfb'),  # qcow2
    (64, b'\x7f\x10\xda\xbe'),  # VDI
    # What stands on a RAW disk, or on a partition without a table.
    (510, b'\x55\xaa'),  # a boot sector or a partition table
    (1080, b'\x53\xef'),  # ext2, ext3, ext4
    (0, b'XFSB'),
    (65600, b'_BHRfS_M'),  # btrfs
    (0, b'LABELONE'),  # LVM2, in one of the first four sectors
    (512, b'LABELONE'),
    (1024, b'LABELONE'),
    (1536, b'LABELONE'),
    (4086, b'SWAPSPACE2'),
)
#: Where a stream says that it comes from, when it has no name.
_STANDARD_INPUT = 'standard input'
#: The name of a disk that comes without one.
_UNNAMED = 'disk'


class DiskSource(base.Source):
    """Disks that were exported by themselves."""

    handles = 'bare disk files (.vhd, .vhdx, .vmdk, .qcow2, .vdi, .raw, .img)'

    def probe(self, path: str) -> bool:
        if os.path.isdir(path) or tarindex.is_tar(path):
            return False
        head, tail = _ends(path)
        if _VHD_COOKIE in (tail[:8], tail[1:9]):
            return True
        # A data disk may hold anything, so here the name must decide.
        return _is_known(head) or path.lower().endswith(_DISK_SUFFIXES)

    def open(
        self, path: str, request: base.Request = base.DEFAULT
    ) -> model.VirtualSystem:
        return self.open_several([path], request)

    def open_several(
        self, paths: Sequence[str], request: base.Request = base.DEFAULT
    ) -> model.VirtualSystem:
        """The disks of one guest, in boot order."""
        names = _names(paths)
        if len(paths) > 1:
            for path in paths:
                if not self.probe(path):
                    raise _not_a_disk(path)
        regions = [
            model.Region(path, name, (model.Piece(0, _filled(path), 0),))
            for path, name in zip(paths, names, strict=True)
        ]
        package = model.Package(
            paths[0], 'disk', {region.name: region for region in regions}
        )
        return _system(package, regions)

    def probe_stream(self, stream: stream_room.Stream) -> bool:
        if tarindex.starts_tar(stream):
            return False
        if _arriving_name(stream.where).lower().endswith(_DISK_SUFFIXES):
            return True
        return _is_known(stream.peek(_HEAD))

    def open_stream(
        self, stream: stream_room.Stream, request: base.Request = base.DEFAULT
    ) -> model.VirtualSystem:
        if not stream.peek(1):
            raise _empty(stream.where)
        region = model.Region(
            stream.where,
            _arriving_name(stream.where),
            (),
            seekable=False,
            length=stream.size,
        )
        package = model.Package(
            stream.where,
            'disk',
            {region.name: region},
            _arrivals(region.name, stream),
        )
        return _system(package, [region])


def _arrivals(
    name: str, stream: stream_room.Stream
) -> Iterator[tuple[str, stream_room.Stream]]:
    yield name, stream
    stream.finish()


def _system(
    package: model.Package, regions: Sequence[model.Region]
) -> model.VirtualSystem:
    stems = [_stem(region.name) for region in regions]
    return model.VirtualSystem(
        name=stems[0],
        package=package,
        disks=tuple(
            model.Disk(
                stem if stems.count(stem) == 1 else region.name,
                stem,
                index,
                region,
            )
            for index, (stem, region) in enumerate(
                zip(stems, regions, strict=True)
            )
        ),
    )


def _stem(name: str) -> str:
    base_name = os.path.basename(name)
    return os.path.splitext(base_name)[0] or base_name


def _names(paths: Sequence[str]) -> list[str]:
    """What the disks are called in the package: their files' names.

    :raises xenimport.exceptions.PackageError: if a file is given twice
    """
    found: set[tuple[int, int]] = set()
    for path in paths:
        status = _status(path)
        identity = (status.st_dev, status.st_ino)
        if identity in found:
            raise exceptions.PackageError(
                'package.duplicate-member',
                'The same disk is given twice',
                where=path,
                expected='each disk of the guest once',
                fix='name each file once, the disk to boot from first',
            )
        found.add(identity)
    names = [os.path.basename(path) for path in paths]
    return [
        path if names.count(name) > 1 else name
        for path, name in zip(paths, names, strict=True)
    ]


def _arriving_name(where: str) -> str:
    """The name of a disk that comes in a stream, without ``.gz``."""
    if where == _STANDARD_INPUT:
        return _UNNAMED
    if stream_packages.is_url(where):
        where = parse.unquote(parse.urlsplit(where).path)
    name = os.path.basename(where)
    for suffix in _COMPRESSED:
        name = name[: -len(suffix)] if name.endswith(suffix) else name
    return name or _UNNAMED


def _is_known(head: bytes) -> bool:
    return any(
        head[offset : offset + len(mark)] == mark for offset, mark in _CONTENTS
    )


def _status(path: str) -> os.stat_result:
    try:
        status = os.stat(path)
    except OSError as error:
        raise _unreadable(path, os.strerror(error.errno or 0)) from error
    if not stat.S_ISREG(status.st_mode):
        raise _unreadable(path, 'not a regular file')
    return status


def _filled(path: str) -> int:
    """The size of a disk's file.

    :raises xenimport.exceptions.PackageError: if it is empty
    """
    size = _status(path).st_size
    if size == 0:
        raise _empty(path)
    return size


def _ends(path: str) -> tuple[bytes, bytes]:
    """The first 128 KiB and the last 512 bytes of a file."""
    size = _status(path).st_size
    try:
        with open(path, 'rb') as stream:
            head = stream.read(_HEAD)
            stream.seek(max(0, size - 512))
            return head, stream.read(512)
    except OSError as error:
        raise _unreadable(path, os.strerror(error.errno or 0)) from error


def _not_a_disk(path: str) -> exceptions.PackageError:
    head = _ends(path)[0]
    return exceptions.PackageError(
        'package.not-a-disk',
        'A file that was given among others is not a bare disk',
        where=path,
        expected='a disk file, of the same guest as the others',
        found='a tar archive'
        if tarindex.is_tar(path)
        else tarheader.describe(head[:16]),
        fix='import a package by itself; decompress a compressed disk '
        'before it is imported with others',
    )


def _empty(where: str) -> exceptions.PackageError:
    return exceptions.PackageError(
        'package.empty',
        'The disk file is empty',
        where=where,
        fix='copy the disk again',
    )


def _unreadable(path: str, found: str) -> exceptions.PackageError:
    return exceptions.PackageError(
        'package.unreadable',
        'The package cannot be opened',
        where=path,
        found=found,
        fix='check the path and the permissions',
    )
