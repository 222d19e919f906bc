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

import os
import tempfile
import unittest

from xenimport import exceptions
from xenimport import model
from xenimport import stream as stream_room
from xenimport import stream_packages
from xenimport.source import xenapi
from xenimport.tests import packages
from xenimport.tests import vhd_packages

Members = list[tuple[str, bytes]]
#: Two of a chain, as Nova names them.
CHAIN: Members = [('./0.vhd', b'child'), ('./1.vhd', b'base')]


class XenapiTestCase(unittest.TestCase):
    def setUp(self) -> None:
        directory = tempfile.TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        self.directory = directory.name
        self.source = xenapi.XenapiSource()

    def file(self, content: bytes, name: str = 'image.tar') -> str:
        path = os.path.join(self.directory, name)
        with open(path, 'wb') as stream:
            stream.write(content)
        return path

    def tar(self, members: Members, directory: str | None = './') -> str:
        return self.file(vhd_packages.tar(members, directory=directory))

    def stream(
        self, members: Members, directory: str | None = './'
    ) -> stream_room.Stream:
        content = vhd_packages.tar(
            members, compressed=True, directory=directory
        )
        stream = stream_packages.open_package(self.file(content, 'image.tgz'))
        assert stream is not None
        self.addCleanup(stream.close)
        return stream


class ProbeTest(XenapiTestCase):
    def assert_probed(
        self, expected: bool, members: Members, directory: str | None = './'
    ) -> None:
        with self.subTest(members=[name for name, _ in members]):
            self.assertIs(
                expected, self.source.probe(self.tar(members, directory))
            )

    def test_images(self) -> None:
        self.assert_probed(True, CHAIN)
        self.assert_probed(True, CHAIN[::-1], None)
        self.assert_probed(True, [('image.vhd', b'x')])
        self.assert_probed(True, [('snap.vhd', b'x'), ('image.vhd', b'x')])
        self.assert_probed(True, [('a/0.vhd', b'x')], 'a')
        self.assert_probed(
            True, [('manifest', b'x'), ('swap.vhd', b'y'), ('0.vhd', b'x')]
        )

    def test_other_packages(self) -> None:
        self.assert_probed(False, [*CHAIN, ('guest.OVF', b'x')])
        self.assert_probed(False, [('ova.xml', b'x'), ('0.vhd', b'x')])
        self.assert_probed(False, [('disk.vhd', b'x')])
        self.assert_probed(False, [('0.vhd', b'x'), ('data.VHD', b'x')])
        self.assert_probed(False, [('00.vhd', b'x')])
        self.assert_probed(False, [('swap.vhd', b'x')])
        self.assert_probed(False, [('readme', b'x')])
        self.assert_probed(False, [])

    def test_what_is_no_tar(self) -> None:
        self.assertFalse(self.source.probe(self.file(b'conectix' * 200)))
        self.assertFalse(self.source.probe(self.file(b'')))

    def test_damaged_tar_is_for_another_to_refuse(self) -> None:
        content = vhd_packages.tar([('0.vhd', bytes(4096)), *CHAIN[1:]])
        self.assertFalse(self.source.probe(self.file(content[:3000])))

    def test_few_members_are_looked_at(self) -> None:
        # As in an XVA, were it not for its first member.
        members = [(f'Ref:1/{n:08d}', b'') for n in range(100)]
        self.assert_probed(False, [*members, *CHAIN])


