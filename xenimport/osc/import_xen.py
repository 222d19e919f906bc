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

"""``openstack image import-xen``."""

from __future__ import annotations

import argparse
import typing

from osc_lib.cli import parseractions
from osc_lib.command import command

from xenimport.osc import base

if typing.TYPE_CHECKING:
    from xenimport import model
    from xenimport.workflow import context

_COLUMNS = (
    'Disk',
    'ID',
    'Name',
    'Status',
    'Size',
    'Checksum',
    'Hash Algorithm',
    'Hash Value',
    'Properties',
)


class ImportXen(base.Exits, command.Lister):
    """Import a guest exported from Xen as images that boot on KVM.

    Reads the package in place, copies its disks into sparse RAW
    workfiles, diagnoses and repairs the guest there, verifies the result
    and uploads it: one image a disk, or none. The package is never
    written to. Exits with 3 when the guest would not run on KVM.
    """

    @property
    def auth_required(self) -> bool:
        """Whether a cloud is needed; asked before arguments are parsed."""
        return '--dry-run' not in self.app.command_options

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        parser = super().get_parser(prog_name)
        base.add_package(parser)
        base.add_repair(parser)
        base.add_disk_format(parser)
        parser.add_argument(
            '--dry-run',
            action='store_true',
            help='Examine and repair on a throw-away overlay, show the '
            'report and stop: no disk is copied, no image is made',
        )
        _add_image_options(parser)
        return parser

    def take_action(
        self, parsed_args: argparse.Namespace
    ) -> tuple[
        typing.Sequence[str], typing.Iterable[typing.Sequence[typing.Any]]
    ]:
        from xenimport.osc import formatting
        from xenimport.osc import progress
        from xenimport.workflow import run

        settings = base.settings(
            parsed_args, image=self._image_request(parsed_args)
        )
        if parsed_args.dry_run:
            return self._dry_run(parsed_args, settings)
        report = run.import_package(
            settings,
            self._target(settings),
            progress.Watcher(),
            self._launch_recipe,
        )
        self.write_report(parsed_args, report)
        self.tell_unmatched(settings.accept, report)
        if report.changes:
            self.tell('\nChanged in the guest:')
            self.tell(formatting.changes(report.changes))
        if report.remaining:
            self.tell('\nFor you to know:')
            self.tell(formatting.findings(report.remaining))
        if report.recipe:
            self.tell('\nTo start it:')
            self.tell('\n'.join(report.recipe))
        return _COLUMNS, [_row(image) for image in report.images]

    def _dry_run(
        self, parsed_args: argparse.Namespace, settings: context.Settings
    ) -> tuple[
        typing.Sequence[str], typing.Iterable[typing.Sequence[typing.Any]]
    ]:
        from xenimport.osc import formatting
        from xenimport.osc import progress
        from xenimport.workflow import run

        report = run.inspect(
            settings, progress.Watcher(), rehearse=settings.repair
        )
        self.write_report(parsed_args, report)
        if run.has_blockers(settings, report):
            self.exit_code = base.EXIT_BLOCKED
        names, values = formatting.report(report)
        return ('Field', 'Value'), list(zip(names, values, strict=True))

    def _target(self, settings: context.Settings) -> typing.Any:
        from xenimport.target import glance
        from xenimport.workflow import drivers

        return glance.GlanceTarget(
            drivers.options(
                settings.conf, 'target', 'glance', glance.GlanceTarget
            ),
            connection=self.app.client_manager.sdk_connection,
        )

    def _launch_recipe(self, run: context.Run) -> tuple[str, ...]:
        from xenimport.workflow import recipe

        return recipe.lines(
            run.system,
            run.images,
            self.app.client_manager.sdk_connection,
        )

    def _image_request(
        self, parsed_args: argparse.Namespace
    ) -> model.ImageRequest:
        from xenimport import model

        return model.ImageRequest(
            name=parsed_args.name or '',
            properties=parsed_args.properties or {},
            tags=tuple(parsed_args.tags or ()),
            visibility=parsed_args.visibility,
            protected=parsed_args.is_protected,
            project=self._project_id(parsed_args),
        )

    def _project_id(self, parsed_args: argparse.Namespace) -> str | None:
        if not parsed_args.project or parsed_args.dry_run:
            return None
        from openstackclient.identity import common

        clients: typing.Any = self.app.client_manager
        project = common.find_project(
            clients.identity,
            parsed_args.project,
            parsed_args.project_domain,
        )
        return str(project.id)


def _row(image: model.Image) -> tuple[typing.Any, ...]:
    from xenimport.osc import formatting

    return (
        image.disk,
        image.id,
        formatting.cell(image.name),
        image.status,
        image.size,
        image.checksum,
        image.hash_algorithm,
        image.hash_value,
        formatting.View(
            dict(image.properties),
            formatting.lines_of(
                f'{key}={value}'
                for key, value in sorted(image.properties.items())
            ),
        ),
    )


def _whole_number(text: str) -> int:
    number = int(text)
    if number < 0:
        raise argparse.ArgumentTypeError('it must not be negative')
    return number


def _add_image_options(parser: argparse.ArgumentParser) -> None:
    """Spelled like those of ``openstack image create``."""
    parser.add_argument(
        '--name',
        metavar='<image-name>',
        help="New image name (default: the guest's name in the package); "
        'further disks get -disk1, -disk2, ... after it',
    )
    parser.add_argument(
        '--min-disk',
        metavar='<disk-gb>',
        type=_whole_number,
        help='Minimum disk size needed to boot image, in gigabytes '
        '(default: the size of the disk)',
    )
    parser.add_argument(
        '--min-ram',
        metavar='<ram-mb>',
        type=_whole_number,
        help='Minimum RAM size needed to boot image, in megabytes '
        '(default: what the package says)',
    )
    parser.add_argument(
        '--property',
        dest='properties',
        metavar='<key=value>',
        action=parseractions.KeyValueAction,
        help='Set a property on the images, before any that would be set '
        'by itself (repeat option to set multiple properties)',
    )
    parser.add_argument(
        '--tag',
        dest='tags',
        metavar='<tag>',
        action='append',
        help='Set a tag on the images (repeat option to set multiple tags)',
    )
    visibility = parser.add_mutually_exclusive_group()
    for name in ('public', 'private', 'community', 'shared'):
        visibility.add_argument(
            f'--{name}',
            dest='visibility',
            action='store_const',
            const=name,
            help=f'Make the images {name}',
        )
    protection = parser.add_mutually_exclusive_group()
    protection.add_argument(
        '--protected',
        dest='is_protected',
        action='store_true',
        default=None,
        help='Prevent the images from being deleted',
    )
    protection.add_argument(
        '--unprotected',
        dest='is_protected',
        action='store_false',
        default=None,
        help='Allow the images to be deleted (default)',
    )
    parser.add_argument(
        '--project',
        metavar='<project>',
        help='Set an alternate project on the images (name or ID)',
    )
    parser.add_argument(
        '--project-domain',
        metavar='<project-domain>',
        help='Domain the project belongs to (name or ID)',
    )
