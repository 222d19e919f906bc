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


"""The disk bus of a Windows guest and its driver, on a guest in memory.

The signature is judged elsewhere: here a verdict is given.
"""

import datetime
import struct
import types
import typing
import unittest
from unittest import mock

from xenimport import exceptions
from xenimport.guest import guest as guest_room
from xenimport.guest import registry
from xenimport import model
from xenimport.remediation.windows import disk_bus
from xenimport.remediation.windows import inbox_driver
from xenimport.remediation.windows import storage_driver
from xenimport.remediation.windows import virtio_package
from xenimport.tests.unit.remediation import fakes
from xenimport.tests.unit.remediation import windows_fakes

VALUE = registry.Value
CONFIG = 'Windows/System32/config'
DRIVERS = 'Windows/System32/drivers'
SYSTEM = 'ControlSet001\\Services'
CDD = 'ControlSet001\\Control\\CriticalDeviceDatabase'
SCSI_ADAPTER = '{4d36e97b-e325-11ce-bfc1-08002be10318}'
#: Type GUID of an EFI system partition: UEFI 2.10, table 5.7.
ESP = 'C12A7328-F81F-11D2-BA4B-00A0C93EC93B'
GOOD = types.SimpleNamespace(accepted=True, reason='signed by Microsoft')
TEST = types.SimpleNamespace(accepted=False, reason='a test certificate')
#: virtio-win's own: (bus, service, legacy id, modern id).
VIOSCSI = ('vioscsi', '1004', '1048')


def program(machine=0x8664):
    """The start of a PE file: Microsoft's "PE Format"."""
    data = bytearray(0x200)
    data[:2] = b'MZ'
    struct.pack_into('<I', data, 0x3C, 0x80)
    struct.pack_into('<4sH', data, 0x80, b'PE\0\0', machine)
    return bytes(data)


def service(start=0, name=''):
    return [
        VALUE.dword('Type', 1),
        VALUE.dword('Start', start),
        VALUE.expand_sz('ImagePath', f'System32\\drivers\\{name}.sys'),
    ]


def package(name='viostor', machine=0x8664):
    ids = {'viostor': ('1001', '1042'), 'vioscsi': ('1004', '1048')}
    found = ids.get(name, ('1000', '1041'))
    return virtio_package.Package(
        name,
        f'{name}.inf',
        {f'{name}.inf': name.encode(), f'{name}.sys': program(machine)},
        'amd64',
        'Net' if name == 'netkvm' else 'SCSIAdapter',
        SCSI_ADAPTER,
        'Red Hat, Inc.',
        datetime.date(2024, 1, 2),
        (100, 95, 104, 26200),
        '',
        tuple(
            virtio_package.Model(
                f'PCI\\VEN_1AF4&DEV_{item}', 'inst', 'a device', 'Red Hat'
            )
            for item in found
        ),
        virtio_package.Service(
            name, 1, 3 if name == 'netkvm' else 0, 1, 'SCSI miniport', '',
            f'{name}.sys', (),
        ),
        (),
        f'virtio-win.iso: {name}',
    )  # fmt: skip


def gives(value):
    """A function that gives this, whatever it is asked."""
    return lambda *_arguments, **_named: value


class Source:
    """A collection of drivers."""

    def __init__(self, *names):
        self.names = names

    def package(self, name, release):
        return package(name) if name in self.names else None


