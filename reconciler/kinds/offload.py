# SPDX-License-Identifier: Apache-2.0
"""Offloads of a balancer's interfaces that have to be off, since they change packets before a program sees them. They
are on again once nobody needs them off.

Programs in generic mode may see packets that were merged, and are longer than the next network carries. The kernel
merges none at the interface itself (netif_elide_gro in include/linux/netdevice.h), but does so at the interfaces below
it: at the trunk of a VLAN, at the ports of a bridge or bond. It ends LRO and GRO_HW when such a program comes
(generic_xdp_install in net/core/dev.c), though not for good, and keeps no note of them.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from reconciler.errors import KernelError
from reconciler.kernel.objects import GRO, GRO_HW, LRO, RX_VLAN, Link, OffloadState
from reconciler.kernel.port import Outcome
from reconciler.kinds.base import Kind, Wanted
from reconciler.kinds.indexes import flaw_of
from reconciler.kinds.interface import interface_key
from reconciler.model import XdpMode
from reconciler.resource import Change, Concern, Context, Key, Reading, Resource
from reconciler.safe import some
from reconciler.view import NodeView

MERGING = (GRO, LRO, GRO_HW)
ON, OFF = "on", "off"
GONE = "gone"
"""The state of an offload that lbctl ended, once its interface is gone."""


@dataclass(frozen=True, slots=True)
class Offload(Resource):
    """`name` is that of `ethtool -k`. `state` is on or off; it may be on at interfaces below."""

    kind: ClassVar[str] = "offload"
    is_restored: ClassVar[bool] = True
    may_need: ClassVar[frozenset[str] | None] = frozenset(("interface",))

    interface: str
    name: str
    state: str = OFF

    @property
    def id(self) -> str:
        return f"{self.interface} {self.name}"

    @property
    def needs(self) -> tuple[Key, ...]:
        return (interface_key(self.interface),)

    @property
    def flaw(self) -> str:
        is_asked = self.name in (*MERGING, RX_VLAN) and self.state == OFF
        return flaw_of(self.interface) or ("" if is_asked else f"{self.name!r} {self.state}")

    def describe(self) -> dict[str, str]:
        return {"state": self.state}

    def former(self) -> dict[str, str]:
        return {"state": GONE if self.state == GONE else ON}

    def effect(self, after: Resource | None, context: Context) -> str:
        is_of_card = self.name != GRO and self.state != GONE
        return "some drivers start the interface anew for this: packets may be lost for a moment" if is_of_card else ""


def offload_key(interface: str, name: str) -> Key:
    return Offload(interface, name).key


def merging_keys(interface: str) -> tuple[Key, ...]:
    """What has to be off before a program that sends comes to an interface in generic mode."""
    return tuple(offload_key(interface, name) for name in MERGING)


class OffloadKind(Kind):
    phase = 2  # before rows of VLANs, and programs
    resource = Offload

    @staticmethod
    def desired(view: NodeView) -> Iterable[Wanted]:
        for face in view.node.interfaces if view.runs_program else ():
            if face.trunk is None and view.xdp_mode(face) is XdpMode.GENERIC:
                yield from ((Offload(face.name, name), face.span) for name in MERGING)
        trunks = {face.trunk: face.span for face in reversed(view.faces) if face.trunk}
        yield from ((Offload(trunk, RX_VLAN), span) for trunk, span in trunks.items())

    def read(self, wanted: Mapping[Key, Resource], only: Collection[Key] | None = None) -> Reading:
        asked = {(r.interface, r.name) for r in wanted.values() if isinstance(r, Offload)}
        former = self.kernel.former_offloads()
        if not asked and not former:
            return Reading()
        links = self.kernel.links()
        places = {(interface, name): _places(interface, name, links) for interface, name in sorted(asked)}
        states = self.kernel.offloads(sorted({i for i, _ in asked | former}.union(*places.values())))
        found, impossible = [], {}
        for (interface, name), names in places.items():
            if (interface, name) in states:  # of an interface that is missing, that alone is told
                on = [place for place in names if (held := states.get((place, name))) and _has_to_end(name, held)]
                state = OFF if not on else ON if on == [interface] else f"on, by {some(on)}"
                found.append(Offload(interface, name, state))
                if name == RX_VLAN and on and not states[interface, name].can_end:
                    impossible[offload_key(interface, name)] = f"{_taking_off(interface)}: {_OTHER_TRUNK}"
        needed = asked | {(place, name) for (_, name), names in places.items() for place in names}
        for place, name in sorted(former - needed):
            left = states.get((place, name))
            found.append(Offload(place, name, GONE if left is None else ON if _has_to_end(name, left) else OFF))
        return Reading(tuple(found), impossible=impossible)

    def concerns(self, wanted: Collection[Resource]) -> Iterable[Concern]:
        """Drivers that merge packets whatever anybody asks for."""
        asked = [r for r in wanted if isinstance(r, Offload) and r.name in MERGING]
        links = self.kernel.links() if asked else []
        places = {offload: _places(offload.interface, offload.name, links) for offload in asked}
        states = self.kernel.offloads(sorted(set().union(*places.values()))) if asked else {}
        for offload, names in places.items():
            for place in names:
                state = states.get((place, offload.name))
                if state and state.is_on and not state.can_end:
                    yield Concern(
                        offload.key,
                        f"{place} merges packets ({offload.name}) before the generic program of {offload.interface} "
                        "sees them, and its driver can't do otherwise: uploads to VIPs stall, since what the program "
                        "sees is longer than the next network carries",
                        "another interface, or a driver for native mode",
                    )

    def write(self, changes: Sequence[Change]) -> list[Outcome]:
        links = self.kernel.links()
        return [self._write(change, links) for change in changes]

    def _write(self, change: Change, links: Collection[Link]) -> Outcome:
        interface, _, name = change.key.id.partition(" ")
        places = _places(interface, name, links)
        try:
            match change.after:
                case Offload(state=state) if state == OFF:
                    for place in places:
                        self._end(place, name)
                case Offload():  # an undo
                    for place in places:
                        self._restore(place, name)
                case None:
                    self._restore(interface, name)
        except KernelError as error:
            return error
        return None

    def _end(self, place: str, name: str) -> None:
        state = self._state(place, name)
        if state is None:
            raise KernelError(f"there is no interface {place}")
        if not _has_to_end(name, state):
            return
        is_known = (place, name) in self.kernel.former_offloads()
        if not is_known:
            self.kernel.remember_offload(place, name)  # before the write: a crash between them loses nothing
        try:
            self.kernel.write_offload(place, name, False)
            if (left := self._state(place, name)) and _has_to_end(name, left):
                raise KernelError(_taking_off(place), hint=_OTHER_TRUNK)
        except KernelError:
            if not is_known:
                self._restore(place, name)
            raise

    def _restore(self, place: str, name: str) -> None:
        if (place, name) not in self.kernel.former_offloads():
            return
        state = self._state(place, name)
        if state and state.is_free and not state.is_asked_for:  # the interface may be gone, or another one by now
            self.kernel.write_offload(place, name, True)
        self.kernel.forget_offload(place, name)

    def _state(self, interface: str, name: str) -> OffloadState | None:
        return self.kernel.offloads([interface]).get((interface, name))


def _places(interface: str, name: str, links: Collection[Link]) -> list[str]:
    """Where an offload changes packets that come in by an interface, before a program there sees them."""
    if name == RX_VLAN:
        return [interface]
    return _below(interface, links) if name == GRO else [interface, *_below(interface, links)]


def _below(interface: str, links: Collection[Link]) -> list[str]:
    """The trunk of a VLAN, the ports of a bridge or a bond, and what is below those."""
    found: list[str] = []
    left = [link for link in links if link.name == interface]
    while left:
        upper = left.pop()
        lower = [link for link in links if link.index == upper.trunk or link.master == upper.index]
        left += (fresh := [link for link in lower if link.name not in (*found, interface)])
        found += (link.name for link in fresh)
    return sorted(found)


def _has_to_end(name: str, state: OffloadState) -> bool:
    """Whether an offload is in the way. A driver that merges packets whatever anybody asks for stops nothing: only
    large packets are lost. `concerns` tells of it."""
    return state.is_on and (state.can_end or name == RX_VLAN)


def _taking_off(trunk: str) -> str:
    return f"{trunk} takes the tags off before XDP sees them ({RX_VLAN}), and its driver can't do otherwise"


_OTHER_TRUNK = "put these VLANs on another interface, or use another driver"

KIND = OffloadKind
