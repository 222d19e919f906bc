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


"""The files that the firmware starts Windows with.

Sources: the UEFI specification, 3.5.1.1, for the fallback path; Microsoft's
"BCDBoot Command-Line Options" for the files; its PE format for what a
boot manager must look like. "BOOTMGR is compressed" is what the boot
sector says of a file with NTFS' compression.
"""

from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Sequence
import struct

from xenimport import exceptions
from xenimport.guest import guest as guest_room
from xenimport.guest import volumes
from xenimport import model
from xenimport.remediation.windows import base as windows_base
from xenimport.remediation.windows import boot
from xenimport.remediation.windows import boot_files_copy
from xenimport.remediation.windows import system

#: FILE_ATTRIBUTE_COMPRESSED.
_COMPRESSED = 0x800
_ATTRIBUTES = 'system.ntfs_attrib'
#: Machines of the PE format.
_MACHINES = {'amd64': 0x8664, 'x86': 0x014C, 'arm64': 0xAA64}
_HEADER = 4096


class BootManager(windows_base.WindowsCheck):
    """\\bootmgr, or bootmgfw.efi of an ESP."""

    id = 'windows.boot-manager'
    title = 'The boot manager is there'

    def examine(self, guest: guest_room.Guest) -> Iterator[model.Finding]:
        partition = boot.system_partition(guest)
        if partition is None or boot.is_before_vista(guest):
            return
        kind = boot.firmware(guest)
        path = boot.MANAGERS[kind]
        volume = boot.system_volume(guest)
        if volume is None:
            wrong = 'cannot be read: there is no sound file system'
        else:
            wrong = _wrong(guest, volume, kind) or ''
        if not wrong:
            return
        copy = volume is not None and boot_files_copy.can_copy(guest, kind)
        yield model.Finding(
            self.id,
            model.Severity.BLOCKER,
            "Windows' boot manager cannot be started",
            f'{partition.device}: \\{_shown(path)} {wrong}',
            'from an installation medium of Windows on Xen run '
            '"bcdboot C:\\Windows", and export the guest again',
            subject=f'{partition.device} \\{_shown(path)}',
            repair='copies the boot files from \\Windows\\Boot'
            if copy
            else None,
        )

    def repair(
        self, guest: guest_room.Guest, finding: model.Finding
    ) -> Sequence[model.Change]:
        volume = boot.system_volume(guest)
        kind = boot.firmware(guest)
        wrong = volume and _wrong(guest, volume, kind)
        if volume is None or not wrong:
            return ()
        changes = []
        path = boot.MANAGERS[kind]
        if volume.exists(path):
            # Whatever is written into it would be compressed as well.
            volume.remove(path)
            changes.append(
                model.Change(
                    self.id,
                    volume.device,
                    f'\\{_shown(path)}',
                    before=wrong,
                    after='removed, to be copied anew',
                    reason='Windows cannot be started with it',
                    undo='none: it was of no use',
                )
            )
        return changes + boot_files_copy.copy_boot_files(guest, kind, self.id)


def _shown(path: str) -> str:
    return path.replace('/', '\\')


def _wrong(
    guest: guest_room.Guest, volume: volumes.Volume, kind: model.Firmware
) -> str | None:
    """What is wrong with the boot manager, None where nothing is."""
    path = boot.MANAGERS[kind]
    size = volume.size(path)
    if size is None:
        return 'is not there'
    if not size:
        return 'is empty'
    if kind is model.Firmware.UEFI:
        return _wrong_image(guest, volume, path)
    if _is_compressed(guest, volume, path):
        return 'is compressed'
    return None


def _is_compressed(
    guest: guest_room.Guest, volume: volumes.Volume, path: str
) -> bool:
    if volume.file_system != 'ntfs':
        return False
    try:
        data = guest.call('getxattr', volume.path(path), _ATTRIBUTES)
    except exceptions.GuestError:
        return False
    return len(data) == 4 and bool(
        int.from_bytes(data, 'little') & _COMPRESSED
    )


def _wrong_image(
    guest: guest_room.Guest, volume: volumes.Volume, path: str
) -> str | None:
    """What is wrong with a program for UEFI."""
    wanted = _MACHINES.get(system.architecture(guest))
    if wanted is None:
        return None
    found = machine(volume.start(path, _HEADER))
    if found is None:
        return 'is no program'
    if found != wanted:
        return f'is for machine {found:#06x}, not {wanted:#06x}'
    return None


def machine(data: bytes) -> int | None:
    """The machine that a PE is for, from its start; None of no PE."""
    if len(data) < 0x40 or data[:2] != b'MZ':
        return None
    (at,) = struct.unpack_from('<I', data, 0x3C)
    if at + 6 > len(data) or data[at : at + 4] != b'PE\0\0':
        return None
    found: int = struct.unpack_from('<H', data, at + 4)[0]
    return found


class UefiFallback(windows_base.WindowsCheck):
    """The path that a UEFI tries which knows no entry: a new machine's."""

    id = 'windows.uefi-fallback'
    title = 'The ESP has a boot manager where any UEFI looks'

    def examine(self, guest: guest_room.Guest) -> Iterator[model.Finding]:
        volume = boot.system_volume(guest)
        path = _fallback(guest)
        if volume is None or path is None or volume.size(path):
            return
        yield model.Finding(
            self.id,
            model.Severity.BLOCKER,
            'A new machine with UEFI would not find the boot manager',
            f'{volume.device}: \\{_shown(path)} is not there or empty; the '
            "entry in the firmware's own memory stays on Xen",
            'copy \\EFI\\Microsoft\\Boot\\bootmgfw.efi of the ESP there',
            subject=f'{volume.device} \\{_shown(path)}',
            repair='copies bootmgfw.efi there',
        )

    def repair(
        self, guest: guest_room.Guest, finding: model.Finding
    ) -> Sequence[model.Change]:
        volume = boot.system_volume(guest)
        path = _fallback(guest)
        if volume is None or path is None or volume.size(path):
            return ()
        manager = boot.MANAGERS[model.Firmware.UEFI]
        before = 'empty' if volume.exists(path) else 'absent'
        volume.copy(manager, path)
        return [
            model.Change(
                self.id,
                volume.device,
                f'\\{_shown(path)}',
                before=before,
                after=f'a copy of \\{_shown(manager)}, '
                f'{volume.size(path)} bytes',
                reason='a new UEFI has no entry for Windows',
                undo=f'delete \\{_shown(path)} of the ESP',
            )
        ]


def _fallback(guest: guest_room.Guest) -> str | None:
    """Where the fallback belongs; None under BIOS."""
    if boot.firmware(guest) is not model.Firmware.UEFI:
        return None
    return boot_files_copy.FALLBACKS.get(system.architecture(guest))
