# SPDX-License-Identifier: Apache-2.0
"""Balancers, routers and endpoints together: the ways that packets and replies take."""

from __future__ import annotations

from collections.abc import Iterator

from reconciler.config.diagnostic import Severity
from reconciler.config.rules.draft import Draft
from reconciler.config.rules.parts import Carried, Reach
from reconciler.config.rules.rule import Finding, key_path, more, rule, title
from reconciler.config.rules.segments import count_inside, number, outside
from reconciler.model import Algorithm, IcmpRedirects, Mode, Node, Protocol, Role, Service


@rule("nat-return-path", Draft, Severity.WARNING)
def _nat_return_path(draft: Draft) -> Iterator[Finding]:
    """In mode nat, replies of an endpoint don't come back through the balancer, as far as the manifests show.

    Only the balancer can put the VIP back into replies. A reply that takes another way comes from an address that the
    client never asked: the client answers with a reset, or waits. So the balancer must be able to reach the endpoint,
    and must be the endpoint's gateway towards the clients.

    The way out: make the balancer the gateway of its endpoints; or use mode fullnat, whose replies come back from
    anywhere, or mode dsr-l3, whose replies go straight to the client. Ways are known by the `addresses` and the
    `gateway` of interfaces; a balancer with an interface without `addresses` is not checked.
    """
    for reach in draft.reach(Mode.NAT):
        yield from _out_of_reach(draft, reach)
    for reach in draft.reach(Mode.NAT):
        if all(face.addresses for node in reach.balancers for face in node.attached):
            yield from _other_gateways(draft, reach)


def _out_of_reach(draft: Draft, reach: Reach) -> Iterator[Finding]:
    """Endpoints in no network of a balancer that has no gateway, one for each pool."""
    lost: dict[int, Node] = {}
    numbers = reach.numbers
    for node in reach.balancers:
        if not any(interface.gateway for interface in node.interfaces):
            for value in outside(numbers, draft.around.near(node)):
                lost.setdefault(value, node)
            numbers = [value for value in numbers if value not in lost] if lost else numbers
    for members in reach.pools if lost else ():
        wrong = [i for i, value in enumerate(members.numbers) if value in lost]
        if wrong:
            node = lost[members.numbers[wrong[0]]]
            message = (
                f"{members.pool.endpoints[wrong[0]].address} is in no network of {title(node)}, which has no gateway: "
                "replies must come back through it"
            )
            hint = "give the balancer an interface there, declare its `gateway`, or use mode fullnat or dsr-l3"
            path = ("spec", "endpoints", wrong[0], "address")
            yield Finding(members.pool.span, path, message + more(len(wrong), "endpoint"), hint)


def _other_gateways(draft: Draft, reach: Reach) -> Iterator[Finding]:
    """Declared endpoints whose gateway is none of the balancers."""
    balancers = reach.balancers
    own = {number(a.ip) for node in balancers for interface in node.interfaces for a in interface.addresses}
    for node in draft.around.endpoints_among(reach.numbers):
        faces = enumerate(node.interfaces)
        gateways = [(i, face.gateway) for i, face in faces if face.gateway and not face.gateway.is_link_local]
        if gateways and not any(number(gateway) in own for _, gateway in gateways):
            i, gateway = gateways[0]
            message = f"{title(node)} replies through {gateway}, which is no address of {title(balancers[0])}"
            if len(balancers) > 1:
                message = f"{title(node)} replies through {gateway}, which is no address of its balancers"
            hint = "make the balancer its gateway, or use mode fullnat or dsr-l3"
            yield Finding(node.span, ("spec", "interfaces", i, "gateway"), message, hint)


@rule("nat-on-several-balancers", Draft, Severity.WARNING)
def _nat_on_several_balancers(draft: Draft) -> Iterator[Finding]:
    """Several balancers carry a service in mode nat.

    A reply must come back through the balancer that the request went through, since no other one knows the
    connection. But an endpoint has one gateway: it always replies through the same balancer, and connections through
    the other balancers fail.

    The way out: mode fullnat, whose replies come back to the right balancer, or mode dsr-l2 or dsr-l3, whose replies
    pass no balancer; or a `nodeSelector` that puts the service on one balancer. If the balancers
    take turns, and the gateway of the endpoints moves along with the VIP, you may ignore this.
    """
    for (selector, mode), need in draft.needs.items():
        carriers = draft.around.carriers(selector)
        if mode is Mode.NAT and len(carriers) > 1:
            message = (
                f"{len(carriers)} balancers carry {title(need.first)}{more(need.count, 'service')} in mode nat, but "
                "an endpoint replies through one of them only"
            )
            hint = "use mode fullnat or dsr-l3, or select one balancer (nodeSelector)"
            yield Finding(need.first.span, key_path(need.first, "mode"), message, hint)


