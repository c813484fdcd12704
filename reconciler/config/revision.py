# SPDX-License-Identifier: Apache-2.0
"""Manifests as a commit holds them, read with git's plumbing: no checkout, no index, nothing written.

What counts as a manifest, the limits and the checks are those of `source`. A commit knows nothing of what lies
around it, so a link that leaves the directory is refused also where it would lead back in.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from reconciler.config import source
from reconciler.config.diagnostic import Diagnostic, Severity
from reconciler.config.source import SUFFIXES, Tree, about_file, shown_name, tree_of
from reconciler.errors import UsageError

_LINK, _SUBMODULE = b"120000", b"160000"
_CHUNK_BYTES = 1 << 16
_BROKEN_LINKS = {  # what `git cat-file --follow-symlinks` says, in the words of `source`
    "dangling": "no such file or directory",
    "loop": "too many levels of symbolic links",
    "notdir": "not a directory",
}


@dataclass(frozen=True, slots=True)
class Place:
    """A directory of a repository: git runs in `near`; `path` leads there from the root, which is ""."""

    near: Path
    path: str


@dataclass(frozen=True, slots=True)
class Revision:
    """A commit, as messages call it and by its hash. `tree` names the place's tree in it, "" if it has none."""

    name: str
    commit: str
    tree: str
    place: Place


def locate(directory: Path) -> Place:
    """The place of a directory that lies in a repository, now or in some revision. Raises UsageError."""
    near = Path(os.path.abspath(directory))  # noqa: PTH100 - `..` is taken as written, there may be nothing to resolve
    missing: list[str] = []
    while not near.is_dir() and near != near.parent:
        missing.insert(0, near.name)
        near = near.parent
    answer = _git(near, "rev-parse", "--show-prefix")
    if answer.returncode:
        hint = "give a directory inside a git repository as PATH"
        if b"safe.directory" in answer.stderr:
            hint = "if you trust its owner: " + answer.stderr.decode("utf-8", "replace").split("\n")[-2].strip()
        raise UsageError(f"git can't use {directory}: {_reason(answer.stderr)}", hint=hint)
    prefix = os.fsdecode(answer.stdout.removesuffix(b"\n").removesuffix(b"/"))
    return Place(near, "/".join(filter(None, (prefix, *missing))))


def resolve_range(place: Place, text: str) -> tuple[Revision, Revision]:
    """What `A..B` names; `A...B` starts at their merge base, and `A` alone means `A..HEAD`. Raises UsageError."""
    dots = next((dots for dots in ("...", "..") if dots in text), "")
    first, _, last = text.partition(dots) if dots else (text, "", "")
    old, new = (_commit(place, name or "HEAD") for name in (first, last))
    name = first or "HEAD"
    if dots == "...":
        answer = _git(place.near, "merge-base", old, new)
        if answer.returncode:
            hint = "a shallow clone lacks it: `git fetch --unshallow` gets the rest of the history"
            raise UsageError(f"{name} and {last or 'HEAD'} have no common ancestor here", hint=hint)
        old = answer.stdout.decode().strip()
        name = old[:12]
    revisions = (
        Revision(name, old, _tree_hash(place, old), place),
        Revision(last or "HEAD", new, _tree_hash(place, new), place),
    )
    if not any(revision.tree for revision in revisions):
        raise UsageError(f"neither {name} nor {revisions[1].name} has a directory {place.path}")
    return revisions


def read_revision(revision: Revision) -> Tree:
    """Every manifest of the place in this revision. What is wrong with them is a diagnostic.

    Raises UsageError if git fails.
    """
    listing = _list(revision) if revision.tree else _Listing()
    _resolve(revision, listing)
    contents = _read(revision, listing)
    if not listing.requests and not listing.diagnostics:
        message = f"there is no manifest: no file here ends with {' or '.join(SUFFIXES)}"
        listing.diagnostics.append(_of_place(revision, "source-empty", message, Severity.WARNING))
    return tree_of(contents, listing.diagnostics)


