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

"""Boots a RAW disk under QEMU and watches how far it comes.

The disk is never written to: the guest gets a throw-away overlay. Emulation
is always TCG, so that a result does not depend on the machine's KVM.

``python -m xenimport.tests.functional.qemu RAW --bus virtio`` boots a disk
until its login prompt and says what it saw.
"""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Sequence
import dataclasses
import pathlib
import re
import subprocess
import sys
import tempfile
import time
import typing

from qemu import qmp

#: A getty's prompt at the start of a line of the serial console.
LOGIN_PROMPT = r'(?m)^\S+ login: '

_DISKS = {
    'virtio': ['-device', 'virtio-blk-pci,drive=disk0'],
    'scsi': [
        '-device',
        'virtio-scsi-pci,id=scsi0',
        '-device',
        'scsi-hd,bus=scsi0.0,drive=disk0',
    ],
    'ide': ['-device', 'ide-hd,drive=disk0'],
}

#: How often the serial line and the block counters are looked at.
_INTERVAL = 0.5


@dataclasses.dataclass(frozen=True)
class Boot:
    """How a boot went.

    :ivar outcome: ``reached`` (the text came), ``hung`` (neither the
        serial line nor the disk moved any more), ``timed-out`` or
        ``exited`` (QEMU ended by itself)
    :ivar seconds: from QEMU's start to the outcome
    :ivar serial: all that the serial line said
    :ivar firmware: what SeaBIOS said it boots
    :ivar reads: read requests that the disk answered
    :ivar writes: write requests that the disk answered
    """

    outcome: str
    seconds: float
    serial: str
    firmware: str
    reads: int
    writes: int

    @property
    def reached(self) -> bool:
        """Whether the awaited text came."""
        return self.outcome == 'reached'

    def __str__(self) -> str:
        last = [line for line in self.serial.splitlines() if line.strip()]
        return (
            f'{self.outcome} after {self.seconds:.0f} s, '
            f'{self.reads} reads, {self.writes} writes, firmware: '
            f'{self.firmware}, last serial line: '
            f'{last[-1].strip() if last else "(nothing)"}'
        )


def boot(
    raw: str | pathlib.Path,
    *,
    bus: str = 'virtio',
    until: str = LOGIN_PROMPT,
    timeout: float = 300.0,
    hang: float = 40.0,
    memory: int = 1024,
) -> Boot:
    """Boot a RAW disk.

    :param bus: ``virtio``, ``scsi`` (virtio-scsi) or ``ide``
    :param until: regular expression to be found on the serial line
    :param timeout: seconds after which waiting ends
    :param hang: seconds without any sign of life that count as hung
    :param memory: the guest's, in MiB
    """
    with tempfile.TemporaryDirectory(prefix='xenimport-boot-') as name:
        scratch = pathlib.Path(name)
        overlay = scratch / 'overlay.qcow2'
        subprocess.run(
            [
                'qemu-img', 'create', '-q', '-f', 'qcow2', '-F', 'raw',
                '-b', str(pathlib.Path(raw).absolute()), str(overlay),
            ],
            check=True,
        )  # fmt: skip
        command = _command(scratch, overlay, bus, memory)
        with open(scratch / 'qemu.log', 'wb') as log:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        try:
            watch = _Watch(process, scratch, until, timeout, hang)
            return asyncio.run(watch.run())
        finally:
            process.kill()
            process.wait()


def _command(
    scratch: pathlib.Path, overlay: pathlib.Path, bus: str, memory: int
) -> list[str]:
    return [
        'qemu-system-x86_64',
        '-nodefaults',
        '-no-user-config',
        '-machine', 'pc,accel=tcg',
        '-cpu', 'max',
        '-smp', '2',
        '-m', str(memory),
        '-display', 'none',
        '-vga', 'std',
        # SeaBIOS tells this port what it does; the serial line stays the
        # guest's own.
        '-chardev', f'file,id=firmware,path={scratch / "firmware"}',
        '-device', 'isa-debugcon,iobase=0x402,chardev=firmware',
        '-no-reboot',
        '-serial', f'file:{scratch / "serial"}',
        '-qmp', f'unix:{scratch / "qmp"},server=on,wait=off',
        '-drive', f'if=none,id=disk0,format=qcow2,file={overlay},'
        'file.locking=off,cache=unsafe,discard=unmap',
        *_DISKS[bus],
        '-netdev', 'user,id=net0,restrict=on',
        '-device', 'virtio-net-pci,netdev=net0,mac=00:16:3e:5a:4d:01',
    ]  # fmt: skip


