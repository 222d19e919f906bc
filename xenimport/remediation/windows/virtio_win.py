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


"""Where virtio drivers for Windows come from: an ISO or a directory.

Sources: the virtio-win ISO (``/viostor/w10/amd64/viostor.inf``) and its
RPM (``/usr/share/virtio-win/drivers/by-driver/...`` or ``by-os/...``); the
names of the directories are those of the project's own documentation.
"""

from __future__ import annotations

import abc
from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Mapping
import contextlib
import io
import os
import stat
import typing

from xenimport import exceptions
from xenimport.remediation.windows import system
from xenimport.remediation.windows import virtio_package

#: Bytes of one file, and of all files of one package.
_FILE_LIMIT = 16 << 20
_PACKAGE_LIMIT = 64 << 20
_NAMES_LIMIT = 4096
#: Debug symbols, and drivers' companions that no package installs.
_SKIPPED = ('.pdb', '.map')
#: Directories by Windows version and kind, the best first. A driver of an
#: older kernel of the same generation loads on a newer one.
_CLIENTS: tuple[tuple[tuple[int, int], int, tuple[str, ...]], ...] = (
    ((6, 1), 0, ('w7',)),
    ((6, 2), 0, ('w8',)),
    ((6, 3), 0, ('w8.1',)),
    ((10, 0), 0, ('w10',)),
    ((10, 0), 22000, ('w11', 'w10')),
)
_SERVERS: tuple[tuple[tuple[int, int], int, tuple[str, ...]], ...] = (
    ((6, 1), 0, ('2k8R2', 'w7')),
    ((6, 2), 0, ('2k12', 'w8')),
    ((6, 3), 0, ('2k12R2', 'w8.1')),
    ((10, 0), 0, ('2k16', 'w10')),
    ((10, 0), 17763, ('2k19', '2k16', 'w10')),
    ((10, 0), 20348, ('2k22', '2k19', '2k16', 'w11', 'w10')),
    ((10, 0), 26100, ('2k25', '2k22', '2k19', '2k16', 'w11', 'w10')),
)
_ARCHITECTURES = {'amd64': 'amd64', 'x86': 'x86', 'arm64': 'ARM64'}
#: Where a driver's directories may start.
_ROOTS = ('', 'drivers/by-driver', 'by-driver')
_BY_OS = ('drivers/by-os', 'by-os')
_DRIVERS = ('viostor', 'vioscsi', 'NetKVM')


class Tree(abc.ABC):
    """Files to be read, by paths without regard to case."""

    @abc.abstractmethod
    def names(self, directory: str) -> Mapping[str, str]:
        """Names in a directory by their upper case, {} if absent."""

    @abc.abstractmethod
    def read(self, path: str, limit: int) -> bytes | None:
        """A regular file's bytes, None if it is none or is larger."""

    @abc.abstractmethod
    def close(self) -> None:
        """Release what is open."""


class DirectoryTree(Tree):
    """A directory of this machine; links out of it are not followed."""

    def __init__(self, path: str) -> None:
        self._root = os.path.realpath(path)

    def _place(self, path: str) -> str | None:
        place = self._root
        for part in filter(None, path.split('/')):
            name = _names_in(place).get(part.upper())
            if name is None:
                return None
            place = os.path.join(place, name)
        real = os.path.realpath(place)
        if real != self._root and not real.startswith(self._root + os.sep):
            return None
        return real

    def names(self, directory: str) -> Mapping[str, str]:
        place = self._place(directory)
        return _names_in(place) if place else {}

    def read(self, path: str, limit: int) -> bytes | None:
        place = self._place(path)
        if place is None:
            return None
        try:
            # Not to wait for whoever writes into a named pipe.
            descriptor = os.open(place, os.O_RDONLY | os.O_NONBLOCK)
            with open(descriptor, 'rb') as file:
                status = os.fstat(descriptor)
                if not stat.S_ISREG(status.st_mode):
                    return None
                data = file.read(limit + 1)
        except OSError:
            return None
        return data if len(data) <= limit else None

    def close(self) -> None:
        """Nothing is open."""


def _names_in(place: str) -> dict[str, str]:
    try:
        with os.scandir(place) as entries:
            found = {}
            for number, entry in enumerate(entries):
                if number >= _NAMES_LIMIT:
                    break
                found[entry.name.upper()] = entry.name
            return found
    except OSError:
        return {}