class OpenTest(XenapiTestCase):
    def test_chain(self) -> None:
        path = self.tar([*CHAIN[::-1], ('./notes', b'n')])
        system = self.source.open(path)
        self.assertEqual('image', system.name)
        self.assertEqual('xenapi', system.package.format)
        self.assertEqual(
            {'0.vhd', '1.vhd', 'notes'}, set(system.package.members)
        )
        (disk,) = system.disks
        self.assertEqual(
            (0, '0.vhd', 'vhd'), (disk.index, disk.region.name, disk.format)
        )
        with open(path, 'rb') as stream:
            for name, content in (('0.vhd', b'child'), ('1.vhd', b'base')):
                region = system.package.members[name]
                (piece,) = region.pieces
                stream.seek(piece.offset)
                self.assertEqual(content, stream.read(piece.length))
                self.assertEqual(len(content), region.size)

    def test_newest_of_each_form(self) -> None:
        for names, newest in (
            (['image.vhd'], 'image.vhd'),
            (['base.vhd', 'image.vhd'], 'image.vhd'),
            (['image.vhd', 'snap.vhd'], 'snap.vhd'),
            (['swap.vhd', 'base.vhd', 'snap.vhd', 'image.vhd'], 'snap.vhd'),
            (
                [f'{n}.vhd' for n in (10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0)],
                '0.vhd',
            ),
            (['a/1.vhd', 'a/0.vhd'], 'a/0.vhd'),
        ):
            with self.subTest(names=names):
                system = self.source.open(
                    self.tar([(name, b'x') for name in names])
                )
                self.assertEqual(newest, system.disks[0].region.name)

    def test_no_sequence(self) -> None:
        for names in (
            ['1.vhd'],
            ['0.vhd', '2.vhd'],
            ['0.vhd', 'image.vhd'],
            ['0.vhd', 'a/1.vhd'],
            ['a/0.vhd', 'b/0.vhd'],
            ['0.vhd', 'extra.vhd'],
            ['notes'],
        ):
            with (
                self.subTest(names=names),
                self.assertRaises(exceptions.PackageError) as caught,
            ):
                self.source.open(self.tar([(name, b'x') for name in names]))
            self.assertEqual('package.vhd-sequence', caught.exception.id)

    def test_disks_that_are_no_chain(self) -> None:
        whole = packages.dynamic_vhd(bytes(512))
        part = vhd_packages.Vhd(512, parent=vhd_packages.uuid_of(2)).build()
        for first in (part, packages.fixed_vhd(bytes(512)), b''):
            self.source.open(self.tar([('0.vhd', first), ('1.vhd', whole)]))
        for members in (
            [('1.vhd', part), ('0.vhd', whole)],
            [('0.vhd', part), ('1.vhd', whole), ('2.vhd', whole)],
        ):
            with self.assertRaises(exceptions.PackageError) as caught:
                self.source.open(self.tar(members))
            self.assertEqual('package.vhd-sequence', caught.exception.id)

    def test_names_of_packages(self) -> None:
        for name in ('web', 'web.tar', 'web.tgz', 'web.tar.gz', 'web.vhd.tgz'):
            path = self.file(vhd_packages.tar(CHAIN), name)
            with self.subTest(name=name):
                self.assertEqual('web', self.source.open(path).name)


