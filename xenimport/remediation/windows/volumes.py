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


"""In which state Windows left its NTFS volumes.

Measured with ntfs-3g 2022.10.3: a volume is mounted read-only, without an
error, where hiberfil.sys is active, or where its journal is of version 2,
which Windows 8 and later use for as long as they have the volume open. On
any other writable mount it throws an open journal away. The flag that
asks for a check survives, ours included. The exit codes of its probe are
in its manual page ntfs-3g.probe(8).
"""

from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Sequence
import contextlib

from xenimport import exceptions
from xenimport.guest import guest as guest_room
from xenimport.guest import ntfs
from xenimport.guest import volumes
from xenimport import model
from xenimport.remediation import base
from xenimport.remediation.windows import base as windows_base
from xenimport.remediation.windows import boot

HIBERNATION = 'hiberfil.sys'
#: The first bytes of it while there is a session in it.
_ACTIVE = (b'hibr', b'HIBR')
#: Exit codes of ntfs-3g.probe.
_DAMAGED = 13
_HIBERNATED = 14
_UNCLEAN = 15
_SHUT_DOWN = (
    'in the guest on Xen run "powercfg /h off" and "shutdown /s /f /t 0", '
    'and export it again; a snapshot of a running guest will not do'
)


def own_volumes(guest: guest_room.Guest) -> list[volumes.Volume]:
    """The NTFS volumes that are written to: Windows' and the boot files'."""
    found = {
        volume.device: volume
        for volume in (guest.windows, boot.system_volume(guest))
        if volume is not None and volume.file_system == 'ntfs'
    }
    return list(found.values())


def _probe(guest: guest_room.Guest, volume: volumes.Volume) -> int:
    """What ntfs-3g says of a volume that is to be written to.

    One that is mounted for writing already has passed.
    """
    if volume.options != 'ro':
        return 0
    return int(guest.call('ntfs_3g_probe', True, volume.device))


class NtfsHibernated(windows_base.WindowsCheck):
    """A session that waits to be resumed, Fast Startup's too."""

    id = 'windows.ntfs-hibernated'
    title = 'Windows is shut down, not hibernated'

    def examine(self, guest: guest_room.Guest) -> Iterator[model.Finding]:
        accepted = self.id in self.request.accept
        for volume in own_volumes(guest):
            if _probe(guest, volume) != _HIBERNATED:
                continue
            yield model.Finding(
                self.id,
                model.Severity.BLOCKER,
                'Windows was not shut down: it is hibernated, or was running',
                _evidence(volume),
                _SHUT_DOWN,
                subject=volume.device,
                repair='removes hiberfil.sys and empties the journal'
                if accepted
                else None,
                loss='the hibernated session, with what its programs had '
                'not saved, and what stands only in the journal; Windows '
                'checks the volume when it starts',
            )

    def repair(
        self, guest: guest_room.Guest, finding: model.Finding
    ) -> Sequence[model.Change]:
        changes = []
        for volume in own_volumes(guest):
            if (
                volume.device != finding.subject
                or _probe(guest, volume) != _HIBERNATED
            ):
                continue
            before = _evidence(volume)
            with contextlib.suppress(exceptions.GuestError):
                # It complains of the hibernation after it did its work.
                volume.empty_journal()
            volume.mount('remove_hiberfile')
            changes.append(
                _emptied(self.id, volume, f'\\{HIBERNATION}, $LogFile', before)
            )
        return changes


def _evidence(volume: volumes.Volume) -> str:
    if _is_active(volume):
        return f'{HIBERNATION} is active on {volume.device}'
    return (
        f'the journal ($LogFile) of {volume.device} is as Windows has it '
        'while it uses the volume'
    )


def _is_active(volume: volumes.Volume) -> bool:
    """Whether hiberfil.sys holds a session; one without bytes counts.

    ntfs-3g takes a file that is too short for its header for active.
    """
    size = volume.size(HIBERNATION)
    return size is not None and volume.start(HIBERNATION, 4) in (b'', *_ACTIVE)