class IsoTree(Tree):
    """An ISO 9660 image, by the best of the names that it has."""

    def __init__(self, path: str) -> None:
        # 40 ms to import, and most runs need none.
        import pycdlib

        self._path = path
        self._iso: typing.Any = pycdlib.PyCdlib()
        try:
            self._iso.open(path)
        except Exception as error:
            # Hostile bytes end in errors of any kind here.
            raise _not_an_iso(path, error) from error
        self._facade = self._choose()
        self._known: dict[str, dict[str, str]] = {}

    def _choose(self) -> typing.Any:
        if self._iso.has_joliet():
            return self._iso.get_joliet_facade()
        if self._iso.has_rock_ridge():
            return self._iso.get_rock_ridge_facade()
        return self._iso.get_iso9660_facade()

    def names(self, directory: str) -> Mapping[str, str]:
        key = directory.upper()
        if key not in self._known:
            self._known[key] = dict(self._list(directory))
        return self._known[key]

    def _list(self, directory: str) -> Iterator[tuple[str, str]]:
        place = self._place(directory)
        if place is None:
            return
        try:
            for number, child in enumerate(self._facade.list_children(place)):
                if number >= _NAMES_LIMIT:
                    return
                name = _name_of(child)
                if name:
                    yield name.partition(';')[0].rstrip('.').upper(), name
        except Exception as error:
            raise _not_an_iso(self._path, error) from error

    def _place(self, path: str) -> str | None:
        place = '/'
        for part in filter(None, path.split('/')):
            name = self.names(place.strip('/')).get(part.upper())
            if name is None:
                return None
            place = f'{place.rstrip("/")}/{name}'
        return place

    def read(self, path: str, limit: int) -> bytes | None:
        place = self._place(path)
        if place is None:
            return None
        target = _Bounded(limit)
        try:
            self._facade.get_file_from_iso_fp(target, **self._named(place))
        except _TooLargeError:
            return None
        except Exception as error:
            raise _not_an_iso(self._path, error) from error
        return target.getvalue()

    def _named(self, place: str) -> dict[str, str]:
        """The keyword by which the facade wants a path."""
        kind = type(self._facade).__name__.lower()
        for word, key in (
            ('joliet', 'joliet_path'),
            ('rockridge', 'rr_path'),
        ):
            if word in kind:
                return {key: place}
        return {'iso_path': place}

    def close(self) -> None:
        # What was only read is closed, whatever a damaged image says.
        with contextlib.suppress(Exception):
            self._iso.close()


def _name_of(child: typing.Any) -> str:
    """The name of a directory record, '' for the two that are no names."""
    if child is None or child.is_dot() or child.is_dotdot():
        return ''
    if child.rock_ridge is not None:
        return str(child.rock_ridge.name().decode('utf-8', 'replace'))
    raw = child.file_identifier()
    if child.vd.encoding.startswith('utf-16'):
        return str(raw.decode('utf-16_be', 'replace'))
    return str(raw.decode('ascii', 'replace'))


class _TooLargeError(Exception):
    """A file has more bytes than it may."""


class _Bounded(io.BytesIO):
    """Takes up to so many bytes."""

    def __init__(self, limit: int) -> None:
        super().__init__()
        self._limit = limit

    def write(self, data: typing.Any) -> int:
        if self.tell() + len(data) > self._limit:
            raise _TooLargeError
        return super().write(data)


def _not_an_iso(path: str, error: Exception) -> exceptions.XenImportError:
    return exceptions.ConfigurationError(
        'virtio-win.unreadable',
        'The virtio drivers cannot be read',
        where=path,
        expected='the virtio-win ISO, or a directory with its content',
        found=f'{type(error).__name__}: {error}',
        fix='download the ISO again, or name the directory it was '
        'unpacked into with --virtio-win',
    )


