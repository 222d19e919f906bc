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


"""The ovf source: a descriptor beside its files."""

from collections.abc import Iterator
from collections.abc import Mapping
import contextlib
import hashlib
import os
import sys
import tempfile
import threading
import unittest
from unittest import mock

from xenimport import exceptions
from xenimport import model
from xenimport.source import base
from xenimport.source import ovf_folder
from xenimport.source import tarindex
from xenimport import stream_files
from xenimport.tests import ovf_packages as writer

SCSI = [writer.Controller(4, writer.SCSI)]
DATA = b'0123456789' * 100


def descriptor(href: str, more: str = '', other: str | None = None) -> bytes:
    files = [writer.File('f', href, more)]
    if other is not None:
        files.append(writer.File('other', other))
    return writer.vmware_ovf(
        files,
        [writer.Disk('d', 'f')],
        SCSI,
        [writer.Drive(7, 4, 0, 'ovf:/disk/d')],
    )


class FolderTestCase(unittest.TestCase):
    def setUp(self) -> None:
        directory = tempfile.TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        self.outside = directory.name
        self.directory = os.path.join(directory.name, 'package')
        os.mkdir(self.directory)

    def path(self, name: str) -> str:
        return os.path.join(self.directory, name)

    def write(
        self, contents: Mapping[str, bytes], *, href: str = 'one.vmdk'
    ) -> str:
        writer.write_folder(
            self.directory, {'guest.ovf': descriptor(href), **contents}
        )
        return self.path('guest.ovf')

    def open(
        self, path: str | None = None, *, verify: bool = True
    ) -> model.VirtualSystem:
        return ovf_folder.OvfSource().open(
            path or self.path('guest.ovf'),
            base.Request(verify_manifest=verify),
        )

    def assert_refused(self, error_id: str, path: str | None = None) -> str:
        with self.assertRaises(exceptions.PackageError) as caught:
            self.open(path)
        self.assertEqual(error_id, caught.exception.id)
        return str(caught.exception)


class ProbeTest(FolderTestCase):
    def test_by_name_or_content(self) -> None:
        probe = ovf_folder.OvfSource().probe
        path = self.write({'text': b'hello', 'x.ovf': b'not XML'})
        self.assertTrue(probe(path))
        self.assertTrue(probe(self.path('x.ovf')))
        self.assertFalse(probe(self.path('text')))
        os.rename(path, self.path('descriptor'))
        self.assertTrue(probe(self.path('descriptor')))
        self.assertFalse(probe(self.path('gone')))

    def test_directory(self) -> None:
        probe = ovf_folder.OvfSource().probe
        self.assertFalse(probe(self.directory))
        self.write({})
        self.assertTrue(probe(self.directory))

    def test_pipe_does_not_hang(self) -> None:
        os.mkfifo(self.path('pipe'))
        self.assertFalse(ovf_folder.OvfSource().probe(self.path('pipe')))

    def test_stream(self) -> None:
        path = self.write({})
        arriving = stream_files.FileStream(path)
        self.addCleanup(arriving.close)
        source = ovf_folder.OvfSource()
        self.assertTrue(source.probe_stream(arriving))
        with self.assertRaises(exceptions.PackageError) as caught:
            source.open_stream(arriving)
        self.assertEqual('package.not-forward', caught.exception.id)


