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


"""Which disk bus, and which network card, a Windows guest can have.

virtio where its driver is there or can be installed; else what every
Windows brings a driver for. The same before and after a repair: what the
repair installs counts as there already.
"""

from __future__ import annotations

from collections.abc import Mapping
import dataclasses
import typing

from xenimport import exceptions
from xenimport.guest import guest as guest_room
from xenimport.guest import pe
from xenimport import model
from xenimport.remediation import base
from xenimport.remediation.windows import binding
from xenimport.remediation.windows import boot
from xenimport.remediation.windows import driver_signature
from xenimport.remediation.windows import injection
from xenimport.remediation.windows import services
from xenimport.remediation.windows import system
from xenimport.remediation.windows import virtio_package
from xenimport.remediation.windows import virtio_win

if typing.TYPE_CHECKING:
    from xenimport.remediation.windows import signers

SIGNATURE = 'windows.storage-signature'
#: The driver's service by the bus.
DRIVERS = {'virtio': 'viostor', 'scsi': 'vioscsi'}
NETWORK = 'netkvm'
#: Nova gives Windows an Intel 82540EM for this: Windows 7 to 11 bring a
#: driver for it.
_NETWORK_FALLBACK = 'e1000'
#: Disks that the machine type pc has room for on IDE, beside the config
#: drive that a server may get.
_IDE_DISKS = 3
#: Bytes; no driver of a disk or a network card is larger.
_DRIVER_LIMIT = 16 << 20


@dataclasses.dataclass(frozen=True)
class Driver:
    """How a guest stands with one virtio driver.

    :ivar service: None where there is none
    :ivar package: that can be installed, None where there is none
    :ivar verdict: on the signature of what is there, else of the package
    :ivar problem: why it is not usable, '' where it is there or can be
        installed, and Windows takes it
    :ivar refused: whether the signature alone is the problem
    """

    name: str
    service: services.Service | None
    package: virtio_package.Package | None
    verdict: signers.Verdict | None
    problem: str
    refused: bool

    @property
    def usable(self) -> bool:
        return not self.problem


@dataclasses.dataclass(frozen=True)
class Choice:
    """The bus, and why it is not virtio.

    :ivar reasons: of the drivers that were not usable, '' else
    """

    bus: str
    fallback: bool
    reasons: tuple[str, ...] = ()


