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

"""Words that a person may paste into a shell.

Names from a package or guest are hostile input: whatever is printed as a
command must stay one word a word.
"""

from __future__ import annotations

import shlex
import string


def quote(text: str) -> str:
    """The text as one word of bash, ksh or zsh, on one line.

    Text with characters that do not print (line feeds, terminal escapes,
    bidirectional overrides) is written in the shell's ``$'...'`` form.
    """
    if text.isprintable():
        return shlex.quote(text)
    word = ''
    after_escape = False
    for character in text:
        if not character.isprintable():
            data = character.encode('utf-8', 'surrogateescape')
            word += ''.join(f'\\x{byte:02x}' for byte in data)
            after_escape = True
            continue
        if after_escape and character in string.hexdigits:
            # It would belong to the escape: begin another quotation.
            word += "'$'"
        word += '\\' + character if character in "'\\" else character
        after_escape = False
    return f"$'{word}'"


def join(*words: str) -> str:
    """The words, each quoted, as one command line."""
    return ' '.join(quote(word) for word in words)
