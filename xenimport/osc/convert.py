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

"""``openstack image import-xen convert``."""

from __future__ import annotations

import argparse
import os
import typing

from osc_lib.command import command

from xenimport.osc import base


class ConvertXen(base.Exits, command.ShowOne):
    """Convert a guest exported from Xen to disks that boot on KVM.

    The same work as import-xen without a cloud: writes disk0.raw (or
    .qcow2), disk1.raw, ... in boot order and report.json into a directory, and
    shows the commands that would upload the disks.
    """

    auth_required = False

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        parser = super().get_parser(prog_name)
        base.add_package(parser)
        base.add_repair(parser)
        base.add_disk_format(parser)
        parser.add_argument(
            '--output',
            metavar='<directory>',
            required=True,
            help='Where the disks and report.json go; made if absent',
        )
        return parser

    def report_files(self, parsed_args: argparse.Namespace) -> list[str]:
        os.makedirs(parsed_args.output, exist_ok=True)
        return [
            os.path.join(parsed_args.output, 'report.json'),
            *super().report_files(parsed_args),
        ]

    def take_action(
        self, parsed_args: argparse.Namespace
    ) -> tuple[typing.Sequence[str], typing.Sequence[typing.Any]]:
        from xenimport.osc import formatting
        from xenimport.osc import progress
        from xenimport.target import directory
        from xenimport.workflow import drivers
        from xenimport.workflow import run

        # Workfiles are made beside their place, so that the last step is
        # a rename and no second copy.
        settings = base.settings(parsed_args, work_dir=parsed_args.output)
        target = directory.DirectoryTarget(
            drivers.options(
                settings.conf,
                'target',
                'directory',
                directory.DirectoryTarget,
            ),
            path=parsed_args.output,
            move=not settings.keep_workfile,
        )
        report = run.import_package(
            settings, target, progress.Watcher(), run.upload_commands
        )
        self.write_report(parsed_args, report)
        self.tell_unmatched(settings.accept, report)
        self.tell('\nTo upload:')
        self.tell('\n'.join(report.recipe))
        return formatting.report(report)
