# SPDX-License-Identifier: Apache-2.0
"""One tree of errors. Each says what is wrong, where, and the way out.

`message` is one sentence, `hint` is what to do about it. The command line prints both and exits with
`exit_code`; nothing below `cli` prints or exits.
"""

from __future__ import annotations


class LbctlError(Exception):
    """The root: everything that lbctl raises on purpose."""

    exit_code = 1

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}\n  hint: {self.hint}" if self.hint else self.message


class UsageError(LbctlError):
    """The command line asks for something that does not exist or does not fit together."""

    exit_code = 2


class ConfigError(LbctlError):
    """The manifests can't be read or hold problems; `config.diagnostic` has each with its line."""


class UnsupportedError(LbctlError):
    """The manifests ask for something that this version can't put into the kernel yet."""


class SnapshotError(LbctlError):
    """A snapshot or a saved plan is not one, or was written by a version that this one can't read."""


class PlanStaleError(LbctlError):
    """The live state has changed since the saved plan was made."""

    exit_code = 5


class FilesError(LbctlError):
    """A file or directory of lbctl's own can't be used, or somebody else could have written it."""


class KernelError(LbctlError):
    """The kernel refused; the message names the call, the object and the errno."""


class BuildError(KernelError):
    """The data plane could not be compiled or loaded."""


class ForeignError(KernelError):
    """An object that we would have to change belongs to somebody else."""


class ApplyError(LbctlError):
    """Changes failed and were undone, and no other change was made."""


class PartialError(ApplyError):
    """Changes failed and were undone; other changes are in place."""

    exit_code = 7


class BlockedError(LbctlError):
    """The node can't hold everything that the manifests ask for: another's object is in the way, or something is
    missing."""

    exit_code = 6


class RollbackError(ApplyError):
    """Changes failed and not everything could be undone: the message lists what is left."""

    exit_code = 4
