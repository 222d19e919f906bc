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


"""The disks of an OVF descriptor, and the order in which they boot."""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Sequence
import dataclasses
import re
from urllib import parse
from xml.etree import ElementTree  # nosec: types only

from xenimport import exceptions
from xenimport import model
from xenimport.source import ovf_boot
from xenimport.source import ovf_hardware
from xenimport.source import ovf_xml


@dataclasses.dataclass(frozen=True)
class File:
    """A file that the descriptor refers to.

    :ivar size: bytes, None if it is not stated
    :ivar chunk_size: bytes of each part, where it is cut into some
    """

    id: str
    href: str
    compression: str | None = None
    chunk_size: int | None = None
    size: int | None = None


@dataclasses.dataclass(frozen=True)
class VirtualDisk:
    """A disk of the virtual system, in boot order.

    :ivar file: None when the disk is blank
    :ivar capacity: bytes
    """

    id: str
    file: File | None
    capacity: int | None
    name: str


@dataclasses.dataclass(frozen=True)
class _Declared:
    """A Disk element, not looked into yet."""

    id: str
    reference: str | None = None
    parent: str | None = None
    capacity: str | None = None
    unit: str | None = None
    format: str = ''
    uuid: str = ''


class DiskReader:
    """Finds the disks of one virtual system.

    :param where: the descriptor's name, for errors
    :ivar files: by their ids
    :ivar findings: what is odd about the disks
    """

    def __init__(self, root: ElementTree.Element, where: str) -> None:
        self._root = root
        self._where = where
        self.files = {file.id: file for file in _files(root)}
        self.findings: list[model.Finding] = []
        self._declared = {disk.id: disk for disk in _declared(root)}
        self._by_file: dict[str, str] = {}
        for disk in self._declared.values():
            if disk.reference:
                self._by_file.setdefault(disk.reference, disk.id)

    def of_system(
        self,
        system: ElementTree.Element,
        items: Sequence[ovf_hardware.Item],
        *,
        alone: bool,
    ) -> Iterator[VirtualDisk]:
        """Yield the system's disks in boot order.

        :param alone: whether the package describes no other system; then
            disks that no drive refers to are its own
        :raises xenimport.exceptions.PackageError: if one is not described
            wholly in the package
        """
        attached: dict[str, VirtualDisk] = {}
        for item in self._in_boot_order(system, items):
            identity = self._resolve(item)
            if identity is None or self._is_removable(identity):
                continue
            if identity in attached:
                self._note_shared(identity)
            else:
                attached[identity] = self._made(identity, item.name)
        if alone:
            for identity in self._unattached(attached):
                self._note_unattached(identity)
                attached[identity] = self._made(identity, '')
        for disk in attached.values():
            if disk.file is None:
                self._note_blank(disk)
            yield disk

    def _error(
        self, error_id: str, message: str, **details: str
    ) -> exceptions.PackageError:
        return exceptions.PackageError(
            error_id, message, where=self._where, **details
        )

    # Which disk a drive has

    def _resolve(self, item: ovf_hardware.Item) -> str | None:
        """The id of a drive's disk; XenCenter may leave HostResource out.

        :raises xenimport.exceptions.PackageError: if there is no such disk
        """
        stated = item.text('HostResource')
        for text in (stated, item.instance, item.connection):
            if text is None:
                continue
            kind, identity = _resource(text)
            found = self._find(kind, identity)
            if found is None:
                # It is a URI, so a blank may be written as %20.
                found = self._find(kind, parse.unquote(identity))
            if found is not None:
                return found
        if stated is None:
            return None
        raise self._error(
            'package.missing-file',
            'A disk drive refers to a disk that is not described',
            expected=f'a Disk or File that {stated[:200]!r} means',
            fix='export the guest again',
        )

    def _find(self, kind: str, identity: str) -> str | None:
        if kind != 'file':
            return identity if identity in self._declared else None
        if identity in self._by_file:
            return self._by_file[identity]
        if identity not in self.files:
            return None
        # A drive may have a file without any Disk element between them.
        name = f'file/{identity}'
        self._declared.setdefault(name, _Declared(name, identity))
        return name

    def _is_removable(self, identity: str) -> bool:
        """Whether a disk is the image of a CD."""
        disk = self._declared[identity]
        if 'ecma-119' in disk.format.lower():
            return True
        file = self.files.get(disk.reference or '')
        return file is not None and file.href.lower().endswith(
            ('.iso', '.iso.gz')
        )

    def _unattached(self, attached: Iterable[str]) -> list[str]:
        """Disks that nothing in the whole descriptor refers to."""
        mentioned = set(attached)
        for element in ovf_hardware.elements(self._root):
            text = ovf_xml.child_text(element, 'HostResource')
            if text is not None:
                kind, identity = _resource(text)
                if kind == 'file':
                    identity = self._by_file.get(identity, '')
                mentioned.add(identity)
        return [
            identity
            for identity in self._declared
            if identity not in mentioned and not self._is_removable(identity)
        ]

    def _made(self, identity: str, name: str) -> VirtualDisk:
        disk = self._declared[identity]
        if disk.parent:
            raise self._error(
                'package.delta-disk',
                'A disk of the package is only the difference to another',
                expected='whole disks',
                found=f'disk {identity[:200]!r} with a parentRef',
                fix='delete the snapshots of the guest and export again',
            )
        if disk.reference and disk.reference not in self.files:
            raise self._error(
                'package.missing-file',
                'A disk refers to a file that the descriptor lacks',
                expected=f'a File with the id {disk.reference[:200]!r}',
                fix='export the guest again',
            )
        return VirtualDisk(
            id=identity,
            file=self.files[disk.reference] if disk.reference else None,
            capacity=self._capacity(disk),
            name=name or identity,
        )

    def _capacity(self, disk: _Declared) -> int | None:
        if disk.capacity is None:
            return None
        size = ovf_xml.in_bytes(disk.capacity, disk.unit, 1)
        if size is None:
            stated = f'{disk.capacity[:40]} {disk.unit or ""}'.strip()
            self.findings.append(
                unknown_quantity(
                    self._where,
                    disk.id,
                    f'the capacity of disk {disk.id!r}',
                    stated[:80],
                )
            )
        return size

    # The order

    def _in_boot_order(
        self,
        system: ElementTree.Element,
        items: Sequence[ovf_hardware.Item],
    ) -> list[ovf_hardware.Item]:
        disks = ovf_hardware.in_attachment_order(items)
        order = ovf_boot.virtualbox_order(system)
        if order:
            ranks = [self._virtualbox_rank(item, order) for item in disks]
            if None not in ranks:
                disks = [
                    disk
                    for _rank, _position, disk in sorted(
                        (rank or 0, position, disk)
                        for position, (rank, disk) in enumerate(
                            zip(ranks, disks, strict=True)
                        )
                    )
                ]
        boot = ovf_boot.boot_disk(system, disks)
        if boot is not None:
            disks.remove(boot)
            disks.insert(0, boot)
        return disks

    def _virtualbox_rank(
        self, item: ovf_hardware.Item, order: dict[str, int]
    ) -> int | None:
        identity = self._resolve(item)
        if identity is None:
            return None
        return order.get(self._declared[identity].uuid)

    # Findings

    def _note_shared(self, identity: str) -> None:
        self.findings.append(
            model.Finding(
                id='ovf.disk-shared',
                severity=model.Severity.NOTE,
                title='Two drives of the guest have the same disk',
                evidence=f'{self._where}: several hardware items refer to '
                f'the disk {identity!r}; it is taken once',
                fix='nothing, if the guest has this disk only once',
                subject=identity,
            )
        )

    def _note_unattached(self, identity: str) -> None:
        self.findings.append(
            model.Finding(
                id='ovf.disk-unattached',
                severity=model.Severity.NOTE,
                title='A disk of the package is not attached to the guest',
                evidence=f'{self._where}: no hardware item refers to the '
                f'disk {identity!r}; it is taken after the others',
                fix='nothing, if the disk belongs to the guest',
                subject=identity,
            )
        )

    def _note_blank(self, disk: VirtualDisk) -> None:
        self.findings.append(
            model.Finding(
                id='ovf.disk-blank',
                severity=model.Severity.WARNING,
                title='A disk of the guest has no data in the package',
                evidence=f'{self._where}: the disk {disk.id!r} has no file',
                fix='create an empty volume for it, if the guest needs it',
                subject=disk.id,
            )
        )


