# SPDX-License-Identifier: Apache-2.0
"""What else of the machine breaks traffic: frames for others, tables that are nearly full, a clock that nobody keeps,
what the kernel lacks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from reconciler.doctor.finding import Finding
from reconciler.doctor.tables import of_tables
from reconciler.errors import BuildError
from reconciler.kernel import counters, headers
from reconciler.kernel.cache import cache_dir
from reconciler.kernel.port import Kernel
from reconciler.kinds.program import NEARLY_FULL_PERCENT
from reconciler.model import Node, Role
from reconciler.resource import Key, Resource

_COUNT, _MOST = "net/netfilter/nf_conntrack_count", "net/netfilter/nf_conntrack_max"


def of_host(node: Node, held: Mapping[Key, Resource], kernel: Kernel) -> Iterator[Finding]:
    """`held` is what the node holds of lbctl's."""
    yield from _of_conntrack(node, kernel)
    yield from _of_machine(node, kernel)
    yield from of_tables(node, held, kernel)
    if node.role is Role.BALANCER:
        yield from _of_promiscuous(node, kernel)


def _of_conntrack(node: Node, kernel: Kernel) -> Iterator[Finding]:
    count, most = kernel.read_sysctl(_COUNT), kernel.read_sysctl(_MOST)
    if count and most and int(most) and int(count) * 100 >= int(most) * NEARLY_FULL_PERCENT:
        yield Finding(
            "conntrack-full", f"the kernel tracks {int(count):,} connections here, of {int(most):,} at most",
            "once it is full, the kernel drops packets of new connections (`nf_conntrack: table full`)",
            f"sysctl -w {_MOST}={2 * int(most)}, or let it not track what is for VIPs (nft: notrack)", node.span,
        )  # fmt: skip


def _of_machine(node: Node, kernel: Kernel) -> Iterator[Finding]:
    """What the machine itself lacks."""
    if not counters.is_clock_kept():
        yield Finding(
            "clock-unkept", "nothing keeps the clock of this machine right (adjtimex: not synchronised)",
            "drains end at another time than was said, certificates seem too old or too new, logs don't fit together",
            "apt install systemd-timesyncd, or chrony", node.span,
        )  # fmt: skip
    if node.role is not Role.BALANCER:
        return
    if not kernel.keeps_neighbours():
        yield Finding(
            "kernel-too-old", "this kernel keeps no neighbour resolved by itself (`managed` entries, Linux 5.16)",
            "an endpoint or router that gets another MAC is lost until the kernel asks for it by chance",
            "a newer kernel; or permanent entries: ip neigh replace … nud permanent", node.span,
        )  # fmt: skip
    try:
        headers.find(cache_dir())
    except (BuildError, OSError) as error:
        yield Finding(
            "headers-missing", str(error),
            "manifests that ask for another feature of the program can't be applied: it can't be compiled here",
            getattr(error, "hint", "") or f"make {cache_dir()} writable", node.span,
        )  # fmt: skip


def _of_promiscuous(node: Node, kernel: Kernel) -> Iterator[Finding]:
    """The program is not told the MAC of its interface, so it takes all frames for the node's."""
    spans = {face.name: face.span for face in node.interfaces}
    for link in kernel.links():
        if link.is_promiscuous and link.name in spans:
            yield Finding(
                "promiscuous", f"{link.name} takes frames for any MAC (promiscuous)",
                "what a switch floods, and is for another machine, is balanced here, too: datagrams arrive twice",
                f"ip link set {link.name} promisc off; capture with tcpdump -p; no port of a bridge",
                spans[link.name],
            )  # fmt: skip
