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

"""The truth of a finished RAW file: size, partition tables, safety.

A file system's label proves nothing: a converter that cut the disk
short left it in place. So the size, the end of every partition and the
GPT's backup are compared. The bytes come from the guest: what is read
here is bounded, and sfdisk and sgdisk run under resource limits.
"""

from __future__ import annotations

from collections.abc import Iterator
import dataclasses
import json
import os
import re
import shutil
import struct
import subprocess
import typing
import zlib

from oslo_concurrency import processutils
from oslo_utils.imageutils import format_inspector

from xenimport import exceptions
from xenimport import model

#: Bytes; RAW files have no other sector size (sfdisk assumes the same).
SECTOR = 512
#: What a child may use: bytes of memory, seconds of CPU.
_LIMITS = processutils.ProcessLimits(
    address_space=1 << 30, cpu_time=20, core_file_size=0, file_size=0
)
_SECONDS = 60
#: Largest GPT partition array that is read, bytes (usual are 16 KiB).
_ARRAY = 4 << 20
#: What a RAW image may look like to Glance.
_RAW_FORMATS = ('raw', 'gpt')
#: UEFI 2.10, table 5.5: signature, revision, header size, header CRC,
#: reserved, own LBA, other's LBA, first and last usable LBA, disk GUID,
#: array's LBA, number and size of entries, array CRC.
_GPT = struct.Struct('<8sIIIIQQQQ16sQIII')


def verify(path: str, expected_size: int) -> list[model.Finding]:
    """What is wrong with the RAW file at ``path``.

    :param expected_size: the disk's size in the package, bytes
    :raises xenimport.exceptions.VerificationError: if the file cannot be
        read
    """
    try:
        with open(path, 'rb') as file:
            return list(_findings(path, file, expected_size))
    except OSError as error:
        raise exceptions.VerificationError(
            'verify.unreadable',
            'The finished disk cannot be read',
            where=path,
            found=error.strerror,
            fix="see whether the work directory's disk is sound",
        ) from error


def _findings(
    path: str, file: typing.BinaryIO, expected_size: int
) -> Iterator[model.Finding]:
    size = os.fstat(file.fileno()).st_size
    yield from _check_size(path, size, expected_size)
    yield from _check_safety(path)
    if has_gpt(file):
        findings = list(_check_gpt(path, file, size))
        yield from findings or _check_with_sgdisk(path)
    else:
        yield from _check_mbr(path, file, size)


def _check_size(
    path: str, size: int, expected_size: int
) -> Iterator[model.Finding]:
    if size != expected_size:
        yield model.Finding(
            id='verify.size',
            severity=model.Severity.BLOCKER,
            title='The disk has not the size that the package states',
            evidence=f'{size} bytes instead of {expected_size}',
            fix='do not use this image; report it with the package',
            subject=path,
        )
    if size % SECTOR:
        yield model.Finding(
            id='verify.size-odd',
            severity=model.Severity.WARNING,
            title='The disk does not end with a whole sector',
            evidence=f'{size} bytes are no multiple of {SECTOR}',
            fix='QEMU will round it; export the guest again if the '
            'package should be larger',
            subject=path,
        )


# As Glance, Nova and Cinder look at it.


def _check_safety(path: str) -> Iterator[model.Finding]:
    """Apply the same inspector as Glance and Nova do."""
    try:
        inspector = format_inspector.detect_file_format(path)
    except format_inspector.ImageFormatError as error:
        yield _wrong_format(path, str(error))
        return
    if inspector is None:
        return
    if str(inspector) not in _RAW_FORMATS:
        yield _wrong_format(path, f'it looks like {inspector}')
        return
    try:
        inspector.safety_check()
    except format_inspector.SafetyCheckFailed as error:
        yield model.Finding(
            id='verify.unsafe',
            severity=model.Severity.BLOCKER,
            title='Glance and Nova would refuse this image as unsafe',
            evidence='; '.join(
                f'check "{name}" fails: {failure}'
                for name, failure in sorted(error.failures.items())
            ),
            fix='write a correct partition table in the guest (for '
            'example with "fdisk"), shut it down and export it again',
            subject=path,
        )
    except format_inspector.ImageFormatError as error:
        yield _wrong_format(path, str(error))


def _wrong_format(path: str, evidence: str) -> model.Finding:
    return model.Finding(
        id='verify.not-raw',
        severity=model.Severity.BLOCKER,
        title='Glance would not take this disk for a raw image',
        evidence=evidence,
        fix="the guest's disk begins with the header of an image format; "
        'if it is a data disk that holds an image, move the image into a '
        'file system',
        subject=path,
    )


# Partition tables.


class _ToolFailed(Exception):
    """A child ended with an error; its text is the first line of it."""


