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

"""Bare files of any content under any name."""

from __future__ import annotations

import hypothesis
from hypothesis import strategies

from xenimport.tests.fuzz import cases
from xenimport.tests import packages
from xenimport.tests import vmdk_packages

_MARKS = (
    b'',
    b'conectix',
    b'vhdxfile',
    b'KDMV',
    b'COWD',
    b'\xbe\xba\xfe\xca',
    b'# Disk DescriptorFile\n',
    b'QFI\xfb',
    b'<<< Oracle VM VirtualBox Disk Image >>>\n',
    b'XFSB',
    b'<',
    b'<Envelope>',
    b'\x1f\x8b\x08',
    b'\x28\xb5\x2f\xfd',
    b'PK\x03\x04',
    b'cxsparse',
    packages.footer(4096),
    packages.footer(4096, packages.FIXED),
    vmdk_packages.header(64),
    packages.write_ova.__doc__.encode() if packages.write_ova.__doc__ else b'',
)
_CONTENT = strategies.lists(
    strategies.one_of(
        strategies.sampled_from(_MARKS),
        strategies.binary(max_size=64),
        strategies.sampled_from((1, 446, 502, 510, 511, 512, 513)).map(bytes),
        strategies.just(b'\x55\xaa'),
    ),
    max_size=8,
).map(b''.join)
_NAMES = strategies.sampled_from(
    (
        'a', 'a.vhd', 'a.vmdk', 'a.raw', 'a.img', 'a.vhdx', 'a.ova', 'a.ovf',
        'a.xva', 'a.raw.gz', 'a.vdi', 'a.tar', 'a.iso',
    )
)  # fmt: skip


class DiskTest(cases.FuzzTest):
    """Nothing but the product's own errors, and both ways agree."""

    @cases.settings
    @hypothesis.given(_NAMES, _CONTENT)
    def test_content(self, name: str, content: bytes) -> None:
        # One that names qcow2 would start qemu, which test_qemu is about.
        hypothesis.assume(not content.startswith(b'QFI\xfb'))
        self.check_both(self.write(name, content))
