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

"""Sound tars for the fuzz tests, and their headers' checksums."""

from __future__ import annotations

from collections.abc import Mapping
import io
import tarfile

from xenimport.tests.fuzz import mutation

_BLOCK = 512
#: A header's numbers and its name: (offset, length).
_PARTS = ((0, 100), (124, 12), (156, 1), (257, 8), (345, 155))


def build(
    members: Mapping[str, bytes], form: int = tarfile.USTAR_FORMAT
) -> bytes:
    """A tar of the members, in their order."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode='w', format=form) as archive:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return stream.getvalue()


def sample(name: str, data: bytes) -> mutation.Sample:
    """A tar whose headers are what is changed."""
    offsets = headers(data)

    def seal(target: bytearray) -> None:
        for offset in offsets:
            set_checksum(target, offset)

    hot = [
        (offset + start, offset + start + length)
        for offset in offsets
        for start, length in _PARTS
    ]
    return mutation.Sample(name, data, hot=hot, seals=(seal, seal, seal))


def headers(data: bytes) -> list[int]:
    """The offsets of all headers, extended ones too."""
    found = []
    offset = 0
    while data[offset : offset + 1].strip(b'\0'):
        found.append(offset)
        size = int(data[offset + 124 : offset + 136].strip(b' \0'), 8)
        offset += _BLOCK + -(-size // _BLOCK) * _BLOCK
    return found


def set_checksum(target: bytearray, offset: int) -> None:
    """Make the checksum of a header right."""
    if offset + _BLOCK <= len(target):
        target[offset + 148 : offset + 156] = b' ' * 8
        total = sum(target[offset : offset + _BLOCK])
        target[offset + 148 : offset + 156] = b'%06o\0 ' % total
