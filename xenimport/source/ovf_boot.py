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


"""Which disk of an OVF descriptor boots, as products write it down."""

from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Sequence
import re
from xml.etree import ElementTree  # nosec: types only

from xenimport.source import ovf_hardware
from xenimport.source import ovf_xml


def boot_disk(
    system: ElementTree.Element, disks: Sequence[ovf_hardware.Item]
) -> ovf_hardware.Item | None:
    """The disk that the descriptor says is booted, None if it does not."""
    by_instance = {
        disk.instance: disk for disk in disks if disk.instance is not None
    }
    for instance in _boot_instances(system):
        if instance in by_instance:
            return by_instance[instance]
    for section in ovf_xml.descendants(system, 'BootDeviceSection'):
        for element in ovf_xml.descendants(section, 'StructuredBootString'):
            # CIM_BootSourceSetting: the disks are counted from 1.
            match = re.fullmatch(
                r'\s*\w+:Hard-Disk:([0-9]{1,9})\s*', element.text or ''
            )
            if match and 0 < int(match[1]) <= len(disks):
                return disks[int(match[1]) - 1]
    bootable = [disk for disk in disks if disk.bootable]
    return bootable[0] if len(bootable) == 1 else None


def _boot_instances(system: ElementTree.Element) -> Iterator[str]:
    """Ids of hardware items in the order in which they are booted."""
    for section in ovf_xml.descendants(system, 'BootOrderSection'):
        yield from (ovf_xml.attribute(section, 'instanceId') or '').split()
    for section in ovf_xml.descendants(system, 'BootDeviceSection'):
        for element in ovf_xml.descendants(section, 'InstanceID'):
            yield (element.text or '').strip()


def virtualbox_order(system: ElementTree.Element) -> dict[str, int]:
    """The rank of each hard disk by its uuid, of VirtualBox's extension.

    Its BIOS, too, looks at IDE before the other controllers.
    """
    places: list[tuple[bool, int, int, int, str]] = []
    controllers = ovf_xml.descendants(system, 'StorageController')
    for number, controller in enumerate(controllers):
        kind = ovf_xml.attribute(controller, 'type') or ''
        for device in ovf_xml.children(controller, 'AttachedDevice'):
            if ovf_xml.attribute(device, 'type') != 'HardDisk':
                continue
            for image in ovf_xml.children(device, 'Image'):
                places.append(
                    (
                        not kind.startswith(('PIIX', 'ICH')),
                        number,
                        ovf_xml.integer(ovf_xml.attribute(device, 'port'))
                        or 0,
                        ovf_xml.integer(ovf_xml.attribute(device, 'device'))
                        or 0,
                        plain_uuid(ovf_xml.attribute(image, 'uuid')),
                    )
                )
    return {place[-1]: rank for rank, place in enumerate(sorted(places))}


def plain_uuid(text: str | None) -> str:
    """A uuid without the braces that VirtualBox may put around it."""
    return (text or '').strip('{}').lower()
