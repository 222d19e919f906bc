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


"""Windows volumes: several at once, names without regard to case.

A Windows guest's boot files often stand on another volume than its
system, and its file systems are looked at through Linux, which minds
upper and lower case. So each volume is mounted on a mount point of its
own, and a path goes through :meth:`Volume.path`. It is mounted read-only
until something is written: ntfs-3g clears the journal of a volume that it
mounts for writing (its manual, option ``recover``).
"""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Mapping
import os
import typing

from xenimport import exceptions

if typing.TYPE_CHECKING:
    from xenimport.guest import guest as guest_room

#: What Windows can boot from, as libguestfs names it.
FILE_SYSTEMS = frozenset(('ntfs', 'vfat'))
#: Names in one directory; Windows' own largest (WinSxS) has some 20,000.
_NAMES_LIMIT = 200_000
#: Without these ntfs-3g lets everybody write to a file that it makes (a
#: driver, say). With them a new file has what its directory hands down,
#: as in Windows; the mapping, which must be there, gives it to the
#: administrators (measured). Its user is made up and owns nothing.
_USERS = '/xenimport-users'
_USER_MAPPING = b'::S-1-5-21-1000000001-1000000002-1000000003-1000\n'
#: Nor shall it be compressed, even where its directory says so: what
#: starts Windows cannot read such a boot manager.
_FOR_WRITING = ('nocompression', 'inherit', f'usermapping=/sysroot{_USERS}')


