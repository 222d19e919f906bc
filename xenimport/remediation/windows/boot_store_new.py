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


"""A new boot configuration, with what bcdboot puts into one.

The objects and their elements are those of genuine stores that Windows'
setup made. Measured: a genuine boot manager, for BIOS and for UEFI each,
accepts a store that was made from nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Mapping
import dataclasses

from xenimport.guest import bcd
from xenimport.guest import bcd_device
from xenimport.guest import registry
from xenimport import model

#: Seconds that the menu is shown for, where there is more than one entry.
_TIMEOUT = 30
_OPT_IN, _OPT_OUT = 0, 1
_SERIAL, _LOCAL = 0, 4
_BAUD_RATE = 115200
_MENU_POLICY_STANDARD = 1

#: One object: id, type, elements.
NewObject = tuple[str, int, Mapping[int, registry.Value]]


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a new store is about.

    :ivar version: of Windows, to be compared: (6, 1) is Windows 7
    :ivar server: whether it is a server
    :ivar system: the partition with the boot manager
    :ivar windows: the partition with Windows
    :ivar description: in the boot menu
    :ivar loader: id of the new loader object
    :ivar resume: id of the new resume object
    """

    firmware: model.Firmware
    version: tuple[int, int]
    server: bool
    system: bcd_device.Partition
    windows: bcd_device.Partition
    description: str
    locale: str
    loader: str
    resume: str


def build(hive: registry.Hive, plan: Plan) -> list[registry.Edit]:
    """Fill an empty hive.

    :returns: what was staged
    """
    edits = hive.set_value(
        'Description', registry.Value.sz('KeyName', 'BCD00000000')
    )
    edits += hive.set_value('Description', registry.Value.dword('System', 1))
    if plan.version >= (10, 0):
        edits += hive.set_value(
            'Description', registry.Value.dword('TreatAsSystem', 1)
        )
    for identifier, kind, elements in objects(plan):
        edits += bcd.add_object(hive, identifier, kind, elements)
    return edits


def objects(plan: Plan) -> Iterator[NewObject]:
    """Every object of the new store."""
    yield bcd.BOOTMGR, bcd.BOOTMGR_TYPE, _manager(plan)
    yield plan.loader, bcd.OS_LOADER_TYPE, _loader(plan)
    yield plan.resume, bcd.RESUME_TYPE, _resume(plan)
    yield bcd.MEMDIAG, bcd.MEMDIAG_TYPE, _memory_test(plan)
    yield from _settings(plan)


def _application(
    plan: Plan,
    partition: bcd_device.Partition,
    path: str,
    description: str,
    inherited: str,
) -> dict[int, registry.Value]:
    device = bcd_device.partition_device(partition)
    elements = {
        bcd.APPLICATION_DEVICE: bcd.device_value(device),
        bcd.DESCRIPTION: bcd.text_value(description),
        bcd.PREFERRED_LOCALE: bcd.text_value(plan.locale),
        bcd.INHERITED_OBJECTS: bcd.objects_value([inherited]),
    }
    if path:
        elements[bcd.APPLICATION_PATH] = bcd.text_value(path)
    return elements


def _manager(plan: Plan) -> dict[int, registry.Value]:
    # A store for BIOS does not name bootmgr: its boot sector finds it.
    uefi = plan.firmware is model.Firmware.UEFI
    return _application(
        plan,
        plan.system,
        '\\EFI\\Microsoft\\Boot\\bootmgfw.efi' if uefi else '',
        'Windows Boot Manager',
        bcd.GLOBAL_SETTINGS,
    ) | {
        bcd.DEFAULT_OBJECT: bcd.text_value(plan.loader),
        bcd.BOOTMGR_RESUME_OBJECT: bcd.text_value(plan.resume),
        bcd.DISPLAY_ORDER: bcd.objects_value([plan.loader]),
        bcd.TOOLS_DISPLAY_ORDER: bcd.objects_value([bcd.MEMDIAG]),
        bcd.TIMEOUT: bcd.integer_value(_TIMEOUT),
    }


def _suffix(plan: Plan) -> str:
    return 'efi' if plan.firmware is model.Firmware.UEFI else 'exe'


