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

"""A boot loader for a guest that Xen started from outside.

pygrub and PyGrub's successors read a configuration from the guest's disk
and start the kernel themselves. On KVM the BIOS does the first step, and
it needs boot code in the disk's first sector and a configuration that
GRUB 2 understands.
"""

from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Sequence
import os
import posixpath
import re
import tempfile

from oslo_concurrency import processutils

from xenimport import exceptions
from xenimport.guest import guest as guest_room
from xenimport import model
from xenimport import shell
from xenimport.remediation import base
from xenimport.remediation import disk
from xenimport.remediation.linux import boot_files
from xenimport.remediation.linux import disk_names
from xenimport.remediation.linux import grub_layout
from xenimport.remediation.linux import initramfs

GRUB_DIRECTORY = '/usr/lib/grub/i386-pc'
#: All that a guest's configuration may ask for is in core.img: modules of
#: the guest's own GRUB, of another version, must not be loaded into it.
GRUB_MODULES = (
    'biosdisk part_msdos part_gpt ext2 xfs btrfs fat lvm diskfilter '
    'search search_fs_uuid search_label search_fs_file normal configfile '
    'linux linux16 gzio echo test true sleep ls serial terminal minicmd '
    'regexp loadenv reboot halt all_video gfxterm font gettext xzio png'
).split()
#: Where the gap is small: what starts one kernel from one file system.
GRUB_MODULES_SMALL = (
    'biosdisk part_msdos part_gpt search_fs_uuid normal linux test'
).split()
#: Sectors that the smaller core.img takes (GRUB 2.06: 272), with some to
#: spare: a diagnosis must not depend on the GRUB of this machine.
SMALL_CORE = 300
_FILE_SYSTEM_MODULES = {
    'ext2': 'ext2',
    'ext3': 'ext2',
    'ext4': 'ext2',
    'xfs': 'xfs',
    'btrfs': 'btrfs',
    'vfat': 'fat',
}
_BIOS_BOOT = '21686148-6449-6E6F-744E-656564454649'
_ESP = 'C12A7328-F81F-11D2-BA4B-00A0C93EC93B'
_GRUB_CFG = '/boot/grub/grub.cfg'
_KEEP = '.before-xenimport'
_CHANGING = re.compile(r'root=(/dev/(?:xvd|hd|sd)[a-z]+\d*)\Z')
_NAMED = re.compile(r'(resume|root)=(/dev/(?:xvd|hd|sd)[a-z]+\d*)\Z')
_UUID = re.compile(r'[0-9A-Fa-f-]{4,64}\Z')


def boot_device(guest: guest_room.Guest) -> str:
    """The device that holds /boot."""
    system = guest.operating_system
    if system is None:
        return ''
    return system.mountpoints.get('/boot', system.root)


def guest_path(guest: guest_room.Guest, path: str) -> str:
    """Where a path of the boot loader is in the guest."""
    path = re.sub(r'\A\([^)]*\)', '', path)
    if path.startswith('/@/'):
        path = path[2:]
    system = guest.operating_system
    if system and '/boot' in system.mountpoints:
        return '/boot' + path if path.startswith('/') else '/boot/' + path
    return path


def loader_path(guest: guest_room.Guest, path: str) -> str:
    """Where a path of the guest below /boot is for the boot loader."""
    system = guest.operating_system
    if system and '/boot' in system.mountpoints:
        return path.removeprefix('/boot')
    return path


def only_root(guest: guest_room.Guest) -> str:
    """The device of the only root that any boot loader file names.

    Empty where they name several, or one that never changes: an entry may
    as well start another system, and each entry of the Boot Loader
    Specification is a file of its own.
    """
    roots = {
        word
        for file in boot_files.find(guest)
        for line in boot_files.lines(boot_files.read(guest, file), file.kind)
        for word in line.arguments
        if word.startswith('root=')
    }
    matched = _CHANGING.match(next(iter(roots))) if len(roots) == 1 else None
    return matched[1] if matched else ''


def rooted(devices: disk_names.Devices, root: str) -> boot_files.Editor:
    """An editor that names root and resume devices by UUID.

    :param root: the name that stands for the root that the inspection
        found, whatever its letter. Any other is what the order of the
        disks makes it, and is left as it is where no disk answers to it
    """

    def editor(arguments: list[str]) -> list[str]:
        edited = []
        for word in arguments:
            matched = _NAMED.match(word)
            if matched:
                found = matched[1] == 'root' and matched[2] == root
                stable = devices.stable(matched[2], '/' if found else '')
                if stable:
                    word = f'{matched[1]}={stable}'
            edited.append(word)
        return edited

    return editor


