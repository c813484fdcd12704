# SPDX-License-Identifier: Apache-2.0
"""The data plane itself: the program and its maps, loaded and pinned."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from reconciler.dataplane.program import is_built_of, program_name
from reconciler.errors import KernelError
from reconciler.kernel.port import Outcome
from reconciler.kinds.base import Kind, Wanted
from reconciler.kinds.interface import THIS_NODE
from reconciler.model import Role
from reconciler.resource import Change, Key, Reading, Resource
from reconciler.view import NodeView


@dataclass(frozen=True, slots=True)
class Program(Resource):
    """`name` holds the digest of source and features, so equal names are equal programs. `features` None: unknown."""

    kind: ClassVar[str] = "program"

    name: str
    features: tuple[str, ...] | None = field(default=(), compare=False)

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
        return {"build": self.name} | ({"features": known} if known else {})


def _shown(feature: str) -> str:
    return feature.lower().replace("_", "-")


PROGRAM = Key("program", "data-plane")
INCOMPLETE = "incomplete: some pins are missing"
"""The name of a program of which only some pins exist: loading or unloading was cut off, or somebody removed some."""


class ProgramKind(Kind):
    phase = 10
    roles = (Role.BALANCER, Role.ENDPOINT)
    resource = Program

    @staticmethod
    def desired(view: NodeView) -> Iterable[Wanted]:
        if view.runs_program:
            yield Program(program_name(view.features), view.features), view.node.span

    def read(self, wanted: Mapping[Key, Resource], only: Collection[Key] | None = None) -> Reading:
        if not self.kernel.is_whole():
            return Reading((Program(INCOMPLETE),))
        loaded = self.kernel.loaded_program()
        return Reading((Program(loaded.name, loaded.features),) if loaded else ())

    def write(self, changes: Sequence[Change]) -> list[Outcome]:
        return [self._write(change) for change in changes]

    def _write(self, change: Change) -> Outcome:
        try:
            match change.after:
                case Program(name=name, features=features):
                    self.kernel.load_program(name, features or ())
                case None:
                    self.kernel.unload_program()
        except KernelError as error:
            return error
        return None


KIND = ProgramKind
