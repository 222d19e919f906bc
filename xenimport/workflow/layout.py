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

"""Disks whose layout has to change before they are copied."""

from __future__ import annotations

from xenimport.converter import base as converter_base
from xenimport.converter import wrap
from xenimport import model

BARE_FILE_SYSTEM = 'disk.bare-file-system'


def bare_file_system(sector: bytes, disk: model.Disk) -> model.Finding | None:
    """Whether an NTFS stands on the disk without a partition table.

    :param sector: the first of the disk

    Its boot sector ends in 55AA as an MBR does, so Glance takes the disk
    for an MBR without partitions and refuses it (measured: HTTP 415). A
    whole-disk ext4 or FAT is taken as it is.
    """
    if len(sector) < 512 or sector[510:512] != b'\x55\xaa':
        return None
    if sector[3:11] != b'NTFS    ':
        return None
    return model.Finding(
        id=BARE_FILE_SYSTEM,
        severity=model.Severity.BLOCKER,
        title='The disk is a file system without a partition table',
        evidence=f'sector 0 of disk {disk.index} ({disk.region.name}) is '
        'the boot sector of an NTFS: Glance and Nova refuse it as RAW',
        fix='create a partition on a new disk and copy the file system '
        'into it',
        subject=f'disk {disk.index}',
        repair='put a partition table around it (the file system itself '
        'is not touched)',
    )


def wrapped(image: converter_base.DiskImage) -> converter_base.DiskImage:
    """The same bytes as partition 1 (type 0x07) of a larger disk."""
    return wrap.WrappedImage(image, 0x07)


def capacity_differs(size: int, disk: model.Disk) -> model.Finding | None:
    """Whether the package states another size than the disk image.

    :param size: the disk image's, bytes
    """
    if disk.capacity is None or disk.capacity == size:
        return None
    return model.Finding(
        id='package.capacity-differs',
        severity=model.Severity.WARNING,
        title='The package states another size than the disk has',
        evidence=f'disk {disk.index} ({disk.region.name}): the '
        f'description says {disk.capacity} bytes, the disk image '
        f'{size}',
        fix='nothing has to be done: the size of the disk image is used; '
        'if data is missing, export the guest again',
        subject=f'disk {disk.index}',
    )
