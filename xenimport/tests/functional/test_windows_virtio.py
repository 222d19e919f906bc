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


"""Windows guests and the drivers that they need on KVM.

Without a virtio driver the image asks for an emulated disk, and says so;
with --virtio-win the drivers are put in, from a directory or an ISO as
virtio-win's are. Drivers are PE files with catalogs signed here, to the
names and structure of the genuine chains.
"""

from __future__ import annotations

import os
import pathlib

import pycdlib

from xenimport.tests.functional import windows_cases
from xenimport.tests.functional import windows_disks
from xenimport.tests.functional import windows_packages
from xenimport.tests.functional import windows_reading
from xenimport.tests import hives
from xenimport.tests import windows_drivers
from xenimport.tests import windows_hives

_SERVICES = 'ControlSet001\\Services'
_DATABASE = 'DriverDatabase'


def write_iso(tree: pathlib.Path, path: pathlib.Path) -> None:
    """An ISO with Joliet names of all in a directory."""
    iso = pycdlib.PyCdlib()
    iso.new(interchange_level=3, joliet=3)
    for directory, _, names in sorted(os.walk(tree)):
        place = pathlib.Path(directory).relative_to(tree)
        joliet = '' if place == pathlib.Path('.') else f'/{place}'
        if joliet:
            iso.add_directory(joliet.upper(), joliet_path=joliet)
        for name in names:
            iso.add_file(
                os.path.join(directory, name),
                f'{joliet}/{name};1'.upper(),
                joliet_path=f'{joliet}/{name}',
            )
    iso.write(str(path))
    iso.close()


