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

"""VHDs that come once, forward.

A dynamic VHD has its table before its blocks, so that it is known of each
block where it belongs when it arrives. A fixed one is the disk itself, and
only its end says so.
"""

from __future__ import annotations

from xenimport.converter import base
from xenimport.converter import vhd_format
from xenimport.converter import vhd_forward
from xenimport.converter import vhd_table
from xenimport import stream as stream_room

SECTOR = vhd_format.SECTOR
#: The most that is looked at ahead: tables of 8 TiB in blocks of 2 MiB.
_MAX_AHEAD = 20 * 1024 * 1024
#: Blocks that are put into the order of the file in memory.
_MAX_BLOCKS = 1 << 20


def opened(stream: stream_room.Stream, name: str) -> base.ForwardImage:
    """The disk in a stream that is at the start of a VHD.

    :param name: of the member, for findings
    :raises xenimport.converter.base.NotForward: if it must be read at
        several places at once; nothing has been taken from the stream
    :raises xenimport.exceptions.DiskImageError: if it is damaged
    """
    head = stream.peek(3 * SECTOR)
    footer = vhd_format.parse_footer(head)
    if footer is None or footer.kind == vhd_format.FIXED:
        if head[SECTOR : SECTOR + 8] == vhd_format.HEADER_COOKIE:
            raise base.NotForward(
                'the copy of the footer at the start of the VHD is damaged'
            )
        return vhd_forward.FixedForward(stream, name)
    if not vhd_format.footer_is_intact(head[:SECTOR], footer):
        raise base.NotForward(
            'the copy of the footer at the start of the VHD is damaged'
        )
    vhd_format.check_footer(footer, stream.where)
    if footer.kind == vhd_format.DIFFERENCING:
        raise base.NotForward(
            'a differencing VHD is read together with its parents'
        )
    return _opened_dynamic(stream, footer, name)


def _opened_dynamic(
    stream: stream_room.Stream, footer: vhd_format.Footer, name: str
) -> base.ForwardImage:
    where = stream.where
    offset = footer.data_offset
    header = vhd_format.parse_header(
        _ahead(stream, offset, vhd_format.HEADER_SIZE), offset, where
    )
    used = vhd_table.used_entries(footer, header, stream.size, where)
    tables_end = header.table_offset + used * 4
    _ahead(stream, header.table_offset, used * 4)
    ahead = stream.peek(tables_end)
    if len(ahead) < tables_end:
        raise stream.truncated(tables_end, len(ahead))
    table = vhd_table.read_table(
        lambda place, length: ahead[place : place + length],
        header,
        used,
        where,
    )
    layout = vhd_table.Layout(footer, header, table, where)
    if table.blocks > _MAX_BLOCKS:
        raise base.NotForward('the VHD has very many blocks')
    layout.check(stream.size, whole=False)
    first = min((entry for _, entry in table.allocated()), default=None)
    if first is not None and first * SECTOR < max(
        tables_end, offset + vhd_format.HEADER_SIZE
    ):
        raise base.NotForward('the tables of the VHD lie behind its blocks')
    if footer.by_blktap and (
        first is None or header.batmap_offset < first * SECTOR
    ):
        batmap = _ahead(stream, header.batmap_offset, SECTOR)
        vhd_format.check_not_encrypted(batmap, footer, where)
    return vhd_forward.DynamicForward(stream, name, footer, layout)


def _ahead(stream: stream_room.Stream, offset: int, length: int) -> bytes:
    """The bytes at an offset of the stream, which are left in it."""
    if offset + length > _MAX_AHEAD:
        raise base.NotForward(
            'the tables of the VHD are large, or far from its start'
        )
    return stream.peek(offset + length)[offset:]
