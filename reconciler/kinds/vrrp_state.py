# SPDX-License-Identifier: Apache-2.0
"""What keepalived adds to its priority: nothing while all works that this balancer announces, so much less that
another one takes over where something doesn't, and so little that it gives the addresses up where they must not be.

A balancer shares its addresses as a whole. So of several services, the one that works best counts, as at one VIP.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar

from reconciler.errors import KernelError
from reconciler.kernel.port import Outcome
from reconciler.kinds.base import Kind, Wanted
from reconciler.kinds.foundation import foundation_of
from reconciler.kinds.loopback import LoopbackVip
from reconciler.kinds.vrrp import STOPPED, VRRP, shared_of
from reconciler.model import Service, text_of
from reconciler.resource import Cause, Causes, Change, Context, Key, Reading, Reason, Resource
from reconciler.safe import some
from reconciler.telling import Form, telling_of
from reconciler.view import Facts

_LAST = STOPPED + 1
"""Every balancer without a fault goes first."""
_WEIGHTS = {Form.ANNOUNCED: 0, Form.DEGRADED: _LAST}


@dataclass(frozen=True, slots=True)
class VrrpState(Resource):
    """`vips` are all VIPs of the node. `why`: what speaks against them, as things are."""

    kind: ClassVar[str] = "vrrp-state"
    may_need: ClassVar[frozenset[str] | None] = frozenset(("foundation", "loopback", "vrrp"))
    announces: ClassVar[bool] = True

    weight: int
    vips: tuple[Key, ...] = field(default=(), compare=False, repr=False)
    foundations: tuple[Key, ...] = field(default=(), compare=False, repr=False)
    why: tuple[str, ...] = field(default=(), compare=False, repr=False)
    is_drained: bool = field(default=False, compare=False, repr=False)

    @property
    def id(self) -> str:
        return "of this node"

    @property
    def needs(self) -> tuple[Key, ...]:
        return () if self.withdraws else (VRRP, *self.foundations)

    @property
    def needs_any(self) -> tuple[Key, ...]:
        return () if self.withdraws else self.vips

    @property
    def withdraws(self) -> bool:
        return self.weight <= STOPPED

    @property
    def flaw(self) -> str:
        return "" if STOPPED <= self.weight <= 0 else f"weight {self.weight}"

    def describe(self) -> dict[str, str]:
        named = {0: "as declared", _LAST: "after all others", STOPPED: "none: the addresses are given up"}
        return {"priority": named.get(self.weight, f"{self.weight:+d}")}

    def caused(self, before: Resource, causes: Causes) -> Cause | None:
        if not self.why:
            return None
        return Cause(Reason.DRAIN if self.is_drained else Reason.HEALTH, some(self.why, "; "))

    def effect(self, after: Resource | None, context: Context) -> str:
        worse = after is None or (isinstance(after, VrrpState) and after.weight < self.weight)
        return "another balancer takes the shared addresses, if there is one" if worse else ""


class VrrpStateKind(Kind):
    phase = 81  # last of all, and first to go
    resource = VrrpState

    @staticmethod
    def of_service(service: Service, facts: Facts) -> Iterable[Wanted]:
        if not shared_of(facts.node):
            return
        telling = telling_of(service)
        weight = _WEIGHTS.get(telling.form, STOPPED)
        vips = tuple(Key(LoopbackVip.kind, text_of(vip)) for vip in service.vips)
        foundations = tuple(dict.fromkeys(foundation_of(vip) for vip in service.vips))
        yield VrrpState(weight, vips, foundations, telling.why, telling.is_drained), service.span

    @staticmethod
    def joined(claims: Sequence[Wanted]) -> Wanted:
        found = [row for row, _ in claims if isinstance(row, VrrpState)]
        best = max(found, key=lambda row: row.weight)
        vips = tuple(dict.fromkeys(vip for row in found for vip in row.vips))
        foundations = tuple(dict.fromkeys(key for row in found for key in row.foundations))
        return replace(best, vips=vips, foundations=foundations), claims[0][1]

    def read(self, wanted: Mapping[Key, Resource], only: Collection[Key] | None = None) -> Reading:
        weight = self.kernel.vrrp_weight()
        # A balancer that is to have no shared addresses, and one that knows of none, look alike.
        if weight is None or (weight == STOPPED and not wanted):
            return Reading()
        return Reading((VrrpState(weight),))

    def write(self, changes: Sequence[Change]) -> list[Outcome]:
        after = changes[-1].after
        try:
            self.kernel.set_vrrp_weight(after.weight if isinstance(after, VrrpState) else STOPPED)
        except KernelError as error:
            return [error] * len(changes)
        return [None] * len(changes)


KIND = VrrpStateKind
