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

import io
import struct
import unittest
from unittest import mock

from Registry import RegistryLog
from Registry import RegistryParse

from xenimport.guest import hive_file
from xenimport.guest import hive_log
from xenimport.guest import hive_reader
from xenimport.tests import hives

SEQUENCE = 7
FIRST = hives.write(
    {'a': [('v', 4, hives.dword(1))], 'Services': []}, sequence=SEQUENCE
)
SECOND = hives.write({'a': [('v', 4, hives.dword(2))], 'Services\\x': []})
#: Longer than the others, so that the file grows.
THIRD = hives.write(
    {
        'a': [('v', 4, hives.dword(3)), ('big', 3, b'data' * 3000)],
        'Services\\x': [],
        'Services\\y': [],
    }
)


def content(data):
    """All of a hive, as its reader finds it."""
    return list(hive_reader.Reader(data, 'hive').records('', -1))


def recover(hive, logs):
    return hive_log.recover(
        bytearray(hive), {name: bytearray(logs[name]) for name in sorted(logs)}
    )


class MarvinTestCase(unittest.TestCase):
    def test_against_python_registry(self):
        for length in (*range(10), 512, 1021):
            data = bytes(index * 7 & 0xFF for index in range(length))
            if length % 4 in (2, 3):
                # python-registry takes one byte alone of what is left.
                continue
            block = RegistryParse.HvLEBlock(b'HvLE' + bytes(508), 0, None)
            expected = struct.pack('<Q', block.marvin32_hash(data))
            self.assertEqual(expected, hive_log.marvin32(data))
            self.assertEqual(expected, hives.marvin32(data))


