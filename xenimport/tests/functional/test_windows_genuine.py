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


"""A genuine registry of Windows 10, with the drivers of Xen put into it.

The hive is a test file of dissect.regf's source package; pip fetches it.
The keys of Xen are written by hivex, as the INF files of the drivers
write them. The disk around it is made up.
"""

from __future__ import annotations

import pathlib
import tempfile
import uuid

import hivex

from xenimport.tests.functional import test_hives
from xenimport.tests.functional import windows_cases
from xenimport.tests.functional import windows_disks
from xenimport.tests.functional import windows_packages
from xenimport.tests.functional import windows_reading
from xenimport.tests import windows_hives

_SET = 'ControlSet001'
#: What MountedDevices of that hive says of C:.
_WINDOWS = '1e178d94-4f79-41e9-865d-2e5b4328cd23'


def with_xen(data: bytes) -> bytes:
    """The hive with Xen's and KVM's drivers installed."""
    keys = windows_hives.Keys()
    release = windows_hives.WINDOWS_10
    windows_hives.install(
        keys,
        release,
        windows_packages.CITRIX + windows_packages.VIRTIO,
        (_SET,),
    )
    windows_packages.put_xen(keys, (_SET,))
    keys.drop_value('DriverDatabase', 'OemInfMap')
    with tempfile.TemporaryDirectory() as directory:
        path = pathlib.Path(directory) / 'SYSTEM'
        path.write_bytes(data)
        handle = hivex.Hivex(str(path), write=True)
        for place, values in keys.items():
            node = handle.root()
            for name in place.split('\\'):
                node = handle.node_get_child(
                    node, name
                ) or handle.node_add_child(node, name)
            for name, kind, content in values:
                handle.node_set_value(
                    node, {'key': name, 't': kind, 'value': content}
                )
        handle.commit(None)
        return path.read_bytes()


def boot_files(hive: windows_reading.Hive) -> list[str]:
    """Files of the drivers that a hive has started with Windows."""
    found = []
    prefix = f'{_SET}\\Services\\'
    for path, values in hive.items():
        start = values.get('Start', (4, b''))[1]
        if not path.startswith(prefix) or start not in (b'\0' * 4,):
            continue
        name = path.removeprefix(prefix)
        text = values.get('ImagePath', (1, b''))[1].decode('utf-16-le')
        text = text.rstrip('\0').replace('\\', '/')
        text = text.removeprefix('/SystemRoot/')
        found.append(f'Windows/{text or f"System32/drivers/{name}.sys"}')
    return found


class GenuineHiveTest(windows_cases.WindowsTest):
    """What Windows itself wrote, and 33 000 keys of it."""

    def test_repaired(self) -> None:
        data = with_xen(test_hives.genuine())
        hive = windows_reading.read(data)
        c_drive = hive['MountedDevices']['\\DosDevices\\C:'][1]
        self.assertEqual(b'DMIO:ID:' + uuid.UUID(_WINDOWS).bytes_le, c_drive)
        made = windows_disks.WindowsDisk(
            windows_hives.WINDOWS_10,
            windows_disks.UEFI,
            windows_packages.CITRIX + windows_packages.VIRTIO,
            windows_guid=_WINDOWS,
        )
        made.files[f'{windows_disks.CONFIG}/SYSTEM'] = data
        for name in boot_files(hive):
            made.files.setdefault(name, made.program())
        disk = self.write(made)
        report = self.convert(disk, '--disk-bus', 'scsi')
        self.assertEqual(
            {'windows.xen-filters', 'windows.xen-services'},
            windows_cases.ids(report, 'blocker'),
        )
        # Windows itself has put it aside; a disk on virtio needs it not.
        (told,) = windows_cases.evidence(report, 'windows.start-override')
        self.assertIn('\\Services\\pciide\\StartOverride', told)
        before = windows_reading.Snapshot(disk, made)
        after = windows_reading.Snapshot(self.converted, made)
        self.assert_reported(before, after, report)
        again = self.inspect(self.converted, '--disk-bus', 'scsi', code=0)
        self.assertEqual(set(), windows_cases.ids(again, 'blocker'))
