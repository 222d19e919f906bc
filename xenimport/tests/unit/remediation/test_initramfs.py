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


from __future__ import annotations

import gzip
import shutil
import subprocess
import unittest
import zlib

from xenimport import exceptions
from xenimport import model
from xenimport.remediation.linux import blacklist
from xenimport.remediation.linux import cpio
from xenimport.remediation.linux import initramfs
from xenimport.remediation.linux import initramfs_image
from xenimport.remediation.linux import modules
from xenimport.tests.unit.remediation import fakes

_DEP = """\
kernel/drivers/virtio/virtio.ko:
kernel/drivers/virtio/virtio_ring.ko: kernel/drivers/virtio/virtio.ko
kernel/drivers/virtio/virtio_pci.ko: kernel/drivers/virtio/virtio_ring.ko \
kernel/drivers/virtio/virtio.ko
kernel/drivers/block/virtio_blk.ko: kernel/drivers/virtio/virtio_ring.ko
kernel/drivers/scsi/virtio_scsi.ko: kernel/drivers/virtio/virtio_ring.ko
kernel/drivers/scsi/sd_mod.ko:
kernel/drivers/net/virtio_net.ko: kernel/drivers/virtio/virtio_ring.ko
kernel/drivers/block/xen-blkfront.ko:
"""
_MODULES = '/lib/modules/6.1.0'
_INITRD = '/boot/initrd.img-6.1.0'


class ModulesTest(unittest.TestCase):
    def test_name_of(self) -> None:
        for path, name in (
            ('kernel/a/xen-blkfront.ko', 'xen_blkfront'),
            ('virtio_blk.ko.xz', 'virtio_blk'),
            ('virtio_blk.ko.zst', 'virtio_blk'),
        ):
            self.assertEqual(name, modules.name_of(path))

    def test_closure(self) -> None:
        paths = modules.closure(
            ['virtio_blk', 'nonsense'], modules.parse_dependencies(_DEP)
        )
        self.assertEqual(
            {'virtio_blk', 'virtio_ring', 'virtio'},
            {modules.name_of(path) for path in paths},
        )
        self.assertEqual(3, len(paths))

    def test_closure_of_a_loop_ends(self) -> None:
        loop = modules.parse_dependencies('a.ko: b.ko\nb.ko: a.ko\n')
        self.assertEqual(['a.ko', 'b.ko'], modules.closure(['a'], loop))

    def test_blocks(self) -> None:
        names = ('virtio_blk',)
        for line, blocked in (
            ('blacklist virtio_blk', True),
            ('  blacklist virtio-blk  ', True),
            ('install virtio_blk /bin/true', True),
            ('install virtio_blk /usr/bin/false # no', True),
            ('alias virtio_blk off', True),
            ('# blacklist virtio_blk', False),
            ('blacklist virtio_blk2', False),
            ('install virtio_blk /sbin/modprobe --ignore-install x', False),
            ('options virtio_blk queue_depth=1', False),
        ):
            with self.subTest(line=line):
                self.assertEqual(blocked, bool(modules.blocks(line, names)))

    def test_with_names(self) -> None:
        self.assertEqual(
            '# virtio_blk\nvirtio-pci\nvirtio_blk\n',
            modules.with_names(
                '# virtio_blk\nvirtio-pci', ['virtio_pci', 'virtio_blk']
            ),
        )


class BlacklistTest(unittest.TestCase):
    def test_comments_out(self) -> None:
        path = '/etc/modprobe.d/xen.conf'
        guest = fakes.FakeGuest(
            {path: '# x\nblacklist virtio_net\nblacklist pcspkr\n'},
            system=fakes.operating_system(),
        )
        found, changes, left = fakes.run(
            blacklist.ModuleBlacklist(fakes.request()), guest
        )
        self.assertEqual(f'{path}:2: blacklist virtio_net', found[0].evidence)
        self.assertEqual([path], [change.path for change in changes])
        self.assertEqual([], left)
        self.assertEqual(
            '# x\n# blacklist virtio_net\nblacklist pcspkr\n',
            guest.read_text(path),
        )


