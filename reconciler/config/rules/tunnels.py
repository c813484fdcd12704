# SPDX-License-Identifier: Apache-2.0
"""The source addresses of tunnels in mode dsr-l3."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Mapping, Set

from reconciler.config.rules.draft import Draft
from reconciler.config.rules.parts import Reach
from reconciler.config.rules.rule import Finding, more, rule, title
from reconciler.config.rules.segments import IPV6, number
from reconciler.config.rules.surroundings import Surroundings
from reconciler.model import Mode, Node, Prefix, Service


@rule("tunnel-source-missing", Draft)
def _tunnel_source_missing(draft: Draft) -> Iterator[Finding]:
    """A balancer carries a service in mode dsr-l3, and has no address that its tunnels could come from.

    The outer header of a tunnel needs a source of the family of the endpoint. It is the first address that an
    interface of the balancer declares, unless `tunnelSource` says another one. Without either, every packet to the
    endpoint would be dropped.

    The way out: declare the `addresses` of an interface, or `tunnelSource`.
    """
    sourceless = draft.around.fact(_sourceless)
    if not any(_may_lack(reach, sourceless) for reach in draft.reach(Mode.DSR_L3)):
        return
    told: set[tuple[int, int]] = set()
    for service in draft.services:
        for version in _families(draft, service):
            for node in draft.carriers(service):
                if id(node) in sourceless[version] and (id(node), version) not in told:
                    told.add((id(node), version))
                    message = (
                        f"tunnels to the IPv{version} endpoints of {title(service)} ({service.span}) have no source: "
                        f"{title(node)} declares no IPv{version} address"
                    )
                    key = "tunnelSource" if "tunnelSource" in node.places else "interfaces"
                    hint = f"declare the `addresses` of an interface, or `tunnelSource: {{ipv{version}: …}}`"
                    yield Finding(node.span, ("spec", key), message, hint)


def _sourceless(around: Surroundings) -> Mapping[int, Set[int]]:
    """The `id`s of the balancers that have no source for tunnels to endpoints of each family."""
    return {v: {id(node) for node in around.balancers if node.tunnel_from(v) is None} for v in (4, 6)}


def _may_lack(reach: Reach, sourceless: Mapping[int, Set[int]]) -> bool:
    """Whether one of the balancers has no source for a family of endpoints; any, if a pool has no endpoint yet."""
    lacking = [v for v in (4, 6) if any(id(node) in sourceless[v] for node in reach.balancers)]
    families = {4 if value < IPV6 else 6 for value in (*reach.numbers[:1], *reach.numbers[-1:])}
    return not families.isdisjoint(lacking) or (bool(lacking) and 0 in reach.sizes)


def _families(draft: Draft, service: Service) -> Iterator[int]:
    """The families of tunnels that a service needs; those of its VIPs while a pool of it has no endpoint."""
    members = draft.pool(service.pool)
    if members is None or service.mode is not Mode.DSR_L3:
        return
    fallback = draft.pool(members.pool.fallback_pool or "")
    for each in (members, fallback) if fallback else (members,):
        if not each.numbers:
            yield from sorted({vip.version for vip in service.vips})
            continue
        if each.least < IPV6:
            yield 4
        if each.greatest >= IPV6:
            yield 6


@rule("tunnel-source-taken", Draft)
def _tunnel_source_taken(draft: Draft) -> Iterator[Finding]:
    """A `tunnelSource` is, or contains, a VIP or the address of an endpoint.

    The endpoint that has this address drops tunnelled packets that come from it: no machine accepts packets from the
    network whose source is one of its own addresses.

    The way out: a network that is used for nothing else, and is routed to the balancer; or no `tunnelSource`.
    """
    for node in draft.nodes:
        for key, source in _sources(node).items():
            first, last = number(source[0]), number(source[-1])
            endpoints = draft.numbers.all
            taken = {
                "a VIP": sorted(value for value in draft.vips if first <= value <= last),
                "the address of an endpoint": sorted(
                    set(endpoints[bisect_left(endpoints, first) : bisect_right(endpoints, last)])
                ),
            }
            for what, numbers in taken.items():
                if numbers:
                    is_it = "is" if first == last else f"holds {source[numbers[0] - first]},"
                    message = f"the tunnel source {source if first != last else source[0]} {is_it} {what}"
                    hint = "take a network that is used for nothing else, and is routed to the balancer"
                    message += more(len(numbers), "address")
                    yield Finding(node.span, ("spec", "tunnelSource", key), message, hint)


def _sources(node: Node) -> dict[str, Prefix]:
    """The sources that a node declares, by their keys."""
    sources: dict[str, Prefix | None] = {"ipv4": node.tunnel_source.ipv4, "ipv6": node.tunnel_source.ipv6}
    return {key: source for key, source in sources.items() if source is not None}
