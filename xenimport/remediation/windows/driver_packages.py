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


"""The driver packages of others than Microsoft, as dism lists them.

A package that was installed has the name ``oemN.inf`` (its "published
name") in \\Windows\\INF, beside its own in the driver store. Which is which
the registry says since Windows 8 (``DriverDatabase``, in SYSTEM for what
may be needed to boot, in the DRIVERS hive for the rest); on Windows 7 the
INF itself is looked for in the store.

Sources: real hives of Windows 10 for the layout of DriverDatabase, and the
registry files of lxc/distrobuilder for the DRIVERS hive; Microsoft's
"DISM driver servicing command-line options" for what is listed.
"""

from __future__ import annotations

from collections.abc import Iterator
import dataclasses
import datetime
import itertools
import re
import struct
import typing
import uuid

from xenimport.guest import guest as guest_room
from xenimport.guest import registry
from xenimport.guest import volumes
from xenimport.remediation.windows import inf
from xenimport.remediation.windows import system
from xenimport.remediation.windows import xen_families

INF = 'Windows/INF'
STORE = 'Windows/System32/DriverStore/FileRepository'
DATABASE = 'DriverDatabase'
_PUBLISHED = re.compile(r'oem(\d{1,6})\.inf', re.IGNORECASE | re.ASCII)
#: xenvbd.inf_amd64_neutral_4f3c7d1ea2b09865; no "neutral" since Windows 8.
_STORED = re.compile(
    r'([^\\/]+\.inf)_(?:amd64|x86|arm64|arm|ia64)_(?:neutral_)?[0-9a-f]{16}',
    re.IGNORECASE,
)
_DATE = re.compile(r'(\d{1,2})[/-](\d{1,2})[/-](\d{4})', re.ASCII)
#: More than any guest has: what is behind it is not looked at.
_PACKAGES_LIMIT = 1000
_STORE_LIMIT = 2000
_SAME_SIZE = 8
#: Bytes of all INFs together; what is more is taken for absent.
_BYTES_LIMIT = 64 << 20
_EPOCH = datetime.datetime(1601, 1, 1)
#: Version of a package in the registry: a flag, the architecture, the
#: class, the date as FILETIME, four numbers from the last to the first.
_VERSION = struct.Struct('<8x16sQ4H8x')


@dataclasses.dataclass(frozen=True)
class DriverPackage:
    """One package, in the words of ``dism /get-drivers``.

    :ivar published: ``oem2.inf``
    :ivar original: its own name, ``xennet.inf``
    :ivar date: as dism prints it in English, ``2/24/2016``
    :ivar inbox: whether it came with Windows; none of these did
    :ivar family: of Xen drivers, None where it is another driver
    :ivar services: that its INF adds
    :ivar stored: its directory in the driver store, '' if not found
    """

    published: str
    original: str
    class_name: str
    provider: str
    date: str
    version: str
    inbox: bool = False
    catalog: str = ''
    family: str | None = None
    services: tuple[str, ...] = ()
    stored: str = ''

    def __str__(self) -> str:
        shown = self.original, self.class_name, self.provider, self.date
        return f'{self.published} ({", ".join((*shown, self.version))})'

    def row(self) -> dict[str, typing.Any]:
        """Its line of dism's list, and the family, for a report."""
        return {
            'published_name': self.published,
            'original_file_name': self.original,
            'inbox': self.inbox,
            'class_name': self.class_name,
            'provider_name': self.provider,
            'date': self.date,
            'version': self.version,
            'family': self.family,
        }


def databases(guest: guest_room.Guest) -> list[registry.Hive]:
    """The hives that have a DriverDatabase; none before Windows 8."""
    hives = [system.system_hive(guest), system.drivers_hive(guest)]
    return [hive for hive in hives if hive and hive.key(DATABASE)]


def number(published: str) -> int:
    """The N of ``oemN.inf``."""
    match = _PUBLISHED.fullmatch(published)
    if match is None:
        raise ValueError(published)
    return int(match.group(1))


def packages(guest: guest_room.Guest) -> tuple[DriverPackage, ...]:
    """All packages that did not come with Windows, by their number."""
    reader = _Reader(guest)
    names = sorted(reader.published(), key=number)
    return tuple(
        reader.package(name)
        for name in itertools.islice(names, _PACKAGES_LIMIT)
    )


def read_inf(volume: volumes.Volume, published: str) -> bytes:
    """The INF of a package, empty where it is not there or not one."""
    path = f'{INF}/{published}'
    size = volume.size(path)
    if size is None or size > inf.SIZE_LIMIT:
        return b''
    return volume.read(path, inf.SIZE_LIMIT)


def stored_names(
    hive: registry.Hive, published: str
) -> Iterator[tuple[str, registry.Key]]:
    """A package's names in a DriverDatabase, with their keys."""
    place = f'{DATABASE}\\DriverInfFiles\\{published}'
    key = hive.key(place)
    for name in key.strings('') if key else ():
        found = hive.key(f'{DATABASE}\\DriverPackages\\{name}')
        if found is not None and _STORED.fullmatch(name):
            yield name, found


