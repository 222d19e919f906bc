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

"""Builds the guests that the functional tests import.

A guest is described by a frozen :class:`GuestSpec` and built from Debian's
packages with mmdebstrap, through the apt sources of this machine. The
result is a RAW disk and the OVA that XenCenter would have exported it as.
It is kept in a cache whose key is a hash of everything the guest is made
from, so a guest is built once and never changes in place.

``python -m xenimport.tests.functional.guests --output DIR`` prints the path
of the sample guest's OVA.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from collections.abc import Sequence
import contextlib
import dataclasses
import fcntl
import hashlib
import io
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import textwrap
import time
import uuid

from xenimport.tests import packages

MIB = 1 << 20

#: Raised whenever the builder itself makes something else from one spec.
BUILDER_VERSION = 2

#: Where the first partition starts, in bytes: sector 2048.
PARTITION_OFFSET = 2048 * 512

#: The time that all files of a guest carry: 2024-01-01 00:00 UTC.
EPOCH = 1704067200

#: What the sample guest writes to the kernel log once it is up.
MARKER = 'xenimport-sample: multi-user reached'

#: The password of root in every guest made here, and its crypt(3) form.
PASSWORD = 'xenimport'
_PASSWORD_HASH = (
    '$6$xenimport$XmTdkNmsNSoc0oV7D0By1mA.YwAJISz1OA5Y2'
    'hI7uOsYIMgbj8p6.GiNCYX7FHDtoqXir2eWnKbv0oVKke6CU1'
)

_NAMESPACE = uuid.UUID('7b6b1c5e-3c55-5a0e-9d0b-6d9e1f0c2a44')


@dataclasses.dataclass(frozen=True)
class GuestFile:
    """A file to put into a guest; ``link`` makes it a symbolic link."""

    path: str
    content: str = ''
    mode: int = 0o644
    link: str | None = None


@dataclasses.dataclass(frozen=True)
class GuestSpec:
    """Everything a guest is made from.

    :ivar name: the virtual machine's and the guest's host name
    :ivar suite: the Debian suite
    :ivar packages: Debian packages beside the essential ones
    :ivar disk_size: of the RAW disk, in bytes
    :ivar files: written after the packages are configured
    :ivar commands: shell lines run in the guest after that, in order
    :ivar memory: in bytes
    :ivar mac: of its only network card
    """

    name: str
    suite: str
    packages: tuple[str, ...]
    disk_size: int
    files: tuple[GuestFile, ...] = ()
    commands: tuple[str, ...] = ()
    vcpus: int = 2
    memory: int = 1024 * MIB
    mac: str = '00:16:3e:5a:4d:01'

    def uuid(self, purpose: str) -> uuid.UUID:
        """A uuid that is the same in every build."""
        return uuid.uuid5(_NAMESPACE, f'{self.name}/{purpose}')

    def key(self) -> str:
        """A name for the cache that changes with every input."""
        inputs = f'{BUILDER_VERSION} {self!r}'
        digest = hashlib.sha256(inputs.encode()).hexdigest()
        return f'{self.name}-{digest[:16]}'


@dataclasses.dataclass(frozen=True)
class Guest:
    """A built guest: its RAW disk and the OVA that holds the same bytes."""

    spec: GuestSpec
    raw: pathlib.Path
    ova: pathlib.Path


class BuildError(Exception):
    """A guest could not be built; the message holds the tool's output."""


def _text(content: str) -> str:
    return textwrap.dedent(content).lstrip('\n')


_XE_DAEMON = _text("""
    #!/bin/sh
    # Stands for the daemon of the Xen guest tools: useless outside Xen.
    [ "$(cat /sys/hypervisor/type 2>/dev/null)" = xen ] || exit 1
    while :; do
        sleep 60
    done
""")

_XE_INIT = _text("""
    #!/bin/sh
    ### BEGIN INIT INFO
    # Provides:          xe-linux-distribution
    # Required-Start:    $remote_fs
    # Required-Stop:     $remote_fs
    # Default-Start:     2 3 4 5
    # Default-Stop:      0 1 6
    # Short-Description: Xen guest tools
    ### END INIT INFO
    case "$1" in
        start) /usr/sbin/xe-daemon & ;;
        stop) : ;;
        *) echo "usage: $0 start|stop" >&2; exit 2 ;;
    esac
""")

