# SPDX-License-Identifier: Apache-2.0
"""The objects that operators write, as frozen values: services, pools, nodes. No I/O, no kernel, no YAML.

Times are in seconds (`_s`), sizes in bytes (`_bytes`). This version can't put everything into the kernel yet: see
`support`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from ipaddress import IPv4Address, IPv4Interface, IPv4Network, IPv6Address, IPv6Interface, IPv6Network, ip_network
from socket import inet_ntoa

from reconciler.resource import Span

Address = IPv4Address | IPv6Address
InterfaceAddress = IPv4Interface | IPv6Interface
Prefix = IPv4Network | IPv6Network
Labels = tuple[tuple[str, str], ...]
"""Pairs of a label and its value, sorted."""
Places = Mapping[str, Span]
"""Key of a `spec`, as manifests write it (e.g. `targetPort`) → the place where it was written."""

NOWHERE = Span("", 0)
SNAT_PORTS = range(1024, 65_536)
"""The ports of a source address, unless the manifests name them."""


def text_of(address: Address) -> str:
    """As `str`, which takes several times as long for IPv4."""
    return inet_ntoa(int(address).to_bytes(4)) if type(address) is IPv4Address else str(address)


def place_of(address: Address, port: int) -> str:
    """An address with a port, e.g. `10.2.0.1:80`, `[2001:db8::1]:80`; without one if the port is 0."""
    text = text_of(address)
    if not port:
        return text
    return f"[{text}]:{port}" if ":" in text else f"{text}:{port}"


class Mode(StrEnum):
    """How packets reach an endpoint."""

    NAT = "nat"              # destination rewritten; replies come back through the balancer
    FULLNAT = "fullnat"      # source rewritten as well, to an address of the balancer
    DSR_L2 = "dsr-l2"        # sent to the endpoint's MAC address; replies go straight to the client
    DSR_L3 = "dsr-l3"        # sent in an IP tunnel; replies go straight to the client

    @property
    def is_dsr(self) -> bool:
        """Direct server return: replies don't pass the balancer, and packets keep the VIP and the port."""
        return self in (Mode.DSR_L2, Mode.DSR_L3)


class Protocol(StrEnum):
    TCP = "tcp"
    UDP = "udp"
    SCTP = "sctp"
    ICMP = "icmp"


class Algorithm(StrEnum):
    ROUND_ROBIN = "round-robin"
    SOURCE_HASH = "source-hash"
    MAGLEV = "maglev"
    LEAST_CONNECTIONS = "least-connections"


class EndpointState(StrEnum):
    ACTIVE = "active"
    DRAINING = "draining"    # no new connections, the old ones go on
    DISABLED = "disabled"    # no traffic at all, open connections end


class CheckType(StrEnum):
    NONE = "none"
    PING = "ping"
    TCP = "tcp"
    UDP = "udp"
    HTTP = "http"
    HTTPS = "https"
    SCTP = "sctp"
    DNS = "dns"
    AGENT = "agent"          # a program on the endpoint that also says how much it can take


class Verify(StrEnum):
    """Whether a check of type https asks for a valid certificate."""

    NONE = "none"
    CA = "ca"


class Record(StrEnum):
    """The type of record that a check of type dns asks for."""

    A = "A"
    AAAA = "AAAA"
    CNAME = "CNAME"
    MX = "MX"
    NS = "NS"
    PTR = "PTR"
    SOA = "SOA"
    SRV = "SRV"
    TXT = "TXT"


class Rcode(StrEnum):
    """The response code that a check of type dns expects."""

    NOERROR = "NOERROR"
    NXDOMAIN = "NXDOMAIN"
    REFUSED = "REFUSED"
    SERVFAIL = "SERVFAIL"


class AgentFormat(StrEnum):
    """What an agent answers."""

    WORDS = "words"            # those of HAProxy's agent-check, on one line
    JSON = "json"              # a page of HTTP with a number in it
    PROMETHEUS = "prometheus"  # the same, in Prometheus' text format


class Through(StrEnum):
    """The way that a health check takes."""

    ENDPOINT = "endpoint"    # to the endpoint's own address
    VIP = "vip"              # to the VIP on the endpoint, the way that requests take


class CheckSize(StrEnum):
    """How long the packets of a health check are."""

    SMALL = "small"    # as long as the question is
    FULL = "full"      # as long as the way is known to take


class WhenNoneHealthy(StrEnum):
    """Who gets new connections when too few endpoints of a pool are healthy."""

    ALL = "all"              # all endpoints, as if none were checked
    DROP = "drop"            # nobody
    FALLBACK = "fallback"    # those of another pool


