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


"""Drivers as Windows has them: PE files, signatures, catalogs, INF files.

Nothing of the product is used. Programs are signed by osslsigncode, with
certificates made here: only the names and the structure of the chains are
those of the genuine ones. Catalogs are written byte by byte, to the
layout that Microsoft's wintrust.h and RFC 2315 give.
"""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import datetime
import functools
import hashlib
import os
import pathlib
import shutil
import struct
import subprocess
import tempfile

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import padding
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives import serialization
from cryptography.x509.oid import ExtendedKeyUsageOID
from cryptography.x509.oid import NameOID

#: IMAGE_FILE_MACHINE_* of Microsoft's "PE Format".
AMD64 = 0x8664
X86 = 0x014C
ARM64 = 0xAA64
_MACHINES = {'amd64': AMD64, 'x86': X86, 'ARM64': ARM64}
#: The Hardware Dev Center's, of its documentation.
ATTESTED = '1.3.6.1.4.1.311.10.3.5.1'
WHQL = '1.3.6.1.4.1.311.10.3.5'


def can_sign() -> bool:
    """Whether osslsigncode is there."""
    return shutil.which('osslsigncode') is not None


def program(machine: int = AMD64, text: bytes = b'driver') -> bytes:
    """A PE with one section; ``text`` makes it different from others."""
    plus = machine != X86
    optional = 240 if plus else 224
    data = bytearray(0x400)
    data[:2] = b'MZ'
    struct.pack_into('<I', data, 0x3C, 0x80)
    struct.pack_into(
        '<4sHHIIIHH', data, 0x80, b'PE\0\0', machine, 1, 0, 0, 0, optional, 34
    )
    at = 0x98
    magic = 0x20B if plus else 0x10B
    struct.pack_into(
        '<HBBIIIII', data, at, magic, 14, 0, 0x200, 0, 0, 0x1000, 0x1000
    )
    if plus:
        struct.pack_into('<QII', data, at + 24, 0x140000000, 0x1000, 0x200)
    else:
        struct.pack_into('<IIII', data, at + 24, 0, 0x400000, 0x1000, 0x200)
    struct.pack_into(
        '<HHHHHHIIIIHH',
        data, at + 40, 6, 1, 6, 1, 6, 1, 0, 0x2000, 0x400, 0, 1, 0,
    )  # fmt: skip
    struct.pack_into('<I', data, at + (108 if plus else 92), 16)
    struct.pack_into(
        '<8sIIIIIIHHI',
        data, at + optional, b'.text', 0x200, 0x1000, 0x200, 0x400,
        0, 0, 0, 0, 0x60000020,
    )  # fmt: skip
    return bytes(data) + text.ljust(0x200, b'\xcc')


@dataclasses.dataclass(frozen=True)
class Chain:
    """Certificates, the signer's first, and the signer's key."""

    certificates: tuple[x509.Certificate, ...]
    key: rsa.RSAPrivateKey


def _name(common: str, organization: str = '', unit: str = '') -> x509.Name:
    parts = [(NameOID.COMMON_NAME, common)]
    if unit:
        parts.insert(0, (NameOID.ORGANIZATIONAL_UNIT_NAME, unit))
    if organization:
        parts.insert(0, (NameOID.ORGANIZATION_NAME, organization))
    return x509.Name([x509.NameAttribute(oid, text) for oid, text in parts])


@functools.cache
def _key(number: int) -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(65537, 2048)


def _certificate(
    subject: x509.Name,
    issuer: x509.Name,
    key: rsa.RSAPrivateKey,
    signing_key: rsa.RSAPrivateKey,
    *,
    issued: datetime.datetime,
    authority: bool = False,
    purposes: Sequence[str] = (),
) -> x509.Certificate:
    usage = [ExtendedKeyUsageOID.CODE_SIGNING]
    usage += [x509.ObjectIdentifier(item) for item in purposes]
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(issued)
        .not_valid_after(issued + datetime.timedelta(days=9000))
        .add_extension(x509.BasicConstraints(authority, None), True)
    )
    if not authority:
        builder = builder.add_extension(x509.ExtendedKeyUsage(usage), False)
    return builder.sign(signing_key, hashes.SHA256())


def _chain(
    leaf: x509.Name,
    middle: x509.Name,
    root: x509.Name,
    *,
    issued: datetime.datetime = datetime.datetime(2020, 1, 1),
    purposes: Sequence[str] = (),
    with_root: bool = True,
) -> Chain:
    early = datetime.datetime(2010, 1, 1)
    certificates = [
        _certificate(
            leaf, middle, _key(0), _key(1), issued=issued, purposes=purposes
        ),
        _certificate(
            middle, root, _key(1), _key(2), issued=early, authority=True
        ),
    ]
    if with_root:
        certificates.append(
            _certificate(
                root, root, _key(2), _key(2), issued=early, authority=True
            )
        )
    return Chain(tuple(certificates), _key(0))


