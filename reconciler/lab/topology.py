# SPDX-License-Identifier: Apache-2.0
"""What the lab builds, worked out from a fleet: hosts, their links, addresses and routes. No I/O.

A segment is an Ethernet of its own: a subnet that some balancer's interface has an address in. Interfaces with
a subnet in common share a segment. Endpoints live where their address belongs, the client in the segment of
the chosen balancer's first interface. With a single segment this is the one-arm topology.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Interface, IPv4Network

from reconciler.lab import LabError
from reconciler.model import Address, Fleet, Interface, Node
from reconciler.support import require_supported
from reconciler.view import view

CLIENT, SWITCH = "client", "switch"
HOST_DEVICE = "eth0"
"""The one device of the client and of each endpoint."""
MAX_CLIENT_ADDRESSES = 64
"""The client has many addresses, so that one client can stand for many where addresses are hashed."""


@dataclass(frozen=True, slots=True)
class Link:
    """A device of a host; its other end, `port`, is in the bridge `segment` of the switch."""

    host: str
    device: str
    mac: str
    addresses: tuple[IPv4Interface, ...]
    segment: str
    port: str


@dataclass(frozen=True, slots=True)
class Route:
    host: str
    to: IPv4Network
    via: IPv4Address


@dataclass(frozen=True, slots=True)
class Topology:
    """`node` is the balancer that the client and the endpoints use; `endpoints` maps addresses to TCP ports."""

    node: Node
    balancers: tuple[str, ...]
    client: tuple[IPv4Address, ...]
    endpoints: Mapping[IPv4Address, tuple[int, ...]]
    links: tuple[Link, ...]
    routes: tuple[Route, ...]

    @property
    def hosts(self) -> tuple[str, ...]:
        """Every host, the switch excepted: balancers by name, endpoints by address, the client."""
        return (*self.balancers, *map(str, self.endpoints), CLIENT)

    @property
    def segments(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(link.segment for link in self.links))

    def link(self, host: str, device: str = HOST_DEVICE) -> Link:
        """The link of a host's device. Raises KeyError."""
        for link in self.links:
            if (link.host, link.device) == (host, device):
                return link
        raise KeyError(f"{host} has no device {device}")

    def facing(self, address: IPv4Address) -> Link:
        """The link of the chosen balancer that an address of one of its subnets is behind. Raises KeyError."""
        for link in self.links:
            if link.host == self.node.name and any(address in own.network for own in link.addresses):
                return link
        raise KeyError(f"{self.node.name} has no address in a subnet of {address}")


def topology(fleet: Fleet, node_name: str | None = None, spares: Collection[IPv4Address] = ()) -> Topology:
    """Work out the lab of a fleet around one balancer (None: the only one).

    `spares` are endpoints that no pool names yet; they listen on every port that any endpoint listens on.
    Raises UsageError if there is no such balancer, UnsupportedError, LabError if something has no place.
    """
    node = view(fleet, node_name, "").node
    for each in fleet.nodes:
        require_supported(view(fleet, each.name, ""))
    endpoints = _ports(fleet, spares)
    _check_names(fleet)
    taken = {*endpoints, *_vips(fleet), *(a.ip for n in fleet.nodes for a in _addresses(n))}
    clients = _client_addresses(node, taken)
    places = _places(fleet, node, clients, endpoints)
    segments = _segments(fleet)
    links = tuple(
        Link(host, device, f"02:00:00:00:{number >> 8:02x}:{number & 255:02x}", addresses,
             _segment_of(segments, addresses), f"port{number}")
        for number, (host, device, addresses) in enumerate(places, start=1)
    )  # fmt: skip
    balancers = tuple(n.name for n in fleet.nodes)
    return Topology(node, balancers, clients, endpoints, links, tuple(_routes(fleet, node, clients, endpoints)))


def _check_names(fleet: Fleet) -> None:
    for node in fleet.nodes:
        if node.name in (CLIENT, SWITCH):
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


def _client_addresses(node: Node, taken: Collection[IPv4Address]) -> tuple[IPv4Address, ...]:
    """Free addresses of the first interface's subnet, downwards from the last host address but one."""
    network = _network(node, node.interfaces[0])
    top = int(network.broadcast_address) - 2
    candidates = (IPv4Address(n) for n in range(top, max(int(network.network_address), top - 2 * 256), -1))
    free = [address for address in candidates if address not in taken][:MAX_CLIENT_ADDRESSES]
    if not free:
        raise LabError(f"{network} has no address left for the client", hint="make the subnet larger")
    return tuple(free)


def _network(node: Node, interface: Interface) -> IPv4Network:
    if not _own(interface):
        raise LabError(
            f"{interface.span}: {interface.name} of {node.name} has no IPv4 address, so its subnet is unknown",
            hint="declare them: `addresses: [10.1.0.1/24]`",
        )
    return _own(interface)[0].network


def _home(node: Node, address: IPv4Address) -> IPv4Interface:
    """The balancer's own address in the subnet of `address`."""
    for own in _addresses(node):
        if address in own.network:
            return own
    subnets = ", ".join(str(own.network) for own in _addresses(node))
    raise LabError(
        f"endpoint {address} is in no subnet of {node.name} (they are {subnets})",
        hint="the lab has no routers: give the balancer an interface in the endpoint's subnet",
    )


def _places(
    fleet: Fleet, node: Node, clients: tuple[IPv4Address, ...], endpoints: Iterable[IPv4Address]
) -> list[tuple[str, str, tuple[IPv4Interface, ...]]]:
    """Host, device and addresses of each link."""
    places: list[tuple[str, str, tuple[IPv4Interface, ...]]] = []
    for each in fleet.nodes:
        for interface in each.interfaces:
            _network(each, interface)
            places.append((each.name, interface.name, _own(interface)))
    places += ((str(address), HOST_DEVICE, (_within(address, _home(node, address)),)) for address in endpoints)
    places.append((CLIENT, HOST_DEVICE, tuple(_within(a, _own(node.interfaces[0])[0]) for a in clients)))
    return places


def _within(address: IPv4Address, neighbour: IPv4Interface) -> IPv4Interface:
    return IPv4Interface((address, neighbour.network.prefixlen))


def _segments(fleet: Fleet) -> list[frozenset[IPv4Network]]:
    """The subnets of each segment."""
    segments: list[frozenset[IPv4Network]] = []
    for node in fleet.nodes:
        for interface in node.interfaces:
            networks = frozenset(address.network for address in _own(interface))
            shared = [segment for segment in segments if segment & networks]
            segments = [s for s in segments if s not in shared] + [networks.union(*shared)]
    return segments


def _segment_of(segments: list[frozenset[IPv4Network]], addresses: tuple[IPv4Interface, ...]) -> str:
    return next(f"segment{n}" for n, networks in enumerate(segments) if addresses[0].network in networks)


def _routes(
    fleet: Fleet, node: Node, clients: tuple[IPv4Address, ...], endpoints: Iterable[IPv4Address]
) -> Iterable[Route]:
    front = _own(node.interfaces[0])[0]
    for vip in sorted(_vips(fleet) - {front.ip}):
        yield Route(CLIENT, IPv4Network(vip), front.ip)
    for address in endpoints:
        home = _home(node, address)
        yield Route(str(address), IPv4Network("0.0.0.0/0"), home.ip)
        # Clients on its own segment an endpoint would answer directly, past the balancer, without these.
        for client in clients:
            if client in home.network:
                yield Route(str(address), IPv4Network(client), home.ip)
