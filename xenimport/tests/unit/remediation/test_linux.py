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

import unittest

from xenimport import model
from xenimport.remediation.linux import console
from xenimport.remediation.linux import driver
from xenimport.remediation.linux import network
from xenimport.remediation.linux import xen_tools
from xenimport.tests.unit.remediation import fakes

_UNITS = '/etc/systemd/system'
_WANTS = f'{_UNITS}/getty.target.wants'


class ConsoleTest(unittest.TestCase):
    def test_with_consoles(self) -> None:
        for before, after in (
            ('ro console=hvc0', 'ro console=hvc0 console=tty0 console=ttyS0'),
            ('ro', 'ro console=tty0 console=ttyS0'),
            ('console=ttyS0,9600 ro', 'console=ttyS0,9600 ro'),
            (
                'console=ttyS0,9600 console=hvc0',
                'console=hvc0 console=tty0 console=ttyS0,9600',
            ),
            (
                'console=hvc0 console=tty0 console=ttyS0',
                'console=hvc0 console=tty0 console=ttyS0',
            ),
        ):
            with self.subTest(before=before):
                made = console.with_consoles(before.split())
                self.assertEqual(after.split(), made)
                self.assertEqual(made, console.with_consoles(made))

    def test_inittab(self) -> None:
        before = (
            'id:2:initdefault:\n'
            '1:2345:respawn:/sbin/getty 38400 tty1\n'
            'h0:2345:respawn:/sbin/getty 38400 hvc0\n'
        )
        after = (
            'id:2:initdefault:\n'
            '1:2345:respawn:/sbin/getty 38400 tty1\n'
            '# h0:2345:respawn:/sbin/getty 38400 hvc0\n'
            'S0:2345:respawn:/sbin/getty 38400 ttyS0\n'
        )
        self.assertEqual(after, console.without_hvc(before))
        self.assertEqual(after, console.without_hvc(after))

    def test_inittab_of_busybox(self) -> None:
        self.assertEqual(
            '# hvc0::respawn:/sbin/getty 38400 hvc0\n'
            'tty1::respawn:/sbin/getty 38400 tty1\n'
            'ttyS0::respawn:/sbin/getty 38400 ttyS0\n',
            console.without_hvc('hvc0::respawn:/sbin/getty 38400 hvc0\n'),
        )

    def test_systemd(self) -> None:
        guest = fakes.FakeGuest(
            {
                '/lib/systemd/system/getty@.service': '',
                '/lib/systemd/system/serial-getty@.service': '',
            },
            links={
                f'{_WANTS}/serial-getty@hvc0.service': '/x',
                f'{_UNITS}/getty@tty1.service': '/dev/null',
                f'{_UNITS}/serial-getty@ttyS0.service': '/dev/null',
            },
            system=fakes.operating_system(),
        )
        check = console.Console(fakes.request())
        found, changes, left = fakes.run(check, guest)
        self.assertIs(model.Severity.WARNING, found[0].severity)
        self.assertIn('getty@tty1.service is masked', found[0].evidence)
        self.assertEqual(
            {
                f'{_WANTS}/getty@tty1.service':
                    '/lib/systemd/system/getty@.service',
                f'{_WANTS}/serial-getty@ttyS0.service':
                    '/lib/systemd/system/serial-getty@.service',
            },
            guest.links,
        )  # fmt: skip
        self.assertEqual(5, len(changes))
        self.assertIn(
            f'ln -s -- /dev/null {_UNITS}/getty@tty1.service',
            [change.undo for change in changes],
        )
        self.assertEqual([], left)

    def test_upstart_and_securetty(self) -> None:
        guest = fakes.FakeGuest(
            {
                '/etc/init/hvc0.conf': 'start on x\nexec /sbin/getty hvc0\n',
                '/etc/securetty': 'tty1\nhvc0\n',
            },
            system=fakes.operating_system(init='upstart'),
        )
        check = console.Console(fakes.request())
        found, _changes, left = fakes.run(check, guest)
        self.assertEqual(
            {'/etc/init/hvc0.conf', '/etc/securetty'},
            {finding.subject for finding in found},
        )
        self.assertEqual([], left)
        self.assertEqual(
            'manual\n', guest.read_text('/etc/init/hvc0.override')
        )
        self.assertIn('getty ttyS0', guest.read_text('/etc/init/ttyS0.conf'))

    def test_kernel(self) -> None:
        path = '/boot/grub/grub.cfg'
        guest = fakes.FakeGuest(
            {path: 'linux /vmlinuz ro console=hvc0\n'},
            system=fakes.operating_system(),
        )
        found, _changes, left = fakes.run(
            console.Console(fakes.request()), guest
        )
        self.assertEqual(f'{path}:1: console=hvc0', found[0].evidence)
        self.assertEqual([], left)


