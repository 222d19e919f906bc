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

"""The Image service as plain REST calls, with our errors.

All requests go through openstacksdk's image proxy: it knows the address,
the version and the token. Several threads may ask at the same time.
"""

from __future__ import annotations

from collections.abc import Mapping
import threading
import time
import typing

from xenimport import exceptions
from xenimport.target import replies

if typing.TYPE_CHECKING:
    from openstack import connection as sdk_connection
    import requests

#: Errors that may have passed when the same is asked again.
PASSING = frozenset(('glance.unreachable', 'glance.failed'))
_PATCH = 'application/openstack-images-v2.1-json-patch'


class Service:
    """The Image service behind a connection.

    :param connection: openstacksdk's, authenticated or about to be
    :param options: those of the target: ``retries``, ``retry_wait`` and
        ``timeout`` in seconds
    """

    def __init__(
        self,
        connection: sdk_connection.Connection,
        options: Mapping[str, typing.Any],
    ) -> None:
        self._connection = connection
        self._options = options
        self._lock = threading.Lock()

    @property
    def proxy(self) -> typing.Any:
        """The SDK's image proxy.

        It is made, and the address found, at the first use, which two
        threads must not do at the same time.
        """
        with self._lock:
            return self._connection.image

    @property
    def timeout(self) -> float:
        """Seconds that a request without image data may wait."""
        timeout: float = self._options['timeout']
        return timeout

    def waits(self) -> list[float]:
        """Seconds before each new try."""
        return [
            self._options['retry_wait'] * 4**number
            for number in range(self._options['retries'])
        ]

    def renew_token(self) -> bool:
        """Forget the token; whether a new one can be had."""
        return bool(self._connection.session.invalidate())

    def get(
        self, path: str, doing: str, **more: typing.Any
    ) -> requests.Response:
        """Ask for something, which may be refused.

        :param doing: what is asked, for the message: 'list images'
        :raises xenimport.exceptions.TargetError: if nobody answers
        """
        with replies.translated(doing):
            return self.proxy.get(path, timeout=self.timeout, **more)

    def get_object(self, path: str, doing: str) -> dict[str, typing.Any]:
        """Ask for an object.

        :raises xenimport.exceptions.TargetError: if it is not given
        """
        response = self.get(path, doing, skip_cache=True)
        replies.raise_for(response, doing)
        return json_of(response)

    def post(
        self, path: str, doing: str, body: Mapping[str, typing.Any]
    ) -> requests.Response:
        """Send an object; the answer may be a refusal.

        :raises xenimport.exceptions.TargetError: if nobody answers
        """
        with replies.translated(doing):
            return self.proxy.post(path, json=body, timeout=self.timeout)

    def delete(self, path: str, doing: str) -> requests.Response:
        """Delete something; the answer may be a refusal.

        :raises xenimport.exceptions.TargetError: if nobody answers
        """
        with replies.translated(doing):
            return self.proxy.delete(path, timeout=self.timeout)

    def replace(
        self, path: str, doing: str, **values: typing.Any
    ) -> requests.Response:
        """Change fields of a record; the answer may be a refusal.

        :raises xenimport.exceptions.TargetError: if nobody answers
        """
        with replies.translated(doing):
            return self.proxy.patch(
                path,
                json=[
                    {'op': 'replace', 'path': f'/{key}', 'value': value}
                    for key, value in values.items()
                ],
                headers={'Content-Type': _PATCH},
                timeout=self.timeout,
            )

    def image(self, image_id: str) -> dict[str, typing.Any]:
        """An image's record.

        :raises xenimport.exceptions.TargetError: if it is not given
        """
        return self.get_object(f'/images/{image_id}', 'show the image')

    def image_patiently(self, image_id: str) -> dict[str, typing.Any]:
        """The same, waiting for a service that is away for a while."""
        for wait in self.waits():
            try:
                return self.image(image_id)
            except exceptions.TargetError as error:
                if error.id not in PASSING:
                    raise
            time.sleep(wait)
        return self.image(image_id)


def json_of(response: requests.Response) -> dict[str, typing.Any]:
    """The object in an answer.

    :raises xenimport.exceptions.TargetError: if it holds none
    """
    try:
        found = response.json()
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise not_an_image_service(response, 'JSON')
    return found


def not_an_image_service(
    response: requests.Response, expected: str
) -> exceptions.TargetError:
    """Something else answers at the address."""
    return exceptions.TargetError(
        'glance.no-endpoint',
        'What answers there is not an Image service',
        where=response.url,
        expected=expected,
        found=replies.reason(response),
        fix='check the endpoint in clouds.yaml; a proxy or portal may '
        'answer in its place',
    )
