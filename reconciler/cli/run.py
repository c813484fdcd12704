# SPDX-License-Identifier: Apache-2.0
"""`lbctl run`: the agent in the foreground; systemd or a container keeps it going."""

from __future__ import annotations

import argparse
import grp
import os
import signal
import socket
import time
from dataclasses import replace

from reconciler.cli import streams
from reconciler.cli.common import (
    add_env,
    add_max_prune,
    add_node,
    instance_dir,
    instance_name,
    open_kernel,
    place_of,
    state_dir,
    stdout_style,
)
from reconciler.cli.duration import seconds
from reconciler.cli.metrics import add_compat, add_endpoints, address, another_kernel, text_of
from reconciler.cli.sources import add_sources, opened
from reconciler.errors import UsageError
from reconciler.render.style import Style
from reconciler.version import VERSION

DESCRIPTION = """\
Keep this node as the manifests say: watch the directory, apply what changes, mend what drifts. A directory
that has problems changes nothing; the node is kept as it was last asked for. Stopping the agent stops no
traffic, and takes nothing off the node."""
EPILOG = """\
examples:
  lbctl run /etc/lbctl
  lbctl run /srv/git-sync/current --node lb1 --resync 10s
  lbctl run /srv/fleet --ref HEAD                    # what is committed there, never half a checkout
  lbctl run https://git.example.org/fleet.git --path lb --allowed-signers /etc/lbctl-signers
  lbctl run /etc/lbctl --group lbctl --log-format json

`lbctl status` and `lbctl events` ask a running agent, at a socket in the instance's directory: root, and the
members of --group.

signals: TERM or INT finish the change under way and stop; HUP looks at everything again at once

environment: NOTIFY_SOCKET, as systemd sets it for Type=notify: ready when the node is as the manifests say,
apart from what it can't hold, then its state after each round; WATCHDOG_USEC, as set for WatchdogSec=

exit codes: 0 stopped by a signal, 1 could not start, 2 wrong usage
"""

GROUP = "lbctl"


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "source", help="a directory of manifests (may be a link that is swapped), or the URL of a git repository"
    )
    add_node(parser)
    add_env(parser)
    parser.add_argument("--allow-empty", action="store_true", help="also if no service at all is left")
    add_max_prune(parser)
    parser.add_argument(
        "--resync", metavar="TIME", type=seconds, default="30s",
        help="look at all files and the whole node this often, e.g. 10s or 5m (%(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--group", metavar="NAME", help="who may ask the agent, besides root (the group `lbctl`, if there is one)"
    )
    parser.add_argument(
        "--metrics",
        metavar="[ADDRESS:]PORT",
        type=address,
        help="serve metrics over HTTP (off; without ADDRESS: loopback)",
    )
    add_endpoints(parser, "--metrics-endpoints")
    add_compat(parser, "--metrics-compat")
    add_sources(parser, seconds)
    parser.add_argument(
        "--web", metavar="[ADDRESS:]PORT", type=address,
        help="serve a page that shows the node, read-only, and metrics (off; without ADDRESS: loopback)",
    )  # fmt: skip
    parser.add_argument("--log-format", choices=("text", "json"), default="text", help="lines for people or machines")


def _group(name: str | None) -> int | None:
    """The number of the group whose members may ask; None: nobody but root. Raises UsageError."""
    try:
        return grp.getgrnam(name or GROUP).gr_gid
    except KeyError:
        if name is None:
            return None
        raise UsageError(f"there is no group {name}", hint=f"make it: groupadd --system {name}") from None


def _manifests(args: argparse.Namespace) -> list[str]:
    """The directory of manifests and the options that say how it is read; empty if they are no files."""
    directory = os.path.abspath(args.source)  # noqa: PTH100 - keeps links
    if args.ref is not None or not os.path.isdir(directory):  # noqa: PTH112 - it is a question
        return []
    return [directory, *(["--node", args.node] if args.node else []), *(["--env", args.env] if args.env else [])]


