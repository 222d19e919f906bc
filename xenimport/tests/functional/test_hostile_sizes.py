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

"""Packages whose numbers lie, and little that becomes much."""

from __future__ import annotations

import gzip

from xenimport.tests.functional import hostile_cases
from xenimport.tests import hostile
from xenimport.tests import ovf_packages
from xenimport.tests import packages
from xenimport.tests import qemu_images
from xenimport.tests import vhd_packages
from xenimport.tests import vmdk_packages
from xenimport.tests import xva_packages


class LyingSizesTest(hostile_cases.HostileTest):
    """Numbers that say more than there is."""

    def test_capacity_of_a_description(self) -> None:
        for capacity in ((1 << 63) - 1, 1 << 63, 1 << 64, 10**4000):
            text = packages.xencenter_ovf(
                [packages.Disk('d', 'd.raw', capacity)]
            )
            data = hostile.tar(
                [
                    hostile.Member(b'guest.ovf', text),
                    hostile.Member(b'd.raw', hostile_cases.RAW),
                ]
            )
            paths = [
                [self.write('guest.ova', data)],
                [self.write('guest.ova.gz', gzip.compress(data))],
            ]
            # The disk itself is sound, and says how long it is.
            for report in self.read(*paths):
                self.assertIn(
                    report.id,
                    (None, 'package.ovf-invalid', 'ovf.quantity-unknown'),
                )

    def test_vhd(self) -> None:
        sound = vhd_packages.Vhd(1 << 20, {0: b'x' * 512}).build()
        found = []
        for size in (1 << 63, (1 << 64) - 512, 1 << 50):
            footer = packages.footer(size)
            data = footer + sound[512:-512] + footer
            found.append((f'size{size}.vhd', data))
            fixed = hostile_cases.RAW + packages.footer(size, packages.FIXED)
            found.append((f'fixed{size}.vhd', fixed))
        for entries in (0xFFFFFFFF, 0x7FFFFFFF, 1 << 24):
            size = min(entries, 1 << 24) << 21
            footer = packages.footer(size)
            header = packages.dynamic_header(entries)
            found.append(
                (
                    f'table{entries}.vhd',
                    footer + header + b'\xff' * 4096 + footer,
                )
            )
        # The same blocks again and again.
        footer = packages.footer(1 << 40)
        header = packages.dynamic_header(1 << 19)
        table = (8192).to_bytes(4, 'big') * (1 << 19)
        body = b'x' * (3 * hostile_cases.MIB)
        found.append(
            (
                'overlap.vhd',
                (footer + header + table).ljust(8192 * 512, b'\0')
                + body
                + footer,
            )
        )
        found += [
            (f'{name}.gz', gzip.compress(data, 1)) for name, data in found
        ]
        self.refused(
            (
                'vhd.size',
                'vhd.table',
                'vhd.truncated',
                'vhd.blocks-overlap',
                'vhd.block-outside',
                'vhd.footer-differs',
                'package.truncated',
            ),
            *found,
        )

    def test_xva(self) -> None:
        found = []
        for number, size in (
            (99_999_999, hostile_cases.MIB),
            (10**17, hostile_cases.MIB),
            (10**17, (1 << 63) - 1),
            (10**18 - 1, 1 << 63),
        ):
            disk = xva_packages.Disk('Ref:1', hostile_cases.RAW)
            text = xva_packages.description(
                xva_packages.guest([disk])
            ).replace(b'65536', b'%d' % size)
            data = hostile.tar(
                [
                    hostile.Member(b'ova.xml', text),
                    hostile.Member(b'Ref:1/00000000', hostile_cases.RAW),
                    hostile.Member(b'Ref:1/%08d' % number, hostile_cases.RAW),
                ]
            )
            name = f'jump{number}-{size}.xva'
            found += [(name, data), (f'{name}.gz', gzip.compress(data))]
        self.refused(
            (
                'package.xva-chunk-outside',
                'package.xva-chunk-missing',
                'package.xva-description',
                'package.xva-member',
            ),
            *found,
        )

    def test_vmdk(self) -> None:
        sound = vmdk_packages.sparse(hostile_cases.RAW)
        stream = vmdk_packages.stream_optimized(hostile_cases.RAW)
        found = []
        for name, data in (('sparse', sound), ('stream', stream)):
            for offset, length in ((12, 8), (20, 8), (36, 8)):
                for bits in (62, 55, 40):
                    value = (1 << min(bits, 8 * length - 2)).to_bytes(
                        length, 'little'
                    )
                    bad = vmdk_packages.patched(data, offset, value)
                    found.append((f'{name}{offset}-{bits}.vmdk', bad))
        for size in (1 << 62, 1 << 54, 1 << 60):
            text = vmdk_packages.descriptor(
                'monolithicFlat', [f'RW {size} FLAT "d-flat.vmdk" 0']
            )
            found.append((f'flat{size}.vmdk', text))
        found += [
            (f'{name}.gz', gzip.compress(data, 1)) for name, data in found
        ]
        self.refused(
            (
                'vmdk.header',
                'vmdk.directory',
                'vmdk.footer',
                'vmdk.descriptor',
                'vmdk.extents',
                'vmdk.extent-outside',
                'vmdk.no-footer',
                'package.truncated',
            ),
            *found,
        )

    def test_what_qemu_reads(self) -> None:
        found = [
            (
                f'l1-{entries}.qcow2',
                qemu_images.qcow2(
                    {0: b'x'}, hostile_cases.MIB, l1_size=entries
                ),
            )
            for entries in (0xFFFFFFFF, 1 << 22, 1 << 20)
        ]
        sound = qemu_images.vdi({0: b'x'}, hostile_cases.MIB)
        large = (1 << 62).to_bytes(8, 'little')
        found += [
            ('size.vdi', vmdk_packages.patched(sound, 368, large)),
            (
                'blocks.vdi',
                qemu_images.vdi(
                    {0: b'x'}, hostile_cases.MIB, blocks=0xFFFFFFFF
                ),
            ),
            (
                'entry.vdi',
                qemu_images.vdi(
                    {0: b'x'}, hostile_cases.MIB, map_entries={0: 0x7FFFFFFF}
                ),
            ),
            (
                'size.vhdx',
                qemu_images.vhdx(
                    {0: b'x'},
                    hostile_cases.MIB,
                    items=qemu_images.vhdx_items(1 << 62),
                ),
            ),
            (
                'entry.vhdx',
                qemu_images.vhdx(
                    {0: b'x'},
                    hostile_cases.MIB,
                    bat_entries={0: (1 << 60) | qemu_images.FULL},
                ),
            ),
        ]
        self.refused(
            (
                'qcow2.header',
                'qcow2.size',
                'vdi.size',
                'vdi.header',
                'vhdx.size',
                'vhdx.header',
                'disk-image.truncated',
            ),
            *found,
        )