class StreamTest(XenapiTestCase):
    def arrive(
        self, members: Members, directory: str | None = './'
    ) -> tuple[model.VirtualSystem, list[tuple[str, bytes]]]:
        stream = self.stream(members, directory)
        self.assertTrue(self.source.probe_stream(stream))
        self.assertEqual(0, stream.position)
        system = self.source.open_stream(stream)
        assert system.package.arrivals is not None
        return system, [
            (name, content.read(1 << 20))
            for name, content in system.package.arrivals
        ]

    def refused(self, members: Members, error_id: str) -> None:
        with self.assertRaises(exceptions.PackageError) as caught:
            self.arrive(members)
        self.assertEqual(error_id, caught.exception.id)

    def test_chain(self) -> None:
        members = [('./notes', b'n'), *CHAIN]
        system, arrived = self.arrive(members)
        self.assertEqual([('0.vhd', b'child'), ('1.vhd', b'base')], arrived)
        (disk,) = system.disks
        self.assertEqual('0.vhd', disk.region.name)
        self.assertFalse(disk.region.seekable)
        self.assertEqual((), disk.region.pieces)
        self.assertEqual('vhd', disk.format)
        self.assertEqual('image', system.name)

    def test_base_comes_first(self) -> None:
        system, arrived = self.arrive([('a/1.vhd', b'b'), ('a/0.vhd', b'c')])
        self.assertEqual('a/0.vhd', system.disks[0].region.name)
        self.assertEqual([('a/1.vhd', b'b'), ('a/0.vhd', b'c')], arrived)

    def test_members_that_are_not_read(self) -> None:
        stream = self.stream([('0.vhd', bytes(1 << 20)), ('1.vhd', b'b')])
        system = self.source.open_stream(stream)
        assert system.package.arrivals is not None
        self.assertEqual(
            ['0.vhd', '1.vhd'], [name for name, _ in system.package.arrivals]
        )

    def test_old_names(self) -> None:
        system, arrived = self.arrive([('image.vhd', b'x')])
        self.assertEqual('image.vhd', system.disks[0].region.name)
        self.assertEqual([('image.vhd', b'x')], arrived)
        # All of it can be seen ahead.
        system, _ = self.arrive([('image.vhd', b'x'), ('snap.vhd', b'y')])
        self.assertEqual('snap.vhd', system.disks[0].region.name)

    def test_newest_comes_too_late(self) -> None:
        large = bytes(100_000)
        self.refused(
            [('image.vhd', large), ('snap.vhd', b'y')], 'package.vhd-order'
        )

    def test_descriptor_comes_last(self) -> None:
        # Of several disks that are no chain.
        large = bytes(100_000)
        self.refused(
            [('0.vhd', large), ('1.vhd', large), ('guest.ovf', b'<')],
            'package.vhd-order',
        )

    def test_no_sequence(self) -> None:
        large = bytes(100_000)
        for names in (
            ['0.vhd', '2.vhd'],
            ['1.vhd'],
            ['0.vhd', 'a/1.vhd'],
            ['0.vhd', 'other.vhd'],
        ):
            with self.subTest(names=names):
                self.refused(
                    [(name, large) for name in names], 'package.vhd-sequence'
                )

    def test_disks_that_are_no_chain(self) -> None:
        whole = packages.dynamic_vhd(bytes(512))
        self.arrive([('0.vhd', whole)])
        self.refused(
            [('1.vhd', whole), ('0.vhd', whole)], 'package.vhd-sequence'
        )

    def test_same_name_twice(self) -> None:
        large = bytes(100_000)
        self.refused(
            [('0.vhd', large), ('0.vhd', large)], 'package.duplicate-member'
        )

    def test_cut_short(self) -> None:
        content = vhd_packages.tar(
            [('0.vhd', bytes(100_000))], compressed=True
        )
        path = self.file(content[:-20])
        stream = stream_packages.open_package(path)
        assert stream is not None
        self.addCleanup(stream.close)
        with self.assertRaises(exceptions.PackageError) as caught:
            system = self.source.open_stream(stream)
            assert system.package.arrivals is not None
            for _, content_stream in system.package.arrivals:
                content_stream.finish()
        self.assertEqual('package.truncated', caught.exception.id)

    def test_damaged_behind_the_last_member(self) -> None:
        members = [('0.vhd', bytes(100_000))]
        content = bytearray(vhd_packages.tar(members, compressed=True))
        content[-6] ^= 1  # in the checksum
        path = self.file(bytes(content))
        stream = stream_packages.open_package(path)
        assert stream is not None
        self.addCleanup(stream.close)
        system = self.source.open_stream(stream)
        assert system.package.arrivals is not None
        with self.assertRaises(exceptions.PackageError) as caught:
            list(system.package.arrivals)
        self.assertEqual('package.undecodable', caught.exception.id)

    def test_others_are_not_probed(self) -> None:
        for members in (
            [('ova.xml', b'x')],
            [('guest.ovf', b'x'), ('0.vhd', b'x')],
            [('disk.vhd', b'x')],
            [],
        ):
            stream = self.stream(members)
            self.assertFalse(self.source.probe_stream(stream))
            self.assertEqual(0, stream.position)
