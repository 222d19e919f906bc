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

"""A disk image as a read-only NBD device on a UNIX socket.

So libguestfs reads a disk where it lies, and ``inspect`` copies nothing.
The server is nbdkit with its Python plugin; ``nbdkit_plugin.py`` in this
directory is the script, which opens the image anew in its own process.
"""

from __future__ import annotations

from collections.abc import Iterator
import contextlib
import dataclasses
import json
import os
import pathlib
import resource
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import time

from xenimport.converter import base
from xenimport import exceptions
from xenimport import model

#: Seconds nbdkit may take to open the image and listen.
START_LIMIT = 60
#: Seconds it may take to end when asked.
_STOP_LIMIT = 5
#: Bytes of address space that nbdkit may use: it parses what strangers
#: wrote. The largest table of a VHD takes less than a tenth of it.
ADDRESS_SPACE = 2 << 30
#: The kernel's bound of a UNIX socket's path, its final zero included.
_PATH_LIMIT = 108
_COUNTER = struct.Struct('=Q')


class Server:
    """A running server.

    :ivar socket: the path of its UNIX socket
    """

    def __init__(self, socket: str, counter: str) -> None:
        self.socket = socket
        self._counter = counter
        self._final: int | None = None

    @property
    def uri(self) -> str:
        """What an NBD client connects to."""
        return f'nbd+unix:///?socket={self.socket}'

    def bytes_read(self) -> int:
        """Bytes of data that clients have read so far, holes left out."""
        if self._final is not None:
            return self._final
        with open(self._counter, 'rb') as stream:
            value: int = _COUNTER.unpack(stream.read(_COUNTER.size))[0]
            return value

    def freeze(self) -> None:
        """Keep the last count: the file goes away with the server."""
        self._final = self.bytes_read()


@contextlib.contextmanager
def served(
    virtual_system: model.VirtualSystem,
    disk: model.Disk,
    converter: base.Converter,
    work_dir: str,
) -> Iterator[Server]:
    """Serve one disk while the block runs.

    The server ends with the thread that started it, whatever happens.

    :param converter: opens the disk, in the server's own process
    :param work_dir: the socket lies in a new directory under it, or
        under the system's temporary directory if its path is too long
    :raises xenimport.exceptions.DiskImageError: if the disk cannot be
        opened
    :raises xenimport.exceptions.MachineError: if nbdkit is missing or
        does not start
    """
    _require_nbdkit()
    # Errors of the image come from here, in our own form. It stays open
    # to know at the end whether the package was changed meanwhile.
    with (
        converter.open(virtual_system.package, disk) as image,
        _directory(work_dir) as directory,
    ):
        server = Server(
            os.path.join(directory, 'nbd'), os.path.join(directory, 'read')
        )
        _describe(directory, virtual_system.package, disk, converter)
        with _running(directory, server):
            try:
                yield server
            finally:
                server.freeze()
        image.check_unchanged()


def _describe(
    directory: str,
    package: model.Package,
    disk: model.Disk,
    converter: base.Converter,
) -> None:
    """Write the files that the plugin reads and counts in."""
    path = pathlib.Path(directory)
    (path / 'disk.json').write_text(
        json.dumps(describe(package, disk, converter)), 'utf-8'
    )
    (path / 'read').write_bytes(bytes(_COUNTER.size))


def describe(
    package: model.Package, disk: model.Disk, converter: base.Converter
) -> dict[str, object]:
    """What the plugin needs to open the disk, as JSON can hold it."""
    kind = type(converter)
    return {
        'package': {
            'path': package.path,
            'format': package.format,
            'members': {
                name: _region(region)
                for name, region in package.members.items()
            },
        },
        'disk': _fields(disk) | {'region': _region(disk.region)},
        'converter': [kind.__module__, kind.__qualname__],
        'options': dict(converter.options),
    }


def _fields(record: model.Disk | model.Region) -> dict[str, object]:
    """The fields as they are; dataclasses.asdict() copies each deeply."""
    return {
        item.name: getattr(record, item.name)
        for item in dataclasses.fields(record)
    }


