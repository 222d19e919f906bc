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


"""Boot files, copied from Windows' own directory as bcdboot copies them.

Source: Microsoft's "BCDBoot Command-Line Options" for where they come from
and go to; that nothing but these files is copied is partly a guess. As
bcdboot, it writes no boot code and no active flag.
"""

from __future__ import annotations

from collections.abc import Iterator
import dataclasses

from xenimport import exceptions
from xenimport.guest import guest as guest_room
from xenimport.guest import volumes
from xenimport import model
from xenimport.remediation.windows import boot
from xenimport.remediation.windows import system

#: Where Windows keeps its own copy of the files.
PCAT = 'Windows/Boot/PCAT'
EFI = 'Windows/Boot/EFI'
_FONTS = 'Windows/Boot/Fonts'
#: Where the firmware looks when it has no entry of its own (UEFI, 3.5.1.1).
FALLBACKS = {
    'amd64': 'EFI/BOOT/BOOTX64.EFI',
    'x86': 'EFI/BOOT/BOOTIA32.EFI',
    'arm64': 'EFI/BOOT/BOOTAA64.EFI',
}
#: What stands beside bootmgr rather than in \Boot.
_IN_ROOT = ('BOOTMGR', 'BOOTNXT')
DEFAULT_LOCALE = 'en-US'
#: The languages that Windows comes in ([MS-LCID]), by the number that
#: Control\Nls\Language has for them.
_LOCALES = {
    0x0401: 'ar-SA', 0x0402: 'bg-BG', 0x0404: 'zh-TW', 0x0405: 'cs-CZ',
    0x0406: 'da-DK', 0x0407: 'de-DE', 0x0408: 'el-GR', 0x0409: 'en-US',
    0x040B: 'fi-FI', 0x040C: 'fr-FR', 0x040D: 'he-IL', 0x040E: 'hu-HU',
    0x0410: 'it-IT', 0x0411: 'ja-JP', 0x0412: 'ko-KR', 0x0413: 'nl-NL',
    0x0414: 'nb-NO', 0x0415: 'pl-PL', 0x0416: 'pt-BR', 0x0418: 'ro-RO',
    0x0419: 'ru-RU', 0x041A: 'hr-HR', 0x041B: 'sk-SK', 0x041D: 'sv-SE',
    0x041E: 'th-TH', 0x041F: 'tr-TR', 0x0422: 'uk-UA', 0x0424: 'sl-SI',
    0x0425: 'et-EE', 0x0426: 'lv-LV', 0x0427: 'lt-LT', 0x0804: 'zh-CN',
    0x0809: 'en-GB', 0x080A: 'es-MX', 0x0816: 'pt-PT', 0x0C04: 'zh-HK',
    0x0C0A: 'es-ES', 0x0C0C: 'fr-CA',
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class _Copy:
    """One file: where it is on Windows' volume, and where it goes."""

    source: str
    target: str


def locale(guest: guest_room.Guest) -> str:
    """The language that Windows was installed in, as ``de-DE``.

    English where the guest does not tell, or has no boot files in it.
    """
    name = _installed_locale(guest)
    volume = system.volume(guest)
    places = (PCAT, EFI)
    if any(volume.is_dir(f'{place}/{name}') for place in places):
        return name
    return DEFAULT_LOCALE


def _installed_locale(guest: guest_room.Guest) -> str:
    for control_set in system.control_sets(guest):
        path = f'{control_set}\\Control\\Nls\\Language'
        key = system.system_hive(guest).key(path)
        text = key.text('InstallLanguage') if key else ''
        try:
            number = int(text, 16)
        except ValueError:
            continue
        if number in _LOCALES:
            return _LOCALES[number]
    return DEFAULT_LOCALE


def copy_boot_files(
    guest: guest_room.Guest, firmware: model.Firmware, finding: str
) -> list[model.Change]:
    """Copy what is missing in the system volume; what is there stays.

    A file without a single byte counts as missing.

    :param firmware: for which the files shall be
    :param finding: the id of the finding that this repairs
    :returns: one change a file; none where nothing was missing
    :raises GuestError: ``windows.boot-files-missing``, if Windows has no
        copy of the boot manager, or the disk has no system volume
    """
    target = boot.system_volume(guest)
    if target is None:
        raise missing('a system partition', 'none')
    source = system.volume(guest)
    changes = []
    for item in _plan(guest, source, firmware):
        if target.size(item.target):
            continue
        before = 'absent' if target.size(item.target) is None else 'empty'
        source.copy(item.source, item.target, target)
        path = '\\' + item.target.replace('/', '\\')
        changes.append(
            model.Change(
                finding,
                target.device,
                path,
                before=before,
                after=f'copied from {item.source}, '
                f'{source.size(item.source)} bytes',
                reason='Windows is started with this file',
                undo=f'delete {path} of the system partition',
            )
        )
    return changes


def can_copy(guest: guest_room.Guest, firmware: model.Firmware) -> bool:
    """Whether Windows has a copy of the boot manager to start from."""
    return bool(system.volume(guest).size(_manager(firmware)))


def _manager(firmware: model.Firmware) -> str:
    if firmware is model.Firmware.UEFI:
        return f'{EFI}/bootmgfw.efi'
    return f'{PCAT}/bootmgr'


def _plan(
    guest: guest_room.Guest,
    source: volumes.Volume,
    firmware: model.Firmware,
) -> Iterator[_Copy]:
    manager = _manager(firmware)
    if not source.size(manager):
        raise missing(manager, 'none')
    if firmware is model.Firmware.UEFI:
        origin, target = EFI, 'EFI/Microsoft/Boot'
        fallback = FALLBACKS.get(system.architecture(guest))
        if fallback:
            yield _Copy(manager, fallback)
    else:
        origin, target = PCAT, 'Boot'
    for path in _files(source, origin):
        name = path.rpartition('/')[2]
        in_root = origin == PCAT and name.upper() in _IN_ROOT
        yield _Copy(path, name if in_root else f'{target}/{name}')
    for place in sorted({locale(guest), DEFAULT_LOCALE}):
        for path in _files(source, f'{origin}/{place}'):
            name = path.rpartition('/')[2]
            yield _Copy(path, f'{target}/{place}/{name}')
    for path in _files(source, _FONTS):
        name = path.rpartition('/')[2]
        yield _Copy(path, f'{target}/Fonts/{name}')


def _files(volume: volumes.Volume, directory: str) -> Iterator[str]:
    for name in sorted(volume.listing(directory).values()):
        path = f'{directory}/{name}'
        if volume.size(path):
            yield path


def missing(expected: str, found: str) -> exceptions.GuestError:
    """The boot files cannot be copied."""
    return exceptions.GuestError(
        'windows.boot-files-missing',
        "Windows' boot files cannot be put back",
        where='\\Windows\\Boot',
        expected=expected,
        found=found,
        fix='start Windows from its installation medium on Xen, run '
        '"bcdboot C:\\Windows", and export the guest again',
    )
