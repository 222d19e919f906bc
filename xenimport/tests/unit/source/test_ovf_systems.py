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


"""Virtual systems of an OVF descriptor, and what products add to them."""

import unittest

from xenimport import exceptions
from xenimport import model
from xenimport.source import ovf
from xenimport.tests import ovf_packages as writer

FILES = [writer.File('f1', 'one.vmdk'), writer.File('f2', 'two.vmdk')]
DISKS = [writer.Disk('d1', 'f1'), writer.Disk('d2', 'f2')]
SCSI = writer.Controller(4, writer.SCSI)


def drive(disk: str, **fields: str) -> writer.Drive:
    return writer.Drive(7, 4, 0, f'ovf:/disk/{disk}', **fields)


def parse(text: bytes, system: str | None = None) -> ovf.Descriptor:
    return ovf.parse(text, 'guest.ovf', system)


def one_system(*sections: str) -> ovf.Descriptor:
    return parse(
        writer.envelope(
            writer.references(FILES),
            writer.disk_section(DISKS[:1]),
            writer.system('a', *sections),
        )
    )


class CollectionTest(unittest.TestCase):
    def collection(self, inner_name: str = 'Database') -> bytes:
        return writer.envelope(
            writer.references(FILES),
            writer.disk_section([*DISKS, writer.Disk('spare', 'f2')]),
            '<VirtualSystemCollection ovf:id="app">',
            writer.system(
                'vm1', writer.hardware([SCSI], [drive('d1')]), name='Web'
            ),
            '<VirtualSystemCollection ovf:id="inner">',
            writer.system(
                'vm2', writer.hardware([SCSI], [drive('d2')]), name=inner_name
            ),
            '</VirtualSystemCollection></VirtualSystemCollection>',
        )

    def test_chosen_by_name_or_id(self) -> None:
        for wanted, name, disk in (
            ('Web', 'Web', 'd1'),
            ('vm1', 'Web', 'd1'),
            ('Database', 'Database', 'd2'),
            ('vm2', 'Database', 'd2'),
        ):
            with self.subTest(wanted=wanted):
                found = parse(self.collection(), wanted)
                self.assertEqual(name, found.name)
                self.assertEqual([disk], [disk.id for disk in found.disks])
                self.assertEqual((), found.findings)

    def assert_refused(
        self, text: bytes, system: str | None, error_id: str
    ) -> str:
        with self.assertRaises(exceptions.PackageError) as caught:
            parse(text, system)
        self.assertEqual(error_id, caught.exception.id)
        return str(caught.exception)

    def test_not_chosen(self) -> None:
        text = self.assert_refused(
            self.collection(), None, 'package.virtual-systems'
        )
        self.assertIn('Web (id vm1), Database (id vm2)', text)
        self.assertIn('--system NAME', text)

    def test_unknown_name(self) -> None:
        text = self.assert_refused(
            self.collection(), 'Mail', 'package.system-unknown'
        )
        self.assertIn('--system Mail', text)
        self.assertIn('Web (id vm1), Database (id vm2)', text)

    def test_name_of_two(self) -> None:
        text = self.assert_refused(
            self.collection('Web'), 'Web', 'package.system-unknown'
        )
        self.assertIn('several', text)

    def test_the_only_one_may_be_named(self) -> None:
        text = writer.envelope(writer.system('a', name='b'))
        for wanted in (None, 'a', 'b'):
            self.assertEqual('b', parse(text, wanted).name)
        self.assert_refused(text, 'c', 'package.system-unknown')

    def test_many_are_listed_in_part(self) -> None:
        text = writer.envelope(
            *(writer.system(f'vm{number}') for number in range(30))
        )
        message = self.assert_refused(text, None, 'package.virtual-systems')
        self.assertIn('and 10 more', message)