class OnUnhealthy(StrEnum):
    """What happens to the open connections of an endpoint that became unhealthy."""

    KEEP = "keep"
    RESET = "reset"


class AffinityBy(StrEnum):
    CLIENT = "client"


class Role(StrEnum):
    BALANCER = "balancer"
    ENDPOINT = "endpoint"
    ROUTER = "router"


class XdpMode(StrEnum):
    """`auto` is native, but generic on a veth that would lose the packets that native XDP sends (see
    `kernel/veth`)."""

    AUTO = "auto"
    NATIVE = "native"
    GENERIC = "generic"


class Undefined(StrEnum):
    """The treatment of packets to a VIP that belong to none of its services."""

    DROP = "drop"
    PASS = "pass"
    REJECT = "reject"


class PacketTooBig(StrEnum):
    """The treatment of a packet of direct server return that is too big for the way to its endpoint."""

    ANSWER = "answer"        # the sender is told how big it may be
    DROP = "drop"


class Echo(StrEnum):
    """The treatment of pings of a VIP."""

    REPLY = "reply"
    ENDPOINT = "endpoint"
    DROP = "drop"


class VipBinding(StrEnum):
    """How a VIP is made the node's own: a `local` route, or an address on the loopback."""

    ROUTE = "route"
    ADDRESS = "address"


class IcmpRedirects(StrEnum):
    """Whether the kernel may tell hosts of a shared segment to go past the balancer."""

    OFF = "off"
    ON = "on"


class _WithRow:
    """Room for what is made from an object, which is no field of it, and not compared."""

    __slots__ = ("_row",)
    _row: object

    @property
    def row(self) -> object:
        """What was kept last; None if nothing was."""
        return getattr(self, "_row", None)

    def keep(self, row: object) -> None:
        object.__setattr__(self, "_row", row)


@dataclass(frozen=True, slots=True)
class Endpoint(_WithRow):
    """A server behind a VIP. `port` None means: the port that the client asked for."""

    address: Address
    port: int | None = None
    weight: int = 1
    state: EndpointState = EndpointState.ACTIVE
    span: Span = field(default=NOWHERE, compare=False)


@dataclass(frozen=True, slots=True)
class DeadEndpoint(Endpoint):
    """An endpoint that checks found dead. Connections that are open on it may still live, since a check may be wrong,
    but nobody waits for a datagram from it. `sends_on`: NAT gives datagrams of open flows, and INITs, to others."""

    sends_on: bool = False


@dataclass(frozen=True, slots=True)
class HealthCheck:
    """A check of whether an endpoint answers. `port` None means: the port that connections go to.

    `path`, `host`, `status` (the codes that count as healthy), `headers` and `text` (which the answer must have in
    it) are for http and https, `size` for these and ping, `server_name` (None means: `host`), `verify` and `ca` (PEM;
    None means: those of the system) for https, `send` and `expect` for udp, `query` (a name), `record` and `rcode` for
    dns. `format` is for agent, and so are `path` and `value` (the name of a number) unless it speaks in words. `rise`
    and `fall` are how many answers in a row make an endpoint healthy, or unhealthy.
    """

    type: CheckType = CheckType.NONE
    port: int | None = None
    interval_s: float = 2.0
    timeout_s: float = 1.0
    rise: int = 2
    fall: int = 3
    through: Through = Through.ENDPOINT
    size: CheckSize = CheckSize.SMALL
    path: str = "/"
    host: str | None = None
    status: tuple[int, ...] = (200,)
    headers: Labels = ()
    text: str | None = None
    server_name: str | None = None
    verify: Verify = Verify.NONE
    ca: str | None = None
    send: str | None = None
    expect: str | None = None
    query: str | None = None
    record: Record = Record.A
    rcode: Rcode = Rcode.NOERROR
    format: AgentFormat = AgentFormat.WORDS
    value: str | None = None


@dataclass(frozen=True, slots=True)
class Pool:
    """`ring_size` is how many slots hash rings of this pool have; None means: chosen by the number of members. If
    fewer than `min_healthy` endpoints are healthy, `when_none_healthy` says who serves. An endpoint that is healthy
    again gets its share in steps, within `slow_start_s`. With fewer healthy ones than `announce_min`, its services'
    VIPs are not announced; None: see `least_announced`."""

    name: str
    endpoints: tuple[Endpoint, ...]
    health_check: HealthCheck = HealthCheck()
    ring_size: int | None = None
    min_healthy: int = 1
    when_none_healthy: WhenNoneHealthy = WhenNoneHealthy.ALL
    fallback_pool: str | None = None
    slow_start_s: float | None = None
    on_unhealthy: OnUnhealthy = OnUnhealthy.KEEP
    announce_min: int | None = None
    labels: Labels = ()
    span: Span = field(default=NOWHERE, compare=False)
    places: Places = field(default_factory=dict, compare=False, repr=False)

    @property
    def least_announced(self) -> int:
        """With how many healthy endpoints VIPs are announced. A pool that drops connections rather than send them to
        unhealthy ones needs one; any other serves with none, too."""
        if self.announce_min is not None:
            return self.announce_min
        return self.min_healthy if self.when_none_healthy is WhenNoneHealthy.DROP else 0