class OpenTest(FolderTestCase):
    def test_file_and_directory(self) -> None:
        path = self.write({'one.vmdk': DATA, 'unrelated': b'x'})
        for given in (path, self.directory, self.directory + '/'):
            with self.subTest(given=given):
                system = self.open(given)
                self.assertEqual('guest', system.name)
                self.assertEqual(
                    (given, 'ovf'),
                    (system.package.path, system.package.format),
                )
                (disk,) = system.disks
                self.assertEqual('one.vmdk', disk.region.name)
                self.assertTrue(
                    os.path.samefile(self.path('one.vmdk'), disk.region.path)
                )
                self.assertEqual(
                    (model.Piece(0, len(DATA), 0),), disk.region.pieces
                )
                self.assertEqual(
                    {'guest.ovf', 'one.vmdk'}, set(system.package.members)
                )

    def test_relative_path(self) -> None:
        self.write({'one.vmdk': DATA})
        self.addCleanup(os.chdir, os.getcwd())
        os.chdir(self.directory)
        region = self.open('guest.ovf').disks[0].region
        self.assertEqual(len(DATA), region.size)
        self.assertTrue(os.path.exists(region.path))

    def test_file_in_a_sub_folder(self) -> None:
        self.write({'disks/one.vmdk': DATA}, href='./disks//one.vmdk')
        self.assertEqual('disks/one.vmdk', self.open().disks[0].region.name)

    def test_other_files_of_the_package_are_members(self) -> None:
        self.write({'one.vmdk': DATA, 'flat.vmdk': b'flat'})
        for other, expected in (('flat.vmdk', True), ('left-out.iso', False)):
            with self.subTest(other=other):
                writer.write_folder(
                    self.directory,
                    {'guest.ovf': descriptor('one.vmdk', '', other)},
                )
                members = self.open().package.members
                self.assertEqual(expected, other in members)

    def test_escaped_reference(self) -> None:
        self.write({'my disk.vmdk': DATA}, href='my%20disk.vmdk')
        self.assertEqual('my disk.vmdk', self.open().disks[0].region.name)

    def test_several_descriptors(self) -> None:
        self.write({'b.ovf': b''})
        text = self.assert_refused('package.several-ovf', self.directory)
        self.assertIn('b.ovf, guest.ovf', text)

    def test_what_macos_leaves_is_no_descriptor(self) -> None:
        self.write({'one.vmdk': DATA, '._guest.ovf': b'\0\5\x16\7'})
        self.assertEqual('guest', self.open(self.directory).name)

    def test_no_descriptor(self) -> None:
        self.assert_refused('package.no-ovf', self.directory)
        self.assert_refused('package.unreadable')

    def test_missing_file_is_named(self) -> None:
        self.write({'two.vmdk': DATA})
        text = self.assert_refused('package.missing-file')
        self.assertIn("'one.vmdk'", text)
        self.assertIn('two.vmdk', text)


class PartsTest(FolderTestCase):
    def write_parts(self, contents: Mapping[str, bytes], more: str) -> None:
        writer.write_folder(
            self.directory,
            {'guest.ovf': descriptor('one.vmdk', more), **contents},
        )

    def test_are_joined(self) -> None:
        parts = writer.parts('one.vmdk', DATA, 400)
        self.write_parts(
            {**parts, 'guest.mf': writer.manifest(parts)},
            'ovf:chunkSize="400" ovf:size="1000"',
        )
        system = self.open()
        region = system.disks[0].region
        names = (
            'one.vmdk.000000000',
            'one.vmdk.000000001',
            'one.vmdk.000000002',
        )
        self.assertEqual(names, region.parts)
        self.assertEqual('one.vmdk', region.name)
        self.assertEqual(1000, region.size)
        content = b''
        for piece in region.pieces:
            with open(piece.path or region.path, 'rb') as file:
                file.seek(piece.offset)
                self.assertEqual(len(content), piece.region_offset)
                content += file.read(piece.length)
        self.assertEqual(DATA, content)
        self.assertEqual((), region.digests)
        for name in names:
            (digest,) = system.package.members[name].digests
            self.assertEqual(
                hashlib.sha256(parts[name]).hexdigest(), digest.value
            )

    def test_compressed_too(self) -> None:
        self.write_parts(
            writer.parts('one.vmdk', DATA, 400),
            'ovf:chunkSize="400" ovf:compression="gzip"',
        )
        region = self.open().disks[0].region
        self.assertEqual(('gzip', False), (region.decoder, region.seekable))
        self.assertEqual(3, len(region.pieces))
        self.assertEqual(3, len(region.parts))

    def test_wrong_parts(self) -> None:
        right = writer.parts('one.vmdk', DATA, 400)
        names = list(right)
        for name, contents, more in (
            ('hole', {names[0]: DATA[:400], names[2]: DATA[800:]}, ''),
            ('no first', {names[1]: DATA[:400]}, ''),
            (
                'last is missing',
                {names[0]: DATA[:400], names[1]: DATA[:400]},
                'ovf:size="1000"',
            ),
            (
                'one too many',
                {**right, 'one.vmdk.000000003': b'more'},
                '',
            ),
            ('short', {names[0]: b'short', names[1]: DATA[:400]}, ''),
            ('long', {names[0]: DATA}, ''),
        ):
            with self.subTest(name=name):
                for old in names:
                    if os.path.exists(self.path(old)):
                        os.unlink(self.path(old))
                self.write_parts(contents, f'ovf:chunkSize="400" {more}')
                text = self.assert_refused('package.parts')
                self.assertIn('one.vmdk', text)

    def test_number_that_jumps(self) -> None:
        self.write_parts(
            {
                'one.vmdk.000000000': DATA[:400],
                'one.vmdk.999999999': DATA[:400],
            },
            'ovf:chunkSize="400"',
        )
        text = self.assert_refused('package.parts')
        self.assertIn('000000001', text)


