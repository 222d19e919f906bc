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


"""Sick Windows guests: each is found out, repaired, and sound after.

Several sicknesses a disk, since every look at one starts an appliance.
What a check says and writes is held against the keys and bytes that the
builder put there, read back by other tools.
"""

from __future__ import annotations

import copy
import pathlib
import struct

from xenimport.tests import bcd_stores
from xenimport.tests.functional import windows_cases
from xenimport.tests.functional import windows_disks
from xenimport.tests.functional import windows_packages
from xenimport.tests.functional import windows_reading
from xenimport.tests.functional import windows_volumes
from xenimport.tests import hives
from xenimport.tests import windows_hives

_SETS = ('ControlSet001', 'ControlSet002')
#: Values of StartOverride that Windows writes for a driver not in use.
_ASIDE = {'0': 3}


def sick_uefi() -> windows_disks.WindowsDisk:
    """Windows 10 on a GPT, with what stops it there."""
    made = windows_disks.WindowsDisk(
        windows_hives.WINDOWS_10,
        windows_disks.UEFI,
        windows_packages.CITRIX + windows_packages.VIRTIO,
    )
    windows_packages.put_xen(made.system)
    system = made.system
    system.put('Select', {'Default': 2})
    for name in _SETS:
        for service in ('storahci', 'vioscsi', 'viostor', 'pciide'):
            system.put(f'{name}\\Services\\{service}\\StartOverride', _ASIDE)
        classes = f'{name}\\Control\\Class'
        system.put(
            f'{classes}\\{windows_hives.DISK_CLASS}',
            {'UpperFilters': ['partmgr', 'scsifilt', 'avdisk']},
        )
        system.put(f'{name}\\Services\\partmgr\\Parameters', {'SanPolicy': 3})
    # An old driver, which knows no device of the machine type q35.
    for path in [path for path in system if 'VEN_1AF4&DEV_1048' in path]:
        system.drop(path)
    # A disk that was copied: other GUIDs than the store has.
    made.store = bcd_stores.store(
        'uefi',
        bcd_stores.gpt_device(_COPIED, windows_disks.ESP_GUID),
        bcd_stores.gpt_device(_COPIED, windows_disks.WINDOWS_GUID),
        recovery=bcd_stores.gpt_device(_COPIED, windows_disks.WINDOWS_GUID),
    )
    bcd_stores.put_element(
        made.store, bcd_stores.LOADER, '16000049', bcd_stores.boolean(True)
    )
    del made.boot_files['EFI/Boot/bootx64.efi']
    return made


_COPIED = '11111111-2222-3333-4444-555555555555'


