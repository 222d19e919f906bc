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

import types
import unittest
from unittest import mock

from xenimport import exceptions
from xenimport.guest import volumes
from xenimport.tests.unit.guest import volume_fakes


class VolumeTestCase(unittest.TestCase):
    def setUp(self):
        super().setUp()
        self.guest = volume_fakes.FakeGuest(
            {
                '/sda2/Windows/System32/config/SYSTEM': b'system',
                '/sda2/Windows/System32/drivers/Disk.sys': b'MZ',
                '/sda2/pagefile.sys': b'',
            }
        )
        self.volume = volumes.Volume(self.guest, '/dev/sda2', 'ntfs', '/sda2')

    def mounts(self):
        return [call for call in self.guest.calls if 'mount' in call[0]]

    def test_case_and_slashes_do_not_count(self):
        place = '/sda2/Windows/System32/drivers/Disk.sys'
        for path in (
            'Windows/System32/drivers/Disk.sys',
            '\\WINDOWS\\system32\\DRIVERS\\disk.SYS',
            '/windows//system32/drivers/disk.sys/',
        ):
            self.assertEqual(place, self.volume.path(path))
            self.assertTrue(self.volume.is_file(path))
            self.assertEqual(b'MZ', self.volume.read(path))
            self.assertEqual(2, self.volume.size(path))
        self.assertEqual('/sda2', self.volume.path(''))
        self.assertEqual([], self.mounts())

    def test_what_is_not_there(self):
        for path in ('Windows/no', 'no/such', 'pagefile.sys/x', '../etc'):
            self.assertIsNone(self.volume.path(path))
            self.assertIsNone(self.volume.size(path))
            self.assertFalse(self.volume.exists(path))
            self.assertFalse(self.volume.is_file(path))
            self.assertFalse(self.volume.is_dir(path))
            self.assertEqual({}, self.volume.listing(path))
            self.assertFalse(self.volume.remove(path))
        self.assertEqual([], self.mounts())

    def test_directories(self):
        self.assertTrue(self.volume.is_dir('WINDOWS'))
        self.assertFalse(self.volume.is_file('WINDOWS'))
        self.assertIsNone(self.volume.size('WINDOWS'))
        self.assertEqual(
            {'CONFIG': 'config', 'DRIVERS': 'drivers'},
            self.volume.listing('windows/system32'),
        )

    def test_where_a_new_file_would_be(self):
        self.assertEqual(
            '/sda2/Windows/System32/New/File.sys',
            self.volume.join('windows/SYSTEM32/New/File.sys'),
        )

    def test_write(self):
        self.volume.write('windows/system32/CONFIG/system', b'new')
        self.volume.write('Windows/INF/oem1.inf', b'inf')
        self.volume.write('WINDOWS/inf/oem2.inf', b'more')
        self.assertEqual(
            [
                '/sda2/Windows/INF/oem1.inf',
                '/sda2/Windows/INF/oem2.inf',
                '/sda2/Windows/System32/config/SYSTEM',
            ],
            sorted(
                path
                for path in self.guest.files
                if 'drivers' not in path and 'page' not in path
            ),
        )
        self.assertEqual(
            b'new', self.volume.read('Windows/System32/config/SYSTEM')
        )
        self.assertTrue(self.volume.exists('windows/inf/OEM2.INF'))
        # Mounted for writing once, at the first write.
        self.assertEqual(
            [
                ('umount', '/sda2'),
                (
                    'mount_options',
                    'nocompression,inherit,'
                    'usermapping=/sysroot/xenimport-users',
                    '/dev/sda2',
                    '/sda2',
                ),
            ],
            self.mounts(),
        )

    def test_write_where_ntfs_3g_mounts_read_only_all_the_same(self):
        # ST_RDONLY of statvfs(3).
        self.guest.flags = 1
        for _ in range(2):
            with self.assertRaises(exceptions.GuestError) as caught:
                self.volume.write('x', b'')
            self.assertEqual('guest.volume-read-only', caught.exception.id)
        self.assertNotIn('/sda2/x', self.guest.files)
        self.volume.mount('ro')

    def test_empty_journal(self):
        self.volume.mount('')
        self.guest.calls.clear()
        self.volume.empty_journal()
        self.assertEqual(
            [
                ('umount', '/sda2'),
                ('ntfsfix', '/dev/sda2'),
                ('mount_options', 'ro', '/dev/sda2', '/sda2'),
            ],
            self.guest.calls,
        )
        self.assertEqual('ro', self.volume.options)

    def test_start_of_a_file(self):
        self.assertEqual(
            b'sys', self.volume.start('windows/system32/config/system', 3)
        )

    def test_copy(self):
        self.volume.copy('windows/system32/config/system', 'Backup/SYSTEM')
        self.assertEqual(b'system', self.guest.files['/sda2/Backup/SYSTEM'])
        other = volumes.Volume(self.guest, '/dev/sda1', 'vfat', '/sda1')
        self.volume.copy('PAGEFILE.SYS', 'EFI/x', other)
        self.assertEqual(b'', self.guest.files['/sda1/EFI/x'])
        self.assertIn(
            ('mount_options', '', '/dev/sda1', '/sda1'), self.guest.calls
        )

    def test_patch(self):
        path = 'windows/system32/config/system'
        self.volume.patch(path, [(0, b'S'), (4, b'EM' + bytes(200_000))])
        self.assertEqual(
            b'SystEM' + bytes(200_000),
            self.guest.files['/sda2/Windows/System32/config/SYSTEM'],
        )
        self.assertEqual(2, len(self.mounts()))

    def test_patch_on_a_full_volume(self):
        with (
            mock.patch.object(
                self.guest, '_pwrite', autospec=True, return_value=0
            ),
            self.assertRaises(exceptions.GuestError) as caught,
        ):
            self.volume.patch('pagefile.sys', [(0, b'data')])
        self.assertEqual('guest.write-failed', caught.exception.id)

    def test_remove(self):
        self.assertTrue(self.volume.remove('WINDOWS/system32/DRIVERS'))
        self.assertFalse(self.volume.exists('Windows/System32/drivers'))
        self.assertTrue(self.volume.remove('PageFile.sys'))
        self.assertNotIn('/sda2/pagefile.sys', self.guest.files)
        self.assertFalse(self.volume.remove(''))

    def test_mount_with_options(self):
        self.volume.mount('remove_hiberfile')
        self.volume.write('x', b'')
        self.assertEqual('remove_hiberfile', self.volume.options)
        self.assertEqual(2, len(self.mounts()))

    def test_too_many_names(self):
        guest = types.SimpleNamespace(
            listdir=lambda path: [str(number) for number in range(200_001)]
        )
        volume = volumes.Volume(guest, '/dev/sda2', 'ntfs', '/sda2')
        with self.assertRaises(exceptions.GuestError) as caught:
            volume.path('x')
        self.assertEqual('guest.directory-too-large', caught.exception.id)


