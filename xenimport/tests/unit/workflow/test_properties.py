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

"""Image properties, as Nova and Glance document them."""

from __future__ import annotations

import dataclasses
import typing
import unittest
from unittest import mock

from xenimport import exceptions
from xenimport.guest import guest as guest_room
from xenimport.guest import volumes
from xenimport import model
from xenimport.workflow import properties

GIB = 1 << 30
SYSTEM = model.VirtualSystem(
    'web', model.Package('web.ova', 'ova'), (), memory=2 * GIB
)
DEBIAN = model.OperatingSystem(
    'linux', 'debian', 12, 5, 'Debian 12', 'x86_64', '/dev/sda1'
)


class ImagePropertiesTest(unittest.TestCase):
    def of(
        self,
        bus: str = 'auto',
        *,
        system: model.VirtualSystem = SYSTEM,
        guest: model.OperatingSystem | None = DEBIAN,
        disk: int = 0,
        **facts: typing.Any,
    ) -> dict[str, str]:
        return properties.image_properties(system, guest, disk, bus, facts)

    def version(self, **values: typing.Any) -> str | None:
        return self.of(guest=dataclasses.replace(DEBIAN, **values)).get(
            'os_version'
        )

    def test_linux_on_virtio(self) -> None:
        self.assertEqual(
            {
                'hw_disk_bus': 'virtio',
                'hw_vif_model': 'virtio',
                'hw_firmware_type': 'bios',
                'hw_rng_model': 'virtio',
                'os_type': 'linux',
                'os_distro': 'debian',
                'os_version': '12',
                'architecture': 'x86_64',
            },
            self.of(),
        )

    def test_scsi_is_virtio_scsi(self) -> None:
        found = self.of('scsi')
        self.assertEqual('scsi', found['hw_disk_bus'])
        self.assertEqual('virtio-scsi', found['hw_scsi_model'])

    def test_virtio_names_no_scsi_model(self) -> None:
        self.assertNotIn('hw_scsi_model', self.of('virtio'))

    def test_machine_type(self) -> None:
        uefi = dataclasses.replace(SYSTEM, firmware=model.Firmware.UEFI)
        for bus, system, expected in (
            ('virtio', SYSTEM, None),
            ('scsi', SYSTEM, None),
            ('sata', SYSTEM, 'q35'),
            # q35 has no IDE.
            ('ide', SYSTEM, 'pc'),
            ('virtio', uefi, 'q35'),
            ('sata', uefi, 'q35'),
        ):
            with self.subTest(bus=bus, firmware=system.firmware):
                found = self.of(bus, system=system)
                self.assertEqual(expected, found.get('hw_machine_type'))

    def test_ide_with_uefi_is_refused(self) -> None:
        uefi = dataclasses.replace(SYSTEM, firmware=model.Firmware.UEFI)
        with self.assertRaises(exceptions.ConfigurationError) as caught:
            self.of('ide', system=uefi)
        self.assertEqual('properties.ide-uefi', caught.exception.id)
        self.assertEqual(2, caught.exception.exit_code)

    def test_package_says_the_firmware_before_the_disk(self) -> None:
        bios = dataclasses.replace(SYSTEM, firmware=model.Firmware.BIOS)
        for system, expected in ((SYSTEM, 'uefi'), (bios, 'bios')):
            found = self.of(system=system, firmware=model.Firmware.UEFI)
            self.assertEqual(expected, found['hw_firmware_type'])

    def test_what_the_guest_needs_decides_where_nobody_asked(self) -> None:
        bios = dataclasses.replace(SYSTEM, firmware=model.Firmware.BIOS)
        found = properties.image_properties(
            bios,
            DEBIAN,
            0,
            'auto',
            {},
            {
                'disk_bus': 'sata',
                'vif_model': 'e1000',
                'firmware': 'uefi',
                'os_distro': 'win2k8r2',
                'os_version': '6.1',
            },
        )
        for key, value in (
            ('hw_disk_bus', 'sata'),
            ('hw_vif_model', 'e1000'),
            ('hw_firmware_type', 'uefi'),
            ('hw_machine_type', 'q35'),
            ('os_distro', 'win2k8r2'),
            ('os_version', '6.1'),
        ):
            self.assertEqual(value, found[key], key)

    def test_the_user_decides_the_bus_before_the_guest(self) -> None:
        found = properties.image_properties(
            SYSTEM, DEBIAN, 0, 'scsi', {}, {'disk_bus': 'ide'}
        )
        self.assertEqual('scsi', found['hw_disk_bus'])

    def test_data_disk_gets_the_bus_that_the_guest_needs(self) -> None:
        found = properties.image_properties(
            SYSTEM, DEBIAN, 1, 'auto', {}, {'disk_bus': 'sata'}
        )
        self.assertEqual({'hw_disk_bus': 'sata'}, found)

    def test_agent_only_where_it_was_found(self) -> None:
        self.assertNotIn('hw_qemu_guest_agent', self.of())
        self.assertNotIn(
            'hw_qemu_guest_agent', self.of(qemu_guest_agent=False)
        )
        self.assertEqual(
            'yes', self.of(qemu_guest_agent=True)['hw_qemu_guest_agent']
        )

    def test_data_disk_is_no_system(self) -> None:
        self.assertEqual(
            {'hw_disk_bus': 'scsi', 'hw_scsi_model': 'virtio-scsi'},
            self.of('scsi', disk=1, qemu_guest_agent=True),
        )

    def test_unknown_system_gets_no_os_properties(self) -> None:
        for key in self.of(guest=None):
            self.assertTrue(key.startswith('hw_'), key)

    def test_never_what_narrows_the_hosts(self) -> None:
        found = self.of(qemu_guest_agent=True)
        for key in ('hypervisor_type', 'vm_mode', 'hw_video_model'):
            self.assertNotIn(key, found)

    def test_windows(self) -> None:
        found = self.of(
            guest=model.OperatingSystem(
                'windows',
                'windows',
                10,
                0,
                'Windows Server 2019',
                'x86_64',
                '/dev/sda2',
            )
        )
        self.assertEqual('windows', found['os_type'])
        self.assertEqual('10.0', found['os_version'])

    def test_version(self) -> None:
        for distribution, major, minor, expected in (
            ('debian', 12, 5, '12'),
            ('ubuntu', 22, 4, '22.04'),
            ('centos', 6, 10, '6.10'),
            ('centos', 9, 0, '9'),
            ('sles', 15, 5, '15.5'),
            ('archlinux', 0, 0, None),
        ):
            with self.subTest(distribution=distribution, major=major):
                self.assertEqual(
                    expected,
                    self.version(
                        distribution=distribution, major=major, minor=minor
                    ),
                )

    def test_architecture_as_nova_names_it(self) -> None:
        old = dataclasses.replace(DEBIAN, architecture='i386')
        self.assertEqual('i686', self.of(guest=old)['architecture'])

    def test_unknown_is_left_out(self) -> None:
        odd = dataclasses.replace(
            DEBIAN, distribution='unknown', architecture='unknown'
        )
        found = self.of(guest=odd)
        self.assertNotIn('os_distro', found)
        self.assertNotIn('architecture', found)


