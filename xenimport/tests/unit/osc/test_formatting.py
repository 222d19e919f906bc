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
