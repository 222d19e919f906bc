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


"""RAW disks that come once, forward."""

from collections.abc import Sequence
import dataclasses
import io
import unittest

from xenimport import exceptions
from xenimport import model
from xenimport import stream as stream_room
from xenimport.converter import base
from xenimport.converter import raw
from xenimport.tests import packages
from xenimport.tests.unit.converter import cases

MIB = 1024 * 1024


class PlainStream(stream_room.Stream):
    """Bytes that come a few at a time."""

    def __init__(
        self, data: bytes, step: int = MIB, size: int | None = None
    ) -> None:
        super().__init__('a pipe')
        self._data = io.BytesIO(data)
        self._step = step
        self.size = size

    def _read_into(self, buffer: memoryview) -> int:
        return self._data.readinto(buffer[: self._step])


class SparseStream(stream_room.Sparse):
    """Runs of a disk."""

    def __init__(self, size: int, runs: Sequence[tuple[int, bytes]]) -> None:
        super().__init__('an XVA')
        self.size = size
        self._runs = list(runs)
        self._data = io.BytesIO()

    def next_run(self) -> tuple[int, int] | None:
        if not self._runs:
            return None
        offset, data = self._runs.pop(0)
        self._data = io.BytesIO(data)
        return offset, len(data)

    def _read_into(self, buffer: memoryview) -> int:
        return self._data.readinto(buffer[:1000])


def disk(
    name: str = 'd.raw',
    capacity: int | None = None,
    format_name: str | None = None,
) -> model.Disk:
    region = model.Region('-', name, (), seekable=False)
    return model.Disk('d', 'd', 0, region, capacity, format_name)


class RawStreamTestCase(unittest.TestCase):
    converter = raw.RawConverter()

    def content(self, image: base.ForwardImage) -> bytes:
        """The disk, and that its runs keep the contract."""
        data = bytearray()
        for offset, run in image.runs():
            self.assertGreaterEqual(offset, len(data))
            self.assertLessEqual(len(run), base.MAX_RUN)
            self.assertTrue(len(run))
            data.extend(bytes(offset - len(data)))
            data.extend(run)
        assert image.virtual_size is not None
        self.assertLessEqual(len(data), image.virtual_size)
        return bytes(data.ljust(image.virtual_size, b'\0'))

    def assert_refused(
        self, stream: stream_room.Stream, error_id: str, what: model.Disk
    ) -> exceptions.XenImportError:
        with self.assertRaises(exceptions.XenImportError) as caught:
            self.content(self.converter.open_stream(what, stream))
        self.assertEqual(error_id, caught.exception.id)
        self.assertEqual(stream.where, caught.exception.where)
        return caught.exception


