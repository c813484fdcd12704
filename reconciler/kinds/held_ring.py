# SPDX-License-Identifier: Apache-2.0
"""A ring as the kernel holds it: the numbers of endpoints in its slots. Most of them nobody looks at, so a ring gets
names for its endpoints when somebody asks for its members or slots."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from reconciler.dataplane import endpoint_table as endpoint_tables
from reconciler.dataplane.endpoint_table import EndpointTable
from reconciler.dataplane.layout import ENDPOINTS, ENDPOINTS6
from reconciler.dataplane.ring import Slots
from reconciler.dataplane.slots import ENDPOINT_MASK, distinct, reduced
from reconciler.kernel.port import Kernel
from reconciler.kinds.endpoint import ids_in
from reconciler.kinds.ring import IN_TURNS, Ring, name_algorithm


class EndpointNames:
    """The ids of the endpoints of several rings, by number, as they were when the rings were read.

    Whoever asks for those of one ring often asks for those of the next ones, too, and to name those of many takes
    little longer than to name those of one: each time, twice as many of the next rings are named as before.
    """

    def __init__(self, kernel: Kernel) -> None:
        self._maps = kernel.joined(ENDPOINTS.name), kernel.joined(ENDPOINTS6.name)
        self._ids: dict[int, str] = {}
        self._rings: list[Slots] = []
        self._next, self._ahead = 0, 1
        self._is_named = np.zeros(int(ENDPOINT_MASK) + 1, np.bool_)

    def add(self, endpoints: Slots) -> None:
        """The endpoints of another ring."""
        self._rings.append(endpoints)

    def know(self, numbers: NDArray[np.uint32], ids: Sequence[str]) -> None:
        """The numbers that endpoints with these ids have; 0 for one that has none."""
        self._ids.update(zip(numbers.tolist(), ids, strict=True))
        self._is_named[numbers] = True
        self._ids.pop(0, None)
        self._is_named[0] = False

    def of(self, numbers: NDArray[np.integer]) -> list[str]:
        """The ids of endpoints with these numbers. Numbers without a row are lost endpoints."""
        if not self._is_named[numbers].all():
            self._name(numbers)
        return [self._ids.get(number, f"lost endpoint {number}") for number in numbers.tolist()]

    def _name(self, numbers: NDArray[np.integer]) -> None:
        asked = np.zeros_like(self._is_named)
        asked[numbers] = True
        end = self._next + self._ahead
        for endpoints in self._rings[self._next : end]:
            asked[endpoints] = True
        self._next, self._ahead = end, 2 * self._ahead
        self._ids |= ids_in(self._table, np.flatnonzero(asked & ~self._is_named))
        self._is_named |= asked

    @cached_property
    def _table(self) -> EndpointTable:
        return endpoint_tables.table(self._maps[0], lambda: self._maps[1])


class HeldRing(Ring):
    """`endpoints` are the numbers in the slots."""

    __slots__ = ("_compared", "_endpoints", "_members", "_names", "_slots")
    _compared: tuple[Ring, bool] | None
    _endpoints: Slots
    _members: tuple[str, ...] | None
    _names: EndpointNames
    _slots: bytes | None

    def __init__(self, name: str, endpoints: Slots, names: EndpointNames) -> None:
        if name_algorithm(name) not in IN_TURNS:
            endpoints = reduced(endpoints)
        names.add(endpoints)
        for field, value in (("name", name), ("_endpoints", endpoints), ("_names", names), ("_members", None),
                             ("_slots", None), ("_compared", None)):  # fmt: skip
            object.__setattr__(self, field, value)

    def compare(self, ring: Ring, numbers: NDArray[np.uint32], slots: Slots) -> None:
        """Find out whether this is a ring with these slots, of members with these numbers, so that nobody has to build
        or decode one for that. 0 is the number of a member that has none."""
        self._names.know(numbers, ring.members)
        same = slots.size == self._endpoints.size and numbers.all() and (numbers[slots] == self._endpoints).all()
        object.__setattr__(self, "_compared", (ring, bool(same)))

    def __eq__(self, other: object) -> bool:
        if self._compared and other is self._compared[0]:
            return self._compared[1]
        return Ring.__eq__(self, other)

    __hash__ = Ring.__hash__

    def __deepcopy__(self, memo: object) -> HeldRing:
        return self  # what it says never changes

    @property
    def members(self) -> tuple[str, ...]:
        if self._members is None:
            object.__setattr__(self, "_members", tuple(sorted(self._names.of(distinct(self._endpoints)))))
            assert self._members is not None
        return self._members

    @property
    def member_count(self) -> int:
        return int(distinct(self._endpoints).size) if self._members is None else len(self._members)

    @property
    def slots(self) -> bytes:
        if self._slots is None:
            object.__setattr__(self, "_slots", self._numbered())
            assert self._slots is not None
        return self._slots

    def _numbered(self) -> bytes:
        """The slots by the places of members."""
        numbers = distinct(self._endpoints)
        names = np.array(self._names.of(numbers), object)
        places = np.zeros(int(numbers.max(initial=0)) + 1, "<u4")
        places[numbers[np.argsort(names)]] = np.arange(numbers.size)
        return places[self._endpoints].tobytes()
