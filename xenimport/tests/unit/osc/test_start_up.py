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

"""``openstack --help`` imports every command: ours must weigh nothing."""

import importlib.metadata
import subprocess
import sys
import unittest

_SCRIPT = """
import sys
from osc_lib.cli import format_columns, parseractions
from osc_lib.command import command
before = set(sys.modules)
import importlib
for name in sys.argv[1:]:
    importlib.import_module(name)
print('\\n'.join(sorted(set(sys.modules) - before)))
"""


class StartUpTest(unittest.TestCase):
    def test_commands_import_nothing_heavy(self):
        commands = {
            entry_point.value.partition(':')[0]
            for entry_point in importlib.metadata.entry_points(
                group='openstack.image.v2'
            )
            if entry_point.value.startswith('xenimport.')
        }
        self.assertEqual(5, len(commands))
        done = subprocess.run(
            [sys.executable, '-c', _SCRIPT, *commands],
            capture_output=True,
            text=True,
            check=True,
        )
        ours = {'xenimport', 'xenimport.osc', 'xenimport.osc.base'}
        self.assertEqual(commands | ours, set(done.stdout.split()))
