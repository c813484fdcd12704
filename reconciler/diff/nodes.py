# SPDX-License-Identifier: Apache-2.0
"""The changes on a node: its plan from the resources of the old manifests to those of the new ones.

No kernel is read: the node is assumed to hold exactly the resources of the old manifests, and the number of its open
connections is unknown.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Set
from dataclasses import dataclass, field, replace

from reconciler import progress
from reconciler.compile import compile_node
from reconciler.diff.manifests import few, ranges
from reconciler.errors import LbctlError
from reconciler.kinds.endpoint_row import EndpointRow, row_of
from reconciler.kinds.ring import Ring
from reconciler.kinds.service_row import ServiceRow
from reconciler.plan import Plan, guard, plan
from reconciler.resource import Context, Desired, Key, Live, Resource, Span
from reconciler.view import NodeView

GONE = "it keeps what it was last asked for until `lbctl delete` runs on it"
_OF_SERVICES = (EndpointRow.kind, Ring.kind, ServiceRow.kind)


@dataclass(frozen=True, slots=True)
class Traffic:
    """The effect on traffic to a service. `at` are its VIP, ports and protocol, `pools` its old and new pools.

    `moved` is the share of new connections (of clients, if clients stay with an endpoint) that go to another endpoint
    than before, 0 to 1; None if no share can be told. `ends` says whether open connections end.
    """

    service: str
    at: str
    pools: tuple[str, ...]
    text: str
    moved: float | None = None
    ends: bool = False


@dataclass(frozen=True, slots=True)
class NodeDiff:
    """One node. `plan` has only its changes; it is None if no plan can be made, and `problem` says why. `problem` may
    also say why `apply` would refuse the plan.

    `endpoints` maps the id of an endpoint to the effect on its connections, `others` maps any other change to its
    effect on traffic.
    """

    name: str
    plan: Plan | None
    problem: str = ""
    is_new: bool = False
    is_gone: bool = False
    effects: Mapping[Key, str] = field(default_factory=dict)
    traffic: tuple[Traffic, ...] = ()
    endpoints: Mapping[str, str] = field(default_factory=dict)
    others: Mapping[Key, str] = field(default_factory=dict)
    ends: bool = False
    """Whether open connections end."""


def compare_nodes(views: Collection[tuple[NodeView | None, NodeView | None]]) -> list[NodeDiff]:
    """Compare each node in the old manifests with that in the new ones; None if they don't have the node."""
    held: list[Resource] = []
    return [_compare(before, after, held) for before, after in progress.each("nodes", views)]


def _compare(before: NodeView | None, after: NodeView | None, held: list[Resource]) -> NodeDiff:
    """One node. Its rings are `held`, so that no other node builds them again."""
    if after is None:
        assert before is not None
        return NodeDiff(before.node.name, None, GONE, is_gone=True)
    name = after.node.name
    if before == after:
        return NodeDiff(name, Plan((), Desired(), Live()))
    try:
        new = compile_node(after)
    except LbctlError as error:
        return NodeDiff(name, None, error.message, is_new=before is None)
    if before is None:
        return NodeDiff(name, _changes_of(plan(new, Live())), is_new=True)
    try:
        old = compile_node(before)
    except LbctlError as error:
        return NodeDiff(name, None, f"the old manifests: {error.message}")
    held += [r for side in (old, new) for key, r in side.resources.items() if key.kind == Ring.kind]
    planned = plan(new, Live(old.resources))
    effects = planned.effects()
    disabled = {
        c.key.id for c in planned.changes if c.before and isinstance(c.after, EndpointRow) and c.after.disabled
    }
    traffic = _traffic(before, after, old, new, disabled)
    return NodeDiff(
        name,
        _changes_of(planned),
        _refusal(planned),
        effects=effects,
        traffic=traffic,
        endpoints={key.id: text for key, text in effects.items() if key.kind == EndpointRow.kind},
        others={key: text for key, text in effects.items() if key.kind not in _OF_SERVICES},
        ends=bool(disabled) or any(t.ends for t in traffic),
    )


