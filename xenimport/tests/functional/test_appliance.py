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

"""The appliance for real, on a small disk made for it.

Needs python3-guestfs, QEMU and nbdkit; runs under TCG.
"""

from __future__ import annotations

import hashlib
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import textwrap
import time
import typing
import unittest

from xenimport import exceptions
from xenimport.guest import accelerator
from xenimport.guest import guest as guest_room
from xenimport.guest import processes
from xenimport.guest import session

_MIB = 1 << 20


class ApplianceTestCase(unittest.TestCase):
    def setUp(self):
        super().setUp()
        directory = tempfile.TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        self.directory = pathlib.Path(directory.name)
        self.work_dir = self.directory / 'work'
        self.work_dir.mkdir()
        self.disk = self.directory / 'disk.raw'
        with open(self.disk, 'wb') as stream:
            stream.truncate(96 * _MIB)

    def partition(self, script):
        subprocess.run(
            ['/usr/sbin/sfdisk', '--quiet', self.disk],
            input=script.encode(),
            check=True,
        )

    def start(self, *drives):
        appliance = session.Appliance(drives, str(self.work_dir))
        self.addCleanup(appliance._kill)
        appliance.start()
        return appliance

    def sockets(self, group):
        """libguestfs' own directory, which has to be somewhere."""
        found = processes.socket_directories(group)
        self.assertTrue(found and all(map(os.path.exists, found)))
        return found

    def digest(self):
        return hashlib.sha256(self.disk.read_bytes()).hexdigest()