class NetworkTest(unittest.TestCase):
    def setUp(self) -> None:
        super().setUp()
        nic = model.Nic('eth0', '00:16:3e:00:00:01')
        self.check = network.PersistentNet(fakes.request(nics=(nic,)))
        self.files: dict[str, str | bytes] = {
            '/lib/systemd/systemd-udevd': '',
            '/lib/systemd/network/99-default.link': '',
            '/boot/grub/grub.cfg': 'linux /vmlinuz ro\n',
        }

    def _guest(self, **files: str) -> fakes.FakeGuest:
        return fakes.FakeGuest(
            {**self.files, **files}, system=fakes.operating_system()
        )

    def test_rules(self) -> None:
        path = '/etc/udev/rules.d/70-persistent-net.rules'
        guest = self._guest(
            **{path: '# c\nATTR{address}=="00", NAME="eth0"\nKERNEL=="x"\n'}
        )
        found, _changes, left = fakes.run(self.check, guest)
        self.assertTrue(found[0].evidence.startswith(f'{path}:2: ATTR'))
        self.assertEqual([], left)
        self.assertEqual(
            '# c\n# ATTR{address}=="00", NAME="eth0"\nKERNEL=="x"\n',
            guest.read_text(path),
        )

    def test_eth0_needs_net_ifnames(self) -> None:
        for path, text in (
            ('/etc/network/interfaces', 'auto lo\niface eth0 inet dhcp\n'),
            ('/etc/network/interfaces.d/a', 'allow-hotplug eth0\n'),
            ('/etc/sysconfig/network-scripts/ifcfg-eth0', 'DEVICE="eth0"\n'),
            ('/etc/netplan/a.yaml', 'network:\n  ethernets:\n    eth0:\n'),
            ('/etc/systemd/network/a.network', '[Match]\nName=eth0\n'),
        ):
            with self.subTest(path=path):
                guest = self._guest(**{path: text})
                found, _changes, left = fakes.run(self.check, guest)
                self.assertIn(path, found[0].evidence)
                self.assertEqual([], left)
                self.assertEqual(
                    'linux /vmlinuz ro net.ifnames=0\n',
                    guest.read_text('/boot/grub/grub.cfg'),
                )

    def test_nothing_to_do(self) -> None:
        for files in (
            {'/etc/network/interfaces': 'iface ens3 inet dhcp\n'},
            {
                '/etc/network/interfaces': 'iface eth0 inet dhcp\n',
                '/boot/grub/grub.cfg': 'linux /vmlinuz net.ifnames=0\n',
            },
        ):
            guest = self._guest(**files)
            self.assertEqual([], list(self.check.diagnose(guest)))

    def test_an_old_udev_keeps_eth0(self) -> None:
        del self.files['/lib/systemd/network/99-default.link']
        guest = self._guest(
            **{'/etc/network/interfaces': 'iface eth0 inet dhcp\n'}
        )
        self.assertEqual([], list(self.check.diagnose(guest)))

    def test_names_of_xen(self) -> None:
        guest = self._guest(
            **{'/etc/network/interfaces': 'auto enX0\nauto enX1\n'}
        )
        found, _changes, left = fakes.run(self.check, guest)
        self.assertEqual(2, len(found))
        self.assertIn(
            'MACAddress=00:16:3e:00:00:01\n\n[Link]\nName=enX0\n',
            guest.read_text('/etc/systemd/network/10-xenimport-enX0.link'),
        )
        # The package says nothing of a second card.
        self.assertEqual(['enX1'], [finding.subject for finding in left])

    def test_hwaddr_is_reported(self) -> None:
        path = '/etc/sysconfig/network-scripts/ifcfg-ens3'
        guest = self._guest(**{path: 'HWADDR=00:16:3E:AA:BB:CC\n'})
        (finding,) = self.check.diagnose(guest)
        self.assertIs(model.Severity.NOTE, finding.severity)
        self.assertIn('--mac-address 00:16:3e:aa:bb:cc', finding.fix)
        self.assertIsNone(finding.repair)


class XenToolsTest(unittest.TestCase):
    def setUp(self) -> None:
        super().setUp()
        self.check = xen_tools.XenGuestTools(fakes.request())

    def test_services(self) -> None:
        unit = f'{_UNITS}/multi-user.target.wants/xe-daemon.service'
        guest = fakes.FakeGuest(
            {'/etc/init.d/xe-linux-distribution': ''},
            links={
                unit: '/lib/systemd/system/xe-daemon.service',
                '/etc/rc2.d/S15xe-linux-distribution':
                    '../init.d/xe-linux-distribution',
                '/etc/rc2.d/S20ssh': '../init.d/ssh',
            },
            system=fakes.operating_system(),
        )  # fmt: skip
        found, changes, left = fakes.run(self.check, guest)
        self.assertIs(model.Severity.NOTE, found[0].severity)
        self.assertEqual([], left)
        self.assertEqual(
            {'/etc/rc2.d/K85xe-linux-distribution', '/etc/rc2.d/S20ssh'},
            set(guest.links),
        )
        self.assertEqual(
            f'ln -s -- /lib/systemd/system/xe-daemon.service {unit}',
            changes[0].undo,
        )

    def test_xenfs(self) -> None:
        guest = fakes.FakeGuest(
            {'/etc/fstab': 'UUID=1 / ext4\nxenfs /proc/xen xenfs defaults\n'},
            system=fakes.operating_system(),
        )
        found, _changes, left = fakes.run(self.check, guest)
        self.assertIs(model.Severity.BLOCKER, found[0].severity)
        self.assertEqual([], left)
        self.assertEqual(
            'UUID=1 / ext4\n# xenfs /proc/xen xenfs defaults\n',
            guest.read_text('/etc/fstab'),
        )


class DriverTest(unittest.TestCase):
    def test_matches(self) -> None:
        remediation = driver.LinuxRemediation()
        self.assertTrue(remediation.matches(fakes.operating_system()))
        self.assertFalse(
            remediation.matches(fakes.operating_system(family='windows'))
        )
        self.assertFalse(remediation.matches(None))

    def test_order(self) -> None:
        ids = [c.id for c in driver.LinuxRemediation().checks(fakes.request())]
        self.assertEqual(len(ids), len(set(ids)))
        for first, second in (
            # A rebuild copies the blacklists.
            ('linux.module-blacklist', 'linux.initramfs-virtio'),
            # Arguments go into a grub.cfg that may have to be made.
            ('linux.boot-configuration', 'linux.console'),
            ('linux.boot-configuration', 'linux.persistent-net'),
        ):
            self.assertLess(ids.index(first), ids.index(second))
