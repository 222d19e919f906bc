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


import unittest

from xenimport.converter import base
from xenimport import exceptions
from xenimport.target import base as target_base
from xenimport.workflow import straight

MIB = 1 << 20
SIZE = 5 * MIB + 512


class FakeImage(base.DiskImage):
    """A disk whose every byte of data tells its mebibyte."""

    format = 'fake'
    virtual_size = SIZE

    def __init__(self, *runs):
        self.runs = runs
        self.reads = []

    def extents(self):
        position = 0
        for offset, length in self.runs:
            if offset > position:
                yield position, offset - position, False
            yield offset, length, True
            position = offset + length
        if position < SIZE:
            yield position, SIZE - position, False

    def pread_into(self, buffer, offset):
        self.reads.append((offset, len(buffer)))
        buffer[:] = bytes([65 + offset // MIB]) * len(buffer)

    def close(self):
        pass


class FakeForward(base.ForwardImage):
    format = 'fake'
    virtual_size = SIZE
    ascending = True

    def __init__(self, *runs):
        self._runs = runs

    def runs(self):
        for offset, data in self._runs:
            yield offset, memoryview(data)


class FakeSketch:
    def __init__(self):
        self.fed = bytearray(SIZE)

    def feed(self, offset, data):
        self.fed[offset : offset + len(data)] = data


def collected(test, body):
    """All chunks, each looked at as late as the contract allows."""
    chunks = []
    result = bytearray()
    for chunk in body.chunks():
        test.assertLessEqual(len(chunk), target_base.CHUNK)
        chunks.append(chunk)
        if len(chunks) > target_base.DEPTH:
            result += chunks.pop(0)
    for chunk in chunks:
        result += chunk
    return bytes(result)


class ImageContentTest(unittest.TestCase):
    def setUp(self):
        self.ends = []

    def content(self, image):
        return straight.ImageContent(image, 2, lambda: self.ends.append(1))

    def test_data_and_holes(self):
        image = FakeImage((512, 2 * MIB), (4 * MIB, MIB))
        body = self.content(image)
        self.assertEqual(SIZE, body.size)
        expected = bytearray(SIZE)
        expected[512 : MIB + 512] = b'A' * MIB
        expected[MIB + 512 : 2 * MIB + 512] = b'B' * MIB
        expected[4 * MIB : 5 * MIB] = b'E' * MIB
        self.assertEqual(bytes(expected), collected(self, body))
        # Holes are not read.
        self.assertEqual(3 * MIB, sum(length for _, length in image.reads))

    def test_again_for_another_try(self):
        body = self.content(FakeImage((0, SIZE)))
        self.assertEqual(collected(self, body), collected(self, body))
        self.assertEqual([1, 1], self.ends)

    def test_nothing_ends_before_the_checks(self):
        for runs in (((0, MIB),), ((0, SIZE),)):
            with self.subTest(runs=runs):
                received = 0

                def refuse():
                    raise exceptions.PackageError('package.changed', 'no')

                body = straight.ImageContent(FakeImage(*runs), 2, refuse)
                with self.assertRaises(exceptions.PackageError):
                    for chunk in body.chunks():
                        received += len(chunk)
                self.assertLess(received, SIZE)

    def test_error_while_reading(self):
        class Broken(FakeImage):
            def pread_into(self, buffer, offset):
                raise exceptions.DiskImageError('vhd.truncated', 'gone')

        with self.assertRaises(exceptions.DiskImageError):
            collected(self, self.content(Broken((0, SIZE))))
        self.assertEqual([], self.ends)


class ForwardContentTest(unittest.TestCase):
    def setUp(self):
        self.ends = []
        self.sketch = FakeSketch()

    def content(self, *runs):
        return straight.ForwardContent(
            FakeForward(*runs), self.sketch, lambda: self.ends.append(1)
        )

    def test_gaps_are_zeros(self):
        runs = (
            (700, b'a' * 300),
            (MIB - 10, b'b' * 20),
            (4 * MIB + 5, b'c' * MIB),
        )
        expected = bytearray(SIZE)
        for offset, data in runs:
            expected[offset : offset + len(data)] = data
        self.assertEqual(bytes(expected), collected(self, self.content(*runs)))
        self.assertEqual(bytes(expected), bytes(self.sketch.fed))
        self.assertEqual([1], self.ends)

    def test_empty_disk(self):
        self.assertEqual(bytes(SIZE), collected(self, self.content()))

    def test_out_of_order(self):
        for name, runs in (
            ('backwards', ((MIB, b'x'), (0, b'y'))),
            ('twice', ((0, b'xx'), (1, b'y'))),
            ('beyond the end', ((SIZE - 1, b'xy'),)),
        ):
            with self.subTest(name):
                with self.assertRaises(exceptions.DiskImageError) as caught:
                    collected(self, self.content(*runs))
                self.assertEqual('disk-image.disorder', caught.exception.id)

    def test_nothing_ends_before_the_checks(self):
        def refuse():
            raise exceptions.PackageError('package.digest-mismatch', 'no')

        body = straight.ForwardContent(
            FakeForward((0, b'x' * SIZE)), self.sketch, refuse
        )
        received = 0
        with self.assertRaises(exceptions.PackageError):
            for chunk in body.chunks():
                received += len(chunk)
        self.assertLess(received, SIZE)

    def test_only_what_can_be_streamed(self):
        image = FakeForward()
        image.ascending = False
        with self.assertRaises(ValueError):
            straight.ForwardContent(image, self.sketch, lambda: None)
