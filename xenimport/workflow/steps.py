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

"""The steps of a run, in the order in which they may stand."""

from __future__ import annotations

from collections.abc import Iterator
import contextlib
import dataclasses
import os
import shutil
import tempfile
import time

from oslo_log import log as logging

from xenimport.converter import copy
from xenimport.converter import digests
from xenimport.converter import serve
from xenimport import exceptions
from xenimport.guest import accelerator
from xenimport.guest import guest as guest_room
from xenimport.guest import session
from xenimport import model
from xenimport.remediation import base as remediation_base
from xenimport.workflow import context
from xenimport.workflow import diagnosis
from xenimport.workflow import drivers
from xenimport.workflow import engine
from xenimport.workflow import forward
from xenimport.workflow import layout
from xenimport.workflow import opening
from xenimport.workflow import properties
from xenimport.workflow import publication

LOG = logging.getLogger(__name__)

#: The place for large temporary files that survive a reboot (FHS).
_WORK_PARENT = '/var/tmp'
#: Room for logs, sockets and overlays beside the disks, bytes.
_MARGIN = 64 << 20


@contextlib.contextmanager
def _timed(run: context.Run, name: str) -> Iterator[None]:
    """A part of a step, with its own line in the report."""
    started = time.monotonic()
    run.observer.step(name)
    yield
    seconds = time.monotonic() - started
    run.steps.append(model.Step(name, seconds))
    run.observer.step_done(name, seconds, 0)


def _progress(run: context.Run, before: int, total: int) -> model.Progress:
    """One disk's progress as a part of that of all disks.

    :param total: bytes of all disks, 0 where that is not known
    """

    def report(done: int, size: int) -> None:
        run.check_interrupted()
        run.observer.progress(before + done, total or before + size)

    return report


class ReadPackage(engine.Step):
    """Describe the virtual system and open its disk images."""

    name = 'read package'

    def do(self, run: context.Run) -> int:
        opening.read(run)
        return 0

    def undo(self, run: context.Run) -> None:
        run.close()


class ValidateTarget(engine.Step):
    """Let the target refuse before any slow work."""

    name = 'ask target'

    def do(self, run: context.Run) -> int:
        if run.target is None:
            raise RuntimeError('a run without a target')
        run.requests = [
            _request(run, opened.disk.index) for opened in run.disks
        ]
        run.target.validate(run.requests)
        return 0

    def undo(self, run: context.Run) -> None:
        # Here and not in Publish: an output directory that the target
        # has made is empty only after the work directory is gone.
        if run.target is not None:
            run.target.discard()
        run.images = []


def _request(run: context.Run, index: int) -> model.ImageRequest:
    """What disk ``index``'s image shall be, before the guest is known."""
    asked = run.settings.image or model.ImageRequest(name='')
    name = asked.name or run.system.name
    if index:
        name = f'{name}-disk{index}'
    return dataclasses.replace(
        asked, name=name, disk_format=run.settings.disk_format
    )


class MakeWorkDirectory(engine.Step):
    """One directory that holds all that is made."""

    name = 'make work directory'

    def do(self, run: context.Run) -> int:
        parent = (
            run.settings.work_dir
            or run.settings.option('work_dir')
            or os.environ.get('TMPDIR')
            or _WORK_PARENT
        )
        try:
            run.work_dir = tempfile.mkdtemp(prefix='xenimport-', dir=parent)
        except OSError as error:
            raise exceptions.MachineError(
                'machine.work-directory',
                'The work directory cannot be made',
                where=parent,
                expected='a directory that can be written to',
                found=error.strerror,
                fix='name another one with --work-dir',
            ) from error
        return 0

    def undo(self, run: context.Run) -> None:
        RemoveWorkDirectory().do(run)


class CheckSpace(engine.Step):
    """Know before the copy whether the disks fit.

    Compared is the data of the disks, never their size. Of a disk that
    comes in a stream it is not known before: a copy that does not fit
    ends with an error of its own.
    """

    name = 'check free space'

    def do(self, run: context.Run) -> int:
        if goes_straight(run):
            return 0
        data = sum(
            copy.data_size(opened.image)
            for opened in run.disks
            if opened.image is not None
        )
        if run.target is not None:
            run.target.make_sure_of_room(data, run.directory)
        # The qcow2 images are made beside the RAW workfiles.
        needed = _MARGIN + data * (
            2 if run.settings.disk_format == 'qcow2' else 1
        )
        free = shutil.disk_usage(run.directory).free
        if free < needed:
            raise exceptions.MachineError(
                'machine.no-space',
                'The work directory has too little room for the disks',
                where=os.path.dirname(run.directory),
                expected=f'{needed} bytes free (the data of the disks, '
                'not their size)',
                found=f'{free} bytes free',
                fix='free some space, or name another place with --work-dir',
            )
        return 0


