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

"""Progress on stderr: a bar on a terminal, lines in a log."""

from __future__ import annotations

import sys
import time
import typing

from xenimport import exceptions
from xenimport.osc import formatting
from xenimport.workflow import context

#: Seconds between two updates on a terminal, and between two log lines.
_REDRAW = 0.2
_LOG_EVERY = 30.0


class Watcher(context.Observer):
    """Shows what a run does.

    :param stream: where to, standard error by default
    """

    def __init__(self, stream: typing.TextIO | None = None) -> None:
        self._stream = stream or sys.stderr
        self._terminal = self._stream.isatty()
        self._step = ''
        self._started = 0.0
        self._shown = 0.0

    def step(self, name: str) -> None:
        self._step = name
        self._started = self._shown = time.monotonic()
        if self._terminal:
            self._draw(f'{name} ...')

    def step_done(self, name: str, seconds: float, moved: int) -> None:
        text = f'{name}: {seconds:.1f} s'
        if moved:
            rate = moved / seconds if seconds else 0
            text += f', {formatting.size(moved)} ({formatting.size(rate)}/s)'
        if self._terminal:
            self._draw('')
        self._print(text)

    def progress(self, done: int, total: int) -> None:
        now = time.monotonic()
        wait = _REDRAW if self._terminal else _LOG_EVERY
        if now - self._shown < wait:
            return
        self._shown = now
        rate = done / (now - self._started)
        left = (total - done) / rate if rate else 0
        text = (
            f'{self._step}: {formatting.size(done)} of '
            f'{formatting.size(total)}, {formatting.size(rate)}/s, '
            f'{left:.0f} s left'
        )
        if self._terminal:
            self._draw(text)
        else:
            self._print(text)

    def say(self, line: str) -> None:
        if self._terminal:
            self._draw('')
        self._print(exceptions.one_line(line))

    def _draw(self, text: str) -> None:
        # Carriage return and "erase to the end of the line".
        self._stream.write(f'\r\x1b[K{text}')
        self._stream.flush()

    def _print(self, text: str) -> None:
        self._stream.write(text + '\n')
        self._stream.flush()