class InitramfsTest(unittest.TestCase):
    def _guest(self, **changed: str | bytes | None) -> fakes.FakeGuest:
        files: dict[str, str | bytes | None] = {
            '/boot/vmlinuz-6.1.0': b'kernel',
            _INITRD: gzip.compress(
                cpio.pack(
                    [
                        cpio.Entry('lib', 0o120777, 7, b'usr/lib'),
                        cpio.directory('usr'),
                        cpio.directory('usr/lib'),
                        cpio.directory('etc'),
                        cpio.directory('etc/modprobe.d'),
                        cpio.regular('conf/initramfs.conf', b''),
                        cpio.regular('conf/modules', b'ext4\n'),
                        cpio.regular(
                            'etc/modprobe.d/x.conf', b'blacklist virtio_blk\n'
                        ),
                    ]
                )
            ),
            f'{_MODULES}/modules.dep': _DEP,
            f'{_MODULES}/modules.dep.bin': b'index',
            f'{_MODULES}/modules.builtin': 'kernel/fs/ext4/ext4.ko\n',
            '/etc/initramfs-tools/modules': 'xen-blkfront\n',
        }
        for line in _DEP.splitlines():
            path = line.partition(':')[0]
            files[f'{_MODULES}/{path}'] = path.encode()
        files.update(changed)
        present = {k: v for k, v in files.items() if v is not None}
        return fakes.FakeGuest(present, system=fakes.operating_system())

    def _check(self, **fields: str) -> initramfs.InitramfsVirtio:
        return initramfs.InitramfsVirtio(fakes.request(**fields))

    def test_append(self) -> None:
        guest = self._guest()
        before = guest.files[_INITRD]
        found, changes, left = fakes.run(self._check(), guest)
        self.assertEqual(1, len(found))
        self.assertIs(model.Severity.BLOCKER, found[0].severity)
        self.assertIn('virtio_ring', found[0].evidence)
        self.assertIn(
            f'{_INITRD}:etc/modprobe.d/x.conf:1: blacklist virtio_blk',
            found[0].evidence,
        )
        self.assertEqual([], left)
        after = guest.files[_INITRD]
        self.assertTrue(after.startswith(before))
        self.assertIn(f'truncate --size {len(before)}', changes[1].undo)
        image = initramfs_image.parse(after)
        home = 'usr/lib/modules/6.1.0'
        for name in (
            f'{home}/kernel/drivers/block/virtio_blk.ko',
            f'{home}/modules.dep.bin',
        ):
            self.assertIn(name, image.entries)
        # The link must stay a link.
        self.assertTrue(image.entries['lib'].is_link)
        self.assertEqual(
            ['ext4', 'virtio_pci', 'virtio_blk', 'virtio_scsi', 'sd_mod',
             'virtio_net'],
            (image.text('conf/modules') or '').split(),
        )  # fmt: skip
        self.assertEqual(
            '# blacklist virtio_blk\n', image.text('etc/modprobe.d/x.conf')
        )

    def test_names_no_directory_that_is_there(self) -> None:
        # The kernel would put an empty one in the place of a link.
        image = initramfs_image.parse(self._guest().files[_INITRD])
        added = initramfs.addition(image, '6.1.0', {'a.ko': b''}, [])
        names = initramfs_image.parse(added).entries
        self.assertIn('usr/lib/modules', names)
        for name in ('lib', 'usr', 'usr/lib', 'etc/modprobe.d'):
            self.assertNotIn(name, names)

    @unittest.skipUnless(shutil.which('lz4'), 'no lz4 here')
    def test_lz4_is_compressed_anew(self) -> None:
        # The kernel takes what follows for one more block of lz4.
        guest = self._guest()
        plain = gzip.decompress(guest.files[_INITRD])
        guest.files[_INITRD] = subprocess.run(
            ['lz4', '-l', '-c', '-q'],
            input=plain,
            capture_output=True,
            check=True,
        ).stdout
        _found, changes, left = fakes.run(self._check(), guest)
        self.assertEqual([], left)
        after = guest.files[_INITRD]
        self.assertEqual(plain, zlib.decompressobj(31).decompress(after))
        image = initramfs_image.parse(after)
        self.assertEqual(['gzip', 'cpio'], [s.kind for s in image.sections])
        self.assertIn('update-initramfs', changes[1].undo)

    def test_configures_initramfs_tools(self) -> None:
        guest = self._guest()
        fakes.run(self._check(), guest)
        self.assertEqual(
            'xen-blkfront\nvirtio_pci\nvirtio_blk\nvirtio_scsi\nsd_mod\n'
            'virtio_net\n',
            guest.read_text('/etc/initramfs-tools/modules'),
        )

    def test_configures_dracut(self) -> None:
        guest = self._guest(
            **{
                '/etc/initramfs-tools/modules': None,
                '/etc/dracut.conf.d/a.conf': '',
                _INITRD: cpio.pack(
                    [cpio.regular('usr/lib/dracut-lib.sh', b'')]
                ),
            }
        )
        _found, _changes, left = fakes.run(self._check(), guest)
        self.assertEqual([], left)
        self.assertIn(
            'add_drivers+=" virtio_pci virtio_blk ',
            guest.read_text('/etc/dracut.conf.d/xenimport-virtio.conf'),
        )
        image = initramfs_image.parse(guest.files[_INITRD])
        self.assertIn('etc/cmdline.d/99-xenimport-virtio.conf', image.entries)

    def test_only_the_bus_that_is_asked_for(self) -> None:
        found = list(self._check(disk_bus='virtio').diagnose(self._guest()))
        self.assertNotIn('virtio_scsi', found[0].evidence)

    def test_a_kernel_without_virtio(self) -> None:
        guest = self._guest(**{f'{_MODULES}/modules.dep': 'kernel/a.ko:\n'})
        (finding,) = self._check().diagnose(guest)
        self.assertIsNone(finding.repair)
        self.assertIn('has no virtio_pci, virtio_blk', finding.evidence)

    def test_builtin_drivers(self) -> None:
        builtin = ''.join(
            f'kernel/{name}.ko\n'
            for name in ('virtio_pci', 'virtio_blk', 'virtio_scsi', 'sd_mod')
        )
        guest = self._guest(
            **{
                f'{_MODULES}/modules.dep': '',
                f'{_MODULES}/modules.builtin': builtin,
                _INITRD: None,
            }
        )
        self.assertEqual([], list(self._check().diagnose(guest)))

    def test_a_kernel_that_is_removed(self) -> None:
        guest = self._guest(**{'/boot/vmlinuz-6.1.0': None})
        self.assertEqual([], list(self._check().diagnose(guest)))

    def test_unreadable(self) -> None:
        guest = self._guest(**{_INITRD: b'nonsense'})
        (finding,) = self._check().diagnose(guest)
        self.assertIn('cannot be unpacked', finding.evidence)
        self.assertIsNone(finding.repair)

    def test_path_outside(self) -> None:
        dep = _DEP.replace(
            'kernel/drivers/block/virtio_blk.ko',
            '../../../etc/virtio_blk.ko',
        )
        guest = self._guest(**{f'{_MODULES}/modules.dep': dep})
        check = self._check()
        (finding,) = check.diagnose(guest)
        with self.assertRaises(exceptions.GuestError) as caught:
            check.repair(guest, finding)
        self.assertEqual('guest.module-path', caught.exception.id)

    def test_rebuild(self) -> None:
        guest = self._guest(**{'/usr/sbin/update-initramfs': ''})
        check = self._check(initramfs='rebuild')
        (finding,) = check.diagnose(guest)
        check.repair(guest, finding)
        self.assertEqual(
            [['/usr/sbin/update-initramfs', '-u', '-k', '6.1.0']],
            guest.commands,
        )

    def test_rebuild_without_a_tool(self) -> None:
        guest = self._guest()
        check = self._check(initramfs='rebuild')
        (finding,) = check.diagnose(guest)
        with self.assertRaises(exceptions.GuestError) as caught:
            check.repair(guest, finding)
        self.assertEqual('guest.initramfs-tool-missing', caught.exception.id)
