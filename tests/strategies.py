# SPDX-License-Identifier: Apache-2.0
"""Fleets of all shapes, for property tests: such as a node can hold, and such as the language can say."""

from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_interface, ip_network

from hypothesis import strategies as st

from reconciler.model import (
    SNAT_PORTS,
    Affinity,
    AgentFormat,
    Algorithm,
    Announce,
    Bgp,
    Capacity,
    CheckSize,
    CheckType,
    Echo,
    Endpoint,
    EndpointState,
    Fleet,
    HealthCheck,
    IcmpRedirects,
    Interface,
    Mode,
    Neighbor,
    Node,
    OnUnhealthy,
    PacketTooBig,
    Pool,
    Protocol,
    Rcode,
    Record,
    Role,
    Service,
    Through,
    TunnelSource,
    Undefined,
    Verify,
    VipBinding,
    VipRoutes,
    Vrrp,
    WhenNoneHealthy,
    XdpMode,
)
from reconciler.support import ALGORITHMS, MODES, PROTOCOLS, UNDEFINED_TRAFFIC

_OF_NAT = (Algorithm.ROUND_ROBIN, Algorithm.LEAST_CONNECTIONS)


def fake_source(directory=None, main=""):
    """A data plane that never changes, so that names of programs don't; it asks for the features of the real one."""
    features = ("ALLOWED_SOURCES DSR_L2 DSR_L3 ECHO FORWARD_ECHO GATEWAY IPV6 LEAST_CONNECTIONS MAGLEV NAT REJECT "
                "ROUND_ROBIN SCTP SOURCE_HASH UDP VLAN")  # fmt: skip
    return "".join(f"HAS({feature})\n" for feature in features.split())


endpoints = st.builds(
    Endpoint,
    address=st.integers(1, 6).map(lambda i: IPv4Address(f"10.2.0.{i}")),
    port=st.sampled_from((None, 8080)),
    weight=st.integers(0, 3),
    state=st.sampled_from(EndpointState),
)
portless = endpoints.map(lambda endpoint: replace(endpoint, port=None))
portless6 = portless.map(lambda e: replace(e, address=IPv6Address(f"2001:db8:2::{int(e.address) & 0xff:x}")))

tunnel_sources = st.builds(
    TunnelSource,
    st.sampled_from([None, "10.200.0.0/24", "10.1.0.1"]).map(lambda text: text and ip_network(text)),
    st.sampled_from([None, "2001:db8:f::/64", "2001:db8::7"]).map(lambda text: text and ip_network(text)),
)
announces = st.none() | st.builds(
    Announce, st.sampled_from((100, 251)), st.sampled_from((100, 500)), st.sampled_from((None, 900)),
    st.sampled_from((10.0, 30.0)),
    st.none() | st.builds(Vrrp, st.sampled_from((51, 52)), st.just((ip_interface("10.2.0.100/24"),)),
                          st.sampled_from((100, 150))),
)  # fmt: skip
_ipv4 = st.integers(1, 99).map(lambda i: IPv4Address(f"10.9.0.{i}"))
bgp = st.builds(
    Bgp, st.integers(1, 4_294_967_294), _ipv4, st.booleans(), st.integers(3, 99).map(float), st.booleans(),
    st.lists(st.builds(Neighbor, _ipv4 | st.just(IPv6Address("2001:db8:9::1")), st.integers(1, 99)), max_size=2).map(
        tuple),
)  # fmt: skip
gateways = st.sampled_from((None, "10.1.0.254", "10.1.0.253")).map(lambda text: text and ip_address(text))

_allowed = st.sampled_from((
    (), ("10.0.0.0/8", "2001:db8::/32"), ("10.0.0.0/8", "192.0.2.7/32", "2001:db8::/32"), ("0.0.0.0/0", "::/0"),
)).map(lambda texts: tuple(map(ip_network, texts)))  # fmt: skip

_published = st.tuples(st.integers(1, 2), st.sampled_from((80, 443)))


def _distinct(items):
    return st.lists(items, max_size=4, unique_by=lambda e: (e.address, e.port)).map(tuple)


