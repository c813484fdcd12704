# SPDX-License-Identifier: Apache-2.0
"""Diagnostics as a JUnit report, which GitLab, Jenkins and others show: each directory a suite, each file a case."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from collections.abc import Collection, Mapping, Sequence

from reconciler.config.diagnostic import Diagnostic, Severity, render_text

_NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def render_junit(
    suites: Mapping[str, tuple[Sequence[Diagnostic], Mapping[str, str]]], failing: Collection[Severity]
) -> str:
    """An XML document. `suites` has the problems and texts of each directory; problems of these severities
    are failures, all others are only mentioned."""
    root = ET.Element("testsuites", name="lbctl validate")
    for title, (diagnostics, texts) in suites.items():
        suite = ET.SubElement(root, "testsuite", name=title)
        for file in sorted({*texts, *(diagnostic.span.file for diagnostic in diagnostics)}):
            own = [diagnostic for diagnostic in diagnostics if diagnostic.span.file == file]
            _case(suite, title, file, own, texts, failing)
        _count(suite)
    _count(root)
    ET.indent(root)
    text = ET.tostring(root, encoding="unicode")
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + _NOT_XML.sub("\ufffd", text)


def _case(
    suite: ET.Element,
    title: str,
    file: str,
    diagnostics: Sequence[Diagnostic],
    texts: Mapping[str, str],
    failing: Collection[Severity],
) -> None:
    case = ET.SubElement(suite, "testcase", classname=title, name=file, file=file)
    failures = [diagnostic for diagnostic in diagnostics if diagnostic.severity in failing]
    if failures:
        first, more = failures[0], len(failures) - 1
        message = f"{first.message} (and {more} more)" if more else first.message
        failure = ET.SubElement(case, "failure", type=first.rule, message=message)
        failure.text = render_text(failures, texts)
    if others := [diagnostic for diagnostic in diagnostics if diagnostic.severity not in failing]:
        ET.SubElement(case, "system-out").text = render_text(others, texts)


def _count(element: ET.Element) -> None:
    element.set("tests", str(len(element.findall(".//testcase"))))
    element.set("failures", str(len(element.findall(".//failure"))))
