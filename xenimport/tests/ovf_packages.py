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


"""Writes OVF packages for tests, as VMware and VirtualBox write them.

Written from the OVF specification (DMTF DSP0243) and from what those
products are known to put into their descriptors. It shares nothing with
the product.
"""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Mapping
from collections.abc import Sequence
import hashlib
import io
import os
import tarfile
import typing
from xml.sax import saxutils

IDE = 5
SCSI = 6
OTHER_STORAGE = 20

STREAM_OPTIMIZED = (
    'http://www.vmware.com/interfaces/specifications/vmdk.html#streamOptimized'
)
ISO = 'http://www.ecma-international.org/publications/standards/Ecma-119.htm'
_RASD = (
    'http://schemas.dmtf.org/wbem/wscim/1/cim-schema/2/'
    'CIM_ResourceAllocationSettingData'
)
_VSSD = (
    'http://schemas.dmtf.org/wbem/wscim/1/cim-schema/2/'
    'CIM_VirtualSystemSettingData'
)


class File(typing.NamedTuple):
    """A File element; ``more`` are attributes as they stand in the text."""

    identity: str
    href: str
    more: str = ''


class Disk(typing.NamedTuple):
    """A Disk element."""

    identity: str
    file: str | None
    capacity: str = '8192'
    unit: str | None = None
    more: str = f'ovf:format="{STREAM_OPTIMIZED}"'


class Controller(typing.NamedTuple):
    """A storage controller; ``kind`` is its CIM resource type."""

    instance: int
    kind: int
    address: int = 0


class Drive(typing.NamedTuple):
    """A drive. ``resource`` is, for example, ``ovf:/disk/vmdisk1``."""

    instance: int
    parent: int | None
    address: int | None
    resource: str | None
    kind: int = 17
    tag: str = 'Item'
    attributes: str = ''


def item(tag: str = 'Item', attributes: str = '', **fields: object) -> str:
    """A hardware item, its elements in the order of the alphabet."""
    body = ''.join(
        f'<rasd:{name}>{saxutils.escape(str(value))}</rasd:{name}>'
        for name, value in sorted(fields.items())
        if value is not None
    )
    return f'<{tag} {attributes}>{body}</{tag}>'


def references(files: Iterable[File]) -> str:
    """The References element."""
    return (
        '<References>'
        + ''.join(
            f'<File ovf:id="{file.identity}" '
            f'ovf:href={saxutils.quoteattr(file.href)} {file.more}/>'
            for file in files
        )
        + '</References>'
    )


def disk_section(disks: Iterable[Disk]) -> str:
    """The DiskSection element."""
    found = ['<DiskSection><Info>Virtual disks</Info>']
    for disk in disks:
        unit = (
            f'ovf:capacityAllocationUnits="{disk.unit}" ' if disk.unit else ''
        )
        file = '' if disk.file is None else f'ovf:fileRef="{disk.file}" '
        found.append(
            f'<Disk ovf:diskId="{disk.identity}" '
            f'ovf:capacity="{disk.capacity}" {unit}{file}{disk.more}/>'
        )
    return ''.join((*found, '</DiskSection>'))


def hardware(
    controllers: Iterable[Controller] = (),
    drives: Iterable[Drive] = (),
    *,
    vcpus: int = 2,
    memory: str = '1024',
    memory_unit: str = 'byte * 2^20',
    system_type: str = 'vmx-13',
    more: str = '',
) -> str:
    """A VirtualHardwareSection."""
    items = [
        item(
            AllocationUnits='hertz * 10^6',
            InstanceID=1,
            ResourceType=3,
            VirtualQuantity=vcpus,
        ),
        item(
            AllocationUnits=memory_unit,
            InstanceID=2,
            ResourceType=4,
            VirtualQuantity=memory,
        ),
    ]
    items += [
        item(Address=it.address, InstanceID=it.instance, ResourceType=it.kind)
        for it in controllers
    ]
    items += [
        item(
            drive.tag,
            drive.attributes,
            AddressOnParent=drive.address,
            ElementName=f'Hard disk {drive.instance}',
            HostResource=drive.resource,
            InstanceID=drive.instance,
            Parent=drive.parent,
            ResourceType=drive.kind,
        )
        for drive in drives
    ]
    return (
        '<VirtualHardwareSection><Info/><System>'
        f'<vssd:VirtualSystemType>{system_type}</vssd:VirtualSystemType>'
        f'</System>{"".join(items)}{more}</VirtualHardwareSection>'
    )


def system(identity: str, *sections: str, name: str | None = None) -> str:
    """A VirtualSystem element."""
    named = '' if name is None else f'<Name>{saxutils.escape(name)}</Name>'
    return (
        f'<VirtualSystem ovf:id={saxutils.quoteattr(identity)}><Info/>'
        f'{named}{"".join(sections)}</VirtualSystem>'
    )


def envelope(*sections: str, comment: str = '', version: int = 1) -> bytes:
    """A whole descriptor."""
    return (
        '<?xml version="1.0" encoding="UTF-8"?>\n'
        f'{f"<!--{comment}-->" if comment else ""}'
        f'<Envelope xmlns="http://schemas.dmtf.org/ovf/envelope/{version}" '
        f'xmlns:ovf="http://schemas.dmtf.org/ovf/envelope/{version}" '
        f'xmlns:rasd="{_RASD}" xmlns:vssd="{_VSSD}" '
        'xmlns:vmw="http://www.vmware.com/schema/ovf">'
        f'{"".join(sections)}</Envelope>'
    ).encode()


