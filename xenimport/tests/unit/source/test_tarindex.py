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

"""The reader of tar headers, against tars of tarfile and of our own."""

import errno
import io
import os
import tarfile
import tempfile
import unittest
from unittest import mock

from xenimport import exceptions
from xenimport.source import tarindex
from xenimport import stream_files


def header(
    name: bytes = b'a',
    size: bytes = b'00000000003\0',
    kind: bytes = b'0',
    magic: bytes = b'ustar\x0000',
    prefix: bytes = b'',
) -> bytes:
    """A header block, laid out after POSIX by hand."""
    block = bytearray(512)
    block[0 : len(name)] = name
    block[100:108] = b'0000644\0'
    block[124:136] = size
    block[148:156] = b' ' * 8
    block[156:157] = kind
    block[257:265] = magic
    block[345 : 345 + len(prefix)] = prefix
    block[148:155] = b'%06o\0' % sum(block)
    return bytes(block)


def padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 512)


class TarTestCase(unittest.TestCase):
    def setUp(self) -> None:
        directory = tempfile.TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        self.path = os.path.join(directory.name, 'package.ova')

    def write(self, data: bytes) -> str:
        with open(self.path, 'wb') as file:
            file.write(data)
        return self.path

    def assert_refused(self, data: bytes, error_id: str) -> str:
        """It is refused in place and as it comes."""
        self.write(data)
        with self.assertRaises(exceptions.PackageError) as caught:
            self.arrive()
        self.assertEqual(error_id, caught.exception.id)
        with self.assertRaises(exceptions.PackageError) as caught:
            tarindex.index(self.path)
        self.assertEqual(error_id, caught.exception.id)
        self.assertIn(self.path, caught.exception.where or '')
        return str(caught.exception)

    def arrive(self, most: int = 1 << 20) -> list[tuple[str, bytes]]:
        """The members as they come, and as much of each."""
        arriving = stream_files.FileStream(self.path)
        self.addCleanup(arriving.close)
        found: dict[str, bytes] = {}
        for member, content in tarindex.arriving(arriving):
            if member.name in found:
                raise tarindex.duplicate(self.path, member.name)
            found[member.name] = content.read(most)
        return list(found.items())


class IndexTest(TarTestCase):
    def test_offsets_are_those_of_tarfile(self) -> None:
        names = ['guest.ovf', 'd' * 90 + '/' + 'e' * 60, 'f' * 300]
        for tar_format in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
            with tarfile.open(self.path, 'w', format=tar_format) as archive:
                for number, name in enumerate(names):
                    member = tarfile.TarInfo(name)
                    member.size = 700 * number
                    archive.addfile(member, io.BytesIO(bytes(member.size)))
            with tarfile.open(self.path) as archive:
                expected = [
                    (member.name, member.offset_data, member.size)
                    for member in archive.getmembers()
                ]
            found = tarindex.index(self.path)
            self.assertEqual(
                expected,
                [(m.name, m.offset, m.size) for m in found.values()],
            )

    def test_ustar_prefix(self) -> None:
        self.write(header(prefix=b'dir') + padded(b'abc') + bytes(1024))
        self.assertEqual(['dir/a'], list(tarindex.index(self.path)))

    def test_leading_dot_is_dropped(self) -> None:
        self.write(header(name=b'./a') + padded(b'abc'))
        self.assertEqual(['a'], list(tarindex.index(self.path)))

    def test_old_form_without_magic(self) -> None:
        self.write(header(magic=bytes(8), kind=b'\0') + padded(b'abc'))
        self.assertEqual(
            {'a': tarindex.Member('a', 512, 3)}, tarindex.index(self.path)
        )

    def test_base_256_size(self) -> None:
        size = b'\x80' + (3).to_bytes(11, 'big')
        self.write(header(size=size) + padded(b'abc'))
        self.assertEqual(3, tarindex.index(self.path)['a'].size)

    def test_base_256_size_of_twelve_gibibytes(self) -> None:
        # Above what eleven octal digits hold; the file is sparse.
        size = 12 << 30
        with open(self.path, 'wb') as stream:
            stream.write(header(size=b'\x80' + size.to_bytes(11, 'big')))
            stream.seek(512 + size)
            stream.write(header(name=b'b') + padded(b'abc'))
        found = tarindex.index(self.path)
        self.assertEqual(size, found['a'].size)
        self.assertEqual(512 + size + 512, found['b'].offset)

    def test_pax_size_overrides_the_header(self) -> None:
        record = b'9 size=3\n'
        pax = header(name=b'x', size=b'%011o\0' % len(record), kind=b'x')
        self.write(
            pax
            + padded(record)
            + header(size=b'00000000000\0')
            + padded(b'abc')
        )
        self.assertEqual(3, tarindex.index(self.path)['a'].size)

    def test_directories_are_passed_over(self) -> None:
        # The size of a directory is not followed by data.
        self.write(header(name=b'd/', kind=b'5') + header() + padded(b'abc'))
        self.assertEqual(['a'], list(tarindex.index(self.path)))


