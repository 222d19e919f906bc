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

"""The process that reads for us, played by small scripts here."""

from collections.abc import Iterator
import json
import os
import pathlib
import tempfile
import types
import typing
import unittest
from unittest import mock

from xenimport.converter import qemu_server
from xenimport import exceptions

GIB = 1 << 30


class _Error(Exception):
    errnum = 0
    string = 'nobody listens'


class _Handle:
    """A connection that nobody answers."""

    def add_meta_context(self, name: str) -> None:
        pass

    def aio_connect_unix(self, path: str) -> None:
        raise _Error


BINDING = types.SimpleNamespace(NBD=_Handle, Error=_Error)


class StartTest(unittest.TestCase):
    def setUp(self) -> None:
        directory = tempfile.TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        self.directory = pathlib.Path(directory.name)
        (self.directory / 'bin').mkdir()
        (self.directory / 'tmp').mkdir()
        self.use(mock.patch.object(qemu_server, '_binding', lambda: BINDING))
        self.use(
            mock.patch.dict(
                os.environ, PATH=f'{self.directory}/bin:{os.environ["PATH"]}'
            )
        )
        self.use(
            mock.patch.object(
                tempfile, 'tempdir', os.fspath(self.directory / 'tmp')
            )
        )

    def use(self, patcher: typing.Any) -> None:
        patcher.start()
        self.addCleanup(patcher.stop)

    def program(self, *lines: str) -> None:
        """What is called qemu-nbd here."""
        path = self.directory / 'bin' / 'qemu-nbd'
        path.write_text('\n'.join(('#!/bin/sh', *lines, '')))
        path.chmod(0o755)

    def start(
        self, size: int | None = 1024, **options: object
    ) -> exceptions.XenImportError:
        """Start it; the error that this gives."""
        with (
            open('/dev/null', 'rb') as stream,
            self.assertRaises(exceptions.XenImportError) as caught,
        ):
            qemu_server.Server(
                'qcow2', (stream.fileno(), 512, size), options, 'one.qcow2'
            )
        # Nothing is left, whatever happened.
        self.assertEqual([], list((self.directory / 'tmp').iterdir()))
        return caught.exception

    def test_refuses_the_image(self):
        self.program(
            """echo "qemu-nbd: Failed to blk_new_open 'json:{...}}': """
            """The image is odd" >&2""",
            'exit 1',
        )
        error = self.start()
        self.assertEqual('disk-image.refused', error.id)
        self.assertEqual('The image is odd', error.found)
        self.assertEqual('one.qcow2', error.where)

    def test_ends_without_a_word(self):
        self.program('exit 3')
        error = self.start()
        self.assertEqual('disk-image.refused', error.id)
        self.assertIn('exit code 3', error.found or '')

    def test_does_not_answer(self):
        note = self.directory / 'pid'
        self.program(f'echo $$ >{note}', 'exec sleep 60')
        with mock.patch.object(qemu_server, 'START_LIMIT', 0.2):
            error = self.start()
        self.assertEqual('disk-image.refused', error.id)
        self.assertIn('no answer', error.found or '')
        with self.assertRaises(ProcessLookupError):
            os.kill(int(note.read_text()), 0)

    def test_writes_no_more_than_a_little(self):
        """Neither into its log nor anywhere else."""
        self.program('exec yes')
        error = self.start()
        self.assertEqual('disk-image.refused', error.id)
        self.assertLessEqual(len(error.found or ''), 300)

    def test_what_it_is_given(self):
        note = self.directory / 'words'
        limits = self.directory / 'limits'
        self.program(
            f'ulimit -a >{limits}',
            f'for word; do echo "$word" >>{note}; done',
        )
        self.start(backing=None)
        *words, node = note.read_text().splitlines()
        self.assertIn('--read-only', words)
        self.assertNotIn('--persistent', words)
        self.assertTrue(node.startswith('json:'))
        found = json.loads(node.removeprefix('json:'))
        file = found['file'].pop('file')
        self.assertEqual(
            {
                'driver': 'qcow2',
                'read-only': True,
                'backing': None,
                'file': {
                    'driver': 'raw',
                    'read-only': True,
                    'offset': 512,
                    'size': 1024,
                },
            },
            found,
        )
        self.assertEqual('file', file['driver'])
        self.assertRegex(file['filename'], r'\A/proc/self/fd/[0-9]+\Z')
        self.assertEqual('off', file['locking'])
        text = limits.read_text()
        self.assertRegex(text, r'(?m)^(vmemory|virtual mem).* 2097152$')
        self.assertRegex(text, r'(?m)^(time|cpu time).* 30$')

    def test_no_size_where_the_file_ends_within_a_sector(self):
        note = self.directory / 'words'
        self.program(f'for word; do echo "$word" >>{note}; done')
        self.start(size=None)
        node = note.read_text().splitlines()[-1]
        self.assertNotIn('size', node)

    def test_not_installed(self):
        with mock.patch.dict(os.environ, PATH='/nowhere'):
            self.assertEqual('machine.qemu-nbd-missing', self.start().id)


