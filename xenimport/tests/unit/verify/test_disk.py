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

"""The checks of a finished RAW file.

Tables are built here from UEFI 2.10 and the usual layout of an MBR; what
sfdisk prints was copied from a terminal. The functional tests run the
programs themselves.
"""

from __future__ import annotations

import json
import os
import struct
import subprocess
import tempfile
import typing
import unittest
from unittest import mock
import uuid
import zlib

from oslo_concurrency import processutils

from xenimport import exceptions
from xenimport import model
from xenimport.verify import disk
from xenimport.workflow import diagnosis

MIB = 1 << 20
SECTORS = 20 * MIB // 512
LINUX = uuid.UUID('0FC63DAF-8483-4772-8E79-3D69D8477DE4').bytes_le


def mbr(*entries: tuple[int, int, int, int], signature: int = 0x1234) -> bytes:
    """Entries are (flag, type, first sector, sectors)."""
    table = b''.join(
        struct.pack('<B3sB3sII', flag, b'\0\2\0', kind, b'\0\2\0', *place)
        for flag, kind, *place in entries
    )
    return (
        bytes(440)
        + struct.pack('<IH', signature, 0)
        + table.ljust(64, b'\0')
        + b'\x55\xaa'
    )


def gpt_array(*partitions: tuple[int, int]) -> bytes:
    """Partitions are (first sector, last sector)."""
    return b''.join(
        struct.pack('<16s16sQQQ72s', LINUX, bytes([n]) * 16, *place, 0, b'')
        for n, place in enumerate(partitions, 1)
    ).ljust(128 * 128, b'\0')


def gpt_header(own: int, other: int, array_lba: int, array: bytes) -> bytes:
    def pack(crc: int) -> bytes:
        return struct.pack(
            '<8sIIIIQQQQ16sQIII',
            b'EFI PART',
            0x10000,
            92,
            crc,
            0,
            own,
            other,
            34,
            max(own, other) - 33,
            b'd' * 16,
            array_lba,
            128,
            128,
            zlib.crc32(array),
        )

    return pack(zlib.crc32(pack(0))).ljust(512, b'\0')


class Base(unittest.TestCase):
    """A sparse disk of 20 MiB, and stand-ins for sfdisk and sgdisk."""

    def setUp(self) -> None:
        super().setUp()
        handle, self.path = tempfile.mkstemp()
        self.addCleanup(os.unlink, self.path)
        os.close(handle)
        os.truncate(self.path, 20 * MIB)
        self.answers: dict[str, typing.Any] = {
            'sfdisk': processutils.ProcessExecutionError(
                stderr='sfdisk: x: does not contain a recognized partition '
                'table',
                exit_code=1,
            ),
            'sgdisk': 'No problems found. 2014 free sectors',
        }
        self.ran: list[dict[str, typing.Any]] = []
        for target, new in (
            ('oslo_concurrency.processutils.execute', self._execute),
            ('shutil.which', self._which),
        ):
            patcher = mock.patch(target, new)
            patcher.start()
            self.addCleanup(patcher.stop)

    def _which(self, program: str, path: str) -> str | None:
        return f'/sbin/{program}' if program in self.answers else None

    def _execute(
        self, program: str, *words: str, **settings: typing.Any
    ) -> tuple[str, str]:
        self.ran.append(settings)
        answer = self.answers[os.path.basename(program)]
        if isinstance(answer, Exception):
            raise answer
        return answer, ''

    def write(self, offset: int, data: bytes) -> None:
        with open(self.path, 'r+b') as file:
            file.seek(offset)
            file.write(data)

    def sfdisk(self, *partitions: dict[str, typing.Any]) -> None:
        self.answers['sfdisk'] = json.dumps(
            {
                'partitiontable': {
                    'label': 'dos',
                    'id': '0x00001234',
                    'device': 'x.raw',
                    'unit': 'sectors',
                    'sectorsize': 512,
                    'partitions': list(partitions),
                }
            }
        )

    def verify(self, size: int = 20 * MIB) -> list[tuple[str, str]]:
        self.found = disk.verify(self.path, size)
        return [(item.id, item.severity.value) for item in self.found]


class FileTest(Base):
    def test_bare_disk_is_fine(self) -> None:
        self.assertEqual([], self.verify())

    def test_other_size(self) -> None:
        # The founding story: 10 GiB became 8591048704 bytes.
        self.assertEqual([('verify.size', 'blocker')], self.verify(10 << 30))
        self.assertIn('10737418240', self.found[0].evidence)
        self.assertIn('20971520', self.found[0].evidence)

    def test_half_a_sector(self) -> None:
        os.truncate(self.path, 20 * MIB + 100)
        self.assertEqual(
            [('verify.size-odd', 'warning')], self.verify(20 * MIB + 100)
        )

    def test_absent_file(self) -> None:
        with self.assertRaises(exceptions.VerificationError) as caught:
            disk.verify(self.path + '-absent', 5)
        self.assertEqual('verify.unreadable', caught.exception.id)


