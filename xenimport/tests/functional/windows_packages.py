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


"""Driver packages of Xen and of KVM, as their INF files install them.

Sources: the INF files of win-xenbus, win-xenvbd and their siblings (Xen
Project, XenServer), of the GPLPV drivers and of virtio-win; the five rows
are those that ``dism /get-drivers`` printed for the Windows Server 2008
R2 that this project began with. Nothing of the product is used.
"""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Mapping
import datetime

from xenimport.tests import windows_drivers
from xenimport.tests import windows_hives

_STORE = 'Windows/System32/DriverStore/FileRepository'
_CATALOGS = 'Windows/System32/CatRoot/{F750E6C3-38EE-11D1-85E5-00C04FC295EE}'
_CITRIX = 'Citrix'
_RED_HAT = 'Red Hat, Inc.'

XENBUS = windows_hives.Package(
    'oem6.inf', 'xenbus', 'System', _CITRIX, datetime.date(2016, 1, 22),
    '8.1.0.63',
    {'xenbus': 0, 'xenfilt': 0},
    {
        'PCI\\VEN_5853&DEV_0001': 'xenbus',
        'PCI\\VEN_5853&DEV_0002': 'xenbus',
        'PCI\\VEN_5853&DEV_C000&SUBSYS_C0005853&REV_01': 'xenbus',
    },
    ('xen.sys', 'xenbus.sys', 'xenfilt.sys'),
    ('xenbus_coinst_8_1_0_63.dll',),
)  # fmt: skip
XENVBD = windows_hives.Package(
    'oem4.inf', 'xenvbd', 'SCSIAdapter', _CITRIX, datetime.date(2016, 2, 29),
    '8.1.0.130',
    {'xenvbd': 0, 'xendisk': 0},
    {
        f'XENBUS\\VEN_XS{digits}&DEV_VBD&REV_08000009': 'xenvbd'
        for digits in ('0001', '0002', 'C000')
    },
    ('xenvbd.sys', 'xencrsh.sys', 'xendisk.sys'),
    ('xenvbd_coinst_8_1_0_130.dll',),
)  # fmt: skip
XENNET = windows_hives.Package(
    'oem2.inf', 'xennet', 'Net', _CITRIX, datetime.date(2016, 2, 24),
    '8.1.0.42',
    {'xennet': 3},
    {'XENVIF\\VEN_XS0001&DEV_NET&REV_08000009': 'xennet'},
    ('xennet.sys',),
    ('xennet_coinst_8_1_0_42.dll',),
)  # fmt: skip
XENVIF = windows_hives.Package(
    'oem3.inf', 'xenvif', 'System', _CITRIX, datetime.date(2016, 3, 23),
    '8.1.0.62',
    {'xenvif': 3},
    {'XENBUS\\VEN_XS0001&DEV_VIF&REV_0800000B': 'xenvif'},
    ('xenvif.sys',),
    ('xenvif_coinst_8_1_0_62.dll',),
)  # fmt: skip
XENIFACE = windows_hives.Package(
    'oem5.inf', 'xeniface', 'System', _CITRIX, datetime.date(2016, 1, 22),
    '8.1.0.26',
    {'xeniface': 3},
    {'XENBUS\\VEN_XS0001&DEV_IFACE&REV_08000004': 'xeniface'},
    ('xeniface.sys',),
    ('xeniface_coinst_8_1_0_26.dll',),
)  # fmt: skip
#: In the order of their published names: oem2.inf to oem6.inf.
CITRIX = (XENNET, XENVIF, XENVBD, XENIFACE, XENBUS)
#: The same as dism prints it: Published, Original, Class, Date, Version.
CITRIX_ROWS = (
    ('oem2.inf', 'xennet.inf', 'Net', '2/24/2016', '8.1.0.42'),
    ('oem3.inf', 'xenvif.inf', 'System', '3/23/2016', '8.1.0.62'),
    ('oem4.inf', 'xenvbd.inf', 'SCSIAdapter', '2/29/2016', '8.1.0.130'),
    ('oem5.inf', 'xeniface.inf', 'System', '1/22/2016', '8.1.0.26'),
    ('oem6.inf', 'xenbus.inf', 'System', '1/22/2016', '8.1.0.63'),
)


