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


"""XVAs that are damaged, or made to do harm."""

import os
import tarfile
import typing

from xenimport import exceptions
from xenimport import model
from xenimport.source import xva
from xenimport.tests import xva_packages
from xenimport.tests.unit.source import test_xva

CHUNK = test_xva.CHUNK


class MembersTestCase(test_xva.XvaTestCase):
    """Members of one disk that a test changes."""

    checksums = ''

    def setUp(self) -> None:
        super().setUp()
        self.disk = xva_packages.Disk(
            'Ref:1',
            test_xva.content(8 * CHUNK, 2, 3, 5),
            checksums=self.checksums,
        )
        # The description, then 0, 2, 3, 5 and 7.
        self.all = self.members(self.disk)

    def assert_refused(self, members: test_xva.Members, error_id: str) -> str:
        self.write_members(members)
        for read in (self.in_place, self.arriving):
            with self.subTest(read.__name__):
                with self.assertRaises(exceptions.PackageError) as caught:
                    read()
                self.assertEqual(error_id, caught.exception.id)
                message = str(caught.exception)
                self.assertIn('Ref:', message)
        return message


class ChunkTest(MembersTestCase):
    """Chunks that do not fit, refused in the same way both ways."""

    def test_unchanged(self) -> None:
        self.write_members(self.all)
        for found in self.both_ways():
            self.assertEqual({'Ref:1': self.disk.content}, found)

    def test_decreasing(self) -> None:
        self.all[2:4] = [self.all[3], self.all[2]]
        message = self.assert_refused(self.all, 'package.xva-chunk-order')
        self.assertIn('chunk 2', message)

    def test_twice(self) -> None:
        self.all.insert(3, self.all[3])
        self.assert_refused(self.all, 'package.xva-chunk-order')

    def test_huge_number(self) -> None:
        for number in ('99999999', '9' * 18):
            self.all[3] = (f'Ref:1/{number}', self.all[3][1])
            self.assert_refused(self.all, 'package.xva-chunk-outside')

    def test_number_too_long_for_any(self) -> None:
        self.all[3] = ('Ref:1/' + '9' * 80, self.all[3][1])
        self.assert_refused(self.all, 'package.xva-member')

    def test_number_too_short(self) -> None:
        self.all[3] = ('Ref:1/0000003', self.all[3][1])
        self.assert_refused(self.all, 'package.xva-member')

    def test_digits_of_other_scripts(self) -> None:
        self.all[3] = ('Ref:1/0000000\u0663', self.all[3][1])
        self.assert_refused(self.all, 'package.xva-member')

    def test_beyond_the_end(self) -> None:
        self.all.append(('Ref:1/00000008', b'x' * CHUNK))
        self.assert_refused(self.all, 'package.xva-chunk-outside')

    def test_keep_alive_beyond_the_end(self) -> None:
        self.all.append(('Ref:1/00000008', b''))
        self.assert_refused(self.all, 'package.xva-chunk-outside')

    def test_without_first(self) -> None:
        del self.all[1]
        message = self.assert_refused(self.all, 'package.xva-chunk-missing')
        self.assertIn('The first chunk', message)

    def test_first_is_empty(self) -> None:
        self.all[1] = (self.all[1][0], b'')
        message = self.assert_refused(self.all, 'package.xva-chunk-missing')
        self.assertIn('The first chunk', message)

    def test_without_last(self) -> None:
        message = self.assert_refused(
            self.all[:-1], 'package.xva-chunk-missing'
        )
        self.assertIn('The last chunk', message)
        self.assertIn(f'data up to offset {6 * CHUNK}', message)

    def test_last_is_short(self) -> None:
        name, data = self.all[-1]
        self.all[-1] = (name, data[:-1])
        self.assert_refused(self.all, 'package.xva-chunk-missing')

    def test_without_chunks(self) -> None:
        other = xva_packages.Disk('Ref:2', bytes(CHUNK), '1')
        members = self.members(self.disk, other)[:6]
        message = self.assert_refused(members, 'package.xva-chunk-missing')
        self.assertIn('Ref:2', message)
        self.assertIn('no chunk', message)

    def test_not_together(self) -> None:
        other = xva_packages.Disk('Ref:2', bytes(CHUNK), '1')
        members = self.members(self.disk, other)
        members.append(('Ref:1/00000008', b''))
        self.assert_refused(members, 'package.xva-chunk-order')

    def test_not_described(self) -> None:
        self.all.append(('Ref:2/00000000', b'x'))
        self.assert_refused(self.all, 'package.xva-unknown-disk')
        self.all[-1] = ('Ref:1/a/00000000', b'x')
        self.assert_refused(self.all, 'package.xva-unknown-disk')

    def test_too_long(self) -> None:
        # A tar header that is believed would have it all read.
        path = self.write_members(self.all[:1])
        with open(path, 'r+b') as file:
            file.seek(-10240, os.SEEK_END)
            while file.read(512).strip(b'\0'):
                pass
            file.seek(-512, os.SEEK_CUR)
            member = tarfile.TarInfo('Ref:1/00000000')
            member.size = (64 << 20) + 1
            file.write(member.tobuf(tarfile.USTAR_FORMAT))
            file.truncate(file.tell() + (65 << 20))
        with self.assertRaises(exceptions.PackageError) as caught:
            self.in_place()
        self.assertEqual('package.chunk-too-long', caught.exception.id)

    def test_chunks_may_have_any_length(self) -> None:
        """As in the reference, only what is left out has the first's."""
        self.all[1:] = [
            ('Ref:1/00000000', b'a' * CHUNK),
            ('Ref:1/00000002', b'b' * 512),
            ('Ref:1/00000003', b'c' * (6 * CHUNK - 512)),
        ]
        self.write_members(self.all)
        expected = (
            b'a' * CHUNK + bytes(CHUNK) + b'b' * 512
            + b'c' * (6 * CHUNK - 512)
        )  # fmt: skip
        for found in self.both_ways():
            self.assertEqual({'Ref:1': expected}, found)