class Volume:
    """A file system of the guest, mounted.

    Paths are of the volume, from its root, with ``/`` or ``\\`` between
    names; case does not count.

    :ivar device: in libguestfs' naming
    :ivar file_system: ``ntfs``, ``vfat``, ... as libguestfs names it
    :ivar mount_point: where the appliance has it
    :ivar options: it is mounted with, comma-separated
    """

    def __init__(
        self,
        guest: guest_room.Guest,
        device: str,
        file_system: str,
        mount_point: str,
    ) -> None:
        self.device = device
        self.file_system = file_system
        self.mount_point = mount_point
        self.options = 'ro'
        self._guest = guest
        self._names: dict[str, dict[str, str]] = {}

    def listing(self, path: str = '') -> Mapping[str, str]:
        """Names in a directory, by their upper case; empty if absent."""
        place = self.path(path)
        return self._listing(place) if place is not None else {}

    def _listing(self, place: str) -> dict[str, str]:
        if place not in self._names:
            names = self._guest.listdir(place)
            if len(names) > _NAMES_LIMIT:
                raise exceptions.GuestError(
                    'guest.directory-too-large',
                    'A directory of the guest has more names than any '
                    'should have',
                    where=place,
                    expected=f'at most {_NAMES_LIMIT}',
                    found=str(len(names)),
                    fix='look at that directory in the guest',
                )
            self._names[place] = {name.upper(): name for name in names}
        return self._names[place]

    def path(self, path: str) -> str | None:
        """Where the appliance has a file or directory, None if nowhere.

        ``..`` is not followed: it is no name that a volume can have.
        """
        place = self.mount_point
        for part in _parts(path):
            name = self._listing(place).get(part.upper())
            if name is None:
                return None
            place = f'{place}/{name}'
        return place

    def exists(self, path: str) -> bool:
        """Whether there is a file or directory of that name."""
        return self.path(path) is not None

    def is_file(self, path: str) -> bool:
        """Whether there is a regular file of that name."""
        place = self.path(path)
        return place is not None and self._guest.is_file(place)

    def is_dir(self, path: str) -> bool:
        """Whether there is a directory of that name."""
        place = self.path(path)
        return place is not None and self._guest.is_dir(place)

    def size(self, path: str) -> int | None:
        """Bytes in a file, None where there is none."""
        place = self.path(path)
        return None if place is None else self._guest.file_size(place)

    def read(self, path: str, limit: int = 16 << 20) -> bytes:
        """The bytes of a file.

        :raises GuestError: if absent or larger than ``limit`` bytes
        """
        return self._guest.read(self.path(path) or self.join(path), limit)

    def start(self, path: str, length: int) -> bytes:
        """The first bytes of a file, however large it is.

        :raises GuestError: if absent
        """
        place = self.path(path) or self.join(path)
        return bytes(self._guest.call('pread', place, length, 0))

    def join(self, path: str) -> str:
        """Where the appliance would have a path that may not be there."""
        place = self.mount_point
        for part in _parts(path):
            name = part
            if place is not None and self._guest.is_dir(place):
                name = self._listing(place).get(part.upper(), part)
            place = f'{place}/{name}'
        return place

    def mount(self, options: str) -> None:
        """Mount it anew, for writing too unless the options have ``ro``.

        :param options: of the file system's driver, comma-separated
        :raises GuestError: if it cannot be mounted so; it is not mounted
            at all then
        """
        wanted = options.split(',')
        writing = 'ro' not in wanted
        if writing and self.file_system == 'ntfs':
            self._guest.call('write', _USERS, _USER_MAPPING)
            wanted += _FOR_WRITING
        self._guest.call('umount', self.mount_point)
        self._guest.call(
            'mount_options',
            ','.join(filter(None, wanted)),
            self.device,
            self.mount_point,
        )
        self.options = options
        self.forget()
        if writing and self._is_read_only():
            self.options = 'ro'
            raise exceptions.GuestError(
                'guest.volume-read-only',
                'A volume of the guest cannot be written to',
                where=self.device,
                expected='a volume that Windows has closed',
                found='it is mounted read-only, without an error: Windows '
                'is hibernated on it, or was not shut down',
                fix='in the guest on Xen run "powercfg /h off" and '
                '"shutdown /s /f /t 0", and export it again',
            )

    def _is_read_only(self) -> bool:
        """Whether ntfs-3g fell back to mounting it read-only.

        It does so, without an error, where Windows is hibernated
        (measured).
        """
        status = self._guest.call('statvfs', self.mount_point)
        return bool(status['flag'] & os.ST_RDONLY)

    def empty_journal(self) -> None:
        """Throw away what the journal of an NTFS volume holds.

        And mark the volume, so that Windows checks it when it starts. It
        is mounted read-only afterwards.

        :raises GuestError: if ntfsfix does not like it, as with a
            hibernated Windows: the journal is empty all the same
            (measured)
        """
        self._guest.call('umount', self.mount_point)
        try:
            self._guest.call('ntfsfix', self.device)
        finally:
            self._guest.call(
                'mount_options', 'ro', self.device, self.mount_point
            )
            self.options = 'ro'
            self.forget()

    def _make_writable(self) -> None:
        if self.options == 'ro':
            self.mount('')

    def make_directory(self, path: str) -> str:
        """Make a directory and those above it; gives its place."""
        self._make_writable()
        place = self.mount_point
        for part in _parts(path):
            name = self._listing(place).get(part.upper())
            if name is None:
                name = part
                self._guest.call('mkdir', f'{place}/{name}')
                self._names[place][name.upper()] = name
            place = f'{place}/{name}'
        return place

    def write(self, path: str, data: bytes) -> None:
        """Write a file, with the directories above it.

        An existing file keeps its place, and with it its security
        descriptor; a new one inherits that of its directory.
        """
        above, name = _split(path)
        place = self.make_directory(above)
        name = self._listing(place).setdefault(name.upper(), name)
        self._guest.overwrite(f'{place}/{name}', data)

    def upload(self, local: str, path: str) -> None:
        """Write a file of this machine into one, as :meth:`write` does.

        :param local: path on this machine
        """
        above, name = _split(path)
        place = self.make_directory(above)
        name = self._listing(place).setdefault(name.upper(), name)
        self._guest.call('upload', local, f'{place}/{name}')

    def patch(self, path: str, pieces: Iterable[tuple[int, bytes]]) -> None:
        """Write bytes into a file that is there, each where it belongs.

        :param pieces: offsets with the bytes from there on; those behind
            its end make the file longer
        :raises GuestError: if the file system takes fewer
        """
        place = self.path(path) or self.join(path)
        self._make_writable()
        for offset, data in pieces:
            done = 0
            while done < len(data):
                chunk = data[done:]
                written = self._guest.call(
                    'pwrite', place, chunk, offset + done
                )
                if written <= 0:
                    raise exceptions.GuestError(
                        'guest.write-failed',
                        'A file of the guest could not be written',
                        where=place,
                        expected=f'{len(data)} bytes at {offset}',
                        found=f'{done} bytes written',
                        fix='make room on that file system in the guest, '
                        'and export it again',
                    )
                done += written

    def copy(
        self, source: str, path: str, volume: Volume | None = None
    ) -> None:
        """Copy a file inside the appliance, over an existing one too.

        :param volume: where ``path`` is, by default this one
        """
        target = volume or self
        above, name = _split(path)
        place = target.make_directory(above)
        name = target._listing(place).setdefault(name.upper(), name)
        self._guest.call(
            'copy_file_to_file',
            self.path(source) or self.join(source),
            f'{place}/{name}',
        )

    def remove(self, path: str) -> bool:
        """Remove a file, or a directory with all in it, if it is there."""
        place = self.path(path)
        if place is None or place == self.mount_point:
            return False
        self._make_writable()
        if self._guest.is_dir(place):
            self._guest.call('rm_rf', place)
        else:
            self._guest.call('rm_f', place)
        self.forget()
        return True

    def forget(self) -> None:
        """Ask the file system anew what is there."""
        self._names.clear()


