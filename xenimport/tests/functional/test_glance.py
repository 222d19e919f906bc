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

"""The Glance target against a real Glance."""

from __future__ import annotations

import threading
import time

from xenimport import exceptions
from xenimport import model
from xenimport.target import content
from xenimport.tests.functional import glance_cases
from xenimport.tests.functional import services

MIB = 1 << 20
REQUEST = model.ImageRequest(
    'functional',
    properties={'hw_disk_bus': 'scsi', 'os_distro': 'debian'},
    min_disk=1,
)


class GlanceTest(glance_cases.GlanceCase):
    def test_large_sparse_disk_arrives_whole(self) -> None:
        path = self.make_disk(300 * MIB)
        target = self.make_target()
        target.validate([REQUEST])
        image = target.publish(0, content.FileContent(path), REQUEST)
        self.assertEqual(
            ('active', 300 * MIB, 'sha512', glance_cases.digest(path)),
            (
                image.status,
                image.size,
                image.hash_algorithm,
                image.hash_value,
            ),
        )
        self.assertEqual(
            glance_cases.digest(path, 'sha256'), self.download(image.id)
        )
        self.assertEqual(dict(REQUEST.properties), image.properties)
        self.assertEqual([], target.findings)
        target.discard()
        self.assertEqual([], self.images())

    def test_disk_that_glance_refuses(self) -> None:
        path = self.make_disk(64 * MIB, bytes(510) + b'\x55\xaa')
        target = self.make_target()
        with self.assertRaises(exceptions.TargetError) as caught:
            target.publish(0, content.FileContent(path), REQUEST)
        self.assertEqual('glance.image-refused', caught.exception.id)
        self.assertIn('HTTP 415', caught.exception.found or '')
        self.assertIn(
            'Image failed safety checks', caught.exception.found or ''
        )
        target.discard()
        self.assertEqual([], self.images())

    def test_broken_connection_is_sent_again(self) -> None:
        proxy = services.CutProxy(self.cloud.image.port, 20 * MIB)
        proxy.start()
        self.addCleanup(proxy.stop)
        path = self.make_disk(64 * MIB)
        target = self.make_target(proxy.url)
        image = target.publish(0, content.FileContent(path), REQUEST)
        self.assertEqual(1, proxy.cuts)
        self.assertEqual([image.id], [item.id for item in self.images()])
        target.discard()
        self.assertEqual([], self.images())

    def test_protected_image_is_discarded(self) -> None:
        path = self.make_disk(64 * MIB)
        target = self.make_target()
        target.publish(
            0,
            content.FileContent(path),
            model.ImageRequest('p', protected=True),
        )
        target.discard()
        self.assertEqual([], self.images())

    def test_tenant_may_not_make_a_public_image(self) -> None:
        with self.assertRaises(exceptions.TargetError) as caught:
            self.make_target().validate(
                [model.ImageRequest('p', visibility='public')]
            )
        self.assertEqual('glance.forbidden', caught.exception.id)
        self.assertEqual([], self.images())

    def test_interrupted_upload_leaves_nothing(self) -> None:
        path = self.make_disk(64 * MIB)
        target = self.make_target()

        def interrupt(done: int, total: int) -> None:
            if done >= 20 * MIB:
                raise KeyboardInterrupt

        with self.assertRaises(KeyboardInterrupt):
            target.publish(0, content.FileContent(path), REQUEST, interrupt)
        target.discard()
        self.assertEqual([], self.images())

    def test_service_that_dies_in_mid_upload(self) -> None:
        """The last words name the record that could not be deleted."""
        cloud = services.Cloud(self.scratch / 'dying')
        cloud.start()
        self.addCleanup(cloud.stop)
        path = self.make_disk(300 * MIB)
        target = self.make_target(cloud.image.url)
        killed = threading.Event()

        def kill(done: int, total: int) -> None:
            if done >= 50 * MIB and not killed.is_set():
                killed.set()
                cloud.image.kill()

        started = time.monotonic()
        with self.assertRaises(exceptions.TargetError) as caught:
            target.publish(0, content.FileContent(path), REQUEST, kill)
        self.assertEqual('glance.upload-broken', caught.exception.id)
        with self.assertRaises(exceptions.TargetError) as left:
            target.discard()
        self.assertLess(time.monotonic() - started, 60)
        self.assertEqual('glance.record-left', left.exception.id)
        self.assertRegex(
            left.exception.fix or '',
            'openstack image delete [0-9a-f-]{36}',
        )
        with self.assertRaises(exceptions.TargetError) as gone:
            self.make_target(cloud.image.url).validate([REQUEST])
        self.assertEqual('glance.unreachable', gone.exception.id)
