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


"""Signatures of drivers, and what each Windows makes of them.

Programs are signed by osslsigncode; the catalogs are the test's own. No
Windows was asked: the table is that of Microsoft's documentation.
"""

import random
import struct
import unittest

from xenimport.guest import pe
from xenimport.guest import registry
from xenimport.remediation.windows import authenticode
from xenimport.remediation.windows import driver_signature
from xenimport.remediation.windows import signers
from xenimport.remediation.windows import system
from xenimport.tests.unit.remediation import windows_fakes
from xenimport.tests import windows_drivers

VALUE = registry.Value
CONFIG = 'Windows/System32/config'
CATALOGS = 'Windows/System32/CatRoot/{F750E6C3-38EE-11D1-85E5-00C04FC295EE}'
SYS = 'Windows/System32/drivers/viostor.sys'
PROGRAM = windows_drivers.program()
needs_signing = unittest.skipUnless(
    windows_drivers.can_sign(), 'osslsigncode is not installed'
)


def release(major=10, minor=0, arch='amd64', build=17763):
    return system.Release(major, minor, build, True, arch, 'Windows')


TEN, EIGHT, SEVEN = release(), release(6, 3), release(6, 1)


class PeTest(unittest.TestCase):
    def test_machines(self):
        for machine, expected in (
            (windows_drivers.AMD64, 'amd64'), (windows_drivers.X86, 'x86'),
            (windows_drivers.ARM64, 'arm64'), (0x1C0, ''),
        ):  # fmt: skip
            found = pe.machine(windows_drivers.program(machine))
            self.assertEqual(expected, found)

    def test_no_program(self):
        for data in (
            b'', b'MZ', b'ELF' + PROGRAM, PROGRAM[:0x84],
            b'MZ' + b'\xff' * 200, PROGRAM.replace(b'PE\0\0', b'NE\0\0'),
        ):  # fmt: skip
            self.assertEqual('', pe.machine(data))
            self.assertIsNone(pe.layout(data))

    def test_signatures_outside_the_file(self):
        data = bytearray(PROGRAM)
        # The fifth data directory of a PE32+: 24 + 112 + 32 behind PE.
        at = 0x80 + 24 + 112 + 32
        for start, size in (
            (0x600, 8),
            (0x5FF, 2),
            (8, 8),
            (1 << 31, 1 << 31),
        ):
            struct.pack_into('<II', data, at, start, size)
            self.assertIsNone(pe.layout(bytes(data)))


@needs_signing
class EmbeddedTest(unittest.TestCase):
    def test_who_signed(self):
        for machine in (windows_drivers.AMD64, windows_drivers.X86):
            program = windows_drivers.program(machine)
            reading = authenticode.embedded(
                windows_drivers.signed(program, windows_drivers.attested())
            )
            (signer,) = reading.signers
            self.assertEqual('sha256', signer.digest)
            self.assertEqual(
                [
                    'Microsoft Windows Hardware Compatibility Publisher',
                    'Microsoft Windows Third Party Component CA 2014',
                    'Microsoft Root Certificate Authority 2010',
                ],
                [item.common_name for item in signer.chain],
            )
            self.assertIn(windows_drivers.ATTESTED, signer.chain[0].purposes)

    def test_anchor_that_is_not_with_it(self):
        reading = authenticode.embedded(
            windows_drivers.signed(
                PROGRAM, windows_drivers.cross_signed(), 'sha1'
            )
        )
        (signer,) = reading.signers
        self.assertEqual('sha1', signer.digest)
        self.assertEqual('Microsoft Code Verification Root', signer.anchor)

    def test_one_signature_in_another(self):
        first = windows_drivers.signed(
            PROGRAM, windows_drivers.cross_signed(), 'sha1'
        )
        both = windows_drivers.signed(first, windows_drivers.whql(), add=True)
        self.assertEqual(
            ['sha1', 'sha256'],
            [item.digest for item in authenticode.embedded(both).signers],
        )

    def test_changed_file(self):
        data = bytearray(
            windows_drivers.signed(PROGRAM, windows_drivers.whql())
        )
        data[0x410] ^= 1
        reading = authenticode.embedded(bytes(data))
        self.assertEqual((), reading.signers)
        self.assertIn('does not fit the file', reading.problem)

    def test_changed_signature(self):
        data = windows_drivers.signed(PROGRAM, windows_drivers.whql())
        (blob,) = pe.signatures(data, pe.layout(data))
        # The signature itself is the last octet string; zeros pad it.
        end = data.index(blob) + len(blob.rstrip(b'\0'))
        changed = bytearray(data)
        changed[end - 20] ^= 1
        reading = authenticode.embedded(bytes(changed))
        self.assertEqual((), reading.signers)

    def test_random_damage_ends_in_a_reading(self):
        data = windows_drivers.signed(PROGRAM, windows_drivers.whql())
        chance = random.Random(4)
        start = data.index(b'\x30\x82', 0x600)
        for _ in range(150):
            damaged = bytearray(data)
            for _ in range(chance.randrange(1, 5)):
                damaged[chance.randrange(start, len(data))] ^= (
                    chance.randrange(1, 256)
                )
            authenticode.embedded(bytes(damaged))
            authenticode.embedded(data[: chance.randrange(len(data))])


