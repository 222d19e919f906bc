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


"""A driver package in a Windows 10 in memory: whole, and written once."""

import unittest

from xenimport.guest import registry
from xenimport.remediation.windows import injection
from xenimport.remediation.windows import system
from xenimport.remediation.windows import virtio_package
from xenimport.tests.unit.remediation import windows_fakes
from xenimport.tests import windows_drivers

VALUE = registry.Value
CONFIG = 'Windows/System32/config'
TEN = system.Release(10, 0, 19045, False, 'amd64', 'Windows 10')
STORE = 'Windows/System32/DriverStore/FileRepository'
CATALOGS = 'Windows/System32/CatRoot/{F750E6C3-38EE-11D1-85E5-00C04FC295EE}'
FILES = {
    'viostor.inf': windows_drivers.inf('viostor'),
    'viostor.sys': windows_drivers.program(),
    'viostor.cat': b'catalog',
}


class ModernWindowsTest(unittest.TestCase):
    def setUp(self):
        self.guest = windows_fakes.FakeWindows(
            {'/dev/sda2': {'Windows/INF/oem0.inf': b'of another'}},
            {
                '/dev/sda2': {
                    f'{CONFIG}/SYSTEM': {
                        'Select': [
                            VALUE.dword('Current', 1),
                            VALUE.dword('Default', 2),
                        ],
                        'ControlSet001\\Services': [],
                        'ControlSet002\\Services': [],
                        'DriverDatabase': [VALUE.binary('OemInfMap', b'\x40')],
                    }
                }
            },
            operating_system=windows_fakes.system(major=10, minor=0),
        )
        self.package = virtio_package.read(
            'viostor', 'viostor.inf', FILES, TEN, 'here'
        )

    def inject(self):
        injector = injection.Injector(self.guest, 'windows.storage-driver')
        changes = injector.inject(self.package, 'a reason')
        self.guest.commit()
        return changes

    def test_files_are_where_windows_has_them(self):
        self.inject()
        store = f'{STORE}/{self.package.stored}'
        for path, data in {
            'Windows/System32/drivers/viostor.sys': FILES['viostor.sys'],
            'Windows/INF/oem0.inf': b'of another',
            'Windows/INF/oem2.inf': FILES['viostor.inf'],
            f'{CATALOGS}/oem2.cat': b'catalog',
            f'{store}/viostor.inf': FILES['viostor.inf'],
            f'{store}/viostor.sys': FILES['viostor.sys'],
            f'{store}/viostor.cat': b'catalog',
        }.items():
            with self.subTest(path):
                self.assertEqual(data, self.guest.windows.read(path))

    def test_entries_are_whole(self):
        self.inject()
        tree = self.guest.hive('/dev/sda2', f'{CONFIG}/SYSTEM')
        stored = self.package.stored
        (numbers,) = tree['DriverDatabase']
        self.assertEqual(b'\x60', numbers.data)
        for device in ('1001', '1042'):
            names = [
                value
                for path, values in tree.items()
                if path.startswith(
                    f'DriverDatabase\\DeviceIds\\PCI\\VEN_1AF4&DEV_{device}'
                )
                for value in values
            ]
            self.assertIn(VALUE.binary('oem2.inf', b'\x01\xff\x00\x00'), names)
        self.assertIn(
            VALUE.sz('Active', stored),
            tree['DriverDatabase\\DriverInfFiles\\oem2.inf'],
        )
        self.assertIn(
            VALUE.sz('', 'oem2.inf'),
            tree[f'DriverDatabase\\DriverPackages\\{stored}'],
        )
        for number in (1, 2):
            place = f'ControlSet00{number}\\Services\\viostor'
            self.assertIn(VALUE.dword('Start', 0), tree[place])
            self.assertIn(
                VALUE.dword('BusType', 1), tree[f'{place}\\Parameters']
            )
            self.assertIn(
                VALUE.dword('5', 1),
                tree[f'{place}\\Parameters\\PnpInterface'],
            )

    def test_second_time_changes_nothing(self):
        self.assertNotEqual([], self.inject())
        self.assertEqual([], self.inject())
