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

"""The configuration: ``xenimport.conf``, read once by a command.

The options of a driver stand beside it, in its class; this module only
gathers them.
"""

from __future__ import annotations

from collections.abc import Sequence
import itertools
import typing

from oslo_config import cfg
import stevedore

from xenimport import exceptions

GROUP = 'import_xen'

#: The driver namespaces, by the word that their groups start with.
NAMESPACES = {
    'source': 'xenimport.source',
    'converter': 'xenimport.converter',
    'remediation': 'xenimport.remediation',
    'target': 'xenimport.target',
}

_DRIVERS = [
    cfg.ListOpt(
        'enabled_sources',
        default=['xva', 'xenapi', 'ova', 'ovf', 'disk'],
        help='The sources that are asked, in this order, whether a '
        'package is of their kind.',
    ),
    cfg.ListOpt(
        'enabled_converters',
        default=['qcow2', 'vhdx', 'vdi', 'vmdk', 'vhd', 'raw'],
        help='The converters that are asked, in this order, whether a '
        'disk is of their format.',
    ),
    cfg.ListOpt(
        'enabled_remediations',
        default=['disk', 'linux', 'windows'],
        help='The remediations whose checks run, in this order, on a '
        'guest that they match.',
    ),
    cfg.ListOpt(
        'disabled_checks',
        default=[],
        help='Ids of checks that never run, for example linux.persistent-net.',
    ),
]

_DEFAULTS = [
    cfg.StrOpt(
        'work_dir',
        help='The directory below which workfiles are made, when '
        '--work-dir is not given. Without both it is $TMPDIR or '
        '/var/tmp.',
    ),
    cfg.StrOpt(
        'disk_bus',
        default='auto',
        choices=['auto', 'virtio', 'scsi', 'sata', 'ide'],
        help='The default of --disk-bus.',
    ),
    cfg.StrOpt(
        'initramfs',
        default='append',
        choices=['append', 'rebuild'],
        help='The default of --initramfs.',
    ),
]

_LIMITS = [
    cfg.StrOpt(
        'accelerator',
        default='auto',
        choices=['auto', 'kvm', 'tcg'],
        help='What runs the appliance. auto uses KVM where a kernel '
        'really starts on it, else TCG (slower, needs nothing).',
    ),
    cfg.IntOpt(
        'copy_threads',
        default=2,
        min=1,
        max=64,
        help='Threads that copy one disk.',
    ),
    cfg.IntOpt(
        'appliance_start_limit',
        default=300,
        min=1,
        help='Seconds in which the appliance must have started.',
    ),
    cfg.IntOpt(
        'appliance_call_limit',
        default=900,
        min=1,
        help='Seconds that one call into the appliance may take.',
    ),
]


def driver_group(word: str, name: str) -> str:
    """The configuration group of one driver: ``converter_vhd``."""
    return f'{word}_{name}'


def list_opts() -> list[tuple[str, Sequence[cfg.Opt]]]:
    """Every option by group, for oslo-config-generator and the docs."""
    groups: list[tuple[str, Sequence[cfg.Opt]]] = [
        (GROUP, list(itertools.chain(_DRIVERS, _DEFAULTS, _LIMITS)))
    ]
    for word, namespace in NAMESPACES.items():
        manager: typing.Any = stevedore.ExtensionManager(namespace)
        for extension in sorted(manager, key=lambda item: item.name):
            if extension.plugin.OPTS:
                groups.append(
                    (
                        driver_group(word, extension.name),
                        list(extension.plugin.OPTS),
                    )
                )
    return groups


def load(
    config_files: Sequence[str] | None = None,
) -> cfg.ConfigOpts:
    """Read the configuration into a ConfigOpts of our own.

    The files are oslo.config's usual places for a project: below
    ``~/.xenimport``, ``~``, ``/etc/xenimport`` and ``/etc``. The global
    ``cfg.CONF`` is left alone: it belongs to the calling program.

    :raises xenimport.exceptions.ConfigurationError: if a value is wrong
    """
    conf = cfg.ConfigOpts()
    conf.register_opts([*_DRIVERS, *_DEFAULTS, *_LIMITS], group=GROUP)
    try:
        conf(
            args=[],
            project='xenimport',
            default_config_files=(
                None if config_files is None else list(config_files)
            ),
        )
        # Values are parsed when they are read: a wrong one must be found
        # here and not in the middle of the work.
        for option in itertools.chain(_DRIVERS, _DEFAULTS, _LIMITS):
            conf[GROUP][option.dest]
    except (cfg.Error, ValueError) as error:
        raise exceptions.ConfigurationError(
            'configuration.invalid',
            'The configuration cannot be used',
            where=', '.join(conf.config_file or []) or 'xenimport.conf',
            found=str(error),
            fix='correct the value; the user guide lists every option',
        ) from error
    return conf
