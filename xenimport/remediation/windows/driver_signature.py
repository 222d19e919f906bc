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


def verdict(guest: guest_room.Guest, path: str) -> signers.Verdict:
    """On a driver in the guest.

    :param path: in Windows' volume
    """
    volume = system.volume(guest)
    size = volume.size(path)
    if size is None or size > authenticode.DRIVER_LIMIT:
        return signers.Verdict(None, 'it is too large to be looked at')
    data = volume.read(path, authenticode.DRIVER_LIMIT)
    release, rules = system.release(guest), policy(guest)
    found = signers.judge(release, authenticode.embedded(data), rules)
    if found.accepted:
        return found
    for catalog in _catalogs(volume):
        if authenticode.lists(data, catalog):
            listed = authenticode.by_catalog(data, catalog)
            other = signers.judge(release, listed, rules)
            if listed.signers and (other.accepted or not found.accepted):
                found = other
            if found.accepted:
                break
    return found


def verdict_of(
    guest: guest_room.Guest, data: bytes, catalog: bytes | None
) -> signers.Verdict:
    """On a driver that is to be installed, with its catalog."""
    release, rules = system.release(guest), policy(guest)
    found = signers.judge(release, authenticode.embedded(data), rules)
    if found.accepted or catalog is None:
        return found
    if len(catalog) > authenticode.CATALOG_LIMIT:
        return found
    listed = authenticode.by_catalog(data, catalog)
    other = signers.judge(release, listed, rules)
    return other if listed.signers else found


def _catalogs(volume: volumes.Volume) -> Iterator[bytes]:
    """Catalogs of the guest, as many as can be looked into."""
    names = sorted(
        (
            name
            for name in volume.listing(injection.CATALOGS).values()
            if name.lower().endswith('.cat')
        ),
        key=lambda name: (not name.lower().startswith('oem'), name),
    )
    left = _BYTES_LIMIT
    for name in names[:_CATALOGS_LIMIT]:
        path = f'{injection.CATALOGS}/{name}'
        size = volume.size(path)
        if size is None or size > authenticode.CATALOG_LIMIT:
            continue
        left -= size
        if left < 0:
            return
        yield volume.read(path, authenticode.CATALOG_LIMIT)


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
