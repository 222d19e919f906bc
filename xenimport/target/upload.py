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

"""Sending the data of one image, again where the way broke."""

from __future__ import annotations

import dataclasses
import time
import typing

from oslo_log import log as logging

from xenimport import exceptions
from xenimport import model
from xenimport.target import base
from xenimport.target import content as contents
from xenimport.target import replies
from xenimport.target import service as service_room

if typing.TYPE_CHECKING:
    import requests

LOG = logging.getLogger(__name__)

#: What Glance computes unless its operator has chosen otherwise.
ALGORITHM = 'sha512'
_DOING = 'take the image data'


@dataclasses.dataclass(frozen=True)
class Sent:
    """What was sent.

    :ivar value: its digest by :data:`ALGORITHM`
    :ivar head: its first 512 bytes
    """

    content: base.Content
    value: str
    head: bytes


@dataclasses.dataclass(frozen=True)
class _Try:
    """How one request went.

    :ivar response: None if there was none
    :ivar sent: None if not all was handed over
    :ivar taken: whether the content has given anything
    :ivar broken: how the way broke, None if it did not
    """

    response: requests.Response | None
    sent: Sent | None
    taken: bool
    broken: str | None


class Upload:
    """Sends one content to one record.

    :param resource: ``file`` for the image itself, ``stage`` for the
        staging area from which it is imported
    :param timeout: seconds that it may stand still
    """

    def __init__(
        self,
        service: service_room.Service,
        image_id: str,
        content: base.Content,
        resource: str,
        timeout: float,
    ) -> None:
        self._service = service
        self._id = image_id
        self._content = content
        self._resource = resource
        self._timeout = timeout

    def run(self, progress: model.Progress) -> Sent:
        """Send the data, again where the way broke.

        :raises xenimport.exceptions.TargetError: if that does not help,
            or the content comes once and the way broke
        :raises xenimport.exceptions.XenImportError: what the content
            raised; the connection is broken off before the last byte
        """
        waits = self._service.waits()
        renewed = False
        while True:
            one = self._send(progress)
            broken = one.broken
            if broken is None and one.response is not None:
                if one.response.status_code < 400 and one.sent:
                    return one.sent
                if one.response.status_code == 401 and not renewed:
                    # Not counted: a token runs out on every long run.
                    renewed = True
                    again = self._content.repeatable or not one.taken
                    if again and self._service.renew_token():
                        continue
                if one.response.status_code not in (409, *replies.TRANSIENT):
                    replies.raise_for(one.response, _DOING)
                broken = replies.reason(one.response)
            if one.taken and not self._content.repeatable:
                return self._sent_once(one, broken)
            if not waits:
                raise self._gave_up(broken)
            LOG.warning('The upload of %s broke: %s', self._id, broken)
            time.sleep(waits.pop(0))
            if self._has_arrived():
                return one.sent or self._digested()

    def _sent_once(self, one: _Try, broken: str | None) -> Sent:
        """What became of a content that cannot be sent again."""
        if one.sent and self._has_arrived():
            return one.sent
        raise exceptions.TargetError(
            'glance.upload-broken',
            'The upload broke off, and the package came in a stream and '
            'cannot be sent again',
            where=f'image {self._id}',
            expected='an answer from the Image service after the data',
            found=broken,
            fix='run the same command again; with the package in a file it '
            'would have been tried again by itself',
        )

    def _digested(self) -> Sent:
        """What has arrived by a request of which only half is known."""
        with contents.Body(self._content, ALGORITHM) as body:
            for _ in body:
                pass
            return Sent(self._content, body.hexdigest(), body.head)

    def _send(self, progress: model.Progress) -> _Try:
        """One request."""
        with contents.Body(self._content, ALGORITHM, progress) as body:
            response, broken = None, None
            try:
                response = self._put(body)
            except exceptions.TargetError as error:
                if body.failure is None and error.id != 'glance.unreachable':
                    raise
                broken = error.found or error.message
            if body.failure is not None:
                raise body.failure
            if response is not None and response.status_code < 400:
                _refuse_redirect(response)
                if not body.complete:
                    broken = f'only {body.handed} bytes were asked for'
            sent = None
            if body.complete:
                sent = Sent(self._content, body.hexdigest(), body.head)
            return _Try(response, sent, bool(body.taken), broken)

    def _put(self, body: contents.Body) -> requests.Response:
        """The request itself.

        keystoneauth must not repeat it by itself: the body would be at
        its end, and an empty image stand as active.
        """
        with replies.translated(_DOING):
            return self._service.proxy.put(
                f'/images/{self._id}/{self._resource}',
                data=body,
                headers={
                    'Content-Type': 'application/octet-stream',
                    'Content-Length': str(len(body)),
                    'X-OpenStack-Image-Size': str(len(body)),
                    'Accept': '',
                },
                timeout=self._timeout,
                allow_reauth=False,
                connect_retries=0,
                status_code_retries=0,
                redirect=False,
            )

    def _has_arrived(self) -> bool:
        """Whether the data came over and only the answer was lost.

        A service that still reads the broken upload is waited for. What
        is staged keeps its status; its size is stated once all is there.
        """
        staged = self._resource == 'stage'
        moving = ('saving', 'importing')
        try:
            image = self._service.image(self._id)
            for wait in self._service.waits():
                if image['status'] not in moving:
                    break
                time.sleep(wait)
                image = self._service.image(self._id)
        except exceptions.TargetError as error:
            if error.id in service_room.PASSING:
                return False
            raise
        return (
            image['status'] == ('uploading' if staged else 'active')
            and image.get('size') == self._content.size
        )

    def _gave_up(self, broken: str | None) -> exceptions.TargetError:
        return exceptions.TargetError(
            'glance.upload-broken',
            'The upload broke off, '
            f'{len(self._service.waits()) + 1} time(s) in all',
            where=f'image {self._id}',
            expected='an answer from the Image service after the data',
            found=broken,
            fix='see whether the service runs and has room in its store, '
            'and whether a proxy limits the size or time of a request',
        )


def _refuse_redirect(response: requests.Response) -> None:
    if response.status_code >= 300:
        raise exceptions.TargetError(
            'glance.redirected',
            'The Image service sends the upload elsewhere',
            where=response.url,
            found=response.headers.get('location'),
            fix='name the address it points to in clouds.yaml '
            '(image_endpoint_override)',
        )
