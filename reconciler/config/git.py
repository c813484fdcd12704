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
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from reconciler.children import DIRECTORY, caller
from reconciler.errors import UsageError

LIMIT_S = 120.0
"""How long a command may take. A tree can be made that names itself again and again, and never ends."""

SETTINGS = {
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
    "gpg.ssh.program": "false",
    "gpg.x509.program": "false",
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
    "GIT_NO_REPLACE_OBJECTS": "1",  # a commit is what its hash says
    "GIT_ALLOW_PROTOCOL": "none",  # no fetching of missing objects by any git
    "GIT_PAGER": "cat",
    "GIT_SSH_COMMAND": "false",
    "GIT_ASKPASS": "false",
}


def repository_of(directory: Path) -> Path:
    """Where to ask git about a directory: beside the nearest `.git` at or above it, else there itself."""
    return next((path for path in (directory, *directory.parents) if (path / ".git").exists()), directory)


def ask(near: Path, *arguments: str) -> subprocess.CompletedProcess[bytes]:
    """The whole answer of a git command, successful or not. Raises UsageError if there is no git, or no answer."""
    with _no_git():
        try:
            return subprocess.run(
                command(near, arguments), stdin=subprocess.DEVNULL, capture_output=True, check=False,
                cwd=DIRECTORY, env=_environment(), timeout=LIMIT_S, user=caller(), group=caller(),
            )  # fmt: skip
        except subprocess.TimeoutExpired as error:
            raise UsageError(f"git {arguments[0]} did not end within {LIMIT_S:g} seconds") from error


@contextmanager
def stream(near: Path, *arguments: str, requests: Sequence[bytes] = ()) -> Iterator[IO[bytes]]:
    """The output of a git command that gets these lines as input. The caller may stop reading early. Raises UsageError
    if git fails."""
    with tempfile.TemporaryFile() as stdin, tempfile.TemporaryFile() as stderr:
        stdin.writelines(request + b"\n" for request in requests)
        stdin.seek(0)
        with _no_git():
            process = subprocess.Popen(
                command(near, arguments), stdin=stdin, stdout=subprocess.PIPE, stderr=stderr,
                cwd=DIRECTORY, env=_environment(), user=caller(), group=caller(),
            )  # fmt: skip
        limit = threading.Timer(LIMIT_S, process.kill)
        limit.start()
        with process, _cancelled(limit):
            assert process.stdout is not None
            yield process.stdout
            if not process.stdout.read(1) and process.wait():  # with output left, git only fails for lack of a reader
                stderr.seek(0)
                raise UsageError(f"git {arguments[0]} failed: {reason(stderr.read())}")


@contextmanager
def _cancelled(limit: threading.Timer) -> Iterator[None]:
    """Afterwards the limit holds no more."""
    try:
        yield
    finally:
        limit.cancel()


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


def command(near: Path, arguments: Sequence[str]) -> list[str]:
    """The command line of git. Root's repositories are read by everybody: git itself reads only its caller's."""
    trusted = {"safe.directory": str(near)} if _is_ours(near) else {}
    settings = [word for name, value in {**SETTINGS, **trusted}.items() for word in ("-c", f"{name}={value}")]
    return ["git", "--no-pager", *settings, "-C", str(near), *arguments]


def _is_ours(near: Path) -> bool:
    """Whether a work tree and its repository are root's or the caller's. Git asks whose they are, since it heeds their
    configuration."""
    try:
        return all(path.lstat().st_uid in (0, os.geteuid()) for path in (near, near / ".git"))
    except OSError:
        return False


def _environment() -> dict[str, str]:
    """Git's environment: our own, since a hook or a CI job may have prepared it, but with messages in English and
    without any program to start."""
    return {**os.environ, **_ENVIRONMENT}
