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

"""Which modules a driver needs, from the indexes that depmod makes.

Source of facts: modules.dep(5) and modprobe.d(5). The indexes are read
as data: the modules themselves, hostile as they may be, never are.
"""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Mapping
import posixpath
import re

from xenimport.remediation import text_lines

#: The drivers of a bus: what the guest needs before its root is mounted.
BUS_DRIVERS: Mapping[str, tuple[str, ...]] = {
    'auto': ('virtio_pci', 'virtio_blk', 'virtio_scsi', 'sd_mod'),
    'virtio': ('virtio_pci', 'virtio_blk'),
    'scsi': ('virtio_pci', 'virtio_scsi', 'sd_mod'),
    'sata': ('ahci', 'sd_mod'),
    'ide': ('ata_piix', 'sd_mod'),
}
#: Useful in an initramfs, but the root can bring it.
EXTRA_DRIVERS = ('virtio_net',)

_SUFFIX = re.compile(r'\.ko(\.(gz|xz|zst|bz2|lzma))?\Z')
_RULE = re.compile(r'\s*(blacklist|install|alias)\s+(\S+)(?:\s+(.*\S))?\s*\Z')
_NOTHING = re.compile(r'(/usr)?/?(s?bin/)?(true|false|:)\b.*\Z')


def name_of(path: str) -> str:
    """A module's name, as lsmod prints it, from the path of its file."""
    return _SUFFIX.sub('', posixpath.basename(path)).replace('-', '_')


def parse_dependencies(text: str) -> dict[str, tuple[str, tuple[str, ...]]]:
    """The path and the dependencies' paths, by module, of modules.dep."""
    found = {}
    for line in text_lines.without_ends(text):
        path, colon, rest = line.partition(':')
        if colon and _SUFFIX.search(path):
            found[name_of(path)] = (path, tuple(rest.split()))
    return found


def parse_builtin(text: str) -> set[str]:
    """The modules of modules.builtin, which are part of the kernel."""
    return {name_of(line) for line in text.split()}


def closure(
    names: Iterable[str],
    dependencies: Mapping[str, tuple[str, tuple[str, ...]]],
) -> list[str]:
    """The paths of the modules and of all they need, each once.

    Modules that modules.dep does not list are left out.
    """
    paths: dict[str, None] = {}
    pending = list(names)[::-1]
    seen = set()
    while pending:
        name = pending.pop()
        if name in seen or name not in dependencies:
            continue
        seen.add(name)
        path, needed = dependencies[name]
        paths[path] = None
        pending.extend(name_of(other) for other in needed)
    return list(paths)


def blocks(line: str, drivers: Iterable[str]) -> str | None:
    """The driver that a line of modprobe.d keeps from loading."""
    matched = _RULE.match(line)
    if not matched:
        return None
    word, subject, rest = matched.groups()
    name = subject.replace('-', '_')
    if name not in set(drivers):
        return None
    if word == 'blacklist':
        return name
    if word == 'install' and _NOTHING.match(rest or ''):
        return name
    if word == 'alias' and rest in ('off', 'null'):
        return name
    return None


def unblocked(text: str, drivers: Iterable[str]) -> str:
    """The text with each line that blocks a driver made a comment."""
    wanted = tuple(drivers)
    return ''.join(
        f'# {line}' if blocks(line, wanted) else line
        for line in text_lines.with_ends(text)
    )


def blocking_lines(
    text: str, drivers: Iterable[str]
) -> list[tuple[int, str, str]]:
    """Line number, line and driver of each line that blocks one."""
    wanted = tuple(drivers)
    found = []
    for number, line in enumerate(text_lines.without_ends(text), start=1):
        driver = blocks(line, wanted)
        if driver:
            found.append((number, line.strip(), driver))
    return found


def with_names(text: str, names: Iterable[str]) -> str:
    """A list of modules, one a line, with those names in it."""
    present = {
        line.split()[0].replace('-', '_')
        for line in text_lines.without_ends(text)
        if line.split() and not line.lstrip().startswith('#')
    }
    added = [name for name in names if name not in present]
    if not added:
        return text
    if text and not text.endswith('\n'):
        text += '\n'
    return text + ''.join(f'{name}\n' for name in added)
