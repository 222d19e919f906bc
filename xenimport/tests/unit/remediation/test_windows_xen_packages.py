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


import typing
import unittest

from xenimport.guest import guest as guest_room
from xenimport.guest import registry
from xenimport import model
from xenimport.remediation import base
from xenimport.remediation.windows import device_filters
from xenimport.remediation.windows import xen_packages
from xenimport.tests.unit.remediation import fakes
from xenimport.tests.unit.remediation import windows_fakes
from xenimport.tests.unit.remediation import windows_xen

_DATABASE = 'DriverDatabase'
_LOCKDOWN = (
    'Microsoft\\Windows\\CurrentVersion\\Setup\\PnpLockdownFiles\\'
    '%SystemRoot%/System32/drivers'
)
_UNINSTALL = 'Microsoft\\Windows\\CurrentVersion\\Uninstall'
_STORED = 'xenvbd.inf_amd64_9e7bfe6e33172952'
_OTHER = 'pvscsi.inf_amd64_0123456789abcdef'


def remove() -> xen_packages.XenPackages:
    return xen_packages.XenPackages(fakes.request(xen_drivers='remove'))


def without_filters(fake: windows_fakes.FakeWindows) -> None:
    check = device_filters.XenFilters(fakes.request())
    windows_xen.repair(check, fake)


def files(fake: windows_fakes.FakeWindows) -> set[str]:
    return {path.removeprefix('/sda2/') for path in fake.files}


def windows_10() -> windows_fakes.FakeWindows:
    """xenvbd as oem5, and pvscsi as oem12, in the layout of Windows 10.

    The keys are those that a real hive has for its pvscsi.
    """
    system: windows_fakes.Tree = {
        _DATABASE: [registry.Value.binary('OemInfMap', b'\x04\x08')],
        f'{_DATABASE}\\DriverInfFiles\\oem5.inf': [
            registry.Value.multi_sz('', [_STORED])
        ],
        f'{_DATABASE}\\DriverInfFiles\\oem12.inf': [
            registry.Value.multi_sz('', [_OTHER])
        ],
        f'{_DATABASE}\\DriverPackages\\{_STORED}': [
            registry.Value.sz('', 'oem5.inf'),
            registry.Value.sz('InfName', 'xenvbd.inf'),
            registry.Value.sz('Catalog', 'xenvbd.cat'),
        ],
        f'{_DATABASE}\\DriverPackages\\{_STORED}\\Configurations\\Inst.NT': [
            registry.Value.sz('Service', 'xenvbd')
        ],
        f'{_DATABASE}\\DriverPackages\\{_OTHER}': [
            registry.Value.sz('', 'oem12.inf'),
            registry.Value.sz('InfName', 'pvscsi.inf'),
        ],
        f'{_DATABASE}\\DeviceIds\\XENBUS\\VEN_XS0001&DEV_VBD': [
            registry.Value.binary('oem5.inf', b'\1\xff\0\0')
        ],
        f'{_DATABASE}\\DeviceIds\\PCI\\VEN_15AD&DEV_07C0': [
            registry.Value.binary('oem12.inf', b'\1\xff\0\0')
        ],
        f'{_DATABASE}\\DeviceIds\\{windows_xen.SCSI_CLASS}': [
            registry.Value('oem5.inf', registry.NONE, b''),
            registry.Value('oem12.inf', registry.NONE, b''),
        ],
        'ControlSet001\\Services\\xenvbd': [
            *windows_xen.service(0, 'xenvbd'),
            registry.Value.multi_sz('Owners', ['oem5.inf']),
        ],
        'ControlSet001\\Services\\pvscsi': windows_xen.service(0, 'pvscsi'),
    }
    software: windows_fakes.Tree = {
        f'{_LOCKDOWN}/xenvbd.sys': [
            registry.Value.multi_sz('Owners', ['oem5.inf'])
        ],
        f'{_LOCKDOWN}/xencrsh.sys': [
            registry.Value.multi_sz('Owners', ['OEM5.inf', 'oem12.inf'])
        ],
    }
    mine = windows_xen.inf(
        'xenvbd',
        'SCSIAdapter',
        '07/02/2024',
        '9.1.11.115',
        files=('xenvbd.sys', 'xencrsh.sys', 'ntfs.sys'),
    ).encode('utf-16')
    other = windows_xen.inf(
        'pvscsi',
        'SCSIAdapter',
        '04/26/2021',
        '1.3.17.0',
        files=('pvscsi.sys', 'XENCRSH.SYS'),
    ).encode()
    drivers = 'Windows/System32/drivers'
    fake = windows_xen.guest(
        system,
        {
            'Windows/INF/oem5.inf': mine,
            'Windows/INF/oem12.inf': other,
            f'{windows_xen.STORE}/{_STORED}/xenvbd.inf': mine,
            f'{windows_xen.STORE}/{_STORED}/xenvbd.sys': b'MZ',
            f'{windows_xen.STORE}/{_OTHER}/pvscsi.inf': other,
            f'{drivers}/xenvbd.sys': b'MZ',
            f'{drivers}/xencrsh.sys': b'MZ',
            f'{drivers}/ntfs.sys': b'MZ',
            f'{drivers}/pvscsi.sys': b'MZ',
        },
    )
    fake.put_hive(windows_xen.DEVICE, windows_xen.SOFTWARE, software)
    fake.put_hive(windows_xen.DEVICE, windows_xen.DRIVERS, {_DATABASE: []})
    return fake