_MICROSOFT = 'Microsoft Corporation'
_PUBLISHER = 'Microsoft Windows Hardware Compatibility Publisher'


@functools.cache
def whql() -> Chain:
    """What the Hardware Dev Center signs tested drivers with."""
    return _chain(
        _name(_PUBLISHER, _MICROSOFT),
        _name('Microsoft Windows Third Party Component CA 2012', _MICROSOFT),
        _name('Microsoft Root Certificate Authority 2010', _MICROSOFT),
        purposes=[WHQL],
    )


@functools.cache
def attested() -> Chain:
    """What it signs untested drivers with, for Windows 10 and later."""
    return _chain(
        _name(_PUBLISHER, _MICROSOFT),
        _name('Microsoft Windows Third Party Component CA 2014', _MICROSOFT),
        _name('Microsoft Root Certificate Authority 2010', _MICROSOFT),
        purposes=[ATTESTED],
    )


@functools.cache
def inbox() -> Chain:
    """What Windows' own drivers are signed with."""
    return _chain(
        _name('Microsoft Windows', _MICROSOFT),
        _name('Microsoft Windows Production PCA 2011', _MICROSOFT),
        _name('Microsoft Root Certificate Authority 2010', _MICROSOFT),
    )


@functools.cache
def cross_signed(year: int = 2014) -> Chain:
    """A vendor's own, whose chain ends at Microsoft's cross-certificate."""
    return _chain(
        _name('Red Hat, Inc.', 'Red Hat, Inc.'),
        _name('DigiCert High Assurance EV Root CA', 'DigiCert Inc'),
        _name('Microsoft Code Verification Root', _MICROSOFT),
        issued=datetime.datetime(year, 1, 1),
        with_root=False,
    )


@functools.cache
def commercial() -> Chain:
    """A vendor's own without a cross-certificate."""
    return _chain(
        _name('Example Ltd', 'Example Ltd'),
        _name('Example Code Signing CA', 'Example'),
        _name('Example Root', 'Example'),
    )


@functools.cache
def test_certificate() -> Chain:
    """As virtio-win's drivers for Windows 8 have it (measured)."""
    name = _name('Red Hat Inc.', 'virtio-win', 'Dev')
    issued = datetime.datetime(2020, 1, 1)
    return Chain(
        (_certificate(name, name, _key(3), _key(3), issued=issued),), _key(3)
    )


def claimed_issuer(issuer: x509.Name) -> Chain:
    """A certificate that names an issuer, which has not signed it."""
    issued = datetime.datetime(2020, 1, 1)
    name = _name('Impostor', 'Impostor')
    return Chain(
        (_certificate(name, issuer, _key(3), _key(3), issued=issued),),
        _key(3),
    )


def signed(
    data: bytes, chain: Chain, digest: str = 'sha256', *, add: bool = False
) -> bytes:
    """A program signed by osslsigncode.

    :param add: put it beside the signature that is there
    """
    pem = serialization.Encoding.PEM
    with tempfile.TemporaryDirectory() as directory:
        place = pathlib.Path(directory)
        (place / 'certs').write_bytes(
            b''.join(item.public_bytes(pem) for item in chain.certificates)
        )
        (place / 'key').write_bytes(
            chain.key.private_bytes(
                pem,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            )
        )
        (place / 'in').write_bytes(data)
        subprocess.run(
            ['osslsigncode', 'sign', '-certs', 'certs', '-key', 'key',
             '-h', digest, *(['-nest'] if add else []),
             '-in', 'in', '-out', 'out'],
            cwd=directory, check=True, stdout=subprocess.DEVNULL,
        )  # fmt: skip
        return (place / 'out').read_bytes()


