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

"""The OVF descriptor."""

import unittest

from xenimport import exceptions
from xenimport import model
from xenimport.source import ovf
from xenimport.source import ovf_xml
from xenimport.tests import packages

GIB = 1 << 30
DISKS = (
    packages.Disk('one', 'one.vhd', 8 * GIB, 0),
    packages.Disk('two', 'two.vhd', GIB, 1),
)


def parse(text: bytes) -> ovf.Descriptor:
    return ovf.parse(text, 'guest.ovf')


class XenCenterTest(unittest.TestCase):
    def test_system(self) -> None:
        found = parse(
            packages.xencenter_ovf(
                DISKS,
                name='wörk & play',
                vcpus=4,
                memory=3072,
                settings={'HVM_boot_policy': 'BIOS order'},
            )
        )
        self.assertEqual('wörk & play', found.name)
        self.assertEqual(4, found.vcpus)
        self.assertEqual(3 * GIB, found.memory)
        self.assertEqual('XenCenter', found.creator)
        self.assertEqual('BIOS order', found.settings['HVM_boot_policy'])
        self.assertIs(model.Firmware.BIOS, found.firmware)
        self.assertEqual((), found.findings)

    def test_nic(self) -> None:
        found = parse(
            packages.xencenter_ovf(DISKS, macs=['00-16-3E-AA-BB-CC', 'no'])
        )
        self.assertEqual(
            ['00:16:3e:aa:bb:cc', None], [nic.mac for nic in found.nics]
        )
        self.assertEqual('Pool-wide network 0', found.nics[0].network)

    def test_disks_are_found_by_each_reference(self) -> None:
        for element in ('HostResource', 'InstanceID', 'Connection'):
            with self.subTest(element=element):
                found = parse(packages.xencenter_ovf(DISKS, refer_by=element))
                self.assertEqual(
                    ['one.vhd', 'two.vhd'],
                    [disk.file and disk.file.href for disk in found.disks],
                )
                self.assertEqual(8 * GIB, found.disks[0].capacity)
                self.assertEqual('disk 1', found.disks[1].name)
                self.assertEqual((), found.findings)

    def test_boot_order_is_by_device(self) -> None:
        disks = (DISKS[1]._replace(device=10), DISKS[0]._replace(device=9))
        found = parse(packages.xencenter_ovf(disks))
        self.assertEqual(['one', 'two'], [disk.id for disk in found.disks])

    def test_uefi_in_boot_params_or_platform(self) -> None:
        for name in ('HVM_boot_params', 'platform'):
            with self.subTest(name=name):
                found = parse(
                    packages.xencenter_ovf(
                        DISKS,
                        settings={
                            'HVM_boot_policy': 'BIOS order',
                            name: 'order=dc;firmware=uefi;',
                        },
                    )
                )
                self.assertIs(model.Firmware.UEFI, found.firmware)

    def test_paravirtual_guest_has_no_firmware(self) -> None:
        found = parse(
            packages.xencenter_ovf(
                DISKS,
                settings={'HVM_boot_policy': '', 'PV_bootloader': 'pygrub'},
            )
        )
        self.assertIsNone(found.firmware)
        self.assertEqual('pygrub', found.settings['PV_bootloader'])


class XenOrchestraTest(unittest.TestCase):
    def test_all(self) -> None:
        found = parse(
            packages.xen_orchestra_ovf(
                DISKS, name='xo', memory=512, firmware='uefi'
            )
        )
        self.assertEqual('xo', found.name)
        self.assertEqual(512 << 20, found.memory)
        self.assertEqual(
            [8 * GIB, GIB], [disk.capacity for disk in found.disks]
        )
        self.assertEqual(['one', 'two'], [disk.id for disk in found.disks])
        self.assertIs(model.Firmware.UEFI, found.firmware)


