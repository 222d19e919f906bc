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


"""A virtio driver's package, and what its INF says of it.

Source: Microsoft's "INF Manufacturer Section", "INF Models Section", "INF
DDInstall.Services Section", "INF AddService Directive", "INF AddReg
Directive". What is written into a guest is what the INF says: the numbers
of a service are the vendor's, not ours.
"""

from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Mapping
import dataclasses
import datetime
import hashlib
import re
import struct
import uuid

from xenimport.guest import registry
from xenimport.remediation.windows import inf
from xenimport.remediation.windows import system

#: Architectures as a section's name has them.
_DECORATIONS = {'amd64': 'NTAMD64', 'x86': 'NTX86', 'arm64': 'NTARM64'}
_DECORATED = re.compile(
    r'NT(?P<arch>[A-Z0-9]*?)(?:\.(?P<major>\d+)(?:\.(?P<minor>\d+))?'
    r'(?:\.[0-9.]*)?)?'
)
#: Names that become keys and files: nothing that leads elsewhere.
_NAME = re.compile(r'[A-Za-z0-9_][A-Za-z0-9_.\- ]{0,200}')
_NAME_LIMIT = 200
_TOKENS = re.compile('%([^%]+)%')
_PCI = re.compile(r'PCI\\[A-Z0-9_&]{1,190}')
#: Bits of an AddReg line's flags, setupapi.h: the type of a value.
_TYPES = {
    0x00000: registry.SZ,
    0x00001: registry.BINARY,
    0x10000: registry.MULTI_SZ,
    0x10001: registry.DWORD,
    0x20000: registry.EXPAND_SZ,
}
_TYPE_BITS = 0xFFFF0001
#: Only the key is made.
_KEY_ONLY = 0x10
_ENTRIES_LIMIT = 256
_EPOCH = datetime.date(1601, 1, 1)
_DATE = re.compile(r'(\d{1,2})[/-](\d{1,2})[/-](\d{4})', re.ASCII)


@dataclasses.dataclass(frozen=True)
class Setting:
    """A value that the INF sets; ``key`` is relative."""

    key: str
    value: registry.Value


@dataclasses.dataclass(frozen=True)
class Model:
    """A device that the driver is for.

    :ivar hardware_id: ``PCI\\VEN_1AF4&DEV_1001``, upper case
    :ivar section: the install section's name without its decoration
    :ivar description: and ``manufacturer``, with ``%tokens%`` as they are
    :ivar match: what a driver database has for the id (measured in a
        genuine hive): 1 for a hardware id, 2 for a compatible one, and
        the place of that one on its line
    """

    hardware_id: str
    section: str
    description: str
    manufacturer: str
    match: bytes = b'\x01\xff\0\0'


@dataclasses.dataclass(frozen=True)
class Service:
    """The service that the INF adds.

    :ivar binary: the file's name, which stands in System32\\drivers
    :ivar display_name: with the ``%token%`` as it is in the INF
    :ivar display_text: what that stands for
    :ivar settings: below the service's key
    """

    name: str
    type: int
    start: int
    error_control: int
    group: str
    display_name: str
    binary: str
    settings: tuple[Setting, ...]
    display_text: str = ''


@dataclasses.dataclass(frozen=True)
class Package:
    """One driver package, for one Windows and one architecture.

    :ivar driver: ``viostor``, ``vioscsi``, ``netkvm``
    :ivar files: bytes by name: INF, binary, catalog and what else the INF
        installs
    :ivar driver_settings: of the device's driver key, such as a network
        driver's Ndi
    :ivar strings: what the models' tokens stand for, lower case
    :ivar origin: where it was found, for messages
    """

    driver: str
    inf_name: str
    files: Mapping[str, bytes]
    architecture: str
    class_name: str
    class_guid: str
    provider: str
    date: datetime.date
    version: tuple[int, int, int, int]
    catalog_name: str
    models: tuple[Model, ...]
    service: Service
    device_settings: tuple[Setting, ...]
    origin: str
    strings: tuple[tuple[str, str], ...] = ()
    driver_settings: tuple[Setting, ...] = ()

    @property
    def binary(self) -> bytes:
        """The driver itself."""
        return self.files[self.service.binary]

    @property
    def catalog(self) -> bytes | None:
        """The catalog, None where the package has none."""
        return self.files.get(self.catalog_name)

    @property
    def stored(self) -> str:
        """The name that the driver store gives it: the INF, hashed.

        How Windows computes the last part is not documented; it has to be
        of this form and no other package's.
        """
        digest = hashlib.sha256(self.files[self.inf_name]).hexdigest()[:16]
        return f'{self.inf_name}_{self.architecture}_{digest}'

    def version_data(self) -> bytes:
        """The value ``Version`` of a driver database (facts: measured)."""
        # 9 is PROCESSOR_ARCHITECTURE_AMD64, 0 is INTEL, 12 is ARM64.
        number = {'amd64': 9, 'x86': 0, 'arm64': 12}[self.architecture]
        days = (self.date - _EPOCH).days
        return struct.pack(
            '<HHI16sQ4HQ',
            0xFF00,
            number,
            0,
            uuid.UUID(self.class_guid).bytes_le,
            days * 86_400 * 10_000_000,
            *reversed(self.version),
            0,
        )