def goes_straight(run: context.Run) -> bool:
    """Whether disks go into the target without a workfile."""
    settings = run.settings
    return (
        not settings.repair
        and not settings.keep_workfile
        and settings.disk_format == 'raw'
        and run.target is not None
        and run.target.streams
    )


class Copy(engine.Step):
    """Write each disk into a sparse RAW workfile."""

    name = 'copy disks'

    def do(self, run: context.Run) -> int:
        run.bytes_read = _copy_all(run)
        return run.bytes_read


def _copy_all(run: context.Run) -> int:
    """Copy the disks; bytes of data read."""
    total = sum(
        copy.data_size(opened.image)
        for opened in run.disks
        if opened.image is not None
    )
    moved = 0
    for opened in run.disks:
        if opened.image is not None:
            moved += _copy(run, opened, _progress(run, moved, total))
    return moved + _copy_streams(run)


def _copy(
    run: context.Run, opened: context.OpenDisk, progress: model.Progress
) -> int:
    """Copy one disk that can be read at any place; bytes of data."""
    image = opened.image
    if image is None:
        raise RuntimeError('the disk is not open')
    package = run.system.package
    regions = image.regions if run.settings.verify_manifest else ()
    if run.settings.repair and layout.bare_file_system(
        image.pread(0, 512), opened.disk
    ):
        image = opened.image = layout.wrapped(image)
        opened.size = image.virtual_size
    opened.workfile = forward.workfile(run, opened.disk)
    with digests.Verifier(package, regions) as verifier:
        copied = copy.copy(
            image,
            opened.workfile,
            threads=run.settings.option('copy_threads'),
            progress=progress,
        )
        verifier.check()
    return copied.bytes_read


def _copy_streams(run: context.Run) -> int:
    """Copy the disks that come once; bytes of data read."""
    if all(opened.image is not None for opened in run.disks):
        return 0
    reader = forward.Reader(run, _progress(run, 0, 0))
    for opened, image, _stream in reader.images():
        reader.to_workfile(opened, image)
    moved = reader.moved
    for opened in reader.open_unpacked():
        moved += _copy(run, opened, _progress(run, moved, 0))
    reader.remove_unpacked()
    return moved


@contextlib.contextmanager
def _appliance(
    run: context.Run, drives: list[session.Drive]
) -> Iterator[guest_room.Guest]:
    """The appliance with the disks, and the guest looked at."""
    wanted = run.settings.option('accelerator')
    run.accelerator = accelerator.detect() if wanted == 'auto' else wanted
    appliance = session.Appliance(
        drives,
        run.directory,
        accelerator=run.accelerator,
        start_limit=run.settings.option('appliance_start_limit'),
        call_limit=run.settings.option('appliance_call_limit'),
    )
    with contextlib.ExitStack() as stack:
        with _timed(run, 'guest: start appliance'):
            stack.enter_context(appliance)
        guest = guest_room.Guest(appliance)
        with _timed(run, 'guest: find operating system'):
            run.operating_system = guest.inspect()
            run.guest_facts = properties.guest_facts(guest)
        yield guest


def _doctor(run: context.Run, guest: guest_room.Guest) -> diagnosis.Doctor:
    settings = run.settings
    remediations = drivers.load(
        settings.conf,
        'remediation',
        settings.option('enabled_remediations'),
    )
    request = remediation_base.Request(
        virtual_system=run.system,
        disk_bus=settings.disk_bus,
        initramfs=settings.initramfs,
        accept=settings.accept,
        xen_drivers=settings.xen_drivers,
        virtio_win=settings.virtio_win,
        clock=settings.clock,
        first_boot_script=settings.first_boot_script,
    )
    return diagnosis.Doctor(
        guest,
        remediations.values(),
        request,
        settings.option('disabled_checks'),
    )


