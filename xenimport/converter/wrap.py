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

"""A partition table around a bare file system.

Old paravirtual guests have one volume a partition. Put into a partition
that starts at one mebibyte, such a volume becomes a disk that a BIOS can
boot and in which there is room for a boot loader.
"""

from __future__ import annotations

from collections.abc import Iterator
import hashlib
import struct

from xenimport.converter import base
from xenimport import exceptions

SECTOR = 512
#: Bytes before the partition: what all partitioning tools leave today.
HEADER_SIZE = 1024 * 1024
LINUX = 0x83
NTFS = 0x07

#: Bytes of a file system that tell it from any other.
_IDENTITY = 4096
# The geometry that BIOSes assume for a disk of this size.
_HEADS = 255
_SECTORS = 63
#: Stands for every address beyond the 1023rd cylinder.
_BEYOND = b'\xfe\xff\xff'


class WrappedImage(base.DiskImage):
    """A disk with one partition that holds another disk image.

    :param inner: the bare file system; closed with this image
    :param partition_type: the type in the table, for example 0x83
    :param signature: the table's 32-bit disk signature, not zero; by
        default one that follows from the file system's first bytes
    :param active: whether the partition is marked as the one to boot
    :raises xenimport.exceptions.DiskImageError: if the file system is
        too large for the table
    """

    def __init__(
        self,
        inner: base.DiskImage,
        partition_type: int = LINUX,
        *,
        signature: int | None = None,
        active: bool = False,
    ) -> None:
        self.format = inner.format
        self.creator = inner.creator
        self.findings = inner.findings
        self._inner = inner
        size = HEADER_SIZE + inner.virtual_size
        self.virtual_size = -(-size // HEADER_SIZE) * HEADER_SIZE
        sectors = -(-inner.virtual_size // SECTOR)
        if sectors > 0xFFFFFFFF:
            raise exceptions.DiskImageError(
                'wrap.too-large',
                'The file system is too large for an MBR partition',
                expected='at most 2 TiB',
                found=f'{inner.virtual_size} bytes',
                fix='move the guest onto a disk with a GPT before exporting',
            )
        if signature is None:
            signature = disk_signature(inner)
        self._table = _master_boot_record(
            sectors, partition_type, signature, active
        )

    def extents(self) -> Iterator[tuple[int, int, bool]]:
        yield 0, HEADER_SIZE, True
        for offset, length, allocated in self._inner.extents():
            yield HEADER_SIZE + offset, length, allocated
        end = HEADER_SIZE + self._inner.virtual_size
        if end < self.virtual_size:
            yield end, self.virtual_size - end, False

    def pread_into(self, buffer: memoryview, offset: int) -> None:
        end = offset + len(buffer)
        data_end = HEADER_SIZE + self._inner.virtual_size
        done = offset
        if done < HEADER_SIZE:
            stop = min(end, HEADER_SIZE)
            part = self._table[done:stop].ljust(stop - done, b'\0')
            buffer[: stop - offset] = part
            done = stop
        if done < min(end, data_end):
            stop = min(end, data_end)
            self._inner.pread_into(
                buffer[done - offset : stop - offset], done - HEADER_SIZE
            )
            done = stop
        if done < end:
            buffer[done - offset :] = bytes(end - done)

    def check_unchanged(self) -> None:
        self._inner.check_unchanged()

    def close(self) -> None:
        self._inner.close()


def disk_signature(image: base.DiskImage) -> int:
    """A signature for a disk that holds this file system.

    Windows takes a disk offline whose signature another one has already,
    and a guest may have several volumes to wrap; one that changed from
    run to run would be another disk to Windows each time. So it follows
    from the file system itself: its serial number or UUID lies in these
    bytes, with NTFS, FAT, ext and XFS alike.
    """
    digest = hashlib.sha256(
        f'{image.format} {image.virtual_size} '.encode()
        + image.pread(0, min(_IDENTITY, image.virtual_size))
    ).digest()
    # Zero stands for no signature.
    return int.from_bytes(digest[:4], 'little') or 1


def _master_boot_record(
    sectors: int, partition_type: int, signature: int, active: bool
) -> bytes:
    first = HEADER_SIZE // SECTOR
    entry = struct.pack(
        '<B3sB3sII',
        0x80 if active else 0,
        _chs(first),
        partition_type,
        _chs(first + sectors - 1),
        first,
        sectors,
    )
    return b''.join(
        (
            bytes(440),
            struct.pack('<I2x', signature),
            entry,
            bytes(48),
            b'\x55\xaa',
        )
    )


def _chs(sector: int) -> bytes:
    """A sector's address as cylinder, head and sector."""
    track, number = divmod(sector, _SECTORS)
    cylinder, head = divmod(track, _HEADS)
    if cylinder > 1023:
        return _BEYOND
    return bytes((head, number + 1 | cylinder >> 8 << 6, cylinder & 0xFF))