def _der(tag: int, *parts: bytes) -> bytes:
    body = b''.join(parts)
    count = len(body)
    if count < 0x80:
        return bytes((tag, count)) + body
    octets = count.to_bytes((count.bit_length() + 7) // 8, 'big')
    return bytes((tag, 0x80 | len(octets))) + octets + body


def _oid(text: str) -> bytes:
    numbers = [int(item) for item in text.split('.')]
    body = bytearray((numbers[0] * 40 + numbers[1],))
    for number in numbers[2:]:
        octets = [number & 0x7F]
        while number := number >> 7:
            octets.insert(0, 0x80 | number & 0x7F)
        body += bytes(octets)
    return _der(0x06, bytes(body))


def _integer(number: int) -> bytes:
    return _der(0x02, number.to_bytes(number.bit_length() // 8 + 1, 'big'))


def authenticode_digest(data: bytes, name: str = 'sha256') -> bytes:
    """Of a program without a signature: all but two places in its head."""
    (at,) = struct.unpack_from('<I', data, 0x3C)
    optional = at + 24
    plus = data[optional : optional + 2] == b'\x0b\x02'
    entry = optional + (144 if plus else 128)
    return hashlib.new(
        name,
        data[: optional + 64]
        + data[optional + 68 : entry]
        + data[entry + 8 :],
    ).digest()


def catalog(
    chain: Chain,
    *programs: bytes,
    digest: str = 'sha256',
    text: bool = False,
    signers: int = 1,
) -> bytes:
    """A signed list of programs' digests.

    :param digest: of the programs, and of the signature
    :param text: in the first form: digests as hexadecimal in UTF-16
    :param signers: how often it is signed
    """
    members = []
    for item in programs:
        found = authenticode_digest(item, digest)
        name = found.hex().upper().encode('utf-16-le') if text else found
        members.append(_der(0x30, _der(0x04, name), _der(0x31)))
    body = b''.join(
        (
            _der(0x30, _oid('1.3.6.1.4.1.311.12.1.1')),
            _der(0x04, bytes(16)),
            _der(0x17, b'200101000000Z'),
            _der(0x30, _oid('1.3.6.1.4.1.311.12.1.2'), _der(0x05)),
            _der(0x30, *members),
        )
    )
    return _signed_data('1.3.6.1.4.1.311.10.1', body, chain, digest, signers)


_ALGORITHMS = {
    'sha1': ('1.3.14.3.2.26', hashes.SHA1),
    'sha256': ('2.16.840.1.101.3.4.2.1', hashes.SHA256),
}


def _signed_data(
    kind: str, body: bytes, chain: Chain, name: str, signers: int
) -> bytes:
    """PKCS #7 signed data over a SEQUENCE with that body."""
    oid, algorithm = _ALGORITHMS[name]
    identifier = _der(0x30, _oid(oid), _der(0x05))
    digest = hashlib.new(name, body).digest()
    attributes = _der(
        0x30, _oid('1.2.840.113549.1.9.3'), _der(0x31, _oid(kind))
    ) + _der(
        0x30,
        _oid('1.2.840.113549.1.9.4'),
        _der(0x31, _der(0x04, digest)),
    )
    signature = chain.key.sign(
        _der(0x31, attributes), padding.PKCS1v15(), algorithm()
    )
    leaf = chain.certificates[0]
    signer = _der(
        0x30,
        _integer(1),
        _der(0x30, leaf.issuer.public_bytes(), _integer(leaf.serial_number)),
        identifier,
        _der(0xA0, attributes),
        _der(0x30, _oid('1.2.840.113549.1.1.1'), _der(0x05)),
        _der(0x04, signature),
    )
    der = serialization.Encoding.DER
    data = _der(
        0x30,
        _integer(1),
        _der(0x31, identifier),
        _der(0x30, _oid(kind), _der(0xA0, _der(0x30, body))),
        _der(0xA0, *(c.public_bytes(der) for c in chain.certificates)),
        _der(0x31, signer * signers),
    )
    return _der(0x30, _oid('1.2.840.113549.1.7.2'), _der(0xA0, data))


#: Of virtio-win's INF files: class, its GUID, ids, service's start, group,
#: BusType.
_KINDS = {
    'viostor': (
        'SCSIAdapter', '{4D36E97B-E325-11CE-BFC1-08002BE10318}',
        ('1001', '00021AF4', '1042', '11001AF4'), 0, 'SCSI miniport', 1,
    ),
    'vioscsi': (
        'SCSIAdapter', '{4D36E97B-E325-11CE-BFC1-08002BE10318}',
        ('1004', '00081AF4', '1048', '11001AF4'), 0, 'SCSI miniport', 0x0A,
    ),
    'netkvm': (
        'Net', '{4d36e972-e325-11ce-bfc1-08002be10318}',
        ('1000', '00011AF4', '1041', '11001AF4'), 3, 'NDIS', None,
    ),
}  # fmt: skip


def inf(
    driver: str, arch: str = 'amd64', version: str = '100.95.104.26200'
) -> bytes:
    """An INF in the layout of virtio-win's, UTF-16 with its mark."""
    kind, guid, ids, start, group, bus = _KINDS[driver]
    legacy, legacy_subsystem, modern, modern_subsystem = ids
    decoration = {'amd64': 'NTamd64', 'x86': 'NTx86', 'ARM64': 'NTARM64'}[arch]
    settings = ''
    if bus is not None:
        settings = f"""
[{driver}_addreg]
HKR, "Parameters\\PnpInterface", "5", %REG_DWORD%, 0x00000001
HKR, "Parameters", "BusType", %REG_DWORD%, {bus:#010x}
"""
    return f"""\
[Version]
Signature="$WINDOWS NT$"
Class={kind}
ClassGuid={guid}
Provider=%VENDOR%
DriverVer=08/19/2024,{version}
CatalogFile={driver}.cat
DriverPackageType = PlugAndPlay
DriverPackageDisplayName = %DEVICE_DESC%

[DestinationDirs]
DefaultDestDir = 12 ; DIRID_DRIVERS

[SourceDisksNames]
1 = %DISK_ID%,,,""

[SourceDisksFiles]
{driver}.sys = 1,,

[Manufacturer]
%VENDOR%=RHEL,{decoration}

[RHEL.{decoration}]
%DEVICE_DESC% = {driver}_inst, PCI\\VEN_1AF4&DEV_{legacy}&SUBSYS_{
        legacy_subsystem
    }&REV_00, PCI\\VEN_1AF4&DEV_{legacy}
%DEVICE_DESC% = {driver}_inst, PCI\\VEN_1AF4&DEV_{modern}&SUBSYS_{
        modern_subsystem
    }&REV_01, PCI\\VEN_1AF4&DEV_{modern}

[{driver}_inst]
CopyFiles = @{driver}.sys
{f'AddReg = {driver}_ndi' if kind == 'Net' else ''}

[{driver}_ndi]
HKR, Ndi, Service, 0, "{driver}"
HKR, Ndi\\Interfaces, UpperRange, 0, "ndis5"
HKR, Ndi\\Interfaces, LowerRange, 0, "ethernet"
HKR, "", "*IfType", 0x00010001, 6

[{driver}_inst.Services]
AddService = {driver}, 0x00000002, {driver}_service

[{driver}_service]
DisplayName = %SERVICE_DESC%
ServiceType = %SERVICE_KERNEL_DRIVER%
StartType = {start}
ErrorControl = %SERVICE_ERROR_NORMAL%
ServiceBinary = %12%\\{driver}.sys
LoadOrderGroup = {group}
{f'AddReg = {driver}_addreg' if settings else ''}
{settings}
[Strings]
VENDOR = "Red Hat, Inc."
DISK_ID = "Red Hat VirtIO Installation Disk"
DEVICE_DESC = "Red Hat VirtIO {driver} device"
SERVICE_DESC = "Red Hat VirtIO {driver} Service"
SERVICE_KERNEL_DRIVER = 1
SERVICE_ERROR_NORMAL = 1
REG_DWORD = 0x00010001
""".replace('\n', '\r\n').encode('utf-16')


@functools.cache
def package(
    driver: str,
    arch: str = 'amd64',
    chain: Chain | None = None,
    digest: str = 'sha256',
) -> dict[str, bytes]:
    """A driver's files by name; the driver and its catalog are signed.

    The same each time that it is asked for. Without osslsigncode only the
    catalog is signed.

    :param chain: :func:`whql` by default
    """
    data = program(_MACHINES[arch], driver.encode())
    return {
        f'{driver}.inf': inf(driver, arch),
        f'{driver}.sys': signed(data, chain or whql(), digest)
        if can_sign()
        else data,
        f'{driver}.cat': catalog(chain or whql(), data, digest=digest),
        f'{driver}.pdb': b'Microsoft C/C++ MSF 7.00\r\n',
    }


def virtio_win_tree(
    directory: str,
    releases: Sequence[str] = ('2k8R2', 'w10', '2k19'),
    archs: Sequence[str] = ('amd64', 'x86'),
    drivers: Sequence[str] = ('viostor', 'vioscsi', 'NetKVM'),
    chains: Mapping[str, Chain] | None = None,
) -> None:
    """Drivers as the virtio-win ISO has them: driver/release/architecture.

    Those for Windows 7 are signed with SHA-1, as such a Windows takes it
    without any update.

    :param chains: of releases that are not signed with :func:`whql`
    """
    for driver in drivers:
        for release in releases:
            for arch in archs:
                place = os.path.join(directory, driver, release, arch)
                os.makedirs(place)
                chain = (chains or {}).get(release)
                digest = 'sha1' if release in ('w7', '2k8R2') else 'sha256'
                files = package(driver.lower(), arch, chain, digest)
                for name, data in files.items():
                    pathlib.Path(place, name).write_bytes(data)