class Treat(engine.Step):
    """Diagnose the guest on its workfiles, repair it, diagnose again."""

    name = 'repair guest'

    def do(self, run: context.Run) -> int:
        _treat(run, [session.Drive(opened.workfile) for opened in run.disks])
        # Only what cannot be repaired is named where nothing was repaired.
        diagnosis.refuse_blockers(
            run.findings, run.settings.accept, repairable=False
        )
        diagnosis.refuse_blockers(
            run.remaining, run.settings.accept, repairable=True
        )
        return 0


class Rehearse(engine.Step):
    """The same on throw-away overlays: nothing is copied or written.

    :param repair: rehearse the repair as well, as ``--dry-run`` does
    """

    name = 'examine guest'

    def __init__(self, *, repair: bool) -> None:
        self._repair = repair

    def do(self, run: context.Run) -> int:
        copied = 0
        if any(opened.image is None for opened in run.disks):
            # What comes once cannot be looked at in place.
            with _timed(run, 'guest: copy what cannot be read in place'):
                copied = _copy_streams(run)
        with contextlib.ExitStack() as stack:
            servers: list[serve.Server] = []
            drives = [
                _drive(run, opened, stack, servers) for opened in run.disks
            ]
            _treat(run, drives, repair=self._repair)
        run.bytes_read = copied + sum(
            server.bytes_read() for server in servers
        )
        return run.bytes_read


def _drive(
    run: context.Run,
    opened: context.OpenDisk,
    stack: contextlib.ExitStack,
    servers: list[serve.Server],
) -> session.Drive:
    """A throw-away overlay over a disk, in place where that can be."""
    if opened.workfile or opened.converter is None:
        return session.Drive(opened.workfile, snapshot=True)
    server = stack.enter_context(
        serve.served(run.system, opened.disk, opened.converter, run.directory)
    )
    servers.append(server)
    return session.Drive(server.socket, 'nbd', snapshot=True)


def _treat(
    run: context.Run, drives: list[session.Drive], *, repair: bool = True
) -> None:
    """Fill in what was found and changed, and what remains."""
    own = run.findings
    with _appliance(run, drives) as guest:
        doctor = _doctor(run, guest)
        with _timed(run, 'guest: diagnose'):
            found = doctor.diagnose()
            run.guest_facts |= doctor.describe()
            run.hardware = doctor.hardware()
        if guest.registry.seconds:
            run.steps.append(
                model.Step(
                    'guest: of that, read hives', guest.registry.seconds
                )
            )
        run.checks = doctor.runs
        run.findings = own + found
        run.remaining = run.findings
        if not repair:
            return
        if diagnosis.blockers(
            run.findings, run.settings.accept, repairable=False
        ):
            # What cannot be mended makes all other repair pointless.
            return
        with _timed(run, 'guest: repair'):
            run.changes = doctor.repair()
        with _timed(run, 'guest: write registry'):
            doctor.commit()
        with _timed(run, 'guest: diagnose again'):
            again = doctor.diagnose('verify')
            run.hardware = doctor.hardware()
    # The copy puts a partition table around a bare file system.
    run.remaining = again + tuple(
        finding for finding in own if not finding.repair
    )


class Verify(engine.Step):
    """Look at the finished RAW as Glance and Nova will.

    A disk that comes once and goes straight into the target is verified
    while it passes.
    """

    name = 'verify disks'

    def do(self, run: context.Run) -> int:
        for opened in run.disks:
            if opened.workfile:
                publication.verify_workfile(run, opened)
            elif opened.image is not None:
                publication.verify_image(run, opened, opened.image)
        return 0


class Publish(engine.Step):
    """Put every disk into the target, or none."""

    name = 'publish images'

    def do(self, run: context.Run) -> int:
        return publication.publish(run)


class RemoveWorkDirectory(engine.Step):
    """Remove all that was made, unless the user wants it kept."""

    name = 'clean up'

    def do(self, run: context.Run) -> int:
        if run.work_dir is None:
            return 0
        if run.settings.keep_workfile:
            run.observer.say(f'The workfiles are kept in {run.work_dir}')
            return 0
        shutil.rmtree(run.work_dir, ignore_errors=True)
        if os.path.exists(run.work_dir):
            LOG.warning('%s could not be removed', run.work_dir)
        return 0
