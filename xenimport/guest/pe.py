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


"""The headers of a PE file: which machine it is for, where its parts are.

Source: Microsoft's "PE Format" and, for what a signature covers, its
"Windows Authenticode Portable Executable Signature Format".
"""

from __future__ import annotations

from collections.abc import Iterator
import dataclasses
import struct

#: IMAGE_FILE_MACHINE_*, by the names that INF files have for them.
_MACHINES = {0x014C: 'x86', 0x8664: 'amd64', 0xAA64: 'arm64'}
#: Offset of the data directories in the optional header, by its magic.
_DIRECTORIES = {0x10B: 96, 0x20B: 112}
_CHECKSUM = 64
_SECURITY = 4
#: A WIN_CERTIFICATE's head, and its types that matter here.
_CERTIFICATE = struct.Struct('<IHH')
_PKCS7 = 2
_CERTIFICATES_LIMIT = 16


@dataclasses.dataclass(frozen=True)
class Layout:
    """What a PE's signature leaves out of its digest; offsets in bytes.

    :ivar checksum: where the four bytes of the checksum are
    :ivar entry: where the directory's eight bytes about signatures are
    :ivar start: and ``end``: where the signatures are, both 0 without
    """

    checksum: int
    entry: int
    start: int
    end: int


def machine(data: bytes) -> str:
    """``amd64``, ``x86`` or ``arm64``; '' for any other and for no PE."""
    at = _header(data)
    if at is None:
        return ''
    return _MACHINES.get(int.from_bytes(data[at + 4 : at + 6], 'little'), '')


def _header(data: bytes) -> int | None:
    """Where the PE header starts, None where there is none."""
    if len(data) < 64 or data[:2] != b'MZ':
        return None
    (at,) = struct.unpack_from('<I', data, 0x3C)
    if at > len(data) - 24 or data[at : at + 4] != b'PE\0\0':
        return None
    return int(at)


def layout(data: bytes) -> Layout | None:
    """The places of a PE that its signature does not cover.

    None where it is no PE, or says what cannot be.
    """
    at = _header(data)
    if at is None or at + 26 > len(data):
        return None
    optional = at + 24
    (magic,) = struct.unpack_from('<H', data, optional)
    directories = _DIRECTORIES.get(magic)
    if directories is None:
        return None
    entry = optional + directories + 8 * _SECURITY
    if entry + 8 > len(data):
        return None
    (count,) = struct.unpack_from('<I', data, optional + directories - 4)
    if count <= _SECURITY:
        return None
    start, size = struct.unpack_from('<II', data, entry)
    if size == 0:
        start = 0
    elif start < entry + 8 or start + size > len(data):
        return None
    return Layout(optional + _CHECKSUM, entry, start, start + size)


def covered(data: bytes, places: Layout) -> Iterator[bytes]:
    """The bytes that a signature covers, in order."""
    view = memoryview(data)
    end = places.start or len(data)
    yield bytes(view[: places.checksum])
    yield bytes(view[places.checksum + 4 : places.entry])
    yield bytes(view[places.entry + 8 : end])
    if places.start:
        yield bytes(view[places.end :])
    elif len(data) % 8:
        # A signature is put at a multiple of eight, after zeros.
        yield bytes(-len(data) % 8)


def signatures(data: bytes, places: Layout) -> Iterator[bytes]:
    """The PKCS #7 structures in the table of signatures."""
    at = places.start
    for _ in range(_CERTIFICATES_LIMIT):
        if not at or at + _CERTIFICATE.size > places.end:
            return
        length, _revision, kind = _CERTIFICATE.unpack_from(data, at)
        if length < _CERTIFICATE.size or at + length > places.end:
            return
        if kind == _PKCS7:
            yield data[at + _CERTIFICATE.size : at + length]
        at += -(-length // 8) * 8
