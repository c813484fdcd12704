# SPDX-License-Identifier: Apache-2.0
"""Fetch one branch or tag of a git repository, so that neither its server nor its authors can do more than name
manifests.

Each new commit comes into a repository of its own, without its history, and gets its name when it is there as a whole;
nothing is ever checked out. Git runs with no configuration of the user or the system, without hooks, submodules,
bundles, redirects or prompts, over the one protocol of the URL, in bounded time, memory and size.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import os
import re
import shlex
import shutil
import signal
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from reconciler import private, safe
from reconciler.children import DIRECTORY, ENVIRONMENT
from reconciler.config.commit import check_signature
from reconciler.config.git import SETTINGS, reason
from reconciler.config.revision import Place
from reconciler.errors import ConfigError, FilesError, UsageError

TIMEOUT_S = 120.0
MAX_FILE_BYTES = 256 << 20
"""Of one file that git writes: all objects of a commit come in one."""
MAX_MEMORY_BYTES = 4 << 30
MAX_CPU_S = 60
MAX_ANSWER_BYTES = 1 << 20
KEPT = 2
"""So many commits are kept: the newest, and the one before, which somebody may be reading."""

_PROTOCOLS = ("https", "ssh", "file")
_PASSED_ON = ("https_proxy", "HTTPS_PROXY", "no_proxy", "NO_PROXY", "SSL_CERT_FILE", "GIT_SSL_CAINFO")
_REF = "refs/lbctl/fetched"
_SHA256_DIGITS = 64
_UNFINISHED = ".new-"
_KILLED = -signal.SIGKILL
_HASH = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class Remote:
    """A repository elsewhere. `ref` is a branch or a tag, HEAD the branch that the server prefers. `token` is a file
    with `USER:TOKEN` for HTTPS; `key` and `known_hosts` are files of ssh(1). Raises UsageError."""

    url: str
    ref: str = "HEAD"
    token: Path | None = None
    key: Path | None = None
    known_hosts: Path | None = None

    def __post_init__(self) -> None:
        protocol, separator, rest = self.url.partition("://")
        if not separator or protocol not in _PROTOCOLS or not rest or not self.url.isprintable():
            hint = "such as https://git.example.org/fleet.git or ssh://git@git.example.org/fleet.git"
            raise UsageError(f"{safe.line(self.url)} is no URL of a git repository over https, ssh or file", hint=hint)
        if protocol == "https" and "@" in rest.partition("/")[0]:
            hint = "put USER:TOKEN into a file, and name it by --token"
            raise UsageError("a URL is seen by everybody: it may hold neither user nor password", hint=hint)
        if not re.fullmatch(r"[^-\s~^:?*\[\\\x00-\x1f][^\s~^:?*\[\\\x00-\x1f]*", self.ref) or ".." in self.ref:
            raise UsageError(f"{safe.line(self.ref)} is no name of a branch or tag")

    @property
    def protocol(self) -> str:
        return self.url.partition("://")[0]

    def __str__(self) -> str:
        return f"{self.url} {self.ref}"


def is_url(text: str) -> bool:
    """Whether somebody means a repository elsewhere, not a directory."""
    return bool(re.match(r"[a-z+]+://|[\w.-]+@[\w.-]+:", text))


class Store:
    """The last commits of a remote that were fetched and may be used, below a directory of the instance. `signers`: a
    file of those who may sign them. `attempted` is the commit that the server had last."""

    def __init__(self, base: Path, remote: Remote, signers: Path | None = None) -> None:
        self.remote = remote
        self.attempted = ""
        self._signers = signers
        self.path = base / "source" / hashlib.sha256(str(remote).encode()).hexdigest()[:16]

    def newest(self) -> Path | None:
        """The repository of the commit that was fetched last, named by it; None if there is none that may be used.
        Raises FilesError."""
        for path in self._kept():
            with contextlib.suppress(ConfigError):
                self._check(path, path.name)
                return path
        return None

    def fetch(self) -> Path:
        """The repository of the newest commit, fetched if it isn't here yet. Raises ConfigError, FilesError."""
        private.make_directory(self.path)
        ref, commit = self._advertised()
        self.attempted = commit
        here = self.path / commit
        try:
            self._sweep()
            if self._is_whole(here, commit):
                self._check(here, commit)  # it may have come when nobody had to sign, or by somebody who may no longer
            else:
                with tempfile.TemporaryDirectory(dir=self.path, prefix=_UNFINISHED) as name:
                    made = Path(name) / "repository"
                    self.attempted = commit = self._fetched(made, ref, len(commit))
                    self._check(made, commit)
                    here = self.path / commit
                    if not here.is_dir():
                        made.rename(here)
            os.utime(here)  # the newest one, maybe again after another
            for path in self._kept()[KEPT:]:
                self._discard(path)
        except OSError as error:
            raise FilesError(f"can't keep what was fetched in {self.path}: {error.strerror or error}") from error
        return here

    def _is_whole(self, here: Path, commit: str) -> bool:
        """Whether a commit is here as it should be. What is damaged goes away, to be fetched again."""
        if here.is_dir():
            with contextlib.suppress(ConfigError):
                self._git("-C", str(here), "cat-file", "-e", f"{commit}^{{tree}}")
                return True
            self._discard(here)
        return False

    def _discard(self, path: Path) -> None:
        """Remove a repository, at once for everybody: half of one would be taken for a whole one."""
        gone = path.with_name(f"{_UNFINISHED}{path.name}")
        path.rename(gone)
        shutil.rmtree(gone, ignore_errors=True)

    def _sweep(self) -> None:
        """Remove what a process that was killed has left, once nobody can be at work on it any more."""
        for path in self.path.glob(f"{_UNFINISHED}*"):
            if time.time() - path.stat().st_mtime > 2 * TIMEOUT_S:
                shutil.rmtree(path, ignore_errors=True)

    def _check(self, repository: Path, commit: str) -> None:
        """Raises ConfigError unless a commit is signed as it has to be."""
        if self._signers is not None:
            check_signature(Place(repository, ""), commit, self._signers)

    def _kept(self) -> list[Path]:
        """The newest first."""
        if not self.path.is_dir():
            return []
        private.check_directory(self.path)
        found = [path for path in self.path.iterdir() if _HASH.fullmatch(path.name)]
        return sorted(found, key=lambda path: path.stat().st_mtime_ns, reverse=True)

    def _advertised(self) -> tuple[str, str]:
        """The whole name of the ref, and the commit that the server has there now. Raises ConfigError."""
        ref, url = self.remote.ref, self.remote.url
        names = [ref] if ref == "HEAD" or ref.startswith("refs/") else [f"refs/heads/{ref}", f"refs/tags/{ref}"]
        answer = self._git("ls-remote", "--quiet", url, *names, *(f"{name}^{{}}" for name in names))
        found: dict[str, str] = {}
        for text in answer.splitlines():
            hash_, _, name = text.partition("\t")
            if _HASH.fullmatch(hash_):
                found[name] = hash_
        known = [name for name in names if name in found]
        if not known:
            raise ConfigError(f"{url} has no branch and no tag {ref}", hint="name one by --ref")
        if len(known) > 1:
            raise ConfigError(f"{url} has a branch and a tag {ref}", hint=f"say --ref {known[0]}")
        return known[0], found.get(f"{known[0]}^{{}}", found[known[0]])

    def _fetched(self, directory: Path, ref: str, digits: int) -> str:
        """Fetch a ref into a new repository; the commit. Raises ConfigError."""
        kind = "sha256" if digits == _SHA256_DIGITS else "sha1"
        self._git("init", "--quiet", "--template=", f"--object-format={kind}", str(directory))
        directory.chmod(0o700)
        inside = ("-C", str(directory))
        self._git(
            *inside, "fetch", "--quiet", "--depth=1", "--no-tags", "--no-recurse-submodules", "--no-auto-maintenance",
            "--no-write-fetch-head", self.remote.url, f"+{ref}:{_REF}",
        )  # fmt: skip
        commit = self._git(*inside, "rev-parse", "--verify", f"{_REF}^{{commit}}").strip()
        if not _HASH.fullmatch(commit):
            raise ConfigError(f"{self.remote.url} has no commit at {ref}")
        return commit

    def _git(self, *words: str) -> str:
        """Git's answer, of which more than MAX_ANSWER_BYTES are an error. Raises ConfigError."""
        settings = [word for name, value in self._settings().items() for word in ("-c", f"{name}={value}")]
        limits = [f"--fsize={MAX_FILE_BYTES}", f"--cpu={MAX_CPU_S}", f"--as={MAX_MEMORY_BYTES}"]
        limited = ["timeout", "--signal=KILL", f"{TIMEOUT_S:g}", "prlimit", *limits]
        command = [*limited, "git", "--no-pager", *settings, *words]
        verb = next(word for word in words if word in ("ls-remote", "init", "fetch", "rev-parse", "cat-file"))
        with tempfile.TemporaryFile() as answer, tempfile.TemporaryFile() as complaint:
            try:
                # A group of its own: git's helpers end with it.
                process = subprocess.Popen(
                    command, stdin=subprocess.DEVNULL, stdout=answer, stderr=complaint, cwd=DIRECTORY,
                    env=self._environment(), start_new_session=True,
                )  # fmt: skip
            except FileNotFoundError as error:
                raise ConfigError("git is not installed", hint="install it: fetching needs it") from error
            try:
                code = process.wait(TIMEOUT_S + 5)  # `timeout` ends it, even if this process has ended before
            except subprocess.TimeoutExpired as error:
                raise ConfigError(f"git {verb} {self.remote.url} did not end within {TIMEOUT_S:g} seconds") from error
            finally:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
            answer.seek(0)
            complaint.seek(0)
            if code == _KILLED:
                raise ConfigError(f"git {verb} {self.remote.url} did not end within {TIMEOUT_S:g} seconds")
            if code:
                why = safe.line(reason(complaint.read(MAX_ANSWER_BYTES)))
                raise ConfigError(f"git {verb} {self.remote.url} failed: {why}")
            content = answer.read(MAX_ANSWER_BYTES + 1)
            if len(content) > MAX_ANSWER_BYTES:
                raise ConfigError(f"{self.remote.url} answers too much")
            return content.decode("utf-8", "replace")

    def _settings(self) -> dict[str, str]:
        local = {name: SETTINGS[name] for name in SETTINGS if name not in ("core.sshCommand", "safe.bareRepository")}
        return {
            **local,
            f"protocol.{self.remote.protocol}.allow": "always",
            "fetch.fsckObjects": "true",
            "fetch.unpackLimit": "1",  # one file, so that its size can be limited
            "core.bigFileThreshold": "1m",
            "pack.threads": "1",
            "gc.auto": "0",
            "maintenance.auto": "false",
            "http.followRedirects": "false",
            "http.lowSpeedLimit": "100",
            "http.lowSpeedTime": "30",
        }

    def _environment(self) -> dict[str, str]:
        passed_on = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
        made = {
            **ENVIRONMENT, **passed_on,
            "LC_ALL": "C", "HOME": "/nonexistent", "GIT_CONFIG_NOSYSTEM": "1", "GIT_CONFIG_GLOBAL": os.devnull,
            "GIT_TERMINAL_PROMPT": "0", "GIT_ASKPASS": "false", "SSH_ASKPASS": "false",
            "GIT_ALLOW_PROTOCOL": self.remote.protocol, "GIT_SSH_COMMAND": self._ssh(), "GIT_SSH_VARIANT": "ssh",
        }  # fmt: skip
        if self.remote.token is not None:
            # Not on the command line, which every user can read; and for this URL only.
            made |= {
                "GIT_CONFIG_COUNT": "1",
                "GIT_CONFIG_KEY_0": f"http.{self.remote.url}.extraHeader",
                "GIT_CONFIG_VALUE_0": f"Authorization: Basic {_credentials(self.remote.token)}",
            }
        return made

    def _ssh(self) -> str:
        options = [
            "BatchMode=yes", "StrictHostKeyChecking=yes", "IdentitiesOnly=yes", "ClearAllForwardings=yes",
            "PermitLocalCommand=no", "ConnectTimeout=15", "UpdateHostKeys=no",
        ]  # fmt: skip
        if self.remote.known_hosts is not None:
            options.append(f"UserKnownHostsFile={self.remote.known_hosts.absolute()}")
        key = ["-i", str(self.remote.key.absolute())] if self.remote.key is not None else []
        return shlex.join(["ssh", "-F", os.devnull, *(f"-o{option}" for option in options), *key])


def _credentials(path: Path) -> str:
    """The content of a file with `USER:TOKEN`, as HTTP takes it. Raises ConfigError."""
    try:
        with path.open("rb") as file:
            if os.fstat(file.fileno()).st_mode & 0o007:
                raise ConfigError(f"everybody may use {path}, which holds a token", hint=f"chmod o= {path}")
            content = file.read(4096).strip()
    except OSError as error:
        raise ConfigError(f"the token in {path} can't be read: {error.strerror or error}") from error
    if not re.fullmatch(rb"[^:\s]+:[^\s]+", content):
        raise ConfigError(
            f"{path} does not hold USER:TOKEN", hint="GitHub takes x-access-token, GitLab oauth2 as USER"
        )
    return base64.b64encode(content).decode()