def make_configuration(entries: Sequence[boot_files.Entry], uuid: str) -> str:
    """A grub.cfg, one command a line so that pygrub reads it as well."""
    lines = [
        '# Made by xenimport from the configuration that Xen had read.',
        '# Tools of the guest, such as update-grub, may replace it.',
        'set default=0',
        'set timeout=3',
        f'search --no-floppy --fs-uuid --set=root {uuid}',
    ]
    for entry in entries:
        title = re.sub(r'[\'"\\\n$]', ' ', entry.title) or entry.kernel
        lines += [
            '',
            f"menuentry '{title}' {{",
            '\t' + ' '.join(('linux', entry.kernel, *entry.arguments)),
        ]
        if entry.initrd:
            lines.append(f'\tinitrd {entry.initrd}')
        lines.append('}')
    return '\n'.join(lines) + '\n'


class BootConfiguration(base.Check):
    """What the boot loader is told: kernel, initramfs and root."""

    id = 'linux.boot-configuration'
    title = 'The boot loader finds the kernel and names the root by UUID'

    def __init__(
        self, request: base.Request, lookup: disk_names.Lookup | None = None
    ) -> None:
        super().__init__(request)
        self._lookup = lookup or disk_names.Lookup()
        self._guest: guest_room.Guest | None = None
        self._root = ''

    def _editor(self, guest: guest_room.Guest) -> boot_files.Editor:
        # Looked up before anything is changed: once one file names the
        # root by UUID, the others would seem to name a second system.
        if self._guest is not guest:
            self._guest, self._root = guest, only_root(guest)
        return rooted(self._lookup.of(guest), self._root)

    def diagnose(self, guest: guest_room.Guest) -> Iterator[model.Finding]:
        files = boot_files.find(guest)
        for file in files:
            yield from self._names(guest, file)
        if self.request.virtual_system.firmware is model.Firmware.UEFI:
            return
        reason = self._unusable(guest, files)
        if reason:
            yield self._missing(guest, reason)

    def _names(
        self, guest: guest_room.Guest, file: boot_files.BootFile
    ) -> Iterator[model.Finding]:
        text = boot_files.read(guest, file)
        editor = self._editor(guest)
        seen, left = [], []
        for line in boot_files.lines(text, file.kind):
            words = [w for w in line.arguments if _NAMED.match(w)]
            if not words:
                continue
            seen.append(f'{file.path}:{line.number}: {" ".join(words)}')
            after = editor(list(line.arguments))
            left += [w for w in after if _CHANGING.match(w)]
        if boot_files.edit(text, file.kind, editor) != text:
            yield model.Finding(
                self.id,
                model.Severity.BLOCKER,
                'The boot loader names the root disk as Xen does',
                '; '.join(seen),
                f'write root=UUID=... in {file.path}',
                subject=file.path,
                repair='names it by UUID',
                loss='the guest may not find its root disk',
            )
        # A resume device that is gone stays; the kernel starts without it.
        if left:
            yield self._elsewhere(file, left, text)

    def _elsewhere(
        self, file: boot_files.BootFile, left: Sequence[str], text: str
    ) -> model.Finding:
        """Root disks that are not among those of the package."""
        entries = boot_files.entries(text)
        number = boot_files.default_entry(text)
        default = entries[number].arguments if number < len(entries) else left
        return model.Finding(
            self.id,
            model.Severity.BLOCKER
            if set(left) & set(default)
            else model.Severity.NOTE,
            'The boot loader names a root disk that is not in the package',
            f'{file.path}: {", ".join(left)}',
            f'export the guest with that disk, or take the entry out of '
            f'{file.path}',
            subject=f'{file.path} (other roots)',
            loss='that entry does not boot',
        )

    def _unusable(
        self, guest: guest_room.Guest, files: Sequence[boot_files.BootFile]
    ) -> str | None:
        """Why GRUB 2 would find nothing to start, None if it would."""
        if not needs_boot_code(guest):
            return None
        made = [file for file in files if file.kind == 'grub2']
        if not made:
            return 'there is no grub.cfg'
        entries = boot_files.entries(boot_files.read(guest, made[0]))
        if not entries:
            # Such as one that reads the Boot Loader Specification.
            return f'{made[0].path} starts no kernel'
        number = boot_files.default_entry(boot_files.read(guest, made[0]))
        entry = entries[number if number < len(entries) else 0]
        for path in (entry.kernel, entry.initrd):
            if path and not guest.is_file(guest_path(guest, path)):
                return f'{made[0].path} names {path}, which does not exist'
        return None

    def _missing(self, guest: guest_room.Guest, reason: str) -> model.Finding:
        possible = bool(self._entries(guest)) and self._uuid(guest)
        return model.Finding(
            self.id,
            model.Severity.BLOCKER,
            'There is no configuration that GRUB 2 could use',
            reason,
            'install grub-pc in the guest and run update-grub',
            subject='grub.cfg',
            repair='writes one from what Xen had read' if possible else None,
            loss='the guest stops at the prompt of the boot loader',
        )

    def _uuid(self, guest: guest_room.Guest) -> str | None:
        uuid = self._lookup.of(guest).uuid(boot_device(guest)) or ''
        return uuid if _UUID.match(uuid) else None

    def _entries(self, guest: guest_room.Guest) -> list[boot_files.Entry]:
        """What can be started, the default first."""
        for kind in ('legacy', 'grub2'):
            for file in boot_files.find(guest):
                if file.kind != kind:
                    continue
                text = boot_files.read(guest, file)
                found = boot_files.entries(text)
                number = boot_files.default_entry(text)
                if number < len(found):
                    found.insert(0, found.pop(number))
                found = [e for e in found if self._startable(guest, e)]
                if found:
                    return found
        return self._installed(guest)

    def _startable(
        self, guest: guest_room.Guest, entry: boot_files.Entry
    ) -> bool:
        return all(
            guest.is_file(guest_path(guest, path))
            for path in (entry.kernel, entry.initrd)
            if path
        )

    def _installed(self, guest: guest_room.Guest) -> list[boot_files.Entry]:
        system = guest.operating_system
        uuid = self._lookup.of(guest).uuid(system.root) if system else None
        found = []
        for kernel in reversed(initramfs.kernels(guest)):
            image = f'/boot/vmlinuz-{kernel.version}'
            if uuid and guest.is_file(image):
                initrd = kernel.initramfs
                found.append(
                    boot_files.Entry(
                        f'Linux {kernel.version}',
                        loader_path(guest, image),
                        (f'root=UUID={uuid}', 'ro'),
                        loader_path(guest, initrd) if initrd else None,
                    )
                )
        return found

    def repair(
        self, guest: guest_room.Guest, finding: model.Finding
    ) -> Sequence[model.Change]:
        if finding.subject == 'grub.cfg':
            return self._make(guest)
        files = [
            file
            for file in boot_files.find(guest)
            if file.path == finding.subject
        ]
        return [
            self._change(
                guest, path, before, after, f'replace {after} by {before}'
            )
            for path, before, after in boot_files.change_all(
                guest, files, self._editor(guest)
            )
        ]

    def _make(self, guest: guest_room.Guest) -> list[model.Change]:
        uuid = self._uuid(guest)
        files = boot_files.find(guest)
        if uuid is None or not self._unusable(guest, files):
            return []
        entries = self._entries(guest)
        if not entries:
            return []
        path = _grub_cfg(guest)
        undo = f'remove {path}'
        before = 'no such file'
        if guest.is_file(path):
            guest.call('rename', path, path + _KEEP)
            undo, before = (
                shell.join('mv', '--', path + _KEEP, path),
                'no kernel to start',
            )
        guest.call('mkdir_p', posixpath.dirname(path))
        text = make_configuration(entries, uuid)
        text = boot_files.edit(text, 'grub2', self._editor(guest))
        guest.write_text(path, text, 0o600)
        after = f'{len(entries)} kernel(s), first {entries[0].kernel}'
        return [self._change(guest, path, before, after, undo)]

    def _change(
        self,
        guest: guest_room.Guest,
        path: str,
        before: str,
        after: str,
        undo: str,
    ) -> model.Change:
        return model.Change(
            self.id,
            boot_device(guest),
            path,
            before,
            after,
            'the boot loader has to find kernel and root on KVM',
            undo,
        )


