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

"""Consoles: hvc0 is Xen's, tty1 and ttyS0 are what KVM offers.

A getty that systemd waits for on hvc0 holds the boot up for 70 to 85
seconds, and a guest without one on tty1 and ttyS0 lets nobody in.
"""

from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Sequence
import posixpath
import re

from xenimport.guest import guest as guest_room
from xenimport import model
from xenimport import shell
from xenimport.remediation import base
from xenimport.remediation.linux import boot_files
from xenimport.remediation import text_lines

_UNITS = '/etc/systemd/system'
_INITTAB = '/etc/inittab'
_SECURETTY = '/etc/securetty'
#: Units that give a login, each with the template that it is made from.
_GETTYS = {
    'getty@tty1.service': 'getty@.service',
    'serial-getty@ttyS0.service': 'serial-getty@.service',
}
_MASKABLE = (*_GETTYS, *_GETTYS.values(), 'getty.target')
_XEN = re.compile(r'\b[hx]vc0\b')
_XEN_UNIT = re.compile(r'(serial-)?getty@[hx]vc\d\.service\Z')
_INITTAB_LINE = re.compile(r'[^#:\s]*:[^:]*:(respawn|askfirst|once):')


def with_consoles(arguments: list[str]) -> list[str]:
    """The kernel's arguments with tty0 and, as the last, ttyS0.

    hvc0 stays, before them: it does no harm, and on Xen it is needed.
    """
    consoles = [w for w in arguments if w.startswith('console=')]
    xen = [w for w in consoles if _XEN.search(w)]
    serial = [w for w in consoles if re.match(r'console=ttyS0\b', w)]
    if serial and (not xen or consoles[-1] == serial[-1]):
        return arguments
    replaced = {'console=tty0', *serial}
    kept = [word for word in arguments if word not in replaced]
    return [*kept, 'console=tty0', *(serial[-1:] or ['console=ttyS0'])]


def without_hvc(text: str) -> str:
    """An inittab with its getty of Xen's console on tty1 and ttyS0."""
    lines = text_lines.with_ends(text)
    active = [line for line in lines if _INITTAB_LINE.match(line)]
    edited = []
    for line in lines:
        if line not in active or not _XEN.search(line):
            edited.append(line)
            continue
        edited.append(f'# {line}')
        for terminal, short in (('tty1', '1'), ('ttyS0', 'S0')):
            if any(re.search(rf'\b{terminal}\b', other) for other in active):
                continue
            added = _XEN.sub(terminal, line.rstrip('\n')) + '\n'
            if not added.startswith(terminal):
                # sysvinit's first field is an id, busybox's a terminal.
                added = short + added[added.index(':') :]
            edited.append(added)
    return ''.join(edited)


