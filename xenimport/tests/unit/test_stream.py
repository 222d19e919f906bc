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


"""Streams: pipes, URLs, compressed files, members of others."""

from collections.abc import Iterator
import gzip
import hashlib
import http.server
import io
import os
import random
import sys
import tempfile
import threading
import typing
import unittest
from unittest import mock
import zlib

import zstandard

from xenimport import exceptions
from xenimport import model
from xenimport import stream
from xenimport import stream_decoders
from xenimport import stream_files
from xenimport import stream_http
from xenimport import stream_packages

MIB = 1024 * 1024


def noise(length: int, seed: int = 1) -> bytes:
    return random.Random(seed).randbytes(length)


class Plain(stream.Stream):
    """Bytes that come a few at a time.

    :ivar asked: bytes asked for at most
    """

    def __init__(self, data: bytes, step: int = 1 << 30) -> None:
        super().__init__('here')
        self._data = io.BytesIO(data)
        self._step = step
        self.asked = 0
        self.finished = self.closed = 0

    def _read_into(self, buffer: memoryview) -> int:
        self.asked = max(self.asked, len(buffer))
        return self._data.readinto(buffer[: self._step])

    def finish(self) -> None:
        self.finished += 1
        super().finish()

    def close(self) -> None:
        self.closed += 1


class StreamTestCase(unittest.TestCase):
    def setUp(self) -> None:
        directory = tempfile.TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        self.path = os.path.join(directory.name, 'package')

    def write(self, content: bytes) -> str:
        with open(self.path, 'wb') as file:
            file.write(content)
        return self.path

    def raises(
        self,
        error_id: str,
        function: typing.Callable[..., object],
        *arguments: object,
    ) -> exceptions.PackageError:
        with self.assertRaises(exceptions.PackageError) as caught:
            function(*arguments)
        self.assertEqual(error_id, caught.exception.id)
        self.assertTrue(caught.exception.where)
        return caught.exception

    def all(self, source: stream.Stream, step: int = 1 << 20) -> bytes:
        """What is left of a stream, and that it then stays at its end."""
        parts = []
        buffer = memoryview(bytearray(step))
        while count := source.read_into(buffer):
            parts.append(bytes(buffer[:count]))
        self.assertEqual(0, source.read_into(buffer))
        return b''.join(parts)


class ReadingTest(StreamTestCase):
    """What all streams have in common."""

    data = noise(100_000)

    def steps(self) -> Iterator[Plain]:
        for step in (1, 7, 4096, 1 << 30):
            with self.subTest(step=step):
                yield Plain(self.data[:5000], step)

    def test_read(self) -> None:
        for source in self.steps():
            self.assertEqual(self.data[:10], source.read(10))
            self.assertEqual(b'', source.read(0))
            self.assertEqual(10, source.position)
            self.assertEqual(self.data[10:5000], source.read(10_000))
            self.assertEqual(5000, source.position)
            self.assertEqual(b'', source.read(10))

    def test_take(self) -> None:
        for source in self.steps():
            self.assertEqual(self.data[:4999], source.take(4999))
            error = self.raises('package.truncated', source.take, 2)
            self.assertEqual('at least 5001 bytes', error.expected)
            self.assertEqual('5000 bytes', error.found)

    def test_peek(self) -> None:
        for source in self.steps():
            self.assertEqual(self.data[:100], source.peek(100))
            self.assertEqual(self.data[:10], source.peek(10))
            self.assertEqual(0, source.position)
            self.assertEqual(self.data[:50], source.read(50))
            self.assertEqual(self.data[50:3000], source.peek(2950))
            self.assertEqual(50, source.position)
            self.assertEqual(self.data[50:5000], source.peek(10_000))
            self.assertEqual(self.data[50:5000], self.all(source, 999))
            self.assertEqual(b'', source.peek(1))

    def test_skip(self) -> None:
        for source in self.steps():
            source.peek(100)
            self.assertEqual(50, source.skip(50))
            self.assertEqual(150, source.skip(150))
            self.assertEqual(200, source.position)
            self.assertEqual(self.data[200:210], source.read(10))
            self.assertEqual(4790, source.skip(1 << 60))
            self.assertEqual(0, source.skip(1))
            self.assertEqual(5000, source.position)

    def test_skipping_takes_no_memory_for_what_is_asked(self) -> None:
        source = Plain(self.data)
        source.skip(1 << 60)
        self.assertLessEqual(source.asked, stream.CHUNK)

    def test_finish(self) -> None:
        source = Plain(self.data, 1000)
        source.finish()
        self.assertEqual(len(self.data), source.position)


