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


"""Mutants of registry hives and of their logs: read, recovered, written."""

from __future__ import annotations

import importlib.util
import os
import re
import struct
import typing
import unittest

import hypothesis

from xenimport import exceptions
from xenimport.guest import hive_worker
from xenimport.tests.fuzz import cases
from xenimport.tests.fuzz import mutation
from xenimport.tests import hives

_TREE: dict[str, list[hives.Value]] = {
    'Select': [('Current', 4, hives.dword(1)), ('x', 1, hives.sz('text'))],
    'Set\\A': [('large', 3, bytes(range(256)) * 66)],
    'Set\\Ünï': [('ключ', 7, hives.multi_sz('a', 'b'))],
    **{f'Many\\k{number}': [] for number in range(9)},
}
#: Numbers of a key's record, from its signature on, and their lengths.
_KEY = ((-4, 4), (2, 2), (16, 4), (20, 4), (28, 4), (36, 4), (40, 4),
        (44, 4), (48, 4), (72, 2), (74, 2))  # fmt: skip
_VALUE = ((-4, 4), (2, 2), (4, 4), (8, 4), (12, 4), (16, 2))
_LIST = ((-4, 4), (2, 2), (4, 4), (8, 4))
_BASE = ((4, 4), (8, 4), (12, 8), (20, 4), (24, 4), (28, 4), (36, 4),
         (40, 4), (44, 4), (144, 4))  # fmt: skip
_BIN = ((4, 4), (8, 4))
_ENTRY = ((4, 4), (8, 4), (12, 4), (16, 4), (20, 4), (40, 4), (44, 4))


def _fields(data: bytes) -> list[mutation.Field]:
    """The numbers of a hive."""
    found: list[mutation.Field] = [
        (offset, length, 'little') for offset, length in _BASE
    ]
    for signature, parts in (
        (b'nk', _KEY),
        (b'vk', _VALUE),
        (b'lh|ri|db|sk', _LIST),
        (b'hbin', _BIN),
    ):
        for match in re.finditer(signature, data):
            found += [
                (match.start() + offset, length, 'little')
                for offset, length in parts
            ]
    return found


def _seal(target: bytearray) -> None:
    if len(target) >= 512:
        target[:512] = hives.sealed(target[:512])


def _clean(target: bytearray) -> None:
    """Have equal sequence numbers, and the checksum."""
    target[8:12] = target[4:8]
    _seal(target)


def _seal_log(target: bytearray) -> None:
    """Set the checksum and all hashes of a log right again."""
    _seal(target)
    offset = 512
    while offset + 40 <= len(target):
        (length,) = struct.unpack_from('<I', target, offset + 4)
        body = bytes(target[offset + 40 : offset + max(40, length)])
        target[offset + 24 : offset + 32] = hives.marvin32(body)
        head = bytes(target[offset : offset + 32])
        target[offset + 32 : offset + 40] = hives.marvin32(head)
        offset += max(512, length)


def _hives() -> list[mutation.Sample]:
    samples = []
    for leaf in ('lh', 'lf', 'li'):
        data = hives.write(_TREE, leaf=leaf, leaf_limit=4)
        hot = [(0, 160), (4096, 8192)]
        seals = (_seal, _clean, _clean, _clean)
        samples.append(mutation.Sample(leaf, data, _fields(data), hot, seals))
    return samples


_FIRST = hives.write(_TREE)
_SECOND = hives.write({**_TREE, 'New': [('v', 3, bytes(5000))]})
_NEW = hives.dirty(_FIRST, _SECOND)
_OLD = hives.dirty_old(_FIRST, _SECOND)


def _logs() -> list[mutation.Sample]:
    samples = []
    for name, data in (
        ('new', _NEW.logs['.LOG1']),
        ('old', _OLD.logs['.LOG1']),
    ):
        fields: list[mutation.Field] = [
            (offset, length, 'little') for offset, length in _BASE
        ]
        fields += [(512 + at, length, 'little') for at, length in _ENTRY]
        hot = [(0, 48), (512, 600)]
        seals = (_seal, _seal_log, _seal_log)
        samples.append(mutation.Sample(name, data, fields, hot, seals))
    return samples


class HiveFuzzTest(cases.FuzzTest):
    def ask(self, path: str, action: str, **fields: typing.Any) -> typing.Any:
        return self.hives.answer(
            {'action': action, 'subject': '/sda2/H', 'path': path, **fields}
        )

    def read(self, path: str, logs: dict[str, str]) -> typing.Any:
        self.hives = hive_worker.Hives()
        self.ask(path, 'open', logs=logs)
        return self.ask(path, 'read', key='', depth=-1)

    @cases.settings
    @hypothesis.given(mutation.mutants(_hives()))
    def test_hives(self, mutant: mutation.Mutant) -> None:
        path = self.write('hive', mutant.build())
        self.check(self.read, path, {})

    @cases.settings
    @hypothesis.given(mutation.mutants(_logs()))
    def test_logs(self, mutant: mutation.Mutant) -> None:
        dirty = _NEW if mutant.sample.name == 'new' else _OLD
        path = self.write('hive', dirty.hive)
        log = self.write('log', mutant.build())
        self.check(self.read, path, {'.LOG1': log})

    @unittest.skipIf(
        importlib.util.find_spec('hivex') is None, 'python3-hivex is not there'
    )
    @cases.settings
    @hypothesis.given(mutation.mutants(_hives(), most=2))
    def test_writing(self, mutant: mutation.Mutant) -> None:
        path = self.write('hive', mutant.build())
        edits = [
            ('Select', 'Current', 4, hives.dword(2)),
            ('Select', 'x', None, None),
            ('Select\\New', None, 0, None),
            ('Many\\k3', None, None, None),
        ]

        def write() -> typing.Any:
            self.hives = hive_worker.Hives()
            self.ask(path, 'open', logs={})
            before = self.ask(path, 'read', key='', depth=-1)
            self.ask(path, 'write', edits=edits, logs=[])
            return before, self.ask(path, 'read', key='', depth=-1)

        found = self.check(write)
        if found:
            self.compare_trees(*found)
        self.assertNotIn('hive.new', os.listdir(self.directory))

    def compare_trees(self, before: typing.Any, after: typing.Any) -> None:
        """Nothing but the four edits may be different."""
        touched = ('SELECT', 'MANY\\K3')
        old, new = (
            {
                path: values
                for path, values, _ in tree
                if not path.upper().startswith(touched)
            }
            for tree in (before, after)
        )
        self.assertEqual(old, new)
        (values,) = (
            values for path, values, _ in after if path.upper() == 'SELECT'
        )
        select = {name: data for name, _, data in values}
        self.assertEqual(hives.dword(2), select.get('Current'))
        self.assertNotIn('x', select)


class SampleTest(unittest.TestCase):
    """The samples themselves are sound."""

    def test_samples(self) -> None:
        for sample in _hives():
            self.assertEqual(b'regf', sample.data[:4])
        for sample in _logs():
            data = bytearray(sample.data)
            _seal(data)
            self.assertEqual(sample.data, data)
        with self.assertRaises(exceptions.GuestError):
            hive_worker.Hives().answer(
                {
                    'action': 'open',
                    'subject': 'x',
                    'path': '/nonexistent',
                    'logs': {},
                }
            )
