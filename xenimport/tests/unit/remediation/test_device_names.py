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


from __future__ import annotations

import unittest

from xenimport import model
from xenimport.remediation.linux import device_names
from xenimport.remediation.linux import disk_names
from xenimport.tests.unit.remediation import fakes


class NamesTest(unittest.TestCase):
    def test_parse(self) -> None:
        for name, disk, partition in (
            ('/dev/xvda1', 0, 1),
            ('/dev/xvdb', 1, None),
            ('/dev/hdc15', 2, 15),
            ('/dev/sdaa2', 26, 2),
            # 202 * 256 and 202 * 256 + 16: see xen-vbd-interface(7)
            ('/dev/disk/by-path/xen-vbd-51712-part2', 0, 2),
            ('/dev/disk/by-path/xen-vbd-51728', 1, None),
            ('/dev/disk/by-path/xen-vbd-768', 0, None),
        ):
            with self.subTest(name=name):
                self.assertEqual(
                    disk_names.DiskName(disk, partition),
                    disk_names.parse(name),
                )

    def test_stable_names(self) -> None:
        for name in ('UUID=1', '/dev/vg/root', '/dev/xvda0', 'proc', '/dev'):
            self.assertIsNone(disk_names.parse(name))


class DeviceNamesTest(unittest.TestCase):
    def _run(
        self, fstab: str, crypttab: str | None = None
    ) -> tuple[list[model.Finding], list[model.Finding], fakes.FakeGuest]:
        files = {'/etc/fstab': fstab}
        if crypttab:
            files['/etc/crypttab'] = crypttab
        guest = fakes.FakeGuest(files, system=fakes.operating_system())
        check = device_names.DeviceNames(fakes.request())
        found, _changes, left = fakes.run(check, guest)
        return found, left, guest

    def test_root(self) -> None:
        found, left, guest = self._run(
            '# comment\n/dev/xvda1 / ext4 defaults 0 1\n'
        )
        self.assertEqual('/etc/fstab:2: /dev/xvda1 on /', found[0].evidence)
        self.assertEqual('writes UUID=aaaa-1111', found[0].repair)
        self.assertEqual([], left)
        self.assertIn(
            'UUID=aaaa-1111 / ext4 defaults 0 1', guest.read_text('/etc/fstab')
        )

    def test_a_disk_that_is_not_there(self) -> None:
        found, left, guest = self._run('/dev/xvdb1 /data ext4 noatime 0 2\n')
        self.assertIs(model.Severity.BLOCKER, found[0].severity)
        self.assertEqual([], left)
        self.assertEqual(
            '/dev/xvdb1 /data ext4 noatime,nofail 0 2\n',
            guest.read_text('/etc/fstab'),
        )

    def test_an_essential_one_that_is_not_there(self) -> None:
        found, left, _guest = self._run('/dev/xvdb1 /usr ext4 ro 0 2\n')
        self.assertIsNone(found[0].repair)
        self.assertEqual(found, left)

    def test_nothing_to_do(self) -> None:
        found, _left, _guest = self._run(
            'proc /proc proc\n'
            'UUID=1 / ext4 ro 0 1\n'
            '/dev/xvdd /media/cdrom iso9660 ro,noauto 0 0\n'
            '/dev/xvdc1 /data ext4 nofail 0 0\n'
            '/dev/mapper/vg-home /home xfs defaults 0 0\n'
        )
        self.assertEqual([], found)

    def test_crypttab(self) -> None:
        found, left, guest = self._run(
            'proc /proc proc\n', 'swap /dev/xvdb2\nroot /dev/xvda1 none luks\n'
        )
        self.assertEqual(2, len(found))
        self.assertEqual(
            '/etc/crypttab:1: /dev/xvdb2 on swap', found[0].evidence[:35]
        )
        self.assertEqual([], left)
        self.assertEqual(
            'swap /dev/xvdb2 none nofail\nroot UUID=aaaa-1111 none luks\n',
            guest.read_text('/etc/crypttab'),
        )

    def test_not_understood(self) -> None:
        found, left, _guest = self._run('nonsense\n')
        self.assertIs(model.Severity.WARNING, found[0].severity)
        self.assertIsNone(found[0].repair)
        self.assertEqual(found, left)
