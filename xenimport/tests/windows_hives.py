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


"""What the registry of a Windows guest holds, as trees for ``hives``.

Key by key as real hives have it (Windows 7 and 10, as far as they were
read), and as the INF files of the drivers write it; sources stand beside
each part. Nothing of the product is used.
"""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import datetime
import struct
import uuid

from xenimport.tests import hives

SYSTEM_CLASS = '{4d36e97d-e325-11ce-bfc1-08002be10318}'
HDC_CLASS = '{4d36e96a-e325-11ce-bfc1-08002be10318}'
SCSI_CLASS = '{4d36e97b-e325-11ce-bfc1-08002be10318}'
DISK_CLASS = '{4d36e967-e325-11ce-bfc1-08002be10318}'
VOLUME_CLASS = '{71a27cdd-812a-11d0-bec7-08002be2092f}'
NET_CLASS = '{4d36e972-e325-11ce-bfc1-08002be10318}'
CLASSES = {
    'System': SYSTEM_CLASS,
    'hdc': HDC_CLASS,
    'SCSIAdapter': SCSI_CLASS,
    'DiskDrive': DISK_CLASS,
    'Volume': VOLUME_CLASS,
    'Net': NET_CLASS,
}
#: The id that Windows gave the network card of Xen.
CARD = '{6A1E7A6B-34D5-4C39-9B0B-5A6B0E1C2D3F}'
EXPAND_SZ = 2

#: What stands for a value: text, number, texts, bytes, or type and data.
Given = str | int | Sequence[str] | bytes | tuple[int, bytes]


class Keys(dict[str, list[hives.Value]]):
    """A hive's keys with their values, for :func:`hives.write`."""

    def put(self, path: str, values: Mapping[str, Given]) -> None:
        """Set values of a key, over those of the same names."""
        held = {name.upper(): value for name, value in _named(self, path)}
        for name, given in values.items():
            held[name.upper()] = (name, *_value(given))
        self[path] = list(held.values())

    def drop(self, path: str) -> None:
        """Take a key away with all below it."""
        for key in [key for key in self if f'{key}\\'.startswith(f'{path}\\')]:
            del self[key]

    def drop_value(self, path: str, name: str) -> None:
        """Take one value away."""
        self[path] = [item for item in self[path] if item[0] != name]


def _named(keys: Keys, path: str) -> list[tuple[str, hives.Value]]:
    return [(value[0], value) for value in keys.get(path, [])]


def _value(given: Given) -> tuple[int, bytes]:
    if isinstance(given, str):
        return 1, hives.sz(given)
    if isinstance(given, int):
        return 4, hives.dword(given)
    if isinstance(given, bytes):
        return 3, given
    if isinstance(given, tuple) and isinstance(given[0], int):
        return given
    return 7, hives.multi_sz(*given)


def expand(text: str) -> tuple[int, bytes]:
    """A REG_EXPAND_SZ."""
    return EXPAND_SZ, hives.sz(text)


@dataclasses.dataclass(frozen=True)
class Release:
    """A release of Windows.

    :ivar version: ``CurrentVersion``; it stays 6.3 since Windows 10
    :ivar numbers: the true version, of Windows 10 and later
    :ivar database: whether drivers are found through ``DriverDatabase``;
        else it is ``CriticalDeviceDatabase``
    """

    product: str
    edition: str
    version: str
    build: int
    numbers: tuple[int, int] | None = None
    server: bool = True
    architecture: str = 'amd64'
    service_pack: str = ''

    @property
    def database(self) -> bool:
        return self.version not in ('6.0', '6.1')

    @property
    def has_volume_driver(self) -> bool:
        """Whether volume.sys is there; since Windows 10."""
        return self.numbers is not None


SERVER_2008_R2 = Release(
    'Windows Server 2008 R2 Standard',
    'ServerStandard',
    '6.1',
    7601,
    service_pack='Service Pack 1',
)
WINDOWS_7_X86 = Release(
    'Windows 7 Professional',
    'Professional',
    '6.1',
    7601,
    server=False,
    architecture='x86',
    service_pack='Service Pack 1',
)
WINDOWS_10 = Release(
    'Windows 10 Pro', 'Professional', '6.3', 19045, (10, 0), server=False
)
SERVER_2019 = Release(
    'Windows Server 2019 Standard', 'ServerStandard', '6.3', 17763, (10, 0)
)