@dataclass(frozen=True, slots=True)
class Affinity:
    """Connections of one client go to the same endpoint until the client has made none for `timeout_s`. Where no
    connection is remembered, no client is: there a hash of its address alone gives it the same endpoint each time."""

    by: AffinityBy = AffinityBy.CLIENT
    timeout_s: float = 10_800.0


@dataclass(frozen=True, slots=True)
class Service:
    """`ports` are sorted, none for icmp. `allowed_sources` () means: everybody. `idle_timeout_s` None means: the
    data plane's default. `echo` None means: as other services of the VIP say, else that pings are answered. Without
    `node_selector` all balancers carry the service."""

    name: str
    vips: tuple[Address, ...]
    protocol: Protocol
    ports: tuple[int, ...]
    pool: str
    mode: Mode = Mode.NAT
    algorithm: Algorithm = Algorithm.ROUND_ROBIN
    target_port: int | None = None
    affinity: Affinity | None = None
    idle_timeout_s: float | None = None
    stateless: bool = False
    allowed_sources: tuple[Prefix, ...] = ()
    echo: Echo | None = None
    node_selector: Labels = ()
    labels: Labels = ()
    span: Span = field(default=NOWHERE, compare=False)
    places: Places = field(default_factory=dict, compare=False, repr=False)

    @property
    def scheduling(self) -> Algorithm:
        """The algorithm by which endpoints are chosen. With affinity maglev hashes the address of the client alone, so
        that all balancers agree about a client: that is source-hash."""
        is_hashed = self.affinity is not None and self.algorithm is Algorithm.MAGLEV
        return Algorithm.SOURCE_HASH if is_hashed else self.algorithm

    @property
    def remembers_clients(self) -> bool:
        """Whether the node remembers which endpoint a client had: affinity where connections are remembered."""
        return self.affinity is not None and not self.mode.is_dsr and not self.stateless

    @property
    def takes_pings(self) -> bool:
        """Whether pings of the VIPs go to its endpoints."""
        return self.protocol is Protocol.ICMP or self.echo is Echo.ENDPOINT

    def runs_on(self, node: Node) -> bool:
        """Whether a node balances this service: a balancer with all labels that the service selects."""
        return node.role is Role.BALANCER and set(self.node_selector) <= set(node.labels)


@dataclass(frozen=True, slots=True)
class Interface:
    """An interface that takes part in balancing; `addresses` are declared, not configured. `gateway` is the next
    hop of packets that come in here and go to no network of the node. `trunk` is the interface that this one is a VLAN
    of; with `tag`, the tag of this VLAN, it is made where it is missing, with its addresses."""

    name: str
    xdp: XdpMode = XdpMode.AUTO
    addresses: tuple[InterfaceAddress, ...] = ()
    mtu_bytes: int = 1500
    gateway: Address | None = None
    trunk: str | None = None
    tag: int | None = None
    span: Span = field(default=NOWHERE, compare=False)


@dataclass(frozen=True, slots=True)
class Capacity:
    """The most that a node may have to hold; None means: as much as the data plane can."""

    services: int | None = None
    endpoints: int | None = None
    flows: int | None = None


@dataclass(frozen=True, slots=True)
class TunnelSource:
    """The source of tunnels, by the family of the endpoint; None means: not declared. From a network of more than one
    address, a hash of the flow chooses the address."""

    ipv4: IPv4Network | None = None
    ipv6: IPv6Network | None = None


LEAVING_METRIC = 4_000_000
"""What tells a routing daemon that a VIP leaves: greater than any metric of manifests. Routes of the kernel have no
other mark that daemons read."""


@dataclass(frozen=True, slots=True)
class Vrrp:
    """Addresses that balancers with the same `id`, in the same networks, share: the one with the greatest `priority`
    of those that work has them all."""

    id: int
    addresses: tuple[InterfaceAddress, ...]
    priority: int = 100


