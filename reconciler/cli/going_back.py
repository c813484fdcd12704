# SPDX-License-Identifier: Apache-2.0
"""Goes back to what was applied before: a revision of the history, or nothing at all."""

from __future__ import annotations

import argparse
from dataclasses import replace

from reconciler.apply import Result
from reconciler.cli.common import confirm, instance_dir, most_shown, open_kernel, say, state_dir, stdout_style, target
from reconciler.cli.execute import execute
from reconciler.cli.recording import Source, note_down
from reconciler.errors import ConfigError
from reconciler.history import History
from reconciler.kernel.port import Kernel
from reconciler.resource import Desired


def go_back(args: argparse.Namespace, revision: str, who: str = "") -> int:
    """Bring the node to a revision of the history, "" for nothing at all, once that is approved. The exit code."""
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