def vmware_ovf(
    files: Sequence[File],
    disks: Sequence[Disk],
    controllers: Sequence[Controller],
    drives: Sequence[Drive],
    *,
    name: str = 'guest',
    firmware: str | None = None,
    boot: str | None = None,
) -> bytes:
    """A descriptor as VMware's tools write it.

    :param boot: instance ids in the order in which they are booted
    """
    more = '<vmw:Config ovf:required="false" vmw:key="tools.x" vmw:value="1"/>'
    if firmware:
        more += (
            '<vmw:Config ovf:required="false" vmw:key="firmware" '
            f'vmw:value="{firmware}"/>'
        )
    order = (
        f'<vmw:BootOrderSection vmw:instanceId="{boot}" vmw:type="disk">'
        '<Info>Virtual hardware device boot order</Info>'
        '</vmw:BootOrderSection>'
        if boot
        else ''
    )
    return envelope(
        references(files),
        disk_section(disks),
        system(
            name, hardware(controllers, drives, more=more), order, name=name
        ),
        comment='Generated by VMware ovftool 4.4.0, UTC time: 2026',
    )


def virtualbox_ovf(
    disks: Sequence[tuple[str, str, str]],
    storage: Sequence[tuple[str, Sequence[tuple[int, int, str]]]],
    *,
    name: str = 'guest',
    firmware: str | None = None,
    mac: str = '080027AABBCC',
) -> bytes:
    """A descriptor as VirtualBox writes it.

    :param disks: id, href and uuid of each, in the order of the text
    :param storage: type of each controller with the port, the device and
        the uuid of each of its disks
    """
    controllers = ''.join(
        f'<StorageController name="{kind}" type="{kind}" PortCount="2" '
        'useHostIOCache="false" Bootable="true">'
        '<AttachedDevice type="DVD" port="9" device="0" passthrough="false"/>'
        + ''.join(
            f'<AttachedDevice type="HardDisk" port="{port}" '
            f'device="{device}"><Image uuid="{{{uuid}}}"/></AttachedDevice>'
            for port, device, uuid in attached
        )
        + '</StorageController>'
        for kind, attached in storage
    )
    firmware_text = f'<Firmware type="{firmware}"/>' if firmware else ''
    machine = (
        '<vbox:Machine ovf:required="false" version="1.16-linux" '
        'xmlns="http://www.virtualbox.org/" '
        'xmlns:vbox="http://www.virtualbox.org/ovf/machine" '
        f'uuid="{{11111111-2222-3333-4444-555555555555}}" name="{name}">'
        '<ovf:Info>Complete VirtualBox machine configuration</ovf:Info>'
        f'<Hardware><CPU count="2"/>{firmware_text}'
        '<Boot><Order position="2" device="HardDisk"/>'
        '<Order position="1" device="DVD"/></Boot><Network>'
        f'<Adapter slot="0" enabled="true" MACAddress="{mac}"/>'
        '<Adapter slot="1" enabled="false" MACAddress="080027000000"/>'
        '</Network></Hardware>'
        f'<StorageControllers>{controllers}</StorageControllers>'
        '</vbox:Machine>'
    )
    nic = item(
        AutomaticAllocation='true',
        Connection='NAT',
        ElementName="Ethernet adapter on 'NAT'",
        InstanceID=50,
        ResourceType=10,
    )
    drives = [
        Drive(10 + number, 3, number, f'/disk/{identity}')
        for number, (identity, _href, _uuid) in enumerate(disks)
    ]
    text = envelope(
        references(
            File(f'file-{identity}', href) for identity, href, _uuid in disks
        ),
        disk_section(
            Disk(
                identity,
                f'file-{identity}',
                more=f'ovf:format="{STREAM_OPTIMIZED}" vbox:uuid="{uuid}"',
            )
            for identity, _href, uuid in disks
        ),
        system(
            name,
            hardware(
                [Controller(3, OTHER_STORAGE)],
                drives,
                system_type='virtualbox-2.2',
                more=nic,
            ),
            machine,
        ),
    )
    return text.replace(
        b' xmlns:vmw=',
        b' xmlns:vbox="http://www.virtualbox.org/ovf/machine" xmlns:vmw=',
    )


def manifest(
    contents: Mapping[str, bytes], algorithm: str = 'sha256'
) -> bytes:
    """A manifest of files by their names."""
    return ''.join(
        f'{algorithm.upper()}({name})= '
        f'{hashlib.new(algorithm, content).hexdigest()}\n'
        for name, content in contents.items()
    ).encode()


def parts(name: str, content: bytes, size: int) -> dict[str, bytes]:
    """A file cut into parts, as ``ovf:chunkSize`` has it."""
    return {
        f'{name}.{number:09d}': content[start : start + size]
        for number, start in enumerate(range(0, len(content), size))
    }


def tar(contents: Mapping[str, bytes]) -> bytes:
    """The files in a tar, in their order."""
    stream = io.BytesIO()
    with tarfile.open(
        fileobj=stream, mode='w', format=tarfile.USTAR_FORMAT
    ) as archive:
        for name, content in contents.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return stream.getvalue()


def write_folder(directory: str, contents: Mapping[str, bytes]) -> None:
    """The files in a directory."""
    for name, content in contents.items():
        path = os.path.join(directory, name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, 'wb') as stream:
            stream.write(content)
