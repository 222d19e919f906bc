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

"""The copy into a sparse RAW file."""

from collections.abc import Iterator
import errno
import os
import threading
import time
from unittest import mock

from xenimport import exceptions
from xenimport.converter import base
from xenimport.converter import copy
from xenimport.converter import vhd
from xenimport import stream_files
from xenimport.tests import packages
from xenimport.tests.unit.converter import cases

KIB = 1024
MIB = 1024 * KIB


class FakeImage(base.DiskImage):
    """A disk of the given runs of data; anything else is a hole."""

    format = 'fake'

    def __init__(self, size: int, runs: dict[int, bytes]) -> None:
        self.virtual_size = size
        self.runs = runs
        self.reads = 0
        self.fails_at = -1

    def extents(self) -> Iterator[tuple[int, int, bool]]:
        end = 0
        for offset, data in self.runs.items():
            if offset > end:
                yield end, offset - end, False
            yield offset, len(data), True
            end = offset + len(data)
        if end < self.virtual_size:
            yield end, self.virtual_size - end, False

    def pread_into(self, buffer: memoryview, offset: int) -> None:
        self.reads += 1
        for start, data in self.runs.items():
            if start <= offset < start + len(data):
                if start == self.fails_at:
                    raise exceptions.DiskImageError('fake.broken', 'Broken')
                inside = offset - start
                buffer[:] = data[inside : inside + len(buffer)]
                return
        raise AssertionError(f'a hole was read at {offset}')

    def close(self) -> None:
        pass


class CopyTestCase(cases.DiskTestCase):
    def setUp(self) -> None:
        super().setUp()
        self.target = self.path('disk.raw')

    def content(self) -> bytes:
        with open(self.target, 'rb') as stream:
            return stream.read()

    def assert_nothing_left(self) -> None:
        self.assertFalse(os.path.exists(self.target))
        names = [thread.name for thread in threading.enumerate()]
        self.assertEqual([], [n for n in names if n.startswith('copy-')])


