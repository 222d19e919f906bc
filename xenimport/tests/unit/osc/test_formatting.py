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

from xenimport import model
from xenimport.osc import formatting


class SizeTest(unittest.TestCase):
    def test_units(self):
        for count, text in (
            (None, 'unknown'),
            (0, '0 B'),
            (1023, '1023 B'),
            (1024, '1.0 KiB'),
            (8 << 30, '8.0 GiB'),
            (5000 << 40, '5000.0 TiB'),
        ):
            self.assertEqual(text, formatting.size(count))


class FindingTest(unittest.TestCase):
    def test_form(self):
        self.assertEqual(
            'windows.ntfs-hibernated  blocker  Windows sleeps\n'
            'Evidence: hiberfil.sys\n'
            'Fix: shut it down\n'
            'Override: --accept windows.ntfs-hibernated (the session)',
            formatting.finding(
                model.Finding(
                    'windows.ntfs-hibernated',
                    model.Severity.BLOCKER,
                    'Windows sleeps',
                    'hiberfil.sys',
                    'shut it down',
                    loss='the session',
                )
            ),
        )

    def test_guest_cannot_write_to_the_terminal(self):
        shown = formatting.finding(
            model.Finding(
                'linux.a',
                model.Severity.NOTE,
                'title',
                'host \x1b]0;owned\x07 \x9b2J',
                'fix',
            )
        )
        self.assertNotRegex(shown, '[\x00-\x09\x0b-\x1f\x7f-\x9f]')
        self.assertIn('owned', shown)


class ReportTest(unittest.TestCase):
    def test_machine_sees_all_and_person_a_view(self):
        finding = model.Finding(
            'linux.a', model.Severity.NOTE, 'title', 'evidence', 'fix'
        )
        item = model.Report(
            source={
                'path': 'guest.ova',
                'format': 'ova',
                'creator': 'XenCenter',
                'name': 'guest',
                'vcpus': 2,
                'memory': 1 << 30,
                'firmware': None,
                'nics': [{'name': '0', 'mac': 'aa:bb', 'network': 'net'}],
                'disks': [
                    {
                        'index': 0,
                        'file': 'a.vhd',
                        'format': 'vhd',
                        'creator': 'caml',
                        'virtual_size': 8 << 30,
                    }
                ],
                'bytes_read': 4096,
            },
            findings=(finding,),
            remaining=(finding,),
            steps=(model.Step('copy disks', 1.5, 1 << 20),),
        )
        names, values = formatting.report(item)
        row = dict(zip(names, values, strict=True))
        self.assertEqual(
            'evidence', row['findings'].machine_readable()[0]['evidence']
        )
        self.assertIn('Evidence: evidence', row['findings'].human_readable())
        source = row['source'].human_readable()
        for text in (
            'guest.ova (ova, written by XenCenter)',
            'vCPUs: 2, memory: 1.0 GiB, firmware: not stated',
            'NIC 0: aa:bb on net',
            'disk 0: a.vhd, vhd by caml, 8.0 GiB',
            'read: 4.0 KiB',
        ):
            self.assertIn(text, source)
        self.assertEqual(
            'copy disks  1.5 s  1.0 MiB', row['steps'].human_readable()
        )
        self.assertIn('no operating', row['guest'].human_readable())


class GuestTest(unittest.TestCase):
    GUEST: typing.ClassVar[dict[str, typing.Any]] = {
        'family': 'windows',
        'distribution': 'windows',
        'version': '6.1',
        'product': 'Windows Server 2008 R2 Standard',
        'architecture': 'x86_64',
        'hostname': 'STORY',
        'root': '/dev/sda2',
        'kernels': [],
        'init': None,
    }

    def row(self, *texts: str, inbox: bool = False) -> dict[str, typing.Any]:
        names = (
            'published_name',
            'original_file_name',
            'class_name',
            'provider_name',
            'date',
            'version',
        )
        return {**dict(zip(names, texts, strict=True)), 'inbox': inbox}

    def test_windows_with_drivers(self):
        """The rows are those of dism in the story of the first guest."""
        rows = [
            self.row(*line.split('|'))
            for line in (
                'oem2.inf|xennet.inf|Net|Citrix|2/24/2016|8.1.0.42',
                'oem3.inf|xenvif.inf|System|Citrix|3/23/2016|8.1.0.62',
                'oem4.inf|xenvbd.inf|SCSIAdapter|Citrix|2/29/2016|8.1.0.130',
                'oem5.inf|xeniface.inf|System|Citrix|1/22/2016|8.1.0.26',
                'oem6.inf|xenbus.inf|System|Citrix|1/22/2016|8.1.0.63',
            )
        ]
        rows.append(self.row('x', 'y', '', '', '', '', inbox=True))
        head = 'Published Name | Original File Name | Inbox | Class Name  |'
        self.assertEqual(
            [
                'windows 6.1, x86_64 (Windows Server 2008 R2 Standard)',
                'host name: STORY, root: /dev/sda2',
                f'{head} Provider Name | Date      | Version',
                'oem2.inf       | xennet.inf         | No    | Net         | '
                'Citrix        | 2/24/2016 | 8.1.0.42',
                'oem3.inf       | xenvif.inf         | No    | System      | '
                'Citrix        | 3/23/2016 | 8.1.0.62',
                'oem4.inf       | xenvbd.inf         | No    | SCSIAdapter | '
                'Citrix        | 2/29/2016 | 8.1.0.130',
                'oem5.inf       | xeniface.inf       | No    | System      | '
                'Citrix        | 1/22/2016 | 8.1.0.26',
                'oem6.inf       | xenbus.inf         | No    | System      | '
                'Citrix        | 1/22/2016 | 8.1.0.63',
                'x              | y                  | Yes   |             | '
                '              |           |',
            ],
            formatting.guest({**self.GUEST, 'drivers': rows}).split('\n'),
        )

    def test_no_row_is_torn(self):
        row = self.row(
            'oem104.inf',
            'xeniface.inf',
            'SCSIAdapter',
            'Citrix Systems, Inc.',
            '10/24/2016',
            '8.2.0.1300',
        )
        report = model.Report(
            source={
                'path': '',
                'format': '',
                'creator': '',
                'name': '',
                'vcpus': 1,
                'memory': None,
                'firmware': None,
                'nics': [],
                'disks': [],
                'bytes_read': None,
            },
            guest={**self.GUEST, 'drivers': [row]},
        )
        names, values = formatting.report(report)
        shown = dict(zip(names, values, strict=True))['guest']
        self.assertEqual(4, len(shown.human_readable().split('\n')))
        self.assertEqual([row], shown.machine_readable()['drivers'])

    def test_windows_without(self):
        self.assertIn(
            'driver packages of other vendors: none',
            formatting.guest({**self.GUEST, 'drivers': []}),
        )

    def test_driver_cannot_write_to_the_terminal(self):
        row = self.row('a\x1b[2J', 'b\nc', 'd' * 500, '', '', '')
        lines = formatting.drivers([row])
        self.assertEqual(2, len(lines))
        self.assertNotRegex(''.join(lines), '[\x00-\x1f]')
        self.assertLess(len(lines[1]), 150)

    def test_linux_has_kernels_and_an_init(self):
        shown = formatting.guest(
            {
                **self.GUEST,
                'family': 'linux',
                'init': 'systemd',
                'kernels': ['6.1.0', '6.2.0'],
            }
        )
        self.assertIn(', init: systemd\nkernels: 6.1.0, 6.2.0', shown)
        self.assertNotIn('driver', shown)