class ProductTest(unittest.TestCase):
    def test_vmware(self) -> None:
        for firmware, expected in (
            ('efi', model.Firmware.UEFI),
            ('bios', model.Firmware.BIOS),
            (None, None),
        ):
            with self.subTest(firmware=firmware):
                found = parse(
                    writer.vmware_ovf(
                        FILES, DISKS, [SCSI], [drive('d1')], firmware=firmware
                    )
                )
                self.assertIs(expected, found.firmware)
                self.assertEqual('VMware', found.creator)
                self.assertEqual('1', found.settings['tools.x'])

    def test_virtualbox(self) -> None:
        disks = [('v1', '1.vmdk', 'aa-1')]
        storage = [('AHCI', [(0, 0, 'aa-1')])]
        for firmware, expected in (
            ('EFI', model.Firmware.UEFI),
            ('EFI64', model.Firmware.UEFI),
            ('BIOS', model.Firmware.BIOS),
            (None, model.Firmware.BIOS),
        ):
            with self.subTest(firmware=firmware):
                found = parse(
                    writer.virtualbox_ovf(disks, storage, firmware=firmware)
                )
                self.assertIs(expected, found.firmware)
        self.assertEqual('VirtualBox', found.creator)
        self.assertEqual('DVD,HardDisk', found.settings['boot_order'])
        self.assertEqual(
            [
                model.Nic(
                    "Ethernet adapter on 'NAT'", '08:00:27:aa:bb:cc', 'NAT'
                )
            ],
            list(found.nics),
        )
        self.assertEqual(['v1'], [disk.id for disk in found.disks])

    def test_xen_orchestra(self) -> None:
        text = writer.envelope(
            writer.system('a', name='Xen Orchestra appliance')
        )
        self.assertIsNone(parse(text).creator)
        text = writer.envelope(
            writer.system('a'), comment='Generated by Xen Orchestra'
        )
        self.assertEqual('Xen Orchestra', parse(text).creator)

    def test_creator_in_utf_16(self) -> None:
        text = writer.vmware_ovf(FILES, [], [], []).decode()
        text = text.replace('encoding="UTF-8"', 'encoding="UTF-16"')
        self.assertEqual('VMware', parse(text.encode('utf-16')).creator)

    def test_name_is_one_line(self) -> None:
        text = writer.envelope(writer.system('a', name=' my\n  guest\t'))
        self.assertEqual('my guest', parse(text).name)


class HardwareTest(unittest.TestCase):
    def test_default_deployment_option(self) -> None:
        options = (
            '<DeploymentOptionSection><Info/><Configuration ovf:id="small"/>'
            '<Configuration ovf:id="big"{}/></DeploymentOptionSection>'
        )
        more = writer.item(
            attributes='ovf:configuration="big huge"',
            AllocationUnits='byte * 2^30',
            InstanceID=2,
            ResourceType=4,
            VirtualQuantity=8,
        ) + writer.item(
            attributes='ovf:configuration="big"',
            InstanceID=3,
            ResourceType=3,
            VirtualQuantity=1,
        )
        for default, memory, vcpus in (
            ('', 1 << 30, 2),
            (' ovf:default="true"', 8 << 30, 3),
        ):
            with self.subTest(default=default):
                found = parse(
                    writer.envelope(
                        writer.references(FILES),
                        options.format(default),
                        writer.system('a', writer.hardware(more=more)),
                    )
                )
                self.assertEqual((memory, vcpus), (found.memory, found.vcpus))

    def test_disk_of_another_option_is_not_taken(self) -> None:
        drives = [drive('d1', attributes='ovf:configuration="big"')]
        found = one_system(writer.hardware([SCSI], drives))
        self.assertEqual((), found.disks)
        self.assertEqual((), found.findings)

    def test_ranges_are_no_items(self) -> None:
        more = writer.item(
            attributes='ovf:bound="max"',
            InstanceID=1,
            ResourceType=3,
            VirtualQuantity=64,
        )
        self.assertEqual(2, one_system(writer.hardware(more=more)).vcpus)

    def test_one_of_several_hardware_sections(self) -> None:
        vmware = writer.hardware([SCSI], [drive('d1')], vcpus=4)
        xen = writer.hardware(
            [SCSI], [drive('d1')], vcpus=8, system_type='hvm-3.0-unknown'
        )
        self.assertEqual(4, one_system(vmware, vmware).vcpus)
        found = one_system(vmware, xen)
        self.assertEqual(8, found.vcpus)
        self.assertEqual((), found.findings)
        self.assertEqual(1, len(found.disks))

    def test_settings_of_the_section_in_force(self) -> None:
        config = '<vmw:Config vmw:key="firmware" vmw:value="{}"/>'
        xen = writer.hardware(system_type='xen-3.0')
        vmware = writer.hardware(more=config.format('efi'))
        self.assertIsNone(one_system(xen, vmware).firmware)
        self.assertIs(model.Firmware.UEFI, one_system(vmware, vmware).firmware)

    def test_ethernet_port_items(self) -> None:
        more = writer.item(
            'EthernetPortItem',
            Address='00:50:56:00:00:01',
            Connection='net',
            InstanceID=9,
            ResourceType=33,
        )
        self.assertEqual(
            [model.Nic('9', '00:50:56:00:00:01', 'net')],
            list(one_system(writer.hardware(more=more)).nics),
        )

    def test_pre_standard_form(self) -> None:
        text = (
            '<Envelope xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance">'
            '<References><File id="f" href="a.vmdk"/></References>'
            '<Section xsi:type="ovf:DiskSection_Type">'
            '<Disk diskId="d" fileRef="f" capacity="5"/></Section>'
            '<Content id="old" xsi:type="ovf:VirtualSystem_Type">'
            '<Section xsi:type="ovf:VirtualHardwareSection_Type"><Item>'
            '<ResourceType>17</ResourceType><InstanceId>9</InstanceId>'
            '<HostResource>disk/d</HostResource></Item></Section>'
            '</Content></Envelope>'
        )
        found = parse(text.encode())
        self.assertEqual('old', found.name)
        self.assertEqual(['d'], [disk.id for disk in found.disks])
        self.assertEqual((), found.findings)


