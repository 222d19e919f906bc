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
from xenimport.remediation.windows import device_filters
from xenimport.remediation.windows import start_override
from xenimport.remediation.windows import xen_families
from xenimport.remediation.windows import xen_services
from xenimport.remediation.windows import xen_unplug
from xenimport.tests.unit.remediation import fakes
from xenimport.tests.unit.remediation import windows_fakes
from xenimport.tests.unit.remediation import windows_xen

_SERVICES = 'ControlSet001\\Services'


def start(
    fake: windows_fakes.FakeWindows, name: str, control_set: str
) -> int | None:
    tree = fake.hive(windows_xen.DEVICE, windows_xen.SYSTEM)
    for value in tree[f'{control_set}\\Services\\{name}']:
        if value.name == 'Start':
            return value.number
    return None


class FamiliesTest(unittest.TestCase):
    def test_the_list_of_xen_boot_fix(self) -> None:
        """The services that XenBootFix disables, as its source has them."""
        names = (
            'xenagent xenbus xenbus_monitor xencons xencons_monitor xendisk '
            'xenfilt xenhid xeniface XenInstall xennet XenSvc xenvbd xenvif '
            'xenvkbd'
        )
        for name in names.upper().split():
            self.assertIn(name, xen_families.service_names())

    def test_packages(self) -> None:
        for catalog, provider, family in (
            ('xenvbd.cat', 'Citrix Systems, Inc.', 'Xen Project'),
            ('XENVBD.CAT', 'Vates', 'Xen Project'),
            ('xenvbd.cat', 'Amazon Inc.', 'AWS PV'),
            ('xenpci.cat', 'somebody', 'GPLPV'),
            ('xenbus.cat', 'Novell, Inc.', 'SUSE VMDP'),
            ('xenblk.cat', '', 'SUSE VMDP'),
            ('rhelscsi.cat', 'Red Hat Inc.', 'Red Hat Xen PV'),
        ):
            found = xen_families.of_package(catalog, provider)
            self.assertIsNotNone(found)
            self.assertEqual(family, found.name if found else None)

    def test_packages_of_others(self) -> None:
        """virtio of Red Hat, and of SUSE's drivers that serve KVM too."""
        for catalog, provider in (
            ('viostor.cat', 'Red Hat, Inc.'),
            ('netkvm.cat', 'Citrix Systems, Inc.'),
            ('pvvxblk.cat', 'SUSE'),
            ('', 'Citrix Systems, Inc.'),
        ):
            self.assertIsNone(xen_families.of_package(catalog, provider))

    def test_files(self) -> None:
        for name in (
            'xen.sys', 'XENBUS.SYS', 'xencrsh.sys', 'xenfilt.sys',
            'xenbus_coinst_8_1_0_63.dll', 'xenagent_8_2_1_5.exe',
            'xenbus_monitor_8_2_1_5.exe', 'rhelscsi.sys', 'scsifilt.sys',
        ):  # fmt: skip
            self.assertTrue(xen_families.is_file(name), name)
        for name in (
            'ntfs.sys', 'pci.sys', 'xenbus.inf', 'xenbus.sys.bak',
            'viostor.sys', '../xen.sys', 'xen', 'WdfCoInstaller01011.dll',
        ):  # fmt: skip
            self.assertFalse(xen_families.is_file(name), name)

    def test_products(self) -> None:
        for name in (
            'Citrix XenServer Windows Guest Agent',
            'Citrix Tools for Virtual Machines',
            'AWS PV Drivers',
            'Red Hat Paravirtualized Xen Drivers for Windows(R)',
            'XCP-ng Windows Management Agent',
        ):
            self.assertIsNotNone(xen_families.of_product(name), name)
        for name in ('XenCenter', 'Citrix Workspace', 'Xenon', ''):
            self.assertIsNone(xen_families.of_product(name), name)

    def test_every_family_has_a_source(self) -> None:
        for family in xen_families.FAMILIES:
            self.assertTrue(family.source, family.name)


