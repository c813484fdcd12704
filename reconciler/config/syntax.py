# SPDX-License-Identifier: Apache-2.0
"""Why a text is not the YAML that we read, in plain words: libyaml's complaints translated, and our own."""

from __future__ import annotations

import re
from typing import Any

from yaml.error import MarkedYAMLError, YAMLError

from reconciler.config.diagnostic import quote

_SAME_INDENTATION = "give keys of the same mapping the same indentation"
_CONFLICT = re.compile(r"^(?:<{7}|>{7})(?: .*)?$", re.MULTILINE)
_SEPARATOR = re.compile(r"--+")
_ODD_SPACE = re.compile("^[ \t]*([\xa0\u1680\u2000-\u200b\u202f\u205f\u3000\ufeff])", re.MULTILINE)
_WORD = re.compile(r"[^\s,\[\]{}]+")
_TAGS = ("{{", "{%", "{#")
_OPENING = {"]": "[", "}": "{"}


class Refusal(Exception):
    """A document can't be read, because of `length` characters from `offset` on. After a `final` refusal nothing
    more of the file is read. `resume` is an offset at which another document certainly begins."""

    def __init__(
        self,
        rule: str,
        message: str,
        hint: str,
        offset: int,
        length: int = 1,
        *,
        final: bool = False,
        resume: int | None = None,
    ) -> None:
        super().__init__(message)
        self.rule, self.message, self.hint = rule, message, hint
        self.offset, self.length, self.final, self.resume = offset, length, final, resume

    @classmethod
    def at(
        cls, event: Any, rule: str, message: str, hint: str = "", *, final: bool = False, resume: int | None = None
    ) -> Refusal:
        """A refusal of what an event of the parser stands for."""
        start, end = event.start_mark.index, event.end_mark.index
        return cls(rule, message, hint, start, end - start, final=final, resume=resume)


def explain(error: YAMLError, text: str) -> Refusal:
    """Translate an error of libyaml, which speaks of tokens and productions, into plain words."""
    if not isinstance(error, MarkedYAMLError) or error.problem_mark is None:
        return Refusal("yaml-syntax", f"this is no YAML: {error}", "", 0)
    problem, stopped = error.problem or "", error.problem_mark.index
    opened, opened_line = stopped, error.problem_mark.line
    if error.context_mark is not None:
        opened, opened_line = error.context_mark.index, error.context_mark.line
    line_start = max(text.rfind("\n", 0, stopped), text.rfind("\r", 0, stopped)) + 1
    before = text[line_start:stopped]
    offset, rule, hint = stopped, "yaml-syntax", ""
    length = 1

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
            return _without_colon(text, offset)
    elif "did not find expected key" in problem:
        if before.strip(" -?") and text[stopped : stopped + 1] in _OPENING:
            message, hint = _unopened(text[stopped])
        elif before.strip(" -?"):
            message = "unexpected text behind the end of a value"
            hint = (
                "remove the comma"
                if text[stopped : stopped + 1] == ","
                else "put a text in quotes as a whole or not at all"
            )
        elif text[stopped : stopped + 1] == "-":
            message = f"expected another key of the mapping that begins on line {opened_line + 1}"
            hint = "a list is the value of a key, or a mapping is an item of a list: not both"
        else:
            message, hint = "the indentation of this line matches no mapping above", _SAME_INDENTATION
    elif "did not find expected '-'" in problem and before.strip(" -"):
        message = "unexpected text behind the end of a value"
        hint = "an item of a list stands on a line of its own, behind '- '"
        if text[stopped : stopped + 1] in _OPENING:
            message, hint = _unopened(text[stopped])
    elif "did not find expected '-'" in problem:
        message = f"expected '- ' and another item of the list that begins on line {opened_line + 1}"
        hint = "a key after a list is indented as the key before the list is"
    elif "could not find expected ':'" in problem:
        return _without_colon(text, opened)
    elif "expected ','" in problem:
        bracket = text[opened : opened + 1]
        closing = "}" if bracket == "{" else "]"
        if opened_line == error.problem_mark.line:
            message = f"expected ',' or '{closing}'"
            hint = (
                "a comma stands between two keys: {a: 1, b: 2}" if closing == "}" else "a comma stands between items"
            )
        else:
            offset, message = opened, f"this '{bracket}' is not closed"
            hint = f"end it with '{closing}', and its items with ','"
    elif "quoted scalar" in (error.context or "") and ("end of stream" in problem or "indicator" in problem):
        offset, message, hint = opened, "this quote is not closed", f"end the text with {text[opened : opened + 1]}"
    elif "escape character" in problem:
        message, hint = "this is no escape sequence", "in single quotes a backslash is only a backslash"
    elif "block sequence entries are not allowed" in problem:
        message, hint = "a list can't begin here", "begin it on a line of its own below the key"
    elif "node content" in problem and text[stopped : stopped + 1] in ("]", "}", ","):
        message = f"expected a value before {quote(text[stopped])}"
        hint = "add a value, or remove the surplus sign"
    elif "node content" in problem or "unexpected ':'" in problem:
        offset = stopped - len(re.search(r"[^\s,\[\]{}]*$", before)[0])  # type: ignore[index]
        word = word[0] if (word := _WORD.match(text, offset)) else ""
        length = len(word)
        message = f"{quote(word)} can't stand here without quotes"
        hint = f"put it in quotes: '{word[:60]}'"
    elif "<document start>" in problem:
        message, hint = "unexpected text behind the end of a document", "begin another one with a line `---`"
        if text[stopped : stopped + 1] in _OPENING:
            message, hint = _unopened(text[stopped])
    elif "tag" in problem:
        rule, message, hint = "yaml-tag", "tags are not part of the manifest language", "put the text in quotes"
    else:
        message = f"this is no YAML: {problem}"
    return _odd_space(text, line_start, stopped) or Refusal(rule, message, hint, offset, length)


