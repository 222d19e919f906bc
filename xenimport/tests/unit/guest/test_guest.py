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

from __future__ import annotations

import stat
import typing
import unittest

from xenimport import exceptions
from xenimport.guest import guest as guest_room
from xenimport.guest import inspection
from xenimport.guest import session

REGULAR = stat.S_IFREG | 0o644
FILE = {'st_mode': REGULAR, 'st_size': 1}
DIRECTORY = {'st_mode': stat.S_IFDIR | 0o755, 'st_size': 4096}


def refusal(text='no'):
    return exceptions.GuestError('guest.libguestfs-failed', text, found=text)


class FakeAppliance:
    """Answers calls from a table; an exception there is raised.

    A key is the name of a function, or that and its first arguments.
    """

    directory = ''

    def __init__(self, **answers):
        self.answers = {
            'list_devices': ['/dev/sda', '/dev/sdb'],
            'blockdev_getsize64': 1 << 30,
            'vfs_type': 'ext4',
            **answers,
        }
        self.calls = []

    def call(self, name, *args, **kwargs):
        self.calls.append((name, *args))
        for length in range(len(args), -1, -1):
            key = (name, *args[:length]) if length else name
            if key in self.answers:
                answer = self.answers[key]
                if isinstance(answer, Exception):
                    raise answer
                return answer
        if name == 'statns':
            raise refusal(f'{args[0]}: No such file or directory')
        if name.startswith('is_'):
            return 0
        return None

    def names(self):
        return [call[0] for call in self.calls]


def make(answers=None, **named):
    appliance = FakeAppliance(**named)
    appliance.answers = {**appliance.answers, **(answers or {}), **named}
    guest = guest_room.Guest(typing.cast('session.Appliance', appliance))
    return guest, appliance


