# SPDX-License-Identifier: Apache-2.0
"""What happens to packets while the node is looked at: those that the kernel drops for where they come from, and ICMP
redirects, which lead packets past a balancer. Only what happens now is told, not what once happened."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping

from reconciler.doctor.finding import Finding
from reconciler.kernel import counters
from reconciler.model import Node

LOOK_S = 1.0
"""For how long counters are watched at least."""
_SORTS = (
    (
        "TcpExt IPReversePathFilter", "packets-from-elsewhere", "packets were dropped for the interface they took",
        "they came in by another interface than the one that leads back to their source: requests or replies are lost",
        "lbctl apply where this tells of rp_filter; else see where they come from: sysctl -w "
        "net.ipv4.conf.all.log_martians=1",
    ),
    (
        "Routes in_martian_src", "martians-dropped", "packets with an impossible source were dropped on this machine",
        "their source is an address of this machine itself, as a VIP is, or one that no host can have; all its "
        "network namespaces are counted together",
        "lbctl apply where this tells of accept_local; keep endpoints off the way of each other's replies; else see "
        "where they come from: sysctl -w net.ipv4.conf.all.log_martians=1",
    ),
    (
        "Icmp InRedirects", "redirects-seen", "ICMP redirects came",
        "a router tells this machine to send by another way, past the one that was chosen for it",
        "turn them off on that router: sysctl -w net.ipv4.conf.all.send_redirects=0, or a Node of role router there",
    ),
    (
        "Icmp OutRedirects", "redirects-sent", "ICMP redirects were sent",
        "hosts of a shared segment go past this machine from now on, and packets loop or are lost",
        "leave `icmpRedirects` off, and lbctl apply",
    ),
)  # fmt: skip


class Watch:
    """Of the counters, from when it is made."""

    def __init__(self) -> None:
        self._before, self._since_s = counters.read(), time.monotonic()

    def findings(self, node: Node) -> Iterator[Finding]:
        """What has risen; waits until it was watched long enough."""
        time.sleep(max(0.0, self._since_s + LOOK_S - time.monotonic()))
        yield from of_counters(self._before, counters.read(), time.monotonic() - self._since_s, node)


def of_counters(before: Mapping[str, int], after: Mapping[str, int], seconds: float, node: Node) -> Iterator[Finding]:
    for counter, name, what, consequence, way_out in _SORTS:
        count = after.get(counter, 0) - before.get(counter, 0)
        if count > 0:
            yield Finding(name, f"{count:,} {what} within {seconds:.1f} s", consequence, way_out, node.span)
