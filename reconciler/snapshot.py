# SPDX-License-Identifier: Apache-2.0
"""Live state and plans as JSON: `export` writes them, `plan --live` and `apply PLAN` read them.

A resource is an object with its kind and that kind's fields. `format_version` changes only if readers must change.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from ipaddress import ip_address
from pathlib import Path
from typing import Any, get_type_hints

import msgspec

from reconciler.errors import SnapshotError
from reconciler.health.row import Clocks, packed, unpacked
from reconciler.health.target import Use
from reconciler.kinds import RESOURCES
from reconciler.model import Address
from reconciler.plan import Plan
from reconciler.resource import Change, Desired, Key, Live, Reason, Resource, Span
from reconciler.target import Target
from reconciler.wish.drains import from_json as drain_from_json
from reconciler.wish.drains import to_json as drain_to_json
from reconciler.wish.known import Known

FORMAT_VERSION = 1
PLAN_FORMAT_VERSION = 2

DAMAGE = (KeyError, TypeError, ValueError, AttributeError, OverflowError, RecursionError)
"""The errors of reading JSON with the wrong shape; msgspec's are ValueErrors."""

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class SavedPlan:
    """The changes that were planned, the target that they are for, the state that they lead to, and the keys that the
    plan is about; None: all."""

    target: Target
    desired: Desired
    changes: tuple[Change, ...]
    keys: frozenset[Key] | None = None


def live_to_json(live: Live) -> Json:
    """A snapshot: every resource, the owners of foreign objects, and the number of open connections, if it is
    known."""
    return {
        "format_version": FORMAT_VERSION,
        "resources": [_resource(live.resources[key]) for key in sorted(live.resources)],
        "foreign": [{"kind": k.kind, "id": k.id, "owner": owner} for k, owner in sorted(live.foreign.items())],
        "impossible": [{"kind": k.kind, "id": k.id, "why": why} for k, why in sorted(live.impossible.items())],
        "connections": None if live.connections is None else [
            {"service": service, "endpoint": endpoint, "open": count}
            for (service, endpoint), count in sorted(live.connections.items())
        ],
    }


def live_from_json(data: Any) -> Live:
    """The reverse of `live_to_json`. Raises SnapshotError."""
    try:
        _check_version(data, FORMAT_VERSION, "resources", "snapshot")
        resources = [_parse(item) for item in data["resources"]]
        foreign = {Key(item["kind"], item["id"]): str(item["owner"]) for item in data["foreign"]}
        impossible = {Key(item["kind"], item["id"]): str(item["why"]) for item in data.get("impossible", ())}
        counts = data.get("connections")
        connections = None
        if counts is not None:
            connections = {(str(c["service"]), str(c["endpoint"])): int(c["open"]) for c in counts}
    except DAMAGE as error:
        raise _damaged("snapshot", error) from error
    return Live({r.key: r for r in resources}, foreign, connections, impossible)


def known_to_json(known: Known, clocks: Clocks) -> Json:
    """The part of a snapshot about endpoints: states of targets that are not as they come, and drains that are on. A
    plan then wants what the node's own would."""
    now_s = clocks.now_s + clocks.offset_s
    return {
        "targets": [
            {"digest": digest.hex(), "state": packed(state, clocks).hex(), "health": state.health.name.lower(),
             "error": state.error}
            for digest, state in sorted(known.states.items())
        ],
        "uses": [
            {"pool": use.pool, "address": str(use.address), "port": use.port, "vip": use.vip and str(use.vip),
             "digest": digest.hex()}
            for use, digest in known.former.items()
        ],
        "drains": [drain_to_json(drain) for drain in known.drains if drain.is_on(now_s)],
    }  # fmt: skip


def known_from_json(data: Any, clocks: Clocks) -> Known:
    """The reverse of `known_to_json`, of a whole snapshot; older ones know nothing. Raises SnapshotError."""
    try:
        part = data.get("endpoints") or {"targets": (), "uses": (), "drains": ()}
        states = {bytes.fromhex(t["digest"]): unpacked(bytes.fromhex(t["state"]), clocks) for t in part["targets"]}
        former = {
            Use(str(u["pool"]), ip_address(u["address"]), u["port"], ip_address(u["vip"]) if u["vip"] else None):
            bytes.fromhex(u["digest"]) for u in part["uses"]
        }  # fmt: skip
        drains = tuple(drain_from_json(item) for item in part["drains"])
    except DAMAGE as error:
        raise _damaged("snapshot", error) from error
    return Known({digest: state for digest, state in states.items() if state}, former, drains)


def plan_to_json(plan: Plan, target: Target) -> Json:
    """A plan for machines, with everything that `apply` needs to carry it out later."""
    effects = plan.effects()
    return {
        "format_version": PLAN_FORMAT_VERSION,
        "node": target.node,
        "instance": target.instance or None,
        "host": target.host or None,
        "layout": target.layout or None,
        "keys": None if plan.keys is None else [{"kind": key.kind, "id": key.id} for key in sorted(plan.keys)],
        "applyable": bool(plan.changes) and not plan.blocked,
        "resource_changes": [
            {
                "address": str(change.key),
                "kind": change.key.kind,
                "key": change.key.id,
                "change": {
                    "actions": [change.action.value],
                    "before": _resource(change.before) if change.before else None,
                    "after": _resource(change.after) if change.after else None,
                },
                "action_reason": change.reason.value,
                "cause": change.cause,
                "origin": str(change.origin) if change.origin else None,
                "effect": effects.get(change.key, ""),
            }
            for change in plan.changes
        ],
        "blocked": [{"address": str(key), "why": why} for key, why in sorted(plan.blocked.items())],
        "waiting": [
            {"address": str(held.change.key), "actions": [held.change.action.value], "waits_for": str(held.waits_for)}
            for held in plan.held
        ],
        "warnings": [{"address": str(c.key), "text": c.text, "hint": c.hint} for c in plan.concerns],
        "desired": [_resource(plan.desired.resources[key]) for key in sorted(plan.desired.resources)],
    }


