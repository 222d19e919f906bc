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

"""What can go wrong, in one small hierarchy.

Every error names a stable id (each id has its page under
``doc/source/messages/``), says what is wrong and where, what was expected
and what was found, and what to do next.
"""

from __future__ import annotations

from collections.abc import Sequence
import os
import typing

if typing.TYPE_CHECKING:
    from xenimport import model


def one_line(text: str) -> str:
    """Text that may hold names from a package or guest, made harmless.

    Such a name is hostile input: a line feed in it must not forge a line
    of ours, nor an escape sequence reach the terminal.
    """
    return ''.join(
        character if character.isprintable() else '?' for character in text
    )


class XenImportError(Exception):
    """Base of all errors a user can meet.

    :param error_id: stable id, for example ``package.not-a-tar``
    :param message: one sentence that says what is wrong
    :param where: the file, key, device or URL that is meant
    :param expected: what was expected there
    :param found: what was found instead
    :param fix: what the user can do next
    """

    exit_code = 1

    def __init__(
        self,
        error_id: str,
        message: str,
        *,
        where: str | None = None,
        expected: str | None = None,
        found: str | None = None,
        fix: str | None = None,
    ) -> None:
        super().__init__(message)
        self.id = error_id
        self.message = message
        self.where = where
        self.expected = expected
        self.found = found
        self.fix = fix

    def __str__(self) -> str:
        lines = [f'{self.id}  error  {one_line(self.message)}']
        for label, value in (
            ('Where', self.where),
            ('Expected', self.expected),
            ('Found', self.found),
            ('Fix', self.fix),
        ):
            if value:
                lines.append(f'{label}: {one_line(value)}')
        return '\n'.join(lines)


def unexpected(error: Exception) -> XenImportError:
    """An error that nobody foresaw, in the form of ours."""
    result = XenImportError(
        'internal.unexpected',
        'Something happened that xenimport does not foresee: a bug',
        found=f'{type(error).__name__}: {error}',
        fix='run the command again with "openstack --debug" and report '
        'what it prints',
    )
    result.__cause__ = error
    return result


class PackageError(XenImportError):
    """The package cannot be read: not one, damaged, or hostile."""


def unreadable(where: str, error: OSError) -> PackageError:
    """The error of a file of the package that cannot be opened."""
    return PackageError(
        'package.unreadable',
        'The package cannot be opened',
        where=where,
        found=os.strerror(error.errno or 0),
        fix='check the path and the permissions',
    )


def read_failed(where: str, error: OSError) -> PackageError:
    """The error of a file of the package that cannot be read on."""
    return PackageError(
        'package.read-failed',
        'The package cannot be read',
        where=where,
        found=os.strerror(error.errno or 0),
        fix='check the disk or the network share it is on',
    )


class DiskImageError(XenImportError):
    """A disk image in the package is damaged or of an unknown kind."""


class MachineError(XenImportError):
    """This machine lacks what the work needs (see ``preflight``)."""


class ApplianceError(XenImportError):
    """The libguestfs appliance failed, was killed or ran out of time."""


class GuestError(XenImportError):
    """The guest cannot be read or edited as asked."""


class VerificationError(XenImportError):
    """The finished disk is not what it has to be."""


class TargetError(XenImportError):
    """The target refuses, fails or cannot be reached."""


class ConfigurationError(XenImportError):
    """An option or configuration value is wrong."""

    exit_code = 2


class BlockedError(XenImportError):
    """Blockers remain that the user has not accepted."""

    exit_code = 3

    def __init__(self, findings: Sequence[model.Finding]) -> None:
        ids = sorted({finding.id for finding in findings})
        can_be_accepted = all(finding.loss for finding in findings)
        super().__init__(
            'import.blocked',
            'The guest would not run on KVM as it is',
            found=f'{len(findings)} blocker(s) left: {", ".join(ids)}',
            fix='do what each finding says'
            + (
                ', or go on with '
                + ' '.join(f'--accept {finding_id}' for finding_id in ids)
                if can_be_accepted
                else ''
            ),
        )
        self.findings = tuple(findings)
