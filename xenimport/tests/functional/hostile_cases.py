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

"""Reads hostile packages in a process of their own.

It has 512 MiB of address space, and every file that is opened in it is
noted.
"""

from __future__ import annotations

from collections.abc import Collection
from collections.abc import Sequence
import gzip
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import typing
import unittest

from xenimport.tests import hostile

#: Seconds for all packages of one test.
_LIMIT = 120
_READER = 'xenimport.tests.functional.hostile_reader'
MIB = 1 << 20
RAW = b'raw!' * 16384
#: A file that every machine has, for those that go looking.
HOST_FILE = '/etc/hostname'


class Report(typing.NamedTuple):
    """What came of one package.

    :ivar id: of the error, None if it was read
    :ivar foreign: the traceback of an error that is not ours
    """

    id: str | None
    text: str
    foreign: str
    opened: list[str]
    programs: list[str]


class HostileTest(unittest.TestCase):
    """A test with a directory for packages, and a secret beside it."""

    def setUp(self) -> None:
        super().setUp()
        temporary = tempfile.TemporaryDirectory(prefix='xenimport-hostile-')
        self.addCleanup(temporary.cleanup)
        self.directory = pathlib.Path(temporary.name)
        self.inside = self.directory / 'inside'
        self.inside.mkdir()
        #: Where the reader may unpack.
        self.work = self.directory / 'work'
        self.work.mkdir()
        #: What must never be opened; it is the parent that is looked for.
        self.secret = self.directory / 'secret.vhd'
        self.secret.write_bytes(hostile.parent())

    def write(self, name: str, data: bytes) -> str:
        path = self.inside / name
        path.write_bytes(data)
        return str(path)

    def read(
        self,
        *jobs: Sequence[str],
        how: str = '',
        wrapper: Sequence[str] = (),
        qemu: bool = False,
    ) -> list[Report]:
        """Read packages in a process of their own, one after the other.

        :param how: what is done to the first file when it is open
        :param qemu: whether programs may be started
        """
        listed = [(paths, how, paths[0]) for paths in jobs]
        done = subprocess.run(
            [*wrapper, sys.executable, '-m', _READER],
            input=json.dumps(listed),
            capture_output=True,
            text=True,
            timeout=_LIMIT,
            cwd=self.inside,
            env=os.environ
            | {'PYTHONPATH': os.getcwd(), 'TMPDIR': str(self.work)},
        )
        self.assertEqual(0, done.returncode, done.stderr)
        reports = [
            Report(**json.loads(line)) for line in done.stdout.splitlines()
        ]
        self.assertEqual(len(jobs), len(reports), done.stderr)
        for report in reports:
            self.assertEqual('', report.foreign)
            if not qemu:
                self.assertEqual([], report.programs)
            for path in report.opened:
                self.assertTrue(
                    path in (str(self.inside), str(self.work), os.devnull)
                    or path.startswith((f'{self.inside}/', f'{self.work}/')),
                    f'{path} was opened',
                )
        return reports

    def refused(
        self, error_id: str | Collection[str], *packages_: tuple[str, bytes]
    ) -> list[Report]:
        """Each package is refused with the id, or one of them."""
        allowed = {error_id} if isinstance(error_id, str) else set(error_id)
        paths = [[self.write(name, data)] for name, data in packages_]
        reports = self.read(*paths)
        for (path,), report in zip(paths, reports, strict=True):
            with self.subTest(os.path.basename(path)):
                self.assertIn(report.id, allowed, report.text)
                self.assertIn('\nFix: ', report.text)
        return reports


def _forms(
    name: str, members: Sequence[hostile.Member]
) -> tuple[tuple[str, bytes], ...]:
    """A tar as it is and compressed, so read in place and forward."""
    data = hostile.tar(members)
    return (
        (f'{name}.ova', data),
        (f'{name}.ova.gz', gzip.compress(data, 1)),
    )


def forms(
    name: str, members: Sequence[hostile.Member]
) -> tuple[tuple[str, bytes], ...]:
    """A tar as it is and compressed, so read in place and forward."""
    data = hostile.tar(members)
    return (
        (f'{name}.ova', data),
        (f'{name}.ova.gz', gzip.compress(data, 1)),
    )
