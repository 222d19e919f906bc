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

import struct
import unittest

from xenimport.converter import base
from xenimport.converter import vhdx
from xenimport import exceptions
from xenimport.tests import qemu_images
from xenimport.tests.unit.converter import cases
from xenimport.tests.unit.converter import qemu_cases

KIB = 1024
MIB = 1024 * KIB
TIB = 1024 * 1024 * MIB
LOG = b'l' * 16


class VhdxTest(qemu_cases.QemuTestCase):
    converter = vhdx.VhdxConverter()

    def refused(self, error_id: str, **parts: object) -> str:
        """Refused before qemu sees it; what was found."""
        content = qemu_images.vhdx({0: b'data'}, 3 * MIB, **parts)
        error = self.assert_refused(self.converter, content, error_id)
        self.assert_no_server()
        return error.found or ''

    def image(self, size: int, content: bytes) -> base.DiskImage:
        self.size_for_qemu(size)
        return self.opened(self.converter, content)


class SoundTest(VhdxTest):
    def test_who_wrote_it(self):
        content = qemu_images.vhdx({}, MIB, creator='Windows\x1b[0m 10')
        self.assertEqual('Windows?[0m 10', self.image(MIB, content).creator)

    def test_extents(self):
        content = qemu_images.vhdx({1: b'x', 2: b'x', 5: b'x'}, 5 * MIB + 512)
        self.assertEqual(
            [
                (0, MIB, False),
                (MIB, 2 * MIB, True),
                (3 * MIB, 2 * MIB, False),
                (5 * MIB, 512, True),
            ],
            list(self.image(5 * MIB + 512, content).extents()),
        )

    def test_extents_of_an_empty_disk(self):
        image = self.image(3 * MIB, qemu_images.vhdx({}, 3 * MIB))
        self.assertEqual([(0, 3 * MIB, False)], list(image.extents()))

    def test_sector_bitmaps_are_no_blocks(self):
        """After 4096 blocks of 1 MiB comes an entry of another kind."""
        size = 4098 * MIB
        content = qemu_images.vhdx(
            {4096: b'x'}, size, bat_entries={4096: 5 << 20 | 6}
        )
        self.assertEqual(
            [
                (0, 4096 * MIB, False),
                (4096 * MIB, MIB, True),
                (4097 * MIB, MIB, False),
            ],
            list(self.image(size, content).extents()),
        )

    def test_blocks_that_read_as_zeros(self):
        for state in (0, 1, 2, 3):
            content = qemu_images.vhdx(
                {}, 2 * MIB, bat_entries={1: 1 << 40 | state}
            )
            with self.subTest(state):
                image = self.image(2 * MIB, content)
                self.assertEqual([(0, 2 * MIB, False)], list(image.extents()))

    def test_one_intact_copy_is_enough(self):
        """Of the region table the first: oslo.utils and qemu read it."""
        sound = qemu_images.vhdx_header(), qemu_images.vhdx_regions()
        for broken in bytes(512), b'head', b'regi':
            for parts in (
                {'headers': (sound[0], broken)},
                {'headers': (broken, sound[0])},
                {'tables': (sound[1], broken.ljust(64 * KIB, b'\0'))},
            ):
                content = qemu_images.vhdx({}, MIB, **parts)
                with self.subTest(f'{broken[:4]!r} {list(parts)}'):
                    self.image(MIB, content)

    def test_log_that_was_written_back(self):
        """The newer header has no log; what is in it is of no account."""
        content = qemu_images.vhdx(
            {},
            MIB,
            headers=(
                qemu_images.vhdx_header(7, LOG),
                qemu_images.vhdx_header(8),
            ),
            log=qemu_images.vhdx_log_entry(LOG),
        )
        self.image(MIB, content)

    def test_log_of_another_time(self):
        content = qemu_images.vhdx(
            {},
            MIB,
            headers=(
                qemu_images.vhdx_header(8, LOG),
                qemu_images.vhdx_header(7),
            ),
            log=qemu_images.vhdx_log_entry(b'o' * 16),
        )
        self.image(MIB, content)


