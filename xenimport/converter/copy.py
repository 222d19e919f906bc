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
import queue
import threading
import time

from xenimport.converter import base
from xenimport import exceptions
from xenimport import model
from xenimport import stream as stream_room

#: Bytes a worker reads at once; the usual block of a VHD.
CHUNK = 2 * 1024 * 1024
#: Bytes that are tested for being all zeros at once.
GRAIN = 64 * 1024
#: Seconds between two reports of progress.
_INTERVAL = 0.2

_ZEROS = bytes(GRAIN)
#: Buffers between who reads a stream and who writes.
_BUFFERS = 4


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
        raise write_error(path, error) from error


def _truncate(descriptor: int, size: int, path: str) -> None:
    try:
        os.ftruncate(descriptor, size)
    except OSError as error:
        raise write_error(path, error) from error


def write_error(path: str, error: OSError) -> exceptions.MachineError:
    """The error of a file in the work directory that cannot be written."""
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


class _Writer:
    """Writes what is not zero into the file; safe from several threads."""

    def __init__(self, descriptor: int, path: str) -> None:
        self._descriptor = descriptor
        self._path = path
        # The kernel lets one writer at a time into a file, and has the
        # others spin for it: two that wait here instead take half of the
        # processor's time and two thirds of the clock's (measured).
        self._lock = threading.Lock()

    def write(
        self, buffer: bytearray, view: memoryview, offset: int, length: int
    ) -> int:
        """Write the runs of grains that are not zero; bytes written.

        :param view: of the buffer
        """
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
            with self._lock:
                while run:
                    count = os.pwrite(self._descriptor, run, offset)
                    run = run[count:]
                    offset += count
        except OSError as error:
            raise write_error(self._path, error) from error
        return length


class _Run:
    """One copy: the work is handed out in order, to whoever is free."""

    def __init__(
        self, disk_image: base.DiskImage, descriptor: int, path: str
    ) -> None:
        self._image = disk_image
        self._chunks = self._plan()
        self._lock = threading.Lock()
        self._writer = _Writer(descriptor, path)
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
                    written = self._writer.write(buffer, view, offset, length)
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


def _is_zero(buffer: bytearray, start: int, end: int) -> bool:
    """Whether ``buffer[start:end]`` is all zeros, without copying it."""
    # startswith() is the one comparison with an offset that is a plain
    # memcmp; comparing memoryviews goes byte by byte.
    if end - start == GRAIN:
        return buffer.startswith(_ZEROS, start)
    return buffer.startswith(_ZEROS[: end - start], start)


def copy_forward(
    image: base.ForwardImage,
    path: str,
    *,
    progress: model.Progress = model.no_progress,
) -> Copied:
    """Write an image that is read once, forward, to a sparse RAW file.

    Reading (and decoding) goes on in the calling thread while another
    writes. A file that is there already is replaced; on any failure,
    Ctrl-C included, it is removed.

    :param progress: called with bytes of data, out of the image's
        ``data_size``, or of what is done where that is not known
    :raises xenimport.exceptions.XenImportError: if the image is damaged
    :raises xenimport.exceptions.MachineError: if the file cannot be
        written
    """
    started = time.monotonic()
    descriptor = _create(path)
    try:
        try:
            run = _ForwardRun(image, _Writer(descriptor, path))
            run.execute(progress)
            size = image.virtual_size
            _truncate(descriptor, run.end if size is None else size, path)
        finally:
            os.close(descriptor)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
        raise
    return Copied(run.written, run.read, time.monotonic() - started)


class _ForwardRun:
    """One forward copy: a few buffers go round between two threads.

    :ivar end: where the last run ended on the disk
    """

    def __init__(self, image: base.ForwardImage, writer: _Writer) -> None:
        self._image = image
        self._writer = writer
        self._free: queue.SimpleQueue[bytearray] = queue.SimpleQueue()
        self._full: queue.SimpleQueue[tuple[bytearray, int, int] | None]
        self._full = queue.SimpleQueue()
        self._failure: BaseException | None = None
        self.read = self.written = self.end = 0

    def execute(self, progress: model.Progress) -> None:
        """Copy every run; raise what stopped it."""
        for _ in range(_BUFFERS):
            self._free.put(bytearray(base.MAX_RUN))
        worker = threading.Thread(target=self._write_all, name='copy-write')
        worker.start()
        try:
            self._read_all(progress)
        finally:
            self._full.put(None)
            worker.join()
        if self._failure is not None:
            raise self._failure
        progress(self.read, self.read)

    def _read_all(self, progress: model.Progress) -> None:
        told = 0.0
        for offset, run in self._image.runs():
            if self._failure is not None:
                return
            length = len(run)
            self._check(offset, length)
            buffer = self._free.get()
            buffer[:length] = run
            self._full.put((buffer, offset, length))
            self.read += length
            self.end = max(self.end, offset + length)
            if time.monotonic() - told > _INTERVAL:
                told = time.monotonic()
                progress(self.read, self._image.data_size or self.read)

    def _check(self, offset: int, length: int) -> None:
        size = self._image.virtual_size
        if size is not None and offset + length > size:
            raise exceptions.DiskImageError(
                'disk-image.outside',
                'The disk image holds data beyond the end of the disk',
                expected=f'data up to byte {size}',
                found=f'{length} bytes at {offset}',
                fix='export the guest again',
            )

    def _write_all(self) -> None:
        while (item := self._full.get()) is not None:
            buffer, offset, length = item
            try:
                if self._failure is None:
                    with memoryview(buffer) as view:
                        self.written += self._writer.write(
                            buffer, view, offset, length
                        )
            except BaseException as error:
                self._failure = error
            self._free.put(buffer)


def unpack(
    stream: stream_room.Stream,
    path: str,
    *,
    progress: model.Progress = model.no_progress,
) -> int:
    """Write a stream's bytes to a new file; its size in bytes.

    :raises xenimport.exceptions.PackageError: if the stream is damaged
    :raises xenimport.exceptions.MachineError: if the file cannot be
        written
    """
    image = _StreamImage(stream)
    copy_forward(image, path, progress=progress)
    return image.taken


class _StreamImage(base.ForwardImage):
    """The bytes of a stream as they are, as a disk."""

    format = 'stream'
    virtual_size = None
    ascending = True

    def __init__(self, stream: stream_room.Stream) -> None:
        self._stream = stream
        self.data_size = stream.size
        self.taken = 0

    def runs(self) -> Iterator[tuple[int, memoryview]]:
        buffer = memoryview(bytearray(base.MAX_RUN))
        while count := self._stream.read_into(buffer):
            yield self.taken, buffer[:count]
            self.taken += count
