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

"""Ctrl-C and its like, let in only where a step can be undone."""

from __future__ import annotations

from collections.abc import Iterator
import contextlib
import functools
import signal
import sys
import threading
import types
import typing

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Gate:
    """Holds signals back, except inside :meth:`open`.

    A KeyboardInterrupt in the middle of the engine's own bookkeeping
    would leave it without undoing anything. So a signal that comes while
    the gate is shut waits until a step opens it.
    """

    def __init__(self) -> None:
        self._open = False
        self._pending = False
        self._undoing = False

    def _handle(self, number: int, frame: types.FrameType | None) -> None:
        if self._undoing:
            # What has been made is being removed already.
            return
        self._pending = True
        if self._open:
            self._open = False
            raise KeyboardInterrupt

    @contextlib.contextmanager
    def installed(self) -> Iterator[Gate]:
        """Take the signals over; without effect beside the main thread."""
        if threading.current_thread() is not threading.main_thread():
            yield self
            return
        before: dict[signal.Signals, typing.Any] = {
            number: signal.signal(number, self._handle)
            for number in _SIGNALS
            # nohup has the hang-up ignored, and means it.
            if signal.getsignal(number) is not signal.SIG_IGN
        }
        hook = sys.unraisablehook
        sys.unraisablehook = functools.partial(_unraisable, hook)
        try:
            yield self
        finally:
            sys.unraisablehook = hook
            for number, handler in before.items():
                signal.signal(number, handler)

    @contextlib.contextmanager
    def open(self) -> Iterator[None]:
        """Let a signal in.

        :raises KeyboardInterrupt: when one came or had come before
        """
        self._open = True
        try:
            self.check()
            yield
            # Python ignores what a handler raises inside of a finalizer
            # or a fork's hooks; so it is asked once more.
            self.check()
        finally:
            self._open = False

    def check(self) -> None:
        """Raise what came and was lost; long loops call it.

        :raises KeyboardInterrupt: when a signal has come
        """
        if self._pending and not self._undoing:
            self._open = False
            raise KeyboardInterrupt

    def undoing(self) -> None:
        """From now on signals change nothing: the end is near anyway."""
        self._undoing = True


def _unraisable(
    hook: typing.Callable[[typing.Any], typing.Any], what: typing.Any
) -> None:
    """Say nothing of an interrupt that is raised again anyway."""
    if what.exc_type is not KeyboardInterrupt:
        hook(what)
