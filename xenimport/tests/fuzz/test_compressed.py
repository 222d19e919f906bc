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

"""Mutants of compressed streams, and of packages inside of them."""

from __future__ import annotations

import contextlib
import gzip

import hypothesis
import zstandard

from xenimport.tests.fuzz import cases
from xenimport.tests.fuzz import mutation
from xenimport.tests.fuzz import tars
from xenimport.tests import packages
from xenimport.tests import reading
from xenimport import stream_decoders

#: Bytes that are decoded of one mutant.
_MOST = 32 << 20
_PLAIN = b''.join(bytes((number % 251,)) * 700 for number in range(200))


def _gzips() -> list[mutation.Sample]:
    two = gzip.compress(_PLAIN, 6, mtime=0) + gzip.compress(b'x', mtime=0)
    return [
        mutation.Sample('one', gzip.compress(_PLAIN, mtime=0), hot=[(0, 16)]),
        mutation.Sample('two', two + bytes(600), hot=[(0, 16)]),
    ]


def _zstds() -> list[mutation.Sample]:
    plain = zstandard.ZstdCompressor(level=3, write_checksum=True)
    bare = zstandard.ZstdCompressor(level=1, write_content_size=False)
    skipped = b'\x50\x2a\x4d\x18' + (7).to_bytes(4, 'little') + b'skipped'
    data = plain.compress(_PLAIN)
    return [
        mutation.Sample('one', data, hot=[(0, 20)]),
        mutation.Sample(
            'several',
            bare.compress(_PLAIN) + skipped + data,
            hot=[(0, 20)],
        ),
        mutation.Sample('raw blocks', plain.compress(bytes(range(256)))),
    ]


def _packages() -> list[mutation.Sample]:
    vhd = packages.dynamic_vhd(b'v' * 16384, block_size=4096)
    disk = packages.Disk('11', 'a.vhd', 16384)
    data = tars.build(
        {'guest.ovf': packages.xencenter_ovf([disk]), 'a.vhd': vhd}
    )
    return [
        mutation.Sample('gzip', gzip.compress(data, mtime=0), hot=[(0, 16)]),
        mutation.Sample(
            'zstd', zstandard.ZstdCompressor().compress(data), hot=[(0, 20)]
        ),
    ]


def _drain(data: bytes) -> bytes:
    """Decode with reads of one size and then with peeks of others."""
    with contextlib.closing(
        stream_decoders.decoded(cases.Arriving(data, 'mutant'))
    ) as stream:
        stream.peek(3)
        stream.skip(1)
        result = stream.read(_MOST)
        stream.finish()
        return result


class CompressedTest(cases.FuzzTest):
    """Nothing but the product's own errors."""

    @cases.settings
    @hypothesis.given(mutation.mutants(_gzips()))
    def test_gzip(self, mutant: mutation.Mutant) -> None:
        data = mutant.build()
        found = self.check(_drain, data)
        if found is not None and data.startswith(b'\x1f\x8b\x08'):
            # Python's own reader takes no less than we do.
            with contextlib.suppress(gzip.BadGzipFile, EOFError):
                self.assertEqual(gzip.decompress(data)[1:], found)

    @cases.settings
    @hypothesis.given(mutation.mutants(_zstds()))
    def test_zstd(self, mutant: mutation.Mutant) -> None:
        self.check(_drain, mutant.build())

    @cases.settings
    @hypothesis.given(mutation.mutants(_packages()))
    def test_package(self, mutant: mutation.Mutant) -> None:
        path = self.write('guest.ova.gz', mutant.build())
        self.check(reading.read, [path])
