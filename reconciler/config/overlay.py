# SPDX-License-Identifier: Apache-2.0
"""Environments: templates of manifests, and the values that each environment fills in.

`web.yaml.j2` is a template; `environments/prod.yaml` holds the values for `--env prod`. Rendering turns a tree
into one without templates. Each rendered line keeps the number of the template's line that it comes from, so every
message and every plan points to a line that a person can edit. Templates whose names begin with `_` are there to be
included by others. The rendering itself happens in a process of its own, see `render_child`.
"""

from __future__ import annotations

import hashlib
import json
import re
import signal
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from itertools import takewhile
from pathlib import Path, PurePosixPath
from typing import Any

from reconciler import children
from reconciler.config.diagnostic import LINE_BREAK, Diagnostic, Severity, did_you_mean, quote
from reconciler.config.document import Event, Map, Seq, parse
from reconciler.config.listing import IGNORED, TEMPLATE_SUFFIX, about_file
from reconciler.config.source import MAX_FILE_BYTES, MAX_TREE_BYTES, SourceFile, Tree
from reconciler.resource import Span

DIRECTORY = "environments"
CPU_LIMIT_S = 5
"""For each template."""
MEMORY_LIMIT_BYTES = 512 << 20
TIME_LIMIT_S = 300
"""For all templates, of wall-clock time: a last resort."""

_CHILD = Path(__file__).resolve().with_name("render_child.py")
_TAKES_IN = re.compile(r"\b(?:include|import|extends|from)\b")
_TAG = re.compile(r"\{[{%]|[%}]\}")


def rendered(tree: Tree, env: str | None) -> Tree:
    """The tree with its templates rendered for an environment, or without any values. A template that can't be
    rendered becomes a diagnostic.

    Environments are no manifests and are left out. `texts` keeps the templates as people wrote them.
    """
    manifests, templates, environments = split(tree)
    if len(manifests) == len(tree.files) and env is None:
        return tree
    values, problems = _values(environments, env)
    problems += _overlooked(tree)
    wanted = [name for name in templates if not PurePosixPath(name).name.startswith("_")]
    if wanted and all(problem.severity is not Severity.ERROR for problem in problems):
        for name, answer in zip(wanted, _render(templates, wanted, values), strict=False):
            if "text" in answer:
                manifests.append(SourceFile(name, answer["text"], _lines(answer["text"], answer["marks"])))
            else:
                problems.append(_problem(answer, templates, env, environments, values))
    files = tuple(sorted(manifests, key=lambda file: file.name))
    return replace(tree, files=files, diagnostics=(*tree.diagnostics, *problems))


def split(tree: Tree) -> tuple[list[SourceFile], dict[str, str], dict[str, SourceFile]]:
    """The files of a directory: manifests, templates by file name, environments by their own name."""
    manifests, templates, environments = [], {}, {}
    for file in tree.files:
        if file.name.startswith(f"{DIRECTORY}/"):
            path = PurePosixPath(file.name)
            if len(path.parts) == 2 and path.suffix in (".yaml", ".yml"):
                environments[path.stem] = file
        elif file.name.endswith(TEMPLATE_SUFFIX):
            templates[file.name] = file.text
        else:
            manifests.append(file)
    return manifests, templates, environments


def _overlooked(tree: Tree) -> Iterator[Diagnostic]:
    """A warning about each file in the environments' directory that is no environment."""
    for file in tree.files:
        if not file.name.startswith(f"{DIRECTORY}/"):
            continue
        path = PurePosixPath(file.name)
        if len(path.parts) > 2 or path.suffix not in (".yaml", ".yml"):
            message = f"this file is not read: an environment is a file {DIRECTORY}/NAME.yaml"
            yield about_file(file.name, IGNORED, message, "move it", Severity.WARNING)


def in_template(diagnostic: Diagnostic, template: str, text: str) -> Diagnostic:
    """A problem of a rendered text, moved to the place in the template that the text comes from."""
    span = diagnostic.span
    line = _line(text, span.rendered_line)
    source = _line(template, span.line)
    start, end = _content(source)
    pieces = _aligned(source, line)
    if at := bisect_left(pieces, (span.column,)):
        begin, first, behind, is_value = pieces[at - 1]
        start, end = first, behind
        if not is_value:
            start = first + span.column - 1 - begin
            end = min(start + diagnostic.length, behind)
    hint = diagnostic.hint
    if source.strip() != line.strip():
        hint = "; ".join(filter(None, (hint, f"this line was rendered as {quote(line.strip())}")))
    return replace(diagnostic, span=Span(span.file, span.line, start + 1), length=max(1, end - start), hint=hint)


