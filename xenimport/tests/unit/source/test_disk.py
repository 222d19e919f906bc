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


"""The disk source."""

import gzip
import io
import os
import tempfile
import unittest

from xenimport import exceptions
from xenimport import model
from xenimport.source import disk
from xenimport.source import ova
from xenimport import stream
from xenimport import stream_decoders
from xenimport import stream_files
from xenimport.tests import ovf_packages
from xenimport.tests import packages

VHD = packages.dynamic_vhd(bytes(4096) + b'x' * 4096, block_size=4096)
BOOT_SECTOR = bytes(510) + b'\x55\xaa' + bytes(512)


class DiskTestCase(unittest.TestCase):
    def setUp(self) -> None:
        directory = tempfile.TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        self.directory = directory.name

    def path(self, name: str, content: bytes | None = None) -> str:
        path = os.path.join(self.directory, name)
        if content is not None:
            os.makedirs(os.path.dirname(path), exist_ok=True)
            with open(path, 'wb') as file:
                file.write(content)
        return path

    def assert_refused(self, error_id: str, *paths: str) -> str:
        with self.assertRaises(exceptions.PackageError) as caught:
            disk.DiskSource().open_several(paths)
        self.assertEqual(error_id, caught.exception.id)
        return str(caught.exception)


class ProbeTest(DiskTestCase):
    def probe(self, name: str, content: bytes) -> bool:
        return disk.DiskSource().probe(self.path(name, content))

    def test_vhd_by_content(self) -> None:
        self.assertTrue(self.probe('disk.bin', VHD))
        self.assertTrue(self.probe('f', packages.fixed_vhd(bytes(4096))))
        self.assertTrue(self.probe('g', packages.fixed_vhd(bytes(4096))[:-1]))

    def test_other_formats_by_content(self) -> None:
        for content in (
            b'KDMV\1\0\0\0',
            b'COWD\1\0\0\0',
            b'# Disk DescriptorFile\nversion=1\n',
            b'QFI\xfb\0\0\0\3',
            b'vhdxfile',
            bytes(64) + (0xBEDA107F).to_bytes(4, 'little'),
        ):
            with self.subTest(content=content[:24]):
                self.assertTrue(self.probe('disk', content + bytes(600)))

    def test_raw_by_content(self) -> None:
        self.assertTrue(self.probe('disk', BOOT_SECTOR))
        for offset, mark in (
            (1080, b'\x53\xef'),
            (0, b'XFSB'),
            (0x10040, b'_BHRfS_M'),
            (0, b'LABELONE'),
            (512, b'LABELONE'),
            (1024, b'LABELONE'),
            (1536, b'LABELONE'),
            (4086, b'SWAPSPACE2'),
        ):
            with self.subTest(mark=mark, offset=offset):
                content = bytes(offset) + mark + bytes(512)
                self.assertTrue(self.probe('volume', content))

    def test_by_name(self) -> None:
        for name in ('a.RAW', 'a.img', 'a.vhd', 'a.vhdx', 'a.vmdk', 'a.vdi'):
            with self.subTest(name=name):
                self.assertTrue(self.probe(name, bytes(4096)))
        self.assertFalse(self.probe('data.txt', bytes(4096)))

    def test_never_a_tar_or_directory(self) -> None:
        path = self.path('disk.raw')
        packages.write_ova(path, [('a', b'b')])
        self.assertFalse(disk.DiskSource().probe(path))
        self.assertFalse(disk.DiskSource().probe(self.directory))


class OpenTest(DiskTestCase):
    def test_open(self) -> None:
        path = self.path('my.disk.vhd', VHD)
        system = disk.DiskSource().open(path)
        self.assertEqual('my.disk', system.name)
        self.assertEqual(
            (model.Piece(0, len(VHD), 0),), system.disks[0].region.pieces
        )
        self.assertEqual('my.disk', system.disks[0].id)
        self.assertEqual(
            {'my.disk.vhd': system.disks[0].region}, system.package.members
        )

    def test_empty(self) -> None:
        self.assert_refused('package.empty', self.path('disk.raw', b''))

    def test_missing(self) -> None:
        self.assert_refused('package.unreadable', self.path('gone.raw'))

    def test_not_regular(self) -> None:
        path = self.path('pipe.raw')
        os.mkfifo(path)
        self.assert_refused('package.unreadable', path)
        self.assert_refused('package.unreadable', self.directory)


