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
from collections.abc import Sequence

from xenimport import driver
from xenimport import model


class Target(driver.Driver, abc.ABC):
    """A place where images go. One object serves one run.

    :ivar findings: what was odd about the images, none of it fatal
    """

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
        path: str,
        request: model.ImageRequest,
        progress: model.Progress = model.no_progress,
    ) -> model.Image:
        """Put the finished RAW file at ``path`` there as an image.

        :param disk: the disk's index in boot order
        :raises xenimport.exceptions.TargetError: after its own retries
        """

    @abc.abstractmethod
    def discard(self) -> None:
        """Undo all that :meth:`publish` has made in this run.

        :raises xenimport.exceptions.TargetError: naming what is left and
            the command that deletes it
        """
