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

"""The files of the guest that hold kernel command lines.

GRUB 2's grub.cfg, GRUB legacy's menu.lst, the generators' defaults in
/etc/default/grub, and the entries of the Boot Loader Specification are
read line by line: Augeas has no lens for grub.cfg, and pygrub, which may
read the files again on Xen, wants one command a line.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Iterable
import dataclasses
import re

from xenimport.guest import guest as guest_room
from xenimport.remediation import text_lines

#: Larger than any boot loader's configuration.
SIZE_LIMIT = 4 << 20
Editor = Callable[[list[str]], list[str]]

_PATTERNS = {
    'grub2': re.compile(
        r'(?P<head>\s*linux(?:16|efi)?\s+(?P<kernel>\S+))(?P<args>.*)\Z'
    ),
    'legacy': re.compile(
        r'(?P<head>\s*(?:(?:kernel|module)\s+(?P<kernel>\S*vmlinu\S*)'
        r'|#\s*kopt\s*=))(?P<args>.*)\Z'
    ),
    'entry': re.compile(
        r'(?P<head>\s*(?:options|append)(?P<kernel>))(?P<args>\s.*)\Z',
        re.IGNORECASE,
    ),
    'default': re.compile(
        r'(?P<head>\s*GRUB_CMDLINE_LINUX(?P<kernel>\w*)=)(?P<args>.*)\Z'
    ),
}
_INITRD = re.compile(r'\s*initrd(?:16|efi)?\s+(?P<path>\S+)')
_DEFAULT = re.compile(
    r'\s*(?:set\s+)?default[=\s]+"?(?P<number>\d{1,4})"?\s*\Z'
)
_TITLE = re.compile(r'\s*(?:title\s+(?P<title>.*\S)|menuentry\s)')


@dataclasses.dataclass(frozen=True)
class BootFile:
    """One such file: ``kind`` is a key of _PATTERNS."""

    path: str
    kind: str


@dataclasses.dataclass(frozen=True)
class Line:
    """One kernel command line.

    :ivar number: of the line in its file, from 1
    :ivar kernel: the path as the boot loader sees it, '' where none
    """

    number: int
    text: str
    kernel: str
    arguments: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Entry:
    """One thing that a boot loader offers to start."""

    title: str
    kernel: str
    arguments: tuple[str, ...]
    initrd: str | None


def find(guest: guest_room.Guest) -> list[BootFile]:
    """The files that this guest has, each once."""
    candidates = [
        BootFile('/boot/grub/grub.cfg', 'grub2'),
        BootFile('/boot/grub2/grub.cfg', 'grub2'),
        BootFile('/boot/grub/menu.lst', 'legacy'),
        BootFile('/boot/grub/grub.conf', 'legacy'),
        BootFile('/boot/extlinux/extlinux.conf', 'entry'),
        BootFile('/boot/extlinux.conf', 'entry'),
        BootFile('/etc/default/grub', 'default'),
    ]
    candidates += [
        BootFile(path, 'entry')
        for path in guest.glob('/boot/loader/entries/*.conf')
    ]
    found = [file for file in candidates if guest.is_file(file.path)]
    kinds = [file.kind for file in found]
    once: dict[str, BootFile] = {}
    for file in found:
        real = file.path
        if kinds.count(file.kind) > 1:
            # Often one is a link to the other.
            real = str(guest.call('realpath', file.path))
        once.setdefault(real, file)
    return list(once.values())


def read(guest: guest_room.Guest, file: BootFile) -> str:
    """Its text, up to SIZE_LIMIT bytes."""
    return guest.read_text(file.path, SIZE_LIMIT)


def _split(kind: str, text: str) -> tuple[list[str], str]:
    """The arguments, and the quotation mark around them if any."""
    text = text.strip()
    if kind == 'default':
        quote = text[:1] if text[:1] in ('"', "'") else ''
        if quote:
            text = text[1:].partition(quote)[0]
        return text.split(), quote or '"'
    return text.split(), ''


def lines(text: str, kind: str) -> list[Line]:
    """Every kernel command line of a file."""
    found = []
    pattern = _PATTERNS[kind]
    for number, line in enumerate(text_lines.without_ends(text), start=1):
        matched = pattern.match(line)
        if matched:
            arguments, _quote = _split(kind, matched['args'])
            kernel = '' if kind == 'default' else matched['kernel'] or ''
            found.append(Line(number, line.strip(), kernel, tuple(arguments)))
    return found


def edit(text: str, kind: str, editor: Editor) -> str:
    """The text with each command line changed by an editor.

    Of /etc/default/grub only GRUB_CMDLINE_LINUX is, as it is part of
    every other one.
    """
    pattern = _PATTERNS[kind]
    edited = []
    for line in text_lines.with_ends(text):
        body = line.rstrip('\r\n')
        matched = pattern.match(body)
        if not matched or (kind == 'default' and matched['kernel']):
            edited.append(line)
            continue
        before, quote = _split(kind, matched['args'])
        after = editor(list(before))
        if after == before:
            edited.append(line)
            continue
        joined = quote + ' '.join(after) + quote
        glue = '' if matched['head'].endswith('=') else ' '
        edited.append(matched['head'] + glue + joined + line[len(body) :])
    return ''.join(edited)


def entries(text: str) -> list[Entry]:
    """What a grub.cfg or menu.lst offers, in its order."""
    found: list[Entry] = []
    title = ''
    for line in text_lines.without_ends(text):
        named = _TITLE.match(line)
        if named:
            title = named['title'] or _quoted(line)
        for kind in ('grub2', 'legacy'):
            matched = _PATTERNS[kind].match(line)
            if matched and matched['kernel']:
                arguments = tuple(matched['args'].split())
                kernel = matched['kernel']
                found.append(Entry(title, kernel, arguments, None))
        initrd = _INITRD.match(line)
        if initrd and found and found[-1].initrd is None:
            found[-1] = dataclasses.replace(found[-1], initrd=initrd['path'])
    return found


def _quoted(line: str) -> str:
    matched = re.search(r'"([^"]*)"|\'([^\']*)\'', line)
    return (matched[1] or matched[2] or '') if matched else ''


def default_entry(text: str) -> int:
    """The number of the entry that starts by itself; 0 if not a number."""
    for line in text_lines.without_ends(text):
        matched = _DEFAULT.match(line)
        if matched:
            return int(matched['number'])
    return 0


def with_argument(argument: str) -> Editor:
    """An editor that adds an argument where it is not there.

    One of the same key, such as another ``net.ifnames=``, is replaced.
    """
    key = argument.partition('=')[0] + '='

    def editor(arguments: list[str]) -> list[str]:
        if argument in arguments:
            return arguments
        kept = [word for word in arguments if not word.startswith(key)]
        return [*kept, argument]

    return editor


def change_all(
    guest: guest_room.Guest, files: Iterable[BootFile], editor: Editor
) -> list[tuple[str, str, str]]:
    """Edit files of the guest.

    :returns: path, the first changed line before and the same after
    """
    changed = []
    for file in files:
        before = read(guest, file)
        after = edit(before, file.kind, editor)
        if after == before:
            continue
        guest.write_text(file.path, after)
        pairs = zip(
            text_lines.without_ends(before),
            text_lines.without_ends(after),
            strict=True,
        )
        old, new = next(pair for pair in pairs if pair[0] != pair[1])
        changed.append((file.path, old.strip(), new.strip()))
    return changed
