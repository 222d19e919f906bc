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

"""Disks written as hexadecimal text: a driver from outside the tree.

One class, its options beside it, one entry point; nothing in xenimport
knows of it.
"""

from oslo_config import cfg

from xenimport.converter import base
from xenimport import exceptions
from xenimport import model

MAGIC = b'HEXDISK\n'


class HexadecimalImage(base.DiskImage):
    """The decoded text, whole in memory."""

    format = 'hexadecimal'

    def __init__(self, data: bytes) -> None:
        self._data = data
        self.virtual_size = len(data)

    def extents(self):
        yield 0, self.virtual_size, True

    def pread_into(self, buffer, offset):
        buffer[:] = self._data[offset : offset + len(buffer)]

    def close(self):
        self._data = b''


class HexadecimalConverter(base.Converter):
    """Opens ``HEXDISK`` files."""

    OPTS = (
        cfg.IntOpt(
            'limit',
            default=1 << 20,
            help='Characters that a disk may have.',
        ),
    )
    handles = 'disks written as hexadecimal text'

    def probe(self, package: model.Package, disk: model.Disk) -> bool:
        return self._read(disk, len(MAGIC)) == MAGIC

    def open(
        self, package: model.Package, disk: model.Disk
    ) -> HexadecimalImage:
        size = disk.region.size - len(MAGIC)
        if size > self.options['limit']:
            raise exceptions.DiskImageError(
                'hexadecimal.too-long',
                'The text is longer than the limit',
                where=disk.region.path,
                expected=f'at most {self.options["limit"]} characters',
                found=f'{size} characters',
                fix='raise limit in [converter_hexadecimal]',
            )
        text = self._read(disk, disk.region.size)[len(MAGIC) :]
        return HexadecimalImage(bytes.fromhex(text.decode('ascii')))

    def _read(self, disk: model.Disk, length: int) -> bytes:
        with open(disk.region.path, 'rb') as stream:
            stream.seek(disk.region.pieces[0].offset)
            return stream.read(length)