class VolumesTestCase(unittest.TestCase):
    def test_mounted_once_and_read_only(self):
        guest = volume_fakes.FakeGuest({})
        known = volumes.Volumes(guest)
        volume = known.volume('/dev/sda2')
        self.assertIs(volume, known.volume('/dev/sda2'))
        self.assertEqual(
            ('/dev/sda2', 'ntfs', '/sda2', 'ro'),
            (
                volume.device,
                volume.file_system,
                volume.mount_point,
                volume.options,
            ),
        )
        self.assertEqual(
            [
                ('read_device', '/dev/sda2'),
                ('mkmountpoint', '/sda2'),
                ('mount_options', 'ro', '/dev/sda2', '/sda2'),
            ],
            guest.calls,
        )

    def test_a_file_system_that_windows_does_not_boot_from(self):
        guest = volume_fakes.FakeGuest({}, kind='ext4')
        self.assertIsNone(volumes.Volumes(guest).volume('/dev/sda2'))
        self.assertEqual(
            [('read_device', '/dev/sda2'), ('vfs_type', '/dev/sda2')],
            guest.calls,
        )

    def test_a_logical_volume(self):
        known = volumes.Volumes(volume_fakes.FakeGuest({}))
        self.assertEqual('/vg-lv', known.volume('/dev/vg/lv').mount_point)

    def test_one_that_cannot_be_mounted(self):
        guest = volume_fakes.FakeGuest({})

        guest.refused = 'mount_options'
        known = volumes.Volumes(guest)
        for _ in range(2):
            with self.assertRaises(exceptions.GuestError):
                known.volume('/dev/sda2')
            self.assertEqual(('rmmountpoint', '/sda2'), guest.calls[-1])

    def test_forget(self):
        guest = volume_fakes.FakeGuest({'/sda2/a': b''})
        known = volumes.Volumes(guest)
        volume = known.volume('/dev/sda2')
        self.assertFalse(volume.exists('b'))
        guest.files['/sda2/b'] = bytearray()
        self.assertFalse(volume.exists('b'))
        known.forget()
        self.assertTrue(volume.exists('b'))
