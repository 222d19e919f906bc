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

import unittest

from xenimport.converter import base
from xenimport import model
from xenimport.workflow import layout


class FakeImage(base.DiskImage):
    format = 'fake'

    def __init__(self, sector):
        self._sector = sector
        self.virtual_size = len(sector)

    def extents(self):
        yield 0, self.virtual_size, True

    def pread_into(self, buffer, offset):
        buffer[:] = self._sector[offset : offset + len(buffer)]

    def close(self):
        pass


def sector(oem=b'', signature=b'\x55\xaa'):
    return b'\xeb\x52\x90' + oem.ljust(507, b'\0') + signature


def disk(capacity=None):
    region = model.Region('guest.ova', 'a.vhd', ())
    return model.Disk('a', 'a', 0, region, capacity)


class BareFileSystemTest(unittest.TestCase):
    def test_whole_disk_ntfs(self):
        found = layout.bare_file_system(sector(b'NTFS    '), disk())
        self.assertEqual('disk.bare-file-system', found.id)
        self.assertIs(model.Severity.BLOCKER, found.severity)
        self.assertTrue(found.repair)
        self.assertIn('a.vhd', found.evidence)

    def test_nothing_else(self):
        for name, content in (
            ('an MBR', sector()),
            ('NTFS without signature', sector(b'NTFS    ', b'\0\0')),
            ('FAT', sector(b'mkfs.fat')),
            ('empty', bytes(4096)),
            ('shorter than a sector', b'\xeb\x52\x90NTFS    '),
        ):
            with self.subTest(name):
                self.assertIsNone(
                    layout.bare_file_system(content[:512], disk())
                )

    def test_wrapped_it_is_a_partition(self):
        content = sector(b'NTFS    ') * 8
        wrapped = layout.wrapped(FakeImage(content))
        self.assertIsNone(
            layout.bare_file_system(wrapped.pread(0, 512), disk())
        )
        self.assertEqual(content, wrapped.pread(2048 * 512, len(content)))
        entry = wrapped.pread(446, 16)
        self.assertEqual(0x07, entry[4])
        self.assertEqual(2048, int.from_bytes(entry[8:12], 'little'))


class CapacityTest(unittest.TestCase):
    def test_differs(self):
        found = layout.capacity_differs(4096, disk(8192))
        self.assertEqual('package.capacity-differs', found.id)
        self.assertIn('8192', found.evidence)
        self.assertIn('4096', found.evidence)

    def test_same_or_not_stated(self):
        self.assertIsNone(layout.capacity_differs(4096, disk(4096)))
        self.assertIsNone(layout.capacity_differs(4096, disk()))
