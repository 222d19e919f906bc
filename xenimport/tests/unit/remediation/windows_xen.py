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


"""Windows guests with Xen's drivers, as XenServer's installers leave them.

Keys and files are what the INF files of XenServer 6.5 to 8 write (their
sources are public: win-xenbus, win-xenvbd and so on); the rows are those
of the Windows Server 2008 R2 that this project began with.
"""

from __future__ import annotations

from collections.abc import Mapping
import typing

from xenimport.guest import guest as guest_room
from xenimport.guest import registry
from xenimport import model
from xenimport.remediation import base
from xenimport.tests.unit.remediation import windows_fakes

SYSTEM = 'Windows/System32/config/SYSTEM'
SOFTWARE = 'Windows/System32/config/SOFTWARE'
DRIVERS = 'Windows/System32/config/DRIVERS'
DEVICE = '/dev/sda2'
SYSTEM_CLASS = '{4d36e97d-e325-11ce-bfc1-08002be10318}'
HDC_CLASS = '{4d36e96a-e325-11ce-bfc1-08002be10318}'
DISK_CLASS = '{4d36e967-e325-11ce-bfc1-08002be10318}'
VOLUME_CLASS = '{71a27cdd-812a-11d0-bec7-08002be2092f}'
NET_CLASS = '{4d36e972-e325-11ce-bfc1-08002be10318}'
SCSI_CLASS = '{4d36e97b-e325-11ce-bfc1-08002be10318}'
STORE = 'Windows/System32/DriverStore/FileRepository'
CATALOGS = 'Windows/System32/CatRoot/{F750E6C3-38EE-11D1-85E5-00C04FC295EE}'

dword = registry.Value.dword
sz = registry.Value.sz
multi = registry.Value.multi_sz

_CLASSES = {
    'Net': NET_CLASS,
    'System': SYSTEM_CLASS,
    'SCSIAdapter': SCSI_CLASS,
}


def inf(
    name: str,
    class_name: str,
    date: str,
    version: str,
    *,
    provider: str = 'Citrix Systems, Inc.',
    services: tuple[str, ...] | None = None,
    files: tuple[str, ...] | None = None,
) -> str:
    """An INF in the manner of XenServer's."""
    adds = '\r\n'.join(
        f'AddService={item},0x02,{item}_Service,'
        for item in services or (name,)
    )
    sources = '\r\n'.join(f'{item}=0,,' for item in files or (f'{name}.sys',))
    lines = [
        '; a comment with an [odd] section and a "quote',
        '[Version] ',
        'Signature="$Windows NT$" ',
        f'Class={class_name}',
        f'ClassGUID={_CLASSES[class_name]}',
        'Provider=%Vendor% ',
        f'CatalogFile={name}.cat ; signed',
        f'DriverVer={date},{version}',
        '',
        '[DestinationDirs]',
        'DefaultDestDir=12',
        'CoInst_CopyFiles=11',
        '[SourceDisksFiles]',
        sources,
        '[CoInst_CopyFiles]',
        f'{name}_coinst_{version.replace(".", "_")}.dll,{name}_coinst.dll',
        '[Main_Inst.CoInstallers]',
        'CopyFiles=CoInst_CopyFiles',
        '[Main_Inst.Services]',
        adds,
        '[Strings]',
        f'Vendor= "{provider}" ',
    ]
    return '\r\n'.join(lines) + '\r\n'


#: Published, own name, class, date and version in the INF, extra fields.
_FOUNDING: tuple[tuple[str, str, str, str, str, str, tuple[str, ...]], ...] = (
    ('oem2', 'xennet', 'Net', '02/24/2016', '8.1.0.42', 'utf-16', ()),
    ('oem3', 'xenvif', 'System', '03/23/2016', '8.1.0.62', 'ascii', ()),
    ('oem4', 'xenvbd', 'SCSIAdapter', '02/29/2016', '8.1.0.130', 'utf-16',
     ('xenvbd.sys', 'xencrsh.sys')),
    ('oem5', 'xeniface', 'System', '01/22/2016', '8.1.0.26', 'cp1252', ()),
    ('oem6', 'xenbus', 'System', '01/22/2016', '8.1.0.63', 'utf-8-sig',
     ('xen.sys', 'xenbus.sys', 'xenfilt.sys')),
)  # fmt: skip
_HASH = '0123456789abcde'


def founding_files() -> dict[str, bytes]:
    """Five packages of Citrix in a store of Windows 7's layout."""
    files = {
        'Windows/INF/disk.inf': b'[Version]\r\nClass=DiskDrive\r\n',
        f'{STORE}/disk.inf_amd64_neutral_10ce25bbc5a9cc43/disk.inf': b'x',
        'Windows/System32/drivers/disk.sys': b'MZ',
        'Windows/System32/drivers/vioscsi.sys': b'MZ',
    }
    for number, entry in enumerate(_FOUNDING):
        published, name, kind, date, version, code, binaries = entry
        text = inf(
            name,
            kind,
            date,
            version,
            services=('xenbus', 'xenfilt') if name == 'xenbus' else None,
            files=binaries or None,
        )
        data = text.encode(code)
        place = f'{STORE}/{name}.inf_amd64_neutral_{_HASH}{number}'
        files[f'Windows/INF/{published}.inf'] = data
        files[f'Windows/INF/{published}.PNF'] = b'pnf'
        files[f'{place}/{name}.inf'] = data
        files[f'{place}/{name}.sys'] = b'MZ'
        files[f'{CATALOGS}/{published}.CAT'] = b'cat'
        files[
            f'Windows/System32/{name}_coinst_{version.replace(".", "_")}.dll'
        ] = b'MZ'
        for binary in binaries or (f'{name}.sys',):
            files[f'Windows/System32/drivers/{binary}'] = b'MZ'
    return files