class NewFormatTestCase(unittest.TestCase):
    def assert_recovered(self, found, state, replayed, *logs):
        self.assertEqual('', found.lost)
        self.assertEqual((replayed, logs), (found.replayed, found.logs))
        self.assertEqual(content(state), content(found.data))
        base = hive_file.base_block(found.data)
        self.assertFalse(base.dirty)
        self.assertEqual(hive_file.base_block(state).size, base.size)

    def test_one_log(self):
        dirty = hives.dirty(FIRST, SECOND, THIRD)
        found = recover(dirty.hive, dirty.logs)
        self.assert_recovered(found, THIRD, 2, '.LOG1')
        base = hive_file.base_block(found.data)
        self.assertEqual((SEQUENCE + 2,) * 2, (base.primary, base.secondary))

    def test_as_python_registry_recovers_it(self):
        dirty = hives.dirty(FIRST, SECOND, THIRD)
        primary = io.BytesIO(dirty.hive)
        RegistryLog.RegistryLog(
            primary, io.BytesIO(dirty.logs['.LOG1'])
        ).recover_hive()
        found = recover(dirty.hive, dirty.logs)
        self.assertEqual(
            primary.getvalue()[hives.PAGE :], found.data[hives.PAGE :]
        )

    def test_what_is_given_stays(self):
        dirty = hives.dirty(FIRST, SECOND)
        data = bytearray(dirty.hive)
        hive_log.recover(data, {'.LOG1': bytearray(dirty.logs['.LOG1'])})
        self.assertEqual(dirty.hive, data)

    def test_two_logs(self):
        dirty = hives.dirty(FIRST, SECOND, THIRD, split=1)
        found = recover(dirty.hive, dirty.logs)
        self.assert_recovered(found, THIRD, 2, '.LOG1', '.LOG2')

    def test_the_second_log_holds_the_earlier_entries(self):
        dirty = hives.dirty(FIRST, SECOND, THIRD, first=2, split=1)
        found = recover(dirty.hive, dirty.logs)
        self.assert_recovered(found, THIRD, 2, '.LOG2', '.LOG1')

    def test_a_log_that_does_not_follow_the_other(self):
        dirty = hives.dirty(FIRST, SECOND, THIRD, split=1)
        gap = hives.entry(
            SEQUENCE + 3, hives.pages(SECOND, THIRD), len(THIRD) - hives.PAGE
        )
        dirty.logs['.LOG2'] = hives.new_log(FIRST, SEQUENCE + 3, [gap])
        found = recover(dirty.hive, dirty.logs)
        self.assert_recovered(found, SECOND, 1, '.LOG1')

    def test_a_stale_log_beside_it(self):
        dirty = hives.dirty(FIRST, SECOND)
        stale = hives.entry(
            SEQUENCE - 3, hives.pages(FIRST, THIRD), len(THIRD) - hives.PAGE
        )
        dirty.logs['.LOG2'] = hives.new_log(FIRST, SEQUENCE - 3, [stale])
        found = recover(dirty.hive, dirty.logs)
        self.assert_recovered(found, SECOND, 1, '.LOG1')

    def test_stale_entries_behind_the_last(self):
        dirty = hives.dirty(FIRST, SECOND)
        dirty.logs['.LOG1'] += hives.entry(
            SEQUENCE - 1, hives.pages(SECOND, THIRD), len(THIRD) - hives.PAGE
        )
        found = recover(dirty.hive, dirty.logs)
        self.assert_recovered(found, SECOND, 1, '.LOG1')

    def test_a_torn_last_entry(self):
        dirty = hives.dirty(FIRST, SECOND, THIRD)
        log = dirty.logs['.LOG1']
        for torn in (log[:-512], log[:-700] + b'\xff' + log[-699:]):
            found = recover(dirty.hive, {'.LOG1': torn})
            self.assert_recovered(found, SECOND, 1, '.LOG1')

    def test_a_wrong_hash_of_the_head(self):
        dirty = hives.dirty(FIRST, SECOND)
        log = bytearray(dirty.logs['.LOG1'])
        # Hash-2, offset 32 of the first entry.
        log[512 + 32] ^= 1
        found = recover(dirty.hive, {'.LOG1': log})
        self.assertIn('nothing that follows', found.lost)

    def test_only_entries_that_the_hive_lacks(self):
        # The log's first entry is older than the hive's last write.
        dirty = hives.dirty(FIRST, SECOND)
        hive = hives.numbered(FIRST, SEQUENCE + 5, SEQUENCE + 4)
        found = recover(hive, dirty.logs)
        self.assertIn('nothing that follows', found.lost)
        self.assertEqual(hive, found.data)

    def test_a_first_entry_of_another_number(self):
        dirty = hives.dirty(FIRST, SECOND)
        dirty.logs['.LOG1'] = hives.new_log(
            FIRST,
            SEQUENCE + 1,
            [
                hives.entry(
                    SEQUENCE + 2,
                    hives.pages(FIRST, SECOND),
                    len(SECOND) - hives.PAGE,
                )
            ],
        )
        found = recover(dirty.hive, dirty.logs)
        self.assertIn('nothing that follows', found.lost)

    def test_a_torn_base_block(self):
        dirty = hives.dirty(FIRST, SECOND, THIRD, split=1)
        hive = bytearray(dirty.hive)
        hive[100:300] = bytes(range(200))
        # Only the log with the latest entries counts, so one that goes
        # from the first state to the third.
        dirty.logs['.LOG2'] = hives.new_log(
            FIRST,
            SEQUENCE + 2,
            [
                hives.entry(
                    SEQUENCE + 2,
                    hives.pages(FIRST, THIRD),
                    len(THIRD) - hives.PAGE,
                )
            ],
        )
        found = recover(hive, dirty.logs)
        self.assert_recovered(found, THIRD, 1, '.LOG2')
        self.assertEqual(0, hive_file.base_block(found.data).kind)

    def test_the_flag_of_a_locked_hive(self):
        # Offset 144 of a base block; an entry has it at 8.
        entry = bytearray(
            hives.entry(
                SEQUENCE + 1,
                hives.pages(FIRST, SECOND),
                len(SECOND) - hives.PAGE,
            )
        )
        entry[8] = 1
        entry[32:40] = hives.marvin32(entry[:32])
        log = hives.new_log(FIRST, SEQUENCE + 1, [bytes(entry)])
        hive = bytearray(hives.numbered(FIRST, SEQUENCE + 1, SEQUENCE))
        hive[144] = 2
        found = recover(hives.sealed(hive), {'.LOG1': log})
        self.assertEqual(3, found.data[144])

    def test_pages_outside_the_hive_or_the_entry(self):
        page = bytes(hives.PAGE)
        size = len(THIRD) - hives.PAGE
        self.assertGreater(size, 2 * hives.PAGE)
        for changed in (
            [(size, page)],
            [(0xFFFFF000, page)],
            [(0, page)],
        ):
            entry = bytearray(hives.entry(SEQUENCE + 1, changed, size))
            if changed[0][0] == 0:
                # A reference to more than the entry holds.
                struct.pack_into('<I', entry, 44, 2 * hives.PAGE)
                entry[24:32] = hives.marvin32(entry[40:])
                entry[32:40] = hives.marvin32(entry[:32])
            log = hives.new_log(FIRST, SEQUENCE + 1, [bytes(entry)])
            hive = hives.numbered(THIRD, SEQUENCE + 1, SEQUENCE)
            found = recover(hive, {'.LOG1': log})
            self.assertIn('nothing that follows', found.lost)

    def test_a_log_that_is_too_large(self):
        dirty = hives.dirty(FIRST, SECOND)
        size = len(dirty.logs['.LOG1'])
        with mock.patch.object(hive_log, 'LOG_LIMIT', size):
            self.assertEqual('', recover(dirty.hive, dirty.logs).lost)
        with mock.patch.object(hive_log, 'LOG_LIMIT', size - 1):
            self.assertTrue(recover(dirty.hive, dirty.logs).lost)

    def test_huge_numbers_in_an_entry(self):
        entry = bytearray(
            hives.entry(SEQUENCE + 1, hives.pages(FIRST, SECOND), hives.PAGE)
        )
        hive = hives.numbered(FIRST, SEQUENCE + 1, SEQUENCE)
        # Length, size of the hive bins, count of pages.
        for offset, small in ((4, 0), (4, 1), (16, 0), (16, 4608), (20, 99)):
            for number in (small, 0xFFFFFFFF, 0xFFFFFE00, 0x7FFFF000):
                bad = bytearray(entry)
                struct.pack_into('<I', bad, offset, number)
                bad[32:40] = hives.marvin32(bad[:32])
                log = hives.new_log(FIRST, SEQUENCE + 1, [bytes(bad)])
                found = recover(hive, {'.LOG1': log})
                self.assertIn('nothing that follows', found.lost)
                self.assertEqual(hive, found.data)

    def test_entries_that_break_the_hive(self):
        size = len(FIRST) - hives.PAGE
        log = hives.new_log(
            FIRST,
            SEQUENCE + 1,
            [hives.entry(SEQUENCE + 1, [(0, bytes(hives.PAGE))], size)],
        )
        hive = hives.numbered(FIRST, SEQUENCE + 1, SEQUENCE)
        found = recover(hive, {'.LOG1': log})
        self.assertEqual('its logs do not fit to it', found.lost)
        self.assertEqual(hive, found.data)

    def test_no_log_empty_logs_and_nonsense(self):
        hive = hives.numbered(FIRST, SEQUENCE + 1, SEQUENCE)
        self.assertEqual('it has no logs', recover(hive, {}).lost)
        for log in (b'', bytes(512), b'regf' * 200, FIRST):
            self.assertTrue(recover(hive, {'.LOG1': log}).lost)
        self.assertEqual('the hive is cut', recover(hive[:600], {}).lost)


