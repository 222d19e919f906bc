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


"""The OVF descriptor: what the virtual system is.

It follows DMTF DSP0243; what XenCenter, Xen Orchestra, VMware and
VirtualBox add to it is understood where it matters for booting.
"""

from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import re
from xml.etree import ElementTree  # nosec: types only

from xenimport import exceptions
from xenimport import model
from xenimport.source import ovf_disks
from xenimport.source import ovf_hardware
from xenimport.source import ovf_xml

#: Marks of what wrote a descriptor; the comment is VMware's.
_CREATORS = (
    (rb'schemas\.citrix\.com/ovf', 'XenCenter'),
    (rb'www\.virtualbox\.org/ovf', 'VirtualBox'),
    (rb'<!--[^>]{0,80}Xen ?Orchestra', 'Xen Orchestra'),
    (rb'<!--[^>]{0,80}VMware', 'VMware'),
)
#: Systems that an error lists.
_LISTED = 20


@dataclasses.dataclass(frozen=True)
class Descriptor:
    """What an OVF descriptor says of one virtual system.

    :ivar memory: bytes
    :ivar files: all that the package consists of, other systems' too
    """

    name: str | None
    disks: tuple[ovf_disks.VirtualDisk, ...]
    vcpus: int | None
    memory: int | None
    firmware: model.Firmware | None
    nics: tuple[model.Nic, ...]
    creator: str | None
    settings: Mapping[str, str]
    findings: tuple[model.Finding, ...]
    files: tuple[ovf_disks.File, ...]


def parse(text: bytes, where: str, system: str | None = None) -> Descriptor:
    """Parse a descriptor.

    :param where: its name in the package, for errors
    :param system: the id or name of the virtual system to take
    :raises xenimport.exceptions.PackageError: if it is damaged, hostile,
        or describes what is not supported, or several systems of which
        none was chosen
    """
    root = ovf_xml.parse(text, where)
    _check_not_encrypted(root, where)
    systems = _systems(root)
    chosen = _chosen(systems, system, where)
    items = ovf_hardware.read(root, chosen)
    reader = ovf_disks.DiskReader(root, where)
    disks = tuple(reader.of_system(chosen, items, alone=len(systems) == 1))
    memory, odd = ovf_hardware.memory(items)
    if odd is not None:
        reader.findings.append(
            ovf_disks.unknown_quantity(where, 'memory', 'the memory', odd)
        )
    machine = next(ovf_xml.children(chosen, 'Machine'), None)
    settings = _settings(chosen, machine)
    return Descriptor(
        name=_name(chosen) or _identity(chosen) or None,
        disks=disks,
        vcpus=ovf_hardware.processors(items),
        memory=memory,
        firmware=_firmware(settings, machine),
        nics=ovf_hardware.nics(items, machine),
        creator=_creator(text),
        settings=settings,
        findings=tuple(reader.findings),
        files=tuple(reader.files.values()),
    )


def _check_not_encrypted(root: ElementTree.Element, where: str) -> None:
    # XenCenter has a SecuritySection, OVF 2 an EncryptionSection.
    for element in ovf_xml.descendants(
        root, 'SecuritySection', 'EncryptionSection', 'EncryptedData'
    ):
        raise exceptions.PackageError(
            'package.encrypted',
            'The package is encrypted',
            where=where,
            expected='files that can be read without a password',
            found=f'the element {ovf_xml.local(element.tag)}',
            fix='export the guest again without encryption',
        )


def _systems(root: ElementTree.Element) -> list[ElementTree.Element]:
    # "Content" is what VMware's pre-standard form called it.
    return list(ovf_xml.descendants(root, 'VirtualSystem')) or list(
        ovf_xml.descendants(root, 'Content')
    )


def _name(system: ElementTree.Element) -> str:
    return ' '.join((ovf_xml.child_text(system, 'Name') or '').split())


def _identity(system: ElementTree.Element) -> str:
    return ovf_xml.attribute(system, 'id') or ''


