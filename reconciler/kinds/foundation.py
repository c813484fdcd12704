# SPDX-License-Identifier: Apache-2.0
"""The common needs of all VIPs of a node: its program on every interface, their rows, the settings of the kernel.

A foundation is no object of the kernel. It is present when all its needs are, and only then a VIP is announced.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from reconciler.errors import KernelError
from reconciler.kernel.port import Outcome
from reconciler.kinds.attachment import AttachmentKind
from reconciler.kinds.base import Kind, Wanted
from reconciler.kinds.gateway import GatewayKind
from reconciler.kinds.interface import THIS_NODE
from reconciler.kinds.program import ProgramKind
from reconciler.kinds.sysctl import SysctlKind
from reconciler.kinds.tunnel import TunnelKind
from reconciler.kinds.unpacked import UnpackedKind
from reconciler.kinds.vlan import VlanKind
from reconciler.model import Address, Role
from reconciler.resource import Change, Key, Reading, Resource
from reconciler.view import NodeView

_OF_IPV6 = "net/ipv6/"
_PARTS: tuple[type[Kind], ...] = (
    ProgramKind, AttachmentKind, VlanKind, GatewayKind, SysctlKind, TunnelKind, UnpackedKind,
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Foundation(Resource):
    """`family`: IPv4, or IPv6, for which the kernel needs more settings."""

    kind: ClassVar[str] = "foundation"
    is_given: ClassVar[bool] = True

    family: str
    parts: tuple[Key, ...] = field(default=(), compare=False, repr=False)

    @property
    def id(self) -> str:
        return self.family

    @property
    def needs(self) -> tuple[Key, ...]:
        return self.parts or (THIS_NODE,)

    @property
    def flaw(self) -> str:
        stands = self.family in ("IPv4", "IPv6") and all(part.kind != self.kind for part in self.parts)
        return "" if stands else "nothing can stand on that"

    def describe(self) -> dict[str, str]:
        return {}


def foundation_of(address: Address) -> Key:
    return Foundation(f"IPv{address.version}").key


class FoundationKind(Kind):
    phase = 65
    roles = (Role.BALANCER, Role.ENDPOINT)
    resource = Foundation

    @staticmethod
    def desired(view: NodeView) -> Iterable[Wanted]:
        if not view.services:
            return
        kinds = [kind for kind in _PARTS if view.node.role in kind.roles]
        parts = tuple(resource.key for kind in kinds for resource, _ in kind.desired(view))
        yield Foundation("IPv4", tuple(key for key in parts if not key.id.startswith(_OF_IPV6))), view.node.span
        if view.has_ipv6:
            yield Foundation("IPv6", parts), view.node.span

    def read(self, wanted: Mapping[Key, Resource], only: Collection[Key] | None = None) -> Reading:
        return Reading()

    def write(self, changes: Sequence[Change]) -> list[Outcome]:
        return [KernelError(f"lbctl doesn't write {change.key}") for change in changes]


KIND = FoundationKind
