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

"""Whether this machine is fit for the work, and what to do if it is not."""

from __future__ import annotations

from collections.abc import Iterator
import dataclasses
import functools
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import typing

from xenimport import exceptions
from xenimport.guest import accelerator
from xenimport.guest import session
from xenimport import opts

if typing.TYPE_CHECKING:
    from oslo_config import cfg

OK = 'ok'
WARNING = 'warning'
FAILED = 'failed'

_GIB = 1 << 30
#: GiB under which the work directory is told to be small. A guest of the
#: usual 20 GiB, half full, fits in ten.
_SPACE = 10
#: Seconds that a tool may take to tell its version.
_TOOL_LIMIT = 20
#: Bytes of the scratch disk that the appliance is started with.
_SCRATCH = 1 << 20
_GRUB_MODULES = '/usr/lib/grub/i386-pc'


@dataclasses.dataclass(frozen=True)
class Result:
    """One thing that was looked at.

    :ivar id: stable, for example ``machine.kvm``
    :ivar status: ``ok``, ``warning`` (slower, or some guests cannot be
        repaired) or ``failed`` (nothing can be repaired)
    :ivar evidence: what was seen
    :ivar remedy: what to do, None where nothing is to be done
    """

    id: str
    title: str
    status: str
    evidence: str
    remedy: str | None = None


@dataclasses.dataclass(frozen=True)
class _Tool:
    """A program that is needed; ``why`` says what for."""

    id: str
    command: str
    why: str
    package: str
    missing: str = FAILED


_TOOLS = (
    _Tool(
        'machine.qemu',
        accelerator.QEMU,
        'runs the appliance',
        'qemu-system-x86',
    ),
    _Tool(
        'machine.qemu-img',
        'qemu-img',
        'makes the throw-away overlays of inspect and --dry-run',
        'qemu-utils',
    ),
    _Tool('machine.sfdisk', 'sfdisk', 'verifies partition tables', 'fdisk'),
    _Tool('machine.sgdisk', 'sgdisk', 'verifies GPTs', 'gdisk', WARNING),
    _Tool(
        'machine.qemu-nbd',
        'qemu-nbd',
        'reads qcow2, VHDX and VDI disks',
        'qemu-utils',
        WARNING,
    ),
)


def checks(conf: cfg.ConfigOpts, work_dir: str | None = None) -> list[Result]:
    """Look at everything the work needs; takes as long as the appliance.

    :param work_dir: as the user gave it, None for the configured one
    """
    directory = os.path.abspath(
        work_dir
        or conf[opts.GROUP]['work_dir']
        or os.environ.get('TMPDIR')
        or '/var/tmp'
    )
    binding = libguestfs_binding()
    results = [binding, kernel_readable(), kvm(conf), space(directory)]
    results += [tool(item) for item in _TOOLS]
    results += [libnbd_binding(), hivex_binding(), nbdkit(), grub()]
    results.insert(1, appliance(conf, directory, binding))
    return results


def _run(command: list[str]) -> tuple[bool, str]:
    """Whether a short command succeeds, and its last line of output."""
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=_TOOL_LIMIT,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return False, f'{command[0]} did not end in {_TOOL_LIMIT} s'
    except OSError as error:
        return False, f'{command[0]}: {error.strerror}'
    lines = done.stdout.decode('utf-8', 'replace').strip().splitlines()
    return done.returncode == 0, session.printable(lines[-1] if lines else '')


def libguestfs_binding() -> Result:
    """Python's binding, tried in another process as the worker does."""
    done, output = _run(
        [
            sys.executable,
            '-P',
            '-c',
            'import guestfs; print(guestfs.__file__)',
        ]
    )
    return Result(
        'machine.libguestfs-binding',
        'Python can import libguestfs',
        OK if done else FAILED,
        f'{sys.executable}: {output}',
        None
        if done
        else 'apt install python3-guestfs, and make the virtual environment '
        "from the distribution's python3 with --system-site-packages",
    )


