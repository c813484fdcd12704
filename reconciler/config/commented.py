# SPDX-License-Identifier: Apache-2.0
"""YAML with its comments: a tree in which every comment and empty line belongs to a key or an item.

The parser tells the place of each token; between two tokens there are only indicators, space and comments. A comment
on a line of its own belongs to the next key or item, unless its indentation puts it at the end of a list or mapping
that has just ended. A comment at the end of a line belongs to the key or item on it. Only for texts that
`document.parse` reads without a diagnostic.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from yaml._yaml import CParser
from yaml.events import (
    DocumentEndEvent,
    DocumentStartEvent,
    MappingEndEvent,
    MappingStartEvent,
    ScalarEvent,
    SequenceEndEvent,
    StreamEndEvent,
)

Event = Any  # an event of PyYAML's parser, whose stubs deny it the marks that it has

_COMMENT = re.compile("#[^\n\x85\u2028\u2029]*")


@dataclass(slots=True, eq=False)
class Comment:
    """`column` counts from 0; `spaced`: there is an empty line above."""

    text: str
    column: int = 0
    spaced: bool = False


@dataclass(slots=True, eq=False)
class Node:
    """A scalar, list or mapping. `below` are the comments at the end of a list or mapping."""

    event: Event
    entries: list[Entry] = field(default_factory=list)
    below: list[Comment] = field(default_factory=list)

    @property
    def is_scalar(self) -> bool:
        return isinstance(self.event, ScalarEvent)

    @property
    def is_mapping(self) -> bool:
        return isinstance(self.event, MappingStartEvent)

    @property
    def is_block(self) -> bool:
        """Whether it is a list or mapping of a line or more for each entry, without brackets."""
        return not self.is_scalar and not self.event.flow_style


@dataclass(slots=True, eq=False)
class Entry:
    """A key with its value, an item of a list (`key` is None), or the value of a document. `spaced`: there is an
    empty line above the first line of it; lines above the first entry don't count."""

    key: Event | None
    node: Node
    above: list[Comment]
    behind: list[Comment] = field(default_factory=list)
    spaced: bool = False


@dataclass(slots=True, eq=False)
class Page:
    """A document; `below` are the comments after its last value."""

    entry: Entry
    below: list[Comment] = field(default_factory=list)


def read(text: str) -> tuple[list[Page], list[Comment]]:
    """The documents that are not empty; and all comments, if there is no such document."""
    reader = _Reader(text)
    return list(reader.pages()), reader.waiting


class _Reader:
    """Walks over the parser's events and the text between them."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.events: Iterator[Event] = iter(CParser(text).get_event, None)
        self.at = 0  # the text before this offset is done
        self.dash = -1  # offset of the last '-' outside of values
        self.open: list[tuple[Node, Entry]] = []  # lists and mappings, and the entries that they are values of
        self.waiting: list[Comment] = []  # comments for the next entry
        self.ended: list[Node] = []  # block lists and mappings that ended since the last token, inner ones first

    def pages(self) -> Iterator[Page]:
        page: Page | None = None
        while not isinstance(event := self._next(), StreamEndEvent):
            if not isinstance(event, DocumentStartEvent):
                continue  # the start of the stream
            event = self._next()
            entry = Entry(None, Node(event), self._take(-1), spaced=self._spaced(event.start_mark.index))
            self.open = [(Node(event, [entry]), entry)]
            self._fill(entry)
            while not isinstance(self._next(), DocumentEndEvent):
                pass
            self.open = []
            below = self._take(-1)
            if isinstance(event, ScalarEvent) and event.implicit[0] and not event.value:  # an empty document
                self.waiting = [*entry.above, *entry.behind, *below, *self.waiting]
                continue
            if page:
                yield page
            page = Page(entry, below)
        if page:
            page.below += self._take(-1)
            yield page

    def _next(self) -> Event:
        event = next(self.events)
        # These events span directives and the marker; comments may stand among them.
        is_marker = isinstance(event, DocumentStartEvent | DocumentEndEvent)
        self._look_at(event.end_mark.index if is_marker else event.start_mark.index)
        self.at = max(self.at, event.end_mark.index)
        return event

    def _look_at(self, end: int) -> None:
        """Take down the comments up to `end`."""
        begin = self.at
        is_none = self.text.find("#", self.at, end) < 0  # as between most tokens
        for found in () if is_none else _COMMENT.finditer(self.text, self.at, end):
            self.dash = max(self.dash, self.text.rfind("-", begin, found.start()))
            begin = found.end()
            line = self._line_start(found.start())
            on_line = self.text[max(line, self.at) : found.start()].strip()
            comment = Comment(found[0].rstrip(), found.start() - line, self._spaced(found.start()))
            if self.text[line : found.start()].strip() and on_line in ("", ":", ","):
                self._behind().append(comment)
            else:
                self.waiting.append(comment)
        self.dash = max(self.dash, self.text.rfind("-", begin, end))
        self.at = max(self.at, end)

    def _behind(self) -> list[Comment]:
        """The list that takes a comment at the end of a line with content."""
        if not self.open:  # after a marker
            return self.waiting
        node, owner = self.open[-1]
        if node.entries:
            return node.entries[-1].behind
        return owner.above if owner.key is None else owner.behind

    def _take(self, column: int) -> list[Comment]:
        """The waiting comments that belong to the entry at `column`. Comments that are indented deeper go to the lists
        and mappings that ended before it."""
        rest, ended = self.waiting, self.ended
        self.waiting, self.ended = [], []
        while rest and rest[0].column > column:
            ended = [node for node in ended if node.event.start_mark.column <= rest[0].column]
            if not ended:
                break
            ended[0].below.append(rest.pop(0))
        return rest

    def _fill(self, entry: Entry) -> None:
        """Read the value of an entry, whose first event has been read."""
        node = entry.node
        if node.is_scalar:
            if node.event.style and node.event.style in "|>":
                header = self.text[node.event.start_mark.index : node.event.end_mark.index].split("\n", 1)[0]
                entry.behind += [Comment(header[header.index("#") :].rstrip())] if "#" in header else []
            return
        self.open.append((node, entry))
        column = node.event.start_mark.column if node.is_block else -1
        while not isinstance(event := self._next(), MappingEndEvent | SequenceEndEvent):
            above = self._take(column)
            if node.is_mapping:
                spaced = bool(node.entries) and self._spaced(event.start_mark.index)
                value = Entry(event, Node(event), above, spaced=spaced)
                node.entries.append(value)
                value.node = Node(self._next())
                if not value.node.is_block:
                    value.above += self._take(-1)
            else:
                begin = self.dash if node.is_block else event.start_mark.index
                spaced = bool(node.entries) and self._spaced(begin)
                value = Entry(None, Node(event), above, spaced=spaced)
                node.entries.append(value)
            self._fill(value)
        self.open.pop()
        if node.is_block:
            self.ended.append(node)
        else:
            (node.below if node.entries else entry.above).extend(self._take(-1))

    def _line_start(self, index: int) -> int:
        return self.text.rfind("\n", 0, index) + 1

    def _spaced(self, index: int) -> bool:
        """Whether the line above that of `index` is empty."""
        line = self._line_start(index)
        return line > 0 and not self.text[self._line_start(line - 1) : line].strip()
