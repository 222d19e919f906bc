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

import struct
import tempfile
import unittest

from Registry import Registry

from xenimport import exceptions
from xenimport.guest import hive_reader
from xenimport.tests import hives

TREE = {
    '': [('', 1, hives.sz('default'))],
    'Select': [
        ('Current', 4, hives.dword(1)),
        ('Default', 4, hives.dword(2)),
    ],
    'A\\B': [('none', 0, b''), ('long', 3, bytes(range(256)) * 200)],
    'A\\Ünï': [('ключ', 1, hives.sz('ж')), ('short', 3, b'xyz')],
    'A\\ключ': [('multi', 7, b'\0\0'), ('odd', 0xFFFF0012, b'abcdef')],
}


def read(data, key='', depth=-1):
    return list(hive_reader.Reader(data, 'hive').records(key, depth))


def placed(tree, **options):
    """A hive, and the offset in the file of each of its keys' records."""
    writer = hives.Writer(**options)
    data = writer.hive(tree, 'ROOT', sequence=1, file_name='')
    # Behind the cell's size.
    return bytearray(data), {
        path: place + 4 for path, place in writer.places.items()
    }


class ReaderTestCase(unittest.TestCase):
    def test_the_tree(self):
        self.assertEqual(
            [
                ('', TREE[''], ('A', 'Select')),
                ('A', [], ('B', 'Ünï', 'ключ')),
                ('A\\B', TREE['A\\B'], ()),
                ('A\\Ünï', TREE['A\\Ünï'], ()),
                ('A\\ключ', TREE['A\\ключ'], ()),
                ('Select', TREE['Select'], ()),
            ],
            read(hives.write(TREE)),
        )

    def test_depth_and_case(self):
        data = hives.write(TREE)
        self.assertEqual([('A', [], ('B', 'Ünï', 'ключ'))], read(data, 'a', 0))
        self.assertEqual(
            ['A', 'A\\B', 'A\\Ünï', 'A\\ключ'],
            [record[0] for record in read(data, 'a', 1)],
        )
        self.assertEqual(
            ['', 'A', 'Select'], [record[0] for record in read(data, '', 1)]
        )
        self.assertEqual('A\\ключ', read(data, 'A\\КЛЮЧ', 0)[0][0])
        self.assertEqual([], read(data, 'A\\C'))

    def test_lists_of_every_kind(self):
        tree: dict[str, list[hives.Value]] = {
            f'k{number:04}': [] for number in range(1203)
        }
        for leaf in ('lh', 'lf', 'li'):
            names = read(hives.write(tree, leaf=leaf), '', 0)[0][2]
            self.assertEqual(tuple(tree), names)

    def test_large_data_before_version_1_4(self):
        # Kept in one piece, though one could be a list's signature.
        data = b'db' + bytes(20_000)
        hive = hives.write({'k': [('v', 3, data)]}, minor=3)
        self.assertEqual([('v', 3, data)], read(hive, 'k')[0][1])

    def test_large_data_at_the_border(self):
        for size in (16344, 16345, 2 * 16344, 2 * 16344 + 1):
            data = b'db' + bytes(size - 3) + b'x'
            hive = hives.write({'k': [('v', 3, data)]})
            self.assertEqual([('v', 3, data)], read(hive, 'k')[0][1])

    def test_names_that_are_no_text(self):
        # A lone surrogate in the key, U+0000 and what Windows-1252 has
        # no character for in the value.
        tree = {'a\ud800': [('b\0\x81\x93', 3, b'x')]}
        records = read(hives.write(tree))
        self.assertEqual('a\ud800', records[1][0])
        self.assertEqual(tree['a\ud800'], records[1][1])

    def test_bytes_behind_the_bins(self):
        data = hives.write(TREE) + b'remnant' * 1000
        self.assertEqual(6, len(read(data)))

    def test_python_registry_sees_the_same_keys(self):
        with tempfile.NamedTemporaryFile() as stream:
            stream.write(hives.write(TREE))
            stream.flush()
            root = Registry.Registry(stream.name).root()
            self.assertEqual(
                ['A', 'Select'], [key.name() for key in root.subkeys()]
            )
            self.assertEqual(2, root.subkey('Select').value('Default').value())


