# SPDX-License-Identifier: Apache-2.0
"""What the lab builds, worked out from a fleet: hosts, their links, addresses and routes. No I/O.

A segment is an Ethernet of its own: a subnet that some balancer's interface has an address in. Interfaces with
a subnet in common share a segment. Endpoints live where their address belongs, the client in the segment of
the chosen balancer's first interface. With a single segment this is the one-arm topology.

Endpoints that serve by direct server return alone reply past the balancer. Those that don't share the client's
segment have a router for that, and may be in networks of their own.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from ipaddress import IPv4Address, IPv4Interface, IPv4Network

from reconciler.lab import LabError
from reconciler.model import Address, Fleet, Interface, Node, Role
from reconciler.support import require_supported
from reconciler.view import view

CLIENT, SWITCH, ROUTER = "client", "switch", "router"
HOST_DEVICE = "eth0"
"""The one device of the client, and of each endpoint that is no Node or names none."""
MAX_CLIENT_ADDRESSES = 64
"""The client has many addresses, so that one client can stand for many where addresses are hashed."""
CLIENT_MTU_BYTES = 1500
_PREFIX = 24
"""Of networks that nobody declares."""


@dataclass(frozen=True, slots=True)
class Link:
    """A device of a host; its other end, `port`, is in the bridge `segment` of the switch, which carries packets
    of up to `segment_mtu_bytes`."""

    host: str
    device: str
    mac: str
    addresses: tuple[IPv4Interface, ...]
    segment: str
    port: str
    mtu_bytes: int
    segment_mtu_bytes: int


@dataclass(frozen=True, slots=True)
class Route:
    host: str
    to: IPv4Network
    via: IPv4Address


@dataclass(frozen=True, slots=True)
class Topology:
    """`node` is the balancer that the client and the endpoints use; `endpoints` maps addresses to TCP ports,
    `endpoint_nodes` those of the endpoints that are Nodes to their names."""

    node: Node
    balancers: tuple[str, ...]
    client: tuple[IPv4Address, ...]
    endpoints: Mapping[IPv4Address, tuple[int, ...]]
    endpoint_nodes: Mapping[IPv4Address, str]
    links: tuple[Link, ...]
    routes: tuple[Route, ...]

    @property
    def hosts(self) -> tuple[str, ...]:
        """Every host, the switch excepted: balancers by name, endpoints by address, the client, maybe a router."""
        return tuple(dict.fromkeys(link.host for link in self.links))

    @property
    def segments(self) -> Mapping[str, int]:
        """Every segment, and how long packets it carries."""
        return {link.segment: link.segment_mtu_bytes for link in self.links}

    def link(self, host: str, device: str | None = None) -> Link:
        """The link of a host's device; without a name, of its first one. Raises KeyError."""
        for link in self.links:
            if link.host == host and device in (None, link.device):
                return link
        raise KeyError(f"{host} has no device {device}")

    def facing(self, address: IPv4Address) -> Link:
        """The link of the chosen balancer that an address of one of its subnets is behind. Raises KeyError."""
        for link in self.links:
            if link.host == self.node.name and any(address in own.network for own in link.addresses):
                return link
        raise KeyError(f"{self.node.name} has no address in a subnet of {address}")


def topology(fleet: Fleet, node_name: str | None = None, spares: Collection[IPv4Address] = ()) -> Topology:
    """Work out the lab of a fleet around one balancer (None: the only node).

    `spares` are endpoints that no pool names yet; they listen on every port that any endpoint listens on.
    Raises UsageError if there is no such balancer, UnsupportedError, LabError if something has no place.
    """
    node = view(fleet, node_name, "").node
    for each in fleet.nodes:
        if each.role is not Role.ROUTER:  # the lab has its own
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


@dataclass(frozen=True, slots=True)
class _Place:
    """A device of a host."""

    host: str
    device: str
    addresses: tuple[IPv4Interface, ...]
    mtu_bytes: int


