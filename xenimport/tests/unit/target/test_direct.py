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

"""The transfer glance-direct: staged, imported, perhaps converted."""

from __future__ import annotations

import hashlib
import struct
import typing
import unittest
from unittest import mock

import requests
import requests_mock

from xenimport import exceptions
from xenimport import model
from xenimport.target import glance
from xenimport.tests.unit.target import fakes
from xenimport.tests.unit.target import test_upload

MIB = 1 << 20
RAW = b'raw disk' * (MIB // 4)
#: The head of a qcow2 as its specification has it: magic, version, backing
#: file's offset and length, cluster bits, virtual size.
SENT = (
    struct.pack('>4sIQIIQ', b'QFI\xfb', 3, 0, 0, 16, len(RAW))
    + b'clusters' * 1000
)
QCOW2 = model.ImageRequest('n', disk_format='qcow2')
PROCESSING = {'status': 'processing', 'message': 'Copied 1 MiB'}


class Base(unittest.TestCase):
    def setUp(self) -> None:
        super().setUp()
        mocker = requests_mock.Mocker()
        mocker.start()
        self.addCleanup(mocker.stop)
        self.service = fakes.FakeGlance(mocker)
        patcher = mock.patch('xenimport.target.direct._FIRST_LOOK', 0.001)
        patcher.start()
        self.addCleanup(patcher.stop)
        self.target = self.make_target()

    def make_target(self, **options: typing.Any) -> glance.GlanceTarget:
        return glance.GlanceTarget(
            {'retry_wait': 0.001, 'transfer': 'glance-direct'} | options,
            connection=fakes.connect(),
        )

    def publish(self, *, raw: bytes | None = None) -> model.Image:
        return self.target.publish(
            0,
            test_upload.Memory(SENT, repeatable=True),
            QCOW2,
            raw=test_upload.Memory(raw, repeatable=True) if raw else None,
        )

    def refused(
        self, error_id: str, *, raw: bytes | None = None
    ) -> exceptions.TargetError:
        with self.assertRaises(exceptions.TargetError) as caught:
            self.publish(raw=raw)
        self.assertEqual(error_id, caught.exception.id)
        self.target.discard()
        self.assertEqual({}, self.service.images)
        return caught.exception

    def findings(self) -> list[str]:
        return [finding.id for finding in self.target.findings]


class ValidateTest(Base):
    """Whether the cloud has it."""

    def test_offered(self) -> None:
        self.target.validate([QCOW2])

    def test_not_offered(self) -> None:
        self.service.methods = ['web-download', 'copy-image']
        with self.assertRaises(exceptions.TargetError) as caught:
            self.target.validate([QCOW2])
        error = caught.exception
        self.assertEqual('glance.transfer-unsupported', error.id)
        self.assertEqual('web-download, copy-image', error.found)
        self.assertIn('transfer=upload', error.fix or '')
        self.make_target(transfer='upload').validate([QCOW2])

    def test_too_old_a_service(self) -> None:
        self.service.mocker.get(f'{fakes.URL}/v2/info/import', status_code=404)
        with self.assertRaises(exceptions.TargetError) as caught:
            self.target.validate([QCOW2])
        self.assertEqual('glance.transfer-unsupported', caught.exception.id)

    def test_odd_answers(self) -> None:
        for odd in (
            {},
            {'import-methods': None},
            {'import-methods': {'value': 'glance-direct'}},
        ):
            self.service.mocker.get(f'{fakes.URL}/v2/info/import', json=odd)
            with self.subTest(odd):
                with self.assertRaises(exceptions.TargetError):
                    self.target.validate([QCOW2])

    def test_quota_of_the_staging_area(self) -> None:
        self.service.mocker.get(
            f'{fakes.URL}/v2/info/usage',
            json={'usage': {'image_stage_total': {'limit': 9, 'usage': 9}}},
        )
        self.assertIn(
            'image_stage_total', self.refused('glance.quota').message
        )


class ImportTest(Base):
    """A cloud that stores what was staged."""

    def test_image_stands(self) -> None:
        self.service.looks = [('importing', PROCESSING)] * 3
        image = self.publish()
        self.assertEqual(
            ('active', 'qcow2', len(SENT), {}),
            (image.status, image.disk_format, image.size, image.properties),
        )
        self.assertEqual(hashlib.sha512(SENT).hexdigest(), image.hash_value)
        self.assertEqual(1, self.service.count('PUT', '/stage'))
        self.assertEqual(0, self.service.count('PUT', '/file'))
        self.assertEqual([], self.findings())

    def test_broken_stage_is_sent_again(self) -> None:
        self.service.uploads = [fakes.breaking(0)]
        self.publish()
        self.assertEqual(2, self.service.count('PUT', '/stage'))

    def test_stage_whose_answer_was_lost(self) -> None:
        def lost(request: typing.Any, context: typing.Any) -> str:
            self.service._upload(request, context)
            raise requests.exceptions.ConnectionError('reset')

        self.service.uploads = [lost]
        image = self.publish()
        self.assertEqual(hashlib.sha512(SENT).hexdigest(), image.hash_value)
        self.assertEqual(1, self.service.count('PUT', '/stage'))

    def test_start_whose_answer_was_lost(self) -> None:
        def lost(request: typing.Any, context: typing.Any) -> str:
            self.service._import(request, context)
            raise requests.exceptions.ConnectionError('reset')

        self.service.mocker.post(self.service.matcher('/import'), text=lost)
        self.assertEqual('active', self.publish().status)
        self.assertEqual(1, self.service.count('POST', '/import'))

    def test_start_that_is_refused(self) -> None:
        self.service.mocker.post(
            self.service.matcher('/import'), status_code=409, text='not now'
        )
        error = self.refused('glance.request-refused')
        self.assertIn('not now', error.found or '')

    def test_failed_task_is_named(self) -> None:
        self.service.looks = [
            ('importing', PROCESSING),
            # The record may show it first.
            ('queued', PROCESSING),
            ('queued', {'status': 'failure', 'message': 'no\x1b space'}),
        ]
        error = self.refused('glance.import-failed')
        self.assertEqual('status queued, task failure, no? space', error.found)

    def test_failed_import_without_a_task(self) -> None:
        self.service.looks = [('queued', None)] * 2
        error = self.refused('glance.import-failed')
        self.assertEqual('status queued', error.found)

    def test_failed_record_whose_task_never_ends(self) -> None:
        self.service.looks = [('queued', PROCESSING)] * 99
        self.refused('glance.import-failed')
        self.assertGreater(len(self.service.looks), 80)

    def test_old_failure_of_the_image_does_not_count(self) -> None:
        # The fake lists an older task that has failed.
        self.service.looks = [('importing', PROCESSING)]
        self.assertEqual('active', self.publish().status)

    def test_limit(self) -> None:
        self.target = self.make_target(import_limit=0.05)
        self.service.looks = [('importing', PROCESSING)] * 999
        error = self.refused('glance.import-limit')
        self.assertIn('task processing, Copied 1 MiB', error.found or '')

    def test_service_that_is_away_for_a_while(self) -> None:
        away = {'status_code': 503}
        self.service.mocker.get(
            self.service.matcher('/tasks'),
            [away, away, {'json': self.service._tasks}],
        )
        self.assertEqual('active', self.publish().status)

    def test_progress_can_stop_the_wait(self) -> None:
        self.service.looks = [('importing', PROCESSING)] * 999
        calls = []

        def stop(done: int, total: int) -> None:
            calls.append((done, total))
            if len(calls) > 3:
                raise KeyboardInterrupt

        with self.assertRaises(KeyboardInterrupt):
            self.target.publish(0, test_upload.Memory(SENT), QCOW2, stop)
        self.assertEqual({(len(SENT), len(SENT))}, set(calls))


class ConversionTest(Base):
    """A cloud that makes RAW of what it imports."""

    def setUp(self) -> None:
        super().setUp()
        self.service.convert = lambda sent: ('raw', RAW)

    def test_compared_with_the_raw_disk(self) -> None:
        image = self.publish(raw=RAW)
        self.assertEqual(
            ('raw', len(RAW), 'sha512', hashlib.sha512(RAW).hexdigest()),
            (
                image.disk_format,
                image.size,
                image.hash_algorithm,
                image.hash_value,
            ),
        )
        self.assertEqual([], self.findings())

    def test_algorithm_of_the_cloud(self) -> None:
        value = hashlib.sha256(RAW).hexdigest()
        self.service.change = lambda image: image.update(
            os_hash_algo='sha256', os_hash_value=value
        )
        self.assertEqual(value, self.publish(raw=RAW).hash_value)

    def test_another_disk(self) -> None:
        self.refused('glance.hash-mismatch', raw=RAW[:-1] + b'x')

    def test_another_size(self) -> None:
        self.refused('glance.size-mismatch', raw=RAW + bytes(512))

    def test_no_digest(self) -> None:
        self.service.change = lambda image: image.update(
            os_hash_algo=None, os_hash_value=None, checksum=None
        )
        image = self.publish(raw=RAW)
        self.assertEqual(hashlib.sha512(RAW).hexdigest(), image.hash_value)
        self.assertEqual(['glance.hash-unchecked'], self.findings())

    def test_without_the_raw_disk(self) -> None:
        image = self.publish()
        self.assertEqual(
            ('raw', len(RAW), '', ''),
            (
                image.disk_format,
                image.size,
                image.hash_algorithm,
                image.hash_value,
            ),
        )
        self.assertEqual(['glance.hash-unchecked'], self.findings())

    def test_without_the_raw_disk_another_virtual_size(self) -> None:
        self.service.convert = lambda sent: ('raw', RAW[:-512])
        error = self.refused('glance.size-mismatch')
        self.assertEqual(f'{len(RAW)} bytes', error.expected)
        self.assertEqual(f'{len(RAW) - 512} bytes', error.found)

    def test_raw_made_into_something_else(self) -> None:
        self.service.convert = lambda sent: ('qcow2', b'short')
        self.service.change = lambda image: image.update(virtual_size=len(RAW))
        content = test_upload.Memory(RAW, repeatable=True)
        image = self.target.publish(0, content, model.ImageRequest('n'))
        self.assertEqual(
            ('qcow2', 5, ''), (image.disk_format, image.size, image.hash_value)
        )
        self.assertEqual(['glance.hash-unchecked'], self.findings())
