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

"""VMDKs whose descriptor is a file of its own, and its extents others."""

from __future__ import annotations

import os
import sys

from xenimport import exceptions
from xenimport import model
from xenimport.converter import vmdk
from xenimport.tests import vmdk_packages
from xenimport.tests.unit.converter import cases

KIB = 1024
MIB = 1024 * KIB
SECTOR = 512
_opened: list[str] | None = None


def _watch(event: str, arguments: tuple[object, ...]) -> None:
    if event == 'open' and _opened is not None:
        _opened.append(str(arguments[0]))


sys.addaudithook(_watch)


class DescribedCase(cases.DiskTestCase):
    def setUp(self) -> None:
        super().setUp()
        self.converter = vmdk.VmdkConverter()
        self.members: dict[str, model.Region] = {}

    def member(self, name: str, content: bytes) -> model.Region:
        """A member of a package, in a file that is named otherwise."""
        path = self.path(f'file{len(self.members)}')
        with open(path, 'wb') as stream:
            stream.write(b'#' * 512 + content)
        piece = model.Piece(512, len(content), 0)
        region = model.Region(path, name, (piece,))
        self.members[name] = region
        return region

    def described(
        self,
        *extents: str,
        kind: str = 'monolithicFlat',
        name: str = 'one.vmdk',
        **more: str,
    ) -> vmdk.VmdkImage:
        """The disk of a descriptor with these extents, opened."""
        return self.text(vmdk_packages.descriptor(kind, extents, **more), name)

    def text(self, content: bytes, name: str = 'one.vmdk') -> vmdk.VmdkImage:
        region = self.member(name, content)
        package = model.Package(self.path('p'), 'ova', self.members)
        disk = model.Disk('d', 'd', 0, region)
        image = self.converter.open(package, disk)
        self.addCleanup(image.close)
        assert isinstance(image, vmdk.VmdkImage)
        return image

    def refused(
        self, error_id: str, *extents: str, **fields: str
    ) -> exceptions.DiskImageError:
        with self.assertRaises(exceptions.DiskImageError) as caught:
            self.described(*extents, **fields)
        self.assertEqual(error_id, caught.exception.id)
        return caught.exception


