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


"""Streams of what gzip and zstd streams hold, decoded as they come."""

from __future__ import annotations

import typing

from xenimport import exceptions
from xenimport import stream as stream_room

_GZIP = b'\x1f\x8b\x08'
_ZSTD = b'\x28\xb5\x2f\xfd'
#: How a frame that zstd's decoders pass over begins, but for the first
#: byte: 0x50 to 0x5f.
_ZSTD_SKIPPED = b'\x2a\x4d\x18'
_LONGEST_SKIPPED = 64
#: Bytes that a decoder may keep of what it has decoded: zstd's "--ultra
#: --long=27", the most that its command line takes unasked.
_WINDOW = 1 << 27
#: Bytes of decoded data that may follow the last that was wanted.
_EXCESS = 64 << 20


class _Decoder(typing.Protocol):
    """What zlib's decompression objects do."""

    @property
    def eof(self) -> bool: ...

    @property
    def unused_data(self) -> bytes: ...

    @property
    def unconsumed_tail(self) -> bytes: ...

    def decompress(self, data: bytes, max_length: int) -> bytes: ...


class GzipStream(stream_room.Stream):
    """What a gzip stream holds; several members follow each other.

    Memory is bounded whatever the ratio: no more is decoded at a time
    than was asked for.
    """

    def __init__(self, inner: stream_room.Stream) -> None:
        super().__init__(inner.where)
        self._inner = inner
        self._decoder = _gzip_decoder()
        self._buffer = memoryview(bytearray(stream_room.CHUNK))
        self._pending = b''
        self._between = False

    def _read_into(self, buffer: memoryview) -> int:
        while True:
            if not self._pending:
                count = self._inner.read_into(self._buffer)
                self._pending = bytes(self._buffer[:count])
            if not self._pending:
                if self._between:
                    return 0
                raise self.truncated(
                    self._inner.position + 1, self._inner.position
                )
            # Zeros may pad the file after the last member.
            if self._between and not self._pending.strip(b'\0'):
                self._pending = b''
                continue
            data = self._decode(len(buffer))
            if data:
                buffer[: len(data)] = data
                return len(data)

    def _decode(self, length: int) -> bytes:
        try:
            data = self._decoder.decompress(self._pending, length)
        except Exception as error:  # each decoder has errors of its own
            raise _undecodable(self.where, 'gzip', error) from error
        self._between = self._decoder.eof
        if self._decoder.eof:
            self._pending = self._decoder.unused_data
            self._decoder = _gzip_decoder()
        else:
            self._pending = self._decoder.unconsumed_tail
        return data

    def finish(self) -> None:
        _drain(self)
        self._inner.finish()

    def close(self) -> None:
        self._inner.close()


def _gzip_decoder() -> _Decoder:
    """The fastest streaming decoder that is installed."""
    try:
        from isal import isal_zlib
    except ImportError:
        import zlib

        return zlib.decompressobj(31)
    decoder: _Decoder = isal_zlib.decompressobj(31)
    return decoder


class ZstdStream(stream_room.Stream):
    """What a zstd stream holds; several frames follow each other."""

    def __init__(self, inner: stream_room.Stream) -> None:
        super().__init__(inner.where)
        import zstandard

        self._inner = inner
        self._frames = _Frames(inner)
        self._error = zstandard.ZstdError
        decoder = zstandard.ZstdDecompressor(max_window_size=_WINDOW)
        source: typing.Any = self._frames
        self._reader: typing.Any = decoder.stream_reader(
            source, read_size=stream_room.CHUNK, read_across_frames=True
        )

    def _read_into(self, buffer: memoryview) -> int:
        try:
            count: int = self._reader.readinto(buffer)
        except self._error as error:
            raise _undecodable(self.where, 'zstd', error) from error
        if not count and not self._frames.complete:
            # The decoder takes a cut stream for one that has ended.
            raise self.truncated(
                self._inner.position + 1, self._inner.position
            )
        return count

    def finish(self) -> None:
        _drain(self)
        self._inner.finish()

    def close(self) -> None:
        self._inner.close()


class _Frames:
    """The input of the zstd decoder, followed block by block (RFC 8878).

    :ivar complete: whether all that was read ends with a whole frame
    """

    def __init__(self, inner: stream_room.Stream) -> None:
        self._inner = inner
        self._head = b''
        self._skip = 0
        self._in_frame = False
        self._last = False
        self._checksum = False
        self.complete = False

    def read(self, length: int = stream_room.CHUNK) -> bytes:
        data = self._inner.read(min(length, stream_room.CHUNK))
        self._follow(data)
        return data

    def _follow(self, data: bytes) -> None:
        position = 0
        while position < len(data):
            if self._skip:
                step = min(self._skip, len(data) - position)
                self._skip -= step
                position += step
            else:
                wanted = 3 if self._in_frame else self._header_size()
                step = min(wanted - len(self._head), len(data) - position)
                self._head += data[position : position + step]
                position += step
                if len(self._head) == wanted:
                    self._header()
            self.complete = not (self._skip or self._in_frame or self._head)

    def _header_size(self) -> int:
        """Bytes needed to know a frame's header, by what there is."""
        if len(self._head) < 5:
            return 5
        if self._head[:4] != _ZSTD:
            return 8  # a skippable frame: magic and length
        flags = self._head[4]
        single = flags >> 5 & 1
        content = (single, 2, 4, 8)[flags >> 6]
        return 5 + (not single) + (0, 1, 2, 4)[flags & 3] + content

    def _header(self) -> None:
        """Act on a whole header of a frame or block."""
        head = self._head
        if not self._in_frame and len(head) < self._header_size():
            return
        self._head = b''
        if self._in_frame:
            fields = int.from_bytes(head, 'little')
            self._last = bool(fields & 1)
            kind, size = fields >> 1 & 3, fields >> 3
            self._skip = 1 if kind == 1 else size  # 1: one byte repeated
            if self._last:
                self._in_frame = False
                self._skip += 4 * self._checksum
        elif head[:4] == _ZSTD:
            self._in_frame = True
            self._checksum = bool(head[4] & 4)
        else:
            self._skip = int.from_bytes(head[4:8], 'little')


def _drain(decoded: stream_room.Stream) -> None:
    """Read what is left: little, or the stream is not what it seems.

    :raises xenimport.exceptions.PackageError: if much is left
    """
    if decoded.skip(_EXCESS) == _EXCESS:
        raise exceptions.PackageError(
            'package.excess-data',
            'Far more is compressed in the package than belongs to it',
            where=decoded.where,
            expected=f'at most {_EXCESS} bytes after the last that is used',
            found='more',
            fix='export the guest again; do not trust this package',
        )


def _undecodable(
    where: str, kind: str, error: Exception
) -> exceptions.PackageError:
    return exceptions.PackageError(
        'package.undecodable',
        'The package cannot be decompressed',
        where=where,
        expected=f'an intact {kind} stream',
        found=str(error)[:200],
        fix='copy the package again, or export it again',
    )


def decoded(inner: stream_room.Stream) -> stream_room.Stream:
    """The stream, decompressed if it is gzip or zstd; one layer only."""
    head = inner.peek(_LONGEST_SKIPPED + 12)
    if head.startswith(_GZIP):
        return GzipStream(inner)
    if head[1:4] == _ZSTD_SKIPPED and head[0] >> 4 == 5:
        # pzstd begins with a frame that only states a size.
        head = head[8 + int.from_bytes(head[4:8], 'little') :]
    if head.startswith(_ZSTD):
        return ZstdStream(inner)
    return inner
