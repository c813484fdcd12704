# SPDX-License-Identifier: Apache-2.0
"""The lab's hosts, links, addresses and routes, worked out from a fleet. No I/O.

A segment is an Ethernet of its own: a subnet that some balancer's interface has an address in. Interfaces with
a subnet in common share a segment. Endpoints are in the segment of their address, the client in the segment
of the chosen balancer's first interface. With a single segment this is the one-arm topology.

Endpoints that serve by direct server return alone reply past the balancer. Those that don't share the client's
segment have a router for that, and may be in networks of their own.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from ipaddress import IPv4Address, ip_interface, ip_network

from reconciler.lab import LabError
from reconciler.model import Address, Fleet, Interface, InterfaceAddress, Node, Prefix, Role
from reconciler.support import require_supported
from reconciler.view import view

CLIENT, SWITCH, ROUTER = "client", "switch", "router"
HOST_DEVICE = "eth0"
"""The one device of the client, and of each endpoint that is no Node or names none."""
MAX_CLIENT_ADDRESSES = 64
"""The client has many addresses, so that one machine stands for many clients when addresses are hashed."""
CLIENT_MTU_BYTES = 1500
_PREFIXES = {4: 24, 6: 64}
"""Prefix lengths of networks that no manifest declares."""
_ANYWHERE: dict[int, Prefix] = {4: ip_network("0.0.0.0/0"), 6: ip_network("::/0")}


@dataclass(frozen=True, slots=True)
class Link:
    """A device of a host; its other end, `port`, is in the bridge `segment` of the switch, which carries packets
    of up to `segment_mtu_bytes`."""

    host: str
    device: str
    mac: str
    addresses: tuple[InterfaceAddress, ...]
    segment: str
    port: str
    mtu_bytes: int
    segment_mtu_bytes: int


@dataclass(frozen=True, slots=True)
class Route:
    host: str
    to: Prefix
    via: Address


@dataclass(frozen=True, slots=True)
class Topology:
    """`node` is the balancer that the client and the endpoints use; `endpoints` maps addresses to TCP ports,
    `endpoint_nodes` maps the addresses of endpoints that are Nodes to the Nodes' names."""

    node: Node
    balancers: tuple[str, ...]
    client: tuple[Address, ...]
    endpoints: Mapping[Address, tuple[int, ...]]
    endpoint_nodes: Mapping[Address, str]
    links: tuple[Link, ...]
    routes: tuple[Route, ...]

    @property
    def hosts(self) -> tuple[str, ...]:
        """Every host, the switch excepted: balancers by name, endpoints by `host_of`, the client, maybe a router."""
        return tuple(dict.fromkeys(link.host for link in self.links))

    @property
    def segments(self) -> Mapping[str, int]:
        """Segment → its MTU in bytes."""
        return {link.segment: link.segment_mtu_bytes for link in self.links}

    def link(self, host: str, device: str | None = None) -> Link:
        """The link of a host's device; without a name, of its first one. Raises KeyError."""
        for link in self.links:
            if link.host == host and device in (None, link.device):
                return link
        raise KeyError(f"{host} has no device {device}")

    @property
    def has_ipv6(self) -> bool:
        return any(address.version == 6 for link in self.links for address in link.addresses)

    def towards(self, route: Route) -> Link:
        """The link that a route leaves by. Raises StopIteration if its next hop is on no network of the host."""
        own = (link for link in self.links if link.host == route.host)
        return next(link for link in own if any(route.via in address.network for address in link.addresses))

    def facing(self, address: Address) -> Link:
        """The link of the chosen balancer that an address of one of its subnets is behind. Raises KeyError."""
        for link in self.links:
            if link.host == self.node.name and any(address in own.network for own in link.addresses):
                return link
        raise KeyError(f"{self.node.name} has no address in a subnet of {address}")


