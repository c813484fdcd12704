# SPDX-License-Identifier: Apache-2.0
"""What programs write into maps, carried to maps of another size."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace

import numpy as np
import pytest

from reconciler import clock
from reconciler.dataplane.connections import Pair, find, of_pairs, table_of
from reconciler.dataplane.description import describe
from reconciler.dataplane.flow_memory import resized
from reconciler.dataplane.layout import (
    CONNECTION_MAPS,
    CONNECTIONS,
    ENDPOINT_COUNTERS,
    ENDPOINTS,
    FRONTS,
    REMEMBERED,
    SEED,
    ConnectionState,
    MapSpec,
    MapType,
)
from reconciler.dataplane.row import RowType
from reconciler.dataplane.rows import Endpoint, EndpointLine, Front, Number, Traffic
from reconciler.kernel import bpf, connections, cpus, filling, maps, whole_maps
from reconciler.kernel.carrying import Connections, Counters, FlowMemory, FormerConnections
from reconciler.kernel.maps import OpenMap, Shape
from tests.connections import UDP, connection
from tests.kernel.former import FLOWS, flow_rows

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
        yield FlowMemory(REMEMBERED.name, opened[0], described[0], opened[1], described[1], nothing_beside)


def nothing_beside(name: str) -> OpenMap:
    raise AssertionError(name)


def buckets(opened: maps.OpenMap) -> np.ndarray:
    return np.frombuffer(whole_maps.read_array(opened), np.uint64).reshape(opened.shape.capacity, -1)


def is_resized(memory: FlowMemory, content: np.ndarray) -> bool:
    """Whether the target has the flows of this content, in places of any order."""
    wanted, held = resized(content, memory.target.shape.capacity), buckets(memory.target)
    return bool((np.sort(held, axis=1) == np.sort(wanted, axis=1)).all())


def write(opened: maps.OpenMap, content: np.ndarray) -> None:
    whole_maps.overwrite(opened, [(b"", content.tobytes())])


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
        yield Counters(
            "endpoint_counters", source, describe(former, 100), target, describe(ENDPOINT_COUNTERS, 50), nothing_beside
        )  # fmt: skip


def count(opened: OpenMap, number: int, packets: int) -> None:
    """Let each CPU have counted so many packets, and one more for each CPU before it."""
    each = [bytes(8) + (packets + cpu).to_bytes(8, "little") + bytes(24) for cpu in cpus.cpu_numbers()]
    maps.update_one(opened, number.to_bytes(4, "little"), b"".join(each))


def lines(opened: OpenMap, number: int) -> list[EndpointLine]:
    row = maps.lookup(opened, number.to_bytes(4, "little"))
    assert row is not None
    return ENDPOINT_COUNTERS.value.rows(ENDPOINT_COUNTERS.value.array(row))


def test_counters_of_the_kernels_own_kind_are_carried_cpu_by_cpu(counters: Counters) -> None:
    count(counters.source, 49, packets=1_000)
    filling.fill(counters.name, counters.source, counters._held, counters.target, counters._wanted)
    for cpu in cpus.cpu_numbers():
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


@pytest.fixture(autouse=True)
def _one_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a connection may be seen a unit later than the same one before."""
    moment = clock.now_ns()
    monkeypatch.setattr(clock, "now_ns", lambda: moment)


@pytest.fixture
def beside() -> Iterator[dict[str, OpenMap]]:
    """Maps of the generation that takes over."""
    with ExitStack() as stack:
        opened = {}
        for spec, capacity in ((SEED, 1), (FRONTS, 8), (ENDPOINTS, 8)):
            fd = maps.create(spec.name, Shape(spec.type, 4, spec.value_size, capacity), flags=spec.flags)
            opened[spec.name] = maps.describe(stack.enter_context(bpf.closing(fd)))
        maps.update_one(opened[SEED.name], bytes(4), bytes(range(16)))
        yield opened


def table(buckets: int, stack: ExitStack, spec: MapSpec = CONNECTIONS) -> OpenMap:
    fd = maps.create(spec.name, Shape(MapType.ARRAY, 4, spec.value_size, buckets), flags=spec.flags)
    return maps.describe(stack.enter_context(bpf.closing(fd)))


@pytest.fixture(params=[4, 6], ids=["ipv4", "ipv6"])
def version(request: pytest.FixtureRequest) -> int:
    return int(request.param)


@pytest.fixture
def one(version: int) -> Callable[..., Pair]:
    """Makes connections of the family."""
    return functools.partial(connection, version=version)


@pytest.fixture(params=[(40, 70), (70, 40)], ids=["larger", "smaller"])
def carried(request: pytest.FixtureRequest, version: int, beside: dict[str, OpenMap]) -> Iterator[Connections]:
    """Two empty tables of connections."""
    spec = CONNECTION_MAPS[version]
    with ExitStack() as stack:
        source, target = (table(buckets, stack, spec) for buckets in request.param)
        descriptions = [describe(spec, buckets) for buckets in request.param]
        yield Connections(spec.name, source, descriptions[0], target, descriptions[1], beside.__getitem__)


def hold(opened: OpenMap, *pairs: Pair) -> None:
    """Let a table have these, as if its program had put them there."""
    seed = np.frombuffer(bytes(range(16)), np.uint64)
    connections.Table(opened, seed).fill(of_pairs(list(pairs)))


