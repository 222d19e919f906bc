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


"""Disks that come once, forward: into a workfile in one pass.

Such a disk arrives in a stream (standard input, a URL, a package that is
compressed as a whole), or is compressed inside of a package. Most formats
can be written to a workfile as they come. The others have to be unpacked
first, which is said.
"""

from __future__ import annotations

from collections.abc import Iterator
import contextlib
import dataclasses
import os

from xenimport.converter import base as converter_base
from xenimport.converter import copy
from xenimport.converter import raw
from xenimport.converter import region as region_room
from xenimport import exceptions
from xenimport import model
from xenimport import stream as stream_room
from xenimport import stream_decoders
from xenimport import stream_files
from xenimport.workflow import context
from xenimport.workflow import drivers
from xenimport.workflow import layout
from xenimport.workflow import opening

#: Members with these names may be needed to read another.
_PARTS = ('.vhd', '.vmdk', '.raw', '.img')


def disk_streams(
    run: context.Run,
) -> Iterator[tuple[context.OpenDisk | None, str, stream_room.Stream]]:
    """Yield each disk that comes once, its name and its bytes.

    None stands for a member that is no disk of the virtual system. What
    belongs to a disk is read to its end, with the digests that the
    manifest states, when the next one is asked for.

    :raises xenimport.exceptions.PackageError: if the package ends
        without one of its disks
    """
    package = run.system.package
    waiting = {
        opened.disk.region.name: opened
        for opened in run.disks
        if opened.image is None
    }
    if package.arrivals is None:
        for name, opened in waiting.items():
            with contextlib.closing(_of_region(run, opened.disk)) as stream:
                yield opened, name, stream
                stream.finish()
        return
    for name, stream in package.arrivals:
        yield waiting.pop(name, None), name, stream
    if run.stream is not None:
        run.stream.finish()
    if waiting:
        raise exceptions.PackageError(
            'package.missing-file',
            'The package ends without a disk that its description names',
            where=package.path,
            expected=', '.join(list(waiting)[:10]),
            fix='copy the package again, or export it again',
        )


def _of_region(run: context.Run, disk: model.Disk) -> stream_room.Stream:
    """The decoded bytes of a compressed disk in a package."""
    region = disk.region
    members = run.system.package.members
    parts = [
        members[name]
        for name in region.parts or (region.name,)
        if name in members
    ] or [region]
    stream: stream_room.Stream
    if run.settings.verify_manifest:
        stream = stream_room.Joined(
            [
                stream_room.Digested(
                    stream_files.RegionStream(part), part.digests
                )
                for part in parts
            ],
            f'{region.path}: {region.name}',
        )
    else:
        stream = stream_files.RegionStream(region)
    return stream_decoders.decoded(stream)


