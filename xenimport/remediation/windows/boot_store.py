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


"""The boot configuration itself: there, readable, and about Windows.

A store that is there is mended where an edit does it, and made anew, as
bcdboot makes it, where it is missing, damaged or without an entry for
Windows. An entry for Windows PE is never taken for one.
"""

from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Sequence
import uuid

from xenimport.guest import bcd
from xenimport.guest import bcd_device
from xenimport.guest import guest as guest_room
from xenimport.guest import registry
from xenimport import model
from xenimport.remediation.windows import base
from xenimport.remediation.windows import boot_configuration
from xenimport.remediation.windows import boot_files_copy
from xenimport.remediation.windows import boot_store_new
from xenimport.remediation.windows import disk_identity
from xenimport.remediation.windows import system

_REBUILD = 'makes a new one, as bcdboot does; a copy of the old one stays'


class BootStore(base.WindowsCheck):
    """A store whose default entry starts Windows."""

    id = 'windows.boot-store'
    title = 'The boot configuration (BCD) has an entry that starts Windows'

    def examine(self, guest: guest_room.Guest) -> Iterator[model.Finding]:
        configuration = boot_configuration.load(guest)
        if configuration is None:
            return
        trouble = _trouble(configuration)
        if not trouble:
            return
        title, evidence = trouble
        yield model.Finding(
            self.id,
            model.Severity.BLOCKER,
            title,
            f'{boot_configuration.shown_path(configuration)}: {evidence}',
            'run "bcdboot C:\\Windows" from an installation medium, and '
            'export the guest again',
            subject=boot_configuration.shown_path(configuration),
            repair=self._plan(guest, configuration),
        )

    def _plan(
        self,
        guest: guest_room.Guest,
        configuration: boot_configuration.Configuration,
    ) -> str | None:
        """What a repair would do, None where it cannot."""
        loader = configuration.loader
        if loader is not None:
            return f'makes {loader.id} the default'
        return _REBUILD if _places(guest, configuration) else None

    def repair(
        self, guest: guest_room.Guest, finding: model.Finding
    ) -> Sequence[model.Change]:
        configuration = boot_configuration.load(guest)
        if configuration is None or not _trouble(configuration):
            return ()
        loader = configuration.loader
        if loader is not None and configuration.store is not None:
            edits = _make_default(configuration.store, loader)
            reason = f'it starts Windows: {loader.text(bcd.DESCRIPTION)}'
            return boot_configuration.changes(
                self.id, guest, configuration, edits, reason
            )
        return self._rebuild(guest, configuration)

    def _rebuild(
        self,
        guest: guest_room.Guest,
        configuration: boot_configuration.Configuration,
    ) -> list[model.Change]:
        places = _places(guest, configuration)
        if places is None:
            return []
        release = system.release(guest)
        firmware = configuration.firmware
        plan = boot_store_new.Plan(
            firmware,
            release.version,
            release.server,
            *places,
            boot_configuration.description(guest),
            boot_files_copy.locale(guest),
            f'{{{uuid.uuid4()}}}',
            f'{{{uuid.uuid4()}}}',
        )
        changes = self._keep_old(configuration)
        hive = guest.registry.create(
            configuration.volume, configuration.path, 'BCD'
        )
        edits = boot_store_new.build(hive, plan)
        reason = 'a new store, as bcdboot makes it'
        changes += boot_configuration.changes(
            self.id, guest, configuration, edits, reason
        )
        if boot_files_copy.can_copy(guest, firmware):
            changes += boot_files_copy.copy_boot_files(
                guest, firmware, self.id
            )
        return changes

    def _keep_old(
        self, configuration: boot_configuration.Configuration
    ) -> list[model.Change]:
        """Copy the old store aside, unless a copy is there already."""
        volume, path = configuration.volume, configuration.path
        backup = path + registry.BACKUP
        if not volume.is_file(path) or volume.is_file(backup):
            return []
        volume.copy(path, backup)
        shown = '\\' + backup.replace('/', '\\')
        return [
            model.Change(
                self.id,
                volume.device,
                shown,
                before='absent',
                after='a copy of the old store',
                reason='a new one takes its place',
                undo=f'rename it to {path.rpartition("/")[2]}',
            )
        ]


def _trouble(
    configuration: boot_configuration.Configuration,
) -> tuple[str, str] | None:
    """What is wrong: a title and the evidence; None where nothing is."""
    store = configuration.store
    if configuration.damage:
        title = 'The boot configuration (BCD) is damaged'
        return title, configuration.damage
    if store is None:
        return 'The boot configuration (BCD) is missing', 'no such file'
    title = 'The boot configuration (BCD) has no entry that starts Windows'
    if store.manager is None:
        return title, f'no object {bcd.BOOTMGR} (the boot manager)'
    if configuration.starts_windows:
        return None
    default = store.default
    if default is None:
        names = store.manager.objects(bcd.DEFAULT_OBJECT)
        named = f'{names[0][:64]}, which is not there' if names else 'none'
        return title, f'the default is {named}'
    if default.number(bcd.WINPE):
        return title, f'the default, {default.id}, starts Windows PE'
    kind = 'none' if default.type is None else f'{default.type:#010x}'
    expected = f'{bcd.OS_LOADER_TYPE:#010x}'
    return title, (
        f'the default, {default.id}, has the type {kind}; expected {expected}'
    )


def _make_default(store: bcd.Store, loader: bcd.Object) -> list[registry.Edit]:
    """Let the boot manager start an entry, and show it in its menu."""
    manager = store.manager
    if manager is None:
        return []
    key = manager.element_key(bcd.DEFAULT_OBJECT)
    edits = store.hive.set_value(key, bcd.text_value(loader.id))
    order = manager.objects(bcd.DISPLAY_ORDER)
    if loader.id not in order:
        key = manager.element_key(bcd.DISPLAY_ORDER)
        value = bcd.objects_value((loader.id, *order))
        edits += store.hive.set_value(key, value)
    return edits


def _places(
    guest: guest_room.Guest,
    configuration: boot_configuration.Configuration,
) -> tuple[bcd_device.Partition, bcd_device.Partition] | None:
    """The system partition and Windows' own; None where one is unknown."""
    partitions = disk_identity.partitions(guest)
    boot = partitions.get(configuration.volume.device)
    windows = partitions.get(system.volume(guest).device)
    return (boot, windows) if boot and windows else None
