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


"""The digests of a manifest, computed while the disk is copied.

A digest covers a file's bytes in the file's order, and a copy reads them
in the disk's. So a thread of its own reads the file beside the copy:
both read the same parts at about the same time, and the second of them
finds the bytes in the page cache.
"""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Iterator
import hashlib
import threading
import types

from xenimport.converter import region
from xenimport import model
from xenimport import stream

#: Bytes hashed at a time.
_CHUNK = 1 << 20
_ZEROS = memoryview(bytes(_CHUNK))


class Verifier:
    """Compares members of a package with what its manifest states.

    Nothing is read of members without a digest. A context manager: the
    thread ends with the block.

    :param regions: those that the copy reads
    :ivar compared: how many members have a digest
    """

    def __init__(
        self, package: model.Package, regions: Iterable[model.Region]
    ) -> None:
        self._members = [
            member for member in _members(package, regions) if member.digests
        ]
        self.compared = len(self._members)
        self._stop = threading.Event()
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._work, name='digests')

    def __enter__(self) -> Verifier:
        if self._members:
            self._thread.start()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: types.TracebackType | None,
    ) -> None:
        self._stop.set()
        if self._thread.ident is not None:
            self._thread.join()

    def check(self) -> None:
        """Wait for the last digest; a second call does nothing.

        :raises xenimport.exceptions.PackageError: if one differs
        :raises xenimport.exceptions.DiskImageError: if a member cannot
            be read
        """
        if self._thread.ident is not None:
            self._thread.join()
        if self._failure is not None:
            raise self._failure

    def _work(self) -> None:
        try:
            for member in self._members:
                self._verify(member)
        except BaseException as error:
            self._failure = error

    def _verify(self, member: model.Region) -> None:
        names = {digest.algorithm for digest in member.digests}
        hashes = {
            name: hashlib.new(name, usedforsecurity=False) for name in names
        }
        for chunk in self._chunks(member):
            for hashing in hashes.values():
                hashing.update(chunk)
            if self._stop.is_set():
                return
        stream.compare_digests(
            f'{member.path}: {member.name}',
            member.digests,
            [
                model.Digest(name, hashing.hexdigest())
                for name, hashing in hashes.items()
            ],
        )

    def _chunks(self, member: model.Region) -> Iterator[memoryview]:
        """The member's bytes in order; holes are not read."""
        buffer = memoryview(bytearray(_CHUNK))
        reader = region.RegionReader(member)
        try:
            for offset, length, data in reader.extents(reader.size):
                end = offset + length
                while offset < end:
                    part = min(_CHUNK, end - offset)
                    if data:
                        reader.read_into(buffer[:part], offset)
                    yield (buffer if data else _ZEROS)[:part]
                    offset += part
        finally:
            reader.release()


def _members(
    package: model.Package, regions: Iterable[model.Region]
) -> Iterator[model.Region]:
    """The members that the regions are made of, each once."""
    seen: set[str] = set()
    for item in regions:
        for name in item.parts or (item.name,):
            if name not in seen and name in package.members:
                seen.add(name)
                yield package.members[name]
