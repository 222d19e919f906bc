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


"""Every disk into the target, or none: workfiles and straight through."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Sequence
import contextlib
import os
import threading
import time

from xenimport.converter import base as converter_base
from xenimport.converter import digests
from xenimport.converter import qcow2_output
from xenimport import exceptions
from xenimport import model
from xenimport import stream as stream_room
from xenimport.target import base as target_base
from xenimport.target import content
from xenimport.verify import disk as verify_disk
from xenimport.workflow import context
from xenimport.workflow import diagnosis
from xenimport.workflow import forward
from xenimport.workflow import properties
from xenimport.workflow import sketch
from xenimport.workflow import straight


#: Seconds between two looks at the threads that send.
_INTERVAL = 0.2
#: Seconds that a thread may take to notice that it shall end.
_PATIENCE = 10.0


def judge(
    run: context.Run,
    opened: context.OpenDisk,
    verify: Callable[[], list[model.Finding]],
) -> None:
    """Verify a disk as Glance and Nova see it.

    :raises xenimport.exceptions.BlockedError: if it cannot go on so
    """
    started = time.monotonic()
    found = verify()
    run.checks.append(
        model.CheckRun(
            'verify.disk',
            f'disk {opened.disk.index} as Glance and Nova see it',
            'verify',
            len(found),
            time.monotonic() - started,
        )
    )
    run.remaining += tuple(found)
    diagnosis.refuse_blockers(found, run.settings.accept, repairable=True)


def verify_workfile(run: context.Run, opened: context.OpenDisk) -> None:
    """Verify a disk that has a workfile.

    :raises xenimport.exceptions.BlockedError: if it cannot go on so
    """
    judge(
        run,
        opened,
        lambda: verify_disk.verify(opened.workfile, opened.virtual_size),
    )


def _sketch(run: context.Run, opened: context.OpenDisk) -> sketch.Sketch:
    return sketch.Sketch(
        forward.workfile(run, opened.disk), opened.virtual_size
    )


def verify_image(
    run: context.Run,
    opened: context.OpenDisk,
    image: converter_base.DiskImage,
) -> None:
    """The same for a disk that has no workfile.

    :raises xenimport.exceptions.BlockedError: if it cannot go on so
    """
    with contextlib.closing(_sketch(run, opened)) as kept:
        kept.fill(image)
        judge(run, opened, kept.verify)


class _Stopped(exceptions.XenImportError):
    """Another disk failed, so this one is not sent to its end."""


class _Progress:
    """The progress of disks that are sent at the same time.

    :ivar stopped: set when the rest has to end
    """

    def __init__(self, run: context.Run) -> None:
        self._run = run
        self._done: dict[int, int] = {}
        self._total = sum(
            opened.size or opened.disk.capacity or 0 for opened in run.disks
        )
        self.stopped = threading.Event()

    def of(self, disk: int) -> model.Progress:
        """What one disk's upload reports to."""

        def report(done: int, size: int) -> None:
            self.check(done, size)
            self._done[disk] = done
            if threading.current_thread() is threading.main_thread():
                self.show()

        return report

    def check(self, done: int, size: int) -> None:
        """Raise where the rest has to end; counts nothing."""
        if self.stopped.is_set():
            raise _Stopped(
                'import.stopped',
                'The upload was stopped because another disk failed',
                fix='see the other error',
            )

    def show(self) -> None:
        """Tell the observer, from the main thread."""
        self._run.check_interrupted()
        done = sum(self._done.values())
        self._run.observer.progress(done, max(done, self._total))


def publish(run: context.Run) -> int:
    """Send every disk; bytes of all images.

    :raises xenimport.exceptions.XenImportError: if one fails; what has
        been made is for the target's ``discard``
    """
    target = run.target
    if target is None:
        raise RuntimeError('a run without a target')
    progress = _Progress(run)
    known = [
        opened
        for opened in run.disks
        if opened.workfile or opened.image is not None
    ]
    _send_known(run, target, known, progress)
    if len(known) < len(run.disks):
        _send_streams(run, target, progress)
    run.images.sort(key=lambda image: image.disk)
    run.remaining += tuple(target.findings)
    return sum(opened.virtual_size for opened in run.disks)


def _send_known(
    run: context.Run,
    target: target_base.Target,
    disks: Sequence[context.OpenDisk],
    progress: _Progress,
) -> None:
    """Send the disks that can be read at any place, side by side.

    A digest takes one core for each disk, and it is what limits the rate.
    """
    if not target.streams or len(disks) < 2:
        for opened in disks:
            run.images.append(_send(run, target, opened, progress))
        return
    senders = _Senders(run, target, disks, progress)
    try:
        senders.wait()
    finally:
        # Reached by Ctrl-C and by one disk's failure as well.
        senders.stop()
    run.images += senders.images