class _Watch:
    """Looks at a running QEMU until the outcome is clear."""

    def __init__(
        self,
        process: subprocess.Popen[bytes],
        scratch: pathlib.Path,
        until: str,
        timeout: float,
        hang: float,
    ) -> None:
        self._process = process
        self._scratch = scratch
        self._until = re.compile(until)
        self._timeout = timeout
        self._hang = hang
        self._started = time.monotonic()
        self._counters = (0, 0)

    async def run(self) -> Boot:
        """Wait for the outcome."""
        monitor = qmp.QMPClient('boot')
        await self._connect(monitor)
        try:
            return await self._look(monitor)
        finally:
            # QEMU may be gone already, which disconnect() would raise.
            try:
                await monitor.disconnect()
            except (qmp.QMPError, EOFError, OSError):
                pass

    async def _connect(self, monitor: qmp.QMPClient) -> None:
        while True:
            try:
                await monitor.connect(str(self._scratch / 'qmp'))
                return
            except qmp.ConnectError:
                if self._process.poll() is not None or self._age() > 30:
                    log = (self._scratch / 'qemu.log').read_text()
                    raise RuntimeError(f'QEMU did not start: {log}') from None
                await asyncio.sleep(0.1)

    async def _look(self, monitor: qmp.QMPClient) -> Boot:
        moved = self._age()
        seen: tuple[typing.Any, ...] = ()
        while True:
            serial = self._serial()
            if self._until.search(serial):
                await self._count(monitor)
                return self._outcome('reached', serial)
            if not await self._count(monitor):
                return self._outcome('exited', serial)
            if (len(serial), self._counters) != seen:
                seen = (len(serial), self._counters)
                moved = self._age()
            if self._age() - moved > self._hang:
                return self._outcome('hung', serial)
            if self._age() > self._timeout:
                return self._outcome('timed-out', serial)
            await asyncio.sleep(_INTERVAL)

    async def _count(self, monitor: qmp.QMPClient) -> bool:
        """Read the disk's counters; False once QEMU has ended."""
        try:
            answer: typing.Any = await monitor.execute('query-blockstats')
        except (qmp.QMPError, EOFError, OSError):
            return False
        for device in answer:
            if device.get('device') == 'disk0':
                stats = device['stats']
                self._counters = (
                    stats['rd_operations'],
                    stats['wr_operations'],
                )
        return True

    def _serial(self) -> str:
        return self._log('serial')

    def _firmware(self) -> str:
        lines = self._log('firmware').splitlines()
        booting = [line for line in lines if line.startswith('Booting')]
        return ', '.join(booting) or '(nothing)'

    def _log(self, name: str) -> str:
        try:
            data = (self._scratch / name).read_bytes()
        except FileNotFoundError:
            return ''
        text = data.decode('utf-8', 'replace').replace('\r', '')
        # Terminal control of SeaBIOS, GRUB and systemd.
        return re.sub(r'\x1b(\[[0-9;?]*[A-Za-z]|[c()][0B]?)', '', text)

    def _age(self) -> float:
        return time.monotonic() - self._started

    def _outcome(self, outcome: str, serial: str) -> Boot:
        reads, writes = self._counters
        return Boot(
            outcome, self._age(), serial, self._firmware(), reads, writes
        )


def main(arguments: Sequence[str] | None = None) -> int:
    """Boot a RAW disk until its login prompt; 0 if it came."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument('raw')
    parser.add_argument('--bus', choices=sorted(_DISKS), default='virtio')
    parser.add_argument('--until', default=LOGIN_PROMPT)
    parser.add_argument('--timeout', type=float, default=300.0)
    parser.add_argument('--memory', type=int, default=1024, help='MiB')
    parser.add_argument(
        '--tail', type=int, default=0, help='serial lines to print'
    )
    options = parser.parse_args(arguments)
    result = boot(
        options.raw,
        bus=options.bus,
        until=options.until,
        timeout=options.timeout,
        memory=options.memory,
    )
    lines = [line for line in result.serial.splitlines() if line.strip()]
    for line in lines[len(lines) - options.tail :]:
        print(f'  | {line}')
    print(f'{options.bus}: {result}')
    return 0 if result.reached else 1


if __name__ == '__main__':
    sys.exit(main())
