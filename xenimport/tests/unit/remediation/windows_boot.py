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


"""Windows guests in memory that have disks to boot from."""

from __future__ import annotations

from collections.abc import Mapping
import struct
import typing
import uuid

from xenimport.guest import guest as guest_room
from xenimport.guest import registry
from xenimport import model
from xenimport.remediation import base
from xenimport.tests import bcd_stores
from xenimport.tests.unit.remediation import windows_fakes

SIGNATURE = 0x1A2B3C4D
SYSTEM_OFFSET = 1 << 20
WINDOWS_OFFSET = 101 << 20
SYSTEM = bcd_stores.mbr_device(SIGNATURE, SYSTEM_OFFSET)
WINDOWS = bcd_stores.mbr_device(SIGNATURE, WINDOWS_OFFSET)
DISK_GUID = '6f1c2b3a-1111-4222-8333-944455566677'
ESP_GUID = '00000000-aaaa-4bbb-8ccc-0123456789ab'
WINDOWS_GUID = '12345678-9abc-4def-8123-456789abcdef'
GPT_SYSTEM = bcd_stores.gpt_device(DISK_GUID, ESP_GUID)
GPT_WINDOWS = bcd_stores.gpt_device(DISK_GUID, WINDOWS_GUID)
ESP_TYPE = 'C12A7328-F81F-11D2-BA4B-00A0C93EC93B'
DATA_TYPE = 'EBD0A0A2-B9E5-4433-87C0-68B6B72699C7'
LETTER = '\\DosDevices\\C:'
VOLUME = '\\??\\Volume{c5b6a3f2-0a65-11e1-8c5e-806e6f6e6963}'
CONFIG = 'Windows/System32/config'
#: A PE file's header: machine 0x8664, amd64.
PROGRAM = (
    b'MZ'.ljust(0x3C, b'\0') + b'\x40\0\0\0' + b'PE\0\0' + b'\x64\x86'
).ljust(512, b'\0')

_UEFI_FILES = {'EFI/Microsoft/Boot/bootmgfw.efi': PROGRAM}
_BIOS_FILES = {'bootmgr': b'boot manager'}

Values = list[registry.Value]


def request(**fields: typing.Any) -> base.Request:
    """What a user asked who asked nothing."""
    values: dict[str, typing.Any] = {
        'virtual_system': typing.cast(model.VirtualSystem, None)
    }
    return base.Request(**{**values, **fields})


def tree(store: bcd_stores.Store) -> dict[str, Values]:
    """A store as the hives in memory have it."""
    return {
        path: [registry.Value(*value) for value in values]
        for path, values in store.items()
    }


def genuine(**changes: typing.Any) -> bcd_stores.Store:
    """The store that belongs to the disk with an MBR."""
    values: dict[str, typing.Any] = {
        'firmware': 'bios',
        'system': SYSTEM,
        'windows': WINDOWS,
    }
    return bcd_stores.store(**{**values, **changes})


