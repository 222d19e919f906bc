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


"""The remediation for Windows: a list, the thinking is in the checks."""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import typing

from oslo_config import cfg

from xenimport import exceptions
from xenimport.guest import guest as guest_room
from xenimport import model
from xenimport.remediation import base
from xenimport.remediation.windows import boot
from xenimport.remediation.windows import boot_devices
from xenimport.remediation.windows import boot_files
from xenimport.remediation.windows import boot_loader
from xenimport.remediation.windows import boot_resume
from xenimport.remediation.windows import boot_sector
from xenimport.remediation.windows import boot_services
from xenimport.remediation.windows import boot_store
from xenimport.remediation.windows import clock
from xenimport.remediation.windows import device_filters
from xenimport.remediation.windows import disk_bus
from xenimport.remediation.windows import disk_signature
from xenimport.remediation.windows import driver_packages
from xenimport.remediation.windows import first_boot
from xenimport.remediation.windows import hives
from xenimport.remediation.windows import inbox_driver
from xenimport.remediation.windows import master_boot_code
from xenimport.remediation.windows import network
from xenimport.remediation.windows import partitions
from xenimport.remediation.windows import release
from xenimport.remediation.windows import san_policy
from xenimport.remediation.windows import start_override
from xenimport.remediation.windows import storage_driver
from xenimport.remediation.windows import system
from xenimport.remediation.windows import virtio_win
from xenimport.remediation.windows import volumes
from xenimport.remediation.windows import xen_packages
from xenimport.remediation.windows import xen_services
from xenimport.remediation.windows import xen_unplug


#: Where a distribution's package of virtio-win puts the drivers.
_INSTALLED = '/usr/share/virtio-win'


#: Those that share one look at the virtio drivers.
_DRIVER_CHECKS = (
    storage_driver.StorageDriver,
    inbox_driver.InboxDriver,
    storage_driver.StorageSignature,
    storage_driver.FallbackBus,
    storage_driver.OtherDrivers,
)


class WindowsRemediation(base.Remediation):
    """Makes a Windows guest of Xen boot on KVM."""

    handles = 'Windows guests, from Windows 7 and Server 2008 R2 on'
    OPTS = (
        cfg.StrOpt(
            'virtio_win',
            help='Where virtio drivers for Windows guests are, when '
            '--virtio-win is not given: the virtio-win ISO, or a directory '
            'with its content. Without both it is /usr/share/virtio-win, '
            'where that exists.',
        ),
    )

    #: In the order in which they repair. What stops all other work comes
    #: first; a filter goes before the service that it names, for a filter
    #: whose driver is disabled keeps every device of its class from
    #: starting.
    CHECKS: tuple[type[base.Check], ...] = (
        partitions.BitLocker,
        partitions.DynamicDisk,
        volumes.NtfsDamaged,
        release.Release,
        volumes.NtfsHibernated,
        volumes.NtfsDirty,
        hives.HiveDamaged,
        hives.HiveDirty,
        hives.ControlSet,
        partitions.BootDisk,
        partitions.Firmware,
        partitions.ActivePartition,
        master_boot_code.MasterBootCode,
        boot_sector.VolumeBootRecord,
        boot_sector.HiddenSectors,
        boot_files.BootManager,
        boot_files.UefiFallback,
        disk_signature.DiskSignature,
        boot_store.BootStore,
        boot_devices.BootDevices,
        boot_loader.BootLoader,
        boot_loader.BootFlags,
        boot_resume.BootResume,
        disk_signature.DriveLetter,
        boot_services.BootServices,
        *_DRIVER_CHECKS,
        device_filters.XenFilters,
        device_filters.FilterMissing,
        xen_unplug.XenUnplug,
        start_override.StartOverride,
        xen_services.XenServices,
        xen_packages.XenPackages,
        xen_packages.XenTools,
        network.StaticNetwork,
        clock.Clock,
        san_policy.SanPolicy,
        first_boot.FirstBoot,
    )

    def matches(self, operating_system: model.OperatingSystem | None) -> bool:
        # Behind BitLocker, or on a dynamic disk, no Windows is found.
        return operating_system is None or (
            operating_system.family == 'windows'
        )

    def checks(self, request: base.Request) -> Sequence[base.Check]:
        full = self._with_drivers(request)
        self._drivers = disk_bus.Drivers(full)
        return [self._check(check, full) for check in self.CHECKS]

    def _check(
        self, check: type[base.Check], request: base.Request
    ) -> base.Check:
        if issubclass(check, _DRIVER_CHECKS):
            return check(request, self._drivers)
        return check(request)

    def _with_drivers(self, request: base.Request) -> base.Request:
        """The request, with the place of the virtio drivers filled in."""
        path = request.virtio_win or self.options['virtio_win']
        if path is None and virtio_win.is_collection(_INSTALLED):
            path = _INSTALLED
        return dataclasses.replace(request, virtio_win=path)

    def describe(self, guest: guest_room.Guest) -> Mapping[str, typing.Any]:
        """The drivers that did not come with Windows, as dism has them."""
        if guest.windows is None:
            return {}
        try:
            found = driver_packages.packages(guest)
        except exceptions.GuestError as error:
            return _nothing(guest, error)
        return {'drivers': [package.row() for package in found]}

    def hardware(
        self, guest: guest_room.Guest, request: base.Request
    ) -> Mapping[str, str]:
        if guest.windows is None:
            return {}
        try:
            return {
                **boot.firmware_and_machine(guest, request),
                **system.release_properties(guest),
                **self._drivers.hardware(guest),
            }
        except exceptions.GuestError as error:
            return _nothing(guest, error)


def _nothing(
    guest: guest_room.Guest, error: exceptions.GuestError
) -> Mapping[str, typing.Any]:
    """Of a hive that cannot be opened, windows.hive-damaged tells.

    :raises GuestError: the error itself, if it is another one
    """
    if not system.unreadable(guest, error):
        raise error
    return {}
