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


"""What the checks of the boot configuration share: the store, as it is."""

from __future__ import annotations

from collections.abc import Iterable
import dataclasses

from xenimport import exceptions
from xenimport.guest import bcd
from xenimport.guest import guest as guest_room
from xenimport.guest import registry
from xenimport.guest import volumes
from xenimport import model
from xenimport.remediation.windows import base
from xenimport.remediation.windows import boot
from xenimport.remediation.windows import system

#: Errors that say that a store cannot be read.
_DAMAGED = frozenset(('registry.damaged', 'registry.too-large'))


@dataclasses.dataclass(frozen=True)
class Configuration:
    """The store of a guest.

    :ivar volume: the system volume
    :ivar path: of the store in it
    :ivar store: None where it is missing or cannot be read
    :ivar damage: why it cannot be read, '' where it can or is missing
    """

    volume: volumes.Volume
    path: str
    firmware: model.Firmware
    store: bcd.Store | None
    damage: str = ''

    @property
    def starts_windows(self) -> bool:
        """Whether the boot manager's default entry is a Windows."""
        found = self.store.default if self.store else None
        return found is not None and found.is_windows

    @property
    def loader(self) -> bcd.Object | None:
        """What starts Windows, or would if it were made the default.

        None where the store is of no use.
        """
        if self.store is None or self.store.manager is None:
            return None
        if self.starts_windows:
            return self.store.default
        return next(iter(self.store.loaders), None)


def load(guest: guest_room.Guest) -> Configuration | None:
    """Read the store; None where this Windows has none, or no place for it.

    Windows has a BCD since Vista; a disk without a system partition is
    another check's finding.
    """
    volume = boot.system_volume(guest)
    if volume is None or boot.is_before_vista(guest):
        return None
    path, firmware = boot.store_path(guest), boot.firmware(guest)
    try:
        hive = boot.store(guest)
    except exceptions.GuestError as error:
        if error.id not in _DAMAGED:
            raise
        damage = error.found or error.message
        return Configuration(volume, path, firmware, None, damage)
    store = bcd.Store(hive) if hive else None
    return Configuration(volume, path, firmware, store)


def changes(
    finding: str,
    guest: guest_room.Guest,
    configuration: Configuration,
    edits: Iterable[registry.Edit],
    reason: str,
) -> list[model.Change]:
    """Staged changes of the store, as the report has them.

    It is in the system volume, where a registry hive is in Windows' own.
    """
    return [
        dataclasses.replace(
            base.change(finding, guest, edit, reason),
            target=configuration.volume.device,
        )
        for edit in edits
    ]


def loader_path(firmware: model.Firmware, name: str = 'winload') -> str:
    """Where Windows has its loader, as the store spells it."""
    suffix = 'efi' if firmware is model.Firmware.UEFI else 'exe'
    return f'\\Windows\\system32\\{name}.{suffix}'


def shown_path(configuration: Configuration) -> str:
    """The store's path for a person."""
    path = configuration.path.replace('/', '\\')
    return f'\\{path} on {configuration.volume.device}'


def description(guest: guest_room.Guest) -> str:
    """What the boot menu calls this Windows."""
    product = ''.join(
        character
        for character in system.release(guest).product[:80]
        if character.isprintable()
    )
    if product.startswith('Windows'):
        return product
    return f'Windows {product}'.strip()
