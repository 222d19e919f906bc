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

"""Hostile packages: refused clearly, and nothing else is opened."""

from __future__ import annotations

from collections.abc import Collection
from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Sequence
import functools
import gzip
import os
import socket
import unittest

from xenimport.tests.functional import commands
from xenimport.tests.functional import hostile_cases
from xenimport.tests import hostile
from xenimport.tests import packages
from xenimport.tests import qemu_images
from xenimport.tests import vmdk_packages
from xenimport.tests import xva_packages


class TarTest(hostile_cases.HostileTest):
    """Members that no package may hold."""

    def members(
        self, label: object, *bad: hostile.Member
    ) -> Iterator[tuple[str, bytes]]:
        """Hostile members in an OVA, an XVA and an image of a cloud."""
        text = packages.xencenter_ovf(
            [packages.Disk('d', 'd.raw', hostile_cases.MIB)]
        )
        xml = xva_packages.description(
            xva_packages.guest([xva_packages.Disk('Ref:1', hostile_cases.RAW)])
        )
        for name, first in (
            ('ova', hostile.Member(b'guest.ovf', text)),
            ('xva', hostile.Member(b'ova.xml', xml)),
            ('cloud', hostile.Member(b'0.vhd', hostile.parent())),
        ):
            disk = hostile.Member(b'd.raw', hostile_cases.RAW)
            yield from hostile_cases.forms(
                f'{label}-{name}', [first, *bad, disk]
            )

    def all_refused(
        self,
        error_id: str | Collection[str],
        cases: Iterable[Sequence[hostile.Member]],
    ) -> None:
        found: list[tuple[str, bytes]] = []
        for number, bad in enumerate(cases):
            found += self.members(number, *bad)
        self.refused(error_id, *found)

    def test_names_that_lead_outside(self) -> None:
        secret = os.fsencode(self.secret)
        names = (b'../secret.vhd', b'a/../../b', b'/etc/x', secret, b'..')
        self.all_refused(
            'package.unsafe-name',
            [[hostile.Member(name, b'x')] for name in names],
        )

    def test_extended_names_that_lead_outside(self) -> None:
        plain = hostile.Member(b'plain', b'x')
        self.all_refused(
            'package.unsafe-name',
            [
                [hostile.pax(path='../x'), plain],
                [hostile.pax(path='/etc/x'), plain],
                [hostile.Member(b'././@LongLink', b'../x\0', b'L'), plain],
            ],
        )

    def test_links_and_devices(self) -> None:
        kinds = (b'1', b'2', b'3', b'4', b'6', b'S', b'K', b'V', b'Z')
        self.all_refused(
            'package.unsafe-member',
            [
                [hostile.Member(b'd.vhd', b'', kind, link=b'/etc/hostname')]
                for kind in kinds
            ],
        )

    def test_sparse_members(self) -> None:
        plain = hostile.Member(b'plain', b'x')
        bad = hostile.pax(GNU__sparse__major='1', GNU__sparse__minor='0')
        self.all_refused('package.unsafe-member', [[bad, plain]])

    def test_sizes_that_lie(self) -> None:
        plain = hostile.Member(b'plain', b'x')
        sizes = (hostile_cases.MIB, 1 << 40, (1 << 63) - 1, 1 << 63, 1 << 80)
        self.all_refused(
            ('package.truncated', 'package.damaged'),
            [
                *([hostile.Member(b'big', b'x', size=size)] for size in sizes),
                [hostile.pax(size=str(1 << 63)), plain],
            ],
        )

    def test_extended_headers_that_lie(self) -> None:
        plain = hostile.Member(b'plain', b'x')
        self.all_refused(
            ('package.damaged', 'package.truncated'),
            [
                [bad, plain]
                for bad in (
                    hostile.Member(b'x', b'9' * 512, b'x'),
                    hostile.Member(b'x', b'99999999999 path=a\n', b'x'),
                    hostile.Member(b'x', b'0 path=a\n', b'x'),
                    hostile.Member(b'x', b'x', b'x', size=1 << 40),
                    hostile.Member(b'x', b'x', b'L', size=1 << 40),
                    hostile.pax(size='9' * 400),
                    hostile.pax(size='-1'),
                )
            ],
        )

    def test_very_many_members(self) -> None:
        many = [hostile.Member(b'm%d' % number) for number in range(30_000)]
        first = hostile.Member(
            b'guest.ovf',
            packages.xencenter_ovf(
                [packages.Disk('d', 'd.raw', hostile_cases.MIB)]
            ),
        )
        disk = hostile.Member(b'd.raw', hostile_cases.RAW)
        self.refused(
            'package.too-many-members',
            *hostile_cases.forms('many', [first, *many, disk]),
        )


