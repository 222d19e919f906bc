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

from __future__ import annotations

import os
import pathlib
import signal
import sys
import tempfile
import threading
import time
import unittest

from xenimport import exceptions
from xenimport.guest import processes
from xenimport.guest import session


class SessionTestCase(unittest.TestCase):
    def setUp(self):
        super().setUp()
        directory = tempfile.TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        self.work_dir = pathlib.Path(directory.name)

    def appliance(self, mode='plain', **kwargs):
        result = session.Appliance(
            [session.Drive('disk.raw')], str(self.work_dir), **kwargs
        )
        result.command = (
            sys.executable,
            '-P',
            '-m',
            'xenimport.tests.unit.guest.fake_worker',
            mode,
        )
        self.addCleanup(result._kill)
        return result

    def assert_gone(self, group):
        self.assertEqual([], processes.members(group))
        self.assertEqual([], list(self.work_dir.iterdir()))

    def fails(self, appliance, name, *args, **kwargs):
        """The ApplianceError of a call, after which all must be gone."""
        group = appliance.process_group
        with self.assertRaises(exceptions.ApplianceError) as caught:
            appliance.call(name, *args, **kwargs)
        self.assertIsNone(appliance.process_group)
        self.assert_gone(group)
        return caught.exception


class CallTestCase(SessionTestCase):
    def test_values_survive_the_way_there_and_back(self):
        values = [
            None,
            True,
            -(1 << 63),
            'wörd',
            b'\x00\xff',
            {'a': [b'1', b'']},
            ['x', 'y'],
        ]
        with self.appliance() as appliance:
            self.assertEqual('1.48.6', appliance.version)
            self.assertEqual(values, appliance.call('echo', *values))

    def test_result_of_64_mib(self):
        with self.appliance() as appliance:
            data = appliance.call('zeros', 64 << 20)
        self.assertEqual(64 << 20, len(data))

    def test_closing_leaves_nothing(self):
        appliance = self.appliance()
        appliance.start()
        group = appliance.process_group
        self.assertEqual(group, os.getpgid(group))
        self.assertNotEqual(os.getpgid(0), group)
        self.assertTrue(appliance.directory.startswith(str(self.work_dir)))
        appliance.close()
        appliance.close()
        self.assert_gone(group)

    def test_libguestfs_refuses(self):
        with self.appliance() as appliance:
            with self.assertRaises(exceptions.GuestError) as caught:
                appliance.call('refuse', 3, '/dev/sda1', '/boot')
            self.assertEqual('guest.libguestfs-failed', caught.exception.id)
            self.assertEqual('/dev/sda1', caught.exception.where)
            self.assertIn('refuse', caught.exception.message)
            self.assertEqual('mount:  [31mno way', caught.exception.found)
            # The session goes on.
            self.assertEqual([1], appliance.call('echo', 1))

    def test_name_that_is_not_utf8(self):
        with self.appliance() as appliance:
            with self.assertRaises(exceptions.GuestError) as caught:
                appliance.call('not_utf8', '/etc')
        self.assertEqual('guest.not-utf8', caught.exception.id)

    def test_no_private_function_is_called(self):
        with self.appliance() as appliance:
            for name in ('_o', '__init__', 'a.b', ''):
                with self.assertRaises(ValueError):
                    appliance.call(name)

    def test_call_without_a_start(self):
        with self.assertRaises(exceptions.ApplianceError) as caught:
            self.appliance().call('echo')
        self.assertEqual('appliance.not-running', caught.exception.id)


