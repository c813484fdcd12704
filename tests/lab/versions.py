# SPDX-License-Identifier: Apache-2.0
"""Another version of lbctl: a copy of this one with edits, to be run beside it."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from reconciler.lab.lab import Lab

CHECKOUT = Path(__file__).parents[2]
PARTS = ("reconciler", "bpf", "schema")

Edits = Mapping[str, Sequence[tuple[str, str]]]
"""File → pairs of a text that is in it once, and what takes its place."""

WIDER: Edits = {
    "bpf/maps.h": [
        ("that its nodes are on */\n};", "that its nodes are on */\n\tu32 timeout;\n};"),
        ("\tu8 echo;\n\tu8 pad[2];\n};", "\tu8 echo;\n\tu8 pad[2];\n\tu32 limit;\n};"),
        ("\tu8 version;\n\tu32 idle_s;", "\tu8 version;\n\tu64 began;\n\tu32 idle_s;"),
    ],
    "reconciler/dataplane/rows.py": [
        ("    levels: U16 = 0\n", "    levels: U16 = 0\n    timeout: U32 = 30\n"),
        ('    echo: U8\n    pad: Annotated[bytes, "V2"] = bytes(2)\n',
         '    echo: U8\n    pad: Annotated[bytes, "V2"] = bytes(2)\n    limit: U32 = 7\n'),
        ("    version: U8\n    idle_s: U32 = 0\n", "    version: U8\n    began: U64 = 0\n    idle_s: U32 = 0\n"),
    ],
    "reconciler/dataplane/layout.py": [("CHUNK_LINES, 4_096", "CHUNK_LINES, 2_048")],
    "reconciler/limits.py": [("FLOWS = 131_072", "FLOWS = 262_144")],
}  # fmt: skip
"""Rows of services, VIPs and fronts are wider, the table of connections is larger, that of chunks is smaller."""

NEWER: Edits = {"reconciler/dataplane/description.py": [("LAYOUT_VERSION = 1", "LAYOUT_VERSION = 2")]}


class Version:
    """A version whose files are below `directory`."""

    def __init__(self, directory: Path, *edits: Edits) -> None:
        self.directory = directory
        for part in PARTS:
            shutil.copytree(CHECKOUT / part, directory / part, ignore=shutil.ignore_patterns("__pycache__"))
        for edit in edits:
            for name, changes in edit.items():
                path = directory / name
                text = path.read_text()
                for before, after in changes:
                    assert text.count(before) == 1, (name, before, text.count(before))
                    text = text.replace(before, after)
                path.write_text(text)

    def lbctl(self, lab: Lab, *args: str, code: int | None = 0, host: str | None = None) -> str:
        """Run it on a host, by default the lab's balancer; returns what it prints. The exit code must be this one."""
        argv = lab.lbctl_argv(*args, host=host)[1:]
        start = [sys.executable, "-c", "from reconciler.cli.main import main; raise SystemExit(main())"]
        done = subprocess.run(
            [*start, *argv], cwd=self.directory, capture_output=True, text=True, timeout=600, check=False
        )
        assert code in (None, done.returncode), f"{args}: {done.returncode}\n{done.stdout}{done.stderr}"
        return done.stdout + done.stderr
