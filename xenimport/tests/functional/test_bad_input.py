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

"""What goes wrong: one clear message, and nothing is left."""

from __future__ import annotations

from collections.abc import Mapping
import json
import os
import pathlib
import signal
import subprocess
import sys

from xenimport.tests.functional import commands
from xenimport.tests.functional import guests
from xenimport.tests.functional import services
from xenimport.tests import packages

_OTHER = '6e9a2d73-1e8c-4c6d-8d4f-306b2f5c8ea1'
_NAME = '5d8f1c62-0d7b-4b5c-9c3e-2f6a1e4b7d90'


def disk_with_partition(size: int = 8 << 20) -> bytes:
    """A RAW disk with one empty partition from sector 2048 on."""
    disk = bytearray(size)
    disk[440:444] = b'\x0d\xf0\xad\x0b'
    disk[450] = 0x83
    disk[454:458] = (2048).to_bytes(4, 'little')
    disk[458:462] = (size // 512 - 2048).to_bytes(4, 'little')
    disk[510:512] = b'\x55\xaa'
    return bytes(disk)


def ova(path: pathlib.Path, vhd: bytes, capacity: int = 8 << 20) -> None:
    """An OVA as XenCenter writes it, around one VHD."""
    disk = packages.Disk(_NAME, f'{_NAME}.vhd', capacity)
    packages.write_ova(
        str(path),
        [
            ('guest.ovf', packages.xencenter_ovf([disk])),
            (disk.href, vhd),
        ],
    )


class NoCloudTest(commands.CommandTest):
    """Errors that need no cloud to be met."""

    def convert(self, package: pathlib.Path, *options: str) -> commands.Done:
        return self.openstack(
            'import-xen', 'convert', package,
            '--output', self.directory / 'output', *options,
        )  # fmt: skip

    def refused(self, package: pathlib.Path, error_id: str) -> str:
        """Both commands refuse it in the same way; what they say."""
        for done in (
            self.convert(package),
            self.openstack('import-xen', 'inspect', package),
        ):
            self.assert_clear_error(done, error_id)
            self.assertIn(str(package), done.stderr)
            self.assert_nothing_left()
        self.assert_no_disk()
        return done.stderr

    def assert_no_disk(self) -> None:
        """Nothing in the output directory but the report, if that."""
        output = self.directory / 'output'
        if output.exists():
            self.assertEqual(['report.json'], os.listdir(output))

    def package(self, vhd: bytes) -> pathlib.Path:
        path = self.directory / 'guest.ova'
        ova(path, vhd)
        return path

    def test_no_such_file(self) -> None:
        self.refused(self.directory / 'absent.ova', 'package.unreadable')

    def test_not_a_tar(self) -> None:
        path = self.directory / 'guest.ova'
        path.write_bytes(b'this is no tar' * 100)
        self.refused(path, 'package.not-a-tar')

    def test_without_ovf(self) -> None:
        path = self.directory / 'guest.ova'
        notes = self.directory / 'notes.txt'
        notes.write_text('nothing')
        subprocess.run(
            ['tar', 'cf', path, '-C', self.directory, 'notes.txt'],
            check=True,
        )
        self.assertIn('notes.txt', self.refused(path, 'package.no-ovf'))

    def test_missing_file(self) -> None:
        path = self.directory / 'guest.ova'
        disk = packages.Disk(_NAME, f'{_NAME}.vhd', 8 << 20)
        packages.write_ova(
            str(path), [('guest.ovf', packages.xencenter_ovf([disk]))]
        )
        self.assertIn(
            f'{_NAME}.vhd', self.refused(path, 'package.missing-file')
        )

    def test_wrong_checksum(self) -> None:
        vhd = bytearray(packages.dynamic_vhd(disk_with_partition()))
        for start in (0, len(vhd) - 512):
            vhd[start + 68] ^= 0xFF
        self.refused(self.package(bytes(vhd)), 'vhd.checksum')

    def test_cut_short(self) -> None:
        data = disk_with_partition()[: 4 << 20] + b'x' * (4 << 20)
        vhd = packages.dynamic_vhd(data)
        self.refused(self.package(vhd[: len(vhd) // 2]), 'vhd.block-outside')

    def test_table_points_outside(self) -> None:
        vhd = bytearray(packages.dynamic_vhd(disk_with_partition()))
        vhd[1536:1540] = (0x7FFFFFFF).to_bytes(4, 'big')
        self.refused(self.package(bytes(vhd)), 'vhd.block-outside')

    def test_no_operating_system(self) -> None:
        package = self.package(packages.dynamic_vhd(disk_with_partition()))
        done = self.convert(package)
        self.assertEqual(3, done.code, done.stderr)
        self.assertIn('disk.no-operating-system  blocker', done.stderr)
        self.assertNotIn('Traceback', done.stderr)
        self.assert_nothing_left()
        self.assert_no_disk()
        report = json.loads(
            (self.directory / 'output' / 'report.json').read_text()
        )
        self.assertIn(
            'disk.no-operating-system',
            [finding['id'] for finding in report['remaining']],
        )
        untouched = self.convert(package, '--no-repair')
        self.assertEqual(0, untouched.code, untouched.stderr)
        raw = self.directory / 'output' / 'disk0.raw'
        self.assertEqual(disk_with_partition(), raw.read_bytes())

    def test_no_space(self) -> None:
        """A small file system of our own, in a name space of our own."""
        package = self.package(packages.dynamic_vhd(disk_with_partition()))
        openstack = pathlib.Path(sys.executable).with_name('openstack')
        done = subprocess.run(
            ['unshare', '--map-root-user', '--mount', 'sh', '-c',
             f'mount -t tmpfs -o size=1m none {self.work_dir} && '
             f'{openstack} image import-xen convert {package} '
             f'--output {self.directory}/output '
             f'--work-dir {self.work_dir}; code=$?; '
             f'ls -A {self.work_dir}; exit $code'],
            capture_output=True, text=True, timeout=120,
            env=self.environment(),
        )  # fmt: skip
        self.assert_clear_error(
            commands.Done(done.returncode, done.stdout, done.stderr),
            'machine.no-space',
        )

    def test_usage(self) -> None:
        done = self.openstack('import-xen', 'inspect')
        self.assertEqual(2, done.code)
        self.assertIn('package', done.stderr)


class CloudTest(commands.CloudCommandTest):
    """Errors on the way into a real Glance."""

    def setUp(self) -> None:
        super().setUp()
        self.addCleanup(self.cloud.write_clouds, self.cloud.image.url)

    def two_disks(self) -> pathlib.Path:
        """A guest with two disks of 8 MiB."""
        path = self.directory / 'two.ova'
        disks = [
            packages.Disk(name, f'{name}.vhd', 8 << 20, number)
            for number, name in enumerate((_NAME, _OTHER))
        ]
        vhd = packages.dynamic_vhd(disk_with_partition())
        packages.write_ova(
            str(path),
            [
                ('two.ovf', packages.xencenter_ovf(disks)),
                *((disk.href, vhd) for disk in disks),
            ],
        )
        return path

    def test_unreachable(self) -> None:
        self.cloud.write_clouds(f'http://127.0.0.1:{services.free_port()}')
        done = self.openstack('import-xen', '--no-repair', self.two_disks())
        self.assert_clear_error(done, 'glance.unreachable')
        self.cloud.write_clouds(self.cloud.image.url)
        self.assert_nothing_left()

    def test_one_of_several_fails_and_none_is_left(self) -> None:
        # One disk may pass, the other is cut and nobody answers until the
        # run has given up.
        proxy = services.CutProxy(self.cloud.image.port, 12 << 20)
        proxy.start()
        self.addCleanup(proxy.stop)
        self.cloud.write_clouds(proxy.url)
        done = self.openstack('import-xen', '--no-repair', self.two_disks(),
                              environment=self.without_retries())  # fmt: skip
        self.assertEqual(1, proxy.cuts)
        self.assert_clear_error(done, 'glance.upload-broken')
        self.assert_nothing_left()

    def without_retries(self) -> Mapping[str, str]:
        home = self.directory / 'home'
        home.mkdir()
        (home / 'xenimport.conf').write_text('[target_glance]\nretries = 0\n')
        return self.environment() | {'HOME': str(home)}

    def test_broken_upload_goes_on_with_the_same_record(self) -> None:
        proxy = services.CutProxy(self.cloud.image.port, 4 << 20)
        proxy.start()
        self.addCleanup(proxy.stop)
        self.cloud.write_clouds(proxy.url)
        done = self.openstack(
            'import-xen', '--no-repair', self.two_disks(), '-f', 'json'
        )
        self.assertEqual(0, done.code, done.stderr)
        self.assertEqual(1, proxy.cuts)
        rows = done.json()
        for row in rows:
            self.addCleanup(self.openstack, 'delete', row['ID'])
        self.assertEqual([0, 1], [row['Disk'] for row in rows])
        self.assertEqual({'active'}, {row['Status'] for row in rows})
        self.assertEqual(2, len(self.images()))

    def test_glance_gone_for_good_names_what_is_left(self) -> None:
        proxy = services.CutProxy(self.cloud.image.port, 4 << 20, gone=True)
        proxy.start()
        self.addCleanup(proxy.stop)
        self.cloud.write_clouds(proxy.url)
        done = self.openstack('import-xen', '--no-repair', self.two_disks(),
                              environment=self.without_retries())  # fmt: skip
        self.assertEqual(1, done.code, done.stderr)
        self.assertIn('glance.record-left  error', done.stderr)
        self.cloud.write_clouds(self.cloud.image.url)
        left = self.images()
        # Both disks are sent at the same time.
        self.assertTrue(left)
        for image in left:
            self.assertIn(f'openstack image delete {image["ID"]}', done.stderr)
            self.assertEqual(0, self.openstack('delete', image['ID']).code)
        self.assert_nothing_left()


class InterruptTest(commands.CloudCommandTest):
    """Ctrl-C at each step."""

    guest: guests.Guest

    @classmethod
    def setUpClass(cls) -> None:
        super().setUpClass()
        cls.guest = guests.build()

    def interrupt(self, line: str, *options: str) -> tuple[int, str]:
        """Send SIGINT when a step is done; the exit code and stderr."""
        process = self.start('import-xen', self.guest.ova, *options)
        assert process.stderr is not None
        seen = []
        for text in process.stderr:
            seen.append(text)
            if text.startswith(line):
                break
        os.kill(process.pid, signal.SIGINT)
        _stdout, rest = process.communicate(timeout=60)
        said = ''.join(seen) + rest
        self.assertIn('Interrupted', rest, said)
        self.assertNotIn('Traceback', said)
        return process.returncode, said

    def interrupt_after(self, line: str, *options: str) -> None:
        """Interrupt the step after one; nothing may be left."""
        code, said = self.interrupt(line, *options)
        self.assertEqual(130, code, said)
        self.assert_nothing_left()

    def test_while_the_target_is_asked(self) -> None:
        self.interrupt_after('read package:')

    def test_while_the_guest_is_looked_at(self) -> None:
        self.interrupt_after('guest: start appliance:')

    def test_in_the_repair(self) -> None:
        self.interrupt_after('guest: diagnose:')

    def test_in_the_cleaning_up(self) -> None:
        # The step is short. What comes after it looks for the launch
        # recipe: there the images stand already, and stay.
        code, said = self.interrupt('publish images:', '--no-repair')
        if code == 0:
            self.assertIn('looking for a launch recipe', said)
            (image,) = self.images()
            self.assertEqual('active', image['Status'])
            self.openstack('delete', image['ID'])
        else:
            self.assertEqual(130, code, said)
        self.assert_nothing_left()

    def test_in_the_copy(self) -> None:
        self.interrupt_after('check free space:')

    def test_while_the_appliance_starts(self) -> None:
        self.interrupt_after('copy disks:')

    def test_in_the_verification(self) -> None:
        self.interrupt_after('check free space:', '--no-repair')

    def test_in_the_upload(self) -> None:
        self.interrupt_after('verify disks:', '--no-repair')
