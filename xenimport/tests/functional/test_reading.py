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

"""Reading packages, judged by other people's programs.

Needs qemu-img, qemu-io, nbdkit, nbdinfo, nbdcopy, tar and sfdisk; a test
whose program is missing is skipped.
"""

from __future__ import annotations

import array
import filecmp
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import typing
import unittest

from oslo_utils.imageutils import format_inspector

from xenimport.converter import base
from xenimport.converter import copy
from xenimport.converter import raw
from xenimport.converter import serve
from xenimport.converter import vhd
from xenimport.converter import wrap
from xenimport import exceptions
from xenimport import model
from xenimport.source import disk
from xenimport.source import ova
from xenimport.tests import packages

MIB = 1024 * 1024
GIB = 1024 * MIB
ROOT = os.path.dirname(
    os.path.dirname(os.path.dirname(os.path.dirname(__file__)))
)


def needs(*programs: str) -> typing.Callable[[type], type]:
    """Skip the class when a program is missing, naming it."""
    missing = [name for name in programs if shutil.which(name) is None]
    return unittest.skipIf(missing, f'not installed: {", ".join(missing)}')


def run(*command: str) -> str:
    done = subprocess.run(
        command, check=True, capture_output=True, text=True, timeout=120
    )
    return done.stdout


class ReadingTestCase(unittest.TestCase):
    def setUp(self) -> None:
        directory = tempfile.TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        self.directory = directory.name

    def path(self, name: str) -> str:
        return os.path.join(self.directory, name)

    def make_raw(self, size: int, seed: int = 1) -> str:
        """A sparse disk of runs of noise, some of them tiny."""
        path = self.path('reference.raw')
        generator = random.Random(seed)
        with open(path, 'wb') as stream:
            stream.truncate(size)
            for _ in range(8):
                length = generator.choice((1, 512, 4096, 300_000, MIB))
                stream.seek(generator.randrange(size - length))
                stream.write(generator.randbytes(length))
            # The very end must arrive: a GPT's backup stands there.
            stream.seek(size - 512)
            stream.write(b'EFI PART'.ljust(512, b'.'))
        return path

    def open_disk(
        self, path: str
    ) -> tuple[model.VirtualSystem, base.Converter]:
        system = disk.DiskSource().open(path)
        for converter in (vhd.VhdConverter(), raw.RawConverter()):
            if converter.probe(system.package, system.disks[0]):
                return system, converter
        raise AssertionError(f'no converter for {path}')

    def convert(self, path: str) -> str:
        """Copy a bare disk; the path of the RAW file."""
        system, converter = self.open_disk(path)
        output = self.path('ours.raw')
        with converter.open(system.package, system.disks[0]) as image:
            copy.copy(image, output)
        return output

    def assert_same(self, one: str, other: str) -> None:
        self.assertEqual(os.stat(one).st_size, os.stat(other).st_size)
        self.assertTrue(filecmp.cmp(one, other, shallow=False))


@needs('qemu-img')
class QemuTest(ReadingTestCase):
    """Round trips with qemu-img as the writer and as the reader."""

    def test_vhds_that_qemu_wrote(self) -> None:
        reference = self.make_raw(67 * MIB)
        for kind in ('dynamic', 'fixed'):
            with self.subTest(kind=kind):
                path = self.path(f'{kind}.vhd')
                options = f'subformat={kind},force_size=on'
                run('qemu-img', 'convert', '-f', 'raw', '-O', 'vpc',
                    '-o', options, reference, path)  # fmt: skip
                output = self.convert(path)
                self.assert_same(reference, output)
                self.assertLess(os.stat(output).st_blocks * 512, 12 * MIB)

    def test_empty_vhd_that_qemu_made(self) -> None:
        path = self.path('empty.vhd')
        run('qemu-img', 'create', '-q', '-f', 'vpc',
            '-o', 'force_size=on', path, '1G')  # fmt: skip
        output = self.convert(path)
        self.assertEqual(GIB, os.stat(output).st_size)
        self.assertEqual(0, os.stat(output).st_blocks)

    def test_vhds_of_our_writer_as_qemu_reads_them(self) -> None:
        # Geometry cannot express this size.
        reference = self.make_raw(131 * MIB + 512, seed=2)
        path = self.path('caml.vhd')
        packages.vhd_from_raw(reference, path, gap=4096, creator=b'caml')
        expected = self.path('qemu.raw')
        run('qemu-img', 'convert', '-O', 'raw', '--image-opts',
            f'driver=vpc,force_size_calc=current_size,file.filename={path}',
            expected)  # fmt: skip
        self.assert_same(reference, expected)
        self.assert_same(expected, self.convert(path))

    def test_qemu_by_geometry_loses_what_the_finding_says(self) -> None:
        reference = self.make_raw(131 * MIB + 512, seed=2)
        path = self.path('caml.vhd')
        packages.vhd_from_raw(reference, path, creator=b'caml')
        cut = self.path('cut.raw')
        run('qemu-img', 'convert', '-f', 'vpc', '-O', 'raw', path, cut)
        system, converter = self.open_disk(path)
        with converter.open(system.package, system.disks[0]) as image:
            (finding,) = image.findings
        self.assertEqual('vhd.geometry-differs', finding.id)
        self.assertIn(f'make {os.stat(cut).st_size} bytes', finding.evidence)


