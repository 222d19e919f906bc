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

import io
import unittest
from unittest import mock

from xenimport.osc import progress


class Terminal(io.StringIO):
    def isatty(self):
        return True


class WatcherTest(unittest.TestCase):
    def setUp(self):
        super().setUp()
        self.now = 100.0
        patcher = mock.patch(
            'time.monotonic', autospec=True, side_effect=lambda: self.now
        )
        patcher.start()
        self.addCleanup(patcher.stop)

    def test_terminal_shows_rate_and_time_left(self):
        stream = Terminal()
        watcher = progress.Watcher(stream)
        watcher.step('copy disks')
        self.now += 2
        watcher.progress(200 << 20, 1000 << 20)
        self.assertTrue(
            stream.getvalue().endswith(
                '\r\x1b[Kcopy disks: 200.0 MiB of 1000.0 MiB, '
                '100.0 MiB/s, 8 s left'
            )
        )

    def test_terminal_is_not_redrawn_for_every_byte(self):
        stream = Terminal()
        watcher = progress.Watcher(stream)
        watcher.step('copy disks')
        before = stream.getvalue()
        self.now += 0.01
        watcher.progress(1, 100)
        self.assertEqual(before, stream.getvalue())

    def test_log_gets_lines_without_control_characters(self):
        stream = io.StringIO()
        watcher = progress.Watcher(stream)
        watcher.step('copy disks')
        self.now += 1
        watcher.progress(1, 100)
        self.now += 31
        watcher.progress(50, 100)
        watcher.step_done('copy disks', 40.0, 100)
        watcher.say('kept in \x1b[31m/tmp')
        lines = stream.getvalue().splitlines()
        self.assertEqual(3, len(lines))
        self.assertTrue(lines[0].startswith('copy disks: 50 B of 100 B'))
        self.assertEqual('copy disks: 40.0 s, 100 B (2 B/s)', lines[1])
        self.assertNotIn('\x1b', stream.getvalue())
