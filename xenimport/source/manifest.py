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

import re

from xenimport import exceptions
from xenimport import model

#: Bytes; a line is about a hundred.
MAX_SIZE = 1024 * 1024

# The name may hold parentheses itself, so it is matched greedily.
_LINE = re.compile(r'^([A-Za-z0-9-]+)\s*\((.*)\)\s*=\s*([0-9A-Fa-f]+)\s*$')
_DIGITS = {'sha1': 40, 'sha256': 64, 'sha512': 128}


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
        name = match[2].strip()
        digests[name] = (*digests.get(name, ()), digest)
    return digests
