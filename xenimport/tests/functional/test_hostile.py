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

"""Hostile packages: refused clearly, within bounds, nothing else opened.

Each is read in a process with 512 MiB of address space, in which every
file that is opened is noted.
"""

from __future__ import annotations

from collections.abc import Collection
from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Sequence
import functools
import gzip
import json
import os
import pathlib
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import typing
import unittest

from xenimport.converter import qemu_server
from xenimport.tests.functional import commands
from xenimport.tests import hostile
from xenimport.tests import ovf_packages
from xenimport.tests import packages
from xenimport.tests import qemu_images
from xenimport.tests import vhd_packages
from xenimport.tests import vmdk_packages
from xenimport.tests import xva_packages

#: Seconds for all packages of one test.
_LIMIT = 120
_READER = 'xenimport.tests.functional.hostile_reader'
_MIB = 1 << 20
_RAW = b'raw!' * 16384
#: A file that every machine has, for those that go looking.
_HOST_FILE = '/etc/hostname'


class Report(typing.NamedTuple):
    """What came of one package.

    :ivar id: of the error, None if it was read
    :ivar foreign: the traceback of an error that is not ours
    """

    id: str | None
    text: str
    foreign: str
    opened: list[str]
    programs: list[str]


class HostileTest(unittest.TestCase):
    """A test with a directory for packages, and a secret beside it."""

    def setUp(self) -> None:
        super().setUp()
        temporary = tempfile.TemporaryDirectory(prefix='xenimport-hostile-')
        self.addCleanup(temporary.cleanup)
        self.directory = pathlib.Path(temporary.name)
        self.inside = self.directory / 'inside'
        self.inside.mkdir()
        #: Where the reader may unpack.
        self.work = self.directory / 'work'
        self.work.mkdir()
        #: What must never be opened; it is the parent that is looked for.
        self.secret = self.directory / 'secret.vhd'
        self.secret.write_bytes(hostile.parent())

    def write(self, name: str, data: bytes) -> str:
        path = self.inside / name
        path.write_bytes(data)
        return str(path)

    def read(
        self,
        *jobs: Sequence[str],
        how: str = '',
        wrapper: Sequence[str] = (),
        qemu: bool = False,
    ) -> list[Report]:
        """Read packages in a process of their own, one after the other.

        :param how: what is done to the first file when it is open
        :param qemu: whether programs may be started
        """
        listed = [(paths, how, paths[0]) for paths in jobs]
        done = subprocess.run(
            [*wrapper, sys.executable, '-m', _READER],
            input=json.dumps(listed),
            capture_output=True,
            text=True,
            timeout=_LIMIT,
            cwd=self.inside,
            env=os.environ
            | {'PYTHONPATH': os.getcwd(), 'TMPDIR': str(self.work)},
        )
        self.assertEqual(0, done.returncode, done.stderr)
        reports = [
            Report(**json.loads(line)) for line in done.stdout.splitlines()
        ]
        self.assertEqual(len(jobs), len(reports), done.stderr)
        for report in reports:
            self.assertEqual('', report.foreign)
            if not qemu:
                self.assertEqual([], report.programs)
            for path in report.opened:
                self.assertTrue(
                    path in (str(self.inside), str(self.work), os.devnull)
                    or path.startswith((f'{self.inside}/', f'{self.work}/')),
                    f'{path} was opened',
                )
        return reports

    def refused(
        self, error_id: str | Collection[str], *packages_: tuple[str, bytes]
    ) -> list[Report]:
        """Each package is refused with the id, or one of them."""
        allowed = {error_id} if isinstance(error_id, str) else set(error_id)
        paths = [[self.write(name, data)] for name, data in packages_]
        reports = self.read(*paths)
        for (path,), report in zip(paths, reports, strict=True):
            with self.subTest(os.path.basename(path)):
                self.assertIn(report.id, allowed, report.text)
                self.assertIn('\nFix: ', report.text)
        return reports


def _forms(
    name: str, members: Sequence[hostile.Member]
) -> tuple[tuple[str, bytes], ...]:
    """A tar as it is and compressed, so read in place and forward."""
    data = hostile.tar(members)
    return (
        (f'{name}.ova', data),
        (f'{name}.ova.gz', gzip.compress(data, 1)),
    )


