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
import tempfile
import unittest
from unittest import mock

from xenimport import exceptions
from xenimport.guest import hive_file
from xenimport.guest import hive_reader
from xenimport.guest import hive_store
from xenimport.guest import registry
from xenimport.guest import volumes
from xenimport.tests import hives
from xenimport.tests.unit.guest import volume_fakes

PLACE = '/sda2/Windows/System32/config/SYSTEM'
PATH = 'windows\\system32\\config\\system'
TREE = {'Select': [('Current', 4, hives.dword(1))], 'ControlSet001': []}


def content(data):
    records = hive_reader.Reader(bytes(data), 'hive').records('', -1)
    return {path: values for path, values, _ in records}


class StoreTestCase(unittest.TestCase):
    def setUp(self):
        super().setUp()
        directory = tempfile.TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        self.directory = directory.name

    def put(self, **files):
        """A guest with a hive and what is beside it."""
        self.guest = volume_fakes.FakeGuest(
            {
                PLACE + name.replace('_', '.'): data
                for name, data in files.items()
            },
            self.directory,
        )
        self.volume = volumes.Volume(self.guest, '/dev/sda2', 'ntfs', '/sda2')
        self.registry = registry.Registry(hive_store.HiveStore(self.guest))

    def open(self):
        return self.registry.open(self.volume, PATH)

    def called(self, name):
        return [call for call in self.guest.calls if call[0] == name]


class OpenTestCase(StoreTestCase):
    def test_a_clean_hive(self):
        self.put(_=b'', **{'': hives.write(TREE), '_LOG1': b'log'})
        hive = self.open()
        self.assertEqual(('SYSTEM', PLACE), (hive.name, hive.path))
        self.assertEqual(registry.State(), hive.state)
        self.assertEqual(1, hive.key('Select').number('Current'))
        self.assertIs(
            hive,
            self.registry.open(
                self.volume, '/Windows/System32//config/SYSTEM'
            ),
        )
        # Its logs are not even looked at.
        self.assertEqual(1, len(self.called('download')))

    def test_a_dirty_hive(self):
        dirty = hives.dirty(
            hives.write(TREE),
            hives.write({**TREE, 'New': []}),
            hives.write({**TREE, 'New': [], 'Newer': []}),
            split=1,
        )
        self.put(
            **{
                '': dirty.hive,
                '_LOG1': dirty.logs['.LOG1'],
                '_LOG2': dirty.logs['.LOG2'],
                '_LOG': b'',
            }
        )
        hive = self.open()
        self.assertEqual(
            registry.State(True, 2, ('SYSTEM.LOG1', 'SYSTEM.LOG2'), ''),
            hive.state,
        )
        self.assertIsNotNone(hive.key('Newer'))
        # Nothing is written by that.
        self.assertEqual(dirty.hive, self.guest.files[PLACE])
        self.assertEqual('ro', self.volume.options)

    def test_a_dirty_hive_without_logs(self):
        self.put(**{'': hives.numbered(hives.write(TREE), 8, 7)})
        self.assertEqual(
            registry.State(True, 0, (), 'it has no logs'), self.open().state
        )

    def test_no_hive(self):
        self.put(_sav=b'')
        self.assertIsNone(self.open())

    def test_a_directory_in_its_place(self):
        self.put(**{'/x': b''})
        with self.assertRaises(exceptions.GuestError) as caught:
            self.open()
        self.assertEqual('registry.damaged', caught.exception.id)

    def test_a_hive_that_is_too_large(self):
        self.put(**{'': b'regf'})
        with mock.patch.object(hive_file, 'SIZE_LIMIT', 3):
            with self.assertRaises(exceptions.GuestError) as caught:
                self.open()
        self.assertEqual('registry.too-large', caught.exception.id)
        self.assertEqual([], self.called('download'))

    def test_a_damaged_hive_is_downloaded_once(self):
        self.put(**{'': b'MZ'})
        for _ in range(3):
            with self.assertRaises(exceptions.GuestError) as caught:
                self.open()
            self.assertEqual('registry.damaged', caught.exception.id)
        self.assertEqual(1, len(self.called('download')))
        self.registry.forget()
        self.guest.files[PLACE][:] = hives.write(TREE)
        self.assertIsNotNone(self.open().key('Select'))