class ChecksumTest(MembersTestCase):
    """Checksums that are not where or what they must be."""

    checksums = 'xxhash'

    def test_wrong_form(self) -> None:
        for text in (
            b'', b'x' * 16, b'0' * 15, b'0' * 17, b'0' * 40, b'0' * 1000,
            b'\xff' * 16,
        ):  # fmt: skip
            self.all[2] = (self.all[2][0], text)
            with self.subTest(text=text[:20]):
                self.assert_refused(self.all, 'package.xva-member')

    def test_lower_case_and_line_feed(self) -> None:
        for number in range(2, len(self.all), 2):
            name, text = self.all[number]
            self.all[number] = (name, text.lower() + b'\n')
        self.write_members(self.all)
        for found in self.both_ways():
            self.assertEqual({'Ref:1': self.disk.content}, found)

    def test_without_chunk(self) -> None:
        self.all.pop(1)
        self.assert_refused(self.all, 'package.xva-member')

    def test_of_another_chunk(self) -> None:
        self.all[2] = ('Ref:1/00000001.xxhash', self.all[2][1])
        self.assert_refused(self.all, 'package.xva-member')

    def test_twice(self) -> None:
        self.all.insert(2, self.all[2])
        self.assert_refused(self.all, 'package.xva-member')

    def test_two_kinds(self) -> None:
        content = self.all[3][1]
        self.all[4] = (
            'Ref:1/00000002.checksum',
            xva_packages.checksum(content, 'checksum'),
        )
        message = self.assert_refused(self.all, 'package.xva-member')
        self.assertIn('of one kind', message)

    def test_of_a_keep_alive(self) -> None:
        # XXH64's test vector for nothing, and another.
        for text, error_id in (
            (b'EF46DB3751D8E999', None),
            (b'EF46DB3751D8E998', 'package.chunk-damaged'),
        ):
            members = [
                *self.all[:3],
                ('Ref:1/00000001', b''),
                ('Ref:1/00000001.xxhash', text),
                ('Ref:1/00000002', b'x' * (7 * CHUNK)),
            ]
            if error_id:
                self.assert_refused(members, error_id)
            else:
                self.write_members(members)
                for found in self.both_ways():
                    self.assertEqual(7 * CHUNK, found['Ref:1'].count(b'x'))

    def test_some_are_missing(self) -> None:
        # Nothing says that every chunk has one.
        del self.all[2], self.all[3]
        self.write_members(self.all)
        for found in self.both_ways():
            self.assertEqual({'Ref:1': self.disk.content}, found)

    def test_wrong_one_is_kept_for_the_reader(self) -> None:
        self.all[4] = (self.all[4][0], b'0' * 16)
        self.write_members(self.all)
        (disk,) = xva.XvaSource().open(self.path).disks
        self.assertEqual(
            'xxh64:0000000000000000', disk.region.pieces[1].checksum
        )


