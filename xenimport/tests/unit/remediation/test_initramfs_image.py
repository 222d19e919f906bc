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


from __future__ import annotations

import gzip
import io
import lzma
import shutil
import subprocess
import sys
import unittest
from unittest import mock
import zlib

import lz4.block
import zstandard

from xenimport.remediation.linux import cpio
from xenimport.remediation.linux import initramfs_image

#: Made by hand after buffer-format.rst: the file ``a`` holding ``hi``.
_BY_HAND = (
    b'070701'
    + b'00000001'  # inode
    + b'000081A4'  # a regular file, 0644
    + b'00000000' * 2
    + b'00000001'
    + b'00000000'
    + b'00000002'  # size
    + b'00000000' * 4
    + b'00000002'  # length of the name with its NUL
    + b'00000000'
    + b'a\0'
    + b'hi\0\0'
)


def _end() -> bytes:
    return cpio.pack([])


class CpioTest(unittest.TestCase):
    def test_pack_is_as_documented(self) -> None:
        packed = cpio.pack([cpio.regular('a', b'hi')])
        self.assertEqual(_BY_HAND, packed[: len(_BY_HAND)])
        self.assertEqual(0, len(packed) % 512)

    @unittest.skipUnless(shutil.which('cpio'), 'no cpio here')
    def test_cpio_lists_what_was_packed(self) -> None:
        packed = cpio.pack(
            [
                cpio.directory('lib'),
                cpio.regular('lib/one.ko', b'x' * 1001),
                cpio.regular('two', b''),
            ]
        )
        done = subprocess.run(
            ['cpio', '--list', '--verbose', '--quiet'],
            input=packed,
            capture_output=True,
            check=True,
        )
        lines = done.stdout.decode().splitlines()
        self.assertEqual(
            [('drwxr-xr-x', 'lib', '0'), ('-rw-r--r--', 'lib/one.ko', '1001'),
             ('-rw-r--r--', 'two', '0')],
            [(x.split()[0], x.split()[-1], x.split()[4]) for x in lines],
        )  # fmt: skip

    def test_read_cut_short(self) -> None:
        for length in (3, 50, 111, len(_BY_HAND) - 1):
            with (
                self.subTest(length=length),
                self.assertRaises(cpio.DamagedError),
            ):
                list(cpio.read(io.BytesIO(_BY_HAND[:length]), str))

    def test_read_refuses_a_long_name(self) -> None:
        header = _BY_HAND[:94] + b'7FFFFFFF' + _BY_HAND[102:]
        with self.assertRaisesRegex(cpio.DamagedError, 'a name of'):
            list(cpio.read(io.BytesIO(header), str))

    def test_read_keeps_only_what_is_wanted(self) -> None:
        stream = io.BytesIO(_BY_HAND + _end())
        (entry,) = cpio.read(stream, lambda name: name == 'b')
        self.assertEqual(('a', 2, None), (entry.name, entry.size, entry.data))


class ImageTest(unittest.TestCase):
    def setUp(self) -> None:
        super().setUp()
        self.plain = cpio.pack(
            [
                cpio.directory('usr'),
                cpio.Entry('lib', 0o120777, 7, b'usr/lib'),
                cpio.directory('conf'),
                cpio.regular('conf/initramfs.conf', b''),
                cpio.regular('conf/modules', b'xen-blkfront\n'),
            ]
        )

    def _check(self, first: bytes, kind: str) -> None:
        added = cpio.pack([cpio.regular('conf/modules', b'virtio_blk\n')])
        data = first + bytes(-len(first) % 4)
        image = initramfs_image.parse(data + added)
        self.assertEqual([kind, 'cpio'], [s.kind for s in image.sections])
        if kind != 'cpio':
            # The padding of a plain archive belongs to no section.
            self.assertEqual(len(first), image.sections[0].end)
        self.assertEqual('virtio_blk\n', image.text('conf/modules'))
        self.assertEqual('initramfs-tools', image.generator)

    def test_each_compression(self) -> None:
        for kind, packed in (
            ('cpio', self.plain),
            ('gzip', gzip.compress(self.plain)),
            ('xz', lzma.compress(self.plain, check=lzma.CHECK_CRC32)),
            ('zstd', zstandard.compress(self.plain)),
        ):
            with self.subTest(kind=kind):
                self._check(packed, kind)

    @unittest.skipUnless(shutil.which('lz4'), 'no lz4 here')
    def test_lz4(self) -> None:
        packed = subprocess.run(
            ['lz4', '-l', '-c', '-q'],
            input=self.plain,
            capture_output=True,
            check=True,
        ).stdout
        image = initramfs_image.parse(packed)
        self.assertEqual(['lz4'], [s.kind for s in image.sections])
        self.assertEqual('xen-blkfront\n', image.text('conf/modules'))

    def test_microcode_first(self) -> None:
        microcode = cpio.pack([cpio.regular('kernel/x86/microcode', b'x')])
        image = initramfs_image.parse(microcode + gzip.compress(self.plain))
        self.assertEqual(['cpio', 'gzip'], [s.kind for s in image.sections])
        self.assertIn('conf/modules', image.entries)
        self.assertIn('kernel/x86/microcode', image.entries)

    def test_unaligned_archive_is_not_seen(self) -> None:
        # The kernel does not see it either.
        first = gzip.compress(self.plain)
        first += bytes(-len(first) % 4 + 1)
        added = cpio.pack([cpio.regular('new', b'')])
        image = initramfs_image.parse(first + added)
        self.assertNotIn('new', image.entries)

    def test_damaged(self) -> None:
        for data in (
            b'',
            b'no initramfs',
            gzip.compress(self.plain)[:-20],
            b'\x28\xb5\x2f\xfd' + b'nonsense',
            b'\xfd7zXZ\0' + bytes(40),
            b'\x89LZO' + bytes(40),
            gzip.compress(b'not an archive' * 20),
        ):
            with (
                self.subTest(data=data[:10]),
                self.assertRaises(cpio.DamagedError),
            ):
                initramfs_image.parse(data)

    def test_resolves_links_of_directories(self) -> None:
        image = initramfs_image.parse(self.plain)
        self.assertEqual(
            'usr/lib/modules/6.1', image.resolve('lib/modules/6.1')
        )

    def test_a_loop_of_links_ends(self) -> None:
        image = initramfs_image.parse(
            cpio.pack([cpio.Entry('a', 0o120777, 1, b'a')])
        )
        image.resolve('a/b')