class Reader:
    """Reads the disks that come once.

    :ivar moved: bytes of data so far
    """

    def __init__(self, run: context.Run, progress: model.Progress) -> None:
        self._run = run
        self._progress = progress
        self._converters = opening.load_converters(run)
        self._unpacked: dict[str, model.Region] = {}
        self._reasons: dict[str, str] = {}
        self.moved = 0

    def images(
        self,
    ) -> Iterator[
        tuple[
            context.OpenDisk, converter_base.ForwardImage, stream_room.Stream
        ]
    ]:
        """Yield each disk that can be read as it comes, with its stream.

        The others are unpacked on the way, see :meth:`open_unpacked`.
        """
        for opened, name, stream in disk_streams(self._run):
            if opened is None:
                if self._waits():
                    self._part(name, stream)
                continue
            try:
                image = self._open(opened, stream)
            except converter_base.NotForward as reason:
                self._unpack(name, stream, str(reason))
                continue
            yield opened, image, stream

    def _open(
        self, opened: context.OpenDisk, stream: stream_room.Stream
    ) -> converter_base.ForwardImage:
        """The disk as it comes.

        :raises xenimport.converter.base.NotForward: if it cannot be read
            so; the stream is as it was then
        """
        name, converter = drivers.choose_converter(
            self._converters, self._run.system.package, opened.disk, stream
        )
        image = converter.open_stream(opened.disk, stream)
        opened.take(name, image)
        return image

    def to_workfile(
        self,
        opened: context.OpenDisk,
        image: converter_base.ForwardImage,
    ) -> None:
        """Copy the disk to a workfile as it comes."""
        opened.workfile = workfile(self._run, opened.disk)
        copied = copy.copy_forward(
            image, opened.workfile, progress=self._progress
        )
        self.moved += copied.bytes_read
        self.arrived(opened, image)
        if self._run.settings.repair:
            self._wrap_bare(opened)

    def _wrap_bare(self, opened: context.OpenDisk) -> None:
        """Put a partition table around a bare NTFS.

        Known only now; a second copy, but such disks are rare and small.
        """
        disk, path = opened.disk, opened.workfile
        region = model.Region(
            path, disk.region.name, (model.Piece(0, opened.virtual_size, 0),)
        )
        with raw.RawImage(region_room.RegionReader(region)) as plain:
            bare = layout.bare_file_system(plain.pread(0, 512), disk)
            if bare is None:
                return
            self._run.note(bare)
            image = layout.wrapped(plain)
            copy.copy(image, f'{path}.wrapped')
            opened.size = image.virtual_size
        os.replace(f'{path}.wrapped', path)

    def arrived(
        self,
        opened: context.OpenDisk,
        image: converter_base.ForwardImage,
    ) -> None:
        """Note what is known of a disk once all of it has passed."""
        if opened.size is None:
            opened.size = image.virtual_size
        self._run.note(*image.findings)
        differs = layout.capacity_differs(opened.virtual_size, opened.disk)
        if differs is not None:
            self._run.note(differs)

    def _unpack(
        self, name: str, stream: stream_room.Stream, reason: str = ''
    ) -> None:
        """Write a member's own bytes into the work directory.

        :param reason: why that is needed, where it is a disk
        """
        path = os.path.join(
            self._run.directory, f'member{len(self._unpacked)}'
        )
        size = copy.unpack(stream, path, progress=self._progress)
        self._unpacked[name] = model.Region(
            path, name, (model.Piece(0, size, 0),)
        )
        if reason:
            self._reasons[name] = reason
            self._run.note(_unpacked(name, reason))
            self._run.observer.say(
                f'{name} is unpacked into the work directory first: {reason}'
            )

    def _waits(self) -> bool:
        """Whether a disk is left that may need another member."""
        return any(
            opened.image is None and opened.size is None
            for opened in self._run.disks
        )

    def _part(self, name: str, stream: stream_room.Stream) -> None:
        """Keep a member that a disk may need: a parent, an extent."""
        if name.lower().endswith(_PARTS):
            self._unpack(name, stream)

    def open_unpacked(self) -> list[context.OpenDisk]:
        """Open the disks that had to be unpacked, now that all is here."""
        found = []
        package = dataclasses.replace(
            self._run.system.package, members=self._unpacked, arrivals=None
        )
        for opened in self._run.disks:
            region = self._unpacked.get(opened.disk.region.name)
            if opened.size is None and region is not None:
                opened.disk = dataclasses.replace(opened.disk, region=region)
                opening.open_image(
                    self._run, opened, self._converters, package
                )
                found.append(opened)
        return found

    def remove_unpacked(self) -> None:
        """Give the room back; the workfiles hold the disks by now."""
        for region in self._unpacked.values():
            with contextlib.suppress(FileNotFoundError):
                os.unlink(region.path)
        self._unpacked = {}


def workfile(run: context.Run, disk: model.Disk) -> str:
    """Where a disk's workfile stands."""
    return os.path.join(run.directory, f'disk{disk.index}.raw')


def _unpacked(name: str, reason: str) -> model.Finding:
    return model.Finding(
        id='package.unpacked',
        severity=model.Severity.NOTE,
        title='A disk had to be unpacked before it could be read',
        evidence=f'{name}: {reason}',
        fix='nothing; to save the time and the room, unpack or download '
        'the package and give it as a plain file',
        subject=name,
    )