class XenPackagesTest(unittest.TestCase):
    def test_founding_guest(self) -> None:
        check = xen_packages.XenPackages(fakes.request())
        fake = windows_xen.founding()
        (finding,) = windows_xen.diagnose(check, fake)
        self.assertIs(model.Severity.WARNING, finding.severity)
        self.assertEqual(
            '5 driver packages of Xen are installed', finding.title
        )
        self.assertIn(
            'oem2.inf (xennet.inf, Net, Citrix Systems, Inc., 2/24/2016, '
            '8.1.0.42); oem3.inf (xenvif.inf',
            finding.evidence,
        )
        self.assertIsNone(finding.repair)
        self.assertIn('pnputil', finding.fix)

    def test_without_xen(self) -> None:
        fake = windows_xen.guest({}, {'Windows/INF/oem1.inf': b'[Version]'})
        self.assertEqual([], windows_xen.diagnose(remove(), fake))


class RemovalTest(unittest.TestCase):
    """What dism /remove-driver does, before Windows 8."""

    def test_founding_guest(self) -> None:
        fake = windows_xen.founding()
        before = files(fake)
        without_filters(fake)
        changes = windows_xen.repair(remove(), fake)
        self.assertEqual([], windows_xen.diagnose(remove(), fake))
        left = files(fake)
        self.assertEqual(
            {
                'Windows/INF/disk.inf',
                f'{windows_xen.STORE}/disk.inf_amd64_neutral_10ce25bbc5a9cc43'
                '/disk.inf',
                'Windows/System32/drivers/disk.sys',
                'Windows/System32/drivers/vioscsi.sys',
                windows_xen.SYSTEM,
                windows_xen.SOFTWARE,
            },
            left,
        )
        paths = {item.path for item in changes}
        for path in before - left:
            directory = path.rpartition('/')[0]
            self.assertTrue({f'/{path}', f'/{directory}'} & paths, path)
        for item in changes:
            self.assertTrue(item.undo and item.before, item)
            self.assertEqual('absent', item.after)

    def test_services_of_every_control_set(self) -> None:
        fake = windows_xen.founding()
        without_filters(fake)
        windows_xen.repair(remove(), fake)
        tree = fake.hive(windows_xen.DEVICE, windows_xen.SYSTEM)
        for name in ('ControlSet001', 'ControlSet002'):
            services = f'{name}\\Services'
            critical = f'{name}\\Control\\CriticalDeviceDatabase'
            for service in ('xenbus', 'xenfilt', 'xenvbd', 'xennet'):
                self.assertNotIn(f'{services}\\{service}', tree)
            self.assertIn(f'{services}\\disk', tree)
            self.assertIn(f'{services}\\eventlog\\System\\xenvbd', tree)
            self.assertNotIn(f'{critical}\\PCI#VEN_5853&DEV_0001', tree)
            self.assertIn(f'{critical}\\PCI#CC_0101', tree)

    def test_never_while_a_filter_list_names_it(self) -> None:
        fake = windows_xen.founding()
        windows_xen.repair(remove(), fake)
        tree = fake.hive(windows_xen.DEVICE, windows_xen.SYSTEM)
        self.assertIn('ControlSet001\\Services\\xenfilt', tree)
        self.assertNotIn('ControlSet001\\Services\\xenvbd', tree)
        self.assertIn('Windows/INF/oem6.inf', files(fake))
        self.assertIn('Windows/System32/drivers/xenfilt.sys', files(fake))
        (finding,) = windows_xen.diagnose(remove(), fake)
        self.assertIn('oem6.inf', finding.evidence)

    def test_a_second_repair_changes_nothing(self) -> None:
        fake = windows_xen.founding()
        without_filters(fake)
        (finding,) = windows_xen.diagnose(remove(), fake)
        windows_xen.repair(remove(), fake)
        real = typing.cast(guest_room.Guest, fake)
        self.assertEqual([], remove().repair(real, finding))