def libnbd_binding() -> Result:
    """Python's binding of libnbd, through which qemu-nbd is asked."""
    done, output = _run(
        [sys.executable, '-P', '-c', 'import nbd; print(nbd.__file__)']
    )
    return Result(
        'machine.libnbd-binding',
        'Python can import libnbd, for qcow2, VHDX and VDI disks',
        OK if done else WARNING,
        f'{sys.executable}: {output}',
        None
        if done
        else 'apt install python3-libnbd; needed for qcow2, VHDX and VDI '
        'disks alone',
    )


def hivex_binding() -> Result:
    """Python's binding of hivex, which writes a Windows guest's registry."""
    done, output = _run(
        [sys.executable, '-P', '-c', 'import hivex; print(hivex.__file__)']
    )
    return Result(
        'machine.hivex-binding',
        'Python can import hivex, for Windows guests',
        OK if done else WARNING,
        f'{sys.executable}: {output}',
        None
        if done
        else 'apt install python3-hivex; needed for Windows guests alone',
    )


def appliance(conf: cfg.ConfigOpts, directory: str, binding: Result) -> Result:
    """Start the appliance as a run does."""
    result = functools.partial(
        Result, 'machine.appliance', 'The libguestfs appliance starts'
    )
    if binding.status == FAILED:
        return result(FAILED, 'not tried: no binding', binding.remedy)
    wanted = conf[opts.GROUP]['accelerator']
    used = accelerator.detect() if wanted == 'auto' else wanted
    try:
        with tempfile.TemporaryDirectory(
            prefix='xenimport-preflight-', dir=directory
        ) as scratch:
            disk = os.path.join(scratch, 'disk.raw')
            with open(disk, 'wb') as stream:
                stream.truncate(_SCRATCH)
            with session.Appliance(
                [session.Drive(disk, snapshot=True)],
                scratch,
                accelerator=used,
                start_limit=conf[opts.GROUP]['appliance_start_limit'],
                call_limit=conf[opts.GROUP]['appliance_call_limit'],
            ) as started:
                evidence = (
                    f'libguestfs {started.version} started on {used} in '
                    f'{started.seconds:.1f} s'
                )
    except exceptions.ApplianceError as error:
        return result(FAILED, error.found or error.message, error.fix)
    except OSError as error:
        return result(
            FAILED,
            f'{error.filename or directory}: {error.strerror}',
            'choose another directory with --work-dir',
        )
    return result(OK, evidence)


def kernel_readable() -> Result:
    """libguestfs builds its appliance from a kernel of this machine."""
    result = functools.partial(
        Result,
        'machine.kernel-readable',
        'A kernel for the appliance can be read',
    )
    kernel = os.environ.get('SUPERMIN_KERNEL') or accelerator.readable_kernel()
    if kernel is not None and os.access(kernel, os.R_OK):
        return result(OK, kernel)
    unreadable = [str(path) for path in _existing(accelerator.kernels())]
    if unreadable:
        # Ubuntu installs them so.
        return result(
            FAILED,
            f'{unreadable[0]} cannot be read by user id {os.geteuid()}',
            'sudo dpkg-statoverride --update --add root root 0644 '
            f'{unreadable[0]} (again after each new kernel; elsewhere: sudo '
            f'chmod 0644 {unreadable[0]})',
        )
    return result(
        FAILED,
        'no /boot/vmlinuz*',
        'apt install linux-image-amd64 (Debian) or linux-image-generic '
        '(Ubuntu)',
    )


def _existing(paths: Iterator[pathlib.Path]) -> Iterator[pathlib.Path]:
    for path in paths:
        try:
            if path.exists():
                yield path
        except OSError:
            # A directory above it that may not be entered.
            continue