def mbr(signature: int = SIGNATURE) -> bytes:
    """The first sectors of a disk with two partitions."""
    entries = struct.pack(
        '<B3xB3xII', 0x80, 7, SYSTEM_OFFSET // 512, 100 << 11
    ) + struct.pack('<B3xB3xII', 0, 7, WINDOWS_OFFSET // 512, 1 << 21)
    sector = (
        bytes(0x1B8)
        + struct.pack('<IH', signature, 0)
        + entries.ljust(64, b'\0')
        + b'\x55\xaa'
    )
    return sector.ljust(64 << 10, b'\0')


def gpt() -> bytes:
    """The first sectors of a disk with an ESP and Windows' partition."""
    sector = bytes(446) + struct.pack('<B3sB3xII', 0, b'\0\2\0', 0xEE, 1, 9999)
    header = (
        b'EFI PART'.ljust(32, b'\0')
        + struct.pack('<Q', 127)
        + bytes(16)
        + uuid.UUID(DISK_GUID).bytes_le
        + struct.pack('<QII', 2, 128, 128)
    )
    entries = b''
    for kind, name, start in (
        (ESP_TYPE, ESP_GUID, SYSTEM_OFFSET),
        (DATA_TYPE, WINDOWS_GUID, WINDOWS_OFFSET),
    ):
        entries += (
            uuid.UUID(kind).bytes_le
            + uuid.UUID(name).bytes_le
            + struct.pack('<QQ', start // 512, start // 512 + 999)
        ).ljust(128, b'\0')
    data = sector.ljust(510, b'\0') + b'\x55\xaa'
    data += header.ljust(512, b'\0') + entries
    return data.ljust(64 << 10, b'\0')


def mounted(
    signature: int = SIGNATURE, offset: int = WINDOWS_OFFSET
) -> dict[str, Values]:
    """MountedDevices: 12 bytes, signature and first byte."""
    data = struct.pack('<IQ', signature, offset)
    return {
        'MountedDevices': [
            registry.Value.binary(LETTER, data),
            registry.Value.binary(VOLUME, data),
            registry.Value.binary(
                '\\DosDevices\\E:',
                struct.pack('<IQ', signature, SYSTEM_OFFSET),
            ),
            registry.Value.binary(
                '\\DosDevices\\D:', '\\??\\IDE#CdRom'.encode('utf-16-le')
            ),
        ]
    }


def guest(
    store: bcd_stores.Store | None = None,
    *,
    uefi: bool = False,
    device: bytes | None = None,
    system_keys: Mapping[str, Values] | None = None,
    files: Mapping[str, bytes] | None = None,
    system_files: Mapping[str, bytes] | None = None,
    **fields: typing.Any,
) -> windows_fakes.FakeWindows:
    """A Windows in /dev/sda2 whose boot files are in /dev/sda1.

    :param store: none by default
    :param files: more of them, on Windows' volume
    """
    suffix = 'efi' if uefi else 'exe'
    made = windows_fakes.FakeWindows(
        {
            '/dev/sda1': {
                **(_UEFI_FILES if uefi else _BIOS_FILES),
                **(system_files or {}),
            },
            '/dev/sda2': {
                f'Windows/System32/winload.{suffix}': PROGRAM,
                **(files or {}),
            },
        },
        {
            '/dev/sda2': {
                f'{CONFIG}/SYSTEM': {
                    'Select': [
                        registry.Value.dword('Current', 1),
                        registry.Value.dword('Default', 1),
                    ],
                    'ControlSet001\\Control\\Nls\\Language': [
                        registry.Value.sz('InstallLanguage', '0407')
                    ],
                    **(system_keys or {}),
                },
                f'{CONFIG}/SOFTWARE': {
                    'Microsoft\\Windows NT\\CurrentVersion': [
                        registry.Value.sz('SystemRoot', 'C:\\Windows'),
                        registry.Value.sz('CurrentBuildNumber', '7601'),
                        registry.Value.sz('InstallationType', 'Server'),
                    ]
                },
            },
        },
        operating_system=windows_fakes.system(**fields),
        partitions=(
            guest_room.Partition(
                1,
                '/dev/sda1',
                SYSTEM_OFFSET,
                100 << 20,
                ESP_TYPE if uefi else '0x07',
                bootable=not uefi,
            ),
            guest_room.Partition(
                2,
                '/dev/sda2',
                WINDOWS_OFFSET,
                1 << 30,
                DATA_TYPE if uefi else '0x07',
            ),
        ),
        devices={'/dev/sda': device or (gpt() if uefi else mbr())},
        table='gpt' if uefi else 'msdos',
        file_systems={'/dev/sda1': 'vfat' if uefi else 'ntfs'},
    )
    if store is not None:
        made.put_hive(
            '/dev/sda1',
            'EFI/Microsoft/Boot/BCD' if uefi else 'Boot/BCD',
            tree(store),
        )
    return made


def real(made: windows_fakes.FakeWindows) -> guest_room.Guest:
    """As the checks' signatures want it."""
    return typing.cast(guest_room.Guest, made)
