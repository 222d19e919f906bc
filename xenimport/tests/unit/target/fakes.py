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

"""An Image service behind requests-mock, as Glance's API reference has it.

The SDK in front of it is the real one.
"""

from __future__ import annotations

from collections.abc import Callable
import hashlib
import typing

from keystoneauth1 import fixture as keystone_fixture
from openstack import connection as sdk_connection
import requests
import requests_mock

URL = 'http://glance.test:9292'
AUTH_URL = 'http://keystone.test:5000/v3'

#: Answers one upload in place of the service: (request, context) -> text.
Answer = Callable[[typing.Any, typing.Any], str]

_VERSIONS = {
    'versions': [
        {
            'id': 'v2.16',
            'status': 'CURRENT',
            'links': [{'rel': 'self', 'href': f'{URL}/v2/'}],
        },
        {
            'id': 'v2.0',
            'status': 'SUPPORTED',
            'links': [{'rel': 'self', 'href': f'{URL}/v2/'}],
        },
    ]
}


def refusing(
    status: int, text: str, content_type: str = 'text/plain'
) -> Answer:
    """An answer that reads the body and refuses it."""

    def answer(request: typing.Any, context: typing.Any) -> str:
        for _ in request.body:
            pass
        context.status_code = status
        context.headers['Content-Type'] = content_type
        return text

    return answer


def breaking(after: int) -> Answer:
    """The way breaks after so many chunks."""

    def answer(request: typing.Any, context: typing.Any) -> str:
        for number, _ in enumerate(request.body):
            if number == after:
                break
        raise requests.exceptions.ConnectionError('Connection reset by peer')

    return answer