@dataclasses.dataclass(frozen=True)
class Package:
    """A driver package that did not come with Windows.

    :ivar published: ``oem2.inf``
    :ivar name: of its INF and its catalog, ``xennet``
    :ivar services: with the Start that the INF gives
    :ivar ids: of devices, ``PCI\\VEN_5853&DEV_0001``, with the service
    :ivar files: that it puts into \\Windows\\System32\\drivers
    """

    published: str
    name: str
    class_name: str
    provider: str
    date: datetime.date
    version: str
    services: Mapping[str, int]
    ids: Mapping[str, str]
    files: tuple[str, ...]
    extra: tuple[str, ...] = ()

    def stored(self, release: Release) -> str:
        """The name of its directory in the driver store."""
        middle = '' if release.database else 'neutral_'
        digits = uuid.uuid5(uuid.NAMESPACE_OID, self.name).hex[:16]
        return f'{self.name}.inf_{release.architecture}_{middle}{digits}'

    @property
    def is_for_boot(self) -> bool:
        return 0 in self.services.values()


#: Drivers that come with Windows and start with it: Start, Group, and
#: Type where it is not a kernel driver. Of real hives.
_INBOX = {
    'ACPI': (0, 'Core'),
    'pci': (0, 'Boot Bus Extender'),
    'msisadrv': (0, 'Boot Bus Extender'),
    'vdrvroot': (0, 'Boot Bus Extender'),
    'partmgr': (0, 'Boot Bus Extender'),
    'volmgr': (0, 'System Bus Extender'),
    'volmgrx': (0, 'System Bus Extender'),
    'mountmgr': (0, 'System Bus Extender'),
    'intelide': (0, 'System Bus Extender'),
    'pciide': (0, 'System Bus Extender'),
    'atapi': (0, 'SCSI Miniport'),
    'disk': (0, 'SCSI Class'),
    'volsnap': (0, ''),
    'fvevol': (0, ''),
    'rdyboost': (0, ''),
    'CLFS': (0, 'Filter'),
    'Wdf01000': (0, 'WdfLoadGroup'),
    'KSecDD': (0, 'Base'),
    'CNG': (0, 'Base'),
    'NDIS': (0, 'NDIS Wrapper'),
    'Tcpip': (0, 'PNP_TDI'),
    'E1G60': (3, 'NDIS'),
    'cdrom': (1, 'SCSI CDROM Class'),
    'kbdclass': (3, 'Keyboard Class'),
    'usbuhci': (3, 'Base'),
}
_FILES = {
    'E1G60': {'amd64': 'E1G6032E.sys', 'x86': 'E1G60I32.sys'},
    'NDIS': {'amd64': 'ndis.sys', 'x86': 'ndis.sys'},
}
#: Devices of KVM's machines for which Windows has a driver of its own.
_BOUND = {
    'PCI\\VEN_8086&DEV_7010': ('intelide', HDC_CLASS, 'mshdc.inf'),
    'PCI\\VEN_8086&DEV_7111': ('intelide', HDC_CLASS, 'mshdc.inf'),
    'PCI\\CC_0101': ('pciide', HDC_CLASS, 'mshdc.inf'),
    'PCI\\CC_010601': ('AHCI', HDC_CLASS, 'mshdc.inf'),
    'PCI\\VEN_8086&DEV_1237': ('', SYSTEM_CLASS, 'machine.inf'),
    'PCI\\VEN_8086&DEV_100E': ('E1G60', NET_CLASS, 'nete1g3e.inf'),
    'PCI\\VEN_8086&DEV_100F': ('E1G60', NET_CLASS, 'nete1g3e.inf'),
    'PCI\\VEN_8086&DEV_10D3': ('e1i65x64', NET_CLASS, 'net1ic64.inf'),
}


def inbox_drivers(release: Release) -> dict[str, tuple[int, str]]:
    """Services of Windows' own drivers: Start and Group."""
    found = dict(_INBOX)
    found[_ahci(release)] = (0, 'SCSI Miniport')
    if release.has_volume_driver:
        found['volume'] = (0, '')
    return found


def _ahci(release: Release) -> str:
    return 'storahci' if release.database else 'msahci'


def driver_file(name: str, release: Release) -> str:
    """The file of a driver that comes with Windows."""
    files = _FILES.get(name)
    return files[release.architecture] if files else f'{name.lower()}.sys'


