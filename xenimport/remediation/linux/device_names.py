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

"""Device names of Xen in fstab and crypttab.

/dev/xvda1 is /dev/vda1 or /dev/sda1 afterwards: so the file system's UUID
stands instead. A disk that the package does not bring must not keep the
guest from booting, as systemd waits for it and gives up.
"""

from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Sequence
import contextlib
import dataclasses

from xenimport import exceptions
from xenimport.guest import augeas
from xenimport.guest import guest as guest_room
from xenimport import model
from xenimport.remediation import base
from xenimport.remediation.linux import disk_names
from xenimport.remediation import text_lines

FSTAB = '/etc/fstab'
CRYPTTAB = '/etc/crypttab'
_LENSES = {FSTAB: 'Fstab', CRYPTTAB: 'Crypttab'}
#: Without these a guest is no guest.
_ESSENTIAL = frozenset(
    ('/', '/usr', '/boot', '/boot/efi', '/var', '/etc', '/lib')
)


@dataclasses.dataclass(frozen=True)
class Entry:
    """One line of either file.

    :ivar node: its path in Augeas' tree
    :ivar device: the first field of fstab, the second of crypttab
    :ivar place: the mount point, or the name of the decrypted device
    """

    file: str
    node: str
    device: str
    place: str
    options: tuple[str, ...]

    @property
    def subject(self) -> str:
        return f'{self.file} {self.device} {self.place}'


@dataclasses.dataclass(frozen=True)
class Decision:
    """What has to be done about an entry.

    :ivar device: the new name, None to leave it
    :ivar nofail: whether the boot must do without it
    :ivar fatal: whether the guest cannot do without it
    """

    device: str | None = None
    nofail: bool = False
    fatal: bool = False


def decide(entry: Entry, devices: disk_names.Devices) -> Decision | None:
    """What has to be done about an entry; None if it can stay."""
    if disk_names.parse(entry.device) is None:
        return None
    mount_point = entry.place if entry.file == FSTAB else ''
    stable = devices.stable(entry.device, mount_point)
    if stable:
        return Decision(device=stable)
    if 'noauto' in entry.options or 'nofail' in entry.options:
        return None
    if entry.file == FSTAB and entry.place in _ESSENTIAL:
        return Decision(fatal=True)
    return Decision(nofail=True)


@contextlib.contextmanager
def open_tables(
    guest: guest_room.Guest,
) -> Iterator[tuple[augeas.Tree, list[Entry]]]:
    """Every entry of both files, and the tree that they are in.

    :raises xenimport.exceptions.GuestError: if a file is not understood
    """
    lenses = {lens: [file] for file, lens in _LENSES.items()}
    with guest.augeas(lenses) as tree:
        yield (
            tree,
            [
                _entry(tree, file, node)
                for file in _LENSES
                for node in tree.match(f'/files{file}/*')
                if node.rpartition('/')[2].isdigit()
            ],
        )


def _entry(tree: augeas.Tree, file: str, node: str) -> Entry:
    first, second = ('spec', 'file') if file == FSTAB else ('device', 'target')
    options = [tree.get(path) or '' for path in tree.match(f'{node}/opt')]
    return Entry(
        file,
        node,
        tree.get(f'{node}/{first}') or '',
        tree.get(f'{node}/{second}') or '',
        tuple(options),
    )


def line_of(text: str, entry: Entry) -> int:
    """The number of the entry's line, from 1; 0 if it is not there."""
    wanted = [entry.device, entry.place]
    if entry.file == CRYPTTAB:
        wanted.reverse()
    for number, line in enumerate(text_lines.without_ends(text), start=1):
        if line.split()[:2] == wanted:
            return number
    return 0


