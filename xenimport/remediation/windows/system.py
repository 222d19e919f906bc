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


"""Where a Windows guest keeps what the checks ask for.

Sources: Microsoft's documentation of the registry (``HKLM\\SYSTEM\\Select``,
``CurrentVersion``, ``ProductOptions``) and its table of version numbers.
"""

from __future__ import annotations

import dataclasses

from xenimport import exceptions
from xenimport.guest import guest as guest_room
from xenimport.guest import registry
from xenimport.guest import volumes
from xenimport.remediation.windows import releases

CONFIG = 'Windows/System32/config'
DRIVERS = 'Windows/System32/drivers'
_CURRENT_VERSION = 'Microsoft\\Windows NT\\CurrentVersion'


def volume(guest: guest_room.Guest) -> volumes.Volume:
    """The volume that Windows is on."""
    found = guest.windows
    if found is None:
        raise RuntimeError('the guest is no Windows')
    return found


def system_hive(guest: guest_room.Guest) -> registry.Hive:
    """HKLM\\SYSTEM.

    :raises GuestError: if it is not there, or damaged
    """
    return _hive(guest, 'SYSTEM')


def software_hive(guest: guest_room.Guest) -> registry.Hive:
    """HKLM\\SOFTWARE; raises as :func:`system_hive`."""
    return _hive(guest, 'SOFTWARE')


def drivers_hive(guest: guest_room.Guest) -> registry.Hive | None:
    """The hive of drivers that are not for booting; since Windows 8."""
    return guest.registry.open(volume(guest), f'{CONFIG}/DRIVERS')


#: Hives that are looked at; the last need not be there.
HIVES = ('SYSTEM', 'SOFTWARE', 'DRIVERS')
#: Errors that say that a hive cannot be read.
UNREADABLE = frozenset(
    ('registry.damaged', 'registry.missing', 'registry.too-large')
)


def hive(guest: guest_room.Guest, name: str) -> registry.Hive | None:
    """One of :data:`HIVES`; None where there need be none.

    :raises GuestError: as :func:`system_hive`
    """
    return drivers_hive(guest) if name == 'DRIVERS' else _hive(guest, name)


def unreadable(guest: guest_room.Guest, error: exceptions.GuestError) -> bool:
    """Whether an error says that one of :data:`HIVES` cannot be opened.

    Damage that shows only later, in the keys, is not meant.
    """
    if error.id not in UNREADABLE:
        return False
    for name in HIVES:
        try:
            hive(guest, name)
        except exceptions.GuestError as known:
            if str(known) == str(error):
                return True
    return False


def _hive(guest: guest_room.Guest, name: str) -> registry.Hive:
    path = f'{CONFIG}/{name}'
    found = guest.registry.open(volume(guest), path)
    if found is None:
        raise exceptions.GuestError(
            'registry.missing',
            'A registry hive of the guest is not there',
            where=path,
            expected='a file',
            found='none',
            fix='this Windows cannot start on Xen either: restore it there '
            'and export it again',
        )
    return found


def control_sets(guest: guest_room.Guest) -> tuple[str, ...]:
    """The control sets that Windows may start with, the current first.

    By their key's name, for example ``ControlSet001``. Those that are
    named but not there are left out (a check tells of them).
    """
    hive = system_hive(guest)
    select = hive.key('Select')
    names = []
    for word in ('Current', 'Default'):
        number = select.number(word) if select else None
        if number:
            names.append(f'ControlSet{number:03d}')
    return tuple(
        name for name in dict.fromkeys(names) if hive.key(name) is not None
    )


def full_name(hive: str, key: str) -> str:
    """A key's name for a person: ``HKLM\\SYSTEM\\Select``."""
    root = f'HKLM\\{hive}' if hive != 'BCD' else 'BCD'
    return f'{root}\\{key}' if key else root


def live_name(hive: str, key: str) -> str | None:
    """A key's name in the running guest, None where it has none."""
    if hive not in ('SYSTEM', 'SOFTWARE'):
        return None
    return full_name(hive, key)


