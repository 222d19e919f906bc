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


"""Packages that come once, through the real command into a real Glance."""

import functools
import gzip
import hashlib
import http.server
import os
import random
import subprocess
import threading

from xenimport.tests.functional import commands
from xenimport.tests import packages
from xenimport.tests import xva_packages

MIB = 1 << 20
SIZE = 24 * MIB


def disk(seed: int = 1) -> bytes:
    """A disk with one partition, some data and holes."""
    generator = random.Random(seed)
    content = bytearray(SIZE)
    content[440:444] = b'\x0d\xf0\xad\x0b'
    content[450] = 0x83
    content[454:458] = (2048).to_bytes(4, 'little')
    content[458:462] = (SIZE // 512 - 2048).to_bytes(4, 'little')
    content[510:512] = b'\x55\xaa'
    for place in (2 * MIB, 9 * MIB + 512, SIZE - 3000):
        content[place : place + 3000] = generator.randbytes(3000)
    return bytes(content)


class StreamTest(commands.CloudCommandTest):
    """--no-repair, so that the images must be the disks bit for bit."""

    def write_ova(self, name: str, manifest: str = 'sha256') -> str:
        path = os.fspath(self.directory / name)
        entry = packages.Disk('d0', 'disk.vhd', SIZE)
        packages.write_ova(
            path,
            [
                ('guest.ovf', packages.xencenter_ovf([entry])),
                ('disk.vhd', packages.dynamic_vhd(disk())),
            ],
            manifest=manifest,
        )
        return path

    def write_xva(self) -> str:
        path = os.fspath(self.directory / 'guest.xva')
        xva_packages.write_file(
            path, [xva_packages.Disk('Ref:1', disk()),
                   xva_packages.Disk('Ref:10', disk(2), '1')]
        )  # fmt: skip
        return path

    def assert_imported(self, done: commands.Done, *disks: bytes) -> None:
        """The images stand and are the disks; they are deleted again."""
        self.assertEqual(0, done.code, done.stderr)
        rows = done.json()
        self.assertEqual(len(disks), len(rows))
        for row, content in zip(rows, disks, strict=True):
            self.assertEqual(
                hashlib.sha512(content).hexdigest(), row['Hash Value']
            )
            saved = self.directory / 'saved.raw'
            self.openstack('save', '--file', saved, row['ID'])
            self.assertEqual(content, saved.read_bytes())
            self.openstack('delete', row['ID'])
        self.assert_nothing_left()

    def import_(self, package: str, *options: str, **more) -> commands.Done:
        return self.openstack(
            'import-xen', package, '--no-repair', '-f', 'json', *options,
            **more,
        )  # fmt: skip

    def test_file_goes_straight_into_glance(self) -> None:
        done = self.import_(self.write_ova('guest.ova'))
        self.assertNotIn('copy disks', done.stderr)
        self.assert_imported(done, disk())

    def test_pipe(self) -> None:
        with open(self.write_ova('guest.ova'), 'rb') as stream:
            reader = subprocess.Popen(
                ['cat'], stdin=stream, stdout=subprocess.PIPE
            )
        assert reader.stdout is not None
        with reader, reader.stdout as pipe:
            done = self.import_('-', stdin=pipe)
        self.assertNotIn('workfile', done.stderr)
        self.assert_imported(done, disk())

    def test_xva_with_two_disks_out_of_zstd(self) -> None:
        path = self.write_xva()
        self.assert_imported(self.import_(path), disk(), disk(2))
        subprocess.run(['zstd', '-q', path], check=True)
        done = self.import_(f'{path}.zst')
        self.assert_imported(done, disk(), disk(2))

    def serve(self) -> str:
        """The test's directory over HTTP on loopback; the address."""
        handler = functools.partial(Quiet, directory=os.fspath(self.directory))
        server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), handler)
        self.addCleanup(server.server_close)
        self.addCleanup(server.shutdown)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        return f'http://127.0.0.1:{server.server_address[1]}'

    def test_address(self) -> None:
        path = self.write_ova('guest.ova')
        with open(path, 'rb') as plain, gzip.open(f'{path}.gz', 'wb') as out:
            out.write(plain.read())
        address = self.serve()
        for name in ('guest.ova', 'guest.ova.gz'):
            with self.subTest(name):
                self.assert_imported(self.import_(f'{address}/{name}'), disk())

    def test_address_without_a_package(self) -> None:
        done = self.import_(f'{self.serve()}/absent.ova')
        self.assert_clear_error(done, 'package.download-failed')
        self.assertIn('404', done.stderr)
        self.assert_nothing_left()

    def test_damage_on_the_way_makes_no_image(self) -> None:
        path = self.write_ova('guest.ova')
        with open(path, 'r+b') as stream:
            stream.seek(os.stat(path).st_size // 2)
            byte = stream.read(1)
            stream.seek(-1, os.SEEK_CUR)
            stream.write(bytes([byte[0] ^ 1]))
        done = self.import_(path)
        self.assert_clear_error(done, 'package.digest-mismatch')
        self.assert_nothing_left()
        with open(path, 'rb') as stream:
            done = self.import_('-', stdin=stream)
        self.assert_clear_error(done, 'package.digest-mismatch')
        self.assert_nothing_left()
        self.assertEqual(0, self.import_(path, '--no-verify-manifest').code)
        for image in self.images():
            self.openstack('delete', image['ID'])

    def test_format_that_needs_a_file(self) -> None:
        raw = self.directory / 'disk.raw'
        raw.write_bytes(disk())
        image = self.directory / 'disk.qcow2'
        subprocess.run(
            ['qemu-img', 'convert', '-O', 'qcow2', raw, image], check=True
        )
        with image.open('rb') as stream:
            done = self.import_('-', stdin=stream)
        self.assertIn('is unpacked into the work directory first', done.stderr)
        self.assert_imported(done, disk())

    def test_qcow2_as_the_result(self) -> None:
        done = self.import_(
            self.write_ova('guest.ova'), '--disk-format', 'qcow2'
        )
        self.assertEqual(0, done.code, done.stderr)
        (row,) = done.json()
        shown = self.openstack('show', row['ID'], '-f', 'json').json()
        self.assertEqual('qcow2', shown['disk_format'])
        saved = self.directory / 'saved.qcow2'
        raw = self.directory / 'saved.raw'
        self.openstack('save', '--file', saved, row['ID'])
        subprocess.run(
            ['qemu-img', 'convert', '-f', 'qcow2', '-O', 'raw', saved, raw],
            check=True,
        )
        self.assertEqual(disk(), raw.read_bytes())
        self.openstack('delete', row['ID'])
        self.assert_nothing_left()


class Quiet(http.server.SimpleHTTPRequestHandler):
    """Serves files, and says nothing of it."""

    def log_message(self, format: str, *args: object) -> None:
        pass
