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
import pathlib
import subprocess
import sys
import tempfile
import time
import unittest
from unittest import mock

from xenimport.guest import accelerator


class AcceleratorTestCase(unittest.TestCase):
    def setUp(self):
        super().setUp()
        directory = tempfile.TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        self.directory = pathlib.Path(directory.name)
        self.kernel = self.directory / 'vmlinuz'
        self.kernel.write_bytes(b'')
        self.environment = {
            'PATH': os.environ['PATH'],
            'XDG_CACHE_HOME': str(self.directory / 'cache'),
        }
        self.patch(mock.patch.dict(os.environ, self.environment, clear=True))
        # Stands for /dev/kvm.
        self.device = self.directory / 'kvm'
        self.device.write_bytes(b'')
        self.patch(mock.patch.object(accelerator, '_DEVICE', self.device))
        self.patch(
            mock.patch.object(
                accelerator, 'kernels', lambda: iter([self.kernel])
            )
        )

    def patch(self, patcher):
        patcher.start()
        self.addCleanup(patcher.stop)

    def qemu(self, console):
        """A program in QEMU's place; how often it ran a kernel."""
        count = self.directory / 'count'
        program = self.directory / 'qemu'
        text = self.directory / 'qemu.text'
        text.write_text(
            f'#!{sys.executable}\n'
            'import sys, time\n'
            'if "--version" in sys.argv:\n'
            '    sys.exit(print("QEMU emulator version 7.2"))\n'
            f'open({str(count)!r}, "a").write("x")\n'
            f'{console}\n'
        )
        # Written by another process: a child that another thread of this
        # one forks meanwhile would hold it open, and "text file busy".
        subprocess.run(['install', '-m', '755', text, program], check=True)
        self.patch(mock.patch.object(accelerator, 'QEMU', str(program)))
        return lambda: len(count.read_text()) if count.exists() else 0

    def test_kernel_that_speaks(self):
        self.qemu(
            'print("[ 0.0] Linux version 6.1", flush=True); time.sleep(60)'
        )
        began = time.monotonic()
        self.assertEqual('kvm', accelerator.detect())
        self.assertLess(time.monotonic() - began, 2)

    def test_answer_is_remembered_until_the_machine_starts_anew(self):
        runs = self.qemu('print("Linux version 6.1", flush=True)')
        first = accelerator.probe()
        self.assertFalse(first.remembered)
        again = accelerator.probe()
        self.assertTrue(again.remembered)
        self.assertEqual('kvm', again.accelerator)
        self.assertEqual(1, runs())
        file = self.directory / 'cache' / 'xenimport' / 'accelerator.json'
        data = json.loads(file.read_text())
        self.assertIn(os.uname().release, data['key'])
        self.assertIn('QEMU emulator version 7.2', data['key'])
        data['key'] += ' of another start'
        file.write_text(json.dumps(data))
        self.assertFalse(accelerator.probe().remembered)
        self.assertEqual(2, runs())
        accelerator.probe(fresh=True)
        self.assertEqual(3, runs())

    def test_damaged_memory_is_no_memory(self):
        runs = self.qemu('print("Linux version 6.1", flush=True)')
        file = self.directory / 'cache' / 'xenimport' / 'accelerator.json'
        file.parent.mkdir(parents=True)
        for number, text in enumerate(('', '[]', '{"key": 1}', '\x00'), 1):
            file.write_text(text)
            self.assertEqual('kvm', accelerator.probe().accelerator)
            self.assertEqual(number, runs())

    def test_memory_that_cannot_be_written(self):
        self.qemu('print("Linux version 6.1", flush=True)')
        (self.directory / 'cache').write_text('a file in its place')
        self.assertEqual('kvm', accelerator.detect())

    def test_kvm_that_only_pretends(self):
        self.qemu('print("SeaBIOS", flush=True); time.sleep(60)')
        started, output = accelerator.boots([accelerator.QEMU], 0.4)
        self.assertFalse(started)
        self.assertEqual(b'SeaBIOS\n', output)

    def test_kvm_refuses(self):
        self.qemu('sys.exit("Could not access KVM kernel module")')
        result = accelerator.probe()
        self.assertEqual('tcg', result.accelerator)
        self.assertTrue(result.pretends)
        self.assertIn('Could not access KVM', result.reason)

    def test_no_qemu(self):
        self.patch(mock.patch.object(accelerator, 'QEMU', '/none/qemu'))
        self.assertEqual('tcg', accelerator.detect())

    def test_no_device(self):
        runs = self.qemu('print("Linux version 6.1", flush=True)')
        self.device.unlink()
        result = accelerator.probe()
        self.assertEqual('tcg', result.accelerator)
        self.assertFalse(result.pretends)
        self.assertEqual(0, runs())

    def test_tcg_is_wanted(self):
        runs = self.qemu('print("Linux version 6.1", flush=True)')
        for value in ('force_tcg', 'network_bridge=x:force_tcg'):
            with mock.patch.dict(
                os.environ, {'LIBGUESTFS_BACKEND_SETTINGS': value}
            ):
                self.assertEqual('tcg', accelerator.detect())
        self.assertEqual(0, runs())

    def test_no_kernel_is_not_remembered(self):
        runs = self.qemu('print("Linux version 6.1", flush=True)')
        self.kernel.unlink()
        self.assertEqual('tcg', accelerator.detect())
        self.kernel.write_bytes(b'')
        self.assertEqual('kvm', accelerator.detect())
        self.assertEqual(1, runs())

    def test_endless_output_is_bounded(self):
        self.qemu('while True: print("x" * 9999)')
        started, output = accelerator.boots([accelerator.QEMU], 5)
        self.assertFalse(started)
        self.assertLess(len(output), (1 << 20) + 4097)
