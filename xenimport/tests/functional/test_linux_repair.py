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


"""The sample guest is repaired once, and boots on both buses.

The same guest rebuilt by its own tool boots as well, and a disk that
fstab names in vain does not stop it.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator
import pathlib
import subprocess
import tempfile
import time
import unittest

from xenimport.guest import guest as guest_room
from xenimport.guest import session
from xenimport import model
from xenimport.remediation import base
from xenimport.remediation import disk
from xenimport.remediation.linux import driver
from xenimport.tests.functional import guests
from xenimport.tests.functional import qemu
from xenimport.workflow import diagnosis

_EXPECTED = {
    'linux.boot-code',
    'linux.boot-configuration',
    'linux.console',
    'linux.device-names',
    'linux.initramfs-virtio',
    'linux.module-blacklist',
    'linux.persistent-net',
    'linux.xen-guest-tools',
}


def _request(initramfs: str) -> base.Request:
    nic = model.Nic('eth0', guests.SAMPLE.mac)
    return base.Request(
        model.VirtualSystem(
            'sample', model.Package('sample.ova', 'ova'), (), nics=(nic,)
        ),
        initramfs=initramfs,
    )


class LinuxRepairTest(unittest.TestCase):
    directory: pathlib.Path
    raw: pathlib.Path
    found: tuple[model.Finding, ...]
    changes: tuple[model.Change, ...]
    left: tuple[model.Finding, ...]
    again: list[model.Change]
    rewritten: bool
    seconds: float
    fstab: str
    parts: str

    @classmethod
    def setUpClass(cls) -> None:
        super().setUpClass()
        temporary = tempfile.TemporaryDirectory(prefix='xenimport-repair-')
        cls.addClassCleanup(temporary.cleanup)
        cls.directory = pathlib.Path(temporary.name)
        cls.raw = cls.copy('appended.raw')
        with cls.opened(cls.raw) as guest:
            text = guest.read_text('/etc/fstab')
            guest.write_text(
                '/etc/fstab', text + '/dev/xvdb1 /data ext4 defaults 0 2\n'
            )
            doctor = cls.doctor(guest, 'append')
            started = time.monotonic()
            cls.found = doctor.diagnose()
            cls.changes = doctor.repair()
            cls.left = doctor.diagnose('verify')
            cls.seconds = time.monotonic() - started
            cls.fstab = guest.read_text('/etc/fstab')
            before = cls.hashes(guest)
            cls.again = cls.repaired_again(guest)
            cls.rewritten = before != cls.hashes(guest)
        cls.parts = '\n'.join(
            f'{run.phase:9}{run.id:28}{run.seconds:7.2f} s'
            for run in doctor.runs
        )
        print(f'\n{cls.parts}\nin all {cls.seconds:.2f} s')

    @classmethod
    def copy(cls, name: str) -> pathlib.Path:
        made = cls.directory / name
        source = guests.build().raw
        subprocess.run(['cp', '--sparse=always', source, made], check=True)
        return made

    @classmethod
    @contextlib.contextmanager
    def opened(cls, raw: pathlib.Path) -> Iterator[guest_room.Guest]:
        drives = [session.Drive(str(raw))]
        with session.Appliance(drives, str(cls.directory)) as appliance:
            guest = guest_room.Guest(appliance)
            guest.inspect()
            yield guest

    @classmethod
    def doctor(
        cls, guest: guest_room.Guest, initramfs: str
    ) -> diagnosis.Doctor:
        return diagnosis.Doctor(
            guest,
            [disk.DiskRemediation(), driver.LinuxRemediation()],
            _request(initramfs),
        )

    @classmethod
    def hashes(cls, guest: guest_room.Guest) -> dict[str, bytes]:
        """Digests of the files that the repair has changed."""
        return {
            change.path: hashlib.sha256(
                guest.read(change.path, 64 << 20)
            ).digest()
            for change in cls.changes
            if change.path.startswith('/') and guest.is_file(change.path)
        }

    @classmethod
    def repaired_again(cls, guest: guest_room.Guest) -> list[model.Change]:
        """What the checks change when they mend the first findings anew."""
        checks = {
            check.id: check
            for remediation in (
                disk.DiskRemediation(),
                driver.LinuxRemediation(),
            )
            for check in remediation.checks(_request('append'))
        }
        return [
            change
            for finding in cls.found
            for change in checks[finding.id].repair(guest, finding)
        ]

    def test_finds_all_that_is_wrong(self) -> None:
        self.assertEqual(_EXPECTED, {finding.id for finding in self.found})
        for finding in self.found:
            self.assertTrue(finding.repair, finding.id)

    def test_repairs_all_of_it(self) -> None:
        self.assertEqual((), self.left)
        self.assertEqual([], self.again)
        self.assertFalse(self.rewritten)
        self.assertEqual(_EXPECTED, {c.finding for c in self.changes})
        for change in self.changes:
            self.assertTrue(change.undo, change)

    def test_fstab(self) -> None:
        self.assertIn('/dev/xvdb1 /data ext4 defaults,nofail 0 2', self.fstab)
        self.assertNotIn('xvda', self.fstab)

    def test_takes_seconds(self) -> None:
        # On two idle cores under emulation it is less than ten.
        self.assertLess(self.seconds, 60, self.parts)

    def test_boots_on_virtio(self) -> None:
        boot = qemu.boot(self.raw, bus='virtio')
        self.assertTrue(boot.reached, str(boot))
        self.assertIn(guests.MARKER, boot.serial)

    def test_boots_on_scsi(self) -> None:
        boot = qemu.boot(self.raw, bus='scsi')
        self.assertTrue(boot.reached, str(boot))
        self.assertIn(guests.MARKER, boot.serial)

    def test_rebuilt_by_the_guest_and_menu_lst_only(self) -> None:
        raw = self.copy('rebuilt.raw')
        with self.opened(raw) as guest:
            # One more way in the same boot: GRUB 2's has to be made.
            guest.call('rm', '/boot/grub/grub.cfg')
            doctor = self.doctor(guest, 'rebuild')
            doctor.diagnose()
            changes = doctor.repair()
            self.assertEqual((), doctor.diagnose('verify'))
        self.assertIn(
            'update-initramfs -u -k', ' '.join(c.after for c in changes)
        )
        boot = qemu.boot(raw)
        self.assertTrue(boot.reached, str(boot))
