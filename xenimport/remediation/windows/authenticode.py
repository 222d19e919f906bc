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


"""Who signed a driver, and whether the signature is that of this file.

A driver carries its signatures itself, or a catalog lists its digest and
is signed. ASN.1 is read with asn1crypto, signatures are checked with
cryptography. (signify, which knows Authenticode as a whole, cannot be
imported where OpenSSL's version has two digits at its end, as in Debian
12: its dependency oscrypto does not understand it.)

Sources: Microsoft's "Windows Authenticode Portable Executable Signature
Format"; RFC 2315 and 5652 for PKCS #7 and CMS.
"""

from __future__ import annotations

from collections.abc import Iterator
import dataclasses
import datetime
import hashlib
import typing

from xenimport.guest import pe

#: Bytes of a driver and of a catalog that are looked at.
DRIVER_LIMIT = 16 << 20
CATALOG_LIMIT = 8 << 20
_SPC_INDIRECT_DATA = '1.3.6.1.4.1.311.2.1.4'
_CERT_TRUST_LIST = '1.3.6.1.4.1.311.10.1'
_NESTED_SIGNATURE = '1.3.6.1.4.1.311.2.4.1'
_DIGESTS = ('sha1', 'sha256', 'sha384', 'sha512')
#: Certificates of one signature, and signatures in each other.
_CERTIFICATES_LIMIT = 64
_NESTING_LIMIT = 4
_SIGNERS_LIMIT = 8


@dataclasses.dataclass(frozen=True)
class Certificate:
    """Of a certificate what a verdict asks for; names may be empty.

    :ivar purposes: object identifiers of its extended key usage
    """

    common_name: str
    organization: str
    unit: str
    issued: datetime.date
    purposes: frozenset[str]
    self_signed: bool


@dataclasses.dataclass(frozen=True)
class Signer:
    """One sound signature that covers the file.

    :ivar digest: what the signature was made with, ``sha1``, ...
    :ivar chain: from the signer's certificate upwards, as far as the
        signature brings certificates, each signed by the next
    :ivar anchor: the name of who issued the last one
    """

    digest: str
    chain: tuple[Certificate, ...]
    anchor: str


@dataclasses.dataclass(frozen=True)
class Reading:
    """What was read of a file's signatures.

    :ivar problem: why there is no signer, '' where there is one
    :ivar unknown: it is signed in a way that could not be read
    """

    signers: tuple[Signer, ...]
    problem: str = ''
    unknown: bool = False


#: Called with the signed content and its type's object identifier.
_CheckCover = typing.Callable[[bytes, str], None]


class _UnsoundError(Exception):
    """A signature that is none; the text says why."""


class _UnknownError(Exception):
    """A signature of a kind that is not read here; the text says why."""


def embedded(data: bytes) -> Reading:
    """The signatures that a driver itself carries.

    :param data: the whole file
    """
    places = pe.layout(data)
    if places is None:
        return Reading((), 'it is no PE file')
    return _read(
        list(pe.signatures(data, places)),
        lambda content, kind: _check_file(data, places, content, kind),
        'it is not signed',
    )


def by_catalog(data: bytes, catalog: bytes) -> Reading:
    """Who signed a catalog, if that lists the driver.

    :param data: the driver
    :param catalog: the catalog
    """
    if pe.layout(data) is None:
        return Reading((), 'it is no PE file')
    return _read(
        [catalog],
        lambda content, kind: _check_catalog(data, content, kind),
        'the catalog does not list it',
    )


def names(data: bytes) -> tuple[bytes, ...]:
    """What a catalog would have to hold to list a driver, any of it.

    A digest as bytes, or in the first form of catalogs as hexadecimal in
    UTF-16.
    """
    places = pe.layout(data)
    found: list[bytes] = []
    if places is None:
        return ()
    for name in ('sha256', 'sha1'):
        digest = _digest(data, places, name)
        found += [digest, digest.hex().upper().encode('utf-16-le')]
    return tuple(found)


