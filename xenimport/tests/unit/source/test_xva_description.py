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


"""What ``ova.xml`` says."""

import typing
import unittest

from xenimport import exceptions
from xenimport import model
from xenimport.source import base
from xenimport.source import xva_description
from xenimport.tests import xva_packages

MIB = xva_packages.MIB


def disk(identity: str, device: str = '0', size: int = MIB) -> typing.Any:
    return xva_packages.Disk(identity, bytes(size), device)


class DescriptionTestCase(unittest.TestCase):
    def parse(
        self,
        objects: typing.Sequence[xva_packages.Record],
        system: str | None = None,
    ) -> xva_description.Description:
        return xva_description.parse(
            xva_packages.description(objects),
            'p: ova.xml',
            base.Request(system=system),
        )

    def guest(
        self, *disks: xva_packages.Disk, **fields: typing.Any
    ) -> xva_description.Description:
        return self.parse(
            xva_packages.guest(disks or [disk('Ref:1')], **fields)
        )

    def assert_refused(
        self, text: bytes, error_id: str, system: str | None = None
    ) -> str:
        with self.assertRaises(exceptions.PackageError) as caught:
            xva_description.parse(
                text, 'p: ova.xml', base.Request(system=system)
            )
        self.assertEqual(error_id, caught.exception.id)
        self.assertEqual('p: ova.xml', caught.exception.where)
        return str(caught.exception)


class SystemTest(DescriptionTestCase):
    def test_fields(self) -> None:
        found = self.guest()
        self.assertEqual('guest', found.name)
        self.assertEqual(4, found.vcpus)
        self.assertEqual(2 << 30, found.memory)
        self.assertEqual('XCP-ng 8.2.1', found.creator)
        self.assertEqual((), found.findings)

    def test_second_best_fields(self) -> None:
        found = self.guest(VCPUs_max='0', memory_static_max='')
        self.assertEqual((2, 1 << 30), (found.vcpus, found.memory))
        found = self.guest(
            VCPUs_max='x', VCPUs_at_startup='-1', memory_static_max=[],
            memory_dynamic_max='9' * 30,
        )  # fmt: skip
        self.assertEqual((None, None), (found.vcpus, found.memory))

    def test_firmware(self) -> None:
        for policy, parameters, expected in (
            ('BIOS order', {'order': 'c'}, model.Firmware.BIOS),
            ('BIOS order', {'firmware': 'uefi'}, model.Firmware.UEFI),
            ('', {'firmware': 'bios'}, model.Firmware.BIOS),
            ('', {}, None),
        ):
            with self.subTest(policy=policy, parameters=parameters):
                found = self.guest(
                    HVM_boot_policy=policy, HVM_boot_params=parameters
                )
                self.assertEqual(expected, found.firmware)

    def test_settings(self) -> None:
        found = self.guest(
            xva_packages.Disk('Ref:1', b'x' * 512, '1', bootable=True),
            HVM_boot_policy='',
            HVM_boot_params={},
            PV_bootloader='pygrub',
            PV_args='console=hvc0 root=/dev/xvda1',
        )
        self.assertEqual(
            {
                'PV_bootloader': 'pygrub',
                'PV_args': 'console=hvc0 root=/dev/xvda1',
                'platform': 'nx=true;viridian=true',
                'bootable': '1',
            },
            found.settings,
        )

    def test_nics(self) -> None:
        nics = [
            *xva_packages.network('10', '', 'third'),
            *xva_packages.network('2', '00:16:3E:AA:BB:CC', 'second'),
            *xva_packages.network('0', '00:16:3e:00:00:01', 'first'),
            *xva_packages.network('1', '00:16:3e:00:00:02', 'x', 'Ref:77'),
        ]
        found = self.parse([*xva_packages.guest([disk('Ref:1')]), *nics]).nics
        self.assertEqual(
            (
                model.Nic('0', '00:16:3e:00:00:01', 'first'),
                model.Nic('2', '00:16:3e:aa:bb:cc', 'second'),
                model.Nic('10', None, 'third'),
            ),
            found,
        )

    def test_suspended(self) -> None:
        (finding,) = self.guest(power_state='Suspended').findings
        self.assertEqual('package.xva-suspended', finding.id)
        self.assertEqual(model.Severity.WARNING, finding.severity)
        for state in ('Running', 'Paused'):
            self.assertEqual((), self.guest(power_state=state).findings)

    def test_typed_values(self) -> None:
        # Other writers state types; xapi leaves numbers as text.
        text = (
            xva_packages.description(xva_packages.guest([disk('Ref:1')]))
            .replace(b'<value>4</value>', b'<value><int>4</int></value>')
            .replace(
                b'<value>guest</value>',
                b'<value>\n <string>a &amp; b</string>\n</value>',
            )
        )
        found = xva_description.parse(text, 'p')
        self.assertEqual(('a & b', 4), (found.name, found.vcpus))


