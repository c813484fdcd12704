# SPDX-License-Identifier: Apache-2.0
"""What `lbctl get` shows, as rows for machines: in schema/output/get.v1.json. Lists are lists, shares are numbers from
0 to 1, and None is what nobody knows."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from reconciler.kernel.port import Kernel

if TYPE_CHECKING:
    from reconciler.readings.counters import Traffic
    from reconciler.readings.tables import Connections

FORMAT_VERSION = 1

Item = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Node:
    """Where rows come from: maps, and the files of the instance. `kernel` opens the maps, which not all rows need."""

    kernel: Callable[[], Kernel]
    directory: Path


def document(what: str, items: list[Item]) -> Item:
    """The rows with the version of their format."""
    return {"format_version": FORMAT_VERSION, "kind": what, "items": items}


def _fields(numbers: Connections | Traffic) -> Item:
    """As `asdict`, which copies deeply what is nothing but numbers."""
    return {name: getattr(numbers, name) for name in numbers.__slots__}


def _services(node: Node) -> list[Item]:
    from reconciler.readings.tables import services

    return [
        {
            "service": s.row.id, "mode": s.row.mode, "algorithm": s.row.algorithm, "ring": s.row.ring,
            "endpoints": s.endpoints, **_fields(s.connections), **_fields(s.traffic),
        }
        for s in services(node.kernel())
    ]  # fmt: skip


def _endpoints(node: Node) -> list[Item]:
    from reconciler.readings.health import Wished, wished_of_endpoints
    from reconciler.readings.tables import endpoints

    known, nothing = wished_of_endpoints(node.directory), Wished(None, {})
    listed = {id: wished.weights.keys() for id, wished in known.items()}
    return [
        {
            "endpoint": e.numbered.row.id, "state": e.state, "health": wished.health,
            "pools": [{"pool": pool, "weight": wished.weights.get(pool)} for pool in e.pools],
            "services": list(e.services),
            "shares": [{"ring": ring, "share": share} for ring, share in sorted(e.shares.items())],
            **_fields(e.connections), "number": e.numbered.number, **_fields(e.traffic),
        }
        for e in endpoints(node.kernel(), listed)
        for wished in (known.get(e.numbered.row.id, nothing),)
    ]  # fmt: skip


def _flows(node: Node) -> list[Item]:
    from reconciler.readings.flows import flows

    return [asdict(flow) for flow in flows(node.kernel()).in_order()]


def _transitions(node: Node) -> list[Item]:
    from reconciler.readings.transitions import transitions

    return [{**asdict(t), "former": list(t.former)} for t in transitions(node.kernel())]


def _ports(node: Node) -> list[Item]:
    from reconciler.ports import pools

    rows = [asdict(pool) for pool in pools(node.kernel())]
    return [{name: value for name, value in row.items() if name != "version"} for row in rows]  # the source tells it


def _verdicts(node: Node) -> list[Item]:
    from reconciler.readings.counters import verdicts

    return [
        {"verdict": v.name.lower().replace("_", " "), "packets": n, "meaning": v.meaning}
        for v, n in sorted(verdicts(node.kernel()).items())
    ]


def _health(node: Node) -> list[Item]:
    from reconciler.readings.health import health

    return [{**asdict(each), "services": list(each.services)} for each in health(node.directory)]


def _history(node: Node) -> list[Item]:
    from reconciler.readings.health import history

    return [asdict(each) for each in history(node.directory)]


def _drains(node: Node) -> list[Item]:
    from reconciler.readings.health import drained

    return [asdict(each) for each in drained(node.directory)]


def _announcements(node: Node) -> list[Item]:
    from reconciler.readings.announcements import announcements

    return [asdict(each) for each in announcements(node.kernel(), node.directory)]


def _checker(node: Node) -> list[Item]:
    from reconciler.readings.health import checker

    return [asdict(each) for each in checker(node.directory)]


ROWS: Mapping[str, Callable[[Node], list[Item]]] = {
    "services": _services,
    "endpoints": _endpoints,
    "health": _health,
    "history": _history,
    "checker": _checker,
    "drains": _drains,
    "announcements": _announcements,
    "flows": _flows,
    "transitions": _transitions,
    "ports": _ports,
    "verdicts": _verdicts,
}
"""By what is asked for. Each may raise LbctlError."""