def _chosen(
    systems: Sequence[ElementTree.Element], wanted: str | None, where: str
) -> ElementTree.Element:
    if wanted is None:
        if len(systems) == 1:
            return systems[0]
        raise exceptions.PackageError(
            'package.virtual-systems',
            'The package does not describe exactly one virtual system',
            where=where,
            expected='one virtual system, or --system with the name of one',
            found=_listed(systems),
            fix='choose one with --system NAME'
            if systems
            else 'export the guest again',
        )
    # An id is unique, a name need not be.
    matching = [system for system in systems if _identity(system) == wanted]
    matching = matching or [
        system for system in systems if _name(system) == wanted
    ]
    if len(matching) == 1:
        return matching[0]
    raise exceptions.PackageError(
        'package.system-unknown',
        'The package has no virtual system of that name'
        if not matching
        else 'The package has several virtual systems of that name',
        where=where,
        expected=f'--system {wanted[:200]}',
        found=_listed(systems),
        fix='choose one of these with --system NAME',
    )


def _listed(systems: Sequence[ElementTree.Element]) -> str:
    shown = []
    for system in systems[:_LISTED]:
        name, identity = _name(system)[:80], _identity(system)[:80]
        shown.append(
            f'{name} (id {identity})'
            if name and identity and name != identity
            else name or identity or 'one without a name'
        )
    if len(systems) > _LISTED:
        shown.append(f'and {len(systems) - _LISTED} more')
    return ', '.join(shown) or 'none'


def _creator(text: bytes) -> str | None:
    # Without its zero bytes, UTF-16 reads like ASCII.
    head = text[:16384].replace(b'\0', b'')
    for mark, name in _CREATORS:
        if re.search(mark, head):
            return name
    return None


def _settings(
    system: ElementTree.Element, machine: ElementTree.Element | None
) -> dict[str, str]:
    """What XenCenter, VMware and VirtualBox say of the system."""
    settings: dict[str, str] = {}
    for element in _in_force(system):
        tag = ovf_xml.local(element.tag)
        if tag in ('Config', 'ExtraConfig'):
            name = ovf_xml.attribute(element, 'key')
            value = ovf_xml.attribute(element, 'value')
        elif 'OtherConfigurationData' in tag:
            name = ovf_xml.attribute(element, 'Name')
            value = ovf_xml.child_text(element, 'Value')
        else:
            continue
        if name:
            settings[name] = value or ''
    if machine is not None:
        settings.update(_virtualbox_settings(machine))
    return settings


def _in_force(system: ElementTree.Element) -> Iterator[ElementTree.Element]:
    """All in a system but its alternative hardware sections."""
    section = ovf_hardware.section(system)
    for child in system:
        if (
            ovf_xml.local(child.tag) != 'VirtualHardwareSection'
            or child is section
        ):
            yield from child.iter()


def _virtualbox_settings(
    machine: ElementTree.Element,
) -> Iterator[tuple[str, str]]:
    for hardware in ovf_xml.children(machine, 'Hardware'):
        for firmware in ovf_xml.children(hardware, 'Firmware'):
            yield 'firmware', ovf_xml.attribute(firmware, 'type') or ''
        for boot in ovf_xml.children(hardware, 'Boot'):
            yield (
                'boot_order',
                ','.join(
                    ovf_xml.attribute(order, 'device') or ''
                    for order in sorted(
                        ovf_xml.children(boot, 'Order'), key=_position
                    )
                ),
            )


def _position(order: ElementTree.Element) -> int:
    return ovf_xml.integer(ovf_xml.attribute(order, 'position')) or 0


def _firmware(
    settings: Mapping[str, str], machine: ElementTree.Element | None
) -> model.Firmware | None:
    stated = [settings.get('firmware')]
    for name in ('HVM_boot_params', 'platform'):
        stated.append(ovf_xml.pairs(settings.get(name, '')).get('firmware'))
    for value in stated:
        # VirtualBox also has EFI32, EFI64 and EFIDUAL.
        if value and value.lower().startswith(('uefi', 'efi')):
            return model.Firmware.UEFI
        if value and value.lower() == 'bios':
            return model.Firmware.BIOS
    # Xen's HVM guests and VirtualBox's have a BIOS unless told otherwise.
    if settings.get('HVM_boot_policy') or machine is not None:
        return model.Firmware.BIOS
    return None
