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

import os
import struct

from xenimport.converter import qcow2
from xenimport import exceptions
from xenimport.tests import qemu_images
from xenimport.tests.unit.converter import cases
from xenimport.tests.unit.converter import qemu_cases

KIB = 1024
MIB = 1024 * KIB
TIB = 1024 * 1024 * MIB


class Qcow2Test(qemu_cases.QemuTestCase):
    converter = qcow2.Qcow2Converter()

    def refused(self, error_id: str, **fields: object) -> str:
        """Refused before qemu sees it; what was found."""
        content = qemu_images.qcow2({0: b'data'}, MIB, **fields)
        error = self.assert_refused(self.converter, content, error_id)
        self.assert_no_server()
        return error.found or ''


class SoundTest(Qcow2Test):
    def test_kinds(self):
        """Bits 0 and 3: "dirty", and another compression than zlib."""
        self.size_for_qemu(MIB)
        for fields in (
            {'version': 2},
            {'version': 3},
            {'incompatible': 1},
            {'incompatible': 8},
            {'compatible': 1, 'autoclear': 3},
        ):
            content = qemu_images.qcow2({0: b'data'}, MIB, **fields)
            with self.subTest(fields):
                image = self.opened(self.converter, content)
                self.assertEqual(MIB, image.virtual_size)
                self.assertEqual((), image.findings)

    def test_clusters_of_any_size(self):
        self.size_for_qemu(MIB)
        for bits in (9, 12, 16, 21):
            content = qemu_images.qcow2({0: b'x'}, MIB, cluster_bits=bits)
            with self.subTest(bits):
                self.opened(self.converter, content)

    def test_snapshots_are_noted(self):
        self.size_for_qemu(MIB)
        content = qemu_images.qcow2({}, MIB, snapshots=3)
        [finding] = self.opened(self.converter, content).findings
        self.assertEqual('qcow2.snapshots', finding.id)
        self.assertIn('3', finding.evidence)

    def test_last_cluster_may_be_short(self):
        """No more of it is written than there is of the disk."""
        size = 4 * KIB + 512
        self.size_for_qemu(size)
        content = qemu_images.qcow2({1: b'end'}, size)
        self.opened(self.converter, content[: -4 * KIB + 512])
        self.assert_refused(
            self.converter, content[: -4 * KIB + 511], 'disk-image.truncated'
        )

    def test_clusters_that_read_as_zeros_need_no_place(self):
        self.size_for_qemu(MIB)
        entries = {5: 1, 6: 1 << 40 | 1}
        content = qemu_images.qcow2({}, MIB, l2_entries=entries)
        self.opened(self.converter, content)


class AloneTest(Qcow2Test):
    """What would have qemu open another file."""

    def test_backing_file(self):
        name = b'/etc/passwd'
        self.refused(
            'qcow2.backing-file', backing_offset=104, backing_size=len(name)
        )

    def test_backing_file_that_no_length_is_given_for(self):
        self.refused('qcow2.backing-file', backing_offset=104)

    def test_backing_file_of_version_2(self):
        self.refused('qcow2.backing-file', backing_offset=1, version=2)

    def test_data_file(self):
        self.refused('qcow2.data-file', incompatible=4)

    def test_encryption(self):
        for method in (1, 2, 77):
            with self.subTest(method):
                found = self.refused('qcow2.encrypted', encryption=method)
                self.assertIn(str(method), found)

    def test_marked_as_corrupt(self):
        self.refused('qcow2.corrupt', incompatible=2)

    def test_unknown_features(self):
        found = self.refused(
            'qcow2.features', incompatible=1 << 4 | 1 << 5 | 1 << 63
        )
        self.assertEqual(
            'extended L2 entries, unknown bit 5, unknown bit 63', found
        )

    def test_versions(self):
        for version in (0, 1, 4, 0xFFFFFFFF):
            with self.subTest(version):
                self.refused('qcow2.version', version=version)


class HostileTest(Qcow2Test):
    def test_sizes_that_lie(self):
        for size in (0, 511, 513, 64 * TIB + 512, 1 << 63, (1 << 64) - 512):
            with self.subTest(size):
                self.refused('qcow2.size', stated_size=size)

    def test_cluster_sizes_that_lie(self):
        for bits in (0, 8, 22, 63, 0xFFFFFFFF):
            content = bytearray(qemu_images.qcow2({}, MIB))
            content[20:24] = struct.pack('>I', bits)
            with self.subTest(bits):
                error = self.assert_refused(
                    self.converter, bytes(content), 'qcow2.header'
                )
                self.assertIn(f'2^{bits} ', error.found or '')

    def test_tables_that_lie(self):
        for error_id, fields in (
            ('qcow2.header', {'l1_size': 0}),
            ('qcow2.header', {'l1_size': 0xFFFFFFFF}),
            ('qcow2.header', {'l1_offset': 0}),
            ('qcow2.header', {'l1_offset': 12289}),
            ('qcow2.header', {'stated_size': 64 * MIB}),
            ('disk-image.truncated', {'l1_offset': 1 << 40}),
            ('disk-image.truncated', {'l1_offset': (1 << 64) - 4096}),
            ('disk-image.truncated', {'l1_size': 4 * MIB}),
        ):
            with self.subTest(fields):
                self.refused(error_id, **fields)

    def test_tables_in_wrong_places(self):
        for error_id, entry in (
            ('disk-image.truncated', 1 << 50),
            ('disk-image.truncated', 6 * 4096),
            ('qcow2.header', 4096 + 512),
        ):
            with self.subTest(entry):
                self.refused(error_id, l1_entries={0: entry})

    def test_one_table_for_a_whole_disk(self):
        """So a small file would give a disk of any size."""
        content = qemu_images.qcow2(
            {0: b'data'}, 4 * MIB, l1_entries={1: 4 * 4096}
        )
        self.assert_refused(self.converter, content, 'qcow2.header')

    def test_clusters_beyond_the_end(self):
        for entry in (
            1 << 40,
            1 << 63 | 1 << 40,
            1 << 62 | 1 << 40,
            6 * 4096,
        ):
            with self.subTest(entry):
                self.refused('disk-image.truncated', l2_entries={7: entry})

    def test_cut_anywhere(self):
        content = qemu_images.qcow2({0: cases.noise(4 * KIB)}, MIB)
        for length in (4, 71, 72, 103, 104, 511, 4096, len(content) - 1):
            with self.subTest(length):
                self.assert_refused(
                    self.converter, content[:length], 'disk-image.truncated'
                )

    def test_noise_after_the_magic(self):
        for seed in range(20):
            content = b'QFI\xfb\0\0\0\3' + cases.noise(2 * KIB, seed)
            disk = self.disk(content)
            with (
                self.subTest(seed),
                self.assertRaises(exceptions.XenImportError),
            ):
                self.converter.open(self.package(), disk)

    def test_huge_and_empty(self):
        """Time goes with the tables that are there, not with the size."""
        self.size_for_qemu(64 * TIB)
        path = self.path('package')
        content = qemu_images.qcow2({0: b'data'}, MIB, cluster_bits=21)
        tables = 64 * TIB // (1 << 39)
        content = (
            content[:24]
            + struct.pack('>Q', 64 * TIB)
            + content[32:36]
            + struct.pack('>I', tables)
            + content[40:]
        )
        image = self.opened(self.converter, content)
        self.assertEqual(64 * TIB, image.virtual_size)
        self.assertLess(os.stat(path).st_size, 16 * MIB)
