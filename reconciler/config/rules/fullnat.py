# SPDX-License-Identifier: Apache-2.0
"""FullNAT: whether balancers have the source addresses and ports that it needs."""

from __future__ import annotations

from collections.abc import Iterator

from reconciler.config.rules.draft import Draft
from reconciler.config.rules.rule import Finding, place, rule, title
from reconciler.config.rules.segments import number
from reconciler.model import Mode, Node, Service


@rule("snat-address-missing", Draft)
def _snat_address_missing(draft: Draft) -> Iterator[Finding]:
    """A balancer carries a service in mode fullnat, but has no source address of the family of its VIP.

    In this mode the balancer replaces the source of requests by an address of its own, so that replies come back to it
    from anywhere. Without such an address it can't send requests on.

    The way out: `snatAddresses` of the node: addresses that are routed to this balancer alone, and are no VIP.
    """
    told: set[tuple[int, int]] = set()
    for service, family, node in _carried(draft):
        if (id(node), family) in told or any(source.version == family for source in node.snat_addresses):
            continue
        told.add((id(node), family))
        message = (
            f"{title(node)} has no IPv{family} source address, which mode fullnat of {title(service)} "
            f"({service.span}) needs"
        )
        example = "[10.2.0.2]" if family == 4 else "['2001:db8::2']"
        path = ("spec", "snatAddresses") if node.snat_addresses else ("metadata", "name")
        yield Finding(node.span, path, message, f"give it one of its own, like `snatAddresses: {example}`")


@rule("snat-address-shared", Draft)
def _snat_address_shared(draft: Draft) -> Iterator[Finding]:
    """A source address of one balancer is also an address of another node.

    Replies to this address arrive at one machine only. The other machine's connections lose their replies; or worse,
    the first machine takes the replies for those of its own connections.

    The way out: give each balancer source addresses of its own.
    """
    owners: dict[int, Node] = {}
    for node in draft.nodes:
        for interface in node.interfaces:
            for address in interface.addresses:
                owners.setdefault(number(address.ip), node)
    for node in draft.nodes:
        for i, source in enumerate(node.snat_addresses):
            owner = owners.setdefault(number(source), node)
            if owner is not node:
                message = f"{source} belongs to {title(owner)} already ({owner.span}): replies would go there"
                hint = "give each balancer source addresses of its own"
                yield Finding(node.span, ("spec", "snatAddresses", i), message, hint)


@rule("snat-ports-too-few", Draft)
def _snat_ports_too_few(draft: Draft) -> Iterator[Finding]:
    """The source addresses and ports of a balancer don't suffice for its `expectedFlows`.

    To one address and port of an endpoint, each connection needs a source address and port that no other one has.
    So there can be source addresses times source ports connections; any further one is refused. The check takes all
    expected connections for each endpoint, since all may end up at the last healthy one.

    The way out: more `snatAddresses`, or a larger range of `snatPorts`.
    """
    families: dict[int, tuple[Node, set[int]]] = {}
    for _, family, node in _carried(draft):
        families.setdefault(id(node), (node, set()))[1].add(family)
    for node, used in families.values():
        for family in sorted(used):
            addresses = sum(source.version == family for source in node.snat_addresses)
            ports = len(node.snat_ports)
            if addresses and node.expected_flows and addresses * ports < node.expected_flows:
                message = (
                    f"{node.expected_flows:,} connections are expected, but {addresses} IPv{family} source "
                    f"address{'' if addresses == 1 else 'es'} with {ports:,} ports suffice for {addresses * ports:,}"
                )
                hint = f"{-(-node.expected_flows // ports):,} addresses would do; see snatAddresses and snatPorts"
                yield Finding(node.span, ("spec", "expectedFlows"), message, hint)


def _carried(draft: Draft) -> Iterator[tuple[Service, int, Node]]:
    """The first services in mode fullnat with each node selector, for each family of their VIPs, with every balancer
    that carries them; in order of their places."""
    first = [
        (service, family)
        for (_, mode), need in draft.needs.items() if mode is Mode.FULLNAT
        for family, service in need.families.items()
    ]  # fmt: skip
    for service, family in sorted(first, key=lambda found: place(found[0])):
        for node in draft.carriers(service):
            yield service, family, node
