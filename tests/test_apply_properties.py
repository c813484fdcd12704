# SPDX-License-Identifier: Apache-2.0
"""From any state to any other: apply arrives, by the shortest way, and never breaks what is published."""

import copy
import random
from itertools import groupby

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reconciler import plan as planning
from reconciler.apply import Result, apply
from reconciler.compile import compile_node
from reconciler.dataplane.endpoint_filter import let_pass as endpoints_pass
from reconciler.dataplane.endpoint_filter import lines_of
from reconciler.dataplane.layout import (
    ENDPOINT_FILTER,
    ENDPOINTS,
    ENDPOINTS6,
    FRONTS,
    MAPS,
    MEMBERS,
    NUMBER,
    RING_CHUNKS,
    RING_NAMES,
    SERVICES,
    SERVICES6,
    SOURCE_LISTS,
    SOURCE_MAPS,
    VIP_FILTER,
    VIPS,
    VIPS6,
    MapType,
)
from reconciler.dataplane.rows import Number, ServiceKey
from reconciler.dataplane.vip_filter import let_pass
from reconciler.errors import ApplyError, ForeignError
from reconciler.kernel.fake import FakeKernel
from reconciler.kernel.faulty import FaultyKernel
from reconciler.kernel.objects import AttachedProgram, LocalVip
from reconciler.kinds.endpoint import endpoint_table, numbered_rows
from reconciler.kinds.sources import SourceList
from reconciler.live import read_live
from reconciler.render.style import Style
from reconciler.render.text import plan_text
from reconciler.resource import Action, Desired, Key
from reconciler.snapshot import live_from_json, live_to_json
from reconciler.view import view
from tests.rings import read_ring
from tests.strategies import fake_source, fleets

FOREIGN_VIP = LocalVip("192.0.2.9", "address")
ROUNDS = 40
NOBODY = {0}  # a pool that loses its last endpoint is emptied slot by slot
_SERVICES = (SERVICES.name, SERVICES6.name)


@pytest.fixture(autouse=True)
def fixed_source(monkeypatch):
    monkeypatch.setattr("reconciler.dataplane.program.source", fake_source)


def desired_of(fleet):
    return compile_node(view(fleet, None, "host"))


def plan_for(kernel, desired):
    return planning.plan(desired, read_live(kernel, desired.resources))


def held(kernel, desired):
    """What the node holds of our kinds; settings that are at their former value are nobody's."""
    resources = read_live(kernel, desired.resources).resources
    return {key: r for key, r in resources.items() if key in desired.resources or key.kind != "sysctl"}


def written(desired):
    """What lbctl has to write, without what the node must have by itself."""
    return {key: r for key, r in desired.resources.items() if not r.is_given}


def kernel_with_strangers(kernel):
    kernel.foreign_vips[FOREIGN_VIP.address] = "address on eth9"
    kernel.foreign_programs["eth9"] = AttachedProgram("eth9", "native", 99, "xdp_pass", "program 'xdp_pass'")
    kernel.sysctls["net/ipv4/tcp_sack"] = "1"
    return kernel


def strangers(kernel):
    return copy.deepcopy((kernel.foreign_vips, kernel.foreign_programs, kernel.sysctls["net/ipv4/tcp_sack"]))


def dangling(kernel):
    """Published services whose ring is missing or points to an endpoint that is not there."""
    addresses6 = {NUMBER.unpack(key).number for key in kernel.maps.get(ENDPOINTS6.name, {})}
    rows = {NUMBER.unpack(key).number: value for key, value in kernel.maps.get(ENDPOINTS.name, {}).items()}
    endpoints = {number for number, value in rows.items() if any(value[:4]) or number in addresses6}
    named = {RING_NAMES.value.unpack(value).number for value in kernel.maps.get(RING_NAMES.name, {}).values()}
    for key, value in (row for name in _SERVICES for row in kernel.maps.get(name, {}).items()):
        index = SERVICES.value.unpack(value).ring
        ring = read_ring(kernel, index)
        if not allowed_as_noted(kernel, SERVICES.value.unpack(value)):
            yield key
        if index not in named or (ring and not set(ring.endpoints.tolist()) - NOBODY <= endpoints):
            yield key


