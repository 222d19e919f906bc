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


"""The header blocks of a tar archive (POSIX.1-2017 pax, GNU tar)."""

from __future__ import annotations

import dataclasses

BLOCK = 512

#: Kinds of members, by the header's type flag.
REGULAR = frozenset((b'0', b'\0', b'7'))
DIRECTORY = b'5'
PAX = frozenset((b'x', b'X'))
PAX_GLOBAL = b'g'
GNU_NAME = b'L'
GNU_LINK_NAME = b'K'
GNU_SPARSE = b'S'
KINDS = {
    b'1': 'hard link',
    b'2': 'symbolic link',
    b'3': 'character device',
    b'4': 'block device',
    b'6': 'named pipe',
    b'S': 'sparse file',
    b'M': 'continuation of another volume',
    b'V': 'volume label',
    b'D': 'incremental directory',
}


@dataclasses.dataclass
class Header:
    """One 512-byte header block, decoded."""

    name: bytes
    size: int
    kind: bytes
    offset: int


def is_header(block: bytes) -> bool:
    """Whether a block is a header whose checksum is right."""
    if len(block) < BLOCK or not block.strip(b'\0'):
        return False
    try:
        stated = number(block[148:156])
    except ValueError:
        return False
    # The checksum field counts as eight spaces.
    fields = block[:148] + b' ' * 8 + block[156:]
    unsigned = sum(fields)
    if stated == unsigned:
        return True
    # Old writers summed signed bytes.
    return stated == unsigned - 256 * sum(byte > 127 for byte in fields)


def number(field: bytes) -> int:
    """A header's number: octal digits, or GNU's base-256.

    :raises ValueError: if it is neither, or negative
    """
    if field[0] & 0x80:
        if field[0] & 0x40:
            raise ValueError('negative')
        return int.from_bytes(bytes((field[0] & 0x3F,)) + field[1:], 'big')
    digits = field.replace(b'\0', b' ').strip()
    if not digits:
        return 0
    if digits.strip(b'01234567'):
        raise ValueError('not octal')
    return int(digits, 8)


_SIGNATURES = (
    (b'\x1f\x8b', 'a gzip stream'),
    (b'\x28\xb5\x2f\xfd', 'a zstd stream'),
    (b'PK\x03\x04', 'a zip archive'),
    (b'conectix', 'a VHD'),
    (b'QFI\xfb', 'a qcow2 image'),
    (b'KDMV', 'a VMDK'),
    (b'<', 'XML or HTML text'),
)


def describe(block: bytes) -> str:
    """What the first bytes of a file look like, for an error."""
    if not block:
        return 'nothing: the file is empty'
    for signature, name in _SIGNATURES:
        if block.startswith(signature):
            return name
    return f'bytes {block[:16].hex(" ")}'
