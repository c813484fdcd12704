# SPDX-License-Identifier: Apache-2.0
"""What programs write into maps, carried to maps of another size."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace

import numpy as np
import pytest

from reconciler.dataplane.description import describe
from reconciler.dataplane.flow_memory import resized
from reconciler.dataplane.layout import ENDPOINT_COUNTERS, REMEMBERED, MapType
from reconciler.dataplane.row import RowType
from reconciler.dataplane.rows import EndpointLine, Traffic
from reconciler.kernel import bpf, filling, maps
from reconciler.kernel.carrying import Counters, FlowMemory
from reconciler.kernel.maps import OpenMap, Shape

pytestmark = pytest.mark.kernel


@pytest.fixture(params=[(512, 1024), (1024, 512), (512, 512)], ids=["larger", "smaller", "as large"])
def memory(request: pytest.FixtureRequest) -> Iterator[FlowMemory]:
    """Two empty tables of remembered flows."""
    with ExitStack() as stack:
        opened, described = [], []
        for capacity in request.param:
            shape = maps.Shape(REMEMBERED.type, REMEMBERED.key_size, REMEMBERED.value_size, capacity)
            fd = maps.create(REMEMBERED.name, shape, flags=REMEMBERED.flags)
            opened.append(maps.describe(stack.enter_context(bpf.closing(fd))))
            described.append(describe(REMEMBERED, capacity))
        yield FlowMemory(REMEMBERED.name, opened[0], described[0], opened[1], described[1])


def buckets(opened: maps.OpenMap) -> np.ndarray:
    return np.frombuffer(maps.read_array(opened), np.uint64).reshape(opened.shape.capacity, -1)


def is_resized(memory: FlowMemory, content: np.ndarray) -> bool:
    """Whether the target has the flows of this content, in places of any order."""
    wanted, held = resized(content, memory.target.shape.capacity), buckets(memory.target)
    return bool((np.sort(held, axis=1) == np.sort(wanted, axis=1)).all())


def write(opened: maps.OpenMap, content: np.ndarray) -> None:
    maps.overwrite(opened, [(b"", content.tobytes())])


def flow(number: int) -> int:
    return number << 32 | 3


def test_the_flows_of_each_round_are_carried_and_nothing_else_is_touched(memory: FlowMemory) -> None:
    """The rounds before the swap have only what came meanwhile: so what came after the last one is little."""
    content = buckets(memory.source).copy()
    content[:100, 0] = [flow(n) for n in range(1, 101)]
    write(memory.source, content)
    memory.prepare()
    assert is_resized(memory, content)
    assert memory.follow() == 0
    content[3, 1], content[4, 0], content[5, 0] = flow(200), flow(5) | 1 << 15, 0
    write(memory.source, content)
    homes = max(memory.target.shape.capacity // memory.source.shape.capacity, 1)
    assert memory.follow() == 3 * homes
    assert is_resized(memory, content)
    assert memory.follow() == 0


def test_after_the_swap_what_the_new_program_wrote_stays(memory: FlowMemory) -> None:
    content = buckets(memory.source).copy()
    content[7, :3] = [flow(1), flow(2), flow(3)]
    write(memory.source, content)
    memory.prepare()
    theirs = buckets(memory.target).copy()
    theirs[7, theirs[7] == flow(1)] |= np.uint64(1 << 15)  # the new program saw a packet of it
    write(memory.target, theirs)
    content[7, :4] = [flow(1) | 2 << 15, flow(2) | 2 << 15, 0, flow(4)]
    write(memory.source, content)
    memory.finish()
    found = {int(held) for held in buckets(memory.target)[7] if held}
    assert found == {flow(1) | 1 << 15, flow(2) | 2 << 15, flow(4)}


@pytest.fixture
def counters() -> Iterator[Counters]:
    """The kernel's own per-CPU counters, without ways, and those of this version with room for fewer endpoints."""
    former = replace(ENDPOINT_COUNTERS, type=MapType.PERCPU_ARRAY, value=RowType(Traffic))
    with ExitStack() as stack:
        opened = [
            stack.enter_context(bpf.closing(maps.create(spec.name, Shape(spec.type, 4, spec.value_size, capacity))))
            for spec, capacity in ((former, 100), (ENDPOINT_COUNTERS, 50))
        ]
        source, target = maps.describe(opened[0]), maps.describe(opened[1], MapType.CPU_ARRAY)
        yield Counters("endpoint_counters", source, describe(former, 100), target, describe(ENDPOINT_COUNTERS, 50))


def count(opened: OpenMap, number: int, packets: int) -> None:
    """Let each CPU have counted so many packets, and one more for each CPU before it."""
    each = [bytes(8) + (packets + cpu).to_bytes(8, "little") + bytes(24) for cpu in maps.cpu_numbers()]
    maps.update_one(opened, number.to_bytes(4, "little"), b"".join(each))


def lines(opened: OpenMap, number: int) -> list[EndpointLine]:
    row = maps.lookup(opened, number.to_bytes(4, "little"))
    assert row is not None
    return ENDPOINT_COUNTERS.value.rows(ENDPOINT_COUNTERS.value.array(row))


def test_counters_of_the_kernels_own_kind_are_carried_cpu_by_cpu(counters: Counters) -> None:
    count(counters.source, 49, packets=1_000)
    filling.fill(counters.name, counters.source, counters._held, counters.target, counters._wanted)
    for cpu in maps.cpu_numbers():
        assert lines(counters.target, 49)[cpu] == EndpointLine(*[0, 1_000 + cpu, 0, 0, 0, 0, 0, 0, 0, bytes(12)])
        assert not any(lines(counters.target, 48)[cpu][:5])


def test_what_was_counted_during_the_swap_is_added_and_ways_stay(counters: Counters) -> None:
    count(counters.source, 7, packets=10)
    counters.prepare()
    held = maps.by_cpu(counters.target)
    held[0, 7, 8:16].view(np.uint64)[0] += 5
    held[0, 7, 40:] = np.arange(1, 25)
    count(counters.source, 7, packets=12)
    counters.finish()
    assert lines(counters.target, 7)[0].request_packets == 17
    assert held[0, 7, 40:].tolist() == list(range(1, 25))
