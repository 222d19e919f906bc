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

"""A disk image, read by qemu's driver of its format.

The driver runs in a process of its own, qemu-nbd, which opens the image
by its format's name, never probes it, and gets it as an open file: it
has no name by which to find another. It may write nothing, and may use
so much memory and time and no more. What it reads comes back over NBD.
"""

from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Mapping
import contextlib
import errno
import json
import os
import resource
import shutil
import signal
import subprocess
import tempfile
import threading
import time
import typing
import weakref

from xenimport import exceptions

#: Seconds that qemu-nbd may take to open an image: by the clock ...
START_LIMIT = 30
#: ... and of the processor's time.
_PROCESSOR_LIMIT = 30
#: Seconds that it may take to answer a request.
_ANSWER_LIMIT = 120
#: Seconds in which it ends after it has lost its last connection.
_STOP_LIMIT = 1
#: Bytes of address space it may use. Its threads' stacks take most.
_ADDRESS_SPACE = 2 << 30
#: Bytes it may write: only to its log.
_FILE_SIZE = 64 << 10
#: Bytes asked about at once, below the protocol's 2^32.
_STATUS_STEP = (4 << 30) - (1 << 20)
#: The kernel's bound of a UNIX socket's path, its final zero included.
_PATH_LIMIT = 108
#: The flag of a range that reads as zeros, in NBD's "base:allocation".
_ZERO = 2
_CONTEXT = 'base:allocation'
#: Errors of a request by which nothing is known but that the connection
#: is lost.
_LOST = (0, errno.ENOTCONN, errno.ECONNRESET, errno.EPIPE, errno.ESHUTDOWN)
_SECTOR = 512


def unusable_because() -> str | None:
    """Why no image can be served on this machine, None if it can."""
    if shutil.which('qemu-nbd') is None:
        return 'qemu-nbd is not installed: apt install qemu-utils'
    try:
        _binding()
    except exceptions.MachineError:
        return "libnbd's binding is missing: apt install python3-libnbd"
    return None


def _binding() -> typing.Any:
    """libnbd's Python module, which nothing else needs."""
    try:
        import nbd
    except ImportError as error:
        raise exceptions.MachineError(
            'machine.libnbd-missing',
            "Python cannot import libnbd's binding, which images that qemu "
            'reads need',
            expected='the module nbd',
            found=str(error),
            fix='apt install python3-libnbd; in a virtual environment, '
            'create it with --system-site-packages',
        ) from error
    return nbd


def _program() -> str:
    found = shutil.which('qemu-nbd')
    if found is None:
        raise exceptions.MachineError(
            'machine.qemu-nbd-missing',
            'qemu-nbd is not installed',
            expected='qemu-nbd, by which qcow2, VHDX and VDI are read',
            fix='apt install qemu-utils; or convert the disk to RAW first',
        )
    return found


