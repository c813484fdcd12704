# SPDX-License-Identifier: Apache-2.0
"""VRRP where there is no BGP: balancers share addresses, and the one that works best has them (RFC 9568).

Routers have a static route to the VIPs by a shared address; endpoints of mode nat have another one as their gateway.
keepalived does that; here is its configuration, line by line. What it adds to its priority says `vrrp_state`.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from reconciler.errors import KernelError
from reconciler.kernel.keepalived import PLACE
from reconciler.kernel.port import Outcome
from reconciler.kinds.base import Kind, Wanted
from reconciler.kinds.lines import Lines
from reconciler.model import Interface, InterfaceAddress, Node
from reconciler.resource import Change, Concern, Context, Key, Reading, Resource
from reconciler.view import NodeView

STOPPED = -254
"""Added to a priority, it makes keepalived give up all shared addresses."""

_ASKED = re.compile(
    rf'global_defs {{|router_id [a-z0-9-]+|track_file lbctl {{|file "{re.escape(PLACE)}"|weight 1|init_file {STOPPED}|'
    r"vrrp_instance lbctl {|state BACKUP|interface [^\s{}\"!#]+|virtual_router_id \d+|priority \d+|advert_int 1|"
    r"virtual_ipaddress(_excluded)? {|[0-9a-f.:]+/\d+ dev [^\s{}\"!#]+|track_file {|lbctl|}"
)
"""The lines that manifests can ask for: others could name programs, which root would run."""


@dataclass(frozen=True, slots=True)
class VrrpConfiguration(Lines):
    """The lines are without blanks at their beginnings."""

    kind: ClassVar[str] = "vrrp"
    asked: ClassVar[re.Pattern[str]] = _ASKED

    @property
    def id(self) -> str:
        return "keepalived"

    def describe(self) -> dict[str, str]:
        shown = (line for line in self.lines if " dev " in line or line.startswith(("virtual_router_id", "priority")))
        return {
            line.partition(" ")[0].replace("virtual_router_id", "id"): line.partition(" ")[2] for line in shown
        }

    def effect(self, after: Resource | None, context: Context) -> str:
        return "another balancer takes the shared addresses, if there is one" if after is None else ""


VRRP = VrrpConfiguration(()).key


class VrrpKind(Kind):
    phase = 75
    resource = VrrpConfiguration

    @staticmethod
    def desired(view: NodeView) -> Iterable[Wanted]:
        node = view.node
        if shared := shared_of(node):
            yield VrrpConfiguration(tuple(_lines(node, shared))), node.places.get("announce", node.span)

    def read(self, wanted: Mapping[Key, Resource], only: Collection[Key] | None = None) -> Reading:
        text, other = self.kernel.vrrp_configuration()
        if other and not self.kernel.adopts:
            return Reading(foreign=dict.fromkeys(wanted, other))
        return Reading() if text is None else Reading((VrrpConfiguration(_parsed(text)),))

    def concerns(self, wanted: Collection[Resource]) -> Iterable[Concern]:
        if wanted and not self.kernel.vrrp_runs():
            hint = "apt install keepalived; systemctl enable --now keepalived"
            yield Concern(VRRP, "no keepalived runs here, so this balancer never has the shared addresses", hint)

    def write(self, changes: Sequence[Change]) -> list[Outcome]:
        return [self._write(change) for change in changes]

    def _write(self, change: Change) -> Outcome:
        lines = change.after.lines if isinstance(change.after, VrrpConfiguration) else None
        try:
            self.kernel.load_vrrp(None if lines is None else "".join(f"{line}\n" for line in lines))
        except KernelError as error:
            return error
        return None


def shared_of(node: Node) -> Sequence[tuple[InterfaceAddress, Interface]]:
    """The shared addresses of a balancer, each with the interface that is in its network."""
    vrrp = node.announce.vrrp if node.announce else None
    networks = [(own.network, face) for face in node.interfaces for own in face.addresses]
    shared = vrrp.addresses if vrrp else ()
    found = ((address, next((face for net, face in networks if address.ip in net), None)) for address in shared)
    return [(address, face) for address, face in found if face]


def _lines(node: Node, placed: Sequence[tuple[InterfaceAddress, Interface]]) -> Iterator[str]:
    """VRRP speaks one family in an instance: addresses of the other one go along with those of the first."""
    assert node.announce and node.announce.vrrp
    vrrp, version, lead = node.announce.vrrp, placed[0][0].version, placed[0][1]
    yield from ("global_defs {", f"router_id {node.name}", "}")
    # Until lbctl says that this balancer works, it must not have the addresses: after a boot there is no such file.
    yield from ("track_file lbctl {", f'file "{PLACE}"', "weight 1", f"init_file {STOPPED}", "}")
    yield from ("vrrp_instance lbctl {", "state BACKUP", f"interface {lead.name}", f"virtual_router_id {vrrp.id}")
    yield from (f"priority {vrrp.priority}", "advert_int 1", "virtual_ipaddress {")
    yield from (f"{address} dev {face.name}" for address, face in placed if address.version == version)
    yield "}"
    if others := [f"{address} dev {face.name}" for address, face in placed if address.version != version]:
        yield from ("virtual_ipaddress_excluded {", *others, "}")
    yield from ("track_file {", "lbctl", "}", "}")


def _parsed(text: str) -> tuple[str, ...]:
    return tuple(line.strip() for line in text.splitlines() if line.strip())


KIND = VrrpKind
