# SPDX-License-Identifier: Apache-2.0
"""The part of a fleet that concerns one node."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, cached_property
from ipaddress import IPv6Address
from itertools import chain, compress
from operator import is_, is_not
from typing import TypeVar

from reconciler import limits
from reconciler.dataplane.program import AFFINITY, ALLOWED_SOURCES, DECAPSULATE, STATELESS
from reconciler.errors import UsageError
from reconciler.limits import Sizes, grown
from reconciler.model import (
    Address,
    Algorithm,
    Endpoint,
    Fleet,
    Interface,
    Mode,
    Node,
    Pool,
    Protocol,
    Role,
    Service,
    Undefined,
    XdpMode,
)
from reconciler.peers import Hop, Peer, hops_of, peers_of
from reconciler.resource import Causes, Span

N = TypeVar("N", Service, Pool)

_INTERFACES = "spec: {interfaces: [{name: eth0}]}"


def sources_of(node: Node, service: Service) -> tuple[Address, ...]:
    """The source addresses that a node has for a service in mode fullnat: those of the families of its VIPs."""
    families = {vip.version for vip in service.vips}
    return tuple(address for address in node.snat_addresses if address.version in families)


@dataclass(frozen=True)
class Facts:
    """The node, as far as it matters to a single service or pool of a balancer."""

    node: Node

    @cached_property
    def networks(self) -> tuple[tuple[int, int, int, str], ...]:
        """The networks that the node is attached to: version, first and last number, interface."""
        attached = ((own.network, face.name) for face in self.node.interfaces for own in face.addresses)
        return tuple((network.version, int(network[0]), int(network[-1]), name) for network, name in attached)

    @cached_property
    def own(self) -> frozenset[Address]:
        """The addresses of its interfaces."""
        return frozenset(own.ip for face in self.node.interfaces for own in face.addresses)

    def on_links(self, endpoints: Sequence[Endpoint]) -> list[Endpoint]:
        """Those of these endpoints that are in one of the networks; most are in none, which is soon said."""
        numbers = [int(endpoint.address) for endpoint in endpoints]
        near = {number for _, first, last, _ in self.networks for number in numbers if first <= number <= last}
        both = zip(endpoints, numbers, strict=True) if near else ()
        return [endpoint for endpoint, number in both if number in near and self.on_link(endpoint.address)]

    def on_link(self, address: Address) -> list[str]:
        """The interfaces with a network that holds the address."""
        number, version = int(address), address.version
        found = [n for family, first, last, n in self.networks if first <= number <= last and family == version]
        return list(dict.fromkeys(found)) if len(found) > 1 else found


@dataclass(frozen=True, slots=True)
class Use:
    """How the services of a balancer use a pool. `stateless` are those of nat that remember nothing: VIP, port, port
    of endpoints or 0, and protocol. `remembering` are the algorithms of those that remember which endpoint a client
    had."""

    algorithms: frozenset[Algorithm] = frozenset()
    stateless: frozenset[tuple[Address, int, int, str]] = frozenset()
    remembering: frozenset[Algorithm] = frozenset()

    def __or__(self, other: Use) -> Use:
        remembering = self.remembering | other.remembering
        return Use(self.algorithms | other.algorithms, self.stateless | other.stateless, remembering)


@cache
def _use(algorithm: Algorithm, remembers_clients: bool) -> Use:
    own = frozenset((algorithm,))
    return Use(own, remembering=own if remembers_clients else frozenset())


def use_of(service: Service) -> Use:
    """How a service uses its pool. Thousands have the same one."""
    one = _use(service.scheduling, service.remembers_clients)
    if not service.stateless:
        return one
    target, protocol = service.target_port or 0, service.protocol.value
    fronts = frozenset((vip, port, target, protocol) for vip in service.vips for port in service.ports)
    return replace(one, stateless=fronts)


@dataclass(frozen=True)
class NodeView:
    """One node, the services that it carries or serves, and their pools by name.

    A balancer carries services; an endpoint serves those that reach it by direct server return. `decapsulates`:
    the kernel of an endpoint can't unpack the tunnels that it gets, so our program does. `asks_for_sources`: the
    program that is there asks who may use a service; every later one does, too, since programs change before services:
    with another one, a service that is about to go would be open to everybody until then. `was_stateless`: in the same
    way it knows nat without memory, which connections may still depend on. `lossy` are the interfaces
    that would lose the packets that native XDP sends. `fallbacks` are pools that only others fall back to. `causes`
    says why pools are other than the manifests say. `silent_gateways` don't answer ARP or neighbour discovery:
    gateways where VIPs are announced, and the balancers, `hops`, that a router has routes to. `peers` are its
    neighbours by BGP; the services of a router are those whose VIPs it hears of, or has routes to. `held` is what the
    maps have room for that are there already: without a declared capacity they grow, and never shrink.
    """

    node: Node
    services: tuple[Service, ...]
    pools: Mapping[str, Pool]
    fallbacks: Mapping[str, Pool] = field(default_factory=dict)
    causes: Causes = field(default_factory=dict)
    decapsulates: bool = False
    asks_for_sources: bool = False
    was_stateless: bool = False
    lossy: frozenset[str] = frozenset()
    held: Sizes | None = None
    silent_gateways: tuple[str, ...] = ()
    peers: tuple[Peer, ...] = ()
    hops: tuple[Hop, ...] = ()

    @property
    def runs_program(self) -> bool:
        """Whether the interfaces of this node get a program."""
        return bool(self.node.interfaces) and (self.node.role is Role.BALANCER or self.decapsulates)

    def xdp_mode(self, interface: Interface) -> XdpMode:
        """Native or generic."""
        if interface.xdp is not XdpMode.AUTO:
            return interface.xdp
        return XdpMode.GENERIC if interface.name in self.lossy else XdpMode.NATIVE

    @property
    def faces(self) -> tuple[Interface, ...]:
        """The interfaces of a node that balances something; none if there is nothing to do."""
        return self.node.interfaces if self.services else ()

    @property
    def has_prober(self) -> bool:
        """Whether a balancer checks endpoints through VIPs, as far as the pools ask for it."""
        is_able = self.node.role is Role.BALANCER and bool(self.node.health_addresses)
        return is_able and any(service.mode.is_dsr for service in self.services)

    @cached_property
    def uses(self) -> Mapping[str, Use]:
        """How the services use each pool, by its name."""
        found: dict[str, Use] = {}
        for service in self.services:
            one, former = use_of(service), found.get(service.pool)
            found[service.pool] = one if former is None or former is one else former | one
        return found

    @cached_property
    def tunnelled(self) -> tuple[Service, ...]:
        """The services whose packets come, or leave, in tunnels."""
        return tuple(service for service in self.services if service.mode is Mode.DSR_L3)

    @cached_property
    def tunnel_ends(self) -> Mapping[Address, Span]:
        """The addresses of this endpoint at which tunnels end, each with the first place in the manifests that names
        it."""
        own = set(self.node.endpoint_addresses)
        pools = [self.pools[service.pool] for service in self.tunnelled]
        return {e.address: e.span for pool in reversed(pools) for e in reversed(pool.endpoints) if e.address in own}

    @cached_property
    def on_link6(self) -> Mapping[tuple[Address, str], Span]:
        """The IPv6 VIPs, and sources of fullnat, that are in a network of an interface, with its name and the place
        that asks for the address; on a balancer, which answers for them there."""
        if self.node.role is not Role.BALANCER:
            return {}
        vips = {vip: service.span for service in reversed(self.services) for vip in service.vips if vip.version == 6}
        for service in reversed(self.services):
            if service.mode is Mode.FULLNAT:
                vips |= {a: service.span for a in sources_of(self.node, service) if a.version == 6}
        return {
            (vip, face.name): span for vip, span in vips.items() for face in self.node.interfaces
            if any(vip in own.network for own in face.addresses)
        }  # fmt: skip

    @property
    def prober_on_link(self) -> list[tuple[Address, str]]:
        """The addresses that checks through VIPs come from, in a network of an interface, each with its name."""
        return [
            (address, face.name) for address in self.node.health_addresses if self.has_prober
            for face in self.node.interfaces if any(address in own.network for own in face.addresses)
        ]  # fmt: skip

    @cached_property
    def features(self) -> tuple[str, ...]:
        """The features of the program that these services need, and no others; sorted."""
        if self.node.role is Role.ENDPOINT:
            addresses = [*self.tunnel_ends, *(vip for service in self.tunnelled for vip in service.vips)]
            return (DECAPSULATE, "IPV6") if any(a.version == 6 for a in addresses) else (DECAPSULATE,)
        modes = {service.mode.name for service in self.services}
        if any(map(_places_fragments, self.services)):
            modes.add("FRAGMENTS")
        algorithms = {service.scheduling.name for service in self.services}
        undefined = {Undefined.REJECT.name} & {self.node.undefined_traffic.name} if self.services else set()
        protocols = {service.protocol.name for service in self.services} - {Protocol.TCP.name, Protocol.ICMP.name}
        echo = {"ECHO"} if self.services else set()
        if any(service.takes_pings for service in self.services):
            echo.add("FORWARD_ECHO")
        ipv6 = {"IPV6"} if self.has_ipv6 else set()
        if any(vip.version == 6 for service in self.services if service.mode is Mode.NAT for vip in service.vips):
            ipv6.add("NAT6")
        if any(vip.version == 6 for service in self.services if service.mode is Mode.FULLNAT for vip in service.vips):
            ipv6.add("FULLNAT6")
        ways = {"GATEWAY" for face in self.faces if face.gateway} | {"VLAN" for face in self.faces if face.trunk}
        checks = {"CHECKS"} if self.has_prober else set()
        allowed = {ALLOWED_SOURCES} if self._has_sources else set()
        stateless = {STATELESS} if self.was_stateless or any(s.stateless for s in self.services) else set()
        memories = stateless | ({AFFINITY} if any(s.remembers_clients for s in self.services) else set())
        features = modes | algorithms | undefined | protocols | echo | ipv6 | ways | checks | allowed | memories
        return tuple(sorted(features))

    @property
    def _has_sources(self) -> bool:
        return self.asks_for_sources or any(service.allowed_sources for service in self.services)

    @cached_property
    def sizes(self) -> Sizes:
        """What the maps must have room for: the declared capacity; else what the manifests ask for, with room to
        exchange the largest service or pool at once, and some to spare."""
        if self.node.role is not Role.BALANCER:
            return Sizes()
        rows = [len(service.vips) * (len(service.ports) + service.takes_pings) for service in self.services]
        endpoints = [len(pool.endpoints) for pool in self.pools.values()]
        fewest, most = limits.FEWEST_ENDPOINTS + 1, limits.ENDPOINTS + 1
        need = Sizes(
            grown(sum(rows) + max(rows, default=0), limits.SERVICES, limits.MOST_SERVICES),
            grown(sum(endpoints) + max(endpoints, default=0) + 1, fewest, most) - 1,
            grown(self.node.expected_flows or 0, limits.FLOWS, limits.MOST_FLOWS),
        )
        need = need.at_least(self.held) if self.held else need
        declared = self.node.capacity
        return Sizes(
            declared.services or need.services, declared.endpoints or need.endpoints, declared.flows or need.flows
        )  # fmt: skip

    @cached_property
    def has_ipv6(self) -> bool:
        """Whether a VIP or an endpoint of these services has an IPv6 address."""
        vips = (service.vips for service in self.services)
        endpoints = ([endpoint.address for endpoint in pool.endpoints] for pool in self.pools.values())
        return any(IPv6Address in map(type, addresses) for addresses in chain(vips, endpoints))


def _places_fragments(service: Service) -> bool:
    """Whether fragments for a service follow the first one of their packet."""
    return service.mode.is_dsr or (service.mode is Mode.NAT and service.protocol is Protocol.UDP)


def exchanged(before: Collection[N], now: Collection[N]) -> list[tuple[N, N]] | None:
    """The objects that are others than before, in pairs; None if there are others in number or by name. It looks at
    no object that stays: there may be ten thousand."""
    if len(before) != len(now):
        return None
    others = list(map(is_not, before, now))
    pairs = list(zip(compress(before, others), compress(now, others), strict=True))
    return pairs if all(old.name == new.name for old, new in pairs) else None


def renewed(fleet: Fleet, before: Fleet, former: NodeView) -> NodeView | None:
    """The view of a balancer that another fleet gave a `former` one; None if more than some pools differ."""
    is_same = len(fleet.nodes) == len(before.nodes) and all(map(is_, fleet.nodes, before.nodes))
    services, pools = exchanged(before.services, fleet.services), exchanged(before.pools, fleet.pools)
    if not is_same or services != [] or pools is None or former.node.role is not Role.BALANCER:
        return None
    if any(old.fallback_pool != new.fallback_pool for old, new in pools):
        return None
    fresh = {new.name: new for _, new in pools}
    own = {**former.pools, **{name: pool for name, pool in fresh.items() if name in former.pools}}
    others = {**former.fallbacks, **{name: pool for name, pool in fresh.items() if name in former.fallbacks}}
    return replace(former, pools=own, fallbacks=others)


def view(fleet: Fleet, node_name: str | None, hostname: str) -> NodeView:
    """The part of the fleet that concerns the node `node_name`.

    Without a name: the node with this host's name, else the only node. Raises UsageError.
    """
    nodes = {node.name: node for node in fleet.nodes}
    if not nodes:
        example = f"{{apiVersion: lbctl/v1, kind: Node, metadata: {{name: {node_name or hostname}}}, {_INTERFACES}}}"
        raise UsageError("the manifests declare no Node", hint=f"add one for this machine, like {example}")
    if node_name is None:
        if hostname in nodes:
            node_name = hostname
        elif len(nodes) == 1:
            node_name = next(iter(nodes))
        else:
            raise UsageError(
                f"the manifests declare {len(nodes)} nodes, and none is named like this host ({hostname})",
                hint=f"choose one: --node {'|'.join(sorted(nodes)[:8])}",
            )
    if node_name not in nodes:
        close = difflib.get_close_matches(node_name, nodes, n=1)
        raise UsageError(
            f"no Node is named {node_name!r}",
            hint=f"did you mean {close[0]!r}?" if close else f"there are: {', '.join(sorted(nodes)[:8])}",
        )
    node = nodes[node_name]
    pools = {pool.name: pool for pool in fleet.pools}
    if node.role is Role.ENDPOINT:
        own = set(node.endpoint_addresses)
        named = {pool.name for pool in fleet.pools if any(endpoint.address in own for endpoint in pool.endpoints)}
        named |= {pool.name for pool in fleet.pools if pool.fallback_pool in named}
        services = tuple(service for service in fleet.services if service.mode.is_dsr and service.pool in named)
    elif node.role is Role.ROUTER:
        carriers = [other for other in fleet.nodes if other.bgp and other.role is Role.BALANCER] if node.bgp else []
        carriers += [hop.node for hop in hops_of(node, fleet)]
        services = tuple(s for s in fleet.services if any(s.runs_on(carrier) for carrier in carriers))
    else:
        # Most services run everywhere.
        services = tuple([s for s in fleet.services if not s.node_selector or s.runs_on(node)])
    own_pools = {service.pool: pools[service.pool] for service in services}
    others = {pool.fallback_pool for pool in own_pools.values() if pool.fallback_pool} - own_pools.keys()
    fallbacks = {name: pools[name] for name in sorted(others)} if others else {}
    return NodeView(node, services, own_pools, fallbacks, peers=peers_of(node, fleet), hops=hops_of(node, fleet))
