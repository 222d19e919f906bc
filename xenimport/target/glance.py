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

The record is made first and under an id of our own choice, which is
known (and journalled) before the request is sent: whatever is cut short,
it can be deleted. All requests go through openstacksdk's image proxy as
plain REST calls, since its ``create_image`` adds properties of its own
and its ``Image.upload`` raises on no refusal.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import os
import time
import typing
import uuid

from oslo_config import cfg
from oslo_log import log as logging

from xenimport import exceptions
from xenimport import model
from xenimport import shell
from xenimport.target import base
from xenimport.target import content
from xenimport.target import replies

if typing.TYPE_CHECKING:
    from openstack import connection as sdk_connection
    import requests

LOG = logging.getLogger(__name__)

#: What Glance computes unless its operator has chosen otherwise.
_ALGORITHM = 'sha512'
#: Properties that decide whether the guest boots: an image on which the
#: service has changed one is not what was repaired for it.
_DECISIVE = frozenset(
    (
        'architecture',
        'hw_disk_bus',
        'hw_firmware_type',
        'hw_machine_type',
        'hw_scsi_model',
        'os_type',
    )
)
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
#: Errors that may have passed when the same is asked again.
_PASSING = frozenset(('glance.unreachable', 'glance.failed'))
#: Longest name, property name and value that Glance stores, characters.
_LONGEST = 255


