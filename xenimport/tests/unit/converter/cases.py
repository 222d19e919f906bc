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

"""What the tests of converters share."""

import os
import random
import tempfile
import unittest

from xenimport import exceptions
from xenimport import model
from xenimport.converter import base


class DiskTestCase(unittest.TestCase):
    """A directory, and disks that stand in the midst of a file."""

    #: Bytes of other members before the disk, as in a tar.
    before = 1536

    def setUp(self) -> None:
        directory = tempfile.TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        self.directory = directory.name

    def path(self, name: str) -> str:
        return os.path.join(self.directory, name)

    def disk(self, content: bytes, name: str = 'one.vhd') -> model.Disk:
        """A disk whose bytes lie inside a larger file."""
        path = self.path('package')
        with open(path, 'wb') as stream:
            stream.write(b'#' * self.before + content + b'#' * 512)
        piece = model.Piece(self.before, len(content), 0)
        return model.Disk('d', 'd', 0, model.Region(path, name, (piece,)))

    def package(self) -> model.Package:
        return model.Package(self.path('package'), 'ova')

    def opened(
        self, converter: base.Converter, content: bytes
    ) -> base.DiskImage:
        image = converter.open(self.package(), self.disk(content))
        self.addCleanup(image.close)
        return image

    def assert_refused(
        self, converter: base.Converter, content: bytes, error_id: str
    ) -> exceptions.DiskImageError:
        disk = self.disk(content)
        with self.assertRaises(exceptions.DiskImageError) as caught:
            converter.open(self.package(), disk)
        self.assertEqual(error_id, caught.exception.id)
        self.assertIn('one.vhd', caught.exception.where or '')
        return caught.exception


def noise(length: int, seed: int = 1) -> bytes:
    """Bytes that hold no zero sector, the same ones each time."""
    return random.Random(seed).randbytes(length)
