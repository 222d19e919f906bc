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

import io
import resource
import subprocess
import sys
import typing
import unittest

from xenimport import exceptions
from xenimport import model
from xenimport.converter import base
from xenimport.converter import vhd
from xenimport.converter import vhd_format
from xenimport.converter import vhd_table
from xenimport.tests import packages
from xenimport.tests import vhd_packages
from xenimport.tests.unit.converter import cases

GIB = 1 << 30
TIB = 1 << 40


class LargeTest(cases.DiskTestCase):
    """Disks whose size other readers refuse; the files are sparse."""

    def large(
        self, write: typing.Callable[[typing.BinaryIO], None]
    ) -> base.DiskImage:
        path = self.path('large.vhd')
        with open(path, 'wb') as stream:
            write(stream)
            size = stream.seek(0, io.SEEK_END)
        region = model.Region(path, 'large.vhd', (model.Piece(0, size, 0),))
        image = vhd.VhdConverter().open(
            model.Package(path, 'disk', {'large.vhd': region}),
            model.Disk('d', 'd', 0, region),
        )
        self.addCleanup(image.close)
        return image

    def assert_reads(
        self,
        size: int,
        block_size: int = packages.BLOCK_SIZE,
        **options: typing.Any,
    ) -> None:
        writes = {4096: cases.noise(4096), size - 512: cases.noise(512)}
        image = self.large(
            vhd_packages.Vhd(size, writes, block_size, **options).write
        )
        end = (size - 512) // 4096 * 4096
        self.assertEqual(size, image.virtual_size)
        self.assertEqual(writes[4096], image.pread(4096, 4096))
        self.assertEqual(writes[size - 512], image.pread(size - 512, 512))
        self.assertEqual(bytes(4096), image.pread(size // 2, 4096))
        self.assertEqual(
            [(4096, 4096), (end, size - end)],
            [
                (offset, length)
                for offset, length, allocated in image.extents()
                if allocated
            ],
        )

    def test_more_than_qemu_reads(self) -> None:
        # 2040 GiB is what qemu-img reads of a VHD (facts).
        self.assert_reads(2047 * GIB + GIB // 2)

    def test_more_than_two_tebibytes(self) -> None:
        self.assert_reads(5 * TIB + 512)

    def test_table_for_the_largest_disk(self) -> None:
        # XenServer makes the table for 2 TiB, that the disk may grow.
        self.assert_reads(8 * GIB, entries=1 << 20, batmap=True)

    def test_smallest_blocks(self) -> None:
        self.assert_reads(64 * GIB + 512, 4096)

    def test_largest_blocks(self) -> None:
        self.assert_reads(8 * GIB, 8 << 20)


class BoundsTest(unittest.TestCase):
    def read(self, pages: list[bytes]) -> vhd_table.Table:
        data = b''.join(pages)
        header = vhd_format.Header(0, len(data) // 4, 4096, bytes(16), b'', ())
        return vhd_table.read_table(
            lambda offset, length: data[offset : offset + length],
            header,
            len(data) // 4,
            'x',
        )

    def test_unused_pages_are_not_kept(self) -> None:
        unused = b'\xff' * 4096
        table = self.read([unused, unused, bytes(4) + unused[4:], unused[:8]])
        self.assertEqual(3 * 1024 + 2, len(table))
        self.assertEqual(1, table.pages_kept)
        self.assertEqual([(2048, 0)], list(table.allocated()))
        self.assertEqual(0xFFFFFFFF, table[3 * 1024 + 1])

    def test_too_many_blocks(self) -> None:
        with self.assertRaises(exceptions.DiskImageError) as caught:
            self.read([bytes(4096)] * (4096 + 1))
        self.assertEqual('vhd.table', caught.exception.id)

    def test_too_many_pages(self) -> None:
        page = bytes(4) + b'\xff' * 4092
        with self.assertRaises(exceptions.DiskImageError) as caught:
            self.read([page] * (16384 + 1))
        self.assertEqual('vhd.table', caught.exception.id)


_HOSTILE = """
import sys, tempfile
from xenimport import exceptions, model
from xenimport.converter import vhd
from xenimport.tests import packages
entries = 1 << 27
tail = packages.footer(entries * 4096)
header = packages.dynamic_header(entries, block_size=4096)
with tempfile.TemporaryFile() as stream:
    stream.write(tail + header)
    stream.seek(1536 + entries * 4)
    stream.write(tail)
    stream.flush()
    size = stream.tell()
    path = f'/proc/self/fd/{stream.fileno()}'
    region = model.Region(path, 'x', (model.Piece(0, size, 0),))
    disk = model.Disk('d', 'd', 0, region)
    try:
        vhd.VhdConverter().open(model.Package('x', 'x'), disk)
    except exceptions.DiskImageError as error:
        print(error.id)
"""


class MemoryTest(unittest.TestCase):
    def test_hostile_tables_in_half_a_gibibyte(self) -> None:
        # A table of half a gibibyte, without a byte of it on the disk:
        # every block is said to be at the very start of the file.
        limit = 512 << 20
        done = subprocess.run(
            [sys.executable, '-c', _HOSTILE],
            capture_output=True,
            text=True,
            timeout=60,
            preexec_fn=lambda: resource.setrlimit(
                resource.RLIMIT_AS, (limit, limit)
            ),
        )
        self.assertEqual(('vhd.table\n', ''), (done.stdout, done.stderr))


class BitsTest(unittest.TestCase):
    """Runs of bits against a plain loop over each of them."""

    def bitmaps(self) -> typing.Iterator[bytes]:
        yield bytes(64)
        yield b'\xff' * 64
        yield b'\x01' + bytes(15) + b'\x80' + bytes(16) + b'\x10' + bytes(31)
        for seed in range(4):
            noise = cases.noise(64, seed)
            yield bytes(
                byte if keep > 128 else 0
                for byte, keep in zip(
                    noise, cases.noise(64, seed + 100), strict=True
                )
            )

    def test_gaps(self) -> None:
        for bits in self.bitmaps():
            for start, end in ((512, 1024), (4000, 100_000)):
                expected = {
                    byte
                    for byte in range(start, end)
                    if not bits[byte // 4096] >> (7 - byte // 512 % 8) & 1
                }
                found: set[int] = set()
                for first, last in vhd_table.gaps(bits, start, end):
                    self.assertLess(first, last)
                    found.update(range(first, last))
                with self.subTest(bits=bits, start=start):
                    self.assertEqual(expected, found)

    def test_what_parts_two_spans(self) -> None:
        for zeros, expected in (
            (15, [(0, 17 * 4096)]),
            (16, [(0, 4096), (17 * 4096, 18 * 4096)]),
        ):
            bits = b'\x01' + bytes(zeros) + b'\x01'
            with self.subTest(zeros=zeros):
                self.assertEqual(
                    expected, list(vhd_table.spans(bits, 1 << 20))
                )

    def test_spans(self) -> None:
        for bits in self.bitmaps():
            for length in (64 * 4096, 100_352):
                sectors = {
                    sector
                    for sector in range(length // 512)
                    if bits[sector // 8] >> (7 - sector % 8) & 1
                }
                end = 0
                covered: set[int] = set()
                for first, last in vhd_table.spans(bits, length):
                    # Whatever parts two runs is worth it.
                    if end:
                        self.assertGreaterEqual(first - end, 65536)
                    self.assertLessEqual(last, length)
                    covered.update(range(first // 512, -(-last // 512)))
                    end = last
                with self.subTest(bits=bits, length=length):
                    self.assertLessEqual(sectors, covered)