class DiskTestCase(ApplianceTestCase):
    def test_files_partitions_and_devices(self):
        self.partition(
            'label: dos\nstart=2048, size=81920, type=83, bootable\n'
            'size=20480, type=c\ntype=5\nsize=20480, type=82\n'
        )
        appliance = self.start(session.Drive(str(self.disk)))
        guest = guest_room.Guest(appliance)
        self.assertEqual(('/dev/sda',), guest.drives)
        self.look_at_partitions(guest)
        appliance.call('mkfs', 'ext4', '/dev/sda1')
        appliance.call('set_uuid', '/dev/sda1', _UUID)
        self.assertEqual(_UUID, guest.uuid('/dev/sda1'))
        self.assertIsNone(guest.uuid('/dev/sda2'))
        self.assertIsNone(guest.inspect())
        self.assertEqual([], appliance.call('mounts'))
        appliance.call('mount', '/dev/sda1', '/')
        self.write_files(guest)
        self.links(guest)
        self.odd_names(guest)
        self.labels(guest)
        self.fat(guest)
        self.configuration(guest)
        self.raw_bytes(guest)
        group = appliance.process_group
        sockets = self.sockets(group)
        appliance.close()
        self.assertEqual([], processes.members(group))
        self.assertEqual([], list(self.work_dir.iterdir()))
        self.assertFalse(any(map(os.path.exists, sockets)))
        with open(self.disk, 'rb') as stream:
            stream.seek(512)
            self.assertEqual(b'boot code', stream.read(9))

    def look_at_partitions(self, guest):
        self.assertEqual('msdos', guest.partition_table('/dev/sda'))
        found = [
            (item.number, item.start, item.size, item.type, item.bootable)
            for item in guest.partitions('/dev/sda')
        ]
        self.assertEqual(
            [
                (1, 2048 * 512, 81920 * 512, '0x83', True),
                (2, 83968 * 512, 20480 * 512, '0x0c', False),
            ],
            found[:2],
        )
        self.assertEqual((3, '0x05'), (found[2][0], found[2][3]))
        self.assertEqual((5, '0x82'), (found[3][0], found[3][3]))
        self.assertEqual('/dev/sda', guest.drive_of('/dev/sda5'))
        with self.assertRaises(exceptions.GuestError) as caught:
            guest.drive_of('/dev/sdz1')
        self.assertEqual('guest.no-drive', caught.exception.id)

    def write_files(self, guest):
        guest.call('mkdir_p', '/etc')
        guest.write('/etc/new', b'\x00\xff')
        self.assertEqual(b'\x00\xff', guest.read('/etc/new'))
        self.assertEqual(0o644, self.mode(guest, '/etc/new'))
        guest.call('chown', 7, 8, '/etc/new')
        guest.call('chmod', 0o4750, '/etc/new')
        guest.call('setxattr', 'user.colour', 'blue', 4, '/etc/new')
        guest.write_text('/etc/new', 'caf\udce9\n')
        self.assertEqual(b'caf\xe9\n', guest.read('/etc/new'))
        self.assertEqual('caf\udce9\n', guest.read_text('/etc/new'))
        status = guest.call('statns', '/etc/new')
        self.assertEqual((7, 8), (status['st_uid'], status['st_gid']))
        self.assertEqual(0o4750, self.mode(guest, '/etc/new'))
        self.assertEqual(
            b'blue', guest.call('getxattr', '/etc/new', 'user.colour')
        )
        guest.write('/etc/new', b'x', mode=0o600)
        self.assertEqual(0o600, self.mode(guest, '/etc/new'))
        # More than one message, and more than one comes back by.
        large = os.urandom(17 * _MIB) * 3
        guest.write('/large', large[: 18 * _MIB])
        self.assertEqual(large[: 18 * _MIB], guest.read('/large', 18 * _MIB))
        with self.assertRaises(exceptions.GuestError) as caught:
            guest.read('/large')
        self.assertEqual('guest.file-too-large', caught.exception.id)
        with self.assertRaises(exceptions.GuestError) as caught:
            guest.write('/huge', large)
        self.assertEqual('guest.libguestfs-failed', caught.exception.id)
        self.assertIn('/.xenimport', str(caught.exception.where))
        self.assertFalse(guest.exists('/huge'))
        guest.call('rm', '/large')
        self.assertEqual(['etc', 'lost+found'], guest.listdir('/'))

    @staticmethod
    def mode(guest, path):
        return guest.call('statns', path)['st_mode'] & 0o7777

    def links(self, guest):
        guest.call('ln', '/etc/new', '/etc/second')
        guest.write('/etc/second', b'both')
        self.assertEqual(b'both', guest.read('/etc/new'))
        guest.call('ln_s', '/etc/new', '/etc/symbolic')
        guest.call('ln_s', '/nowhere', '/etc/dangling')
        guest.call('rm', '/etc/second')
        guest.write('/etc/symbolic', b'through')
        self.assertTrue(guest.call('is_symlink', '/etc/symbolic'))
        self.assertEqual(b'through', guest.read('/etc/new'))
        self.assertFalse(guest.exists('/etc/dangling'))
        # It would be this machine's, were links followed here.
        guest.call('ln_s', '/../../../../etc/hostname', '/etc/outside')
        with self.assertRaises(exceptions.GuestError) as caught:
            guest.read('/etc/outside')
        self.assertEqual('guest.file-missing', caught.exception.id)
        with self.assertRaises(exceptions.GuestError) as caught:
            guest.read('/etc')
        self.assertEqual('guest.not-a-file', caught.exception.id)

    def odd_names(self, guest):
        guest.call('mkdir', '/odd')
        archive = self.directory / 'odd.tar'
        tree = self.directory / 'tree'
        tree.mkdir()
        (tree / os.fsdecode(b'caf\xe9')).write_text('')
        (tree / 'plain').write_text('')
        subprocess.run(['tar', '-cf', archive, '-C', tree, '.'], check=True)
        guest.call('tar_in', str(archive), '/odd')
        self.assertEqual(['caf\udce9', 'plain'], guest.listdir('/odd'))
        self.assertEqual([], guest.listdir('/none'))
        self.assertEqual(['/odd/plain'], guest.glob('/odd/p*'))

    def labels(self, guest):
        label = 'system_u:object_r:etc_t:s0'
        guest.call('setxattr', 'security.selinux', label, len(label), '/odd')
        guest.write('/odd/new', b'')
        found = guest.call('getxattr', '/odd/new', 'security.selinux')
        self.assertEqual(label.encode(), found.rstrip(b'\0'))

    def fat(self, guest):
        guest.call('mkfs', 'vfat', '/dev/sda2')
        guest.call('mkdir', '/efi')
        guest.call('mount', '/dev/sda2', '/efi')
        guest.write('/efi/grub.cfg', b'one')
        guest.write('/efi/grub.cfg', b'two')
        self.assertEqual(b'two', guest.read('/efi/grub.cfg'))
        self.assertEqual(['grub.cfg'], guest.listdir('/efi'))

    def configuration(self, guest):
        guest.write('/etc/fstab', b'# kept\n/dev/xvda1 / ext4 defaults 0 1\n')
        with guest.augeas({'Fstab': ['/etc/fstab', '/etc/none']}) as tree:
            self.assertEqual('/dev/xvda1', tree.get('/files/etc/fstab/1/spec'))
            self.assertIsNone(tree.get('/files/etc/fstab/2/spec'))
            tree.set('/files/etc/fstab/1/spec', 'LABEL=root')
            tree.save()
        self.assertEqual(
            b'# kept\nLABEL=root / ext4 defaults 0 1\n',
            guest.read('/etc/fstab'),
        )
        with guest.augeas({'Fstab': ['/etc/fstab']}) as tree:
            self.assertEqual(6, tree.rm('/files/etc/fstab/1') - 1)
            tree.set('/files/etc/fstab/1/spec', 'no file, no type')
            with self.assertRaises(exceptions.GuestError) as caught:
                tree.save()
        self.assertEqual('guest.config-not-saved', caught.exception.id)
        self.assertEqual('/etc/fstab', caught.exception.where)
        guest.write('/etc/fstab', b'/dev/sda1 / ext4 defaults 0 1\nrubbish\n')
        with self.assertRaises(exceptions.GuestError) as caught:
            with guest.augeas({'Fstab': ['/etc/fstab']}):
                pass
        self.assertEqual('guest.config-not-parsed', caught.exception.id)
        self.assertEqual('/etc/fstab', caught.exception.where)
        self.assertIn('line', str(caught.exception.found))

    def raw_bytes(self, guest):
        guest.write_device('/dev/sda', 512, b'boot code')
        self.assertEqual(b'boot', guest.read_device('/dev/sda', 512, 4))
        self.assertEqual(
            5 * _MIB, len(guest.read_device('/dev/sda', 3, 5 * _MIB))
        )
        self.assertEqual(
            7, len(guest.read_device('/dev/sda', 96 * _MIB - 7, 100))
        )
        with self.assertRaises(exceptions.GuestError):
            guest.write_device('/dev/sda', 97 * _MIB, b'x')