class InvalidPackageError(Exception):
    """The INF is not that of a driver; says what is missing."""


def read(
    driver: str,
    inf_name: str,
    files: Mapping[str, bytes],
    release: system.Release,
    origin: str,
) -> Package:
    """Understand a package.

    :param files: by name, in whatever case the medium has them
    :raises InvalidPackageError: if the INF lacks what an installation
        needs, or a file that it installs is not there
    """
    return _Reader(driver, inf_name, files, release, origin).package()


class _Reader:
    def __init__(
        self,
        driver: str,
        inf_name: str,
        files: Mapping[str, bytes],
        release: system.Release,
        origin: str,
    ) -> None:
        self._driver = driver
        self._names = {name.upper(): name for name in files}
        self._files = files
        self._release = release
        self._origin = origin
        self._inf_name = inf_name
        self._inf = inf.parse(files[inf_name])

    def package(self) -> Package:
        models = tuple(self._models())
        if not models:
            raise InvalidPackageError(
                f'{self._inf_name} has no device for this Windows'
            )
        section = models[0].section
        service = self._service(section)
        date, version = self._driver_version()
        guid = self._inf.value('Version', 'ClassGuid')
        try:
            guid = f'{{{uuid.UUID(guid)}}}'
        except ValueError:
            raise InvalidPackageError(
                f'{self._inf_name} names no device class'
            ) from None
        catalog = self._catalog()
        return Package(
            self._driver,
            self._inf_name.lower(),
            self._installed(service, catalog),
            self._release.architecture,
            self._inf.value('Version', 'Class'),
            guid,
            self._inf.value('Version', 'Provider'),
            date,
            version,
            catalog,
            models,
            service,
            tuple(self._settings(section, '.HW')),
            self._origin,
            self._strings(models),
            tuple(self._settings(section, '')),
        )

    def _installed(self, service: Service, catalog: str) -> dict[str, bytes]:
        """The files that the INF installs, by the names that it has."""
        wanted = [service.binary, *self._inf.files()]
        found = {self._inf_name.lower(): self._files[self._inf_name]}
        for name in wanted:
            real = self._names.get(name.upper())
            if real is None and name == service.binary:
                raise InvalidPackageError(f'{name} is not there')
            if real is not None and _NAME.fullmatch(name):
                found[name] = self._files[real]
        real = self._names.get(catalog.upper())
        if real is not None:
            found[catalog] = self._files[real]
        return found

    def _catalog(self) -> str:
        """Its name; the more special entry of the section counts."""
        special = f'CatalogFile.{_DECORATIONS[self._release.architecture]}'
        name = self._inf.value('Version', special) or self._inf.value(
            'Version', 'CatalogFile'
        )
        return name if _NAME.fullmatch(name) else ''

    def _driver_version(
        self,
    ) -> tuple[datetime.date, tuple[int, int, int, int]]:
        for line in self._inf.lines('Version'):
            if line.key.upper() == 'DRIVERVER' and line.values:
                date = _date(line.values[0])
                text = line.values[1] if len(line.values) > 1 else '0'
                parts = [int(p) for p in text.split('.') if _is_word(p)][:4]
                parts += [0] * (4 - len(parts))
                if date is not None and max(parts) < 0x10000:
                    return date, (parts[0], parts[1], parts[2], parts[3])
        raise InvalidPackageError(f'{self._inf_name} has no valid DriverVer')

    def _models(self) -> Iterator[Model]:
        for line in self._inf.lines('Manufacturer'):
            if not line.values:
                continue
            section = self._models_section(line.values)
            maker = inf.printable(line.key)[:_NAME_LIMIT]
            for entry in self._inf.lines(section):
                if len(entry.values) < 2:
                    continue
                for at, text in enumerate(entry.values[1:_ENTRIES_LIMIT]):
                    hardware_id = text.upper()
                    if _PCI.fullmatch(hardware_id):
                        yield Model(
                            hardware_id,
                            _checked(entry.values[0]),
                            inf.printable(entry.key)[:_NAME_LIMIT],
                            maker,
                            _match(at),
                        )

    def _strings(
        self, models: tuple[Model, ...]
    ) -> tuple[tuple[str, str], ...]:
        """The tokens that models use, each with its text."""
        found: dict[str, str] = {}
        for item in models:
            for text in (item.manufacturer, item.description):
                for token in _TOKENS.findall(text):
                    found[token.lower()] = self._inf.expand(f'%{token}%')
        return tuple(found.items())

    def _models_section(self, values: tuple[str, ...]) -> str:
        """The most special section of models that this Windows takes."""
        best, name = (-1, -1, -1), values[0]
        wanted = _DECORATIONS[self._release.architecture]
        for decoration in values[1:]:
            match = _DECORATED.fullmatch(decoration.upper())
            if match is None:
                continue
            if match['arch'] and f'NT{match["arch"]}' != wanted:
                continue
            version = int(match['major'] or 0), int(match['minor'] or 0)
            rank = (*version, bool(match['arch']))
            if version <= self._release.version and rank > best:
                best, name = rank, f'{values[0]}.{decoration}'
        return name

    def _section(self, name: str, suffix: str) -> str:
        """An install section's variant for this Windows, '' if none."""
        arch = _DECORATIONS[self._release.architecture]
        for decoration in (f'.{arch}', '.NT', ''):
            found = f'{name}{decoration}{suffix}'.upper()
            if found in self._inf.sections:
                return found
        return ''

    def _service(self, section: str) -> Service:
        for line in self._inf.lines(self._section(section, '.Services')):
            if line.key.upper() != 'ADDSERVICE' or len(line.values) < 3:
                continue
            flags = _number(line.values[1])
            if flags & 2 or line.values[0]:
                return self._installed_service(
                    self._inf.expand(line.values[0]), line.values[2]
                )
        raise InvalidPackageError(f'{self._inf_name} adds no service')

    def _installed_service(self, name: str, section: str) -> Service:
        def value(key: str) -> str:
            return self._inf.value(section, key)

        binary = value('ServiceBinary').replace('/', '\\')
        binary = binary.rpartition('\\')[2]
        if not name or not binary.lower().endswith('.sys'):
            raise InvalidPackageError(
                f'{self._inf_name} adds the service {name!r} without a driver'
            )
        return Service(
            _checked(name),
            _number(value('ServiceType')),
            _number(value('StartType')),
            _number(value('ErrorControl')),
            value('LoadOrderGroup'),
            self._plain(section, 'DisplayName'),
            _checked(binary),
            tuple(self._added(section)),
            value('DisplayName'),
        )

    def _plain(self, section: str, key: str) -> str:
        """A value with its tokens as they are."""
        for line in self._inf.lines(section):
            if line.key.upper() == key.upper() and line.values:
                return inf.printable(line.values[0])[:_NAME_LIMIT]
        return ''

    def _settings(self, section: str, suffix: str) -> Iterator[Setting]:
        found = self._section(section, suffix)
        if found:
            yield from self._added(found)

    def _added(self, section: str) -> Iterator[Setting]:
        """What the AddReg sections that a section names set below HKR."""
        for line in self._inf.lines(section):
            if line.key.upper() == 'ADDREG':
                for name in line.values:
                    yield from self._values(name)

    def _values(self, section: str) -> Iterator[Setting]:
        for line in self._inf.lines(section):
            if not line.values or line.values[0].upper() != 'HKR':
                continue
            parts = [self._inf.expand(part) for part in line.values]
            parts += [''] * (4 - len(parts))
            flags = _number(parts[3])
            if flags & _KEY_ONLY:
                continue
            value = _value(parts[2], flags, parts[4:])
            if value is not None:
                yield Setting(parts[1].strip('\\'), value)