class FileTest(StreamTestCase):
    def opened(self, path: str) -> stream_files.FileStream:
        source = stream_files.FileStream(path)
        self.addCleanup(source.close)
        return source

    def test_file(self) -> None:
        data = noise(MIB)
        source = self.opened(self.write(data))
        self.assertEqual(MIB, source.size)
        self.assertEqual(data, self.all(source, 100_000))

    def test_pipe(self) -> None:
        os.mkfifo(self.path)
        data = noise(300_000)

        def feed() -> None:
            with open(self.path, 'wb') as file:
                file.write(data)

        thread = threading.Thread(target=feed)
        thread.start()
        self.addCleanup(thread.join)
        source = self.opened(self.path)
        self.assertIsNone(source.size)
        self.assertEqual(data, self.all(source))

    def standard_input(self, descriptor: int) -> None:
        file = os.fdopen(descriptor, 'rb', closefd=True)
        self.addCleanup(file.close)
        patch = mock.patch.object(sys, '__stdin__', file)
        patch.start()
        self.addCleanup(patch.stop)

    def test_standard_input(self) -> None:
        reading, writing = os.pipe()
        self.standard_input(reading)
        os.write(writing, b'some bytes')
        os.close(writing)
        source = self.opened('-')
        self.assertEqual('standard input', source.where)
        self.assertEqual(b'some bytes', self.all(source))
        source.close()
        # It is not ours to close.
        os.fstat(reading)

    def test_terminal(self) -> None:
        master, slave = os.openpty()
        self.addCleanup(os.close, master)
        self.standard_input(slave)
        self.raises('package.unreadable', stream_files.FileStream, '-')

    def test_absent(self) -> None:
        error = self.raises(
            'package.unreadable', stream_files.FileStream, self.path
        )
        self.assertEqual(self.path, error.where)

    def test_directory(self) -> None:
        source = self.opened(os.path.dirname(self.path))
        self.raises('package.read-failed', source.read, 10)

    def test_changed(self) -> None:
        for change in (b'', b'x' * 2000):
            source = self.opened(self.write(bytes(1000)))
            source.read(100)
            with open(self.path, 'r+b') as file:
                file.truncate(len(change))
                file.write(change)
            self.raises('package.changed', source.finish)

    def test_closed_twice(self) -> None:
        source = stream_files.FileStream(self.write(b'x'))
        before = len(os.listdir('/proc/self/fd'))
        source.close()
        source.close()
        self.assertEqual(before - 1, len(os.listdir('/proc/self/fd')))


