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

"""The VMDK converter: VMware's disks, as OVA packages carry them."""

from __future__ import annotations

import bisect
from collections.abc import Iterator
import posixpath

from xenimport.converter import base
from xenimport.converter import region
from xenimport.converter import vmdk_descriptor
from xenimport.converter import vmdk_extent
from xenimport.converter import vmdk_format
from xenimport.converter import vmdk_stream
from xenimport.converter import vmdk_tables
from xenimport import exceptions
from xenimport import model
from xenimport import stream as stream_room

SECTOR = vmdk_format.SECTOR


class VmdkImage(base.DiskImage):
    """A VMDK's data as a read-only device: its extents in a row."""

    format = 'vmdk'

    def __init__(
        self,
        readers: tuple[region.RegionReader, ...],
        parts: list[vmdk_extent.Extent],
        regions: tuple[model.Region, ...],
        findings: tuple[model.Finding, ...],
    ) -> None:
        self._readers = readers
        self._parts = parts
        self._starts = []
        size = 0
        for part in parts:
            self._starts.append(size)
            size += part.size
        self.virtual_size = size
        self.regions = regions
        self.findings = findings

    def extents(self) -> Iterator[tuple[int, int, bool]]:
        return vmdk_tables.merged(
            (start + offset, length, allocated)
            for start, part in zip(self._starts, self._parts, strict=True)
            for offset, length, allocated in part.extents()
        )

    def pread_into(self, buffer: memoryview, offset: int) -> None:
        number = bisect.bisect_right(self._starts, offset) - 1
        position = 0
        while position < len(buffer):
            part = self._parts[number]
            inside = offset + position - self._starts[number]
            length = min(len(buffer) - position, part.size - inside)
            part.read_into(buffer[position : position + length], inside)
            position += length
            number += 1

    def check_unchanged(self) -> None:
        for reader in self._readers:
            reader.check_unchanged()

    def close(self) -> None:
        for reader in self._readers:
            reader.release()


class VmdkConverter(base.Converter):
    """Opens monolithic, stream-optimized, flat and split VMDKs."""

    handles = 'VMDK: monolithic, stream-optimized, flat and split'

    def probe(self, package: model.Package, disk: model.Disk) -> bool:
        reader = region.RegionReader(disk.region)
        try:
            head = reader.read(0, 64)
        finally:
            reader.release()
        return _is_vmdk(head, disk.region.name)

    def open(self, package: model.Package, disk: model.Disk) -> base.DiskImage:
        opener = _Opener(package, disk)
        try:
            return opener.open()
        except BaseException:
            opener.release()
            raise

    def probe_stream(
        self, disk: model.Disk, stream: stream_room.Stream
    ) -> bool:
        name = disk.region.name.lower().removesuffix('.gz')
        return _is_vmdk(stream.peek(64), name)

    def open_stream(
        self, disk: model.Disk, stream: stream_room.Stream
    ) -> base.ForwardImage:
        return vmdk_stream.open_stream(disk, stream)


def _is_vmdk(head: bytes, name: str) -> bool:
    # What has lost its head must not be taken for RAW.
    return (
        head.startswith(
            (
                vmdk_format.MAGIC,
                vmdk_format.COWD_MAGIC,
                vmdk_format.SESPARSE_MAGIC,
            )
        )
        or head.lower().startswith(vmdk_descriptor.SIGNATURE)
        or name.lower().endswith('.vmdk')
    )


