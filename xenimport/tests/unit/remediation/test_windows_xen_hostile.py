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


import random
import unittest

from xenimport.guest import registry
from xenimport.remediation import base
from xenimport.remediation.windows import device_filters
from xenimport.remediation.windows import start_override
from xenimport.remediation.windows import xen_packages
from xenimport.remediation.windows import xen_services
from xenimport.remediation.windows import xen_unplug
from xenimport.tests.unit.remediation import fakes
from xenimport.tests.unit.remediation import windows_fakes
from xenimport.tests.unit.remediation import windows_xen

_CHECKS: tuple[type[base.Check], ...] = (
    device_filters.XenFilters,
    device_filters.FilterMissing,
    xen_unplug.XenUnplug,
    start_override.StartOverride,
    xen_services.XenServices,
    xen_packages.XenPackages,
    xen_packages.XenTools,
)
_NAMES = (
    'UpperFilters', 'Start', 'Owners', 'Service', '', 'InfName', 'Version',
    'OemInfMap', 'oem5.inf', 'ImagePath', '\ud800\x1b',
)  # fmt: skip
_KEYS = ('StartOverride', 'a', 'oem5.inf', '\x1b[2J', '..')
_TYPES = (0, 1, 2, 3, 4, 5, 6, 7, 11, 99)


class HostileGuestTest(unittest.TestCase):
    """Guests damaged at random: each check copes, and mends for good."""

    def setUp(self) -> None:
        self.random = random.Random(17)

    def _bytes(self) -> bytes:
        length = self.random.randrange(40)
        alphabet = b'\0\0\0xenflt\xd8\xff%\\/.'
        return bytes(self.random.choices(alphabet, k=length))

    def _damage_key(self, tree: windows_fakes.Tree, path: str) -> None:
        values = tree[path]
        kind = self.random.choice(_TYPES)
        name = self.random.choice(_NAMES)
        if self.random.random() < 0.3:
            tree[f'{path}\\{self.random.choice(_KEYS)}'] = [
                registry.Value('0', kind, self._bytes())
            ]
        elif values and self.random.random() < 0.5:
            old = values.pop(self.random.randrange(len(values)))
            values.append(registry.Value(old.name, kind, self._bytes()))
        else:
            values.append(registry.Value(name, kind, self._bytes()))

    def _damaged(self) -> windows_fakes.FakeWindows:
        fake = windows_xen.founding()
        tree = fake.hive(windows_xen.DEVICE, windows_xen.SYSTEM)
        paths = [path for path in tree if path.startswith('ControlSet')]
        for path in self.random.sample(paths, 12):
            self._damage_key(tree, path)
        for path, data in fake.files.items():
            if '/INF/' in path and self.random.random() < 0.3:
                cut = self.random.randrange(len(data) + 1)
                fake.files[path] = data[:cut] + self._bytes()
        return fake

    def test_damaged_at_random(self) -> None:
        for _ in range(40):
            fake = self._damaged()
            request = fakes.request(
                xen_drivers=self.random.choice(('disable', 'remove'))
            )
            checks = [check(request) for check in _CHECKS]
            for check in checks:
                windows_xen.repair(check, fake)
            for check in checks:
                for finding in windows_xen.diagnose(check, fake):
                    self.assertIsNone(finding.repair, finding)


if __name__ == '__main__':
    unittest.main()
