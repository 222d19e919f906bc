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


"""Streams of what ``http://`` and ``https://`` addresses give."""

from __future__ import annotations

import re
from urllib import parse

from xenimport import exceptions
from xenimport import stream as stream_room

#: Seconds to connect to a server, and that it may stay silent.
_TIMEOUT = (30.0, 120.0)


class HttpStream(stream_room.Stream):
    """What an ``http://`` or ``https://`` URL gives.

    Certificates are verified, and proxies taken from the environment.

    :raises xenimport.exceptions.PackageError: if the server does not
        answer, or not with the package
    """

    def __init__(self, url: str) -> None:
        super().__init__(shown_url(url))
        # Only who reads from a URL waits for this.
        import requests

        try:
            self._response = requests.get(
                url,
                stream=True,
                timeout=_TIMEOUT,
                headers={'Accept-Encoding': 'identity'},
            )
        except (requests.RequestException, ValueError) as error:
            raise self._failed(str(error)) from error
        if self._response.status_code != 200:
            found = f'{self._response.status_code} {self._response.reason}'
            self.close()
            raise self._failed(found)
        length = self._response.headers.get('Content-Length', '')
        if length.isascii() and length.isdigit() and len(length) < 19:
            self.size = int(length)

    def _read_into(self, buffer: memoryview) -> int:
        from urllib3 import exceptions as http_exceptions

        try:
            data: bytes = self._response.raw.read(len(buffer))
        except (http_exceptions.HTTPError, OSError) as error:
            raise self._failed(
                f'{error} after {self.position} bytes'
            ) from error
        buffer[: len(data)] = data
        return len(data)

    def _failed(self, found: str) -> exceptions.PackageError:
        return exceptions.PackageError(
            'package.download-failed',
            'The package cannot be downloaded',
            where=self.where,
            expected='200 OK and the whole package',
            found=_without_secrets(found)[:300],
            fix='check the address, and that it needs no log-in; or '
            'download the package and import the file',
        )

    def close(self) -> None:
        self._response.close()


def shown_url(url: str) -> str:
    """A URL as it may be shown: no password, and no signed query."""
    try:
        parts = parse.urlsplit(url)
    except ValueError:
        return 'the address that was given'
    host = parts.netloc.rpartition('@')[2]
    return parse.urlunsplit((parts.scheme, host, parts.path, '', ''))


def _without_secrets(text: str) -> str:
    """A library's message without the passwords and queries of URLs."""
    return re.sub(r'//[^/\s]*@', '//', re.sub(r'\?\S*', '', text))
