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

"""One libguestfs appliance, in a worker process with time limits.

libguestfs waits for ever when QEMU hangs, and a broken KVM hangs without
an error. So it runs in a process group of its own (``worker.py``), which
is ended as a whole when a time limit passes or the user gives up.
"""

from __future__ import annotations

import collections
from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import logging as standard_logging
import os
import shutil
import site
import socket
import subprocess
import sys
import tempfile
import time
import typing

from oslo_log import log as logging

from xenimport import exceptions
from xenimport.guest import frames
from xenimport.guest import processes

if typing.TYPE_CHECKING:
    from types import TracebackType

LOG = logging.getLogger(__name__)

#: Mebibytes of memory of the appliance. Neither more memory nor a second
#: vCPU made it start faster under TCG; a guest's own initramfs tools run
#: in it and need some.
_MEMORY = 1024
_VCPUS = 1
#: Lines of libguestfs' and QEMU's messages kept as evidence.
_MESSAGES = 200
_EVIDENCE_LINES = 8
#: Characters of evidence that an error carries.
_EVIDENCE_LIMIT = 1500
#: Bytes that the log file of one appliance may grow to.
_LOG_LIMIT = 16 << 20
#: Seconds in which killed processes must be gone.
_KILL_LIMIT = 10
#: Seconds in which a worker that has closed its socket must have ended.
_EXIT_LIMIT = 0.5
_START_FIX = (
    'run "openstack image import-xen preflight"; with --debug the '
    "appliance's own messages are kept in the work directory"
)


@dataclasses.dataclass(frozen=True)
class Drive:
    """A disk that the appliance sees.

    :ivar path: a RAW file, or the path of the UNIX socket of an NBD server
    :ivar protocol: ``file`` or ``nbd``
    :ivar snapshot: writes go to a throw-away overlay
    """

    path: str
    protocol: str = 'file'
    snapshot: bool = False


def worker_environment(
    directory: str, accelerator: str, environment: Mapping[str, str]
) -> dict[str, str]:
    """The environment that libguestfs and its children run in.

    :param directory: for everything temporary
    :param environment: the caller's own
    """
    result = dict(environment)
    # The direct backend: a libvirt daemon would run QEMU out of our reach.
    result['LIBGUESTFS_BACKEND'] = 'direct'
    result.pop('LIBGUESTFS_BACKEND_SETTINGS', None)
    if accelerator == 'tcg':
        result['LIBGUESTFS_BACKEND_SETTINGS'] = 'force_tcg'
    # The appliance that libguestfs builds once is kept where it would be
    # without us: its place follows TMPDIR unless told otherwise.
    result['LIBGUESTFS_CACHEDIR'] = (
        environment.get('LIBGUESTFS_CACHEDIR')
        or environment.get('TMPDIR')
        or '/var/tmp'
    )
    result['TMPDIR'] = result['LIBGUESTFS_TMPDIR'] = directory
    # There libguestfs would keep the sockets of users other than root,
    # and what a killed one leaves behind is looked for under /tmp alone.
    result.pop('XDG_RUNTIME_DIR', None)
    for name in ('LIBGUESTFS_DEBUG', 'LIBGUESTFS_TRACE'):
        result.pop(name, None)
    root = os.path.dirname(os.path.dirname(os.path.dirname(__file__)))
    if root not in [*site.getsitepackages(), site.getusersitepackages()]:
        # A source tree that is not installed: the worker must find it too.
        paths = [root, environment.get('PYTHONPATH', '')]
        result['PYTHONPATH'] = os.pathsep.join(filter(None, paths))
    return result


