# SPDX-License-Identifier: Apache-2.0
"""JSON whose objects know the line of each key, so that messages about a field can name its place.

Keys are told apart without regard to case, as Go does: LoxiLB writes `Monitor` and reads `monitor`.
"""

from __future__ import annotations

import json
import re
from json.decoder import scanstring  # type: ignore[attr-defined]
from typing import Any

from reconciler.config.diagnostic import quote
from reconciler.importers.draft import WRONG_FILE, InputError, TooMuch

MAX_DEPTH = 32
MAX_OBJECTS = 500_000  # which take a few hundred MiB

_SPACE = re.compile(r"[ \t\r\n]*")
_NUMBER = re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][-+]?[0-9]+)?")
_CONSTANT = re.compile("true|false|null")
_CONSTANTS = {"true": True, "false": False, "null": None}


class Object(dict[str, Any]):
    """A JSON object with its keys in lower case. `lines` maps a key to its line, `names` to its spelling."""

    def __init__(self, line: int) -> None:
        super().__init__()
        self.line = line
        self.lines: dict[str, int] = {}
        self.names: dict[str, str] = {}


def parse(text: str) -> list[Any]:
    """The JSON values of a text, one after the other. Raises InputError."""
    reader = _Reader(text.removeprefix("\ufeff"))
    values = []
    while not reader.at_end():
        values.append(reader.value(0))
    return values


def text_of(item: Object, key: str) -> str:
    """The text at a key; empty if there is none. Raises InputError."""
    value = item.get(key)
    if value is not None and not isinstance(value, str):
        raise InputError(item.lines[key], f'expected a text as "{item.names[key]}", got {shown(value)}')
    return value or ""


def whole_of(item: Object, key: str, high: int) -> int:
    """The whole number at a key, from 0 to `high`; 0 if there is none. Raises InputError."""
    value = item.get(key)
    if value is None:
        return 0
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= high:
        got = shown(value)
        raise InputError(item.lines[key], f'expected a number from 0 to {high} as "{item.names[key]}", got {got}')
    return value


def shown(value: Any) -> str:
    """A value as messages show it."""
    return quote(value) if isinstance(value, str) else quote(json.dumps(value))[1:-1]


class _Reader:
    def __init__(self, text: str) -> None:
        self._text, self._at = text, 0
        self._line, self._counted = 1, 0
        self._objects = 0

    def at_end(self) -> bool:
        self._skip_space()
        return self._at == len(self._text)

    def value(self, depth: int) -> Any:
        self._skip_space()
        character = self._text[self._at : self._at + 1]
        if depth > MAX_DEPTH:
            raise InputError(self._here(), f"this is nested more than {MAX_DEPTH} levels deep")
        if character == "{":
            return self._object(depth)
        if character == "[":
            return self._list(depth)
        if character == '"':
            return self._string()
        if match := _CONSTANT.match(self._text, self._at):
            self._at = match.end()
            return _CONSTANTS[match[0]]
        if match := _NUMBER.match(self._text, self._at):
            self._at = match.end()
            if len(match[0]) > 40:
                raise InputError(self._here(), f"the number {quote(match[0])} is too long")
            return float(match[0]) if set(match[0]) & set(".eE") else int(match[0])
        raise self._unexpected("a value")

    def _object(self, depth: int) -> Object:
        found = Object(self._here())
        self._objects += 1
        if self._objects > MAX_OBJECTS:
            raise TooMuch(self._here(), f"these are more than {MAX_OBJECTS:,} objects", hint=WRONG_FILE)
        while self._more("}", bool(found)):
            self._skip_space()
            line = self._here()
            if not self._text.startswith('"', self._at):
                raise self._unexpected("a key in quotes")
            name = self._string()
            self._expect(":")
            key = name.lower()
            found[key], found.lines[key], found.names[key] = self.value(depth + 1), line, name
        return found

    def _list(self, depth: int) -> list[Any]:
        found: list[Any] = []
        while self._more("]", bool(found)):
            found.append(self.value(depth + 1))
        return found

    def _more(self, closing: str, any_before: bool) -> bool:
        """Step over the opening bracket, the comma or the closing bracket; False after the last."""
        if not any_before:
            self._at += 1
            self._skip_space()
        self._skip_space()
        if self._text.startswith(closing, self._at):
            self._at += 1
            return False
        if any_before:
            self._expect(",", f"',' or '{closing}'")
        return True

    def _string(self) -> str:
        try:
            value, self._at = scanstring(self._text, self._at + 1, True)
        except json.JSONDecodeError as error:
            self._at = error.pos
            raise InputError(self._here(), "a text is not written as JSON asks for it") from None
        return str(value)

    def _expect(self, character: str, wanted: str = "") -> None:
        self._skip_space()
        if not self._text.startswith(character, self._at):
            raise self._unexpected(wanted or f"'{character}'")
        self._at += 1

    def _skip_space(self) -> None:
        match = _SPACE.match(self._text, self._at)
        assert match is not None
        self._at = match.end()

    def _here(self) -> int:
        """The line that reading has reached."""
        if self._at < self._counted:
            self._line, self._counted = 1, 0
        self._line += self._text.count("\n", self._counted, self._at)
        self._counted = self._at
        return self._line

    def _unexpected(self, wanted: str) -> InputError:
        rest = self._text[self._at : self._at + 20].split("\n")[0]
        got = quote(rest) if rest else "the end of the input" if self._at >= len(self._text) else "the end of the line"
        return InputError(self._here(), f"this is no JSON: expected {wanted}, got {got}")
