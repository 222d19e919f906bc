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


"""Boot configurations in real hives: mended, made anew, and read back.

The hive before is written by :mod:`xenimport.tests.hives`, the one after
is read by hivex: neither is the product's.
"""

from __future__ import annotations

import importlib.util
import os
import pathlib
import tempfile
import typing
import unittest

from xenimport.guest import hive_worker
from xenimport.guest import registry
from xenimport.guest import volumes
from xenimport.remediation.windows import boot_devices
from xenimport.remediation.windows import boot_store
from xenimport.tests import bcd_stores
from xenimport.tests import hives
from xenimport.tests.unit.remediation import windows_boot
from xenimport.tests.unit.remediation import windows_fakes

_HIVEX = importlib.util.find_spec('hivex') is not None
_STALE = bcd_stores.mbr_device(0x0BADCAFE, 63 * 512)


class RealHives:
    """What stores hives, with the worker's code in this process.

    :ivar place: the only file that there is: the store
    """

    def __init__(
        self, fakes: windows_fakes.FakeWindows, place: pathlib.Path
    ) -> None:
        self._fakes = fakes
        self._hives = hive_worker.Hives()
        self.place = place

    def _ask(self, action: str, **fields: typing.Any) -> typing.Any:
        return self._hives.answer(
            {
                'action': action,
                'subject': '/sda1/Boot/BCD',
                'path': str(self.place),
                **fields,
            }
        )

    def open(
        self, volume: volumes.Volume, path: str, name: str
    ) -> registry.Hive:
        if not path.endswith('BCD'):
            return self._fakes.open(volume, path, name)
        self._ask('open', logs={})
        return self._hive(name)

    def create(
        self, volume: volumes.Volume, path: str, name: str
    ) -> registry.Hive:
        self._ask('create', root=name)
        return self._hive(name)

    def _hive(self, name: str) -> registry.Hive:
        return registry.Hive(
            name,
            '/sda1/Boot/BCD',
            lambda key, depth: self._ask('read', key=key, depth=depth),
        )

    def write(self, hive: registry.Hive) -> None:
        edits: list[tuple[str, str | None, int | None, bytes]] = []
        for edit in hive.edits:
            after = edit.after
            if isinstance(after, registry.Value):
                edits.append((edit.key, edit.name, after.type, after.data))
            else:
                kind = None if after is None else 0
                edits.append((edit.key, edit.name, kind, b''))
        self._ask('write', edits=edits, logs=[])
        hive.edits.clear()


@unittest.skipUnless(_HIVEX, 'hivex is not installed')
class HiveTest(unittest.TestCase):
    def guest(self, data: bytes | None) -> windows_fakes.FakeWindows:
        files = {} if data is None else {'Boot/BCD': data}
        guest = windows_boot.guest(system_files=files)
        handle, name = tempfile.mkstemp()
        os.close(handle)
        self.place = pathlib.Path(name)
        self.addCleanup(self.place.unlink)
        self.place.write_bytes(data or b'')
        guest.registry = registry.Registry(RealHives(guest, self.place))
        return guest

    def repair(self, guest: windows_fakes.FakeWindows) -> None:
        for kind in (boot_store.BootStore, boot_devices.BootDevices):
            check = kind(windows_boot.request())
            real = windows_boot.real(guest)
            for finding in list(check.diagnose(real)):
                check.repair(real, finding)
        guest.registry.commit()

    def read(self) -> bcd_stores.Store:
        """What hivex finds in the hive."""
        import hivex

        hive = hivex.Hivex(str(self.place))
        found: bcd_stores.Store = {}

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

    def test_stale_devices(self) -> None:
        stale = windows_boot.genuine(
            system=_STALE, windows=_STALE, recovery=_STALE
        )
        guest = self.guest(hives.write(stale))
        guest.files['/sda2/Recovery/WindowsRE/Winre.wim'] = b'MSWIM'
        guest.files['/sda1/Recovery/WindowsRE/boot.sdi'] = b'$SDI'
        self.repair(guest)
        expected = windows_boot.genuine(recovery=windows_boot.WINDOWS)
        bcd_stores.put_element(
            expected,
            bcd_stores.RECOVERY_OPTIONS,
            '31000003',
            bcd_stores.device(windows_boot.SYSTEM),
        )
        self.assertEqual(expected, self.read())

    def test_made_anew(self) -> None:
        for data in (None, b'regf and then junk'):
            guest = self.guest(data)
            self.repair(guest)
            found = self.read()
            manager = f'Objects\\{bcd_stores.BOOTMGR}\\Elements'
            ((_, _, loader),) = found[f'{manager}\\23000003']
            name = loader.decode('utf-16-le').rstrip('\0')
            ((_, _, device),) = found[f'Objects\\{name}\\Elements\\21000001']
            self.assertEqual(windows_boot.WINDOWS, device)
            expected = windows_boot.genuine()
            self.assertEqual(len(expected), len(found))
            self.assertEqual(
                sorted(len(values) for values in expected.values()),
                sorted(len(values) for values in found.values()),
            )