class StorageTestCase(unittest.TestCase):
    """Windows Server 2008 R2 unless said otherwise."""

    def guest(
        self,
        tree: dict[str, list[registry.Value]] | None = None,
        *,
        files: dict[str, bytes] | None = None,
        uefi: bool = False,
        drives: int = 1,
        **system: typing.Any,
    ) -> windows_fakes.FakeWindows:
        inbox = {
            f'{SYSTEM}\\{name}': service(name=name)
            for name in ('intelide', 'atapi', 'msahci')
        }
        partitions = [guest_room.Partition(1, '/dev/sda1', 0, 0, '0x07', True)]
        boot = {}
        if uefi:
            partitions = [guest_room.Partition(1, '/dev/sda1', 0, 0, ESP)]
            boot = {'EFI/Microsoft/Boot/bootmgfw.efi': b'MZ'}
        partitions.append(guest_room.Partition(2, '/dev/sda2', 0, 0, '0x07'))
        return windows_fakes.FakeWindows(
            {
                '/dev/sda1': boot,
                '/dev/sda2': {
                    f'{DRIVERS}/{name}.sys': program()
                    for name in ('intelide', 'atapi', 'msahci')
                }
                | (files or {}),
            },
            {
                '/dev/sda2': {
                    f'{CONFIG}/SYSTEM': {
                        'Select': [
                            VALUE.dword('Current', 1),
                            VALUE.dword('Default', 1),
                        ],
                        **inbox,
                        f'{CDD}\\pci#ven_8086&dev_7010': [
                            VALUE.sz('Service', 'intelide')
                        ],
                        f'{CDD}\\pci#cc_010601': [
                            VALUE.sz('Service', 'msahci')
                        ],
                        **(tree or {}),
                    },
                    f'{CONFIG}/SOFTWARE': {
                        'Microsoft\\Windows NT\\CurrentVersion': [
                            VALUE.sz('CurrentVersion', '6.1'),
                            VALUE.sz('CurrentBuildNumber', '7601'),
                            VALUE.sz('InstallationType', 'Server'),
                        ]
                    },
                }
            },
            partitions=tuple(partitions),
            drives=tuple(f'/dev/sd{"abcdef"[n]}' for n in range(drives)),
            file_systems={'/dev/sda1': 'vfat' if uefi else 'ntfs'},
            operating_system=windows_fakes.system(**system),
        )

    def modern(self, *ids):
        """Windows 10, with Windows' own SATA driver."""
        tree = {
            f'{SYSTEM}\\storahci': service(0, 'storahci'),
            'DriverDatabase\\DeviceIds': [],
        }
        for item in ids:
            tree[f'DriverDatabase\\DeviceIds\\PCI\\{item}'] = [
                VALUE.binary('mshdc.inf', b'\x01\xff\x00\x00')
            ]
        files = {f'{DRIVERS}/storahci.sys': program()}
        guest = self.guest(tree, files=files, major=10, minor=0)
        guest.hive('/dev/sda2', f'{CONFIG}/SOFTWARE')[
            'Microsoft\\Windows NT\\CurrentVersion'
        ] = [
            VALUE.sz('CurrentVersion', '6.3'),
            VALUE.dword('CurrentMajorVersionNumber', 10),
            VALUE.dword('CurrentMinorVersionNumber', 0),
            VALUE.sz('CurrentBuildNumber', '17763'),
        ]
        return guest

    def vioscsi(self, start=0, ids=('1004', '1048')):
        """The driver installed: registry, and the file."""
        tree = {f'{SYSTEM}\\vioscsi': service(start, 'vioscsi')}
        for item in ids:
            tree[f'{CDD}\\pci#ven_1af4&dev_{item}'] = [
                VALUE.sz('Service', 'vioscsi'),
                VALUE.sz('ClassGUID', SCSI_ADAPTER),
            ]
        return tree

    def checks(self, *names, verdict=GOOD, **request):
        """All checks of this subject, with one look at the drivers."""
        asked = fakes.request(
            virtio_win='/virtio-win.iso' if names else None, **request
        )
        self.drivers = disk_bus.Drivers(asked)
        for target, name, value in (
            (disk_bus.virtio_win, 'open_drivers', Source(*names)),
            (disk_bus.driver_signature, 'verdict', verdict),
            (disk_bus.driver_signature, 'verdict_of', verdict),
        ):
            patch = mock.patch.object(target, name, gives(value))
            patch.start()
            self.addCleanup(patch.stop)
        return [
            check(asked, self.drivers)
            for check in (
                storage_driver.StorageDriver,
                inbox_driver.InboxDriver,
                storage_driver.StorageSignature,
                storage_driver.FallbackBus,
                storage_driver.OtherDrivers,
            )
        ]

    def diagnose(self, guest, checks):
        return [item for check in checks for item in check.diagnose(guest)]

    def repair(self, guest, checks):
        """Repair all that can be, and diagnose again."""
        found = self.diagnose(guest, checks)
        changes = []
        for check in checks:
            for item in found:
                if item.id == check.id and item.repair:
                    changes += check.repair(guest, item)
        guest.commit()
        return changes, self.diagnose(guest, checks)


