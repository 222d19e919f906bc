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


"""The reader of regions."""

import dataclasses
import hashlib
import os
import threading
from unittest import mock

from xenimport import exceptions
from xenimport import model
from xenimport.converter import copy
from xenimport.converter import files
from xenimport.converter import raw
from xenimport.converter import region
from xenimport.converter import wrap
from xenimport.tests.unit.converter import cases

MIB = 1024 * 1024


class RegionTest(cases.DiskTestCase):
    def test_pieces(self) -> None:
        path = self.path('file')
        with open(path, 'wb') as stream:
            stream.write(b'..abc....defg..hi')
        pieces = (
            model.Piece(2, 3, 0),
            model.Piece(9, 4, 3),
            model.Piece(15, 2, 7),
        )
        reader = region.RegionReader(model.Region(path, 'r', pieces))
        self.addCleanup(reader.release)
        self.assertEqual(b'abcdefghi', reader.read(0, 100))
        self.assertEqual(b'cdefgh', reader.read(2, 6))
        self.assertEqual(b'h', reader.read(7, 1))
        self.assertEqual(b'', reader.read(9, 1))
        self.assertEqual(9 + 6 + 1, reader.bytes_read)

    def test_shorter_than_the_region(self) -> None:
        disk = self.disk(bytes(1024))
        os.truncate(disk.region.path, 2000)
        with self.assertRaises(exceptions.DiskImageError) as caught:
            region.RegionReader(disk.region)
        self.assertEqual('package.truncated', caught.exception.id)

    def test_shrinks_while_it_is_read(self) -> None:
        reader = region.RegionReader(self.disk(bytes(1024)).region)
        self.addCleanup(reader.release)
        os.truncate(self.path('package'), 2000)
        with self.assertRaises(exceptions.DiskImageError) as caught:
            reader.read(0, 1024)
        self.assertEqual('package.truncated', caught.exception.id)

    def test_change_is_seen_at_the_end(self) -> None:
        disk = self.disk(bytes(1024))
        with raw.RawConverter().open(self.package(), disk) as inner:
            image = wrap.WrappedImage(inner)
            copy.copy(image, self.path('first.raw'))
            with open(disk.region.path, 'ab') as stream:
                stream.write(b'more')
            for changed in (inner, image):
                with self.assertRaises(exceptions.DiskImageError) as caught:
                    copy.copy(changed, self.path('second.raw'))
                self.assertEqual('package.changed', caught.exception.id)
        self.assertFalse(os.path.exists(self.path('second.raw')))
        image.close()

    def test_compressed(self) -> None:
        whole = self.disk(bytes(1024)).region
        packed = model.Region(
            whole.path, 'r.gz', whole.pieces, seekable=False, decoder='gzip'
        )
        with self.assertRaises(exceptions.DiskImageError) as caught:
            region.RegionReader(packed)
        self.assertEqual('package.compressed-disk', caught.exception.id)


class ReaderTestCase(cases.DiskTestCase):
    def reader(
        self, *pieces: model.Piece, length: int | None = None
    ) -> region.RegionReader:
        reader = region.RegionReader(
            model.Region(self.path('file'), 'r', pieces, length=length)
        )
        self.addCleanup(reader.release)
        return reader

    def write(self, content: bytes, name: str = 'file') -> str:
        path = self.path(name)
        with open(path, 'wb') as file:
            file.write(content)
        return path


