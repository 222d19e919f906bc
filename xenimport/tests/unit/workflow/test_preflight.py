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

import collections
import os
import pathlib
import tempfile
import unittest
from unittest import mock

from xenimport import exceptions
from xenimport.guest import accelerator
from xenimport import opts
from xenimport.workflow import preflight

_Usage = collections.namedtuple('_Usage', 'total used free')


class PreflightTestCase(unittest.TestCase):
    def setUp(self):
        super().setUp()
        directory = tempfile.TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        self.directory = pathlib.Path(directory.name)
        self.conf = opts.load([])

    def patch(self, *args, **kwargs):
        patcher = mock.patch.object(*args, **kwargs)  # noqa: H210
        self.addCleanup(patcher.stop)
        return patcher.start()

    def assert_result(self, result, status, evidence, remedy=None):
        self.assertEqual(status, result.status)
        self.assertIn(evidence, result.evidence)
        self.assertTrue(result.id.startswith('machine.'))
        if remedy is None:
            self.assertIsNone(result.remedy)
        else:
            self.assertIn(remedy, result.remedy)

    def program(self, name, script):
        path = self.directory / name
        path.write_text(f'#!/bin/sh\n{script}\n')
        path.chmod(0o755)
        return path

    def only_path(self):
        patcher = mock.patch.dict(os.environ, {'PATH': str(self.directory)})
        patcher.start()
        self.addCleanup(patcher.stop)


class ToolTestCase(PreflightTestCase):
    def setUp(self):
        super().setUp()
        self.only_path()
        self.tool = preflight._Tool('machine.x', 'xtool', 'is', 'x-package')

    def test_there(self):
        path = self.program('xtool', 'echo 1.2')
        self.assert_result(preflight.tool(self.tool), 'ok', str(path))

    def test_not_there(self):
        self.assert_result(
            preflight.tool(self.tool),
            'failed',
            'no xtool',
            'apt install x-package',
        )

    def test_there_but_broken(self):
        self.program('xtool', 'echo libz.so.1: not found; exit 127')
        self.assert_result(
            preflight.tool(self.tool), 'failed', 'libz.so.1', '--reinstall'
        )

    def test_that_hangs(self):
        self.program('xtool', 'exec /bin/sleep 60')
        self.patch(preflight, '_TOOL_LIMIT', 0.2)
        self.assert_result(
            preflight.tool(self.tool), 'failed', 'did not end', 'x-package'
        )

    def test_nbdkit_without_its_python_plugin(self):
        self.program('nbdkit', '[ "$1" != python ]')
        self.assert_result(
            preflight.nbdkit(), 'failed', 'nbdkit', 'nbdkit-plugin-python'
        )

    def test_nbdkit_with_it(self):
        self.program('nbdkit', '[ "$1 $2" = "python --dump-plugin" ]')
        self.assert_result(preflight.nbdkit(), 'ok', 'nbdkit')

    def test_bindings(self):
        for check, package in (
            (preflight.libnbd_binding, 'python3-libnbd'),
            (preflight.hivex_binding, 'python3-hivex'),
        ):
            for found, status in ((True, 'ok'), (False, 'warning')):
                with self.subTest(package=package, found=found):
                    self.patch(
                        preflight, '_run', return_value=(found, 'No module')
                    )
                    result = check()
                    self.assertEqual(status, result.status)
                    self.assertEqual(
                        not found,
                        f'apt install {package}' in (result.remedy or ''),
                    )

    def test_no_nbdkit(self):
        self.assert_result(
            preflight.nbdkit(), 'failed', 'no nbdkit', 'apt install nbdkit'
        )

    def test_grub(self):
        modules = self.directory / 'i386-pc'
        self.patch(preflight, '_GRUB_MODULES', str(modules))
        self.assert_result(
            preflight.grub(), 'warning', 'grub-mkimage', 'grub-pc-bin'
        )
        self.program('grub-mkimage', '')
        self.assert_result(
            preflight.grub(), 'warning', 'kernel.img', 'grub-pc-bin'
        )
        modules.mkdir()
        (modules / 'kernel.img').write_bytes(b'')
        self.assert_result(preflight.grub(), 'ok', str(modules))


class SpaceTestCase(PreflightTestCase):
    def usage(self, free):
        self.patch(
            preflight.shutil, 'disk_usage', return_value=_Usage(0, 0, free)
        )

    def test_plenty(self):
        self.usage(20 * 2**30)
        self.assert_result(
            preflight.space(str(self.directory)),
            'ok',
            f'20.0 GiB free in {self.directory}',
        )

    def test_little(self):
        self.usage(10 * 2**30 - 1)
        self.assert_result(
            preflight.space(str(self.directory)),
            'warning',
            '10.0 GiB',
            '--work-dir',
        )

    def test_no_directory(self):
        self.assert_result(
            preflight.space(str(self.directory / 'none')),
            'failed',
            'none',
            '--work-dir',
        )


