# SPDX-License-Identifier: Apache-2.0
"""Addresses: which may be a VIP or an endpoint, and which are taken already."""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping, Sequence
from ipaddress import IPv4Address

from reconciler.config.diagnostic import Severity
from reconciler.config.rules.draft import Draft
from reconciler.config.rules.parts import Members, Vip
from reconciler.config.rules.rule import Finding, also, more, rule, title, vip_path
from reconciler.config.rules.segments import IPV6, Range, count_inside, inside, merged, number
from reconciler.config.rules.surroundings import Surroundings
from reconciler.model import Address, Interface, Mode, Node, Role, Service


@rule("address-not-unicast", Service)
def _vip_not_unicast(service: Service) -> Iterator[Finding]:
    """A VIP, an endpoint or a source address is one that no single machine can have, or that means something
    else on every machine: multicast, loopback, link-local (of IPv6), reserved.

    Packets to it would never leave the machine, or reach many.

    The way out: take an address of one machine.
    """
    for i, vip in enumerate(service.vips):
        if reason := _not_unicast(vip):
            message = f"{vip} can't be a VIP: it is {reason}"
            yield Finding(service.span, vip_path(service, i), message, _TAKE_UNICAST)


@also("address-not-unicast", Members)
def _endpoint_not_unicast(members: Members) -> Iterator[Finding]:
    if any(first <= members.least and members.greatest <= last for first, last in _UNICAST):
        return
    for i, endpoint in enumerate(members.pool.endpoints):
        if reason := _not_unicast(endpoint.address):
            message = f"{endpoint.address} can't be an endpoint: it is {reason}"
            yield Finding(members.pool.span, (*_ENDPOINTS, i, "address"), message, _TAKE_UNICAST)


@also("address-not-unicast", Node)
def _node_not_unicast(node: Node) -> Iterator[Finding]:
    for i, address in enumerate(node.snat_addresses):
        if reason := _not_unicast(address):
            message = f"{address} can't be a source address: it is {reason}"
            yield Finding(node.span, ("spec", "snatAddresses", i), message, _TAKE_UNICAST)
    for address in node.health_addresses:
        if reason := _not_unicast(address):
            message = f"{address} can't be a healthAddress: it is {reason}"
            yield Finding(node.span, ("spec", "healthAddress", f"ipv{address.version}"), message, _TAKE_UNICAST)
    for key, source in (("ipv4", node.tunnel_source.ipv4), ("ipv6", node.tunnel_source.ipv6)):
        if source and (reason := _not_unicast(source[0]) or _not_unicast(source[-1])):
            message = f"{source} can't be a source of tunnels: it is, or holds, {reason}"
            yield Finding(node.span, ("spec", "tunnelSource", key), message, _TAKE_UNICAST)
    if node.address and (reason := _not_unicast(node.address)):
        message = f"{node.address} can't be the address of an endpoint: it is {reason}"
        yield Finding(node.span, ("spec", "address"), message, _TAKE_UNICAST)


def _not_unicast(address: Address) -> str:
    """Why an address is not one machine's, e.g. "multicast"; empty if it is (RFC 6890, RFC 5771, RFC 4291)."""
    if isinstance(address, IPv4Address):
        first_octet = int(address) >> 24
        if first_octet == 0:
            return "part of 0.0.0.0/8, which no machine can have"
        if first_octet == 127:
            return "a loopback address"
        if 224 <= first_octet < 240:
            return "a multicast address"
        return "reserved or broadcast" if first_octet >= 240 else ""
    if address.is_multicast:
        return "a multicast address"
    if address.is_link_local:
        return "a link-local address, which means another machine on each link"
    if address.is_loopback:
        return "the loopback address"
    if address.ipv4_mapped:
        return f"the IPv4 address {address.ipv4_mapped} in disguise"
    return "part of ::/96, which no machine can have" if int(address) < 1 << 32 else ""


_UNICAST = [(1 << 24, (127 << 24) - 1), (128 << 24, (224 << 24) - 1), (IPV6 + (1 << 125), IPV6 + (1 << 126) - 1)]
"""Ranges that hold most addresses and only unicast ones; 2000::/3 for IPv6."""


