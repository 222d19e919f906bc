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

"""qcow2, VHDX and VDI, written and judged by qemu's own programs.

Needs qemu-img, qemu-nbd and libnbd's Python binding.
"""

from __future__ import annotations

import filecmp
import importlib.util
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
import typing
import unittest
from unittest import mock

from xenimport.converter import copy
from xenimport.converter import qcow2
from xenimport.converter import qcow2_output
from xenimport.converter import qemu
from xenimport.converter import serve
from xenimport.converter import vdi
from xenimport.converter import vhdx
from xenimport import exceptions
from xenimport import model
from xenimport.tests import qemu_images

MIB = 1024 * 1024
#: Not a multiple of any cluster or block, nor of 4096 bytes.
SIZE = 37 * MIB + 1536
CONVERTERS: dict[str, qemu.QemuConverter] = {
    'qcow2': qcow2.Qcow2Converter(),
    'vhdx': vhdx.VhdxConverter(),
    'vdi': vdi.VdiConverter(),
}
#: What qemu-img writes: format, its options, and whether it compresses.
KINDS = (
    ('qcow2', 'compat=0.10', False),
    ('qcow2', 'compat=1.1', False),
    ('qcow2', 'cluster_size=512', False),
    ('qcow2', 'cluster_size=2M', False),
    ('qcow2', 'preallocation=metadata', False),
    ('qcow2', 'preallocation=full', False),
    ('qcow2', 'lazy_refcounts=on', False),
    ('qcow2', 'compression_type=zlib', True),
    ('qcow2', 'compression_type=zstd', True),
    ('vhdx', 'subformat=dynamic', False),
    ('vhdx', 'subformat=dynamic,block_size=1M', False),
    ('vhdx', 'subformat=fixed', False),
    ('vdi', 'static=off', False),
    ('vdi', 'static=on', False),
)
_MISSING = [
    name
    for name, found in (
        ('qemu-img', shutil.which('qemu-img')),
        ('qemu-nbd', shutil.which('qemu-nbd')),
        ('python3-libnbd', importlib.util.find_spec('nbd')),
    )
    if not found
]


def run(*command: str) -> str:
    done = subprocess.run(
        command, check=True, capture_output=True, text=True, timeout=120
    )
    return done.stdout


def region(
    path: str, offset: int = 0, length: int | None = None
) -> model.Disk:
    """A disk that lies in a file."""
    if length is None:
        length = os.stat(path).st_size - offset
    piece = model.Piece(offset, length, 0)
    name = os.path.basename(path)
    return model.Disk('d', 'd', 0, model.Region(path, name, (piece,)))


@unittest.skipIf(_MISSING, f'not installed: {", ".join(_MISSING)}')
class FormatsTestCase(unittest.TestCase):
    def setUp(self) -> None:
        directory = tempfile.TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        self.directory = directory.name

    def path(self, name: str) -> str:
        return os.path.join(self.directory, name)

    def make_raw(self, size: int = SIZE) -> str:
        """A sparse disk of runs of noise, and something at its end."""
        path = self.path('reference.raw')
        generator = random.Random(size)
        with open(path, 'wb') as stream:
            stream.truncate(size)
            for _ in range(20):
                length = generator.choice((1, 512, 4096, 100_000, MIB))
                stream.seek(generator.randrange(size - length))
                stream.write(generator.randbytes(length))
            stream.seek(size - 512)
            stream.write(b'EFI PART'.ljust(512, b'.'))
        return path

    def write(
        self, name: str, options: str = '', compress: bool = False
    ) -> str:
        """The reference disk, as qemu-img writes it."""
        path = self.path(f'disk.{name}')
        words = ['-c'] if compress else []
        if options:
            words += ['-o', options]
        raw = self.path('reference.raw')
        run('qemu-img', 'convert', '-f', 'raw', '-O', name, *words, raw, path)
        return path

    def open(self, name: str, disk: model.Disk) -> qemu.QemuImage:
        package = model.Package(disk.region.path, 'disk')
        found = [
            converter.format
            for converter in CONVERTERS.values()
            if converter.probe(package, disk)
        ]
        self.assertEqual([name], found)
        image = CONVERTERS[name].open(package, disk)
        self.addCleanup(image.close)
        self.assertIsInstance(image, qemu.QemuImage)
        return typing.cast('qemu.QemuImage', image)

    def save(self, name: str, content: bytes) -> model.Disk:
        path = self.path(name)
        pathlib.Path(path).write_bytes(content)
        return region(path)

    def assert_copied(self, name: str, disk: model.Disk, raw: str) -> None:
        output = self.path('ours.raw')
        with self.open(name, disk) as image:
            copied = copy.copy(image, output)
            self.assertLessEqual(copied.bytes_written, copied.bytes_read)
        self.assertEqual(os.stat(raw).st_size, os.stat(output).st_size)
        self.assertTrue(filecmp.cmp(raw, output, shallow=False))


