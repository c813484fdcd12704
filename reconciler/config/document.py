# SPDX-License-Identifier: Apache-2.0
"""YAML to plain data, with the place of each key and value.

A small and unsurprising part of YAML: mappings with text keys, lists, text, numbers, true, false, null. Plain
scalars are read as YAML 1.2 does (`yes`, `010` and `1:30` are text). Anchors, aliases, merge keys and tags are
refused, since with them a line of a diff doesn't show everything that changes.
An error ends its document only: reading goes on at the next `---`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from operator import itemgetter
from typing import Any, Protocol

from yaml._yaml import CParser
from yaml.error import YAMLError
from yaml.events import (
    DocumentEndEvent,
    DocumentStartEvent,
    MappingEndEvent,
    MappingStartEvent,
    ScalarEvent,
    SequenceEndEvent,
    StreamEndEvent,
)

from reconciler.config.diagnostic import Diagnostic, Severity, line_and_column, quote
from reconciler.config.syntax import Refusal, conflict, explain, of_template
from reconciler.resource import Span

Event = Any  # an event of PyYAML's parser, whose stubs deny it the marks that it has

MAX_DEPTH = 32
MAX_EVENTS = 1_200_000  # of a file, some 400 bytes each; 100,000 endpoints with all keys take a million
MAX_BROKEN = 20  # documents of a file, after which the rest is not read
MAX_DUPLICATES = 20  # keys of a document, after which no more are reported
BRIEF_DEPTH = 3  # to which places are known of documents that are read briefly: an item of a list in `spec`

_ENVELOPE = ("apiVersion", "kind")  # keys that each document has
_NEXT_DOCUMENT = re.compile(r"^---(?=\s|$)", re.MULTILINE)
# Characters that libyaml refuses, and the directive that takes it quadratic time.
_FORBIDDEN = re.compile("[^\t\n\r\x20-\x7e\x85\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]|^%TAG", re.MULTILINE)
_NUMBER = re.compile(r"[-+]?(?:(?:0|[1-9][0-9]*)(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][-+]?[0-9]+)?")
_NUMBER_STARTS = frozenset("0123456789+-.")
_CONSTANTS = {"true": True, "false": False, "null": None, "~": None, "": None}


class Map(dict[str, Any]):
    """A mapping; `events` holds the parser's events of each key and its value, with their places."""

    __slots__ = ("events",)

    def __init__(self) -> None:
        self.events: dict[str, tuple[Event, Event]] = {}


class Seq(list[Any]):
    """A list; `events` holds the parser's event of each item."""

    __slots__ = ("events",)

    def __init__(self) -> None:
        self.events: list[Event] = []


class Picker(Protocol):
    """A step of a path that finds an item of a list by its content."""

    def pick(self, items: Any) -> int: ...


Path = tuple[str | int | Picker, ...]


@dataclass(slots=True)
class Document:
    """One YAML document. `start` is None if it could not be read; `diagnostics` are about its YAML only. `begin` is
    the place of its `text` in the file, if no document before it is broken. `lines`: see `SourceFile.lines`."""

    file: str
    lines: Sequence[int] = ()
    text: str = ""
    begin: int = 0
    root: Any = None
    start: Event | None = None
    diagnostics: list[Diagnostic] = field(default_factory=list)

    @property
    def span(self) -> Span:
        return self.span_of(self.value_at(()))

    def value_at(self, path: Path) -> Event:
        """The event of the value at `path`; if there is none, of the last value on the way to it."""
        return self._walk(path)[1]

    def key_at(self, path: Path) -> Event:
        """The event of the key at `path`; an item of a list has none and stands for itself."""
        return self._walk(path)[0]

    def span_of(self, event: Event) -> Span:
        return _span(self.file, self.lines, event.start_mark.line + 1, event.start_mark.column + 1)

    def spans_of(self, events: Sequence[Event]) -> list[Span]:
        """As `span_of`, for many."""
        if self.lines:
            return [self.span_of(event) for event in events]
        marks = [event.start_mark for event in events]
        return [Span(self.file, mark.line + 1, mark.column + 1) for mark in marks]

    def extent_of(self, event: Event) -> tuple[Span, int]:
        """The place where an event begins, and how many characters of that line it takes."""
        start, end = event.start_mark, event.end_mark
        return self.span_of(event), max(1, end.column - start.column if end.line == start.line else 1)

    def problem(self, at: Event, rule: str, message: str, hint: str = "") -> Diagnostic:
        """An error about what an event stands for."""
        span, length = self.extent_of(at)
        return Diagnostic(Severity.ERROR, rule, message, span, hint, length)

    def _walk(self, path: Path) -> tuple[Event, Event]:
        assert self.start is not None
        node, key, value = self.root, self.start, self.start
        for step in path:
            if isinstance(node, Seq):
                index: Any = step if isinstance(step, int) else step.pick(node)  # type: ignore[union-attr]
                key = value = node.events[index]
            elif isinstance(node, Map) and step in node:
                index = step
                key, value = node.events[index]
            else:
                break
            node = node[index]
        return key, value


