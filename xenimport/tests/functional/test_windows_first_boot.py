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


"""The script for the first boot, in a whole guest and back out of it.

That Windows starts it is not shown: no Windows runs here.
"""

from __future__ import annotations

from xenimport.tests.functional import windows_cases
from xenimport.tests.functional import windows_disks
from xenimport.tests.functional import windows_packages
from xenimport.tests.functional import windows_reading
from xenimport.tests import hives
from xenimport.tests import windows_hives

_SCRIPT = b'@echo off\r\necho hello\r\n'


class FirstBootTest(windows_cases.WindowsTest):
    """A healthy guest gets a script, a prepared one does not."""

    def disk(self) -> windows_disks.WindowsDisk:
        return windows_disks.WindowsDisk(
            windows_hives.SERVER_2008_R2,
            windows_disks.TWO,
            windows_packages.VIRTIO,
        )

    def script(self) -> str:
        path = self.directory / 'mine.cmd'
        path.write_bytes(_SCRIPT)
        return str(path)

    def test_put_in(self) -> None:
        made = self.disk()
        disk = self.write(made)
        before = windows_reading.Snapshot(disk, made)
        # No driver here is signed.
        report = self.convert(
            disk, '--disk-bus', 'ide', '--first-boot-script', self.script()
        )
        after = windows_reading.Snapshot(self.converted, made)
        self.assert_reported(before, after, report)
        setup = after.hives['HKLM\\SYSTEM']['Setup']
        self.assertEqual((4, hives.dword(2)), setup['SetupType'])
        command = 'cmd.exe /c %SystemRoot%\\xenimport\\start.cmd'
        self.assertEqual((1, hives.sz(command)), setup['CmdLine'])
        self.assertEqual(
            _SCRIPT, after.file('windows', 'Windows/xenimport/first-boot.cmd')
        )
        start = after.file('windows', 'Windows/xenimport/start.cmd') or b''
        self.assertTrue(start.startswith(b'@echo off\r\n'), start)
        self.assertNotIn(
            'windows.first-boot',
            [finding['id'] for finding in report['remaining']],
        )

    def test_setup_of_its_own(self) -> None:
        made = self.disk()
        made.system.put(
            'Setup', {'SetupType': 2, 'CmdLine': 'oobe\\windeploy.exe'}
        )
        report = self.convert(
            self.write(made),
            '--disk-bus', 'ide', '--first-boot-script', self.script(),
            code=3,
        )  # fmt: skip
        (told,) = windows_cases.evidence(report, 'windows.first-boot')
        self.assertIn('HKLM\\SYSTEM\\Setup, value SetupType: 2', told)
        self.assertFalse(self.converted.exists())
