# SPDX-License-Identifier: Apache-2.0
"""Interfaces for VLANs that lbctl makes itself, where the manifests say the tag: with their addresses, and marked.

One that somebody else made is as good, if it is this VLAN. It stays his, with the addresses that he gave it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from ipaddress import ip_interface
from typing import ClassVar

from reconciler.errors import KernelError
from reconciler.kernel import objects
from reconciler.kernel.objects import Link
from reconciler.kernel.port import Outcome
from reconciler.kinds.base import Kind, Wanted
from reconciler.kinds.indexes import flaw_of
from reconciler.kinds.interface import VLAN_LINK, interface_key, is_asked_for
from reconciler.model import Role
from reconciler.resource import Change, Context, Key, Reading, Resource
from reconciler.safe import some
from reconciler.view import NodeView

_TAGS, _MTUS = range(1, 4095), range(68, 65_536)


@dataclass(frozen=True, slots=True)
class VlanLink(Resource):
    """`addresses` have the lengths of their prefixes."""

    kind: ClassVar[str] = VLAN_LINK
    may_need: ClassVar[frozenset[str] | None] = frozenset(("interface",))

    interface: str
    trunk: str
    tag: int
    mtu_bytes: int
    addresses: tuple[str, ...] = ()
    is_up: bool = True

    @property
    def id(self) -> str:
        return self.interface

    @property
    def needs(self) -> tuple[Key, ...]:
        return (interface_key(self.trunk),)

    @property
    def flaw(self) -> str:
        try:
            for address in self.addresses:
                ip_interface(address)
        except ValueError as error:
            return str(error)
        wrong = "" if self.tag in _TAGS and self.mtu_bytes in _MTUS else f"tag {self.tag}, MTU {self.mtu_bytes}"
        return flaw_of(self.interface) or flaw_of(self.trunk) or wrong

    def describe(self) -> dict[str, str]:
        shown = {"trunk": self.trunk, "tag": str(self.tag), "mtu": str(self.mtu_bytes)}
        shown |= {"addresses": some(self.addresses)} if self.addresses else {}
        return shown if self.is_up else shown | {"state": "down"}

    def effect(self, after: Resource | None, context: Context) -> str:
        gone = "the interface goes with all its addresses; nothing comes in by this VLAN any more"
        return gone if after is None else ""


class VlanLinkKind(Kind):
    phase = -5  # before the settings of the interface, and all that stands on it
    roles = tuple(Role)
    resource = VlanLink

    @staticmethod
    def desired(view: NodeView) -> Iterable[Wanted]:
        for face in view.node.interfaces if is_asked_for(view) else ():
            if face.trunk is not None and face.tag is not None:
                addresses = tuple(map(str, face.addresses))
                yield VlanLink(face.name, face.trunk, face.tag, face.mtu_bytes, addresses), face.span

    def read(self, wanted: Mapping[Key, Resource], only: Collection[Key] | None = None) -> Reading:
        ours = {held.name: held for held in self.kernel.vlan_links()}
        found, wrong = [], {}
        for held in ours.values():
            link = VlanLink(held.name, held.trunk, held.tag, held.mtu_bytes, held.addresses, held.is_up)
            like = wanted.get(link.key)
            if isinstance(like, VlanLink):  # what somebody else added to it is his
                link = replace(link, addresses=tuple(a for a in like.addresses if a in held.addresses))
                if (link.trunk, link.tag) != (like.trunk, like.tag):  # its settings would go with it, unseen
                    name = link.interface
                    wrong[link.key] = f"{name} is VLAN {link.tag} of {link.trunk}: ip link del {name}"
            found.append(link)
        others = [link for key, link in wanted.items() if isinstance(link, VlanLink) and key.id not in ours]
        if not others:
            return Reading(tuple(found), impossible=wrong)
        links = {link.name: link for link in self.kernel.links()}
        there = [link for link in others if link.interface in links]
        wrong |= {link.key: text for link in there if (text := _wrong(link, links))}
        return Reading((*found, *(link for link in there if link.key not in wrong)), impossible=wrong)

    def write(self, changes: Sequence[Change]) -> list[Outcome]:
        return [self._write(change) for change in changes]

    def _write(self, change: Change) -> Outcome:
        try:
            match change.after:
                case VlanLink() as link:
                    self.kernel.add_vlan_link(
                        objects.VlanLink(link.interface, link.trunk, link.tag, link.mtu_bytes, link.addresses)
                    )
                case None:
                    self.kernel.remove_vlan_link(change.key.id)
        except KernelError as error:
            return error
        return None


def _wrong(wanted: VlanLink, links: Mapping[str, Link]) -> str:
    """What somebody else's interface is instead; empty if it is the wanted VLAN."""
    held, trunk = links[wanted.interface], links.get(wanted.trunk)
    if trunk is not None and (held.trunk, held.tag) == (trunk.index, wanted.tag):
        return ""
    if held.trunk is None:
        return f"{wanted.interface} is there, is no VLAN, and not lbctl's"
    of = next((link.name for link in links.values() if link.index == held.trunk), "another interface")
    return f"{wanted.interface} is there as VLAN {held.tag} of {of}, and not lbctl's"


KIND = VlanLinkKind
