# SPDX-License-Identifier: Apache-2.0
"""Turn a directory of manifests into a fleet, or into a list of all its problems.

Each file is read, checked against the schemas and built on its own, and remembered by its content. So after an
edit only the edited file is parsed again; the rules, which look at all files together, always run.
"""

from __future__ import annotations

import gc
import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from reconciler import progress
from reconciler.config import schema
from reconciler.config.build import Object, build, count_ports
from reconciler.config.diagnostic import Diagnostic, Severity, in_order
from reconciler.config.document import Document, Map, parse
from reconciler.config.document import Path as DocumentPath
from reconciler.config.overlay import in_template, rendered
from reconciler.config.rules import RULES, Draft, Finding, Rule
from reconciler.config.source import Memory, SourceFile, Tree, read_tree
from reconciler.model import Fleet, Node, Pool, Service
from reconciler.resource import Span

MAX_PORTS = 262_144  # of all services; far more than a node holds, and a bound on what a range can cost
MAX_ENDPOINTS = 1_000_000  # of all pools, likewise
MAX_SHOWN = 100  # problems of a file


@dataclass(frozen=True, slots=True)
class Loaded:
    """The content of a directory. `fleet` is None if any diagnostic is an error; `texts` maps each file's name,
    relative to the directory, to its text, from which source lines are shown."""

    fleet: Fleet | None
    diagnostics: tuple[Diagnostic, ...]
    texts: Mapping[str, str]
    digest: str


@dataclass(frozen=True, slots=True)
class _Broken:
    """A document with errors: the objects that it may declare, as kind and name, and the names in it.

    `is_unread`: it is too long to be searched for names, so it may declare and mention anything.
    """

    declared: frozenset[tuple[str, str]] = frozenset()
    names: frozenset[str] = frozenset()
    is_unread: bool = False


@dataclass(frozen=True, slots=True)
class _Checked:
    """The result of checking one file by itself; `located` remembers the places of rules' findings in it."""

    objects: tuple[Object, ...]
    diagnostics: tuple[Diagnostic, ...]
    broken: tuple[_Broken, ...]
    ports: int
    endpoints: int
    located: dict[tuple[Span, DocumentPath], tuple[Span, int]] = field(default_factory=dict)


@dataclass(slots=True)
class Known:
    """What the last check of a tree found, for the next one: unchanged files are not checked again."""

    files: dict[SourceFile, _Checked] = field(default_factory=dict)


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
    files: dict[str, _Checked] = {}
    diagnostics = list(tree.diagnostics)
    unread = tree.partial or any(diagnostic.severity is Severity.ERROR for diagnostic in diagnostics)
    ports = endpoints = 0
    for file in progress.each("checking manifests", tree.files, "files"):
        files[file.name] = checked = known.files.get(file) or _check_file(file)
        diagnostics += checked.diagnostics
        ports += checked.ports
        endpoints += checked.endpoints
        if ports > MAX_PORTS or endpoints > MAX_ENDPOINTS:
            diagnostics.append(_too_many(Span(file.name, 0), "ports" if ports > MAX_PORTS else "endpoints"))
            unread = True
            break
    known.files = {file: files[file.name] for file in tree.files if file.name in files}

    draft = _draft(list(files.values()), unread)
    with progress.step("checking how they fit together"):
        findings = [(finding, rule) for rule in RULES.values() for finding in rule.find(draft)]
    sources = {file.name: file for file in tree.files}
    diagnostics += _locate(findings, files, sources)
    diagnostics = [
        in_template(d, tree.texts[d.span.file], sources[d.span.file].text) if d.span.rendered_line else d
        for d in diagnostics
    ]
    fleet = None
    if not any(diagnostic.severity is Severity.ERROR for diagnostic in diagnostics):
        fleet = Fleet(
            services=tuple(sorted(draft.services, key=lambda service: service.name)),
            pools=tuple(sorted(draft.pools, key=lambda pool: pool.name)),
            nodes=tuple(sorted(draft.nodes, key=lambda node: node.name)),
            digest=tree.digest,
        )
    return Loaded(fleet, in_order(diagnostics), tree.texts, tree.digest)