def topology(fleet: Fleet, node_name: str | None = None, spares: Collection[Address] = ()) -> Topology:
    """Work out the lab of a fleet around one balancer (None: the only node).

    `spares` are endpoints that no pool names yet; they listen on every port that any endpoint listens on.
    Raises UsageError if there is no such balancer, UnsupportedError, LabError if something has no place.
    """
    node = view(fleet, node_name, "").node
    fleet = _around(fleet, node)
    for each in fleet.nodes:
        if each.role is not Role.ROUTER:  # the lab makes its own router
            require_supported(view(fleet, each.name, ""))
    _check_names(fleet)
    site = _Site(fleet, node, _ports(fleet, spares))
    links = tuple(
        Link(
            place.host, place.device, f"02:00:00:00:{number >> 8:02x}:{number & 255:02x}", place.addresses,
            f"segment{site.segment(place)}", f"port{number}", place.mtu_bytes, site.mtu_bytes(site.segment(place)),
        )
        for number, place in enumerate(site.places, start=1)
    )  # fmt: skip
    balancers = tuple(balancer.name for balancer in site.balancers)
    nodes = {address: found.name for address, found in site.endpoint_nodes.items() if address in site.endpoints}
    return Topology(node, balancers, site.clients, site.endpoints, nodes, links, tuple(site.routes()))


def _around(fleet: Fleet, node: Node) -> Fleet:
    """The part of a fleet that concerns a balancer: its services, their pools, and whoever else is about these. Other
    sites may have the same VIPs."""
    services = tuple(service for service in fleet.services if service.runs_on(node))
    if len(services) == len(fleet.services):
        return fleet
    names: set[str | None] = {service.pool for service in services}
    names |= {pool.fallback_pool for pool in fleet.pools if pool.name in names}
    pools = tuple(pool for pool in fleet.pools if pool.name in names)
    ends = {endpoint.address for pool in pools for endpoint in pool.endpoints}

    def concerns(other: Node) -> bool:
        if other.role is Role.BALANCER:
            return other is node or any(service.runs_on(other) for service in services)
        return other.role is not Role.ENDPOINT or not ends.isdisjoint(other.endpoint_addresses)

    return Fleet(services, pools, tuple(filter(concerns, fleet.nodes)), fleet.digest)


@dataclass(frozen=True, slots=True)
class _Place:
    """A device of a host."""

    host: str
    device: str
    addresses: tuple[InterfaceAddress, ...]
    mtu_bytes: int


