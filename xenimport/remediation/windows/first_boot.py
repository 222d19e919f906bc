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


"""A script that Windows runs once, before anybody can log on.

Windows starts what ``CmdLine`` of ``HKLM\\SYSTEM\\Setup`` says, as SYSTEM,
when ``SetupType`` is 2, and goes on to the logon when it ends. A wrapper
of ours is started: it first puts both values back, so that nothing can run
twice, then runs the script and removes it and itself. The log stays.

Sources: Microsoft's KB 939857 for the two values; its forum of deployment
("SetupType and CmdLine") for what the numbers do; its "Windows Setup
States" for ``ImageState``. The wrapper was tried with the cmd.exe and the
reg.exe of Wine 8.0 alone, and that Windows starts it on none of ours.
"""

from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Sequence
import functools
import os
import typing

from xenimport import exceptions
from xenimport.guest import guest as guest_room
from xenimport.guest import registry
from xenimport import model
from xenimport.remediation.windows import base
from xenimport.remediation.windows import system

if typing.TYPE_CHECKING:
    from xenimport.guest import volumes

_DIRECTORY = 'Windows/xenimport'
_WRAPPER = f'{_DIRECTORY}/start.cmd'
#: What runs a script, by the ending of its name. Each in a process of its
#: own: an "exit" in it ends no more than that.
_CALLS = {
    '.cmd': 'cmd.exe /c "%~dp0first-boot.cmd"',
    '.bat': 'cmd.exe /c "%~dp0first-boot.bat"',
    '.ps1': 'powershell.exe -NoLogo -NoProfile -NonInteractive '
    '-ExecutionPolicy Bypass -File "%~dp0first-boot.ps1"',
}
#: Bytes. What is larger is no script, but something for it to download.
_LIMIT = 1 << 20
_SETUP = 'Setup'
_COMMAND = 'cmd.exe /c %SystemRoot%\\xenimport\\start.cmd'
_RUN_THEN_LOGON = 2
_STATE = 'Microsoft\\Windows\\CurrentVersion\\Setup\\State'
_COMPLETE = 'IMAGE_STATE_COMPLETE'
#: Characters of a value that are shown.
_SHOWN = 80


class Script(typing.NamedTuple):
    """The user's script.

    :ivar kind: the ending of its name: ``.cmd``, ``.bat`` or ``.ps1``
    """

    kind: str
    data: bytes

    @property
    def files(self) -> dict[str, bytes]:
        """What goes into the guest, by its path in Windows' volume."""
        return {
            f'{_DIRECTORY}/first-boot{self.kind}': self.data,
            _WRAPPER: _wrapper(self.kind),
        }


def read_script(path: str) -> Script:
    """The script that the user named.

    :raises ConfigurationError: if it is none that can be taken
    """
    kind = os.path.splitext(path)[1].lower()
    found = ''
    data = b''
    if kind not in _CALLS:
        found = f'the name ends in {kind or "nothing"}'
    try:
        with open(path, 'rb') as stream:
            data = stream.read(_LIMIT + 1)
    except OSError as error:
        found = error.strerror or str(error)
    if len(data) > _LIMIT:
        found = 'more bytes than that'
    if found:
        raise exceptions.ConfigurationError(
            'windows.first-boot-script',
            'The script for the first boot cannot be taken',
            where=path,
            expected='a file of at most 1 MiB whose name ends in '
            + ', '.join(_CALLS),
            found=found,
            fix='name another file with --first-boot-script; let a short '
            'script fetch what is larger',
        )
    return Script(kind, data)


def _wrapper(kind: str) -> bytes:
    """What Windows starts.

    Without the first value put back it ends: rather no script than one
    that runs at every start.
    """
    lines = [
        '@echo off',
        'rem Written by xenimport. Runs one script once.',
        f'reg.exe add "HKLM\\SYSTEM\\{_SETUP}" /v SetupType /t REG_DWORD '
        '/d 0 /f',
        'if errorlevel 1 exit /b 1',
        f'reg.exe add "HKLM\\SYSTEM\\{_SETUP}" /v CmdLine /t REG_SZ /d "" /f',
        f'{_CALLS[kind]} > "%~dp0first-boot.log" 2>&1',
        'echo The script ended with %errorlevel%. >> "%~dp0first-boot.log"',
        f'del /f /q "%~dp0first-boot{kind}"',
        # One line, for behind it there is no file to read on in.
        'del /f /q "%~f0" & exit',
    ]
    return '\r\n'.join([*lines, '']).encode('ascii')


