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


"""XVAs, judged by other people's programs.

Needs zstd, gzip, pzstd, tar, cat, xva-img and strace; a test whose
program is missing is skipped.
"""

from __future__ import annotations

import filecmp
import gzip
import os
import pathlib
import random
import shutil
import subprocess
import sys
import tarfile
import tempfile
import typing
import unittest

from xenimport.converter import copy
from xenimport.converter import raw
from xenimport import exceptions
from xenimport.source import xva
from xenimport import stream as stream_room
from xenimport import stream_files
from xenimport import stream_packages
from xenimport.tests.functional import commands
from xenimport.tests import xva_packages

MIB = xva_packages.MIB
ROOT = os.path.dirname(
    os.path.dirname(os.path.dirname(os.path.dirname(__file__)))
)


def needs(*programs: str) -> typing.Callable[[type], type]:
    """Skip the class when a program is missing, naming it."""
    missing = [name for name in programs if shutil.which(name) is None]
    return unittest.skipIf(missing, f'not installed: {", ".join(missing)}')


def run(*command: str, folder: str | None = None) -> str:
    done = subprocess.run(
        command,
        check=True,
        capture_output=True,
        text=True,
        timeout=120,
        cwd=folder,
    )
    return done.stdout


class XvaTestCase(unittest.TestCase):
    def setUp(self) -> None:
        directory = tempfile.TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        self.directory = directory.name

    def path(self, name: str) -> str:
        return os.path.join(self.directory, name)

    def make_raw(self, name: str, size: int, seed: int) -> str:
        """A sparse disk of runs of noise, some of them tiny."""
        path = self.path(name)
        generator = random.Random(seed)
        with open(path, 'wb') as file:
            file.truncate(size)
            for _ in range(8):
                length = generator.choice((1, 512, 4096, 300_000, 3 * MIB))
                file.seek(generator.randrange(size - length))
                file.write(generator.randbytes(length))
            # The very end must arrive: a GPT's backup stands there.
            file.seek(size - 512)
            file.write(b'EFI PART'.ljust(512, b'.'))
        return path

    def two_disks(self, checksums: str = 'xxhash') -> list[xva_packages.Disk]:
        return [
            xva_packages.Disk(
                'Ref:10',
                self.make_raw('first.raw', 67 * MIB + 512, 1),
                '0',
                checksums,
                keep_alives=range(20, 30),
            ),
            xva_packages.Disk(
                'Ref:1',
                self.make_raw('second.raw', 33 * MIB, 2),
                '1',
                checksums,
                keep_alives=(1,),
            ),
        ]

    def package(self, checksums: str = 'xxhash') -> str:
        """An XVA of two disks."""
        path = self.path('guest.xva')
        xva_packages.write_file(path, self.two_disks(checksums))
        return path

    def in_place(self, path: str) -> list[str]:
        """Copy the disks of a plain file; the paths of the RAW files."""
        source = xva.XvaSource()
        self.assertTrue(source.probe(path))
        system = source.open(path)
        outputs = []
        for disk in system.disks:
            output = self.path(f'ours{disk.index}.raw')
            converter = raw.RawConverter()
            self.assertTrue(converter.probe(system.package, disk))
            with converter.open(system.package, disk) as image:
                copy.copy(image, output)
            outputs.append(output)
        return outputs

    def forward(self, stream: stream_room.Stream | None) -> list[str]:
        """Copy the disks as they come; the paths of the RAW files."""
        assert stream is not None
        self.addCleanup(stream.close)
        source = xva.XvaSource()
        self.assertTrue(source.probe_stream(stream))
        system = source.open_stream(stream)
        disks = {disk.region.name: disk for disk in system.disks}
        assert system.package.arrivals is not None
        for name, arriving in system.package.arrivals:
            disk = disks[name]
            converter = raw.RawConverter()
            self.assertTrue(converter.probe_stream(disk, arriving))
            image = converter.open_stream(disk, arriving)
            copy.copy_forward(image, self.path(f'ours{disk.index}.raw'))
        return [self.path(f'ours{index}.raw') for index in range(len(disks))]

    def assert_two_disks(self, found: list[str]) -> None:
        for ours, theirs in zip(
            found, ('first.raw', 'second.raw'), strict=True
        ):
            self.assert_same(self.path(theirs), ours)
            # As sparse as the disk's chunks are.
            self.assertLess(os.stat(ours).st_blocks * 512, 24 * MIB)
            os.unlink(ours)

    def assert_same(self, one: str, other: str) -> None:
        self.assertEqual(os.stat(one).st_size, os.stat(other).st_size)
        self.assertTrue(filecmp.cmp(one, other, shallow=False))


