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

"""Xen's guest tools: services that find no Xen, and mounts of xenstore."""

from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Sequence
import re

from xenimport.guest import guest as guest_room
from xenimport import model
from xenimport import shell
from xenimport.remediation import base
from xenimport.remediation import text_lines

_SERVICES = (
    'xe-daemon',
    'xe-linux-distribution',
    'xen-guest-agent',
    'xenstored',
    'xenserver-guest-utilities',
)
_UNITS = '/etc/systemd/system'
_FSTAB = '/etc/fstab'
_START = re.compile(r'S(\d\d)(.+)\Z')
_XENFS = re.compile(r'\s*[^#\s]\S*\s+\S+\s+xenfs\b')


def started_links(guest: guest_room.Guest) -> list[str]:
    """The links that start a service of the tools."""
    found = []
    for directory in guest.listdir(_UNITS):
        if directory.endswith(('.wants', '.requires')):
            for name in guest.listdir(f'{_UNITS}/{directory}'):
                if name.removesuffix('.service') in _SERVICES:
                    found.append(f'{_UNITS}/{directory}/{name}')
    # In the RPM family /etc/rcN.d are links to directories below rc.d.
    parent = '/etc/rc.d' if guest.is_dir('/etc/rc.d/rc3.d') else '/etc'
    for level in '2345S':
        directory = f'{parent}/rc{level}.d'
        for name in guest.listdir(directory):
            matched = _START.match(name)
            if matched and matched[2] in _SERVICES:
                found.append(f'{directory}/{name}')
    for name in guest.listdir('/etc/runlevels/default'):
        if name in _SERVICES:
            found.append(f'/etc/runlevels/default/{name}')
    return found


def without_xenfs(text: str) -> str:
    """An fstab with its mounts of xenfs as comments."""
    return ''.join(
        f'# {line}' if _XENFS.match(line) else line
        for line in text_lines.with_ends(text)
    )


class XenGuestTools(base.Check):
    """Services and mounts that are of use on Xen only."""

    id = 'linux.xen-guest-tools'
    title = "No service of Xen's guest tools is started"

    def diagnose(self, guest: guest_room.Guest) -> Iterator[model.Finding]:
        links = started_links(guest)
        if links:
            yield model.Finding(
                self.id,
                model.Severity.NOTE,
                "Xen's guest tools are started at boot",
                '; '.join(links),
                'remove the package (xe-guest-utilities, xen-guest-agent) '
                'in the guest',
                subject='services',
                repair='removes the links that start them',
            )
        if guest.is_file(_FSTAB):
            text = guest.read_text(_FSTAB)
            seen = [
                f'{_FSTAB}:{number}: {line.strip()}'
                for number, line in enumerate(
                    text_lines.without_ends(text), start=1
                )
                if _XENFS.match(line)
            ]
            if seen:
                yield model.Finding(
                    self.id,
                    model.Severity.BLOCKER,
                    'xenfs cannot be mounted outside Xen',
                    '; '.join(seen),
                    f'remove the line from {_FSTAB}',
                    subject=_FSTAB,
                    repair='makes the line a comment',
                    loss='the guest may stop in emergency mode',
                )

    def repair(
        self, guest: guest_room.Guest, finding: model.Finding
    ) -> Sequence[model.Change]:
        if finding.subject == _FSTAB:
            return self._unmount(guest)
        return [self._stop(guest, link) for link in started_links(guest)]

    def _stop(self, guest: guest_room.Guest, link: str) -> model.Change:
        directory, _slash, name = link.rpartition('/')
        matched = _START.match(name)
        if matched and not link.startswith(_UNITS):
            # As update-rc.d and chkconfig do: a start becomes a stop.
            stop = f'{directory}/K{100 - int(matched[1]):02d}{matched[2]}'
            guest.call('rename', link, stop)
            after, undo = (
                f'renamed to {stop}',
                shell.join('mv', '--', stop, link),
            )
        else:
            target = guest.call('readlinklist', directory, [name])[0]
            guest.call('rm_f', link)
            after, undo = 'removed', shell.join('ln', '-s', '--', target, link)
        return self._change(guest, link, 'starts a service', after, undo)

    def _unmount(self, guest: guest_room.Guest) -> list[model.Change]:
        before = guest.read_text(_FSTAB)
        after = without_xenfs(before)
        if before == after:
            return []
        guest.write_text(_FSTAB, after)
        lines = [
            line
            for line in text_lines.without_ends(before)
            if _XENFS.match(line)
        ]
        return [
            self._change(
                guest,
                _FSTAB,
                '; '.join(lines),
                'the same lines as comments',
                f'remove "# " before these lines of {_FSTAB}',
            )
        ]

    def _change(
        self,
        guest: guest_room.Guest,
        path: str,
        before: str,
        after: str,
        undo: str,
    ) -> model.Change:
        return model.Change(
            self.id,
            guest.operating_system.root if guest.operating_system else '',
            path,
            before,
            after,
            'these tools do nothing outside Xen',
            undo,
        )
