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

"""What all formats have in common that qemu reads."""

import dataclasses
import io
from unittest import mock

from xenimport.converter import base
from xenimport.converter import qcow2
from xenimport.converter import qemu
from xenimport.converter import qemu_server
from xenimport.converter import region
from xenimport.converter import vdi
from xenimport.converter import vhdx
from xenimport import exceptions
from xenimport import model
from xenimport import stream
from xenimport.tests import qemu_images
from xenimport.tests.unit.converter import cases
from xenimport.tests.unit.converter import qemu_cases

MIB = 1024 * 1024
CONVERTERS = (
    qcow2.Qcow2Converter(),
    vdi.VdiConverter(),
    vhdx.VhdxConverter(),
)


def images() -> dict[str, bytes]:
    """A small sound image of each format."""
    return {
        'qcow2': qemu_images.qcow2({0: b'data'}, MIB),
        'vdi': qemu_images.vdi({0: b'data'}, MIB),
        'vhdx': qemu_images.vhdx({0: b'data'}, MIB),
    }


class Bytes(stream.Stream):
    """A stream of what is in memory."""

    def __init__(self, content: bytes) -> None:
        super().__init__('standard input')
        self._content = io.BytesIO(content)

    def _read_into(self, buffer: memoryview) -> int:
        return self._content.readinto(buffer)


class ProbeTest(cases.DiskTestCase):
    def test_by_content_alone(self):
        others = {
            'vhd': b'conectix'.ljust(4096, b'\0'),
            'raw': bytes(4096),
            'empty': b'',
            'short': b'QFI',
        }
        for name, content in (images() | others).items():
            disk = self.disk(content, 'disk.vhd')
            found = [
                converter.format
                for converter in CONVERTERS
                if converter.probe(self.package(), disk)
            ]
            with self.subTest(name):
                self.assertEqual([name] if name in images() else [], found)

    def test_not_of_what_cannot_be_read_in_place(self):
        disk = self.disk(images()['qcow2'])
        for change in {'decoder': 'gzip'}, {'seekable': False}:
            other = dataclasses.replace(
                disk, region=dataclasses.replace(disk.region, **change)
            )
            with self.subTest(change):
                self.assertFalse(CONVERTERS[0].probe(self.package(), other))

    def test_of_a_stream_that_loses_nothing(self):
        for name, content in images().items():
            arriving = Bytes(content)
            disk = self.disk(b'')
            found = [
                converter.format
                for converter in CONVERTERS
                if converter.probe_stream(disk, arriving)
            ]
            with self.subTest(name):
                self.assertEqual([name], found)
                self.assertEqual(0, arriving.position)
                self.assertEqual(content, arriving.read(len(content)))

    def test_never_forward(self):
        for converter in CONVERTERS:
            arriving = Bytes(images()[converter.format])
            with (
                self.subTest(converter.format),
                self.assertRaisesRegex(base.NotForward, converter.title),
            ):
                converter.open_stream(self.disk(b''), arriving)
            self.assertEqual(0, arriving.position)

    def test_says_what_the_machine_lacks(self):
        with mock.patch('shutil.which', autospec=True, return_value=None):
            reason = qcow2.Qcow2Converter.unusable_because()
        self.assertIn('qemu-utils', reason or '')
        with (
            mock.patch(
                'shutil.which', autospec=True, return_value='/bin/qemu-nbd'
            ),
            mock.patch.dict('sys.modules', nbd=None),
        ):
            reason = qcow2.Qcow2Converter.unusable_because()
        self.assertIn('python3-libnbd', reason or '')