class Server:
    """A running qemu-nbd, and connections to it.

    It ends with its last connection, and so with this process, whatever
    becomes of that.

    :param driver: qemu's name of the format
    :param file: where the image lies in the file: an open descriptor,
        offset, and bytes or None for all that follow
    :param options: more of the driver's options
    :param where: the image, for an error
    :ivar size: bytes of the disk, as qemu sees it
    :raises xenimport.exceptions.DiskImageError: if qemu refuses the image
    :raises xenimport.exceptions.MachineError: if qemu-nbd or libnbd is
        missing
    """

    def __init__(
        self,
        driver: str,
        file: tuple[int, int, int | None],
        options: Mapping[str, object],
        where: str,
    ) -> None:
        self.where = where
        self._nbd = _binding()
        program = _program()
        self._lock = threading.Lock()
        self._idle: list[typing.Any] = []
        self._directory = _directory()
        self._processes: list[subprocess.Popen[bytes]] = []
        # Also at the end of the interpreter: nbdkit closes no image.
        self._end = weakref.finalize(
            self, _end, self._processes, self._directory
        )
        try:
            self._start(program, _node(driver, file, options), file[0])
            handle = self._first_connection()
            self._allow_time()
            self.size = int(handle.get_size())
            self._idle.append(handle)
        except BaseException:
            self.close()
            raise

    def _start(
        self, program: str, node: Mapping[str, object], descriptor: int
    ) -> None:
        command = [
            # Before the image is opened, and with no code of ours between
            # fork and exec.
            'prlimit',
            f'--as={_ADDRESS_SPACE}',
            f'--cpu={_PROCESSOR_LIMIT}:',
            f'--fsize={_FILE_SIZE}',
            '--core=0',
            '--',
            program,
            '--read-only',
            '--shared=0',
            f'--socket={self._socket}',
            f'json:{json.dumps(node)}',
        ]
        with open(self.log, 'wb') as log:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=(descriptor,),
                env=dict(os.environ, LC_ALL='C'),
                cwd='/',
                # So Ctrl-C does not take the disk away from its readers
                # before they have been ended.
                start_new_session=True,
            )
        self._processes.append(process)

    @property
    def _socket(self) -> str:
        return os.path.join(self._directory, 'nbd')

    @property
    def log(self) -> str:
        return os.path.join(self._directory, 'log')

    @property
    def _process(self) -> subprocess.Popen[bytes]:
        if not self._processes:
            raise ValueError('the server is closed')
        return self._processes[0]

    @property
    def process(self) -> int:
        """qemu-nbd's process id."""
        return self._process.pid

    def _first_connection(self) -> typing.Any:
        """Connect as soon as the image is open."""
        deadline = time.monotonic() + START_LIMIT
        while True:
            ended = self._process.poll() is not None
            handle = self._connection(deadline)
            if handle is not None:
                return handle
            if ended:
                raise self._refused(self._last_words())
            if time.monotonic() >= deadline:
                raise self._refused(f'no answer in {START_LIMIT} seconds')
            time.sleep(0.005)

    def _connection(self, deadline: float) -> typing.Any:
        """A new connection, None if nobody answers."""
        handle = self._nbd.NBD()
        handle.add_meta_context(_CONTEXT)
        try:
            handle.aio_connect_unix(self._socket)
            while handle.aio_is_connecting():
                left = deadline - time.monotonic()
                if left <= 0:
                    return None
                handle.poll(min(200, int(left * 1000) + 1))
            return handle if handle.aio_is_ready() else None
        except self._nbd.Error:
            return None

    def _allow_time(self) -> None:
        """Lift the limit of the processor's time: it goes with the data.

        From here on every request has its limit by the clock.
        """
        with contextlib.suppress(OSError):
            hard = resource.prlimit(self.process, resource.RLIMIT_CPU)[1]
            resource.prlimit(self.process, resource.RLIMIT_CPU, (hard, hard))

    @contextlib.contextmanager
    def _connected(self) -> Iterator[typing.Any]:
        """A connection that nobody else uses meanwhile."""
        with self._lock:
            handle = self._idle.pop() if self._idle else None
        if handle is None:
            handle = self._connection(time.monotonic() + START_LIMIT)
            if handle is None:
                raise self._failed(self._last_words())
        # A connection that broke off, or whose answer nobody waited for,
        # is not used again.
        yield handle
        with self._lock:
            self._idle.append(handle)

    def read_into(self, buffer: memoryview, offset: int) -> None:
        """Fill ``buffer`` from ``offset`` of the disk.

        :raises xenimport.exceptions.DiskImageError: if qemu cannot
        """
        try:
            with self._connected() as handle:
                shared = self._nbd.Buffer.from_buffer(buffer)
                self._finish(handle, handle.aio_pread(shared, offset))
        except self._nbd.Error as error:
            raise self._failed(self._reason(error, offset)) from error

    def _finish(self, handle: typing.Any, cookie: int) -> None:
        """Wait for an answer, outside the interpreter's lock."""
        deadline = time.monotonic() + _ANSWER_LIMIT
        while not handle.aio_command_completed(cookie):
            left = deadline - time.monotonic()
            if left <= 0:
                raise self._failed(f'no answer in {_ANSWER_LIMIT} seconds')
            handle.poll(int(left * 1000) + 1)

    def extents(self) -> Iterator[tuple[int, int, bool]]:
        """Yield (offset, length, allocated), in order, without gaps.

        Offsets and lengths are multiples of 512 bytes.

        :raises xenimport.exceptions.DiskImageError: if qemu cannot tell
        """
        start = end = 0  # of the run of data that is being collected
        for offset, length, data in self._statuses():
            if not data:
                continue
            first = max(end, offset // _SECTOR * _SECTOR)
            last = -(-(offset + length) // _SECTOR) * _SECTOR
            if first > end:
                if end > start:
                    yield start, end - start, True
                yield end, first - end, False
                start = first
            end = min(max(end, last), self.size)
        if end > start:
            yield start, end - start, True
        if end < self.size:
            yield end, self.size - end, False

    def _statuses(self) -> Iterator[tuple[int, int, bool]]:
        """Yield (offset, length, allocated) as qemu gives them."""
        offset = 0
        while offset < self.size:
            before = offset
            step = min(_STATUS_STEP, self.size - offset)
            for length, flags in self._block_status(offset, step):
                length = min(length, self.size - offset)
                yield offset, length, not flags & _ZERO
                offset += length
            if offset == before:
                raise self._failed('no answer about what is allocated')

    def _block_status(self, offset: int, length: int) -> list[tuple[int, int]]:
        found: list[int] = []

        def take(
            context: str, _offset: int, entries: list[int], _error: object
        ) -> int:
            if context == _CONTEXT:
                found.extend(entries)
            return 0

        try:
            with self._connected() as handle:
                cookie = handle.aio_block_status(length, offset, take)
                self._finish(handle, cookie)
        except self._nbd.Error as error:
            raise self._failed(self._reason(error, offset)) from error
        return list(zip(found[::2], found[1::2], strict=False))

    def _reason(self, error: typing.Any, offset: int) -> str:
        """Why a request failed."""
        if error.errnum not in _LOST:
            return f'{os.strerror(error.errnum)}, offset {offset} of the disk'
        code = None
        with contextlib.suppress(subprocess.TimeoutExpired):
            code = self._process.wait(_STOP_LIMIT)
        if code:
            return f'qemu-nbd has ended (exit code {code})'
        # It breaks off when a read fails, and says why.
        text = self._last_words().rpartition(': ')[2]
        return f'{text}, offset {offset} of the disk'

    def _last_words(self) -> str:
        with open(self.log, encoding='utf-8', errors='replace') as stream:
            lines = stream.read(_FILE_SIZE).strip().splitlines()
        # Before the reason come qemu-nbd's name and its argument.
        if lines:
            return lines[-1].rpartition("}': ")[2][:300]
        code = self._process.poll()
        return f'it ended without a word (exit code {code})'

    def _refused(self, found: str) -> exceptions.DiskImageError:
        return exceptions.DiskImageError(
            'disk-image.refused',
            'qemu refuses the image',
            where=self.where,
            found=found,
            fix='export the guest again; if another program opens the '
            'image, convert it to RAW there and import that',
        )

    def _failed(self, found: str) -> exceptions.DiskImageError:
        return exceptions.DiskImageError(
            'disk-image.read-failed',
            'qemu cannot read the image to its end',
            where=self.where,
            found=found[:300],
            fix='copy the disk again, or export the guest again; it is '
            'damaged, or the disk that it lies on is',
        )

    def close(self) -> None:
        """End qemu-nbd. A second call does nothing."""
        self._end()
        self._idle.clear()


def _end(processes: list[subprocess.Popen[bytes]], directory: str) -> None:
    """End what runs, and remove its directory."""
    while processes:
        process = processes.pop()
        # It has nothing to save.
        if process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    shutil.rmtree(directory, ignore_errors=True)


def _directory() -> str:
    """A directory of our own, for a socket of a short enough path."""
    directory = tempfile.mkdtemp(prefix='xenimport-')
    if len(os.fsencode(os.path.join(directory, 'nbd'))) >= _PATH_LIMIT:
        os.rmdir(directory)
        directory = tempfile.mkdtemp(prefix='xenimport-', dir='/tmp')
    return directory


def _node(
    driver: str,
    file: tuple[int, int, int | None],
    options: Mapping[str, object],
) -> dict[str, object]:
    """What qemu shall open, in its own words."""
    descriptor, offset, size = file
    part: dict[str, object] = {
        'driver': 'raw',
        'read-only': True,
        'offset': offset,
        'file': {
            'driver': 'file',
            'filename': f'/proc/self/fd/{descriptor}',
            'read-only': True,
            # The package may be open elsewhere; nobody writes to it.
            'locking': 'off',
        },
    }
    if size is not None:
        part['size'] = size
    return {'driver': driver, 'read-only': True, 'file': part, **options}
