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

import threading
from unittest import mock
import zlib

from xenimport import exceptions
from xenimport import model
from xenimport.converter import base
from xenimport.converter import region
from xenimport.converter import vmdk
from xenimport.converter import vmdk_grain
from xenimport.tests import vmdk_packages
from xenimport.tests.unit.converter import cases

KIB = 1024
MIB = 1024 * KIB
SECTOR = 512
GRAIN = 64 * KIB


def sample(size: int = 3 * MIB + 1536) -> bytes:
    """A disk with data, holes, and data in its last sector."""
    data = bytearray(size)
    data[0:GRAIN] = cases.noise(GRAIN, 1)
    data[2 * GRAIN : 5 * GRAIN] = cases.noise(3 * GRAIN, 2)
    data[MIB + 512 : MIB + 1024] = b'x' * 512
    data[-512:] = b'y' * 512
    return bytes(data)


class VmdkCase(cases.DiskTestCase):
    def setUp(self) -> None:
        super().setUp()
        self.converter = vmdk.VmdkConverter()

    def open(self, content: bytes) -> base.DiskImage:
        return self.opened(self.converter, content)

    def refused(
        self, content: bytes, error_id: str
    ) -> exceptions.DiskImageError:
        return self.assert_refused(self.converter, content, error_id)

    def assert_reads(self, data: bytes, image: base.DiskImage) -> None:
        self.assertEqual(len(data), image.virtual_size)
        self.assertEqual(data, image.pread(0, len(data)))
        for offset, length in (
            (1, 1),
            (GRAIN - 3, 7),
            (GRAIN // 2, 2 * GRAIN),
            (MIB + 700, 40),
            (len(data) - 5, 5),
        ):
            self.assertEqual(
                data[offset : offset + length], image.pread(offset, length)
            )
        position = 0
        for offset, length, allocated in image.extents():
            self.assertEqual(position, offset)
            position += length
            if not allocated:
                self.assertFalse(data[offset:position].strip(b'\0'))
        self.assertEqual(len(data), position)


class SparseTest(VmdkCase):
    def test_data(self) -> None:
        data = sample()
        image = self.open(vmdk_packages.sparse(data))
        self.assert_reads(data, image)
        self.assertEqual('vmdk', image.format)
        self.assertIsNone(image.creator)
        self.assertEqual((), image.findings)
        self.assertEqual(['one.vhd'], [one.name for one in image.regions])

    def test_grains_in_any_order_and_with_gaps(self) -> None:
        data = sample()
        for name, content in (
            ('backwards', vmdk_packages.sparse(data, order=lambda i: i[::-1])),
            ('gaps', vmdk_packages.sparse(data, gap=3)),
            ('version 2', vmdk_packages.sparse(data, version=2)),
            ('version 3', vmdk_packages.sparse(data, version=3)),
            ('small grains', vmdk_packages.sparse(data, grain=16)),
            ('large grains', vmdk_packages.sparse(data, grain=2048)),
        ):
            with self.subTest(name):
                self.assert_reads(data, self.open(content))

    def test_extents(self) -> None:
        image = self.open(vmdk_packages.sparse(sample()))
        self.assertEqual(
            [
                (0, GRAIN, True),
                (GRAIN, GRAIN, False),
                (2 * GRAIN, 3 * GRAIN, True),
                (5 * GRAIN, 11 * GRAIN, False),
                (MIB, GRAIN, True),
                (17 * GRAIN, 31 * GRAIN, False),
                (48 * GRAIN, 1536, True),
            ],
            list(image.extents()),
        )

    def test_zeroed_grains(self) -> None:
        data = sample()
        content = vmdk_packages.sparse(data, zeroed=[2, 7], flags=7, version=2)
        image = self.open(content)
        expected = vmdk_packages.patched(data, 2 * GRAIN, bytes(GRAIN))
        self.assert_reads(expected, image)
        self.assertIn((GRAIN, 2 * GRAIN, False), list(image.extents()))

    def test_zeroed_grain_without_the_flag(self) -> None:
        content = vmdk_packages.sparse(sample(), zeroed=[2])
        self.refused(content, 'vmdk.grains-overlap')

    def test_many_tables(self) -> None:
        # 16 sectors times 512 entries: a table for each 4 MiB.
        data = bytearray(21 * MIB)
        data[9 * MIB : 9 * MIB + 8 * KIB] = cases.noise(8 * KIB)
        data[-512:] = b'z' * 512
        image = self.open(vmdk_packages.sparse(bytes(data), grain=16))
        self.assert_reads(bytes(data), image)

    def test_last_grain_ends_with_the_disk(self) -> None:
        data = sample()
        content = vmdk_packages.sparse(data)
        # The disk's last grain holds 1536 bytes.
        image = self.open(content[: len(content) - GRAIN + 1536])
        self.assert_reads(data, image)
        self.refused(
            content[: len(content) - GRAIN + 1024], 'vmdk.grain-outside'
        )

    def test_not_closed(self) -> None:
        image = self.open(vmdk_packages.sparse(sample(), unclean=1))
        (finding,) = image.findings
        self.assertEqual('vmdk.unclean-shutdown', finding.id)
        self.assertEqual(model.Severity.WARNING, finding.severity)

    def test_second_directory(self) -> None:
        data = sample()
        content = vmdk_packages.sparse(data)
        # The header names both; the first is at 21, with its table at
        # 22, the second at 26.
        for name, broken in (
            ('directory', (26 * SECTOR, b'\xff\xff\xff\x7f')),
            ('table', (27 * SECTOR, b'\xff\xff\xff\x7f')),
            ('offset', (56, b'\xff\xff\xff\x7f')),
        ):
            with self.subTest(name):
                image = self.open(vmdk_packages.patched(content, *broken))
                self.assert_reads(data, image)
                (finding,) = image.findings
                self.assertEqual('vmdk.redundant-directory', finding.id)
                self.assertEqual(model.Severity.WARNING, finding.severity)

    def test_second_directory_only_with_its_flag(self) -> None:
        content = vmdk_packages.sparse(sample(), flags=1)
        self.refused(
            vmdk_packages.patched(content, 26 * SECTOR, b'\xff\xff\xff\x7f'),
            'vmdk.directory',
        )

    def test_both_directories_damaged(self) -> None:
        content = vmdk_packages.sparse(sample())
        for directory in (21, 26):
            content = vmdk_packages.patched(
                content, directory * SECTOR, b'\xff\xff\xff\x7f'
            )
        self.refused(content, 'vmdk.directory')


class StreamOptimizedTest(VmdkCase):
    def test_data(self) -> None:
        data = sample()
        image = self.open(vmdk_packages.stream_optimized(data))
        self.assert_reads(data, image)
        self.assertEqual((), image.findings)

    def test_sizes_of_grains(self) -> None:
        data = sample()
        for grain in (16, 256, 2048):
            with self.subTest(grain):
                self.assert_reads(
                    data,
                    self.open(
                        vmdk_packages.stream_optimized(data, grain=grain)
                    ),
                )

    def test_not_compressible(self) -> None:
        data = sample()
        image = self.open(vmdk_packages.stream_optimized(data, level=0))
        self.assert_reads(data, image)

    def test_directory_at_the_start(self) -> None:
        data = sample()
        for order in (list, lambda indexes: indexes[::-1]):
            image = self.open(vmdk_packages.tables_first(data, order=order))
            self.assert_reads(data, image)

    def test_last_grain_is_short(self) -> None:
        stream = vmdk_packages.Stream(130)
        stream.add(0, b'a' * GRAIN)
        stream.add(1, b'b' * 1024)
        stream.finish()
        image = self.open(stream.content)
        self.assertEqual(
            b'a' * GRAIN + b'b' * 1024, image.pread(0, 130 * SECTOR)
        )

    def test_grains_out_of_order(self) -> None:
        stream = vmdk_packages.Stream(4 * 128)
        for index in (3, 0, 2, 1):
            stream.add(index, bytes((index + 65,)) * GRAIN)
        stream.finish()
        self.assertEqual(
            b'ABCD', self.open(stream.content).pread(0, 4 * GRAIN)[::GRAIN]
        )

    def test_two_threads(self) -> None:
        data = cases.noise(4 * MIB)
        image = self.open(vmdk_packages.stream_optimized(data, level=1))
        found: dict[int, bytes] = {}

        def read(half: int) -> None:
            found[half] = b''.join(
                image.pread(half * 2 * MIB + offset, 100_000)[: 64 * KIB]
                for offset in range(0, 2 * MIB, 64 * KIB)
            )

        threads = [
            threading.Thread(target=read, args=(half,)) for half in (0, 1)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.assertEqual(data, found[0] + found[1])

    def test_neighbours_are_one_read(self) -> None:
        data = cases.noise(2 * MIB)
        image = self.open(vmdk_packages.stream_optimized(data))
        with mock.patch.object(
            region.RegionReader,
            'read_into',
            autospec=True,
            side_effect=region.RegionReader.read_into,
        ) as read:
            self.assertEqual(data, image.pread(0, 2 * MIB))
        self.assertLessEqual(read.call_count, 2)

    def test_small_reads_decompress_once(self) -> None:
        data = cases.noise(GRAIN)
        image = self.open(vmdk_packages.stream_optimized(data))
        with mock.patch.object(
            vmdk_grain, 'grain', wraps=vmdk_grain.grain
        ) as grain:
            found = [
                image.pread(offset, 512) for offset in range(0, GRAIN, 512)
            ]
        self.assertEqual(data, b''.join(found))
        self.assertEqual(1, grain.call_count)

    def test_file_that_shrinks(self) -> None:
        data = cases.noise(MIB)
        image = self.open(vmdk_packages.stream_optimized(data))
        with open(self.path('package'), 'r+b') as stream:
            stream.truncate(200_000)
        with self.assertRaises(exceptions.DiskImageError) as caught:
            image.pread(0, MIB)
        self.assertEqual('package.truncated', caught.exception.id)
        with self.assertRaises(exceptions.DiskImageError) as caught:
            image.check_unchanged()
        self.assertEqual('package.changed', caught.exception.id)

    def test_other_inflaters(self) -> None:
        data = sample()
        content = vmdk_packages.stream_optimized(data)
        for missing in (('deflate',), ('deflate', 'isal')):
            blocked = dict.fromkeys(missing)
            with (
                self.subTest(missing),
                mock.patch.dict('sys.modules', blocked),
            ):
                inflate, errors = vmdk_grain.find_inflate()
                with (
                    mock.patch.object(vmdk_grain, '_inflate', inflate),
                    mock.patch.object(vmdk_grain, '_INFLATE_ERRORS', errors),
                ):
                    self.assert_reads(data, self.open(content))
                for bad in (
                    zlib.compress(bytes(1025)),
                    zlib.compress(bytes(1024))[:-1],
                    b'',
                    b'no',
                ):
                    with self.assertRaises(errors):
                        inflate(bad, 1024)
                self.assertEqual(
                    bytes(1024), inflate(zlib.compress(bytes(1024)), 1024)
                )


class GrainTest(VmdkCase):
    """Grains that are not what the table says."""

    def unreadable(self, stream: vmdk_packages.Stream) -> str:
        stream.finish()
        image = self.open(stream.content)
        with self.assertRaises(exceptions.DiskImageError) as caught:
            image.pread(0, image.virtual_size)
        error = caught.exception
        self.assertEqual('vmdk.grain', error.id)
        self.assertIn('sector 128', error.where or '')
        return error.found or ''

    def test_of_another_place(self) -> None:
        stream = vmdk_packages.Stream(256)
        stream.add(0, bytes(GRAIN), lba=128)
        self.assertIn('128', self.unreadable(stream))

    def test_size_lies(self) -> None:
        for size in (0xFFFFFFFF, 0x80000000, 0, 200_000):
            with self.subTest(size):
                stream = vmdk_packages.Stream(256)
                stream.add(0, b'a' * GRAIN, size=size)
                self.assertIn(str(size), self.unreadable(stream))

    def test_size_reaches_into_the_next(self) -> None:
        stream = vmdk_packages.Stream(256)
        stream.add(0, b'a' * GRAIN, size=600)
        stream.add(1, b'b' * GRAIN)
        self.assertEqual('600 bytes', self.unreadable(stream))

    def test_bomb(self) -> None:
        stream = vmdk_packages.Stream(256)
        stream.add(0, bytes(64 * MIB))
        self.assertIn('cannot be decompressed', self.unreadable(stream))

    def test_too_short(self) -> None:
        stream = vmdk_packages.Stream(256)
        stream.add(0, bytes(GRAIN - 512))
        self.assertEqual(f'{GRAIN - 512} bytes', self.unreadable(stream))

    def test_damaged(self) -> None:
        stream = vmdk_packages.Stream(256)
        stream.add(0, cases.noise(GRAIN))
        stream.finish()
        content = vmdk_packages.patched(
            stream.content, 128 * SECTOR + 5000, b'\x55\xaa\x55\xaa'
        )
        image = self.open(content)
        with self.assertRaises(exceptions.DiskImageError) as caught:
            image.pread(0, 10)
        self.assertEqual('vmdk.grain', caught.exception.id)


class FooterTest(VmdkCase):
    def stream(self) -> vmdk_packages.Stream:
        stream = vmdk_packages.Stream(256)
        stream.add(0, b'a' * GRAIN)
        stream.add_table(0)
        stream.add_directory()
        return stream

    def test_cut_short(self) -> None:
        stream = self.stream()
        self.refused(stream.content, 'vmdk.no-footer')
        stream.add_footer()
        whole = stream.content
        for end in (len(whole) - 1, len(whole) - 512, len(whole) - 1024):
            with self.subTest(end):
                self.refused(whole[:end], 'vmdk.no-footer')
        self.refused(whole[:512], 'vmdk.no-footer')

    def test_of_another_disk(self) -> None:
        for field, value in (('grain', 256), ('flags', 0x30003)):
            with self.subTest(field):
                stream = self.stream()
                stream.add_footer(**{field: value})
                self.refused(stream.content, 'vmdk.footer')
        stream = self.stream()
        stream.add_footer(directory=b'\xff' * 8)
        self.refused(stream.content, 'vmdk.footer')

    def test_directory_outside(self) -> None:
        stream = self.stream()
        stream.add_footer(directory=vmdk_packages.number(1 << 62, 8))
        self.refused(stream.content, 'vmdk.directory')

    def test_size_only_in_the_footer(self) -> None:
        stream = self.stream()
        stream.add_footer()
        content = vmdk_packages.patched(stream.content, 12, bytes(8))
        self.assertEqual(256 * SECTOR, self.open(content).virtual_size)


class KindTest(VmdkCase):
    def test_probe(self) -> None:
        content = vmdk_packages.sparse(sample())
        text = vmdk_packages.descriptor('vmfs', ['RW 1 VMFS "a-flat.vmdk"'])
        for expected, head, name in (
            (True, content, 'disk.img'),
            (True, text, 'disk.txt'),
            (True, b'COWD' + bytes(508), 'disk.img'),
            (True, b'\xbe\xba\xfe\xca' + bytes(508), 'disk'),
            (True, cases.noise(512), 'DISK.VMDK'),
            (False, cases.noise(512), 'disk.img'),
            (False, b'KDM', 'disk.img'),
        ):
            with self.subTest(name=name, head=head[:8]):
                self.assertIs(
                    expected,
                    self.converter.probe(
                        self.package(), self.disk(head, name)
                    ),
                )

    def test_kinds_of_esx(self) -> None:
        for head in (b'COWD', b'\xbe\xba\xfe\xca\0\0\0\0'):
            self.refused(head.ljust(4096, b'\0'), 'vmdk.kind')

    def test_no_header(self) -> None:
        for content in (b'', b'KDMV', b'KDMX' + bytes(508), bytes(512)):
            with self.subTest(content[:4]):
                disk = model.Disk(
                    'd',
                    'd',
                    0,
                    model.Region(
                        self.disk(content).region.path,
                        'one.vmdk',
                        (model.Piece(self.before, len(content), 0),),
                    ),
                )
                with self.assertRaises(exceptions.DiskImageError) as caught:
                    self.converter.open(self.package(), disk)
                self.assertEqual('vmdk.no-header', caught.exception.id)

    def test_header_of_another_kind(self) -> None:
        for name, fields in (
            ('version 0', {'version': 0}),
            ('version 4', {'version': 4}),
            ('unknown flag', {'flags': 1 | 1 << 18}),
            ('compression only', {'flags': 1 | 1 << 16, 'compression': 1}),
            ('markers only', {'flags': 1 | 1 << 17}),
            ('algorithm', {'flags': 0x30001, 'compression': 2}),
        ):
            with self.subTest(name):
                self.refused(
                    vmdk_packages.sparse(sample(), **fields), 'vmdk.kind'
                )

    def test_unknown_compatible_flag(self) -> None:
        data = sample()
        content = vmdk_packages.sparse(data, flags=1 | 1 << 9)
        self.assert_reads(data, self.open(content))

    def test_transferred_as_text(self) -> None:
        content = vmdk_packages.sparse(sample(), newlines=b'\n \n\n')
        self.refused(content, 'vmdk.text-transfer')
        # Without the flag the bytes mean nothing.
        data = sample()
        content = vmdk_packages.sparse(data, newlines=bytes(4), flags=0)
        self.assert_reads(data, self.open(content))

    def test_part_of_a_split_disk(self) -> None:
        content = vmdk_packages.sparse(sample(), embedded=False)
        self.refused(content, 'vmdk.no-descriptor')

    def test_embedded_descriptor(self) -> None:
        for error_id, text in (
            ('vmdk.delta', {'parent': '12345678'}),
            ('vmdk.delta', {'more': 'parentFileNameHint="base.vmdk"'}),
        ):
            descriptor = vmdk_packages.descriptor(
                'monolithicSparse', ['RW 10 SPARSE "d.vmdk"'], **text
            )
            with self.subTest(text):
                self.refused(
                    vmdk_packages.sparse(sample(), text=descriptor), error_id
                )
        for error_id, kind, extents in (
            ('vmdk.kind', 'vmfsSparse', ['RW 10 SPARSE "d.vmdk"']),
            ('vmdk.kind', 'monolithicFlat', ['RW 10 FLAT "d" 0']),
            ('vmdk.descriptor', 'monolithicSparse', []),
            ('vmdk.descriptor', 'monolithicSparse', ['RW 9 FLAT "/a" 0']),
            ('vmdk.descriptor', 'streamOptimized', ['RW 9 SPARSE "a"'] * 2),
        ):
            descriptor = vmdk_packages.descriptor(kind, extents)
            with self.subTest(kind=kind, extents=extents):
                self.refused(
                    vmdk_packages.sparse(sample(), text=descriptor), error_id
                )
        self.refused(
            vmdk_packages.sparse(sample(), text=b'no descriptor'),
            'vmdk.descriptor',
        )


class HostileTest(VmdkCase):
    def test_header_fields(self) -> None:
        content = vmdk_packages.sparse(sample())
        for name, offset, part, error_id in (
            ('capacity 0', 12, bytes(8), 'vmdk.header'),
            ('capacity 2^63', 12, bytes(7) + b'\x80', 'vmdk.header'),
            ('capacity 2^64-1', 12, b'\xff' * 8, 'vmdk.header'),
            ('capacity 32 TiB', 12, vmdk_packages.number(1 << 36, 8), None),
            ('grain 0', 20, bytes(8), 'vmdk.header'),
            ('grain 8', 20, vmdk_packages.number(8, 8), 'vmdk.header'),
            ('grain 100', 20, vmdk_packages.number(100, 8), 'vmdk.header'),
            ('grain 4096', 20, vmdk_packages.number(4096, 8), 'vmdk.header'),
            ('grain 2^63', 20, bytes(7) + b'\x80', 'vmdk.header'),
            ('entries 0', 44, bytes(4), 'vmdk.header'),
            ('entries 2^32-1', 44, b'\xff' * 4, 'vmdk.header'),
            ('descriptor far', 28, b'\xff' * 8, 'vmdk.descriptor'),
            ('descriptor huge', 36, b'\xff' * 8, 'vmdk.descriptor'),
            ('descriptor empty', 36, bytes(8), 'vmdk.descriptor'),
        ):
            with self.subTest(name):
                self.refused(
                    vmdk_packages.patched(content, offset, part),
                    error_id or 'vmdk.directory',
                )

    def test_directory(self) -> None:
        content = vmdk_packages.sparse(sample(), flags=1)
        for name, offset, part in (
            ('at 0', 56, bytes(8)),
            ('far', 56, b'\xff' * 7 + b'\x7f'),
            ('at the end', 56, b'\xff' * 8),
            ('table far', 26 * SECTOR, b'\xff' * 4),
            (
                'table at the end',
                26 * SECTOR,
                vmdk_packages.number(len(content) // SECTOR - 3, 4),
            ),
        ):
            with self.subTest(name):
                self.refused(
                    vmdk_packages.patched(content, offset, part),
                    'vmdk.directory',
                )

    def test_one_table_twice(self) -> None:
        data = bytes(9 * MIB)
        content = vmdk_packages.sparse(data, grain=16, flags=1)
        # Three tables: the first set takes 12 sectors after the 22nd.
        directory = 22 + 12
        for second in (0, 1, 3):
            table = directory + 1 + second
            with self.subTest(second):
                self.refused(
                    vmdk_packages.patched(
                        content,
                        directory * SECTOR + 4,
                        vmdk_packages.number(table, 4),
                    ),
                    'vmdk.directory',
                )

    def test_grains_on_each_other(self) -> None:
        content = vmdk_packages.sparse(sample(), flags=1)
        first = 128  # where the grains begin
        for name, entry, sector in (
            ('same', 9, first),
            ('half', 9, first + 64),
            ('one sector in', 9, first + 1),
            ('one sector before', 9, first - 1),
            ('into the next', 0, first + 5),
            ('descriptor', 9, 5),
            ('table', 9, 27),
        ):
            with self.subTest(name):
                self.refused(
                    vmdk_packages.patched(
                        content,
                        27 * SECTOR + entry * 4,
                        vmdk_packages.number(sector, 4),
                    ),
                    'vmdk.grains-overlap',
                )

    def test_small_grain_on_metadata(self) -> None:
        content = vmdk_packages.sparse(bytes(MIB), grain=16, flags=1)
        content = content.ljust(MIB, b'\0')
        # The descriptor is at 1, the directory at 26, its table at 27.
        for sector in (1, 20, 26, 27, 30):
            with self.subTest(sector):
                self.refused(
                    vmdk_packages.patched(
                        content,
                        27 * SECTOR,
                        vmdk_packages.number(sector, 4),
                    ),
                    'vmdk.grains-overlap',
                )

    def test_grain_outside(self) -> None:
        content = vmdk_packages.sparse(sample(), flags=1)
        stream = vmdk_packages.stream_optimized(sample())
        end = len(content) // SECTOR
        for sector in (end - 1, end, 0xFFFFFFFF):
            with self.subTest(sector):
                self.refused(
                    vmdk_packages.patched(
                        content,
                        27 * SECTOR + 9 * 4,
                        vmdk_packages.number(sector, 4),
                    ),
                    'vmdk.grain-outside',
                )
        # Behind the grains: the table, the directory, the footer, the end.
        table = len(stream) - (3 + 2 + 4) * SECTOR
        self.refused(
            vmdk_packages.patched(stream, table, b'\xff' * 4),
            'vmdk.grain-outside',
        )

    def test_one_compressed_grain_many_times(self) -> None:
        stream = vmdk_packages.Stream(512 * 128)
        stream.add(0, b'a' * GRAIN)
        stream.entries = dict.fromkeys(range(512), 128)
        stream.finish()
        self.refused(stream.content, 'vmdk.grains-overlap')

    def test_file_without_an_end(self) -> None:
        # A file of 2 TiB of holes costs its author nothing.
        data = sample()
        content = vmdk_packages.sparse(data, grain=16, flags=1)
        content = vmdk_packages.patched(
            content, 27 * SECTOR, vmdk_packages.number(0xFFFFFF00, 4)
        )
        path = self.path('holes')
        with open(path, 'wb') as stream:
            stream.write(content)
            stream.truncate(1 << 41)
        piece = model.Piece(0, 1 << 41, 0)
        disk = model.Disk('d', 'd', 0, model.Region(path, 'h.vmdk', (piece,)))
        with self.assertRaises(exceptions.DiskImageError) as caught:
            self.converter.open(self.package(), disk)
        self.assertEqual('vmdk.directory', caught.exception.id)


class PiecesTest(VmdkCase):
    def test_disk_in_pieces(self) -> None:
        # OVF's chunks, or a tar in parts: pieces at odd places.
        data = sample()
        for content in (
            vmdk_packages.sparse(data),
            vmdk_packages.stream_optimized(data),
        ):
            path = self.path('parts')
            pieces = []
            with open(path, 'wb') as stream:
                for start in range(0, len(content), 33_333):
                    part = content[start : start + 33_333]
                    stream.write(b'#' * 77)
                    pieces.append(model.Piece(stream.tell(), len(part), start))
                    stream.write(part)
            whole = model.Region(path, 'd.vmdk', tuple(pieces))
            disk = model.Disk('d', 'd', 0, whole)
            with self.converter.open(self.package(), disk) as image:
                self.assert_reads(data, image)
