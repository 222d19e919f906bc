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

"""qcow2: images of their own, versions 2 and 3, compressed or not.

After docs/interop/qcow2.txt of QEMU. The header may name a backing file
and a data file, which qemu would open: such an image is refused. All
tables are looked through, since qemu reads what is missing at the end of
a file as zeros, and says nothing.
"""

from __future__ import annotations

import array
from collections.abc import Iterator
import dataclasses
import struct
import sys
import typing

from xenimport.converter import qemu
from xenimport.converter import region
from xenimport import exceptions
from xenimport import model

_MAGIC = b'QFI\xfb'
#: Magic, version, backing file's offset and length, cluster bits, size,
#: encryption, entries and offset of the L1 table, offset and clusters of
#: the refcount table, snapshots and their offset.
_HEADER = struct.Struct('>4sIQIIQIIQQIIQ')
#: Version 3: features (incompatible, compatible, cleared by whom does not
#: know them), refcount order, length of the header.
_EXTENSION = struct.Struct('>QQQII')
_HEADER_SIZES = (_HEADER.size, _HEADER.size + _EXTENSION.size)
_CLUSTER_BITS = range(9, 22)
#: Bytes of the largest L1 table that qemu takes.
_MAX_L1 = 32 << 20
_FEATURES = {
    0: 'dirty',
    1: 'corrupt',
    2: 'external data file',
    3: 'compression type',
    4: 'extended L2 entries',
}
_DIRTY, _CORRUPT, _DATA_FILE, _COMPRESSION = (1 << bit for bit in range(4))
#: An entry's offset in L1 and L2 tables: its bits 9 to 55.
_OFFSET = (1 << 56) - 512
_COMPRESSED = 1 << 62
_READS_AS_ZEROS = 1


@dataclasses.dataclass(frozen=True)
class _Header:
    """The fields of a header that are used; sizes in bytes."""

    version: int
    backing_file: int
    cluster_bits: int
    size: int
    encryption: int
    l1_entries: int
    l1_offset: int
    snapshots: int
    features: int

    @property
    def cluster(self) -> int:
        return 1 << self.cluster_bits

    @property
    def l2_entries(self) -> int:
        return self.cluster // 8


class Qcow2Converter(qemu.QemuConverter):
    """Opens qcow2 images that stand alone."""

    handles = 'qcow2 images of version 2 and 3, compressed too'
    format = 'qcow2'
    title = 'qcow2'
    magic = _MAGIC
    # Were the file exchanged after it was judged, qemu still opens none
    # that it names.
    options_of_driver: typing.ClassVar[dict[str, object]] = {'backing': None}

    def _layout(self, reader: region.RegionReader) -> qemu.Layout:
        header = _header(reader)
        _check_alone(header, reader)
        _check_geometry(header, reader)
        _check_tables(header, reader)
        return qemu.Layout(
            header.size, findings=tuple(_findings(header, reader))
        )


def _header(reader: region.RegionReader) -> _Header:
    data = reader.read(0, _HEADER_SIZES[1])
    if len(data) < _HEADER_SIZES[0]:
        raise qemu.truncated('qcow2', _HEADER_SIZES[0], reader)
    fields = _HEADER.unpack_from(data)
    version = fields[1]
    if version not in (2, 3):
        raise exceptions.DiskImageError(
            'qcow2.version',
            'The image is of a version of qcow that is not read',
            where=reader.where,
            expected='version 2 or 3',
            found=f'version {version}',
            fix='convert it with "qemu-img convert", naming its format',
        )
    features = 0
    if version == 3:
        if len(data) < _HEADER_SIZES[1]:
            raise qemu.truncated('qcow2', _HEADER_SIZES[1], reader)
        features = _EXTENSION.unpack_from(data, _HEADER.size)[0]
    return _Header(
        version=version,
        backing_file=fields[2],
        cluster_bits=fields[4],
        size=fields[5],
        encryption=fields[6],
        l1_entries=fields[7],
        l1_offset=fields[8],
        snapshots=fields[11],
        features=features,
    )