@st.composite
def fleets(draw):
    """What compiles for the node lb1: services that share pools and VIPs, some with more VIPs and ports."""
    pools = {
        name: Pool(name, draw(_distinct(members)), ring_size=draw(st.sampled_from((None, 97))))
        for name, members in (
            # Of modes that translate no port, by the family of the endpoints.
            ("red", endpoints), ("blue", endpoints), ("direct", portless), ("direct6", portless6),
            ("mixed", portless | portless6),
        )
    }  # fmt: skip
    pings = {vip: draw(st.sampled_from((None, Echo.REPLY, Echo.DROP))) for vip in (1, 2)}
    services = []
    for i, (vip, port) in enumerate(draw(st.lists(_published, max_size=3, unique=True))):
        mode = draw(st.sampled_from(MODES))
        pool, families = draw(st.sampled_from(_POOLS[mode]))
        target_port = None if mode.is_dsr else draw(st.sampled_from((None, 9090)))
        vips = [vip, 10 + i] if draw(st.booleans()) else [vip]
        stay = target_port is None and all(endpoint.port is None for endpoint in pools[pool].endpoints)
        more_ports = [8000 + i] if stay and draw(st.booleans()) else []
        protocol = draw(st.sampled_from([p for p in PROTOCOLS[mode] if p is not Protocol.ICMP]))
        services.append(Service(
            f"s{vip}-{port}",
            tuple(_vip(last, families[place % len(families)]) for place, last in enumerate(vips)),
            protocol, (port, *more_ports), pool, mode,
            draw(st.sampled_from([a for a in ALGORITHMS if not (mode.is_dsr and a in _OF_NAT)])),
            target_port,
            allowed_sources=draw(_allowed), affinity=None if protocol is Protocol.SCTP else draw(_affinity),
            echo=Echo.ENDPOINT if mode.is_dsr and i == 0 and not pings[vip] else pings[vip],
        ))  # fmt: skip
    back = Interface("back", addresses=(ip_interface("10.2.0.254/24"), ip_interface("2001:db8:2::fe/64")))
    without = _SOURCES[2:] if any(service.mode is Mode.FULLNAT for service in services) else ()
    node = Node(
        "lb1", (Interface("front", draw(st.sampled_from(XdpMode)), gateway=draw(gateways)), back),
        draw(st.sampled_from(UNDEFINED_TRAFFIC)), draw(st.sampled_from(VipBinding)),
        tunnel_source=draw(tunnel_sources), packet_too_big=draw(st.sampled_from(PacketTooBig)),
        announce=draw(announces), snat_addresses=draw(st.sampled_from((without, _SOURCES[1:], _SOURCES))),
    )  # fmt: skip
    return Fleet(tuple(services), tuple(pools.values()), (node,))


_affinity = st.none() | st.sampled_from((Affinity(), Affinity(timeout_s=600.0)))
_SOURCES = tuple(map(ip_address, ("10.2.0.201", "2001:db8:2::c9", "10.2.0.202", "2001:db8:2::ca")))
_POOLS = {
    Mode.NAT: [("red", (4,)), ("blue", (4,))],
    Mode.FULLNAT: [("red", (4,)), ("blue", (4,)), ("direct6", (6,))],
    Mode.DSR_L2: [("direct", (4,)), ("direct6", (6,))],
    Mode.DSR_L3: [("direct", (4,)), ("direct6", (6,)), ("direct6", (4, 6)), ("mixed", (4,))],
}
"""By mode: a pool, and the families that VIPs in front of it may have."""


def _vip(last, version):
    return ip_address(f"20.20.20.{last}" if version == 4 else f"2001:db8:20::{last:x}")


HEALTH_ADDRESSES = ((), (ip_address("10.2.0.1"),), (ip_address("10.2.0.1"), ip_address("2001:db8::1")))
addresses = st.sampled_from(["10.2.0.1", "10.2.0.2", "10.2.0.3", "2001:db8::1", "2001:db8::2"]).map(ip_address)
interface_addresses = st.sampled_from(["10.1.0.1/24", "10.3.0.0/31", "2001:db8::1/64"]).map(ip_interface)
prefixes = st.sampled_from(["10.0.0.0/8", "192.0.2.7/32", "0.0.0.0/0", "2001:db8::/32"]).map(ip_network)
times_s = st.sampled_from([0.01, 0.25, 1.0, 2.0, 90.0, 3600.0])
port_numbers = st.integers(1, 65_535)
limits = st.none() | st.integers(1, 1_000_000)
labels = st.dictionaries(st.sampled_from(["site", "tier", "a/b.c"]), st.sampled_from(["north", "7", "x-y"])).map(
    lambda pairs: tuple(sorted(pairs.items()))
)


def some(items, **options):
    return st.lists(items, unique=True, max_size=3, **options).map(tuple)


PEM = "-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n"


@st.composite
def health_checks(draw):
    """A check with the fields that its type may have."""
    check = draw(st.sampled_from(CheckType))
    own = {}
    if check in (CheckType.HTTP, CheckType.HTTPS):
        own["path"] = draw(st.sampled_from(["/", "/healthz?full=1"]))
        own["host"] = draw(st.sampled_from([None, "www.example.com:8080"]))
        own["status"] = draw(some(st.integers(100, 599), min_size=1))
        own["headers"] = draw(st.sampled_from([(), (("X-Probe", "a b"), ("X-Site", ""))]))
        own["text"] = draw(st.sampled_from([None, "rea\ndy", "☃"]))
    if check in (CheckType.HTTP, CheckType.HTTPS, CheckType.PING):
        own["size"] = draw(st.sampled_from(CheckSize))
    if check is CheckType.HTTPS:
        own["server_name"] = draw(st.sampled_from([None, "www.example.com"]))
        own["verify"] = draw(st.sampled_from(Verify))
        own["ca"] = draw(st.sampled_from([None, PEM]))
    if check is CheckType.DNS:
        own["query"] = draw(st.sampled_from([".", "www.example.com", "_sip._tcp.example.com."]))
        own["record"], own["rcode"] = draw(st.sampled_from(Record)), draw(st.sampled_from(Rcode))
    if check is CheckType.AGENT:
        own["format"] = draw(st.sampled_from(AgentFormat))
        if own["format"] is not AgentFormat.WORDS:
            own["path"], own["value"] = draw(st.sampled_from(["/", "/load"])), draw(st.sampled_from(["a.b", "up"]))
    if check is CheckType.UDP:
        own["send"], own["expect"] = draw(st.tuples(*[st.none() | st.sampled_from(["PING", "'\n☃"])] * 2))
    if check is not CheckType.PING:
        own["port"] = draw(port_numbers if check is CheckType.AGENT else st.none() | port_numbers)
    return HealthCheck(
        check, interval_s=draw(times_s), timeout_s=draw(times_s), rise=draw(st.integers(1, 100)),
        fall=draw(st.integers(1, 100)), through=draw(st.sampled_from(Through)), **own,
    )  # fmt: skip