def _changes_of(planned: Plan) -> Plan:
    """A plan without the node's unchanged resources, which would take much memory for a hundred nodes."""
    return replace(planned, desired=Desired(), live=Live())


def _refusal(planned: Plan) -> str:
    try:
        guard(planned, allow_empty=False)
    except LbctlError as error:
        return error.message
    return ""


def _traffic(
    before: NodeView, after: NodeView, old: Desired, new: Desired, disabled: Set[str]
) -> tuple[Traffic, ...]:
    """The effects on traffic to services; ports of a service with the same effect are one."""
    owners = _owners(before, old) | _owners(after, new)
    pools = {s.name: (s.pool,) for s in before.services}
    pools |= {s.name: tuple(dict.fromkeys((*pools.get(s.name, ()), s.pool))) for s in after.services}
    disabled_in: dict[str, set[str]] = {}
    for taken in (before, after) if disabled else ():
        for name, pool in taken.pools.items():
            disabled_in.setdefault(name, set()).update(disabled & {row_of(e).id for e in pool.endpoints})
    context = Context(Live(old.resources), new.resources)
    found: dict[Traffic, list[ServiceRow]] = {}
    for key, row in old.resources.items():
        if not isinstance(row, ServiceRow):
            continue
        now = new.resources.get(key)
        service = owners[key]
        moved, text, ends = _effect(row, now, context)
        lost = sorted({id_ for pool in pools.get(service, ()) for id_ in disabled_in.get(pool, ())}) if now else []
        if lost:
            text = "; ".join(filter(None, (text, f"connections on {few(lost)} end")))
        if text:
            what = Traffic(service, "", pools.get(service, ()), text, moved, ends=ends or bool(lost))
            found.setdefault(what, []).append(row)
    complete = (replace(what, at=_at(rows)) for what, rows in found.items())
    return tuple(sorted(complete, key=lambda what: (what.service, what.at)))


def _owners(view: NodeView, desired: Desired) -> dict[Key, str]:
    """Row → name of the service that asks for it: the one at the same place in the manifests."""
    names: dict[Span, str] = {service.span: service.name for service in view.services}
    rows = [(k, row) for k, row in desired.resources.items() if k.kind == ServiceRow.kind]
    return {k: names.get(row.origin, k.id) if row.origin else k.id for k, row in rows}


def _effect(row: ServiceRow, now: Resource | None, context: Context) -> tuple[float | None, str, bool]:
    """The share of new connections that move, the effect in words, and whether open connections end; empty if only
    names differ."""
    if not isinstance(now, ServiceRow):
        return None, row.effect(None, context), True
    # If the balancer remembers no connections, open ones follow the new ring as new ones do.
    switched = not row.remembers and row.ring != now.ring
    texts = [row.effect(now, context)] if switched or replace(row, ring=now.ring) != now else []
    ends = bool(texts and texts[0]) and (switched or row.remembers != now.remembers)
    sides = ((context.live.resources, row.ring), (context.desired, now.ring))
    ring, after = (rows.get(Key(Ring.kind, name)) for rows, name in sides)
    moved = None
    if isinstance(ring, Ring) and isinstance(after, Ring) and not ring.is_alike(after):
        if row.algorithm == now.algorithm:
            moved = ring.moved(after)
        if (row.algorithm == now.algorithm and not switched) or not after.members:
            texts.append(ring.effect(after, context))
    return moved, "; ".join(filter(None, texts)), ends


def _at(rows: list[ServiceRow]) -> str:
    """The VIPs, ports and protocols of rows in short, e.g. `20.20.20.1:80, 8000-8010/tcp`."""
    ports: dict[tuple[object, str], list[ServiceRow]] = {}
    for row in rows:
        ports.setdefault((row.vip, row.protocol), []).append(row)
    return " and ".join(
        some[0].id.replace(f":{some[0].port}/", f":{ranges([row.port for row in some])}/") for some in ports.values()
    )
