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

"""What all commands share: exit codes, errors, the report file.

Loaded by ``openstack --help`` as well, so nothing heavy is imported
here before a command runs.
"""

from __future__ import annotations

import argparse
from collections.abc import Collection
import json
import os
import sys
import typing

from osc_lib.command import command

if typing.TYPE_CHECKING:
    from xenimport import exceptions
    from xenimport import model
    from xenimport.workflow import context
    from xenimport.workflow import run as workflow_run

EXIT_ERROR = 1
EXIT_BLOCKED = 3
EXIT_INTERRUPTED = 130


class Exits(command.Command):
    """Turns how a run ended into an exit code and one clear message.

    cliff's own classes know only 0 and 1.

    :ivar exit_code: what a command that ended well exits with
    """

    exit_code = 0

    def run(self, parsed_args: argparse.Namespace) -> int:
        """Run the command: 0 done, 1 error, 2 usage, 3 blocked, 130."""
        from xenimport import exceptions
        from xenimport.workflow import run as workflow_run

        self.exit_code = 0
        try:
            return super().run(parsed_args) or self.exit_code
        except workflow_run.Failed as failed:
            return self._failed(parsed_args, failed)
        except exceptions.XenImportError as error:
            return self._error(error)
        except KeyboardInterrupt:
            self.tell('Interrupted.')
            return EXIT_INTERRUPTED
        except Exception as error:
            if isinstance(error, BrokenPipeError) or _is_openstack(error):
                raise
            return self._error(exceptions.unexpected(error))

    def tell(self, text: str) -> None:
        """Talk to the person: on stderr, so that data stays clean."""
        print(text, file=sys.stderr, flush=True)

    def _error(self, error: exceptions.XenImportError) -> int:
        self.tell(str(error))
        if self.app.options.debug:
            self.log.error('', exc_info=error.__cause__ or error)
        return error.exit_code

    def _failed(
        self,
        parsed_args: argparse.Namespace,
        failed: workflow_run.Failed,
    ) -> int:
        from xenimport import exceptions
        from xenimport.osc import formatting

        if isinstance(failed.error, exceptions.BlockedError):
            for finding in failed.error.findings:
                self.tell(formatting.finding(finding) + '\n')
        if isinstance(failed.error, KeyboardInterrupt):
            kept = failed.leftovers or getattr(
                parsed_args, 'keep_workfile', False
            )
            self.tell(
                'Interrupted.'
                if kept
                else 'Interrupted; everything made so far was removed.'
            )
            code = EXIT_INTERRUPTED
        else:
            code = self._error(failed.error)
        for left in failed.leftovers:
            self._error(left)
        if failed.report is not None:
            self.write_report(parsed_args, failed.report)
        return code

    def write_report(
        self, parsed_args: argparse.Namespace, report: model.Report
    ) -> None:
        """Write the JSON report to each of :meth:`report_files`.

        A report that cannot be written is told, and makes the exit code
        1 where it was 0; what the run has done stands all the same.
        """
        from xenimport import exceptions

        for path in self.report_files(parsed_args):
            try:
                save_report(path, report)
            except exceptions.XenImportError as error:
                self.exit_code = self._error(error)

    def report_files(self, parsed_args: argparse.Namespace) -> list[str]:
        """Where the report goes; it is written after an error as well."""
        path = getattr(parsed_args, 'report', None)
        return [path] if path else []

    def tell_unmatched(
        self, accepted: Collection[str], report: model.Report
    ) -> None:
        """Name what was accepted and never found: most likely a slip."""
        found = {item.id for item in (*report.findings, *report.remaining)}
        for finding_id in sorted(set(accepted) - found):
            self.tell(f'--accept {finding_id}: there was no such finding')


def _is_openstack(error: Exception) -> bool:
    """Whether the client's own machinery raised it, and shows it."""
    return type(error).__module__.partition('.')[0] in (
        'cliff',
        'keystoneauth1',
        'openstack',
        'openstackclient',
        'osc_lib',
    )


