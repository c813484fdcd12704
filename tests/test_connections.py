# SPDX-License-Identifier: Apache-2.0
"""NAT's connections in user space: placed as the program looks for them, told apart by age, cleared when they are no
more, and counted, chosen and shown as they are."""

import json
import re
import struct
from ipaddress import IPv4Address, IPv6Address

import numpy as np
import pytest

from reconciler import clock
from reconciler import connections as node
from reconciler.dataplane import connections as table
from reconciler.dataplane.connections import (
    BUCKET_WORDS,
    WIDE_WORDS,
    Entries,
    entry,
    find,
    homes,
    idle_units,
    of_pairs,
    placed,
    unit_of,
)
from reconciler.dataplane.layout import CONNECTION_MAPS, ENDPOINTS, FRONTS, TRANSLATED_MAPS, ConnectionState
from reconciler.dataplane.rows import Endpoint, Front, Number
from reconciler.kernel.fake import FakeKernel
from reconciler.kinds.program import Program, ProgramKind
from reconciler.limits import Sizes
from reconciler.paths import data_dir
from reconciler.readings import metrics
from reconciler.readings.flow_filter import FlowFilter
from reconciler.readings.flows import chosen, flows, open_counts
from reconciler.render import flows as render
from tests.connections import SCTP, TCP, UDP, connection, put
from tests.packets.table import _mix64

OPENING, OPEN, OVER = ConnectionState.OPENING, ConnectionState.OPEN, ConnectionState.OVER
SEED = np.array([0x0123456789ABCDEF, 0xFEDCBA9876543210], np.uint64)


