# SPDX-License-Identifier: Apache-2.0
"""What doctor finds, as docs/doctor.md tells it. Cases with a `node` are made in the lab one at a time, see
tests/lab/test_doctor.py; the others are tested without a lab."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs" / "doctor.md"
APPLY, YOU = "`lbctl apply`", "you"
ROUTER, FIRST = "router", "10.32.0.11"
VIP, NEAR = "20.20.20.31", "10.31.0.100"
"""The second one is in the network of balancers and router."""
_IPV4 = "net.ipv4.conf.eth0"


@dataclass(frozen=True)
class Case:
    """`names` are those of the findings. `do` is typed on `host`, and found on `node`; `undo` on `host` takes it back,
    empty: lbctl does."""

    names: tuple[str, ...]
    seen: str
    on: str
    mended: str = APPLY
    node: str = ""
    host: str = ""
    do: str = ""
    undo: str = ""


CASES = (
    Case(("vip-missing",), "connections are refused or time out", "endpoint, balancer", node="portal1", host=FIRST,
         do=f"ip route del table local {VIP} dev lo"),
    Case(("rp-filter",), "requests arrive and are dropped without a trace", "endpoint, balancer", node="portal1",
         host=FIRST, do=f"sysctl -qw {_IPV4}.rp_filter=1"),
    Case(("arp-ignore", "arp-announce"), "some clients reach one server only", "endpoint, balancer", node="portal1",
         host=FIRST, do=f"sysctl -qw {_IPV4}.arp_ignore=0 {_IPV4}.arp_announce=0"),
    Case(("send-redirects",), "packets go past the balancer, or in circles", "balancer, router", node="lb4",
         host="lb4", do=f"sysctl -qw {_IPV4}.send_redirects=1"),
    Case(("forwarding",), "nothing comes through", "balancer, router", node="router1", host=ROUTER,
         do=f"sysctl -qw {_IPV4}.forwarding=0"),
    Case(("accept-local",), "replies that pass the balancer again are lost", "balancer", node="lb4", host="lb4",
         do=f"sysctl -qw {_IPV4}.accept_local=0"),
    Case(("program-not-attached", "program-missing"), "the VIP refuses all connections, or is silent",
         "balancer, endpoint", node="lb4", host="lb4", do="ip link set eth0 xdp off"),
    Case(("tunnel-missing",), "the endpoint answers no request", "endpoint of `dsr-l3`"),
    Case(("vlan-missing",), "nothing comes in by a VLAN", "all, with `tag`"),
    Case(("not-announced",), "routers send nothing here", "balancer with `announce`"),
    Case(("routing-differs", "vip-not-let-through"), "the router hears of no VIP, or of too many",
         "balancer, router with `bgp`"),
    Case(("balancers-differ", "vip-unrouted"), "some balancers get nothing, or no client reaches the VIP",
         "router with `vipRoutes`"),
    Case(("vrrp-differs",), "the wrong balancer has the shared addresses, or none", "balancer with `vrrp`"),
    Case(("neighbour-not-kept",), "an endpoint or router with another MAC stays lost for a while", "balancer",
         node="lb4", host="lb4", do="ip neigh del 10.31.0.254 dev eth0"),
    Case(("blackhole-missing",), "packets go round between balancer and router", "balancer of `dsr-l3`"),
    Case(("vip-not-answered-for",), "machines of a network don't find IPv6 VIPs in it", "balancer"),
    Case(("gateway-route-missing",), "packets to a link-local gateway are dropped", "balancer"),
    Case(("checks-cut-off",), "endpoints that serve count as down", "balancer with `healthAddress`"),
    Case(("rows-differ",), "traffic goes elsewhere than the manifests say", "balancer, endpoint"),
    Case(("left-over",), "what no manifest names any more is still there", "all", node="lb4", host="lb4",
         do="ip route add local 20.20.20.99 dev lo table local proto {mark}"),
    Case(("ecmp-hash",), "one balancer gets all the traffic of a client", "router", node="router1", host=ROUTER,
         do="sysctl -qw net.ipv4.fib_multipath_hash_policy=0"),
    Case(("blocked",), "VIPs are missing, `apply` ends with 6", "all", "you: the finding says what is in the way"),
    Case(("…-concern",), "what a plan warns of: a link that is down, a firewall, native XDP into a veth without a "
         "program at its far end, no route to an endpoint, a VIP that must not be announced", "all", YOU),
    Case(("arp-conflict",), "some clients reach the VIP, others one server, changing over time", "balancer",
         "`lbctl apply` on the endpoint, or you", "lb4", "client", f"ip addr add {NEAR}/32 dev lo",
         f"ip addr del {NEAR}/32 dev lo"),
    Case(("mtu",), "connections open, and hang with the first large packet", "balancer of `dsr-l3`", YOU, "lb4",
         ROUTER, "ip link set eth1 mtu 1500", "ip link set eth1 mtu 1520"),
    Case(("no-way-back",), "requests arrive, replies never leave", "endpoint, balancer of `nat`", YOU, "portal1",
         FIRST, "ip route del default", "ip route add default via 10.32.0.254"),
    Case(("vip-unrouted",), "no client behind the router reaches the VIP", "router", YOU, "router1", ROUTER,
         f"ip route del {VIP}", f"ip route add {VIP} via 10.31.0.1"),
    Case(("neighbour-unresolved",), "connections to one endpoint time out", "balancer", YOU, "lb4", ROUTER,
         "ip link set eth0 down", "ip link set eth0 up"),
    Case(("packets-merged",), "uploads stall", "balancer in generic mode", YOU),
    Case(("table-nearly-full",), "new connections fail, or further manifests are refused",
         "balancer, endpoint", YOU),
    Case(("ports-nearly-used",), "new connections to one server fail, one in some, then all", "balancer of `fullnat`",
         YOU),
    Case(("packets-from-elsewhere",), "packets arrive and are dropped without a trace", "all", YOU),
    Case(("redirects-seen", "redirects-sent"), "packets go past the balancer, or in circles", "all", YOU),
    Case(("announced-otherwise",), "one balancer gets all the traffic", "router with `bgp`", YOU),
    Case(("clock-unkept",), "drains end at odd times", "all", YOU),
    Case(("kernel-too-old",), "an endpoint with another MAC stays lost", "balancer", YOU),
    Case(("headers-missing",), "`apply` can't compile the program", "balancer", YOU),
    Case(("conntrack-full",), "new connections fail on this machine, one in some", "all", YOU),
)  # fmt: skip


def rows() -> str:
    """The table of the page."""
    lines = ["| finding | what people see | on | mended by |", "|---|---|---|---|"]
    for case in CASES:
        names = ", ".join(f"`{name}`" for name in case.names)
        lines.append(f"| {names} | {case.seen} | {case.on} | {case.mended} |")
    return "\n".join(lines)
