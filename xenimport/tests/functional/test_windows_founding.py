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


"""The guest that the project began with: Windows Server 2008 R2 of Xen.

Exported by XenCenter, it found no disk, then stopped with a blue screen,
and was mended by hand with bcdboot and dism on another Windows.
"""

from __future__ import annotations

from collections.abc import Mapping
import json
import pathlib

from xenimport.tests.functional import commands
from xenimport.tests.functional import windows_cases
from xenimport.tests.functional import windows_disks
from xenimport.tests.functional import windows_packages
from xenimport.tests.functional import windows_reading
from xenimport.tests import bcd_stores
from xenimport.tests import packages
from xenimport.tests import windows_hives

#: A signature that the disk does not have.
_STALE = 0x1234ABCD
_BLOCKERS = {
    'windows.boot-devices',
    'windows.storage-driver',
    'windows.xen-filters',
    'windows.xen-services',
}


def founding_disk(
    parts: Mapping[str, windows_disks.Part] = windows_disks.TWO,
) -> windows_disks.WindowsDisk:
    """Five packages of Citrix, a stale BCD, vioscsi not for booting."""
    made = windows_disks.WindowsDisk(
        windows_hives.SERVER_2008_R2,
        parts,
        (*windows_packages.CITRIX, windows_packages.VIOSCSI),
    )
    windows_packages.put_xen(made.system)
    windows_packages.put_tools(made.software)
    windows_hives.put_update(made.software, made.release)
    windows_packages.put_static_address(made.system)
    for name in ('ControlSet001', 'ControlSet002'):
        made.system.put(f'{name}\\Services\\vioscsi', {'Start': 3})
    made.store = bcd_stores.store(
        'bios',
        made.device('system', _STALE),
        made.device('windows', _STALE),
        recovery=made.device('windows', _STALE),
    )
    return made


class FoundingCaseTest(windows_cases.WindowsTest, commands.CloudCommandTest):
    """From XenCenter's OVA into Glance, and looked at again."""

    def ova(self, disk: pathlib.Path) -> pathlib.Path:
        vhd = self.directory / 'disk.vhd'
        packages.vhd_from_raw(str(disk), str(vhd))
        described = packages.Disk('xvda', 'disk.vhd', disk.stat().st_size)
        path = self.directory / 'win2k8r2.ova'
        packages.write_ova(
            str(path),
            [
                (
                    'win2k8r2.ovf',
                    packages.xencenter_ovf(
                        [described],
                        name='win2k8r2',
                        settings={'HVM_boot_policy': 'BIOS order'},
                    ),
                ),
                ('disk.vhd', str(vhd)),
            ],
        )
        vhd.unlink()
        return path

    def test_repaired_into_glance(self) -> None:
        made = founding_disk()
        disk = self.write(made)
        ova = self.ova(disk)
        with self.subTest('inspect'):
            self.see_what_is_wrong(ova)
        with self.subTest('import'):
            report = self.bring(ova)
            self.see_what_was_done(made, disk, report)

    def see_what_is_wrong(self, ova: pathlib.Path) -> None:
        report = self.inspect(ova, '--disk-bus', 'scsi')
        rows = [
            (
                row['published_name'],
                row['original_file_name'],
                row['class_name'],
                row['date'],
                row['version'],
            )
            for row in report['guest']['drivers']
            if row['provider_name'] == 'Citrix'
        ]
        self.assertEqual(list(windows_packages.CITRIX_ROWS), rows)
        self.assertEqual(
            {False}, {row['inbox'] for row in report['guest']['drivers']}
        )
        self.assertEqual(_BLOCKERS, windows_cases.ids(report, 'blocker'))
        self.see_keys_named(report)

    def see_keys_named(self, report: windows_cases.Report) -> None:
        """Each finding says in which key or file it stands."""
        control = 'HKLM\\SYSTEM\\ControlSet001'
        for finding, places in {
            'windows.xen-filters': (
                f'{control}\\Control\\Class\\{windows_hives.SYSTEM_CLASS}',
                f'{control}\\Control\\Class\\{windows_hives.HDC_CLASS}',
            ),
            'windows.xen-services': (
                f'{control}\\Services\\xenbus',
                f'{control}\\Services\\xenfilt',
                f'{control}\\Services\\xenvbd',
            ),
            'windows.storage-driver': (f'{control}\\Services\\vioscsi',),
            'windows.xen-unplug': (f'{control}\\Services\\XEN\\ForceUnplug',),
            'windows.xen-tools': ('Citrix XenServer Tools Installer',),
            'windows.static-network': ('192.0.2.15/24', windows_hives.CARD),
            'windows.boot-devices': (
                'BCD: ApplicationDevice of the loader',
                'BCD: OSDevice of the loader',
                '0x1234abcd',
            ),
        }.items():
            evidence = '\n'.join(windows_cases.evidence(report, finding))
            for place in places:
                self.assertIn(place.upper(), evidence.upper(), finding)

    def bring(self, ova: pathlib.Path) -> windows_cases.Report:
        path = self.directory / 'report.json'
        done = self.openstack(
            'import-xen', ova, '--disk-bus', 'scsi', '--report', path
        )
        self.assertEqual(0, done.code, done.stderr)
        report: windows_cases.Report = json.loads(path.read_text())
        self.assertEqual([], windows_cases.blockers(report['remaining']))
        return report

    def see_what_was_done(
        self,
        made: windows_disks.WindowsDisk,
        disk: pathlib.Path,
        report: windows_cases.Report,
    ) -> None:
        (image,) = self.images()
        self.addCleanup(self.openstack, 'delete', image['ID'])
        shown = self.openstack('show', image['ID'], '-f', 'json').json()
        properties = shown['properties']
        for name, value in {
            'hw_disk_bus': 'scsi',
            'hw_scsi_model': 'virtio-scsi',
            'os_type': 'windows',
            'os_distro': 'win2k8r2',
            'hw_firmware_type': 'bios',
        }.items():
            self.assertEqual(value, properties.get(name), name)
        result = self.directory / 'result.raw'
        self.download(image['ID'], result)
        before = windows_reading.Snapshot(disk, made)
        after = windows_reading.Snapshot(result, made)
        self.assert_reported(before, after, report)
        # What setup made of the disk's true signature.
        made.store = bcd_stores.store(
            'bios',
            made.device('system'),
            made.device('windows'),
            recovery=made.device('windows'),
        )
        self.assertEqual(
            windows_reading.read(made.store_file()), after.hives['BCD']
        )
        again = self.inspect(result, '--disk-bus', 'scsi', code=0)
        self.assertEqual(set(), windows_cases.ids(again, 'blocker'))

    def download(self, image_id: str, path: pathlib.Path) -> None:
        done = self.openstack('save', '--file', path, image_id)
        self.assertEqual(0, done.code, done.stderr)
