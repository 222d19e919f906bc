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

"""The engine that runs steps in order and undoes them in reverse.

TaskFlow is used here and nowhere else.
"""

from __future__ import annotations

import abc
from collections.abc import Sequence
import contextlib
import time
import typing

from oslo_log import log as logging
from taskflow import engines
from taskflow.patterns import linear_flow
from taskflow import task

from xenimport import exceptions
from xenimport import model
from xenimport.workflow import context
from xenimport.workflow import interrupts

LOG = logging.getLogger(__name__)


class _Interrupted(Exception):
    """Ctrl-C in a shape for which TaskFlow undoes the steps."""


class Step(abc.ABC):
    """One step: completes, or leaves no trace.

    :ivar name: as progress and the report show it
    """

    name: str

    @abc.abstractmethod
    def do(self, run: context.Run) -> int:
        """Do it and return the bytes moved (0 if it moves none)."""

    def undo(self, run: context.Run) -> None:  # noqa: B027 - optional
        """Take it back, whether it completed or not."""


class _Task(task.Task):
    """A step as TaskFlow wants it. Its result is what a journal needs."""

    def __init__(
        self, step: Step, run: context.Run, gate: interrupts.Gate
    ) -> None:
        super().__init__(name=step.name)
        self._step = step
        self._run = run
        self._gate = gate

    def execute(self) -> dict[str, float]:
        started = time.monotonic()
        self._run.observer.step(self._step.name)
        LOG.info('%s: started', self._step.name)
        moved = None
        with contextlib.suppress(KeyboardInterrupt):
            with self._gate.open():
                done = self._step.do(self._run)
            moved = done
        if moved is None:
            # Raised out here: TaskFlow's record of a failure takes no
            # KeyboardInterrupt, not even as another error's cause.
            raise _Interrupted(self._step.name)
        seconds = time.monotonic() - started
        self._run.steps.append(model.Step(self._step.name, seconds, moved))
        self._run.observer.step_done(self._step.name, seconds, moved)
        LOG.info('%s: done in %.1f s', self._step.name, seconds)
        return {'seconds': seconds, 'bytes': moved}

    def revert(self, *args: typing.Any, **kwargs: typing.Any) -> None:
        self._gate.undoing()
        try:
            self._step.undo(self._run)
        except exceptions.XenImportError as error:
            # The first error stays the one that is raised; what could
            # not be undone is told beside it.
            self._run.leftovers.append(error)
        except Exception as error:
            # TaskFlow would stop here, with the earlier steps not undone.
            self._run.leftovers.append(exceptions.unexpected(error))


def execute(steps: Sequence[Step], run: context.Run) -> None:
    """Run the steps; when one fails, undo it and those before it.

    :raises KeyboardInterrupt: on Ctrl-C or SIGTERM, all undone
    :raises xenimport.exceptions.XenImportError: as the step raised it
    """
    gate = interrupts.Gate()
    run.check_interrupted = gate.check
    flow = linear_flow.Flow('import-xen')
    flow.add(*(_Task(step, run, gate) for step in steps))
    with gate.installed():
        engine = engines.load(flow, engine='serial')
        try:
            engine.run()
        except _Interrupted as error:
            raise KeyboardInterrupt from error
