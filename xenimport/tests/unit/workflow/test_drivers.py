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

import os
import tempfile
import types
import typing
from unittest import mock

import unittest

from oslo_config import cfg
from stevedore import extension

from xenimport import driver
from xenimport import exceptions
from xenimport import model
from xenimport import opts
from xenimport.source import base
from xenimport.workflow import drivers


class Tuned(driver.Driver):
    OPTS = (cfg.IntOpt('threads', default=2, min=1),)
    handles = 'tuned things'


class FakeSource(base.Source):
    handles = 'fake packages'

    def __init__(self, knows):
        super().__init__()
        self.knows = knows

    def probe(self, path):
        return self.knows

    def open(self, path, request=base.DEFAULT):
        return f'opened {path} with {request}'

    def probe_stream(self, stream):
        return self.knows

    def open_stream(self, stream, request=base.DEFAULT):
        return f'read {stream.where}'


def configuration(test, text):
    directory = tempfile.TemporaryDirectory()
    test.addCleanup(directory.cleanup)
    path = os.path.join(directory.name, 'xenimport.conf')
    with open(path, 'w') as stream:
        stream.write(text)
    return opts.load([path])


class OptionsTest(unittest.TestCase):
    def test_default_and_configured_value(self):
        for text, expected in (
            ('', 2),
            ('[converter_tuned]\nthreads = 5\n', 5),
        ):
            conf = configuration(self, text)
            self.assertEqual(
                {'threads': expected},
                drivers.options(conf, 'converter', 'tuned', Tuned),
            )

    def test_wrong_value_names_group_and_fix(self):
        conf = configuration(self, '[converter_tuned]\nthreads = 0\n')
        with self.assertRaises(exceptions.ConfigurationError) as caught:
            drivers.options(conf, 'converter', 'tuned', Tuned)
        self.assertIn('[converter_tuned]', caught.exception.where)
        self.assertEqual(2, caught.exception.exit_code)

    def test_wrong_common_value_is_found_when_loaded(self):
        with self.assertRaises(exceptions.ConfigurationError) as caught:
            configuration(self, '[import_xen]\ncopy_threads = none\n')
        self.assertEqual('configuration.invalid', caught.exception.id)


class LoadTest(unittest.TestCase):
    def manager(self, *names):
        extensions = [
            extension.Extension(name, None, Tuned, None) for name in names
        ]
        return extension.ExtensionManager.make_test_instance(extensions)

    def test_order_is_that_of_the_configuration(self):
        with mock.patch(
            'stevedore.NamedExtensionManager',
            autospec=True,
            return_value=self.manager('one', 'two'),
        ):
            loaded = drivers.load(
                configuration(self, ''), 'converter', ['two', 'one']
            )
        self.assertEqual(['two', 'one'], list(loaded))
        self.assertEqual({'threads': 2}, loaded['one'].options)

    def test_missing_driver_is_named(self):
        with self.assertRaises(exceptions.ConfigurationError) as caught:
            drivers.load(configuration(self, ''), 'converter', ['no-such'])
        self.assertEqual('configuration.driver-missing', caught.exception.id)
        self.assertIn('no-such', str(caught.exception))
        self.assertIn('enabled_converters', caught.exception.where)


class OpenPackageTest(unittest.TestCase):
    def test_first_that_knows_it(self):
        sources = {'a': FakeSource(False), 'b': FakeSource(True)}
        request = base.Request(system='web')
        self.assertEqual(
            f'opened guest.ova with {request}',
            drivers.open_package(sources, ['guest.ova'], request),
        )

    def test_none_knows_it(self):
        with self.assertRaises(exceptions.PackageError) as caught:
            drivers.open_package({'a': FakeSource(False)}, ['guest.ova'])
        self.assertEqual('package.unknown', caught.exception.id)
        self.assertEqual('fake packages', caught.exception.expected)

    def test_several_of_a_kind_that_is_one_file(self):
        with self.assertRaises(exceptions.PackageError) as caught:
            drivers.open_package({'a': FakeSource(True)}, ['a.ova', 'b.vhd'])
        self.assertEqual('package.one-at-a-time', caught.exception.id)
        self.assertIn('2 files', caught.exception.found)

    def test_stream(self):
        arriving = types.SimpleNamespace(where='standard input')
        sources = {'a': FakeSource(False), 'b': FakeSource(True)}
        self.assertEqual(
            'read standard input', drivers.open_stream(sources, arriving)
        )
        with self.assertRaises(exceptions.PackageError) as caught:
            drivers.open_stream({'a': FakeSource(False)}, arriving)
        self.assertEqual('package.unknown', caught.exception.id)

    def test_converter_that_the_package_names(self):
        region = model.Region('guest.xva', 'Ref:1', ())
        named = model.Disk('1', 'disk', 0, region, format='raw')
        converters: typing.Any = {'vhd': 'never asked', 'raw': 'the one'}
        self.assertEqual(
            ('raw', 'the one'),
            drivers.choose_converter(
                converters,
                model.Package('guest.xva', 'xva'),
                named,
            ),
        )

    def test_no_converter_knows_the_disk(self):
        region = model.Region('guest.ova', 'disk.xyz', ())
        with self.assertRaises(exceptions.DiskImageError) as caught:
            drivers.choose_converter(
                {},
                model.Package('guest.ova', 'ova'),
                model.Disk('1', 'disk', 0, region),
            )
        self.assertEqual('disk-image.unknown', caught.exception.id)
        self.assertIn('disk.xyz', caught.exception.where)
