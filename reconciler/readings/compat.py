# SPDX-License-Identifier: Apache-2.0
"""The same node in the metrics of others, so that dashboards and alerts that people have go on: those of
node_exporter's IPVS collector, and those that HAProxy (2.4 and newer) exports itself.

Only what is true of this node is told, by the names and labels that these programs use; what has no counterpart here,
such as requests of HTTP, is left out. Unlike `metrics`, this reads rings and lists flows.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from reconciler.kernel.port import Kernel
from reconciler.kinds.endpoint import numbered_rows
from reconciler.kinds.endpoint_row import EndpointRow
from reconciler.kinds.ring import Ring, pool_of
from reconciler.kinds.rings import RingKind
from reconciler.kinds.service import ServiceKind
from reconciler.kinds.service_row import ServiceRow
from reconciler.model import text_of
from reconciler.readings.counters import Traffic, endpoint_traffic, service_traffic
from reconciler.readings.flows import HALF_OPEN, OPEN, flows
from reconciler.readings.health import drained, health
from reconciler.readings.metrics import Family, Labels, Type

Counts = Mapping[tuple[str, str, str], int]
"""Flows by service, endpoint and state."""
ALL_POOLS = "all"
_SERVER_STATES = ("DOWN", "UP", "MAINT", "DRAIN", "NOLB")
_PROXY_STATES = ("DOWN", "UP")


@dataclass(frozen=True, slots=True)
class _Node:
    """What both are made of. `states` are those of endpoints."""

    services: tuple[ServiceRow, ...]
    rings: Mapping[str, Ring]
    rows: Mapping[str, EndpointRow]
    states: Mapping[str, str]
    counts: Counts
    open_of: Mapping[str, int]
    """Open connections by service."""
    of_services: Mapping[str, Traffic]
    of_endpoints: Mapping[str, Traffic]
    directory: Path


def compat_families(kernel: Kernel, instance_dir: Path, names: tuple[str, ...]) -> Iterator[Family]:
    """The families of each program of `names`, see COMPAT. Raises KernelError, FilesError."""
    if not names:
        return
    numbered = list(numbered_rows(kernel))
    counts = flows(kernel).counts()
    open_of = Counter[str]()
    for (service, _, state), count in counts.items():
        open_of[service] += count if state == OPEN else 0
    node = _Node(
        tuple(row for row in ServiceKind(kernel).read({}).resources if isinstance(row, ServiceRow)),
        {ring.name: ring for ring in RingKind(kernel).read({}).resources if isinstance(ring, Ring)},
        {each.row.id: each.row for each in numbered}, {each.row.id: each.state for each in numbered}, counts, open_of,
        service_traffic(kernel), endpoint_traffic(kernel), instance_dir,
    )  # fmt: skip
    for name in names:
        yield from COMPAT[name](node)


def _ipvs(node: _Node) -> Iterator[Family]:
    totals = list(node.of_services.values())
    for name, field, help_ in (
        ("connections", "connections", "Connections that began"),
        ("incoming_packets", "request_packets", "Packets from clients"),
        ("outgoing_packets", "reply_packets", "Packets to clients through the balancer"),
        ("incoming_bytes", "request_bytes", "Bytes from clients"),
        ("outgoing_bytes", "reply_bytes", "Bytes to clients through the balancer"),
    ):
        total = float(sum(getattr(traffic, field) for traffic in totals))
        yield Family(f"node_ipvs_{name}_total", Type.COUNTER, help_, [((), total)])
    weights: list[tuple[Labels, float]] = []
    active: list[tuple[Labels, float]] = []
    inactive: list[tuple[Labels, float]] = []
    for service in sorted(node.services, key=lambda service: service.id):
        ring = node.rings.get(service.ring)
        for member, share in sorted(ring.shares.items() if ring else ()):
            labels = _ipvs_labels(service, node.rows.get(member))
            weights.append((labels, float(round(1000 * share))))
            if service.remembers:
                active.append((labels, float(node.counts.get((service.id, member, OPEN), 0))))
                inactive.append((labels, float(node.counts.get((service.id, member, HALF_OPEN), 0))))
    for name, samples, help_ in (
        ("connections_active", active, "Open connections, where they are counted"),
        ("connections_inactive", inactive, "Connections that the client alone has opened"),
        ("weight", weights, "Thousandths of the service's new connections"),
    ):
        yield Family(f"node_ipvs_backend_{name}", Type.GAUGE, help_, samples)


def _ipvs_labels(service: ServiceRow, row: EndpointRow | None) -> Labels:
    port = (row.port if row else 0) or service.target_port or service.port
    return (
        ("local_address", text_of(service.vip)), ("local_port", str(service.port)),
        ("remote_address", text_of(row.address) if row else ""), ("remote_port", str(port)),
        ("proto", service.protocol.upper()), ("local_mark", ""),
    )  # fmt: skip


def _haproxy(node: _Node) -> Iterator[Family]:
    """A frontend is a service, a backend is a ring, which several services may share, and a server is an endpoint."""
    frontends = {service.id: ((("proxy", service.id),), [service]) for service in node.services}
    backends = {name: ((("proxy", name),), list[ServiceRow]()) for name in sorted(node.rings)}
    for service in node.services:
        if service.ring in backends:
            backends[service.ring][1].append(service)
    for what, proxies in (("frontend", frontends), ("backend", backends)):
        down = {name for name in proxies if what == "backend" and not node.rings[name].members}
        status = [
            ((*labels, ("state", state)), float((name in down) is (state == "DOWN")))
            for name, (labels, _) in sorted(proxies.items()) for state in _PROXY_STATES
        ]  # fmt: skip
        yield Family(f"haproxy_{what}_status", Type.GAUGE, "Whether it takes connections", status)
        for field, name in (("connections", "sessions"), ("request_bytes", "bytes_in"), ("reply_bytes", "bytes_out")):
            samples = [
                (labels, float(sum(getattr(node.of_services[s.id], field) for s in services)))
                for _, (labels, services) in sorted(proxies.items())
            ]  # fmt: skip
            yield Family(f"haproxy_{what}_{name}_total", Type.COUNTER, f"Of {field.replace('_', ' ')}", samples)
        sessions = [
            (labels, float(sum(node.open_of.get(service.id, 0) for service in services)))
            for _, (labels, services) in sorted(proxies.items()) if all(service.remembers for service in services)
        ]  # fmt: skip
        yield Family(f"haproxy_{what}_current_sessions", Type.GAUGE, "Open connections, where counted", sessions)
    yield from _haproxy_servers(node)


def _haproxy_servers(node: _Node) -> Iterator[Family]:
    states = _server_states(node)
    status = [
        ((("proxy", ring), ("server", server), ("state", each)), float(each == state))
        for (ring, server), state in sorted(states.items()) for each in _SERVER_STATES
    ]  # fmt: skip
    yield Family("haproxy_server_status", Type.GAUGE, "The state of an endpoint", status)
    up = Counter(ring for (ring, _), state in states.items() if state == "UP")
    active = [((("proxy", ring),), float(up[ring])) for ring in sorted(node.rings)]
    yield Family("haproxy_backend_active_servers", Type.GAUGE, "Endpoints that get new connections", active)
    shares = {(name, member): share for name, ring in node.rings.items() for member, share in ring.shares.items()}
    weights = [(_of(*key), float(round(1000 * shares.get(key, 0.0)))) for key in sorted(states)]
    yield Family("haproxy_server_weight", Type.GAUGE, "Thousandths of the ring's new connections", weights)
    for field, name in (("connections", "sessions"), ("request_bytes", "bytes_in"), ("reply_bytes", "bytes_out")):
        traffic = {key: node.of_endpoints.get(key[1], Traffic()) for key in sorted(states)}
        samples = [(_of(*key), float(getattr(each, field))) for key, each in traffic.items()]
        help_ = f"Of {field.replace('_', ' ')}; an endpoint of several rings tells the same in each"
        yield Family(f"haproxy_server_{name}_total", Type.COUNTER, help_, samples)


def _of(ring: str, server: str) -> Labels:
    return (("proxy", ring), ("server", server))


def _server_states(node: _Node) -> dict[tuple[str, str], str]:
    """The state of each endpoint in the words of HAProxy, by ring. One that is down or drained is in no ring: to which
    it belongs is known from checks and drains."""
    found = {(name, member): "UP" for name, ring in node.rings.items() for member in ring.members}
    rings: dict[str, list[str]] = {}
    for name in node.rings:
        rings.setdefault(pool_of(name), []).append(name)
    out = [(each.endpoint, each.pool, "DRAIN") for each in drained(node.directory) if each.pool != ALL_POOLS]
    out += [(each.endpoint, each.pool, "DOWN") for each in health(node.directory) if each.state == "down"]
    for endpoint, pool, state in out:
        for name in rings.get(pool, ()):
            if endpoint in node.states:
                found.setdefault((name, endpoint), state)
    for (name, endpoint), _ in list(found.items()):
        if node.states.get(endpoint) == "disabled":
            found[name, endpoint] = "MAINT"
    return found


COMPAT: Mapping[str, Callable[[_Node], Iterator[Family]]] = {"ipvs": _ipvs, "haproxy": _haproxy}
"""Programs by whose names metrics can be told, too."""
