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


"""Which checks a Windows guest gets, in which order."""

import os
import tempfile
import unittest
from unittest import mock

from xenimport.remediation.windows import driver
from xenimport.tests.unit.remediation import fakes
from xenimport.tests.unit.remediation import windows_fakes


class WindowsRemediationTest(unittest.TestCase):
    def setUp(self):
        super().setUp()
        self.remediation = driver.WindowsRemediation()

    def ids(self):
        return [check.id for check in self.remediation.checks(fakes.request())]

    def test_matches_windows_and_what_may_hide_one(self):
        matches = self.remediation.matches
        self.assertTrue(matches(windows_fakes.system()))
        self.assertTrue(matches(None))
        self.assertFalse(matches(fakes.operating_system()))

    def test_every_id_once(self):
        ids = self.ids()
        self.assertEqual(sorted(set(ids)), sorted(ids))
        self.assertTrue(all(item.startswith('windows.') for item in ids))

    def test_order(self):
        """What the facts about Windows say of the safest order."""
        ids = self.ids()
        for first, second in (
            # Nothing is written to a volume before it is known to be safe.
            ('windows.ntfs-hibernated', 'windows.hive-dirty'),
            ('windows.ntfs-dirty', 'windows.hive-dirty'),
            # A filter whose driver is disabled stops its whole class.
            ('windows.xen-filters', 'windows.xen-services'),
            ('windows.xen-services', 'windows.xen-packages'),
            # The signature on the disk decides what the BCD must name.
            ('windows.disk-signature', 'windows.boot-devices'),
            ('windows.boot-store', 'windows.boot-devices'),
            ('windows.active-partition', 'windows.boot-store'),
        ):
            self.assertLess(ids.index(first), ids.index(second), second)

    def test_no_windows_is_told_about_nothing_else(self):
        guest = windows_fakes.FakeWindows()
        guest.operating_system = None
        self.assertEqual({}, self.remediation.describe(guest))
        self.assertEqual({}, self.remediation.hardware(guest, fakes.request()))

    def test_damaged_hive_is_left_to_its_finding(self):
        guest = windows_fakes.FakeWindows()
        for name in ('SYSTEM', 'SOFTWARE'):
            path = f'/sda2/Windows/System32/config/{name}'
            guest.files[path] = b'no hive'
        self.remediation.checks(fakes.request())
        self.assertEqual({}, self.remediation.describe(guest))
        self.assertEqual({}, self.remediation.hardware(guest, fakes.request()))


class VirtioWinTest(unittest.TestCase):
    """Where the drivers are: the option, the configuration, the default."""

    def path(self, configured=None, asked=None, installed=False, empty=False):
        with tempfile.TemporaryDirectory() as directory:
            place = os.path.join(directory, 'virtio-win')
            if installed:
                os.makedirs(os.path.join(place, 'viostor', 'w10'))
            elif empty:
                os.mkdir(place)
            remediation = driver.WindowsRemediation({'virtio_win': configured})
            with mock.patch.object(driver, '_INSTALLED', place):
                (check, *_rest) = remediation.checks(
                    fakes.request(virtio_win=asked)
                )
            found = check.request.virtio_win
            return 'installed' if found == place else found

    def test_nothing_anywhere(self):
        self.assertIsNone(self.path())
        # One that nobody named, and that holds nothing, stops nothing.
        self.assertIsNone(self.path(empty=True))

    def test_each_before_the_next(self):
        self.assertEqual('/asked', self.path('/set', '/asked', True))
        self.assertEqual('/set', self.path('/set', None, True))
        self.assertEqual('installed', self.path(None, None, True))
