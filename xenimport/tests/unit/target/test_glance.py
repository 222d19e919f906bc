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

"""The Glance target, against requests-mock and the real openstacksdk."""

from __future__ import annotations

import hashlib
import os
import tempfile
import typing
import unittest
from unittest import mock

import requests
import requests_mock

from xenimport import exceptions
from xenimport import model
from xenimport.target import content
from xenimport.target import glance
from xenimport.tests.unit.target import fakes

MIB = 1 << 20
REQUEST = model.ImageRequest(
    name='web 1',
    properties={'hw_disk_bus': 'scsi', 'os_distro': 'debian'},
    tags=('xen',),
    min_disk=1,
    min_ram=512,
)


class Base(unittest.TestCase):
    """A disk of 3.5 MiB with a hole, a service and a target."""

    def setUp(self) -> None:
        super().setUp()
        mocker = requests_mock.Mocker()
        mocker.start()
        self.addCleanup(mocker.stop)
        self.service = fakes.FakeGlance(mocker)
        self.path = self._make_disk()
        self.journal: list[str] = []
        self.target = self.make_target(fakes.connect())

    def make_target(self, connection: typing.Any) -> glance.GlanceTarget:
        return glance.GlanceTarget(
            {'retry_wait': 0.001},
            connection=connection,
            created=self.journal.append,
        )

    def _make_disk(self) -> str:
        handle, path = tempfile.mkstemp()
        self.addCleanup(os.unlink, path)
        self.content = b'a' * MIB + bytes(2 * MIB) + b'b' * (MIB // 2)
        os.pwrite(handle, self.content[:MIB], 0)
        os.pwrite(handle, self.content[3 * MIB :], 3 * MIB)
        os.close(handle)
        return path

    def publish(self, request: model.ImageRequest = REQUEST) -> model.Image:
        return self.target.publish(0, content.FileContent(self.path), request)

    def refused(
        self, error_id: str, request: model.ImageRequest = REQUEST
    ) -> exceptions.TargetError:
        with self.assertRaises(exceptions.TargetError) as caught:
            self.publish(request)
        self.assertEqual(error_id, caught.exception.id)
        return caught.exception

    def discard_all(self) -> None:
        self.target.discard()
        self.assertEqual({}, self.service.images)


class PublishTest(Base):
    """What goes well."""

    def test_image_stands_with_data_and_properties(self) -> None:
        image = self.publish()
        self.assertEqual(self.content, self.service.data[image.id])
        stored = self.service.images[image.id]
        self.assertEqual(
            ('web 1', 'raw', 'bare', 1, 512, ['xen']),
            (
                stored['name'],
                stored['disk_format'],
                stored['container_format'],
                stored['min_disk'],
                stored['min_ram'],
                stored['tags'],
            ),
        )
        self.assertEqual('active', image.status)
        self.assertEqual(len(self.content), image.size)
        self.assertEqual('sha512', image.hash_algorithm)
        self.assertEqual(
            hashlib.sha512(self.content).hexdigest(), image.hash_value
        )
        self.assertEqual(dict(REQUEST.properties), image.properties)

    def test_no_property_of_the_sdk_is_added(self) -> None:
        image = self.publish()
        for key in self.service.images[image.id]:
            self.assertFalse(key.startswith('owner_specified'), key)

    def test_id_is_journalled_before_the_record_is_made(self) -> None:
        seen = []

        def created(image_id: str) -> None:
            seen.append((image_id, self.service.count('POST')))

        self.target = glance.GlanceTarget(
            connection=fakes.connect(), created=created
        )
        image = self.publish()
        self.assertEqual([(image.id, 0)], seen)

    def test_size_is_announced(self) -> None:
        self.publish()
        put = [
            request
            for request in self.service.mocker.request_history
            if request.method == 'PUT'
        ]
        self.assertEqual(
            str(len(self.content)),
            put[0].headers['X-OpenStack-Image-Size'],
        )

    def test_progress_grows_to_the_size(self) -> None:
        seen: list[tuple[int, int]] = []
        self.target.publish(
            0,
            content.FileContent(self.path),
            REQUEST,
            lambda *pair: seen.append(pair),
        )
        size = len(self.content)
        self.assertEqual(
            [(MIB, size), (2 * MIB, size), (3 * MIB, size), (size, size)],
            seen,
        )

    def test_visibility_protection_and_owner_are_asked_for(self) -> None:
        image = self.publish(
            model.ImageRequest(
                'n', visibility='private', protected=True, project='p1'
            )
        )
        stored = self.service.images[image.id]
        self.assertEqual('private', stored['visibility'])
        self.assertIs(True, stored['protected'])
        self.assertEqual('p1', stored['owner'])

    def test_other_algorithm_of_the_service_is_computed(self) -> None:
        value = hashlib.sha256(self.content).hexdigest()
        self.service.change = lambda image: image.update(
            os_hash_algo='sha256', os_hash_value=value
        )
        image = self.publish()
        self.assertEqual(
            ('sha256', value), (image.hash_algorithm, image.hash_value)
        )

    def test_md5_stands_in_for_a_missing_hash(self) -> None:
        self.service.change = lambda image: image.update(
            os_hash_algo=None, os_hash_value=None
        )
        image = self.publish()
        self.assertEqual('md5', image.hash_algorithm)
        self.assertEqual([], self.target.findings)

    def test_service_without_any_digest_is_a_warning(self) -> None:
        self.service.change = lambda image: image.update(
            os_hash_algo=None, os_hash_value=None, checksum=None
        )
        self.publish()
        self.assertEqual(
            [('glance.hash-unchecked', model.Severity.WARNING)],
            [(item.id, item.severity) for item in self.target.findings],
        )


class RetryTest(Base):
    """What breaks and is tried again."""

    def test_broken_upload_is_sent_again_to_the_same_record(self) -> None:
        self.service.uploads = [fakes.breaking(2)]
        image = self.publish()
        self.assertEqual(self.content, self.service.data[image.id])
        self.assertEqual(1, self.service.count('POST', '/images'))
        self.assertEqual(2, self.service.count('PUT', '/file'))

    def test_overloaded_service_is_tried_again(self) -> None:
        for status in (409, 500, 503):
            with self.subTest(status=status):
                self.service.uploads = [fakes.refusing(status, 'busy')]
                image = self.publish()
                self.assertEqual(self.content, self.service.data[image.id])
        self.assertEqual(6, self.service.count('PUT', '/file'))

    def test_retries_end(self) -> None:
        self.service.uploads = [fakes.breaking(0)] * 9
        error = self.refused('glance.upload-broken')
        self.assertIn('Connection reset by peer', error.found or '')
        self.assertEqual(4, self.service.count('PUT', '/file'))
        self.discard_all()

    def test_upload_whose_answer_was_lost_is_not_repeated(self) -> None:
        def lost(request: typing.Any, context: typing.Any) -> str:
            self.service._upload(request, context)
            raise requests.exceptions.ConnectionError('reset')

        self.service.uploads = [lost]
        image = self.publish()
        self.assertEqual('active', image.status)
        self.assertEqual(1, self.service.count('PUT', '/file'))

    def test_expired_token_is_renewed_and_all_data_sent(self) -> None:
        self.target = self.make_target(
            fakes.connect_by_password(self.service.mocker)
        )
        self.service.uploads = [fakes.refusing(401, 'expired')]
        image = self.publish()
        self.assertEqual(self.content, self.service.data[image.id])
        self.assertEqual(2, self.service.count('POST', '/auth/tokens'))

    def test_rejected_credentials_end_it(self) -> None:
        self.target = self.make_target(
            fakes.connect_by_password(self.service.mocker)
        )
        self.service.uploads = [fakes.refusing(401, 'no')] * 2
        self.refused('glance.unauthorized')

    def test_answer_before_the_data_is_not_success(self) -> None:
        def early(request: typing.Any, context: typing.Any) -> str:
            context.status_code = 204
            return ''

        self.service.uploads = [early] * 4
        self.refused('glance.upload-broken')

    def test_redirect_is_not_followed_with_half_a_body(self) -> None:
        def moved(request: typing.Any, context: typing.Any) -> str:
            context.status_code = 302
            context.headers['Location'] = 'http://other.test/'
            return ''

        self.service.uploads = [moved]
        error = self.refused('glance.redirected')
        self.assertEqual('http://other.test/', error.found)


class RefusalTest(Base):
    """What the service refuses, and what arrives wrong."""

    def test_reason_of_the_inspection_is_shown(self) -> None:
        self.service.uploads = [
            fakes.refusing(
                415,
                '<html><head><title>Oops</title>'
                '</head><body><h1>415 Unsupported Media Type</h1>'
                'Image failed safety checks &amp; more<br/></body></html>',
                'text/html; charset=UTF-8',
            )
        ]
        error = self.refused('glance.image-refused')
        self.assertIn('Image failed safety checks & more', error.found or '')
        self.assertNotIn('<', error.found or '')
        self.assertNotIn('Oops', error.found or '')
        self.assertEqual(1, self.service.count('PUT', '/file'))
        self.discard_all()

    def test_terminal_escapes_of_the_service_are_not_shown(self) -> None:
        self.service.uploads = [fakes.refusing(415, 'a\x1b[31mb')]
        error = self.refused('glance.image-refused')
        self.assertIn('a?[31mb', str(error))

    def test_too_large_is_a_quota(self) -> None:
        self.service.uploads = [fakes.refusing(413, 'too big')]
        self.assertIn('too big', str(self.refused('glance.quota')))

    def test_refused_record_leaves_nothing_to_discard(self) -> None:
        self.service.mocker.post(
            f'{fakes.URL}/v2/images', status_code=403, text='no public'
        )
        self.assertIn('no public', str(self.refused('glance.forbidden')))
        self.target.discard()
        self.assertEqual(0, self.service.count('DELETE'))

    def test_other_digest(self) -> None:
        self.service.change = lambda image: image.update(
            os_hash_value='0' * 128
        )
        error = self.refused('glance.hash-mismatch')
        self.assertEqual('sha512 ' + '0' * 128, error.found)
        self.discard_all()

    def test_other_size(self) -> None:
        self.service.change = lambda image: image.update(size=5)
        self.refused('glance.size-mismatch')

    def test_not_active(self) -> None:
        self.service.change = lambda image: image.update(status='killed')
        self.refused('glance.not-active')

    def test_changed_bus_is_an_error(self) -> None:
        self.service.change = lambda image: image.update(hw_disk_bus='virtio')
        error = self.refused('glance.property-changed')
        self.assertEqual('hw_disk_bus=scsi', error.expected)
        self.assertEqual('hw_disk_bus=virtio', error.found)

    def test_other_changed_property_is_a_note(self) -> None:
        self.service.change = lambda image: image.update(os_distro='x')
        self.publish()
        self.assertEqual(
            ['glance.property-overwritten'],
            [item.id for item in self.target.findings],
        )


class ValidateTest(Base):
    """What is refused before any slow work."""

    def refused_early(
        self, error_id: str, request: model.ImageRequest = REQUEST
    ) -> exceptions.TargetError:
        with self.assertRaises(exceptions.TargetError) as caught:
            self.target.validate([request])
        self.assertEqual(error_id, caught.exception.id)
        return caught.exception

    def test_good_cloud_keeps_no_record(self) -> None:
        self.target.validate([REQUEST, REQUEST])
        self.assertEqual(0, self.service.count('POST'))

    def test_unreachable(self) -> None:
        self.service.mocker.get(
            f'{fakes.URL}/v2/images?limit=1',
            exc=requests.exceptions.ConnectionError('Connection refused'),
        )
        error = self.refused_early('glance.unreachable')
        self.assertIn('Connection refused', error.found or '')

    def test_unreachable_from_the_start(self) -> None:
        for url in (fakes.URL, f'{fakes.URL}/'):
            self.service.mocker.get(
                url, exc=requests.exceptions.ConnectionError('refused')
            )
        self.service.mocker.get(
            f'{fakes.URL}/v2/images?limit=1',
            exc=requests.exceptions.ConnectionError('refused'),
        )
        self.service.mocker.get(
            f'{fakes.URL}/images?limit=1',
            exc=requests.exceptions.ConnectionError('refused'),
        )
        self.refused_early('glance.unreachable')

    def test_wrong_password(self) -> None:
        connection = fakes.connect_by_password(self.service.mocker)
        self.service.mocker.post(
            f'{fakes.AUTH_URL}/auth/tokens', status_code=401
        )
        self.target = self.make_target(connection)
        self.refused_early('glance.unauthorized')

    def test_portal_in_place_of_the_service(self) -> None:
        self.service.mocker.get(
            f'{fakes.URL}/v2/images?limit=1', text='<h1>Log in</h1>'
        )
        self.refused_early('glance.no-endpoint')

    def test_quota_of_images(self) -> None:
        self.service.mocker.get(
            f'{fakes.URL}/v2/info/usage',
            json={'usage': {'image_count_total': {'limit': 5, 'usage': 5}}},
        )
        self.refused_early('glance.quota')

    def test_unlimited_quota(self) -> None:
        self.service.mocker.get(
            f'{fakes.URL}/v2/info/usage',
            json={'usage': {'image_count_total': {'limit': -1, 'usage': 5}}},
        )
        self.target.validate([REQUEST])

    def test_quota_of_bytes_before_the_upload(self) -> None:
        # 3.5 MiB count as 4.
        for limit, fits in ((14, True), (13, False)):
            self.service.mocker.get(
                f'{fakes.URL}/v2/info/usage',
                json={
                    'usage': {
                        'image_size_total': {'limit': limit, 'usage': 10}
                    }
                },
            )
            with self.subTest(limit=limit):
                if fits:
                    self.publish()
                else:
                    self.refused('glance.quota')

    def test_public_is_tried_and_the_record_removed(self) -> None:
        self.target.validate([model.ImageRequest('n', visibility='public')])
        self.assertEqual(1, self.service.count('POST', '/images'))
        self.assertEqual({}, self.service.images)
        self.assertEqual(1, len(self.journal))

    def test_forbidden_public_is_known_early(self) -> None:
        self.service.mocker.post(
            f'{fakes.URL}/v2/images',
            status_code=403,
            text='You are not authorized to complete publicize_image',
        )
        error = self.refused_early(
            'glance.forbidden', model.ImageRequest('n', visibility='public')
        )
        self.assertIn('publicize_image', error.found or '')

    def test_property_that_is_a_field(self) -> None:
        error = self.refused_early(
            'glance.property-reserved',
            model.ImageRequest('n', properties={'status': 'active'}),
        )
        self.assertEqual('status', error.found)

    def test_long_name(self) -> None:
        self.target.validate([model.ImageRequest('n' * 255)])
        self.refused_early(
            'glance.text-too-long', model.ImageRequest('n' * 256)
        )


class DiscardTest(Base):
    """What is undone."""

    def test_all_records_go(self) -> None:
        self.publish()
        self.publish()
        self.discard_all()
        self.assertEqual(2, self.service.count('DELETE'))

    def test_nothing_is_deleted_twice(self) -> None:
        self.publish()
        self.discard_all()
        self.target.discard()
        self.assertEqual(1, self.service.count('DELETE'))

    def test_protected_image_goes_too(self) -> None:
        self.publish(model.ImageRequest('n', protected=True))
        self.discard_all()

    def test_record_of_an_earlier_run_goes(self) -> None:
        image = self.publish()
        later = self.make_target(fakes.connect())
        later.adopt([image.id])
        later.discard()
        self.assertEqual({}, self.service.images)

    def test_images_of_others_stay(self) -> None:
        self.service.images['f' * 36] = {'id': 'f' * 36}
        self.publish()
        self.target.discard()
        self.assertEqual(['f' * 36], list(self.service.images))

    def test_gone_service_names_ids_and_commands(self) -> None:
        image = self.publish()
        self.service.mocker.delete(
            self.service.matcher(),
            exc=requests.exceptions.ConnectionError('refused'),
        )
        with self.assertRaises(exceptions.TargetError) as caught:
            self.target.discard()
        error = caught.exception
        self.assertEqual('glance.record-left', error.id)
        self.assertIn(f'{image.id}: refused', error.found or '')
        self.assertIn(f'openstack image delete {image.id}', error.fix or '')
        # Once it is back, the same call finishes the work.
        self.service.mocker.delete(
            self.service.matcher(), text=self.service._delete
        )
        self.discard_all()

    def test_one_failure_does_not_spare_the_others(self) -> None:
        first = self.publish()
        self.publish()
        self.service.mocker.delete(
            f'{fakes.URL}/v2/images/{first.id}', status_code=400
        )
        with self.assertRaises(exceptions.TargetError):
            self.target.discard()
        self.assertEqual([first.id], list(self.service.images))

    def test_interrupted_upload_can_be_discarded(self) -> None:
        def interrupt(request: typing.Any, context: typing.Any) -> str:
            next(iter(request.body))
            raise KeyboardInterrupt

        self.service.uploads = [interrupt]
        with self.assertRaises(KeyboardInterrupt):
            self.publish()
        self.assertEqual(1, len(self.service.images))
        self.discard_all()

    def test_interrupt_while_the_record_is_made(self) -> None:
        def interrupt(request: typing.Any, context: typing.Any) -> object:
            self.service._create(request, context)
            raise KeyboardInterrupt

        self.service.mocker.post(f'{fakes.URL}/v2/images', json=interrupt)
        with self.assertRaises(KeyboardInterrupt):
            self.publish()
        self.assertEqual(1, len(self.service.images))
        self.discard_all()

    def test_image_in_use_is_tried_again(self) -> None:
        self.publish()
        self.service.mocker.delete(
            self.service.matcher(),
            [{'status_code': 409}, {'status_code': 204}],
        )
        self.target.discard()
        self.assertEqual(2, self.service.count('DELETE'))


class WaitTest(Base):
    """How long it waits."""

    def test_waits_grow(self) -> None:
        self.target = glance.GlanceTarget(connection=fakes.connect())
        self.service.uploads = [fakes.breaking(0)] * 4
        with mock.patch('time.sleep', autospec=True) as sleep:
            self.refused('glance.upload-broken')
        self.assertEqual(
            [2.0, 8.0, 32.0], [call.args[0] for call in sleep.mock_calls]
        )
