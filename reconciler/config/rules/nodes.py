# SPDX-License-Identifier: Apache-2.0
"""Nodes, each on its own: interfaces, gateways, addresses."""

from __future__ import annotations

from collections.abc import Iterator

from reconciler.config.diagnostic import Severity
from reconciler.config.rules.draft import Draft
from reconciler.config.rules.rule import Finding, rule, title
from reconciler.config.rules.segments import segments
from reconciler.model import Interface, Node, Role


@rule("balancer-without-interfaces", Node)
def _balancer_without_interfaces(node: Node) -> Iterator[Finding]:
    """A balancer has no interface that packets could enter by.

    lbctl attaches its program to the interfaces that are listed, and to no other. Without any it would balance
    nothing.

    The way out: list the interfaces that packets of clients and endpoints enter by.
    """
    if node.role is Role.BALANCER and not node.interfaces:
        message = f"{title(node)} is a balancer without interfaces"
        hint = "list the interfaces by which packets of clients and endpoints come in"
        yield Finding(node.span, ("spec", "interfaces"), message, hint)


@rule("duplicate-interface", Node)
def _duplicate_interface(node: Node) -> Iterator[Finding]:
    """A node lists an interface twice.

    An interface has one XDP program in one mode, so the two entries contradict each other.

    The way out: list each interface once, with all of its addresses.
    """
    first: dict[str, Interface] = {}
    for i, interface in enumerate(node.interfaces):
        if (other := first.setdefault(interface.name, interface)) is not interface:
            message = f"interface {interface.name} is listed already ({other.span})"
            yield Finding(node.span, ("spec", "interfaces", i, "name"), message, "list each interface once")


@rule("trunk-missing", Node)
def _trunk_missing(node: Node) -> Iterator[Finding]:
    """The trunk of an interface is not listed beside it, or is a VLAN of yet another one; or there is a tag without a
    trunk.

    Packets of a VLAN come in by its trunk, with a tag. The program runs there, and takes off and puts on one tag.
    Without the trunk it would see none of them.

    The way out: list the trunk as an interface of the node, without `trunk`. It needs no addresses.
    """
    listed = {interface.name: interface for interface in node.interfaces}
    for i, interface in enumerate(node.interfaces):
        if interface.trunk is None:
            if interface.tag is not None:
                message = f"{interface.name} has a tag, and no trunk from which its packets come"
                yield Finding(node.span, ("spec", "interfaces", i, "tag"), message, "name its `trunk`")
            continue
        trunk = listed.get(interface.trunk)
        path = ("spec", "interfaces", i, "trunk")
        if trunk is None:
            message = f"the trunk {interface.trunk} of {interface.name} is no interface of {title(node)}"
            yield Finding(node.span, path, message, f"list it: `{{name: {interface.trunk}}}`")
        elif trunk.trunk is not None:
            message = f"{interface.trunk} is a VLAN itself: {interface.name} would have two tags"
            yield Finding(node.span, path, message, "name the interface that the wire is plugged into")


@rule("tag-duplicate", Node)
def _tag_duplicate(node: Node) -> Iterator[Finding]:
    """Two interfaces of a node are the same VLAN of the same trunk.

    A frame with this tag would come in by either of them; the kernel has one interface for each tag of a trunk.

    The way out: correct one of the tags, or list the interface once, with the addresses of both.
    """
    first: dict[tuple[str, int], Interface] = {}
    for i, interface in enumerate(node.interfaces):
        if interface.trunk is None or interface.tag is None:
            continue
        other = first.setdefault((interface.trunk, interface.tag), interface)
        if other is not interface:
            message = f"{interface.name} is the same VLAN as {other.name}: tag {interface.tag} of {interface.trunk}"
            yield Finding(node.span, ("spec", "interfaces", i, "tag"), message, "a tag of its own, or one interface")


@rule("gateway-unreachable", Node)
def _gateway_unreachable(node: Node) -> Iterator[Finding]:
    """The gateway of an interface is not another machine in one of the networks of the interface.

    A gateway is a next hop: packets are sent to its MAC address, which can be found out only for a neighbour.
    Everything that leaves by this interface would be dropped.

    The way out: correct the gateway, or the addresses of the interface. A link-local gateway of IPv6 is always a
    neighbour.
    """
    for i, interface in enumerate(node.interfaces):
        gateway = interface.gateway
        if gateway is None or not interface.addresses or (gateway.version == 6 and gateway.is_link_local):
            continue
        networks = [address.network for address in interface.addresses if address.version == gateway.version]
        reason = ""
        if any(address.ip == gateway for address in interface.addresses):
            reason = f"is an address of {interface.name} itself"
        elif not any(gateway in network for network in networks):
            reason = f"is in no network of {interface.name}"
        elif gateway.version == 4 and any(
            gateway in (network[0], network[-1]) for network in networks if network.prefixlen <= 30
        ):
            reason = f"is the address of a network of {interface.name} itself, or its broadcast address"
        if reason:
            message = f"the gateway {gateway} {reason}"
            hint = f"name a neighbour in {networks[0]}" if networks else "name a neighbour of the interface"
            yield Finding(node.span, ("spec", "interfaces", i, "gateway"), message, hint)


@rule("same-network-twice", Node, Severity.WARNING)
def _same_network_twice(node: Node) -> Iterator[Finding]:
    """Two interfaces of a node have addresses in the same network.

    The kernel sends everything for that network out of one of them, and answers ARP requests for the address of
    the other with the wrong MAC address. Which one that is changes with the order in which they come up.

    The way out: a bond, if they are there for redundancy; else a network of its own for each.
    """
    first: dict[tuple[int, int], str] = {}
    for segment in segments(node):
        name = node.interfaces[segment.interface].name
        other = first.setdefault((segment.first, segment.last), name)
        if other != name:
            path = ("spec", "interfaces", segment.interface, "addresses", segment.index)
            message = f"interface {other} is in the network {segment.address.network} already"
            yield Finding(node.span, path, message, "join them to a bond, or give each a network of its own")


@rule("endpoint-without-address", Node)
def _endpoint_without_address(node: Node) -> Iterator[Finding]:
    """A node of role endpoint has no address, neither `address` nor of an interface.

    Pools name endpoints by address. So no pool could mean this node, and lbctl would never prepare it.

    The way out: `address`, the one that the pools name.
    """
    if node.role is Role.ENDPOINT and not node.address and not any(face.addresses for face in node.interfaces):
        message = f"no pool can name {title(node)}: it has no address"
        yield Finding(node.span, ("metadata", "name"), message, "add the `address` that pools name it by")


@rule("endpoint-node-unused", Draft, Severity.WARNING)
def _endpoint_node_unused(draft: Draft) -> Iterator[Finding]:
    """No pool names any address of a node of role endpoint.

    Then lbctl does nothing on this machine. Often the address in the pool, or that of the node, is mistyped, and
    the endpoint that gets the connections is not the one that was prepared for them.

    The way out: correct the address, or remove the node.
    """
    nodes = draft.around.endpoint_nodes
    if not nodes or draft.may_declare("Pool"):
        return
    used = {id(node) for value, node in nodes.items() if value in draft.numbers}
    for node in {id(node): node for node in nodes.values() if id(node) not in used}.values():
        message = f"no Pool names an address of {title(node)}"
        path = ("spec", "address") if node.address else ("metadata", "name")
        yield Finding(node.span, path, message, "correct the address, or remove the node")