class EndTestCase(ApplianceTestCase):
    def test_snapshot_nbd_gpt_and_the_time_limit(self):
        self.partition(
            'label: gpt\nstart=2048, size=4096, type=uefi\n'
            'size=4096, type=linux, attrs=LegacyBIOSBootable\n'
        )
        before = self.digest()
        nbd = self.directory / 'nbd.sock'
        server = subprocess.Popen(
            ['nbdkit', '-f', '-U', nbd, 'memory', '16M'],
            start_new_session=True,
        )
        self.addCleanup(processes.end_group, server, 5)
        while not nbd.exists():
            self.assertIsNone(server.poll())
            time.sleep(0.05)
        appliance = self.start(
            session.Drive(str(self.disk), snapshot=True),
            session.Drive(str(nbd), protocol='nbd'),
        )
        guest = guest_room.Guest(appliance)
        self.assertEqual(('/dev/sda', '/dev/sdb'), guest.drives)
        self.assertEqual('gpt', guest.partition_table('/dev/sda'))
        self.assertEqual(
            [
                ('C12A7328-F81F-11D2-BA4B-00A0C93EC93B', False),
                ('0FC63DAF-8483-4772-8E79-3D69D8477DE4', True),
            ],
            [
                (item.type, item.bootable)
                for item in guest.partitions('/dev/sda')
            ],
        )
        self.assertEqual((), guest.partitions('/dev/sdb'))
        appliance.call('mkfs', 'ext4', '/dev/sdb')
        # A file system on the whole drive is no partition table.
        self.assertIsNone(guest.partition_table('/dev/sdb'))
        guest.write_device('/dev/sda', 0, bytes(1 << 20))
        self.assertIsNone(guest.partition_table('/dev/sda'))
        appliance.call('sync')
        group = appliance.process_group
        sockets = self.sockets(group)
        commands = [
            pathlib.Path(f'/proc/{process}/cmdline').read_bytes()
            for process in processes.members(group)
        ]
        self.assertTrue(any(b'qemu-system' in item for item in commands))
        began = time.monotonic()
        with self.assertRaises(exceptions.ApplianceError) as caught:
            appliance.call('debug', 'sh', ['sleep', '300'], limit=1)
        self.assertLess(time.monotonic() - began, 5)
        self.assertEqual('appliance.time-limit', caught.exception.id)
        self.assertEqual([], processes.members(group))
        self.assertEqual([], list(self.work_dir.iterdir()))
        self.assertFalse(any(map(os.path.exists, sockets)))
        self.assertEqual(before, self.digest())

    def test_parent_is_killed(self):
        script = textwrap.dedent("""
            import sys, time
            from xenimport.guest import session
            appliance = session.Appliance(
                [session.Drive(sys.argv[1])], sys.argv[2])
            appliance.start()
            print(appliance.process_group, flush=True)
            appliance.call('debug', 'sh', ['sleep', '300'])
        """)
        parent = subprocess.Popen(
            [sys.executable, '-c', script, self.disk, self.work_dir],
            stdout=subprocess.PIPE,
            start_new_session=True,
        )
        self.addCleanup(processes.end_group, parent, 5)
        output = typing.cast('typing.BinaryIO', parent.stdout)
        self.addCleanup(output.close)
        group = int(output.readline())
        self.assertGreaterEqual(len(processes.members(group)), 2)
        sockets = self.sockets(group)
        parent.send_signal(signal.SIGKILL)
        parent.wait()
        deadline = time.monotonic() + 5
        while processes.members(group) and time.monotonic() < deadline:
            time.sleep(0.05)
        self.assertEqual([], processes.members(group))
        self.assertFalse(any(map(os.path.exists, sockets)))

    def test_drive_that_cannot_be_opened(self):
        silent = self.directory / 'silent.sock'
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(silent))
            with self.assertRaises(exceptions.ApplianceError) as caught:
                self.start(session.Drive(str(silent), protocol='nbd'))
        self.assertEqual('appliance.start-failed', caught.exception.id)
        self.assertIn('silent.sock', str(caught.exception.found))


class AcceleratorTestCase(unittest.TestCase):
    @unittest.skipUnless(accelerator.readable_kernel(), 'no kernel')
    @unittest.skipUnless(shutil.which(accelerator.QEMU), 'no QEMU')
    def test_kernel_proves_an_accelerator_that_works(self):
        kernel = accelerator.readable_kernel() or ''
        started, output = accelerator.boots(
            accelerator._command(kernel, 'tcg'), 60
        )
        self.assertTrue(started, output)


_UUID = '0d9c9a3c-1111-4222-8333-444455556666'
