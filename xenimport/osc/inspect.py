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

"""``openstack image import-xen inspect``."""

from __future__ import annotations

import argparse
import typing

from osc_lib.command import command

from xenimport.osc import base


class InspectXen(base.Exits, command.ShowOne):
    """Show what a Xen guest is and what would go wrong on KVM.

    Needs no cloud, copies no disk and changes nothing. Exits with 3 when
    there are blockers, which import-xen may be able to repair.
    """

    auth_required = False

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        parser = super().get_parser(prog_name)
        base.add_package(parser)
        return parser

    def take_action(
        self, parsed_args: argparse.Namespace
    ) -> tuple[typing.Sequence[str], typing.Sequence[typing.Any]]:
        from xenimport.osc import formatting
        from xenimport.osc import progress
        from xenimport.workflow import run

        settings = base.settings(parsed_args)
        report = run.inspect(settings, progress.Watcher())
        self.write_report(parsed_args, report)
        if run.has_blockers(settings, report):
            self.exit_code = base.EXIT_BLOCKED
        return formatting.report(report)
