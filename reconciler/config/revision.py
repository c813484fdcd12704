# SPDX-License-Identifier: Apache-2.0
"""The manifests in a commit, read with git's plumbing: no checkout, no index, nothing written.

The names of manifests, the limits and the checks are those of `source`. A commit knows nothing of the directories
around it, so a link that leaves its directory is refused even if it would lead back into it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from reconciler.config import git, source
from reconciler.config.diagnostic import Diagnostic, Severity, either
from reconciler.config.listing import IGNORED, SUFFIXES, about_file, overlooked, shown_name
from reconciler.config.source import Tree, tree_of
from reconciler.errors import UsageError

_LINK, _SUBMODULE = b"120000", b"160000"
MAX_FORMER = 50
_CHUNK_BYTES = 1 << 16
_SUFFIX = re.compile(r"[~^:@]")  # what may follow the name of a branch or tag
_BROKEN_LINKS = {  # messages of `git cat-file --follow-symlinks`, in the words of `source`
    "dangling": "no such file or directory",
    "loop": "too many levels of symbolic links",
    "notdir": "not a directory",
}


@dataclass(frozen=True, slots=True)
class Place:
    """A directory of a repository: git runs in `near`; `path` leads from the repository's root ("") to the
    directory."""

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
    """The place of a directory that lies in a repository, now or in some revision. Raises UsageError.

    Where GIT_DIR names the repository, as in hooks, the current directory is the top of its work tree.
    """
    path = Path(os.path.abspath(directory))  # noqa: PTH100 - `..` is taken as written, there may be nothing to resolve
    near = path
    while not near.is_dir() and near != near.parent:
        near = near.parent
    path = near.resolve() / path.relative_to(near)
    top = Path.cwd() if "GIT_DIR" in os.environ else git.repository_of(near.resolve())
    if not path.is_relative_to(top):
        raise UsageError(f"{directory} lies outside of the work tree of {os.environ['GIT_DIR']}")
    answer = git.ask(top, "rev-parse", "--show-prefix")
    if answer.returncode:
        hint = "give a directory inside a git repository as PATH"
        if b"safe.directory" in answer.stderr:
            hint = "if you trust its owner: " + answer.stderr.decode("utf-8", "replace").split("\n")[-2].strip()
        if b"safe.bareRepository" in answer.stderr:
            hint = f"if this is no part of a checkout and you trust it: GIT_DIR={near} lbctl diff …"
        raise UsageError(f"git can't use {directory}: {git.reason(answer.stderr)}", hint=hint)
    prefix = os.fsdecode(answer.stdout.removesuffix(b"\n").removesuffix(b"/"))
    return Place(top, "/".join(filter(None, (prefix, *path.relative_to(top).parts))))


def resolve_range(place: Place, text: str) -> tuple[Revision, Revision]:
    """The two revisions of `A..B`; `A...B` starts at the merge base, `A` alone means `A..HEAD`. Raises UsageError."""
    dots = next((dots for dots in ("...", "..") if dots in text), "")
    first, _, last = text.partition(dots) if dots else (text, "", "")
    old, new = (_commit(place, name or "HEAD") for name in (first, last))
    name = first or "HEAD"
    if dots == "...":
        answer = git.ask(place.near, "merge-base", old, new)
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


def resolve(place: Place, name: str) -> Revision:
    """The revision of a name: HEAD, a branch, a tag, a hash. Raises UsageError."""
    commit = _commit(place, name)
    return Revision(name, commit, _tree_hash(place, commit), place)


def former_states(revision: Revision) -> Iterator[Revision]:
    """Earlier revisions that changed the place, along the first parents, at most MAX_FORMER of them."""
    path = ["--", revision.place.path] if revision.place.path else []
    answer = git.ask(
        revision.place.near, "rev-list", "--first-parent", f"--max-count={MAX_FORMER}", revision.commit, *path
    )
    for commit in answer.stdout.decode().split():
        if (tree := _tree_hash(revision.place, commit)) != revision.tree:
            yield Revision(commit[:12], commit, tree, revision.place)


def knows_all(place: Place) -> bool:
    """Whether the repository has the whole history; a shallow clone has not."""
    return git.ask(place.near, "rev-parse", "--is-shallow-repository").stdout.strip() == b"false"


def read_revision(revision: Revision) -> Tree:
    """Every manifest of the place in this revision. Their problems are diagnostics.

    Raises UsageError if git fails.
    """
    listing = _list(revision) if revision.tree else _Listing()
    _resolve(revision, listing)
    contents = _read(revision, listing)
    if not listing.requests and all(diagnostic.rule == IGNORED for diagnostic in listing.diagnostics):
        message = f"there is no manifest: no file here ends with {' or '.join(SUFFIXES)}"
        listing.diagnostics.append(_of_place(revision, "source-empty", message, Severity.WARNING))
    return tree_of(contents, listing.diagnostics)


@dataclass
class _Listing:
    """The manifests and links of a tree. `requests` maps a name to the request to git, `found` to git's answer."""

    requests: dict[str, bytes] = field(default_factory=dict)
    links: set[str] = field(default_factory=set)
    found: dict[str, tuple[bytes, int]] = field(default_factory=dict)  # hash and size
    diagnostics: list[Diagnostic] = field(default_factory=list)


def _list(revision: Revision) -> _Listing:
    listing = _Listing()
    with git.stream(revision.place.near, "ls-tree", "-r", "-z", "--full-tree", revision.tree) as output:
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
            elif nearly := overlooked(name):
                listing.diagnostics.append(nearly)
            if len(listing.requests) > source.MAX_FILES:
                message = f"there are more than {source.MAX_FILES} manifests"
                listing.diagnostics.append(_of_place(revision, "source-too-large", message))
                break
    listing.requests = dict(sorted(listing.requests.items())[: source.MAX_FILES])
    return listing


