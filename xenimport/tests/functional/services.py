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

"""Real OpenStack services on the loopback interface, for the tests.

Glance runs with sqlite and its file store, either alone, with tenants that
a small paste filter tells apart, or beside a real Keystone. Both come from
pip in their own virtual environment (``.venv-services`` in the checkout, or
``$XENIMPORT_SERVICES_VENV``), so that the project never leans on what they
install.

``python -m xenimport.tests.functional.services start --dir DIR`` leaves a
Glance running and prints how to use it; ``stop --dir DIR`` ends it.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from collections.abc import Sequence
import contextlib
import dataclasses
import json
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
import typing
import urllib.error
import urllib.request

import yaml

from xenimport.tests.functional import guests

_HERE = pathlib.Path(__file__).parent

#: Seconds that a service may take until it answers.
_START_TIMEOUT = 60

#: Seconds that a service gets to end by itself.
_STOP_TIMEOUT = 10

#: The clouds of clouds.yaml.
TENANT = 'tenant'
ADMIN = 'admin'

PASSWORD = 'loopback-only'


class ServiceError(Exception):
    """A service could not be started; the message holds its last words."""


def services_venv() -> pathlib.Path:
    """The virtual environment that Glance and Keystone live in."""
    named = os.environ.get('XENIMPORT_SERVICES_VENV')
    if named:
        return pathlib.Path(named)
    return _HERE.parents[2] / '.venv-services'


def free_port() -> int:
    """A TCP port of the loopback interface that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(('127.0.0.1', 0))
        port: int = listener.getsockname()[1]
        return port


def running(pid: int | None, marker: str = '') -> bool:
    """Whether a process runs (a zombie does not) and names the marker."""
    try:
        command = pathlib.Path(f'/proc/{pid}/cmdline').read_bytes()
    except OSError:
        return False
    return bool(command) and marker.encode() in command


@dataclasses.dataclass(frozen=True)
class _Process:
    """One server: how it was started and how to know it again."""

    pid: int
    marker: str

    def alive(self) -> bool:
        """Whether the process still runs and is the one we started."""
        return running(self.pid, self.marker)

    def stop(self, how: signal.Signals = signal.SIGTERM) -> None:
        """End the process, by force when it takes too long."""
        deadline = time.monotonic() + _STOP_TIMEOUT
        while self.alive():
            if time.monotonic() > deadline:
                how = signal.SIGKILL
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, how)
            time.sleep(0.05)


