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

"""Reads a package with the product as the workflow does, but for a target.

A bounded part of each disk is read, in place or forward as the package
has it, and what every reader promises is checked on the way. Whatever the
package is, nothing but the product's own errors may come out.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
import contextlib
import dataclasses
import functools
import os
import tempfile

from xenimport.converter import base as converter_base
from xenimport.converter import qcow2
from xenimport.converter import raw
from xenimport.converter import vdi
from xenimport.converter import vhd
from xenimport.converter import vhdx
from xenimport.converter import vmdk
from xenimport import model
from xenimport.source import base as source_base
from xenimport.source import disk as disk_source
from xenimport.source import ova
from xenimport.source import ovf_folder
from xenimport.source import xenapi
from xenimport.source import xva
from xenimport import stream as stream_room
from xenimport import stream_decoders
from xenimport import stream_files
from xenimport import stream_packages
from xenimport.workflow import drivers

#: Bytes that are read of an extent, at its start and at its end.
_PROBE = 64 * 1024
#: Bytes that are read of one disk.
MOST_BYTES = 32 << 20
#: Bytes of the largest disk whose content is kept.
MOST_KEPT = 4 << 20


class BrokenPromiseError(Exception):
    """A reader has not done what its base class promises."""


@dataclasses.dataclass
class Content:
    """What a disk turned out to hold.

    :ivar data: all of a small disk, else None
    """

    format: str
    size: int | None
    data: bytes | None = None


@functools.cache
def sources() -> dict[str, source_base.Source]:
    """Every source, in the order in which they are asked."""
    return {
        'xva': xva.XvaSource(),
        'xenapi': xenapi.XenapiSource(),
        'ova': ova.OvaSource(),
        'ovf': ovf_folder.OvfSource(),
        'disk': disk_source.DiskSource(),
    }


@functools.cache
def converters() -> dict[str, converter_base.Converter]:
    """Every converter, in the order in which they are asked."""
    return {
        'qcow2': qcow2.Qcow2Converter(),
        'vhdx': vhdx.VhdxConverter(),
        'vdi': vdi.VdiConverter(),
        'vmdk': vmdk.VmdkConverter(),
        'vhd': vhd.VhdConverter(),
        'raw': raw.RawConverter(),
    }


def read(
    paths: Sequence[str], opened: Callable[[], object] = lambda: None
) -> Mapping[str, Content]:
    """Read every disk of a package, by name.

    :param opened: called when a disk has been opened
    :raises xenimport.exceptions.XenImportError: if it is refused
    """
    if len(paths) == 1:
        stream = stream_packages.open_package(paths[0])
        if stream is not None:
            with contextlib.closing(stream):
                return read_stream(stream, opened)
    system = drivers.open_package(sources(), paths)
    found: dict[str, Content] = {}
    for disk in system.disks:
        if disk.region.seekable and not disk.region.decoder:
            _name, converter = drivers.choose_converter(
                converters(), system.package, disk
            )
            with converter.open(system.package, disk) as image:
                opened()
                found[disk.region.name] = read_image(image)
        else:
            region = disk.region
            with contextlib.closing(
                stream_decoders.decoded(
                    stream_room.Digested(
                        stream_files.RegionStream(region), region.digests
                    )
                )
            ) as content:
                found[region.name] = _read_arriving(
                    system, disk, content, opened
                )
    return found


def read_stream(
    stream: stream_room.Stream, opened: Callable[[], object] = lambda: None
) -> Mapping[str, Content]:
    """The same for a package that comes once."""
    system = drivers.open_stream(sources(), stream)
    disks = {disk.region.name: disk for disk in system.disks}
    found: dict[str, Content] = {}
    for name, content in system.package.arrivals or ():
        if name in disks:
            found[name] = _read_arriving(system, disks[name], content, opened)
    return found


def _read_arriving(
    system: model.VirtualSystem,
    disk: model.Disk,
    content: stream_room.Stream,
    opened: Callable[[], object],
) -> Content:
    _name, converter = drivers.choose_converter(
        converters(), system.package, disk, content
    )
    before = content.position
    try:
        image = converter.open_stream(disk, content)
    except converter_base.NotForward:
        if content.position != before:
            raise BrokenPromiseError('not forward, but it took some') from None
        return _read_unpacked(system, disk, content, opened)
    opened()
    return read_forward(image)


def _read_unpacked(
    system: model.VirtualSystem,
    disk: model.Disk,
    content: stream_room.Stream,
    opened: Callable[[], object],
) -> Content:
    """Read a disk that has to be unpacked, as far as it is not too long."""
    opened()
    data = content.read(MOST_BYTES)
    name = disk.region.name
    with tempfile.NamedTemporaryFile() as file:
        file.write(data)
        file.flush()
        region = model.Region(file.name, name, (model.Piece(0, len(data), 0),))
        package = dataclasses.replace(
            system.package, members={name: region}, arrivals=None
        )
        disk = dataclasses.replace(disk, region=region)
        _name, converter = drivers.choose_converter(
            converters(), package, disk
        )
        with converter.open(package, disk) as image:
            return read_image(image)


def read_image(image: converter_base.DiskImage) -> Content:
    """The start and the end of each extent, all of a small disk."""
    size = image.virtual_size
    data = bytearray(size) if size <= MOST_KEPT else None
    end = done = 0
    for offset, length, allocated in image.extents():
        if offset != end or length <= 0:
            raise BrokenPromiseError(
                f'extent at {offset}, {length} bytes, after {end}'
            )
        end += length
        if length % 512 and end != size:
            raise BrokenPromiseError(f'an extent of {length} bytes')
        if not allocated:
            continue
        if data is not None and end <= size:
            image.pread_into(memoryview(data)[offset:end], offset)
        elif done < MOST_BYTES:
            part = min(length, _PROBE)
            done += len(image.pread(offset, part))
            done += len(image.pread(end - part, part))
    if end != size:
        raise BrokenPromiseError(f'extents up to {end} of {size}')
    if data is not None and image.pread(0, size) != data:
        raise BrokenPromiseError('what is not allocated is not zeros')
    image.check_unchanged()
    kept = None if data is None else bytes(data)
    return Content(image.format, size, kept)


def read_forward(image: converter_base.ForwardImage) -> Content:
    """The runs, until they are enough."""
    done = last = 0
    parts: list[tuple[int, int]] = []
    kept = bytearray()
    for offset, run in image.runs():
        end = offset + len(run)
        if offset < 0 or not 0 < len(run) <= converter_base.MAX_RUN:
            raise BrokenPromiseError(f'a run at {offset}, {len(run)} bytes')
        if image.virtual_size is not None and end > image.virtual_size:
            raise BrokenPromiseError(f'a run to {end}, past the end')
        if image.ascending and offset < last:
            raise BrokenPromiseError(f'a run at {offset} after {last}')
        parts.append((offset, end))
        last = end
        if end <= MOST_KEPT:
            kept.extend(bytes(max(0, end - len(kept))))
            kept[offset:end] = run
        done += len(run)
        if done > MOST_BYTES:
            return Content(image.format, image.virtual_size)
    parts.sort()
    for before, after in zip(parts, parts[1:], strict=False):
        if after[0] < before[1]:
            raise BrokenPromiseError(f'runs overlap: {before}, {after}')
    if image.virtual_size is None:
        raise BrokenPromiseError('no size after the last run')
    if image.data_size is not None and done > image.data_size:
        raise BrokenPromiseError(f'{done} bytes, not {image.data_size}')
    data = None
    if image.virtual_size <= MOST_KEPT:
        data = bytes(kept.ljust(image.virtual_size, b'\0'))
    return Content(image.format, image.virtual_size, data)


def address_space() -> int:
    """Bytes of address space that this process uses."""
    with open('/proc/self/statm', encoding='ascii') as stream:
        return int(stream.read().split()[0]) * os.sysconf('SC_PAGE_SIZE')
