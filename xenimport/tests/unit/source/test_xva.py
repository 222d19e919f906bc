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


"""The XVA source: where the disks lie, in place and in a stream."""

from collections.abc import Iterator
from collections.abc import Sequence
import gzip
import io
import os
import tempfile
import typing
import unittest

import zstandard

from xenimport import exceptions
from xenimport import model
from xenimport.source import base
from xenimport.source import xva
from xenimport import stream as stream_room
from xenimport import stream_packages
from xenimport.tests import packages
from xenimport.tests import xva_packages

MIB = xva_packages.MIB
#: Chunks in most tests; a mebibyte is only what real ones have.
CHUNK = 4096

Members = list[tuple[str, bytes]]


def content(size: int, *chunks: int) -> bytes:
    """A disk of zeros but for some chunks."""
    data = bytearray(size)
    for number in chunks:
        start = number * CHUNK
        data[start : start + CHUNK] = bytes((number + 1,)) * len(
            data[start : start + CHUNK]
        )
    return bytes(data)


class XvaTestCase(unittest.TestCase):
    def setUp(self) -> None:
        directory = tempfile.TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        self.path = os.path.join(directory.name, 'guest.xva')

    def write(self, *disks: xva_packages.Disk) -> str:
        xva_packages.write_file(self.path, disks, length=CHUNK)
        return self.path

    def members(self, *disks: xva_packages.Disk) -> Members:
        """All members, for a test to change."""
        found = [
            ('ova.xml', xva_packages.description(xva_packages.guest(disks)))
        ]
        for disk in disks:
            found.extend(xva_packages.members(disk, CHUNK))
        return found

    def write_members(self, members: Members) -> str:
        with open(self.path, 'wb') as file:
            xva_packages.write_members(file, iter(members))
        return self.path

    def in_place(
        self, request: base.Request = base.DEFAULT
    ) -> dict[str, bytes]:
        """The disks as their regions say, checksums left alone."""
        system = xva.XvaSource().open(self.path, request)
        return {disk.id: self.region(disk.region) for disk in system.disks}

    def region(self, region: model.Region) -> bytes:
        data = bytearray(region.size)
        with open(region.path, 'rb') as file:
            for piece in region.pieces:
                file.seek(piece.offset)
                end = min(piece.region_offset + piece.length, region.size)
                length = end - piece.region_offset
                data[piece.region_offset : end] = file.read(length)
        return bytes(data)

    def arriving(
        self, request: base.Request = base.DEFAULT
    ) -> dict[str, bytes]:
        """The disks as they come in a stream."""
        with open(self.path, 'rb') as file:
            stream = TestStream(file.read())
        system = xva.XvaSource().open_stream(stream, request)
        assert system.package.arrivals is not None
        return {
            name: self.runs(disk) for name, disk in system.package.arrivals
        }

    def runs(self, disk: stream_room.Stream) -> bytes:
        assert isinstance(disk, stream_room.Sparse)
        runs = []
        while (run := disk.next_run()) is not None:
            offset, length = run
            runs.append((offset, disk.take(length)))
            self.assertEqual(b'', disk.read(1))
        data = bytearray(disk.size or 0)
        for offset, found in runs:
            data[offset : offset + len(found)] = found
        return bytes(data)

    def both_ways(self) -> Iterator[dict[str, bytes]]:
        for read in (self.in_place, self.arriving):
            with self.subTest(read.__name__):
                yield read()


class TestStream(stream_room.Stream):
    """Bytes that come a few at a time."""

    def __init__(self, data: bytes) -> None:
        super().__init__('-')
        self._data = io.BytesIO(data)

    def _read_into(self, buffer: memoryview) -> int:
        return self._data.readinto(buffer[:1000])