@rule("network-address", Vip)
def _vip_is_network_address(vip: Vip) -> Iterator[Finding]:
    """A VIP or an endpoint is the first or the last address of a network that a node is attached to: the address
    of the network itself, or its broadcast address.

    The kernel of that node sends packets to it to everybody on the network, or refuses to send them at all.

    The way out: take another address. In networks of IPv6, and in /31 and /32, there is no such address.
    """
    if found := vip.around.fact(_ends).get(vip.number):
        for service, i, address in _uses(vip):
            message = f"{address} can't be a VIP: it is {found[0]}, which {title(found[1])} is attached to"
            yield Finding(service.span, vip_path(service, i), message, _TAKE_ANOTHER)


@also("network-address", Draft)
def _endpoint_is_network_address(draft: Draft) -> Iterator[Finding]:
    ends = draft.around.fact(_ends)
    if not any(value in draft.numbers for value in ends):
        return
    for members in draft.all_pools:
        for value, i in _first_places(members.numbers, ends).items():
            address, (what, node) = members.pool.endpoints[i].address, ends[value]
            message = f"{address} can't be an endpoint: it is {what}, which {title(node)} is attached to"
            yield Finding(members.pool.span, (*_ENDPOINTS, i, "address"), message, _TAKE_ANOTHER)


def _ends(around: Surroundings) -> Mapping[int, tuple[str, Node]]:
    """The first and last addresses of networks, each with what it is, and the first node that is attached to it."""
    ends: dict[int, tuple[str, Node]] = {}
    for node in around.nodes:
        for segment in around.segments[id(node)]:
            if segment.first < IPV6 and segment.address.network.prefixlen <= 30:
                network = segment.address.network
                ends.setdefault(segment.first, (f"the network {network} itself", node))
                ends.setdefault(segment.last, (f"the broadcast address of the network {network}", node))
    return ends


def _uses(vip: Vip) -> Iterator[tuple[Service, int, Address]]:
    """Where services have a VIP."""
    for service in vip.services:
        for i, address in enumerate(service.vips):
            if number(address) == vip.number:
                yield service, i, address


@rule("vip-is-endpoint", Vip)
def _vip_is_endpoint(vip: Vip) -> Iterator[Finding]:
    """A VIP is the address of an endpoint.

    Packets to that endpoint, health checks among them, would be balanced once more instead of reaching it.

    The way out: a VIP needs an address of its own. To put one service before another, name the pool of the
    other in both.
    """
    if vip.endpoint:
        pool, position = vip.endpoint[0].pool, vip.endpoint[1]
        owner = f"{title(pool)} ({pool.endpoints[position].span})"
        for service, i, address in _uses(vip):
            message = f"the VIP {address} is the address of an endpoint of {owner}"
            yield Finding(service.span, vip_path(service, i), message, "a VIP needs an address of its own")


@rule("vip-is-node-address", Vip)
def _vip_is_node_address(vip: Vip) -> Iterator[Finding]:
    """A VIP is an address that a node has already: of one of its interfaces, of its gateway, or one that it uses
    as a source.

    Nobody could manage the node through this address any more, since packets to it are balanced, or dropped if no
    service wants them. Don't declare VIPs on the loopback of an endpoint: lbctl puts them there.

    The way out: a VIP needs an address of its own; remove it from the interfaces of endpoints.
    """
    found = vip.around.fact(owners).get(vip.number)
    if found and not vip.endpoint:  # else vip-is-endpoint reports it
        what, node = found
        hint = "a VIP needs an address of its own"
        if node.role is Role.ENDPOINT:
            hint = "remove it there: lbctl gives endpoints the VIPs that they need"
        for service, i, address in _uses(vip):
            yield Finding(service.span, vip_path(service, i), f"the VIP {address} is {what}", hint)


def owners(around: Surroundings) -> Mapping[int, tuple[str, Node]]:
    """The addresses that nodes have already, each with what it is, and the first node that has it."""
    owners: dict[int, tuple[str, Node]] = {}
    for node in around.nodes:
        for interface in node.interfaces:
            for address in interface.addresses:
                what = f"the address of interface {interface.name} of {title(node)} ({interface.span})"
                owners.setdefault(number(address.ip), (what, node))
            if interface.gateway:
                what = f"the gateway of interface {interface.name} of {title(node)} ({interface.span})"
                owners.setdefault(number(interface.gateway), (what, node))
        for source in node.snat_addresses:
            owners.setdefault(number(source), (f"a source address of {title(node)} ({node.span})", node))
        if node.address:
            owners.setdefault(number(node.address), (f"the address of {title(node)} ({node.span})", node))
    return owners


