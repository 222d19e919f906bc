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


"""The entry that starts Windows: its files, and what surprises in it.

Measured with genuine boot managers: a loader that is not there stops with
0xc000000f, one that is no program with 0xc000007b. That one for the other
kind of firmware, or another processor, cannot start follows from what it
is; the code on the screen then is not known.
"""

from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Sequence
import struct

from xenimport.guest import bcd
from xenimport.guest import guest as guest_room
from xenimport.guest import volumes
from xenimport import model
from xenimport.remediation.windows import base
from xenimport.remediation.windows import boot_configuration
from xenimport.remediation.windows import system

_ROOT = '\\Windows'
#: Bytes that a program's headers begin in.
_HEAD = 4096
#: Machines of a PE file ("PE Format", Microsoft), by architecture.
_MACHINES = {'amd64': 0x8664, 'x86': 0x014C, 'arm64': 0xAA64}


class BootLoader(base.WindowsCheck):
    """The loader's file and Windows' directory, as the store names them."""

    id = 'windows.boot-loader'
    title = 'The default entry names the loader of this Windows'

    def examine(self, guest: guest_room.Guest) -> Iterator[model.Finding]:
        configuration = boot_configuration.load(guest)
        loader = configuration.loader if configuration else None
        if configuration is None or loader is None:
            return
        volume = system.volume(guest)
        wanted = boot_configuration.loader_path(configuration.firmware)
        path = loader.text(bcd.APPLICATION_PATH)
        if _fits(volume, path, wanted):
            yield from self._program(guest, volume, path)
        else:
            yield self._wrong_path(volume, loader, path, wanted)
        root = loader.text(bcd.SYSTEM_ROOT)
        if _normal(root) != _normal(_ROOT):
            yield self._wrong_root(loader, root)

    def _wrong_path(
        self,
        volume: volumes.Volume,
        loader: bcd.Object,
        path: str,
        wanted: str,
    ) -> model.Finding:
        there = volume.is_file(wanted)
        evidence = (
            f'BCD: ApplicationPath of {loader.id} is '
            f'{_shown(path) or "missing"}; expected {wanted}'
        )
        if not there:
            evidence += f', which is not on {volume.device} either'
        return model.Finding(
            self.id,
            model.Severity.BLOCKER,
            'The default entry names no loader that this guest can start',
            evidence,
            'on Xen, start the installation medium and run "sfc /scannow '
            '/offbootdir=C:\\ /offwindir=C:\\Windows", then export again',
            subject=loader.element_key(bcd.APPLICATION_PATH),
            repair=f'names {wanted}' if there else None,
        )

    def _wrong_root(self, loader: bcd.Object, root: str) -> model.Finding:
        return model.Finding(
            self.id,
            model.Severity.BLOCKER,
            'The default entry names another directory than Windows',
            f'BCD: SystemRoot of {loader.id} is {_shown(root) or "missing"};'
            f' expected {_ROOT}',
            'run "bcdboot C:\\Windows" from an installation medium, and '
            'export the guest again',
            subject=loader.element_key(bcd.SYSTEM_ROOT),
            repair=f'names {_ROOT}',
        )

    def _program(
        self, guest: guest_room.Guest, volume: volumes.Volume, path: str
    ) -> Iterator[model.Finding]:
        architecture = system.release(guest).architecture
        expected = _MACHINES.get(architecture)
        found = _machine(volume, path)
        if expected is None or found == expected:
            return
        yield model.Finding(
            self.id,
            model.Severity.BLOCKER,
            "Windows' loader is no program for this guest's processor",
            f'{path} on {volume.device}: '
            + ('no PE file' if found is None else f'machine {found:#06x}')
            + f'; expected machine {expected:#06x} ({architecture})',
            'on Xen, start the installation medium and run "sfc /scannow '
            '/offbootdir=C:\\ /offwindir=C:\\Windows", then export again',
            subject=path,
        )

    def repair(
        self, guest: guest_room.Guest, finding: model.Finding
    ) -> Sequence[model.Change]:
        configuration = boot_configuration.load(guest)
        loader = configuration.loader if configuration else None
        if configuration is None or loader is None:
            return ()
        wanted = boot_configuration.loader_path(configuration.firmware)
        volume = system.volume(guest)
        path = loader.text(bcd.APPLICATION_PATH)
        texts = {}
        if not _fits(volume, path, wanted) and volume.is_file(wanted):
            texts[bcd.APPLICATION_PATH] = wanted
        if _normal(loader.text(bcd.SYSTEM_ROOT)) != _normal(_ROOT):
            texts[bcd.SYSTEM_ROOT] = _ROOT
        for number, text in texts.items():
            key = loader.element_key(number)
            if key == finding.subject and configuration.store is not None:
                edits = configuration.store.hive.set_value(
                    key, bcd.text_value(text)
                )
                reason = 'it is where Windows has its own files'
                return boot_configuration.changes(
                    self.id, guest, configuration, edits, reason
                )
        return ()


def _normal(path: str) -> str:
    return path.replace('/', '\\').rstrip('\\').upper()


def _shown(path: str) -> str:
    return path if len(path) <= 260 else f'{path[:260]}...'


def _fits(volume: volumes.Volume, path: str, wanted: str) -> bool:
    """Whether a path is a loader for the same firmware, and is there."""
    suffix = wanted.rpartition('.')[2]
    if _normal(path).rpartition('.')[2] != suffix.upper():
        return False
    return len(path) <= 260 and volume.is_file(path)


def _machine(volume: volumes.Volume, path: str) -> int | None:
    """What processor a program is for; None where it is no program."""
    data = volume.start(path, _HEAD)
    if len(data) < 0x40 or data[:2] != b'MZ':
        return None
    (start,) = struct.unpack_from('<I', data, 0x3C)
    header = data[start : start + 6]
    if len(header) < 6 or header[:4] != b'PE\0\0':
        return None
    return int.from_bytes(header[4:], 'little')


class BootFlags(base.WindowsCheck):
    """Settings of the default entry that are not for everyday use.

    They are told, never changed: somebody set them.
    """

    id = 'windows.boot-flags'
    title = 'The default entry has no settings for tests or repair'

    def examine(self, guest: guest_room.Guest) -> Iterator[model.Finding]:
        configuration = boot_configuration.load(guest)
        loader = configuration.loader if configuration else None
        for number, (option, meaning) in _FLAGS.items():
            value = loader.number(number) if loader else None
            # Safe mode is a number, and zero is one of its kinds.
            if value or (value == 0 and number == bcd.SAFE_BOOT):
                yield model.Finding(
                    self.id,
                    model.Severity.WARNING,
                    f'The guest will start with "{option}"',
                    f'BCD: {option} of the default entry is {value}: '
                    f'{meaning}',
                    'where it is not meant, in the guest run "bcdedit '
                    f'/deletevalue {option}"',
                    subject=option,
                )


_FLAGS = {
    bcd.TEST_SIGNING: ('testsigning', 'test-signed drivers are loaded'),
    bcd.NO_INTEGRITY_CHECKS: (
        'nointegritychecks',
        'signatures of drivers are not checked',
    ),
    bcd.SAFE_BOOT: (
        'safeboot',
        'Windows starts in safe mode, without most drivers',
    ),
    bcd.KERNEL_DEBUGGER_ENABLED: (
        'debug',
        'the kernel waits for a debugger on an error',
    ),
    bcd.BOOT_DEBUGGER_ENABLED: (
        'bootdebug',
        'the loader tries to reach a debugger',
    ),
}
