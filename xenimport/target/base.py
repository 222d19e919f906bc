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

"""The contract of a target: a verified disk in, an image out."""

from __future__ import annotations

import abc
from collections.abc import Iterator
from collections.abc import Sequence
import typing

from xenimport import driver
from xenimport import model

#: Most bytes that a content hands over at a time; large enough that the
#: interpreter's own cost vanishes, small enough for the CPU's cache.
CHUNK = 1 << 20
#: How many chunks may be in use at the same time.
DEPTH = 4


class Content(typing.Protocol):
    """The bytes of one image, as a target takes them."""

    @property
    def size(self) -> int:
        """Bytes in all."""

    @property
    def repeatable(self) -> bool:
        """Whether :meth:`chunks` can be called again."""

    @property
    def path(self) -> str | None:
        """A finished file with just these bytes, None if there is none."""

    def chunks(self) -> Iterator[memoryview]:
        """Yield all bytes in order, at most :data:`CHUNK` each.

        Each stays valid until :data:`DEPTH` more were asked for.

        :raises xenimport.exceptions.XenImportError: if the source fails:
            then nothing may become of the image
        """


class Target(driver.Driver, abc.ABC):
    """A place where images go. One object serves one run.

    Several threads may publish at the same time, each its own disk.

    :cvar streams: whether a content need not be a finished file
    :ivar findings: what was odd about the images, none of it fatal
    """

    streams: typing.ClassVar[bool] = False
    findings: Sequence[model.Finding] = ()

    @abc.abstractmethod
    def validate(self, requests: Sequence[model.ImageRequest]) -> None:
        """Refuse early: credentials, quota, options.

        Cheap, and called before any slow work.

        :raises xenimport.exceptions.TargetError: if it would refuse
        """

    def make_sure_of_room(self, data: int, work_dir: str) -> None:
        """Refuse early where ``data`` bytes will not fit.

        :param work_dir: where the workfiles are
        :raises xenimport.exceptions.TargetError: if they will not
        """

    @abc.abstractmethod
    def publish(
        self,
        disk: int,
        content: Content,
        request: model.ImageRequest,
        progress: model.Progress = model.no_progress,
        *,
        raw: Content | None = None,
    ) -> model.Image:
        """Put the content there as an image.

        :param disk: the disk's index in boot order
        :param content: in the disk format that the request names
        :param raw: the RAW disk that the content was made of, where it
            is another one and can be read again: some clouds convert
        :raises xenimport.exceptions.TargetError: after its own retries
        :raises xenimport.exceptions.XenImportError: what the content
            raised; no image stands then, or it is one to discard
        """

    @abc.abstractmethod
    def discard(self) -> None:
        """Undo all that :meth:`publish` has made in this run.

        :raises xenimport.exceptions.TargetError: naming what is left and
            the command that deletes it
        """