class OpenTest(StreamTestCase):
    def test_plain_files_are_for_reading_in_place(self) -> None:
        before = len(os.listdir('/proc/self/fd'))
        self.assertIsNone(stream_packages.open_package(self.write(b'plain')))
        self.assertIsNone(stream_packages.open_package(self.write(b'')))
        self.assertIsNone(
            stream_packages.open_package(os.path.dirname(self.path))
        )
        self.assertEqual(before, len(os.listdir('/proc/self/fd')))

    def test_compressed_files(self) -> None:
        for packed, kind in (
            (gzip.compress(b'plain'), stream_decoders.GzipStream),
            (zstandard.compress(b'plain'), stream_decoders.ZstdStream),
            # As pzstd begins.
            (
                b'\x50\x2a\x4d\x18\x04\0\0\0\x16\0\0\0'
                + zstandard.compress(b'plain'),
                stream_decoders.ZstdStream,
            ),
        ):
            source = stream_packages.open_package(self.write(packed))
            assert source is not None
            self.addCleanup(source.close)
            self.assertIsInstance(source, kind)
            self.assertEqual(self.path, source.where)
            self.assertIsNone(source.size)
            self.assertEqual(b'plain', self.all(source))

    def test_what_only_begins_alike(self) -> None:
        for data in (
            b'\x1f\x8b\x00' + bytes(100),
            b'\x28\xb5\x2f\xfe' + bytes(100),
            b'\x50\x2a\x4d\x18' + bytes(100),
            b'\x50\x2a\x4d\x18\xff\xff\xff\xff' + bytes(100),
            b'\x60\x2a\x4d\x18\0\0\0\0' + zstandard.compress(b'plain'),
            b'P',
        ):
            inner = Plain(data)
            self.assertIs(inner, stream_decoders.decoded(inner))
            self.assertEqual(data, self.all(inner))

    def test_only_one_layer(self) -> None:
        inner = gzip.compress(b'plain')
        source = stream_decoders.decoded(Plain(gzip.compress(inner)))
        self.assertEqual(inner, self.all(source))

    def test_absent(self) -> None:
        self.raises(
            'package.unreadable', stream_packages.open_package, self.path
        )

    def test_urls(self) -> None:
        for path, expected in (
            ('http://host/a', True),
            ('HTTPS://host/a', True),
            ('ftp://host/a', False),
            ('file:///etc/passwd', False),
            ('/a/http://b', False),
        ):
            self.assertEqual(expected, stream_packages.is_url(path))


class GzipTest(StreamTestCase):
    data = noise(200_000) + bytes(3 * MIB) + noise(1000)

    def packed(self) -> bytes:
        return gzip.compress(self.data)

    def decoded(self, packed: bytes, step: int = 1 << 30) -> stream.Stream:
        return stream_decoders.GzipStream(Plain(packed, step))

    def test_whole(self) -> None:
        for step in (1000, 1 << 30):
            for length in (997, MIB):
                source = self.decoded(self.packed(), step)
                self.assertEqual(self.data, self.all(source, length))

    def test_several_members(self) -> None:
        packed = gzip.compress(b'one') + gzip.compress(b'')
        source = self.decoded(packed + gzip.compress(b'two'), 1)
        self.assertEqual(b'onetwo', self.all(source, 2))

    def test_nothing(self) -> None:
        self.assertEqual(b'', self.all(self.decoded(gzip.compress(b''))))

    def test_padding(self) -> None:
        for count in (1, 512, 300_000):
            source = self.decoded(gzip.compress(b'one') + bytes(count))
            self.assertEqual(b'one', self.all(source))

    def test_cut_off(self) -> None:
        packed = self.packed()
        for length in (0, 5, 1000, len(packed) - 8, len(packed) - 1):
            with self.subTest(length=length):
                self.raises(
                    'package.truncated',
                    self.all,
                    self.decoded(packed[:length], 1000),
                )

    def test_damaged(self) -> None:
        packed = bytearray(self.packed())
        for offset in (0, 20, -8, -1):
            damaged = packed.copy()
            damaged[offset] ^= 0x40
            with self.subTest(offset=offset):
                self.raises(
                    'package.undecodable', self.all, self.decoded(damaged)
                )

    def test_rubbish_after_the_end(self) -> None:
        packed = self.packed() + b'rubbish after the end'
        self.raises('package.undecodable', self.all, self.decoded(packed))

    def test_standard_librarys_decoder(self) -> None:
        with mock.patch.dict(sys.modules, {'isal': None}):
            source = self.decoded(self.packed())
        self.assertIsInstance(
            typing.cast(typing.Any, source)._decoder,
            type(zlib.decompressobj()),
        )
        self.assertEqual(self.data, self.all(source))
        source = self.decoded(self.packed()[:-8] + bytes(8))
        self.raises('package.undecodable', self.all, source)

    def test_bomb(self) -> None:
        """Far more than belongs to it is noticed, and not decoded."""
        packed = gzip.compress(bytes(80 * MIB), 1)
        source = self.decoded(packed)
        self.assertEqual(bytes(512), source.read(512))
        self.raises('package.excess-data', source.finish)
        self.assertLess(source.position, 70 * MIB)

    def test_finish_checks_the_end(self) -> None:
        inner = Plain(self.packed())
        source: stream.Stream = stream_decoders.GzipStream(inner)
        source.read(10)
        source.finish()
        self.assertEqual(1, inner.finished)
        source = self.decoded(self.packed()[:-8] + bytes(8))
        source.read(10)
        self.raises('package.undecodable', source.finish)

    def test_close(self) -> None:
        inner = Plain(b'')
        stream_decoders.GzipStream(inner).close()
        self.assertEqual(1, inner.closed)


