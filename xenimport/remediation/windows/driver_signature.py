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


"""Whether this Windows accepts a driver's signature."""

from __future__ import annotations

from collections.abc import Iterator

from xenimport.guest import bcd
from xenimport.guest import guest as guest_room
from xenimport.guest import volumes
from xenimport.remediation.windows import authenticode
from xenimport.remediation.windows import boot_configuration
from xenimport.remediation.windows import injection
from xenimport.remediation.windows import signers
from xenimport.remediation.windows import system

_PACKAGES = (
    'Microsoft\\Windows\\CurrentVersion\\Component Based Servicing\\Packages'
)
#: The updates by which Windows 7 and 2008 R2 learned SHA-2.
_SHA2 = ('PACKAGE_FOR_KB3033929', 'PACKAGE_FOR_KB4474419')
#: Catalogs that are looked into, those of third parties first, and the
#: bytes of all together.
_CATALOGS_LIMIT = 200
_BYTES_LIMIT = 64 << 20


def verdict(
    guest: guest_room.Guest, path: str, *, boot: bool
) -> signers.Verdict:
    """On a driver in the guest.

    :param path: in Windows' volume
    :param boot: whether it starts at boot
    """
    volume = system.volume(guest)
    size = volume.size(path)
    if size is None:
        return signers.Verdict(False, 'it is not there')
    if size > authenticode.DRIVER_LIMIT:
        return signers.Verdict(None, 'it is too large to be looked at')
    data = volume.read(path, authenticode.DRIVER_LIMIT)
    own = authenticode.embedded(data)
    found = signers.judge(system.release(guest), own, policy(guest))
    if found.accepted:
        return found
    return _by_catalogs(guest, data, found, boot)


def _by_catalogs(
    guest: guest_room.Guest,
    data: bytes,
    found: signers.Verdict,
    boot: bool,
) -> signers.Verdict:
    """The best that any catalog of the guest gives."""
    catalogs = _Catalogs(system.volume(guest))
    release, rules = system.release(guest), policy(guest)
    names = authenticode.names(data)
    for catalog in catalogs:
        if not any(name in catalog for name in names):
            continue
        listed = authenticode.by_catalog(data, catalog)
        other = signers.of_catalog(
            signers.judge(release, listed, rules), boot=boot
        )
        if listed.signers:
            found = signers.best((found, other))
        if found.accepted:
            return found
    if catalogs.complete or found.accepted is None:
        return found
    return signers.Verdict(
        None, f'{found.reason}, and not every catalog could be looked into'
    )


def verdict_of(
    guest: guest_room.Guest,
    data: bytes,
    catalog: bytes | None,
    *,
    boot: bool,
) -> signers.Verdict:
    """On a driver that is to be installed, with its catalog.

    :param boot: whether it starts at boot
    """
    release, rules = system.release(guest), policy(guest)
    own = authenticode.embedded(data)
    found = signers.judge(release, own, rules)
    if found.accepted or catalog is None:
        return found
    if len(catalog) > authenticode.CATALOG_LIMIT:
        return signers.Verdict(
            None, f'{found.reason}, and its catalog is too large'
        )
    listed = authenticode.by_catalog(data, catalog)
    if not listed.signers:
        return found
    return signers.best(
        (
            found,
            signers.of_catalog(
                signers.judge(release, listed, rules), boot=boot
            ),
        )
    )


class _Catalogs:
    """The guest's catalogs, those of third parties first.

    :ivar complete: none has been left out so far
    """

    def __init__(self, volume: volumes.Volume) -> None:
        self.complete = True
        self._volume = volume

    def __iter__(self) -> Iterator[bytes]:
        listing = self._volume.listing(injection.CATALOGS)
        names = sorted(
            (name for name in listing.values() if name[-4:].lower() == '.cat'),
            key=lambda name: (not name.lower().startswith('oem'), name),
        )
        left = _BYTES_LIMIT
        for number, name in enumerate(names):
            path = f'{injection.CATALOGS}/{name}'
            size = self._volume.size(path)
            if size is None:
                continue
            left -= size
            if number >= _CATALOGS_LIMIT or left < 0:
                self.complete = False
                return
            if size > authenticode.CATALOG_LIMIT:
                self.complete = False
                continue
            yield self._volume.read(path, authenticode.CATALOG_LIMIT)


def policy(guest: guest_room.Guest) -> signers.Policy:
    """What the guest itself says about signatures."""
    return signers.Policy(_test_signing(guest), _sha2(guest))


def _sha2(guest: guest_room.Guest) -> bool | None:
    """Whether an update for SHA-2 is installed, None if not found."""
    packages = system.software_hive(guest).key(_PACKAGES)
    for name in packages.subkeys if packages else ():
        if name.upper().startswith(_SHA2):
            return True
    return None


def _test_signing(guest: guest_room.Guest) -> bool:
    """Whether the loader's entry allows test certificates."""
    configuration = boot_configuration.load(guest)
    loader = configuration.loader if configuration else None
    return loader is not None and loader.number(bcd.TEST_SIGNING) == 1
