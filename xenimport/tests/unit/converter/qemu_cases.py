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

"""What the tests of the converters share that qemu reads for."""

from collections.abc import Iterator
import typing
from unittest import mock

from xenimport.converter import qemu_server
from xenimport.tests.unit.converter import cases


class FakeServer:
    """Stands for qemu-nbd: it says only that the disk has a size."""

    #: Every one that was started.
    started: typing.ClassVar[list['FakeServer']] = []

    def __init__(
        self,
        driver: str,
        file: tuple[int, int, int | None],
        options: dict[str, object],
        where: str,
    ) -> None:
        self.driver = driver
        self.file = file
        self.options = options
        self.where = where
        self.closed = 0
        self.started.append(self)

    size = 0

    def extents(self) -> Iterator[tuple[int, int, bool]]:
        yield 0, self.size, True

    def read_into(self, buffer: memoryview, offset: int) -> None:
        buffer[:] = b'q' * len(buffer)

    def close(self) -> None:
        self.closed += 1


class QemuTestCase(cases.DiskTestCase):
    """No process is started: what is safe is decided before that."""

    def setUp(self) -> None:
        super().setUp()
        FakeServer.started = []
        patcher = mock.patch.object(qemu_server, 'Server', FakeServer)
        patcher.start()
        self.addCleanup(patcher.stop)

    def size_for_qemu(self, size: int) -> None:
        """What qemu shall take the size of the disk for, in bytes."""
        patcher = mock.patch.object(FakeServer, 'size', size)
        patcher.start()
        self.addCleanup(patcher.stop)

    def assert_no_server(self) -> None:
        self.assertEqual([], FakeServer.started)
