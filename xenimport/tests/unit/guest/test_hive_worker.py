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

import importlib.util
import os
import pathlib
import struct
import tempfile
import unittest
from unittest import mock

from xenimport import exceptions
from xenimport.guest import hive_file
from xenimport.guest import hive_reader
from xenimport.guest import hive_worker
from xenimport.tests import hives

TREE = {
    '': [],
    'Select': [
        ('Current', 4, hives.dword(1)),
        ('Default', 4, hives.dword(1)),
        ('Failed', 4, hives.dword(0)),
    ],
    'Services\\xenbus': [('Start', 4, hives.dword(0))],
    'Services\\xenbus\\Parameters': [('x', 1, hives.sz('text'))],
    'Services\\xenvif': [('Start', 4, hives.dword(3))],
}


class WorkerTestCase(unittest.TestCase):
    def setUp(self):
        super().setUp()
        directory = tempfile.TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        self.directory = pathlib.Path(directory.name)
        self.path = str(self.directory / 'hive')
        self.hives = hive_worker.Hives()

    def ask(self, action, **fields):
        return self.hives.answer(
            {
                'do': 'hive',
                'action': action,
                'subject': '/sda2/SYSTEM',
                'path': self.path,
                **fields,
            }
        )

    def open(self, data, logs=None):
        pathlib.Path(self.path).write_bytes(data)
        copies = {}
        for name, log in (logs or {}).items():
            copies[name] = f'{self.path}{name}'
            pathlib.Path(copies[name]).write_bytes(log)
        return self.ask('open', logs=copies)

    def assert_refused(self, error_id, *args, **fields):
        with self.assertRaises(exceptions.GuestError) as caught:
            self.ask(*args, **fields)
        self.assertEqual(error_id, caught.exception.id)
        self.assertIn('SYSTEM', caught.exception.where)
        return caught.exception

    def tree(self):
        """What the local copy holds."""
        data = pathlib.Path(self.path).read_bytes()
        records = hive_reader.Reader(data, 'hive').records('', -1)
        return {path: values for path, values, _ in records}


class ReadTestCase(WorkerTestCase):
    def test_a_clean_hive(self):
        state = self.open(hives.write(TREE))
        self.assertEqual(
            {'dirty': False, 'replayed': 0, 'logs': (), 'lost': ''}, state
        )
        self.assertEqual(
            [('Select', TREE['Select'], ())],
            self.ask('read', key='select', depth=0),
        )
        self.assertEqual(4, len(self.ask('read', key='Services', depth=-1)))
        self.assertEqual([], self.ask('read', key='No\\Such', depth=-1))

    def test_a_dirty_hive(self):
        first = hives.write(TREE)
        second = hives.write({**TREE, 'New': []})
        dirty = hives.dirty(first, second)
        pathlib.Path(self.path).write_bytes(dirty.hive)
        # Without logs nothing is done but to tell.
        self.assertTrue(self.ask('open', logs=None)['dirty'])
        self.assertEqual(
            {'dirty': True, 'replayed': 1, 'logs': ('.LOG1',), 'lost': ''},
            self.open(dirty.hive, dirty.logs),
        )
        self.assertEqual(1, len(self.ask('read', key='New', depth=0)))
        self.assertIn('New', self.tree())

    def test_a_dirty_hive_without_logs_is_read_as_it_is(self):
        hive = hives.numbered(hives.write(TREE), 8, 7)
        state = self.open(hive)
        self.assertEqual((True, 0), (state['dirty'], state['replayed']))
        self.assertEqual('it has no logs', state['lost'])
        self.assertEqual(1, len(self.ask('read', key='Select', depth=0)))

    def test_a_torn_base_block_without_logs(self):
        hive = bytearray(hives.write(TREE))
        hive[100] ^= 1
        pathlib.Path(self.path).write_bytes(hive)
        error = self.assert_refused('registry.damaged', 'open', logs={})
        self.assertIn('it has no logs', error.found)

    def test_what_is_no_hive(self):
        for data in (b'', b'MZ' * 5000):
            pathlib.Path(self.path).write_bytes(data)
            self.assert_refused('registry.damaged', 'open', logs={})

    def test_files_that_are_too_large(self):
        with open(self.path, 'wb') as stream:
            stream.truncate((512 << 20) + 1)
        self.assert_refused('registry.too-large', 'open', logs={})

    def test_no_local_copy(self):
        self.assert_refused('registry.local-copy', 'open', logs={})

    def test_more_than_an_answer_holds(self):
        self.open(hives.write(TREE))
        with mock.patch.object(hive_worker, '_ITEMS_LIMIT', 5):
            self.assertEqual(1, len(self.ask('read', key='', depth=0)))
            self.assert_refused('registry.too-large', 'read', key='', depth=-1)
        with mock.patch.object(hive_worker, '_ANSWER_LIMIT', 20):
            self.assert_refused(
                'registry.too-large', 'read', key='Select', depth=0
            )

    def test_a_hive_that_was_not_opened(self):
        with self.assertRaises(ValueError):
            self.ask('read', key='', depth=0)

    def test_the_same_hive_opened_anew(self):
        self.open(hives.write(TREE))
        earlier = self.path
        self.path = str(self.directory / 'later')
        self.open(hives.write({'Later': []}))
        self.assertEqual(1, len(self.ask('read', key='Later', depth=0)))
        self.path = earlier
        with self.assertRaises(ValueError):
            self.ask('read', key='', depth=0)

    def test_no_memory(self):
        self.open(hives.write(TREE))
        with mock.patch.object(
            hive_reader.Reader,
            'records',
            autospec=True,
            side_effect=MemoryError,
        ):
            self.assert_refused('registry.too-large', 'read', key='', depth=0)


