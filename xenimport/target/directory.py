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

"""A target that is a directory: ``disk0.raw``, ``disk1.qcow2``, ..."""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Sequence
import errno
import os
import shutil
import typing

from oslo_config import cfg

from xenimport import exceptions
from xenimport import model
from xenimport.target import base
from xenimport.target import content as contents

#: Bytes copied by one call into the kernel.
_COPY = 64 << 20
_NOT_IN_KERNEL = (
    errno.EXDEV,
    errno.EINVAL,
    errno.ENOSYS,
    errno.EOPNOTSUPP,
)


class DirectoryTarget(base.Target):
    """Moves each disk to ``<directory>/disk<N>.<disk format>``.

    On the same file system that is a rename; else the data is copied and
    the holes stay holes. Nothing that stands there is overwritten.

    A digest of a RAW file takes time linear in the virtual size, which
    the move itself does not; so none is made unless it is configured.

    :param path: the directory, made if it is absent
    :param move: take the file given to :meth:`publish`; False copies it
    """

    OPTS = (
        cfg.StrOpt(
            'hash_algorithm',
            default='',
            choices=('', 'sha256', 'sha512'),
            help='Digest of each disk that the report shall name. Its '
            'time is linear in the size of the disk, holes included, so '
            'by default there is none.',
        ),
    )
    handles = 'a directory: sparse files, moved or copied'

    def __init__(
        self,
        options: Mapping[str, typing.Any] | None = None,
        *,
        path: str,
        move: bool = True,
    ) -> None:
        super().__init__(options)
        self._path = path
        self._move = move
        self._made_directory = False
        # Device and inode by path: a file that somebody else has put in
        # the place of ours is not ours to remove.
        self._made: dict[str, tuple[int, int]] = {}

    def file_of(self, disk: int, request: model.ImageRequest) -> str:
        """Where a disk's file goes."""
        return os.path.join(self._path, f'disk{disk}.{request.disk_format}')

    def validate(self, requests: Sequence[model.ImageRequest]) -> None:
        """Make the directory and see that no file is in the way."""
        try:
            if not os.path.isdir(self._path):
                os.makedirs(self._path)
                self._made_directory = True
        except OSError as error:
            raise self._unwritable(error) from error
        if not os.access(self._path, os.W_OK | os.X_OK):
            raise self._unwritable(
                PermissionError(errno.EACCES, os.strerror(errno.EACCES))
            )
        for disk, request in enumerate(requests):
            place = self.file_of(disk, request)
            if os.path.lexists(place):
                raise self._exists(place)

    def make_sure_of_room(self, data: int, work_dir: str) -> None:
        """A rename takes no room, a copy takes the data's."""
        same = os.stat(self._path).st_dev == os.stat(work_dir).st_dev
        if self._move and same:
            return
        needed = data * (2 if same else 1)
        free = shutil.disk_usage(self._path).free
        if free < needed:
            raise exceptions.TargetError(
                'directory.no-room',
                'The output directory has too little room for the disks',
                where=self._path,
                expected=f'{needed} bytes free',
                found=f'{free} bytes free',
                fix='free some space, or name another directory',
            )

    def publish(
        self,
        disk: int,
        content: base.Content,
        request: model.ImageRequest,
        progress: model.Progress = model.no_progress,
        *,
        raw: base.Content | None = None,
    ) -> model.Image:
        """Move the file there; its ``id`` is the path it has then."""
        path = content.path
        if path is None:
            raise RuntimeError('a content that is no file')
        place = self.file_of(disk, request)
        size = content.size
        try:
            self._claim(place)
            if not (self._move and self._rename(path, place)):
                _copy(path, place, size, progress)
                if self._move:
                    os.unlink(path)
        except FileExistsError as error:
            raise self._exists(place) from error
        except OSError as error:
            raise self._unwritable(error) from error
        algorithm = self.options['hash_algorithm']
        value = ''
        if algorithm:
            value = contents.digest(contents.FileContent(place), algorithm)
        progress(size, size)
        return model.Image(
            disk=disk,
            id=place,
            name=request.name,
            status='written',
            size=size,
            checksum=None,
            hash_algorithm=algorithm,
            hash_value=value,
            properties=dict(request.properties),
            disk_format=request.disk_format,
        )

    def discard(self) -> None:
        """Remove the files made, and the directory if it was made."""
        left = []
        for place, identity in list(self._made.items()):
            try:
                found = os.lstat(place)
                if (found.st_dev, found.st_ino) == identity:
                    os.unlink(place)
            except FileNotFoundError:
                pass
            except OSError as error:
                left.append(f'{place} ({error.strerror})')
                continue
            del self._made[place]
        if left:
            raise exceptions.TargetError(
                'directory.files-left',
                'Files that this run made could not be removed',
                where=self._path,
                found=', '.join(left),
                fix='delete them by hand',
            )
        if self._made_directory:
            try:
                os.rmdir(self._path)
            except OSError:
                # Something else stands in it by now, which is not ours.
                return
            self._made_directory = False

    def _claim(self, place: str) -> None:
        """Take the name, so that a rename cannot hit another's file."""
        descriptor = os.open(
            place, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666
        )
        try:
            claimed = os.fstat(descriptor)
        finally:
            os.close(descriptor)
        self._made[place] = (claimed.st_dev, claimed.st_ino)

    def _rename(self, path: str, place: str) -> bool:
        """Whether both are on one file system, and it is done."""
        moving = os.lstat(path)
        claimed = self._made[place]
        # Noted before: after an interrupt in between, it must be known.
        self._made[place] = (moving.st_dev, moving.st_ino)
        try:
            os.rename(path, place)
        except OSError as error:
            self._made[place] = claimed
            if error.errno == errno.EXDEV:
                return False
            raise
        return True

    def _exists(self, place: str) -> exceptions.TargetError:
        return exceptions.TargetError(
            'directory.file-exists',
            'A file of that name stands in the output directory already',
            where=place,
            expected='no such file: nothing is overwritten',
            fix='name another directory, or move the file away',
        )

    def _unwritable(self, error: OSError) -> exceptions.TargetError:
        return exceptions.TargetError(
            'directory.unwritable',
            'The output directory cannot be written to',
            where=error.filename or self._path,
            expected='a directory that can be written to, with room',
            found=error.strerror,
            fix='name another directory',
        )


def _copy(path: str, place: str, size: int, progress: model.Progress) -> None:
    """Copy the data into the empty file at ``place``, holes kept."""
    with open(path, 'rb') as source, open(place, 'r+b') as sink:
        os.truncate(sink.fileno(), size)
        for start, length in contents.data_ranges(source.fileno(), size):
            done = start
            while done < start + length:
                done += _copy_range(
                    source.fileno(),
                    sink.fileno(),
                    done,
                    start + length - done,
                )
                progress(done, size)


def _copy_range(source: int, sink: int, offset: int, length: int) -> int:
    """Copy at most a chunk; how many bytes that were."""
    length = min(_COPY, length)
    try:
        moved = os.copy_file_range(source, sink, length, offset, offset)
    except OSError as error:
        # Not every pair of file systems can do it in the kernel.
        if error.errno not in _NOT_IN_KERNEL:
            raise
        data = os.pread(source, min(base.CHUNK, length), offset)
        moved = os.pwrite(sink, data, offset) if data else 0
    if not moved:
        raise OSError(errno.EIO, 'the file ends before its size')
    return moved
