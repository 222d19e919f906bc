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


"""From what the user named to a virtual system with open disk images."""

from __future__ import annotations

from collections.abc import Iterator
import dataclasses

from xenimport.converter import base as converter_base
from xenimport import exceptions
from xenimport import model
from xenimport.source import base as source_base
from xenimport import stream as stream_room
from xenimport import stream_packages
from xenimport.workflow import context
from xenimport.workflow import drivers
from xenimport.workflow import layout


def read(run: context.Run) -> None:
    """Describe the package and open every disk that can be sought in.

    :raises xenimport.exceptions.XenImportError: if it is damaged,
        hostile or of no kind that is known
    """
    settings = run.settings
    sources = drivers.load(
        settings.conf, 'source', settings.option('enabled_sources')
    )
    request = source_base.Request(settings.system, settings.verify_manifest)
    run.stream = _stream(settings.packages)
    if run.stream is None:
        system = drivers.open_package(sources, settings.packages, request)
    else:
        system = drivers.open_stream(sources, run.stream, request)
    run.virtual_system = system
    run.note(*system.findings)
    _check_streams(system)
    run.disks = [context.OpenDisk(disk) for disk in system.disks]
    _leave_out_parts(run, _open_all(run, system.package))


def _check_streams(system: model.VirtualSystem) -> None:
    """What comes once cannot be two disks."""
    once = [
        disk.region.name
        for disk in system.disks
        if disk.region.decoder or not disk.region.seekable
    ]
    for name in set(once):
        if once.count(name) > 1:
            raise exceptions.PackageError(
                'package.disk-twice',
                'Two disks of the package are the same compressed file',
                where=f'{system.package.path}: {name}',
                expected='a file for each disk that can be read only once',
                fix='unpack the package and the file, then import it; or '
                'export the guest again',
            )


def _open_all(
    run: context.Run, package: model.Package
) -> dict[str, exceptions.DiskImageError]:
    """Open what can be sought in; the errors by the region's name."""
    converters = load_converters(run)
    errors: dict[str, exceptions.DiskImageError] = {}
    for opened in run.disks:
        region = opened.disk.region
        if not region.seekable or region.decoder:
            continue
        try:
            open_image(run, opened, converters, package)
        except exceptions.DiskImageError as error:
            # An extent of another disk is no disk by itself.
            if package.format != 'disk' or len(run.disks) == 1:
                raise
            errors[region.name] = error
    return errors


def _stream(paths: tuple[str, ...]) -> stream_room.Stream | None:
    """The package's stream, None if it can be read at any place."""
    if len(paths) == 1:
        return stream_packages.open_package(paths[0])
    for path in paths:
        stream = stream_packages.open_package(path)
        if stream is not None:
            stream.close()
            raise exceptions.PackageError(
                'package.several-streams',
                'Of several disks, each must be a plain file',
                where=path,
                expected='files that can be read at any place',
                found='a compressed file, a pipe or a URL',
                fix='unpack or download it first, or import it alone',
            )
    return None


def load_converters(
    run: context.Run,
) -> dict[str, converter_base.Converter]:
    """The enabled converters, in their order."""
    settings = run.settings
    return drivers.load(
        settings.conf, 'converter', settings.option('enabled_converters')
    )


def open_image(
    run: context.Run,
    opened: context.OpenDisk,
    converters: dict[str, converter_base.Converter],
    package: model.Package,
) -> None:
    """Open a disk's image, and note what is odd about it."""
    disk = opened.disk
    name, converter = drivers.choose_converter(converters, package, disk)
    image = converter.open(package, disk)
    opened.converter, opened.image = converter, image
    opened.take(name, image)
    run.note(*_findings(image, disk))
    if run.settings.verify_manifest:
        run.note(*_unstated(image, package))


def _unstated(
    image: converter_base.DiskImage, package: model.Package
) -> Iterator[model.Finding]:
    """A manifest that is there, and does not state a disk's digest."""
    if not any(name.lower().endswith('.mf') for name in package.members):
        return
    for region in image.regions:
        for name in region.parts or (region.name,):
            member = package.members.get(name)
            if member is not None and not member.digests:
                yield model.Finding(
                    id='package.manifest-incomplete',
                    severity=model.Severity.WARNING,
                    title='The manifest does not state the digest of a disk',
                    evidence=f'{package.path}: there is a manifest, and '
                    f'{name} is not in it, or it belongs to a descriptor '
                    'of another name',
                    fix='nothing shows whether this file is as it was '
                    'exported: export the guest again if in doubt',
                    subject=name,
                )


def _findings(
    image: converter_base.DiskImage, disk: model.Disk
) -> Iterator[model.Finding]:
    yield from image.findings
    for found in (
        layout.capacity_differs(image.virtual_size, disk),
        layout.bare_file_system(image.pread(0, 512), disk),
    ):
        if found is not None:
            yield found


def _leave_out_parts(
    run: context.Run, errors: dict[str, exceptions.DiskImageError]
) -> None:
    """Of bare disks given together, a parent is no disk of its own.

    Nor is an extent of a VMDK.

    :param errors: of disks that could not be opened
    :raises xenimport.exceptions.DiskImageError: if one of them is no
        part of another
    """
    parts = {
        region.name
        for opened in run.disks
        if opened.image is not None
        for region in opened.image.regions[1:]
    }
    for name, error in errors.items():
        if name not in parts:
            raise error
    if run.system.package.format != 'disk':
        # A description says which disks the guest has.
        return
    kept = [
        opened for opened in run.disks if opened.disk.region.name not in parts
    ]
    if not kept or len(kept) == len(run.disks):
        return
    for opened in run.disks:
        if opened not in kept:
            if opened.image is not None:
                opened.image.close()
            run.note(_part(opened.disk))
    for index, opened in enumerate(kept):
        opened.disk = dataclasses.replace(opened.disk, index=index)
    run.disks = kept
    run.virtual_system = dataclasses.replace(
        run.system, disks=tuple(opened.disk for opened in kept)
    )


def _part(disk: model.Disk) -> model.Finding:
    return model.Finding(
        id='package.parent-left-out',
        severity=model.Severity.NOTE,
        title='A disk was taken for the parent of another',
        evidence=f'{disk.region.name} is a part of another disk image that '
        'was given; it becomes no image of its own',
        fix='nothing; to import it by itself, give it alone',
        subject=disk.region.name,
    )