class ZstdTest(StreamTestCase):
    data = GzipTest.data
    #: A frame that decoders pass over: RFC 8878, 3.1.2.
    skippable = b'\x50\x2a\x4d\x18' + (300).to_bytes(4, 'little') + b'-' * 300

    def packed(self, data: bytes | None = None, **options: bool) -> bytes:
        compressor = zstandard.ZstdCompressor(**options)
        return compressor.compress(self.data if data is None else data)

    def decoded(self, packed: bytes, step: int = 1 << 30) -> stream.Stream:
        return stream_decoders.ZstdStream(Plain(packed, step))

    def test_whole(self) -> None:
        for step in (1, 1000, 1 << 30):
            data = self.data if step > 1 else self.data[:3000]
            for options in (
                {},
                {'write_checksum': True},
                {'write_content_size': False},
                {'write_checksum': True, 'write_content_size': False},
            ):
                with self.subTest(step=step, options=options):
                    packed = self.packed(data, **options)
                    source = self.decoded(packed, step)
                    self.assertEqual(data, self.all(source, 99_999))

    def test_streamed(self) -> None:
        """As zstd writes it from a pipe: no size, many blocks."""
        compressor = zstandard.ZstdCompressor().compressobj()
        parts = [
            compressor.compress(self.data[start : start + 100_000])
            + compressor.flush(zstandard.COMPRESSOBJ_FLUSH_BLOCK)
            for start in range(0, len(self.data), 100_000)
        ]
        packed = b''.join((*parts, compressor.flush()))
        self.assertEqual(self.data, self.all(self.decoded(packed)))
        self.raises(
            'package.truncated',
            self.all,
            self.decoded(b''.join(parts)),
        )

    def test_several_frames(self) -> None:
        packed = b''.join((
            self.packed(b'one'), self.skippable, self.packed(b''),
            self.packed(b'two' * 1000), self.skippable,
        ))  # fmt: skip
        for step in (1, 1 << 30):
            source = self.decoded(packed, step)
            self.assertEqual(b'one' + b'two' * 1000, self.all(source))

    def test_sizes_of_content(self) -> None:
        # The header's size field has 1, 2, 4 bytes.
        for size in (0, 1, 255, 256, 65791, 65792, 70000):
            data = noise(size)
            packed = self.packed(data)
            self.assertEqual(data, self.all(self.decoded(packed, 3)))

    def test_cut_off(self) -> None:
        packed = self.packed(write_checksum=True)
        whole = len(packed)
        for length in (0, 3, 6, 1000, whole - 4, whole - 1):
            with self.subTest(length=length):
                self.raises(
                    'package.truncated',
                    self.all,
                    self.decoded(packed[:length], 1000),
                )

    def test_cut_off_in_the_next_frame(self) -> None:
        first = self.packed(b'one')
        for rest in (self.packed(self.data)[:2], self.skippable[:-1]):
            self.raises(
                'package.truncated', self.all, self.decoded(first + rest)
            )

    def test_damaged(self) -> None:
        packed = self.packed(write_checksum=True)
        for offset in (0, -1):
            damaged = bytearray(packed)
            damaged[offset] ^= 0x40
            with self.subTest(offset=offset):
                self.raises(
                    'package.undecodable', self.all, self.decoded(damaged)
                )

    def test_rubbish_after_the_end(self) -> None:
        packed = self.packed() + b'rubbish after the end'
        self.raises('package.undecodable', self.all, self.decoded(packed))

    def test_window_is_bounded(self) -> None:
        # A frame that wants 2 GiB: window descriptor 21 << 3.
        packed = b'\x28\xb5\x2f\xfd\x00' + bytes((21 << 3,)) + bytes(100)
        self.raises('package.undecodable', self.all, self.decoded(packed))

    def test_bomb(self) -> None:
        source = self.decoded(self.packed(bytes(80 * MIB)))
        self.assertEqual(bytes(512), source.read(512))
        self.raises('package.excess-data', source.finish)
        self.assertLess(source.position, 70 * MIB)

    def test_finish_checks_the_end(self) -> None:
        packed = bytearray(self.packed(write_checksum=True))
        inner = Plain(bytes(packed))
        source: stream.Stream = stream_decoders.ZstdStream(inner)
        source.read(10)
        source.finish()
        self.assertEqual(1, inner.finished)
        packed[-1] ^= 1
        source = self.decoded(packed)
        source.read(10)
        self.raises('package.undecodable', source.finish)

    def test_close(self) -> None:
        inner = Plain(b'')
        stream_decoders.ZstdStream(inner).close()
        self.assertEqual(1, inner.closed)


