# SPDX-License-Identifier: Apache-2.0
"""The parts of the manifest language that this version can't put into the kernel yet.

The language is complete and `validate` knows all of it. Manifests are checked here before they are compiled for a
node, so no written setting is silently ignored.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from reconciler.errors import UnsupportedError
from reconciler.model import (
    Address,
    Algorithm,
    CheckType,
    Mode,
    Node,
    Pool,
    Protocol,
    Role,
    Service,
    Through,
    Undefined,
    place_of,
)
from reconciler.resource import Span
from reconciler.safe import SHOWN
from reconciler.view import NodeView, Use

ROLES = tuple(Role)
MODES = (Mode.NAT, Mode.FULLNAT, Mode.DSR_L2, Mode.DSR_L3)
PROTOCOLS = {
    Mode.NAT: (Protocol.TCP, Protocol.UDP, Protocol.SCTP),
    Mode.FULLNAT: (Protocol.TCP, Protocol.UDP),
    Mode.DSR_L2: (Protocol.TCP, Protocol.UDP, Protocol.SCTP, Protocol.ICMP),
    Mode.DSR_L3: (Protocol.TCP, Protocol.UDP, Protocol.SCTP, Protocol.ICMP),
}
LONGEST_IDLE_S = 4 * 3600
LONGEST_AFFINITY_S = 36 * 3600
MOST_SOURCES = 8
"""Source addresses of fullnat."""
ALGORITHMS = tuple(Algorithm)
UNDEFINED_TRAFFIC = tuple(Undefined)

_NOT_YET = "`validate` knows the whole language; `plan`, `apply` and `run` don't yet"


@dataclass(frozen=True, slots=True, order=True)
class Unsupported:
    """A setting that is not supported yet, and its place in the manifests."""

    span: Span
    what: str
    hint: str = ""

    def __str__(self) -> str:
        return f"{self.span}: {self.what}"


def unsupported(view: NodeView) -> list[Unsupported]:
    """All settings for this node that this version doesn't support, in the order of files and lines."""
    found = list(_of_node(view.node))
    if view.node.role is Role.ENDPOINT:
        found += _of_endpoint(view)
    elif view.node.role is Role.BALANCER:
        found += (item for service in view.services for item in of_service(service))
        found += (item for pool in view.pools.values() for item in of_check(pool, view.node))
        found += of_fallbacks(view)
        found += of_sources(view, view.uses)
    return sorted(set(found))


def of_node(view: NodeView) -> list[Unsupported]:
    """The settings of the node as a whole that are not supported."""
    return [*_of_node(view.node), *(_of_endpoint(view) if view.node.role is Role.ENDPOINT else ())]


def of_fallbacks(view: NodeView) -> list[Unsupported]:
    """The settings of pools that only others fall back to. Their endpoints are part of those pools."""
    return [item for pool in view.fallbacks.values() for item in of_check(pool, view.node)]


def of_sources(view: NodeView, uses: Mapping[str, Use]) -> list[Unsupported]:
    """Services of nat without memory whose replies can't be told from those of another service by their source.
    `uses` are those of the view."""
    if not any(use.stateless for use in uses.values()):
        return []
    translated = [service for service in view.services if service.mode is Mode.NAT and service.ports]
    addresses = {e.address for s in translated if s.stateless for e in view.pools[s.pool].endpoints}
    found: list[Unsupported] = []
    first: dict[tuple[Address, int, Protocol], tuple[Service, Address, int]] = {}
    for service in sorted(translated, key=lambda service: not service.stateless):
        for endpoint in view.pools[service.pool].endpoints:
            if endpoint.address not in addresses:
                continue
            for vip in service.vips:
                for port in service.ports:
                    source = endpoint.address, endpoint.port or service.target_port or port, service.protocol
                    other = first.setdefault(source, (service, vip, port))
                    if other[1:] == (vip, port) or not other[0].stateless:
                        continue
                    where = f"{place_of(*source[:2])}/{service.protocol}"
                    what = f"{where} serves {place_of(*other[1:])} without memory, so nothing can come from it for "
                    what += place_of(vip, port)
                    found.append(Unsupported(_place(other[0], "stateless"), what, _SHARED))
                    break
    return found


_SHARED = "leave `stateless` out, or have the endpoint listen on a port of its own for each"


def require_supported(view: NodeView) -> None:
    """Raises UnsupportedError, which lists all settings for this node that this version doesn't support."""
    refuse(view.node.name, unsupported(view))


def refuse(node: str, found: Sequence[Unsupported]) -> None:
    """Raises UnsupportedError, which lists these settings for a node, if there are any."""
    if not found:
        return
    found = sorted(set(found))
    lines = [str(item) for item in found[:SHOWN]]
    if len(found) > SHOWN:
        lines.append(f"and {len(found) - SHOWN:,} more")
    if len(found) > 1:
        lines.insert(0, f"node {node} is asked for what this version can't do:")
    hint = next((item.hint for item in found if item.hint), _NOT_YET)
    raise UnsupportedError("\n  ".join(lines), hint=hint)


