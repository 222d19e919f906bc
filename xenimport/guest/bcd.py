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


"""The boot configuration data (BCD): a store of objects and elements.

A store is a registry hive: ``Objects\\{id}\\Description`` has the object's
``Type``, ``Objects\\{id}\\Elements\\<eight hexadecimal digits>`` an element
as its value ``Element``. The digits come in both cases in genuine stores,
so elements are found by their number.

Sources: Microsoft's "BCD Reference" (WMI provider: BcdLibraryElementTypes,
BcdBootMgrElementTypes, BcdOSLoaderElementTypes and so on) for names and
numbers; genuine stores for the types of registry values.
"""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Mapping
import dataclasses
import functools
import string

from xenimport.guest import bcd_device
from xenimport.guest import registry

#: Objects that every store has by the same id.
BOOTMGR = '{9dea862c-5cdd-4e70-acc1-f32b344d4795}'
MEMDIAG = '{b2721d73-1db4-4c62-bf78-c548a880142d}'
GLOBAL_SETTINGS = '{7ea2e1ac-2e61-4728-aaa3-896d9d0a9f0e}'
DEBUGGER_SETTINGS = '{4636856e-540f-4170-a130-a84776f4c654}'
EMS_SETTINGS = '{0ce4991b-e6b3-4b16-b23c-5e0d9250e5d9}'
BAD_MEMORY = '{5189b25c-5558-4bf2-bca4-289b11bd29e2}'
BOOT_LOADER_SETTINGS = '{6efb52bf-1766-41db-a6b3-0ee5eff72bd7}'
HYPERVISOR_SETTINGS = '{7ff607e0-4395-11db-b0de-0800200c9a66}'
RESUME_LOADER_SETTINGS = '{1afa9c49-16ab-4a5c-901b-212802da9460}'

#: Types of objects.
BOOTMGR_TYPE = 0x10100002
OS_LOADER_TYPE = 0x10200003
RESUME_TYPE = 0x10200004
MEMDIAG_TYPE = 0x10200005
INHERIT_TYPE = 0x20100000
INHERIT_OS_LOADER_TYPE = 0x20200003
INHERIT_RESUME_TYPE = 0x20200004

#: Elements of any object.
APPLICATION_DEVICE = 0x11000001
APPLICATION_PATH = 0x12000002
DESCRIPTION = 0x12000004
PREFERRED_LOCALE = 0x12000005
INHERITED_OBJECTS = 0x14000006
RECOVERY_SEQUENCE = 0x14000008
DEBUGGER_TYPE = 0x15000011
SERIAL_DEBUGGER_PORT = 0x15000013
SERIAL_DEBUGGER_BAUD_RATE = 0x15000014
BOOT_DEBUGGER_ENABLED = 0x16000010
EMS_ENABLED = 0x16000020
ALLOW_BAD_MEMORY_ACCESS = 0x1600000B
NO_INTEGRITY_CHECKS = 0x16000048
TEST_SIGNING = 0x16000049
#: Elements of the boot manager.
DEFAULT_OBJECT = 0x23000003
BOOTMGR_RESUME_OBJECT = 0x23000006
DISPLAY_ORDER = 0x24000001
TOOLS_DISPLAY_ORDER = 0x24000010
TIMEOUT = 0x25000004
ATTEMPT_RESUME = 0x26000005
#: Elements of an OS loader.
OS_DEVICE = 0x21000001
SYSTEM_ROOT = 0x22000002
ASSOCIATED_RESUME_OBJECT = 0x23000003
NX_POLICY = 0x25000020
SAFE_BOOT = 0x25000080
BOOT_MENU_POLICY = 0x250000C2
WINPE = 0x26000022
KERNEL_DEBUGGER_ENABLED = 0x260000A0
HYPERVISOR_DEBUGGER_TYPE = 0x250000F3
HYPERVISOR_DEBUGGER_PORT = 0x250000F4
HYPERVISOR_DEBUGGER_BAUD_RATE = 0x250000F5
#: Elements of a resume loader.
HIBERFILE_DEVICE = 0x21000001
HIBERFILE_PATH = 0x22000002
DEBUG_OPTION_ENABLED = 0x26000006
#: Elements of device options.
SDI_DEVICE = 0x31000003
SDI_PATH = 0x32000004

_DEVICE_FORMAT = 1
#: More than any store has; genuine ones have some 30 objects.
_OBJECTS_LIMIT = 1024
_ELEMENTS_LIMIT = 512


@dataclasses.dataclass(frozen=True)
class Element:
    """One setting of an object.

    :ivar number: of its type, for example ``APPLICATION_DEVICE``
    :ivar key: its key, from the hive's root
    :ivar value: None where the key has no value ``Element``
    """

    number: int
    key: str
    value: registry.Value | None

    @property
    def is_device(self) -> bool:
        """Whether its number says that it is a device."""
        return self.number >> 24 & 0xF == _DEVICE_FORMAT

    @property
    def device(self) -> bcd_device.Device | None:
        """The device that it is, None where it is none."""
        if self.value is None or self.value.type != registry.BINARY:
            return None
        return bcd_device.parse(self.value.data)

    @property
    def text(self) -> str:
        """Its text, '' where it is none."""
        value = self.value
        return value.text if value and value.type == registry.SZ else ''

    @property
    def objects(self) -> tuple[str, ...]:
        """The ids of objects that it is, a list or a single one."""
        if self.value is None:
            return ()
        return tuple(item.lower() for item in self.value.strings)

    @property
    def number_value(self) -> int | None:
        """Its number or truth, None where it is neither.

        Genuine stores have integers of one to eight bytes.
        """
        value = self.value
        if value is None or value.type != registry.BINARY:
            return None
        if not 1 <= len(value.data) <= 8:
            return None
        return int.from_bytes(value.data, 'little')


