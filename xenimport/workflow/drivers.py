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

"""Finding, loading and choosing drivers."""

from __future__ import annotations

from collections.abc import Sequence
import dataclasses
import typing

from oslo_config import cfg
import stevedore

from xenimport.converter import base as converter_base
from xenimport import driver
from xenimport import exceptions
from xenimport import model
from xenimport import opts
from xenimport.source import base as source_base
from xenimport import stream as stream_room


@dataclasses.dataclass(frozen=True)
class Description:
    """A driver as ``driver list`` shows it.

    :ivar problem: why it cannot be used here, None if it can
    """

    kind: str
    name: str
    handles: str
    enabled: bool
    problem: str | None


class _Problems:
    """What stevedore could not load, by the entry point's name."""

    def __init__(self) -> None:
        self.errors: dict[str, BaseException] = {}

    def failed(
        self, _manager: object, entry_point: typing.Any, error: BaseException
    ) -> None:
        self.errors[entry_point.name] = error

    def missing(self, _names: object) -> None:
        """Say nothing: the caller names what is missing."""


def options(
    conf: cfg.ConfigOpts, word: str, name: str, plugin: type[driver.Driver]
) -> dict[str, typing.Any]:
    """The configured values of a driver's options."""
    group = opts.driver_group(word, name)
    if not plugin.OPTS:
        return {}
    conf.register_opts(list(plugin.OPTS), group=group)
    try:
        return {
            option.dest: conf[group][option.dest] for option in plugin.OPTS
        }
    except (cfg.Error, ValueError) as error:
        raise exceptions.ConfigurationError(
            'configuration.invalid',
            f'The options of driver {name} cannot be used',
            where=f'[{group}] in xenimport.conf',
            found=str(error),
            fix='correct the value; the user guide lists every option',
        ) from error


def load(
    conf: cfg.ConfigOpts, word: str, names: Sequence[str]
) -> dict[str, typing.Any]:
    """The named drivers of a namespace, made, in the order of ``names``.

    :param word: a key of :data:`xenimport.opts.NAMESPACES`
    :raises xenimport.exceptions.ConfigurationError: if one is not
        installed or does not load
    """
    problems = _Problems()
    manager: typing.Any = stevedore.NamedExtensionManager(
        opts.NAMESPACES[word],
        names=list(names),
        name_order=True,
        on_missing_entrypoints_callback=problems.missing,
        on_load_failure_callback=problems.failed,
    )
    found = {extension.name: extension.plugin for extension in manager}
    for name in names:
        if name not in found:
            raise exceptions.ConfigurationError(
                'configuration.driver-missing',
                f'The {word} driver {name!r} cannot be loaded',
                where=f'[{opts.GROUP}] enabled_{word}s',
                found=str(problems.errors.get(name, 'no such entry point')),
                fix='install the package that brings it, or take its '
                'name out; "openstack image import-xen driver list" '
                'shows what is there',
            )
    return {
        name: found[name](options(conf, word, name, found[name]))
        for name in names
    }


def describe(conf: cfg.ConfigOpts) -> list[Description]:
    """Every installed driver, broken ones included."""
    rows: list[Description] = []
    for word, namespace in opts.NAMESPACES.items():
        # A target is named by its command, so all are enabled.
        option = f'enabled_{word}s'
        group = conf[opts.GROUP]
        enabled = group[option] if option in group else None
        problems = _Problems()
        manager: typing.Any = stevedore.ExtensionManager(
            namespace, on_load_failure_callback=problems.failed
        )
        rows += [
            Description(
                word,
                extension.name,
                extension.plugin.handles,
                enabled is None or extension.name in enabled,
                extension.plugin.unusable_because(),
            )
            for extension in manager
        ]
        rows += [
            Description(word, name, '', False, f'does not load: {error}')
            for name, error in problems.errors.items()
        ]
    return sorted(rows, key=lambda row: (row.kind, row.name))


def open_package(
    sources: dict[str, source_base.Source],
    paths: Sequence[str],
    request: source_base.Request = source_base.DEFAULT,
) -> model.VirtualSystem:
    """Read the package with the first source that knows its content.

    :param paths: one package, or several bare disks
    :raises xenimport.exceptions.PackageError: if no source knows it
    """
    for source in sources.values():
        if not source.probe(paths[0]):
            continue
        if len(paths) > 1:
            return source.open_several(paths, request)
        return source.open(paths[0], request)
    raise _unknown(sources, paths[0])


def open_stream(
    sources: dict[str, source_base.Source],
    stream: stream_room.Stream,
    request: source_base.Request = source_base.DEFAULT,
) -> model.VirtualSystem:
    """The same for a package that is read once, forward.

    :raises xenimport.exceptions.PackageError: if no source knows it
    """
    for source in sources.values():
        if source.probe_stream(stream):
            return source.open_stream(stream, request)
    raise _unknown(sources, stream.where)


def _unknown(
    sources: dict[str, source_base.Source], where: str
) -> exceptions.PackageError:
    handled = '; '.join(source.handles for source in sources.values())
    return exceptions.PackageError(
        'package.unknown',
        'The package is of no kind that is known here',
        where=where,
        expected=handled,
        found='none of these, judged by its content',
        fix='check that the file is whole and of one of these kinds',
    )


def choose_converter(
    converters: dict[str, converter_base.Converter],
    package: model.Package,
    disk: model.Disk,
    stream: stream_room.Stream | None = None,
) -> tuple[str, converter_base.Converter]:
    """The first converter that knows the disk's bytes, and its name.

    :param stream: the bytes, where they come once, forward
    :raises xenimport.exceptions.DiskImageError: if none does
    """
    for name, converter in converters.items():
        if disk.format is not None:
            known = name == disk.format
        elif stream is not None:
            known = converter.probe_stream(disk, stream)
        else:
            known = converter.probe(package, disk)
        if known:
            return name, converter
    handled = '; '.join(item.handles for item in converters.values())
    raise exceptions.DiskImageError(
        'disk-image.unknown',
        f'Disk {disk.index} is of no format that is known here',
        where=f'{disk.region.name} in {package.path}',
        expected=handled,
        found='none of these, judged by its content',
        fix='export the guest again, or convert this disk to VHD or RAW',
    )
