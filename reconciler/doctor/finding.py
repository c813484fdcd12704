# SPDX-License-Identifier: Apache-2.0
"""One thing that is wrong: what shows it, what comes of it, the way out, and the line of the manifests."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from reconciler.render.style import Style
from reconciler.resource import Span
from reconciler.safe import SHOWN, line

FORMAT_VERSION = 1
"""Of findings in JSON; it changes only if readers must change."""
_LABEL_WIDTH = len("way out: ")
FOUND = 8
"""The exit code of `lbctl doctor` if something is wrong; no error has it."""


@dataclass(frozen=True, slots=True)
class Finding:
    """`name` is the same for all findings of one sort, and stays."""

    name: str
    evidence: str
    consequence: str
    way_out: str
    span: Span | None = None


def as_texts(found: Iterable[Finding], style: Style) -> Iterator[str]:
    """Findings for people; of many of one sort some, and how many more there are."""
    counts: Counter[str] = Counter()
    for finding in found:
        counts[finding.name] += 1
        if counts[finding.name] <= SHOWN:
            yield as_text(finding, style)
    for name, count in counts.items():
        if count > SHOWN:
            yield f"{style.bad(name)}: and {count - SHOWN:,} more; all of them: -o json"


def as_data(found: Finding) -> dict[str, object]:
    place = None if found.span is None else {"file": found.span.file, "line": found.span.line}
    return {
        "name": found.name, "evidence": found.evidence, "consequence": found.consequence, "way_out": found.way_out,
        "place": place,
    }  # fmt: skip


def as_text(found: Finding, style: Style) -> str:
    parts = [("so:", found.consequence), ("way out:", found.way_out)]
    if found.span and found.span.file:
        parts.append(("asked for:", str(found.span)))
    lines = (f"  {label.ljust(_LABEL_WIDTH - 1)} {line(text)}" for label, text in parts)
    below = (style.fitted(each, " " * _LABEL_WIDTH) for each in lines)
    return "\n".join([style.labelled(style.bad, found.name, line(found.evidence)), *below])
