# SPDX-License-Identifier: Apache-2.0
"""The process that renders templates. Nothing else imports jinja2, and it imports nothing of lbctl.

A process of its own because a template can ask for any amount of time and memory in a single step, which only
the kernel can refuse. Reads a request as JSON from standard input:
{"templates": {name: text}, "render": [name…], "values": {…}, "numbers": [[path, text]…], "limits": {…}}, and answers
one line of JSON for each name of "render", in that order: {"text", "marks"}, where marks are pairs of an offset in the
text and the line of the template that it comes from, or {"problem", "message", "template", "line"}, line 0 if it is
not known. "numbers" are the values that JSON would write in another way than their file does.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import signal
import sys
import traceback
from bisect import bisect_right
from collections.abc import Callable, Iterator
from functools import cached_property
from types import GeneratorType
from typing import Any, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.compiler import CodeGenerator, Frame
from jinja2.exceptions import SecurityError, TemplateNotFound, TemplateSyntaxError, UndefinedError
from jinja2.lexer import Lexer
from jinja2.runtime import Context, Undefined
from jinja2.sandbox import MAX_RANGE, ImmutableSandboxedEnvironment

_POWER_BITS = 4096
"""The largest result of `**`."""

_NOBODY = 65534

_NOT_REPEATABLE = ("lipsum", "random")
"""Functions of jinja2 that would render the same template differently each time."""


class _Limit(BaseException):
    """A template asks for too much. A BaseException, so that no `except Exception` of jinja2 catches it."""

    def __init__(self, message: str, line: int = 0) -> None:
        super().__init__(message)
        self.line = line


class _Missing(jinja2.StrictUndefined):
    """A value that is not there."""

    @property
    def _undefined_message(self) -> str:
        name = self._undefined_name
        if self._undefined_hint or not isinstance(name, str):
            return str(super()._undefined_message)
        if self._undefined_obj is jinja2.utils.missing:
            return f"{name!r} has no value"
        known = [key for key in self._undefined_obj if isinstance(key, str)] if self._is_mapping() else []
        return f"there is no {name!r} in this value" + (
            f", which has {', '.join(map(repr, known[:8]))}" if known else ""
        )

    def _is_mapping(self) -> bool:
        return isinstance(self._undefined_obj, dict)


class _Integer(int):
    """A number that is printed as it was written."""

    written: str

    def __str__(self) -> str:
        return self.written


class _Fraction(float):
    """A fraction that is printed as it was written."""

    written: str

    def __str__(self) -> str:
        return self.written


def _as_written(values: Any, numbers: list[tuple[list[Any], str]]) -> Any:
    """The values of an environment, with these numbers, given by path and text, printed as they were written."""
    for (*path, last), text in numbers:
        owner = values
        for step in path:
            owner = owner[step]
        is_whole = isinstance(owner[last], int) or text.lstrip("+-").isdigit()
        number: _Integer | _Fraction
        if is_whole:
            number = _Integer(owner[last] if isinstance(owner[last], int) else text)
        else:
            number = _Fraction(owner[last])
        number.written = text
        owner[last] = number
    return values


class _Lines(CodeGenerator):
    """Makes code that knows the line of each piece of text; jinja2's own knows the lines of expressions only."""

    def visit_Output(self, node: nodes.Output, frame: Frame) -> None:
        for child in node.nodes:
            self.newline(child)
            super().visit_Output(nodes.Output([child], lineno=child.lineno), frame)


Token = tuple[int, str, str]
"""The line that the token begins on, its type, and its text."""

_BEGIN = ("block_begin", "raw_begin", "comment_begin")
_END = ("block_end", "raw_end", "comment_end")
_PRINTING = ("include", "endcall", "endblock")
"""Statements that print, perhaps without a line break at the end."""


class _Lexer(Lexer):
    """Removes a line entirely if it holds nothing but statements and comments.

    Jinja2's own `trim_blocks` removes the line break after every statement, even if its line has other content: then
    the next line is joined to that content.
    """

    def tokeniter(
        self, source: str, name: str | None, filename: str | None = None, state: str | None = None
    ) -> Iterator[Token]:
        line: list[Token] = []
        for number, kind, text in super().tokeniter(source, name, filename, state):
            if kind != "data" or "\n" not in text:
                line.append((number, kind, text))
                continue
            rest, _, following = text.partition("\n")
            kept, is_gone = _without_statements([*line, (number, kind, rest)] if rest else line)
            yield from kept
            whole, line_break, last = following.rpartition("\n")
            if lines := ("" if is_gone else "\n") + whole + line_break:
                yield number + is_gone, kind, lines
            line = [(number + text.count("\n"), kind, last)] if last else []
        yield from _without_statements(line)[0]


