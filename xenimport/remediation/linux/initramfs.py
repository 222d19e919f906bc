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

"""An initramfs without virtio: the guest would not find its root.

The modules are appended to the file as one more archive, which the kernel
unpacks over what is there, so that nothing of the guest has to run. On
request the guest's own tool rebuilds it inside the appliance instead.
"""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Sequence
import dataclasses
import posixpath
import re
import zlib

from xenimport import exceptions
from xenimport.guest import guest as guest_room
from xenimport import model
from xenimport.remediation import base
from xenimport.remediation.linux import cpio
from xenimport.remediation.linux import initramfs_image
from xenimport.remediation.linux import modules
from xenimport import shell

#: Larger than any initramfs; also what the host's memory is good for.
FILE_LIMIT = 512 << 20
MODULE_LIMIT = 64 << 20
#: All modules and indexes that are appended; they take about 5 MiB.
ADDITION_LIMIT = 256 << 20
#: Seconds that the guest's own tool may take; minutes under emulation.
REBUILD_LIMIT = 1800
#: What one call of the appliance's protocol can carry, with room to spare.
_WRITE = 2 << 20

#: What modprobe looks up: with these of the whole kernel in the archive a
#: module that was there before is found as before, and the new ones too.
INDEXES = (
    'modules.dep',
    'modules.dep.bin',
    'modules.alias',
    'modules.alias.bin',
    'modules.softdep',
    'modules.builtin',
    'modules.builtin.bin',
)
_INITRAMFS_TOOLS = '/etc/initramfs-tools/modules'
_DRACUT_DIRECTORY = '/etc/dracut.conf.d'
_DRACUT = f'{_DRACUT_DIRECTORY}/xenimport-virtio.conf'
_MODPROBE = r'(etc/modprobe\.conf|((usr/)?lib|etc|run)/modprobe\.d/.+)'


@dataclasses.dataclass(frozen=True)
class Kernel:
    """One installed kernel.

    :ivar directory: of its modules
    :ivar initramfs: the file's path, None if it has none
    """

    version: str
    directory: str
    initramfs: str | None


@dataclasses.dataclass(frozen=True)
class Lack:
    """What is wrong with one kernel's initramfs.

    :ivar absent: drivers that the kernel does not have at all
    :ivar missing: drivers that the kernel has and the initramfs lacks
    :ivar blocked: lines of its modprobe.d that stop a driver
    """

    absent: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    blocked: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.absent or self.missing or self.blocked)


@dataclasses.dataclass(frozen=True)
class Drivers:
    """What a kernel offers, from the indexes in its directory."""

    dependencies: dict[str, tuple[str, tuple[str, ...]]]
    builtin: set[str]

    def has(self, name: str) -> bool:
        return name in self.dependencies or name in self.builtin


def kernels(guest: guest_room.Guest) -> list[Kernel]:
    """The kernels that the guest can start, each with its initramfs."""
    if guest.operating_system is None:
        return []
    boot = set(guest.listdir('/boot'))
    found = []
    for version in guest.operating_system.kernels:
        directory = f'/lib/modules/{version}'
        # Alpine names the files by flavour, not by version.
        flavour = version.rpartition('-')[2]
        for name in (version, flavour):
            if boot & {f'{kind}-{name}' for kind in ('vmlinuz', 'vmlinux')}:
                found.append(
                    Kernel(version, directory, _initramfs(boot, name))
                )
                break
    return found


def _initramfs(boot: set[str], name: str) -> str | None:
    for candidate in (
        f'initrd.img-{name}',
        f'initramfs-{name}.img',
        f'initrd-{name}.img',
        f'initrd-{name}',
        f'initramfs-{name}',
    ):
        if candidate in boot:
            return f'/boot/{candidate}'
    return None


def drivers_of(guest: guest_room.Guest, kernel: Kernel) -> Drivers:
    """What modules.dep and modules.builtin say."""
    texts = []
    for name in ('modules.dep', 'modules.builtin'):
        path = f'{kernel.directory}/{name}'
        texts.append(guest.read_text(path) if guest.is_file(path) else '')
    return Drivers(
        modules.parse_dependencies(texts[0]), modules.parse_builtin(texts[1])
    )


