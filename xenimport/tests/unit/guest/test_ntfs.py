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


"""NTFS' boot sector and the flags of its volume, sound and hostile."""

from __future__ import annotations

import random
import struct
import unittest

from xenimport import exceptions
from xenimport.guest import ntfs

#: Clusters of 4 KiB; the file table starts at the fourth.
_TABLE = 4 * 4096
_VOLUME = _TABLE + 3 * 1024


def boot_sector(
    *,
    size: int = 512,
    clusters: int = 8,
    hidden: int = 2048,
    total: int = 32767,
    table: int = 4,
    records: int = 0xF6,
) -> bytes:
    """As "How NTFS Works" has it, by offset."""
    sector = bytearray(512)
    sector[:11] = b'\xeb\x52\x90NTFS    '
    struct.pack_into('<HB', sector, 0x0B, size, clusters)
    struct.pack_into('<I', sector, 0x1C, hidden)
    struct.pack_into('<QQ', sector, 0x28, total, table)
    sector[0x40] = records
    sector[510:] = b'\x55\xaa'
    return bytes(sector)


def volume_record(flags: int) -> bytearray:
    """The record of $Volume: a name, then its version and flags."""
    record = bytearray(1024)
    struct.pack_into('<4sHH', record, 0, b'FILE', 0x30, 3)
    struct.pack_into('<H', record, 0x14, 0x38)
    # Its name, without a character.
    struct.pack_into('<IIBBHHHIHH', record, 0x38,
                     0x60, 0x18, 0, 0, 0x18, 0, 1, 0, 0x18, 0)  # fmt: skip
    struct.pack_into('<IIBBHHHIHH', record, 0x50,
                     0x70, 0x28, 0, 0, 0x18, 0, 2, 12, 0x18, 0)  # fmt: skip
    struct.pack_into('<QBBH', record, 0x68, 0, 3, 1, flags)
    struct.pack_into('<I', record, 0x78, 0xFFFFFFFF)
    record[510:512], record[1022:1024] = b'\x11\x22', b'\x33\x44'
    # The fixups: what belongs at the ends of the sectors, and what is there.
    record[0x30:0x36] = b'\x07\x00' + b'\x11\x22' + b'\x33\x44'
    record[510:512] = record[1022:1024] = b'\x07\x00'
    return record


def volume(flags: int = 0) -> bytearray:
    """The start of a volume, up to its file table."""
    data = bytearray(_TABLE + 16 * 1024)
    data[:512] = boot_sector()
    data[_VOLUME : _VOLUME + 1024] = volume_record(flags)
    return data


class BootSectorTest(unittest.TestCase):
    def test_fields(self):
        self.assertEqual(
            ntfs.BootSector(512, 4096, 1024, 2048, 32767, 16384),
            ntfs.parse_boot_sector(boot_sector()),
        )

    def test_other_file_systems(self):
        fat = bytearray(boot_sector())
        fat[3:11] = b'MSDOS5.0'
        for data in (b'', b'\xeb\x52\x90NTFS    ', bytes(fat), bytes(512)):
            self.assertIsNone(ntfs.parse_boot_sector(data))

    def test_sizes_as_exponents(self):
        found = ntfs.parse_boot_sector(boot_sector(clusters=0xF4, table=1))
        self.assertEqual(4096 * 512, found.cluster_size)
        found = ntfs.parse_boot_sector(
            boot_sector(size=4096, clusters=1, records=1)
        )
        self.assertEqual((4096, 4096), (found.sector_size, found.record_size))

    def test_nonsense(self):
        for fields in (
            {'size': 0},
            {'size': 513},
            {'clusters': 0},
            {'clusters': 3},
            {'clusters': 0x81},
            {'clusters': 0xF3},
            {'records': 0},
            {'records': 0x80},
            {'records': 0xE1},
            {'records': 0x7F},
            {'total': 0},
            {'table': 0},
            {'table': 1 << 63},
            {'total': 1 << 51},
            {'total': (1 << 64) - 1, 'table': (1 << 60) - 1},
        ):
            with self.subTest(fields):
                with self.assertRaises(exceptions.GuestError) as caught:
                    ntfs.parse_boot_sector(boot_sector(**fields))
                self.assertEqual('guest.ntfs-damaged', caught.exception.id)


class VolumeFlagsTest(unittest.TestCase):
    def flags(self, data):
        parsed = ntfs.parse_boot_sector(bytes(data[:512]))
        return ntfs.volume_flags(
            parsed, lambda offset, length: bytes(data[offset:][:length])
        )

    def refused(self, data):
        with self.assertRaises(exceptions.GuestError) as caught:
            self.flags(data)
        self.assertEqual('guest.ntfs-damaged', caught.exception.id)
        return caught.exception.found

    def test_flags(self):
        self.assertEqual(0, self.flags(volume()))
        self.assertEqual(1, self.flags(volume(1)) & ntfs.DIRTY)
        self.assertEqual(0x8002, self.flags(volume(0x8002)))

    def test_flags_across_a_fixup(self):
        """What stands at the end of a sector is kept elsewhere."""
        data = volume()
        record = bytearray(1024)
        source = volume_record(0)
        record[:0x38] = source[:0x38]
        # A name so long that the flags are the last two bytes.
        struct.pack_into(
            '<IIBBHHHIHH', record, 0x38,
            0x60, 0x1A8, 0, 0, 0x18, 0, 1, 0, 0x18, 0,
        )  # fmt: skip
        at = 0x38 + 0x1A8
        struct.pack_into('<IIBBHHHIHH', record, at,
                         0x70, 0x20, 0, 0, 0x14, 0, 2, 12, 0x14, 0,
                         )  # fmt: skip
        struct.pack_into('<I', record, at + 0x20, 0xFFFFFFFF)
        self.assertEqual(510, at + 0x14 + 10)
        record[0x30:0x36] = b'\x07\x00' + b'\x01\x80' + b'\0\0'
        record[510:512] = record[1022:1024] = b'\x07\x00'
        data[_VOLUME : _VOLUME + 1024] = record
        self.assertEqual(0x8001, self.flags(data))

    def test_damage(self):
        for at, what in (
            (0, b'BAAD'),
            (4, b'\xff\xff'),
            (4, b'\xfc\x01'),
            (6, b'\x02\x00'),
            (6, b'\xff\xff'),
            (510, b'\x08\x00'),
            (1022, b'\x08\x00'),
            (0x14, b'\xff\xff'),
            (0x3C, b'\0\0\0\0'),
            (0x3C, b'\x19\0\0\0'),
            (0x3C, b'\xf8\xff\xff\xff'),
            (0x58, b'\x01'),
            (0x60, b'\x0b\0\0\0'),
            (0x60, b'\xff\xff\xff\xff'),
            (0x64, b'\xff\xff'),
            (0x50, b'\x80\0\0\0'),
            (0x38, b'\xff\xff\xff\xff'),
        ):
            with self.subTest(at=at, what=what):
                data = volume(1)
                data[_VOLUME + at : _VOLUME + at + len(what)] = what
                self.assertTrue(self.refused(data))

    def test_cut(self):
        for end in (512, _VOLUME, _VOLUME + 1, _VOLUME + 1023):
            self.refused(volume()[:end])

    def test_noise(self):
        """Nothing but our own error comes out, whatever the bytes."""
        noise = random.Random(4)
        for _round in range(300):
            data = volume(1)
            for _change in range(4):
                at = noise.randrange(_VOLUME, _VOLUME + 0x80)
                data[at] = noise.randrange(256)
            try:
                self.flags(data)
            except exceptions.GuestError as error:
                self.assertEqual('guest.ntfs-damaged', error.id)
