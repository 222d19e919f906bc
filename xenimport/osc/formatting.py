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

"""How findings, changes and the report look to a person."""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Sequence
import textwrap
import typing

from cliff import columns

from xenimport import exceptions
from xenimport import model

#: Columns of a line inside a table.
_WIDTH = 96
#: Columns of a line that is a row of a table of its own.
_WIDE = 120
_CELL = 40
#: Characters of one cell of the table of drivers.
_DRIVER_CELL = 24
_UNITS = ('B', 'KiB', 'MiB', 'GiB', 'TiB')


def size(count: float | None) -> str:
    """Bytes for a person: ``1.5 GiB``."""
    if count is None:
        return 'unknown'
    for unit in _UNITS:
        if abs(count) < 1024 or unit == _UNITS[-1]:
            break
        count /= 1024
    return f'{count:.0f} {unit}' if unit == 'B' else f'{count:.1f} {unit}'


def lines_of(texts: Iterable[str]) -> str:
    """One line a text, none of which can forge another."""
    return '\n'.join(exceptions.one_line(text) for text in texts)


def finding(item: model.Finding) -> str:
    """One finding, in the form that errors have too."""
    lines = [f'{item.id}  {item.severity.value}  {item.title}']
    lines.append(f'Evidence: {item.evidence}')
    if item.repair:
        lines.append(f'Repair: {item.repair}')
    lines.append(f'Fix: {item.fix}')
    if item.loss:
        lines.append(f'Override: --accept {item.id} ({item.loss})')
    return lines_of(lines)


def findings(items: Iterable[model.Finding]) -> str:
    """Findings, an empty line between two."""
    return '\n\n'.join(finding(item) for item in items) or 'none'


def changes(items: Iterable[model.Change]) -> str:
    """Changes, each with its reason and where it was made."""
    return (
        lines_of(
            f'{item.finding}  {item.path} on {item.target}: {item.reason}'
            for item in items
        )
        or 'none'
    )


def steps(items: Iterable[model.Step]) -> str:
    """Steps with seconds, and bytes where they moved any."""
    return '\n'.join(
        f'{item.name}  {item.seconds:.1f} s'
        + (f'  {size(item.bytes)}' if item.bytes else '')
        for item in items
    )


def source(item: typing.Mapping[str, typing.Any]) -> str:
    """What the package is."""
    lines = [
        f'{item["path"]} ({item["format"]}'
        + (f', written by {item["creator"]})' if item['creator'] else ')'),
        f'name: {item["name"]}',
        f'vCPUs: {item["vcpus"] or "not stated"}, '
        f'memory: {size(item["memory"])}, '
        f'firmware: {item["firmware"] or "not stated"}',
    ]
    for nic in item['nics']:
        lines.append(f'NIC {nic["name"]}: {nic["mac"]} on {nic["network"]}')
    for disk in item['disks']:
        lines.append(
            f'disk {disk["index"]}: {disk["file"]}, {disk["format"]}'
            + (f' by {disk["creator"]}' if disk['creator'] else '')
            + f', {size(disk["virtual_size"])}'
        )
    if item['bytes_read'] is not None:
        lines.append(f'read: {size(item["bytes_read"])}')
    return lines_of(lines)


#: The columns of ``dism /get-drivers``, with what a report calls them.
_DRIVERS = (
    ('Published Name', 'published_name'),
    ('Original File Name', 'original_file_name'),
    ('Inbox', 'inbox'),
    ('Class Name', 'class_name'),
    ('Provider Name', 'provider_name'),
    ('Date', 'date'),
    ('Version', 'version'),
)


def guest(item: typing.Mapping[str, typing.Any] | None) -> str:
    """What the guest is."""
    if item is None:
        return 'no operating system found, or not looked for'
    first = f'{item["distribution"]} {item["version"]}, '
    first += item['architecture']
    # libguestfs gives Debian's bare version for the product.
    if item['product'] != item['version']:
        first += f' ({item["product"]})'
    place = f'host name: {item["hostname"]}, root: {item["root"]}'
    if item['family'] == 'windows':
        return lines_of([first, place, *drivers(item.get('drivers', ()))])
    return lines_of(
        [
            first,
            f'{place}, init: {item["init"]}',
            f'kernels: {", ".join(item["kernels"]) or "none"}',
        ]
    )


def drivers(
    rows: Sequence[typing.Mapping[str, typing.Any]],
) -> list[str]:
    """Driver packages as ``dism /get-drivers /format:table`` lists them.

    :param rows: as a report has them
    :returns: lines; one alone where there are none
    """
    if not rows:
        return ['driver packages of other vendors: none']
    table = [[heading for heading, _field in _DRIVERS]]
    for row in rows:
        table.append(
            [_driver_cell(row[field]) for _heading, field in _DRIVERS]
        )
    widths = [
        max(len(line[column]) for line in table)
        for column in range(len(_DRIVERS))
    ]
    return [
        ' | '.join(
            text.ljust(width) for text, width in zip(line, widths, strict=True)
        ).rstrip()
        for line in table
    ]


def _driver_cell(value: typing.Any) -> str:
    if isinstance(value, bool):
        return 'Yes' if value else 'No'
    return exceptions.one_line(str(value or ''))[:_DRIVER_CELL]


def wrapped(text: str, width: int = _WIDTH) -> str:
    """Each line cut at white space into lines that a table can hold."""
    return '\n'.join(
        textwrap.fill(
            line,
            width,
            subsequent_indent='  ',
            break_long_words=False,
            break_on_hyphens=False,
        )
        for line in text.split('\n')
    )


class View(columns.FormattableColumn[typing.Any]):
    """Data for machines, with a text for people.

    :param value: what JSON and YAML show
    :param text: what a table shows
    :param width: columns that it may take there
    """

    def __init__(
        self, value: typing.Any, text: str, width: int = _WIDTH
    ) -> None:
        super().__init__(value)
        self._text = text
        self._width = width

    def human_readable(self) -> str:
        return wrapped(self._text, self._width)


def report(
    item: model.Report,
) -> tuple[tuple[str, ...], tuple[typing.Any, ...]]:
    """The whole report as cliff's ShowOne takes it."""
    data = item.as_dict()
    texts = {
        'source': source(item.source),
        'guest': guest(item.guest),
        'findings': findings(item.findings),
        'remaining': _ids(item.remaining),
        'changes': changes(item.changes),
        'steps': steps(item.steps),
        # Lines to be copied would be torn apart here: they go to stderr.
        'recipe': f'{len(item.recipe)} line(s)',
        'checks': f'{len(item.checks)} ran',
        'accepted': ', '.join(item.accepted),
        'tool': f'xenimport {item.tool.get("xenimport")}',
        'machine': _appliance(item),
        'images': '\n'.join(image.id for image in item.images),
    }
    names = tuple(data)
    return names, tuple(
        View(data[name], texts[name], _WIDE if name == 'guest' else _WIDTH)
        if name in texts
        else data[name]
        for name in names
    )


def cell(text: str) -> View:
    """A text that is one column among several of a row."""
    return View(text, exceptions.one_line(text), _CELL)


def _appliance(item: model.Report) -> str:
    accelerator = item.machine.get('accelerator')
    if accelerator is None:
        return 'the appliance was not needed'
    return f'the appliance ran on {str(accelerator).upper()}'


def _ids(items: Sequence[model.Finding]) -> str:
    return (
        '\n'.join(f'{item.id}  {item.severity.value}' for item in items)
        or 'none'
    )