class ChoiceTest(DescriptionTestCase):
    def two(self) -> list[xva_packages.Record]:
        return [
            *xva_packages.guest([disk('Ref:1')], 'Ref:0', name_label='web'),
            *xva_packages.guest(
                [disk('Ref:2')], 'Ref:9', name_label='db', uuid='u-9'
            ),
        ]

    def test_by_name_or_uuid(self) -> None:
        for wanted in ('db', 'u-9'):
            found = self.parse(self.two(), wanted)
            self.assertEqual('db', found.name)
            self.assertEqual(['Ref:2'], [item.id for item in found.disks])
            # The other's disks are there as well, and known.
            self.assertEqual({'Ref:1', 'Ref:2'}, found.vdis)

    def test_several(self) -> None:
        text = xva_packages.description(self.two())
        message = self.assert_refused(text, 'package.virtual-systems')
        self.assertIn('web', message)
        self.assertIn('db (uuid u-9)', message)

    def test_unknown(self) -> None:
        text = xva_packages.description(self.two())
        message = self.assert_refused(text, 'package.system-unknown', 'mail')
        self.assertIn('--system mail', message)
        self.assertIn('web', message)

    def test_snapshots_and_templates_are_left_out(self) -> None:
        for field in ('is_a_snapshot', 'is_a_template'):
            other = xva_packages.guest(
                [disk('Ref:2')], 'Ref:9', name_label='old', **{field: True}
            )
            found = self.parse([*other, *xva_packages.guest([disk('Ref:1')])])
            self.assertEqual('guest', found.name)

    def test_snapshot_by_itself(self) -> None:
        found = self.guest(is_a_snapshot=True, is_a_template=True)
        self.assertEqual('guest', found.name)

    def test_name_of_the_only_one(self) -> None:
        objects = xva_packages.guest([disk('Ref:1')])
        self.assertEqual('guest', self.parse(objects, 'guest').name)
        self.assert_refused(
            xva_packages.description(objects),
            'package.system-unknown',
            'other',
        )


