# SPDX-License-Identifier: Apache-2.0
"""A routing daemon in memory: it keeps the lines that are typed into it, in FRR's order of contexts."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

_LISTS = ("ip prefix-list", "ipv6 prefix-list")
_CONTEXT = re.compile(r"router bgp |route-map |address-family ")
_VALUE = re.compile(
    r"(neighbor \S+ (?:timers connect|timers(?= \d)|remote-as)|bgp router-id|maximum-paths|ip import-table|set \S+|"
    r"match (?:community|metric|ipv?6? address))"
)
"""Lines of which a context has one."""


@dataclass
class FakeDaemon:
    """`paths` are lines below those that they belong to."""

    paths: dict[tuple[str, ...], None] = field(default_factory=dict)
    refuses: str = ""
    """Lines that contain this are ignored."""

    is_closed: bool = False
    """Whether nobody may ask."""

    def type(self, lines: Sequence[str]) -> None:
        above: tuple[str, ...] = ()
        for typed in lines:
            line = typed.strip()
            if line in ("exit", "exit-address-family"):
                above = above[:-1]
            elif self.refuses and self.refuses in line:
                continue
            elif line.startswith("no "):
                self._remove((*above, line.removeprefix("no ")))
            else:
                self._add((*above, line))
                above = (*above, line) if _CONTEXT.match(line) else above

    def _add(self, path: tuple[str, ...]) -> None:
        if path[-1].startswith(_LISTS):
            before, _, after = path[-1].partition(" permit ")
            path = (f"{before} seq {5 * (len(self.paths) + 1)} permit {after}",)
            if any(p[-1].startswith(before) and p[-1].endswith(f" permit {after}") for p in self.paths):
                return
        if slot := _slot(path[-1]):
            for other in [p for p in self.paths if p[:-1] == path[:-1] and _slot(p[-1]) == slot]:
                del self.paths[other]
        self.paths[path] = None

    def _remove(self, path: tuple[str, ...]) -> None:
        line = path[-1]
        if line.startswith(_LISTS):
            before, _, after = line.partition(" permit ")
            gone = [p for p in self.paths if p[-1].startswith(before) and p[-1].endswith(f" permit {after}")]
        elif re.fullmatch(r"neighbor \S+", line):
            gone = [p for p in self.paths if p[:1] == path[:1] and f"{p[-1]} ".startswith(f"{line} ")]
        else:
            gone = [p for p in self.paths if p[: len(path)] == path]
        for found in gone:
            del self.paths[found]

    def text(self) -> str:
        lines = ["Building configuration...", "", "Current configuration:", "!", "frr version 8.4.4"]
        lines += [" " * (len(path) - 1) + path[-1] for path in sorted(self.paths)]
        return "\n".join([*lines, "end"])


def _slot(line: str) -> str:
    found = _VALUE.match(line)
    return found[0] if found else ""
