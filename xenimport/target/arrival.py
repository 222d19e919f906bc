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

"""Comparing the image that stands with the disk that was sent."""

from __future__ import annotations

from collections.abc import Mapping
import dataclasses
import typing

from xenimport import exceptions
from xenimport import model
from xenimport import shell
from xenimport.target import base
from xenimport.target import content as contents
from xenimport.target import upload

_UNCHECKED = 'glance.hash-unchecked'
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


@dataclasses.dataclass
class Arrival:
    """What stands in Glance, compared.

    :param image: the record
    :ivar algorithm: and ``value``: the digest that holds; empty where
        the image is not known to the last bit
    :ivar findings: what was odd
    """

    image: Mapping[str, typing.Any]
    findings: list[model.Finding] = dataclasses.field(default_factory=list)
    algorithm: str = ''
    value: str = ''

    @property
    def _where(self) -> str:
        return f'image {self.image["id"]}'

    @property
    def disk_format(self) -> str:
        """As it stands."""
        return str(self.image.get('disk_format'))

    def compare(
        self,
        request: model.ImageRequest,
        sent: upload.Sent,
        raw: base.Content | None,
    ) -> None:
        """Compare status, size, digest and properties.

        :param raw: the RAW disk that the content was made of
        :raises xenimport.exceptions.TargetError: if it is not the disk
        """
        self._compare_status()
        if self.disk_format == request.disk_format:
            self._compare_size(sent.content.size, self.image.get('size'))
            self._compare_digest(sent.content, sent.value)
        elif self.disk_format == 'raw' and raw is not None:
            self._compare_size(raw.size, self.image.get('size'))
            self._compare_digest(raw, None)
        else:
            self._compare_virtual_size(request, sent, raw)
        self._compare_properties(request)

    def _compare_status(self) -> None:
        if self.image['status'] != 'active':
            raise exceptions.TargetError(
                'glance.not-active',
                'Glance took the data, but the image is not active',
                where=self._where,
                expected='active',
                found=str(self.image['status']),
                fix='ask the operator what the log of Glance says of it',
            )

    def _compare_size(self, expected: int, found: typing.Any) -> None:
        if found != expected:
            raise exceptions.TargetError(
                'glance.size-mismatch',
                'The image in Glance has another size than the disk',
                where=self._where,
                expected=f'{expected} bytes',
                found=f'{found} bytes',
                fix='import it again',
            )

    def _compare_digest(
        self, content: base.Content, value: str | None
    ) -> None:
        """Compare with Glance's own digest, where it has one.

        :param value: the digest by :data:`upload.ALGORITHM`, None if it
            is not known yet
        """
        algorithm, theirs = _their_digest(self.image)
        if not algorithm:
            self._keep_own(content, value)
            self._note_unchecked(
                'Glance states no digest that could be compared',
                'no known os_hash_algo, no checksum; only the size was '
                'compared',
            )
            return
        if algorithm != upload.ALGORITHM or value is None:
            if not content.repeatable:
                self._keep_own(content, value)
                self._note_unchecked(
                    'Glance states a digest that was not computed',
                    f'{algorithm}, which is not known beforehand, and the '
                    'package came in a stream; only the size was compared',
                )
                return
            value = contents.digest(content, algorithm)
        if theirs != value:
            raise exceptions.TargetError(
                'glance.hash-mismatch',
                'The image in Glance is not the disk that was sent',
                where=self._where,
                expected=f'{algorithm} {value}',
                found=f'{algorithm} {theirs}',
                fix='import it again; if it happens twice, memory or '
                'disk of one of the machines is at fault',
            )
        self.algorithm, self.value = algorithm, value

    def _keep_own(self, content: base.Content, value: str | None) -> None:
        if value is None:
            value = contents.digest(content, upload.ALGORITHM)
        self.algorithm, self.value = upload.ALGORITHM, value

    def _compare_virtual_size(
        self,
        request: model.ImageRequest,
        sent: upload.Sent,
        raw: base.Content | None,
    ) -> None:
        """Compare what is left of an image that the cloud has converted."""
        expected = raw.size if raw else _virtual_size(request, sent)
        found = self.image.get('virtual_size')
        if found is None and self.disk_format == 'raw':
            found = self.image.get('size')
        if expected is not None and found is not None:
            self._compare_size(expected, found)
        self._note_unchecked(
            'The cloud has converted the image, so its digest could not be '
            'compared',
            f'disk_format {self.disk_format} in place of '
            f'{request.disk_format}; virtual size {found}, '
            f'{expected} expected',
        )

    def _note_unchecked(self, title: str, evidence: str) -> None:
        self.findings.append(
            model.Finding(
                id=_UNCHECKED,
                severity=model.Severity.WARNING,
                title=title,
                evidence=f'{self._where}: {evidence}',
                fix='download it and compare the digest in the report',
                subject=self._where,
            )
        )

    def _compare_properties(self, request: model.ImageRequest) -> None:
        """Compare the properties; operators may overwrite a tenant's."""
        for key, wanted in sorted(request.properties.items()):
            found = self.image.get(key)
            if found == wanted:
                continue
            if key in _DECISIVE:
                raise exceptions.TargetError(
                    'glance.property-changed',
                    f'Glance changed the property {key}, on which the '
                    'boot depends',
                    where=self._where,
                    expected=f'{key}={wanted}',
                    found=f'{key}={found}',
                    fix='ask the operator about inject_image_metadata, '
                    'or import with the value that this cloud wants '
                    '(--disk-bus, --property)',
                )
            self.findings.append(self._overwritten(key, wanted, found))

    def _overwritten(
        self, key: str, wanted: str, found: typing.Any
    ) -> model.Finding:
        return model.Finding(
            id='glance.property-overwritten',
            severity=model.Severity.NOTE,
            title=f'Glance changed the property {key}',
            evidence=f'{self._where}: {wanted!r} was asked for, '
            f'{found!r} stands there',
            fix=shell.join(
                'openstack',
                'image',
                'set',
                f'--property={key}={wanted}',
                str(self.image['id']),
            ),
            subject=key,
        )


def _their_digest(image: Mapping[str, typing.Any]) -> tuple[str, str]:
    """Algorithm and digest that Glance states, or empty ones.

    A store that takes the data by itself may state none.
    """
    algorithm = str(image.get('os_hash_algo') or '').lower()
    theirs = image.get('os_hash_value')
    if theirs and algorithm in contents.ALGORITHMS:
        return algorithm, str(theirs).lower()
    if image.get('checksum') and 'md5' in contents.ALGORITHMS:
        return 'md5', str(image['checksum']).lower()
    return '', ''


def _virtual_size(
    request: model.ImageRequest, sent: upload.Sent
) -> int | None:
    """The size of the disk in what was sent, None if it does not tell.

    In a qcow2 it stands at byte 24, big-endian (QEMU, docs/interop).
    """
    if request.disk_format == 'raw':
        return sent.content.size
    if sent.head.startswith(b'QFI\xfb') and len(sent.head) >= 32:
        return int.from_bytes(sent.head[24:32], 'big')
    return None