class KernelTestCase(PreflightTestCase):
    def kernels(self, *names, readable):
        paths = [self.directory / name for name in names]
        for path in paths:
            path.write_bytes(b'')
        self.patch(accelerator, 'kernels', side_effect=lambda: iter(paths))
        # The tests may run as root, who may read everything.
        self.patch(
            preflight.os,
            'access',
            side_effect=lambda path, mode: os.path.basename(path) in readable,
        )

    def test_newest_may_be_read(self):
        self.kernels('vmlinuz-6', 'vmlinuz-5', readable={'vmlinuz-6'})
        self.assert_result(preflight.kernel_readable(), 'ok', 'vmlinuz-6')

    def test_older_one_will_do(self):
        self.kernels('vmlinuz-6', 'vmlinuz-5', readable={'vmlinuz-5'})
        self.assert_result(preflight.kernel_readable(), 'ok', 'vmlinuz-5')

    def test_none_may_be_read(self):
        self.kernels('vmlinuz-6', readable=())
        result = preflight.kernel_readable()
        self.assert_result(
            result, 'failed', 'cannot be read', 'dpkg-statoverride'
        )
        self.assertIn(f'{self.directory}/vmlinuz-6', str(result.remedy))

    def test_none_there(self):
        self.kernels(readable=())
        self.assert_result(
            preflight.kernel_readable(),
            'failed',
            'no /boot/vmlinuz',
            'linux-image',
        )


class KvmTestCase(PreflightTestCase):
    def kvm(self, *args, **kwargs):
        self.patch(
            accelerator,
            'probe',
            return_value=accelerator.Result(*args, **kwargs),
        )
        return preflight.kvm(self.conf)

    def test_works(self):
        self.assert_result(
            self.kvm('kvm', 'a kernel started'), 'ok', 'a kernel started'
        )

    def test_pretends(self):
        self.assert_result(
            self.kvm('tcg', 'none', pretends=True, remembered=True),
            'warning',
            '(remembered)',
            'nested',
        )

    def test_missing(self):
        self.assert_result(
            self.kvm('tcg', 'no permission'),
            'warning',
            'no permission',
            'group kvm',
        )

    def test_demanded_but_broken(self):
        self.conf.set_override('accelerator', 'kvm', 'import_xen')
        self.assert_result(
            self.kvm('tcg', 'none', pretends=True),
            'failed',
            'none',
            'accelerator = auto',
        )


class ApplianceTestCase(PreflightTestCase):
    def appliance(self, status='ok'):
        binding = preflight.Result(
            'machine.libguestfs-binding', '', status, '', 'install it'
        )
        return preflight.appliance(self.conf, str(self.directory), binding)

    def test_starts(self):
        self.conf.set_override('accelerator', 'tcg', 'import_xen')
        fake = self.patch(preflight.session, 'Appliance')
        started = fake.return_value.__enter__.return_value
        started.version, started.seconds = '1.48.6', 7.25
        self.assert_result(
            self.appliance(), 'ok', 'libguestfs 1.48.6 started on tcg in 7.2 s'
        )
        (drive,), _ = fake.call_args[0]
        self.assertTrue(drive.snapshot)
        self.assertEqual([], list(self.directory.iterdir()))

    def test_does_not_start(self):
        self.conf.set_override('accelerator', 'tcg', 'import_xen')
        fake = self.patch(preflight.session, 'Appliance')
        fake.return_value.__enter__.side_effect = exceptions.ApplianceError(
            'appliance.start-failed',
            'no',
            found='supermin: no kernel',
            fix='do this',
        )
        self.assert_result(
            self.appliance(), 'failed', 'supermin: no kernel', 'do this'
        )
        self.assertEqual([], list(self.directory.iterdir()))

    def test_is_not_tried_without_the_binding(self):
        fake = self.patch(preflight.session, 'Appliance')
        self.assert_result(
            self.appliance('failed'), 'failed', 'not tried', 'install it'
        )
        fake.assert_not_called()

    def test_binding_that_cannot_be_imported(self):
        self.patch(
            preflight.sys,
            'executable',
            str(
                self.program(
                    'python',
                    'echo "No module named guestfs"; exit 1',
                )
            ),
        )
        self.assert_result(
            preflight.libguestfs_binding(),
            'failed',
            'No module named guestfs',
            'python3-guestfs',
        )

    def test_all_of_them(self):
        for name in ('libguestfs_binding', 'appliance', 'kvm'):
            self.patch(
                preflight,
                name,
                return_value=preflight.Result(name, '', 'ok', ''),
            )
        self.patch(preflight, '_run', return_value=(True, ''))
        ids = [
            result.id
            for result in preflight.checks(self.conf, str(self.directory))
        ]
        self.assertEqual(['libguestfs_binding', 'appliance'], ids[:2])
        self.assertEqual(len(ids), len(set(ids)))
        self.assertIn('machine.work-space', ids)
