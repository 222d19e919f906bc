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

"""What the commands call: each a list of steps and a report."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence
import importlib.metadata
import platform
import typing

from xenimport import exceptions
from xenimport import model
from xenimport.target import base as target_base
from xenimport.target import command
from xenimport.workflow import context
from xenimport.workflow import diagnosis
from xenimport.workflow import engine
from xenimport.workflow import steps


class Failed(Exception):
    """A run that ended early, with the report of how far it came.

    :ivar error: why, a XenImportError or KeyboardInterrupt
    :ivar leftovers: what could not be undone
    """

    def __init__(
        self,
        error: exceptions.XenImportError | KeyboardInterrupt,
        report: model.Report | None,
        leftovers: Sequence[exceptions.XenImportError],
    ) -> None:
        super().__init__(str(error))
        self.error = error
        self.report = report
        self.leftovers = tuple(leftovers)


def _execute(
    list_of_steps: Sequence[engine.Step], run: context.Run
) -> model.Report:
    error: exceptions.XenImportError | KeyboardInterrupt
    try:
        engine.execute(list_of_steps, run)
        return report(run)
    except (exceptions.XenImportError, KeyboardInterrupt) as caught:
        error = caught
    except Exception as caught:
        error = exceptions.unexpected(caught)
    finally:
        run.close()
    known = run.virtual_system is not None
    raise Failed(
        error, report(run) if known else None, run.leftovers
    ) from error


def inspect(
    settings: context.Settings,
    observer: context.Observer | None = None,
    *,
    rehearse: bool = False,
) -> model.Report:
    """Diagnose the guest; nothing is copied, nothing is written.

    With ``repair`` off in the settings only the package is read.

    :param rehearse: repair it on a throw-away overlay as well, so that
        the report names each change that an import would make
    :raises Failed: if the package or guest cannot be read
    """
    list_of_steps: list[engine.Step] = [steps.ReadPackage()]
    if settings.repair:
        list_of_steps += [
            steps.MakeWorkDirectory(),
            steps.Rehearse(repair=rehearse),
            steps.RemoveWorkDirectory(),
        ]
    return _execute(list_of_steps, context.Run(settings, observer))


def import_package(
    settings: context.Settings,
    target: target_base.Target,
    observer: context.Observer | None = None,
    launch_recipe: (Callable[[context.Run], tuple[str, ...]] | None) = None,
) -> model.Report:
    """Put the package's disks into the target, repaired and verified.

    :param launch_recipe: gives the lines that start the guest, once the
        images stand
    :raises Failed: if a step failed; nothing is left then
    """
    list_of_steps: list[engine.Step] = [
        steps.ReadPackage(),
        steps.ValidateTarget(),
        steps.MakeWorkDirectory(),
        steps.CheckSpace(),
    ]
    run = context.Run(settings, observer, target)
    if not steps.goes_straight(run):
        list_of_steps.append(steps.Copy())
    if settings.repair:
        list_of_steps.append(steps.Treat())
    list_of_steps += [
        steps.Verify(),
        steps.Publish(),
        steps.RemoveWorkDirectory(),
    ]
    result = _execute(list_of_steps, run)
    if launch_recipe is None:
        return result
    try:
        run.recipe = launch_recipe(run)
    except KeyboardInterrupt:
        # The images stand and are verified; only the hint is missing.
        run.observer.say('Interrupted while looking for a launch recipe.')
    return report(run)


def upload_commands(run: context.Run) -> tuple[str, ...]:
    """The lines that would upload what :func:`import_package` wrote."""
    return tuple(
        command.image_create(image.id, request)
        for image, request in zip(run.images, run.requests, strict=True)
    )


def report(run: context.Run) -> model.Report:
    """What is known of a run, finished or not."""
    system = run.system
    return model.Report(
        tool=_tool(),
        machine={'accelerator': run.accelerator},
        source={
            'path': system.package.path,
            'format': system.package.format,
            'creator': system.creator,
            'name': system.name,
            'vcpus': system.vcpus,
            'memory': system.memory,
            'firmware': system.firmware.value if system.firmware else None,
            'nics': [
                {'name': nic.name, 'mac': nic.mac, 'network': nic.network}
                for nic in system.nics
            ],
            'disks': [_disk(opened) for opened in run.disks],
            'bytes_read': run.bytes_read,
        },
        guest=_guest(run),
        findings=run.findings,
        remaining=run.remaining,
        accepted=tuple(sorted(run.settings.accept)),
        changes=run.changes,
        checks=tuple(run.checks),
        steps=tuple(run.steps),
        images=tuple(run.images),
        recipe=run.recipe,
    )


def has_blockers(settings: context.Settings, result: model.Report) -> bool:
    """Whether blockers remain that the user has not accepted."""
    return bool(
        diagnosis.blockers(result.remaining, settings.accept, repairable=True)
    )


def _tool() -> dict[str, str]:
    names = ('xenimport', 'openstacksdk', 'python-openstackclient')
    versions = {'python': platform.python_version()}
    for name in names:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = 'not installed'
    return versions


def _disk(opened: context.OpenDisk) -> dict[str, typing.Any]:
    return {
        'index': opened.disk.index,
        'name': opened.disk.name,
        'file': opened.disk.region.name,
        'format': opened.format or None,
        'creator': opened.creator,
        'virtual_size': opened.size,
        'capacity': opened.disk.capacity,
    }


def _guest(run: context.Run) -> dict[str, typing.Any] | None:
    system = run.operating_system
    if system is None:
        return None
    return {
        'family': system.family,
        'distribution': system.distribution,
        'version': f'{system.major}.{system.minor}',
        'product': system.product,
        'architecture': system.architecture,
        'hostname': system.hostname,
        'root': system.root,
        'mountpoints': dict(system.mountpoints),
        'kernels': list(system.kernels),
        'init': system.init,
        **run.guest_facts,
        'hardware': dict(run.hardware),
    }
