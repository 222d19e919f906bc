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


"""Disks of an OVF descriptor: order, odd references, units."""

from collections.abc import Sequence
import unittest

from xenimport import exceptions
from xenimport.source import ovf
from xenimport.tests import ovf_packages as writer
from xenimport.tests import packages

IDE = writer.Controller(3, writer.IDE)
SCSI0 = writer.Controller(4, writer.SCSI, 0)
SCSI1 = writer.Controller(5, writer.SCSI, 1)
SATA = writer.Controller(6, writer.OTHER_STORAGE)
FILES = [
    writer.File('f1', 'one.vmdk'),
    writer.File('f2', 'two.vmdk'),
    writer.File('cd', 'tools.ISO'),
]
DISKS = [writer.Disk('d1', 'f1'), writer.Disk('d2', 'f2')]


def parse(text: bytes, system: str | None = None) -> ovf.Descriptor:
    return ovf.parse(text, 'guest.ovf', system)


def ids(found: ovf.Descriptor) -> list[str]:
    return [disk.id for disk in found.disks]


def findings(found: ovf.Descriptor) -> list[tuple[str, str]]:
    return [(finding.id, finding.subject) for finding in found.findings]


class OvfTestCase(unittest.TestCase):
    def vmware(
        self,
        controllers: Sequence[writer.Controller],
        drives: Sequence[writer.Drive],
        disks: Sequence[writer.Disk] = DISKS,
        boot: str | None = None,
    ) -> ovf.Descriptor:
        return parse(
            writer.vmware_ovf(FILES, disks, controllers, drives, boot=boot)
        )

    def assert_refused(self, text: bytes, error_id: str) -> str:
        with self.assertRaises(exceptions.PackageError) as caught:
            parse(text)
        self.assertEqual(error_id, caught.exception.id)
        return str(caught.exception)