class RefusedTest(VhdxTest):
    def test_log_to_be_replayed(self):
        for place in (0, 8 * KIB, MIB - 4 * KIB):
            with self.subTest(place):
                self.refused(
                    'vhdx.open-log',
                    headers=(
                        qemu_images.vhdx_header(8, LOG),
                        qemu_images.vhdx_header(7),
                    ),
                    log=bytes(place) + qemu_images.vhdx_log_entry(LOG),
                )

    def test_parent(self):
        items = qemu_images.vhdx_items(3 * MIB, flags=2)
        self.refused('vhdx.parent', items=items)
        items = qemu_images.vhdx_items(3 * MIB)
        items[qemu_images.PARENT_LOCATOR] = b'..\\parent.vhdx'
        self.refused('vhdx.parent', items=items)

    def test_block_in_part_of_the_parent(self):
        self.refused('vhdx.header', bat_entries={1: 5 << 20 | 7})

    def test_sectors_of_4096_bytes(self):
        items = qemu_images.vhdx_items(3 * MIB, sector=4096)
        self.refused('vhdx.sector-size', items=items)


class HostileTest(VhdxTest):
    def test_sizes_that_lie(self):
        for size in (0, 513, 64 * TIB + 512, 1 << 63, (1 << 64) - 512):
            items = qemu_images.vhdx_items(size)
            with self.subTest(size):
                self.refused('vhdx.size', items=items)
        items = qemu_images.vhdx_items(64 * TIB)
        self.refused('vhdx.header', items=items)

    def test_blocks_that_lie(self):
        for block in (0, 512, MIB + 512, 3 * MIB, 512 * MIB, 1 << 31):
            items = qemu_images.vhdx_items(3 * MIB, block=block)
            with self.subTest(block):
                self.refused('vhdx.header', items=items)

    def test_items_that_are_missing(self):
        for name in (
            qemu_images.FILE_PARAMETERS,
            qemu_images.DISK_SIZE,
            qemu_images.LOGICAL_SECTOR,
        ):
            items = qemu_images.vhdx_items(3 * MIB)
            items[name] = items[name][:-1]
            with self.subTest(f'{name} short'):
                self.refused('vhdx.header', items=items)
            del items[name]
            with self.subTest(f'{name} missing'):
                self.refused('vhdx.header', items=items)

    def test_regions_that_lie(self):
        metadata = {qemu_images.METADATA: (2 * MIB, MIB, 1)}
        bat = {qemu_images.BAT: (3 * MIB, MIB, 1)}
        other = '11111111-2222-3333-4444-555555555555'
        for error_id, regions in (
            ('vhdx.header', metadata),
            ('vhdx.header', bat),
            ('vhdx.header', bat | metadata | {other: (MIB, MIB, 1)}),
            ('vhdx.header', bat | {qemu_images.METADATA: (0, MIB, 1)}),
            ('vhdx.header', bat | {qemu_images.METADATA: (MIB + 1, 9, 1)}),
            ('vhdx.header', bat | {qemu_images.METADATA: (MIB, 9, 1)}),
            ('vhdx.header', bat | {qemu_images.METADATA: (MIB, MIB, 1)}),
            ('vhdx.header', metadata | {qemu_images.BAT: (MIB, 8, 1)}),
            (
                'disk-image.truncated',
                metadata | {qemu_images.BAT: (1 << 40, MIB, 1)},
            ),
            (
                'disk-image.truncated',
                metadata | {qemu_images.BAT: (4 * MIB, 0xFFFFFFFF, 1)},
            ),
        ):
            table = qemu_images.vhdx_regions(regions)
            with self.subTest(regions):
                self.refused(error_id, tables=(table, table))

    def test_regions_in_wrong_places(self):
        for place in 0, 64 * KIB, MIB + 1, 2 * MIB + 512:
            table = qemu_images.vhdx_regions(
                {
                    qemu_images.BAT: (3 * MIB, MIB, 1),
                    qemu_images.METADATA: (place, 128 * KIB, 1),
                }
            )
            with self.subTest(place):
                found = self.refused('vhdx.header', tables=(table, table))
                self.assertEqual(f'offset {place}', found)

    def test_items_in_wrong_places(self):
        # The offset and length of the first item.
        place = slice(2 * MIB + 32 + 16, 2 * MIB + 32 + 24)
        for offset, length in (
            (MIB, 8),
            (MIB - 7, 8),
            (0xFFFFFFFF, 8),
            (64 * KIB, 0xFFFFFFFF),
        ):
            content = bytearray(qemu_images.vhdx({}, MIB))
            content[place] = struct.pack('<II', offset, length)
            with self.subTest(offset):
                error = self.assert_refused(
                    self.converter, bytes(content), 'vhdx.header'
                )
                self.assertIn(f'offset {offset}', error.found or '')

    def test_region_tables_that_differ(self):
        """Who reads the other copy would see another disk."""
        other = qemu_images.vhdx_regions(
            {
                qemu_images.BAT: (4 * MIB, MIB, 1),
                qemu_images.METADATA: (2 * MIB, MIB, 1),
            }
        )
        tables = (qemu_images.vhdx_regions(), other)
        self.refused('vhdx.header', tables=tables)

    def test_headers_that_lie(self):
        for fields in (
            {'version': 2},
            {'log': LOG, 'log_length': 0xFFFFFFFF},
            {'log': LOG, 'log_offset': 1 << 63},
        ):
            header = qemu_images.vhdx_header(**fields)
            with self.subTest(fields):
                self.refused('vhdx.header', headers=(header, header))
        self.refused('vhdx.header', headers=(bytes(64), bytes(64)))

    def test_blocks_in_wrong_places(self):
        for error_id, entry in (
            ('disk-image.truncated', 1 << 40 | 6),
            ('disk-image.truncated', (1 << 64) - (1 << 20) | 6),
            ('disk-image.truncated', 5 << 20 | 6),
            ('vhdx.header', 4 << 20 | 6),
            ('vhdx.header', 6),
        ):
            with self.subTest(hex(entry)):
                self.refused(error_id, bat_entries={1: entry})

    def test_cut_anywhere(self):
        content = qemu_images.vhdx({0: b'data'}, 3 * MIB)
        for length in (
            8,
            600,
            64 * KIB,
            200 * KIB,
            MIB,
            2 * MIB + 1,
            3 * MIB,
            4 * MIB,
            len(content) - 1,
        ):
            disk = self.disk(content[:length])
            with (
                self.subTest(length),
                self.assertRaises(exceptions.DiskImageError) as caught,
            ):
                self.converter.open(self.package(), disk)
            self.assertIn(
                caught.exception.id,
                ('disk-image.truncated', 'vhdx.header'),
            )

    def test_noise_in_the_metadata(self):
        sound = qemu_images.vhdx({0: b'data'}, 3 * MIB)
        for seed in range(10):
            noise = cases.noise(64 * KIB, seed)
            for place, start in (2 * MIB, b''), (2 * MIB, b'metadata'):
                content = bytearray(sound)
                content[place : place + len(noise)] = noise
                content[place : place + len(start)] = start
                disk = self.disk(bytes(content))
                with (
                    self.subTest(seed),
                    self.assertRaises(exceptions.DiskImageError) as caught,
                ):
                    self.converter.open(self.package(), disk)
                self.assertEqual('vhdx.header', caught.exception.id)


class ChecksumTest(unittest.TestCase):
    def test_known_answer(self):
        self.assertEqual(0xE3069283, qemu_images.crc32c(b'123456789'))
