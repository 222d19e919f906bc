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


"""Windows guests before and after the commands, run as a user runs them."""

from __future__ import annotations

from collections.abc import Collection
import json
import os
import pathlib
import shutil
import typing
import unittest

from xenimport.tests.functional import commands
from xenimport.tests.functional import windows_disks
from xenimport.tests.functional import windows_reading

Report = dict[str, typing.Any]
_TOOLS = ('mkntfs', 'ntfscat', 'sfdisk', 'mkfs.vfat', 'mtype')


def _missing() -> list[str]:
    path = os.environ.get('PATH', '') + ':/usr/sbin:/sbin'
    return [tool for tool in _TOOLS if shutil.which(tool, path=path) is None]


class WindowsTest(commands.CommandTest):
    """A test of made-up Windows guests."""

    def setUp(self) -> None:
        missing = _missing()
        if missing:
            raise unittest.SkipTest(f'not installed: {", ".join(missing)}')
        super().setUp()

    def write(
        self, made: windows_disks.WindowsDisk, name: str = 'guest.raw'
    ) -> pathlib.Path:
        """Write a disk into the test's directory."""
        return made.write(self.directory / name)

    def inspect(
        self,
        *arguments: str | os.PathLike[str],
        code: int | None = None,
    ) -> Report:
        """``import-xen inspect``; gives the report.

        :param code: that it shall exit with, if not what the severities
            of the findings call for
        """
        done = self.openstack(
            'import-xen', 'inspect', *arguments, '-f', 'json'
        )
        self.assertNotIn('Traceback', done.stderr)
        self.assertIn(done.code, (0, 3), done.stderr)
        report: Report = done.json()
        if code is None:
            code = 3 if ids(report, 'blocker') else 0
        self.assertEqual(code, done.code, done.stderr)
        return report

    def convert(
        self, *arguments: str | os.PathLike[str], code: int = 0
    ) -> Report:
        """``import-xen convert`` into the directory ``out``; the report.

        :param arguments: the package's files first
        """
        report = self.directory / 'report.json'
        done = self.openstack(
            'import-xen', 'convert', *arguments,
            '--output', self.directory / 'out', '--report', report,
        )  # fmt: skip
        self.assertNotIn('Traceback', done.stderr)
        self.assertEqual(code, done.code, done.stderr)
        result: Report = json.loads(report.read_text())
        return result

    @property
    def converted(self) -> pathlib.Path:
        """The first disk that :meth:`convert` wrote."""
        return self.directory / 'out' / 'disk0.raw'

    def assert_reported(
        self,
        before: windows_reading.Snapshot,
        after: windows_reading.Snapshot,
        report: Report,
        hives: Collection[str] = (),
    ) -> None:
        """The hives differ by what the report lists, and nothing else.

        :param hives: those that are compared, if not all
        """
        names = hives or before.hives.keys() | after.hives.keys()
        found = windows_reading.differences(
            {name: before.hives.get(name, {}) for name in names},
            {name: after.hives.get(name, {}) for name in names},
        )
        listed = windows_reading.reported(report['changes'], names)
        self.maxDiff = None
        self.assertEqual(sorted(listed), sorted(found))


def ids(report: Report, *severities: str) -> set[str]:
    """Ids of a report's findings of some severities, or of all."""
    return {
        finding['id']
        for finding in report['findings']
        if not severities or finding['severity'] in severities
    }


def evidence(report: Report, finding_id: str) -> list[str]:
    """The evidence of a report's findings of one id."""
    return [
        finding['evidence']
        for finding in report['findings']
        if finding['id'] == finding_id
    ]


def blockers(findings: list[Report]) -> list[str]:
    """Ids of those findings that are blockers."""
    return [item['id'] for item in findings if item['severity'] == 'blocker']