def run(args: argparse.Namespace) -> int:
    from reconciler.agent.commands import commands
    from reconciler.agent.control import listening
    from reconciler.agent.edits import EditClock
    from reconciler.agent.endpoints import Endpoints
    from reconciler.agent.forks import Forks
    from reconciler.agent.journal import Identity, Journal
    from reconciler.agent.loop import Agent
    from reconciler.agent.notices import Notices
    from reconciler.agent.page import Sources, content
    from reconciler.agent.reads import reads
    from reconciler.agent.recorder import Recorder
    from reconciler.agent.report import Report
    from reconciler.agent.single import only_agent
    from reconciler.agent.state import headline, state_of
    from reconciler.agent.systemd import notifier, watchdog
    from reconciler.agent.wake import Doorbell, Wake
    from reconciler.agent.web import Kept, serving
    from reconciler.cli.confirm import Watches, held_by
    from reconciler.history import History
    from reconciler.kernel.mark import protocol_of
    from reconciler.private import stop_waiting
    from reconciler.render.page import page
    from reconciler.resource import Desired

    gid = _group(args.group)
    with notifier() as notify:  # before another network namespace is entered
        bell = Doorbell(alive=watchdog(notify))
        kernel = open_kernel(args)
        with only_agent(instance_dir(args)):
            journal = Journal()
            # The lines of a log stay whole: each begins with its time.
            recorder = Recorder(History(state_dir(args)), args.env)
            watches = Watches(args)
            as_json = args.log_format == "json"
            style = Style() if as_json else replace(stdout_style(args), columns=None)
            report = Report(streams.log(), style, listeners=[journal.hear, recorder.hear], as_json=as_json)
            origin = opened(args, report, lambda is_settled: bell.ring(Wake.SETTLED if is_settled else Wake.FILES))
            journal.identity = Identity(
                os.getpid(), VERSION, args.node or "", socket.gethostname(), instance_name(args), origin.shown
            )
            endpoints = Endpoints(instance_dir(args), report, time.monotonic, lambda: bell.ring(Wake.HEALTH))

            mark = protocol_of(instance_name(args))
            notices = Notices(lambda: bell.ring(Wake.HEALTH), report, mark)

            def held() -> str:
                text, change = held_by(instance_dir(args))
                if change is not None and change.is_over:
                    watches.renew(change)
                return text

            edits = EditClock(journal.edited)

            def told(agent: Agent) -> None:
                edits.look(agent, bell.files_s)
                recorder.record(agent)
                state = state_of(agent, recorder.in_force(agent))
                journal.publish(state)
                notify(f"STATUS={headline(state)}")

            agent = Agent(
                manifests=origin.manifests,
                kernel=kernel,
                instance_dir=instance_dir(args),
                node=args.node,
                allow_empty=args.allow_empty,
                resync_s=args.resync,
                clock=time.monotonic,
                wait=bell.wait,
                report=report,
                ready=lambda: notify("READY=1"),
                named=bell.named,
                is_called=bell.has_rung,
                endpoints=endpoints,
                max_prune=args.max_prune,
                notices=notices,
                held=held,
                told=told,
            )

            def stop(*_: object) -> None:
                stop_waiting()
                bell.ring(Wake.STOP)

            signal.signal(signal.SIGTERM, stop)
            signal.signal(signal.SIGINT, stop)
            signal.signal(signal.SIGHUP, lambda *_: bell.ring(Wake.RELOAD))
            node = f"node {args.node}" if args.node else f"the node named {socket.gethostname()}, or the only one"
            origin.start()
            report.say(f"Watching {origin.shown} for {node}; instance {instance_name(args)}, pid {os.getpid()}")
            endpoints.start()
            notices.start()

            metrics = Kept(lambda: text_of(args, journal.status)).text  # whoever asks, and wherever

            def wanted() -> Desired | None:
                return agent.latest.desired if agent.latest else None

            sources = Sources(journal.status, wanted, lambda: another_kernel(args), instance_dir(args))

            def shown_page(is_live: bool) -> str:
                return page(content(sources), live=is_live)

            answers = {
                **commands(journal, report, bell, origin.look),
                **reads(place_of(args), state_dir(args), metrics, Forks(), _manifests(args)),
            }
            try:
                with (
                    listening(instance_dir(args), answers, gid),
                    serving(args.metrics, metrics),
                    serving(args.web, metrics, shown_page),
                ):
                    agent.run()
            finally:
                notify("STOPPING=1")
                origin.stop()
                notices.stop()
                endpoints.stop()
            report.say("Stopped. The node is left as it is: traffic goes on.")
    return 0