@rule("affinity-on-several-balancers", Carried, Severity.WARNING)
def _affinity_on_several_balancers(carried: Carried) -> Iterator[Finding]:
    """Several balancers carry a service with `affinity`, and the algorithm lets each of them choose another
    endpoint for the same client.

    Each balancer remembers the clients that it has seen itself. A router in front spreads connections, not
    clients: the second connection of a client may reach another balancer, which knows nothing of the first.

    The way out: `algorithm: maglev` or `source-hash`. With affinity both choose by the address of the client, the
    same on every balancer, and what a balancer remembers then only keeps a client where it is while the pool changes.
    """
    service = carried.service
    if service.remembers_clients and service.scheduling is not Algorithm.SOURCE_HASH:
        count = len(carried.carriers)
        if count > 1:
            message = (
                f"a client can get an endpoint from each of {count} balancers: {service.algorithm} doesn't "
                "choose by the client, and affinity is known to one balancer only"
            )
            hint = "use algorithm: maglev or source-hash"
            yield Finding(service.span, ("spec", "affinity"), message, hint)


@rule("redirects-on", Draft, Severity.WARNING)
def _redirects_on(draft: Draft) -> Iterator[Finding]:
    """A balancer leaves ICMP redirects on, and shares a network with endpoints.

    The kernel sees that a packet leaves by the interface that it entered by, and tells the sender to go to the
    next hop directly: past the balancer. From then on replies don't come back through it, or requests chase
    round between machines. This begins after a while, and only with some hosts.

    The way out: leave out `icmpRedirects`, or set it to `off`, and lbctl turns them off on its interfaces.
    """
    told: set[int] = set()
    for reach in draft.reach(*Mode):
        for node in reach.balancers:
            if node.icmp_redirects is IcmpRedirects.OFF or id(node) in told:
                continue
            for segment in draft.around.segments[id(node)]:
                if count_inside(reach.numbers, segment.first, segment.last):
                    told.add(id(node))
                    message = (
                        f"{title(node)} shares the network {segment.address.network} with endpoints: ICMP redirects "
                        "will lead packets past it"
                    )
                    yield Finding(node.span, ("spec", "icmpRedirects"), message, "set it to off, the default")
                    break


@rule("multipath-missing", Draft, Severity.WARNING)
def _multipath_missing(draft: Draft) -> Iterator[Finding]:
    """A router stands before several balancers of a service, but may use fewer paths at once.

    Without multipath the router takes one of the routes to a VIP, and leaves the other balancers idle. The load is not
    shared, and nobody notices until the one balancer is overloaded.

    The way out: `multipath`, at least the number of balancers, and the same in the configuration of its routing
    daemon. Only balancers that share a network with the router count; if no addresses are declared, all count.
    """
    networks: dict[tuple[int, int], set[int]] = {}
    for node in draft.balancers:
        for segment in draft.around.segments[id(node)]:
            networks.setdefault((segment.first, segment.last), set()).add(id(node))
    unknown = {id(node) for node in draft.balancers if not draft.around.segments[id(node)]}
    groups = {selector: draft.around.carriers(selector) for selector, _ in draft.needs}
    shared = [carriers for carriers in groups.values() if len(carriers) > 1]
    for router in draft.nodes:
        if router.role is not Role.ROUTER:
            continue
        own = draft.around.segments[id(router)]
        near = unknown.union(*(networks.get((s.first, s.last), set()) for s in own)) if own else None
        behind = 1
        for carriers in shared:
            behind = max(behind, len(carriers) if near is None else sum(id(node) in near for node in carriers))
        if behind > (router.multipath or 1):
            paths = "one path" if (router.multipath or 1) == 1 else f"{router.multipath} paths"
            message = f"{title(router)} uses {paths} at once, but {behind} balancers carry the same VIP"
            hint = f"set `multipath: {behind}`, and as much in its routing daemon (BGP: maximum-paths)"
            yield Finding(router.span, key_path(router, "multipath"), message, hint)


@rule("sctp-multihoming", Service, Severity.WARNING)
def _sctp_multihoming(service: Service) -> Iterator[Finding]:
    """A service of SCTP has several VIPs, in mode dsr-l2 or dsr-l3.

    An association may use several addresses at both ends. In these modes the balancer chooses by the addresses
    and ports of each packet, which differ between the paths of an association: the second path would end at another
    endpoint, which knows nothing of the association and aborts it.

    The way out: mode nat or fullnat, which know associations; or one VIP for each service, if none is used
    together with another.
    """
    if service.protocol is Protocol.SCTP and service.mode.is_dsr and len(service.vips) > 1:
        message = f"the paths of one association may end at different endpoints in mode {service.mode}"
        hint = "use mode nat or fullnat, or a service for each VIP"
        yield Finding(service.span, ("spec", "vips"), message, hint)
