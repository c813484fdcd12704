# SPDX-License-Identifier: Apache-2.0
"""Turn the live state of a node into manifests that ask for it: applied, they change nothing.

Some facts are not in the kernel and are lost: the names of services, weights beyond their proportions, the pool of an
endpoint that takes no connections, and whether it takes none for its weight or for its state.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from ipaddress import ip_address, ip_interface
from itertools import groupby
from typing import TypeVar

from reconciler import progress
from reconciler.importers import manifests, values
from reconciler.importers.assemble import NODE_MISSING, default_name
from reconciler.importers.draft import Endpoint, Imported, Manifest, Notices, Service, bare
from reconciler.importers.live_weights import build_first_tries, ring_size, weights_of
from reconciler.importers.names import Names, label
from reconciler.kernel.objects import MAIN_TABLE
from reconciler.kernel.port import Kernel
from reconciler.kinds.announcement import Announcement
from reconciler.kinds.attachment import Attachment
from reconciler.kinds.endpoint_row import EndpointRow
from reconciler.kinds.gateway import Gateway
from reconciler.kinds.loopback import LoopbackVip
from reconciler.kinds.neighbour import Neighbour
from reconciler.kinds.ring import Ring, pool_of
from reconciler.kinds.service_row import ServiceRow
from reconciler.kinds.settings import NOTHING, Settings, is_source
from reconciler.kinds.snat import Snat
from reconciler.kinds.sources import SourceList
from reconciler.kinds.sysctl import Sysctl
from reconciler.kinds.vip import VipRow
from reconciler.kinds.vlan import Vlan
from reconciler.kinds.vlan_link import VlanLink
from reconciler.live import read_live, with_connections
from reconciler.model import SNAT_PORTS, Address, Algorithm, Echo, Mode, Protocol, VipBinding
from reconciler.resource import Live, Resource

_TRIED_AT_ONCE = 256
"""Pools whose rings are built together; more would not be kept until they are looked at."""
_Found = TypeVar("_Found", bound=Resource)


def read_for_import(kernel: Kernel) -> Live:
    """The resources that a node holds, including kernel settings, and its connections."""
    interfaces = [found.interface for found in _of(read_live(kernel, kinds=(Attachment.kind,)), Attachment)]
    redirects = [Sysctl(_redirects_of(name), "0") for name in ("all", *interfaces)]
    return with_connections(read_live(kernel, {setting.key: setting for setting in redirects}), kernel)


def import_live(live: Live, node_name: str) -> Imported:
    """Services, pools and the node of a reading. `node_name` is the name of the machine."""
    notices = Notices()
    rings = {ring.name: ring for ring in _of(live, Ring) if _is_ring(ring, notices)}
    sources = {found.id: found.networks for found in _of(live, SourceList) if not found.flaw}
    rows = [row for row in _of(live, ServiceRow) if _is_whole(row, rings, sources, notices)]
    used = [rings[name] for name in sorted({row.ring for row in rows})]
    for name in sorted(rings.keys() - {ring.name for ring in used}):
        notices.add(0, f"no service uses ring {bare(name)}: it is left out")
    sizes = {name: ring_size(list(group)) for name, group in groupby(used, key=lambda ring: pool_of(ring.name))}
    pools = _members(used, {row.id: row for row in _of(live, EndpointRow)}, notices)
    _add_idle(pools, rows, live, notices)
    documents = (
        *_node(live, node_name, rows, notices),
        *(manifests.pool(name, pools[name].values(), ring_size=sizes[name]) for name in pools),
        *_services(rows, {row.address: row.echo for row in _of(live, VipRow)}, sources, notices),
    )
    return Imported(documents, tuple(sorted(set(notices))))


def _of(live: Live, kind: type[_Found]) -> list[_Found]:
    return [found for _, found in sorted(live.resources.items()) if isinstance(found, kind)]


def _is_ring(ring: Ring, notices: Notices) -> bool:
    """Whether lbctl could have written this ring; a snapshot may hold anything."""
    if not ring.flaw:
        return True
    notices.add(0, f"ring {bare(ring.name)} is damaged ({bare(ring.flaw)}): it is left out")
    return False


def _is_whole(
    row: ServiceRow, rings: Mapping[str, Ring], sources: Mapping[str, Sequence[str]], notices: Notices
) -> bool:  # fmt: skip
    """Whether a manifest could ask for this row; for a damaged one it couldn't."""
    pool, _, algorithm = row.ring.rpartition("/")
    means_something = row.protocol in list(Protocol) and row.mode in list(Mode) and not row.damage
    means_something = means_something and (not row.sources or row.sources in sources)
    if row.ring in rings and pool and algorithm == row.algorithm in list(Algorithm) and means_something:
        return True
    said = ", ".join(filter(None, (row.mode, row.algorithm, row.ring, row.sources, row.damage)))
    notices.add(0, f"{row.key} is damaged ({bare(said)}): it is left out")
    return False