class EndTestCase(SessionTestCase):
    def test_time_limit_ends_children_too(self):
        appliance = self.appliance()
        appliance.start()
        child = appliance.call('child')
        self.assertIn(child, processes.members(appliance.process_group))
        began = time.monotonic()
        error = self.fails(appliance, 'sleep', '/dev/sdb', limit=0.2)
        self.assertLess(time.monotonic() - began, 2)
        self.assertEqual('appliance.time-limit', error.id)
        self.assertEqual('/dev/sdb', error.where)
        self.assertIn('0.2 seconds', error.message)
        with self.assertRaises(exceptions.ApplianceError) as caught:
            appliance.call('echo')
        self.assertEqual('appliance.not-running', caught.exception.id)

    def test_session_limit(self):
        appliance = self.appliance(call_limit=0.2)
        appliance.start()
        self.assertEqual(
            'appliance.time-limit', self.fails(appliance, 'sleep').id
        )

    def test_start_limit(self):
        appliance = self.appliance('slow', start_limit=0.3)
        with self.assertRaises(exceptions.ApplianceError) as caught:
            appliance.start()
        self.assertEqual('appliance.time-limit', caught.exception.id)
        self.assertEqual([], list(self.work_dir.iterdir()))

    def test_worker_dies(self):
        appliance = self.appliance()
        appliance.start()
        error = self.fails(appliance, 'die')
        self.assertEqual('appliance.died', error.id)
        self.assertIn('code 7', error.found)
        self.assertIn('qemu: out of luck', error.found)
        self.assertIn('last words on stderr', error.found)

    def test_killed_from_outside(self):
        appliance = self.appliance()
        appliance.start()
        os.kill(appliance.process_group, signal.SIGKILL)
        self.assertEqual('appliance.died', self.fails(appliance, 'echo').id)

    def test_appliance_dies_within_a_living_worker(self):
        appliance = self.appliance()
        appliance.start()
        error = self.fails(appliance, 'appliance_died')
        self.assertEqual('appliance.died', error.id)
        self.assertIn('closed the connection', error.found)

    def test_frame_too_large_is_not_read(self):
        appliance = self.appliance()
        appliance.start()
        error = self.fails(appliance, 'oversize', limit=5)
        self.assertEqual('appliance.died', error.id)
        self.assertIn('larger', error.found)

    def test_pickle_is_not_understood(self):
        appliance = self.appliance()
        appliance.start()
        error = self.fails(appliance, 'garbage', limit=5)
        self.assertEqual('appliance.died', error.id)

    def test_interrupt_in_a_call(self):
        appliance = self.appliance()
        appliance.start()
        group = appliance.process_group
        appliance.call('child')
        timer = threading.Timer(
            0.2, signal.pthread_kill, (threading.get_ident(), signal.SIGINT)
        )
        timer.start()
        self.addCleanup(timer.join)
        with self.assertRaises(KeyboardInterrupt):
            appliance.call('sleep', limit=10)
        self.assert_gone(group)

    def test_interrupt_between_calls(self):
        appliance = self.appliance()
        with self.assertRaises(KeyboardInterrupt):
            with appliance:
                group = appliance.process_group
                raise KeyboardInterrupt
        self.assert_gone(group)

    def test_no_binding(self):
        with self.assertRaises(exceptions.ApplianceError) as caught:
            self.appliance('no-binding').start()
        self.assertEqual('appliance.no-libguestfs', caught.exception.id)
        self.assertIn('python3-guestfs', str(caught.exception.fix))

    def test_failure_to_flush_is_an_error(self):
        appliance = self.appliance('bad-close')
        appliance.start()
        group = appliance.process_group
        with self.assertRaises(exceptions.ApplianceError) as caught:
            appliance.close()
        self.assertEqual('appliance.close-failed', caught.exception.id)
        self.assert_gone(group)

    def test_first_error_is_the_one_told(self):
        with self.assertRaises(ZeroDivisionError):
            with self.appliance('bad-close'):
                raise ZeroDivisionError

    def test_work_directory_is_missing(self):
        appliance = session.Appliance([], str(self.work_dir / 'none'))
        with self.assertRaises(exceptions.ApplianceError) as caught:
            appliance.start()
        self.assertEqual('appliance.start-failed', caught.exception.id)


class EnvironmentTestCase(unittest.TestCase):
    def environment(self, accelerator='tcg', **environment):
        return session.worker_environment('/w/a', accelerator, environment)

    def test_temporary_files_go_to_the_session(self):
        result = self.environment()
        self.assertEqual('/w/a', result['TMPDIR'])
        self.assertEqual('/w/a', result['LIBGUESTFS_TMPDIR'])
        self.assertEqual('direct', result['LIBGUESTFS_BACKEND'])

    def test_sockets_lie_where_they_are_cleaned_up(self):
        result = self.environment(XDG_RUNTIME_DIR='/run/user/1000')
        self.assertNotIn('XDG_RUNTIME_DIR', result)

    def test_cached_appliance_stays_in_its_place(self):
        self.assertEqual('/var/tmp', self.environment()['LIBGUESTFS_CACHEDIR'])
        self.assertEqual(
            '/fast', self.environment(TMPDIR='/fast')['LIBGUESTFS_CACHEDIR']
        )
        self.assertEqual(
            '/c',
            self.environment(TMPDIR='/fast', LIBGUESTFS_CACHEDIR='/c')[
                'LIBGUESTFS_CACHEDIR'
            ],
        )

    def test_accelerator(self):
        forced = {'LIBGUESTFS_BACKEND_SETTINGS': 'force_tcg'}
        self.assertEqual(
            'force_tcg', self.environment()['LIBGUESTFS_BACKEND_SETTINGS']
        )
        self.assertNotIn(
            'LIBGUESTFS_BACKEND_SETTINGS', self.environment('kvm', **forced)
        )
