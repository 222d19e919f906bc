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

"""Where GRUB 2 lies on a disk that BIOS boots.

Source of facts: the GRUB manual's "Images" and "BIOS installation", and
the offsets that grub-core/boot/i386/pc/boot.S and diskboot.S export to
installers (include/grub/i386/pc/boot.h): boot.img is the first sector and
says where core.img begins; core.img's own first sector lists where the
rest of it lies.
"""

from __future__ import annotations

import struct

SECTOR = 512
#: A BIOS parameter block of the disk's own, kept as it is.
BPB_START, BPB_END = 0x03, 0x5A
#: The sector of core.img, 64 bits.
KERNEL_SECTOR = 0x5C
#: The drive to load from; 0xff is the one that BIOS booted.
BOOT_DRIVE = 0x64
#: A jump that is to be two NOPs on a hard disk: some BIOSes pass no drive.
DRIVE_CHECK = 0x66
#: From here on the disk's own: signature, partition table, 55 AA.
DISK_SIGNATURE = 0x1B8
#: The last list entry of core.img's first sector: start, length, segment.
BLOCK_LIST = SECTOR - 12
#: Where the second sector of core.img is loaded, a real-mode segment.
CORE_SEGMENT = 0x820
#: All that real mode below the extended BIOS area could be asked to hold.
CORE_LIMIT = 0x78000


class LayoutError(ValueError):
    """GRUB does not fit there, or is not what it should be."""


def sectors(length: int) -> int:
    """How many sectors a number of bytes takes."""
    return -(-length // SECTOR)


def patch_boot_sector(old: bytes, boot_image: bytes, core_start: int) -> bytes:
    """The first sector of the disk with boot.img in it.

    :param old: the sector as it is; table and disk signature stay
    :param boot_image: boot.img as GRUB ships it
    :param core_start: the sector where core.img begins
    """
    if len(boot_image) != SECTOR or len(old) != SECTOR:
        raise LayoutError('boot.img is not one sector')
    if old[510:] != b'\x55\xaa':
        raise LayoutError('the first sector has no signature 55 AA')
    made = bytearray(boot_image)
    made[BPB_START:BPB_END] = old[BPB_START:BPB_END]
    struct.pack_into('<Q', made, KERNEL_SECTOR, core_start)
    made[BOOT_DRIVE] = 0xFF
    made[DRIVE_CHECK : DRIVE_CHECK + 2] = b'\x90\x90'
    made[DISK_SIGNATURE:] = old[DISK_SIGNATURE:]
    return bytes(made)


def patch_core(core: bytes, core_start: int) -> bytes:
    """core.img for a place, padded to whole sectors."""
    if not 2 * SECTOR < len(core) <= CORE_LIMIT:
        raise LayoutError(f'core.img of {len(core)} bytes')
    made = bytearray(core)
    made.extend(bytes(-len(made) % SECTOR))
    count = sectors(len(core)) - 1
    struct.pack_into(
        '<QHH', made, BLOCK_LIST, core_start + 1, count, CORE_SEGMENT
    )
    return bytes(made)


def core_sector(boot_sector: bytes) -> int | None:
    """Where a boot sector of GRUB 2 expects core.img; None if not GRUB 2.

    GRUB 2's says GRUB near its end as GRUB legacy's does, but begins with
    a jump to 0x65, behind the fields above.
    """
    if b'GRUB' not in boot_sector[0x80:DISK_SIGNATURE]:
        return None
    if boot_sector[:2] != b'\xeb\x63':
        return None
    (sector,) = struct.unpack_from('<Q', boot_sector, KERNEL_SECTOR)
    return int(sector)
