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

"""VHDs through other people's tools: qemu-img, tar, gzip, nbdcopy.

A test whose program is missing is skipped.
"""

from __future__ import annotations

import filecmp
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import typing
import unittest

from xenimport.converter import base
from xenimport.converter import copy
from xenimport.converter import serve
from xenimport.converter import vhd
from xenimport import exceptions
from xenimport import model
from xenimport.source import disk as disk_room
from xenimport.source import xenapi
from xenimport import stream as stream_room
from xenimport import stream_files
from xenimport import stream_packages
from xenimport.tests import packages
from xenimport.tests import vhd_packages

MIB = 1024 * 1024
#: Bytes that are compared to find what a layer of a chain has to hold.
GRAIN = 4096


def needs(*programs: str) -> typing.Callable[[type], type]:
    """Skip the class when a program is missing, naming it."""
    missing = [name for name in programs if shutil.which(name) is None]
    return unittest.skipIf(missing, f'not installed: {", ".join(missing)}')


def run(*command: str, **options: typing.Any) -> str:
    done = subprocess.run(
        command,
        check=True,
        stdout=subprocess.PIPE,
        text=True,
        timeout=120,
        **options,
    )
    return done.stdout


class VhdTestCase(unittest.TestCase):
    def setUp(self) -> None:
        directory = tempfile.TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        self.directory = directory.name

    def path(self, name: str) -> str:
        return os.path.join(self.directory, name)

    def assert_same(self, one: str, other: str) -> None:
        self.assertEqual(os.stat(one).st_size, os.stat(other).st_size)
        self.assertTrue(filecmp.cmp(one, other, shallow=False))

    def make_raw(
        self, name: str, size: int, seed: int, before: str | None = None
    ) -> str:
        """A disk of runs of noise, over what was on it before."""
        path = self.path(name)
        if before is not None:
            shutil.copyfile(before, path)
        generator = random.Random(seed)
        with open(path, 'r+b' if before is not None else 'wb') as stream:
            stream.truncate(size)
            for _ in range(8):
                length = generator.choice((1, 512, 4096, 300_000, MIB))
                stream.seek(generator.randrange(size - length))
                stream.write(generator.randbytes(length))
            stream.seek(size - 512)
            stream.write(b'EFI PART'.ljust(512, b'.'))
        return path

    def unpacked(self, image: base.ForwardImage) -> str:
        """Write what arrives where it belongs; the path of the file."""
        path = self.path('forward.raw')
        with open(path, 'wb') as output:
            for offset, data in image.runs():
                output.seek(offset)
                output.write(data)
            assert image.virtual_size is not None
            output.truncate(image.virtual_size)
        return path

    def forward(self, stream: stream_room.Stream, name: str) -> str:
        """Read a VHD in one pass; the path of the RAW file."""
        region = model.Region('-', name, (), seekable=False)
        image = vhd.VhdConverter().open_stream(
            model.Disk('d', 'd', 0, region), stream
        )
        path = self.unpacked(image)
        self.assertTrue(image.ascending)
        self.assertEqual(0, stream.skip(1))
        return path


@needs('qemu-img', 'gzip')
class ForwardTest(VhdTestCase):
    """What qemu-img writes, read as it arrives."""

    def test_dynamic_and_fixed(self) -> None:
        reference = self.make_raw('reference.raw', 67 * MIB, 1)
        for kind in ('dynamic', 'fixed'):
            path = self.path(f'{kind}.vhd')
            options = f'subformat={kind},force_size=on'
            run('qemu-img', 'convert', '-f', 'raw', '-O', 'vpc',
                '-o', options, reference, path)  # fmt: skip
            with self.subTest(kind=kind):
                stream = stream_files.FileStream(path)
                self.addCleanup(stream.close)
                self.assert_same(reference, self.forward(stream, path))
            with self.subTest(kind=kind, compressed=True):
                run('gzip', '-1', path)
                packed = stream_packages.open_package(f'{path}.gz')
                assert packed is not None
                self.addCleanup(packed.close)
                self.assertIsNone(packed.size)
                self.assert_same(reference, self.forward(packed, path))


class Chain(typing.NamedTuple):
    """A chain on disk, the newest first, and what it reads as."""

    paths: list[str]
    expected: str


