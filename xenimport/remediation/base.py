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

"""The contracts of a check and of the remediation that lists checks."""

from __future__ import annotations

import abc
from collections.abc import Iterable
from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import typing

from xenimport import driver
from xenimport.guest import guest as guest_room
from xenimport import model


@dataclasses.dataclass(frozen=True)
class Request:
    """What the user asked of the repair.

    :ivar disk_bus: ``auto``, ``virtio``, ``scsi``, ``sata`` or ``ide``
    :ivar initramfs: ``append`` or ``rebuild``
    :ivar virtual_system: what the package describes
    :ivar accept: ids of findings that the user puts up with
    :ivar xen_drivers: ``disable`` or ``remove``, of a Windows guest
    :ivar virtio_win: an ISO or a directory with virtio drivers for
        Windows, None where there is none
    :ivar clock: what the hardware clock shall show a Windows guest:
        ``auto``, ``utc`` or ``localtime``
    :ivar first_boot_script: what a Windows guest shall run once
    """

    virtual_system: model.VirtualSystem
    disk_bus: str = 'auto'
    initramfs: str = 'append'
    accept: frozenset[str] = frozenset()
    xen_drivers: str = 'disable'
    virtio_win: str | None = None
    clock: str = 'auto'
    first_boot_script: str | None = None


class Check(abc.ABC):
    """One thing that can be wrong.

    :ivar id: the id of every finding it makes
    :ivar title: what it looks at, a line
    """

    id: typing.ClassVar[str]
    title: typing.ClassVar[str]

    def __init__(self, request: Request) -> None:
        self.request = request

    @abc.abstractmethod
    def diagnose(self, guest: guest_room.Guest) -> Iterable[model.Finding]:
        """What is wrong. Writes nothing to the guest."""

    def repair(
        self, guest: guest_room.Guest, finding: model.Finding
    ) -> Sequence[model.Change]:
        """Mend one finding; a second call changes nothing.

        Called only for findings whose ``repair`` is set.
        """
        return ()


class Remediation(driver.Driver, abc.ABC):
    """An ordered list of checks for one family of guests.

    :ivar generic: for guests of any family: that it matches does not mean
        that somebody knows what this guest needs
    """

    generic: typing.ClassVar[bool] = False

    @abc.abstractmethod
    def matches(self, operating_system: model.OperatingSystem | None) -> bool:
        """Whether its checks apply; None is a guest without a system."""

    @abc.abstractmethod
    def checks(self, request: Request) -> Sequence[Check]:
        """The checks, in the order in which they run and repair."""

    def describe(self, guest: guest_room.Guest) -> Mapping[str, typing.Any]:
        """What a report shall say of the guest as it was handed over.

        Asked before anything is repaired; JSON-serialisable.
        """
        return {}

    def hardware(
        self, guest: guest_room.Guest, request: Request
    ) -> Mapping[str, str]:
        """The hardware that the guest, as it is now, needs to boot.

        Keys, all optional: ``disk_bus`` and ``vif_model`` as Nova names
        them, ``firmware``, ``machine``, ``os_distro``, ``os_version``.
        Asked after the last diagnosis; writes nothing.
        """
        return {}
