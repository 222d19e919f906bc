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

"""The checks of a RAW file on tables that sfdisk and sgdisk write."""

from __future__ import annotations

import os
import pathlib
import shutil
import struct
import subprocess
import tempfile
import unittest
import zlib

from xenimport.verify import disk

MIB = 1 << 20


def run(*words: str, text: str = '') -> None:
    subprocess.run(
        words,
        input=text,
        text=True,
        check=True,
        capture_output=True,
        env=dict(os.environ, PATH=os.environ['PATH'] + ':/usr/sbin:/sbin'),
    )


class VerifyTest(unittest.TestCase):
    """A disk of 100 MiB."""

    def setUp(self) -> None:
        super().setUp()
        scratch = tempfile.TemporaryDirectory()
        self.addCleanup(scratch.cleanup)
        self.path = str(pathlib.Path(scratch.name) / 'disk 1.raw')
        with open(self.path, 'wb') as file:
            file.truncate(100 * MIB)

    def verify(self, size: int = 100 * MIB) -> list[tuple[str, str]]:
        os.truncate(self.path, size)
        return [
            (item.id, item.severity.value)
            for item in disk.verify(self.path, size)
        ]

    def write(self, offset: int, data: bytes | bytearray) -> None:
        with open(self.path, 'r+b') as file:
            file.seek(offset)
            file.write(data)

    def dos(self) -> None:
        run(
            'sfdisk',
            self.path,
            text='label: dos\nstart=2048, size=40960, type=83, bootable\n'
            'start=43008, type=5\nstart=45056, size=20000, type=83\n'
            'start=67108, type=7\n',
        )

    def gpt(self) -> None:
        if not shutil.which('sgdisk', path='/usr/sbin:/sbin:/usr/bin'):
            self.skipTest('sgdisk is not installed')
        run('sgdisk', '-n', '1:2048:+20M', '-n', '2:0:0', self.path)

    def test_no_table(self) -> None:
        self.assertEqual([], self.verify())

    def test_dos(self) -> None:
        self.dos()
        self.assertEqual([], self.verify())

    def test_cut_dos_names_primary_and_logical(self) -> None:
        self.dos()
        self.verify(50 * MIB)
        found = disk.verify(self.path, 50 * MIB)
        self.assertEqual(
            [
                ('disk.partition-outside', ':2'),
                ('disk.partition-outside', ':6'),
            ],
            [(item.id, item.subject[-2:]) for item in found],
        )

    def test_cut_before_the_logical_partitions(self) -> None:
        self.dos()
        self.assertIn(
            ('disk.partition-outside', 'blocker'), self.verify(21 * MIB)
        )

    def test_zero_signature_before_ntfs(self) -> None:
        self.dos()
        self.write(440, bytes(4))
        self.assertEqual(
            [('disk.mbr-signature-zero', 'warning')], self.verify()
        )

    def test_extended_partition_that_leads_in_a_circle(self) -> None:
        # The second logical partition's table points back to the first.
        self.dos()
        with open(self.path, 'rb') as file:
            file.seek(43008 * 512)
            first = file.read(512)
        start = int.from_bytes(first[470:474], 'little')
        self.write((43008 + start) * 512, first)
        self.assertEqual([], self.verify())

    def test_gpt(self) -> None:
        self.gpt()
        self.assertEqual([], self.verify())

    def test_cut_gpt(self) -> None:
        self.gpt()
        self.assertEqual(
            [
                ('verify.gpt-backup', 'blocker'),
                ('disk.partition-outside', 'blocker'),
            ],
            self.verify(60 * MIB),
        )

    def test_enlarged_gpt(self) -> None:
        self.gpt()
        self.assertEqual(
            [('verify.gpt-backup', 'warning')], self.verify(120 * MIB)
        )

    def test_damaged_gpt(self) -> None:
        self.gpt()
        self.write(1024, b'\xff' * 16)
        self.assertEqual([('verify.gpt-header', 'blocker')], self.verify())

    def test_overlap_is_seen_by_sgdisk(self) -> None:
        """Two partitions in one place, with every checksum right."""
        self.gpt()
        last = 100 * MIB // 512 - 1
        for lba in (1, last):
            header = bytearray(self.read(lba * 512, 92))
            (place,) = struct.unpack_from('<Q', header, 72)
            array = bytearray(self.read(place * 512, 128 * 128))
            struct.pack_into('<Q', array, 128 + 32, 2048)
            struct.pack_into('<I', header, 88, zlib.crc32(array))
            struct.pack_into('<I', header, 16, 0)
            struct.pack_into('<I', header, 16, zlib.crc32(header))
            self.write(place * 512, array)
            self.write(lba * 512, header)
        self.assertEqual([('verify.gpt-problem', 'warning')], self.verify())

    def read(self, offset: int, length: int) -> bytes:
        with open(self.path, 'rb') as file:
            file.seek(offset)
            return file.read(length)

    def test_time_does_not_grow_with_the_size(self) -> None:
        self.dos()
        self.assertEqual([], self.verify(4 << 40))
