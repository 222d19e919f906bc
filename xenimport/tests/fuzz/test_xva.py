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

"""Mutants of XVAs: their tar, their description, their chunks."""

from __future__ import annotations

import functools
import io

import hypothesis
from hypothesis import strategies

from xenimport.tests.fuzz import cases
from xenimport.tests.fuzz import mutation
from xenimport.tests.fuzz import tars
from xenimport.tests import xva_packages

_LENGTH = 4096
_DISKS = (
    xva_packages.Disk(
        'Ref:1',
        b'a' * 4096 + bytes(8192) + b'b' * 5120,
        keep_alives=(1,),
    ),
    xva_packages.Disk(
        'Ref:10',
        b'c' * 12288,
        device='1',
        checksums='checksum',
        padded=True,
    ),
)


@functools.cache
def _plain() -> bytes:
    stream = io.BytesIO()
    xva_packages.write(stream, _DISKS, length=_LENGTH)
    return stream.getvalue()


def _description() -> mutation.Sample:
    objects = xva_packages.guest(_DISKS) + xva_packages.network(
        '0', '00:16:3e:00:00:01', 'Ref:7'
    )
    data = xva_packages.description(objects)
    return mutation.Sample('ova.xml', data)


#: Changes to the list of chunks: what, which, and a number.
_CHANGES = strategies.lists(
    strategies.tuples(
        strategies.sampled_from(
            ('drop', 'double', 'swap', 'renumber', 'resize', 'damage', 'move')
        ),
        strategies.integers(0, 20),
        strategies.one_of(
            strategies.integers(0, 20),
            strategies.sampled_from(
                (99999999, 1 << 31, 1 << 32, (1 << 63) - 1, 1 << 63, 10**18)
            ),
        ),
    ),
    min_size=1,
    max_size=3,
)


def _changed(
    members: list[tuple[str, bytes]], what: str, which: int, number: int
) -> None:
    """Change a member of the package in place."""
    which %= len(members)
    name, content = members[which]
    if what == 'drop':
        del members[which]
    elif what == 'double':
        members.insert(which, members[which])
    elif what == 'swap':
        other = number % len(members)
        members[which], members[other] = members[other], members[which]
    elif what == 'renumber':
        disk, _, digits = name.partition('/')
        ending = digits[8:]
        members[which] = (f'{disk}/{number:08d}{ending}', content)
    elif what == 'resize':
        members[which] = (name, (content * 3)[: number * 512 % 9000])
    elif what == 'damage':
        members[which] = (name, content[:-1] + b'!')
    else:
        members[which] = (name.replace('Ref:1/', 'Ref:10/'), content)


class XvaTest(cases.FuzzTest):
    """Nothing but the product's own errors, and both ways agree."""

    @cases.settings
    @hypothesis.given(mutation.mutants([tars.sample('xva', _plain())], most=3))
    def test_tar(self, mutant: mutation.Mutant) -> None:
        self.check_both(self.write('guest.xva', mutant.build()))

    @cases.settings
    @hypothesis.given(mutation.mutants([_description()]))
    def test_description(self, mutant: mutation.Mutant) -> None:
        members = {'ova.xml': mutant.build()}
        for disk in _DISKS:
            members |= dict(xva_packages.members(disk, _LENGTH))
        self.check_both(self.write('guest.xva', tars.build(members)))

    @cases.settings
    @hypothesis.given(mutation.documents([_description().data]))
    def test_records(self, text: bytes) -> None:
        members = {'ova.xml': text}
        for disk in _DISKS:
            members |= dict(xva_packages.members(disk, _LENGTH))
        self.check_both(self.write('guest.xva', tars.build(members)))

    @cases.settings
    @hypothesis.given(_CHANGES)
    def test_chunks(self, changes: list[tuple[str, int, int]]) -> None:
        members = [
            member
            for disk in _DISKS
            for member in xva_packages.members(disk, _LENGTH)
        ]
        for change in changes:
            _changed(members, *change)
        stream = io.BytesIO()
        xva_packages.write_members(
            stream, iter([('ova.xml', _description().data), *members])
        )
        self.check_both(self.write('guest.xva', stream.getvalue()))
