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


"""The script for the first boot."""

import os
import tempfile
import unittest

from xenimport import exceptions
from xenimport.guest import registry
from xenimport import model
from xenimport.remediation.windows import first_boot
from xenimport.tests.unit.remediation import fakes
from xenimport.tests.unit.remediation import windows_fakes

_SYSTEM = 'Windows/System32/config/SYSTEM'
_STATE = 'Microsoft\\Windows\\CurrentVersion\\Setup\\State'
#: The values that setup leaves when it is done: those of the Windows 10
#: hive in dissect.regf's tests.
_DONE = {
    'CmdLine': '',
    'OOBEInProgress': 0,
    'RespecializeCmdLine': 'Sysprep\\sysprep.exe /respecialize /quiet',
    'RestartSetup': 0,
    'SetupPhase': 0,
    'SetupSupported': 1,
    'SetupType': 0,
    'SystemSetupInProgress': 0,
}


def make(state: str = 'IMAGE_STATE_COMPLETE', **setup: int | str):
    values = [
        registry.Value.dword(name, value)
        if isinstance(value, int)
        else registry.Value.sz(name, value)
        for name, value in {**_DONE, **setup}.items()
    ]
    return windows_fakes.FakeWindows(
        hives={
            '/dev/sda2': {
                _SYSTEM: {'Setup': values},
                'Windows/System32/config/SOFTWARE': {
                    _STATE: [registry.Value.sz('ImageState', state)]
                },
            }
        },
    )


def setup_of(fake: windows_fakes.FakeWindows) -> dict[str, registry.Value]:
    return {
        value.name: value for value in fake.hive('/dev/sda2', _SYSTEM)['Setup']
    }


