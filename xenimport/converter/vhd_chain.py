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

"""The chain of a differencing VHD, inside one package.

A parent is known by its uuid. The names that a child gives for it are
only compared with the names of the package's members: nothing outside the
package is opened, whatever they say.
"""

from __future__ import annotations

from collections.abc import Iterator
import dataclasses
import re
from urllib import parse

from xenimport.converter import region
from xenimport.converter import vhd_format
from xenimport.converter import vhd_layers
from xenimport.converter import vhd_table
from xenimport import exceptions
from xenimport import model

#: Layers of one disk; XenServer allows 30.
MAX_DEPTH = 64
#: Members whose footers are looked at for a parent.
MAX_LOOKS = 1000
#: Pages of tables that all layers may keep together: 128 MiB.
MAX_PAGES = 1 << 15
#: Bytes of one name; blktap allows no more.
_MAX_NAME = 2048
_UTF_16 = (b'W2ru', b'W2ku')
_URL = b'MacX'


@dataclasses.dataclass(frozen=True)
class Link:
    """One opened file of a chain.

    :ivar parent: the header that names its parent, None if it has none
    :ivar pages: of its table, that are kept
    """

    layer: vhd_layers.Layer
    region: model.Region
    parent: vhd_format.Header | None = None
    findings: tuple[model.Finding, ...] = ()
    pages: int = 0


class Chain:
    """Opens a VHD and its parents, the newest first.

    :ivar links: what has been opened; :meth:`release` closes it
    """

    def __init__(self, package: model.Package) -> None:
        self.links: list[Link] = []
        self._members = package.members
        self._looks = 0
        self._uuids: dict[str, bytes | None] = {}

    def open(self, disk: model.Region) -> vhd_format.Footer:
        """Open the chain that ``disk`` is the newest layer of.

        :returns: the footer of the newest
        :raises xenimport.exceptions.DiskImageError: if one of the files
            is damaged or hostile, or is not there
        """
        footer = self._add(disk)
        while header := self.links[-1].parent:
            if len(self.links) == MAX_DEPTH:
                raise _error(
                    self.links[-1],
                    'vhd.chain-too-long',
                    'The VHD has more parents than any disk has',
                    expected=f'at most {MAX_DEPTH} files in its chain',
                    found='a parent of the last as well',
                    fix='do not trust this package; or merge the chain '
                    'with "vhd-util coalesce" first',
                )
            self._add_parent(self.links[-1], header)
            if sum(link.pages for link in self.links) > MAX_PAGES:
                raise _error(
                    self.links[-1],
                    'vhd.table',
                    'The block tables of the chain are too large together',
                    expected=f'at most {MAX_PAGES} pages with blocks',
                    found='more',
                    fix='merge the chain with "vhd-util coalesce" first',
                )
        return footer

    def release(self) -> None:
        """Close all files. A second call does nothing."""
        for link in self.links:
            link.layer.reader.release()

    def _add(self, member: model.Region) -> vhd_format.Footer:
        reader = region.RegionReader(member)
        try:
            link, footer = _opened(reader, member)
        except BaseException:
            reader.release()
            raise
        self.links.append(link)
        return footer

    def _add_parent(self, child: Link, header: vhd_format.Header) -> None:
        names = list(_names(child.layer.reader, header))
        if header.parent_uuid == vhd_format.NO_UUID:
            self._add_raw(self._raw_parent(child, names))
            return
        parent = self._parent(child, header.parent_uuid, names)
        if parent.name in (link.region.name for link in self.links):
            raise _error(
                child,
                'vhd.chain-loop',
                'The chain of the VHD leads back to itself',
                expected='a parent that is not one of its children',
                found=repr(parent.name),
                fix='do not trust this package; export the guest again',
            )
        self._add(parent)

    def _add_raw(self, member: model.Region) -> None:
        reader = region.RegionReader(member)
        layer = vhd_layers.PlainLayer(reader, reader.size)
        self.links.append(Link(layer, member))

    def _parent(
        self, child: Link, wanted: bytes, names: list[str]
    ) -> model.Region:
        """The member with the wanted uuid; one that is named, if it can.

        :raises xenimport.exceptions.DiskImageError: if there is none, or
            several
        """
        named = self._named(child, names)
        for member in named:
            if self._uuid(member) == wanted:
                return member
        found = [
            member
            for member in self._members.values()
            if self._uuid(member) == wanted
        ]
        if len(found) == 1:
            return found[0]
        if found:
            raise _error(
                child,
                'vhd.parent-ambiguous',
                'Several members of the package can be the parent',
                expected='one VHD with uuid ' + vhd_format.uuid_text(wanted),
                found=', '.join(repr(member.name) for member in found[:5]),
                fix='pack the disk with its own chain alone',
            )
        if named:
            raise _error(
                child,
                'vhd.parent-differs',
                'The parent of the VHD is another disk than it was made of',
                expected=f'{named[0].name!r} with uuid '
                + vhd_format.uuid_text(wanted),
                found=_uuid_found(self._uuid(named[0])),
                fix='pack the parent that belongs to the disk; or export '
                'the guest itself rather than a snapshot',
            )
        raise self._missing(
            child, f'a VHD with uuid {vhd_format.uuid_text(wanted)}', names
        )

    def _raw_parent(self, child: Link, names: list[str]) -> model.Region:
        """The member that is named, which must be RAW.

        :raises xenimport.exceptions.DiskImageError: if there is none
        """
        named = self._named(child, names)
        for member in named:
            if self._uuid(member) is None:
                return member
        if named:
            raise _error(
                child,
                'vhd.parent-differs',
                'The parent of the VHD is not RAW, as it should be',
                expected='a RAW disk',
                found=f'{named[0].name!r}, a VHD',
                fix='pack the parent that belongs to the disk; or export '
                'the guest itself rather than a snapshot',
            )
        raise self._missing(child, 'a RAW disk', names)

    def _named(self, child: Link, names: list[str]) -> list[model.Region]:
        """The members of these names, those beside the child first."""
        result = []
        directory = child.region.name.rpartition('/')[0]
        members = sorted(
            (
                member
                for member in self._members.values()
                if _can_be_read(member)
            ),
            key=lambda member: member.name.rpartition('/')[0] != directory,
        )
        for name in names:
            for member in members:
                base = member.name.rpartition('/')[2]
                if base.casefold() == name.casefold():
                    result.append(member)
        return result

    def _uuid(self, member: model.Region) -> bytes | None:
        """The uuid in the footer of a member, None if it is no VHD.

        :returns: empty if the footer is damaged
        :raises xenimport.exceptions.DiskImageError: if too many members
            would be looked at
        """
        if not _can_be_read(member):
            return None
        if member.name not in self._uuids:
            self._looks += 1
            if self._looks > MAX_LOOKS:
                raise _error(
                    self.links[-1],
                    'vhd.parent-missing',
                    'The parent of the VHD is not found among the members',
                    expected=f'it among the first {MAX_LOOKS} members',
                    fix='pack the disk with its chain alone',
                )
            self._uuids[member.name] = _footer_uuid(member)
        return self._uuids[member.name]

    def _missing(
        self, child: Link, expected: str, names: list[str]
    ) -> exceptions.DiskImageError:
        if names:
            expected += ', named ' + ', '.join(
                repr(name) for name in names[:5]
            )
        compressed = [
            member.name
            for member in self._members.values()
            if not _can_be_read(member)
        ]
        found = f'{len(self._members)} member(s), none of which it is'
        if compressed:
            found += f'; {compressed[0]!r} is compressed and was not read'
        return _error(
            child,
            'vhd.parent-missing',
            'The VHD holds only the differences to a parent, which is not '
            'in the package',
            expected=expected,
            found=found,
            fix='put the whole chain into the package; or export the guest '
            'itself rather than a snapshot',
        )


