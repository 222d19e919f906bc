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


"""RAW disks that come once, forward."""

from __future__ import annotations

from collections.abc import Iterator

from xenimport.converter import base
from xenimport.converter import raw_content
from xenimport import exceptions
from xenimport import model
from xenimport import stream as stream_room

#: Bytes beyond the stated capacity that are still taken: OVF may state it
#: in mebibytes, rounded.
_EXCESS = 64 << 20


class SparseImage(base.ForwardImage):
    """A disk that comes in runs of data, as an XVA has it.

    :raises xenimport.exceptions.DiskImageError: if no disk has its size
    """

    format = 'raw'
    ascending = True

    def __init__(self, stream: stream_room.Sparse) -> None:
        self._stream = stream
        self.virtual_size = stream.size
        raw_content.check_size(stream.size or 0, stream.where)

    def runs(self) -> Iterator[tuple[int, memoryview]]:
        buffer = memoryview(bytearray(base.MAX_RUN))
        while (run := self._stream.next_run()) is not None:
            offset, left = run
            while left:
                part = buffer[: min(left, base.MAX_RUN)]
                self._stream.fill(part)
                yield offset, part
                offset += len(part)
                left -= len(part)


class PlainImage(base.ForwardImage):
    """A disk whose bytes all come, in order.

    :raises xenimport.exceptions.DiskImageError: if no disk has its size
    """

    format = 'raw'
    ascending = True

    def __init__(self, stream: stream_room.Stream, disk: model.Disk) -> None:
        self._stream = stream
        self._known = disk.format is not None
        self.virtual_size = self.data_size = stream.size
        self._limit: int | None = None
        if stream.size is not None:
            raw_content.check_size(stream.size, stream.where)
        elif disk.capacity is not None:
            self._limit = disk.capacity + _EXCESS

    def runs(self) -> Iterator[tuple[int, memoryview]]:
        buffer = memoryview(bytearray(base.MAX_RUN))
        position = 0
        tail = b''
        while count := self._fill(buffer):
            self._check_limit(position + count)
            tail = bytes(buffer[max(0, count - raw_content.SECTOR) : count])
            yield position, buffer[:count]
            position += count
        # Only its last bytes tell a fixed VHD from a RAW disk.
        if not self._known:
            raw_content.refuse(
                raw_content.container(b'', tail), self._stream.where
            )
        raw_content.check_size(position, self._stream.where)
        if self.virtual_size is not None and position < self.virtual_size:
            raise self._stream.truncated(self.virtual_size, position)
        self.virtual_size = position

    def _fill(self, buffer: memoryview) -> int:
        """Fill the buffer as far as the stream goes."""
        done = 0
        while done < len(buffer):
            count = self._stream.read_into(buffer[done:])
            if not count:
                break
            done += count
        return done

    def _check_limit(self, size: int) -> None:
        if self._limit is not None and size > self._limit:
            raise exceptions.DiskImageError(
                'raw.beyond-capacity',
                'The RAW disk is longer than its description says',
                where=self._stream.where,
                expected=f'at most {self._limit} bytes',
                found='more',
                fix='do not trust this package; or correct the capacity of '
                'the disk in its description',
            )