def find_lack(
    image: initramfs_image.Image | None, drivers: Drivers, bus: str
) -> Lack:
    """What keeps a kernel from finding its root on a bus.

    :param image: its initramfs, None if it has none
    """
    names = modules.BUS_DRIVERS[bus]
    absent = tuple(
        name
        for name in names
        # Kernels older than virtio_scsi still boot on virtio_blk.
        if not drivers.has(name)
        and not (bus == 'auto' and name in ('virtio_scsi', 'sd_mod'))
    )
    there = set(drivers.builtin)
    blocked: tuple[str, ...] = ()
    if image is not None:
        there |= {
            modules.name_of(entry) for entry in image.names(r'.*\.ko(\.\w+)?')
        }
        blocked = tuple(_blocked(image, names))
    # Only modules that can be looked up: a name in neither index is absent.
    needed = modules.closure(names, drivers.dependencies)
    missing = tuple(
        name for name in map(modules.name_of, needed) if name not in there
    )
    return Lack(absent, missing, blocked)


def _blocked(
    image: initramfs_image.Image, names: Iterable[str]
) -> Iterator[str]:
    for path in image.names(_MODPROBE):
        text = image.text(path) or ''
        for number, line, _driver in modules.blocking_lines(text, names):
            yield f'{path}:{number}: {line}'


def addition(
    image: initramfs_image.Image,
    version: str,
    files: dict[str, bytes],
    names: Sequence[str],
) -> bytes:
    """The archive to be appended.

    :param files: modules and indexes by path below the kernel's directory
    :param names: the drivers to be loaded by name, in this order
    """
    home = _home(image, version)
    entries = [
        cpio.regular(posixpath.join(home, path), data)
        for path, data in files.items()
    ]
    for path in image.names(_MODPROBE):
        text = image.text(path) or ''
        free = modules.unblocked(text, (*names, *modules.EXTRA_DRIVERS))
        if free != text:
            entries.append(_text(path, free))
    entries += _loading(image, names)
    return cpio.pack([*_directories(image, entries), *entries])


def _home(image: initramfs_image.Image, version: str) -> str:
    """Where the initramfs keeps the modules of its kernel."""
    return image.resolve(f'lib/modules/{version}')


def _text(path: str, text: str) -> cpio.Entry:
    return cpio.regular(path, text.encode('utf-8', 'surrogateescape'))


def _loading(
    image: initramfs_image.Image, names: Sequence[str]
) -> list[cpio.Entry]:
    """Files that have the drivers loaded whatever udev thinks."""
    if image.generator == 'initramfs-tools':
        text = image.text('conf/modules') or ''
        return [_text('conf/modules', modules.with_names(text, names))]
    if image.generator == 'dracut':
        loaded = ''.join(f'{name}\n' for name in names)
        options = ' '.join(f'rd.driver.pre={name}' for name in names)
        return [
            _text('etc/modules-load.d/xenimport-virtio.conf', loaded),
            _text('etc/cmdline.d/99-xenimport-virtio.conf', options + '\n'),
        ]
    return []


def _directories(
    image: initramfs_image.Image, entries: Iterable[cpio.Entry]
) -> list[cpio.Entry]:
    """Directories that are not there yet, outer ones first.

    One that is there must not be named again: where it is a symbolic
    link the kernel would replace the link by an empty directory.
    """
    made: dict[str, cpio.Entry] = {}
    for entry in entries:
        parts = entry.name.split('/')[:-1]
        for depth in range(1, len(parts) + 1):
            name = '/'.join(parts[:depth])
            if name not in image.entries:
                made.setdefault(name, cpio.directory(name))
    return list(made.values())


