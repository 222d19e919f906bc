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

"""The records that pass between the rooms, all frozen.

Offsets, lengths and sizes are in bytes unless a name says otherwise.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Mapping
import dataclasses
import enum
import typing

if typing.TYPE_CHECKING:
    from xenimport import stream

#: Called with the bytes done so far and the bytes in all.
Progress = Callable[[int, int], None]


def no_progress(done: int, total: int) -> None:
    """Report nothing; the default where nobody watches."""


class Severity(str, enum.Enum):
    """How bad a finding is."""

    #: The guest will not boot, or data is lost.
    BLOCKER = 'blocker'
    WARNING = 'warning'
    NOTE = 'note'


class Firmware(str, enum.Enum):
    """The firmware a guest boots with."""

    BIOS = 'bios'
    UEFI = 'uefi'


@dataclasses.dataclass(frozen=True, slots=True)
class Piece:
    """A run of a disk's bytes inside a file.

    :ivar offset: where the run starts in the file
    :ivar length: its length
    :ivar region_offset: where it starts in the region
    :ivar path: the file, where it is another one than the region's
    :ivar checksum: what the package states of just this run, as
        ``algorithm:hexadecimal`` in lower case (``xxh64``, ``sha1``)
    """

    offset: int
    length: int
    region_offset: int
    path: str | None = None
    checksum: str | None = None


@dataclasses.dataclass(frozen=True)
class Digest:
    """A digest that the package states for one of its members.

    :ivar algorithm: a name that hashlib knows, in lower case
    :ivar value: lower-case hexadecimal
    """

    algorithm: str
    value: str


@dataclasses.dataclass(frozen=True)
class Region:
    """Where one member's bytes lie in the package.

    :ivar path: the file that holds them; ``-`` or a URL when the package
        arrives in a stream
    :ivar name: the member's name in the package
    :ivar pieces: ordered by ``region_offset``, without overlaps; a gap
        reads as zeros
    :ivar seekable: False when it can be read only once, forward
    :ivar decoder: ``gzip``, ``zstd`` or None
    :ivar digests: what the package's manifest states
    :ivar length: bytes in the region where it does not end with its last
        piece: what lies beyond that is zeros, or cut off
    :ivar parts: the names of the members whose bytes these are, where
        they are several or not ``name``
    """

    path: str
    name: str
    pieces: tuple[Piece, ...]
    seekable: bool = True
    decoder: str | None = None
    digests: tuple[Digest, ...] = ()
    length: int | None = None
    parts: tuple[str, ...] = ()

    @property
    def size(self) -> int:
        """Bytes in the region, before any decoding."""
        if self.length is not None:
            return self.length
        if not self.pieces:
            return 0
        return self.pieces[-1].region_offset + self.pieces[-1].length


@dataclasses.dataclass(frozen=True)
class Package:
    """What the user handed over.

    :ivar path: as the user gave it
    :ivar format: the source driver's name, for example ``ova``
    :ivar members: every member's region by its name in the package
    :ivar arrivals: set when the package is read once, forward: gives each
        member's name and its bytes, decoded, in the order in which they
        arrive. What was not read of one is skipped when the next is asked
        for. It must be exhausted: the package's last checks come then.
    """

    path: str
    format: str
    members: Mapping[str, Region] = dataclasses.field(default_factory=dict)
    arrivals: Iterator[tuple[str, stream.Stream]] | None = None


@dataclasses.dataclass(frozen=True)
class Disk:
    """One disk of a virtual system.

    :ivar id: the package's own id of it
    :ivar index: 0 for the disk the firmware boots, then upwards
    :ivar capacity: as the package states it, None if it does not
    :ivar format: the converter's name where the package leaves no choice
    """

    id: str
    name: str
    index: int
    region: Region
    capacity: int | None = None
    format: str | None = None


@dataclasses.dataclass(frozen=True)
class Nic:
    """A network card. ``mac`` in lower case with colons, or None."""

    name: str
    mac: str | None = None
    network: str | None = None


@dataclasses.dataclass(frozen=True)
class VirtualSystem:
    """What the package describes (OVF's word).

    :ivar memory: in bytes, None if the package does not say
    :ivar disks: in boot order
    :ivar creator: what wrote the package, if it says so
    :ivar settings: other system settings, for example ``HVM_boot_policy``
    :ivar findings: what is odd about the package itself
    """

    name: str
    package: Package
    disks: tuple[Disk, ...]
    vcpus: int | None = None
    memory: int | None = None
    firmware: Firmware | None = None
    nics: tuple[Nic, ...] = ()
    creator: str | None = None
    settings: Mapping[str, str] = dataclasses.field(default_factory=dict)
    findings: tuple[Finding, ...] = ()


@dataclasses.dataclass(frozen=True)
class OperatingSystem:
    """The operating system found on the disks.

    :ivar family: ``linux``, ``windows``, ...
    :ivar distribution: libosinfo's short id without the version
    :ivar architecture: as libguestfs names it, for example ``x86_64``
    :ivar root: the device libguestfs mounts as root, in its own naming
    :ivar mountpoints: device by mount point, in libguestfs' naming
    :ivar kernels: versions that have modules in the guest
    :ivar init: ``systemd``, ``sysvinit``, ``upstart``, ``openrc`` or None
    """

    family: str
    distribution: str
    major: int
    minor: int
    product: str
    architecture: str
    root: str
    hostname: str = ''
    mountpoints: Mapping[str, str] = dataclasses.field(default_factory=dict)
    kernels: tuple[str, ...] = ()
    init: str | None = None


@dataclasses.dataclass(frozen=True)
class Finding:
    """Something that would go wrong on KVM.

    :ivar id: stable, for example ``linux.initramfs-virtio``
    :ivar evidence: what was seen and where
    :ivar fix: what a person would do about it
    :ivar repair: what this tool does about it, None if it cannot
    :ivar loss: what is lost when the user accepts it, None if it cannot
        be accepted
    :ivar subject: the file, device or key that it is about; two findings
        of one id differ in it
    """

    id: str
    severity: Severity
    title: str
    evidence: str
    fix: str
    subject: str = ''
    repair: str | None = None
    loss: str | None = None


@dataclasses.dataclass(frozen=True)
class Change:
    """What was altered in the guest.

    :ivar finding: the id of the finding it repairs
    :ivar target: the device or file system, in libguestfs' naming
    :ivar path: the file or key inside it
    :ivar undo: how to take it back by hand
    """

    finding: str
    target: str
    path: str
    before: str
    after: str
    reason: str
    undo: str


@dataclasses.dataclass(frozen=True)
class Step:
    """One step of a run: how long it took, how many bytes it moved."""

    name: str
    seconds: float
    bytes: int = 0


@dataclasses.dataclass(frozen=True)
class CheckRun:
    """One check that ran.

    :ivar phase: ``diagnose``, ``repair`` or ``verify``
    :ivar findings: how many findings it had
    """

    id: str
    title: str
    phase: str
    findings: int
    seconds: float


@dataclasses.dataclass(frozen=True)
class ImageRequest:
    """What an image shall be.

    :ivar properties: extra properties as Glance takes them, all strings
    :ivar min_disk: GiB
    :ivar min_ram: MiB
    :ivar visibility: None leaves Glance's default
    """

    name: str
    disk_format: str = 'raw'
    container_format: str = 'bare'
    properties: Mapping[str, str] = dataclasses.field(default_factory=dict)
    tags: tuple[str, ...] = ()
    visibility: str | None = None
    protected: bool | None = None
    project: str | None = None
    min_disk: int = 0
    min_ram: int = 0


@dataclasses.dataclass(frozen=True)
class Image:
    """What stands in the target.

    :ivar id: Glance's id, or the path of the file
    :ivar checksum: md5 as Glance gives it, or None
    :ivar hash_algorithm: and ``hash_value``: the digest that was computed
        in flight and, where the target has its own, compared with it
    :ivar disk_format: which is not the one asked for where the cloud
        converts what it imports
    """

    disk: int
    id: str
    name: str
    status: str
    size: int
    checksum: str | None
    hash_algorithm: str
    hash_value: str
    properties: Mapping[str, typing.Any]
    disk_format: str = 'raw'


@dataclasses.dataclass(frozen=True)
class Report:
    """All that was found, changed and proved, in ``xenimport.report/1``."""

    source: Mapping[str, typing.Any]
    guest: Mapping[str, typing.Any] | None = None
    findings: tuple[Finding, ...] = ()
    remaining: tuple[Finding, ...] = ()
    accepted: tuple[str, ...] = ()
    changes: tuple[Change, ...] = ()
    checks: tuple[CheckRun, ...] = ()
    steps: tuple[Step, ...] = ()
    images: tuple[Image, ...] = ()
    recipe: tuple[str, ...] = ()
    machine: Mapping[str, typing.Any] = dataclasses.field(default_factory=dict)
    tool: Mapping[str, str] = dataclasses.field(default_factory=dict)
    schema: str = 'xenimport.report/1'

    def as_dict(self) -> dict[str, typing.Any]:
        """The report as JSON can hold it."""
        return dataclasses.asdict(self)
