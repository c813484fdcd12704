# SPDX-License-Identifier: Apache-2.0
"""`lbctl diff`: what differs between two revisions of the manifests, and what that does to traffic."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from reconciler.cli.common import add_env, stdout_style
from reconciler.config.diagnostic import Diagnostic, Severity, render_text
from reconciler.config.load import Loaded, check, no_garbage_collection
from reconciler.config.revision import Revision, locate, read_revision, resolve_range
from reconciler.errors import ConfigError, LbctlError
from reconciler.model import Fleet
from reconciler.render.style import Style

DESCRIPTION = """\
Compare the manifests of two git revisions by what they mean: services, pools and nodes, the plan of every node,
and what becomes of traffic. Moved files, another order and comments are no difference. Reads the repository only:
no checkout, no node, no root."""
EPILOG = """\
revisions:
  A..B     from A to B
  A...B    from where B branched off A: what a merge request changes
  A        the same as A..HEAD; what is left out of A..B is HEAD

examples:
  lbctl diff main..feature
  lbctl diff HEAD~1 clusters/prod --node lb1        # one node, with its whole plan
  lbctl diff origin/main...HEAD --format markdown   # to be posted on a merge request

exit codes: 0 no differences, 1 differences, 2 wrong usage, 3 the manifests of a revision are not valid
"""
_TROUBLE = 3


class InvalidRevisionError(ConfigError):
    """A revision can't be compared: its manifests hold errors."""

    exit_code = _TROUBLE


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("revisions", metavar="REV..REV", help="what to compare")
    parser.add_argument(
        "path", metavar="PATH", type=Path, nargs="?", default=Path(),
        help="a directory of the repository (the current one)",
    )  # fmt: skip
    parser.add_argument("--node", metavar="NAME", help="only what concerns this node, with its whole plan")
    add_env(parser)
    parser.add_argument("--format", choices=("text", "json", "markdown"), default="text")


def run(args: argparse.Namespace) -> int:
    try:
        return _run(args)
    except LbctlError as error:
        if error.exit_code == 1:  # which here says that there are differences
            error.exit_code = _TROUBLE
        raise


def _run(args: argparse.Namespace) -> int:
    from reconciler.diff.fleet import compare
    from reconciler.render.diff import diff_json, diff_markdown, diff_text

    old, new = resolve_range(locate(args.path), args.revisions)
    diff = compare(*_fleets(old, new, args), args.node)
    title = args.revisions if ".." in args.revisions else f"{args.revisions}..HEAD"
    if args.format == "json":
        revisions = {"from": _about(old), "to": _about(new), "path": old.place.path}
        print(json.dumps(diff_json(diff, old.name) | revisions, indent=2))
    elif args.format == "markdown":
        print(diff_markdown(diff, title, old.name), end="")
    else:
        print(diff_text(diff, title, old.name, stdout_style(args), whole_plans=args.node is not None))
    return int(diff.differs)


def _fleets(old: Revision, new: Revision, args: argparse.Namespace) -> tuple[Fleet, Fleet]:
    """What both revisions hold; prints what is wrong with that. Raises InvalidRevisionError."""
    with no_garbage_collection():
        before, after = (check(read_revision(revision), args.env) for revision in (old, new))
    is_valid = before.fleet is not None and after.fleet is not None
    told = _warnings(before, after) if is_valid else [_errors(before), _errors(after)]
    style = Style.for_stream(sys.stderr, args.no_color)
    for revision, loaded, diagnostics in zip((old, new), (before, after), told, strict=True):
        if diagnostics:
            print(_render(revision, loaded, diagnostics, style), file=sys.stderr)
    if before.fleet is None or after.fleet is None:
        invalid = [revision.name for revision, diagnostics in zip((old, new), told, strict=True) if diagnostics]
        raise InvalidRevisionError(f"the manifests of {' and of '.join(invalid)} are not valid")
    return before.fleet, after.fleet


def _errors(loaded: Loaded) -> list[Diagnostic]:
    return [d for d in loaded.diagnostics if d.severity is Severity.ERROR]


def _warnings(before: Loaded, after: Loaded) -> list[list[Diagnostic]]:
    """Of each revision what is worth telling: what was not read, and with the new one the warnings that it brings."""
    unread = [[d for d in loaded.diagnostics if d.rule.startswith("source-")] for loaded in (before, after)]
    standing = {(d.rule, d.message) for d in before.diagnostics}
    brought = [d for d in after.diagnostics if d.rule.startswith("source-") or (d.rule, d.message) not in standing]
    again = {(d.rule, d.span.file) for d in unread[1]}
    return [[d for d in unread[0] if (d.rule, d.span.file) not in again], brought]


def _render(revision: Revision, loaded: Loaded, diagnostics: Iterable[Diagnostic], style: Style) -> str:
    """Problems with `REVISION:` before the names of files."""
    named = [replace(d, span=replace(d.span, file=f"{revision.name}:{d.span.file}")) for d in diagnostics]
    texts = {f"{revision.name}:{file}": text for file, text in loaded.texts.items()}
    return render_text(named, texts, colour=style.colour)


def _about(revision: Revision) -> dict[str, str]:
    return {"revision": revision.name, "commit": revision.commit}
