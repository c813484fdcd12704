# SPDX-License-Identifier: Apache-2.0
"""What doctor finds, as docs/doctor.md tells it. Cases with a `node` are made in the lab one at a time, see
tests/lab/test_doctor.py. Of the others, those of BGP, VRRP and ports are made where their daemons and connections are
(test_dsr_l3_ha.py, test_vrrp.py and test_fullnat.py there), merged packets where there is a bridge (test_offload.py
there); those of tunnels, VLANs and connection tracking in the virtual machine; redirects and packets from elsewhere in
namespaces (test_counters.py); the rest by stand-ins."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs" / "doctor.md"
APPLY, YOU = "`lbctl apply`", "you"
ROUTER, FIRST = "router", "10.32.0.11"
VIP, NEAR = "20.20.20.31", "10.31.0.100"
"""The second one is in the network of balancers and router."""
TUNNELS = "172.16.31.0/24"
_EDGE = r"(?m)^(  undefinedTraffic: .*\n)"
NATIVE = (r"(\[10\.31\.0\.1/24\])", r"\1, xdp: native")
BASE = (
    (r"vip: 20\.20\.20\.31", f"vips: [{VIP}, {NEAR}]"),
    (r"(?s)---\n(?:(?!---).)*name: lb5\n(?:(?!---).)*", ""),
    (_EDGE, rf"\1  announce: {{}}\n  tunnelSource: {{ipv4: {TUNNELS}}}\n"),
    (r"(?m)^(  multipath: 2).*\n", "\\1\n  vipRoutes: {}\n"),
)
"""How the manifests of the lab differ from the example dsr-l3."""
_DOWN = ("neighbour-unresolved", "neighbour-not-kept", "vip-not-answered-for", "endpoint-concern")
"""What goes along with an interface that is taken down."""
_IPV4 = "net.ipv4.conf.eth0"


@dataclass(frozen=True)
class Case:
    """`names` are those of the findings. `do` is typed on `host`, or is one of HANDS of tests/lab/test_doctor.py, and
    found on `node`; `undo` on `host` takes it back, empty: lbctl does. Then traffic flows. With `edit`, a pattern and
    its replacement, the manifests ask for what is found; it is taken back, too. `also` may be found beside it."""

    names: tuple[str, ...]
    seen: str
    on: str
    mended: str = APPLY
    node: str = ""
    host: str = ""
    do: str = ""
    undo: str = ""
    edit: tuple[str, str] = ("", "")
    also: tuple[str, ...] = ()


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
    Case(("tags-taken-off",), "nothing that comes in by a VLAN is balanced", "balancer with `trunk`"),
    Case(("packets-merged",), "uploads stall", "balancer in generic mode"),
    Case(("not-announced",), "routers send nothing here", "balancer with `announce`", node="lb4", host="lb4",
         do=f"ip route del {VIP} table 251"),
    Case(("routing-differs", "vip-not-let-through"), "the router hears of no VIP, or of too many",
         "balancer, router with `bgp`"),
    Case(("balancers-differ", "vip-unrouted"), "some balancers get nothing, or no client reaches the VIP",
         "router with `vipRoutes`", node="router1", host=ROUTER, do="ip nexthop flush"),
    Case(("vrrp-differs",), "the wrong balancer has the shared addresses, or none", "balancer with `vrrp`"),
    Case(("neighbour-not-kept",), "an endpoint or router with another MAC stays lost for a while", "balancer",
         node="lb4", host="lb4", do="ip neigh del 10.31.0.254 dev eth0"),
    Case(("blackhole-missing",), "packets go round between balancer and router", "balancer of `dsr-l3`", node="lb4",
         host="lb4", do=f"ip route del blackhole {TUNNELS}"),
    Case(("vip-not-answered-for",), "machines of a network don't find IPv6 VIPs in it, or answers to checks get lost",
         "balancer", node="lb4", host="lb4", do="ip neigh del proxy 10.31.0.8 dev eth0"),
    Case(("gateway-route-missing",), "packets to a link-local gateway are dropped", "balancer"),
    Case(("checks-cut-off",), "endpoints that serve count as down", "balancer with `healthAddress`", node="lb4",
         host="lb4", do="ip link del lbctl-checks", also=("program-not-attached",)),
    Case(("rows-differ",), "traffic goes elsewhere than the manifests say", "balancer, endpoint", node="lb4",
         host="lb4", do="forget the services"),
    Case(("left-over",), "what no manifest names any more is still there", "all", node="lb4", host="lb4",
         do="ip route add local 20.20.20.99 dev lo table local proto {mark}"),
    Case(("ecmp-hash",), "one balancer gets all the traffic of a client", "router", node="router1", host=ROUTER,
         do="sysctl -qw net.ipv4.fib_multipath_hash_policy=0"),
    Case(("blocked",), "VIPs are missing, `apply` ends with 6", "all", "you: the finding says what is in the way",
         "lb4", "lb4", "run another program", "ip link set eth0 xdp off"),
    Case(("xdp-concern",), "nothing comes in by a link that is down, or is a port of a bridge", "balancer, endpoint",
         YOU, "lb4", "lb4", "ip link set eth0 down",
         "ip link set eth0 up; ip route replace default via 10.31.0.254", also=_DOWN),
    Case(("xdp-concern",), "native XDP goes into a veth whose far end runs no program: all is lost, though it counts "
         "as sent", "balancer", YOU, "lb4", "lb4", "end the program at the far end", "run one at the far end", NATIVE),
    Case(("firewall-concern",), "the kernel drops what it was to forward: the first packets, and replies", "balancer",
         YOU, "lb4", "lb4", "drop what is forwarded", "forward again"),
    Case(("endpoint-concern",), "connections to one endpoint time out, since no route leads there", "balancer", YOU,
         "lb4", "lb4", "ip route add unreachable 10.33.0.0/24", "ip route del unreachable 10.33.0.0/24"),
    Case(("gateway-concern",), "nothing leaves by an interface whose gateway is in none of its networks", "balancer",
         YOU),
    Case(("loopback-concern",), "ssh to a VIP is lost", "balancer", YOU, "lb4", "lb4",
         f"ip addr add {NEAR}/24 dev eth0", f"ip addr del {NEAR}/24 dev eth0"),
    Case(("hop-group-concern",), "a balancer gets no connections", "router with `vipRoutes`", YOU),
    Case(("announcement-concern",), "routers send VIPs elsewhere", "balancer with `announce`", YOU, "lb4", "lb4",
         "drain the balancer", "undrain the balancer"),
    Case(("vrrp-concern",), "the balancer never has the shared addresses", "balancer with `vrrp`", YOU),
    Case(("arp-conflict",), "some clients reach the VIP, others one server, changing over time", "balancer",
         "`lbctl apply` on the endpoint, or you", "lb4", "client", f"ip addr add {NEAR}/32 dev lo",
         f"ip addr del {NEAR}/32 dev lo"),
    Case(("mtu",), "connections open, and hang with the first large packet", "balancer of `dsr-l3`", YOU, "lb4",
         ROUTER, "ip link set eth1 mtu 1500", "ip link set eth1 mtu 1520"),
    Case(("no-way-back",), "requests arrive, replies never leave", "endpoint, balancer of `nat`", YOU, "portal1",
         FIRST, "ip route del default", "ip route add default via 10.32.0.254"),
    Case(("vip-unrouted",), "no client behind the router reaches the VIP", "router", YOU, "router1",
         edit=(r"  vipRoutes: {}\n", "")),
    Case(("neighbour-unresolved",), "connections to one endpoint time out", "balancer", YOU, "lb4", ROUTER,
         "ip link set eth0 down", "ip link set eth0 up"),
    Case(("promiscuous",), "some datagrams arrive twice", "balancer", YOU, "lb4", "lb4", "ip link set eth0 promisc on",
         "ip link set eth0 promisc off"),
    Case(("table-nearly-full",), "new connections fail, or further manifests are refused",
         "balancer, endpoint", YOU, "lb4", edit=(_EDGE, r"\1  capacity: {services: 4}\n")),
    Case(("ports-nearly-used",), "new connections to one server fail, one in some, then all", "balancer of `fullnat`",
         YOU),
    Case(("packets-from-elsewhere",), "packets arrive and are dropped without a trace", "all", YOU),
    Case(("martians-dropped",), "replies that come by way of who has the VIP, too, are dropped without a trace", "all",
         YOU),
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