@dataclass(frozen=True, slots=True)
class Announce:
    """How a balancer tells its routing daemon which VIPs are here: by a route to each in a table of its own. Routes
    with a smaller `metric` are better ones. While something speaks against a VIP, its route has the
    `degraded_metric`; None: it has no route. One that leaves is announced for `grace_s` with `LEAVING_METRIC`.
    `vrrp`: where there is no routing daemon, routers send to a shared address."""

    table: int = 251
    metric: int = 100
    degraded_metric: int | None = None
    grace_s: float = 10.0
    vrrp: Vrrp | None = None


@dataclass(frozen=True, slots=True)
class Neighbor:
    """A BGP neighbour that is no Node: it hears of VIPs, and nothing is taken from it."""

    address: Address
    asn: int


@dataclass(frozen=True, slots=True)
class Bgp:
    """How the routing daemon of a balancer or router speaks BGP. `router_id` None: the first IPv4 address of the
    node's interfaces. Balancers and routers with a network in common are neighbours; `neighbors` are others. Without
    `bfd`, a neighbour that is silent for `hold_time_s` counts as gone. `multiprotocol`: sessions over IPv4 are about
    IPv6 VIPs, too."""

    asn: int
    router_id: IPv4Address | None = None
    bfd: bool = True
    hold_time_s: float = 9.0
    multiprotocol: bool = False
    neighbors: tuple[Neighbor, ...] = ()


@dataclass(frozen=True, slots=True)
class VipRoutes:
    """How a router spreads VIPs over balancers by routes of its own: by so many `buckets`. A balancer that comes gets
    buckets that no packet has used for `idle_s`."""

    buckets: int = 1024
    idle_s: int = 120


@dataclass(frozen=True, slots=True)
class Node:
    """A machine. `address` is the one by which pools name an endpoint; None means: the addresses of its interfaces.

    `snat_addresses` are the balancer's own source addresses for fullnat, each with the ports `snat_ports`. They must
    suffice for `expected_flows` connections at once; None means: not declared. `multipath` is the number of equal
    paths that a router may use; None means: one. See `tunnel_from` for `tunnel_source`. `announce` None means: no
    routing daemon is told; `bgp` None: none is configured; `vip_routes` None: a router has no routes of lbctl's.
    `health_addresses` are those that checks through VIPs come from, one of a family at most.
    """

    name: str
    interfaces: tuple[Interface, ...]
    undefined_traffic: Undefined = Undefined.DROP
    vip_binding: VipBinding = VipBinding.ROUTE
    role: Role = Role.BALANCER
    address: Address | None = None
    capacity: Capacity = Capacity()
    snat_addresses: tuple[Address, ...] = ()
    snat_ports: range = SNAT_PORTS
    expected_flows: int | None = None
    icmp_redirects: IcmpRedirects = IcmpRedirects.OFF
    multipath: int | None = None
    tunnel_source: TunnelSource = TunnelSource()
    packet_too_big: PacketTooBig = PacketTooBig.ANSWER
    announce: Announce | None = None
    bgp: Bgp | None = None
    vip_routes: VipRoutes | None = None
    health_addresses: tuple[Address, ...] = ()
    labels: Labels = ()
    span: Span = field(default=NOWHERE, compare=False)
    places: Places = field(default_factory=dict, compare=False, repr=False)

    @property
    def attached(self) -> tuple[Interface, ...]:
        """The interfaces that have a network: all except mere trunks of others."""
        trunks = {interface.trunk for interface in self.interfaces}
        return tuple(face for face in self.interfaces if face.addresses or face.name not in trunks)

    @property
    def endpoint_addresses(self) -> tuple[Address, ...]:
        """The addresses by which pools may name the node, if it is an endpoint."""
        if self.address:
            return (self.address,)
        return tuple(address.ip for interface in self.interfaces for address in interface.addresses)

    def tunnel_from(self, version: int) -> Prefix | None:
        """The source of tunnels to endpoints of a family (4 or 6): the declared one, else the first address of that
        family that an interface has, except for addresses of a single link. None if there is neither."""
        declared = self.tunnel_source.ipv4 if version == 4 else self.tunnel_source.ipv6
        own = (a for interface in self.interfaces for a in interface.addresses if a.version == version)
        return declared or next((ip_network(a.ip) for a in own if not a.is_link_local), None)


@dataclass(frozen=True, slots=True)
class Fleet:
    """A whole source directory, checked: every reference resolves, every rule holds."""

    services: tuple[Service, ...] = ()
    pools: tuple[Pool, ...] = ()
    nodes: tuple[Node, ...] = ()
    digest: str = ""
    """Changes if and only if the content of the manifests changes."""
