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


"""Collections of virtio drivers: directories, ISOs, and hostile ones."""

import datetime
import io
import os
import pathlib
from random import Random
import struct
import tempfile
import unittest
import uuid

import pycdlib

from xenimport import exceptions
from xenimport.remediation.windows import system
from xenimport.remediation.windows import virtio_package
from xenimport.remediation.windows import virtio_win
from xenimport.tests import windows_drivers

SEVEN = system.Release(6, 1, 7601, False, 'amd64', 'Windows 7')
SERVER_2008_R2 = system.Release(6, 1, 7601, True, 'amd64', '2008 R2')
TEN = system.Release(10, 0, 19045, False, 'amd64', 'Windows 10')
SERVER_2019 = system.Release(10, 0, 17763, True, 'amd64', '2019')
#: devguid.h, GUID_DEVCLASS_SCSIADAPTER.
SCSI_ADAPTER = uuid.UUID('4d36e97b-e325-11ce-bfc1-08002be10318')


def files(driver='viostor', arch='amd64'):
    """A package whose catalog is not looked at here."""
    machine = windows_drivers.AMD64
    return {
        f'{driver}.inf': windows_drivers.inf(driver, arch),
        f'{driver}.sys': windows_drivers.program(machine, driver.encode()),
        f'{driver}.cat': b'catalog',
    }


class CollectionTestCase(unittest.TestCase):
    def setUp(self):
        scratch = tempfile.TemporaryDirectory()
        self.addCleanup(scratch.cleanup)
        self.root = pathlib.Path(scratch.name, 'drivers')
        self.root.mkdir()

    def put(self, place, content):
        directory = self.root / place
        directory.mkdir(parents=True)
        for name, data in content.items():
            (directory / name).write_bytes(data)
        return directory

    def open(self, path=None):
        found = virtio_win.open_drivers(str(path or self.root))
        self.addCleanup(found.close)
        return found

    def refused(self, identifier, function, *arguments):
        with self.assertRaises(exceptions.ConfigurationError) as caught:
            function(*arguments)
        self.assertEqual(identifier, caught.exception.id)


class DirectoryTest(CollectionTestCase):
    def test_layouts_of_the_iso_and_of_the_rpm(self):
        for number, place in enumerate(
            (
                'viostor/w10/amd64',
                'drivers/by-driver/viostor/w10/amd64',
                'by-os/amd64/w10',
            )
        ):
            with self.subTest(place):
                self.root = self.root / str(number)
                self.put(place, files())
                found = self.open().package('viostor', TEN)
                self.assertEqual('viostor.sys', found.service.binary)

    def test_directory_of_the_windows_is_taken(self):
        for name in ('2k8R2', 'w7', 'w10', '2k16'):
            self.put(f'viostor/{name}/amd64', files())
        found = self.open()
        for release, name in (
            (SEVEN, 'w7'),
            (SERVER_2008_R2, '2k8R2'),
            (TEN, 'w10'),
            (SERVER_2019, '2k16'),
        ):
            with self.subTest(release.product):
                origin = found.package('viostor', release).origin
                self.assertIn(f'viostor/{name}/amd64', origin)

    def test_driver_of_a_newer_windows_is_not_taken(self):
        self.put('viostor/w10/amd64', files())
        self.assertIsNone(self.open().package('viostor', SEVEN))

    def test_link_out_of_the_directory(self):
        outside = self.root.parent / 'outside'
        outside.mkdir()
        for name, data in files().items():
            (outside / name).write_bytes(data)
        (self.root / 'viostor' / 'w10').mkdir(parents=True)
        os.symlink(outside, self.root / 'viostor' / 'w10' / 'amd64')
        self.assertIsNone(self.open().package('viostor', TEN))

    def test_pipe_in_place_of_an_inf(self):
        content = files()
        del content['viostor.inf']
        place = self.put('viostor/w10/amd64', content)
        os.mkfifo(place / 'viostor.inf')
        tree = virtio_win.DirectoryTree(str(place))
        self.assertIsNone(tree.read('viostor.inf', 1000))
        self.refused(
            'virtio-win.package-invalid', self.open().package, 'viostor', TEN
        )

    def test_package_without_its_program(self):
        content = files()
        del content['viostor.sys']
        self.put('viostor/w10/amd64', content)
        self.refused(
            'virtio-win.package-invalid', self.open().package, 'viostor', TEN
        )

    def test_program_that_is_too_large_is_as_none(self):
        place = self.put('viostor/w10/amd64', files())
        os.truncate(place / 'viostor.sys', (16 << 20) + 1)
        self.refused(
            'virtio-win.package-invalid', self.open().package, 'viostor', TEN
        )

    def test_no_drivers(self):
        self.refused(
            'virtio-win.no-drivers', virtio_win.open_drivers, str(self.root)
        )


