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

"""The ova and disk sources."""

import hashlib
import os
import tempfile
import unittest

from xenimport import exceptions
from xenimport import model
from xenimport.source import disk
from xenimport.source import ova
from xenimport.tests import packages

VHD = packages.dynamic_vhd(bytes(4096) + b'x' * 4096, block_size=4096)


class SourceTestCase(unittest.TestCase):
    def setUp(self) -> None:
        directory = tempfile.TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        self.directory = directory.name

    def path(self, name: str, content: bytes | None = None) -> str:
        path = os.path.join(self.directory, name)
        if content is not None:
            with open(path, 'wb') as stream:
                stream.write(content)
        return path


class OvaTest(SourceTestCase):
    def package(
        self, href: str = 'one.vhd', *members: tuple[str, bytes]
    ) -> str:
        path = self.path('guest.ova')
        descriptor = packages.xencenter_ovf([packages.Disk('one', href, 8192)])
        packages.write_ova(
            path,
            [('guest.ovf', descriptor), *(members or (('one.vhd', VHD),))],
            manifest='sha256',
        )
        return path

    def assert_refused(self, path: str, error_id: str) -> str:
        with self.assertRaises(exceptions.PackageError) as caught:
            ova.OvaSource().open(path)
        self.assertEqual(error_id, caught.exception.id)
        return str(caught.exception)

    def test_region_is_the_disk_in_place(self) -> None:
        path = self.package()
        self.assertTrue(ova.OvaSource().probe(path))
        system = ova.OvaSource().open(path)
        self.assertEqual('guest', system.name)
        self.assertEqual('ova', system.package.format)
        (found,) = system.disks
        self.assertEqual((0, 8192), (found.index, found.capacity))
        (piece,) = found.region.pieces
        with open(path, 'rb') as stream:
            stream.seek(piece.offset)
            self.assertEqual(VHD, stream.read(piece.length))

    def test_digests_of_the_manifest(self) -> None:
        region = ova.OvaSource().open(self.package()).disks[0].region
        self.assertEqual(
            (model.Digest('sha256', hashlib.sha256(VHD).hexdigest()),),
            region.digests,
        )

    def test_manifest_is_said_not_to_be_compared(self) -> None:
        system = ova.OvaSource().open(self.package())
        (finding,) = system.findings
        self.assertEqual('package.manifest-unchecked', finding.id)
        self.assertEqual(model.Severity.NOTE, finding.severity)
        self.assertEqual('guest.mf', finding.subject)

    def test_everything_may_lie_in_a_folder(self) -> None:
        path = self.path('guest.ova')
        descriptor = packages.xencenter_ovf(
            [packages.Disk('one', 'one.vhd', 8192)]
        )
        packages.write_ova(path, [('f/g.ovf', descriptor), ('f/one.vhd', VHD)])
        system = ova.OvaSource().open(path)
        self.assertEqual('f/one.vhd', system.disks[0].region.name)
        # Without a manifest there is nothing to say about it.
        self.assertEqual((), system.findings)

    def test_chunks_are_joined(self) -> None:
        path = self.path('guest.ova')
        descriptor = packages.xencenter_ovf(
            [packages.Disk('one', 'one.vhd', 8192)]
        ).replace(b'ovf:size="0"', b'ovf:chunkSize="1000"')
        packages.write_ova(
            path,
            [
                ('g.ovf', descriptor),
                ('one.vhd.000000000', VHD[:1000]),
                ('one.vhd.000000001', VHD[1000:]),
            ],
        )
        region = ova.OvaSource().open(path).disks[0].region
        self.assertEqual(len(VHD), region.size)
        self.assertEqual([0, 1000], [p.region_offset for p in region.pieces])

    def test_gzip_is_marked(self) -> None:
        region = (
            ova.OvaSource()
            .open(self.package('one.vhd.gz', ('one.vhd.gz', b'\x1f\x8b')))
            .disks[0]
            .region
        )
        self.assertEqual('gzip', region.decoder)
        self.assertFalse(region.seekable)

    def test_missing_file_is_named(self) -> None:
        text = self.assert_refused(
            self.package('gone.vhd'), 'package.missing-file'
        )
        self.assertIn("'gone.vhd'", text)

    def test_references_outside(self) -> None:
        for href in (
            '/etc/passwd',
            '../one.vhd',
            'a/../../one.vhd',
            'file:///etc/passwd',
            'http://host/one.vhd',
            '..\\one.vhd',
            '',
        ):
            with self.subTest(href=href):
                self.assert_refused(
                    self.package(href), 'package.unsafe-reference'
                )

    def test_escaped_reference(self) -> None:
        path = self.package('my%20disk.vhd', ('my disk.vhd', VHD))
        region = ova.OvaSource().open(path).disks[0].region
        self.assertEqual('my disk.vhd', region.name)

    def test_not_a_tar(self) -> None:
        path = self.path('guest.ova', b'PK\x03\x04' + bytes(1000))
        self.assertTrue(ova.OvaSource().probe(path))
        text = self.assert_refused(path, 'package.not-a-tar')
        self.assertIn('a zip archive', text)

    def test_tar_without_ovf(self) -> None:
        path = self.path('guest.tar')
        packages.write_ova(path, [('notes.txt', b'hello')])
        self.assertTrue(ova.OvaSource().probe(path))
        self.assertIn('notes.txt', self.assert_refused(path, 'package.no-ovf'))

    def test_xva(self) -> None:
        path = self.path('guest.xva')
        packages.write_ova(path, [('ova.xml', b'<value/>')])
        self.assert_refused(path, 'package.xva')

    def test_two_descriptors(self) -> None:
        path = self.package('one.vhd', ('b.ovf', b''), ('one.vhd', VHD))
        self.assert_refused(path, 'package.several-ovf')

    def test_without_disks(self) -> None:
        path = self.path('guest.ova')
        packages.write_ova(path, [('g.ovf', packages.xencenter_ovf([]))])
        self.assert_refused(path, 'package.no-disks')


