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


"""AttemptResume (0x26000005, Microsoft's BcdBootMgrElementTypes)."""

from __future__ import annotations

import unittest

from xenimport import model
from xenimport.remediation.windows import boot_resume
from xenimport.tests import bcd_stores
from xenimport.tests.unit.remediation import windows_boot
from xenimport.tests.unit.remediation import windows_fakes

KEY = f'Objects\\{bcd_stores.BOOTMGR}\\Elements\\26000005'


def guest(
    value: tuple[int, bytes] | None, files: dict[str, bytes] | None = None
) -> windows_fakes.FakeWindows:
    store = windows_boot.genuine()
    if value is not None:
        bcd_stores.put_element(store, bcd_stores.BOOTMGR, KEY[-8:], value)
    return windows_boot.guest(store, files=files)


class ResumeTest(unittest.TestCase):
    def found(
        self, made: windows_fakes.FakeWindows, *accept: str
    ) -> list[model.Finding]:
        self.check = boot_resume.BootResume(
            windows_boot.request(accept=frozenset(accept))
        )
        return list(self.check.diagnose(windows_boot.real(made)))

    def assert_repaired(
        self, made: windows_fakes.FakeWindows, *accept: str
    ) -> None:
        (finding,) = self.found(made, *accept)
        self.assertEqual(model.Severity.WARNING, finding.severity)
        real = windows_boot.real(made)
        (change,) = self.check.repair(real, finding)
        self.assertEqual(f'BCD\\{KEY}, value Element', change.path)
        self.assertEqual('/dev/sda1', change.target)
        made.commit()
        tree = made.hive('/dev/sda1', 'Boot/BCD')
        self.assertEqual(b'\0', tree[KEY][0].data)
        self.assertEqual([], self.found(made, *accept))
        self.assertEqual([], list(self.check.repair(real, finding)))

    def test_not_set(self) -> None:
        self.assertEqual([], self.found(guest(None)))
        self.assertEqual([], self.found(guest(bcd_stores.boolean(False))))
        self.assertEqual([], self.found(windows_boot.guest()))

    def test_no_session(self) -> None:
        self.assert_repaired(guest(bcd_stores.boolean(True)))

    def test_a_session_that_is_there(self) -> None:
        made = guest(bcd_stores.boolean(True), {'hiberfil.sys': b'hibr'})
        self.assertEqual([], self.found(made))

    def test_a_session_that_the_user_gives_up(self) -> None:
        made = guest(bcd_stores.boolean(True), {'Hiberfil.sys': b'hibr'})
        self.assert_repaired(made, 'windows.ntfs-hibernated')

    def test_wrong_type(self) -> None:
        self.assertEqual([], self.found(guest((4, b'\1\0\0\0'))))