#: Reads an initramfs from stdin where 512 MiB are all there is.
_CONFINED = """
import resource, sys
resource.setrlimit(resource.RLIMIT_AS, (512 << 20, 512 << 20))
from xenimport.remediation.linux import cpio, initramfs_image
try:
    initramfs_image.parse(sys.stdin.buffer.read())
except cpio.DamagedError as error:
    print(error)
"""


def _member(name: str, mode: int, size: int) -> bytes:
    """A header with its name, padded; the data is for the caller."""
    encoded = name.encode() + b'\0'
    fields = (1, mode, 0, 0, 1, 0, size, 0, 0, 0, 0, len(encoded), 0)
    head = b'070701' + b''.join(b'%08X' % field for field in fields)
    return (head + encoded).ljust(-(-(110 + len(encoded)) // 4) * 4, b'\0')


class HostileTest(unittest.TestCase):
    def refused(self, data: bytes) -> str:
        """What a process of 512 MiB says of it."""
        done = subprocess.run(
            [sys.executable, '-c', _CONFINED],
            input=data,
            capture_output=True,
            timeout=60,
        )
        self.assertEqual(0, done.returncode, done.stderr.decode())
        return done.stdout.decode().strip()

    def test_many_wanted_files(self) -> None:
        # 60 configuration files of 8 MiB are 480 MiB to keep, and half a
        # MiB to send.
        size = 8 << 20
        member = _member('etc/modprobe.d/a.conf', 0o100644, size)
        packer = zlib.compressobj(9, zlib.DEFLATED, 31)
        packed = b''.join(
            packer.compress(
                member.replace(b'a.conf', b'%c.conf' % (65 + number % 60))
                + bytes(size)
            )
            for number in range(60)
        )
        self.assertEqual(
            f'more than {32 << 20} bytes of wanted files',
            self.refused(packed + packer.flush()),
        )

    def test_bomb_in_several_sections(self) -> None:
        # Each unpacks to 10 MiB, which alone would be fine.
        size = 10 << 20
        member = _member('big', 0o100644, size)
        packed = gzip.compress(member + bytes(size) + _end(), 1)
        with (
            mock.patch.dict(cpio.LIMITS, {'bytes unpacked': 32 << 20}),
            self.assertRaises(cpio.DamagedError) as caught,
        ):
            initramfs_image.parse(packed * 4)
        self.assertEqual(
            f'more than {32 << 20} bytes unpacked', str(caught.exception)
        )

    def test_many_names(self) -> None:
        member = _member('n' * 4000, 0o100644, 0)
        packed = gzip.compress(member * 9000, 1)
        self.assertEqual(
            f'more than {32 << 20} bytes of names', self.refused(packed)
        )

    def test_many_archives(self) -> None:
        with self.assertRaises(cpio.DamagedError) as caught:
            initramfs_image.parse(_end() * 65)
        self.assertEqual('more than 64 archives', str(caught.exception))

    def test_long_link(self) -> None:
        data = _member('link', 0o120777, 4097) + bytes(4100)
        with self.assertRaises(cpio.DamagedError) as caught:
            initramfs_image.parse(data)
        self.assertEqual('a link of 4097 bytes', str(caught.exception))

    def test_tiny_lz4_blocks_end_the_section(self) -> None:
        # A token of no literals and no match: a block of one byte that
        # unpacks to nothing. Each would ask for a buffer of 8 MiB.
        block = b'\x01\0\0\0\0'
        first = lz4.block.compress(_one_file(), store_size=False)
        data = b'\x02\x21\x4c\x18' + len(first).to_bytes(4, 'little') + first
        image = initramfs_image.parse(data + block * 100_000)
        self.assertEqual(len(data), image.sections[0].end)


def _one_file() -> bytes:
    """An archive with one file."""
    return cpio.pack([cpio.regular('conf/modules', b'ext4\n')])
