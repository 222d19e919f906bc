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


"""Which Windows it is.

Expected short ids: osinfo-db 0.20221130 (``osinfo-query os``), by hand
from Microsoft's release information for the builds.
"""

import typing
import unittest

from xenimport import exceptions
from xenimport.guest import guest as guest_room
from xenimport.guest import registry
from xenimport.remediation.windows import releases
from xenimport.remediation.windows import system
from xenimport.tests.unit.remediation import windows_fakes

_VERSION = 'Microsoft\\Windows NT\\CurrentVersion'


class ShortIdTest(unittest.TestCase):
    def test_every_release(self):
        for version, build, server, expected in (
            ((5, 1), 2600, False, 'winxp'),
            ((5, 2), 3790, False, 'winxp'),
            ((5, 2), 3790, True, 'win2k3'),
            ((6, 0), 6002, False, 'winvista'),
            ((6, 0), 6002, True, 'win2k8'),
            ((6, 1), 7601, False, 'win7'),
            ((6, 1), 7601, True, 'win2k8r2'),
            ((6, 2), 9200, False, 'win8'),
            ((6, 2), 9200, True, 'win2k12'),
            ((6, 3), 9600, False, 'win8.1'),
            ((6, 3), 9600, True, 'win2k12r2'),
            ((10, 0), 10240, False, 'win10'),
            ((10, 0), 19045, False, 'win10'),
            ((10, 0), 22000, False, 'win11'),
            ((10, 0), 26100, False, 'win11'),
            ((10, 0), 14393, True, 'win2k16'),
            ((10, 0), 17134, True, 'win2k16'),
            ((10, 0), 17763, True, 'win2k19'),
            ((10, 0), 19042, True, 'win2k19'),
            ((10, 0), 20348, True, 'win2k22'),
            ((10, 0), 25398, True, 'win2k22'),
            ((10, 0), 26100, True, 'win2k25'),
        ):
            with self.subTest(version=version, build=build, server=server):
                self.assertEqual(
                    expected, releases.short_id(version, build, server)
                )

    def test_unknown(self):
        self.assertEqual('', releases.short_id((11, 0), 30000, False))
        self.assertEqual('', releases.short_id((0, 0), 0, True))


class ReleaseTest(unittest.TestCase):
    def release(
        self,
        software: list[registry.Value],
        options: list[registry.Value] | None = None,
        **fields: typing.Any,
    ) -> tuple[system.Release, dict[str, str]]:
        guest = windows_fakes.FakeWindows(
            hives={
                '/dev/sda2': {
                    'Windows/System32/config/SOFTWARE': {_VERSION: software},
                    'Windows/System32/config/SYSTEM': {
                        'Select': [registry.Value.dword('Current', 1)],
                        'ControlSet001\\Control\\ProductOptions': options
                        or [],
                    },
                }
            },
            operating_system=windows_fakes.system(**fields),
        )
        real = typing.cast(guest_room.Guest, guest)
        return system.release(real), system.release_properties(real)

    def test_2008_r2(self):
        found, properties = self.release(
            [
                registry.Value.sz('CurrentVersion', '6.1'),
                registry.Value.sz('CurrentBuildNumber', '7601'),
                registry.Value.sz('InstallationType', 'Server'),
            ]
        )
        self.assertEqual(
            system.Release(
                6, 1, 7601, True, 'amd64', 'Windows Server 2008 R2 Standard'
            ),
            found,
        )
        self.assertEqual(
            {'os_distro': 'win2k8r2', 'os_version': '6.1'}, properties
        )

    def test_windows_11_still_calls_itself_6_3(self):
        found, properties = self.release(
            [
                registry.Value.sz('CurrentVersion', '6.3'),
                registry.Value.dword('CurrentMajorVersionNumber', 10),
                registry.Value.dword('CurrentMinorVersionNumber', 0),
                registry.Value.sz('CurrentBuild', '22631'),
                registry.Value.sz('InstallationType', 'Client'),
                registry.Value.sz('ProductName', 'Windows 10 Pro'),
            ],
            major=6,
            minor=3,
        )
        self.assertEqual((10, 0), found.version)
        self.assertEqual(
            {'os_distro': 'win11', 'os_version': '10.0'}, properties
        )

    def test_multi_session_is_a_client(self):
        found, _properties = self.release(
            [registry.Value.sz('InstallationType', 'Client')],
            [registry.Value.sz('ProductType', 'ServerNT')],
        )
        self.assertFalse(found.server)

    def test_server_core(self):
        found, _properties = self.release(
            [registry.Value.sz('InstallationType', 'Server Core')]
        )
        self.assertTrue(found.server)

    def test_product_type_where_there_is_no_installation_type(self):
        for kind, server in (
            ('WinNT', False),
            ('ServerNT', True),
            ('LanmanNT', True),
        ):
            with self.subTest(kind):
                found, _properties = self.release(
                    [registry.Value.sz('CurrentVersion', '5.2')],
                    [registry.Value.sz('ProductType', kind)],
                )
                self.assertEqual(server, found.server)

    def test_values_that_are_missing_or_nonsense(self):
        for values in (
            [],
            [
                registry.Value.sz('CurrentVersion', '6'),
                registry.Value.sz('CurrentBuildNumber', '9' * 5000),
            ],
            [
                registry.Value.sz('CurrentVersion', '\u0667.\u0662'),
                registry.Value.sz('CurrentBuildNumber', 'x'),
                registry.Value.sz('CurrentMajorVersionNumber', '10'),
            ],
            [
                registry.Value('CurrentVersion', registry.SZ, b'6\0.'),
                registry.Value('CurrentBuild', registry.BINARY, b'7'),
                registry.Value('InstallationType', registry.SZ, b'\0\xd8'),
            ],
        ):
            with self.subTest(values):
                found, properties = self.release(values)
                self.assertEqual((6, 1), found.version)
                self.assertEqual(0, found.build)
                self.assertEqual('6.1', properties['os_version'])

    def test_no_property_of_a_windows_that_nobody_knows(self):
        _found, properties = self.release(
            [registry.Value.sz('CurrentVersion', '12.0')]
        )
        self.assertEqual({}, properties)

    def test_no_property_where_a_hive_cannot_be_read(self):
        guest = windows_fakes.FakeWindows()
        real = typing.cast(guest_room.Guest, guest)
        self.assertEqual({}, system.release_properties(real))
        with self.assertRaises(exceptions.GuestError):
            system.release(real)

    def test_no_such_key(self):
        guest = windows_fakes.FakeWindows(
            hives={
                '/dev/sda2': {
                    'Windows/System32/config/SOFTWARE': {},
                    'Windows/System32/config/SYSTEM': {},
                }
            }
        )
        self.assertEqual(
            system.Release(
                6, 1, 0, True, 'amd64', 'Windows Server 2008 R2 Standard'
            ),
            system.release(typing.cast(guest_room.Guest, guest)),
        )


if __name__ == '__main__':
    unittest.main()
