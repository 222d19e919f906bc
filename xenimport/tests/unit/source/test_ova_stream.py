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


"""An OVA that arrives in a stream."""

from collections.abc import Mapping
import gzip
import hashlib
import io
import random
import unittest

from xenimport import exceptions
from xenimport import model
from xenimport.source import base
from xenimport.source import ova
from xenimport import stream
from xenimport import stream_decoders
from xenimport.tests import ovf_packages as writer

ONE = bytes(range(256)) * 40
TWO = b'second disk' * 1000


class Bytes(stream.Stream):
    """Bytes in memory that come once, some at a time."""

    def __init__(self, content: bytes, where: str = 'guest.ova') -> None:
        super().__init__(where)
        self._content = io.BytesIO(content)

    def _read_into(self, buffer: memoryview) -> int:
        return self._content.readinto(buffer[:3000])


def descriptor(
    first: str = 'one.vmdk', second: str = 'two.vmdk', more: str = ''
) -> bytes:
    """Of two disks; ``more`` are attributes of the first's file."""
    return writer.vmware_ovf(
        [writer.File('f1', first, more), writer.File('f2', second)],
        [writer.Disk('d1', 'f1'), writer.Disk('d2', 'f2')],
        [],
        [
            writer.Drive(7, None, 0, 'ovf:/disk/d1'),
            writer.Drive(8, None, 1, 'ovf:/disk/d2'),
        ],
    )


FILES = {'guest.ovf': descriptor(), 'one.vmdk': ONE, 'two.vmdk': TWO}


def with_manifest(
    files: Mapping[str, bytes] = FILES, place: int = 1, **changes: bytes
) -> dict[str, bytes]:
    """The files with a manifest at some place."""
    listed = list(files.items())
    text = writer.manifest(files)
    listed.insert(place, ('guest.mf', text))
    return dict(listed)


def changed(files: Mapping[str, bytes], name: str) -> dict[str, bytes]:
    """The files, one of which was damaged after the manifest was made."""
    content = files[name]
    return {**files, name: content[:-1] + bytes((content[-1] ^ 1,))}


class StreamTestCase(unittest.TestCase):
    def open(
        self, content: bytes, *, verify: bool = True, where: str = 'guest.ova'
    ) -> model.VirtualSystem:
        arriving = Bytes(content, where)
        self.assertTrue(ova.OvaSource().probe_stream(arriving))
        return ova.OvaSource().open_stream(
            arriving, base.Request(verify_manifest=verify)
        )

    def read(
        self, files: Mapping[str, bytes], *, verify: bool = True
    ) -> dict[str, bytes]:
        """Everything that arrives, by name."""
        system = self.open(writer.tar(files), verify=verify)
        assert system.package.arrivals is not None
        return {
            name: arriving.read(1 << 24)
            for name, arriving in system.package.arrivals
        }

    def skip(self, files: Mapping[str, bytes]) -> None:
        """Let everything pass unread."""
        system = self.open(writer.tar(files))
        assert system.package.arrivals is not None
        for _name, _arriving in system.package.arrivals:
            pass

    def assert_refused(self, files: Mapping[str, bytes], error_id: str) -> str:
        """Read or skipped, it is refused."""
        with self.assertRaises(exceptions.PackageError) as caught:
            self.skip(files)
        self.assertEqual(error_id, caught.exception.id)
        with self.assertRaises(exceptions.PackageError) as caught:
            self.read(files)
        self.assertEqual(error_id, caught.exception.id)
        return str(caught.exception)


class ProbeTest(unittest.TestCase):
    def test_content_and_name(self) -> None:
        for where, content, expected in (
            ('standard input', writer.tar(FILES), True),
            ('standard input', writer.tar({'ova.xml': b''}), False),
            ('standard input', b'hello', False),
            ('/x/guest.ova.gz', b'hello', True),
            ('/x/guest.OVA.zst', b'hello', True),
            ('https://host/guest.ova', b'hello', True),
        ):
            with self.subTest(where=where):
                arriving = Bytes(content, where)
                self.assertEqual(
                    expected, ova.OvaSource().probe_stream(arriving)
                )
                self.assertEqual(content, arriving.read(1 << 24))

    def test_not_a_tar(self) -> None:
        with self.assertRaises(exceptions.PackageError) as caught:
            ova.OvaSource().open_stream(Bytes(b'PK\3\4' + bytes(600)))
        self.assertEqual('package.not-a-tar', caught.exception.id)