class OrderTest(OvfTestCase):
    def test_by_kind_of_controller(self) -> None:
        found = self.vmware(
            [SATA, SCSI0, IDE],
            [
                writer.Drive(7, 6, 0, 'ovf:/disk/d1'),
                writer.Drive(8, 4, 1, 'ovf:/disk/d2'),
            ],
        )
        self.assertEqual(['d2', 'd1'], ids(found))

    def test_ide_comes_before_scsi(self) -> None:
        found = self.vmware(
            [SCSI0, IDE],
            [
                writer.Drive(7, 4, 0, 'ovf:/disk/d1'),
                writer.Drive(8, 3, 1, 'ovf:/disk/d2'),
            ],
        )
        self.assertEqual(['d2', 'd1'], ids(found))

    def test_by_address_of_controller(self) -> None:
        found = self.vmware(
            [SCSI1, SCSI0],
            [
                writer.Drive(7, 5, 0, 'ovf:/disk/d1'),
                writer.Drive(8, 4, 15, 'ovf:/disk/d2'),
            ],
        )
        self.assertEqual(['d2', 'd1'], ids(found))

    def test_by_address_on_the_controller(self) -> None:
        found = self.vmware(
            [SCSI0],
            [
                writer.Drive(7, 4, 10, 'ovf:/disk/d1'),
                writer.Drive(8, 4, 9, 'ovf:/disk/d2'),
            ],
        )
        self.assertEqual(['d2', 'd1'], ids(found))

    def test_without_addresses_by_the_text(self) -> None:
        found = self.vmware(
            [SCSI0],
            [
                writer.Drive(8, 4, 9, 'ovf:/disk/d2'),
                writer.Drive(7, 4, None, 'ovf:/disk/d1'),
            ],
        )
        self.assertEqual(['d2', 'd1'], ids(found))

    def test_without_controllers(self) -> None:
        found = self.vmware(
            [],
            [
                writer.Drive(7, None, 1, 'ovf:/disk/d1'),
                writer.Drive(8, None, 0, 'ovf:/disk/d2'),
            ],
        )
        self.assertEqual(['d2', 'd1'], ids(found))

    def test_boot_order_of_vmware(self) -> None:
        drives = [
            writer.Drive(7, 4, 0, 'ovf:/disk/d1'),
            writer.Drive(8, 4, 1, 'ovf:/disk/d2'),
        ]
        for boot, expected in (
            ('8', ['d2', 'd1']),
            ('99 8 7', ['d2', 'd1']),
            ('7 8', ['d1', 'd2']),
            ('99', ['d1', 'd2']),
        ):
            with self.subTest(boot=boot):
                found = self.vmware([SCSI0], drives, boot=boot)
                self.assertEqual(expected, ids(found))

    def boot_device(self, text: str) -> list[str]:
        drives = [
            writer.Drive(7, None, 0, 'ovf:/disk/d1', 17, 'StorageItem'),
            writer.Drive(8, None, 1, 'ovf:/disk/d2', 17, 'StorageItem'),
        ]
        section = f'<BootDeviceSection><Info/>{text}</BootDeviceSection>'
        return ids(
            parse(
                writer.envelope(
                    writer.references(FILES),
                    writer.disk_section(DISKS),
                    writer.system(
                        'a', writer.hardware(drives=drives), section
                    ),
                    version=2,
                )
            )
        )

    def test_boot_device_section_of_ovf_2(self) -> None:
        for text, expected in (
            ('<InstanceID>8</InstanceID>', ['d2', 'd1']),
            (
                '<StructuredBootString>CIM:CD/DVD:1</StructuredBootString>'
                '<StructuredBootString>CIM:Hard-Disk:2</StructuredBootString>',
                ['d2', 'd1'],
            ),
            (
                '<StructuredBootString>CIM:Hard-Disk:3</StructuredBootString>',
                ['d1', 'd2'],
            ),
        ):
            with self.subTest(text=text):
                self.assertEqual(expected, self.boot_device(text))

    def test_bootable_mark_of_xencenter(self) -> None:
        text = packages.xencenter_ovf(
            [
                packages.Disk('one', 'one.vhd', 8192, 0),
                packages.Disk('two', 'two.vhd', 8192, 1),
            ]
        )
        marked = text.replace(
            b'<rasd:InstanceID>i1<',
            b'<rasd:Connection>device=1,bootable=true,mode=RW,'
            b'</rasd:Connection><rasd:InstanceID>i1<',
        )
        self.assertEqual(['two', 'one'], ids(parse(marked)))

    def test_bootable_mark_of_several(self) -> None:
        text = packages.xencenter_ovf(
            [packages.Disk(f'd{n}', f'{n}.vhd', 8192, n) for n in range(3)]
        )
        for instance in (b'i1', b'i2'):
            text = text.replace(
                b'<rasd:InstanceID>%b<' % instance,
                b'<rasd:Connection>bootable=true</rasd:Connection>'
                b'<rasd:InstanceID>%b<' % instance,
            )
        self.assertEqual(['d0', 'd1', 'd2'], ids(parse(text)))

    def test_device_in_the_connection_is_an_address(self) -> None:
        text = packages.xencenter_ovf(
            [
                packages.Disk('one', 'one.vhd', 8192, 0),
                packages.Disk('two', 'two.vhd', 8192, 1),
            ]
        )
        for old, new in ((b'0', b'1'), (b'1', b'0')):
            text = text.replace(
                b'<rasd:AddressOnParent>%b</rasd:AddressOnParent>' % old,
                b'<rasd:Connection>device=%b,</rasd:Connection>' % new,
            )
        self.assertEqual(['two', 'one'], ids(parse(text)))

    def test_virtualbox_extension(self) -> None:
        disks = [('v1', '1.vmdk', 'aa-1'), ('v2', '2.vmdk', 'aa-2')]
        for storage, expected in (
            ([('AHCI', [(1, 0, 'aa-1'), (0, 0, 'AA-2')])], ['v2', 'v1']),
            (
                [('AHCI', [(0, 0, 'aa-1')]), ('PIIX4', [(0, 1, 'aa-2')])],
                ['v2', 'v1'],
            ),
        ):
            with self.subTest(storage=storage):
                found = parse(writer.virtualbox_ovf(disks, storage))
                self.assertEqual(expected, ids(found))

    def test_virtualbox_extension_without_one_of_the_disks(self) -> None:
        disks = [(f'v{n}', f'{n}.vmdk', f'aa-{n}') for n in (1, 2, 3)]
        storage = [('AHCI', [(1, 0, 'aa-1'), (0, 0, 'aa-3')])]
        found = parse(writer.virtualbox_ovf(disks, storage))
        self.assertEqual(['v1', 'v2', 'v3'], ids(found))