def ids(findings):
    return [(item.id, item.subject) for item in findings]


FOUNDING = {f'{DRIVERS}/vioscsi.sys': program()}


class InstalledTest(StorageTestCase):
    def test_founding_case_driver_that_does_not_start_at_boot(self):
        guest = self.guest(self.vioscsi(3), files=FOUNDING)
        checks = self.checks(disk_bus='scsi')
        found = self.diagnose(guest, checks)
        self.assertEqual(('windows.storage-driver', 'vioscsi'), ids(found)[0])
        self.assertIs(model.Severity.BLOCKER, found[0].severity)
        self.assertIn(
            'HKLM\\SYSTEM\\ControlSet001\\Services\\vioscsi, value Start is 3',
            found[0].evidence,
        )
        changes, again = self.repair(guest, checks)
        self.assertNotIn('windows.storage-driver', [i.id for i in again])
        self.assertEqual(
            [
                (
                    'HKLM\\SYSTEM\\ControlSet001\\Services\\vioscsi, '
                    'value Start',
                    'REG_DWORD 0x3',
                    'REG_DWORD 0x0',
                )
            ],
            [(item.path, item.before, item.after) for item in changes],
        )

    def test_auto_takes_the_driver_that_is_there(self):
        guest = self.guest(self.vioscsi(3), files=FOUNDING)
        checks = self.checks()
        self.diagnose(guest, checks)
        self.assertEqual('scsi', self.drivers.choose(guest).bus)
        self.repair(guest, checks)
        self.assertEqual('scsi', self.drivers.choose(guest).bus)

    def test_modern_id_is_bound(self):
        guest = self.guest(self.vioscsi(ids=('1004',)), files=FOUNDING)
        checks = self.checks(disk_bus='scsi')
        (found, *_rest) = self.diagnose(guest, checks)
        self.assertIn('PCI\\VEN_1AF4&DEV_1048', found.evidence)
        self.assertNotIn('DEV_1004 ', found.evidence)
        _changes, again = self.repair(guest, checks)
        self.assertNotIn('windows.storage-driver', [i.id for i in again])
        tree = guest.hive('/dev/sda2', f'{CONFIG}/SYSTEM')
        values = {
            value.name: value.text
            for value in tree[f'{CDD}\\pci#ven_1af4&dev_1048']
        }
        self.assertEqual(
            {'Service': 'vioscsi', 'ClassGUID': SCSI_ADAPTER}, values
        )

    def test_id_with_a_subsystem_is_bound_enough(self):
        tree = self.vioscsi(ids=())
        for item in (
            'pci#ven_1af4&dev_1004&subsys_00081af4&rev_00',
            'PCI#VEN_1AF4&DEV_1048&SUBSYS_11001AF4&REV_01',
        ):
            tree[f'{CDD}\\{item}'] = [VALUE.sz('Service', 'VIOSCSI')]
        guest = self.guest(tree, files=FOUNDING)
        found = self.diagnose(guest, self.checks(disk_bus='scsi'))
        self.assertNotIn('windows.storage-driver', [i.id for i in found])

    def test_database_that_is_switched_off(self):
        tree = self.vioscsi()
        tree['ControlSet001\\Control\\Pnp'] = [VALUE.dword('DisableCDDB', 1)]
        guest = self.guest(tree, files=FOUNDING)
        checks = self.checks(disk_bus='scsi')
        (found, *_rest) = self.diagnose(guest, checks)
        self.assertIn('DisableCDDB', found.evidence)
        _changes, again = self.repair(guest, checks)
        self.assertNotIn('windows.storage-driver', [i.id for i in again])

    def test_service_without_its_file_is_not_there(self):
        guest = self.guest(self.vioscsi())
        (found, *_rest) = self.diagnose(guest, self.checks(disk_bus='scsi'))
        self.assertEqual('windows.storage-driver', found.id)
        self.assertIsNone(found.repair)
        self.assertIn('vioscsi is not installed', found.evidence)

    def test_driver_for_another_machine(self):
        guest = self.guest(
            self.vioscsi(), files={f'{DRIVERS}/vioscsi.sys': program(0x14C)}
        )
        (found, *_rest) = self.diagnose(guest, self.checks(disk_bus='scsi'))
        self.assertIn('is for x86, not for amd64', found.evidence)


