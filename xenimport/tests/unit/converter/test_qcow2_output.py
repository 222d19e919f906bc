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

"""qemu-img, played by small scripts; the real one is a functional test."""

import os
import pathlib
import tempfile
import unittest
from unittest import mock

from xenimport.converter import qcow2_output
from xenimport import exceptions
from xenimport import model
from xenimport.tests import qemu_images

MIB = 1024 * 1024


class OutputTest(unittest.TestCase):
    def setUp(self) -> None:
        directory = tempfile.TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        self.directory = pathlib.Path(directory.name)
        (self.directory / 'bin').mkdir()
        self.raw = self.directory / 'disk.raw'
        self.raw.write_bytes(bytes(MIB))
        self.output = self.directory / 'disk.qcow2'
        self.ready = self.directory / 'ready'
        self.ready.write_bytes(qemu_images.qcow2({0: b'data'}, MIB))
        patcher = mock.patch.dict(
            os.environ, PATH=f'{self.directory}/bin:{os.environ["PATH"]}'
        )
        patcher.start()
        self.addCleanup(patcher.stop)

    def program(self, convert: str, check: str = 'echo {}') -> None:
        """What is called qemu-img here; its last word is the output."""
        path = self.directory / 'bin' / 'qemu-img'
        path.write_text(
            '#!/bin/sh\n'
            'for last; do :; done\n'
            'case $1 in\n'
            f'convert) {convert} ;;\n'
            f'check) {check} ;;\n'
            'esac\n'
        )
        path.chmod(0o755)

    def write(self, progress: model.Progress = model.no_progress) -> int:
        return qcow2_output.write(
            os.fspath(self.raw), os.fspath(self.output), progress
        )

    def assert_fails(self, error_id: str) -> exceptions.XenImportError:
        with self.assertRaises(exceptions.XenImportError) as caught:
            self.write()
        self.assertEqual(error_id, caught.exception.id)
        self.assertFalse(self.output.exists())
        return caught.exception

    def test_progress_and_size(self):
        self.program(
            r"""printf '    (0.00/100%%)\r    (25.00/100%%)\r'; sleep 0.1; """
            r"""printf '    (50.'; sleep 0.1; printf '00/100%%)\r'; """
            f"""cp {self.ready} "$last" """
        )
        seen: list[int] = []
        size = self.write(lambda done, total: seen.append(done))
        self.assertEqual(MIB, size)
        self.assertEqual([0, MIB // 4, MIB // 2], sorted(set(seen)))
        self.assertEqual(0o600, self.output.stat().st_mode & 0o777)

    def test_not_installed(self):
        with mock.patch.dict(os.environ, PATH='/nowhere'):
            self.assert_fails('machine.qemu-img-missing')

    def test_no_space(self):
        self.program(
            'echo "qemu-img: error while writing at byte 7: '
            'No space left on device" >&2; exit 1'
        )
        self.assert_fails('machine.no-space')

    def test_file_too_large(self):
        self.program('echo "error: File too large" >&2; exit 1')
        self.assert_fails('machine.file-too-large')

    def test_other_failure(self):
        self.program('echo first >&2; echo "the reason" >&2; exit 1')
        error = self.assert_fails('machine.write-failed')
        self.assertEqual('the reason', error.found)

    def test_killed(self):
        self.program('kill -9 $$')
        error = self.assert_fails('machine.write-failed')
        self.assertIn('-9', error.found or '')

    def test_interrupted(self):
        note = self.directory / 'pid'
        self.program(f'echo $$ >{note}; printf "(50.00/100%%)"; exec sleep 60')

        def interrupt(done: int, total: int) -> None:
            if done:
                raise KeyboardInterrupt

        with self.assertRaises(KeyboardInterrupt):
            self.write(interrupt)
        self.assertFalse(self.output.exists())
        with self.assertRaises(ProcessLookupError):
            os.kill(int(note.read_text()), 0)

    def test_tables_that_are_not_whole(self):
        self.program(f'cp {self.ready} "$last"', 'echo "it leaks" >&2; exit 3')
        error = self.assert_fails('verify.qcow2')
        self.assertIn('it leaks', error.found or '')

    def test_check_that_says_nonsense(self):
        self.program(f'cp {self.ready} "$last"', 'echo nonsense')
        self.assert_fails('verify.qcow2')

    def test_disk_of_another_size(self):
        self.ready.write_bytes(qemu_images.qcow2({}, 2 * MIB))
        self.program(f'cp {self.ready} "$last"')
        error = self.assert_fails('verify.qcow2')
        self.assertIn(str(2 * MIB), error.found or '')

    def test_image_that_names_another_file(self):
        self.ready.write_bytes(
            qemu_images.qcow2({}, MIB, backing_offset=200, backing_size=9)
        )
        self.program(f'cp {self.ready} "$last"')
        with self.assertLogs('oslo_utils.imageutils'):
            self.assert_fails('verify.qcow2')

    def test_no_image_at_all(self):
        self.program(':')
        self.assert_fails('verify.qcow2')

    def test_never_through_a_link(self):
        self.program(f'cp {self.ready} "$last"')
        other = self.directory / 'other'
        other.write_bytes(b'kept')
        self.output.symlink_to(other)
        with self.assertRaises(exceptions.MachineError) as caught:
            self.write()
        self.assertEqual('machine.write-failed', caught.exception.id)
        self.assertEqual(b'kept', other.read_bytes())
        self.assertTrue(self.output.is_symlink())