class ManifestTest(FolderTestCase):
    def test_digests(self) -> None:
        contents = {
            'guest.ovf': descriptor('my%20disk.vmdk', '', 'b (1).bin'),
            'my disk.vmdk': DATA,
            'b (1).bin': b'more',
        }
        for algorithm in ('sha1', 'sha256', 'sha512'):
            for escaped in (False, True):
                with self.subTest(algorithm=algorithm, escaped=escaped):
                    text = writer.manifest(contents, algorithm)
                    if escaped:
                        text = text.replace(b'my disk', b'my%20disk')
                    writer.write_folder(
                        self.directory, {**contents, 'guest.mf': text}
                    )
                    members = self.open().package.members
                    for name, content in contents.items():
                        self.assertEqual(
                            (
                                model.Digest(
                                    algorithm,
                                    hashlib.new(
                                        algorithm, content
                                    ).hexdigest(),
                                ),
                            ),
                            members[name].digests,
                        )

    def test_descriptor_was_changed(self) -> None:
        path = self.write({'one.vmdk': DATA})
        with open(path, 'rb') as file:
            text = file.read()
        writer.write_folder(
            self.directory,
            {'guest.mf': writer.manifest({'guest.ovf': text + b' '})},
        )
        self.assertIn(
            'guest.ovf', self.assert_refused('package.digest-mismatch')
        )
        region = self.open(verify=False).disks[0].region
        self.assertEqual((), region.digests)

    def test_missing_file(self) -> None:
        self.write(
            {
                'one.vmdk': DATA,
                'guest.mf': writer.manifest({'guest.nvram': b''}),
            }
        )
        text = self.assert_refused('package.manifest-missing-file')
        self.assertIn('guest.nvram', text)
        self.assertIn('--no-verify-manifest', text)
        self.open(verify=False)

    def test_file_that_only_the_manifest_names(self) -> None:
        self.write(
            {
                'one.vmdk': DATA,
                'guest.nvram': b'nvram',
                'guest.mf': writer.manifest({'guest.nvram': b'nvram'}),
            }
        )
        self.assertIn('guest.nvram', self.open().package.members)

    def test_name_that_leads_outside(self) -> None:
        self.write(
            {
                'one.vmdk': DATA,
                'guest.mf': writer.manifest({'../secret': b''}),
            }
        )
        self.assert_refused('package.unsafe-reference')

    def test_not_understood(self) -> None:
        self.write({'one.vmdk': DATA, 'guest.mf': b'hello'})
        self.assert_refused('package.manifest-invalid')
        self.open(verify=False)


class _Watched:
    """Names that are opened; a hook can be put in, never taken out."""

    def __init__(self) -> None:
        self._found: list[str] | None = None
        self._hooked = False

    @contextlib.contextmanager
    def during(self) -> Iterator[list[str]]:
        if not self._hooked:
            sys.addaudithook(self._watch)
            self._hooked = True
        found: list[str] = []
        self._found = found
        try:
            yield found
        finally:
            self._found = None

    def _watch(self, event: str, arguments: tuple[object, ...]) -> None:
        if self._found is not None and event == 'open':
            self._found.append(str(arguments[0]))


_WATCHED = _Watched()