class VirtioWin:
    """A collection of virtio drivers.

    :ivar path: as the user gave it
    """

    def __init__(self, path: str, tree: Tree) -> None:
        self.path = path
        self._tree = tree
        self._packages: dict[
            tuple[str, system.Release], virtio_package.Package | None
        ] = {}

    def package(
        self, driver: str, release: system.Release
    ) -> virtio_package.Package | None:
        """The driver's package for a Windows, None where there is none.

        :raises ConfigurationError: ``virtio-win.*``, if it is damaged
        """
        key = driver, release
        if key not in self._packages:
            self._packages[key] = self._find(driver, release)
        return self._packages[key]

    def _find(
        self, driver: str, release: system.Release
    ) -> virtio_package.Package | None:
        for directory in self._directories(driver, release):
            names = self._tree.names(directory)
            inf_name = names.get(f'{driver.upper()}.INF')
            if inf_name is not None:
                return self._read(driver, directory, inf_name, release)
        return None

    def _directories(
        self, driver: str, release: system.Release
    ) -> Iterator[str]:
        arch = _ARCHITECTURES.get(release.architecture)
        if arch is None:
            return
        for name in directories(release):
            for root in _ROOTS:
                yield f'{root}/{driver}/{name}/{arch}'.lstrip('/')
            for root in _BY_OS:
                yield f'{root}/{arch}/{name}'

    def _read(
        self,
        driver: str,
        directory: str,
        inf_name: str,
        release: system.Release,
    ) -> virtio_package.Package:
        where = f'{self.path}: {directory}/{inf_name}'
        try:
            return virtio_package.read(
                driver,
                inf_name.partition(';')[0].rstrip('.'),
                self._files(directory, driver),
                release,
                where,
            )
        except virtio_package.InvalidPackageError as error:
            raise exceptions.ConfigurationError(
                'virtio-win.package-invalid',
                'A virtio driver cannot be installed from its package',
                where=where,
                expected='an INF with the device and the service of the '
                'driver, and its files beside it',
                found=str(error),
                fix='download the virtio-win ISO again, or name another one '
                'with --virtio-win',
            ) from error

    def _files(self, directory: str, driver: str) -> dict[str, bytes]:
        found: dict[str, bytes] = {}
        total = 0
        for name in self._tree.names(directory).values():
            plain = name.partition(';')[0].rstrip('.')
            if plain.lower().endswith(_SKIPPED):
                continue
            data = self._tree.read(f'{directory}/{plain}', _FILE_LIMIT)
            if data is not None:
                total += len(data)
                if total > _PACKAGE_LIMIT:
                    raise virtio_package.InvalidPackageError(
                        f'its files have more than {_PACKAGE_LIMIT} bytes'
                    )
                found[plain] = data
        if f'{driver.upper()}.INF' not in {name.upper() for name in found}:
            raise virtio_package.InvalidPackageError('its INF is too large')
        return found

    def has_drivers(self) -> bool:
        """Whether there is any directory of a driver in it."""
        places = [f'{root}/{name}' for root in _ROOTS for name in _DRIVERS]
        return any(map(self._tree.names, (*places, *_BY_OS)))

    def close(self) -> None:
        """Release the ISO."""
        self._tree.close()


def directories(release: system.Release) -> tuple[str, ...]:
    """Names of directories that may hold drivers for a Windows."""
    table = _SERVERS if release.server else _CLIENTS
    found: tuple[str, ...] = ()
    for version, build, names in table:
        if release.version == version and release.build >= build:
            found = names
    return found


def is_collection(path: str) -> bool:
    """Whether a directory, if it is one, holds drivers or an ISO."""
    if not os.path.isdir(path):
        return False
    tree = DirectoryTree(path)
    return VirtioWin(path, tree).has_drivers() or bool(
        _isos(tree.names('').values())
    )


def open_drivers(path: str) -> VirtioWin:
    """Open what --virtio-win names.

    A directory without drivers but with a virtio-win ISO, as the RPM
    makes one, is taken for that ISO.

    :raises ConfigurationError: ``virtio-win.*``
    """
    tree: Tree
    if os.path.isdir(path):
        tree = DirectoryTree(path)
        found = VirtioWin(path, tree)
        if not found.has_drivers():
            for name in _isos(tree.names('').values()):
                found = VirtioWin(
                    os.path.join(path, name),
                    IsoTree(os.path.join(path, name)),
                )
                break
    else:
        found = VirtioWin(path, IsoTree(path))
    if not found.has_drivers():
        found.close()
        raise exceptions.ConfigurationError(
            'virtio-win.no-drivers',
            'There are no virtio drivers for Windows',
            where=path,
            expected='directories viostor, vioscsi or NetKVM, as on the '
            'virtio-win ISO',
            found='none of them',
            fix='name the virtio-win ISO, or a directory with its content',
        )
    return found


def _isos(names: Iterable[str]) -> list[str]:
    """The ISOs, the one without a version in its name first."""
    found = [name for name in names if name.lower().endswith('.iso')]
    return sorted(found, key=lambda name: (len(name), name))