class Console(base.Check):
    """Where the guest talks and lets people in."""

    id = 'linux.console'
    title = 'Consoles and logins are on tty1 and ttyS0'

    def diagnose(self, guest: guest_room.Guest) -> Iterator[model.Finding]:
        yield from self._kernel(guest)
        if guest.is_dir(_UNITS):
            yield from self._systemd(guest)
        yield from self._inittab(guest)
        yield from self._upstart(guest)
        if guest.is_file(_SECURETTY):
            if 'ttyS0' not in guest.read_text(_SECURETTY).split():
                yield self._finding(
                    model.Severity.NOTE,
                    'root may not log in on the serial console',
                    f'{_SECURETTY}: no line ttyS0',
                    f'add ttyS0 to {_SECURETTY}',
                    _SECURETTY,
                    'adds it',
                )

    def _finding(
        self,
        severity: model.Severity,
        title: str,
        evidence: str,
        fix: str,
        subject: str,
        repair: str,
    ) -> model.Finding:
        return model.Finding(
            self.id, severity, title, evidence, fix, subject, repair
        )

    def _kernel(self, guest: guest_room.Guest) -> Iterator[model.Finding]:
        for file in boot_files.find(guest):
            text = boot_files.read(guest, file)
            seen, xen = [], False
            for line in boot_files.lines(text, file.kind):
                before = list(line.arguments)
                is_edited = file.kind != 'default' or re.match(
                    r'GRUB_CMDLINE_LINUX=', line.text
                )
                if not is_edited or with_consoles(before) == before:
                    continue
                consoles = [w for w in before if w.startswith('console=')]
                xen = xen or any(_XEN.search(word) for word in consoles)
                said = ' '.join(consoles) or 'no console='
                seen.append(f'{file.path}:{line.number}: {said}')
            if seen:
                yield self._finding(
                    model.Severity.WARNING if xen else model.Severity.NOTE,
                    'The kernel does not write to the serial console',
                    '; '.join(seen),
                    'append console=tty0 console=ttyS0 to the kernel command '
                    f'line in {file.path}',
                    file.path,
                    'appends console=tty0 console=ttyS0',
                )

    def _systemd(self, guest: guest_room.Guest) -> Iterator[model.Finding]:
        wrong = [*_xen_units(guest), *_masked(guest), *_unwanted(guest)]
        if wrong:
            yield self._finding(
                model.Severity.WARNING,
                "systemd offers its logins on Xen's console",
                '; '.join(wrong),
                'systemctl disable serial-getty@hvc0; systemctl unmask and '
                'enable getty@tty1 serial-getty@ttyS0',
                _UNITS,
                'removes and makes the links that systemctl would',
            )

    def _inittab(self, guest: guest_room.Guest) -> Iterator[model.Finding]:
        if not guest.is_file(_INITTAB):
            return
        text = guest.read_text(_INITTAB)
        if without_hvc(text) == text:
            return
        seen = [
            f'{_INITTAB}:{number}: {line.strip()}'
            for number, line in enumerate(
                text_lines.without_ends(text), start=1
            )
            if _INITTAB_LINE.match(line) and _XEN.search(line)
        ]
        yield self._finding(
            model.Severity.WARNING,
            "init offers a login on Xen's console",
            '; '.join(seen),
            f'replace hvc0 in {_INITTAB} by tty1 and ttyS0',
            _INITTAB,
            'makes the line a comment, adds tty1 and ttyS0',
        )

    def _upstart(self, guest: guest_room.Guest) -> Iterator[model.Finding]:
        for path in guest.glob('/etc/init/*.conf'):
            override = path.removesuffix('.conf') + '.override'
            if guest.exists(override) or not guest.is_file(path):
                continue
            for number, line in enumerate(
                text_lines.without_ends(guest.read_text(path)), start=1
            ):
                if re.match(r'\s*exec\b.*getty\b', line) and _XEN.search(line):
                    yield self._finding(
                        model.Severity.WARNING,
                        "upstart offers a login on Xen's console",
                        f'{path}:{number}: {line.strip()}',
                        f'write "manual" to {override}',
                        path,
                        'does so, and makes a job for ttyS0',
                    )
                    break

    def repair(
        self, guest: guest_room.Guest, finding: model.Finding
    ) -> Sequence[model.Change]:
        subject = finding.subject
        if subject == _UNITS:
            return self._repair_systemd(guest)
        if subject == _INITTAB:
            return self._rewrite(
                guest, subject, without_hvc(guest.read_text(subject))
            )
        if subject == _SECURETTY:
            text = guest.read_text(subject)
            if 'ttyS0' in text.split():
                return ()
            return self._rewrite(guest, subject, text.rstrip() + '\nttyS0\n')
        if subject.startswith('/etc/init/'):
            return self._repair_upstart(guest, subject)
        # A grub.cfg may have been made since: so all, not only this one.
        return [
            self._change(guest, path, before, after)
            for path, before, after in boot_files.change_all(
                guest, boot_files.find(guest), with_consoles
            )
        ]

    def _rewrite(
        self, guest: guest_room.Guest, path: str, after: str
    ) -> list[model.Change]:
        before = guest.read_text(path)
        if before == after:
            return []
        guest.write_text(path, after)
        old, new = (
            text_lines.without_ends(before),
            text_lines.without_ends(after),
        )
        return [
            self._change(
                guest,
                path,
                '; '.join(line for line in old if line not in new),
                '; '.join(line for line in new if line not in old),
            )
        ]

    def _repair_systemd(self, guest: guest_room.Guest) -> list[model.Change]:
        changes = []
        for path in (*_xen_units(guest), *_masks(guest)):
            target = _target(guest, path)
            guest.call('rm_f', path)
            undo = (
                shell.join('ln', '-s', '--', target, path)
                if target
                else shell.join('touch', '--', path)
            )
            changes.append(
                self._change(guest, path, f'link to {target}', 'none', undo)
            )
        for path, template in _links(guest):
            guest.call('mkdir_p', posixpath.dirname(path))
            guest.call('ln_sf', template, path)
            changes.append(
                self._change(
                    guest,
                    path,
                    'none',
                    f'link to {template}',
                    shell.join('rm', '--', path),
                )
            )
        return changes

    def _repair_upstart(
        self, guest: guest_room.Guest, path: str
    ) -> list[model.Change]:
        override = path.removesuffix('.conf') + '.override'
        if guest.exists(override):
            return []
        guest.write_text(override, 'manual\n', 0o644)
        changes = [
            self._change(
                guest,
                override,
                'none',
                'manual',
                shell.join('rm', '--', override),
            )
        ]
        job = '/etc/init/ttyS0.conf'
        if not guest.exists(job):
            text = _XEN.sub('ttyS0', guest.read_text(path))
            guest.write_text(job, text, 0o644)
            changes.append(
                self._change(
                    guest,
                    job,
                    'none',
                    f'as {path}, on ttyS0',
                    shell.join('rm', '--', job),
                )
            )
        return changes

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
            'KVM has consoles on tty1 and ttyS0, and none on hvc0',
            undo or f'in {path} replace "{after}" by "{before}"',
        )


