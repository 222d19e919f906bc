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


"""Boot configurations (BCD) as Windows' setup makes them, byte for byte.

Written from the documented layout, with literals; nothing here knows the
product. A store is a mapping of keys' paths to their values, each a name,
a type and bytes: for a hive in memory, or for a tool that makes a real one.
"""

from __future__ import annotations

from collections.abc import Mapping
import struct
import uuid

SZ, BINARY, DWORD, MULTI_SZ = 1, 3, 4, 7
#: Keys with their values.
Store = dict[str, list[tuple[str, int, bytes]]]

BOOTMGR = '{9dea862c-5cdd-4e70-acc1-f32b344d4795}'
MEMDIAG = '{b2721d73-1db4-4c62-bf78-c548a880142d}'
GLOBAL = '{7ea2e1ac-2e61-4728-aaa3-896d9d0a9f0e}'
DEBUGGER = '{4636856e-540f-4170-a130-a84776f4c654}'
EMS = '{0ce4991b-e6b3-4b16-b23c-5e0d9250e5d9}'
BAD_MEMORY = '{5189b25c-5558-4bf2-bca4-289b11bd29e2}'
LOADER_SETTINGS = '{6efb52bf-1766-41db-a6b3-0ee5eff72bd7}'
HYPERVISOR = '{7ff607e0-4395-11db-b0de-0800200c9a66}'
RESUME_SETTINGS = '{1afa9c49-16ab-4a5c-901b-212802da9460}'
#: Ids that setup makes anew for each store; here they are always these.
LOADER = '{2cd3b1f4-0a65-11e1-9a3c-e02f6d1c5b77}'
RESUME = '{2cd3b1f3-0a65-11e1-9a3c-e02f6d1c5b77}'
RECOVERY = '{2cd3b1f6-0a65-11e1-9a3c-e02f6d1c5b77}'
RECOVERY_OPTIONS = '{2cd3b1f7-0a65-11e1-9a3c-e02f6d1c5b77}'
RECOVERY_PATH = '\\Recovery\\WindowsRE\\Winre.wim'


def mbr_device(signature: int, offset: int) -> bytes:
    """A partition by its disk's signature and its first byte."""
    return (
        bytes(16)
        + bytes.fromhex('06000000 00000000 48000000 00000000')
        + struct.pack('<Q', offset)
        + bytes(8)
        + bytes.fromhex('00000000 01000000')
        + struct.pack('<I', signature)
        + bytes(28)
    )


def gpt_device(disk: str, partition: str) -> bytes:
    """A partition by the GUIDs of its disk and of itself."""
    return (
        bytes(16)
        + bytes.fromhex('06000000 00000000 48000000 00000000')
        + uuid.UUID(partition).bytes_le
        + bytes.fromhex('00000000 00000000')
        + uuid.UUID(disk).bytes_le
        + bytes(16)
    )


def boot_device() -> bytes:
    """The partition that the boot manager was started from."""
    return (
        bytes(16)
        + bytes.fromhex('05000000 00000000 48000000 00000000')
        + bytes(56)
    )


def locate_device(element: int) -> bytes:
    """Wherever the file of an element is found; sysprep leaves these."""
    return (
        bytes(16)
        + bytes.fromhex('08000000 00000000 1e000000 00000000')
        + bytes(4)
        + struct.pack('<I', element)
        + bytes(6)
    )


def ramdisk_device(parent: bytes, path: str, options: str) -> bytes:
    """A RAM disk, filled from a file.

    :param parent: the element of the partition with the file
    :param options: id of the object with its options
    """
    name = path.encode('utf-16-le') + b'\0\0'
    inner = parent[16:] + name
    return (
        uuid.UUID(options).bytes_le
        + struct.pack('<4I', 0, 1, 16 + 24 + 12 + len(inner), 0)
        + bytes.fromhex('03000000')
        + bytes(20)
        + struct.pack('<3I', 1, 12 + len(inner), 5)
        + inner
    )


def file_device(parent: bytes, path: str) -> bytes:
    """A file that is taken for a device."""
    inner = parent[16:] + path.encode('utf-16-le') + b'\0\0'
    return (
        bytes(16)
        + struct.pack('<4I', 0, 0, 16 + 4 + 12 + len(inner), 0)
        + bytes.fromhex('05000000')
        + struct.pack('<3I', 1, 12 + len(inner), 5)
        + inner
    )


def virtual_disk_partition(parent: bytes, path: str) -> bytes:
    """A partition of a virtual disk that is a file of a partition."""
    file = file_device(parent, path)[16:]
    return (
        bytes(16)
        + struct.pack('<4I', 6, 0, 16 + 40 + len(file), 0)
        + struct.pack('<Q8x', 0x100000)
        + bytes.fromhex('06000000 01000000')
        + struct.pack('<I12x', 0x5EED5EED)
        + file
    )


def text(value: str) -> tuple[int, bytes]:
    """An element of a text or a single object."""
    return SZ, value.encode('utf-16-le') + b'\0\0'


def texts(*values: str) -> tuple[int, bytes]:
    """An element of a list of objects."""
    data = b''.join(value.encode('utf-16-le') + b'\0\0' for value in values)
    return MULTI_SZ, data + b'\0\0'


def integer(value: int) -> tuple[int, bytes]:
    """An element of a number."""
    return BINARY, struct.pack('<Q', value)


def boolean(value: bool) -> tuple[int, bytes]:
    """An element of yes or no."""
    return BINARY, b'\1' if value else b'\0'


def device(data: bytes) -> tuple[int, bytes]:
    """An element of a device."""
    return BINARY, data


