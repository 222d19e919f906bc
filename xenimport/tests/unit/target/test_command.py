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

"""Commands to paste, read back by a real shell."""

from __future__ import annotations

import shlex
import subprocess
import unittest

from xenimport import model
from xenimport import shell
from xenimport.target import command

HOSTILE = (
    'plain',
    'two words',
    "it's",
    '$(reboot)',
    '`id`',
    'a;b|c&d>e',
    '--delete',
    '',
    'new\nline',
    'bell\x07 and \x1b[31mred',
    "\x01'\\",
    '\x1fa9',
    'a\x01b',
    'line\nbreak and \u202eabc',
    'bidi\u202eoverride',
    'Zoë',
)


class QuoteTest(unittest.TestCase):
    def test_bash_reads_each_word_back(self) -> None:
        line = 'printf "%s\\0" ' + shell.join(*HOSTILE)
        output = subprocess.run(
            ['bash', '-c', line], capture_output=True, check=True
        ).stdout
        self.assertEqual(list(HOSTILE), output.decode().split('\0')[:-1])

    def test_digit_after_an_escape_is_not_swallowed(self) -> None:
        # ksh reads as many hexadecimal digits as follow.
        self.assertEqual("$'\\x0a'$'b\\x0ag'", shell.quote('\nb\ng'))

    def test_one_printable_line(self) -> None:
        for text in HOSTILE:
            self.assertTrue(shell.quote(text).isprintable(), text)


class ImageCreateTest(unittest.TestCase):
    def test_whole_line(self) -> None:
        request = model.ImageRequest(
            name='web 1',
            properties={'os_type': 'linux', 'hw_disk_bus': 'scsi'},
            tags=('a b',),
            visibility='private',
            protected=True,
            project='p1',
            min_disk=10,
            min_ram=2048,
        )
        self.assertEqual(
            'openstack image create --file=/out/disk0.raw '
            '--disk-format raw --container-format bare --private '
            '--protected --project=p1 --min-disk 10 --min-ram 2048 '
            "'--tag=a b' --property=hw_disk_bus=scsi "
            "--property=os_type=linux -- 'web 1'",
            command.image_create('/out/disk0.raw', request),
        )

    def test_name_is_no_option(self) -> None:
        words = shlex.split(
            command.image_create('d', model.ImageRequest('--public'))
        )
        self.assertEqual(['--', '--public'], words[-2:])

    def test_unprotected_is_said(self) -> None:
        line = command.image_create(
            'd', model.ImageRequest('n', protected=False)
        )
        self.assertIn(' --unprotected ', line)
