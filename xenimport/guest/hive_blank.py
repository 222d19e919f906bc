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


"""An empty hive, which hivex cannot make.

It has the base block, one hive bin, the root key and that key's security
descriptor: full access for SYSTEM and Administrators, inherited by every
key below. Sources: M. Suhanov, "Windows registry file format
specification"; Microsoft, [MS-DTYP], 2.4 (security descriptors).

Version 1.3 is that of Windows' own BCD stores.
"""

from __future__ import annotations

import struct
import time

from xenimport.guest import hive_file

_NOWHERE = 0xFFFFFFFF
#: Flags of a root key: entry of the hive, not to be deleted, name narrow.
_ROOT = 0x4 | 0x8 | 0x20
#: KEY_ALL_ACCESS, for the key and, inherited, for those below it.
_ALL_ACCESS = 0xF003F
_CONTAINER_INHERIT = 0x2
#: SE_SELF_RELATIVE and SE_DACL_PRESENT.
_CONTROL = 0x8004
#: 100 ns from 1601 to 1970.
_EPOCH = 116_444_736_000_000_000
_FIRST_CELL = 32


def blank(root: str) -> bytes:
    """A hive that has a root key alone.

    :param root: name of the root key, ASCII
    """
    now = time.time_ns() // 100 + _EPOCH
    name = root.encode('ascii')
    # Room for the size, a key's 76 bytes and its name, in eights.
    security = _FIRST_CELL + (4 + 76 + len(name) + 7) // 8 * 8
    cells = _cell(_root_key(name, security, now))
    cells += _cell(_security(security))
    free = hive_file.BASE - _FIRST_CELL - len(cells)
    cells += struct.pack('<i', free).ljust(free, b'\0')
    header = struct.pack('<4sIIQQI', b'hbin', 0, hive_file.BASE, 0, now, 0)
    return _base_block(root, now) + header + cells


def _base_block(root: str, now: int) -> bytes:
    block = bytearray(hive_file.BASE)
    struct.pack_into(
        '<4sIIQIIIIIII64s',
        block,
        0,
        b'regf',
        1,
        1,
        now,
        1,
        3,
        hive_file.PRIMARY,
        1,
        _FIRST_CELL,
        hive_file.BASE,
        1,
        root.encode('utf-16-le'),
    )
    hive_file.update_checksum(block)
    return bytes(block)


def _cell(data: bytes) -> bytes:
    size = (4 + len(data) + 7) // 8 * 8
    return struct.pack('<i', -size) + data.ljust(size - 4, b'\0')


def _root_key(name: bytes, security: int, now: int) -> bytes:
    return (
        struct.pack('<2sHQI', b'nk', _ROOT, now, 0)
        + struct.pack('<I', _NOWHERE)
        + struct.pack('<IIII', 0, 0, _NOWHERE, _NOWHERE)
        + struct.pack('<II', 0, _NOWHERE)
        + struct.pack('<II', security, _NOWHERE)
        + struct.pack('<IIIII', 0, 0, 0, 0, 0)
        + struct.pack('<HH', len(name), 0)
        + name
    )


def _security(place: int) -> bytes:
    """A security record that is alone in its list."""
    system = _sid(18)
    administrators = _sid(32, 544)
    entries = b''.join(
        struct.pack('<BBHI', 0, _CONTAINER_INHERIT, 8 + len(sid), _ALL_ACCESS)
        + sid
        for sid in (system, administrators)
    )
    acl = struct.pack('<BBHHH', 2, 0, 8 + len(entries), 2, 0) + entries
    owner = 20 + len(acl)
    group = owner + len(administrators)
    descriptor = (
        struct.pack('<BBHIIII', 1, 0, _CONTROL, owner, group, 0, 20)
        + acl
        + administrators
        + system
    )
    return (
        struct.pack('<2sHIIII', b'sk', 0, place, place, 1, len(descriptor))
        + descriptor
    )


def _sid(*authorities: int) -> bytes:
    """A SID of the NT authority, S-1-5-..."""
    return struct.pack(
        f'<BB6s{len(authorities)}I',
        1,
        len(authorities),
        b'\0\0\0\0\0\5',
        *authorities,
    )
