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

"""What the Image service and the way to it say, as our errors."""

from __future__ import annotations

from collections.abc import Iterator
import contextlib
import html
import re

from keystoneauth1 import exceptions as keystone
from openstack import exceptions as sdk
import requests

from xenimport import exceptions

#: Longest reason that is shown, in characters.
_REASON = 500
#: Statuses after which the same request may well succeed.
TRANSIENT = frozenset((408, 429, 500, 502, 503, 504))
#: What a request raises when the way to the service breaks. A reset in
#: the midst of a body may surface as requests' or urllib3's own.
BROKEN = (
    keystone.ConnectionError,
    keystone.RetriableConnectionFailure,
    requests.exceptions.RequestException,
    ConnectionError,
    TimeoutError,
)


def reason(response: requests.Response) -> str:
    """The service's own words: its HTML page without markup and head."""
    text = response.text[: 1 << 16]
    if 'html' in response.headers.get('content-type', '').lower():
        text = re.sub(r'(?s)<head\b.*?</head>', ' ', text)
        text = html.unescape(re.sub(r'<[^<>]*>', ' ', text))
    status = f'{response.status_code} {response.reason or ""}'.strip()
    text = ' '.join(text.split()).removeprefix(status).strip()
    return f'HTTP {status}: {clean(text)}' if text else f'HTTP {status}'


def clean(text: str) -> str:
    """The service's words, cut to one printable line."""
    text = ''.join(c if c.isprintable() else '?' for c in text)
    return text[:_REASON] + '…' if len(text) > _REASON else text


def raise_for(response: requests.Response, doing: str) -> None:
    """Raise what a refusing answer means; a good one passes.

    :param doing: what was asked, for the message: 'create the record'
    :raises xenimport.exceptions.TargetError: with the service's reason
    """
    try:
        sdk.raise_from_response(response)
    except sdk.HttpException as error:
        raise _refusal(response, doing) from error


def _refusal(
    response: requests.Response, doing: str
) -> exceptions.TargetError:
    error_id, message, fix = _MEANINGS.get(
        response.status_code,
        (
            'glance.failed',
            'The Image service could not {doing}',
            'see the reason; the log of the service knows more',
        ),
    )
    return exceptions.TargetError(
        error_id,
        message.format(doing=doing),
        where=response.url,
        found=reason(response),
        fix=fix,
    )


_REFUSED = (
    'glance.request-refused',
    'The Image service refused to {doing}',
    'change what the reason names: name, property, tag or visibility',
)
_AWAY = (
    'glance.unreachable',
    'The Image service does not answer behind its address, to {doing}',
    'wait and try again; if it stays so, tell the operator',
)
#: By HTTP status: id, message, fix.
_MEANINGS = {
    404: (
        'glance.record-gone',
        'The image record is gone; nothing is there to {doing}',
        'somebody has deleted it in the meantime: import it again',
    ),
    502: _AWAY,
    503: _AWAY,
    504: _AWAY,
    400: _REFUSED,
    401: (
        'glance.unauthorized',
        'The cloud does not accept the credentials, to {doing}',
        'check with "openstack token issue"; renew the password or '
        'application credential in clouds.yaml',
    ),
    403: (
        'glance.forbidden',
        'Your roles or quota in this project do not allow to {doing}',
        'ask the operator for the role or quota that the reason names, or '
        'leave out --public, --community, --project',
    ),
    409: _REFUSED,
    413: (
        'glance.quota',
        'The image is larger than the quota or the store allows',
        'delete images you no longer need, or ask the operator for more',
    ),
    415: (
        'glance.image-refused',
        'Glance has inspected the image and refuses it',
        'run "openstack image import-xen inspect" on the package and do '
        'what its findings say; if it has none, the operator may have '
        'narrowed the formats that are allowed',
    ),
}


@contextlib.contextmanager
def translated(doing: str) -> Iterator[None]:
    """Turn what the SDK raises on its way into our errors."""
    try:
        yield
    except keystone.EndpointNotFound as error:
        raise exceptions.TargetError(
            'glance.no-endpoint',
            'The cloud names no Image service that can be used',
            expected='an endpoint of type "image", version 2',
            found=first_line(error),
            fix='check region and interface in clouds.yaml against '
            '"openstack catalog show image"',
        ) from error
    except (keystone.Unauthorized, keystone.Forbidden) as error:
        raise exceptions.TargetError(
            'glance.unauthorized',
            'The cloud does not accept the credentials',
            found=first_line(error),
            fix='check with "openstack token issue"; renew the password '
            'or application credential in clouds.yaml',
        ) from error
    except (*BROKEN, keystone.DiscoveryFailure) as error:
        raise unreachable(error, doing) from error
    except (keystone.ClientException, sdk.SDKException) as error:
        raise exceptions.TargetError(
            'glance.failed',
            f'The Image service could not {doing}',
            found=first_line(error),
            fix='check clouds.yaml with "openstack image list"',
        ) from error


def unreachable(error: BaseException, doing: str) -> exceptions.TargetError:
    """The service does not answer."""
    return exceptions.TargetError(
        'glance.unreachable',
        f'The Image service cannot be reached, to {doing}',
        found=first_line(error),
        fix='see whether "openstack image list" works from here: network, '
        'proxy, address in the catalogue, certificate',
    )


def first_line(error: BaseException) -> str:
    """A library's message, cut to one printable line."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    line = ''.join(c if c.isprintable() else '?' for c in lines[0])
    return line[:_REASON]
