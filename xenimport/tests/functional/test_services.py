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

"""The services that the other tests lean on are what they claim to be."""

from __future__ import annotations

import hashlib
import os
import socket
import tempfile
import threading
import unittest
import urllib.request

from xenimport.tests.functional import commands
from xenimport.tests.functional import services

_PAYLOAD = os.urandom(3 << 20)


class GlanceTest(commands.CommandTest):
    """Glance alone, its tenants told apart by the paste filter."""

    glance: services.Cloud

    @classmethod
    def setUpClass(cls) -> None:
        super().setUpClass()
        scratch = tempfile.TemporaryDirectory()
        cls.addClassCleanup(scratch.cleanup)
        cls.cloud = cls.glance = services.Cloud(scratch.name)
        cls.glance.start()
        cls.addClassCleanup(cls.glance.stop)

    def setUp(self) -> None:
        super().setUp()
        self.payload = self.directory / 'payload'
        self.payload.write_bytes(_PAYLOAD)
        self.addCleanup(self._delete_all)

    def _delete_all(self) -> None:
        for image in self.images():
            self.openstack('delete', image['ID'])

    def _create(self) -> commands.Done:
        return self.openstack(
            'create', '--disk-format', 'raw', '--file', self.payload,
            '-f', 'json', 'one',
        )  # fmt: skip

    def test_keeps_what_it_is_sent(self) -> None:
        image = self._create().json()
        self.assertEqual('active', image['status'])
        self.assertEqual('p-tenant', image['owner'])
        self.assertEqual(
            hashlib.sha512(_PAYLOAD).hexdigest(),
            image['properties']['os_hash_value'],
        )
        stored = self.glance.image.stored()
        self.assertEqual([_PAYLOAD], [path.read_bytes() for path in stored])

    def test_a_member_cannot_make_an_image_public(self) -> None:
        self.assertEqual(0, self._create().code)
        refused = self.openstack('set', '--public', 'one')
        self.assertEqual(1, refused.code)
        self.assertIn('403', refused.stderr)
        environment = {**self.environment(), 'OS_CLOUD': services.ADMIN}
        done = self.openstack(
            'set', '--public', 'one', environment=environment
        )
        self.assertEqual(0, done.code, done.stderr)

    def test_refuses_an_mbr_without_partitions(self) -> None:
        self.payload.write_bytes(bytes(510) + b'\x55\xaa' + bytes(1 << 20))
        refused = self._create()
        self.assertEqual(1, refused.code)
        self.assertIn('415', refused.stderr)

    def test_a_cut_upload_fails_and_leaves_a_queued_image(self) -> None:
        proxy = services.CutProxy(self.glance.image.port, 1 << 20)
        self.addCleanup(proxy.stop)
        proxy.start()
        self.addCleanup(self.glance.write_clouds, self.glance.image.url)
        self.glance.write_clouds(proxy.url)
        self.assertEqual(1, self._create().code)
        self.assertEqual(1, proxy.cuts)


class StopTest(unittest.TestCase):
    """A service ends when it is told to."""

    def setUp(self) -> None:
        super().setUp()
        scratch = tempfile.TemporaryDirectory()
        self.addCleanup(scratch.cleanup)
        self.cloud = services.Cloud(scratch.name)
        self.cloud.start()
        self.addCleanup(self.cloud.stop)

    def assert_gone(self, url: str, pid: int | None) -> None:
        with self.assertRaises(OSError):
            urllib.request.urlopen(url, timeout=5)
        self.assertFalse(services.running(pid))

    def test_stop_ends_the_server(self) -> None:
        url, pid = self.cloud.image.url, self.cloud.image.pid
        self.assertTrue(services.running(pid))
        self.cloud.stop()
        self.assert_gone(url, pid)

    def test_another_process_can_stop_it(self) -> None:
        url, pid = self.cloud.image.url, self.cloud.image.pid
        self.assertEqual(1, services.stop_recorded(self.cloud.directory))
        self.assertEqual(0, services.stop_recorded(self.cloud.directory))
        self.assert_gone(url, pid)


class KeystoneTest(commands.CommandTest):
    """Glance beside a real Keystone."""

    @classmethod
    def setUpClass(cls) -> None:
        super().setUpClass()
        scratch = tempfile.TemporaryDirectory()
        cls.addClassCleanup(scratch.cleanup)
        cls.cloud = services.Cloud(scratch.name, keystone=True)
        cls.cloud.start()
        cls.addClassCleanup(cls.cloud.stop)

    def test_a_member_uploads_and_stays_a_member(self) -> None:
        payload = self.directory / 'payload'
        payload.write_bytes(_PAYLOAD)
        created = self.openstack(
            'create', '--disk-format', 'raw', '--file', payload,
            '-f', 'json', 'one',
        )  # fmt: skip
        self.assertEqual('active', created.json()['status'])
        # Keystone's project ids are random: 32 hexadecimal digits.
        self.assertRegex(created.json()['owner'], '^[0-9a-f]{32}$')
        refused = self.openstack('set', '--public', 'one')
        self.assertEqual(1, refused.code)
        self.assertIn('403', refused.stderr)


class CutProxyTest(unittest.TestCase):
    """The proxy counts, cuts once, or for good."""

    def setUp(self) -> None:
        super().setUp()
        self.echo = socket.create_server(('127.0.0.1', 0))
        self.addCleanup(self.echo.close)
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self.echo.accept()
            except OSError:
                return
            with connection:
                while data := connection.recv(65536):
                    connection.sendall(data)

    def _proxy(self, gone: bool) -> services.CutProxy:
        port = self.echo.getsockname()[1]
        proxy = services.CutProxy(port, 1000, gone=gone)
        self.addCleanup(proxy.stop)
        proxy.start()
        return proxy

    def _talk(self, port: int, data: bytes) -> bytes:
        with socket.create_connection(('127.0.0.1', port), 5) as client:
            client.settimeout(5)
            client.sendall(data)
            try:
                return client.recv(65536)
            except ConnectionResetError:
                return b''

    def test_passes_what_is_short_and_cuts_once(self) -> None:
        proxy = self._proxy(gone=False)
        self.assertEqual(b'x' * 900, self._talk(proxy.port, b'x' * 900))
        self.assertEqual(b'', self._talk(proxy.port, b'x' * 900))
        self.assertEqual(b'x' * 2000, self._talk(proxy.port, b'x' * 2000))
        self.assertEqual(1, proxy.cuts)

    def test_a_final_cut_refuses_connections(self) -> None:
        proxy = self._proxy(gone=True)
        self.assertEqual(b'', self._talk(proxy.port, b'x' * 2000))
        with self.assertRaises(OSError):
            self._talk(proxy.port, b'x')
