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

"""Uploads of what is no file, and of what fails while it is sent."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent import futures
import hashlib
import typing
import unittest

import requests
import requests_mock

from xenimport import exceptions
from xenimport import model
from xenimport.target import glance
from xenimport.tests.unit.target import fakes

MIB = 1 << 20
REQUEST = model.ImageRequest('n')
_DAMAGED = exceptions.PackageError('package.digest-mismatch', 'damaged')


class Memory:
    """Bytes as a content; each buffer is used again when it may be.

    :param fails_at: raise in place of the chunk with this number; the
        number of chunks means the end
    """

    path: str | None = None

    def __init__(
        self,
        data: bytes,
        *,
        repeatable: bool = False,
        fails_at: int | None = None,
        error: BaseException = _DAMAGED,
    ) -> None:
        self.size = len(data)
        self.repeatable = repeatable
        self.read = 0
        self.closed = False
        self._data = data
        self._fails_at = fails_at
        self._error = error

    def chunks(self) -> Iterator[memoryview]:
        assert self.repeatable or not self.read
        self.read += 1
        buffers = [bytearray(MIB) for _ in range(4)]
        try:
            for number, start in enumerate(range(0, self.size, MIB)):
                if number == self._fails_at:
                    raise self._error
                part = self._data[start : start + MIB]
                buffers[number % 4][: len(part)] = part
                yield memoryview(buffers[number % 4])[: len(part)]
            if self._fails_at is not None:
                raise self._error
        finally:
            self.closed = True


class Base(unittest.TestCase):
    """Sixteen MiB, each another one."""

    data = b''.join(bytes([number]) * MIB for number in range(16)) + b'end'

    def setUp(self) -> None:
        super().setUp()
        mocker = requests_mock.Mocker()
        mocker.start()
        self.addCleanup(mocker.stop)
        self.service = fakes.FakeGlance(mocker)
        self.target = glance.GlanceTarget(
            {'retry_wait': 0.001}, connection=fakes.connect()
        )

    def assert_arrived(self, image: model.Image) -> None:
        """By digest: nobody reads a difference of megabytes."""
        self.assertEqual(
            hashlib.sha512(self.data).hexdigest(),
            hashlib.sha512(self.service.data[image.id]).hexdigest(),
        )

    def refused(self, content: Memory) -> exceptions.TargetError:
        with self.assertRaises(exceptions.TargetError) as caught:
            self.target.publish(0, content, REQUEST)
        return caught.exception


class StreamTest(Base):
    """A content that comes once."""

    def test_arrives_whole(self) -> None:
        content = Memory(self.data)
        image = self.target.publish(0, content, REQUEST)
        self.assertEqual(
            hashlib.sha512(self.data).hexdigest(), image.hash_value
        )
        self.assert_arrived(image)
        self.assertTrue(content.closed)

    def test_broken_upload_is_not_sent_again(self) -> None:
        self.service.uploads = [fakes.breaking(3)]
        content = Memory(self.data)
        error = self.refused(content)
        self.assertEqual('glance.upload-broken', error.id)
        self.assertIn('cannot be sent again', error.message)
        self.assertIn('Connection reset by peer', error.found or '')
        self.assertEqual(1, content.read)
        self.assertTrue(content.closed)
        self.target.discard()
        self.assertEqual({}, self.service.images)

    def test_refused_connection_is_tried_again(self) -> None:
        # Nothing was taken by then.
        def refuse(request: typing.Any, context: typing.Any) -> str:
            raise requests.exceptions.ConnectionError('refused')

        self.service.uploads = [refuse, refuse]
        image = self.target.publish(0, Memory(self.data), REQUEST)
        self.assertEqual('active', image.status)

    def test_lost_answer_after_all_data(self) -> None:
        def lost(request: typing.Any, context: typing.Any) -> str:
            self.service._upload(request, context)
            raise requests.exceptions.ConnectionError('reset')

        self.service.uploads = [lost]
        content = Memory(self.data)
        image = self.target.publish(0, content, REQUEST)
        self.assertEqual(
            hashlib.sha512(self.data).hexdigest(), image.hash_value
        )
        self.assertEqual(1, content.read)

    def test_expired_token_is_too_late(self) -> None:
        self.target = glance.GlanceTarget(
            connection=fakes.connect_by_password(self.service.mocker)
        )
        self.service.uploads = [fakes.refusing(401, 'expired')]
        content = Memory(self.data)
        self.assertEqual('glance.unauthorized', self.refused(content).id)
        self.assertEqual(1, content.read)

    def test_refusal_keeps_its_reason(self) -> None:
        self.service.uploads = [fakes.refusing(415, 'unsafe')]
        error = self.refused(Memory(self.data))
        self.assertEqual('glance.image-refused', error.id)

    def test_other_algorithm_cannot_be_computed(self) -> None:
        self.service.change = lambda image: image.update(os_hash_algo='sha256')
        image = self.target.publish(0, Memory(self.data), REQUEST)
        self.assertEqual(
            ['glance.hash-unchecked'],
            [finding.id for finding in self.target.findings],
        )
        self.assertEqual('sha512', image.hash_algorithm)
        self.assertEqual(
            hashlib.sha512(self.data).hexdigest(), image.hash_value
        )

    def test_repeatable_content_is_sent_again(self) -> None:
        self.service.uploads = [fakes.breaking(3)]
        content = Memory(self.data, repeatable=True)
        image = self.target.publish(0, content, REQUEST)
        self.assert_arrived(image)
        self.assertEqual(2, content.read)


class FailureTest(Base):
    """A content that raises."""

    def check(self, fails_at: int, error: BaseException) -> None:
        for repeatable in (True, False):
            content = Memory(
                self.data,
                repeatable=repeatable,
                fails_at=fails_at,
                error=error,
            )
            with self.assertRaises(type(error)) as caught:
                self.target.publish(0, content, REQUEST)
            self.assertIs(error, caught.exception)
            self.assertEqual(1, content.read)
        self.assertEqual({}, self.service.data)
        self.target.discard()
        self.assertEqual({}, self.service.images)

    def test_first_chunk(self) -> None:
        self.check(0, _DAMAGED)

    def test_middle(self) -> None:
        self.check(7, _DAMAGED)

    def test_end(self) -> None:
        self.check(17, _DAMAGED)

    def test_ctrl_c(self) -> None:
        self.check(7, KeyboardInterrupt())

    def test_error_that_looks_like_the_network(self) -> None:
        # A package from a URL: its server is not the Image service.
        self.check(7, requests.exceptions.ConnectionError('not Glance'))
        self.check(7, ConnectionResetError('not Glance'))
        self.check(
            7, exceptions.TargetError('glance.unreachable', 'another one')
        )

    def test_wrapped_on_its_way(self) -> None:
        # urllib3 makes an error of its own of any OSError.
        error = OSError('a disk')

        def wrap(request: typing.Any, context: typing.Any) -> str:
            try:
                list(request.body)
            except OSError as caught:
                raise requests.exceptions.ConnectionError(caught) from caught
            raise AssertionError

        self.service.uploads = [wrap]
        with self.assertRaises(OSError) as caught:
            self.target.publish(
                0, Memory(self.data, fails_at=3, error=error), REQUEST
            )
        self.assertIs(error, caught.exception)

    def test_progress_can_stop_it(self) -> None:
        def stop(done: int, total: int) -> None:
            if done >= 5 * MIB:
                raise _DAMAGED

        with self.assertRaises(exceptions.PackageError):
            self.target.publish(0, Memory(self.data), REQUEST, stop)
        self.assertEqual({}, self.service.data)

    def test_content_of_another_size_is_a_bug(self) -> None:
        for size in (len(self.data) - 1, len(self.data) + 1):
            with self.subTest(size), self.assertRaises(RuntimeError):
                self.target.publish(0, _Resized(self.data, size), REQUEST)
        self.assertEqual({}, self.service.data)


class _Resized(Memory):
    """States another size than it has."""

    def __init__(self, data: bytes, stated: int) -> None:
        super().__init__(data)
        self._whole = data
        self.size = stated

    def chunks(self) -> Iterator[memoryview]:
        return Memory(self._whole).chunks()


class ThreadsTest(Base):
    """Several disks at once; requests-mock answers them in turn."""

    def test_each_has_its_record_and_all_are_discarded(self) -> None:
        self.service.change = lambda image: image.update(
            os_hash_algo=None, os_hash_value=None, checksum=None
        )

        def publish(disk: int) -> model.Image:
            return self.target.publish(disk, Memory(self.data), REQUEST)

        with futures.ThreadPoolExecutor(4) as pool:
            images = list(pool.map(publish, range(4)))
        self.assertEqual(4, len({image.id for image in images}))
        self.assertEqual([0, 1, 2, 3], [image.disk for image in images])
        self.assertEqual(4, len(self.target.findings))
        self.target.discard()
        self.assertEqual({}, self.service.images)
