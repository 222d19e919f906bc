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

import random
import typing
import unittest
from unittest import mock

from xenimport import exceptions
from xenimport import model
from xenimport import stream as stream_room
from xenimport.converter import base
from xenimport.converter import vhd
from xenimport.converter import vhd_forward
from xenimport.converter import vhd_stream
from xenimport.tests import packages
from xenimport.tests import vhd_packages
from xenimport.tests.unit.converter import cases

BLOCK = 64 * 1024
SIZE = 8 * BLOCK + 1536
WRITES = {
    0: cases.noise(BLOCK, 1),
    2 * BLOCK + 512: cases.noise(1024, 2),
    5 * BLOCK: cases.noise(2 * BLOCK, 3),
    SIZE - 1024: cases.noise(1024, 4),
}
DATA = vhd_packages.overlaid(WRITES, size=SIZE)


class Pipe(stream_room.Stream):
    """Bytes that arrive in parts of any length.

    :param known: whether it is known how many
    """

    def __init__(self, data: bytes, known: bool = True) -> None:
        super().__init__('pipe')
        self.size = len(data) if known else None
        self._left = memoryview(data)
        self._random = random.Random(1)

    def _read_into(self, buffer: memoryview) -> int:
        count = min(
            len(buffer), len(self._left), self._random.randrange(1, 99_999)
        )
        buffer[:count] = self._left[:count]
        self._left = self._left[count:]
        return count


class StreamTestCase(unittest.TestCase):
    def opened(
        self, content: bytes, known: bool = True, name: str = 'one.vhd'
    ) -> base.ForwardImage:
        return self.opened_stream(Pipe(content, known), name)

    def opened_stream(
        self, pipe: Pipe, name: str = 'one.vhd'
    ) -> base.ForwardImage:
        region = model.Region('-', name, (), seekable=False)
        return vhd.VhdConverter().open_stream(
            model.Disk('d', 'd', 0, region), pipe
        )

    def read(self, image: base.ForwardImage, size: int | None = None) -> bytes:
        """All runs in place; what is in none is zeros."""
        content = bytearray()
        covered: list[tuple[int, int]] = []
        for offset, data in image.runs():
            self.assertLessEqual(len(data), base.MAX_RUN)
            self.assertTrue(data)
            end = offset + len(data)
            content.extend(bytes(max(0, end - len(content))))
            content[offset:end] = data
            covered.append((offset, end))
        self.assertEqual(covered == sorted(covered), image.ascending)
        covered.sort()
        for (_, end), (start, _) in zip(covered, covered[1:], strict=False):
            self.assertLessEqual(end, start)
        if image.data_size is not None:
            length = sum(end - start for start, end in covered)
            self.assertLessEqual(length, image.data_size)
        assert image.virtual_size is not None
        self.assertLessEqual(len(content), image.virtual_size)
        return bytes(content.ljust(image.virtual_size, b'\0'))

    def assert_reads(
        self, expected: bytes, content: bytes, name: str = 'one.vhd'
    ) -> None:
        for known in (True, False):
            with self.subTest(known=known):
                self.assertEqual(
                    expected, self.read(self.opened(content, known, name))
                )

    def refused(self, content: bytes, error_id: str) -> str:
        for known in (True, False):
            with (
                self.subTest(known=known),
                self.assertRaises(exceptions.XenImportError) as caught,
            ):
                for _ in self.opened(content, known).runs():
                    pass
            self.assertEqual(error_id, caught.exception.id)
        return str(caught.exception)

    def not_forward(self, content: bytes) -> str:
        for known in (True, False):
            pipe = Pipe(content, known)
            with self.assertRaises(base.NotForward) as caught:
                self.opened_stream(pipe)
            # Nothing is gone: whoever unpacks it gets it all.
            self.assertEqual(0, pipe.position)
            self.assertEqual(content, pipe.read(len(content) + 1))
        return str(caught.exception)


def sparse(**options: typing.Any) -> bytes:
    settings: dict[str, typing.Any] = {
        'size': SIZE,
        'writes': WRITES,
        'block_size': BLOCK,
    }
    return vhd_packages.Vhd(**(settings | options)).build()


