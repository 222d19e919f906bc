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

"""How Sphinx builds the documentation."""

import importlib.metadata

extensions = [
    'cliff.sphinxext',
    'openstackdocstheme',
    'oslo_config.sphinxconfiggen',
    'oslo_config.sphinxext',
    'stevedore.sphinxext',
]

project = 'xenimport'
copyright = 'The xenimport developers'
author = 'The xenimport developers'
release = importlib.metadata.version('xenimport')
version = release

html_theme = 'openstackdocs'
openstackdocs_auto_name = False
openstackdocs_auto_version = False
openstackdocs_pdf_link = False
pygments_style = 'native'

# The documented command line is the whole client's.
autoprogram_cliff_application = 'openstack'

config_generator_config_file = '../../etc/xenimport-config-generator.conf'
sample_config_basename = '_static/xenimport'
