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
from xenimport.remediation.windows import driver_packages
from xenimport.remediation.windows import injection
from xenimport.remediation.windows import package_removal
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

    def test_what_a_network_driver_sets_for_its_device(self):
        """As genuine packages have it: Configurations, section, Driver."""
        self.guest.put_hive(
            '/dev/sda2', f'{CONFIG}/DRIVERS', {'DriverDatabase': []}
        )
        files = {
            'netkvm.inf': windows_drivers.inf('netkvm'),
            'netkvm.sys': windows_drivers.program(),
        }
        self.package = virtio_package.read(
            'netkvm', 'netkvm.inf', files, TEN, 'here'
        )
        self.inject()
        tree = self.guest.hive('/dev/sda2', f'{CONFIG}/DRIVERS')
        place = f'DriverDatabase\\DriverPackages\\{self.package.stored}\\'
        place += 'Configurations\\netkvm_inst\\Driver'
        self.assertEqual([VALUE.dword('*IfType', 6)], tree[place])
        self.assertEqual(
            [VALUE.sz('Service', 'netkvm')], tree[f'{place}\\Ndi']
        )
        self.assertEqual(
            [
                VALUE.sz('UpperRange', 'ndis5'),
                VALUE.sz('LowerRange', 'ethernet'),
            ],
            tree[f'{place}\\Ndi\\Interfaces'],
        )

    def test_second_time_changes_nothing(self):
        self.assertNotEqual([], self.inject())
        self.assertEqual([], self.inject())

    def test_ids_and_texts_are_as_windows_writes_them(self):
        """As measured in a genuine Windows 10 hive, package vmci.inf."""
        self.inject()
        tree = self.guest.hive('/dev/sda2', f'{CONFIG}/SYSTEM')
        ids = 'DriverDatabase\\DeviceIds\\PCI\\VEN_1AF4&DEV_1001'
        self.assertEqual(
            [VALUE.binary('oem2.inf', b'\x01\xff\x00\x00')],
            tree[f'{ids}&SUBSYS_00021AF4&REV_00'],
        )
        # The second id of an INF's line is a compatible one.
        self.assertEqual(
            [VALUE.binary('oem2.inf', b'\x02\xff\x00\x00')], tree[ids]
        )
        package = f'DriverDatabase\\DriverPackages\\{self.package.stored}'
        self.assertEqual(
            [
                VALUE.sz('Configuration', 'viostor_inst'),
                VALUE.sz('Description', '%device_desc%'),
                VALUE.sz('Manufacturer', '%vendor%'),
            ],
            tree[f'{package}\\Descriptors\\PCI\\VEN_1AF4&DEV_1001'],
        )
        self.assertEqual(
            {
                'vendor': 'Red Hat, Inc.',
                'device_desc': 'Red Hat VirtIO viostor device',
            },
            {item.name: item.text for item in tree[f'{package}\\Strings']},
        )
        self.assertIn(
            VALUE.sz(
                'DisplayName',
                '@oem2.inf,%SERVICE_DESC%;Red Hat VirtIO viostor Service',
            ),
            tree['ControlSet001\\Services\\viostor'],
        )

    def test_network_goes_into_the_hive_of_drivers(self):
        self.guest.put_hive(
            '/dev/sda2', f'{CONFIG}/DRIVERS', {'DriverDatabase': []}
        )
        package = virtio_package.read(
            'netkvm',
            'netkvm.inf',
            {
                'netkvm.inf': windows_drivers.inf('netkvm'),
                'netkvm.sys': windows_drivers.program(),
            },
            TEN,
            'here',
        )
        injection.Injector(self.guest, 'windows.virtio-drivers').inject(
            package, 'a reason'
        )
        self.guest.commit()
        drivers = self.guest.hive('/dev/sda2', f'{CONFIG}/DRIVERS')
        self.assertIn(
            VALUE.sz('Service', 'netkvm'),
            drivers[
                f'DriverDatabase\\DriverPackages\\{package.stored}'
                '\\Configurations\\netkvm_inst'
            ],
        )
        tree = self.guest.hive('/dev/sda2', f'{CONFIG}/SYSTEM')
        self.assertIn(
            VALUE.dword('Start', 3), tree['ControlSet001\\Services\\netkvm']
        )
        self.assertFalse(
            [path for path in tree if path.startswith('DriverDatabase\\')]
        )

    def test_package_that_windows_staged_keeps_its_place(self):
        """Windows' own name for the store has another digest."""
        own = 'viostor.inf_amd64_0123456789abcdef'
        self.guest.files['/sda2/Windows/INF/oem1.inf'] = FILES['viostor.inf']
        tree = self.guest.hive('/dev/sda2', f'{CONFIG}/SYSTEM')
        infs = 'DriverDatabase\\DriverInfFiles'
        packages = 'DriverDatabase\\DriverPackages'
        tree.update(
            {
                infs: [],
                f'{infs}\\oem1.inf': [VALUE.multi_sz('', [own])],
                packages: [],
                f'{packages}\\{own}': [VALUE.sz('', 'oem1.inf')],
            }
        )
        self.inject()
        self.assertEqual(
            {own},
            {
                path.split('\\')[2]
                for path in tree
                if path.startswith(f'{packages}\\')
            },
        )
        self.assertIn(f'/sda2/{STORE}/{own}/viostor.sys', self.guest.files)
        self.assertNotIn('/sda2/Windows/INF/oem2.inf', self.guest.files)

    def test_package_is_listed_and_can_be_removed(self):
        before = {
            path: list(values)
            for path, values in self.guest.hive(
                '/dev/sda2', f'{CONFIG}/SYSTEM'
            ).items()
        }
        self.guest.put_hive('/dev/sda2', f'{CONFIG}/SOFTWARE', {})
        files = dict(self.guest.files)
        self.inject()
        packages = driver_packages.packages(self.guest)
        (found,) = (p for p in packages if p.published == 'oem2.inf')
        self.assertEqual(
            (
                'viostor.inf',
                'SCSIAdapter',
                'Red Hat, Inc.',
                '8/19/2024',
                '100.95.104.26200',
            ),
            (
                found.original,
                found.class_name,
                found.provider,
                found.date,
                found.version,
            ),
        )
        package_removal.Remover(self.guest, 'windows.xen-packages').remove(
            [found], packages
        )
        self.guest.commit()
        tree = self.guest.hive('/dev/sda2', f'{CONFIG}/SYSTEM')
        self.assertEqual(
            before['DriverDatabase'][0].data, tree['DriverDatabase'][0].data
        )
        left = [p for p in tree if p.startswith('DriverDatabase\\')]
        for path in left:
            with self.subTest(path):
                self.assertEqual([], tree[path])
                self.assertNotIn('oem2', path)
                self.assertNotIn('viostor', path)
        # The driver stays: it has no name of Xen's, nor has its service.
        files['/sda2/Windows/System32/drivers/viostor.sys'] = FILES[
            'viostor.sys'
        ]
        self.assertEqual(files, self.guest.files)


