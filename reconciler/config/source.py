# SPDX-License-Identifier: Apache-2.0
"""The texts of the manifests of a directory.

No content of the directory makes this raise: a file that can't be read, or is no text, becomes a diagnostic. A
directory that changes while it is read is read again, so that a checkout is seen whole.
"""

from __future__ import annotations

import codecs
import hashlib
import os
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from reconciler import progress
from reconciler.config.diagnostic import Diagnostic, Severity, line_and_column
from reconciler.config.listing import IGNORED, SUFFIXES, Listing, about_file, list_files, read_file, reason
from reconciler.resource import Span

MAX_FILES = 10_000
MAX_FILE_BYTES = 16 << 20
MAX_TREE_BYTES = 64 << 20
MAX_ATTEMPTS = 5
SETTLED_NS = 3_000_000_000
"""A file's state is no proof of its content if the file was changed less than so long before it was read: another
change within one tick of the file system's clock, of up to two seconds, would leave the same state."""
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


@dataclass(frozen=True, slots=True)
class _Content:
    """The content of a file; `problem` says why it is no text. `digest` is that of its bytes."""

    file: SourceFile
    problem: Diagnostic | None
    digest: bytes
    size_bytes: int


@dataclass(slots=True)
class Memory:
    """What the last reading of a directory found, for the next one: files whose state is the same are not read again.

    `proven` are the files whose content is certain as long as their state stays the same. There are exceptions: a file
    that is written through a mapping into memory may change later without a sign, and a network file system may show
    old states for a while. So read everything afresh now and then.
    """

    listing: Listing = field(default_factory=Listing)
    contents: dict[str, _Content] = field(default_factory=dict)
    proven: frozenset[str] = frozenset()
    tree: Tree | None = None


def read_tree(directory: Path, memory: Memory | None = None, *, afresh: bool = False) -> Tree:
    """Read every *.yaml and *.yml file below `directory`, except files and directories that begin with a dot.

    With a `memory` of this directory only what changed is read, unless it is to be read `afresh`; unchanged files are
    the identical objects, and so is a tree in which nothing changed.
    """
    memory = memory or Memory()
    for attempt in range(MAX_ATTEMPTS):
        if attempt:
            time.sleep(_PAUSE_S * 2 ** (attempt - 1))
        started_ns = time.time_ns()
        listing = _list(directory)
        proven = frozenset() if afresh else _proven(memory, listing)
        if memory.tree and len(proven) == len(listing.files) and listing == memory.listing:
            return memory.tree
        contents, diagnostics = _read(listing, memory, proven)
        if _list(directory) == listing:
            break
    else:
        message = f"the directory still changed while it was read for the {MAX_ATTEMPTS}th time"
        diagnostics.append(about_file(str(directory), "source-changing", message, "try again when it is at rest"))
        proven, started_ns = frozenset(), 0  # the states prove nothing

    read = diagnostics + listing.diagnostics
    if not listing.files and all(diagnostic.rule == IGNORED for diagnostic in read):
        message = f"there is no manifest: no file here ends with {' or '.join(SUFFIXES)}"
        read.append(about_file(str(directory), "source-empty", message, severity=Severity.WARNING))
    tree = _tree(contents.values(), read)
    memory.listing, memory.contents = listing, contents
    memory.proven = proven | _settled(listing, contents, started_ns)
    memory.tree = memory.tree if tree == memory.tree else tree
    assert memory.tree is not None
    return memory.tree


def read_files(paths: Mapping[str, Path]) -> Tree:
    """Single files, by their names in messages. Other files of their directories are not read."""
    listing = Listing({name: os.path.realpath(path) for name, path in paths.items()})
    contents, diagnostics = _read(listing)
    return replace(_tree(contents.values(), diagnostics), partial=True)


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


def tree_of(contents: Mapping[str, bytes], diagnostics: Iterable[Diagnostic]) -> Tree:
    """The tree of these files, given by name, with the problems of their bytes and the `diagnostics` so far."""
    return _tree([_content(name, content) for name, content in contents.items()], diagnostics)


def _tree(contents: Iterable[_Content], diagnostics: Iterable[Diagnostic]) -> Tree:
    contents, diagnostics = list(contents), list(diagnostics)
    diagnostics += [content.problem for content in contents if content.problem]
    return Tree(
        tuple(content.file for content in contents if not content.problem),
        tuple(diagnostics),
        {content.file.name: content.file.text for content in contents},
        _digest(contents, diagnostics),
    )


def _list(directory: Path) -> Listing:
    return list_files(directory, MAX_FILES)


def _proven(memory: Memory, listing: Listing) -> frozenset[str]:
    """The files of which nothing but their state has to be looked at."""
    before, now = memory.listing.states, listing.states
    return frozenset(name for name in memory.proven if name in now and now[name] == before[name])


def _settled(listing: Listing, contents: Mapping[str, _Content], started_ns: int) -> frozenset[str]:
    """The files that were read, and whose next change will certainly give them another state."""
    old_ns = started_ns - SETTLED_NS
    return frozenset(name for name in contents if max(listing.states[name][-2:]) < old_ns)


def _read(
    listing: Listing, memory: Memory | None = None, proven: frozenset[str] = frozenset()
) -> tuple[dict[str, _Content], list[Diagnostic]]:
    """Read the files of a listing, except the `proven` ones, which the memory has."""
    known = memory.contents if memory else {}
    contents: dict[str, _Content] = {}
    diagnostics: list[Diagnostic] = []
    room = MAX_TREE_BYTES
    for name, path in progress.each("reading manifests", listing.files.items(), "files"):
        if name in proven:
            content = known[name]
        else:
            try:
                content = _content(name, read_file(path, MAX_FILE_BYTES + 1), known.get(name))
            except OSError as error:
                diagnostics.append(about_file(name, "source-unreadable", reason(error)))
                continue
        room -= content.size_bytes
        if content.size_bytes > MAX_FILE_BYTES or room < 0:
            which, most = ("this file", MAX_FILE_BYTES) if room >= 0 else ("the directory", MAX_TREE_BYTES)
            message = f"{which} is larger than {most >> 20} MiB"
            diagnostics.append(about_file(name, "source-too-large", message, "split it"))
            if room < 0:
                break
        else:
            contents[name] = content
    return contents, diagnostics


def _content(name: str, content: bytes, known: _Content | None = None) -> _Content:
    """The content of a file, as it is `known` if it is still the same."""
    digest = hashlib.sha256(content).digest()
    if known and known.digest == digest:
        return known
    text, problem = _decode(name, content)
    return _Content(SourceFile(name, text), problem, digest, len(content))


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


def _digest(contents: Iterable[_Content], diagnostics: Iterable[Diagnostic]) -> str:
    """The digest of names and contents, and of the problems of unreadable files."""
    digest = hashlib.sha256()
    for content in contents:
        digest.update(f"{len(content.file.name)} {content.file.name} ".encode() + content.digest)
    digest.update(repr([(d.span.file, d.rule) for d in diagnostics if d.rule != IGNORED]).encode())
    return digest.hexdigest()


def _at(file: str, text: str, offset: int, rule: str, message: str, hint: str = "") -> Diagnostic:
    return Diagnostic(Severity.ERROR, rule, message, Span(file, *line_and_column(text, offset)), hint)
