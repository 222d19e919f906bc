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


"""Every way of a disk's bytes gives the same bytes.

Packages of made-up disks, in place and in a pipe, through a workfile and
straight into the target: whole runs, with a target that keeps what it is
given.
"""

import gzip
import os
import random

from xenimport.tests import packages
from xenimport.tests import vmdk_packages
from xenimport.tests import xva_packages
from xenimport.tests.unit.workflow import test_run
from xenimport.workflow import run

MIB = 1 << 20
#: Of the virtual sizes, what is beside whole mebibytes.
ODDS = (0, 512, 4096, 65536 + 512)
LENGTHS = (1, 512, 3000, 65536, 200_000, MIB)


def disk(generator: random.Random, odds: tuple[int, ...] = ODDS) -> bytes:
    """A disk with a partition, and runs of noise anywhere."""
    size = generator.choice((2, 3, 4, 7, 9)) * MIB + generator.choice(odds)
    content = bytearray(size)
    content[440:444] = b'\x0d\xf0\xad\x0b'
    content[450] = 0x83
    content[454:458] = (64).to_bytes(4, 'little')
    content[458:462] = (size // 512 - 64).to_bytes(4, 'little')
    content[510:512] = b'\x55\xaa'
    for _ in range(generator.randrange(12)):
        start = generator.randrange(32768, size)
        end = min(size, start + generator.choice(LENGTHS))
        content[start:end] = generator.randbytes(end - start)
    return bytes(content)


def vhd(generator: random.Random, content: bytes) -> bytes:
    """A VHD with blocks of any size, in order or not."""
    size = generator.choice((4096, 65536, MIB, 2 * MIB))
    blocks = [
        number
        for number in range(-(-len(content) // size))
        if content[number * size : (number + 1) * size].strip(b'\0')
    ]
    if generator.random() < 0.5:
        generator.shuffle(blocks)
    return packages.dynamic_vhd(content, blocks, block_size=size)


class WaysTest(test_run.StreamTestCase):
    def setUp(self) -> None:
        super().setUp()
        self.random = random.Random(0)

    def path(self, name: str, content: bytes | None = None) -> str:
        path = os.path.join(self.directory, name)
        if content is not None:
            with open(path, 'wb') as stream:
                stream.write(content)
        return path

    def assert_all_ways(self, path: str, *disks: bytes) -> None:
        """The four ways, each with nothing left behind."""
        for piped in (False, True):
            for straight in (False, True):
                with self.subTest(piped=piped, straight=straight):
                    target = test_run.FakeTarget(streams=straight)
                    run.import_package(
                        self.settings(self.piped(path) if piped else path),
                        target,
                    )
                    self.assertEqual(dict(enumerate(disks)), target.contents)
                    self.assertEqual([], os.listdir(self.work_dir))

    def write_ova(self, disks: list[bytes], manifest: str | None) -> str:
        listed = [
            packages.Disk(f'd{n}', f'd{n}.vhd', len(content), n)
            for n, content in enumerate(disks)
        ]
        members = [
            (entry.href, vhd(self.random, content))
            for entry, content in zip(listed, disks, strict=True)
        ]
        path = self.path('guest.ova')
        packages.write_ova(
            path,
            [('guest.ovf', packages.xencenter_ovf(listed)), *members],
            manifest=manifest,
        )
        return path

    def test_ova(self) -> None:
        for count, manifest in ((1, None), (2, 'sha1'), (3, 'sha512')):
            disks = [disk(self.random) for _ in range(count)]
            with self.subTest(count=count):
                path = self.write_ova(disks, manifest)
                self.assert_all_ways(path, *disks)
                with open(path, 'rb') as stream:
                    packed = gzip.compress(stream.read(), 1)
                self.assert_all_ways(self.path('guest.ova.gz', packed), *disks)

    def test_xva(self) -> None:
        for count, kind, length in (
            (1, 'xxhash', MIB),
            (2, 'checksum', MIB),
            (3, '', 65536),
        ):
            disks = [disk(self.random) for _ in range(count)]
            with self.subTest(count=count):
                path = self.path('guest.xva')
                xva_packages.write_file(
                    path,
                    [
                        xva_packages.Disk(
                            f'Ref:{9 * n + 1}', content, str(n), kind,
                            padded=bool(n),
                        )
                        for n, content in enumerate(disks)
                    ],
                    length=length,
                )  # fmt: skip
                self.assert_all_ways(path, *disks)

    def test_bare_disks(self) -> None:
        for _ in range(3):
            content = disk(self.random)
            self.assert_all_ways(
                self.path('disk.vhd', vhd(self.random, content)), content
            )
            self.assert_all_ways(self.path('disk.img', content), content)

    def test_vmdk(self) -> None:
        for _ in range(3):
            content = disk(self.random, (0,))
            self.assert_all_ways(
                self.path(
                    'disk.vmdk', vmdk_packages.stream_optimized(content)
                ),
                content,
            )
