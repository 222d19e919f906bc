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


"""Which signatures a Windows accepts on a driver that starts at boot.

Nothing here was tried with a running Windows. Sources, all Microsoft's:
"Driver Signing Policy" (from Windows 10 1607 on the Hardware Dev Center
signs; certificates from before 29 July 2015 still count), "Cross-
Certificates for Kernel Mode Code Signing" (before that, a commercial
certificate whose chain ends at the Code Verification Root), "Attestation
sign Windows drivers" (Windows 10 and later only), KB3033929 and KB4474419
(SHA-2 on Windows 7 and 2008 R2), "The TESTSIGNING boot configuration
option". The names in certificates are believed: a verdict tells what
Windows will do, it does not protect anybody. Microsoft says that it does
not support attested drivers on servers; those of the public virtio-win are
attested, and are taken to load there as on Windows 10.
"""

from __future__ import annotations

from collections.abc import Iterable
import dataclasses
import datetime

from xenimport.remediation.windows import authenticode
from xenimport.remediation.windows import system

#: Extended key usages of the Hardware Dev Center's certificates.
_ATTESTED = '1.3.6.1.4.1.311.10.3.5.1'
_MICROSOFT = 'Microsoft Corporation'
_HARDWARE = 'Microsoft Windows Hardware Compatibility Publisher'
_WINDOWS = ('Microsoft Windows', 'Microsoft Windows Publisher')
_CROSS = 'Microsoft Code Verification Root'
_TEN = (10, 0)
_SEVEN = (6, 1)
#: Certificates issued before this day may still sign for Windows 10.
_CROSS_SIGNING_ENDS = datetime.date(2015, 7, 29)


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What Windows will do with a driver.

    :ivar accepted: None where nobody knows
    :ivar reason: for a person
    """

    accepted: bool | None
    reason: str


@dataclasses.dataclass(frozen=True)
class Policy:
    """What the guest itself says about signatures.

    :ivar test_signing: the boot configuration lets test certificates pass
    :ivar sha2: an update for SHA-2 is installed; None where that cannot
        be told, and on a Windows that needs none
    """

    test_signing: bool = False
    sha2: bool | None = None


def judge(
    release: system.Release,
    reading: authenticode.Reading,
    policy: Policy,
) -> Verdict:
    """What this Windows will do with a driver: its best signature counts."""
    if release.architecture == 'x86':
        return Verdict(True, 'a 32-bit Windows loads unsigned drivers too')
    verdicts = [
        _of_signer(release, signer, policy) for signer in reading.signers
    ]
    if not verdicts:
        return Verdict(None if reading.unknown else False, reading.problem)
    return best(verdicts)


def of_catalog(verdict: Verdict, *, boot: bool) -> Verdict:
    """The verdict on a driver that only a catalog vouches for.

    :param boot: it starts at boot: Microsoft asks for a signature in the
        file of such a one ("Kernel-mode code signing requirements")
    """
    if not boot or not verdict.accepted:
        return verdict
    return Verdict(
        None,
        f'{verdict.reason}, but by a catalog only: Microsoft asks for a '
        'signature in the file of a driver that starts at boot',
    )


def best(verdicts: Iterable[Verdict]) -> Verdict:
    """The one that Windows is most likely to go by."""
    order = {True: 0, None: 1, False: 2}
    return min(verdicts, key=lambda verdict: order[verdict.accepted])


def _of_signer(
    release: system.Release, signer: authenticode.Signer, policy: Policy
) -> Verdict:
    verdict = _of_chain(release, signer, policy)
    if not verdict.accepted or signer.digest == 'sha1':
        return verdict
    if release.version > _SEVEN or policy.sha2:
        return verdict
    return Verdict(
        None,
        f'{verdict.reason}, but with {signer.digest.upper()}: Windows 7 and '
        'Server 2008 R2 need the update KB4474419 or KB3033929 for that, '
        'which was not found in the guest',
    )


def _of_chain(
    release: system.Release, signer: authenticode.Signer, policy: Policy
) -> Verdict:
    leaf = signer.chain[0]
    shown = f'signed by {leaf.common_name or "nobody"}'
    if _is_test(leaf):
        return Verdict(
            policy.test_signing,
            f'{shown} with a test certificate'
            + (', which the boot configuration allows'
               if policy.test_signing else ''),
        )  # fmt: skip
    if leaf.organization == _MICROSOFT:
        return _of_microsoft(release, leaf, shown)
    if signer.anchor == _CROSS or any(
        item.common_name == _CROSS for item in signer.chain
    ):
        return _of_vendor(release, leaf, shown)
    return Verdict(
        None,
        f'{shown}, under {signer.anchor or "nobody"}: whether this Windows '
        'accepts that for a driver that starts at boot is not known',
    )


def _is_test(leaf: authenticode.Certificate) -> bool:
    """virtio-win's drivers for Windows 8 are of the second kind."""
    return leaf.self_signed or (
        leaf.organization == 'virtio-win' and leaf.unit == 'Dev'
    ) or leaf.common_name.startswith('WDKTestCert')  # fmt: skip


def _of_microsoft(
    release: system.Release, leaf: authenticode.Certificate, shown: str
) -> Verdict:
    if leaf.common_name in _WINDOWS:
        return Verdict(True, shown)
    if leaf.common_name != _HARDWARE:
        return Verdict(
            None, f'{shown}, whom this tool does not know to sign drivers'
        )
    if _ATTESTED in leaf.purposes and release.version < _TEN:
        return Verdict(
            False,
            f'{shown} by attestation, which Windows accepts from version 10 '
            'on',
        )
    return Verdict(True, shown)


def _of_vendor(
    release: system.Release, leaf: authenticode.Certificate, shown: str
) -> Verdict:
    """A commercial certificate with Microsoft's cross-certificate."""
    if release.version < _TEN or leaf.issued < _CROSS_SIGNING_ENDS:
        return Verdict(True, f'{shown}, cross-signed by Microsoft')
    return Verdict(
        None,
        f'{shown} with a certificate of {leaf.issued}: Windows 10 and later '
        'accept that only where Secure Boot is off and Windows was not '
        'installed anew',
    )