class FirstBootTest(unittest.TestCase):
    def setUp(self) -> None:
        holder = tempfile.TemporaryDirectory()
        self.addCleanup(holder.cleanup)
        self.directory = holder.name

    def check(
        self, data: bytes = b'echo hello\r\n', name: str = 'Mine.CMD'
    ) -> first_boot.FirstBoot:
        path = os.path.join(self.directory, name)
        with open(path, 'wb') as stream:
            stream.write(data)
        return first_boot.FirstBoot(fakes.request(first_boot_script=path))

    def files(self, fake: windows_fakes.FakeWindows) -> dict[str, bytes]:
        return {
            path.rpartition('/')[2]: data
            for path, data in fake.files.items()
            if '/xenimport/' in path
        }

    def test_off_by_default(self):
        check = first_boot.FirstBoot(fakes.request())
        for fake in (make(), make(SetupType=2)):
            self.assertEqual(([], []), windows_fakes.treat(check, fake))

    def test_installs(self):
        fake = make()
        check = self.check()
        (found,), changes = windows_fakes.treat(check, fake)
        self.assertEqual('windows.first-boot', found.id)
        self.assertIs(model.Severity.NOTE, found.severity)
        self.assertIn('/sda2/Windows/xenimport/first-boot.cmd', fake.files)
        files = self.files(fake)
        self.assertEqual({'first-boot.cmd', 'start.cmd'}, set(files))
        self.assertEqual(b'echo hello\r\n', files['first-boot.cmd'])
        values = setup_of(fake)
        self.assertEqual(
            registry.Value(
                'CmdLine',
                registry.SZ,
                'cmd.exe /c %SystemRoot%\\xenimport\\start.cmd\0'.encode(
                    'utf-16-le'
                ),
            ),
            values['CmdLine'],
        )
        self.assertEqual(
            registry.Value('SetupType', registry.DWORD, b'\2\0\0\0'),
            values['SetupType'],
        )
        for name in set(_DONE) - {'CmdLine', 'SetupType'}:
            self.assertIn(
                str(_DONE[name]),
                (values[name].text, str(values[name].number)),
            )
        self.assertEqual(4, len(changes))
        self.assertEqual(
            {
                'Windows/xenimport/first-boot.cmd',
                'Windows/xenimport/start.cmd',
                'HKLM\\SYSTEM\\Setup, value CmdLine',
                'HKLM\\SYSTEM\\Setup, value SetupType',
            },
            {change.path for change in changes},
        )
        self.assertEqual(([], []), windows_fakes.treat(check, fake))

    def test_nothing_can_run_twice(self):
        """The values are put back before anything of the user's runs."""
        fake = make()
        windows_fakes.treat(self.check(), fake)
        text = self.files(fake)['start.cmd'].decode('ascii')
        self.assertEqual(text.count('\n'), text.count('\r\n'))
        lines = text.split('\r\n')
        self.assertEqual('', lines[-1])
        commands = [line for line in lines[1:-1] if line[:4] != 'rem ']
        self.assertEqual(
            'reg.exe add "HKLM\\SYSTEM\\Setup" /v SetupType /t REG_DWORD /d 0 '
            '/f',
            commands[0],
        )
        self.assertEqual('if errorlevel 1 exit /b 1', commands[1])
        self.assertEqual(
            'reg.exe add "HKLM\\SYSTEM\\Setup" /v CmdLine /t REG_SZ /d "" /f',
            commands[2],
        )
        (at,) = [
            number
            for number, line in enumerate(commands)
            if 'first-boot.cmd" >' in line
        ]
        self.assertEqual(3, at)
        self.assertEqual('del /f /q "%~dp0first-boot.cmd"', commands[-2])
        self.assertEqual('del /f /q "%~f0" & exit', commands[-1])

    def test_power_shell(self):
        fake = make()
        data = b'\xef\xbb\xbf"\xc3\xbc"\nWrite-Host\r\n'
        windows_fakes.treat(self.check(data, 'a.ps1'), fake)
        files = self.files(fake)
        self.assertEqual(data, files['first-boot.ps1'])
        self.assertIn(
            b'powershell.exe -NoLogo -NoProfile -NonInteractive '
            b'-ExecutionPolicy Bypass -File "%~dp0first-boot.ps1" >',
            files['start.cmd'],
        )

    def test_another_script_than_last_time(self):
        fake = make()
        windows_fakes.treat(self.check(b'one'), fake)
        check = self.check(b'two')
        (found,), (change,) = windows_fakes.treat(check, fake)
        self.assertIn('first-boot.cmd', found.evidence)
        self.assertEqual('3 bytes', change.before)
        self.assertEqual(b'two', self.files(fake)['first-boot.cmd'])

    def test_files_without_the_values(self):
        """What a Windows that has started once leaves is put in again."""
        fake = make()
        check = self.check()
        windows_fakes.treat(check, fake)
        tree = fake.hive('/dev/sda2', _SYSTEM)
        tree['Setup'] = [registry.Value.sz('CmdLine', '')]
        (found,), _changes = windows_fakes.treat(check, fake)
        self.assertIn('SetupType REG_DWORD 0x2', found.evidence)

    def test_setup_in_progress_is_left_alone(self):
        for name, fake in (
            ('SetupType', make(SetupType=2, CmdLine='oobe\\windeploy.exe')),
            ('SetupType', make(SetupType=1)),
            ('SystemSetupInProgress', make(SystemSetupInProgress=1)),
            ('OOBEInProgress', make(OOBEInProgress=1)),
            ('ImageState', make('IMAGE_STATE_GENERALIZE_RESEAL_TO_OOBE')),
            ('ImageState', make('IMAGE_STATE_\x1b[2J' + 'A' * 70_000)),
        ):
            with self.subTest(name):
                before = setup_of(fake)
                check = self.check()
                (found,), changes = windows_fakes.treat(check, fake)
                self.assertIs(model.Severity.BLOCKER, found.severity)
                self.assertIn(f'value {name}: ', found.evidence)
                self.assertLess(len(found.evidence), 500)
                self.assertNotIn('\x1b', found.evidence)
                self.assertIsNone(found.repair)
                self.assertTrue(found.loss)
                self.assertEqual([], changes)
                self.assertEqual(before, setup_of(fake))
                self.assertEqual({}, self.files(fake))

    def test_setup_in_progress_with_our_own_command(self):
        fake = make()
        check = self.check()
        windows_fakes.treat(check, fake)
        tree = fake.hive('/dev/sda2', _SYSTEM)
        tree['Setup'] = [
            *(item for item in tree['Setup'] if item.name[:4] != 'OOBE'),
            registry.Value.dword('OOBEInProgress', 1),
        ]
        (found,), changes = windows_fakes.treat(check, fake)
        self.assertIs(model.Severity.BLOCKER, found.severity)
        self.assertNotIn('SetupType', found.evidence)
        self.assertEqual([], changes)

    def test_nothing_known_of_setup(self):
        fake = make()
        fake.hive('/dev/sda2', _SYSTEM).pop('Setup')
        check = self.check()
        _found, changes = windows_fakes.treat(check, fake)
        self.assertEqual({'CmdLine', 'SetupType'}, set(setup_of(fake)))
        # The key as well.
        self.assertEqual(5, len(changes))
        self.assertEqual(([], []), windows_fakes.treat(check, fake))


class ScriptTest(unittest.TestCase):
    def setUp(self) -> None:
        holder = tempfile.TemporaryDirectory()
        self.addCleanup(holder.cleanup)
        self.directory = holder.name

    def refused(self, name: str, data: bytes | None, found: str) -> None:
        path = os.path.join(self.directory, name)
        if data is not None:
            with open(path, 'wb') as stream:
                stream.write(data)
        with self.assertRaises(exceptions.ConfigurationError) as caught:
            first_boot.read_script(path)
        self.assertEqual('windows.first-boot-script', caught.exception.id)
        self.assertEqual(path, caught.exception.where)
        self.assertIn(found, caught.exception.found or '')

    def test_kinds(self):
        self.refused('a.exe', b'MZ', 'ends in .exe')
        self.refused('script', b'#!/bin/sh', 'ends in nothing')

    def test_size(self):
        self.refused('a.cmd', bytes((1 << 20) + 1), 'more bytes')
        path = os.path.join(self.directory, 'b.bat')
        with open(path, 'wb') as stream:
            stream.write(bytes(1 << 20))
        script = first_boot.read_script(path)
        self.assertEqual((1 << 20, '.bat'), (len(script.data), script.kind))

    def test_missing(self):
        self.refused('a.cmd', None, 'No such file')


if __name__ == '__main__':
    unittest.main()