@unittest.skipIf(
    importlib.util.find_spec('hivex') is None, 'python3-hivex is not there'
)
class WriteTestCase(WorkerTestCase):
    def write(self, *edits, logs=()):
        return self.ask('write', edits=list(edits), logs=list(logs))

    def patched(self, old, changes):
        """What the changes make of the guest's file: the local copy."""
        new = bytearray(old)
        written = pathlib.Path(self.path).read_bytes()
        for offset, length in changes:
            new[offset : offset + length] = written[offset : offset + length]
        self.assertEqual(written, new)
        return new

    def assert_not_written(self, error_id, *edits):
        before = pathlib.Path(self.path).read_bytes()
        error = self.assert_refused(
            error_id, 'write', edits=list(edits), logs=[]
        )
        self.assertEqual(before, pathlib.Path(self.path).read_bytes())
        return error

    def test_every_kind_of_edit(self):
        old = hives.write(TREE, sequence=9)
        self.open(old)
        changes = self.write(
            ('Select', 'Default', 4, hives.dword(2)),
            ('Select', 'failed', None, None),
            ('Services\\xenbus', None, None, None),
            ('Services\\viostor', None, 0, None),
            ('Services\\viostor', 'Start', 4, hives.dword(0)),
            ('Services\\viostor', '', 1, hives.sz('x' * 3000)),
        )
        self.assertEqual(
            {
                '': [],
                'Select': [TREE['Select'][0], ('Default', 4, hives.dword(2))],
                'Services': [],
                'Services\\viostor': [
                    ('Start', 4, hives.dword(0)),
                    ('', 1, hives.sz('x' * 3000)),
                ],
                'Services\\xenvif': TREE['Services\\xenvif'],
            },
            self.tree(),
        )
        new = self.patched(old, changes)
        base = hive_file.base_block(new)
        self.assertFalse(base.dirty)
        self.assertGreater(base.primary, 9)

    def test_a_second_write(self):
        self.open(hives.write(TREE))
        self.write(('Select', 'Default', 4, hives.dword(2)))
        changes = self.write(('Select', 'Default', 4, hives.dword(3)))
        self.assertEqual(hives.dword(3), self.tree()['Select'][1][2])
        self.assertLess(sum(length for _, length in changes), 32768)

    def test_a_dirty_hive_is_written_whole(self):
        large = [('v', 3, bytes(9000))]
        first = hives.write({**TREE, 'Large': large}, sequence=4)
        large = [('v', 3, b'x' * 9000)]
        second = hives.write({**TREE, 'Large': large, 'New': []})
        dirty = hives.dirty(first, second)
        self.open(dirty.hive, dirty.logs)
        changes = self.write(('Select', 'Default', 4, hives.dword(2)))
        self.assertIn('New', self.tree())
        self.assertEqual(hives.dword(2), self.tree()['Select'][1][2])
        # The changes are those against the file in the guest.
        self.patched(dirty.hive, changes)

    def test_numbers_above_those_of_the_logs(self):
        first = hives.write(TREE, sequence=4)
        log = hives.new_log(first, 1000, [])
        self.open(first)
        self.write(
            ('Select', 'Default', 4, hives.dword(2)),
            logs=[(log, 512 * 51), (b'nonsense', 512 * 900), (bytes(512), 0)],
        )
        data = pathlib.Path(self.path).read_bytes()
        first, second = struct.unpack_from('<II', data, 4)
        self.assertEqual(first, second)
        # Fifty entries of one sector: 1000 to 1049.
        self.assertGreater(first, 1049)
        self.assertLess(first, 1100)

    def test_numbers_that_are_used_up(self):
        self.open(hives.write(TREE, sequence=0xFFFFFFFF))
        self.write(('Select', 'Default', 4, hives.dword(2)))
        base = hive_file.base_block(pathlib.Path(self.path).read_bytes())
        self.assertFalse(base.dirty)

    def test_names_beyond_ascii(self):
        self.open(hives.write({'Ünï\\ключ': [('ж', 1, b'ab'), ('é', 1, b'')]}))
        self.write(
            ('Ünï\\ключ', 'Ж', 4, hives.dword(1)),
            ('Ünï\\ключ', 'é', None, None),
            ('Ünï\\ключ', 'ü', 3, b'x'),
            ('Ünï\\new', None, 0, None),
        )
        self.assertEqual(
            [('ж', 4, hives.dword(1)), ('ü', 3, b'x')],
            self.tree()['Ünï\\ключ'],
        )
        self.assert_not_written(
            'registry.cannot-edit', ('Ünï\\ñ', None, 0, None)
        )

    def test_data_that_hivex_would_not_keep_in_pieces(self):
        self.open(hives.write({'k': [('big', 3, bytes(16345))], 'l': []}))
        for edit in (
            ('k', 'other', 4, hives.dword(1)),
            ('k', 'big', None, None),
            ('l', 'big', 3, bytes(16345)),
        ):
            self.assert_not_written('registry.cannot-edit', edit)
        self.write(('l', 'large', 3, bytes(16344)))
        self.write(('k', None, None, None))

    def test_cells_that_two_values_share(self):
        # hivex ends the process: an assertion that the cell is in use.
        writer = hives.Writer()
        data = bytearray(
            writer.hive(
                {'k': [('a', 3, b'12345'), ('b', 3, b'12345')]},
                'ROOT',
                sequence=1,
                file_name='',
            )
        )
        first = data.index(b'vk')
        second = data.index(b'vk', first + 1)
        data[second + 8 : second + 12] = data[first + 8 : first + 12]
        self.open(data)
        error = self.assert_not_written(
            'registry.write-failed', ('k', 'c', 4, hives.dword(1))
        )
        self.assertIn('SIGABRT', error.found)

    def test_a_list_that_hivex_cannot_shorten(self):
        self.open(hives.write({'a': [], 'b': []}, leaf='li'))
        self.assert_not_written(
            'registry.write-failed', ('a', None, None, None)
        )

    def test_a_list_that_hivex_would_leave_empty(self):
        tree: dict[str, list[hives.Value]] = {
            f'k{number}': [] for number in range(6)
        }
        self.open(hives.write(tree, leaf_limit=2))
        self.write(('k0', None, None, None))
        error = self.assert_not_written(
            'registry.verify-failed', ('k1', None, None, None)
        )
        self.assertIn('empty list', error.found)

    def test_hivex_writes_what_was_not_asked_for(self):
        self.open(hives.write(TREE))
        run = hive_worker._run_writer

        def run_and_spoil(path, edits, subject):
            run(path, edits, subject)
            data = pathlib.Path(path).read_bytes()
            place = data.index(hives.sz('text'))
            spoilt = data[:place] + hives.sz('TEXT') + data[place + 10 :]
            pathlib.Path(path).write_bytes(spoilt)

        with mock.patch.object(hive_worker, '_run_writer', run_and_spoil):
            error = self.assert_not_written(
                'registry.verify-failed',
                ('Select', 'Default', 4, hives.dword(2)),
            )
        self.assertIn('SERVICES\\XENBUS\\PARAMETERS', error.found)

    def test_hivex_leaves_it_dirty(self):
        self.open(hives.write(TREE))
        run = hive_worker._run_writer

        def run_and_number(path, edits, subject):
            run(path, edits, subject)
            data = pathlib.Path(path).read_bytes()
            pathlib.Path(path).write_bytes(hives.numbered(data, 3, 2))

        with mock.patch.object(hive_worker, '_run_writer', run_and_number):
            error = self.assert_not_written(
                'registry.verify-failed',
                ('Select', 'Default', 4, hives.dword(2)),
            )
        self.assertIn('(3, 2)', error.found)

    def test_hivex_loses_and_adds_keys_and_values(self):
        self.open(hives.write(TREE))
        run = hive_worker._run_writer
        for edit in (
            ('Services', None, None, None),
            ('Services\\more', None, 0, None),
            ('Select', 'Current', None, None),
            ('Select', 'More', 4, hives.dword(1)),
            ('Select', 'Current', 5, hives.dword(1)),
        ):

            def run_and_more(path, edits, subject, edit=edit):
                more = hive_worker.hive_tree.Change(*edit)
                run(path, [*edits, more], subject)

            with mock.patch.object(hive_worker, '_run_writer', run_and_more):
                self.assert_not_written(
                    'registry.verify-failed',
                    ('Select', 'Default', 4, hives.dword(2)),
                )

    def test_keys_out_of_order(self):
        # Windows would look for the new key in vain.
        tree: dict[str, list[hives.Value]] = {
            name: [] for name in ('b', 'c', 'd')
        }
        data = bytearray(hives.write(tree))
        place = data.index(b'lh') + 4
        entries = data[place : place + 24]
        data[place : place + 24] = entries[16:] + entries[:16]
        self.open(data)
        error = self.assert_not_written(
            'registry.verify-failed', ('a', None, 0, None)
        )
        self.assertIn('out of order', error.found)

    def test_keys_that_are_not_there(self):
        self.open(hives.write(TREE))
        self.assert_not_written(
            'registry.write-failed', ('No\\Such', None, 0, None)
        )
        self.assert_not_written(
            'registry.cannot-edit', ('No\\Such', 'v', 3, b'')
        )

    def test_no_time_left(self):
        self.open(hives.write(TREE))
        with mock.patch.object(hive_worker, '_WRITE_LIMIT', 0):
            self.assert_not_written(
                'registry.write-failed',
                ('Select', 'Default', 4, hives.dword(2)),
            )

    def test_nothing_is_left_behind(self):
        self.open(hives.write(TREE))
        self.write(('Select', 'Default', 4, hives.dword(2)))
        self.assert_not_written(
            'registry.write-failed', ('No\\Such', None, 0, None)
        )
        self.assertEqual(['hive'], os.listdir(self.directory))

    def test_an_empty_hive(self):
        self.ask('create', root='NewStoreRoot')
        changes = self.write(
            ('Objects', None, 0, None),
            ('Objects\\{x}', None, 0, None),
            ('Objects\\{x}', 'Element', 3, b'\1'),
        )
        self.patched(b'', changes)
        self.assertEqual(
            {'': [], 'Objects': [], 'Objects\\{x}': [('Element', 3, b'\1')]},
            self.tree(),
        )


class ChecksumTestCase(unittest.TestCase):
    def test_the_two_that_stand_for_others(self):
        block = bytearray(512)
        self.assertEqual(1, hive_file.checksum(block))
        block[4:8] = b'\xff' * 4
        self.assertEqual(0xFFFFFFFE, hive_file.checksum(block))
        block[8:12] = b'\1\2\3\4'
        self.assertEqual(0xFBFCFDFE, hive_file.checksum(block))


class ChangesTestCase(unittest.TestCase):
    def test_pages(self):
        old = bytes(5 * 4096)
        new = bytearray(7 * 4096)
        new[4096] = 1
        new[4 * 4096 - 1] = 1
        pieces = list(hive_worker._changes(bytearray(old), new))
        self.assertEqual(
            [(4096, 4096), (3 * 4096, 4096), (5 * 4096, 8192)], pieces
        )

    def test_pieces_are_bounded(self):
        new = bytearray(b'x' * ((2 << 20) + 5))
        pieces = list(hive_worker._changes(bytearray(), new))
        self.assertEqual(
            [(0, 1 << 20), (1 << 20, 1 << 20), (2 << 20, 5)], pieces
        )
