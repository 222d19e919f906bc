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

"""The image records that one run makes, and their removal."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence
import dataclasses
import threading
import time
import typing
import uuid

from xenimport import exceptions
from xenimport import model
from xenimport import shell
from xenimport.target import replies
from xenimport.target import service as service_room

_DELETING = 'delete the image record'


@dataclasses.dataclass(eq=False)
class _Record:
    """A record that this run has made, or was about to make.

    :ivar answered: the service is known to have it
    """

    id: str
    answered: bool = False


class Records:
    """All records of a run; several threads may make them.

    Each is made under an id of our own choice, which is known before the
    request is sent: whatever is cut short, it can be deleted.

    :param created: called with each record's id before it is made
    :param pause: longest wait for a request that may be on its way,
        seconds
    """

    def __init__(
        self,
        service: service_room.Service,
        created: Callable[[str], None],
        pause: float,
    ) -> None:
        self._service = service
        self._created = created
        self._pause = pause
        self._lock = threading.Lock()
        self._records: list[_Record] = []

    def adopt(self, image_ids: Sequence[str]) -> None:
        """Take over records of an earlier run."""
        with self._lock:
            self._records += [_Record(image_id) for image_id in image_ids]

    def create(self, request: model.ImageRequest) -> str:
        """Make a record; its id.

        :raises xenimport.exceptions.TargetError: if it is refused
        """
        record = _Record(str(uuid.uuid4()))
        with self._lock:
            self._records.append(record)
            self._created(record.id)
        doing = 'create the image record'
        response = self._service.post(
            '/images', doing, _body(record.id, request)
        )
        if response.status_code < 500:
            # A refusal is an answer too: there is nothing to delete then.
            record.answered = True
        if 400 <= response.status_code < 500:
            self._forget(record)
        replies.raise_for(response, doing)
        return record.id

    def _forget(self, record: _Record) -> None:
        with self._lock:
            self._records.remove(record)

    def discard(self) -> None:
        """Delete every record, unprotecting it where needed.

        :raises xenimport.exceptions.TargetError: naming what is left
        """
        left: dict[str, str] = {}
        with self._lock:
            records = list(reversed(self._records))
        for record in records:
            try:
                self._delete(record)
            except exceptions.TargetError as error:
                left[record.id] = error.found or error.message
                continue
            self._forget(record)
        if left:
            raise exceptions.TargetError(
                'glance.record-left',
                'Image records that this run made could not be deleted',
                found='; '.join(
                    f'{image_id}: {why}' for image_id, why in left.items()
                ),
                fix='once the Image service answers again: '
                + '; '.join(
                    shell.join('openstack', 'image', 'delete', image_id)
                    for image_id in left
                ),
            )

    def _delete(self, record: _Record) -> None:
        """Delete a record; one that is not there is fine."""
        path = f'/images/{record.id}'
        response = self._service.delete(path, _DELETING)
        if response.status_code == 404 and not record.answered:
            # The request that makes it may still be on its way.
            time.sleep(min(1.0, self._pause))
            response = self._service.delete(path, _DELETING)
        if response.status_code == 403:
            self._service.replace(path, _DELETING, protected=False)
            response = self._service.delete(path, _DELETING)
        for wait in self._service.waits():
            if response.status_code not in (409, *replies.TRANSIENT):
                break
            time.sleep(wait)
            response = self._service.delete(path, _DELETING)
        if response.status_code != 404:
            replies.raise_for(response, _DELETING)


def _body(image_id: str, request: model.ImageRequest) -> dict[str, typing.Any]:
    """The record as Glance's API takes it."""
    body: dict[str, typing.Any] = dict(request.properties)
    body |= {
        'id': image_id,
        'name': request.name,
        'disk_format': request.disk_format,
        'container_format': request.container_format,
        'min_disk': request.min_disk,
        'min_ram': request.min_ram,
    }
    if request.tags:
        body['tags'] = list(request.tags)
    if request.visibility is not None:
        body['visibility'] = request.visibility
    if request.protected is not None:
        body['protected'] = request.protected
    if request.project is not None:
        body['owner'] = request.project
    return body
