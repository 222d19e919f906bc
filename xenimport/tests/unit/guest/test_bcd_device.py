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


"""Device elements: read, kept to the byte, and moved to other partitions.

Expected bytes: the element that mistyprojects.co.uk publishes of a Windows
8.1 ("Devices Partition - Data"), and the layout in the module's docstring.
"""

from __future__ import annotations

import struct
import unittest
import uuid

from xenimport.guest import bcd_device
from xenimport.tests import bcd_stores

#: Windows 8.1 on a disk with the signature 0xb3eba8f1, in the partition
#: that starts in sector 718848.
PUBLISHED = bytes.fromhex(
    '00000000000000000000000000000000'
    '06000000000000004800000000000000'
    '0000f015000000000000000000000000'
    '0000000001000000f1a8ebb300000000'
    '00000000000000000000000000000000'
    '0000000000000000'
)
DISK = '5f7e8c8a-6a0b-4d3c-9c1f-0123456789ab'
PARTITION = '0b9d5a31-4f2e-4b7a-8d6c-ba9876543210'
OPTIONS = '{ae5534e0-a924-466c-b836-758539a3ee3a}'
WINRE = '\\Recovery\\WindowsRE\\Winre.wim'


def parse(data: bytes) -> bcd_device.Device:
    device = bcd_device.parse(data)
    assert device is not None
    return device


class PartitionTest(unittest.TestCase):
    def test_mbr(self) -> None:
        partition = parse(PUBLISHED).partition
        assert partition is not None
        self.assertEqual(0xB3EBA8F1, partition.signature)
        self.assertEqual(
            bcd_device.Partition.of_mbr(0xB3EBA8F1, 718848 * 512), partition
        )
        self.assertIn('0xb3eba8f1', str(partition))
        self.assertIn('368050176', str(partition))

    def test_made(self) -> None:
        partition = bcd_device.Partition.of_mbr(0xB3EBA8F1, 718848 * 512)
        made = bcd_device.partition_device(partition).encode()
        self.assertEqual(PUBLISHED, made)

    def test_gpt(self) -> None:
        data = bcd_stores.gpt_device(DISK, PARTITION)
        device = parse(data)
        partition = bcd_device.Partition.of_gpt(
            uuid.UUID(DISK), uuid.UUID(PARTITION)
        )
        self.assertEqual(partition, device.partition)
        self.assertIsNone(partition.signature)
        self.assertEqual(data, bcd_device.partition_device(partition).encode())
        # The first three fields of a GUID are little-endian on a disk.
        self.assertEqual('315a9d0b2e4f7a4b', data[0x20:0x28].hex())

    def test_of_no_hard_disk(self) -> None:
        data = bytearray(PUBLISHED)
        data[0x30] = 2  # a CD-ROM
        device = parse(bytes(data))
        self.assertIsNone(device.partition)
        self.assertEqual(bytes(data), device.encode())


class OtherDeviceTest(unittest.TestCase):
    def test_boot_and_locate(self) -> None:
        for data, kind in (
            (bcd_stores.boot_device(), bcd_device.BOOT),
            (bcd_stores.locate_device(0x12000002), bcd_device.LOCATE),
        ):
            device = parse(data)
            self.assertEqual(kind, device.descriptor.type)
            self.assertIsNone(device.partition)
            self.assertEqual(data, device.encode())
            other = bcd_device.Partition.of_mbr(1, 2)
            self.assertEqual(device, device.replaced(other))

    def test_legacy_partition(self) -> None:
        # As a partition, with a number for an id (ReactOS' bl.h).
        data = PUBLISHED[:16] + b'\2' + PUBLISHED[17:]
        device = parse(data)
        self.assertIsNone(device.partition)
        self.assertEqual(data, device.encode())
        other = bcd_device.Partition.of_mbr(1, 2)
        self.assertEqual(data, device.replaced(other).encode())

    def test_unknown_type(self) -> None:
        data = bytes(16) + struct.pack('<4I', 11, 7, 20, 9) + b'wxyz' + b'!'
        device = parse(data)
        self.assertEqual(11, device.descriptor.type)
        self.assertEqual(b'!', device.rest)
        self.assertEqual(data, device.encode())
        self.assertEqual('a device of type 11', str(device))