class InspectTestCase(unittest.TestCase):
    LINUX = {
        'inspect_get_type': 'linux',
        'inspect_get_distro': 'debian',
        'inspect_get_major_version': 12,
        'inspect_get_minor_version': 5,
        'inspect_get_product_name': '12.5',
        'inspect_get_arch': 'x86_64',
        'inspect_get_hostname': 'unknown',
        'inspect_get_mountpoints': {'/': '/dev/sda1'},
    }

    def make(self, answers=None, **named):
        return make({**self.LINUX, **(answers or {})}, **named)

    def test_outer_file_systems_are_mounted_first(self):
        guest, appliance = self.make(
            inspect_os=['/dev/sda2'],
            inspect_get_mountpoints={
                '/boot/efi': '/dev/sda1',
                '/': '/dev/sda2',
                '/boot': '/dev/sda3',
            },
        )
        system = guest.inspect()
        self.assertEqual(
            [
                ('mount', '/dev/sda2', '/'),
                ('mount', '/dev/sda3', '/boot'),
                ('mount', '/dev/sda1', '/boot/efi'),
            ],
            [call for call in appliance.calls if call[0] == 'mount'],
        )
        self.assertEqual('/dev/sda1', system.mountpoints['/boot/efi'])
        self.assertEqual('', system.hostname)
        self.assertIs(system, guest.operating_system)

    def test_data_that_is_missing_is_told_and_passed_over(self):
        guest, _ = self.make(
            {('mount', '/dev/xvdb1'): refusal('no such device')},
            inspect_os=['/dev/sda1'],
            inspect_get_mountpoints={'/': '/dev/sda1', '/d': '/dev/xvdb1'},
        )
        system = guest.inspect()
        self.assertEqual({'/': '/dev/sda1'}, system.mountpoints)
        self.assertEqual({'/d': 'no such device'}, guest.unmounted)

    def test_part_of_the_system_that_is_missing_is_an_error(self):
        for path in ('/', '/boot', '/usr'):
            guest, _ = self.make(
                {('mount', '/dev/sda9'): refusal('bad superblock')},
                inspect_os=['/dev/sda1'],
                inspect_get_mountpoints={path: '/dev/sda9'},
            )
            with self.assertRaises(exceptions.GuestError) as caught:
                guest.inspect()
            self.assertEqual('guest.not-mounted', caught.exception.id)
            self.assertEqual('/dev/sda9', caught.exception.where)
            self.assertEqual('bad superblock', caught.exception.found)

    def test_no_system_mounts_nothing(self):
        guest, appliance = make(inspect_os=[])
        self.assertIsNone(guest.inspect())
        self.assertNotIn('mount', appliance.names())

    def test_system_on_the_disk_that_is_booted(self):
        guest, _ = self.make(
            {
                ('part_to_dev', '/dev/sda1'): '/dev/sda',
                ('part_to_dev', '/dev/sdb1'): '/dev/sdb',
            },
            inspect_os=['/dev/sdb1', '/dev/sda1'],
        )
        self.assertEqual('/dev/sda1', guest.inspect().root)

    def test_two_systems_on_one_disk(self):
        guest, appliance = self.make(
            {'part_to_dev': '/dev/sda'}, inspect_os=['/dev/sda1', '/dev/sda2']
        )
        with self.assertRaises(exceptions.GuestError) as caught:
            guest.inspect()
        self.assertEqual('guest.several-systems', caught.exception.id)
        self.assertEqual('/dev/sda1, /dev/sda2', caught.exception.found)
        self.assertNotIn('mount', appliance.names())

    def test_libosinfo_has_another_name(self):
        guest, _ = self.make(
            inspect_os=['/dev/sda1'], inspect_get_distro='oraclelinux'
        )
        self.assertEqual('ol', guest.inspect().distribution)

    def test_kernels_are_directories_with_modules_oldest_first(self):
        guest, _ = make(
            {
                ('statns', '/lib/modules'): DIRECTORY,
                ('ls', '/lib/modules'): ['6.1.0-10', '6.1.0-9', 'left', 'x'],
                ('statns', '/lib/modules/6.1.0-10/modules.dep'): FILE,
                ('statns', '/lib/modules/6.1.0-9/modules.dep'): FILE,
                ('statns', '/lib/modules/x/kernel'): DIRECTORY,
            }
        )
        self.assertEqual(
            ('6.1.0-9', '6.1.0-10', 'x'), inspection.kernels(guest)
        )

    def test_init_systems(self):
        link = ('readlink', '/sbin/init')
        for expected, answers in (
            ('systemd', {'is_symlink': 1, link: '../lib/systemd/systemd'}),
            (
                'openrc',
                {
                    'is_symlink': 1,
                    link: '/bin/busybox',
                    ('statns', '/sbin/openrc'): FILE,
                },
            ),
            (
                'upstart',
                {
                    ('statns', '/sbin/initctl'): FILE,
                    ('statns', '/etc/init'): DIRECTORY,
                },
            ),
            # systemd is installed, sysvinit is what runs.
            (
                'sysvinit',
                {
                    ('statns', '/etc/inittab'): FILE,
                    ('statns', '/lib/systemd/systemd'): FILE,
                },
            ),
            ('systemd', {('statns', '/lib/systemd/systemd'): FILE}),
            ('sysvinit', {('statns', '/sbin/init'): FILE}),
            (None, {}),
        ):
            self.assertEqual(
                expected, inspection.init_system(make(answers)[0])
            )


class DriveOfTestCase(unittest.TestCase):
    def test_partition_and_drive(self):
        guest, _ = make(
            {
                ('part_to_dev', '/dev/sdb3'): '/dev/sdb',
                'mountable_device': '/dev/sdb3',
            }
        )
        self.assertEqual('/dev/sdb', guest.drive_of('/dev/sdb3'))
        self.assertEqual('/dev/sda', guest.drive_of('/dev/sda'))
        self.assertEqual(
            '/dev/sdb', guest.drive_of('btrfsvol:/dev/sdb3/@/root')
        )

    def test_logical_volume(self):
        guest, _ = make(
            {
                ('is_lv', '/dev/mapper/vg-root'): 1,
                'lvm_canonical_lv_name': '/dev/vg/root',
                ('vgpvuuids', 'vg'): ['ab-cd'],
                'pvs': ['/dev/sda2', '/dev/sdb1'],
                ('pvuuid', '/dev/sda2'): 'wxyz',
                ('pvuuid', '/dev/sdb1'): 'abcd',
                ('part_to_dev', '/dev/sdb1'): '/dev/sdb',
            }
        )
        self.assertEqual('/dev/sdb', guest.drive_of('/dev/mapper/vg-root'))

    def test_software_raid(self):
        guest, _ = make(
            {
                'md_stat': [
                    {'mdstat_device': 'sdb1'},
                    {'mdstat_device': 'sda1'},
                ],
                ('part_to_dev', '/dev/sda1'): '/dev/sda',
                ('part_to_dev', '/dev/sdb1'): '/dev/sdb',
            }
        )
        self.assertEqual('/dev/sda', guest.drive_of('/dev/md127'))

    def test_on_no_drive(self):
        guest, _ = make({'part_to_dev': refusal()})
        with self.assertRaises(exceptions.GuestError) as caught:
            guest.drive_of('/dev/sdz1')
        self.assertEqual('guest.no-drive', caught.exception.id)


