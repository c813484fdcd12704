# SPDX-License-Identifier: Apache-2.0
"""The BGP part of FRR's configuration: what manifests ask for, line by line, against what FRR runs.

Ours are the instance of BGP, route maps and lists that are named `lbctl-…`, and the import of tables (which an earlier
version asked for). They are ours if there is such a route map; an instance of BGP without one is somebody else's and
blocks, unless it is to be taken over. All other parts of the configuration are left alone, also instances of VRFs.
Lines that are wanted go in before others go out, and nothing is reset for that.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from reconciler.errors import KernelError
from reconciler.kernel.port import Kernel, Outcome
from reconciler.kinds.base import Kind, Wanted
from reconciler.kinds.lines import Lines
from reconciler.model import Role
from reconciler.resource import Change, Context, Key, Reading, Resource
from reconciler.view import NodeView

Path = tuple[str, ...]
"""A line of a configuration below the lines that it belongs to."""

_OURS = re.compile(
    r"router bgp (?!.* (?:vrf|view) )|route-map lbctl-|bgp community-list standard lbctl-|ip import-table "
)
_ASKED = re.compile(
    r"(?:router bgp \d+|route-map lbctl-[a-z]+6? (?:permit|deny) \d+|bgp community-list standard lbctl-[ a-z0-9-]+)"
    r"(?: / (?:bgp|neighbor|address-family|redistribute kernel|maximum-paths|match|set) [ .:a-z0-9-]+)*"
)
"""The lines that manifests can ask for."""
_MARK = "route-map lbctl-"
_BETWEEN = " / "
_SLOTS = (
    r"(neighbor \S+ (?:timers connect|timers|remote-as))\b", r"(neighbor \S+ route-map) \S+ (in|out)",
    r"(bgp router-id|bgp graceful-restart restart-time|maximum-paths|redistribute kernel)\b",
    r"(match \S+(?: address prefix-list)?|set \S+)\b",
)  # fmt: skip
_ORDER = ("bgp community-list", "route-map", "ip import-table", "router bgp")


@dataclass(frozen=True, slots=True)
class Routing(Lines):
    """The lines are sorted, each with those above it."""

    kind: ClassVar[str] = "routing"
    asked: ClassVar[re.Pattern[str]] = _ASKED

    @property
    def id(self) -> str:
        return "frr"

    def describe(self) -> dict[str, str]:
        return dict.fromkeys(self.lines, "there")

    def effect(self, after: Resource | None, context: Context) -> str:
        if after is None:
            return "routers hear of no VIP from this node any more"
        gone = set(self.lines) - set(after.lines if isinstance(after, Routing) else ())
        resets = any(" remote-as " in line or " bgp graceful" in line for line in gone)
        return "sessions of BGP begin anew, and the other balancers serve meanwhile" if resets else ""


ROUTING = Routing(()).key


class RoutingKind(Kind):
    phase = 75
    roles = (Role.BALANCER, Role.ROUTER)
    resource = Routing

    @staticmethod
    def desired(view: NodeView) -> Iterable[Wanted]:
        if view.node.bgp is None:
            return
        from reconciler.config.bgp import rendered

        yield Routing(_lines(parsed(rendered(view)))), view.node.places.get("bgp", view.node.span)

    def read(self, wanted: Mapping[Key, Resource], only: Collection[Key] | None = None) -> Reading:
        text, why = configuration(self.kernel)
        if text is None:
            return Reading(impossible=dict.fromkeys(wanted, why))
        paths = [path for path in parsed(text) if _OURS.match(path[0])]
        others = sorted({path[0] for path in paths if path[0].startswith("router bgp")})
        # What nobody wants anything in the place of is not taken over: it would only be removed.
        if any(path[0].startswith(_MARK) for path in paths) or (others and wanted and self.kernel.adopts):
            return Reading((Routing(_lines(paths)),))
        return Reading(foreign={ROUTING: f"`{others[0]}` in FRR"} if others else {})

    def write(self, changes: Sequence[Change]) -> list[Outcome]:
        return [self._write(change) for change in changes]

    def _write(self, change: Change) -> Outcome:
        try:
            text = self.kernel.routing_configuration()
            if text is None:
                return KernelError("FRR does not run here") if change.after else None
            held = {path for path in parsed(text) if _OURS.match(path[0])}
            wanted = {tuple(line.split(_BETWEEN)) for line in change.after.lines} if isinstance(
                change.after, Routing) else set()  # fmt: skip
            if lines := list(edits(held, wanted)):
                self.kernel.load_routing(lines)
        except KernelError as error:
            return error
        return None


def configuration(kernel: Kernel) -> tuple[str | None, str]:
    """What FRR runs with; None, and why, if it can't be asked: that must not keep the rest of a node from being read,
    least of all where nobody wants FRR to be configured."""
    try:
        text = kernel.routing_configuration()
    except KernelError as error:
        return None, f"{error.message}: {error.hint}" if error.hint else error.message
    why = "no daemon bgpd of FRR runs here: apt install frr, and bgpd=yes (bfdd=yes) in /etc/frr/daemons"
    return text, "" if text is not None else why


def parsed(text: str) -> list[Path]:
    """The lines of a configuration, each below those that it belongs to, by its blanks."""
    found: list[Path] = []
    above: list[tuple[int, str]] = []
    for line in text.splitlines():
        word = line.strip()
        if not word or word == "!" or word.startswith("exit") or word == "end":
            continue
        depth = len(line) - len(line.lstrip())
        above = [(level, name) for level, name in above if level < depth]
        found.append((*(name for _, name in above), word))
        above.append((depth, word))
    return found


def edits(held: Collection[Path], wanted: Collection[Path]) -> Iterator[str]:
    """What to type so that `wanted` takes the place of `held`. A line that takes the place of another one of its sort
    needs no removal."""
    numbers = {path[0] for path in wanted if path[0].startswith("router bgp")}
    # One machine has one instance of BGP: another number means another instance.
    for other in sorted({path[0] for path in held if path[0].startswith("router bgp")} - numbers if numbers else ()):
        yield f"no {other}"
        held = [path for path in held if path[0] != other]
    for path in sorted(set(wanted) - set(held), key=_rank):
        yield from _typed(path, path[-1])
    slots = {(path[:-1], slot) for path in wanted if (slot := _slot(path[-1]))}
    gone = [path for path in set(held) - set(wanted) if (path[:-1], _slot(path[-1])) not in slots]
    roots = {path for path in gone if len(path) == 1}
    neighbours = {path[-1].split()[1] for path in gone if " remote-as " in path[-1]}
    for path in sorted(gone, key=_rank, reverse=True):
        if len(path) > 1 and path[:1] in roots:
            continue  # it goes with the line above
        words = path[-1].split()
        if words[0] == "neighbor" and words[1] in neighbours:
            if words[2] == "remote-as":
                yield from _typed(path, f"no neighbor {words[1]}")
            continue
        if not path[-1].startswith("address-family"):
            yield from _typed(path, f"no {path[-1]}")


def _typed(path: Path, line: str) -> Iterator[str]:
    yield from path[:-1]
    yield line
    if line.startswith("address-family"):
        yield "exit-address-family"
    if line.startswith(("router ", "route-map ")):
        yield "exit"
    for above in reversed(path[:-1]):
        yield "exit-address-family" if above.startswith("address-family") else "exit"


def _rank(path: Path) -> tuple[object, ...]:
    first = next(place for place, word in enumerate(_ORDER) if path[0].startswith(word))
    line = path[-1]
    sort = 0 if line.startswith("bgp ") else 1 if " remote-as " in line else 2
    return first, path[0] if len(path) > 1 or first == 1 else "", len(path), sort, path


def _slot(line: str) -> str:
    """What a line is the value of; empty if lines like it may stand side by side."""
    for pattern in _SLOTS:
        if found := re.match(pattern, line):
            return " ".join(found.groups())
    return ""


def _lines(paths: Iterable[Path]) -> tuple[str, ...]:
    return tuple(sorted(_BETWEEN.join(path) for path in paths))


KIND = RoutingKind
