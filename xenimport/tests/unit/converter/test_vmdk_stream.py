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

"""Stream-optimized VMDKs as they come, once."""

from __future__ import annotations

from collections.abc import Callable
import gzip
import os
import threading

from xenimport import exceptions
from xenimport import model
from xenimport import stream as stream_room
from xenimport import stream_packages
from xenimport.converter import base
from xenimport.converter import copy
from xenimport.converter import vmdk
from xenimport.tests import vmdk_packages
from xenimport.tests.unit.converter import cases

KIB = 1024
MIB = 1024 * KIB
SECTOR = 512
GRAIN = 64 * KIB


class Bytes(stream_room.Stream):
    """Bytes in memory; at most ``step`` at a time."""

    def __init__(self, content: bytes, step: int = 1 << 30) -> None:
        super().__init__('memory')
        self._content = content
        self._step = step
        self.taken = 0

    def _read_into(self, buffer: memoryview) -> int:
        part = self._content[self.taken :][: min(self._step, len(buffer))]
        buffer[: len(part)] = part
        self.taken += len(part)
        return len(part)


class StreamCase(cases.DiskTestCase):
    def setUp(self) -> None:
        super().setUp()
        self.converter = vmdk.VmdkConverter()

    def streamed(self, name: str = 'd.vmdk') -> model.Disk:
        region = model.Region('-', name, (), seekable=False)
        return model.Disk('d', 'd', 0, region)

    def image(self, content: bytes, step: int = 1 << 30) -> base.ForwardImage:
        return self.converter.open_stream(
            self.streamed(), Bytes(content, step)
        )

    def read(self, content: bytes, step: int = 1 << 30) -> bytes:
        """The whole disk, made of its runs."""
        image = self.image(content, step)
        assert image.virtual_size is not None
        disk = bytearray(image.virtual_size)
        end = 0
        for offset, run in image.runs():
            self.assertLessEqual(end, offset)
            self.assertLessEqual(len(run), base.MAX_RUN)
            end = offset + len(run)
            self.assertLessEqual(end, len(disk))
            disk[offset:end] = run
        return bytes(disk)

    def refused(
        self, content: bytes, error_id: str
    ) -> exceptions.XenImportError:
        with self.assertRaises(exceptions.XenImportError) as caught:
            for _ in self.image(content).runs():
                pass
        self.assertEqual(error_id, caught.exception.id)
        self.assertEqual(1, threading.active_count())
        return caught.exception


class ForwardTest(StreamCase):
    def test_data(self) -> None:
        data = bytearray(9 * MIB + 512)
        data[0:GRAIN] = cases.noise(GRAIN)
        data[3 * MIB : 6 * MIB] = cases.noise(3 * MIB)
        data[-512:] = b'z' * 512
        content = vmdk_packages.stream_optimized(bytes(data), level=1)
        for step in (1 << 30, 70_001):
            with self.subTest(step):
                self.assertEqual(bytes(data), self.read(content, step))
        image = self.image(content)
        self.assertEqual('vmdk', image.format)
        self.assertEqual(len(data), image.virtual_size)
        self.assertTrue(image.ascending)
        self.assertIsNone(image.data_size)
        self.assertEqual((), image.findings)

    def test_sizes_of_grains(self) -> None:
        data = cases.noise(5 * MIB)
        for grain in (16, 2048):
            with self.subTest(grain):
                content = vmdk_packages.stream_optimized(
                    data, grain=grain, level=1
                )
                self.assertEqual(data, self.read(content))

    def test_empty_disk(self) -> None:
        content = vmdk_packages.stream_optimized(bytes(MIB))
        self.assertEqual(bytes(MIB), self.read(content))

    def test_runs_join_grains(self) -> None:
        data = cases.noise(5 * MIB)
        image = self.image(vmdk_packages.stream_optimized(data, level=1))
        self.assertEqual(
            [2 * MIB, 2 * MIB, MIB], [len(run) for _, run in image.runs()]
        )

    def test_tables_at_the_end(self) -> None:
        stream = vmdk_packages.Stream(1024 * 128)
        stream.add(0, b'a' * GRAIN)
        stream.add(1023, b'b' * GRAIN)
        stream.finish()
        disk = self.read(stream.content)
        self.assertEqual(b'a' * GRAIN, disk[:GRAIN])
        self.assertEqual(b'b' * GRAIN, disk[-GRAIN:])

    def test_empty_table(self) -> None:
        stream = vmdk_packages.Stream(1024 * 128)
        stream.add(600, b'a' * GRAIN)
        stream.add_table(0)
        stream.finish()
        self.assertEqual(
            b'a' * GRAIN, self.read(stream.content)[600 * GRAIN :][:GRAIN]
        )

    def test_through_gzip_to_a_file(self) -> None:
        data = cases.noise(3 * MIB) + bytes(MIB)
        path = self.path('d.vmdk.gz')
        with open(path, 'wb') as out:
            out.write(
                gzip.compress(vmdk_packages.stream_optimized(data, level=1), 1)
            )
        stream = stream_packages.open_package(path)
        assert stream is not None
        self.addCleanup(stream.close)
        disk = self.streamed('d.vmdk.gz')
        self.assertTrue(self.converter.probe_stream(disk, stream))
        image = self.converter.open_stream(disk, stream)
        copy.copy_forward(image, self.path('out'))
        with open(self.path('out'), 'rb') as out:
            self.assertEqual(data, out.read())

    def test_not_closed(self) -> None:
        image = self.image(
            vmdk_packages.stream_optimized(cases.noise(GRAIN), unclean=1)
        )
        (finding,) = image.findings
        self.assertEqual('vmdk.unclean-shutdown', finding.id)

    def test_who_stops_leaves_no_threads(self) -> None:
        data = cases.noise(12 * MIB)
        runs = self.image(vmdk_packages.stream_optimized(data, level=0)).runs()
        next(iter(runs))
        runs.close()  # type: ignore[attr-defined]
        self.assertEqual(1, threading.active_count())


