# SPDX-License-Identifier: Apache-2.0
"""Configurations of other daemons, line by line: a saved plan must not put in what no manifest can ask for."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import ClassVar

from reconciler.kinds.interface import THIS_NODE
from reconciler.resource import Key, Resource


@dataclass(frozen=True, slots=True)
class Lines(Resource):
    """The part of a daemon's configuration that is lbctl's. `asked`: the lines that manifests can ask for."""

    may_need: ClassVar[frozenset[str] | None] = frozenset(("interface",))
    asked: ClassVar[re.Pattern[str]]

    lines: tuple[str, ...]

    @property
    def needs(self) -> tuple[Key, ...]:
        return (THIS_NODE,)

    @property
    def flaw(self) -> str:
        wrong = next((line for line in self.lines if not self.asked.fullmatch(line)), None)
        return "" if wrong is None else f"not a line of ours: {wrong}"