@unittest.skipIf(
    importlib.util.find_spec('hivex') is None, 'python3-hivex is not there'
)
class WriteTestCase(StoreTestCase):
    def test_edits(self):
        before = hives.write(TREE)
        self.put(**{'': before, '_LOG1': b'log'})
        hive = self.open()
        hive.set_value('Select', registry.Value.dword('Current', 2))
        hive.set_value('New\\Key', registry.Value.sz('a', 'b'))
        hive.delete_key('ControlSet001')
        self.assertEqual(before, self.guest.files[PLACE])
        self.registry.commit()
        self.assertEqual([], hive.edits)
        self.assertEqual(
            {
                '': [],
                'New': [],
                'New\\Key': [('a', 1, b'b\0\0\0')],
                'Select': [('Current', 4, hives.dword(2))],
            },
            content(self.guest.files[PLACE]),
        )
        self.assertEqual(before, self.guest.files[PLACE + '.xenimport.bak'])
        self.assertEqual(b'log', self.guest.files[PLACE + '.LOG1'])
        self.assertEqual(2, self.open().key('Select').number('Current'))

    def test_the_first_backup_stays(self):
        before = hives.write(TREE)
        self.put(**{'': before})
        for number in (2, 3):
            self.open().set_value(
                'Select', registry.Value.dword('Current', number)
            )
            self.registry.commit()
        self.assertEqual(before, self.guest.files[PLACE + '.xenimport.bak'])
        self.assertEqual(3, self.open().key('Select').number('Current'))

    def test_a_dirty_hive(self):
        second = {**TREE, 'New': []}
        dirty = hives.dirty(hives.write(TREE), hives.write(second))
        self.put(**{'': dirty.hive, '_LOG1': dirty.logs['.LOG1']})
        self.open().set_value('Select', registry.Value.dword('Current', 2))
        self.registry.commit()
        self.assertEqual(2, len(os.listdir(self.directory)))
        written = self.guest.files[PLACE]
        self.assertIn('New', content(written))
        # The copy is the hive with what its logs held.
        backup = self.guest.files[PLACE + '.xenimport.bak']
        self.assertEqual(content(hives.write(second)), content(backup))
        hive = self.open()
        self.assertEqual(registry.State(), hive.state)
        # Above every number that the log can have.
        self.assertGreater(
            hive_file.base_block(written).primary,
            hive_file.base_block(dirty.logs['.LOG1']).primary
            + len(dirty.logs['.LOG1']) // 512,
        )

    def test_a_hive_without_edits_is_left_alone(self):
        dirty = hives.dirty(
            hives.write(TREE), hives.write({**TREE, 'New': []})
        )
        self.put(**{'': dirty.hive, '_LOG1': dirty.logs['.LOG1']})
        self.open()
        self.registry.commit()
        self.assertEqual(
            {PLACE: dirty.hive, PLACE + '.LOG1': dirty.logs['.LOG1']},
            self.guest.files,
        )

    def test_a_refused_write_changes_nothing(self):
        before = hives.write(TREE)
        self.put(**{'': before})
        self.open().set_value(
            'Select', registry.Value.binary('v', b'x' * 20000)
        )
        with self.assertRaises(exceptions.GuestError):
            self.registry.commit()
        self.assertEqual({PLACE: before}, self.guest.files)

    def test_a_new_hive(self):
        self.put(_x=b'')
        hive = self.registry.create(self.volume, 'Boot\\BCD')
        hive.set_value('Objects\\{x}', registry.Value.binary('Element', b'x'))
        self.assertIs(hive, self.registry.open(self.volume, 'boot/bcd'))
        self.registry.commit()
        data = self.guest.files['/sda2/Boot/BCD']
        self.assertEqual([('Element', 3, b'x')], content(data)['Objects\\{x}'])
        self.assertNotIn('/sda2/Boot/BCD.xenimport.bak', self.guest.files)

    def test_a_new_hive_in_place_of_a_worthless_file(self):
        self.put(**{'': b'worthless' * 5000})
        hive = self.registry.create(self.volume, PATH)
        hive.create_key('Objects')
        self.registry.commit()
        self.assertEqual(
            {'': [], 'Objects': []}, content(self.guest.files[PLACE])
        )
        self.assertLess(len(self.guest.files[PLACE]), 20_000)

    def test_local_copies_do_not_pile_up(self):
        self.put(**{'': hives.write(TREE)})
        for number in (2, 3, 4):
            self.open().set_value(
                'Select', registry.Value.dword('Current', number)
            )
            self.registry.commit()
        self.assertEqual(1, len(os.listdir(self.directory)))
