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

"""Which operating system a guest has, and where its parts are mounted."""

from __future__ import annotations

import dataclasses
import re
import typing

from xenimport import exceptions
from xenimport.guest import windows_inspection
from xenimport import model

if typing.TYPE_CHECKING:
    from collections.abc import Mapping

    from xenimport.guest import guest as guest_room

#: libosinfo's short ids (osinfo-db, without the version) where libguestfs
#: has another name.
_DISTRIBUTIONS = {
    'oraclelinux': 'ol',
}
#: Without these the checks would judge half a system.
_ESSENTIAL = frozenset(
    ('/', '/boot', '/boot/efi', '/etc', '/lib', '/usr', '/var')
)
_MODULES = ('/lib/modules', '/usr/lib/modules')
#: Names in a modules directory that are looked into.
_KERNEL_LIMIT = 256
_DIGITS = re.compile(r'(\d+)')


@dataclasses.dataclass(frozen=True)
class Inspection:
    """What was found; see :class:`xenimport.guest.guest.Guest`."""

    operating_system: model.OperatingSystem | None = None
    unmounted: Mapping[str, str] = dataclasses.field(default_factory=dict)


def inspect(guest: guest_room.Guest) -> Inspection:
    """Find the operating system, mount it and look at it."""
    windows = windows_inspection.inspect(guest)
    if windows is not None:
        return Inspection(windows)
    guest.unmount_all()
    roots = guest.call('inspect_os')
    if not roots:
        return Inspection()
    root = _choose(guest, roots)
    if guest.call('inspect_get_type', root) == 'windows':
        # Its volumes are mounted side by side, when they are asked for.
        return Inspection(_describe(guest, root, {'/': root}))
    mountpoints, unmounted = _mount(guest, root)
    return Inspection(_describe(guest, root, mountpoints), unmounted)


def _choose(guest: guest_room.Guest, roots: list[str]) -> str:
    """The one root, or the one on the drive that the firmware boots."""
    if len(roots) == 1:
        return roots[0]
    on_first = [
        root
        for root in roots
        if guest.drives and drive_of(guest, root) == guest.drives[0]
    ]
    if len(on_first) == 1:
        return on_first[0]
    raise exceptions.GuestError(
        'guest.several-systems',
        'The guest has several operating systems',
        where=guest.drives[0] if on_first else ', '.join(guest.drives),
        expected='one operating system on the disk that is booted',
        found=', '.join(on_first or roots),
        fix='export the guest with the disks of one system only, or use '
        '--no-repair to take the disks as they are',
    )


def _mount(
    guest: guest_room.Guest, root: str
) -> tuple[dict[str, str], dict[str, str]]:
    """Mount a root's file systems, the outer ones first."""
    wanted: dict[str, str] = guest.call('inspect_get_mountpoints', root)
    mounted: dict[str, str] = {}
    failed: dict[str, str] = {}
    for path in sorted(wanted, key=lambda item: (len(item), item)):
        try:
            guest.call('mount', wanted[path], path)
        except exceptions.GuestError as error:
            if path in _ESSENTIAL:
                raise _not_mounted(path, wanted[path], error) from error
            failed[path] = error.found or error.message
        else:
            mounted[path] = wanted[path]
    return mounted, failed


def _not_mounted(
    path: str, device: str, error: exceptions.GuestError
) -> exceptions.GuestError:
    return exceptions.GuestError(
        'guest.not-mounted',
        f"The guest's {path} cannot be mounted",
        where=device,
        expected='a sound file system that Linux can mount',
        found=error.found,
        fix='start the guest on Xen, let it check that file system, shut '
        'it down cleanly and export it again',
    )


def _describe(
    guest: guest_room.Guest, root: str, mountpoints: dict[str, str]
) -> model.OperatingSystem:
    family = guest.call('inspect_get_type', root)
    distribution = guest.call('inspect_get_distro', root)
    linux = family == 'linux'
    return model.OperatingSystem(
        family=family,
        distribution=_DISTRIBUTIONS.get(distribution, distribution),
        major=guest.call('inspect_get_major_version', root),
        minor=guest.call('inspect_get_minor_version', root),
        product=_known(guest.call('inspect_get_product_name', root)),
        architecture=guest.call('inspect_get_arch', root),
        root=root,
        hostname=_known(guest.call('inspect_get_hostname', root)),
        mountpoints=mountpoints,
        kernels=kernels(guest) if linux else (),
        init=init_system(guest) if linux else None,
    )


