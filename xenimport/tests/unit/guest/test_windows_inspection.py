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


"""Windows found without a search, on a guest in memory."""

import struct
import unittest

from xenimport import exceptions
from xenimport.guest import guest as guest_room
from xenimport.guest import registry
from xenimport.guest import windows_inspection
from xenimport.tests.unit.remediation import windows_fakes

VALUE = registry.Value
CONFIG = 'Windows/System32/config'
VERSION = 'Microsoft\\Windows NT\\CurrentVersion'
NTFS, FAT, NOTHING = 'ntfs', 'vfat', ''


def program(machine, at=0x80):
    """The start of a PE file: Microsoft's "PE Format"."""
    data = bytearray(at + 64)
    data[:2] = b'MZ'
    struct.pack_into('<I', data, 0x3C, at)
    struct.pack_into('<4sH', data, at, b'PE\0\0', machine)
    return bytes(data)


def partition(number):
    return guest_room.Partition(number, f'/dev/sda{number}', 0, 0, '0x07')


class InspectTest(unittest.TestCase):
    SOFTWARE = (
        VALUE.sz('ProductName', 'Windows Server 2008 R2 Standard'),
        VALUE.sz('CurrentVersion', '6.1'),
    )

    def guest(
        self,
        *,
        kinds=(NTFS, NTFS),
        software=SOFTWARE,
        files=None,
        systems=(2,),
    ):
        hives = {
            f'/dev/sda{number}': {
                f'{CONFIG}/SYSTEM': {
                    'Select': [VALUE.dword('Current', 2)],
                    'ControlSet002\\Services\\Tcpip\\Parameters': [
                        VALUE.sz('Hostname', 'WEB')
                    ],
                },
                f'{CONFIG}/SOFTWARE': {VERSION: list(software)},
            }
            for number in systems
        }
        names = [f'/dev/sda{n}' for n in range(1, len(kinds) + 1)]
        guest = windows_fakes.FakeWindows(
            {
                **{name: {} for name in names},
                '/dev/sda2': files
                or {'Windows/System32/ntoskrnl.exe': program(0x8664)},
            },
            hives,
            partitions=tuple(map(partition, range(1, len(kinds) + 1))),
            file_systems=dict(zip(names, kinds, strict=True)),
        )
        guest.answers['pread'] = lambda path, count, at: guest.files[path][
            at : at + count
        ]
        return guest

    def test_the_plain_case(self):
        found = windows_inspection.inspect(self.guest())
        self.assertEqual(
            ('windows', 6, 1, 'Windows Server 2008 R2 Standard', 'x86_64'),
            (
                found.family, found.major, found.minor, found.product,
                found.architecture,
            ),
        )  # fmt: skip
        self.assertEqual('/dev/sda2', found.root)
        self.assertEqual({'/': '/dev/sda2'}, found.mountpoints)
        self.assertEqual('WEB', found.hostname)

    def test_windows_10_says_6_3_and_means_10(self):
        found = windows_inspection.inspect(
            self.guest(
                software=(
                    VALUE.sz('CurrentVersion', '6.3'),
                    VALUE.dword('CurrentMajorVersionNumber', 10),
                    VALUE.dword('CurrentMinorVersionNumber', 0),
                )
            )
        )
        self.assertEqual((10, 0), (found.major, found.minor))

    def test_version_that_is_none(self):
        for text in ('', '6', '6.x', '٦.1', '12345.1'):
            found = windows_inspection.inspect(
                self.guest(software=(VALUE.sz('CurrentVersion', text),))
            )
            self.assertEqual((0, 0), (found.major, found.minor), text)

    def test_esp_and_reserved_partition_do_not_disturb(self):
        guest = self.guest(kinds=(FAT, NTFS, NOTHING))
        self.assertEqual('/dev/sda2', windows_inspection.inspect(guest).root)

    def test_anything_else_is_left_to_libguestfs(self):
        for name, guest in (
            ('Linux beside it', self.guest(kinds=(NTFS, NTFS, 'ext4'))),
            ('BitLocker', self.guest(kinds=('BitLocker', NTFS))),
            ('two', self.guest(systems=(1, 2))),
            ('none', self.guest(systems=())),
        ):
            with self.subTest(name):
                self.assertIsNone(windows_inspection.inspect(guest))

    def test_volume_that_cannot_be_mounted(self):
        guest = self.guest()

        def volume(device):
            raise exceptions.GuestError('guest.libguestfs-failed', 'no')

        guest.volume = volume
        self.assertIsNone(windows_inspection.inspect(guest))

    def test_damaged_hives_leave_a_windows_without_a_name(self):
        guest = self.guest()

        def refuse(volume, path, name=''):
            raise registry.damaged(path, 'cut')

        guest.registry.open = refuse
        found = windows_inspection.inspect(guest)
        self.assertEqual('windows', found.family)
        self.assertEqual(('', ''), (found.product, found.hostname))

    def test_architectures(self):
        for machine, expected in (
            (0x014C, 'i386'), (0x8664, 'x86_64'), (0xAA64, 'aarch64'),
            (0x0200, 'unknown'),
        ):  # fmt: skip
            guest = self.guest(
                files={'Windows/System32/cmd.exe': program(machine)}
            )
            self.assertEqual(
                expected, windows_inspection.inspect(guest).architecture
            )

    def test_programs_that_are_none(self):
        for data in (
            b'',
            b'MZ',
            program(0x8664)[:64],
            b'MZ' + b'\xff' * 100,
            b'ELF' + program(0x8664),
            program(0x8664, at=4093)[:4096],
        ):
            guest = self.guest(files={'Windows/System32/ntoskrnl.exe': data})
            self.assertEqual(
                'unknown', windows_inspection.inspect(guest).architecture
            )