def _span(file: str, lines: Sequence[int], line: int, column: int) -> Span:
    return Span(file, lines[line - 1], column, line) if lines else Span(file, line, column)


def parse_briefly(file: str, text: str, lines: Sequence[int] = ()) -> list[Document] | None:
    """As `parse`, in two thirds of the time and a fraction of the memory; None if anything is wrong. Places are known
    down to BRIEF_DEPTH, below are plain dictionaries and lists."""
    documents: list[Document] = []
    if _FORBIDDEN.search(text) or conflict(text):
        return None
    _parse_until_error(file, lines, text, documents, MAX_EVENTS, BRIEF_DEPTH)
    is_fine = all(document.start is not None and not document.diagnostics for document in documents)
    return documents if is_fine else None


def parse(file: str, text: str, lines: Sequence[int] = ()) -> list[Document]:
    """The documents of a file that are not empty, in order. `lines`: see `SourceFile.lines`. Raises nothing."""
    if forbidden := _FORBIDDEN.search(text):
        rule, message = "yaml-syntax", f"the character U+{ord(forbidden[0][0]):04X} can't stand in YAML"
        if forbidden[0] == "%TAG":
            rule, message = "yaml-tag", "tags are not part of the manifest language"
        return [_broken(file, lines, text, text, Refusal(rule, message, "remove it", forbidden.start()))]
    if refusal := conflict(text):
        return [_broken(file, lines, text, text, refusal)]
    documents: list[Document] = []
    rest, left = text, MAX_EVENTS
    for _ in range(MAX_BROKEN):
        rest, left = _parse_until_error(file, lines, rest, documents, left)
        if not rest:
            return documents
    message = f"this file has {MAX_BROKEN} broken documents; the rest of it was not read"
    begin = len(rest) - len(rest.lstrip("\n"))
    refusal = Refusal("yaml-syntax", message, "repair the others first", begin)
    documents.append(_broken(file, lines, rest, rest, refusal))
    return documents


def _parse_until_error(
    file: str, lines: Sequence[int], text: str, documents: list[Document], most: int, depth: int = MAX_DEPTH + 1
) -> tuple[str, int]:
    """Add the documents before the first broken one, and that one, reading at most `most` events and keeping those
    down to a `depth`. Returns the text after it, with its line numbers, and how many events are left for it."""
    begin = len(text) - len(text.lstrip("\n"))
    left = iter(range(most, 0, -1))
    try:
        # `left` comes first, so zip asks the parser for no event more than allowed. No Python code runs for an event.
        both = zip(left, iter(CParser(text).get_event, None), strict=False)
        events: Iterator[Event] = map(itemgetter(1), both)
        for event in events:
            kind = type(event)
            if kind is DocumentStartEvent:
                begin = event.start_mark.index
                document = Document(file, lines)
                event = _fill(document, event, events, depth)
            elif kind is DocumentEndEvent and document.start is not None:
                document.text, document.begin = text[begin : event.end_mark.index], begin
                documents.append(document)
        if type(event) is not StreamEndEvent:
            raise Refusal.at(event, "source-too-large", "this file holds too many values", "split it", final=True)
    except (YAMLError, Refusal) as error:
        refusal = error if isinstance(error, Refusal) else explain(error, text)
        if not lines:
            refusal = of_template(refusal, text, file)
        following = None if refusal.final else _NEXT_DOCUMENT.search(text, max(refusal.offset, begin + 1))
        end = following.start() if following else len(text)
        end = end if refusal.resume is None else refusal.resume
        documents.append(_broken(file, lines, text[begin:end], text, refusal))
        if end < len(text):
            return "\n" * (line_and_column(text, end)[0] - 1) + text[end:], next(left, 0)
    return "", 0


