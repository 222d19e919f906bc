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

"""An initramfs file: archives one after the other, each compressed or not.

The kernel unpacks them in turn, later files over earlier ones (source of
facts: init/initramfs.c and the buffer-format document). It looks for an
uncompressed archive only at offsets that are a multiple of four.
"""

from __future__ import annotations

import bz2
from collections.abc import Iterator
import dataclasses
import importlib
import io
import lzma
import posixpath
import re
import typing
import zlib

import zstandard

from xenimport.remediation.linux import cpio

#: More than any initramfs has: microcode, the early and the main one.
SECTIONS_LIMIT = 64
#: The kernel's own zstd decoder allows for this window at most.
ZSTD_WINDOW = 128 << 20
#: At most this much comes out of a decoder at once.
_CHUNK = 1 << 20
#: A block of zstd can grow by a factor of 32768: so feed little.
_ZSTD_FEED = 1 << 10
#: Every block of lz4's legacy frame but the last unpacks to this size.
_LZ4_LEGACY_BLOCK = 8 << 20
#: A block of lz4 can grow by a factor of 255.
_LZ4_FEED = 64 << 10

_MAGICS = (
    (b'\x1f\x8b', 'gzip'),
    (b'\x28\xb5\x2f\xfd', 'zstd'),
    (b'\xfd7zXZ\0', 'xz'),
    (b'\x02\x21\x4c\x18', 'lz4'),
    (b'BZh', 'bzip2'),
    (b'\x5d\0\0', 'lzma'),
    (b'\x89LZO', 'lzo'),
    (b'070701', 'cpio'),
    (b'070702', 'cpio'),
)

_WANTED = re.compile(
    r'(conf/modules|etc/modprobe\.conf|((usr/)?lib|etc|run)/modprobe\.d/.+'
    r'|etc/modules|(usr/)?lib/modules/[^/]+/modules\.builtin)\Z'
)


@dataclasses.dataclass(frozen=True)
class Section:
    """One run of bytes of the file: ``kind`` as in _MAGICS."""

    kind: str
    start: int
    end: int


@dataclasses.dataclass
class Image:
    """What an initramfs holds.

    :ivar entries: by name, as the kernel would have them at the end
    """

    size: int
    sections: list[Section]
    entries: dict[str, cpio.Entry]

    def text(self, name: str) -> str | None:
        """The content of a wanted file, None where there is none."""
        entry = self.entries.get(self.resolve(name))
        if entry is None or entry.data is None:
            return None
        return entry.data.decode('utf-8', 'surrogateescape')

    def resolve(self, name: str) -> str:
        """The name with symbolic links in its directories followed."""
        done = ''
        parts = name.split('/')
        for _ in range(64):
            if not parts:
                break
            part = parts.pop(0)
            candidate = posixpath.join(done, part)
            entry = self.entries.get(candidate)
            if entry is None or not entry.is_link or not parts:
                done = candidate
                continue
            target = (entry.data or b'').decode('utf-8', 'surrogateescape')
            joined = posixpath.normpath(posixpath.join('/', done, target))
            parts = [p for p in joined.split('/') if p] + parts
            done = ''
        return done

    def names(self, pattern: str) -> list[str]:
        """Names that match a regular expression as a whole, sorted."""
        compiled = re.compile(pattern)
        return sorted(n for n in self.entries if compiled.fullmatch(n))

    @property
    def generator(self) -> str:
        """``initramfs-tools``, ``dracut`` or ``other``."""
        names = self.entries
        if 'conf/initramfs.conf' in names or 'scripts/functions' in names:
            return 'initramfs-tools'
        if self.names(r'(usr/)?lib/dracut(-lib\.sh|/.*)?'):
            return 'dracut'
        if self.names(r'(usr/)?lib/initrd-release|dracut-.*'):
            return 'dracut'
        return 'other'