def mbr_volume(signature: int, offset: int) -> bytes:
    """A volume as MountedDevices has it: signature and first byte."""
    return struct.pack('<IQ', signature, offset)


def gpt_volume(partition: str) -> bytes:
    """The same on a GPT: a mark and the partition's GUID."""
    return b'DMIO:ID:' + uuid.UUID(partition).bytes_le


def system(release: Release, mounted: Mapping[str, bytes]) -> Keys:
    """HKLM\\SYSTEM of a Windows without drivers of others.

    :param mounted: volumes by their drive letter
    """
    keys = Keys()
    keys.put(
        'Select',
        {'Current': 1, 'Default': 1, 'Failed': 0, 'LastKnownGood': 2},
    )
    keys.put(
        'Setup',
        {
            'CmdLine': '',
            'SetupType': 0,
            'SystemSetupInProgress': 0,
            'OobeInProgress': 0,
            'RespecializeCmdLine': 'Sysprep\\sysprep.exe /respecialize',
            'SystemPartition': '\\Device\\HarddiskVolume1',
        },
    )
    keys.put(
        'MountedDevices',
        {f'\\DosDevices\\{letter}:': data for letter, data in mounted.items()},
    )
    for name in ('ControlSet001', 'ControlSet002'):
        _put_control(keys, name, release)
        _put_services(keys, name, release)
        if not release.database:
            _put_critical(keys, name, release)
    if release.database:
        _put_database(keys, release)
    return keys


def _put_control(keys: Keys, control_set: str, release: Release) -> None:
    control = f'{control_set}\\Control'
    keys.put(
        control,
        {
            'CurrentUser': 'USERNAME',
            'SystemBootDevice': 'multi(0)disk(0)rdisk(0)partition(2)',
        },
    )
    kind = 'ServerNT' if release.server else 'WinNT'
    keys.put(f'{control}\\ProductOptions', {'ProductType': kind})
    keys.put(
        f'{control}\\ComputerName\\ComputerName', {'ComputerName': 'XENGUEST'}
    )
    keys.put(
        f'{control}\\TimeZoneInformation',
        {
            'Bias': 0xFFFFFFC4,
            'StandardName': '@tzres.dll,-322',
            'TimeZoneKeyName': 'W. Europe Standard Time',
        },
    )
    keys.put(
        f'{control}\\CrashControl', {'AutoReboot': 1, 'CrashDumpEnabled': 2}
    )
    keys.put(
        f'{control}\\Session Manager\\Power',
        {'HiberbootEnabled': 0},
    )
    for name, guid in CLASSES.items():
        keys.put(f'{control}\\Class\\{guid}', {'Class': name, '': name})
    keys.put(f'{control}\\Class\\{DISK_CLASS}', {'UpperFilters': ['partmgr']})
    keys.put(
        f'{control}\\Class\\{VOLUME_CLASS}',
        {
            'UpperFilters': ['volsnap'],
            'LowerFilters': ['fvevol', 'rdyboost'],
        },
    )


def _put_services(keys: Keys, control_set: str, release: Release) -> None:
    for name, (start, group) in inbox_drivers(release).items():
        values: dict[str, Given] = {
            'Start': start,
            'Type': 1,
            'ErrorControl': 3 if start == 0 else 1,
            'DisplayName': f'@%SystemRoot%\\system32\\drivers\\{name}.sys',
            'ImagePath': expand(
                f'system32\\drivers\\{driver_file(name, release)}'
            ),
        }
        if group:
            values['Group'] = group
        if name == 'volmgrx':
            # The form that most drivers of Windows 10 have.
            values['ImagePath'] = expand(
                '\\SystemRoot\\System32\\drivers\\volmgrx.sys'
            )
        if name == 'CLFS':
            values['ImagePath'] = expand('System32\\CLFS.sys')
        keys.put(f'{control_set}\\Services\\{name}', values)
    keys.put(
        f'{control_set}\\Services\\Ntfs',
        {
            'Start': 1,
            'Type': 2,
            'ErrorControl': 1,
            'Group': 'Boot File System',
        },
    )
    keys.put(f'{control_set}\\Services\\partmgr\\Parameters', {'SanPolicy': 1})
    keys.put(
        f'{control_set}\\Services\\Tcpip\\Parameters',
        {'Hostname': 'xenguest', 'NV Hostname': 'xenguest'},
    )