class SevenTest(unittest.TestCase):
    """Windows 7 binds by CriticalDeviceDatabase, in either architecture."""

    def guest(self, arch):
        return windows_fakes.FakeWindows(
            {},
            {
                '/dev/sda2': {
                    f'{CONFIG}/SYSTEM': {
                        'Select': [
                            VALUE.dword('Current', 1),
                            VALUE.dword('Default', 1),
                        ],
                        'ControlSet001\\Services': [],
                    }
                }
            },
            operating_system=windows_fakes.system(architecture=arch),
        )

    def test_disk_is_bound_before_plug_and_play(self):
        for arch, name in (('x86_64', 'amd64'), ('i386', 'x86')):
            with self.subTest(name):
                guest = self.guest(arch)
                package = virtio_package.read(
                    'viostor',
                    'viostor.inf',
                    {
                        **FILES,
                        'viostor.inf': windows_drivers.inf('viostor', name),
                    },
                    system.Release(6, 1, 7601, False, name, 'Windows 7'),
                    'here',
                )
                injector = injection.Injector(guest, 'windows.storage-driver')
                injector.inject(package, 'a reason')
                guest.commit()
                tree = guest.hive('/dev/sda2', f'{CONFIG}/SYSTEM')
                path = (
                    'ControlSet001\\Control\\CriticalDeviceDatabase\\'
                    'pci#ven_1af4&dev_1042'
                )
                self.assertIn(VALUE.sz('Service', 'viostor'), tree[path])
                stored = [
                    path
                    for path in guest.files
                    if f'viostor.inf_{name}_neutral_' in path
                ]
                self.assertEqual(3, len(stored))
                self.assertEqual([], injector.inject(package, 'a reason'))


class HostilePackageTest(unittest.TestCase):
    def test_names_that_lead_elsewhere(self):
        whole = windows_drivers.inf('viostor').decode('utf-16')
        for old, new in (
            ('AddService = viostor', 'AddService = ..\\..\\Setup'),
            ('= viostor_inst, PCI', '= a\\b, PCI'),
            ('%12%\\viostor.sys', '%12%\\a:viostor.sys'),
        ):
            with self.subTest(new):
                self.assertIn(old, whole)
                text = whole.replace(old, new)
                with self.assertRaisesRegex(
                    virtio_package.InvalidPackageError, 'is no name'
                ):
                    virtio_package.read(
                        'viostor',
                        'viostor.inf',
                        {
                            **FILES,
                            'a:viostor.sys': b'x',
                            'viostor.inf': text.encode('utf-16'),
                        },
                        TEN,
                        'here',
                    )