class _Senders:
    """Threads that send disks, as many as there are processors.

    :ivar images: those that stand by now
    """

    def __init__(
        self,
        run: context.Run,
        target: target_base.Target,
        disks: Sequence[context.OpenDisk],
        progress: _Progress,
    ) -> None:
        self._run = run
        self._target = target
        self._progress = progress
        self._disks = iter(disks)
        self._lock = threading.Lock()
        self._failure: BaseException | None = None
        self.images: list[model.Image] = []
        count = min(len(disks), len(os.sched_getaffinity(0)))
        # Daemons: one that waits for a dead server must not keep the
        # command from ending.
        self._threads = [
            threading.Thread(target=self._work, daemon=True)
            for _ in range(count)
        ]
        for thread in self._threads:
            thread.start()

    def wait(self) -> None:
        """Wait until all are sent; raise why one was not."""
        for thread in self._threads:
            while thread.is_alive() and self._failure is None:
                thread.join(_INTERVAL)
                self._progress.show()
        if self._failure is not None:
            raise self._failure

    def stop(self) -> None:
        """Let no thread go on; each ends at its next chunk."""
        self._progress.stopped.set()
        deadline = time.monotonic() + _PATIENCE
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))

    def _work(self) -> None:
        try:
            while (opened := self._next()) is not None:
                image = _send(self._run, self._target, opened, self._progress)
                with self._lock:
                    self.images.append(image)
        except BaseException as error:
            with self._lock:
                self._failure = self._failure or error

    def _next(self) -> context.OpenDisk | None:
        with self._lock:
            # After Ctrl-C what was made is being removed already.
            if self._failure is not None or self._progress.stopped.is_set():
                return None
            return next(self._disks, None)


def _send(
    run: context.Run,
    target: target_base.Target,
    opened: context.OpenDisk,
    progress: _Progress,
) -> model.Image:
    """Send one disk."""
    index = opened.disk.index
    request = run.requests[index] = properties.complete(
        run, opened, run.requests[index]
    )
    report = progress.of(index)
    if opened.image is not None and not opened.workfile:
        with _straight(run, opened, opened.image) as body:
            return target.publish(index, body, request, report)
    raw = content.FileContent(opened.workfile)
    if request.disk_format != 'qcow2':
        return target.publish(index, raw, request, report)
    path = os.path.splitext(opened.workfile)[0] + '.qcow2'
    qcow2_output.write(opened.workfile, path, progress.check)
    image = target.publish(
        index, content.FileContent(path), request, report, raw=raw
    )
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)
    return image


@contextlib.contextmanager
def _straight(
    run: context.Run,
    opened: context.OpenDisk,
    image: converter_base.DiskImage,
) -> Iterator[target_base.Content]:
    """A disk image as a target takes it, its digests compared in time."""
    regions = image.regions if run.settings.verify_manifest else ()
    with digests.Verifier(run.system.package, regions) as verifier:

        def before_end() -> None:
            verifier.check()
            image.check_unchanged()

        yield straight.ImageContent(
            image, run.settings.option('copy_threads'), before_end
        )


def _send_streams(
    run: context.Run, target: target_base.Target, progress: _Progress
) -> None:
    """Send the disks that come once, in the order in which they come."""

    def report(done: int, total: int) -> None:
        run.check_interrupted()
        run.observer.progress(done, total)

    reader = forward.Reader(run, report)
    left = []
    for opened, image, stream in reader.images():
        if image.ascending and image.virtual_size is not None:
            _pass_through(
                run, target, opened, reader, (image, stream), progress
            )
            continue
        run.observer.say(
            f'{opened.disk.region.name} is copied into a workfile first: '
            'its parts do not come in the order of the disk, or only its '
            'end tells its size'
        )
        reader.to_workfile(opened, image)
        left.append(opened)
    for opened in reader.open_unpacked():
        if opened.image is not None:
            verify_image(run, opened, opened.image)
        left.append(opened)
    for opened in left:
        if opened.workfile:
            verify_workfile(run, opened)
    _send_known(run, target, left, progress)
    reader.remove_unpacked()


def _pass_through(
    run: context.Run,
    target: target_base.Target,
    opened: context.OpenDisk,
    reader: forward.Reader,
    coming: tuple[converter_base.ForwardImage, stream_room.Stream],
    progress: _Progress,
) -> None:
    """Send a disk while it comes.

    It is verified, and its digests are compared, before its last bytes
    are handed over: a disk that fails becomes no image.
    """
    image, stream = coming
    index = opened.disk.index
    request = run.requests[index] = properties.complete(
        run, opened, run.requests[index]
    )
    with contextlib.closing(_sketch(run, opened)) as kept:

        def before_end() -> None:
            stream.finish()
            reader.arrived(opened, image)
            judge(run, opened, kept.verify)

        body = straight.ForwardContent(image, kept, before_end)
        run.images.append(
            target.publish(index, body, request, progress.of(index))
        )
