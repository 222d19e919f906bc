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

"""VHD: fixed, dynamic and differencing disks."""

from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Sequence
import heapq

from xenimport.converter import base
from xenimport.converter import region
from xenimport.converter import vhd_chain
from xenimport.converter import vhd_format
from xenimport.converter import vhd_stream
from xenimport import model
from xenimport import stream as stream_room

SECTOR = vhd_format.SECTOR
_SUFFIX = '.vhd'
#: Stretches of one read that a layer lacks, and that are read one by one.
_MANY_GAPS = 8


class VhdImage(base.DiskImage):
    """The disk that a chain of layers makes, as a read-only device.

    :param footer: of the newest layer
    :param links: the chain, the newest first
    """

    format = 'vhd'

    def __init__(
        self, footer: vhd_format.Footer, links: Sequence[vhd_chain.Link]
    ) -> None:
        self.virtual_size = footer.current_size
        self.creator = footer.creator_name
        newest = links[0].layer.reader
        # The parents' geometry is nobody's business any more.
        self.findings = vhd_format.geometry_findings(
            footer, newest.where, newest.name
        ) + tuple(finding for link in links for finding in link.findings)
        self.regions = tuple(link.region for link in links)
        self._layers = tuple(link.layer for link in links)

    @property
    def bytes_read(self) -> int:
        """Bytes read so far."""
        return sum(layer.reader.bytes_read for layer in self._layers)

    def extents(self) -> Iterator[tuple[int, int, bool]]:
        start = end = 0  # of the run of data that is being collected
        for first, last in self._runs():
            if first > end:
                if end > start:
                    yield start, end - start, True
                yield end, first - end, False
                start = first
            end = max(end, last)
        if end > start:
            yield start, end - start, True
        if end < self.virtual_size:
            yield end, self.virtual_size - end, False

    def _runs(self) -> Iterator[tuple[int, int]]:
        """Yield (start, end) of the layers' data, ordered by the start."""
        parts = []
        limit = self.virtual_size
        for layer in self._layers:
            # Beyond its end a layer hides those below it.
            limit = min(limit, layer.size)
            parts.append(_clipped(layer.runs(), limit))
        return heapq.merge(*parts)

    def pread_into(self, buffer: memoryview, offset: int) -> None:
        self._read(0, buffer, offset)

    def _read(self, level: int, buffer: memoryview, offset: int) -> None:
        """Fill the buffer with what a layer and those below it hold."""
        end = 0
        if level < len(self._layers):
            size = self._layers[level].size
            end = max(0, min(len(buffer), size - offset))
        if end < len(buffer):
            buffer[end:] = bytes(len(buffer) - end)
        if not end:
            return
        missing = self._layers[level].read(buffer[:end], offset)
        if len(missing) <= _MANY_GAPS:
            for first, last in missing:
                self._read(level + 1, buffer[first:last], offset + first)
            return
        # One large read takes less time than many small ones.
        low, high = missing[0][0], missing[-1][1]
        below = memoryview(bytearray(high - low))
        self._read(level + 1, below, offset + low)
        for first, last in missing:
            buffer[first:last] = below[first - low : last - low]

    def check_unchanged(self) -> None:
        for layer in self._layers:
            layer.reader.check_unchanged()

    def close(self) -> None:
        for layer in self._layers:
            layer.reader.release()


def _clipped(
    runs: Iterator[tuple[int, int]], limit: int
) -> Iterator[tuple[int, int]]:
    """The runs below a limit, which end with whole sectors."""
    for start, end in runs:
        if start >= limit:
            return
        yield (
            start,
            min(-(-end // SECTOR) * SECTOR, -(-limit // SECTOR) * SECTOR),
        )


class VhdConverter(base.Converter):
    """Opens VHDs, a differencing one with all of its chain."""

    handles = 'VHD: fixed, dynamic, and differencing with its parents'

    def probe(self, package: model.Package, disk: model.Disk) -> bool:
        name = disk.region.name.lower()
        if disk.region.decoder or not disk.region.seekable:
            # Opening it says that it cannot be read in place.
            return name.removesuffix('.gz').endswith(_SUFFIX)
        reader = region.RegionReader(disk.region)
        try:
            head = reader.read(0, 8)
            tail = reader.read(max(0, reader.size - SECTOR), 9)
        finally:
            reader.release()
        for cookie in vhd_format.COOKIES:
            if cookie in (head, tail[:8], tail[1:9]):
                return True
        # A fixed VHD that was cut short has no mark left but its name,
        # and must not be taken for RAW.
        return name.endswith(_SUFFIX)

    def open(self, package: model.Package, disk: model.Disk) -> base.DiskImage:
        chain = vhd_chain.Chain(package)
        try:
            footer = chain.open(disk.region)
        except BaseException:
            chain.release()
            raise
        return VhdImage(footer, chain.links)

    def probe_stream(
        self, disk: model.Disk, stream: stream_room.Stream
    ) -> bool:
        if stream.peek(8) in vhd_format.COOKIES:
            return True
        # What is fixed says so only at its end.
        name = disk.region.name.lower().removesuffix('.gz')
        return name.endswith(_SUFFIX)

    def open_stream(
        self, disk: model.Disk, stream: stream_room.Stream
    ) -> base.ForwardImage:
        return vhd_stream.opened(stream, disk.region.name)
