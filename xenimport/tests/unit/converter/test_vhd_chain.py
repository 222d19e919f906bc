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

import builtins
from collections.abc import Mapping
import os
import threading
import typing
from unittest import mock

from xenimport import exceptions
from xenimport import model
from xenimport.converter import base
from xenimport.converter import region
from xenimport.converter import vhd
from xenimport.converter import vhd_chain
from xenimport.tests import packages
from xenimport.tests import vhd_packages
from xenimport.tests.unit.converter import cases

BLOCK = 64 * 1024
SIZE = 4 * BLOCK
BASE = {0: cases.noise(BLOCK, 1), 2 * BLOCK: cases.noise(BLOCK, 2)}
#: In the first block some sectors, in the second all, in the last one.
CHILD = {
    512: cases.noise(1024, 3),
    BLOCK: cases.noise(BLOCK, 4),
    SIZE - 512: cases.noise(512, 5),
}
JOINED = vhd_packages.overlaid(BASE, CHILD, size=SIZE)
uuid_of = vhd_packages.uuid_of


def parent(**options: typing.Any) -> bytes:
    settings: dict[str, typing.Any] = {
        'size': SIZE,
        'writes': BASE,
        'block_size': BLOCK,
        'identity': uuid_of(2),
    }
    return vhd_packages.Vhd(**(settings | options)).build()


def child(**options: typing.Any) -> bytes:
    settings: dict[str, typing.Any] = {
        'size': SIZE,
        'writes': CHILD,
        'block_size': BLOCK,
        'identity': uuid_of(1),
        'parent': uuid_of(2),
    }
    return vhd_packages.Vhd(**(settings | options)).build()


class ChainTestCase(cases.DiskTestCase):
    def members(self, contents: Mapping[str, bytes]) -> model.Package:
        """Members one after the other in one file, as in a tar."""
        path = self.path('package')
        regions = {}
        with open(path, 'wb') as stream:
            for name, content in contents.items():
                stream.write(b'#' * 512)
                piece = model.Piece(stream.tell(), len(content), 0)
                regions[name] = model.Region(path, name, (piece,))
                stream.write(content)
        return model.Package(path, 'ova', regions)

    def chain(
        self, contents: Mapping[str, bytes], name: str = 'child.vhd'
    ) -> base.DiskImage:
        package = self.members(contents)
        disk = model.Disk('d', 'd', 0, package.members[name])
        image = vhd.VhdConverter().open(package, disk)
        self.addCleanup(image.close)
        return image

    def joined(self, contents: Mapping[str, bytes]) -> bytes:
        image = self.chain(contents)
        return image.pread(0, image.virtual_size)

    def refused_chain(
        self, contents: Mapping[str, bytes], error_id: str
    ) -> str:
        with self.assertRaises(exceptions.DiskImageError) as caught:
            self.chain(contents)
        self.assertEqual(error_id, caught.exception.id)
        return str(caught.exception)


