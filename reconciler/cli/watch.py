# SPDX-License-Identifier: Apache-2.0
"""`lbctl watch`: packets of one client on their way through the data plane."""

from __future__ import annotations

import argparse
import os
import re
import sys
import time
from collections.abc import Callable
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path
from typing import TYPE_CHECKING

from reconciler.cli.common import instance_name, open_kernel, stdout_style
from reconciler.cli.duration import seconds
from reconciler.errors import KernelError, UsageError
from reconciler.kernel.port import Kernel

if TYPE_CHECKING:
    from reconciler.kernel.watching import Match, Report

DESCRIPTION = """\
Show packets of a client that come through this node, live: what became of each, slot of the ring, endpoint; requests,
and replies that come back through the balancer. Traffic that doesn't match is not touched, and nothing is changed.

It ends by itself, and shows no more packets a second than asked for, whatever comes in; how many it left out is said
at the end. If lbctl is killed, the kernel ends it."""
EPILOG = """\
examples:
  lbctl watch flow 198.51.100.7
  lbctl watch flow 198.51.100.7:40000 20.20.20.1:80 --count 10
  lbctl watch flow [2001:db8::7]:5353 [2001:db8:20::1]:53 --for 10m
  lbctl watch flow 198.51.100.7 20.20.20.1 --format pcapng > flow.pcapng

exit codes: 0 done, 1 failed, 2 wrong usage
"""

POLL_S = 0.05
MAX_RATE = 2_000
MAX_SECONDS = 3_600
RATE, LASTS = 100, "1m"
Address = IPv4Address | IPv6Address


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("what", choices=("flow",), help="packets of a flow, or of all flows of a client")
    parser.add_argument("source", metavar="SRC", help="the client: ADDRESS or ADDRESS:PORT")
    parser.add_argument("vip", metavar="VIP:PORT", nargs="?", help="where to; ADDRESS or ADDRESS:PORT (anywhere)")
    parser.add_argument("--for", dest="lasts", metavar="TIME", type=seconds, default=LASTS,
                        help="end after that, e.g. 30s, at most 1h (%(default)s)")  # fmt: skip
    parser.add_argument("--count", metavar="N", type=int, help="end after so many packets")
    parser.add_argument("--rate", metavar="N", type=int, default=RATE,
                        help=f"at most so many packets a second, up to {MAX_RATE} (%(default)s)")  # fmt: skip
    parser.add_argument("--format", choices=("text", "json", "pcapng"), default="text")


def run(args: argparse.Namespace) -> int:
    from reconciler.explain.watched import is_about
    from reconciler.kernel.instance import Instance
    from reconciler.kernel.watching import watching

    match = _match(args)
    _check(args)
    kernel = open_kernel(args)
    shown, ended = 0, time.monotonic() + args.lasts
    show = _shower(args, kernel)
    with watching(Instance(instance_name(args), Path(args.run_dir)), match, args.lasts) as watcher:
        print(f"Watching for {args.lasts} s; Ctrl-C ends it.", file=sys.stderr)
        try:
            before = time.monotonic() - 1
            while time.monotonic() < ended and (args.count is None or shown < args.count):
                now = time.monotonic()
                watcher.arm()
                watcher.allow(max(1, round(args.rate * min(1.0, now - before))))
                before = now
                time.sleep(POLL_S)
                for report in watcher.reports():
                    if is_about(report, match) and (args.count is None or shown < args.count):
                        show(report)
                        shown += 1
        except KeyboardInterrupt:
            pass  # the usual way out
        except KernelError as error:
            print(f"note: {error.message}; {error.hint}", file=sys.stderr)
        missed = watcher.missed()
    more = f", and {missed:,} more that came too fast (--rate)" if missed else ""
    print(f"{shown:,} packets{more}", file=sys.stderr)
    return 0


def _shower(args: argparse.Namespace, kernel: Kernel) -> Callable[[Report], None]:
    from reconciler.explain.pcapng import Writer
    from reconciler.explain.watched import Names
    from reconciler.kernel.watching import until_wall_s
    from reconciler.render.watched import as_json, comment, line

    names, style, writer = Names(kernel), stdout_style(args), Writer()
    if args.format == "pcapng":
        _write(writer.head())

    def show(report: Report) -> None:
        told, at_s = names.told(report), until_wall_s(report.at_ns)
        if args.format == "text":
            print(line(told, at_s, style), flush=True)
        elif args.format == "json":
            print(as_json(told, at_s), flush=True)
        else:
            at_ns, link = int(at_s * 1e9), told.interface
            _write(writer.packet(link, at_ns, report.before, report.before_bytes, comment(told), is_inbound=True))
            if told.left and told.verdict != "untouched":
                left = f"as it left; {comment(told)}"
                _write(writer.packet(link, at_ns, report.after, report.after_bytes, left, is_inbound=False))

    return show


def _write(content: bytes) -> None:
    sys.stdout.buffer.write(content)
    sys.stdout.buffer.flush()


def _check(args: argparse.Namespace) -> None:
    if not 0 < args.rate <= MAX_RATE:
        raise UsageError(f"--rate {args.rate}: expected 1 to {MAX_RATE}", hint=f"--rate {RATE}")
    if args.count is not None and args.count < 1:
        raise UsageError(f"--count {args.count}: expected at least 1", hint="--count 10")
    if args.lasts > MAX_SECONDS:
        raise UsageError(f"--for: at most {MAX_SECONDS // 3600}h", hint="--for 1h")
    if args.format == "pcapng" and os.isatty(1):
        raise UsageError("pcapng is not for a terminal", hint="lbctl watch flow … --format pcapng > flow.pcapng")


def _match(args: argparse.Namespace) -> Match:
    """What the arguments ask for. Raises UsageError."""
    from reconciler.kernel.watching import Match

    client, client_port = _place(args.source)
    if args.vip is None:
        return Match(client, client_port)
    vip, vip_port = _place(args.vip)
    if vip.version != client.version:
        raise UsageError(f"{client} is IPv{client.version}, {vip} IPv{vip.version}", hint="both of the same version")
    return Match(client, client_port, vip, vip_port)


def _place(text: str) -> tuple[Address, int]:
    """`ADDRESS`, or `ADDRESS:PORT` with an IPv6 address in brackets; port 0 if there is none. Raises UsageError."""
    found = re.fullmatch(r"\[([^\]]*)\](?::([0-9]{1,5}))?|([0-9.]+)(?::([0-9]{1,5}))?|([0-9a-fA-F:.]+)", text)
    try:
        if found:
            address, port = ip_address(found[1] or found[3] or found[5]), int(found[2] or found[4] or 0)
            if port < 65_536:
                return address, port
    except ValueError:
        pass
    raise UsageError(f"{text!r} is no address", hint="write it like 198.51.100.7:40000 or [2001:db8::7]:40000")