class RoundTripTest(FormatsTestCase):
    def test_bare(self) -> None:
        raw = self.make_raw()
        for name, options, compress in KINDS:
            with self.subTest(f'{name} {options}'):
                path = self.write(name, options, compress)
                self.assert_copied(name, region(path), raw)

    def test_inside_a_tar(self) -> None:
        """Among other members, and cut where the last sector is not full."""
        raw = self.make_raw()
        other = self.path('other')
        pathlib.Path(other).write_bytes(b'\xff' * 700)
        for name, options, compress in KINDS:
            path = self.write(name, options, compress)
            archive = self.path('package.ova')
            with tarfile.open(archive, 'w') as package:
                for member in other, path, other:
                    package.add(member, os.path.basename(member))
            with tarfile.open(archive) as package:
                member_info = package.getmember(os.path.basename(path))
            disk = region(archive, member_info.offset_data, member_info.size)
            with self.subTest(f'{name} {options}'):
                self.assert_copied(name, disk, raw)

    def test_at_an_odd_offset(self) -> None:
        """No archive puts it there, but nothing forbids it."""
        raw = self.make_raw()
        for name in CONVERTERS:
            content = pathlib.Path(self.write(name)).read_bytes()
            for before, after in (701, 0), (701, 99):
                path = self.path('odd')
                pathlib.Path(path).write_bytes(
                    b'x' * before + content + b'y' * after
                )
                with self.subTest(f'{name} {before} {after}'):
                    self.assert_copied(
                        name, region(path, before, len(content)), raw
                    )

    def test_end_within_a_sector(self) -> None:
        raw = self.make_raw()
        path = self.write('qcow2', '', True)
        with open(path, 'ab') as stream:
            stream.write(b'x' * 77)
        self.assert_copied('qcow2', region(path), raw)

    def test_reads_go_with_the_data(self) -> None:
        """Holes are known as such, in each format."""
        path = self.path('reference.raw')
        with open(path, 'wb') as stream:
            stream.truncate(1024 * MIB)
            stream.seek(700 * MIB)
            stream.write(b'data')
        for name, options, most in (
            ('qcow2', '', 64 * 1024),
            ('vhdx', 'block_size=1M', MIB),
            ('vdi', '', MIB),
        ):
            with self.subTest(name):
                image = self.open(name, region(self.write(name, options)))
                self.assertLessEqual(copy.data_size(image), most)
                extents = list(image.extents())
                self.assertEqual(3, len(extents))
                self.assertEqual(1024 * MIB, sum(e[1] for e in extents))

    def test_many_threads_at_once(self) -> None:
        raw = pathlib.Path(self.make_raw()).read_bytes()
        image = self.open('qcow2', region(self.write('qcow2', '', True)))
        failures: list[int] = []

        def read(seed: int) -> None:
            generator = random.Random(seed)
            for _ in range(40):
                offset = generator.randrange(0, SIZE - 70_000)
                length = generator.randrange(1, 70_000)
                if image.pread(offset, length) != raw[offset:][:length]:
                    failures.append(offset)

        threads = [
            threading.Thread(target=read, args=(seed,)) for seed in range(4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.assertEqual([], failures)

    def test_internal_snapshot_is_noted(self) -> None:
        raw = self.make_raw()
        path = self.write('qcow2')
        run('qemu-img', 'snapshot', '-c', 'before', path)
        image = self.open('qcow2', region(path))
        self.assertEqual(
            ['qcow2.snapshots'], [finding.id for finding in image.findings]
        )
        self.assert_copied('qcow2', region(path), raw)


class OwnWritersTest(FormatsTestCase):
    """The images of the unit tests are what qemu takes them for."""

    def test_sound(self) -> None:
        noise = random.Random(7).randbytes(4096)
        for name, content, place in (
            ('qcow2', qemu_images.qcow2({700: noise}, 4 * MIB), 700 * 4096),
            ('vdi', qemu_images.vdi({2: noise}, 3 * MIB), 2 * MIB),
            ('vhdx', qemu_images.vhdx({2: noise}, 3 * MIB), 2 * MIB),
        ):
            disk = self.save(name, content)
            with self.subTest(name):
                run('qemu-img', 'check', '-f', name, disk.region.path)
                image = self.open(name, disk)
                self.assertEqual(noise, image.pread(place, 4096))
                self.assertEqual(bytes(4096), image.pread(0, 4096))

    def test_block_after_a_sector_bitmap(self) -> None:
        noise = random.Random(8).randbytes(4096)
        size = 4098 * MIB
        disk = self.save('vhdx', qemu_images.vhdx({4097: noise}, size))
        image = self.open('vhdx', disk)
        self.assertEqual(noise, image.pread(4097 * MIB, 4096))
        self.assertEqual(
            [(0, 4097 * MIB, False), (4097 * MIB, MIB, True)],
            list(image.extents()),
        )


class HostileTest(FormatsTestCase):
    def refused(self, name: str, disk: model.Disk, error_id: str) -> None:
        package = model.Package(disk.region.path, 'disk')
        with (
            mock.patch('subprocess.Popen', autospec=True) as started,
            self.assertRaises(exceptions.DiskImageError) as caught,
        ):
            CONVERTERS[name].open(package, disk)
        self.assertEqual(error_id, caught.exception.id)
        started.assert_not_called()

    def test_names_other_files(self) -> None:
        secret = self.path('secret.raw')
        pathlib.Path(secret).write_bytes(b'secret'.ljust(MIB, b'!'))
        path = self.path('disk.qcow2')
        json_name = (
            'json:{"driver":"raw","file":{"driver":"file","filename":'
            f'"{secret}"}}}}'
        )
        for backing in secret, 'secret.raw', json_name, '/etc/passwd':
            with self.subTest(backing):
                run('qemu-img', 'create', '-q', '-u', '-f', 'qcow2', '-b',
                    backing, '-F', 'raw', path, '1M')  # fmt: skip
                self.refused('qcow2', region(path), 'qcow2.backing-file')
        run('qemu-img', 'create', '-q', '-f', 'qcow2', '-o',
            f'data_file={self.path("data")}', path, '1M')  # fmt: skip
        self.refused('qcow2', region(path), 'qcow2.data-file')

    def test_encrypted(self) -> None:
        path = self.path('disk.qcow2')
        command = (
            'qemu-img', 'create', '-q', '-f', 'qcow2', '--object',
            'secret,id=s,data=password', '-o',
            'encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10',
            path, '1M',
        )  # fmt: skip
        # qemu-img times its key derivation, and gives up now and then.
        for _ in range(5):
            if not subprocess.run(command, capture_output=True).returncode:
                break
        self.refused('qcow2', region(path), 'qcow2.encrypted')

    def test_extended_l2_entries(self) -> None:
        path = self.path('disk.qcow2')
        run('qemu-img', 'create', '-q', '-f', 'qcow2', '-o',
            'extended_l2=on', path, '1M')  # fmt: skip
        self.refused('qcow2', region(path), 'qcow2.features')

    def test_old_version(self) -> None:
        path = self.path('disk.qcow2')
        run('qemu-img', 'create', '-q', '-f', 'qcow', path, '1M')
        self.refused('qcow2', region(path), 'qcow2.version')

    def test_cut_short(self) -> None:
        """qemu itself would read zeros, and say nothing."""
        self.make_raw(32 * MIB)
        for name in CONVERTERS:
            path = self.write(name)
            length = os.stat(path).st_size
            for cut in 1, 512, 65536, length // 2:
                with self.subTest(f'{name} {cut}'):
                    os.truncate(path, length - cut)
                    disk = region(path)
                    self.refused(name, disk, 'disk-image.truncated')
                path = self.write(name)

    def test_file_far_larger_than_its_data(self) -> None:
        """Sparse, and said to be as large as a file can be."""
        self.make_raw()
        for name in CONVERTERS:
            path = self.write(name)
            for size in 1 << 62, 1 << 43:
                try:
                    os.truncate(path, size)
                except OSError:
                    continue  # more than this file system can hold
                with self.subTest(f'{name} {size}'):
                    image = self.open(name, region(path))
                    self.assertEqual(SIZE, image.virtual_size)
                    image.close()
                break

    def test_opens_nothing_but_the_package(self) -> None:
        self.make_raw()
        for name in CONVERTERS:
            path = self.write(name)
            image = self.open(name, region(path))
            image.pread(0, 4096)
            with self.subTest(name):
                self.assertEqual({path}, self.files(image))
            image.close()

    def test_exchanged_after_the_check(self) -> None:
        """Even then qemu follows no name, and the change is noticed."""
        secret = self.path('secret.raw')
        pathlib.Path(secret).write_bytes(b'secret'.ljust(MIB, b'!'))
        path = self.path('disk.qcow2')
        run('qemu-img', 'create', '-q', '-f', 'qcow2', '-b', secret, '-F',
            'raw', path, '1M')  # fmt: skip
        with (
            mock.patch.object(
                qcow2.Qcow2Converter,
                '_layout',
                autospec=True,
                return_value=qemu.Layout(MIB),
            ),
            mock.patch.object(qemu, '_inspect', autospec=True),
        ):
            image = self.open('qcow2', region(path))
        self.assertEqual(bytes(6), image.pread(0, 6))
        self.assertEqual({path}, self.files(image))

    def files(self, image: qemu.QemuImage) -> set[str]:
        """The regular files that qemu-nbd has open, its log left out."""
        found = set()
        for entry in pathlib.Path(
            f'/proc/{image.server.process}/fd'
        ).iterdir():
            name = os.readlink(entry)
            if os.path.isfile(name) and os.path.basename(name) != 'log':
                found.add(name)
        return found

    def test_limits_are_set(self) -> None:
        self.make_raw()
        image = self.open('vdi', region(self.write('vdi')))
        limits = pathlib.Path(
            f'/proc/{image.server.process}/limits'
        ).read_text('ascii')
        self.assertRegex(limits, r'Max address space +2147483648 ')
        self.assertRegex(limits, r'Max core file size +0 ')
        self.assertRegex(limits, r'Max file size +65536 ')

    def test_damaged_data(self) -> None:
        """Compressed data that do not inflate are an error of the image."""
        text = b''.join(b'%d ' % number for number in range(2_000_000))
        pathlib.Path(self.path('reference.raw')).write_bytes(text[: 8 * MIB])
        path = self.write('qcow2', '', True)
        with open(path, 'r+b') as stream:
            stream.seek(os.stat(path).st_size // 2)
            stream.write(b'\xff' * 100_000)
        output = self.path('ours.raw')
        image = self.open('qcow2', region(path))
        with self.assertRaises(exceptions.DiskImageError) as caught:
            copy.copy(image, output)
        self.assertEqual('disk-image.read-failed', caught.exception.id)
        self.assertRegex(
            caught.exception.found or '', 'error, offset [0-9]+ of the disk'
        )
        self.assertFalse(os.path.exists(output))

    def test_refused_by_qemu_alone(self) -> None:
        """A header of a length that nobody knows is left to qemu."""
        content = qemu_images.qcow2({}, MIB, refcount_order=7)
        disk = self.save('disk', content)
        with self.assertRaises(exceptions.DiskImageError) as caught:
            CONVERTERS['qcow2'].open(model.Package('', 'disk'), disk)
        self.assertEqual('disk-image.refused', caught.exception.id)
        self.assertRegex(caught.exception.found or '', r'(?i)\ARef.*ount')


class ProcessTest(FormatsTestCase):
    def gone(self, process: int) -> bool:
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            try:
                stat = pathlib.Path(f'/proc/{process}/stat').read_text()
            except OSError:
                return True
            if stat.rpartition(')')[2].split()[0] in 'ZX':
                return True
            time.sleep(0.02)
        return False

    def test_ends_when_closed(self) -> None:
        self.make_raw()
        before = set(os.listdir('/proc/self/fd'))
        image = self.open('vdi', region(self.write('vdi')))
        process = image.server.process
        directory = os.path.dirname(image.server.log)
        self.assertEqual(0o700, os.stat(directory).st_mode & 0o777)
        image.pread(0, 512)
        image.close()
        self.assertTrue(self.gone(process))
        self.assertFalse(os.path.exists(directory))
        self.assertEqual(before, set(os.listdir('/proc/self/fd')))

    def test_ends_with_us_however_we_end(self) -> None:
        self.make_raw()
        script = (
            'import sys, time\n'
            'from xenimport.tests.functional import test_qemu_formats as t\n'
            'disk = t.region(sys.argv[1])\n'
            'image = t.CONVERTERS["vdi"].open(None, disk)\n'
            'print(image.server.process, image.server.log, flush=True)\n'
            'time.sleep(60)\n'
        )
        child = subprocess.Popen(
            [sys.executable, '-c', script, self.write('vdi')],
            stdout=subprocess.PIPE,
            text=True,
        )
        self.addCleanup(child.wait)
        self.addCleanup(child.kill)
        assert child.stdout is not None
        self.addCleanup(child.stdout.close)
        process, log = child.stdout.readline().split()
        self.addCleanup(shutil.rmtree, os.path.dirname(log))
        child.send_signal(signal.SIGKILL)
        self.assertTrue(self.gone(int(process)))

    def test_killed_while_it_is_read(self) -> None:
        self.make_raw()
        image = self.open('vdi', region(self.write('vdi')))
        image.pread(0, 512)
        os.kill(image.server.process, signal.SIGKILL)
        for read in (
            lambda: image.pread(0, 512),
            lambda: list(image.extents()),
        ):
            with self.assertRaises(exceptions.DiskImageError) as caught:
                read()
            self.assertEqual('disk-image.read-failed', caught.exception.id)
            self.assertIn('exit code -9', caught.exception.found or '')


@unittest.skipIf(
    not (shutil.which('nbdkit') and shutil.which('nbdcopy')),
    'not installed: nbdkit or nbdcopy',
)
class ServedTest(FormatsTestCase):
    """As ``inspect`` sees them: a server in a server."""

    def test_each_format(self) -> None:
        raw = self.make_raw()
        temporary = self.path('tmp')
        os.mkdir(temporary)
        for name, converter in CONVERTERS.items():
            disk = region(self.write(name))
            package = model.Package(disk.region.path, 'disk')
            system = model.VirtualSystem('guest', package, (disk,))
            output = self.path('served.raw')
            with (
                self.subTest(name),
                mock.patch.dict(os.environ, TMPDIR=temporary),
            ):
                with serve.served(
                    system, disk, converter, self.directory
                ) as server:
                    run('nbdcopy', server.uri, output)
                self.assertTrue(filecmp.cmp(raw, output, shallow=False))
                # nbdkit closes no image; all goes away with it.
                self.assertEqual([], os.listdir(temporary))


class OutputTest(FormatsTestCase):
    def test_same_disk(self) -> None:
        raw = self.make_raw()
        seen: list[tuple[int, int]] = []
        path = self.path('out.qcow2')
        size = qcow2_output.write(
            raw, path, lambda done, total: seen.append((done, total))
        )
        self.assertEqual(SIZE, size)
        run('qemu-img', 'compare', '-f', 'raw', '-F', 'qcow2', raw, path)
        self.assertEqual((0, SIZE), seen[0])
        self.assertEqual((SIZE, SIZE), seen[-1])
        self.assertEqual(sorted(seen), seen)
        self.assertEqual(0o600, os.stat(path).st_mode & 0o777)
        # And our own reader, which shares nothing with the writer.
        self.assert_copied('qcow2', region(path), raw)

    def test_sparse(self) -> None:
        raw = self.path('reference.raw')
        with open(raw, 'wb') as stream:
            stream.truncate(4096 * MIB)
            stream.seek(3000 * MIB)
            stream.write(b'data')
        path = self.path('out.qcow2')
        qcow2_output.write(raw, path)
        self.assertLess(os.stat(path).st_size, MIB)

    def test_file_system_that_is_full(self) -> None:
        place = self.path('small')
        os.mkdir(place)
        try:
            run('mount', '-t', 'tmpfs', '-o', 'size=2m', 'none', place)
        except (OSError, subprocess.CalledProcessError):
            self.skipTest('may not mount a tmpfs')
        self.addCleanup(run, 'umount', place)
        raw = self.make_raw()
        with self.assertRaises(exceptions.MachineError) as caught:
            qcow2_output.write(raw, os.path.join(place, 'out.qcow2'))
        self.assertEqual('machine.no-space', caught.exception.id)
        self.assertEqual([], os.listdir(place))