def _read(
    blobs: list[bytes],
    check: _CheckCover,
    nothing: str,
) -> Reading:
    found: list[Signer] = []
    problem, unknown = nothing, False
    for blob in blobs:
        try:
            found += _signers(blob, check, _NESTING_LIMIT)
        except _UnsoundError as error:
            problem = str(error)
        except _UnknownError as error:
            problem, unknown = str(error), True
        except Exception as error:
            # Hostile bytes end in errors of any kind in these libraries.
            problem = f'its signature cannot be read ({type(error).__name__})'
            unknown = True
    if found:
        return Reading(tuple(found))
    return Reading((), problem, unknown)


def _signers(
    blob: bytes,
    check: _CheckCover,
    depth: int,
) -> Iterator[Signer]:
    """The signers of one PKCS #7, and of those inside it."""
    from asn1crypto import cms

    info = cms.ContentInfo.load(blob)
    if info['content_type'].native != 'signed_data':
        raise _UnsoundError('its signature is no PKCS #7 signed data')
    data = info['content']
    kind = data['encap_content_info']['content_type'].dotted
    content = data['encap_content_info']['content'].parse().contents
    certificates = _certificates(data)
    check(content, kind)
    if len(data['signer_infos']) > _SIGNERS_LIMIT:
        raise _UnknownError('its signature has more signers than any has')
    for signer in data['signer_infos']:
        yield _signer(signer, content, certificates)
        if depth:
            for inner in _nested(signer):
                yield from _signers(inner, check, depth - 1)


def _certificates(data: typing.Any) -> list[typing.Any]:
    found = [
        item.chosen
        for item in data['certificates']
        if item.name == 'certificate'
    ]
    return found[:_CERTIFICATES_LIMIT]


def _nested(signer: typing.Any) -> Iterator[bytes]:
    """A second signature, with another digest, stands in the first."""
    for attribute in signer['unsigned_attrs'] or ():
        if attribute['type'].dotted == _NESTED_SIGNATURE:
            for value in attribute['values']:
                yield value.dump()


def _signer(
    signer: typing.Any,
    content: bytes,
    certificates: list[typing.Any],
) -> Signer:
    """A signer whose signature holds.

    :raises _UnsoundError: if it does not
    """
    leaf = _issued_by(signer['sid'], certificates)
    algorithm = _digest_name(signer['digest_algorithm'])
    attributes = signer['signed_attrs']
    stated = [
        value.native
        for attribute in attributes
        if attribute['type'].native == 'message_digest'
        for value in attribute['values']
    ]
    if stated != [hashlib.new(algorithm, content).digest()]:
        raise _UnsoundError('its signature does not fit what it signs')
    # Signed is the SET, not the implicit tag that it has in place.
    signed = b'\x31' + attributes.dump()[1:]
    if not _verifies(leaf, signer['signature'].native, signed, algorithm):
        raise _UnsoundError('its signature is not valid')
    chain = _chain(leaf, certificates)
    return Signer(
        algorithm,
        tuple(map(_certificate, chain)),
        _name(chain[-1].issuer, 'common_name')
        or _name(chain[-1].issuer, 'organizational_unit_name'),
    )


def _digest_name(algorithm: typing.Any) -> str:
    name = str(algorithm['algorithm'].native)
    if name not in _DIGESTS:
        raise _UnknownError(f'its digest is {name}')
    return name


def _issued_by(sid: typing.Any, certificates: list[typing.Any]) -> typing.Any:
    """The certificate that a signer names."""
    if sid.name == 'issuer_and_serial_number':
        wanted = sid.chosen
        for item in certificates:
            if item.serial_number == wanted['serial_number'].native:
                if item.issuer == wanted['issuer']:
                    return item
    raise _UnknownError("the signer's certificate is not with it")