class DatabaseRemovalTest(unittest.TestCase):
    """What dism /remove-driver does, since Windows 8."""

    def setUp(self) -> None:
        self.fake = windows_10()
        windows_xen.repair(remove(), self.fake)
        self.system = self.fake.hive(windows_xen.DEVICE, windows_xen.SYSTEM)

    def test_what_goes(self) -> None:
        for path in (
            f'{_DATABASE}\\DriverInfFiles\\oem5.inf',
            f'{_DATABASE}\\DriverPackages\\{_STORED}',
            f'{_DATABASE}\\DriverPackages\\{_STORED}\\Configurations',
            f'{_DATABASE}\\DeviceIds\\XENBUS\\VEN_XS0001&DEV_VBD',
            f'{_DATABASE}\\DeviceIds\\XENBUS',
            'ControlSet001\\Services\\xenvbd',
        ):
            self.assertNotIn(path, self.system)
        for path, values in self.system.items():
            for value in values:
                self.assertNotEqual('oem5.inf', value.name.lower(), path)

    def test_what_stays(self) -> None:
        for path in (
            f'{_DATABASE}\\DriverInfFiles\\oem12.inf',
            f'{_DATABASE}\\DriverPackages\\{_OTHER}',
            f'{_DATABASE}\\DeviceIds\\PCI\\VEN_15AD&DEV_07C0',
            'ControlSet001\\Services\\pvscsi',
        ):
            self.assertIn(path, self.system)
        (value,) = self.system[
            f'{_DATABASE}\\DeviceIds\\{windows_xen.SCSI_CLASS}'
        ]
        self.assertEqual('oem12.inf', value.name)

    def test_number_is_free_again(self) -> None:
        """Bits 5 and 12 were set, the first bit is the highest."""
        (value,) = self.system[_DATABASE]
        self.assertEqual(b'\x00\x08', value.data)

    def test_files(self) -> None:
        drivers = 'Windows/System32/drivers'
        left = files(self.fake)
        self.assertNotIn(f'{drivers}/xenvbd.sys', left)
        self.assertNotIn(f'{windows_xen.STORE}/{_STORED}/xenvbd.sys', left)
        # Needed by pvscsi, whatever for.
        self.assertIn(f'{drivers}/xencrsh.sys', left)
        # Named by Xen's INF, but nothing of Xen's.
        self.assertIn(f'{drivers}/ntfs.sys', left)
        self.assertIn(f'{windows_xen.STORE}/{_OTHER}/pvscsi.inf', left)

    def test_lockdown(self) -> None:
        tree = self.fake.hive(windows_xen.DEVICE, windows_xen.SOFTWARE)
        self.assertNotIn(f'{_LOCKDOWN}/xenvbd.sys', tree)
        (value,) = tree[f'{_LOCKDOWN}/xencrsh.sys']
        self.assertEqual(('oem12.inf',), value.strings)


class SharedTest(unittest.TestCase):
    def test_a_bus_that_another_package_serves(self) -> None:
        fake = windows_10()
        tree = fake.hive(windows_xen.DEVICE, windows_xen.SYSTEM)
        path = f'{_DATABASE}\\DeviceIds\\XENBUS\\VEN_XS0002&DEV_VBD'
        tree[path] = [registry.Value.binary('oem12.inf', b'\1\xff\0\0')]
        windows_xen.repair(remove(), fake)
        self.assertIn(path, tree)
        self.assertNotIn(path.replace('XS0002', 'XS0001'), tree)

    def test_a_directory_with_another_inf_of_that_size(self) -> None:
        fake = windows_10()
        path = f'/sda2/{windows_xen.STORE}/{_STORED}/xenvbd.inf'
        fake.files[path] = bytes(len(fake.files[path]))
        windows_xen.repair(remove(), fake)
        self.assertIn(path, fake.files)
        self.assertNotIn('Windows/INF/oem5.inf', files(fake))

    def test_a_service_that_another_package_owns(self) -> None:
        fake = windows_10()
        path = 'ControlSet001\\Services\\xenvbd'
        owners = registry.Value.multi_sz('Owners', ['oem5.inf', 'oem12.inf'])
        tree = fake.hive(windows_xen.DEVICE, windows_xen.SYSTEM)
        tree[path][-1] = owners
        windows_xen.repair(remove(), fake)
        self.assertEqual(
            ('oem12.inf',), windows_xen.strings(fake, path, 'Owners')
        )
        # Nothing else says that pvscsi needs the file.
        self.assertIn('Windows/System32/drivers/xenvbd.sys', files(fake))

    def test_a_service_that_another_inf_adds(self) -> None:
        fake = windows_xen.founding(
            files={
                'Windows/INF/oem9.inf': b'[Version]\nClass=System\n'
                b'[x.Services]\nAddService=XenBus,2,y\n'
            }
        )
        without_filters(fake)
        windows_xen.repair(remove(), fake)
        tree = fake.hive(windows_xen.DEVICE, windows_xen.SYSTEM)
        self.assertIn('ControlSet001\\Services\\xenbus', tree)
        self.assertNotIn('ControlSet001\\Services\\xenfilt', tree)
        self.assertIn('Windows/System32/drivers/xenbus.sys', files(fake))
        self.assertNotIn('Windows/System32/drivers/xenfilt.sys', files(fake))

    def test_an_inf_that_names_what_is_not_its_own(self) -> None:
        text = windows_xen.inf(
            'xenvbd',
            'SCSIAdapter',
            '01/01/2020',
            '1.0',
            services=('xenvbd', 'disk', '..\\..\\Control'),
            files=('disk.sys', '../../../bootmgr', '..\\config\\SYSTEM'),
        )
        fake = windows_xen.founding(
            files={'Windows/INF/oem4.inf': text.encode(), 'bootmgr': b'B'}
        )
        without_filters(fake)
        windows_xen.repair(remove(), fake)
        tree = fake.hive(windows_xen.DEVICE, windows_xen.SYSTEM)
        self.assertIn('ControlSet001\\Services\\disk', tree)
        left = files(fake)
        self.assertIn('Windows/System32/drivers/disk.sys', left)
        self.assertIn('bootmgr', left)
        # Its directory in the store has another INF: it stays.
        self.assertNotEqual(
            [], [path for path in left if '/xenvbd.inf_amd64' in path]
        )


