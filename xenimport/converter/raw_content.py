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


"""Whether bytes are a disk's, or an image of another format."""

from __future__ import annotations

from oslo_utils.imageutils import format_inspector

from xenimport import exceptions

SECTOR = 512
#: No signature of a container lies further on, but for a footer's.
HEAD = 512 * 1024
_STEP = 64 * 1024
#: Formats of the content that a plain disk may well have.
_PLAIN = frozenset(('raw', 'gpt', 'iso', 'luks'))
_VHD_COOKIES = (b'conectix', b'v_poison')
_STREAMS = (b'\x1f\x8b', b'\x28\xb5\x2f\xfd', b'BZh', b'\xfd7zXZ\0')


def refuse(found: str | None, where: str) -> None:
    """Raise the error of what is not RAW.

    :param found: the format
    """
    if found is not None:
        raise exceptions.DiskImageError(
            'raw.is-container',
            'The disk is not RAW but an image of another format',
            where=where,
            expected='the bytes of a disk',
            found=found,
            fix='enable the converter of this format, or convert the disk '
            'to RAW or VHD first',
        )


def check_size(size: int, where: str) -> None:
    """Make sure that a disk of this size can be.

    :raises xenimport.exceptions.DiskImageError: if it cannot
    """
    if size == 0 or size % SECTOR:
        raise exceptions.DiskImageError(
            'raw.size',
            'The RAW disk does not end at the end of a sector',
            where=where,
            expected='a multiple of 512 bytes, and not zero',
            found=f'{size} bytes',
            fix='copy the disk again; it was probably cut short',
        )


def container(head: bytes, tail: bytes = b'') -> str | None:
    """Which other format the bytes are of, None if they are a disk's.

    :param head: the first 512 KiB
    :param tail: the last 512 bytes, where they are known
    """
    for cookie in _VHD_COOKIES:
        # A footer of 511 bytes is what early Virtual PC wrote.
        if cookie in (head[:8], tail[:8], tail[1:9]):
            return 'vhd'
    if head.startswith(_STREAMS):
        return 'a compressed stream'
    inspectors = {
        name: kind()
        for name, kind in format_inspector.ALL_FORMATS.items()
        if name not in _PLAIN
    }
    for offset in range(0, min(len(head), HEAD), _STEP):
        chunk = head[offset : offset + _STEP]
        for name, inspector in list(inspectors.items()):
            matches = _matches(inspector, chunk)
            if matches:
                return name
            if matches is None:
                del inspectors[name]
    return None


def _matches(
    inspector: format_inspector.FileInspector, chunk: bytes
) -> bool | None:
    """Whether the bytes are of the inspector's format; None if never."""
    certain = False
    try:
        inspector.eat_chunk(chunk)
    except Exception:  # hostile input; no more of it will be understood
        # A damaged image of a known format must not pass for RAW.
        certain = True
    try:
        matches = bool(inspector.format_match)
    except Exception:  # of text that is no VMDK's, oslo.utils cannot say
        return None
    return None if certain and not matches else matches
