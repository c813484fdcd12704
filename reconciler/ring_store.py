# SPDX-License-Identifier: Apache-2.0
"""Rings in the kernel: how they are read and written, and how their transitions end.

A slot that changes hands is in transition for as long as open connections may need its former endpoint. Rows are
written before the slots that point the program to them.
"""

from __future__ import annotations

import struct
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from reconciler.dataplane import slots
from reconciler.dataplane.layout import PREVIOUS, RING_HEADS, RINGS, SERVICE_MAPS, ModeCode
from reconciler.dataplane.ring import Slots
from reconciler.dataplane.slots import Held
from reconciler.errors import KernelError
from reconciler.kernel.port import Kernel, Outcome

UDP = 17
PINGS = (1, 58)
"""ICMP and ICMPv6."""
_INDEX = struct.Struct("=I")


def read_ring(kernel: Kernel, index: int) -> Held | None:
    """A ring and the rows of its slots in transition; None if there is no such ring."""
    content = kernel.read_inner(RINGS.name, index)
    if content is None:
        return None
    ring = slots.held(content)
    if not ring.moving.any():
        return ring
    return slots.held(content, kernel.read_inner(PREVIOUS.name, _rows_index(index, ring.bank)))


def write_rings(kernel: Kernel, wanted: Mapping[int, Slots], known: Collection[int]) -> dict[int, Outcome]:
    """Give rings the endpoints `wanted`, by index; those not in `known` are new. One outcome each.

    Slots that change hands go into transition where connections are not remembered one by one.
    """
    direct = protocols(kernel).keys()
    outcomes: dict[int, Outcome] = {}
    rings: dict[int, Held] = {}
    for index, endpoints in wanted.items():
        try:
            before = read_ring(kernel, index) if index in known else None
            rings[index] = _after(before, endpoints, is_direct=index in direct)
        except KernelError as error:
            outcomes[index] = error
    # Remove heads of former rings that had the index of a new one.
    kernel.delete(RING_HEADS.name, [_INDEX.pack(index) for index in rings.keys() - set(known)])
    for write in (_write_rows, _write_slots, _write_heads):
        outcomes |= write(kernel, {index: ring for index, ring in rings.items() if not outcomes.get(index)})
    return outcomes


def _after(before: Held | None, endpoints: Slots, *, is_direct: bool) -> Held:
    """The ring with these endpoints.

    A ring that loses its last endpoint keeps its slots, without an endpoint: open connections still need their former
    endpoints.
    """
    if before is None:
        return slots.still(endpoints)
    if before.endpoints.size and is_direct:
        wanted = endpoints if endpoints.size else slots.NOBODY
        return slots.changed(*slots.fitted(before, wanted), slots.now())
    is_other_size = before.endpoints.size != endpoints.size
    return replace(slots.still(endpoints), generation=(before.generation + is_other_size) % slots.GENERATIONS)


def heads(kernel: Kernel) -> dict[int, int]:
    """Element 0 of each ring, by index, from the map in which the program reads it."""
    return {_INDEX.unpack(key)[0]: _INDEX.unpack(value)[0] for key, value in kernel.dump(RING_HEADS.name)}


def remove_rings(kernel: Kernel, indexes: Sequence[int]) -> list[Outcome]:
    """Remove rings and their rows; one outcome each."""
    outcomes = kernel.remove_inner(RINGS.name, indexes)
    gone = [index for index, outcome in zip(indexes, outcomes, strict=True) if not outcome]
    kernel.delete(RING_HEADS.name, [_INDEX.pack(index) for index in gone])
    kernel.remove_inner(PREVIOUS.name, [_rows_index(index, bank) for index in gone for bank in (0, 1)])
    return outcomes


def in_transition(kernel: Kernel) -> dict[int, Held]:
    """The rings that have slots in transition, or rows for some, by index."""
    indexes = {_INDEX.unpack(key)[0] % RINGS.capacity for key, _ in kernel.dump(PREVIOUS.name)}
    rings = {index: read_ring(kernel, index) for index in sorted(indexes)}
    return {index: ring or slots.still(np.zeros(0, np.uint32)) for index, ring in rings.items()}


def former_endpoints(kernel: Kernel) -> set[int]:
    """The numbers of the endpoints that slots in transition had before."""
    rows = [ring.rows[ring.moving] for ring in in_transition(kernel).values()]
    columns = [some[column] for some in rows for column in ("stream", "datagram")]
    return {int(number) for column in columns for number in np.unique(column) if number}


