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

"""Disks that name files of the host, or change while they are read."""

from __future__ import annotations

from collections.abc import Collection
import gzip
import os
import pathlib
import re
import shutil
import sys
import unittest

from xenimport.converter import qemu_server
from xenimport.tests.functional import hostile_cases
from xenimport.tests import hostile
from xenimport.tests import packages
from xenimport.tests import qemu_images
from xenimport.tests import vhd_packages
from xenimport.tests import vmdk_packages


class HostFileTest(hostile_cases.HostileTest):
    """Disks that name files of the host."""

    def test_vmdk_descriptors(self) -> None:
        names = (
            hostile_cases.HOST_FILE,
            str(self.secret),
            '../secret.vhd',
            './../secret.vhd',
            'a/../../secret.vhd',
            '..\\secret.vhd',
            '..',
            'd.vmdk',
        )
        found = []
        for number, name in enumerate(names):
            text = vmdk_packages.descriptor(
                'monolithicFlat', [f'RW 1 FLAT "{name}" 0']
            )
            found += [
                (f'{number}.vmdk', text),
                (f'{number}.vmdk.gz', gzip.compress(text)),
                (f'{number}.ova', hostile.ova('d.vmdk', text)),
            ]
        self.refused(
            (
                'vmdk.extent-outside',
                'vmdk.extents',
                'vmdk.descriptor',
                'disk-image.unsafe',
            ),
            *found,
        )

    def test_vmdk_parents(self) -> None:
        text = vmdk_packages.descriptor(
            'monolithicSparse',
            ['RW 128 SPARSE "d.vmdk"'],
            parent='12345678',
            more=f'parentFileNameHint="{self.secret}"',
        )
        data = vmdk_packages.sparse(hostile_cases.RAW, text=text)
        self.refused(
            'vmdk.delta',
            ('d.vmdk', data),
            ('guest.ova', hostile.ova('d.vmdk', data)),
        )

    def test_vhd_parent_locators(self) -> None:
        secret = str(self.secret)
        found = []
        for number, (locators, name) in enumerate(
            (
                ([vhd_packages.macx(f'file://{secret}')], secret),
                ([vhd_packages.macx('file://../secret.vhd')], 'secret.vhd'),
                ([vhd_packages.w2ru('..\\secret.vhd')], '..\\secret.vhd'),
                ([vhd_packages.w2ku(secret.replace('/', '\\'))], secret),
                ([vhd_packages.w2ru('../secret.vhd')], '../secret.vhd'),
            )
        ):
            data = hostile.child(locators, name)
            found += [
                (f'{number}.vhd', data),
                (f'{number}.vhd.gz', gzip.compress(data, 1)),
                (f'{number}.ova', hostile.ova('d.vhd', data)),
                (
                    f'{number}.tar',
                    hostile.tar([hostile.Member(b'0.vhd', data)]),
                ),
            ]
        self.refused('vhd.parent-missing', *found)

    def images(self) -> list[tuple[str, bytes]]:
        """Images for qemu that name the secret."""
        name = os.fsencode(self.secret)
        backed = qemu_images.qcow2(
            {0: b'x'},
            hostile_cases.MIB,
            backing_offset=2048,
            backing_size=len(name),
        )
        backed = backed[:2048] + name + backed[2048 + len(name) :]
        return [
            ('backed', backed),
            (
                'data',
                qemu_images.qcow2(
                    {0: b'x'}, hostile_cases.MIB, incompatible=4
                ),
            ),
        ]

    def test_qcow2_under_other_names(self) -> None:
        found = []
        for name, data in self.images():
            for ending in ('vhd', 'raw', 'qcow2', 'img'):
                found += [
                    (f'{name}.{ending}', data),
                    (
                        f'{name}-{ending}.ova',
                        hostile.ova(f'd.{ending}', data),
                    ),
                ]
        self.refused(('qcow2.backing-file', 'qcow2.data-file'), *found)

    def test_parents_of_vdi_and_vhdx(self) -> None:
        locator = qemu_images.vhdx_items(hostile_cases.MIB, flags=2)
        self.refused(
            ('vdi.parent', 'vhdx.parent'),
            (
                'd.vdi',
                qemu_images.vdi({}, hostile_cases.MIB, parent_uuid=b'p' * 16),
            ),
            (
                'l.vdi',
                qemu_images.vdi({}, hostile_cases.MIB, link_uuid=b'p' * 16),
            ),
            ('d.vhdx', qemu_images.vhdx({}, hostile_cases.MIB, items=locator)),
        )

    @unittest.skipUnless(shutil.which('strace'), 'strace is not installed')
    def test_as_the_kernel_sees_it(self) -> None:
        """No program and no library opens the secret either."""
        log = self.directory / 'log'
        paths = [
            [self.write(f'{name}.vhd', data)] for name, data in self.images()
        ]
        paths.append(
            [
                self.write(
                    'd.vhd', hostile.child([vhd_packages.w2ru('..\\x')], 'x')
                )
            ]
        )
        text = vmdk_packages.descriptor(
            'monolithicFlat', [f'RW 1 FLAT "{hostile_cases.HOST_FILE}" 0']
        )
        paths.append([self.write('d.vmdk', text)])
        trace = 'trace=open,openat,openat2,execve,readlink'
        self.read(
            *paths, wrapper=('strace', '-f', '-o', str(log), '-e', trace)
        )
        calls = log.read_text()
        self.assertIn(str(self.inside / 'd.vmdk'), calls)
        self.assertNotIn(str(self.secret), calls)
        self.assertNotIn(hostile_cases.HOST_FILE, calls)
        self.assertEqual(1, len(re.findall('execve\\(.* = 0', calls)))

    @unittest.skipUnless(shutil.which('strace'), 'strace is not installed')
    @unittest.skipIf(
        qemu_server.unusable_because(), 'qemu-nbd or libnbd is missing'
    )
    def test_what_qemu_opens(self) -> None:
        """Of an image that is sound, the image alone."""
        log = self.directory / 'log'
        paths = [
            [
                self.write(
                    'd.qcow2', qemu_images.qcow2({0: b'x'}, hostile_cases.MIB)
                )
            ],
            [
                self.write(
                    'd.vdi', qemu_images.vdi({0: b'x'}, hostile_cases.MIB)
                )
            ],
            [
                self.write(
                    'd.vhdx', qemu_images.vhdx({0: b'x'}, hostile_cases.MIB)
                )
            ],
        ]
        trace = 'trace=open,openat,openat2'
        reports = self.read(
            *paths,
            wrapper=('strace', '-f', '-o', str(log), '-e', trace),
            qemu=True,
        )
        self.assertEqual([None] * 3, [report.id for report in reports])
        opened = set(
            re.findall('"([^"]*)".* = [0-9]+$', log.read_text(), re.M)
        )
        # By its number, whatever it is called.
        self.assertIn('/proc/self/fd/', {path[:14] for path in opened})
        system = ('/usr/', '/lib', '/etc/', '/proc/', '/sys/', '/dev/')
        ours = (str(self.inside), str(self.work), sys.prefix, os.getcwd())
        allowed = (*system, *ours)
        self.assertEqual(
            [],
            [
                path
                for path in sorted(opened)
                if path.startswith('/') and not path.startswith(allowed)
            ],
        )
        self.assertNotIn(hostile_cases.HOST_FILE, opened)


