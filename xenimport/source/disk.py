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

"""The disk source: one bare disk file, without any description."""

from __future__ import annotations

import os
import stat

from xenimport import exceptions
from xenimport import model
from xenimport.source import base
from xenimport.source import tarindex

_VHD_COOKIE = b'conectix'
_DISK_SUFFIXES = ('.vhd', '.raw', '.img')
#: Enough of the file's start for every signature below.
_HEAD = 128 * 1024
#: Signatures of what stands on a RAW disk: (offset, bytes).
_CONTENTS = (
    (510, b'\x55\xaa'),  # a boot sector or a partition table
    (1080, b'\x53\xef'),  # ext2, ext3, ext4
    (0, b'XFSB'),
    (65600, b'_BHRfS_M'),  # btrfs
    (512, b'LABELONE'),  # LVM2, in one of the first four sectors
    (4086, b'SWAPSPACE2'),
)


class DiskSource(base.Source):
    """A VHD or a RAW disk that was exported by itself."""

    handles = 'bare disk file (.vhd, .raw, .img)'

    def probe(self, path: str) -> bool:
        if tarindex.is_tar(path):
            return False
        head, tail = _ends(path)
        if _VHD_COOKIE in (head[:8], tail[:8], tail[1:9]):
            return True
        if any(
            head[offset : offset + len(mark)] == mark
            for offset, mark in _CONTENTS
        ):
            return True
        # A data disk may hold anything, so here the name must decide.
        return path.lower().endswith(_DISK_SUFFIXES)

    def open(self, path: str) -> model.VirtualSystem:
        size = _size(path)
        name = os.path.basename(path)
        if size == 0:
            raise exceptions.PackageError(
                'package.empty',
                'The disk file is empty',
                where=path,
                fix='copy the disk again',
            )
        region = model.Region(path, name, (model.Piece(0, size, 0),))
        stem = os.path.splitext(name)[0] or name
        return model.VirtualSystem(
            name=stem,
            package=model.Package(path, 'disk', {name: region}),
            disks=(model.Disk(stem, stem, 0, region),),
        )


def _size(path: str) -> int:
    try:
        status = os.stat(path)
    except OSError as error:
        raise _unreadable(path, os.strerror(error.errno or 0)) from error
    if not stat.S_ISREG(status.st_mode):
        raise _unreadable(path, 'not a regular file')
    return status.st_size


def _ends(path: str) -> tuple[bytes, bytes]:
    """The first 128 KiB and the last 512 bytes of a file."""
    size = _size(path)
    try:
        with open(path, 'rb') as stream:
            head = stream.read(_HEAD)
            stream.seek(max(0, size - 512))
            return head, stream.read(512)
    except OSError as error:
        raise _unreadable(path, os.strerror(error.errno or 0)) from error


def _unreadable(path: str, found: str) -> exceptions.PackageError:
    return exceptions.PackageError(
        'package.unreadable',
        'The package cannot be opened',
        where=path,
        found=found,
        fix='check the path and the permissions',
    )