class ModernWindowsTest(StorageTestCase):
    """Windows 10: the driver database."""

    DATABASE: typing.ClassVar = {
        'DriverDatabase\\DriverInfFiles\\oem7.inf': [
            VALUE.multi_sz('', ['vioscsi.inf_amd64_0123456789abcdef']),
            VALUE.sz('Active', 'vioscsi.inf_amd64_0123456789abcdef'),
        ],
        'DriverDatabase\\DriverPackages\\vioscsi.inf_amd64_0123456789abcdef'
        '\\Configurations\\scsi_inst': [VALUE.sz('Service', 'vioscsi')],
        'DriverDatabase\\DeviceIds\\PCI\\VEN_1AF4&DEV_1004': [
            VALUE.binary('oem7.inf', b'\x01\xff\x00\x00')
        ],
    }

    def test_modern_id_is_bound(self):
        tree = {
            f'{SYSTEM}\\vioscsi': service(0, 'vioscsi'), **self.DATABASE
        }  # fmt: skip
        guest = self.guest(tree, files=FOUNDING, major=10, minor=0)
        checks = self.checks(disk_bus='scsi')
        (found, *_rest) = self.diagnose(guest, checks)
        self.assertIn('PCI\\VEN_1AF4&DEV_1048', found.evidence)
        _changes, again = self.repair(guest, checks)
        self.assertNotIn('windows.storage-driver', [i.id for i in again])
        tree = guest.hive('/dev/sda2', f'{CONFIG}/SYSTEM')
        (value,) = tree['DriverDatabase\\DeviceIds\\PCI\\VEN_1AF4&DEV_1048']
        # Facts: 3256 of 3258 entries of genuine hives are this.
        self.assertEqual(('oem7.inf', b'\x01\xff\x00\x00'),
                         (value.name, value.data))  # fmt: skip

    def test_service_without_a_package_is_half_a_driver(self):
        tree = {
            f'{SYSTEM}\\vioscsi': service(0, 'vioscsi'),
            'DriverDatabase\\DeviceIds': [],
        }
        guest = self.guest(tree, files=FOUNDING, major=10, minor=0)
        (found, *_rest) = self.diagnose(guest, self.checks(disk_bus='scsi'))
        self.assertEqual('windows.storage-driver', found.id)
        self.assertIsNone(found.repair)
        (found, *_rest) = self.diagnose(
            guest, self.checks('vioscsi', disk_bus='scsi')
        )
        self.assertIn('virtio-win.iso', found.repair)


class NoDriverTest(StorageTestCase):
    def test_bus_that_was_asked_for_is_a_blocker(self):
        for bus, name in (('virtio', 'viostor'), ('scsi', 'vioscsi')):
            found = self.diagnose(self.guest(), self.checks(disk_bus=bus))
            self.assertEqual(('windows.storage-driver', name), ids(found)[0])
            self.assertIsNone(found[0].repair)
            self.assertIn('--virtio-win', found[0].fix)
            self.assertNotIn('windows.fallback-bus', [i.id for i in found])

    def test_auto_falls_back_and_says_so(self):
        for guest, bus in (
            (self.guest(), 'ide'),
            (self.guest(uefi=True), 'sata'),
            # pc has four places on IDE, one of them for a config drive.
            (self.guest(drives=3), 'ide'),
            (self.guest(drives=4), 'sata'),
        ):
            checks = self.checks()
            found = self.diagnose(guest, checks)
            self.assertEqual(
                [
                    ('windows.fallback-bus', bus),
                    ('windows.virtio-drivers', 'netkvm'),
                ],
                ids(found),
            )
            self.assertEqual(
                {model.Severity.WARNING}, {item.severity for item in found}
            )
            self.assertIn(bus.upper(), found[0].title)
            self.assertEqual(
                {'disk_bus': bus, 'vif_model': 'e1000'},
                self.drivers.hardware(guest),
            )

    def test_emulated_bus_that_was_asked_for_is_no_fallback(self):
        found = self.diagnose(self.guest(), self.checks(disk_bus='ide'))
        self.assertNotIn('windows.fallback-bus', [i.id for i in found])


