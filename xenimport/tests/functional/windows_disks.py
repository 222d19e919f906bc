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


"""Made-up disks of Windows guests, and sicknesses for them.

A disk is described by :class:`WindowsDisk`, whose hives, boot
configuration and files may be changed before it is written. Structure,
names and places are those of a real Windows; of programs only the headers
are there. Nothing of the product is used: the tools are mkntfs, ntfs-3g,
mkfs.vfat, mtools and sfdisk.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Mapping
import contextlib
import os
import pathlib
import struct
import subprocess
import tempfile
import typing

from xenimport.tests import bcd_stores
from xenimport.tests.functional import windows_packages
from xenimport.tests.functional import windows_volumes
from xenimport.tests import hives
from xenimport.tests import windows_hives

SECTOR = 512
MIB = 1 << 20
SIZE = 1024 * MIB
SIGNATURE = 0x4A8B21C7
#: GUIDs of the disk with a GPT and of its partitions.
DISK_GUID = '7d0f2a51-6a0e-4f0e-9a43-1c7b22c8d001'
ESP_GUID = '7d0f2a51-6a0e-4f0e-9a43-1c7b22c8d002'
RESERVED_GUID = '7d0f2a51-6a0e-4f0e-9a43-1c7b22c8d003'
WINDOWS_GUID = '7d0f2a51-6a0e-4f0e-9a43-1c7b22c8d004'
CONFIG = 'Windows/System32/config'
DRIVERS = 'Windows/System32/drivers'
_MACHINES = {'amd64': 0x8664, 'x86': 0x014C}
#: Code that stops, and the texts that a boot record has.
_BOOT_CODE = (
    bytes.fromhex('fa33c08ed0bc007cfbf4ebfd')
    + b'Invalid partition table\0Error loading operating system\0'
    + b'Missing operating system\0'
)
#: The start of the second sector of a volume that Windows starts from.
_LOADER = struct.pack('<H', 7) + 'BOOTMGR'.encode('utf-16-le')


class Part(typing.NamedTuple):
    """A partition: first sector and how many."""

    start: int
    size: int

    @property
    def offset(self) -> int:
        return self.start * SECTOR


_REST = SIZE // SECTOR - 4096
ONE = {'windows': Part(2048, _REST)}
TWO = {'system': Part(2048, 204800), 'windows': Part(206848, _REST - 204800)}
UEFI = {
    'system': Part(2048, 204800),
    'reserved': Part(206848, 32768),
    'windows': Part(239616, _REST - 237568),
}


def enlarged(parts: Mapping[str, Part], size: int) -> dict[str, Part]:
    """The same on a disk of so many bytes: Windows' own is larger."""
    result = dict(parts)
    start = result['windows'].start
    result['windows'] = Part(start, size // SECTOR - 2048 - start)
    return result


def program(architecture: str, size: int = 4096, subsystem: int = 1) -> bytes:
    """A PE of Microsoft's format with one empty section.

    :param subsystem: 1 is a driver, 3 a console program, 10 one of EFI
    """
    wide = architecture == 'amd64'
    optional = struct.pack(
        '<HBBIIII', 0x20B if wide else 0x10B, 9, 0, 512, 0, 0, 0x1000
    ) + struct.pack('<I', 0x1000)
    optional += struct.pack('<Q' if wide else '<II', *(
        (0x140000000,) if wide else (0x1000, 0x10000)
    ))  # fmt: skip
    optional += struct.pack(
        '<IIHHHHHHIIIIHH', 0x1000, 0x200, 6, 1, 6, 1, 6, 1,
        0, 0x2000, 0x400, 0, subsystem, 0,
    )  # fmt: skip
    optional += struct.pack('<4Q' if wide else '<4I', 1 << 18, 4096, 1 << 18,
                            4096)  # fmt: skip
    optional += struct.pack('<II', 0, 16) + bytes(128)
    section = struct.pack(
        '<8sIIIIIIHHI', b'.text', 512, 0x1000, 512, 0x400, 0, 0, 0, 0,
        0x68000020,
    )  # fmt: skip
    head = b'MZ'.ljust(0x3C, b'\0') + struct.pack('<I', 0x80)
    head = head.ljust(0x80, b'\0') + b'PE\0\0' + struct.pack(
        '<HHIIIHH', _MACHINES[architecture], 1, 0x4A5BC60F, 0, 0,
        len(optional), 0x22 if wide else 0x102,
    )  # fmt: skip
    return (head + optional + section).ljust(0x400, b'\0').ljust(size, b'\xcc')


class WindowsDisk:
    """A disk of a Windows guest that is yet to be written.

    :ivar parts: where its partitions are: ONE, TWO or UEFI
    :ivar system: the hive SYSTEM, as ``software`` and ``drivers``; the
        last is None before Windows 8
    :ivar store: the boot configuration; None leaves it out
    :ivar files: of the volume with Windows; what stands here goes before
        what is made of hives
    :ivar boot_files: of the system partition; the same as ``files`` where
        there is but one partition
    :ivar active: the number of the active partition of an MBR, if any
    :ivar kinds: types of an MBR's partitions, as sfdisk takes them
    """

    def __init__(
        self,
        release: windows_hives.Release,
        parts: Mapping[str, Part] = TWO,
        packages: Iterable[windows_hives.Package] = (),
        windows_guid: str = WINDOWS_GUID,
    ) -> None:
        self.release = release
        self.parts = dict(parts)
        self.packages = tuple(packages)
        self.uefi = 'reserved' in parts
        self.windows_guid = windows_guid
        self.active: int | None = 1
        self.signature = SIGNATURE
        self.kinds = dict.fromkeys(parts, '7')
        self.system = windows_hives.system(release, self._mounted())
        self.software = windows_hives.software(release)
        self.drivers: windows_hives.Keys | None = None
        windows_hives.install(self.system, release, self.packages)
        if release.database:
            self.drivers = windows_hives.drivers(release, self.packages)
        self.store: bcd_stores.Store | None = bcd_stores.store(
            'uefi' if self.uefi else 'bios',
            self.device('system' if 'system' in parts else 'windows'),
            self.device('windows'),
            recovery=self.device('windows'),
            description=release.product,
        )
        self.files = self._windows_files()
        self.boot_files = self.files if 'system' not in parts else {}
        self.boot_files |= self._boot_files()

    def _mounted(self) -> dict[str, bytes]:
        if self.uefi:
            return {'C': windows_hives.gpt_volume(self.windows_guid)}
        offset = self.parts['windows'].offset
        return {'C': windows_hives.mbr_volume(SIGNATURE, offset)}

    def device(self, part: str, signature: int = SIGNATURE) -> bytes:
        """A partition as an element of the boot configuration."""
        if self.uefi:
            guid = ESP_GUID if part == 'system' else self.windows_guid
            return bcd_stores.gpt_device(DISK_GUID, guid)
        return bcd_stores.mbr_device(signature, self.parts[part].offset)

    def program(self, subsystem: int = 1) -> bytes:
        return program(self.release.architecture, subsystem=subsystem)

    def _windows_files(self) -> dict[str, bytes]:
        driver, console = self.program(), self.program(3)
        system = 'Windows/System32'
        files = {
            f'{system}/{name}': console
            for name in ('cmd.exe', 'ntoskrnl.exe', 'hal.dll', 'ntdll.dll',
                         'winload.exe', 'winresume.exe')
        }  # fmt: skip
        if self.uefi or self.release.database:
            for name in ('winload.efi', 'winresume.efi'):
                files[f'{system}/{name}'] = self.program(10)
        files['Windows/explorer.exe'] = console
        for name in windows_hives.inbox_drivers(self.release):
            file = windows_hives.driver_file(name, self.release)
            place = system if name == 'CLFS' else DRIVERS
            files[f'{place}/{file}'] = driver
        files[f'{DRIVERS}/ntfs.sys'] = driver
        for name in ('mshdc', 'machine', 'nete1g3e', 'disk'):
            text = f'[Version]\r\nClass={name}\r\n'.encode('utf-16')
            files[f'Windows/INF/{name}.inf'] = text
        files |= windows_packages.files(self.packages, self.release, driver)
        files |= self._sources()
        files['Users/Public/Desktop/desktop.ini'] = b'[.ShellClassInfo]\r\n'
        files['Recovery/WindowsRE/boot.sdi'] = b'$SDI0001'
        files['Recovery/WindowsRE/Winre.wim'] = b'MSWIM\0\0\0'
        return files

    def _sources(self) -> dict[str, bytes]:
        """\\Windows\\Boot, which boot files are copied from."""
        boot = 'Windows/Boot'
        return {
            f'{boot}/PCAT/bootmgr': _BOOT_CODE.ljust(383786, b'\x90'),
            f'{boot}/PCAT/memtest.exe': self.program(3),
            f'{boot}/PCAT/en-US/bootmgr.exe.mui': self.program(1),
            f'{boot}/PCAT/en-US/memtest.exe.mui': self.program(1),
            f'{boot}/EFI/bootmgfw.efi': self.program(10),
            f'{boot}/EFI/bootmgr.efi': self.program(10),
            f'{boot}/EFI/memtest.efi': self.program(10),
            f'{boot}/EFI/en-US/bootmgfw.efi.mui': self.program(1),
            f'{boot}/EFI/en-US/memtest.efi.mui': self.program(1),
            f'{boot}/Fonts/segmono_boot.ttf': b'\0\1\0\0'.ljust(4096, b'\7'),
            f'{boot}/Fonts/wgl4_boot.ttf': b'\0\1\0\0'.ljust(4096, b'\7'),
        }

    def _boot_files(self) -> dict[str, bytes]:
        source = self._sources()
        if self.uefi:
            place, kind = 'EFI/Microsoft/Boot', 'Windows/Boot/EFI/'
        else:
            place, kind = 'Boot', 'Windows/Boot/PCAT/'
        files = {
            f'{place}/{name.removeprefix(kind)}': data
            for name, data in source.items()
            if name.startswith(kind)
        }
        for name, data in source.items():
            if name.startswith('Windows/Boot/Fonts/'):
                files[name.replace('Windows/Boot', place)] = data
        if self.uefi:
            files['EFI/Boot/bootx64.efi'] = files[f'{place}/bootmgfw.efi']
        else:
            files['bootmgr'] = files.pop('Boot/bootmgr')
        return files

    def make_dirty(
        self,
        name: str,
        changed: windows_hives.Keys,
        logs: Callable[[bytes, bytes], hives.Dirty],
    ) -> None:
        """Leave a hive's newest state in its logs.

        :param name: SYSTEM, SOFTWARE or DRIVERS
        :param changed: the newest state; what the file itself holds is
            the hive as it is here
        :param logs: how they are written, of the old state and the new
        """
        held = {
            'SYSTEM': self.system,
            'SOFTWARE': self.software,
            'DRIVERS': self.drivers,
        }[name]
        made = logs(hives.write(held), hives.write(changed))
        self.files[f'{CONFIG}/{name}'] = made.hive
        for suffix, data in made.logs.items():
            self.files[f'{CONFIG}/{name}{suffix}'] = data

    @property
    def size(self) -> int:
        """Bytes of the disk; a GPT's copy is behind the partitions."""
        end = max(part.start + part.size for part in self.parts.values())
        return (end + 2048) * SECTOR

    @property
    def store_path(self) -> str:
        return 'EFI/Microsoft/Boot/BCD' if self.uefi else 'Boot/BCD'

    def store_file(self) -> bytes:
        """The boot configuration as a hive."""
        return hives.write(self.store or {}, 'NewStoreRoot', minor=3)

    @property
    def system_part(self) -> str:
        """The name of the partition with the boot files."""
        return 'system' if 'system' in self.parts else 'windows'

    def contents(self) -> dict[str, dict[str, bytes]]:
        """All files, by the name of their partition."""
        made = {f'{CONFIG}/SYSTEM': hives.write(self.system)}
        made[f'{CONFIG}/SOFTWARE'] = hives.write(self.software)
        if self.drivers is not None:
            made[f'{CONFIG}/DRIVERS'] = hives.write(self.drivers)
        boot = {}
        if self.store is not None:
            boot[self.store_path] = self.store_file()
        if self.system_part == 'windows':
            return {'windows': made | boot | self.files}
        return {
            'windows': made | self.files,
            'system': boot | self.boot_files,
        }

    def write(self, path: str | os.PathLike[str]) -> pathlib.Path:
        """Make the disk: a sparse RAW file."""
        disk = pathlib.Path(path)
        with open(disk, 'wb') as stream:
            stream.truncate(self.size)
        self._partition(disk)
        for name, files in self.contents().items():
            part = self.parts[name]
            with tempfile.NamedTemporaryFile(
                dir=disk.parent, suffix='.part'
            ) as volume:
                if self.uefi and name == 'system':
                    windows_volumes.make_fat(volume.name, part, files)
                else:
                    windows_volumes.make_ntfs(volume.name, part, files)
                    if name == self.system_part:
                        patch(volume.name, SECTOR, _LOADER)
                windows_volumes.copy(volume.name, disk, part.offset)
        return disk

    def _partition(self, disk: pathlib.Path) -> None:
        if self.uefi:
            script = (
                f'label: gpt\nlabel-id: {DISK_GUID}\n'
                + self._row('system', f'type=U, uuid={ESP_GUID}')
                + self._row(
                    'reserved',
                    'type=E3C9E316-0B5C-4DB8-817D-F92DF00215AE, '
                    f'uuid={RESERVED_GUID}',
                )
                + self._row(
                    'windows',
                    'type=EBD0A0A2-B9E5-4433-87C0-68B6B72699C7, '
                    f'uuid={self.windows_guid}',
                )
            )
        else:
            script = f'label: dos\nlabel-id: {self.signature:#010x}\n'
            for number, name in enumerate(self.parts, 1):
                flag = ', bootable' if number == self.active else ''
                kind = self.kinds[name]
                script += self._row(name, f'type={kind}{flag}')
        subprocess.run(
            ['/usr/sbin/sfdisk', '--quiet', disk],
            input=script.encode(),
            check=True,
        )
        if not self.uefi:
            patch(disk, 0, _BOOT_CODE)

    def _row(self, name: str, more: str) -> str:
        part = self.parts[name]
        return f'start={part.start}, size={part.size}, {more}\n'


def patch(path: str | os.PathLike[str], offset: int, data: bytes) -> None:
    """Write bytes into a file."""
    with open(path, 'r+b') as stream:
        stream.seek(offset)
        stream.write(data)


@contextlib.contextmanager
def volume(disk: pathlib.Path, part: Part) -> Iterator[pathlib.Path]:
    """A copy of one volume, for the tools that read NTFS."""
    with tempfile.NamedTemporaryFile(
        dir=disk.parent, suffix='.part'
    ) as stream:
        windows_volumes.extract(disk, part, stream.name)
        yield pathlib.Path(stream.name)