class PackageTest(test_xva.XvaTestCase):
    def assert_refused(self, error_id: str) -> str:
        for read in (self.in_place, self.arriving):
            with self.subTest(read.__name__):
                with self.assertRaises(exceptions.PackageError) as caught:
                    read()
                self.assertEqual(error_id, caught.exception.id)
        return str(caught.exception)

    def test_without_description(self) -> None:
        self.write_members([('Ref:1/00000000', b'x')])
        self.assert_refused('package.xva-description')
        self.write_members([('folder/', b'')])
        self.assert_refused('package.xva-description')

    def test_large_description(self) -> None:
        self.write_members([('ova.xml', b' ' * ((16 << 20) + 1))])
        self.assert_refused('package.member-too-large')

    def test_without_disks(self) -> None:
        xva_packages.write_file(self.path, [])
        self.assert_refused('package.no-disks')

    def test_unsafe_names(self) -> None:
        disk = xva_packages.Disk('Ref:1', b'x' * 512)
        for name in ('../Ref:1/00000000', '/Ref:1/00000000'):
            self.write_members([self.members(disk)[0], (name, b'x' * 512)])
            self.assert_refused('package.unsafe-name')

    def test_links(self) -> None:
        disk = xva_packages.Disk('Ref:1', b'x' * 512)
        with tarfile.open(self.path, 'w') as archive:
            name, text = self.members(disk)[0]
            member = tarfile.TarInfo(name)
            member.size = len(text)
            with open(self.path + '.xml', 'w+b') as file:
                file.write(text)
                file.seek(0)
                archive.addfile(member, file)
            member = tarfile.TarInfo('Ref:1/00000000')
            member.type = tarfile.SYMTYPE
            member.linkname = '/etc/passwd'
            archive.addfile(member)
        self.assert_refused('package.unsafe-member')

    def test_size_that_lies(self) -> None:
        disk = xva_packages.Disk('Ref:1', b'x' * CHUNK)
        objects = xva_packages.guest([disk])
        objects[-1]['snapshot']['virtual_size'] = str(1 << 59)
        xva_packages.write_file(self.path, [disk], objects, CHUNK)
        self.assert_refused('package.xva-chunk-missing')

    def test_many_members(self) -> None:
        # More than its size allows: nothing that large is in memory.
        disk = xva_packages.Disk('Ref:1', b'x' * 512)
        description = self.members(disk)[0]
        members = [(f'a/{number}', b'') for number in range(21_000)]
        self.write_members([description, *members])
        with self.assertRaises(exceptions.PackageError) as caught:
            self.in_place()
        self.assertEqual('package.too-many-members', caught.exception.id)


class HeadersTest(test_xva.XvaTestCase):
    """A large package is not read: it has nothing but headers here."""

    def test_only_headers_are_read(self) -> None:
        count = 2000
        disk = xva_packages.Disk('Ref:1', b'')
        objects = xva_packages.guest([disk])
        objects[-1]['snapshot']['virtual_size'] = str(count << 20)
        self.write_members([('ova.xml', xva_packages.description(objects))])
        with open(self.path, 'r+b') as file:
            file.seek(512)
            size = len(xva_packages.description(objects))
            file.seek(512 + -(-size // 512) * 512)
            for number in range(count):
                name = f'Ref:1/{number:08d}'
                self.header(file, name, 1 << 20)
                file.seek(1 << 20, os.SEEK_CUR)
                self.header(file, f'{name}.xxhash', 16)
                file.write(b'0123456789ABCDEF'.ljust(512, b'\0'))
            file.write(bytes(1024))
        (found,) = xva.XvaSource().open(self.path).disks
        self.assertEqual(count << 20, found.region.size)
        self.assertEqual(count, len(found.region.pieces))
        self.assertEqual(
            model.Piece(
                found.region.pieces[-1].offset,
                1 << 20,
                (count - 1) << 20,
                checksum='xxh64:0123456789abcdef',
            ),
            found.region.pieces[-1],
        )

    def header(self, file: typing.BinaryIO, name: str, size: int) -> None:
        member = tarfile.TarInfo(name)
        member.size = size
        file.write(member.tobuf(tarfile.USTAR_FORMAT))