class ChainTestCase(VhdTestCase):
    def make_layer(
        self, name: str, number: int, before: str | None, after: str
    ) -> str:
        """Write the layer that makes ``after`` of ``before``."""
        size = os.stat(after).st_size
        writes = {}
        with open(after, 'rb') as new, open(before or os.devnull, 'rb') as old:
            for offset in range(0, size, GRAIN):
                data = new.read(GRAIN)
                if data != old.read(GRAIN).ljust(len(data), b'\0'):
                    writes[offset] = data
        self.assertTrue(writes)
        layer = vhd_packages.Vhd(
            size,
            writes,
            identity=vhd_packages.uuid_of(number),
            batmap=True,
            hidden=int(number > 1),
        )
        if before is not None:
            layer.parent = vhd_packages.uuid_of(number + 1)
            layer.parent_name = f'{number}.vhd'
            layer.locators = [
                vhd_packages.macx(f'file://./{number}.vhd'),
                vhd_packages.w2ku(f'.\\{number}.vhd'),
                vhd_packages.w2ru(f'.\\{number}.vhd'),
            ]
        path = self.path(name)
        with open(path, 'wb') as stream:
            layer.write(stream)
        return path

    def make_chain(self) -> Chain:
        """Three layers: a disk, then grown, then shrunk a little."""
        base_raw = self.make_raw('base.raw', 24 * MIB, 1)
        grown = self.make_raw('grown.raw', 31 * MIB, 2, base_raw)
        newest = self.make_raw('newest.raw', 30 * MIB + 512, 3, grown)
        return Chain(
            [
                self.make_layer('0.vhd', 1, grown, newest),
                self.make_layer('1.vhd', 2, base_raw, grown),
                self.make_layer('2.vhd', 3, None, base_raw),
            ],
            newest,
        )

    def converted(self, system: model.VirtualSystem) -> str:
        output = self.path('ours.raw')
        (disk,) = system.disks[:1]
        with vhd.VhdConverter().open(system.package, disk) as image:
            copy.copy(image, output)
        return output


class JoinTest(ChainTestCase):
    def test_bare_files(self) -> None:
        chain = self.make_chain()
        system = disk_room.DiskSource().open_several(chain.paths)
        output = self.converted(system)
        self.assert_same(chain.expected, output)
        self.assertLess(os.stat(output).st_blocks * 512, 16 * MIB)

    def test_raw_base(self) -> None:
        base_raw = self.make_raw('base.raw', 24 * MIB, 1)
        newest = self.make_raw('newest.raw', 31 * MIB, 2, base_raw)
        path = self.make_layer('0.vhd', 1, base_raw, newest)
        with open(path, 'r+b') as stream:
            stream.seek(512)
            header = stream.read(1024)
            name = 'base.raw'.encode('utf-16-be').ljust(512, b'\0')
            # No uuid, and no names but one.
            header = header[:40] + bytes(24) + name + bytes(192) + header[768:]
            stream.seek(512)
            stream.write(packages.with_checksum(header, 36))
        system = disk_room.DiskSource().open_several([path, base_raw])
        self.assert_same(newest, self.converted(system))

    def test_a_chain_of_thirty(self) -> None:
        # As many as XenServer allows.
        paths = []
        before = None
        for number in range(30, 0, -1):
            after = self.make_raw(f'{number}.raw', 4 * MIB, number, before)
            paths.append(
                self.make_layer(f'{number - 1}.vhd', number, before, after)
            )
            before = after
        assert before is not None
        system = disk_room.DiskSource().open_several(paths[::-1])
        self.assert_same(before, self.converted(system))


@needs('nbdkit', 'nbdcopy', 'nbdinfo')
class ServedTest(ChainTestCase):
    def test_chain(self) -> None:
        chain = self.make_chain()
        system = disk_room.DiskSource().open_several(chain.paths)
        output = self.path('nbd.raw')
        with serve.served(
            system, system.disks[0], vhd.VhdConverter(), self.directory
        ) as server:
            info = json.loads(run('nbdinfo', '--json', server.uri))
            (export,) = info['exports']
            self.assertEqual(
                os.stat(chain.expected).st_size, export['export-size']
            )
            run('nbdcopy', server.uri, output)
        self.assert_same(chain.expected, output)


