# SPDX-License-Identifier: Apache-2.0
"""`lbctl validate`: check manifests, anywhere: no root, no kernel, no bcc."""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping
from pathlib import Path

from reconciler import safe
from reconciler.cli.common import add_env, add_paths, shown, stdout_style
from reconciler.cli.streams import print_commands
from reconciler.config.checked import MAX_SHOWN
from reconciler.config.diagnostic import Diagnostic, Severity, in_order
from reconciler.config.load import Loaded
from reconciler.errors import UsageError

DESCRIPTION = """\
Check manifests and show all problems at once. A directory is checked as a whole; single files are checked for
what they hold themselves, without asking for the pools and services of other files."""
EPILOG = """\
examples:
  lbctl validate
  lbctl validate examples/configs/nat-tcp --strict
  lbctl validate clusters/prod --env prod --format sarif > lbctl.sarif

formats: auto is github in a GitHub workflow, else text; json, sarif and junit are for other programs

exit codes: 0 clean (warnings allowed, unless --strict), 1 problems, 2 wrong usage,
3 a fault of the system, or a bug in lbctl
"""
FORMATS = ("auto", "text", "json", "github", "sarif", "junit")


def arguments(parser: argparse.ArgumentParser) -> None:
    add_paths(parser)
    add_env(parser)
    parser.add_argument("--format", choices=FORMATS, default="auto", help="how problems are shown (%(default)s)")
    parser.add_argument("--strict", action="store_true", help="warnings are problems, too")


def run(args: argparse.Namespace) -> int:
    form = args.format
    if form == "auto":
        # In GitLab the text goes to the job's log; it reads JUnit reports from a file, which the job has to write.
        form = "github" if os.environ.get("GITHUB_ACTIONS") == "true" else "text"
    checked = _check(args, _root(form))
    diagnostics = in_order(diagnostic for loaded in checked.values() for diagnostic in loaded.diagnostics)
    failing = {Severity.ERROR, Severity.WARNING} if args.strict else {Severity.ERROR}
    if report := _report(form, checked, diagnostics, failing, args):
        (print_commands if form == "github" else print)(report)
    if form in ("text", "github"):
        for title, loaded in checked.items():
            print(f"{safe.line(title)}: {_summary(loaded, failing)}")
    return int(any(diagnostic.severity in failing for diagnostic in diagnostics))


def _check(args: argparse.Namespace, root: Path) -> dict[str, Loaded]:
    """The result for each directory, and one for all single files together. Names of files are relative to `root`."""
    from reconciler.config.load import check_manifests, no_garbage_collection
    from reconciler.config.overlay import rendered
    from reconciler.config.source import read_files, read_tree, renamed

    checked: dict[str, Loaded] = {}
    files = {shown(path, root): path for path in args.paths if path.is_file()}
    if files and args.env is not None:
        raise UsageError("the environment of a single file is not known", hint="give the directory that it belongs to")
    with no_garbage_collection():
        for path in args.paths:
            if not path.is_file():
                tree = rendered(read_tree(path), args.env)
                checked[shown(path, root)] = check_manifests(renamed(tree, path, shown(path, root)))
        if files:
            title = next(iter(files)) if len(files) == 1 else f"{len(files)} files"
            checked[title] = check_manifests(rendered(read_files(files), None))
    return checked


def _root(form: str) -> Path:
    """The directory that names of files are relative to: annotations need a file's name in the repository."""
    workspace = os.environ.get("GITHUB_WORKSPACE")
    return Path(workspace) if workspace and form in ("github", "sarif") else Path.cwd()


def _report(
    form: str,
    checked: Mapping[str, Loaded],
    diagnostics: tuple[Diagnostic, ...],
    failing: set[Severity],
    args: argparse.Namespace,
) -> str:
    if form == "github":
        from reconciler.render.github import render_github

        return render_github(diagnostics)
    if form == "sarif":
        from reconciler.render.sarif import render_sarif

        return render_sarif(diagnostics)
    if form == "junit":
        from reconciler.render.junit import render_junit

        return render_junit({title: (loaded.diagnostics, loaded.texts) for title, loaded in checked.items()}, failing)
    from reconciler.config.diagnostic import render_json, render_text

    if form == "json":
        return render_json(diagnostics)
    texts = {name: text for loaded in checked.values() for name, text in loaded.texts.items()}
    return render_text(diagnostics, texts, colour=stdout_style(args).colour, most=MAX_SHOWN)


def _summary(loaded: Loaded, failing: set[Severity]) -> str:
    if loaded.fleet is None or any(d.severity in failing for d in loaded.diagnostics):
        counts = [sum(d.severity is severity for d in loaded.diagnostics) for severity in Severity]
        text = ", ".join(_count(n, severity.value) for n, severity in zip(counts, Severity, strict=True) if n)
        return text if loaded.fleet is None else f"{text}; --strict lets none pass"
    kinds = {"service": loaded.fleet.services, "pool": loaded.fleet.pools, "node": loaded.fleet.nodes}
    return f"valid ({', '.join(_count(len(found), noun) for noun, found in kinds.items())})"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
