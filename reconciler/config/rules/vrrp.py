# SPDX-License-Identifier: Apache-2.0
"""Addresses that balancers share by VRRP."""

from __future__ import annotations

from collections.abc import Iterator

from reconciler.config.diagnostic import Severity
from reconciler.config.rules.draft import Draft
from reconciler.config.rules.rule import Finding, rule, title
from reconciler.model import Node

_PATH = ("spec", "announce", "vrrp")


@rule("vrrp-address-unreachable", Node)
def _vrrp_address_unreachable(node: Node) -> Iterator[Finding]:
    """A shared address (`vrrp`) is in no network of the Node's interfaces, or is an address of one of them.

    keepalived puts the address on the interface of its network, and tells the machines there by ARP that it came. In
    another network nobody would hear that. An address of the machine itself would be there twice as soon as another
    balancer has it.

    The way out: an address that no machine has, in a network that is declared under `interfaces`.
    """
    vrrp = node.announce.vrrp if node.announce else None
    own = [own for face in node.interfaces for own in face.addresses]
    for i, shared in enumerate(vrrp.addresses if vrrp else ()):
        path = (*_PATH, "addresses", i)
        if any(shared.ip == address.ip for address in own):
            message = f"{shared.ip} is an address of {title(node)} itself"
            yield Finding(node.span, path, message, "share one that nobody has")
        elif not any(shared.ip in address.network for address in own):
            message = f"{shared.ip} is in no network of {title(node)}"
            hint = f"an address in {own[0].network}, say" if own else "declare the `addresses` of its interfaces"
            yield Finding(node.span, path, message, hint)


@rule("vrrp-twins", Draft, Severity.WARNING)
def _vrrp_twins(draft: Draft) -> Iterator[Finding]:
    """Two balancers share addresses by VRRP with one `id`, in a network of both, and don't agree: they name other
    addresses, or have the same priority.

    A balancer that takes over takes the addresses that it knows itself: the others are gone meanwhile. With the same
    priority, both take them at once when both start, until one hears of the other.

    The way out: the same `addresses` on both, in the same order, and another `priority`.
    """
    first: dict[tuple[int, object], Node] = {}
    for node in draft.balancers:
        vrrp = node.announce.vrrp if node.announce else None
        if vrrp is None:
            continue
        for network in sorted({a.network for face in node.interfaces for a in face.addresses}, key=str):
            other = first.setdefault((vrrp.id, network), node)
            theirs = other.announce.vrrp if other.announce else None
            if other is node or theirs is None:
                continue
            if theirs.addresses != vrrp.addresses:
                message = f"{title(node)} and {title(other)} share addresses with id {vrrp.id}, but not the same ones"
                yield Finding(node.span, (*_PATH, "addresses"), message, "name the same addresses on both")
            elif theirs.priority == vrrp.priority:
                message = f"{title(node)} and {title(other)} share addresses with the same priority, {vrrp.priority}"
                yield Finding(node.span, (*_PATH, "id"), message, "give one of them another `priority`")
            break