class WindowsVirtioTest(windows_cases.WindowsTest):
    """Drivers that are there, are not, or are not good enough."""

    def test_falls_back(self) -> None:
        made = windows_disks.WindowsDisk(
            windows_hives.SERVER_2008_R2,
            windows_disks.TWO,
            (*windows_packages.CITRIX, *windows_packages.VIRTIO[:2]),
        )
        windows_hives.put_update(made.software, made.release)
        windows_packages.put_xen(made.system)
        self.spoil_drivers(made)
        made.system.put(f'{_SERVICES}\\intelide', {'Start': 3})
        made.system.put(f'{_SERVICES}\\volmgr', {'Start': 3})
        disk = self.write(made)
        for bus, finding in (
            ('virtio', 'windows.storage-driver'),
            ('scsi', 'windows.storage-signature'),
        ):
            report = self.convert(disk, '--disk-bus', bus, code=3)
            self.assertIn(
                finding,
                [
                    item['id']
                    for item in report['findings']
                    if item['severity'] == 'blocker' and not item['repair']
                ],
            )
            self.assertFalse(self.converted.exists())
        report = self.convert(disk)
        self.see_fallback(report)
        before = windows_reading.Snapshot(disk, made)
        after = windows_reading.Snapshot(self.converted, made)
        self.assert_reported(before, after, report)
        for service in ('intelide', 'volmgr'):
            self.assertEqual(
                (4, hives.dword(0)),
                after.hives['HKLM\\SYSTEM'][f'{_SERVICES}\\{service}'][
                    'Start'
                ],
            )
        again = self.inspect(self.converted, code=0)
        self.assertIn(
            'windows.fallback-bus', windows_cases.ids(again, 'warning')
        )

    def spoil_drivers(self, made: windows_disks.WindowsDisk) -> None:
        """One is for another processor, one is signed for tests."""
        made.files[f'{windows_disks.DRIVERS}/viostor.sys'] = (
            windows_drivers.program(windows_drivers.X86)
        )
        spoilt = windows_drivers.package(
            'vioscsi', chain=windows_drivers.test_certificate()
        )
        for path in made.files:
            if path.lower().endswith('oem11.cat'):
                made.files[path] = spoilt['vioscsi.cat']
            if path.lower().endswith('vioscsi.sys'):
                made.files[path] = spoilt['vioscsi.sys']

    def see_fallback(self, report: windows_cases.Report) -> None:
        (image,) = report['images']
        properties = image['properties']
        self.assertEqual('ide', properties['hw_disk_bus'])
        self.assertEqual('e1000', properties['hw_vif_model'])
        self.assertNotIn('hw_scsi_model', properties)
        (told,) = windows_cases.evidence(report, 'windows.fallback-bus')
        self.assertIn('viostor.sys is for x86, not for amd64', told)
        self.assertIn('vioscsi: ', told)
        blockers = windows_cases.ids(report, 'blocker')
        self.assertIn('windows.boot-services', blockers)
        self.assertIn('windows.inbox-driver', blockers)

    def test_installed_from_a_directory(self) -> None:
        made = windows_disks.WindowsDisk(
            windows_hives.SERVER_2019, windows_disks.TWO
        )
        disk = self.write(made)
        tree = self.directory / 'virtio-win'
        windows_drivers.virtio_win_tree(str(tree))
        self.install(made, disk, tree, '2k19')

    def test_installed_from_an_iso(self) -> None:
        made = windows_disks.WindowsDisk(
            windows_hives.WINDOWS_7_X86, windows_disks.ONE
        )
        windows_hives.put_update(made.software, made.release)
        disk = self.write(made)
        tree = self.directory / 'virtio-win'
        windows_drivers.virtio_win_tree(str(tree), ('w7', 'w10'))
        iso = self.directory / 'virtio-win.iso'
        write_iso(tree, iso)
        self.install(made, disk, iso, 'w7')

    def install(
        self,
        made: windows_disks.WindowsDisk,
        disk: pathlib.Path,
        source: pathlib.Path,
        release: str,
    ) -> None:
        report = self.convert(disk, '--virtio-win', source)
        self.assertIn(
            'windows.storage-driver', windows_cases.ids(report, 'blocker')
        )
        (image,) = report['images']
        self.assertEqual('virtio', image['properties']['hw_disk_bus'])
        # Windows 7 has no driver database to put a network driver into.
        network = made.release.database
        self.assertEqual(
            'virtio' if network else 'e1000',
            image['properties']['hw_vif_model'],
        )
        before = windows_reading.Snapshot(disk, made)
        after = windows_reading.Snapshot(self.converted, made)
        self.assert_reported(before, after, report)
        self.see_installed(made, after, release)
        again = self.inspect(self.converted, code=0)
        self.assertEqual(
            set() if network else {'windows.virtio-drivers'},
            windows_cases.ids(again, 'blocker', 'warning'),
        )
        rows = {
            row['original_file_name']: row['published_name']
            for row in again['guest']['drivers']
        }
        installed = {'vioscsi.inf', 'viostor.inf'}
        if network:
            installed.add('netkvm.inf')
        self.assertEqual(installed, set(rows))
        self.assertEqual(len(rows), len(set(rows.values())))

    def see_installed(
        self,
        made: windows_disks.WindowsDisk,
        after: windows_reading.Snapshot,
        release: str,
    ) -> None:
        """Services, bindings and files, as the INF would have them."""
        system = after.hives['HKLM\\SYSTEM']
        arch = made.release.architecture
        for driver, ids, bus in (
            ('viostor', ('1001', '1042'), 1),
            ('vioscsi', ('1004', '1048'), 0x0A),
        ):
            digest = 'sha256' if made.release.database else 'sha1'
            files = windows_drivers.package(driver, arch, None, digest)
            self.assertEqual(
                files[f'{driver}.sys'],
                after.file('windows', f'{windows_disks.DRIVERS}/{driver}.sys'),
                release,
            )
            service = system[f'{_SERVICES}\\{driver}']
            self.assertEqual((4, hives.dword(0)), service['Start'])
            self.assertEqual((4, hives.dword(1)), service['Type'])
            parameters = f'{_SERVICES}\\{driver}\\Parameters'
            self.assertEqual(
                (4, hives.dword(bus)), system[parameters]['BusType']
            )
            for number in ids:
                self.see_bound(made, system, driver, number)

    def see_bound(
        self,
        made: windows_disks.WindowsDisk,
        system: windows_reading.Hive,
        driver: str,
        number: str,
    ) -> None:
        """A PCI id leads to the driver, by the database of its release."""
        if not made.release.database:
            critical = 'ControlSet001\\Control\\CriticalDeviceDatabase'
            values = {path.upper(): values for path, values in system.items()}[
                f'{critical}\\PCI#VEN_1AF4&DEV_{number}'.upper()
            ]
            self.assertEqual((1, hives.sz(driver)), values['Service'])
            return
        key = f'{_DATABASE}\\DeviceIds\\PCI\\VEN_1AF4&DEV_{number}'
        (published,) = system[key]
        files = f'{_DATABASE}\\DriverInfFiles\\{published}'
        name = system[files][''][1].decode('utf-16-le').split('\0')[0]
        package = f'{_DATABASE}\\DriverPackages\\{name}\\Configurations\\'
        services = {
            values['Service'][1].decode('utf-16-le').rstrip('\0')
            for path, values in system.items()
            if path.startswith(package) and 'Service' in values
        }
        self.assertEqual({driver}, services)