@dataclass(frozen=True)
class _Site:
    """Where everything is, step by step."""

    fleet: Fleet
    node: Node
    endpoints: dict[IPv4Address, tuple[int, ...]]

    @cached_property
    def balancers(self) -> tuple[Node, ...]:
        return tuple(node for node in self.fleet.nodes if node.role is Role.BALANCER)

    @cached_property
    def endpoint_nodes(self) -> dict[IPv4Address, Node]:
        nodes = (node for node in self.fleet.nodes if node.role is Role.ENDPOINT)
        return {a: node for node in nodes for a in node.endpoint_addresses if isinstance(a, IPv4Address)}

    @cached_property
    def front(self) -> IPv4Interface:
        """The chosen balancer's address in the client's network."""
        return _first(self.node, self.node.interfaces[0])

    @cached_property
    def direct(self) -> set[IPv4Address]:
        """The endpoints that nobody asks for replies through the balancer; spares only where nobody is asked."""
        pools = {pool.name: pool for pool in self.fleet.pools}
        found: dict[bool, set[IPv4Address]] = {True: set(), False: set()}
        for service in self.fleet.services:
            found[service.mode.is_dsr].update(ipv4(tuple(e.address for e in pools[service.pool].endpoints)))
        everybody = set(self.endpoints) if found[True] and not found[False] else found[True]
        return everybody - found[False]

    @cached_property
    def homes(self) -> dict[IPv4Address, IPv4Interface]:
        """The endpoints with their networks: that of the balancer, else the declared one, else one around it."""
        homes = {}
        for address in self.endpoints:
            near = [own.network for own in _addresses(self.node) if address in own.network]
            if not near and address not in self.direct:
                subnets = ", ".join(str(own.network) for own in _addresses(self.node))
                raise LabError(
                    f"endpoint {address} is in no subnet of {self.node.name} (they are {subnets})",
                    hint="its replies have to pass the balancer: give that an interface in the endpoint's subnet",
                )
            declared = [own.network for own in self._declared(address) if own.ip == address]
            network = [*near, *declared, IPv4Network((address, _PREFIX), strict=False)][0]
            homes[address] = IPv4Interface((address, network.prefixlen))
        return homes

    def _declared(self, address: IPv4Address) -> list[IPv4Interface]:
        return _addresses(self.endpoint_nodes[address]) if address in self.endpoint_nodes else []

    @cached_property
    def taken(self) -> set[IPv4Address]:
        return {*self.endpoints, *_vips(self.fleet), *(a.ip for n in self.fleet.nodes for a in _addresses(n))}

    @cached_property
    def clients(self) -> tuple[IPv4Address, ...]:
        """Free addresses of the front network, downwards from the last host address but one."""
        network = self.front.network
        top = int(network.broadcast_address) - 2
        candidates = (IPv4Address(n) for n in range(top, max(int(network.network_address), top - 2 * 256), -1))
        free = [address for address in candidates if address not in self.taken][:MAX_CLIENT_ADDRESSES]
        if not free:
            raise LabError(f"{network} has no address left for the client", hint="make the subnet larger")
        return tuple(free)

    @cached_property
    def router(self) -> dict[IPv4Network, IPv4Interface]:
        """The addresses of the router, by network; none where it isn't needed."""
        far = {home.network for address, home in self.homes.items() if address in self.direct}
        networks = [self.front.network, *sorted(far - {self.front.network})] if far - {self.front.network} else []
        return {network: IPv4Interface((self._router_in(network), network.prefixlen)) for network in networks}

    def _router_in(self, network: IPv4Network) -> IPv4Address:
        routers = (node for node in self.fleet.nodes if node.role is Role.ROUTER)
        declared = [a.ip for node in routers for a in _addresses(node) if a.ip in network]
        free = (a for a in (network.broadcast_address - n for n in (1, 2)) if a not in {*self.taken, *self.clients})
        found = next(iter(declared), None) or next(free, None)
        if found is None:
            raise LabError(f"{network} has no address left for the router", hint="declare a Node of role router")
        return found

    @cached_property
    def places(self) -> list[_Place]:
        places = []
        for balancer in self.balancers:
            for interface in balancer.interfaces:
                _first(balancer, interface)
                places.append(_Place(balancer.name, interface.name, _own(interface), interface.mtu_bytes))
        for address, home in self.homes.items():
            faces = self.endpoint_nodes[address].interfaces if address in self.endpoint_nodes else ()
            own = [face for face in faces if address in (a.ip for a in face.addresses)] or [*faces]
            device, mtu = (own[0].name, own[0].mtu_bytes) if own else (HOST_DEVICE, self._mtu_near(home.network))
            places.append(_Place(str(address), device, (home,), mtu))
        clients = tuple(IPv4Interface((a, self.front.network.prefixlen)) for a in self.clients)
        mtu = min(CLIENT_MTU_BYTES, self._mtu_near(self.front.network))
        places.append(_Place(CLIENT, HOST_DEVICE, clients, mtu))
        for number, (network, address) in enumerate(self.router.items()):
            mtu = max(p.mtu_bytes for p in places if any(a.network == network for a in p.addresses))
            places.append(_Place(ROUTER, f"eth{number}", (address,), mtu))
        return places

    def _mtu_near(self, network: IPv4Network) -> int:
        """What the balancers declare for a network."""
        faces = (face for balancer in self.balancers for face in balancer.interfaces)
        near = [face.mtu_bytes for face in faces if any(own.network == network for own in _own(face))]
        return max(near, default=CLIENT_MTU_BYTES)

    @cached_property
    def segments(self) -> list[frozenset[IPv4Network]]:
        """The subnets of each segment."""
        segments: list[frozenset[IPv4Network]] = []
        for place in self.places:
            networks = frozenset(address.network for address in place.addresses)
            shared = [segment for segment in segments if segment & networks]
            segments = [s for s in segments if s not in shared] + [networks.union(*shared)]
        return segments

    def segment(self, place: _Place) -> int:
        return next(n for n, networks in enumerate(self.segments) if place.addresses[0].network in networks)

    def mtu_bytes(self, segment: int) -> int:
        return max(place.mtu_bytes for place in self.places if self.segment(place) == segment)

    def routes(self) -> Iterator[Route]:
        for vip in sorted(_vips(self.fleet) - {self.front.ip}):
            yield Route(CLIENT, IPv4Network(vip), self.front.ip)
        if self.router:
            gateway = self.router[self.front.network].ip
            for balancer in self.balancers:
                if any(own.network == self.front.network for own in _addresses(balancer)):
                    yield Route(balancer.name, IPv4Network("0.0.0.0/0"), gateway)
            yield Route(CLIENT, IPv4Network("0.0.0.0/0"), gateway)
        for address, home in self.homes.items():
            if address in self.direct:
                if home.network in self.router:
                    yield Route(str(address), IPv4Network("0.0.0.0/0"), self.router[home.network].ip)
                continue
            via = next(own.ip for own in _addresses(self.node) if address in own.network)
            yield Route(str(address), IPv4Network("0.0.0.0/0"), via)
            # Clients on its own segment an endpoint would answer directly, past the balancer, without these.
            near = [client for client in self.clients if client in home.network]
            yield from (Route(str(address), IPv4Network(client), via) for client in near)


