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

"""The sample guest is what an old paravirtual Xen guest looks like."""

from __future__ import annotations

import gzip
import pathlib
import subprocess
import tarfile
import tempfile
import unittest

from xenimport.tests.functional import guests
from xenimport.tests.functional import qemu


def _debugfs(raw: pathlib.Path, request: str) -> str:
    """What debugfs says about the guest's only file system."""
    done = subprocess.run(
        ['/usr/sbin/debugfs', '-R', request, f'{raw}?offset=1048576'],
        capture_output=True,
        text=True,
        errors='replace',
        check=True,
    )
    return done.stdout


class SampleTest(unittest.TestCase):
    """Its disk, its package, and that it does not boot."""

    def setUp(self) -> None:
        super().setUp()
        self.guest = guests.build()

    def test_is_built_once(self) -> None:
        before = self.guest.ova.stat()
        after = guests.build().ova.stat()
        self.assertEqual(before.st_ino, after.st_ino)

    def test_has_a_partition_but_no_boot_code(self) -> None:
        with open(self.guest.raw, 'rb') as disk:
            sectors = disk.read(2048 * 512)
        self.assertEqual(bytes(440), sectors[:440])
        self.assertEqual(bytes(2047 * 512), sectors[512:])
        dump = subprocess.run(
            ['/usr/sbin/sfdisk', '--dump', str(self.guest.raw)],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        self.assertIn('start=        2048, size=     2455552, type=83', dump)

    def test_is_set_up_for_xen_only(self) -> None:
        raw = self.guest.raw
        self.assertIn('/dev/xvda1 / ext4', _debugfs(raw, 'cat /etc/fstab'))
        self.assertIn('console=hvc0', _debugfs(raw, 'cat /boot/grub/menu.lst'))
        self.assertIn(
            'blacklist virtio_blk',
            _debugfs(raw, 'cat /etc/modprobe.d/blacklist-virtio.conf'),
        )
        for unit in ('getty@tty1', 'serial-getty@ttyS0'):
            with self.subTest(unit=unit):
                link = _debugfs(
                    raw, f'stat /etc/systemd/system/{unit}.service'
                )
                self.assertIn('Fast link dest: "/dev/null"', link)

    def test_initramfs_has_xen_and_no_virtio(self) -> None:
        raw = self.guest.raw
        names = _debugfs(raw, 'ls -p /boot').split('/')
        (name,) = [name for name in names if name.startswith('initrd.img-')]
        scratch = tempfile.TemporaryDirectory()
        self.addCleanup(scratch.cleanup)
        initrd = pathlib.Path(scratch.name) / 'initrd'
        _debugfs(raw, f'dump /boot/{name} {initrd}')
        done = subprocess.run(
            ['cpio', '--list', '--quiet'],
            input=gzip.decompress(initrd.read_bytes()),
            capture_output=True,
            check=True,
        )
        modules = [
            line.rsplit('/', 1)[1]
            for line in done.stdout.decode().splitlines()
            if line.endswith('.ko')
        ]
        self.assertIn('xen-blkfront.ko', modules)
        self.assertIn('ext4.ko', modules)
        self.assertEqual([], [name for name in modules if 'virtio' in name])

    def test_package_holds_the_same_bytes(self) -> None:
        with tarfile.open(self.guest.ova) as archive:
            ovf, vhd = archive.getmembers()
        self.assertTrue(ovf.name.endswith('.ovf'))
        self.assertEqual(f'{self.guest.spec.uuid("vdi")}.vhd', vhd.name)
        # qemu-img sizes a VHD of creator "caml" by its geometry, unless
        # it is told not to: an independent reader of the same disk.
        driver = (
            'driver=vpc,force_size_calc=current_size,file.driver=raw,'
            f'file.offset={vhd.offset_data},file.size={vhd.size},'
            f'file.file.driver=file,file.file.filename={self.guest.ova}'
        )
        subprocess.run(
            [
                'qemu-img', 'compare', '-q', '--image-opts', driver,
                f'driver=raw,file.filename={self.guest.raw}',
            ],
            check=True,
        )  # fmt: skip

    def test_does_not_boot(self) -> None:
        for bus in ('virtio', 'scsi'):
            with self.subTest(bus=bus):
                result = qemu.boot(self.guest.raw, bus=bus, hang=12)
                self.assertEqual('hung', result.outcome, str(result))
                self.assertIn('Booting from Hard Disk', result.firmware)
                self.assertEqual('', result.serial.strip())
                # GRUB alone would read about a thousand times.
                self.assertLess(result.reads, 5)
                self.assertEqual(0, result.writes)
