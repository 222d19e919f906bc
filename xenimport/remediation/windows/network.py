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


"""Static addresses, which stay with the network card that had them.

On KVM the guest gets a new card. Windows binds addresses to a card's
``NetCfgInstanceId``, so the new one asks DHCP. Nothing is rewritten: the
new card's id comes up at the first boot, and the cloud decides addresses.

Sources: Microsoft's documentation of ``Tcpip\\Parameters\\Interfaces`` and
of the network class; win-xenvif and XenServer's management agent for
``XenToolsNetSettings``, where Xen's tools keep the settings of a card (a
key a card, below it ``Tcpip`` with a copy of the interface's values).
"""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Iterator
import ipaddress

from xenimport import exceptions
from xenimport.guest import guest as guest_room
from xenimport.guest import registry
from xenimport import model
from xenimport.remediation.windows import base
from xenimport.remediation.windows import system

_CLASS = '{4d36e972-e325-11ce-bfc1-08002be10318}'
#: Adapters that are no hardware (VPN, debugger, Bluetooth) stay as they
#: are on KVM.
_SOFTWARE = ('ROOT\\', 'SW\\', 'BTH\\')
_SAVED = (
    'Citrix\\XenToolsNetSettings',
    'Wow6432Node\\Citrix\\XenToolsNetSettings',
)
#: Levels below it: bus, device, instance, Tcpip.
_SAVED_DEPTH = 4
#: Addresses and cards that a report names; no guest needs as many.
_ADDRESSES = 32
_CARDS = 64
#: Characters of a name that are shown.
_NAME = 80


class StaticNetwork(base.WindowsCheck):
    """Addresses that the guest will not have on KVM."""

    id = 'windows.static-network'
    title = 'No static address is bound to a network card of Xen'

    def examine(self, guest: guest_room.Guest) -> Iterator[model.Finding]:
        hive = system.system_hive(guest)
        seen: set[str] = set()
        known: set[str] = set()
        for control_set in system.control_sets(guest):
            for card, name in _cards(hive, control_set).items():
                path = f'{_interfaces(control_set)}\\{card}'
                key = hive.key(path)
                if key is None or card in seen or not addresses(key):
                    continue
                seen.add(card)
                known.update(addresses(key))
                if len(seen) <= _CARDS:
                    yield self._finding(
                        name, system.full_name('SYSTEM', key.path), key
                    )
        yield from self._saved(guest, known)

    def _saved(
        self, guest: guest_room.Guest, known: set[str]
    ) -> Iterator[model.Finding]:
        """What Xen's tools have kept, if it is not what is in use."""
        hive = system.software_hive(guest)
        found = 0
        for path in _SAVED:
            for key in hive.walk(path, _SAVED_DEPTH):
                if key.name.upper() != 'TCPIP' or found >= _CARDS:
                    continue
                if addresses(key) and not known.issuperset(addresses(key)):
                    found += 1
                    known.update(addresses(key))
                    yield self._finding(
                        "kept by Xen's tools for a network card",
                        system.full_name('SOFTWARE', key.path),
                        key,
                    )

    def _finding(
        self, name: str, place: str, key: registry.Key
    ) -> model.Finding:
        return model.Finding(
            self.id,
            model.Severity.WARNING,
            'A static address stays with the network card of Xen',
            f'{name}: {settings(key)} ({exceptions.one_line(place)})',
            'add "--fixed-ip ip-address=ADDRESS" to the line "openstack '
            'port create" of the launch recipe, for a network with DHCP; or '
            'set the address in the guest again',
            subject=place,
        )


def _interfaces(control_set: str) -> str:
    return f'{control_set}\\Services\\Tcpip\\Parameters\\Interfaces'


def _cards(hive: registry.Hive, control_set: str) -> dict[str, str]:
    """A text for a person by NetCfgInstanceId, of all network hardware."""
    found = {}
    path = f'{control_set}\\Control\\Class\\{_CLASS}'
    for key in hive.keys(path):
        card = key.text('NetCfgInstanceId').upper()
        device = key.text('MatchingDeviceId') or key.text('ComponentId')
        if not card or '\\' in card or device.upper().startswith(_SOFTWARE):
            continue
        names = [key.text('DriverDesc'), device]
        connection = hive.key(
            f'{control_set}\\Control\\Network\\{_CLASS}\\{card}\\Connection'
        )
        if connection is not None:
            names.insert(0, connection.text('Name'))
        shown = [exceptions.one_line(name[:_NAME]) for name in names if name]
        found[card] = ', '.join(shown) or 'a network card'
    return found


def _valid(texts: Iterable[str]) -> list[str]:
    """Those that are IP addresses and mean one."""
    found = []
    for text in texts:
        try:
            address = ipaddress.ip_address(text)
        except ValueError:
            continue
        if int(address):
            found.append(str(address))
    return list(dict.fromkeys(found))[:_ADDRESSES]


def addresses(key: registry.Key) -> list[str]:
    """An interface's static addresses; none where it asks DHCP."""
    return [] if key.number('EnableDHCP') else _valid(key.strings('IPAddress'))


def settings(key: registry.Key) -> str:
    """An interface's static settings, for a person."""
    masks = dict(
        zip(
            key.strings('IPAddress'),
            key.strings('SubnetMask'),
            strict=False,  # A guest may have fewer of the one.
        )
    )
    shown = ', '.join(
        f'{address}/{_prefix(masks.get(address, ""))}'
        for address in addresses(key)
    )
    # DNS servers stand in one text, with commas or spaces between them.
    servers = key.text('NameServer').replace(',', ' ').split()
    for word, found in (
        ('gateway', _valid(key.strings('DefaultGateway'))),
        ('DNS', _valid(servers)),
    ):
        if found:
            shown += f'; {word} {", ".join(found)}'
    return shown


def _prefix(mask: str) -> str:
    """The length of a mask, ``?`` where it is none."""
    try:
        return str(ipaddress.ip_network(f'0.0.0.0/{mask}').prefixlen)
    except ValueError:
        return '?'
