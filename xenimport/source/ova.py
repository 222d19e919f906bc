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


"""The OVA source: an OVF package in a tar, read in place or as it comes."""

from __future__ import annotations

from collections.abc import Mapping
import dataclasses
import os

from xenimport import model
from xenimport.source import arrivals
from xenimport.source import base
from xenimport.source import manifest
from xenimport.source import ovf
from xenimport.source import ovf_xml
from xenimport.source import package as packages
from xenimport.source import parts
from xenimport.source import tarindex
from xenimport import stream as stream_room

#: How an XVA starts, which is a tar as well.
_XVA_DESCRIPTION = 'ova.xml'
_COMPRESSED = ('.gz', '.zst')


class OvaSource(base.Source):
    """Exports of XenCenter, Xen Orchestra and other OVF writers."""

    handles = (
        'OVF package in a tar (.ova): XenCenter, Xen Orchestra, VMware, '
        'VirtualBox'
    )

    def probe(self, path: str) -> bool:
        if os.path.isdir(path):
            return False
        # What is called .ova is claimed whatever it holds: opening it
        # then says what is wrong with it.
        if path.lower().endswith('.ova'):
            return True
        return (
            tarindex.is_tar(path)
            and tarindex.first_name(path) != _XVA_DESCRIPTION
        )

    def open(
        self, path: str, request: base.Request = base.DEFAULT
    ) -> model.VirtualSystem:
        members = {
            member.name: model.Region(
                path,
                member.name,
                (model.Piece(member.offset, member.size, 0),),
            )
            for member in tarindex.index(path).values()
        }
        name = _descriptor_name(path, members)
        where = f'{path}: {name}'
        text = packages.read(path, members[name], ovf_xml.MAX_SIZE)
        if request.verify_manifest:
            members = _with_digests(path, members, name, text)
        descriptor = ovf.parse(text, where, request.system)
        contents = _Members(where, members, os.path.dirname(name))
        disks = [
            (disk, packages.resolve(contents, file))
            for disk, file in packages.with_data(descriptor, where)
        ]
        return packages.system(
            model.Package(path=path, format='ova', members=members),
            os.path.splitext(os.path.basename(path))[0],
            descriptor,
            disks,
        )

    def probe_stream(self, stream: stream_room.Stream) -> bool:
        if tarindex.starts_tar(stream):
            first = stream.peek(100).split(b'\0', 1)[0]
            return first.removeprefix(b'./') != _XVA_DESCRIPTION.encode()
        name = stream.where.lower()
        for suffix in _COMPRESSED:
            name = name.removesuffix(suffix)
        return name.endswith('.ova')

    def open_stream(
        self, stream: stream_room.Stream, request: base.Request = base.DEFAULT
    ) -> model.VirtualSystem:
        return arrivals.open_stream(stream, request)


def _descriptor_name(path: str, members: Mapping[str, model.Region]) -> str:
    names = [name for name in members if packages.is_descriptor(name)]
    if len(names) == 1:
        return names[0]
    if names:
        raise packages.several_descriptors(path, names)
    raise packages.no_descriptor(
        path, ', '.join(list(members)[:10]) or 'an empty archive'
    )


def _with_digests(
    path: str,
    members: dict[str, model.Region],
    descriptor: str,
    text: bytes,
) -> dict[str, model.Region]:
    """The members with what the manifest, if any, states of them."""
    name = manifest.name_for(descriptor, members)
    if name is None:
        return members
    content = packages.read(path, members[name], manifest.MAX_SIZE)
    stated = manifest.Manifest(content, f'{path}: {name}')
    folder = os.path.dirname(descriptor)
    relative = {name: _relative(name, folder) for name in members}
    stated.check_complete(frozenset(relative.values()))
    stated.check(relative[descriptor], text)
    return {
        name: dataclasses.replace(region, digests=stated.of(relative[name]))
        for name, region in members.items()
    }


def _relative(name: str, folder: str) -> str:
    """A member's name as the descriptor and the manifest call it."""
    return name.removeprefix(f'{folder}/') if folder else name


class _Members:
    """The members of a tar, as they are named beside the descriptor."""

    def __init__(
        self, where: str, members: Mapping[str, model.Region], folder: str
    ) -> None:
        self.where = where
        self._members = members
        self._prefix = f'{folder}/' if folder else ''
        self._parts: dict[str, dict[int, model.Region]] = {}
        for name, region in members.items():
            part = parts.part_of(name)
            if part is not None:
                self._parts.setdefault(part[0], {})[part[1]] = region

    def find(self, name: str) -> model.Region | None:
        return self._members.get(self._prefix + name)

    def parts(self, name: str) -> Mapping[int, model.Region]:
        return self._parts.get(self._prefix + name, {})

    def listed(self) -> str:
        return ', '.join(list(self._members)[:10])