class ChangingTest(hostile_cases.HostileTest):
    """A package that somebody writes to while it is read."""

    def changed(
        self, how: str, name: str, data: bytes, expected: Collection[str]
    ) -> None:
        path = self.write(name, data)
        (report,) = self.read([path], how=how)
        self.assertIn(report.id, expected, f'{how} {name}: {report.text}')

    def test_in_place(self) -> None:
        vhd = vhd_packages.Vhd(
            16 * hostile_cases.MIB,
            {place << 21: b'x' * hostile_cases.MIB for place in range(8)},
        ).build()
        for how in ('append', 'truncate', 'empty', 'rewrite'):
            for name, data in (
                ('d.vhd', vhd),
                ('guest.ova', hostile.ova('d.vhd', vhd)),
                ('d.raw', b'\0' * 510 + b'\x55\xaa' + hostile_cases.RAW * 80),
                ('d.vmdk', vmdk_packages.sparse(hostile_cases.RAW * 40)),
            ):
                with self.subTest(how=how, name=name):
                    self.changed(
                        how,
                        name,
                        data,
                        ('package.changed', 'package.truncated'),
                    )

    def test_in_a_stream(self) -> None:
        # Random bytes, so that not all is read at once.
        noise = os.urandom(4 * hostile_cases.MIB)
        disk = packages.fixed_vhd(noise)
        data = gzip.compress(hostile.ova('d.vhd', disk), 1)
        for how in ('append', 'truncate', 'empty', 'rewrite'):
            with self.subTest(how):
                self.changed(
                    how,
                    'guest.ova.gz',
                    data,
                    (
                        'package.changed',
                        'package.truncated',
                        'package.undecodable',
                        'package.excess-data',
                    ),
                )

    def test_exchanged(self) -> None:
        """What takes the file's place is not opened."""
        vhd = vhd_packages.Vhd(
            4 * hostile_cases.MIB, {0: b'x' * hostile_cases.MIB}
        ).build()
        for how in ('replace', 'remove'):
            path = self.write('d.vhd', vhd)
            (report,) = self.read([path], how=how)
            self.assertIn(report.id, (None, 'package.changed'), report.text)
            pathlib.Path(path).unlink(missing_ok=True)
