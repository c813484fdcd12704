# SPDX-License-Identifier: Apache-2.0
"""The data plane's counters, summed over CPUs."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from reconciler.dataplane.layout import ENDPOINT_COUNTERS, SERVICE_COUNTERS, VERDICTS, MapSpec, Verdict
from reconciler.dataplane.row import COUNTER
from reconciler.kernel.port import Kernel
from reconciler.kinds.endpoint import NumberedRow, numbered_rows
from reconciler.kinds.service import IndexedRow, indexed_rows


@dataclass(frozen=True, slots=True)
class Traffic:
    """Connections, packets and bytes since the row was made. Bytes are those of IP packets."""

    connections: int = 0
    request_packets: int = 0
    request_bytes: int = 0
    reply_packets: int = 0
    reply_bytes: int = 0


def service_traffic(kernel: Kernel, rows: Iterable[IndexedRow] | None = None) -> dict[str, Traffic]:
    """The counters of each service, by its id. `rows` are all of them, for those who have read them."""
    sums = _sums(kernel, SERVICE_COUNTERS)
    rows = indexed_rows(kernel) if rows is None else rows
    return {indexed.row.id: Traffic(*sums.get(indexed.index, ())) for indexed in rows}


def endpoint_traffic(kernel: Kernel, rows: Iterable[NumberedRow] | None = None) -> dict[str, Traffic]:
    """The counters of each endpoint, by its id. `rows` are all of them, for those who have read them."""
    sums = _sums(kernel, ENDPOINT_COUNTERS)
    rows = numbered_rows(kernel) if rows is None else rows
    return {numbered.row.id: Traffic(*sums.get(numbered.number, ())) for numbered in rows}


def verdicts(kernel: Kernel) -> dict[Verdict, int]:
    """The number of packets to and from VIPs for each verdict; verdicts without packets are left out."""
    known = {number.value for number in Verdict}
    counted = _sums(kernel, VERDICTS).items()
    return {Verdict(index): packets for index, (packets,) in counted if packets and index in known}


def totals(kernel: Kernel, spec: MapSpec) -> NDArray[np.uint64]:
    """The counters of a map, a line for each index of the map and a column for each counter."""
    keys, values = kernel.joined(spec.name)
    numbers, sums = _summed(spec, keys, values)
    lines = np.zeros((int(numbers.max()) + 1 if numbers.size else 0, sums.shape[1]), np.uint64)
    lines[numbers] = sums
    return lines


def _sums(kernel: Kernel, spec: MapSpec) -> dict[int, tuple[int, ...]]:
    """By index, the fields summed over CPUs; rows of zeros are left out."""
    keys, values = kernel.joined(spec.name)
    numbers, sums = _summed(spec, keys, values)
    used = sums.any(axis=1)
    return dict(zip(numbers[used].tolist(), map(tuple, sums[used].tolist()), strict=True))


def _summed(spec: MapSpec, keys: bytes, values: bytes) -> tuple[NDArray[np.uint32], NDArray[np.uint64]]:
    numbers = spec.key.array(keys)["number"]
    counters = [name for name, form in spec.value.fields if form == COUNTER]
    if not numbers.size:
        return numbers, np.zeros((0, len(counters)), np.uint64)
    cpus = spec.value.array(values).reshape(numbers.size, -1)
    return numbers, np.stack([cpus[name].sum(axis=1) for name in counters], axis=1)
