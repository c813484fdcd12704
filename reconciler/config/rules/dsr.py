# SPDX-License-Identifier: Apache-2.0
"""Direct server return: the demands on endpoints, networks and algorithms when replies go past the balancer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from reconciler.config.diagnostic import Severity
from reconciler.config.rules.draft import Draft
from reconciler.config.rules.parts import Reach, Use
from reconciler.config.rules.rule import Finding, also, more, rule, title
from reconciler.config.rules.segments import BEHIND_IPV6, IPV6, count_inside, merged, number, outside
from reconciler.model import Algorithm, Mode, Node, Protocol, Service

CLIENT_MTU_BYTES = 1500
"""The longest packets that clients are assumed to send: the MTU of the internet."""
OUTER_HEADER_BYTES = {4: 20, 6: 40}
"""The bytes that a tunnel adds to each packet, by the family of the endpoint (RFC 2003, RFC 2473)."""


@rule("dsr-port", Service)
def _dsr_port(service: Service) -> Iterator[Finding]:
    """In mode dsr-l2 or dsr-l3 a `targetPort`, or the port of an endpoint, differs from the port of the service.

    In these modes packets reach the endpoint unchanged, with the port that the client asked for, and replies go
    straight to the client. No machine on the way translates a port: the endpoint answers with a reset.

    The way out: let the server listen on the port of the service, or use mode nat or fullnat.
    """
    if not _keeps_ports(service) or service.target_port is None:
        return
    if len(service.ports) > 1 or service.target_port != service.ports[0]:
        message = f"{service.mode} can't translate ports: the service has {_ports(service)}, targetPort is"
        yield Finding(service.span, ("spec", "targetPort"), f"{message} {service.target_port}", _SAME_PORT)


@also("dsr-port", Use)
def _dsr_endpoint_port(use: Use) -> Iterator[Finding]:
    """Of several services that the ports of a pool don't suit, the first is told."""
    for service in filter(_keeps_ports, use.services if use.pool else ()):
        assert use.pool is not None
        pool, port, several = use.pool.pool, service.ports[0], len(service.ports) > 1
        if use.pool.ports <= ({None} if several else {None, port}):
            continue
        wrong = [i for i, e in enumerate(pool.endpoints) if e.port and (e.port != port or several)]
        message = (
            f"{service.mode} can't translate ports: {title(service)} has {_ports(service)}, this endpoint port "
            f"{pool.endpoints[wrong[0]].port}" + more(len(wrong), "endpoint")
        )
        yield Finding(pool.span, ("spec", "endpoints", wrong[0], "port"), message, _SAME_PORT)
        return


def _keeps_ports(service: Service) -> bool:
    """Whether packets of a service have ports, and reach the endpoint with the port that the client asked for."""
    return service.mode.is_dsr and service.protocol is not Protocol.ICMP


def _ports(service: Service) -> str:
    return f"port {service.ports[0]}" if len(service.ports) == 1 else f"{len(service.ports)} ports"


_SAME_PORT = "let the server listen on the port of the service, or use mode nat or fullnat"


@rule("dsr-l2-segment", Draft)
def _dsr_l2_segment(draft: Draft) -> Iterator[Finding]:
    """An endpoint of a service in mode dsr-l2 is in none of the networks that a balancer of the service is
    attached to.

    This mode sends packets to the MAC address of the endpoint, which can't be found out through a router. And the
    router itself would send packets for the VIP back to the balancer, again and again.

    The way out: mode dsr-l3, which reaches endpoints anywhere through a tunnel, or an interface of the balancer in
    the network of the endpoint. Networks are known by the `addresses` of interfaces; a balancer with an interface
    without `addresses` is not checked.
    """
    for reach in draft.reach(Mode.DSR_L2):
        without: dict[int, Node] = {}
        rest = reach.numbers
        for node in reach.balancers:
            missing = outside(rest, draft.around.near(node))
            if missing:
                without |= dict.fromkeys(missing, node)
                rest = [value for value in rest if value not in without]
        if not without:
            continue
        for members in reach.pools:
            wrong = [i for i, value in enumerate(members.numbers) if value in without]
            if wrong:
                node = without[members.numbers[wrong[0]]]
                endpoint = members.pool.endpoints[wrong[0]].address
                message = f"dsr-l2 can't reach {endpoint}: it is in no network of {title(node)}"
                yield Finding(
                    members.pool.span,
                    ("spec", "endpoints", wrong[0], "address"),
                    message + more(len(wrong), "endpoint"),
                    "use mode dsr-l3, or give the balancer an interface in the network of the endpoint",
                )