class ArrivingTest(TarTestCase):
    def test_members(self) -> None:
        contents = [('a', b'1' * 700), ('b', b''), ('c', b'3' * 512)]
        with tarfile.open(self.path, 'w') as archive:
            for name, content in contents:
                member = tarfile.TarInfo(name)
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
        self.assertEqual(contents, self.arrive())
        # What is not read of a member is passed over.
        self.assertEqual(
            [(name, content[:3]) for name, content in contents],
            self.arrive(3),
        )
        self.assertEqual(
            list(tarindex.index(self.path)), [name for name, _ in contents]
        )

    def test_starts(self) -> None:
        for data, expected in (
            (header() + padded(b'abc'), True),
            (header()[:511], False),
            (bytes(1024), False),
            (b'', False),
        ):
            with self.subTest(length=len(data)):
                self.write(data)
                arriving = stream_files.FileStream(self.path)
                self.addCleanup(arriving.close)
                self.assertEqual(expected, tarindex.starts_tar(arriving))
                self.assertEqual(data, arriving.read(4096))

    def test_end_without_zero_blocks(self) -> None:
        self.write(header() + b'abc')
        self.assertEqual([('a', b'abc')], self.arrive())


class RefusalTest(TarTestCase):
    def test_not_a_tar(self) -> None:
        text = self.assert_refused(
            b'\x1f\x8b' + bytes(600), 'package.not-a-tar'
        )
        self.assertIn('Found: a gzip stream', text)

    def test_empty_file(self) -> None:
        self.assertIn(
            'the file is empty',
            self.assert_refused(b'', 'package.not-a-tar'),
        )

    def test_damaged_second_header(self) -> None:
        self.assert_refused(
            header() + padded(b'abc') + b'x' * 512, 'package.damaged'
        )

    def test_member_cut_short(self) -> None:
        self.assert_refused(
            header(size=b'00000001000\0') + bytes(511), 'package.truncated'
        )

    def test_header_cut_short(self) -> None:
        self.assert_refused(
            header() + padded(b'abc') + header()[:100], 'package.truncated'
        )

    def test_links_devices_and_sparse_members(self) -> None:
        for kind in b'12346SMVK':
            with self.subTest(kind=chr(kind)):
                self.assert_refused(
                    header(kind=bytes((kind,))) + padded(b'abc'),
                    'package.unsafe-member',
                )

    def test_pax_sparse_member(self) -> None:
        record = b'22 GNU.sparse.major=1\n'
        self.assert_refused(
            header(kind=b'x', size=b'%011o\0' % len(record))
            + padded(record)
            + header()
            + padded(b'abc'),
            'package.unsafe-member',
        )

    def test_names_that_lead_outside(self) -> None:
        for name in (b'/etc/passwd', b'../a', b'a/../../b', b'a/..'):
            with self.subTest(name=name):
                self.assert_refused(
                    header(name=name) + padded(b'abc'),
                    'package.unsafe-name',
                )

    def test_name_in_a_pax_header_that_leads_outside(self) -> None:
        record = b'13 path=../a\n'
        self.assert_refused(
            header(kind=b'x', size=b'%011o\0' % len(record))
            + padded(record)
            + header()
            + padded(b'abc'),
            'package.unsafe-name',
        )

    def test_name_not_utf_8(self) -> None:
        self.assert_refused(
            header(name=b'\xff') + padded(b'abc'), 'package.unsafe-name'
        )

    def test_duplicate(self) -> None:
        self.assert_refused(
            header() + padded(b'abc') + header(name=b'./a') + padded(b'abc'),
            'package.duplicate-member',
        )

    def test_negative_base_256_size(self) -> None:
        self.assert_refused(header(size=b'\xff' * 12), 'package.not-a-tar')

    def test_too_many_members(self) -> None:
        data = b''.join(
            header(name=b'%d' % number, size=b'0' * 11 + b'\0')
            for number in range(10_001)
        )
        self.assert_refused(data, 'package.too-many-members')

    def test_extended_header_too_large(self) -> None:
        self.assert_refused(
            header(kind=b'x', size=b'77777777777\0') + bytes(512),
            'package.damaged',
        )

    def test_damaged_pax_records(self) -> None:
        for record in (b'99 path=b\n', b'0 path=b\n', b'path=b\n', b'9 9 9'):
            with self.subTest(record=record):
                self.assert_refused(
                    header(kind=b'x', size=b'%011o\0' % len(record))
                    + padded(record)
                    + header()
                    + padded(b'abc'),
                    'package.damaged',
                )

    def test_missing_file(self) -> None:
        with self.assertRaises(exceptions.PackageError) as caught:
            tarindex.is_tar(self.path)
        self.assertEqual('package.unreadable', caught.exception.id)

    def test_disk_that_fails(self) -> None:
        self.write(header(b'a') + bytes(1024))
        failing = OSError(errno.EIO, 'Input/output error')
        for ask in (tarindex.is_tar, tarindex.index):
            with (
                self.subTest(ask=ask),
                mock.patch.object(
                    os, 'pread', autospec=True, side_effect=failing
                ),
                self.assertRaises(exceptions.PackageError) as caught,
            ):
                ask(self.path)
            self.assertEqual('package.read-failed', caught.exception.id)

    def test_directory(self) -> None:
        self.assertFalse(tarindex.is_tar(os.path.dirname(self.path)))
        with self.assertRaises(exceptions.PackageError) as caught:
            tarindex.index(os.path.dirname(self.path))
        self.assertEqual('package.unreadable', caught.exception.id)