def _without_statements(line: list[Token]) -> tuple[list[Token], bool]:
    """The remaining tokens of a line, and whether its line break goes, too. A statement or comment that spans several
    lines counts as one line.

    A line with a sign that keeps its space (`{%+`, `+%}`) is left as it is.
    """
    tags = [token for token in line if token[1] != "data"]
    has_content = any(kind == "data" and not text.isspace() for _, kind, text in line)
    signed = any(kind in _BEGIN + _END and "+" in text for _, kind, text in tags)
    if not tags or has_content or signed or any(kind == "variable_begin" for _, kind, _ in tags):
        return line, False
    return tags, not any(kind == "name" and text in _PRINTING for _, kind, text in tags)


class _Environment(ImmutableSandboxedEnvironment):
    code_generator_class = _Lines
    intercepted_binops = frozenset(["**"])

    @cached_property
    def lexer(self) -> Lexer:
        return _Lexer(self)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        if isinstance(left, int) and isinstance(right, int) and abs(right) * left.bit_length() > _POWER_BITS:
            raise _Limit(f"the power has more than {_POWER_BITS} bits")
        return super().call_binop(context, operator, left, right)


def main() -> None:
    request = json.load(sys.stdin)
    templates, limits = request["templates"], request["limits"]
    values = _as_written(request["values"], request["numbers"])
    environment = _environment(templates)
    _warm_up(environment)
    confine(limits["memory_bytes"])
    signal.signal(signal.SIGPROF, _out_of_time(limits["cpu_s"]))
    room = limits["tree_bytes"]
    for name in request["render"]:
        _start_clock(limits["cpu_s"])
        try:
            answer = _render(environment, name, templates[name], values, min(limits["file_bytes"], room))
            room -= len(answer["text"])
        except (Exception, _Limit) as error:  # noqa: BLE001 - users shall see any error of a template
            answer = _explain(error, environment, name, limits["memory_bytes"])
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
        print(json.dumps(answer), flush=True)


def _environment(templates: dict[str, str]) -> _Environment:
    def load(name: str) -> tuple[str, str, Callable[[], bool]] | None:
        return (templates[name], _file_name(name), lambda: True) if name in templates else None

    environment = _Environment(
        loader=jinja2.FunctionLoader(load),
        undefined=_Missing,
        finalize=_printed,
        autoescape=False,
        optimized=False,  # an error in a constant would have no line
        keep_trailing_newline=True,
        cache_size=-1,
    )
    environment.globals["range"] = _range
    environment.policies["json.dumps_function"] = _to_json
    for name in _NOT_REPEATABLE:
        environment.globals.pop(name, None)
        environment.filters.pop(name, None)
    return environment


def _range(*args: int) -> range:
    found = range(*args)
    if len(found) > MAX_RANGE:
        raise _Limit(f"a range has more than {MAX_RANGE:,} items")
    return found


def _file_name(template: str) -> str:
    return f"template {template}"


@jinja2.pass_context
def _printed(context: Context, value: Any) -> str:
    """A value as YAML writes it: text as it is, everything else as JSON, which is YAML."""
    return str(value) if isinstance(value, str | Undefined) else _json(value)


def _json(value: Any) -> str:
    """As `json.dumps`, but numbers as they were written."""
    if isinstance(value, _Integer | _Fraction):
        return value.written
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_json(key)}: {_json(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_json, value)) + "]"
    return json.dumps(value, ensure_ascii=False, default=_refuse)


def _to_json(value: Any, **options: Any) -> str:
    """The filter `tojson`: JSON on one line has numbers as they were written."""
    return json.dumps(value, **options) if options.get("indent") is not None else _json(value)


def _refuse(value: object) -> NoReturn:
    hint = ": put `| list` behind it" if isinstance(value, GeneratorType) else ""
    raise TypeError(f"a {type(value).__name__} can't be printed{hint}")


def _warm_up(environment: _Environment) -> None:
    """Make jinja2 do its late imports now, before the process is confined."""
    for text in ("{{ [1] | map('string') | join }}", "{{ missing }}", "{% syntax"):
        with contextlib.suppress(jinja2.TemplateError):
            environment.from_string(text).render()


def confine(memory_bytes: int) -> None:
    """From here on this process can't open files or sockets or start others, and runs as the user nobody. So a
    template that escapes from jinja2's sandbox can reach nothing."""
    resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    for limit, most in (
        (resource.RLIMIT_CORE, 0), (resource.RLIMIT_FSIZE, 0), (resource.RLIMIT_NPROC, 0), (resource.RLIMIT_NOFILE, 3)
    ):  # fmt: skip
        resource.setrlimit(limit, (most, most))
    if os.geteuid() == 0:
        with contextlib.suppress(OSError):  # a container may have no other users
            os.setgroups([])
            os.setresgid(_NOBODY, _NOBODY, _NOBODY)
            os.setresuid(_NOBODY, _NOBODY, _NOBODY)


