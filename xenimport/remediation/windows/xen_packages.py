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


"""Driver packages and programs of Xen that are installed.

The drivers are disabled by other checks; what is found here tells what a
person may want to uninstall later, or is removed when that was asked for.

Sources: XenClean of XCP-ng for the upgrade codes of MSI packages;
Microsoft's "Uninstall Registry Key". A GUID in the installer's keys is
packed: its groups are written backwards.
"""

from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Sequence
import dataclasses

from xenimport.guest import guest as guest_room
from xenimport.guest import registry
from xenimport import model
from xenimport.remediation.windows import base
from xenimport.remediation.windows import driver_packages
from xenimport.remediation.windows import inf
from xenimport.remediation.windows import package_removal
from xenimport.remediation.windows import system
from xenimport.remediation.windows import xen_families

_WINDOWS = 'Microsoft\\Windows\\CurrentVersion'
_UNINSTALL = (
    f'{_WINDOWS}\\Uninstall',
    f'Wow6432Node\\{_WINDOWS}\\Uninstall',
)
_UPGRADE_CODES = (
    f'{_WINDOWS}\\Installer\\UpgradeCodes',
    'Classes\\Installer\\UpgradeCodes',
)
#: Packages or programs that a finding names.
_SHOWN = 20


class XenPackages(base.WindowsCheck):
    """Driver packages of Xen in the driver store."""

    id = 'windows.xen-packages'
    title = 'No driver package of Xen is installed'

    def examine(self, guest: guest_room.Guest) -> Iterator[model.Finding]:
        found = _xen(driver_packages.packages(guest))
        if not found:
            return
        remove = self.request.xen_drivers == 'remove'
        yield model.Finding(
            self.id,
            model.Severity.WARNING,
            f'{len(found)} driver packages of Xen are installed'
            if len(found) > 1
            else 'A driver package of Xen is installed',
            _listed([str(package) for package in found]),
            'they do nothing on KVM; to be rid of them, use '
            '--xen-drivers remove, or uninstall the programs of Xen in the '
            'running guest, then run "pnputil -d" with each name that is '
            f'left ({found[0].published}, ...)',
            subject='driver store',
            repair='removes them as dism /remove-driver does'
            if remove
            else None,
        )

    def repair(
        self, guest: guest_room.Guest, finding: model.Finding
    ) -> Sequence[model.Change]:
        packages = driver_packages.packages(guest)
        remover = package_removal.Remover(guest, self.id)
        return remover.remove(_xen(packages), packages)


def _xen(
    packages: Sequence[driver_packages.DriverPackage],
) -> list[driver_packages.DriverPackage]:
    return [package for package in packages if package.family]


def _listed(texts: Sequence[str]) -> str:
    shown = list(texts[:_SHOWN])
    if len(texts) > _SHOWN:
        shown.append(f'and {len(texts) - _SHOWN} more')
    return '; '.join(shown)


@dataclasses.dataclass(frozen=True)
class Program:
    """An installed program.

    :ivar code: name of its uninstall key, often a product code
    """

    name: str
    code: str


class XenTools(base.WindowsCheck):
    """Programs that came with Xen's drivers."""

    id = 'windows.xen-tools'
    title = 'No program of Xen is installed'

    def examine(self, guest: guest_room.Guest) -> Iterator[model.Finding]:
        found = _programs(system.software_hive(guest))
        if found:
            texts = [
                f'{item.name} ({item.code})' if item.name else item.code
                for item in found
            ]
            yield model.Finding(
                self.id,
                model.Severity.NOTE,
                'Programs of Xen are installed',
                _listed(texts),
                'uninstall them in the running guest, in "Programs and '
                'Features"; they are left as they are here',
                subject='SOFTWARE',
            )


def _programs(hive: registry.Hive) -> list[Program]:
    """Programs of Xen, by their name or the upgrade code of their MSI."""
    found: dict[str, Program] = {}
    products = set(_products(hive))
    for path in _UNINSTALL:
        for key in hive.keys(path):
            name = inf.printable(key.text('DisplayName'))[:100]
            code = inf.printable(key.name)[:100]
            if xen_families.of_product(name) or code.upper() in products:
                found.setdefault(code.upper(), Program(name, code))
    for code in sorted(products - set(found)):
        found[code] = Program('', code)
    return list(found.values())


def _products(hive: registry.Hive) -> Iterator[str]:
    """Product codes that the installer knows under Xen's upgrade codes."""
    for family in xen_families.FAMILIES:
        for code in family.upgrade_codes:
            for path in _UPGRADE_CODES:
                key = hive.key(f'{path}\\{packed(code)}')
                for value in key.values if key else ():
                    product = unpacked(value.name)
                    if product:
                        yield product


def packed(code: str) -> str:
    """A GUID as the installer's keys have it: 32 digits."""
    groups = code.strip('{}').upper().split('-')
    head = ''.join(group[::-1] for group in groups[:3])
    return head + _swapped(''.join(groups[3:]))


def unpacked(text: str) -> str:
    """The GUID of such 32 digits, '' where they are none."""
    digits = text.upper()
    if len(digits) != 32 or set(digits) - set('0123456789ABCDEF'):
        return ''
    tail = _swapped(digits[16:])
    return (
        f'{{{digits[7::-1]}-{digits[11:7:-1]}-{digits[15:11:-1]}-'
        f'{tail[:4]}-{tail[4:]}}}'
    )


def _swapped(digits: str) -> str:
    """Each two digits the other way round."""
    return ''.join(
        digits[at : at + 2][::-1] for at in range(0, len(digits), 2)
    )
