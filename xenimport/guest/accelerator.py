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

"""Which accelerator truly runs a kernel: KVM or TCG.

Where KVM is present but broken, /dev/kvm opens, virtual machines are made
and QEMU says "running", yet no kernel starts and libguestfs waits for
minutes without an error. Only a kernel that prints its first line proves
KVM; under TCG, ten times slower, that takes less than three seconds.
"""

from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Sequence
import dataclasses
import json
import os
import pathlib
import select
import subprocess
import tempfile
import time

from oslo_log import log as logging

from xenimport.guest import inspection
from xenimport.guest import processes

LOG = logging.getLogger(__name__)

QEMU = 'qemu-system-x86_64'
#: Seconds in which a kernel must have printed its first line.
_BOOT_LIMIT = 5.0
_VERSION_LIMIT = 10
_PROOF = b'Linux version'
#: Bytes of console output that are looked at.
_OUTPUT_LIMIT = 1 << 20
_CACHE_LIMIT = 64 << 10
_DEVICE = '/dev/kvm'


@dataclasses.dataclass(frozen=True)
class Result:
    """What was found.

    :ivar accelerator: ``kvm`` or ``tcg``
    :ivar reason: why
    :ivar pretends: KVM is there and does not run a kernel
    :ivar remembered: found earlier, since this machine was started
    """

    accelerator: str
    reason: str
    pretends: bool = False
    remembered: bool = False


def detect() -> str:
    """``kvm`` where a kernel really starts on it, else ``tcg``."""
    return probe().accelerator


def probe(*, fresh: bool = False) -> Result:
    """Find out, or remember; takes about five seconds at most.

    :param fresh: do not believe what is remembered
    """
    settings = os.environ.get('LIBGUESTFS_BACKEND_SETTINGS', '')
    if 'force_tcg' in settings.split(':'):
        return Result('tcg', 'LIBGUESTFS_BACKEND_SETTINGS has force_tcg')
    if not os.path.exists(_DEVICE):
        return Result('tcg', f'there is no {_DEVICE}')
    if not os.access(_DEVICE, os.R_OK | os.W_OK):
        return Result('tcg', f'no permission to use {_DEVICE}')
    key = _key()
    remembered = None if fresh else _recall(key)
    if remembered is not None:
        return remembered
    kernel = readable_kernel()
    if kernel is None:
        # Not remembered: it changes as soon as somebody makes one
        # readable.
        return Result('tcg', 'no readable kernel to try KVM with')
    result = _try_kvm(kernel)
    _remember(key, result)
    return result


def kernels() -> Iterator[pathlib.Path]:
    """The kernels of this machine, the newest version first."""
    found = pathlib.Path('/boot').glob('vmlinuz*')
    yield from sorted(
        found, key=lambda path: inspection.natural(path.name), reverse=True
    )
    # The one that supermin has put into libguestfs' cached appliance.
    cache = (
        os.environ.get('LIBGUESTFS_CACHEDIR')
        or os.environ.get('TMPDIR')
        or '/var/tmp'
    )
    yield pathlib.Path(
        cache, f'.guestfs-{os.geteuid()}', 'appliance.d', 'kernel'
    )


def readable_kernel() -> str | None:
    """The newest kernel that this user may read."""
    for path in kernels():
        if path.is_file() and os.access(path, os.R_OK):
            return str(path)
    return None


def _command(kernel: str, accelerator: str) -> list[str]:
    return [
        QEMU,
        *('-nodefaults', '-no-user-config', '-display', 'none'),
        *('-no-reboot', '-accel', accelerator, '-m', '256'),
        *('-serial', 'stdio', '-kernel', kernel),
        *('-append', 'earlyprintk=ttyS0 console=ttyS0 panic=-1'),
    ]


def _try_kvm(kernel: str) -> Result:
    began = time.monotonic()
    started, output = boots(_command(kernel, 'kvm'))
    seconds = time.monotonic() - began
    if started:
        return Result('kvm', f'a kernel started on KVM in {seconds:.1f} s')
    lines = output[-200:].decode('ascii', 'replace').split('\n')
    found = ' '.join(line.strip() for line in lines[-2:]).strip()
    return Result(
        'tcg',
        f'no kernel started on KVM within {seconds:.1f} s ({kernel}'
        f'{": " + found if found else ", no output"})',
        pretends=True,
    )


def boots(
    command: Sequence[str], limit: float = _BOOT_LIMIT
) -> tuple[bool, bytes]:
    """Whether a kernel prints its first line, and all that was printed.

    :param command: QEMU's, with the kernel's console on stdout
    :param limit: seconds to wait for it
    """
    try:
        child = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    except OSError as error:
        return False, f'{command[0]}: {error.strerror}'.encode()
    try:
        return _wait_for_proof(child, time.monotonic() + limit)
    finally:
        processes.end_group(child, limit)
        if child.stdout is not None:
            child.stdout.close()


def _wait_for_proof(
    child: subprocess.Popen[bytes], deadline: float
) -> tuple[bool, bytes]:
    output = b''
    assert child.stdout is not None  # noqa: S101 -- a pipe was asked for
    descriptor = child.stdout.fileno()
    while len(output) < _OUTPUT_LIMIT:
        left = deadline - time.monotonic()
        if left <= 0 or not select.select([descriptor], [], [], left)[0]:
            break
        chunk = os.read(descriptor, 4096)
        if not chunk:
            break
        output += chunk
        if _PROOF in output:
            return True, output
    return False, output


def _key() -> str:
    """What the answer depends on: kernel, its start, and QEMU."""
    try:
        boot = pathlib.Path('/proc/sys/kernel/random/boot_id').read_text()
    except OSError:
        boot = ''
    try:
        qemu = subprocess.run(
            [QEMU, '--version'],
            capture_output=True,
            stdin=subprocess.DEVNULL,
            timeout=_VERSION_LIMIT,
            check=False,
        ).stdout
    except (OSError, subprocess.TimeoutExpired):
        qemu = b''
    first = qemu.decode('utf-8', 'replace').partition('\n')[0]
    return ' '.join((os.uname().release, boot.strip(), first[:200]))


def _cache_file() -> pathlib.Path:
    base = os.environ.get('XDG_CACHE_HOME', '')
    directory = (
        pathlib.Path(base)
        if base.startswith('/')
        else pathlib.Path.home() / '.cache'
    )
    return directory / 'xenimport' / 'accelerator.json'


def _recall(key: str) -> Result | None:
    try:
        with open(_cache_file(), 'rb') as stream:
            data = json.loads(stream.read(_CACHE_LIMIT))
        if data['key'] != key or data['accelerator'] not in ('kvm', 'tcg'):
            return None
        return Result(
            str(data['accelerator']),
            str(data['reason']),
            pretends=bool(data['pretends']),
            remembered=True,
        )
    except (OSError, ValueError, KeyError, TypeError, RuntimeError):
        # Nothing remembered, or nothing of use: find out again.
        return None


def _remember(key: str, result: Result) -> None:
    try:
        file = _cache_file()
        file.parent.mkdir(parents=True, exist_ok=True)
        data = {
            'key': key,
            'accelerator': result.accelerator,
            'reason': result.reason,
            'pretends': result.pretends,
        }
        descriptor, temporary = tempfile.mkstemp(dir=file.parent)
        with open(descriptor, 'w', encoding='utf-8') as stream:
            json.dump(data, stream)
        os.replace(temporary, file)
    except (OSError, RuntimeError) as error:
        # Then it takes five seconds the next time as well.
        LOG.debug('the accelerator cannot be remembered: %s', error)