def _known(text: str) -> str:
    """libguestfs' word for what it does not know is ours for nothing."""
    return '' if text == 'unknown' else text


def kernels(guest: guest_room.Guest) -> tuple[str, ...]:
    """The kernels with modules, the oldest version first."""
    found = {
        name
        for directory in _MODULES
        for name in guest.listdir(directory)[:_KERNEL_LIMIT]
        if guest.is_file(f'{directory}/{name}/modules.dep')
        or guest.is_dir(f'{directory}/{name}/kernel')
    }
    return tuple(sorted(found, key=natural))


def natural(text: str) -> list[tuple[int, int | str]]:
    """A sort key with numbers by value: 6.1.0-9 before 6.1.0-10."""
    return [
        (1, int(part)) if part.isdecimal() else (0, part)
        for part in _DIGITS.split(text)
    ]


def init_system(guest: guest_room.Guest) -> str | None:
    """What runs as process 1: as :class:`model.OperatingSystem` names it.

    A package of systemd may be installed beside another init, so what
    /sbin/init leads to decides.
    """
    if guest.call('is_symlink', '/sbin/init'):
        if 'systemd' in guest.call('readlink', '/sbin/init'):
            return 'systemd'
    if guest.exists('/sbin/openrc'):
        return 'openrc'
    if guest.exists('/sbin/initctl') and guest.is_dir('/etc/init'):
        return 'upstart'
    if guest.exists('/etc/inittab'):
        return 'sysvinit'
    for path in ('/usr/lib/systemd/systemd', '/lib/systemd/systemd'):
        if guest.exists(path):
            return 'systemd'
    return 'sysvinit' if guest.exists('/sbin/init') else None


def drive_of(guest: guest_room.Guest, device: str) -> str:
    """The drive that a device lies on, the first of several."""
    if device.startswith('btrfsvol:'):
        device = guest.call('mountable_device', device)
    for candidate in _beneath(guest, device):
        if candidate in guest.drives:
            return candidate
        drive = _parent(guest, candidate)
        if drive in guest.drives:
            return drive
    raise exceptions.GuestError(
        'guest.no-drive',
        'A device of the guest lies on none of its disks',
        where=device,
        expected=', '.join(guest.drives),
        found='no partition, logical volume or software RAID of them',
        fix='export all disks of the guest',
    )


def _parent(guest: guest_room.Guest, device: str) -> str:
    try:
        return str(guest.call('part_to_dev', device))
    except exceptions.GuestError:
        # Not a partition.
        return ''


def _beneath(guest: guest_room.Guest, device: str) -> list[str]:
    """The partitions or drives that a device is made of, in order."""
    if device.startswith('/dev/md'):
        return sorted(
            str(item['mdstat_device']) for item in _md_stat(guest, device)
        )
    if device in guest.drives or not _is_logical(guest, device):
        return [device]
    group = guest.call('lvm_canonical_lv_name', device).split('/')[2]
    members = set(guest.call('vgpvuuids', group))
    # pvuuid gives the identity with dashes left out, or not, depending on
    # LVM's version.
    wanted = {uuid.replace('-', '') for uuid in members}
    return sorted(
        volume
        for volume in guest.call('pvs')
        if guest.call('pvuuid', volume).replace('-', '') in wanted
    )


def _md_stat(
    guest: guest_room.Guest, device: str
) -> list[dict[str, typing.Any]]:
    members: list[dict[str, typing.Any]] = guest.call('md_stat', device)
    return [
        {'mdstat_device': item['mdstat_device']}
        if str(item['mdstat_device']).startswith('/dev/')
        else {'mdstat_device': f'/dev/{item["mdstat_device"]}'}
        for item in members
    ]


def _is_logical(guest: guest_room.Guest, device: str) -> bool:
    try:
        return bool(guest.call('is_lv', device))
    except exceptions.GuestError:
        return False
