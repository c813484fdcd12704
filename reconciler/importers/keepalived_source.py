# SPDX-License-Identifier: Apache-2.0
"""The lines of keepalived.conf(5) as its parser sees them: comments gone, files included, parameters filled in,
definitions of several lines and `~SEQ` and `~LST` written out.

Some lines are for certain machines only (`@lb1`, `@^lb1`): lines are read as the first machine named in this way would
read them. Expanded lines are put in front of the lines still to be read, so that definitions may contain each other
and take effect at their use, as in keepalived. All expansions together may take no more than a fixed amount of work.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from reconciler.config.diagnostic import quote
from reconciler.importers.draft import InputError, Line, Notices, TooMuch, bare, file_of
from reconciler.importers.values import lines_of

Include = Callable[[str, str], list[tuple[str, str]]]
"""Pattern, and the file that it stands in → name and text of each file. Raises InputError with line 0."""

MAX_LINE = 10_000  # characters, once parameters are filled in
MAX_WORK = 16 << 20  # characters of expanded lines, each as often as its line is read again
LINE_COST = 64  # characters that each line counts in addition
MAX_INCLUDES = 16  # nested in each other

_CODE = re.compile(r'(?:[^"#!]+|"[^"]*"?)*')
_INCLUDE = re.compile(r"\s*(include[rmwba]?)\s+(\S.*?)\s*")
_CONDITION = re.compile(r"\s*@(\^?)(\S+)\s*(.*)", re.DOTALL)
_LONG_DEFINITION = re.compile(r"\s*(?:@\S+\s+)?\$[A-Za-z_][A-Za-z0-9_]*=.*\\")
_DEFINITION = re.compile(r"\s*\$([A-Za-z_][A-Za-z0-9_]*)=(.*)", re.DOTALL)
_USE = re.compile(r"\$(?:\{([A-Za-z_][A-Za-z0-9_]*)\}|([A-Za-z_][A-Za-z0-9_]*)(?=\s|$))")
_REPEAT = re.compile(r"\s*~(SEQx?|LST)\(([^)]*)\)\s*(.*)")
_GROUPS = re.compile(r"\{([^}]*)\}")


@dataclass(slots=True)
class _Reader:
    include: Include | None
    notices: Notices
    parameters: dict[str, str] = field(default_factory=dict)
    machine: str = ""
    """The machine whose lines are read; empty until one is named."""
    work: int = 0


def lines(text: str, include: Include | None, notices: Notices) -> Iterator[tuple[int, str]]:
    """The expanded lines that are not empty, each with its line number in the source. Raises InputError."""
    yield from _of_file(text, "", 0, _Reader(include, notices))


def _of_file(text: str, file: str, depth: int, reader: _Reader) -> Iterator[tuple[int, str]]:
    joined: list[str] = []  # of a definition of several lines
    begin = 0
    for number, whole in enumerate(lines_of(text), start=1):
        line = Line.of(file, number) if file else number
        code = _code(whole)
        if joined:
            joined.append(code.removesuffix("\\"))
        elif _LONG_DEFINITION.fullmatch(code):
            begin, joined = line, [code.removesuffix("\\").rstrip()]
        elif match := _INCLUDE.fullmatch(code):
            yield from _included(match[1], match[2].strip('"'), line, depth, reader)
        else:
            yield from _written_out(line, code, reader)
        if joined and not code.endswith("\\"):
            yield from _written_out(begin, "\n".join(joined), reader)
            joined = []
    if joined:
        yield from _written_out(begin, "\n".join(joined), reader)


def _code(line: str) -> str:
    """A line without its comment and the space at its end."""
    match = _CODE.match(line)
    assert match is not None
    return match[0].rstrip()


def _included(keyword: str, pattern: str, line: int, depth: int, reader: _Reader) -> Iterator[tuple[int, str]]:
    found: list[tuple[str, str]] = []
    with reader.notices.leaving_out("whatever it holds, servers too,"):
        try:
            if reader.include is None:
                raise InputError(0, "standard input is in no directory", hint="name the file")
            if depth == MAX_INCLUDES:
                raise InputError(0, f"files include each other more than {MAX_INCLUDES} times")
            found = reader.include(pattern, file_of(line))
        except InputError as error:
            what = f"{keyword} {bare(pattern)} is not read, {error.what}"
            raise InputError(line, what, hint=error.hint or "put its content in the place of this line") from None
    for name, text in found:
        yield from _of_file(text, name, depth + 1, reader)


def _written_out(line: int, first: str, reader: _Reader) -> Iterator[tuple[int, str]]:
    waiting = deque([first])
    while waiting:
        code = waiting.popleft()
        if match := _CONDITION.fullmatch(code):
            if _holds(line, match[2], bool(match[1]), reader):
                waiting.appendleft(match[3])
            else:
                shown = bare(code.strip())
                reader.notices.add(
                    line, f"{shown} holds for other machines than {bare(reader.machine)}: it is left out"
                )
        elif definition := _DEFINITION.fullmatch(code):
            reader.parameters[definition[1]] = definition[2].strip(" \t")
        elif match := _REPEAT.fullmatch(code):
            with reader.notices.leaving_out("the line"):
                waiting.extendleft(reversed(_repeated(line, match[1], match[2], match[3], reader)))
        elif (filled := _fill_in(code, reader.parameters)) is not None:
            _count(line, len(filled) + LINE_COST, reader)
            if len(filled) > MAX_LINE and "\n" not in filled:
                raise TooMuch(line, f"too much is to be filled in here: {quote(code[:40])}")
            waiting.extendleft(reversed(filled.split("\n")))
        elif code:
            yield line, code


def _holds(line: int, machine: str, negated: bool, reader: _Reader) -> bool:
    """Whether a line for `machine`, or for all others, is for the machine whose lines are read."""
    if not reader.machine:
        reader.machine = machine
        reader.notices.add(line, f"lines that depend on the machine are read as machine {bare(machine)} reads them")
    return (machine == reader.machine) != negated


def _fill_in(code: str, parameters: dict[str, str]) -> str | None:
    """The line with its first known parameter filled in; None if it has none."""
    for match in _USE.finditer(code) if "$" in code else ():
        name = match[1] or match[2]
        if name in parameters:
            return f"{code[: match.start()]}{parameters[name]}{code[match.end() :]}"
    return None


def _repeated(line: int, kind: str, arguments: str, rest: str, reader: _Reader) -> list[str]:
    """The definitions and lines that a ~SEQ or ~LST expands to, in their order."""
    if kind == "LST":
        sets = _listed(line, arguments)
    else:
        name, values = _sequence(line, arguments, reader)
        sets = [[(name, f"{value:x}" if kind == "SEQx" else str(value))] for value in values]
    _count(line, sum(len(value) + LINE_COST for found in sets for _, value in found), reader)
    _count(line, len(sets) * (len(rest) + LINE_COST), reader)
    return [text for found in sets for text in (*(f"${name}={value}" for name, value in found), rest)]


def _sequence(line: int, arguments: str, reader: _Reader) -> tuple[str, range]:
    """~SEQ(name, [start,] [step,] end)."""
    name, *numbers = (word.strip() for word in arguments.split(","))
    try:
        found = [int(number, 0) for number in numbers if len(number) < 16]
    except ValueError:
        found = []
    if not 1 <= len(found) <= 3 or len(found) != len(numbers):
        raise InputError(line, f"expected ~SEQ(NAME, START, STEP, END), got {quote(arguments)}")
    end = found[-1]
    start = found[0] if len(found) > 1 else (1 if end > 0 else -1)
    step = found[1] if len(found) > 2 else (1 if end >= start else -1)
    if step == 0:
        raise InputError(line, "a ~SEQ with step 0 never ends")
    values = range(start, end + (1 if step > 0 else -1), step)
    _count(line, len(values) * LINE_COST, reader)
    return name, values


def _listed(line: int, arguments: str) -> list[list[tuple[str, str]]]:
    """~LST(name, value, …), or ~LST({name, name}, {value, value}, …)."""
    groups = [[word.strip() for word in group.split(",")] for group in _GROUPS.findall(arguments)]
    if not groups:
        name, *values = (word.strip() for word in arguments.split(","))
        return [[(name, value)] for value in values]
    names, *rows = groups
    if any(len(row) != len(names) for row in rows):
        raise InputError(line, f"expected as many values as names in ~LST, got {quote(arguments)}")
    return [list(zip(names, row, strict=True)) for row in rows]


def _count(line: int, characters: int, reader: _Reader) -> None:
    reader.work += characters
    if reader.work > MAX_WORK:
        raise TooMuch(line, f"parameters and sequences fill in more than {MAX_WORK >> 20} MiB")