def inf(package: windows_hives.Package) -> str:
    """The INF of a package, in the manner of XenServer's."""
    kind = package.class_name
    lines = [
        '; made for a test',
        '[Version]',
        'Signature="$Windows NT$"',
        f'Class={kind}',
        f'ClassGUID={windows_hives.CLASSES[kind]}',
        'Provider=%Vendor%',
        f'CatalogFile={package.name}.cat',
        f'DriverVer={package.date:%m/%d/%Y},{package.version}',
        '[DestinationDirs]',
        'DefaultDestDir=12',
        'CoInst_CopyFiles=11',
        '[Manufacturer]',
        '%Vendor%=Inst,NTamd64,NTx86',
    ]
    for suffix in ('NTamd64', 'NTx86'):
        lines.append(f'[Inst.{suffix}]')
        for device in package.ids:
            lines.append(f'%Device%={package.name}_Inst,{device}')
    lines += [f'[{package.name}_Inst]', f'CopyFiles={package.name}_Copy']
    lines += [f'[{package.name}_Copy]', *package.files]
    if package.extra:
        lines += [
            f'[{package.name}_Inst.CoInstallers]',
            'CopyFiles=CoInst_CopyFiles',
            '[CoInst_CopyFiles]',
        ]
    for file in package.extra:
        plain = file.partition('_coinst_')[0]
        lines.append(f'{file},{plain}_coinst.dll')
    lines += [f'[{package.name}_Inst.Services]']
    for number, service in enumerate(package.services):
        flags = '2' if number == 0 else ''
        lines.append(f'AddService={service},{flags},{service}_Service')
    for service, start in package.services.items():
        lines += [
            f'[{service}_Service]',
            'ServiceType=1',
            f'StartType={start}',
            'ErrorControl=1',
            f'ServiceBinary=%12%\\{service}.sys',
        ]
    lines += ['[SourceDisksFiles]', *(f'{name}=1' for name in package.files)]
    lines += ['[Strings]', f'Vendor="{package.provider}"', 'Device="Device"']
    return '\r\n'.join(lines) + '\r\n'


def files(
    packages: Iterable[windows_hives.Package],
    release: windows_hives.Release,
    driver: bytes,
) -> dict[str, bytes]:
    """The files of installed packages, on the volume with Windows.

    :param driver: the content of each driver
    """
    made: dict[str, bytes] = {}
    for package in packages:
        content = _content(package, release, driver)
        text = content[f'{package.name}.inf']
        catalog = content[f'{package.name}.cat']
        stem = package.published.removesuffix('.inf')
        store = f'{_STORE}/{package.stored(release)}'
        made[f'Windows/INF/{stem}.inf'] = text
        made[f'Windows/INF/{stem}.PNF'] = b'\1\1\2\0'.ljust(2048, b'\0')
        made[f'{_CATALOGS}/{stem}.CAT'] = catalog
        made[f'{store}/{package.name}.inf'] = text
        made[f'{store}/{package.name}.PNF'] = b'\1\1\2\0'.ljust(2048, b'\0')
        made[f'{store}/{package.name}.cat'] = catalog
        for name in package.files:
            made[f'{store}/{name}'] = content[name]
            made[f'Windows/System32/drivers/{name}'] = content[name]
        for name in package.extra:
            made[f'{store}/{name.partition("_coinst")[0]}_coinst.dll'] = driver
            made[f'Windows/System32/{name}'] = driver
    return made


def _content(
    package: windows_hives.Package,
    release: windows_hives.Release,
    driver: bytes,
) -> dict[str, bytes]:
    """INF, catalog and drivers of a package, by name."""
    if package in VIRTIO:
        return windows_drivers.package(package.name, release.architecture)
    return {
        f'{package.name}.inf': inf(package).encode('utf-16'),
        f'{package.name}.cat': b'0\x82'.ljust(1024, b'\1'),
        **dict.fromkeys(package.files, driver),
    }


def put_xen(
    keys: windows_hives.Keys,
    control_sets: Iterable[str] = ('ControlSet001', 'ControlSet002'),
) -> None:
    """What Xen's drivers and their installer write beside their INFs.

    Filters of classes and of devices, the unplugging of emulated disks,
    services of programs, the devices that were there.
    """
    for name in control_sets:
        classes = f'{name}\\Control\\Class'
        for guid in (windows_hives.SYSTEM_CLASS, windows_hives.HDC_CLASS):
            keys.put(f'{classes}\\{guid}', {'UpperFilters': ['XENFILT']})
        services = f'{name}\\Services'
        keys.put(f'{services}\\XEN\\Unplug', {'DISKS': 1, 'NICS': 1})
        keys.put(f'{services}\\XEN\\ForceUnplug', {'DISKS': 1})
        keys.put(
            f'{services}\\xenfilt\\Parameters',
            {
                'ActiveDeviceID': 'PCI\\VEN_5853&DEV_0001&SUBSYS_00015853',
                'ActiveInstanceID': '3&267a616a&0&18',
            },
        )
        keys.put(
            f'{services}\\xenagent',
            {
                'Type': 16,
                'Start': 2,
                'ErrorControl': 1,
                'ImagePath': windows_hives.expand(
                    '%windir%\\system32\\xenagent_8_1_0_26.exe'
                ),
                'ObjectName': 'LocalSystem',
            },
        )
        keys.put(
            f'{services}\\XenSvc',
            {
                'Type': 16,
                'Start': 2,
                'ErrorControl': 1,
                'ImagePath': windows_hives.expand(
                    '"C:\\Program Files\\Citrix\\XenTools\\xenguestagent.exe"'
                ),
                'ObjectName': 'LocalSystem',
            },
        )
        _put_devices(keys, f'{name}\\Enum')


