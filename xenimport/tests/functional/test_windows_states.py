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


"""Windows guests that were not shut down, or that hide their volume.

What is refused here is told with the command that helps in Windows, and
what can be overridden with what is lost.
"""

from __future__ import annotations

import pathlib

from xenimport.tests.functional import windows_cases
from xenimport.tests.functional import windows_disks
from xenimport.tests.functional import windows_packages
from xenimport.tests.functional import windows_volumes
from xenimport.tests import windows_hives

#: Where BitLocker has its name in a volume's first sector.
_ENCRYPTED = (3, b'-FVE-FS-')
_DATA = windows_disks.Part(2048, 4096)


def _guest() -> windows_disks.WindowsDisk:
    made = windows_disks.WindowsDisk(
        windows_hives.SERVER_2008_R2,
        windows_disks.TWO,
        windows_packages.VIRTIO,
    )
    windows_hives.put_update(made.software, made.release)
    return made


class WindowsStatesTest(windows_cases.WindowsTest):
    """Volumes that nothing may be written to, or that cannot be read."""

    def data_disk(self, name: str, kind: str) -> pathlib.Path:
        """A small disk with one partition and nothing on it."""
        disk = self.directory / name
        with open(disk, 'wb') as stream:
            stream.truncate(4 * windows_disks.MIB)
        row = f'start={_DATA.start}, size={_DATA.size}, type={kind}\n'
        windows_volumes.run(
            '/usr/sbin/sfdisk', '--quiet', disk,
            data=f'label: dos\n{row}'.encode(),
        )  # fmt: skip
        return disk

    def encrypt(self, disk: pathlib.Path, part: windows_disks.Part) -> None:
        offset, mark = _ENCRYPTED
        windows_disks.patch(disk, part.offset + offset, mark)

    def test_hibernated_and_dirty(self) -> None:
        made = _guest()
        made.files['hiberfil.sys'] = b'hibr'.ljust(65536, b'\0')
        disk = self.write(made)
        windows_volumes.set_dirty(disk, made.parts['system'])
        encrypted = self.data_disk('encrypted.raw', '7')
        self.encrypt(encrypted, _DATA)
        dynamic = self.data_disk('dynamic.raw', '42')
        report = self.inspect(disk, encrypted, dynamic)
        self.assertEqual(
            {'windows.ntfs-dirty', 'windows.ntfs-hibernated'},
            windows_cases.ids(report, 'blocker'),
        )
        self.assertEqual(
            {'windows.bitlocker', 'windows.dynamic-disk'},
            windows_cases.ids(report, 'warning'),
        )
        self.see_remedies(report)
        self.see_accepted(disk)

    def see_remedies(self, report: windows_cases.Report) -> None:
        found = {item['id']: item for item in report['findings']}
        for finding, evidence, fix in (
            ('windows.ntfs-hibernated', 'hiberfil.sys', 'shutdown /s /f'),
            ('windows.ntfs-dirty', '/dev/sda1', 'chkdsk /f'),
            ('windows.bitlocker', '/dev/sdb1', 'manage-bde -off'),
            ('windows.dynamic-disk', '/dev/sdc', 'basic disk'),
        ):
            self.assertIn(evidence, found[finding]['evidence'])
            self.assertIn(fix, found[finding]['fix'])
        for finding in ('windows.ntfs-hibernated', 'windows.ntfs-dirty'):
            self.assertTrue(found[finding]['loss'], finding)

    def see_accepted(self, disk: pathlib.Path) -> None:
        report = self.convert(
            disk, '--disk-bus', 'scsi',
            '--accept', 'windows.ntfs-hibernated',
            '--accept', 'windows.ntfs-dirty',
        )  # fmt: skip
        self.assertEqual([], windows_cases.blockers(report['remaining']))
        changed = [change['path'] for change in report['changes']]
        self.assertTrue([p for p in changed if 'hiberfil.sys' in p], changed)
        part = windows_disks.TWO['windows']
        with windows_disks.volume(self.converted, part) as volume:
            names = windows_volumes.names(volume)
        self.assertNotIn('/hiberfil.sys', names)

    def test_windows_out_of_reach(self) -> None:
        made = _guest()
        made.kinds['windows'] = '42'
        disk = self.write(made)
        self.encrypt(disk, made.parts['windows'])
        report = self.inspect(disk)
        self.assertLessEqual(
            {'windows.bitlocker', 'windows.dynamic-disk'},
            windows_cases.ids(report, 'blocker'),
        )
