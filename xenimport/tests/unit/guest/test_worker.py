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

import json
import os
import shutil
import socket
import struct
import subprocess
import sys
import time
import types
import unittest
from unittest import mock

from xenimport.guest import frames
from xenimport.guest import processes
from xenimport.guest import session
from xenimport.guest import worker


class FramesTestCase(unittest.TestCase):
    def setUp(self):
        super().setUp()
        self.near, self.far = socket.socketpair()
        self.addCleanup(self.near.close)
        self.addCleanup(self.far.close)

    def receive(self, document, payload=b''):
        self.far.sendall(
            struct.pack('!II', len(document), len(payload))
            + document
            + payload
        )
        return frames.receive(self.near, time.monotonic() + 1)

    def test_form_of_a_frame(self):
        frames.send(self.far, {'a': [b'xy', 1], 'b': b'z'})
        document_length, payload_length = struct.unpack(
            '!II', self.near.recv(8)
        )
        document = json.loads(self.near.recv(document_length))
        self.assertEqual(
            {'pairs': [['a', [{'bytes': 2}, 1]], ['b', {'bytes': 1}]]},
            document,
        )
        self.assertEqual(3, payload_length)
        self.assertEqual(b'xyz', self.near.recv(10))

    def test_name_that_is_not_utf8(self):
        frames.send(self.far, 'caf\udce9')
        self.assertEqual('caf\udce9', frames.receive(self.near))

    def test_values_outside_the_payload(self):
        for length in (b'4', b'-1', b'true', b'"3"', b'1.0'):
            with self.assertRaises(frames.FrameError):
                self.receive(b'{"bytes": ' + length + b'}', b'abc')

    def test_unknown_mappings(self):
        for document in (
            b'{"other": 1}',
            b'{"bytes": 0, "x": 1}',
            b'{"pairs": [1]}',
            b'{"pairs": 5}',
            b'{"pairs": [[[], 1]]}',
        ):
            with self.assertRaises(frames.FrameError):
                self.receive(document)

    def test_deep_nesting(self):
        for depth in (40, 100000):
            with self.assertRaises(frames.FrameError):
                self.receive(b'[' * depth + b']' * depth)

    def test_too_large_to_send(self):
        with self.assertRaises(frames.FrameError):
            frames.encode(bytes((64 << 20) + 1))

    def test_other_types_are_not_sent(self):
        for value in (object(), {1, 2}, 1j):
            with self.assertRaises(frames.FrameError):
                frames.encode(value)

    def test_closed(self):
        self.far.sendall(b'\0\0')
        self.far.close()
        with self.assertRaises(frames.ClosedError):
            frames.receive(self.near)

    def test_half_a_frame_runs_out_of_time(self):
        self.far.sendall(struct.pack('!II', 2, 0) + b'1')
        with self.assertRaises(frames.OutOfTimeError):
            frames.receive(self.near, time.monotonic() + 0.05)

    def test_nobody_reads(self):
        with self.assertRaises(frames.OutOfTimeError):
            frames.send(self.near, bytes(8 << 20), time.monotonic() + 0.05)


class FakeHandle:
    """Stands for libguestfs' handle; remembers what it was told."""

    def __init__(self, **kwargs):
        self.told = []
        self.ready = True

    def __getattr__(self, name):
        def function(*args, **kwargs):
            self.told.append((name, args, kwargs))

        return function

    def is_ready(self):
        return self.ready

    def mount(self, device, path):
        raise RuntimeError(f'mount: {device}: unknown filesystem')

    def ls(self, path):
        return b'\xff'.decode()