def _loader(plan: Plan) -> dict[int, registry.Value]:
    device = bcd_device.partition_device(plan.windows)
    elements = _application(
        plan,
        plan.windows,
        f'\\Windows\\system32\\winload.{_suffix(plan)}',
        plan.description,
        bcd.BOOT_LOADER_SETTINGS,
    ) | {
        bcd.OS_DEVICE: bcd.device_value(device),
        bcd.SYSTEM_ROOT: bcd.text_value('\\Windows'),
        bcd.ASSOCIATED_RESUME_OBJECT: bcd.text_value(plan.resume),
        bcd.NX_POLICY: bcd.integer_value(_OPT_OUT if plan.server else _OPT_IN),
    }
    if plan.version >= (6, 2):
        policy = bcd.integer_value(_MENU_POLICY_STANDARD)
        elements[bcd.BOOT_MENU_POLICY] = policy
    return elements


def _resume(plan: Plan) -> dict[int, registry.Value]:
    device = bcd_device.partition_device(plan.windows)
    return _application(
        plan,
        plan.windows,
        f'\\Windows\\system32\\winresume.{_suffix(plan)}',
        'Windows Resume Application',
        bcd.RESUME_LOADER_SETTINGS,
    ) | {
        bcd.HIBERFILE_DEVICE: bcd.device_value(device),
        bcd.HIBERFILE_PATH: bcd.text_value('\\hiberfil.sys'),
        bcd.DEBUG_OPTION_ENABLED: bcd.boolean_value(False),
    }


def _memory_test(plan: Plan) -> dict[int, registry.Value]:
    uefi = plan.firmware is model.Firmware.UEFI
    return _application(
        plan,
        plan.system,
        '\\EFI\\Microsoft\\Boot\\memtest.efi'
        if uefi
        else '\\boot\\memtest.exe',
        'Windows Memory Diagnostic',
        bcd.GLOBAL_SETTINGS,
    ) | {bcd.ALLOW_BAD_MEMORY_ACCESS: bcd.boolean_value(True)}


def _settings(plan: Plan) -> Iterator[NewObject]:
    """The objects that others inherit from."""
    inherit = bcd.INHERITED_OBJECTS
    modern = plan.version >= (6, 2)
    lists = [bcd.DEBUGGER_SETTINGS, bcd.EMS_SETTINGS, bcd.BAD_MEMORY]
    yield (
        bcd.GLOBAL_SETTINGS,
        bcd.INHERIT_TYPE,
        {inherit: bcd.objects_value(lists)},
    )
    debugger = {
        bcd.DEBUGGER_TYPE: bcd.integer_value(_LOCAL if modern else _SERIAL)
    }
    if not modern:
        debugger |= {
            bcd.SERIAL_DEBUGGER_PORT: bcd.integer_value(1),
            bcd.SERIAL_DEBUGGER_BAUD_RATE: bcd.integer_value(_BAUD_RATE),
        }
    yield bcd.DEBUGGER_SETTINGS, bcd.INHERIT_TYPE, debugger
    yield (
        bcd.EMS_SETTINGS,
        bcd.INHERIT_TYPE,
        {bcd.EMS_ENABLED: bcd.boolean_value(not modern)},
    )
    yield bcd.BAD_MEMORY, bcd.INHERIT_TYPE, {}
    lists = [bcd.GLOBAL_SETTINGS, bcd.HYPERVISOR_SETTINGS]
    yield (
        bcd.BOOT_LOADER_SETTINGS,
        bcd.INHERIT_OS_LOADER_TYPE,
        {inherit: bcd.objects_value(lists)},
    )
    yield (
        bcd.HYPERVISOR_SETTINGS,
        bcd.INHERIT_OS_LOADER_TYPE,
        {
            bcd.HYPERVISOR_DEBUGGER_TYPE: bcd.integer_value(_SERIAL),
            bcd.HYPERVISOR_DEBUGGER_PORT: bcd.integer_value(1),
            bcd.HYPERVISOR_DEBUGGER_BAUD_RATE: bcd.integer_value(_BAUD_RATE),
        },
    )
    yield (
        bcd.RESUME_LOADER_SETTINGS,
        bcd.INHERIT_RESUME_TYPE,
        {inherit: bcd.objects_value([bcd.GLOBAL_SETTINGS])},
    )