class FakeGlance:
    """Holds records in memory.

    :ivar images: the records by id, as the API shows them
    :ivar data: what was uploaded, by id
    :ivar uploads: answers for the next uploads, in order; when there is
        none left, uploads go well
    :ivar change: called with a record after its upload
    :ivar methods: the import methods that it offers
    :ivar looks: what an import shows at each look, in order, before it
        is done: the status of the image, and the task or None
    :ivar convert: makes another image of what is imported; returns its
        disk format and bytes
    """

    def __init__(self, mocker: requests_mock.Mocker) -> None:
        self.images: dict[str, dict[str, typing.Any]] = {}
        self.data: dict[str, bytes] = {}
        self.uploads: list[Answer] = []
        self.change: Callable[[dict[str, typing.Any]], typing.Any] = (
            lambda image: None
        )
        self.methods = ['glance-direct', 'web-download']
        self.looks: list[tuple[str, dict[str, str] | None]] = []
        self.convert: Callable[[bytes], tuple[str, bytes]] | None = None
        self._task: dict[str, str] | None = None
        self.mocker = mocker
        mocker.get(f'{URL}/', json=_VERSIONS, status_code=300)
        mocker.get(URL, json=_VERSIONS, status_code=300)
        mocker.get(f'{URL}/v2/images?limit=1', json={'images': []})
        mocker.get(f'{URL}/v2/info/usage', status_code=404)
        mocker.post(f'{URL}/v2/images', json=self._create)
        one = self.matcher()
        mocker.get(one, json=self._show)
        mocker.delete(one, text=self._delete)
        mocker.patch(one, json=self._patch)
        mocker.put(self.matcher('/file'), text=self._upload)
        mocker.put(self.matcher('/stage'), text=self._upload)
        mocker.post(self.matcher('/import'), text=self._import)
        mocker.get(self.matcher('/tasks'), json=self._tasks)
        mocker.get(f'{URL}/v2/info/import', json=self._methods)

    @staticmethod
    def matcher(rest: str = '') -> typing.Any:
        """What requests-mock takes for 'any image'."""
        import re

        return re.compile(f'{URL}/v2/images/[0-9a-f-]{{36}}{rest}$')

    def count(self, method: str, ending: str = '') -> int:
        """How many requests of a kind came."""
        return sum(
            request.method == method and request.path.endswith(ending)
            for request in self.mocker.request_history
        )

    def _create(self, request: typing.Any, context: typing.Any) -> object:
        context.status_code = 201
        body = request.json()
        image = {
            'status': 'queued',
            'size': None,
            'checksum': None,
            'os_hash_algo': None,
            'os_hash_value': None,
            'protected': False,
            'visibility': 'shared',
            'tags': [],
        } | body
        self.images[image['id']] = image
        return image

    def _named(self, request: typing.Any) -> dict[str, typing.Any] | None:
        return self.images.get(request.path.split('/')[3])

    def _show(self, request: typing.Any, context: typing.Any) -> object:
        image = self._named(request)
        if image is None:
            context.status_code = 404
            return {}
        return image

    def _delete(self, request: typing.Any, context: typing.Any) -> str:
        image = self._named(request)
        if image is None:
            context.status_code = 404
        elif image['protected']:
            context.status_code = 403
        else:
            context.status_code = 204
            del self.images[image['id']]
        return ''

    def _patch(self, request: typing.Any, context: typing.Any) -> object:
        image = self._named(request)
        assert image is not None
        for step in request.json():
            image[step['path'].lstrip('/')] = step['value']
        return image

    def _upload(self, request: typing.Any, context: typing.Any) -> str:
        if self.uploads:
            return self.uploads.pop(0)(request, context)
        data = b''.join(bytes(piece) for piece in request.body)
        image = self._named(request)
        assert image is not None
        assert int(request.headers['Content-Length']) == len(data)
        assert 'Transfer-Encoding' not in request.headers
        self.data[image['id']] = data
        if request.path.endswith('/stage'):
            image |= {'status': 'uploading', 'size': len(data)}
        else:
            self._store(image)
        context.status_code = 204
        return ''

    def _store(self, image: dict[str, typing.Any]) -> None:
        data = self.data[image['id']]
        image |= {
            'status': 'active',
            'size': len(data),
            'checksum': hashlib.md5(data).hexdigest(),
            'os_hash_algo': 'sha512',
            'os_hash_value': hashlib.sha512(data).hexdigest(),
        }
        self.change(image)

    def _methods(self, request: typing.Any, context: typing.Any) -> object:
        return {'import-methods': {'type': 'array', 'value': self.methods}}

    def _import(self, request: typing.Any, context: typing.Any) -> str:
        image = self._named(request)
        assert image is not None
        assert request.json() == {'method': {'name': 'glance-direct'}}
        assert image['status'] == 'uploading'
        context.status_code = 202
        image['os_glance_import_task'] = 'a task'
        return ''

    def _tasks(self, request: typing.Any, context: typing.Any) -> object:
        """Each question for the tasks takes the import a look further."""
        image = self._named(request)
        assert image is not None
        if 'os_glance_import_task' not in image:
            return {'tasks': []}
        if self.looks:
            image['status'], self._task = self.looks.pop(0)
        elif image['status'] != 'active':
            self._finish(image)
        if self._task is None:
            context.status_code = 404
            return {}
        old = {'created_at': '2000-01-01T00:00:00Z', 'status': 'failure'}
        return {'tasks': [old, {'created_at': '2026'} | self._task]}

    def _finish(self, image: dict[str, typing.Any]) -> None:
        if self.convert is not None:
            image['disk_format'], data = self.convert(self.data[image['id']])
            self.data[image['id']] = data
            image['virtual_size'] = len(data)
        self._store(image)
        del image['os_glance_import_task']
        image['os_glance_failed_import'] = ''


def connect() -> sdk_connection.Connection:
    """A connection without Keystone."""
    return sdk_connection.Connection(
        auth_type='none',
        auth={'endpoint': URL},
        image_endpoint_override=URL,
    )


def connect_by_password(
    mocker: requests_mock.Mocker,
) -> sdk_connection.Connection:
    """A connection through a Keystone that gives tokens to a member."""
    token = keystone_fixture.V3Token()
    token.set_project_scope()
    token.add_role('member')
    token.add_service('image').add_standard_endpoints(public=URL, region='one')
    mocker.get(
        AUTH_URL,
        json={'version': keystone_fixture.V3Discovery(AUTH_URL)},
    )
    mocker.post(
        f'{AUTH_URL}/auth/tokens',
        json=token,
        headers={'X-Subject-Token': 'a-token'},
    )
    return sdk_connection.Connection(
        auth_type='v3password',
        auth={
            'auth_url': AUTH_URL,
            'username': 'u',
            'password': 'p',
            'user_domain_id': 'default',
            'project_name': 'p',
            'project_domain_id': 'default',
        },
        region_name='one',
    )
