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

"""The launch recipe."""

from __future__ import annotations

import dataclasses
import re
import subprocess
import typing
import unittest

from openstack import connection as sdk_connection
import requests
import requests_mock

from xenimport import model
from xenimport.workflow import recipe

URL = 'http://nova.test:8774/v2.1'
GIB = 1 << 30
SYSTEM = model.VirtualSystem(
    'web 1',
    model.Package('web.ova', 'ova'),
    (),
    vcpus=2,
    memory=2 * GIB,
    nics=(
        model.Nic('0', '00:16:3e:01:02:03', 'Pool-wide eth0'),
        model.Nic('1'),
    ),
)


def image(disk: int, size: int = 10 * GIB) -> model.Image:
    return model.Image(
        disk, f'id-{disk}', 'n', 'active', size, None, '', '', {}
    )


class Base(unittest.TestCase):
    """A Compute service behind requests-mock."""

    def setUp(self) -> None:
        super().setUp()
        self.mocker = requests_mock.Mocker()
        self.mocker.start()
        self.addCleanup(self.mocker.stop)
        self.connection = sdk_connection.Connection(
            auth_type='none',
            auth={'endpoint': URL},
            compute_endpoint_override=URL,
        )

    def flavors(self, *flavors: tuple[str, int, int, int]) -> None:
        """(name, MiB of memory, CPUs, GiB of disk)"""
        version = {
            'id': 'v2.1',
            'status': 'CURRENT',
            'version': '2.90',
            'min_version': '2.1',
            'links': [{'rel': 'self', 'href': f'{URL}/'}],
        }
        for url in (URL, f'{URL}/'):
            self.mocker.get(url, json={'version': version})
        self.mocker.get(
            f'{URL}/flavors/detail',
            json={
                'flavors': [
                    {
                        'id': name,
                        'name': name,
                        'ram': ram,
                        'vcpus': vcpus,
                        'disk': disk,
                    }
                    for name, ram, vcpus, disk in flavors
                ]
            },
        )


class FlavorTest(Base):
    def choose(self) -> recipe.Choice:
        return recipe.choose_flavor(
            recipe.Need(vcpus=2, ram=2048, disk=10), self.connection
        )

    def test_smallest_that_fits(self) -> None:
        self.flavors(
            ('huge', 65536, 16, 100),
            ('tiny', 512, 1, 10),
            ('exact', 2048, 2, 10),
            ('less-disk', 2048, 2, 9),
            ('less-cpu', 2048, 1, 10),
            ('more-cpu', 2048, 4, 10),
        )
        self.assertEqual(recipe.Choice('exact'), self.choose())

    def test_flavor_without_disk_boots_from_a_volume(self) -> None:
        self.flavors(('small-disk', 4096, 4, 5), ('diskless', 4096, 4, 0))
        choice = self.choose()
        self.assertEqual('diskless', choice.name)
        self.assertTrue(choice.from_volume)

    def test_none_fits(self) -> None:
        self.flavors(('tiny', 512, 1, 10))
        self.assertIsNone(self.choose().name)

    def test_service_that_refuses(self) -> None:
        self.flavors()
        self.mocker.get(f'{URL}/flavors/detail', status_code=403)
        choice = self.choose()
        self.assertIsNone(choice.name)
        self.assertIn('HTTP 403', choice.why)

    def test_no_service(self) -> None:
        self.mocker.get(
            re.compile('.*'), exc=requests.exceptions.ConnectionError('x')
        )
        self.assertIsNone(self.choose().name)

    def test_another_service_at_the_address(self) -> None:
        self.flavors()
        self.mocker.get(f'{URL}/flavors/detail', text='<h1>hello</h1>')
        self.assertIsNone(self.choose().name)


class LinesTest(unittest.TestCase):
    """Without a cloud the flavor is a variable."""

    def test_one_disk(self) -> None:
        self.assertEqual(
            (
                '# FLAVOR: one with 2 vCPU(s), 2048 MiB of memory and '
                '10 GiB of disk (no cloud was asked)',
                "# NETWORK0: the network in place of 'Pool-wide eth0'",
                'PORT0=$(openstack port create --network "$NETWORK0" '
                '--mac-address 00:16:3e:01:02:03 -f value -c id -- '
                "'web 1-nic0')",
                '# NETWORK1: the network',
                'PORT1=$(openstack port create --network "$NETWORK1" '
                "-f value -c id -- 'web 1-nic1')",
                'openstack server create --flavor "$FLAVOR" '
                '--image id-0 --nic "port-id=$PORT0" '
                '--nic "port-id=$PORT1" -- \'web 1\'',
            ),
            recipe.lines(SYSTEM, [image(0)]),
        )

    def test_data_disk_becomes_a_volume(self) -> None:
        found = recipe.lines(SYSTEM, [image(0), image(1, 3 * GIB + 1)])
        self.assertIn(
            'VOLUME1=$(openstack volume create --image id-1 --size 4 '
            "-f value -c id -- 'web 1-disk1')",
            found,
        )
        self.assertIn(
            '--block-device "uuid=$VOLUME1,source_type=volume,'
            'destination_type=volume"',
            found[-1],
        )

    def test_no_image_no_recipe(self) -> None:
        self.assertEqual((), recipe.lines(SYSTEM, []))

    def test_hostile_names_run_nothing(self) -> None:
        evil = '$(touch x)`y`"\';z\n--help'
        system = dataclasses.replace(
            SYSTEM,
            name=evil,
            nics=(model.Nic('0', '00:16:3e:01:02:03', evil),),
        )
        found = recipe.lines(system, [image(0), image(1)])
        for line in found:
            self.assertTrue(line.isprintable(), line)
        said = self.run_recipe(found)
        self.assertEqual(f'{evil}-nic0', said[0][-1])
        self.assertEqual(['--', evil], said[-1][-2:])

    def run_recipe(self, lines: typing.Sequence[str]) -> list[list[str]]:
        """Run it with an openstack that only writes down its words."""
        script = (
            'openstack() { { printf "%s\\1" "$@"; printf "\\2"; } >&2; '
            'echo an-id; }\nNETWORK0=net FLAVOR=m1\n' + '\n'.join(lines)
        )
        done = subprocess.run(
            ['bash', '-c', script], capture_output=True, check=True
        )
        calls = done.stderr.decode().split('\2')
        return [call.split('\1')[:-1] for call in calls if call]

    def test_shell_hands_the_ids_on(self) -> None:
        system = dataclasses.replace(SYSTEM, nics=SYSTEM.nics[:1])
        said = self.run_recipe(recipe.lines(system, [image(0), image(1)]))
        self.assertEqual(['port', 'create', '--network', 'net'], said[0][:4])
        self.assertIn('port-id=an-id', said[-1])
        self.assertIn(
            'uuid=an-id,source_type=volume,destination_type=volume',
            said[-1],
        )


class VolumeBootTest(Base):
    """A flavor without a disk of its own."""

    def test_first_disk_is_a_bootable_volume(self) -> None:
        self.flavors(('diskless', 4096, 4, 0))
        found = recipe.lines(SYSTEM, [image(0)], self.connection)
        self.assertIn(
            'VOLUME0=$(openstack volume create --image id-0 --size 10 '
            "--bootable -f value -c id -- 'web 1-disk0')",
            found,
        )
        self.assertIn('--flavor=diskless --volume "$VOLUME0" ', found[-1])
        self.assertNotIn('--image', found[-1])