class DynamicTest(StreamTestCase):
    def test_block_sizes(self) -> None:
        for block_size in (4096, 8192, BLOCK, 2 << 20, 4 << 20):
            with self.subTest(block_size=block_size):
                self.assert_reads(DATA, sparse(block_size=block_size))

    def test_what_it_says_of_itself(self) -> None:
        image = self.opened(sparse(creator=b'caml'))
        self.assertEqual('vhd', image.format)
        self.assertEqual('caml', image.creator)
        self.assertEqual(SIZE, image.virtual_size)
        self.assertTrue(image.ascending)
        self.assertEqual(4 * BLOCK + 1536, image.data_size)
        self.assertEqual(
            ['vhd.geometry-differs'],
            [finding.id for finding in image.findings],
        )

    def test_blocks_in_disorder(self) -> None:
        content = sparse(order=[5, 8, 0, 6, 2])
        self.assertFalse(self.opened(content).ascending)
        self.assert_reads(DATA, content)

    def test_small_blocks_in_disorder(self) -> None:
        numbers = [
            number
            for number in range(-(-SIZE // 4096))
            if DATA[number * 4096 : (number + 1) * 4096].strip(b'\0')
        ]
        random.Random(5).shuffle(numbers)
        for gap in (0, 512):
            self.assert_reads(
                DATA, sparse(block_size=4096, order=numbers, gap=gap)
            )

    def test_neighbours_come_in_one_run(self) -> None:
        image = self.opened(sparse(block_size=4096))
        self.assertIn(
            (5 * BLOCK, 2 * BLOCK),
            [(offset, len(data)) for offset, data in image.runs()],
        )

    def test_many_neighbours(self) -> None:
        data = cases.noise(3 << 20)
        content = packages.dynamic_vhd(data, block_size=4096)
        self.assert_reads(data, content)

    def test_large_blocks_with_few_sectors(self) -> None:
        writes = {
            (3 << 20) + 512: cases.noise(512),
            (7 << 20) + 1024: cases.noise(512),
        }
        self.assert_reads(
            vhd_packages.overlaid(writes, size=8 << 20),
            sparse(size=8 << 20, writes=writes, block_size=4 << 20),
        )

    def test_disk_that_ends_in_the_middle_of_the_file(self) -> None:
        for block_size in (4096, BLOCK):
            last = (SIZE - 1) // block_size
            numbers = sorted(
                {
                    place // block_size
                    for offset, data in WRITES.items()
                    for place in range(offset, offset + len(data), 512)
                }
            )
            numbers.remove(last)
            numbers.insert(1, last)
            with self.subTest(block_size=block_size):
                self.assert_reads(
                    DATA, sparse(block_size=block_size, order=numbers)
                )

    def test_disk_whose_last_block_is_short_and_first(self) -> None:
        for block in (4096, BLOCK):
            data = cases.noise(4 * block + 1024)
            with self.subTest(block=block):
                content = vhd_packages.short_block_first(data, block, 2)
                self.assert_reads(data, content)

    def test_gaps_batmap_and_locators(self) -> None:
        self.assert_reads(
            DATA,
            sparse(
                gap=4096,
                batmap=True,
                entries=5000,
                locators=[vhd_packages.w2ru('x')],
            ),
        )

    def test_bitmaps_of_the_first_blktap(self) -> None:
        for block_size in (4096, BLOCK):
            self.assert_reads(
                DATA,
                sparse(
                    block_size=block_size,
                    lowest_bit_first=True,
                    creator_version=1,
                ),
            )

    def test_empty(self) -> None:
        self.assert_reads(bytes(SIZE), sparse(writes={}))

    def test_empty_bitmaps_give_no_runs(self) -> None:
        for block_size in (4096, BLOCK):
            bitmaps = dict.fromkeys(range(32), bytes(16))
            content = packages.dynamic_vhd(
                cases.noise(2 * BLOCK), block_size=block_size, bitmaps=bitmaps
            )
            image = self.opened(content)
            with self.subTest(block_size=block_size):
                self.assertEqual([], list(image.runs()))

    def test_footer_of_511_bytes(self) -> None:
        self.assert_reads(DATA, sparse()[:-1])

    def test_without_a_footer_at_the_end(self) -> None:
        content = sparse()
        for damaged in (content[:-512], content[:-300] + b'?' * 300):
            for known in (True, False):
                image = self.opened(damaged, known)
                self.assertEqual(DATA, self.read(image))
                self.assertEqual(
                    ['vhd.geometry-differs', 'vhd.footer-copy'],
                    [finding.id for finding in image.findings],
                )

    def test_last_block_not_written_to_its_end(self) -> None:
        for block_size in (4096, BLOCK, 4 << 20):
            data = cases.noise(block_size)
            content = packages.dynamic_vhd(data, block_size=block_size)
            bitmap = max(512, block_size // 4096)
            start = 1536 + 512 + bitmap
            for present in (0, 1024, block_size - 512):
                cut = content[: start + present] + content[-512:]
                with self.subTest(block_size=block_size, present=present):
                    self.assert_reads(
                        data[:present].ljust(block_size, b'\0'), cut
                    )

    def test_cut_in_a_block(self) -> None:
        content = packages.dynamic_vhd(
            cases.noise(4 * BLOCK), block_size=BLOCK
        )
        text = self.refused(content[:-2048], 'vhd.block-outside')
        self.assertIn('Fix:', text)
        for known, error_id in (
            (True, 'vhd.block-outside'),
            (False, 'package.truncated'),
        ):
            with self.assertRaises(exceptions.XenImportError) as caught:
                for _ in self.opened(content[: 2 * BLOCK], known).runs():
                    pass
            self.assertEqual(error_id, caught.exception.id)

    def test_footers_that_differ(self) -> None:
        content = sparse()
        for tail in (
            packages.footer(SIZE + 512),
            packages.footer(SIZE, data_offset=1024),
            packages.footer(SIZE, packages.FIXED),
        ):
            text = self.refused(content[:-512] + tail, 'vhd.footer-differs')
            self.assertIn(f'{SIZE} bytes', text)

    def test_poisoned_at_the_end(self) -> None:
        tail = packages.footer(SIZE, cookie=b'v_poison')
        self.refused(sparse()[:-512] + tail, 'vhd.poisoned')

    def test_endless_rest(self) -> None:
        content = sparse()
        with mock.patch.object(vhd_forward, '_MAX_TRAILING', 4096):
            with self.assertRaises(exceptions.PackageError) as caught:
                self.read(self.opened(content + bytes(8192), known=False))
            self.assertEqual('package.excess-data', caught.exception.id)
            self.assertEqual(
                DATA,
                self.read(self.opened(content + bytes(8192) + content[:512])),
            )


class RefusedTest(StreamTestCase):
    """What is wrong at the start is said before a block is read."""

    def refused_at_once(self, content: bytes, error_id: str) -> None:
        for known in (True, False):
            pipe = Pipe(content, known)
            with self.assertRaises(exceptions.DiskImageError) as caught:
                self.opened_stream(pipe)
            self.assertEqual(error_id, caught.exception.id)
            self.assertEqual(0, pipe.position)

    def test_header_and_table(self) -> None:
        content = sparse()
        other = bytearray(content)
        other[600] ^= 1
        self.refused_at_once(bytes(other), 'vhd.checksum')
        self.refused_at_once(content[:512] + bytes(1024), 'vhd.header')
        header = packages.dynamic_header(3, block_size=BLOCK)
        self.refused_at_once(
            content[:512] + header + content[1536:], 'vhd.table'
        )
        table = b'\0\0\0\x05' * 9
        self.refused_at_once(
            content[:1536] + table + content[1572:], 'vhd.blocks-overlap'
        )

    def test_poisoned_and_encrypted(self) -> None:
        poisoned = packages.footer(SIZE, cookie=b'v_poison')
        self.refused_at_once(poisoned + sparse()[512:], 'vhd.poisoned')
        self.refused_at_once(sparse(batmap=True, key_hash=1), 'vhd.encrypted')

    def test_table_is_cut(self) -> None:
        with self.assertRaises(exceptions.PackageError) as caught:
            self.opened(sparse()[:1540], known=False)
        self.assertEqual('package.truncated', caught.exception.id)

    def test_block_outside_a_stream_of_known_size(self) -> None:
        content = sparse()
        table = (0x7FFFFFFF).to_bytes(4, 'big')
        with self.assertRaises(exceptions.DiskImageError) as caught:
            self.opened(content[:1536] + table + content[1540:])
        self.assertEqual('vhd.block-outside', caught.exception.id)


class NotForwardTest(StreamTestCase):
    def test_differencing(self) -> None:
        text = self.not_forward(sparse(parent=vhd_packages.uuid_of(2)))
        self.assertIn('parents', text)

    def test_table_behind_the_blocks(self) -> None:
        text = self.not_forward(sparse(table_last=True))
        self.assertIn('behind its blocks', text)

    def test_damaged_copy_at_the_start(self) -> None:
        content = sparse()
        self.not_forward(b'?' + content[1:])
        self.not_forward(content[:10] + b'?' + content[11:])

    def test_tables_far_away(self) -> None:
        content = sparse()
        far = packages.footer(SIZE, data_offset=1 << 40)
        self.not_forward(far + content[512:])

    def test_very_many_blocks(self) -> None:
        with mock.patch.object(vhd_stream, '_MAX_BLOCKS', 4):
            self.assertIn('many blocks', self.not_forward(sparse()))


class FixedTest(StreamTestCase):
    def test_data(self) -> None:
        for size in (512, SIZE, 2 << 20, (2 << 20) + 512, (4 << 20) - 512):
            data = cases.noise(size)
            with self.subTest(size=size):
                self.assert_reads(data, packages.fixed_vhd(data))

    def test_what_it_says_of_itself(self) -> None:
        content = packages.fixed_vhd(DATA, creator=b'win ')
        image = self.opened(content)
        self.assertEqual(
            (SIZE, SIZE, True),
            (image.virtual_size, image.data_size, image.ascending),
        )
        image = self.opened(content, known=False)
        self.assertIsNone(image.virtual_size)
        self.assertIsNone(image.data_size)
        self.read(image)
        self.assertEqual(SIZE, image.virtual_size)
        self.assertEqual('win', image.creator)
        self.assertEqual(
            ['vhd.geometry-differs'],
            [finding.id for finding in image.findings],
        )

    def test_footer_of_511_bytes(self) -> None:
        for size in (512, SIZE, 2 << 20):
            data = cases.noise(size)
            self.assert_reads(data, packages.fixed_vhd(data)[:-1])

    def test_cut_short(self) -> None:
        content = packages.fixed_vhd(DATA)
        for length in (0, 100, 511, 512, SIZE, SIZE + 256):
            with self.subTest(length=length):
                self.refused(content[:length], 'vhd.no-footer')

    def test_footer_is_damaged(self) -> None:
        content = packages.fixed_vhd(DATA)
        self.refused(content[:-300] + b'?' * 300, 'vhd.checksum')

    def test_sizes_that_lie(self) -> None:
        large = packages.footer(SIZE + 512, packages.FIXED)
        self.refused(DATA + large, 'vhd.truncated')
        small = packages.footer(SIZE - 512, packages.FIXED)
        with self.assertRaises(exceptions.DiskImageError) as caught:
            self.read(self.opened(DATA + small))
        self.assertEqual('vhd.footer-differs', caught.exception.id)

    def test_other_kinds_at_the_end(self) -> None:
        for kind in (packages.DYNAMIC, packages.DIFFERENCING):
            self.refused(
                DATA + packages.footer(SIZE, kind), 'vhd.footer-differs'
            )
        self.refused(DATA + packages.footer(SIZE, 7), 'vhd.kind')

    def test_disk_that_starts_with_a_fixed_vhd(self) -> None:
        data = packages.footer(4096, packages.FIXED) + DATA
        self.assert_reads(data, packages.fixed_vhd(data), name='one')

    def test_disk_that_starts_with_a_dynamic_vhd(self) -> None:
        # The start is what a dynamic VHD has; the end says otherwise.
        data = sparse()
        self.refused(packages.fixed_vhd(data), 'vhd.footer-differs')


class ProbeTest(StreamTestCase):
    def probe(self, content: bytes, name: str) -> bool:
        region = model.Region('-', name, (), seekable=False)
        pipe = Pipe(content)
        found = vhd.VhdConverter().probe_stream(
            model.Disk('d', 'd', 0, region), pipe
        )
        self.assertEqual(0, pipe.position)
        return found

    def test_by_its_start(self) -> None:
        self.assertTrue(self.probe(sparse(), 'a'))
        poisoned = packages.footer(SIZE, cookie=b'v_poison')
        self.assertTrue(self.probe(poisoned, 'a'))

    def test_by_its_name(self) -> None:
        self.assertTrue(self.probe(packages.fixed_vhd(DATA), 'a.vhd'))
        self.assertTrue(self.probe(packages.fixed_vhd(DATA), 'b/A.VHD.gz'))

    def test_others(self) -> None:
        self.assertFalse(self.probe(DATA, 'a.raw'))
        self.assertFalse(self.probe(b'', 'a'))