class DeviceNames(base.Check):
    """Names in fstab and crypttab that change with the hypervisor."""

    id = 'linux.device-names'
    title = 'fstab and crypttab name disks by UUID'

    def __init__(
        self, request: base.Request, lookup: disk_names.Lookup | None = None
    ) -> None:
        super().__init__(request)
        self._lookup = lookup or disk_names.Lookup()

    def diagnose(self, guest: guest_room.Guest) -> Iterator[model.Finding]:
        texts = {
            file: guest.read_text(file)
            for file in _LENSES
            if guest.is_file(file)
        }
        if not texts:
            return
        devices = self._lookup.of(guest)
        try:
            with open_tables(guest) as (_tree, entries):
                pass
        except exceptions.GuestError as error:
            if error.id != 'guest.config-not-parsed':
                raise
            yield self._unparsed(error)
            return
        for entry in entries:
            decision = decide(entry, devices)
            if decision:
                number = line_of(texts[entry.file], entry)
                yield self._finding(entry, decision, number)

    def _unparsed(self, error: exceptions.GuestError) -> model.Finding:
        return model.Finding(
            self.id,
            model.Severity.WARNING,
            f'{error.where} cannot be understood',
            f'{error.where}: {error.found}',
            f'correct the syntax of {error.where} in the guest; names of '
            'disks in it have to be UUIDs',
            subject=error.where or '',
        )

    def _finding(
        self, entry: Entry, decision: Decision, number: int
    ) -> model.Finding:
        evidence = f'{entry.file}:{number}: {entry.device} on {entry.place}'
        fix = f'name it by UUID in {entry.file}'
        repair: str | None
        if decision.device:
            repair = f'writes {decision.device}'
            loss = 'the guest may wait for the disk in vain'
        elif decision.nofail:
            evidence += ': no such disk in the package, or it has no UUID'
            repair = 'adds nofail, so that the guest boots without it'
            fix = f'remove the line from {entry.file}, or export that disk too'
            loss = 'the guest stops in emergency mode'
        else:
            evidence += ': no such disk in the package'
            repair = None
            fix = 'export that disk too'
            loss = f'the guest has no {entry.place}'
        return model.Finding(
            self.id,
            model.Severity.BLOCKER,
            f'{entry.device} is not called so on KVM',
            evidence,
            fix,
            subject=entry.subject,
            repair=repair,
            loss=loss,
        )

    def repair(
        self, guest: guest_room.Guest, finding: model.Finding
    ) -> Sequence[model.Change]:
        devices = self._lookup.of(guest)
        with open_tables(guest) as (tree, entries):
            for entry in entries:
                decision = decide(entry, devices)
                if entry.subject == finding.subject and decision:
                    return [self._apply(guest, tree, entry, decision)]
        return ()

    def _apply(
        self,
        guest: guest_room.Guest,
        tree: augeas.Tree,
        entry: Entry,
        decision: Decision,
    ) -> model.Change:
        if decision.device:
            field = 'spec' if entry.file == FSTAB else 'device'
            tree.set(f'{entry.node}/{field}', decision.device)
            before, after = entry.device, decision.device
            reason = 'the name of the disk changes with the hypervisor'
        else:
            _add_option(guest, tree, entry, 'nofail')
            before = f'{entry.device} {",".join(entry.options)}'
            after = f'{entry.device} {",".join((*entry.options, "nofail"))}'
            reason = 'the disk is not there, and the boot must not wait'
        tree.save()
        return model.Change(
            self.id,
            guest.operating_system.root if guest.operating_system else '',
            entry.file,
            before=f'{before} ({entry.place})',
            after=f'{after} ({entry.place})',
            reason=reason,
            undo=f'in {entry.file} replace {after} by {before}',
        )


def _add_option(
    guest: guest_room.Guest, tree: augeas.Tree, entry: Entry, option: str
) -> None:
    # Augeas wants children in the order of the fields, and only an insert
    # says where.
    after = 'opt[last()]'
    if not entry.options:
        after = 'vfstype' if entry.file == FSTAB else 'password'
        if entry.file == CRYPTTAB and not tree.match(f'{entry.node}/{after}'):
            tree.set(f'{entry.node}/{after}', 'none')
    guest.call('aug_insert', f'{entry.node}/{after}', 'opt', 0)
    tree.set(f'{entry.node}/opt[last()]', option)
