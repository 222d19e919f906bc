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


"""Static addresses, as Windows and Xen's tools keep them.

The values are those that Microsoft documents for
``Tcpip\\Parameters\\Interfaces``, the ids those of xenvif.inf and xennet.inf.
"""

import unittest

from xenimport.guest import registry
from xenimport import model
from xenimport.remediation.windows import network
from xenimport.tests.unit.remediation import fakes
from xenimport.tests.unit.remediation import windows_fakes

_SET = 'ControlSet001'
_CLASS = '{4D36E972-E325-11CE-BFC1-08002BE10318}'
_CARD = '{C43669B3-AB3E-4D0E-8FDE-69579925A20F}'
_SAVED = 'Citrix\\XenToolsNetSettings\\XEN\\VIF\\0\\Tcpip'


def static(
    *pairs: tuple[str, str], gateway: str = '', dns: str = ''
) -> list[registry.Value]:
    return [
        registry.Value.dword('EnableDHCP', 0),
        registry.Value.multi_sz('IPAddress', [pair[0] for pair in pairs]),
        registry.Value.multi_sz('SubnetMask', [pair[1] for pair in pairs]),
        registry.Value.multi_sz('DefaultGateway', [gateway] * bool(gateway)),
        registry.Value.sz('NameServer', dns),
    ]


def make(
    interface: list[registry.Value],
    device: str = 'XENVIF\\VEN_XS0001&DEV_NET&REV_00000000',
    saved: windows_fakes.Tree | None = None,
    card: str = _CARD,
    **more: list[registry.Value],
) -> windows_fakes.FakeWindows:
    tree: windows_fakes.Tree = {
        'Select': [registry.Value.dword('Current', 1)],
        f'{_SET}\\Control\\Class\\{_CLASS}\\0007': [
            registry.Value.sz('NetCfgInstanceId', card),
            registry.Value.sz('MatchingDeviceId', device),
            registry.Value.sz('DriverDesc', 'XenServer PV Network Device #0'),
        ],
        # Not a card: the class has such subkeys too.
        f'{_SET}\\Control\\Class\\{_CLASS}\\Properties': [],
        f'{_SET}\\Control\\Network\\{_CLASS}\\{_CARD}\\Connection': [
            registry.Value.sz('Name', 'Local Area Connection 2')
        ],
        # Windows writes this key's name in lower case.
        f'{_SET}\\Services\\Tcpip\\Parameters\\Interfaces\\{_CARD.lower()}': (
            interface
        ),
    }
    return windows_fakes.FakeWindows(
        hives={
            '/dev/sda2': {
                'Windows/System32/config/SYSTEM': tree | more,
                'Windows/System32/config/SOFTWARE': saved or {},
            }
        }
    )