_XE_UNIT = _text("""
    [Unit]
    Description=Xen guest tools
    After=local-fs.target

    [Service]
    ExecStart=/usr/sbin/xe-daemon

    [Install]
    WantedBy=multi-user.target
""")

_XE_STATUS = _text("""
    Package: xe-guest-utilities
    Status: install ok installed
    Priority: optional
    Section: admin
    Installed-Size: 16
    Maintainer: xenimport's tests <root@localhost>
    Architecture: all
    Version: 7.20.0-9
    Description: traces of the Xen guest tools

""")

_XE_LIST = _text("""
    /.
    /etc
    /etc/init.d
    /etc/init.d/xe-linux-distribution
    /etc/udev
    /etc/udev/rules.d
    /etc/udev/rules.d/z10-xen-vcpu-hotplug.rules
    /lib
    /lib/systemd
    /lib/systemd/system
    /lib/systemd/system/xe-linux-distribution.service
    /usr
    /usr/sbin
    /usr/sbin/xe-daemon
    /usr/sbin/xe-linux-distribution
""")

_MARKER_UNIT = _text("""
    [Unit]
    Description=Tell the kernel log that multi-user was reached
    After=multi-user.target network-online.target

    [Service]
    Type=oneshot
    ExecStart=/usr/local/sbin/boot-marker

    [Install]
    WantedBy=multi-user.target
""")

_MARKER_SCRIPT = _text(f"""
    #!/bin/sh
    root=$(findmnt -n -o SOURCE /)
    address=$(ip -4 -o address show scope global | awk '{{print $4}}')
    kernel=$(uname -r)
    message="{MARKER}, root $root, address ${{address:-none}}, $kernel"
    echo "<1>$message" >/dev/kmsg
""")

#: The Xen tools' traces. dpkg knows them as a package, as on a real guest,
#: where it came from the tools' CD.
_XEN_TOOLS = (
    GuestFile('usr/sbin/xe-daemon', _XE_DAEMON, 0o755),
    GuestFile(
        'usr/sbin/xe-linux-distribution',
        '#!/bin/sh\necho os_distro=debian\n',
        0o755,
    ),
    GuestFile('etc/init.d/xe-linux-distribution', _XE_INIT, 0o755),
    GuestFile('lib/systemd/system/xe-linux-distribution.service', _XE_UNIT),
    GuestFile(
        'etc/udev/rules.d/z10-xen-vcpu-hotplug.rules',
        'ACTION=="add", SUBSYSTEM=="cpu", ATTR{online}=="0", '
        'ATTR{online}="1"\n',
    ),
    GuestFile('var/lib/dpkg/info/xe-guest-utilities.list', _XE_LIST),
    GuestFile('var/lib/dpkg/info/xe-guest-utilities.md5sums'),
    GuestFile('tmp/xe-status', _XE_STATUS),
)

#: ``@VERSION@`` becomes the kernel's release.
_MENU_LST = _text("""
    default         0
    timeout         2

    title           Debian GNU/Linux, kernel @VERSION@
    root            (hd0,0)
    kernel          /boot/vmlinuz-@VERSION@ root=/dev/xvda1 ro console=hvc0
    initrd          /boot/initrd.img-@VERSION@
""")

_GRUB_CFG = _text("""
    set default=0
    set timeout=2
    menuentry 'Debian GNU/Linux, with Linux @VERSION@' {
        insmod part_msdos
        insmod ext2
        set root='(hd0,msdos1)'
        linux /boot/vmlinuz-@VERSION@ root=/dev/xvda1 ro console=hvc0
        initrd /boot/initrd.img-@VERSION@
    }
""")

