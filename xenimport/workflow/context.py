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

"""What one run was asked, and what it knows so far."""

from __future__ import annotations

from collections.abc import Callable
import dataclasses
import typing

from oslo_config import cfg

from xenimport.converter import base as converter_base
from xenimport import exceptions
from xenimport import model
from xenimport import opts
from xenimport import stream as stream_room
from xenimport.target import base as target_base


class Observer:
    """Who watches a run; this one does not care."""

    def step(self, name: str) -> None:
        """A step starts."""

    def step_done(self, name: str, seconds: float, moved: int) -> None:
        """A step has ended well, after moving ``moved`` bytes."""

    def progress(self, done: int, total: int) -> None:
        """The running step has done ``done`` of ``total`` bytes."""

    def say(self, line: str) -> None:
        """Something a person should read."""


@dataclasses.dataclass(frozen=True)
class Settings:
    """What a command was asked.

    :ivar packages: one package, or several bare disks in boot order
    :ivar system: the virtual system to take, where there are several
    :ivar verify_manifest: whether the digests in a manifest count
    :ivar disk_format: of the images made, ``raw`` or ``qcow2``
    :ivar accept: ids of findings that shall not stop the run
    :ivar xen_drivers: and ``virtio_win``, ``clock``, ``first_boot_script``:
        see :class:`xenimport.remediation.base.Request`
    :ivar work_dir: where the work directory is made, None for default
    :ivar image: the name, properties, ... that the user gave
    :ivar min_disk: GiB that the user gave, None if not
    :ivar min_ram: MiB that the user gave, None if not
    """

    packages: tuple[str, ...]
    conf: cfg.ConfigOpts
    system: str | None = None
    verify_manifest: bool = True
    disk_format: str = 'raw'
    disk_bus: str = 'auto'
    initramfs: str = 'append'
    repair: bool = True
    accept: frozenset[str] = frozenset()
    xen_drivers: str = 'disable'
    virtio_win: str | None = None
    clock: str = 'auto'
    first_boot_script: str | None = None
    keep_workfile: bool = False
    work_dir: str | None = None
    image: model.ImageRequest | None = None
    min_disk: int | None = None
    min_ram: int | None = None

    def option(self, name: str) -> typing.Any:
        """A value of ``[import_xen]``."""
        return self.conf[opts.GROUP][name]


@dataclasses.dataclass
class OpenDisk:
    """A disk of the package, and what is known of its bytes.

    :ivar format: the converter's name, empty until it is known
    :ivar image: None for a disk that is read once, forward
    :ivar size: virtual size in bytes, None until it is known
    :ivar creator: what wrote the disk image, if that is known
    :ivar workfile: its path, empty while there is none
    """

    disk: model.Disk
    format: str = ''
    converter: converter_base.Converter | None = None
    image: converter_base.DiskImage | None = None
    size: int | None = None
    creator: str | None = None
    workfile: str = ''

    def take(
        self,
        name: str,
        image: converter_base.DiskImage | converter_base.ForwardImage,
    ) -> None:
        """Note what an opened image tells.

        :param name: of its converter
        """
        self.format = name
        self.size = image.virtual_size
        self.creator = image.creator

    @property
    def virtual_size(self) -> int:
        """Bytes, once they are known."""
        if self.size is None:
            raise RuntimeError('the disk has not been read yet')
        return self.size


def _never() -> None:
    """Nobody interrupts."""


class Run:
    """All that the steps of one run share.

    :ivar leftovers: what could not be undone after a failure
    :ivar check_interrupted: raises KeyboardInterrupt if a signal came
        that was lost on its way
    """

    def __init__(
        self,
        settings: Settings,
        observer: Observer | None = None,
        target: target_base.Target | None = None,
    ) -> None:
        self.settings = settings
        self.observer = observer or Observer()
        self.target = target
        self.virtual_system: model.VirtualSystem | None = None
        self.stream: stream_room.Stream | None = None
        self.disks: list[OpenDisk] = []
        self.work_dir: str | None = None
        self.operating_system: model.OperatingSystem | None = None
        self.guest_facts: dict[str, typing.Any] = {}
        self.hardware: dict[str, str] = {}
        self.accelerator: str | None = None
        self.bytes_read: int | None = None
        self.findings: tuple[model.Finding, ...] = ()
        self.remaining: tuple[model.Finding, ...] = ()
        self.changes: tuple[model.Change, ...] = ()
        self.checks: list[model.CheckRun] = []
        self.steps: list[model.Step] = []
        self.requests: list[model.ImageRequest] = []
        self.images: list[model.Image] = []
        self.recipe: tuple[str, ...] = ()
        self.leftovers: list[exceptions.XenImportError] = []
        self.check_interrupted: Callable[[], None] = _never

    @property
    def system(self) -> model.VirtualSystem:
        """The virtual system, once the package has been read."""
        if self.virtual_system is None:
            raise RuntimeError('the package has not been read yet')
        return self.virtual_system

    @property
    def directory(self) -> str:
        """The work directory, once it has been made."""
        if self.work_dir is None:
            raise RuntimeError('there is no work directory yet')
        return self.work_dir

    def note(self, *findings: model.Finding) -> None:
        """Add findings of the package and its disk images."""
        self.findings += findings
        self.remaining += findings

    def close(self) -> None:
        """Release the disk images and the package's stream."""
        for disk in self.disks:
            if disk.image is not None:
                disk.image.close()
        if self.stream is not None:
            self.stream.close()