class StaticNetworkTest(unittest.TestCase):
    def findings(self, fake: windows_fakes.FakeWindows) -> list[model.Finding]:
        check = network.StaticNetwork(fakes.request())
        found, changes = windows_fakes.treat(check, fake)
        self.assertEqual([], changes)
        return found

    def test_everything_is_named(self):
        (found,) = self.findings(
            make(
                static(
                    ('192.0.2.10', '255.255.255.0'),
                    ('198.51.100.4', '255.255.255.128'),
                    gateway='192.0.2.1',
                    dns='192.0.2.53,203.0.113.53',
                )
            )
        )
        self.assertEqual('windows.static-network', found.id)
        self.assertIs(model.Severity.WARNING, found.severity)
        self.assertEqual(
            'Local Area Connection 2, XenServer PV Network Device #0, '
            'XENVIF\\VEN_XS0001&DEV_NET&REV_00000000: 192.0.2.10/24, '
            '198.51.100.4/25; gateway 192.0.2.1; DNS 192.0.2.53, '
            '203.0.113.53 (HKLM\\SYSTEM\\ControlSet001\\Services\\Tcpip\\'
            f'Parameters\\Interfaces\\{_CARD.lower()})',
            found.evidence,
        )
        self.assertIn('--fixed-ip', found.fix)
        self.assertIsNone(found.repair)

    def test_emulated_card(self):
        fake = make(
            static(('192.0.2.10', '255.255.255.0')), 'PCI\\VEN_10EC&DEV_8139'
        )
        self.assertEqual(1, len(self.findings(fake)))

    def test_dhcp(self):
        for values in (
            [
                registry.Value.dword('EnableDHCP', 1),
                registry.Value.sz('DhcpIPAddress', '192.0.2.10'),
                # What was set before DHCP was chosen stays there.
                registry.Value.multi_sz('IPAddress', ['192.0.2.9']),
            ],
            static(('0.0.0.0', '0.0.0.0')),
            [],
        ):
            with self.subTest(values):
                self.assertEqual([], self.findings(make(values)))

    def test_adapters_that_are_no_hardware(self):
        values = static(('192.0.2.10', '255.255.255.0'))
        for device in ('root\\tap0901', 'BTH\\MS_BTHPAN', 'sw\\{1}'):
            with self.subTest(device):
                self.assertEqual([], self.findings(make(values, device)))

    def test_interface_of_a_card_that_is_gone(self):
        values = static(('192.0.2.10', '255.255.255.0'))
        self.assertEqual([], self.findings(make(values, card='{other}')))

    def test_address_is_told_once_for_all_control_sets(self):
        fake = make(static(('192.0.2.10', '255.255.255.0')))
        tree = fake.hive('/dev/sda2', 'Windows/System32/config/SYSTEM')
        for path, values in list(tree.items()):
            if path.startswith(_SET):
                tree[path.replace(_SET, 'ControlSet002', 1)] = values
        tree['Select'].append(registry.Value.dword('Default', 2))
        self.assertEqual(1, len(self.findings(fake)))

    def test_what_the_tools_of_xen_have_kept(self):
        saved = {_SAVED: static(('192.0.2.77', '255.255.0.0'))}
        (found,) = self.findings(make([], saved=saved))
        self.assertIn('192.0.2.77/16', found.evidence)
        self.assertIn(f'HKLM\\SOFTWARE\\{_SAVED}', found.evidence)

    def test_what_they_have_kept_is_what_is_in_use(self):
        values = static(('192.0.2.10', '255.255.255.0'))
        found = self.findings(make(values, saved={_SAVED: values}))
        self.assertEqual(1, len(found))
        self.assertNotIn('XenToolsNetSettings', found[0].evidence)

    def test_hostile_values(self):
        for values, shown in (
            (
                [
                    registry.Value.multi_sz(
                        'IPAddress', ['x', '1.2.3.4\x1b[2J', '192.0.2.10']
                    ),
                    registry.Value.multi_sz('SubnetMask', ['1']),
                ],
                '192.0.2.10/? ',
            ),
            (
                [
                    registry.Value(
                        'IPAddress', registry.MULTI_SZ, b'1\0.\0\0\xd8\0'
                    )
                ],
                None,
            ),
            ([registry.Value.binary('IPAddress', b'\xff' * 9)], None),
            (
                static(*[(f'10.0.{at}.1', '9.9.9.9') for at in range(200)]),
                '10.0.31.1/? ',
            ),
        ):
            with self.subTest(shown):
                found = self.findings(make(values))
                if shown is None:
                    self.assertEqual([], found)
                else:
                    self.assertIn(shown, found[0].evidence)
                    self.assertNotIn('\x1b', found[0].evidence)

    def test_hostile_names(self):
        fake = make(
            static(('192.0.2.10', '255.255.255.0')),
            'XENVIF\\\n' + 'A' * 100_000,
            card=_CARD,
        )
        (found,) = self.findings(fake)
        self.assertLess(len(found.evidence), 1000)
        self.assertNotIn('\n', found.evidence)

    def test_very_many_cards(self):
        fake = make([])
        tree = fake.hive('/dev/sda2', 'Windows/System32/config/SYSTEM')
        for at in range(80):
            tree[f'{_SET}\\Control\\Class\\{_CLASS}\\{at:04d}'] = [
                registry.Value.sz('NetCfgInstanceId', f'{{{at}}}'),
                registry.Value.sz('MatchingDeviceId', 'XEN\\VIF'),
            ]
            tree[
                f'{_SET}\\Services\\Tcpip\\Parameters\\Interfaces\\{{{at}}}'
            ] = static((f'10.0.0.{at + 1}', '255.0.0.0'))
        self.assertEqual(64, len(self.findings(fake)))


if __name__ == '__main__':
    unittest.main()
