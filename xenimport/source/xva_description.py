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


"""The description in an XVA: ``ova.xml``.

It is one value in the encoding of XML-RPC: the version of the export, and
records of xapi's database as xapi's API defines them (classes VM, VBD,
VDI, VIF, network and SR), which refer to each other by id.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Mapping
import dataclasses
import re
import typing

from xenimport import exceptions
from xenimport import model
from xenimport.source import base
from xenimport.source import xmlrpc_value

#: Bytes. Real ones have some hundred kibibytes.
MAX_SIZE = 16 << 20
#: What is kept of a VM beside what has a field of its own.
_SETTINGS = (
    'HVM_boot_policy',
    'HVM_boot_params',
    'platform',
    'domain_type',
    'PV_bootloader',
    'PV_kernel',
    'PV_ramdisk',
    'PV_args',
)
#: Virtual systems that an error lists.
_LISTED = 20

_Record: typing.TypeAlias = Mapping[str, xmlrpc_value.Value]


@dataclasses.dataclass(frozen=True)
class Disk:
    """A disk of the virtual system.

    :ivar id: of the VDI: the directory of its chunks
    :ivar size: bytes
    :ivar device: where it is attached, for example ``0`` or ``xvda``
    """

    id: str
    name: str
    size: int
    device: str


@dataclasses.dataclass(frozen=True)
class Description:
    """What ``ova.xml`` says of one virtual system.

    :ivar disks: in the order of their devices
    :ivar vdis: every VDI in the package, other systems' too
    """

    name: str
    disks: tuple[Disk, ...]
    vdis: frozenset[str]
    vcpus: int | None
    memory: int | None
    firmware: model.Firmware | None
    nics: tuple[model.Nic, ...]
    creator: str | None
    settings: Mapping[str, str]
    findings: tuple[model.Finding, ...]


def parse(
    text: bytes, where: str, request: base.Request = base.DEFAULT
) -> Description:
    """Parse a description.

    :param where: its name in the package, for errors
    :raises xenimport.exceptions.PackageError: if it is damaged, hostile,
        or describes several systems of which none was chosen
    """
    value = _value(text, where)
    return _Parser(value, where, request.system).description()


def _invalid(where: str, expected: str, found: str) -> exceptions.PackageError:
    return exceptions.PackageError(
        'package.xva-description',
        'The description of the XVA cannot be understood',
        where=where,
        expected=expected,
        found=found[:200],
        fix='export the guest again',
    )


def _value(text: bytes, where: str) -> xmlrpc_value.Value:
    try:
        return xmlrpc_value.parse(text)
    except xmlrpc_value.RootError as error:
        if error.tag == 'appliance':
            raise exceptions.PackageError(
                'package.xva-ancient',
                'The XVA is of the first form, which is not supported',
                where=where,
                expected='an XVA of XenServer 4 or later',
                found='an "appliance" element, as XenEnterprise 3 wrote it',
                fix='import it into a XenServer, and export it again',
            ) from error
        found = f'the element {error.tag[:80]!r}'
        raise _invalid(where, 'an XML-RPC value', found) from error
    except ValueError as error:
        raise _invalid(where, 'one XML-RPC value', f'{error}') from error


def _text(record: _Record, key: str) -> str:
    """A field of a record as text; empty if it is missing or no text."""
    value = record.get(key, '')
    return value.strip() if isinstance(value, str) else ''


def _true(record: _Record, key: str) -> bool:
    return _text(record, key).lower() in ('1', 'true')


def _integer(record: _Record, *keys: str) -> int | None:
    """The first of the fields that holds a number above zero."""
    for key in keys:
        text = _text(record, key)
        if re.fullmatch('[0-9]{1,18}', text) and int(text):
            return int(text)
    return None


def _map(record: _Record, key: str) -> dict[str, str]:
    """A field that is a map from text to text."""
    value = record.get(key)
    if not isinstance(value, dict):
        return {}
    return {
        name: item for name, item in value.items() if isinstance(item, str)
    }


def _position(device: str) -> int:
    """Where a device comes among the others: ``0``, or ``xvda``."""
    if re.fullmatch('[0-9]{1,9}', device):
        return int(device)
    match = re.fullmatch('(?:xvd|hd|sd)([a-z]{1,2})', device)
    if match is None:
        return 1 << 30
    position = 0
    for letter in match[1]:
        position = position * 26 + ord(letter) - ord('a') + 1
    return position - 1


def _matching(
    systems: Mapping[str, _Record], wanted: str
) -> dict[str, _Record]:
    """The systems with a uuid, or else a name."""
    for field in ('uuid', 'name_label'):
        found = {
            key: vm
            for key, vm in systems.items()
            if _text(vm, field) == wanted
        }
        if found:
            return found
    return {}


class _Parser:
    """Makes a description of one parsed document."""

    def __init__(
        self, value: xmlrpc_value.Value, where: str, wanted: str | None
    ) -> None:
        self._where = where
        if not isinstance(value, dict):
            kind = 'an array' if isinstance(value, list) else 'text'
            raise _invalid(where, 'a struct', kind)
        self._version = _map(value, 'version')
        self._objects = self._by_class(value)
        self._id, self._vm = self._choose(wanted)

    def _by_class(
        self, value: Mapping[str, xmlrpc_value.Value]
    ) -> dict[str, dict[str, _Record]]:
        """The records by class and id."""
        objects = value.get('objects')
        if not isinstance(objects, list):
            raise _invalid(self._where, 'an array "objects"', 'none')
        found: dict[str, dict[str, _Record]] = {}
        for item in objects:
            record = item.get('snapshot') if isinstance(item, dict) else None
            if isinstance(item, dict) and isinstance(record, dict):
                kind = found.setdefault(_text(item, 'class'), {})
                kind[_text(item, 'id')] = record
        return found

    def _all(self, kind: str) -> Mapping[str, _Record]:
        return self._objects.get(kind, {})

    def _choose(self, wanted: str | None) -> tuple[str, _Record]:
        """The VM that is meant, and its id."""
        systems = self._all('VM')
        if not systems:
            raise _invalid(self._where, 'a VM', 'no object of that class')
        # Snapshots come along with their VM, and are templates as well.
        # One that was exported by itself is what is meant.
        real = {
            key: vm
            for key, vm in systems.items()
            if not _true(vm, 'is_a_snapshot')
            and not _true(vm, 'is_a_template')
        } or systems
        if wanted is None:
            matching = real
        else:
            matching = _matching(real, wanted)
        if len(matching) == 1:
            ((key, vm),) = matching.items()
            return key, vm
        raise self._unclear(wanted, real)

    def _unclear(
        self, wanted: str | None, systems: Mapping[str, _Record]
    ) -> exceptions.PackageError:
        """The error of no or several systems that are meant."""
        names = [
            f'{_text(vm, "name_label")[:80]} (uuid {_text(vm, "uuid")[:40]})'
            for vm in list(systems.values())[:_LISTED]
        ]
        if len(systems) > _LISTED:
            names.append(f'and {len(systems) - _LISTED} more')
        if wanted is None:
            return exceptions.PackageError(
                'package.virtual-systems',
                'The package does not describe exactly one virtual system',
                where=self._where,
                expected='one VM, or --system with the name of one',
                found=', '.join(names),
                fix='choose one with --system NAME',
            )
        return exceptions.PackageError(
            'package.system-unknown',
            'The package does not have one virtual system of that name',
            where=self._where,
            expected=f'--system {wanted[:200]}',
            found=', '.join(names),
            fix='choose one of these with --system, by name or by uuid',
        )

    def description(self) -> Description:
        """What the records say of the chosen VM."""
        vm = self._vm
        boot = _map(vm, 'HVM_boot_params')
        return Description(
            name=_text(vm, 'name_label'),
            disks=tuple(self._disks()),
            vdis=frozenset(self._all('VDI')),
            vcpus=_integer(vm, 'VCPUs_max', 'VCPUs_at_startup'),
            memory=_integer(vm, 'memory_static_max', 'memory_dynamic_max'),
            firmware=self._firmware(boot),
            nics=tuple(self._nics()),
            creator=self._creator(),
            settings=dict(self._settings()),
            findings=tuple(self._findings()),
        )

    def _creator(self) -> str | None:
        words = [
            self._version.get(key, '')
            for key in ('product_brand', 'product_version')
        ]
        return ' '.join(word for word in words if word) or None

    def _firmware(self, boot: Mapping[str, str]) -> model.Firmware | None:
        stated = boot.get('firmware', '').lower()
        if stated in ('uefi', 'bios'):
            return model.Firmware(stated)
        # Xen's HVM guests have a BIOS unless told otherwise.
        if _text(self._vm, 'HVM_boot_policy'):
            return model.Firmware.BIOS
        return None

    def _settings(self) -> Iterator[tuple[str, str]]:
        """What is kept as it is; maps in the form that OVF has them."""
        for key in _SETTINGS:
            pairs = _map(self._vm, key)
            text = ';'.join(f'{name}={pairs[name]}' for name in sorted(pairs))
            if text or _text(self._vm, key):
                yield key, text or _text(self._vm, key)
        bootable = [
            _text(vbd, 'userdevice')
            for vbd in self._attached('VBD', 'VBDs')
            if _text(vbd, 'type') == 'Disk' and _true(vbd, 'bootable')
        ]
        if bootable:
            yield 'bootable', ','.join(bootable)

    def _attached(self, kind: str, field: str) -> list[_Record]:
        """The VM's devices of a class.

        :param field: of the VM, that lists them
        """
        listed = self._vm.get(field)
        ids = listed if isinstance(listed, list) else []
        names = {item for item in ids if isinstance(item, str)}
        return [
            device
            for key, device in self._all(kind).items()
            if key in names or _text(device, 'VM') == self._id
        ]

    def _in_order(
        self, kind: str, field: str, place: Callable[[_Record], str]
    ) -> list[_Record]:
        return sorted(
            self._attached(kind, field),
            key=lambda device: _position(place(device)),
        )

    def _nics(self) -> Iterator[model.Nic]:
        for vif in self._in_order('VIF', 'VIFs', lambda r: _text(r, 'device')):
            network = self._all('network').get(_text(vif, 'network'), {})
            mac = _text(vif, 'MAC').lower()
            hexadecimal = re.fullmatch('[0-9a-f]{2}(:[0-9a-f]{2}){5}', mac)
            yield model.Nic(
                name=_text(vif, 'device'),
                mac=mac if hexadecimal else None,
                network=_text(network, 'name_label') or None,
            )

    def _disks(self) -> Iterator[Disk]:
        """The disks in the order of their devices, each once."""
        seen: set[str] = set()
        for vbd in self._in_order(
            'VBD', 'VBDs', lambda record: _text(record, 'userdevice')
        ):
            identity = _text(vbd, 'VDI')
            if (
                _text(vbd, 'type') != 'Disk'
                or not identity
                or identity.endswith(':NULL')
                or identity in seen
            ):
                continue
            seen.add(identity)
            yield self._disk(identity, _text(vbd, 'userdevice'))

    def _disk(self, identity: str, device: str) -> Disk:
        vdi = self._all('VDI').get(identity)
        if vdi is None:
            raise _invalid(
                self._where, f'a VDI {identity!r}', 'none; a disk is on it'
            )
        size = _integer(vdi, 'virtual_size')
        if size is None:
            raise _invalid(
                self._where,
                f'the size of the VDI {identity!r} in bytes',
                f'virtual_size {_text(vdi, "virtual_size")!r}',
            )
        name = _text(vdi, 'name_label') or identity
        return Disk(identity, name, size, device)

    def _findings(self) -> Iterator[model.Finding]:
        if _text(self._vm, 'power_state') != 'Suspended':
            return
        yield model.Finding(
            id='package.xva-suspended',
            severity=model.Severity.WARNING,
            title='The guest was suspended when it was exported',
            evidence=f'{self._where}: power_state is Suspended. What the '
            'guest had in memory cannot be taken over to KVM: it starts as '
            'after a power failure',
            fix='resume the guest on Xen, shut it down and export it again',
            subject=_text(self._vm, 'name_label'),
        )
