# SPDX-License-Identifier: Apache-2.0
"""Turn drafts into manifests: drop the parts that no manifest can express, name services, give equal endpoint lists
one pool."""

from __future__ import annotations

import json
from bisect import bisect_left, insort
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from ipaddress import IPv4Address, ip_network
from math import gcd
from typing import Any

from reconciler.importers import manifests
from reconciler.importers.draft import (
    WRONG_FILE,
    Address,
    Endpoint,
    Imported,
    Manifest,
    Notices,
    Service,
    TooMuch,
    named,
    port_text,
)
from reconciler.importers.names import Names, label

MAX_WEIGHT = 1000
MAX_VIPS = 64
MAX_MEMBERS = 1_000_000  # VIPs and endpoints of all services: more than a fleet has, and they fit into memory
MAX_SERVICES = 100_000
_ONE_FAMILY = ("nat", "fullnat", "dsr-l2")
_TRANSLATING = ("nat", "fullnat")
_IMPOSSIBLE = {  # direct server return: the balancer sees no replies and remembers no connections
    "least-connections": "sees no replies and can't count connections",
    "round-robin": "doesn't remember whose turn a connection was",
}
_CHECK_PROTOCOLS = {"tcp": "tcp", "http": "tcp", "https": "tcp", "udp": "udp", "sctp": "sctp"}
NODE_MISSING = "the input names no interfaces: add a Node with those by which packets of clients and endpoints come in"
SNAT_MISSING = "fullnat needs snatAddresses: add the balancer's own source addresses to the Node"


def assemble(drafts: Iterable[Service], notices: Notices, nodes: Sequence[Manifest] = ()) -> Imported:
    """The manifests of these services, pools in the order of their first use. Adds to `notices`."""
    services = _without_conflicts(drafts, notices)
    vips = {vip for service in services for vip in service.vips}
    names, pool_names = Names(), Names()
    pools: dict[str, Manifest] = {}
    documents: list[Manifest] = []
    for draft in (_with_possible_algorithm(service, notices) for service in services):
        name = names.take(label(draft.name) or default_name(draft))
        endpoints, target_port = _ports(draft, _weights(draft, _reachable(draft, vips, notices), notices), notices)
        checked_port = _checked_port(draft, endpoints, target_port)
        content = manifests.pool("", endpoints, _check(draft, checked_port))["spec"]
        # A service without endpoints gets a pool of its own, to be filled later. A pool whose check has no port goes
        # only with services that lead the check to the same port.
        key = json.dumps([content, checked_port]) if endpoints else name
        if key not in pools:
            pools[key] = manifests.manifest("Pool", pool_names.take(name), content)
        document = manifests.service(
            name, draft.vips, draft.protocol, draft.ports, draft.mode, draft.algorithm, pools[key]["metadata"]["name"],
            targetPort=target_port,
            affinity=_affinity(draft, notices),
            idleTimeout=draft.idle_timeout,
            allowedSources=list(draft.allowed_sources) or None,
        )  # fmt: skip
        documents.append(document)
    if not nodes:
        notices.add(0, NODE_MISSING)
    if any(service.mode == "fullnat" for service in services):
        notices.add(0, SNAT_MISSING)
    return Imported((*nodes, *pools.values(), *documents), tuple(sorted(set(notices))))


def default_name(service: Service) -> str:
    """A name made of a service's protocol, VIP and port: tcp-20-20-20-1-80."""
    vip = str(service.vips[0]).replace(".", "-").replace(":", "-").strip("-")
    port = f"-{port_text(service.ports[0])}" if service.ports else ""
    return f"{service.protocol}-{vip}{port}"


def reason_not_unicast(address: Address) -> str:
    """Why an address is not one machine's, e.g. "multicast"; empty if it is."""
    if address.is_unspecified or (address.version == 4 and int(address) >> 24 == 0):
        return "it is no address of a machine"
    if address.is_loopback:
        return "it is a loopback address"
    if address.is_multicast:
        return "it is a multicast address"
    if isinstance(address, IPv4Address):
        return "it is reserved" if int(address) >> 28 == 15 else ""
    if address.is_link_local:
        return "it belongs to one link only"
    return "it is no address of a machine" if address.ipv4_mapped or int(address) < 1 << 32 else ""