class DiskTest(XvaTestCase):
    def check(self, *disks: xva_packages.Disk) -> None:
        self.write(*disks)
        expected = {disk.identity: disk.content for disk in disks}
        for found in self.both_ways():
            self.assertEqual(expected, found)

    def test_whole(self) -> None:
        self.check(xva_packages.Disk('Ref:1', content(4 * CHUNK, 0, 1, 2, 3)))

    def test_gaps(self) -> None:
        self.check(xva_packages.Disk('Ref:1', content(9 * CHUNK, 2, 6)))

    def test_only_zeros(self) -> None:
        self.check(xva_packages.Disk('Ref:1', bytes(5 * CHUNK)))

    def test_one_short_chunk(self) -> None:
        self.check(xva_packages.Disk('Ref:1', content(512, 0)))

    def test_short_last_chunk(self) -> None:
        self.check(xva_packages.Disk('Ref:1', content(3 * CHUNK + 512, 3)))

    def test_padded_last_chunk(self) -> None:
        self.check(
            xva_packages.Disk(
                'Ref:1', content(3 * CHUNK + 512, 3), padded=True
            ),
            xva_packages.Disk('Ref:2', b'x' * 512, '1', padded=True),
        )

    def test_keep_alives(self) -> None:
        # They take the numbers 1, 3, 4 and 5 away from chunks.
        for chunks in ((1,), (2,), (4,), (1, 2, 3, 4, 5), ()):
            with self.subTest(chunks=chunks):
                self.check(
                    xva_packages.Disk(
                        'Ref:1',
                        content(7 * CHUNK, *chunks),
                        keep_alives=(1, 3, 4, 5),
                    )
                )

    def test_kinds_of_checksums(self) -> None:
        self.check(
            *(
                xva_packages.Disk(
                    f'Ref:{number}',
                    content(3 * CHUNK, 1),
                    str(number),
                    checksums=kind,
                )
                for number, kind in enumerate(('xxhash', 'checksum', ''))
            )
        )

    def test_names_that_begin_alike(self) -> None:
        self.check(
            xva_packages.Disk('Ref:1', content(2 * CHUNK, 0), '0'),
            xva_packages.Disk('Ref:10', content(3 * CHUNK, 2), '1'),
            xva_packages.Disk('Ref:100', content(4 * CHUNK, 1), '2'),
        )

    def test_disks_are_in_the_order_of_devices(self) -> None:
        self.write(
            xva_packages.Disk('Ref:10', bytes(512), '1'),
            xva_packages.Disk('Ref:9', bytes(512), '0'),
        )
        system = xva.XvaSource().open(self.path)
        self.assertEqual(
            [('Ref:9', 0), ('Ref:10', 1)],
            [(disk.id, disk.index) for disk in system.disks],
        )
        # In the package they are in the order of names.
        self.assertEqual(['Ref:10', 'Ref:9'], list(self.arriving()))

    def test_more_than_eight_digits(self) -> None:
        # Only the form of the name is meant here.
        disk = xva_packages.Disk('Ref:1', content(2 * CHUNK, 0, 1))
        self.write_members(
            [
                (name.replace('/', '/0'), data)
                for name, data in self.members(disk)
            ]
        )
        for found in self.both_ways():
            self.assertEqual({'Ref:1': disk.content}, found)

    def test_what_is_skipped(self) -> None:
        """Other VDIs that are described, and members that are none."""
        disk = xva_packages.Disk('Ref:2', content(2 * CHUNK, 1))
        memory = xva_packages.Disk('Ref:1', content(3 * CHUNK, 1))
        after = xva_packages.Disk('Ref:3', content(3 * CHUNK, 1))
        objects = xva_packages.guest([disk], power_state='Suspended')
        for other in (memory, after):
            objects.append(
                xva_packages.record('VDI', other.identity, {'type': 'x'})
            )
        self.write_members(
            [
                ('ova.xml', xva_packages.description(objects)),
                *xva_packages.members(memory, CHUNK),
                ('notes/read.me', b'hello'),
                *xva_packages.members(disk, CHUNK),
                *xva_packages.members(after, CHUNK),
                ('checksum.xml', b'<value/>'),
            ]
        )
        for found in self.both_ways():
            self.assertEqual({'Ref:2': disk.content}, found)
        (finding,) = xva.XvaSource().open(self.path).findings
        self.assertEqual('package.xva-suspended', finding.id)

    def test_chosen_system(self) -> None:
        disks = [
            xva_packages.Disk('Ref:1', content(2 * CHUNK, 0)),
            xva_packages.Disk('Ref:2', content(2 * CHUNK, 1)),
        ]
        objects = [
            *xva_packages.guest(disks[:1], 'Ref:8', name_label='a'),
            *xva_packages.guest(disks[1:], 'Ref:9', name_label='b'),
        ]
        xva_packages.write_file(self.path, disks, objects, CHUNK)
        request = base.Request(system='b')
        expected = {'Ref:2': disks[1].content}
        self.assertEqual(expected, self.in_place(request))
        self.assertEqual(expected, self.arriving(request))


