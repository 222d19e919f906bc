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

"""Names of network interfaces that the new network card would not get.

A netfront interface is always called ethN; a virtio one is ensN or enpNsM
unless the kernel is told net.ifnames=0. A newer systemd calls a netfront
interface enXN, which only a .link file can give to another card.
"""

from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Sequence
import re

from xenimport.guest import guest as guest_room
from xenimport import model
from xenimport.remediation import base
from xenimport.remediation.linux import boot_files
from xenimport.remediation import text_lines
from xenimport import shell

_RULES = (
    '/etc/udev/rules.d/70-persistent-net.rules',
    '/etc/udev/rules.d/60-persistent-net.rules',
    '/etc/udev/rules.d/z25_persistent-net.rules',
)
_IFNAMES = 'net.ifnames=0'
_LINKS = '/etc/systemd/network'
_SUBJECT_NAMES = 'interface names'
#: Files that configure interfaces, with what stands before a name in each.
_CONFIGURATION = (
    (
        '/etc/network/interfaces',
        re.compile(
            r'\s*(?:auto|allow-\S+|iface)\b.*?\b(?P<name>eth\d{1,3}|enX\d{1,3})\b'
        ),
    ),
    (
        '/etc/network/interfaces.d/*',
        re.compile(
            r'\s*(?:auto|allow-\S+|iface)\b.*?\b(?P<name>eth\d{1,3}|enX\d{1,3})\b'
        ),
    ),
    (
        '/etc/sysconfig/network-scripts/ifcfg-*',
        re.compile(r'\s*DEVICE=["\']?(?P<name>eth\d{1,3}|enX\d{1,3})\b'),
    ),
    (
        '/etc/sysconfig/network/ifcfg-*',
        re.compile(
            r'\s*(?:DEVICE|INTERFACE)=["\']?(?P<name>eth\d{1,3}|enX\d{1,3})\b'
        ),
    ),
    (
        '/etc/netplan/*.yaml',
        re.compile(r'\s+(?P<name>eth\d{1,3}|enX\d{1,3})\b\s*:'),
    ),
    (
        '/etc/systemd/network/*.network',
        re.compile(r'\s*Name=(?P<name>eth\d{1,3}|enX\d{1,3})\b'),
    ),
    (
        '/etc/NetworkManager/system-connections/*',
        re.compile(r'\s*interface-name=(?P<name>eth\d{1,3}|enX\d{1,3})\b'),
    ),
)
_HWADDR = re.compile(r'\s*(?:HWADDR|MACADDR)=["\']?([0-9A-Fa-f:]{17})')
_UDEV = (
    '/lib/systemd/systemd-udevd',
    '/usr/lib/systemd/systemd-udevd',
    '/bin/udevadm',
    '/usr/bin/udevadm',
)


def without_names(text: str) -> str:
    """udev's rules with each one that names an interface a comment."""
    return ''.join(
        f'# {line}' if _names_interface(line) else line
        for line in text_lines.with_ends(text)
    )


def _names_interface(line: str) -> bool:
    return bool(re.match(r'\s*[^#\s].*\bNAME\s*:?=\s*"', line))


def configured(guest: guest_room.Guest) -> list[tuple[str, str]]:
    """Names that the guest configures, each with its evidence."""
    found: dict[str, str] = {}
    for pattern, expression in _CONFIGURATION:
        for path in guest.glob(pattern):
            if not guest.is_file(path):
                continue
            text = guest.read_text(path)
            for number, line in enumerate(
                text_lines.without_ends(text), start=1
            ):
                matched = expression.match(line)
                if matched:
                    found.setdefault(
                        matched['name'], f'{path}:{number}: {line.strip()}'
                    )
    return sorted(found.items())