class CopyTest(CopyTestCase):
    def test_same_bytes_with_any_number_of_threads(self) -> None:
        data = (
            cases.noise(2 * MIB + 512)
            + bytes(3 * MIB)
            + b'\0' * 65535
            + b'x'
            + bytes(512)
        )
        data = data[: len(data) // 512 * 512]
        image = self.opened(vhd.VhdConverter(), packages.dynamic_vhd(data))
        for threads in (1, 2, 5):
            with self.subTest(threads=threads):
                copy.copy(image, self.target, threads=threads)
                self.assertEqual(data, self.content())

    def test_counts(self) -> None:
        runs = {
            MIB: bytes(64 * KIB) + b'x' * 64 * KIB + bytes(64 * KIB),
            4 * MIB: bytes(MIB),
        }
        image = FakeImage(8 * MIB, runs)
        done = copy.copy(image, self.target)
        self.assertEqual(64 * KIB, done.bytes_written)
        self.assertEqual(MIB + 192 * KIB, done.bytes_read)
        self.assertEqual(MIB + 192 * KIB, copy.data_size(image))
        self.assertEqual(8 * MIB, os.stat(self.target).st_size)
        self.assertEqual(64 * KIB, os.stat(self.target).st_blocks * 512)

    def test_grains_are_aligned_on_the_disk(self) -> None:
        # Data that starts in the midst of a grain must not shift the
        # grains after it.
        start = 32 * KIB
        data = b'x' + bytes(32 * KIB - 1) + bytes(64 * KIB) + b'y'
        done = copy.copy(
            FakeImage(MIB, {start: data + bytes(511)}), self.target
        )
        self.assertEqual(32 * KIB + 512, done.bytes_written)
        self.assertEqual(
            bytes(start) + data, self.content()[: start + len(data)]
        )

    def test_time_does_not_grow_with_the_virtual_size(self) -> None:
        # ext4 ends at 16 TiB.
        image = FakeImage(15 << 40, {(15 << 40) - 512: b'x' * 512})
        started = time.monotonic()
        copy.copy(image, self.target)
        self.assertLess(time.monotonic() - started, 2)
        self.assertEqual(1, image.reads)

    def test_existing_file_is_replaced(self) -> None:
        with open(self.target, 'wb') as stream:
            stream.write(b'old' * MIB)
        copy.copy(FakeImage(MIB, {0: b'new' + bytes(509)}), self.target)
        self.assertEqual(b'new' + bytes(MIB - 3), self.content())

    def test_symbolic_link_is_not_followed(self) -> None:
        os.symlink(self.path('victim'), self.target)
        with self.assertRaises(exceptions.MachineError):
            copy.copy(FakeImage(MIB, {}), self.target)
        self.assertFalse(os.path.exists(self.path('victim')))

    def test_progress(self) -> None:
        calls: list[tuple[int, int]] = []
        copy.copy(
            FakeImage(4 * MIB, {0: b'x' * 2 * MIB}),
            self.target,
            progress=lambda done, total: calls.append((done, total)),
        )
        self.assertEqual((0, 2 * MIB), calls[0])
        self.assertEqual((2 * MIB, 2 * MIB), calls[-1])
        self.assertEqual(sorted(calls), calls)

    def test_failing_image(self) -> None:
        image = FakeImage(
            8 * MIB, {MIB * number: b'x' * 512 for number in range(8)}
        )
        image.fails_at = 5 * MIB
        with self.assertRaises(exceptions.DiskImageError) as caught:
            copy.copy(image, self.target)
        self.assertEqual('fake.broken', caught.exception.id)
        self.assert_nothing_left()

    def test_interrupted(self) -> None:
        def interrupt(done: int, total: int) -> None:
            raise KeyboardInterrupt

        with self.assertRaises(KeyboardInterrupt):
            copy.copy(
                FakeImage(MIB, {0: b'x' * MIB}),
                self.target,
                progress=interrupt,
            )
        self.assert_nothing_left()

    def test_interruption_does_not_wait_for_the_rest(self) -> None:
        class SlowImage(FakeImage):
            def pread_into(self, buffer: memoryview, offset: int) -> None:
                time.sleep(0.01)
                super().pread_into(buffer, offset)

        def interrupt(done: int, total: int) -> None:
            raise KeyboardInterrupt

        image = SlowImage(200 * MIB, {n * MIB: b'x' * 512 for n in range(200)})
        with self.assertRaises(KeyboardInterrupt):
            copy.copy(image, self.target, progress=interrupt)
        self.assertLess(image.reads, 20)
        self.assert_nothing_left()

    def test_no_space(self) -> None:
        failure = OSError(errno.ENOSPC, 'No space left on device')
        with mock.patch.object(
            os, 'pwrite', autospec=True, side_effect=failure
        ):
            with self.assertRaises(exceptions.MachineError) as caught:
                copy.copy(FakeImage(MIB, {0: b'x' * MIB}), self.target)
        self.assertEqual('machine.no-space', caught.exception.id)
        self.assertEqual(self.target, caught.exception.where)
        self.assertIn('--work-dir', caught.exception.fix or '')
        self.assert_nothing_left()

    def test_short_writes_are_completed(self) -> None:
        write = os.pwrite

        def short(descriptor: int, data: memoryview, offset: int) -> int:
            return write(descriptor, data[:1000], offset)

        data = cases.noise(128 * KIB)
        with mock.patch.object(os, 'pwrite', autospec=True, side_effect=short):
            copy.copy(FakeImage(128 * KIB, {0: data}), self.target)
        self.assertEqual(data, self.content())

    def test_missing_directory(self) -> None:
        with self.assertRaises(exceptions.MachineError) as caught:
            copy.copy(FakeImage(MIB, {}), self.path('gone/disk.raw'))
        self.assertEqual('machine.write-failed', caught.exception.id)


class FakeForward(base.ForwardImage):
    """Yields its runs from one buffer, used over and over."""

    format = 'fake'
    ascending = False

    def __init__(self, size: int | None, *runs: tuple[int, bytes]) -> None:
        self.virtual_size = size
        self._runs = runs
        self.fails = False

    def runs(self) -> Iterator[tuple[int, memoryview]]:
        buffer = bytearray(base.MAX_RUN)
        for offset, data in self._runs:
            buffer[: len(data)] = data
            yield offset, memoryview(buffer)[: len(data)]
        if self.fails:
            raise exceptions.DiskImageError('fake.broken', 'Broken')


class ForwardTest(CopyTestCase):
    """The same for a disk that comes once."""

    def test_runs_in_any_order(self) -> None:
        image = FakeForward(
            8 * MIB,
            (5 * MIB, b'c' * MIB),
            (0, b'a' * 1000),
            (2 * MIB + 512, bytes(MIB) + b'b' * 512),
        )
        done = copy.copy_forward(image, self.target)
        expected = bytearray(8 * MIB)
        expected[:1000] = b'a' * 1000
        place = 3 * MIB + 512
        expected[place : place + 512] = b'b' * 512
        expected[5 * MIB : 6 * MIB] = b'c' * MIB
        self.assertEqual(bytes(expected), self.content())
        self.assertEqual(2 * MIB + 1512, done.bytes_read)
        self.assertLess(os.stat(self.target).st_blocks * 512, 1200 * KIB)

    def test_more_runs_than_buffers(self) -> None:
        runs = [(n * MIB, bytes([n + 1]) * MIB) for n in range(20)]
        copy.copy_forward(FakeForward(20 * MIB, *runs), self.target)
        self.assertEqual(b''.join(data for _, data in runs), self.content())

    def test_size_that_only_the_end_tells(self) -> None:
        image = FakeForward(None, (0, b'a' * 512), (512, bytes(512)))
        copy.copy_forward(image, self.target)
        self.assertEqual(b'a' * 512 + bytes(512), self.content())

    def test_run_beyond_the_end(self) -> None:
        image = FakeForward(1024, (512, b'a' * 513))
        with self.assertRaises(exceptions.DiskImageError) as caught:
            copy.copy_forward(image, self.target)
        self.assertEqual('disk-image.outside', caught.exception.id)
        self.assert_nothing_left()

    def test_image_that_fails_in_the_end(self) -> None:
        image = FakeForward(MIB, (0, b'a' * MIB))
        image.fails = True
        with self.assertRaises(exceptions.DiskImageError):
            copy.copy_forward(image, self.target)
        self.assert_nothing_left()

    def test_disk_full_while_another_thread_writes(self) -> None:
        runs = [(n * MIB, b'x' * MIB) for n in range(20)]
        with (
            mock.patch.object(
                os,
                'pwrite',
                autospec=True,
                side_effect=OSError(errno.ENOSPC, 'full'),
            ),
            self.assertRaises(exceptions.MachineError) as caught,
        ):
            copy.copy_forward(FakeForward(20 * MIB, *runs), self.target)
        self.assertEqual('machine.no-space', caught.exception.id)
        self.assert_nothing_left()

    def test_interrupted_stream(self) -> None:
        def interrupt(done: int, total: int) -> None:
            raise KeyboardInterrupt

        with self.assertRaises(KeyboardInterrupt):
            copy.copy_forward(
                FakeForward(MIB, (0, b'a')), self.target, progress=interrupt
            )
        self.assert_nothing_left()

    def test_unpacked_stream(self) -> None:
        content = b'package' * 1_000_000
        path = self.path('member.gz')
        with open(path, 'wb') as stream:
            stream.write(content)
        arriving = stream_files.FileStream(path)
        self.addCleanup(arriving.close)
        self.assertEqual(len(content), copy.unpack(arriving, self.target))
        self.assertEqual(content, self.content())