def conflict(text: str) -> Refusal | None:
    """The refusal of a text in which git left a conflict. Neither side may be the intended one, so nothing of the file
    is read."""
    if not (mark := _CONFLICT.search(text)):
        return None
    message = "a merge conflict is left here"
    hint = "keep one side or both, and remove the lines that begin with <<<<<<<, ======= and >>>>>>>"
    return Refusal("merge-conflict", message, hint, mark.start(), len(mark[0]), final=True)


def of_template(refusal: Refusal, text: str, file: str) -> Refusal:
    """The same refusal, or another one if the text is a template's but the file's name is not."""
    at = refusal.offset - (text[refusal.offset - 1 : refusal.offset] == "{")
    if not text.startswith(_TAGS, at):
        return refusal
    end = text.find("}", at)
    end = end + 2 if text.startswith("}}", end) else end + 1
    code = text[at:end] if 0 <= end - at <= 60 and "\n" not in text[at:end] else text[at : at + 2]
    return Refusal("template-name", f"{quote(code)} is code of a template", template_hint(file), at, len(code))


def template_hint(file: str) -> str:
    """How a file becomes a template."""
    stem = file.rpartition("/")[2].rpartition(".")[0]
    return f"only files that end in .yaml.j2 are templates: name this one {stem}.yaml.j2"


def _without_colon(text: str, offset: int) -> Refusal:
    """The refusal of a line that is no key with its value, with a guess at what was meant."""
    line_end = min((end for mark in "\r\n" if (end := text.find(mark, offset)) >= 0), default=len(text))
    line = text[offset:line_end].rstrip()
    message, hint = "expected a key and its value: `key: value`", "write a colon and a space behind the key"
    length, resume = 1, None
    if _SEPARATOR.fullmatch(line):
        message, hint = f"{quote(line)} is no separator", "a line `---`, not indented, separates two documents"
        length, resume = len(line), line_end
    elif line.startswith(("//", "/*", ";")):
        hint = "a comment begins with '#'"
    elif "\uff1a" in line:
        hint = "this colon is the wide one, U+FF1A: type the plain one"
    elif found := re.fullmatch(r"(- +)?([\w.-]+)(?: *= *| +|:)(\S.{0,60})", line):
        hint = f"a colon and a space stand between them: `{found[1] or ''}{found[2]}: {found[3]}`"
    return Refusal("yaml-syntax", message, hint, offset, length, resume=resume)


def _unopened(bracket: str) -> tuple[str, str]:
    return f"no '{_OPENING[bracket]}' is open that this '{bracket}' could close", "remove it"


def _odd_space(text: str, line_start: int, stopped: int) -> Refusal | None:
    """The refusal of a line that is indented, or the line above it, with a character that only looks like a space."""
    above = text.rfind("\n", 0, max(0, line_start - 1)) + 1
    if not (found := _ODD_SPACE.search(text, above, max(stopped, line_start + 1))):
        return None
    message = f"this line is indented with the character U+{ord(found[1]):04X}, which only looks like a space"
    return Refusal("yaml-syntax", message, "type plain spaces", found.start(1))
