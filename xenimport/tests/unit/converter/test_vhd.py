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

"""The VHD reader, against VHDs that the tests' own writer made."""

import dataclasses
import typing
from unittest import mock

from xenimport import exceptions
from xenimport import model
from xenimport.converter import base
from xenimport.converter import vhd
from xenimport.converter import vhd_layers
from xenimport.tests import packages
from xenimport.tests import vhd_packages
from xenimport.tests.unit.converter import cases

BLOCK = 64 * 1024
#: Two and a half blocks; the second is all zeros.
DATA = cases.noise(BLOCK) + bytes(BLOCK) + cases.noise(BLOCK // 2, seed=2)


def small(data: bytes = DATA, **options: typing.Any) -> bytes:
    return packages.dynamic_vhd(data, block_size=BLOCK, **options)


def patched(data: bytes, offset: int, new: bytes) -> bytes:
    return data[:offset] + new + data[offset + len(new) :]


class VhdTestCase(cases.DiskTestCase):
    def image(self, content: bytes) -> base.DiskImage:
        return self.opened(vhd.VhdConverter(), content)

    def read(self, content: bytes) -> bytes:
        image = self.image(content)
        return image.pread(0, image.virtual_size)

    def refused(self, content: bytes, error_id: str) -> str:
        return str(self.assert_refused(vhd.VhdConverter(), content, error_id))


class DynamicTest(VhdTestCase):
    def test_data(self) -> None:
        image = self.image(small())
        self.assertEqual(len(DATA), image.virtual_size)
        self.assertEqual(DATA, image.pread(0, len(DATA)))
        self.assertEqual('caml', image.creator)
        self.assertEqual('vhd', image.format)

    def test_extents(self) -> None:
        self.assertEqual(
            [
                (0, BLOCK, True),
                (BLOCK, BLOCK, False),
                (2 * BLOCK, BLOCK // 2, True),
            ],
            list(self.image(small()).extents()),
        )

    def test_reads_across_blocks_at_any_offset(self) -> None:
        image = self.image(small())
        for offset, length in (
            (1, 1),
            (BLOCK - 3, 7),
            (2 * BLOCK - 3, 7),
            (100, 2 * BLOCK + 100),
            (len(DATA) - 5, 99),
        ):
            with self.subTest(offset=offset):
                self.assertEqual(
                    DATA[offset : offset + length],
                    image.pread(offset, length),
                )

    def test_any_order_and_gaps_of_blocks(self) -> None:
        content = small(blocks=[2, 0], gap=4096, spare_entries=7)
        self.assertEqual(DATA, self.read(content))

    def test_empty(self) -> None:
        image = self.image(small(bytes(3 * BLOCK)))
        self.assertEqual([(0, 3 * BLOCK, False)], list(image.extents()))
        self.assertEqual(bytes(512), image.pread(BLOCK, 512))

    def test_sector_with_bit_zero_reads_as_zeros(self) -> None:
        # Most significant bit first: sector 0 and sector 9 are set.
        bitmap = b'\x80\x40' + bytes(14)
        image = self.image(small(bitmaps={0: bitmap}))
        expected = bytearray(DATA)
        for sector in range(128):
            if sector not in (0, 9):
                expected[sector * 512 : sector * 512 + 512] = bytes(512)
        self.assertEqual(bytes(expected), image.pread(0, len(DATA)))
        self.assertEqual(expected[500:5200], image.pread(500, 4700))

    def test_block_with_no_bit_set_is_a_hole(self) -> None:
        image = self.image(small(bitmaps={0: bytes(16)}))
        self.assertEqual((0, 2 * BLOCK, False), next(image.extents()))

    def test_bits_beyond_the_end_of_the_disk_do_not_matter(self) -> None:
        # The last block has 64 sectors on the disk, of 128.
        image = self.image(small(bitmaps={2: b'\xff' * 8}))
        self.assertEqual(DATA[-512:], image.pread(len(DATA) - 512, 512))

    def test_last_bits_of_a_last_block(self) -> None:
        data = cases.noise(9 * 512)
        content = small(data, bitmaps={0: b'\xff\x7f' + bytes(14)})
        self.assertEqual(data[: 8 * 512] + bytes(512), self.read(content))
        self.assertEqual(
            data, self.read(small(data, bitmaps={0: b'\xff\x80'}))
        )

    def test_default_block_size(self) -> None:
        data = bytes(packages.BLOCK_SIZE) + cases.noise(512)
        self.assertEqual(data, self.read(packages.dynamic_vhd(data)))

    def test_extents_of_a_block_with_few_sectors(self) -> None:
        # 64 KiB without data part two runs, less does not.
        writes = {
            512: cases.noise(512),
            40960: cases.noise(512),
            2 * BLOCK: cases.noise(512),
        }
        for block in (2 * BLOCK, 4 * BLOCK):
            sparse = vhd_packages.Vhd(8 * BLOCK, writes, block)
            image = self.image(sparse.build())
            with self.subTest(block=block):
                self.assertEqual(
                    [
                        (0, 45056, True),
                        (45056, 2 * BLOCK - 45056, False),
                        (2 * BLOCK, 4096, True),
                        (2 * BLOCK + 4096, 6 * BLOCK - 4096, False),
                    ],
                    list(image.extents()),
                )
                self.assertEqual(
                    vhd_packages.overlaid(writes, size=8 * BLOCK),
                    image.pread(0, 8 * BLOCK),
                )

    def test_bitmaps_of_the_first_blktap(self) -> None:
        # Its bitmaps have the lowest bit first.
        writes = {512: cases.noise(1024), BLOCK + 4096: cases.noise(512)}
        sparse = vhd_packages.Vhd(
            len(DATA),
            writes,
            BLOCK,
            lowest_bit_first=True,
            creator_version=0x00000001,
        )
        self.assertEqual(
            vhd_packages.overlaid(writes, size=len(DATA)),
            self.read(sparse.build()),
        )

    def test_batmap_is_not_believed(self) -> None:
        writes = {512: cases.noise(1024)}
        sparse = vhd_packages.Vhd(len(DATA), writes, BLOCK, batmap=True)
        self.assertEqual(
            vhd_packages.overlaid(writes, size=len(DATA)),
            self.read(sparse.build()),
        )

    def test_table_behind_the_blocks(self) -> None:
        writes = {512: cases.noise(1024), BLOCK: cases.noise(512)}
        sparse = vhd_packages.Vhd(len(DATA), writes, BLOCK, table_last=True)
        self.assertEqual(
            vhd_packages.overlaid(writes, size=len(DATA)),
            self.read(sparse.build()),
        )


class FixedTest(VhdTestCase):
    def test_data(self) -> None:
        image = self.image(packages.fixed_vhd(DATA))
        self.assertEqual(len(DATA), image.virtual_size)
        self.assertEqual(DATA, image.pread(0, len(DATA)))
        end = 0
        for offset, length, _ in image.extents():
            self.assertEqual(end, offset)
            end += length
        self.assertEqual(len(DATA), end)

    def test_shorter_than_its_disk(self) -> None:
        self.refused(
            DATA + packages.footer(len(DATA) + 512, packages.FIXED),
            'vhd.truncated',
        )


class SizeTest(VhdTestCase):
    """The size is the current size whatever the geometry says."""

    def finding(self, content: bytes) -> model.Finding:
        (found,) = self.image(content).findings
        return found

    def test_caml_of_eight_gibibytes(self) -> None:
        # facts: CHS loses 32 KiB of an 8 GiB disk.
        size = 8 << 30
        cylinders, heads, sectors = packages.geometry(size)
        self.assertEqual(32 * 1024, size - cylinders * heads * sectors * 512)
        tail = packages.footer(size)
        table = b'\xff' * (4096 * 4)
        content = tail + packages.dynamic_header(4096) + table + tail
        image = self.image(content)
        self.assertEqual(size, image.virtual_size)
        (found,) = image.findings
        self.assertEqual('vhd.geometry-differs', found.id)
        self.assertIs(model.Severity.NOTE, found.severity)
        self.assertIn(str(size), found.evidence)
        self.assertIn(str(size - 32 * 1024), found.evidence)

    def test_geometry_rounded_up(self) -> None:
        found = self.finding(small(chs=(100, 16, 63), creator=b'xo  '))
        self.assertEqual('vhd.geometry-differs', found.id)

    def test_largest_geometry_says_nothing(self) -> None:
        image = self.image(small(chs=(65535, 16, 255)))
        self.assertEqual((), image.findings)

    def test_impossible_sizes(self) -> None:
        for size in (0, 513):
            tail = packages.footer(size)
            content = tail + packages.dynamic_header(1) + bytes(512) + tail
            with self.subTest(size=size):
                self.refused(content, 'vhd.size')


class FooterTest(VhdTestCase):
    def test_damaged_copy_at_the_start(self) -> None:
        self.assertEqual(DATA, self.read(patched(small(), 20, b'?')))

    def test_damaged_at_the_end(self) -> None:
        content = small()
        image = self.image(patched(content, len(content) - 400, b'?'))
        self.assertEqual(DATA, image.pread(0, len(DATA)))
        self.assertIn(
            'vhd.footer-copy', [found.id for found in image.findings]
        )

    def test_511_bytes(self) -> None:
        self.assertEqual(DATA, self.read(small()[:-1]))
        # A fixed disk has no copy of its footer to fall back to.
        self.assertEqual(DATA, self.read(packages.fixed_vhd(DATA)[:-1]))

    def test_both_damaged(self) -> None:
        content = patched(small(), 20, b'?')
        content = patched(content, len(content) - 400, b'?')
        self.refused(content, 'vhd.checksum')

    def test_hidden_with_an_old_checksum(self) -> None:
        tail = packages.footer(
            len(DATA), packages.FIXED, creator=b'tap\0', creator_version=1
        )
        content = DATA + patched(tail, 85, b'\x01')
        self.assertEqual(DATA, self.read(content))

    def test_hidden_with_a_right_checksum(self) -> None:
        content = small(hidden=1, creator=b'tap\0')
        self.assertEqual(DATA, self.read(content))

    def test_hidden_by_another_writer(self) -> None:
        tail = packages.footer(len(DATA), packages.FIXED)
        self.refused(DATA + patched(tail, 85, b'\x01'), 'vhd.checksum')

    def test_hidden_by_a_later_blktap(self) -> None:
        tail = packages.footer(
            len(DATA),
            packages.FIXED,
            creator=b'tap\0',
            creator_version=0x00010002,
        )
        self.refused(DATA + patched(tail, 85, b'\x01'), 'vhd.checksum')

    def test_fixed_cut_short(self) -> None:
        text = self.refused(packages.fixed_vhd(DATA)[:-4096], 'vhd.no-footer')
        self.assertIn('cut short', text)

    def test_empty_file(self) -> None:
        self.refused(b'', 'vhd.no-footer')

    def test_data_that_looks_like_a_footer(self) -> None:
        # A nested fixed VHD at the start, and the true footer cut off.
        fake = packages.footer(4096, packages.FIXED)
        self.refused(fake + bytes(4096), 'vhd.no-footer')


class TruncationTest(VhdTestCase):
    def test_cut_in_the_last_block(self) -> None:
        self.refused(small()[: -BLOCK // 2 - 512 - 512], 'vhd.block-outside')

    def test_cut_in_the_table(self) -> None:
        self.refused(small()[:1540], 'vhd.table')

    def test_cut_in_the_header(self) -> None:
        self.refused(small()[:700], 'vhd.header')

    def test_last_block_not_written_to_its_end(self) -> None:
        # blktap reads what is missing as zeros.
        data = cases.noise(BLOCK)
        content = small(data)
        present = content[: 1536 + 512 + 512 + 1024]
        self.assertEqual(
            data[:1024] + bytes(BLOCK - 1024),
            self.read(present + content[-512:]),
        )
        # The buffer of a copy is not blank.
        buffer = bytearray(b'?' * BLOCK)
        self.image(present + content[-512:]).pread_into(memoryview(buffer), 0)
        self.assertEqual(bytes(BLOCK - 1024), buffer[1024:])


class ShortLastBlockTest(VhdTestCase):
    """The disk's last block, which need not be there beyond its end."""

    def test_others_follow_it_at_once(self) -> None:
        for block in (4096, BLOCK):
            length = 2 * block + 1024
            with self.subTest(block=block):
                data = cases.noise(length)
                content = vhd_packages.short_block_first(data, block, 2)
                self.assertEqual(data, self.read(content))

    def test_others_on_its_end(self) -> None:
        data = cases.noise(2 * BLOCK + 1024)
        content = vhd_packages.short_block_first(data, BLOCK, 1)
        self.refused(content, 'vhd.blocks-overlap')


class HostileTest(VhdTestCase):
    def with_table(self, *entries: int) -> bytes:
        table = b''.join(entry.to_bytes(4, 'big') for entry in entries)
        return patched(small(), 1536, table)

    def with_header(self, **fields: int) -> bytes:
        options: dict[str, typing.Any] = {'entries': 3, 'block_size': BLOCK}
        options |= fields
        return patched(small(), 512, packages.dynamic_header(**options))

    def test_block_outside(self) -> None:
        self.refused(self.with_table(0x7FFFFFFF), 'vhd.block-outside')

    def test_blocks_on_each_other(self) -> None:
        self.refused(self.with_table(4, 5), 'vhd.blocks-overlap')
        self.refused(self.with_table(4, 4), 'vhd.blocks-overlap')

    def test_block_on_the_metadata(self) -> None:
        unused = packages.UNUSED
        for entry in (0, 1, 2, 3):
            with self.subTest(entry=entry):
                self.refused(
                    self.with_table(entry, unused, unused),
                    'vhd.blocks-overlap',
                )

    def test_table_too_small(self) -> None:
        self.refused(self.with_header(entries=2), 'vhd.table')

    def test_table_outside(self) -> None:
        for offset in (1 << 62, 1 << 40, 1537):
            with self.subTest(offset=offset):
                self.refused(
                    self.with_header(table_offset=offset), 'vhd.table'
                )

    def test_block_sizes(self) -> None:
        for size in (0, 512, 65535, 1 << 31):
            with self.subTest(size=size):
                self.refused(
                    self.with_header(block_size=size), 'vhd.block-size'
                )

    def test_enormous_disk(self) -> None:
        tail = packages.footer(1 << 62, chs=(1, 1, 1))
        content = tail + packages.dynamic_header(0xFFFFFFFF) + tail
        self.refused(content, 'vhd.table')

    def test_many_tiny_blocks_are_not_looked_at_one_by_one(self) -> None:
        # No bit is set in any of the bitmaps.
        bitmaps = dict.fromkeys((0, 1, 9), bytes(1))
        content = packages.dynamic_vhd(
            cases.noise(40960), [9, 0, 1], block_size=4096, bitmaps=bitmaps
        )
        image = typing.cast('vhd.VhdImage', self.image(content))
        self.assertEqual([(0, 40960, False)], list(image.extents()))
        before = image.bytes_read
        with mock.patch.object(vhd_layers, '_MANY_BLOCKS', 2):
            self.assertEqual(
                [(0, 8192, True), (8192, 28672, False), (36864, 4096, True)],
                list(image.extents()),
            )
        self.assertEqual(before, image.bytes_read)
        self.assertEqual(bytes(40960), image.pread(0, 40960))

    def test_header_elsewhere(self) -> None:
        for offset in (0, 1 << 40, (1 << 64) - 1):
            tail = packages.footer(len(DATA), data_offset=offset)
            with self.subTest(offset=offset):
                self.refused(small()[:-512] + tail, 'vhd.header')

    def test_header_checksum(self) -> None:
        self.refused(patched(small(), 600, b'?'), 'vhd.checksum')

    def test_unknown_kind(self) -> None:
        tail = packages.footer(len(DATA), 6)
        self.refused(small()[:-512] + tail, 'vhd.kind')

    def test_poisoned(self) -> None:
        tail = packages.footer(len(DATA), cookie=b'v_poison')
        self.refused(small()[:-512] + tail, 'vhd.poisoned')

    def test_encrypted(self) -> None:
        sparse = vhd_packages.Vhd(len(DATA), {}, BLOCK, batmap=True)
        self.assertEqual(bytes(len(DATA)), self.read(sparse.build()))
        sparse.key_hash = 1
        self.refused(sparse.build(), 'vhd.encrypted')

    def test_batmap_of_another_writer_is_none(self) -> None:
        sparse = vhd_packages.Vhd(
            len(DATA), {}, BLOCK, batmap=True, key_hash=1, creator=b'caml'
        )
        self.assertEqual(bytes(len(DATA)), self.read(sparse.build()))


class ProbeTest(VhdTestCase):
    def probe(self, content: bytes, name: str) -> bool:
        return vhd.VhdConverter().probe(
            self.package(), self.disk(content, name)
        )

    def test_by_content(self) -> None:
        self.assertTrue(self.probe(small(), 'a'))
        self.assertTrue(self.probe(packages.fixed_vhd(DATA), 'a'))
        self.assertTrue(self.probe(packages.fixed_vhd(DATA)[:-1], 'a'))

    def test_broken_vhd_is_claimed_by_its_name(self) -> None:
        self.assertTrue(self.probe(DATA, 'a.VHD'))

    def test_compressed_vhd_is_claimed_and_refused(self) -> None:
        plain = self.disk(b'\x1f\x8b', 'one.vhd.gz')
        disk = dataclasses.replace(
            plain,
            region=dataclasses.replace(
                plain.region, seekable=False, decoder='gzip'
            ),
        )
        converter = vhd.VhdConverter()
        self.assertTrue(converter.probe(self.package(), disk))
        with self.assertRaises(exceptions.DiskImageError) as caught:
            converter.open(self.package(), disk)
        self.assertEqual('package.compressed-disk', caught.exception.id)

    def test_others(self) -> None:
        self.assertFalse(self.probe(DATA, 'a.raw'))
        self.assertFalse(self.probe(b'', 'a.raw'))