class LimitedTest(StreamTestCase):
    def test_only_its_bytes(self) -> None:
        for step in (1, 1 << 30):
            inner = Plain(b'abcdefghij', step)
            inner.read(2)
            member = stream.Limited(inner, 5, 'member')
            self.assertEqual(5, member.size)
            self.assertEqual(b'cde', member.read(3))
            self.assertEqual(b'fg', member.peek(10))
            self.assertEqual(1, member.skip(1))
            self.assertEqual(1, member.skip(10))
            self.assertEqual(b'', member.read(1))
            self.assertEqual(b'hij', inner.read(10))

    def test_inner_ends_before(self) -> None:
        for act in ('read', 'skip', 'peek'):
            member = stream.Limited(Plain(b'abc'), 5, 'member')
            error = self.raises('package.truncated', getattr(member, act), 5)
            self.assertEqual('member', error.where)
            self.assertEqual('at least 5 bytes', error.expected)
            self.assertEqual('3 bytes', error.found)


class JoinedTest(StreamTestCase):
    def test_one_after_the_other(self) -> None:
        inner = [Plain(b'one', 2), Plain(b''), Plain(b'three', 2)]
        joined = stream.Joined(inner, 'all')
        self.assertIsNone(joined.size)
        self.assertEqual(b'onethree', self.all(joined))
        self.assertEqual([1, 1, 1], [item.finished for item in inner])
        joined.close()
        self.assertEqual([1, 1, 1], [item.closed for item in inner])

    def test_size(self) -> None:
        inner = [stream.Limited(Plain(b''), size, 'm') for size in (2, 3)]
        self.assertEqual(5, stream.Joined(inner, 'all').size)


