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


"""INF files: what a driver package says of itself.

Source: Microsoft's "General Syntax Rules for INF Files", "INF Version
Section", "INF Strings Section" and "INF AddService Directive". An INF is
UTF-16, UTF-8 or in the code page of who wrote it; the last is taken for
Windows-1252. Only text is read: nothing that an INF says is done.
"""

from __future__ import annotations

import codecs
from collections.abc import Iterator
import dataclasses
import itertools
import re

#: Bytes; the largest INFs, of display drivers, have some 3 MB.
SIZE_LIMIT = 4 << 20
_SECTIONS_LIMIT = 20_000
_LINES_LIMIT = 200_000
#: Characters of a value that is asked for; Windows takes 4096.
_VALUE_LIMIT = 1024
_LINE_LIMIT = 16_384
_TOKEN = re.compile('%([^%]*)%')


@dataclasses.dataclass(frozen=True)
class Line:
    """One line of a section, strings not yet put in.

    :ivar key: what stands before ``=``, '' where there is none
    :ivar values: what the commas part, without quotes
    """

    key: str
    values: tuple[str, ...]


class Inf:
    """An INF file.

    :ivar sections: lines by the section's name in upper case; sections of
        one name are one
    """

    def __init__(self, sections: dict[str, list[str]]) -> None:
        self.sections = sections
        self._strings: dict[str, str] | None = None

    def lines(self, section: str) -> Iterator[Line]:
        """The lines of a section, none where there is no such."""
        for text in self.sections.get(section.upper(), ()):
            key, values = _split(text)
            yield Line(key, values)

    def value(self, section: str, key: str) -> str:
        """The first value of a key, strings put in, '' where absent."""
        for line in self.lines(section):
            if line.key.upper() == key.upper():
                return self.expand(line.values[0] if line.values else '')
        return ''

    def expand(self, text: str) -> str:
        """A text with its ``%strings%`` put in, printable, cut if long."""
        found = _TOKEN.sub(self._string, text[:_VALUE_LIMIT])
        return printable(found[:_VALUE_LIMIT]).strip()

    def _string(self, match: re.Match[str]) -> str:
        name = match.group(1)
        if not name:
            return '%'
        if self._strings is None:
            self._strings = self._read_strings()
        return self._strings.get(name.upper(), match.group(0))

    def _read_strings(self) -> dict[str, str]:
        found: dict[str, str] = {}
        # English, as a report is; the others only fill what it lacks.
        for section in ('STRINGS.0409', 'STRINGS'):
            for line in self.lines(section):
                text = ','.join(line.values)[:_VALUE_LIMIT]
                found.setdefault(line.key.upper(), text)
        return found

    def services(self) -> tuple[str, ...]:
        """Names of the services that it adds, each once."""
        found: dict[str, str] = {}
        for section in self.sections:
            if section.endswith('.SERVICES'):
                for line in self.lines(section):
                    if line.key.upper() == 'ADDSERVICE' and line.values:
                        name = self.expand(line.values[0])
                        found.setdefault(name.upper(), name)
        found.pop('', None)
        return tuple(found.values())

    def files(self) -> tuple[str, ...]:
        """Names, without directories, of the files it may install."""
        found: dict[str, str] = {}
        for name in self._file_names():
            found.setdefault(name.upper(), name)
        found.pop('', None)
        return tuple(found.values())

    def _file_names(self) -> Iterator[str]:
        copied: set[str] = set()
        for section in self.sections:
            of_sources = section.partition('.')[0] == 'SOURCEDISKSFILES'
            for line in self.lines(section):
                if of_sources and line.key:
                    yield self.expand(line.key)
                elif line.key.upper() == 'COPYFILES':
                    for name in line.values:
                        if name.startswith('@'):
                            yield self.expand(name[1:])
                        else:
                            copied.add(name.upper())
        for section in copied:
            for line in self.lines(section):
                if line.values and not line.key:
                    yield self.expand(line.values[0])


def parse(data: bytes) -> Inf:
    """Read an INF; what is no INF has no sections.

    :param data: at most ``SIZE_LIMIT`` bytes are looked at
    """
    sections: dict[str, list[str]] = {}
    current: list[str] | None = None
    lines = _logical_lines(_decode(data[:SIZE_LIMIT]))
    for text in itertools.islice(lines, _LINES_LIMIT):
        if text.startswith('['):
            if len(sections) >= _SECTIONS_LIMIT:
                break
            name = text[1:].partition(']')[0].strip().upper()
            current = sections.setdefault(name, [])
        elif current is not None:
            current.append(text)
    return Inf(sections)


def _decode(data: bytes) -> str:
    if data.startswith(codecs.BOM_UTF16_LE):
        return data[2:].decode('utf-16-le', 'replace')
    if data.startswith(codecs.BOM_UTF16_BE):
        return data[2:].decode('utf-16-be', 'replace')
    if data.startswith(codecs.BOM_UTF8):
        return data[3:].decode('utf-8', 'replace')
    if data[1:2] == b'\0':
        return data.decode('utf-16-le', 'replace')
    try:
        return data.decode('utf-8')
    except UnicodeDecodeError:
        return data.decode('cp1252', 'replace')


def _logical_lines(text: str) -> Iterator[str]:
    """Lines without comments, continued ones put together, none empty."""
    parts: list[str] = []
    size = 0
    for line in re.split('\r\n|\r|\n', text):
        line = _without_comment(line[:_LINE_LIMIT]).strip()
        more = line.endswith('\\')
        if size < _LINE_LIMIT:
            parts.append(line[:-1] if more else line)
            size += len(line)
        if more:
            continue
        whole = ''.join(parts).strip()
        parts, size = [], 0
        if whole:
            yield whole
    if any(parts):
        yield ''.join(parts).strip()


def _without_comment(line: str) -> str:
    if ';' not in line:
        return line
    quoted = False
    for at, char in enumerate(line):
        if char == '"':
            quoted = not quoted
        elif char == ';' and not quoted:
            return line[:at]
    return line


def _split(line: str) -> tuple[str, tuple[str, ...]]:
    """A line's key and values, without quotes."""
    if '"' not in line:
        key, found, rest = line.partition('=')
        if not found or ',' in key:
            key, rest = '', line
        return key.strip(), tuple(part.strip() for part in rest.split(','))
    return _split_quoted(line)


def _split_quoted(line: str) -> tuple[str, tuple[str, ...]]:
    key = ''
    values: list[str] = []
    part: list[str] = []
    quoted = False
    for char in line:
        if char == '"':
            quoted = not quoted
            part.append(char)
        elif char == '=' and not quoted and not key and not values:
            key = _unquoted(''.join(part))
            part = []
        elif char == ',' and not quoted:
            values.append(_unquoted(''.join(part)))
            part = []
        else:
            part.append(char)
    values.append(_unquoted(''.join(part)))
    return key, tuple(values)


def _unquoted(text: str) -> str:
    text = text.strip()
    if text.startswith('"'):
        text = text[1:].removesuffix('"')
    return text.replace('""', '"')


def printable(text: str) -> str:
    """Without what would move a terminal's cursor."""
    return ''.join(char for char in text if char.isprintable())