def _members(
    rings: Sequence[Ring], rows: Mapping[str, EndpointRow], notices: Notices
) -> dict[str, dict[str, Endpoint]]:
    """Pool → id → endpoint, of the endpoints that take connections."""
    pools: dict[str, dict[str, Endpoint]] = {}
    grouped = [(name, list(group)) for name, group in groupby(rings, key=lambda ring: pool_of(ring.name))]
    for number, (name, of_pool) in enumerate(progress.each("finding weights", grouped, "pools")):
        if number % _TRIED_AT_ONCE == 0:
            build_first_tries((some for _, some in grouped[number : number + _TRIED_AT_ONCE]), rows)
        for member in sorted({member for ring in of_pool for member in ring.members} - rows.keys()):
            notices.add(0, f"pool {bare(name)} uses {bare(member)}: it is left out")
        weights, exact = weights_of(of_pool, rows)
        if not exact:
            notices.add(0, f"no weights give the shares that pool {name} has now: a plan will show how they change")
        pools[name] = {member: _endpoint(rows[member], weights[member]) for member in weights}
    return pools


def _endpoint(row: EndpointRow, weight: int = 1, state: str = "active") -> Endpoint:
    return Endpoint(row.address, row.port or None, weight, state)


def _add_idle(
    pools: dict[str, dict[str, Endpoint]], services: Sequence[ServiceRow], live: Live, notices: Notices
) -> None:
    """Add the endpoints that take no new connections, to the pool of their open connections, else to the likeliest."""
    active = {member for pool in pools.values() for member in pool}
    pool_of_service = {row.id: pool_of(row.ring) for row in services}
    open_in: dict[str, Counter[str]] = {}
    for (service, endpoint), count in (live.connections or {}).items():
        if service in pool_of_service:
            open_in.setdefault(endpoint, Counter())[pool_of_service[service]] += count
    found = [row for row in _of(live, EndpointRow) if row.id not in active]
    likely = {name: list(pool.values()) for name, pool in pools.items()}
    users: dict[str, list[ServiceRow]] = {}
    for user in services:
        users.setdefault(pool_of(user.ring), []).append(user)
    for row in found:
        fitting = [name for name in pools if all(_serves(row, user) for user in users.get(name, ()))]
        state = "disabled" if row.disabled else "draining"
        if row.id in open_in:
            name = min(open_in[row.id].items(), key=lambda item: (-item[1], item[0]))[0]
        elif not fitting:
            notices.add(0, f"no service uses {row.key}: it is left out")
            continue
        else:
            name = min(fitting, key=lambda name: _distance(row, likely[name]))
            if len(fitting) > 1:
                notices.add(0, f"{row.key} is {state}, and nothing says in which pool: {name} is written")
        pools[name][row.id] = _endpoint(row, state=state)


