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

"""RAW disks, and the wrapper."""

import dataclasses
import os
import struct

from xenimport import exceptions
from xenimport import model
from xenimport.converter import raw
from xenimport.converter import wrap
from xenimport.tests import packages
from xenimport.tests.unit.converter import cases

MIB = 1024 * 1024


class RawTest(cases.DiskTestCase):
    def probe(self, content: bytes, name: str = 'd.raw') -> bool:
        return raw.RawConverter().probe(
            self.package(), self.disk(content, name)
        )

    def test_data(self) -> None:
        data = cases.noise(8192)
        image = self.opened(raw.RawConverter(), data)
        self.assertEqual(8192, image.virtual_size)
        self.assertEqual('raw', image.format)
        self.assertEqual(data[100:5000], image.pread(100, 4900))
        self.assertEqual(data[-1:], image.pread(8191, 10))

    def test_holes(self) -> None:
        path = self.path('disk')
        with open(path, 'wb') as stream:
            stream.truncate(8 * MIB)
            stream.seek(4 * MIB)
            stream.write(b'x' * 65536)
        if os.stat(path).st_blocks * 512 >= 8 * MIB:
            self.skipTest('this file system has no holes')
        # In a tar the disk starts anywhere: here 1536 bytes before.
        piece = model.Piece(4 * MIB - 1536, 2 * MIB, 0)
        disk = model.Disk('d', 'd', 0, model.Region(path, 'd', (piece,)))
        with raw.RawConverter().open(self.package(), disk) as image:
            self.assertEqual(
                [
                    (0, 1536, False),
                    (1536, 65536, True),
                    (1536 + 65536, 2 * MIB - 1536 - 65536, False),
                ],
                list(image.extents()),
            )

    def test_data_widens_to_whole_sectors(self) -> None:
        path = self.path('disk')
        with open(path, 'wb') as stream:
            stream.truncate(MIB)
            stream.seek(MIB // 2)
            stream.write(b'x' * 65536)
        if os.stat(path).st_blocks * 512 >= MIB:
            self.skipTest('this file system has no holes')
        piece = model.Piece(MIB // 2 - 1000, 100 * 1024, 0)
        disk = model.Disk('d', 'd', 0, model.Region(path, 'd', (piece,)))
        with raw.RawConverter().open(self.package(), disk) as image:
            self.assertEqual(
                # 1000 + 65536 is 129.95 sectors.
                [
                    (0, 512, False),
                    (512, 130 * 512 - 512, True),
                    (130 * 512, 100 * 1024 - 130 * 512, False),
                ],
                list(image.extents()),
            )

    def test_containers_are_not_raw(self) -> None:
        blank = bytes(MIB)
        for name, content in (
            ('dynamic', packages.dynamic_vhd(blank)),
            ('fixed', packages.fixed_vhd(blank)),
            ('short footer', packages.fixed_vhd(blank)[:-1]),
            ('qcow2', b'QFI\xfb\0\0\0\x03' + blank),
            ('qed', b'QED\0' + blank),
            ('vhdx', b'vhdxfile' + blank),
            ('vmdk', b'KDMV\x01\0\0\0' + blank),
            ('vdi', bytes(64) + struct.pack('<I', 0xBEDA107F) + blank),
            ('gzip', b'\x1f\x8b\x08' + blank),
            ('zstd', b'\x28\xb5\x2f\xfd' + blank),
        ):
            with self.subTest(name=name):
                self.assertFalse(self.probe(content))
                self.assert_refused(
                    raw.RawConverter(), content, 'raw.is-container'
                )

    def test_names_of_other_formats_are_not_raw(self) -> None:
        self.assertFalse(self.probe(bytes(4096), 'd.VHD'))
        self.assertFalse(self.probe(bytes(4096), 'd.vmdk'))

    def test_disks_are_raw(self) -> None:
        self.assertTrue(self.probe(bytes(510) + b'\x55\xaa'))
        self.assertTrue(self.probe(cases.noise(MIB)))
        self.assertTrue(self.probe(bytes(4096), 'volume'))

    def test_what_the_package_says(self) -> None:
        # A guest may write what it wants to its disk.
        content = packages.fixed_vhd(bytes(MIB))
        disk = dataclasses.replace(self.disk(content, 'd.vhd'), format='raw')
        converter = raw.RawConverter()
        self.assertTrue(converter.probe(self.package(), disk))
        with converter.open(self.package(), disk) as image:
            self.assertEqual(content, image.pread(0, len(content)))
        other = dataclasses.replace(self.disk(bytes(MIB)), format='vhd')
        self.assertFalse(converter.probe(self.package(), other))

    def test_regions(self) -> None:
        disk = self.disk(bytes(512))
        with raw.RawConverter().open(self.package(), disk) as image:
            self.assertEqual((disk.region,), image.regions)

    def test_not_whole_sectors(self) -> None:
        self.assert_refused(raw.RawConverter(), bytes(1000), 'raw.size')
        self.assert_refused(raw.RawConverter(), b'', 'raw.size')


class WrapTest(cases.DiskTestCase):
    def wrapped(self, data: bytes, **options: bool) -> wrap.WrappedImage:
        inner = self.opened(raw.RawConverter(), data)
        return wrap.WrappedImage(inner, wrap.LINUX, **options)

    def test_table(self) -> None:
        image = self.wrapped(bytes(3 * 512))
        sector = image.pread(0, 512)
        self.assertEqual(b'\x55\xaa', sector[510:])
        self.assertNotEqual(bytes(4), sector[440:444])
        # Sector 2048 is cylinder 0, head 32, sector 33; the last one is
        # 2050: head 32, sector 35.
        self.assertEqual(
            bytes((0, 32, 33, 0, 0x83, 32, 35, 0))
            + (2048).to_bytes(4, 'little')
            + (3).to_bytes(4, 'little'),
            sector[446:462],
        )
        self.assertEqual(bytes(48), sector[462:510])

    def test_signature_is_the_file_systems_own(self) -> None:
        def signature(data: bytes) -> bytes:
            return self.wrapped(data).pread(440, 4)

        # An NTFS boot sector; its serial number is at byte 72.
        volume = bytearray(b'\xeb\x52\x90NTFS    '.ljust(8192, b'\0'))
        volume[72:80] = b'12345678'
        other = bytearray(volume)
        other[72:80] = b'87654321'
        first = signature(bytes(volume))
        self.assertEqual(first, signature(bytes(volume)))
        self.assertNotEqual(first, signature(bytes(other)))
        self.assertNotEqual(first, signature(bytes(volume) + bytes(512)))
        self.assertNotEqual(bytes(4), first)

    def test_active(self) -> None:
        sector = self.wrapped(bytes(512), active=True).pread(0, 512)
        self.assertEqual(0x80, sector[446])

    def test_bytes(self) -> None:
        data = cases.noise(MIB + 512)
        image = self.wrapped(data)
        self.assertEqual(3 * MIB, image.virtual_size)
        whole = image.pread(0, image.virtual_size)
        self.assertEqual(bytes(MIB - 512), whole[512:MIB])
        self.assertEqual(data, whole[MIB : 2 * MIB + 512])
        self.assertEqual(bytes(MIB - 512), whole[2 * MIB + 512 :])
        for offset in (511, MIB - 1, 2 * MIB + 511, 3 * MIB - 2):
            self.assertEqual(
                whole[offset : offset + 3], image.pread(offset, 3)
            )

    def test_extents_cover_the_disk(self) -> None:
        end = 0
        for offset, length, _ in self.wrapped(b'x' * 1536).extents():
            self.assertEqual(end, offset)
            end += length
        self.assertEqual(2 * MIB, end)

    def test_too_large(self) -> None:
        inner = self.opened(raw.RawConverter(), bytes(512))
        inner.virtual_size = 1 << 42
        with self.assertRaises(exceptions.DiskImageError) as caught:
            wrap.WrappedImage(inner)
        self.assertEqual('wrap.too-large', caught.exception.id)
