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


"""Hives of the guest's files: downloaded, handed to the worker, uploaded.

The worker process does all reading and writing of a hive's bytes
(:mod:`.hive_worker`): they are the guest's, and may be hostile.
"""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Sequence
import dataclasses
import os
import tempfile
import typing

from xenimport.guest import hive_file
from xenimport.guest import registry
from xenimport.guest import volumes

if typing.TYPE_CHECKING:
    from xenimport.guest import guest as guest_room

#: What is put behind the name of a hive for its logs.
_LOGS = ('.LOG1', '.LOG2', '.LOG')


@dataclasses.dataclass
class _File:
    """Where an open hive is.

    :ivar path: in the volume
    :ivar local: copy of this machine that the worker reads and changes
    :ivar made: it is not in the guest yet, or something worthless is
    """

    volume: volumes.Volume
    path: str
    local: str
    made: bool = False


class HiveStore:
    """Opens and writes hives through the appliance and its worker."""

    def __init__(self, guest: guest_room.Guest) -> None:
        self._guest = guest
        self._files: dict[str, _File] = {}

    def open(
        self, volume: volumes.Volume, path: str, name: str
    ) -> registry.Hive:
        """See :class:`.registry.Store`.

        :raises GuestError: ``registry.*``
        """
        place = volume.path(path) or volume.join(path)
        path = place.removeprefix(volume.mount_point)
        file = _File(volume, path, self._download(volume, path))
        # A transfer takes 130 ms under TCG (measured): the logs are asked
        # for only where they are needed.
        answer = self._hive('open', place, file.local, logs=None)
        if answer['dirty']:
            logs = {
                end: self._download(volume, path + end)
                for end in _LOGS
                if volume.size(path + end)
            }
            answer = self._hive('open', place, file.local, logs=logs)
        stem = place.rpartition('/')[2]
        names = tuple(stem + end for end in answer['logs'])
        state = registry.State(**{**answer, 'logs': names})
        return self._opened(name, place, file, state)

    def create(
        self, volume: volumes.Volume, path: str, name: str
    ) -> registry.Hive:
        """See :class:`.registry.Store`."""
        place = volume.path(path) or volume.join(path)
        file = _File(volume, path, self._local(), made=True)
        self._hive('create', place, file.local, root=name)
        return self._opened(name, place, file, registry.State())

    def _local(self) -> str:
        directory = self._guest.appliance.directory
        handle, local = tempfile.mkstemp(prefix='hive-', dir=directory)
        os.close(handle)
        return local

    def _download(self, volume: volumes.Volume, path: str) -> str:
        size = volume.size(path)
        place = volume.path(path) or volume.join(path)
        if size is None:
            raise registry.damaged(place, 'no regular file')
        if size > hive_file.SIZE_LIMIT:
            raise hive_file.too_large(
                place, f'{size} bytes', f'{hive_file.SIZE_LIMIT} bytes'
            )
        local = self._local()
        self._guest.call('download', place, local)
        return local

    def _hive(
        self, action: str, place: str, local: str, **fields: typing.Any
    ) -> typing.Any:
        return self._guest.appliance.hive(action, place, path=local, **fields)

    def _opened(
        self, name: str, place: str, file: _File, state: registry.State
    ) -> registry.Hive:
        def fetch(key: str, depth: int) -> Sequence[registry.Record]:
            answer: Sequence[registry.Record] = self._hive(
                'read', place, file.local, key=key, depth=depth
            )
            return answer

        earlier = self._files.get(place)
        if earlier is not None:
            os.unlink(earlier.local)
        self._files[place] = file
        return registry.Hive(name, place, fetch, state)

    def write(self, hive: registry.Hive) -> None:
        """See :class:`.registry.Store`.

        Its logs stay as they are: the sequence numbers written are above
        all of theirs and equal, so Windows does not look at them.

        :raises GuestError: ``registry.*``; the guest's file is as it was
            unless the upload itself failed
        """
        file = self._files[hive.path]
        replayed = f'{file.local}.replayed'
        if hive.state.replayed:
            os.link(file.local, replayed)
        changes = self._hive(
            'write',
            hive.path,
            file.local,
            edits=[_as_list(edit) for edit in hive.edits],
            logs=list(self._log_heads(file)),
        )
        if file.made:
            file.volume.upload(file.local, file.path)
            file.made = False
        else:
            self._keep_backup(file, replayed if hive.state.replayed else None)
            file.volume.patch(file.path, _pieces(file.local, changes))
        if hive.state.replayed:
            os.unlink(replayed)
        hive.edits.clear()

    def _log_heads(self, file: _File) -> Iterator[tuple[bytes, int]]:
        """The first sector and the length of each log of a hive."""
        for end in _LOGS:
            place = file.volume.path(file.path + end)
            size = file.volume.size(file.path + end)
            if place is not None and size:
                head = self._guest.call('pread', place, hive_file.SECTOR, 0)
                yield head, size

    @staticmethod
    def _keep_backup(file: _File, replayed: str | None) -> None:
        """Keep the hive as it was, unless an earlier copy is there.

        :param replayed: local copy of a hive whose logs were replayed
        """
        backup = file.path + registry.BACKUP
        if file.volume.exists(backup):
            return
        if replayed is not None:
            file.volume.upload(replayed, backup)
        else:
            file.volume.copy(file.path, backup)


def _pieces(
    local: str, changes: Iterable[tuple[int, int]]
) -> Iterator[tuple[int, bytes]]:
    """Parts of a file, by offset and length, with their bytes."""
    with open(local, 'rb') as stream:
        for offset, length in changes:
            stream.seek(offset)
            yield offset, stream.read(length)


def _as_list(
    edit: registry.Edit,
) -> tuple[str, str | None, int | None, bytes | None]:
    """An edit as :mod:`.hive_worker` takes it."""
    if edit.name is None:
        return edit.key, None, None if edit.after is None else 0, None
    after = edit.after
    if isinstance(after, registry.Value):
        return edit.key, edit.name, after.type, after.data
    return edit.key, edit.name, None, None