def _without_conflicts(drafts: Iterable[Service], notices: Notices) -> list[Service]:
    """The services with valid VIPs and with ports that no earlier service has."""
    kept: list[Service] = []
    taken: dict[tuple[Address, str], _Ports] = {}
    members = 0
    for draft in (part for whole in drafts for part in _by_vips(whole, notices)):
        members += len(draft.vips) + len(draft.endpoints)
        if members > MAX_MEMBERS:
            message = f"the services up to this one have more than {MAX_MEMBERS:,} VIPs and endpoints"
            raise TooMuch(draft.line, message, hint=WRONG_FILE)
        if len(kept) == MAX_SERVICES:
            raise TooMuch(draft.line, f"up to here there are {MAX_SERVICES:,} services", hint=WRONG_FILE)
        if draft.protocol != "icmp" and not draft.ports:
            message = "port 0, which stands for every port, has no counterpart: the service is left out"
            notices.add(draft.line, f"{draft}: {message}; write the ports that it needs")
            continue
        bad = [(vip, reason) for vip in draft.vips if (reason := reason_not_unicast(vip))]
        if bad:
            notices.add(draft.line, f"{draft}: {bad[0][0]} can't be a VIP, {bad[0][1]}: the service is left out")
            continue
        if draft.allowed_sources and not _lets_somebody_in(draft):
            message = "allowedSources lets nobody through, which has no counterpart: the service is left out"
            notices.add(draft.line, f"{draft}: {message}")
            continue
        wanted = draft.ports or (range(1),)
        places = [taken.setdefault((vip, draft.protocol), _Ports()) for vip in draft.vips]
        clashes = (line for place in places for ports in wanted if (line := place.holder(ports)) is not None)
        if (line := next(clashes, None)) is not None:
            message = f"VIP and port belong to the service of {named(line)} already: this one is left out"
            notices.add(draft.line, f"{draft}: {message}")
            continue
        for place in places:
            for ports in wanted:
                place.take(ports, draft.line)
        kept.append(draft)
    return kept


class _Ports:
    """The taken ports of a VIP, each with the line of the service that has it."""

    def __init__(self) -> None:
        self._ranges: list[tuple[int, int, int]] = []  # first port, last port + 1, line; sorted by the first

    def holder(self, ports: range) -> int | None:
        """The line of a service that has one of these ports."""
        behind = bisect_left(self._ranges, (ports.stop,))
        if behind and self._ranges[behind - 1][1] > ports.start:
            return self._ranges[behind - 1][2]
        return None

    def take(self, ports: range, line: int) -> None:
        insort(self._ranges, (ports.start, ports.stop, line))


def _lets_somebody_in(service: Service) -> bool:
    networks = [ip_network(prefix) for prefix in service.allowed_sources]
    families = {
        network.version for network in networks
        if network.prefixlen < 3 or not (network.is_multicast or network.is_loopback)
    }  # fmt: skip
    return {vip.version for vip in service.vips} <= families


def _by_vips(service: Service, notices: Notices) -> Iterator[Service]:
    """The service with each VIP once and without VIPs of a family that its mode can't mix; split if it has too
    many."""
    vips = list(dict.fromkeys(service.vips))
    if service.mode in _ONE_FAMILY:
        for vip in vips:
            if vip.version != vips[0].version:
                reason = f"{service.mode} can't mix IPv4 and IPv6"
                notices.add(service.line, f"{service}: VIP {vip} is left out: {reason}")
        vips = [vip for vip in vips if vip.version == vips[0].version]
    groups = [vips]
    if any(endpoint.address.version == 4 for endpoint in service.endpoints):  # tunnels to them carry only IPv4
        groups = [[vip for vip in vips if vip.version == version] for version in (4, 6)]
    for group in groups:
        for start in range(0, len(group), MAX_VIPS):
            yield replace(service, vips=tuple(group[start : start + MAX_VIPS]))


def _with_possible_algorithm(service: Service, notices: Notices) -> Service:
    """The service with an algorithm that its mode can have."""
    reason = _IMPOSSIBLE.get(service.algorithm)
    if service.mode in _TRANSLATING or reason is None:
        return service
    needed = f", as {service.scheduler} needs" if service.scheduler else ""
    message = f"in mode {service.mode} the balancer {reason}{needed}: maglev is written"
    notices.add(service.line, f"{service}: {message}")
    return replace(service, algorithm="maglev")


def _affinity(service: Service, notices: Notices) -> dict[str, str] | None:
    """How clients keep their endpoints. Where nothing is remembered, a hash says the endpoint, whatever the time."""
    if service.affinity is None or service.mode in _TRANSLATING:
        return {"by": "client", "timeout": service.affinity} if service.affinity else None
    message = f"in mode {service.mode} a client keeps its endpoint by a hash of its address: no time runs out"
    notices.add(service.line, f"{service}: {message}")
    return None if service.algorithm == "source-hash" else {"by": "client"}