_SAMPLE_FILES = (
    GuestFile(
        'etc/fstab',
        '# <file system> <mount point> <type> <options> <dump> <pass>\n'
        '/dev/xvda1 / ext4 errors=remount-ro 0 1\n'
        'proc /proc proc defaults 0 0\n',
    ),
    GuestFile('etc/hostname', 'debian-pv\n'),
    GuestFile('etc/hosts', '127.0.0.1 localhost\n127.0.1.1 debian-pv\n'),
    GuestFile(
        'etc/network/interfaces',
        'auto lo\niface lo inet loopback\n\nauto eth0\niface eth0 inet dhcp\n',
    ),
    GuestFile(
        'etc/udev/rules.d/70-persistent-net.rules',
        'SUBSYSTEM=="net", ACTION=="add", DRIVERS=="vif", '
        'ATTR{address}=="00:16:3e:5a:4d:01", NAME="eth0"\n',
    ),
    GuestFile(
        'etc/modprobe.d/blacklist-virtio.conf',
        '# This is a Xen guest.\n'
        'blacklist virtio_pci\nblacklist virtio_blk\n'
        'blacklist virtio_scsi\nblacklist virtio_net\n',
    ),
    GuestFile(
        'etc/initramfs-tools/modules', 'xen-blkfront\nxen-netfront\next4\n'
    ),
    GuestFile('etc/systemd/system/getty@tty1.service', link='/dev/null'),
    GuestFile(
        'etc/systemd/system/serial-getty@ttyS0.service', link='/dev/null'
    ),
    GuestFile(
        'etc/systemd/system/getty.target.wants/serial-getty@hvc0.service',
        link='/lib/systemd/system/serial-getty@.service',
    ),
    GuestFile('boot/grub/menu.lst', _MENU_LST),
    GuestFile('boot/grub/grub.cfg', _GRUB_CFG),
    GuestFile('etc/systemd/system/boot-marker.service', _MARKER_UNIT),
    GuestFile('usr/local/sbin/boot-marker', _MARKER_SCRIPT, 0o755),
    *_XEN_TOOLS,
)

_SAMPLE_COMMANDS = (
    f"usermod --password '{_PASSWORD_HASH}' root",
    'cat /tmp/xe-status >>/var/lib/dpkg/status',
    'rm /tmp/xe-status',
    'dpkg --audit',
    'systemctl enable boot-marker.service xe-linux-distribution.service',
    'rm -f /etc/systemd/system/getty.target.wants/getty@tty1.service',
    'rm -f /etc/initramfs-tools/conf.d/modules-list',
    "sed -i 's/^MODULES=.*/MODULES=list/' /etc/initramfs-tools/initramfs.conf",
    'version=$(basename /lib/modules/*)',
    'sed -i "s/@VERSION@/$version/g" /boot/grub/menu.lst /boot/grub/grub.cfg',
    'update-initramfs -u -k "$version"',
)

#: Debian 12 as an old paravirtual Xen guest looks.
SAMPLE = GuestSpec(
    name='debian-pv',
    suite='bookworm',
    packages=(
        'e2fsprogs',
        'ifupdown',
        'initramfs-tools',
        'iproute2',
        'isc-dhcp-client',
        'kmod',
        'linux-image-amd64',
        'openssh-server',
        'systemd-sysv',
        'udev',
    ),
    disk_size=1200 * MIB,
    files=_SAMPLE_FILES,
    commands=_SAMPLE_COMMANDS,
)


def cache_directory() -> pathlib.Path:
    """Where built guests are kept: $XENIMPORT_CACHE, or under ~/.cache."""
    named = os.environ.get('XENIMPORT_CACHE')
    if named:
        return pathlib.Path(named).absolute()
    return pathlib.Path.home() / '.cache' / 'xenimport-tests'


@contextlib.contextmanager
def _locked(path: pathlib.Path) -> Iterator[None]:
    """Let one builder at a time into the block, whatever its process."""
    with open(path, 'w') as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def build(spec: GuestSpec = SAMPLE) -> Guest:
    """The guest of a spec, built now or taken from the cache.

    :raises BuildError: when a tool is missing or fails
    """
    cache = cache_directory()
    cache.mkdir(parents=True, exist_ok=True)
    home = cache / spec.key()
    guest = Guest(spec, home / 'disk.raw', home / f'{spec.name}.ova')
    with _locked(cache / f'{spec.key()}.lock'):
        if not home.exists():
            scratch = tempfile.mkdtemp(prefix='building-', dir=cache)
            # mmdebstrap's other user ids must reach what lies in it.
            os.chmod(scratch, 0o755)
            try:
                result = _build_into(spec, pathlib.Path(scratch))
                result.rename(home)
            finally:
                shutil.rmtree(scratch, ignore_errors=True)
    return guest