class HostileTest(unittest.TestCase):
    def assert_refused(self, text: bytes, error_id: str) -> None:
        with self.assertRaises(exceptions.PackageError) as caught:
            parse(text)
        self.assertEqual(error_id, caught.exception.id)

    def test_many_elements(self) -> None:
        text = b'<Envelope>' + b'<Item/>' * 500_000 + b'</Envelope>'
        self.assert_refused(text, 'package.ovf-too-large')

    def test_deep_nesting(self) -> None:
        for depth in (100, 100_000):
            with self.subTest(depth=depth):
                text = b'<Envelope>' + b'<a>' * depth
                text += b'</a>' * depth + b'</Envelope>'
                self.assert_refused(text, 'package.ovf-too-large')

    def test_many_drives_and_disks(self) -> None:
        count = 3_000
        text = writer.envelope(
            writer.disk_section(
                writer.Disk(f'd{number}', None, more='')
                for number in range(count)
            ),
            writer.system(
                'a',
                writer.hardware(
                    drives=[
                        writer.Drive(number, None, None, f'/disk/d{number}')
                        for number in range(count)
                    ]
                ),
            ),
        )
        self.assertEqual(count, len(parse(text).disks))

    def test_many_configurations_of_one_item(self) -> None:
        more = writer.item(
            attributes='ovf:configuration="a"', InstanceID=1, ResourceType=3
        )
        text = writer.envelope(
            '<DeploymentOptionSection><Configuration ovf:id="a"/>'
            '</DeploymentOptionSection>',
            writer.system('a', writer.hardware(more=more * 8_000)),
        )
        self.assertIsNone(parse(text).vcpus)

    def test_encrypted(self) -> None:
        for element in (
            'SecuritySection',
            'EncryptionSection',
            'EncryptedData',
        ):
            with self.subTest(element=element):
                text = writer.envelope(
                    f'<Section><{element}/></Section>', writer.system('a')
                )
                self.assert_refused(text, 'package.encrypted')

    def test_line_feeds_in_attributes(self) -> None:
        text = writer.envelope(
            writer.references([writer.File('f', 'a&#10;b.vhd')]),
            writer.disk_section([writer.Disk('d&#10;x', 'f')]),
            writer.system('a', writer.hardware()),
        )
        found = parse(text)
        self.assertEqual(['d\nx'], [disk.id for disk in found.disks])
        self.assertNotIn('\n', found.findings[0].evidence)

    def test_attribute_of_another_kind(self) -> None:
        for text in (
            b'<Envelope><References><File/></References>'
            b'<DiskSection><Disk/></DiskSection><VirtualSystem/></Envelope>',
            b'<Envelope><VirtualSystem><VirtualHardwareSection><Item/>'
            b'<StorageItem><ResourceType>17</ResourceType></StorageItem>'
            b'</VirtualHardwareSection></VirtualSystem></Envelope>',
        ):
            with self.subTest(text=text):
                self.assertIsNone(parse(text).name)
