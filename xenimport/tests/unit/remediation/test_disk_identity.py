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


"""How disks and partitions are known, read from the disks."""

from __future__ import annotations

import struct
import unittest
import uuid

from xenimport.guest import bcd_device
from xenimport.remediation.windows import disk_identity
from xenimport.tests.unit.remediation import windows_boot

_EXPECTED = {
    '/dev/sda1': bcd_device.Partition.of_gpt(
        uuid.UUID(windows_boot.DISK_GUID), uuid.UUID(windows_boot.ESP_GUID)
    ),
    '/dev/sda2': bcd_device.Partition.of_gpt(
        uuid.UUID(windows_boot.DISK_GUID), uuid.UUID(windows_boot.WINDOWS_GUID)
    ),
}


def partitions(device: bytes) -> dict[str, bcd_device.Partition]:
    guest = windows_boot.guest(uefi=True, device=device)
    return disk_identity.partitions(windows_boot.real(guest))


def header(entries: int, number: int, size: int) -> bytes:
    """A disk whose GPT has its entries somewhere else."""
    data = bytearray(windows_boot.gpt())
    data[512 + 72 : 512 + 88] = struct.pack('<QII', entries, number, size)
    return bytes(data)


class GptTest(unittest.TestCase):
    def test_usual_place(self) -> None:
        self.assertEqual(_EXPECTED, partitions(windows_boot.gpt()))

    def test_entries_elsewhere(self) -> None:
        data = bytearray(header(80, 4, 256))
        first, second = data[1024:1152], data[1152:1280]
        data[1024:1280] = bytes(256)
        data[80 * 512 : 80 * 512 + 128] = first
        data[80 * 512 + 256 : 80 * 512 + 384] = second
        # What is behind the 128 bytes that are defined is no partition.
        data[80 * 512 + 384 : 80 * 512 + 512] = second[:16] * 2 + second[32:]
        self.assertEqual(_EXPECTED, partitions(bytes(data)))

    def test_nonsense(self) -> None:
        for entries, number, size in (
            (0, 128, 128),
            (1, 128, 128),
            (1 << 40, 128, 128),
            ((1 << 64) - 1, 128, 128),
            (2, 0, 128),
            (2, 0xFFFFFFFF, 128),
            (2, 128, 0),
            (2, 128, 0xFFFFFFFF),
        ):
            found = partitions(header(entries, number, size))
            self.assertEqual({}, found, (entries, number, size))

    def test_cut(self) -> None:
        for length in (1, 511, 600, 1100):
            self.assertEqual({}, partitions(windows_boot.gpt()[:length]))


class MbrTest(unittest.TestCase):
    def test_signature_to_be(self) -> None:
        guest = windows_boot.real(
            windows_boot.guest(device=windows_boot.mbr(0))
        )
        self.assertEqual(0, disk_identity.signature(guest, '/dev/sda'))
        found = disk_identity.partitions(guest, {'/dev/sda': 7})
        self.assertEqual(
            bcd_device.Partition.of_mbr(7, windows_boot.WINDOWS_OFFSET),
            found['/dev/sda2'],
        )

    def test_no_table(self) -> None:
        guest = windows_boot.guest()
        guest.table = None
        real = windows_boot.real(guest)
        self.assertIsNone(disk_identity.signature(real, '/dev/sda'))
        self.assertEqual({}, disk_identity.partitions(real))
