# SPDX-License-Identifier: Apache-2.0
"""A ring as the kernel holds it: the numbers of endpoints in its slots. Most of them nobody looks at, so a ring gets
names for its endpoints when somebody asks for its members or slots."""

from __future__ import annotations

from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from reconciler.dataplane import endpoint_table as endpoint_tables
from reconciler.dataplane.endpoint_table import EndpointTable
from reconciler.dataplane.layout import ENDPOINTS, ENDPOINTS6
from reconciler.dataplane.ring import Slots
from reconciler.dataplane.slots import ENDPOINT_MASK, reduced
from reconciler.kernel.port import Kernel
from reconciler.kinds.endpoint import ids_in
from reconciler.kinds.ring import Ring, name_algorithm
from reconciler.model import Algorithm

_FEW = 24
"""Rings whose endpoints are named one after the other; when more are asked for, those of all are named at once."""


class EndpointNames:
    """The ids of the endpoints of several rings, by number, as they were when the rings were read."""

    def __init__(self, kernel: Kernel) -> None:
        self._maps = kernel.joined(ENDPOINTS.name), kernel.joined(ENDPOINTS6.name)
        self._ids: dict[int, str] = {}
        self._rings: list[Slots] = []
        self._asked = 0

    def add(self, endpoints: Slots) -> None:
        """The endpoints of another ring."""
        self._rings.append(endpoints)

    def of(self, numbers: NDArray[np.uint32]) -> list[str]:
        """The ids of endpoints with these numbers. Numbers without a row are lost endpoints."""
        self._asked += 1
        if self._asked <= _FEW:
            self._ids |= ids_in(self._table, numbers)
        elif self._rings:
            seen = np.zeros(int(ENDPOINT_MASK) + 1, np.bool_)
            for endpoints in self._rings:
                seen[endpoints] = True
            self._rings.clear()
            self._ids = ids_in(self._table, np.flatnonzero(seen))
        return [self._ids.get(number, f"lost endpoint {number}") for number in numbers.tolist()]

    @cached_property
    def _table(self) -> EndpointTable:
        return endpoint_tables.table(self._maps[0], lambda: self._maps[1])


class HeldRing(Ring):
    """`endpoints` are the numbers in the slots."""

    __slots__ = ("_compared", "_decoded", "_endpoints", "_names")
    _compared: tuple[Ring, bool] | None
    _decoded: Ring | None
    _endpoints: Slots
    _names: EndpointNames

    def __init__(self, name: str, endpoints: Slots, names: EndpointNames) -> None:
        if name_algorithm(name) is not Algorithm.ROUND_ROBIN:
            endpoints = reduced(endpoints)
        names.add(endpoints)
        for field, value in (("name", name), ("_endpoints", endpoints), ("_names", names), ("_decoded", None),
                             ("_compared", None)):  # fmt: skip
            object.__setattr__(self, field, value)

    def compare(self, ring: Ring, numbers: NDArray[np.uint32], slots: Slots) -> None:
        """Find out whether this is a ring with these slots, of members with these numbers, so that nobody has to build
        or decode one for that. 0 is the number of a member that has none."""
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
        return self._ring.members

    @property
    def slots(self) -> bytes:
        return self._ring.slots

    @property
    def _ring(self) -> Ring:
        if self._decoded is None:
            object.__setattr__(self, "_decoded", self._decode())
            assert self._decoded is not None
        return self._decoded

    def _decode(self) -> Ring:
        numbers, inverse = np.unique(self._endpoints, return_inverse=True)
        names = np.array(self._names.of(numbers), object)
        order = np.argsort(names) if names.size else np.zeros(0, np.int64)
        rank = np.empty_like(order)
        rank[order] = np.arange(order.size)
        return Ring(self.name, tuple(names[order]), rank[inverse].astype("<u4").tobytes())