class CatalogTest(unittest.TestCase):
    def test_both_forms(self):
        for digest, text in (('sha1', True), ('sha256', False)):
            catalog = windows_drivers.catalog(
                windows_drivers.whql(),
                windows_drivers.program(text=b'another'),
                PROGRAM,
                digest=digest,
                text=text,
            )
            (signer,) = authenticode.by_catalog(PROGRAM, catalog).signers
            self.assertEqual(digest, signer.digest)
            self.assertTrue(
                any(name in catalog for name in authenticode.names(PROGRAM))
            )

    def test_file_that_it_does_not_list(self):
        catalog = windows_drivers.catalog(
            windows_drivers.whql(), windows_drivers.program(text=b'another')
        )
        reading = authenticode.by_catalog(PROGRAM, catalog)
        self.assertEqual((), reading.signers)
        self.assertIn('does not list', reading.problem)

    def test_digest_beside_what_is_signed_does_not_count(self):
        catalog = windows_drivers.catalog(
            windows_drivers.whql(), windows_drivers.program(text=b'another')
        ) + windows_drivers.authenticode_digest(PROGRAM)
        self.assertEqual((), authenticode.by_catalog(PROGRAM, catalog).signers)

    def test_certificate_that_another_only_names_is_not_in_its_chain(self):
        genuine = windows_drivers.whql().certificates
        # It names the same issuer, and is signed by nobody but itself.
        claimed = windows_drivers.claimed_issuer(genuine[1].subject)
        chain = windows_drivers.Chain(
            (claimed.certificates[0], *genuine[1:]), claimed.key
        )
        (signer,) = authenticode.by_catalog(
            PROGRAM, windows_drivers.catalog(chain, PROGRAM)
        ).signers
        self.assertEqual(1, len(signer.chain))

    def test_more_signers_than_any_has(self):
        for count, expected in ((8, 8), (9, 0)):
            catalog = windows_drivers.catalog(
                windows_drivers.whql(), PROGRAM, signers=count
            )
            reading = authenticode.by_catalog(PROGRAM, catalog)
            self.assertEqual(expected, len(reading.signers))
        self.assertTrue(reading.unknown)

    def test_changed_list(self):
        catalog = windows_drivers.catalog(windows_drivers.whql(), PROGRAM)
        changed = catalog.replace(b'200101000000Z', b'200101000001Z')
        reading = authenticode.by_catalog(PROGRAM, changed)
        self.assertEqual((), reading.signers)
        self.assertIn('does not fit', reading.problem)

    def test_what_is_no_catalog(self):
        for data in (b'', b'\x30', b'\x30\x80' * 50, bytes(100), PROGRAM):
            self.assertEqual(
                (), authenticode.by_catalog(PROGRAM, data).signers
            )