def _run(program: str, *words: str) -> str | None:
    """What a child under limits prints, None where it is not installed.

    :raises _ToolFailed: if it refused, or used more than it may
    """
    places = os.environ.get('PATH', os.defpath) + ':/usr/sbin:/sbin'
    found = shutil.which(program, path=places)
    if found is None:
        return None
    started: list[subprocess.Popen[bytes]] = []
    try:
        output, _errors = processutils.execute(
            found,
            *words,
            env_variables=dict(os.environ, LC_ALL='C'),
            prlimit=_LIMITS,
            timeout=_SECONDS,
            on_execute=started.append,
        )
    except processutils.ProcessExecutionError as error:
        text = f'{error.stderr}'.strip() or f'exit code {error.exit_code}'
        raise _ToolFailed(_printable(text.splitlines()[0])) from error
    except subprocess.TimeoutExpired as error:
        # oslo.concurrency leaves it running.
        for child in started:
            child.kill()
            child.wait()
        raise _ToolFailed(f'no answer in {_SECONDS} seconds') from error
    return str(output)


def _printable(text: str) -> str:
    """A guest's bytes may come back in a message."""
    return ''.join(c if c.isprintable() else '?' for c in text[:500])


def _check_mbr(
    path: str, file: typing.BinaryIO, size: int
) -> Iterator[model.Finding]:
    """An MBR with its logical partitions, as sfdisk reads them."""
    try:
        output = _run('sfdisk', '--json', os.path.abspath(path))
    except _ToolFailed as error:
        if 'does not contain a recognized' in str(error):
            return
        yield _unreadable(path, str(error))
        return
    if output is None:
        raise exceptions.MachineError(
            'machine.no-sfdisk',
            'The program sfdisk is missing; without it no partition table '
            'can be verified',
            expected='sfdisk of util-linux',
            fix='install the package fdisk (Debian, Ubuntu) or util-linux',
        )
    try:
        table = json.loads(output)['partitiontable']
        found = [
            (
                _number(str(item['node'])),
                int(item['start']),
                int(item['size']),
                str(item['type']),
            )
            for item in table.get('partitions', ())
        ]
        bootable = any(
            item.get('bootable') for item in table.get('partitions', ())
        )
    except (ValueError, KeyError, TypeError) as error:
        yield _unreadable(path, f'sfdisk prints no table: {error!r}')
        return
    for number, start, length, _type in found:
        yield from _check_end(path, number, start, length, size)
    if table.get('label') == 'dos':
        types = {kind.lower().lstrip('0') for *_, kind in found}
        yield from _check_signature(path, file, types, bootable)


def _number(node: str) -> int:
    """The partition's number at the end of its device name."""
    digits = re.search('[0-9]{1,9}$', node)
    return int(digits[0]) if digits else 0


def _unreadable(path: str, evidence: str) -> model.Finding:
    return model.Finding(
        id='verify.partition-table',
        severity=model.Severity.BLOCKER,
        title='The partition table cannot be read',
        evidence=evidence,
        fix='check the disk in the source guest with "fdisk -l" and '
        'export it again',
        subject=path,
    )


def _check_end(
    path: str, number: int, start: int, length: int, size: int
) -> Iterator[model.Finding]:
    """``start`` and ``length`` in sectors, ``size`` in bytes."""
    end = (start + length) * SECTOR
    if start < 1 or end > size:
        yield model.Finding(
            # The same id as before the repair: who accepted it there
            # need not accept it again.
            id='disk.partition-outside',
            severity=model.Severity.BLOCKER,
            title='A partition lies outside of the disk',
            evidence=f'partition {number} lies at bytes {start * SECTOR} '
            f'to {end}; the disk has {size} bytes',
            fix='the export was cut short: export the guest again; if '
            'its disk was shrunk on purpose, correct its partition table',
            subject=f'{path}:{number}',
            loss='what was behind the end of the disk',
        )


def _check_signature(
    path: str, file: typing.BinaryIO, types: set[str], bootable: bool
) -> Iterator[model.Finding]:
    """Windows finds its disks by the signature at byte 440 of the MBR."""
    signature = os.pread(file.fileno(), 4, 440)
    if signature != bytes(4) or not (bootable or '7' in types):
        return
    yield model.Finding(
        id='disk.mbr-signature-zero',
        severity=(
            model.Severity.WARNING if '7' in types else model.Severity.NOTE
        ),
        title='The disk has no signature in its MBR',
        evidence='bytes 440 to 443 are zero'
        + (', and there is a partition of type 07 (NTFS)' * ('7' in types)),
        fix='a boot loader that names its disk by the signature, as '
        'Windows does, will not find it: let Windows repair its boot '
        'configuration; others need nothing',
        subject=path,
    )


# GPT.


@dataclasses.dataclass(frozen=True)
class _Header:
    """One of a GPT's two headers. LBAs in sectors."""

    own: int
    other: int
    first_usable: int
    last_usable: int
    array: int
    count: int
    entry_size: int
    array_crc: int


class _BadHeader(Exception):
    """Why a sector is no GPT header, or its array is damaged."""


