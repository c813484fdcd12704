# SPDX-License-Identifier: Apache-2.0
"""Functions that several verbs share: open the node, load manifests, ask for approval."""

from __future__ import annotations

import argparse
import os
import socket
import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from reconciler import progress
from reconciler.cli import streams
from reconciler.errors import ConfigError, LbctlError, UsageError
from reconciler.kernel.port import Kernel
from reconciler.model import Fleet
from reconciler.render.style import Style
from reconciler.resource import Desired, Key
from reconciler.safe import SHOWN, line
from reconciler.target import Target

if TYPE_CHECKING:
    from reconciler.config.load import Loaded
    from reconciler.config.revision import Revision
    from reconciler.config.source import Tree
    from reconciler.plan import Plan

RUN_DIR, STATE_DIR = "/run/lbctl", "/var/lib/lbctl"
AGENT_PATIENCE_S = 120.0
"""How long an answer may take for which the agent reads maps."""
EXIT_CODES = "exit codes: 0 done, 1 failed, 2 wrong usage"


def stdout_style(args: argparse.Namespace) -> Style:
    return Style.for_stream(sys.stdout, args.no_color)


def instance_name(args: argparse.Namespace) -> str:
    """The name of the instance: the given one, else that of the network namespace, else `default`."""
    return str(args.instance or args.netns or "default")


def instance_dir(args: argparse.Namespace) -> Path:
    return Path(args.run_dir) / instance_name(args)


def place_of(args: argparse.Namespace) -> list[str]:
    """The options by which a process that works elsewhere finds this instance."""
    named = ["--run-dir", os.path.abspath(args.run_dir), "--instance", instance_name(args)]  # noqa: PTH100
    named += ["--state-dir", os.path.abspath(state_dir(args).parent)]  # noqa: PTH100
    return [*named, "--no-color", *(["--netns", args.netns] if args.netns else [])]


def state_dir(args: argparse.Namespace) -> Path:
    """Where the history of the instance is."""
    base = Path(args.state_dir) if args.state_dir else Path(STATE_DIR)
    if not args.state_dir and args.run_dir != RUN_DIR:
        base = Path(args.run_dir) / ".state"
    return base / instance_name(args)


def target(args: argparse.Namespace, node: str) -> Target:
    """The target that a saved plan for this node is bound to."""
    from reconciler.dataplane.description import own_layout

    return Target(node, instance_name(args), socket.gethostname(), own_layout())


def open_kernel(args: argparse.Namespace) -> Kernel:
    """The kernel that the arguments name, after entering its network namespace. Raises KernelError, and UsageError if
    the instance is in another namespace, or another instance is in this one."""
    from reconciler.kernel.netns import enter
    from reconciler.kernel.real import RealKernel

    if args.netns:
        enter(args.netns)
    kernel = RealKernel(instance_name(args), Path(args.run_dir), netns=args.netns or "")
    kernel.check_place()
    return kernel


def load_fleet(directory: Path, args: argparse.Namespace) -> Fleet:
    """The manifests below `directory`; prints every problem and raises ConfigError if any is an error."""
    return load_at_rest(directory, args)[0]


def load_at_rest(directory: Path, args: argparse.Namespace) -> tuple[Fleet, str]:
    """As `load_fleet`, but read while git does not change the files; also returns their digest."""
    fleet, loaded = load_whole(directory, args)
    return fleet, loaded.digest


def load_whole(directory: Path, args: argparse.Namespace) -> tuple[Fleet, Loaded]:
    """As `load_at_rest`, with all that was loaded. With --ref, a commit is read."""
    from reconciler.config.diagnostic import render_text
    from reconciler.config.load import check_manifests, no_garbage_collection
    from reconciler.config.rest import at_rest

    with no_garbage_collection():
        if getattr(args, "ref", None) is not None:
            revision, tree = _committed(directory, args)
            loaded = replace(check_manifests(tree), commit=revision.commit)
        else:
            loaded = at_rest(directory, lambda: check_manifests(read_named(directory, args.env)))
    if loaded.diagnostics:
        style = Style.for_stream(sys.stderr, args.no_color)
        print(render_text(loaded.diagnostics, loaded.texts, colour=style.colour, most=SHOWN), file=sys.stderr)
    if loaded.fleet is None:
        raise ConfigError("the manifests are not valid, nothing was changed")
    return loaded.fleet, loaded


def read_named(directory: Path, env: str | None) -> Tree:
    """The manifests below `directory`, rendered; the names of files are relative to the current directory."""
    from reconciler.config.overlay import rendered
    from reconciler.config.source import read_tree

    return named(rendered(read_tree(directory), env), directory)


def _committed(directory: Path, args: argparse.Namespace) -> tuple[Revision, Tree]:
    """The commit that --ref names, and what `read_named` reads in it. Raises UsageError."""
    from reconciler.config.overlay import rendered
    from reconciler.config.revision import locate, read_revision, resolve

    revision = resolve(locate(directory), args.ref)
    return revision, named(rendered(read_revision(revision), args.env), directory)


def add_ref(parser: argparse.ArgumentParser) -> None:
    what = "read a commit of the directory's git repository, not its files: HEAD, a branch, a tag"
    parser.add_argument("--ref", metavar="NAME", help=what)


def named(tree: Tree, directory: Path) -> Tree:
    """A tree whose files are named relative to the current directory."""
    from reconciler.config.source import renamed

    return renamed(tree, directory, shown(directory))