class TablesFirstTest(StreamCase):
    """As qemu-img writes it: the tables stand before the grains."""

    def sample(self) -> bytes:
        return cases.noise(3 * MIB) + bytes(MIB) + b'x' * 512

    def test_data(self) -> None:
        data = self.sample()
        for end in (b'', bytes(512), bytes(5000)):
            with self.subTest(len(end)):
                content = vmdk_packages.tables_first(data, level=1) + end
                image = self.image(content)
                self.assertTrue(image.ascending)
                # The last of the grains has one sector on the disk.
                self.assertEqual(3 * MIB + GRAIN, image.data_size)
                self.assertEqual(data, self.read(content))

    def test_any_order(self) -> None:
        data = self.sample()
        content = vmdk_packages.tables_first(
            data, level=1, order=lambda indexes: indexes[::-1]
        )
        image = self.image(content)
        self.assertFalse(image.ascending)
        disk = bytearray(len(data))
        for offset, run in image.runs():
            disk[offset : offset + len(run)] = run
        self.assertEqual(data, bytes(disk))

    def test_empty_disk(self) -> None:
        content = vmdk_packages.tables_first(bytes(MIB))
        self.assertEqual(bytes(MIB), self.read(content))

    def test_cut_short(self) -> None:
        whole = vmdk_packages.tables_first(self.sample())
        for end in (len(whole) - 512, len(whole) - MIB, 128 * SECTOR):
            with self.subTest(end):
                self.refused(whole[:end], 'package.truncated')

    def test_size_of_the_stream_is_known(self) -> None:
        content = vmdk_packages.tables_first(self.sample())
        stream = Bytes(content)
        stream.size = 200_000
        with self.assertRaises(exceptions.DiskImageError) as caught:
            self.converter.open_stream(self.streamed(), stream)
        self.assertEqual('vmdk.grain-outside', caught.exception.id)

    def test_grain_that_no_table_names(self) -> None:
        content = vmdk_packages.tables_first(self.sample())
        for entry in (0, 5):
            with self.subTest(entry):
                self.refused(
                    vmdk_packages.patched(
                        content, 31 * SECTOR + entry * 4, bytes(4)
                    ),
                    'vmdk.tables-differ',
                )

    def test_grain_missing(self) -> None:
        content = vmdk_packages.tables_first(self.sample())
        number = len(content) // SECTOR
        content = vmdk_packages.patched(
            content,
            31 * SECTOR + 500 * 4,
            vmdk_packages.number(number, 4),
        )
        self.refused(content + bytes(1024), 'vmdk.tables-differ')

    def test_more_after_the_end(self) -> None:
        content = vmdk_packages.tables_first(self.sample())
        self.refused(content + bytes(600) + b'x', 'vmdk.marker')


