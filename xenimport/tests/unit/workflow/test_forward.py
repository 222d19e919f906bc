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


"""Disks that come once, into workfiles: whole steps, no appliance."""

import gzip
import hashlib
import os
import tempfile
import unittest
from unittest import mock

from xenimport.converter import copy
from xenimport import exceptions
from xenimport import opts
from xenimport.tests import packages
from xenimport.tests import vhd_packages
from xenimport.tests import vmdk_packages
from xenimport.workflow import context
from xenimport.workflow import engine
from xenimport.workflow import steps

MIB = 1 << 20
SIZE = 4 * MIB


def content(seed=0):
    """A disk with data at its start, in the middle and at its end."""
    result = bytearray(SIZE)
    result[seed : seed + 5] = b'start'
    result[2 * MIB - 3 : 2 * MIB + 3] = b'middle'
    result[-3:] = b'end'
    return bytes(result)


class Listener(context.Observer):
    def __init__(self) -> None:
        self.said: list[str] = []

    def say(self, line: str) -> None:
        self.said.append(line)


def chain():
    """A base, its child, and the disk that they make."""
    base = vhd_packages.Vhd(
        SIZE, {0: content()[:MIB]}, identity=vhd_packages.uuid_of(1)
    )
    child = vhd_packages.Vhd(
        SIZE,
        {2 * MIB: b'child'.ljust(512, b'!')},
        identity=vhd_packages.uuid_of(2),
        parent=vhd_packages.uuid_of(1),
    )
    expected = bytearray(SIZE)
    expected[:MIB] = content()[:MIB]
    expected[2 * MIB : 2 * MIB + 512] = b'child'.ljust(512, b'!')
    return base.build(), child.build(), bytes(expected)


class ForwardTestCase(unittest.TestCase):
    def setUp(self):
        directory = tempfile.TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        self.directory = directory.name
        self.work_dir = os.path.join(self.directory, 'work')
        os.mkdir(self.work_dir)

    def path(self, name):
        return os.path.join(self.directory, name)

    def write(self, name, data):
        with open(self.path(name), 'wb') as stream:
            stream.write(data)
        return self.path(name)

    def copied(self, *paths, **values):
        """The run after the copy; its disks' workfiles by index."""
        self.observer = Listener()
        run = context.Run(
            context.Settings(
                paths, opts.load([]), work_dir=self.work_dir, **values
            ),
            self.observer,
        )
        self.addCleanup(run.close)
        engine.execute(
            [steps.ReadPackage(), steps.MakeWorkDirectory(), steps.Copy()],
            run,
        )
        self.assertEqual(
            sorted(f'disk{n}.raw' for n in range(len(run.disks))),
            sorted(os.listdir(run.directory)),
        )
        return run

    def workfile(self, run, index=0):
        with open(run.disks[index].workfile, 'rb') as stream:
            return stream.read()

    def ids(self, run):
        return {finding.id for finding in run.remaining}


class CompressedDiskTest(ForwardTestCase):
    """A disk that is compressed inside of an OVA that is not."""

    def package(self, name, disk, stated=None):
        packed = gzip.compress(disk)
        entry = packages.Disk('d0', name, SIZE)
        digest = stated or hashlib.sha256(packed).hexdigest()
        packages.write_ova(
            self.path('guest.ova'),
            [
                ('guest.ovf', packages.xencenter_ovf([entry])),
                ('guest.mf', f'SHA256({name})= {digest}\n'.encode()),
                (name, packed),
            ],
        )
        return self.path('guest.ova')

    def test_vhd_and_raw(self):
        for name, disk in (
            ('a.vhd.gz', packages.dynamic_vhd(content())),
            ('a.img.gz', content()),
        ):
            with self.subTest(name):
                run = self.copied(self.package(name, disk))
                self.assertEqual(content(), self.workfile(run))
                self.assertEqual(SIZE, run.disks[0].virtual_size)
                self.assertNotIn('package.unpacked', self.ids(run))

    def test_digest_of_the_compressed_bytes(self):
        path = self.package('a.img.gz', content(), '0' * 64)
        with self.assertRaises(exceptions.PackageError) as caught:
            self.copied(path)
        self.assertEqual('package.digest-mismatch', caught.exception.id)
        self.assertEqual([], os.listdir(self.work_dir))
        run = self.copied(path, verify_manifest=False)
        self.assertEqual(content(), self.workfile(run))

    def test_one_file_for_two_disks(self):
        entries = [packages.Disk(f'd{n}', 'a.img.gz', SIZE, n) for n in (0, 1)]
        packages.write_ova(
            self.path('guest.ova'),
            [
                ('guest.ovf', packages.xencenter_ovf(entries)),
                ('a.img.gz', gzip.compress(content())),
            ],
        )
        with self.assertRaises(exceptions.PackageError) as caught:
            self.copied(self.path('guest.ova'))
        self.assertEqual('package.disk-twice', caught.exception.id)