class Drivers:
    """The virtio drivers of a guest, each looked at once a diagnosis.

    :param request: with the place of the virtio drivers filled in
    """

    def __init__(self, request: base.Request) -> None:
        self._request = request
        self._source: virtio_win.VirtioWin | None = None
        self._known: dict[str, Driver] = {}

    def forget(self) -> None:
        """Look at the guest anew: it has been changed."""
        self._known.clear()

    def _package(
        self, guest: guest_room.Guest, name: str
    ) -> virtio_package.Package | None:
        """The package that the user's collection has for this Windows.

        :raises ConfigurationError: ``virtio-win.*``
        """
        if self._request.virtio_win is None:
            return None
        if self._source is None:
            self._source = virtio_win.open_drivers(self._request.virtio_win)
        return self._source.package(name, system.release(guest))

    def driver(self, guest: guest_room.Guest, name: str) -> Driver:
        """How the guest stands with a driver, by its service's name."""
        if name not in self._known:
            self._known[name] = self._look(guest, name)
        return self._known[name]

    def _look(self, guest: guest_room.Guest, name: str) -> Driver:
        found = self._installed(guest, name)
        if found is None:
            here = Driver(
                name, None, None, None, f'{name} is not installed', False
            )
        else:
            here = self._of_guest(guest, found, name)
        if here.usable:
            return here
        # Read only where it is needed: a fault in it must not stop a guest
        # that has its drivers.
        try:
            package = self._package(guest, name)
        except exceptions.ConfigurationError as error:
            if error.id != 'virtio-win.package-invalid':
                raise
            return dataclasses.replace(
                here, problem=f'{here.problem}; {error.where}: {error.found}'
            )
        return self._of_package(guest, package) if package else here

    def _of_guest(
        self, guest: guest_room.Guest, found: services.Service, name: str
    ) -> Driver:
        problem = self._unfit(guest, found)
        if problem:
            return Driver(name, None, None, None, problem, False)
        verdict = driver_signature.verdict(
            guest, found.file, boot=name in DRIVERS.values()
        )
        problem = self._refused(name, name, verdict)
        return Driver(name, found, None, verdict, problem, bool(problem))

    def _of_package(
        self, guest: guest_room.Guest, package: virtio_package.Package
    ) -> Driver:
        name = package.driver
        problem = injection.unfit(guest, package)
        expected = system.release(guest).architecture
        if pe.machine(package.binary) != expected:
            problem = (
                f'{package.service.binary} of {package.origin} is not for '
                f'{expected}'
            )
        verdict = driver_signature.verdict_of(
            guest,
            package.binary,
            package.catalog,
            boot=name in DRIVERS.values(),
        )
        refused = self._refused(name, f'{name} of {package.origin}', verdict)
        return Driver(
            name,
            None,
            package,
            verdict,
            problem or refused,
            bool(refused) and not problem,
        )

    def _installed(
        self, guest: guest_room.Guest, name: str
    ) -> services.Service | None:
        """Its service with a file, in the current control set."""
        for control_set in system.control_sets(guest)[:1]:
            found = services.service(
                system.system_hive(guest), control_set, name
            )
            if found and found.file:
                if system.volume(guest).is_file(found.file):
                    return found
        return None

    def _unfit(
        self, guest: guest_room.Guest, service: services.Service
    ) -> str:
        volume = system.volume(guest)
        if (volume.size(service.file) or 0) > _DRIVER_LIMIT:
            return f'{service.file} is too large for a driver'
        machine = pe.machine(volume.read(service.file, _DRIVER_LIMIT))
        expected = system.release(guest).architecture
        if machine != expected:
            return (
                f'{service.file} is for {machine or "no machine"}, '
                f'not for {expected}'
            )
        hive = system.system_hive(guest)
        if service.name.lower() == NETWORK:
            # Its Start is the user's own: nobody sets it right here.
            if service.start == services.DISABLED:
                return f'{service.name} is disabled'
        elif binding.is_half(hive, service.name):
            return (
                f'{service.name} has a service and a file, but the driver '
                'database knows no package of it, so that no disk can be '
                'bound to it'
            )
        return ''

    def _refused(self, name: str, shown: str, verdict: signers.Verdict) -> str:
        accepted = SIGNATURE in self._request.accept
        if verdict.accepted or (accepted and name in DRIVERS.values()):
            return ''
        return f'{shown}: {verdict.reason}'

    def choose(self, guest: guest_room.Guest) -> Choice:
        """The bus that the guest shall have."""
        asked = self._request.disk_bus
        if asked != 'auto':
            return Choice(asked, asked not in DRIVERS)
        reasons = []
        for bus, name in DRIVERS.items():
            driver = self.driver(guest, name)
            if driver.usable:
                return Choice(bus, False)
            reasons.append(driver.problem)
        return Choice(_fallback(guest), True, tuple(reasons))

    def hardware(self, guest: guest_room.Guest) -> Mapping[str, str]:
        """What the image's properties shall say of disks and network."""
        usable = self.driver(guest, NETWORK).usable
        return {
            'disk_bus': self.choose(guest).bus,
            'vif_model': 'virtio' if usable else _NETWORK_FALLBACK,
        }


def _fallback(guest: guest_room.Guest) -> str:
    """The bus that every Windows has a driver for."""
    if boot.firmware(guest) is model.Firmware.UEFI:
        # Nova's machine for UEFI, q35, has no IDE.
        return 'sata'
    return 'ide' if len(guest.drives) <= _IDE_DISKS else 'sata'
