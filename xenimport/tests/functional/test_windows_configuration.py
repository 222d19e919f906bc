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


"""Windows' boot configuration for real: stores in volumes, in an appliance.

What was written is read back from the disk with ntfs-3g's tools, mtools
and hivex. Needs python3-guestfs, python3-hivex, QEMU, ntfs-3g, mtools,
dosfstools and fdisk; runs under TCG.
"""

from __future__ import annotations

import pathlib
import tempfile
import typing
import unittest

import hivex

from xenimport.guest import guest as guest_room
from xenimport.guest import session
from xenimport import model
from xenimport.remediation import base
from xenimport.remediation.windows import boot_devices
from xenimport.remediation.windows import boot_loader
from xenimport.remediation.windows import boot_resume
from xenimport.remediation.windows import boot_store
from xenimport.remediation.windows import disk_signature
from xenimport.tests import bcd_stores
from xenimport.tests.functional import windows_disks
from xenimport.tests.functional import windows_volumes
from xenimport.tests import windows_hives
from xenimport.workflow import diagnosis

_CHECKS: tuple[type[base.Check], ...] = (
    disk_signature.DiskSignature,
    boot_store.BootStore,
    boot_devices.BootDevices,
    boot_loader.BootLoader,
    boot_loader.BootFlags,
    boot_resume.BootResume,
    disk_signature.DriveLetter,
)
_STALE = bcd_stores.mbr_device(0x0BADCAFE, 63 * 512)
_OTHER_GUID = '00000000-aaaa-4bbb-8ccc-0123456789ab'


class Checks(base.Remediation):
    """Only the checks that this is about."""

    handles = 'tests'

    def matches(self, operating_system: model.OperatingSystem | None) -> bool:
        return True

    def checks(self, request: base.Request) -> list[base.Check]:
        return [check(request) for check in _CHECKS]


def tree(data: bytes) -> bcd_stores.Store:
    """What hivex finds in a hive."""
    found: bcd_stores.Store = {}
    with tempfile.NamedTemporaryFile() as stream:
        stream.write(data)
        stream.flush()
        hive = hivex.Hivex(stream.name)

        def walk(node: int, path: str) -> None:
            found[path] = sorted(
                (hive.value_key(value), *hive.value_value(value))
                for value in hive.node_values(node)
            )
            for child in hive.node_children(node):
                name = hive.node_name(child)
                walk(child, f'{path}\\{name}' if path else name)

        walk(hive.root(), '')
    return found


class ConfigurationTest(unittest.TestCase):
    disk: windows_disks.WindowsDisk

    def setUp(self) -> None:
        super().setUp()
        directory = tempfile.TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        self.directory = pathlib.Path(directory.name)
        self.path = self.directory / 'disk.raw'

    def start(self, disk: windows_disks.WindowsDisk) -> None:
        """Write the disk and hand it to an appliance."""
        self.disk = disk
        disk.write(self.path)
        work = self.directory / 'work'
        work.mkdir()
        self.appliance = session.Appliance(
            [session.Drive(str(self.path))], str(work)
        )
        self.addCleanup(self.appliance._kill)
        self.appliance.start()
        self.guest = guest_room.Guest(self.appliance)
        self.assertIsNotNone(self.guest.inspect())

    def diagnose(self) -> list[str]:
        """The ids of what is found; everything is asked anew."""
        self.guest.registry.forget()
        self.doctor = diagnosis.Doctor(
            self.guest,
            [Checks({})],
            base.Request(
                model.VirtualSystem('v', model.Package('p', 'disk'), ())
            ),
        )
        return [finding.id for finding in self.doctor.diagnose()]

    def repair(self) -> tuple[model.Change, ...]:
        """Mend what was found; nothing may be left."""
        changes = self.doctor.repair()
        self.doctor.commit()
        self.assertEqual([], self.diagnose())
        return changes

    def sync(self) -> None:
        self.appliance.call('sync')

    def read(self, name: str) -> bytes:
        """A file of the system partition, as it is on the disk."""
        self.sync()
        part = self.disk.parts['system']
        with windows_disks.volume(self.path, part) as volume:
            if self.disk.uefi:
                return windows_volumes.read_fat(volume, name)
            return windows_volumes.read_ntfs(volume, name)

    def store(self) -> bcd_stores.Store:
        return tree(self.read(self.disk.store_path))

    def fill(self, path: str, data: bytes | None) -> None:
        """Write or remove a file of the system partition."""
        volume = self.guest.volume('/dev/sda1')
        assert volume is not None
        if data is None:
            volume.remove(path)
        else:
            volume.write(path, data)