class PersistentNet(base.Check):
    """The names by which the guest configures its network."""

    id = 'linux.persistent-net'
    title = 'Network interfaces keep the names the guest configures'

    def diagnose(self, guest: guest_room.Guest) -> Iterator[model.Finding]:
        for path in _RULES:
            if guest.is_file(path):
                yield from self._rules(guest, path)
        names = configured(guest)
        yield from self._classic(guest, names)
        yield from self._xen_names(guest, names)
        yield from self._addresses(guest)

    def _rules(
        self, guest: guest_room.Guest, path: str
    ) -> Iterator[model.Finding]:
        text = guest.read_text(path)
        seen = [
            f'{path}:{number}: {line.strip()}'
            for number, line in enumerate(
                text_lines.without_ends(text), start=1
            )
            if _names_interface(line)
        ]
        if seen:
            yield model.Finding(
                self.id,
                model.Severity.WARNING,
                'Interfaces are named by addresses of the old cards',
                '; '.join(seen),
                f'remove {path} in the guest',
                subject=path,
                repair='makes these lines comments',
            )

    def _classic(
        self, guest: guest_room.Guest, names: Sequence[tuple[str, str]]
    ) -> Iterator[model.Finding]:
        classic = [seen for name, seen in names if name.startswith('eth')]
        if not classic or not _predictable(guest):
            return
        files = boot_files.find(guest)
        unnamed = [
            f'{file.path}:{line.number}'
            for file, line in _command_lines(guest, files)
            if _IFNAMES not in line.arguments
        ]
        if unnamed or not files:
            where = ', '.join(unnamed) or 'no boot loader configuration'
            yield model.Finding(
                self.id,
                model.Severity.WARNING,
                'The network would not come up: eth0 gets another name',
                '; '.join(classic) + f'; without {_IFNAMES}: {where}',
                f'append {_IFNAMES} to the kernel command line',
                subject=_SUBJECT_NAMES,
                repair=f'appends {_IFNAMES}',
            )

    def _xen_names(
        self, guest: guest_room.Guest, names: Sequence[tuple[str, str]]
    ) -> Iterator[model.Finding]:
        for name, seen in names:
            if not name.startswith('enX') or guest.exists(_link(name)):
                continue
            mac = self._mac(int(name.removeprefix('enX')))
            yield model.Finding(
                self.id,
                model.Severity.WARNING,
                f'The network would not come up: no card is called {name}',
                seen,
                f'name the interface in the guest, or give {name} to its '
                f'address in a file such as {_link(name)}',
                subject=name,
                repair=f'gives the name to the card {mac}' if mac else None,
            )

    def _mac(self, index: int) -> str | None:
        nics = self.request.virtual_system.nics
        return nics[index].mac if index < len(nics) else None

    def _addresses(self, guest: guest_room.Guest) -> Iterator[model.Finding]:
        for path in guest.glob('/etc/sysconfig/network-scripts/ifcfg-*'):
            if not guest.is_file(path):
                continue
            text = guest.read_text(path)
            for number, line in enumerate(
                text_lines.without_ends(text), start=1
            ):
                matched = _HWADDR.match(line)
                if matched:
                    mac = matched[1].lower()
                    yield model.Finding(
                        self.id,
                        model.Severity.NOTE,
                        f'An interface is bound to the address {mac}',
                        f'{path}:{number}: {line.strip()}',
                        f'create the port with --mac-address {mac}, or '
                        'remove the line in the guest',
                        subject=path,
                    )

    def repair(
        self, guest: guest_room.Guest, finding: model.Finding
    ) -> Sequence[model.Change]:
        if finding.subject == _SUBJECT_NAMES:
            return [
                self._change(guest, path, before, after)
                for path, before, after in boot_files.change_all(
                    guest,
                    boot_files.find(guest),
                    boot_files.with_argument(_IFNAMES),
                )
            ]
        if finding.subject in _RULES:
            return self._comment(guest, finding.subject)
        return self._name(guest, finding.subject)

    def _comment(
        self, guest: guest_room.Guest, path: str
    ) -> list[model.Change]:
        before = guest.read_text(path)
        after = without_names(before)
        if after == before:
            return []
        guest.write_text(path, after)
        lines = [
            line
            for line in text_lines.without_ends(before)
            if _names_interface(line)
        ]
        return [
            self._change(
                guest,
                path,
                '; '.join(lines),
                'the same lines as comments',
                f'remove "# " before these lines of {path}',
            )
        ]

    def _name(self, guest: guest_room.Guest, name: str) -> list[model.Change]:
        path = _link(name)
        mac = self._mac(int(name.removeprefix('enX')))
        if mac is None or guest.exists(path):
            return []
        guest.call('mkdir_p', _LINKS)
        text = f'[Match]\nMACAddress={mac}\n\n[Link]\nName={name}\n'
        guest.write_text(path, text, 0o644)
        return [
            self._change(
                guest,
                path,
                'no such file',
                f'{mac} is {name}',
                shell.join('rm', '--', path),
            )
        ]

    def _change(
        self,
        guest: guest_room.Guest,
        path: str,
        before: str,
        after: str,
        undo: str | None = None,
    ) -> model.Change:
        return model.Change(
            self.id,
            guest.operating_system.root if guest.operating_system else '',
            path,
            before,
            after,
            'the guest configures its interfaces by these names',
            undo or f'in {path} replace "{after}" by "{before}"',
        )


def _link(name: str) -> str:
    return f'{_LINKS}/10-xenimport-{name}.link'


def _predictable(guest: guest_room.Guest) -> bool:
    """Whether its udev makes names such as ens3 (systemd 197 and later)."""
    if not any(guest.exists(path) for path in _UDEV):
        return False
    return any(
        guest.is_file(f'{directory}/net/99-default.link')
        or guest.is_file(f'{directory}/network/99-default.link')
        or guest.is_file(f'{directory}/80-net-name-slot.rules')
        for directory in (
            '/lib/systemd',
            '/usr/lib/systemd',
            '/lib/udev/rules.d',
            '/usr/lib/udev/rules.d',
        )
    )


def _command_lines(
    guest: guest_room.Guest, files: Sequence[boot_files.BootFile]
) -> Iterator[tuple[boot_files.BootFile, boot_files.Line]]:
    """The command lines that an editor would change."""
    for file in files:
        text = boot_files.read(guest, file)
        for line in boot_files.lines(text, file.kind):
            if file.kind != 'default' or line.text.startswith(
                'GRUB_CMDLINE_LINUX='
            ):
                yield file, line
