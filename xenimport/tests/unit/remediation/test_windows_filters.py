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


import typing
import unittest

from xenimport.guest import guest as guest_room
from xenimport.guest import registry
from xenimport import model
from xenimport.remediation.windows import device_filters
from xenimport.tests.unit.remediation import fakes
from xenimport.tests.unit.remediation import windows_fakes
from xenimport.tests.unit.remediation import windows_xen

_CLASS = 'ControlSet001\\Control\\Class'
_ENUM = 'ControlSet001\\Enum'
#: The class filters of the Windows 10 hive in dissect.regf's tests.
_REAL = {
    windows_xen.DISK_CLASS: (['partmgr'], ['EhStorClass']),
    windows_xen.VOLUME_CLASS: (['volsnap'], ['fvevol', 'iorate', 'rdyboost']),
    '{4d36e96c-e325-11ce-bfc1-08002be10318}': (['ksthunk'], []),
}


class XenFiltersTest(unittest.TestCase):
    def setUp(self) -> None:
        self.check = device_filters.XenFilters(fakes.request())

    def test_founding_guest(self) -> None:
        fake = windows_xen.founding()
        found = windows_xen.diagnose(self.check, fake)
        self.assertEqual(
            [
                f'{control_set}\\Control\\Class\\{guid}, UpperFilters'
                for control_set in ('ControlSet001', 'ControlSet002')
                for guid in (windows_xen.SYSTEM_CLASS, windows_xen.HDC_CLASS)
            ],
            [finding.subject for finding in found],
        )
        self.assertEqual(
            {model.Severity.BLOCKER}, {item.severity for item in found}
        )
        self.assertIn(
            f'HKLM\\SYSTEM\\{_CLASS}\\{windows_xen.SYSTEM_CLASS}, value '
            'UpperFilters: XENFILT (class System)',
            found[0].evidence,
        )
        changes = windows_xen.repair(self.check, fake)
        self.assertEqual(4, len(changes))
        self.assertEqual({'absent'}, {item.after for item in changes})
        self.assertEqual([], windows_xen.diagnose(self.check, fake))
        for name in ('ControlSet001', 'ControlSet002'):
            path = f'{name}\\Control\\Class\\{windows_xen.SYSTEM_CLASS}'
            self.assertIsNone(windows_xen.strings(fake, path, 'UpperFilters'))

    def test_healthy_guest(self) -> None:
        tree: windows_fakes.Tree = {
            f'{_CLASS}\\{guid}': [
                registry.Value.multi_sz('UpperFilters', upper),
                registry.Value.multi_sz('LowerFilters', lower),
            ]
            for guid, (upper, lower) in _REAL.items()
        }
        fake = windows_xen.guest(tree)
        self.assertEqual([], windows_xen.diagnose(self.check, fake))
        self.assertEqual([], windows_xen.repair(self.check, fake))

    def test_others_keep_their_place(self) -> None:
        for guid, (upper, lower) in _REAL.items():
            path = f'{_CLASS}\\{guid}'
            fake = windows_xen.guest(
                {
                    path: [
                        registry.Value.multi_sz(
                            'UpperFilters', ['XenFilt', *upper, 'SCSIFILT']
                        ),
                        registry.Value.multi_sz(
                            'LowerFilters', [*lower, 'xenpci']
                        ),
                    ]
                }
            )
            windows_xen.repair(self.check, fake)
            self.assertEqual(
                tuple(upper), windows_xen.strings(fake, path, 'UpperFilters')
            )
            self.assertEqual(
                tuple(lower) or None,
                windows_xen.strings(fake, path, 'LowerFilters'),
            )

    def test_names_that_only_look_alike_stay(self) -> None:
        path = f'{_CLASS}\\{windows_xen.HDC_CLASS}'
        names = ['xenfilter', 'myxenfilt', 'xenpcix']
        fake = windows_xen.guest(
            {path: [registry.Value.multi_sz('UpperFilters', names)]}
        )
        self.assertEqual([], windows_xen.diagnose(self.check, fake))

    def test_one_string_instead_of_a_list(self) -> None:
        path = f'{_CLASS}\\{windows_xen.HDC_CLASS}'
        fake = windows_xen.guest(
            {path: [registry.Value.sz('UpperFilters', 'XenFilt')]}
        )
        self.assertEqual(1, len(windows_xen.diagnose(self.check, fake)))
        windows_xen.repair(self.check, fake)
        self.assertIsNone(windows_xen.strings(fake, path, 'UpperFilters'))
        fake = windows_xen.guest(
            {path: [registry.Value.sz('UpperFilters', 'volsnap')]}
        )
        self.assertEqual([], windows_xen.diagnose(self.check, fake))

    def test_devices(self) -> None:
        disk = f'{_ENUM}\\XENBUS\\VEN_XS0001&DEV_VBD\\_'
        bridge = f'{_ENUM}\\ACPI\\PNP0A03\\0'
        other = f'{_ENUM}\\ACPI\\PNP0501\\1'
        fake = windows_xen.guest(
            {
                disk: [registry.Value.multi_sz('UpperFilters', ['xendisk'])],
                bridge: [
                    registry.Value.multi_sz('UpperFilters', ['XENFILT', 'x']),
                    registry.Value.multi_sz('LowerFilters', ['XenVbdFilter']),
                ],
                other: [registry.Value.multi_sz('UpperFilters', ['serenum'])],
            }
        )
        (finding,) = windows_xen.diagnose(self.check, fake)
        self.assertEqual(_ENUM, finding.subject)
        self.assertIn(disk, finding.evidence)
        self.assertIn(bridge, finding.evidence)
        self.assertNotIn('serenum', finding.evidence)
        self.assertEqual(3, len(windows_xen.repair(self.check, fake)))
        self.assertIsNone(windows_xen.strings(fake, disk, 'UpperFilters'))
        self.assertEqual(
            ('x',), windows_xen.strings(fake, bridge, 'UpperFilters')
        )
        self.assertIsNone(windows_xen.strings(fake, bridge, 'LowerFilters'))
        self.assertEqual(
            ('serenum',), windows_xen.strings(fake, other, 'UpperFilters')
        )
        self.assertEqual([], windows_xen.diagnose(self.check, fake))

    def test_gplpv(self) -> None:
        """Its INF puts XenPci on three classes, XenHide on a fourth."""
        guids = (
            windows_xen.HDC_CLASS,
            windows_xen.SCSI_CLASS,
            windows_xen.NET_CLASS,
        )
        tree: windows_fakes.Tree = {
            f'{_CLASS}\\{guid}': [
                registry.Value.multi_sz('UpperFilters', ['XenPci'])
            ]
            for guid in guids
        }
        tree[f'{_CLASS}\\{windows_xen.SYSTEM_CLASS}'] = [
            registry.Value.multi_sz('LowerFilters', ['XenHide'])
        ]
        fake = windows_xen.guest(tree)
        self.assertEqual(4, len(windows_xen.diagnose(self.check, fake)))
        windows_xen.repair(self.check, fake)
        self.assertEqual([], windows_xen.diagnose(self.check, fake))

    def test_what_stands_behind_an_empty_string_stays_there(self) -> None:
        path = f'{_CLASS}\\{windows_xen.HDC_CLASS}'
        for before, after in (
            ('a\0\0xenfilt\0b\0\0', 'a\0\0b\0\0'),
            ('xenfilt\0a', 'a\0\0'),
            ('a\0XENFILT', 'a\0\0'),
            ('\0xenfilt\0\0', None),
            ('xenfilt\0 xenfilt \0\0', None),
        ):
            data = before.encode('utf-16-le')
            value = registry.Value('UpperFilters', registry.MULTI_SZ, data)
            fake = windows_xen.guest({path: [value]})
            windows_xen.repair(self.check, fake)
            left = fake.hive(windows_xen.DEVICE, windows_xen.SYSTEM)[path]
            self.assertEqual(
                [] if after is None else [after.encode('utf-16-le')],
                [item.data for item in left],
            )

    def test_only_classes_have_a_guid(self) -> None:
        path = f'{_CLASS}\\System'
        fake = windows_xen.guest(
            {path: [registry.Value.multi_sz('UpperFilters', ['xenfilt'])]}
        )
        self.assertEqual([], windows_xen.diagnose(self.check, fake))

    def test_a_second_repair_changes_nothing(self) -> None:
        fake = windows_xen.founding()
        found = windows_xen.diagnose(self.check, fake)
        windows_xen.repair(self.check, fake)
        real = typing.cast(guest_room.Guest, fake)
        for finding in found:
            self.assertEqual([], self.check.repair(real, finding))

    def test_undo_is_the_list_before(self) -> None:
        path = f'{_CLASS}\\{windows_xen.HDC_CLASS}'
        names = ['a', 'xenfilt', 'b']
        fake = windows_xen.guest(
            {path: [registry.Value.multi_sz('UpperFilters', names)]}
        )
        (change,) = windows_xen.repair(self.check, fake)
        self.assertIn('/t REG_MULTI_SZ /d "a\\0xenfilt\\0b"', change.undo)

    def test_hostile_values(self) -> None:
        path = f'{_CLASS}\\{windows_xen.HDC_CLASS}'
        text = 'xenfilt\0'.encode('utf-16-le')
        for value in (
            registry.Value('UpperFilters', registry.BINARY, text),
            registry.Value('UpperFilters', registry.DWORD, b'\1\0\0\0'),
            registry.Value('UpperFilters', registry.MULTI_SZ, b''),
            registry.Value('UpperFilters', registry.MULTI_SZ, b'\0\xd8x'),
            registry.Value('UpperFilters', 0xDEAD, text),
        ):
            self.assertEqual(
                [],
                windows_xen.diagnose(
                    self.check, windows_xen.guest({path: [value]})
                ),
            )

    def test_a_huge_list_gives_a_short_finding(self) -> None:
        path = f'{_CLASS}\\{windows_xen.HDC_CLASS}'
        names = ['xenfilt', 'f'] * 20_000
        tree: windows_fakes.Tree = {
            path: [registry.Value.multi_sz('UpperFilters', names)]
        }
        for number in range(300):
            tree[f'{_ENUM}\\PCI\\X\\{number}'] = [
                registry.Value.multi_sz('LowerFilters', ['XENHIDE'])
            ]
        fake = windows_xen.guest(tree)
        found = windows_xen.diagnose(self.check, fake)
        self.assertEqual(2, len(found))
        for finding in found:
            self.assertLess(len(finding.evidence), 1000)
        windows_xen.repair(self.check, fake)
        self.assertEqual(
            ('f',) * 20_000, windows_xen.strings(fake, path, 'UpperFilters')
        )


