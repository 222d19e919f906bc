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


"""Mutants of device elements, and stores that hold anything."""

from __future__ import annotations

import hypothesis
from hypothesis import strategies

from xenimport.guest import bcd_device
from xenimport.guest import guest as guest_room
from xenimport import model
from xenimport.remediation import base
from xenimport.remediation.windows import boot_devices
from xenimport.remediation.windows import boot_loader
from xenimport.remediation.windows import boot_resume
from xenimport.remediation.windows import boot_store
from xenimport.remediation.windows import disk_signature
from xenimport.tests import bcd_stores
from xenimport.tests.fuzz import cases
from xenimport.tests.fuzz import mutation
from xenimport.tests.unit.remediation import windows_boot

_PATH = '\\Recovery\\WindowsRE\\Winre.wim'
_OPTIONS = bcd_stores.RECOVERY_OPTIONS
_PARTITION = bcd_stores.mbr_device(0x11223344, 0x100000)
_IMAGE = bcd_stores.ramdisk_device(_PARTITION, _PATH, _OPTIONS)
_DEVICES = [
    mutation.Sample(
        name,
        data,
        [(at, 4, 'little') for at in range(16, min(len(data), 160), 4)],
        [(16, min(len(data), 160))],
    )
    for name, data in (
        ('partition', _PARTITION),
        ('locate', bcd_stores.locate_device(0x12000002)),
        ('RAM disk', _IMAGE),
        (
            'virtual disk',
            bcd_stores.virtual_disk_partition(_PARTITION, '\\a.vhd'),
        ),
        ('file in a RAM disk', bcd_stores.file_device(_IMAGE, '\\b')),
    )
]
_CHECKS = (
    disk_signature.DiskSignature,
    boot_store.BootStore,
    boot_devices.BootDevices,
    boot_loader.BootLoader,
    boot_loader.BootFlags,
    boot_resume.BootResume,
    disk_signature.DriveLetter,
)
_ELEMENTS = sorted(
    path
    for path in windows_boot.genuine(recovery=_PARTITION)
    if '\\Elements\\' in path or path.endswith('Description')
)


def _diagnose(
    check: base.Check, guest: guest_room.Guest
) -> list[model.Finding]:
    return list(check.diagnose(guest))


class DeviceTest(cases.FuzzTest):
    @cases.settings
    @hypothesis.given(mutation.mutants(_DEVICES))
    def test_device(self, mutant: mutation.Mutant) -> None:
        data = mutant.build()
        device = self.check(bcd_device.parse, data)
        if device is None:
            return
        self.assertEqual(data, device.encode())
        # What a person is shown of it has to be text.
        str(device).encode('utf-8')
        other = bcd_device.Partition.of_mbr(1, 2)
        moved = device.replaced(other).encode()
        self.assertEqual(len(data), len(moved))
        differing = sum(a != b for a, b in zip(data, moved, strict=True))
        self.assertLessEqual(differing, 40)
        if device.partition is None:
            self.assertEqual(data, moved)
        else:
            self.assertEqual(other, bcd_device.parse(moved).partition)


class StoreTest(cases.FuzzTest):
    @cases.settings
    @hypothesis.given(
        strategies.dictionaries(
            strategies.sampled_from(_ELEMENTS),
            strategies.none()
            | strategies.tuples(
                strategies.sampled_from((0, 1, 3, 4, 7, 11, 99)),
                strategies.binary(max_size=100)
                | mutation.mutants(_DEVICES).map(mutation.Mutant.build),
            ),
            max_size=8,
        ),
        mutation.mutants([mutation.Sample('disk', windows_boot.mbr()[:1024])]),
    )
    def test_checks(
        self,
        values: dict[str, tuple[int, bytes] | None],
        disk: mutation.Mutant,
    ) -> None:
        store = windows_boot.genuine(recovery=_PARTITION)
        for path, value in values.items():
            name = 'Type' if path.endswith('Description') else 'Element'
            if value is None:
                del store[path]
            else:
                store[path] = [(name, *value)]
        guest = windows_boot.guest(
            store,
            device=disk.build().ljust(1024, b'\0'),
            system_keys=windows_boot.mounted(),
        )
        real = windows_boot.real(guest)
        checks = [check(windows_boot.request()) for check in _CHECKS]
        found = [
            (check, finding)
            for check in checks
            for finding in self.check(_diagnose, check, real)
        ]
        for check, finding in found:
            self.assertLess(len(finding.evidence), 1500)
            if finding.repair:
                self.check(check.repair, real, finding)
        guest.commit()
        for check in checks:
            for finding in check.diagnose(real):
                self.assertIsNone(finding.repair, finding)
