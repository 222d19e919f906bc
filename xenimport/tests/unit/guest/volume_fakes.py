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


"""What a Windows volume needs of a guest, with files in memory."""

from __future__ import annotations

import pathlib
import typing

from xenimport import exceptions
from xenimport.guest import hive_worker


class FakeGuest:
    """Files by their path in the appliance.

    Its own appliance, too: hives are worked on as the worker process does.

    :ivar calls: names and arguments, in order
    """

    def __init__(
        self, files: dict[str, bytes], directory: str = '', kind: str = 'ntfs'
    ) -> None:
        self.files = {path: bytearray(data) for path, data in files.items()}
        self.directories: set[str] = set()
        self.directory = directory
        self.kind = kind
        #: Of every mounted volume, as statvfs(3) has them.
        self.flags = 0
        #: The name of a call that fails.
        self.refused = ''
        self.appliance = self
        self.calls: list[tuple[typing.Any, ...]] = []
        self._hives = hive_worker.Hives()

    def hive(
        self, action: str, subject: str, **fields: typing.Any
    ) -> typing.Any:
        self.calls.append(('hive', action, subject))
        return self._hives.answer(
            {'action': action, 'subject': subject, **fields}
        )

    def is_file(self, path: str) -> bool:
        return path in self.files

    def file_size(self, path: str) -> int | None:
        return len(self.files[path]) if path in self.files else None

    def is_dir(self, path: str) -> bool:
        return path in self.directories or bool(self.listdir(path))

    def listdir(self, path: str) -> list[str]:
        prefix = path + '/'
        return sorted(
            {
                item[len(prefix) :].partition('/')[0]
                for item in (*self.files, *self.directories)
                if item.startswith(prefix)
            }
        )

    def read(self, path: str, limit: int) -> bytes:
        return bytes(self.files[path][:limit])

    def overwrite(self, path: str, data: bytes) -> None:
        self.calls.append(('overwrite', path))
        self.files[path] = bytearray(data)

    def read_device(self, device: str, offset: int, length: int) -> bytes:
        """A boot sector; without a signature where it is not NTFS."""
        self.calls.append(('read_device', device))
        if self.kind != 'ntfs':
            return bytes(length)
        sector = bytearray(length)
        sector[3:11] = b'NTFS    '
        sector[510:512] = b'\x55\xaa'
        return bytes(sector)

    def call(self, name: str, *args: typing.Any) -> typing.Any:
        self.calls.append((name, *args))
        if name == self.refused:
            raise exceptions.GuestError('guest.libguestfs-failed', name)
        function = getattr(self, f'_{name}', None)
        return function(*args) if function else None

    def _vfs_type(self, device: str) -> str:
        return self.kind

    def _statvfs(self, path: str) -> dict[str, int]:
        return {'flag': self.flags}

    def _mkdir(self, path: str) -> None:
        self.directories.add(path)

    def _download(self, path: str, local: str) -> None:
        pathlib.Path(local).write_bytes(self.files[path])

    def _upload(self, local: str, path: str) -> None:
        self.files[path] = bytearray(pathlib.Path(local).read_bytes())

    def _pread(self, path: str, count: int, offset: int) -> bytes:
        return bytes(self.files[path][offset : offset + count])

    def _pwrite(self, path: str, data: bytes, offset: int) -> int:
        file = self.files[path]
        # A system call may write less than it is given.
        data = data[: 64 << 10]
        file.extend(bytes(max(0, offset - len(file))))
        file[offset : offset + len(data)] = data
        return len(data)

    def _copy_file_to_file(self, source: str, target: str) -> None:
        self.files[target] = bytearray(self.files[source])

    def _rm_f(self, path: str) -> None:
        del self.files[path]

    def _rm_rf(self, path: str) -> None:
        for item in list(self.files):
            if item.startswith(path + '/'):
                del self.files[item]
        self.directories.discard(path)