class _Reader:
    """Reads the packages of one guest."""

    def __init__(self, guest: guest_room.Guest) -> None:
        self._guest = guest
        self._volume = system.volume(guest)
        self._databases = databases(guest)
        self._bytes_left = _BYTES_LIMIT
        #: Directories in the store and their INFs, by the INF's size.
        self._by_size: dict[int, list[tuple[str, str]]] | None = None

    def published(self) -> set[str]:
        """Published names, in lower case."""
        names = set(self._volume.listing(INF).values())
        for hive in self._databases:
            key = hive.key(f'{DATABASE}\\DriverInfFiles')
            names.update(key.subkeys if key else ())
        return {name.lower() for name in names if _PUBLISHED.fullmatch(name)}

    def package(self, published: str) -> DriverPackage:
        data = b''
        if self._bytes_left > 0:
            data = read_inf(self._volume, published)
            self._bytes_left -= len(data)
        file = inf.parse(data)
        recorded = self._recorded(published)
        stored, key = recorded or (self._stored(data), None)
        catalog = _catalog(file) or _text(key, 'Catalog')
        provider = file.value('Version', 'Provider') or _text(key, 'Provider')
        class_name, date, version = self._version(key)
        inf_date, inf_version = driver_version(file)
        match = _STORED.fullmatch(stored)
        family = xen_families.of_package(catalog, provider)
        return DriverPackage(
            published=published,
            original=_text(key, 'InfName')
            or inf.printable(match.group(1) if match else '')
            or self._by_catalog(catalog)
            or published,
            class_name=file.value('Version', 'Class') or class_name,
            provider=provider,
            date=inf_date or date,
            version=inf_version or version,
            catalog=catalog,
            family=family.name if family else None,
            services=file.services() or self._configured(stored),
            stored=stored,
        )

    def _recorded(self, published: str) -> tuple[str, registry.Key] | None:
        """What the registry says; the first name is the one in use."""
        for hive in self._databases:
            for found in stored_names(hive, published):
                return found
        return None

    def _configured(self, stored: str) -> tuple[str, ...]:
        """Services of a package without an INF."""
        names: dict[str, str] = {}
        for hive in self._databases if stored else ():
            path = f'{DATABASE}\\DriverPackages\\{stored}\\Configurations'
            for key in hive.keys(path):
                name = key.text('Service')
                names.setdefault(name.upper(), name)
        names.pop('', None)
        return tuple(names.values())

    def _version(self, key: registry.Key | None) -> tuple[str, str, str]:
        """Class, date and version as the registry has them."""
        value = key.value('Version') if key else None
        if value is None or len(value.data) != _VERSION.size:
            return '', '', ''
        guid, ticks, *numbers = _VERSION.unpack(value.data)
        version = '.'.join(str(part) for part in reversed(numbers))
        class_name = self._class_name(uuid.UUID(bytes_le=guid))
        try:
            day = _EPOCH + datetime.timedelta(microseconds=ticks // 10)
        except OverflowError:
            return class_name, '', version
        return class_name, f'{day.month}/{day.day}/{day.year}', version

    def _class_name(self, guid: uuid.UUID) -> str:
        hive = system.system_hive(self._guest)
        for control_set in system.control_sets(self._guest):
            key = hive.key(f'{control_set}\\Control\\Class\\{{{guid}}}')
            if key is not None:
                return inf.printable(key.text('Class'))
        return ''

    def _by_catalog(self, catalog: str) -> str:
        """An INF in the store that is named as its catalog, '' if none.

        A guess for a package whose INF was changed after it came.
        """
        name = catalog.lower().removesuffix('.cat') + '.inf'
        for directory in self._volume.listing(STORE).values():
            match = _STORED.fullmatch(directory)
            if match and match.group(1).lower() == name:
                return inf.printable(match.group(1))
        return ''

    def _stored(self, data: bytes) -> str:
        """The directory in the store whose INF is that one, '' if none."""
        if not data:
            return ''
        if self._by_size is None:
            self._by_size = self._read_store()
        # Two of one size are common; more than a few are not.
        for name, path in self._by_size.get(len(data), ())[:_SAME_SIZE]:
            if self._volume.read(path, inf.SIZE_LIMIT) == data:
                return name
        return ''

    def _read_store(self) -> dict[int, list[tuple[str, str]]]:
        """INFs in the store that are not Windows' own.

        Those stand in \\Windows\\INF under their own names too.
        """
        inbox = self._volume.listing(INF)
        matches = filter(
            None, map(_STORED.fullmatch, self._volume.listing(STORE).values())
        )
        others = (item for item in matches if item[1].upper() not in inbox)
        found: dict[int, list[tuple[str, str]]] = {}
        for match in itertools.islice(others, _STORE_LIMIT):
            path = f'{STORE}/{match[0]}/{match[1]}'
            size = self._volume.size(path)
            if size is not None:
                found.setdefault(size, []).append((match[0], path))
        return found


def _text(key: registry.Key | None, name: str) -> str:
    return inf.printable(key.text(name)) if key else ''


def _catalog(file: inf.Inf) -> str:
    """CatalogFile, or the one for this kind of system."""
    for key in ('CatalogFile', 'CatalogFile.NTamd64', 'CatalogFile.NTx86'):
        found = file.value('Version', key)
        if found:
            return found
    return file.value('Version', 'CatalogFile.NT')


def driver_version(file: inf.Inf) -> tuple[str, str]:
    """Date and version of DriverVer; '' for what it does not say."""
    for line in file.lines('Version'):
        if line.key.upper() == 'DRIVERVER':
            texts = [file.expand(text) for text in line.values]
            match = _DATE.fullmatch(texts[0])
            date = ''
            if match:
                date = f'{int(match[1])}/{int(match[2])}/{match[3]}'
            return date, texts[1][:40] if len(texts) > 1 else ''
    return '', ''