def _serves(row: EndpointRow, service: ServiceRow) -> bool:
    """Whether an endpoint can be behind a service, by the rules about ports and families of addresses."""
    tunnelled = service.mode == Mode.DSR_L3 and row.address.version == 6
    translated = service.mode in (Mode.NAT, Mode.FULLNAT)
    return (tunnelled or row.address.version == service.vip.version) and (translated or not row.port)


def _distance(row: EndpointRow, endpoints: Sequence[Endpoint]) -> tuple[bool, int]:
    """How far an endpoint is from those of a pool: by its port first, then by the distance of its address."""
    gaps = (
        ((e.port or 0) != row.port, abs(int(e.address) - int(row.address)))
        for e in endpoints if e.address.version == row.address.version
    )  # fmt: skip
    return min(gaps, default=(True, 1 << 128))


def _services(
    rows: Sequence[ServiceRow], echo: Mapping[Address, str], sources: Mapping[str, Sequence[str]], notices: Notices
) -> Iterator[Manifest]:  # fmt: skip
    """One service for all ports of a VIP with the same treatment. Pings that endpoints answer are a service of their
    own; any other `echo` of a VIP is written in the first of its services."""

    def alike(row: ServiceRow) -> tuple[int | str, ...]:
        # A service with a target port has one port only.
        own_port = row.port if row.target_port else 0
        where = row.vip.version, int(row.vip), row.protocol
        times = row.affinity_s, row.idle_timeout_s, row.is_stateless
        return *where, row.ring, row.mode, row.algorithm, row.target_port, own_port, row.sources, *times

    names = Names()
    told: set[Address] = set()
    for _, group in groupby(sorted(rows, key=lambda row: (alike(row), row.port)), key=alike):
        found = list(group)
        first = found[0]
        ports = tuple(_ranges([row.port for row in found if row.port]))
        draft = Service(0, (first.vip,), first.protocol, ports, first.mode, first.algorithm)
        yield manifests.service(
            names.take(default_name(draft)), draft.vips, draft.protocol, ports, draft.mode, draft.algorithm,
            pool_of(first.ring), targetPort=first.target_port or None, stateless=True if first.is_stateless else None,
            idleTimeout=_idle_timeout(first, notices),
            affinity={"by": "client", "timeout": values.duration(first.affinity_s)} if first.affinity_s else None,
            allowedSources=list(sources[first.sources]) if first.sources else None,
            echo=None if first.vip in told or echo.get(first.vip) != Echo.DROP else Echo.DROP.value,
        )  # fmt: skip
        told.add(first.vip)


def _idle_timeout(row: ServiceRow, notices: Notices) -> str | None:
    """What manifests say; None if its connections are forgotten as its protocol has it."""
    if not row.idle_timeout_s:
        return None
    return values.idle_timeout(row.idle_timeout_s, "idle timeout", (0, row.key.id), notices)


def _ranges(ports: Sequence[int]) -> Iterator[range]:
    """Sorted numbers as ranges without gaps."""
    start = 0
    for i, port in enumerate(ports):
        if i + 1 == len(ports) or ports[i + 1] != port + 1:
            yield range(ports[start], port + 1)
            start = i + 1