def _can_be_read(member: model.Region) -> bool:
    return member.seekable and not member.decoder


def _footer_uuid(member: model.Region) -> bytes | None:
    reader = region.RegionReader(member)
    try:
        return vhd_format.locate(reader).footer.uuid
    except exceptions.DiskImageError as error:
        if error.id == 'vhd.no-footer':
            return None
        if error.id == 'vhd.checksum':
            return b''
        raise
    finally:
        reader.release()


def _uuid_found(found: bytes | None) -> str:
    if found is None:
        return 'a file that is no VHD'
    if not found:
        return 'a VHD whose footer is damaged'
    return 'uuid ' + vhd_format.uuid_text(found)


def _opened(
    reader: region.RegionReader, member: model.Region
) -> tuple[Link, vhd_format.Footer]:
    """Parse and validate one VHD."""
    where = reader.where
    located = vhd_format.locate(reader)
    footer = located.footer
    vhd_format.check_footer(footer, where)
    if footer.kind == vhd_format.FIXED:
        if footer.current_size > located.data_end:
            raise vhd_format.error(
                where,
                'vhd.truncated',
                'The fixed VHD is shorter than the disk in it',
                expected=f'{footer.current_size} bytes of data',
                found=f'{located.data_end} bytes',
            )
        layer = vhd_layers.PlainLayer(reader, footer.current_size)
        return Link(layer, member), footer
    findings: tuple[model.Finding, ...] = ()
    if located.at_start:
        findings = (vhd_format.copy_finding(where, reader.name),)
    header = vhd_format.parse_header(
        reader.read(footer.data_offset, vhd_format.HEADER_SIZE),
        footer.data_offset,
        where,
    )
    vhd_format.check_not_encrypted(
        reader.read(header.batmap_offset, vhd_format.SECTOR), footer, where
    )
    used = vhd_table.used_entries(footer, header, reader.size, where)
    table = vhd_table.read_table(reader.read, header, used, where)
    layout = vhd_table.Layout(footer, header, table, where)
    layout.check(located.data_end, whole=located.at_start)
    sparse = vhd_layers.SparseLayer(reader, layout, located.data_end)
    parent = header if footer.kind == vhd_format.DIFFERENCING else None
    return Link(sparse, member, parent, findings, table.pages_kept), footer


def _names(
    reader: region.RegionReader, header: vhd_format.Header
) -> Iterator[str]:
    """Yield the last parts of the names that a child gives its parent."""
    texts = []
    for locator in header.locators:
        data = reader.read(locator.offset, min(locator.length, _MAX_NAME))
        if locator.code in _UTF_16:
            texts.append(data.decode('utf-16-le', 'replace'))
        elif locator.code == _URL:
            text = data.decode('utf-8', 'replace')
            # Some write the address as it is, some with %20 for a space.
            texts += [text, parse.unquote(text)]
    texts.append(header.parent_name.decode('utf-16-be', 'replace'))
    seen = set()
    for text in texts:
        name = re.split(r'[\\/]', text.partition('\0')[0])[-1]
        if name and name not in seen:
            seen.add(name)
            yield name


def _error(
    link: Link,
    error_id: str,
    message: str,
    *,
    expected: str | None = None,
    found: str | None = None,
    fix: str,
) -> exceptions.DiskImageError:
    return vhd_format.error(
        link.layer.reader.where,
        error_id,
        message,
        expected=expected,
        found=found,
        fix=fix,
    )
