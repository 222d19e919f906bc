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

"""Mutants of OVF packages: descriptor, manifest and tar."""

from __future__ import annotations

import functools
import gzip
import os
import tarfile

import hypothesis

from xenimport.tests.fuzz import cases
from xenimport.tests.fuzz import mutation
from xenimport.tests.fuzz import tars
from xenimport.tests import ovf_packages
from xenimport.tests import packages
from xenimport.tests import reading

_RAW = b'raw!' * 1024


def _contents() -> dict[str, bytes]:
    """The files that the descriptors below name."""
    vhd = packages.dynamic_vhd(b'v' * 16384, block_size=4096)
    return {
        'a.vhd': vhd,
        'b.raw': _RAW,
        'c.raw.gz': gzip.compress(_RAW, mtime=0),
        **ovf_packages.parts('d.raw', _RAW, 1024),
    }


@functools.cache
def _descriptors() -> list[mutation.Sample]:
    ovf = ovf_packages
    xen = [
        packages.Disk('11', 'a.vhd', 16384, 0),
        packages.Disk('12', 'b.raw', 4096, 1),
    ]
    files = [
        ovf.File('f1', 'b.raw'),
        ovf.File('f2', 'c.raw.gz', 'ovf:compression="gzip"'),
        ovf.File('f3', 'd.raw', 'ovf:chunkSize="1024" ovf:size="4096"'),
    ]
    disks = [
        ovf.Disk('d1', 'f1', '4', 'byte * 2^10'),
        ovf.Disk('d2', 'f2', '4096'),
        ovf.Disk('d3', 'f3', '4096'),
    ]
    drives = [
        ovf.Drive(10 + number, 3, number, f'ovf:/disk/d{number + 1}')
        for number in range(3)
    ]
    texts = {
        'xencenter': packages.xencenter_ovf(
            xen, settings={'HVM_boot_policy': 'BIOS order'}
        ),
        'xen orchestra': packages.xen_orchestra_ovf(xen, firmware='uefi'),
        'vmware': ovf.vmware_ovf(
            files, disks, [ovf.Controller(3, ovf.SCSI)], drives, boot='10'
        ),
        'virtualbox': ovf.virtualbox_ovf(
            [('v1', 'a.vhd', 'u1'), ('v2', 'b.raw', 'u2')],
            [('AHCI', [(0, 0, 'u1'), (1, 0, 'u2')])],
        ),
    }
    return [mutation.Sample(name, text) for name, text in texts.items()]


def _manifests() -> list[mutation.Sample]:
    text = _descriptors()[2].data
    return [
        mutation.Sample(
            algorithm,
            ovf_packages.manifest(
                {'guest.ovf': text, **_contents()}, algorithm
            ),
        )
        for algorithm in ('sha1', 'sha256', 'sha512')
    ]


def _tars() -> list[mutation.Sample]:
    members = {
        'guest.ovf': _descriptors()[2].data,
        **_contents(),
        # Long enough for extended headers.
        'n' * 80 + '/' + 'm' * 90: b'1',
        'p/' + 'q' * 180: b'2',
        '\u00e9.txt': b'3',
    }
    short = {name: data for name, data in members.items() if len(name) < 99}
    return [
        tars.sample('ustar', tars.build(short)),
        tars.sample('pax', tars.build(members, tarfile.PAX_FORMAT)),
        tars.sample('gnu', tars.build(members, tarfile.GNU_FORMAT)),
    ]


class OvfTest(cases.FuzzTest):
    """Nothing but the product's own errors, and both ways agree."""

    @cases.settings
    @hypothesis.given(mutation.mutants(_descriptors()))
    def test_text(self, mutant: mutation.Mutant) -> None:
        members = {'guest.ovf': mutant.build(), **_contents()}
        self.check_both(self.write('guest.ova', tars.build(members)))

    @cases.settings
    @hypothesis.given(
        mutation.documents([sample.data for sample in _descriptors()])
    )
    def test_descriptor(self, text: bytes) -> None:
        members = {'guest.ovf': text, **_contents()}
        self.check_both(self.write('guest.ova', tars.build(members)))

    @cases.settings
    @hypothesis.given(
        mutation.documents([sample.data for sample in _descriptors()])
    )
    def test_descriptor_in_a_directory(self, text: bytes) -> None:
        folder = os.path.join(self.directory, 'folder')
        ovf_packages.write_folder(folder, {'guest.ovf': text, **_contents()})
        self.check(reading.read, [folder])

    @cases.settings
    @hypothesis.given(mutation.mutants(_manifests()))
    def test_manifest(self, mutant: mutation.Mutant) -> None:
        members = {
            'guest.ovf': _descriptors()[2].data,
            'guest.mf': mutant.build(),
            **_contents(),
        }
        self.check_both(self.write('guest.ova', tars.build(members)))

    @cases.settings
    @hypothesis.given(mutation.mutants(_tars()))
    def test_tar(self, mutant: mutation.Mutant) -> None:
        self.check_both(self.write('guest.ova', mutant.build()))