@dataclasses.dataclass
class _Record:
    """A record that this run has made, or was about to make.

    :ivar answered: the service is known to have it
    """

    id: str
    answered: bool = False


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
    )
    handles = 'Glance, the Image service (v2)'

    def __init__(
        self,
        options: Mapping[str, typing.Any] | None = None,
        *,
        connection: sdk_connection.Connection,
        created: Callable[[str], None] = _nothing,
    ) -> None:
        super().__init__(options)
        self._connection = connection
        self._created = created
        self._records: list[_Record] = []
        self.findings: list[model.Finding] = []

    def adopt(self, image_ids: Sequence[str]) -> None:
        """Take over records of an earlier, broken run, to discard them."""
        self._records += [_Record(image_id) for image_id in image_ids]

    def validate(self, requests: Sequence[model.ImageRequest]) -> None:
        """See that the service answers, lets us in and has room.

        Whether it would allow a visibility or another owner is known to
        its policy alone, so that is tried with an empty record, which is
        deleted again.
        """
        for request in requests:
            _check_request(request)
        with replies.translated('list images'):
            listed = self._connection.image.get(
                '/images',
                params={'limit': 1},
                timeout=self.options['timeout'],
            )
        replies.raise_for(listed, 'list images')
        if 'images' not in _json(listed):
            raise exceptions.TargetError(
                'glance.no-endpoint',
                'What answers there is not an Image service',
                where=listed.url,
                expected='a list of images',
                found=replies.reason(listed),
                fix='check the endpoint in clouds.yaml',
            )
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

    def publish(
        self,
        disk: int,
        path: str,
        request: model.ImageRequest,
        progress: model.Progress = model.no_progress,
    ) -> model.Image:
        """Make the record, send the data, compare what arrived.

        After an error the record stays until :meth:`discard`.
        """
        size = os.stat(path).st_size
        self._check_quota(1, size)
        record = self._create(request)
        value = self._upload(record.id, path, progress)
        image = self._fetch_patiently(record.id)
        algorithm, value = self._compare(image, path, size, value)
        self._compare_properties(image, request)
        return model.Image(
            disk=disk,
            id=record.id,
            name=str(image.get('name')),
            status=str(image['status']),
            size=size,
            checksum=image.get('checksum'),
            hash_algorithm=algorithm,
            hash_value=value,
            properties={
                key: found
                for key, found in image.items()
                if key not in _RESERVED
            },
        )

    def discard(self) -> None:
        """Delete every record made, unprotecting it where needed."""
        left: dict[str, str] = {}
        for record in reversed(list(self._records)):
            try:
                self._delete(record)
            except exceptions.TargetError as error:
                left[record.id] = error.found or error.message
                continue
            self._records.remove(record)
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

    # The record.

    def _create(self, request: model.ImageRequest) -> _Record:
        record = _Record(str(uuid.uuid4()))
        self._records.append(record)
        self._created(record.id)
        with replies.translated('create the image record'):
            response = self._connection.image.post(
                '/images',
                json=_body(record.id, request),
                timeout=self.options['timeout'],
            )
        if response.status_code < 500:
            # A refusal is an answer too: there is nothing to delete then.
            record.answered = True
        if 400 <= response.status_code < 500:
            self._records.remove(record)
        replies.raise_for(response, 'create the image record')
        return record

    def _try(self, request: model.ImageRequest) -> None:
        """Whether the service's policy allows such a record."""
        probe = dataclasses.replace(
            request, properties={}, tags=(), protected=False
        )
        self._create(probe)
        self.discard()

    def _fetch_patiently(self, image_id: str) -> dict[str, typing.Any]:
        """The record; the data stand already, so it is waited for."""
        for wait in self._waits():
            try:
                return self._fetch(image_id)
            except exceptions.TargetError as error:
                if error.id not in _PASSING:
                    raise
            time.sleep(wait)
        return self._fetch(image_id)

    def _fetch(self, image_id: str) -> dict[str, typing.Any]:
        with replies.translated('show the image'):
            response = self._connection.image.get(
                f'/images/{image_id}',
                timeout=self.options['timeout'],
                skip_cache=True,
            )
        replies.raise_for(response, 'show the image')
        return _json(response)

    def _delete(self, record: _Record) -> None:
        """Delete a record; one that is not there is fine."""
        with replies.translated('delete the image record'):
            response = self._request_delete(record.id)
            if response.status_code == 404 and not record.answered:
                # The request that makes it may still be on its way.
                time.sleep(min(1.0, self.options['retry_wait']))
                response = self._request_delete(record.id)
            if response.status_code == 403:
                self._unprotect(record.id)
                response = self._request_delete(record.id)
            for wait in self._waits():
                if response.status_code not in (409, *replies.TRANSIENT):
                    break
                time.sleep(wait)
                response = self._request_delete(record.id)
        if response.status_code != 404:
            replies.raise_for(response, 'delete the image record')

    def _request_delete(self, image_id: str) -> requests.Response:
        return self._connection.image.delete(
            f'/images/{image_id}', timeout=self.options['timeout']
        )

    def _unprotect(self, image_id: str) -> None:
        self._connection.image.patch(
            f'/images/{image_id}',
            json=[{'op': 'replace', 'path': '/protected', 'value': False}],
            headers={
                'Content-Type': (
                    'application/openstack-images-v2.1-json-patch'
                )
            },
            timeout=self.options['timeout'],
        )

    # The data.

    def _waits(self) -> list[float]:
        """Seconds before each new try."""
        return [
            self.options['retry_wait'] * 4**number
            for number in range(self.options['retries'])
        ]

    def _upload(
        self, image_id: str, path: str, progress: model.Progress
    ) -> str:
        """Send the data, again where the way broke; its digest."""
        waits = self._waits()
        renewed = False
        while True:
            response, value, broken = self._send(image_id, path, progress)
            if broken is None and response is not None:
                if response.status_code < 400:
                    return value
                if response.status_code == 401 and not renewed:
                    # Not counted: a token runs out on every long run.
                    renewed = True
                    if self._connection.session.invalidate():
                        continue
                if response.status_code not in (409, *replies.TRANSIENT):
                    replies.raise_for(response, 'take the image data')
                broken = replies.reason(response)
            if not waits:
                raise self._gave_up(image_id, broken)
            LOG.warning('The upload of %s broke: %s', image_id, broken)
            time.sleep(waits.pop(0))
            if self._has_arrived(image_id, path):
                return content.digest(path, _ALGORITHM)

    def _send(
        self, image_id: str, path: str, progress: model.Progress
    ) -> tuple[requests.Response | None, str, str | None]:
        """One try: the answer, the digest and how the way broke.

        keystoneauth must not repeat the request by itself: the body
        would be at its end, and an empty image stand as active.
        """
        with content.Body(path, _ALGORITHM, progress) as body:
            try:
                with replies.translated('take the image data'):
                    response = self._connection.image.put(
                        f'/images/{image_id}/file',
                        data=body,
                        headers={
                            'Content-Type': 'application/octet-stream',
                            'Content-Length': str(len(body)),
                            'X-OpenStack-Image-Size': str(len(body)),
                            'Accept': '',
                        },
                        timeout=self.options['upload_timeout'],
                        allow_reauth=False,
                        connect_retries=0,
                        status_code_retries=0,
                        redirect=False,
                    )
            except exceptions.TargetError as error:
                if error.id != 'glance.unreachable':
                    raise
                return None, '', error.found or error.message
            if 300 <= response.status_code < 400:
                raise exceptions.TargetError(
                    'glance.redirected',
                    'The Image service sends the upload elsewhere',
                    where=response.url,
                    found=response.headers.get('location'),
                    fix='name the address it points to in clouds.yaml '
                    '(image_endpoint_override)',
                )
            if response.status_code < 400 and body.sent != body.size:
                return None, '', f'only {body.sent} bytes were asked for'
            value = body.hexdigest() if response.status_code < 400 else ''
            return response, value, None

    def _has_arrived(self, image_id: str, path: str) -> bool:
        """Whether the data came over and only the answer was lost.

        A service that still reads the broken upload is waited for.
        """
        try:
            image = self._fetch(image_id)
            for wait in self._waits():
                if image['status'] not in ('saving', 'importing'):
                    break
                time.sleep(wait)
                image = self._fetch(image_id)
        except exceptions.TargetError as error:
            if error.id in _PASSING:
                return False
            raise
        return (
            image['status'] == 'active'
            and image.get('size') == os.stat(path).st_size
        )

    def _gave_up(
        self, image_id: str, broken: str | None
    ) -> exceptions.TargetError:
        return exceptions.TargetError(
            'glance.upload-broken',
            'The upload broke off, '
            f'{self.options["retries"] + 1} time(s) in all',
            where=f'image {image_id}',
            expected='an answer from the Image service after the data',
            found=broken,
            fix='see whether the service runs and has room in its store, '
            'and whether a proxy limits the size or time of a request',
        )

    # What arrived.

    def _compare(
        self,
        image: Mapping[str, typing.Any],
        path: str,
        size: int,
        value: str,
    ) -> tuple[str, str]:
        """Compare status, size and digest; the digest that holds."""
        where = f'image {image["id"]}'
        if image['status'] != 'active':
            raise exceptions.TargetError(
                'glance.not-active',
                'Glance took the data, but the image is not active',
                where=where,
                expected='active',
                found=str(image['status']),
                fix='ask the operator what the log of Glance says of it',
            )
        if image.get('size') != size:
            raise exceptions.TargetError(
                'glance.size-mismatch',
                'The image in Glance has another size than the disk',
                where=where,
                expected=f'{size} bytes',
                found=f'{image.get("size")} bytes',
                fix='import it again',
            )
        algorithm, theirs = self._their_digest(image)
        if algorithm != _ALGORITHM and algorithm:
            value = content.digest(path, algorithm)
        if not algorithm:
            self._note_unchecked(where)
            return _ALGORITHM, value
        if theirs != value:
            raise exceptions.TargetError(
                'glance.hash-mismatch',
                'The image in Glance is not the disk that was sent',
                where=where,
                expected=f'{algorithm} {value}',
                found=f'{algorithm} {theirs}',
                fix='import it again; if it happens twice, memory or '
                'disk of one of the machines is at fault',
            )
        return algorithm, value

    def _their_digest(
        self, image: Mapping[str, typing.Any]
    ) -> tuple[str, str]:
        """Algorithm and digest that Glance states, or empty ones.

        A store that takes the data by itself may state none.
        """
        algorithm = str(image.get('os_hash_algo') or '').lower()
        theirs = image.get('os_hash_value')
        if theirs and algorithm in content.ALGORITHMS:
            return algorithm, str(theirs).lower()
        if image.get('checksum') and 'md5' in content.ALGORITHMS:
            return 'md5', str(image['checksum']).lower()
        return '', ''

    def _note_unchecked(self, where: str) -> None:
        self.findings.append(
            model.Finding(
                id='glance.hash-unchecked',
                severity=model.Severity.WARNING,
                title='Glance states no digest that could be compared',
                evidence=f'{where}: no known os_hash_algo, no checksum; '
                'only the size was compared',
                fix='download it and compare the digest in the report',
                subject=where,
            )
        )

    def _compare_properties(
        self, image: Mapping[str, typing.Any], request: model.ImageRequest
    ) -> None:
        """Compare the properties; operators may overwrite a tenant's."""
        where = f'image {image["id"]}'
        for key, wanted in sorted(request.properties.items()):
            found = image.get(key)
            if found == wanted:
                continue
            if key in _DECISIVE:
                raise exceptions.TargetError(
                    'glance.property-changed',
                    f'Glance changed the property {key}, on which the '
                    'boot depends',
                    where=where,
                    expected=f'{key}={wanted}',
                    found=f'{key}={found}',
                    fix='ask the operator about inject_image_metadata, '
                    'or import with the value that this cloud wants '
                    '(--disk-bus, --property)',
                )
            self.findings.append(
                model.Finding(
                    id='glance.property-overwritten',
                    severity=model.Severity.NOTE,
                    title=f'Glance changed the property {key}',
                    evidence=f'{where}: {wanted!r} was asked for, '
                    f'{found!r} stands there',
                    fix=shell.join(
                        'openstack',
                        'image',
                        'set',
                        f'--property={key}={wanted}',
                        str(image['id']),
                    ),
                    subject=key,
                )
            )

    # Quota.

    def _check_quota(self, count: int, size: int = 0) -> None:
        """Compare with the limits, where the service tells them.

        It does since API 2.13 and where Keystone holds the limits; an
        older one says so only once it refuses.
        """
        with replies.translated('tell the quota'):
            response = self._connection.image.get(
                '/info/usage', timeout=self.options['timeout']
            )
        if response.status_code >= 400:
            return
        usage = _json(response).get('usage', {})
        for key, needed in (
            ('image_count_total', count),
            ('image_count_uploading', 1),
            ('image_size_total', -(-size >> 20)),
        ):
            free = _free(usage.get(key))
            if free is not None and needed > free:
                raise exceptions.TargetError(
                    'glance.quota',
                    f'The quota {key} leaves no room',
                    expected=f'{needed} free'
                    + (' (MiB)' if 'size' in key else ''),
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


def _json(response: requests.Response) -> dict[str, typing.Any]:
    """The object in an answer.

    :raises xenimport.exceptions.TargetError: if it holds none
    """
    try:
        found = response.json()
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise exceptions.TargetError(
            'glance.no-endpoint',
            'What answers there is not an Image service',
            where=response.url,
            expected='JSON',
            found=replies.reason(response),
            fix='check the endpoint in clouds.yaml; a proxy or portal may '
            'answer in its place',
        )
    return found


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