class IsoTest(CollectionTestCase):
    def image(self, content):
        """An ISO with Joliet names, as the genuine one has them."""
        iso = pycdlib.PyCdlib()
        iso.new(joliet=3)
        place = joliet = ''
        for name in ('viostor', 'w10', 'amd64'):
            place += f'/{name.upper()}'
            joliet += f'/{name}'
            iso.add_directory(place, joliet_path=joliet)
        for name, data in content.items():
            iso.add_fp(
                io.BytesIO(data),
                len(data),
                f'{place}/{name.upper()};1',
                joliet_path=f'{joliet}/{name}',
            )
        path = self.root / 'virtio-win.iso'
        iso.write(str(path))
        iso.close()
        return path

    def test_package_is_as_in_the_directory(self):
        found = self.open(self.image(files())).package('viostor', TEN)
        self.assertEqual(files()['viostor.sys'], found.binary)
        self.assertEqual(b'catalog', found.catalog)

    def test_directory_with_an_iso_in_it(self):
        self.image(files())
        self.assertIsNotNone(self.open().package('viostor', TEN))

    def test_no_iso(self):
        path = self.root / 'virtio-win.iso'
        for data in (b'', b'no iso', bytes(1 << 16)):
            with self.subTest(len(data)):
                path.write_bytes(data)
                self.refused(
                    'virtio-win.unreadable', virtio_win.open_drivers, str(path)
                )

    def test_cut_iso(self):
        path = self.image(files())
        whole = path.read_bytes()
        for length in range(0x8000, len(whole), 0x2800):
            with self.subTest(length):
                path.write_bytes(whole[:length])
                try:
                    self.open(path).package('viostor', TEN)
                except exceptions.ConfigurationError as error:
                    self.assertTrue(error.id.startswith('virtio-win.'))

    def plain(self, **kind):
        """An ISO without Joliet: short names with a version each."""
        iso = pycdlib.PyCdlib()
        iso.new(**kind)
        ridge = bool(kind.get('rock_ridge'))
        place = ''
        for name in ('viostor', 'w10', 'amd64'):
            place += f'/{name.upper()}'
            iso.add_directory(place, **({'rr_name': name} if ridge else {}))
        for name, data in files().items():
            iso.add_fp(
                io.BytesIO(data),
                len(data),
                f'{place}/{name.upper()};1',
                **({'rr_name': name} if ridge else {}),
            )
        path = self.root / 'plain.iso'
        iso.write(str(path))
        iso.close()
        return path

    def test_other_names_than_joliet(self):
        for kind in ({}, {'rock_ridge': '1.09'}):
            with self.subTest(kind):
                found = self.open(self.plain(**kind)).package('viostor', TEN)
                self.assertEqual(files()['viostor.sys'], found.binary)
                self.assertEqual(b'catalog', found.catalog)
                self.assertEqual('viostor.inf', found.inf_name)

    def test_damaged_iso(self):
        """Whatever stands in it, the error is one of ours."""
        random = Random(4)
        path = self.image(files())
        whole = path.read_bytes()
        # The volume descriptors, path tables and directories: the data of
        # files is what is behind them.
        for _ in range(60):
            data = bytearray(whole)
            for _ in range(random.randrange(1, 40)):
                at = random.randrange(0x8000, min(0x12000, len(data)))
                data[at] = random.randrange(256)
            path.write_bytes(data)
            try:
                self.open(path).package('viostor', TEN)
            except exceptions.ConfigurationError as error:
                self.assertTrue(error.id.startswith('virtio-win.'))


class PackageTest(unittest.TestCase):
    def read(self, driver='viostor', content=None):
        return virtio_package.read(
            driver, f'{driver}.inf', content or files(driver), TEN, 'here'
        )

    def test_both_ids_lead_to_the_driver(self):
        for driver, legacy, modern in (
            ('viostor', '1001', '1042'),
            ('vioscsi', '1004', '1048'),
            ('netkvm', '1000', '1041'),
        ):
            with self.subTest(driver):
                ids = {
                    item.hardware_id[:21] for item in self.read(driver).models
                }
                self.assertEqual(
                    {
                        f'PCI\\VEN_1AF4&DEV_{legacy}',
                        f'PCI\\VEN_1AF4&DEV_{modern}',
                    },
                    ids,
                )

    def test_service_of_a_disk_starts_at_boot(self):
        for driver in ('viostor', 'vioscsi'):
            with self.subTest(driver):
                service = self.read(driver).service
                self.assertEqual((1, 0), (service.type, service.start))
                self.assertEqual('SCSI miniport', service.group)

    def test_version_is_as_in_genuine_hives(self):
        """Third party, amd64, class, day, and the version backwards."""
        days = (datetime.date(2024, 8, 19) - datetime.date(1601, 1, 1)).days
        self.assertEqual(
            b'\x00\xff\x09\x00\x00\x00\x00\x00'
            + SCSI_ADAPTER.bytes_le
            + struct.pack('<Q', days * 24 * 3600 * 10_000_000)
            + struct.pack('<4H', 26200, 104, 95, 100)
            + bytes(8),
            self.read().version_data(),
        )

    def test_inf_that_is_damaged(self):
        whole = windows_drivers.inf('viostor')
        for data in (b'', b'\xff\xfe', b'\xff\xfe\x00\xd8', whole[:801]):
            with self.subTest(len(data)):
                content = {**files(), 'viostor.inf': data}
                with self.assertRaises(virtio_package.InvalidPackageError):
                    self.read(content=content)