class RoundTripTest(XvaTestCase):
    def test_in_place(self) -> None:
        for checksums in ('xxhash', 'checksum', ''):
            with self.subTest(checksums=checksums):
                self.assert_two_disks(self.in_place(self.package(checksums)))

    def test_damage_is_found(self) -> None:
        path = self.package()
        (_, disk) = xva.XvaSource().open(path).disks
        piece = disk.region.pieces[-1]
        with open(path, 'r+b') as file:
            file.seek(piece.offset + 12345)
            byte = file.read(1)
            file.seek(-1, os.SEEK_CUR)
            file.write(bytes((byte[0] ^ 1,)))
        for act in (
            lambda: self.in_place(path),
            lambda: self.forward(stream_files.FileStream(path)),
        ):
            with self.assertRaises(exceptions.XenImportError) as caught:
                act()
            self.assertEqual('package.chunk-damaged', caught.exception.id)
            self.assertIn('Ref:1', str(caught.exception))
        self.assertFalse(os.path.exists(self.path('ours1.raw')))


@needs('zstd', 'gzip', 'pzstd')
class CompressedTest(XvaTestCase):
    """Compressed by the programs that XenServer and users call."""

    def test_compressed_files(self) -> None:
        path = self.package()
        for command in (
            ('zstd', '-q', '-o'),
            ('zstd', '-q', '-1', '--long=27', '-o'),
            ('pzstd', '-q', '-p', '2', '-o'),
        ):
            with self.subTest(command=command):
                packed = self.path('packed')
                run(*command, packed, path)
                self.assert_two_disks(
                    self.forward(stream_packages.open_package(packed))
                )
                os.unlink(packed)
        run('gzip', '-1', path)
        self.assert_two_disks(
            self.forward(stream_packages.open_package(f'{path}.gz'))
        )

    def test_pipe(self) -> None:
        path = self.package()
        pipe = self.path('pipe')
        os.mkfifo(pipe)
        for command in ('cat', 'zstd -q -c', 'gzip -c'):
            with self.subTest(command=command):
                child = subprocess.Popen(
                    ['sh', '-c', f'{command} "$0" > "$1"', path, pipe]
                )
                self.addCleanup(child.wait)
                self.addCleanup(child.kill)
                self.assert_two_disks(
                    self.forward(stream_packages.open_package(pipe))
                )
                self.assertEqual(0, child.wait(30))

    def test_cut_off(self) -> None:
        path = self.package()
        run('zstd', '-q', path)
        packed = f'{path}.zst'
        for length in (1000, os.stat(packed).st_size - 100):
            os.truncate(packed, length)
            stream = stream_packages.open_package(packed)
            with self.assertRaises(exceptions.PackageError) as caught:
                self.forward(stream)
            self.assertEqual('package.truncated', caught.exception.id)
            run('zstd', '-q', '-f', path)


@needs('tar')
class TarTest(XvaTestCase):
    """Unpacked and packed again, by hand."""

    def test_packed_again(self) -> None:
        run('tar', '-xf', self.package(), '-C', self.directory)
        for form in ('gnu', 'pax', 'ustar', 'oldgnu'):
            with self.subTest(form=form):
                path = self.path('again.xva')
                run('tar', '-cf', path, f'--format={form}', '--sort=name',
                    'ova.xml', 'Ref:1', 'Ref:10',
                    folder=self.directory)  # fmt: skip
                self.assert_two_disks(self.in_place(path))
                self.assert_two_disks(
                    self.forward(stream_files.FileStream(path))
                )

    def test_names_with_a_point(self) -> None:
        run('tar', '-xf', self.package(), '-C', self.directory)
        path = self.path('again.xva')
        run('tar', '-cf', path, '--sort=name',
            './ova.xml', './Ref:1', './Ref:10',
            folder=self.directory)  # fmt: skip
        self.assert_two_disks(self.in_place(path))
        self.assert_two_disks(self.forward(stream_files.FileStream(path)))


