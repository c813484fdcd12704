# SPDX-License-Identifier: Apache-2.0
"""What `--target` aims at: some resources of a node, and what these need; the rest of a plan is left out."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace

from reconciler.errors import UsageError
from reconciler.kinds.endpoint_row import EndpointRow
from reconciler.kinds.neighbour import Neighbour
from reconciler.kinds.ring import Ring, pool_of
from reconciler.kinds.service_row import ServiceRow
from reconciler.kinds.vip import VipRow
from reconciler.model import Address, Fleet
from reconciler.plan import Plan, plan
from reconciler.resource import Key, Resource
from reconciler.safe import line
from reconciler.standing import closure

_SERVICE, _POOL = "service/", "pool/"
_OF_SERVICES = (ServiceRow, VipRow, Ring, EndpointRow)


def aimed(targets: Sequence[str], planned: Plan, fleet: Fleet) -> frozenset[Key]:
    """The keys that the targets are about: `service/NAME` with its VIPs, `pool/NAME`, or a resource as a plan names
    it (`ring web/maglev`); and everything that these need. Raises UsageError for a target that there is not.

    What no manifest asks for any more is removed only if it is named as a plan names it.
    """
    wanted, found = planned.desired.resources, set[Key]()
    for target in targets:
        keys = set(_named(target, planned, fleet))
        if not keys:
            raise UsageError(f"there is no {line(target)} on this node", hint=_nearest(target, planned, fleet))
        found |= keys
    needs = {key: resource.needs for key, resource in wanted.items()}
    keys = closure(found, needs)
    if any(target.startswith((_SERVICE, _POOL)) for target in targets):
        keys |= closure(_serving(wanted, keys), needs)
    return frozenset(keys)


def narrowed(planned: Plan, keys: frozenset[Key], applied: Mapping[Key, str]) -> Plan:
    """The plan about these keys only. `applied` are the fingerprints of what was applied last."""
    part = plan(planned.desired, planned.live, applied, keys)
    return replace(part, concerns=tuple(concern for concern in planned.concerns if concern.key in keys))


def _named(target: str, planned: Plan, fleet: Fleet) -> Iterator[Key]:
    wanted, held = planned.desired.resources, planned.live.resources
    if target.startswith(_SERVICE):
        for service in fleet.services:
            if service.name == target.removeprefix(_SERVICE):
                yield from (key for key, resource in wanted.items() if _is_of(resource, service.vips, service.protocol,
                                                                              service.ports))  # fmt: skip
    elif target.startswith(_POOL):
        pool = target.removeprefix(_POOL)
        yield from (key for key, r in wanted.items() if isinstance(r, Ring) and pool_of(r.name) == pool)
    else:
        yield from {key for key in (*wanted, *held) if str(key) == target}


def _serving(wanted: Mapping[Key, Resource], keys: Collection[Key]) -> Iterator[Key]:
    """The resources that no other names as a need and that all traffic has use for, and neighbours, except those that
    are about other endpoints only."""
    rows = {key: row.address for key, row in wanted.items() if isinstance(row, EndpointRow)}
    others = set(rows.values()) - {address for key, address in rows.items() if key in keys}
    needed = {need for resource in wanted.values() for need in resource.needs}
    for key, resource in wanted.items():
        is_far = isinstance(resource, Neighbour) and resource.address in others
        is_other = is_far or isinstance(resource, _OF_SERVICES)
        if key not in needed and not resource.announces and not is_other:
            yield key


def _is_of(resource: Resource, vips: Collection[Address], protocol: str, ports: Collection[int]) -> bool:
    """Whether a resource is a service's row, or makes its VIP known."""
    if isinstance(resource, ServiceRow):
        return resource.vip in vips and resource.protocol == protocol and (resource.port in ports or not resource.port)
    if resource.announces:
        return getattr(resource, "address", None) in vips
    return isinstance(resource, VipRow) and resource.address in vips


def _nearest(target: str, planned: Plan, fleet: Fleet) -> str:
    from reconciler.config.diagnostic import did_you_mean

    known = [f"{_SERVICE}{service.name}" for service in fleet.services]
    known += [f"{_POOL}{pool.name}" for pool in fleet.pools]
    known += map(str, (*planned.desired.resources, *planned.live.resources))
    return did_you_mean(target, known) or "name service/NAME, pool/NAME, or a resource as `lbctl plan` does"
