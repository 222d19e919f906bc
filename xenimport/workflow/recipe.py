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

"""The launch recipe: the commands that start the imported guest."""

from __future__ import annotations

from collections.abc import Sequence
import dataclasses
import typing

from keystoneauth1 import exceptions as keystone
from openstack import exceptions as sdk
import requests

from xenimport import model
from xenimport import shell
from xenimport.workflow import properties

if typing.TYPE_CHECKING:
    from openstack import connection as sdk_connection

#: Longest name that Nova, Neutron and Cinder store, characters.
_LONGEST = 255


@dataclasses.dataclass(frozen=True)
class Need:
    """What a flavor must give. ``ram`` in MiB, ``disk`` in GiB."""

    vcpus: int
    ram: int
    disk: int


@dataclasses.dataclass(frozen=True)
class Choice:
    """The flavor that was chosen.

    :ivar name: None where none could be
    :ivar why: why none could be, or why it boots from a volume
    :ivar from_volume: it has no disk, so the guest boots from a volume
    """

    name: str | None
    why: str = ''
    from_volume: bool = False


def lines(
    virtual_system: model.VirtualSystem,
    images: Sequence[model.Image],
    connection: sdk_connection.Connection | None = None,
) -> tuple[str, ...]:
    """Lines for a shell: ports, volumes, then the server itself.

    What only a person can know stands in them as a variable, with a
    comment that says what belongs there.

    :param images: in boot order
    :param connection: where flavors are looked up
    """
    if not images:
        return ()
    name = virtual_system.name[: _LONGEST - 8] or 'guest'
    need = Need(
        vcpus=virtual_system.vcpus or 1,
        ram=properties.min_ram(virtual_system.memory),
        disk=properties.min_disk(images[0].size),
    )
    choice = choose_flavor(need, connection)
    recipe = _flavor_comments(need, choice)
    recipe += _ports(virtual_system.nics, name)
    recipe += _volumes(images, name, system_disk=choice.from_volume)
    recipe.append(_server(virtual_system.nics, images, name, choice))
    return tuple(recipe)


def _flavor_comments(need: Need, choice: Choice) -> list[str]:
    recipe = []
    if choice.name is None:
        recipe.append(
            f'# FLAVOR: one with {need.vcpus} vCPU(s), {need.ram} MiB of '
            f'memory and {need.disk} GiB of disk ({choice.why})'
        )
    elif choice.why:
        recipe.append(f'# {choice.why}')
    return recipe


def _ports(nics: Sequence[model.Nic], name: str) -> list[str]:
    recipe = []
    for index, nic in enumerate(nics):
        was = (
            f' in place of {shell.quote(nic.network)}' if (nic.network) else ''
        )
        recipe.append(f'# NETWORK{index}: the network{was}')
        mac = ['--mac-address', nic.mac] if nic.mac else []
        recipe.append(
            f'PORT{index}=$(openstack port create '
            f'--network "$NETWORK{index}" '
            + shell.join(
                *mac, '-f', 'value', '-c', 'id', '--', f'{name}-nic{index}'
            )
            + ')'
        )
    return recipe


def _volumes(
    images: Sequence[model.Image], name: str, *, system_disk: bool
) -> list[str]:
    recipe = []
    for image in images if system_disk else images[1:]:
        size = str(properties.min_disk(image.size))
        words = ['openstack', 'volume', 'create', '--image', image.id]
        words += ['--size', size]
        if image.disk == 0:
            words.append('--bootable')
        words += ['-f', 'value', '-c', 'id', '--']
        words.append(f'{name}-disk{image.disk}')
        variable = f'VOLUME{image.disk}'
        recipe.append(f'{variable}=$({shell.join(*words)})')
        recipe.append(
            'while openstack volume show -f value -c status '
            f'"${variable}" | grep -Eq "creating|downloading"; '
            'do sleep 5; done'
        )
    return recipe


def _server(
    nics: Sequence[model.Nic],
    images: Sequence[model.Image],
    name: str,
    choice: Choice,
) -> str:
    words = ['openstack server create']
    words.append(
        '--flavor "$FLAVOR"'
        if choice.name is None
        else shell.join(f'--flavor={choice.name}')
    )
    if choice.from_volume:
        words.append('--volume "$VOLUME0"')
    else:
        words.append(shell.join('--image', images[0].id))
    words += [
        '--block-device '
        f'"uuid=$VOLUME{image.disk},source_type=volume,'
        'destination_type=volume"'
        for image in images[1:]
    ]
    words += [f'--nic "port-id=$PORT{index}"' for index in range(len(nics))]
    words.append(shell.join('--', name))
    return ' '.join(words)


def choose_flavor(
    need: Need, connection: sdk_connection.Connection | None
) -> Choice:
    """The smallest flavor that fits: least memory, then CPUs, then disk.

    A flavor with too small a disk does only where it has none at all:
    then the guest boots from a volume.
    """
    if connection is None:
        return Choice(None, 'no cloud was asked')
    try:
        if connection.compute.get_endpoint_data() is None:
            return Choice(None, 'no Compute service was found')
        flavors = [
            (int(item.ram), int(item.vcpus), int(item.disk), str(item.name))
            for item in connection.compute.flavors()
        ]
    except (
        keystone.ClientException,
        sdk.SDKException,
        requests.exceptions.RequestException,
        # A service of another kind may stand at the address.
        TypeError,
        ValueError,
    ) as error:
        return Choice(
            None, f'no Compute service tells its flavors: {_word(error)}'
        )
    fitting = sorted(
        flavor
        for flavor in flavors
        if flavor[0] >= need.ram and flavor[1] >= need.vcpus
    )
    for _ram, _vcpus, disk, name in fitting:
        if disk >= need.disk:
            return Choice(name)
    for _ram, _vcpus, disk, name in fitting:
        if disk == 0:
            return Choice(
                name,
                'No flavor has a large enough disk of its own; so the '
                'guest boots from a volume',
                from_volume=True,
            )
    return Choice(None, 'none of this cloud fits')


def _word(error: BaseException) -> str:
    """What kind of refusal it was, without a library's message."""
    status = getattr(error, 'status_code', None) or getattr(
        error, 'http_status', None
    )
    return f'HTTP {status}' if status else type(error).__name__
