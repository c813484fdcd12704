# SPDX-License-Identifier: Apache-2.0
"""`lbctl top`: what services, endpoints and reasons of drop get a second, live."""

from __future__ import annotations

import argparse
import contextlib
import time
from datetime import datetime
from typing import TYPE_CHECKING

from reconciler.cli.common import instance_name, open_kernel, stdout_style
from reconciler.cli.duration import seconds
from reconciler.kernel.port import Kernel
from reconciler.kinds.service_row import ServiceRow
from reconciler.render.style import DEFAULT_COLUMNS, Style

if TYPE_CHECKING:
    from reconciler.readings.rates import Sample

DESCRIPTION = """\
Show rates straight from the counters of the data plane: connections, packets and bits a second of services and
endpoints, and what became of packets, drops by their reason. Needs no manifests and no agent, and changes nothing.

On a terminal it goes on until q; elsewhere it measures once, and prints one frame."""
EPILOG = """\
examples:
  lbctl top
  lbctl top --interval 5s --sort bits
  lbctl top --interval 10s > rates.txt

keys: arrows (or k, j, l, h) choose a row, go in and back: from a service to its endpoints, from there to an
explanation of a packet; tab or 1, 2, 3 the lists of services, endpoints, verdicts; e explain at once; s another
order; p pause; q quit

exit codes: 0 done, 1 failed, 2 wrong usage
"""

MAX_ROWS = 20
"""Of each list where output is no terminal."""
_ORDERS = ("requests", "bits", "replies", "connections", "name")
_CLIENTS = {4: "198.51.100.7", 6: "2001:db8:ffff::7"}
"""Addresses for documentation (RFC 5737, RFC 3849), for a client if none is known."""
_CLIENT_PORT = 40_000


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--interval", metavar="TIME", type=seconds, default="1s", help="measure for so long, e.g. 5s (%(default)s)"
    )
    parser.add_argument("--sort", choices=_ORDERS, default="requests", help="what comes first (%(default)s)")


def run(args: argparse.Namespace) -> int:
    from reconciler.cli.terminal import is_screen
    from reconciler.cli.top_views import Measured, page
    from reconciler.readings.rates import sample

    kernel = open_kernel(args)
    style = stdout_style(args)
    if is_screen():
        with contextlib.suppress(KeyboardInterrupt):  # the usual way out
            _live(args, kernel, style)
        return 0
    before = sample(kernel, time.monotonic())
    time.sleep(args.interval)
    measured = Measured(kernel, before, sample(kernel, time.monotonic()))
    width = style.columns or DEFAULT_COLUMNS
    print("\n".join(page(measured, _head(args), args.sort, width, style, MAX_ROWS)))
    return 0


def _live(args: argparse.Namespace, kernel: Kernel, style: Style) -> None:
    from reconciler.cli.terminal import screen
    from reconciler.cli.top_views import Measured, Views
    from reconciler.readings.rates import sample

    with screen() as shown:
        views = Views(lambda service, endpoint: _explained(args, kernel, service, endpoint), order=args.sort)
        before = sample(kernel, time.monotonic())
        measured = Measured(kernel, before, _later(before, kernel, 0.3))
        while not views.ended:
            width, height = shown.size()
            head = _head(args) + ("  paused" if views.is_paused else "")
            shown.draw(views.frame(measured, head, width, height, style))
            due = measured.after.at_s + args.interval
            keys = shown.keys(due - time.monotonic() if not views.is_paused else args.interval)
            for key in keys:
                if key in ("e", "right"):
                    shown.draw([style.bold(head), "looking …"])
                views.press(key)
            if not views.is_paused and time.monotonic() >= due:
                measured = Measured(kernel, measured.after, sample(kernel, time.monotonic()))


def _later(before: Sample, kernel: Kernel, seconds_: float) -> Sample:
    """A first picture soon, whatever the interval."""
    from reconciler.readings.rates import sample

    time.sleep(seconds_)
    return sample(kernel, time.monotonic())


def _head(args: argparse.Namespace) -> str:
    now = datetime.now().astimezone().strftime("%H:%M:%S")
    return f"lbctl top  {instance_name(args)}  {now}  every {args.interval} s"


def _explained(args: argparse.Namespace, kernel: Kernel, service: ServiceRow, endpoint: str) -> str:
    from reconciler.cli.explain import answer

    packet = [_client(kernel, service, endpoint), service.id.rpartition("/")[0]]
    asked = argparse.Namespace(
        **{**vars(args), "packet": packet, "proto": service.protocol, "flags": None, "bytes": None, "interface": None,
           "format": "text"},
    )  # fmt: skip
    return f"lbctl explain --proto {service.protocol} {' '.join(packet)}\n\n{answer(asked, Style())}"


def _client(kernel: Kernel, service: ServiceRow, endpoint: str) -> str:
    """A client of the service, and of this endpoint if it is given, that the connection table knows; else anybody."""
    from reconciler.readings.flows import flows

    known = (
        flow.client for flow in flows(kernel)
        if flow.service == service.id and (not endpoint or flow.endpoint == endpoint)
    )  # fmt: skip
    host = _CLIENTS[service.vip.version]
    if not service.port:
        return host
    return next(known, f"{f'[{host}]' if ':' in host else host}:{_CLIENT_PORT}")
