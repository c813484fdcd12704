# SPDX-License-Identifier: Apache-2.0
"""Check one file by itself: its YAML, the shape of its documents, and the rules about single objects."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from reconciler.config import schema
from reconciler.config.build import Object, build, count_ports
from reconciler.config.diagnostic import Diagnostic, Severity, in_order
from reconciler.config.document import Document, Map, parse, parse_briefly
from reconciler.config.document import Path as DocumentPath
from reconciler.config.rules import Told, findings
from reconciler.config.rules.parts import FileParts, Members, Need
from reconciler.config.source import SourceFile
from reconciler.model import Labels, Mode, Node, Pool, Service
from reconciler.resource import Span

MAX_PORTS = 262_144  # of all services; far more than a node holds, and a bound on what a range can cost
MAX_ENDPOINTS = 1_000_000  # of all pools, likewise
MAX_SHOWN = 100  # problems of a file

T = TypeVar("T")
_Part = Service | Members | Node


@dataclass(frozen=True, slots=True, eq=False)
class Checked:
    """What was found in one file. `objects` has, by their places, the parts that it declares, each with the text of
    its document as begin and end in the file. `located` remembers the places of rules' findings in it."""

    file: SourceFile
    parts: FileParts
    objects: Mapping[Span, tuple[_Part, int, int]]
    diagnostics: tuple[Diagnostic, ...]
    ports: int
    endpoints: int
    located: dict[tuple[Span, DocumentPath], tuple[Span, int]] = field(default_factory=dict)


def check_file(file: SourceFile, former: Checked | None = None) -> Checked:
    """Check a file. Documents that are the same as in its `former` state, and in the same place, give the identical
    objects."""
    objects: dict[Span, tuple[_Part, int, int]] = {}
    diagnostics: list[Diagnostic] = []
    told: list[Told] = []
    broken: list[FileParts] = []
    ports = 0
    documents = parse_briefly(file.name, file.text, file.lines)
    is_sound = documents is not None and all(map(schema.fits, documents))
    if documents is None or not is_sound:
        documents = parse(file.name, file.text, file.lines)
    for document in documents:
        problems = document.diagnostics + (schema.check(document) if document.start and not is_sound else [])
        own_ports = 0 if problems else count_ports(document)
        if ports + own_ports > MAX_PORTS:
            problems = [too_many(document.span, "ports")]
        if problems:
            diagnostics += problems
            broken.append(_broken(document))
            continue
        ports += own_ports
        part = _same(document, former) if former else None
        part = part or _part(build(document))
        objects[document.span] = part, document.begin, document.begin + len(document.text)
        told += findings(part)
    if len(diagnostics) > MAX_SHOWN:
        diagnostics = list(in_order(diagnostics)[:MAX_SHOWN])
        message = f"this file has more problems than these {MAX_SHOWN}"
        diagnostics.append(Diagnostic(Severity.ERROR, "too-many-problems", message, Span(file.name, 0)))
    parts = _parts([part for part, _, _ in objects.values()], broken)
    endpoints = sum(len(members.numbers) for members in parts.pools)
    located: dict[tuple[Span, DocumentPath], tuple[Span, int]] = {}
    diagnostics += locate(file, told, located)
    return Checked(file, parts, {} if broken else objects, tuple(diagnostics), ports, endpoints, located)


def locate(
    file: SourceFile, found: Sequence[Told], located: dict[tuple[Span, DocumentPath], tuple[Span, int]]
) -> list[Diagnostic]:
    """Give findings in a file the places of the keys and values that they are about. Places are not kept, since a tree
    of 100,000 endpoints has a million of them: the few files with findings are parsed once more. `located` remembers
    the places that were asked for."""
    documents: dict[Span, Document] = {}
    diagnostics = []
    for rule, finding in found:
        place = (finding.span, finding.path)
        if place not in located:
            documents = documents or {d.span: d for d in parse(file.name, file.text, file.lines) if d.start}
            document = documents[finding.span]
            located[place] = document.extent_of(document.value_at(finding.path))
        span, length = located[place]
        diagnostics.append(Diagnostic(rule.severity, rule.name, finding.message, span, finding.hint, length))
    return diagnostics


def too_many(span: Span, what: str) -> Diagnostic:
    owners, most = ("services", MAX_PORTS) if what == "ports" else ("pools", MAX_ENDPOINTS)
    message = f"with these, all {owners} together have more than {most} {what}"
    rule = "too-many-ports" if what == "ports" else "source-too-large"
    return Diagnostic(Severity.ERROR, rule, message, span, "leave some out")


def _part(item: Object) -> _Part:
    return Members.of(item) if isinstance(item, Pool) else item


def _same(document: Document, former: Checked) -> _Part | None:
    """What the same text in the same place gave before."""
    part, begin, end = former.objects.get(document.span, (None, 0, 0))
    is_same = end - begin == len(document.text) and former.file.text.startswith(document.text, begin)
    return part if part and is_same and not (document.lines or former.file.lines) else None


def _parts(parts: Sequence[_Part], broken: Sequence[FileParts]) -> FileParts:
    services = tuple(part for part in parts if isinstance(part, Service))
    groups: dict[tuple[Labels, Mode], list[Service]] = {}
    for service in services:
        groups.setdefault((service.node_selector, service.mode), []).append(service)
    return FileParts(
        services,
        tuple(part for part in parts if isinstance(part, Members)),
        tuple(part for part in parts if isinstance(part, Node)),
        {key: Need.of(group) for key, group in groups.items()},
        frozenset[tuple[str, str]]().union(*(document.declared for document in broken)),
        frozenset[str]().union(*(document.named for document in broken)),
        any(document.is_unread for document in broken),
    )


def _broken(document: Document) -> FileParts:
    """The names in a document with errors. If it is no YAML, every word in it counts as a name; if it is too long to
    be searched for names, it may declare and name anything."""
    if document.start is None and len(document.text) > schema.MAX_SEARCHED:
        return FileParts(is_unread=True)
    root = document.root if isinstance(document.root, Map) else Map()
    kind, metadata = root.get("kind"), root.get("metadata")
    name = metadata.get("name") if isinstance(metadata, Map) else None
    words = frozenset(re.findall("[a-z0-9-]+", document.text))
    kinds = [kind] if kind in schema.KINDS else schema.KINDS
    names = [name] if isinstance(name, str) else words
    return FileParts(declared=frozenset(itertools.product(kinds, names)), named=words)
