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


"""The families of Xen drivers that Windows guests have, as data.

A family is what one vendor installs: services, filters, driver packages,
programs. Names are compared without regard to case. ``source`` says where
the names come from; ``proved`` is False where that was hearsay and no
source or hive was read.
"""

from __future__ import annotations

from collections.abc import Iterable
import dataclasses
import functools
import re

from xenimport.remediation.windows import services

BOOT = services.BOOT
AUTOMATIC = services.AUTOMATIC
MANUAL = services.MANUAL


@dataclasses.dataclass(frozen=True)
class Family:
    """One vendor's drivers.

    :ivar drivers: services of drivers, with the Start that their INF gives
    :ivar user_services: services that are programs
    :ivar filters: of the drivers, those that stand in filter lists
    :ivar files: binaries without a service of their own, no suffix
    :ivar catalogs: CatalogFile of their INFs, no suffix
    :ivar providers: parts of an INF's Provider, lower case; empty where
        every provider will do
    :ivar products: parts of the name of an installed program, lower case
    :ivar upgrade_codes: of their MSI packages
    :ivar source: who says so
    :ivar proved: whether a source was read
    """

    name: str
    drivers: dict[str, int]
    user_services: tuple[str, ...] = ()
    filters: tuple[str, ...] = ()
    files: tuple[str, ...] = ()
    catalogs: tuple[str, ...] = ()
    providers: tuple[str, ...] = ()
    products: tuple[str, ...] = ()
    upgrade_codes: tuple[str, ...] = ()
    source: str = ''
    proved: bool = True


_XEN_PROJECT_CATALOGS = (
    'xenbus',
    'xencons',
    'xenhid',
    'xeniface',
    'xennet',
    'xenvbd',
    'xenvif',
    'xenvkbd',
    'xstdvga',
    'xendevice',
    'xenclass',
)

#: The first of those that fit is taken; the last of them fits any vendor.
FAMILIES: tuple[Family, ...] = (
    Family(
        'GPLPV',
        {
            'XenPci': BOOT,
            'XenHide': BOOT,
            'XenVbd': BOOT,
            'XenVbdFilter': BOOT,
            'XenNet': MANUAL,
            'XenScsi': MANUAL,
            'XenStub': MANUAL,
            'XenUsb': MANUAL,
            'XenCache': MANUAL,
        },
        user_services=('ShutdownMon',),
        filters=('XenPci', 'XenHide', 'XenVbdFilter'),
        catalogs=(
            'xengplpv',
            'xenpci',
            'xenvbd',
            'xennet',
            'xenscsi',
            'xenstub',
            'xenusb',
        ),
        providers=('gplpv', 'gpl pv', 'james harper', 'ejbdigital'),
        products=('gplpv',),
        source='the .inx files and the installer scripts of the GPLPV drivers',
    ),
    Family(
        'Red Hat Xen PV',
        {'rhelscsi': BOOT, 'rhelnet': MANUAL, 'rhelfltr': BOOT},
        filters=('rhelfltr',),
        catalogs=('rhelscsi', 'rhelnet', 'rhelfltr'),
        products=('red hat paravirtualized xen drivers',),
        source='"Paravirtual drivers for Windows instances" of the Amazon '
        'EC2 user guide (rhelscsi, rhelnet); virt-v2v (rhelscsi, the name '
        'of the program); rhelfltr and the catalogs by hearsay',
        proved=False,
    ),
    Family(
        'SUSE VMDP',
        {
            'XenBus': BOOT,
            'XenBlk': BOOT,
            'XenScsi': BOOT,
            'XenNet': MANUAL,
        },
        catalogs=('xenbus', 'xenblk', 'xenscsi', 'xennet'),
        providers=('novell', 'suse', 'oracle'),
        products=(
            'suse drivers for windows on xen',
            'oracle vm windows pv drivers',
        ),
        source='xen/inf of github.com/SUSE/vmdp; that Oracle uses the same '
        'names is hearsay. The pvvx drivers of VMDP serve KVM too, and '
        'stay',
    ),
    Family(
        'AWS PV',
        {
            'xenbus': BOOT,
            'xenfilt': BOOT,
            'xenvbd': BOOT,
            'xendisk': BOOT,
            'xenvif': MANUAL,
            'xennet': MANUAL,
            'xeniface': MANUAL,
        },
        user_services=('LiteAgent', 'AWSLiteAgent'),
        filters=('xenfilt', 'xendisk'),
        files=('xen', 'xencrsh'),
        catalogs=_XEN_PROJECT_CATALOGS,
        providers=('amazon',),
        products=('aws pv drivers',),
        source='"Paravirtual drivers for Windows instances" of the Amazon '
        'EC2 user guide (services, LiteAgent); filters, catalogs and '
        'AWSLiteAgent by hearsay',
        proved=False,
    ),
    Family(
        'legacy Citrix XenServer',
        {
            'xenevtchn': BOOT,
            'xevtchn': BOOT,
            'xenutil': BOOT,
            'scsifilt': BOOT,
            'xennet6': MANUAL,
            'xenvesa': MANUAL,
        },
        filters=('scsifilt',),
        catalogs=('xenevtchn', 'xevtchn', 'xennet6', 'xenvesa', 'scsifilt'),
        source='XenBootFix (scsifilt); the Amazon EC2 user guide '
        '(xenevtchn, xennet6); the others by hearsay',
        proved=False,
    ),
    Family(
        'Xen Project',
        {
            'xenbus': BOOT,
            'xenfilt': BOOT,
            'xenvbd': BOOT,
            'xendisk': BOOT,
            'xenvif': MANUAL,
            'xennet': MANUAL,
            'xeniface': MANUAL,
            'xencons': MANUAL,
            'xenhid': MANUAL,
            'xenvkbd': MANUAL,
            'xstdvga': MANUAL,
        },
        user_services=(
            'xenagent',
            'xenbus_monitor',
            'xencons_monitor',
            'XenSvc',
            'XenInstall',
        ),
        filters=('xenfilt', 'xendisk'),
        files=('xen', 'xencrsh'),
        catalogs=_XEN_PROJECT_CATALOGS,
        products=(
            'xenserver tools',
            'xenserver vm tools',
            'xenserver windows guest agent',
            'xenserver vss provider',
            'xen windows x64 pv drivers',
            'xen windows x86 pv drivers',
            'citrix tools for virtual machines',
            'citrix hypervisor',
            'xenserver windows management agent',
            'xen pv drivers',
            'xcp-ng windows',
        ),
        upgrade_codes=(
            '{21EF141F-9126-42DA-93CD-B50442047420}',
            '{48E5492C-6843-452E-97A2-A5FE2D24B141}',
            '{D8709720-65B7-4CD9-9F51-68DB592B604D}',
            '{53858014-F814-49A1-9D63-CA2578432E73}',
            '{AF9B2559-3E91-4206-98C2-F560009FF7F1}',
            '{EE3B949D-C431-462B-B6DC-5BEDA078D772}',
            '{D60FED1E-316C-41B0-B7A5-E44951A82618}',
            '{10828840-D8A9-4953-B44A-1F1D3CD7ECB0}',
        ),
        source='the INF files of win-xenbus, win-xenvbd and their siblings '
        '(Xen Project, XenServer, XCP-ng; Qubes builds the same); XenClean '
        'and XenBootFix of XCP-ng (services, upgrade codes)',
    ),
)


