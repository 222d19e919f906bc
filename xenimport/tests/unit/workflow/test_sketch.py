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


import os
import struct
import tempfile
import unittest
from unittest import mock

from xenimport.converter import base
from xenimport import exceptions
from xenimport.workflow import sketch

MIB = 1 << 20
SIZE = 64 * MIB
SECTOR = 512


def table(*entries):
    """A boot record with entries of (type, first sector, sectors)."""
    result = bytearray(SECTOR)
    for number, (kind, start, length) in enumerate(entries):
        struct.pack_into(
            '<B3sB3sII', result, 446 + 16 * number,
            0, b'', kind, b'', start, length,
        )  # fmt: skip
    result[510:] = b'\x55\xaa'
    return bytes(result)


def logical_disk():
    """Two logical partitions at 16 and 32 MiB in one that is extended."""
    first, second = 16 * MIB // SECTOR, 32 * MIB // SECTOR
    content = bytearray(SIZE)
    content[:SECTOR] = table((0x83, 2048, 2048), (0x0F, first, 65536))
    place = first * SECTOR
    content[place : place + SECTOR] = table(
        (0x83, 2048, 2048), (0x05, second - first, 4096)
    )
    place = second * SECTOR
    content[place : place + SECTOR] = table((0x83, 2048, 2048))
    content[-SECTOR:] = b'z' * SECTOR
    return bytes(content)


class FakeImage(base.DiskImage):
    format = 'fake'

    def __init__(self, content):
        self.content = content
        self.virtual_size = len(content)
        self.read = 0

    def extents(self):
        yield 0, self.virtual_size, True

    def pread_into(self, buffer, offset):
        self.read += len(buffer)
        buffer[:] = self.content[offset : offset + len(buffer)]

    def close(self):
        pass


class SketchTest(unittest.TestCase):
    def setUp(self):
        directory = tempfile.TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        self.path = os.path.join(directory.name, 'disk0.raw')

    def sketch(self, size=SIZE):
        result = sketch.Sketch(self.path, size)
        self.addCleanup(self.close, result)
        return result

    def close(self, kept):
        if os.path.exists(self.path):
            kept.close()

    def written(self):
        with open(self.path, 'rb') as stream:
            return stream.read()

    def expected(self, content):
        """The ends, and the sectors of both links."""
        result = bytearray(SIZE)
        for start, stop in (
            (0, 2 * MIB),
            (16 * MIB, 16 * MIB + SECTOR),
            (32 * MIB, 32 * MIB + SECTOR),
            (SIZE - 2 * MIB, SIZE),
        ):
            result[start:stop] = content[start:stop]
        return bytes(result)

    def test_disk_that_can_be_sought_in(self):
        image = FakeImage(logical_disk())
        self.sketch().fill(image)
        self.assertEqual(self.expected(image.content), self.written())
        self.assertLess(image.read, 5 * MIB)

    def test_disk_that_passes(self):
        content = logical_disk()
        kept = self.sketch()
        for offset in range(0, SIZE, MIB):
            kept.feed(offset, memoryview(content)[offset : offset + MIB])
        self.assertEqual(self.expected(content), self.written())

    def test_links_that_are_near_each_other(self):
        content = bytearray(SIZE)
        first = 16 * MIB // SECTOR
        content[:SECTOR] = table((0x05, first, 4096))
        for number in range(3):
            place = (first + number * 16) * SECTOR
            content[place : place + SECTOR] = table(
                (0x83, 1, 8), (0x05, (number + 1) * 16, 16)
            )
        kept = self.sketch()
        for offset in range(0, SIZE, MIB):
            kept.feed(offset, memoryview(content)[offset : offset + MIB])
        self.assertEqual(bytes(content), self.written())

    def test_file_system_without_room(self):
        for call in ('ftruncate', 'pwrite'):
            with (
                self.subTest(call),
                mock.patch.object(
                    os, call, autospec=True, side_effect=OSError(27, 'large')
                ),
                self.assertRaises(exceptions.MachineError) as caught,
            ):
                self.sketch().feed(0, memoryview(bytes(SECTOR)))
            self.assertEqual('machine.file-too-large', caught.exception.id)
            if os.path.exists(self.path):
                os.unlink(self.path)

    def test_links_in_a_circle(self):
        content = bytearray(logical_disk())
        content[32 * MIB : 32 * MIB + SECTOR] = table(
            (0x83, 2048, 2048), (0x05, 0, 4096), (0x05, 32768, 1)
        )
        self.sketch().fill(FakeImage(bytes(content)))

    def test_link_beyond_the_end(self):
        content = bytearray(SIZE)
        content[:SECTOR] = table((0x05, 0xFFFFFFFF, 1))
        self.sketch().fill(FakeImage(bytes(content)))
        self.assertEqual(bytes(content), self.written())

    def test_small_disk(self):
        content = table((0x83, 1, 1)) + b'x' * SECTOR
        self.sketch(1024).fill(FakeImage(content))
        self.assertEqual(content, self.written())

    def test_removed_in_the_end(self):
        kept = self.sketch()
        kept.close()
        kept.close()
        self.assertFalse(os.path.exists(self.path))
