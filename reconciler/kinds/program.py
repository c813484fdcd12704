# SPDX-License-Identifier: Apache-2.0
"""The data plane itself: the program and its maps, loaded and pinned."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import astuple, dataclass, field
from typing import ClassVar

from reconciler import connections
from reconciler.dataplane.description import describe, layout_digest, specs_of
from reconciler.dataplane.program import DECAPSULATE, is_built_of, program_name
from reconciler.dataplane.sizes import memory_bytes
from reconciler.errors import KernelError
from reconciler.kernel.objects import maps_of
from reconciler.kernel.port import Outcome
from reconciler.kinds.base import Kind, Wanted
from reconciler.kinds.interface import THIS_NODE
from reconciler.limits import Sizes
from reconciler.model import Role
from reconciler.resource import Change, Concern, Context, Key, Reading, Resource
from reconciler.view import NodeView


@dataclass(frozen=True, slots=True)
class Program(Resource):
    """`name` holds the digest of source and features, so equal names are equal programs. `features` None: unknown.

    `layout` is the digest of what the rows of its maps look like, empty if nobody wrote that down; the maps have room
    for so many `services` (pairs of a VIP and a port), `endpoints` and `flows`. `is_taking_over`: it was cut off while
    it took over from an earlier one.
    """

    kind: ClassVar[str] = "program"

    name: str
    features: tuple[str, ...] | None = field(default=(), compare=False, repr=False)
    layout: str = ""
    services: int = 0
    endpoints: int = 0
    flows: int = 0
    is_taking_over: bool = False

    @property
    def id(self) -> str:
        return PROGRAM.id

    @property
    def flaw(self) -> str:
        is_known = is_built_of(self.name, self.features or ())
        return "" if is_known else f"{self.name} is no program that this version builds with these features"

    @property
    def needs(self) -> tuple[Key, ...]:
        return (THIS_NODE,)

    def describe(self) -> dict[str, str]:
        known = "not known" if self.features is None else ", ".join(map(_shown, self.features))
        shown = {"build": self.name} | ({"features": known} if known else {}) | {"layout": self.layout or "not known"}
        if self.layout and DECAPSULATE not in (self.features or ()):
            sizes = {"services": self.services, "endpoints": self.endpoints, "flows": self.flows}
            shown |= {name: f"{size:,}" for name, size in sizes.items()}
            most = memory_bytes(self.sizes, self.features or (), os.cpu_count() or 1)
            shown["memory"] = f"up to {most / 1e6:,.0f} MB"
        return shown | ({"takeover": "not finished"} if self.is_taking_over else {})

    @property
    def sizes(self) -> Sizes:
        return Sizes(self.services, self.endpoints, self.flows)

    @property
    def maps(self) -> str:
        return maps_of(self.layout, self.sizes)

    def effect(self, after: Resource | None, context: Context) -> str:
        if not isinstance(after, Program):
            return ""
        if not self.layout:
            return "nobody wrote down what its maps look like: new ones are made, and open connections may break"
        if (self.layout, self.sizes) != (after.layout, after.sizes):
            return "the maps that differ are made anew, with their rows, beside the old ones; open connections stay"
        return ""


def _shown(feature: str) -> str:
    return feature.lower().replace("_", "-")


PROGRAM = Key("program", "data-plane")
NEARLY_FULL_PERCENT = 90


def program_of(view: NodeView) -> Program:
    """The program that a node needs."""
    layout = layout_digest({spec.name: describe(spec) for spec in specs_of(view.features)})
    return Program(program_name(view.features), view.features, layout, *astuple(view.sizes))


class ProgramKind(Kind):
    phase = 10
    roles = (Role.BALANCER, Role.ENDPOINT)
    resource = Program

    @staticmethod
    def desired(view: NodeView) -> Iterable[Wanted]:
        if view.runs_program:
            yield program_of(view), view.node.span

    def read(self, wanted: Mapping[Key, Resource], only: Collection[Key] | None = None) -> Reading:
        loaded = self.kernel.loaded_program()
        if loaded is None:
            return Reading()
        sizes = loaded.sizes
        held = Program(
            loaded.name, loaded.features, loaded.layout, sizes.services, sizes.endpoints, sizes.flows,
            loaded.is_taking_over,
        )  # fmt: skip
        return Reading((held,))

    def concerns(self, wanted: Collection[Resource]) -> Iterable[Concern]:
        loaded = self.kernel.loaded_program() if wanted else None
        room = loaded.sizes.flows if loaded else 0
        for version, mode in connections.modes(self.kernel) if room else ():
            # Most places that are taken are those of open connections, or none are: so look closely only then.
            if connections.used(self.kernel, version, mode) * 100 < room * NEARLY_FULL_PERCENT:
                continue
            if connections.live(self.kernel, version, mode=mode).size * 100 < room * NEARLY_FULL_PERCENT:
                continue
            of = "" if mode == "nat" else f" of {mode}"
            yield Concern(
                PROGRAM, f"the table of connections{of} over IPv{version} is nearly full: it is made for {room:,}",
                f"a greater `capacity: {{flows: {2 * room}}}` of the Node; a full table refuses new connections",
            )  # fmt: skip

    def write(self, changes: Sequence[Change]) -> list[Outcome]:
        return [self._write(change) for change in changes]

    def _write(self, change: Change) -> Outcome:
        try:
            match change.after:
                case Program(name=name, features=features, sizes=sizes):
                    self.kernel.load_program(name, features or (), sizes)
                case None:
                    self.kernel.unload_program()
        except KernelError as error:
            return error
        return None


KIND = ProgramKind