@rule("dsr-least-connections", Service)
def _dsr_least_connections(service: Service) -> Iterator[Finding]:
    """The algorithm least-connections in mode dsr-l2 or dsr-l3.

    This algorithm needs to know how many connections each endpoint has. In these modes replies go past the balancer:
    it sees neither that a connection was accepted nor that the server closed it, and keeps no table of connections.

    The way out: `maglev`, the default of these modes; or mode nat or fullnat, in which the balancer sees both
    directions.
    """
    if service.mode.is_dsr and service.algorithm is Algorithm.LEAST_CONNECTIONS:
        message = f"the balancer can't count connections in mode {service.mode}: it sees no replies"
        hint = "use maglev, or mode nat or fullnat"
        yield Finding(service.span, ("spec", "algorithm"), message, hint)


@rule("dsr-round-robin", Service)
def _dsr_round_robin(service: Service) -> Iterator[Finding]:
    """The algorithm round-robin in mode dsr-l2 or dsr-l3.

    The balancer remembers no connection in these modes, and a packet doesn't show which endpoint's turn it was when
    its connection began: each packet would go to the next endpoint. A hash gives the same answer for all packets of a
    connection, on every balancer, without any memory.

    The way out: `maglev`, the default of these modes, or `source-hash`.
    """
    if service.mode.is_dsr and service.algorithm is Algorithm.ROUND_ROBIN:
        message = f"in mode {service.mode} the balancer doesn't remember whose turn a connection was"
        hint = "use maglev or source-hash, which find the endpoint again from the packet alone"
        yield Finding(service.span, ("spec", "algorithm"), message, hint)


@rule("dsr-endpoint-unmanaged", Draft, Severity.WARNING)
def _dsr_endpoint_unmanaged(draft: Draft) -> Iterator[Finding]:
    """An endpoint of a service in mode dsr-l2 or dsr-l3 has no Node of role endpoint, while others have.

    An endpoint needs the VIP on its loopback, must not answer ARP requests for it, and for dsr-l3 must unpack the
    tunnel. lbctl does this on endpoints that are declared as a Node. An endpoint that nobody prepares drops all
    requests. In a fleet without any such Node, the endpoints are assumed to be prepared by other means.

    The way out: declare the endpoint as a Node of role endpoint, whose `address` is the one in the pool.
    """
    nodes = draft.around.endpoint_nodes
    if not nodes or draft.may_declare("Node"):
        return
    for group in draft.groups(Mode.DSR_L2, Mode.DSR_L3):
        unmanaged = set(group.numbers).difference(nodes)
        for members in group.pools if unmanaged else ():
            wrong = [i for i, value in enumerate(members.numbers) if value in unmanaged]
            if wrong:
                address = members.pool.endpoints[wrong[0]].address
                message = f"nobody prepares {address} for the VIP: no Node of role endpoint has this address"
                message += more(len(wrong), "endpoint")
                hint = "declare it: `kind: Node` with `role: endpoint` and this address"
                yield Finding(members.pool.span, ("spec", "endpoints", wrong[0], "address"), message, hint)


