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

"""Changes to real headers: what a bit, a tool or an enemy makes of them."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence
import copy
import dataclasses
import typing
from xml.etree import ElementTree

from hypothesis import strategies

#: Numbers at which programs go wrong.
_BOUNDARIES = tuple(
    sorted(
        {
            (1 << bits) + more
            for bits in (0, 1, 9, 12, 16, 20, 21, 31, 32, 33, 55, 62, 63, 64)
            for more in (-1, 0, 1)
        }
    )
)
_TEXTS = (
    b'',
    b'\0',
    b'..',
    b'/etc/hostname',
    b'../x',
    b'-1',
    b'0',
    b'9' * 30,
    b'1e9',
    b'<',
    b'&a;',
    b'"',
    b'\xff\xfe',
    b'\xc3\xa9',
    b'\n',
    b'<!DOCTYPE a [<!ENTITY a "b">]>',
)

Field = tuple[int, int, typing.Literal['big', 'little']]
Seal = Callable[[bytearray], None]


@dataclasses.dataclass(frozen=True, repr=False)
class Sample:
    """A sound file, and what is worth changing in it.

    :ivar fields: offset, length and byte order of numbers
    :ivar hot: (start, end) of the parts that are not just data
    :ivar seals: what sets the checksums right again
    """

    name: str
    data: bytes
    fields: Sequence[Field] = ()
    hot: Sequence[tuple[int, int]] = ()
    seals: Sequence[Seal] = ()

    def __repr__(self) -> str:
        return f'<{self.name}>'


@dataclasses.dataclass(frozen=True)
class Edit:
    """One change: what is at an offset is replaced."""

    offset: int
    removed: int
    data: bytes

    def apply(self, target: bytearray) -> None:
        target[self.offset : self.offset + self.removed] = self.data


@dataclasses.dataclass(frozen=True)
class Mutant:
    """A file made of a sample."""

    sample: Sample
    edits: tuple[Edit, ...]
    seal: int

    def build(self) -> bytes:
        data = bytearray(self.sample.data)
        for edit in self.edits:
            edit.apply(data)
        if self.seal < len(self.sample.seals):
            self.sample.seals[self.seal](data)
        return bytes(data)


@strategies.composite
def mutants(
    draw: strategies.DrawFn, samples: Sequence[Sample], most: int = 4
) -> Mutant:
    """A sample with one to ``most`` changes."""
    sample = draw(strategies.sampled_from(samples))
    kinds = [_bytes, _bytes, _splice]
    if sample.fields:
        kinds += [_field, _field, _field, _field]
    edits = tuple(
        draw(draw(strategies.sampled_from(kinds))(sample))
        for _ in range(draw(strategies.integers(1, most)))
    )
    seal = draw(strategies.integers(0, len(sample.seals)))
    return Mutant(sample, edits, seal)


def _offsets(sample: Sample) -> strategies.SearchStrategy[int]:
    ranges = [(start, end) for start, end in sample.hot if end > start]
    anywhere = strategies.integers(0, max(0, len(sample.data) - 1))
    return strategies.one_of(
        *(strategies.integers(start, end - 1) for start, end in ranges),
        anywhere,
    )


@strategies.composite
def _field(draw: strategies.DrawFn, sample: Sample) -> Edit:
    """A number: a boundary, near the file's size, or near what it was."""
    offset, length, order = draw(strategies.sampled_from(sample.fields))
    size = len(sample.data)
    old = int.from_bytes(sample.data[offset : offset + length], order)
    near = strategies.integers(-2, 2)
    number = draw(
        strategies.one_of(
            strategies.sampled_from(_BOUNDARIES),
            near.map(lambda more: old + more),
            near.map(lambda more: size + more),
            near.map(lambda more: size // 512 + more),
            strategies.sampled_from((2, 4, 512)).map(lambda by: old * by),
            strategies.integers(0, (1 << 8 * length) - 1),
        )
    )
    number %= 1 << 8 * length
    return Edit(offset, length, number.to_bytes(length, order))


@strategies.composite
def _bytes(draw: strategies.DrawFn, sample: Sample) -> Edit:
    """Some bytes become others."""
    data = draw(
        strategies.one_of(
            strategies.binary(min_size=1, max_size=8),
            strategies.sampled_from(_TEXTS),
            strategies.sampled_from((b'\0', b'\xff', b'9')).flatmap(
                lambda byte: strategies.integers(1, 600).map(
                    lambda count: byte * count
                )
            ),
        )
    )
    removed = draw(strategies.sampled_from((len(data), len(data), 0, 1)))
    return Edit(draw(_offsets(sample)), removed, data)


@strategies.composite
def _splice(draw: strategies.DrawFn, sample: Sample) -> Edit:
    """Something is cut off, taken out or doubled."""
    offset = draw(_offsets(sample))
    length = draw(
        strategies.one_of(
            strategies.integers(0, 600),
            strategies.sampled_from((511, 512, 1024, 4096)),
        )
    )
    if draw(strategies.integers(0, 2)) == 0:
        return Edit(offset, len(sample.data), b'')
    start = draw(_offsets(sample))
    doubled = sample.data[start : start + length]
    removed = draw(strategies.sampled_from((0, length)))
    kept = draw(strategies.booleans())
    return Edit(offset, removed, doubled if kept else b'')


# XML

_VALUES = (
    *(str(number) for number in _BOUNDARIES),
    '', '-1', '0', '1.5', '1e400', ' 12 ', 'nan', '0x10', '\u0664', '9' * 500,
    '..', '../../../etc/hostname', '/etc/hostname', 'file:///etc/hostname',
    'http://example.invalid/a.vhd', 'C:\\a.vhd', '\\\\host\\a', 'a%2f..%2fb',
    '%00', '%2e%2e/x', 'guest.ovf', '.', 'byte * 2^63', 'byte * 2^9999999',
    'byte * 10^-3', 'byte ** 2', 'ovf:/disk/', '/disk/../x', 'gzip', 'bzip2',
    'Ref:NULL', 'true', 'BIOS order', '\u202e', 'x' * 1000, '\n', '\ufffd',
)  # fmt: skip


@strategies.composite
def documents(draw: strategies.DrawFn, texts: Sequence[bytes]) -> bytes:
    """A sound XML text with one to four changes; well-formed still."""
    root = ElementTree.fromstring(draw(strategies.sampled_from(texts)))
    for _ in range(draw(strategies.integers(1, 4))):
        elements = list(root.iter())
        element = draw(strategies.sampled_from(elements))
        change = draw(strategies.sampled_from(_CHANGES))
        change(draw, element, elements)
    return ElementTree.tostring(root, 'utf-8', xml_declaration=True)


def _set_text(
    draw: strategies.DrawFn,
    element: ElementTree.Element,
    elements: list[ElementTree.Element],
) -> None:
    leaves = [leaf for leaf in elements if not len(leaf)]
    leaf = draw(strategies.sampled_from(leaves))
    leaf.text = _value(draw, [other.text or '' for other in leaves])


def _set_attribute(
    draw: strategies.DrawFn,
    element: ElementTree.Element,
    elements: list[ElementTree.Element],
) -> None:
    found = [(one, key) for one in elements for key in one.attrib]
    if found:
        element, key = draw(strategies.sampled_from(found))
        element.set(key, _value(draw, [one.get(k, '') for one, k in found]))


def _value(draw: strategies.DrawFn, others: list[str]) -> str:
    """Hostile, or one that stands elsewhere."""
    return draw(
        strategies.one_of(
            strategies.sampled_from(_VALUES), strategies.sampled_from(others)
        )
    )


def _remove(
    draw: strategies.DrawFn,
    element: ElementTree.Element,
    elements: list[ElementTree.Element],
) -> None:
    if len(element):
        del element[draw(strategies.integers(0, len(element) - 1))]
    elif element.attrib:
        del element.attrib[draw(strategies.sampled_from(list(element.attrib)))]


def _double(
    draw: strategies.DrawFn,
    element: ElementTree.Element,
    elements: list[ElementTree.Element],
) -> None:
    """One element, or many, get a copy of another."""
    other = copy.deepcopy(draw(strategies.sampled_from(elements)))
    if len(list(other.iter())) < 200:
        count = draw(strategies.sampled_from((1, 1, 2, 20)))
        element.extend([other] * count)


def _rename(
    draw: strategies.DrawFn,
    element: ElementTree.Element,
    elements: list[ElementTree.Element],
) -> None:
    element.tag = draw(strategies.sampled_from(elements)).tag


_CHANGES = (
    _set_text, _set_text, _set_attribute, _set_attribute, _remove, _double,
    _rename,
)  # fmt: skip