def unknown_quantity(
    where: str, subject: str, what: str, stated: str
) -> model.Finding:
    """The finding of a size that is not understood."""
    return model.Finding(
        id='ovf.quantity-unknown',
        severity=model.Severity.WARNING,
        title='A size in the descriptor is not understood',
        evidence=f'{where}: {what} is stated as {stated!r}',
        fix='compare it with the guest on its old host',
        subject=subject,
    )


def _files(root: ElementTree.Element) -> Iterator[File]:
    for references in ovf_xml.children(root, 'References'):
        for element in ovf_xml.children(references, 'File'):
            yield File(
                id=ovf_xml.attribute(element, 'id') or '',
                href=ovf_xml.attribute(element, 'href') or '',
                compression=ovf_xml.attribute(element, 'compression') or None,
                chunk_size=ovf_xml.integer(
                    ovf_xml.attribute(element, 'chunkSize')
                )
                or None,
                # XenCenter writes 0 where it does not know.
                size=ovf_xml.integer(ovf_xml.attribute(element, 'size'))
                or None,
            )


def _declared(root: ElementTree.Element) -> Iterator[_Declared]:
    for section in ovf_xml.descendants(root, 'DiskSection', 'Section'):
        for element in ovf_xml.children(section, 'Disk'):
            yield _Declared(
                id=ovf_xml.attribute(element, 'diskId') or '',
                reference=ovf_xml.attribute(element, 'fileRef') or None,
                parent=ovf_xml.attribute(element, 'parentRef') or None,
                capacity=ovf_xml.attribute(element, 'capacity') or None,
                unit=ovf_xml.attribute(element, 'capacityAllocationUnits'),
                format=ovf_xml.attribute(element, 'format') or '',
                uuid=ovf_boot.plain_uuid(ovf_xml.attribute(element, 'uuid')),
            )


def _resource(text: str) -> tuple[str, str]:
    """Split ``ovf:/disk/ID`` into its kind and id; else ('', text)."""
    match = re.match(r'^(?:ovf:)?/{0,2}(disk|file)/(.*)$', text)
    return (match[1], match[2]) if match else ('', text)