class SafetyTest(Base):
    """As Glance judges it; each of these was refused by a real one."""

    def test_mbr_without_partitions(self) -> None:
        self.write(510, b'\x55\xaa')
        self.assertEqual([('verify.unsafe', 'blocker')], self.verify())
        self.assertIn('check "mbr" fails', self.found[0].evidence)

    def test_protective_entry_with_wrong_chs(self) -> None:
        sector = bytearray(mbr((0, 0xEE, 1, SECTORS - 1)))
        sector[447:450] = b'\0\1\0'
        self.write(0, bytes(sector))
        self.assertIn(('verify.unsafe', 'blocker'), self.verify())
        self.assertIn('invalid start CHS', self.found[0].evidence)

    def test_disk_that_looks_like_qcow2(self) -> None:
        self.write(0, b'QFI\xfb' + struct.pack('>I', 3) + bytes(504))
        self.assertIn(('verify.not-raw', 'blocker'), self.verify())
        self.assertIn('qcow2', self.found[0].evidence)


class MbrTest(Base):
    def test_partitions_inside(self) -> None:
        self.write(0, mbr((0x80, 0x83, 2048, SECTORS - 2048)))
        self.sfdisk(
            {
                'node': 'x.raw1',
                'start': 2048,
                'size': SECTORS - 2048,
                'type': '83',
                'bootable': True,
            }
        )
        self.assertEqual([], self.verify())

    def test_one_sector_too_many(self) -> None:
        self.write(0, mbr((0, 0x83, 2048, SECTORS - 2047)))
        self.sfdisk(
            {
                'node': 'x.raw1',
                'start': 2048,
                'size': SECTORS - 2047,
                'type': '83',
            }
        )
        self.assertEqual(
            [('disk.partition-outside', 'blocker')], self.verify()
        )

    def test_logical_partition_outside_is_named(self) -> None:
        self.write(0, mbr((0, 5, 2048, 8192)))
        self.sfdisk(
            {'node': 'x.raw1', 'start': 2048, 'size': 8192, 'type': '5'},
            {'node': 'x.raw6', 'start': 4096, 'size': 99999, 'type': '83'},
        )
        self.assertEqual(
            [('disk.partition-outside', 'blocker')], self.verify()
        )
        self.assertIn('partition 6', self.found[0].evidence)
        # The id of the diagnosis, so that one --accept is enough.
        self.assertEqual(
            [],
            diagnosis.blockers(
                self.found, {'disk.partition-outside'}, repairable=True
            ),
        )

    def test_signature(self) -> None:
        for kind, flag, signature, expected in (
            ('7', 0x80, 0x1234, []),
            ('7', 0, 0, [('disk.mbr-signature-zero', 'warning')]),
            ('83', 0x80, 0, [('disk.mbr-signature-zero', 'note')]),
            ('83', 0, 0, []),
            ('07', 0, 0, [('disk.mbr-signature-zero', 'warning')]),
        ):
            with self.subTest(kind=kind, flag=flag, signature=signature):
                self.write(
                    0,
                    mbr(
                        (flag, int(kind, 16), 2048, 4096),
                        signature=signature,
                    ),
                )
                self.sfdisk(
                    {
                        'node': 'x.raw1',
                        'start': 2048,
                        'size': 4096,
                        'type': kind,
                        'bootable': bool(flag),
                    }
                )
                self.assertEqual(expected, self.verify())

    def test_table_that_sfdisk_refuses(self) -> None:
        self.answers['sfdisk'] = processutils.ProcessExecutionError(
            stderr='sfdisk: evil \x1b[31m', exit_code=1
        )
        self.assertEqual(
            [('verify.partition-table', 'blocker')], self.verify()
        )
        self.assertTrue(self.found[0].evidence.isprintable())

    def test_nonsense_from_sfdisk(self) -> None:
        for answer in ('', '{}', '{"partitiontable": {"partitions": [{}]}}'):
            self.answers['sfdisk'] = answer
            self.assertEqual(
                [('verify.partition-table', 'blocker')], self.verify()
            )

    def test_sfdisk_is_missing(self) -> None:
        del self.answers['sfdisk']
        with self.assertRaises(exceptions.MachineError) as caught:
            self.verify()
        self.assertEqual('machine.no-sfdisk', caught.exception.id)

    def test_children_run_under_limits(self) -> None:
        self.verify()
        limits = self.ran[0]['prlimit']
        self.assertEqual(1 << 30, limits.address_space)
        self.assertEqual(20, limits.cpu_time)
        self.assertEqual(60, self.ran[0]['timeout'])

    def test_child_that_hangs_is_ended(self) -> None:
        child = mock.create_autospec(subprocess.Popen, instance=True)

        def hang(*words: str, **settings: typing.Any) -> tuple[str, str]:
            settings['on_execute'](child)
            raise subprocess.TimeoutExpired('sfdisk', 60)

        with mock.patch('oslo_concurrency.processutils.execute', hang):
            self.assertEqual(
                [('verify.partition-table', 'blocker')], self.verify()
            )
        child.kill.assert_called_once_with()