def _put_devices(keys: windows_hives.Keys, enum: str) -> None:
    devices: dict[str, dict[str, windows_hives.Given]] = {
        'PCI\\VEN_5853&DEV_0001&SUBSYS_00015853&REV_01\\3&267a616a&0&18': {
            'Service': 'xenbus',
            'ClassGUID': windows_hives.SYSTEM_CLASS,
        },
        'XENBUS\\VEN_XS0001&DEV_VBD&REV_08000009\\_': {
            'Service': 'xenvbd',
            'ClassGUID': windows_hives.SCSI_CLASS,
        },
        'SCSI\\Disk&Ven_XENSRC&Prod_PVDISK&Rev_2.0\\4&1f2c5f8&0&000000': {
            'Service': 'disk',
            'ClassGUID': windows_hives.DISK_CLASS,
            'UpperFilters': ['xendisk'],
        },
    }
    for path, values in devices.items():
        keys.put(f'{enum}\\{path}', values)


def put_tools(keys: windows_hives.Keys) -> None:
    """What the installer of XenServer's tools writes into SOFTWARE."""
    keys.put(
        'Microsoft\\Windows\\CurrentVersion\\Uninstall\\'
        '{D3E2B4D5-5B62-4D46-9D1B-5AC3FB7D5D33}',
        {
            'DisplayName': 'Citrix XenServer Tools Installer',
            'DisplayVersion': '7.0.49.0',
            'Publisher': 'Citrix',
        },
    )
    keys.put('Citrix\\XenTools', {'MajorVersion': 7, 'MinorVersion': 0})


def put_static_address(
    keys: windows_hives.Keys, control_sets: Iterable[str] = ('ControlSet001',)
) -> None:
    """A static address on the network card of Xen."""
    for name in control_sets:
        keys.put(
            f'{name}\\Control\\Class\\{windows_hives.NET_CLASS}\\0012',
            {
                'NetCfgInstanceId': windows_hives.CARD,
                'MatchingDeviceId': 'xenvif\\ven_xs0001&dev_net&rev_08000009',
                'DriverDesc': 'XenServer PV Network Device',
            },
        )
        keys.put(
            f'{name}\\Services\\Tcpip\\Parameters\\Interfaces\\'
            f'{windows_hives.CARD}',
            {
                'EnableDHCP': 0,
                'IPAddress': ['192.0.2.15'],
                'SubnetMask': ['255.255.255.0'],
                'DefaultGateway': ['192.0.2.1'],
                'NameServer': '192.0.2.53',
            },
        )


def _virtio(
    published: str,
    name: str,
    class_name: str,
    start: int,
    ids: Mapping[str, str],
) -> windows_hives.Package:
    return windows_hives.Package(
        published, name, class_name, _RED_HAT, datetime.date(2024, 8, 19),
        '100.95.104.26200', {name: start}, ids, (f'{name}.sys',),
    )  # fmt: skip


def _ids(name: str, old: str, new: str, subsystem: str) -> dict[str, str]:
    """A device's ids as virtio-win's INFs list them."""
    return {
        f'PCI\\VEN_1AF4&DEV_{old}&SUBSYS_{subsystem}1AF4&REV_00': name,
        f'PCI\\VEN_1AF4&DEV_{old}': name,
        f'PCI\\VEN_1AF4&DEV_{new}&SUBSYS_11001AF4&REV_01': name,
        f'PCI\\VEN_1AF4&DEV_{new}': name,
    }


VIOSTOR = _virtio(
    'oem10.inf', 'viostor', 'SCSIAdapter', 0,
    _ids('viostor', '1001', '1042', '0002'),
)  # fmt: skip
VIOSCSI = _virtio(
    'oem11.inf', 'vioscsi', 'SCSIAdapter', 0,
    _ids('vioscsi', '1004', '1048', '0008'),
)  # fmt: skip
NETKVM = _virtio(
    'oem12.inf', 'netkvm', 'Net', 3,
    _ids('netkvm', '1000', '1041', '0001'),
)  # fmt: skip
VIRTIO = (VIOSTOR, VIOSCSI, NETKVM)