class FirstBoot(base.WindowsCheck):
    """The script that the user wants to run once."""

    id = 'windows.first-boot'
    title = 'The script for the first boot is in place, if one was given'

    @functools.cached_property
    def _script(self) -> Script:
        return read_script(self.request.first_boot_script or '')

    def examine(self, guest: guest_room.Guest) -> Iterator[model.Finding]:
        if self.request.first_boot_script is None:
            return
        reasons = _in_progress(guest)
        if reasons:
            yield self._refusal(reasons)
            return
        missing = self._missing(guest)
        if missing:
            yield model.Finding(
                self.id,
                model.Severity.NOTE,
                'The script for the first boot is not in the guest yet',
                f'not there: {", ".join(missing)}; '
                f'--first-boot-script {self.request.first_boot_script} was '
                'given',
                'run the script by hand after the first boot',
                subject=system.full_name('SYSTEM', _SETUP),
                repair=f'writes {_DIRECTORY} and has Windows start it once '
                '(not proved on a real Windows)',
            )

    def _refusal(self, reasons: list[str]) -> model.Finding:
        return model.Finding(
            self.id,
            model.Severity.BLOCKER,
            'Windows has a setup of its own to run first',
            '; '.join(reasons),
            'leave out --first-boot-script and put the script into the '
            'answer file of that setup (unattend.xml), or let the setup '
            'finish on Xen and export the guest again',
            subject=system.full_name('SYSTEM', _SETUP),
            loss='the script is not put into the guest; its setup runs as '
            'it would have without',
        )

    def _missing(self, guest: guest_room.Guest) -> list[str]:
        """What the repair would write."""
        volume = system.volume(guest)
        missing = [
            path
            for path, data in self._script.files.items()
            if not _holds(volume, path, data)
        ]
        key = system.system_hive(guest).key(_SETUP)
        for value in _values():
            found = key.value(value.name) if key else None
            if found is None or (found.type, found.data) != (
                value.type,
                value.data,
            ):
                name = system.full_name('SYSTEM', _SETUP)
                missing.append(f'{name}, value {value.name} {value}')
        return missing

    def repair(
        self, guest: guest_room.Guest, finding: model.Finding
    ) -> Sequence[model.Change]:
        reason = 'the script was asked for with --first-boot-script'
        volume = system.volume(guest)
        changes = []
        for path, data in self._script.files.items():
            if _holds(volume, path, data):
                continue
            before = volume.size(path)
            volume.write(path, data)
            changes.append(
                model.Change(
                    self.id,
                    volume.device,
                    path,
                    'absent' if before is None else f'{before} bytes',
                    f'{len(data)} bytes',
                    reason,
                    f'delete \\{path.replace("/", chr(92))}',
                )
            )
        hive = system.system_hive(guest)
        edits: list[registry.Edit] = []
        for value in _values():
            edits += hive.set_value(_SETUP, value)
        return changes + self.changes(guest, edits, reason)


def _values() -> tuple[registry.Value, ...]:
    return (
        registry.Value.sz('CmdLine', _COMMAND),
        registry.Value.dword('SetupType', _RUN_THEN_LOGON),
    )


def _holds(volume: volumes.Volume, path: str, data: bytes) -> bool:
    """Whether a file has these very bytes."""
    return volume.size(path) == len(data) and (
        volume.read(path, _LIMIT) == data
    )


def _in_progress(guest: guest_room.Guest) -> list[str]:
    """Why Windows' own setup will run at the next start."""
    reasons = []
    name = system.full_name('SYSTEM', _SETUP)
    key = system.system_hive(guest).key(_SETUP)
    ours = key is not None and key.text('CmdLine') == _COMMAND
    for word in ('SetupType', 'SystemSetupInProgress', 'OOBEInProgress'):
        number = key.number(word) if key else None
        if number and not (ours and word == 'SetupType'):
            reasons.append(f'{name}, value {word}: {number}')
    state = system.software_hive(guest).key(_STATE)
    image = state.text('ImageState') if state else ''
    if image and image.upper() != _COMPLETE:
        place = system.full_name('SOFTWARE', _STATE)
        shown = exceptions.one_line(image[:_SHOWN])
        reasons.append(f'{place}, value ImageState: {shown}')
    return reasons