class WriteTestCase(unittest.TestCase):
    def make(self, links=1, **answers):
        return make(
            {
                'realpath': '/real/file',
                'statns': {
                    'st_mode': REGULAR,
                    'st_nlink': links,
                    'st_size': 1,
                    'st_uid': 0,
                    'st_gid': 0,
                },
                'mktemp': '/real/.xenimport-abc',
                **answers,
            }
        )

    def test_new_name_takes_over_last(self):
        guest, appliance = self.make()
        guest.write('/etc/link', b'data')
        self.assertIn(
            ('write', '/real/.xenimport-abc', b'data'), appliance.calls
        )
        self.assertEqual(
            ('rename', '/real/.xenimport-abc', '/real/file'),
            appliance.calls[-1],
        )

    def test_several_names_are_written_in_place(self):
        guest, appliance = self.make(links=2)
        guest.write('/etc/link', b'data')
        self.assertIn(('write', '/real/file', b'data'), appliance.calls)
        self.assertNotIn('rename', appliance.names())

    def test_failure_leaves_no_temporary_file(self):
        for name in ('write', 'chmod', 'rename'):
            guest, appliance = self.make(**{name: refusal('disk full')})
            with self.assertRaises(exceptions.GuestError) as caught:
                guest.write('/etc/file', b'data')
            self.assertEqual('disk full', caught.exception.found)
            self.assertEqual(
                ('rm_f', '/real/.xenimport-abc'), appliance.calls[-1]
            )

    def test_what_is_no_file_is_not_written(self):
        guest, appliance = self.make(
            statns={'st_mode': stat.S_IFIFO, 'st_size': 0}
        )
        with self.assertRaises(exceptions.GuestError) as caught:
            guest.write('/etc/file', b'data')
        self.assertEqual('guest.not-a-file', caught.exception.id)
        self.assertNotIn('mktemp', appliance.names())


class ReadTestCase(unittest.TestCase):
    def test_too_large_is_not_read(self):
        guest, appliance = make(statns={'st_mode': REGULAR, 'st_size': 11})
        with self.assertRaises(exceptions.GuestError) as caught:
            guest.read('/etc/file', 10)
        self.assertEqual('guest.file-too-large', caught.exception.id)
        self.assertNotIn('pread', appliance.names())

    def test_no_more_is_asked_for_than_the_size(self):
        guest, appliance = make(
            {
                ('pread', '/f', 2 << 20, 0): b'x' * (2 << 20),
                ('pread', '/f', 5, 2 << 20): b'12345',
            },
            statns={'st_mode': REGULAR, 'st_size': (2 << 20) + 5},
        )
        data = guest.read('/f')
        self.assertEqual((2 << 20) + 5, len(data))
        self.assertEqual(b'x12345', data[-6:])

    def test_large_reads_of_a_device_are_refused(self):
        guest, _ = make()
        with self.assertRaises(exceptions.GuestError):
            guest.read_device('/dev/sda', 0, 1 << 40)