class DiskTest(SourceTestCase):
    def probe(self, name: str, content: bytes) -> bool:
        return disk.DiskSource().probe(self.path(name, content))

    def test_vhd_by_content(self) -> None:
        self.assertTrue(self.probe('disk.bin', VHD))
        self.assertTrue(self.probe('f', packages.fixed_vhd(bytes(4096))))

    def test_raw_by_content(self) -> None:
        sector = bytes(510) + b'\x55\xaa'
        self.assertTrue(self.probe('disk', sector + bytes(512)))
        ext4 = bytes(1080) + b'\x53\xef' + bytes(4096)
        self.assertTrue(self.probe('volume', ext4))

    def test_raw_by_name(self) -> None:
        self.assertTrue(self.probe('data.RAW', bytes(4096)))
        self.assertFalse(self.probe('data.txt', bytes(4096)))

    def test_never_a_tar(self) -> None:
        path = self.path('disk.raw')
        packages.write_ova(path, [('a', b'b')])
        self.assertFalse(disk.DiskSource().probe(path))

    def test_open(self) -> None:
        system = disk.DiskSource().open(self.path('my.disk.vhd', VHD))
        self.assertEqual('my.disk', system.name)
        self.assertEqual(
            (model.Piece(0, len(VHD), 0),), system.disks[0].region.pieces
        )

    def test_empty(self) -> None:
        with self.assertRaises(exceptions.PackageError) as caught:
            disk.DiskSource().open(self.path('disk.raw', b''))
        self.assertEqual('package.empty', caught.exception.id)

    def test_missing(self) -> None:
        with self.assertRaises(exceptions.PackageError) as caught:
            disk.DiskSource().open(self.path('gone.raw'))
        self.assertEqual('package.unreadable', caught.exception.id)