def _grub_cfg(guest: guest_room.Guest) -> str:
    """The grub.cfg that the boot code shall read."""
    for path in (_GRUB_CFG, '/boot/grub2/grub.cfg'):
        if guest.is_file(path):
            return path
    return _GRUB_CFG


def needs_boot_code(guest: guest_room.Guest) -> str | None:
    """What is wrong with the boot code of the first disk, or None."""
    drive = guest.drives[0]
    sector = guest.read_device(drive, 0, grub_layout.SECTOR)
    code = (
        sector[: grub_layout.BPB_START]
        + sector[grub_layout.BPB_END : grub_layout.DISK_SIGNATURE]
    )
    if not any(code):
        return f'{drive}: the first sector has no boot code'
    core = grub_layout.core_sector(sector)
    if core is not None:
        at = core * grub_layout.SECTOR
        start = guest.read_device(drive, at, grub_layout.SECTOR)
        if not any(start):
            return (
                f'{drive}: GRUB of the first sector loads sector {core}, '
                'which is empty'
            )
        return None
    if b'GRUB' in code or b'LILO' in code or b'SYSLINUX' in code:
        return None
    return _no_chain(guest, drive)


def _no_chain(guest: guest_room.Guest, drive: str) -> str | None:
    """Generic boot code starts the active partition, if it has code."""
    table = disk.read_table(guest, drive)
    if table.gpt is not None:
        # Its active partition is one of its attributes, not read here.
        return None
    for slot in table.slots:
        if slot.active:
            at = slot.start * grub_layout.SECTOR
            start = guest.read_device(drive, at, grub_layout.SECTOR)
            if any(start[:3]) and start[510:] == b'\x55\xaa':
                return None
    return (
        f'{drive}: the first sector starts the active partition, which '
        'has no boot code'
    )


