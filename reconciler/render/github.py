# SPDX-License-Identifier: Apache-2.0
"""Diagnostics as workflow commands: GitHub shows each on its line of the changed file.

https://docs.github.com/actions/reference/workflow-commands-for-github-actions
"""

from __future__ import annotations

from collections.abc import Iterable

from reconciler.config.diagnostic import Diagnostic
from reconciler.safe import line

_DATA = {"%": "%25", "\r": "%0D", "\n": "%0A"}
_IN_TEXT = str.maketrans(_DATA)
_IN_PROPERTY = str.maketrans({**_DATA, ":": "%3A", ",": "%2C"})


def render_github(diagnostics: Iterable[Diagnostic]) -> str:
    """A line for each problem. Names of files have to be relative to the root of the repository."""
    return "\n".join(map(_command, diagnostics))


def _command(diagnostic: Diagnostic) -> str:
    span = diagnostic.span
    properties = {"file": line(span.file)}
    if span.line:
        end = span.column + diagnostic.length
        properties |= {"line": str(span.line), "col": str(span.column), "endColumn": str(end)}
    properties["title"] = diagnostic.rule
    written = ",".join(f"{name}={value.translate(_IN_PROPERTY)}" for name, value in properties.items())
    text = "\n".join(filter(None, (diagnostic.message, diagnostic.hint and f"hint: {diagnostic.hint}")))
    return f"::{diagnostic.severity} {written}::{line(text.translate(_IN_TEXT))}"