class NestedTest(unittest.TestCase):
    inner = bcd_stores.mbr_device(0x11223344, 0x100000)

    def test_ram_disk(self) -> None:
        data = bcd_stores.ramdisk_device(self.inner, WINRE, OPTIONS)
        self.assertEqual(200, len(data))
        self.assertEqual(0x90, data[0x3C])
        device = parse(data)
        self.assertEqual(data, device.encode())
        self.assertEqual(OPTIONS, device.options_object)
        self.assertEqual(WINRE, device.path)
        assert device.partition is not None
        self.assertEqual(0x11223344, device.partition.signature)
        self.assertIn('RAM disk', str(device))

    def test_moved(self) -> None:
        new = bcd_stores.gpt_device(DISK, PARTITION)
        partition = parse(new).partition
        assert partition is not None
        for make in (
            lambda inner: inner,
            lambda inner: bcd_stores.file_device(inner, WINRE),
            lambda inner: bcd_stores.ramdisk_device(inner, WINRE, OPTIONS),
            lambda inner: bcd_stores.virtual_disk_partition(inner, '\\a.vhd'),
            lambda inner: bcd_stores.ramdisk_device(
                bcd_stores.virtual_disk_partition(inner, '\\a.vhd'),
                WINRE,
                OPTIONS,
            ),
        ):
            device = parse(make(self.inner))
            self.assertEqual(make(self.inner), device.encode())
            self.assertEqual(make(new), device.replaced(partition).encode())

    def test_path_of_the_innermost_file(self) -> None:
        disk = bcd_stores.virtual_disk_partition(self.inner, '\\disk.vhd')
        device = parse(bcd_stores.ramdisk_device(disk, WINRE, OPTIONS))
        # That is the one on the hard disk's partition.
        self.assertEqual('\\disk.vhd', device.path)

    def test_on_the_boot_device(self) -> None:
        data = bcd_stores.ramdisk_device(
            bcd_stores.boot_device(), '\\sources\\boot.wim', OPTIONS
        )
        device = parse(data)
        self.assertIsNone(device.partition)
        self.assertEqual('\\sources\\boot.wim', device.path)
        self.assertEqual(data, device.encode())


class HostileTest(unittest.TestCase):
    def test_cut(self) -> None:
        whole = bcd_stores.ramdisk_device(
            bcd_stores.mbr_device(1, 2), WINRE, OPTIONS
        )
        for length in range(len(whole)):
            self.assertIsNone(bcd_device.parse(whole[:length]), length)

    def test_sizes_that_lie(self) -> None:
        for size in (0, 15, 0x49, 0xFFFFFFFF):
            data = bytearray(PUBLISHED)
            data[0x18:0x1C] = struct.pack('<I', size)
            self.assertIsNone(bcd_device.parse(bytes(data)), size)

    def test_partition_too_small(self) -> None:
        data = bytes(16) + struct.pack('<4I', 6, 0, 16, 0)
        self.assertIsNone(bcd_device.parse(data))

    def test_inner_size_lies(self) -> None:
        data = bytearray(
            bcd_stores.ramdisk_device(
                bcd_stores.mbr_device(1, 2), WINRE, OPTIONS
            )
        )
        for place in (0x38, 0x3C, 0x4C):
            for value in (0, 0x91, 0xFFFFFFFF):
                changed = data.copy()
                changed[place : place + 4] = struct.pack('<I', value)
                device = parse(bytes(changed))
                # Not understood: kept, and nothing in it is touched.
                self.assertIsNone(device.partition)
                other = bcd_device.Partition.of_mbr(1, 2)
                moved = device.replaced(other)
                self.assertEqual(bytes(changed), moved.encode())

    def test_deep(self) -> None:
        data = bcd_stores.mbr_device(1, 2)
        for _ in range(500):
            data = bcd_stores.file_device(data, '\\a')
        device = parse(data)
        self.assertEqual(data, device.encode())
        self.assertLess(len(list(device.descriptor.chain())), 20)

    def test_too_large(self) -> None:
        data = bytes(16) + struct.pack('<4I', 5, 0, 1 << 17, 0)
        self.assertIsNone(bcd_device.parse(data.ljust(1 << 18, b'\0')))

    def test_path_that_is_no_text(self) -> None:
        data = bcd_stores.ramdisk_device(
            bcd_stores.mbr_device(1, 2), 'ab', OPTIONS
        )
        changed = data[:-6] + b'\x00\xd8\xff' + data[-3:]
        device = parse(changed)
        self.assertEqual(changed, device.encode())
        self.assertTrue(device.path.isprintable() or device.path)