class GapTest(ReaderTestCase):
    def setUp(self) -> None:
        super().setUp()
        self.write(b'..abc..defg')
        self.pieces = (model.Piece(2, 3, 4), model.Piece(7, 4, 10))
        self.content = bytes(4) + b'abc' + bytes(3) + b'defg'

    def test_every_range(self) -> None:
        for size in (12, 14, 20):
            content = self.content.ljust(size, b'\0')[:size]
            reader = self.reader(*self.pieces, length=size)
            self.assertEqual(size, reader.size)
            for start in range(size):
                for end in range(start + 1, size + 1):
                    # What is in the buffer must not show through.
                    buffer = bytearray(b'#' * (end - start))
                    reader.read_into(memoryview(buffer), start)
                    self.assertEqual(content[start:end], bytes(buffer))

    def test_without_length(self) -> None:
        self.assertEqual(self.content, self.reader(*self.pieces).read(0, 99))

    def test_cut_off(self) -> None:
        reader = self.reader(*self.pieces, length=11)
        self.assertEqual(self.content[:11], reader.read(0, 99))
        self.assertEqual([(0, 11, True)], list(reader.extents(reader.size)))

    def test_pieces_beyond_the_end(self) -> None:
        reader = self.reader(*self.pieces, length=8)
        self.assertEqual(self.content[:8], reader.read(0, 99))
        self.assertEqual([(0, 8, True)], list(reader.extents(8)))

    def test_pieces_far_beyond_the_end(self) -> None:
        self.write(b'x' * 2048)
        reader = self.reader(
            model.Piece(0, 512, 0), model.Piece(512, 512, 4096), length=1024
        )
        self.assertEqual(
            [(0, 512, True), (512, 512, False)],
            list(reader.extents(reader.size)),
        )

    def test_without_pieces(self) -> None:
        reader = self.reader(length=1024)
        self.assertEqual(bytes(1024), reader.read(0, 2000))
        self.assertEqual([(0, 1024, False)], list(reader.extents(1024)))

    def test_empty_pieces(self) -> None:
        reader = self.reader(
            model.Piece(2, 0, 0), model.Piece(2, 3, 0), model.Piece(5, 0, 3),
            model.Piece(7, 4, 3),
        )  # fmt: skip
        self.assertEqual(b'abcdefg', reader.read(0, 99))

    def test_gaps_are_holes(self) -> None:
        self.write(b'x' * 8192)
        reader = self.reader(
            model.Piece(0, 1024, 4096),
            model.Piece(2000, 1024, 5120),
            model.Piece(4000, 100, 10240),
            length=20480,
        )
        self.assertEqual(
            [
                (0, 4096, False),
                (4096, 2048, True),
                (6144, 4096, False),
                (10240, 512, True),
                (10752, 9728, False),
            ],
            list(reader.extents(reader.size)),
        )