def save_report(path: str, report: model.Report) -> None:
    """Write a report as JSON, whole or not at all.

    :raises xenimport.exceptions.XenImportError: if it cannot be written
    """
    partial = f'{path}.part'
    try:
        with open(partial, 'w', encoding='utf-8') as stream:
            json.dump(report.as_dict(), stream, indent=2, ensure_ascii=True)
            stream.write('\n')
        os.replace(partial, path)
    except OSError as error:
        raise _not_written(path, str(error.strerror)) from error


def _check_report(path: str) -> None:
    """Find out before any slow work whether it could be written."""
    directory = os.path.dirname(path) or '.'
    if not os.path.isdir(directory):
        raise _not_written(path, 'its directory does not exist')
    if not os.access(directory, os.W_OK):
        raise _not_written(path, 'its directory cannot be written to')


def _disk_bus(
    parsed_args: argparse.Namespace, image: model.ImageRequest | None
) -> str | None:
    """The bus that the user wants, by the option or by the property.

    The guest is made ready for one bus: the image must not name another.
    """
    from xenimport import exceptions

    asked: str | None = parsed_args.disk_bus
    stated = image.properties.get('hw_disk_bus') if image else None
    if stated not in ('virtio', 'scsi', 'sata', 'ide') or stated == asked:
        return asked
    if asked in (None, 'auto'):
        return stated
    raise exceptions.ConfigurationError(
        'configuration.disk-bus-twice',
        'Two disk buses are asked for',
        where='--disk-bus and --property hw_disk_bus',
        expected='one bus',
        found=f'{asked} and {stated}',
        fix='leave out --property hw_disk_bus',
    )


def _nothing_is_written() -> exceptions.XenImportError:
    from xenimport import exceptions

    return exceptions.ConfigurationError(
        'configuration.no-repair',
        '--first-boot-script does nothing with --no-repair',
        where='--no-repair',
        expected='one of the two',
        found='both: without a repair nothing is written into the guest',
        fix='leave out one of them',
    )


def _check_readable(option: str, path: str | None) -> None:
    """Find out before any slow work whether an option's file is there."""
    from xenimport import exceptions

    if path is None or os.access(path, os.R_OK):
        return
    raise exceptions.ConfigurationError(
        'configuration.file-unreadable',
        f'What {option} names cannot be read',
        where=path,
        expected='a file or directory that this user may read',
        found='none of that name'
        if not os.path.exists(path)
        else 'no permission',
        fix='check the path and its permissions',
    )


def _not_written(path: str, found: str) -> exceptions.XenImportError:
    from xenimport import exceptions

    return exceptions.XenImportError(
        'report.not-written',
        'The report cannot be written',
        where=path,
        expected='a file in a directory that can be written to',
        found=found,
        fix='name another file with --report',
    )


def add_package(parser: argparse.ArgumentParser) -> None:
    """The PACKAGE argument and what every command on a package takes."""
    parser.add_argument(
        'packages',
        metavar='<package>',
        nargs='+',
        help='Guest exported from Xen: an .xva, an .ova, an .ovf or its '
        'directory, or bare disk files in boot order; known by its '
        'content, and compressed with gzip or zstd if need be. "-" reads '
        'from standard input; an http:// or https:// address is read '
        'without being saved first',
    )
    parser.add_argument(
        '--system',
        metavar='<name>',
        help='Which guest to take of a package that holds several (name '
        'or OVF id)',
    )
    parser.add_argument(
        '--no-verify-manifest',
        action='store_true',
        help="Do not compare the disks with the digests in the package's "
        'manifest',
    )
    parser.add_argument(
        '--disk-bus',
        choices=['auto', 'virtio', 'scsi', 'sata', 'ide'],
        help='Bus that the disks shall have on KVM (default: auto, which '
        'takes virtio where the guest has or gets a driver)',
    )
    parser.add_argument(
        '--virtio-win',
        metavar='<path>',
        help='Where virtio drivers for a Windows guest are: the virtio-win '
        'ISO or a directory with its content (default: what '
        'xenimport.conf names, else /usr/share/virtio-win)',
    )
    parser.add_argument(
        '--work-dir',
        metavar='<directory>',
        help='Where workfiles are made, with room for the data of all '
        'disks (default: $TMPDIR or /var/tmp)',
    )
    parser.add_argument(
        '--report',
        metavar='<file>',
        help='Write the whole report to this file, as JSON',
    )