class ReviewTest(StorageTestCase):
    """What a review found to end in a guest without its disk or network."""

    def test_accepted_signature_does_not_hide_another_machine(self):
        guest = self.guest()
        checks = self.checks(
            'vioscsi',
            verdict=TEST,
            disk_bus='scsi',
            accept=frozenset(('windows.storage-signature',)),
        )
        wrong = package('vioscsi', machine=0x14C)
        with mock.patch.object(
            Source, 'package', autospec=True, return_value=wrong
        ):
            found = self.diagnose(guest, checks)
        (blocker,) = [i for i in found if i.severity is model.Severity.BLOCKER]
        self.assertEqual('windows.storage-driver', blocker.id)
        self.assertIsNone(blocker.loss)

    def netkvm(self, start=3):
        return self.guest(
            {f'{SYSTEM}\\netkvm': service(start, 'netkvm')},
            files={f'{DRIVERS}/netkvm.sys': program()},
        )

    def test_network_driver_that_is_there(self):
        guest = self.netkvm()
        self.diagnose(guest, self.checks())
        self.assertEqual('virtio', self.drivers.hardware(guest)['vif_model'])

    def test_network_driver_that_is_disabled(self):
        guest = self.netkvm(4)
        found = self.diagnose(guest, self.checks())
        self.assertIn(('windows.virtio-drivers', 'netkvm'), ids(found))
        self.assertEqual('e1000', self.drivers.hardware(guest)['vif_model'])

    def test_network_driver_that_is_refused_is_told(self):
        for accept in ((), ('windows.storage-signature',)):
            guest = self.netkvm()
            checks = self.checks(verdict=TEST, accept=frozenset(accept))
            found = self.diagnose(guest, checks)
            self.assertIn(('windows.virtio-drivers', 'netkvm'), ids(found))
            self.assertEqual(
                'e1000', self.drivers.hardware(guest)['vif_model']
            )

    def test_half_a_driver_is_passed_over(self):
        guest = self.modern('CC_010601', 'VEN_8086&DEV_7010')
        tree = guest.hive('/dev/sda2', f'{CONFIG}/SYSTEM')
        tree[f'{SYSTEM}\\viostor'] = service(0, 'viostor')
        guest.files[f'/sda2/{DRIVERS}/viostor.sys'] = program()
        found = self.diagnose(guest, self.checks())
        self.assertEqual('ide', self.drivers.choose(guest).bus)
        self.assertEqual(
            [],
            [i.id for i in found if i.severity is model.Severity.BLOCKER],
        )

    def test_collection_is_not_opened_for_nothing(self):
        guest = self.guest(
            {
                **self.vioscsi(),
                f'{SYSTEM}\\netkvm': service(3, 'netkvm'),
            },
            files=FOUNDING | {f'{DRIVERS}/netkvm.sys': program()},
        )
        checks = self.checks('viostor', disk_bus='scsi')
        with mock.patch.object(
            disk_bus.virtio_win,
            'open_drivers',
            autospec=True,
            side_effect=AssertionError,
        ):
            (signature, *_rest) = checks[1:2]
            self.assertEqual([], list(checks[0].diagnose(guest)))
            self.assertEqual([], list(signature.diagnose(guest)))

    def test_damaged_package_is_no_package(self):
        guest = self.guest(self.vioscsi(), files=FOUNDING)
        checks = self.checks('netkvm', disk_bus='scsi')
        damaged = exceptions.ConfigurationError(
            'virtio-win.package-invalid', 'no', where='x.inf', found='cut'
        )
        with mock.patch.object(
            Source, 'package', autospec=True, side_effect=damaged
        ):
            found = self.diagnose(guest, checks)
        self.assertEqual(
            {'windows.virtio-drivers'}, {item.id for item in found}
        )
        self.assertIn('x.inf: cut', found[-1].evidence)

    def test_service_is_copied_with_what_is_below_it(self):
        tree = self.vioscsi()
        tree['Select'] = [VALUE.dword('Current', 1), VALUE.dword('Default', 2)]
        tree[f'{SYSTEM}\\vioscsi\\Parameters\\PnpInterface'] = [
            VALUE.dword('5', 1)
        ]
        tree['ControlSet002\\Services'] = []
        guest = self.guest(tree, files=FOUNDING)
        _changes, again = self.repair(guest, self.checks(disk_bus='scsi'))
        self.assertNotIn('windows.storage-driver', [i.id for i in again])
        made = guest.hive('/dev/sda2', f'{CONFIG}/SYSTEM')
        self.assertEqual(
            [VALUE.dword('5', 1)],
            made['ControlSet002\\Services\\vioscsi\\Parameters\\PnpInterface'],
        )