@needs('tar')
class PackageTest(ReadingTestCase):
    """OVAs packed by the tar of the system."""

    def test_tar_formats(self) -> None:
        reference = self.make_raw(9 * MIB)
        packages.vhd_from_raw(reference, self.path('disk.vhd'))
        descriptor = packages.xencenter_ovf(
            [packages.Disk('d0', 'disk.vhd', 9 * MIB)]
        )
        with open(self.path('guest.ovf'), 'wb') as stream:
            stream.write(descriptor)
        for form in ('gnu', 'ustar', 'pax', 'v7'):
            with self.subTest(form=form):
                path = self.path('guest.ova')
                run('tar', f'--format={form}', '-C', self.directory,
                    '-cf', path, './guest.ovf', './disk.vhd')  # fmt: skip
                system = ova.OvaSource().open(path)
                output = self.path('ours.raw')
                with vhd.VhdConverter().open(
                    system.package, system.disks[0]
                ) as image:
                    copy.copy(image, output)
                self.assert_same(reference, output)

    def test_sparse_tar_is_refused(self) -> None:
        with open(self.path('disk.vhd'), 'wb') as stream:
            stream.truncate(8 * MIB)
        for form in ('gnu', 'pax'):
            with self.subTest(form=form):
                path = self.path('guest.ova')
                run('tar', f'--format={form}', '--sparse', '-C',
                    self.directory, '-cf', path, 'disk.vhd')  # fmt: skip
                with self.assertRaises(exceptions.PackageError) as caught:
                    ova.OvaSource().open(path)
                self.assertEqual('package.unsafe-member', caught.exception.id)


