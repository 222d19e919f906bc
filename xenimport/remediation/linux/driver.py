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

"""The remediation for Linux guests: a list, the thinking is in the checks."""

from __future__ import annotations

from collections.abc import Sequence

from xenimport import model
from xenimport.remediation import base
from xenimport.remediation.linux import blacklist
from xenimport.remediation.linux import bootloader
from xenimport.remediation.linux import console
from xenimport.remediation.linux import device_names
from xenimport.remediation.linux import disk_names
from xenimport.remediation.linux import initramfs
from xenimport.remediation.linux import network
from xenimport.remediation.linux import xen_tools


class LinuxRemediation(base.Remediation):
    """Makes a Linux guest of Xen boot on KVM."""

    handles = 'Linux guests, paravirtual or not'

    def matches(self, operating_system: model.OperatingSystem | None) -> bool:
        return operating_system is not None and (
            operating_system.family == 'linux'
        )

    def checks(self, request: base.Request) -> Sequence[base.Check]:
        # In the order in which they repair: a rebuilt initramfs copies the
        # blacklists, and the arguments for the kernel go into the boot
        # loader's configuration once there is one.
        lookup = disk_names.Lookup()
        return [
            device_names.DeviceNames(request, lookup),
            blacklist.ModuleBlacklist(request),
            initramfs.InitramfsVirtio(request),
            bootloader.BootConfiguration(request, lookup),
            bootloader.BootCode(request, lookup),
            console.Console(request),
            network.PersistentNet(request),
            xen_tools.XenGuestTools(request),
        ]