class InboxTest(StorageTestCase):
    """The emulated disk of a Windows without virtio drivers."""

    def mended(self, guest, **request):
        """The one finding, once it has been repaired."""
        checks = self.checks(**request)
        (found,) = [
            item
            for item in self.diagnose(guest, checks)
            if item.id == 'windows.inbox-driver'
        ]
        self.assertIs(model.Severity.BLOCKER, found.severity)
        changes, again = self.repair(guest, checks)
        self.assertNotIn('windows.inbox-driver', [i.id for i in again])
        self.assertTrue(changes)
        return found

    def test_driver_that_does_not_start_at_boot(self):
        tree = {f'{SYSTEM}\\intelide': service(3, 'intelide')}
        found = self.mended(self.guest(tree))
        self.assertIn('Services\\intelide, value Start is 3', found.evidence)

    def test_id_that_leads_nowhere(self):
        for bus, name, driver in (
            ('ide', 'pci#ven_8086&dev_7010', 'intelide'),
            ('sata', 'pci#cc_010601', 'msahci'),
        ):
            guest = self.guest({f'{CDD}\\{name}': []})
            found = self.mended(guest, disk_bus=bus)
            self.assertIn('CriticalDeviceDatabase', found.evidence)
            tree = guest.hive('/dev/sda2', f'{CONFIG}/SYSTEM')
            values = {
                value.name: value.text for value in tree[f'{CDD}\\{name}']
            }
            self.assertEqual(
                {
                    'Service': driver,
                    # devguid.h: GUID_DEVCLASS_HDC.
                    'ClassGUID': '{4d36e96a-e325-11ce-bfc1-08002be10318}',
                },
                values,
            )

    def test_database_that_is_switched_off(self):
        tree = {'ControlSet001\\Control\\Pnp': [VALUE.dword('DisableCDDB', 1)]}
        found = self.mended(self.guest(tree))
        self.assertIn('DisableCDDB', found.evidence)

    def test_only_1_switches_it_off(self):
        tree = {'ControlSet001\\Control\\Pnp': [VALUE.dword('DisableCDDB', 0)]}
        found = self.diagnose(self.guest(tree), self.checks())
        self.assertNotIn('windows.inbox-driver', [i.id for i in found])

    def test_driver_that_is_not_there(self):
        guest = self.guest()
        del guest.files[f'/sda2/{DRIVERS}/atapi.sys']
        (found, *_rest) = self.diagnose(guest, self.checks())
        self.assertEqual('windows.inbox-driver', found.id)
        self.assertIn('atapi', found.evidence)
        self.assertIsNone(found.repair)

    def test_driver_database(self):
        guest = self.modern('VEN_8086&DEV_7010', 'CC_010601')
        for bus in ('ide', 'sata'):
            found = self.diagnose(guest, self.checks(disk_bus=bus))
            self.assertNotIn('windows.inbox-driver', [i.id for i in found])

    def test_driver_database_without_the_id_is_not_mended(self):
        guest = self.modern('VEN_8086&DEV_7010')
        (found, *_rest) = self.diagnose(guest, self.checks(disk_bus='sata'))
        self.assertEqual('windows.inbox-driver', found.id)
        self.assertIsNone(found.repair)
        self.assertIn('0x7B', found.loss)


