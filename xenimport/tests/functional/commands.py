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

"""The commands, run as a user runs them."""

from __future__ import annotations

from collections.abc import Mapping
import json
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import typing
import unittest

from xenimport.tests.functional import services

#: Seconds that any command may take; the appliance runs under TCG here.
_LIMIT = 400


class Done(typing.NamedTuple):
    """How a command ended."""

    code: int
    stdout: str
    stderr: str

    def json(self) -> typing.Any:
        """What ``-f json`` printed; nothing else may stand on stdout."""
        return json.loads(self.stdout)


class CommandTest(unittest.TestCase):
    """A test of commands, with a directory of its own.

    :ivar directory: removed after the test
    :ivar work_dir: given to every command as its work directory
    """

    #: The cloud of the commands, None for those that need none.
    cloud: typing.ClassVar[services.Cloud | None] = None

    def setUp(self) -> None:
        super().setUp()
        temporary = tempfile.TemporaryDirectory(prefix='xenimport-test-')
        self.addCleanup(temporary.cleanup)
        self.directory = pathlib.Path(temporary.name)
        self.work_dir = self.directory / 'work'
        self.work_dir.mkdir()

    def environment(self) -> dict[str, str]:
        """The environment of a command: the tenant's, without extras."""
        environment = {
            key: value
            for key, value in os.environ.items()
            if not key.startswith('OS_')
        }
        if self.cloud is not None:
            environment |= self.cloud.environment()
        return environment

    def start(
        self,
        *arguments: str | os.PathLike[str],
        environment: Mapping[str, str] | None = None,
        stdin: int | typing.IO[bytes] = subprocess.DEVNULL,
    ) -> subprocess.Popen[str]:
        """Start ``openstack image ARGUMENTS`` in a session of its own."""
        if arguments[0] == 'import-xen' and arguments[1] != 'driver':
            arguments += ('--work-dir', self.work_dir)
        openstack = pathlib.Path(sys.executable).with_name('openstack')
        return subprocess.Popen(
            [openstack, 'image', *arguments],
            env=environment or self.environment(),
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def openstack(
        self,
        *arguments: str | os.PathLike[str],
        environment: Mapping[str, str] | None = None,
        stdin: int | typing.IO[bytes] = subprocess.DEVNULL,
    ) -> Done:
        """Run ``openstack image ARGUMENTS`` to its end."""
        process = self.start(*arguments, environment=environment, stdin=stdin)
        try:
            stdout, stderr = process.communicate(timeout=_LIMIT)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            stdout, stderr = process.communicate()
            self.fail(f'no end after {_LIMIT} s: {stderr}')
        return Done(process.returncode, stdout, stderr)

    def images(self) -> list[dict[str, typing.Any]]:
        """What stands in Glance."""
        listed = self.openstack('list', '-f', 'json')
        self.assertEqual(0, listed.code, listed.stderr)
        result: list[dict[str, typing.Any]] = listed.json()
        return result

    def assert_nothing_left(self) -> None:
        """No workfile, no process, no image of ours."""
        self.assertEqual([], list(self.work_dir.iterdir()))
        self.assertEqual([], self.processes())
        if self.cloud is not None:
            found = self.images()
            for image in found:
                # The cloud is shared: the next test shall not fail too.
                self.addCleanup(self.openstack, 'delete', image['ID'])
            self.assertEqual([], found)

    def processes(self) -> list[str]:
        """Command lines of processes that name our work directory."""
        found = []
        for path in pathlib.Path('/proc').glob('[0-9]*/cmdline'):
            try:
                line = path.read_bytes().replace(b'\0', b' ').decode()
            except OSError:
                continue
            if str(self.work_dir) in line:
                found.append(line)
        return found

    def assert_clear_error(self, done: Done, error_id: str) -> None:
        """One message with id and remedy, and no traceback."""
        self.assertIn(f'{error_id}  error  ', done.stderr)
        self.assertIn('\nFix: ', done.stderr)
        self.assertNotIn('Traceback', done.stderr)
        self.assertEqual('', done.stdout)
        self.assertEqual(1, done.code, done.stderr)


class CloudCommandTest(CommandTest):
    """The same with a real Glance, one for all tests of the class."""

    cloud: typing.ClassVar[services.Cloud]

    @classmethod
    def setUpClass(cls) -> None:
        super().setUpClass()
        temporary = tempfile.TemporaryDirectory(prefix='xenimport-cloud-')
        cls.addClassCleanup(temporary.cleanup)
        cls.cloud = services.Cloud(temporary.name)
        cls.cloud.start()
        cls.addClassCleanup(cls.cloud.stop)