def shown(path: Path, root: Path | None = None) -> str:
    """A path relative to `root` (None: the current directory); absolute if it leads out of it."""
    absolute = Path(os.path.abspath(path))  # noqa: PTH100 - keeps links
    root = root or Path.cwd()
    return str(absolute.relative_to(root)) if absolute.is_relative_to(root) else str(absolute)


def look_again(directory: Path, digest: str, removed: int, args: argparse.Namespace) -> None:
    """Before anything is removed, make sure that no program is changing the files; a commit never changes. Raises
    ConfigError if one is."""
    from reconciler.config.rest import SECOND_LOOK_S, at_rest
    from reconciler.config.source import read_tree

    if removed and args.ref is None:
        time.sleep(SECOND_LOOK_S)
        if at_rest(directory, lambda: read_tree(directory)).digest != digest:
            raise ConfigError(f"{directory} changed while it was looked at", hint="try again when it is at rest")


def may_only_ask(args: argparse.Namespace) -> bool:
    """Whether this user can't read the instance, but there is an agent that may be asked."""
    directory = instance_dir(args)
    is_shut = os.geteuid() != 0 and not os.access(directory, os.R_OK)
    return is_shut and os.path.exists(directory / "control")  # noqa: PTH110 - it is a question, also where it is shut


def from_agent(args: argparse.Namespace, request: dict[str, Any]) -> dict[str, Any]:
    """The agent's one answer. Raises NoAgentError, LbctlError."""
    from reconciler.agent.control import ask

    with progress.step("asking the agent"):
        for answer in ask(instance_dir(args), request, AGENT_PATIENCE_S):
            return answer
    raise LbctlError("the agent has ended while it was asked", hint="see its log: `journalctl -u lbctl`")


def add_output(parser: argparse.ArgumentParser, *more: str, schema: str) -> None:
    """-o, and --format, as other verbs and versions call it."""
    choices = ("text", "json", *more)
    what = f"one of {', '.join(choices)}; for machines see schema/output/{schema}"
    parser.add_argument(
        "-o", "--output", "--format", dest="format", metavar="FORMAT", choices=choices, default="text", help=what
    )


def add_json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_const", const="json", dest="format", help="the same as -o json")


def add_node(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--node", metavar="NAME", help="which Node this is (that of the host's name, or the only one)")


def add_targets(parser: argparse.ArgumentParser) -> None:
    what = "only service/NAME, pool/NAME or 'KIND ID' as in a plan, and what that needs; may be repeated"
    parser.add_argument("--target", metavar="WHAT", action="append", default=[], help=what)


def aimed_at(args: argparse.Namespace, planned: Plan, fleet: Fleet, applied: Mapping[Key, str]) -> Plan:
    """The part of a plan that --target asks for, which is all of it without that. Raises UsageError."""
    from reconciler.aim import aimed, narrowed

    return narrowed(planned, aimed(args.target, planned, fleet), applied) if args.target else planned


def left_out(planned: Plan, part: Plan, args: argparse.Namespace) -> str:
    """A line on what --target leaves out; empty if nothing is."""
    count = len(planned.changes) + len(planned.blocked) - len(part.changes) - len(part.blocked)
    targets = ", ".join(args.target)
    return line(f"Only {targets} and what that needs; changes left out: {count:,}.") if args.target else ""


def add_max_prune(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--max-prune", metavar="N", type=int, help="refuse to remove more than N resources at once")


def add_adopt(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--adopt", action="store_true",
        help="take over what others made where manifests ask for something in its place: VIPs on the loopback, "
        "routes, tunnels, programs on interfaces, the configuration of FRR's BGP and of keepalived",
    )  # fmt: skip


_ADOPTED = ("loopback", "tunnel", "xdp", "hop-group", "routing", "vrrp")
"""The kinds whose readings name what others made."""


def adopting(args: argparse.Namespace, kernel: Kernel, desired: Desired) -> None:
    """With --adopt, say whose objects will be lbctl's, and let the kernel do so. Raises KernelError."""
    if args.adopt:
        from reconciler.live import read_live

        found = read_live(kernel, desired.resources, _ADOPTED).foreign
        for key, owner in sorted(item for item in found.items() if item[0] in desired.resources):
            say(f"--adopt takes over {key}: {line(owner)}")
        kernel.adopts = True


def add_paths(parser: argparse.ArgumentParser) -> None:
    paths = "directories or files (the current directory)"
    parser.add_argument("paths", metavar="PATH", type=Path, nargs="*", default=[Path()], help=paths)


def add_env(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--env", metavar="NAME", help="render templates with the values of environments/NAME.yaml")


def most_shown() -> int | None:
    """How many changes that are alike are shown: some on a terminal, where nobody reads thousands; all (None) where
    they are kept."""
    return SHOWN if sys.stdout.isatty() else None


def say(text: str) -> None:
    """Print a line during work that has to be finished even if nobody can read the line."""
    try:
        print(text, flush=True)
    except OSError:  # the reader is gone, or the disk is full
        streams.give_up_stdout()


def confirm(question: str, args: argparse.Namespace) -> bool:
    """Ask on the terminal; only `yes` means yes. Raises UsageError if there is no terminal."""
    if args.auto_approve:
        return True
    if not sys.stdin.isatty():
        raise UsageError("there is no terminal on which to approve this", hint="say --auto-approve")
    print(f"{question} Only 'yes' will do: ", end="", flush=True)
    answer = sys.stdin.readline()
    if not answer.endswith("\n"):  # Ctrl-D
        print()
    return answer.strip() == "yes"
