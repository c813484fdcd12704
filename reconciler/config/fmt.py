# SPDX-License-Identifier: Apache-2.0
"""The canonical form of manifests: what `lbctl fmt` writes.

Keys in the order of the schema, two spaces a level, `---` between documents, quotes only where a value would be
no text without them, `{…}` and `[…]` as long as they fit on their line. Comments stay with their keys and items,
and single empty lines stay. Formatting twice changes nothing more, and the meaning never changes.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache

from yaml._yaml import CParser
from yaml.error import YAMLError
from yaml.events import ScalarEvent
from yaml.nodes import ScalarNode
from yaml.resolver import Resolver

from reconciler.config.commented import Comment, Entry, Event, Node, Page, read
from reconciler.config.diagnostic import Diagnostic
from reconciler.config.document import Document, Map, parse
from reconciler.config.schema import KINDS
from reconciler.config.shape import ITEM, Place, keys_at
from reconciler.config.source import SourceFile

WIDTH = 100
"""How long a line with brackets may be; longer ones become a line for each entry."""

_ENVELOPE = ("apiVersion", "kind", "metadata", "spec")
_INDENT = 2
_BREAK = "\n"
_ALWAYS_PLAIN = re.compile(r"[A-Za-z0-9_/][A-Za-z0-9_./-]*")
_TEXT_TAG = "tag:yaml.org,2002:str"
_NO_TEXT = re.compile("0o[0-7]+|[yYnN]")  # texts to PyYAML's resolver, but not to every reader of YAML


def canonical(file: SourceFile) -> tuple[str, list[Diagnostic]]:
    """The canonical form of a file; or its text as it is, with the problems that keep it from being read."""
    text = file.text.replace("\r\n", "\n").replace("\r", "\n")
    documents = parse(file.name, text)
    if problems := [problem for document in documents for problem in document.diagnostics]:
        return file.text, problems
    pages, comments = read(text)
    told = _all_comments(pages, comments)
    kinds = (document.root.get("kind") if isinstance(document.root, Map) else None for document in documents)
    blocks = ["\n".join(_page(page, kind if kind in KINDS else "")) for page, kind in zip(pages, kinds, strict=True)]
    if not pages:
        blocks = ["\n".join(_comments(comments, 0, first=True))]
    form = "\n---\n".join(blocks) + "\n" if any(blocks) else ""
    if _meaning(parse("", form)) != _meaning(documents) or _all_comments_in(form) != told:
        raise AssertionError(f"the canonical form of {file.name} would mean something else")
    return form, []


def _meaning(documents: Iterable[Document]) -> list[str]:
    return [json.dumps(document.root, sort_keys=True) for document in documents]


def _all_comments_in(text: str) -> Counter[str]:
    return _all_comments(*read(text)) if "#" in text else Counter()  # to read takes most of the time


def _all_comments(pages: Iterable[Page], others: Iterable[Comment]) -> Counter[str]:
    found = Counter(comment.text for comment in others)
    for page in pages:
        found.update(comment.text for comment in (*_comments_in(page.entry), *page.below))
    return found


def _comments_in(entry: Entry) -> Iterator[Comment]:
    yield from entry.above
    yield from entry.behind
    for inner in entry.node.entries:
        yield from _comments_in(inner)
    yield from entry.node.below


def _page(page: Page, kind: str) -> list[str]:
    entry, place = page.entry, (kind,)
    above, behind = entry.above, entry.behind
    inline = _inline(entry.node, WIDTH, place)
    if inline is None:
        above, behind = above + behind, []
        lines = _entries(entry.node, 0, place)
    else:
        above, behind = above + behind[:-1], behind[-1:]
        lines = [_with_comment(inline, behind)]
    head = _comments(above, 0, first=True)
    gap = [""] if head and entry.spaced else []
    return [*head, *gap, *lines, *_comments(page.below, 0)]


def _entries(node: Node, indent: int, place: Place) -> list[str]:
    """A line or more for each entry of a list or mapping, and its last comments."""
    entries = node.entries
    if node.is_mapping:
        order = _order(place)
        entries = sorted(entries, key=lambda entry: order.get(_key_text(entry), len(order)))
    lines: list[str] = []
    for entry in entries:
        step = ITEM if entry.key is None else _key_text(entry)
        lines += _entry(entry, indent, (*place, step), first=not lines)
    return lines + _comments(node.below, indent)


def _entry(entry: Entry, indent: int, place: Place, *, first: bool) -> list[str]:
    label = "-" if entry.key is None else f"{_key(entry.key, flow=False)}:"
    above, behind, spaced = entry.above, entry.behind, entry.spaced
    pad = " " * indent
    inline = _inline(entry.node, WIDTH - indent - len(label) - 1, place)
    if inline is not None:
        lines = [f"{pad}{label} {inline}".rstrip(" ")]
    elif entry.node.is_scalar:
        value = entry.node.event.value
        inner = " " * (indent + _INDENT)
        lines = [f"{pad}{label} |{'' if value.endswith(_BREAK) else '-'}"]
        lines += [f"{inner}{line}".rstrip(" ") for line in value.removesuffix(_BREAK).split(_BREAK)]
    elif entry.key is not None:
        lines = [pad + label, *_entries(entry.node, indent + _INDENT, place)]
    else:
        # The first key stands right of the dash, where no comment can be above it: its comments go above the dash.
        lines = _entries(entry.node, indent + _INDENT, place)
        behind, moved = [], behind
        while not lines[0] or lines[0].lstrip(" ").startswith("#"):
            line = lines.pop(0).lstrip(" ")
            moved = [*moved, Comment(line)] if line else moved
        lines[0] = f"{pad}- {lines[0].lstrip(' ')}"
        if moved and not above:
            moved[0].spaced, spaced = spaced, False
        above = above + moved
    above, behind = above + behind[:-1], behind[-1:]
    lines[0] = _with_comment(lines[0], behind)
    head = _comments(above, indent, first=first)
    gap = [""] if spaced and not (first and not head) else []
    return [*head, *gap, *lines]


def _comments(comments: Iterable[Comment], indent: int, *, first: bool = False) -> list[str]:
    lines: list[str] = []
    for comment in comments:
        lines += [""] if comment.spaced and not (first and not lines) else []
        lines.append(" " * indent + comment.text)
    return lines


def _with_comment(line: str, behind: list[Comment]) -> str:
    """A comment keeps its column where there is room for it, so that aligned ones stay aligned."""
    if not behind:
        return line
    return f"{line:<{max(len(line) + 2, behind[0].column)}}{behind[0].text}"


def _inline(node: Node, room: int, place: Place) -> str | None:
    """A value on one line; None if it needs several."""
    if node.is_scalar:
        return None if _is_literal(node.event, place) else _scalar(node.event, flow=False)
    if node.is_block or any(_has_comments(entry) for entry in node.entries) or node.below:
        return None
    text = _flow(node, place)
    return text if len(text) <= room or not node.entries else None


def _has_comments(entry: Entry) -> bool:
    return next(_comments_in(entry), None) is not None


def _flow(node: Node, place: Place) -> str:
    if node.is_scalar:
        return _scalar(node.event, flow=True) or "null"
    if not node.is_mapping:
        return f"[{', '.join(_flow(entry.node, (*place, ITEM)) for entry in node.entries)}]"
    order = _order(place)
    entries = sorted(node.entries, key=lambda entry: order.get(_key_text(entry), len(order)))
    items = (f"{_key(e.key, flow=True)}: {_flow(e.node, (*place, _key_text(e)))}" for e in entries)
    return f"{{{', '.join(items)}}}"


def _key_text(entry: Entry) -> str:
    return str(entry.key.value) if entry.key is not None else ""


def _is_literal(event: Event, place: Place) -> bool:
    """Whether a text of several lines was written as a block, and can be again."""
    text = event.value
    if event.style not in ("|", ">") or "\n" not in text.rstrip("\n") or len(place) == 1:
        return False
    lines = text.removesuffix("\n").split("\n")
    plain_lines = all(line == line.rstrip() and line.isprintable() for line in lines)
    return plain_lines and bool(lines[0] and lines[-1]) and lines[0][0] != " "


def _key(event: Event, *, flow: bool) -> str:
    return _scalar(event, flow=flow) or '""'


def _scalar(event: Event, *, flow: bool) -> str:
    return _written(event.value, is_plain=event.implicit[0], flow=flow)


@lru_cache(maxsize=1 << 16)
def _written(text: str, *, is_plain: bool, flow: bool) -> str:
    """A scalar as it is written. Quotes are taken off only where every reader of YAML still sees a text."""
    if is_plain and not text:
        return ""
    if (is_plain or _is_text(text)) and (_ALWAYS_PLAIN.fullmatch(text) or _can_be_plain(text, flow=flow)):
        return text
    if ('"' in text or "\\" in text) and text.isprintable():
        return "'" + text.replace("'", "''") + "'"
    return f'"{"".join(map(_in_quotes, text))}"'


def _in_quotes(character: str) -> str:
    if character.isprintable() and character not in '"\\':
        return character
    return json.dumps(character)[1:-1] if character <= "\uffff" else f"\\U{ord(character):08x}"


def _is_text(text: str) -> bool:
    """Whether a scalar without quotes is still a text, both to lbctl and to readers of YAML 1.1."""
    tag = Resolver().resolve(ScalarNode, text, (True, False))  # type: ignore[no-untyped-call]
    if tag != _TEXT_TAG or _NO_TEXT.fullmatch(text) or not text.isprintable():
        return False
    return [document.root for document in parse("", f"k: {text}\n")] == [{"k": text}]


def _can_be_plain(text: str, *, flow: bool) -> bool:
    """Whether the parser reads a text back unchanged if it has no quotes."""
    if text.startswith(("---", "...")) or "\n" in text:
        return False
    sample = f"[{text}, {{{text}: {text}}}, {text}]" if flow else f"{text}: {text}\n"
    try:
        events = list(iter(CParser(sample).get_event, None))
    except YAMLError:
        return False
    found = [event.value for event in events if isinstance(event, ScalarEvent) and event.implicit[0]]
    return found == [text] * (4 if flow else 2) and len(events) == (12 if flow else 8)


@lru_cache(maxsize=4096)
def _order(place: Place) -> Mapping[str, int]:
    """The keys of a mapping as their schema lists them."""
    envelope = _ENVELOPE if len(place) == 1 else ()
    return {name: i for i, name in enumerate(keys_at(place) if place[0] else envelope)}
