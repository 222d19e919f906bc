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

"""Configuration files of the guest as a tree, by Augeas.

Only the lenses that are named are loaded: all of them would take many
seconds in the appliance, and a file that none of our business would be
parsed, with everything that can go wrong there.
"""

from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
import contextlib
import re
import typing

from xenimport import exceptions

if typing.TYPE_CHECKING:
    from xenimport.guest import session

#: Augeas' flags, from its augeas.h: load no file yet, and no lens that is
#: not named.
_NO_LOAD = 1 << 5
_NO_LENS_AUTOLOAD = 1 << 6
_LENS = re.compile(r'[A-Z][A-Za-z0-9_]*')


class Tree:
    """The files below ``/files``: ``/files/etc/fstab/1/spec``."""

    def __init__(self, appliance: session.Appliance) -> None:
        self._appliance = appliance

    def match(self, path: str) -> list[str]:
        """The nodes that an Augeas path expression stands for."""
        found: list[str] = self._appliance.call('aug_match', path)
        return found

    def get(self, path: str) -> str | None:
        """A node's value, None where there is no such node."""
        if not self.match(path):
            return None
        value: str = self._appliance.call('aug_get', path)
        return value

    def set(self, path: str, value: str) -> None:
        """Set a node's value, making the node where there is none."""
        self._appliance.call('aug_set', path, value)

    def rm(self, path: str) -> int:
        """Remove nodes with all below them; how many that were."""
        number: int = self._appliance.call('aug_rm', path)
        return number

    def save(self) -> None:
        """Write the changed files, each one whole or not at all.

        :raises xenimport.exceptions.GuestError: naming the file that
            Augeas cannot write
        """
        try:
            self._appliance.call('aug_save')
        except exceptions.GuestError as error:
            for path, found in self._errors():
                raise exceptions.GuestError(
                    'guest.config-not-saved',
                    'A changed configuration file cannot be written',
                    where=path,
                    expected="a change that the file's syntax allows",
                    found=found,
                    fix='report this as a bug of xenimport, with the file',
                ) from error
            raise

    def check(self) -> None:
        """Raise where a file was not understood."""
        for path, found in self._errors():
            raise exceptions.GuestError(
                'guest.config-not-parsed',
                'A configuration file of the guest cannot be understood',
                where=path,
                expected='the syntax that its manual page gives',
                found=found,
                fix='correct the file in the guest and export it again',
            )

    def _errors(self) -> Iterator[tuple[str, str]]:
        """The path of each file with an error, and what is wrong."""
        for node in self.match('/augeas//error'):
            message = self.get(f'{node}/message') or self.get(node) or ''
            line = self.get(f'{node}/line')
            path = node.removeprefix('/augeas/files')
            yield (
                path.removesuffix('/error'),
                f'line {line}: {message}' if line else message,
            )


@contextlib.contextmanager
def opened(
    appliance: session.Appliance, files: Mapping[str, Sequence[str]]
) -> Iterator[Tree]:
    """The files as a tree; one at a time in an appliance.

    A file that is not there is left out. Nothing is written before
    :meth:`Tree.save`.

    :param files: paths by lens, for example ``{'Fstab': ['/etc/fstab']}``
    :raises xenimport.exceptions.GuestError: if a file cannot be
        understood
    """
    for lens in files:
        if not _LENS.fullmatch(lens):
            raise ValueError(f'{lens!r} is no name of a lens')
    appliance.call('aug_init', '/', _NO_LOAD | _NO_LENS_AUTOLOAD)
    try:
        tree = Tree(appliance)
        for lens, paths in files.items():
            tree.set(f'/augeas/load/{lens}/lens', f'{lens}.lns')
            for number, path in enumerate(paths, 1):
                tree.set(f'/augeas/load/{lens}/incl[{number}]', path)
        appliance.call('aug_load')
        tree.check()
        yield tree
    finally:
        with contextlib.suppress(exceptions.XenImportError):
            # Nothing is lost with it, and the appliance may be dead.
            appliance.call('aug_close')
