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

"""Mutants of VHDs: single ones and chains, in place and forward."""

from __future__ import annotations

import os

import hypothesis

from xenimport.tests.fuzz import cases
from xenimport.tests.fuzz import mutation
from xenimport.tests.fuzz import tars
from xenimport.tests import packages
from xenimport.tests import reading
from xenimport.tests import vhd_packages

_BLOCK = 4096
_SIZE = 16 * _BLOCK
_FOOTER = (
    (8, 4), (12, 4), (16, 8), (24, 4), (28, 4), (32, 4), (40, 8), (48, 8),
    (56, 2), (58, 1), (59, 1), (60, 4), (64, 4), (84, 1), (85, 1),
)  # fmt: skip
_HEADER = (
    (8, 8), (16, 8), (24, 4), (28, 4), (32, 4), (36, 4), (40, 8), (56, 4),
    (576, 4), (580, 4), (584, 4), (592, 8), (600, 4), (604, 4), (608, 4),
)  # fmt: skip


def _seals(start: int, size: int) -> tuple[mutation.Seal, mutation.Seal]:
    """What sets a VHD's checksums right again."""

    def seal(target: bytearray) -> None:
        for offset, length, place in (
            (start, 512, 64),
            (start + 512, 1024, 36),
            (start + size - 512, 512, 64),
        ):
            part = bytes(target[offset : offset + length])
            if len(part) == length:
                target[offset : offset + length] = packages.with_checksum(
                    part, place
                )

    def copy_and_seal(target: bytearray) -> None:
        if len(target) >= start + size and size >= 2048:
            footer = target[start : start + 512]
            target[start + size - 512 : start + size] = footer
        seal(target)

    return seal, copy_and_seal


def _fields(start: int, size: int) -> list[mutation.Field]:
    """The numbers of a VHD that starts somewhere in a file."""
    found: list[mutation.Field] = []
    for base, parts in (
        (start, _FOOTER),
        (start + 512, _HEADER),
        (start + size - 512, _FOOTER),
    ):
        found += [(base + at, length, 'big') for at, length in parts]
    found += [(start + 1536 + 4 * at, 4, 'big') for at in range(16)]
    # The headers of more than the table: all are to be seen.
    return [field for field in found if field[0] < start + size]


def _sample(name: str, data: bytes) -> mutation.Sample:
    size = len(data)
    hot = [(0, 96), (512, 704), (1088, 1300), (1536, 2048), (size - 512, size)]
    seals = _seals(0, size)
    return mutation.Sample(
        name, data, _fields(0, size), hot, (seals[0], seals[1], seals[1])
    )


def _chain() -> tuple[list[str], list[bytes]]:
    parent = vhd_packages.uuid_of(1)
    child = vhd_packages.uuid_of(2)
    return ['0.vhd', '1.vhd', '2.vhd'], [
        vhd_packages.Vhd(
            _SIZE,
            {0: b'C' * 512, 3 * _BLOCK + 512: b'D' * 1024},
            block_size=_BLOCK,
            identity=vhd_packages.uuid_of(3),
            parent=child,
            parent_name='1.vhd',
            locators=[vhd_packages.w2ru('.\\1.vhd')],
        ).build(),
        vhd_packages.Vhd(
            _SIZE,
            {_BLOCK: b'B' * _BLOCK},
            block_size=_BLOCK,
            identity=child,
            parent=parent,
            locators=[vhd_packages.macx('file://./2.vhd')],
        ).build(),
        vhd_packages.Vhd(
            _SIZE // 2,
            {0: b'A' * 2 * _BLOCK, 5 * _BLOCK: b'E' * _BLOCK},
            block_size=_BLOCK,
            identity=parent,
        ).build(),
    ]


def _dynamic() -> list[mutation.Sample]:
    content = {0: b'1' * 512, _BLOCK: b'2' * _BLOCK, 5 * _BLOCK: b'3' * 2048}
    return [
        _sample('plain', vhd_packages.Vhd(_SIZE, content, _BLOCK).build()),
        _sample(
            'odd',
            vhd_packages.Vhd(
                _SIZE - 1536,
                content,
                _BLOCK,
                order=(5, 0, 1),
                gap=1024,
                entries=160,
                batmap=True,
            ).build(),
        ),
        _sample(
            'table last',
            vhd_packages.Vhd(
                _SIZE, content, _BLOCK, table_last=True, lowest_bit_first=True
            ).build(),
        ),
        _sample(
            'large blocks',
            vhd_packages.Vhd(
                2 << 20, {0: b'4' * 4096, 512 << 10: b'5' * 512}, 256 << 10
            ).build(),
        ),
    ]


def _in_tar() -> list[mutation.Sample]:
    """A chain; one of its members is changed."""
    names, layers = _chain()
    data = tars.build(dict(zip(names, layers, strict=True)))
    fields: list[mutation.Field] = []
    hot = []
    offset = 0
    samples = []
    for layer in layers:
        offset += 512
        fields = _fields(offset, len(layer))
        hot = [(offset, offset + 2560)]
        seals = _seals(offset, len(layer))
        samples.append(
            mutation.Sample(
                f'layer at {offset}', data, fields, hot, (*seals, seals[1])
            )
        )
        offset += len(layer)
    return samples


class VhdTest(cases.FuzzTest):
    """Nothing but the product's own errors, and both ways agree."""

    @cases.settings
    @hypothesis.given(mutation.mutants(_dynamic()))
    def test_dynamic(self, mutant: mutation.Mutant) -> None:
        self.check_both(self.write('disk.vhd', mutant.build()))

    @cases.settings
    @hypothesis.given(
        mutation.mutants([_sample('fixed', packages.fixed_vhd(b'f' * 65536))])
    )
    def test_fixed(self, mutant: mutation.Mutant) -> None:
        self.check_both(self.write('disk.vhd', mutant.build()))

    @cases.settings
    @hypothesis.given(mutation.mutants(_in_tar()))
    def test_chain(self, mutant: mutation.Mutant) -> None:
        self.check_both(self.write('image', mutant.build()))

    @cases.settings
    @hypothesis.given(mutation.mutants(_in_tar()[:1]))
    def test_chain_of_bare_files(self, mutant: mutation.Mutant) -> None:
        names, layers = _chain()
        start = mutant.sample.fields[0][0] - 8
        child = mutant.build()[start : start + len(layers[0])]
        paths = [
            self.write(name, data)
            for name, data in zip(names, [child, *layers[1:]], strict=True)
        ]
        self.check(reading.read, paths)
        for path in paths:
            os.unlink(path)