def settle(kernel: Kernel, now: int) -> int:
    """End the transitions that no connection needs any more; returns the number of slots. Raises KernelError."""
    used_by = protocols(kernel)
    ended = 0
    for index, ring in in_transition(kernel).items():
        after = slots.settled(ring, idle(used_by.get(index, ())), now)
        ended += int(ring.moving.sum() - after.moving.sum())
        _patch(kernel, index, after)
        if not after.moving.any():
            kernel.remove_inner(PREVIOUS.name, [_rows_index(index, bank) for bank in (0, 1)])
    return ended


def idle(protocols_: Iterable[int]) -> int:
    """How long a former endpoint must be unused before a transition ends, in the unit of `slots`.

    This depends on the protocols of the services; without services it is 0, as no packet can use one.
    """
    return max((slots.DATAGRAM_IDLE if number == UDP else slots.STREAM_IDLE for number in protocols_), default=0)


def indexes_in_use(kernel: Kernel) -> set[int]:
    """The rings that services use, by index."""
    return {row.ring for spec in SERVICE_MAPS.values() for _, row in spec.unpack(kernel.dump(spec.name))}


def protocols(kernel: Kernel) -> dict[int, set[int]]:
    """The IP protocols of the services that use a ring in a mode of direct server return, by the ring's index.

    Connections of other modes are remembered one by one, and need no help when a slot changes hands. Pings are no
    connections at all.
    """
    found: dict[int, set[int]] = {}
    for spec in SERVICE_MAPS.values():
        for key, row in spec.unpack(kernel.dump(spec.name)):
            if row.mode in (ModeCode.DSR_L2, ModeCode.DSR_L3) and key.protocol not in PINGS:
                found.setdefault(row.ring, set()).add(key.protocol)
    return found


def _patch(kernel: Kernel, index: int, after: Held) -> bool:
    """Overwrite the slots that differ, if the kernel's ring has the same size and generation."""
    content = kernel.read_inner(RINGS.name, index)
    before, array = (np.frombuffer(c or b"", np.uint32) for c in (content, after.content))
    if before.size != array.size or before[0] != array[0]:
        return False
    differs = np.flatnonzero(before != array)
    if differs.size:
        kernel.patch_inner(RINGS.name, index, {int(slot): array[slot].tobytes() for slot in differs})
    return True


def _write_rows(kernel: Kernel, rings: Mapping[int, Held]) -> dict[int, Outcome]:
    """Write the rows of slots in transition: over the existing rows, or all rows of a ring into a new array."""
    outcomes: dict[int, Outcome] = {}
    new: dict[int, bytes] = {}
    for index, ring in rings.items():
        if not ring.moving.any():
            continue
        array = _rows_index(index, ring.bank)
        try:
            content = kernel.read_inner(PREVIOUS.name, array)
            if content is None or len(content) != ring.rows.nbytes:
                new[array] = ring.rows.tobytes()
                continue
            differs = np.flatnonzero(ring.moving & (np.frombuffer(content, slots.ROW) != ring.rows))
            kernel.patch_inner(PREVIOUS.name, array, {int(row): ring.rows[row].tobytes() for row in differs})
        except KernelError as error:
            outcomes[index] = error
    made = kernel.replace_inner(PREVIOUS.name, new)
    return outcomes | {array % RINGS.capacity: outcome for array, outcome in zip(new, made, strict=True)}


def _write_slots(kernel: Kernel, rings: Mapping[int, Held]) -> dict[int, Outcome]:
    """Overwrite the slots that differ; rings of another size are swapped, and the rows of the former ones removed."""
    outcomes: dict[int, Outcome] = {}
    whole: dict[int, Held] = {}
    for index, ring in rings.items():
        try:
            if not _patch(kernel, index, ring):
                whole[index] = ring
            outcomes[index] = None
        except KernelError as error:
            outcomes[index] = error
    swapped = kernel.replace_inner(RINGS.name, {index: ring.content for index, ring in whole.items()})
    outcomes |= zip(whole, swapped, strict=True)
    kernel.remove_inner(PREVIOUS.name, [
        _rows_index(index, bank) for index, ring in whole.items() for bank in (0, 1)
        if not outcomes[index] and (bank != ring.bank or not ring.moving.any())
    ])  # fmt: skip
    return outcomes


def _write_heads(kernel: Kernel, rings: Mapping[int, Held]) -> dict[int, Outcome]:
    held = heads(kernel)
    wrong = {index: ring.head for index, ring in rings.items() if held.get(index, 0) != ring.head}
    rows = [(_INDEX.pack(index), _INDEX.pack(head)) for index, head in wrong.items()]
    return dict(zip(wrong, kernel.update(RING_HEADS.name, rows), strict=True))


def _rows_index(index: int, bank: int) -> int:
    """The index in `previous` of the array with a ring's rows."""
    return index + bank * RINGS.capacity
