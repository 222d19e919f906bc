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


"""The manifest of an OVF package."""

import hashlib
import unittest

from xenimport import exceptions
from xenimport import model
from xenimport.source import manifest


class ParseTest(unittest.TestCase):
    def test_all_algorithms(self) -> None:
        text = (
            f'SHA1(a.ovf)= {"A" * 40}\r\n'
            f'SHA256(b (1).vhd)= {"b" * 64}\n\n'
            f'SHA512 (c)={"c" * 128}\n'
        )
        found = manifest.parse(text.encode(), 'guest.mf')
        self.assertEqual(
            {
                'a.ovf': (model.Digest('sha1', 'a' * 40),),
                'b (1).vhd': (model.Digest('sha256', 'b' * 64),),
                'c': (model.Digest('sha512', 'c' * 128),),
            },
            found,
        )

    def test_name_with_a_leading_dot(self) -> None:
        text = f'SHA1(./a)= {"1" * 40}\n'
        self.assertEqual(['a'], list(manifest.parse(text.encode(), 'g.mf')))

    def test_several_algorithms_of_one_file(self) -> None:
        text = f'SHA1(a)= {"1" * 40}\nSHA256(a)= {"2" * 64}\n'
        found = manifest.parse(text.encode(), 'guest.mf')
        self.assertEqual(
            ['sha1', 'sha256'], [digest.algorithm for digest in found['a']]
        )

    def test_names_of_openssl(self) -> None:
        text = f'SHA2-256(a)= {"1" * 64}\nSHA2-512(b)= {"2" * 128}\n'
        found = manifest.parse(text.encode(), 'guest.mf')
        self.assertEqual(
            ['sha256', 'sha512'],
            [digests[0].algorithm for digests in found.values()],
        )

    def test_refused_lines(self) -> None:
        for line in ('hello', f'MD5(a)= {"a" * 32}', f'SHA1(a)= {"a" * 39}'):
            with self.subTest(line=line):
                with self.assertRaises(exceptions.PackageError) as caught:
                    manifest.parse(f'\n{line}\n'.encode(), 'guest.mf')
                self.assertEqual(
                    'package.manifest-invalid', caught.exception.id
                )
                self.assertEqual('guest.mf, line 2', caught.exception.where)

    def test_hostile_lines(self) -> None:
        for text in (
            b'SHA1(' * 200_000,
            b'SHA1((((' + b')' * 1_000_000,
            b'\xff' * 1_000_000,
            b'a' * 1_000_000,
        ):
            with self.subTest(text=text[:20]):
                with self.assertRaises(exceptions.PackageError):
                    manifest.parse(text, 'guest.mf')


class ManifestTest(unittest.TestCase):
    def manifest(self, *names: str) -> manifest.Manifest:
        digest = hashlib.sha1(b'hello', usedforsecurity=False).hexdigest()
        return manifest.Manifest(
            ''.join(f'SHA1({name})= {digest}\n' for name in names).encode(),
            'guest.mf',
        )

    def test_escaped_name(self) -> None:
        stated = self.manifest('my%20disk.vhd', '50%25.vhd')
        self.assertTrue(stated.of('my disk.vhd'))
        self.assertTrue(stated.of('my%20disk.vhd'))
        self.assertTrue(stated.of('50%.vhd'))
        self.assertEqual((), stated.of('mydisk.vhd'))

    def test_check(self) -> None:
        stated = self.manifest('a')
        stated.check('a', b'hello')
        stated.check('not named', b'anything')
        with self.assertRaises(exceptions.PackageError) as caught:
            stated.check('a', b'hallo')
        self.assertEqual('package.digest-mismatch', caught.exception.id)

    def test_complete(self) -> None:
        stated = self.manifest('a', 'b%20c')
        stated.check_complete({'a', 'b c', 'd'})
        with self.assertRaises(exceptions.PackageError) as caught:
            stated.check_complete({'a'})
        self.assertEqual('package.manifest-missing-file', caught.exception.id)
        self.assertIn('b%20c', caught.exception.expected or '')

    def test_name_for_a_descriptor(self) -> None:
        names = ['a/b.ovf', 'b.mf', 'a/B.MF', 'a/c.mf']
        self.assertEqual('a/B.MF', manifest.name_for('a/b.ovf', names))
        self.assertIsNone(manifest.name_for('a/d.ovf', names))