class XenToolsTest(unittest.TestCase):
    def setUp(self) -> None:
        self.check: base.Check = xen_packages.XenTools(fakes.request())

    def _evidence(self, software: windows_fakes.Tree) -> str:
        fake = windows_xen.founding(software=software)
        found = windows_xen.diagnose(self.check, fake)
        for finding in found:
            self.assertIs(model.Severity.NOTE, finding.severity)
            self.assertIsNone(finding.repair)
        return '\n'.join(finding.evidence for finding in found)

    def test_by_name(self) -> None:
        code = '{01234567-89AB-CDEF-0123-456789ABCDEF}'
        text = self._evidence(
            {
                f'{_UNINSTALL}\\{code}': [
                    registry.Value.sz(
                        'DisplayName', 'Citrix XenServer Windows Guest Agent'
                    )
                ],
                f'Wow6432Node\\{_UNINSTALL}\\XenTools': [
                    registry.Value.sz(
                        'DisplayName', 'Citrix XenServer Tools for VMs'
                    )
                ],
                f'{_UNINSTALL}\\7-Zip': [
                    registry.Value.sz('DisplayName', '7-Zip 22')
                ],
            }
        )
        self.assertIn(f'Guest Agent ({code})', text)
        self.assertIn('(XenTools)', text)
        self.assertNotIn('7-Zip', text)

    def test_by_upgrade_code(self) -> None:
        """The installer's own notation of the x64 guest agent's code."""
        text = self._evidence(
            {
                'Classes\\Installer\\UpgradeCodes\\'
                'C2945E843486E254792A5AEFD2421B14': [
                    registry.Value.sz('76543210BA98FEDC1032547698BADCFE', '')
                ],
                f'{_UNINSTALL}\\{{01234567-89AB-CDEF-0123-456789ABCDEF}}': [
                    registry.Value.sz('DisplayName', 'Branded agent')
                ],
            }
        )
        self.assertIn(
            'Branded agent ({01234567-89AB-CDEF-0123-456789ABCDEF})', text
        )

    def test_without(self) -> None:
        self.assertEqual('', self._evidence({}))

    def test_packed_guids(self) -> None:
        """Office 2010's product code, as Microsoft's articles give it."""
        code = '{90140000-0011-0000-0000-0000000FF1CE}'
        packed = '00004109110000000000000000F01FEC'
        self.assertEqual(packed, xen_packages.packed(code))
        self.assertEqual(code, xen_packages.unpacked(packed))
        for text in ('', 'x' * 32, '0' * 31, '\uff10' * 32):
            self.assertEqual('', xen_packages.unpacked(text))

    def test_hostile_names(self) -> None:
        text = self._evidence(
            {
                f'{_UNINSTALL}\\x{number}\x1b[2J': [
                    registry.Value.sz('DisplayName', 'XenServer Tools' * 99)
                ]
                for number in range(100)
            }
        )
        self.assertNotIn('\x1b', text)
        self.assertLess(len(text), 5000)


if __name__ == '__main__':
    unittest.main()