class PlainTest(RawStreamTestCase):
    def test_size_is_known_at_the_end(self) -> None:
        data = cases.noise(5 * MIB + 512)
        for step in (1000, MIB, 1 << 30):
            image = self.converter.open_stream(disk(), PlainStream(data, step))
            self.assertEqual('raw', image.format)
            self.assertIsNone(image.virtual_size)
            self.assertIsNone(image.data_size)
            self.assertTrue(image.ascending)
            self.assertEqual(data, self.content(image))
            self.assertEqual(len(data), image.virtual_size)

    def test_size_is_known_before(self) -> None:
        data = cases.noise(3 * MIB)
        image = self.converter.open_stream(
            disk(), PlainStream(data, size=len(data))
        )
        self.assertEqual(len(data), image.virtual_size)
        self.assertEqual(len(data), image.data_size)
        self.assertEqual(data, self.content(image))

    def test_runs_are_as_long_as_may_be(self) -> None:
        image = self.converter.open_stream(
            disk(), PlainStream(bytes(5 * MIB), 1000)
        )
        self.assertEqual(
            [(0, 2 * MIB), (2 * MIB, 2 * MIB), (4 * MIB, MIB)],
            [(offset, len(run)) for offset, run in image.runs()],
        )

    def test_not_whole_sectors(self) -> None:
        for data in (b'', bytes(1000)):
            for size in (None, len(data)):
                self.assert_refused(
                    PlainStream(data, size=size), 'raw.size', disk()
                )

    def test_ends_too_early(self) -> None:
        self.assert_refused(
            PlainStream(bytes(1024), size=2048), 'package.truncated', disk()
        )

    def test_more_than_was_stated(self) -> None:
        stream = PlainStream(bytes(66 * MIB))
        self.assert_refused(stream, 'raw.beyond-capacity', disk(capacity=MIB))
        # It stops soon after.
        self.assertLessEqual(stream.position, 68 * MIB)

    def test_capacity_may_be_rounded(self) -> None:
        image = self.converter.open_stream(
            disk(capacity=MIB), PlainStream(bytes(MIB + 512))
        )
        self.assertEqual(bytes(MIB + 512), self.content(image))

    def test_containers(self) -> None:
        blank = bytes(MIB)
        for name, content in (
            ('dynamic', packages.dynamic_vhd(blank)),
            ('qcow2', b'QFI\xfb\0\0\0\x03' + blank),
            ('vmdk', b'KDMV\x01\0\0\0' + blank),
            ('gzip', b'\x1f\x8b\x08' + blank),
        ):
            with self.subTest(name=name):
                stream = PlainStream(content)
                self.assertFalse(self.converter.probe_stream(disk(), stream))
                self.assertEqual(0, stream.position)
                self.assert_refused(stream, 'raw.is-container', disk())

    def test_only_the_end_tells_a_fixed_vhd(self) -> None:
        stream = PlainStream(packages.fixed_vhd(cases.noise(3 * MIB)))
        self.assertTrue(self.converter.probe_stream(disk(), stream))
        error = self.assert_refused(stream, 'raw.is-container', disk())
        self.assertEqual('vhd', error.found)

    def test_footer_of_511_bytes(self) -> None:
        stream = PlainStream(packages.fixed_vhd(cases.noise(MIB))[:-1])
        self.assert_refused(stream, 'raw.is-container', disk())

    def test_what_the_package_says(self) -> None:
        content = packages.fixed_vhd(bytes(MIB))
        stream = PlainStream(b'conectix' + content[8:])
        said = disk(format_name='raw')
        self.assertTrue(self.converter.probe_stream(said, stream))
        image = self.converter.open_stream(said, stream)
        self.assertEqual(b'conectix' + content[8:], self.content(image))
        self.assertFalse(
            self.converter.probe_stream(
                disk(format_name='vhd'), PlainStream(bytes(MIB))
            )
        )

    def test_names(self) -> None:
        for name, expected in (
            ('-', True),
            ('d.raw.gz', True),
            ('d.img', True),
            ('d.VHD', False),
            ('d.vhd.gz', False),
            ('d.vmdk', False),
        ):
            with self.subTest(name=name):
                self.assertEqual(
                    expected,
                    self.converter.probe_stream(
                        disk(name), PlainStream(bytes(4096))
                    ),
                )


class SparseTest(RawStreamTestCase):
    def test_runs(self) -> None:
        first, second = cases.noise(5 * MIB, 1), cases.noise(512, 2)
        image = self.converter.open_stream(
            disk(format_name='raw'),
            SparseStream(9 * MIB, [(MIB, first), (8 * MIB, second)]),
        )
        self.assertEqual(9 * MIB, image.virtual_size)
        self.assertTrue(image.ascending)
        self.assertEqual(
            (bytes(MIB) + first + bytes(2 * MIB) + second).ljust(
                9 * MIB, b'\0'
            ),
            self.content(image),
        )

    def test_size(self) -> None:
        for size in (0, 1000):
            self.assert_refused(
                SparseStream(size, []), 'raw.size', disk(format_name='raw')
            )

    def test_run_that_breaks_off(self) -> None:
        class Short(SparseStream):
            def next_run(self) -> tuple[int, int] | None:
                found = super().next_run()
                return found and (found[0], found[1] + 1)

        self.assert_refused(
            Short(MIB, [(0, b'x' * 512)]),
            'package.truncated',
            dataclasses.replace(disk(), format='raw'),
        )