class TableTestCase(unittest.TestCase):
    def test_parted_is_asked_again_only_after_a_change(self):
        guest, appliance = make(
            pread_device=b'a' * 17408,
            part_get_parttype='msdos',
            part_list=[{'part_num': 1, 'part_start': 512, 'part_size': 9}],
            part_get_mbr_id=7,
            part_get_bootable=0,
        )
        first = guest.partitions('/dev/sda')
        self.assertEqual(
            (guest_room.Partition(1, '/dev/sda1', 512, 9, '0x07'),), first
        )
        self.assertEqual(first, guest.partitions('/dev/sda'))
        self.assertEqual(1, appliance.names().count('part_list'))
        # A write elsewhere leaves the table what it is.
        guest.call('touch', '/etc/file')
        self.assertEqual(first, guest.partitions('/dev/sda'))
        self.assertEqual(1, appliance.names().count('part_list'))
        appliance.answers['pread_device'] = b'b' * 17408
        appliance.answers['part_list'] = []
        guest.call('part_del', '/dev/sda', 1)
        self.assertEqual((), guest.partitions('/dev/sda'))

    def test_reading_does_not_make_the_table_stale(self):
        guest, appliance = make(
            pread_device=b'a' * 17408, part_get_parttype='loop'
        )
        guest.partitions('/dev/sda')
        for name in ('ls', 'realpath', 'vfs_type', 'mount_options'):
            guest.call(name, '/x')
        guest.partitions('/dev/sda')
        self.assertEqual(1, appliance.names().count('pread_device'))

    def test_plain_table_is_not_asked_for(self):
        sector = bytearray(17408)
        # UEFI 2.10, 5.2.1: flag, type 7, LBA 2048, 100 sectors.
        sector[446:462] = bytes.fromhex('80000000070000000008000064000000')
        sector[510:512] = b'\x55\xaa'
        guest, appliance = make(pread_device=bytes(sector))
        self.assertEqual(
            (
                guest_room.Partition(
                    1, '/dev/sda1', 1 << 20, 51200, '0x07', True
                ),
            ),
            guest.partitions('/dev/sda'),
        )
        self.assertEqual('msdos', guest.partition_table('/dev/sda'))
        self.assertNotIn('part_list', appliance.names())
        self.assertEqual('/dev/sda', guest.drive_of('/dev/sda1'))
        self.assertNotIn('part_to_dev', appliance.names())

    def test_no_table(self):
        for answer in (
            refusal('/dev/sda: unrecognised disk label'),
            refusal('/dev/sda: not a partitioned device'),
            'loop',
        ):
            guest, _ = make(
                pread_device=b'a' * 17408, part_get_parttype=answer
            )
            self.assertIsNone(guest.partition_table('/dev/sda'))
            self.assertEqual((), guest.partitions('/dev/sda'))

    def test_device_that_fails_is_not_called_empty(self):
        guest, _ = make(
            pread_device=b'a' * 17408,
            part_get_parttype=refusal('Input/output error'),
        )
        with self.assertRaises(exceptions.GuestError):
            guest.partitions('/dev/sda')


class HeadTestCase(unittest.TestCase):
    def test_head_is_read_again_after_a_write(self):
        guest, appliance = make(pread_device=b'a' * 8192, pwrite_device=1)
        self.assertEqual(b'a' * 8192, guest.head('/dev/sda1'))
        guest.head('/dev/sda1')
        self.assertEqual(1, appliance.names().count('pread_device'))
        appliance.answers['pread_device'] = b'b' * 8192
        guest.head('/dev/sda2')
        self.assertEqual(2, appliance.names().count('pread_device'))
        guest.write_device('/dev/sda1', 0, b'b')
        self.assertEqual(b'b' * 8192, guest.head('/dev/sda1'))


class AugeasTestCase(unittest.TestCase):
    def test_only_the_named_lens_is_loaded(self):
        guest, appliance = make(aug_match=[])
        with guest.augeas({'Fstab': ['/etc/fstab']}) as tree:
            self.assertIsNone(tree.get('/files/etc/fstab/1'))
        # AUG_NO_LOAD | AUG_NO_MODL_AUTOLOAD, by augeas.h
        self.assertIn(('aug_init', '/', 0x60), appliance.calls)
        self.assertIn(
            ('aug_set', '/augeas/load/Fstab/lens', 'Fstab.lns'),
            appliance.calls,
        )
        self.assertIn(
            ('aug_set', '/augeas/load/Fstab/incl[1]', '/etc/fstab'),
            appliance.calls,
        )
        self.assertEqual('aug_close', appliance.names()[-1])
        self.assertNotIn('aug_save', appliance.names())

    def test_file_that_does_not_parse(self):
        node = '/augeas/files/etc/fstab/error'
        guest, appliance = make(
            {
                'aug_match': [node],
                ('aug_get', f'{node}/message'): 'Get did not match',
                ('aug_get', f'{node}/line'): '3',
            }
        )
        with self.assertRaises(exceptions.GuestError) as caught:
            with guest.augeas({'Fstab': ['/etc/fstab']}):
                pass
        self.assertEqual('guest.config-not-parsed', caught.exception.id)
        self.assertEqual('/etc/fstab', caught.exception.where)
        self.assertEqual('line 3: Get did not match', caught.exception.found)
        self.assertEqual('aug_close', appliance.names()[-1])

    def test_name_of_a_lens_is_no_path(self):
        guest, _ = make()
        with self.assertRaises(ValueError):
            with guest.augeas({'Fstab/incl': ['/etc/fstab']}):
                pass
