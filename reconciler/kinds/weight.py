# SPDX-License-Identifier: Apache-2.0
"""The weights of endpoints that least-connections chooses from. It compares how many connections two of them have, for
their weight; which two, the ring says."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import gcd
from typing import ClassVar

from reconciler.dataplane.layout import LOADS
from reconciler.dataplane.rows import Number
from reconciler.errors import KernelError
from reconciler.kernel.port import Outcome
from reconciler.kinds.base import Kind, Wanted, each
from reconciler.kinds.endpoint import ids_of, numbered_rows
from reconciler.kinds.endpoint_row import EndpointRow, rows_of
from reconciler.loads import ROW_WORDS, WEIGHT_WORD
from reconciler.model import Algorithm, EndpointState, Pool
from reconciler.resource import Change, Context, Key, Reading, Resource
from reconciler.view import Facts, Use

_NOBODYS = "nobody's row "
_MOST = (1 << 32) - 1
_NOT_WRITTEN = KernelError(
    "the program that is loaded knows no least-connections, or somebody else changed the row at the same instant"
)


@dataclass(frozen=True, slots=True)
class Weight(Resource):
    """`endpoint` is the id of an endpoint's row."""

    kind: ClassVar[str] = "weight"
    may_need: ClassVar[frozenset[str] | None] = frozenset(("endpoint",))

    endpoint: str
    weight: int

    @property
    def id(self) -> str:
        return self.endpoint

    @property
    def needs(self) -> tuple[Key, ...]:
        return (Key(EndpointRow.kind, self.endpoint),)

    @property
    def flaw(self) -> str:
        if self.endpoint.startswith(_NOBODYS):
            return "the weight of no endpoint"
        return "" if 0 < self.weight <= _MOST else f"weight {self.weight}"

    def describe(self) -> dict[str, str]:
        return {"weight": f"{self.weight:,}"}

    def effect(self, after: Resource | None, context: Context) -> str:
        return "open connections stay; new ones are shared out otherwise" if isinstance(after, Weight) else ""


class WeightKind(Kind):
    """Before rings, whose draws are compared by it."""

    phase = 35
    resource = Weight
    is_in_maps = True

    @staticmethod
    def of_pool(pool: Pool, use: Use, facts: Facts) -> Iterable[Wanted]:
        if Algorithm.LEAST_CONNECTIONS not in use.algorithms:
            return
        both = zip(pool.endpoints, rows_of(pool), strict=True)
        drawn = [(e, row) for e, row in both if e.state is EndpointState.ACTIVE and e.weight]
        divisor = gcd(*(endpoint.weight for endpoint, _ in drawn))  # as turns of the ring are reduced
        for endpoint, row in drawn:
            yield Weight(row.id, endpoint.weight // divisor), endpoint.span

    @staticmethod
    def joined(claims: Sequence[Wanted]) -> Wanted:
        # A server in several pools has one row, as it has one count of connections.
        return max(claims, key=lambda claim: claim[0].weight if isinstance(claim[0], Weight) else 0)

    def read(self, wanted: Mapping[Key, Resource], only: Collection[Key] | None = None) -> Reading:
        keys, values = self.kernel.joined(LOADS.name)
        weights = LOADS.value.array(values)["weight"]
        numbers = LOADS.key.array(keys)["number"][weights > 0]
        names = ids_of(self.kernel, numbers.tolist()) if numbers.size else {}
        held = zip(numbers.tolist(), weights[weights > 0].tolist(), strict=True)
        return Reading(tuple(Weight(names.get(n, f"{_NOBODYS}{n}"), weight) for n, weight in held))

    def write(self, changes: Sequence[Change]) -> list[Outcome]:
        known = {held.row.id: held.number for held in numbered_rows(self.kernel, [c.key.id for c in changes])}
        numbers = {change.key: number for change in changes if (number := _number(change.key.id, known))}
        taken = ids_of(self.kernel, list(numbers.values()))  # a row that was nobody's may be an endpoint's by now
        gone = [
            change for change in changes
            if change.after is None and taken.get(numbers.get(change.key, 0), change.key.id) == change.key.id
            and change.key in numbers
        ]  # fmt: skip
        removed = self.kernel.delete(LOADS.name, [_row(numbers[change.key]) for change in gone])
        outcomes = list(zip(gone, removed, strict=True))
        puts = {c: c.after.weight for c in changes if isinstance(c.after, Weight) and c.key in numbers}
        rows = self.kernel.lookup(LOADS.name, [_row(numbers[change.key]) for change in puts])
        swaps = [
            (numbers[change.key] * ROW_WORDS + WEIGHT_WORD, LOADS.value.unpack(row).weight if row else 0, puts[change])
            for change, row in zip(puts, rows, strict=True)
        ]
        done = self.kernel.swap_words(LOADS.name, swaps)
        outcomes += ((c, None if is_done else _NOT_WRITTEN) for c, is_done in zip(puts, done, strict=True))
        missing = [change for change in changes if change.after and change.key not in numbers]
        outcomes += ((c, KernelError(f"{c.key} needs an endpoint that is not there")) for c in missing)
        return each(changes, outcomes)


def _row(number: int) -> bytes:
    return LOADS.key.pack(Number(number))


def _number(id: str, numbers: Mapping[str, int]) -> int:
    """The number of the row; 0, which no endpoint has, if there is none."""
    return int(id.removeprefix(_NOBODYS)) if id.startswith(_NOBODYS) else numbers.get(id, 0)


KIND = WeightKind