class SystemTest(XvaTestCase):
    def test_fields(self) -> None:
        self.write(xva_packages.Disk('Ref:1', bytes(2 * CHUNK)))
        system = xva.XvaSource().open(self.path)
        self.assertEqual('guest', system.name)
        self.assertEqual(('xva', self.path), (
            system.package.format, system.package.path
        ))  # fmt: skip
        self.assertEqual(4, system.vcpus)
        self.assertEqual(2 << 30, system.memory)
        self.assertIs(model.Firmware.BIOS, system.firmware)
        (disk,) = system.disks
        self.assertEqual('raw', disk.format)
        self.assertEqual(2 * CHUNK, disk.capacity)
        self.assertEqual('disk 0', disk.name)
        self.assertEqual({'Ref:1': disk.region}, system.package.members)

    def test_regions_of_a_stream(self) -> None:
        self.write(xva_packages.Disk('Ref:1', bytes(2 * CHUNK)))
        with open(self.path, 'rb') as file:
            stream = TestStream(file.read())
        (disk,) = xva.XvaSource().open_stream(stream).disks
        self.assertEqual(
            model.Region('-', 'Ref:1', (), seekable=False, length=2 * CHUNK),
            disk.region,
        )

    def test_name_of_the_file(self) -> None:
        disk = xva_packages.Disk('Ref:1', bytes(512))
        xva_packages.write_file(
            self.path, [disk], xva_packages.guest([disk], name_label='')
        )
        self.assertEqual('guest', xva.XvaSource().open(self.path).name)

    def test_checksums_of_pieces(self) -> None:
        # XXH64 and SHA-1 of nothing but the letter a: xxHash's and the
        # standard's test vectors.
        for kind, expected in (
            ('xxhash', 'xxh64:d24ec4f1a98c6e5b'),
            ('checksum', 'sha1:86f7e437faa5a7fce15d1ddcb9eaeaea377667b8'),
            ('', None),
        ):
            members = self.members(
                xva_packages.Disk('Ref:1', b'a', checksums=kind)
            )
            if kind:
                digits = expected.partition(':')[2] if expected else ''
                self.assertEqual(digits.encode(), members[-1][1].lower())
            self.write_members(members)
            (disk,) = xva.XvaSource().open(self.path).disks
            (piece,) = disk.region.pieces
            self.assertEqual(expected, piece.checksum)
            self.assertEqual({'Ref:1': b'a'}, self.arriving())

    def test_piece_is_the_chunk_in_place(self) -> None:
        self.write(xva_packages.Disk('Ref:1', content(3 * CHUNK, 1)))
        (disk,) = xva.XvaSource().open(self.path).disks
        first, second, third = disk.region.pieces
        self.assertEqual(
            [0, CHUNK, 2 * CHUNK],
            [p.region_offset for p in (first, second, third)],
        )
        with open(self.path, 'rb') as file:
            file.seek(second.offset)
            self.assertEqual(b'\2' * CHUNK, file.read(second.length))


