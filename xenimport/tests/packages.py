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

"""Writes VHDs and OVAs for tests, as Xen's tools write them.

Written after the published formats and from what XenCenter, xapi and
Xen Orchestra are known to write. It shares nothing with the product, so
that a mistake on one side does not hide the same mistake on the other.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
import hashlib
import io
import os
import tarfile
import typing
import uuid
from xml.sax import saxutils

MIB = 1024 * 1024
BLOCK_SIZE = 2 * MIB
UNUSED = 0xFFFFFFFF
FIXED = 2
DYNAMIC = 3
DIFFERENCING = 4

VHD_FORMAT = (
    'http://www.microsoft.com/technet/virtualserver/downloads/vhdspec.mspx'
)


# VHD


def geometry(size: int) -> tuple[int, int, int]:
    """Cylinders, heads and sectors, by the specification's appendix."""
    total = min(size // 512, 65535 * 16 * 255)
    if total >= 65535 * 16 * 63:
        sectors, heads = 255, 16
        return total // sectors // heads, heads, sectors
    sectors = 17
    tracks = total // sectors
    heads = max(4, (tracks + 1023) // 1024)
    if tracks >= heads * 1024 or heads > 16:
        sectors, heads = 31, 16
        tracks = total // sectors
    if tracks >= heads * 1024:
        sectors, heads = 63, 16
        tracks = total // sectors
    return tracks // heads, heads, sectors


def with_checksum(data: bytes, offset: int) -> bytes:
    """The structure with its checksum at ``offset`` set right."""
    blank = bytearray(data)
    blank[offset : offset + 4] = bytes(4)
    total = 0
    for byte in blank:
        total += byte
    blank[offset : offset + 4] = (0xFFFFFFFF - total).to_bytes(4, 'big')
    return bytes(blank)


def footer(
    size: int,
    kind: int = DYNAMIC,
    *,
    creator: bytes = b'caml',
    creator_version: int = 0x00000001,
    chs: tuple[int, int, int] | None = None,
    data_offset: int | None = None,
    hidden: int = 0,
    cookie: bytes = b'conectix',
) -> bytes:
    """A footer of 512 bytes."""
    cylinders, heads, sectors = chs or geometry(size)
    if data_offset is None:
        data_offset = 0xFFFFFFFFFFFFFFFF if kind == FIXED else 512
    parts = (
        cookie,
        (2).to_bytes(4, 'big'),
        (0x00010000).to_bytes(4, 'big'),
        data_offset.to_bytes(8, 'big'),
        (0x2A000000).to_bytes(4, 'big'),
        creator,
        creator_version.to_bytes(4, 'big'),
        bytes(4),
        size.to_bytes(8, 'big'),
        size.to_bytes(8, 'big'),
        cylinders.to_bytes(2, 'big'),
        bytes((heads, sectors)),
        kind.to_bytes(4, 'big'),
        bytes(4),
        uuid.UUID('0d6a1c4e-8b1f-4f6e-9a35-5d0a6c1f2b3a').bytes,
        bytes((0, hidden)),
    )
    return with_checksum(b''.join(parts).ljust(512, b'\0'), 64)


def dynamic_header(
    entries: int,
    *,
    table_offset: int = 1536,
    block_size: int = BLOCK_SIZE,
    reserved: bytes = b'',
) -> bytes:
    """A dynamic header of 1024 bytes."""
    parts = (
        b'cxsparse',
        b'\xff' * 8,
        table_offset.to_bytes(8, 'big'),
        (0x00010000).to_bytes(4, 'big'),
        entries.to_bytes(4, 'big'),
        block_size.to_bytes(4, 'big'),
    )
    head = b''.join(parts).ljust(768, b'\0') + reserved
    return with_checksum(head.ljust(1024, b'\0'), 36)


def fixed_vhd(data: bytes, **fields: typing.Any) -> bytes:
    """A fixed VHD of the data."""
    return data + footer(len(data), FIXED, **fields)


def write_dynamic_vhd(
    stream: typing.BinaryIO,
    size: int,
    blocks: Sequence[int],
    read: Callable[[int, int], bytes],
    *,
    block_size: int = BLOCK_SIZE,
    bitmaps: Mapping[int, bytes] | None = None,
    gap: int = 0,
    spare_entries: int = 0,
    **fields: typing.Any,
) -> None:
    """Write a dynamic VHD.

    :param size: of the disk, bytes
    :param blocks: the numbers of the allocated blocks in the order they
        are to stand in the file
    :param read: gives the disk's bytes for an offset and a length
    :param bitmaps: for the blocks whose bitmap is not all ones
    :param gap: bytes left free between two blocks, whole sectors
    :param spare_entries: entries of the table beyond the disk's end
    :param fields: of the footer
    """
    tail = footer(size, DYNAMIC, **fields)
    entries = (size + block_size - 1) // block_size + spare_entries
    table = [UNUSED] * entries
    bits = (block_size // 512 + 7) // 8
    bitmap_size = (bits + 511) // 512 * 512
    position = 1536 + (entries * 4 + 511) // 512 * 512
    for number in blocks:
        position += gap
        table[number] = position // 512
        stream.seek(position)
        bitmap = (bitmaps or {}).get(number, b'\xff' * bits)
        stream.write(bitmap.ljust(bitmap_size, b'\0'))
        start = number * block_size
        length = min(block_size, size - start)
        stream.write(read(start, length).ljust(block_size, b'\0'))
        position += bitmap_size + block_size
    stream.seek(position)
    stream.write(tail)
    stream.seek(0)
    stream.write(tail)
    stream.write(dynamic_header(entries, block_size=block_size))
    raw_table = b''.join(entry.to_bytes(4, 'big') for entry in table)
    stream.write(raw_table.ljust(-(-len(raw_table) // 512) * 512, b'\xff'))


def dynamic_vhd(
    data: bytes,
    blocks: Sequence[int] | None = None,
    *,
    block_size: int = BLOCK_SIZE,
    **options: typing.Any,
) -> bytes:
    """A dynamic VHD of the data, in memory.

    :param blocks: which blocks are allocated; by default those that are
        not all zeros, in order
    """
    count = (len(data) + block_size - 1) // block_size
    if blocks is None:
        blocks = [
            number
            for number in range(count)
            if any(data[number * block_size : (number + 1) * block_size])
        ]
    stream = io.BytesIO()
    write_dynamic_vhd(
        stream,
        len(data),
        blocks,
        lambda offset, length: data[offset : offset + length],
        block_size=block_size,
        **options,
    )
    return stream.getvalue()


def vhd_from_raw(raw_path: str, vhd_path: str, **options: typing.Any) -> None:
    """Make a dynamic VHD file of a RAW file, block by block."""
    with open(raw_path, 'rb') as raw, open(vhd_path, 'wb') as stream:
        size = os.fstat(raw.fileno()).st_size

        def read(offset: int, length: int) -> bytes:
            return os.pread(raw.fileno(), length, offset)

        blocks = [
            number
            for number in range((size + BLOCK_SIZE - 1) // BLOCK_SIZE)
            if read(number * BLOCK_SIZE, BLOCK_SIZE).strip(b'\0')
        ]
        write_dynamic_vhd(stream, size, blocks, read, **options)


# OVF


class Disk(typing.NamedTuple):
    """A disk as an OVF describes it.

    :ivar device: its number on the guest's bus
    """

    identity: str
    href: str
    capacity: int
    device: int = 0


def _element(tag: str, text: object) -> str:
    return f'<{tag}>{saxutils.escape(str(text))}</{tag}>'


def _item(**fields: object) -> str:
    body = ''.join(
        _element(f'rasd:{name}', value)
        for name, value in fields.items()
        if value is not None
    )
    return f'<Item>{body}</Item>'


def xencenter_ovf(
    disks: Sequence[Disk],
    *,
    name: str = 'guest',
    vcpus: int = 2,
    memory: int = 1024,
    macs: Sequence[str] = ('00:16:3e:11:22:33',),
    settings: Mapping[str, str] | None = None,
    refer_by: str = 'HostResource',
) -> bytes:
    """A descriptor as XenCenter's export writes it.

    :param memory: MiB
    :param settings: ``HVM_boot_policy`` and the like
    :param refer_by: the element that names a drive's disk
    """
    files = ''.join(
        f'<File ovf:id="{disk.identity}" ovf:href='
        f'{saxutils.quoteattr(disk.href)} ovf:size="0"/>'
        for disk in disks
    )
    declared = ''.join(
        f'<Disk ovf:capacity="{disk.capacity}" ovf:diskId='
        f'"{disk.identity}" ovf:fileRef="{disk.identity}" '
        f'ovf:format="{VHD_FORMAT}"/>'
        for disk in disks
    )
    items = [
        _item(
            AllocationUnits='count',
            Caption='Virtual CPU',
            InstanceID='c1',
            ResourceType=3,
            VirtualQuantity=vcpus,
        ),
        _item(
            AllocationUnits='byte * 2^20',
            Caption='Memory Size',
            InstanceID='m1',
            ResourceType=4,
            VirtualQuantity=memory,
        ),
    ]
    items.extend(
        _item(
            Address=mac,
            Caption='Ethernet Port',
            Connection='Pool-wide network 0',
            InstanceID=f'n{number}',
            ResourceType=10,
        )
        for number, mac in enumerate(macs)
    )
    for disk in disks:
        references = {
            'HostResource': {
                'HostResource': f'ovf:/disk/{disk.identity}',
                'InstanceID': f'i{disk.device}',
            },
            'InstanceID': {'InstanceID': disk.identity},
            'Connection': {
                'InstanceID': f'i{disk.device}',
                'Connection': disk.identity,
            },
        }[refer_by]
        items.append(
            _item(
                AddressOnParent=disk.device,
                Caption='Hard Disk Image',
                ElementName=f'disk {disk.device}',
                ResourceType=19,
                **references,
            )
        )
    others = ''.join(
        '<xenovf:VirtualSystemOtherConfigurationData ovf:required="false" '
        f'Name="{key}">{_element("xenovf:Value", value)}'
        '</xenovf:VirtualSystemOtherConfigurationData>'
        for key, value in (settings or {}).items()
    )
    text = (
        '<?xml version="1.0" encoding="utf-8"?>'
        '<Envelope xmlns="http://schemas.dmtf.org/ovf/envelope/1" '
        'xmlns:ovf="http://schemas.dmtf.org/ovf/envelope/1" '
        'xmlns:rasd="http://schemas.dmtf.org/wbem/wscim/1/cim-schema/2/'
        'CIM_ResourceAllocationSettingData" '
        'xmlns:xenovf="http://schemas.citrix.com/ovf/envelope/1">'
        f'<References>{files}</References>'
        f'<DiskSection><Info/>{declared}</DiskSection>'
        '<VirtualSystem ovf:id="vs1"><Info/>'
        f'{_element("Name", name)}'
        '<OperatingSystemSection ovf:id="94"/>'
        f'<VirtualHardwareSection>{"".join(items)}{others}'
        '</VirtualHardwareSection></VirtualSystem></Envelope>'
    )
    return text.encode()


def xen_orchestra_ovf(
    disks: Sequence[Disk],
    *,
    name: str = 'guest',
    vcpus: int = 2,
    memory: int = 1024,
    macs: Sequence[str] = ('00:16:3e:11:22:33',),
    firmware: str | None = None,
) -> bytes:
    """A descriptor as Xen Orchestra's OVA export writes it.

    :param memory: MiB
    :param firmware: ``uefi`` or ``bios``
    """
    files = ''.join(
        f'<File ovf:href={saxutils.quoteattr(disk.href)} '
        f'ovf:id="file{number}"/>'
        for number, disk in enumerate(disks, 1)
    )
    declared = ''.join(
        f'<Disk ovf:capacity="{disk.capacity // MIB}" '
        'ovf:capacityAllocationUnits="byte * 2^20" '
        f'ovf:diskId="{disk.identity}" ovf:fileRef="file{number}" '
        'ovf:format="http://www.vmware.com/interfaces/specifications/'
        'vmdk.html#streamOptimized"/>'
        for number, disk in enumerate(disks, 1)
    )
    items = [
        _item(InstanceID=1, ResourceType=3, VirtualQuantity=vcpus),
        _item(
            AllocationUnits='byte * 2^20',
            InstanceID=2,
            ResourceType=4,
            VirtualQuantity=memory,
        ),
        _item(Address=0, InstanceID=3, ResourceType=6),
    ]
    items.extend(
        _item(
            AddressOnParent=disk.device,
            HostResource=f'ovf:/disk/{disk.identity}',
            InstanceID=10 + disk.device,
            Parent=3,
            ResourceType=17,
        )
        for disk in disks
    )
    items.extend(
        _item(Address=mac, InstanceID=100 + number, ResourceType=10)
        for number, mac in enumerate(macs)
    )
    config = (
        f'<vmw:Config vmw:key="firmware" vmw:value="{firmware}"/>'
        if firmware
        else ''
    )
    text = (
        '<?xml version="1.0" encoding="UTF-8"?>'
        '<ovf:Envelope xmlns="http://schemas.dmtf.org/ovf/envelope/2" '
        'xmlns:ovf="http://schemas.dmtf.org/ovf/envelope/2" '
        'xmlns:rasd="http://schemas.dmtf.org/wbem/wscim/1/cim-schema/2/'
        'CIM_ResourceAllocationSettingData" '
        'xmlns:vmw="http://www.vmware.com/schema/ovf">'
        f'<References>{files}</References>'
        f'<DiskSection>{declared}</DiskSection>'
        f'<VirtualSystem ovf:id={saxutils.quoteattr(name)}>'
        f'<VirtualHardwareSection>{"".join(items)}{config}'
        '</VirtualHardwareSection></VirtualSystem></ovf:Envelope>'
    )
    return text.encode()


# OVA


def write_ova(
    path: str,
    members: Sequence[tuple[str, bytes | str]],
    *,
    manifest: str | None = None,
    tar_format: int = tarfile.USTAR_FORMAT,
) -> None:
    """Write a tar.

    :param members: names with their contents, as bytes or as the path of
        a file
    :param manifest: the digest algorithm of a manifest to put second
    """
    listed = list(members)
    if manifest:
        lines = ''.join(
            f'{manifest.upper()}({name})= {_digest(content, manifest)}\n'
            for name, content in listed
        )
        stem = listed[0][0].rpartition('.')[0]
        listed.insert(1, (f'{stem}.mf', lines.encode()))
    with tarfile.open(path, 'w', format=tar_format) as archive:
        for name, content in listed:
            member = tarfile.TarInfo(name)
            if isinstance(content, bytes):
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
            else:
                member.size = os.stat(content).st_size
                with open(content, 'rb') as stream:
                    archive.addfile(member, stream)


def _digest(content: bytes | str, algorithm: str) -> str:
    if isinstance(content, bytes):
        return hashlib.new(algorithm, content).hexdigest()
    with open(content, 'rb') as stream:
        return hashlib.file_digest(stream, algorithm).hexdigest()
