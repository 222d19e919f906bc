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


import hashlib
import os
import tempfile
import unittest

from xenimport.converter import digests
from xenimport import exceptions
from xenimport import model

CONTENT = b'first' * 300_000
OTHER = bytes(5000)


class VerifierTest(unittest.TestCase):
    def setUp(self):
        directory = tempfile.TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        self.path = os.path.join(directory.name, 'guest.ova')
        with open(self.path, 'wb') as stream:
            stream.write(b'-' * 700 + CONTENT + OTHER)

    def package(self, first, other):
        """Two members, with the digests given by algorithm."""
        places = {
            'a.vhd': (700, CONTENT),
            'b.vhd': (700 + len(CONTENT), OTHER),
        }
        members = {}
        for name, stated in (('a.vhd', first), ('b.vhd', other)):
            offset, content = places[name]
            members[name] = model.Region(
                self.path,
                name,
                (model.Piece(offset, len(content), 0),),
                digests=tuple(model.Digest(*item) for item in stated.items()),
            )
        return model.Package(self.path, 'ova', members)

    def check(self, package, *regions):
        with digests.Verifier(package, regions) as verifier:
            verifier.check()
        return verifier.compared

    def test_digests_that_hold(self):
        package = self.package(
            {
                'sha1': hashlib.sha1(CONTENT).hexdigest(),
                'sha512': hashlib.sha512(CONTENT).hexdigest(),
            },
            {'sha256': hashlib.sha256(OTHER).hexdigest()},
        )
        self.assertEqual(2, self.check(package, *package.members.values()))

    def test_one_that_does_not(self):
        package = self.package({'sha1': '0' * 40}, {})
        with self.assertRaises(exceptions.PackageError) as caught:
            self.check(package, package.members['a.vhd'])
        self.assertEqual('package.digest-mismatch', caught.exception.id)
        self.assertIn('a.vhd', caught.exception.where)
        self.assertIn(
            hashlib.sha1(CONTENT).hexdigest(), caught.exception.found
        )

    def test_parts_of_a_disk_have_digests_of_their_own(self):
        package = self.package({}, {'sha256': '1' * 64})
        joined = model.Region(
            self.path,
            'whole.vhd',
            (model.Piece(700, len(CONTENT) + len(OTHER), 0),),
            parts=('a.vhd', 'b.vhd'),
        )
        with self.assertRaises(exceptions.PackageError) as caught:
            self.check(package, joined)
        self.assertIn('b.vhd', caught.exception.where)

    def test_nothing_to_compare_reads_nothing(self):
        package = self.package({}, {})
        os.unlink(self.path)
        self.assertEqual(0, self.check(package, *package.members.values()))

    def test_file_cut_short_meanwhile(self):
        package = self.package({'sha1': '0' * 40}, {})
        os.truncate(self.path, 100)
        with self.assertRaises(exceptions.DiskImageError) as caught:
            self.check(package, package.members['a.vhd'])
        self.assertEqual('package.truncated', caught.exception.id)

    def test_holes_count_as_zeros(self):
        size = 8 << 20
        with open(self.path, 'wb') as stream:
            stream.truncate(size)
            stream.seek(size // 2)
            stream.write(b'data')
        content = bytearray(size)
        content[size // 2 : size // 2 + 4] = b'data'
        region = model.Region(
            self.path,
            'a.vhd',
            (model.Piece(0, size, 0),),
            digests=(
                model.Digest('sha256', hashlib.sha256(content).hexdigest()),
            ),
        )
        package = model.Package(self.path, 'ova', {'a.vhd': region})
        self.assertEqual(1, self.check(package, region))

    def test_left_early(self):
        package = self.package({'sha1': '0' * 40}, {})
        with digests.Verifier(package, package.members.values()):
            pass
