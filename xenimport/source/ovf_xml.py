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


"""The XML of an OVF descriptor, read without trust.

Elements and attributes are matched by local name, whatever the
namespace: DMTF's envelope/1 and envelope/2, VMware's pre-standard one,
and the additions of XenCenter, VMware and VirtualBox (DMTF DSP0243).
"""

from __future__ import annotations

from collections.abc import Iterator
import re
from xml.etree import ElementTree  # nosec: types only
from xml.parsers import expat  # nosec: counts elements, keeps nothing

from defusedxml import ElementTree as safe_xml
from defusedxml import common as safe_common

from xenimport import exceptions

#: Bytes. A descriptor is some tens of kilobytes.
MAX_SIZE = 4 * 1024 * 1024
#: A descriptor has some hundreds of elements, ten deep. Parsed, each takes
#: about half a kilobyte.
MAX_ELEMENTS = 100_000
MAX_DEPTH = 64
#: Above the number of bytes of any disk.
MAX_NUMBER = 1 << 63

_UNIT_NAMES = {
    'byte': 1,
    'bytes': 1,
    'kb': 1 << 10,
    'kilobytes': 1 << 10,
    'mb': 1 << 20,
    'megabytes': 1 << 20,
    'gb': 1 << 30,
    'gigabytes': 1 << 30,
    'tb': 1 << 40,
    'terabytes': 1 << 40,
}
_UNIT = re.compile(r'^bytes?\*([0-9]{1,4})(?:\^([0-9]{1,2}))?$')


def parse(text: bytes, where: str) -> ElementTree.Element:
    """The root element of a descriptor.

    :param where: the descriptor's name, for errors
    :raises xenimport.exceptions.PackageError: if it is too large, not
        well-formed, or has a document type
    """
    if len(text) > MAX_SIZE:
        raise _too_large(
            where, f'at most {MAX_SIZE} bytes', f'{len(text)} bytes'
        )
    try:
        _Shape(where).check(text)
        root: ElementTree.Element = safe_xml.fromstring(text, forbid_dtd=True)
    except (
        expat.ExpatError,
        ElementTree.ParseError,
        safe_common.DefusedXmlException,
        ValueError,
        LookupError,
    ) as error:
        raise _invalid(where, f'{error}'[:200]) from error
    if local(root.tag) != 'Envelope':
        raise exceptions.PackageError(
            'package.ovf-invalid',
            'The OVF descriptor does not start with an Envelope',
            where=where,
            expected='the element Envelope',
            found=f'the element {local(root.tag)[:80]}',
            fix='export the guest again',
        )
    return root


class _Shape:
    """Counts elements before any of them is kept."""

    def __init__(self, where: str) -> None:
        self._where = where
        self._count = 0
        self._depth = 0

    def check(self, text: bytes) -> None:
        parser = expat.ParserCreate()
        parser.StartDoctypeDeclHandler = self._doctype
        parser.StartElementHandler = self._start
        parser.EndElementHandler = self._end
        parser.Parse(text, True)

    def _doctype(self, *_arguments: object) -> None:
        raise _invalid(self._where, 'a document type or entity declaration')

    def _start(self, _name: str, _attributes: object) -> None:
        self._count += 1
        self._depth += 1
        if self._count > MAX_ELEMENTS:
            raise _too_large(
                self._where, f'at most {MAX_ELEMENTS} elements', 'more'
            )
        if self._depth > MAX_DEPTH:
            raise _too_large(
                self._where,
                f'elements nested at most {MAX_DEPTH} deep',
                'deeper ones',
            )

    def _end(self, _name: str) -> None:
        self._depth -= 1


def _invalid(where: str, found: str) -> exceptions.PackageError:
    return exceptions.PackageError(
        'package.ovf-invalid',
        'The OVF descriptor is not well-formed XML',
        where=where,
        expected='XML without a document type or entities',
        found=found,
        fix='export the guest again',
    )


def _too_large(
    where: str, expected: str, found: str
) -> exceptions.PackageError:
    return exceptions.PackageError(
        'package.ovf-too-large',
        'The OVF descriptor is too large',
        where=where,
        expected=expected,
        found=found,
        fix='export the guest again',
    )


def local(name: object) -> str:
    """A tag or attribute name without its namespace."""
    return name.rpartition('}')[2] if isinstance(name, str) else ''


def children(
    element: ElementTree.Element, *names: str
) -> Iterator[ElementTree.Element]:
    """The children with one of these local names."""
    return (child for child in element if local(child.tag) in names)


def descendants(
    element: ElementTree.Element, *names: str
) -> Iterator[ElementTree.Element]:
    """The element and all in it with one of these local names."""
    return (item for item in element.iter() if local(item.tag) in names)


def attribute(element: ElementTree.Element, name: str) -> str | None:
    """An attribute by its local name."""
    for key, value in element.items():
        if local(key) == name:
            return value.strip()
    return None


def child_text(element: ElementTree.Element, name: str) -> str | None:
    """The text of the first child called ``name``, None if empty."""
    for child in element:
        if local(child.tag).lower() == name.lower():
            text = (child.text or '').strip()
            if text:
                return text
    return None


def integer(text: str | None) -> int | None:
    """A number that fits 63 bits, None for anything else."""
    if text is None or not re.fullmatch(r'[0-9]{1,18}', text):
        return None
    return int(text)


def unit_factor(unit: str | None, default: int) -> int | None:
    """How many bytes a unit stands for, None if it is not known.

    :param unit: for example ``byte * 2^20`` (DSP0004) or ``MegaBytes``
    :param default: for a missing unit
    """
    if not unit:
        return default
    plain = re.sub(r'\s+', '', unit[:64]).lower()
    if plain in _UNIT_NAMES:
        return _UNIT_NAMES[plain]
    match = _UNIT.match(plain)
    if match is None:
        return None
    factor = int(match[1]) ** int(match[2] or 1)
    return factor if 0 < factor < MAX_NUMBER else None


def in_bytes(number: str, unit: str | None, default: int) -> int | None:
    """A stated size in bytes, None if it is not understood."""
    value = integer(number)
    factor = unit_factor(unit, default)
    if value is None or factor is None or value * factor >= MAX_NUMBER:
        return None
    return value * factor


def pairs(text: str) -> dict[str, str]:
    """XenCenter's dictionaries: ``order=dc;firmware=uefi``."""
    found: dict[str, str] = {}
    for part in re.split('[;,]', text):
        key, equals, value = part.partition('=')
        if equals:
            found[key.strip()] = value.strip()
    return found