def _start_clock(limit_s: int) -> None:
    """Start two timers: a signal ends a template when its time is up; since one long step of Python delays the signal,
    the kernel ends the process soon after."""
    signal.setitimer(signal.ITIMER_PROF, limit_s)
    used = resource.getrusage(resource.RUSAGE_SELF)
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    resource.setrlimit(resource.RLIMIT_CPU, (int(used.ru_utime + used.ru_stime) + limit_s + 2, hard))


def _out_of_time(limit_s: int) -> Callable[[int, Any], NoReturn]:
    def handler(number: int, frame: Any) -> NoReturn:
        raise _Limit(f"rendering takes more than {limit_s} s")

    return handler


def _render(environment: _Environment, name: str, source: str, values: dict[str, Any], room: int) -> dict[str, Any]:
    template = environment.get_template(name)
    lines = source.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    pieces: list[str] = []
    marks: list[tuple[int, int]] = []
    length = 0
    rendering = template.root_render_func(template.new_context(values))
    line_of = _lines_of(template)
    for piece in rendering:
        line = _line(rendering, template, line_of)
        marks += _marks(piece, length, line, lines)
        pieces.append(piece)
        length += len(piece)
        if length > room:
            raise _Limit(f"the result is larger than {room >> 20} MiB", line)
    return {"text": "".join(pieces), "marks": marks}


def _lines_of(template: jinja2.Template) -> Callable[[int], int]:
    """A function from a line of the compiled code to the template's line. jinja2's `get_corresponding_lineno` searches
    the whole template for each answer."""
    pairs = template.debug_info  # pairs of a line of the template and the first line of code for it
    begins = [code for _, code in pairs]
    return lambda code: pairs[at - 1][0] if (at := bisect_right(begins, code)) else 1


def _line(rendering: Any, template: jinja2.Template, line_of: Callable[[int], int]) -> int:
    """The line that a template has reached between two pieces. Its parent may be rendering a block of it."""
    found, here = rendering, rendering
    while isinstance(here := here.gi_yieldfrom, GeneratorType):
        if here.gi_code.co_filename == template.filename:
            found = here
    return line_of(found.gi_frame.f_lineno)


def _marks(piece: str, offset: int, line: int, lines: list[str]) -> Iterator[tuple[int, int]]:
    """Marks for a piece of rendered text. Text of the template itself has a mark for each line; a value has one, even
    if it has several lines."""
    parts = piece.split("\n")
    yield offset, line
    if all(part in lines[line - 1 + i] for i, part in enumerate(parts) if line - 1 + i < len(lines)):
        for i, part in enumerate(parts[:-1], 1):
            offset += len(part) + 1
            yield offset, line + i


def _explain(error: BaseException, environment: _Environment, name: str, memory_bytes: int) -> dict[str, Any]:
    problem, message = "error", str(error).rstrip(".") or type(error).__name__
    if isinstance(error, TemplateSyntaxError):
        template = (error.filename or error.name or name).removeprefix(_file_name(""))
        return {"problem": "syntax", "message": message, "template": template, "line": error.lineno}
    template, line = _place(error, environment, name)
    if isinstance(error, TemplateNotFound):
        problem, message = "missing", f"there is no template {error.message!r}"
    elif isinstance(error, UndefinedError):
        problem = "undefined"
    elif isinstance(error, SecurityError):
        problem = "forbidden"
    elif isinstance(error, MemoryError):
        problem, message = "limit", f"rendering takes more than {memory_bytes >> 20} MiB of memory"
    elif isinstance(error, RecursionError):
        problem, message = "limit", "the template calls or includes itself too often"
    elif isinstance(error, OSError):  # of a module that jinja2 or Python would read now
        problem, message = "forbidden", "this takes files, and templates can't open any"
    elif isinstance(error, _Limit | OverflowError):
        problem = "limit"
    elif isinstance(error, SyntaxError):  # in the code that jinja2 makes: too many nested loops
        message = error.msg
    return {"problem": problem, "message": message, "template": template, "line": line}


def _place(error: BaseException, environment: _Environment, name: str) -> tuple[str, int]:
    """The template and line of an error: the innermost in its traceback."""
    place = (name, error.line if isinstance(error, _Limit) else 0)
    for frame, line in traceback.walk_tb(error.__traceback__):
        file = frame.f_code.co_filename
        if file.startswith(_file_name("")):
            inner = file.removeprefix(_file_name(""))
            place = (inner, environment.get_template(inner).get_corresponding_lineno(line))
    return place


if __name__ == "__main__":
    main()
