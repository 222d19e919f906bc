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


"""Hives and boot configurations made to harm, in whole guests.

Each is met with a message of ours, in bounded memory: every process of
the command but QEMU is watched.
"""

from __future__ import annotations

import os
import pathlib
import struct
import threading
import time

from xenimport.tests.functional import windows_cases
from xenimport.tests.functional import windows_disks
from xenimport.tests.functional import windows_packages
from xenimport.tests import hives
from xenimport.tests import windows_hives

#: Resident bytes that no process of ours may have; an honest guest's
#: repair takes some 130 MiB.
_MEMORY = 400 << 20
_POLL = 0.1
#: Where the damage is met first, an error, or all of it as findings.
_DAMAGED = r'(registry\.damaged  error|windows\.hive-damaged  blocker)  '


def cut(data: bytes) -> bytes:
    """The file ends in the middle."""
    return data[: len(data) // 2 + 100]


def wrong_checksum(data: bytes) -> bytes:
    """The base block is not what its checksum says."""
    result = bytearray(data)
    result[0x28] ^= 0xFF
    return bytes(result)


def _tree(tree: hives.Tree) -> tuple[bytearray, hives.Writer]:
    writer = hives.Writer()
    data = writer.hive(tree, 'ROOT', sequence=1, file_name='')
    return bytearray(data), writer


def cyclic(tree: hives.Tree, path: str) -> bytes:
    """The subkeys of a key are those of the root."""
    data, writer = _tree(tree)
    # In a key's record, after its cell's length: count at 0x14, list at
    # 0x1C.
    root = writer.places[''] + 4
    place = writer.places[path] + 4
    for offset in (0x14, 0x1C):
        data[place + offset : place + offset + 4] = data[
            root + offset : root + offset + 4
        ]
    return bytes(data)


def huge(tree: hives.Tree, path: str) -> bytes:
    """A key claims four thousand million subkeys and values."""
    data, writer = _tree(tree)
    place = writer.places[path] + 4
    for offset in (0x14, 0x24):
        struct.pack_into('<I', data, place + offset, 0xFFFFFFF0)
    return bytes(data)


class _Watch(threading.Thread):
    """Notes the largest resident set of a session's processes."""

    def __init__(self, session: int) -> None:
        super().__init__(daemon=True)
        self.session = session
        self.peaks: dict[str, int] = {}
        self.done = threading.Event()

    def run(self) -> None:
        while not self.done.wait(_POLL):
            for directory in pathlib.Path('/proc').glob('[0-9]*'):
                try:
                    self._look(directory)
                except OSError:
                    continue

    def _look(self, directory: pathlib.Path) -> None:
        stat = (directory / 'stat').read_text()
        name, _, rest = stat.partition('(')[2].rpartition(')')
        if int(rest.split()[3]) != self.session or 'qemu' in name:
            return
        for line in (directory / 'status').read_text().splitlines():
            if line.startswith('VmHWM:'):
                peak = int(line.split()[1]) * 1024
                self.peaks[name] = max(peak, self.peaks.get(name, 0))


class WindowsHostileTest(windows_cases.WindowsTest):
    """Three disks, in each of which everything is wrong."""

    def guest(self) -> windows_disks.WindowsDisk:
        return windows_disks.WindowsDisk(
            windows_hives.WINDOWS_10,
            windows_disks.UEFI,
            windows_packages.VIRTIO,
        )

    def refuse(self, made: windows_disks.WindowsDisk) -> str:
        """What is said of a guest, by a command that ends with 1 or 3."""
        process = self.start(
            'import-xen', 'convert', self.write(made), '--output',
            self.directory / 'out',
        )  # fmt: skip
        watch = _Watch(process.pid)
        watch.start()
        started = time.monotonic()
        _, stderr = process.communicate(timeout=300)
        watch.done.set()
        watch.join()
        self.assertIn(process.returncode, (1, 3), stderr)
        self.assertNotIn('Traceback', stderr)
        self.assertNotIn('internal', stderr)
        self.assertIn('Fix: ', stderr)
        self.assertTrue(watch.peaks)
        for name, peak in watch.peaks.items():
            self.assertLess(peak, _MEMORY, name)
        self.assertLess(time.monotonic() - started, 240)
        self.assertEqual([], list(self.work_dir.iterdir()))
        return stderr

    def test_cyclic_and_cut(self) -> None:
        made = self.guest()
        config = windows_disks.CONFIG
        made.files[f'{config}/SYSTEM'] = cyclic(
            made.system, 'ControlSet001\\Services'
        )
        made.files[f'{config}/SOFTWARE'] = cut(hives.write(made.software))
        made.files[f'{config}/DRIVERS'] = huge(
            made.drivers or {}, 'DriverDatabase'
        )
        self.assertRegex(self.refuse(made), _DAMAGED)

    def test_huge_and_unsealed(self) -> None:
        made = self.guest()
        config = windows_disks.CONFIG
        made.files[f'{config}/SYSTEM'] = huge(made.system, 'ControlSet001')
        made.files[f'{config}/SOFTWARE'] = wrong_checksum(
            hives.write(made.software)
        )
        made.boot_files[made.store_path] = cyclic(made.store, 'Objects')
        self.assertRegex(self.refuse(made), _DAMAGED)

    def test_logs_of_nonsense(self) -> None:
        made = self.guest()
        config = windows_disks.CONFIG
        data = hives.numbered(hives.write(made.system), 9, 8)
        made.files[f'{config}/SYSTEM'] = data
        made.files[f'{config}/SYSTEM.LOG1'] = os.urandom(1 << 20)
        made.files[f'{config}/SYSTEM.LOG2'] = hives.log_base(
            data, 6, 9
        ) + hives.entry(9, [(0xFFFFF000, bytes(4096))], 0xFFFFF000)
        made.boot_files[made.store_path] = cut(made.store_file())
        said = self.refuse(made)
        self.assertIn('windows.hive-dirty', said)
        self.assertIn('SYSTEM', said)