class JudgeTest(unittest.TestCase):
    """Windows version against chain: the table of the documentation."""

    def judge(self, chain, version, digest='sha256', **policy):
        reading = authenticode.by_catalog(
            PROGRAM, windows_drivers.catalog(chain, PROGRAM, digest=digest)
        )
        return signers.judge(version, reading, signers.Policy(**policy))

    def test_table(self):
        whql = windows_drivers.whql()
        attested = windows_drivers.attested()
        cross = windows_drivers.cross_signed()
        late = windows_drivers.cross_signed(2019)
        test = windows_drivers.test_certificate()
        for name, chain, version, digest, expected in (
            ('WHQL', whql, TEN, 'sha256', True),
            ('WHQL', whql, EIGHT, 'sha256', True),
            ('WHQL', whql, SEVEN, 'sha1', True),
            ('WHQL, SHA-2', whql, SEVEN, 'sha256', None),
            ('attested', attested, TEN, 'sha256', True),
            ('attested', attested, EIGHT, 'sha256', False),
            ('attested', attested, SEVEN, 'sha1', False),
            ('inbox', windows_drivers.inbox(), EIGHT, 'sha256', True),
            ('cross-signed', cross, SEVEN, 'sha1', True),
            ('cross-signed', cross, EIGHT, 'sha256', True),
            ('cross-signed before 2015-07-29', cross, TEN, 'sha256', True),
            ('cross-signed later', late, TEN, 'sha256', None),
            ('cross-signed later', late, EIGHT, 'sha256', True),
            ('vendor', windows_drivers.commercial(), TEN, 'sha256', None),
            ('virtio-win for Windows 8', test, EIGHT, 'sha256', False),
        ):
            with self.subTest(name, version=version, digest=digest):
                verdict = self.judge(chain, version, digest)
                self.assertIs(expected, verdict.accepted, verdict.reason)

    def test_update_for_sha2(self):
        verdict = self.judge(windows_drivers.whql(), SEVEN, sha2=True)
        self.assertTrue(verdict.accepted)
        verdict = self.judge(windows_drivers.whql(), SEVEN)
        self.assertIn('KB4474419', verdict.reason)

    def test_test_signing(self):
        chain = windows_drivers.test_certificate()
        self.assertTrue(self.judge(chain, TEN, test_signing=True).accepted)
        self.assertFalse(self.judge(chain, TEN).accepted)

    def test_unsigned(self):
        reading = authenticode.embedded(PROGRAM)
        for version, expected in (
            (TEN, False), (SEVEN, False), (release(arch='x86'), True),
        ):  # fmt: skip
            verdict = signers.judge(version, reading, signers.Policy())
            self.assertIs(expected, verdict.accepted)

    def test_signature_that_cannot_be_read(self):
        catalog = windows_drivers.catalog(windows_drivers.whql(), PROGRAM)
        # The issuer in the signer's own name of its certificate.
        at = catalog.rindex(b'Component CA 2012')
        changed = bytearray(catalog)
        changed[at] ^= 1
        reading = authenticode.by_catalog(PROGRAM, bytes(changed))
        verdict = signers.judge(TEN, reading, signers.Policy())
        self.assertIsNone(verdict.accepted)
        self.assertIn('certificate is not with it', verdict.reason)

    def test_best_signature_counts(self):
        test = authenticode.by_catalog(
            PROGRAM,
            windows_drivers.catalog(
                windows_drivers.test_certificate(), PROGRAM
            ),
        )
        good = authenticode.by_catalog(
            PROGRAM, windows_drivers.catalog(windows_drivers.whql(), PROGRAM)
        )
        both = authenticode.Reading(test.signers + good.signers)
        self.assertTrue(signers.judge(TEN, both, signers.Policy()).accepted)


