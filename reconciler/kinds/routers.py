# SPDX-License-Identifier: Apache-2.0
"""Routers that the kernel keeps fresh: the next hops of the node's routes.

Replies of NAT go to clients by way of routers, and tunnels to endpoints in other networks. No manifest names these
routers: the routes are the kernel's, and a routing daemon may change them at any time. So one resource stands for all
of them; it reads as not fresh if the kernel keeps one of them not.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from reconciler.kernel.objects import Neighbour
from reconciler.kernel.port import Kernel, Outcome
from reconciler.kinds.base import Kind, Wanted
from reconciler.kinds.interface import THIS_NODE
from reconciler.resource import Change, Key, Reading, Resource
from reconciler.safe import some
from reconciler.view import NodeView

_FRESH = "fresh"


@dataclass(frozen=True, slots=True)
class Routers(Resource):
    """`kept`: fresh, or the names of the routers that are not."""

    kind: ClassVar[str] = "routers"

    kept: str = _FRESH

    @property
    def id(self) -> str:
        return "all"

    @property
    def needs(self) -> tuple[Key, ...]:
        return (THIS_NODE,)

    @property
    def flaw(self) -> str:
        return "" if self.kept == _FRESH else f"kept {self.kept}"


class RoutersKind(Kind):
    phase = 26  # beside other neighbours
    resource = Routers

    @staticmethod
    def desired(view: NodeView) -> Iterable[Wanted]:
        if view.services:
            yield Routers(), view.node.span

    def read(self, wanted: Mapping[Key, Resource], only: Collection[Key] | None = None) -> Reading:
        if not self.kernel.keeps_neighbours():
            return Reading((Routers(),) if wanted else ())
        kept, missing = _routers(self.kernel)
        if missing and kept:
            names = some([f"{router.address} {router.interface}" for router in missing])
            return Reading((Routers(f"all but {names}"),))
        return Reading((Routers(),) if kept or (wanted and not missing) else ())

    def write(self, changes: Sequence[Change]) -> list[Outcome]:
        kept, missing = _routers(self.kernel)
        keep = changes[-1].after is not None
        outcomes = self.kernel.keep_neighbours(missing) if keep else self.kernel.forget_neighbours(kept)
        return [next(filter(None, outcomes), None)] * len(changes)


def _routers(kernel: Kernel) -> tuple[list[Neighbour], list[Neighbour]]:
    """The routers that lbctl has the kernel keep, and those that nobody does."""
    routers = kernel.next_hops()
    ours, others = kernel.neighbours()
    fresh = {neighbour for neighbour in ours if neighbour.is_lasting}
    return (
        [router for router in routers if router in ours],
        [router for router in routers if router not in fresh and router not in others],
    )


KIND = RoutersKind