class ExtentsTest(DescribedCase):
    def test_flat(self) -> None:
        data = cases.noise(MIB)
        self.member('one-flat.vmdk', data)
        image = self.described('RW 2048 FLAT "one-flat.vmdk" 0')
        self.assertEqual(MIB, image.virtual_size)
        self.assertEqual(data, image.pread(0, MIB))
        self.assertEqual([(0, MIB, True)], list(image.extents()))
        self.assertEqual(
            ['one.vmdk', 'one-flat.vmdk'],
            [region.name for region in image.regions],
        )

    def test_flat_from_an_offset(self) -> None:
        data = cases.noise(MIB)
        self.member('f', data)
        image = self.described('RW 16 FLAT "f" 100')
        self.assertEqual(
            data[100 * SECTOR : 116 * SECTOR], image.pread(0, MIB)
        )
        self.assertEqual([(0, 16 * SECTOR, True)], list(image.extents()))

    def test_vmfs(self) -> None:
        data = cases.noise(8 * KIB)
        self.member('one-flat.vmdk', data)
        image = self.described(
            'RW 16 VMFS "one-flat.vmdk"', kind='vmfs', more='RWX = "x"'
        )
        self.assertEqual(data, image.pread(0, 9 * KIB))

    def test_split_flat_with_zeros_between(self) -> None:
        first, second = cases.noise(64 * KIB, 1), cases.noise(32 * KIB, 2)
        self.member('a-f001.vmdk', first)
        self.member('a-f002.vmdk', second)
        image = self.described(
            'RW 128 FLAT "a-f001.vmdk" 0',
            'RW 64 ZERO',
            'RDONLY 64 FLAT "a-f002.vmdk" 0',
            kind='twoGbMaxExtentFlat',
        )
        whole = first + bytes(32 * KIB) + second
        self.assertEqual(whole, image.pread(0, MIB))
        self.assertEqual(
            whole[60 * KIB : 100 * KIB], image.pread(60 * KIB, 40 * KIB)
        )
        self.assertEqual(
            [
                (0, 64 * KIB, True),
                (64 * KIB, 32 * KIB, False),
                (96 * KIB, 32 * KIB, True),
            ],
            list(image.extents()),
        )

    def test_split_sparse(self) -> None:
        data = bytearray(4 * MIB)
        data[MIB : MIB + 300 * KIB] = cases.noise(300 * KIB)
        data[2 * MIB - 512 : 2 * MIB + 512] = b'x' * 1024
        for number in (0, 1):
            half = bytes(data[number * 2 * MIB :][: 2 * MIB])
            self.member(
                f'a-s00{number}.vmdk',
                vmdk_packages.sparse(half, embedded=False),
            )
        image = self.described(
            'RW 4096 SPARSE "a-s000.vmdk"',
            'RW 4096 SPARSE "a-s001.vmdk"',
            kind='twoGbMaxExtentSparse',
        )
        self.assertEqual(bytes(data), image.pread(0, 4 * MIB))
        # The last grain of the first and the first of the second join.
        self.assertIn(
            (2 * MIB - 64 * KIB, 128 * KIB, True), list(image.extents())
        )

    def test_finding_of_an_extent(self) -> None:
        self.member(
            'a-s001.vmdk',
            vmdk_packages.sparse(cases.noise(MIB), embedded=False, unclean=1),
        )
        image = self.described(
            'RW 2048 SPARSE "a-s001.vmdk"', kind='twoGbMaxExtentSparse'
        )
        (finding,) = image.findings
        self.assertEqual('a-s001.vmdk', finding.subject)

    def test_in_a_folder(self) -> None:
        data = cases.noise(8 * KIB)
        self.member('vm/one-flat.vmdk', data)
        self.member('one-flat.vmdk', bytes(8 * KIB))
        image = self.described(
            'RW 16 FLAT "one-flat.vmdk" 0', name='vm/one.vmdk'
        )
        self.assertEqual(data, image.pread(0, MIB))

    def test_name_of_another_script(self) -> None:
        data = cases.noise(512)
        self.member('платте flat.vmdk', data)
        image = self.described('RW 1 FLAT "платте flat.vmdk" 0')
        self.assertEqual(data, image.pread(0, 512))
        latin = vmdk_packages.descriptor(
            'monolithicFlat', ['RW 1 FLAT "grün" 0']
        )
        self.member('grün', data)
        text = latin.decode('utf-8').encode('latin-1')
        self.assertEqual(data, self.text(text, 'two.vmdk').pread(0, 512))

    def test_lines_of_windows_and_comments(self) -> None:
        data = cases.noise(512)
        self.member('f', data)
        text = vmdk_packages.descriptor(
            'MonolithicFlat', ['# RW 7 FLAT "g" 0', '  RW  1  FLAT  "f"  0 ']
        ).replace(b'\n', b'\r\n')
        image = self.text(text + bytes(100))
        self.assertEqual(data, image.pread(0, 512))

    def test_extent_that_changes(self) -> None:
        region = self.member('f', cases.noise(512))
        image = self.described('RW 1 FLAT "f" 0')
        image.check_unchanged()
        os.utime(region.path, (1, 1))
        with self.assertRaises(exceptions.DiskImageError) as caught:
            image.check_unchanged()
        self.assertEqual('package.changed', caught.exception.id)