class InstalledTest(unittest.TestCase):
    def guest(self, files, *, packages=(), major=6, minor=1):
        prefix = 'Microsoft\\Windows\\CurrentVersion\\Component Based '
        prefix += 'Servicing\\Packages'
        software = {
            'Microsoft\\Windows NT\\CurrentVersion': [
                VALUE.sz('CurrentVersion', f'{major}.{minor}'),
                VALUE.sz('CurrentBuildNumber', '7601'),
            ],
            **{f'{prefix}\\{name}': [] for name in packages},
        }
        select = {
            'Select': [VALUE.dword('Current', 1), VALUE.dword('Default', 1)],
            'ControlSet001': [],
        }
        return windows_fakes.FakeWindows(
            {'/dev/sda2': files},
            {
                '/dev/sda2': {
                    f'{CONFIG}/SOFTWARE': software,
                    f'{CONFIG}/SYSTEM': select,
                }
            },
            operating_system=windows_fakes.system(major=major, minor=minor),
        )

    def test_catalog_of_the_guest(self):
        catalog = windows_drivers.catalog(
            windows_drivers.whql(), PROGRAM, digest='sha1'
        )
        other = windows_drivers.catalog(
            windows_drivers.whql(), windows_drivers.program(text=b'other')
        )
        for files, expected in (
            ({f'{CATALOGS}/oem3.cat': other}, False),
            ({f'{CATALOGS}/oem3.cat': other,
              f'{CATALOGS}/OEM11.CAT': catalog}, True),
            ({f'{CATALOGS}/oem3.txt': catalog}, False),
            ({f'{CATALOGS}/oem3.cat': b'damaged'}, False),
        ):  # fmt: skip
            guest = self.guest({SYS: PROGRAM, **files})
            verdict = driver_signature.verdict(guest, SYS, boot=False)
            self.assertIs(expected, verdict.accepted)

    def test_updates_are_looked_for(self):
        catalog = windows_drivers.catalog(windows_drivers.whql(), PROGRAM)
        for packages, expected in (
            ((), None),
            (('Package_for_KB976902~31bf3856ad364e35~amd64~~6.1.1.17514',),
             None),
            (('Package_for_KB4474419~31bf3856ad364e35~amd64~~6.1.3.2',),
             True),
            (('Package_for_KB3033929~31bf3856ad364e35~amd64~~6.1.1.1',),
             True),
        ):  # fmt: skip
            guest = self.guest(
                {SYS: PROGRAM, f'{CATALOGS}/oem1.cat': catalog},
                packages=packages,
            )
            verdict = driver_signature.verdict(guest, SYS, boot=False)
            self.assertIs(expected, verdict.accepted)

    def test_package_with_its_catalog(self):
        guest = self.guest({}, major=10, minor=0)
        catalog = windows_drivers.catalog(windows_drivers.whql(), PROGRAM)
        for given, expected in ((catalog, True), (None, False), (b'', False)):
            verdict = driver_signature.verdict_of(
                guest, PROGRAM, given, boot=False
            )
            self.assertIs(expected, verdict.accepted)

    def test_driver_that_starts_at_boot_needs_a_signature_of_its_own(self):
        catalog = windows_drivers.catalog(windows_drivers.whql(), PROGRAM)
        files = {SYS: PROGRAM, f'{CATALOGS}/oem1.cat': catalog}
        guest = self.guest(files, major=10, minor=0)
        for verdict in (
            driver_signature.verdict(guest, SYS, boot=True),
            driver_signature.verdict_of(guest, PROGRAM, catalog, boot=True),
        ):
            self.assertIsNone(verdict.accepted)
            self.assertIn('by a catalog only', verdict.reason)

    @needs_signing
    def test_signature_in_the_file(self):
        files = windows_drivers.package('viostor')
        guest = self.guest({SYS: files['viostor.sys']}, major=10, minor=0)
        for verdict in (
            driver_signature.verdict(guest, SYS, boot=True),
            driver_signature.verdict_of(
                guest, files['viostor.sys'], None, boot=True
            ),
        ):
            self.assertTrue(verdict.accepted)

    @needs_signing
    def test_catalog_may_be_better_than_the_signature_in_the_file(self):
        late = windows_drivers.signed(
            PROGRAM, windows_drivers.cross_signed(2019)
        )
        catalog = windows_drivers.catalog(windows_drivers.whql(), PROGRAM)
        guest = self.guest(
            {SYS: late, f'{CATALOGS}/oem1.cat': catalog}, major=10, minor=0
        )
        for verdict in (
            driver_signature.verdict(guest, SYS, boot=False),
            driver_signature.verdict_of(guest, late, catalog, boot=False),
        ):
            self.assertTrue(verdict.accepted)

    def test_what_was_not_looked_into_is_not_said_to_be_missing(self):
        other = windows_drivers.catalog(
            windows_drivers.whql(), windows_drivers.program(text=b'other')
        )
        for catalogs in (
            {f'{CATALOGS}/a{n:03d}.cat': other for n in range(201)},
            {f'{CATALOGS}/a.cat': bytes((8 << 20) + 1)},
        ):
            guest = self.guest({SYS: PROGRAM, **catalogs})
            verdict = driver_signature.verdict(guest, SYS, boot=False)
            self.assertIsNone(verdict.accepted)
            self.assertIn('not every catalog', verdict.reason)

    def test_file_that_is_not_there(self):
        verdict = driver_signature.verdict(self.guest({}), SYS, boot=False)
        self.assertIs(False, verdict.accepted)
        self.assertIn('not there', verdict.reason)

    def test_file_that_is_too_large(self):
        guest = self.guest({SYS: bytes((16 << 20) + 1)})
        self.assertIsNone(
            driver_signature.verdict(guest, SYS, boot=False).accepted
        )
