# SPDX-License-Identifier: Apache-2.0
"""`lbctl explain`: tell what the data plane would do with a packet, and why."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from reconciler.cli.common import add_output, from_agent, instance_name, may_only_ask, open_kernel, stdout_style
from reconciler.dataplane.program import DECAPSULATE
from reconciler.errors import KernelError, UsageError
from reconciler.kernel.objects import Link
from reconciler.kernel.port import Kernel
from reconciler.render.style import Style

if TYPE_CHECKING:
    from reconciler.explain.capture import Captured

DESCRIPTION = """\
Say what the program of this node would do with a packet, and why: service, connection or slot of the ring,
endpoint, the frame that would leave, or the reason of the drop. The very program that is loaded runs, on copies of
its maps: connections, counters and turns stay as they are.

Of TCP a SYN is explained, and in a line below what becomes of an ACK, as of a connection that is open already;
--flags asks about others. The frames of a capture follow each other, so a reply finds the connection that
a request before it opened."""
EPILOG = """\
examples:
  lbctl explain 198.51.100.7:40000 20.20.20.1:80
  lbctl explain --proto udp [2001:db8::7]:5353 [2001:db8:20::1]:53
  lbctl explain --proto icmp 198.51.100.7 20.20.20.1
  lbctl explain --flags ack --bytes 1500 198.51.100.7:40000 20.20.20.1:80   # does it fit?
  lbctl explain --flags ack 10.2.0.11:8080 198.51.100.7:40000               # a reply
  lbctl explain capture.pcap --format json

