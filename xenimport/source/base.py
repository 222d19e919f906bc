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

"""The contract of a source: package in, virtual system out."""

from __future__ import annotations

import abc

from xenimport import driver
from xenimport import model


class Source(driver.Driver, abc.ABC):
    """Reads one kind of package. Extracts nothing, writes nothing."""

    @abc.abstractmethod
    def probe(self, path: str) -> bool:
        """Whether the package is of this kind, judged by its content.

        :raises xenimport.exceptions.PackageError: if it cannot be read
        """

    @abc.abstractmethod
    def open(self, path: str) -> model.VirtualSystem:
        """Read the description and find the regions of the disks.

        :raises xenimport.exceptions.PackageError: if it is damaged,
            hostile or of a form that is not supported
        """