class HostileTest(FolderTestCase):
    def setUp(self) -> None:
        super().setUp()
        self.secret = os.path.join(self.outside, 'secret')
        with open(self.secret, 'wb') as file:
            file.write(b'secret')

    def opened(self, href: str) -> list[str]:
        """The names that are opened while the package is."""
        self.write({}, href=href)
        with _WATCHED.during() as found:
            try:
                self.open()
            except exceptions.PackageError:
                pass
        return found

    def test_references_outside(self) -> None:
        for href in (
            self.secret,
            '../secret',
            'a/../../secret',
            '%2e%2e/secret',
            '..%2fsecret',
            f'file://{self.secret}',
            'http://host/one.vhd',
            '..\\secret',
            'C:\\one.vhd',
            'a%00b',
            '.',
            './',
            '',
        ):
            with self.subTest(href=href):
                self.write({}, href=href)
                self.assert_refused('package.unsafe-reference')
                opened = self.opened(href)
                self.assertIn('guest.ovf', opened)
                self.assertFalse([name for name in opened if 'secret' in name])

    def test_reference_of_a_file_that_no_disk_needs(self) -> None:
        for other in ('../secret', 'http://host/tools.iso', ''):
            with self.subTest(other=other):
                writer.write_folder(
                    self.directory,
                    {
                        'guest.ovf': descriptor('one.vmdk', '', other),
                        'one.vmdk': DATA,
                    },
                )
                self.assertEqual(
                    {'guest.ovf', 'one.vmdk'}, set(self.open().package.members)
                )

    def test_symbolic_links(self) -> None:
        self.write({}, href='one.vmdk')
        os.symlink(self.secret, self.path('one.vmdk'))
        self.assert_refused('package.unsafe-member')
        # One that stays inside is no better: it may change meanwhile.
        os.unlink(self.path('one.vmdk'))
        os.symlink('guest.ovf', self.path('one.vmdk'))
        self.assert_refused('package.unsafe-member')

    def test_directory_that_is_a_link(self) -> None:
        self.write({}, href='sub/secret')
        os.symlink(self.outside, self.path('sub'))
        self.assert_refused('package.unsafe-member')

    def test_descriptor_that_is_a_link(self) -> None:
        path = self.write({'one.vmdk': DATA})
        os.rename(path, os.path.join(self.outside, 'guest.ovf'))
        os.symlink(os.path.join(self.outside, 'guest.ovf'), path)
        self.assert_refused('package.unsafe-member')
        self.assert_refused('package.unsafe-member', self.directory)

    def test_manifest_that_is_a_link(self) -> None:
        self.write({'one.vmdk': DATA})
        os.symlink(self.secret, self.path('guest.mf'))
        self.assert_refused('package.unsafe-member')

    def test_parts_that_are_links(self) -> None:
        writer.write_folder(
            self.directory,
            {'guest.ovf': descriptor('one.vmdk', 'ovf:chunkSize="6"')},
        )
        os.symlink(self.secret, self.path('one.vmdk.000000000'))
        self.assert_refused('package.unsafe-member')

    def assert_refused_at_once(self) -> None:
        done = threading.Event()

        def work() -> None:
            self.assert_refused('package.unsafe-member')
            done.set()

        threading.Thread(target=work, daemon=True).start()
        self.assertTrue(done.wait(5))

    def test_no_regular_files(self) -> None:
        self.write({}, href='one.vmdk')
        path = self.path('one.vmdk')
        for make in (os.mkfifo, os.mkdir):
            with self.subTest(make=make.__name__):
                make(path)
                self.assert_refused_at_once()
                if make is os.mkfifo:
                    os.unlink(path)

    def test_file_among_the_folders(self) -> None:
        self.write({'one': b''}, href='one/two')
        self.assert_refused('package.unsafe-member')

    def test_long_name(self) -> None:
        self.write({}, href='a' * 5000)
        self.assert_refused('package.missing-file')

    def test_other_files_do_not_count(self) -> None:
        self.write({f'other{number}': b'' for number in range(50)})
        self.write({'one.vmdk': DATA})
        with mock.patch.object(tarindex, 'MAX_MEMBERS', 3):
            self.assertEqual(2, len(self.open().package.members))

    def test_too_many_files(self) -> None:
        hrefs = [f'{number}' for number in range(30)]
        files = [writer.File(href, href) for href in hrefs]
        disks = [writer.Disk('d', '0')]
        writer.write_folder(
            self.directory,
            {
                **dict.fromkeys(hrefs, b''),
                'guest.ovf': writer.vmware_ovf(files, disks, [], []),
            },
        )
        with mock.patch.object(tarindex, 'MAX_MEMBERS', 30):
            self.assert_refused('package.too-many-members')
        self.open()
