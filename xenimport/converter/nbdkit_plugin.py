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

"""The script that nbdkit's Python plugin runs; see ``serve.py``.

nbdkit calls the functions below by their names.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterator
import functools
import importlib
import json
import mmap
import pathlib
import struct
import threading
import typing

import nbdkit  # type: ignore[import-not-found]  # made by nbdkit itself

from xenimport.converter import base
from xenimport import model

API_VERSION = 2

_HOLE = nbdkit.EXTENT_HOLE | nbdkit.EXTENT_ZERO
_COUNTER = struct.Struct('=Q')
_settings: dict[str, str] = {}


class _Served:
    """The disk image, its extents, and the counter of bytes read."""

    def __init__(self, image: base.DiskImage, counter: str) -> None:
        self.image = image
        self.extents = list(image.extents())
        self._starts = [offset for offset, _, _ in self.extents]
        with pathlib.Path(counter).open('r+b') as stream:
            self._counter = mmap.mmap(stream.fileno(), _COUNTER.size)
        self._lock = threading.Lock()
        self._count = 0

    def overlapping(
        self, offset: int, length: int
    ) -> Iterator[tuple[int, int, bool]]:
        """The extents that a range touches."""
        index = max(0, bisect.bisect_right(self._starts, offset) - 1)
        end = offset + length
        while index < len(self._starts) and self._starts[index] < end:
            yield self.extents[index]
            index += 1

    def count(self, offset: int, length: int) -> None:
        """Add a read's data, without holes, to the counter."""
        end = offset + length
        data = sum(
            min(end, start + size) - max(offset, start)
            for start, size, allocated in self.overlapping(offset, length)
            if allocated
        )
        with self._lock:
            self._count += data
            self._counter[:] = _COUNTER.pack(self._count)


def _region(fields: dict[str, typing.Any]) -> model.Region:
    pieces = tuple(model.Piece(*piece) for piece in fields['pieces'])
    digests = tuple(model.Digest(**digest) for digest in fields['digests'])
    return model.Region(
        **(
            fields
            | {
                'pieces': pieces,
                'digests': digests,
                'parts': tuple(fields['parts']),
            }
        )
    )


@functools.cache
def _served() -> _Served:
    """Open the image once, for all connections."""
    text = pathlib.Path(_settings['description']).read_text('utf-8')
    description = json.loads(text)
    package = description['package']
    members = {
        name: _region(fields) for name, fields in package['members'].items()
    }
    disk = description['disk']
    module, name = description['converter']
    kind = getattr(importlib.import_module(module), name)
    image = kind(description['options']).open(
        model.Package(**(package | {'members': members})),
        model.Disk(**(disk | {'region': _region(disk['region'])})),
    )
    return _Served(image, _settings['counter'])


def config(key: str, value: str) -> None:
    """Take a ``key=value`` of the command line."""
    _settings[key] = value


def get_ready() -> None:
    """Open the image before the socket is there."""
    _served()


def thread_model() -> int:
    """Reads may overlap."""
    model_number: int = nbdkit.THREAD_MODEL_PARALLEL
    return model_number


def open(readonly: bool) -> _Served:
    """Begin a connection."""
    return _served()


def get_size(handle: _Served) -> int:
    """The disk's size in bytes."""
    return handle.image.virtual_size


def can_multi_conn(handle: _Served) -> bool:
    """Nobody writes, so several connections see the same."""
    return True


def can_extents(handle: _Served) -> bool:
    """Holes are known."""
    return True


def pread(handle: _Served, buffer: bytearray, offset: int, flags: int) -> None:
    """Fill the buffer."""
    handle.image.pread_into(memoryview(buffer), offset)
    handle.count(offset, len(buffer))


def extents(
    handle: _Served, count: int, offset: int, flags: int
) -> list[tuple[int, int, int]]:
    """What of a range is data, what is hole."""
    return [
        (start, length, 0 if allocated else _HOLE)
        for start, length, allocated in handle.overlapping(offset, count)
    ]