def add_repair(parser: argparse.ArgumentParser) -> None:
    """The options of the commands that repair."""
    parser.add_argument(
        '--no-repair',
        action='store_true',
        help='Take the disks as they are: no guest is looked for',
    )
    parser.add_argument(
        '--initramfs',
        choices=['append', 'rebuild'],
        help='How virtio gets into an initramfs: append the modules (runs '
        "no guest code), or rebuild it with the guest's own tool in the "
        'appliance (default: append)',
    )
    parser.add_argument(
        '--xen-drivers',
        choices=['disable', 'remove'],
        default='disable',
        help="What becomes of a Windows guest's Xen drivers: disable them, "
        'which can be taken back, or remove their packages as "dism '
        '/remove-driver" does (default: disable)',
    )
    parser.add_argument(
        '--clock',
        choices=['auto', 'utc', 'localtime'],
        default='auto',
        help='What a Windows guest shall expect the hardware clock to show '
        '(default: auto, which changes nothing)',
    )
    parser.add_argument(
        '--first-boot-script',
        metavar='<file>',
        help='Script (.cmd, .bat or .ps1) that a Windows guest runs once, '
        'as SYSTEM, before anybody can log on',
    )
    parser.add_argument(
        '--accept',
        metavar='<id>',
        action='append',
        default=[],
        help='Go on in spite of the finding with this id (repeat option '
        'to accept several)',
    )
    parser.add_argument(
        '--keep-workfile',
        action='store_true',
        help='Keep the work directory and say where it is',
    )


def add_disk_format(parser: argparse.ArgumentParser) -> None:
    """The option of the commands that make images."""
    parser.add_argument(
        '--disk-format',
        choices=['raw', 'qcow2'],
        default='raw',
        help='Format of the images (default: raw, which every store '
        'takes; qcow2 is smaller to send)',
    )


def settings(
    parsed_args: argparse.Namespace,
    *,
    image: model.ImageRequest | None = None,
    work_dir: str | None = None,
) -> context.Settings:
    """The arguments as the workflow wants them."""
    from xenimport import opts
    from xenimport.remediation.windows import first_boot
    from xenimport.workflow import context

    if parsed_args.report:
        _check_report(parsed_args.report)
    script = getattr(parsed_args, 'first_boot_script', None)
    _check_readable('--virtio-win', parsed_args.virtio_win)
    if script is not None:
        if getattr(parsed_args, 'no_repair', False):
            raise _nothing_is_written()
        _check_readable('--first-boot-script', script)
        first_boot.read_script(script)
    conf = opts.load()
    defaults = conf[opts.GROUP]
    return context.Settings(
        packages=tuple(parsed_args.packages),
        conf=conf,
        system=parsed_args.system,
        verify_manifest=not parsed_args.no_verify_manifest,
        disk_format=getattr(parsed_args, 'disk_format', 'raw'),
        disk_bus=_disk_bus(parsed_args, image) or defaults.disk_bus,
        initramfs=getattr(parsed_args, 'initramfs', None)
        or defaults.initramfs,
        repair=not getattr(parsed_args, 'no_repair', False),
        accept=frozenset(getattr(parsed_args, 'accept', ())),
        xen_drivers=getattr(parsed_args, 'xen_drivers', 'disable'),
        virtio_win=parsed_args.virtio_win,
        clock=getattr(parsed_args, 'clock', 'auto'),
        first_boot_script=script,
        keep_workfile=getattr(parsed_args, 'keep_workfile', False),
        work_dir=parsed_args.work_dir or work_dir,
        image=image,
        min_disk=getattr(parsed_args, 'min_disk', None),
        min_ram=getattr(parsed_args, 'min_ram', None),
    )