class _Opener:
    """Parses and validates one VMDK."""

    def __init__(self, package: model.Package, disk: model.Disk) -> None:
        self._package = package
        self._region = disk.region
        self._readers: list[region.RegionReader] = []
        self._findings: list[model.Finding] = []

    def open(self) -> VmdkImage:
        reader = self._reader(self._region)
        head = reader.read(0, SECTOR)
        if head.lower().startswith(vmdk_descriptor.SIGNATURE):
            return self._open_described(reader)
        header = self._header(reader, head)
        # A footer need not say where the descriptor is.
        self._check_descriptor(
            reader, vmdk_format.read_header(head, reader.where)
        )
        extent = self._sparse(reader, header)
        return self._image([extent], (self._region,))

    def _image(
        self,
        parts: list[vmdk_extent.Extent],
        regions: tuple[model.Region, ...],
    ) -> VmdkImage:
        return VmdkImage(
            tuple(self._readers), parts, regions, tuple(self._findings)
        )

    def _reader(self, part: model.Region) -> region.RegionReader:
        reader = region.RegionReader(part)
        self._readers.append(reader)
        return reader

    def release(self) -> None:
        """Close what was opened so far."""
        for reader in self._readers:
            reader.release()

    def _header(
        self, reader: region.RegionReader, head: bytes
    ) -> vmdk_format.Header:
        header = vmdk_format.read_header(head, reader.where)
        if header.directory == vmdk_format.AT_END and header.compressed:
            header = self._footer(reader, header)
        vmdk_format.check_header(header, reader.where)
        if header.unclean:
            self._findings.append(
                vmdk_format.unclean(reader.name, reader.where)
            )
        return header

    def _footer(
        self, reader: region.RegionReader, header: vmdk_format.Header
    ) -> vmdk_format.Header:
        """The header as it stands at the end, with the directory."""
        data = reader.read(max(0, reader.size - 3 * SECTOR), 3 * SECTOR)
        footer = None
        if len(data) == 3 * SECTOR and reader.size % SECTOR == 0:
            marker = vmdk_format.parse_marker(data)
            end = vmdk_format.parse_marker(data, 2 * SECTOR)
            if marker == (1, 0, vmdk_format.FOOTER) and end == (
                0,
                0,
                vmdk_format.END_OF_STREAM,
            ):
                footer = vmdk_format.parse_header(data[SECTOR : 2 * SECTOR])
        if footer is None:
            raise vmdk_format.no_footer(reader.where)
        vmdk_format.check_footer(header, footer, reader.where)
        return footer

    def _check_descriptor(
        self, reader: region.RegionReader, header: vmdk_format.Header
    ) -> None:
        """The descriptor inside of the file allows to read it alone."""
        start = header.descriptor_offset * SECTOR
        length = header.descriptor_size * SECTOR
        vmdk_format.check_descriptor(header, reader.where)
        if start + length > reader.size:
            raise vmdk_format.error(
                'vmdk.descriptor',
                'The descriptor of the VMDK lies outside the file',
                reader.where,
                expected=f'{length} bytes inside the {reader.size} bytes '
                'of the file',
                found=f'offset {start}',
            )
        vmdk_descriptor.parse(
            reader.read(start, length), reader.where, embedded=True
        )

    def _sparse(
        self, reader: region.RegionReader, header: vmdk_format.Header
    ) -> vmdk_extent.Extent:
        tables = self._tables(reader, header)
        if header.compressed:
            return vmdk_extent.CompressedExtent(reader, header, tables)
        return vmdk_extent.SparseExtent(reader, header, tables)

    def _tables(
        self, reader: region.RegionReader, header: vmdk_format.Header
    ) -> vmdk_tables.Tables:
        """The tables, the second copy if the first is damaged."""
        try:
            return vmdk_tables.load(reader, header, header.directory)
        except exceptions.DiskImageError as error:
            copy = header.redundant_directory
            if not header.flags & vmdk_format.REDUNDANT or not copy:
                raise
            try:
                tables = vmdk_tables.load(reader, header, copy)
            except exceptions.DiskImageError:
                raise error from None
            self._findings.append(_redundant(reader, error))
            return tables

    # A descriptor that is a file of its own

    def _open_described(self, reader: region.RegionReader) -> VmdkImage:
        if reader.size > vmdk_format.MAX_DESCRIPTOR:
            raise vmdk_format.error(
                'vmdk.descriptor',
                'The descriptor of the VMDK is larger than any can be',
                reader.where,
                expected=f'at most {vmdk_format.MAX_DESCRIPTOR} bytes',
                found=f'{reader.size} bytes',
            )
        descriptor = vmdk_descriptor.parse(
            reader.read(0, reader.size), reader.where, embedded=False
        )
        parts: list[vmdk_extent.Extent] = []
        regions = {self._region.name: self._region}
        for extent in descriptor.extents:
            if extent.kind == 'ZERO':
                parts.append(vmdk_extent.ZeroExtent(extent.size))
                continue
            member = self._member(extent.name)
            if member.name in regions:
                raise self._extent_error(
                    'every file once', f'"{extent.name}" twice'
                )
            regions[member.name] = member
            parts.append(self._extent(extent, member))
        size = sum(part.size for part in parts)
        if size > vmdk_format.MAX_SIZE:
            raise self._extent_error(
                f'at most {vmdk_format.MAX_SIZE} bytes', f'{size} bytes'
            )
        return self._image(parts, tuple(regions.values()))

    def _member(self, name: str) -> model.Region:
        """The extent's file, which must lie beside the descriptor."""
        folder = posixpath.dirname(self._region.name)
        member = None
        if name not in ('.', '..') and not set(name) & set('/\\\0:'):
            member = self._package.members.get(posixpath.join(folder, name))
        if member is None:
            given = ', '.join(sorted(self._package.members)[:8])
            raise vmdk_format.error(
                'vmdk.extent-outside',
                'A file that the VMDK consists of is not in the package',
                self._where,
                expected='every extent beside its descriptor, in the '
                'package or given with it',
                found=f'"{name[:120]}"; in the package: {given[:300]}',
                fix='give all files of the disk: the descriptor and the '
                'extents that it names, from one directory',
            )
        return member

    def _extent(
        self, extent: vmdk_descriptor.Extent, member: model.Region
    ) -> vmdk_extent.Extent:
        reader = self._reader(member)
        if extent.kind != 'SPARSE':
            end = extent.offset + extent.size
            if end > reader.size:
                raise vmdk_format.error(
                    'vmdk.truncated',
                    'A file of the VMDK is shorter than the disk in it',
                    reader.where,
                    expected=f'{end} bytes',
                    found=f'{reader.size} bytes',
                )
            return vmdk_extent.FlatExtent(reader, extent.size, extent.offset)
        header = self._header(reader, reader.read(0, SECTOR))
        if header.size != extent.size:
            raise self._extent_error(
                f'{extent.size} bytes in "{extent.name}"',
                f'{header.size} bytes',
            )
        return self._sparse(reader, header)

    @property
    def _where(self) -> str:
        return f'{self._region.path}: {self._region.name}'

    def _extent_error(
        self, expected: str, found: str
    ) -> exceptions.DiskImageError:
        return vmdk_format.error(
            'vmdk.extents',
            'The extents of the VMDK do not fit together',
            self._where,
            expected=expected,
            found=found,
        )


def _redundant(
    reader: region.RegionReader, error: exceptions.DiskImageError
) -> model.Finding:
    return model.Finding(
        id='vmdk.redundant-directory',
        severity=model.Severity.WARNING,
        title='The grain directory of the VMDK is damaged; its copy was used',
        evidence=f'{reader.where}: {error.message}; found {error.found}',
        fix='export the guest again if the copy of the package was '
        'interrupted',
        subject=reader.name,
    )
