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

"""Importing what was staged: Glance's method ``glance-direct``.

The data goes into a staging area and from there, through the plugins of
the operator, into the store; one of them may convert it.
"""

from __future__ import annotations

from collections.abc import Callable
import time
import typing

from oslo_log import log as logging

from xenimport import exceptions
from xenimport.target import replies
from xenimport.target import service as service_room

LOG = logging.getLogger(__name__)

METHOD = 'glance-direct'
_DOING = 'start the import'
#: Seconds before the first look at an import, and between later ones.
_FIRST_LOOK = 0.1
_LOOK = 5.0
#: Looks at a record that has failed while its task goes on.
_DOUBTS = 5


def check_offered(service: service_room.Service) -> None:
    """See that the service has the method.

    :raises xenimport.exceptions.TargetError: if it has not
    """
    response = service.get('/info/import', 'tell its import methods')
    methods: list[str] = []
    # Glance before API 2.6 does not know the question.
    if response.status_code != 404:
        replies.raise_for(response, 'tell its import methods')
        stated = service_room.json_of(response).get('import-methods')
        value = stated.get('value') if isinstance(stated, dict) else None
        if isinstance(value, list):
            methods = [str(item) for item in value]
    if METHOD not in methods:
        raise exceptions.TargetError(
            'glance.transfer-unsupported',
            f'The Image service does not offer the import {METHOD}',
            where=response.url,
            expected=f'{METHOD} among the import methods',
            found=', '.join(methods) or 'none',
            fix='set transfer=upload in the section [target_glance] of '
            'xenimport.conf',
        )


class Import:
    """The import of one staged image.

    :param limit: seconds that it may take
    :param watched: called before each look; what it raises ends the wait
    """

    def __init__(
        self,
        service: service_room.Service,
        image_id: str,
        limit: float,
        watched: Callable[[], None],
    ) -> None:
        self._service = service
        self._id = image_id
        self._limit = limit
        self._watched = watched
        self._doubts = 0

    def run(self) -> dict[str, typing.Any]:
        """Start it and wait until the image is active; its record.

        :raises xenimport.exceptions.TargetError: if it is not by then
        """
        self._start()
        deadline = time.monotonic() + self._limit
        pause = _FIRST_LOOK
        said = ''
        while True:
            self._watched()
            image, task = self._look()
            status = str(image.get('status', ''))
            if status == 'active':
                return image
            words = _words(status, task)
            if self._failed(image, task):
                raise self._failure(words)
            if words != said:
                LOG.info('Glance imports %s: %s', self._id, words)
                said = words
            if time.monotonic() > deadline:
                raise self._too_slow(words)
            time.sleep(pause)
            pause = min(_LOOK, pause * 1.5)

    def _start(self) -> None:
        """Ask for it once, although an answer may get lost."""
        body = {'method': {'name': METHOD}}
        path = f'/images/{self._id}/import'
        for wait in self._service.waits():
            try:
                response = self._service.post(path, _DOING, body)
                if response.status_code not in replies.TRANSIENT:
                    break
            except exceptions.TargetError as error:
                if error.id not in service_room.PASSING:
                    raise
            time.sleep(wait)
            if self._has_started():
                return
        else:
            response = self._service.post(path, _DOING, body)
        replies.raise_for(response, _DOING)

    def _has_started(self) -> bool:
        image = self._service.image_patiently(self._id)
        return image.get('status') != 'uploading' or bool(
            image.get('os_glance_import_task')
        )

    def _look(self) -> tuple[dict[str, typing.Any], dict[str, typing.Any]]:
        """The record and the task, as empty as the service is silent.

        The task is asked for first: when it has failed, what the record
        says afterwards is final.
        """
        try:
            task = self._task()
            return self._service.image(self._id), task
        except exceptions.TargetError as error:
            if error.id not in service_room.PASSING:
                raise
            return {}, {}

    def _task(self) -> dict[str, typing.Any]:
        """The last task of the image; empty before API 2.12."""
        response = self._service.get(
            f'/images/{self._id}/tasks', 'show the import', skip_cache=True
        )
        if response.status_code in (403, 404):
            return {}
        replies.raise_for(response, 'show the import')
        tasks = service_room.json_of(response).get('tasks')
        if not isinstance(tasks, list):
            return {}
        known = [task for task in tasks if isinstance(task, dict)]
        return max(
            known, key=lambda task: str(task.get('created_at')), default={}
        )

    def _failed(
        self, image: dict[str, typing.Any], task: dict[str, typing.Any]
    ) -> bool:
        """Whether the import has failed.

        The record shows it a little before the task, which knows why.
        """
        if task.get('status') == 'failure':
            return True
        if not image.get('os_glance_failed_import') and image.get(
            'status'
        ) not in ('queued', 'killed', 'deleted'):
            return False
        self._doubts += 1
        running = task.get('status') in ('pending', 'processing')
        return not running or self._doubts > _DOUBTS

    def _failure(self, words: str) -> exceptions.TargetError:
        return exceptions.TargetError(
            'glance.import-failed',
            'Glance took the data, but could not import it',
            where=f'image {self._id}',
            expected='the status active',
            found=words,
            fix='ask the operator what the log of Glance says of it; '
            'transfer=upload in [target_glance] does without the import',
        )

    def _too_slow(self, words: str) -> exceptions.TargetError:
        return exceptions.TargetError(
            'glance.import-limit',
            'Glance has not imported the image in time',
            where=f'image {self._id}',
            expected=f'the status active within {self._limit:g} seconds',
            found=words,
            fix='raise import_limit in [target_glance] if the cloud is '
            'slow, or use transfer=upload',
        )


def _words(status: str, task: dict[str, typing.Any]) -> str:
    """What is known of an import, in a line."""
    parts = [f'status {status}' if status else 'no answer']
    if task.get('status'):
        parts.append(f'task {task["status"]}')
    if task.get('message'):
        parts.append(str(task['message']))
    return replies.clean(', '.join(parts))
