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

"""The guest: its operating system, files and devices.

Knows nothing of Xen. All paths are the guest's own, absolute; devices
are in libguestfs' naming (/dev/sda, /dev/sda1, /dev/vg/lv). Symbolic
links are followed by the appliance, inside the guest, never here.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import stat
import tempfile
import typing

from xenimport import exceptions
from xenimport.guest import augeas as augeas_room
from xenimport.guest import frames
from xenimport.guest import hive_store
from xenimport.guest import inspection
from xenimport.guest import partition_table
from xenimport.guest import registry
from xenimport.guest import session
from xenimport.guest import volumes
from xenimport import model

if typing.TYPE_CHECKING:
    from collections.abc import Iterator
    from collections.abc import Mapping
    from collections.abc import Sequence

#: Bytes that libguestfs takes or gives in one message (its own limit is
#: 4 MiB, headers included).
_MESSAGE = 2 << 20
#: Bytes in which a boot sector and the loader behind it have room.
_HEAD = 16 * 512
#: What libguestfs says of a drive without a partition table, and of one
#: with a file system on the whole of it.
_NO_TABLE = ('unrecognised disk label', 'not a partitioned device')
#: What the appliance's kernel says of a path that leads nowhere.
_NOT_THERE = (
    'No such file or directory',
    'Not a directory',
    'Too many levels of symbolic links',
)
_LABEL = 'security.selinux'
#: What calls that write nothing to a device start with. One that is not
#: here costs time and does no harm.
_READERS = (
    'aug_get',
    'aug_match',
    'blockdev_get',
    'case_sensitive_path',
    'download',
    'exists',
    'filesize',
    'getxattr',
    'glob_expand',
    'inspect_',
    'is_',
    'list_',
    'ls',
    'lvm_canonical',
    'mkmountpoint',
    'mount_options',
    'mountable_',
    'ntfs_3g_probe',
    'part_get_',
    'part_list',
    'part_to_',
    'pread',
    'readlink',
    'realpath',
    'stat',
    'umount',
    'vfs_',
)


@dataclasses.dataclass(frozen=True)
class Partition:
    """One partition.

    :ivar start: and ``size``: bytes
    :ivar type: the MBR id as ``0x83``, or the GPT type GUID in upper case
    :ivar bootable: active in an MBR, legacy BIOS bootable in a GPT
    """

    number: int
    device: str
    start: int
    size: int
    type: str
    bootable: bool = False


#: The kind of a partition table, and its partitions.
_Table = tuple[str | None, tuple[Partition, ...]]


def _plain_table(drive: str, table: partition_table.Table) -> _Table:
    return table.kind, tuple(
        Partition(
            entry.number,
            f'{drive}{entry.number}',
            entry.start,
            entry.size,
            entry.type,
            entry.bootable,
        )
        for entry in table.entries
    )


class Guest:
    """What the checks work on.

    :ivar appliance: for libguestfs calls without a helper here
    :ivar operating_system: None where none was found
    :ivar drives: ('/dev/sda', '/dev/sdb', ...) in boot order
    :ivar unmounted: why a file system could not be mounted, by its mount
        point; only those that the system itself can do without
    :ivar registry: a Windows guest's hives
    """

    appliance: session.Appliance
    operating_system: model.OperatingSystem | None
    drives: tuple[str, ...]
    unmounted: Mapping[str, str]
    registry: registry.Registry

    def __init__(self, appliance: session.Appliance) -> None:
        self.appliance = appliance
        self.operating_system = None
        self.drives = tuple(self.call('list_devices'))
        self.unmounted = {}
        self.registry = registry.Registry(hive_store.HiveStore(self))
        self._volumes = volumes.Volumes(self)
        self._tables: dict[str, tuple[int, bytes, _Table]] = {}
        self._heads: dict[str, tuple[int, bytes]] = {}
        #: Calls so far that may have written something.
        self._writes = 0

    def inspect(self) -> model.OperatingSystem | None:
        """Find the operating system and mount its file systems.

        Where there is none, nothing is mounted.

        :raises GuestError: if there are several, or one of its file
            systems cannot be mounted
        """
        found = inspection.inspect(self)
        self.operating_system = found.operating_system
        self.unmounted = found.unmounted
        return self.operating_system

    def call(
        self, name: str, *args: typing.Any, **kwargs: typing.Any
    ) -> typing.Any:
        """Same as ``appliance.call``."""
        if not name.startswith(_READERS):
            self._writes += 1
        return self.appliance.call(name, *args, **kwargs)

    def volume(self, device: str) -> volumes.Volume | None:
        """A volume of a Windows guest; see :mod:`.volumes`."""
        return self._volumes.volume(device)

    def unmount_all(self) -> None:
        """Unmount everything; volumes are mounted anew when asked for."""
        self.call('umount_all')
        self._volumes.remove_mount_points()
        self.registry.forget()

    def file_system(self, device: str) -> str:
        """What is on a device, as libguestfs names it; '' is nothing."""
        return self._volumes.file_system(device)

    @property
    def windows(self) -> volumes.Volume | None:
        """The volume that Windows itself is on; None without Windows."""
        system = self.operating_system
        if system is None or system.family != 'windows':
            return None
        return self.volume(system.root)

    def commit(self) -> None:
        """Write what is staged; what is read next is what was written."""
        self.registry.commit()
        self._volumes.forget()

    def exists(self, path: str) -> bool:
        """Whether it is there; a dangling symbolic link is not."""
        return self._status(path) is not None

    def _status(self, path: str) -> dict[str, int] | None:
        """Its status, symbolic links followed; None where it is not.

        (libguestfs' own ``exists`` holds for a dangling link, and its
        ``is_file`` takes 15 ms under TCG where this takes 1: measured.)
        """
        try:
            status: dict[str, int] = self.call('statns', path)
        except exceptions.GuestError as error:
            found = error.found or ''
            if any(words in found for words in _NOT_THERE):
                return None
            raise
        return status

    def is_file(self, path: str) -> bool:
        """A regular file, symbolic links followed."""
        status = self._status(path)
        return status is not None and stat.S_ISREG(status['st_mode'])

    def file_size(self, path: str) -> int | None:
        """Bytes in a regular file, None where there is none."""
        status = self._status(path)
        if status is None or not stat.S_ISREG(status['st_mode']):
            return None
        return status['st_size']

    def is_dir(self, path: str) -> bool:
        """A directory, symbolic links followed."""
        status = self._status(path)
        return status is not None and stat.S_ISDIR(status['st_mode'])

    def listdir(self, path: str) -> list[str]:
        """Sorted names; empty where there is no such directory."""
        if not self.is_dir(path):
            return []
        try:
            names = self.call('ls', path)
        except exceptions.GuestError as error:
            if error.id != 'guest.not-utf8':
                raise
            names = self._names_as_bytes(path)
        return sorted(names)

    def _names_as_bytes(self, path: str) -> list[str]:
        """A directory with names that are not UTF-8."""
        with self._local_file() as local:
            self.call('ls0', path, local)
            with open(local, 'rb') as stream:
                data = stream.read(frames.DOCUMENT_LIMIT)
        return [os.fsdecode(name) for name in data.split(b'\0') if name]

    @contextlib.contextmanager
    def _local_file(self) -> Iterator[str]:
        """A file of this machine through which bytes come or go."""
        directory = self.appliance.directory
        try:
            with tempfile.NamedTemporaryFile(dir=directory) as stream:
                yield stream.name
        except OSError as error:
            raise exceptions.MachineError(
                'machine.work-directory',
                'A temporary file in the work directory cannot be used',
                where=error.filename or directory,
                found=error.strerror or str(error),
                fix='make room there, or choose another directory with '
                '--work-dir',
            ) from error

    def glob(self, pattern: str) -> list[str]:
        """Sorted paths that match a shell pattern."""
        return sorted(self.call('glob_expand', pattern, directoryslash=False))

    def read(self, path: str, limit: int = 16 << 20) -> bytes:
        """The bytes of a regular file, symbolic links followed.

        :raises GuestError: if absent or larger than ``limit`` bytes
        """
        size = self._regular_file(path)['st_size']
        if size > limit:
            raise _too_large(path, size, limit)
        # read_file and download start a transfer that takes 130 ms in the
        # appliance under TCG, pread takes 1 ms (measured).
        data = bytearray()
        while len(data) < size:
            count = min(_MESSAGE, size - len(data))
            chunk = self.call('pread', path, count, len(data))
            if not chunk:
                break
            data += chunk
        return bytes(data)

    def _regular_file(self, path: str) -> dict[str, int]:
        """Its status, symbolic links followed."""
        status = self._status(path)
        if status is None:
            raise exceptions.GuestError(
                'guest.file-missing',
                'A file of the guest is not there',
                where=path,
                expected='a regular file',
                found='nothing',
                fix='restore the file in the guest and export it again',
            )
        if not stat.S_ISREG(status['st_mode']):
            raise exceptions.GuestError(
                'guest.not-a-file',
                'A file of the guest is something else',
                where=path,
                expected='a regular file',
                found='a directory'
                if stat.S_ISDIR(status['st_mode'])
                else f'an inode of mode {status["st_mode"]:o}',
                fix='restore the file in the guest and export it again',
            )
        return status

    def read_text(self, path: str, limit: int = 16 << 20) -> str:
        """UTF-8 with surrogateescape, so that a rewrite loses nothing."""
        return self.read(path, limit).decode('utf-8', 'surrogateescape')

    def write(self, path: str, data: bytes, mode: int | None = None) -> None:
        """Write atomically; an existing file keeps owner, mode, labels.

        The bytes go to a new file beside it that then takes its name, so
        that the guest never has half a file. A file with several names
        (hard links) is overwritten where it is instead, for else only one
        of the names would have the new bytes. A symbolic link stays, the
        file it leads to is written; one that leads nowhere is replaced.

        :param mode: of the file; None keeps it, 0644 for a new one
        """
        old = None
        if self.exists(path):
            old = self._regular_file(path)
            path = self.call('realpath', path)
        if old is not None and old['st_nlink'] > 1:
            self._upload(path, data)
            if mode is not None:
                self.call('chmod', mode, path)
            return
        directory = os.path.dirname(path)
        temporary = self.call(
            'mktemp', f'{directory.rstrip("/")}/.xenimport-XXXXXX'
        )
        try:
            self._upload(temporary, data)
            if old is None:
                self.call('chmod', 0o644 if mode is None else mode, temporary)
                self._inherit_label(directory, temporary)
            else:
                self._keep_attributes(path, temporary, old, mode)
            self.call('rename', temporary, path)
        except exceptions.GuestError:
            # A temporary file must not stay in the guest; if even that
            # fails, the first error says why.
            with contextlib.suppress(exceptions.XenImportError):
                self.call('rm_f', temporary)
            raise

    def overwrite(self, path: str, data: bytes) -> None:
        """Write into a file where it is, or make it.

        For file systems of Windows, whose security descriptors a new file
        would not have.
        """
        self._upload(path, data)

    def _upload(self, path: str, data: bytes) -> None:
        if len(data) <= _MESSAGE:
            self.call('write', path, data)
            return
        with self._local_file() as local:
            with open(local, 'wb') as stream:
                stream.write(data)
            self.call('upload', local, path)

    def _keep_attributes(
        self, old: str, new: str, status: dict[str, int], mode: int | None
    ) -> None:
        """Give a new file the mode, owner and labels of the old one."""
        try:
            self.call('copy_attributes', old, new, all=True)
        except exceptions.GuestError:
            # FAT and the like have no extended attributes, and refuse
            # to list them.
            self.call('chown', status['st_uid'], status['st_gid'], new)
        # Last, for a change of owner takes the set-user-id bit away.
        self.call(
            'chmod',
            stat.S_IMODE(status['st_mode']) if mode is None else mode,
            new,
        )

    def _inherit_label(self, directory: str, path: str) -> None:
        """Label a new file as the kernel would: by its directory.

        The appliance has no SELinux policy, so nobody else does.
        """
        try:
            label: bytes = self.call('getxattr', directory, _LABEL)
            text = label.rstrip(b'\0').decode('ascii')
            self.call('setxattr', _LABEL, text, len(text), path)
        except (exceptions.GuestError, UnicodeDecodeError):
            # No label there: a guest without SELinux.
            pass

    def write_text(
        self, path: str, text: str, mode: int | None = None
    ) -> None:
        """Write what :meth:`read_text` gave, changed or not."""
        self.write(path, text.encode('utf-8', 'surrogateescape'), mode)

    def augeas(
        self, files: Mapping[str, Sequence[str]]
    ) -> contextlib.AbstractContextManager[augeas_room.Tree]:
        """Configuration files as a tree; see :mod:`.augeas`.

        :param files: paths by lens, for example ``{'Fstab':
            ['/etc/fstab']}``
        """
        return augeas_room.opened(self.appliance, files)

    def partitions(self, drive: str) -> tuple[Partition, ...]:
        """Empty where the drive has no partition table."""
        return self._table(drive)[2][1]

    def partition_table(self, drive: str) -> str | None:
        """``msdos``, ``gpt``, another of libguestfs' names, or None."""
        return self._table(drive)[2][0]

    def table_sectors(self, drive: str) -> bytes:
        """The first 34 sectors: an MBR, or a GPT with its usual entries."""
        return self._table(drive)[1]

    def _table(self, drive: str) -> tuple[int, bytes, _Table]:
        """A drive's table, read again only after something was written.

        Asking parted takes up to seconds under TCG, reading the sectors
        some 90 ms (measured), and some checks ask often.
        """
        known = self._tables.get(drive)
        if known is None or known[0] != self._writes:
            data = self.read_device(drive, 0, partition_table.LENGTH)
            if known is None or known[1] != data:
                known = self._writes, data, self._read_table(drive, data)
            else:
                known = self._writes, data, known[2]
            self._tables[drive] = known
        return known

    def _read_table(self, drive: str, data: bytes) -> _Table:
        size = int(self.call('blockdev_getsize64', drive))
        plain = partition_table.parse(data, size)
        if plain is not None:
            return _plain_table(drive, plain)
        return self._asked_table(drive)

    def _asked_table(self, drive: str) -> _Table:
        table = self._ask_table(drive)
        if table is None:
            return None, ()
        return table, tuple(
            self._partition(drive, table, entry)
            for entry in self.call('part_list', drive)
        )

    def _partition(
        self, drive: str, table: str, entry: dict[str, int]
    ) -> Partition:
        number = entry['part_num']
        kind, bootable = '', False
        if table == 'msdos':
            kind = f'0x{self.call("part_get_mbr_id", drive, number):02x}'
            bootable = bool(self.call('part_get_bootable', drive, number))
        elif table == 'gpt':
            kind = str(self.call('part_get_gpt_type', drive, number)).upper()
            bits = self.call('part_get_gpt_attributes', drive, number)
            bootable = bool(bits & partition_table.GPT_BIOS_BOOTABLE)
        return Partition(
            number=number,
            device=f'{drive}{number}',
            start=entry['part_start'],
            size=entry['part_size'],
            type=kind,
            bootable=bootable,
        )

    def _ask_table(self, drive: str) -> str | None:
        try:
            table: str = self.call('part_get_parttype', drive)
        except exceptions.GuestError as error:
            found = error.found or ''
            if any(words in found for words in _NO_TABLE):
                return None
            raise
        # parted's name for a file system on the whole drive.
        return None if table in ('loop', 'unknown') else table

    def read_device(self, device: str, offset: int, length: int) -> bytes:
        """Bytes of a device, fewer only at its end.

        :raises GuestError: if more is asked for than memory should hold
        """
        if length > frames.PAYLOAD_LIMIT:
            raise _too_large(device, length, frames.PAYLOAD_LIMIT)
        data = bytearray()
        while len(data) < length:
            chunk = self.call(
                'pread_device',
                device,
                min(_MESSAGE, length - len(data)),
                offset + len(data),
            )
            if not chunk:
                break
            data += chunk
        return bytes(data)

    def head(self, device: str) -> bytes:
        """The first 16 sectors, fewer only of a smaller device.

        Read again only after something was written: a read takes some
        55 ms under TCG (measured), and many checks look there.
        """
        known = self._heads.get(device)
        if known is None or known[0] != self._writes:
            known = self._writes, self.read_device(device, 0, _HEAD)
            self._heads[device] = known
        return known[1]

    def write_device(self, device: str, offset: int, data: bytes) -> None:
        """Write bytes to a device.

        :raises GuestError: if it ends before them
        """
        done = 0
        while done < len(data):
            chunk = data[done : done + _MESSAGE]
            written = self.call('pwrite_device', device, chunk, offset + done)
            if written <= 0:
                raise exceptions.GuestError(
                    'guest.device-too-small',
                    'A device of the guest ends before what is written',
                    where=device,
                    expected=f'{len(data)} bytes at {offset}',
                    found=f'{done} bytes written',
                    fix='report this as a bug of xenimport',
                )
            done += written

    def uuid(self, device: str) -> str | None:
        """The file system's UUID, None where it has none."""
        return self.call('vfs_uuid', device) or None

    def drive_of(self, device: str) -> str:
        """The drive that a partition lies on.

        For a logical volume or a software RAID: the first drive of those
        that it lies on.

        :raises GuestError: if it lies on none of the drives
        """
        for drive in self.drives:
            if any(item.device == device for item in self.partitions(drive)):
                return drive
        return inspection.drive_of(self, device)


def _too_large(path: str, size: int, limit: int) -> exceptions.GuestError:
    return exceptions.GuestError(
        'guest.file-too-large',
        'A file of the guest is larger than any of its kind should be',
        where=path,
        expected=f'at most {limit} bytes',
        found=f'{size} bytes',
        fix='look at the file in the guest; shorten or remove it, and '
        'export the guest again',
    )
