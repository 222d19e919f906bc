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


"""Writes XVAs for tests, as xapi and Xen Orchestra write them.

The numbering follows the loop by which xapi exports a disk: a counter
goes up for every chunk; chunks of zeros are left out, but for the first
and the last; and now and then, when nothing has been sent for a while, an
empty chunk takes a number without any progress. It shares nothing with
the product.
"""

from __future__ import annotations

from collections.abc import Collection
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
import hashlib
import io
import os
import tarfile
import typing
from xml.sax import saxutils

import xxhash

MIB = 1024 * 1024

Record = Mapping[str, typing.Any]


class Disk(typing.NamedTuple):
    """A disk and how it is exported.

    :ivar identity: of its VDI
    :ivar content: its bytes, or the path of a file with them
    :ivar device: xapi's ``userdevice``
    :ivar checksums: ``xxhash``, ``checksum`` or nothing
    :ivar keep_alives: the numbers that are taken by empty chunks
    :ivar padded: whether the last chunk is filled up with zeros
    """

    identity: str
    content: bytes | str
    device: str = '0'
    checksums: str = 'xxhash'
    keep_alives: Collection[int] = ()
    padded: bool = False
    bootable: bool = False

    @property
    def size(self) -> int:
        if isinstance(self.content, bytes):
            return len(self.content)
        return os.stat(self.content).st_size


class Chunk(typing.NamedTuple):
    """A chunk as it stands in the tar."""

    number: int
    content: bytes


def chunks(disk: Disk, length: int = MIB) -> Iterator[Chunk]:
    """Cut a disk as xapi's export does."""
    stream: typing.BinaryIO
    if isinstance(disk.content, bytes):
        stream = io.BytesIO(disk.content)
    else:
        stream = open(disk.content, 'rb')
    with stream:
        number = offset = 0
        while offset < disk.size:
            remaining = disk.size - offset
            is_last = remaining <= length
            if number in disk.keep_alives and number and not is_last:
                yield Chunk(number, b'')
                number += 1
                continue
            stream.seek(offset)
            data = stream.read(min(remaining, length))
            if is_last and disk.padded:
                data = data.ljust(length, b'\0')
            if number == 0 or is_last or data.count(0) != len(data):
                yield Chunk(number, data)
            number += 1
            offset += length


def checksum(content: bytes, kind: str) -> bytes:
    """A checksum as it stands in its member."""
    if kind == 'xxhash':
        return b'%016X' % xxhash.xxh64_intdigest(content)
    return hashlib.sha1(content).hexdigest().encode()


def members(disk: Disk, length: int = MIB) -> Iterator[tuple[str, bytes]]:
    """The names and contents of a disk's members in the tar."""
    for number, content in chunks(disk, length):
        name = f'{disk.identity}/{number:08d}'
        yield name, content
        if disk.checksums:
            yield (
                f'{name}.{disk.checksums}',
                checksum(content, disk.checksums),
            )


def value(item: typing.Any) -> str:
    """A value in XML-RPC, as xapi writes it: numbers are text."""
    if isinstance(item, bool):
        return f'<value><boolean>{int(item)}</boolean></value>'
    if isinstance(item, Mapping):
        fields = ''.join(
            f'<member><name>{saxutils.escape(key)}</name>{value(field)}'
            '</member>'
            for key, field in item.items()
        )
        return f'<value><struct>{fields}</struct></value>'
    if isinstance(item, (list, tuple)):
        items = ''.join(value(entry) for entry in item)
        return f'<value><array><data>{items}</data></array></value>'
    return f'<value>{saxutils.escape(str(item))}</value>'


def record(kind: str, identity: str, snapshot: Record) -> Record:
    """One object of the description."""
    return {'class': kind, 'id': identity, 'snapshot': snapshot}


def disk_records(disk: Disk, vm: str) -> list[Record]:
    """The VBD and the VDI of a disk."""
    return [
        record(
            'VBD',
            f'{vm}-vbd{disk.device}',
            {
                'VM': vm,
                'VDI': disk.identity,
                'device': 'xvda',
                'userdevice': disk.device,
                'bootable': disk.bootable,
                'mode': 'RW',
                'type': 'Disk',
                'empty': False,
            },
        ),
        record(
            'VDI',
            disk.identity,
            {
                'name_label': f'disk {disk.device}',
                'SR': 'Ref:90',
                'virtual_size': str(disk.size),
                'type': 'user',
            },
        ),
    ]


def guest(
    disks: Sequence[Disk], vm: str = 'Ref:0', **fields: typing.Any
) -> list[Record]:
    """The objects of a guest with the disks and an empty CD drive."""
    snapshot = {
        'uuid': '6f1d5b1e-52f0-4a6d-9a3f-0d5a2a3c1b70',
        'power_state': 'Halted',
        'name_label': 'guest',
        'is_a_template': False,
        'is_a_snapshot': False,
        'memory_static_max': '2147483648',
        'memory_dynamic_max': '1073741824',
        'VCPUs_max': '4',
        'VCPUs_at_startup': '2',
        'suspend_VDI': 'Ref:NULL',
        'VBDs': [],
        'VIFs': [],
        'HVM_boot_policy': 'BIOS order',
        'HVM_boot_params': {'order': 'dc'},
        'platform': {'nx': 'true', 'viridian': 'true'},
        'PV_bootloader': '',
        'PV_args': '',
        **fields,
    }
    drive = {
        'VM': vm,
        'VDI': 'Ref:NULL',
        'userdevice': '3',
        'type': 'CD',
        'empty': True,
        'bootable': False,
    }
    objects = [record('VM', vm, snapshot), record('VBD', f'{vm}-cd', drive)]
    for disk in disks:
        objects.extend(disk_records(disk, vm))
    return objects


def network(
    device: str, mac: str, label: str, vm: str = 'Ref:0'
) -> list[Record]:
    """A VIF and the network it is on."""
    return [
        record(
            'VIF',
            f'{vm}-vif{device}',
            {'VM': vm, 'device': device, 'MAC': mac, 'network': label},
        ),
        record('network', label, {'name_label': label}),
    ]


def description(objects: Sequence[Record]) -> bytes:
    """``ova.xml``."""
    version = {
        'hostname': 'host',
        'product_version': '8.2.1',
        'product_brand': 'XCP-ng',
        'xapi_major': '1',
        'export_vsn': '2',
    }
    return value({'version': version, 'objects': list(objects)}).encode()


def write_members(
    stream: typing.BinaryIO, listed: Iterator[tuple[str, bytes]]
) -> None:
    """Write a tar, forward only."""
    with tarfile.open(
        fileobj=stream, mode='w|', format=tarfile.USTAR_FORMAT
    ) as archive:
        for name, content in listed:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))


def write(
    stream: typing.BinaryIO,
    disks: Sequence[Disk],
    objects: Sequence[Record] | None = None,
    length: int = MIB,
) -> None:
    """Write an XVA of the disks.

    :param objects: of the description; by default a guest with the disks
    :param length: of a chunk
    """

    def listed() -> Iterator[tuple[str, bytes]]:
        yield (
            'ova.xml',
            description(guest(disks) if objects is None else objects),
        )
        for disk in sorted(disks, key=lambda disk: disk.identity):
            yield from members(disk, length)

    write_members(stream, listed())


def write_file(
    path: str | os.PathLike[str],
    disks: Sequence[Disk],
    objects: Sequence[Record] | None = None,
    length: int = MIB,
) -> None:
    """The same into a file."""
    with open(path, 'wb') as stream:
        write(stream, disks, objects, length)