def _broken(file: str, lines: Sequence[int], own_text: str, text: str, refusal: Refusal) -> Document:
    offset = min(refusal.offset, len(text.rstrip()))
    span = _span(file, lines, *line_and_column(text, offset))
    diagnostic = Diagnostic(Severity.ERROR, refusal.rule, refusal.message, span, refusal.hint, max(1, refusal.length))
    return Document(file, lines, own_text, diagnostics=[diagnostic])


def _number(text: str) -> int | float | str:
    """The number of a plain scalar, else its text. 1e3 and 80.0 are integers, too."""
    if len(text) <= 15 and text.isdecimal() and text.isascii() and (text[0] != "0" or len(text) == 1):
        return int(text)
    if not _NUMBER.fullmatch(text):
        return text
    if len(text) <= 15 and text.lstrip("+-").isdigit():
        return int(text)
    number = float(text)
    if number.is_integer() and abs(number) < 2**53:
        return int(number)
    return number if math.isfinite(number) else text


def _duplicate(document: Document, container: Map, name: str, key: Event) -> Diagnostic:
    first = document.span_of(container.events[name][0])
    return document.problem(
        key, "duplicate-key", f"duplicate key {quote(name)}: it is on line {first.line} already", "remove one of them"
    )


def _fill(document: Document, event: Any, events: Iterator[Any], depth: int) -> Event:
    """Read the value of one document, whose start event has been read, and keep events down to a `depth`. Returns the
    last event of the value, or the last event that there was. Raises Refusal and YAMLError.

    This loop runs once for each value of a large tree, so it is written for speed: one level, no calls.
    """
    top = Seq()  # the root is read as an item of this list
    container: Any = top
    kept: Any = top.events  # the events of the container; None if they are not kept
    is_list = True
    stack: list[Any] = []
    key: Event | None = None
    name = ""
    for event in events:
        kind = type(event)
        if kind is MappingEndEvent or kind is SequenceEndEvent:
            container, kept, is_list = stack.pop()
            if container is top:
                break
            continue
        if event.anchor is not None:  # an anchor, or an alias of one
            raise Refusal.at(event, "yaml-anchor", "anchors and aliases are not part of the manifest language",
                             "write the value out: a diff should show all that it changes")  # fmt: skip
        if event.tag is not None:
            raise Refusal.at(event, "yaml-tag", "tags are not part of the manifest language",
                             "remove the tag; quotes make a text")  # fmt: skip
        value: Any
        if kind is ScalarEvent:
            value = event.value
            if event.implicit[0]:  # plain, without quotes
                value = _number(value) if value[:1] in _NUMBER_STARTS else _CONSTANTS.get(value, value)
        elif len(stack) == MAX_DEPTH:
            raise Refusal.at(event, "yaml-depth", f"this is nested more than {MAX_DEPTH} levels deep")
        elif len(stack) < depth:
            value = Map() if kind is MappingStartEvent else Seq()
        else:
            value = {} if kind is MappingStartEvent else []
        if is_list:
            container.append(value)
            if kept is not None:
                kept.append(event)
        elif key is None:
            if kind is not ScalarEvent:
                raise Refusal.at(event, "yaml-key", "a key can only be a text",
                                 "put a value that begins with '{' or '[' in quotes")  # fmt: skip
            key, name = event, event.value
            if name == "<<" and event.implicit[0]:
                raise Refusal.at(event, "yaml-anchor", "merge keys are not part of the manifest language",
                                 "write the values out: a diff should show all that it changes")  # fmt: skip
            continue
        else:
            if name not in container:
                container[name] = value
                if kept is not None:
                    kept[name] = (key, event)
            elif kept is None:
                raise Refusal.at(key, "duplicate-key", "its place is not known, as the file is read briefly")
            elif name in _ENVELOPE and len(stack) == 1 and not key.start_mark.column:
                raise Refusal.at(key, "missing-separator",
                                 f"another document begins here, with a second {quote(name)}",
                                 "write a line `---` above it, or remove the key",
                                 resume=key.start_mark.index)  # fmt: skip
            elif len(document.diagnostics) < MAX_DUPLICATES:
                document.diagnostics.append(_duplicate(document, container, name, key))
            key = None
        if kind is not ScalarEvent:
            stack.append((container, kept, is_list))
            container, is_list = value, kind is not MappingStartEvent
            kept = value.events if len(stack) <= depth else None
        elif container is top:
            break
    else:
        return event
    document.root = top[0]
    if document.root is not None or event.value:
        document.start = top.events[0]
    return event