class ProbeTest(XvaTestCase):
    def probe(self, data: bytes, name: str = 'guest') -> bool:
        path = os.path.join(os.path.dirname(self.path), name)
        with open(path, 'wb') as file:
            file.write(data)
        return xva.XvaSource().probe(path)

    def package(self) -> bytes:
        stream = io.BytesIO()
        xva_packages.write(stream, [xva_packages.Disk('Ref:1', bytes(512))])
        return stream.getvalue()

    def test_by_content(self) -> None:
        self.assertTrue(self.probe(self.package()))
        self.assertTrue(
            xva.XvaSource().probe_stream(TestStream(self.package()))
        )

    def test_other_packages(self) -> None:
        packages.write_ova(self.path, [('a.ovf', b''), ('ova.xml', b'')])
        with open(self.path, 'rb') as file:
            data = file.read()
        self.assertFalse(self.probe(data))
        self.assertFalse(xva.XvaSource().probe_stream(TestStream(data)))
        for data in (b'', bytes(4096), b'conectix' + bytes(504)):
            self.assertFalse(self.probe(data))
            self.assertFalse(xva.XvaSource().probe_stream(TestStream(data)))
        self.assertFalse(xva.XvaSource().probe(os.path.dirname(self.path)))

    def test_by_name(self) -> None:
        # So that opening it says what is wrong.
        self.assertTrue(self.probe(b'rubbish', 'a.XVA'))
        with self.assertRaises(exceptions.PackageError) as caught:
            xva.XvaSource().open(os.path.join(
                os.path.dirname(self.path), 'a.XVA'
            ))  # fmt: skip
        self.assertEqual('package.not-a-tar', caught.exception.id)


