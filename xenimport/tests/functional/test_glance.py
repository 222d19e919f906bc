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

import hashlib
import os
import pathlib
import random
import shutil
import tempfile
import threading
import time
import typing
import unittest
import urllib.request

import openstack
import yaml

from xenimport import exceptions
from xenimport import model
from xenimport.target import glance
from xenimport.tests.functional import services

MIB = 1 << 20
REQUEST = model.ImageRequest(
    'functional',
    properties={'hw_disk_bus': 'scsi', 'os_distro': 'debian'},
    min_disk=1,
)
#: One active Linux partition at sector 2048, as a DOS table has it.
_TABLE = (
    bytes(440)
    + b'\x01\x02\x03\x04\0\0'
    + bytes.fromhex('80 00 02 00 83 00 02 00 00 08 00 00 00 f0 04 00')
    + bytes(48)
    + b'\x55\xaa'
)


class GlanceTest(unittest.TestCase):
    """One service for all tests; each leaves no image behind."""

    cloud: services.Cloud
    scratch: pathlib.Path

    @classmethod
    def setUpClass(cls) -> None:
        super().setUpClass()
        cls.scratch = pathlib.Path(tempfile.mkdtemp(prefix='xenimport-'))
        cls.addClassCleanup(shutil.rmtree, cls.scratch, True)
        cls.cloud = services.Cloud(cls.scratch / 'cloud')
        cls.cloud.start()
        cls.addClassCleanup(cls.cloud.stop)

    def connect(self, url: str | None = None) -> typing.Any:
        """A connection of a tenant, perhaps through a proxy."""
        settings = yaml.safe_load(self.cloud.clouds_yaml.read_text())
        cloud = settings['clouds'][services.TENANT]
        if url:
            cloud['auth']['endpoint'] = f'{url}/v2'
        connection = openstack.connect(**cloud)
        self.addCleanup(connection.close)
        return connection

    def make_target(self, url: str | None = None) -> glance.GlanceTarget:
        return glance.GlanceTarget(
            {'retry_wait': 0.2}, connection=self.connect(url)
        )

    def make_disk(self, size: int, start: bytes = _TABLE) -> str:
        path = self.scratch / f'{self.id()}.raw'
        self.addCleanup(path.unlink)
        with open(path, 'wb') as file:
            file.truncate(size)
            file.write(start)
            for offset in (40 * MIB, size - MIB):
                file.seek(offset)
                file.write(random.Random(offset).randbytes(MIB))
        return str(path)

    def images(self) -> list[str]:
        return [image.id for image in self.connect().image.images()]

    def test_large_sparse_disk_arrives_whole(self) -> None:
        path = self.make_disk(300 * MIB)
        target = self.make_target()
        target.validate([REQUEST])
        image = target.publish(0, path, REQUEST)
        with open(path, 'rb') as file:
            expected = hashlib.file_digest(file, 'sha512').hexdigest()
        self.assertEqual(
            ('active', 300 * MIB, 'sha512', expected),
            (
                image.status,
                image.size,
                image.hash_algorithm,
                image.hash_value,
            ),
        )
        with open(path, 'rb') as file:
            mine = hashlib.file_digest(file, 'sha256').hexdigest()
        self.assertEqual(mine, self.download(image.id))
        self.assertEqual(dict(REQUEST.properties), image.properties)
        self.assertEqual([], target.findings)
        target.discard()
        self.assertEqual([], self.images())

    def download(self, image_id: str) -> str:
        """The sha256 of what Glance gives back."""
        request = urllib.request.Request(
            f'{self.cloud.image.url}/v2/images/{image_id}/file',
            headers={'X-Auth-Token': 'tenant:p-tenant:member,reader'},
        )
        digest = hashlib.sha256()
        with urllib.request.urlopen(request) as answer:
            while data := answer.read(MIB):
                digest.update(data)
        return digest.hexdigest()

    def test_disk_that_glance_refuses(self) -> None:
        path = self.make_disk(64 * MIB, bytes(510) + b'\x55\xaa')
        target = self.make_target()
        with self.assertRaises(exceptions.TargetError) as caught:
            target.publish(0, path, REQUEST)
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
        image = target.publish(0, path, REQUEST)
        self.assertEqual(1, proxy.cuts)
        self.assertEqual([image.id], self.images())
        target.discard()
        self.assertEqual([], self.images())

    def test_protected_image_is_discarded(self) -> None:
        path = self.make_disk(64 * MIB)
        target = self.make_target()
        target.publish(0, path, model.ImageRequest('p', protected=True))
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
            target.publish(0, path, REQUEST, interrupt)
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
            target.publish(0, path, REQUEST, kill)
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


def setUpModule() -> None:
    """Skip where the services are not installed."""
    python = services.services_venv() / 'bin' / 'python'
    if not os.access(python, os.X_OK):
        raise unittest.SkipTest(f'{python} is missing: tools/run-tests')