def allowed_as_noted(kernel, row):
    """Whether the list that a service leads to is whole: on the levels that the row says, it has its networks."""
    if not row.sources:
        return not row.levels
    lists = {key.name.decode(): note for key, note in SOURCE_LISTS.unpack(kernel.dump(SOURCE_LISTS.name))}
    name = next((name for name, note in lists.items() if note.number == row.sources), "")
    held = read_live(kernel, kinds=(SourceList.kind,)).resources.get(Key(SourceList.kind, name))
    return bool(held) and not held.flaw and row.levels in (lists[name].levels, lists[name].levels6)


def hidden(kernel):
    """VIP rows that the program does not see, since the filter holds their packets back."""
    rows = {key for name in (VIPS.name, VIPS6.name) for key in kernel.maps.get(name, {})}
    return rows - let_pass(rows, kernel.maps.get(VIP_FILTER.name, {}).get(bytes(4), bytes(VIP_FILTER.value_size)))


def held_back(kernel):
    """Endpoints whose replies NAT does not see, for the same reason."""
    table = endpoint_table(kernel)
    lines = lines_of(kernel.joined(ENDPOINT_FILTER.name), kernel.capacity(ENDPOINT_FILTER.name))
    return table.numbers[~endpoints_pass(table.words, lines) & ~table.is_retired].tolist() if len(lines) else []


def assert_safe(kernel):
    assert not list(dangling(kernel))
    assert not hidden(kernel)
    assert not held_back(kernel)


def bring_to(kernel, fleet):
    desired = desired_of(fleet)
    apply(plan_for(kernel, desired), kernel).raise_if_failed()


def writes_of_changes(kernel):
    """All writes but those of chunks for rings and their members, nodes of lists of sources, what clients see of
    services, and lines of the filter of endpoints, which are as many as they are."""
    others = {RING_CHUNKS.name, MEMBERS.name, FRONTS.name, ENDPOINT_FILTER.name}
    others |= {spec.name for spec in SOURCE_MAPS.values()}
    return [what for _, what in kernel.writes if not isinstance(what, tuple) or what[0] not in others]


def cost(plan, kernel):
    """Element writes that cannot be saved: one a change, but a ring that has slots comes and goes together with its
    name, and changes with the note beside that, a new endpoint with an IPv6 address has that in another map, and the
    filter follows VIPs that come, and VIPs that go."""
    numbered = {row.row.id for row in numbered_rows(kernel)}
    addresses6 = sum(
        c.key.kind == "endpoint" and c.action is Action.CREATE and ":" in c.key.id.rpartition(":")[0]
        and c.key.id not in numbered for c in plan.changes
    )  # fmt: skip
    pairs = sum(
        c.key.kind == "ring" and c.action is not Action.UPDATE and bool((c.after or c.before).members)
        for c in plan.changes
    )  # fmt: skip
    pairs += sum(c.key.kind == "ring" and c.action is Action.UPDATE for c in plan.changes)
    both = ("loopback", "announcement")  # the new form, or metric, is there before the former one goes
    forms = sum(c.key.kind in both and c.action is Action.UPDATE for c in plan.changes)
    modes = sum(
        c.key.kind == "xdp" and c.action is Action.UPDATE and c.before.mode != c.after.mode for c in plan.changes
    )
    batches = groupby(plan.changes, key=lambda c: (c.key.kind, c.after is None))  # those of sources are apart
    filters = sum(kind == "vip" and any(c.action is not Action.UPDATE for c in batch) for (kind, _), batch in batches)
    uncounted = sum(c.key.kind == "members" for c in plan.changes)
    changes = len(plan.changes) - uncounted
    return changes + pairs + forms + modes + addresses6 + filters + put_back(plan, kernel)