def _check_names(fleet: Fleet) -> None:
    for node in fleet.nodes:
        if node.name in (CLIENT, SWITCH, ROUTER):
            raise LabError(f"a Node can't be named {node.name} in the lab", hint="the lab has a host of that name")


def _ports(fleet: Fleet, spares: Collection[IPv4Address]) -> dict[IPv4Address, tuple[int, ...]]:
    """Where each endpoint listens: its own port, else the service's target port, else the port asked for."""
    pools = {pool.name: pool for pool in fleet.pools}
    ports: dict[IPv4Address, set[int]] = {}
    for service in fleet.services:
        asked = {service.target_port} if service.target_port else set(service.ports)
        for endpoint in pools[service.pool].endpoints:
            (address,) = ipv4((endpoint.address,))
            ports.setdefault(address, set()).update({endpoint.port} if endpoint.port else asked)
    every = set().union(*ports.values())
    for spare in spares:
        ports.setdefault(spare, every)
    return {address: tuple(sorted(ports[address])) for address in sorted(ports)}


def ipv4(addresses: tuple[Address, ...]) -> tuple[IPv4Address, ...]:
    """The same addresses. Raises LabError if one is of the family that the lab does not have."""
    found = tuple(address for address in addresses if isinstance(address, IPv4Address))
    if found != addresses:
        raise LabError(f"the lab has no place for {', '.join(map(str, addresses))}", hint="it knows IPv4 only")
    return found


def _vips(fleet: Fleet) -> set[IPv4Address]:
    return {vip for service in fleet.services for vip in ipv4(service.vips)}


def _addresses(node: Node) -> list[IPv4Interface]:
    return [address for interface in node.interfaces for address in _own(interface)]


def _own(interface: Interface) -> tuple[IPv4Interface, ...]:
    """The addresses of an interface that the lab can give it: those that balanced packets can have."""
    return tuple(address for address in interface.addresses if isinstance(address, IPv4Interface))


def _first(node: Node, interface: Interface) -> IPv4Interface:
    if not _own(interface):
        raise LabError(
            f"{interface.span}: {interface.name} of {node.name} has no IPv4 address, so its subnet is unknown",
            hint="declare them: `addresses: [10.1.0.1/24]`",
        )
    return _own(interface)[0]