class NotForwardTest(StreamCase):
    def test_other_kinds(self) -> None:
        stream_optimized = vmdk_packages.stream_optimized(bytes(MIB))
        for name, content in (
            ('sparse', vmdk_packages.sparse(cases.noise(MIB))),
            ('text', vmdk_packages.descriptor('vmfs', ['RW 1 VMFS "f"'])),
            ('flat', cases.noise(MIB)),
            ('esx', b'COWD' + bytes(600)),
            ('empty', b''),
            (
                'directory among the data',
                vmdk_packages.patched(
                    stream_optimized, 56, vmdk_packages.number(128, 8)
                ),
            ),
            (
                'table among the data',
                vmdk_packages.patched(
                    vmdk_packages.tables_first(bytes(MIB)),
                    30 * SECTOR,
                    vmdk_packages.number(126, 4),
                ),
            ),
            (
                'tables too large',
                vmdk_packages.tables_first(bytes(MIB), overhead=1 << 62),
            ),
            (
                'size at the end',
                vmdk_packages.patched(stream_optimized, 12, bytes(8)),
            ),
        ):
            with self.subTest(name):
                stream = Bytes(content)
                disk = self.streamed()
                self.assertTrue(self.converter.probe_stream(disk, stream))
                with self.assertRaises(base.NotForward):
                    self.converter.open_stream(disk, stream)
                self.assertEqual(0, stream.position)
                self.assertEqual(content, stream.read(len(content) + 1))

    def test_probe(self) -> None:
        content = vmdk_packages.stream_optimized(bytes(MIB))
        for expected, head, name in (
            (True, content, 'disk'),
            (True, bytes(512), 'DISK.vmdk.gz'),
            (False, bytes(512), 'disk.gz'),
        ):
            with self.subTest(name):
                self.assertIs(
                    expected,
                    self.converter.probe_stream(
                        self.streamed(name), Bytes(head)
                    ),
                )

    def test_header_is_judged_before_anything_is_taken(self) -> None:
        content = vmdk_packages.stream_optimized(bytes(MIB), version=9)
        stream = Bytes(content)
        with self.assertRaises(exceptions.DiskImageError) as caught:
            self.converter.open_stream(self.streamed(), stream)
        self.assertEqual('vmdk.kind', caught.exception.id)
        self.assertEqual(0, stream.position)


