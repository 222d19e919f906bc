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

"""The hot loop: a disk image into a sparse RAW file.

Time and memory go with the data, never with the virtual size. Each
worker thread has one buffer, used over and over; reading, comparing and
writing release the interpreter's lock or take microseconds.
"""

from __future__ import annotations

from collections.abc import Iterator
import contextlib
import dataclasses
import errno
import os
import threading
import time

from xenimport.converter import base
from xenimport import exceptions
from xenimport import model

#: Bytes a worker reads at once; the usual block of a VHD.
CHUNK = 2 * 1024 * 1024
#: Bytes that are tested for being all zeros at once.
GRAIN = 64 * 1024
#: Seconds between two reports of progress.
_INTERVAL = 0.2

_ZEROS = bytes(GRAIN)


@dataclasses.dataclass(frozen=True)
class Copied:
    """What a copy has done.

    :ivar bytes_written: data, holes left out
    :ivar bytes_read: what the image has allocated
    """

    bytes_written: int
    bytes_read: int
    seconds: float


def data_size(disk_image: base.DiskImage) -> int:
    """Bytes that the image has allocated: the most a copy can write."""
    return sum(
        length for _, length, allocated in disk_image.extents() if allocated
    )


def copy(
    disk_image: base.DiskImage,
    path: str,
    *,
    threads: int = 2,
    progress: model.Progress = model.no_progress,
) -> Copied:
    """Write the image to ``path`` as a sparse RAW file.

    A file that is there already is replaced. On any failure, Ctrl-C
    included, the file is removed and the threads have ended.

    :param threads: how many read and write at once
    :param progress: called from the calling thread, with bytes of data
    :raises xenimport.exceptions.DiskImageError: if the image fails, or
        its package was changed meanwhile
    :raises xenimport.exceptions.MachineError: if the file cannot be
        written
    """
    started = time.monotonic()
    total = data_size(disk_image)
    descriptor = _create(path)
    try:
        try:
            _truncate(descriptor, disk_image.virtual_size, path)
            run = _Run(disk_image, descriptor, path)
            run.execute(max(1, threads), total, progress)
            disk_image.check_unchanged()
        finally:
            os.close(descriptor)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
        raise
    return Copied(run.written, run.read, time.monotonic() - started)


def _create(path: str) -> int:
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
    try:
        return os.open(path, flags | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise _write_error(path, error) from error


def _truncate(descriptor: int, size: int, path: str) -> None:
    try:
        os.ftruncate(descriptor, size)
    except OSError as error:
        raise _write_error(path, error) from error


def _write_error(path: str, error: OSError) -> exceptions.MachineError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return exceptions.MachineError(
            'machine.no-space',
            'There is no space left for the copy of the disk',
            where=path,
            fix='free some space, or choose another place with --work-dir',
        )
    if error.errno == errno.EFBIG:
        return exceptions.MachineError(
            'machine.file-too-large',
            'The file system cannot hold a file as large as the disk',
            where=path,
            fix='choose a place on ext4, XFS or btrfs with --work-dir',
        )
    return exceptions.MachineError(
        'machine.write-failed',
        'The copy of the disk cannot be written',
        where=path,
        found=os.strerror(error.errno or 0),
        fix='check the directory, its permissions and its disk, or choose '
        'another place with --work-dir',
    )


class _Run:
    """One copy: the work is handed out in order, to whoever is free."""

    def __init__(
        self, disk_image: base.DiskImage, descriptor: int, path: str
    ) -> None:
        self._image = disk_image
        self._descriptor = descriptor
        self._path = path
        self._chunks = self._plan()
        self._lock = threading.Lock()
        # The kernel lets one writer at a time into a file, and has the
        # others spin for it: two that wait here instead take half of the
        # processor's time and two thirds of the clock's (measured).
        self._writer = threading.Lock()
        self._stop = threading.Event()
        self._failure: BaseException | None = None
        self.read = 0
        self.written = 0

    def _plan(self) -> Iterator[tuple[int, int]]:
        """Yield (offset, length) of the data, at chunk boundaries."""
        for offset, length, allocated in self._image.extents():
            end = offset + length
            while allocated and offset < end:
                stop = min(end, offset - offset % CHUNK + CHUNK)
                yield offset, stop - offset
                offset = stop

    def execute(
        self, threads: int, total: int, progress: model.Progress
    ) -> None:
        """Run the workers to their end; raise what stopped them."""
        workers = [
            threading.Thread(target=self._work, name=f'copy-{number}')
            for number in range(threads)
        ]
        try:
            for worker in workers:
                worker.start()
            progress(0, total)
            for worker in workers:
                while worker.is_alive():
                    worker.join(_INTERVAL)
                    progress(min(self.read, total), total)
        finally:
            # Reached by Ctrl-C as well: nobody may write any more when
            # the file is closed.
            self._stop.set()
            for worker in workers:
                if worker.ident is not None:
                    worker.join()
        if self._failure is not None:
            raise self._failure
        progress(total, total)

    def _work(self) -> None:
        try:
            buffer = bytearray(CHUNK)
            with memoryview(buffer) as view:
                while (chunk := self._next()) is not None:
                    offset, length = chunk
                    self._image.pread_into(view[:length], offset)
                    written = self._write(buffer, view, offset, length)
                    with self._lock:
                        self.read += length
                        self.written += written
        except BaseException as error:
            with self._lock:
                self._failure = self._failure or error
            self._stop.set()

    def _next(self) -> tuple[int, int] | None:
        if self._stop.is_set():
            return None
        with self._lock:
            return next(self._chunks, None)

    def _write(
        self, buffer: bytearray, view: memoryview, offset: int, length: int
    ) -> int:
        """Write the runs of grains that are not zero; bytes written."""
        written = 0
        start = position = 0
        while position < length:
            # The grains keep to multiples of their size on the disk.
            end = min(
                length,
                position + GRAIN - (offset + position) % GRAIN,
            )
            if _is_zero(buffer, position, end):
                written += self._write_run(
                    view[start:position], offset + start
                )
                start = end
            position = end
        return written + self._write_run(view[start:length], offset + start)

    def _write_run(self, run: memoryview, offset: int) -> int:
        length = len(run)
        if not length:
            return 0
        try:
            with self._writer:
                while run:
                    count = os.pwrite(self._descriptor, run, offset)
                    run = run[count:]
                    offset += count
        except OSError as error:
            raise _write_error(self._path, error) from error
        return length


def _is_zero(buffer: bytearray, start: int, end: int) -> bool:
    """Whether ``buffer[start:end]`` is all zeros, without copying it."""
    # startswith() is the one comparison with an offset that is a plain
    # memcmp; comparing memoryviews goes byte by byte.
    if end - start == GRAIN:
        return buffer.startswith(_ZEROS, start)
    return buffer.startswith(_ZEROS[: end - start], start)
