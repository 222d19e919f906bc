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


"""What the checks of Windows guests share."""

from __future__ import annotations

import abc
from collections.abc import Iterable
from collections.abc import Iterator

from xenimport import exceptions
from xenimport.guest import guest as guest_room
from xenimport.guest import registry
from xenimport import model
from xenimport.remediation import base
from xenimport.remediation.windows import system


class WindowsCheck(base.Check, abc.ABC):
    """A check that only a guest with Windows on it can have."""

    def diagnose(self, guest: guest_room.Guest) -> Iterator[model.Finding]:
        if guest.windows is None:
            return
        try:
            yield from self.examine(guest)
        except exceptions.GuestError as error:
            # Told once, by windows.hive-damaged, and not by every check
            # that would have read that hive.
            if not system.unreadable(guest, error):
                raise

    @abc.abstractmethod
    def examine(self, guest: guest_room.Guest) -> Iterable[model.Finding]:
        """What is wrong with this Windows. Writes nothing."""

    def changes(
        self,
        guest: guest_room.Guest,
        edits: Iterable[registry.Edit],
        reason: str,
    ) -> list[model.Change]:
        """Staged changes of the registry, as the report has them."""
        return [change(self.id, guest, edit, reason) for edit in edits]


def change(
    finding: str, guest: guest_room.Guest, edit: registry.Edit, reason: str
) -> model.Change:
    """One staged change of the registry, as the report has it."""
    key = system.full_name(edit.hive, edit.key)
    return model.Change(
        finding,
        guest.operating_system.root if guest.operating_system else '',
        key
        if edit.name is None
        else f'{key}, value {edit.name or "(Default)"}',
        before=_shown(edit.before),
        after=_shown(edit.after),
        reason=reason,
        undo=_undo(edit),
    )


def _shown(item: registry.Value | registry.Key | None) -> str:
    if item is None:
        return 'absent'
    if isinstance(item, registry.Value):
        return str(item)
    return f'a key with {len(item.values)} values'


_TYPES = {
    registry.NONE: 'REG_NONE',
    registry.SZ: 'REG_SZ',
    registry.EXPAND_SZ: 'REG_EXPAND_SZ',
    registry.BINARY: 'REG_BINARY',
    registry.DWORD: 'REG_DWORD',
    registry.MULTI_SZ: 'REG_MULTI_SZ',
    registry.QWORD: 'REG_QWORD',
}


def _undo(edit: registry.Edit) -> str:
    """The command that takes a change back inside the running guest."""
    key = system.live_name(edit.hive, edit.key)
    if key is None:
        return f'restore the copy of the hive, {edit.hive}{registry.BACKUP}'
    if edit.name is None:
        if edit.before is None:
            return f'reg delete "{key}" /f'
        return f'restore the key from {edit.hive}{registry.BACKUP}'
    name = f'/v "{edit.name}"' if edit.name else '/ve'
    if edit.before is None:
        return f'reg delete "{key}" {name} /f'
    value = edit.before
    if not isinstance(value, registry.Value) or value.type not in _TYPES:
        return f'restore the value from {edit.hive}{registry.BACKUP}'
    return (
        f'reg add "{key}" {name} /t {_TYPES[value.type]} '
        f'/d "{_argument(value)}" /f'
    )


def _argument(value: registry.Value) -> str:
    """A value's data as reg.exe takes it."""
    if value.number is not None:
        return str(value.number)
    if value.type == registry.MULTI_SZ:
        return '\\0'.join(value.strings)
    if value.type in (registry.SZ, registry.EXPAND_SZ):
        return value.text
    return value.data.hex()
