# SPDX-License-Identifier: Apache-2.0
"""The declared interfaces of a node, with their addresses, MTU and VLANs: the node must have them by itself.

lbctl makes none but those for VLANs whose tag is declared (`vlan_link`). It checks them whenever it reads the node, so
that a plan reports a missing one before anything is written: the name of an interface is mistyped, or the manifests
are for another machine.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from ipaddress import ip_interface
from typing import ClassVar

from reconciler.errors import KernelError
from reconciler.kernel.objects import Link
from reconciler.kernel.port import Outcome
from reconciler.kinds.base import Kind, Wanted
from reconciler.kinds.indexes import flaw_of
from reconciler.model import Mode, Role
from reconciler.resource import Change, Key, Reading, Resource
from reconciler.safe import some
from reconciler.view import NodeView

_MTU, _VLAN_OF = "mtu ", "vlan of "
_USUAL_MTU_BYTES = 1500


@dataclass(frozen=True, slots=True)
class Interface(Resource):
    """An interface, or one of its properties. `has` is empty, an address with its prefix length, `mtu N` (at least) or
    `vlan of TRUNK`. `is_made`: where it is missing, lbctl makes it."""

    kind: ClassVar[str] = "interface"
    is_given: ClassVar[bool] = True

    name: str
    has: str = ""
    is_made: bool = field(default=False, compare=False, repr=False)

    @property
    def id(self) -> str:
        return f"{self.name} {self.has}" if self.has else self.name

    @property
    def needs(self) -> tuple[Key, ...]:
        if self.key == THIS_NODE:
            return ()
        if self.has and self.name != ANY:
            return (interface_key(self.name),)
        return (THIS_NODE, Key(VLAN_LINK, self.name)) if self.is_made else (THIS_NODE,)

    @property
    def flaw(self) -> str:
        if self.key == THIS_NODE:
            return ""
        if self.has.startswith(_VLAN_OF):
            return flaw_of(self.name) or flaw_of(self.has.removeprefix(_VLAN_OF))
        return ("" if self.name == ANY else flaw_of(self.name)) or ("" if _is_sensible(self.has) else "unheard of")

    def describe(self) -> dict[str, str]:
        return {}


def _is_sensible(has: str) -> bool:
    if not has or (has.startswith(_MTU) and has.removeprefix(_MTU).isdecimal()):
        return True
    try:
        return ip_interface(has) is not None
    except ValueError:
        return False


VLAN_LINK = "vlan-link"
ANY = "(any)"
"""Stands for any interface of the node."""
THIS_NODE = Key(Interface.kind, "of this node")
"""Present if the machine is the node of the manifests: it has one of the node's declared addresses, or one of its
interfaces if no address is declared."""


def is_asked_for(view: NodeView) -> bool:
    """Whether anything is asked of the interfaces of a node."""
    return bool(view.services) or view.runs_program or view.node.role is Role.ROUTER


def interface_key(name: str, has: str = "") -> Key:
    return Interface(name, has).key


def vlan_key(name: str, trunk: str) -> Key:
    return interface_key(name, f"{_VLAN_OF}{trunk}")


class InterfaceKind(Kind):
    phase = -10
    roles = tuple(Role)
    resource = Interface

    @staticmethod
    def desired(view: NodeView) -> Iterable[Wanted]:
        node = view.node
        if not is_asked_for(view):
            return
        yield Interface("of", "this node"), node.span
        if node.role is Role.ENDPOINT and node.address:
            yield Interface(ANY, str(node.address)), node.span
        for face in node.interfaces:
            is_made = face.trunk is not None and face.tag is not None
            yield Interface(face.name, is_made=is_made), face.span
            for address in face.addresses:
                yield Interface(face.name, str(address), is_made), face.span
            # Few manifests declare `mtu`, and it matters only if tunnels make packets larger.
            if face.mtu_bytes != _USUAL_MTU_BYTES or any(s.mode is Mode.DSR_L3 for s in view.services):
                yield Interface(face.name, f"{_MTU}{face.mtu_bytes}", is_made), face.span
            if face.trunk:
                yield Interface(face.name, f"{_VLAN_OF}{face.trunk}", is_made), face.span

    def read(self, wanted: Mapping[Key, Resource], only: Collection[Key] | None = None) -> Reading:
        asked = [a for key, a in wanted.items() if key != THIS_NODE and isinstance(a, Interface)]
        if not asked:
            return Reading()
        links = {link.name: link for link in self.kernel.links()}
        ours = {link.name for link in self.kernel.vlan_links()} if any(a.is_made for a in asked) else set()
        made = {a.name for a in asked if a.is_made and (a.name in ours or a.name not in links)}
        addresses = [(a.name, a.has) for a in asked if _is_address(a) and a.name not in made]
        anywhere = {(ANY, address.partition("/")[0]) for _, address in addresses}
        missing = self.kernel.missing_addresses([*addresses, *sorted(anywhere)]) if addresses else {}
        impossible: dict[Key, str] = {}
        for a in asked:
            if a.name in made:
                if a.has.startswith(_VLAN_OF) and (trunk := a.has.removeprefix(_VLAN_OF)) not in links:
                    impossible[a.key] = _absent(trunk, links)
                continue
            if a.has and a.name != ANY and a.name not in links:
                continue  # only the missing interface itself is reported
            text = f"it isn't there: {missing[pair]}" if (pair := (a.name, a.has)) in missing else ""
            if text := text or _wrong(a, links):
                impossible[a.key] = text
        names = [a.name for a in asked if not a.has]
        if anywhere and anywhere <= missing.keys():
            impossible[THIS_NODE] = _another(f"addresses ({some(sorted(a for _, a in anywhere))})")
        elif not anywhere and names and links.keys().isdisjoint(names):
            impossible[THIS_NODE] = _another(f"interfaces ({some(sorted(names))})")
        return Reading(impossible=impossible)

    def write(self, changes: Sequence[Change]) -> list[Outcome]:
        return [KernelError(f"lbctl doesn't make {change.key}") for change in changes]


def _another(what: str) -> str:
    return f"none of the {what} that the manifests declare for this node is on this machine: is --node the right one?"


def _is_address(asked: Interface) -> bool:
    return bool(asked.has) and not asked.has.startswith((_MTU, _VLAN_OF))


def _wrong(asked: Interface, links: Mapping[str, Link]) -> str:
    """Why the node doesn't have the declared interface or property; empty if it does."""
    return next(_faults(asked, links), "")


def _faults(asked: Interface, links: Mapping[str, Link]) -> Iterator[str]:
    link = links.get(asked.name)
    if _is_address(asked):
        return
    if link is None:
        yield _absent(asked.name, links)
    elif asked.has.startswith(_MTU):
        if link.mtu_bytes < int(asked.has.removeprefix(_MTU)):
            yield f"{asked.name} takes packets of {link.mtu_bytes:,} bytes at most: raise its MTU, or declare that one"
    elif asked.has.startswith(_VLAN_OF):
        name = asked.has.removeprefix(_VLAN_OF)
        if name in links and link.trunk != links[name].index:
            yield f"{asked.name} is no VLAN of {name}: ip link add link {name} name {asked.name} type vlan id …"
        elif name not in links:
            yield _absent(name, links)


def _absent(name: str, links: Collection[str]) -> str:
    return f"there is no interface {name}; {_there_are(links)}"


def _there_are(links: Collection[str]) -> str:
    shown = sorted(name for name in links if name != "lo")
    more = f" and {len(shown) - 8} more" if len(shown) > 8 else ""
    return f"there are: {', '.join(shown[:8])}{more}" if shown else "there are none"


KIND = InterfaceKind