class ReferenceTest(OvfTestCase):
    def test_cd_is_no_disk(self) -> None:
        disks = [*DISKS, writer.Disk('d3', 'cd', more='')]
        for drive in (
            writer.Drive(9, 3, 0, 'ovf:/disk/d3', 15),
            writer.Drive(9, 3, 0, 'ovf:/file/cd', 16),
            writer.Drive(9, 3, 0, 'ovf:/file/cd', 17),
            writer.Drive(9, 3, 0, 'ovf:/disk/d3', 19),
            writer.Drive(9, 3, 0, None, 15),
        ):
            with self.subTest(drive=drive):
                found = self.vmware(
                    [IDE, SCSI0],
                    [
                        drive,
                        writer.Drive(7, 4, 0, 'ovf:/disk/d1'),
                        writer.Drive(8, 4, 1, 'ovf:/disk/d2'),
                    ],
                    disks,
                )
                self.assertEqual(['d1', 'd2'], ids(found))
                self.assertEqual([], findings(found))

    def test_format_of_a_cd(self) -> None:
        disk = writer.Disk('d1', 'f1', more=f'ovf:format="{writer.ISO}"')
        found = self.vmware([], [], [disk, DISKS[1]])
        self.assertEqual(['d2'], ids(found))

    def test_drive_of_a_file(self) -> None:
        found = self.vmware(
            [SCSI0], [writer.Drive(7, 4, 0, 'ovf:/file/f2')], [DISKS[1]]
        )
        self.assertEqual(['d2'], ids(found))
        found = self.vmware(
            [SCSI0], [writer.Drive(7, 4, 0, 'ovf:/file/f2')], []
        )
        self.assertEqual(['file/f2'], ids(found))
        file = found.disks[0].file
        self.assertEqual('two.vmdk', file and file.href)
        self.assertIsNone(found.disks[0].capacity)

    def test_escaped_reference(self) -> None:
        found = self.vmware(
            [],
            [writer.Drive(7, None, 0, 'ovf:/disk/my%20disk')],
            [writer.Disk('my disk', 'f1')],
        )
        self.assertEqual(['my disk'], ids(found))
        self.assertEqual([], findings(found))

    def test_drive_without_a_disk(self) -> None:
        found = self.vmware([], [writer.Drive(7, None, 0, None)])
        self.assertEqual(['d1', 'd2'], ids(found))
        self.assertEqual(
            [('ovf.disk-unattached', 'd1'), ('ovf.disk-unattached', 'd2')],
            findings(found),
        )

    def test_drive_of_a_device_of_the_old_host(self) -> None:
        text = writer.vmware_ovf(
            FILES, DISKS, [], [writer.Drive(7, None, 0, '/dev/sdb')]
        )
        self.assertIn(
            '/dev/sdb', self.assert_refused(text, 'package.missing-file')
        )

    def test_drive_of_an_unknown_file(self) -> None:
        text = writer.vmware_ovf(
            FILES, DISKS, [], [writer.Drive(7, None, 0, 'ovf:/file/f9')]
        )
        self.assertIn(
            "file/f9'", self.assert_refused(text, 'package.missing-file')
        )

    def test_same_disk_twice(self) -> None:
        found = self.vmware(
            [SCSI0],
            [
                writer.Drive(7, 4, 0, 'ovf:/disk/d1'),
                writer.Drive(8, 4, 1, 'ovf:/disk/d1'),
            ],
            DISKS[:1],
        )
        self.assertEqual(['d1'], ids(found))
        self.assertEqual([('ovf.disk-shared', 'd1')], findings(found))

    def test_empty_file_reference_is_a_blank_disk(self) -> None:
        for file in (None, ''):
            with self.subTest(file=file):
                found = self.vmware(
                    [SCSI0],
                    [writer.Drive(7, 4, 0, 'ovf:/disk/d1')],
                    [writer.Disk('d1', file)],
                )
                self.assertEqual([None], [disk.file for disk in found.disks])
                self.assertEqual([('ovf.disk-blank', 'd1')], findings(found))

    def test_delta_disk_of_another_system_does_not_matter(self) -> None:
        disks = [DISKS[0], writer.Disk('d2', 'f2', more='ovf:parentRef="d1"')]
        text = writer.envelope(
            writer.references(FILES),
            writer.disk_section(disks),
            '<VirtualSystemCollection ovf:id="c">',
            writer.system(
                'a',
                writer.hardware(
                    drives=[writer.Drive(7, None, 0, 'ovf:/disk/d1')]
                ),
            ),
            writer.system(
                'b',
                writer.hardware(
                    drives=[writer.Drive(7, None, 0, 'ovf:/disk/d2')]
                ),
            ),
            '</VirtualSystemCollection>',
        )
        self.assertEqual(['d1'], ids(parse(text, 'a')))
        with self.assertRaises(exceptions.PackageError) as caught:
            parse(text, 'b')
        self.assertEqual('package.delta-disk', caught.exception.id)


