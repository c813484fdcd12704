# SPDX-License-Identifier: Apache-2.0
"""`lbctl metrics`: the node's counters and levels, and the agent's, as Prometheus reads them."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from reconciler import children
from reconciler.cli.common import from_agent, instance_dir, instance_name, may_only_ask, open_kernel, place_of
from reconciler.kernel.port import Kernel

if TYPE_CHECKING:
    from reconciler.readings.metrics import Family

DESCRIPTION = """\
Print the node's metrics in the text format of Prometheus: straight from the kernel's maps, and from the agent if one
answers. `lbctl run --metrics PORT` serves the same at http://127.0.0.1:PORT/metrics."""
EPILOG = """\
examples:
  lbctl metrics
  lbctl metrics --compat ipvs          # for dashboards that know node_exporter's names
  lbctl metrics --endpoints > /var/lib/node_exporter/lbctl.prom

exit codes: 0 done, 1 failed, 2 wrong usage
"""

MAX_SERIES = 20_000
LOOPBACK = "127.0.0.1"


def arguments(parser: argparse.ArgumentParser) -> None:
    add_endpoints(parser, "--endpoints")
    add_compat(parser, "--compat")


def add_compat(parser: argparse.ArgumentParser, option: str) -> None:
    what = "also by the names of node_exporter's IPVS collector, of HAProxy, or both: ipvs,haproxy"
    parser.add_argument(option, metavar="NAMES", type=compat, default=(), help=what)


def compat(text: str) -> tuple[str, ...]:
    """Names as `ipvs,haproxy`."""
    from reconciler.readings.compat import COMPAT

    names = tuple(dict.fromkeys(text.split(",")))
    if unknown := [name for name in names if name not in COMPAT]:
        raise argparse.ArgumentTypeError(f"expected {' or '.join(COMPAT)}, or both with a comma, got {unknown[0]!r}")
    return names


def add_endpoints(parser: argparse.ArgumentParser, option: str) -> None:
    parser.add_argument(option, action="store_true", help=f"also of each endpoint (of at most {MAX_SERIES:,} series)")


def run(args: argparse.Namespace) -> int:
    if may_only_ask(args):
        print(from_agent(args, {"ask": "metrics"})["text"], end="")
        return 0
    from reconciler.agent.control import NoAgentError, ask
    from reconciler.agent.metrics import agent_families
    from reconciler.readings.metrics import exposition

    families = _families(args, open_kernel(args), endpoints=args.endpoints, names=args.compat)
    with contextlib.suppress(NoAgentError, StopIteration):
        families[:0] = agent_families(next(ask(instance_dir(args), {"ask": "status"})))
    print(exposition(families, MAX_SERIES), end="")
    return 0


def _families(args: argparse.Namespace, kernel: Kernel, *, endpoints: bool, names: tuple[str, ...]) -> list[Family]:
    from reconciler.readings.compat import compat_families
    from reconciler.readings.metrics import health_families, node_families

    directory = instance_dir(args)
    return [
        *node_families(kernel, endpoints=endpoints), *health_families(directory),
        *compat_families(kernel, directory, names),
    ]  # fmt: skip


def address(text: str) -> tuple[str, int]:
    """`9100` or `10.0.0.1:9100` or `[2001:db8::1]:9100`; without an address the loopback's."""
    host, _, port = text.rpartition(":")
    if not port.isdigit() or not 0 <= int(port) < 65_536:
        raise argparse.ArgumentTypeError(f"expected a port, as 9100 or 10.0.0.1:9100, got {text!r}")
    return host.removeprefix("[").removesuffix("]") or LOOPBACK, int(port)


def another_kernel(args: argparse.Namespace) -> Kernel:
    """The agent's own kernel is at work in another thread, so whoever answers questions opens one for itself, in the
    network namespace that the process is in by now. Raises LbctlError."""
    from reconciler.kernel.real import RealKernel

    return RealKernel(instance_name(args), Path(args.run_dir), netns=args.netns or "")


def text_of(args: argparse.Namespace, status: Callable[[], dict[str, object]], kernel: Kernel | None = None) -> str:
    """The metrics of a running agent. Raises LbctlError.

    For others' names rings are read and flows listed: a process of its own does that, so the agent's rounds go on.
    """
    from reconciler.agent.metrics import agent_families
    from reconciler.agent.reads import said
    from reconciler.readings.metrics import exposition

    if args.metrics_compat:
        words = ["--compat", ",".join(args.metrics_compat), *(["--endpoints"] if args.metrics_endpoints else [])]
        return said(children.module("reconciler.cli.main", *place_of(args), "metrics", *words)).decode()
    own = kernel or another_kernel(args)
    of_node = _families(args, own, endpoints=args.metrics_endpoints, names=())
    return exposition([*agent_families(status()), *of_node], MAX_SERIES)
