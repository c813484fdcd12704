# SPDX-License-Identifier: Apache-2.0
"""`lbctl fmt`: write manifests in their canonical form."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from reconciler import progress
from reconciler.cli.common import add_paths, shown
from reconciler.config.diagnostic import Diagnostic, in_order, render_text
from reconciler.config.listing import TEMPLATE_SUFFIX
from reconciler.config.source import SourceFile, Tree, read_files, read_tree, renamed
from reconciler.errors import LbctlError, UsageError
from reconciler.render.style import Style
from reconciler.safe import SHOWN, line

DESCRIPTION = """\
Write manifests in their canonical form: keys in the order of the reference, two spaces a level, quotes only where
they are needed. Comments and single empty lines stay, and so does the meaning. The files that change are named.
Templates and environments are left alone, and so is what can't be read as YAML, which is reported."""
EPILOG = """\
examples:
  lbctl fmt
  lbctl fmt clusters/prod/pools.yaml
  lbctl fmt --check           # in CI: names the files that are not in their canonical form

exit codes: 0 done, 1 broken files, or with --check files that would change, 2 wrong usage,
3 a fault of the system, or a bug in lbctl
"""


def arguments(parser: argparse.ArgumentParser) -> None:
    add_paths(parser)
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 if a file would change")


def run(args: argparse.Namespace) -> int:
    from reconciler.config.fmt import canonical
    from reconciler.config.load import no_garbage_collection

    problems: list[Diagnostic] = []
    texts: dict[str, str] = {}
    changed = False
    with no_garbage_collection():
        for tree in _trees(args.paths):
            problems += tree.diagnostics
            texts.update(tree.texts)
            for file in progress.each("formatting", tree.files, "files"):
                form, complaints = canonical(file)
                problems += complaints
                if form != file.text:
                    changed = True
                    print(line(file.name))
                    if not args.check:
                        _write(file, form)
    if problems:
        colour = Style.for_stream(sys.stderr, args.no_color).colour
        print(render_text(in_order(problems), texts, colour=colour, most=SHOWN), file=sys.stderr)
    return int(bool(problems) or (args.check and changed))


def _trees(paths: list[Path]) -> Iterator[Tree]:
    """The manifests of each named directory, and the manifests that are named themselves. Raises UsageError."""
    from reconciler.config.overlay import split

    files = {shown(path): path for path in paths if path.is_file()}
    if template := next((name for name in files if name.endswith(TEMPLATE_SUFFIX)), None):
        raise UsageError(f"{template} is a template, and those have no canonical form")
    for path in paths:
        if not path.is_file():
            tree = read_tree(path)
            yield renamed(replace(tree, files=tuple(split(tree)[0])), path, shown(path))
    if files:
        yield read_files(files)


def _write(file: SourceFile, text: str) -> None:
    """Replace a file. A link to it stays one. Raises LbctlError."""
    from reconciler.files import write_output

    if "\\" in file.name:  # the name was escaped to be printable: another file may have the escaped name
        raise LbctlError(f"{file.name} can't be written under its name", hint="rename it")
    try:
        write_output(Path(file.name), text.encode())
    except OSError as error:
        raise LbctlError(f"{file.name} can't be written: {error.strerror}") from error