def _build_into(spec: GuestSpec, directory: pathlib.Path) -> pathlib.Path:
    """Build in a scratch directory; what comes back goes to the cache."""
    result = directory / 'result'
    result.mkdir()
    tree = directory / 'tree.tar'
    raw = result / 'disk.raw'
    started = time.monotonic()
    _debootstrap(spec, directory, tree)
    _say(f'packages of {spec.name}', started)
    started = time.monotonic()
    _make_disk(spec, directory, tree, raw)
    tree.unlink()
    _say(f'disk of {spec.name}', started)
    started = time.monotonic()
    _pack(spec, raw, result / f'{spec.name}.ova')
    _say(f'OVA of {spec.name}', started)
    return result


def _pack(spec: GuestSpec, raw: pathlib.Path, ova: pathlib.Path) -> None:
    """Write the OVA that XenCenter would have exported."""
    disk = packages.Disk(
        str(spec.uuid('vdi')), f'{spec.uuid("vdi")}.vhd', spec.disk_size
    )
    description = packages.xencenter_ovf(
        [disk],
        name=spec.name,
        vcpus=spec.vcpus,
        memory=spec.memory // MIB,
        macs=[spec.mac],
        settings={
            'HVM_boot_policy': '',
            'PV_bootloader': 'pygrub',
            'platform': 'nx=true;acpi=1;apic=true;pae=true',
        },
    )
    vhd = ova.with_suffix('.vhd')
    packages.vhd_from_raw(str(raw), str(vhd), creator=b'caml')
    packages.write_ova(
        str(ova),
        [(f'{spec.name}.ovf', description), (disk.href, str(vhd))],
    )
    vhd.unlink()


def _say(what: str, started: float) -> None:
    print(f'{what}: {time.monotonic() - started:.1f} s', file=sys.stderr)


def _run(command: Sequence[str]) -> None:
    """Run a tool to its end; its output is shown only when it fails."""
    environment = {
        **os.environ,
        'LC_ALL': 'C.UTF-8',
        'SOURCE_DATE_EPOCH': str(EPOCH),
        'E2FSPROGS_FAKE_TIME': str(EPOCH),
        'PATH': os.environ.get('PATH', '') + ':/usr/sbin:/sbin',
    }
    try:
        done = subprocess.run(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors='replace',
        )
    except FileNotFoundError:
        raise BuildError(f'{command[0]} is not installed') from None
    if done.returncode:
        tail = '\n'.join(done.stdout.splitlines()[-30:])
        raise BuildError(f'{command[0]} failed, its last words:\n{tail}')


def apt_sources(suite: str, root: pathlib.Path = pathlib.Path('/')) -> str:
    """What this machine's apt sources say about a suite, as deb822 or list.

    Only the entries of the suite itself, its updates and its security
    suite are taken: other archives have no part in a guest. Empty when
    this machine knows nothing of the suite.
    """
    wanted = {suite, f'{suite}-updates', f'{suite}-security'}
    apt = root / 'etc' / 'apt'
    lines: list[str] = []
    stanzas: list[str] = []
    for path in [
        apt / 'sources.list',
        *sorted((apt / 'sources.list.d').glob('*')),
    ]:
        if not path.is_file():
            continue
        text = path.read_text(errors='replace')
        if path.suffix == '.list':
            for line in text.splitlines():
                words = re.sub(r'\[[^]]*\]', '', line).split()
                if words[:1] == ['deb'] and set(words[2:3]) & wanted:
                    lines.append(line)
        elif path.suffix == '.sources':
            for stanza in re.split(r'\n\s*\n', text):
                match = re.search(r'(?mi)^Suites:(.*)$', stanza)
                if match and set(match[1].split()) & wanted:
                    stanzas.append(stanza.strip())
    if stanzas:
        return '\n\n'.join(stanzas) + '\n'
    return ''.join(line + '\n' for line in lines)


