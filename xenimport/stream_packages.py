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


"""Packages that can only be read once, forward."""

from __future__ import annotations

import os

from xenimport import stream as stream_room
from xenimport import stream_decoders
from xenimport import stream_files
from xenimport import stream_http

_URLS = ('http://', 'https://')


def is_url(path: str) -> bool:
    """Whether a package is named by an address."""
    return path.lower().startswith(_URLS)


def open_package(path: str) -> stream_room.Stream | None:
    """A package that can only be read forward; None if it is seekable.

    :param path: a file's, ``-`` for standard input, or a URL
    :raises xenimport.exceptions.PackageError: if it cannot be opened
    """
    if is_url(path):
        return stream_decoders.decoded(stream_http.HttpStream(path))
    if path == stream_files.STANDARD_INPUT:
        return stream_decoders.decoded(stream_files.FileStream(path))
    if os.path.isdir(path):
        return None
    stream = stream_files.FileStream(path)
    if stream.size is None:
        return stream_decoders.decoded(stream)
    result = stream_decoders.decoded(stream)
    if result is stream:
        stream.close()
        return None
    return result
