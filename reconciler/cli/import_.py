# SPDX-License-Identifier: Apache-2.0
"""`lbctl import`: turn other tools' configuration, or a node's live state, into manifests."""

from __future__ import annotations

import argparse
import importlib
import json
import socket
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from reconciler import progress
from reconciler.errors import LbctlError
from reconciler.importers import FORMATS
from reconciler.importers.draft import InputError, Line, file_of
from reconciler.render.style import Style

if TYPE_CHECKING:
    from reconciler.importers.draft import Imported

STDIN = "-"
MAX_BYTES = 32 << 20

DESCRIPTION = """\
Turn the configuration of another load balancer, or the live state of this node, into manifests. What has no
counterpart is never dropped in silence: each such thing is a warning that says what was done instead.

formats:
""" + "".join(f"  {name:<11} {text}\n" for name, text in FORMATS.items()) + """\
  live        this node itself; with a FILE, a snapshot that `lbctl export` wrote
"""  # fmt: skip
EPILOG = """\
examples:
  ipvsadm-save -n | lbctl import ipvsadm
  lbctl import keepalived /etc/keepalived/keepalived.conf --out manifests
  cat lbconfig.txt EPconfig.txt | lbctl import loxilb - --out manifests
  lbctl import live --out manifests

exit codes: 0 done (warnings allowed), 1 failed, 2 wrong usage
"""


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("format", choices=(*FORMATS, "live"), metavar="FORMAT", help="what the input is, see above")
    parser.add_argument("file", nargs="?", metavar="FILE", help="the input; `-` or nothing: standard input")
    parser.add_argument("--out", type=Path, metavar="DIR", help="write files there instead of to standard output")


def run(args: argparse.Namespace) -> int:
    from reconciler.importers import emit
    from reconciler.importers.fold import folded

    name = args.file if args.file not in (None, STDIN) else "this node" if args.format == "live" else "standard input"
    try:
        imported = _live(args) if args.format == "live" else _parse(args)
    except InputError as error:
        raise LbctlError(f"{_place(name, file_of(error.line), error.line)}{error.what}", hint=error.hint) from None
    style = Style.for_stream(sys.stderr, True)  # nothing is painted
    for notice in folded(imported.warnings):
        warning = f"{_place(name, notice.file, notice.line)}warning: {notice.message}"
        print(style.fitted(warning, "  "), file=sys.stderr)
    if not imported.manifests:
        raise LbctlError("nothing is left to write", hint="the warnings say why")
    origin = _origin(args)
    if args.out is None:
        print(emit.text(imported.manifests, origin), end="")
    else:
        _write(args.out, emit.files(imported.manifests, origin))
    return 0


def _place(name: str, included: str, line: int) -> str:
    """The place at the begin of a message: the file, or an included one, and the line."""
    if included:
        name = str(Path(name).parent / included)
    shown = "".join(c if c.isprintable() else "\ufffd" for c in name)
    return f"{shown}:{line}: " if line else f"{shown}: "


def _origin(args: argparse.Namespace) -> str:
    file = Path(args.file).name if args.file not in (None, STDIN) else ""
    if args.format == "live":
        return f"the live state in {file}" if args.file else f"the live state of {socket.gethostname()}"
    return f"{file} ({args.format})" if file else args.format


def _parse(args: argparse.Namespace) -> Imported:
    text = _text("", _read(args.file or STDIN))
    module = importlib.import_module(f"reconciler.importers.{args.format}")
    imported: Imported
    with progress.step("importing"):
        if args.format == "keepalived" and args.file not in (None, STDIN):
            from reconciler.importers.keepalived_include import reader_for

            imported = module.parse(text, reader_for(Path(args.file), _text, MAX_BYTES))
        else:
            imported = module.parse(text)
    return imported


def _text(file: str, content: bytes) -> str:
    """The text of a file. Bytes that are no UTF-8 are replaced: old comments often have some."""
    if (zero := content.find(b"\0")) >= 0:
        line = content.count(b"\n", 0, zero) + 1
        raise InputError(Line.of(file, line), "the input is no text", hint="is it the right file?")
    return content.decode(errors="replace").removeprefix("\ufeff")


def _live(args: argparse.Namespace) -> Imported:
    from reconciler.importers.live import import_live, read_for_import
    from reconciler.snapshot import live_from_json

    if args.file is None:
        from reconciler.cli.common import open_kernel

        live = read_for_import(open_kernel(args))
        with progress.step("importing"):
            return import_live(live, socket.gethostname())
    try:
        data = json.loads(_read(args.file).decode())
    except (ValueError, RecursionError):
        raise LbctlError(f"{args.file} is no snapshot", hint="make one with `lbctl export`") from None
    return import_live(live_from_json(data), socket.gethostname())


def _read(file: str) -> bytes:
    try:
        if file == STDIN:
            content = sys.stdin.buffer.read(MAX_BYTES + 1)
        else:
            with Path(file).open("rb") as stream:
                content = stream.read(MAX_BYTES + 1)
    except OSError as error:
        raise LbctlError(f"{file} can't be read: {error.strerror}") from error
    if len(content) > MAX_BYTES:
        raise LbctlError(f"the input is larger than {MAX_BYTES >> 20} MiB", hint="is it the right file?")
    return content


def _write(directory: Path, files: dict[str, str]) -> None:
    """Write all files or none; existing files are not replaced."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        for name in files:
            if (directory / name).exists():
                raise LbctlError(f"{directory / name} is there already", hint="name a directory without it: --out DIR")
        for name, content in files.items():
            with (directory / name).open("x", encoding="utf-8") as stream:
                stream.write(content)
            print(f"{directory / name} written")
    except OSError as error:
        raise LbctlError(f"{error.filename} can't be written: {error.strerror}") from error