class BiosTest(ConfigurationTest):
    def test_windows_2008_r2(self) -> None:
        disk = windows_disks.WindowsDisk(windows_hives.SERVER_2008_R2)
        self.expected = disk.store
        disk.store = bcd_stores.store(
            'bios',
            _STALE,
            _STALE,
            recovery=_STALE,
            description=disk.release.product,
        )
        self.start(disk)
        self.stale_devices()
        self.lost_signature()
        self.no_store()
        self.damaged_store()
        self.appliance.close()

    def stale_devices(self) -> None:
        """The case that the product was born from."""
        before = self.read('Boot/BCD')
        self.assertEqual(
            {'windows.boot-devices'}, set(self.diagnose()), self.diagnose()
        )
        changes = self.repair()
        self.assertEqual({'/dev/sda1'}, {item.target for item in changes})
        # Boot manager, memory test, loader 2, resume 2, recovery 2 and 1.
        self.assertEqual(9, len(changes))
        self.assertEqual(self.expected, self.store())
        self.assertEqual(before, self.read('Boot/BCD.xenimport.bak'))

    def lost_signature(self) -> None:
        """Four bytes are written, and nothing else on the disk."""
        self.sync()
        self.guest.write_device('/dev/sda', 0x1B8, bytes(4))
        store = self.read('Boot/BCD')
        self.assertEqual(['windows.disk-signature'], self.diagnose())
        (change,) = self.repair()
        self.assertEqual(f'{windows_disks.SIGNATURE:#010x}', change.after)
        self.sync()
        with open(self.path, 'rb') as stream:
            sector = stream.read(512)
        self.assertEqual('c7218b4a', sector[0x1B8:0x1BC].hex())
        self.assertEqual(store, self.read('Boot/BCD'))

    def no_store(self) -> None:
        self.fill('Boot/BCD', None)
        self.fill('Boot/Fonts/wgl4_boot.ttf', None)
        self.assertEqual(['windows.boot-store'], self.diagnose())
        changes = self.repair()
        copied = [item.path for item in changes if 'copied' in item.after]
        self.assertEqual(['\\Boot\\Fonts\\wgl4_boot.ttf'], copied)
        self.assertEqual(4096, len(self.read('Boot/Fonts/wgl4_boot.ttf')))
        self.assert_new(self.store())

    def damaged_store(self) -> None:
        self.fill('Boot/BCD.xenimport.bak', None)
        self.fill('Boot/BCD', b'regf' + b'\xff' * 9000)
        self.assertEqual(['windows.boot-store'], self.diagnose())
        self.repair()
        self.assert_new(self.store())
        self.assertEqual(
            b'regf' + b'\xff' * 9000, self.read('Boot/BCD.xenimport.bak')
        )

    def assert_new(self, found: bcd_stores.Store) -> None:
        assert_new(self, found, self.disk)


class UefiTest(ConfigurationTest):
    def test_windows_10(self) -> None:
        disk = windows_disks.WindowsDisk(
            windows_hives.WINDOWS_10, windows_disks.UEFI
        )
        self.expected = disk.store
        stale = bcd_stores.gpt_device(_OTHER_GUID, _OTHER_GUID)
        disk.store = bcd_stores.store(
            'uefi',
            stale,
            stale,
            recovery=stale,
            description=disk.release.product,
        )
        self.start(disk)
        self.assertEqual({'windows.boot-devices'}, set(self.diagnose()))
        self.assertEqual(9, len(self.repair()))
        self.assertEqual(self.expected, self.store())
        self.fill(disk.store_path, None)
        self.assertEqual(['windows.boot-store'], self.diagnose())
        self.repair()
        assert_new(self, self.store(), disk)
        self.appliance.close()


def assert_new(
    case: unittest.TestCase,
    found: bcd_stores.Store,
    disk: windows_disks.WindowsDisk,
) -> None:
    """A store as bcdboot makes it: its entries name the real partitions."""
    manager = f'Objects\\{bcd_stores.BOOTMGR}\\Elements'

    def element(path: str) -> typing.Any:
        ((_, _, data),) = found[path]
        return data

    loader = element(f'{manager}\\23000003').decode('utf-16-le').rstrip('\0')
    windows = f'Objects\\{loader}\\Elements'
    case.assertEqual(disk.device('system'), element(f'{manager}\\11000001'))
    for digits in ('11000001', '21000001'):
        case.assertEqual(
            disk.device('windows'), element(f'{windows}\\{digits}')
        )
    case.assertEqual(
        '\\Windows\\system32\\winload.' + ('efi' if disk.uefi else 'exe'),
        element(f'{windows}\\12000002').decode('utf-16-le').rstrip('\0'),
    )
    case.assertEqual(disk.uefi, f'{manager}\\12000002' in found)
    objects = {path.split('\\')[1] for path in found if path.count('\\') == 1}
    case.assertEqual(11, len(objects))


if __name__ == '__main__':
    unittest.main()
