# SPDX-License-Identifier: Apache-2.0
"""What programs write into maps, carried to maps of another size."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack

import numpy as np
import pytest

from reconciler.dataplane.description import describe
from reconciler.dataplane.flow_memory import resized
from reconciler.dataplane.layout import REMEMBERED
from reconciler.kernel import bpf, maps
from reconciler.kernel.carrying import FlowMemory

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
