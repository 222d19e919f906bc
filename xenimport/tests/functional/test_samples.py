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

"""Images that other programs wrote, from Debian's source package of QEMU.

Hyper-V, Virtual PC and disk2vhd wrote them, VMware, and a fuzzer. The
package is fetched once, through the apt sources of this machine, into the
cache of the tests. Needs apt-get and qemu-img.
"""

from __future__ import annotations

import bz2
import dataclasses
import functools
import os
import pathlib
import platform
import re
import shutil
import subprocess
import tarfile
import tempfile
import unittest

from xenimport.converter import base
from xenimport.converter import copy
from xenimport.converter import qcow2
from xenimport.converter import raw
from xenimport.converter import vdi
from xenimport.converter import vhd
from xenimport.converter import vhdx
from xenimport.converter import vmdk
from xenimport import exceptions
from xenimport import model
from xenimport.tests.functional import guests

_FOLDER = 'tests/qemu-iotests/sample_images'
_STEP = 1024 * 1024
#: In the order in which the product asks them: the certain ones first.
CONVERTERS: tuple[base.Converter, ...] = (
    qcow2.Qcow2Converter(),
    vhdx.VhdxConverter(),
    vdi.VdiConverter(),
    vmdk.VmdkConverter(),
    vhd.VhdConverter(),
    raw.RawConverter(),
)


@dataclasses.dataclass(frozen=True)
class Sample:
    """An image that can be read.

    :ivar size: bytes of the disk, by the program that wrote the image
    :ivar data: the most bytes that are allocated in it
    :ivar judge: options by which qemu-img reads it right, and so judges
    :ivar creator: what the image says of who wrote it
    """

    name: str
    format: str
    size: int
    data: int
    judge: str
    creator: str | None


SAMPLES = (
    # qemu goes by the current size here only because the creator is
    # "win ": it is told to, as for the others.
    Sample(
        'hyperv2012r2-dynamic.vhd',
        'vhd',
        136365211648,
        0,
        'driver=vpc,force_size_calc=current_size',
        'win',
    ),
    # By itself qemu takes the geometry, and 2 080 768 bytes are lost.
    Sample(
        'virtualpc-dynamic.vhd',
        'vhd',
        136365211648,
        0,
        'driver=vpc,force_size_calc=current_size',
        'vpc',
    ),
    Sample(
        'd2v-zerofilled.vhd',
        'vhd',
        263454720,
        263454720,
        'driver=vpc,force_size_calc=current_size',
        'd2v',
    ),
    # qemu reads VHDX with one driver only, the one that we use: what is
    # compared is the way through it, and our own list of the blocks.
    Sample(
        'iotest-dynamic-1G.vhdx',
        'vhdx',
        1073741824,
        100663296,
        'driver=vhdx',
        'Microsoft Windows 6.2.9200.16384',
    ),
    Sample(
        'test-disk2vhd.vhdx',
        'vhdx',
        268435456,
        268435456,
        'driver=vhdx',
        'd2v',
    ),
    Sample(
        'iotest-version3.vmdk',
        'vmdk',
        17179869184,
        20971520,
        'driver=vmdk',
        None,
    ),
    # A boot sector, not an image: the bytes are the disk.
    Sample('grub_mbr.raw', 'raw', 512, 512, 'driver=raw', None),
)

#: Images that must be refused, with the id of the error; None is one that
#: no converter takes for its own.
REFUSED = {
    # Written by a fuzzer: an L1 table too large, a block table too large.
    'afl9.vmdk': 'vmdk.',
    'afl5.img': 'vhd.',
    # Changes wait in its log; qemu refuses it as well.
    'iotest-dirtylog-10G-4M.vhdx': 'vhdx.open-log',
}


@functools.cache
def samples() -> pathlib.Path:
    """The directory with the images, unpacked; fetched if need be.

    :raises unittest.SkipTest: if they cannot be had
    """
    missing = [
        name
        for name in ('apt-get', 'qemu-img', 'qemu-nbd')
        if shutil.which(name) is None
    ]
    if missing:
        raise unittest.SkipTest(f'not installed: {", ".join(missing)}')
    cache = guests.cache_directory()
    found = cache / 'qemu-samples-1'
    if found.is_dir():
        return found
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache) as name:
        directory = pathlib.Path(name)
        unpacked = directory / 'samples'
        unpacked.mkdir()
        _unpack(_fetch(directory), unpacked)
        try:
            unpacked.rename(found)
        except OSError:
            # Another run was faster.
            if not found.is_dir():
                raise
    return found