class OpenTest(StreamTestCase):
    def test_system(self) -> None:
        system = self.open(writer.tar(FILES), where='/x/my.ova.gz')
        self.assertEqual('guest', system.name)
        self.assertEqual(
            ('/x/my.ova.gz', 'ova'),
            (system.package.path, system.package.format),
        )
        self.assertEqual(
            [('d1', 'one.vmdk', 0), ('d2', 'two.vmdk', 1)],
            [(disk.id, disk.region.name, disk.index) for disk in system.disks],
        )
        for disk in system.disks:
            self.assertFalse(disk.region.seekable)
            self.assertEqual((), disk.region.pieces)

    def test_bytes(self) -> None:
        for name, files in (
            ('none', FILES),
            ('second', with_manifest()),
            ('last', with_manifest(place=3)),
            ('first', with_manifest(place=0)),
            ('between', with_manifest(place=2)),
            (
                'certificate',
                {
                    'guest.ovf': descriptor(),
                    'guest.mf': writer.manifest(FILES),
                    'guest.cert': b'SHA1(guest.mf)= 00',
                    **FILES,
                },
            ),
        ):
            with self.subTest(manifest=name):
                self.assertEqual(
                    {'one.vmdk': ONE, 'two.vmdk': TWO}, self.read(files)
                )
                self.skip(files)

    def test_what_macos_adds(self) -> None:
        files = {'._guest.ovf': b'\0\5\x16\7', **with_manifest()}
        self.assertEqual({'one.vmdk': ONE, 'two.vmdk': TWO}, self.read(files))

    def test_folder_in_the_tar(self) -> None:
        files = {
            f'a/{name}': content for name, content in with_manifest().items()
        }
        self.assertEqual(
            {'a/one.vmdk': ONE, 'a/two.vmdk': TWO}, self.read(files)
        )

    def test_other_members_pass_as_well(self) -> None:
        files = {**FILES, 'extra.vmdk': b'extra'}
        self.assertEqual(b'extra', self.read(files)['extra.vmdk'])

    def test_escaped_reference(self) -> None:
        for name in ('my disk.vmdk', 'my%20disk.vmdk'):
            with self.subTest(name=name):
                files = {
                    'g.ovf': descriptor('my%20disk.vmdk'),
                    name: ONE,
                    'two.vmdk': TWO,
                }
                system = self.open(writer.tar(files))
                region = system.disks[0].region
                self.assertEqual(ONE, self.read(files)[region.name])

    def test_compressed_disk(self) -> None:
        files = {
            'guest.ovf': descriptor(more='ovf:compression="gzip"'),
            'one.vmdk': gzip.compress(ONE),
            'two.vmdk': TWO,
        }
        self.assertEqual(ONE, self.read(with_manifest(files))['one.vmdk'])
        self.skip(with_manifest(files))
        self.assert_refused(
            changed(with_manifest(files), 'two.vmdk'),
            'package.digest-mismatch',
        )

    def test_compressed_by_name(self) -> None:
        files = {
            'guest.ovf': descriptor('one.vmdk.GZ'),
            'one.vmdk.GZ': gzip.compress(ONE),
            'two.vmdk': TWO,
        }
        self.assertEqual(ONE, self.read(files)['one.vmdk.GZ'])

    def test_parts(self) -> None:
        for compressed in (False, True):
            with self.subTest(compressed=compressed):
                content = gzip.compress(ONE) if compressed else ONE
                size = len(content) // 2 - 1
                more = f'ovf:chunkSize="{size}" ovf:size="{len(content)}"'
                if compressed:
                    more += ' ovf:compression="gzip"'
                files = {
                    'guest.ovf': descriptor(more=more),
                    **writer.parts('one.vmdk', content, size),
                    'two.vmdk': TWO,
                }
                for place in (1, 5):
                    found = self.read(with_manifest(files, place))
                    self.assertEqual({'one.vmdk': ONE, 'two.vmdk': TWO}, found)
                self.skip(with_manifest(files))
                with self.assertRaises(exceptions.PackageError) as caught:
                    self.skip(
                        changed(with_manifest(files), 'one.vmdk.000000002')
                    )
                self.assertEqual(
                    'package.digest-mismatch', caught.exception.id
                )


