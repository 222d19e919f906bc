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

import typing
import unittest

from xenimport import exceptions
from xenimport.guest import registry
from xenimport.tests.unit.remediation import windows_fakes

SZ = registry.Value.sz
DWORD = registry.Value.dword
TREE = {
    '': [SZ('', 'root')],
    'Select': [DWORD('Current', 1), DWORD('Default', 1)],
    'ControlSet001\\Services\\xenbus': [DWORD('Start', 0)],
    'ControlSet001\\Services\\xenbus\\Parameters': [SZ('x', 'y')],
    'ControlSet001\\Services\\XENVIF': [DWORD('Start', 3)],
}
SERVICES = 'ControlSet001\\Services'


class ValueTestCase(unittest.TestCase):
    def test_what_is_written(self):
        self.assertEqual(
            (1, b'a\0b\0\0\0'), (SZ('n', 'ab').type, SZ('n', 'ab').data)
        )
        value = registry.Value.expand_sz('n', '%a%')
        self.assertEqual((2, b'%\0a\0%\0\0\0'), (value.type, value.data))
        value = registry.Value.multi_sz('n', ['a', 'ü'])
        self.assertEqual(
            (7, b'a\0\0\0\xfc\0\0\0\0\0'), (value.type, value.data)
        )
        self.assertEqual(b'\0\0', registry.Value.multi_sz('n', []).data)
        value = DWORD('n', 0xFFFFFFFE)
        self.assertEqual((4, b'\xfe\xff\xff\xff'), (value.type, value.data))
        value = registry.Value.binary('n', b'\0x')
        self.assertEqual((3, b'\0x'), (value.type, value.data))

    def test_text(self):
        for kind in (1, 2, 6, 7):
            value = registry.Value('n', kind, b'a\0b\0\0\0c\0\0\0')
            self.assertEqual('ab', value.text)
        # Without an end, half a character more, half a pair.
        for data, text in (
            (b'a\0', 'a'),
            (b'a\0b', 'a'),
            (b'', ''),
            (b'a', ''),
            (b'\x00\xd8', '\ud800'),
            (b'\x00\xdca\0', '\udc00a'),
        ):
            self.assertEqual(text, registry.Value('n', 1, data).text)
        self.assertEqual('', DWORD('n', 1).text)

    def test_strings(self):
        value = registry.Value.multi_sz('n', ['a', 'b'])
        self.assertEqual(('a', 'b'), value.strings)
        self.assertEqual(('a',), SZ('n', 'a').strings)
        self.assertEqual((), SZ('n', '').strings)
        self.assertEqual((), registry.Value('n', 7, b'\0\0').strings)
        # No end, nothing between two.
        value = registry.Value('n', 7, b'a\0\0\0\0\0b\0c')
        self.assertEqual(('a', 'b'), value.strings)
        self.assertEqual((), registry.Value('n', 3, b'a\0').strings)

    def test_number(self):
        self.assertEqual(1, DWORD('n', 1).number)
        self.assertEqual(1, registry.Value('n', 5, b'\0\0\0\1').number)
        self.assertEqual(
            1 << 56, registry.Value('n', 11, bytes(7) + b'\1').number
        )
        for kind, data in (
            (4, b'\1'),
            (4, bytes(8)),
            (5, b''),
            (11, bytes(4)),
            (1, bytes(4)),
            (3, bytes(4)),
        ):
            self.assertIsNone(registry.Value('n', kind, data).number)

    def test_for_a_person(self):
        for value, text in (
            (DWORD('n', 3), 'REG_DWORD 0x3'),
            (SZ('n', 'a b'), 'REG_SZ "a b"'),
            (
                registry.Value.multi_sz('n', ['a', 'b']),
                "REG_MULTI_SZ ['a', 'b']",
            ),
            (registry.Value.binary('n', b'\1\2'), 'REG_BINARY 01 02'),
            (registry.Value.binary('n', b''), 'REG_BINARY'),
            (registry.Value('n', 4, b'\1'), 'REG_DWORD 01'),
            (registry.Value('n', 0xFFFF0012, b'\1'), 'type 0xffff0012 01'),
            (
                registry.Value.binary('n', bytes(25)),
                f'REG_BINARY {" ".join(["00"] * 24)} ... (25 bytes)',
            ),
        ):
            self.assertEqual(text, str(value))


class KeyTestCase(unittest.TestCase):
    def test_values(self):
        key = registry.Key(
            'a\\b',
            (SZ('', 'd'), DWORD('Start', 0), SZ('Ä', 'ä')),
            ('c',),
        )
        self.assertEqual('b', key.name)
        self.assertEqual('d', key.text(''))
        self.assertEqual(0, key.number('START'))
        self.assertEqual('ä', key.text('ä'))
        self.assertEqual(('ä',), key.strings('Ä'))
        self.assertEqual(
            ('', (), None, None),
            (key.text('x'), key.strings('x'), key.number('x'), key.value('x')),
        )