class _Lz4Decoder:
    """The legacy frame of lz4, the one that the kernel knows.

    It has no end mark: blocks follow until the data ends or the next size
    cannot be one. Made like the decoders of the standard library.
    """

    def __init__(self) -> None:
        # Imported here: only such an initramfs needs it.
        self._decompress = importlib.import_module('lz4.block').decompress
        self._pending = b''
        self._started = False
        self._last = False
        self.eof = False
        self.unused_data = b''

    def decompress(self, data: bytes) -> bytes:
        self._pending += data
        produced = []
        while not self.eof:
            block = self._block()
            if block is None:
                break
            produced.append(block)
        return b''.join(produced)

    def _block(self) -> bytes | None:
        if not self._started:
            self._pending = self._pending[4:]
            self._started = True
        if len(self._pending) < 4:
            return None
        size = int.from_bytes(self._pending[:4], 'little')
        # A block that is not full is the last one; this also keeps a file
        # of many tiny blocks from asking for as many large buffers.
        # The other bound is the worst case of an incompressible block.
        if (
            self._last
            or not 0
            < size
            <= _LZ4_LEGACY_BLOCK + _LZ4_LEGACY_BLOCK // 255 + 16
        ):
            self.eof, self.unused_data = True, self._pending
            return None
        if len(self._pending) < 4 + size:
            return None
        block = self._pending[4 : 4 + size]
        self._pending = self._pending[4 + size :]
        unpacked = typing.cast(
            bytes,
            self._decompress(block, uncompressed_size=_LZ4_LEGACY_BLOCK),
        )
        self._last = len(unpacked) < _LZ4_LEGACY_BLOCK
        return unpacked


class _Decoded(io.RawIOBase):
    """The decoded bytes of one compressed section.

    :ivar end: where in ``data`` the compressed section ends, once read
    """

    def __init__(
        self, kind: str, data: bytes, start: int, budget: cpio.Budget
    ) -> None:
        super().__init__()
        self._chunks = _decode(kind, data, start, self)
        self._left = b''
        self._budget = budget
        self.end = len(data)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: typing.Any) -> int:
        while not self._left:
            try:
                self._left = next(self._chunks)
            except StopIteration:
                return 0
            self._budget.take('bytes unpacked', len(self._left))
        taken = self._left[: len(buffer)]
        buffer[: len(taken)] = taken
        self._left = self._left[len(taken) :]
        return len(taken)


def _decode(
    kind: str, data: bytes, start: int, sink: _Decoded
) -> Iterator[bytes]:
    try:
        if kind == 'gzip':
            yield from _decode_gzip(data, start, sink)
        elif kind in ('xz', 'lzma', 'bzip2'):
            yield from _decode_standard(kind, data, start, sink)
        elif kind in ('zstd', 'lz4'):
            yield from _decode_fed(kind, data, start, sink)
        else:
            raise cpio.DamagedError(f'compressed with {kind}')
    except (
        zlib.error,
        lzma.LZMAError,
        OSError,
        zstandard.ZstdError,
        ImportError,
        RuntimeError,
    ) as error:
        raise cpio.DamagedError(f'{kind}: {error}') from error


def _decode_gzip(data: bytes, start: int, sink: _Decoded) -> Iterator[bytes]:
    decoder = zlib.decompressobj(31)
    position = start
    pending = b''
    while not decoder.eof:
        if not pending:
            pending = data[position : position + _CHUNK]
            position += len(pending)
            if not pending:
                raise cpio.DamagedError('gzip: it is cut short')
        yield decoder.decompress(pending, _CHUNK)
        pending = decoder.unconsumed_tail
    sink.end = position - len(decoder.unused_data)


def _decode_standard(
    kind: str, data: bytes, start: int, sink: _Decoded
) -> Iterator[bytes]:
    decoder: lzma.LZMADecompressor | bz2.BZ2Decompressor
    if kind == 'bzip2':
        decoder = bz2.BZ2Decompressor()
    else:
        container = lzma.FORMAT_XZ if kind == 'xz' else lzma.FORMAT_ALONE
        decoder = lzma.LZMADecompressor(container, memlimit=256 << 20)
    position = start
    while not decoder.eof:
        fed = b''
        if decoder.needs_input:
            fed = data[position : position + _CHUNK]
            position += len(fed)
            if not fed:
                raise cpio.DamagedError(f'{kind}: it is cut short')
        yield decoder.decompress(fed, _CHUNK)
    sink.end = position - len(decoder.unused_data)


