# SPDX-License-Identifier: Apache-2.0
"""Writes down in the history what a verb has applied, and goes back to what was applied before."""

from __future__ import annotations

import argparse
import os
import sys
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from reconciler.apply import Result
from reconciler.cli.common import (
    confirm,
    instance_dir,
    most_shown,
    open_kernel,
    say,
    shown,
    state_dir,
    stdout_style,
    target,
)
from reconciler.errors import ConfigError, LbctlError
from reconciler.history import APPLIED, DELETED, FAILED, MAX_LINES, PARTLY, Counts, Entry, History, Manifests
from reconciler.kernel.port import Kernel
from reconciler.notes import user
from reconciler.render.style import Style
from reconciler.render.text import change_line
from reconciler.resource import Action, Desired, actions_of

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


def go_back(args: argparse.Namespace, revision: str, who: str = "") -> int:
    """Bring the node to a revision of the history, "" for nothing at all, once that is approved. The exit code."""
    from reconciler.cli.apply import execute
    from reconciler.live import with_connections
    from reconciler.reconcile import plan_node
    from reconciler.render.text import plan_text

    style, kernel = stdout_style(args), open_kernel(args)
    desired, source = _wanted(args, revision, kernel)
    planned = plan_node(desired, kernel, instance_dir(args))
    planned = replace(planned, live=with_connections(planned.live, kernel))
    print(plan_text(planned, style, target(args, desired.node), most_shown()), end="\n\n")
    if not planned.changes:
        note_down(args, source, Result(), who)
        return 0
    if not confirm("Make these changes?", args):
        print("Nothing was changed.")
        return 1
    return execute(planned, kernel, args, style, source, who)


def _wanted(args: argparse.Namespace, revision: str, kernel: Kernel) -> tuple[Desired, Source]:
    """What a revision asks for. Raises UsageError, ConfigError."""
    from reconciler.config.diagnostic import render_text
    from reconciler.config.load import check
    from reconciler.config.source import tree_of
    from reconciler.reconcile import desired_of, known_wish

    if not revision:
        return Desired(), Source(removes=True)
    manifests = History(state_dir(args)).manifests(revision)
    node = args.node or manifests.node
    loaded = check(tree_of({name: text.encode() for name, text in manifests.texts.items()}, ()), manifests.env)
    if loaded.fleet is None:
        say(render_text(loaded.diagnostics, loaded.texts, colour=stdout_style(args).colour))
        hint = "they were valid for the version of lbctl that applied them"
        raise ConfigError(f"the manifests of revision {revision[:12]} are not valid", hint=hint)
    wish = known_wish(instance_dir(args))
    return desired_of(loaded.fleet, node, kernel, wish), Source(revision, replace(manifests, node=node))
