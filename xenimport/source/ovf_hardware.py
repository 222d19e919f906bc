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


"""The hardware items of an OVF descriptor.

``Item`` holds a CIM_ResourceAllocationSettingData; OVF 2 has
``StorageItem`` and ``EthernetPortItem`` beside it, with the same element
names where they matter here (DMTF DSP0243, clauses 8 and 9).
"""

from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Sequence
import re
from xml.etree import ElementTree  # nosec: types only

from xenimport import model
from xenimport.source import ovf_xml

# CIM_ResourceAllocationSettingData.ResourceType
PROCESSOR = '3'
MEMORY = '4'
_ETHERNET = '10'
# Of an EthernetPortItem: switch port and connection.
_PORTS = frozenset((_ETHERNET, '30', '33'))
#: 17 is a disk drive. XenCenter writes its disks as 19, storage extent.
#: A StorageItem may be a logical disk or a storage volume.
DISKS = frozenset(('17', '19', '31', '32'))
#: Floppy, CD and DVD drives.
REMOVABLE = frozenset(('14', '15', '16'))

_TAGS = ('Item', 'StorageItem', 'EthernetPortItem')
# A BIOS looks at IDE before SCSI, and at other controllers last.
_CONTROLLERS = {'5': 0, '6': 1}


class Item:
    """One hardware item.

    :ivar position: its place in the document
    """

    def __init__(self, element: ElementTree.Element, position: int) -> None:
        self.element = element
        self.position = position
        self.tag = ovf_xml.local(element.tag)
        self.type = ovf_xml.child_text(element, 'ResourceType') or ''
        self.instance = ovf_xml.child_text(element, 'InstanceID')
        self.parent = ovf_xml.child_text(element, 'Parent')
        self.connection = ovf_xml.child_text(element, 'Connection')
        self.name = (
            ovf_xml.child_text(element, 'ElementName')
            or ovf_xml.child_text(element, 'Caption')
            or ''
        )
        self.address = ovf_xml.integer(self.text('AddressOnParent'))
        # XenCenter's "device=0,bootable=true,mode=RW,...".
        stated = ovf_xml.pairs(self.connection or '')
        if self.address is None:
            self.address = ovf_xml.integer(stated.get('device'))
        self.bootable = stated.get('bootable', '').lower() == 'true'

    def text(self, name: str) -> str | None:
        """The text of one of its elements."""
        return ovf_xml.child_text(self.element, name)


def elements(scope: ElementTree.Element) -> Iterator[ElementTree.Element]:
    """Every hardware item in a part of the descriptor."""
    return ovf_xml.descendants(scope, *_TAGS)


def read(root: ElementTree.Element, system: ElementTree.Element) -> list[Item]:
    """The items of a system that are in force.

    Of several hardware sections, which are alternatives, one is taken:
    the first that is meant for Xen, else the first. Of several deployment
    options it is the default one.
    """
    chosen: dict[int, Item] = {}
    general: dict[tuple[str | None, str], int] = {}
    default = _default_configuration(root)
    for position, element in enumerate(elements(section(system))):
        # Ranges of what an item may be, not items of their own.
        if ovf_xml.attribute(element, 'bound'):
            continue
        item = Item(element, position)
        identity = (item.instance, item.type)
        configurations = ovf_xml.attribute(element, 'configuration')
        if configurations is None:
            chosen[position] = item
            general.setdefault(identity, position)
        elif default in configurations.split():
            # It stands for the general item with the same id.
            chosen[general.get(identity, position)] = item
    return list(chosen.values())


def section(system: ElementTree.Element) -> ElementTree.Element:
    """The hardware section that is in force; the system if it has none."""
    sections = list(ovf_xml.children(system, 'VirtualHardwareSection'))
    for candidate in sections:
        for described in ovf_xml.children(candidate, 'System'):
            kind = ovf_xml.child_text(described, 'VirtualSystemType') or ''
            if re.search('xen|hvm', kind, re.IGNORECASE):
                return candidate
    # VMware's pre-standard form has sections of another name.
    return sections[0] if sections else system


