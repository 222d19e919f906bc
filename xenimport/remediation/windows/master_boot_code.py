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


"""The boot code of an MBR, for a disk that has none.

``master_boot_code.s``, beside this file, is its source, and says how it is
assembled.
"""

from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Sequence

from xenimport.guest import guest as guest_room
from xenimport import model
from xenimport.remediation.windows import base as windows_base
from xenimport.remediation.windows import boot

#: Bytes of sector 0 that are code; Windows' disk signature comes behind.
LENGTH = 440
#: Nothing that the BIOS could run starts with these over and over.
_FILLERS = (b'\x00', b'\xff', b'\xf6')
#: Assembled from master_boot_code.s.
CODE = bytes.fromhex(
    'fa31c08ed0bc007c8ed88ec0fbfcbe007cbf0006b90001f3a5ea1e060000bebe'
    '07b90400803c80740a83c610e2f6be8706eb4389f5bf05006631c0665066ff76'
    '085068007c6a016a1089e6b44252cd135a8d6410730e30e452cd135a4f75d9be'
    'ae06eb12813efe7d55aabed506750789eeea007c0000ac84c07409b40ebb0700'
    'cd10ebf2f4ebfd4e6f20706172746974696f6e206f662074686973206469736b'
    '206973206163746976652e0d0a00546865206163746976652070617274697469'
    '6f6e2063616e6e6f7420626520726561642e0d0a005468652061637469766520'
    '706172746974696f6e20686173206e6f20626f6f7420736563746f722e0d0a00'
)


class MasterBootCode(windows_base.WindowsCheck):
    """What the BIOS runs first."""

    id = 'windows.boot-code'
    title = 'The boot disk has boot code in its first sector'

    def examine(self, guest: guest_room.Guest) -> Iterator[model.Finding]:
        drive = _booted(guest)
        if drive is None or not is_blank(_code(guest, drive)):
            return
        yield model.Finding(
            self.id,
            model.Severity.BLOCKER,
            'The boot disk has no boot code',
            f'{drive}: bytes 0-439 of sector 0 hold nothing',
            'from an installation medium of Windows run "bootsect /nt60 '
            'SYS /mbr", with the guest still on Xen',
            subject=drive,
            repair='writes boot code that starts the active partition; the '
            'disk signature and the partition table stay',
        )

    def repair(
        self, guest: guest_room.Guest, finding: model.Finding
    ) -> Sequence[model.Change]:
        drive = _booted(guest)
        if drive is None:
            return ()
        before = _code(guest, drive)
        if not is_blank(before):
            return ()
        guest.write_device(drive, 0, CODE.ljust(LENGTH, b'\0'))
        return [
            model.Change(
                self.id,
                drive,
                'sector 0, bytes 0-439',
                before=f'440 times {before[0]:02x}',
                after='boot code of xenimport',
                reason='the BIOS runs it to start the active partition',
                undo='write the bytes before to the same place',
            )
        ]


def _booted(guest: guest_room.Guest) -> str | None:
    """The drive whose boot code a BIOS runs; None under UEFI."""
    partition = boot.system_partition(guest)
    if partition is None or boot.firmware(guest) is not model.Firmware.BIOS:
        return None
    return boot.drive_of(guest, partition)


def _code(guest: guest_room.Guest, drive: str) -> bytes:
    return guest.head(drive)[:LENGTH]


def is_blank(code: bytes) -> bool:
    """Whether there is no code at all, as on a disk made by hand."""
    return len(code) == LENGTH and code in {
        filler * LENGTH for filler in _FILLERS
    }
