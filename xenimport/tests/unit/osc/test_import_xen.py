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

import contextlib
import io
import os
import pathlib
import tempfile
import types
import unittest
from unittest import mock

from xenimport import exceptions
from xenimport import model
from xenimport.osc import base
from xenimport.osc import import_xen
from xenimport.workflow import run


class ArgumentsTest(unittest.TestCase):
    def setUp(self):
        super().setUp()
        app = mock.Mock(
            spec_set=['client_manager', 'command_options', 'options']
        )
        app.options = types.SimpleNamespace(debug=False)
        self.command = import_xen.ImportXen(app, None)
        self.parser = self.command.get_parser('openstack image import-xen')

    def request(self, *arguments):
        return self.command._image_request(
            self.parser.parse_args(['guest.ova', *arguments])
        )

    def test_defaults_leave_everything_to_package_and_cloud(self):
        self.assertEqual(model.ImageRequest(name=''), self.request())

    def test_everything_as_image_create_spells_it(self):
        self.assertEqual(
            model.ImageRequest(
                name='web',
                properties={'a': '1', 'b': '2'},
                tags=('x', 'y'),
                visibility='shared',
                protected=True,
            ),
            self.request(
                '--name', 'web', '--property', 'a=1', '--property', 'b=2',
                '--tag', 'x', '--tag', 'y', '--shared', '--protected',
                '--min-disk', '7', '--min-ram', '512',
            ),
        )  # fmt: skip

    def test_visibilities_exclude_each_other(self):
        with (
            self.assertRaises(SystemExit) as caught,
            contextlib.redirect_stderr(io.StringIO()),
        ):
            self.parser.parse_args(['guest.ova', '--public', '--private'])
        self.assertEqual(2, caught.exception.code)

    def test_settings(self):
        settings = base.settings(
            self.parser.parse_args(
                ['guest.ova', '--disk-bus', 'scsi', '--no-repair',
                 '--accept', 'linux.a', '--accept', 'linux.b',
                 '--keep-workfile', '--work-dir', '/srv']
            )
        )  # fmt: skip
        self.assertEqual(('guest.ova',), settings.packages)
        self.assertEqual('scsi', settings.disk_bus)
        self.assertFalse(settings.repair)
        self.assertEqual({'linux.a', 'linux.b'}, settings.accept)
        self.assertTrue(settings.keep_workfile)
        self.assertEqual('/srv', settings.work_dir)
        self.assertIsNone(settings.min_disk)

    def test_what_is_read_and_made(self):
        plain = base.settings(self.parser.parse_args(['guest.xva']))
        self.assertIsNone(plain.system)
        self.assertTrue(plain.verify_manifest)
        self.assertEqual('raw', plain.disk_format)
        asked = base.settings(
            self.parser.parse_args(
                ['root.vhd', 'data.vhd', '--system', 'web',
                 '--no-verify-manifest', '--disk-format', 'qcow2']
            )
        )  # fmt: skip
        self.assertEqual(('root.vhd', 'data.vhd'), asked.packages)
        self.assertEqual('web', asked.system)
        self.assertFalse(asked.verify_manifest)
        self.assertEqual('qcow2', asked.disk_format)

    def test_windows_is_left_to_the_defaults(self):
        plain = base.settings(self.parser.parse_args(['guest.xva']))
        self.assertEqual('disable', plain.xen_drivers)
        self.assertEqual('auto', plain.clock)
        self.assertIsNone(plain.virtio_win)
        self.assertIsNone(plain.first_boot_script)

    def test_windows_as_it_is_asked(self):
        with tempfile.TemporaryDirectory() as directory:
            script = os.path.join(directory, 'first.cmd')
            pathlib.Path(script).write_text('echo hello\r\n')
            asked = base.settings(
                self.parser.parse_args(
                    ['guest.xva', '--xen-drivers', 'remove', '--clock', 'utc',
                     '--virtio-win', directory,
                     '--first-boot-script', script]
                )
            )  # fmt: skip
        self.assertEqual('remove', asked.xen_drivers)
        self.assertEqual('utc', asked.clock)
        self.assertEqual(directory, asked.virtio_win)
        self.assertEqual(script, asked.first_boot_script)

    def test_file_that_is_not_there_is_told_at_once(self):
        for option in ('--virtio-win', '--first-boot-script'):
            arguments = self.parser.parse_args(
                ['guest.xva', option, '/nonexistent/file']
            )
            with self.assertRaises(exceptions.ConfigurationError) as caught:
                base.settings(arguments)
            self.assertEqual(
                'configuration.file-unreadable', caught.exception.id
            )
            self.assertEqual('/nonexistent/file', caught.exception.where)
            self.assertIn(option, caught.exception.message)

    def test_script_that_cannot_be_taken_is_told_at_once(self):
        with tempfile.NamedTemporaryFile(suffix='.sh') as script:
            arguments = self.parser.parse_args(
                ['guest.xva', '--first-boot-script', script.name]
            )
            with self.assertRaises(exceptions.ConfigurationError) as caught:
                base.settings(arguments)
        self.assertEqual('windows.first-boot-script', caught.exception.id)

    def test_script_without_a_repair_is_a_mistake(self):
        with tempfile.NamedTemporaryFile(suffix='.cmd') as script:
            arguments = self.parser.parse_args(
                ['guest.xva', '--no-repair',
                 '--first-boot-script', script.name]
            )  # fmt: skip
            with self.assertRaises(exceptions.ConfigurationError) as caught:
                base.settings(arguments)
        self.assertEqual('configuration.no-repair', caught.exception.id)

    def bus(self, *arguments):
        parsed = self.parser.parse_args(['guest.xva', *arguments])
        image = self.command._image_request(parsed)
        return base.settings(parsed, image=image).disk_bus

    def test_bus_of_a_property_is_what_the_guest_is_made_ready_for(self):
        scsi = ('--property', 'hw_disk_bus=scsi')
        self.assertEqual('auto', self.bus())
        self.assertEqual('scsi', self.bus(*scsi))
        self.assertEqual('scsi', self.bus(*scsi, '--disk-bus', 'auto'))
        self.assertEqual('scsi', self.bus(*scsi, '--disk-bus', 'scsi'))
        # A bus that this tool does not know is left to the user.
        self.assertEqual('auto', self.bus('--property', 'hw_disk_bus=fdc'))
        with self.assertRaises(exceptions.ConfigurationError) as caught:
            self.bus(*scsi, '--disk-bus', 'ide')
        self.assertEqual('configuration.disk-bus-twice', caught.exception.id)

    def test_zero_is_a_wish_and_less_is_a_mistake(self):
        settings = base.settings(
            self.parser.parse_args(
                ['guest.ova', '--min-ram', '0', '--min-disk', '7']
            )
        )
        self.assertEqual((7, 0), (settings.min_disk, settings.min_ram))
        with (
            self.assertRaises(SystemExit) as caught,
            contextlib.redirect_stderr(io.StringIO()),
        ):
            self.parser.parse_args(['guest.ova', '--min-ram', '-1'])
        self.assertEqual(2, caught.exception.code)

    def test_a_dry_run_needs_no_cloud(self):
        for arguments, needed in (
            (['guest.ova'], True),
            (['guest.ova', '--dry-run'], False),
        ):
            self.command.app.command_options = arguments
            self.assertIs(needed, self.command.auth_required)

    def test_report_that_cannot_be_written_is_refused_at_once(self):
        arguments = self.parser.parse_args(
            ['guest.ova', '--report', '/nonexistent/report.json']
        )
        with self.assertRaises(exceptions.XenImportError) as caught:
            base.settings(arguments)
        self.assertEqual('report.not-written', caught.exception.id)

    def test_dry_run_needs_no_target_and_exits_3_when_blocked(self):
        report = model.Report(
            source={
                'path': 'guest.ova', 'format': 'ova', 'creator': None,
                'name': 'g', 'vcpus': None, 'memory': None,
                'firmware': None, 'nics': [], 'disks': [],
                'bytes_read': 0,
            },
            remaining=(
                model.Finding(
                    'linux.a', model.Severity.BLOCKER, 't', 'e', 'f'
                ),
            ),
        )  # fmt: skip
        arguments = self.parser.parse_args(['guest.ova', '--dry-run'])
        with mock.patch.object(
            run, 'inspect', autospec=True, return_value=report
        ) as look:
            columns, rows = self.command.take_action(arguments)
        self.assertTrue(look.call_args.kwargs['rehearse'])
        self.assertEqual(('Field', 'Value'), columns)
        self.assertIn('remaining', [name for name, _value in rows])
        self.assertEqual(3, self.command.exit_code)


class RowTest(unittest.TestCase):
    def test_row_matches_columns(self):
        image = model.Image(
            0, 'id', 'name', 'active', 512, 'md5', 'sha512', 'ab',
            {'hw_disk_bus': 'virtio'},
        )  # fmt: skip
        row = dict(
            zip(import_xen._COLUMNS, import_xen._row(image), strict=True)
        )
        self.assertEqual('active', row['Status'])
        self.assertEqual('ab', row['Hash Value'])
        self.assertEqual(
            {'hw_disk_bus': 'virtio'}, row['Properties'].machine_readable()
        )
