# SPDX-License-Identifier: Apache-2.0
"""How fast the data plane's counters grow: two readings of them, and the rates a second between these.

A reading is arrays, whatever the size of the fleet; only the services and endpoints that are shown get names.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import astuple, dataclass, fields

import numpy as np
from numpy.typing import NDArray

from reconciler.dataplane.layout import ENDPOINT_COUNTERS, SERVICE_COUNTERS, Verdict
from reconciler.kernel.port import Kernel
from reconciler.kinds.endpoint import endpoint_table, ids_of
from reconciler.kinds.ring import Ring
from reconciler.kinds.rings import RingKind
from reconciler.kinds.service import indexed_rows
from reconciler.kinds.service_row import ServiceRow
from reconciler.readings.counters import totals, verdicts
from reconciler.resource import Key


@dataclass(frozen=True, slots=True, eq=False)
class Sample:
    """The counters at a time, in seconds of the monotonic clock."""

    at_s: float
    services: NDArray[np.uint64]
    endpoints: NDArray[np.uint64]
    verdicts: Mapping[Verdict, int]


def sample(kernel: Kernel, at_s: float) -> Sample:
    """The counters as they are now. Raises KernelError."""
    return Sample(at_s, totals(kernel, SERVICE_COUNTERS), totals(kernel, ENDPOINT_COUNTERS), verdicts(kernel))


@dataclass(frozen=True, slots=True)
class Rates:
    """What a service or an endpoint gets a second. Bits are those of IP packets."""

    connections: float = 0.0
    request_packets: float = 0.0
    request_bits: float = 0.0
    reply_packets: float = 0.0
    reply_bits: float = 0.0

    def __add__(self, other: Rates) -> Rates:
        return Rates(*(a + b for a, b in zip(astuple(self), astuple(other), strict=True)))


RATES = tuple(field.name for field in fields(Rates))
_BITS = np.array([8.0 if name.endswith("bits") else 1.0 for name in RATES])


@dataclass(frozen=True, slots=True)
class ServiceRates:
    row: ServiceRow
    rates: Rates


@dataclass(frozen=True, slots=True)
class EndpointRates:
    """`share`: of the service's new connections, 0 to 1, by the ring; None if no service was asked about."""

    endpoint: str
    rates: Rates
    share: float | None = None


def service_rates(kernel: Kernel, before: Sample, after: Sample) -> list[ServiceRates]:
    """Every service."""
    growth = _growth(before.services, after.services, after.at_s - before.at_s)
    return [ServiceRates(indexed.row, _rates(growth, indexed.index)) for indexed in indexed_rows(kernel)]


def endpoint_rates(kernel: Kernel, before: Sample, after: Sample, most: int, by: str) -> list[EndpointRates]:
    """The endpoints with the most of one of RATES, whatever their services."""
    growth = _growth(before.endpoints, after.endpoints, after.at_s - before.at_s)
    numbers = endpoint_table(kernel).numbers
    numbers = numbers[numbers < len(growth)]
    busiest = numbers[np.argsort(-growth[numbers, RATES.index(by)], kind="stable")][:most]
    names = ids_of(kernel, busiest.tolist())
    return [EndpointRates(names[number], _rates(growth, number)) for number in busiest.tolist() if number in names]


def member_rates(kernel: Kernel, before: Sample, after: Sample, ring: str) -> list[EndpointRates]:
    """The endpoints in a ring. An endpoint's rates are those of all its services."""
    growth = _growth(before.endpoints, after.endpoints, after.at_s - before.at_s)
    found = RingKind(kernel).read({}, [Key(Ring.kind, ring)]).resources
    shares = {member: share for held in found if isinstance(held, Ring) for member, share in held.shares.items()}
    numbers = {name: number for number, name in ids_of(kernel, endpoint_table(kernel).numbers.tolist()).items()
               if name in shares}  # fmt: skip
    return [EndpointRates(name, _rates(growth, numbers.get(name, len(growth))), shares[name]) for name in shares]


def verdict_rates(before: Sample, after: Sample) -> dict[Verdict, float]:
    """Packets a second by what became of them; every verdict that was ever counted."""
    seconds = after.at_s - before.at_s
    return {
        verdict: _grown(before.verdicts.get(verdict, 0), packets) / seconds
        for verdict, packets in sorted(after.verdicts.items())
    }


def _grown(before: int, after: int) -> int:
    """A counter that fell began anew."""
    return after - before if after >= before else after


def _growth(before: NDArray[np.uint64], after: NDArray[np.uint64], seconds: float) -> NDArray[np.float64]:
    earlier = np.zeros_like(after)
    common = min(len(before), len(after))
    earlier[:common] = before[:common]
    earlier[(after < earlier).any(axis=1)] = 0  # another service or endpoint has got the row
    grown: NDArray[np.float64] = (after - earlier).astype(np.float64) * _BITS / seconds
    return grown


def _rates(growth: NDArray[np.float64], line: int) -> Rates:
    return Rates(*growth[line].tolist()) if line < len(growth) else Rates()