class InitramfsVirtio(base.Check):
    """The drivers of the new disk bus in each kernel's initramfs."""

    id = 'linux.initramfs-virtio'
    title = 'The initramfs has the drivers of the disk bus'

    def diagnose(self, guest: guest_room.Guest) -> Iterator[model.Finding]:
        for kernel in kernels(guest):
            finding = self._diagnose_one(guest, kernel)
            if finding:
                yield finding

    def _diagnose_one(
        self, guest: guest_room.Guest, kernel: Kernel
    ) -> model.Finding | None:
        image = None
        drivers = drivers_of(guest, kernel)
        if kernel.initramfs:
            try:
                image = initramfs_image.parse(
                    guest.read(kernel.initramfs, FILE_LIMIT)
                )
            except cpio.DamagedError as error:
                return self._unreadable(kernel, str(error))
        lack = find_lack(image, drivers, self.request.disk_bus)
        if not lack:
            return None
        return self._finding(guest, kernel, lack)

    def _unreadable(self, kernel: Kernel, reason: str) -> model.Finding:
        rebuild = self.request.initramfs == 'rebuild'
        return self._made(
            kernel,
            f'{kernel.initramfs}: cannot be unpacked: {reason}',
            'rebuild it with --initramfs rebuild, or in the guest with '
            'update-initramfs or dracut',
            'has the guest rebuild it' if rebuild else None,
        )

    def _finding(
        self, guest: guest_room.Guest, kernel: Kernel, lack: Lack
    ) -> model.Finding:
        file = kernel.initramfs or f'/boot (kernel {kernel.version})'
        seen = []
        if lack.absent:
            seen.append(
                f'kernel {kernel.version} has no '
                + ', '.join(lack.absent)
                + f' (looked in {kernel.directory}/modules.dep and '
                'modules.builtin)'
            )
        if lack.missing:
            seen.append(f'{file} lacks ' + ', '.join(lack.missing))
        seen += [f'{file}:{line}' for line in lack.blocked]
        if lack.absent:
            fix = (
                'install a kernel with these drivers in the guest, or '
                'choose another bus with --disk-bus'
            )
            return self._made(kernel, '; '.join(seen), fix, None)
        fix = (
            'add the modules to the initramfs in the guest '
            '(update-initramfs -u, or dracut --force)'
        )
        repair: str | None = None
        if self.request.initramfs == 'rebuild':
            repair = 'has the guest rebuild it'
        elif kernel.initramfs:
            repair = 'appends the modules and their index to it'
        return self._made(kernel, '; '.join(seen), fix, repair)

    def _made(
        self, kernel: Kernel, evidence: str, fix: str, repair: str | None
    ) -> model.Finding:
        return model.Finding(
            self.id,
            model.Severity.BLOCKER,
            f'Kernel {kernel.version} would not find its root disk',
            evidence,
            fix,
            subject=kernel.version,
            repair=repair,
            loss=f'the guest does not boot with kernel {kernel.version}',
        )

    def repair(
        self, guest: guest_room.Guest, finding: model.Finding
    ) -> Sequence[model.Change]:
        for kernel in kernels(guest):
            if kernel.version != finding.subject:
                continue
            drivers = drivers_of(guest, kernel)
            names = [
                name
                for name in (
                    *modules.BUS_DRIVERS[self.request.disk_bus],
                    *modules.EXTRA_DRIVERS,
                )
                if name in drivers.dependencies
            ]
            changes = configure(guest, names, self.id)
            if self.request.initramfs == 'rebuild':
                return [*changes, rebuild(guest, kernel, self.id)]
            return [*changes, *self._append(guest, kernel, drivers, names)]
        return ()

    def _append(
        self,
        guest: guest_room.Guest,
        kernel: Kernel,
        drivers: Drivers,
        names: Sequence[str],
    ) -> list[model.Change]:
        path = kernel.initramfs
        if path is None:
            return []
        data = guest.read(path, FILE_LIMIT)
        image = initramfs_image.parse(data)
        if not find_lack(image, drivers, self.request.disk_bus):
            return []
        there = {
            modules.name_of(entry) for entry in image.names(r'.*\.ko(\.\w+)?')
        }
        needed = [
            module
            for module in modules.closure(names, drivers.dependencies)
            if modules.name_of(module) not in there | drivers.builtin
        ]
        files = _collect(guest, kernel, needed)
        archive = addition(image, kernel.version, files, names)
        undo = _write(guest, path, data, image, archive)
        lacking = ', '.join(modules.name_of(module) for module in needed)
        return [
            model.Change(
                self.id,
                guest.operating_system.root if guest.operating_system else '',
                path,
                before=f'{len(data)} bytes, without {lacking}',
                after=f'{len(archive)} bytes more: an archive with {lacking}',
                reason='without them the guest does not find its root disk',
                undo=undo,
            )
        ]


def _collect(
    guest: guest_room.Guest, kernel: Kernel, needed: Iterable[str]
) -> dict[str, bytes]:
    """The modules and indexes, by path below the kernel's directory."""
    files = {}
    for module in needed:
        # Its path comes from the guest: it must stay in that directory.
        if module.startswith('/') or '..' in module.split('/'):
            raise exceptions.GuestError(
                'guest.module-path',
                "modules.dep names a file outside the kernel's directory",
                where=f'{kernel.directory}/modules.dep',
                expected=f'a path below {kernel.directory}',
                found=module,
                fix='run depmod in the guest and export it again',
            )
        files[module] = b''
    for name in INDEXES:
        if guest.is_file(f'{kernel.directory}/{name}'):
            files[name] = b''
    room = ADDITION_LIMIT
    for name in files:
        # The read refuses, by name and limit, what is larger.
        files[name] = guest.read(
            f'{kernel.directory}/{name}', min(MODULE_LIMIT, room)
        )
        room -= len(files[name])
    return files


