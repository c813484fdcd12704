# SPDX-License-Identifier: Apache-2.0
"""The manifests of a directory: which files they are, and their texts.

No content of the directory makes this raise: a file that can't be read, is no text, or is a link out of the tree
becomes a diagnostic. A directory that changes while it is read is read again, so that a checkout is seen whole.
"""

from __future__ import annotations

import codecs
import contextlib
import hashlib
import os
import re
import stat
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from reconciler import safe
from reconciler.config.diagnostic import Diagnostic, Severity, did_you_mean, line_and_column
from reconciler.resource import Span

TEMPLATE_SUFFIX = ".yaml.j2"
SUFFIXES = (".yaml", ".yml", TEMPLATE_SUFFIX)
MAX_FILES = 10_000
MAX_FILE_BYTES = 16 << 20
MAX_TREE_BYTES = 64 << 20
MAX_ATTEMPTS = 5
IGNORED = "source-ignored"
_ALMOST = re.compile(r"(.+?)(?:(\.ya?ml)|(?:\.ya?ml)?(\.j2|\.jinja2?))", re.IGNORECASE)
_JSON_SEARCHED = 4_096
_PAUSE_S = 0.02  # before the second attempt; doubles with each one

_FOREIGN_MARKS = {
    codecs.BOM_UTF8: "a byte order mark",
    codecs.BOM_UTF32_LE: "the mark of UTF-32",
    codecs.BOM_UTF32_BE: "the mark of UTF-32",
    codecs.BOM_UTF16_LE: "the mark of UTF-16",
    codecs.BOM_UTF16_BE: "the mark of UTF-16",
}


@dataclass(frozen=True, slots=True)
class SourceFile:
    """A manifest file: its name relative to the directory, and its text.

    If the text was rendered, `lines` has for each of its lines the number of the template's line that it comes from.
    """

    name: str
    text: str
    lines: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Tree:
    """The content of a directory. `files` are the readable files in the order of their names; `texts` also has the
    others' texts, as far as they could be read. `digest` changes if and only if a name or the content of a file does.
    Templates and environments are among the files, see `overlay`. `partial`: more manifests may belong to these."""

    files: tuple[SourceFile, ...]
    diagnostics: tuple[Diagnostic, ...]
    texts: dict[str, str]
    digest: str
    partial: bool = False


@dataclass
class _Listing:
    """The manifests of a directory and, by name, the states of files and directories, which show changes."""

    files: dict[str, str] = field(default_factory=dict)  # name → real path
    states: dict[str, tuple[int, ...]] = field(default_factory=dict)
    diagnostics: list[Diagnostic] = field(default_factory=list)


def read_tree(directory: Path) -> Tree:
    """Read every *.yaml and *.yml file below `directory`, except files and directories that begin with a dot."""
    for attempt in range(MAX_ATTEMPTS):
        if attempt:
            time.sleep(_PAUSE_S * 2 ** (attempt - 1))
        listing = _list(directory)
        contents, diagnostics = _read(listing)
        if _list(directory) == listing:
            break
    else:
        message = f"the directory still changed while it was read for the {MAX_ATTEMPTS}th time"
        diagnostics.append(about_file(str(directory), "source-changing", message, "try again when it is at rest"))

    diagnostics += listing.diagnostics
    if not listing.files and all(diagnostic.rule == IGNORED for diagnostic in diagnostics):
        message = f"there is no manifest: no file here ends with {' or '.join(SUFFIXES)}"
        diagnostics.append(about_file(str(directory), "source-empty", message, severity=Severity.WARNING))
    return tree_of(contents, diagnostics)


def read_files(paths: Mapping[str, Path]) -> Tree:
    """Single files, by their names in messages. Other files of their directories are not read."""
    listing = _Listing({name: os.path.realpath(path) for name, path in paths.items()})
    return replace(tree_of(*_read(listing)), partial=True)


def renamed(tree: Tree, directory: Path, shown: str) -> Tree:
    """The tree with `shown` in front of every name, and in place of the name of the directory itself."""

    def name(file: str) -> str:
        return shown if file == str(directory) else os.path.normpath(os.path.join(shown, file))  # noqa: PTH118

    return replace(
        tree,
        files=tuple(replace(file, name=name(file.name)) for file in tree.files),
        diagnostics=tuple(replace(d, span=replace(d.span, file=name(d.span.file))) for d in tree.diagnostics),
        texts={name(file): text for file, text in tree.texts.items()},
    )


def tree_of(contents: Mapping[str, bytes], diagnostics: list[Diagnostic]) -> Tree:
    """The tree of these files, given by name, with the problems of their bytes and the `diagnostics` so far."""
    files, texts, diagnostics = [], {}, list(diagnostics)
    for name, content in contents.items():
        text, problem = _decode(name, content)
        texts[name] = text
        if problem:
            diagnostics.append(problem)
        else:
            files.append(SourceFile(name, text))
    return Tree(tuple(files), tuple(diagnostics), texts, _digest(contents, diagnostics))