exit codes: 0 explained, 1 failed, 2 wrong usage
"""

_OPEN = ("ack",)


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "packet", nargs="+", metavar="SOURCE DESTINATION | CAPTURE",
        help="ADDRESS:PORT twice (of icmp ADDRESS), or a pcap or pcapng file",
    )  # fmt: skip
    parser.add_argument("--proto", choices=("tcp", "udp", "sctp", "icmp"), default="tcp", help="(tcp)")
    parser.add_argument("--flags", metavar="FLAGS", help="of TCP, e.g. syn or psh,ack")
    parser.add_argument("--bytes", metavar="N", type=int, help="length of the IP packet (the shortest that can be)")
    parser.add_argument(
        "--interface", metavar="NAME",
        help="where the packet comes in, or a VLAN of it (where the route to its source leads)",
    )  # fmt: skip
    add_output(parser, schema="explain.v1.json")


def run(args: argparse.Namespace) -> int:
    if may_only_ask(args):
        _frames(args)  # finds mistakes here
        if len(args.packet) == 1:
            raise UsageError("the agent explains no captures", hint="ask as root")
        asked = {name: getattr(args, name) for name in ("packet", "proto", "flags", "bytes", "interface", "format")}
        print(from_agent(args, {"ask": "explain", **asked})["text"], end="")
        return 0
    print(answer(args, stdout_style(args)))
    return 0


def answer(args: argparse.Namespace, style: Style) -> str:
    """The explanation that the arguments ask for. Raises LbctlError."""
    from reconciler.explain.explanation import explain
    from reconciler.kernel.instance import Instance
    from reconciler.kernel.trial import trial
    from reconciler.render.explain import explanation_json, explanation_text, headline

    frames_to = _frames(args)
    kernel = open_kernel(args)
    link, tag = _ingress(kernel, args.interface or _likely(kernel, frames_to(bytes(6))[0]))
    with trial(Instance(instance_name(args), Path(args.run_dir))) as tried:
        if not tried.is_same_code:
            print("note: the loaded program came from the same source, but from another compiler", file=sys.stderr)
        explained = [
            explanation for series in frames_to(link.mac)
            for explanation in explain(tried, [captured.tagged(tag) for captured in series], link)
        ]  # fmt: skip
    if args.format == "json":
        return explanation_json(explained)
    if len(args.packet) == 1:
        return "\n".join(
            f"{style.dim(f'#{number}')} {explanation_text(explanation, style)}\n"
            for number, explanation in enumerate(explained, start=1)
        )
    first, before = headline(explained[0], style), f"with --flags {','.join(_OPEN)}: "
    return explanation_text(explained[0], style) + "".join(
        f"\n\n{before}the same" if headline(each, style) == first else f"\n\n{headline(each, style, before)}"
        for each in explained[1:]
    )


def _frames(args: argparse.Namespace) -> Callable[[bytes], list[list[Captured]]]:
    """A function that makes the frames to be tried, given the MAC that they go to. The frames of an inner list follow
    each other.

    Raises UsageError for any mistake in the arguments.
    """
    from reconciler.explain.capture import Captured, read_capture
    from reconciler.explain.packet import frame, parse_flags, parse_place

    asked = {"--flags": args.flags, "--bytes": args.bytes}
    if len(args.packet) > 2:
        hint = "lbctl explain 198.51.100.7:40000 20.20.20.1:80"
        raise UsageError(f"a packet has one source and one destination, not {len(args.packet)} places", hint=hint)
    if args.flags and args.proto != "tcp":
        raise UsageError(f"{args.proto} has no flags", hint="leave --flags out")
    if len(args.packet) == 1:
        if given := [name for name, value in asked.items() if value is not None]:
            raise UsageError(f"{given[0]} is of no use with a capture", hint="lbctl explain --help")
        if re.fullmatch(r"[0-9.]+(:[0-9]+)?|\[.*\]:[0-9]+|[0-9a-fA-F:]*::?[0-9a-fA-F:]*", args.packet[0]):
            message = f"{args.packet[0]} is the destination, or the source, of a packet: both are needed"
            client = "198.51.100.7" if args.proto == "icmp" else "198.51.100.7:40000"
            hint = f"`lbctl explain --proto {args.proto} {client} {args.packet[0]}` asks about a client"
            raise UsageError(message, hint=hint)
        captured = read_capture(Path(args.packet[0]))
        return lambda _mac: [captured]

    source, destination = (parse_place(text, args.proto) for text in args.packet)
    choices: list[Sequence[str]] = [()]
    if args.proto == "tcp":
        choices = [parse_flags(args.flags)] if args.flags else [("syn",), _OPEN]

    def make(mac: bytes) -> list[list[Captured]]:
        made = [frame(args.proto, source, destination, mac, flags=flags, length=args.bytes) for flags in choices]
        return [[Captured(content, len(content))] for content in made]

    make(bytes(6))  # finds mistakes before root is needed
    return make


def _likely(kernel: Kernel, frames: Sequence[Captured]) -> str | None:
    """The interface by which the first of these frames would come in: the one that leads to its source, if the program
    runs there.

    A capture with the tags of a trunk was taken on this trunk.
    """
    from reconciler.explain.headers import headers

    found = headers(frames[0].frame) if frames else []
    source = next((str(header["source"]) for header in found if "ttl" in header), None)
    links = {link.index: link for link in kernel.links()}
    link = links.get(kernel.way_out(source) or 0) if source else None
    if link is None:
        return None
    trunk = links.get(link.trunk) if link.trunk is not None else None
    has_tag = any(header["header"] == "vlan" for header in found)
    names = [trunk.name] if trunk and has_tag else [link.name, *([trunk.name] if trunk else [])]
    runs = {attached.interface for attached in kernel.attached_programs([])}
    return names[0] if runs.intersection(names) else None


def _ingress(kernel: Kernel, asked: str | None) -> tuple[Link, int | None]:
    """The interface by which packets come in, and for a VLAN its tag. KernelError unless the program runs there."""
    loaded = kernel.loaded_program()
    if loaded is None:
        hint = "`lbctl apply` loads it on a balancer; an endpoint whose kernel unpacks tunnels has none"
        raise KernelError("no program is loaded: the kernel gets every packet as it comes in", hint=hint)
    if DECAPSULATE in (loaded.features or ()):
        hint = "ask on a balancer; what this one did `lbctl get verdicts` shows"
        raise KernelError("this node is an endpoint: its program unpacks tunnels, and chooses nothing", hint=hint)
    links = {link.name: link for link in kernel.links()}
    attached = {a.interface: a for a in kernel.attached_programs([asked] if asked else [])}
    name, tag = asked or next(iter(attached), None), None
    if asked in links and asked not in attached and links[asked].trunk is not None:
        tag = links[asked].tag
        name = next((link.name for link in links.values() if link.index == links[asked].trunk), None)
    if name not in attached:
        where = f"on {asked}" if asked else "on any interface of this network namespace"
        hint = f"it runs on {', '.join(attached)}" if attached else "lbctl apply"
        raise KernelError(f"no program runs {where}: the kernel gets every packet as it comes in", hint=hint)
    runs = attached[name]
    if runs.id != loaded.id:
        raise KernelError(f"{name} runs {runs.owner}, not the program that is loaded", hint="lbctl apply")
    return links[name], tag
