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


"""Partition tables laid out by hand, as the UEFI specification has them."""

import struct
import unittest
import uuid
import zlib

from xenimport.guest import partition_table

SIZE = 1 << 30
LAST = SIZE // 512 - 1
ESP = 'C12A7328-F81F-11D2-BA4B-00A0C93EC93B'
DATA = 'EBD0A0A2-B9E5-4433-87C0-68B6B72699C7'


def mbr(*entries):
    """Sector 0; entries are (flag, type, start, count), sectors of 512."""
    sector = bytearray(512)
    for number, (flag, kind, start, count) in enumerate(entries):
        struct.pack_into(
            '<B3xB3xII', sector, 446 + 16 * number, flag, kind, start, count
        )
    sector[510:] = b'\x55\xaa'
    return bytes(sector)


def gpt(*entries, backup=LAST, count=128, size=128):
    """The first 34 sectors; entries are (type, first, last, attributes)."""
    array = bytearray(128 * 128)
    for number, (kind, first, last, attributes) in enumerate(entries):
        at = number * 128
        array[at : at + 16] = uuid.UUID(kind).bytes_le
        array[at + 16 : at + 32] = uuid.uuid4().bytes_le
        struct.pack_into('<QQQ', array, at + 32, first, last, attributes)
    header = bytearray(512)
    struct.pack_into(
        '<8sIIIIQQQQ16sQIII',
        header,
        0,
        b'EFI PART',
        0x10000,
        92,
        0,
        0,
        1,
        backup,
        34,
        LAST - 33,
        uuid.uuid4().bytes_le,
        2,
        count,
        size,
        zlib.crc32(array),
    )
    struct.pack_into('<I', header, 16, zlib.crc32(header[:92]))
    return mbr((0, 0xEE, 1, LAST)) + bytes(header) + bytes(array)


def padded(sector):
    return sector + bytes(33 * 512)


class MbrTest(unittest.TestCase):
    def parse(self, *entries):
        return partition_table.parse(padded(mbr(*entries)), SIZE)

    def test_two_partitions(self):
        table = self.parse((0x80, 7, 2048, 204800), (0, 7, 206848, 1000))
        self.assertEqual('msdos', table.kind)
        self.assertEqual(
            (
                partition_table.Entry(1, 1 << 20, 100 << 20, '0x07', True),
                partition_table.Entry(2, 101 << 20, 512000, '0x07', False),
            ),
            table.entries,
        )

    def test_number_is_that_of_the_slot(self):
        table = self.parse((0, 0, 0, 0), (0, 7, 2048, 10))
        self.assertEqual([2], [entry.number for entry in table.entries])

    def test_empty_table_is_one(self):
        self.assertEqual((), self.parse().entries)

    def test_what_parted_shall_judge(self):
        for name, entries in (
            ('extended', [(0, 5, 2048, 100)]),
            ('extended, LBA', [(0, 15, 2048, 100)]),
            ('odd flag', [(0x12, 7, 2048, 100)]),
            ('outside', [(0, 7, 2048, SIZE // 512)]),
            ('overlap', [(0, 7, 2048, 100), (0, 7, 2100, 100)]),
            ('over the table', [(0, 7, 0, 100)]),
            ('without sectors', [(0, 7, 2048, 0)]),
        ):
            with self.subTest(name):
                self.assertIsNone(self.parse(*entries))

    def test_file_system_on_the_drive_is_no_table(self):
        for at, mark in (
            (3, b'NTFS    '), (3, b'EXFAT   '), (54, b'FAT16'), (82, b'FAT32'),
        ):  # fmt: skip
            sector = bytearray(mbr((0, 7, 2048, 100)))
            sector[at : at + len(mark)] = mark
            self.assertIsNone(
                partition_table.parse(padded(bytes(sector)), SIZE)
            )

    def test_no_signature_and_too_short(self):
        self.assertIsNone(partition_table.parse(bytes(34 * 512), SIZE))
        self.assertIsNone(partition_table.parse(mbr((0, 7, 1, 1)), SIZE))


class GptTest(unittest.TestCase):
    def test_partitions(self):
        table = partition_table.parse(
            gpt((ESP, 2048, 4095, 0), (DATA, 4096, 8191, 4)), SIZE
        )
        self.assertEqual('gpt', table.kind)
        self.assertEqual(
            (
                partition_table.Entry(1, 1 << 20, 1 << 20, ESP, False),
                partition_table.Entry(2, 2 << 20, 2 << 20, DATA, True),
            ),
            table.entries,
        )

    def test_what_parted_shall_judge(self):
        good = gpt((ESP, 2048, 4095, 0))
        header, array = bytearray(good), bytearray(good)
        header[512 + 40] ^= 1
        array[1024 + 40] ^= 1
        for name, data in (
            ('header does not fit its checksum', bytes(header)),
            ('entries do not fit their checksum', bytes(array)),
            ('backup elsewhere', gpt((ESP, 2048, 4095, 0), backup=LAST - 9)),
            ('more entries', gpt((ESP, 2048, 4095, 0), count=256)),
            ('overlap', gpt((ESP, 2048, 4095, 0), (DATA, 4000, 9000, 0))),
            ('backwards', gpt((ESP, 4095, 2048, 0))),
            ('outside', gpt((ESP, 2048, LAST + 1, 0))),
            ('no header', padded(mbr((0, 0xEE, 1, LAST)))),
        ):
            with self.subTest(name):
                self.assertIsNone(partition_table.parse(data, SIZE))