@needs('xva-img', 'tar')
class XvaImgTest(XvaTestCase):
    """Another reader and writer, of the older form of checksums.

    It takes the number for an offset, so keep-alives are not for it.
    """

    def test_reader(self) -> None:
        path = self.path('guest.xva')
        reference = self.make_raw('first.raw', 40 * MIB, 3)
        disk = xva_packages.Disk('Ref:1', reference, checksums='checksum')
        xva_packages.write_file(path, [disk])
        run('tar', '-xf', path, '-C', self.directory)
        theirs = self.path('theirs.raw')
        run('xva-img', 'disk-export', self.path('Ref:1/'), theirs)
        (ours,) = self.in_place(path)
        self.assert_same(theirs, ours)
        self.assert_same(reference, ours)

    def test_writer(self) -> None:
        reference = self.make_raw('first.raw', 40 * MIB, 4)
        os.mkdir(self.path('Ref:1'))
        run('xva-img', 'disk-import', self.path('Ref:1/'), reference)
        disk = xva_packages.Disk('Ref:1', reference)
        with open(self.path('ova.xml'), 'wb') as file:
            file.write(xva_packages.description(xva_packages.guest([disk])))
        path = self.path('theirs.xva')
        run('xva-img', 'package', path,
            self.path('ova.xml'), self.path('Ref:1/'))  # fmt: skip
        (region,) = [d.region for d in xva.XvaSource().open(path).disks]
        self.assertTrue(
            all(f'{p.checksum}'.startswith('sha1:') for p in region.pieces)
        )
        (ours,) = self.in_place(path)
        self.assert_same(reference, ours)
        (ours,) = self.forward(stream_files.FileStream(path))
        self.assert_same(reference, ours)