class DamagedTest(StreamCase):
    def stream(self, capacity: int = 1024 * 128) -> vmdk_packages.Stream:
        return vmdk_packages.Stream(capacity)

    def test_cut_short(self) -> None:
        stream = self.stream()
        stream.add(0, cases.noise(GRAIN))
        stream.finish()
        whole = stream.content
        for end in (
            *range(512, len(whole), 9 * KIB),
            len(whole) - 1,
            len(whole) - 512,
            len(whole) - 1024,
        ):
            with self.subTest(end):
                self.refused(whole[:end], 'package.truncated')

    def test_order(self) -> None:
        for second in (4, 5):
            with self.subTest(second):
                stream = self.stream()
                stream.add(5, b'a' * GRAIN)
                stream.add(second, b'b' * GRAIN)
                stream.finish()
                self.refused(stream.content, 'vmdk.grain-order')

    def test_grain_outside_of_the_disk(self) -> None:
        for sector in (1024 * 128, 1 << 63, (1 << 64) - 128, 64, 129):
            with self.subTest(sector):
                stream = self.stream()
                stream.add(0, b'a' * GRAIN, lba=sector)
                stream.finish()
                self.refused(stream.content, 'vmdk.marker')

    def test_size_lies(self) -> None:
        for size in (0xFFFFFFFF, 100_000):
            with self.subTest(size):
                stream = self.stream()
                stream.add(0, b'a' * GRAIN, size=size)
                stream.finish()
                self.refused(stream.content, 'vmdk.grain')

    def test_bombs(self) -> None:
        for data in (bytes(64 * MIB), bytes(GRAIN + 1), bytes(GRAIN - 1)):
            with self.subTest(len(data)):
                stream = self.stream()
                stream.add(0, data)
                stream.finish()
                self.refused(stream.content, 'vmdk.grain')

    def test_unknown_marker(self) -> None:
        for kind, sectors in (
            (4, 1),
            (0xFFFFFFFF, 1),
            (1, 3),
            (1, 1 << 62),
            (2, 2),
            (2, 1 << 40),
            (3, 2),
            (0, 1),
        ):
            with self.subTest(kind=kind, sectors=sectors):
                stream = self.stream()
                stream.out.write(
                    vmdk_packages.marker(kind, bytes(2048), sectors)
                )
                stream.finish()
                self.refused(stream.content, 'vmdk.marker')

    def test_more_after_the_end(self) -> None:
        stream = self.stream()
        stream.finish()
        self.refused(stream.content + b'x', 'vmdk.marker')

    def test_end_without_a_footer(self) -> None:
        stream = self.stream()
        stream.add_directory()
        stream.out.write(bytes(SECTOR))
        self.refused(stream.content, 'vmdk.no-footer')

    def test_footer_of_another_disk(self) -> None:
        stream = self.stream()
        stream.add_directory()
        stream.add_footer(grain=256)
        self.refused(stream.content, 'vmdk.footer')

    def test_descriptor(self) -> None:
        delta = vmdk_packages.descriptor(
            'streamOptimized', ['RW 1 SPARSE "d"'], parent='00000001'
        )
        stream = vmdk_packages.Stream(1024, text=delta)
        stream.finish()
        self.refused(stream.content, 'vmdk.delta')

    def assert_differs(
        self, change: Callable[[vmdk_packages.Stream], None]
    ) -> None:
        stream = self.stream()
        stream.add(0, b'a' * GRAIN)
        stream.add(600, b'b' * GRAIN)
        change(stream)
        self.refused(stream.content, 'vmdk.tables-differ')

    def test_grain_missing_in_the_stream(self) -> None:
        def change(stream: vmdk_packages.Stream) -> None:
            stream.entries[2] = 5000
            stream.finish()

        self.assert_differs(change)

    def test_grain_missing_in_the_table(self) -> None:
        def change(stream: vmdk_packages.Stream) -> None:
            stream.add(601, b'b' * GRAIN)
            del stream.entries[601]
            stream.finish()

        self.assert_differs(change)

    def test_table_of_no_grain(self) -> None:
        def change(stream: vmdk_packages.Stream) -> None:
            stream.entries = {0: 77}
            stream.finish()

        self.assert_differs(change)

    def test_grain_after_its_table(self) -> None:
        def change(stream: vmdk_packages.Stream) -> None:
            stream.add_table(1)
            stream.add(601, b'c' * GRAIN)
            stream.finish()

        self.assert_differs(change)

    def test_table_missing(self) -> None:
        def change(stream: vmdk_packages.Stream) -> None:
            stream.add_table(0)
            stream.add_directory()
            stream.add_footer()

        self.assert_differs(change)

    def test_directory_of_other_tables(self) -> None:
        def change(stream: vmdk_packages.Stream) -> None:
            stream.add_table(0)
            stream.add_table(1)
            stream.tables = {0: stream.tables[1], 1: stream.tables[0]}
            stream.add_directory()
            stream.add_footer()

        self.assert_differs(change)

    def test_directory_names_a_table_that_did_not_come(self) -> None:
        stream = self.stream()
        stream.add(0, b'a' * GRAIN)
        stream.add_table(0)
        stream.tables[1] = 77
        stream.add_directory()
        stream.add_footer()
        self.refused(stream.content, 'vmdk.tables-differ')

    def test_directory_missing(self) -> None:
        def change(stream: vmdk_packages.Stream) -> None:
            stream.add_table(0)
            stream.add_table(1)
            stream.add_footer()

        self.assert_differs(change)

    def test_footer_names_another_directory(self) -> None:
        def change(stream: vmdk_packages.Stream) -> None:
            stream.add_table(0)
            stream.add_table(1)
            stream.add_directory()
            stream.directory += 1
            stream.add_footer()

        self.assert_differs(change)

    def test_failure_removes_the_copy(self) -> None:
        stream = self.stream()
        stream.add(0, bytes(100))
        stream.finish()
        with self.assertRaises(exceptions.DiskImageError):
            copy.copy_forward(self.image(stream.content), self.path('out'))
        self.assertFalse(os.path.exists(self.path('out')))
