# SPDX-License-Identifier: Apache-2.0
"""The parser of the command line: options of all verbs, help that fits the terminal, errors with the way out."""

from __future__ import annotations

import argparse
import difflib
import re
import textwrap
from collections.abc import Collection, Sequence
from typing import Any, NoReturn

from reconciler.errors import UsageError
from reconciler.version import VERSION

_WITH_A_VALUE = ("--netns", "--run-dir", "--state-dir", "--instance")
_ALONE = ("--no-color", "--help", "--version")
_OF_A_PLACE = ("-f", "--file", "--filename", "-d", "--dir", "--directory", "-k", "--path")
"""Options by which other programs are told where their files are."""

_OTHER_WORDS = {
    **dict.fromkeys(("show", "list", "ls", "describe"), "get"),
    **dict.fromkeys(("check", "lint", "test"), "validate"),
    **dict.fromkeys(("destroy", "remove", "rm", "clear", "flush"), "delete"),
    **dict.fromkeys(("state", "info", "health"), "status"),
    **dict.fromkeys(("log", "logs", "tail", "monitor"), "events"),
    **dict.fromkeys(("agent", "daemon", "start"), "run"),
    **dict.fromkeys(("tcpdump", "trace", "sniff", "capture"), "watch"),
}
"""Verbs of other programs, and ours for them."""

_COMMENT = re.compile(r"(\s*)(\S.*?) {2,}(# .*)")
_ENTRY = re.compile(r"(\s*\S+(?: \S+)*? {2,})(\S.*)|(\s*)(.*)")