def service(start: int, name: str, **texts: str) -> list[registry.Value]:
    """A kernel driver's values."""
    return [
        dword('Type', 1),
        dword('Start', start),
        sz('ImagePath', f'\\SystemRoot\\System32\\drivers\\{name}.sys'),
        *(sz(key, text) for key, text in texts.items()),
    ]


def control_set(name: str) -> windows_fakes.Tree:
    """One control set of the founding guest."""
    services = f'{name}\\Services'
    classes = f'{name}\\Control\\Class'
    critical = f'{name}\\Control\\CriticalDeviceDatabase'
    starts = {
        'disk': 0, 'partmgr': 0, 'volsnap': 0, 'fvevol': 0, 'rdyboost': 0,
        'xenbus': 0, 'xenfilt': 0, 'xenvbd': 0, 'xenvif': 3, 'xennet': 3,
        'xeniface': 3,
    }  # fmt: skip
    tree: windows_fakes.Tree = {
        f'{services}\\{item}': service(start, item)
        for item, start in starts.items()
    }
    tree |= {
        f'{classes}\\{SYSTEM_CLASS}': [
            sz('Class', 'System'),
            multi('UpperFilters', ['XENFILT']),
        ],
        f'{classes}\\{HDC_CLASS}': [multi('UpperFilters', ['xenfilt'])],
        f'{classes}\\{DISK_CLASS}': [multi('UpperFilters', ['partmgr'])],
        f'{classes}\\{VOLUME_CLASS}': [
            multi('LowerFilters', ['fvevol', 'rdyboost']),
            multi('UpperFilters', ['volsnap']),
        ],
        f'{services}\\xenagent': [dword('Type', 16), dword('Start', 2)],
        f'{services}\\eventlog\\System\\xenvbd': [dword('TypesSupported', 7)],
        f'{critical}\\PCI#VEN_5853&DEV_0001': [
            sz('Service', 'xenbus'),
            sz('ClassGUID', SYSTEM_CLASS),
        ],
        f'{critical}\\PCI#CC_0101': [sz('Service', 'pciide')],
    }
    return tree


def founding(
    extra: windows_fakes.Tree | None = None,
    files: Mapping[str, bytes] | None = None,
    software: windows_fakes.Tree | None = None,
    *,
    control_sets: tuple[str, ...] = ('ControlSet001', 'ControlSet002'),
) -> windows_fakes.FakeWindows:
    """The founding guest, with keys and files over what it has."""
    tree: windows_fakes.Tree = {
        'Select': [dword('Current', 1), dword('Default', 2)]
    }
    for name in control_sets:
        tree |= control_set(name)
    return windows_fakes.FakeWindows(
        {DEVICE: {**founding_files(), **(files or {})}},
        {
            DEVICE: {
                SYSTEM: {**tree, **(extra or {})},
                SOFTWARE: software or {},
            }
        },
    )


def guest(
    tree: windows_fakes.Tree, files: dict[str, bytes] | None = None
) -> windows_fakes.FakeWindows:
    """A guest with one control set."""
    select = {'Select': [dword('Current', 1)]}
    return windows_fakes.FakeWindows(
        {DEVICE: files or {}},
        {
            DEVICE: {
                SYSTEM: {
                    **select,
                    'ControlSet001': [],
                    **tree,
                }
            }
        },
    )


def diagnose(
    check: base.Check, fake: windows_fakes.FakeWindows
) -> list[model.Finding]:
    """What a check finds."""
    return list(check.diagnose(typing.cast(guest_room.Guest, fake)))


def repair(
    check: base.Check, fake: windows_fakes.FakeWindows
) -> list[model.Change]:
    """Repairs every finding; the changes must be the whole difference."""
    real = typing.cast(guest_room.Guest, fake)
    changes: list[model.Change] = []
    for finding in diagnose(check, fake):
        changes += check.repair(real, finding)
    edits = sum(len(hive.edits) for hive in fake.registry.hives)
    in_registry = [item for item in changes if item.path.startswith('HKLM')]
    assert len(in_registry) == edits, (in_registry, edits)
    fake.commit()
    return changes


def strings(
    fake: windows_fakes.FakeWindows, path: str, name: str
) -> tuple[str, ...] | None:
    """A value's texts in the hive's file; None where there is none."""
    for value in fake.hive(DEVICE, SYSTEM)[path]:
        if value.name == name:
            return value.strings
    return None