def _put_critical(keys: Keys, control_set: str, release: Release) -> None:
    """What Windows 7 starts a disk's controller with."""
    database = f'{control_set}\\Control\\CriticalDeviceDatabase'
    for device, (service, guid, _inf) in _BOUND.items():
        service = _ahci(release) if service == 'AHCI' else service
        if guid == HDC_CLASS:
            keys.put(
                f'{database}\\{device.replace(chr(92), "#")}',
                {'Service': service, 'ClassGUID': guid},
            )
    keys.put(
        f'{database}\\GenDisk', {'Service': 'disk', 'ClassGUID': DISK_CLASS}
    )


def _put_database(keys: Keys, release: Release) -> None:
    """What Windows 8 and later do: a device, an INF, a configuration."""
    keys.put(
        'DriverDatabase',
        {'Version': 0x100, 'Architecture': _machine(release)},
    )
    bound: dict[str, dict[str, str]] = {}
    for device, (service, guid, inf) in _BOUND.items():
        service = _ahci(release) if service == 'AHCI' else service
        if guid == HDC_CLASS or not service:
            bound.setdefault(inf, {})[device] = service
    for inf, ids in bound.items():
        name = f'{inf}_{release.architecture}_0123456789abcdef'
        guid = HDC_CLASS if inf == 'mshdc.inf' else SYSTEM_CLASS
        put_package(
            keys,
            inf,
            name,
            ids,
            {
                'Version': version_record(
                    release, guid, datetime.date(2006, 6, 21),
                    f'10.0.{release.build}.1', inbox=True,
                ),
                'InfName': inf,
                'Provider': 'Microsoft',
                'SignerScore': 0x0D000003,
            },
        )  # fmt: skip


def _machine(release: Release) -> int:
    return {'amd64': 9, 'x86': 0}[release.architecture]


def version_record(
    release: Release,
    class_guid: str,
    date: datetime.date,
    version: str,
    *,
    inbox: bool = False,
) -> bytes:
    """Version of a package, as real hives of Windows 10 have it."""
    ticks = (date - datetime.date(1601, 1, 1)).days * 86400 * 10_000_000
    numbers = [int(part) for part in version.split('.')]
    return (
        (b'\xff\xff' if inbox else b'\x00\xff')
        + bytes((_machine(release), 0, 0, 0, 0, 0))
        + uuid.UUID(class_guid).bytes_le
        + struct.pack('<Q4H', ticks, *reversed(numbers))
        + bytes(8)
    )


def put_package(
    keys: Keys,
    published: str,
    stored: str,
    ids: Mapping[str, str],
    record: Mapping[str, Given],
) -> None:
    """A package in a DriverDatabase.

    :param ids: devices with their service, '' where there is none
    :param record: values of its key below DriverPackages
    """
    database = 'DriverDatabase'
    keys.put(
        f'{database}\\DriverInfFiles\\{published}',
        {'': [stored], 'Active': stored},
    )
    package = f'{database}\\DriverPackages\\{stored}'
    keys.put(package, {'': published, **record})
    for device, service in ids.items():
        configuration = f'{service or "NULL"}_Inst'
        values: dict[str, Given] = {'ConfigScope': 0}
        if service:
            values['Service'] = service
        keys.put(f'{package}\\Configurations\\{configuration}', values)
        keys.put(
            f'{package}\\Descriptors\\{device}',
            {'Configuration': configuration},
        )
        keys.put(
            f'{database}\\DeviceIds\\{device}',
            {published: bytes.fromhex('01ff0000')},
        )


def install(
    keys: Keys,
    release: Release,
    packages: Iterable[Package],
    control_sets: Iterable[str] = ('ControlSet001', 'ControlSet002'),
) -> None:
    """Install driver packages as Windows does: services and bindings."""
    packages = tuple(packages)
    for package in packages:
        for control_set in control_sets:
            for service, start in package.services.items():
                keys.put(
                    f'{control_set}\\Services\\{service}',
                    {
                        'Type': 1,
                        'Start': start,
                        'ErrorControl': 1,
                        'Group': _group(service, package),
                        'ImagePath': expand(
                            f'\\SystemRoot\\System32\\drivers\\{service}.sys'
                        ),
                        'Owners': [package.published],
                        'DisplayName': f'@{package.published},%{service}%',
                    },
                )
            if package.is_for_boot and not release.database:
                _put_critical_ids(keys, control_set, package)
    if release.database:
        put_database(keys, release, filter(_for_boot, packages))


