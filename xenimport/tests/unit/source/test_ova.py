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

"""The ova source, in place."""

import gzip
import hashlib
import os
import tempfile
import unittest

from xenimport import exceptions
from xenimport import model
from xenimport.source import base
from xenimport.source import ova
from xenimport.tests import ovf_packages
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

    def test_everything_may_lie_in_a_folder(self) -> None:
        path = self.path('guest.ova')
        descriptor = packages.xencenter_ovf(
            [packages.Disk('one', 'one.vhd', 8192)]
        )
        packages.write_ova(path, [('f/g.ovf', descriptor), ('f/one.vhd', VHD)])
        system = ova.OvaSource().open(path)
        self.assertEqual('f/one.vhd', system.disks[0].region.name)

    def test_chunks_are_joined(self) -> None:
        path = self.path('guest.ova')
        descriptor = packages.xencenter_ovf(
            [packages.Disk('one', 'one.vhd', 8192)]
        ).replace(b'ovf:size="0"', b'ovf:chunkSize="4000"')
        packages.write_ova(
            path,
            [
                ('g.ovf', descriptor),
                ('one.vhd.000000000', VHD[:4000]),
                ('one.vhd.000000001', VHD[4000:]),
            ],
        )
        region = ova.OvaSource().open(path).disks[0].region
        self.assertEqual(len(VHD), region.size)
        self.assertEqual([0, 4000], [p.region_offset for p in region.pieces])

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
            'a\\one.vhd',
            '%2e%2e/one.vhd',
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

    def test_an_xva_is_for_another_source(self) -> None:
        path = self.path('guest.xva')
        packages.write_ova(path, [('ova.xml', b'<value/>')])
        self.assertFalse(ova.OvaSource().probe(path))

    def test_directory(self) -> None:
        self.assertFalse(ova.OvaSource().probe(self.directory))

    def write(self, contents: dict[str, bytes]) -> str:
        return self.path('guest.ova', ovf_packages.tar(contents))

    def files(self, href: str = 'one.vhd') -> dict[str, bytes]:
        disk = packages.Disk('one', href, 8192)
        return {'g.ovf': packages.xencenter_ovf([disk]), 'one.vhd': VHD}

    def test_manifest_may_come_last_and_be_escaped(self) -> None:
        files = {**self.files('my%20disk.vhd'), 'my disk.vhd': VHD}
        text = ovf_packages.manifest(files, 'sha512')
        for name in (b'my disk', b'my%20disk'):
            with self.subTest(name=name):
                files['g.mf'] = text.replace(b'my disk', name)
                region = (
                    ova.OvaSource().open(self.write(files)).disks[0].region
                )
                (digest,) = region.digests
                self.assertEqual(hashlib.sha512(VHD).hexdigest(), digest.value)

    def test_descriptor_was_changed(self) -> None:
        files = self.files()
        files['g.mf'] = ovf_packages.manifest(files)
        files['g.ovf'] += b' '
        path = self.write(files)
        self.assertIn(
            'g.ovf', self.assert_refused(path, 'package.digest-mismatch')
        )
        request = base.Request(verify_manifest=False)
        region = ova.OvaSource().open(path, request).disks[0].region
        self.assertEqual((), region.digests)

    def test_file_of_the_manifest_is_missing(self) -> None:
        files = self.files()
        files['g.mf'] = ovf_packages.manifest({**files, 'g.nvram': b''})
        text = self.assert_refused(
            self.write(files), 'package.manifest-missing-file'
        )
        self.assertIn('g.nvram', text)

    def test_manifest_of_another_descriptor(self) -> None:
        files = {**self.files(), 'other.mf': b'not a manifest'}
        ova.OvaSource().open(self.write(files))

    def test_what_macos_adds_is_no_descriptor(self) -> None:
        files = {'._g.ovf': b'\0\5\x16\7', **self.files()}
        self.assertEqual('guest', ova.OvaSource().open(self.write(files)).name)

    def test_parts_with_digests(self) -> None:
        parts = ovf_packages.parts('one.vhd', VHD, 3000)
        files = self.files()
        files['g.ovf'] = files['g.ovf'].replace(
            b'ovf:size="0"', b'ovf:chunkSize="3000"'
        )
        del files['one.vhd']
        files |= parts
        files['g.mf'] = ovf_packages.manifest(files)
        system = ova.OvaSource().open(self.write(files))
        region = system.disks[0].region
        self.assertEqual(tuple(parts), region.parts)
        self.assertEqual((), region.digests)
        for name in parts:
            self.assertTrue(system.package.members[name].digests)

    def test_missing_part(self) -> None:
        parts = ovf_packages.parts('one.vhd', VHD, 3000)
        files = self.files()
        files['g.ovf'] = files['g.ovf'].replace(
            b'ovf:size="0"', b'ovf:chunkSize="3000"'
        )
        del files['one.vhd'], parts['one.vhd.000000001']
        text = self.assert_refused(self.write(files | parts), 'package.parts')
        self.assertIn('one.vhd.000000001', text)

    def test_compressed_member_is_plain_in_the_package(self) -> None:
        files = self.files('one.vhd.gz') | {'one.vhd.gz': gzip.compress(VHD)}
        files['g.mf'] = ovf_packages.manifest(files)
        system = ova.OvaSource().open(self.write(files))
        region = system.disks[0].region
        self.assertEqual(('gzip', False), (region.decoder, region.seekable))
        member = system.package.members['one.vhd.gz']
        self.assertEqual((None, True), (member.decoder, member.seekable))
        self.assertEqual(region.pieces, member.pieces)
        self.assertTrue(region.digests)
        self.assertEqual(region.digests, member.digests)

    def test_unknown_compression(self) -> None:
        files = self.files()
        files['g.ovf'] = files['g.ovf'].replace(
            b'ovf:size="0"', b'ovf:compression="bzip2"'
        )
        self.assert_refused(self.write(files), 'package.compression-unknown')

    def test_system_is_chosen(self) -> None:
        path = self.write(self.files())
        ova.OvaSource().open(path, base.Request(system='guest'))
        with self.assertRaises(exceptions.PackageError) as caught:
            ova.OvaSource().open(path, base.Request(system='other'))
        self.assertEqual('package.system-unknown', caught.exception.id)

    def test_two_descriptors(self) -> None:
        path = self.package('one.vhd', ('b.ovf', b''), ('one.vhd', VHD))
        self.assert_refused(path, 'package.several-ovf')

    def test_without_disks(self) -> None:
        path = self.path('guest.ova')
        packages.write_ova(path, [('g.ovf', packages.xencenter_ovf([]))])
        self.assert_refused(path, 'package.no-disks')