def room_for_core(guest: guest_room.Guest) -> tuple[int, int]:
    """First sector and number of sectors where core.img may lie.

    That is behind the first sector up to the first partition, or a BIOS
    boot partition of a GPT; (0, 0) where there is neither.
    """
    table = disk.read_table(guest, guest.drives[0])
    for extent in table.extents:
        if extent.kind == _BIOS_BOOT:
            return extent.start, extent.end - extent.start
    if table.gpt is None and table.extents:
        first = min(extent.start for extent in table.extents)
        return 1, max(0, first - 1)
    return 0, 0


def make_core(uuid: str, configuration: str, names: Sequence[str]) -> bytes:
    """core.img that reads a configuration, made by this host's GRUB.

    :param uuid: of the file system with the configuration
    :param configuration: its path there
    :raises xenimport.exceptions.MachineError: if GRUB is not installed
    """
    if not _UUID.match(uuid) or re.search(r'[^\w./-]', configuration):
        raise grub_layout.LayoutError('a name that GRUB would not take')
    with tempfile.TemporaryDirectory(prefix='xenimport-grub-') as directory:
        script = os.path.join(directory, 'early.cfg')
        with open(script, 'w', encoding='ascii') as stream:
            stream.write(
                f'search.fs_uuid {uuid} root\nnormal ($root){configuration}\n'
            )
        made = os.path.join(directory, 'core.img')
        command = [
            'grub-mkimage',
            *('--directory', GRUB_DIRECTORY),
            *('--format', 'i386-pc'),
            # No modules there: see GRUB_MODULES.
            *('--prefix', '(memdisk)/none'),
            *('--config', script),
            *('--output', made),
            *names,
        ]
        try:
            processutils.execute(
                *command,
                prlimit=processutils.ProcessLimits(
                    cpu_time=60, address_space=1 << 30, file_size=16 << 20
                ),
            )
        except (processutils.ProcessExecutionError, OSError) as error:
            raise _no_grub(str(error)) from error
        with open(made, 'rb') as image:
            return image.read(grub_layout.CORE_LIMIT + 1)


def _no_grub(found: str) -> exceptions.MachineError:
    return exceptions.MachineError(
        'machine.grub-missing',
        'GRUB for BIOS is not usable on this machine',
        where=GRUB_DIRECTORY,
        expected='grub-mkimage, boot.img and the modules',
        found=found.strip()[-400:],
        fix='install the packages grub-common and grub-pc-bin',
    )


