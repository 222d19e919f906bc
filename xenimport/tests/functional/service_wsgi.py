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

"""Serves Glance or Keystone with waitress.

Runs in the services' own virtual environment, as a script, never imported
by the project: ``python service_wsgi.py glance.wsgi.api PORT``. It also
holds the paste filter that gives Glance real tenants without Keystone.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Iterable
import importlib
import sys
import typing

_Application = Callable[..., Iterable[bytes]]

#: waitress refuses bodies over 1 GiB unless told otherwise.
_LARGEST_BODY = 1 << 40


def tenants(
    settings: dict[str, str], **unused: str
) -> Callable[[_Application], _Application]:
    """A paste filter: the token ``user:project:roles`` says who calls."""

    def wrap(application: _Application) -> _Application:
        def identify(
            environ: dict[str, typing.Any], start: typing.Any
        ) -> Iterable[bytes]:
            token = environ.get('HTTP_X_AUTH_TOKEN', '').split(':')
            if len(token) == 3:
                user, project, roles = token
                environ['HTTP_X_IDENTITY_STATUS'] = 'Confirmed'
                environ['HTTP_X_USER_ID'] = user
                environ['HTTP_X_PROJECT_ID'] = project
                environ['HTTP_X_ROLES'] = roles
            return application(environ, start)

        return identify

    return wrap


def main() -> None:
    """Serve one application on the loopback interface."""
    # Not the project's dependencies: they are in the services' environment.
    waitress = importlib.import_module('waitress')
    name, port = sys.argv[1:]
    # Keystone would read the arguments as its own.
    del sys.argv[1:]
    module = importlib.import_module(name)
    waitress.serve(
        module.application,
        host='127.0.0.1',
        port=int(port),
        threads=8,
        max_request_body_size=_LARGEST_BODY,
        # A slow upload of a large image is not an idle connection.
        channel_timeout=3600,
        ident=None,
    )


if __name__ == '__main__':
    main()