class OpenTest(qemu_cases.QemuTestCase):
    def test_each_format(self):
        self.size_for_qemu(MIB)
        for converter in CONVERTERS:
            content = images()[converter.format]
            with self.subTest(converter.format):
                image = self.opened(converter, content)
                self.assertEqual(converter.format, image.format)
                self.assertEqual(MIB, image.virtual_size)
                self.assertEqual(b'qqqq', image.pread(512, 4))
                self.assertEqual([(0, MIB, True)], list(image.extents()))
                self.assertEqual(['one.vhd'], [r.name for r in image.regions])
                server = qemu_cases.FakeServer.started[-1]
                self.assertEqual(converter.format, server.driver)
                self.assertEqual((1536, len(content)), server.file[1:])

    def test_qemu_is_told_that_there_is_no_backing_file(self):
        self.size_for_qemu(MIB)
        self.opened(CONVERTERS[0], images()['qcow2'])
        [server] = qemu_cases.FakeServer.started
        self.assertEqual({'backing': None}, server.options)

    def test_closed_once_and_for_all(self):
        self.size_for_qemu(MIB)
        image = self.opened(CONVERTERS[0], images()['qcow2'])
        assert isinstance(image, qemu.QemuImage)
        reader = image.reader
        image.close()
        image.close()
        self.assertTrue(qemu_cases.FakeServer.started[0].closed)
        with self.assertRaises(ValueError):
            _ = reader.descriptor

    def test_package_that_changes(self):
        self.size_for_qemu(MIB)
        image = self.opened(CONVERTERS[0], images()['qcow2'])
        image.check_unchanged()
        with open(self.path('package'), 'ab') as package:
            package.write(b'more')
        with self.assertRaises(exceptions.DiskImageError) as caught:
            image.check_unchanged()
        self.assertEqual('package.changed', caught.exception.id)

    def test_end_within_a_sector(self):
        """What follows in a tar is padding; what follows else is asked."""
        self.size_for_qemu(MIB)
        content = images()['qcow2'] + b'x'
        self.opened(CONVERTERS[0], content)
        with open(self.path('package'), 'r+b') as package:
            package.truncate(1536 + len(content))
        disk = model.Disk(
            'd',
            'd',
            0,
            model.Region(
                self.path('package'),
                'one',
                (model.Piece(1536, len(content), 0),),
            ),
        )
        CONVERTERS[0].open(self.package(), disk).close()
        first, second = qemu_cases.FakeServer.started
        self.assertEqual(len(content) + 511, first.file[2])
        self.assertIsNone(second.file[2])

    def test_other_size_for_qemu(self):
        self.size_for_qemu(MIB - 512)
        self.assert_refused(
            CONVERTERS[0], images()['qcow2'], 'disk-image.size-differs'
        )
        self.assertTrue(qemu_cases.FakeServer.started[0].closed)

    def test_parts(self):
        content = images()['qcow2']
        whole = self.disk(content)
        half = len(content) // 2
        parts = (
            model.Piece(1536, half, 0),
            model.Piece(1536 + half, len(content) - half, half),
        )
        checked = dataclasses.replace(
            whole.region.pieces[0], checksum='xxh64:0'
        )
        with mock.patch.object(region.RegionReader, '_read_piece', _plain):
            for pieces in parts, (checked,):
                disk = dataclasses.replace(
                    whole,
                    region=dataclasses.replace(whole.region, pieces=pieces),
                )
                with (
                    self.subTest(len(pieces)),
                    self.assertRaises(exceptions.DiskImageError) as caught,
                ):
                    CONVERTERS[0].open(self.package(), disk)
                self.assertEqual('disk-image.scattered', caught.exception.id)
        self.assert_no_server()

    def test_second_opinion(self):
        """oslo.utils may know of more than is known here."""
        with (
            mock.patch.object(qcow2.Qcow2Converter, '_layout', autospec=True),
            self.assertLogs('oslo_utils.imageutils'),
        ):
            self.assert_refused(
                CONVERTERS[0],
                qemu_images.qcow2(
                    {}, MIB, backing_offset=200, backing_size=11
                ),
                'disk-image.unsafe',
            )
        self.assert_no_server()

    def test_server_that_does_not_start(self):
        failure = exceptions.DiskImageError('disk-image.refused', 'No')
        readers = []
        original = region.RegionReader

        def reader(source: model.Region) -> region.RegionReader:
            readers.append(original(source))
            return readers[-1]

        with (
            mock.patch.object(
                qemu_server, 'Server', autospec=True, side_effect=failure
            ),
            mock.patch.object(region, 'RegionReader', reader),
        ):
            self.assert_refused_words(failure)
        with self.assertRaises(ValueError):
            _ = readers[0].descriptor

    def assert_refused_words(self, failure: Exception) -> None:
        with self.assertRaises(exceptions.DiskImageError) as caught:
            CONVERTERS[0].open(self.package(), self.disk(images()['qcow2']))
        self.assertIs(failure, caught.exception)


def _plain(reader, index, buffer, inside):
    """Read a piece as if it had no checksum."""
    with open(reader.region.path, 'rb') as package:
        package.seek(reader.region.pieces[index].offset + inside)
        buffer[:] = package.read(len(buffer))