class OldFormatTestCase(unittest.TestCase):
    def assert_recovered(self, found, state, log='.LOG1'):
        self.assertEqual('', found.lost)
        self.assertEqual((1, (log,)), (found.replayed, found.logs))
        self.assertEqual(content(state), content(found.data))
        base = hive_file.base_block(found.data)
        self.assertFalse(base.dirty)
        self.assertEqual(0, base.kind)
        self.assertGreater(base.primary, SEQUENCE)

    def test_a_write_that_did_not_end(self):
        dirty = hives.dirty_old(FIRST, THIRD)
        self.assert_recovered(recover(dirty.hive, dirty.logs), THIRD)

    def test_a_base_block_that_was_not_written(self):
        # All but its numbers is still that of the write before.
        dirty = hives.dirty_old(FIRST, THIRD)
        hive = hives.numbered(FIRST, SEQUENCE + 1, SEQUENCE)
        self.assert_recovered(recover(hive, dirty.logs), THIRD)

    def test_a_time_that_the_first_bin_has_not_yet(self):
        dirty = hives.dirty_old(FIRST, THIRD)
        hive, log = bytearray(dirty.hive), bytearray(dirty.logs['.LOG1'])
        for data in (hive, log):
            struct.pack_into('<Q', data, 12, hives.WRITTEN + 5)
            data[:512] = hives.sealed(data[:512])
        self.assert_recovered(recover(hive, {'.LOG1': log}), THIRD)
        # With a torn base block only the bin's time is left.
        hive[100] ^= 1
        self.assertTrue(recover(hive, {'.LOG1': log}).lost)
        self.assert_recovered(recover(hive, dirty.logs), THIRD)

    def test_some_pages_were_written(self):
        dirty = hives.dirty_old(FIRST, THIRD)
        half = bytearray(dirty.hive)
        half += bytes(len(THIRD) - len(half))
        half[8192:12288] = THIRD[8192:12288]
        self.assert_recovered(recover(half, dirty.logs), THIRD)

    def test_the_log_of_windows_2000(self):
        dirty = hives.dirty_old(FIRST, THIRD)
        log = hives.old_log(FIRST, THIRD, SEQUENCE + 1, kind=2)
        self.assert_recovered(
            recover(dirty.hive, {'.LOG': log}), THIRD, '.LOG'
        )

    def test_the_second_log_where_the_first_is_of_another_time(self):
        dirty = hives.dirty_old(FIRST, THIRD)
        other = bytearray(dirty.logs['.LOG1'])
        struct.pack_into('<Q', other, 12, hives.WRITTEN + 1)
        other[:512] = hives.sealed(other[:512])
        logs = {'.LOG1': other, '.LOG2': dirty.logs['.LOG1']}
        self.assert_recovered(recover(dirty.hive, logs), THIRD, '.LOG2')
        found = recover(dirty.hive, {'.LOG1': other})
        self.assertIn('another write', found.lost)

    def test_a_torn_base_block(self):
        dirty = hives.dirty_old(FIRST, THIRD)
        hive = bytearray(dirty.hive)
        # Root, size and all else that the log's copy has as well.
        hive[24:200] = bytes(176)
        self.assert_recovered(recover(hive, dirty.logs), THIRD)

    def test_a_log_that_was_not_finished(self):
        dirty = hives.dirty_old(FIRST, THIRD)
        log = bytearray(dirty.logs['.LOG1'])
        unequal = log.copy()
        struct.pack_into('<I', unequal, 8, SEQUENCE)
        unequal[:512] = hives.sealed(unequal[:512])
        nameless = log.copy()
        nameless[512:516] = b'LOST'
        checksum = log.copy()
        checksum[510] ^= 1
        for bad in (unequal, nameless, checksum, log[:-512], log[:520]):
            found = recover(dirty.hive, {'.LOG1': bad})
            self.assertTrue(found.lost)
            self.assertEqual(dirty.hive, found.data)

    def test_sectors_of_4096_bytes(self):
        # The vector starts in the second sector, the pages in the next.
        dirty = hives.dirty_old(FIRST, THIRD)
        log = dirty.logs['.LOG1']
        base = bytearray(log[:512])
        struct.pack_into('<I', base, 44, 8)
        large = hives.sealed(base).ljust(4096, b'\0')
        vector = log[512:].partition(THIRD[4096:4608])[0]
        large += vector.ljust(4096, b'\0') + log[512 + len(vector) :]
        self.assert_recovered(recover(dirty.hive, {'.LOG1': large}), THIRD)

    def test_hostile_sizes(self):
        dirty = hives.dirty_old(FIRST, THIRD)
        # Size of the hive bins; the sector's factor.
        for offset in (40, 44):
            for number in (0, 9, 0x7FFFF000, 0xFFFFFFFF):
                log = bytearray(dirty.logs['.LOG1'])
                struct.pack_into('<I', log, offset, number)
                log[:512] = hives.sealed(log[:512])
                found = recover(dirty.hive, {'.LOG1': log})
                self.assertTrue(found.lost, (offset, number))