def put_back(plan, kernel):
    """Settings of interfaces that the kernel sets along with that of `all`, to another value than they had."""
    switch, places = "net/ipv6/conf/all/forwarding", ("default", "lo", *kernel.interfaces, *kernel.vlans)
    then = {c.after.value if c.after else kernel.former[c.key.id] for c in plan.changes if c.key.id == switch}
    return sum(kernel.sysctls[f"net/ipv6/conf/{place}/forwarding"] != value for value in then for place in places)


@given(fleets(), fleets())
@settings(max_examples=150, deadline=None)
def test_apply_arrives_with_the_fewest_writes_and_never_publishes_a_dangling_service(start, goal):
    kernel = kernel_with_strangers(FakeKernel())
    bring_to(kernel, start)
    before = strangers(kernel)
    kernel.writes.clear()

    def on_write():
        assert_safe(kernel)
        if kernel.silent is not None and kernel.writes[-1][0] == "write_sysctl":
            kernel.writes.pop()  # what is closed while a program changes its mode is opened again at once

    kernel.on_write = on_write
    desired = desired_of(goal)
    planned = plan_for(kernel, desired)
    needed = cost(planned, kernel)
    result = apply(planned, kernel)
    result.raise_if_failed()
    assert not result.skipped
    assert held(kernel, desired) == written(desired)
    assert len(writes_of_changes(kernel)) == needed
    assert strangers(kernel) == before


@given(fleets())
@settings(max_examples=50, deadline=None)
def test_a_plan_of_an_unchanged_node_is_empty_and_writes_nothing(fleet):
    kernel = FakeKernel()
    bring_to(kernel, fleet)
    kernel.writes.clear()
    planned = plan_for(kernel, desired_of(fleet))
    assert planned.changes == ()
    apply(planned, kernel)
    assert kernel.writes == []


@given(fleets(), fleets(), st.integers(0, 2**32))
@settings(max_examples=100, deadline=None)
def test_damaged_state_is_mended(start, goal, seed):
    chance = random.Random(seed)
    kernel = FakeKernel()
    bring_to(kernel, start)
    for rows in kernel.maps.values():
        for key in [k for k in rows if chance.random() < 0.3]:
            del rows[key]
    for vip in [v for v in kernel.vips if chance.random() < 0.3]:
        kernel.vips.remove(vip)
    desired = desired_of(goal)
    apply(plan_for(kernel, desired), kernel).raise_if_failed()
    assert held(kernel, desired) == written(desired)


def damage_rows(kernel, chance):
    """What a stray program could leave in the maps: bytes overwritten, rows doubled under another key."""
    for name, rows in kernel.maps.items():
        spec = MAPS[name]
        is_hash = spec.type not in (MapType.ARRAY, MapType.PERCPU_ARRAY, MapType.CPU_ARRAY)
        for key, value in list(rows.items()):
            if chance.random() < 0.3:
                value = rows[key] = overwritten(value, chance)
            if is_hash and chance.random() < 0.3:
                other = overwritten(key, chance)
                rows[other] = value
                if chance.random() < 0.5:
                    rows.pop(key)
            elif name == ENDPOINTS.name and chance.random() < 0.3:
                rows[NUMBER.pack(Number(chance.randrange(1, kernel.capacity(name))))] = value
    for content in kernel.inner.get(RING_CHUNKS.name, {}).values():
        for _ in range(chance.randrange(4)):
            content[chance.randrange(2_000)] = chance.choice((0, 1, 2**64 - 1, chance.randrange(2**64)))


def overwritten(content, chance):
    """The same with a byte of another value, or all of it random."""
    if chance.random() < 0.2:
        return chance.randbytes(len(content))
    place = chance.randrange(len(content))
    return content[:place] + bytes([chance.choice((0, 1, 255, chance.randrange(256)))]) + content[place + 1 :]


