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


"""Which Windows a version number and a build mean, in libosinfo's ids.

Source: osinfo-db's short ids; Microsoft's "Windows 10 release
information", "Windows 11 release information" and "Windows Server release
information" for the builds. Server releases between two of a year (1709,
20H2, 23H2 ...) have no id of their own: they count as the one before.
``win2k25`` continues the form; the osinfo-db at hand ended with 2022.
"""

from __future__ import annotations

#: By version: what a client is, and what a server is.
_BY_VERSION = {
    (5, 0): ('win2k', 'win2k'),
    (5, 1): ('winxp', 'winxp'),
    (5, 2): ('winxp', 'win2k3'),
    (6, 0): ('winvista', 'win2k8'),
    (6, 1): ('win7', 'win2k8r2'),
    (6, 2): ('win8', 'win2k12'),
    (6, 3): ('win8.1', 'win2k12r2'),
}
#: Of version 10.0: the first build of each, the latest first.
_CLIENTS = ((22000, 'win11'), (0, 'win10'))
_SERVERS = (
    (26100, 'win2k25'),
    (20348, 'win2k22'),
    (17763, 'win2k19'),
    (0, 'win2k16'),
)


def short_id(version: tuple[int, int], build: int, server: bool) -> str:
    """libosinfo's short id of a Windows; '' where it has none.

    :param version: 6, 1 is Windows 7 and Server 2008 R2
    :param build: 7601, 14393, ...; 0 where it is not known
    """
    if version == (10, 0):
        for first, name in _SERVERS if server else _CLIENTS:
            if build >= first:
                return name
    client_id, server_id = _BY_VERSION.get(version, ('', ''))
    return server_id if server else client_id