def _node(live: Live, name: str, services: Sequence[ServiceRow], notices: Notices) -> Iterator[Manifest]:
    attachments = _of(live, Attachment)
    if not attachments:
        notices.add(0, NODE_MISSING)
        return
    translating = sorted(_of(live, Snat), key=lambda snat: snat.version)
    sources = {ip_address(source): None for snat in translating for source in snat.sources}
    rows = [row for row in _of(live, VipRow) if row.address not in sources]
    bindings = [row for row in _of(live, LoopbackVip) if row.address not in sources]
    unused = ({row.address for row in rows} | {row.address for row in bindings}) - {row.vip for row in services}
    for address in sorted(unused, key=lambda address: (address.version, int(address))):
        notices.add(0, f"no service is at VIP {address}: it is left out")
    gateways = {(found.interface, found.address) for found in _of(live, Gateway)}
    kept = {(found.interface, found.address) for found in _of(live, Neighbour)} - gateways
    for interface in sorted({interface for interface, _ in kept}):
        notices.add(0, f"neighbours on {interface} are kept fresh only where its `addresses` are declared: add them")
    settings = {found.name: found.value for found in _of(live, Sysctl)}
    sends_redirects = any(
        settings.get(_redirects_of(name), "0") != "0" for name in ("all", *(found.interface for found in attachments))
    )
    yield manifests.node(
        label(name) or "balancer",
        [*_interfaces(live, attachments)],
        undefinedTraffic=_common("undefined traffic", [row.undefined_traffic for row in rows], notices),
        vipBinding=_common("binding", [row.form for row in bindings if row.form in list(VipBinding)], notices),
        icmpRedirects="on" if services and sends_redirects else None,
        announce=_announce(live, notices),
        **_tunnels(live, services, notices),
        snatAddresses=list(map(str, sources)) or None,
        snatPorts=next(filter(None, map(_snat_ports, translating)), None),
    )


def _snat_ports(snat: Snat) -> str | None:
    ports = range(snat.first_port, snat.first_port + snat.ports)
    return None if not snat.sources or ports == SNAT_PORTS else f"{ports[0]}-{ports[-1]}"


def _tunnels(live: Live, services: Sequence[ServiceRow], notices: Notices) -> Manifest:
    """The node's settings of tunnels and of packets that are too big; none if nothing is served, or if they are the
    defaults."""
    held = next(iter(_of(live, Settings)), None)
    if held is None or not services:
        return {}
    sources = {}
    for key, source in (("ipv4", held.tunnel_source), ("ipv6", held.tunnel_source6)):
        if is_source(source):
            sources[key] = source
        elif source != NOTHING:
            notices.add(0, f"tunnels come from {source}, which no manifest can say: it is left out")
    return {
        "tunnelSource": sources or None,
        "packetTooBig": "drop" if held.packet_too_big == "drop" else None,
    }


def _announce(live: Live, notices: Notices) -> Manifest | None:
    """How VIPs are announced; None if none is."""
    rows = _of(live, Announcement)
    if not rows:
        return None
    table = _common("table of announcements", [str(row.table) for row in rows], notices)
    metric = _common("metric of announcements", [str(row.metric) for row in rows], notices)
    if table == str(MAIN_TABLE):
        notices.add(0, "routes to VIPs are in the table main, where FRR looks for them: declare its `bgp`")
    return {"table": int(table or 0) if table != str(MAIN_TABLE) else None, "metric": int(metric or 0)}


def _interfaces(live: Live, attachments: Sequence[Attachment]) -> Iterator[Manifest]:
    made = {found.interface: _made(found) for found in _of(live, VlanLink)}
    gateways = {found.interface: {"gateway": str(found.address)} for found in _of(live, Gateway)}
    for attachment in attachments:
        name = attachment.interface
        yield {"name": name, "xdp": attachment.mode} | gateways.get(name, {})
        for vlan in _of(live, Vlan):
            if vlan.trunk == name:
                own = made.get(vlan.interface, {})
                yield {"name": vlan.interface, "trunk": name} | own | gateways.get(vlan.interface, {})


def _made(link: VlanLink) -> Manifest:
    """What manifests say of an interface that lbctl made; link-local addresses the kernel gives by itself."""
    addresses = [address for address in link.addresses if not ip_interface(address).is_link_local]
    return {"tag": link.tag, "mtu": link.mtu_bytes, "addresses": addresses}


def _redirects_of(interface: str) -> str:
    return f"net/ipv4/conf/{interface}/send_redirects"


def _common(what: str, values: Sequence[str], notices: Notices) -> str | None:
    """The value that most VIPs have."""
    counts = Counter(sorted(values)).most_common()
    if len(counts) > 1:
        notices.add(0, f"VIPs differ in their {what}, and a node has one: {counts[0][0]} is written")
    return counts[0][0] if counts else None