class ManifestTest(ForwardTestCase):
    def package(self, manifest, text):
        entry = packages.Disk('d0', 'a.img', SIZE)
        packages.write_ova(
            self.path('guest.ova'),
            [
                ('guest.ovf', packages.xencenter_ovf([entry])),
                (manifest, text.encode()),
                ('a.img', content()),
            ],
        )
        return self.path('guest.ova')

    def test_what_states_no_digest_of_the_disk_is_said(self):
        digest = hashlib.sha256(content()).hexdigest()
        for manifest, text, said in (
            ('guest.mf', f'SHA256(a.img)= {digest}\n', False),
            ('guest.mf', '\n', True),
            ('other.mf', f'SHA256(a.img)= {"0" * 64}\n', True),
        ):
            with self.subTest(manifest=manifest, text=text):
                run = self.copied(self.package(manifest, text))
                self.assertEqual(
                    said, 'package.manifest-incomplete' in self.ids(run)
                )


class UnpackedTest(ForwardTestCase):
    """What cannot be read in one pass."""

    def test_chain_in_a_compressed_archive(self):
        base, child, expected = chain()
        for order in ((0, 1), (1, 0)):
            with self.subTest(order=order):
                members = [('0.vhd', child), ('1.vhd', base)]
                path = self.write(
                    'image.tgz',
                    vhd_packages.tar(
                        [members[n] for n in order], compressed=True
                    ),
                )
                run = self.copied(path)
                self.assertEqual(expected, self.workfile(run))
                self.assertIn('package.unpacked', self.ids(run))
                self.assertIn('0.vhd is unpacked', self.observer.said[0])

    def test_extents_of_a_vmdk_in_a_compressed_package(self):
        described = vmdk_packages.descriptor(
            'monolithicFlat', [f'RW {SIZE // 512} FLAT "a-flat.vmdk" 0']
        )
        entry = packages.Disk('d0', 'a.vmdk', SIZE)
        packages.write_ova(
            self.path('guest.ova'),
            [
                ('guest.ovf', packages.xencenter_ovf([entry])),
                ('a-flat.vmdk', content()),
                ('a.vmdk', described),
            ],
        )
        with open(self.path('guest.ova'), 'rb') as stream:
            packed = gzip.compress(stream.read())
        run = self.copied(self.write('guest.ova.gz', packed))
        self.assertEqual(content(), self.workfile(run))

    def test_parent_given_beside_its_child(self):
        base, child, expected = chain()
        run = self.copied(
            self.write('child.vhd', child), self.write('base.vhd', base)
        )
        self.assertEqual(1, len(run.disks))
        self.assertEqual(expected, self.workfile(run))
        self.assertIn('package.parent-left-out', self.ids(run))

    def test_disks_that_a_description_names_stay(self):
        base, child, expected = chain()
        entries = [
            packages.Disk('d0', 'child.vhd', SIZE, 0),
            packages.Disk('d1', 'base.vhd', SIZE, 1),
        ]
        packages.write_ova(
            self.path('guest.ova'),
            [
                ('guest.ovf', packages.xencenter_ovf(entries)),
                ('child.vhd', child),
                ('base.vhd', base),
            ],
        )
        run = self.copied(self.path('guest.ova'))
        self.assertEqual(2, len(run.disks))
        self.assertEqual(expected, self.workfile(run))

    def test_member_that_no_disk_needs(self):
        entry = packages.Disk('d0', 'a.img', SIZE)
        packages.write_ova(
            self.path('guest.ova'),
            [
                ('guest.ovf', packages.xencenter_ovf([entry])),
                ('a.img', content()),
                ('other.img', content()),
            ],
        )
        with open(self.path('guest.ova'), 'rb') as stream:
            packed = gzip.compress(stream.read())
        path = self.write('guest.ova.gz', packed)
        with mock.patch.object(
            copy, 'unpack', autospec=True, side_effect=AssertionError
        ):
            run = self.copied(path)
        self.assertEqual(content(), self.workfile(run))

    def test_extents_given_beside_their_descriptor(self):
        described = vmdk_packages.descriptor(
            'monolithicFlat', [f'RW {SIZE // 512} FLAT "d-flat.vmdk" 0']
        )
        paths = (
            self.write('d.vmdk', described),
            self.write('d-flat.vmdk', content()),
        )
        for order in (paths, paths[::-1]):
            with self.subTest(order=order):
                run = self.copied(*order)
                self.assertEqual(1, len(run.disks))
                self.assertEqual(content(), self.workfile(run))
                self.assertIn('package.parent-left-out', self.ids(run))

    def test_one_of_several_is_damaged(self):
        damaged = bytearray(packages.dynamic_vhd(content()))
        damaged[-400] ^= 1
        damaged[100] ^= 1
        with self.assertRaises(exceptions.DiskImageError) as caught:
            self.copied(
                self.write('a.vhd', packages.dynamic_vhd(content())),
                self.write('b.vhd', bytes(damaged)),
            )
        self.assertIn('b.vhd', caught.exception.where)


