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


from __future__ import annotations

import struct
import unittest

from xenimport.guest import hive_blank
from xenimport.guest import hive_reader
from xenimport.tests import hives

#: Offset of the root's cell: behind the base block and a bin's header.
ROOT = 4096 + 32


class BlankTestCase(unittest.TestCase):
    def setUp(self):
        super().setUp()
        self.data = hive_blank.blank('NewStoreRoot')

    def number(self, offset):
        return struct.unpack_from('<I', self.data, offset)[0]

    def test_the_reader_accepts_it(self):
        reader = hive_reader.Reader(self.data, 'hive')
        self.assertEqual([('', [], ())], list(reader.records('', -1)))
        self.assertEqual('NewStoreRoot', reader.name(reader.root))

    def test_the_base_block(self):
        self.assertEqual(8192, len(self.data))
        self.assertEqual(self.data, hives.sealed(self.data))
        # Signature, equal sequence numbers, version 1.3, primary file,
        # direct memory load, root, one page of bins, clustering factor.
        self.assertEqual(b'regf', self.data[:4])
        self.assertEqual(self.number(4), self.number(8))
        self.assertEqual(
            [1, 3, 0, 1, 32, 4096, 1],
            [self.number(offset) for offset in range(20, 48, 4)],
        )
        # The time, of which the first bin has a copy.
        self.assertEqual(self.data[12:20], self.data[4096 + 20 : 4096 + 28])
        (written,) = struct.unpack_from('<Q', self.data, 12)
        # Between 2024 and 2100.
        self.assertTrue(
            133_485_408_000_000_000 < written < 157_469_184_000_000_000
        )

    def test_the_bin_is_full_of_cells(self):
        self.assertEqual(
            (b'hbin', 0, 4096), struct.unpack_from('<4sII', self.data, 4096)
        )
        offset, sizes = 32, []
        while offset < 4096:
            (size,) = struct.unpack_from('<i', self.data, 4096 + offset)
            self.assertEqual(0, size % 8)
            sizes.append(size)
            offset += abs(size)
        self.assertEqual(4096, offset)
        # Root and security descriptor in use, the rest free.
        self.assertEqual([True, True, False], [size < 0 for size in sizes])

    def test_the_root(self):
        # Entry of the hive, not to be deleted, name in single bytes.
        signature, flags = struct.unpack_from('<2sH', self.data, ROOT + 4)
        self.assertEqual((b'nk', 0x2C), (signature, flags))
        # No subkeys, values or class.
        for offset in (20, 24, 36):
            self.assertEqual(0, self.number(ROOT + 4 + offset))
        for offset in (28, 32, 40, 48):
            self.assertEqual(0xFFFFFFFF, self.number(ROOT + 4 + offset))

    def test_the_security_descriptor(self):
        place = self.number(ROOT + 4 + 44)
        start = 4096 + place + 4
        # The only one in its list, used by the root alone.
        self.assertEqual(
            (b'sk', 0, place, place, 1),
            struct.unpack_from('<2sHIII', self.data, start),
        )
        size = self.number(start + 16)
        descriptor = self.data[start + 20 : start + 20 + size]
        # [MS-DTYP] 2.4.6: revision 1, self-relative with a discretionary
        # list; then owner, group, no system list, and that list.
        revision, _, control, owner, group, system, discretionary = (
            struct.unpack_from('<BBHIIII', descriptor)
        )
        self.assertEqual((1, 0x8004, 0), (revision, control, system))
        # S-1-5-32-544 and S-1-5-18 (2.4.2).
        administrators = bytes.fromhex('01020000000000052000000020020000')
        local_system = bytes.fromhex('010100000000000512000000')
        self.assertEqual(administrators, descriptor[owner : owner + 16])
        self.assertEqual(local_system, descriptor[group : group + 12])
        # An ACL of revision 2 with two entries: allowed (0), inherited by
        # keys below (2), KEY_ALL_ACCESS 0xF003F.
        acl = bytes.fromhex('0200') + struct.pack('<HHH', 52, 2, 0)
        for sid in (local_system, administrators):
            acl += bytes.fromhex('0002')
            acl += struct.pack('<HI', 8 + len(sid), 0xF003F) + sid
        self.assertEqual(acl, descriptor[discretionary : discretionary + 52])