@lru_cache(maxsize=8)
def _aligned(source: str, line: str) -> list[tuple[int, int, int, bool]]:
    """The pieces of a rendered line: where each begins, where it begins and ends in the template's line, and whether
    it is a value. Nothing if the two lines can't be matched.
    """
    parts = _parts(source)  # text and values in turn
    pieces = []
    at = begin = 0
    for i, part in enumerate(parts):
        end = begin + len(part)
        if i % 2:
            pieces.append((at, begin, end, True))
        else:
            found = 0 if i == 0 else line.find(part, at) if i < len(parts) - 1 else len(line) - len(part)
            if found < at or not line.startswith(part, found):
                return []
            pieces.append((found, begin, end, False))
            at = found + len(part)
        begin = end
    return pieces if at == len(line) else []


def _parts(source: str) -> list[str]:
    """The text of a line of a template, and each `{{ … }}` in it, in turn."""
    parts = []
    behind = 0
    while (begin := source.find("{{", behind)) >= 0 and (end := source.find("}}", begin + 2)) >= 0:
        parts += [source[behind:begin], source[begin : end + 2]]
        behind = end + 2
    return [*parts, source[behind:]]


def _line(text: str, number: int) -> str:
    """A line by its number, counted from 1; the one after the last is empty."""
    lines = _split(text)
    return lines[number - 1] if number <= len(lines) else ""


@lru_cache(maxsize=8)
def _split(text: str) -> list[str]:
    return LINE_BREAK.split(text)


def _content(line: str) -> tuple[int, int]:
    """Where a line begins and ends without the space around it."""
    return len(line) - len(line.lstrip()), len(line.rstrip())


def _values(environments: Mapping[str, SourceFile], env: str | None) -> tuple[Map, list[Diagnostic]]:
    """The values in an environment's file, and the problems of that file."""
    if env is None:
        return Map(), []
    if env not in environments:
        known = sorted(environments)
        hint = f"there are: {', '.join(known)}" if known else f"write its values to {DIRECTORY}/NAME.yaml"
        hint = did_you_mean(env, known) or hint
        message = f"there is no environment {quote(env)}"
        return Map(), [Diagnostic(Severity.ERROR, "environment-unknown", message, Span(DIRECTORY, 0), hint)]
    file = environments[env]
    documents = parse(file.name, file.text)
    problems = [problem for document in documents for problem in document.diagnostics]
    if not documents or problems:
        return Map(), problems
    wrong = documents[1:] if isinstance(documents[0].root, Map) else documents
    message, hint = "an environment is one mapping of names to values", "write a line `name: value` for each"
    problems = [d.problem(d.value_at(()), "environment-values", message, hint) for d in wrong]
    return documents[0].root, problems


def _render(templates: Mapping[str, str], wanted: Sequence[str], values: Map) -> list[dict[str, Any]]:
    """The answers about these templates, in order; if the process that renders them died, the last one says so. Of an
    unchanged template with unchanged values the answer is known."""
    shared = json.dumps([values, list(_numbers(values))])
    every = json.dumps(templates, sort_keys=True)
    keys = {name: _key(name, templates[name], shared, every) for name in wanted}
    left = [name for name in wanted if keys[name] not in _known]
    if sum(len(answer["text"]) for answer in _known.values()) > MAX_TREE_BYTES // 8:
        left = list(wanted)  # the limits are about all of them together
    fresh = dict(zip(left, _rendered_anew(templates, left, values), strict=False)) if left else {}
    anew = set(left)
    answers = {name: fresh.get(name) if name in anew else _known[keys[name]] for name in wanted}
    found = [answer for answer in takewhile(lambda answer: answer is not None, answers.values()) if answer]
    _known.clear()
    _known.update((keys[name], answer) for name, answer in answers.items() if answer and "text" in answer)
    return found


_known: dict[bytes, dict[str, Any]] = {}
"""The answers about the templates of the tree that was rendered last, by all that they depend on."""


def _key(name: str, text: str, values: str, every: str) -> bytes:
    """The digest of all that a rendered template depends on: where it may take in others, on all of them."""
    parts = (name, text, values, every if _TAKES_IN.search(text) else "")
    return hashlib.blake2b(repr(parts).encode(errors="surrogatepass"), digest_size=16).digest()


def _rendered_anew(templates: Mapping[str, str], wanted: Sequence[str], values: Map) -> list[dict[str, Any]]:
    """The answers of the process that renders; if it died, the last answer says so."""
    import subprocess  # only templates cost this import

    limits = {
        "cpu_s": CPU_LIMIT_S,
        "memory_bytes": MEMORY_LIMIT_BYTES,
        "file_bytes": MAX_FILE_BYTES,
        "tree_bytes": MAX_TREE_BYTES,
    }
    request = {
        "templates": templates, "render": wanted, "values": values, "numbers": list(_numbers(values)), "limits": limits
    }  # fmt: skip
    try:
        done = children.run(children.script(str(_CHILD)), json.dumps(request).encode(), TIME_LIMIT_S)
        output, stderr, code = done.stdout, done.stderr, done.returncode
    except subprocess.TimeoutExpired as error:
        output, stderr, code = error.stdout or b"", b"", -signal.SIGKILL
    complete = output[: output.rfind(b"\n") + 1]
    answers: list[dict[str, Any]] = [json.loads(line) for line in complete.splitlines()]
    if len(answers) < len(wanted):
        message, problem = f"rendering takes more than {CPU_LIMIT_S} s", "limit"
        if code not in (-signal.SIGXCPU, -signal.SIGKILL):
            last = stderr.decode("utf-8", "replace").strip().split("\n")[-1]
            message, problem = f"rendering failed: {last or f'the process ended with {code}'}", "error"
        answers.append({"problem": problem, "message": message, "template": wanted[len(answers)], "line": 0})
    return answers