def _list(directory: Path) -> _Listing:
    listing = _Listing()
    try:
        root = os.path.realpath(directory, strict=True)
        if not Path(root).is_dir():
            hint = f"give the directory that it lies in: {directory.parent}"
            listing.diagnostics.append(about_file(str(directory), "source-missing", "this is no directory", hint))
            return listing
    except OSError as error:
        listing.diagnostics.append(about_file(str(directory), "source-missing", _reason(error), nearby(directory)))
        return listing
    pending = [root]
    while pending:
        path = pending.pop()
        try:
            listing.states[path] = _state(Path(path).stat())
            with os.scandir(path) as entries:
                pending += [
                    entry.path for entry in entries if not entry.name.startswith(".") and _enter(listing, root, entry)
                ]
        except OSError as error:
            listing.diagnostics.append(about_file(shown_name(root, path), "source-unreadable", _reason(error)))
        if len(listing.files) > MAX_FILES:
            message = f"there are more than {MAX_FILES} manifests"
            listing.diagnostics.append(about_file(str(directory), "source-too-large", message))
            break
    listing.files = dict(sorted(listing.files.items())[:MAX_FILES])
    listing.diagnostics.sort(key=lambda d: (d.span, d.rule))
    return listing


def nearby(path: Path) -> str:
    """A hint at the file or directory that was probably meant by a path that doesn't exist."""
    with contextlib.suppress(OSError):
        return did_you_mean(path.name, [entry.name for entry in path.parent.iterdir() if entry.name[0] != "."])
    return ""


def _enter(listing: _Listing, root: str, entry: os.DirEntry[str]) -> bool:
    """Take an entry of a directory down; True if it is a directory to go into."""
    if entry.is_dir(follow_symlinks=False):
        return True
    name = shown_name(root, entry.path)
    is_manifest = entry.name.endswith(SUFFIXES)
    if entry.is_symlink() and Path(entry.path).is_dir():
        hint = "move the files here, or link each of them"
        listing.diagnostics.append(about_file(name, "source-link", "links to directories are not followed", hint))
    elif is_manifest:
        try:
            target = os.path.realpath(entry.path, strict=True)
            state = Path(target).stat()
        except OSError as error:
            listing.diagnostics.append(about_file(name, "source-unreadable", _reason(error)))
            return False
        if os.path.commonpath((root, target)) != root:
            message = "this link leads out of the directory"
            listing.diagnostics.append(about_file(name, "source-link", message, "put the file itself here"))
        elif not stat.S_ISREG(state.st_mode):
            message = f"this is {_KINDS.get(stat.S_IFMT(state.st_mode), 'something else')}, not a file"
            listing.diagnostics.append(about_file(name, "source-not-a-file", message))
        else:
            listing.files[name] = target
            listing.states[name] = _state(state)
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
        begin = _read_file(entry.path, _JSON_SEARCHED)
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


def _read(listing: _Listing) -> tuple[dict[str, bytes], list[Diagnostic]]:
    contents: dict[str, bytes] = {}
    diagnostics: list[Diagnostic] = []
    room = MAX_TREE_BYTES
    for name, path in listing.files.items():
        try:
            content = _read_file(path)
        except OSError as error:
            diagnostics.append(about_file(name, "source-unreadable", _reason(error)))
            continue
        room -= len(content)
        if len(content) > MAX_FILE_BYTES or room < 0:
            which, most = ("this file", MAX_FILE_BYTES) if room >= 0 else ("the directory", MAX_TREE_BYTES)
            message = f"{which} is larger than {most >> 20} MiB"
            diagnostics.append(about_file(name, "source-too-large", message, "split it"))
            if room < 0:
                break
        else:
            contents[name] = content
    return contents, diagnostics


def _read_file(path: str, most: int = MAX_FILE_BYTES + 1) -> bytes:
    """Read at most one byte beyond the limit, and never wait for a file that has become a pipe meanwhile."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_NOCTTY | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError("it is no longer a file")
        return file.read(most)


def _decode(name: str, content: bytes) -> tuple[str, Diagnostic | None]:
    for mark, description in _FOREIGN_MARKS.items():
        if content.startswith(mark):
            message = f"this file begins with {description}"
            text = content.decode("utf-8", "replace")
            return text, _at(name, text, 0, "source-encoding", message, "save it as UTF-8 without a mark")
    try:
        text = content.decode()
    except UnicodeDecodeError as error:
        text = content.decode("utf-8", "replace")
        offset = len(content[: error.start].decode())
        message = f"the byte 0x{content[error.start]:02x} is not UTF-8"
        return text, _at(name, text, offset, "source-encoding", message, "save the file as UTF-8")
    if (offset := text.find("\0")) >= 0:
        return text, _at(name, text, offset, "source-encoding", "a text can't hold a NUL character")
    return text, None


def _digest(contents: Mapping[str, bytes], diagnostics: list[Diagnostic]) -> str:
    """The digest of names and contents, and of the problems of unreadable files."""
    digest = hashlib.sha256()
    for name, content in contents.items():
        digest.update(f"{len(name)} {name} {len(content)} ".encode() + content)
    digest.update(repr([(d.span.file, d.rule) for d in diagnostics if d.rule != IGNORED]).encode())
    return digest.hexdigest()


def _state(status: os.stat_result) -> tuple[int, ...]:
    return (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


def shown_name(root: str, path: str) -> str:
    """A path relative to the root; unprintable characters are escaped, so that two names never become one."""
    name = path[len(root) :].lstrip("/") or "."
    return safe.line(name.replace("\\", "\\\\"))


def _reason(error: OSError) -> str:
    return f"this can't be read: {(error.strerror or str(error)).lower()}"


def about_file(file: str, rule: str, message: str, hint: str = "", severity: Severity = Severity.ERROR) -> Diagnostic:
    """A problem of a file as a whole, at no line of it."""
    return Diagnostic(severity, rule, message, Span(file, 0), hint)


def _at(file: str, text: str, offset: int, rule: str, message: str, hint: str = "") -> Diagnostic:
    return Diagnostic(Severity.ERROR, rule, message, Span(file, *line_and_column(text, offset)), hint)