class RefusedTest(DescribedCase):
    def test_names_outside_of_the_package(self) -> None:
        global _opened
        secret = self.path('secret')
        with open(secret, 'wb') as stream:
            stream.write(b'root:x:0:0' * 512)
        for name in (
            secret,
            '/etc/passwd',
            '../secret',
            'secret',
            './secret',
            '..',
            '.',
            'vm/../secret',
            'C:\\secret',
            '..\\secret',
            'file:///etc/passwd',
            'http://example.org/secret',
            'json:{}',
            'nbd:unix:/run/x',
        ):
            with self.subTest(name):
                _opened = []
                error = self.refused(
                    'vmdk.extent-outside', f'RW 1 FLAT "{name}" 0'
                )
                opened, _opened = _opened, None
                self.assertNotIn(secret, opened)
                self.assertNotIn('/etc/passwd', opened)
                self.assertIn(name, error.found or '')
                self.assertIn('one.vmdk', error.found or '')

    def test_member_of_another_folder(self) -> None:
        self.member('b/f', bytes(512))
        for name in ('b/f', 'f', '../b/f'):
            self.refused('vmdk.extent-outside', f'RW 1 FLAT "{name}" 0')

    def test_one_file_twice(self) -> None:
        self.member('f', bytes(4096))
        self.refused('vmdk.extents', 'RW 1 FLAT "f" 0', 'RW 1 FLAT "f" 1')
        self.refused('vmdk.extents', 'RW 1 FLAT "one.vmdk" 0')

    def test_sizes(self) -> None:
        self.member('f', bytes(4096))
        self.refused('vmdk.truncated', 'RW 9 FLAT "f" 0')
        self.refused('vmdk.truncated', 'RW 8 FLAT "f" 1')
        self.member('s', vmdk_packages.sparse(bytes(MIB), embedded=False))
        self.refused('vmdk.extents', 'RW 2047 SPARSE "s"')
        zeros = f'RW {1 << 36} ZERO'
        self.refused('vmdk.extents', zeros, zeros, zeros)

    def test_extent_is_no_vmdk(self) -> None:
        self.member('s', bytes(MIB))
        self.refused('vmdk.no-header', 'RW 1 SPARSE "s"')

    def test_compressed_extent(self) -> None:
        region = self.member('f', bytes(4096))
        self.members['f'] = model.Region(
            region.path, 'f', region.pieces, decoder='gzip'
        )
        self.refused('package.compressed-disk', 'RW 8 FLAT "f" 0')

    def test_kinds(self) -> None:
        for kind in (
            'vmfsSparse',
            'seSparse',
            'fullDevice',
            'partitionedDevice',
            'vmfsRawDeviceMap',
            'vmfsPassthroughRawDeviceMap',
            '',
        ):
            with self.subTest(kind):
                self.refused('vmdk.kind', 'RW 1 FLAT "f" 0', kind=kind)
        for line in (
            'RW 1 VMFSSPARSE "f"',
            'RW 1 VMFSRDM "f"',
            'RW 1 SESPARSE "f"',
            'NOACCESS 1 FLAT "f" 0',
        ):
            with self.subTest(line):
                self.refused('vmdk.kind', line)

    def test_parent(self) -> None:
        self.member('f', bytes(512))
        self.refused('vmdk.delta', 'RW 1 FLAT "f" 0', parent='0a0b0c0d')
        self.refused(
            'vmdk.delta',
            'RW 1 FLAT "f" 0',
            more='parentFileNameHint = "/vmfs/base.vmdk"',
        )

    def test_lines_that_cannot_be_read(self) -> None:
        for line in (
            'RW',
            'RW 1',
            'RW 1 FLAT',
            'RW 1 FLAT "f',
            'RW 1 FLAT "" 0',
            'RW 1 ZERO "f"',
            'RW x FLAT "f" 0',
            'RW -1 FLAT "f" 0',
            'RW 0 FLAT "f" 0',
            'RW ² FLAT "f" 0',
            'RW 1 FLAT "f" x',
            'RW 1 FLAT "f" -5',
            f'RW {1 << 63} FLAT "f" 0',
            f'RW {"9" * 5000} FLAT "f" 0',
            f'RW 1 FLAT "f" {1 << 62}',
            'RW 1 FLAT "f\0" 0',
        ):
            with self.subTest(line[:40]):
                error = self.refused('vmdk.descriptor', line)
                self.assertLessEqual(len(error.found or ''), 200)

    def test_no_extents(self) -> None:
        self.refused('vmdk.descriptor')

    def test_too_much(self) -> None:
        line = 'RW 1 ZERO'
        self.assertEqual(
            4096 * SECTOR, self.described(*[line] * 4096).virtual_size
        )
        self.refused('vmdk.descriptor', *[line] * 4097)
        head = vmdk_packages.descriptor('monolithicFlat', [line])
        for name, content in (
            ('large', head + b'#' * MIB),
            ('lines', head + b'\n' * 1_000_000),
            ('comments', head + b'#\n' * 100_000),
            # These made a regular expression slow.
            ('spaces', head + b'a=' + b' ' * 900_000 + b'"x'),
            ('quotes', head + b'RW 1 FLAT ' + b'"' * 900_000),
        ):
            with self.subTest(name):
                if name == 'spaces':
                    self.assertEqual(512, self.text(content).virtual_size)
                    continue
                with self.assertRaises(exceptions.DiskImageError) as caught:
                    self.text(content)
                self.assertEqual('vmdk.descriptor', caught.exception.id)

    def test_files_are_closed(self) -> None:
        self.member('f', bytes(512))
        before = len(os.listdir('/proc/self/fd'))
        self.refused(
            'vmdk.extent-outside', 'RW 1 FLAT "f" 0', 'RW 1 FLAT "g" 0'
        )
        self.assertEqual(before, len(os.listdir('/proc/self/fd')))