def put_object(
    store: Store,
    identifier: str,
    kind: int,
    elements: Mapping[str, tuple[int, bytes]],
) -> None:
    """Put an object into a store, or over the one of the same id."""
    path = f'Objects\\{identifier}'
    for key in [key for key in store if f'{key}\\'.startswith(f'{path}\\')]:
        del store[key]
    store[path] = []
    store[f'{path}\\Description'] = [('Type', DWORD, struct.pack('<I', kind))]
    store[f'{path}\\Elements'] = []
    for digits, (type_, data) in elements.items():
        store[f'{path}\\Elements\\{digits}'] = [('Element', type_, data)]


def put_element(
    store: Store, identifier: str, digits: str, value: tuple[int, bytes]
) -> None:
    """Set one element."""
    path = f'Objects\\{identifier}\\Elements\\{digits}'
    store[path] = [('Element', *value)]


def store(
    firmware: str,
    system: bytes,
    windows: bytes,
    *,
    recovery: bytes | None = None,
    description: str = 'Windows Server 2008 R2',
    locale: str = 'en-US',
) -> Store:
    """What setup leaves: boot manager, loader, resume loader, settings.

    :param firmware: ``bios`` or ``uefi``
    :param system: the element of the partition with the boot manager
    :param windows: the element of the partition with Windows
    :param recovery: the element of the partition with Windows PE for
        recovery, if there is such an entry
    """
    uefi = firmware == 'uefi'
    suffix = 'efi' if uefi else 'exe'
    made: Store = {
        '': [],
        'Description': [
            ('KeyName', *text('BCD00000000')),
            ('System', DWORD, b'\1\0\0\0'),
        ],
        'Objects': [],
    }
    common = {'12000005': text(locale)}
    manager = {
        '11000001': device(system),
        '12000004': text('Windows Boot Manager'),
        **common,
        '14000006': texts(GLOBAL),
        '23000003': text(LOADER),
        '23000006': text(RESUME),
        '24000001': texts(LOADER),
        '24000010': texts(MEMDIAG),
        '25000004': integer(30),
    }
    if uefi:
        manager['12000002'] = text('\\EFI\\Microsoft\\Boot\\bootmgfw.efi')
    put_object(made, BOOTMGR, 0x10100002, manager)
    loader = {
        '11000001': device(windows),
        '12000002': text(f'\\Windows\\system32\\winload.{suffix}'),
        '12000004': text(description),
        **common,
        '14000006': texts(LOADER_SETTINGS),
        '21000001': device(windows),
        '22000002': text('\\Windows'),
        '23000003': text(RESUME),
        '25000020': integer(1),
    }
    if recovery is not None:
        loader['14000008'] = texts(RECOVERY)
        loader['16000009'] = boolean(True)
        _put_recovery(made, recovery, suffix)
    put_object(made, LOADER, 0x10200003, loader)
    put_object(
        made,
        RESUME,
        0x10200004,
        {
            '11000001': device(windows),
            '12000002': text(f'\\Windows\\system32\\winresume.{suffix}'),
            '12000004': text('Windows Resume Application'),
            **common,
            '14000006': texts(RESUME_SETTINGS),
            '21000001': device(windows),
            '22000002': text('\\hiberfil.sys'),
            '26000006': boolean(False),
        },
    )
    put_object(
        made,
        MEMDIAG,
        0x10200005,
        {
            '11000001': device(system),
            '12000002': text(
                '\\EFI\\Microsoft\\Boot\\memtest.efi'
                if uefi
                else '\\boot\\memtest.exe'
            ),
            '12000004': text('Windows Memory Diagnostic'),
            **common,
            '14000006': texts(GLOBAL),
            '1600000b': boolean(True),
        },
    )
    _put_settings(made)
    return made


def _put_recovery(made: Store, partition: bytes, suffix: str) -> None:
    image = ramdisk_device(partition, RECOVERY_PATH, RECOVERY_OPTIONS)
    put_object(
        made,
        RECOVERY,
        0x10200003,
        {
            '11000001': device(image),
            '12000002': text(f'\\windows\\system32\\winload.{suffix}'),
            '12000004': text('Windows Recovery Environment'),
            '14000006': texts(LOADER_SETTINGS),
            '21000001': device(image),
            '22000002': text('\\windows'),
            '25000020': integer(0),
            '26000022': boolean(True),
            '46000010': boolean(True),
        },
    )
    put_object(
        made,
        RECOVERY_OPTIONS,
        0x30000000,
        {
            '12000004': text('Ramdisk Options'),
            '31000003': device(partition),
            '32000004': text('\\Recovery\\WindowsRE\\boot.sdi'),
        },
    )


def _put_settings(made: Store) -> None:
    put_object(
        made,
        GLOBAL,
        0x20100000,
        {'14000006': texts(DEBUGGER, EMS, BAD_MEMORY)},
    )
    put_object(
        made,
        DEBUGGER,
        0x20100000,
        {
            '15000011': integer(0),
            '15000013': integer(1),
            '15000014': integer(115200),
        },
    )
    put_object(made, EMS, 0x20100000, {'16000020': boolean(True)})
    put_object(made, BAD_MEMORY, 0x20100000, {})
    put_object(
        made,
        LOADER_SETTINGS,
        0x20200003,
        {'14000006': texts(GLOBAL, HYPERVISOR)},
    )
    put_object(
        made,
        HYPERVISOR,
        0x20200003,
        {
            '250000f3': integer(0),
            '250000f4': integer(1),
            '250000f5': integer(115200),
        },
    )
    put_object(made, RESUME_SETTINGS, 0x20200004, {'14000006': texts(GLOBAL)})