@dataclass(frozen=True)
class _Site:
    """Where everything is, step by step."""

    fleet: Fleet
    node: Node
    endpoints: dict[Address, tuple[int, ...]]

    @cached_property
    def balancers(self) -> tuple[Node, ...]:
        return tuple(node for node in self.fleet.nodes if node.role is Role.BALANCER)

    @cached_property
    def endpoint_nodes(self) -> dict[Address, Node]:
        nodes = (node for node in self.fleet.nodes if node.role is Role.ENDPOINT)
        return {address: node for node in nodes for address in node.endpoint_addresses}

    @cached_property
    def front(self) -> dict[int, InterfaceAddress]:
        """The chosen balancer's addresses in the client's networks, by family: one for each that VIPs are of."""
        first = self.node.interfaces[0]
        own = {address.version: address for address in reversed(first.addresses)}
        families = {vip.version for vip in _vips(self.fleet)} or own.keys()
        for version in sorted(families - own.keys()):
            raise _unplaced(self.node, first, f"IPv{version} address")
        return {version: own[version] for version in sorted(families)}

    @cached_property
    def direct(self) -> set[Address]:
        """The endpoints that need not reply through the balancer; spares are among them only if no endpoint has to."""
        pools = {pool.name: pool for pool in self.fleet.pools}
        found: dict[bool, set[Address]] = {True: set(), False: set()}
        for service in self.fleet.services:
            found[service.mode.is_dsr].update(endpoint.address for endpoint in pools[service.pool].endpoints)
        everybody = set(self.endpoints) if found[True] and not found[False] else found[True]
        return everybody - found[False]

    @cached_property
    def homes(self) -> dict[Address, InterfaceAddress]:
        """The endpoints with their networks: the balancer's, else the declared one, else one around the address."""
        homes = {}
        for address in self.endpoints:
            near = [own.network for own in _addresses(self.node) if address in own.network]
            if not near and address not in self.direct:
                subnets = ", ".join(str(own.network) for own in _addresses(self.node))
                raise LabError(
                    f"endpoint {address} is in no subnet of {self.node.name} (they are {subnets})",
                    hint="its replies have to pass the balancer: give that an interface in the endpoint's subnet",
                )
            node = self.endpoint_nodes.get(address)
            declared = [own.network for own in (_addresses(node) if node else []) if own.ip == address]
            network = [*near, *declared, ip_network((address, _PREFIXES[address.version]), strict=False)][0]
            homes[address] = _within(address, network)
        return homes

    @cached_property
    def taken(self) -> set[Address]:
        own = {a for n in self.fleet.nodes for a in (*(a.ip for a in _addresses(n)), *n.health_addresses)}
        return {*self.endpoints, *_vips(self.fleet), *own}

    @cached_property
    def clients(self) -> tuple[Address, ...]:
        """Free addresses of each front network, downwards from the last host address but one."""
        return tuple(client for own in self.front.values() for client in self._clients_in(own.network))

    def _clients_in(self, network: Prefix) -> list[Address]:
        top = int(network.broadcast_address) - 2
        last = max(int(network.network_address), top - 2 * 256)
        candidates = (network.network_address + (n - int(network.network_address)) for n in range(top, last, -1))
        free = [address for address in candidates if address not in self.taken][:MAX_CLIENT_ADDRESSES]
        if not free:
            raise LabError(f"{network} has no address left for the client", hint="make the subnet larger")
        return free

    @cached_property
    def router(self) -> dict[Prefix, Address]:
        """The addresses of the router, by network; none if no router is needed."""
        fronts = [own.network for own in self.front.values()]
        networks = [home.network for address, home in self.homes.items() if address in self.direct]
        far = [network for network in dict.fromkeys(networks) if network not in fronts]
        return {network: self._router_in(network) for network in ([*fronts, *far] if far else [])}

    def _router_in(self, network: Prefix) -> Address:
        routers = (node for node in self.fleet.nodes if node.role is Role.ROUTER)
        gateways = [face.gateway for node in self.fleet.nodes for face in node.interfaces if face.gateway]
        declared = [a for a in (*(a.ip for node in routers for a in _addresses(node)), *gateways) if a in network]
        free = (a for a in (network.broadcast_address - n for n in (1, 2)) if a not in {*self.taken, *self.clients})
        found = next(iter(declared), None) or next(free, None)
        if found is None:
            raise LabError(f"{network} has no address left for the router", hint="declare a Node of role router")
        return found

    @cached_property
    def places(self) -> list[_Place]:
        return [*self._hosts, *self._legs]

    @cached_property
    def _hosts(self) -> list[_Place]:
        """The devices of all hosts but the router."""
        places = []
        for balancer in self.balancers:
            for interface in balancer.interfaces:
                if not interface.addresses:
                    raise _unplaced(balancer, interface, "address")
                places.append(_Place(balancer.name, interface.name, interface.addresses, interface.mtu_bytes))
        for address, home in self.homes.items():
            faces = self.endpoint_nodes[address].interfaces if address in self.endpoint_nodes else ()
            own = [face for face in faces if address in (a.ip for a in face.addresses)] or [*faces]
            device, mtu = (own[0].name, own[0].mtu_bytes) if own else (HOST_DEVICE, self._mtu_near(home.network))
            places.append(_Place(host_of(address), device, (home,), mtu))
        clients = tuple(_within(client, self.front[client.version].network) for client in self.clients)
        mtu = min(CLIENT_MTU_BYTES, *(self._mtu_near(own.network) for own in self.front.values()))
        places.append(_Place(CLIENT, HOST_DEVICE, clients, mtu))
        return places

    @cached_property
    def _legs(self) -> list[_Place]:
        """The devices of the router, one for each segment that it is in."""
        legs: dict[int, tuple[InterfaceAddress, ...]] = {}
        for network, address in self.router.items():
            number = next(n for n, networks in enumerate(self.segments) if network in networks)
            legs[number] = (*legs.get(number, ()), _within(address, network))
        for face in (face for node in self.fleet.nodes for face in node.interfaces if face.addresses):
            near = [number for number in legs if face.addresses[0].network in self.segments[number]]
            if near and face.gateway and face.gateway.is_link_local:
                own = ip_interface((face.gateway, _PREFIXES[face.gateway.version]))
                legs[near[0]] = tuple(dict.fromkeys((*legs[near[0]], own)))
        return [
            _Place(ROUTER, f"eth{index}", addresses, self.mtu_bytes(number))
            for index, (number, addresses) in enumerate(legs.items())
        ]

    def _mtu_near(self, network: Prefix) -> int:
        """The MTU in bytes that the balancers declare for a network."""
        faces = (face for balancer in self.balancers for face in balancer.interfaces)
        near = [face.mtu_bytes for face in faces if any(own.network == network for own in face.addresses)]
        return max(near, default=CLIENT_MTU_BYTES)

    @cached_property
    def segments(self) -> list[frozenset[Prefix]]:
        """The subnets of each segment."""
        segments: list[frozenset[Prefix]] = []
        for place in self._hosts:
            networks = frozenset(address.network for address in place.addresses)
            shared = [segment for segment in segments if segment & networks]
            segments = [s for s in segments if s not in shared] + [networks.union(*shared)]
        return segments

    def segment(self, place: _Place) -> int:
        return next(n for n, networks in enumerate(self.segments) if place.addresses[0].network in networks)

    def mtu_bytes(self, segment: int) -> int:
        return max(place.mtu_bytes for place in self._hosts if self.segment(place) == segment)

    def routes(self) -> Iterator[Route]:
        for version, own in self.front.items():
            vips = {vip for vip in _vips(self.fleet) if vip.version == version} - {own.ip}
            yield from (Route(CLIENT, ip_network(vip), own.ip) for vip in sorted(vips, key=int))
            if self.router:
                hosts = [b.name for b in self.balancers if any(a.network == own.network for a in _addresses(b))]
                yield from (Route(host, _ANYWHERE[version], self.router[own.network]) for host in [*hosts, CLIENT])
        for address, home in self.homes.items():
            host = host_of(address)
            if address in self.direct:
                # Replies to clients of IPv4 may leave through a network that knows IPv6 only (RFC 8950).
                if home.network in self.router:
                    yield from (Route(host, _ANYWHERE[version], self.router[home.network]) for version in self.front)
                continue
            via = next(own.ip for own in _addresses(self.node) if address in own.network)
            yield Route(host, _ANYWHERE[via.version], via)
            # Without these, an endpoint would answer clients on its own segment directly, past the balancer.
            yield from (Route(host, ip_network(client), via) for client in self.clients if client in home.network)