class HostileTestCase(unittest.TestCase):
    """Damaged: an error of ours, soon, whatever is wrong."""

    def assert_damaged(self, data, words=''):
        with self.assertRaises(exceptions.GuestError) as caught:
            read(bytes(data))
        self.assertEqual('registry.damaged', caught.exception.id)
        self.assertEqual('hive', caught.exception.where)
        self.assertIn(words, caught.exception.found)

    def test_base_block(self):
        good = hives.write(TREE)
        self.assert_damaged(b'', 'no hive')
        self.assert_damaged(bytes(8192), 'no hive')
        self.assert_damaged(good[:3000], 'hive bins')
        self.assert_damaged(good[:-4096], 'hive bins')
        bad = bytearray(good)
        bad[508] ^= 1
        self.assert_damaged(bad, 'checksum')
        # Versions, kind, root and size.
        for offset, number, words in (
            (20, 2, 'version 2.5'),
            (24, 1, 'version 1.1'),
            (28, 6, 'type 6'),
            (36, 0, 'outside'),
            (36, 33, 'outside'),
            (36, 0xFFFFFFFF, 'outside'),
            (36, 1 << 24, 'outside'),
            (40, 0, 'hive bins'),
            (40, 4095, 'hive bins'),
            (40, 0xFFFFF000, 'hive bins'),
        ):
            bad = bytearray(good)
            struct.pack_into('<I', bad, offset, number)
            self.assert_damaged(hives.sealed(bad), words)

    def test_the_first_bin(self):
        bad = bytearray(hives.write(TREE))
        bad[4096:4100] = b'nibh'
        self.assert_damaged(bad, 'HBIN')

    def test_a_key_inside_itself(self):
        data, places = placed({'a\\b': []})
        # Subkeys of b: those of a, that is b itself.
        (subkeys,) = struct.unpack_from('<I', data, places['a'] + 0x1C)
        struct.pack_into('<I', data, places['a\\b'] + 0x14, 1)
        struct.pack_into('<I', data, places['a\\b'] + 0x1C, subkeys)
        self.assert_damaged(data, 'inside itself')

    def test_an_index_root_that_leads_to_itself(self):
        tree: dict[str, list[hives.Value]] = {
            f'k{number}': [] for number in range(4)
        }
        data, places = placed(tree, leaf_limit=2)
        (index,) = struct.unpack_from('<I', data, places[''] + 0x1C)
        self.assertEqual(b'ri', data[4096 + index + 4 : 4096 + index + 6])
        struct.pack_into('<I', data, 4096 + index + 8, index)
        self.assert_damaged(data, 'no list of subkeys')

    def test_counts_of_subkeys(self):
        for count in (0xFFFFFFFE, 1000, 1, 3):
            data, places = placed({'a': [], 'b': []})
            struct.pack_into('<I', data, places[''] + 0x14, count)
            self.assert_damaged(data, 'subkeys')
        data, places = placed({'a': []})
        (subkeys,) = struct.unpack_from('<I', data, places[''] + 0x1C)
        struct.pack_into('<H', data, 4096 + subkeys + 6, 0xFFFF)
        self.assert_damaged(data, '65535 entries')

    def test_counts_of_values(self):
        for count in (0xFFFFFFFE, 0x40000000, 100):
            data, places = placed({'a': [('v', 3, b'x')]})
            struct.pack_into('<I', data, places['a'] + 0x24, count)
            self.assert_damaged(data)

    def test_values_that_many_keys_share(self):
        # Each of 400 keys has the same 1000 values.
        tree: dict[str, list[hives.Value]] = {
            f'k{number:03}': [] for number in range(400)
        }
        tree['k000'] = [(f'v{number}', 4, b'data') for number in range(1000)]
        data, places = placed(tree)
        shared = data[places['k000'] + 0x24 : places['k000'] + 0x2C]
        for path in tree:
            data[places[path] + 0x24 : places[path] + 0x2C] = shared
        self.assert_damaged(data, 'more values')

    def test_data_that_many_values_share(self):
        tree = {'k': [(f'v{number}', 3, b'12345') for number in range(200)]}
        tree['large'] = [('v', 3, bytes(16000))]
        data, places = placed(tree)
        large = self.value(data, places['large'], 0)
        for number in range(200):
            place = self.value(data, places['k'], number)
            data[place + 4 : place + 12] = data[large + 4 : large + 12]
        self.assert_damaged(data, 'more data')

    @staticmethod
    def value(data, key, number):
        """Where a value's record is, from its signature on."""
        (values,) = struct.unpack_from('<I', data, key + 0x28)
        (place,) = struct.unpack_from(
            '<I', data, 4096 + values + 4 + 4 * number
        )
        return 4096 + place + 4

    def test_values(self):
        for offset, number in (
            (2, 0x7FFF0000),
            (4, 0x80000005),
            (4, 0x7FFFFFFF),
            (8, 0xFFFFFFF0),
            (8, 33),
        ):
            data, places = placed({'k': [('v', 3, b'12345')]})
            place = self.value(data, places['k'], 0)
            if offset == 2:
                struct.pack_into('<H', data, place + 2, 0x7FFF)
            else:
                struct.pack_into('<I', data, place + offset, number)
            self.assert_damaged(data)
        data, places = placed({'k': [('v', 3, b'12345')]})
        place = self.value(data, places['k'], 0)
        data[place : place + 2] = b'kv'
        self.assert_damaged(data, 'VK Record')

    def test_pieces(self):
        for offset, form, number in (
            (2, '<H', 1),
            (2, '<H', 0xFFFF),
            (4, '<I', 0xFFFFFFFF),
            (4, '<I', 32),
        ):
            data, places = placed({'k': [('v', 3, bytes(40_000))]})
            place = self.value(data, places['k'], 0)
            (listed,) = struct.unpack_from('<I', data, place + 8)
            struct.pack_into(form, data, 4096 + listed + 4 + offset, number)
            self.assert_damaged(data)

    def test_names(self):
        data, places = placed({'key': []})
        struct.pack_into('<H', data, places['key'] + 72, 0xFFFF)
        self.assert_damaged(data, 'a name')
        data, places = placed({'keya': [], 'keyb': []})
        data[places['keyb'] + 79 : places['keyb'] + 80] = b'a'
        self.assert_damaged(data, 'two keys')

    def test_a_name_that_fills_no_screen(self):
        long = '\\'.join(['x' * 250] * 3)
        data, places = placed({f'{long}\\a': []})
        (subkeys,) = struct.unpack_from('<I', data, places[long] + 0x1C)
        struct.pack_into('<I', data, places[f'{long}\\a'] + 0x14, 1)
        struct.pack_into('<I', data, places[f'{long}\\a'] + 0x1C, subkeys)
        with self.assertRaises(exceptions.GuestError) as caught:
            read(bytes(data))
        self.assertLess(len(caught.exception.found), 320)
        self.assertIn('inside itself', caught.exception.found)

    def test_cells(self):
        # Free, too long, too short.
        for size in (88, -0x7FFFFFF8, -(1 << 31), -8, 0):
            data, places = placed({'key': []})
            struct.pack_into('<i', data, places['key'] - 4, size)
            self.assert_damaged(data, 'a cell')

    def test_nesting(self):
        deep = '\\'.join(['k'] * 512)
        self.assertEqual(513, len(read(hives.write({deep: []}))))
        self.assert_damaged(hives.write({f'{deep}\\k': []}), 'nested')