@needs('tar', 'gzip')
class ArchiveTest(ChainTestCase):
    """Image archives, packed as Nova's plugin packs them."""

    def make_archive(self) -> tuple[Chain, str]:
        chain = self.make_chain()
        staging = self.path('staging')
        os.mkdir(staging)
        for path in chain.paths:
            os.link(path, os.path.join(staging, os.path.basename(path)))
        archive = self.path('image.tgz')
        run('tar', '-zcf', archive, f'--directory={staging}', '.')
        return chain, archive

    def test_in_place(self) -> None:
        chain, archive = self.make_archive()
        run('gzip', '-d', archive)
        path = self.path('image.tar')
        source = xenapi.XenapiSource()
        self.assertTrue(source.probe(path))
        self.assert_same(chain.expected, self.converted(source.open(path)))

    def test_as_it_arrives(self) -> None:
        chain, archive = self.make_archive()
        stream = stream_packages.open_package(archive)
        assert stream is not None
        self.addCleanup(stream.close)
        source = xenapi.XenapiSource()
        self.assertTrue(source.probe_stream(stream))
        system = source.open_stream(stream)
        assert system.package.arrivals is not None
        # What the workflow does when a disk cannot be read in one pass.
        unpacked = {}
        for name, content in system.package.arrivals:
            if name == system.disks[0].region.name:
                with self.assertRaises(base.NotForward):
                    vhd.VhdConverter().open_stream(system.disks[0], content)
            path = self.path(f'unpacked-{name}')
            with open(path, 'wb') as output:
                while data := content.read(MIB):
                    output.write(data)
            size = os.stat(path).st_size
            unpacked[name] = model.Region(
                path, name, (model.Piece(0, size, 0),)
            )
        package = model.Package(archive, 'xenapi', unpacked)
        disk = model.Disk('d', 'd', 0, unpacked['0.vhd'])
        self.assert_same(
            chain.expected,
            self.converted(model.VirtualSystem('x', package, (disk,))),
        )

    def test_one_disk_streams(self) -> None:
        reference = self.make_raw('base.raw', 24 * MIB, 1)
        path = self.make_layer('image.vhd', 1, None, reference)
        archive = self.path('image.tgz')
        run('tar', '-zcf', archive, f'--directory={self.directory}',
            os.path.basename(path))  # fmt: skip
        stream = stream_packages.open_package(archive)
        assert stream is not None
        self.addCleanup(stream.close)
        system = xenapi.XenapiSource().open_stream(stream)
        assert system.package.arrivals is not None
        outputs = [
            self.forward(content, name)
            for name, content in system.package.arrivals
        ]
        self.assertEqual(1, len(outputs))
        self.assert_same(reference, outputs[0])


_WATCHED = """
import os, sys
opened = []
sys.addaudithook(
    lambda event, args: opened.append(str(args[0]))
    if event == 'open' else None
)
from xenimport import exceptions
from xenimport.converter import vhd
from xenimport.source import xenapi
system = xenapi.XenapiSource().open(sys.argv[1])
'x'.encode('utf-16-be').decode('utf-16-le')  # modules of Python
del opened[:]
try:
    vhd.VhdConverter().open(system.package, system.disks[0])
except exceptions.DiskImageError as error:
    print(error.id)
print(sorted(set(opened)))
"""


class HostileTest(ChainTestCase):
    def test_names_that_lead_outside(self) -> None:
        secret = self.make_raw('secret.raw', 4 * MIB, 1)
        own = os.path.relpath(secret, '/')
        content = vhd_packages.Vhd(
            4 * MIB,
            {},
            parent=vhd_packages.NO_UUID,
            parent_name=secret,
            locators=[
                vhd_packages.w2ku(secret),
                vhd_packages.w2ru(f'..\\..\\..\\..\\{own}'),
                vhd_packages.macx(f'file://{secret}'),
                vhd_packages.w2ku('/etc/shadow'),
            ],
        ).build()
        path = self.path('image.tar')
        with open(path, 'wb') as stream:
            stream.write(vhd_packages.tar([('0.vhd', content)]))
        done = run(sys.executable, '-c', _WATCHED, path)
        self.assertEqual(
            ['vhd.parent-missing', repr([path])], done.splitlines()
        )

    def test_qcow2_in_the_place_of_the_parent(self) -> None:
        content = vhd_packages.Vhd(
            4 * MIB,
            {},
            parent=vhd_packages.uuid_of(2),
            locators=[vhd_packages.w2ru('1.vhd')],
        ).build()
        path = self.path('image.tar')
        members = [('0.vhd', content), ('1.vhd', b'QFI\xfb' + bytes(4096))]
        with open(path, 'wb') as stream:
            stream.write(vhd_packages.tar(members))
        system = xenapi.XenapiSource().open(path)
        with self.assertRaises(exceptions.DiskImageError) as caught:
            vhd.VhdConverter().open(system.package, system.disks[0])
        self.assertEqual('vhd.parent-differs', caught.exception.id)