class FilterMissingTest(unittest.TestCase):
    def setUp(self) -> None:
        self.check = device_filters.FilterMissing(fakes.request())

    def _guest(
        self, *services: tuple[str, int], file: bool = True
    ) -> windows_fakes.FakeWindows:
        tree: windows_fakes.Tree = {
            f'{_CLASS}\\{windows_xen.VOLUME_CLASS}': [
                registry.Value.multi_sz('UpperFilters', ['volsnap', 'AvFlt'])
            ]
        }
        files = {}
        for name, start in services:
            path = f'ControlSet001\\Services\\{name}'
            tree[path] = windows_xen.service(start, name)
            if file:
                files[f'Windows/System32/drivers/{name}.sys'] = b'MZ'
        return windows_xen.guest(tree, files)

    def test_all_there(self) -> None:
        fake = self._guest(('volsnap', 0), ('avflt', 0))
        self.assertEqual([], windows_xen.diagnose(self.check, fake))

    def test_no_service(self) -> None:
        (finding,) = windows_xen.diagnose(
            self.check, self._guest(('volsnap', 0))
        )
        self.assertEqual('ControlSet001: AvFlt', finding.subject)
        self.assertIs(model.Severity.WARNING, finding.severity)
        self.assertIsNone(finding.repair)
        self.assertIn('no service', finding.evidence)
        self.assertIn(windows_xen.VOLUME_CLASS, finding.evidence)

    def test_disabled(self) -> None:
        fake = self._guest(('volsnap', 0), ('AvFlt', 4))
        (finding,) = windows_xen.diagnose(self.check, fake)
        self.assertIn('disabled', finding.evidence)

    def test_no_file(self) -> None:
        found = windows_xen.diagnose(
            self.check,
            self._guest(('volsnap', 0), ('AvFlt', 0), file=False),
        )
        self.assertEqual(2, len(found))
        self.assertIn(
            'Windows/System32/drivers/AvFlt.sys is not there',
            found[1].evidence,
        )

    def test_filters_of_xen_are_not_its_business(self) -> None:
        path = f'{_CLASS}\\{windows_xen.HDC_CLASS}'
        fake = windows_xen.guest(
            {path: [registry.Value.multi_sz('UpperFilters', ['XenFilt'])]}
        )
        self.assertEqual([], windows_xen.diagnose(self.check, fake))

    def test_other_classes_are_not_on_the_path(self) -> None:
        path = f'{_CLASS}\\{{4d36e96c-e325-11ce-bfc1-08002be10318}}'
        fake = windows_xen.guest(
            {path: [registry.Value.multi_sz('UpperFilters', ['nowhere'])]}
        )
        self.assertEqual([], windows_xen.diagnose(self.check, fake))

    def test_devices_of_the_path(self) -> None:
        fake = windows_xen.guest(
            {
                f'{_ENUM}\\SCSI\\Disk\\0': [
                    registry.Value.sz('ClassGUID', windows_xen.DISK_CLASS),
                    registry.Value.multi_sz('LowerFilters', ['gone']),
                ]
            }
        )
        (finding,) = windows_xen.diagnose(self.check, fake)
        self.assertIn('SCSI\\Disk\\0', finding.evidence)

    def test_a_name_that_is_a_path(self) -> None:
        path = f'{_CLASS}\\{windows_xen.VOLUME_CLASS}'
        fake = windows_xen.guest(
            {
                path: [registry.Value.multi_sz('UpperFilters', ['a\\Enum'])],
                'ControlSet001\\Services\\a\\Enum': [],
            }
        )
        self.assertEqual(1, len(windows_xen.diagnose(self.check, fake)))

    def test_hostile_names(self) -> None:
        path = f'{_CLASS}\\{windows_xen.VOLUME_CLASS}'
        names = ['..\\..\\x', '\x1b[2J', 'y' * 5000]
        fake = windows_xen.guest(
            {path: [registry.Value.multi_sz('UpperFilters', names)]}
        )
        found = windows_xen.diagnose(self.check, fake)
        self.assertEqual(3, len(found))
        for finding in found:
            shown = finding.evidence + finding.subject + finding.fix
            self.assertNotIn('\x1b', shown)
            self.assertLess(len(shown), 2000)


if __name__ == '__main__':
    unittest.main()
