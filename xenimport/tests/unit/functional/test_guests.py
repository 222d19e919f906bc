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

"""The guest builder's own parts that need no building."""

from __future__ import annotations

import dataclasses
import io
import os
import pathlib
import tarfile
import tempfile
import unittest
from unittest import mock

from xenimport.tests.functional import guests


class SpecTest(unittest.TestCase):
    """A cache that never mixes up two guests."""

    def test_every_input_changes_the_key(self) -> None:
        spec = guests.SAMPLE
        changed = [
            dataclasses.replace(spec, suite='trixie'),
            dataclasses.replace(spec, packages=spec.packages[1:]),
            dataclasses.replace(spec, commands=(*spec.commands, 'true')),
            dataclasses.replace(spec, files=spec.files[:-1]),
            dataclasses.replace(spec, disk_size=spec.disk_size * 2),
        ]
        keys = {each.key() for each in (spec, *changed)}
        self.assertEqual(6, len(keys))

    def test_uuids_are_the_same_in_every_build(self) -> None:
        again = dataclasses.replace(guests.SAMPLE)
        self.assertEqual(guests.SAMPLE.uuid('vdi'), again.uuid('vdi'))
        self.assertNotEqual(again.uuid('vdi'), again.uuid('system'))

    def test_cache_can_be_named(self) -> None:
        with mock.patch.dict(os.environ, {'XENIMPORT_CACHE': '/some/where'}):
            self.assertEqual(
                pathlib.Path('/some/where'), guests.cache_directory()
            )


class AptSourcesTest(unittest.TestCase):
    """Only the wanted suite's archives go into a guest."""

    def setUp(self) -> None:
        super().setUp()
        scratch = tempfile.TemporaryDirectory()
        self.addCleanup(scratch.cleanup)
        self.root = pathlib.Path(scratch.name)
        (self.root / 'etc/apt/sources.list.d').mkdir(parents=True)

    def _write(self, name: str, text: str) -> None:
        (self.root / 'etc/apt' / name).write_text(text)

    def test_none(self) -> None:
        self.assertEqual('', guests.apt_sources('bookworm', self.root))

    def test_list(self) -> None:
        self._write(
            'sources.list',
            'deb [arch=amd64] http://a.example/debian bookworm main\n'
            '# deb http://a.example/debian bookworm contrib\n'
            'deb http://b.example/debian noble main\n'
            'deb-src http://a.example/debian bookworm main\n',
        )
        self._write(
            'sources.list.d/x.list',
            'deb http://c.example/sdk cloud-sdk-bookworm main\n',
        )
        self.assertEqual(
            'deb [arch=amd64] http://a.example/debian bookworm main\n',
            guests.apt_sources('bookworm', self.root),
        )

    def test_deb822(self) -> None:
        debian = (
            'Types: deb\nURIs: http://a.example/debian\n'
            'Suites: bookworm bookworm-updates\nComponents: main'
        )
        security = (
            'Types: deb\nURIs: http://a.example/security\n'
            'Suites: bookworm-security\nComponents: main'
        )
        other = (
            'Types: deb\nURIs: http://n.example/node\n'
            'Suites: nodistro\nComponents: main\n'
        )
        self._write('sources.list.d/a.sources', f'{debian}\n\n{security}\n')
        self._write('sources.list.d/b.sources', other)
        self.assertEqual(
            f'{debian}\n\n{security}\n',
            guests.apt_sources('bookworm', self.root),
        )


class DiskTest(unittest.TestCase):
    """What is written around the guest's file system."""

    def test_files_belong_to_root_and_keep_their_mode(self) -> None:
        spec = dataclasses.replace(
            guests.SAMPLE,
            files=(
                guests.GuestFile('etc/one', 'text', 0o755),
                guests.GuestFile('etc/two', link='/dev/null'),
            ),
        )
        with tarfile.open(fileobj=io.BytesIO(guests.overlay(spec))) as archive:
            one, two = archive.getmembers()
            content = archive.extractfile(one)
            assert content is not None
            self.assertEqual(b'text', content.read())
        self.assertEqual((0, 0, 0o755), (one.uid, one.gid, one.mode))
        self.assertTrue(two.issym())
        self.assertEqual('/dev/null', two.linkname)

    def test_master_boot_record(self) -> None:
        record = guests.master_boot_record(guests.SAMPLE)
        self.assertEqual(512, len(record))
        self.assertEqual(bytes(440), record[:440])
        self.assertNotEqual(bytes(4), record[440:444])
        # 1200 MiB are 2457600 sectors, of which 2048 come first: 0x257800.
        self.assertEqual(
            '0020210083feffff0008000000782500', record[446:462].hex()
        )
        self.assertEqual(bytes(48), record[462:510])
        self.assertEqual('55aa', record[510:].hex())