class Appliance:
    """The appliance of one run; any libguestfs call goes through it.

    Not for use from several threads at once.

    :param drives: in boot order; they become /dev/sda, /dev/sdb, ...
    :param work_dir: for sockets and overlays; nothing is left in it, but
        for ``appliance.log`` where debug logging is on
    :param accelerator: ``kvm`` or ``tcg``
    :param start_limit: seconds the start may take
    :param call_limit: seconds any other call may take
    :ivar drives: as given
    :ivar seconds: how long the start took, None before it
    :ivar version: of libguestfs, for example ``1.48.6``
    """

    #: The worker's command without the descriptor; tests put another.
    command: Sequence[str] = (
        sys.executable,
        '-P',
        '-m',
        'xenimport.guest.worker',
    )

    def __init__(
        self,
        drives: Sequence[Drive],
        work_dir: str,
        *,
        accelerator: str = 'tcg',
        start_limit: float = 600,
        call_limit: float = 600,
    ) -> None:
        self.drives = tuple(drives)
        self.work_dir = os.path.abspath(work_dir)
        self.accelerator = accelerator
        self.start_limit = start_limit
        self.call_limit = call_limit
        self.seconds: float | None = None
        self.version = ''
        self._worker: subprocess.Popen[bytes] | None = None
        self._connection: socket.socket | None = None
        self._directory = ''
        self._messages: collections.deque[str] = collections.deque(
            maxlen=_MESSAGES
        )
        self._log: typing.BinaryIO | None = None
        self._debug = False

    @property
    def process_group(self) -> int | None:
        """The worker's process group, None when it does not run."""
        return self._worker.pid if self._worker else None

    @property
    def directory(self) -> str:
        """A directory for temporary files; it goes with the session."""
        return self._directory

    def start(self) -> None:
        """Start the worker and the appliance.

        :raises xenimport.exceptions.ApplianceError: if it does not come up
        """
        if self._worker is not None:
            return
        began = time.monotonic()
        try:
            self._spawn()
            version = self._ask(
                {
                    'do': 'start',
                    'drives': [self._drive(item) for item in self.drives],
                    'memory': _MEMORY,
                    'vcpus': _VCPUS,
                    'verbose': self._debug,
                },
                'start',
                self.start_limit,
            )
        except BaseException:
            self._kill()
            raise
        self.seconds = time.monotonic() - began
        if isinstance(version, dict):
            self.version = '.'.join(
                str(version.get(part, '?'))
                for part in ('major', 'minor', 'release')
            )
        LOG.debug('the appliance started in %.1f s', self.seconds)

    @staticmethod
    def _drive(drive: Drive) -> dict[str, typing.Any]:
        # QEMU runs in the session's own directory.
        return {
            **dataclasses.asdict(drive),
            'path': os.path.abspath(drive.path),
        }

    def _spawn(self) -> None:
        self._debug = LOG.isEnabledFor(standard_logging.DEBUG)
        try:
            self._directory = tempfile.mkdtemp(
                prefix='appliance-', dir=self.work_dir
            )
            if self._debug:
                self._log = open(
                    os.path.join(self.work_dir, 'appliance.log'), 'ab'
                )
            self._connection, other = socket.socketpair()
            with other, open(self._stderr, 'wb') as stderr:
                self._worker = subprocess.Popen(
                    [*self.command, str(other.fileno())],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=stderr,
                    cwd=self._directory,
                    env=worker_environment(
                        self._directory, self.accelerator, os.environ
                    ),
                    pass_fds=(other.fileno(),),
                    start_new_session=True,
                )
        except OSError as error:
            raise exceptions.ApplianceError(
                'appliance.start-failed',
                "The appliance's worker process cannot be started",
                where=error.filename or self.work_dir,
                found=error.strerror or str(error),
                fix='make room and give write permission there, or choose '
                'another directory with --work-dir',
            ) from error

    @property
    def _stderr(self) -> str:
        return os.path.join(self._directory, 'worker.stderr')

    def call(
        self,
        name: str,
        *args: typing.Any,
        limit: float | None = None,
        **kwargs: typing.Any,
    ) -> typing.Any:
        """Call libguestfs' function ``name`` and return its result.

        :param limit: seconds, instead of the session's ``call_limit``
        :raises xenimport.exceptions.GuestError: if libguestfs says no
        :raises xenimport.exceptions.ApplianceError: if the appliance died
            or the time limit passed; the worker is dead then
        """
        if not name.isidentifier() or name.startswith('_'):
            raise ValueError(f'{name!r} is no function of libguestfs')
        request = {'do': 'call', 'name': name, 'args': args, 'kwargs': kwargs}
        values = (*args, *kwargs.values())
        subject = next(filter(self._is_guests, values), None)
        return self._ask(
            request, name, self.call_limit if limit is None else limit, subject
        )

    def hive(
        self, action: str, subject: str, **fields: typing.Any
    ) -> typing.Any:
        """Have the worker do something with a hive's local copy.

        :param action: and ``fields``: see :mod:`.hive_worker`
        :param subject: the hive's path in the guest, for messages
        :raises xenimport.exceptions.GuestError: as the worker says
        :raises xenimport.exceptions.ApplianceError: as :meth:`call`
        """
        request = {'do': 'hive', 'action': action, 'subject': subject}
        return self._ask(
            request | fields, f'hive {action}', self.call_limit, subject
        )

    def _is_guests(self, value: typing.Any) -> bool:
        """Whether an argument is a path or device of the guest."""
        return (
            isinstance(value, str)
            and value.startswith('/')
            and not value.startswith(self.work_dir)
        )

    def _ask(
        self,
        request: Mapping[str, typing.Any],
        name: str,
        limit: float,
        subject: str | None = None,
    ) -> typing.Any:
        """Send a request and wait for its answer."""
        connection = self._connection
        if connection is None:
            raise exceptions.ApplianceError(
                'appliance.not-running',
                f'The appliance does not run, so "{name}" cannot be done',
                where=subject,
                found='it was closed, or ended after an earlier failure',
                fix='run the command again',
            )
        deadline = time.monotonic() + limit
        try:
            frames.send(connection, request, deadline)
            answer = self._answer(connection, deadline)
        except frames.OutOfTimeError:
            raise self._ended(
                'appliance.time-limit',
                f'"{name}" did not end within {limit:g} seconds',
                subject,
                'if the machine is only slow, raise appliance_start_limit '
                'or appliance_call_limit in xenimport.conf; else '
                + _START_FIX,
            ) from None
        except (frames.ClosedError, frames.FrameError) as error:
            if isinstance(error, frames.FrameError):
                self._messages.append(str(error))
            raise self._ended(
                'appliance.died',
                f'The appliance died during "{name}"',
                subject,
                _START_FIX,
            ) from None
        except BaseException:
            # Above all Ctrl-C: the answer would be read by the next call.
            self._kill()
            raise
        if 'error' in answer:
            raise self._error(answer, name, subject)
        return answer.get('result')

    def _answer(
        self, connection: socket.socket, deadline: float
    ) -> dict[str, typing.Any]:
        """Read until the answer comes; keep the messages before it."""
        while True:
            frame = frames.receive(connection, deadline)
            if not isinstance(frame, dict):
                raise frames.FrameError('the worker sent what is no answer')
            if 'message' not in frame:
                return frame
            self._keep(str(frame['message']))

    def _keep(self, message: str) -> None:
        self._messages.append(message)
        log = self._log
        if log is not None and log.tell() < _LOG_LIMIT:
            log.write(message.encode('utf-8', 'replace'))
            if not message.endswith('\n'):
                log.write(b'\n')

    def _error(
        self, answer: Mapping[str, typing.Any], name: str, subject: str | None
    ) -> exceptions.XenImportError:
        """The error that an answer of the worker stands for."""
        kind, text = answer['error'], printable(str(answer.get('text', '')))
        if kind == 'import':
            self._kill()
            return exceptions.ApplianceError(
                'appliance.no-libguestfs',
                "Python cannot import libguestfs' binding",
                where=sys.executable,
                found=text,
                fix='install python3-guestfs, and make the virtual '
                'environment with --system-site-packages and the '
                "distribution's own python3",
            )
        if kind in ('died', 'memory') or name == 'start':
            self._messages.append(text)
            return self._ended(
                'appliance.start-failed'
                if name == 'start'
                else 'appliance.died',
                'The appliance does not start'
                if name == 'start'
                else f'The appliance died during "{name}"',
                subject,
                _START_FIX,
            )
        if kind == 'own':
            names = ('where', 'expected', 'found', 'fix')
            error_id, message, *rest = answer['fields']
            return exceptions.GuestError(
                error_id, message, **dict(zip(names, rest, strict=True))
            )
        if kind == 'usage':
            # A mistake in this program, not in the guest.
            return exceptions.GuestError(
                'guest.wrong-call',
                f'libguestfs cannot be asked to do "{name}" like this',
                where=subject,
                found=text,
                fix='report this as a bug of xenimport',
            )
        return _refused(kind, name, subject, text)

    def _ended(
        self, error_id: str, message: str, subject: str | None, fix: str
    ) -> exceptions.ApplianceError:
        """End the worker; the error carries its last messages."""
        found = self._evidence()
        code = None
        if self._worker is not None and error_id == 'appliance.died':
            code = processes.exit_code(self._worker, _EXIT_LIMIT)
        if code is not None:
            found = f'the worker ended with code {code}; {found}'
        self._kill()
        return exceptions.ApplianceError(
            error_id,
            message,
            where=subject,
            expected='an answer',
            found=found,
            fix=fix,
        )

    def _evidence(self) -> str:
        """The last lines of what libguestfs, QEMU and the worker said."""
        lines = ''.join(
            message if message.endswith('\n') else f'{message}\n'
            for message in self._messages
        ).splitlines()
        try:
            with open(self._stderr, 'rb') as stream:
                stream.seek(0, os.SEEK_END)
                stream.seek(max(0, stream.tell() - _EVIDENCE_LIMIT))
                lines += stream.read().decode('utf-8', 'replace').splitlines()
        except OSError:
            # Messages are only evidence; without them the error stands.
            pass
        lines = [line for line in map(printable, lines) if line.strip()]
        text = ' | '.join(lines[-_EVIDENCE_LINES:])
        return text[-_EVIDENCE_LIMIT:] or 'no message from libguestfs'

    def close(self) -> None:
        """Shut the appliance down, flushing the drives, or kill it.

        A second call does nothing.

        :raises xenimport.exceptions.ApplianceError: if the drives could
            not be flushed: what was written may be lost
        """
        if self._connection is None:
            return
        try:
            self._ask({'do': 'close'}, 'close', self.call_limit)
        except exceptions.GuestError as error:
            raise exceptions.ApplianceError(
                'appliance.close-failed',
                'The appliance could not write everything to the drives',
                where=', '.join(drive.path for drive in self.drives),
                expected='a clean end',
                found=error.found,
                fix='look for a full or failing disk under the work '
                'directory, and run the command again',
            ) from error
        finally:
            self._kill()

    def _kill(self) -> None:
        """End the whole process group and remove the session's files."""
        worker, self._worker = self._worker, None
        connection, self._connection = self._connection, None
        log, self._log = self._log, None
        try:
            if worker is not None:
                left = processes.end_group(worker, _KILL_LIMIT)
                if left:
                    LOG.warning('processes %s do not end', left)
        finally:
            if connection is not None:
                connection.close()
            if log is not None:
                log.close()
            if self._directory:
                shutil.rmtree(self._directory, ignore_errors=True)
                self._directory = ''

    def __enter__(self) -> Appliance:
        self.start()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if exc is None:
            self.close()
        elif not isinstance(exc, Exception):
            # Ctrl-C: nobody will use what a flush would save.
            self._kill()
        else:
            try:
                self.close()
            except exceptions.ApplianceError as error:
                # The first error is the one to tell.
                LOG.debug('closing the appliance: %s', error)


def _refused(
    kind: str, name: str, subject: str | None, text: str
) -> exceptions.GuestError:
    """libguestfs said no, or its answer cannot be carried over."""
    if kind == 'unicode':
        return exceptions.GuestError(
            'guest.not-utf8',
            f'libguestfs cannot do "{name}" with a name or value that is '
            'not UTF-8',
            where=subject,
            found=text,
            fix='rename the file, or correct the line, inside the guest',
        )
    if kind == 'size':
        return exceptions.GuestError(
            'guest.answer-too-large',
            f'The answer of "{name}" is larger than the limit',
            where=subject,
            expected=f'at most {frames.PAYLOAD_LIMIT >> 20} MiB of data',
            found=text,
            fix='look at that file in the guest; none that a system needs '
            'is so large',
        )
    return exceptions.GuestError(
        'guest.libguestfs-failed',
        f'libguestfs cannot do "{name}"',
        where=subject,
        expected='success',
        found=text,
        fix="check the guest's file systems and export it again",
    )


def printable(text: str) -> str:
    """Text from a guest without control characters, on one line."""
    return ''.join(
        character if character.isprintable() else ' ' for character in text
    )[:_EVIDENCE_LIMIT]
