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

import contextlib
import io
import os
import signal
import sys
import unittest

from xenimport import exceptions
from xenimport import opts
from xenimport.workflow import context
from xenimport.workflow import engine


class Recorder(engine.Step):
    """A step that writes down what happens to it."""

    def __init__(self, name, log, failure=None):
        self.name = name
        self.log = log
        self.failure = failure

    def do(self, run):
        self.log.append(f'do {self.name}')
        if isinstance(self.failure, int):
            os.kill(os.getpid(), self.failure)
        elif self.failure is not None:
            raise self.failure
        return 7

    def undo(self, run):
        self.log.append(f'undo {self.name}')


class Watcher(context.Observer):
    def __init__(self):
        self.lines = []

    def step(self, name):
        self.lines.append(name)

    def step_done(self, name, seconds, moved):
        self.lines.append((name, moved))


class EngineTest(unittest.TestCase):
    def setUp(self):
        super().setUp()
        self.log = []
        self.watcher = Watcher()
        self.run_ = context.Run(
            context.Settings(('guest.ova',), opts.load([])), self.watcher
        )

    def step(self, name, failure=None):
        return Recorder(name, self.log, failure)

    def test_steps_run_in_order_and_are_recorded(self):
        engine.execute([self.step('one'), self.step('two')], self.run_)
        self.assertEqual(['do one', 'do two'], self.log)
        self.assertEqual(
            [('one', 7), ('two', 7)],
            [(step.name, step.bytes) for step in self.run_.steps],
        )
        self.assertEqual(
            ['one', ('one', 7), 'two', ('two', 7)], self.watcher.lines
        )

    def test_failure_undoes_in_reverse_and_raises_it(self):
        error = exceptions.PackageError('package.x', 'broken')
        with self.assertRaises(exceptions.PackageError) as caught:
            engine.execute(
                [
                    self.step('one'),
                    self.step('two', error),
                    self.step('three'),
                ],
                self.run_,
            )
        self.assertEqual('package.x', caught.exception.id)
        self.assertEqual(
            ['do one', 'do two', 'undo two', 'undo one'], self.log
        )

    def test_interrupt_terminate_and_hang_up_undo(self):
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            with self.subTest(signal=number):
                self.log.clear()
                before = signal.getsignal(number)
                with self.assertRaises(KeyboardInterrupt):
                    engine.execute(
                        [self.step('one'), self.step('two', int(number))],
                        self.run_,
                    )
                self.assertEqual(
                    ['do one', 'do two', 'undo two', 'undo one'], self.log
                )
                self.assertIs(before, signal.getsignal(number))

    def test_second_interrupt_does_not_stop_the_undoing(self):
        class Impatient(Recorder):
            def undo(self, run):
                os.kill(os.getpid(), signal.SIGINT)
                super().undo(run)

        error = exceptions.TargetError('target.x', 'no')
        with self.assertRaises(exceptions.TargetError):
            engine.execute(
                [
                    Impatient('one', self.log),
                    self.step('two', error),
                ],
                self.run_,
            )
        self.assertEqual('undo one', self.log[-1])

    def test_failing_undo_is_told_and_hides_nothing(self):
        class Stuck(Recorder):
            def undo(self, run):
                super().undo(run)
                raise exceptions.TargetError('glance.record-left', 'left')

        error = exceptions.TargetError('target.x', 'no')
        with self.assertRaises(exceptions.TargetError) as caught:
            engine.execute(
                [
                    self.step('one'),
                    Stuck('two', self.log),
                    self.step('three', error),
                ],
                self.run_,
            )
        self.assertEqual('target.x', caught.exception.id)
        self.assertEqual(
            ['glance.record-left'],
            [left.id for left in self.run_.leftovers],
        )
        self.assertEqual('undo one', self.log[-1])

    def test_undo_with_a_bug_stops_no_other_undo(self):
        class Broken(Recorder):
            def undo(self, run):
                raise OSError('no such device')

        error = exceptions.TargetError('target.x', 'no')
        with self.assertRaises(exceptions.TargetError):
            engine.execute(
                [
                    self.step('one'),
                    Broken('two', self.log),
                    self.step('three', error),
                ],
                self.run_,
            )
        self.assertEqual('undo one', self.log[-1])
        self.assertEqual(
            ['internal.unexpected'],
            [left.id for left in self.run_.leftovers],
        )

    def test_interrupt_between_steps_is_not_lost(self):
        class Late(Watcher):
            def step_done(self, name, seconds, moved):
                os.kill(os.getpid(), signal.SIGINT)

        self.run_.observer = Late()
        with self.assertRaises(KeyboardInterrupt):
            engine.execute([self.step('one'), self.step('two')], self.run_)
        self.assertEqual(['do one', 'undo two', 'undo one'], self.log)

    def lost(self, poll):
        """A step in which Python ignores what the handler raises."""

        class Forking(Recorder):
            def do(self, run):
                class Held:
                    def __del__(self):
                        os.kill(os.getpid(), signal.SIGINT)
                        # The handler runs at the next bytecode, in here.
                        for _ in range(100):
                            pass

                Held()
                self.log.append('signal lost')
                if poll:
                    run.check_interrupted()
                self.log.append('end reached')
                return 7

        return Forking('one', self.log)

    def test_interrupt_that_python_ignores_is_not_lost(self):
        for poll, ended in ((True, []), (False, ['end reached'])):
            with self.subTest(poll=poll):
                self.log.clear()
                hook = sys.unraisablehook
                said = io.StringIO()
                with (
                    contextlib.redirect_stderr(said),
                    self.assertRaises(KeyboardInterrupt),
                ):
                    engine.execute(
                        [self.lost(poll), self.step('two')], self.run_
                    )
                self.assertEqual(['signal lost', *ended, 'undo one'], self.log)
                self.assertIs(hook, sys.unraisablehook)
                self.assertEqual('', said.getvalue())
