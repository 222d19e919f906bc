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


"""OVF packages made, and judged, by other people's programs.

Needs tar, gzip, zstd, split, openssl, cat and strace; a test whose
program is missing is skipped.
"""

from __future__ import annotations

import gzip
import hashlib
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
import typing
import unittest

from xenimport import exceptions
from xenimport import model
from xenimport.source import base
from xenimport.source import ova
from xenimport.source import ovf_folder
from xenimport import stream as stream_room
from xenimport import stream_decoders
from xenimport import stream_files
from xenimport import stream_packages
from xenimport.tests.functional import commands
from xenimport.tests import ovf_packages as writer
from xenimport.tests import packages

MIB = 1024 * 1024
SIZE = 3 * MIB + 1234
ROOT = os.path.dirname(
    os.path.dirname(os.path.dirname(os.path.dirname(__file__)))
)


def needs(*programs: str) -> typing.Callable[[type], type]:
    """Skip the class when a program is missing, naming it."""
    missing = [name for name in programs if shutil.which(name) is None]
    return unittest.skipIf(missing, f'not installed: {", ".join(missing)}')


class OvfTestCase(unittest.TestCase):
    """A directory with a package that other programs have put together."""

    def setUp(self) -> None:
        directory = tempfile.TemporaryDirectory(prefix='xenimport-test-')
        self.addCleanup(directory.cleanup)
        self.outside = directory.name
        self.directory = os.path.join(directory.name, 'package')
        os.mkdir(self.directory)
        self.disks = {
            'one.vmdk': random.Random(1).randbytes(SIZE),
            'my (2) disk.vmdk': random.Random(2).randbytes(SIZE),
        }
        writer.write_folder(self.directory, self.disks)
        self.describe()

    def path(self, name: str) -> str:
        return os.path.join(self.directory, name)

    def describe(self, *hrefs: str, more: str = '') -> None:
        """Write the descriptor."""
        hrefs = hrefs or ('one.vmdk', 'my%20(2)%20disk.vmdk')
        count = range(len(hrefs))
        text = writer.vmware_ovf(
            [writer.File(f'f{n}', hrefs[n], more) for n in count],
            [writer.Disk(f'd{n}', f'f{n}') for n in count],
            [],
            [writer.Drive(7 + n, None, n, f'ovf:/disk/d{n}') for n in count],
        )
        writer.write_folder(self.directory, {'guest.ovf': text})

    def run_in(self, *command: str, output: str | None = None) -> None:
        """Run a program in the package's directory."""
        done = subprocess.run(
            command,
            check=True,
            capture_output=True,
            timeout=60,
            cwd=self.directory,
        )
        if output is not None:
            writer.write_folder(self.directory, {output: done.stdout})

    def make_manifest(self, algorithm: str = 'sha256') -> None:
        self.run_in(
            'openssl', 'dgst', f'-{algorithm}', 'guest.ovf', *self.disks,
            output='guest.mf',
        )  # fmt: skip

    def read(self, system: model.VirtualSystem) -> list[bytes]:
        """The bytes of every disk that lies in a file, decoded."""
        found = []
        for disk in system.disks:
            stream: stream_room.Stream = stream_files.RegionStream(disk.region)
            if disk.region.decoder == 'gzip':
                stream = stream_decoders.GzipStream(stream)
            found.append(stream.read(SIZE + 1))
            stream.close()
        return found