class OddTest(unittest.TestCase):
    def replaced(self, old: str, new: str) -> bytes:
        text = packages.xencenter_ovf(DISKS).decode()
        self.assertIn(old, text)
        return text.replace(old, new).encode()

    def test_disk_without_file_is_reported(self) -> None:
        found = parse(self.replaced('ovf:fileRef="two" ', ''))
        self.assertIsNone(found.disks[1].file)
        self.assertEqual(
            [('ovf.disk-blank', 'two')],
            [(finding.id, finding.subject) for finding in found.findings],
        )

    def test_unattached_disk_is_kept_and_reported(self) -> None:
        text = packages.xencenter_ovf(DISKS, refer_by='InstanceID')
        text = text.replace(
            b'<rasd:InstanceID>one<', b'<rasd:InstanceID>gone<'
        )
        found = parse(text)
        self.assertEqual(['two', 'one'], [disk.id for disk in found.disks])
        self.assertEqual('ovf.disk-unattached', found.findings[0].id)

    def assert_refused(self, text: bytes, error_id: str) -> None:
        with self.assertRaises(exceptions.PackageError) as caught:
            parse(text)
        self.assertEqual(error_id, caught.exception.id)
        self.assertIn('guest.ovf', caught.exception.where or '')
        self.assertTrue(caught.exception.fix)

    def test_drive_of_an_unknown_disk(self) -> None:
        self.assert_refused(
            self.replaced('ovf:/disk/one', 'ovf:/disk/gone'),
            'package.missing-file',
        )

    def test_disk_of_an_unknown_file(self) -> None:
        self.assert_refused(
            self.replaced('fileRef="one"', 'fileRef="gone"'),
            'package.missing-file',
        )

    def test_delta_disk(self) -> None:
        self.assert_refused(
            self.replaced('diskId="two"', 'diskId="two" parentRef="one"'),
            'package.delta-disk',
        )

    def test_not_xml(self) -> None:
        for text in (b'', b'<Envelope>', b'\xff\xfe', b'<a xmlns:b=""/>'):
            with self.subTest(text=text):
                self.assert_refused(text, 'package.ovf-invalid')

    def test_other_xml(self) -> None:
        self.assert_refused(b'<html/>', 'package.ovf-invalid')

    def test_entities(self) -> None:
        self.assert_refused(
            b'<!DOCTYPE a [<!ENTITY b "c">]><Envelope>&b;</Envelope>',
            'package.ovf-invalid',
        )

    def test_document_type(self) -> None:
        self.assert_refused(
            b'<!DOCTYPE Envelope><Envelope><VirtualSystem/></Envelope>',
            'package.ovf-invalid',
        )

    def test_several_systems(self) -> None:
        self.assert_refused(
            b'<Envelope><VirtualSystem/><VirtualSystem/></Envelope>',
            'package.virtual-systems',
        )

    def test_too_large(self) -> None:
        self.assert_refused(
            b' ' * (4 * 1024 * 1024 + 1), 'package.ovf-too-large'
        )

    def test_hostile_numbers(self) -> None:
        text = self.replaced(
            'ovf:capacity="8589934592"', f'ovf:capacity="{"9" * 5000}"'
        )
        self.assertIsNone(parse(text).disks[0].capacity)


class UnitTest(unittest.TestCase):
    def test_known_units(self) -> None:
        for unit, factor in (
            ('byte * 2^20', 1 << 20),
            ('byte*2^30', 1 << 30),
            ('bytes * 10^3', 1000),
            ('byte * 1024', 1024),
            ('MegaBytes', 1 << 20),
            ('GB', 1 << 30),
            ('byte', 1),
            (None, 7),
            ('', 7),
        ):
            with self.subTest(unit=unit):
                self.assertEqual(factor, ovf_xml.unit_factor(unit, 7))

    def test_unknown_units(self) -> None:
        for unit in ('parsec', 'byte * 9999^99', 'byte * 2^20 * 2', '2^20'):
            with self.subTest(unit=unit):
                self.assertIsNone(ovf_xml.unit_factor(unit, 1))