class ChecksumTest(ReaderTestCase):
    """Pieces with checksums; xxHash's own is proved in test_xva."""

    def setUp(self) -> None:
        super().setUp()
        self.content = cases.noise(4096)
        path = self.write(b'..' + self.content)
        self.assertEqual(path, self.path('file'))
        self.fills: list[int] = []

    def pieces(self, *, wrong: int | None = None) -> list[model.Piece]:
        found = []
        for number in range(4):
            data = self.content[number * 1024 : (number + 1) * 1024]
            value = hashlib.sha1(data).hexdigest()
            if number == wrong:
                value = '0' * 40
            found.append(
                model.Piece(
                    2 + number * 1024,
                    1024,
                    number * 1024,
                    checksum=f'sha1:{value}',
                )
            )
        return found

    def counted(self, **options: int) -> region.RegionReader:
        """A reader whose reads of the file are counted."""
        reader = self.reader(*self.pieces(**options))
        fill = files.Files.fill

        def counting(
            self_: files.Files,
            piece: model.Piece,
            buffer: memoryview,
            inside: int,
        ) -> None:
            self.fills.append(len(buffer))
            fill(self_, piece, buffer, inside)

        patch = mock.patch.object(files.Files, 'fill', counting)
        patch.start()
        self.addCleanup(patch.stop)
        return reader

    def test_whole_pieces_are_read_once(self) -> None:
        reader = self.counted()
        self.assertEqual(self.content[:2048], reader.read(0, 2048))
        self.assertEqual([1024, 1024], self.fills)

    def test_part_of_a_piece_reads_all_of_it_once(self) -> None:
        reader = self.counted()
        self.assertEqual(self.content[1000:1100], reader.read(1000, 100))
        self.assertEqual([1024, 1024], self.fills)
        self.assertEqual(self.content[10:20], reader.read(10, 10))
        self.assertEqual([1024, 1024, 10], self.fills)

    def test_damage(self) -> None:
        for offset, length in ((0, 4096), (2048, 1024), (2100, 1), (3071, 2)):
            reader = self.reader(*self.pieces(wrong=2))
            with self.assertRaises(exceptions.DiskImageError) as caught:
                reader.read(offset, length)
            error = caught.exception
            self.assertEqual('package.chunk-damaged', error.id)
            self.assertIn('file: r, offset 2048', error.where or '')
            self.assertEqual('sha1:' + '0' * 40, error.expected)
            self.assertEqual(
                'sha1:' + hashlib.sha1(self.content[2048:3072]).hexdigest(),
                error.found,
            )
            # It is not taken for verified the second time.
            with self.assertRaises(exceptions.DiskImageError):
                reader.read(2100, 1)
            self.assertEqual(self.content[:2048], reader.read(0, 2048))

    def test_damage_in_what_is_cut_off(self) -> None:
        reader = self.reader(*self.pieces(wrong=3), length=3100)
        with self.assertRaises(exceptions.DiskImageError):
            reader.read(3072, 28)

    def test_holes_are_not_believed(self) -> None:
        """A copy that broke off may have left a hole."""
        path = self.path('file')
        with open(path, 'wb') as file:
            file.truncate(2 * MIB)
        zeros = hashlib.sha1(bytes(MIB)).hexdigest()
        reader = self.reader(
            model.Piece(0, MIB, 0, checksum=f'sha1:{zeros}'),
            model.Piece(MIB, MIB, MIB, checksum='sha1:' + '1' * 40),
        )
        self.assertEqual([(0, 2 * MIB, True)], list(reader.extents(2 * MIB)))
        self.assertEqual(bytes(MIB), reader.read(0, MIB))
        with self.assertRaises(exceptions.DiskImageError) as caught:
            reader.read(MIB, MIB)
        self.assertEqual('package.chunk-damaged', caught.exception.id)

    def test_long_piece(self) -> None:
        path = self.path('file')
        os.truncate(path, 65 << 20)
        reader = self.reader(
            model.Piece(0, (64 << 20) + 1, 0, checksum='sha1:' + '0' * 40)
        )
        with self.assertRaises(exceptions.DiskImageError) as caught:
            reader.read(0, 1)
        self.assertEqual('package.chunk-too-long', caught.exception.id)

    def test_several_threads(self) -> None:
        reader = self.reader(*self.pieces())
        failures: list[BaseException | bytes] = []

        def work(seed: int) -> None:
            try:
                for step in range(200):
                    start = (seed * 997 + step * 131) % 4000
                    found = reader.read(start, 1500)
                    if found != self.content[start : start + 1500]:
                        failures.append(found)
            except BaseException as error:
                failures.append(error)

        threads = [
            threading.Thread(target=work, args=(seed,)) for seed in range(4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.assertEqual([], failures)


class FilesTest(ReaderTestCase):
    """Pieces in several files."""

    def parts(self, count: int) -> list[model.Piece]:
        return [
            model.Piece(
                1, 4, number * 4, self.write(b'.%04d.' % number, f'p{number}')
            )
            for number in range(count)
        ]

    def test_in_order(self) -> None:
        reader = self.reader(*self.parts(3))
        self.assertEqual(b'000000010002', reader.read(0, 99))
        self.assertEqual(b'0100', reader.read(6, 4))

    def test_more_files_than_are_kept_open(self) -> None:
        before = len(os.listdir('/proc/self/fd'))
        reader = self.reader(*self.parts(200))
        self.assertLess(len(os.listdir('/proc/self/fd')), before + 100)
        self.assertEqual(b'0199', reader.read(796, 4))
        self.assertEqual(
            b''.join(b'%04d' % number for number in range(200)),
            reader.read(0, 800),
        )
        self.assertEqual([(0, 800, True)], list(reader.extents(800)))
        reader.check_unchanged()
        reader.release()
        self.assertEqual(before, len(os.listdir('/proc/self/fd')))
        with self.assertRaises(ValueError):
            reader.read(796, 4)

    def test_one_is_missing(self) -> None:
        pieces = self.parts(3)
        os.unlink(self.path('p1'))
        before = len(os.listdir('/proc/self/fd'))
        with self.assertRaises(exceptions.DiskImageError) as caught:
            self.reader(*pieces)
        self.assertEqual('package.unreadable', caught.exception.id)
        self.assertIn(self.path('p1'), str(caught.exception))
        self.assertEqual(before, len(os.listdir('/proc/self/fd')))

    def test_one_is_short(self) -> None:
        pieces = self.parts(100)
        for number in (1, 99):
            os.truncate(self.path(f'p{number}'), 4)
            with self.assertRaises(exceptions.DiskImageError) as caught:
                self.reader(*pieces)
            self.assertEqual('package.truncated', caught.exception.id)
            os.truncate(self.path(f'p{number}'), 5)

    def test_one_is_changed(self) -> None:
        for number in (1, 99):
            reader = self.reader(*self.parts(100))
            reader.check_unchanged()
            self.write(b'longer than it was', f'p{number}')
            with self.assertRaises(exceptions.DiskImageError) as caught:
                reader.check_unchanged()
            self.assertEqual('package.changed', caught.exception.id)
            self.assertIn(f'p{number}', str(caught.exception))

    def test_the_regions_own_file_need_not_be(self) -> None:
        pieces = self.parts(1)
        absent = model.Region(self.path('absent'), 'r', tuple(pieces))
        reader = region.RegionReader(absent)
        self.addCleanup(reader.release)
        self.assertEqual(b'0000', reader.read(0, 4))
        with self.assertRaises(exceptions.DiskImageError):
            region.RegionReader(dataclasses.replace(absent, pieces=()))