class DiskTest(DescriptionTestCase):
    def test_order_of_devices(self) -> None:
        found = self.guest(
            disk('Ref:1', '10'), disk('Ref:2', '2'), disk('Ref:3', '0')
        )
        self.assertEqual(
            ['Ref:3', 'Ref:2', 'Ref:1'], [item.id for item in found.disks]
        )

    def test_order_of_named_devices(self) -> None:
        found = self.guest(
            disk('Ref:1', 'xvdab'), disk('Ref:2', 'xvdaa'),
            disk('Ref:3', 'xvdz'), disk('Ref:4', 'xvdb'),
            disk('Ref:5', 'hda'), disk('Ref:6', 'autodetect'),
        )  # fmt: skip
        self.assertEqual(
            ['Ref:5', 'Ref:4', 'Ref:3', 'Ref:2', 'Ref:1', 'Ref:6'],
            [item.id for item in found.disks],
        )

    def test_nothing_attached(self) -> None:
        objects = xva_packages.guest([disk('Ref:1')])
        for identity in ('', 'OpaqueRef:NULL', 'Ref:NULL'):
            drive = next(o for o in objects if o['id'] == 'Ref:0-cd')
            drive['snapshot'].update(VDI=identity, type='Disk')
            self.assertEqual(1, len(self.parse(objects).disks))

    def test_what_is_known_of_a_disk(self) -> None:
        (found,) = self.guest(disk('Ref:7', '3', 5 * MIB)).disks
        self.assertEqual(
            xva_description.Disk('Ref:7', 'disk 3', 5 * MIB, '3'), found
        )

    def test_cds_are_no_disks(self) -> None:
        objects = xva_packages.guest([disk('Ref:1')])
        drive = next(o for o in objects if o['id'] == 'Ref:0-cd')
        drive['snapshot']['VDI'] = 'Ref:66'
        found = self.parse(objects)
        self.assertEqual(['Ref:1'], [item.id for item in found.disks])

    def test_suspended_memory_is_no_disk(self) -> None:
        memory = xva_packages.record(
            'VDI', 'Ref:5', {'virtual_size': '1024', 'type': 'suspend'}
        )
        found = self.parse([*xva_packages.guest([disk('Ref:1')]), memory])
        self.assertEqual(['Ref:1'], [item.id for item in found.disks])
        self.assertIn('Ref:5', found.vdis)

    def test_devices_that_only_the_vm_lists(self) -> None:
        objects = xva_packages.guest([disk('Ref:1')], VBDs=['Ref:0-vbd0'])
        for item in objects:
            item['snapshot'].pop('VM', None)
        self.assertEqual(1, len(self.parse(objects).disks))

    def test_attached_twice(self) -> None:
        found = self.guest(disk('Ref:1', '0'), disk('Ref:1', '1'))
        self.assertEqual(['0'], [item.device for item in found.disks])

    def test_not_described(self) -> None:
        objects = [
            item
            for item in xva_packages.guest([disk('Ref:1')])
            if item['class'] != 'VDI'
        ]
        message = self.assert_refused(
            xva_packages.description(objects), 'package.xva-description'
        )
        self.assertIn("'Ref:1'", message)

    def test_without_size(self) -> None:
        for size in ('', '0', '-512', '1e9', '9' * 19):
            objects = xva_packages.guest([disk('Ref:1')])
            objects[-1]['snapshot']['virtual_size'] = size
            with self.subTest(size=size):
                self.assert_refused(
                    xva_packages.description(objects),
                    'package.xva-description',
                )


class HostileTest(DescriptionTestCase):
    def test_ancient_form(self) -> None:
        text = self.assert_refused(
            b'<?xml version="1.0" ?><appliance version="0.1"><vm/>'
            b'</appliance>',
            'package.xva-ancient',
        )
        self.assertIn('export it again', text)

    def test_entities(self) -> None:
        for text in (
            b'<!DOCTYPE value><value/>',
            b'<!DOCTYPE v [<!ENTITY a "b">]><value>&a;</value>',
            b'<!DOCTYPE v [<!ENTITY a SYSTEM "file:///etc/passwd">]>'
            b'<value>&a;</value>',
        ):
            self.assertIn(
                'entity declaration',
                self.assert_refused(text, 'package.xva-description'),
            )

    def test_other_documents(self) -> None:
        for text in (
            b'',
            b'no xml',
            b'<value>',
            b'<html/>',
            b'<value/><value/>',
            b'<value>text</value>',
            b'<value><struct><member><value>1</value></member></struct>'
            b'</value>',
            b'<?xml version="1.0" encoding="none"?><value/>',
            b'<value><struct/></value>',
            b'<value><array><data/></array></value>',
            b'\xff\xfe<',
            xva_packages.description([]),
            xva_packages.value({'version': 1, 'objects': 'x'}).encode(),
            xva_packages.value({'objects': ['x', {'class': 'VM'}]}).encode(),
        ):
            with self.subTest(text=text[:60]):
                self.assert_refused(text, 'package.xva-description')

    def test_wrong_types(self) -> None:
        # Lists where text is wanted, and the other way round.
        found = self.guest(
            name_label=['a'],
            VBDs='Ref:1',
            VIFs={'a': 'b'},
            platform='x',
            HVM_boot_params=['firmware'],
            HVM_boot_policy={},
        )
        self.assertEqual(('', None), (found.name, found.firmware))
        self.assertEqual({'platform': 'x'}, found.settings)

    def test_deep(self) -> None:
        deep = b'<value><array><data>' * 100_000
        self.assert_refused(deep, 'package.xva-description')

    def test_many_elements(self) -> None:
        many = b'<value><array><data>' + b'<value/>' * 1_100_000
        message = self.assert_refused(many, 'package.xva-description')
        self.assertIn('more elements than any', message)
