# SPDX-License-Identifier: Apache-2.0
"""The manual page, made from the parser: `python -m reconciler.cli.manual` prints it, in the language of man(7)."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterator

from reconciler.cli.main import DESCRIPTION, VERBS, parser_of
from reconciler.cli.parser import options_of, positionals_of, verbs_of
from reconciler.version import VERSION

_FILES = {
    "/run/lbctl/INSTANCE": "the instance: pins in a bpffs, locks, notes, the control socket; gone at a reboot",
    "/var/lib/lbctl/INSTANCE": "the history, for `lbctl rollback`",
    "/var/cache/lbctl": "compiled programs, and prepared kernel headers",
}
_ENVIRONMENT = {
    "NO_COLOR": "plain text on terminals",
    "LBCTL_CACHE_DIR": "another directory than /var/cache/lbctl",
}


def page() -> str:
    """The whole page lbctl(8)."""
    return "\n".join(_page()) + "\n"


def _page() -> Iterator[str]:
    parser = parser_of(VERBS)
    yield f'.TH LBCTL 8 "" "lbctl {VERSION}" "System administration"'
    yield from (".SH NAME", r"lbctl \- " + _text(DESCRIPTION.rstrip(".")))
    yield from (".SH SYNOPSIS", r"\fBlbctl\fR [\fIoptions\fR] \fIVERB\fR \fI...\fR")
    yield from (
        ".SH DESCRIPTION",
        "The verbs stand below, each with its options. Options of all verbs stand before or behind the verb:",
    )
    yield from _options(parser)
    for name, verb in verbs_of(parser).items():
        yield f".SH VERB: {name.upper()}"
        yield f".B {_usage(name, verb)}"
        yield from _paragraphs(verb.description or "")
        for action in positionals_of(verb):
            yield from _entry(
                action.metavar if isinstance(action.metavar, str) else action.dest, action.help, verb, action
            )
        yield from _options(verb, besides=parser)
        yield from _paragraphs(verb.epilog or "")
    for heading, entries in (("FILES", _FILES), ("ENVIRONMENT", _ENVIRONMENT)):
        yield f".SH {heading}"
        for name, text in entries.items():
            yield from (".TP", rf"\fB{_text(name)}\fR", _text(text))


def _usage(name: str, verb: argparse.ArgumentParser) -> str:
    words = " ".join(verb.format_usage().removeprefix("usage: ").split())
    return _text(
        re.sub(r" \[(?:-h|--netns NAME|--run-dir DIR|--state-dir DIR|--instance NAME|--no-color)\]", "", words)
    )


def _options(parser: argparse.ArgumentParser, besides: argparse.ArgumentParser | None = None) -> Iterator[str]:
    known = {word for action in options_of(besides) for word in action.option_strings} if besides else set()
    for action in options_of(parser):
        if known.isdisjoint(action.option_strings):
            value = "" if action.nargs == 0 else f" {_value(action)}"
            yield from _entry(", ".join(action.option_strings) + value, action.help, parser, action)


def _value(action: argparse.Action) -> str:
    if isinstance(action.metavar, str):
        return action.metavar
    return "{" + ",".join(map(str, action.choices)) + "}" if action.choices else action.dest.upper()


def _entry(name: str, help_: str | None, parser: argparse.ArgumentParser, action: argparse.Action) -> Iterator[str]:
    text = (help_ or "") % {"default": action.default, "prog": parser.prog} if help_ else ""
    if not action.option_strings and action.choices and "one of" not in text:
        text = f"{text}: one of {', '.join(map(str, action.choices))}"
    yield from (".TP", rf"\fB{_text(name)}\fR", _text(text))


def _paragraphs(text: str) -> Iterator[str]:
    """Paragraphs fill the width; indented lines stay lines."""
    for paragraph in text.strip("\n").split("\n\n"):
        lines = paragraph.splitlines()
        yield ".PP"
        if any(line.startswith(" ") for line in lines):
            yield from (".nf", *map(_text, lines), ".fi")
        else:
            yield from map(_text, lines)


def _text(text: str) -> str:
    """Text without meaning to troff."""
    escaped = text.replace("\\", r"\e").replace("-", r"\-").replace("'", r"\(aq").replace("`", r"\(ga")
    escaped = escaped.replace("…", "...").replace("→", "->")
    return rf"\&{escaped}" if escaped.startswith(".") else escaped


if __name__ == "__main__":
    sys.stdout.write(page())
