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

"""What every driver of every namespace shares."""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Sequence
import typing

if typing.TYPE_CHECKING:
    from oslo_config import cfg


class Driver:
    """Base of all drivers.

    A driver brings its options in :attr:`OPTS`; they stand in the
    configuration group ``<namespace>_<name>``, for example
    ``[converter_vhd]``, and reach the driver as a plain mapping.
    """

    OPTS: typing.ClassVar[Sequence[cfg.Opt]] = ()
    #: What it handles, in a line for ``driver list``.
    handles: typing.ClassVar[str] = ''

    def __init__(
        self, options: Mapping[str, typing.Any] | None = None
    ) -> None:
        self.options: Mapping[str, typing.Any] = {
            option.dest: option.default for option in self.OPTS
        } | dict(options or {})

    @classmethod
    def unusable_because(cls) -> str | None:
        """Why the driver cannot work on this machine, None if it can."""
        return None