class XmlTest(hostile_cases.HostileTest):
    """Descriptions that are made to harm who parses them."""

    def test_document_types(self) -> None:
        ovf = packages.xencenter_ovf(
            [packages.Disk('d', 'd.raw', hostile_cases.MIB)]
        )
        xva = xva_packages.description(
            xva_packages.guest([xva_packages.Disk('Ref:1', hostile_cases.RAW)])
        )
        found = []
        for name, doctype in hostile.doctypes(hostile_cases.HOST_FILE).items():
            entity = '' if name == 'plain' else '&bomb;'
            for kind, text in (('ovf', ovf), ('xva', xva)):
                first = 'guest.ovf' if kind == 'ovf' else 'ova.xml'
                bad = hostile.with_doctype(text, doctype, entity)
                data = hostile.tar(
                    [
                        hostile.Member(first.encode(), bad),
                        hostile.Member(b'd.raw', hostile_cases.RAW),
                    ]
                )
                ending = 'ova' if kind == 'ovf' else 'xva'
                found += [
                    (f'{name}.{ending}', data),
                    (f'{name}.{ending}.gz', gzip.compress(data, 1)),
                ]
            found.append(
                (f'{name}.ovf', hostile.with_doctype(ovf, doctype, entity))
            )
        self.refused(
            ('package.ovf-invalid', 'package.xva-description'), *found
        )

    def test_deep_nesting(self) -> None:
        self.refused(
            ('package.ovf-too-large', 'package.xva-description'),
            ('deep.ovf', hostile.nested()),
            (
                'deep.xva',
                hostile.tar([hostile.Member(b'ova.xml', hostile.nested())]),
            ),
        )

    def test_huge_text(self) -> None:
        text = b'<Envelope>' + b' ' * (40 * hostile_cases.MIB) + b'</Envelope>'
        first = hostile.Member(b'guest.ovf', text)
        self.refused(
            'package.member-too-large',
            ('huge.ovf', text),
            *hostile_cases.forms('huge', [first]),
            ('x.xva', hostile.tar([hostile.Member(b'ova.xml', text)])),
        )

    def test_very_many_elements(self) -> None:
        text = b'<Envelope>' + b'<a/>' * 700_000 + b'</Envelope>'
        self.refused('package.ovf-too-large', ('many.ovf', text))

    def test_references_that_lead_outside(self) -> None:
        found: list[tuple[str, bytes]] = []
        for number, href in enumerate(
            (
                '../secret.vhd',
                str(self.secret),
                f'file://{self.secret}',
                'http://127.0.0.1:9/d.vhd',
                'a/../../secret.vhd',
                '%2e%2e/secret.vhd',
                '..\\secret.vhd',
            )
        ):
            text = packages.xencenter_ovf(
                [packages.Disk('d', href, hostile_cases.MIB)]
            )
            first = hostile.Member(b'guest.ovf', text)
            found.append((f'{number}.ovf', text))
            found += hostile_cases.forms(f'{number}', [first])
        self.refused('package.unsafe-reference', *found)


