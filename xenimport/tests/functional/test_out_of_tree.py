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

"""A driver package from outside the tree, really installed and used."""

import json
import os
import struct
import subprocess
import sys
import tempfile
import unittest

_PACKAGE = os.path.join(os.path.dirname(__file__), 'out_of_tree')
_DISK_SIZE = 4 << 20


def disk_with_partition() -> bytes:
    """A RAW disk, one partition of type 0x83 from sector 2048 on."""
    disk = bytearray(_DISK_SIZE)
    disk[440:444] = b'\x78\x56\x34\x12'
    disk[446:462] = struct.pack(
        '<B3sB3sII',
        0x80,
        b'\x20\x21\x00',
        0x83,
        b'\x82\x02\x00',
        2048,
        _DISK_SIZE // 512 - 2048,
    )
    disk[510:512] = b'\x55\xaa'
    disk[1 << 20 : (1 << 20) + 12] = b'out of tree!'
    return bytes(disk)


class OutOfTreeTest(unittest.TestCase):
    def setUp(self):
        super().setUp()
        temporary = tempfile.TemporaryDirectory()
        self.addCleanup(temporary.cleanup)
        self.directory = temporary.name
        installed = self.path('installed')
        subprocess.run(
            [sys.executable, '-m', 'pip', 'install', '--quiet',
             '--no-deps', '--no-build-isolation', '--target', installed,
             self.copy_of_package()],
            check=True,
        )  # fmt: skip
        self.environment = dict(
            os.environ, HOME=self.directory, PYTHONPATH=installed
        )
        self.environment.pop('XDG_CACHE_HOME', None)
        self.disk = disk_with_partition()
        with open(self.path('disk.img'), 'wb') as stream:
            stream.write(b'HEXDISK\n' + self.disk.hex().encode())

    def path(self, name):
        return os.path.join(self.directory, name)

    def copy_of_package(self):
        # The build writes beside its sources, which may be read-only.
        copy = self.path('source')
        os.mkdir(copy)
        for name in ('pyproject.toml', 'xenimport_hexadecimal.py'):
            with open(os.path.join(_PACKAGE, name), 'rb') as stream:
                content = stream.read()
            with open(os.path.join(copy, name), 'wb') as stream:
                stream.write(content)
        return copy

    def configure(self, text):
        with open(self.path('xenimport.conf'), 'w') as stream:
            stream.write(text)

    def openstack(self, *arguments):
        return subprocess.run(
            [os.path.join(os.path.dirname(sys.executable), 'openstack'),
             'image', 'import-xen', *arguments],
            env=self.environment, capture_output=True, text=True,
            timeout=120,
        )  # fmt: skip

    def test_listed_but_not_enabled(self):
        listed = self.openstack('driver', 'list', '-f', 'json')
        self.assertEqual(0, listed.returncode, listed.stderr)
        row = {row['Name']: row for row in json.loads(listed.stdout)}[
            'hexadecimal'
        ]
        self.assertEqual('converter', row['Kind'])
        self.assertFalse(row['Enabled'])
        self.assertEqual('disks written as hexadecimal text', row['Handles'])

    def test_enabled_with_its_option_it_is_used(self):
        self.configure(
            '[import_xen]\nenabled_converters = hexadecimal,vhd,raw\n'
            '[converter_hexadecimal]\nlimit = 9000000\n'
        )
        output = self.path('output')
        done = self.openstack(
            'convert', '--no-repair', '--output', output,
            self.path('disk.img'),
        )  # fmt: skip
        self.assertEqual(0, done.returncode, done.stderr)
        with open(os.path.join(output, 'disk0.raw'), 'rb') as stream:
            self.assertEqual(self.disk, stream.read())

    def test_its_own_error_is_shown(self):
        self.configure(
            '[import_xen]\nenabled_converters = hexadecimal,vhd,raw\n'
        )
        done = self.openstack(
            'convert', '--no-repair', '--output', self.path('output'),
            self.path('disk.img'),
        )  # fmt: skip
        self.assertEqual(1, done.returncode)
        self.assertIn('hexadecimal.too-long', done.stderr)
        self.assertIn('[converter_hexadecimal]', done.stderr)
        self.assertNotIn('Traceback', done.stderr)