class DigestedTest(StreamTestCase):
    data = noise(100_000)

    def stated(self, data: bytes) -> list[model.Digest]:
        return [
            model.Digest(name, hashlib.new(name, data).hexdigest())
            for name in ('sha1', 'sha256')
        ]

    def test_all_that_passes(self) -> None:
        source = stream.Digested(
            Plain(self.data, 999), self.stated(self.data), ('md5',)
        )
        source.peek(5000)
        source.skip(100)
        source.read(10_000)
        source.finish()
        self.assertEqual(
            {*self.stated(self.data), model.Digest(
                'md5', hashlib.md5(self.data).hexdigest()
            )},
            set(source.digests()),
        )  # fmt: skip

    def test_mismatch(self) -> None:
        stated = self.stated(self.data)
        for number in (0, 1):
            wrong = [*stated]
            wrong[number] = self.stated(b'x')[number]
            source = stream.Digested(Plain(self.data), wrong)
            error = self.raises('package.digest-mismatch', source.finish)
            name = stated[number].algorithm
            self.assertIn(
                f'{name} {wrong[number].value}', error.expected or ''
            )
            self.assertIn(f'{name} {stated[number].value}', error.found or '')

    def test_beneath_a_decoder(self) -> None:
        """A manifest's digest is of the file as it lies there."""
        packed = gzip.compress(self.data)
        source = stream_decoders.GzipStream(
            stream.Digested(Plain(packed, 1000), self.stated(packed))
        )
        self.assertEqual(self.data, self.all(source))
        source.finish()
        source = stream_decoders.GzipStream(
            stream.Digested(Plain(packed + bytes(10)), self.stated(packed))
        )
        self.raises('package.digest-mismatch', source.finish)

    def test_close(self) -> None:
        inner = Plain(b'')
        stream.Digested(inner).close()
        self.assertEqual(1, inner.closed)


class RegionTest(StreamTestCase):
    def test_pieces(self) -> None:
        self.write(b'..abc....defg..')
        other = self.path + '.1'
        with open(other, 'wb') as file:
            file.write(b'.hij.')
        region = model.Region(
            self.path,
            'r',
            (
                model.Piece(2, 3, 0),
                model.Piece(5, 0, 3),
                model.Piece(9, 4, 3),
                model.Piece(1, 3, 7, other),
            ),
        )
        for length in (1, 2, 100):
            source = stream_files.RegionStream(region)
            self.assertEqual(10, source.size)
            self.assertEqual(b'abcdefghij', self.all(source, length))
            source.close()
        before = len(os.listdir('/proc/self/fd'))
        source = stream_files.RegionStream(region)
        source.read(10)
        source.close()
        source.close()
        self.assertEqual(before, len(os.listdir('/proc/self/fd')))

    def test_file_is_shorter(self) -> None:
        region = model.Region(self.write(b'abc'), 'r', (model.Piece(1, 3, 0),))
        source = stream_files.RegionStream(region)
        self.addCleanup(source.close)
        self.raises('package.truncated', source.finish)

    def test_absent(self) -> None:
        region = model.Region(self.path, 'r', (model.Piece(1, 3, 0),))
        self.raises(
            'package.unreadable', stream_files.RegionStream(region).read, 1
        )


class Handler(http.server.BaseHTTPRequestHandler):
    """A server with one package, and ways to go wrong."""

    data = noise(300_000)

    def do_GET(self) -> None:
        length = len(self.data)
        match self.path.partition('?')[0]:
            case '/whole':
                self.head(200, length)
                self.wfile.write(self.data)
            case '/moved':
                self.send_response(302)
                self.send_header('Location', '/whole')
                self.end_headers()
            case '/unknown-length':
                self.head(200)
                self.wfile.write(self.data)
            case '/broken':
                self.head(200, length)
                self.wfile.write(self.data[:1000])
            case '/packed':
                # As servers say of a .gz file: it is not to be decoded.
                self.head(200, None, 'gzip')
                self.wfile.write(gzip.compress(self.data))
            case '/negotiated':
                # Plain, but for clients that say they know better.
                if 'gzip' in self.headers.get('Accept-Encoding', ''):
                    self.head(200, None, 'gzip')
                    self.wfile.write(gzip.compress(self.data))
                else:
                    self.head(200, length)
                    self.wfile.write(self.data)
            case '/odd-length':
                self.send_response(200)
                self.send_header('Content-Length', '-5')
                self.end_headers()
            case _:
                self.head(404, 0)

    def head(
        self, code: int, length: int | None = None, encoding: str = ''
    ) -> None:
        self.send_response(code)
        if length is not None:
            self.send_header('Content-Length', str(length))
        if encoding:
            self.send_header('Content-Encoding', encoding)
        self.end_headers()

    def log_message(self, *arguments: object) -> None:
        """Say nothing."""


