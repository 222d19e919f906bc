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


"""Which Windows this tool knows.

Source: Microsoft's table of version numbers: 5.x is XP and Server 2003,
6.0 Vista and Server 2008, 6.1 Windows 7 and Server 2008 R2.
"""

from __future__ import annotations

from collections.abc import Iterator

from xenimport.guest import guest as guest_room
from xenimport import model
from xenimport.remediation.windows import base as windows_base

_OLDEST = (6, 1)
_KNOWN = frozenset(((6, 1), (6, 2), (6, 3), (10, 0)))


class Release(windows_base.WindowsCheck):
    """A Windows that is too old, or newer than this tool."""

    id = 'windows.release'
    title = 'This release of Windows is known'

    def examine(self, guest: guest_room.Guest) -> Iterator[model.Finding]:
        found = guest.operating_system
        if found is None:
            return
        version = found.major, found.minor
        if version in _KNOWN:
            return
        name = found.product or 'Windows'
        evidence = f'{name}, version {found.major}.{found.minor}'
        if version < _OLDEST:
            yield model.Finding(
                self.id,
                model.Severity.BLOCKER,
                'This release of Windows is not supported',
                evidence,
                'upgrade it on Xen to Windows 7, Server 2008 R2 or later; '
                'or prepare it for KVM there and use --no-repair',
                subject=name,
                loss='nothing that this release alone has is looked at '
                '(boot.ini, hal.dll, its virtio drivers): it may not boot',
            )
        else:
            yield model.Finding(
                self.id,
                model.Severity.NOTE,
                'This release of Windows is newer than this tool',
                evidence,
                'nothing; look closely at the first boot',
                subject=name,
            )
