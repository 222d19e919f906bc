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

"""The main job: the sample guest goes from its OVA into a real Glance."""

from __future__ import annotations

import json
import os
import pathlib
import re
import subprocess
import sys
import typing

from xenimport.tests.functional import commands
from xenimport.tests.functional import guests
from xenimport.tests.functional import qemu
from xenimport.tests.functional import services

#: What stops the sample guest, or would trouble it, on KVM.
_EXPECTED = {
    'linux.boot-code',
    'linux.boot-configuration',
    'linux.console',
    'linux.device-names',
    'linux.initramfs-virtio',
    'linux.module-blacklist',
    'linux.persistent-net',
    'linux.xen-guest-tools',
}


class SampleGuestTest(commands.CloudCommandTest):
    guest: guests.Guest

    @classmethod
    def setUpClass(cls) -> None:
        super().setUpClass()
        cls.guest = guests.build()

    def fingerprint(self) -> tuple[int, int]:
        status = os.stat(self.guest.ova)
        return status.st_size, status.st_mtime_ns

    def test_inspect_says_why_and_copies_nothing(self) -> None:
        before = self.fingerprint()
        done = self.openstack(
            'import-xen', 'inspect', self.guest.ova, '-f', 'json'
        )
        self.assertEqual(3, done.code, done.stderr)
        report = done.json()
        self.assertEqual('xenimport.report/1', report['schema'])
        self.assertEqual('debian', report['guest']['distribution'])
        self.assertEqual('12', report['guest']['version'].split('.')[0])
        self.assertEqual('caml', report['source']['disks'][0]['creator'])
        found = {finding['id'] for finding in report['findings']}
        self.assertLessEqual(_EXPECTED, found)
        for finding in report['findings']:
            self.assertTrue(finding['evidence'], finding['id'])
        # 1200 MiB are the disk; a fraction of it says all.
        self.assertGreater(report['source']['bytes_read'], 1 << 20)
        self.assertLess(report['source']['bytes_read'], 300 << 20)
        self.assertEqual(before, self.fingerprint())
        self.assert_nothing_left()

    def test_dry_run_names_each_change_and_makes_none(self) -> None:
        before = self.fingerprint()
        report_file = self.directory / 'report.json'
        done = self.openstack(
            'import-xen', '--dry-run', '--report', report_file,
            self.guest.ova,
        )  # fmt: skip
        self.assertEqual(0, done.code, done.stderr)
        report = json.loads(report_file.read_text())
        paths = {change['path'] for change in report['changes']}
        self.assertIn('/etc/fstab', paths)
        for change in report['changes']:
            self.assertNotEqual(change['before'], change['after'], change)
            self.assertTrue(change['undo'], change)
        self.assertEqual([], blockers(report['remaining']))
        self.assertEqual([], report['images'])
        self.assertEqual(before, self.fingerprint())
        self.assert_nothing_left()

    def import_and_boot(self, bus: str) -> dict[str, typing.Any]:
        """Import with a disk bus, boot what Glance gives back on it."""
        done = self.openstack(
            'import-xen', self.guest.ova, '--name', f'web-{bus}',
            '--disk-bus', bus, '--property', 'owner_team=web',
            '--tag', 'from-xen', '-f', 'json',
        )  # fmt: skip
        self.assertEqual(0, done.code, done.stderr)
        (row,) = done.json()
        self.addCleanup(self.openstack, 'delete', row['ID'])
        self.assertEqual('active', row['Status'])
        self.assertEqual(self.guest.spec.disk_size, row['Size'])
        self.assertRegex(done.stderr, '--mac-address 00:16:3e:5a:4d:01')
        self.assertRegex(done.stderr, 'openstack server create')
        shown = self.openstack('show', row['ID'], '-f', 'json').json()
        self.assertEqual(['from-xen'], shown['tags'])
        self.assertEqual(2, shown['min_disk'])
        self.assertEqual(1024, shown['min_ram'])
        raw = self.directory / 'downloaded.raw'
        saved = self.openstack('save', row['ID'], '--file', raw)
        self.assertEqual(0, saved.code, saved.stderr)
        boot = qemu.boot(raw, bus=bus)
        self.assertTrue(boot.reached, f'{boot}\n{boot.serial[-3000:]}')
        self.assertGreater(boot.writes, 0, str(boot))
        properties: dict[str, typing.Any] = shown['properties']
        return properties

    def test_import_on_virtio(self) -> None:
        properties = self.import_and_boot('virtio')
        expected = {
            'hw_disk_bus': 'virtio',
            'hw_vif_model': 'virtio',
            'hw_firmware_type': 'bios',
            'os_type': 'linux',
            'os_distro': 'debian',
            'os_version': '12',
            'architecture': 'x86_64',
            'owner_team': 'web',
        }
        self.assertEqual(
            expected, {key: properties.get(key) for key in expected}
        )
        for key in ('hypervisor_type', 'vm_mode', 'hw_scsi_model'):
            self.assertNotIn(key, properties)

    def test_import_on_scsi(self) -> None:
        properties = self.import_and_boot('scsi')
        self.assertEqual('scsi', properties['hw_disk_bus'])
        self.assertEqual('virtio-scsi', properties['hw_scsi_model'])

    def test_convert_leaves_no_blocker_and_its_line_uploads(self) -> None:
        output = self.directory / 'output'
        done = self.openstack(
            'import-xen', 'convert', self.guest.ova, '--output', output
        )
        self.assertEqual(0, done.code, done.stderr)
        self.assertEqual(
            ['disk0.raw', 'report.json'], sorted(os.listdir(output))
        )
        raw = output / 'disk0.raw'
        self.assertEqual(self.guest.spec.disk_size, raw.stat().st_size)
        self.assertLess(raw.stat().st_blocks * 512, 900 << 20)
        report = json.loads((output / 'report.json').read_text())
        (line,) = report['recipe']
        uploaded = self.shell(line + ' -f json')
        self.addCleanup(self.openstack, 'delete', uploaded['id'])
        self.assertEqual('active', uploaded['status'])
        self.assertEqual('virtio', uploaded['properties']['hw_disk_bus'])
        again = self.openstack('import-xen', 'inspect', raw, '-f', 'json')
        self.assertEqual(0, again.code, again.stderr)
        self.assertEqual([], blockers(again.json()['findings']))

    def shell(self, line: str) -> dict[str, typing.Any]:
        """Run a line as the user's shell would; its JSON."""
        environment = self.environment()
        venv = pathlib.Path(sys.executable).parent
        environment['PATH'] = f'{venv}:{environment["PATH"]}'
        # A dash before the name ends the options of the command.
        line = re.sub(r' -- (.*) -f json$', r' -f json -- \1', line)
        done = subprocess.run(
            ['bash', '-c', line],
            env=environment,
            capture_output=True,
            text=True,
            timeout=120,
        )
        self.assertEqual(0, done.returncode, done.stderr)
        result: dict[str, typing.Any] = json.loads(done.stdout)
        return result


class KeystoneTest(commands.CommandTest):
    """The same against a real Keystone, as a user with role member."""

    def test_member_imports(self) -> None:
        guest = guests.build()
        cloud = services.Cloud(self.directory / 'cloud', keystone=True)
        cloud.start()
        self.addCleanup(cloud.stop)
        type(self).cloud = cloud
        self.addCleanup(setattr, type(self), 'cloud', None)
        done = self.openstack(
            'import-xen', guest.ova, '--private', '-f', 'json'
        )
        self.assertEqual(0, done.code, done.stderr)
        (row,) = done.json()
        shown = self.openstack('show', row['ID'], '-f', 'json').json()
        self.assertEqual('active', shown['status'])
        self.assertEqual('private', shown['visibility'])
        self.assertEqual(guest.spec.name, shown['name'])


def blockers(findings: list[dict[str, str]]) -> list[str]:
    """The ids of the blockers among findings of a JSON report."""
    return [
        finding['id']
        for finding in findings
        if finding['severity'] == 'blocker'
    ]
