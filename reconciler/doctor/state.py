# SPDX-License-Identifier: Apache-2.0
"""The node itself: each difference from the manifests, with what comes of it, and what the plan warns of.

Nothing is looked at here that a plan doesn't look at: the plan is asked, and put into the words of an ailing node.
"""

from __future__ import annotations

from collections.abc import Iterator

from reconciler.doctor.finding import Finding
from reconciler.kernel.objects import GRO, GRO_HW, LRO, RX_VLAN
from reconciler.kinds.offload import Offload
from reconciler.plan import Plan
from reconciler.resource import Change, Key, Resource, Span
from reconciler.safe import some

_APPLY = "lbctl apply, or let lbctl run keep it so"
_SETTINGS = {
    "rp_filter": "packets are dropped that come in by another interface than the one that leads back to their source",
    "send_redirects": "hosts of a shared segment are told to go past this machine, and packets loop or are lost",
    "forwarding": "nothing that comes in there is forwarded, neither by the kernel nor by the program, which heeds it",
    "accept_local": "replies that come back through this machine with a VIP as their source are dropped as martians",
    "arp_ignore": "the wrong machine answers ARP for VIPs: an endpoint in the balancer's place, or nobody",
    "arp_announce": "this machine tells others by ARP that it holds VIPs, which then come here past the balancer",
    "disable_ipv6": "there is no IPv6 there",
    "fib_multipath_hash_policy": "all connections of one client go to one balancer, also those of many behind a NAT",
    "proxy_ndp": "machines of that network don't find IPv6 VIPs",
}
_NAMES = {"fib_multipath_hash_policy": "ecmp-hash"}
_MERGED = "packets-merged", "uploads to VIPs stall: what the program sees is longer than the next network carries"
_OFFLOADS = {
    GRO: _MERGED,
    LRO: _MERGED,
    GRO_HW: _MERGED,
    RX_VLAN: ("tags-taken-off", "packets of VLANs come in without their tags, and are not known for what they are"),
}
_KINDS = {
    "routing": ("routing-differs", "routers hear otherwise of VIPs than the manifests say, or not at all"),
    "routing-prefix": ("vip-not-let-through", "the routing daemon neither tells nor takes the VIP"),
    "loopback": ("vip-missing", "packets to the VIP are not for this machine: it drops them, or sends them on"),
    "xdp": ("program-not-attached", "packets that come in there are not balanced, or not unpacked"),
    "program": ("program-missing", "no packet is balanced, or unpacked"),
    "tunnel": ("tunnel-missing", "packets in tunnels from balancers are not unpacked, but refused"),
    "announcement": ("not-announced", "routers don't learn that the VIP is here"),
    "vlan-link": ("vlan-missing", "nothing comes in by this VLAN, and nothing leaves by it"),
    "hop-group": ("balancers-differ", "the router sends VIPs to other balancers than carry them"),
    "vip-route": ("vip-unrouted", "the router has no way to the VIP, or another one than the manifests say"),
    "vrrp": ("vrrp-differs", "the shared addresses go to the wrong balancer, or to none"),
    "vrrp-state": ("not-announced", "this balancer has the shared addresses though it should not, or the reverse"),
    "neighbour-proxy": ("vip-not-answered-for", "machines of that network don't find this address"),
    "neighbour": ("neighbour-not-kept", "packets to it may meet an unknown MAC, and a changed one is noticed late"),
    "routers": ("neighbour-not-kept", "packets to it may meet an unknown MAC, and a changed one is noticed late"),
    "gateway-route": ("gateway-route-missing", "packets to the link-local gateway are dropped"),
    "prober": ("checks-cut-off", "checks through VIPs fail, and endpoints that serve may count as down"),
    "blackhole": ("blackhole-missing", "packets to the source of tunnels go round in a loop"),
}
_CONCERNS = {
    "snat": ("ports-nearly-used", "new connections to that server are refused, one in some, then all"),
    "program": ("table-nearly-full", "once it is full, new connections fail"),
    "offload": _MERGED,
}
"""Of kinds that are concerned about one thing only."""
_REST = "rows-differ", "the data plane does not do what the manifests say"


def of_plan(planned: Plan) -> Iterator[Finding]:
    """Findings in the order in which the plan would mend them; one of each sort for objects of the data plane."""
    wanted = planned.desired.resources
    for key, why in sorted(planned.blocked.items()):
        yield Finding(
            "blocked", f"{key}: {why}", "what needs it is not published, so VIPs may be missing here",
            "remove what is in the way, or correct the manifests", _origin(wanted.get(key)),
        )  # fmt: skip
    rest: list[Change] = []
    for change in planned.changes:
        name, consequence = _words(change.key)
        if (name, consequence) == _REST:
            rest.append(change)
            continue
        if change.after is None:
            name, consequence = "left-over", "it is in no manifest any more"
        evidence = f"{change.key} is {_shown(change.before)}, and should be {_shown(change.after)}"
        yield Finding(name, evidence, consequence, _APPLY, change.origin)
    if rest:
        more = f", and {len(rest) - 1:,} more" if len(rest) > 1 else ""
        yield Finding(_REST[0], f"{rest[0].key} differs{more}", _REST[1], _APPLY, rest[0].origin)
    for concern in planned.concerns:
        kind = concern.key.kind
        name, consequence = _CONCERNS.get(kind, (f"{kind}-concern", "VIPs that need it may not work"))
        yield Finding(
            name, concern.text, consequence, concern.hint,
            _origin(wanted.get(concern.key)),
        )  # fmt: skip


def _words(key: Key) -> tuple[str, str]:
    """The name of a finding, and what comes of it."""
    if key.kind == Offload.kind:
        return _OFFLOADS.get(key.id.rpartition(" ")[2], _REST)
    if key.kind != "sysctl":
        return _KINDS.get(key.kind, _REST)
    setting = key.id.rpartition("/")[2].replace("ip_forward", "forwarding")
    name = _NAMES.get(setting, setting.replace("_", "-"))
    return name, _SETTINGS.get(setting, "the kernel treats packets in another way")


def _origin(resource: Resource | None) -> Span | None:
    return resource.origin if resource else None


def _shown(resource: Resource | None) -> str:
    if resource is None:
        return "missing"
    return some([f"{name} {value}" for name, value in resource.describe().items()]) or "there"
