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

"""Mutants of what qemu reads: only our own checks, without qemu."""

from __future__ import annotations

import functools
import itertools
import struct

import hypothesis

from xenimport.converter import qcow2
from xenimport.converter import qemu
from xenimport.converter import region
from xenimport.converter import vdi
from xenimport.converter import vhdx
from xenimport import model
from xenimport.tests.fuzz import cases
from xenimport.tests.fuzz import mutation
from xenimport.tests import qemu_images

_KIB = 1024
_MIB = 1024 * _KIB
#: Extents of an image that are looked at.
_MOST = 100_000


@functools.cache
def _qcow2() -> list[mutation.Sample]:
    data = qemu_images.qcow2({0: b'a' * 4096, 700: b'b' * 4096}, 4 * _MIB)
    fields: list[mutation.Field] = [
        (8, 8, 'big'), (16, 4, 'big'), (20, 4, 'big'), (24, 8, 'big'),
        (32, 4, 'big'), (36, 4, 'big'), (40, 8, 'big'), (48, 8, 'big'),
        (56, 4, 'big'), (60, 4, 'big'), (64, 8, 'big'), (72, 8, 'big'),
        (80, 8, 'big'), (88, 8, 'big'), (96, 4, 'big'), (100, 4, 'big'),
    ]  # fmt: skip
    tables = range(3 * 4096, 3 * 4096 + 64, 8)
    fields += [(offset, 8, 'big') for offset in tables]
    fields += [(offset + 4096, 8, 'big') for offset in tables]
    hot = [(0, 128), (3 * 4096, 3 * 4096 + 64), (4 * 4096, 4 * 4096 + 64)]
    return [mutation.Sample('qcow2', data, fields, hot)]


@functools.cache
def _vdi() -> list[mutation.Sample]:
    data = qemu_images.vdi({0: b'a', 2: b'b'}, 4 * _MIB)
    fields: list[mutation.Field] = [
        (offset, 4, 'little') for offset in range(64, 84, 4)
    ]
    fields += [(offset, 4, 'little') for offset in range(340, 368, 4)]
    fields += [(offset, 8, 'little') for offset in (368, 424, 432, 440, 448)]
    fields += [(offset, 4, 'little') for offset in (376, 380, 384, 388)]
    fields += [(512 + 4 * entry, 4, 'little') for entry in range(4)]
    return [mutation.Sample('vdi', data, fields, [(0, 488), (512, 528)])]


def _seal_vhdx(target: bytearray) -> None:
    for offset, length in (
        (64 * _KIB, 4 * _KIB),
        (128 * _KIB, 4 * _KIB),
        (192 * _KIB, 64 * _KIB),
        (256 * _KIB, 64 * _KIB),
    ):
        part = target[offset : offset + length]
        if len(part) == length:
            part[4:8] = bytes(4)
            target[offset + 4 : offset + 8] = struct.pack('<I', _crc32c(part))


@functools.cache
def _table() -> tuple[int, ...]:
    found = []
    for byte in range(256):
        for _bit in range(8):
            byte = byte >> 1 ^ (0x82F63B78 if byte & 1 else 0)
        found.append(byte)
    return tuple(found)


def _crc32c(data: bytearray) -> int:
    table = _table()
    value = 0xFFFFFFFF
    for byte in data:
        value = value >> 8 ^ table[(value ^ byte) & 255]
    return value ^ 0xFFFFFFFF


@functools.cache
def _vhdx() -> list[mutation.Sample]:
    data = qemu_images.vhdx({0: b'a', 1: b'b'}, 4 * _MIB)
    fields: list[mutation.Field] = []
    for start in (64 * _KIB, 128 * _KIB):
        fields += [(start + 8, 8, 'little'), (start + 48, 8, 'little')]
        fields += [(start + 64, 2, 'little'), (start + 66, 2, 'little')]
        fields += [(start + 68, 4, 'little'), (start + 72, 8, 'little')]
    hot = []
    for start in (192 * _KIB, 256 * _KIB):
        fields += [(start + 8, 4, 'little')]
        for entry in range(2):
            place = start + 16 + 32 * entry
            fields += [(place + 16, 8, 'little'), (place + 24, 4, 'little')]
            fields += [(place + 28, 4, 'little')]
        hot.append((start, start + 96))
    start = 2 * _MIB
    fields += [(start + 10, 2, 'little')]
    for entry in range(5):
        place = start + 32 + 32 * entry + 16
        fields += [(place + more, 4, 'little') for more in (0, 4, 8)]
    start += 64 * _KIB
    fields += [(start, 4, 'little'), (start + 4, 4, 'little')]
    fields += [(start + 8, 8, 'little'), (start + 16, 4, 'little')]
    fields += [(3 * _MIB + 8 * entry, 8, 'little') for entry in range(4)]
    hot += [(64 * _KIB, 64 * _KIB + 80), (2 * _MIB, 2 * _MIB + 224)]
    hot += [(3 * _MIB, 3 * _MIB + 64), (start, start + 48)]
    seals = (_seal_vhdx, _seal_vhdx, _seal_vhdx)
    return [mutation.Sample('vhdx', data, fields, hot, seals)]


class QemuTest(cases.FuzzTest):
    """Nothing but the product's own errors."""

    def judge(self, converter: qemu.QemuConverter, data: bytes) -> None:
        path = self.write('image', data)
        found = model.Region(path, 'image', (model.Piece(0, len(data), 0),))
        self.check(_judge, converter, found)

    @cases.settings
    @hypothesis.given(mutation.mutants(_qcow2()))
    def test_qcow2(self, mutant: mutation.Mutant) -> None:
        self.judge(qcow2.Qcow2Converter(), mutant.build())

    @cases.settings
    @hypothesis.given(mutation.mutants(_vdi()))
    def test_vdi(self, mutant: mutation.Mutant) -> None:
        self.judge(vdi.VdiConverter(), mutant.build())

    @cases.settings
    @hypothesis.given(mutation.mutants(_vhdx()))
    def test_vhdx(self, mutant: mutation.Mutant) -> None:
        self.judge(vhdx.VhdxConverter(), mutant.build())


def _judge(converter: qemu.QemuConverter, found: model.Region) -> None:
    """All that is done before qemu is started."""
    reader = region.RegionReader(found)
    try:
        layout = converter._layout(reader)
        qemu._inspect(reader, converter.format, converter.title)
        if layout.extents is None:
            return
        end = 0
        for offset, length, _allocated in itertools.islice(
            layout.extents(), _MOST
        ):
            if offset != end or length <= 0:
                raise AssertionError(f'extent at {offset} after {end}')
            end += length
        if end != layout.virtual_size:
            raise AssertionError(f'{end} of {layout.virtual_size}')
    finally:
        reader.release()