class Help(argparse.HelpFormatter):
    """Paragraphs fill the width; indented lines stay lines, and are broken only if they are too long."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        paragraphs = []
        for paragraph in text.strip("\n").split("\n\n"):
            lines = paragraph.splitlines()
            if any(line.startswith(" ") for line in lines):
                lines = [piece for line in lines for piece in _fitting(line, width)]
                paragraphs.append("\n".join(lines))
            else:
                paragraphs.append(textwrap.fill(" ".join(lines), width, break_on_hyphens=False))
        return "\n\n".join(paragraphs)


def _fitting(line: str, width: int) -> list[str]:
    """A line in pieces that fit: a comment goes above its line, the description of an entry goes on below its
    begin."""
    if len(line) <= width:
        return [line]
    if found := _COMMENT.fullmatch(line):
        return [found[1] + found[3], found[1] + found[2]]
    found = _ENTRY.fullmatch(line)
    assert found
    first, rest = (found[1], found[2]) if found[1] else (found[3], found[4])
    return textwrap.wrap(rest, width, initial_indent=first, subsequent_indent=" " * len(first), break_on_hyphens=False)


class Parser(argparse.ArgumentParser):
    """Raises UsageError in place of printing its whole usage."""

    def __init__(self, prog: str, **options: Any) -> None:
        super().__init__(prog, **{"formatter_class": Help, "allow_abbrev": False, **options})

    def error(self, message: str) -> NoReturn:
        from reconciler.config.diagnostic import did_you_mean, either, quote

        hint = f"{self.prog} --help"
        if found := re.fullmatch(r"argument (.+?): invalid choice: '(.*)' \(choose from (.*)\)", message):
            name, given, choices = found[1], found[2], re.findall(r"'([^']*)'", found[3])
            if name == "VERB":
                message = f"there is no verb {quote(given)}"
                ours = _OTHER_WORDS.get(given)
                hint = f"`lbctl {ours}` does that" if ours in choices else did_you_mean(given, choices)
                hint = hint or f"there are: {', '.join(choices)}"
                hint = {"help": "lbctl --help", "version": "lbctl --version"}.get(given, hint)
            else:
                message = f"{name}: expected {either(choices)}, got {quote(given)}"
                hint = did_you_mean(given, choices) or hint
        elif found := re.fullmatch(r"argument (.+?): (expected .*)", message):
            message = f"{found[1]}: {found[2]}"
        elif found := re.fullmatch(r"the following arguments are required: (.*)", message):
            message = f"`{self.prog}` needs more: {found[1]}"
            missing = next((action for action in self._actions if found[1] in (action.dest, action.metavar)), None)
            if missing and missing.choices:
                hint = f"one of {either(missing.choices)}"
            if found[1] == "VERB":
                hint = "`lbctl --help` lists the verbs; `lbctl validate` checks the manifests of this directory"
            if found[1] == "REV..REV":
                hint = "for example `lbctl diff main...HEAD`: what a merge request changes"
            if found[1] in ("directory", "source"):
                hint = f"`{self.prog} .` takes the current directory"
        raise UsageError(message, hint=hint)

    def refuse(self, extra: Sequence[str]) -> NoReturn:
        """Raise UsageError for words of the command line that no argument takes."""
        from reconciler.config.diagnostic import did_you_mean, quote

        flag = next((word.partition("=")[0] for word in extra if word.startswith("-")), "")
        message, hint = f"`{self.prog}` has no use for {quote(extra[0])}", f"{self.prog} --help"
        if flag:
            message = f"`{self.prog}` has no option {quote(flag)}"
            hint = did_you_mean(flag, self._option_string_actions) or hint
            if flag in _OF_A_PLACE and any(action.dest in ("directory", "source") for action in self._actions):
                hint = f"a directory needs no option: `{self.prog} .`"
        elif self.prog == "lbctl delete":
            hint = "it removes everything; take one service out of the manifests and `lbctl apply` them"
        raise UsageError(message, hint=hint)


def verbs_of(parser: argparse.ArgumentParser) -> dict[str, Parser]:
    """The parsers of the verbs by name."""
    verbs = (action for action in parser._actions if isinstance(action, argparse._SubParsersAction))
    return {name: verb for action in verbs for name, verb in action.choices.items()}


def options_of(parser: argparse.ArgumentParser) -> list[argparse.Action]:
    """The options that people are told of."""
    return [action for action in parser._actions if action.option_strings and action.help != argparse.SUPPRESS]


def positionals_of(parser: argparse.ArgumentParser) -> list[argparse.Action]:
    """The arguments without names; a verb is none."""
    return [
        action for action in parser._actions
        if not action.option_strings and not isinstance(action, argparse._SubParsersAction)
    ]  # fmt: skip


def add_everywhere(parser: argparse.ArgumentParser, *, is_verb: bool) -> None:
    """Add the options that are allowed both before and after the verb."""
    default = argparse.SUPPRESS if is_verb else None
    node = parser.add_argument_group("which node")
    node.add_argument(
        "--netns", metavar="NAME", default=default, help="work in this network namespace (as `ip netns` names it)"
    )
    node.add_argument(
        "--run-dir", metavar="DIR", default=default or "/run/lbctl", help="where pins and locks live (/run/lbctl)"
    )
    node.add_argument(
        "--state-dir", metavar="DIR", default=default,
        help="where the history is kept (/var/lib/lbctl; with another run directory, `.state` in that)",
    )  # fmt: skip
    node.add_argument(
        "--instance", metavar="NAME", default=default, help="name below the run directory (the netns, else `default`)"
    )
    if not is_verb:
        parser.add_argument(
            "--version", action="version", version=f"lbctl {VERSION}", help="show the version and exit"
        )
    parser.add_argument(
        "--no-color", action="store_true", default=default or False,
        help="plain text (as with NO_COLOR, or without a terminal)",
    )  # fmt: skip


def called_verb(arguments: Sequence[str], verbs: Collection[str]) -> str:
    """The first word that is neither an option nor the value of one, if there is any. Raises UsageError for an option
    before it that is not one of all verbs: nobody knows whether the next word is its value."""
    words = iter(arguments)
    for word in words:
        option = word.partition("=")[0]
        if word in _WITH_A_VALUE:
            next(words, None)
        elif not word.startswith("-"):
            return word
        elif option not in (*_WITH_A_VALUE, *_ALONE, "-h"):
            _misplaced(option, next((word for word in words if word in verbs), ""))
    return ""


def _misplaced(option: str, verb: str) -> NoReturn:
    from reconciler.config.diagnostic import quote

    hint = f"options of a verb stand behind it: `lbctl {verb} … {option}`" if verb else "lbctl --help"
    if close := difflib.get_close_matches(option, (*_WITH_A_VALUE, *_ALONE), n=1, cutoff=0.8):
        hint = f"did you mean {quote(close[0])}?"
    raise UsageError(f"`lbctl` has no option {quote(option)}", hint=hint)