def _value(name: str, flags: int, data: list[str]) -> registry.Value | None:
    """A value of an AddReg line, None where its kind is not known."""
    kind = _TYPES.get(flags & _TYPE_BITS)
    if kind == registry.DWORD:
        return registry.Value.dword(name, _number(data[0] if data else ''))
    if kind == registry.SZ:
        return registry.Value.sz(name, data[0] if data else '')
    if kind == registry.EXPAND_SZ:
        return registry.Value.expand_sz(name, data[0] if data else '')
    if kind == registry.MULTI_SZ:
        return registry.Value.multi_sz(name, data)
    if kind == registry.BINARY:
        return registry.Value.binary(
            name, bytes(_number(f'0x{item}') & 0xFF for item in data)
        )
    return None


def _checked(name: str) -> str:
    """A name that becomes a key or a file in the guest.

    :raises InvalidPackageError: if it would be somewhere else
    """
    if not _NAME.fullmatch(name):
        raise InvalidPackageError(
            f'{inf.printable(name)[:_NAME_LIMIT]!r} is no name'
        )
    return name


def _match(at: int) -> bytes:
    """What a driver database has for the id at a place of its line."""
    return bytes((2, 0xFF, at - 1, 0)) if at else b'\x01\xff\0\0'


def _date(text: str) -> datetime.date | None:
    """A date as DriverVer has it, month first."""
    match = _DATE.fullmatch(text.strip())
    if match is None:
        return None
    try:
        date = datetime.date(int(match[3]), int(match[1]), int(match[2]))
    except ValueError:
        return None
    return date if date > _EPOCH else None


def _number(text: str) -> int:
    """A number of an INF, 0 where it is none; never more than 32 bits."""
    text = text.strip()
    try:
        number = int(text, 16 if text[:2].lower() == '0x' else 10)
    except ValueError:
        return 0
    return number & 0xFFFFFFFF


def _is_word(text: str) -> bool:
    return text.isascii() and text.isdecimal() and len(text) < 6