@needs('sfdisk')
class WrapTest(ReadingTestCase):
    def test_table_as_others_read_it(self) -> None:
        reference = self.make_raw(5 * MIB + 512)
        system, converter = self.open_disk(reference)
        inner = converter.open(system.package, system.disks[0])
        output = self.path('wrapped.raw')
        with wrap.WrappedImage(inner, wrap.LINUX) as image:
            copy.copy(image, output)
        table = json.loads(run('sfdisk', '--json', output))['partitiontable']
        self.assertEqual('dos', table['label'])
        (partition,) = table['partitions']
        self.assertEqual(2048, partition['start'])
        self.assertEqual((5 * MIB + 512) // 512, partition['size'])
        self.assertEqual('83', partition['type'])
        with open(output, 'rb') as wrapped, open(reference, 'rb') as plain:
            wrapped.seek(MIB)
            self.assertEqual(plain.read(), wrapped.read(5 * MIB + 512))
        found = format_inspector.detect_file_format(output)
        assert found is not None
        self.assertEqual('gpt', str(found))
        found.safety_check()


@needs('nbdkit', 'nbdinfo', 'nbdcopy', 'qemu-io')
class ServeTest(ReadingTestCase):
    def served_vhd(self) -> tuple[str, model.VirtualSystem]:
        reference = self.make_raw(33 * MIB)
        path = self.path('disk.vhd')
        packages.vhd_from_raw(reference, path)
        return reference, disk.DiskSource().open(path)

    def test_bytes_extents_and_count(self) -> None:
        reference, system = self.served_vhd()
        converter = vhd.VhdConverter()
        with converter.open(system.package, system.disks[0]) as image:
            data = copy.data_size(image)
        output = self.path('nbd.raw')
        with serve.served(
            system, system.disks[0], converter, self.directory
        ) as server:
            self.assertEqual(0, server.bytes_read())
            size = run('nbdinfo', '--size', server.uri)
            self.assertEqual(33 * MIB, int(size))
            extents = json.loads(run('nbdinfo', '--json', '--map', server.uri))
            self.assertEqual(
                data,
                sum(e['length'] for e in extents if e['type'] == 0),
            )
            run('nbdcopy', server.uri, output)
        self.assert_same(reference, output)
        self.assertEqual(data, server.bytes_read())

    def test_qemu_reads_and_may_not_write(self) -> None:
        reference, system = self.served_vhd()
        with serve.served(
            system, system.disks[0], vhd.VhdConverter(), self.directory
        ) as server:
            run('qemu-io', '-r', '-f', 'raw', '-c',
                f'read -v {33 * MIB - 512} 512', server.uri)  # fmt: skip
            done = subprocess.run(
                ['qemu-io', '-f', 'raw', '-c', 'write 0 512', server.uri],
                capture_output=True,
                timeout=60,
                check=False,
            )
            self.assertNotEqual(0, done.returncode)
            self.assertEqual(512, server.bytes_read())

    def test_nothing_is_left(self) -> None:
        _, system = self.served_vhd()
        before = set(os.listdir(self.directory))
        with self.assertRaises(KeyboardInterrupt):
            with serve.served(
                system, system.disks[0], vhd.VhdConverter(), self.directory
            ) as server:
                pid = self.pid(server)
                raise KeyboardInterrupt
        self.assertEqual(before, set(os.listdir(self.directory)))
        self.assertFalse(os.path.exists(f'/proc/{pid}'))

    def test_hostile_image_cannot_take_all_memory(self) -> None:
        _, system = self.served_vhd()
        with serve.served(
            system, system.disks[0], vhd.VhdConverter(), self.directory
        ) as server:
            pid = self.pid(server)
            self.assertEqual(
                (2 * GIB, 2 * GIB), resource.prlimit(pid, resource.RLIMIT_AS)
            )
            self.assertEqual(
                (0, 0), resource.prlimit(pid, resource.RLIMIT_CORE)
            )

    def test_long_work_directory(self) -> None:
        _, system = self.served_vhd()
        work = self.path('w' * 120)
        os.mkdir(work)
        with serve.served(
            system, system.disks[0], vhd.VhdConverter(), work
        ) as server:
            run('nbdinfo', server.uri)

    def test_error_of_the_image_is_ours(self) -> None:
        _, system = self.served_vhd()
        os.truncate(system.package.path, 3 * MIB)
        system = disk.DiskSource().open(system.package.path)
        with self.assertRaises(exceptions.DiskImageError):
            with serve.served(
                system, system.disks[0], vhd.VhdConverter(), self.directory
            ):
                pass

    def test_server_dies_with_its_parent(self) -> None:
        _, system = self.served_vhd()
        program = (
            'import sys, time\n'
            'from xenimport.converter import serve, vhd\n'
            'from xenimport.source import disk\n'
            'system = disk.DiskSource().open(sys.argv[1])\n'
            'with serve.served(system, system.disks[0],\n'
            '                  vhd.VhdConverter(), sys.argv[2]) as server:\n'
            '    print(server.socket, flush=True)\n'
            '    time.sleep(60)\n'
        )
        parent = subprocess.Popen(
            [
                sys.executable,
                '-c',
                program,
                system.package.path,
                self.directory,
            ],
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {'PYTHONPATH': ROOT},
        )
        assert parent.stdout is not None
        self.addCleanup(parent.stdout.close)
        self.addCleanup(parent.wait)
        self.addCleanup(parent.kill)
        socket = parent.stdout.readline().strip()
        pid = self.pid(serve.Server(socket, ''))
        parent.kill()
        parent.wait()
        deadline = time.monotonic() + 10
        while self.alive(pid) and time.monotonic() < deadline:
            time.sleep(0.05)
        self.assertFalse(self.alive(pid))

    def pid(self, server: serve.Server) -> int:
        path = os.path.join(os.path.dirname(server.socket), 'pid')
        with open(path, encoding='ascii') as stream:
            return int(stream.read())

    def alive(self, pid: int) -> bool:
        try:
            with open(f'/proc/{pid}/stat', encoding='ascii') as stream:
                # Nobody may reap it when its parent is gone.
                return stream.read().rpartition(')')[2].split()[0] != 'Z'
        except FileNotFoundError:
            return False


_COPY = """
import re, sys
from xenimport.converter import copy, vhd
from xenimport import exceptions
from xenimport.source import disk
system = disk.DiskSource().open(sys.argv[1])
with vhd.VhdConverter().open(system.package, system.disks[0]) as image:
    print('open', flush=True)
    try:
        copy.copy(image, sys.argv[2])
    except exceptions.XenImportError as error:
        sys.exit(error.id)
# Not ru_maxrss: that begins with the parent's, before the exec.
print(re.search('VmHWM:\\s+(\\d+) kB', open('/proc/self/status').read())[1])
"""


class CopyTest(ReadingTestCase):
    """The copy as a process: signals, memory, a full disk."""

    def process(self, *command: str) -> subprocess.Popen[str]:
        child = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | {'PYTHONPATH': ROOT},
        )
        self.addCleanup(child.wait)
        self.addCleanup(child.kill)
        return child

    def make_vhd(self, size: int, blocks: int) -> str:
        path = self.path('disk.vhd')
        count = size // packages.BLOCK_SIZE
        step = count // blocks
        with open(path, 'wb') as stream:
            packages.write_dynamic_vhd(
                stream,
                size,
                range(0, step * blocks, step),
                lambda offset, length: b'x' * length,
            )
        return path

    def test_memory_and_time_of_a_disk_of_two_tebibytes(self) -> None:
        path = self.make_vhd(2040 * GIB, 64)
        started = time.monotonic()
        child = self.process(
            sys.executable, '-c', _COPY, path, self.path('out.raw')
        )
        output, errors = child.communicate(timeout=60)
        self.assertEqual(0, child.returncode, errors)
        self.assertLess(time.monotonic() - started, 20)
        peak = int(output.split()[-1]) * 1024
        self.assertLess(peak, 100_000_000)
        status = os.stat(self.path('out.raw'))
        self.assertEqual(2040 * GIB, status.st_size)
        self.assertEqual(128 * MIB, status.st_blocks * 512)

    def test_interrupt(self) -> None:
        path = self.make_vhd(2 * GIB, 400)
        output = self.path('out.raw')
        child = self.process(sys.executable, '-c', _COPY, path, output)
        assert child.stdout is not None
        self.assertEqual('open', child.stdout.readline().strip())
        while not os.path.exists(output) and child.poll() is None:
            time.sleep(0.001)
        child.send_signal(signal.SIGINT)
        child.communicate(timeout=30)
        self.assertNotEqual(0, child.returncode)
        self.assertFalse(os.path.exists(output))

    def test_full_disk(self) -> None:
        mount = self.path('small')
        os.mkdir(mount)
        script = 'mount -t tmpfs -o size=4m none "$0" && exec "$@"'
        enter = ['unshare', '--user', '--map-root-user', '--mount']
        probe = subprocess.run(
            [*enter, 'sh', '-c', script, mount, 'true'],
            capture_output=True,
            check=False,
        )
        if probe.returncode:
            self.skipTest('no user namespaces here')
        path = self.make_vhd(64 * MIB, 8)
        child = self.process(
            *enter, 'sh', '-c', script, mount,
            sys.executable, '-c', _COPY, path, f'{mount}/out.raw',
        )  # fmt: skip
        _, errors = child.communicate(timeout=60)
        self.assertEqual('machine.no-space', errors.strip())


