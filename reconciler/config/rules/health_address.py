# SPDX-License-Identifier: Apache-2.0
"""The addresses that balancers check endpoints from, through VIPs."""

from __future__ import annotations

from collections.abc import Iterator

from reconciler.config.rules.addresses import owners
from reconciler.config.rules.draft import Draft
from reconciler.config.rules.rule import Finding, key_path, rule, title
from reconciler.config.rules.segments import number
from reconciler.model import Node, Role


@rule("health-address-taken", Draft)
def _health_address_taken(draft: Draft) -> Iterator[Finding]:
    """A `healthAddress` belongs to somebody: it is a VIP, an endpoint, an address or a gateway of a node, or the
    `healthAddress` of another balancer.

    The balancer takes every packet for this address as an answer to one of its checks. So it would take what is meant
    for the other one, or the answers would go there, and every check would fail.

    The way out: an address that no machine has, and that is routed to this balancer alone.
    """
    first: dict[int, Node] = {}
    for node in draft.nodes:
        for address in node.health_addresses:
            value = number(address)
            other = first.setdefault(value, node)
            taken = draft.around.fact(owners).get(value)
            reason = ""
            if other is not node:
                reason = f"the healthAddress of {title(other)} already ({other.span})"
            elif taken:
                reason = taken[0]
            elif value in draft.vips:
                reason = "a VIP"
            elif value in draft.numbers:
                reason = "the address of an endpoint"
            if reason:
                hint = "take an address that no machine has, and that is routed to this balancer"
                path = ("spec", "healthAddress", f"ipv{address.version}")
                yield Finding(node.span, path, f"{address} can't be a healthAddress: it is {reason}", hint)


@rule("health-address-missing", Draft)
def _health_address_missing(draft: Draft) -> Iterator[Finding]:
    """A balancer checks endpoints through the VIP of a service, and has no `healthAddress` of the VIP's family.

    Such a check is a packet to the VIP, so it needs a source of the same family, to which the endpoint answers.
    Without one, these endpoints would never be checked.

    The way out: an address of that family in `healthAddress`, or `through: endpoint`.
    """
    if not draft.through_vips or not any(map(_lacks, draft.balancers)):
        return
    told: set[tuple[int, int]] = set()
    services = (service for name in draft.through_vips for service in draft.use(name).services)
    for service in services:
        for version in sorted({vip.version for vip in service.vips}) if service.mode.is_dsr else ():
            for node in draft.carriers(service):
                if version in _lacks(node) and (id(node), version) not in told:
                    told.add((id(node), version))
                    message = (
                        f"{title(node)} checks the endpoints of {title(service)} ({service.span}) through its "
                        f"IPv{version} VIP, and has no IPv{version} address to do that from"
                    )
                    example = "10.1.0.9" if version == 4 else "'2001:db8:1::9'"
                    hint = f"give it one, like `healthAddress: {{ipv{version}: {example}}}`"
                    yield Finding(node.span, key_path(node, "healthAddress"), message, hint)


def _lacks(node: Node) -> set[int]:
    """The families that a balancer can't check through VIPs in."""
    return {4, 6} - {address.version for address in node.health_addresses} if node.role is Role.BALANCER else set()
