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


"""The tests' own writer of hives, read by hivex and python-registry."""

from __future__ import annotations

import importlib.util
import struct
import tempfile
import unittest

from Registry import Registry
from Registry import RegistryParse

from xenimport.tests import hives

TREE: dict[str, list[hives.Value]] = {
    '': [('', 1, hives.sz('default'))],
    'A\\B': [
        ('none', 0, b''),
        ('short', 3, b'xyz'),
        ('long', 3, bytes(range(256)) * 200),
        ('odd', 0xFFFF0012, b'abcdef'),
    ],
    'A\\Ünï': [('ключ', 7, hives.multi_sz('a', 'ж'))],
    'A\\ключ': [('number', 4, hives.dword(0xFFFFFFFE))],
    **{f'Many\\k{number:03}': [] for number in range(25)},
}


class HiveTestCase(unittest.TestCase):
    def put(self, data):
        stream = tempfile.NamedTemporaryFile()
        self.addCleanup(stream.close)
        stream.write(data)
        stream.flush()
        return stream.name

    @unittest.skipIf(
        importlib.util.find_spec('hivex') is None, 'python3-hivex is not there'
    )
    def test_as_hivex_reads_it(self):
        import hivex

        expected: dict[str, dict[str, tuple[int, bytes]]]
        expected = {'A': {}, 'Many': {}}
        for path, values in TREE.items():
            expected[path] = {
                name: (kind, data) for name, kind, data in values
            }
        for leaf in ('lh', 'lf', 'li'):
            for minor in (3, 5):
                data = hives.write(TREE, minor=minor, leaf=leaf, leaf_limit=10)
                hive = hivex.Hivex(self.put(data))
                found = {}
                waiting = [(hive.root(), '')]
                while waiting:
                    node, path = waiting.pop()
                    found[path] = {
                        hive.value_key(value): hive.value_value(value)
                        for value in hive.node_values(node)
                    }
                    prefix = f'{path}\\' if path else ''
                    waiting += [
                        (child, prefix + hive.node_name(child))
                        for child in hive.node_children(node)
                    ]
                self.assertEqual(expected, found)

    @unittest.skipIf(
        importlib.util.find_spec('hivex') is None, 'python3-hivex is not there'
    )
    def test_names_are_found_by_their_hash_where_hivex_adds_one(self):
        # hivex hashes the names that it adds itself; ours must agree.
        import hivex

        name = 'Some_Name-9'
        path = self.put(hives.write({'x': []}))
        hive = hivex.Hivex(path, write=True)
        hive.node_add_child(hive.node_get_child(hive.root(), 'x'), name)
        hive.commit(None)
        with open(path, 'rb') as stream:
            theirs = stream.read()
        ours = hives.write({f'x\\{name}': []})
        digest = struct.pack('<I', hives._hash(name))
        self.assertEqual(1, theirs.count(digest))
        self.assertEqual(1, ours.count(digest))

    def test_as_python_registry_reads_it(self):
        root = Registry.Registry(self.put(hives.write(TREE))).root()
        self.assertEqual(['A', 'Many'], [key.name() for key in root.subkeys()])
        value = root.subkey('A').subkey('ключ').value('number')
        self.assertEqual(0xFFFFFFFE, value.value())
        self.assertEqual(25, len(root.subkey('Many').subkeys()))

    def test_the_base_block_as_python_registry_reads_it(self):
        data = hives.numbered(hives.write(TREE), 9, 8)
        base = RegistryParse.REGFBlock(data, 0, False)
        self.assertTrue(base.validate_checksum())
        self.assertEqual(
            (9, 8), (base.hive_sequence1(), base.hive_sequence2())
        )
        self.assertEqual((1, 5), (base.major_version(), base.minor_version()))
        self.assertTrue(base.is_primary_file())
        self.assertEqual(len(data) - 4096, base.hbins_size())


class LogTestCase(unittest.TestCase):
    def setUp(self):
        super().setUp()
        self.before = hives.write(TREE, sequence=3)
        self.after = hives.write({**TREE, 'New': []})

    def test_the_new_format_as_python_registry_reads_it(self):
        dirty = hives.dirty(self.before, self.after)
        log = dirty.logs['.LOG1']
        base = RegistryParse.REGFBlock(log, 0, False)
        self.assertTrue(base.validate_checksum())
        self.assertTrue(base.is_new_transaction_log_file())
        entry = RegistryParse.HvLEBlock(log, 512, base)
        self.assertTrue(entry.validate_log_entry())
        self.assertEqual(4, entry.sequence())
        self.assertEqual(len(self.after) - 4096, entry.hbins_size())
        for reference, page in entry.dirty_pages_with_references():
            start = 4096 + reference.offset()
            self.assertEqual(
                self.after[start : start + reference.size()], page.data()
            )
        self.assertEqual(
            len(hives.pages(self.before, self.after)),
            entry.dirty_pages_count(),
        )
        self.assertFalse(entry.has_next())

    def test_the_old_format(self):
        # By the specification, for no library reads it: a bit for each
        # 512 bytes, set for those in the pages that follow.
        dirty = hives.dirty_old(self.before, self.after)
        log = dirty.logs['.LOG1']
        base = RegistryParse.REGFBlock(log, 0, False)
        self.assertTrue(base.validate_checksum())
        self.assertTrue(base.is_old_transaction_log_file())
        self.assertEqual(b'DIRT', log[512:516])
        count = (len(self.after) - 4096) // 512
        bits = log[516 : 516 + count // 8]
        place = (516 + len(bits) + 511) // 512 * 512
        for index in range(count):
            start = 4096 + 512 * index
            wanted = self.after[start : start + 512]
            if bits[index // 8] >> index % 8 & 1:
                self.assertEqual(wanted, log[place : place + 512])
                place += 512
            else:
                self.assertEqual(wanted, self.before[start : start + 512])
        self.assertEqual(len(log), place)