class GptTest(Base):
    """Headers in sectors 1 and last, arrays beside them."""

    LAST = SECTORS - 1

    def build(self, *partitions: tuple[int, int], last: int = LAST) -> None:
        array = gpt_array(*partitions)
        self.write(0, mbr((0, 0xEE, 1, last)))
        self.write(512, gpt_header(1, last, 2, array))
        self.write(1024, array)
        self.write((last - 32) * 512, array)
        self.write(last * 512, gpt_header(last, 1, last - 32, array))

    def test_sound(self) -> None:
        self.build((2048, self.LAST - 33))
        self.assertEqual([], self.verify())

    def test_cut_disk(self) -> None:
        self.build((2048, 4095), (4096, self.LAST - 33))
        os.truncate(self.path, 15 * MIB)
        self.assertEqual(
            [
                ('verify.gpt-backup', 'blocker'),
                ('disk.partition-outside', 'blocker'),
            ],
            self.verify(15 * MIB),
        )
        self.assertIn('outside of the disk', self.found[0].evidence)
        self.assertIn('partition 2', self.found[1].evidence)

    def test_enlarged_disk_is_a_warning(self) -> None:
        self.build((2048, 4095))
        os.truncate(self.path, 25 * MIB)
        self.assertEqual(
            [('verify.gpt-backup', 'warning')], self.verify(25 * MIB)
        )

    def test_zeroed_backup(self) -> None:
        self.build((2048, 4095))
        self.write(self.LAST * 512, bytes(512))
        self.assertEqual([('verify.gpt-backup', 'blocker')], self.verify())
        self.assertIn('damaged', self.found[0].title)

    def test_one_bit_in_the_header(self) -> None:
        self.build((2048, 4095))
        self.write(512 + 60, b'\xff')
        self.assertEqual([('verify.gpt-header', 'blocker')], self.verify())
        self.assertIn('checksum of the header', self.found[0].evidence)

    def test_one_bit_in_the_array(self) -> None:
        self.build((2048, 4095))
        self.write(1024 + 60, b'\xff')
        self.assertEqual([('verify.gpt-header', 'blocker')], self.verify())
        self.assertIn('checksum of the array', self.found[0].evidence)

    def test_protective_entry_without_a_header(self) -> None:
        self.write(0, mbr((0, 0xEE, 1, self.LAST)))
        self.assertEqual([('verify.gpt-header', 'blocker')], self.verify())

    def test_partition_past_the_end(self) -> None:
        self.build((2048, self.LAST + 1))
        self.assertEqual(
            [('disk.partition-outside', 'blocker')], self.verify()
        )

    def test_huge_array_is_not_read(self) -> None:
        self.build((2048, 4095))
        header = bytearray(gpt_header(1, self.LAST, 2, b''))
        header[80:88] = struct.pack('<II', 0xFFFFFFFF, 0xFFFFFFFF)
        header[16:20] = bytes(4)
        header[16:20] = struct.pack('<I', zlib.crc32(header[:92]))
        self.write(512, bytes(header))
        self.assertEqual([('verify.gpt-header', 'blocker')], self.verify())
        self.assertIn('4294967295 entries', self.found[0].evidence)

    def test_second_opinion(self) -> None:
        self.build((2048, 4095))
        self.answers['sgdisk'] = (
            '\nProblem: partitions 1 and 2 overlap:\n  Partition 1: x\n\n'
            "Caution: Partition 2 doesn't end on a boundary.\n\n"
            'Identified 1 problems!\n'
        )
        self.assertEqual([('verify.gpt-problem', 'warning')], self.verify())
        self.assertEqual(
            'Problem: partitions 1 and 2 overlap: Partition 1: x',
            self.found[0].evidence,
        )

    def test_without_sgdisk(self) -> None:
        self.build((2048, 4095))
        del self.answers['sgdisk']
        self.assertEqual([], self.verify())

    def test_findings_say_what_to_do(self) -> None:
        self.build((2048, self.LAST + 1))
        self.write(self.LAST * 512, bytes(512))
        for finding in disk.verify(self.path, 5):
            self.assertTrue(finding.fix)
            self.assertTrue(finding.subject)
            self.assertIsInstance(finding.severity, model.Severity)
