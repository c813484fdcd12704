# SPDX-License-Identifier: Apache-2.0
"""Where checks through VIPs come from: kernel/prober.py, bpf/check.h. A balancer with a healthAddress has one."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import ip_address
from typing import ClassVar

from reconciler.dataplane import rows
from reconciler.dataplane.layout import PROBER
from reconciler.dataplane.rows import Number
from reconciler.errors import KernelError
from reconciler.kernel import objects
from reconciler.kernel.port import Outcome
from reconciler.kinds.base import Kind, Wanted
from reconciler.kinds.program import PROGRAM
from reconciler.model import Address
from reconciler.resource import Change, Context, Key, Reading, Resource
from reconciler.view import NodeView

_ROW = PROBER.key.pack(Number(0))


@dataclass(frozen=True, slots=True)
class Prober(Resource):
    """`wrong` says what of it is damaged; empty if nothing is."""

    kind: ClassVar[str] = "prober"

    addresses: tuple[Address, ...]
    wrong: str = ""

    @property
    def id(self) -> str:
        return PROBER_KEY.id

    @property
    def needs(self) -> tuple[Key, ...]:
        return (PROGRAM,)

    @property
    def flaw(self) -> str:
        return self.wrong

    def describe(self) -> dict[str, str]:
        shown = {"addresses": ", ".join(map(str, self.addresses)) or "none"}
        return shown | ({"damaged": self.wrong} if self.wrong else {})

    def effect(self, after: Resource | None, context: Context) -> str:
        return "" if after else "nothing is checked through VIPs any more"


PROBER_KEY = Key(Prober.kind, "of this node")


class ProberKind(Kind):
    phase = 16  # its interface gets the program, too
    resource = Prober

    @staticmethod
    def desired(view: NodeView) -> Iterable[Wanted]:
        if view.has_prober:
            yield Prober(view.node.health_addresses), view.node.places.get("healthAddress", view.node.span)

    def read(self, wanted: Mapping[Key, Resource], only: Collection[Key] | None = None) -> Reading:
        held, row = self.kernel.prober(), dict(self.kernel.dump(PROBER.name)).get(_ROW, b"")
        if held is None:
            gone = Prober((), "it has a row in the maps, and is not there")
            return Reading((gone,) if any(row) else ())
        addresses = tuple(sorted(map(ip_address, held.addresses), key=lambda a: (a.version, int(a))))
        wrong = held.wrong or ("" if row == _row(held) else "its row in the maps is another")
        return Reading((Prober(addresses, wrong),))

    def write(self, changes: Sequence[Change]) -> list[Outcome]:
        return [self._write(change) for change in changes]

    def _write(self, change: Change) -> Outcome:
        try:
            if isinstance(change.after, Prober) and not change.after.wrong:
                self.kernel.add_prober([str(address) for address in change.after.addresses])
                held = self.kernel.prober()
                if held is None or held.wrong:
                    raise KernelError(f"it is not as it was made: {held.wrong if held else 'it is gone'}")
                return self.kernel.update(PROBER.name, [(_ROW, _row(held))])[0]
            self.kernel.delete(PROBER.name, [_ROW])
            self.kernel.remove_prober()
        except KernelError as error:
            return error
        return None


def _row(held: objects.Prober) -> bytes:
    packed = {len(p): p for p in (ip_address(address).packed for address in held.addresses)}
    return PROBER.value.pack(rows.Prober(held.index, packed.get(4, bytes(4)), packed.get(16, bytes(16)), held.mac))


KIND = ProberKind
