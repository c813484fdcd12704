# SPDX-License-Identifier: Apache-2.0
"""VIPs for which the program of an endpoint unpacks tunnels. It passes tunnelled packets to other addresses as they
are."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import ip_address
from typing import ClassVar

from reconciler.dataplane.layout import UNPACKED
from reconciler.dataplane.rows import UnpackedKey
from reconciler.kernel.port import Outcome
from reconciler.kinds.base import Kind, Wanted, each
from reconciler.kinds.program import PROGRAM
from reconciler.model import Address, Role
from reconciler.resource import Change, Context, Key, Reading, Resource
from reconciler.view import NodeView

_BYTES = {4: 4, 6: 16}


@dataclass(frozen=True, slots=True)
class Unpacked(Resource):
    """`damage` is the key of a row that no VIP has, so that it can be removed."""

    kind: ClassVar[str] = "unpacked"

    address: Address
    damage: bytes = b""

    @property
    def id(self) -> str:
        return f"damaged row {self.damage.hex()}" if self.damage else str(self.address)

    @property
    def needs(self) -> tuple[Key, ...]:
        return (PROGRAM,)

    @property
    def flaw(self) -> str:
        return "a damaged row" if self.damage else ""

    def describe(self) -> dict[str, str]:
        return {}

    def effect(self, after: Resource | None, context: Context) -> str:
        return "" if after else "tunnelled packets to this VIP are no longer unpacked"


class UnpackedKind(Kind):
    phase = 15
    roles = (Role.ENDPOINT,)
    resource = Unpacked
    is_in_maps = True

    @staticmethod
    def desired(view: NodeView) -> Iterable[Wanted]:
        services = view.tunnelled if view.decapsulates else ()
        found = {vip: service.span for service in reversed(services) for vip in service.vips}
        return ((Unpacked(vip), span) for vip, span in found.items())

    def read(self, wanted: Mapping[Key, Resource], only: Collection[Key] | None = None) -> Reading:
        return Reading(tuple(_decode(key) for key, _ in self.kernel.dump(UNPACKED.name)))

    def write(self, changes: Sequence[Change]) -> list[Outcome]:
        puts = [change for change in changes if change.after]
        gone = [change for change in changes if change.after is None]
        outcomes: list[tuple[Change, Outcome]] = []
        done = self.kernel.update(UNPACKED.name, [(_key(change), bytes(UNPACKED.value_size)) for change in puts])
        outcomes += zip(puts, done, strict=True)
        outcomes += zip(gone, self.kernel.delete(UNPACKED.name, [_key(change) for change in gone]), strict=True)
        return each(changes, outcomes)


def _key(change: Change) -> bytes:
    match change.after or change.before:
        case Unpacked() as vip:
            return vip.damage or _encode(vip.address)
    raise TypeError(f"no VIP: {change}")


def _encode(address: Address) -> bytes:
    return UNPACKED.key.pack(UnpackedKey(address.packed, address.version))


def _decode(key: bytes) -> Unpacked:
    row = UNPACKED.key.unpack(key)
    address = ip_address(row.address[: _BYTES.get(row.version, 16)])
    return Unpacked(address, b"" if _encode(address) == key else key)


KIND = UnpackedKind
