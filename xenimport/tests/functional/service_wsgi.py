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

"""Serves Glance or Keystone.

Runs in the services' own virtual environment, as a script, never imported
by the project: ``python service_wsgi.py glance.wsgi.api PORT SERVER``. It
also holds the paste filter that gives Glance real tenants without Keystone.

Two servers differ in what a broken upload does: ``waitress`` collects a
request's whole body before Glance hears of it; ``wsgiref`` hands it on
while it comes, as the servers of real clouds do.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Iterable
import importlib
import socketserver
import sys
import typing
from wsgiref import simple_server

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


def _take_turns() -> None:
    """Let transactions wait for each other.

    SQLite refuses at once where two that have read both want to write;
    the databases of real clouds do not, so that is not what is tested.
    """
    sqlalchemy = importlib.import_module('sqlalchemy')
    engine = importlib.import_module('sqlalchemy.engine').Engine

    def immediate(
        _connection: object,
        _cursor: object,
        statement: str,
        parameters: object,
        *_rest: object,
    ) -> tuple[str, object]:
        if statement == 'BEGIN':
            statement = 'BEGIN IMMEDIATE'
        return statement, parameters

    sqlalchemy.event.listen(
        engine, 'before_cursor_execute', immediate, retval=True
    )


class _ThreadingServer(socketserver.ThreadingMixIn, simple_server.WSGIServer):
    daemon_threads = True


class _QuietHandler(simple_server.WSGIRequestHandler):
    def log_message(self, *_arguments: object) -> None:
        """Say nothing of each request."""


def _serve_waitress(application: _Application, port: int) -> None:
    # Not the project's dependency: it is in the services' environment.
    waitress = importlib.import_module('waitress')
    waitress.serve(
        application,
        host='127.0.0.1',
        port=port,
        threads=8,
        max_request_body_size=_LARGEST_BODY,
        # A slow upload of a large image is not an idle connection.
        channel_timeout=3600,
        ident=None,
    )


def _serve_wsgiref(application: _Application, port: int) -> None:
    simple_server.make_server(
        '127.0.0.1', port, application, _ThreadingServer, _QuietHandler
    ).serve_forever()


def main() -> None:
    """Serve one application on the loopback interface."""
    name, port, server = sys.argv[1:]
    # Keystone would read the arguments as its own.
    del sys.argv[1:]
    _take_turns()
    module = importlib.import_module(name)
    serve = _serve_wsgiref if server == 'wsgiref' else _serve_waitress
    serve(module.application, int(port))


if __name__ == '__main__':
    main()