@needs('tar', 'openssl', 'gzip', 'zstd')
class TarTest(OvfTestCase):
    def pack(self, name: str, tar_format: str, *options: str) -> str:
        self.run_in(
            'tar', f'--format={tar_format}', '-cf', name, *options,
            'guest.ovf', 'guest.mf', *self.disks,
        )  # fmt: skip
        return self.path(name)

    def test_in_place(self) -> None:
        for tar_format in ('ustar', 'gnu', 'pax', 'oldgnu', 'v7'):
            for algorithm in ('sha1', 'sha256', 'sha512'):
                with self.subTest(format=tar_format, algorithm=algorithm):
                    self.make_manifest(algorithm)
                    path = self.pack('guest.ova', tar_format)
                    source = ova.OvaSource()
                    self.assertTrue(source.probe(path))
                    system = source.open(path)
                    self.assertEqual(
                        list(self.disks.values()), self.read(system)
                    )
                    for disk, content in zip(
                        system.disks, self.disks.values(), strict=True
                    ):
                        (digest,) = disk.region.digests
                        self.assertEqual(
                            hashlib.new(algorithm, content).hexdigest(),
                            digest.value,
                        )

    def test_in_a_folder_with_a_long_name(self) -> None:
        self.make_manifest()
        folder = 'f' * 90 + '/' + 'g' * 90
        path = self.pack('guest.ova', 'gnu', f'--transform=s,^,{folder}/,')
        system = ova.OvaSource().open(path)
        self.assertEqual(list(self.disks.values()), self.read(system))
        self.assertTrue(all(disk.region.digests for disk in system.disks))

    def arrive(self, path: str) -> dict[str, bytes]:
        arriving = stream_packages.open_package(path)
        assert arriving is not None
        self.addCleanup(arriving.close)
        self.assertTrue(ova.OvaSource().probe_stream(arriving))
        system = ova.OvaSource().open_stream(arriving)
        assert system.package.arrivals is not None
        return {
            name: stream.read(SIZE + 1)
            for name, stream in system.package.arrivals
        }

    def test_compressed_as_a_whole(self) -> None:
        self.make_manifest()
        path = self.pack('guest.ova', 'gnu')
        self.run_in('gzip', '-1', '-k', path)
        self.run_in('zstd', '-q', '-1', '-k', path)
        for suffix in ('.gz', '.zst'):
            with self.subTest(suffix=suffix):
                self.assertEqual(self.disks, self.arrive(path + suffix))

    def test_pipe(self) -> None:
        self.make_manifest()
        path = self.path('pipe.ova')
        os.mkfifo(path)
        with subprocess.Popen(
            ['tar', '-cf', path, 'guest.ovf', *self.disks, 'guest.mf'],
            cwd=self.directory,
        ):
            self.assertEqual(self.disks, self.arrive(path))

    def test_damage_in_a_pipe(self) -> None:
        self.make_manifest()
        path = self.path('pipe.ova')
        os.mkfifo(path)
        with open(self.path('one.vmdk'), 'r+b') as stream:
            stream.seek(SIZE // 2)
            stream.write(b'damage')
        with subprocess.Popen(
            ['tar', '-cf', path, 'guest.ovf', *self.disks, 'guest.mf'],
            cwd=self.directory,
        ):
            with self.assertRaises(exceptions.PackageError) as caught:
                self.arrive(path)
        self.assertEqual('package.digest-mismatch', caught.exception.id)
        self.assertIn('one.vmdk', str(caught.exception))


@needs('openssl', 'gzip', 'split', 'cat')
class FolderTest(OvfTestCase):
    def open(self) -> model.VirtualSystem:
        self.assertTrue(ovf_folder.OvfSource().probe(self.directory))
        return ovf_folder.OvfSource().open(self.directory)

    def test_files(self) -> None:
        self.make_manifest()
        system = self.open()
        self.assertEqual(list(self.disks.values()), self.read(system))
        self.assertTrue(all(disk.region.digests for disk in system.disks))

    def test_compressed_disk(self) -> None:
        self.run_in('gzip', '-1', 'one.vmdk')
        self.describe('one.vmdk.gz')
        self.assertEqual([self.disks['one.vmdk']], self.read(self.open()))

    def test_parts(self) -> None:
        for compressed in (False, True):
            with self.subTest(compressed=compressed):
                writer.write_folder(self.directory, self.disks)
                if compressed:
                    self.run_in('gzip', '-1', '-n', 'one.vmdk')
                    os.rename(self.path('one.vmdk.gz'), self.path('one.vmdk'))
                more = 'ovf:compression="gzip"' if compressed else ''
                size = os.stat(self.path('one.vmdk')).st_size
                self.describe(
                    'one.vmdk',
                    more=f'ovf:chunkSize="1000000" ovf:size="{size}" {more}',
                )
                self.run_in(
                    'split', '-b', '1000000', '-d', '-a', '9', 'one.vmdk',
                    'one.vmdk.',
                )  # fmt: skip
                os.unlink(self.path('one.vmdk'))
                system = self.open()
                self.assertEqual([self.disks['one.vmdk']], self.read(system))
                self.assertEqual(4, len(system.disks[0].region.parts))


@needs('strace')
class OpensTest(OvfTestCase):
    """What is opened, as the kernel sees it."""

    def opened_outside(self) -> list[str]:
        log = os.path.join(self.outside, 'strace.log')
        code = (
            'import sys\n'
            'from xenimport import exceptions\n'
            'from xenimport.source import ovf_folder\n'
            'try:\n'
            '    ovf_folder.OvfSource().open(sys.argv[1])\n'
            'except exceptions.PackageError as error:\n'
            '    print(error.id)\n'
        )
        done = subprocess.run(
            [
                'strace', '-f', '-y', '-e', 'trace=open,openat,openat2',
                '-e', 'status=successful', '-o', log,
                sys.executable, '-c', code, self.directory,
            ],
            check=False,
            capture_output=True,
            text=True,
            timeout=60,
            env=os.environ | {'PYTHONPATH': ROOT},
        )  # fmt: skip
        if 'ptrace' in done.stderr:
            self.skipTest('nothing may be traced here')
        self.outcome = done.stdout.strip()
        with open(log, encoding='utf-8', errors='replace') as stream:
            lines = stream.readlines()
        # What is opened inside is seen, so what is not would be as well.
        self.assertTrue([line for line in lines if 'guest.ovf' in line])
        return [line for line in lines if 'secret' in line]

    def test_links_and_references(self) -> None:
        secret = os.path.join(self.outside, 'secret')
        os.mkdir(secret)
        writer.write_folder(secret, {'file': b'secret'})
        os.symlink(secret, self.path('folder'))
        os.unlink(self.path('one.vmdk'))
        os.symlink(f'{secret}/file', self.path('one.vmdk'))
        for href, outcome in (
            ('one.vmdk', 'package.unsafe-member'),
            ('folder/file', 'package.unsafe-member'),
            ('../secret/file', 'package.unsafe-reference'),
            (f'{secret}/file', 'package.unsafe-reference'),
        ):
            with self.subTest(href=href):
                self.describe(href)
                self.assertEqual([], self.opened_outside())
                self.assertEqual(outcome, self.outcome)


class CommandTest(commands.CommandTest):
    """Whole packages through the command, down to the last byte."""

    def setUp(self) -> None:
        super().setUp()
        generator = random.Random(3)
        self.raw = bytes(MIB) + generator.randbytes(SIZE // 512 * 512)
        vhd = packages.dynamic_vhd(self.raw)
        self.content = gzip.compress(vhd, 1)
        more = (
            f'ovf:compression="gzip" ovf:size="{len(self.content)}" '
            'ovf:chunkSize="1000000"'
        )
        text = packages.xencenter_ovf(
            [packages.Disk('one', 'one.vhd', len(self.raw))]
        )
        self.files = {
            'guest.ovf': text.replace(b'ovf:size="0"', more.encode()),
            **writer.parts('one.vhd', self.content, 1_000_000),
        }
        self.files['guest.mf'] = writer.manifest(self.files)

    def write(self) -> list[str]:
        """The package as a folder, in a tar and in a compressed tar."""
        folder = os.path.join(self.directory, 'guest')
        writer.write_folder(folder, self.files)
        tar = writer.tar(self.files)
        writer.write_folder(
            str(self.directory),
            {'a.ova': tar, 'b.ova.gz': gzip.compress(tar, 1)},
        )
        return [
            folder,
            os.path.join(self.directory, 'a.ova'),
            os.path.join(self.directory, 'b.ova.gz'),
        ]

    def convert(self, path: str, *options: str) -> commands.Done:
        output = self.directory / 'output'
        shutil.rmtree(output, ignore_errors=True)
        return self.openstack(
            'import-xen', 'convert', path, '--no-repair', '--output', output,
            *options,
        )  # fmt: skip

    def assert_converted(self, done: commands.Done) -> None:
        self.assertEqual(0, done.code, done.stderr)
        (image,) = (self.directory / 'output').glob('*.raw')
        self.assertEqual(self.raw, image.read_bytes())

    def test_parts_of_a_compressed_disk(self) -> None:
        for path in self.write():
            with self.subTest(path=path):
                self.assert_converted(self.convert(path))

    def test_damage(self) -> None:
        # A byte of the gzip header that no decoder looks at: only the
        # digest tells.
        first = 'one.vhd.000000000'
        damaged = bytearray(self.files[first])
        damaged[4] ^= 1
        self.files[first] = bytes(damaged)
        for path in self.write():
            with self.subTest(path=path):
                self.assert_clear_error(
                    self.convert(path), 'package.digest-mismatch'
                )
                self.assertFalse(
                    list((self.directory / 'output').glob('*.raw'))
                )
                self.assert_converted(
                    self.convert(path, '--no-verify-manifest')
                )


_LIMITED = """
import resource, sys
limit = 512 * 1024 * 1024
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
from xenimport import exceptions
from xenimport.source import ova, ovf_folder
from xenimport import stream_packages
path = sys.argv[1]
try:
    if path.endswith('.ovf'):
        ovf_folder.OvfSource().open(path)
    else:
        stream = stream_packages.open_package(path)
        if stream is None:
            ova.OvaSource().open(path)
        else:
            system = ova.OvaSource().open_stream(stream)
            for _name, _member in system.package.arrivals:
                pass
    print('opened')
except exceptions.XenImportError as error:
    print(error.id)
"""


class HostileTest(OvfTestCase):
    """Hostile packages in 512 MiB of address space: a clear error, soon."""

    def outcome(self, path: str) -> str:
        started = time.monotonic()
        done = subprocess.run(
            [sys.executable, '-c', _LIMITED, path],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
            env=os.environ | {'PYTHONPATH': ROOT},
        )
        self.assertEqual(0, done.returncode, done.stderr[-2000:])
        # Two seconds, and some for a busy machine.
        self.assertLess(time.monotonic() - started, 10)
        return done.stdout.strip()

    def test_descriptors(self) -> None:
        room = 4 * MIB - 100
        item = b'<Item><ResourceType>17</ResourceType></Item>'
        for name, body, error_id in (
            ('many', b'<a/>' * (room // 4), 'package.ovf-too-large'),
            (
                'deep',
                b'<a>' * (room // 7) + b'</a>' * (room // 7),
                'package.ovf-too-large',
            ),
            (
                'attributes',
                b'<a %s/>' % b' '.join(b'a%d=""' % n for n in range(300_000)),
                'package.virtual-systems',
            ),
            ('text', b'x' * room, 'package.virtual-systems'),
            (
                'items',
                b'<VirtualSystem>%b</VirtualSystem>' % (item * 49_000),
                'package.no-disks',
            ),
            (
                'systems',
                b'<VirtualSystem/>' * 90_000,
                'package.virtual-systems',
            ),
        ):
            with self.subTest(name=name):
                text = b'<Envelope>' + body + b'</Envelope>'
                writer.write_folder(
                    self.directory,
                    {'guest.ovf': text, 'a.ova': writer.tar({'g.ovf': text})},
                )
                self.assertEqual(
                    error_id, self.outcome(self.path('guest.ovf'))
                )
                self.assertEqual(error_id, self.outcome(self.path('a.ova')))
                self.run_in('gzip', '-1', '-f', '-k', 'a.ova')
                self.assertEqual(error_id, self.outcome(self.path('a.ova.gz')))

    def test_member_that_is_a_bomb(self) -> None:
        """A disk that nobody reads is not decompressed."""
        writer.write_folder(self.directory, {'zeros': bytes(400 * MIB)})
        self.run_in('gzip', '-9', 'zeros')
        with open(self.path('zeros.gz'), 'rb') as stream:
            bomb = stream.read()
        self.describe('zeros.gz')
        with open(self.path('guest.ovf'), 'rb') as stream:
            files = {'guest.ovf': stream.read(), 'zeros.gz': bomb}
        writer.write_folder(self.directory, {'a.ova': writer.tar(files)})
        self.run_in('gzip', '-1', 'a.ova')
        self.assertEqual('opened', self.outcome(self.path('a.ova.gz')))

    def test_endless_padding(self) -> None:
        with open(self.path('guest.ovf'), 'rb') as stream:
            files = {
                'guest.ovf': stream.read(),
                'one.vmdk': b'1',
                'my (2) disk.vmdk': b'2',
            }
        content = writer.tar(files) + bytes(200 * MIB)
        writer.write_folder(self.directory, {'a.ova': content})
        self.run_in('gzip', '-1', 'a.ova')
        self.assertEqual(
            'package.excess-data', self.outcome(self.path('a.ova.gz'))
        )


class RequestTest(OvfTestCase):
    def test_damaged_descriptor_is_read_when_asked(self) -> None:
        writer.write_folder(
            self.directory,
            {'guest.mf': writer.manifest({'guest.ovf': b'other'})},
        )
        source = ovf_folder.OvfSource()
        with self.assertRaises(exceptions.PackageError):
            source.open(self.directory)
        source.open(self.directory, base.Request(verify_manifest=False))
