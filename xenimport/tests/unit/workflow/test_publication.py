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


import threading
import unittest
from unittest import mock

from xenimport import model
from xenimport import opts
from xenimport.workflow import context
from xenimport.workflow import publication


class SendersTest(unittest.TestCase):
    """Several disks at the same time."""

    def setUp(self):
        self.run_ = context.Run(context.Settings(('a.ova',), opts.load([])))
        region = model.Region('a.ova', 'a.vhd', ())
        self.disks = [
            context.OpenDisk(model.Disk(str(n), str(n), n, region), size=512)
            for n in range(4)
        ]
        self.progress = publication._Progress(self.run_)

    def senders(self, send):
        patch = mock.patch.object(
            publication, '_send', autospec=True, side_effect=send
        )
        patch.start()
        self.addCleanup(patch.stop)
        return publication._Senders(
            self.run_, mock.sentinel.target, self.disks, self.progress
        )

    def test_all_are_sent(self):
        senders = self.senders(
            lambda run, target, opened, _: opened.disk.index
        )
        senders.wait()
        senders.stop()
        self.assertEqual([0, 1, 2, 3], sorted(senders.images))

    def test_nothing_begins_after_the_stop(self):
        begun = []
        free = threading.Event()

        def send(run, target, opened, progress):
            begun.append(opened.disk.index)
            free.wait(10)

        senders = self.senders(send)
        with mock.patch.object(publication, '_PATIENCE', 0.1):
            senders.stop()
        before = list(begun)
        free.set()
        senders.stop()
        self.assertEqual(before, begun)
        self.assertLess(len(begun), 4)

    def test_first_failure_is_raised(self):
        def send(run, target, opened, progress):
            raise ValueError('broken')

        senders = self.senders(send)
        with self.assertRaisesRegex(ValueError, 'broken'):
            senders.wait()
        senders.stop()
