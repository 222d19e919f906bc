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

import io
import struct
import unittest
import uuid

from oslo_utils.imageutils import format_inspector

from xenimport import model
from xenimport.remediation import base
from xenimport.remediation import disk
from xenimport.tests.unit.remediation import fakes

_LINUX = uuid.UUID('0FC63DAF-8483-4772-8E79-3D69D8477DE4')
_SECTORS = 256
_PROTECTIVE = (0xEE, b'\x00\x02\x00', 1, _SECTORS - 1)


def _mbr(*entries: tuple[int, bytes, int, int]) -> bytearray:
    data = bytearray(_SECTORS * 512)
    for number, (kind, chs, start, count) in enumerate(entries):
        struct.pack_into(
            '<B3sB3sII', data, 446 + 16 * number,
            0, chs, kind, b'\xff' * 3, start, count,
        )  # fmt: skip
    data[510:512] = b'\x55\xaa'
    return data


def _gpt(
    *partitions: tuple[int, int],
    protective: tuple[int, bytes, int, int] = _PROTECTIVE,
    alternate: int = _SECTORS - 1,
    backup: bool = True,
) -> bytes:
    data = _mbr(protective)
    header = struct.pack(
        '<8sIIIIQQQQ16sQIII', b'EFI PART', 0x10000, 92, 0, 0, 1, alternate,
        34, _SECTORS - 34, bytes(16), 2, 128, 128, 0,
    )  # fmt: skip
    data[512 : 512 + len(header)] = header
    if backup:
        data[-512 : -512 + len(header)] = header
    for number, (first, last) in enumerate(partitions):
        struct.pack_into(
            '<16s16sQQ', data, 1024 + 128 * number,
            _LINUX.bytes_le, b'\x01' * 16, first, last,
        )  # fmt: skip
    return bytes(data)


def _refused(data: bytes | bytearray) -> bool:
    """Whether Glance's inspector says no."""
    inspector = format_inspector.GPTInspector()
    stream = io.BytesIO(bytes(data))
    while chunk := stream.read(65536):
        inspector.eat_chunk(chunk)
    inspector.finish()
    try:
        inspector.safety_check()
    except format_inspector.SafetyCheckFailed:
        return True
    return False


