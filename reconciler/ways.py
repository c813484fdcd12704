# SPDX-License-Identifier: Apache-2.0
"""Endpoints and gateways to which the kernel's routes lead nowhere, or by an interface on which no program runs."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from typing import TypeVar

from reconciler.kernel.port import Kernel
from reconciler.kinds.attachment import Attachment
from reconciler.kinds.endpoint_row import EndpointRow
from reconciler.kinds.gateway import Gateway
from reconciler.kinds.gateway_route import needs_stand_in
from reconciler.kinds.ring import Ring
from reconciler.kinds.service_row import ServiceRow
from reconciler.kinds.vlan import Vlan
from reconciler.model import Address, Mode
from reconciler.resource import Concern, Desired, Key, Resource

R = TypeVar("R", bound=Resource)

MAX_ASKED = 256
"""The kernel is asked about so many endpoints at most, one of each small network: one shows a wrong network, too."""

_SMALL = {4: 8, 6: 64}
"""The host bits of a small network, by version of IP."""


def about_ways(kernel: Kernel, desired: Desired) -> Iterator[Concern]:
    """`desired` is what the manifests ask for on this node."""

    def wanted(type_: type[R]) -> list[R]:
        return [r for r in desired.of_kind.get(type_.kind, {}).values() if isinstance(r, type_)]

    gateways = wanted(Gateway)
    yield from _about_gateways(kernel, [g for g in gateways if not needs_stand_in(g.address)])
    if gateways:
        return  # packets that come in by its interface go to the gateway, not by routes
    links = {link.name: link for link in kernel.links()}
    served = {r.id for r in (*wanted(Attachment), *wanted(Vlan))}
    if any(links[name].master is not None for name in served & links.keys()):
        return  # a VRF has its own routes; for a port, the kernel names its bond or bridge
    rings = {service.ring for service in wanted(ServiceRow) if service.mode in (Mode.NAT, Mode.FULLNAT)}
    translated = {member for ring in wanted(Ring) if ring.name in rings for member in ring.members}
    usable = [r for r in wanted(EndpointRow) if not r.disabled]
    asked = _one_of_each_network(sorted(usable, key=lambda endpoint: endpoint.id not in translated))
    ways = kernel.ways(list(asked)) if asked else {}
    lost = sorted(address for address, way in ways.items() if not way)
    if lost:
        others = f" and {len(lost) - 1} others" if len(lost) > 1 else ""
        yield Concern(
            asked[lost[0]].key,
            f"no route of this node leads to {lost[0]}{others}: packets for it are dropped",
            "correct the address, or make a route to its network",
        )
    replies = {address: way for address, way in ways.items() if asked[address].id in translated}
    # On a VLAN that is not listed, the program of its trunk may run.
    strange = {way for way in replies.values() if way in links and links[way].trunk is None} - served - {"lo"}
    yield from (_unserved(way, min(a for a, by in replies.items() if by == way)) for way in sorted(strange))


def _about_gateways(kernel: Kernel, gateways: Collection[Gateway]) -> Iterator[Concern]:
    ways = kernel.ways([str(gateway.address) for gateway in gateways]) if gateways else {}
    for gateway in gateways:
        way = ways.get(str(gateway.address), gateway.interface)
        if way != gateway.interface:
            leads = f"the kernel's way to it leads by {way}" if way else "the kernel has no route to it"
            yield Concern(
                gateway.key,
                f"the gateway {gateway.address} is in no network of {gateway.interface}: {leads}",
                f"name a neighbour in a network of {gateway.interface}",
            )


def _unserved(way: str, address: str) -> Concern:
    return Concern(
        Key(Attachment.kind, way),
        f"{address} is reached by {way}, where no program runs: replies that come in there keep the address of "
        "the endpoint, and clients refuse them",
        f"add {way} to the `interfaces` of the Node",
    )


def _one_of_each_network(endpoints: Iterable[EndpointRow]) -> dict[str, EndpointRow]:
    """The endpoints to ask about, by address."""
    first: dict[tuple[int, int], EndpointRow] = {}
    for endpoint in endpoints:
        first.setdefault(_network(endpoint.address), endpoint)
    return {str(first[network].address): first[network] for network in sorted(first)[:MAX_ASKED]}


def _network(address: Address) -> tuple[int, int]:
    return address.version, int(address) >> _SMALL[address.version]