class InjectionTest(StorageTestCase):
    def test_windows_7_gets_both_disk_drivers(self):
        guest = self.guest()
        checks = self.checks('viostor', 'vioscsi', 'netkvm')
        found = self.diagnose(guest, checks)
        self.assertEqual(
            [
                ('windows.storage-driver', 'viostor'),
                ('windows.virtio-drivers', 'vioscsi'),
                ('windows.virtio-drivers', 'netkvm'),
            ],
            ids(found),
        )
        # How it would find a network driver by itself is not known.
        self.assertIsNone(found[-1].repair)
        self.assertIn('no driver database', found[-1].evidence)
        hardware = {'disk_bus': 'virtio', 'vif_model': 'e1000'}
        self.assertEqual(hardware, self.drivers.hardware(guest))
        changes, again = self.repair(guest, checks)
        self.assertEqual([('windows.virtio-drivers', 'netkvm')], ids(again))
        self.assertEqual(hardware, self.drivers.hardware(guest))
        self.assertEqual({'viostor': 0, 'vioscsi': 0}, self.starts(guest))
        self.assertIn(
            f'\\{DRIVERS}/viostor.sys'.replace('/', '\\'),
            [change.path for change in changes],
        )

    def test_windows_10_gets_everything(self):
        guest = self.modern('CC_010601')
        guest.put_hive(
            '/dev/sda2',
            f'{CONFIG}/DRIVERS',
            {'DriverDatabase\\DriverInfFiles': []},
        )
        checks = self.checks('viostor', 'vioscsi', 'netkvm')
        hardware = {'disk_bus': 'virtio', 'vif_model': 'virtio'}
        self.diagnose(guest, checks)
        self.assertEqual(hardware, self.drivers.hardware(guest))
        _changes, again = self.repair(guest, checks)
        self.assertEqual([], ids(again))
        self.assertEqual(hardware, self.drivers.hardware(guest))
        self.assertEqual(
            {'viostor': 0, 'vioscsi': 0, 'netkvm': 3}, self.starts(guest)
        )

    def starts(self, guest):
        """Start of each virtio driver that there is."""
        tree = guest.hive('/dev/sda2', f'{CONFIG}/SYSTEM')
        found = {}
        for name in ('viostor', 'vioscsi', 'netkvm'):
            values = tree.get(f'{SYSTEM}\\{name}')
            if values is not None:
                key = registry.Key('', tuple(values), ())
                found[name] = key.number('Start')
        return found

    def test_installed_scsi_gives_way_to_virtio_that_can_be_installed(self):
        guest = self.guest(self.vioscsi(), files=FOUNDING)
        self.checks('viostor')
        self.assertEqual('virtio', self.drivers.choose(guest).bus)

    def test_package_for_another_machine_is_not_installed(self):
        guest = self.guest()
        checks = self.checks('viostor')
        wrong = package('viostor', machine=0x14C)
        with mock.patch.object(
            Source, 'package', autospec=True, return_value=wrong
        ):
            self.diagnose(guest, checks)
            choice = self.drivers.choose(guest)
        self.assertEqual('ide', choice.bus)
        self.assertIn('viostor.sys', choice.reasons[0])


class SignatureTest(StorageTestCase):
    def test_refused_driver_is_passed_over(self):
        guest = self.guest(self.vioscsi(), files=FOUNDING)
        found = self.diagnose(guest, self.checks(verdict=TEST))
        self.assertIn(('windows.fallback-bus', 'ide'), ids(found))
        (fallback,) = [i for i in found if i.id == 'windows.fallback-bus']
        self.assertIn('a test certificate', fallback.evidence)

    def test_refused_driver_of_the_bus_that_was_asked_for(self):
        guest = self.guest(self.vioscsi(), files=FOUNDING)
        found = self.diagnose(
            guest, self.checks(verdict=TEST, disk_bus='scsi')
        )
        self.assertEqual(('windows.storage-signature', 'vioscsi'),
                         ids(found)[0])  # fmt: skip
        self.assertIs(model.Severity.BLOCKER, found[0].severity)
        self.assertIn('0xc0000428', found[0].loss)

    def test_accepted_all_the_same(self):
        guest = self.guest(self.vioscsi(3), files=FOUNDING)
        checks = self.checks(
            verdict=TEST,
            disk_bus='scsi',
            accept=frozenset(('windows.storage-signature',)),
        )
        _changes, again = self.repair(guest, checks)
        # The finding stays, and --accept overrules it.
        self.assertEqual(('windows.storage-signature', 'vioscsi'),
                         ids(again)[0])  # fmt: skip