@dataclass
class _Listing:
    """The manifests and links of a tree. `requests` maps a name to what git is asked for, `found` to the answer."""

    requests: dict[str, bytes] = field(default_factory=dict)
    links: set[str] = field(default_factory=set)
    found: dict[str, tuple[bytes, int]] = field(default_factory=dict)  # hash and size
    diagnostics: list[Diagnostic] = field(default_factory=list)


def _list(revision: Revision) -> _Listing:
    listing = _Listing()
    with _stream(revision.place.near, "ls-tree", "-r", "-z", "--full-tree", revision.tree) as output:
        for record in _records(output):
            about, path = record.split(b"\t", 1)
            mode, _, hash_ = about.split(b" ")
            if path.startswith(b".") or b"/." in path:
                continue
            name = shown_name("", os.fsdecode(path))
            if mode == _SUBMODULE:
                hint = "compare inside of it, or put the manifests themselves here"
                warning = about_file(name, "source-submodule", "submodules are not read", hint, Severity.WARNING)
                listing.diagnostics.append(warning)
            elif mode == _LINK and b"\n" in path:
                message = "this link can't be followed: its name holds a line break"
                listing.diagnostics.append(about_file(name, "source-link", message))
            elif mode == _LINK:
                listing.links.add(name)
                listing.requests[name] = b"%b:%b" % (revision.tree.encode(), path)
            elif name.endswith(SUFFIXES):
                listing.requests[name] = hash_
            if len(listing.requests) > source.MAX_FILES:
                message = f"there are more than {source.MAX_FILES} manifests"
                listing.diagnostics.append(_of_place(revision, "source-too-large", message))
                break
    listing.requests = dict(sorted(listing.requests.items())[: source.MAX_FILES])
    return listing


def _resolve(revision: Revision, listing: _Listing) -> None:
    """Find hash and size of everything that was listed; a link is what it leads to."""
    for name, (what, hash_, size) in zip(
        listing.requests, _look_up(revision, list(listing.requests.values())), strict=True
    ):
        if what == "tree":
            hint = "move the files here, or link each of them"
            listing.diagnostics.append(about_file(name, "source-link", "links to directories are not followed", hint))
        elif not name.endswith(SUFFIXES):
            continue  # a link that is no manifest by its name
        elif what == "blob":
            listing.found[name] = (hash_, size)
        elif what == "symlink":
            message = "this link leads out of the directory"
            listing.diagnostics.append(about_file(name, "source-link", message, "put the file itself here"))
        else:
            reason = _BROKEN_LINKS.get(what, "the repository lacks it")
            listing.diagnostics.append(about_file(name, "source-unreadable", f"this can't be read: {reason}"))


def _look_up(revision: Revision, requests: Sequence[bytes]) -> Iterator[tuple[str, bytes, int]]:
    """What each request names: blob, tree, or what is wrong with a link; hash and size of blobs and trees."""
    if not requests:
        return
    with _stream(revision.place.near, "cat-file", "--batch-check", "--follow-symlinks", requests=requests) as output:
        for _ in requests:
            match output.readline().split():
                case [what, size] if what != b"missing" and size.isdigit():
                    output.read(int(size) + 1)  # where the link leads
                    yield what.decode(), b"", 0
                case [hash_, what, size]:
                    yield what.decode(), hash_, int(size)
                case _:
                    yield "missing", b"", 0


def _read(revision: Revision, listing: _Listing) -> dict[str, bytes]:
    wanted: dict[str, bytes] = {}
    room = source.MAX_TREE_BYTES
    for name, (hash_, size) in listing.found.items():
        room -= size
        if size > source.MAX_FILE_BYTES or room < 0:
            which, most = "the directory", source.MAX_TREE_BYTES
            if room >= 0:
                which, most = "this file", source.MAX_FILE_BYTES
            message = f"{which} is larger than {most >> 20} MiB"
            listing.diagnostics.append(about_file(name, "source-too-large", message, "split it"))
            if room < 0:
                break
        else:
            wanted[name] = hash_
    contents: dict[bytes, bytes] = {}
    hashes = list(dict.fromkeys(wanted.values()))
    if hashes:
        with _stream(revision.place.near, "cat-file", "--batch", requests=hashes) as output:
            for hash_ in hashes:
                size = int(output.readline().split()[2])
                contents[hash_] = output.read(size)
                output.read(1)
    return {name: contents[hash_] for name, hash_ in wanted.items()}


