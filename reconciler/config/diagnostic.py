# SPDX-License-Identifier: Apache-2.0
"""Problems of manifests, each with its place and the way out; as text for people and as JSON for machines."""

from __future__ import annotations

import json
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum

from reconciler import safe
from reconciler.resource import Span
from reconciler.safe import some

LINE_BREAK = re.compile("\r\n|[\n\r\x85\u2028\u2029]")  # as YAML 1.1, and so libyaml, has it
_WIDTH = 120
_COLOURS = {"error": "\033[1;31m", "warning": "\033[1;33m", "bold": "\033[1m", "caret": "\033[1;32m"}


class Severity(StrEnum):
    ERROR = "error"
    WARNING = "warning"


@dataclass(frozen=True, slots=True)
class Diagnostic:
    """One problem. `length` counts the characters that it is about; a span on line 0 means the whole file."""

    severity: Severity
    rule: str
    message: str
    span: Span
    hint: str = ""
    length: int = 1


def in_order(diagnostics: Iterable[Diagnostic]) -> tuple[Diagnostic, ...]:
    """Sorted by file, line and column; problems at the same place by their rules."""
    return tuple(sorted(diagnostics, key=_order))


def _order(diagnostic: Diagnostic) -> tuple[str | int, ...]:
    d, span = diagnostic, diagnostic.span  # a comparison of spans takes ten times as long as one of their parts
    return span.file, span.line, span.column, span.rendered_line, d.severity, d.rule, d.message


def render_text(
    diagnostics: Iterable[Diagnostic], texts: Mapping[str, str], *, colour: bool = False, most: int | None = None
) -> str:
    """Each problem with its source line and a caret. `texts` maps the name of a file to its content.

    With `most`, only so many problems are shown, errors first, and of which rules the others are.
    """
    found = list(diagnostics)
    left: list[Diagnostic] = []
    if most is not None and len(found) > most:
        first = sorted(range(len(found)), key=lambda number: found[number].severity is not Severity.ERROR)
        left = [found[number] for number in first[most:]]
        found = [found[number] for number in sorted(first[:most])]
    lines: dict[str, list[str]] = {}
    parts: list[str] = []
    for diagnostic in found:
        file = diagnostic.span.file
        if file not in lines:
            lines[file] = LINE_BREAK.split(texts.get(file, ""))
        parts.extend(_render(diagnostic, lines[file], _COLOURS if colour else {}))
    if left:
        rules = Counter(diagnostic.rule for diagnostic in left).most_common()
        parts.append(f"and {len(left):,} more: {some([f'{count:,} x {rule}' for rule, count in rules])}")
    return "\n".join(parts)


def render_json(diagnostics: Iterable[Diagnostic]) -> str:
    """One JSON object; `line` and `column` count from 1, `end_column` is the one after the last."""
    found = list(diagnostics)
    errors = sum(d.severity is Severity.ERROR for d in found)
    listed = [
        {
            "severity": d.severity.value,
            "rule": d.rule,
            "message": d.message,
            "hint": d.hint,
            "file": d.span.file,
            "line": d.span.line,
            "column": d.span.column,
            "end_column": d.span.column + d.length,
        }
        for d in found
    ]
    document = {
        "format_version": "1.0",
        "valid": not errors,
        "error_count": errors,
        "warning_count": len(found) - errors,
        "diagnostics": listed,
    }
    return json.dumps(document, indent=2, ensure_ascii=False)


def line_and_column(text: str, offset: int) -> tuple[int, int]:
    """Line and column of the character at `offset`, counted from 1."""
    line, start = 1, 0
    for line_break in LINE_BREAK.finditer(text, 0, offset):
        line, start = line + 1, line_break.end()
    return line, offset - start + 1


def quote(value: object) -> str:
    """A value as messages show it: on one line, without control characters, shortened."""
    text = str(value)
    return repr(text if len(text) <= 60 else text[:57] + "...")


def either(words: Iterable[str]) -> str:
    """`a, b or c`."""
    *most, last = words
    return f"{', '.join(most)} or {last}" if most else last


def closest(word: str, candidates: Iterable[str]) -> str | None:
    """The candidate that was probably meant by an unknown word."""
    import difflib  # only a wrong word costs this import

    known = list(candidates)
    close = [name for name in known if name.lower() == word.lower()]
    if not close:
        close = difflib.get_close_matches(word, known, n=1)
    return close[0] if close else None


def did_you_mean(word: str, candidates: Iterable[str]) -> str:
    """A hint with the candidate that was probably meant; empty if there is none."""
    close = closest(word, candidates)
    return f"did you mean {quote(close)}?" if close is not None else ""


def _render(diagnostic: Diagnostic, lines: list[str], colours: Mapping[str, str]) -> Iterator[str]:
    def paint(style: str, text: str) -> str:
        return f"{colours[style]}{text}\033[0m" if colours else text

    span = diagnostic.span
    file = safe.line(span.file)
    place = f"{file}:{span.line}:{span.column}" if span.line else file
    severity = paint(diagnostic.severity, f"{diagnostic.severity}:")
    yield f"{paint('bold', f'{place}:')} {severity} {safe.block(diagnostic.message)} [{diagnostic.rule}]"
    gutter = "    "
    if 1 <= span.line <= len(lines):
        source, pad, width = _excerpt(lines[span.line - 1], span.column - 1, diagnostic.length)
        number = f"{span.line:>4}"
        gutter = " " * len(number)
        yield f"{number} | {source}".rstrip()
        yield f"{gutter} | {pad}{paint('caret', '^' + '~' * (width - 1))}"
    if diagnostic.hint:
        yield f"{gutter}   hint: {safe.block(diagnostic.hint)}"


def _excerpt(line: str, start: int, length: int) -> tuple[str, str, int]:
    """The part of a line that is shown, the text below it left of the caret, and the width of the caret."""
    cut = max(0, start - _WIDTH // 2) if len(line) > _WIDTH else 0
    shown = "".join(c if c.isprintable() or c == "\t" else "\ufffd" for c in line[cut : cut + _WIDTH])
    start -= cut
    pad = "".join("\t" if c == "\t" else " " * _columns(c) for c in shown[:start])
    width = sum(map(_columns, shown[start : start + length]))
    return shown, pad, max(1, width)


def _columns(character: str) -> int:
    """How many columns of a terminal a character takes."""
    if unicodedata.combining(character):
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1
