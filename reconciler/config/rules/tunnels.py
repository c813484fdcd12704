# SPDX-License-Identifier: Apache-2.0
"""The source addresses of tunnels in mode dsr-l3."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain

from reconciler.config.rules.draft import Draft, Finding, more, rule, title
from reconciler.config.rules.segments import IPV6, count_inside, number
from reconciler.model import Mode, Node, Prefix, Service


@rule("tunnel-source-missing")
def _tunnel_source_missing(draft: Draft) -> Iterator[Finding]:
    """A balancer carries a service in mode dsr-l3, and has no address that its tunnels could come from.

    The outer header of a tunnel needs a source of the family of the endpoint. It is the first address that an
    interface of the balancer declares, unless `tunnelSource` says another one. Without either, every packet to the
    endpoint would be dropped.

    The way out: declare the `addresses` of an interface, or `tunnelSource`.
    """
    told: set[tuple[int, int]] = set()
    for service in draft.services:
        for version in _families(draft, service):
            for node in draft.carriers(service):
                if (id(node), version) not in told and node.tunnel_from(version) is None:
                    told.add((id(node), version))
                    message = (
                        f"tunnels to the IPv{version} endpoints of {title(service)} ({service.span}) have no source: "
                        f"{title(node)} declares no IPv{version} address"
                    )
                    key = "tunnelSource" if "tunnelSource" in node.places else "interfaces"
                    hint = f"declare the `addresses` of an interface, or `tunnelSource: {{ipv{version}: …}}`"
                    yield Finding(node.span, ("spec", key), message, hint)


def _families(draft: Draft, service: Service) -> Iterator[int]:
    """The families of tunnels that a service needs; those of its VIPs while its pool has no endpoint."""
    pool = draft.pool.get(service.pool)
    if pool is None or service.mode is not Mode.DSR_L3:
        return
    first, last = draft.extent[id(pool)]
    if first > last:
        yield from sorted({vip.version for vip in service.vips})
        return
    if first < IPV6:
        yield 4
    if last >= IPV6:
        yield 6


@rule("tunnel-source-taken")
def _tunnel_source_taken(draft: Draft) -> Iterator[Finding]:
    """A `tunnelSource` is, or contains, a VIP or the address of an endpoint.

    The endpoint that has this address drops tunnelled packets that come from it: no machine accepts packets from the
    network whose source is one of its own addresses.

    The way out: a network that is used for nothing else, and is routed to the balancer; or no `tunnelSource`.
    """
    if not any(_sources(node) for node in draft.nodes):
        return
    taken = {
        "a VIP": sorted({number(vip) for service in draft.services for vip in service.vips}),
        "the address of an endpoint": sorted(set(chain.from_iterable(draft.numbers.values()))),
    }
    for node in draft.nodes:
        for key, source in _sources(node).items():
            first, last = number(source[0]), number(source[-1])
            for what, numbers in taken.items():
                if count := count_inside(numbers, first, last):
                    found = next(value for value in numbers if value >= first)
                    is_it = "is" if first == last else f"holds {source[found - first]},"
                    message = f"the tunnel source {source if first != last else source[0]} {is_it} {what}"
                    hint = "take a network that is used for nothing else, and is routed to the balancer"
                    yield Finding(node.span, ("spec", "tunnelSource", key), message + more(count, "address"), hint)


def _sources(node: Node) -> dict[str, Prefix]:
    """The sources that a node declares, by their keys."""
    sources: dict[str, Prefix | None] = {"ipv4": node.tunnel_source.ipv4, "ipv6": node.tunnel_source.ipv6}
    return {key: source for key, source in sources.items() if source is not None}