class SeveralTest(DiskTestCase):
    def test_in_the_given_order(self) -> None:
        paths = [
            self.path('root.vhd', VHD),
            self.path('data.raw', BOOT_SECTOR),
            self.path('a.img', bytes(512)),
        ]
        system = disk.DiskSource().open_several(paths)
        self.assertEqual('root', system.name)
        self.assertEqual(paths[0], system.package.path)
        self.assertEqual(
            [(0, 'root', paths[0]), (1, 'data', paths[1]), (2, 'a', paths[2])],
            [(one.index, one.id, one.region.path) for one in system.disks],
        )
        self.assertEqual(
            ['root.vhd', 'data.raw', 'a.img'], list(system.package.members)
        )

    def test_same_names(self) -> None:
        paths = [
            self.path('a/disk.vhd', VHD),
            self.path('b/disk.vhd', VHD),
            self.path('c/other.vhd', VHD),
        ]
        system = disk.DiskSource().open_several(paths)
        self.assertEqual(
            [paths[0], paths[1], 'other.vhd'], list(system.package.members)
        )
        self.assertEqual(
            [paths[0], paths[1], 'other'], [one.id for one in system.disks]
        )
        self.assertEqual('disk', system.name)

    def test_same_file_twice(self) -> None:
        path = self.path('a.vhd', VHD)
        os.link(path, self.path('b.vhd'))
        os.symlink(path, self.path('c.vhd'))
        for other in ('a.vhd', 'b.vhd', 'c.vhd'):
            with self.subTest(other=other):
                self.assert_refused(
                    'package.duplicate-member', path, self.path(other)
                )

    def test_another_that_is_no_disk(self) -> None:
        path = self.path('a.vhd', VHD)
        tar = self.path('b.raw')
        packages.write_ova(tar, [('a', b'b')])
        for other, found in (
            (tar, 'a tar archive'),
            (self.path('c.vhd.gz', gzip.compress(VHD)), 'a gzip stream'),
            (self.path('d.txt', b'hello'), 'bytes 68'),
        ):
            with self.subTest(other=other):
                text = self.assert_refused('package.not-a-disk', path, other)
                self.assertIn(other, text)
                self.assertIn(found, text)

    def test_package_comes_first(self) -> None:
        with self.assertRaises(exceptions.PackageError) as caught:
            ova.OvaSource().open_several(['guest.ova', 'a.vhd'])
        self.assertEqual('package.one-at-a-time', caught.exception.id)


class Bytes(stream.Stream):
    """Bytes in memory that come once."""

    def __init__(self, content: bytes, where: str) -> None:
        super().__init__(where)
        self._content = io.BytesIO(content)

    def _read_into(self, buffer: memoryview) -> int:
        return self._content.readinto(buffer[:1000])


class StreamTest(DiskTestCase):
    def test_probe(self) -> None:
        source = disk.DiskSource()
        for where, content, expected in (
            ('standard input', VHD, True),
            ('standard input', BOOT_SECTOR, True),
            ('standard input', bytes(0x10040) + b'_BHRfS_M', True),
            ('standard input', b'hello', False),
            ('standard input', b'', False),
            ('/x/disk.raw.gz', bytes(4096), True),
            ('https://host/x/disk.vhd', bytes(4096), True),
            ('https://host/x/page.html', b'<html>', False),
            ('a.vhd', ovf_packages.tar({'0.vhd': b''}), False),
        ):
            with self.subTest(where=where):
                arriving = Bytes(content, where)
                self.assertEqual(expected, source.probe_stream(arriving))
                # Nothing was taken.
                self.assertEqual(content, arriving.read(1 << 20))

    def test_names(self) -> None:
        for where, name, stem in (
            ('standard input', 'disk', 'disk'),
            ('/x/my.disk.vhd.zst', 'my.disk.vhd', 'my.disk'),
            ('https://host/a/my%20disk.vhd', 'my disk.vhd', 'my disk'),
            ('https://host/', 'disk', 'disk'),
        ):
            with self.subTest(where=where):
                system = disk.DiskSource().open_stream(Bytes(VHD, where))
                self.assertEqual(stem, system.name)
                region = system.disks[0].region
                self.assertEqual(name, region.name)
                self.assertEqual(((), False), (region.pieces, region.seekable))

    def test_arrives_once(self) -> None:
        system = disk.DiskSource().open_stream(Bytes(VHD, 'a.vhd'))
        assert system.package.arrivals is not None
        found = [
            (name, arriving.read(1 << 20))
            for name, arriving in system.package.arrivals
        ]
        self.assertEqual([('a.vhd', VHD)], found)
        self.assertIsNone(system.disks[0].region.length)

    def test_size(self) -> None:
        path = self.path('a.raw', BOOT_SECTOR)
        arriving = stream_files.FileStream(path)
        self.addCleanup(arriving.close)
        system = disk.DiskSource().open_stream(arriving)
        self.assertEqual(1024, system.disks[0].region.size)

    def test_what_is_left_is_checked(self) -> None:
        compressed = gzip.compress(os.urandom(100_000))
        arriving = stream_decoders.decoded(Bytes(compressed[:-4], 'a.raw.gz'))
        system = disk.DiskSource().open_stream(arriving)
        assert system.package.arrivals is not None
        with self.assertRaises(exceptions.PackageError) as caught:
            for _name, inner in system.package.arrivals:
                inner.read(10)
        self.assertEqual('package.truncated', caught.exception.id)

    def test_empty(self) -> None:
        with self.assertRaises(exceptions.PackageError) as caught:
            disk.DiskSource().open_stream(Bytes(b'', 'a.raw'))
        self.assertEqual('package.empty', caught.exception.id)