@rule("endpoint-is-balancer", Draft)
def _endpoint_is_balancer(draft: Draft) -> Iterator[Finding]:
    """An endpoint is an address of a balancer that sends to it.

    Packets that XDP sends out of an interface go to other machines and never to the machine itself, so connections to
    that endpoint would time out, while health checks from the same machine succeed.

    The way out: run the server on another machine, or carry the service on other balancers (`nodeSelector`).
    """
    for reach in draft.reach(*Mode):
        own = {
            number(address.ip): (node, interface.name)
            for node in reach.balancers
            for interface in node.interfaces
            for address in interface.addresses
        }
        if not any(count_inside(reach.numbers, value, value) for value in own):
            continue
        for members in reach.pools:
            for value, i in _first_places(members.numbers, own).items():
                node, interface = own[value]
                message = (
                    f"{members.pool.endpoints[i].address} can't be an endpoint: it is the address of interface "
                    f"{interface} of {title(node)}, which balances to it"
                )
                hint = "run the server on another machine"
                yield Finding(members.pool.span, (*_ENDPOINTS, i, "address"), message, hint)


@rule("vip-on-several-balancers", Vip, Severity.WARNING)
def _vip_on_several_balancers(vip: Vip) -> Iterator[Finding]:
    """A VIP lies in a network that several of its balancers are attached to.

    Every machine of that network, its router too, asks who has the VIP, and all these balancers answer.
    The last answer wins: one balancer gets everything, another one after the next question, and connections that
    only the first one knew break.

    The way out: a VIP outside of all networks of the balancers, and a route to each of them (see
    `multipath-missing`); or one balancer for the service (`nodeSelector`).
    """
    shared = vip.around.fact(_shared_networks)
    for service, i, address in _uses(vip):
        carriers = vip.around.carriers(service.node_selector)
        if len(carriers) < 2:
            continue
        if id(carriers) not in shared:
            shared[id(carriers)] = _shared(vip.around, carriers)
        if not inside(vip.number, shared[id(carriers)]):
            continue
        names = [
            repr(node.name)
            for node in carriers
            if any(segment.first <= vip.number <= segment.last for segment in vip.around.segments[id(node)])
        ]
        message = f"the VIP {address} lies in a network of the balancers {names[0]} and {names[1]}"
        asked = "ARP requests" if address.version == 4 else "neighbour solicitations"
        message += f"{more(len(names) - 1, 'balancer')}: each of them answers {asked} for it"
        hint = "take a VIP outside of their networks, with routes to them, or select one balancer (nodeSelector)"
        yield Finding(service.span, vip_path(service, i), message, hint)
        return


def _shared_networks(around: Surroundings) -> dict[int, list[Range]]:
    """`_shared` by the `id` of the tuple of balancers, filled in as it is needed."""
    return {}


def _shared(around: Surroundings, nodes: tuple[Node, ...]) -> list[Range]:
    """The addresses in networks of more than one of the nodes."""
    networks: dict[Range, set[int]] = {}
    for node in nodes:
        for segment in around.segments[id(node)]:
            networks.setdefault((segment.first, segment.last), set()).add(id(node))
    return merged(network for network, owners in networks.items() if len(owners) > 1)


@rule("duplicate-address", Draft, Severity.WARNING)
def _duplicate_address(draft: Draft) -> Iterator[Finding]:
    """Two nodes declare the same address for an interface.

    In most cases one of the two was copied, and not changed. Checks that use the addresses, and the lab, then see
    another network than the real one.

    The way out: correct one of them. Networks that never meet may use the same addresses; then ignore this.
    """
    owners: dict[int, tuple[Node, Interface]] = {}
    for node in draft.nodes:
        for i, interface in enumerate(node.interfaces):
            for j, address in enumerate(interface.addresses):
                if address.is_link_local:
                    continue
                owner, other = owners.setdefault(number(address.ip), (node, interface))
                if owner is not node:
                    message = f"{address.ip} is the address of interface {other.name} of {title(owner)} already"
                    path = ("spec", "interfaces", i, "addresses", j)
                    yield Finding(node.span, path, f"{message} ({other.span})", "correct one of them")


def _first_places(numbers: Sequence[int], wanted: Container[int]) -> dict[int, int]:
    """The first position of each wanted number."""
    found: dict[int, int] = {}
    for i, value in enumerate(numbers):
        if value in wanted:
            found.setdefault(value, i)
    return found


_ENDPOINTS = ("spec", "endpoints")
_TAKE_UNICAST = "take an address of one machine"
_TAKE_ANOTHER = "take another address of the network"
