# SPDX-License-Identifier: Apache-2.0
"""Rules: functions from a part of the manifests to findings, each with the stable name that users see.

`@rule` says of which part: of a single object, of something that joins several (a pool with the services that use it,
a VIP with all its services), or of the whole draft. A rule of a part sees nothing else, so its findings hold until
that part changes, and are remembered until then: rules run whenever somebody saves a file, over 10,000 services and
100,000 endpoints. A rule of the whole draft runs each time, so it goes by what the draft counts and sorts beforehand.

The docstring of a rule becomes its text in the documentation: what it means, why that hurts, the way out.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

from reconciler.config.diagnostic import Severity, quote
from reconciler.config.document import Path
from reconciler.model import Node, Pool, Service
from reconciler.resource import Span

MAX_RIVALS = 20
"""The other objects that one object is told of by a rule."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Finding:
    """A problem with the document that begins at `span`, at a path inside of it. If a key of the path was left
    out, the problem is shown at the mapping that lacks it.

    If it is about another object, too, `rival` is the place of that one. Two objects may meet at several parts, say
    two VIPs; then the finding of the least `rank` is told.
    """

    span: Span
    path: Path
    message: str
    hint: str = ""
    rival: Span | None = None
    rank: int = 0


@dataclass(frozen=True, slots=True)
class Rule:
    """`text` is for the documentation, in Markdown: what the rule means, why that hurts, the way out."""

    name: str
    severity: Severity
    text: str


Told = tuple[Rule, Finding]

RULES: dict[str, Rule] = {}

_Find = Callable[[T], Iterator[Finding]]
_FINDS: dict[type, list[tuple[Rule, Callable[[Any], Iterable[Finding]]]]] = {}
"""The functions of all rules, by the type of the part that they are about."""


def rule(name: str, of: type[T], severity: Severity = Severity.ERROR) -> Callable[[_Find[T]], _Find[T]]:
    """Make a function a rule, given the type of its argument."""

    def register(find: _Find[T]) -> _Find[T]:
        assert name not in RULES, name
        RULES[name] = Rule(name, severity, inspect.cleandoc(find.__doc__ or ""))
        return also(name, of)(find)

    return register


def also(name: str, of: type[T]) -> Callable[[_Find[T]], _Find[T]]:
    """Make a function a rule that exists already for another part of the manifests."""

    def register(find: _Find[T]) -> _Find[T]:
        _FINDS.setdefault(of, []).append((RULES[name], find))
        return find

    return register


def findings(part: object) -> list[Told]:
    """What the rules of a part find in it."""
    return [(each, finding) for each, find in _FINDS.get(type(part), ()) for finding in find(part)]


def title(item: Service | Pool | Node) -> str:
    return f"{type(item).__name__} {quote(item.name)}"


def place(item: Service | Pool | Node) -> tuple[str, int, int]:
    """The place of a document, by which documents are sorted. Several that one loop of a template makes have the same
    line in it."""
    span = item.span
    return span.file, span.rendered_line or span.line, span.column


def vip_path(service: Service, index: int = 0) -> Path:
    """The path of a VIP of a service."""
    return ("spec", "vips", index) if "vips" in service.places else ("spec", "vip")


def key_path(item: Service | Node, key: str) -> Path:
    """The path of a key of `spec`; if it was left out, of the document's name, so that there is a place to show."""
    return ("spec", key) if key in item.places else ("metadata", "name")


def more(count: int, noun: str) -> str:
    """The end of a message that names one thing of `count` with the same problem."""
    if count <= 1:
        return ""
    return f" (and {count - 1:,} more {noun}{'' if count == 2 else 's'})"