def _of_node(node: Node) -> Iterator[Unsupported]:
    if node.role not in ROLES:
        yield _value(node, "role", node.role, ROLES)
    if node.role is not Role.BALANCER:
        return
    if node.undefined_traffic not in UNDEFINED_TRAFFIC:
        yield _value(node, "undefinedTraffic", node.undefined_traffic, UNDEFINED_TRAFFIC)
    for family, count in sorted(Counter(address.version for address in node.snat_addresses).items()):
        if count > MOST_SOURCES:
            what = f"{count} IPv{family} source addresses are not supported; supported: {MOST_SOURCES} at most"
            hint = "write fewer snatAddresses; each has ports for 64,512 connections to each endpoint"
            yield Unsupported(_place(node, "snatAddresses"), what, hint)


def _of_endpoint(view: NodeView) -> Iterator[Unsupported]:
    if view.decapsulates and not view.node.interfaces:
        what = "this kernel can't unpack the tunnels of dsr-l3, and a program can only on `interfaces`: there are none"
        hint = "list the interfaces that tunnels come in by: `interfaces: [{name: eth0}]`"
        yield Unsupported(view.node.span, what, hint)


def of_service(service: Service) -> Iterator[Unsupported]:
    if service.mode not in MODES:
        yield _value(service, "mode", service.mode, MODES)
    protocols = PROTOCOLS.get(service.mode, tuple(Protocol))  # an unsupported mode is reported by itself
    if service.protocol not in protocols:
        yield _value(service, "protocol", service.protocol, protocols, f" in mode {service.mode}")
    # The default algorithm of an unsupported mode is not reported as well.
    if service.algorithm not in ALGORITHMS and (service.mode in MODES or "algorithm" in service.places):
        yield _value(service, "algorithm", service.algorithm, ALGORITHMS)
    if service.mode is Mode.NAT and service.protocol is Protocol.SCTP:
        yield from _ipv6(service)
    if service.affinity is not None and service.remembers_clients:
        yield from _affinity(service, service.affinity.timeout_s)
    if service.stateless:
        yield from _stateless(service)
    if service.idle_timeout_s is not None:
        yield from _idle_timeout(service, service.idle_timeout_s)


def of_check(pool: Pool, node: Node) -> Iterator[Unsupported]:
    """The settings of a pool's check that can't be had on a node."""
    check = pool.health_check
    if check.type is not CheckType.NONE and check.through is Through.VIP and not node.health_addresses:
        hint = "give the Node one, like `healthAddress: {ipv4: 10.1.0.9}`; or leave `through` out"
        what = f"healthCheck through vip needs an address that node {node.name} checks from"
        yield Unsupported(_place(pool, "healthCheck"), what, hint)


def _ipv6(service: Service) -> Iterator[Unsupported]:
    span = service.places.get("vips" if "vips" in service.places else "vip", service.span)
    what = f"is not supported for sctp in mode {service.mode} yet; supported: IPv4"
    yield from (Unsupported(span, f"the IPv6 address {each} {what}") for each in service.vips if each.version == 6)


def _idle_timeout(service: Service, idle_s: float) -> Iterator[Unsupported]:
    place = _place(service, "idleTimeout")
    if service.mode.is_dsr:
        what = f"idleTimeout does nothing in mode {service.mode}, which remembers no idle connections"
        yield Unsupported(place, what, "leave it out, or choose mode nat")
    elif idle_s > LONGEST_IDLE_S:
        what = "an idleTimeout longer than 4h is not supported: times of the table come round after five hours"
        yield Unsupported(place, what, "write 4h at most; keepalives keep connections open for longer")


def _affinity(service: Service, timeout_s: float) -> Iterator[Unsupported]:
    if service.protocol is Protocol.SCTP:
        hint = "leave `affinity` out, or write `algorithm: source-hash`, which needs no memory"
        yield Unsupported(_place(service, "affinity"), "affinity is not supported for sctp yet", hint)
    if timeout_s > LONGEST_AFFINITY_S:
        what = "a timeout of affinity longer than 36h is not supported: its times come round after 39 hours"
        yield Unsupported(_place(service, "affinity"), what, "write 36h at most")


def _stateless(service: Service) -> Iterator[Unsupported]:
    place, hint = _place(service, "stateless"), "leave `stateless` out"
    if service.mode is not Mode.NAT:
        yield Unsupported(place, f"stateless does nothing in mode {service.mode}", hint)
    elif service.algorithm not in (Algorithm.MAGLEV, Algorithm.SOURCE_HASH):
        what = f"a stateless service finds endpoints by a hash of the client, not by {service.algorithm}"
        yield Unsupported(place, what, "write `algorithm: maglev` or source-hash, or leave `stateless` out")
    elif any(vip.version == 6 for vip in service.vips):
        yield Unsupported(place, "stateless is for VIPs of IPv4", hint)
    elif service.protocol not in (Protocol.TCP, Protocol.UDP):
        yield Unsupported(place, f"stateless is for tcp and udp, not for {service.protocol}", hint)
    elif service.idle_timeout_s is not None:
        what = "a stateless service remembers no connection that could be idle"
        yield Unsupported(_place(service, "idleTimeout"), what, "leave `idleTimeout` or `stateless` out")


def _value(
    item: Service | Pool | Node, key: str, value: StrEnum, supported: Collection[StrEnum], where: str = ""
) -> Unsupported:
    message = f"{key} {value} is not supported{where} yet; supported: {', '.join(supported)}"
    return Unsupported(_place(item, key), message)


def _place(item: Service | Pool | Node, key: str) -> Span:
    """Where a key was written; where it was left out, the document."""
    return item.places.get(key, item.span)