@given(fleets(), fleets(), st.integers(0, 2**32), st.booleans())
@settings(max_examples=300, deadline=None)
def test_rows_that_somebody_overwrote_are_drift_and_hold_nothing_up(start, goal, seed, is_delete):
    chance = random.Random(seed)
    kernel = FakeKernel()
    bring_to(kernel, start)
    damage_rows(kernel, chance)
    desired = Desired() if is_delete else desired_of(goal)
    for _ in range(2):  # a ring whose endpoints got their right numbers back may take another look
        planned = plan_for(kernel, desired)
        plan_text(planned, Style())
        live_from_json(live_to_json(planned.live))
        apply(planned, kernel).raise_if_failed()
    assert held(kernel, desired) == written(desired)
    assert is_delete or not plan_for(kernel, desired).changes
    assert not is_delete or not any(kernel.maps.values())


@given(fleets(), fleets(), st.integers(0, 2**32))
@settings(max_examples=150, deadline=None)
def test_with_one_write_in_ten_failing_it_arrives_or_rolls_back_and_says_so(start, goal, seed):
    chance = random.Random(seed)
    kernel = kernel_with_strangers(FaultyKernel())
    bring_to(kernel, start)
    before = strangers(kernel)
    kernel.fails = lambda: chance.random() < 0.1
    kernel.on_write = lambda: assert_safe(kernel)
    desired = desired_of(goal)
    for _ in range(ROUNDS):
        planned = plan_for(kernel, desired)
        was = planned.live.resources
        result = apply(planned, kernel)
        now = read_live(kernel, desired.resources).resources
        for key in desired.resources.keys() & (result.failed.keys() | result.skipped.keys()):
            assert key in result.stuck or now.get(key) == was.get(key)
        if not result.failed and not result.skipped:
            break
    assert held(kernel, desired) == written(desired)
    assert strangers(kernel) == before


def test_a_foreign_object_in_the_way_blocks_its_service_only(web_fleet):
    kernel = FakeKernel(foreign_vips={"20.20.20.1": "address on eth0"})
    desired = desired_of(web_fleet)
    planned = plan_for(kernel, desired)
    vip = Key("loopback", "20.20.20.1")
    assert planned.blocked == {vip: "in the way: address on eth0, which is not lbctl's"}
    result = apply(planned, kernel)
    assert list(result.blocked) == [vip]
    assert kernel.writes == []


def test_a_failed_service_is_undone_and_the_other_goes_through(two_services):
    kernel = FaultyKernel()
    desired = desired_of(two_services)
    broken = Key("service", "20.20.20.1:80/tcp")
    row = SERVICES.key.pack(ServiceKey(bytes((20, 20, 20, 1)), 80, 6))
    update = kernel.update
    kernel.update = lambda name, rows: [
        OSError("no") if (name, key) == (SERVICES.name, row) else update(name, [(key, value)])[0]
        for key, value in rows
    ]
    result = apply(plan_for(kernel, desired), kernel)
    assert set(result.failed) == {broken}
    names = {key.rstrip(b"\0").decode() for key in kernel.maps[RING_NAMES.name]}
    assert names == {"blue/round-robin"}
    held_now = read_live(kernel).resources
    assert Key("service", "20.20.20.2:80/tcp") in held_now
    assert Key("endpoint", "10.2.0.1:8080") not in held_now
    assert Key("endpoint", "10.2.0.2:8080") in held_now


def test_the_way_out_of_what_failed_ends_the_text():
    failed = {Key("loopback", "20.20.20.1"): ForeignError("20.20.20.1 is on eth0", hint="remove it")}
    with pytest.raises(ApplyError) as caught:
        Result(failed=failed).raise_if_failed()
    assert str(caught.value).endswith("The node is as it was\n  hint: remove it")
