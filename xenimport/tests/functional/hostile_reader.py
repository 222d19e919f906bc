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

"""Reads packages in a process of its own, within bounds and watched.

Started as ``python -m`` with the packages as JSON on standard input: a
list of lists of paths. Prints a line of JSON about each.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence
import json
import os
import resource
import sys
import sysconfig
import traceback
import typing

# What the product imports only when it is needed is imported before the
# watch begins.
import defusedxml.ElementTree  # noqa: F401
import isal.isal_zlib  # noqa: F401
import zstandard  # noqa: F401

from xenimport import exceptions
from xenimport import stream_http
from xenimport.tests import reading

_LIMIT = 512 << 20
#: Directories of Python's own files, and of libraries.
_LIBRARIES = tuple(
    os.path.realpath(path) + '/'
    for path in (
        *(path for path in sys.path if path),
        sysconfig.get_path('stdlib'),
        sysconfig.get_path('platlib'),
        '/lib',
        '/usr/lib',
        '/proc/self',
    )
)


class Watch:
    """Notes every file that is opened, and every program started."""

    def __init__(self) -> None:
        self.opened: list[str] = []
        self.programs: list[str] = []
        self._active = False
        sys.addaudithook(self._heard)

    def start(self) -> None:
        """Begin anew."""
        self.opened, self.programs = [], []
        self._active = True

    def stop(self) -> None:
        """Note nothing more."""
        self._active = False

    def _heard(self, event: str, arguments: tuple[typing.Any, ...]) -> None:
        if not self._active:
            return
        if event in ('open', 'os.listdir', 'os.scandir'):
            path = arguments[0]
            if isinstance(path, (str, bytes)):
                name = os.path.abspath(os.fsdecode(path))
                if not name.startswith(_LIBRARIES):
                    self.opened.append(name)
        elif event == 'subprocess.Popen':
            self.programs.append(' '.join(map(str, arguments[1])))
        elif event == 'socket.connect':
            self.opened.append(str(arguments[1]))


def _report(watch: Watch, function: Callable[[], object]) -> dict[str, object]:
    """What came of it."""
    report: dict[str, object] = {'id': None, 'text': '', 'foreign': ''}
    watch.start()
    try:
        function()
    except exceptions.XenImportError as error:
        report |= {'id': error.id, 'text': str(error)}
    except BaseException:
        report['foreign'] = traceback.format_exc()
    watch.stop()
    return report | {'opened': watch.opened, 'programs': watch.programs}


def _meddle(path: str, how: str) -> None:
    """Do to a file what nobody should while it is read."""
    if how == 'append':
        with open(path, 'ab') as file:
            file.write(b'x' * 512)
    elif how == 'truncate':
        os.truncate(path, os.stat(path).st_size // 2)
    elif how == 'empty':
        os.truncate(path, 0)
    elif how == 'rewrite':
        with open(path, 'r+b') as file:
            file.seek(-1, os.SEEK_END)
            last = file.read(1)
            file.seek(-1, os.SEEK_END)
            file.write(last)
    elif how == 'replace':
        os.rename(path, f'{path}.old')
        os.symlink('/dev/zero', path)
    elif how == 'remove':
        os.unlink(path)


def _read(paths: Sequence[str], how: str, target: str) -> object:
    if not how:
        return reading.read(paths)
    return reading.read(paths, lambda: _meddle(target, how))


def main() -> None:
    """Read what standard input names."""
    jobs = json.load(sys.stdin)
    reading.sources()
    reading.converters()
    # What Python and its libraries open once, they open here.
    stream_http.shown_url('http://localhost/')
    soft = resource.getrlimit(resource.RLIMIT_AS)[1]
    resource.setrlimit(resource.RLIMIT_AS, (_LIMIT, soft))
    watch = Watch()
    for paths, how, target in jobs:
        report = _report(watch, lambda: _read(paths, how, target))  # noqa: B023
        print(json.dumps(report), flush=True)


if __name__ == '__main__':
    main()
