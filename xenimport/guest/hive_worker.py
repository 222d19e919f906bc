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


"""What the worker process does with the local copy of a hive.

Requests, by their ``action``; ``path`` is the local copy, ``subject`` the
hive's path in the guest for messages:

``open`` (``logs``: local copies of the logs by ``.LOG1``, ``.LOG2`` or
``.LOG``, or None)
    Validates the hive and replays its logs into the copy. Gives a mapping
    with the fields of :class:`.registry.State`. With ``logs`` None, a
    dirty hive is not opened, only said to be dirty.
``create`` (``root``: name of the root key)
    Writes an empty hive.
``read`` (``key``, ``depth``)
    Gives records as :data:`.registry.Record`, parents first.
``write`` (``edits``: ``[key, name or None, type or None, data or None]``;
``logs``: the first sector and the length of each of the guest's logs)
    Changes the copy, reads it back and compares. An edit with a name sets
    (or, with type None, deletes) a value; one without makes (type 0) or
    deletes (type None) a key. Gives where the copy differs now from the
    guest's file: a list of ``[offset, length]``.
"""

from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Mapping
import contextlib
import dataclasses
import json
import os
import signal
import subprocess
import sys
import typing

from xenimport import exceptions
from xenimport.guest import hive_blank
from xenimport.guest import hive_file
from xenimport.guest import hive_log
from xenimport.guest import hive_reader
from xenimport.guest import hive_tree
from xenimport.guest import registry

#: Bytes of values that one answer holds; a frame takes 64 MiB.
_ANSWER_LIMIT = 32 << 20
#: Keys and values that one answer holds; a frame's document takes 32 MiB.
_ITEMS_LIMIT = 250_000
#: Bytes that are compared, and written to the guest, at a time.
_PAGE = 4096
#: Bytes that one piece of a change may have.
_PIECE = 1 << 20
#: Seconds that hivex may take over one hive.
_WRITE_LIMIT = 300
#: Characters of hivex' complaint that an error shows.
_EVIDENCE = 500


@dataclasses.dataclass
class _Open:
    """One open hive.

    :ivar guests: the file as the guest has it, empty if it has none
    """

    reader: hive_reader.Reader
    data: bytearray
    guests: bytearray


class Hives:
    """The hives that are open in this process."""

    def __init__(self) -> None:
        self._open: dict[str, _Open] = {}

    def answer(self, request: dict[str, typing.Any]) -> typing.Any:
        """Do what a request asks.

        :raises xenimport.exceptions.GuestError: ``registry.*``
        """
        actions = {
            'open': self._do_open,
            'create': self._do_create,
            'read': self._do_read,
            'write': self._do_write,
        }
        subject = request['subject']
        try:
            return actions[request['action']](request, request['path'])
        except MemoryError:
            raise hive_file.too_large(
                subject, 'more than memory can hold', 'its share of it'
            ) from None
        except OSError as error:
            raise exceptions.GuestError(
                'registry.local-copy',
                'The local copy of a registry hive cannot be used',
                where=subject,
                found=error.strerror or str(error),
                fix='make room in the work directory, or choose another '
                'with --work-dir',
            ) from error

    def _do_open(
        self, request: Mapping[str, typing.Any], path: str
    ) -> dict[str, typing.Any]:
        subject = request['subject']
        guests = hive_file.load(path, subject)
        base = hive_file.base_block(guests)
        if base is None or not base.dirty:
            self._keep(path, subject, guests, guests)
            return dataclasses.asdict(registry.State())
        if request['logs'] is None:
            return dataclasses.asdict(registry.State(dirty=True))
        logs = {
            name: hive_file.load(copy, subject)
            for name, copy in request['logs'].items()
        }
        found = hive_log.recover(bytearray(guests), logs)
        try:
            self._keep(path, subject, found.data, guests)
        except exceptions.GuestError as error:
            if error.id != 'registry.damaged' or not found.lost:
                raise
            raise registry.damaged(
                subject, f'{error.found}, and {found.lost}'
            ) from None
        return dataclasses.asdict(
            registry.State(True, found.replayed, found.logs, found.lost)
        )

    def _keep(
        self,
        path: str,
        subject: str,
        data: bytearray,
        guests: bytearray,
    ) -> None:
        reader = hive_reader.Reader(data, subject)
        # A hive that is opened anew makes what is known of it old.
        for other in list(self._open):
            if self._open[other].reader.subject == subject:
                del self._open[other]
        self._open[path] = _Open(reader, data, guests)
        if data is not guests:
            with open(path, 'wb') as stream:
                stream.write(data)

    def _do_create(
        self, request: Mapping[str, typing.Any], path: str
    ) -> dict[str, typing.Any]:
        data = bytearray(hive_blank.blank(request['root']))
        self._keep(path, request['subject'], data, bytearray())
        return dataclasses.asdict(registry.State())

    def _opened(self, path: str) -> _Open:
        if path not in self._open:
            raise ValueError(f'{path} is not open')
        return self._open[path]

    def _do_read(
        self, request: Mapping[str, typing.Any], path: str
    ) -> list[registry.Record]:
        reader = self._opened(path).reader
        reader.start()
        size = items = 0
        answer = []
        for record in reader.records(request['key'], request['depth']):
            answer.append(record)
            items += 1 + len(record[1]) + len(record[2])
            size += len(record[0]) + sum(
                len(name) + len(data) for name, _, data in record[1]
            )
            if size > _ANSWER_LIMIT or items > _ITEMS_LIMIT:
                raise hive_file.too_large(
                    request['subject'],
                    'more below the key ' + registry.shortened(request['key']),
                    f'{_ITEMS_LIMIT} keys and values, {_ANSWER_LIMIT} bytes',
                )
        return answer

    def _do_write(
        self, request: Mapping[str, typing.Any], path: str
    ) -> list[tuple[int, int]]:
        subject = request['subject']
        hive = self._opened(path)
        edits = [hive_tree.Change(*edit) for edit in request['edits']]
        wanted = hive_tree.Tree(hive.reader)
        for edit in edits:
            wanted.apply(edit)
        data = bytearray(hive.data)
        number = hive_file.free_sequence(hive.reader.base, request['logs'])
        hive_file.set_sequence(data, number)
        new = f'{path}.new'
        try:
            with open(new, 'wb') as stream:
                stream.write(data)
            _run_writer(new, edits, subject)
            data = hive_file.load(new, subject)
            reader = hive_reader.Reader(data, subject)
            _verify(reader, wanted, number, subject)
            os.replace(new, path)
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(new)
        changes = list(_changes(hive.guests, data))
        self._open[path] = _Open(reader, data, data)
        return changes


