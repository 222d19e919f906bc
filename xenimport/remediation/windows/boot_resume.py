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


"""Whether the boot manager would resume a session that is gone.

Windows sets AttemptResume in the boot configuration when it hibernates,
and the boot manager then starts the resume loader in place of Windows
(Microsoft, BcdBootMgrElementTypes). That the resume loader stops and waits
for a key where hiberfil.sys is gone is a guess from what users report.
"""

from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Sequence

from xenimport.guest import bcd
from xenimport.guest import guest as guest_room
from xenimport import model
from xenimport.remediation.windows import base
from xenimport.remediation.windows import boot_configuration
from xenimport.remediation.windows import system
from xenimport.remediation.windows import volumes


class BootResume(base.WindowsCheck):
    """AttemptResume, without a session to resume.

    It counts as gone already where the user accepts that it is removed.
    """

    id = 'windows.boot-resume'
    title = 'The boot manager resumes no session that is gone'

    def examine(self, guest: guest_room.Guest) -> Iterator[model.Finding]:
        configuration = boot_configuration.load(guest)
        store = configuration.store if configuration else None
        manager = store.manager if store else None
        if manager is None or not manager.number(bcd.ATTEMPT_RESUME):
            return
        accepted = volumes.NtfsHibernated.id in self.request.accept
        there = system.volume(guest).is_file(volumes.HIBERNATION)
        if there and not accepted:
            return
        yield model.Finding(
            self.id,
            model.Severity.WARNING,
            'The boot manager would resume a session that is gone',
            'BCD: AttemptResume is set, and '
            + (
                f'{volumes.HIBERNATION} is to be removed'
                if there
                else f'there is no {volumes.HIBERNATION}'
            ),
            'run "bcdedit /deletevalue {bootmgr} custom:26000005" in the '
            'guest, shut it down with "shutdown /s /t 0" and export it again',
            subject=manager.element_key(bcd.ATTEMPT_RESUME),
            repair='takes the setting back',
        )

    def repair(
        self, guest: guest_room.Guest, finding: model.Finding
    ) -> Sequence[model.Change]:
        configuration = boot_configuration.load(guest)
        store = configuration.store if configuration else None
        manager = store.manager if store else None
        if configuration is None or store is None or manager is None:
            return ()
        edits = store.hive.set_value(
            manager.element_key(bcd.ATTEMPT_RESUME), bcd.boolean_value(False)
        )
        return boot_configuration.changes(
            self.id, guest, configuration, edits, 'there is nothing to resume'
        )
