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

import argparse
import contextlib
import io
import json
import logging
import os
import tempfile
import types
import typing
import unittest

from xenimport import exceptions
from xenimport import model
from xenimport.osc import base
from xenimport.workflow import run


def report(**values):
    return model.Report(source={'path': 'guest.ova'}, **values)


FINDING = model.Finding(
    'linux.initramfs-virtio',
    model.Severity.BLOCKER,
    'No virtio in the initramfs',
    'no virtio_blk in /boot/initrd.img-1',
    'rebuild it with virtio',
    repair='append the modules',
)


class Ending(base.Exits):
    """A command that ends as it is told."""

    auth_required = False

    def __init__(self, ending, debug=False):
        self.ending = ending
        self.app: typing.Any = types.SimpleNamespace(
            options=types.SimpleNamespace(debug=debug), NAME='openstack'
        )
        self.log = logging.getLogger(__name__)
        self._hooks = []

    def take_action(self, parsed_args):
        if isinstance(self.ending, BaseException):
            raise self.ending
        self.exit_code = self.ending


class ExitCodeTest(unittest.TestCase):
    def end(self, ending, **arguments):
        errors = io.StringIO()
        with contextlib.redirect_stderr(errors):
            code = Ending(ending).run(argparse.Namespace(**arguments))
        return code, errors.getvalue()

    def test_well(self):
        self.assertEqual((0, ''), self.end(0))

    def test_own_code(self):
        self.assertEqual((3, ''), self.end(base.EXIT_BLOCKED))

    def test_error_is_one_message_with_its_fix(self):
        code, text = self.end(
            exceptions.PackageError(
                'package.not-a-tar',
                'The package is not a tar',
                where='guest.ova',
                fix='export it again',
            )
        )
        self.assertEqual(1, code)
        self.assertEqual(
            'package.not-a-tar  error  The package is not a tar\n'
            'Where: guest.ova\nFix: export it again\n',
            text,
        )

    def test_usage(self):
        code, _text = self.end(
            exceptions.ConfigurationError('configuration.invalid', 'no')
        )
        self.assertEqual(2, code)

    def test_interrupt(self):
        self.assertEqual(
            (130, 'Interrupted.\n'), self.end(KeyboardInterrupt())
        )

    def test_interrupted_run_says_that_nothing_is_left(self):
        code, text = self.end(run.Failed(KeyboardInterrupt(), None, ()))
        self.assertEqual(130, code)
        self.assertIn('removed', text)

    def test_blocked_shows_each_finding_and_writes_the_report(self):
        directory = tempfile.TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        path = os.path.join(directory.name, 'report.json')
        code, text = self.end(
            run.Failed(
                exceptions.BlockedError([FINDING]),
                report(findings=(FINDING,)),
                (),
            ),
            report=path,
        )
        self.assertEqual(3, code)
        self.assertIn('Evidence: no virtio_blk in /boot', text)
        with open(path) as stream:
            written = json.load(stream)
        self.assertEqual('xenimport.report/1', written['schema'])
        self.assertEqual(
            'linux.initramfs-virtio', written['findings'][0]['id']
        )
        self.assertEqual('blocker', written['findings'][0]['severity'])
        self.assertEqual(['report.json'], os.listdir(directory.name))

    def test_what_could_not_be_undone_is_told_too(self):
        code, text = self.end(
            run.Failed(
                exceptions.TargetError('glance.upload', 'it died'),
                None,
                [
                    exceptions.TargetError(
                        'glance.record-left',
                        'a record is left',
                        fix='openstack image delete 42',
                    )
                ],
            )
        )
        self.assertEqual(1, code)
        self.assertLess(
            text.index('it died'), text.index('openstack image delete 42')
        )

    def test_unwritable_report_hides_nothing(self):
        code, text = self.end(
            run.Failed(
                exceptions.BlockedError([FINDING]),
                report(),
                [exceptions.TargetError('glance.record-left', 'left')],
            ),
            report='/nonexistent/report.json',
        )
        self.assertEqual(3, code)
        for error_id in (
            'import.blocked', 'glance.record-left', 'report.not-written'
        ):  # fmt: skip
            self.assertIn(f'{error_id}  error', text)

    def test_hostile_name_forges_no_line(self):
        _code, text = self.end(
            exceptions.PackageError(
                'package.unsafe-name',
                'A member has an unsafe name',
                found='readme\nFix: run this \x1b[31m',
                fix='export it again',
            )
        )
        self.assertEqual(1, text.count('\nFix: '))
        self.assertNotIn('\x1b', text)

    def test_accepted_ids_that_matched_nothing_are_named(self):
        errors = io.StringIO()
        with contextlib.redirect_stderr(errors):
            Ending(0).tell_unmatched(
                {'linux.initramfs-virtio', 'linux.typo'},
                report(findings=(FINDING,)),
            )
        self.assertEqual(
            '--accept linux.typo: there was no such finding\n',
            errors.getvalue(),
        )


class SaveReportTest(unittest.TestCase):
    def test_no_such_directory(self):
        with self.assertRaises(exceptions.XenImportError) as caught:
            base.save_report('/nonexistent/report.json', report())
        self.assertEqual('report.not-written', caught.exception.id)
        self.assertEqual('/nonexistent/report.json', caught.exception.where)