class WorkerTestCase(unittest.TestCase):
    def setUp(self):
        super().setUp()
        self.handle = FakeHandle()
        module = types.SimpleNamespace(
            GuestFS=lambda **kwargs: self.handle,
            EVENT_APPLIANCE=16,
            EVENT_LIBRARY=32,
            EVENT_WARNING=128,
        )
        patcher = mock.patch.dict(sys.modules, {'guestfs': module})
        patcher.start()
        self.addCleanup(patcher.stop)
        self.sent: list[dict[str, str]] = []
        self.worker = worker.Worker(self.sent.append)

    def start(self, *drives):
        return self.worker.answer(
            {
                'do': 'start',
                'drives': list(drives),
                'memory': 512,
                'vcpus': 1,
                'verbose': False,
            }
        )

    def call(self, name, *args):
        return self.worker.answer(
            {'do': 'call', 'name': name, 'args': list(args), 'kwargs': {}}
        )

    def test_format_is_never_probed(self):
        self.start(
            {'path': '/w/a', 'protocol': 'file', 'snapshot': False},
            {'path': '/w/b', 'protocol': 'file', 'snapshot': True},
            {'path': '/w/s', 'protocol': 'nbd', 'snapshot': True},
        )
        added = [
            call[1:] for call in self.handle.told if call[0] == 'add_drive'
        ]
        self.assertEqual(
            [
                (('/w/a',), {'format': 'raw', 'readonly': False}),
                (('/w/b',), {'format': 'raw', 'readonly': True}),
                (
                    ('',),
                    {
                        'format': 'raw',
                        'readonly': True,
                        'protocol': 'nbd',
                        'server': ['unix:/w/s'],
                    },
                ),
            ],
            added,
        )

    def test_group_and_network(self):
        self.start()
        told = [(name, args) for name, args, _ in self.handle.told]
        self.assertIn(('set_pgroup', (False,)), told)
        self.assertIn(('set_network', (False,)), told)
        self.assertEqual('launch', told[-2][0])

    def test_refusal_and_death(self):
        self.start()
        self.assertEqual(
            {
                'error': 'libguestfs',
                'text': 'mount: /dev/sda: unknown filesystem',
            },
            self.call('mount', '/dev/sda', '/'),
        )
        self.handle.ready = False
        self.assertEqual('died', self.call('mount', '/dev/sda', '/')['error'])

    def test_name_that_is_not_utf8(self):
        self.start()
        self.assertEqual('unicode', self.call('ls', '/')['error'])

    def test_messages_are_passed_on_and_bounded(self):
        self.worker._message(16, 0, b'caf\xe9' + b'x' * 9000, [])
        self.assertEqual(4096, len(self.sent[0]['message']))

    def test_no_binding(self):
        with mock.patch.dict(sys.modules, {'guestfs': None}):
            self.assertEqual('import', self.start()['error'])

    def test_close_flushes(self):
        self.start()
        self.worker.answer({'do': 'close'})
        names = [name for name, _, _ in self.handle.told]
        self.assertEqual(['umount_all', 'shutdown', 'close'], names[-3:])


class RealWorkerTestCase(unittest.TestCase):
    """The program itself, which imports libguestfs only when asked."""

    def setUp(self):
        super().setUp()
        self.near, far = socket.socketpair()
        self.addCleanup(self.near.close)
        with far:
            self.process = subprocess.Popen(
                [
                    sys.executable,
                    '-P',
                    '-m',
                    'xenimport.guest.worker',
                    str(far.fileno()),
                ],
                env=session.worker_environment('/tmp', 'tcg', os.environ),
                pass_fds=(far.fileno(),),
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )
        self.addCleanup(processes.end_group, self.process, 5)
        frames.send(
            self.near, {'do': 'call', 'name': 'x', 'args': [], 'kwargs': {}}
        )
        answer = frames.receive(self.near, time.monotonic() + 5)
        self.assertEqual('usage', answer['error'])

    def test_limits(self):
        with open(f'/proc/{self.process.pid}/limits') as stream:
            limits = {
                line[:25].strip(): line[25:].split()[0]
                for line in stream.readlines()[1:]
            }
        self.assertEqual('0', limits['Max core file size'])
        self.assertEqual(str(8 << 30), limits['Max address space'])

    def test_parent_goes_away(self):
        self.near.close()
        self.assertIsNotNone(processes.exit_code(self.process, 5))
        self.process.wait()
        self.assertEqual([], processes.members(self.process.pid))

    def test_group_survives_ctrl_c_of_the_terminal(self):
        os.kill(self.process.pid, 2)
        frames.send(self.near, {'do': 'close'})
        answer = frames.receive(self.near, time.monotonic() + 5)
        self.assertEqual({'result': None}, answer)
        self.assertEqual(0, self.process.wait(5))


class ProcessesTestCase(unittest.TestCase):
    def test_whole_group_ends_and_its_sockets_are_removed(self):
        directory = '/tmp/libguestfsXqTest'
        os.mkdir(directory)
        self.addCleanup(shutil.rmtree, directory, ignore_errors=True)
        leader = subprocess.Popen(
            ['sh', '-c', f'sleep 600 & exec tail -f {directory}/s /dev/null'],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        deadline = time.monotonic() + 5
        while len(processes.members(leader.pid)) < 2:
            self.assertLess(time.monotonic(), deadline)
        self.assertEqual([], processes.end_group(leader, 5))
        self.assertEqual(-9, leader.returncode)
        self.assertFalse(os.path.exists(directory))

    def test_exit_code_of_the_living(self):
        child = subprocess.Popen(['sleep', '600'], start_new_session=True)
        self.addCleanup(processes.end_group, child, 5)
        self.assertIsNone(processes.exit_code(child, 0))
