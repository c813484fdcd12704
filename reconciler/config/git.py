# SPDX-License-Identifier: Apache-2.0
"""Git's plumbing, asked so that a repository can run nothing.

The author of a merge request decides which files are in the work tree. They may look like a repository of their own,
with a configuration that names commands. So the repository is only ever a `.git` above the manifests, which no commit
can hold, or the one that GIT_DIR names; nothing is fetched; and every configuration key with which git starts other
programs is set to a value that starts none.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from reconciler.children import DIRECTORY
from reconciler.errors import UsageError

_SETTINGS = {
    "safe.bareRepository": "explicit",
    "core.warnAmbiguousRefs": "true",  # heeded when a name is resolved
    "core.fsmonitor": "false",
    "core.hooksPath": os.devnull,
    "core.alternateRefsCommand": "false",
    "core.sshCommand": "false",
    "core.gitProxy": "false",
    "core.askPass": "false",
    "core.pager": "cat",
    "core.editor": "false",
    "credential.helper": "",
    "diff.external": "",
    "gpg.program": "false",
    "log.showSignature": "false",
    "fetch.recurseSubmodules": "false",
    "protocol.allow": "never",
}
"""The keys that let git start other programs, though the commands used here heed only a few of them."""

_ENVIRONMENT = {
    "LC_ALL": "C",  # lbctl parses git's messages
    "GIT_OPTIONAL_LOCKS": "0",
    "GIT_TERMINAL_PROMPT": "0",
    "GIT_NO_LAZY_FETCH": "1",  # since git 2.44
    "GIT_ALLOW_PROTOCOL": "none",  # no fetching of missing objects by any git
    "GIT_PAGER": "cat",
    "GIT_SSH_COMMAND": "false",
    "GIT_ASKPASS": "false",
}


def repository_of(directory: Path) -> Path:
    """Where to ask git about a directory: beside the nearest `.git` at or above it, else there itself."""
    return next((path for path in (directory, *directory.parents) if (path / ".git").exists()), directory)


def ask(near: Path, *arguments: str) -> subprocess.CompletedProcess[bytes]:
    """The whole answer of a git command, successful or not. Raises UsageError if there is no git."""
    with _no_git():
        return subprocess.run(
            _command(near, arguments), stdin=subprocess.DEVNULL, capture_output=True, check=False,
            cwd=DIRECTORY, env=_environment(),
        )  # fmt: skip


@contextmanager
def stream(near: Path, *arguments: str, requests: Sequence[bytes] = ()) -> Iterator[IO[bytes]]:
    """The output of a git command that gets these lines as input. The caller may stop reading early. Raises UsageError
    if git fails."""
    with tempfile.TemporaryFile() as stdin, tempfile.TemporaryFile() as stderr:
        stdin.writelines(request + b"\n" for request in requests)
        stdin.seek(0)
        with _no_git():
            process = subprocess.Popen(
                _command(near, arguments), stdin=stdin, stdout=subprocess.PIPE, stderr=stderr,
                cwd=DIRECTORY, env=_environment(),
            )  # fmt: skip
        with process:
            assert process.stdout is not None
            yield process.stdout
            if not process.stdout.read(1) and process.wait():  # with output left, git only fails for lack of a reader
                stderr.seek(0)
                raise UsageError(f"git {arguments[0]} failed: {reason(stderr.read())}")


def reason(stderr: bytes) -> str:
    """The first line of git's complaint."""
    lines = stderr.decode("utf-8", "replace").strip().splitlines()
    return lines[0].removeprefix("fatal: ") if lines else "it does not say why"


@contextmanager
def _no_git() -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as error:
        raise UsageError("git is not installed", hint="install it: comparing revisions needs it") from error


def _command(near: Path, arguments: Sequence[str]) -> list[str]:
    settings = [word for name, value in _SETTINGS.items() for word in ("-c", f"{name}={value}")]
    return ["git", "--no-pager", *settings, "-C", str(near), *arguments]


def _environment() -> dict[str, str]:
    """Git's environment: our own, since a hook or a CI job may have prepared it, but with messages in English and
    without any program to start."""
    return {**os.environ, **_ENVIRONMENT}