class MinimumTest(unittest.TestCase):
    def test_disk_in_whole_gib(self) -> None:
        self.assertEqual(10, properties.min_disk(10 * GIB))
        self.assertEqual(11, properties.min_disk(10 * GIB + 1))
        self.assertEqual(1, properties.min_disk(512))

    def test_ram_in_mib(self) -> None:
        self.assertEqual(2048, properties.min_ram(2 * GIB))
        self.assertEqual(0, properties.min_ram(None))


class GuestFactsTest(unittest.TestCase):
    def guest(
        self, table: str | None, types: tuple[str, ...], *files: str
    ) -> typing.Any:
        guest = mock.create_autospec(guest_room.Guest, instance=True)
        guest.operating_system = DEBIAN
        guest.windows = None
        guest.drives = ('/dev/sda',)
        guest.exists.side_effect = files.__contains__
        guest.partition_table.return_value = table
        guest.partitions.return_value = tuple(
            guest_room.Partition(n, f'/dev/sda{n}', 0, 0, kind)
            for n, kind in enumerate(types, 1)
        )
        return guest

    # UEFI 2.10, table 5.7; GRUB's manual, "BIOS installation".
    EFI = 'C12A7328-F81F-11D2-BA4B-00A0C93EC93B'
    BIOS = '21686148-6449-6E6F-744E-656564454649'

    def test_agent(self) -> None:
        for files, expected in (((), False), (('/usr/sbin/qemu-ga',), True)):
            guest = self.guest('msdos', (), *files)
            self.assertIs(
                expected,
                properties.guest_facts(guest)['qemu_guest_agent'],
            )

    def test_agent_of_windows_is_looked_for_on_its_volume(self) -> None:
        path = '/Program Files/Qemu-ga/qemu-ga.exe'
        for files, expected in (((), False), ((path,), True)):
            guest = self.guest('msdos', (), path)
            guest.operating_system = dataclasses.replace(
                DEBIAN, family='windows'
            )
            guest.windows = mock.create_autospec(volumes.Volume, instance=True)
            guest.windows.exists.side_effect = files.__contains__
            self.assertIs(
                expected,
                properties.guest_facts(guest)['qemu_guest_agent'],
            )

    def test_firmware(self) -> None:
        for table, types, expected in (
            ('gpt', (self.EFI,), model.Firmware.UEFI),
            ('gpt', (self.EFI, self.BIOS), None),
            ('gpt', (), None),
            ('msdos', (), None),
            (None, (), None),
        ):
            with self.subTest(table=table, types=types):
                facts = properties.guest_facts(self.guest(table, types))
                self.assertEqual(expected, facts.get('firmware'))

    def test_no_system(self) -> None:
        guest = self.guest('msdos', ())
        guest.operating_system = None
        self.assertEqual({}, properties.guest_facts(guest))