def has_gpt(file: typing.BinaryIO) -> bool:
    """Whether there is a GPT, or the MBR says that there should be.

    sfdisk cannot be asked: it takes a cut disk's protective entry for an
    ordinary partition and shortens it to fit.
    """
    start = os.pread(file.fileno(), 2 * SECTOR, 0)
    if start[SECTOR : SECTOR + 8] == b'EFI PART':
        return True
    return start[510:512] == b'\x55\xaa' and start[450:451] == b'\xee'


def _read_header(file: typing.BinaryIO, lba: int) -> _Header:
    """The header in a sector, its checksum and place compared.

    :raises _BadHeader: if it is none, or damaged
    """
    sector = os.pread(file.fileno(), SECTOR, lba * SECTOR)
    if len(sector) < SECTOR or sector[:8] != b'EFI PART':
        raise _BadHeader(f'no GPT header in sector {lba}')
    fields = _GPT.unpack_from(sector)
    length, crc = fields[2], fields[3]
    if not _GPT.size <= length <= SECTOR:
        raise _BadHeader(f'a GPT header of {length} bytes in sector {lba}')
    blank = sector[:16] + bytes(4) + sector[20:length]
    if zlib.crc32(blank) != crc:
        raise _BadHeader(f'wrong checksum of the header in sector {lba}')
    header = _Header(*fields[5:9], *fields[10:14])
    if header.own != lba:
        raise _BadHeader(
            f'the header in sector {lba} says it is in {header.own}'
        )
    return header


def _read_array(file: typing.BinaryIO, header: _Header, size: int) -> bytes:
    """The partition array, its place and checksum compared.

    :raises _BadHeader: if it lies outside, is too large, or damaged
    """
    length = header.count * header.entry_size
    if header.entry_size < 128 or length > _ARRAY:
        raise _BadHeader(
            f'{header.count} entries of {header.entry_size} bytes'
        )
    if header.array * SECTOR + length > size:
        raise _BadHeader(f'the array at sector {header.array} is outside')
    array = os.pread(file.fileno(), length, header.array * SECTOR)
    if zlib.crc32(array) != header.array_crc:
        raise _BadHeader(
            f'wrong checksum of the array in sector {header.array}'
        )
    return array


def _check_gpt(
    path: str, file: typing.BinaryIO, size: int
) -> Iterator[model.Finding]:
    """Both headers and arrays, and the end of each partition."""
    last = size // SECTOR - 1
    try:
        header = _read_header(file, 1)
        array = _read_array(file, header, size)
    except _BadHeader as error:
        yield model.Finding(
            id='verify.gpt-header',
            severity=model.Severity.BLOCKER,
            title='The GPT is damaged',
            evidence=str(error),
            fix='in the source guest, run "sgdisk -v" and repair the '
            'table; then export it again',
            subject=path,
        )
        return
    yield from _check_backup(path, file, header, last)
    for number in range(header.count):
        entry = array[number * header.entry_size :][:48]
        if entry[:16] == bytes(16):
            continue
        start, end = struct.unpack_from('<QQ', entry, 32)
        yield from _check_end(path, number + 1, start, end - start + 1, size)


def _check_backup(
    path: str, file: typing.BinaryIO, header: _Header, last: int
) -> Iterator[model.Finding]:
    """The backup has to be in the last sector of the disk."""
    title = 'The backup of the GPT is not at the end of the disk'
    severity = model.Severity.BLOCKER
    evidence = (
        f'the backup should be in sector {header.other}, the last sector '
        f'is {last}'
    )
    try:
        if header.other > last:
            raise _BadHeader('it lies outside of the disk')
        backup = _read_header(file, header.other)
        _read_array(file, backup, (last + 1) * SECTOR)
        if header.other == last:
            return
        # The disk was enlarged: systems boot from it, and some complain.
        severity = model.Severity.WARNING
        evidence += '; the one there is sound'
        fix = 'after the first boot, run "sgdisk -e" on the disk'
    except _BadHeader as error:
        if header.other == last:
            title = 'The backup of the GPT is damaged'
        evidence += f'; {error}'
        fix = (
            'the end of the disk is lost: export the guest again; if the '
            'source is so too, run "sgdisk -e" there first'
        )
    yield model.Finding(
        id='verify.gpt-backup',
        severity=severity,
        title=title,
        evidence=evidence,
        fix=fix,
        subject=path,
        loss='the second copy of the partition table',
    )


def _check_with_sgdisk(path: str) -> Iterator[model.Finding]:
    """A second opinion, where it is installed."""
    try:
        output = _run('sgdisk', '--verify', os.path.abspath(path))
    except _ToolFailed as error:
        output = f'Problem: {error}'
    if output is None or 'No problems found' in output:
        return
    problems = [
        ' '.join(part.split())
        for part in output.split('\n\n')
        if part.strip().startswith(('Problem', 'Warning'))
    ]
    if problems:
        yield model.Finding(
            id='verify.gpt-problem',
            severity=model.Severity.WARNING,
            title='sgdisk finds a problem in the GPT',
            evidence=_printable('; '.join(problems)),
            fix='in the source guest, run "sgdisk -v" and repair the '
            'table; then export it again',
            subject=path,
        )
