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

"""VMDKs written and read by qemu-img, and by us, in turn.

Needs qemu-img, tar and gzip; skipped when one is missing.
"""

from __future__ import annotations

import filecmp
import os
import random
import shutil
import subprocess
import tempfile
import typing
import unittest

from xenimport import model
from xenimport import stream_packages
from xenimport.converter import base
from xenimport.converter import copy
from xenimport.converter import vmdk
from xenimport.source import ova
from xenimport.tests import packages
from xenimport.tests import vmdk_packages

MIB = 1024 * 1024
#: Not a multiple of a grain.
SIZE = 70 * MIB + 7 * 512


@unittest.skipUnless(
    all(shutil.which(name) for name in ('qemu-img', 'tar', 'gzip')),
    'qemu-img, tar or gzip is not installed',
)
class VmdkTest(unittest.TestCase):
    def setUp(self) -> None:
        directory = tempfile.TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        self.directory = directory.name
        self.converter = vmdk.VmdkConverter()
        self.raw = self.path('plain.raw')
        generator = random.Random(3)
        with open(self.raw, 'wb') as stream:
            for _ in range(40):
                stream.seek(generator.randrange(SIZE // 512 - 400) * 512)
                stream.write(generator.randbytes(70_000))
                stream.write(b'words that compress ' * 3000)
            stream.truncate(SIZE)
            stream.seek(SIZE - 512)
            stream.write(b'the end!' * 64)

    def path(self, name: str) -> str:
        return os.path.join(self.directory, name)

    def run_program(self, *command: str) -> None:
        subprocess.run(
            command, check=True, capture_output=True, cwd=self.directory
        )

    def to_vmdk(self, kind: str, name: str = 'disk.vmdk') -> str:
        """The disk as qemu-img writes it."""
        option = f'subformat={kind}'
        self.run_program(
            'qemu-img', 'convert', '-f', 'raw', '-O', 'vmdk', '-o', option,
            self.raw, name,
        )  # fmt: skip
        return self.path(name)

    def region(self, name: str) -> model.Region:
        path = self.path(name)
        piece = model.Piece(0, os.path.getsize(path), 0)
        return model.Region(path, name, (piece,))

    def open(self, name: str) -> base.DiskImage:
        members = {
            other: self.region(other)
            for other in os.listdir(self.directory)
            if other.endswith('.vmdk')
        }
        package = model.Package(self.directory, 'disk', members)
        disk = model.Disk('d', 'd', 0, members[name])
        self.assertTrue(self.converter.probe(package, disk))
        image = self.converter.open(package, disk)
        self.addCleanup(image.close)
        return image

    def assert_same(self, path: str) -> None:
        self.assertTrue(filecmp.cmp(self.raw, path, shallow=False))

    def assert_copies(self, image: base.DiskImage) -> None:
        copy.copy(image, self.path('out.raw'))
        self.assert_same(self.path('out.raw'))

    def test_every_kind_of_qemu(self) -> None:
        for kind, files in (
            ('monolithicSparse', 1),
            ('streamOptimized', 1),
            ('monolithicFlat', 2),
            ('twoGbMaxExtentSparse', 2),
            ('twoGbMaxExtentFlat', 2),
        ):
            with self.subTest(kind):
                name = f'{kind}.vmdk'
                self.to_vmdk(kind, name)
                image = self.open(name)
                self.assertEqual(files, len(image.regions))
                self.assertEqual((), image.findings)
                self.assert_copies(image)

    def test_grains_that_were_zeroed(self) -> None:
        self.run_program(
            'qemu-img', 'create', '-f', 'vmdk', '-o', 'zeroed_grain=on',
            'disk.vmdk', '8M',
        )  # fmt: skip
        if shutil.which('qemu-io') is None:
            self.skipTest('qemu-io is not installed')
        for command in ('write -P 7 0 1M', 'write -z 256k 512k'):
            self.run_program(
                'qemu-io', '-f', 'vmdk', '-c', command, 'disk.vmdk'
            )
        image = self.open('disk.vmdk')
        expected = b'\7' * MIB
        expected = vmdk_packages.patched(
            expected, 256 * 1024, bytes(512 * 1024)
        )
        self.assertEqual(expected, image.pread(0, MIB))
        self.assertIn((256 * 1024, 512 * 1024, False), list(image.extents()))

    def test_qemu_reads_what_the_tests_write(self) -> None:
        with open(self.raw, 'rb') as stream:
            data = stream.read()
        for name, content in self.written(data):
            with self.subTest(name):
                with open(self.path('disk.vmdk'), 'wb') as stream:
                    stream.write(content)
                self.run_program(
                    'qemu-img', 'convert', '-f', 'vmdk', '-O', 'raw',
                    'disk.vmdk', 'qemu.raw',
                )  # fmt: skip
                self.assert_same(self.path('qemu.raw'))
                self.assert_copies(self.open('disk.vmdk'))

    def written(self, data: bytes) -> typing.Iterator[tuple[str, bytes]]:
        yield 'sparse', vmdk_packages.sparse(data)
        yield (
            'backwards',
            vmdk_packages.sparse(data, grain=16, order=lambda i: i[::-1]),
        )
        yield 'gaps', vmdk_packages.sparse(data, gap=5, version=2)
        yield 'stream', vmdk_packages.stream_optimized(data, level=1)
        yield (
            'small grains',
            vmdk_packages.stream_optimized(data, level=1, grain=16),
        )

    def test_in_place_in_an_ova(self) -> None:
        for kind in ('streamOptimized', 'monolithicSparse'):
            with self.subTest(kind):
                path = self.to_vmdk(kind)
                package = self.path('guest.ova')
                packages.write_ova(
                    package,
                    [
                        (
                            'guest.ovf',
                            packages.xencenter_ovf(
                                [packages.Disk('d0', 'disk.vmdk', SIZE)]
                            ),
                        ),
                        ('disk.vmdk', path),
                    ],
                )
                os.unlink(path)
                system = ova.OvaSource().open(package)
                (piece,) = system.disks[0].region.pieces
                self.assertTrue(piece.offset % 4096)
                image = self.converter.open(system.package, system.disks[0])
                with image:
                    self.assert_copies(image)

    def test_flat_in_an_ova(self) -> None:
        path = self.to_vmdk('monolithicFlat')
        flat = self.path('disk-flat.vmdk')
        package = self.path('guest.ova')
        packages.write_ova(
            package,
            [
                (
                    'guest.ovf',
                    packages.xencenter_ovf(
                        [packages.Disk('d0', 'disk.vmdk', SIZE)]
                    ),
                ),
                ('disk.vmdk', path),
                ('disk-flat.vmdk', flat),
            ],
        )
        os.unlink(flat)
        system = ova.OvaSource().open(package)
        with self.converter.open(system.package, system.disks[0]) as image:
            self.assert_copies(image)

    def test_forward_through_gzip(self) -> None:
        with open(self.raw, 'rb') as stream:
            data = stream.read()
        self.to_vmdk('streamOptimized', 'qemu.vmdk')
        with open(self.path('ours.vmdk'), 'wb') as stream:
            stream.write(vmdk_packages.stream_optimized(data, level=1))
        for name in ('qemu.vmdk', 'ours.vmdk'):
            with self.subTest(name):
                self.run_program('gzip', '-1', name)
                source = stream_packages.open_package(self.path(f'{name}.gz'))
                assert source is not None
                self.addCleanup(source.close)
                region = model.Region('-', name, (), seekable=False)
                image = self.converter.open_stream(
                    model.Disk('d', 'd', 0, region), source
                )
                self.assertTrue(image.ascending)
                copy.copy_forward(image, self.path('out.raw'))
                source.finish()
                self.assert_same(self.path('out.raw'))
