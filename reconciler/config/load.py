# SPDX-License-Identifier: Apache-2.0
"""Turn a directory of manifests into a fleet, or into a list of all its problems.

Each file is read, checked against the schemas and built on its own, and remembered by its content; the findings of
rules about several objects are remembered, too. So after an edit only the edited file is parsed again, and rules look
only at what it changes.
"""

from __future__ import annotations

import gc
import itertools
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from reconciler import progress
from reconciler.config.checked import MAX_ENDPOINTS, MAX_PORTS, Checked, check_file, locate, too_many
from reconciler.config.diagnostic import Diagnostic, Severity, in_order
from reconciler.config.overlay import in_template, rendered
from reconciler.config.rules import Checker
from reconciler.config.source import Memory, Tree, read_tree
from reconciler.model import Fleet
from reconciler.resource import Span


@dataclass(frozen=True, slots=True)
class Loaded:
    """The content of a directory. `fleet` is None if any diagnostic is an error; `texts` maps each file's name,
    relative to the directory, to its text, from which source lines are shown. `commit` is that which they were read
    from, empty if from files."""

    fleet: Fleet | None
    diagnostics: tuple[Diagnostic, ...]
    texts: Mapping[str, str]
    digest: str
    commit: str = ""


@dataclass(slots=True)
class Known:
    """What the last check of a tree found, for the next one: unchanged files are not checked again, and rules look
    only at what changed."""

    files: dict[str, Checked] = field(default_factory=dict)
    checker: Checker = field(default_factory=Checker)


@dataclass(slots=True)
class Loader:
    """Loads a directory again and again; each time costs what changed in it. For one thread.

    Objects of unchanged documents are identical each time, and so is the result if nothing changed at all.
    """

    directory: Path
    env: str | None = None
    _memory: Memory = field(default_factory=Memory)
    _known: Known = field(default_factory=Known)
    _tree: Tree | None = None
    _loaded: Loaded | None = None

    def load(self, *, afresh: bool = False) -> Loaded:
        """As `load`. Files whose state is the same are not read again, unless all are to be read `afresh`."""
        try:
            with no_garbage_collection():
                tree = read_tree(self.directory, self._memory, afresh=afresh)
                if self._loaded is None or tree is not self._tree:
                    self._loaded = check(tree, self.env, self._known)
                self._tree = tree
        except BaseException:  # what is known may be half of the old and half of the new
            self._memory, self._known, self._tree, self._loaded = Memory(), Known(), None, None
            raise
        return self._loaded


def load(directory: Path, env: str | None = None) -> Loaded:
    """Read and check every manifest below `directory`, with templates rendered for the environment `env`.

    Raises nothing: every problem is a diagnostic.
    """
    return Loader(directory, env).load()


def check(tree: Tree, env: str | None = None, known: Known | None = None) -> Loaded:
    """As `load`, for a tree that has been read. What is `known` of another tree is used, and brought up to date."""
    return check_manifests(rendered(tree, env), known)


def check_manifests(tree: Tree, known: Known | None = None) -> Loaded:
    """As `check`, for a tree without templates and environments."""
    known = known or Known()
    files: dict[str, Checked] = {}
    diagnostics = list(tree.diagnostics)
    unread = tree.partial or any(diagnostic.severity is Severity.ERROR for diagnostic in diagnostics)
    ports = endpoints = 0
    for file in progress.each("checking manifests", tree.files, "files"):
        former = known.files.get(file.name)
        checked = former if former and (former.file is file or former.file == file) else check_file(file, former)
        files[file.name] = checked
        diagnostics += checked.diagnostics
        ports += checked.ports
        endpoints += checked.endpoints
        if ports > MAX_PORTS or endpoints > MAX_ENDPOINTS:
            diagnostics.append(too_many(Span(file.name, 0), "ports" if ports > MAX_PORTS else "endpoints"))
            unread = True
            break
    known.files = files
    with progress.step("checking how they fit together"):
        found = known.checker.check([checked.parts for checked in files.values()], unread=unread)
    found.sort(key=lambda told: told[1].span.file)
    for name, group in itertools.groupby(found, key=lambda told: told[1].span.file):
        diagnostics += locate(files[name].file, list(group), files[name].located)
    diagnostics = [
        in_template(d, tree.texts[d.span.file], files[d.span.file].file.text) if d.span.rendered_line else d
        for d in diagnostics
    ]
    fleet = None
    if not any(diagnostic.severity is Severity.ERROR for diagnostic in diagnostics):
        fleet = known.checker.draft.fleet(tree.digest)
    return Loaded(fleet, in_order(diagnostics), tree.texts, tree.digest)


@contextmanager
def no_garbage_collection() -> Iterator[None]:
    """For work that makes a million objects and no cycles, such as parsing: the collector would find nothing and take
    much of the time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            if not _is_frozen:
                gc.freeze()  # both together make all objects old ones, which are seldom looked at again
                gc.unfreeze()
            gc.enable()


def freeze() -> None:
    """Look for cycles once more, and then never again among the objects that there are now: a million that stay. To
    count them, as `gc.get_freeze_count` does, takes as long as to look."""
    global _is_frozen
    gc.collect()
    gc.freeze()
    _is_frozen = True


_is_frozen = False