class DiskTest(unittest.TestCase):
    def _run(
        self, kind: type[base.Check], data: bytes | bytearray
    ) -> tuple[list[model.Finding], list[model.Finding], bytes]:
        guest = fakes.FakeGuest(
            disks={'/dev/sda': bytes(data)}, system=fakes.operating_system()
        )
        found, _changes, left = fakes.run(kind(fakes.request()), guest)
        return found, left, bytes(guest.disks['/dev/sda'])

    def test_a_good_disk(self) -> None:
        for data in (
            _gpt((40, 99)),
            _mbr((0x83, b'\0\0\0', 8, 200)),
            bytes(_SECTORS * 512),
        ):
            for kind in disk.DiskRemediation.CHECKS:
                found, _left, _data = self._run(kind, data)
                self.assertEqual([], found)

    def test_protective_entry(self) -> None:
        for protective in (
            (0xEE, b'\x00\x01\x00', 1, _SECTORS - 1),
            (0xEE, b'\xff\xff\xff', 1, _SECTORS - 1),
            (0xEE, b'\x00\x02\x00', 0, _SECTORS - 1),
        ):
            with self.subTest(protective=protective):
                bad = _gpt((40, 99), protective=protective)
                self.assertTrue(_refused(bad))
                found, left, mended = self._run(disk.ProtectiveEntry, bad)
                self.assertIs(model.Severity.BLOCKER, found[0].severity)
                self.assertEqual([], left)
                self.assertFalse(_refused(mended))
                self.assertEqual(bad[:446], mended[:446])
                self.assertEqual(bad[510:], mended[510:])

    def test_protective_entry_in_another_slot(self) -> None:
        bad = bytearray(_gpt((40, 99)))
        bad[446:478] = bytes(16) + bad[446:462]
        self.assertTrue(_refused(bad))
        _found, left, mended = self._run(disk.ProtectiveEntry, bad)
        self.assertEqual([], left)
        self.assertFalse(_refused(mended))

    def test_hybrid(self) -> None:
        data = _mbr(_PROTECTIVE, (0x83, b'\0\0\0', 40, 9))
        self.assertTrue(_refused(data))
        found, _left, _data = self._run(disk.HybridMbr, data)
        self.assertIn('1: 0xee, 2: 0x83', found[0].evidence)
        self.assertIsNone(found[0].repair)
        self.assertIsNone(found[0].loss)

    def test_no_fix_names_a_device_of_the_appliance(self) -> None:
        # Pasted on the user's machine, /dev/sda would be a disk of theirs.
        data = _gpt((40, 99), backup=False)
        guest = fakes.FakeGuest(disks={'/dev/sda': data})
        (finding,) = disk.GptBackup(fakes.request()).diagnose(guest)
        self.assertIn('in the source guest', finding.fix)
        self.assertNotIn('/dev/', finding.fix)

    def test_gpt_backup(self) -> None:
        for data in (_gpt((40, 99), backup=False), _gpt(alternate=200)):
            guest = fakes.FakeGuest(disks={'/dev/sda': data})
            check = disk.GptBackup(fakes.request())
            (finding,) = check.diagnose(guest)
            self.assertIn(f'the last one is {_SECTORS - 1}', finding.evidence)
            expanded: list[str] = []
            guest._call_part_expand_gpt = expanded.append  # type: ignore
            check.repair(guest, finding)
            self.assertEqual(['/dev/sda'], expanded)

    def test_partition_outside(self) -> None:
        for data, name in (
            (_gpt((40, 99), (100, _SECTORS)), 'partition 2'),
            (_mbr((0x83, b'\0\0\0', 8, _SECTORS - 7)), 'partition 1'),
            (_gpt((90, 80)), 'partition 1'),
        ):
            found, left, _data = self._run(disk.PartitionOutside, data)
            self.assertEqual(
                [f'/dev/sda {name}'], [finding.subject for finding in found]
            )
            self.assertEqual(found, left)

    def test_a_partition_may_end_with_the_disk(self) -> None:
        data = _mbr((0x83, b'\0\0\0', 8, _SECTORS - 8))
        found, _left, _data = self._run(disk.PartitionOutside, data)
        self.assertEqual([], found)

    def test_a_logical_partition_outside(self) -> None:
        data = _mbr((0x05, b'\0\0\0', 64, 128))
        record = _mbr((0x83, b'\0\0\0', 1, 20), (0x05, b'\0\0\0', 32, 40))[
            :512
        ]
        data[64 * 512 : 65 * 512] = record
        record = _mbr((0x83, b'\0\0\0', 1, 900))[:512]
        data[96 * 512 : 97 * 512] = record
        found, _left, _data = self._run(disk.PartitionOutside, data)
        self.assertEqual(
            ['/dev/sda partition 6'], [finding.subject for finding in found]
        )

    def test_a_chain_that_is_a_loop_ends(self) -> None:
        data = _mbr((0x05, b'\0\0\0', 64, 128))
        record = _mbr((0x05, b'\0\0\0', 0, 40))[:512]
        data[64 * 512 : 65 * 512] = record
        self._run(disk.PartitionOutside, data)

    def test_hostile_gpt_headers(self) -> None:
        good = _gpt((40, 99))
        for at, value in (
            (512 + 72, struct.pack('<Q', 1 << 62)),
            (512 + 80, struct.pack('<I', 0xFFFFFFFF)),
            (512 + 84, struct.pack('<I', 0)),
        ):
            data = bytearray(good)
            data[at : at + len(value)] = value
            found, _left, _data = self._run(disk.PartitionOutside, data)
            self.assertEqual([], found)

    def test_a_file_system_without_a_table(self) -> None:
        data = _mbr((0x83, b'\0\0\0', 8, 99999))
        data[3:11] = b'NTFS    '
        found, _left, _data = self._run(disk.PartitionOutside, data)
        self.assertEqual([], found)

    def test_no_operating_system(self) -> None:
        guest = fakes.FakeGuest(disks={'/dev/sda': bytes(512)})
        (finding,) = disk.NoOperatingSystem(fakes.request()).diagnose(guest)
        self.assertEqual('disk.no-operating-system', finding.id)
        self.assertIs(model.Severity.BLOCKER, finding.severity)
        self.assertTrue(finding.loss)

    def test_matches_everything(self) -> None:
        remediation = disk.DiskRemediation()
        self.assertTrue(remediation.matches(None))
        self.assertTrue(remediation.matches(fakes.operating_system()))