def _region(region: model.Region) -> dict[str, object]:
    """A region's fields; an XVA's have a piece for each mebibyte."""
    pieces = [
        (
            piece.offset,
            piece.length,
            piece.region_offset,
            piece.path,
            piece.checksum,
        )
        for piece in region.pieces
    ]
    return _fields(region) | {
        'pieces': pieces,
        'digests': [dataclasses.asdict(item) for item in region.digests],
    }


def _require_nbdkit() -> None:
    if shutil.which('nbdkit') is None:
        raise exceptions.MachineError(
            'machine.nbdkit-missing',
            'nbdkit is not installed',
            expected='nbdkit with its Python plugin',
            fix='apt install nbdkit nbdkit-plugin-python; or convert the '
            'disk instead of inspecting it in place',
        )


@contextlib.contextmanager
def _directory(work_dir: str) -> Iterator[str]:
    directory = tempfile.mkdtemp(prefix='serve-', dir=work_dir)
    if len(os.path.join(directory, 'nbd').encode()) >= _PATH_LIMIT:
        os.rmdir(directory)
        directory = tempfile.mkdtemp(prefix='xenimport-')
    try:
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)


@contextlib.contextmanager
def _running(directory: str, server: Server) -> Iterator[None]:
    log = os.path.join(directory, 'log')
    script = pathlib.Path(__file__).with_name('nbdkit_plugin.py')
    command = [
        'nbdkit',
        '--foreground',
        '--exit-with-parent',
        '--readonly',
        '--threads=4',
        f'--unix={server.socket}',
        f'--pidfile={directory}/pid',
        'python',
        os.fspath(script),
        f'description={directory}/disk.json',
        f'counter={directory}/read',
    ]
    with open(log, 'wb') as stream:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=stream,
            env=os.environ | {'PYTHONPATH': _python_path()},
            # So Ctrl-C does not take the disk away from libguestfs
            # before libguestfs itself has been ended.
            start_new_session=True,
        )
    try:
        _limit(process)
        _wait(process, directory, log)
        yield
    finally:
        _end(process)


def _limit(process: subprocess.Popen[bytes]) -> None:
    """Bound the server's memory, and let it write no core file.

    From outside: nothing has to run between fork and exec, and nbdkit
    has to load Python before it reads the first byte of the image.
    """
    for limit, value in (
        (resource.RLIMIT_AS, ADDRESS_SPACE),
        (resource.RLIMIT_CORE, 0),
    ):
        hard = resource.prlimit(process.pid, limit)[1]
        if hard != resource.RLIM_INFINITY:
            value = min(value, hard)
        resource.prlimit(process.pid, limit, (value, value))


def _python_path() -> str:
    """Our own packages, for nbdkit's Python."""
    root = os.fspath(pathlib.Path(__file__).resolve().parents[2])
    return os.pathsep.join([root, *filter(None, sys.path)])


def _wait(process: subprocess.Popen[bytes], directory: str, log: str) -> None:
    """Until the server listens: then it writes its pid file."""
    deadline = time.monotonic() + START_LIMIT
    while not os.path.exists(f'{directory}/pid'):
        ended = process.poll() is not None
        if ended or time.monotonic() > deadline:
            with open(log, encoding='utf-8', errors='replace') as stream:
                last = stream.read(65536).strip().splitlines()[-1:]
            raise exceptions.MachineError(
                'machine.nbdkit-failed',
                'nbdkit did not start',
                expected='nbdkit with its Python plugin, of the same Python '
                f'version as ours ({sys.version_info.major}.'
                f'{sys.version_info.minor})',
                found=''.join(last)[:300]
                if ended
                else f'no answer in {START_LIMIT} seconds',
                fix='apt install nbdkit nbdkit-plugin-python',
            )
        time.sleep(0.01)


def _end(process: subprocess.Popen[bytes]) -> None:
    """End the server and whatever it started."""
    process.terminate()
    try:
        process.wait(_STOP_LIMIT)
    except subprocess.TimeoutExpired:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