class TarTest(HostileTest):
    """Members that no package may hold."""

    def members(
        self, label: object, *bad: hostile.Member
    ) -> Iterator[tuple[str, bytes]]:
        """Hostile members in an OVA, an XVA and an image of a cloud."""
        text = packages.xencenter_ovf([packages.Disk('d', 'd.raw', _MIB)])
        xml = xva_packages.description(
            xva_packages.guest([xva_packages.Disk('Ref:1', _RAW)])
        )
        for name, first in (
            ('ova', hostile.Member(b'guest.ovf', text)),
            ('xva', hostile.Member(b'ova.xml', xml)),
            ('cloud', hostile.Member(b'0.vhd', hostile.parent())),
        ):
            disk = hostile.Member(b'd.raw', _RAW)
            yield from _forms(f'{label}-{name}', [first, *bad, disk])

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
        sizes = (_MIB, 1 << 40, (1 << 63) - 1, 1 << 63, 1 << 80)
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
            packages.xencenter_ovf([packages.Disk('d', 'd.raw', _MIB)]),
        )
        disk = hostile.Member(b'd.raw', _RAW)
        self.refused(
            'package.too-many-members',
            *_forms('many', [first, *many, disk]),
        )


class XmlTest(HostileTest):
    """Descriptions that are made to harm who parses them."""

    def test_document_types(self) -> None:
        ovf = packages.xencenter_ovf([packages.Disk('d', 'd.raw', _MIB)])
        xva = xva_packages.description(
            xva_packages.guest([xva_packages.Disk('Ref:1', _RAW)])
        )
        found = []
        for name, doctype in hostile.doctypes(_HOST_FILE).items():
            entity = '' if name == 'plain' else '&bomb;'
            for kind, text in (('ovf', ovf), ('xva', xva)):
                first = 'guest.ovf' if kind == 'ovf' else 'ova.xml'
                bad = hostile.with_doctype(text, doctype, entity)
                data = hostile.tar(
                    [
                        hostile.Member(first.encode(), bad),
                        hostile.Member(b'd.raw', _RAW),
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
        text = b'<Envelope>' + b' ' * (40 * _MIB) + b'</Envelope>'
        first = hostile.Member(b'guest.ovf', text)
        self.refused(
            'package.member-too-large',
            ('huge.ovf', text),
            *_forms('huge', [first]),
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
            text = packages.xencenter_ovf([packages.Disk('d', href, _MIB)])
            first = hostile.Member(b'guest.ovf', text)
            found.append((f'{number}.ovf', text))
            found += _forms(f'{number}', [first])
        self.refused('package.unsafe-reference', *found)


class LyingSizesTest(HostileTest):
    """Numbers that say more than there is."""

    def test_capacity_of_a_description(self) -> None:
        for capacity in ((1 << 63) - 1, 1 << 63, 1 << 64, 10**4000):
            text = packages.xencenter_ovf(
                [packages.Disk('d', 'd.raw', capacity)]
            )
            data = hostile.tar(
                [
                    hostile.Member(b'guest.ovf', text),
                    hostile.Member(b'd.raw', _RAW),
                ]
            )
            paths = [
                [self.write('guest.ova', data)],
                [self.write('guest.ova.gz', gzip.compress(data))],
            ]
            # The disk itself is sound, and says how long it is.
            for report in self.read(*paths):
                self.assertIn(
                    report.id,
                    (None, 'package.ovf-invalid', 'ovf.quantity-unknown'),
                )

    def test_vhd(self) -> None:
        sound = vhd_packages.Vhd(1 << 20, {0: b'x' * 512}).build()
        found = []
        for size in (1 << 63, (1 << 64) - 512, 1 << 50):
            footer = packages.footer(size)
            data = footer + sound[512:-512] + footer
            found.append((f'size{size}.vhd', data))
            fixed = _RAW + packages.footer(size, packages.FIXED)
            found.append((f'fixed{size}.vhd', fixed))
        for entries in (0xFFFFFFFF, 0x7FFFFFFF, 1 << 24):
            size = min(entries, 1 << 24) << 21
            footer = packages.footer(size)
            header = packages.dynamic_header(entries)
            found.append(
                (
                    f'table{entries}.vhd',
                    footer + header + b'\xff' * 4096 + footer,
                )
            )
        # The same blocks again and again.
        footer = packages.footer(1 << 40)
        header = packages.dynamic_header(1 << 19)
        table = (8192).to_bytes(4, 'big') * (1 << 19)
        body = b'x' * (3 * _MIB)
        found.append(
            (
                'overlap.vhd',
                (footer + header + table).ljust(8192 * 512, b'\0')
                + body
                + footer,
            )
        )
        found += [
            (f'{name}.gz', gzip.compress(data, 1)) for name, data in found
        ]
        self.refused(
            (
                'vhd.size',
                'vhd.table',
                'vhd.truncated',
                'vhd.blocks-overlap',
                'vhd.block-outside',
                'vhd.footer-differs',
                'package.truncated',
            ),
            *found,
        )

    def test_xva(self) -> None:
        found = []
        for number, size in (
            (99_999_999, _MIB),
            (10**17, _MIB),
            (10**17, (1 << 63) - 1),
            (10**18 - 1, 1 << 63),
        ):
            disk = xva_packages.Disk('Ref:1', _RAW)
            text = xva_packages.description(
                xva_packages.guest([disk])
            ).replace(b'65536', b'%d' % size)
            data = hostile.tar(
                [
                    hostile.Member(b'ova.xml', text),
                    hostile.Member(b'Ref:1/00000000', _RAW),
                    hostile.Member(b'Ref:1/%08d' % number, _RAW),
                ]
            )
            name = f'jump{number}-{size}.xva'
            found += [(name, data), (f'{name}.gz', gzip.compress(data))]
        self.refused(
            (
                'package.xva-chunk-outside',
                'package.xva-chunk-missing',
                'package.xva-description',
                'package.xva-member',
            ),
            *found,
        )

    def test_vmdk(self) -> None:
        sound = vmdk_packages.sparse(_RAW)
        stream = vmdk_packages.stream_optimized(_RAW)
        found = []
        for name, data in (('sparse', sound), ('stream', stream)):
            for offset, length in ((12, 8), (20, 8), (36, 8)):
                for bits in (62, 55, 40):
                    value = (1 << min(bits, 8 * length - 2)).to_bytes(
                        length, 'little'
                    )
                    bad = vmdk_packages.patched(data, offset, value)
                    found.append((f'{name}{offset}-{bits}.vmdk', bad))
        for size in (1 << 62, 1 << 54, 1 << 60):
            text = vmdk_packages.descriptor(
                'monolithicFlat', [f'RW {size} FLAT "d-flat.vmdk" 0']
            )
            found.append((f'flat{size}.vmdk', text))
        found += [
            (f'{name}.gz', gzip.compress(data, 1)) for name, data in found
        ]
        self.refused(
            (
                'vmdk.header',
                'vmdk.directory',
                'vmdk.footer',
                'vmdk.descriptor',
                'vmdk.extents',
                'vmdk.extent-outside',
                'vmdk.no-footer',
                'package.truncated',
            ),
            *found,
        )

    def test_what_qemu_reads(self) -> None:
        found = [
            (
                f'l1-{entries}.qcow2',
                qemu_images.qcow2({0: b'x'}, _MIB, l1_size=entries),
            )
            for entries in (0xFFFFFFFF, 1 << 22, 1 << 20)
        ]
        sound = qemu_images.vdi({0: b'x'}, _MIB)
        large = (1 << 62).to_bytes(8, 'little')
        found += [
            ('size.vdi', vmdk_packages.patched(sound, 368, large)),
            (
                'blocks.vdi',
                qemu_images.vdi({0: b'x'}, _MIB, blocks=0xFFFFFFFF),
            ),
            (
                'entry.vdi',
                qemu_images.vdi({0: b'x'}, _MIB, map_entries={0: 0x7FFFFFFF}),
            ),
            (
                'size.vhdx',
                qemu_images.vhdx(
                    {0: b'x'}, _MIB, items=qemu_images.vhdx_items(1 << 62)
                ),
            ),
            (
                'entry.vhdx',
                qemu_images.vhdx(
                    {0: b'x'},
                    _MIB,
                    bat_entries={0: (1 << 60) | qemu_images.FULL},
                ),
            ),
        ]
        self.refused(
            (
                'qcow2.header',
                'qcow2.size',
                'vdi.size',
                'vdi.header',
                'vhdx.size',
                'vhdx.header',
                'disk-image.truncated',
            ),
            *found,
        )


class BombTest(HostileTest):
    """Little that becomes much."""

    def test_package_of_zeros(self) -> None:
        self.refused(
            ('package.not-a-tar', 'package.unknown'),
            ('zeros.ova.gz', hostile.zeros_gzip(8 * hostile.GIB)),
            ('zeros.ova.zst', hostile.zeros_zstd(64 * hostile.GIB)),
            ('zeros.xva.zst', hostile.zeros_zstd(64 * hostile.GIB)),
        )

    def test_disk_beyond_its_capacity(self) -> None:
        text = ovf_packages.envelope(
            ovf_packages.references(
                [ovf_packages.File('f', 'd.raw', 'ovf:compression="gzip"')]
            ),
            ovf_packages.disk_section(
                [ovf_packages.Disk('d', 'f', str(_MIB))]
            ),
            ovf_packages.system(
                'guest',
                ovf_packages.hardware(
                    drives=[ovf_packages.Drive(9, None, 0, 'ovf:/disk/d')]
                ),
            ),
        )
        members = [
            hostile.Member(b'guest.ovf', text),
            hostile.Member(b'd.raw', hostile.zeros_gzip(4 * hostile.GIB)),
        ]
        for report in self.read(
            *(
                [self.write(name, data)]
                for name, data in _forms('guest', members)
            )
        ):
            # The reader itself stops after some mebibytes.
            self.assertIn(report.id, (None, 'package.excess-data'))

    def test_tail(self) -> None:
        data = hostile.ova('d.vhd', hostile.parent())
        self.refused(
            'package.excess-data',
            ('tail.ova.gz', hostile.gzip_tail(data, 4 * hostile.GIB)),
        )

    def test_zstd_windows(self) -> None:
        found = []
        # 2^41, 2^31 and 2^28 bytes that a decoder shall keep.
        for window in (0xFF, 0xA8, 0x90):
            data = hostile.zeros_zstd(hostile.GIB, window)
            found.append((f'window{window}.xva.zst', data))
        self.refused('package.undecodable', *found)

    def test_vmdk_grain(self) -> None:
        data = hostile.vmdk_grain_bomb()
        self.refused(
            'vmdk.grain',
            ('bomb.vmdk', data),
            ('bomb.vmdk.gz', gzip.compress(data)),
        )


class HostFileTest(HostileTest):
    """Disks that name files of the host."""

    def test_vmdk_descriptors(self) -> None:
        names = (
            _HOST_FILE,
            str(self.secret),
            '../secret.vhd',
            './../secret.vhd',
            'a/../../secret.vhd',
            '..\\secret.vhd',
            '..',
            'd.vmdk',
        )
        found = []
        for number, name in enumerate(names):
            text = vmdk_packages.descriptor(
                'monolithicFlat', [f'RW 1 FLAT "{name}" 0']
            )
            found += [
                (f'{number}.vmdk', text),
                (f'{number}.vmdk.gz', gzip.compress(text)),
                (f'{number}.ova', hostile.ova('d.vmdk', text)),
            ]
        self.refused(
            (
                'vmdk.extent-outside',
                'vmdk.extents',
                'vmdk.descriptor',
                'disk-image.unsafe',
            ),
            *found,
        )

    def test_vmdk_parents(self) -> None:
        text = vmdk_packages.descriptor(
            'monolithicSparse',
            ['RW 128 SPARSE "d.vmdk"'],
            parent='12345678',
            more=f'parentFileNameHint="{self.secret}"',
        )
        data = vmdk_packages.sparse(_RAW, text=text)
        self.refused(
            'vmdk.delta',
            ('d.vmdk', data),
            ('guest.ova', hostile.ova('d.vmdk', data)),
        )

    def test_vhd_parent_locators(self) -> None:
        secret = str(self.secret)
        found = []
        for number, (locators, name) in enumerate(
            (
                ([vhd_packages.macx(f'file://{secret}')], secret),
                ([vhd_packages.macx('file://../secret.vhd')], 'secret.vhd'),
                ([vhd_packages.w2ru('..\\secret.vhd')], '..\\secret.vhd'),
                ([vhd_packages.w2ku(secret.replace('/', '\\'))], secret),
                ([vhd_packages.w2ru('../secret.vhd')], '../secret.vhd'),
            )
        ):
            data = hostile.child(locators, name)
            found += [
                (f'{number}.vhd', data),
                (f'{number}.vhd.gz', gzip.compress(data, 1)),
                (f'{number}.ova', hostile.ova('d.vhd', data)),
                (
                    f'{number}.tar',
                    hostile.tar([hostile.Member(b'0.vhd', data)]),
                ),
            ]
        self.refused('vhd.parent-missing', *found)

    def images(self) -> list[tuple[str, bytes]]:
        """Images for qemu that name the secret."""
        name = os.fsencode(self.secret)
        backed = qemu_images.qcow2(
            {0: b'x'}, _MIB, backing_offset=2048, backing_size=len(name)
        )
        backed = backed[:2048] + name + backed[2048 + len(name) :]
        return [
            ('backed', backed),
            ('data', qemu_images.qcow2({0: b'x'}, _MIB, incompatible=4)),
        ]

    def test_qcow2_under_other_names(self) -> None:
        found = []
        for name, data in self.images():
            for ending in ('vhd', 'raw', 'qcow2', 'img'):
                found += [
                    (f'{name}.{ending}', data),
                    (
                        f'{name}-{ending}.ova',
                        hostile.ova(f'd.{ending}', data),
                    ),
                ]
        self.refused(('qcow2.backing-file', 'qcow2.data-file'), *found)

    def test_parents_of_vdi_and_vhdx(self) -> None:
        locator = qemu_images.vhdx_items(_MIB, flags=2)
        self.refused(
            ('vdi.parent', 'vhdx.parent'),
            ('d.vdi', qemu_images.vdi({}, _MIB, parent_uuid=b'p' * 16)),
            ('l.vdi', qemu_images.vdi({}, _MIB, link_uuid=b'p' * 16)),
            ('d.vhdx', qemu_images.vhdx({}, _MIB, items=locator)),
        )

    @unittest.skipUnless(shutil.which('strace'), 'strace is not installed')
    def test_as_the_kernel_sees_it(self) -> None:
        """No program and no library opens the secret either."""
        log = self.directory / 'log'
        paths = [
            [self.write(f'{name}.vhd', data)] for name, data in self.images()
        ]
        paths.append(
            [
                self.write(
                    'd.vhd', hostile.child([vhd_packages.w2ru('..\\x')], 'x')
                )
            ]
        )
        text = vmdk_packages.descriptor(
            'monolithicFlat', [f'RW 1 FLAT "{_HOST_FILE}" 0']
        )
        paths.append([self.write('d.vmdk', text)])
        trace = 'trace=open,openat,openat2,execve,readlink'
        self.read(
            *paths, wrapper=('strace', '-f', '-o', str(log), '-e', trace)
        )
        calls = log.read_text()
        self.assertIn(str(self.inside / 'd.vmdk'), calls)
        self.assertNotIn(str(self.secret), calls)
        self.assertNotIn(_HOST_FILE, calls)
        self.assertEqual(1, len(re.findall('execve\\(.* = 0', calls)))

    @unittest.skipUnless(shutil.which('strace'), 'strace is not installed')
    @unittest.skipIf(
        qemu_server.unusable_because(), 'qemu-nbd or libnbd is missing'
    )
    def test_what_qemu_opens(self) -> None:
        """Of an image that is sound, the image alone."""
        log = self.directory / 'log'
        paths = [
            [self.write('d.qcow2', qemu_images.qcow2({0: b'x'}, _MIB))],
            [self.write('d.vdi', qemu_images.vdi({0: b'x'}, _MIB))],
            [self.write('d.vhdx', qemu_images.vhdx({0: b'x'}, _MIB))],
        ]
        trace = 'trace=open,openat,openat2'
        reports = self.read(
            *paths,
            wrapper=('strace', '-f', '-o', str(log), '-e', trace),
            qemu=True,
        )
        self.assertEqual([None] * 3, [report.id for report in reports])
        opened = set(
            re.findall('"([^"]*)".* = [0-9]+$', log.read_text(), re.M)
        )
        # By its number, whatever it is called.
        self.assertIn('/proc/self/fd/', {path[:14] for path in opened})
        system = ('/usr/', '/lib', '/etc/', '/proc/', '/sys/', '/dev/')
        ours = (str(self.inside), str(self.work), sys.prefix, os.getcwd())
        allowed = (*system, *ours)
        self.assertEqual(
            [],
            [
                path
                for path in sorted(opened)
                if path.startswith('/') and not path.startswith(allowed)
            ],
        )
        self.assertNotIn(_HOST_FILE, opened)


class ChangingTest(HostileTest):
    """A package that somebody writes to while it is read."""

    def changed(
        self, how: str, name: str, data: bytes, expected: Collection[str]
    ) -> None:
        path = self.write(name, data)
        (report,) = self.read([path], how=how)
        self.assertIn(report.id, expected, f'{how} {name}: {report.text}')

    def test_in_place(self) -> None:
        vhd = vhd_packages.Vhd(
            16 * _MIB, {place << 21: b'x' * _MIB for place in range(8)}
        ).build()
        for how in ('append', 'truncate', 'empty', 'rewrite'):
            for name, data in (
                ('d.vhd', vhd),
                ('guest.ova', hostile.ova('d.vhd', vhd)),
                ('d.raw', b'\0' * 510 + b'\x55\xaa' + _RAW * 80),
                ('d.vmdk', vmdk_packages.sparse(_RAW * 40)),
            ):
                with self.subTest(how=how, name=name):
                    self.changed(
                        how,
                        name,
                        data,
                        ('package.changed', 'package.truncated'),
                    )

    def test_in_a_stream(self) -> None:
        # Random bytes, so that not all is read at once.
        noise = os.urandom(4 * _MIB)
        disk = packages.fixed_vhd(noise)
        data = gzip.compress(hostile.ova('d.vhd', disk), 1)
        for how in ('append', 'truncate', 'empty', 'rewrite'):
            with self.subTest(how):
                self.changed(
                    how,
                    'guest.ova.gz',
                    data,
                    (
                        'package.changed',
                        'package.truncated',
                        'package.undecodable',
                        'package.excess-data',
                    ),
                )

    def test_exchanged(self) -> None:
        """What takes the file's place is not opened."""
        vhd = vhd_packages.Vhd(4 * _MIB, {0: b'x' * _MIB}).build()
        for how in ('replace', 'remove'):
            path = self.write('d.vhd', vhd)
            (report,) = self.read([path], how=how)
            self.assertIn(report.id, (None, 'package.changed'), report.text)
            pathlib.Path(path).unlink(missing_ok=True)


class FolderTest(HostileTest):
    """Directories with what is no file."""

    def setUp(self) -> None:
        super().setUp()
        text = packages.xencenter_ovf([packages.Disk('d', 'd.raw', _MIB)])
        self.write('guest.ovf', text)
        self.disk = self.inside / 'd.raw'

    def folder(self, error_id: str | Collection[str]) -> None:
        allowed = {error_id} if isinstance(error_id, str) else set(error_id)
        for report in self.read(
            [str(self.inside)], [str(self.inside / 'guest.ovf')]
        ):
            self.assertIn(report.id, allowed, report.text)

    def test_link_to_outside(self) -> None:
        for target in (str(self.secret), '../secret.vhd', _HOST_FILE):
            with self.subTest(target):
                self.disk.symlink_to(target)
                self.folder('package.unsafe-member')
                self.disk.unlink()

    def test_link_among_directories(self) -> None:
        text = packages.xencenter_ovf(
            [packages.Disk('d', 'sub/secret.vhd', _MIB)]
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
        self.disk.write_bytes(_RAW)
        descriptor = self.inside / 'guest.ovf'
        descriptor.unlink()
        descriptor.symlink_to(self.secret)
        self.folder('package.unsafe-member')

    def test_manifest(self) -> None:
        self.disk.write_bytes(_RAW)
        manifest = self.inside / 'guest.mf'
        os.mkfifo(manifest)
        self.folder('package.unsafe-member')
        manifest.unlink()
        manifest.symlink_to(self.secret)
        self.folder('package.unsafe-member')

    def test_manifest_that_names_others(self) -> None:
        self.disk.write_bytes(_RAW)
        for name in ('../secret.vhd', _HOST_FILE, str(self.secret)):
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
            {0: b'x'}, _MIB, backing_offset=2048, backing_size=9
        )
        self.refused('disk.vhd', data, 'qcow2.backing-file')

    def test_host_file(self) -> None:
        text = vmdk_packages.descriptor(
            'monolithicFlat', [f'RW 1 FLAT "{_HOST_FILE}" 0']
        )
        data = hostile.ova('d.vmdk', text)
        self.refused('guest.ova', data, 'vmdk.extent-outside')

    def test_disk_beyond_its_capacity(self) -> None:
        self.refused('guest.ova', _bomb_in_ova(), 'raw.beyond-capacity')


@functools.cache
def _bomb_in_ova() -> bytes:
    """A disk of four gibibytes that shall have one mebibyte."""
    text = packages.xencenter_ovf([packages.Disk('d', 'd.raw.gz', _MIB)])
    return hostile.tar(
        [
            hostile.Member(b'guest.ovf', text),
            hostile.Member(b'd.raw.gz', hostile.zeros_gzip(4 * hostile.GIB)),
        ]
    )
