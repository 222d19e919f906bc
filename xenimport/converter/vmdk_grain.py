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

"""The grains of a stream-optimized VMDK: a marker, and deflated data."""

from __future__ import annotations

from collections.abc import Callable
import typing

from xenimport.converter import vmdk_format
from xenimport import exceptions

Inflate = Callable[[bytes | memoryview, int], typing.Any]


def find_inflate() -> tuple[Inflate, tuple[type[Exception], ...]]:
    """The fastest inflate that is installed, and its errors.

    What it gives has at most as many bytes as its second argument; more
    is an error, and so is less than a whole stream.
    """
    try:
        import deflate
    except ImportError:
        return _find_streaming()
    return deflate.zlib_decompress, (deflate.DeflateError, ValueError)


def _find_streaming() -> tuple[Inflate, tuple[type[Exception], ...]]:
    import zlib

    decompressor: Callable[[], typing.Any] = zlib.decompressobj
    errors: list[typing.Any] = [zlib.error, ValueError]
    try:
        from isal import isal_zlib
    except ImportError:
        pass
    else:
        decompressor = isal_zlib.decompressobj
        errors.append(isal_zlib.error)

    def inflate(data: bytes | memoryview, size: int) -> typing.Any:
        decoder = decompressor()
        result = decoder.decompress(data, size)
        # The end mark and checksum are read only when asked for more.
        if not decoder.eof:
            rest = decoder.decompress(decoder.unconsumed_tail, 1)
            if rest or not decoder.eof:
                raise ValueError('not one whole grain')
        return result

    return inflate, tuple(errors)


_inflate, _INFLATE_ERRORS = find_inflate()


def grain(
    header: vmdk_format.Header, index: int, data: memoryview, where: str
) -> memoryview:
    """A grain's bytes; short only at the end of the disk.

    :param index: the grain's number on the disk
    :param data: the grain's marker, and what follows it
    :raises xenimport.exceptions.DiskImageError: if the marker is not
        that of the grain, or the data are damaged
    """
    if len(data) < 16:
        raise damaged(where, 'the marker of a grain', f'{len(data)} bytes')
    marker = vmdk_format.parse_marker(data)
    start = index * header.grain
    if marker.value * vmdk_format.SECTOR != start:
        raise damaged(
            where,
            f'the grain of sector {start // vmdk_format.SECTOR} of the disk',
            f'the grain of sector {marker.value}',
        )
    most = min(header.most_compressed, len(data) - vmdk_format.GRAIN_MARKER)
    if not 0 < marker.size <= most:
        raise damaged(
            where,
            f'1 to {most} bytes, compressed',
            f'{marker.size} bytes',
        )
    packed = data[
        vmdk_format.GRAIN_MARKER : vmdk_format.GRAIN_MARKER + marker.size
    ]
    wanted = min(header.grain, header.size - start)
    try:
        plain = memoryview(_inflate(packed, header.grain))
    except _INFLATE_ERRORS as failure:
        raise damaged(
            where,
            f'at most {header.grain} bytes, compressed with deflate',
            f'{marker.size} bytes that cannot be decompressed so',
        ) from failure
    if len(plain) < wanted:
        raise damaged(where, f'{wanted} bytes', f'{len(plain)} bytes')
    return plain[:wanted]


def damaged(
    where: str, expected: str, found: str
) -> exceptions.DiskImageError:
    """The error of a grain that is not what it has to be."""
    return vmdk_format.error(
        'vmdk.grain',
        'A grain of the VMDK is damaged',
        where,
        expected=expected,
        found=found,
    )