class QuantityTest(OvfTestCase):
    def capacity(self, value: str, unit: str | None) -> ovf.Descriptor:
        return self.vmware(
            [SCSI0],
            [writer.Drive(7, 4, 0, 'ovf:/disk/d1')],
            [writer.Disk('d1', 'f1', value, unit)],
        )

    def test_units(self) -> None:
        for value, unit, expected in (
            ('10', 'byte * 2^30', 10 << 30),
            ('10', 'MegaBytes', 10 << 20),
            ('8589934592', None, 8 << 30),
            ('8589934592', 'byte', 8 << 30),
        ):
            with self.subTest(unit=unit):
                found = self.capacity(value, unit)
                self.assertEqual(expected, found.disks[0].capacity)
                self.assertEqual([], findings(found))

    def test_not_understood(self) -> None:
        for value, unit in (
            ('10', 'parsec'),
            (str(1 << 63), 'byte'),
            (str(1 << 43), 'byte * 2^20'),
            ('-1', None),
            ('1e9', None),
            ('${disk.size}', None),
            ('\u0661', None),
        ):
            with self.subTest(value=value, unit=unit):
                found = self.capacity(value, unit)
                self.assertIsNone(found.disks[0].capacity)
                self.assertEqual(
                    [('ovf.quantity-unknown', 'd1')], findings(found)
                )

    def test_memory(self) -> None:
        for value, unit, expected in (
            ('3', 'GigaBytes', 3 << 30),
            ('3', 'parsec', None),
            ('lots', 'byte', None),
        ):
            with self.subTest(value=value, unit=unit):
                found = parse(
                    writer.envelope(
                        writer.system(
                            'a',
                            writer.hardware(memory=value, memory_unit=unit),
                        )
                    )
                )
                self.assertEqual(expected, found.memory)
                self.assertEqual(
                    [] if expected else [('ovf.quantity-unknown', 'memory')],
                    findings(found),
                )