class HiveTestCase(unittest.TestCase):
    def setUp(self):
        super().setUp()
        self.fake = windows_fakes.FakeHive(TREE)
        self.asked: list[tuple[str, int]] = []
        self.hive = registry.Hive('SYSTEM', '/sda2/SYSTEM', self.fetch)

    def fetch(self, path, depth):
        self.asked.append((path, depth))
        return self.fake.fetch(path, depth)

    def names(self, path, depth=-1):
        return [key.path for key in self.hive.walk(path, depth)]

    def test_keys(self):
        self.assertEqual('root', self.hive.key('').text(''))
        self.assertEqual(
            ('Select', 'ControlSet001'), self.hive.key('').subkeys
        )
        self.assertEqual(1, self.hive.key('SELECT').number('current'))
        self.assertIsNone(self.hive.key('No'))
        self.assertIsNone(self.hive.key('No\\Such'))
        self.assertEqual([], list(self.hive.keys('No')))
        self.assertEqual(
            ['xenbus', 'XENVIF'],
            [key.name for key in self.hive.keys(SERVICES.lower())],
        )

    def test_walk(self):
        services = [
            SERVICES,
            f'{SERVICES}\\xenbus',
            f'{SERVICES}\\xenbus\\Parameters',
            f'{SERVICES}\\XENVIF',
        ]
        self.assertEqual(services, self.names(SERVICES))
        self.assertEqual(services[:1], self.names(SERVICES, 0))
        self.assertEqual(services[::3], self.names(SERVICES, 1)[::2])
        self.assertEqual([], self.names('No'))
        self.assertEqual(7, len(self.names('')))

    def test_a_deep_hive(self):
        # The deepest that Windows knows.
        deep = '\\'.join(['k'] * 512)
        self.fake.put(deep, [])
        self.assertEqual(512, len(self.names('k')))

    def test_what_is_known_is_not_asked_again(self):
        self.names(SERVICES)
        self.names(SERVICES)
        list(self.hive.keys(SERVICES))
        self.names(f'{SERVICES}\\XenBus')
        self.assertIsNone(self.hive.key('No'))
        self.assertIsNone(self.hive.key('no'))
        self.assertEqual([(SERVICES, -1), ('No', 0)], self.asked)

    def test_set_value(self):
        edits = self.hive.set_value('SELECT', DWORD('CURRENT', 2))
        self.assertEqual(
            [
                registry.Edit(
                    'SYSTEM',
                    'Select',
                    'Current',
                    DWORD('Current', 1),
                    DWORD('Current', 2),
                )
            ],
            edits,
        )
        self.assertEqual(edits, self.hive.edits)
        self.assertEqual(2, self.hive.key('Select').number('Current'))
        # It is so already.
        self.assertEqual(
            [], self.hive.set_value('Select', DWORD('Current', 2))
        )
        # Another type is another value.
        self.assertEqual(
            1,
            len(
                self.hive.set_value(
                    'Select', registry.Value.binary('Current', b'\2\0\0\0')
                )
            ),
        )

    def test_set_value_where_there_is_no_key(self):
        edits = self.hive.set_value('select\\New\\Key', SZ('a', 'b'))
        self.assertEqual(
            [
                ('Select\\New', None),
                ('Select\\New\\Key', None),
                ('Select\\New\\Key', 'a'),
            ],
            [(edit.key, edit.name) for edit in edits],
        )
        self.assertEqual('b', self.hive.key('Select\\new\\KEY').text('A'))
        self.assertIn('New', self.hive.key('Select').subkeys)
        self.assertEqual(
            ['Select', 'Select\\New', 'Select\\New\\Key'],
            self.names('Select'),
        )
        # The file says nothing of what is below a new key.
        self.asked.clear()
        self.assertIsNone(self.hive.key('Select\\New\\No'))
        self.assertEqual([], self.asked)

    def test_delete_value(self):
        edits = self.hive.delete_value('select', 'DEFAULT')
        self.assertEqual(
            [
                registry.Edit(
                    'SYSTEM', 'Select', 'Default', DWORD('Default', 1), None
                )
            ],
            edits,
        )
        self.assertIsNone(self.hive.key('Select').value('Default'))
        self.assertEqual([], self.hive.delete_value('Select', 'Default'))
        self.assertEqual([], self.hive.delete_value('No', 'Default'))

    def test_delete_key(self):
        path = f'{SERVICES}\\XenBus'
        edits = self.hive.delete_key(path)
        self.assertEqual(
            [(f'{SERVICES}\\xenbus', None, None)],
            [(edit.key, edit.name, edit.after) for edit in edits],
        )
        before = edits[0].before
        assert isinstance(before, registry.Key)
        self.assertEqual(0, before.number('Start'))
        for gone in (path, f'{path}\\Parameters'):
            self.assertIsNone(self.hive.key(gone))
            self.assertEqual([], self.names(gone))
        self.assertEqual(('XENVIF',), self.hive.key(SERVICES).subkeys)
        self.assertEqual([], self.hive.delete_key(path))
        self.assertEqual([], self.hive.delete_value(path, 'Start'))
        self.assertEqual([], self.hive.delete_key(''))

    def test_a_key_deleted_and_made_anew_is_empty(self):
        path = f'{SERVICES}\\xenbus'
        self.names(SERVICES)
        self.hive.delete_key(path)
        self.hive.set_value(path, DWORD('Start', 4))
        self.assertEqual([path], self.names(path))
        self.assertEqual((DWORD('Start', 4),), self.hive.key(path).values)

    def test_what_is_read_later_does_not_undo_a_change(self):
        self.hive.delete_key(f'{SERVICES}\\xenbus\\Parameters')
        self.hive.set_value(f'{SERVICES}\\XENVIF', DWORD('Start', 4))
        self.assertEqual(
            [SERVICES, f'{SERVICES}\\xenbus', f'{SERVICES}\\XENVIF'],
            self.names(SERVICES),
        )
        self.assertEqual(
            4, self.hive.key(f'{SERVICES}\\xenvif').number('Start')
        )

    def test_a_hive_without_a_root(self):
        hive = registry.Hive('SYSTEM', 'x', lambda path, depth: [])
        self.assertIsNone(hive.key(''))
        with self.assertRaises(RuntimeError):
            hive.create_key('a')