class WrongTest(StreamTestCase):
    def test_digest(self) -> None:
        for place in (1, 2, 3):
            for name in ('guest.ovf', 'one.vmdk', 'two.vmdk'):
                with self.subTest(place=place, name=name):
                    files = with_manifest(place=place)
                    if name == 'guest.ovf':
                        files[name] += b' '
                    else:
                        files = changed(files, name)
                    text = self.assert_refused(
                        files, 'package.digest-mismatch'
                    )
                    self.assertIn(name, text)
                    self.read(files, verify=False)

    def test_digest_of_another_member(self) -> None:
        files = with_manifest({**FILES, 'guest.nvram': b'nvram'})
        self.assert_refused(
            changed(files, 'guest.nvram'), 'package.digest-mismatch'
        )

    def test_every_algorithm_when_the_manifest_is_last(self) -> None:
        for algorithm in ('sha1', 'sha256', 'sha512'):
            with self.subTest(algorithm=algorithm):
                files = {
                    **FILES,
                    'guest.mf': writer.manifest(FILES, algorithm),
                }
                self.read(files)
                self.assert_refused(
                    changed(files, 'one.vmdk'), 'package.digest-mismatch'
                )

    def test_file_of_the_manifest_is_missing(self) -> None:
        files = with_manifest({**FILES, 'guest.nvram': b'nvram'})
        del files['guest.nvram']
        text = self.assert_refused(files, 'package.manifest-missing-file')
        self.assertIn('guest.nvram', text)
        self.read(files, verify=False)

    def test_disk_is_missing(self) -> None:
        files = {name: FILES[name] for name in ('guest.ovf', 'one.vmdk')}
        text = self.assert_refused(files, 'package.missing-file')
        self.assertIn('two.vmdk', text)

    def test_descriptor_is_not_first(self) -> None:
        text = self.assert_refused(
            {'one.vmdk': ONE, 'guest.ovf': descriptor(), 'two.vmdk': TWO},
            'package.not-forward',
        )
        self.assertIn("'one.vmdk'", text)

    def test_no_descriptor(self) -> None:
        self.assert_refused({'guest.mf': b''}, 'package.no-ovf')

    def test_second_descriptor(self) -> None:
        self.assert_refused({**FILES, 'b.ovf': b''}, 'package.several-ovf')

    def test_same_name_twice(self) -> None:
        content = writer.tar(FILES)[:-1024]
        content = content.rstrip(b'\0')
        content += bytes(-len(content) % 512)
        again = writer.tar({'one.vmdk': b'again'})
        system = self.open(content + again)
        assert system.package.arrivals is not None
        with self.assertRaises(exceptions.PackageError) as caught:
            for _name, _arriving in system.package.arrivals:
                pass
        self.assertEqual('package.duplicate-member', caught.exception.id)

    def test_one_file_for_two_disks(self) -> None:
        self.assert_refused(
            {'guest.ovf': descriptor('one.vmdk', './one.vmdk')},
            'package.not-forward',
        )

    def test_parts_in_disorder(self) -> None:
        right = writer.parts('one.vmdk', ONE, 4000)
        names = list(right)
        for order in (
            [names[1], names[0], names[2]],
            [names[0], names[2], names[1]],
            [names[0], names[2]],
            [names[1], names[2]],
            names[:2],
        ):
            with self.subTest(order=order):
                more = f'ovf:chunkSize="4000" ovf:size="{len(ONE)}"'
                self.assert_refused(
                    {
                        'guest.ovf': descriptor(more=more),
                        **{name: right[name] for name in order},
                        'two.vmdk': TWO,
                    },
                    'package.parts',
                )

    def test_part_that_comes_later(self) -> None:
        right = writer.parts('one.vmdk', ONE, 6000)
        first, second = right
        self.assert_refused(
            {
                'guest.ovf': descriptor(more='ovf:chunkSize="6000"'),
                first: right[first],
                'two.vmdk': TWO,
                second: right[second],
            },
            'package.parts',
        )

    def test_reference_outside(self) -> None:
        self.assert_refused(
            {'guest.ovf': descriptor('../one.vmdk')},
            'package.unsafe-reference',
        )

    def test_large_descriptor(self) -> None:
        self.assert_refused(
            {'guest.ovf': bytes(5 << 20)}, 'package.member-too-large'
        )

    def test_cut_short(self) -> None:
        content = writer.tar(with_manifest())
        for length in (1500, 6000, 12_000, 20_000):
            with self.subTest(length=length):
                with self.assertRaises(exceptions.PackageError) as caught:
                    system = self.open(content[:length])
                    assert system.package.arrivals is not None
                    for _name, arriving in system.package.arrivals:
                        arriving.read(1 << 24)
                self.assertEqual('package.truncated', caught.exception.id)

    def test_bad_gzip(self) -> None:
        files = {
            'guest.ovf': descriptor('one.vmdk.gz'),
            'one.vmdk.gz': gzip.compress(ONE)[:-6] + bytes(6),
            'two.vmdk': TWO,
        }
        with self.assertRaises(exceptions.PackageError) as caught:
            self.read(files)
        self.assertEqual('package.undecodable', caught.exception.id)

    def test_package_that_is_compressed_badly(self) -> None:
        files = {**FILES, 'two.vmdk': random.Random(1).randbytes(300_000)}
        compressed = gzip.compress(writer.tar(files))
        for content, error_id in (
            (compressed, None),
            (compressed[:-8] + bytes(8), 'package.undecodable'),
            (compressed[:-4], 'package.truncated'),
        ):
            with self.subTest(error_id=error_id):
                arriving = stream_decoders.decoded(Bytes(content))
                system = ova.OvaSource().open_stream(arriving)
                assert system.package.arrivals is not None
                found = []
                try:
                    for name, _stream in system.package.arrivals:
                        found.append(name)
                except exceptions.PackageError as error:
                    self.assertEqual(error_id, error.id)
                else:
                    self.assertIsNone(error_id)
                self.assertEqual(['one.vmdk', 'two.vmdk'], found)

    def test_digests_are_those_of_the_compressed_bytes(self) -> None:
        files = {
            'guest.ovf': descriptor('one.vmdk.gz'),
            'one.vmdk.gz': gzip.compress(ONE),
            'two.vmdk': TWO,
        }
        digest = hashlib.sha256(ONE).hexdigest()
        stated = f'SHA256(one.vmdk.gz)= {digest}\n'.encode()
        self.assert_refused(
            {**files, 'guest.mf': stated}, 'package.digest-mismatch'
        )
