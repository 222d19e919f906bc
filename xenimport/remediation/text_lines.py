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

"""Lines of a guest's file, as the guest's own tools see them.

``str.splitlines`` takes form feeds and Unicode's separators for line ends
as well; a file with one would be numbered and edited wrongly.
"""

from __future__ import annotations

import io


def with_ends(text: str) -> list[str]:
    """The lines, each with its line feed if it has one."""
    return list(io.StringIO(text, newline='\n'))


def without_ends(text: str) -> list[str]:
    """The lines without their line feeds."""
    return [line.removesuffix('\n') for line in with_ends(text)]