class XenServicesTest(unittest.TestCase):
    def setUp(self) -> None:
        self.check = xen_services.XenServices(fakes.request())
        self.filters = device_filters.XenFilters(fakes.request())

    def test_founding_guest(self) -> None:
        fake = windows_xen.founding()
        found = windows_xen.diagnose(self.check, fake)
        self.assertEqual(
            {'XENBUS', 'XENFILT', 'XENVBD', 'XENAGENT'},
            {item.subject for item in found},
        )
        severities = {item.subject: item.severity for item in found}
        self.assertIs(model.Severity.BLOCKER, severities['XENVBD'])
        self.assertIs(model.Severity.WARNING, severities['XENAGENT'])
        for finding in found:
            self.assertIn('ControlSet001', finding.evidence)
            self.assertIn('ControlSet002', finding.evidence)
        windows_xen.repair(self.filters, fake)
        changes = windows_xen.repair(self.check, fake)
        self.assertEqual(8, len(changes))
        self.assertEqual('REG_DWORD 0x4', changes[0].after)
        self.assertIn('/t REG_DWORD /d "0" /f', changes[0].undo)
        for control_set in ('ControlSet001', 'ControlSet002'):
            for name in ('xenbus', 'xenfilt', 'xenvbd', 'xenagent'):
                self.assertEqual(4, start(fake, name, control_set))
            self.assertEqual(3, start(fake, 'xennet', control_set))
            self.assertEqual(0, start(fake, 'disk', control_set))
        self.assertEqual([], windows_xen.diagnose(self.check, fake))

    def test_never_while_a_filter_list_names_it(self) -> None:
        fake = windows_xen.founding()
        windows_xen.repair(self.check, fake)
        for control_set in ('ControlSet001', 'ControlSet002'):
            self.assertEqual(0, start(fake, 'xenfilt', control_set))
            self.assertEqual(4, start(fake, 'xenbus', control_set))
        (finding,) = windows_xen.diagnose(self.check, fake)
        self.assertEqual('XENFILT', finding.subject)

    def test_filters_of_one_control_set_hold_only_that_one(self) -> None:
        fake = windows_xen.founding()
        real = typing.cast(guest_room.Guest, fake)
        for finding in windows_xen.diagnose(self.filters, fake):
            if finding.subject.startswith('ControlSet002'):
                self.filters.repair(real, finding)
        fake.commit()
        windows_xen.repair(self.check, fake)
        self.assertEqual(0, start(fake, 'xenfilt', 'ControlSet001'))
        self.assertEqual(4, start(fake, 'xenfilt', 'ControlSet002'))

    def test_filters_that_are_staged_only(self) -> None:
        """Both repairs come before the one write."""
        fake = windows_xen.founding()
        real = typing.cast(guest_room.Guest, fake)
        found = windows_xen.diagnose(self.check, fake)
        for finding in windows_xen.diagnose(self.filters, fake):
            self.filters.repair(real, finding)
        for finding in found:
            self.check.repair(real, finding)
        fake.commit()
        self.assertEqual(4, start(fake, 'xenfilt', 'ControlSet001'))

    def test_remove_takes_the_manual_ones_too(self) -> None:
        fake = windows_xen.founding()
        check = xen_services.XenServices(fakes.request(xen_drivers='remove'))
        windows_xen.repair(self.filters, fake)
        windows_xen.repair(check, fake)
        self.assertEqual(4, start(fake, 'xennet', 'ControlSet001'))
        self.assertEqual([], windows_xen.diagnose(check, fake))

    def test_disabled_already(self) -> None:
        path = f'{_SERVICES}\\XenVbd'
        fake = windows_xen.guest({path: windows_xen.service(4, 'xenvbd')})
        self.assertEqual([], windows_xen.diagnose(self.check, fake))

    def test_odd_starts(self) -> None:
        for value in (
            registry.Value.sz('Start', '0'),
            registry.Value.dword('Start', 0xFFFFFFFF),
            registry.Value('Start', registry.DWORD, b'\0'),
        ):
            fake = windows_xen.guest({f'{_SERVICES}\\xenvbd': [value]})
            self.assertEqual([], windows_xen.diagnose(self.check, fake))