class BootCode(base.Check):
    """The code that BIOS starts."""

    id = 'linux.boot-code'
    title = 'BIOS finds boot code on the first disk'

    def __init__(
        self, request: base.Request, lookup: disk_names.Lookup | None = None
    ) -> None:
        super().__init__(request)
        self._lookup = lookup or disk_names.Lookup()

    def diagnose(self, guest: guest_room.Guest) -> Iterator[model.Finding]:
        if self.request.virtual_system.firmware is model.Firmware.UEFI:
            return
        if _has_esp_only(guest):
            return
        reason = needs_boot_code(guest)
        if reason is None:
            return
        start, room = room_for_core(guest)
        uuid = self._lookup.of(guest).uuid(boot_device(guest)) or ''
        fits = room >= SMALL_CORE and _UUID.match(uuid)
        repair = 'puts GRUB 2 before the first partition' if fits else None
        if not fits:
            reason += (
                f'; room for GRUB 2: {room} sectors of {SMALL_CORE}, file '
                f'system UUID of /boot: {uuid or "none"}'
            )
        yield model.Finding(
            self.id,
            model.Severity.BLOCKER,
            'BIOS would find nothing to start',
            reason,
            'install grub-pc in the guest; if there is no room before the '
            'first partition, move that partition to sector 2048',
            subject=guest.drives[0],
            repair=repair,
            loss='the guest boots only with a kernel given from outside',
        )

    def repair(
        self, guest: guest_room.Guest, finding: model.Finding
    ) -> Sequence[model.Change]:
        if needs_boot_code(guest) is None:
            return ()
        drive = guest.drives[0]
        start, room = room_for_core(guest)
        uuid = self._lookup.of(guest).uuid(boot_device(guest)) or ''
        core = grub_layout.patch_core(_fitting_core(guest, uuid, room), start)
        try:
            with open(os.path.join(GRUB_DIRECTORY, 'boot.img'), 'rb') as file:
                boot_image = file.read(grub_layout.SECTOR + 1)
        except OSError as error:
            raise _no_grub(str(error)) from error
        old = guest.read_device(drive, 0, grub_layout.SECTOR)
        new = grub_layout.patch_boot_sector(old, boot_image, start)
        # core.img first: code that starts nothing would be worse.
        guest.write_device(drive, start * grub_layout.SECTOR, core)
        guest.write_device(drive, 0, new)
        last = start + grub_layout.sectors(len(core)) - 1
        return [
            model.Change(
                self.id,
                drive,
                f'sectors 0 and {start}-{last}',
                before=finding.evidence,
                after=f'boot.img and core.img ({len(core)} bytes) of GRUB 2',
                reason='BIOS starts what is in the first sector',
                undo='overwrite the first 440 bytes of the disk with zeros',
            )
        ]


def _has_esp_only(guest: guest_room.Guest) -> bool:
    """A GPT with an EFI system partition and none for BIOS."""
    table = disk.read_table(guest, guest.drives[0])
    kinds = {extent.kind for extent in table.extents}
    return _ESP in kinds and _BIOS_BOOT not in kinds


def _small_core(guest: guest_room.Guest, uuid: str) -> bytes:
    kind = str(guest.call('vfs_type', boot_device(guest)))
    extra = [_FILE_SYSTEM_MODULES.get(kind, 'ext2')]
    return make_core(uuid, _loaded(guest), [*GRUB_MODULES_SMALL, *extra])


def _loaded(guest: guest_room.Guest) -> str:
    return loader_path(guest, _grub_cfg(guest))


def _fitting_core(guest: guest_room.Guest, uuid: str, room: int) -> bytes:
    """The richest core.img that fits into a number of sectors.

    :raises xenimport.exceptions.GuestError: if none does
    """
    core = make_core(uuid, _loaded(guest), GRUB_MODULES)
    if grub_layout.sectors(len(core)) > room:
        core = _small_core(guest, uuid)
    if grub_layout.sectors(len(core)) > room:
        raise exceptions.GuestError(
            'guest.no-room-for-grub',
            'There is no room for GRUB before the first partition',
            where=guest.drives[0],
            expected=f'{grub_layout.sectors(len(core))} sectors',
            found=f'{room} sectors',
            fix='move the first partition to sector 2048, or install a '
            'boot loader in the guest',
        )
    return core
