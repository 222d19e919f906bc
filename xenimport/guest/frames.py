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

"""The frames between a session and its worker process.

A frame is two lengths, a JSON document and the bytes it refers to. JSON,
never pickle: the worker meets a hostile guest's data, so what it says is
data too, bounded before it is read.
"""

from __future__ import annotations

import json
import socket
import struct
import time
import typing

_LENGTHS = struct.Struct('!II')
#: Bytes of the JSON document of one frame.
DOCUMENT_LIMIT = 32 << 20
#: Bytes of binary data that one frame carries, all values together.
PAYLOAD_LIMIT = 64 << 20
#: How deep lists and mappings may nest.
_DEPTH_LIMIT = 16
_CHUNK = 1 << 20


class FrameError(Exception):
    """The other side sent what is no frame, or is too large for one."""


class ClosedError(Exception):
    """The other side is gone."""


class OutOfTimeError(Exception):
    """The time limit passed."""


def _pack(value: typing.Any, payload: list[bytes]) -> typing.Any:
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, bytes | bytearray | memoryview):
        payload.append(bytes(value))
        return {'bytes': len(payload[-1])}
    if isinstance(value, dict):
        return {
            'pairs': [
                [_pack(key, payload), _pack(item, payload)]
                for key, item in value.items()
            ]
        }
    if isinstance(value, list | tuple):
        return [_pack(item, payload) for item in value]
    raise FrameError(f'a {type(value).__name__} does not fit in a frame')


class _Unpacker:
    def __init__(self, payload: bytes) -> None:
        self._payload = payload
        self._offset = 0

    def _bytes(self, length: typing.Any) -> bytes:
        left = len(self._payload) - self._offset
        if type(length) is not int or not 0 <= length <= left:
            raise FrameError('a value lies outside its frame')
        start = self._offset
        self._offset += length
        if length == len(self._payload):
            return self._payload
        return self._payload[start : self._offset]

    def unpack(self, value: typing.Any, depth: int = 0) -> typing.Any:
        if depth > _DEPTH_LIMIT:
            raise FrameError('values nest too deep')
        if isinstance(value, list):
            return [self.unpack(item, depth + 1) for item in value]
        if not isinstance(value, dict):
            return value
        if value.keys() == {'bytes'}:
            return self._bytes(value['bytes'])
        if value.keys() == {'pairs'}:
            try:
                return {
                    self.unpack(key, depth + 1): self.unpack(item, depth + 1)
                    for key, item in value['pairs']
                }
            except (TypeError, ValueError):
                pass
        raise FrameError('a value of an unknown kind')


def encode(value: typing.Any) -> bytes:
    """The frame of a value.

    :raises FrameError: if the value is too large or of an unknown type
    """
    payload: list[bytes] = []
    document = json.dumps(_pack(value, payload)).encode('ascii')
    data = b''.join(payload)
    if len(document) > DOCUMENT_LIMIT or len(data) > PAYLOAD_LIMIT:
        raise FrameError(
            f'{len(document) + len(data)} bytes are too many for one answer'
        )
    return _LENGTHS.pack(len(document), len(data)) + document + data


def _left(deadline: float | None) -> float | None:
    if deadline is None:
        return None
    left = deadline - time.monotonic()
    if left <= 0:
        raise OutOfTimeError
    return left


def _receive_exactly(
    connection: socket.socket, length: int, deadline: float | None
) -> bytes:
    data = bytearray()
    while len(data) < length:
        connection.settimeout(_left(deadline))
        try:
            chunk = connection.recv(min(_CHUNK, length - len(data)))
        except TimeoutError:
            raise OutOfTimeError from None
        except OSError as error:
            raise ClosedError from error
        if not chunk:
            raise ClosedError
        data += chunk
    return bytes(data)


def receive(
    connection: socket.socket, deadline: float | None = None
) -> typing.Any:
    """The next value from the other side.

    :param deadline: on time.monotonic()'s clock, None waits for ever
    :raises FrameError: if it is no frame or too large
    :raises ClosedError: if the other side is gone
    :raises OutOfTimeError: if the deadline passed
    """
    lengths = _receive_exactly(connection, _LENGTHS.size, deadline)
    document_length, payload_length = _LENGTHS.unpack(lengths)
    if document_length > DOCUMENT_LIMIT or payload_length > PAYLOAD_LIMIT:
        raise FrameError('a frame is larger than any may be')
    document = _receive_exactly(connection, document_length, deadline)
    payload = _receive_exactly(connection, payload_length, deadline)
    try:
        value = json.loads(document)
    except (ValueError, RecursionError):
        raise FrameError('a frame is not JSON') from None
    return _Unpacker(payload).unpack(value)


def send(
    connection: socket.socket,
    value: typing.Any,
    deadline: float | None = None,
) -> None:
    """Send a value; raises as :func:`encode` and :func:`receive`."""
    view = memoryview(encode(value))
    while view:
        connection.settimeout(_left(deadline))
        try:
            view = view[connection.send(view[:_CHUNK]) :]
        except TimeoutError:
            raise OutOfTimeError from None
        except OSError as error:
            raise ClosedError from error