def _commit(place: Place, name: str) -> str:
    """The hash of the commit that a name stands for. Raises UsageError."""
    answer = _git(place.near, "rev-parse", "--verify", "--quiet", "--end-of-options", f"{name}^{{commit}}")
    if answer.returncode:
        hint = "a checkout in CI often holds one branch only: `git fetch` the other first"
        raise UsageError(f"there is no revision {name!r} in this repository", hint=hint)
    return answer.stdout.decode().strip()


def _tree_hash(place: Place, commit: str) -> str:
    """What names the place's tree in a commit; "" if there is none."""
    if not place.path:
        return commit
    with _stream(place.near, "ls-tree", "-z", "--full-tree", commit, "--", place.path) as output:
        for record in _records(output):
            about, path = record.split(b"\t", 1)
            _, what, hash_ = about.decode().split(" ")
            if what == "tree" and os.fsdecode(path) == place.path:
                return hash_
    return ""


def _of_place(revision: Revision, rule: str, message: str, severity: Severity = Severity.ERROR) -> Diagnostic:
    return about_file(revision.place.path or ".", rule, message, severity=severity)


def _records(output: IO[bytes]) -> Iterator[bytes]:
    """What `-z` ends with a NUL each, as it comes: a listing may be much larger than what we want of it."""
    rest = b""
    while chunk := output.read(_CHUNK_BYTES):
        *records, rest = (rest + chunk).split(b"\0")
        yield from records


def _git(near: Path, *arguments: str) -> subprocess.CompletedProcess[bytes]:
    """The short answer of a git command, good or bad. Raises UsageError if there is no git."""
    with _no_git():
        return subprocess.run(
            _command(near, arguments), stdin=subprocess.DEVNULL, capture_output=True, env=_environment(), check=False
        )


@contextmanager
def _stream(near: Path, *arguments: str, requests: Sequence[bytes] = ()) -> Iterator[IO[bytes]]:
    """The output of a git command that is asked these lines. It may be left unread. Raises UsageError if git fails."""
    with tempfile.TemporaryFile() as stdin, tempfile.TemporaryFile() as stderr:
        stdin.writelines(request + b"\n" for request in requests)
        stdin.seek(0)
        with _no_git():
            process = subprocess.Popen(
                _command(near, arguments), stdin=stdin, stdout=subprocess.PIPE, stderr=stderr, env=_environment()
            )
        with process:
            assert process.stdout is not None
            yield process.stdout
            if not process.stdout.read(1) and process.wait():  # else git ends when nobody reads on
                stderr.seek(0)
                raise UsageError(f"git {arguments[0]} failed: {_reason(stderr.read())}")


@contextmanager
def _no_git() -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as error:
        raise UsageError("git is not installed", hint="install it: comparing revisions needs it") from error


def _command(near: Path, arguments: Sequence[str]) -> list[str]:
    return ["git", "-C", str(near), *arguments]


def _environment() -> dict[str, str]:
    """Ours, so that git finds what a hook or a CI job prepared; but in plain English, without locks or questions."""
    return {**os.environ, "LC_ALL": "C", "GIT_OPTIONAL_LOCKS": "0", "GIT_TERMINAL_PROMPT": "0"}


def _reason(stderr: bytes) -> str:
    """The first line of what git complains of."""
    lines = stderr.decode("utf-8", "replace").strip().splitlines()
    return lines[0].removeprefix("fatal: ") if lines else "it does not say why"
