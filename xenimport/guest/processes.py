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

"""Ending a process group for certain."""

from __future__ import annotations

import os
import pathlib
import re
import shutil
import signal
import subprocess
import time

#: libguestfs keeps its sockets here, whatever TMPDIR says: their paths
#: must be short. (``session.worker_environment`` takes XDG_RUNTIME_DIR
#: away, which would come before it.)
_SOCKET_DIRECTORY = re.compile(rb'(/tmp/libguestfs[A-Za-z0-9]{6})/')
_COMMAND_LIMIT = 128 << 10


def members(group: int) -> list[int]:
    """The living processes of a process group, zombies left out.

    (A container's first process may reap no orphans, and a zombie holds
    nothing but its number.)
    """
    found = []
    for entry in pathlib.Path('/proc').iterdir():
        if not entry.name.isdecimal():
            continue
        try:
            stat = (entry / 'stat').read_bytes()
        except OSError:
            continue
        # The name before it may hold blanks and parentheses.
        state, _, group_field = stat.rpartition(b')')[2].split()[:3]
        if int(group_field) == group and state not in (b'Z', b'X'):
            found.append(int(entry.name))
    return found


def socket_directories(group: int) -> set[str]:
    """The directories of libguestfs' sockets, as QEMU's command names."""
    found = set()
    for process in members(group):
        try:
            with open(f'/proc/{process}/cmdline', 'rb') as stream:
                command = stream.read(_COMMAND_LIMIT)
        except OSError:
            continue
        for match in _SOCKET_DIRECTORY.finditer(command):
            found.add(match[1].decode('ascii'))
    return found


def remove_own(directory: str) -> None:
    """Remove a directory in a place where anybody may make one."""
    try:
        status = os.lstat(directory)
    except OSError:
        return
    if status.st_uid == os.geteuid() and not os.path.islink(directory):
        shutil.rmtree(directory, ignore_errors=True)


def exit_code(leader: subprocess.Popen[bytes], limit: float) -> int | None:
    """How a process ended, negative for a signal; it is not reaped.

    :param limit: seconds to wait for its end
    :returns: None if it still runs then
    """
    deadline = time.monotonic() + limit
    options = os.WEXITED | os.WNOWAIT | os.WNOHANG
    while True:
        try:
            ended = os.waitid(os.P_PID, leader.pid, options)
        except ChildProcessError:
            return leader.returncode
        if ended is not None:
            status = ended.si_status
            return status if ended.si_code == os.CLD_EXITED else -status
        if time.monotonic() >= deadline:
            return None
        time.sleep(0.01)


def end_group(leader: subprocess.Popen[bytes], limit: float) -> list[int]:
    """Kill a process group by its leader, which is our child.

    The leader is not reaped before its group is killed, so that its
    number cannot have passed to another process.

    :param limit: seconds to wait for the processes to be gone
    :returns: those that are still there
    """
    group = leader.pid
    directories = socket_directories(group)
    try:
        os.killpg(group, signal.SIGKILL)
    except ProcessLookupError:
        # Gone already, its leader reaped by an earlier poll().
        pass
    deadline = time.monotonic() + limit
    try:
        leader.wait(limit)
    except subprocess.TimeoutExpired:
        # It hangs in the kernel; told to the caller below.
        pass
    left = members(group)
    while left and time.monotonic() < deadline:
        time.sleep(0.02)
        left = members(group)
    for directory in directories:
        remove_own(directory)
    return left