class Store:
    """Notes what it is asked for; hives called BAD are damaged."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, str]] = []

    def open(self, volume, path, name):
        self.calls.append(('open', name))
        if name == 'BAD':
            raise registry.damaged(path, 'nonsense')
        return self.hive(name)

    def create(self, volume, path, name):
        self.calls.append(('create', name))
        return self.hive(name)

    def hive(self, name):
        fake = windows_fakes.FakeHive(TREE)
        return registry.Hive(name, name, fake.fetch)

    def write(self, hive):
        self.calls.append(('write', hive.name))


class RegistryTestCase(unittest.TestCase):
    def setUp(self):
        super().setUp()
        self.store = Store()
        self.registry = registry.Registry(self.store)
        self.volume: typing.Any = windows_fakes.FakeWindows(
            {'/dev/sda2': {'config/SYSTEM': b'', 'config/bad': b''}}
        ).windows

    def test_each_is_opened_once_however_its_path_is_written(self):
        hive = self.registry.open(self.volume, 'config/system')
        for path in ('CONFIG\\SYSTEM', '/config//System/'):
            self.assertIs(hive, self.registry.open(self.volume, path))
        self.assertEqual([('open', 'SYSTEM')], self.store.calls)
        self.assertEqual((hive,), self.registry.hives)

    def test_none(self):
        self.assertIsNone(self.registry.open(self.volume, 'config/SAM'))
        self.assertEqual([], self.store.calls)

    def test_an_error_is_remembered(self):
        for _ in range(2):
            with self.assertRaises(exceptions.GuestError):
                self.registry.open(self.volume, 'config/bad')
        self.assertEqual([('open', 'BAD')], self.store.calls)
        self.registry.forget()
        with self.assertRaises(exceptions.GuestError):
            self.registry.open(self.volume, 'config/bad')
        self.assertEqual(2, len(self.store.calls))
        made = self.registry.create(self.volume, 'config/bad')
        self.assertIs(made, self.registry.open(self.volume, 'config/bad'))

    def test_a_new_one_is_known_before_it_is_a_file(self):
        made = self.registry.create(self.volume, 'Boot\\BCD')
        self.assertEqual('BCD', made.name)
        self.assertIs(made, self.registry.open(self.volume, 'boot/bcd'))

    def test_commit_writes_what_has_edits(self):
        kept = self.registry.open(self.volume, 'config/SYSTEM')
        made = self.registry.create(self.volume, 'Boot/BCD')
        self.registry.commit()
        self.assertNotIn('write', dict(self.store.calls))
        # A file that was not written need not be read again.
        self.assertEqual((kept,), self.registry.hives)
        kept.create_key('Changed')
        self.registry.commit()
        self.assertEqual(('write', 'SYSTEM'), self.store.calls[-1])
        made = self.registry.create(self.volume, 'Boot/BCD')
        made.create_key('Objects')
        self.registry.commit()
        self.assertEqual(('write', 'BCD'), self.store.calls[-1])
        self.assertEqual((), self.registry.hives)
