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


"""Changes one hive with hivex: a process of its own.

Run by :mod:`.hive_worker` as ``python -m xenimport.guest.hive_writer
PATH``, with the edits on its standard input, each a JSON list on a line:
``[key, name or None, type or None, data as hexadecimal digits or None]``,
as :mod:`.hive_worker` explains. hivex aborts the whole process where two
records of a damaged hive share a cell (an assertion in its
``mark_block_unused``), and the worker process must outlive that.

Ends with 0; or with 1 and what went wrong on standard error.
"""

from __future__ import annotations

import json
import sys
import typing

#: One edit as it comes in.
Edit = tuple[str, str | None, int | None, str | None]


def _node(hive: typing.Any, path: str) -> int:
    """The node of a key that is there."""
    node: int = hive.root()
    for name in path.split('\\') if path else []:
        child = hive.node_get_child(node, name)
        if child is None:
            raise RuntimeError(f'there is no key {path}')
        node = child
    return node


def apply(hive: typing.Any, edit: Edit) -> None:
    """Do one edit."""
    path, name, kind, data = edit
    if name is not None:
        _set_value(hive, _node(hive, path), name, kind, data)
        return
    above, _, last = path.rpartition('\\')
    parent = _node(hive, above)
    if kind is None:
        hive.node_delete_child(_node(hive, path))
    else:
        hive.node_add_child(parent, last)


def _set_value(
    hive: typing.Any, node: int, name: str, kind: int | None, data: str | None
) -> None:
    """Set a value in its place, or leave it out where it has no type.

    hivex can only write all values of a key; their order is kept.
    """
    values: list[dict[str, typing.Any]] = []
    place = None
    for value in hive.node_values(node):
        old_name = hive.value_key(value)
        if old_name.upper() == name.upper():
            name = old_name
            place = len(values)
            continue
        old_kind, old_data = hive.value_value(value)
        values.append({'key': old_name, 't': old_kind, 'value': old_data})
    if kind is not None and data is not None:
        new = {'key': name, 't': kind, 'value': bytes.fromhex(data)}
        values.insert(len(values) if place is None else place, new)
    hive.node_set_values(node, values)


def main() -> int:
    """Apply the edits and write the hive."""
    import hivex

    try:
        hive = hivex.Hivex(sys.argv[1], write=True)
        for line in sys.stdin:
            apply(hive, json.loads(line))
        hive.commit(None)
    except (OSError, RuntimeError, ValueError, TypeError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == '__main__':
    sys.exit(main())