class XenUnplugTest(unittest.TestCase):
    def setUp(self) -> None:
        self.check = xen_unplug.XenUnplug(fakes.request())

    def test_all_places(self) -> None:
        fake = windows_xen.guest(
            {
                f'{_SERVICES}\\XEN\\Unplug': [
                    registry.Value.dword('DISKS', 1),
                    registry.Value.dword('NICS', 1),
                ],
                f'{_SERVICES}\\XEN\\ForceUnplug': [
                    registry.Value.dword('DISKS', 1)
                ],
                f'{_SERVICES}\\xenfilt\\Parameters': [
                    registry.Value.sz('ActiveDeviceID', 'PCI\\VEN_5853'),
                    registry.Value.sz('ActiveInstanceID', '10'),
                    registry.Value.sz('ACPI\\PNP0A03', 'DEVICE'),
                ],
            }
        )
        found = windows_xen.diagnose(self.check, fake)
        self.assertEqual(4, len(found))
        self.assertIn('DISKS: REG_DWORD 0x1', found[0].evidence)
        self.assertEqual(4, len(windows_xen.repair(self.check, fake)))
        self.assertEqual([], windows_xen.diagnose(self.check, fake))
        tree = fake.hive(windows_xen.DEVICE, windows_xen.SYSTEM)
        self.assertNotIn(f'{_SERVICES}\\XEN\\Unplug', tree)
        self.assertEqual(
            ['ACPI\\PNP0A03'],
            [item.name for item in tree[f'{_SERVICES}\\xenfilt\\Parameters']],
        )

    def test_without_xen(self) -> None:
        fake = windows_xen.guest({f'{_SERVICES}\\XEN\\Parameters': []})
        self.assertEqual([], windows_xen.diagnose(self.check, fake))

    def test_zeros_ask_for_nothing(self) -> None:
        """As xenbus.inf of XCP-ng writes them."""
        fake = windows_xen.guest(
            {
                f'{_SERVICES}\\XEN\\Unplug': [
                    registry.Value.dword('NICS', 0),
                    registry.Value.dword('DISKS', 0),
                ],
                f'{_SERVICES}\\XEN\\ForceUnplug': [],
            }
        )
        self.assertEqual([], windows_xen.diagnose(self.check, fake))

    def test_hostile_content(self) -> None:
        fake = windows_xen.guest(
            {
                f'{_SERVICES}\\XEN\\Unplug': [
                    registry.Value.sz('\x1b[2J' * 1000, 'x' * 100_000),
                    *(registry.Value.dword(f'v{n}', n) for n in range(1000)),
                ]
            }
        )
        (finding,) = windows_xen.diagnose(self.check, fake)
        self.assertNotIn('\x1b', finding.evidence)
        self.assertLess(len(finding.evidence), 2000)


class StartOverrideTest(unittest.TestCase):
    #: The key as a Windows 10 hive of dissect.regf's tests has it.
    OVERRIDDEN = registry.Value('0', registry.DWORD, b'\3\0\0\0')

    def _guest(self, *names: str) -> windows_fakes.FakeWindows:
        tree: windows_fakes.Tree = {
            f'{_SERVICES}\\{name}\\StartOverride': [self.OVERRIDDEN]
            for name in names
        }
        return windows_xen.guest(tree)

    def test_fires_and_is_repaired(self) -> None:
        check = start_override.StartOverride(fakes.request())
        fake = self._guest('vioscsi', 'storahci', 'lsi_sas', 'PCI')
        found = windows_xen.diagnose(check, fake)
        self.assertEqual(
            [
                (f'{_SERVICES}\\PCI\\StartOverride', model.Severity.BLOCKER),
                (
                    f'{_SERVICES}\\vioscsi\\StartOverride',
                    model.Severity.BLOCKER,
                ),
                (
                    f'{_SERVICES}\\storahci\\StartOverride',
                    model.Severity.WARNING,
                ),
            ],
            [(item.subject, item.severity) for item in found],
        )
        self.assertEqual(3, len(windows_xen.repair(check, fake)))
        self.assertEqual([], windows_xen.diagnose(check, fake))
        tree = fake.hive(windows_xen.DEVICE, windows_xen.SYSTEM)
        self.assertIn(f'{_SERVICES}\\lsi_sas\\StartOverride', tree)
        self.assertIn(f'{_SERVICES}\\vioscsi', tree)

    def test_the_bus_that_was_asked_for(self) -> None:
        fake = self._guest('viostor', 'vioscsi', 'storahci', 'intelide')
        for bus, needed in (
            ('virtio', 'viostor'),
            ('scsi', 'vioscsi'),
            ('sata', 'storahci'),
            ('ide', 'intelide'),
        ):
            check = start_override.StartOverride(fakes.request(disk_bus=bus))
            self.assertEqual(
                [f'{_SERVICES}\\{needed}\\StartOverride'],
                [
                    item.subject
                    for item in windows_xen.diagnose(check, fake)
                    if item.severity is model.Severity.BLOCKER
                ],
            )

    def test_zero_is_harmless(self) -> None:
        check = start_override.StartOverride(fakes.request())
        path = f'{_SERVICES}\\disk\\StartOverride'
        for values in ([registry.Value.dword('0', 0)], []):
            fake = windows_xen.guest({path: values})
            self.assertEqual([], windows_xen.diagnose(check, fake))
        fake = windows_xen.guest(
            {
                path: [
                    registry.Value.dword('0', 0),
                    registry.Value.dword('1', 3),
                ]
            }
        )
        self.assertEqual(1, len(windows_xen.diagnose(check, fake)))

    def test_hostile_values(self) -> None:
        check = start_override.StartOverride(fakes.request())
        values = [registry.Value.sz('x' * 10_000, 'y' * 100_000)] * 1
        values += [registry.Value.binary(f'{n}', b'z' * 99) for n in range(99)]
        fake = windows_xen.guest({f'{_SERVICES}\\disk\\StartOverride': values})
        (finding,) = windows_xen.diagnose(check, fake)
        self.assertLess(len(finding.evidence), 2000)


if __name__ == '__main__':
    unittest.main()