@dataclasses.dataclass(frozen=True)
class Object:
    """One object of a store.

    :ivar id: in braces and lower case
    :ivar key: its key, from the hive's root
    :ivar type: for example ``OS_LOADER_TYPE``; None where it has none
    """

    id: str
    key: str
    type: int | None
    elements: Mapping[int, Element]

    def text(self, number: int) -> str:
        """An element's text, '' where there is none."""
        element = self.elements.get(number)
        return element.text if element else ''

    def objects(self, number: int) -> tuple[str, ...]:
        """The ids in an element, () where there is none."""
        element = self.elements.get(number)
        return element.objects if element else ()

    def number(self, number: int) -> int | None:
        """An element's number or truth, None where there is none."""
        element = self.elements.get(number)
        return element.number_value if element else None

    def element_key(self, number: int) -> str:
        """The key of an element, whether it is there yet or not."""
        element = self.elements.get(number)
        if element is not None:
            return element.key
        return f'{self.key}\\Elements\\{number:08x}'

    @property
    def is_windows(self) -> bool:
        """Whether it starts a Windows, and not Windows PE."""
        return self.type == OS_LOADER_TYPE and not self.number(WINPE)


class Store:
    """The objects of a store, as its hive has them now."""

    def __init__(self, hive: registry.Hive) -> None:
        self.hive = hive

    @functools.cached_property
    def objects(self) -> Mapping[str, Object]:
        """Every object by its id; changes of the hive do not show."""
        self.hive.prefetch('Objects', 3)
        root = self.hive.key('Objects')
        found = {}
        for name in root.subkeys[:_OBJECTS_LIMIT] if root else ():
            found[name.lower()] = self._object(name)
        return found

    def _object(self, name: str) -> Object:
        path = f'Objects\\{name}'
        description = self.hive.key(f'{path}\\Description')
        elements = {}
        key = self.hive.key(f'{path}\\Elements')
        for digits in key.subkeys[:_ELEMENTS_LIMIT] if key else ():
            number = _number(digits)
            if number is None:
                continue
            place = f'{path}\\Elements\\{digits}'
            element = self.hive.key(place)
            value = element.value('Element') if element else None
            elements[number] = Element(number, place, value)
        return Object(
            name.lower(),
            path,
            description.number('Type') if description else None,
            elements,
        )

    @property
    def manager(self) -> Object | None:
        """{bootmgr}."""
        return self.objects.get(BOOTMGR)

    @property
    def default(self) -> Object | None:
        """What the boot manager starts; None where it finds nothing.

        Without an entry for it, the first one of the menu.
        """
        if self.manager is None:
            return None
        if DEFAULT_OBJECT in self.manager.elements:
            names = self.manager.objects(DEFAULT_OBJECT)
        else:
            names = self.manager.objects(DISPLAY_ORDER)
        return self.objects.get(names[0]) if names else None

    @property
    def loaders(self) -> tuple[Object, ...]:
        """Every object that starts a Windows, in the menu's order."""
        order = self.manager.objects(DISPLAY_ORDER) if self.manager else ()
        names = dict.fromkeys((*order, *sorted(self.objects)))
        found = (self.objects.get(name) for name in names)
        return tuple(item for item in found if item and item.is_windows)


def _number(digits: str) -> int | None:
    """The number of an element, by its key's name."""
    if len(digits) != 8 or not set(digits) <= set(string.hexdigits):
        return None
    return int(digits, 16)


def device_value(device: bcd_device.Device) -> registry.Value:
    """An element of a device."""
    return registry.Value.binary('Element', device.encode())


def text_value(text: str) -> registry.Value:
    """An element of a text, or of a single object."""
    return registry.Value.sz('Element', text)


def objects_value(identifiers: Iterable[str]) -> registry.Value:
    """An element of a list of objects."""
    return registry.Value.multi_sz('Element', identifiers)


def integer_value(number: int) -> registry.Value:
    """An element of a number."""
    return registry.Value.binary('Element', number.to_bytes(8, 'little'))


def boolean_value(truth: bool) -> registry.Value:
    """An element of yes or no."""
    return registry.Value.binary('Element', bytes([truth]))


def add_object(
    hive: registry.Hive,
    identifier: str,
    kind: int,
    elements: Mapping[int, registry.Value],
) -> list[registry.Edit]:
    """Put an object into a store.

    :returns: what was staged
    """
    path = f'Objects\\{identifier}'
    edits = hive.set_value(
        f'{path}\\Description', registry.Value.dword('Type', kind)
    )
    edits += hive.create_key(f'{path}\\Elements')
    for number, value in sorted(elements.items()):
        edits += hive.set_value(f'{path}\\Elements\\{number:08x}', value)
    return edits