@functools.cache
def starts() -> dict[str, int]:
    """Every driver's usual Start, by its service's name in upper case.

    Where families differ, the one that starts earliest.
    """
    found: dict[str, int] = {}
    for family in FAMILIES:
        for name, start in family.drivers.items():
            found[name.upper()] = min(start, found.get(name.upper(), start))
    return found


@functools.cache
def service_names() -> frozenset[str]:
    """Services of all families, drivers and programs, in upper case."""
    programs = _upper(
        name for family in FAMILIES for name in family.user_services
    )
    return frozenset(starts()) | programs


@functools.cache
def filter_names() -> frozenset[str]:
    """What must not stay in any filter list, in upper case.

    All drivers, not only those that are filters as a rule: a filter list
    that names a driver which does not start stops its devices.
    """
    listed = _upper(name for family in FAMILIES for name in family.filters)
    return frozenset(starts()) | listed


#: xenbus.sys, xenbus_coinst_8_1_0_63.dll, xenagent_8_2_1_5.exe
_FILE = re.compile(
    r'([a-z0-9]+(?:_monitor)?)(?:_[a-z0-9_]+)?\.(?:sys|dll|exe)'
)


@functools.cache
def _stems() -> frozenset[str]:
    extra = _upper(name for family in FAMILIES for name in family.files)
    return service_names() | extra


def is_file(name: str) -> bool:
    """Whether a file's name is one that only Xen drivers have."""
    match = _FILE.fullmatch(name.lower())
    return match is not None and match.group(1).upper() in _stems()


def _upper(names: Iterable[str]) -> frozenset[str]:
    return frozenset(name.upper() for name in names)


def of_package(catalog: str, provider: str) -> Family | None:
    """The family of a driver package, None where it is not Xen's.

    :param catalog: CatalogFile of its INF
    :param provider: Provider of its INF
    """
    stem = catalog.lower().removesuffix('.cat')
    for family in FAMILIES:
        if stem in family.catalogs and (
            not family.providers
            or any(part in provider.lower() for part in family.providers)
        ):
            return family
    # A vendor that is not known, with names that none but Xen's have.
    return next(
        (family for family in FAMILIES if stem in family.catalogs), None
    )


def of_product(name: str) -> Family | None:
    """The family of an installed program, None where it is not Xen's."""
    lower = name.lower()
    for family in FAMILIES:
        if any(part in lower for part in family.products):
            return family
    return None
