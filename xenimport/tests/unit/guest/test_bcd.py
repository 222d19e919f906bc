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


"""Objects and elements of a boot configuration."""

from __future__ import annotations

import unittest

from xenimport.guest import bcd
from xenimport.guest import registry
from xenimport.tests import bcd_stores
from xenimport.tests.unit.remediation import windows_fakes

_DEVICE = bcd_stores.mbr_device(0x11223344, 0x100000)


def hive(store: bcd_stores.Store) -> registry.Hive:
    tree = windows_fakes.FakeHive(
        {
            path: [registry.Value(*value) for value in values]
            for path, values in store.items()
        }
    )
    return registry.Hive('BCD', '/sda1/Boot/BCD', tree.fetch)


def genuine() -> bcd_stores.Store:
    return bcd_stores.store('bios', _DEVICE, _DEVICE, recovery=_DEVICE)


class StoreTest(unittest.TestCase):
    def test_objects(self) -> None:
        store = bcd.Store(hive(genuine()))
        self.assertEqual(13, len(store.objects))
        manager = store.manager
        assert manager is not None
        self.assertEqual(0x10100002, manager.type)
        self.assertEqual('Windows Boot Manager', manager.text(bcd.DESCRIPTION))
        self.assertEqual(30, manager.number(bcd.TIMEOUT))
        self.assertEqual(
            (bcd_stores.LOADER,), manager.objects(bcd.DEFAULT_OBJECT)
        )
        default = store.default
        assert default is not None
        self.assertEqual(bcd_stores.LOADER, default.id)
        self.assertTrue(default.is_windows)
        element = default.elements[bcd.OS_DEVICE]
        self.assertTrue(element.is_device)
        assert element.device is not None
        self.assertEqual(_DEVICE, element.device.encode())

    def test_windows_pe_is_no_windows(self) -> None:
        store = bcd.Store(hive(genuine()))
        recovery = store.objects[bcd_stores.RECOVERY]
        self.assertFalse(recovery.is_windows)
        self.assertEqual(
            [bcd_stores.LOADER], [item.id for item in store.loaders]
        )

    def test_case_of_names(self) -> None:
        tree = {path.upper(): values for path, values in genuine().items()}
        manager = bcd.Store(hive(tree)).manager
        assert manager is not None
        self.assertEqual('en-US', manager.text(bcd.PREFERRED_LOCALE))
        loader = bcd.Store(hive(tree)).objects[bcd_stores.HYPERVISOR]
        # Its key is 250000F4 here; genuine stores have both.
        self.assertEqual(1, loader.number(bcd.HYPERVISOR_DEBUGGER_PORT))
        key = loader.element_key(bcd.HYPERVISOR_DEBUGGER_PORT)
        self.assertTrue(key.endswith('\\250000F4'), key)

    def test_first_of_the_menu(self) -> None:
        store = genuine()
        del store[f'Objects\\{bcd_stores.BOOTMGR}\\Elements\\23000003']
        default = bcd.Store(hive(store)).default
        assert default is not None
        self.assertEqual(bcd_stores.LOADER, default.id)

    def test_integers_of_any_length(self) -> None:
        for data, expected in (
            (b'\5', 5),
            (b'\1\2', 0x0201),
            (b'\0' * 7 + b'\1', 1 << 56),
            (b'', None),
            (b'\0' * 9, None),
        ):
            store = genuine()
            bcd_stores.put_element(
                store, bcd_stores.BOOTMGR, '25000004', (3, data)
            )
            manager = bcd.Store(hive(store)).manager
            assert manager is not None
            self.assertEqual(expected, manager.number(bcd.TIMEOUT), data)


class HostileTest(unittest.TestCase):
    def test_empty(self) -> None:
        store = bcd.Store(hive({'': []}))
        self.assertIsNone(store.manager)
        self.assertIsNone(store.default)
        self.assertEqual((), store.loaders)

    def test_wrong_types(self) -> None:
        store = genuine()
        wrong = (registry.DWORD, b'\1\0\0\0')
        for path in list(store):
            if '\\Elements\\' in path:
                store[path] = [('Element', *wrong)]
        found = bcd.Store(hive(store))
        self.assertIsNone(found.default)
        manager = found.manager
        assert manager is not None
        for number in manager.elements:
            self.assertEqual('', manager.text(number))
            self.assertIsNone(manager.number(number))
            self.assertIsNone(manager.elements[number].device)

    def test_list_is_no_text(self) -> None:
        store = genuine()
        bcd_stores.put_element(
            store,
            bcd_stores.LOADER,
            '12000002',
            bcd_stores.texts('\\winload.exe'),
        )
        loader = bcd.Store(hive(store)).objects[bcd_stores.LOADER]
        self.assertEqual('', loader.text(bcd.APPLICATION_PATH))

    def test_missing_values(self) -> None:
        found = bcd.Store(hive({key: [] for key in genuine()}))
        loader = found.objects[bcd_stores.LOADER]
        self.assertIsNone(loader.type)
        self.assertFalse(loader.is_windows)
        self.assertIsNone(loader.elements[bcd.OS_DEVICE].device)

    def test_names_that_are_no_numbers(self) -> None:
        store = genuine()
        path = f'Objects\\{bcd_stores.LOADER}\\Elements'
        for name in ('1100000g', '+1100001', '0x110001', '1', '²²²²²²²²'):
            store[f'{path}\\{name}'] = []
        loader = bcd.Store(hive(store)).objects[bcd_stores.LOADER]
        self.assertNotIn(1, loader.elements)
        self.assertNotIn(0x110001, loader.elements)
        self.assertNotIn(0x1100001, loader.elements)

    def test_too_many(self) -> None:
        store: bcd_stores.Store = {'Objects': []}
        for number in range(1100):
            store[f'Objects\\{{{number}}}'] = []
        self.assertEqual(1024, len(bcd.Store(hive(store)).objects))


class AddObjectTest(unittest.TestCase):
    def test_values(self) -> None:
        target = hive({'': []})
        edits = bcd.add_object(
            target,
            bcd.MEMDIAG,
            bcd.MEMDIAG_TYPE,
            {
                bcd.DESCRIPTION: bcd.text_value('a'),
                bcd.INHERITED_OBJECTS: bcd.objects_value(['{b}', '{c}']),
                bcd.TIMEOUT: bcd.integer_value(5),
                bcd.EMS_ENABLED: bcd.boolean_value(True),
            },
        )
        self.assertEqual(edits, target.edits)
        path = f'Objects\\{bcd_stores.MEMDIAG}'
        for key, name, kind, data in (
            ('Description', 'Type', 4, b'\x05\x00\x20\x10'),
            ('Elements\\12000004', 'Element', 1, b'a\0\0\0'),
            (
                'Elements\\14000006',
                'Element',
                7,
                '{b}\0{c}\0\0'.encode('utf-16-le'),
            ),
            ('Elements\\25000004', 'Element', 3, b'\5' + bytes(7)),
            ('Elements\\16000020', 'Element', 3, b'\1'),
        ):
            found = target.key(f'{path}\\{key}')
            assert found is not None
            value = registry.Value(name, kind, data)
            self.assertEqual((value,), found.values)