def _check_names(fleet: Fleet) -> None:
    for node in fleet.nodes:
        if node.name in (CLIENT, SWITCH, ROUTER):
            raise LabError(f"a Node can't be named {node.name} in the lab", hint="the lab has a host of that name")


def _ports(fleet: Fleet, spares: Collection[Address]) -> dict[Address, tuple[int, ...]]:
    """The ports at which each endpoint listens: its own, else the service's target port, else the service's ports."""
    pools = {pool.name: pool for pool in fleet.pools}
    ports: dict[Address, set[int]] = {}
    for service in fleet.services:
        asked = {service.target_port} if service.target_port else set(service.ports)
        for endpoint in pools[service.pool].endpoints:
            ports.setdefault(endpoint.address, set()).update({endpoint.port} if endpoint.port else asked)
    every = set().union(*ports.values())
    for spare in spares:
        ports.setdefault(spare, every)
    return {address: tuple(sorted(ports[address])) for address in sorted(ports, key=lambda a: (a.version, int(a)))}


def ipv4(addresses: tuple[Address, ...]) -> tuple[IPv4Address, ...]:
    """The same addresses. Raises LabError if one is of IPv6, which the demo doesn't support."""
    found = tuple(address for address in addresses if isinstance(address, IPv4Address))
    if found != addresses:
        raise LabError(f"the demo has no place for {', '.join(map(str, addresses))}", hint="it knows IPv4 only")
    return found


def _unplaced(node: Node, interface: Interface, what: str) -> LabError:
    message = f"{interface.span}: {interface.name} of {node.name} has no {what}, so its subnet is unknown"
    return LabError(message, hint="declare them: `addresses: [10.1.0.1/24]`")


def host_of(address: Address) -> str:
    """The name of an endpoint's host: its address, fit for the names of namespaces and instances."""
    return str(address).replace(":", "-")


def _within(address: Address, network: Prefix) -> InterfaceAddress:
    return ip_interface((address, network.prefixlen))


def _vips(fleet: Fleet) -> set[Address]:
    return {vip for service in fleet.services for vip in service.vips}


def _addresses(node: Node) -> list[InterfaceAddress]:
    return [address for interface in node.interfaces for address in interface.addresses]
