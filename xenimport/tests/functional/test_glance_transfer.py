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

"""What reaches a real Glance by each way, and what a broken one leaves.

Glance hears of these uploads while they come, as it does in a cloud.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent import futures
import shutil
import subprocess

from xenimport import exceptions
from xenimport import model
from xenimport.target import base
from xenimport.target import content
from xenimport.tests.functional import glance_cases

MIB = 1 << 20
RAW = model.ImageRequest('functional')
QCOW2 = model.ImageRequest('functional', disk_format='qcow2')
_DAMAGED = exceptions.PackageError('package.digest-mismatch', 'damaged')


class Failing:
    """A content that raises in place of its chunk at an offset."""

    repeatable = False
    path: str | None = None

    def __init__(self, path: str, at: int, error: BaseException) -> None:
        self._inner = content.FileContent(path)
        self._at = at
        self._error = error
        self.size = self._inner.size

    def chunks(self) -> Iterator[memoryview]:
        done = 0
        for view in self._inner.chunks():
            if done >= self._at:
                raise self._error
            yield view
            done += len(view)
        raise self._error


class _Case(glance_cases.GlanceCase):
    server = 'wsgiref'

    def make_qcow2(self, raw: str) -> str:
        if not shutil.which('qemu-img'):
            self.skipTest('qemu-img is missing')
        path = raw.removesuffix('.raw') + '.qcow2'
        subprocess.run(
            ['qemu-img', 'convert', '-f', 'raw', '-O', 'qcow2', '-c']
            + [raw, path],
            check=True,
        )
        return path

    def send(
        self,
        transfer: str,
        what: base.Content,
        request: model.ImageRequest = QCOW2,
        raw: base.Content | None = None,
    ) -> tuple[model.Image, list[str]]:
        """Validate and publish; the image and the ids of the findings."""
        target = self.make_target(transfer=transfer)
        self.addCleanup(self.assert_nothing_left)
        self.addCleanup(target.discard)
        target.validate([request])
        image = target.publish(0, what, request, raw=raw)
        return image, [finding.id for finding in target.findings]


class TransferTest(_Case):
    """A Glance that stores what it is sent."""

    def check_qcow2(self, transfer: str) -> None:
        raw = self.make_disk(64 * MIB)
        qcow2 = self.make_qcow2(raw)
        image, findings = self.send(
            transfer,
            content.FileContent(qcow2),
            raw=content.FileContent(raw),
        )
        expected = glance_cases.digest(qcow2)
        self.assertEqual(
            ('active', 'qcow2', 'sha512', expected, {}, []),
            (
                image.status,
                image.disk_format,
                image.hash_algorithm,
                image.hash_value,
                image.properties,
                findings,
            ),
        )
        self.assertEqual(
            glance_cases.digest(qcow2, 'sha256'), self.download(image.id)
        )

    def test_qcow2_is_uploaded(self) -> None:
        self.check_qcow2('upload')

    def test_qcow2_is_imported(self) -> None:
        self.check_qcow2('glance-direct')

    def test_raw_is_imported(self) -> None:
        raw = self.make_disk(64 * MIB)
        image, findings = self.send(
            'glance-direct', content.FileContent(raw), RAW
        )
        self.assertEqual(
            ('raw', 64 * MIB, glance_cases.digest(raw), []),
            (image.disk_format, image.size, image.hash_value, findings),
        )

    def test_import_that_fails_names_the_task(self) -> None:
        # Of an image that is not what its format says, this Glance's file
        # store keeps the data; so only the records are looked at.
        target = self.make_target(transfer='glance-direct')
        self.addCleanup(target.discard)
        disk = content.FileContent(self.make_disk(64 * MIB))
        with self.assertRaises(exceptions.TargetError) as caught:
            target.publish(0, disk, QCOW2)
        self.assertEqual('glance.import-failed', caught.exception.id)
        self.assertIn('Internal Error', caught.exception.found or '')
        target.discard()
        self.assertEqual([], self.images())
        for path in self.cloud.image.stored():
            path.unlink()

    def test_two_disks_at_once(self) -> None:
        disk = content.FileContent(self.make_disk(64 * MIB))
        for transfer in ('upload', 'glance-direct'):
            target = self.make_target(transfer=transfer)
            with futures.ThreadPoolExecutor(3) as pool:
                found = pool.map(
                    lambda number, mine=target: mine.publish(
                        number, disk, RAW
                    ),
                    range(3),
                )
                images = list(found)
            self.assertEqual(
                {(number, 'active') for number in range(3)},
                {(image.disk, image.status) for image in images},
            )
            self.assertEqual(3, len(self.images()))
            target.discard()
            self.assert_nothing_left()

    def check_broken(self, transfer: str, at: int) -> None:
        for error in (_DAMAGED, KeyboardInterrupt()):
            path = self.make_disk(64 * MIB)
            target = self.make_target(transfer=transfer)
            with self.assertRaises(type(error)) as caught:
                target.publish(0, Failing(path, at, error), RAW)
            self.assertIs(error, caught.exception)
            self.assertNotIn('active', self.settled())
            target.discard()
            self.assert_nothing_left()
            self.doCleanups()

    def test_content_that_fails_at_first(self) -> None:
        self.check_broken('upload', 0)

    def test_content_that_fails_in_the_middle(self) -> None:
        self.check_broken('upload', 30 * MIB)

    def test_content_that_fails_before_its_last_bytes(self) -> None:
        self.check_broken('upload', 63 * MIB)

    def test_content_that_fails_at_its_end(self) -> None:
        self.check_broken('upload', 64 * MIB)

    def test_staged_content_that_fails_in_the_middle(self) -> None:
        self.check_broken('glance-direct', 30 * MIB)

    def test_staged_content_that_fails_at_its_end(self) -> None:
        self.check_broken('glance-direct', 64 * MIB)


class ConversionTest(_Case):
    """A Glance that makes RAW of what it imports."""

    converts = True

    def test_converted_disk_is_compared_with_the_raw_one(self) -> None:
        raw = self.make_disk(64 * MIB)
        qcow2 = content.FileContent(self.make_qcow2(raw))
        image, findings = self.send(
            'glance-direct', qcow2, raw=content.FileContent(raw)
        )
        self.assertLess(qcow2.size, 8 * MIB)
        self.assertEqual(
            ('raw', 64 * MIB, 'sha512', glance_cases.digest(raw), []),
            (
                image.disk_format,
                image.size,
                image.hash_algorithm,
                image.hash_value,
                findings,
            ),
        )
        self.assertEqual(
            glance_cases.digest(raw, 'sha256'), self.download(image.id)
        )

    def test_another_raw_disk_is_noticed(self) -> None:
        raw = self.make_disk(64 * MIB)
        qcow2 = content.FileContent(self.make_qcow2(raw))
        with open(raw, 'r+b') as file:
            file.seek(50 * MIB)
            file.write(b'x')
        with self.assertRaises(exceptions.TargetError) as caught:
            self.send('glance-direct', qcow2, raw=content.FileContent(raw))
        self.assertEqual('glance.hash-mismatch', caught.exception.id)

    def test_converted_disk_without_the_raw_one(self) -> None:
        qcow2 = self.make_qcow2(self.make_disk(64 * MIB))
        image, findings = self.send(
            'glance-direct', content.FileContent(qcow2)
        )
        self.assertEqual(
            ('raw', 64 * MIB, '', ['glance.hash-unchecked']),
            (image.disk_format, image.size, image.hash_value, findings),
        )

    def test_upload_is_not_converted(self) -> None:
        qcow2 = self.make_qcow2(self.make_disk(64 * MIB))
        image, findings = self.send('upload', content.FileContent(qcow2))
        self.assertEqual(('qcow2', []), (image.disk_format, findings))


class CollectingServerTest(_Case):
    """A server that hands on whole bodies only, in front of Glance."""

    server = 'waitress'

    def test_content_that_fails_at_its_end(self) -> None:
        path = self.make_disk(64 * MIB)
        target = self.make_target()
        with self.assertRaises(exceptions.PackageError) as caught:
            target.publish(0, Failing(path, 64 * MIB, _DAMAGED), RAW)
        self.assertIs(_DAMAGED, caught.exception)
        self.assertEqual(['queued'], self.settled())
        target.discard()
        self.assert_nothing_left()
