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

"""A real Glance for a class of tests, and disks to put into it."""

from __future__ import annotations

import hashlib
import os
import pathlib
import random
import shutil
import tempfile
import time
import typing
import unittest
import urllib.request

import openstack
import yaml

from xenimport.target import glance
from xenimport.tests.functional import services

MIB = 1 << 20
#: One active Linux partition at sector 2048, as a DOS table has it.
TABLE = (
    bytes(440)
    + b'\x01\x02\x03\x04\0\0'
    + bytes.fromhex('80 00 02 00 83 00 02 00 00 08 00 00 00 f0 04 00')
    + bytes(48)
    + b'\x55\xaa'
)
_TOKEN = 'tenant:p-tenant:member,reader'


def digest(path: str, algorithm: str = 'sha512') -> str:
    """A file's digest, holes read like all else."""
    with open(path, 'rb') as file:
        return hashlib.file_digest(file, algorithm).hexdigest()


class GlanceCase(unittest.TestCase):
    """One service for all tests; each leaves no image behind.

    :cvar server: which one of service_wsgi.py
    :cvar converts: whether an import makes RAW of the image
    """

    server = 'waitress'
    converts = False
    cloud: services.Cloud
    scratch: pathlib.Path

    @classmethod
    def setUpClass(cls) -> None:
        super().setUpClass()
        python = services.services_venv() / 'bin' / 'python'
        if not os.access(python, os.X_OK):
            raise unittest.SkipTest(f'{python} is missing: tools/run-tests')
        cls.scratch = pathlib.Path(tempfile.mkdtemp(prefix='xenimport-'))
        cls.addClassCleanup(shutil.rmtree, cls.scratch, True)
        cls.cloud = services.Cloud(
            cls.scratch / 'cloud', converts=cls.converts
        )
        cls.cloud.image.server = cls.server
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

    def make_target(
        self, url: str | None = None, transfer: str = 'upload'
    ) -> glance.GlanceTarget:
        return glance.GlanceTarget(
            {
                'retry_wait': 0.2,
                'transfer': transfer,
                'import_limit': 60,
            },
            connection=self.connect(url),
        )

    def make_disk(self, size: int, start: bytes = TABLE) -> str:
        path = self.scratch / f'{self.id()}.raw'
        self.addCleanup(path.unlink)
        with open(path, 'wb') as file:
            file.truncate(size)
            file.write(start)
            for offset in (40 * MIB, size - MIB):
                file.seek(offset)
                file.write(random.Random(offset).randbytes(MIB))
        return str(path)

    def images(self) -> list[typing.Any]:
        """The records of the tenant."""
        return list(self.connect().image.images())

    def settled(self) -> list[str]:
        """The images' statuses, once Glance is done with what it got.

        A server may only now hand it over, so it is watched for a second.
        """
        started = time.monotonic()
        while True:
            found = [image.status for image in self.images()]
            passed = time.monotonic() - started
            busy = 'saving' in found and passed < 10
            if 'active' in found or (passed > 1 and not busy):
                return found
            time.sleep(0.05)

    def assert_nothing_left(self) -> None:
        """No record, and soon no data: Glance may still be cleaning up."""
        self.assertEqual([], self.images())
        deadline = time.monotonic() + 10
        while self.cloud.image.stored() and time.monotonic() < deadline:
            time.sleep(0.05)
        self.assertEqual([], self.cloud.image.stored())

    def download(self, image_id: str) -> str:
        """The sha256 of what Glance gives back."""
        request = urllib.request.Request(
            f'{self.cloud.image.url}/v2/images/{image_id}/file',
            headers={'X-Auth-Token': _TOKEN},
        )
        found = hashlib.sha256()
        with urllib.request.urlopen(request) as answer:
            while data := answer.read(MIB):
                found.update(data)
        return found.hexdigest()