def _check_alone(header: _Header, reader: region.RegionReader) -> None:
    """Refuse an image that is not complete in itself."""
    if header.backing_file:
        raise exceptions.DiskImageError(
            'qcow2.backing-file',
            'The image holds only what differs from another file',
            where=reader.where,
            expected='an image without a backing file',
            found='a backing file',
            fix='where both are at hand, join them with "qemu-img '
            'convert", and import what that writes',
        )
    if header.features & _DATA_FILE:
        raise exceptions.DiskImageError(
            'qcow2.data-file',
            "The image's data lie in another file",
            where=reader.where,
            expected='an image with its data',
            found='an external data file',
            fix='where both are at hand, join them with "qemu-img '
            'convert", and import what that writes',
        )
    if header.encryption:
        raise exceptions.DiskImageError(
            'qcow2.encrypted',
            'The image is encrypted',
            where=reader.where,
            expected='an image without encryption',
            found=f'method {header.encryption}',
            fix='decrypt it with "qemu-img convert", which can be given '
            'the key, and import what that writes',
        )
    if header.features & _CORRUPT:
        raise exceptions.DiskImageError(
            'qcow2.corrupt',
            'The image is marked as corrupt',
            where=reader.where,
            expected='an image that QEMU would write to',
            found='the mark that QEMU sets when it finds damage',
            fix='repair a copy of it with "qemu-img check -r all", and '
            'look at what that says',
        )
    unknown = header.features & ~(_DIRTY | _COMPRESSION)
    if unknown:
        bits = [bit for bit in range(64) if unknown >> bit & 1]
        raise exceptions.DiskImageError(
            'qcow2.features',
            'The image uses features of qcow2 that are not read',
            where=reader.where,
            expected='at most a compression type and the mark "dirty"',
            found=', '.join(
                _FEATURES.get(bit, f'unknown bit {bit}') for bit in bits
            ),
            fix='convert it to RAW with the "qemu-img" of the machine that '
            'wrote it, and import that',
        )


def _check_geometry(header: _Header, reader: region.RegionReader) -> None:
    if header.cluster_bits not in _CLUSTER_BITS:
        raise _damaged(
            reader,
            'clusters of 512 bytes to 2 MiB',
            f'clusters of 2^{header.cluster_bits} bytes',
        )
    qemu.check_size('qcow2.size', 'qcow2', header.size, reader)
    covered = header.cluster * header.l2_entries
    needed = -(-header.size // covered)
    if not needed <= header.l1_entries <= _MAX_L1 // 8:
        raise _damaged(
            reader,
            f'an L1 table of at least {needed} entries',
            f'{header.l1_entries} entries',
        )
    if not header.l1_offset or header.l1_offset % header.cluster:
        raise _damaged(
            reader,
            'an L1 table at the start of a cluster',
            f'offset {header.l1_offset}',
        )
    end = header.l1_offset + header.l1_entries * 8
    if end > reader.size:
        raise qemu.truncated('qcow2', end, reader)


def _check_tables(header: _Header, reader: region.RegionReader) -> None:
    """Look whether all that the tables point at lies in the file."""
    covered = header.cluster * header.l2_entries
    tables: set[int] = set()
    empty = bytes(header.cluster)
    buffer = bytearray(header.cluster)
    needed = -(-header.size // covered)
    l1_table = _big_endian(reader.read(header.l1_offset, needed * 8))
    for number, entry in enumerate(l1_table):
        offset = entry & _OFFSET
        if not offset:
            continue
        # One table in two places would have a small file give a disk of
        # any size.
        if offset % header.cluster or offset in tables:
            raise _damaged(
                reader,
                'L2 tables at clusters of their own',
                f'one more at offset {offset}',
            )
        tables.add(offset)
        if offset + header.cluster > reader.size:
            raise qemu.truncated('qcow2', offset + header.cluster, reader)
        reader.read_into(memoryview(buffer), offset)
        if buffer != empty:
            left = header.size - number * covered
            _check_l2(buffer, left, header, reader)


def _big_endian(data: bytes | bytearray) -> array.array[int]:
    entries = array.array('Q', bytes(data))
    if sys.byteorder == 'little':
        entries.byteswap()
    return entries


def _check_l2(
    data: bytearray, left: int, header: _Header, reader: region.RegionReader
) -> None:
    """Look whether the clusters of an L2 table lie in the file.

    :param left: bytes of the disk from the table's first cluster on
    """
    cluster = header.cluster
    # Beyond this a cluster's offset is worth a closer look.
    whole = reader.size - cluster
    coffset_mask = (1 << (62 - (header.cluster_bits - 8))) - 1
    for index, entry in enumerate(_big_endian(data)):
        if entry & _COMPRESSED:
            # Its length goes to the end of a sector, which need not be
            # there; data that break off are no data to inflate.
            end = (entry & coffset_mask) + 1
            if end > reader.size:
                raise qemu.truncated('qcow2', end, reader)
            continue
        offset = entry & _OFFSET
        if offset <= whole or entry & _READS_AS_ZEROS:
            continue
        end = offset + min(cluster, max(0, left - index * cluster))
        if end > reader.size:
            raise qemu.truncated('qcow2', end, reader)


def _damaged(
    reader: region.RegionReader, expected: str, found: str
) -> exceptions.DiskImageError:
    return exceptions.DiskImageError(
        'qcow2.header',
        'The qcow2 image is damaged',
        where=reader.where,
        expected=expected,
        found=found,
        fix='copy the disk again, or export the guest again',
    )


def _findings(
    header: _Header, reader: region.RegionReader
) -> Iterator[model.Finding]:
    if header.snapshots:
        yield model.Finding(
            id='qcow2.snapshots',
            severity=model.Severity.NOTE,
            title='The image holds snapshots, which are left behind',
            evidence=f'{header.snapshots} in the image',
            fix='nothing, if the present state of the disk is wanted; '
            'else have QEMU extract a snapshot with "qemu-img convert -l"',
            subject=reader.name,
        )
