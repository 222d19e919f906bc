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

"""Commands for a person to paste, quoted so that nothing in them acts.

Names come from the package and are hostile: each command is one line,
without control characters, and no value of it is taken for an option.
"""

from __future__ import annotations


from xenimport import model
from xenimport import shell


def image_create(path: str, request: model.ImageRequest) -> str:
    """The line that would upload the file as the image requested."""
    words = [
        'openstack',
        'image',
        'create',
        f'--file={path}',
        '--disk-format',
        request.disk_format,
        '--container-format',
        request.container_format,
    ]
    if request.visibility:
        words.append(f'--{request.visibility}')
    if request.protected is not None:
        words.append('--protected' if request.protected else '--unprotected')
    if request.project:
        words.append(f'--project={request.project}')
    if request.min_disk:
        words += ['--min-disk', str(request.min_disk)]
    if request.min_ram:
        words += ['--min-ram', str(request.min_ram)]
    words += [f'--tag={tag}' for tag in request.tags]
    words += [
        f'--property={key}={value}'
        for key, value in sorted(request.properties.items())
    ]
    return shell.join(*words, '--', request.name)