def plan_from_json(data: Any) -> SavedPlan:
    """The reverse of `plan_to_json`. Raises SnapshotError, also if no manifests could ask for the state it leads
    to."""
    try:
        _check_version(data, PLAN_FORMAT_VERSION, "resource_changes", "plan")
        about = ("node", "instance", "host", "layout")
        target = Target(*(msgspec.convert(data.get(name) or "", str) for name in about))
        keys = data.get("keys")
        if keys is not None:
            keys = frozenset(Key(msgspec.convert(k["kind"], str), msgspec.convert(k["id"], str)) for k in keys)
        desired = {resource.key: resource for resource in map(_parse, data["desired"])}
        changes = tuple(_change(item) for item in data["resource_changes"])
        flaws = {key: resource.flaw for key, resource in desired.items()}
        for change in changes:
            if change.origin and change.key in desired:
                desired[change.key].asked_for(change.origin)
    except DAMAGE as error:
        raise _damaged("plan", error) from error
    for key, flaw in flaws.items():
        if flaw:
            raise SnapshotError(f"no manifests ask for {key!s:.80}: {flaw:.200}", hint="make a new plan")
    return SavedPlan(target, Desired(desired, target.node), changes, keys)


def read(path: Path) -> Any:
    """The JSON in a file. Raises SnapshotError."""
    try:
        if path.exists() and not path.is_file():
            raise SnapshotError(f"{path} is no file", hint=_MAKE)
        return json.loads(path.read_bytes())
    except OSError as error:
        raise SnapshotError(f"{path} can't be read: {(error.strerror or str(error)).lower()}", hint=_MAKE) from error
    except (ValueError, RecursionError) as error:
        raise SnapshotError(f"{path} is no JSON, so neither a snapshot nor a plan: {error}", hint=_MAKE) from error


def _change(item: Mapping[str, Any]) -> Change:
    before, after = (item["change"][side] for side in ("before", "after"))
    return Change(
        Key(item["kind"], item["key"]),
        _parse(before) if before else None,
        _parse(after) if after else None,
        Reason(item["action_reason"]),
        _span(item["origin"]),
        str(item.get("cause", "")),
    )


def _span(text: str | None) -> Span | None:
    if text is None:
        return None
    file, _, line = text.rpartition(":")
    return Span(file, int(line))


def _resource(resource: Resource) -> Json:
    content: Json = msgspec.to_builtins(resource, enc_hook=str)
    for name in _FIELDS_WITH_KEYS.get(resource.kind, ()):
        content[name] = [{"kind": key.kind, "id": key.id} for key in getattr(resource, name)]
    return {"kind": resource.kind, **content}


def _parse(item: Mapping[str, Any]) -> Resource:
    types = _FIELDS[item["kind"]]
    given = {name: _decode(types[name], value) for name, value in item.items() if name != "kind"}
    return RESOURCES[item["kind"]](**given)


def _fields_of(cls: type[Resource]) -> Mapping[str, Any]:
    """The fields of a kind of resources with their types."""
    hints = get_type_hints(cls)
    return {found.name: hints[found.name] for found in fields(cls)}


_FIELDS = {kind: _fields_of(cls) for kind, cls in RESOURCES.items()}
_KEYS = tuple[Key, ...]
_FIELDS_WITH_KEYS = {
    kind: names for kind, types in _FIELDS.items() if (names := [n for n, type_ in types.items() if type_ == _KEYS])
}
"""By kind: the fields that hold keys, which are pairs in memory and objects in JSON."""


def _decode(type_: Any, value: Any) -> Any:
    if type_ == _KEYS:
        return tuple(Key(msgspec.convert(key["kind"], str), msgspec.convert(key["id"], str)) for key in value)
    # msgspec accepts no union of two types that it doesn't know.
    return ip_address(msgspec.convert(value, str)) if type_ == Address else msgspec.convert(value, type_)


def _check_version(data: Any, version: int, part: str, what: str) -> None:
    """Raise SnapshotError unless data has the part that only this kind of file has, and the version that lbctl
    reads."""
    if not isinstance(data, dict):
        raise SnapshotError(f"this is no {what} of lbctl", hint=_MAKE)
    if part not in data and (other := next((name for key, name in _PARTS.items() if key in data), "")):
        raise SnapshotError(f"this is a {other} of lbctl, not a {what}", hint=_MAKE)
    if "format_version" not in data:
        raise SnapshotError(f"this is no {what} of lbctl", hint=_MAKE)
    if data["format_version"] != version:
        raise SnapshotError(
            f"format {data['format_version']!r:.20} is not the one that this version reads ({version})",
            hint="make a new one with this version of lbctl",
        )


_PARTS = {"resource_changes": "plan", "resources": "snapshot"}
_MAKE = "make a new one: `lbctl export . > FILE` writes a snapshot, `lbctl plan . --out FILE` a plan"


def _damaged(what: str, error: Exception) -> SnapshotError:
    return SnapshotError(f"this is no {what} of lbctl: {error!r:.200}", hint="make a new one")
