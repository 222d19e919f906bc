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

"""``openstack image import-xen driver list``."""

from __future__ import annotations

import argparse
import typing

from osc_lib.command import command

from xenimport.osc import base

_COLUMNS = ('Kind', 'Name', 'Enabled', 'Usable', 'Handles', 'Problem')


class ListDrivers(base.Exits, command.Lister):
    """List the drivers, what each handles and whether it works here."""

    auth_required = False

    def take_action(
        self, parsed_args: argparse.Namespace
    ) -> tuple[
        typing.Sequence[str], typing.Iterable[typing.Sequence[typing.Any]]
    ]:
        from xenimport import opts
        from xenimport.osc import formatting
        from xenimport.workflow import drivers

        return _COLUMNS, [
            (
                row.kind,
                row.name,
                row.enabled,
                row.problem is None,
                formatting.cell(row.handles),
                formatting.cell(row.problem or ''),
            )
            for row in drivers.describe(opts.load())
        ]
