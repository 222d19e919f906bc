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

"""The properties that make Nova give a guest the hardware it expects.

Sources: Glance's metadata definitions and Nova's ``ImageMetaProps``.
``hypervisor_type``, ``vm_mode`` and the video model stay unset: they
narrow where the guest may run and decide nothing about its boot.
"""

from __future__ import annotations

from collections.abc import Mapping
import dataclasses
import typing

from xenimport import exceptions
from xenimport.guest import guest as guest_room
from xenimport import model

if typing.TYPE_CHECKING:
    from xenimport.workflow import context

#: The type GUIDs of an EFI system partition and of GRUB's BIOS core.
_EFI_SYSTEM = 'C12A7328-F81F-11D2-BA4B-00A0C93EC93B'
_BIOS_BOOT = '21686148-6449-6E6F-744E-656564454649'
#: Where the guest agent stands, by family.
_AGENTS = {
    'linux': ('/usr/bin/qemu-ga', '/usr/sbin/qemu-ga'),
    'windows': (
        '/Program Files/Qemu-ga/qemu-ga.exe',
        '/Program Files/qemu-ga/qemu-ga.exe',
    ),
}
#: Nova's name of an architecture where libguestfs has another.
_ARCHITECTURES = {
    'i386': 'i686',
    'arm': 'armv7l',
    'powerpc': 'ppc',
    'powerpc64': 'ppc64',
    'powerpc64le': 'ppc64le',
}
#: Distributions whose releases libosinfo counts by the major number.
_BY_MAJOR = frozenset(('debian', 'fedora'))


def guest_facts(guest: guest_room.Guest) -> dict[str, typing.Any]:
    """What the guest itself tells about the hardware it wants.

    ``qemu_guest_agent``: whether the agent is installed. ``firmware``:
    the one that its first disk can only be booted by, if that is clear.
    """
    facts: dict[str, typing.Any] = {}
    system = guest.operating_system
    if system is not None:
        # Windows' volumes are not mounted on the appliance's root.
        place = guest.windows or guest
        facts['qemu_guest_agent'] = any(
            place.exists(path) for path in _AGENTS.get(system.family, ())
        )
    if guest.drives and guest.partition_table(guest.drives[0]) == 'gpt':
        types = {
            partition.type.upper()
            for partition in guest.partitions(guest.drives[0])
        }
        if _EFI_SYSTEM in types and _BIOS_BOOT not in types:
            facts['firmware'] = model.Firmware.UEFI
    return facts


def image_properties(
    virtual_system: model.VirtualSystem,
    operating_system: model.OperatingSystem | None,
    disk_index: int,
    disk_bus: str,
    facts: Mapping[str, typing.Any],
    hardware: Mapping[str, str] | None = None,
) -> dict[str, str]:
    """The properties of one disk's image.

    A data disk gets the bus alone: with the system disk's ``os_*`` it
    would be taken for a system itself.

    :param disk_index: 0 is the disk that the firmware boots
    :param disk_bus: ``auto`` (that is virtio), ``virtio``, ``scsi``,
        ``sata`` or ``ide``
    :param facts: as :func:`guest_facts` gives them
    :param hardware: as the remediations say the guest needs it
    :raises xenimport.exceptions.ConfigurationError: if no machine has
        both the bus and the firmware
    """
    needs = hardware or {}
    bus = needs.get('disk_bus', 'virtio') if disk_bus == 'auto' else disk_bus
    properties = {'hw_disk_bus': bus}
    if bus == 'scsi':
        properties['hw_scsi_model'] = 'virtio-scsi'
    if disk_index:
        return properties
    firmware = (
        model.Firmware(needs['firmware'])
        if 'firmware' in needs
        else virtual_system.firmware
        or facts.get('firmware')
        or model.Firmware.BIOS
    )
    properties |= {
        'hw_vif_model': needs.get('vif_model', 'virtio'),
        'hw_firmware_type': firmware.value,
        'hw_rng_model': 'virtio',
    }
    machine = _machine_type(bus, firmware)
    if machine:
        properties['hw_machine_type'] = machine
    if facts.get('qemu_guest_agent'):
        properties['hw_qemu_guest_agent'] = 'yes'
    if operating_system is not None:
        properties |= _system_properties(operating_system)
        properties |= {
            key: needs[key]
            for key in ('os_distro', 'os_version')
            if key in needs
        }
    return properties


def _machine_type(bus: str, firmware: model.Firmware) -> str | None:
    """The machine that has the bus and runs the firmware.

    None leaves the cloud its default, where both of QEMU's will do.
    """
    if bus == 'ide':
        if firmware is model.Firmware.UEFI:
            raise exceptions.ConfigurationError(
                'properties.ide-uefi',
                'A guest that boots with UEFI cannot have an IDE disk',
                where='--disk-bus ide',
                expected='virtio, scsi or sata: UEFI needs the machine '
                'q35, which has no IDE',
                found='ide',
                fix='leave out --disk-bus, or use --disk-bus sata',
            )
        return 'pc'
    if bus == 'sata' or firmware is model.Firmware.UEFI:
        return 'q35'
    return None


def _system_properties(
    system: model.OperatingSystem,
) -> dict[str, str]:
    found = {
        'os_type': system.family,
        'os_distro': system.distribution,
        'os_version': _version(system),
        'architecture': _ARCHITECTURES.get(
            system.architecture, system.architecture
        ),
    }
    return {
        key: value
        for key, value in found.items()
        if value and value != 'unknown'
    }


def _version(system: model.OperatingSystem) -> str:
    """The version in libosinfo's form; empty for a rolling release."""
    major, minor = system.major, system.minor
    if system.distribution == 'ubuntu':
        return f'{major}.{minor:02d}'
    if system.family == 'windows':
        return f'{major}.{minor}'
    if not major:
        return ''
    if system.distribution in _BY_MAJOR or not minor:
        return str(major)
    return f'{major}.{minor}'


def min_disk(size: int) -> int:
    """The GiB that hold ``size`` bytes."""
    return -(-size // (1 << 30))


def min_ram(memory: int | None) -> int:
    """The MiB that hold ``memory`` bytes, 0 if that is not known."""
    return -(-(memory or 0) // (1 << 20))


def complete(
    run: context.Run, opened: context.OpenDisk, request: model.ImageRequest
) -> model.ImageRequest:
    """The request with all that is known of the guest by now.

    What the user asked for wins over what was found.
    """
    index = opened.disk.index
    found = image_properties(
        run.system,
        run.operating_system,
        index,
        run.settings.disk_bus,
        run.guest_facts,
        run.hardware,
    )
    asked = run.settings
    disk = min_disk(opened.virtual_size)
    ram = 0 if index else min_ram(run.system.memory)
    return dataclasses.replace(
        request,
        properties=found | dict(request.properties),
        min_disk=disk if asked.min_disk is None else asked.min_disk,
        min_ram=ram if asked.min_ram is None else asked.min_ram,
    )
