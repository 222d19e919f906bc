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

"""Writes what an enemy would hand over, for tests.

All of it is small on the disk. It shares nothing with the product.
"""

from __future__ import annotations

from collections.abc import Iterable
import gzip
import io
import typing
import zlib

from xenimport.tests import packages
from xenimport.tests import vhd_packages
from xenimport.tests import vmdk_packages

GIB = 1 << 30
_ZEROS = 1 << 24


# tar


class Member(typing.NamedTuple):
    """A member of a tar, byte by byte as wanted.

    :ivar kind: the type flag
    :ivar size: what the header states; by default the truth
    """

    name: bytes
    data: bytes = b''
    kind: bytes = b'0'
    size: int | None = None
    link: bytes = b''


def _number(value: int) -> bytes:
    if value < 8**11:
        return b'%011o\0' % value
    # GNU's base-256.
    return b'\x80' + value.to_bytes(11, 'big')


def tar(members: Iterable[Member]) -> bytes:
    """A tar of the members; nothing is judged."""
    stream = io.BytesIO()
    for member in members:
        size = len(member.data) if member.size is None else member.size
        header = b''.join(
            (
                member.name[:100].ljust(100, b'\0'),
                b'0000644\0' + b'0000000\0' * 2,
                _number(size),
                b'00000000000\0',
                b' ' * 8,
                member.kind,
                member.link[:100].ljust(100, b'\0'),
                b'ustar\x0000',
            )
        ).ljust(512, b'\0')
        total = b'%06o\0 ' % sum(header)
        stream.write(header[:148] + total + header[156:])
        stream.write(member.data + bytes(-len(member.data) % 512))
    stream.write(bytes(1024))
    return stream.getvalue()


def pax(**records: str) -> Member:
    """The extended header of the member after it."""
    found = b''
    for key, value in records.items():
        body = f' {key.replace("__", ".")}={value}\n'.encode()
        length = len(body) + 1
        while length != len(body) + len(str(length)):
            length += 1
        found += str(length).encode() + body
    return Member(b'PaxHeaders/x', found, b'x')


# XML


def with_doctype(text: bytes, doctype: str, entity: str = '&bomb;') -> bytes:
    """A document with a document type, and an entity where a name was.

    :param text: has ``guest`` for a name
    """
    start, _, rest = text.partition(b'?>')
    if not rest:
        start, rest = b'<?xml version="1.0"', text
    rest = rest.replace(b'>guest<', f'>{entity}<'.encode(), 1)
    return start + b'?>' + doctype.encode() + rest


def doctypes(secret: str) -> dict[str, str]:
    """Document types that no parser should act on, by what they do.

    :param secret: a file on the host
    """
    layers = ''.join(
        f'<!ENTITY l{number} "{f"&l{number - 1};" * 10}">'
        for number in range(1, 12)
    )
    return {
        'laughs': f'<!DOCTYPE x [<!ENTITY l0 "ha">{layers}'
        '<!ENTITY bomb "&l11;">]>',
        'quadratic': '<!DOCTYPE x [<!ENTITY a "'
        + 'a' * 50_000
        + f'"><!ENTITY bomb "{"&a;" * 50_000}">]>',
        'file': f'<!DOCTYPE x [<!ENTITY bomb SYSTEM "file://{secret}">]>',
        'parameter': f'<!DOCTYPE x [<!ENTITY % p SYSTEM "file://{secret}">'
        '%p;<!ENTITY bomb "b">]>',
        'external': f'<!DOCTYPE x SYSTEM "file://{secret}" ['
        '<!ENTITY bomb "b">]>',
        'network': '<!DOCTYPE x [<!ENTITY bomb SYSTEM '
        '"http://127.0.0.1:9/x">]>',
        'loop': '<!DOCTYPE x [<!ENTITY b "&bomb;"><!ENTITY bomb "&b;">]>',
        'plain': '<!DOCTYPE x>',
    }


def nested(depth: int = 200_000) -> bytes:
    """Elements in elements."""
    return b'<Envelope>' + b'<a>' * depth + b'</a>' * depth + b'</Envelope>'


# Bombs


def zeros_gzip(size: int) -> bytes:
    """So many bytes of zeros, whole sixteen mebibytes, as gzip."""
    return gzip.compress(bytes(_ZEROS), 9, mtime=0) * (size // _ZEROS)


def zeros_zstd(size: int, window: int = 0x38) -> bytes:
    """A frame of zeros, each 128 KiB of which take four bytes.

    :param window: the descriptor of the window, by default of 128 KiB
    """
    blocks = size >> 17
    # Kind 1: one byte repeated. The first bit is set in the last block.
    block = ((1 << 17) << 3 | 2).to_bytes(3, 'little') + b'\0'
    last = ((1 << 17) << 3 | 3).to_bytes(3, 'little') + b'\0'
    head = b'\x28\xb5\x2f\xfd' + bytes((0, window))
    return head + block * (blocks - 1) + last


def gzip_tail(data: bytes, zeros: int) -> bytes:
    """Data as gzip, with zeros after it."""
    return gzip.compress(data, mtime=0) + zeros_gzip(zeros)


def vmdk_grain_bomb() -> bytes:
    """A grain of 64 KiB that has 16 MiB of zeros in it."""
    stream = vmdk_packages.Stream(256)
    packed = zlib.compress(bytes(_ZEROS), 9)
    stream.entries[0] = stream.sector
    stream.out.write(vmdk_packages.grain_marker(0, packed))
    stream.finish()
    return stream.content


# Disks that name files


def child(locators: list[tuple[bytes, bytes]], name: str) -> bytes:
    """A differencing VHD whose parent stands elsewhere."""
    return vhd_packages.Vhd(
        1 << 20,
        {0: b'c' * 512},
        identity=vhd_packages.uuid_of(2),
        parent=vhd_packages.uuid_of(1),
        parent_name=name,
        locators=locators,
    ).build()


def parent() -> bytes:
    """The VHD that :func:`child` looks for."""
    return vhd_packages.Vhd(
        1 << 20, {0: b'p' * 512}, identity=vhd_packages.uuid_of(1)
    ).build()


def ova(href: str, content: bytes, **options: typing.Any) -> bytes:
    """An OVA with one disk of 64 KiB."""
    disk = packages.Disk('disk1', href, 1 << 16)
    text = packages.xencenter_ovf([disk], **options)
    return tar(
        (Member(b'guest.ovf', text), Member(href.encode()[-100:], content))
    )