def _run_writer(
    path: str, edits: list[hive_tree.Change], subject: str
) -> None:
    """Have hivex change a file.

    :raises GuestError: if it does not
    """
    lines = '\n'.join(
        json.dumps(
            [
                edit.key,
                edit.name,
                edit.type,
                None if edit.data is None else edit.data.hex(),
            ]
        )
        for edit in edits
    )
    try:
        done = subprocess.run(
            [sys.executable, '-P', '-m', 'xenimport.guest.hive_writer', path],
            input=lines.encode('ascii'),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            timeout=_WRITE_LIMIT,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise _write_failed(
            subject, f'it took more than {_WRITE_LIMIT} seconds'
        ) from None
    if done.returncode:
        said = done.stderr.decode('utf-8', 'replace').strip()[-_EVIDENCE:]
        if done.returncode < 0:
            ended = signal.Signals(-done.returncode).name
            said = f'hivex ended by {ended}: {said}'
        raise _write_failed(subject, said)


def _write_failed(subject: str, found: str) -> exceptions.GuestError:
    return exceptions.GuestError(
        'registry.write-failed',
        'A registry hive of the guest cannot be changed',
        where=subject,
        expected='a hive that hivex can change',
        found=found,
        fix='start the guest on Xen, let Windows load and repair the hive, '
        'shut it down cleanly and export it again',
    )


def _verify(
    reader: hive_reader.Reader,
    wanted: hive_tree.Tree,
    number: int,
    subject: str,
) -> None:
    """Compare a written hive with what was meant, the whole of it.

    :param number: sequence number that it had before; hivex counts it up
    """
    difference = wanted.difference(hive_tree.Tree(reader))
    found = reader.base.primary, reader.base.secondary
    if not difference and found != (number + 1, number + 1):
        difference = f'sequence numbers {found}'
    if difference:
        raise exceptions.GuestError(
            'registry.verify-failed',
            'A registry hive was not written as it was meant',
            where=subject,
            expected='the changes that were asked for, and no others',
            found=registry.shortened(difference),
            fix='report this as a bug of xenimport; nothing was written to '
            'the guest',
        )


def _changes(old: bytearray, new: bytearray) -> Iterator[tuple[int, int]]:
    """Where a file differs from another, page by page."""
    start = None
    for offset in range(0, len(new) + _PAGE, _PAGE):
        page = new[offset : offset + _PAGE]
        same = not page or page == old[offset : offset + _PAGE]
        if start is not None and (same or offset - start >= _PIECE):
            yield start, min(offset, len(new)) - start
            start = None
        if not same and start is None:
            start = offset
