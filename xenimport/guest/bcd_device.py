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


"""Device elements of a BCD: where an entry's files are.

An element starts with the GUID of an object with additional options
(16 bytes), then comes a descriptor: its type, flags, its size from here on
and a reserved number (four bytes each, little-endian), and what its type
wants. A partition has its own id, the kind of device that it is a part of,
the style of the partition table and the disk's id. A RAM disk, a file and a
virtual disk hold the descriptor of the device that their file is on, and
so on.

Sources: the elements of seven genuine stores, which all come out of
:meth:`Device.encode` as they went in; the names and numbers of the types,
and where a virtual disk has its parent, from ReactOS' ``bl.h``. No genuine
element of a file, a virtual disk or a legacy partition was at hand.

All bytes that are not understood are kept.
"""

from __future__ import annotations

from collections.abc import Iterator
import dataclasses
import struct
import uuid

#: Types of devices.
BLOCK_IO = 0
LEGACY_PARTITION = 2
SERIAL = 3
UDP = 4
BOOT = 5
PARTITION = 6
LOCATE = 8
#: Kinds of block devices that a device is, or lies on.
HARD_DISK = 0
RAM_DISK = 3
FILE = 5
VIRTUAL_DISK = 6
#: Styles of partition tables.
GPT = 0
MBR = 1

#: A larger element than any path asks for.
_LIMIT = 1 << 16
#: Devices inside devices; Windows itself goes no further than three
#: (a partition of a virtual disk, its file, the partition with the file).
_DEPTH = 8
#: Characters of a path that a person is shown.
_SHOWN = 260
_OPTIONS = 16
_HEADER = struct.Struct('<4I')
_PATH_HEADER = struct.Struct('<3I')
#: In a partition's body: its id, the kind of its disk, the table's style,
#: the disk's id.
_PARTITION = struct.Struct('<16s2I16s')
_KIND_AT = {BLOCK_IO: 0, LEGACY_PARTITION: 16, PARTITION: 16}
#: Bytes between a block device's kind and what describes its parent.
_RAM_DISK = 20
_VIRTUAL_DISK = 20
_SIMPLE = 0x48

_TYPES = frozenset(
    (BLOCK_IO, LEGACY_PARTITION, SERIAL, UDP, BOOT, PARTITION, LOCATE)
)


@dataclasses.dataclass(frozen=True)
class Partition:
    """A partition of a hard disk.

    :ivar style: ``MBR`` or ``GPT``
    :ivar disk: 16 bytes: the MBR's signature (four bytes and zeros), or
        the GPT's GUID as it stands on the disk
    :ivar partition: 16 bytes: where it starts (the byte, in eight bytes,
        and zeros), or its unique GUID as it stands on the disk
    """

    style: int
    disk: bytes
    partition: bytes

    @classmethod
    def of_mbr(cls, signature: int, offset: int) -> Partition:
        """A partition by its MBR's signature and its first byte."""
        return cls(
            MBR,
            struct.pack('<I12x', signature),
            struct.pack('<Q8x', offset),
        )

    @classmethod
    def of_gpt(cls, disk: uuid.UUID, partition: uuid.UUID) -> Partition:
        """A partition by the GUIDs of its disk and of its own."""
        return cls(GPT, disk.bytes_le, partition.bytes_le)

    @property
    def signature(self) -> int | None:
        """The disk's signature, None where it has no MBR."""
        if self.style != MBR:
            return None
        return int.from_bytes(self.disk[:4], 'little')

    def __str__(self) -> str:
        if self.style == MBR:
            offset = int.from_bytes(self.partition[:8], 'little')
            return (
                f'the partition at byte {offset} of the disk with the '
                f'signature {self.signature:#010x}'
            )
        if self.style == GPT:
            return (
                f'the partition {uuid.UUID(bytes_le=self.partition)} of the '
                f'disk {uuid.UUID(bytes_le=self.disk)}'
            )
        return f'a partition of a disk of style {self.style}'