class BombTest(hostile_cases.HostileTest):
    """Little that becomes much."""

    def test_package_of_zeros(self) -> None:
        self.refused(
            ('package.not-a-tar', 'package.unknown'),
            ('zeros.ova.gz', hostile.zeros_gzip(8 * hostile.GIB)),
            ('zeros.ova.zst', hostile.zeros_zstd(64 * hostile.GIB)),
            ('zeros.xva.zst', hostile.zeros_zstd(64 * hostile.GIB)),
        )

    def test_disk_beyond_its_capacity(self) -> None:
        text = ovf_packages.envelope(
            ovf_packages.references(
                [ovf_packages.File('f', 'd.raw', 'ovf:compression="gzip"')]
            ),
            ovf_packages.disk_section(
                [ovf_packages.Disk('d', 'f', str(hostile_cases.MIB))]
            ),
            ovf_packages.system(
                'guest',
                ovf_packages.hardware(
                    drives=[ovf_packages.Drive(9, None, 0, 'ovf:/disk/d')]
                ),
            ),
        )
        members = [
            hostile.Member(b'guest.ovf', text),
            hostile.Member(b'd.raw', hostile.zeros_gzip(4 * hostile.GIB)),
        ]
        for report in self.read(
            *(
                [self.write(name, data)]
                for name, data in hostile_cases.forms('guest', members)
            )
        ):
            # The reader itself stops after some mebibytes.
            self.assertIn(report.id, (None, 'package.excess-data'))

    def test_tail(self) -> None:
        data = hostile.ova('d.vhd', hostile.parent())
        self.refused(
            'package.excess-data',
            ('tail.ova.gz', hostile.gzip_tail(data, 4 * hostile.GIB)),
        )

    def test_zstd_windows(self) -> None:
        found = []
        # 2^41, 2^31 and 2^28 bytes that a decoder shall keep.
        for window in (0xFF, 0xA8, 0x90):
            data = hostile.zeros_zstd(hostile.GIB, window)
            found.append((f'window{window}.xva.zst', data))
        self.refused('package.undecodable', *found)

    def test_vmdk_grain(self) -> None:
        data = hostile.vmdk_grain_bomb()
        self.refused(
            'vmdk.grain',
            ('bomb.vmdk', data),
            ('bomb.vmdk.gz', gzip.compress(data)),
        )
