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


import struct
import typing
import unittest
import uuid

from xenimport.guest import guest as guest_room
from xenimport.guest import registry
from xenimport.remediation.windows import driver_packages
from xenimport.tests.unit.remediation import windows_fakes
from xenimport.tests.unit.remediation import windows_xen

#: The table of the guest that this project began with.
_FOUNDING = """
oem2.inf | xennet.inf  | Net         | 2/24/2016 | 8.1.0.42
oem3.inf | xenvif.inf  | System      | 3/23/2016 | 8.1.0.62
oem4.inf | xenvbd.inf  | SCSIAdapter | 2/29/2016 | 8.1.0.130
oem5.inf | xeniface.inf| System      | 1/22/2016 | 8.1.0.26
oem6.inf | xenbus.inf  | System      | 1/22/2016 | 8.1.0.63
"""
_DATABASE = 'DriverDatabase'
#: DriverPackages of the Windows 10 hive in dissect.regf's tests.
_PVSCSI = bytes.fromhex(
    '00ff0900000000007be9364d25e3ce11bfc108002be1031800c0b6192f3ad701'
    '00001100030001000000000000000000'
)


def packages(
    fake: windows_fakes.FakeWindows,
) -> tuple[driver_packages.DriverPackage, ...]:
    return driver_packages.packages(typing.cast(guest_room.Guest, fake))


def recorded(published: str, stored: str, **texts: str) -> windows_fakes.Tree:
    """What a DriverDatabase of Windows 10 says of a package."""
    return {
        _DATABASE: [],
        f'{_DATABASE}\\DriverInfFiles\\{published}': [
            registry.Value.multi_sz('', [stored]),
            registry.Value.sz('Active', stored),
        ],
        f'{_DATABASE}\\DriverPackages\\{stored}': [
            registry.Value.sz('', published),
            *(registry.Value.sz(key, text) for key, text in texts.items()),
            registry.Value.binary('Version', _PVSCSI),
        ],
    }


class PackagesTest(unittest.TestCase):
    def test_founding_table(self) -> None:
        found = packages(windows_xen.founding())
        rows = [
            tuple(cell.strip() for cell in line.split('|'))
            for line in _FOUNDING.strip().splitlines()
        ]
        self.assertEqual(
            rows,
            [
                (
                    item.published,
                    item.original,
                    item.class_name,
                    item.date,
                    item.version,
                )
                for item in found
            ],
        )
        for item in found:
            self.assertEqual('Citrix Systems, Inc.', item.provider)
            self.assertEqual('Xen Project', item.family)
            self.assertFalse(item.inbox)
        self.assertEqual(
            {
                'published_name': 'oem4.inf',
                'original_file_name': 'xenvbd.inf',
                'inbox': False,
                'class_name': 'SCSIAdapter',
                'provider_name': 'Citrix Systems, Inc.',
                'date': '2/29/2016',
                'version': '8.1.0.130',
                'family': 'Xen Project',
            },
            found[2].row(),
        )
        self.assertEqual(('xenbus', 'xenfilt'), found[4].services)

    def test_numbers_are_numbers(self) -> None:
        files = {
            f'Windows/INF/{name}': b'[Version]\nClass=Net\n'
            for name in ('oem10.inf', 'OEM9.INF', 'oem.inf', 'oemx.inf',
                         'myoem1.inf', 'oem1.inf.bak', 'oem7.PNF')
        }  # fmt: skip
        fake = windows_fakes.FakeWindows({windows_xen.DEVICE: files})
        fake.put_hive(
            windows_xen.DEVICE,
            windows_xen.SYSTEM,
            {'Select': [], 'ControlSet001': []},
        )
        self.assertEqual(
            ['oem9.inf', 'oem10.inf'],
            [item.published for item in packages(fake)],
        )

    def test_a_package_of_another(self) -> None:
        text = windows_xen.inf(
            'viostor',
            'SCSIAdapter',
            '11/20/2018',
            '62.76.104.15500',
            provider='Red Hat, Inc.',
        )
        fake = windows_xen.founding(
            files={'Windows/INF/oem7.inf': text.encode('utf-16')}
        )
        item = packages(fake)[-1]
        self.assertIsNone(item.family)
        # There is no copy of it in the store: dism shows it all the same.
        self.assertEqual('oem7.inf', item.original)
        self.assertEqual('11/20/2018', item.date)

    def test_what_came_with_windows_is_not_looked_at(self) -> None:
        fake = windows_xen.founding()
        packages(fake)
        asked = {str(args) for name, args in fake.calls if name == 'file_size'}
        self.assertNotEqual(set(), asked)
        self.assertEqual([], [path for path in asked if 'disk.inf' in path])

    def test_an_inf_that_was_changed(self) -> None:
        """The catalog's name leads to the store; nothing else is said."""
        text = windows_xen.inf('xenvif', 'System', '01/01/2020', '1.2')
        fake = windows_xen.founding(
            files={'Windows/INF/oem3.inf': text.encode()}
        )
        item = packages(fake)[1]
        self.assertEqual('oem3.inf', item.published)
        self.assertEqual('xenvif.inf', item.original)
        self.assertEqual('', item.stored)

    def test_two_infs_of_one_size(self) -> None:
        fake = windows_xen.founding()
        data = fake.files['/sda2/Windows/INF/oem3.inf']
        place = f'{windows_xen.STORE}/aa.inf_amd64_neutral_0123456789abcdef'
        fake.files[f'/sda2/{place}/aa.inf'] = data[:-1] + b' '
        self.assertEqual('xenvif.inf', packages(fake)[1].original)

    def test_driver_database(self) -> None:
        """Windows 8 and later: the registry knows the name."""
        text = windows_xen.inf(
            'xenvbd', 'SCSIAdapter', '07/02/2024', '9.1.11.115'
        )
        stored = 'xenvbd.inf_amd64_9e7bfe6e33172952'
        tree = recorded('oem5.inf', stored, Provider='x', InfName='xenvbd.inf')
        fake = windows_xen.guest(tree, {'Windows/INF/oem5.inf': text.encode()})
        (item,) = packages(fake)
        self.assertEqual('xenvbd.inf', item.original)
        self.assertEqual('7/2/2024', item.date)
        self.assertEqual('9.1.11.115', item.version)
        self.assertEqual(stored, item.stored)

    def test_database_without_inf(self) -> None:
        """Real bytes: VMware's pvscsi 1.3.17.0 of 26 April 2021."""
        tree = recorded(
            'oem5.inf',
            'pvscsi.inf_amd64_9e7bfe6e33172952',
            Provider='VMware, Inc.',
            InfName='pvscsi.inf',
            Catalog='pvscsi.cat',
        )
        tree |= {
            f'ControlSet001\\Control\\Class\\{windows_xen.SCSI_CLASS}': [
                registry.Value.sz('Class', 'SCSIAdapter')
            ],
            f'{_DATABASE}\\DriverPackages\\pvscsi.inf_amd64_9e7bfe6e33172952'
            '\\Configurations\\pvscsi_inst.NT': [
                registry.Value.sz('Service', 'pvscsi')
            ],
        }
        (item,) = packages(windows_xen.guest(tree))
        self.assertEqual(
            (
                'pvscsi.inf',
                'SCSIAdapter',
                'VMware, Inc.',
                '4/26/2021',
                '1.3.17.0',
                ('pvscsi',),
            ),
            (
                item.original,
                item.class_name,
                item.provider,
                item.date,
                item.version,
                item.services,
            ),
        )

    def test_drivers_hive(self) -> None:
        """Classes that are not for booting have their own hive."""
        tree = recorded(
            'oem2.inf',
            'xennet.inf_amd64_9e7bfe6e33172952',
            Catalog='xennet.cat',
            InfName='xennet.inf',
        )
        fake = windows_xen.guest({})
        fake.put_hive(windows_xen.DEVICE, windows_xen.DRIVERS, tree)
        (item,) = packages(fake)
        self.assertEqual('xennet.inf', item.original)
        self.assertEqual('Xen Project', item.family)

    def test_dates(self) -> None:
        for text, date, version in (
            ('01/05/2020,1.2.3.4', '1/5/2020', '1.2.3.4'),
            ('1-5-2020', '1/5/2020', ''),
            ('2020/05/01,1', '', '1'),
            ('', '', ''),
        ):
            data = f'[Version]\nDriverVer={text}\n'.encode()
            fake = windows_xen.guest({}, {'Windows/INF/oem0.inf': data})
            (item,) = packages(fake)
            self.assertEqual((date, version), (item.date, item.version))

    def test_windows_without_drivers(self) -> None:
        self.assertEqual((), packages(windows_xen.guest({})))


