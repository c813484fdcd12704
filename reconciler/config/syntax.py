# SPDX-License-Identifier: Apache-2.0
"""Why a text is not the YAML that we read, in plain words: libyaml's complaints translated, and our own."""

from __future__ import annotations

import re
from typing import Any

from yaml.error import MarkedYAMLError, YAMLError

from reconciler.config.diagnostic import quote

_SAME_INDENTATION = "give keys of the same mapping the same indentation"
_NO_COLON = ("expected a key and its value: `key: value`", "a space must follow the colon")


class Refusal(Exception):
    """A document can't be read, because of `length` characters from `offset` on. After a `final` refusal nothing
    more of the file is read."""

    def __init__(
        self, rule: str, message: str, hint: str, offset: int, length: int = 1, *, final: bool = False
    ) -> None:
        super().__init__(message)
        self.rule, self.message, self.hint = rule, message, hint
        self.offset, self.length, self.final = offset, length, final

    @classmethod
    def at(cls, event: Any, rule: str, message: str, hint: str = "", *, final: bool = False) -> Refusal:
        """A refusal of what an event of the parser stands for."""
        start, end = event.start_mark.index, event.end_mark.index
        return cls(rule, message, hint, start, end - start, final=final)


def explain(error: YAMLError, text: str) -> Refusal:
    """What libyaml, which speaks of tokens and productions, means by an error."""
    if not isinstance(error, MarkedYAMLError) or error.problem_mark is None:
        return Refusal("yaml-syntax", f"this is no YAML: {error}", "", 0)
    problem, stopped = error.problem or "", error.problem_mark.index
    opened, opened_line = stopped, error.problem_mark.line
    if error.context_mark is not None:
        opened, opened_line = error.context_mark.index, error.context_mark.line
    line_start = max(text.rfind("\n", 0, stopped), text.rfind("\r", 0, stopped)) + 1
    before = text[line_start:stopped]
    offset, rule, hint = stopped, "yaml-syntax", ""

    if "\t" in text[stopped : stopped + 1] or "found a tab" in problem:
        rule, message, hint = "yaml-tab", "a tab can't indent a line", "indent with spaces"
    elif "cannot start any token" in problem or "alphabetic or numeric" in problem:
        offset = opened
        message = f"a text can't begin with {quote(text[offset : offset + 1])}"
        hint = "put the text in quotes"
    elif "mapping values are not allowed" in problem:
        above = text[:line_start].rstrip()
        above_start = max(above.rfind("\n"), above.rfind("\r")) + 1
        if re.search(r":\s", before):
            message, hint = "there is a second ': ' on this line", "put a text that holds ': ' in quotes"
        elif re.search(r":(\s|$)", above[above_start:]):
            offset = line_start + len(before) - len(before.lstrip(" "))
            message, hint = "this line is indented deeper than the one above allows", _SAME_INDENTATION
        else:
            offset = above_start + len(above[above_start:]) - len(above[above_start:].lstrip(" "))
            message, hint = _NO_COLON
    elif "did not find expected key" in problem:
        if before.strip(" -?"):
            message = "unexpected text behind the end of a value"
            hint = "put a text in quotes as a whole or not at all"
        elif text[stopped : stopped + 1] == "-":
            message = f"expected another key of the mapping that begins on line {opened_line + 1}"
            hint = "a list is the value of a key, or a mapping is an item of a list: not both"
        else:
            message, hint = "the indentation of this line matches no mapping above", _SAME_INDENTATION
    elif "did not find expected '-'" in problem:
        message = f"expected '- ' and another item of the list that begins on line {opened_line + 1}"
        hint = "a key after a list is indented as the key before the list is"
    elif "could not find expected ':'" in problem:
        offset, (message, hint) = opened, _NO_COLON
    elif "expected ','" in problem:
        bracket = text[opened : opened + 1]
        closing = "}" if bracket == "{" else "]"
        if opened_line == error.problem_mark.line:
            message = f"expected ',' or '{closing}'"
        else:
            offset, message = opened, f"this '{bracket}' is not closed"
            hint = f"end it with '{closing}', and its items with ','"
    elif "quoted scalar" in (error.context or "") and ("end of stream" in problem or "indicator" in problem):
        offset, message, hint = opened, "this quote is not closed", f"end the text with {text[opened : opened + 1]}"
    elif "escape character" in problem:
        message, hint = "this is no escape sequence", "in single quotes a backslash is only a backslash"
    elif "block sequence entries are not allowed" in problem:
        message, hint = "a list can't begin here", "begin it on a line of its own below the key"
    elif "tag" in problem:
        rule, message, hint = "yaml-tag", "tags are not part of the manifest language", "put the text in quotes"
    else:
        message = f"this is no YAML: {problem}"
    return Refusal(rule, message, hint, offset)
