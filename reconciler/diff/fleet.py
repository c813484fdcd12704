# SPDX-License-Identifier: Apache-2.0
"""The whole comparison of two fleets."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from reconciler.config.diagnostic import did_you_mean
from reconciler.diff.manifests import Edit, compare_manifests, pair
from reconciler.diff.nodes import NodeDiff, Traffic, compare_nodes
from reconciler.errors import UsageError
from reconciler.model import Fleet
from reconciler.resource import Key
from reconciler.view import NodeView, view


@dataclass(frozen=True, slots=True)
class FleetDiff:
    """The edits that people made, and every node that they concern.

    `traffic` maps each effect on traffic to the nodes where it happens; `caused` maps an edit to the effects that it
    has.
    """

    edits: tuple[Edit, ...]
    nodes: tuple[NodeDiff, ...]
    traffic: Mapping[Traffic, tuple[str, ...]]
    caused: Mapping[Key, Sequence[Traffic]]

    @property
    def differs(self) -> bool:
        return bool(self.edits) or any(node.plan and node.plan.changes for node in self.nodes)

    @property
    def endpoints(self) -> dict[str, str]:
        """The effects on connections to endpoints, by the endpoints' ids."""
        return {id_: text for node in self.nodes for id_, text in node.endpoints.items()}


def compare(old: Fleet, new: Fleet, node: str | None = None) -> FleetDiff:
    """Compare two fleets; with `node`, only as far as they concern this one. Raises UsageError if neither fleet has
    it."""
    pairs = pair(old.nodes, new.nodes)
    both = [(before.name, after.name) for before, after in pairs.both]
    names = [*both, *((None, n.name) for n in pairs.added), *((n.name, None) for n in pairs.removed)]
    edits = compare_manifests(old, new)
    if node is not None:
        known = sorted({name for pair_ in names for name in pair_ if name})
        if node not in known:
            hint = did_you_mean(node, known) or f"there are: {', '.join(known[:8])}"
            raise UsageError(f"no Node is named {node!r} in either revision", hint=hint)
        names = [pair_ for pair_ in names if node in pair_]
    views = [
        (view(old, before, "") if before else None, view(new, after, "") if after else None)
        for before, after in sorted(names, key=lambda pair_: pair_[1] or pair_[0] or "")
    ]
    diffs = compare_nodes(views)
    if node is not None:
        seen = {key for both_views in views for taken in both_views for key in _concerned(taken)}
        edits = [edit for edit in edits if {edit.key, edit.key._replace(id=edit.former)} & seen]
    traffic: dict[Traffic, tuple[str, ...]] = {}
    for diff in diffs:
        for item in diff.traffic:
            traffic[item] = (*traffic.get(item, ()), diff.name)
    return FleetDiff(tuple(edits), tuple(diffs), traffic, _causes(edits, traffic))


def _concerned(taken: NodeView | None) -> set[Key]:
    if taken is None:
        return set()
    services = {Key("service", service.name) for service in taken.services}
    return {Key("node", taken.node.name), *services, *(Key("pool", name) for name in taken.pools)}


def _causes(edits: Iterable[Edit], traffic: Iterable[Traffic]) -> dict[Key, list[Traffic]]:
    """The effects by the edit that caused them: the edit of the service itself, else of a pool of it. Effects with
    neither are left out."""
    by_name = {Key(edit.key.kind, name): edit.key for edit in edits for name in (edit.key.id, edit.former) if name}
    found: dict[Key, list[Traffic]] = {}
    for item in traffic:
        candidates = (Key("service", item.service), *(Key("pool", pool) for pool in reversed(item.pools)))
        cause = next((by_name[key] for key in candidates if key in by_name), None)
        if cause:
            found.setdefault(cause, []).append(item)
    return found
