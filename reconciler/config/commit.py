# SPDX-License-Identifier: Apache-2.0
"""Load manifests as a commit has them, again and again: never half a checkout, never an edit that nobody committed.

The work tree isn't looked at, so what lies in it can't matter. A commit may have to be signed: then by a key that a
file of allowed signers names (ssh-keygen(1), ALLOWED SIGNERS); only git's own answer G counts, "good and known".
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field, replace
from pathlib import Path

from reconciler.config import git
from reconciler.config.load import Known, Loaded, check, no_garbage_collection
from reconciler.config.revision import Place, Revision, locate, read_revision, resolve
from reconciler.errors import ConfigError

_SSH_KEYGEN = "/usr/bin/ssh-keygen"


@dataclass(slots=True)
class CommitLoader:
    """Loads the manifests of a directory of a repository, as the commit of a `ref` has them. For one thread.

    `signers` is a file of allowed signers. `attempted` is the commit that was looked at last, whatever came of it.
    Objects of unchanged documents are identical each time, and so is the result if nothing changed at all.
    """

    directory: Path
    ref: str
    env: str | None = None
    signers: Path | None = None
    attempted: str = ""
    _known: Known = field(default_factory=Known)
    _loaded: Loaded | None = None
    _of: Revision | None = None

    def load(self) -> Loaded:
        """Raises UsageError if there is no such commit or git fails, ConfigError if it isn't signed as it must be."""
        revision = resolve(locate(self.directory), self.ref)
        self.attempted = revision.commit
        if self._loaded is not None and revision == self._of:
            return self._loaded
        if self.signers is not None:
            check_signature(revision.place, revision.commit, self.signers)
        try:
            with no_garbage_collection():
                self._loaded = load_revision(revision, self.env, self._known)
        except BaseException:  # what is known may be half of the old and half of the new
            self._known, self._loaded = Known(), None
            raise
        self._of = revision
        return self._loaded


def load_revision(revision: Revision, env: str | None = None, known: Known | None = None) -> Loaded:
    """The manifests of a revision. Raises UsageError if git fails."""
    return replace(check(read_revision(revision), env, known), commit=revision.commit)


def repository_files(directory: Path) -> Path:
    """Where git keeps the branches of the repository around a directory; that is where new commits show. Raises
    UsageError."""
    place = locate(directory)
    answer = git.ask(place.near, "rev-parse", "--path-format=absolute", "--git-common-dir")
    return Path(os.fsdecode(answer.stdout.removesuffix(b"\n")))


def check_signature(place: Place, commit: str, signers: Path) -> None:
    """Raise ConfigError unless one of the allowed signers has signed a commit, by an SSH key."""
    if not signers.is_file():
        raise ConfigError(f"there is no {signers}, so no commit is signed by anybody", hint="see ssh-keygen(1)")
    words = (
        "-c", f"gpg.ssh.program={_SSH_KEYGEN}", "-c", f"gpg.ssh.allowedSignersFile={signers.absolute()}",
        "log", "-1", "--no-show-signature", "--format=%G?", commit,
    )  # fmt: skip
    answer = git.ask(place.near, *words)
    if answer.returncode or answer.stdout.strip() != b"G":
        what = {b"N": "is not signed", b"B": "has a bad signature", b"U": "is signed by a key that is not allowed"}
        why = what.get(answer.stdout.strip(), "has a signature that can't be checked, is expired or revoked")
        hint = f"commit with `git commit -S` (gpg.format=ssh) and a key that {signers} names"
        raise ConfigError(f"commit {commit[:12]} {why}: it is not used", hint=hint)