def _debootstrap(
    spec: GuestSpec, directory: pathlib.Path, tree: pathlib.Path
) -> None:
    """Make the guest's tree as a tar file."""
    files = directory / 'files.tar'
    files.write_bytes(overlay(spec))
    script = directory / 'commands.sh'
    script.write_text('set -e\n' + ''.join(c + '\n' for c in spec.commands))
    command = [
        'mmdebstrap',
        '--variant=minbase',
        '--include=' + ','.join(spec.packages),
        '--aptopt=APT::Install-Recommends "false"',
        # The first initramfs of the kernel's own installation is thrown
        # away: no need to put a whole machine's modules into it.
        '--essential-hook=mkdir -p "$1/etc/initramfs-tools/conf.d"',
        '--essential-hook=echo MODULES=list '
        '>"$1/etc/initramfs-tools/conf.d/modules-list"',
        f'--customize-hook=tar-in {files} /',
        f'--customize-hook=upload {script} /tmp/commands.sh',
        '--customize-hook=chroot "$1" sh /tmp/commands.sh',
        '--customize-hook=rm "$1/tmp/commands.sh"',
        spec.suite,
        str(tree),
    ]
    sources = apt_sources(spec.suite)
    if sources:
        suffix = 'sources' if 'URIs:' in sources else 'list'
        path = directory / f'apt.{suffix}'
        path.write_text(sources)
        command.append(str(path))
    _run(command)


def overlay(spec: GuestSpec) -> bytes:
    """The spec's files as a tar file, all owned by root."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode='w') as archive:
        for file in spec.files:
            member = tarfile.TarInfo('./' + file.path)
            member.mtime = EPOCH
            member.mode = file.mode
            data = file.content.encode()
            if file.link is not None:
                member.type = tarfile.SYMTYPE
                member.linkname = file.link
            else:
                member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


def _make_disk(
    spec: GuestSpec,
    directory: pathlib.Path,
    tree: pathlib.Path,
    raw: pathlib.Path,
) -> None:
    """Turn the tree into a RAW disk: an MBR, no boot code, one ext4."""
    with open(raw, 'wb') as disk:
        disk.truncate(spec.disk_size)
        disk.write(master_boot_record(spec))
    root = directory / 'tree'
    root.mkdir()
    length = (spec.disk_size - PARTITION_OFFSET) // 1024
    # Features that the grub and the kernels of old guests cannot read.
    features = '^metadata_csum_seed,^orphan_file'
    make = (
        f'tar --extract --file {tree} --directory {root} '
        f'--numeric-owner --xattrs --exclude=./dev/* && '
        f'mke2fs -q -F -t ext4 -m 0 -O {features} '
        f'-U {spec.uuid("root")} -E '
        f'offset={PARTITION_OFFSET},hash_seed={spec.uuid("hash")} '
        f'-d {root} {raw} {length}k'
    )
    # Without root, fakeroot lets mke2fs see the owners that tar set.
    prefix = [] if os.geteuid() == 0 else ['fakeroot']
    try:
        _run([*prefix, 'sh', '-c', make])
    finally:
        shutil.rmtree(root, ignore_errors=True)


def master_boot_record(spec: GuestSpec) -> bytes:
    """Sector 0: a signature and one partition, and no boot code at all."""
    record = bytearray(512)
    record[440:444] = spec.uuid('mbr').bytes[:4]
    start = PARTITION_OFFSET // 512
    sectors = spec.disk_size // 512 - start
    entry = bytearray(16)
    entry[1:4] = b'\x20\x21\x00'
    entry[4] = 0x83
    entry[5:8] = b'\xfe\xff\xff'
    entry[8:12] = start.to_bytes(4, 'little')
    entry[12:16] = sectors.to_bytes(4, 'little')
    record[446:462] = entry
    record[510:512] = b'\x55\xaa'
    return bytes(record)


def main(arguments: Sequence[str] | None = None) -> int:
    """Build the sample guest and print where its OVA is."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument(
        '--output',
        help='link the OVA and the RAW disk into this directory',
    )
    options = parser.parse_args(arguments)
    try:
        guest = build(SAMPLE)
    except BuildError as error:
        print(error, file=sys.stderr)
        return 1
    ova = guest.ova
    if options.output:
        output = pathlib.Path(options.output)
        output.mkdir(parents=True, exist_ok=True)
        for path in (guest.raw, guest.ova):
            link = output / path.name
            link.unlink(missing_ok=True)
            link.symlink_to(path)
        ova = output / guest.ova.name
    print(ova)
    return 0


if __name__ == '__main__':
    sys.exit(main())