def _numbers(values: Map | Seq, path: tuple[str | int, ...] = ()) -> Iterator[tuple[tuple[str | int, ...], str]]:
    """Each number that JSON would write in another way than the file does: its path, and its text in the file."""
    if isinstance(values, Map):
        items: Iterable[tuple[str | int, Any, Event]] = ((k, v, values.events[k][1]) for k, v in values.items())
    else:
        items = ((i, v, values.events[i]) for i, v in enumerate(values))
    for step, value, event in items:
        if isinstance(value, Map | Seq):
            yield from _numbers(value, (*path, step))
        elif isinstance(value, int | float) and not isinstance(value, bool) and event.value != json.dumps(value):
            yield (*path, step), event.value


def _lines(text: str, marks: Sequence[Sequence[int]]) -> tuple[int, ...]:
    """For each line of a rendered text the line of the template that it comes from."""
    offsets = [offset for offset, _ in marks]
    lines = []
    for start, end in _line_bounds(text):
        content = start + len(text[start:end]) - len(text[start:end].lstrip())
        at = content if content < end else start
        lines.append(marks[max(0, bisect_right(offsets, at) - 1)][1] if marks else 1)
    return tuple(lines)


def _line_bounds(text: str) -> Iterator[tuple[int, int]]:
    start = 0
    for line_break in LINE_BREAK.finditer(text):
        yield start, line_break.start()
        start = line_break.end()
    yield start, len(text)


def _problem(
    answer: Mapping[str, Any], templates: Mapping[str, str], env: str | None, environments: Iterable[str], values: Map
) -> Diagnostic:
    """Why a template could not be rendered, at the place in it that caused this, as far as that is known."""
    name, line = answer["template"], answer["line"]
    source = _line(templates[name], line) if line else ""
    message = _named(answer["message"], source)
    rule = f"template-{answer['problem']}"
    span, length = Span(name, line, 0), 1
    if line:
        start, end = _mentioned(message, source)
        span, length = Span(name, line, start + 1), max(1, end - start)
    hint = {
        "template-forbidden": "templates can use only the values of their environment",
        "template-missing": "name it by its path from the directory of the manifests; it must end with .yaml.j2",
        "template-limit": "templates are for a handful of values: write the manifest out instead",
    }.get(rule, "")
    if rule == "template-undefined":
        about = re.match("'(\\w+)' has no value", message)
        hint = (did_you_mean(about[1], values) if about else "") or f"add it to {DIRECTORY}/{env}.yaml"
        if env is None:
            known = sorted(environments)
            hint = f"choose one of these with --env: {', '.join(known)}"
            hint = hint if known else f"write it to {DIRECTORY}/NAME.yaml and choose that with --env NAME"
    return Diagnostic(Severity.ERROR, rule, message, span, hint, length)


def _named(message: str, source: str) -> str:
    """A message of jinja2, completed by the name of the value or by the expression that it is about, if the template's
    line leaves no doubt about it."""
    if about := re.match(r"there is no '(\w+)' in this value", message):
        for use in re.finditer(rf"\.{about[1]}\b|\[['\"]{about[1]}['\"]\]", source):
            if owner := re.search(r"[\w.\[\]'\"]+$", source[max(0, use.start() - 60) : use.start()]):
                return message.replace("this value", quote(owner[0]), 1)
    codes = [source[begin:end] for begin, end in _codes(source)]
    if "iterable" in message:
        codes = [code for code in codes if re.match(r"\{%[-+]? *for\b", code)]
    if "'" in message and any(word in message for word in ("operand", "object", "argument")) and len(codes) == 1:
        return f"{quote(codes[0])[1:-1]}: {message}"
    return message


def _mentioned(message: str, source: str) -> tuple[int, int]:
    """Begin and end, in a template's line, of the name that a message begins with; else of the line's content."""
    if about := re.match(r"(?:there is no (?:template )?)?'([^']+)'", message):
        name = re.compile(rf"(?<!\w){re.escape(about[1])}(?!\w)")
        for begin, end in _codes(source):
            if found := name.search(source, begin, end):
                return found.span()
    return _content(source)


def _codes(source: str) -> Iterator[tuple[int, int]]:
    """Begin and end of each `{{ … }}` and `{% … %}` in a line of a template."""
    begin = -1
    for tag in _TAG.finditer(source):
        if tag[0].startswith("{"):
            begin = tag.start() if begin < 0 else begin
        elif begin >= 0:
            yield begin, tag.end()
            begin = -1