def _emptied(
    finding: str, volume: volumes.Volume, path: str, before: str
) -> model.Change:
    return model.Change(
        finding,
        volume.device,
        path,
        before=before,
        after='gone; the volume is marked for a check',
        reason='the loss was accepted; nothing can be written otherwise',
        undo='none: what was lost is only in the package',
    )


class NtfsDirty(windows_base.WindowsCheck):
    """A volume with an open journal, or one that wants a check."""

    id = 'windows.ntfs-dirty'
    title = 'The NTFS volumes were closed cleanly'

    def examine(self, guest: guest_room.Guest) -> Iterator[model.Finding]:
        for volume in own_volumes(guest):
            if _probe(guest, volume) == _UNCLEAN:
                yield self._open_journal(volume)
            elif _is_marked(guest, volume):
                yield self._marked(volume)

    def _open_journal(self, volume: volumes.Volume) -> model.Finding:
        return model.Finding(
            self.id,
            model.Severity.BLOCKER,
            'Windows was not shut down cleanly',
            f'the journal ($LogFile) of {volume.device} is open',
            _SHUT_DOWN,
            subject=volume.device,
            repair='empties the journal, and marks the volume for a check'
            if self.id in self.request.accept
            else None,
            loss='what stands only in the journal: the last changes of '
            'files and directories; Windows checks the volume when it '
            'starts',
        )

    def _marked(self, volume: volumes.Volume) -> model.Finding:
        # Whoever accepted that a journal is emptied accepted this as well.
        accepted = self.request.accept & {self.id, NtfsHibernated.id}
        return model.Finding(
            self.id,
            model.Severity.NOTE if accepted else model.Severity.BLOCKER,
            'A volume is marked for a check of its file system',
            f'the dirty flag in $Volume of {volume.device} is set',
            'in the guest on Xen run "chkdsk /f" on that volume, restart '
            'it, shut it down with "shutdown /s /f /t 0", and export it '
            'again',
            subject=volume.device,
            loss='files that the damage reaches, if there is any: Windows '
            'checks the volume when it starts, after it was written to',
        )

    def repair(
        self, guest: guest_room.Guest, finding: model.Finding
    ) -> Sequence[model.Change]:
        changes = []
        for volume in own_volumes(guest):
            if (
                volume.device == finding.subject
                and _probe(guest, volume) == _UNCLEAN
            ):
                volume.empty_journal()
                changes.append(
                    _emptied(self.id, volume, '$LogFile', finding.evidence)
                )
        return changes


def _is_marked(guest: guest_room.Guest, volume: volumes.Volume) -> bool:
    device = volume.device
    parsed = ntfs.parse_boot_sector(guest.head(device))
    if parsed is None:
        return False
    flags = ntfs.volume_flags(
        parsed,
        lambda offset, length: guest.read_device(device, offset, length),
    )
    return bool(flags & ntfs.DIRTY)


class NtfsDamaged(base.Check):
    """NTFS volumes that ntfs-3g does not open, where no Windows is found."""

    id = 'windows.ntfs-damaged'
    title = 'The NTFS volumes can be read'

    def diagnose(self, guest: guest_room.Guest) -> Iterator[model.Finding]:
        if guest.operating_system is not None:
            return
        for drive in guest.drives:
            for partition in guest.partitions(drive):
                device = partition.device
                if boot.head(guest, device)[3:11] != ntfs.NAME:
                    continue
                if guest.call('ntfs_3g_probe', False, device) != _DAMAGED:
                    continue
                yield model.Finding(
                    self.id,
                    model.Severity.BLOCKER,
                    'An NTFS volume is damaged, so no Windows was found',
                    f'ntfs-3g finds {device} inconsistent',
                    'in the guest on Xen run "chkdsk /f" on that volume, '
                    'shut it down with "shutdown /s /f /t 0", and export it '
                    'again; if it is sound there, the package is not whole',
                    subject=device,
                )