def _for_boot(package: Package) -> bool:
    return package.is_for_boot


def _group(service: str, package: Package) -> str:
    if package.class_name == 'SCSIAdapter':
        return 'SCSI miniport'
    if package.class_name == 'Net':
        return 'NDIS'
    return 'Boot Bus Extender' if package.is_for_boot else 'Base'


def _put_critical_ids(keys: Keys, control_set: str, package: Package) -> None:
    for device, service in package.ids.items():
        if package.services[service] == 0:
            name = device.replace('\\', '#')
            keys.put(
                f'{control_set}\\Control\\CriticalDeviceDatabase\\{name}',
                {
                    'Service': service,
                    'ClassGUID': CLASSES[package.class_name],
                    'DriverPackageId': package.name,
                },
            )


def put_database(
    keys: Keys, release: Release, packages: Iterable[Package]
) -> None:
    """Packages in the DriverDatabase of SYSTEM or of DRIVERS."""
    taken = 0
    for package in packages:
        put_package(
            keys,
            package.published,
            package.stored(release),
            package.ids,
            {
                'Version': version_record(
                    release,
                    CLASSES[package.class_name],
                    package.date,
                    package.version,
                ),
                'InfName': f'{package.name}.inf',
                'Provider': package.provider,
                'Catalog': f'{package.name}.cat',
                'SignerName': 'Microsoft Windows Hardware Compatibility '
                'Publisher',
                'SignerScore': 0x0D000005,
                'StatusFlags': 0x12,
            },
        )
        number = package.published.removeprefix('oem').removesuffix('.inf')
        taken |= 0x80 >> int(number) % 8 << 8 * (int(number) // 8)
    if taken:
        keys.put('DriverDatabase', {'OemInfMap': taken.to_bytes(4, 'little')})


def drivers(release: Release, packages: Iterable[Package]) -> Keys:
    """The DRIVERS hive: packages that are not needed at boot."""
    keys = Keys()
    keys.put(
        'DriverDatabase',
        {'Version': 0x100, 'Architecture': _machine(release)},
    )
    others = [package for package in packages if not package.is_for_boot]
    put_database(keys, release, others)
    return keys


def software(release: Release) -> Keys:
    """HKLM\\SOFTWARE."""
    keys = Keys()
    version: dict[str, Given] = {
        'ProductName': release.product,
        'EditionID': release.edition,
        'CurrentVersion': release.version,
        'CurrentBuild': str(release.build),
        'CurrentBuildNumber': str(release.build),
        'InstallationType': 'Server' if release.server else 'Client',
        'SystemRoot': 'C:\\Windows',
        'RegisteredOwner': 'Windows User',
    }
    if release.service_pack:
        version['CSDVersion'] = release.service_pack
    if release.numbers:
        version['CurrentMajorVersionNumber'] = release.numbers[0]
        version['CurrentMinorVersionNumber'] = release.numbers[1]
    keys.put('Microsoft\\Windows NT\\CurrentVersion', version)
    keys.put(
        'Microsoft\\Windows\\CurrentVersion',
        {
            'ProgramFilesDir': 'C:\\Program Files',
            'DevicePath': expand('%SystemRoot%\\inf'),
        },
    )
    keys.put(
        'Microsoft\\Windows\\CurrentVersion\\Uninstall\\Notepad++',
        {'DisplayName': 'Notepad++ (64-bit x64)', 'DisplayVersion': '8.6'},
    )
    return keys


def put_update(keys: Keys, release: Release) -> None:
    """The update by which Windows 7 learned signatures with SHA-2."""
    name = (
        'Package_for_KB4474419~31bf3856ad364e35~'
        f'{release.architecture}~~6.1.3.2'
    )
    keys.put(
        'Microsoft\\Windows\\CurrentVersion\\Component Based Servicing\\'
        f'Packages\\{name}',
        {'CurrentState': 0x70, 'InstallClient': 'WindowsUpdateAgent'},
    )


def fill(keys: Keys, path: str, count: int) -> None:
    """Add keys that mean nothing, so that a hive has a real one's size."""
    for number in range(count):
        identity = uuid.uuid5(uuid.NAMESPACE_OID, str(number))
        keys[f'{path}\\{{{identity}}}'] = [
            ('', 1, hives.sz(f'Component {number} of this machine')),
            ('ThreadingModel', 1, hives.sz('Apartment')),
        ]