def _decode_fed(
    kind: str, data: bytes, start: int, sink: _Decoded
) -> Iterator[bytes]:
    decoder: typing.Any = _Lz4Decoder()
    feed = _LZ4_FEED
    if kind == 'zstd':
        feed = _ZSTD_FEED
        decoder = zstandard.ZstdDecompressor(
            max_window_size=ZSTD_WINDOW
        ).decompressobj()
    position = start
    while not decoder.eof and position < len(data):
        fed = data[position : position + feed]
        position += len(fed)
        yield decoder.decompress(fed)
    sink.end = position - len(decoder.unused_data)


def parse(data: bytes) -> Image:
    """Look into an initramfs file.

    :raises xenimport.remediation.linux.cpio.DamagedError: if the kernel
        could not unpack it either, or in a way unknown here
    """
    image = Image(len(data), [], {})
    budget = cpio.Budget()
    position = 0
    while position < len(data):
        rest = data[position : position + 1]
        if rest == b'\0':
            position = _after_zeros(data, position)
            continue
        kind = _kind(data, position)
        if kind is None:
            if image.sections:
                # The kernel stops here too, and boots with what it has.
                break
            raise cpio.DamagedError('it is of no known format')
        if len(image.sections) == SECTIONS_LIMIT:
            raise cpio.DamagedError(f'more than {SECTIONS_LIMIT} archives')
        end = _read_section(image, kind, data, position, budget)
        image.sections.append(Section(kind, position, end))
        position = end
    if not image.sections:
        raise cpio.DamagedError('it is empty')
    return image


def _after_zeros(data: bytes, position: int) -> int:
    while position < len(data):
        chunk = data[position : position + _CHUNK]
        stripped = chunk.lstrip(b'\0')
        if stripped:
            return position + len(chunk) - len(stripped)
        position += len(chunk)
    return position


def _kind(data: bytes, position: int) -> str | None:
    head = data[position : position + 6]
    for magic, kind in _MAGICS:
        if head.startswith(magic):
            if kind == 'cpio' and position % 4:
                return None
            return kind
    return None


def _wanted(name: str) -> bool:
    return _WANTED.match(name) is not None


def _read_section(
    image: Image, kind: str, data: bytes, start: int, budget: cpio.Budget
) -> int:
    if kind == 'cpio':
        plain = io.BytesIO(data)
        plain.seek(start)
        _take(image, plain, budget)
        return plain.tell()
    decoded = _Decoded(kind, data, start, budget)
    stream = io.BufferedReader(decoded, _CHUNK)
    _take(image, stream, budget)
    while True:
        # Padding, or one more archive in the same compressed stream.
        ahead = stream.peek(1)
        if not ahead:
            return decoded.end
        zeros = len(ahead) - len(ahead.lstrip(b'\0'))
        stream.read(zeros)
        if zeros == len(ahead):
            continue
        if ahead[zeros : zeros + 5] != b'07070':
            raise cpio.DamagedError('data after the end of the archive')
        _take(image, stream, budget)


def _take(image: Image, stream: cpio.Reader, budget: cpio.Budget) -> None:
    for entry in cpio.read(stream, _wanted, budget):
        image.entries[entry.name] = entry


def unpack_section(data: bytes, section: Section) -> bytes:
    """The decoded bytes of one section, up to 768 MiB."""
    decoded = _Decoded(section.kind, data, section.start, cpio.Budget())
    unpacked = bytearray()
    with io.BufferedReader(decoded, _CHUNK) as stream:
        while chunk := stream.read(_CHUNK):
            unpacked.extend(chunk)
            if len(unpacked) > 768 << 20:
                raise cpio.DamagedError('it is too large to rewrite')
    return bytes(unpacked)
