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

"""What the benchmarks share: ways to do a thing, measured in turn.

All ways run in turn, several rounds, on a warm cache; each is judged by
its fastest round, since other work on the machine only ever adds time.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Sequence
import contextlib
import dataclasses
import filecmp
import os
import pathlib
import random
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
GIB = 1024 * 1024 * 1024
BLOCK = 2 * 1024 * 1024
#: Of the data, how much is zeros that the guest has written.
WRITTEN_ZEROS = 0.05


@dataclasses.dataclass
class Way:
    """One way to do it, and how it went.

    :ivar commands: run one after the other
    :ivar stdin: a file that is the first command's standard input
    :ivar output: the file that it makes, None if it makes none
    :ivar seconds: wall time of each round
    :ivar processor: seconds of processor time of each round
    :ivar peak: the largest resident set of any command, bytes; no less
        than that of the benchmark, which the commands start as
    """

    name: str
    commands: list[list[str]]
    output: pathlib.Path | None = None
    stdin: pathlib.Path | None = None
    seconds: list[float] = dataclasses.field(default_factory=list)
    processor: list[float] = dataclasses.field(default_factory=list)
    peak: int = 0

    def run(self) -> None:
        """Run one round; leaves the output file to the caller."""
        started = time.monotonic()
        processor = 0.0
        for number, command in enumerate(self.commands):
            usage = self._run(command, None if number else self.stdin)
            self.peak = max(self.peak, usage.ru_maxrss * 1024)
            processor += usage.ru_utime + usage.ru_stime
        self.seconds.append(time.monotonic() - started)
        self.processor.append(processor)

    def _run(
        self, command: list[str], stdin: pathlib.Path | None
    ) -> resource.struct_rusage:
        with open(stdin or os.devnull, 'rb') as stream:
            process = subprocess.Popen(
                command,
                stdin=stream,
                stdout=subprocess.DEVNULL,
                env=os.environ | {'PYTHONPATH': os.fspath(ROOT)},
            )
            _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            raise SystemExit(f'{command[0]} failed: {self.name}')
        return usage

    @property
    def fastest(self) -> float:
        """Seconds of the fastest round."""
        return min(self.seconds)


def measure(
    ways: Sequence[Way],
    rounds: int,
    reference: pathlib.Path | None = None,
    clean: Callable[[], None] = lambda: None,
) -> None:
    """Run all ways in turn; the first results are compared by content.

    :param reference: what each way's output has to be
    :param clean: removes what a way leaves beside its output
    """
    for number in range(rounds):
        for way in ways:
            way.run()
            output = way.output
            if output is not None:
                same = reference is None or filecmp.cmp(
                    output, reference, shallow=False
                )
                if number == 0 and not same:
                    raise SystemExit(f'{way.name}: the result differs')
                output.unlink()
            clean()


def table(ways: Sequence[Way]) -> None:
    """Print what was measured; ratios are to the first way."""
    print(
        f'{"way":<44}{"min s":>8}{"median s":>10}{"ratio":>8}'
        f'{"CPU s":>8}{"RSS MB":>8}'
    )
    for way in ways:
        print(
            f'{way.name:<44}{way.fastest:>8.2f}'
            f'{statistics.median(way.seconds):>10.2f}'
            f'{way.fastest / ways[0].fastest:>8.2f}'
            f'{min(way.processor):>8.2f}{way.peak / 1e6:>8.0f}'
        )


def bars(*each: tuple[str, bool]) -> int:
    """Print the bars; 0 if all are met, else 1: an exit code."""
    for text, met in each:
        print(f'{"met   " if met else "MISSED"}  {text}')
    return 0 if all(met for _, met in each) else 1


def python(program: str, *arguments: object) -> list[str]:
    """The command that runs a program as any user of the package would."""
    return [sys.executable, '-c', program, *map(str, arguments)]


def need(*programs: str) -> None:
    """End with a clear word where a program is missing."""
    for program in programs:
        if shutil.which(program) is None:
            raise SystemExit(f'{program} is not installed: see bindep.txt')


@contextlib.contextmanager
def arguments(
    description: str | None, rounds: int = 5, size: int = 4
) -> Iterator[tuple[argparse.Namespace, pathlib.Path]]:
    """The arguments that all take, and a directory for the output.

    What is built is kept in ``--directory`` for the next run.
    """
    parser = argparse.ArgumentParser(
        description=(description or '').split('\n')[0]
    )
    parser.add_argument('--directory', type=pathlib.Path)
    parser.add_argument('--rounds', type=int, default=rounds)
    parser.add_argument('--size-gib', type=int, default=size)
    parsed = parser.parse_args()
    if parsed.directory:
        parsed.directory.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=parsed.directory) as name:
        work = pathlib.Path(name)
        parsed.directory = parsed.directory or work
        yield parsed, work


def built(
    path: pathlib.Path, build: Callable[[pathlib.Path], None]
) -> pathlib.Path:
    """Build a file, unless it is there from an earlier run."""
    if not path.exists():
        print(f'building {path}', file=sys.stderr)
        unfinished = path.with_name(f'{path.name}.part')
        build(unfinished)
        unfinished.rename(path)
    return path


def chosen_blocks(count: int, allocated: int) -> list[int]:
    """Which blocks hold data, in the order in which blktap adds them.

    That is as the guest writes them: not in order.
    """
    generator = random.Random(1)
    blocks = generator.sample(range(count), allocated)
    generator.shuffle(blocks)
    return blocks


def noise(_offset: int, length: int) -> bytes:
    """A block's data: some zeros that were written, then noise."""
    zeros = int(BLOCK * WRITTEN_ZEROS) // 65536 * 65536
    return bytes(zeros) + os.urandom(length - zeros)


def write_raw(path: pathlib.Path, size: int, allocated: int) -> None:
    """A sparse RAW disk with so many blocks of data."""
    with path.open('wb') as stream:
        stream.truncate(size)
        for block in chosen_blocks(size // BLOCK, allocated):
            stream.seek(block * BLOCK)
            stream.write(noise(0, BLOCK))