class WindowsRepairTest(windows_cases.WindowsTest):
    """One test a disk."""

    def test_uefi(self) -> None:
        made = sick_uefi()
        newest = copy.deepcopy(made.system)
        for name in _SETS:
            newest.put(
                f'{name}\\Services\\OnlyInTheLog',
                {'Start': 3, 'Type': 1, 'Note': 'kept'},
            )
            newest.put(f'{name}\\Services\\Tcpip\\Parameters', {'Domain': 'x'})
        made.make_dirty('SYSTEM', newest, hives.dirty)
        disk = self.write(made)
        # With a file system of Linux, the quick search gives up.
        data = self.directory / 'data.raw'
        with open(data, 'wb') as stream:
            stream.truncate(4 * windows_disks.MIB)
        windows_volumes.run('/usr/sbin/mkfs.ext4', '-q', data)
        report = self.convert(
            disk, data, '--disk-bus', 'scsi', '--clock', 'utc'
        )
        self.see_uefi_findings(report)
        before = windows_reading.Snapshot(disk, made)
        # As hivex does not replay logs, this is what it would lose.
        before.hives['HKLM\\SYSTEM'] = windows_reading.read(
            hives.write(newest)
        )
        after = windows_reading.Snapshot(self.converted, made)
        self.assert_reported(before, after, report)
        self.see_uefi_result(after)
        again = self.inspect(
            self.converted, self.converted.with_name('disk1.raw'),
            '--disk-bus', 'scsi', code=0,
        )  # fmt: skip
        self.assertEqual(
            {
                'windows.boot-flags',
                'windows.filter-missing',
                'windows.san-policy',
                'windows.xen-packages',
            },
            windows_cases.ids(again, 'blocker', 'warning'),
        )

    def see_uefi_findings(self, report: windows_cases.Report) -> None:
        self.assertEqual(
            {
                'windows.boot-devices',
                'windows.start-override',
                'windows.uefi-fallback',
                'windows.xen-filters',
                'windows.xen-services',
            },
            windows_cases.ids(report, 'blocker') - {'windows.storage-driver'},
        )
        for finding, texts in {
            'windows.start-override': [
                f'HKLM\\SYSTEM\\{name}\\Services\\{service}\\StartOverride'
                for name in _SETS
                for service in ('storahci', 'vioscsi', 'pciide')
            ],
            'windows.xen-filters': [
                f'HKLM\\SYSTEM\\{name}\\Control\\Class\\{guid}'
                for name in _SETS
                for guid in (
                    windows_hives.DISK_CLASS,
                    windows_hives.SYSTEM_CLASS,
                    windows_hives.HDC_CLASS,
                )
            ],
            'windows.storage-driver': ['VEN_1AF4&DEV_1048'],
            'windows.filter-missing': ['avdisk'],
            'windows.boot-flags': ['testsigning'],
            'windows.hive-dirty': ['SYSTEM', 'SYSTEM.LOG1'],
            'windows.san-policy': ['SanPolicy: 3'],
            'windows.uefi-fallback': ['BOOTX64.EFI'],
            'windows.boot-devices': [_COPIED],
            'windows.control-set': ['ControlSet002'],
        }.items():
            told = '\n'.join(windows_cases.evidence(report, finding))
            for text in texts:
                self.assertIn(text.upper(), told.upper(), finding)

    def see_uefi_result(self, after: windows_reading.Snapshot) -> None:
        system = after.hives['HKLM\\SYSTEM']
        for name in _SETS:
            note = system[f'{name}\\Services\\OnlyInTheLog']['Note']
            self.assertEqual((1, hives.sz('kept')), note)
            kept = system[
                f'{name}\\Control\\Class\\{windows_hives.DISK_CLASS}'
            ]
            self.assertEqual(
                (7, hives.multi_sz('partmgr', 'avdisk')), kept['UpperFilters']
            )
            clock = system[f'{name}\\Control\\TimeZoneInformation']
            self.assertEqual((4, hives.dword(1)), clock['RealTimeIsUniversal'])
        self.assertEqual(
            after.file('windows', 'Windows/Boot/EFI/bootmgfw.efi'),
            after.file('system', 'EFI/BOOT/BOOTX64.EFI'),
        )
        for path, (_, data) in (
            (path, values['Element'])
            for path, values in after.hives['BCD'].items()
            if 'Element' in values and path.endswith('1000001')
        ):
            self.assertNotIn(b'\x11\x11\x22\x22\x33\x33', data, path)

    def test_bios_without_boot_files(self) -> None:
        made = windows_disks.WindowsDisk(
            windows_hives.WINDOWS_7_X86,
            windows_disks.ONE,
            windows_packages.CITRIX + windows_packages.VIRTIO,
        )
        windows_packages.put_xen(made.system)
        windows_hives.put_update(made.software, made.release)
        made.store = None
        del made.files['bootmgr']
        made.active = None
        newest = copy.deepcopy(made.system)
        newest.put('ControlSet001\\Services\\OnlyInTheLog', {'Start': 3})
        made.make_dirty('SYSTEM', newest, hives.dirty_old)
        disk = self.write(made)
        self.spoil_sectors(disk)
        report = self.convert(disk, '--xen-drivers', 'remove')
        self.assertLessEqual(
            {
                'windows.active-partition',
                'windows.boot-code',
                'windows.boot-manager',
                'windows.boot-store',
                'windows.disk-signature',
                'windows.hidden-sectors',
                'windows.xen-filters',
                'windows.xen-services',
            },
            windows_cases.ids(report, 'blocker'),
        )
        before = windows_reading.Snapshot(disk, made)
        before.hives['HKLM\\SYSTEM'] = windows_reading.read(
            hives.write(newest)
        )
        after = windows_reading.Snapshot(self.converted, made)
        self.assert_reported(before, after, report)
        self.see_bios_result(after)
        self.see_nothing_of_xen(after)
        again = self.inspect(self.converted, code=0)
        self.assertEqual(set(), windows_cases.ids(again, 'blocker', 'warning'))

    def spoil_sectors(self, disk: pathlib.Path) -> None:
        """No boot code, no signature, a wrong count of hidden sectors."""
        windows_disks.patch(disk, 0, bytes(446))
        part = windows_disks.ONE['windows']
        for place in (part.offset, part.offset + (part.size - 1) * 512):
            windows_disks.patch(disk, place + 0x1C, struct.pack('<I', 63))

    def see_bios_result(self, after: windows_reading.Snapshot) -> None:
        sector = after.sector()
        self.assertEqual(
            struct.pack('<I', windows_disks.SIGNATURE), sector[440:444]
        )
        self.assertEqual([0x80, 0, 0, 0], list(sector[446:510:16]))
        self.assertNotEqual(bytes(440), sector[:440])
        start = struct.pack('<I', 2048)
        self.assertEqual(start, after.sector(2048)[0x1C:0x20])
        part = windows_disks.ONE['windows']
        last = after.sector(part.start + part.size - 1)
        self.assertEqual(start, last[0x1C:0x20])
        self.assertEqual(
            after.file('windows', 'Windows/Boot/PCAT/bootmgr'),
            after.file('windows', 'bootmgr'),
        )
        device = bcd_stores.mbr_device(windows_disks.SIGNATURE, 1 << 20)
        store = after.hives['BCD']
        loaders = [
            path
            for path, values in store.items()
            if values.get('Type') == (4, struct.pack('<I', 0x10200003))
        ]
        self.assertTrue(loaders)
        for path in loaders:
            elements = path.replace('Description', 'Elements')
            found = store[f'{elements}\\21000001']['Element'][1]
            self.assertEqual(device, found)

    def see_nothing_of_xen(self, after: windows_reading.Snapshot) -> None:
        """What dism /remove-driver would have left."""
        system = after.hives['HKLM\\SYSTEM']
        self.assertIn('ControlSet001\\Services\\OnlyInTheLog', system)
        part = windows_disks.ONE['windows']
        with windows_disks.volume(self.converted, part) as volume:
            names = windows_volumes.names(volume)
        left = [
            name
            for name in names
            if pathlib.PurePosixPath(name)
            .name.lower()
            .startswith(('oem2.', 'oem3.', 'oem4.', 'oem5.', 'oem6.', 'xen'))
        ]
        self.assertEqual([], left)
        self.assertIn('/Windows/INF/oem11.inf', names)

    def test_healthy(self) -> None:
        made = windows_disks.WindowsDisk(
            windows_hives.WINDOWS_10,
            windows_disks.UEFI,
            windows_packages.VIRTIO,
        )
        report = self.inspect(self.write(made), code=0)
        self.assertEqual([], report['findings'])
