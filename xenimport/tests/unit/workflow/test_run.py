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

"""Whole runs without an appliance: --no-repair, real packages."""

import collections
import contextlib
import json
import os
import shutil
import tempfile
import threading
import unittest
from unittest import mock

from xenimport import exceptions
from xenimport import model
from xenimport import opts
from xenimport.target import base as target_base
from xenimport.tests import packages
from xenimport.workflow import context
from xenimport.workflow import run

_SIZE = 4 << 20
_NAMES = (
    '5d8f1c62-0d7b-4b5c-9c3e-2f6a1e4b7d90',
    '6e9a2d73-1e8c-4c6d-8d4f-306b2f5c8ea1',
)


def disk(*, partition=True):
    """A disk with one partition, or with an MBR that names none."""
    content = bytearray(_SIZE)
    content[440:444] = b'\x0d\xf0\xad\x0b'
    if partition:
        content[450] = 0x83
        content[454:458] = (2048).to_bytes(4, 'little')
        content[458:462] = (_SIZE // 512 - 2048).to_bytes(4, 'little')
    content[510:512] = b'\x55\xaa'
    content[1 << 20 : (1 << 20) + 4] = b'data'
    return bytes(content)


class FakeTarget(target_base.Target):
    """Keeps what it is given; fails where it is told to."""

    def __init__(self, fails_at=None, left=False, streams=False):
        super().__init__()
        self.streams = streams  # type: ignore[misc]  # of one object
        self.fails_at = fails_at
        self.left = left
        self.calls = []
        self.contents = {}
        self.paths = {}

    def validate(self, requests):
        self.calls.append('validate')
        self.names = [request.name for request in requests]
        if self.fails_at == 'validate':
            raise exceptions.TargetError('target.refused', 'no')

    def publish(
        self, disk, content, request, progress=model.no_progress, *, raw=None
    ):
        self.calls.append(f'publish {disk}')
        if self.fails_at == disk:
            raise exceptions.TargetError('target.broken', 'it broke')
        self.paths[disk] = content.path
        self.contents[disk] = b''.join(
            bytes(chunk) for chunk in content.chunks()
        )
        self.last = request
        progress(_SIZE, _SIZE)
        return model.Image(
            disk, f'id-{disk}', request.name, 'active', _SIZE, None,
            'sha512', 'ab', dict(request.properties),
        )  # fmt: skip

    def discard(self):
        self.calls.append('discard')
        if self.left:
            raise exceptions.TargetError('target.left', 'one is left')


class Listener(context.Observer):
    """Keeps what a person should read."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def say(self, line: str) -> None:
        self.said.append(line)


class RunTestCase(unittest.TestCase):
    def setUp(self):
        super().setUp()
        temporary = tempfile.TemporaryDirectory()
        self.addCleanup(temporary.cleanup)
        self.directory = temporary.name
        self.work_dir = os.path.join(self.directory, 'work')
        os.mkdir(self.work_dir)

    def package(self, *contents, capacity=_SIZE):
        path = os.path.join(self.directory, 'guest.ova')
        disks = [
            packages.Disk(name, f'{name}.vhd', capacity, number)
            for number, name in enumerate(_NAMES[: len(contents)])
        ]
        members = [
            (entry.href, packages.dynamic_vhd(content))
            for entry, content in zip(disks, contents, strict=True)
        ]
        descriptor = packages.xencenter_ovf(disks, memory=1536)
        packages.write_ova(path, [('guest.ovf', descriptor), *members])
        return path

    def settings(self, path, **values):
        return context.Settings(
            (path,) if isinstance(path, str) else tuple(path),
            opts.load([]),
            repair=False,
            work_dir=self.work_dir,
            **values,
        )

    def failing(self, target, *contents, **values):
        """Run to the failure that is expected; nothing may be left."""
        path = self.package(*(contents or (disk(),)))
        with self.assertRaises(run.Failed) as caught:
            run.import_package(self.settings(path, **values), target)
        self.assertEqual([], os.listdir(self.work_dir))
        self.assertEqual('discard', target.calls[-1])
        return caught.exception


class RunTest(RunTestCase):
    def test_two_disks(self):
        target = FakeTarget()
        report = run.import_package(
            self.settings(self.package(disk(), disk())), target
        )
        self.assertEqual(['guest', 'guest-disk1'], target.names)
        self.assertEqual({0: disk(), 1: disk()}, target.contents)
        self.assertEqual(['validate', 'publish 0', 'publish 1'], target.calls)
        self.assertEqual([], os.listdir(self.work_dir))
        self.assertEqual(
            ['id-0', 'id-1'], [image.id for image in report.images]
        )
        # The data disk's image has the bus and nothing of a system.
        self.assertEqual(
            {'hw_disk_bus': 'virtio'}, dict(report.images[1].properties)
        )
        self.assertEqual(0, target.last.min_ram)
        self.assertEqual(1, target.last.min_disk)
        self.assertEqual(
            [
                'read package', 'ask target', 'make work directory',
                'check free space', 'copy disks', 'verify disks',
                'publish images', 'clean up',
            ],
            [step.name for step in report.steps],
        )  # fmt: skip

    def test_report_is_json(self):
        report = run.import_package(
            self.settings(self.package(disk())), FakeTarget()
        )
        data = json.loads(json.dumps(report.as_dict()))
        self.assertEqual('xenimport.report/1', data['schema'])
        self.assertEqual(_SIZE, data['source']['disks'][0]['virtual_size'])
        self.assertEqual('caml', data['source']['disks'][0]['creator'])
        self.assertEqual(1536 << 20, data['source']['memory'])

    def test_what_the_user_asks_for_wins(self):
        target = FakeTarget()
        run.import_package(
            self.settings(
                self.package(disk()),
                disk_bus='scsi',
                image=model.ImageRequest(
                    'web', properties={'hw_vif_model': 'e1000'}
                ),
                min_ram=0,
            ),
            target,
        )
        self.assertEqual(['web'], target.names)
        self.assertEqual('scsi', target.last.properties['hw_disk_bus'])
        self.assertEqual('e1000', target.last.properties['hw_vif_model'])
        self.assertEqual(0, target.last.min_ram)

    def test_target_refuses_before_anything_is_copied(self):
        target = FakeTarget('validate')
        failed = self.failing(target)
        self.assertEqual('target.refused', failed.error.id)
        self.assertEqual(
            ['read package'], [step.name for step in failed.report.steps]
        )

    def test_second_disk_fails(self):
        target = FakeTarget(1)
        failed = self.failing(target, disk(), disk())
        self.assertEqual('target.broken', failed.error.id)
        self.assertEqual((), failed.report.images)

    def test_what_is_left_is_told(self):
        failed = self.failing(FakeTarget(0, left=True))
        self.assertEqual('target.broken', failed.error.id)
        self.assertEqual(
            ['target.left'], [left.id for left in failed.leftovers]
        )

    def test_refused_by_the_inspector_of_glance(self):
        target = FakeTarget()
        failed = self.failing(target, disk(partition=False))
        self.assertEqual(3, failed.error.exit_code)
        self.assertEqual(
            ['verify.unsafe'],
            [finding.id for finding in failed.error.findings],
        )
        self.assertNotIn('publish 0', target.calls)

    def test_no_space(self):
        usage = collections.namedtuple('usage', 'total used free')
        with mock.patch(
            'shutil.disk_usage', autospec=True,
            return_value=usage(1 << 30, 1 << 30, 1 << 20),
        ):  # fmt: skip
            failed = self.failing(FakeTarget())
        self.assertEqual('machine.no-space', failed.error.id)
        # One block of 2 MiB holds data, and 64 MiB are spare room.
        self.assertIn(str((2 + 64) << 20), failed.error.expected)

    def test_no_work_directory(self):
        self.work_dir = os.path.join(self.directory, 'absent')
        with self.assertRaises(run.Failed) as caught:
            run.import_package(
                self.settings(self.package(disk())), FakeTarget()
            )
        self.assertEqual('machine.work-directory', caught.exception.error.id)

    def test_keep_workfile(self):
        listener = Listener()
        run.import_package(
            self.settings(self.package(disk()), keep_workfile=True),
            FakeTarget(),
            listener,
        )
        (kept,) = os.listdir(self.work_dir)
        self.assertIn(kept, listener.said[0])
        workfile = os.path.join(self.work_dir, kept, 'disk0.raw')
        with open(workfile, 'rb') as stream:
            self.assertEqual(disk(), stream.read())

    def test_other_capacity_is_a_warning(self):
        report = run.import_package(
            self.settings(self.package(disk(), capacity=_SIZE * 2)),
            FakeTarget(),
        )
        self.assertIn(
            ('package.capacity-differs', model.Severity.WARNING),
            [(finding.id, finding.severity) for finding in report.remaining],
        )

    def test_a_bug_is_an_error_of_ours_and_undoes(self):
        class Buggy(FakeTarget):
            def publish(self, *_arguments, **_more):
                raise RuntimeError('index')

        failed = self.failing(Buggy(left=True))
        self.assertEqual('internal.unexpected', failed.error.id)
        self.assertEqual(
            ['target.left'], [left.id for left in failed.leftovers]
        )

    def test_interrupted_recipe_loses_no_image(self):
        def interrupted(_run):
            raise KeyboardInterrupt

        report = run.import_package(
            self.settings(self.package(disk())),
            FakeTarget(),
            None,
            interrupted,
        )
        self.assertEqual('id-0', report.images[0].id)
        self.assertEqual((), report.recipe)

    def test_recipe_is_made_last(self):
        report = run.import_package(
            self.settings(self.package(disk())),
            FakeTarget(),
            None,
            lambda done: tuple(image.id for image in done.images),
        )
        self.assertEqual(('id-0',), report.recipe)


class StraightTest(RunTestCase):
    """--no-repair into a target that takes more than files."""

    def target(self, **options):
        """One that looks into the work directory at the end of a disk."""
        test = self

        class Watching(FakeTarget):
            in_work = 0

            def publish(self, disk, content, request, *args, **more):
                image = super().publish(disk, content, request, *args, **more)
                for folder, _names, files in os.walk(test.work_dir):
                    for name in files:
                        status = os.stat(os.path.join(folder, name))
                        self.in_work += status.st_blocks * 512
                return image

        return Watching(streams=True, **options)

    def test_no_workfile(self):
        target = self.target()
        content = disk() + os.urandom(28 << 20)
        report = run.import_package(
            self.settings(self.package(content, capacity=len(content))),
            target,
        )
        self.assertEqual({0: content}, target.contents)
        self.assertEqual({0: None}, target.paths)
        # Nothing but the ends of the disk, by which it is verified.
        self.assertLess(target.in_work, 5 << 20)
        self.assertEqual(
            [
                'read package', 'ask target', 'make work directory',
                'check free space', 'verify disks', 'publish images',
                'clean up',
            ],
            [step.name for step in report.steps],
        )  # fmt: skip

    def test_several_side_by_side(self):
        target = self.target()
        report = run.import_package(
            self.settings(self.package(disk(), disk())), target
        )
        self.assertEqual({0: disk(), 1: disk()}, target.contents)
        self.assertEqual([0, 1], [image.disk for image in report.images])

    def test_one_of_several_fails(self):
        failed = self.failing(self.target(fails_at=1), disk(), disk())
        self.assertEqual('target.broken', failed.error.id)

    def test_refused_before_a_byte_is_sent(self):
        target = self.target()
        failed = self.failing(target, disk(partition=False))
        self.assertEqual(3, failed.error.exit_code)
        self.assertEqual({}, target.contents)

    def test_kept_workfile(self):
        target = self.target()
        run.import_package(
            self.settings(self.package(disk()), keep_workfile=True), target
        )
        self.assertTrue(target.paths[0].endswith('disk0.raw'))

    def damaged(self, path):
        """Flip a bit of the disk's data; the manifest stays."""
        with open(path, 'r+b') as stream:
            content = stream.read()
            place = content.index(b'data')
            stream.seek(place)
            stream.write(b'dat!')

    def with_manifest(self):
        path = os.path.join(self.directory, 'guest.ova')
        entry = packages.Disk(_NAMES[0], f'{_NAMES[0]}.vhd', _SIZE, 0)
        packages.write_ova(
            path,
            [
                ('guest.ovf', packages.xencenter_ovf([entry])),
                (entry.href, packages.dynamic_vhd(disk())),
            ],
            manifest='sha256',
        )
        return path

    def test_digest_that_differs_makes_no_image(self):
        for target in (self.target(), FakeTarget()):
            with self.subTest(streams=target.streams):
                path = self.with_manifest()
                self.damaged(path)
                with self.assertRaises(run.Failed) as caught:
                    run.import_package(self.settings(path), target)
                self.assertEqual(
                    'package.digest-mismatch', caught.exception.error.id
                )
                self.assertEqual({}, target.contents)
                self.assertEqual('discard', target.calls[-1])
                self.assertEqual([], os.listdir(self.work_dir))

    def test_manifest_that_shall_not_count(self):
        path = self.with_manifest()
        self.damaged(path)
        for target in (self.target(), FakeTarget()):
            with self.subTest(streams=target.streams):
                run.import_package(
                    self.settings(path, verify_manifest=False), target
                )
                self.assertIn(b'dat!', target.contents[0])


class StreamTestCase(RunTestCase):
    """Can give a package once, forward."""

    def piped(self, path):
        """A named pipe that gives the package once."""
        pipe = os.path.join(self.directory, 'pipe')
        if os.path.exists(pipe):
            os.unlink(pipe)
        os.mkfifo(pipe)

        def write():
            with open(path, 'rb') as source, open(pipe, 'wb') as sink:
                with contextlib.suppress(BrokenPipeError):
                    shutil.copyfileobj(source, sink)

        # A pipe that nobody opens must not hold up the end of the tests.
        threading.Thread(target=write, daemon=True).start()
        return pipe


class StreamTest(StreamTestCase, StraightTest):
    """A package that comes once, forward."""

    def settings(self, path, **values):
        return super().settings(self.piped(path), **values)

    def test_disk_whose_blocks_are_in_disorder(self):
        path = os.path.join(self.directory, 'guest.ova')
        content = disk() + os.urandom(12 << 20)
        entry = packages.Disk(_NAMES[0], 'a.vhd', len(content), 0)
        packages.write_ova(
            path,
            [
                ('guest.ovf', packages.xencenter_ovf([entry])),
                (
                    'a.vhd',
                    packages.dynamic_vhd(content, [7, 0, 3, 2, 1, 4, 6, 5]),
                ),
            ],
        )
        target = self.target()
        listener = Listener()
        run.import_package(self.settings(path), target, listener)
        self.assertEqual({0: content}, target.contents)
        self.assertTrue(target.paths[0].endswith('disk0.raw'))
        self.assertIn(
            'a.vhd is copied into a workfile first', listener.said[0]
        )

    def test_disk_that_never_comes(self):
        path = os.path.join(self.directory, 'guest.ova')
        entry = packages.Disk(_NAMES[0], 'a.vhd', _SIZE, 0)
        packages.write_ova(
            path, [('guest.ovf', packages.xencenter_ovf([entry]))]
        )
        target = self.target()
        with self.assertRaises(run.Failed) as caught:
            run.import_package(self.settings(path), target)
        self.assertEqual('package.missing-file', caught.exception.error.id)
        self.assertEqual('discard', target.calls[-1])