def _xen_units(guest: guest_room.Guest) -> list[str]:
    """Links that have systemd wait for Xen's console."""
    return [
        f'{_UNITS}/{directory}/{name}'
        for directory in guest.listdir(_UNITS)
        if directory.endswith(('.wants', '.requires'))
        for name in guest.listdir(f'{_UNITS}/{directory}')
        if _XEN_UNIT.match(name)
    ]


def _target(guest: guest_room.Guest, path: str) -> str:
    """Where a symbolic link points, '' if it is none."""
    directory, name = posixpath.split(path)
    return str(guest.call('readlinklist', directory, [name])[0])


def _masks(guest: guest_room.Guest) -> list[str]:
    """Units of logins that are masked: links to /dev/null, or empty."""
    present = set(guest.listdir(_UNITS))
    found = []
    for unit in _MASKABLE:
        path = f'{_UNITS}/{unit}'
        if unit not in present:
            continue
        target = _target(guest, path)
        if target == '/dev/null' or (
            not target and guest.is_file(path) and not guest.read(path)
        ):
            found.append(path)
    return found


def _masked(guest: guest_room.Guest) -> list[str]:
    return [f'{path} is masked' for path in _masks(guest)]


def _links(guest: guest_room.Guest) -> list[tuple[str, str]]:
    """Links that are needed and not there, each with its target."""
    wants = f'{_UNITS}/getty.target.wants'
    present = set(guest.listdir(wants))
    found = []
    for unit, template in _GETTYS.items():
        for directory in ('/lib/systemd/system', '/usr/lib/systemd/system'):
            if unit not in present and guest.is_file(
                f'{directory}/{template}'
            ):
                found.append((f'{wants}/{unit}', f'{directory}/{template}'))
                break
    return found


def _unwanted(guest: guest_room.Guest) -> list[str]:
    return [f'{path} does not exist' for path, _target in _links(guest)]
