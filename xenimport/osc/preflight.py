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

"""``openstack image import-xen preflight``."""

from __future__ import annotations

import argparse
import typing

from osc_lib.command import command

from xenimport.osc import base

_COLUMNS = ('ID', 'Status', 'Title', 'Evidence', 'Remedy')


class Preflight(base.Exits, command.Lister):
    """Check that this machine can import guests.

    Starts the libguestfs appliance, finds out whether KVM really works,
    and looks for room and tools. Exits with 1 when something is missing
    without which an import cannot work.
    """

    auth_required = False

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        parser = super().get_parser(prog_name)
        parser.add_argument(
            '--work-dir',
            metavar='<directory>',
            help='The work directory whose free space is looked at',
        )
        return parser

    def take_action(
        self, parsed_args: argparse.Namespace
    ) -> tuple[
        typing.Sequence[str], typing.Iterable[typing.Sequence[typing.Any]]
    ]:
        from xenimport import opts
        from xenimport.osc import formatting
        from xenimport.workflow import preflight

        results = preflight.checks(opts.load(), parsed_args.work_dir)
        if any(result.status == 'failed' for result in results):
            self.exit_code = base.EXIT_ERROR
        return _COLUMNS, [
            (
                result.id,
                result.status,
                formatting.cell(result.title),
                formatting.cell(result.evidence),
                formatting.cell(result.remedy or ''),
            )
            for result in results
        ]