def _chain(
    leaf: typing.Any, certificates: list[typing.Any]
) -> list[typing.Any]:
    """From a certificate upwards, each signed by the one behind it."""
    chain = [leaf]
    while chain[-1].issuer != chain[-1].subject:
        above = next(
            (
                item
                for item in certificates
                if item.subject == chain[-1].issuer
                and item not in chain
                and _is_signed_by(chain[-1], item)
            ),
            None,
        )
        if above is None:
            break
        chain.append(above)
    return chain


def _is_signed_by(item: typing.Any, above: typing.Any) -> bool:
    return _verifies(
        above,
        item['signature_value'].native,
        item['tbs_certificate'].dump(),
        item['signature_algorithm'].hash_algo,
    )


def _verifies(
    certificate: typing.Any, signature: bytes, data: bytes, digest: str
) -> bool:
    from cryptography import exceptions as cryptography_exceptions
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.asymmetric import padding
    from cryptography.hazmat.primitives.asymmetric import rsa

    algorithms: dict[str, typing.Callable[[], hashes.HashAlgorithm]] = {
        'sha1': hashes.SHA1,
        'sha256': hashes.SHA256,
        'sha384': hashes.SHA384,
        'sha512': hashes.SHA512,
    }
    if digest not in algorithms:
        return False
    key = serialization.load_der_public_key(certificate.public_key.dump())
    algorithm = algorithms[digest]()
    try:
        if isinstance(key, rsa.RSAPublicKey):
            key.verify(signature, data, padding.PKCS1v15(), algorithm)
        elif isinstance(key, ec.EllipticCurvePublicKey):
            key.verify(signature, data, ec.ECDSA(algorithm))
        else:
            return False
    except cryptography_exceptions.InvalidSignature:
        return False
    return True


def _certificate(item: typing.Any) -> Certificate:
    usage = item.extended_key_usage_value
    validity = item['tbs_certificate']['validity']
    return Certificate(
        _name(item.subject, 'common_name'),
        _name(item.subject, 'organization_name'),
        _name(item.subject, 'organizational_unit_name'),
        validity['not_before'].native.date(),
        frozenset(one.dotted for one in usage or ()),
        item.subject == item.issuer,
    )


def _name(name: typing.Any, part: str) -> str:
    value = name.native.get(part, '')
    if isinstance(value, list):
        value = value[0]
    return ''.join(char for char in str(value) if char.isprintable())[:200]


def _check_file(
    data: bytes, places: pe.Layout, content: bytes, kind: str
) -> None:
    """Compare the digest in a signature with that of the file.

    :raises _UnsoundError: if it is not the file's
    """
    if kind != _SPC_INDIRECT_DATA:
        raise _UnsoundError('its signature is not that of a program')
    stated = _stated(content)
    if all(_digest(data, places, name) != stated for name in _DIGESTS):
        raise _UnsoundError('its signature does not fit the file')


def _stated(content: bytes) -> bytes:
    """The digest in an SpcIndirectDataContent: its last octet string."""
    from asn1crypto import core

    whole = core.Sequence.load(b'\x30' + _length(len(content)) + content)
    info = core.Sequence.load(whole[1].dump())
    return bytes(info[1].native)


def _length(count: int) -> bytes:
    """A DER length."""
    if count < 0x80:
        return bytes((count,))
    octets = count.to_bytes((count.bit_length() + 7) // 8, 'big')
    return bytes((0x80 | len(octets),)) + octets


def _digest(data: bytes, places: pe.Layout, name: str) -> bytes:
    digest = hashlib.new(name)
    for part in pe.covered(data, places):
        digest.update(part)
    return digest.digest()


def _check_catalog(data: bytes, content: bytes, kind: str) -> None:
    """Look for the file in a catalog.

    :raises _UnsoundError: if it is not there
    """
    if kind != _CERT_TRUST_LIST:
        raise _UnsoundError('it is no catalog')
    if not any(name in content for name in names(data)):
        raise _UnsoundError('the catalog does not list it')
