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

import struct

from xenimport.converter import vdi
from xenimport import exceptions
from xenimport.tests import qemu_images
from xenimport.tests.unit.converter import cases
from xenimport.tests.unit.converter import qemu_cases

MIB = 1024 * 1024
TIB = 1024 * 1024 * MIB


class VdiTest(qemu_cases.QemuTestCase):
    converter = vdi.VdiConverter()

    def refused(self, error_id: str, **fields: object) -> str:
        """Refused before qemu sees it; what was found."""
        content = qemu_images.vdi({0: b'data'}, 3 * MIB, **fields)
        error = self.assert_refused(self.converter, content, error_id)
        self.assert_no_server()
        return error.found or ''


class SoundTest(VdiTest):
    def test_dynamic_and_fixed(self):
        self.size_for_qemu(3 * MIB)
        for kind in (1, 2):
            content = qemu_images.vdi({2: b'data'}, 3 * MIB, kind=kind)
            with self.subTest(kind):
                image = self.opened(self.converter, content)
                self.assertEqual(3 * MIB, image.virtual_size)

    def test_discarded_blocks(self):
        self.size_for_qemu(3 * MIB)
        content = qemu_images.vdi({}, 3 * MIB, map_entries={1: 0xFFFFFFFE})
        self.opened(self.converter, content)

    def test_last_block_may_be_short(self):
        size = MIB + 512
        self.size_for_qemu(size)
        content = qemu_images.vdi({1: b'end'}, size)
        self.opened(self.converter, content[: -MIB + 512])
        self.assert_refused(
            self.converter, content[: -MIB + 511], 'disk-image.truncated'
        )


class AloneTest(VdiTest):
    def test_differencing_and_undo(self):
        for kind in (3, 4):
            with self.subTest(kind):
                self.refused('vdi.parent', kind=kind)

    def test_names_a_parent(self):
        for field in ('link_uuid', 'parent_uuid'):
            with self.subTest(field):
                self.refused('vdi.parent', **{field: b'u' * 16})


class HostileTest(VdiTest):
    def test_versions(self):
        for version in (0, 1, 0x00010000, 0x00020001, 0xFFFFFFFF):
            with self.subTest(version):
                self.refused('vdi.version', version=version)

    def test_kinds(self):
        for kind in (0, 5, 0xFFFFFFFF):
            with self.subTest(kind):
                self.refused('vdi.header', kind=kind)

    def test_sizes_that_lie(self):
        for size in (0, 1, 64 * TIB + 512, 1 << 63, (1 << 64) - 512):
            with self.subTest(size):
                self.refused('vdi.size', stated_size=size)

    def test_fields_that_lie(self):
        for error_id, fields in (
            ('vdi.header', {'block': 0}),
            ('vdi.header', {'block': 2 * MIB}),
            ('vdi.header', {'extra': 512}),
            ('vdi.header', {'sector_size': 4096}),
            ('vdi.header', {'blocks': 2}),
            ('vdi.header', {'stated_size': 64 * TIB}),
            ('vdi.header', {'map_offset': 0}),
            ('vdi.header', {'map_offset': 513}),
            ('vdi.header', {'data_offset': 0}),
            ('disk-image.truncated', {'blocks': 0xFFFFFFFF}),
            ('disk-image.truncated', {'map_offset': 0xFFFFFE00}),
            ('disk-image.truncated', {'data_offset': 0xFFFFFE00}),
        ):
            with self.subTest(fields):
                self.refused(error_id, **fields)

    def test_blocks_in_wrong_places(self):
        for error_id, entries in (
            ('disk-image.truncated', {1: 1}),
            ('disk-image.truncated', {1: 0xFFFFFFFD}),
            ('vdi.header', {1: 0}),
        ):
            with self.subTest(entries):
                self.refused(error_id, map_entries=entries)

    def test_cut_anywhere(self):
        content = qemu_images.vdi({0: b'data'}, 3 * MIB)
        for length in (69, 100, 455, 512, 523, 1024, len(content) - 1):
            with self.subTest(length):
                self.assert_refused(
                    self.converter, content[:length], 'disk-image.truncated'
                )

    def test_noise_after_the_magic(self):
        for seed in range(20):
            content = (
                bytes(64)
                + struct.pack('<II', 0xBEDA107F, 0x00010001)
                + cases.noise(2048, seed)
            )
            disk = self.disk(content)
            with (
                self.subTest(seed),
                self.assertRaises(exceptions.XenImportError),
            ):
                self.converter.open(self.package(), disk)