class FolderTest(hostile_cases.HostileTest):
    """Directories with what is no file."""

    def setUp(self) -> None:
        super().setUp()
        text = packages.xencenter_ovf(
            [packages.Disk('d', 'd.raw', hostile_cases.MIB)]
        )
        self.write('guest.ovf', text)
        self.disk = self.inside / 'd.raw'

    def folder(self, error_id: str | Collection[str]) -> None:
        allowed = {error_id} if isinstance(error_id, str) else set(error_id)
        for report in self.read(
            [str(self.inside)], [str(self.inside / 'guest.ovf')]
        ):
            self.assertIn(report.id, allowed, report.text)

    def test_link_to_outside(self) -> None:
        for target in (
            str(self.secret),
            '../secret.vhd',
            hostile_cases.HOST_FILE,
        ):
            with self.subTest(target):
                self.disk.symlink_to(target)
                self.folder('package.unsafe-member')
                self.disk.unlink()

    def test_link_among_directories(self) -> None:
        text = packages.xencenter_ovf(
            [packages.Disk('d', 'sub/secret.vhd', hostile_cases.MIB)]
        )
        self.write('guest.ovf', text)
        (self.inside / 'sub').symlink_to(self.directory)
        self.folder('package.unsafe-member')

    def test_pipe(self) -> None:
        os.mkfifo(self.disk)
        self.folder('package.unsafe-member')

    def test_socket(self) -> None:
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(str(self.disk))
            self.folder('package.unsafe-member')

    def test_directory(self) -> None:
        self.disk.mkdir()
        self.folder('package.unsafe-member')

    @unittest.skipIf(os.geteuid(), 'only root can make a device')
    def test_device(self) -> None:
        try:
            os.mknod(self.disk, 0o020600, os.makedev(1, 5))
        except PermissionError:
            self.skipTest('devices cannot be made here')
        self.folder('package.unsafe-member')

    def test_descriptor(self) -> None:
        self.disk.write_bytes(hostile_cases.RAW)
        descriptor = self.inside / 'guest.ovf'
        descriptor.unlink()
        descriptor.symlink_to(self.secret)
        self.folder('package.unsafe-member')

    def test_manifest(self) -> None:
        self.disk.write_bytes(hostile_cases.RAW)
        manifest = self.inside / 'guest.mf'
        os.mkfifo(manifest)
        self.folder('package.unsafe-member')
        manifest.unlink()
        manifest.symlink_to(self.secret)
        self.folder('package.unsafe-member')

    def test_manifest_that_names_others(self) -> None:
        self.disk.write_bytes(hostile_cases.RAW)
        for name in (
            '../secret.vhd',
            hostile_cases.HOST_FILE,
            str(self.secret),
        ):
            with self.subTest(name):
                self.write('guest.mf', f'SHA1({name})= {"0" * 40}\n'.encode())
                self.folder(
                    ('package.unsafe-reference', 'package.manifest-invalid')
                )


class CommandTest(commands.CommandTest):
    """The same as a user meets it."""

    def refused(self, name: str, data: bytes, error_id: str) -> None:
        package = self.directory / name
        package.write_bytes(data)
        output = self.directory / 'output'
        done = self.openstack(
            'import-xen', 'convert', package, '--output', output,
            '--no-repair',
        )  # fmt: skip
        self.assert_clear_error(done, error_id)
        self.assert_nothing_left()
        if output.exists():
            self.assertLessEqual(set(os.listdir(output)), {'report.json'})

    def test_name_that_leads_outside(self) -> None:
        data = hostile.tar([hostile.Member(b'../x', b'x')])
        self.refused('guest.ova', data, 'package.unsafe-name')

    def test_backing_file(self) -> None:
        data = qemu_images.qcow2(
            {0: b'x'}, hostile_cases.MIB, backing_offset=2048, backing_size=9
        )
        self.refused('disk.vhd', data, 'qcow2.backing-file')

    def test_host_file(self) -> None:
        text = vmdk_packages.descriptor(
            'monolithicFlat', [f'RW 1 FLAT "{hostile_cases.HOST_FILE}" 0']
        )
        data = hostile.ova('d.vmdk', text)
        self.refused('guest.ova', data, 'vmdk.extent-outside')

    def test_disk_beyond_its_capacity(self) -> None:
        self.refused('guest.ova', _bomb_in_ova(), 'raw.beyond-capacity')


@functools.cache
def _bomb_in_ova() -> bytes:
    """A disk of four gibibytes that shall have one mebibyte."""
    text = packages.xencenter_ovf(
        [packages.Disk('d', 'd.raw.gz', hostile_cases.MIB)]
    )
    return hostile.tar(
        [
            hostile.Member(b'guest.ovf', text),
            hostile.Member(b'd.raw.gz', hostile.zeros_gzip(4 * hostile.GIB)),
        ]
    )