class BindingTest(unittest.TestCase):
    def test_not_installed(self):
        with (
            mock.patch.dict('sys.modules', nbd=None),
            self.assertRaises(exceptions.MachineError) as caught,
        ):
            qemu_server.Server('vdi', (0, 0, None), {}, 'one.vdi')
        self.assertEqual('machine.libnbd-missing', caught.exception.id)
        self.assertIn('python3-libnbd', caught.exception.fix or '')


class DirectoryTest(unittest.TestCase):
    def test_socket_has_a_short_path(self):
        with tempfile.TemporaryDirectory() as directory:
            deep = os.path.join(directory, 'd' * 100)
            os.mkdir(deep)
            with mock.patch.object(tempfile, 'tempdir', deep):
                found = qemu_server._directory()
            self.addCleanup(os.rmdir, found)
            self.assertLess(len(found) + len('/nbd'), 108)
            self.assertEqual([], os.listdir(deep))
            self.assertEqual(0o700, os.stat(found).st_mode & 0o777)


class _Told(qemu_server.Server):
    """A server of which only the answers about holes are there."""

    def __init__(self, size: int, answers: list[list[tuple[int, int]]]):
        self.size = size
        self.where = 'one.vdi'
        self.asked: list[tuple[int, int]] = []
        self._answers: Iterator[list[tuple[int, int]]] = iter(answers)

    def _block_status(self, offset: int, length: int) -> list[tuple[int, int]]:
        self.asked.append((offset, length))
        return next(self._answers)


class ExtentsTest(unittest.TestCase):
    DATA, HOLE, ZERO = 0, 1, 3

    def test_neighbours_are_joined(self):
        server = _Told(
            4096,
            [
                [(512, self.ZERO), (512, self.DATA), (1024, self.HOLE)],
                [(512, self.DATA), (1536, self.ZERO)],
            ],
        )
        self.assertEqual(
            [(0, 512, False), (512, 2048, True), (2560, 1536, False)],
            list(server.extents()),
        )
        self.assertEqual([(0, 4096), (2048, 2048)], server.asked)

    def test_data_are_whole_sectors(self):
        server = _Told(
            4096,
            [
                [
                    (700, self.ZERO),
                    (10, self.DATA),
                    (3000, self.ZERO),
                    (386, self.DATA),
                ]
            ],
        )
        self.assertEqual(
            [
                (0, 512, False),
                (512, 512, True),
                (1024, 2560, False),
                (3584, 512, True),
            ],
            list(server.extents()),
        )

    def test_all_or_nothing(self):
        for flags, allocated in (self.DATA, True), (self.ZERO, False):
            server = _Told(1024, [[(1024, flags)]])
            self.assertEqual([(0, 1024, allocated)], list(server.extents()))

    def test_more_than_was_asked_for(self):
        server = _Told(1024, [[(1 << 40, self.DATA)]])
        self.assertEqual([(0, 1024, True)], list(server.extents()))

    def test_large_disks_are_asked_in_large_steps(self):
        step = (4 << 30) - (1 << 20)
        server = _Told(
            16 * GIB, [[(step, self.ZERO)]] * 4 + [[(4 << 20, self.DATA)]]
        )
        self.assertEqual(2, len(list(server.extents())))
        self.assertEqual(5, len(server.asked))

    def test_no_answer(self):
        for answer in [], [(0, self.DATA)]:
            server = _Told(1024, [answer])
            with self.assertRaises(exceptions.DiskImageError) as caught:
                list(server.extents())
            self.assertEqual('disk-image.read-failed', caught.exception.id)