_LIMITED = """
import resource, sys
limit = 512 * 1024 * 1024
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
from xenimport.converter import raw, vhd
from xenimport import exceptions
from xenimport.source import disk, ova
path = sys.argv[1]
try:
    if path.endswith('.ova'):
        system = ova.OvaSource().open(path)
    else:
        system = disk.DiskSource().open(path)
    for converter in (vhd.VhdConverter(), raw.RawConverter()):
        if converter.probe(system.package, system.disks[0]):
            image = converter.open(system.package, system.disks[0])
            next(image.extents())
            image.pread(0, 65536)
            print('opened')
except exceptions.XenImportError as error:
    print(error.id)
"""


class HostileTest(ReadingTestCase):
    """Hostile input in 512 MiB of address space: refused, no crash."""

    def outcome(self, path: str) -> str:
        done = subprocess.run(
            [sys.executable, '-c', _LIMITED, path],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
            env=os.environ | {'PYTHONPATH': ROOT},
        )
        self.assertEqual(0, done.returncode, done.stderr[-2000:])
        return done.stdout.strip()

    def descriptor(self, text: bytes) -> str:
        path = self.path('guest.ova')
        packages.write_ova(path, [('guest.ovf', text)])
        return self.outcome(path)

    def test_descriptors(self) -> None:
        room = 4 * MIB - 100
        for name, body, expected in (
            ('many', b'<a/>' * (room // 4), 'package.ovf-too-large'),
            (
                'deep',
                b'<a>' * (room // 7) + b'</a>' * (room // 7),
                'package.ovf-too-large',
            ),
            (
                'attributes',
                b'<a %s/>'
                % b' '.join(b'a%d=""' % n for n in range(room // 12)),
                'package.virtual-systems',
            ),
            ('text', b'x' * room, 'package.virtual-systems'),
        ):
            with self.subTest(name=name):
                self.assertEqual(
                    expected,
                    self.descriptor(b'<Envelope>' + body + b'</Envelope>'),
                )

    def test_items(self) -> None:
        item = b'<Item><ResourceType>17</ResourceType></Item>'
        text = (
            b'<Envelope><VirtualSystem>'
            + item * (4 * MIB // len(item) - 2)
            + b'</VirtualSystem></Envelope>'
        )
        self.assertEqual('package.ovf-too-large', self.descriptor(text))

    def test_disks_and_drives_that_multiply(self) -> None:
        count = 15_000
        disks = b''.join(b'<Disk diskId="%d"/>' % n for n in range(count))
        item = (
            b'<Item><HostResource>/file/x%d</HostResource>'
            b'<ResourceType>17</ResourceType></Item>'
        )
        items = b''.join(item % n for n in range(count))
        text = (
            b'<Envelope><DiskSection>%s</DiskSection><VirtualSystem>%s'
            b'</VirtualSystem></Envelope>' % (disks, items)
        )
        started = time.monotonic()
        self.descriptor(text)
        self.assertLess(time.monotonic() - started, 10)

    def test_large_manifest(self) -> None:
        path = self.path('guest.ova')
        packages.write_ova(
            path,
            [
                ('g.ovf', b'<Envelope/>'),
                ('g.mf', b'SHA1(a)= ' + b'(' * (MIB - 100)),
            ],
        )
        self.assertEqual('package.manifest-invalid', self.outcome(path))

    def test_vhd_of_the_most_blocks(self) -> None:
        block, count = 4096, 1 << 21
        size = block * count
        tail = packages.footer(size)
        first = (1536 + count * 4) // 512
        table = array.array('I', range(first, first + count * 9, 9))
        table.byteswap()
        path = self.path('many.vhd')
        with open(path, 'wb') as stream:
            stream.write(tail)
            stream.write(packages.dynamic_header(count, block_size=block))
            stream.write(table.tobytes())
            stream.seek(first * 512)
            stream.write(b'\xff')
            stream.seek((first + count * 9) * 512)
            stream.write(tail)
        self.assertEqual('opened', self.outcome(path))

    def test_every_byte_of_the_metadata_damaged(self) -> None:
        """No single damaged byte leads to anything but our own errors."""
        data = b'x' * 8192
        content = packages.dynamic_vhd(data, block_size=4096)
        path = self.path('disk.vhd')
        for position in range(1536 + 16):
            damaged = bytearray(content)
            damaged[position] ^= 0xFF
            # The footer at the end would hide what is wrong at the start.
            with open(path, 'wb') as stream:
                stream.write(damaged[:-512])
            system = disk.DiskSource().open(path)
            try:
                with vhd.VhdConverter().open(
                    system.package, system.disks[0]
                ) as image:
                    image.pread(0, image.virtual_size)
                    list(image.extents())
            except exceptions.XenImportError:
                continue