@pytest.fixture(autouse=True)
def _one_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a connection may be seen a unit later than the same one before."""
    moment = clock.now_ns()
    monkeypatch.setattr(clock, "now_ns", lambda: moment)


BOTH = pytest.mark.parametrize("version", [4, 6], ids=["ipv4", "ipv6"])


def strangers(count: int, version: int = 4) -> Entries:
    rng = np.random.default_rng(7)
    addresses = rng.integers(1, 1 << 63, (count, 2), dtype=np.uint64) if version == 6 else None
    who = rng.integers(1 << 32, 1 << 63, count, dtype=np.uint64) >> np.uint64(16) << np.uint64(16)
    where = rng.integers(1 << 47, 1 << 63, count, dtype=np.uint64)
    return Entries(who | np.uint64(1 << 14 | OPEN << 11), where, addresses)


def test_a_connection_lies_where_the_program_looks_for_it() -> None:
    """As tests/packets/table.py has it, which whole packets are held against."""
    of = strangers(1_000)
    both = np.stack(homes(of, SEED, 617), axis=1).tolist()
    for who, buckets in zip(of.who.tolist(), both, strict=True):
        mixed = _mix64((_mix64((who >> 14 << 14) ^ int(SEED[0])) + int(SEED[1])) % 2**64)
        assert buckets == [(mixed >> 32) * 617 >> 32, (mixed % 2**32) * 617 >> 32]


def test_a_connection_over_ipv6_lies_where_the_program_looks_for_it() -> None:
    """Said once more, one by one: words of the address as they are loaded from a packet."""
    of = of_pairs([connection(number, version=6) for number in range(100)])
    both = np.stack(homes(of, SEED, 617), axis=1).tolist()
    for number, buckets in enumerate(both):
        words = struct.unpack("=4I", (IPv6Address("2001:db8:9::") + number).packed)
        mixed = _mix64((40_000 << 16 | 1 << 14) ^ int(SEED[0]))
        mixed = _mix64((mixed + (words[0] << 32 | words[1])) % 2**64) ^ int(SEED[1])
        mixed = _mix64((mixed + (words[2] << 32 | words[3])) % 2**64)
        assert buckets == [(mixed >> 32) * 617 >> 32, (mixed % 2**32) * 617 >> 32]


@BOTH
def test_a_table_that_is_filled_at_once_has_room_for_all_that_it_is_made_for(version: int) -> None:
    of = strangers(40_000, version)
    content, lost = placed(of, SEED, 25_000)
    assert lost <= 6  # 23 in a million when this was written
    places = find(content, of, SEED)
    assert np.count_nonzero(places < 0) == lost
    words, held = content.reshape(-1), places >= 0
    assert (words[places[held]] == of.who[held]).all() and (words[places[held] + 4] == of.where[held]).all()
    assert table.used(content) == of.size - lost == table.entries(content).size
    others = Entries(of.who, of.where ^ np.uint64(1 << 29), of.addresses)
    assert (find(content, others, SEED) == -1).all(), "of another service"


def test_clients_with_the_same_hash_are_told_apart_by_their_addresses() -> None:
    one, other = connection(1, version=6), connection(2, version=6)
    both = of_pairs([one, (one[0], one[1], *other[2:])])
    content, _ = placed(both, SEED, 3)
    places = find(content, both, SEED)
    assert len(set(places.tolist()) - {-1}) == 2
    assert len(table.entries(content).by_key()) == 2


def test_in_a_table_that_is_too_small_those_that_matter_least_find_no_room() -> None:
    of = strangers(400)
    of.who[:200] |= np.uint64(OVER << 11)
    of.who[:200] &= ~np.uint64(OPEN << 11)
    content, lost = placed(of, SEED, 90)
    assert lost >= 40
    held = find(content, of, SEED) >= 0
    assert held[200:].all() and not held[:200].all()


@pytest.mark.parametrize(
    ("state", "protocol", "limit"),
    [(OPENING, TCP, 28), (OPEN, TCP, 867), (ConnectionState.CLIENT_CLOSED, TCP, 28), (OVER, TCP, 3),
     (OPENING, UDP, 4), (OPEN, UDP, 14), (OPENING, SCTP, 28), (OPEN, SCTP, 70), (OVER, SCTP, 3)],
)  # fmt: skip
def test_a_connection_is_one_until_it_was_silent_for_longer_than_its_state_allows(
    state: ConnectionState, protocol: int, limit: int
) -> None:
    of = of_pairs([connection(1, state, silence=silence, protocol=protocol) for silence in (-1, 0, limit, limit + 1)])
    now = unit_of(clock.now_ns())
    assert of.is_live(now, np.zeros(1, np.uint16)).tolist() == [True, True, True, False]
    own = [True, True, limit <= 99, limit < 99] if state is OPEN else [True, True, True, False]
    assert of.is_live(now, np.array([99], np.uint16)).tolist() == own


def test_the_program_has_the_same_limits() -> None:
    header = (data_dir("bpf") / "connection.h").read_text()
    found = {name: int(number) for name, number in re.findall(r"^#define (\w+) (\d+)\b", header, re.MULTILINE)}
    names = {
        "TRANSITORY": (1, OPENING), "OVER_IDLE": (1, OVER), "TCP_IDLE": (1, OPEN),
        "UDP_OPENING_IDLE": (2, OPENING), "UDP_IDLE": (2, OPEN), "SCTP_IDLE": (3, OPEN), "SEEN_SHIFT_NS": None,
    }  # fmt: skip
    limits = {name: int(table._LIMITS[at]) if at else table.UNIT_SHIFT for name, at in names.items()}
    assert {name: found[name] for name in names} == limits
    assert set(table._LIMITS[1].tolist()) == {found[name] for name in ("TRANSITORY", "OVER_IDLE", "TCP_IDLE")}
    assert set(table._LIMITS[2].tolist()) == {found[name] for name in ("UDP_OPENING_IDLE", "UDP_IDLE")}
    assert set(table._LIMITS[3].tolist()) == {found[name] for name in ("TRANSITORY", "OVER_IDLE", "SCTP_IDLE")}


def test_a_timeout_is_rounded_up() -> None:
    assert [idle_units(s) for s in (0.5, 8.5, 8.6, 120, 7_440, 14_400)] == [1, 1, 2, 14, 867, 1_677]


@pytest.fixture
def kernel() -> FakeKernel:
    """A node with two services, whose numbers are 0 and 1, and two endpoints, 1 and 2."""
    kernel = FakeKernel()
    kernel.load_program("lbctl", ("NAT", "NAT6", "UDP"), Sizes(flows=100))
    for number, (port, protocol, idle) in enumerate(((80, 6, 867), (53, 17, 2))):
        front = Front(IPv4Address("20.20.20.1").packed + bytes(12), port, 0, idle, protocol, 4)
        assert kernel.update(FRONTS.name, [FRONTS.pack(Number(number), front)]) == [None]
    for number in (1, 2):
        endpoint = Endpoint(IPv4Address(f"10.2.0.1{number}").packed, 8080, 1)
        assert kernel.update(ENDPOINTS.name, [ENDPOINTS.pack(Number(number), endpoint)]) == [None]
    return kernel


def held(kernel: FakeKernel, version: int = 4) -> int:
    spec = CONNECTION_MAPS[version]
    words = np.frombuffer(kernel.joined(spec.name)[1], np.uint64)
    return table.entries(table.table_of(words, spec.value_size // 8)).size


@BOTH
def test_only_live_connections_keep_numbers_from_being_used_again(kernel: FakeKernel, version: int) -> None:
    known = connection(1, endpoint=1, service=0, version=version)
    put(kernel, [known, connection(2, OVER, endpoint=2, service=1, silence=4, version=version)], version)
    assert node.numbers_in_use(kernel) == ({1}, {0})
    node.forget(kernel, endpoints=[2])
    assert held(kernel, version) == 1
    silent = connection(2, endpoint=2, service=1, silence=3, protocol=UDP, version=version)
    put(kernel, [known, silent], version)
    assert node.numbers_in_use(kernel) == ({1}, {0}), "its service lets it be silent for two units"
    node.forget(kernel, services=[1])
    assert held(kernel, version) == 1


@BOTH
def test_a_sweep_clears_what_is_no_more_in_its_slice_and_nothing_that_changed_since(
    kernel: FakeKernel, version: int
) -> None:
    old = [connection(number, silence=900, version=version) for number in range(8)]
    put(kernel, [*old, *(connection(number, version=version) for number in range(8, 12))], version)
    assert node.sweep(kernel, version, 1, 2) == 4
    assert held(kernel, version) == 8
    seen = {"words": 0}
    swap = kernel.swap_words

    def touched(name: str, swaps: list[tuple[int, int, int]]) -> list[bool]:
        words = np.array([(word, who) for word, who, _ in swaps], np.uint64)
        seen["words"] = len(words)
        now = connection(0)[0]
        assert swap(name, [(swaps[0][0], swaps[0][1], now)]) == [True]
        return swap(name, swaps)

    kernel.swap_words = touched  # type: ignore[method-assign]
    assert node.sweep(kernel, version, 0, 1_000) == 3
    assert (seen["words"], held(kernel, version)) == (4, 5)


def test_a_place_whose_writer_was_killed_becomes_free(kernel: FakeKernel) -> None:
    put(kernel, [(table.BUSY, 7), connection(1)])
    assert (node.used(kernel, 4, "nat"), held(kernel)) == (2, 1)
    assert node.sweep(kernel, 4, 0, 10) == 1
    assert node.used(kernel, 4, "nat") == 1


def test_flows_are_read_counted_and_chosen(kernel: FakeKernel) -> None:
    put(kernel, [
        connection(2), connection(1, endpoint=2), connection(3, OPENING, service=1, protocol=UDP, silence=1),
        connection(4, OVER, silence=5), connection(5, endpoint=9, service=7, silence=10),
    ])  # fmt: skip
    found = flows(kernel)
    assert [(f.client, f.service, f.endpoint, f.state, f.protocol) for f in found.in_order()] == [
        ("10.9.0.3:40000", "20.20.20.1:53/udp", "10.2.0.11:8080", "opening", "udp"),
        ("10.9.0.1:40000", "20.20.20.1:80/tcp", "10.2.0.12:8080", "open", "tcp"),
        ("10.9.0.2:40000", "20.20.20.1:80/tcp", "10.2.0.11:8080", "open", "tcp"),
        ("10.9.0.5:40000", "removed service 7", "removed endpoint 9", "open", "tcp"),
    ]
    assert found.in_order().idle_s.tolist() == [8, 0, 0, 85]
    assert open_counts(kernel) == {
        ("20.20.20.1:80/tcp", "10.2.0.11:8080"): 1, ("20.20.20.1:80/tcp", "10.2.0.12:8080"): 1,
        ("removed service 7", "removed endpoint 9"): 1,
    }  # fmt: skip
    some = ["10.9.0.3", "10.9.0.1", "10.9.0.2"]
    for wanted, clients in {
        FlowFilter(client="10.9.0.1"): ["10.9.0.1"], FlowFilter(client="10.9.0.0/30"): some,
        FlowFilter(client="10.9.0.2:40000"): ["10.9.0.2"], FlowFilter(client="10.9.0.2:4"): [],
        FlowFilter(client="2001:db8::1"): [], FlowFilter(service="20.20.20.1:53"): ["10.9.0.3"],
        FlowFilter(endpoint="10.2.0.12:8080", state="open"): ["10.9.0.1"], FlowFilter(state="opening"): ["10.9.0.3"],
        FlowFilter(protocol="udp"): ["10.9.0.3"], FlowFilter(service="20.20.20.1"): some,
    }.items():  # fmt: skip
        those = list(chosen(found, wanted).in_order())
        assert [flow.client.partition(":")[0] for flow in those] == clients, wanted
        assert all(wanted.matching()(vars_of(flow)) for flow in those)


def test_flows_of_both_families_are_read_and_chosen_together(kernel: FakeKernel) -> None:
    put(kernel, [connection(2), connection(1)])
    put(kernel, [connection(10, endpoint=2, version=6), connection(9, OPENING, silence=1, version=6)], 6)
    found = flows(kernel).in_order()
    assert [flow.client for flow in found] == [
        "10.9.0.1:40000", "10.9.0.2:40000", "[2001:db8:9::9]:40000", "[2001:db8:9::a]:40000",
    ]  # fmt: skip
    assert found.idle_s.tolist() == [0, 0, 8, 0]
    for wanted, count in {
        FlowFilter(client="2001:db8:9::/64"): 2, FlowFilter(client="[2001:db8:9::a]:40000"): 1,
        FlowFilter(client="2001:db8:9::9", state="opening"): 1, FlowFilter(client="::/0"): 2,
        FlowFilter(client="0.0.0.0/0"): 2, FlowFilter(client="2001:db8:9:0:1::/80"): 0,
    }.items():  # fmt: skip
        assert len(chosen(found, wanted)) == count, wanted
    assert sum(open_counts(kernel).values()) == 3


def test_each_table_is_told_and_warned_of_by_itself() -> None:
    """Two that are half full each are not one that is full."""
    kernel = FakeKernel()
    kernel.load_program("lbctl_0", ("NAT", "FULLNAT"), Sizes(flows=16))
    put(kernel, [connection(number) for number in range(8)])
    put(kernel, [connection(number) for number in range(7)], maps=TRANSLATED_MAPS)
    told = {(family.name, labels): value for family in metrics.node_families(kernel, endpoints=False)
            for labels, value in family.samples}  # fmt: skip
    for mode, count in (("nat", 8), ("fullnat", 7)):
        labels = ("family", "ipv4"), ("mode", mode)
        assert told["lbctl_connections", (*labels, ("state", "open"))] == count
        assert told["lbctl_connections_max", labels] == 16
    wanted = [Program("lbctl_0")]
    assert list(ProgramKind(kernel).concerns(wanted)) == []
    put(kernel, [connection(number) for number in range(15)], maps=TRANSLATED_MAPS)
    [concern] = ProgramKind(kernel).concerns(wanted)
    assert concern.text == "the table of connections of fullnat over IPv4 is nearly full: it is made for 16"


def vars_of(flow: object) -> dict[str, object]:
    return {name: getattr(flow, name) for name in ("client", "service", "endpoint", "state", "protocol", "idle_s")}


def test_many_flows_are_the_same_text_as_few(kernel: FakeKernel, monkeypatch: pytest.MonkeyPatch) -> None:
    put(kernel, [connection(1), connection(2, endpoint=2)])
    found = flows(kernel).in_order()
    assert json.loads(render.as_json(found)) == {
        "format_version": 1, "kind": "flows", "items": [vars_of(flow) for flow in found],
    }  # fmt: skip
    assert json.loads(render.as_json(found.part(np.zeros(2, np.bool_))))["items"] == []
    columns = ("client", "service", "endpoint", "state", "protocol", "idle_s")
    few = render.as_table(found, columns, "none", None)
    monkeypatch.setattr(render, "_MANY", 1)
    assert [line.split() for line in render.as_table(found, columns, "none", 80).splitlines()] == [
        line.split() for line in few.splitlines()
    ]


def test_no_flow_reads_as_none(kernel: FakeKernel) -> None:
    assert (len(flows(kernel)), len(flows(FakeKernel())), node.used(FakeKernel(), 4, "nat")) == (0, 0, 0)
    assert flows(kernel).counts() == {} and list(flows(kernel).in_order()) == []
    assert [spec.value_size // 8 for spec in CONNECTION_MAPS.values()] == [BUCKET_WORDS, WIDE_WORDS]


def test_clients_that_may_wait_for_an_answer_are_found_with_what_they_expect(kernel: FakeKernel) -> None:
    states = ConnectionState.CLIENT_CLOSED, ConnectionState.ENDPOINT_CLOSED, OPENING, OVER
    put(kernel, [
        entry(IPv4Address("10.9.0.1"), 40_001, TCP, OPEN, unit_of(clock.now_ns()), endpoint=1, service=0,
              acknowledged=(0x1237_FFFF, 0x7777_7777)),
        *(connection(number, state) for number, state in enumerate(states, 2)),
        connection(7, endpoint=2), connection(8, protocol=UDP, service=1),
    ])  # fmt: skip
    vip = IPv4Address("20.20.20.1")
    assert sorted(node.clients_of(kernel, [1])) == [
        (IPv4Address("10.9.0.1"), 40_001, vip, 80, 0x1234_0000), (IPv4Address("10.9.0.2"), 40_000, vip, 80, 0),
    ]  # fmt: skip
    assert node.clients_of(FakeKernel(), [1]) == []


def test_clients_over_ipv6_are_found_too(kernel: FakeKernel) -> None:
    vip = IPv6Address("2001:db8::1")
    assert kernel.update(FRONTS.name, [FRONTS.pack(Number(1), Front(vip.packed, 443, 0, 0, 6, 6))]) == [None]
    put(kernel, [connection(1, service=1, version=6)], 6)
    assert node.clients_of(kernel, [1]) == [(IPv6Address("2001:db8:9::1"), 40_000, vip, 443, 0)]