class StreamTest(ForwardTestCase):
    def test_raw_disk_whose_size_only_the_end_tells(self):
        path = self.write('disk.img.gz', gzip.compress(content()))
        run = self.copied(path)
        self.assertEqual(content(), self.workfile(run))
        self.assertEqual(SIZE, run.disks[0].virtual_size)

    def test_bare_file_system_is_wrapped(self):
        disk = bytearray(content(100))
        disk[3:11] = b'NTFS    '
        disk[510:512] = b'\x55\xaa'
        path = self.write('c.img.gz', gzip.compress(bytes(disk)))
        run = self.copied(path)
        self.assertEqual(5 * MIB, run.disks[0].virtual_size)
        self.assertEqual(bytes(disk), self.workfile(run)[MIB:])
        self.assertIn('disk.bare-file-system', self.ids(run))

    def test_same_bytes_from_several_files_is_refused(self):
        packed = self.write('a.img.gz', gzip.compress(content()))
        plain = self.write('b.img', content())
        with self.assertRaises(exceptions.PackageError) as caught:
            self.copied(plain, packed)
        self.assertEqual('package.several-streams', caught.exception.id)

    def test_cut_short(self):
        packed = gzip.compress(os.urandom(MIB) + content())
        path = self.write('disk.img.gz', packed[: len(packed) // 2])
        with self.assertRaises(exceptions.XenImportError) as caught:
            self.copied(path)
        self.assertEqual('package.truncated', caught.exception.id)
        self.assertEqual([], os.listdir(self.work_dir))

    def test_no_space_for_what_is_unpacked(self):
        base, child = chain()[:2]
        path = self.write(
            'image.tgz',
            vhd_packages.tar(
                [('0.vhd', child), ('1.vhd', base)], compressed=True
            ),
        )
        with (
            mock.patch.object(
                os, 'pwrite', autospec=True, side_effect=OSError(28, 'full')
            ),
            self.assertRaises(exceptions.MachineError) as caught,
        ):
            self.copied(path)
        self.assertEqual('machine.no-space', caught.exception.id)
        self.assertEqual([], os.listdir(self.work_dir))
