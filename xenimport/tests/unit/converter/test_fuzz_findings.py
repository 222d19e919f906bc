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

"""What the fuzz tests have found, each by its smallest example."""

from __future__ import annotations

import os
import tempfile
import unittest

from xenimport.converter import raw
from xenimport import exceptions
from xenimport import model
from xenimport.tests.fuzz import cases
from xenimport.tests import packages
from xenimport.tests import reading
from xenimport.tests import vhd_packages

_BLOCK = 4096


class FindingTest(unittest.TestCase):
    """Mutants that were once read wrongly."""

    def setUp(self) -> None:
        super().setUp()
        temporary = tempfile.TemporaryDirectory()
        self.addCleanup(temporary.cleanup)
        self.path = os.path.join(temporary.name, 'disk.vhd')

    def test_vhd_whose_ends_name_writers_with_other_bitmaps(self) -> None:
        """Read forward, the start alone decided: other sectors were data.

        blktap's first version had the bits of a bitmap the other way.
        """
        sound = vhd_packages.Vhd(
            2 * _BLOCK, {0: b'1' * 512}, block_size=_BLOCK
        ).build()
        first = packages.with_checksum(
            sound[:32] + b'\0\0\0\1' + sound[36:512], 64
        )
        data = first + sound[512:]
        with open(self.path, 'wb') as file:
            file.write(data)
        # In place it is the end that counts.
        content = reading.read([self.path])['disk.vhd'].data
        self.assertEqual(b'1' * 512 + bytes(2 * _BLOCK - 512), content)
        with self.assertRaises(exceptions.DiskImageError) as caught:
            reading.read_stream(cases.Arriving(data, 'disk.vhd'))
        self.assertEqual('vhd.footer-differs', caught.exception.id)

    def test_raw_disk_that_starts_with_text(self) -> None:
        """oslo.utils took it for a VMDK's descriptor, and failed."""
        data = b'text' * 256 + b'\xc3\xa9'.ljust(1024, b'\0')
        with open(self.path, 'wb') as file:
            file.write(data)
        region = model.Region(
            self.path, 'disk.raw', (model.Piece(0, len(data), 0),)
        )
        package = model.Package(self.path, 'disk', {'disk.raw': region})
        disk = model.Disk('disk', 'disk', 0, region)
        converter = raw.RawConverter()
        self.assertTrue(converter.probe(package, disk))
        with converter.open(package, disk) as image:
            self.assertEqual(data, image.pread(0, len(data)))
        arriving = cases.Arriving(data, 'disk.raw')
        self.assertTrue(converter.probe_stream(disk, arriving))
        forward = reading.read_forward(converter.open_stream(disk, arriving))
        self.assertEqual(data, forward.data)
