# SPDX-License-Identifier: Apache-2.0
"""`lbctl diff`: the differences between two revisions of the manifests, and their effects on traffic."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from reconciler import progress
from reconciler.cli.common import add_env, stdout_style
from reconciler.config.diagnostic import Diagnostic, Severity, render_text
from reconciler.config.load import Known, Loaded, check, no_garbage_collection
from reconciler.config.revision import (
    MAX_FORMER,
    Revision,
    former_states,
    knows_all,
    locate,
    read_revision,
    resolve_range,
)
from reconciler.config.source import read_tree
from reconciler.errors import ConfigError, LbctlError, UsageError
from reconciler.model import Fleet
from reconciler.render.style import Style
from reconciler.safe import SHOWN

DESCRIPTION = """\
Compare the manifests of two git revisions by what they mean: services, pools and nodes, the plan of every node,
and what becomes of traffic. Moved files, another order and comments are no difference. Reads the repository only:
no checkout, no node, no root."""
EPILOG = """\
revisions:
  A..B     from A to B
  A...B    from where B branched off A: what a merge request changes
  A        the same as A..HEAD; what is left out of A..B is HEAD
Where A is not valid, the last state before it that is takes its place: that is what nodes hold meanwhile.
A bare repository is read if GIT_DIR names it.

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
        if error.exit_code == 1:  # for this verb, 1 means that there are differences
            error.exit_code = _TROUBLE
        raise


def _run(args: argparse.Namespace) -> int:
    from reconciler.diff.fleet import compare
    from reconciler.render.diff import diff_json, diff_markdown, diff_text

    try:
        asked, new = resolve_range(locate(args.path), args.revisions)
    except UsageError as error:
        if Path(args.revisions).exists():
            hint = f"revisions come first: `lbctl diff HEAD~1 {args.revisions}`"
            raise UsageError(f"{args.revisions} is a path, and no revision", hint=hint) from error
        raise
    old, before, after = _fleets(asked, new, args)
    with progress.step("comparing"):
        diff = compare(before, after, args.node)
    title = args.revisions if ".." in args.revisions else f"{args.revisions}..HEAD"
    if old is not asked:
        title = f"{asked.name} (not valid, so {old.name} before it)..{new.name}"
    if args.format == "json":
        revisions = {"from": _about(old), "to": _about(new), "path": old.place.path}
        print(json.dumps(diff_json(diff, old.name) | revisions, indent=2))
    elif args.format == "markdown":
        print(diff_markdown(diff, title, old.name), end="")
    else:
        print(diff_text(diff, title, old.name, stdout_style(args), whole_plans=args.node is not None))
    return int(diff.differs)


def _fleets(old: Revision, new: Revision, args: argparse.Namespace) -> tuple[Revision, Fleet, Fleet]:
    """The fleets of both revisions, and the revision of the first fleet; prints the revisions' problems.

    An old revision that is not valid is on no node, so the last valid one before it takes its place.
    Raises InvalidRevisionError.
    """
    from reconciler.diff.manifests import few

    style = Style.for_stream(sys.stderr, args.no_color)
    known = Known()  # most files are the same in both
    with no_garbage_collection():
        before, after = (_loaded(revision, args.env, known) for revision in (old, new))
    is_valid = before.fleet is not None and after.fleet is not None
    told = _warnings(before, after) if is_valid else [_errors(before), _errors(after)]
    for revision, loaded, diagnostics in zip((old, new), (before, after), told, strict=True):
        if diagnostics:
            print(_render(revision, loaded, diagnostics, style), file=sys.stderr)
    if after.fleet is None:
        invalid = [revision.name for revision, diagnostics in zip((old, new), told, strict=True) if diagnostics]
        raise InvalidRevisionError(f"the manifests of {' and of '.join(invalid)} are not valid")
    if new.name == "HEAD" and (edited := _edited(args.path, after)):
        print(
            f"{style.warn('warning')}: not in HEAD, and so not compared: {few(edited)}; commit first, or see "
            "`lbctl plan` for what is not committed",
            file=sys.stderr,
        )
    if before.fleet is not None:
        return old, before.fleet, after.fleet
    used, fleet = _last_valid(old, args.env, known)
    print(f"{style.warn('warning')}: {old.name} is not valid; compared with {used.name} before it", file=sys.stderr)
    return used, fleet, after.fleet


def _loaded(revision: Revision, env: str | None, known: Known) -> Loaded:
    with progress.step(f"reading {revision.name}"):
        return check(read_revision(revision), env, known)


def _last_valid(broken: Revision, env: str | None, known: Known) -> tuple[Revision, Fleet]:
    """The revision that nodes hold while a later one is not valid: the last valid one before it, or an empty fleet."""
    former = list(former_states(broken))
    for revision in former:
        with no_garbage_collection():
            loaded = _loaded(revision, env, known)
        if loaded.fleet is not None:
            return revision, loaded.fleet
    if len(former) < MAX_FORMER - 1 and knows_all(broken.place):
        return Revision("nothing", "", "", broken.place), Fleet()
    raise InvalidRevisionError(
        f"the manifests of {broken.name} are not valid, nor is any of the {len(former)} states known before it",
        hint="a shallow clone lacks older ones: `git fetch --unshallow`; or compare with a revision that is valid",
    )


def _edited(path: Path, committed: Loaded) -> list[str]:
    """The manifests of a work tree that differ from the revision's, including added and removed ones."""
    if not path.is_dir():
        return []
    there = read_tree(path).texts
    names = there.keys() | committed.texts.keys()
    return sorted(name for name in names if there.get(name) != committed.texts.get(name))


def _errors(loaded: Loaded) -> list[Diagnostic]:
    return [d for d in loaded.diagnostics if d.severity is Severity.ERROR]


def _warnings(before: Loaded, after: Loaded) -> list[list[Diagnostic]]:
    """The problems of each revision that are worth showing: unread files, and the warnings that the new one adds."""
    unread = [[d for d in loaded.diagnostics if d.rule.startswith("source-")] for loaded in (before, after)]
    standing = {(d.rule, d.message) for d in before.diagnostics}
    brought = [d for d in after.diagnostics if d.rule.startswith("source-") or (d.rule, d.message) not in standing]
    again = {(d.rule, d.span.file) for d in unread[1]}
    return [[d for d in unread[0] if (d.rule, d.span.file) not in again], brought]


def _render(revision: Revision, loaded: Loaded, diagnostics: Iterable[Diagnostic], style: Style) -> str:
    """Problems with `REVISION:` before the names of files."""
    named = [replace(d, span=replace(d.span, file=f"{revision.name}:{d.span.file}")) for d in diagnostics]
    texts = {f"{revision.name}:{file}": text for file, text in loaded.texts.items()}
    return render_text(named, texts, colour=style.colour, most=SHOWN)


def _about(revision: Revision) -> dict[str, str]:
    return {"revision": revision.name, "commit": revision.commit}