def _write(
    guest: guest_room.Guest,
    path: str,
    data: bytes,
    image: initramfs_image.Image,
    archive: bytes,
) -> str:
    """Append an archive; returns how to take it back."""
    last = image.sections[-1]
    if last.kind == 'lz4':
        # The kernel takes whatever follows such a section for a part of
        # it: so that one section is compressed anew.
        packer = zlib.compressobj(6, zlib.DEFLATED, 31)
        unpacked = initramfs_image.unpack_section(data, last)
        packed = packer.compress(unpacked) + packer.flush()
        head = data[: last.start] + packed
        guest.write(path, head + bytes(-len(head) % 4) + archive)
        return 'rebuild it in the guest (update-initramfs -u, dracut -f)'
    padding = bytes(-len(data) % 4)
    _append_bytes(guest, path, len(data), padding + archive)
    return shell.join('truncate', '--size', str(len(data)), '--', path)


def _append_bytes(
    guest: guest_room.Guest, path: str, end: int, added: bytes
) -> None:
    """Write behind the end of a file, or leave it as it was.

    In place, since a copy would take twice the room in a small /boot. A
    process that is killed leaves a part of it behind, on a workfile that
    is thrown away then.
    """
    try:
        done = 0
        while done < len(added):
            chunk = added[done : done + _WRITE]
            done += int(guest.call('pwrite', path, chunk, end + done))
    except exceptions.GuestError:
        guest.call('truncate_size', path, end)
        raise


def configure(
    guest: guest_room.Guest, names: Sequence[str], finding: str
) -> list[model.Change]:
    """Have the guest's next rebuild of its initramfs keep the drivers."""
    if guest.is_dir(posixpath.dirname(_INITRAMFS_TOOLS)):
        path = _INITRAMFS_TOOLS
        before = guest.read_text(path) if guest.is_file(path) else ''
        after = modules.with_names(before, names)
    elif guest.is_dir(_DRACUT_DIRECTORY):
        path = _DRACUT
        before = guest.read_text(path) if guest.is_file(path) else ''
        after = f'add_drivers+=" {" ".join(names)} "\n'
    else:
        return []
    if before == after:
        return []
    guest.write_text(path, after, 0o644)
    added = ' '.join(
        line for line in after.splitlines() if line not in before.splitlines()
    )
    return [
        model.Change(
            finding,
            guest.operating_system.root if guest.operating_system else '',
            path,
            before='without the drivers' if before else 'no such file',
            after=f'with {added}',
            reason='the next rebuild of the initramfs keeps the drivers',
            undo=f'remove these lines from {path}: {added}',
        )
    ]


def rebuild(
    guest: guest_room.Guest, kernel: Kernel, finding: str
) -> model.Change:
    """Run the guest's own tool for one kernel inside the appliance.

    :raises GuestError: if it has none or if it fails
    """
    if not re.fullmatch(r'[\w.+~-]+', kernel.version):
        raise exceptions.GuestError(
            'guest.kernel-version',
            "The name of a kernel's directory is not a version",
            where='/lib/modules',
            found=repr(kernel.version),
            fix='remove that directory in the guest',
        )
    path = kernel.initramfs or f'/boot/initrd.img-{kernel.version}'
    for tool in ('/usr/sbin/update-initramfs', '/sbin/update-initramfs'):
        if guest.is_file(tool):
            action = '-u' if kernel.initramfs else '-c'
            command = [tool, action, '-k', kernel.version]
            break
    else:
        for tool in ('/usr/bin/dracut', '/sbin/dracut', '/usr/sbin/dracut'):
            if guest.is_file(tool):
                command = [tool, '--force', path, kernel.version]
                break
        else:
            raise exceptions.GuestError(
                'guest.initramfs-tool-missing',
                'The guest has no tool that builds an initramfs',
                where='/usr/sbin',
                expected='update-initramfs or dracut',
                found='neither',
                fix='leave out --initramfs rebuild',
            )
    guest.call('command', command, limit=REBUILD_LIMIT)
    return model.Change(
        finding,
        guest.operating_system.root if guest.operating_system else '',
        path,
        before='without the drivers of the disk bus',
        after='rebuilt by ' + ' '.join(command),
        reason='without them the guest does not find its root disk',
        undo='remove the added configuration and run ' + shell.join(*command),
    )
