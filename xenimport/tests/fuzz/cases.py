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

"""What every fuzz test does: read a mutant within bounds.

The rule: whatever the bytes are, the product's own errors come out and
nothing else, in bounded time and memory.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Mapping
import contextlib
import io
import logging
import os
import pathlib
import resource
import shutil
import signal
import tempfile
import typing
import unittest

import hypothesis

from xenimport import exceptions
from xenimport import stream as stream_room
from xenimport.tests import reading

_EXAMPLES = 'XENIMPORT_FUZZ_EXAMPLES'
#: Mutants of each test: enough to see each part of a header changed, in
#: a time that every change can wait for.
_FEW = 150
#: Seconds of the processor's time that one mutant may take.
_SECONDS = 3.0
#: Bytes of address space beyond what the tests themselves use.
_MEMORY = 512 << 20
_MESSAGES = pathlib.Path(__file__).parents[3] / 'doc' / 'source' / 'messages'

#: The same mutants every time, unless a number is asked for.
settings = hypothesis.settings(
    max_examples=int(os.environ.get(_EXAMPLES, _FEW)),
    derandomize=_EXAMPLES not in os.environ,
    # Bounded by the processor's time, which a busy machine leaves alone.
    deadline=None,
    database=None,
    print_blob=True,
    suppress_health_check=list(hypothesis.HealthCheck),
)


class TooLongError(Exception):
    """A mutant took more time than any may."""


class FuzzTest(unittest.TestCase):
    """A test with a directory and bounds."""

    directory: str

    @classmethod
    def setUpClass(cls) -> None:
        super().setUpClass()
        cls.directory = tempfile.mkdtemp(prefix='xenimport-fuzz-')
        cls.addClassCleanup(shutil.rmtree, cls.directory)
        # oslo.utils says much about what it does not like.
        logging.disable()
        cls.addClassCleanup(logging.disable, logging.NOTSET)
        limits = resource.getrlimit(resource.RLIMIT_AS)
        cls.addClassCleanup(resource.setrlimit, resource.RLIMIT_AS, limits)
        most = reading.address_space() + _MEMORY
        resource.setrlimit(resource.RLIMIT_AS, (most, limits[1]))

    def write(self, name: str, data: bytes) -> str:
        """A file with a mutant; one at a time."""
        path = os.path.join(self.directory, name)
        with open(path, 'wb') as stream:
            stream.write(data)
        return path

    def check(
        self, function: Callable[..., typing.Any], *arguments: typing.Any
    ) -> typing.Any:
        """Call a function; its result, or None if it refuses.

        :raises AssertionError: if the refusal has no page of its own
        """
        try:
            with _bounded():
                return function(*arguments)
        except exceptions.XenImportError as error:
            hypothesis.event(error.id)
            page = _MESSAGES / f'{error.id}.rst'
            self.assertTrue(page.is_file(), f'no page: {error.id}')
            self.assertTrue(str(error).isprintable() or '\n' in str(error))
            for value in (error.where, error.expected, error.found):
                # A message that hostile input fills the screen with.
                self.assertLess(len(value or ''), 3000, error.id)
            return None

    def check_both(self, path: str, name: str = '') -> None:
        """Read a package in place and forward, which must agree.

        :param name: what the package is called when it comes in a stream
        """
        in_place = self.check(reading.read, [path])
        with open(path, 'rb') as file:
            forward = self.check(
                reading.read_stream, Arriving(file.read(), name or path)
            )
        if in_place and forward:
            self.compare(in_place, forward)

    def compare(
        self,
        in_place: Mapping[str, reading.Content],
        forward: Mapping[str, reading.Content],
    ) -> None:
        """What both ways have read must be the same."""
        for name, content in in_place.items():
            other = forward.get(name)
            if other is not None:
                self.assertEqual(content.size, other.size, name)
                if content.data is not None and other.data is not None:
                    self.assertTrue(content.data == other.data, name)


class Arriving(stream_room.Stream):
    """Bytes in memory, as they come from a pipe."""

    def __init__(self, data: bytes, where: str) -> None:
        super().__init__(where)
        self._file = io.BytesIO(data)

    def _read_into(self, buffer: memoryview) -> int:
        # A pipe gives what it has.
        return self._file.readinto(buffer[:65536])


@contextlib.contextmanager
def _bounded() -> Iterator[None]:
    """Let nothing take more than its share of the processor."""

    stopped = False

    def stop(_number: int, _frame: object) -> None:
        nonlocal stopped
        stopped = True
        raise TooLongError(f'more than {_SECONDS} s')

    before = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, _SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)
    # Somebody may have taken it for an error of a library.
    if stopped:
        raise TooLongError(f'more than {_SECONDS} s')