@rule("tunnel-mtu", Draft, Severity.WARNING)
def _tunnel_mtu(draft: Draft) -> Iterator[Finding]:
    """In mode dsr-l3, the network towards the endpoints doesn't carry the packets of clients once they are in the
    tunnel.

    The tunnel adds 20 bytes to each packet, 40 towards an IPv6 endpoint. Clients send up to 1500 bytes. If the
    next network carries 1500 as well, small requests succeed while uploads hang: a fault that looks like anything
    but an MTU.

    The way out: raise the MTU of the network between balancer and endpoints to at least 1520 (1540), and declare
    it as `mtu` of the interface. Or, where clients can't send 1500 bytes anyway, declare the smaller `mtu` of the
    interface that they come in by. The endpoint's own interface must carry as much, where it is declared.
    """
    told: set[int] = set()
    for reach in draft.reach(Mode.DSR_L3):
        needed = 0
        for node in reach.balancers:
            outwards = _outwards(draft, reach.numbers, node)
            inwards = [interface.mtu_bytes for i, interface in enumerate(node.interfaces) if i not in outwards]
            entering = min(CLIENT_MTU_BYTES, max(inwards, default=CLIENT_MTU_BYTES))
            if id(node) not in told and any(True for _ in _too_small(node, outwards, entering)):
                told.add(id(node))
                yield from _too_small(node, outwards, entering)
            needed = max(needed, *(entering + OUTER_HEADER_BYTES[family] for family in outwards.values()), 0)
        if told.isdisjoint(map(id, reach.balancers)):
            yield from _too_small_endpoint(draft, reach, needed)


def _outwards(draft: Draft, numbers: Sequence[int], node: Node) -> dict[int, int]:
    """The interfaces of a balancer by which packets to endpoints leave, as far as addresses and gateways show it, each
    with the family of endpoints whose tunnels need more room."""
    families: dict[int, int] = {}
    for segment in draft.around.segments[id(node)]:
        if count_inside(numbers, segment.first, segment.last):
            families[segment.interface] = max(families.get(segment.interface, 0), 4 if segment.first < IPV6 else 6)
    attached = merged((segment.first, segment.last) for segment in draft.around.segments[id(node)])
    for family, first, last in ((4, 0, IPV6 - 1), (6, IPV6, BEHIND_IPV6)):
        near = sum(count_inside(numbers, *network) for network in attached if first <= network[0] <= last)
        if count_inside(numbers, first, last) > near:
            faces = range(len(node.interfaces))
            gateways = [node.interfaces[i].gateway for i in faces]
            ways = [i for i in faces if (gateway := gateways[i]) and gateway.version == family]
            for i in [0] if len(faces) == 1 else ways:
                families[i] = max(families.get(i, 0), family)
    return families


def _too_small(node: Node, outwards: dict[int, int], entering: int) -> Iterator[Finding]:
    for i, family in sorted(outwards.items()):
        interface = node.interfaces[i]
        needed = entering + OUTER_HEADER_BYTES[family]
        if interface.mtu_bytes < needed:
            message = (
                f"packets of up to {entering} bytes become {needed} in the tunnel of dsr-l3, but "
                f"{interface.name} carries {interface.mtu_bytes}"
            )
            hint = f"raise the MTU towards the endpoints, and declare it here: `mtu: {needed}` or more"
            yield Finding(node.span, ("spec", "interfaces", i, "mtu"), message, hint)


def _too_small_endpoint(draft: Draft, reach: Reach, needed: int) -> Iterator[Finding]:
    """The first declared endpoint whose interface has too small an MTU for the packets in the tunnel."""
    wrong: list[tuple[Node, int]] = []
    nodes = draft.around.endpoint_nodes
    for value in sorted(value for value in nodes if count_inside(reach.numbers, value, value)):
        node = nodes[value]
        faces = range(len(node.interfaces))
        ways = [i for i in faces if any(number(a.ip) == value for a in node.interfaces[i].addresses)]
        ways = [0] if len(faces) == 1 else ways
        wrong += [(node, i) for i in ways if node.interfaces[i].mtu_bytes < needed]
    if wrong:
        node, i = wrong[0]
        interface = node.interfaces[i]
        message = f"packets of up to {needed} bytes come out of the network, but {interface.name} of {title(node)}"
        message += f" takes {interface.mtu_bytes}{more(len(wrong), 'endpoint')}"
        hint = f"raise the MTU of the endpoint, and declare it here: `mtu: {needed}` or more"
        yield Finding(node.span, ("spec", "interfaces", i, "mtu"), message, hint)
