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

"""Mutants of VMDKs: sparse ones, streams and descriptors."""

from __future__ import annotations

import hypothesis

from xenimport.converter import vmdk
from xenimport import model
from xenimport.tests.fuzz import cases
from xenimport.tests.fuzz import mutation
from xenimport.tests import reading
from xenimport.tests import vmdk_packages

_SECTOR = 512
_HEADER: tuple[tuple[int, int], ...] = (
    (4, 4), (8, 4), (12, 8), (20, 8), (28, 8), (36, 8), (44, 4), (48, 8),
    (56, 8), (64, 8), (72, 1), (77, 2),
)  # fmt: skip
#: The smallest that there is.
_GRAIN = 16
_CONTENT = b''.join(
    bytes((65 + number % 26,)) * 8192 if number % 3 else bytes(8192)
    for number in range(12)
)


def _sparse() -> mutation.Sample:
    data = vmdk_packages.sparse(_CONTENT, grain=_GRAIN)
    fields: list[mutation.Field] = [
        (offset, length, 'little') for offset, length in _HEADER
    ]
    # Two directories of a sector, with a table of four sectors each.
    for start in (21, 26):
        fields += [
            (start * _SECTOR + 4 * entry, 4, 'little')
            for entry in (0, 1, 127, 128, 129, 130, 131, 640)
        ]
    hot = [(0, 80), (512, 1024), (21 * 512, 23 * 512), (26 * 512, 28 * 512)]
    return mutation.Sample('sparse', data, fields, hot)


def _streams() -> list[mutation.Sample]:
    samples = []
    tables = vmdk_packages.Stream(600 * _GRAIN, grain=_GRAIN)
    for index in (0, 1, 511, 512, 599):
        tables.add(index, bytes((index % 256,)) * 8192)
    tables.finish()
    for name, data in (
        ('two tables', tables.content),
        ('tables first', _tables_first()),
        ('stream', vmdk_packages.stream_optimized(_CONTENT, grain=_GRAIN)),
        (
            'zeroed',
            vmdk_packages.stream_optimized(
                _CONTENT,
                grain=_GRAIN,
                flags=vmdk_packages.STREAM_FLAGS | vmdk_packages.ZEROED,
            ),
        ),
    ):
        fields: list[mutation.Field] = [
            (start + offset, length, 'little')
            for start in (0, len(data) - 1024)
            for offset, length in _HEADER
        ]
        start = 128 * _SECTOR
        # Markers: the value, the size and the kind.
        if name == 'tables first':
            # The directory's entry, and those of the table.
            fields += [(30 * _SECTOR, 4, 'little')] * 4
            fields += [
                (31 * _SECTOR + 4 * entry, 4, 'little') for entry in range(12)
            ] * 2
        for sector in range(start, len(data), _SECTOR):
            fields += [
                (sector, 8, 'little'),
                (sector + 8, 4, 'little'),
                (sector + 12, 4, 'little'),
            ]
        hot = [(0, 80), (512, 1024), (start, len(data))]
        samples.append(
            mutation.Sample(name, data, fields, hot, (_copy_header,))
        )
    return samples


def _tables_first() -> bytes:
    """As QEMU writes it; grains of 64 KiB, of which few are there."""
    data = bytearray(10 * 65536)
    data[65536 : 65536 * 3] = b'q' * 65536 * 2
    data[9 * 65536 :] = bytes(range(256)) * 256
    return vmdk_packages.tables_first(bytes(data))


def _copy_header(target: bytearray) -> None:
    """Have the footer say what the header says, but for the directory."""
    start = len(target) - 2 * _SECTOR
    if start > _SECTOR:
        target[start : start + 56] = target[:56]
        target[start + 64 : start + 79] = target[64:79]


def _descriptors() -> list[mutation.Sample]:
    samples = []
    for kind, extents in (
        ('monolithicFlat', ['RW 192 FLAT "d-flat.vmdk" 0']),
        (
            'twoGbMaxExtentFlat',
            ['RW 100 FLAT "d-flat.vmdk" 0', 'RW 92 ZERO'],
        ),
        ('twoGbMaxExtentSparse', ['RW 192 SPARSE "d-s001.vmdk"']),
    ):
        data = vmdk_packages.descriptor(kind, extents)
        samples.append(mutation.Sample(kind, data, hot=[(0, len(data))] * 3))
    return samples


class VmdkTest(cases.FuzzTest):
    """Nothing but the product's own errors, and both ways agree."""

    @cases.settings
    @hypothesis.given(mutation.mutants([_sparse()]))
    def test_sparse(self, mutant: mutation.Mutant) -> None:
        self.check_both(self.write('disk.vmdk', mutant.build()))

    @cases.settings
    @hypothesis.given(mutation.mutants(_streams()))
    def test_stream_optimized(self, mutant: mutation.Mutant) -> None:
        self.check_both(self.write('disk.vmdk', mutant.build()))

    @cases.settings
    @hypothesis.given(mutation.mutants(_descriptors()))
    def test_descriptor(self, mutant: mutation.Mutant) -> None:
        files = {
            'd.vmdk': mutant.build(),
            'd-flat.vmdk': _CONTENT,
            'd-s001.vmdk': _sparse().data,
        }
        regions = {
            name: model.Region(
                self.write(name, data), name, (model.Piece(0, len(data), 0),)
            )
            for name, data in files.items()
        }
        package = model.Package(self.directory, 'disk', regions)
        disk = model.Disk('d', 'd', 0, regions['d.vmdk'])
        self.check(_read, package, disk)


def _read(package: model.Package, disk: model.Disk) -> reading.Content:
    with vmdk.VmdkConverter().open(package, disk) as image:
        return reading.read_image(image)