class HttpTest(StreamTestCase):
    def setUp(self) -> None:
        super().setUp()
        server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), Handler)
        self.addCleanup(server.server_close)
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        self.addCleanup(thread.join)
        self.addCleanup(server.shutdown)
        self.url = f'http://127.0.0.1:{server.server_port}'
        patch = mock.patch.dict(os.environ, {'no_proxy': '*'})
        patch.start()
        self.addCleanup(patch.stop)

    def opened(self, path: str) -> stream.Stream:
        source = stream_packages.open_package(f'{self.url}/{path}')
        assert source is not None
        self.addCleanup(source.close)
        return source

    def test_whole(self) -> None:
        for path in ('whole', 'moved'):
            source = self.opened(path)
            self.assertEqual(len(Handler.data), source.size)
            self.assertEqual(Handler.data, self.all(source, 77_777))

    def test_unknown_length(self) -> None:
        source = self.opened('unknown-length')
        self.assertIsNone(source.size)
        self.assertEqual(Handler.data, self.all(source))

    def test_packed(self) -> None:
        source = self.opened('packed')
        self.assertIsInstance(source, stream_decoders.GzipStream)
        self.assertEqual(Handler.data, self.all(source))

    def test_asks_for_the_package_as_it_is(self) -> None:
        self.assertIsInstance(
            self.opened('negotiated'), stream_http.HttpStream
        )

    def test_breaks_off(self) -> None:
        source = self.opened('broken')
        self.raises('package.download-failed', source.finish)

    def test_length_that_is_none(self) -> None:
        try:
            source = self.opened('odd-length')
        except exceptions.PackageError as error:
            self.assertEqual('package.download-failed', error.id)
        else:
            self.assertIsNone(source.size)

    def test_refused(self) -> None:
        error = self.raises('package.download-failed', self.opened, 'absent')
        self.assertIn('404', error.found or '')

    def test_nobody_listens(self) -> None:
        self.raises(
            'package.download-failed',
            stream_packages.open_package,
            'http://127.0.0.1:1/x',
        )

    def test_not_an_address(self) -> None:
        for url in ('http://', 'http://[::1/x', 'http://host:port/x'):
            with self.subTest(url=url):
                self.raises(
                    'package.download-failed',
                    stream_packages.open_package,
                    url,
                )

    def test_secrets_are_not_shown(self) -> None:
        host = self.url.partition('//')[2]
        error = self.raises(
            'package.download-failed',
            stream_packages.open_package,
            f'http://user:secret@{host}/absent?signature=hidden#f',
        )
        self.assertEqual(f'http://{host}/absent', error.where)
        self.assertNotIn('secret', str(error))
        self.assertNotIn('hidden', str(error))
        for url in (
            'http://user:secret@127.0.0.1:1/x?signature=hidden',
            'http://user:secret@host:port/x?signature=hidden',
            'http://user:secret@[::1/x?signature=hidden',
        ):
            with self.subTest(url=url):
                error = self.raises(
                    'package.download-failed',
                    stream_packages.open_package,
                    url,
                )
                self.assertNotIn('secret', str(error))
                self.assertNotIn('hidden', str(error))