@dataclasses.dataclass(frozen=True)
class Descriptor:
    """One device, with the one that it lies on, if it names one.

    :ivar head: its body up to ``parent``, or all of it
    :ivar tail: what follows ``parent``: the path of a file there
    """

    type: int
    flags: int
    reserved: int
    head: bytes
    parent: Descriptor | None = None
    tail: bytes = b''

    def encode(self) -> bytes:
        """As it stands in an element."""
        parent = self.parent.encode() if self.parent else b''
        body = self.head + parent + self.tail
        size = _HEADER.size + len(body)
        return _HEADER.pack(self.type, self.flags, size, self.reserved) + body

    @property
    def kind(self) -> int | None:
        """The kind of block device that it is, or is a partition of."""
        at = _KIND_AT.get(self.type)
        if at is None or len(self.head) < at + 4:
            return None
        return int.from_bytes(self.head[at : at + 4], 'little')

    @property
    def partition(self) -> Partition | None:
        """The partition of a hard disk that it is, None for others."""
        if self.type != PARTITION or self.kind != HARD_DISK:
            return None
        if len(self.head) < _PARTITION.size:
            return None
        partition, _, style, disk = _PARTITION.unpack_from(self.head)
        return Partition(style, disk, partition)

    @property
    def path(self) -> str:
        """The path of its file on ``parent``; '' where it has none."""
        even = self.tail[: len(self.tail) & ~1]
        text = even.decode('utf-16-le', 'replace')
        return text.partition('\0')[0]

    def chain(self) -> Iterator[Descriptor]:
        """This device and those that it lies on."""
        device: Descriptor | None = self
        while device is not None:
            yield device
            device = device.parent

    def replaced(self, partition: Partition) -> Descriptor:
        """On another partition, and not a byte else changed."""
        if self.parent is not None:
            parent = self.parent.replaced(partition)
            return dataclasses.replace(self, parent=parent)
        if self.partition is None:
            return self
        head = _PARTITION.pack(
            partition.partition, HARD_DISK, partition.style, partition.disk
        )
        rest = self.head[_PARTITION.size :]
        return dataclasses.replace(self, head=head + rest)

    def __str__(self) -> str:
        if self.partition is not None:
            return str(self.partition)
        if self.type == BOOT:
            return 'boot'
        if self.type == LOCATE:
            return 'locate'
        if self.parent is not None:
            kind = {RAM_DISK: 'RAM disk', FILE: 'file'}.get(
                self.kind or 0, 'virtual disk'
            )
            return f'{kind} "{self.path[:_SHOWN]}" on {self.parent}'
        return f'a device of type {self.type}'


@dataclasses.dataclass(frozen=True)
class Device:
    """A device element.

    :ivar options: the id of the object with its options, zeros if none
    :ivar rest: what follows the descriptor; nothing in genuine stores
    """

    options: bytes
    descriptor: Descriptor
    rest: bytes = b''

    def encode(self) -> bytes:
        """The value of the element."""
        return self.options + self.descriptor.encode() + self.rest

    @property
    def options_object(self) -> str | None:
        """The object with its options as ``{...}``, None if none."""
        if not any(self.options):
            return None
        return f'{{{uuid.UUID(bytes_le=self.options)}}}'

    @property
    def partition(self) -> Partition | None:
        """The partition of a hard disk that it is, or that its file is on.

        (One that lies on a file is not of a hard disk.)
        """
        *_, last = self.descriptor.chain()
        return last.partition

    @property
    def path(self) -> str:
        """The path of its file on ``partition``, '' where it is no file."""
        paths = [item.path for item in self.descriptor.chain()]
        return next(filter(None, reversed(paths)), '')

    def replaced(self, partition: Partition) -> Device:
        """On another partition, and not a byte else changed."""
        descriptor = self.descriptor.replaced(partition)
        return dataclasses.replace(self, descriptor=descriptor)

    def __str__(self) -> str:
        return str(self.descriptor)


def partition_device(partition: Partition) -> Device:
    """The element that names a partition of a hard disk."""
    head = _PARTITION.pack(
        partition.partition, HARD_DISK, partition.style, partition.disk
    )
    head = head.ljust(_SIMPLE - _HEADER.size, b'\0')
    return Device(bytes(_OPTIONS), Descriptor(PARTITION, 0, 0, head))


def parse(data: bytes) -> Device | None:
    """Read an element; None where it is cut short or its sizes lie."""
    if not _OPTIONS + _HEADER.size <= len(data) <= _LIMIT:
        return None
    found = _descriptor(data[_OPTIONS:], _DEPTH)
    if found is None:
        return None
    descriptor, size = found
    return Device(data[:_OPTIONS], descriptor, data[_OPTIONS + size :])


def _descriptor(data: bytes, depth: int) -> tuple[Descriptor, int] | None:
    """The descriptor that data starts with, and its size."""
    if len(data) < _HEADER.size:
        return None
    kind, flags, size, reserved = _HEADER.unpack_from(data)
    if not _HEADER.size <= size <= len(data):
        return None
    body = data[_HEADER.size : size]
    whole = Descriptor(kind, flags, reserved, body)
    if kind == PARTITION and len(body) < _PARTITION.size:
        return None
    at = _parent_at(whole)
    if at is None or not depth:
        return whole, size
    found = _descriptor(body[at:], depth - 1)
    # What is not a device that a file can be on is no device at all.
    if found is None or found[0].type not in _TYPES:
        return whole, size
    parent, length = found
    head, tail = body[:at], body[at + length :]
    return Descriptor(kind, flags, reserved, head, parent, tail), size


def _parent_at(device: Descriptor) -> int | None:
    """Where in its body the device begins that it lies on."""
    if device.kind is None:
        return None
    after = _KIND_AT[device.type] + 4
    if device.kind == VIRTUAL_DISK:
        return after + _VIRTUAL_DISK
    if device.kind == RAM_DISK:
        after += _RAM_DISK
    elif device.kind != FILE:
        return None
    if len(device.head) < after + _PATH_HEADER.size:
        return None
    version, length, _ = _PATH_HEADER.unpack_from(device.head, after)
    if version != 1 or length != len(device.head) - after:
        return None
    return after + _PATH_HEADER.size