def _default_configuration(root: ElementTree.Element) -> str | None:
    first = None
    for options in ovf_xml.children(root, 'DeploymentOptionSection'):
        for element in ovf_xml.children(options, 'Configuration'):
            identity = ovf_xml.attribute(element, 'id')
            if ovf_xml.attribute(element, 'default') in ('true', '1'):
                return identity
            first = first or identity
    return first


def processors(items: Sequence[Item]) -> int | None:
    """How many virtual CPUs; some writers split them into several."""
    total = 0
    for item in items:
        if item.type == PROCESSOR:
            total += ovf_xml.integer(item.text('VirtualQuantity')) or 0
    return total or None


def memory(items: Sequence[Item]) -> tuple[int | None, str | None]:
    """The memory in bytes, and what was not understood of it."""
    total = 0
    for item in items:
        quantity = item.text('VirtualQuantity')
        if item.type != MEMORY or quantity is None:
            continue
        unit = item.text('AllocationUnits')
        size = ovf_xml.in_bytes(quantity, unit, 1 << 20)
        if size is None:
            return None, f'{quantity[:40]} {unit or ""}'.strip()[:80]
        total += size
    return total or None, None


def nics(
    items: Sequence[Item], machine: ElementTree.Element | None
) -> tuple[model.Nic, ...]:
    """The network cards.

    :param machine: VirtualBox's own description, which alone has the
        hardware addresses
    """
    found = [
        model.Nic(
            name=item.name or item.instance or '',
            mac=_mac(item.text('Address')),
            network=item.connection,
        )
        for item in items
        if item.type == _ETHERNET
        or (item.tag == 'EthernetPortItem' and item.type in _PORTS)
    ]
    addresses = _virtualbox_addresses(machine)
    if len(addresses) == len(found) and not any(nic.mac for nic in found):
        found = [
            model.Nic(nic.name, mac, nic.network)
            for nic, mac in zip(found, addresses, strict=True)
        ]
    return tuple(found)


def _virtualbox_addresses(
    machine: ElementTree.Element | None,
) -> list[str | None]:
    if machine is None:
        return []
    return [
        _mac(ovf_xml.attribute(adapter, 'MACAddress'))
        for adapter in ovf_xml.descendants(machine, 'Adapter')
        if ovf_xml.attribute(adapter, 'enabled') == 'true'
        and ovf_xml.attribute(adapter, 'MACAddress')
    ]


def _mac(text: str | None) -> str | None:
    digits = re.sub('[:.-]', '', text or '').lower()
    if not re.fullmatch('[0-9a-f]{12}', digits):
        return None
    return ':'.join(re.findall('..', digits))


def in_attachment_order(items: Sequence[Item]) -> list[Item]:
    """The disk items: by controller, then by address on it."""
    controllers: dict[str, Item] = {}
    for item in items:
        if item.instance is not None:
            controllers.setdefault(item.instance, item)
    groups: dict[tuple[int, int, int], list[Item]] = {}
    for item in items:
        if item.type in DISKS:
            controller = controllers.get(item.parent or '')
            groups.setdefault(_rank(controller), []).append(item)
    ordered: list[Item] = []
    for rank in sorted(groups):
        group = groups[rank]
        # Without all addresses only the order of the text is left.
        if all(item.address is not None for item in group):
            group.sort(key=lambda item: item.address or 0)
        ordered += group
    return ordered


def _rank(controller: Item | None) -> tuple[int, int, int]:
    if controller is None:
        return -1, 0, 0
    address = ovf_xml.integer(controller.text('Address'))
    return (
        _CONTROLLERS.get(controller.type, len(_CONTROLLERS)),
        controller.position if address is None else address,
        controller.position,
    )