class JoinedTest(ChainTestCase):
    def test_parent_by_uuid(self) -> None:
        image = self.chain({'child.vhd': child(), 'other.vhd': parent()})
        self.assertEqual(SIZE, image.virtual_size)
        self.assertEqual(JOINED, image.pread(0, SIZE))
        self.assertEqual(
            ['child.vhd', 'other.vhd'],
            [region.name for region in image.regions],
        )

    def test_any_offset_and_length(self) -> None:
        image = self.chain({'child.vhd': child(), 'other.vhd': parent()})
        for offset, length in (
            (1, 1),
            (511, 2),
            (500, 1100),
            (BLOCK - 3, 7),
            (2 * BLOCK - 700, BLOCK + 1400),
            (SIZE - 513, 513),
        ):
            with self.subTest(offset=offset, length=length):
                self.assertEqual(
                    JOINED[offset : offset + length],
                    image.pread(offset, length),
                )

    def test_what_was_in_the_buffer_does_not_stay(self) -> None:
        image = self.chain({'child.vhd': child(), 'other.vhd': parent()})
        buffer = bytearray(b'!' * SIZE)
        image.pread_into(memoryview(buffer), 0)
        self.assertEqual(JOINED, buffer)

    def test_several_threads(self) -> None:
        image = self.chain({'child.vhd': child(), 'other.vhd': parent()})
        found: list[bytes] = []

        def read() -> None:
            found.extend(image.pread(0, SIZE) for _ in range(10))

        threads = [threading.Thread(target=read) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.assertEqual([JOINED] * 30, found)

    def test_extents_are_those_of_all_layers(self) -> None:
        image = self.chain({'child.vhd': child(), 'other.vhd': parent()})
        self.assertEqual(
            [
                (0, 3 * BLOCK, True),
                (3 * BLOCK, BLOCK - 4096, False),
                (SIZE - 4096, 4096, True),
            ],
            list(image.extents()),
        )

    def test_extents_of_a_layer_within_those_of_another(self) -> None:
        contents = {
            'child.vhd': child(writes={0: cases.noise(2 * BLOCK)}),
            'other.vhd': parent(writes={4096: cases.noise(4096)}),
        }
        self.assertEqual(
            [(0, 2 * BLOCK, True), (2 * BLOCK, 2 * BLOCK, False)],
            list(self.chain(contents).extents()),
        )

    def test_three_layers_of_three_block_sizes(self) -> None:
        top = {1024: cases.noise(512, 6), 3 * BLOCK: cases.noise(512, 7)}
        contents = {
            'child.vhd': child(
                writes=top,
                identity=uuid_of(9),
                parent=uuid_of(1),
                block_size=4096,
            ),
            'base.vhd': parent(block_size=2 * BLOCK),
            'middle.vhd': child(),
        }
        image = self.chain(contents)
        self.assertEqual(
            vhd_packages.overlaid(BASE, CHILD, top, size=SIZE),
            image.pread(0, SIZE),
        )
        self.assertEqual(
            ['child.vhd', 'middle.vhd', 'base.vhd'],
            [region.name for region in image.regions],
        )

    def test_many_small_stretches_of_each_layer(self) -> None:
        # As random writes leave them behind.
        top = {
            offset: cases.noise(512, offset)
            for offset in range(1024, SIZE, 2048)
        }
        middle = {
            offset: cases.noise(1024, offset)
            for offset in range(0, SIZE - BLOCK, 3072)
        }
        contents = {
            'child.vhd': child(
                writes=top, identity=uuid_of(9), parent=uuid_of(1)
            ),
            'middle.vhd': child(writes=middle, size=SIZE - 1536),
            'base.vhd': parent(),
        }
        expected = vhd_packages.overlaid(
            vhd_packages.overlaid(BASE, middle, size=SIZE - 1536),
            top,
            size=SIZE,
        )
        image = self.chain(contents)
        for offset, length in ((0, SIZE), (700, 3 * BLOCK), (BLOCK, 5000)):
            buffer = bytearray(b'!' * length)
            image.pread_into(memoryview(buffer), offset)
            with self.subTest(offset=offset):
                self.assertEqual(expected[offset : offset + length], buffer)
        with mock.patch.object(
            region.RegionReader,
            'read_into',
            autospec=True,
            side_effect=region.RegionReader.read_into,
        ) as reads:
            image.pread(0, SIZE)
        # A block and a bitmap of each, not a read for each stretch.
        self.assertLess(reads.call_count, 40)

    def test_fixed_parent(self) -> None:
        data = cases.noise(SIZE)
        fixed = packages.fixed_vhd(data)
        tail = fixed[SIZE:]
        tail = packages.with_checksum(tail[:68] + uuid_of(2) + tail[84:], 64)
        self.assertEqual(
            vhd_packages.overlaid(data, CHILD, size=SIZE),
            self.joined({'child.vhd': child(), 'b.vhd': data + tail}),
        )

    def test_hidden_parent_with_an_old_checksum(self) -> None:
        # What blktap's first versions left behind of every parent.
        content = bytearray(parent(creator_version=0x00010001))
        content[85] = content[len(content) - 512 + 85] = 1
        self.assertEqual(
            JOINED, self.joined({'child.vhd': child(), 'b': bytes(content)})
        )

    def test_findings_name_their_file(self) -> None:
        content = parent()
        image = self.chain(
            {'child.vhd': child(), 'b.vhd': content[:-512] + b'x' * 512}
        )
        self.assertEqual(
            [
                ('vhd.geometry-differs', 'child.vhd'),
                ('vhd.footer-copy', 'b.vhd'),
            ],
            [(finding.id, finding.subject) for finding in image.findings],
        )

    def test_a_change_of_the_parent_is_noticed(self) -> None:
        package = self.members({'child.vhd': child()})
        path = self.path('other')
        with open(path, 'wb') as stream:
            stream.write(parent())
        member = model.Region(
            path, 'other', (model.Piece(0, len(parent()), 0),)
        )
        members = dict(package.members) | {'other': member}
        package = model.Package(package.path, 'disk', members)
        disk = model.Disk('d', 'd', 0, members['child.vhd'])
        with vhd.VhdConverter().open(package, disk) as image:
            image.check_unchanged()
            os.utime(path, ns=(1, 1))
            with self.assertRaises(exceptions.DiskImageError) as caught:
                image.check_unchanged()
        self.assertEqual('package.changed', caught.exception.id)
        self.assertIn('other', caught.exception.where or '')

    def test_files_are_closed(self) -> None:
        before = len(os.listdir('/proc/self/fd'))
        image = self.chain({'child.vhd': child(), 'other.vhd': parent()})
        image.close()
        self.assertEqual(before, len(os.listdir('/proc/self/fd')))
        self.refused_chain({'child.vhd': child()}, 'vhd.parent-missing')
        self.assertEqual(before, len(os.listdir('/proc/self/fd')))


class SizesTest(ChainTestCase):
    """Beyond its end a layer hides what is below it."""

    def test_child_larger_than_its_parent(self) -> None:
        size = SIZE + 3 * BLOCK
        writes = CHILD | {SIZE + 512: cases.noise(512, 8)}
        image = self.chain(
            {'child.vhd': child(size=size, writes=writes), 'b.vhd': parent()}
        )
        self.assertEqual(
            vhd_packages.overlaid(BASE, writes, size=size),
            image.pread(0, size),
        )
        *_, last = image.extents()
        self.assertEqual((size, False), (last[0] + last[1], last[2]))

    def test_child_smaller_than_its_parent(self) -> None:
        size = 2 * BLOCK + 512
        writes = {512: CHILD[512]}
        image = self.chain(
            {'child.vhd': child(size=size, writes=writes), 'b.vhd': parent()}
        )
        self.assertEqual(size, image.virtual_size)
        self.assertEqual(
            vhd_packages.overlaid(BASE, writes, size=size),
            image.pread(0, size),
        )
        self.assertEqual(
            [(0, BLOCK), (2 * BLOCK, 512)],
            [
                (offset, length)
                for offset, length, allocated in image.extents()
                if allocated
            ],
        )

    def test_short_layer_in_the_middle(self) -> None:
        # The disk was made smaller once, then larger again: what the base
        # has beyond the middle's end has been cut off.
        image = self.chain(
            {
                'child.vhd': child(
                    writes={}, identity=uuid_of(9), parent=uuid_of(1)
                ),
                'middle.vhd': child(size=BLOCK + 512, writes={}),
                'base.vhd': parent(
                    writes={
                        0: BASE[0],
                        BLOCK: cases.noise(BLOCK, 6),
                        2 * BLOCK: BASE[2 * BLOCK],
                    }
                ),
            }
        )
        expected = BASE[0] + cases.noise(BLOCK, 6)[:512]
        self.assertEqual(expected.ljust(SIZE, b'\0'), image.pread(0, SIZE))
        self.assertEqual(
            [(0, BLOCK + 512, True), (BLOCK + 512, SIZE - BLOCK - 512, False)],
            list(image.extents()),
        )


class RawParentTest(ChainTestCase):
    def contents(self, raw: bytes, **options: typing.Any) -> dict[str, bytes]:
        options = {
            'parent': vhd_packages.NO_UUID,
            'locators': [vhd_packages.macx('file://./raw%20disk')],
        } | options
        return {'child.vhd': child(**options), 'raw disk': raw}

    def test_by_name(self) -> None:
        raw = cases.noise(SIZE)
        image = self.chain(self.contents(raw))
        self.assertEqual(
            vhd_packages.overlaid(raw, CHILD, size=SIZE), image.pread(0, SIZE)
        )

    def test_shorter_raw_that_ends_in_a_sector(self) -> None:
        raw = cases.noise(BLOCK + 100)
        image = self.chain(self.contents(raw, writes={}))
        self.assertEqual(raw.ljust(SIZE, b'\0'), image.pread(0, SIZE))
        for offset, length, _ in image.extents():
            self.assertEqual((0, 0), (offset % 512, length % 512))

    def test_vhd_in_the_place_of_the_raw_parent(self) -> None:
        text = self.refused_chain(
            self.contents(parent()), 'vhd.parent-differs'
        )
        self.assertIn('raw disk', text)

    def test_damaged_vhd_in_the_place_of_the_raw_parent(self) -> None:
        content = parent()
        damaged = b'conectix' + b'?' * 504 + content[512:-400] + b'?' * 400
        self.refused_chain(self.contents(damaged), 'vhd.parent-differs')

    def test_missing(self) -> None:
        contents = self.contents(b'')
        del contents['raw disk']
        text = self.refused_chain(contents, 'vhd.parent-missing')
        self.assertIn('raw disk', text)

    def test_without_a_name(self) -> None:
        # A RAW disk has no uuid: any member could be taken for it.
        contents = self.contents(cases.noise(SIZE), locators=[])
        self.refused_chain(contents, 'vhd.parent-missing')


class NamesTest(ChainTestCase):
    """The names in the child: of use, but not to be trusted."""

    def test_every_kind_of_name(self) -> None:
        raw = cases.noise(SIZE)
        expected = vhd_packages.overlaid(raw, CHILD, size=SIZE)
        for options in (
            {'locators': [vhd_packages.w2ru('.\\deep\\RAW.img')]},
            {'locators': [vhd_packages.w2ku('C:\\disks\\raw.img')]},
            {'locators': [vhd_packages.macx('file:///var/run/raw.img')]},
            {
                'locators': [vhd_packages.w2ru('a\\raw.img')],
                'space_in_bytes': True,
            },
            {'parent_name': '/var/run/sr-mount/1/raw.img'},
            {
                'locators': [
                    vhd_packages.w2ru('gone'),
                    (b'Mac ', b'x'),
                    vhd_packages.w2ku('raw.img\0?'),
                ]
            },
        ):
            with self.subTest(options=options):
                content = child(parent=vhd_packages.NO_UUID, **options)
                self.assertEqual(
                    expected,
                    self.joined({'child.vhd': content, 'd/raw.img': raw}),
                )

    def test_the_one_beside_the_child_comes_first(self) -> None:
        other = parent(writes={})
        locators = [vhd_packages.w2ru('.\\1.vhd')]
        package = self.members(
            {
                'a/1.vhd': other,
                'b/0.vhd': child(locators=locators),
                'b/1.vhd': parent(),
            }
        )
        disk = model.Disk('d', 'd', 0, package.members['b/0.vhd'])
        with vhd.VhdConverter().open(package, disk) as image:
            self.assertEqual(JOINED, image.pread(0, SIZE))

    def test_named_member_with_another_uuid(self) -> None:
        text = self.refused_chain(
            {
                'child.vhd': child(locators=[vhd_packages.w2ru('1.vhd')]),
                '1.vhd': parent(identity=uuid_of(7)),
            },
            'vhd.parent-differs',
        )
        self.assertIn('02020202-0202-4001-8002-020202020202', text)
        self.assertIn('07070707-0707-4001-8007-070707070707', text)

    def test_named_member_with_another_uuid_beside_the_right_one(
        self,
    ) -> None:
        self.assertEqual(
            JOINED,
            self.joined(
                {
                    'child.vhd': child(locators=[vhd_packages.w2ru('1.vhd')]),
                    '1.vhd': parent(identity=uuid_of(7), writes={}),
                    'moved.vhd': parent(),
                }
            ),
        )

    def test_missing(self) -> None:
        text = self.refused_chain(
            {
                'child.vhd': child(
                    locators=[vhd_packages.w2ku('C:\\x\\Base 1.vhd')],
                    parent_name='other.vhd',
                ),
                'readme.txt': b'hello',
            },
            'vhd.parent-missing',
        )
        self.assertIn('02020202-0202-4001-8002-020202020202', text)
        self.assertIn("'Base 1.vhd', 'other.vhd'", text)
        self.assertIn('Fix:', text)

    def test_compressed_members_are_said_to_be_unread(self) -> None:
        package = self.members({'child.vhd': child(), 'b.vhd.gz': b'?'})
        gz = package.members['b.vhd.gz']
        members = dict(package.members) | {
            'b.vhd.gz': model.Region(
                gz.path, gz.name, gz.pieces, False, 'gzip'
            )
        }
        disk = model.Disk('d', 'd', 0, package.members['child.vhd'])
        with self.assertRaises(exceptions.DiskImageError) as caught:
            vhd.VhdConverter().open(
                model.Package(package.path, 'ova', members), disk
            )
        self.assertEqual('vhd.parent-missing', caught.exception.id)
        self.assertIn('b.vhd.gz', str(caught.exception))

    def test_two_with_the_same_uuid(self) -> None:
        self.refused_chain(
            {'child.vhd': child(), 'a': parent(), 'b': parent()},
            'vhd.parent-ambiguous',
        )
        self.assertEqual(
            JOINED,
            self.joined(
                {
                    'child.vhd': child(locators=[vhd_packages.w2ru('b')]),
                    'a': parent(writes={}),
                    'b': parent(),
                }
            ),
        )


class HostileTest(ChainTestCase):
    def test_nothing_outside_the_package_is_opened(self) -> None:
        opened: list[str] = []
        true_open = os.open

        def watched(path: str, *args: int) -> int:
            opened.append(path)
            return true_open(path, *args)

        outside = self.path('secret.raw')
        with open(outside, 'wb') as stream:
            stream.write(b'secret'.ljust(SIZE, b'.'))
        names = [
            outside,
            f'file://{outside}',
            '/etc/passwd',
            '..\\..\\etc\\passwd',
            '\\\\server\\share\\x.vhd',
            '..',
            '.',
            '',
        ]
        content = child(
            parent=vhd_packages.NO_UUID,
            locators=[vhd_packages.w2ku(name) for name in names[:6]]
            + [vhd_packages.macx(name) for name in names[1:3]],
            parent_name=outside,
        )
        with (
            mock.patch.object(os, 'open', watched),
            mock.patch.object(
                builtins, 'open', autospec=True, side_effect=AssertionError
            ),
            self.assertRaises(exceptions.DiskImageError) as caught,
        ):
            member = model.Region(
                self.path('p'),
                'child.vhd',
                (model.Piece(0, len(content), 0),),
            )
            descriptor = true_open(member.path, os.O_WRONLY | os.O_CREAT)
            os.write(descriptor, content)
            os.close(descriptor)
            package = model.Package(member.path, 'ova', {'child.vhd': member})
            vhd.VhdConverter().open(package, model.Disk('d', 'd', 0, member))
        self.assertEqual('vhd.parent-missing', caught.exception.id)
        self.assertEqual({self.path('p')}, set(opened))

    def test_own_parent(self) -> None:
        self.refused_chain(
            {'child.vhd': child(parent=uuid_of(1))}, 'vhd.chain-loop'
        )

    def test_loop_of_two(self) -> None:
        self.refused_chain(
            {
                'child.vhd': child(),
                'other.vhd': child(identity=uuid_of(2), parent=uuid_of(1)),
            },
            'vhd.chain-loop',
        )

    def test_raw_parent_that_is_the_child(self) -> None:
        self.refused_chain(
            {
                'child.vhd': child(
                    parent=vhd_packages.NO_UUID, parent_name='child.vhd'
                )
            },
            'vhd.parent-differs',
        )

    def chain_of(self, depth: int) -> dict[str, bytes]:
        contents = {
            'child.vhd' if number == 1 else f'{number}': child(
                writes={}, identity=uuid_of(number), parent=uuid_of(number + 1)
            )
            for number in range(1, depth)
        }
        contents['base'] = parent(identity=uuid_of(depth))
        return contents

    def test_longest_chain(self) -> None:
        image = self.chain(self.chain_of(64))
        self.assertEqual(64, len(image.regions))
        self.assertEqual(
            vhd_packages.overlaid(BASE, size=SIZE), image.pread(0, SIZE)
        )

    def test_longer_chain(self) -> None:
        self.refused_chain(self.chain_of(65), 'vhd.chain-too-long')

    def test_very_many_members(self) -> None:
        contents = {f'm{number}': b'' for number in range(1001)}
        self.refused_chain(
            {'child.vhd': child()} | contents | {'b': parent()},
            'vhd.parent-missing',
        )

    def test_tables_that_are_large_together(self) -> None:
        with mock.patch.object(vhd_chain, 'MAX_PAGES', 1):
            self.refused_chain(
                {'child.vhd': child(), 'b': parent()}, 'vhd.table'
            )

    def test_damaged_parent(self) -> None:
        content = bytearray(parent())
        content[600] ^= 1  # in the header
        self.refused_chain(
            {'child.vhd': child(), 'b': bytes(content)}, 'vhd.checksum'
        )

    def test_long_name_is_not_read(self) -> None:
        content = child(
            locators=[vhd_packages.w2ru('b' * (1 << 20))],
            parent=vhd_packages.NO_UUID,
            parent_name='raw',
        )
        package = self.members({'child.vhd': content, 'raw': b'?' * 512})
        chain = vhd_chain.Chain(package)
        self.addCleanup(chain.release)
        chain.open(package.members['child.vhd'])
        self.assertLess(chain.links[0].layer.reader.bytes_read, 8192)

    def test_locators_that_lie(self) -> None:
        content = bytearray(child(locators=[vhd_packages.w2ru('b')]))
        for place, value in ((584, 1 << 31), (592, 1 << 62)):
            with self.subTest(place=place):
                header = bytearray(content[512:1536])
                size = 4 if place == 584 else 8
                header[place : place + size] = value.to_bytes(size, 'big')
                right = packages.with_checksum(bytes(header), 36)
                lying = bytes(content[:512]) + right + bytes(content[1536:])
                self.assertEqual(
                    JOINED,
                    self.joined({'child.vhd': lying, 'b': parent()}),
                )