@dataclasses.dataclass(frozen=True)
class Release:
    """Which Windows it is.

    :ivar major: and ``minor``, ``build``: 6, 1, 7601 is Windows 7 SP1
    :ivar server: whether it is a server
    :ivar architecture: ``amd64``, ``x86``, ``arm64``
    """

    major: int
    minor: int
    build: int
    server: bool
    architecture: str
    product: str

    @property
    def version(self) -> tuple[int, int]:
        """To be compared: (6, 1), (6, 2), (6, 3), (10, 0)."""
        return self.major, self.minor


_ARCHITECTURES = {
    'x86_64': 'amd64',
    'i386': 'x86',
    'i686': 'x86',
    'aarch64': 'arm64',
}
#: Digits of a version or a build that are believed.
_DIGITS = 6


def architecture(guest: guest_room.Guest) -> str:
    """``amd64``, ``x86``, ``arm64``, or libguestfs' name for another."""
    found = guest.operating_system
    name = found.architecture if found else ''
    return _ARCHITECTURES.get(name, name)


def release(guest: guest_room.Guest) -> Release:
    """Which Windows it is, from the SOFTWARE hive.

    What that does not say is taken from what libguestfs found, and for a
    server or not from ``ProductOptions`` in the SYSTEM hive.

    :raises GuestError: if a hive is not there, or damaged
    """
    found = guest.operating_system
    if found is None:
        raise RuntimeError('the guest is no Windows')
    key = software_hive(guest).key(_CURRENT_VERSION)
    if key is None:
        key = registry.Key(_CURRENT_VERSION, (), ())
    build = key.text('CurrentBuildNumber') or key.text('CurrentBuild')
    product = found.product or key.text('ProductName')
    major, minor = _version(key) or (found.major, found.minor)
    return Release(
        major,
        minor,
        _decimal(build) or 0,
        _is_server(guest, key, product),
        architecture(guest),
        product,
    )


def _decimal(text: str) -> int | None:
    """A number in decimal digits, None where it is something else."""
    if text.isascii() and text.isdecimal() and len(text) <= _DIGITS:
        return int(text)
    return None


def _version(key: registry.Key) -> tuple[int, int] | None:
    """Since Windows 10, CurrentVersion stays 6.3 for old programs' sake."""
    major = key.number('CurrentMajorVersionNumber')
    minor = key.number('CurrentMinorVersionNumber')
    if major is None or minor is None:
        first, _dot, second = key.text('CurrentVersion').partition('.')
        major, minor = _decimal(first), _decimal(second)
    return None if major is None or minor is None else (major, minor)


def _is_server(
    guest: guest_room.Guest, key: registry.Key, product: str
) -> bool:
    """InstallationType is asked first: it is Client, Server, Server Core...

    ProductType is the one before 2008, and is ``ServerNT`` on a Windows
    10 for several users too.
    """
    kind = key.text('InstallationType')
    if kind:
        return 'server' in kind.lower()
    hive = system_hive(guest)
    for control_set in control_sets(guest):
        options = hive.key(f'{control_set}\\Control\\ProductOptions')
        if options is not None and options.text('ProductType'):
            return options.text('ProductType').upper() != 'WINNT'
    return 'server' in product.lower()


def release_properties(guest: guest_room.Guest) -> dict[str, str]:
    """``os_distro`` and ``os_version`` as Nova's properties have them.

    Nova looks ``os_distro`` up in libosinfo by short id. ``os_version``
    is Windows' own number, 10.0 for Windows 11 too. What is not known is
    left out, and so is all where a hive cannot be read: there is a check
    for that.
    """
    try:
        found = release(guest)
    except exceptions.GuestError as error:
        if not unreadable(guest, error):
            raise
        return {}
    name = releases.short_id(found.version, found.build, found.server)
    if not name:
        return {}
    return {'os_distro': name, 'os_version': f'{found.major}.{found.minor}'}
