# SPDX-License-Identifier: Apache-2.0
"""The program on an interface. An interface that runs somebody else's program is left alone."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from reconciler.dataplane.program import is_ours
from reconciler.errors import KernelError
from reconciler.kernel.objects import PROBER_DEVICE, AttachedProgram
from reconciler.kernel.port import Outcome
from reconciler.kinds.base import Kind, Wanted
from reconciler.kinds.indexes import flaw_of
from reconciler.kinds.interface import interface_key
from reconciler.kinds.interface_concerns import about_links, about_veths
from reconciler.kinds.mode_switch import switch_mode
from reconciler.kinds.offload import merging_keys
from reconciler.kinds.prober import PROBER_KEY
from reconciler.kinds.program import PROGRAM, program_of
from reconciler.model import Role, XdpMode
from reconciler.resource import Change, Concern, Context, Key, Live, Reading, Resource
from reconciler.view import NodeView

LOADED = "loaded"
EARLIER = "loaded earlier"
ASTRAY = "with maps that nobody writes any more"


@dataclass(frozen=True, slots=True)
class Attachment(Resource):
    """`mode` is native or generic; `program` is the name of the program, its digest included.

    `sends` is whether the program sends packets itself; the program of an endpoint never does. Several programs may
    have one name: `load` says whether this is the loaded one, whose maps lbctl works with, or an earlier one.
    `maps` is the layout and the sizes of its maps.
    """

    kind: ClassVar[str] = "xdp"

    interface: str
    mode: str
    program: str
    sends: bool = field(default=True, compare=False, repr=False)
    load: str = LOADED
    maps: str = ""

    @property
    def id(self) -> str:
        return self.interface

    @property
    def needs(self) -> tuple[Key, ...]:
        if self.interface == PROBER_DEVICE:
            return (PROGRAM, PROBER_KEY)
        merged = merging_keys(self.interface) if self.mode == XdpMode.GENERIC and self.sends else ()
        return (PROGRAM, interface_key(self.interface), *merged)

    @property
    def flaw(self) -> str:
        known = self.mode in (XdpMode.NATIVE, XdpMode.GENERIC)
        return flaw_of(self.interface) or ("" if known else f"mode {self.mode}")

    def describe(self) -> dict[str, str]:
        earlier = "" if self.load == LOADED else f" ({self.load})"
        return {"mode": self.mode, "build": self.program + earlier, "maps": self.maps or "not known"}

    def effect(self, after: Resource | None, context: Context) -> str:
        if after is None:
            return "packets are no longer handled here"
        if isinstance(after, Attachment) and after.mode != self.mode:
            return "packets are lost for some milliseconds; open connections stay"
        if self.load == ASTRAY:
            return "swapped under traffic; the program knows nothing of its maps, so open connections may break"
        return "swapped under traffic, no packet is lost"


def generic_interfaces(live: Live) -> frozenset[str]:
    """The interfaces of a node that run the program in generic mode."""
    found = (resource for resource in live.resources.values() if isinstance(resource, Attachment))
    return frozenset(held.interface for held in found if held.mode == XdpMode.GENERIC)


class AttachmentKind(Kind):
    phase = 20
    roles = (Role.BALANCER, Role.ENDPOINT)
    resource = Attachment

    @staticmethod
    def desired(view: NodeView) -> Iterable[Wanted]:
        if not view.runs_program:
            return
        program, sends = program_of(view), view.node.role is Role.BALANCER
        for interface in view.node.interfaces:
            if interface.trunk is None:  # packets of a VLAN come in by its trunk
                mode = view.xdp_mode(interface).value
                yield Attachment(interface.name, mode, program.name, sends, maps=program.maps), interface.span
        if view.has_prober:  # generic: it sends to any interface, whether its driver knows XDP or not
            generic = XdpMode.GENERIC.value
            yield Attachment(PROBER_DEVICE, generic, program.name, sends, maps=program.maps), view.node.span

    def read(self, wanted: Mapping[Key, Resource], only: Collection[Key] | None = None) -> Reading:
        attached = self.kernel.attached_programs([key.id for key in wanted])
        ours = (a for a in attached if is_ours(a.name))
        silent = {key.id for key, a in wanted.items() if isinstance(a, Attachment) and not a.sends}
        return Reading(
            tuple(
                Attachment(a.interface, a.mode, a.name, a.interface not in silent, _load(a), a.maps) for a in ours
            ),
            {} if self.kernel.adopts else {
                Key(Attachment.kind, a.interface): a.owner for a in attached if not is_ours(a.name)
            },
        )

    def concerns(self, wanted: Collection[Resource]) -> Iterable[Concern]:
        attached = [a for a in wanted if isinstance(a, Attachment)]
        native = [a.key for a in attached if a.sends and a.mode == XdpMode.NATIVE]
        yield from about_veths(self.kernel, native)
        yield from about_links(self.kernel, [a.key for a in attached])

    def write(self, changes: Sequence[Change]) -> list[Outcome]:
        interfaces = [change.key.id for change in changes]
        runs = {a.interface: a for a in self.kernel.attached_programs(interfaces) if is_ours(a.name)}
        try:
            with self.kernel.taking_over():
                return [self._write(change, runs.get(change.key.id)) for change in changes]
        except KernelError as error:
            return [error] * len(changes)

    def _write(self, change: Change, runs: AttachedProgram | None) -> Outcome:
        try:
            match change.after:
                case None:
                    if runs:
                        self.kernel.detach(runs.interface, runs.mode, runs.id)
                case Attachment(interface=interface, mode=mode, program=program):
                    loaded = self.kernel.loaded_program()
                    if loaded is None or loaded.name != program:
                        raise KernelError(f"{change.key} needs program {program}, which is not loaded")
                    if runs and runs.mode != mode:
                        switch_mode(self.kernel, runs, mode)
                    else:
                        self.kernel.attach(interface, mode, runs.id if runs else None)
        except KernelError as error:
            return error
        return None


def _load(attached: AttachedProgram) -> str:
    if not attached.has_our_maps:
        return ASTRAY
    return LOADED if attached.is_loaded else EARLIER


KIND = AttachmentKind
