# SPDX-License-Identifier: Apache-2.0
"""What monitoring reads: counters and levels of a node as families of samples, in the terms of Prometheus.

Reading is cheap: no ring is decoded, and flows are counted where they lie. What only grows is named `…_total`, as
Prometheus has it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from enum import StrEnum
from pathlib import Path

import numpy as np

from reconciler import connections
from reconciler.dataplane.layout import PORT_POOLS, ConnectionState, word
from reconciler.kernel.port import Kernel
from reconciler.kinds.endpoint import numbered_rows
from reconciler.ports import Pool, pools
from reconciler.readings.counters import Traffic, endpoint_traffic, service_traffic, verdicts
from reconciler.readings.health import STATES, checker, drained, health
from reconciler.readings.occupancy import occupancy
from reconciler.readings.transitions import transitions

Labels = tuple[tuple[str, str], ...]


class Type(StrEnum):
    COUNTER = "counter"
    GAUGE = "gauge"


@dataclass(frozen=True, slots=True)
class Family:
    """The samples of one metric: pairs of labels and a value. `help` is for people."""

    name: str
    type: Type
    help: str
    samples: Sequence[tuple[Labels, float]]


_HELP = {
    "connections": "Connections that began",
    "request_packets": "Packets from clients",
    "request_bytes": "Bytes of IP packets from clients",
    "reply_packets": "Packets to clients that came back through the balancer",
    "reply_bytes": "Bytes of IP packets to clients that came back through the balancer",
}


def node_families(kernel: Kernel, *, endpoints: bool) -> Iterator[Family]:
    """The families of a node's data plane; with `endpoints`, those of each endpoint, too. Raises KernelError."""
    packets = [((("verdict", v.name.lower()),), float(n)) for v, n in sorted(verdicts(kernel).items())]
    yield Family("lbctl_packets_total", Type.COUNTER, "Packets to and from VIPs by what became of them", packets)
    yield from _traffic("service", service_traffic(kernel))
    if endpoints:
        yield from _traffic("endpoint", endpoint_traffic(kernel))
    numbered = list(numbered_rows(kernel))
    states = sorted({row.state for row in numbered})
    counted = [((("state", state),), float(sum(row.state == state for row in numbered))) for state in states]
    yield Family("lbctl_endpoints", Type.GAUGE, "Rows of endpoints by their state", counted)
    moving = [((("ring", t.ring),), float(t.moving)) for t in transitions(kernel)]
    yield Family("lbctl_ring_slots_in_transition", Type.GAUGE, "Slots whose former endpoint is still needed", moving)
    yield from _connections(kernel)
    yield from _ports(kernel)
    full = list(occupancy(kernel))
    used = [((("map", each.map),), float(each.used)) for each in full]
    yield Family("lbctl_map_rows", Type.GAUGE, "How many rows of a map are in use", used)
    sizes = [((("map", each.map),), float(each.most)) for each in full]
    yield Family("lbctl_map_rows_max", Type.GAUGE, "How many rows a map has room for", sizes)


def _connections(kernel: Kernel) -> Iterator[Family]:
    """NAT's tables."""
    loaded, tables = kernel.loaded_program(), connections.modes(kernel)
    if loaded is None or not tables:
        return
    states, most = [], []
    for version, mode in tables:
        table = ("family", f"ipv{version}"), ("mode", mode)
        live = connections.live(kernel, version, mode=mode)
        counts = np.bincount(live.states, minlength=len(ConnectionState)).tolist()
        states += [
            ((*table, ("state", word(ConnectionState, state))), float(counts[state])) for state in ConnectionState
        ]
        most.append((table, float(loaded.sizes.flows)))
    yield Family("lbctl_connections", Type.GAUGE, "Connections of nat by their state", states)
    yield Family("lbctl_connections_max", Type.GAUGE, "How many connections of nat a table is made for", most)


def _ports(kernel: Kernel) -> Iterator[Family]:
    """Of fullnat's sources; nothing where there is no fullnat."""
    if not kernel.capacity(PORT_POOLS.name):
        return
    found = pools(kernel)

    def samples(count: Callable[[Pool], int]) -> list[tuple[Labels, float]]:
        return [
            ((("source", p.source), ("server", p.server), ("protocol", p.protocol)), float(count(p))) for p in found
        ]  # fmt: skip

    help_ = "Ports of a source address that connections of fullnat to a server have"
    yield Family("lbctl_ports_used", Type.GAUGE, help_, samples(lambda pool: pool.used))
    help_ = "How many ports connections of fullnat can have"
    yield Family("lbctl_ports_max", Type.GAUGE, help_, samples(lambda pool: pool.used + pool.free))
    help_ = "Ports that were taken again while the server may have had their former connection in TIME_WAIT"
    yield Family("lbctl_ports_unrested_total", Type.COUNTER, help_, samples(lambda pool: pool.unrested))
    help_ = "Connections of fullnat that found no port"
    yield Family("lbctl_ports_refused_total", Type.COUNTER, help_, samples(lambda pool: pool.refused))


def health_families(instance_dir: Path) -> Iterator[Family]:
    """What checks of endpoints found, from the files of the instance; nothing if nobody is checked. Raises
    FilesError."""
    checked = Counter(each.state for each in health(instance_dir))
    if not checked:
        return
    states = [((("state", state),), float(checked[state])) for state in STATES]
    yield Family("lbctl_endpoints_checked", Type.GAUGE, "Endpoints of pools by what checks say", states)
    [*process] = checker(instance_dir)
    yield Family("lbctl_checker_up", Type.GAUGE, "Whether somebody checks", [((), float(bool(process)))])
    late = [((), each.late_p99_ms / 1000) for each in process]
    help_ = "Ninety-nine of a hundred checks began less late than this"
    yield Family("lbctl_checker_late_p99_seconds", Type.GAUGE, help_, late)
    drains = [((), float(len(drained(instance_dir))))]
    yield Family("lbctl_drains", Type.GAUGE, "Drains that are on", drains)


def _traffic(of: str, counters: Mapping[str, Traffic]) -> Iterator[Family]:
    for field in fields(Traffic):
        samples = [(((of, id_),), float(getattr(traffic, field.name))) for id_, traffic in sorted(counters.items())]
        help_ = f"{_HELP[field.name]}, by {of}"
        yield Family(f"lbctl_{of}_{field.name}_total", Type.COUNTER, help_, samples)


def exposition(families: Iterable[Family], most: int) -> str:
    """The text format of Prometheus (exposition format 0.0.4). No more than `most` series are written; the last line
    tells how many were left out, and is there in any case."""
    lines: list[str] = []
    left, out = most, 0
    for family in families:
        shown = family.samples[:left]
        left -= len(shown)
        out += len(family.samples) - len(shown)
        lines += [f"# HELP {family.name} {_escaped(family.help)}.", f"# TYPE {family.name} {family.type}"]
        lines += (f"{family.name}{_labels(labels)} {_number(value)}" for labels, value in shown)
    lines += ["# HELP lbctl_series_left_out Series that were left out as there are too many.",
              "# TYPE lbctl_series_left_out gauge", f"lbctl_series_left_out {out}"]  # fmt: skip
    return "\n".join(lines) + "\n"


def _labels(labels: Labels) -> str:
    quoted = ((name, _escaped(value).replace('"', '\\"')) for name, value in labels)
    inside = ",".join(f'{name}="{value}"' for name, value in quoted)
    return f"{{{inside}}}" if inside else ""


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace("\n", "\\n")


def _number(value: float) -> str:
    return f"{value:.0f}" if value == int(value) else repr(value)
