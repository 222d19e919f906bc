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

"""The manifest of an OVF package: a digest for each of its files.

Lines have the form ``SHA256(name)= digest`` (DMTF DSP0243, clause 5.1).
"""

from __future__ import annotations

from collections.abc import Container
from collections.abc import Iterable
import hashlib
import re
from urllib import parse as urls

from xenimport import exceptions
from xenimport import model
from xenimport import stream as stream_room

#: Bytes; a line is about a hundred.
MAX_SIZE = 1024 * 1024

# The name may hold parentheses itself, so it is matched greedily.
_LINE = re.compile(r'^([A-Za-z0-9-]+)\s*\((.*)\)\s*=\s*([0-9A-Fa-f]+)\s*$')
_DIGITS = {'sha1': 40, 'sha256': 64, 'sha512': 128}
#: What "openssl dgst", with which many manifests are made, calls them.
_OPENSSL = {'sha2256': 'sha256', 'sha2512': 'sha512'}
#: The algorithms that a manifest may use, as hashlib names them.
ALGORITHMS = tuple(_DIGITS)


class Manifest:
    """What a package's manifest states.

    :param text: its bytes
    :param where: its name, for errors
    :raises xenimport.exceptions.PackageError: if a line is not understood
    """

    def __init__(self, text: bytes, where: str) -> None:
        self._where = where
        self._digests = parse(text, where)
        # Like a reference, a name may be written as in a URI.
        self._unquoted = {
            urls.unquote(name): digests
            for name, digests in self._digests.items()
        }

    @property
    def names(self) -> tuple[str, ...]:
        """The files that it names."""
        return tuple(self._digests)

    def of(self, name: str) -> tuple[model.Digest, ...]:
        """What it states of a file, by its name beside the descriptor."""
        return self._digests.get(name) or self._unquoted.get(name, ())

    def check(self, name: str, content: bytes) -> None:
        """Compare a file that was read as a whole.

        :raises xenimport.exceptions.PackageError: if it differs
        """
        stated = self.of(name)
        found = [
            model.Digest(
                digest.algorithm,
                hashlib.new(
                    digest.algorithm, content, usedforsecurity=False
                ).hexdigest(),
            )
            for digest in stated
        ]
        stream_room.compare_digests(f'{self._where}: {name}', stated, found)

    def check_complete(self, present: Container[str]) -> None:
        """Make sure that every file that it names is there.

        :raises xenimport.exceptions.PackageError: if one is not
        """
        for name in self._digests:
            if name not in present and urls.unquote(name) not in present:
                raise exceptions.PackageError(
                    'package.manifest-missing-file',
                    'The manifest names a file that the package does not hold',
                    where=self._where,
                    expected=f'a file {name[:200]!r} in the package',
                    found='no such file',
                    fix='copy the package again, or export it again; where '
                    'the file was left out on purpose, use '
                    '--no-verify-manifest',
                )


def parse(text: bytes, where: str) -> dict[str, tuple[model.Digest, ...]]:
    """The stated digests by file name.

    :param where: the manifest's name, for errors
    :raises xenimport.exceptions.PackageError: if a line is not understood
    """
    digests: dict[str, tuple[model.Digest, ...]] = {}
    lines = text.decode('utf-8', 'replace').splitlines()
    for number, line in enumerate(lines, 1):
        if not line.strip('\0 \t\ufeff'):
            continue
        match = _LINE.match(line.strip('\0 \t\ufeff'))
        algorithm = match[1].lower().replace('-', '') if match else ''
        algorithm = _OPENSSL.get(algorithm, algorithm)
        if match is None or len(match[3]) != _DIGITS.get(algorithm):
            raise exceptions.PackageError(
                'package.manifest-invalid',
                'A line of the manifest is not understood',
                where=f'{where}, line {number}',
                expected='SHA1(name)= digest, or SHA256 or SHA512',
                found=repr(line[:120]),
                fix='export the guest again',
            )
        digest = model.Digest(algorithm, match[3].lower())
        name = match[2].strip().removeprefix('./')
        digests[name] = (*digests.get(name, ()), digest)
    return digests


def name_for(descriptor: str, names: Iterable[str]) -> str | None:
    """Which of the names is that of a descriptor's manifest, if any is."""
    wanted = descriptor.rpartition('.')[0].lower() + '.mf'
    for name in names:
        if name.lower() == wanted:
            return name
    return None