def _fetch(directory: pathlib.Path) -> pathlib.Path:
    """The source archive, downloaded; apt's own state is left alone."""
    suite = platform.freedesktop_os_release().get('VERSION_CODENAME', '')
    sources = guests.apt_sources(suite)
    if not sources:
        raise unittest.SkipTest(f'no apt sources of {suite or "this system"}')
    suffix = 'sources' if 'URIs:' in sources else 'list'
    sources = re.sub(r'(?m)^Types:.*$', 'Types: deb-src', sources)
    sources = re.sub(r'(?m)^deb\s', 'deb-src ', sources)
    for name in 'parts', 'lists/partial', 'cache/archives/partial', 'source':
        (directory / name).mkdir(parents=True)
    (directory / 'parts' / f'source.{suffix}').write_text(sources)
    for words in ('update',), ('source', '--download-only', 'qemu'):
        done = subprocess.run(
            [
                'apt-get',
                '-q',
                '-o',
                'Dir::Etc::SourceList=/dev/null',
                '-o',
                f'Dir::Etc::SourceParts={directory}/parts',
                '-o',
                f'Dir::State::Lists={directory}/lists',
                '-o',
                f'Dir::Cache={directory}/cache',
                '-o',
                'APT::Sandbox::User=root',
                *words,
            ],
            cwd=directory / 'source',
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            timeout=600,
            check=False,
        )
        if done.returncode:
            last = done.stderr.strip().splitlines()[-1:]
            raise unittest.SkipTest(
                f'apt-get {words[0]} failed: {"".join(last)}'
            )
    archives = sorted((directory / 'source').glob('qemu_*.orig.tar.*'))
    if not archives:
        raise unittest.SkipTest('the source package has no archive')
    return archives[0]


def _unpack(archive: pathlib.Path, directory: pathlib.Path) -> None:
    """Unpack the images alone, holes left out."""
    with tarfile.open(archive) as package:
        for member in package:
            folder, _, name = member.name.rpartition('/')
            if not folder.endswith(_FOLDER) or not name.endswith('.bz2'):
                continue
            stream = package.extractfile(member)
            if stream is None:
                continue
            target = directory / name.removesuffix('.bz2')
            with bz2.open(stream) as content, target.open('wb') as output:
                while data := content.read(_STEP):
                    if data.strip(b'\0'):
                        output.write(data)
                    else:
                        output.seek(len(data), os.SEEK_CUR)
                output.truncate()


def region(path: pathlib.Path) -> model.Disk:
    piece = model.Piece(0, path.stat().st_size, 0)
    return model.Disk(
        'd', 'd', 0, model.Region(os.fspath(path), path.name, (piece,))
    )


def converter_of(disk: model.Disk) -> base.Converter | None:
    """Whoever takes the disk for its own, as the product asks them."""
    package = model.Package(disk.region.path, 'disk')
    for converter in CONVERTERS:
        if converter.probe(package, disk):
            return converter
    return None


class SamplesTest(unittest.TestCase):
    def setUp(self) -> None:
        self.samples = samples()
        directory = tempfile.TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        self.directory = pathlib.Path(directory.name)

    def test_same_as_qemu_reads(self) -> None:
        for sample in SAMPLES:
            with self.subTest(sample.name):
                self.compare(sample)

    def compare(self, sample: Sample) -> None:
        path = self.samples / sample.name
        disk = region(path)
        converter = converter_of(disk)
        assert converter is not None, 'no converter knows it'
        ours = self.directory / 'ours.raw'
        package = model.Package(os.fspath(path), 'disk')
        with converter.open(package, disk) as image:
            self.assertEqual(sample.format, image.format)
            self.assertEqual(sample.size, image.virtual_size)
            self.assertEqual(sample.creator, image.creator)
            self.assertLessEqual(copy.data_size(image), sample.data)
            copy.copy(image, os.fspath(ours))
        self.assertEqual(sample.size, ours.stat().st_size)
        # A disk that is longer on one side is no error to qemu-img, if
        # that is zeros: so the size was compared before.
        done = subprocess.run(
            [
                'qemu-img',
                'compare',
                '--image-opts',
                f'driver=raw,file.driver=file,file.filename={ours}',
                f'{sample.judge},file.driver=file,file.filename={path}',
            ],
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        self.assertEqual('Images are identical.\n', done.stdout, done.stderr)
        self.assertEqual('', done.stderr)

    def test_refused(self) -> None:
        for name, error_id in REFUSED.items():
            disk = region(self.samples / name)
            converter = converter_of(disk)
            with self.subTest(name):
                assert converter is not None, 'no converter knows it'
                with self.assertRaises(exceptions.DiskImageError) as caught:
                    converter.open(
                        model.Package(disk.region.path, 'disk'), disk
                    )
                self.assertTrue(
                    caught.exception.id.startswith(error_id),
                    caught.exception.id,
                )

    def test_none_is_forgotten(self) -> None:
        """A new image in the package has to be judged as well."""
        others = {
            # Formats of programs that never met Xen.
            'empty.bochs',
            'parallels-v1',
            'parallels-v2',
            'parallels-with-bitmap',
            'simple-dmg.dmg',
            'simple-pattern.cloop',
        }
        judged = {sample.name for sample in SAMPLES} | set(REFUSED)
        self.assertEqual(
            judged | others, {path.name for path in self.samples.iterdir()}
        )