class StreamTest(XvaTestCase):
    """What only a stream can do wrong."""

    def opened(self, stream: stream_room.Stream) -> Sequence[
        tuple[str, stream_room.Stream]
    ]:  # fmt: skip
        arrivals = xva.XvaSource().open_stream(stream).package.arrivals
        assert arrivals is not None
        return typing.cast(typing.Any, arrivals)

    def two(self) -> bytes:
        self.write(
            xva_packages.Disk('Ref:1', content(9 * CHUNK, 1, 4)),
            xva_packages.Disk('Ref:2', content(9 * CHUNK, 7), '1'),
        )
        with open(self.path, 'rb') as file:
            return file.read()

    def test_compressed(self) -> None:
        data = self.two()
        for packed in (
            gzip.compress(data),
            zstandard.ZstdCompressor().compress(data),
        ):
            with open(self.path, 'wb') as file:
                file.write(packed)
            stream = stream_packages.open_package(self.path)
            assert stream is not None
            self.addCleanup(stream.close)
            self.assertTrue(xva.XvaSource().probe_stream(stream))
            found = {n: self.runs(disk) for n, disk in self.opened(stream)}
            self.assertEqual(content(9 * CHUNK, 1, 4), found['Ref:1'])
            self.assertEqual(content(9 * CHUNK, 7), found['Ref:2'])

    def test_what_is_not_read_is_passed_over(self) -> None:
        names = []
        for name, disk in self.opened(TestStream(self.two())):
            names.append(name)
            if name == 'Ref:2':
                self.assertEqual(content(9 * CHUNK, 7), self.runs(disk))
        self.assertEqual(['Ref:1', 'Ref:2'], names)

    def test_run_is_left_half_read(self) -> None:
        arrivals = iter(self.opened(TestStream(self.two())))
        _, disk = next(arrivals)
        assert isinstance(disk, stream_room.Sparse)
        self.assertEqual((0, CHUNK), disk.next_run())
        self.assertEqual(bytes(10), disk.peek(10))
        self.assertEqual((CHUNK, CHUNK), disk.next_run())
        self.assertEqual(b'\2\2', disk.read(2))
        self.assertEqual((4 * CHUNK, CHUNK), disk.next_run())
        name, disk = next(arrivals)
        self.assertEqual('Ref:2', name)
        self.assertEqual(content(9 * CHUNK, 7), self.runs(disk))

    def test_finish_verifies_the_rest(self) -> None:
        data = self.two()
        damaged = data.replace(b'\5' * CHUNK, b'\5' * (CHUNK - 1) + b'x')
        self.assertNotEqual(data, damaged)
        for _, disk in self.opened(TestStream(data)):
            disk.finish()
        with self.assertRaises(exceptions.PackageError) as caught:
            for _, disk in self.opened(TestStream(damaged)):
                disk.finish()
        self.assertEqual('package.chunk-damaged', caught.exception.id)
        self.assertIn('Ref:1/00000004', str(caught.exception))
        self.assertIn(f'offset {4 * CHUNK} of', str(caught.exception))

    def test_damaged_chunk_stops_the_next_run(self) -> None:
        damaged = self.two().replace(b'\2' * CHUNK, b'\2' * 9 + b'x' * 4087)
        _, disk = next(iter(self.opened(TestStream(damaged))))
        assert isinstance(disk, stream_room.Sparse)
        disk.next_run()
        disk.next_run()
        disk.take(CHUNK)
        with self.assertRaises(exceptions.PackageError) as caught:
            disk.next_run()
        self.assertEqual('package.chunk-damaged', caught.exception.id)

    def test_damaged_padding(self) -> None:
        disk = xva_packages.Disk('Ref:1', b'x' * 512, padded=True)
        members = self.members(disk)
        name, data = members[1]
        members[1] = (name, data[:-1] + b'y')
        self.write_members(members)
        with self.assertRaises(exceptions.PackageError) as caught:
            self.arriving()
        self.assertEqual('package.chunk-damaged', caught.exception.id)

    def test_sha1(self) -> None:
        disk = xva_packages.Disk(
            'Ref:1', content(4 * CHUNK, 1, 2), checksums='checksum'
        )
        members = self.members(disk)
        self.write_members(members)
        self.assertEqual({'Ref:1': disk.content}, self.arriving())
        name, data = members[5]
        self.assertEqual('Ref:1/00000002', name)
        members[5] = (name, data[:-1] + b'y')
        self.write_members(members)
        with self.assertRaises(exceptions.PackageError) as caught:
            self.arriving()
        self.assertEqual('package.chunk-damaged', caught.exception.id)

    def test_keep_alives_are_no_pieces(self) -> None:
        self.write(
            xva_packages.Disk(
                'Ref:1', content(4 * CHUNK, 1), keep_alives=(1, 2)
            )
        )
        (disk,) = xva.XvaSource().open(self.path).disks
        self.assertEqual(
            [(0, CHUNK), (CHUNK, CHUNK), (3 * CHUNK, CHUNK)],
            [(p.region_offset, p.length) for p in disk.region.pieces],
        )

    def test_damaged_keep_alive(self) -> None:
        disk = xva_packages.Disk(
            'Ref:1', content(4 * CHUNK, 1), keep_alives=(1,)
        )
        members = self.members(disk)
        self.assertEqual(('Ref:1/00000001', b''), members[3])
        members[3] = ('Ref:1/00000001', b'x')
        # Its checksum is that of nothing.
        self.assertEqual(b'EF46DB3751D8E999', members[4][1])
        self.write_members(members)
        with self.assertRaises(exceptions.PackageError) as caught:
            self.arriving()
        self.assertEqual('package.chunk-damaged', caught.exception.id)

    def test_package_that_breaks_off(self) -> None:
        data = self.two()
        for length in (100, 600, 20000, len(data) // 2):
            with (
                self.subTest(length=length),
                self.assertRaises(exceptions.PackageError),
            ):
                for _, disk in self.opened(TestStream(data[:length])):
                    disk.finish()

    def test_last_checks_come_when_all_has_arrived(self) -> None:
        packed = bytearray(gzip.compress(self.two()))
        packed[-8] ^= 1
        with open(self.path, 'wb') as file:
            file.write(packed)
        stream = stream_packages.open_package(self.path)
        assert stream is not None
        self.addCleanup(stream.close)
        with self.assertRaises(exceptions.PackageError) as caught:
            for _, disk in self.opened(stream):
                disk.finish()
        self.assertEqual('package.undecodable', caught.exception.id)
