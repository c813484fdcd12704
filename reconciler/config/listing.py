# SPDX-License-Identifier: Apache-2.0
"""The manifests of a directory: which files they are, and the states by which changes of them are noticed.

A file that is a pipe, or a link out of the tree, becomes a diagnostic.
"""

from __future__ import annotations

import contextlib
import os
import re
import stat
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

from reconciler import safe
from reconciler.config.diagnostic import Diagnostic, Severity, did_you_mean
from reconciler.resource import Span

TEMPLATE_SUFFIX = ".yaml.j2"
SUFFIXES = (".yaml", ".yml", TEMPLATE_SUFFIX)
IGNORED = "source-ignored"
_ALMOST = re.compile(r"(.+?)(?:(\.ya?ml)|(?:\.ya?ml)?(\.j2|\.jinja2?))", re.IGNORECASE)
_JSON_SEARCHED = 4_096

State = tuple[int, ...]
"""The identity of a file, and its times: device, inode, size, time of the last write, time of the last change of
anything. No program can set the last one."""


@dataclass
class Listing:
    """The manifests of a directory and, by name, the states of files and directories, which show changes."""

    files: dict[str, str] = field(default_factory=dict)  # name → real path
    states: dict[str, State] = field(default_factory=dict)
    diagnostics: list[Diagnostic] = field(default_factory=list)


def list_files(directory: Path, most: int) -> Listing:
    """Every *.yaml and *.yml file below `directory`, except files and directories that begin with a dot; at most
    `most` of them."""
    listing = Listing()
    try:
        root = os.path.realpath(directory, strict=True)
        if not Path(root).is_dir():
            hint = f"give the directory that it lies in: {directory.parent}"
            listing.diagnostics.append(about_file(str(directory), "source-missing", "this is no directory", hint))
            return listing
    except OSError as error:
        listing.diagnostics.append(about_file(str(directory), "source-missing", reason(error), nearby(directory)))
        return listing
    pending = [root]
    while pending:
        path = pending.pop()
        try:
            listing.states[path] = state_of(Path(path).stat())
            with os.scandir(path) as entries:
                pending += [
                    entry.path for entry in entries if not entry.name.startswith(".") and _enter(listing, root, entry)
                ]
        except OSError as error:
            listing.diagnostics.append(about_file(shown_name(root, path), "source-unreadable", reason(error)))
        if len(listing.files) > most:
            message = f"there are more than {most} manifests"
            listing.diagnostics.append(about_file(str(directory), "source-too-large", message))
            break
    listing.files = dict(sorted(listing.files.items())[:most])
    listing.diagnostics.sort(key=lambda d: (d.span, d.rule))
    return listing


def nearby(path: Path) -> str:
    """A hint at the file or directory that was probably meant by a path that doesn't exist."""
    with contextlib.suppress(OSError):
        return did_you_mean(path.name, [entry.name for entry in path.parent.iterdir() if entry.name[0] != "."])
    return ""


def _enter(listing: Listing, root: str, entry: os.DirEntry[str]) -> bool:
    """Take an entry of a directory down; True if it is a directory to go into."""
    if entry.name.endswith(SUFFIXES) and entry.is_file(follow_symlinks=False):
        try:
            status = entry.stat(follow_symlinks=False)
            mode = status.st_mode
        except OSError:
            mode = 0  # that is told below
        if stat.S_ISREG(mode):
            path = entry.path
            name = shown_name(root, path)
            listing.files[name], listing.states[name] = path, state_of(status)
            return False
    if entry.is_dir(follow_symlinks=False):
        return True
    name = shown_name(root, entry.path)
    is_manifest = entry.name.endswith(SUFFIXES)
    is_link = entry.is_symlink()
    if is_link and Path(entry.path).is_dir():
        hint = "move the files here, or link each of them"
        listing.diagnostics.append(about_file(name, "source-link", "links to directories are not followed", hint))
    elif is_manifest:
        try:
            # Neither the root nor a directory that is gone into is a link, so only an entry that is one leads away.
            target = os.path.realpath(entry.path, strict=True) if is_link else entry.path
            status = Path(target).stat() if is_link else entry.stat(follow_symlinks=False)
        except OSError as error:
            listing.diagnostics.append(about_file(name, "source-unreadable", reason(error)))
            return False
        if is_link and os.path.commonpath((root, target)) != root:
            message = "this link leads out of the directory"
            listing.diagnostics.append(about_file(name, "source-link", message, "put the file itself here"))
        elif not stat.S_ISREG(status.st_mode):
            message = f"this is {_KINDS.get(stat.S_IFMT(status.st_mode), 'something else')}, not a file"
            listing.diagnostics.append(about_file(name, "source-not-a-file", message))
        else:
            listing.files[name] = target
            listing.states[name] = state_of(status)
    elif warning := overlooked(name) or _json_manifest(name, entry):
        listing.diagnostics.append(warning)
    return False


def overlooked(name: str) -> Diagnostic | None:
    """A warning about a file that is not read although its name looks like that of a manifest."""
    if name.endswith(SUFFIXES) or not (found := _ALMOST.fullmatch(name.rpartition("/")[2])):
        return None
    suffix = TEMPLATE_SUFFIX if found[3] else found[2].lower()
    return _ignored(name, f"name it {found[1]}{suffix}")


def _json_manifest(name: str, entry: os.DirEntry[str]) -> Diagnostic | None:
    """A warning about a manifest in JSON. Other programs' files, snapshots and plans are no manifests."""
    if not name.lower().endswith(".json") or not entry.is_file(follow_symlinks=False):
        return None
    try:
        begin = read_file(entry.path, _JSON_SEARCHED)
    except OSError:
        return None
    named = f"{name.rpartition('/')[2][:-5]}.yaml"
    return _ignored(name, f"JSON is YAML, too: name it {named}") if b'"lbctl/v' in begin else None


def _ignored(name: str, hint: str) -> Diagnostic:
    message = f"this file is not read: manifests end with {SUFFIXES[0]} or {SUFFIXES[1]}, templates with {SUFFIXES[2]}"
    return about_file(name, IGNORED, message, hint, Severity.WARNING)


_KINDS = {
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def read_file(path: str, most: int) -> bytes:
    """Read at most `most` bytes, and never wait for a file that has become a pipe meanwhile. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_NOCTTY | os.O_CLOEXEC)
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise OSError("it is no longer a file")
        parts, room = [], most
        while room and (part := os.read(descriptor, min(room, max(status.st_size + 1, 4096)))):
            parts.append(part)
            room -= len(part)
        return b"".join(parts)
    finally:
        os.close(descriptor)


def state_of(status: os.stat_result) -> State:
    return (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


@lru_cache(maxsize=1 << 14)
def shown_name(root: str, path: str) -> str:
    """A path relative to the root; unprintable characters are escaped, so that two names never become one."""
    name = path[len(root) :].lstrip("/") or "."
    return safe.line(name.replace("\\", "\\\\"))


def reason(error: OSError) -> str:
    return f"this can't be read: {(error.strerror or str(error)).lower()}"


def about_file(file: str, rule: str, message: str, hint: str = "", severity: Severity = Severity.ERROR) -> Diagnostic:
    """A problem of a file as a whole, at no line of it."""
    return Diagnostic(severity, rule, message, Span(file, 0), hint)