def pairs_of(opened: OpenMap) -> set[Pair]:
    """What a program finds: in the buckets where it looks."""
    entries, seed = connections.held(opened), np.frombuffer(bytes(range(16)), np.uint64)
    assert (find(table_of(maps.words(opened), opened.shape.value_size // 8), entries, seed) >= 0).all()
    return set(entries.by_key().values())


def test_connections_of_each_round_are_carried(
    carried: Connections, one: Callable[..., Pair]
) -> None:
    first = [one(number) for number in range(60)]
    hold(carried.source, *first)
    carried.prepare()
    assert pairs_of(carried.target) == set(first)
    assert carried.follow() == 0
    later = [one(1, silence=3), *first[2:50], *(one(number) for number in range(100, 120))]
    hold(carried.source, *later)
    assert carried.follow() == 1 + 11 + 20
    assert pairs_of(carried.target) == set(later)
    carried.prepare()
    assert pairs_of(carried.target) == set(later)


def test_after_the_swap_what_the_new_program_knows_better_stays(
    carried: Connections, one: Callable[..., Pair]
) -> None:
    old, seen, closed, gone, moved, back = (one(number, silence=9) for number in range(6))
    hold(carried.source, old, seen, closed, gone, moved, back)
    carried.prepare()
    theirs = one(1), one(2, ConnectionState.OVER), one(4, endpoint=3)
    hold(carried.target, old, *theirs, gone)
    late = one(0, silence=5), one(2, silence=5), one(7), one(5, endpoint=2)
    hold(carried.source, seen, *late, moved)
    carried.finish()
    assert pairs_of(carried.target) == {late[0], late[2], late[3], *theirs}


def test_a_takeover_that_another_process_ends_adds_what_is_missing_and_touches_nothing(
    carried: Connections, one: Callable[..., Pair]
) -> None:
    hold(carried.source, one(1, silence=5), one(2))
    hold(carried.target, one(1), one(3))
    carried.finish()
    assert pairs_of(carried.target) == {one(1), one(2), one(3)}


def test_an_open_connection_takes_the_place_of_one_that_is_over(beside: dict[str, OpenMap]) -> None:
    with ExitStack() as stack:
        source, target = table(1, stack), table(1, stack)
        carried = Connections(
            CONNECTIONS.name, source, describe(CONNECTIONS, 1), target, describe(CONNECTIONS, 1), beside.__getitem__
        )  # fmt: skip
        over = connection(4, ConnectionState.OVER)
        hold(target, *(connection(number) for number in range(3)), over)
        hold(source, *(connection(number) for number in (7, 8)))
        carried.finish()
        assert len(pairs_of(target)) == 4 and over not in pairs_of(target)
        assert {connection(number) for number in range(3)} < pairs_of(target)


def test_connections_of_the_former_table_are_joined_from_their_halves_and_get_fronts(
    beside: dict[str, OpenMap]
) -> None:
    """One half may have been lost; one connection's service is gone, one's has another target port now."""
    for number, (vip, port, target_port) in enumerate([("20.20.20.1", 80, 8080), ("20.20.20.1", 81, 8081)]):
        front = Front(bytes(map(int, vip.split("."))) + bytes(12), port, target_port, 867, 6, 4)
        maps.update_one(beside[FRONTS.name], *FRONTS.pack(Number(number), front))
    own_port = Endpoint(bytes((10, 2, 0, 2)), 9000, 1)
    maps.update_one(beside[ENDPOINTS.name], *ENDPOINTS.pack(Number(2), own_port))
    with ExitStack() as stack:
        source = stack.enter_context(flow_rows(100))
        both = source.connect(1, "20.20.20.1", 80, endpoint=1, port=8080, state=1)
        request = source.connect(2, "20.20.20.1", 81, endpoint=2, port=9000, state=0, halves="request")
        reply = source.connect(3, "20.20.20.1", 80, endpoint=1, port=8080, state=2, halves="reply")
        gone = source.connect(4, "20.20.20.9", 80, endpoint=1, port=80, state=1)
        changed = source.connect(5, "20.20.20.1", 81, endpoint=1, port=8000, state=1)
        datagrams = source.connect(6, "20.20.20.1", 53, endpoint=1, port=53, state=1, protocol=UDP)
        source.connect(7, "20.20.20.1", 80, endpoint=1, port=8080, state=1, age_s=8_000)
        target = table(20, stack)
        carried = FormerConnections(
            FLOWS, source.opened, source.description, target, describe(CONNECTIONS, 20), beside.__getitem__
        )  # fmt: skip
        carried.prepare()
        fronts = FRONTS.value.rows(FRONTS.value.array(whole_maps.read_joined(beside[FRONTS.name])[1]))
        found = {who >> 32: (who >> 11 & 7, where >> 47, fronts[where >> 29 & 0x3FFFF]) for who, where in
                 pairs_of(target)}  # fmt: skip
        states = ConnectionState
        assert {client: (state, endpoint, front.port, front.target_port, front.protocol, front.vip[:4])
                for client, (state, endpoint, front) in found.items()} == {
            both: (states.OPEN, 1, 80, 8080, 6, bytes((20, 20, 20, 1))),
            request: (states.OPENING, 2, 81, 8081, 6, bytes((20, 20, 20, 1))),
            reply: (states.CLIENT_CLOSED, 1, 80, 8080, 6, bytes((20, 20, 20, 1))),
            gone: (states.OPEN, 1, 80, 0, 6, bytes((20, 20, 20, 9))),
            changed: (states.OPEN, 1, 81, 8000, 6, bytes((20, 20, 20, 1))),
            datagrams: (states.OPEN, 1, 53, 0, 17, bytes((20, 20, 20, 1))),
        }  # fmt: skip
        before = pairs_of(target)
        assert carried.follow() == carried.finish() == 0
        assert pairs_of(target) == before
