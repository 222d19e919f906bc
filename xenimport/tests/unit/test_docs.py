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

"""Every id has its page, every page its id, every option its place.

The ids are found in the source text, not by running it: an id that only
a rare failure uses must be documented as well.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
import functools
import importlib
from importlib import metadata
import pathlib
import re
import unittest

from oslo_config import cfg

import xenimport
from xenimport import driver
from xenimport import opts

_PACKAGE = pathlib.Path(xenimport.__file__).parent
_DOCS = _PACKAGE.parent / 'doc' / 'source'
_MESSAGES = _DOCS / 'messages'
_ID = re.compile(r'[a-z][a-z0-9]*(-[a-z]+)*\.[a-z0-9]+(-[a-z0-9]+)*\Z')
#: What an id starts with. A word that is missing here is found by
#: test_room_of_every_error.
_ROOMS = frozenset(
    (
        'appliance',
        'configuration',
        'directory',
        'disk',
        'disk-image',
        'glance',
        'guest',
        'import',
        'internal',
        'linux',
        'machine',
        'ovf',
        'package',
        'properties',
        'qcow2',
        'raw',
        'registry',
        'report',
        'vdi',
        'verify',
        'virtio-win',
        'vhd',
        'vhdx',
        'vmdk',
        'windows',
        'wrap',
    )
)
#: Endings by which such a word is the name of a file.
_FILES = frozenset(('d', 'img', 'json', 'log', 'raw', 'vhd'))


def _sources() -> Iterator[pathlib.Path]:
    for path in sorted(_PACKAGE.rglob('*.py')):
        if 'tests' not in path.relative_to(_PACKAGE).parts:
            yield path


@functools.cache
def _trees() -> dict[str, ast.Module]:
    return {
        str(path.relative_to(_PACKAGE)): ast.parse(path.read_bytes())
        for path in _sources()
    }


def ids_in(tree: ast.AST) -> set[str]:
    """Every string constant that has the form of an id.

    Ids reach an error through helpers, tables and class attributes, so
    it is not asked how a constant is used.
    """
    found = set()
    for node in ast.walk(tree):
        if not isinstance(node, ast.Constant):
            continue
        value = node.value
        if isinstance(value, str) and _ID.match(value):
            room, _dot, word = value.partition('.')
            if room in _ROOMS and word not in _FILES:
                found.add(value)
    return found


def first_arguments(tree: ast.AST) -> set[str]:
    """The constant ids that errors, findings and checks are made with."""
    found: set[str] = set()
    for node in ast.walk(tree):
        values: list[ast.expr] = []
        if isinstance(node, ast.Call):
            name = ast.unparse(node.func).rpartition('.')[2]
            if name == 'Finding' or name in _error_names():
                values += node.args[:1]
                values += [k.value for k in node.keywords if k.arg == 'id']
        elif isinstance(node, ast.Assign):
            targets = [ast.unparse(target) for target in node.targets]
            if targets == ['id']:
                values.append(node.value)
        found |= {
            value.value
            for value in values
            if isinstance(value, ast.Constant) and isinstance(value.value, str)
        }
    return found


@functools.cache
def _error_names() -> frozenset[str]:
    module = importlib.import_module('xenimport.exceptions')
    return frozenset(
        name
        for name, item in vars(module).items()
        if isinstance(item, type)
        and issubclass(item, module.XenImportError)
        and item is not module.BlockedError
    )


@functools.cache
def _used() -> dict[str, str]:
    """Every id with a file that uses it."""
    return {
        found: name
        for name, tree in _trees().items()
        for found in ids_in(tree)
    }


class MessagesTest(unittest.TestCase):
    def test_every_id_has_a_page(self):
        without = {
            found: name
            for found, name in _used().items()
            if not (_MESSAGES / f'{found}.rst').is_file()
        }
        self.assertEqual({}, without)

    def test_every_page_has_an_id(self):
        pages = {path.stem for path in _MESSAGES.glob('*.rst')} - {'index'}
        self.assertEqual(set(), pages - _used().keys())

    def test_every_page_is_in_the_index(self):
        index = (_MESSAGES / 'index.rst').read_text(encoding='utf-8')
        missing = [
            found for found in _used() if f':doc:`{found}`' not in index
        ]
        self.assertEqual([], missing)

    def test_every_page_says_what_to_do(self):
        for path in sorted(_MESSAGES.glob('*.*.rst')):
            text = path.read_text(encoding='utf-8')
            with self.subTest(path.name):
                self.assertEqual(path.stem, text.split('\n')[1])
                for heading in ('What it means', 'What to do'):
                    self.assertRegex(text, f'\n{heading}\n=+\n\n\\S')

    def test_room_of_every_error(self):
        unknown = {
            found
            for tree in _trees().values()
            for found in first_arguments(tree)
        } - _used().keys()
        self.assertEqual(set(), unknown)


class CollectorTest(unittest.TestCase):
    """The collector itself: it must not pass by finding nothing."""

    def test_errors_helpers_and_checks(self):
        tree = ast.parse(
            "raise exceptions.PackageError('package.one', 'text')\n"
            "_error('vhd.two', 'text')\n"
            "class Check:\n    id = 'linux.three'\n"
            "model.Finding(id='disk.four')\n"
            "TABLE = {404: ('glance.five', 'text')}\n"
        )
        self.assertEqual(
            {
                'package.one',
                'vhd.two',
                'linux.three',
                'disk.four',
                'glance.five',
            },
            ids_in(tree),
        )

    def test_file_names_are_no_ids(self):
        tree = ast.parse("open('disk.raw')\nopen('report.json')\n")
        self.assertEqual(set(), ids_in(tree))

    def test_unknown_room_is_noticed(self):
        tree = ast.parse("exceptions.GuestError('cellar.flooded', 'text')")
        self.assertEqual({'cellar.flooded'}, first_arguments(tree))
        self.assertEqual(set(), ids_in(tree))

    def test_code_is_found(self):
        self.assertIn('remediation/linux/driver.py', _trees())
        self.assertIn('import.blocked', _used())


def _declared_options() -> Iterator[tuple[str, cfg.Opt]]:
    """The options of every driver class in the code, by module."""
    for name, tree in _trees().items():
        has_options = any(
            isinstance(node, ast.ClassDef)
            and any('OPTS' in ast.unparse(item) for item in node.body)
            for node in ast.walk(tree)
        )
        if not has_options:
            continue
        dotted = name.removesuffix('.py').replace('/', '.')
        module = importlib.import_module(f'xenimport.{dotted}')
        for item in vars(module).values():
            if isinstance(item, type) and issubclass(item, driver.Driver):
                for option in item.OPTS:
                    yield name, option


class OptionsTest(unittest.TestCase):
    def test_every_option_of_a_driver_is_listed(self):
        listed = [
            option for _group, group in opts.list_opts() for option in group
        ]
        declared = list(_declared_options())
        self.assertTrue(declared)
        for name, option in declared:
            with self.subTest(f'{name}: {option.dest}'):
                self.assertIn(option, listed)

    def test_every_option_that_is_read_is_listed(self):
        conf = opts.load([])
        general = dict(opts.list_opts())[opts.GROUP]
        self.assertEqual(
            set(conf[opts.GROUP]), {option.dest for option in general}
        )

    def test_every_option_has_help(self):
        for group, options in opts.list_opts():
            for option in options:
                with self.subTest(f'[{group}] {option.dest}'):
                    self.assertRegex(option.help or '', r'\A\w.*\.\Z')


class FormatsTest(unittest.TestCase):
    """The table of formats names tests that exist."""

    def test_every_test_exists(self) -> None:
        text = (_DOCS / 'user' / 'formats.rst').read_text('utf-8')
        named = re.findall(r'``(test_\w+)\.(\w+)\.(test_\w+)``', text)
        self.assertGreater(len(named), 80)
        missing = [
            f'{module}.{case}.{test}'
            for module, case, test in named
            if test not in _tests(module, case)
        ]
        self.assertEqual([], missing)

    def test_every_driver_has_a_row(self) -> None:
        text = (_DOCS / 'user' / 'formats.rst').read_text('utf-8')
        rows = {
            name
            for row in re.findall(r'^   \* - (.+)$', text, re.MULTILINE)
            for name in row.split(', ')
        }
        for namespace in ('xenimport.source', 'xenimport.converter'):
            for point in metadata.entry_points(group=namespace):
                with self.subTest(point.name):
                    self.assertIn(point.name, rows)


@functools.cache
def _tests(module: str, case: str) -> frozenset[str]:
    """The names of the tests of a class, wherever its module is."""
    return frozenset(
        item.name
        for path in (_PACKAGE / 'tests').rglob(f'{module}.py')
        for node in ast.parse(path.read_text('utf-8')).body
        if isinstance(node, ast.ClassDef) and node.name == case
        for item in node.body
        if isinstance(item, ast.FunctionDef)
    )