def _reachable(service: Service, vips: set[Address], notices: Notices) -> list[Endpoint]:
    """The endpoints that the service's mode can reach, each once."""
    kept: dict[tuple[Address, int | None], Endpoint] = {}
    for endpoint in service.endpoints:
        key = (endpoint.address, endpoint.port or _only_port(service))
        reason = reason_not_unicast(endpoint.address)
        if not reason and endpoint.address in vips:
            reason = "it is a VIP"
        if not reason and service.mode in _ONE_FAMILY and endpoint.address.version != service.vips[0].version:
            reason = f"{service.mode} can't mix IPv4 and IPv6"
        if not reason and endpoint.address.version == 4 and service.vips[0].version == 6:
            reason = f"{service.mode} can't bring IPv6 to IPv4 endpoints"
        if not reason and key in kept:
            reason = "it is there already"
        if reason:
            notices.add(endpoint.line, f"{service}: endpoint {endpoint.address} is left out: {reason}")
        else:
            kept[key] = endpoint
    return list(kept.values())


def _weights(service: Service, endpoints: list[Endpoint], notices: Notices) -> list[Endpoint]:
    """Endpoints whose weights have the same effect as in the source, and are not above the limit."""
    weights = [endpoint.weight for endpoint in endpoints]
    if service.unweighted and len({weight for weight in weights if weight}) > 1:
        message = f"{service.scheduler} ignores weights, {service.algorithm} does not: they are left out"
        notices.add(service.line, f"{service}: {message}")
        return [replace(endpoint, weight=min(endpoint.weight, 1)) for endpoint in endpoints]
    highest = max(weights, default=0)
    if highest <= MAX_WEIGHT:
        return endpoints
    divisor = gcd(*weights)
    message = f"weights above {MAX_WEIGHT} have no counterpart: they are scaled down"
    if highest // divisor > MAX_WEIGHT:
        message += ", and rounded"
    notices.add(service.line, f"{service}: {message}")
    scaled = [weight // divisor for weight in weights]
    if (top := max(scaled)) > MAX_WEIGHT:
        scaled = [max(min(weight, 1), round(weight * MAX_WEIGHT / top)) for weight in scaled]
    return [replace(endpoint, weight=weight) for endpoint, weight in zip(endpoints, scaled, strict=True)]


def _ports(service: Service, endpoints: list[Endpoint], notices: Notices) -> tuple[list[Endpoint], int | None]:
    """The endpoints without needless ports, and the `targetPort` of the service. An endpoint needs no port if it is
    the one that the client asked for, nor if all endpoints have the same: that is the targetPort. So more services can
    share a pool."""
    only = _only_port(service)
    given = {endpoint.port or only for endpoint in endpoints}
    plain = [replace(endpoint, port=None) for endpoint in endpoints]
    if service.mode not in _TRANSLATING or service.protocol == "icmp":
        for endpoint in endpoints:
            if endpoint.port not in (None, only):
                message = f"port {endpoint.port} of endpoint {endpoint.address} is left out"
                notices.add(endpoint.line, f"{service}: {message}: {service.mode} can't translate ports")
        return _unique(plain), None
    if given <= {only}:
        return _unique(plain), None
    if only and len(given) == 1:
        return _unique(plain), given.pop()
    return [replace(endpoint, port=endpoint.port or only) for endpoint in endpoints], None


def _only_port(service: Service) -> int | None:
    """The port that clients can ask for, if there is only one."""
    return service.ports[0][0] if len(service.ports) == 1 and len(service.ports[0]) == 1 else None


def _unique(endpoints: list[Endpoint]) -> list[Endpoint]:
    return list({endpoint.address: endpoint for endpoint in reversed(endpoints)}.values())[::-1]


def _checked_port(service: Service, endpoints: list[Endpoint], target_port: int | None) -> int | None:
    """The port that a check without its own port goes to, if the service determines it and not the endpoints."""
    if not service.check or service.check["type"] not in _CHECK_PROTOCOLS or "port" in service.check:
        return None
    own_ports = bool(endpoints) and all(endpoint.port for endpoint in endpoints)
    return None if own_ports or not service.ports else target_port or service.ports[0][0]


def _check(service: Service, checked_port: int | None) -> dict[str, Any] | None:
    """The health check. If the source checks the service's port and the manifests would not imply it, it is
    written."""
    if not service.check:
        return None
    check = dict(service.check)
    same_protocol = _CHECK_PROTOCOLS.get(check["type"]) == service.protocol
    if checked_port is None or (same_protocol and _only_port(service)):
        return check
    return {"type": check.pop("type"), "port": checked_port, **check}
