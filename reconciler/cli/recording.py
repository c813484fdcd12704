# SPDX-License-Identifier: Apache-2.0
"""Writes down in the history what a verb has applied."""

from __future__ import annotations

import argparse
import os
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

from reconciler.apply import Result
from reconciler.cli.common import shown, state_dir
from reconciler.errors import LbctlError
from reconciler.history import APPLIED, DELETED, FAILED, MAX_LINES, PARTLY, Counts, Entry, History, Manifests
from reconciler.notes import user
from reconciler.render.style import Style
from reconciler.render.text import change_line
from reconciler.resource import Action, actions_of

if TYPE_CHECKING:
    from pathlib import Path

    from reconciler.config.load import Loaded


@dataclass(frozen=True, slots=True)
class Source:
    """What a plan was made from. `revision` is empty where nobody knows it: a saved plan; `removes` all: `delete`."""

    revision: str = ""
    manifests: Manifests | None = None
    removes: bool = False
    commit: str = ""
    """Which the manifests were read from; empty if from files."""


def source_of(loaded: Loaded, directory: Path, args: argparse.Namespace) -> Source:
    """The source that a loaded directory is, its files named relative to it."""
    root = shown(directory)
    texts = {os.path.relpath(name, root): text for name, text in loaded.texts.items()}
    return Source(loaded.digest, Manifests(texts, args.env, args.node), commit=loaded.commit)


def note_down(args: argparse.Namespace, source: Source, result: Result, who: str = "") -> None:
    """Write down what was done. If that fails there is a warning: the node is what counts."""
    done = [change for change in result.done if change.key not in result.failed]
    if source.removes:
        word = DELETED if not result.lost else PARTLY
    else:
        word = APPLIED if not result.lost else PARTLY if done else FAILED
    messages = [f"{key}: {error}" for key, error in sorted(result.failed.items())]
    messages += [f"{key}: {why}" for key, why in sorted(result.blocked.items())]
    counts = actions_of(done)
    entry = Entry(
        source.revision, who or user(), Counts(*(counts[action] for action in Action)), word,
        "; ".join(messages[:3]), [change_line(change, Style()) for change in done[:MAX_LINES]], commit=source.commit,
    )  # fmt: skip
    try:
        History(state_dir(args)).add(entry, source.manifests)
    except LbctlError as error:
        print(f"warning: this is not in the history: {error}", file=sys.stderr)