class HostilePackagesTest(unittest.TestCase):
    def test_names_that_lead_out_of_the_store(self) -> None:
        for stored in (
            '..\\..\\xenvbd.inf_amd64_9e7bfe6e33172952',
            '',
            'x' * 70_000,
            '../../config',
        ):
            tree = recorded('oem1.inf', stored, InfName='xenvbd.inf')
            (item,) = packages(windows_xen.guest(tree))
            self.assertEqual('', item.stored)

    def test_versions(self) -> None:
        guid = uuid.UUID(windows_xen.NET_CLASS).bytes_le
        for data in (
            b'',
            b'\xff' * 48,
            b'\xff' * 47,
            struct.pack('<8x16sQ4H8x', guid, 0, 1, 2, 3, 4),
        ):
            tree = recorded(
                'oem1.inf', 'a.inf_x86_9e7bfe6e33172952', InfName='a.inf'
            )
            path = f'{_DATABASE}\\DriverPackages\\a.inf_x86_9e7bfe6e33172952'
            tree[path][-1] = registry.Value.binary('Version', data)
            (item,) = packages(windows_xen.guest(tree))
            self.assertEqual('a.inf', item.original)

    def test_an_inf_that_is_too_large_is_not_read(self) -> None:
        fake = windows_xen.guest(
            {}, {'Windows/INF/oem1.inf': bytes((4 << 20) + 1)}
        )
        (item,) = packages(fake)
        self.assertEqual('oem1.inf', item.original)

    def test_a_directory_by_the_name_of_an_inf(self) -> None:
        fake = windows_xen.guest({}, {'Windows/INF/oem1.inf/x': b''})
        (item,) = packages(fake)
        self.assertEqual('', item.class_name)

    def test_numbers_without_end(self) -> None:
        names = [f'Windows/INF/oem{"1" * 5000}.inf']
        names += [f'Windows/INF/oem{number}.inf' for number in range(1100)]
        fake = windows_xen.guest({}, dict.fromkeys(names, b''))
        self.assertEqual(1000, len(packages(fake)))


if __name__ == '__main__':
    unittest.main()
