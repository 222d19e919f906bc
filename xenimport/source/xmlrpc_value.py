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


"""A value in the encoding of XML-RPC (xmlrpc.com/spec.md).

The standard library's reader is not used: it follows entities, and builds
whatever it is given.
"""

from __future__ import annotations

from collections.abc import Mapping
import typing
from xml.etree import ElementTree  # nosec: types only

from defusedxml import common as safe_common
from defusedxml import ElementTree as safe_xml

#: An export has some thousands.
_MAX_ELEMENTS = 1_000_000
_SCALARS = frozenset(
    (
        'string',
        'int',
        'i4',
        'i8',
        'boolean',
        'double',
        'dateTime.iso8601',
        'base64',
        'nil',
    )
)

#: Text, an array or a struct. Numbers stay text.
Value: typing.TypeAlias = 'str | list[Value] | dict[str, Value]'


class RootError(Exception):
    """The document starts with another element than a value.

    :ivar tag: that element's name
    """

    def __init__(self, tag: str) -> None:
        super().__init__(tag)
        self.tag = tag


def parse(text: bytes) -> Value:
    """Parse a document that is one value.

    :raises RootError: if it starts with another element
    :raises ValueError: if it is not one value, or larger than any
    """
    parser = safe_xml.DefusedXMLParser(target=_Builder(), forbid_dtd=True)
    try:
        parser.feed(text)
        result: Value = typing.cast('Value', parser.close())
    except safe_common.DefusedXmlException as error:
        raise ValueError('a document type or entity declaration') from error
    except (ElementTree.ParseError, LookupError) as error:
        raise ValueError(f'{error}') from error
    return result


class _Frame:
    """A struct or array that is not finished."""

    def __init__(self, content: list[Value] | dict[str, Value]) -> None:
        self.content = content
        self.name: str | None = None

    def add(self, value: Value) -> None:
        """Take in a finished value.

        :raises ValueError: if the struct has no name for it
        """
        if isinstance(self.content, list):
            self.content.append(value)
        elif self.name is None:
            raise ValueError('a member without a name')
        else:
            self.content[self.name] = value
            self.name = None


class _Builder:
    """Makes a value of the parser's events; keeps nothing else."""

    def __init__(self) -> None:
        self._elements = 0
        self._text: list[str] = []
        #: Values that are not finished; None where nothing is known yet.
        self._values: list[Value | None] = []
        self._frames: list[_Frame] = []
        self._root: Value | None = None

    def start(self, tag: str, attributes: Mapping[str, str]) -> None:
        if not self._elements and tag != 'value':
            raise RootError(tag)
        self._elements += 1
        if self._elements > _MAX_ELEMENTS:
            raise ValueError('more elements than any export has')
        if not self._values and (tag != 'value' or self._root is not None):
            raise ValueError(f'the element {tag!r} in place of a value')
        self._text = []
        if tag == 'value':
            self._values.append(None)
        elif tag == 'struct':
            self._frames.append(_Frame({}))
        elif tag == 'array':
            self._frames.append(_Frame([]))

    def data(self, text: str) -> None:
        self._text.append(text)

    def end(self, tag: str) -> None:
        if tag in _SCALARS:
            self._values[-1] = ''.join(self._text)
        elif tag == 'name' and self._frames:
            self._frames[-1].name = ''.join(self._text)
        elif tag in ('struct', 'array'):
            self._values[-1] = self._frames.pop().content
        elif tag == 'value':
            value = self._values.pop()
            if value is None:
                value = ''.join(self._text)
            if self._frames:
                self._frames[-1].add(value)
            else:
                self._root = value
        self._text = []

    def close(self) -> Value:
        if self._root is None:
            raise ValueError('no value')
        return self._root