class CommandTest(commands.CommandTest):
    """The command, as a user runs it."""

    def convert(self, package: pathlib.Path) -> bytes:
        """Convert the package; the disk."""
        output = self.directory / 'output'
        done = self.openstack(
            'import-xen', 'convert', package,
            '--no-repair', '--output', output,
        )  # fmt: skip
        self.assertEqual(0, done.code, done.stderr)
        (disk,) = output.glob('*.raw')
        content = disk.read_bytes()
        shutil.rmtree(output)
        return content

    def test_convert(self) -> None:
        content = bytearray(8 * MIB)
        content[440:444] = b'\x0d\xf0\xad\x0b'
        content[450] = 0x83
        content[454:458] = (2048).to_bytes(4, 'little')
        content[458:462] = (8 * MIB // 512 - 2048).to_bytes(4, 'little')
        content[510:512] = b'\x55\xaa'
        content[5 * MIB : 5 * MIB + 6] = b'middle'
        package = self.directory / 'guest.xva'
        disk = xva_packages.Disk('Ref:1', bytes(content), keep_alives=(2,))
        xva_packages.write_file(package, [disk])
        self.assertEqual(content, self.convert(package))
        packed = self.directory / 'guest.xva.gz'
        packed.write_bytes(gzip.compress(package.read_bytes()))
        self.assertEqual(content, self.convert(packed))
        damaged = package.read_bytes().replace(b'middle', b'muddle')
        for path, data in (
            (package, damaged),
            (packed, gzip.compress(damaged)),
        ):
            path.write_bytes(data)
            done = self.openstack(
                'import-xen', 'convert', path,
                '--no-repair', '--output', self.directory / 'output',
            )  # fmt: skip
            self.assert_clear_error(done, 'package.chunk-damaged')
            left = (self.directory / 'output').glob('*.raw')
            self.assertEqual([], list(left))


#: Reads a package in 512 MiB of address space, all of it.
_LIMITED = """
import resource, sys
limit = 512 * 1024 * 1024
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
resource.setrlimit(resource.RLIMIT_CPU, (20, 20))
from xenimport.converter import raw
from xenimport import exceptions
from xenimport.source import xva
from xenimport import stream_packages
path = sys.argv[1]
try:
    stream = stream_packages.open_package(path)
    if stream is None:
        system = xva.XvaSource().open(path)
        for disk in system.disks:
            with raw.RawConverter().open(system.package, disk) as image:
                for offset, length, data in image.extents():
                    if data:
                        image.pread(offset, min(length, 65536))
    else:
        system = xva.XvaSource().open_stream(stream)
        disks = {disk.region.name: disk for disk in system.disks}
        for name, arriving in system.package.arrivals:
            image = raw.RawConverter().open_stream(disks[name], arriving)
            for offset, run in image.runs():
                pass
    print('read')
except exceptions.XenImportError as error:
    print(error.id)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, file=sys.stderr)
"""


class HostileTest(XvaTestCase):
    """In 512 MiB of address space: refused, no crash."""

    def outcome(self, path: str, *before: str) -> str:
        done = subprocess.run(
            [*before, sys.executable, '-c', _LIMITED, path],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
            env=os.environ | {'PYTHONPATH': ROOT},
        )
        self.assertEqual(0, done.returncode, done.stderr[-2000:])
        return done.stdout.strip()

    def described(self, text: bytes) -> str:
        """What becomes of a description."""
        path = self.path('guest.xva')
        with open(path, 'wb') as file:
            xva_packages.write_members(file, iter([('ova.xml', text)]))
        return self.outcome(path)

    def test_ordinary(self) -> None:
        path = self.package()
        self.assertEqual('read', self.outcome(path))
        run('gzip', '-1', path)
        self.assertEqual('read', self.outcome(f'{path}.gz'))

    def test_descriptions(self) -> None:
        bomb = b''.join(
            b'<!ENTITY a%d "%s">' % (level + 1, b'&a%d;' % level * 10)
            for level in range(9)
        )
        fill = (15 << 20) - 100
        for text in (
            b'<!DOCTYPE v [<!ENTITY a0 "ha">' + bomb
            + b']><value>&a9;</value>',
            b'<value>' * (fill // 7),
            b'<value><array><data>' * (fill // 20),
            b'<value><array><data>' + b'<value/>' * (fill // 8),
            b'<value>' + b'\n' * fill + b'</value>',
            b'<value>' + b'&lt;' * (fill // 4) + b'</value>',
            b'<value>' + b'x' * fill + b'</value>',
            b'<value ' + b' '.join(b'a%d="b"' % n for n in range(900_000))
            + b'/>',
            b'<value' + b'x' * fill,
        ):  # fmt: skip
            with self.subTest(text=text[:40]):
                self.assertEqual(
                    'package.xva-description', self.described(text)
                )

    def test_many_members(self) -> None:
        """A plain tar of tiny chunks: more than its size allows."""
        disk = xva_packages.Disk('Ref:1', b'x' * 512 * 30_000)
        path = self.path('guest.xva')
        xva_packages.write_file(
            path, [disk._replace(checksums='')], length=512
        )
        self.assertEqual('package.too-many-members', self.outcome(path))

    @unittest.skipIf(shutil.which('zstd') is None, 'not installed: zstd')
    def test_bomb(self) -> None:
        """A chunk of 1 TiB of zeros, in a few kilobytes."""
        disk = xva_packages.Disk('Ref:1', b'x' * 512)
        text = xva_packages.description(xva_packages.guest([disk]))
        path = self.path('guest.xva')
        with open(path, 'wb') as file:
            xva_packages.write_members(file, iter([('ova.xml', text)]))
            chunk = tarfile.TarInfo('Ref:1/00000000')
            chunk.size = 1 << 40
            file.seek(512 + -(-len(text) // 512) * 512)
            file.write(chunk.tobuf(tarfile.GNU_FORMAT))
            file.truncate(300 * MIB)
        run('zstd', '-q', path)
        self.assertEqual('package.chunk-too-long', self.outcome(f'{path}.zst'))

    @unittest.skipIf(shutil.which('zstd') is None, 'not installed: zstd')
    def test_bomb_after_the_end(self) -> None:
        path = self.package()
        with subprocess.Popen(
            ['zstd', '-q', '-1', '-f', '-o', f'{path}.zst'],
            stdin=subprocess.PIPE,
        ) as child:
            assert child.stdin is not None
            with open(path, 'rb') as file:
                shutil.copyfileobj(file, child.stdin)
            for _ in range(1000):
                child.stdin.write(bytes(MIB))
        self.assertEqual('package.excess-data', self.outcome(f'{path}.zst'))

    @unittest.skipIf(shutil.which('strace') is None, 'not installed: strace')
    def test_nothing_else_is_opened(self) -> None:
        path = self.package()
        log = self.path('log')
        self.assertEqual(
            'read',
            self.outcome(
                path, 'strace', '-f', '-o', log, '-e', 'trace=open,openat'
            ),
        )
        with open(log, encoding='utf-8', errors='replace') as file:
            lines = file.read().splitlines()
        opened = [
            number for number, line in enumerate(lines) if f'"{path}"' in line
        ]
        self.assertTrue(opened)
        # Modules are read before it is first opened.
        for line in lines[opened[0] :]:
            if '"' in line and '= -1 ' not in line:
                name = line.split('"')[1]
                self.assertTrue(
                    name == path or name.startswith(sys.prefix)
                    or name.endswith(('.py', '.pyc', '.so'))
                    or '/python3' in name,
                    line,
                )  # fmt: skip
