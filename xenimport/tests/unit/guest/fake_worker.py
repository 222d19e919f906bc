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

"""A worker for the tests of a session: the frames without libguestfs."""

from __future__ import annotations

import os
import socket
import struct
import subprocess
import sys
import time
import typing

from xenimport.guest import frames


def call(connection, name, args):
    if name == 'echo':
        return {'result': args}
    if name == 'zeros':
        return {'result': bytes(args[0])}
    if name == 'environment':
        return {'result': dict(os.environ)}
    if name == 'child':
        child = subprocess.Popen(['sleep', '600'])
        return {'result': child.pid}
    if name == 'sleep':
        time.sleep(600)
    if name == 'refuse':
        return {'error': 'libguestfs', 'text': 'mount: \x1b[31mno\nway'}
    if name == 'not_utf8':
        return {'error': 'unicode', 'text': 'invalid start byte'}
    if name == 'die':
        frames.send(connection, {'message': 'qemu: out of luck\n'})
        print('last words on stderr', file=sys.stderr)
        sys.exit(7)
    if name == 'appliance_died':
        return {'error': 'died', 'text': 'appliance closed the connection'}
    if name == 'oversize':
        connection.sendall(struct.pack('!II', 2, 0xFFFFFFFF) + b'{}')
        time.sleep(600)
    if name == 'garbage':
        connection.sendall(struct.pack('!II', 5, 0) + b'\x80\x04K\x01.')
        time.sleep(600)
    return {'error': 'usage', 'text': f'no {name}'}


def main():
    mode, connection = sys.argv[1], socket.socket(fileno=int(sys.argv[2]))
    while True:
        request = frames.receive(connection)
        answer: dict[str, typing.Any]
        if request['do'] == 'start':
            if mode == 'slow':
                time.sleep(600)
            if mode == 'no-binding':
                answer = {'error': 'import', 'text': 'No module guestfs'}
            else:
                answer = {'result': {'major': 1, 'minor': 48, 'release': 6}}
        elif request['do'] == 'close':
            answer = {'result': None}
            if mode == 'bad-close':
                answer = {'error': 'libguestfs', 'text': 'input/output error'}
        else:
            answer = call(connection, request['name'], request['args'])
        frames.send(connection, answer)
        if request['do'] == 'close':
            return


if __name__ == '__main__':
    main()