class Service:
    """A WSGI application of the services' virtual environment.

    :ivar directory: where its configuration, data and log are
    :ivar port: on the loopback interface
    :ivar server: which one of service_wsgi.py serves it
    """

    name = ''
    module = ''
    path = '/'
    server = 'waitress'

    def __init__(self, directory: pathlib.Path) -> None:
        self.directory = directory.absolute() / self.name
        self.port = free_port()
        self._process: _Process | None = None
        self._child: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """Where the service answers."""
        return f'http://127.0.0.1:{self.port}'

    @property
    def log(self) -> str:
        """What the service has said so far."""
        with contextlib.suppress(FileNotFoundError):
            return (self.directory / 'log').read_text(errors='replace')
        return ''

    @property
    def pid(self) -> int | None:
        """The server's process id while it runs."""
        return self._process.pid if self._process else None

    def environment(self) -> Mapping[str, str]:
        """What the server needs in its environment."""
        raise NotImplementedError

    def configure(self) -> None:
        """Write the configuration and make the database."""
        raise NotImplementedError

    def start(self) -> None:
        """Start the server and wait until it answers.

        :raises ServiceError: when it does not
        """
        python = services_venv() / 'bin' / 'python'
        if not python.exists():
            raise ServiceError(
                f'{python} is missing: tools/quickstart or tools/run-tests '
                'makes it'
            )
        self.directory.mkdir(parents=True, exist_ok=True)
        self.configure()
        # Its path in the command line tells the process from others that
        # may one day have the same id.
        script = self.directory / 'service_wsgi.py'
        shutil.copyfile(_HERE / 'service_wsgi.py', script)
        scratch = self.directory / 'tmp'
        scratch.mkdir(exist_ok=True)
        with open(self.directory / 'log', 'ab') as log:
            process = subprocess.Popen(
                [
                    str(python),
                    str(script),
                    self.module,
                    str(self.port),
                    self.server,
                ],
                cwd=self.directory,
                env={
                    **os.environ,
                    **self.environment(),
                    'PYTHONPATH': str(self.directory),
                    'TMPDIR': str(scratch),
                },
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._process = _Process(process.pid, str(script))
        self._child = process
        try:
            self._wait(process)
        except BaseException:
            process.kill()
            process.wait()
            raise

    def _wait(self, process: subprocess.Popen[bytes]) -> None:
        deadline = time.monotonic() + _START_TIMEOUT
        while time.monotonic() < deadline:
            if process.poll() is not None:
                break
            try:
                urllib.request.urlopen(self.url + self.path, timeout=5)
                return
            except urllib.error.HTTPError as answer:
                # 300 Multiple Choices is how a version list answers.
                if answer.code == 300:
                    return
            except OSError:
                pass
            time.sleep(0.05)
        raise ServiceError(f'{self.name} does not answer: {self.log[-3000:]}')

    def stop(self) -> None:
        """End the server."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """End the server as a crash would."""
        self._end(signal.SIGKILL)

    def _end(self, how: signal.Signals) -> None:
        if self._process and self._child:
            self._process.stop(how)
            self._child.wait()
            self._process = self._child = None

    def _tool(self, name: str, *arguments: str) -> None:
        """Run one of the services' own tools."""
        done = subprocess.run(
            [str(services_venv() / 'bin' / name), *arguments],
            cwd=self.directory,
            env={**os.environ, **self.environment()},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
        )
        if done.returncode:
            raise ServiceError(f'{name} failed: {done.stderr[-3000:]}')

    def _database(self, *sync: str) -> None:
        """Copy the empty database, made once for each release."""
        release = _release(self.name)
        cache = guests.cache_directory()
        cache.mkdir(parents=True, exist_ok=True)
        template = cache / f'{self.name}-{release}.sqlite'
        mine = self.directory / 'db.sqlite'
        if mine.exists():
            # What a service that was stopped has stored stays usable.
            return
        if template.exists():
            shutil.copyfile(template, mine)
            return
        self._tool(*sync)
        partial = template.with_suffix(f'.{os.getpid()}')
        shutil.copyfile(mine, partial)
        partial.rename(template)


def _release(name: str) -> str:
    """The release of a package in the services' environment."""
    found = list(
        services_venv().glob(f'lib/*/site-packages/{name}-*.dist-info')
    )
    if not found:
        raise ServiceError(f'{name} is not installed in {services_venv()}')
    return found[0].name.removesuffix('.dist-info').split('-', 1)[1]


class Identity(Service):
    """A real Keystone with an administrator, bootstrapped."""

    name = 'keystone'
    module = 'keystone.wsgi.api'
    path = '/v3'

    def environment(self) -> Mapping[str, str]:
        """What the server needs in its environment."""
        return {'OS_KEYSTONE_CONFIG_FILES': str(self._configuration)}

    @property
    def _configuration(self) -> pathlib.Path:
        return self.directory / 'keystone.conf'

    def configure(self) -> None:
        """Write the configuration, make database, keys and administrator."""
        if (self.directory / 'db.sqlite').exists():
            raise ServiceError(
                f'{self.directory} holds an old Keystone: take a new directory'
            )
        self._configuration.write_text(
            textwrap.dedent(f"""\
            [DEFAULT]
            log_file = {self.directory}/keystone.log
            [database]
            connection = sqlite:///{self.directory}/db.sqlite
            [fernet_tokens]
            key_repository = {self.directory}/fernet
            [credential]
            key_repository = {self.directory}/credential
            """)
        )
        self._manage_database()
        owner = (
            '--keystone-user',
            str(os.geteuid()),
            '--keystone-group',
            str(os.getegid()),
        )
        self._manage('fernet_setup', *owner)
        self._manage('credential_setup', *owner)
        self._manage(
            'bootstrap',
            '--bootstrap-password',
            PASSWORD,
            '--bootstrap-region-id',
            'RegionOne',
            '--bootstrap-public-url',
            f'{self.url}/v3',
        )

    def _manage(self, *arguments: str) -> None:
        self._tool(
            'keystone-manage',
            '--config-file',
            str(self._configuration),
            *arguments,
        )

    def _manage_database(self) -> None:
        self._database(
            'keystone-manage',
            '--config-file',
            str(self._configuration),
            'db_sync',
        )


class ImageService(Service):
    """A real Glance.

    :param identity: the Keystone that knows its users; without one the
        token itself names user, project and roles
    :param converts: whether an import makes RAW of the image
    """

    name = 'glance'
    module = 'glance.wsgi.api'
    path = '/versions'

    def __init__(
        self,
        directory: pathlib.Path,
        identity: Identity | None = None,
        *,
        converts: bool = False,
    ) -> None:
        super().__init__(directory)
        self._identity = identity
        self._converts = converts

    def environment(self) -> Mapping[str, str]:
        """What the server needs in its environment."""
        return {'OS_GLANCE_CONFIG_DIR': str(self.directory)}

    def configure(self) -> None:
        """Write the configuration and make the database."""
        for store in ('images', 'staging', 'tasks'):
            (self.directory / store).mkdir(exist_ok=True)
        flavor = 'keystone' if self._identity else 'tenants'
        paste = self.directory / 'paste.ini'
        paste.write_text(_PASTE)
        (self.directory / 'policy.yaml').write_text('{}\n')
        text = _GLANCE.format(
            directory=self.directory,
            url=self.url,
            python=services_venv() / 'bin' / 'python3',
            flavor=flavor,
            paste=paste,
        )
        if self._identity:
            text += _AUTH.format(url=self._identity.url, password=PASSWORD)
        (self.directory / 'glance-api.conf').write_text(text)
        (self.directory / 'glance-image-import.conf').write_text(
            _CONVERSION if self._converts else ''
        )
        self._database(
            'glance-manage',
            '--config-file',
            str(self.directory / 'glance-api.conf'),
            'db_sync',
        )

    def stored(self) -> list[pathlib.Path]:
        """The files that hold image data at this moment."""
        return [
            path
            for store in ('images', 'staging')
            for path in (self.directory / store).rglob('*')
            if path.is_file()
        ]


_GLANCE = """\
[DEFAULT]
enabled_backends = local:file
enabled_import_methods = [glance-direct,web-download]
worker_self_reference_url = {url}
public_endpoint = {url}
log_file = {directory}/glance.log
[oslo_concurrency]
lock_path = {directory}/tmp
[database]
connection = sqlite:///{directory}/db.sqlite?timeout=30
[glance_store]
default_backend = local
[local]
filesystem_store_datadir = {directory}/images
filesystem_thin_provisioning = true
[os_glance_staging_store]
filesystem_store_datadir = {directory}/staging
[os_glance_tasks_store]
filesystem_store_datadir = {directory}/tasks
[taskflow_executor]
engine_mode = serial
[wsgi]
python_interpreter = {python}
[paste_deploy]
flavor = {flavor}
config_file = {paste}
[oslo_policy]
policy_file = {directory}/policy.yaml
"""

_CONVERSION = """\
[image_import_opts]
image_import_plugins = [image_conversion]
[image_conversion]
output_format = raw
"""

_AUTH = """\
[keystone_authtoken]
www_authenticate_uri = {url}
auth_url = {url}
auth_type = password
username = admin
password = {password}
project_name = admin
user_domain_id = default
project_domain_id = default
interface = public
"""

_PASTE = """\
[pipeline:glance-api-tenants]
pipeline = versionnegotiation tenants context rootapp

[pipeline:glance-api-keystone]
pipeline = versionnegotiation authtoken context rootapp

[composite:rootapp]
paste.composite_factory = glance.api:root_app_factory
/: apiversions
/v2: apiv2app

[app:apiversions]
paste.app_factory = glance.api.versions:create_resource

[app:apiv2app]
paste.app_factory = glance.api.v2.router:API.factory

[filter:versionnegotiation]
paste.filter_factory = \
glance.api.middleware.version_negotiation:VersionNegotiationFilter.factory

[filter:context]
paste.filter_factory = glance.api.middleware.context:ContextMiddleware.factory

[filter:tenants]
paste.filter_factory = service_wsgi:tenants

[filter:authtoken]
paste.filter_factory = keystonemiddleware.auth_token:filter_factory
delay_auth_decision = true
"""


class Cloud:
    """A cloud that OpenStackClient can be pointed at.

    :param directory: where everything of it lives
    :param keystone: whether users come from a real Keystone
    :param converts: whether an import makes RAW of the image
    """

    def __init__(
        self,
        directory: str | pathlib.Path,
        *,
        keystone: bool = False,
        converts: bool = False,
    ) -> None:
        self.directory = pathlib.Path(directory).absolute()
        self.identity = Identity(self.directory) if keystone else None
        self.image = ImageService(
            self.directory, self.identity, converts=converts
        )

    @property
    def clouds_yaml(self) -> pathlib.Path:
        """The file that names the clouds ``tenant`` and ``admin``."""
        return self.directory / 'clouds.yaml'

    def start(self) -> None:
        """Start the services and write clouds.yaml."""
        self.directory.mkdir(parents=True, exist_ok=True)
        if self.identity:
            self.identity.start()
        try:
            self.image.start()
            self.write_clouds(self.image.url)
            if self.identity:
                self._register()
        except BaseException:
            self.stop()
            raise
        self._state.write_text(
            json.dumps(
                [
                    dataclasses.asdict(service._process)
                    for service in (self.image, self.identity)
                    if service and service._process
                ]
            )
        )

    def stop(self) -> None:
        """End the services; what they stored stays."""
        self.image.stop()
        if self.identity:
            self.identity.stop()
        self._state.unlink(missing_ok=True)

    @property
    def _state(self) -> pathlib.Path:
        return self.directory / 'processes.json'

    def environment(self, cloud: str = TENANT) -> dict[str, str]:
        """What OpenStackClient needs in its environment."""
        return {
            'OS_CLIENT_CONFIG_FILE': str(self.clouds_yaml),
            'OS_CLOUD': cloud,
        }

    def write_clouds(self, image_url: str) -> None:
        """Write clouds.yaml.

        :param image_url: Glance's, or a proxy's; without Keystone only
        """
        clouds = {
            name: self._cloud(name, image_url) for name in (TENANT, ADMIN)
        }
        self.clouds_yaml.write_text(yaml.safe_dump({'clouds': clouds}))

    def _cloud(self, name: str, image_url: str) -> dict[str, typing.Any]:
        if self.identity:
            return {
                'auth': {
                    'auth_url': f'{self.identity.url}/v3',
                    'username': name,
                    'password': PASSWORD,
                    'project_name': name,
                    'user_domain_id': 'default',
                    'project_domain_id': 'default',
                },
                # Keystone's catalog says where Glance is.
                'region_name': 'RegionOne',
            }
        roles = 'member,reader' if name == TENANT else 'admin,member,reader'
        return {
            'auth_type': 'admin_token',
            'auth': {
                'endpoint': f'{image_url}/v2',
                'token': f'{name}:p-{name}:{roles}',
            },
        }

    def _register(self) -> None:
        """Tell Keystone of Glance, and of a user with the role member."""
        import openstack

        clouds = yaml.safe_load(self.clouds_yaml.read_text())['clouds']
        with openstack.connect(**clouds[ADMIN]) as connection:
            # Its v2 is long gone; the annotations still allow for it.
            identity: typing.Any = connection.identity
            service = identity.create_service(name='glance', type='image')
            identity.create_endpoint(
                service_id=service.id,
                interface='public',
                region_id='RegionOne',
                url=self.image.url,
            )
            project = identity.create_project(name=TENANT, domain_id='default')
            user = identity.create_user(
                name=TENANT,
                password=PASSWORD,
                domain_id='default',
                default_project_id=project.id,
            )
            identity.assign_project_role_to_user(
                project, user, identity.find_role('member')
            )


class CutProxy:
    """A TCP proxy that breaks the connection in the middle of an upload.

    :param port: where the real service listens
    :param after: bytes from the client that pass before the cut
    :param gone: whether nobody answers any more after the cut
    :ivar port: where the proxy listens
    """

    def __init__(self, port: int, after: int, *, gone: bool = False) -> None:
        self._upstream = port
        self._left = after
        self._gone = gone
        self._lock = threading.Lock()
        self._listener = socket.create_server(('127.0.0.1', 0))
        self.port: int = self._listener.getsockname()[1]
        self.cuts = 0

    @property
    def url(self) -> str:
        """What to write in place of the service's own URL."""
        return f'http://127.0.0.1:{self.port}'

    def start(self) -> None:
        """Listen in the background."""
        threading.Thread(target=self._accept, daemon=True).start()

    def stop(self) -> None:
        """Listen no more."""
        # close() alone does not wake a thread that waits in accept().
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            server = socket.create_connection(('127.0.0.1', self._upstream))
            for source, target, counted in (
                (client, server, True),
                (server, client, False),
            ):
                threading.Thread(
                    target=self._copy,
                    args=(source, target, counted),
                    daemon=True,
                ).start()

    def _copy(
        self, source: socket.socket, target: socket.socket, counted: bool
    ) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                if counted and self._exhausted(len(data)):
                    break
                target.sendall(data)
        for end in (source, target):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()

    def _exhausted(self, count: int) -> bool:
        """Whether the cut is now; it happens once, unless it is final."""
        with self._lock:
            if self.cuts and not self._gone:
                return False
            self._left -= count
            if self._left > 0:
                return False
            self.cuts += 1
        if self._gone:
            self.stop()
        return True


def stop_recorded(directory: str | pathlib.Path) -> int:
    """End what another process started in a directory; how many ended."""
    state = pathlib.Path(directory).absolute() / 'processes.json'
    try:
        records = json.loads(state.read_text())
    except FileNotFoundError:
        return 0
    ended = 0
    for record in records:
        process = _Process(**record)
        if process.alive():
            process.stop()
            ended += 1
    state.unlink()
    return ended


def main(arguments: Sequence[str] | None = None) -> int:
    """Start a Glance that stays, or stop it."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument('action', choices=['start', 'stop'])
    parser.add_argument('--dir', required=True)
    parser.add_argument(
        '--keystone', action='store_true', help='beside a real Keystone'
    )
    options = parser.parse_args(arguments)
    # Ports change with every start, so a running service is started anew.
    stop_recorded(options.dir)
    if options.action == 'stop':
        return 0
    cloud = Cloud(options.dir, keystone=options.keystone)
    try:
        cloud.start()
    except ServiceError as error:
        print(error, file=sys.stderr)
        return 1
    for name, value in cloud.environment().items():
        print(f'export {name}={value}')
    return 0


if __name__ == '__main__':
    sys.exit(main())
