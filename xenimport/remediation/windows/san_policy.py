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


"""Which disks Windows brings online by itself.

On KVM every disk but the system's is new to Windows, and disks behind
virtio count as on a shared bus (its drivers report SCSI and SAS).

Source: Microsoft's ``VDS_SAN_POLICY`` for the values, and diskpart's
``san`` and ``online disk`` commands.
"""

from __future__ import annotations

from collections.abc import Iterator

from xenimport.guest import guest as guest_room
from xenimport import model
from xenimport.remediation.windows import base
from xenimport.remediation.windows import system

_ONLINE_ALL = 1
_POLICIES = {
    2: 'OfflineShared: disks on a shared bus stay offline',
    3: 'OfflineAll: all disks but the boot disk stay offline',
    4: 'OfflineInternal: internal disks stay offline',
}


class SanPolicy(base.WindowsCheck):
    """What becomes of disks that Windows has not seen before."""

    id = 'windows.san-policy'
    title = 'Windows brings data disks online by itself'

    def examine(self, guest: guest_room.Guest) -> Iterator[model.Finding]:
        if len(guest.drives) < 2:
            return
        hive = system.system_hive(guest)
        for control_set in system.control_sets(guest):
            path = f'{control_set}\\Services\\partmgr\\Parameters'
            key = hive.key(path)
            policy = key.number('SanPolicy') if key else None
            if policy == _ONLINE_ALL:
                continue
            if policy is None and not system.release(guest).server:
                # A client's default is to bring them all online.
                continue
            yield self._finding(guest, path, policy)

    def _finding(
        self, guest: guest_room.Guest, path: str, policy: int | None
    ) -> model.Finding:
        meaning = (
            'absent: some editions of Windows Server then leave disks on a '
            'shared bus offline'
            if policy is None
            else f'{policy} ({_POLICIES.get(policy, "unknown")})'
        )
        return model.Finding(
            self.id,
            model.Severity.NOTE if policy is None else model.Severity.WARNING,
            'Data disks may be offline after the first boot',
            f'{system.full_name("SYSTEM", path)}, value SanPolicy: '
            f'{meaning}; disks besides the first: '
            + ', '.join(guest.drives[1:]),
            'where a disk is missing in the guest, bring it online: '
            'diskpart, "select disk N", "online disk", "attributes disk '
            'clear readonly"',
            subject=path,
        )