def _check_file(file: SourceFile) -> _Checked:
    objects: list[Object] = []
    diagnostics: list[Diagnostic] = []
    broken: list[_Broken] = []
    ports = 0
    for document in parse(file.name, file.text, file.lines):
        problems = document.diagnostics + (schema.check(document) if document.start else [])
        own_ports = 0 if problems else count_ports(document)
        if ports + own_ports > MAX_PORTS:
            problems = [_too_many(document.span, "ports")]
        if problems:
            diagnostics += problems
            broken.append(_broken(document))
        else:
            objects.append(build(document))
            ports += own_ports
    if len(diagnostics) > MAX_SHOWN:
        diagnostics = list(in_order(diagnostics)[:MAX_SHOWN])
        message = f"this file has more problems than these {MAX_SHOWN}"
        diagnostics.append(Diagnostic(Severity.ERROR, "too-many-problems", message, Span(file.name, 0)))
    endpoints = sum(len(item.endpoints) for item in objects if isinstance(item, Pool))
    return _Checked(tuple(objects), tuple(diagnostics), tuple(broken), ports, endpoints)


def _broken(document: Document) -> _Broken:
    """The names of a document with errors. If it is no YAML, every word in it counts as a name."""
    if document.start is None and len(document.text) > schema.MAX_SEARCHED:
        return _Broken(is_unread=True)
    root = document.root if isinstance(document.root, Map) else Map()
    kind, metadata = root.get("kind"), root.get("metadata")
    name = metadata.get("name") if isinstance(metadata, Map) else None
    words = frozenset(re.findall("[a-z0-9-]+", document.text))
    kinds = [kind] if kind in schema.KINDS else schema.KINDS
    names = [name] if isinstance(name, str) else words
    return _Broken(frozenset(itertools.product(kinds, names)), words)


def _draft(files: Sequence[_Checked], unread: bool) -> Draft:
    objects = [item for file in files for item in file.objects]
    return Draft(
        services=tuple(item for item in objects if isinstance(item, Service)),
        pools=tuple(item for item in objects if isinstance(item, Pool)),
        nodes=tuple(item for item in objects if isinstance(item, Node)),
        declared_elsewhere=frozenset().union(*(document.declared for file in files for document in file.broken)),
        mentioned_elsewhere=frozenset().union(*(document.names for file in files for document in file.broken)),
        unread=unread or any(document.is_unread for file in files for document in file.broken),
    )


def _locate(
    findings: list[tuple[Finding, Rule]], files: Mapping[str, _Checked], sources: Mapping[str, SourceFile]
) -> Iterator[Diagnostic]:
    """Give findings the places of the keys and values that they are about. Places are not kept, since a tree of
    100,000 endpoints has a million of them: the few files with findings are parsed once more."""
    findings.sort(key=lambda found: found[0].span.file)
    for file, group in itertools.groupby(findings, key=lambda found: found[0].span.file):
        located = files[file].located
        documents: dict[Span, Document] = {}
        for finding, rule in group:
            place = (finding.span, finding.path)
            if place not in located:
                source = sources[file]
                documents = documents or {d.span: d for d in parse(file, source.text, source.lines) if d.start}
                document = documents[finding.span]
                located[place] = document.extent_of(document.value_at(finding.path))
            span, length = located[place]
            yield Diagnostic(rule.severity, rule.name, finding.message, span, finding.hint, length)


def _too_many(span: Span, what: str) -> Diagnostic:
    owners, most = ("services", MAX_PORTS) if what == "ports" else ("pools", MAX_ENDPOINTS)
    message = f"with these, all {owners} together have more than {most} {what}"
    rule = "too-many-ports" if what == "ports" else "source-too-large"
    return Diagnostic(Severity.ERROR, rule, message, span, "leave some out")


@contextmanager
def no_garbage_collection() -> Iterator[None]:
    """Parsing makes a million objects and no cycles: the collector would find nothing and take most of the time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
