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

"""A target that is Glance, the Image service.

The record is made first, the data is sent to it, and what stands then is
compared with what was sent. No call of the SDK's own for images is used:
``create_image`` adds properties of its own and ``Image.upload`` raises on
no refusal.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import typing

from oslo_config import cfg

from xenimport import exceptions
from xenimport import model
from xenimport.target import arrival
from xenimport.target import base
from xenimport.target import direct
from xenimport.target import records
from xenimport.target import replies
from xenimport.target import service as service_room
from xenimport.target import upload

if typing.TYPE_CHECKING:
    from openstack import connection as sdk_connection

#: Keys of the record that are Glance's own, so no property can have them.
_RESERVED = frozenset(
    (
        'checksum',
        'container_format',
        'created_at',
        'direct_url',
        'disk_format',
        'file',
        'id',
        'locations',
        'min_disk',
        'min_ram',
        'name',
        'os_hash_algo',
        'os_hash_value',
        'os_hidden',
        'owner',
        'protected',
        'schema',
        'self',
        'size',
        'status',
        'stores',
        'tags',
        'updated_at',
        'virtual_size',
        'visibility',
    )
)
#: What the properties start with in which Glance keeps an import's state.
_INTERNAL = 'os_glance_'
#: Longest name, property name and value that Glance stores, characters.
_LONGEST = 255


def _nothing(image_id: str) -> None:
    """Journal nothing."""


class GlanceTarget(base.Target):
    """Uploads each disk as an image, and verifies what arrived.

    :param connection: openstacksdk's, authenticated or about to be
    :param created: called with each record's id before it is made
    :ivar findings: what was odd about the images, none of it fatal
    """

    OPTS = (
        cfg.IntOpt(
            'retries',
            default=3,
            min=0,
            help='How often an upload that broke is tried again, on the '
            'same record.',
        ),
        cfg.FloatOpt(
            'retry_wait',
            default=2.0,
            min=0,
            help='Seconds before the first new try; four times as long '
            'before each further one.',
        ),
        cfg.FloatOpt(
            'timeout',
            default=60.0,
            min=1,
            help='Seconds that a request without image data may wait for '
            'the Image service.',
        ),
        cfg.FloatOpt(
            'upload_timeout',
            default=3600.0,
            min=1,
            help='Seconds that an upload may stand still. After the last '
            'byte some services store the image before they answer.',
        ),
        cfg.StrOpt(
            'transfer',
            default='upload',
            choices=['upload', direct.METHOD],
            help='How the data goes to the Image service. upload stores '
            'what is sent; glance-direct stages it and asks for an import, '
            'on which the plugins of the operator work: with '
            '--disk-format qcow2 and a cloud that converts to RAW, fewer '
            'bytes are sent.',
        ),
        cfg.FloatOpt(
            'import_limit',
            default=3600.0,
            min=1,
            help='Seconds that the import of an image may take, with '
            'transfer=glance-direct.',
        ),
    )
    handles = 'Glance, the Image service (v2)'
    streams = True

    def __init__(
        self,
        options: Mapping[str, typing.Any] | None = None,
        *,
        connection: sdk_connection.Connection,
        created: Callable[[str], None] = _nothing,
    ) -> None:
        super().__init__(options)
        self._service = service_room.Service(connection, self.options)
        self._records = records.Records(
            self._service, created, self.options['retry_wait']
        )
        self._direct = self.options['transfer'] == direct.METHOD
        # Threads only append, which is one step for the interpreter.
        self.findings: list[model.Finding] = []

    def adopt(self, image_ids: Sequence[str]) -> None:
        """Take over records of an earlier, broken run, to discard them."""
        self._records.adopt(image_ids)

    def validate(self, requests: Sequence[model.ImageRequest]) -> None:
        """See that the service answers, lets us in and has room.

        Whether it would allow a visibility or another owner is known to
        its policy alone, so that is tried with an empty record, which is
        deleted again.
        """
        for request in requests:
            _check_request(request)
        doing = 'list images'
        listed = self._service.get('/images', doing, params={'limit': 1})
        replies.raise_for(listed, doing)
        if 'images' not in service_room.json_of(listed):
            raise service_room.not_an_image_service(listed, 'a list of images')
        if self._direct:
            direct.check_offered(self._service)
        self._check_quota(len(requests))
        tried = set()
        for request in requests:
            unusual = (
                request.visibility in ('public', 'community')
                or request.project is not None
            )
            case = (request.visibility, request.project)
            if unusual and case not in tried:
                tried.add(case)
                self._try(request)

    def _try(self, request: model.ImageRequest) -> None:
        """Whether the service's policy allows such a record."""
        probe = dataclasses.replace(
            request, properties={}, tags=(), protected=False
        )
        self._records.create(probe)
        self._records.discard()

    def publish(
        self,
        disk: int,
        content: base.Content,
        request: model.ImageRequest,
        progress: model.Progress = model.no_progress,
        *,
        raw: base.Content | None = None,
    ) -> model.Image:
        """Make the record, send the data, compare what arrived.

        After an error the record stays until :meth:`discard`.
        """
        self._check_quota(1, content.size)
        image_id = self._records.create(request)
        sent = upload.Upload(
            self._service,
            image_id,
            content,
            'stage' if self._direct else 'file',
            self.options['upload_timeout'],
        ).run(progress)
        if self._direct:
            image = direct.Import(
                self._service,
                image_id,
                self.options['import_limit'],
                lambda: progress(content.size, content.size),
            ).run()
        else:
            image = self._service.image_patiently(image_id)
        arrived = arrival.Arrival(image)
        arrived.compare(request, sent, raw)
        self.findings += arrived.findings
        return model.Image(
            disk=disk,
            id=image_id,
            name=str(image.get('name')),
            status=str(image['status']),
            size=image['size'],
            checksum=image.get('checksum'),
            hash_algorithm=arrived.algorithm,
            hash_value=arrived.value,
            properties={
                key: found
                for key, found in image.items()
                if key not in _RESERVED and not key.startswith(_INTERNAL)
            },
            disk_format=arrived.disk_format,
        )

    def discard(self) -> None:
        """Delete every record made, unprotecting it where needed."""
        self._records.discard()

    def _check_quota(self, count: int, size: int = 0) -> None:
        """Compare with the limits, where the service tells them.

        It does since API 2.13 and where Keystone holds the limits; an
        older one says so only once it refuses.
        """
        response = self._service.get('/info/usage', 'tell the quota')
        if response.status_code >= 400:
            return
        usage = service_room.json_of(response).get('usage', {})
        for key, needed in (
            ('image_count_total', count),
            ('image_count_uploading', 1),
            ('image_size_total', -(-size >> 20)),
            ('image_stage_total', -(-size >> 20) if self._direct else 0),
        ):
            free = _free(usage.get(key))
            if free is not None and needed > free:
                raise exceptions.TargetError(
                    'glance.quota',
                    f'The quota {key} leaves no room',
                    expected=f'{needed} free'
                    + (' (MiB)' if 'image_count' not in key else ''),
                    found=f'{free} free: {usage[key]}',
                    fix='delete images you no longer need, or ask the '
                    'operator for more',
                )


def _free(usage: typing.Any) -> int | None:
    """What a quota leaves, None where it is not limited or not told."""
    try:
        limit, used = int(usage['limit']), int(usage['usage'])
    except (KeyError, TypeError, ValueError):
        return None
    return None if limit < 0 else limit - used


def _check_request(request: model.ImageRequest) -> None:
    """Refuse what Glance cannot store, before it is asked."""
    taken = sorted(_RESERVED.intersection(request.properties))
    if taken:
        raise exceptions.TargetError(
            'glance.property-reserved',
            'These are no properties but fields of the image itself',
            found=', '.join(taken),
            fix='leave them out of --property; some have an option of '
            'their own (--min-disk, --protected, --tag)',
        )
    texts = [request.name, *request.tags]
    texts += [*request.properties, *request.properties.values()]
    long = [text for text in texts if len(text) > _LONGEST]
    if long:
        raise exceptions.TargetError(
            'glance.text-too-long',
            'A name, tag or property is longer than Glance stores',
            expected=f'at most {_LONGEST} characters',
            found=f'{len(long[0])} characters: {long[0][:40]}…',
            fix='give a shorter one with --name, --tag or --property',
        )