@st.composite
def any_services(draw):
    protocol = draw(st.sampled_from(Protocol))
    has_ports = protocol is not Protocol.ICMP
    return Service(
        name="any", vips=draw(some(addresses, min_size=1)), protocol=protocol,
        ports=tuple(sorted(draw(some(port_numbers, min_size=1)))) if has_ports else (), pool="any",
        mode=draw(st.sampled_from(Mode)), algorithm=draw(st.sampled_from(Algorithm)),
        target_port=draw(st.none() | port_numbers) if has_ports else None,
        affinity=draw(st.none() | st.builds(Affinity, timeout_s=times_s)), idle_timeout_s=draw(st.none() | times_s),
        allowed_sources=draw(some(prefixes)), node_selector=draw(labels), labels=draw(labels),
        echo=draw(st.none() | st.sampled_from(Echo)) if has_ports else None,
    )  # fmt: skip


@st.composite
def any_nodes(draw):
    """A node with the fields that its role may have."""
    role = draw(st.sampled_from(Role))
    own = {}
    if role is Role.BALANCER:
        own = {
            "undefined_traffic": draw(st.sampled_from(Undefined)),
            "capacity": draw(st.builds(Capacity, limits, limits, limits)),
            "snat_addresses": draw(some(addresses)),
            "snat_ports": draw(st.sampled_from([SNAT_PORTS, range(40_000, 40_001)])),
            "expected_flows": draw(limits),
            "tunnel_source": draw(tunnel_sources),
            "packet_too_big": draw(st.sampled_from(PacketTooBig)),
            "announce": draw(announces.map(lambda told: told and replace(told, vrrp=None))),
            "health_addresses": draw(st.sampled_from(HEALTH_ADDRESSES)),
        }
    if role is not Role.ENDPOINT:
        own["bgp"] = draw(st.none() | bgp)
    if role is Role.ENDPOINT:
        own["address"] = draw(st.none() | addresses)
    if role is Role.ROUTER:
        own["multipath"] = draw(st.none() | st.integers(1, 1024))
        own["vip_routes"] = None if own["bgp"] else draw(st.none() | st.builds(
            VipRoutes, st.integers(8, 32_768), st.integers(1, 999)))  # fmt: skip
    interfaces = st.builds(
        Interface, name=st.sampled_from(["front", "eth0.5"]), xdp=st.sampled_from(XdpMode),
        addresses=some(interface_addresses), mtu_bytes=st.sampled_from([1500, 9000]), gateway=st.none() | addresses,
    )  # fmt: skip
    interfaces |= st.builds(
        lambda face, tag: replace(face, xdp=XdpMode.AUTO, trunk="eth0", tag=tag), interfaces,
        st.none() | st.integers(1, 4094),
    )  # fmt: skip
    return Node(
        name="any", interfaces=draw(some(interfaces)), role=role, vip_binding=draw(st.sampled_from(VipBinding)),
        icmp_redirects=draw(st.sampled_from(IcmpRedirects)), labels=draw(labels), **own,
    )  # fmt: skip


any_pools = st.builds(
    Pool, name=st.just("any"), health_check=health_checks(), labels=labels, ring_size=st.none() | st.just(65_537),
    min_healthy=st.integers(1, 65_535), slow_start_s=st.none() | times_s, on_unhealthy=st.sampled_from(OnUnhealthy),
    announce_min=st.none() | st.integers(0, 9),
    endpoints=some(st.builds(Endpoint, addresses, st.none() | port_numbers, st.integers(0, 1000),
                             st.sampled_from(EndpointState))),
)  # fmt: skip
any_pools |= any_pools.map(lambda pool: replace(pool, when_none_healthy=WhenNoneHealthy.DROP))
any_pools |= any_pools.map(
    lambda pool: replace(pool, when_none_healthy=WhenNoneHealthy.FALLBACK, fallback_pool="sorry")
)
"""Of `any_…` each is one document: its schema accepts it, while rules may not."""
