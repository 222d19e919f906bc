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

"""The body of an upload: its bytes, its length, its digest."""

from __future__ import annotations

from collections.abc import Iterator
import hashlib
import os
import pathlib
import random
import tempfile
import unittest

from xenimport import exceptions
from xenimport.target import content

MIB = 1 << 20


class ContentTest(unittest.TestCase):
    def setUp(self) -> None:
        super().setUp()
        directory = tempfile.TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        self.path = os.path.join(directory.name, 'disk.raw')

    def write(self, size: int, *parts: tuple[int, bytes]) -> bytes:
        """A sparse file; what it reads as, by the system itself."""
        with open(self.path, 'wb') as file:
            file.truncate(size)
            for offset, data in parts:
                file.seek(offset)
                file.write(data)
        return pathlib.Path(self.path).read_bytes()

    def sent(self) -> tuple[bytes, str]:
        with content.Body(content.FileContent(self.path)) as body:
            sent = b''.join(bytes(piece) for piece in body)
            self.assertEqual(len(body), body.sent)
            return sent, body.hexdigest()

    def check(self, expected: bytes) -> None:
        sent, digest = self.sent()
        value = hashlib.sha512(expected).hexdigest()
        # By digest: nobody reads a difference of megabytes.
        self.assertEqual(value, hashlib.sha512(sent).hexdigest())
        self.assertEqual(value, digest)

    def test_data_and_holes(self) -> None:
        noise = random.Random(1).randbytes(7 * MIB + 5000)
        self.check(
            self.write(
                20 * MIB + 512,
                (0, b'x'),
                (3 * MIB - 7, noise),
                (20 * MIB, b'end'),
            )
        )

    def test_only_a_hole(self) -> None:
        self.check(self.write(5 * MIB + 1))

    def test_empty_file_is_still_a_body(self) -> None:
        self.check(self.write(0))
        with content.Body(content.FileContent(self.path)) as body:
            # requests would drop a body that is false.
            self.assertTrue(body)

    def test_more_pieces_than_buffers_are_hashed_before_reuse(self) -> None:
        # Each MiB differs: a buffer filled too early would show.
        data = b''.join(bytes([n]) * MIB for n in range(1, 17))
        self.check(self.write(len(data), (0, data)))

    def test_last_chunk_is_kept_back_until_the_content_has_ended(self) -> None:
        error = exceptions.PackageError('package.truncated', 'at its end')

        class Damaged(content.FileContent):
            def chunks(self) -> Iterator[memoryview]:
                yield from super().chunks()
                raise error

        self.write(3 * MIB, (0, b'x' * 3 * MIB))
        got = 0
        with content.Body(Damaged(self.path)) as body:
            with self.assertRaises(exceptions.PackageError):
                for piece in body:
                    got += len(piece)
            self.assertEqual(2 * MIB, got)
            self.assertIs(error, body.failure)
            self.assertFalse(body.complete)

    def test_content_is_ended_with_the_body(self) -> None:
        ended = []

        class Watched(content.FileContent):
            def chunks(self) -> Iterator[memoryview]:
                try:
                    yield from super().chunks()
                finally:
                    ended.append(True)

        self.write(5 * MIB, (0, b'x'))
        with content.Body(Watched(self.path)) as body:
            kept = iter(body)
            next(kept)
            self.assertEqual([], ended)
        self.assertEqual([True], ended)
        self.assertIsNone(body.failure)

    def test_absent_file(self) -> None:
        with self.assertRaises(exceptions.MachineError) as caught:
            content.FileContent(self.path)
        self.assertEqual('machine.read-failed', caught.exception.id)
        self.assertEqual(self.path, caught.exception.where)

    def test_file_that_shrinks_is_an_error(self) -> None:
        self.write(3 * MIB, (0, b'x' * 3 * MIB))
        with content.Body(content.FileContent(self.path)) as body:
            pieces = iter(body)
            next(pieces)
            os.truncate(self.path, MIB)
            with self.assertRaises(exceptions.MachineError) as caught:
                list(pieces)
        self.assertEqual('machine.read-failed', caught.exception.id)

    def test_holes_are_not_in_the_ranges(self) -> None:
        self.write(64 * MIB, (0, b'x' * 4096), (32 * MIB, b'x' * 4096))
        descriptor = os.open(self.path, os.O_RDONLY)
        self.addCleanup(os.close, descriptor)
        ranges = list(content.data_ranges(descriptor, 64 * MIB))
        self.assertEqual([0, 32 * MIB], [start for start, _ in ranges])
        self.assertLess(sum(length for _, length in ranges), MIB)

    def test_digest_of_another_algorithm(self) -> None:
        expected = self.write(2 * MIB, (MIB, b'x'))
        self.assertEqual(
            hashlib.sha256(expected).hexdigest(),
            content.digest(content.FileContent(self.path), 'sha256'),
        )
