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

"""Lines of modprobe.d that keep the guest from loading virtio drivers."""

from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Sequence

from xenimport.guest import guest as guest_room
from xenimport import model
from xenimport.remediation import base
from xenimport.remediation.linux import modules

DRIVERS = (
    'virtio',
    'virtio_ring',
    'virtio_pci',
    'virtio_blk',
    'virtio_scsi',
    'virtio_net',
    'virtio_balloon',
    'virtio_console',
    'virtio_rng',
)
_PATTERNS = (
    '/etc/modprobe.d/*',
    '/lib/modprobe.d/*.conf',
    '/usr/local/lib/modprobe.d/*.conf',
    '/etc/modprobe.conf',
)


class ModuleBlacklist(base.Check):
    """Virtio drivers that modprobe is told not to load."""

    id = 'linux.module-blacklist'
    title = 'No virtio driver is blacklisted'

    def diagnose(self, guest: guest_room.Guest) -> Iterator[model.Finding]:
        for pattern in _PATTERNS:
            for path in guest.glob(pattern):
                if not guest.is_file(path):
                    continue
                found = modules.blocking_lines(guest.read_text(path), DRIVERS)
                if found:
                    yield self._finding(path, found)

    def _finding(
        self, path: str, found: list[tuple[int, str, str]]
    ) -> model.Finding:
        names = ', '.join(dict.fromkeys(driver for _, _, driver in found))
        return model.Finding(
            self.id,
            # The initramfs has its own copy, which linux.initramfs-virtio
            # looks at; the next rebuild would copy this one into it.
            model.Severity.WARNING,
            f'{names} must not be loaded',
            '; '.join(f'{path}:{number}: {line}' for number, line, _ in found),
            f'remove these lines from {path}',
            subject=path,
            repair='makes these lines comments',
        )

    def repair(
        self, guest: guest_room.Guest, finding: model.Finding
    ) -> Sequence[model.Change]:
        path = finding.subject
        before = guest.read_text(path)
        after = modules.unblocked(before, DRIVERS)
        if after == before:
            return ()
        guest.write_text(path, after)
        lines = '; '.join(
            line for _, line, _ in modules.blocking_lines(before, DRIVERS)
        )
        return [
            model.Change(
                self.id,
                guest.operating_system.root if guest.operating_system else '',
                path,
                before=lines,
                after='the same lines as comments',
                reason='KVM offers virtio devices',
                undo=f'remove "# " before these lines of {path}',
            )
        ]
