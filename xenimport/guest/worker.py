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

"""The worker process: the only place where libguestfs is imported.

Run by :mod:`xenimport.guest.session` as ``python -m
xenimport.guest.worker FD``, with FD one end of a socket pair, in a session
and process group of its own. QEMU and libguestfs' recovery process stay in
that group, so that ending the group ends all of them.

A request is ``{'do': 'start' | 'call' | 'close', ...}``. Before its
answer, ``{'result': ...}`` or ``{'error': kind, ...}``, any number of
``{'message': text}`` may come: what libguestfs and QEMU have to say.
"""

from __future__ import annotations

from collections.abc import Callable
import os
import resource
import select
import signal
import socket
import sys
import threading
import typing

from xenimport import exceptions
from xenimport.guest import frames
from xenimport.guest import hive_worker
from xenimport.guest import processes

#: Bytes of address space that each process of the group may take. QEMU's
#: TCG reserves 1 GiB for translated code beside the appliance's memory.
_ADDRESS_SPACE = 8 << 30
#: Bytes of one message that are passed on.
_MESSAGE_LIMIT = 4096

Send = Callable[[typing.Any], None]


def _limit_resources() -> None:
    """Write no core dump and take no more memory than the work needs."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    if hard == resource.RLIM_INFINITY or hard > _ADDRESS_SPACE:
        resource.setrlimit(
            resource.RLIMIT_AS, (_ADDRESS_SPACE, _ADDRESS_SPACE)
        )


def _die_with_parent(connection: socket.socket) -> None:
    """End the whole group when the other end of the socket closes.

    That is when the parent has died, however it died. The kernel's own
    parent-death signal would not do: it comes when the *thread* that
    started us ends, and it spares QEMU.
    """
    poll = select.poll()
    poll.register(connection.fileno(), select.POLLRDHUP)

    def watch() -> None:
        while not poll.poll():
            pass
        for directory in processes.socket_directories(os.getpgrp()):
            processes.remove_own(directory)
        os.killpg(0, signal.SIGKILL)

    threading.Thread(target=watch, daemon=True).start()


class Worker:
    """Carries out requests, one after the other."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._handle: typing.Any = None
        self._hives = hive_worker.Hives()

    def start(self, request: dict[str, typing.Any]) -> typing.Any:
        """Start the appliance; gives libguestfs' version."""
        import guestfs

        # close_on_exit off: an orderly end goes through close().
        handle = guestfs.GuestFS(python_return_dict=True, close_on_exit=False)
        self._handle = handle
        handle.set_event_callback(
            self._message,
            guestfs.EVENT_APPLIANCE
            | guestfs.EVENT_LIBRARY
            | guestfs.EVENT_WARNING,
        )
        handle.set_verbose(bool(request['verbose']))
        handle.set_network(False)
        handle.set_pgroup(False)
        handle.set_memsize(request['memory'])
        handle.set_smp(request['vcpus'])
        for drive in request['drives']:
            self._add(drive)
        handle.launch()
        return handle.version()

    def _add(self, drive: dict[str, typing.Any]) -> None:
        # The format is always given: a guest that has written another
        # format's header to its disk must not have it obeyed.
        options: dict[str, typing.Any] = {
            'format': 'raw',
            'readonly': bool(drive['snapshot']),
        }
        if drive['protocol'] == 'nbd':
            self._handle.add_drive(
                '',
                protocol='nbd',
                server=[f'unix:{drive["path"]}'],
                **options,
            )
        else:
            self._handle.add_drive(drive['path'], **options)

    def _message(
        self, event: int, handle: int, text: typing.Any, array: object
    ) -> None:
        if isinstance(text, bytes):
            text = text.decode('utf-8', 'replace')
        try:
            self._send({'message': str(text)[:_MESSAGE_LIMIT]})
        except frames.ClosedError:
            # The parent is gone; the watching thread ends us.
            pass

    def call(self, request: dict[str, typing.Any]) -> typing.Any:
        """Call one function of libguestfs."""
        function = getattr(self._handle, request['name'])
        return function(*request['args'], **request['kwargs'])

    def close(self, request: dict[str, typing.Any]) -> None:
        """Write everything to the drives and end QEMU."""
        handle, self._handle = self._handle, None
        if handle is not None:
            try:
                handle.umount_all()
                handle.shutdown()
            finally:
                handle.close()

    def answer(self, request: dict[str, typing.Any]) -> typing.Any:
        """The answer to one request, an error as an answer too."""
        actions: dict[str, Callable[[dict[str, typing.Any]], typing.Any]] = {
            'start': self.start,
            'call': self.call,
            'hive': self._hives.answer,
            'close': self.close,
        }
        try:
            return {'result': actions[request['do']](request)}
        except exceptions.XenImportError as error:
            return {
                'error': 'own',
                'fields': [
                    error.id,
                    error.message,
                    error.where,
                    error.expected,
                    error.found,
                    error.fix,
                ],
            }
        except ImportError as error:
            return {'error': 'import', 'text': str(error)}
        except UnicodeError as error:
            return {'error': 'unicode', 'text': str(error)}
        except (AttributeError, TypeError, ValueError) as error:
            return {'error': 'usage', 'text': str(error)}
        except MemoryError:
            return {'error': 'memory', 'text': 'out of memory'}
        except Exception as error:
            return self._failure(error)

    def _failure(self, error: Exception) -> dict[str, typing.Any]:
        """libguestfs said no, or its appliance has died."""
        handle = self._handle
        died = handle is not None and not handle.is_ready()
        if died:
            # So libguestfs removes its own directories, which nobody
            # could find any more once QEMU is gone.
            self._handle = None
            handle.close()
        return {
            'error': 'died' if died else 'libguestfs',
            'text': str(error)[:_MESSAGE_LIMIT],
        }


def main() -> int:
    """Answer requests until the parent closes the session."""
    connection = socket.socket(fileno=int(sys.argv[1]))
    connection.set_inheritable(False)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _limit_resources()
    _die_with_parent(connection)
    worker = Worker(lambda value: frames.send(connection, value))
    while True:
        try:
            request = frames.receive(connection)
        except frames.ClosedError:
            return 0
        answer = worker.answer(request)
        try:
            frames.send(connection, answer)
        except frames.FrameError as error:
            frames.send(connection, {'error': 'size', 'text': str(error)})
        if request['do'] == 'close':
            return 0


if __name__ == '__main__':
    sys.exit(main())
