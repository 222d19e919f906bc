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

"""The directory target."""

from __future__ import annotations

import errno
import hashlib
import os
import pathlib
import tempfile
import unittest
from unittest import mock

from xenimport import exceptions
from xenimport import model
from xenimport.target import content
from xenimport.target import directory

MIB = 1 << 20
REQUEST = model.ImageRequest('n', properties={'hw_disk_bus': 'virtio'})


class DirectoryTest(unittest.TestCase):
    def setUp(self) -> None:
        super().setUp()
        scratch = tempfile.TemporaryDirectory()
        self.addCleanup(scratch.cleanup)
        self.base = pathlib.Path(scratch.name)
        self.out = self.base / 'out'
        self.workfile = self.base / 'work.raw'
        with open(self.workfile, 'wb') as file:
            file.truncate(32 * MIB)
            file.seek(8 * MIB)
            file.write(b'data' * 1024)
        self.content = self.workfile.read_bytes()
        self.target = directory.DirectoryTarget(path=str(self.out))

    def publish(self, disk: int = 0) -> model.Image:
        self.target.validate([REQUEST] * (disk + 1))
        return self.target.publish(
            disk, content.FileContent(str(self.workfile)), REQUEST
        )

    def elsewhere(self) -> None:
        """Let a rename fail as between two file systems."""
        patcher = mock.patch(
            'os.rename', side_effect=OSError(errno.EXDEV, 'x'), autospec=True
        )
        patcher.start()
        self.addCleanup(patcher.stop)

    def refused(self, error_id: str) -> exceptions.TargetError:
        with self.assertRaises(exceptions.TargetError) as caught:
            self.publish()
        self.assertEqual(error_id, caught.exception.id)
        return caught.exception

    def test_moved_on_one_file_system(self) -> None:
        inode = self.workfile.stat().st_ino
        image = self.publish(1)
        place = self.out / 'disk1.raw'
        self.assertEqual(inode, place.stat().st_ino)
        self.assertFalse(self.workfile.exists())
        self.assertEqual(
            (1, str(place), 'n', 32 * MIB, None, '', ''),
            (
                image.disk,
                image.id,
                image.name,
                image.size,
                image.checksum,
                image.hash_algorithm,
                image.hash_value,
            ),
        )

    def test_name_ends_with_the_disk_format(self) -> None:
        request = model.ImageRequest('n', disk_format='qcow2')
        self.target.validate([REQUEST, request])
        image = self.target.publish(
            1, content.FileContent(str(self.workfile)), request
        )
        self.assertEqual(str(self.out / 'disk1.qcow2'), image.id)
        self.assertEqual('qcow2', image.disk_format)
        self.assertEqual(['disk1.qcow2'], os.listdir(self.out))

    def test_qcow2_in_the_way_is_known_early(self) -> None:
        self.out.mkdir()
        (self.out / 'disk0.qcow2').write_bytes(b'mine')
        self.target.validate([REQUEST])
        with self.assertRaises(exceptions.TargetError):
            self.target.validate(
                [model.ImageRequest('n', disk_format='qcow2')]
            )

    def test_copied_between_file_systems_with_holes(self) -> None:
        self.elsewhere()
        self.publish()
        place = self.out / 'disk0.raw'
        self.assertEqual(self.content, place.read_bytes())
        self.assertLess(place.stat().st_blocks * 512, MIB)
        self.assertFalse(self.workfile.exists())

    def test_copied_where_the_kernel_cannot(self) -> None:
        self.elsewhere()
        with mock.patch(
            'os.copy_file_range',
            side_effect=OSError(errno.EXDEV, 'x'),
            autospec=True,
        ):
            self.publish()
        place = self.out / 'disk0.raw'
        self.assertEqual(self.content, place.read_bytes())
        self.assertLess(place.stat().st_blocks * 512, MIB)

    def test_file_of_the_user_can_be_kept(self) -> None:
        self.target = directory.DirectoryTarget(path=str(self.out), move=False)
        self.publish()
        self.assertEqual(self.content, self.workfile.read_bytes())
        self.assertEqual(self.content, (self.out / 'disk0.raw').read_bytes())

    def test_configured_digest(self) -> None:
        self.target = directory.DirectoryTarget(
            {'hash_algorithm': 'sha256'}, path=str(self.out)
        )
        image = self.publish()
        self.assertEqual(
            ('sha256', hashlib.sha256(self.content).hexdigest()),
            (image.hash_algorithm, image.hash_value),
        )

    def test_existing_file_is_known_early_and_kept(self) -> None:
        self.out.mkdir()
        mine = self.out / 'disk0.raw'
        mine.write_bytes(b'mine')
        with self.assertRaises(exceptions.TargetError) as caught:
            self.target.validate([REQUEST])
        self.assertEqual('directory.file-exists', caught.exception.id)
        self.assertEqual(b'mine', mine.read_bytes())

    def test_file_that_appears_later_is_kept(self) -> None:
        self.target.validate([REQUEST])
        mine = self.out / 'disk0.raw'
        mine.symlink_to('nowhere')
        with self.assertRaises(exceptions.TargetError) as caught:
            self.target.publish(
                0, content.FileContent(str(self.workfile)), REQUEST
            )
        self.assertEqual('directory.file-exists', caught.exception.id)
        self.target.discard()
        self.assertTrue(mine.is_symlink())
        self.assertTrue(self.workfile.exists())

    def test_directory_that_is_a_file(self) -> None:
        self.out.write_bytes(b'')
        self.refused('directory.unwritable')

    def test_full_disk_is_said_and_undone(self) -> None:
        self.elsewhere()
        with mock.patch(
            'os.copy_file_range',
            side_effect=OSError(errno.ENOSPC, 'No space left on device'),
            autospec=True,
        ):
            error = self.refused('directory.unwritable')
        self.assertEqual('No space left on device', error.found)
        self.target.discard()
        self.assertFalse(self.out.exists())
        self.assertEqual(self.content, self.workfile.read_bytes())

    def room(self, free: int, *, move: bool = True) -> None:
        """Ask for 1000 bytes where ``free`` are; same file system."""
        target = directory.DirectoryTarget(path=str(self.out), move=move)
        self.out.mkdir(exist_ok=True)
        with mock.patch(
            'shutil.disk_usage',
            autospec=True,
            return_value=mock.Mock(spec_set=['free'], free=free),
        ):
            target.make_sure_of_room(1000, str(self.out))

    def test_a_rename_needs_no_room(self) -> None:
        self.room(0)

    def test_a_copy_beside_the_workfile_needs_room_for_both(self) -> None:
        self.room(2000, move=False)
        with self.assertRaises(exceptions.TargetError) as caught:
            self.room(1999, move=False)
        self.assertEqual('directory.no-room', caught.exception.id)

    def test_discard_removes_what_was_made(self) -> None:
        self.publish()
        self.target.discard()
        self.assertFalse(self.out.exists())

    def test_discard_keeps_what_others_made(self) -> None:
        self.publish()
        (self.out / 'notes').write_text('mine')
        place = self.out / 'disk0.raw'
        (self.out / 'new').write_text('another')
        os.replace(self.out / 'new', place)
        self.target.discard()
        self.assertEqual('another', place.read_text())
        self.assertEqual('mine', (self.out / 'notes').read_text())

    def test_discard_keeps_an_older_directory(self) -> None:
        self.out.mkdir()
        self.publish()
        self.target.discard()
        self.assertEqual([], list(self.out.iterdir()))

    def test_what_cannot_be_removed_is_named(self) -> None:
        image = self.publish()
        with mock.patch(
            'os.unlink',
            side_effect=OSError(errno.EROFS, 'Read-only file system'),
            autospec=True,
        ):
            with self.assertRaises(exceptions.TargetError) as caught:
                self.target.discard()
        self.assertEqual('directory.files-left', caught.exception.id)
        self.assertIn(image.id, caught.exception.found or '')