def _parts(path: str) -> list[str]:
    return [part for part in path.replace('\\', '/').split('/') if part]


def _split(path: str) -> tuple[str, str]:
    parts = _parts(path)
    return '/'.join(parts[:-1]), parts[-1]


class Volumes:
    """The mounted volumes of one guest."""

    def __init__(self, guest: guest_room.Guest) -> None:
        self._guest = guest
        self._mounted: dict[str, Volume | None] = {}

    def volume(self, device: str) -> Volume | None:
        """A device's volume, mounted; None where Windows knows no such.

        Nothing may be mounted on the appliance's ``/`` itself.

        :raises GuestError: if there is one that cannot be mounted
        """
        if device not in self._mounted:
            self._mounted[device] = self._mount(device)
        return self._mounted[device]

    def file_system(self, device: str) -> str:
        """What is on a device, as libguestfs names it; '' is nothing.

        Windows' own are known by their boot sector: asking libguestfs
        takes 140 ms a device under TCG (measured), reading one a few.
        """
        sector = self._guest.read_device(device, 0, 512)
        if sector[510:512] == b'\x55\xaa':
            if sector[3:11] == b'NTFS    ':
                return 'ntfs'
            if sector[82:90] == b'FAT32   ':
                return 'vfat'
        return str(self._guest.call('vfs_type', device))

    def _mount(self, device: str) -> Volume | None:
        kind = self.file_system(device)
        if kind not in FILE_SYSTEMS:
            return None
        place = '/' + device.removeprefix('/dev/').replace('/', '-')
        self._guest.call('mkmountpoint', place)
        try:
            self._guest.call('mount_options', 'ro', device, place)
        except exceptions.GuestError:
            # Whoever asks again shall have the same answer.
            self._guest.call('rmmountpoint', place)
            raise
        return Volume(self._guest, device, kind, place)

    def remove_mount_points(self) -> None:
        """What is left of volumes once they are unmounted."""
        for volume in self._mounted.values():
            if volume is not None:
                self._guest.call('rmmountpoint', volume.mount_point)
        self._mounted.clear()

    def forget(self) -> None:
        """Ask the file systems anew what is there."""
        for volume in self._mounted.values():
            if volume is not None:
                volume.forget()
