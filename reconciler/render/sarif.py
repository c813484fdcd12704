# SPDX-License-Identifier: Apache-2.0
"""Diagnostics as SARIF 2.1.0, which code scanning reads (OASIS, Static Analysis Results Interchange Format)."""

from __future__ import annotations

import json
from collections.abc import Iterable
from importlib import metadata
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import quote

from reconciler.config.catalogue import About, about_rules
from reconciler.config.diagnostic import Diagnostic

_SCHEMA = "https://json.schemastore.org/sarif-2.1.0.json"
_ROOT = "%SRCROOT%"
"""The root of the repository, as GitHub calls it; names of files are relative to it."""

Json = dict[str, Any]


def render_sarif(diagnostics: Iterable[Diagnostic]) -> str:
    """One run, with all rules and a result for each problem."""
    rules = about_rules()
    numbers = {name: number for number, name in enumerate(rules)}
    version, documentation = _package()
    driver: Json = {"name": "lbctl"}
    if version:
        driver["version"] = version
    driver["rules"] = [_rule(name, about, documentation) for name, about in rules.items()]
    run = {
        "tool": {"driver": driver},
        "columnKind": "unicodeCodePoints",
        "results": [_result(diagnostic, numbers) for diagnostic in diagnostics],
    }
    return json.dumps({"$schema": _SCHEMA, "version": "2.1.0", "runs": [run]}, indent=2, ensure_ascii=False)


def _rule(name: str, about: About, documentation: str) -> Json:
    rule: Json = {
        "id": name,
        "shortDescription": {"text": about.meaning},
        "help": {"text": about.text, "markdown": about.text},
        "defaultConfiguration": {"level": about.severity.value},
    }
    if documentation:
        rule["helpUri"] = f"{documentation}#{name}"
    return rule


def _result(diagnostic: Diagnostic, numbers: dict[str, int]) -> Json:
    span = diagnostic.span
    place: Json = {"artifactLocation": _file(span.file)}
    if span.line:
        place["region"] = {
            "startLine": span.line,
            "startColumn": span.column,
            "endColumn": span.column + diagnostic.length,
        }
    text = "\n".join(filter(None, (diagnostic.message, diagnostic.hint and f"hint: {diagnostic.hint}")))
    result: Json = {
        "ruleId": diagnostic.rule,
        "level": diagnostic.severity.value,
        "message": {"text": text},
        "locations": [{"physicalLocation": place}],
    }
    if diagnostic.rule in numbers:
        result["ruleIndex"] = numbers[diagnostic.rule]
    return result


def _file(name: str) -> Json:
    if name.startswith("/"):
        return {"uri": PurePosixPath(name).as_uri()}
    return {"uri": quote(name), "uriBaseId": _ROOT}


def _package() -> tuple[str, str]:
    """The version of lbctl, and where its rules are documented; "" if unknown."""
    try:
        about = metadata.metadata("lbctl")
    except metadata.PackageNotFoundError:  # a checkout that is not installed
        return "", ""
    urls = dict(url.split(", ", 1) for url in about.get_all("Project-URL") or ())
    return about["Version"], urls.get("Rules", "")