def _resolve(revision: Revision, listing: _Listing) -> None:
    """Find hash and size of every listed entry; of a link, those of its target."""
    astray: dict[str, bytes] = {}
    for name, (what, hash_, size) in zip(
        listing.requests, _look_up(revision, list(listing.requests.values())), strict=True
    ):
        if what == "tree":
            listing.diagnostics.append(_directory_link(name))
        elif not name.endswith(SUFFIXES):
            if what == "symlink":
                astray[name] = listing.requests[name].partition(b":")[2]
        elif what == "blob":
            listing.found[name] = (hash_, size)
        elif what == "symlink":
            message = "this link leads out of the directory"
            listing.diagnostics.append(about_file(name, "source-link", message, "put the file itself here"))
        else:
            reason = _BROKEN_LINKS.get(what, "the repository lacks it")
            listing.diagnostics.append(about_file(name, "source-unreadable", f"this can't be read: {reason}"))
    _resolve_astray(revision, listing, astray)


def _resolve_astray(revision: Revision, listing: _Listing, links: Mapping[str, bytes]) -> None:
    """Report links out of the place that lead to directories, or out of the repository: they are not followed."""
    prefix = f"{revision.commit}:{revision.place.path}".encode()
    inner = b"/" if revision.place.path else b""
    requests = [prefix + inner + path for path in links.values()]
    for name, (what, _, _) in zip(links, _look_up(revision, requests), strict=True):
        if what == "tree":
            listing.diagnostics.append(_directory_link(name))
        elif what == "symlink":
            message = "this link leads out of the repository: if that is a directory, its manifests are not read"
            listing.diagnostics.append(about_file(name, "source-link", message, severity=Severity.WARNING))


def _directory_link(name: str) -> Diagnostic:
    hint = "move the files here, or link each of them"
    return about_file(name, "source-link", "links to directories are not followed", hint)


def _look_up(revision: Revision, requests: Sequence[bytes]) -> Iterator[tuple[str, bytes, int]]:
    """Git's answer to each request: "blob", "tree" or the fault of a link; hash and size of blobs and trees."""
    if not requests:
        return
    words = ("cat-file", "--batch-check", "--follow-symlinks")
    with git.stream(revision.place.near, *words, requests=requests) as output:
        for _ in requests:
            match output.readline().split():
                case [what, size] if what != b"missing" and size.isdigit():
                    output.read(int(size) + 1)  # the link's target
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
        with git.stream(revision.place.near, "cat-file", "--batch", requests=hashes) as output:
            for hash_ in hashes:
                size = int(output.readline().split()[2])
                contents[hash_] = output.read(size)
                output.read(1)
    return {name: contents[hash_] for name, hash_ in wanted.items()}


def _commit(place: Place, name: str) -> str:
    """The hash of the commit that a name stands for. Raises UsageError, also if it stands for several."""
    answer = git.ask(place.near, "rev-parse", "--verify", "--end-of-options", f"{name}^{{commit}}")
    if answer.returncode:
        if b"short object ID" in answer.stderr:
            raise UsageError(f"{name!r} is the beginning of several hashes", hint="write more of it")
        hint = "a checkout in CI often holds one branch only: `git fetch` the other first"
        if b"dubious ownership" in answer.stderr:
            hint = "chown it, or run as its owner"
            raise UsageError(f"git does not trust {place.near}: it is another user's", hint=hint)
        raise UsageError(f"there is no revision {name!r} in this repository", hint=hint)
    commit = answer.stdout.decode().strip()
    base = _SUFFIX.split(name, maxsplit=1)[0]
    if b"is ambiguous" in answer.stderr and base != "HEAD" and not base.endswith("_HEAD"):
        _refuse_several(place, name, base)
    return commit


def _refuse_several(place: Place, name: str, base: str) -> None:
    """Raise UsageError if a name may stand for several commits."""
    patterns = [f"refs/{folder}{base}" for folder in ("", "tags/", "heads/", "remotes/")]
    refs = os.fsdecode(git.ask(place.near, "for-each-ref", "--format=%(refname)", *patterns).stdout).split()
    rest = name[len(base) :]
    meant = {
        git.ask(place.near, "rev-parse", "--verify", "--end-of-options", f"{ref}{rest}^{{commit}}").stdout
        for ref in refs
    }
    if len(refs) < 2 or len(meant) > 1:
        ways = [f"{ref.removeprefix('refs/')}{rest}" for ref in refs] or ["a whole hash"]
        hint = f"write {either(ways)}" if len(refs) > 1 else f"write {ways[0]}, or more of the hash"
        raise UsageError(f"{name!r} stands for more than one commit here", hint=hint)


def _tree_hash(place: Place, commit: str) -> str:
    """The hash of the place's tree in a commit; "" if there is none."""
    if not place.path:
        return commit
    with git.stream(place.near, "ls-tree", "-z", "--full-tree", commit, "--", place.path) as output:
        for record in _records(output):
            about, path = record.split(b"\t", 1)
            _, what, hash_ = about.decode().split(" ")
            if what == "tree" and os.fsdecode(path) == place.path:
                return hash_
    return ""


def _of_place(revision: Revision, rule: str, message: str, severity: Severity = Severity.ERROR) -> Diagnostic:
    return about_file(revision.place.path or ".", rule, message, severity=severity)


def _records(output: IO[bytes]) -> Iterator[bytes]:
    """The records of a command with `-z`, each as soon as it is read: a listing may be much larger than the part of it
    that is needed."""
    rest = b""
    while chunk := output.read(_CHUNK_BYTES):
        *records, rest = (rest + chunk).split(b"\0")
        yield from records