def kvm(conf: cfg.ConfigOpts) -> Result:
    """Whether KVM runs a kernel, or is missing, or only pretends."""
    found = accelerator.probe()
    evidence = found.reason
    if found.remembered:
        evidence += ' (remembered)'
    result = functools.partial(
        Result, 'machine.kvm', 'KVM runs a kernel', evidence=evidence
    )
    if found.accelerator == 'kvm':
        return result(status=OK)
    if found.pretends:
        remedy = (
            'nothing has to be done: TCG is used instead, several times '
            'slower; for KVM, enable nested virtualisation in the '
            'hypervisor below this machine'
        )
    else:
        remedy = (
            'nothing has to be done: TCG is used instead, several times '
            'slower; for KVM, enable virtualisation in the firmware and '
            f'add yourself to the group kvm: sudo adduser {_user()} kvm'
        )
    wanted = conf[opts.GROUP]['accelerator']
    if wanted == 'kvm':
        return result(
            status=FAILED,
            remedy='set accelerator = auto in xenimport.conf, which asks '
            'for kvm',
        )
    return result(status=WARNING, remedy=remedy)


def _user() -> str:
    return os.environ.get('USER') or str(os.geteuid())


def space(directory: str) -> Result:
    """Free space where workfiles are made."""
    result = functools.partial(
        Result, 'machine.work-space', 'The work directory has room'
    )
    if not os.path.isdir(directory) or not os.access(
        directory, os.W_OK | os.X_OK
    ):
        return result(
            FAILED,
            f'{directory} is no directory that may be written to',
            'make it, or choose another with --work-dir',
        )
    free = shutil.disk_usage(directory).free
    evidence = f'{free / _GIB:.1f} GiB free in {directory}'
    if free < _SPACE * _GIB:
        return result(
            WARNING,
            evidence,
            "a run needs as much as the guest's disks have data: free some, "
            'or choose another directory with --work-dir',
        )
    return result(OK, evidence)


def tool(item: _Tool) -> Result:
    """A program that has to be there, and to run."""
    title = f'{item.command} {item.why}'
    path = shutil.which(item.command, path=_search_path())
    if path is None:
        return Result(
            item.id,
            title,
            item.missing,
            f'no {item.command} in PATH',
            f'apt install {item.package}',
        )
    done, output = _run([path, '--version'])
    return Result(
        item.id,
        title,
        OK if done else item.missing,
        path if done else f'{path} fails: {output}',
        None if done else f'apt install --reinstall {item.package}',
    )


def _search_path() -> str:
    # Debian gives a plain user no sbin, where sfdisk and sgdisk are.
    return os.pathsep.join(
        [os.environ.get('PATH', os.defpath), '/usr/sbin', '/sbin']
    )


def nbdkit() -> Result:
    """nbdkit with the plugin that serves our disk images."""
    remedy = 'apt install nbdkit nbdkit-plugin-python'
    result = functools.partial(
        Result,
        'machine.nbdkit',
        'nbdkit with its Python plugin serves disks in place',
    )
    path = shutil.which('nbdkit')
    if path is None:
        return result(FAILED, 'no nbdkit in PATH', remedy)
    done, output = _run([path, 'python', '--dump-plugin'])
    if not done:
        return result(FAILED, f'{path}: {output}', remedy)
    return result(OK, path)


def grub() -> Result:
    """What boot code for BIOS guests is made from."""
    remedy = 'apt install grub-common grub-pc-bin'
    result = functools.partial(
        Result,
        'machine.grub',
        "GRUB's parts for guests without boot code",
    )
    missing = []
    if shutil.which('grub-mkimage') is None:
        missing.append('grub-mkimage in PATH')
    if not os.path.exists(f'{_GRUB_MODULES}/kernel.img'):
        missing.append(f'{_GRUB_MODULES}/kernel.img')
    if missing:
        return result(WARNING, f'no {" and no ".join(missing)}', remedy)
    return result(OK, _GRUB_MODULES)
