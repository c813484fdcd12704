# SPDX-License-Identifier: Apache-2.0
"""Slots that change hands: which endpoint a flow has then."""

from __future__ import annotations

import random
import struct
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from ipaddress import IPv4Address
from pathlib import Path

import numpy as np
import pytest
from scapy.layers.inet import ICMP as Icmp
from scapy.layers.inet import TCP as Tcp
from scapy.layers.inet import UDP as Udp
from scapy.layers.l2 import Ether
from scapy.layers.sctp import SCTP as Sctp
from scapy.layers.sctp import SCTPChunkAbort, SCTPChunkData, SCTPChunkInit
from scapy.packet import Packet

from reconciler.dataplane import slots
from reconciler.dataplane.layout import (
    REMEMBERED,
    RING_CHUNKS,
    SEED,
    AlgorithmCode,
    EchoCode,
    EndpointRowState,
    ModeCode,
    Verdict,
)
from reconciler.dataplane.program import program_name
from reconciler.dataplane.ring import hash_ring
from reconciler.dataplane.rows import Number, Seed
from reconciler.dataplane.slots import DATAGRAM_IDLE, LEARNING, STREAM_IDLE
from reconciler.kernel import bpf
from reconciler.kernel.bpf import XdpVerdict
from reconciler.kernel.build import build_all
from reconciler.kernel.real import RealKernel
from reconciler.limits import Sizes
from reconciler.readings.transitions import transitions
from reconciler.ring_store import Rings, former_endpoints, in_transition, protocols, settle
from tests.packets import balancer as lab
from tests.packets.balancer import ENDPOINTS6_AT, ENDPOINTS_AT, VIP, Balancer
from tests.packets.frames import At, frame, frame6
from tests.packets.test_schedule import clients
from tests.rings import read_ring, write_rings

pytestmark = pytest.mark.kernel

AT = {lab.TCP: At(VIP, 80), lab.UDP: At(VIP, 53), lab.SCTP: At(VIP, 5060)}
AT6 = At("2001:db8:20::1", 80)
IDS = {address: id for id, address in (ENDPOINTS_AT | ENDPOINTS6_AT).items()}
PROTOCOLS = pytest.mark.parametrize("protocol", AT, ids=["tcp", "udp", "sctp"])
RING = 1


@pytest.fixture(autouse=True)
def _served(balancer: Balancer) -> None:
    set_up(balancer)


def set_up(balancer: Balancer) -> None:
    for id in ENDPOINTS_AT | ENDPOINTS6_AT:
        balancer.endpoint(id)
    balancer.settings("10.2.0.1", source6="2001:db8:2::1")
    balancer.kernel.update(SEED.name, [SEED.pack(Number(0), Seed(struct.pack("=2Q", 7, 11)))])
    balancer.ring(RING, [1])
    balancer.vip(VIP)
    balancer.vip(AT6.address)
    for index, (protocol, at) in enumerate(AT.items(), start=1):
        serve(balancer, at, index, protocol)
    serve(balancer, AT6, 4, lab.TCP)


def serve(balancer: Balancer, at: At, index: int, protocol: int) -> None:
    balancer.service(
        at, index=index, ring=RING, target_port=0, algorithm=AlgorithmCode.MAGLEV, mode=ModeCode.DSR_L3,
        protocol=protocol,
    )  # fmt: skip


def edit(balancer: Balancer, ring: Sequence[int], ago: int = 0, dead: Sequence[int] = ()) -> None:
    """Give the ring these endpoints, `ago` units of time before now; some were found dead."""
    array = np.array(ring, np.uint32)
    with pytest.MonkeyPatch.context() as patch:
        at = slots.now() - ago
        patch.setattr(slots, "now", lambda: at)
        outcomes = write_rings(balancer.kernel, {RING: array}, {RING}, np.array(dead, np.uint32))
    assert outcomes == {RING: None}


def opening(protocol: int, client: At) -> Packet:
    ports = {"sport": client.port, "dport": AT[protocol].port}
    return {
        lab.TCP: lambda: Tcp(**ports, flags="S"),
        lab.UDP: lambda: Udp(**ports) / b"hello",
        lab.SCTP: lambda: Sctp(**ports, tag=0) / SCTPChunkInit(),
    }[protocol]()


def more(protocol: int, client: At, flags: str = "A") -> Packet:
    """A later packet of the same flow."""
    ports = {"sport": client.port, "dport": AT[protocol].port}
    return {
        lab.TCP: lambda: Tcp(**ports, flags=flags),
        lab.UDP: lambda: Udp(**ports) / b"more",
        lab.SCTP: lambda: Sctp(**ports, tag=7) / (SCTPChunkAbort() if flags == "R" else SCTPChunkData(data=b"x")),
    }[protocol]()


def endpoint_of(balancer: Balancer, client: At, transport: Packet) -> int:
    """The endpoint that gets a packet of this client."""
    if ":" in client.address:
        return IDS[Ether(balancer.send(frame6(client.address, AT6.address, transport)).frame)["IPv6"].dst]
    return IDS[Ether(balancer.send(frame(client.address, VIP, transport)).frame)["IP"].dst]


def drops(balancer: Balancer, transport: Packet) -> bool:
    """Whether a packet is dropped, and counted as one that no endpoint is there for."""
    before = balancer.verdicts().get(Verdict.NO_ENDPOINT, 0)
    client = At("10.7.0.1", transport.sport)
    run = balancer.send(frame(client.address, VIP, transport))
    return run.verdict == XdpVerdict.DROP and balancer.verdicts().get(Verdict.NO_ENDPOINT, 0) == before + 1


def begin(balancer: Balancer, protocol: int, client: At) -> int:
    return endpoint_of(balancer, client, opening(protocol, client))


def go_on(balancer: Balancer, protocol: int, client: At, flags: str = "A") -> int:
    return endpoint_of(balancer, client, more(protocol, client, flags))


OLD, NEW, NEWER = (At("10.7.0.1", 40_000 + i) for i in range(3))


def remembered(balancer: Balancer) -> list[int]:
    return [flow for _, row in balancer.kernel.dump(REMEMBERED.name) for flow in struct.unpack("=8Q", row) if flow]


# --- one change --------------------------------------------------------------------------------------------------
@PROTOCOLS
def test_while_a_ring_stands_still_nothing_is_remembered(balancer: Balancer, protocol: int) -> None:
    edit(balancer, [1])
    assert [begin(balancer, protocol, c) for c in clients(50)] == [1] * 50
    assert [go_on(balancer, protocol, c) for c in clients(50)] == [1] * 50
    assert remembered(balancer) == []
    assert in_transition(balancer.kernel) == {}


@PROTOCOLS
def test_an_open_flow_stays_when_its_slot_changes_hands(balancer: Balancer, protocol: int) -> None:
    assert begin(balancer, protocol, OLD) == 1
    edit(balancer, [2])
    assert [go_on(balancer, protocol, OLD) for _ in range(3)] == [1, 1, 1]


@pytest.mark.parametrize("protocol", [lab.TCP, lab.SCTP], ids=["tcp", "sctp"])
def test_what_begins_in_a_transition_goes_to_the_current_endpoint_and_stays_there(
    balancer: Balancer, protocol: int
) -> None:
    edit(balancer, [2])
    assert begin(balancer, protocol, NEW) == 2
    assert go_on(balancer, protocol, NEW) == 2
    assert len(remembered(balancer)) == 1


def test_a_datagram_that_nobody_knows_is_an_old_flow_while_flows_are_learnt_and_a_new_one_after_it(
    balancer: Balancer,
) -> None:
    edit(balancer, [2], ago=LEARNING)
    assert begin(balancer, lab.UDP, OLD) == 1
    balancer.forget()
    balancer.ring(RING, [1])
    edit(balancer, [2], ago=LEARNING + 1)
    assert begin(balancer, lab.UDP, NEW) == 2


@PROTOCOLS
def test_datagrams_go_past_an_endpoint_that_was_found_dead_at_once_and_connections_stay(
    balancer: Balancer, protocol: int
) -> None:
    edit(balancer, [2], dead=[1])
    assert [go_on(balancer, protocol, OLD) for _ in range(2)] == [2 if protocol == lab.UDP else 1] * 2
    assert begin(balancer, protocol, NEW) == 2
    edit(balancer, [3], dead=[2])  # and one after the other
    assert begin(balancer, protocol, NEWER) == 3
    assert go_on(balancer, lab.UDP, NEWER) == 3


def test_a_learnt_flow_stays_when_the_time_of_learning_is_over(balancer: Balancer) -> None:
    edit(balancer, [2])
    assert go_on(balancer, lab.UDP, OLD) == 1
    age(balancer, LEARNING + 1)
    assert go_on(balancer, lab.UDP, OLD) == 1
    assert begin(balancer, lab.UDP, NEW) == 2


def age(balancer: Balancer, units: int) -> None:
    """Let what is known of all slots, but not of flows, be older."""
    with rows_of(balancer) as rows:
        for column in ("began", "moved", "used"):
            rows[column] -= units


@contextmanager
def rows_of(balancer: Balancer) -> Iterator[slots.Rows]:
    """The rows that the ring has in the kernel, to be changed. Row 0 is nobody's where rows are shared."""
    place = Rings(balancer.kernel).place(RING)
    assert place
    assert place.has_rows
    chunk = balancer.kernel.chunk(RING_CHUNKS.name, place.chunk)
    assert chunk is not None
    words = chunk[place.first_row :][: place.rows]
    rows = slots.unpacked(words)
    yield rows
    words[:] = slots.packed(rows)


@PROTOCOLS
def test_an_error_about_a_flow_goes_where_the_flow_goes_and_teaches_nothing(balancer: Balancer, protocol: int) -> None:
    from scapy.layers.inet import ICMP, IP

    edit(balancer, [2])
    quoted = more(protocol, OLD)
    quoted.sport, quoted.dport = AT[protocol].port, OLD.port
    error = ICMP(type=3, code=4, nexthopmtu=1400) / IP(src=VIP, dst=OLD.address) / quoted
    assert endpoint_of(balancer, At("10.9.9.9", 0), error) == 1
    assert remembered(balancer) == []


def test_ipv6_flows_stay_too(balancer: Balancer) -> None:
    balancer.ring(RING, [5])
    old, new = At("2001:db8:77::1", 40_000), At("2001:db8:77::2", 40_000)
    edit(balancer, [6])
    assert begin(balancer, lab.TCP, new) == 6
    assert [go_on(balancer, lab.TCP, c) for c in (old, new)] == [5, 6]


# --- several changes ---------------------------------------------------------------------------------------------
@PROTOCOLS
def test_flows_of_each_stage_stay_where_they_began(balancer: Balancer, protocol: int) -> None:
    assert begin(balancer, protocol, OLD) == 1
    edit(balancer, [2])
    assert go_on(balancer, protocol, OLD) == 1
    age_datagrams_out(balancer)
    assert begin(balancer, protocol, NEW) == 2
    edit(balancer, [3])
    age_datagrams_out(balancer)
    assert begin(balancer, protocol, NEWER) == 3
    assert [go_on(balancer, protocol, c) for c in (OLD, NEW, NEWER)] == [1, 2, 3]


def test_a_row_for_each_slot_serves_as_well_as_shared_ones(
    balancer: Balancer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rings have them if too many would differ, or if an earlier version wrote them."""
    flows = {client: begin(balancer, lab.TCP, client) for client in clients(20)}
    for is_shared, ring in ((False, [2, 3]), (False, [3, 2]), (True, [3, 3, 2, 2]), (False, [1, 2, 3, 3])):
        with monkeypatch.context() as patch:
            if not is_shared:
                patch.setattr(slots, "shared", lambda *_: None)
            edit(balancer, ring)
        place = Rings(balancer.kernel).place(RING)
        assert place
        assert place.shares_rows == is_shared
        assert {client: go_on(balancer, lab.TCP, client) for client in flows} == flows
        for client in clients(20 + 5 * len(flows))[-5:]:
            flows[client] = begin(balancer, lab.TCP, client)


def age_datagrams_out(balancer: Balancer) -> None:
    """Let the time of learning be over, but nothing else."""
    with rows_of(balancer) as rows:
        rows["moved"] = (slots.now() - LEARNING - 1) % slots._TURN  # the machine may have booted just now


@PROTOCOLS
def test_an_endpoint_that_comes_back_finds_its_flows_and_takes_none_of_the_others(
    balancer: Balancer, protocol: int
) -> None:
    assert begin(balancer, protocol, OLD) == 1
    edit(balancer, [2])
    assert go_on(balancer, protocol, OLD) == 1
    age_datagrams_out(balancer)
    assert begin(balancer, protocol, NEW) == 2
    edit(balancer, [1])
    assert [go_on(balancer, protocol, c) for c in (OLD, NEW)] == [1, 2]


@pytest.mark.parametrize("state", [EndpointRowState.DISABLED, EndpointRowState.FREE])
@PROTOCOLS
def test_an_endpoint_that_is_gone_gets_nothing_and_its_flows_go_to_the_current_one(
    balancer: Balancer, protocol: int, state: EndpointRowState
) -> None:
    edit(balancer, [2])
    assert go_on(balancer, protocol, OLD) == 1
    balancer.endpoint(1, state=state)
    assert go_on(balancer, protocol, OLD) == 2
    if protocol == lab.UDP:  # whom it was moved to is remembered, so it moves once
        balancer.endpoint(1)
        assert go_on(balancer, protocol, OLD) == 2


def test_a_draining_endpoint_keeps_its_flows(balancer: Balancer) -> None:
    edit(balancer, [2])
    balancer.endpoint(1, state=EndpointRowState.RETIRED)
    assert go_on(balancer, lab.TCP, OLD) == 1


def test_a_ring_that_grows_and_shrinks_keeps_all_flows(balancer: Balancer) -> None:
    """Each size is a multiple, or a part, of the one before."""
    edit(balancer, [1, 2, 3])
    flows = {c: begin(balancer, lab.TCP, c) for c in clients(60)}
    for ring in ([2, 3, 1, 1, 2, 3], [3, 1, 2], [4], [1, 2, 3, 4] * 3):
        edit(balancer, ring)
        assert {c: go_on(balancer, lab.TCP, c) for c in flows} == flows


@dataclass
class Server:
    weight: int = 1
    state: EndpointRowState = EndpointRowState.USABLE


@pytest.mark.parametrize("seed", range(6))
def test_no_sequence_of_edits_moves_a_flow_whose_endpoint_lives(balancer: Balancer, seed: int) -> None:
    """Endpoints come, go, drain, flap, die and change their weights; flows begin and go on in between."""
    chance = random.Random(seed)
    servers = {id: Server() for id in (1, 2, 3)}
    flows: dict[tuple[int, At], int] = {}
    sources = iter(clients(10_000))
    emptied = 0
    for step in range(60):
        change(chance, servers)
        for id in ENDPOINTS_AT:
            state = servers[id].state if id in servers else EndpointRowState.RETIRED
            balancer.endpoint(id, state=state)
        active = {id: s.weight for id, s in servers.items() if s.state == EndpointRowState.USABLE and s.weight}
        size = 64 if len(active) < 4 else 128
        order = hash_ring([str(i) for i in active], list(active.values()), size) if active else []
        edit(balancer, np.array(list(active))[order] if active else [])
        dead = {id for id, s in servers.items() if s.state == EndpointRowState.DISABLED}
        emptied += not active
        for (protocol, client), endpoint in list(flows.items()):
            if endpoint in dead:
                del flows[protocol, client]
            else:
                assert go_on(balancer, protocol, client) == endpoint, (step, protocol, client)
        if not active:
            assert drops(balancer, opening(lab.TCP, next(sources)))
        for protocol in (lab.TCP, lab.UDP, lab.SCTP) if active else ():
            client = next(sources)
            flows[protocol, client] = begin(balancer, protocol, client)
            if protocol != lab.UDP:
                assert flows[protocol, client] in active
    assert len(flows) > 20
    assert emptied


def change(chance: random.Random, servers: dict[int, Server]) -> None:
    id = chance.choice(list(ENDPOINTS_AT))
    match chance.choice(["add", "add", "remove", "weight", "drain", "die", "revive", "empty"]):
        case "add":
            servers.setdefault(id, Server())
        case "remove":
            servers.pop(id, None)
        case "weight" if id in servers:
            servers[id].weight = chance.randrange(1, 5)
        case "drain" if id in servers:
            servers[id].weight = 0
        case "empty":
            if chance.random() < 0.5:
                servers.clear()
            for server in servers.values():
                server.weight = 0
        case "die" if id in servers and len(servers) > 2:
            servers[id].state = EndpointRowState.DISABLED
        case "revive":
            for server in servers.values():
                server.state = EndpointRowState.USABLE


# --- a pool without endpoints --------------------------------------------------------------------------------------
@PROTOCOLS
def test_open_flows_go_on_when_the_ring_loses_its_last_endpoint(balancer: Balancer, protocol: int) -> None:
    assert begin(balancer, protocol, OLD) == 1
    edit(balancer, [])
    balancer.endpoint(1, state=EndpointRowState.RETIRED)
    assert [go_on(balancer, protocol, OLD) for _ in range(3)] == [1, 1, 1]
    assert [t.former for t in transitions(balancer.kernel)] == [("10.2.0.11",)]


@PROTOCOLS
def test_what_begins_while_a_ring_is_empty_is_dropped_and_an_endpoint_added_later_gets_nothing_else(
    balancer: Balancer, protocol: int
) -> None:
    assert begin(balancer, protocol, OLD) == 1
    edit(balancer, [])
    assert go_on(balancer, protocol, OLD) == 1
    age_datagrams_out(balancer)
    for _ in range(2):
        assert drops(balancer, opening(protocol, NEW))
    edit(balancer, [2, 3, 2])
    assert go_on(balancer, protocol, OLD) == 1
    assert begin(balancer, protocol, NEW) in (2, 3)
    assert go_on(balancer, protocol, NEW) in (2, 3)


def test_a_ring_that_was_empty_for_long_gives_an_endpoint_its_slots_without_a_transition(balancer: Balancer) -> None:
    edit(balancer, [], ago=STREAM_IDLE + 1)
    assert settle(balancer.kernel, slots.now()) == 1
    assert drops(balancer, more(lab.TCP, OLD))
    edit(balancer, [2])
    assert in_transition(balancer.kernel) == {}
    assert begin(balancer, lab.TCP, NEW) == 2


def test_an_empty_ring_forgets_endpoints_that_died(balancer: Balancer) -> None:
    edit(balancer, [])
    balancer.endpoint(1, state=EndpointRowState.DISABLED)
    assert drops(balancer, more(lab.TCP, OLD))


def test_nobodys_slots_keep_no_number_of_an_endpoint(balancer: Balancer) -> None:
    edit(balancer, [])
    age(balancer, LEARNING + 1)
    edit(balancer, [2])
    assert former_endpoints(balancer.kernel) == {1}


# --- the end of a transition -------------------------------------------------------------------------------------
def test_a_transition_ends_when_only_the_current_endpoint_was_used_for_long_enough(balancer: Balancer) -> None:
    edit(balancer, [2], ago=STREAM_IDLE + 1)
    assert go_on(balancer, lab.TCP, OLD) == 1  # which counts as use
    assert settle(balancer.kernel, slots.now()) == 0
    age(balancer, STREAM_IDLE + 1)
    assert begin(balancer, lab.TCP, NEW) == 2
    assert go_on(balancer, lab.TCP, NEW) == 2  # which does not
    assert settle(balancer.kernel, slots.now()) == 1
    assert in_transition(balancer.kernel) == {}
    assert go_on(balancer, lab.TCP, OLD) == 2
    ring = read_ring(balancer.kernel, RING)
    assert ring and not ring.moving.any()


def test_a_remembered_flow_on_a_third_endpoint_keeps_the_transition_open(balancer: Balancer) -> None:
    edit(balancer, [2], ago=STREAM_IDLE + 2)
    assert begin(balancer, lab.TCP, NEW) == 2
    edit(balancer, [3], ago=STREAM_IDLE + 1)
    assert go_on(balancer, lab.TCP, NEW) == 2
    assert settle(balancer.kernel, slots.now()) == 0


def test_where_only_datagrams_are_balanced_transitions_end_sooner(balancer: Balancer) -> None:
    for protocol in (lab.TCP, lab.SCTP):
        balancer.withdraw(AT[protocol], protocol)
    balancer.withdraw(AT6)
    edit(balancer, [2], ago=DATAGRAM_IDLE + 1)
    assert settle(balancer.kernel, slots.now()) == 1


def test_a_remnant_of_an_earlier_transition_catches_no_flow(balancer: Balancer) -> None:
    edit(balancer, [2], ago=12)
    assert go_on(balancer, lab.UDP, OLD) == 2  # learnt as the current one's
    write_flows(balancer, [(flow & ~(0x1FFF << 2)) | stamp(8) << 2 for flow in remembered(balancer)])
    balancer.ring(RING, [1])
    edit(balancer, [3], ago=3)
    assert go_on(balancer, lab.UDP, OLD) == 1


def stamp(ago: int) -> int:
    return slots.now() - ago & 0x1FFF


def write_flows(balancer: Balancer, flows: Iterable[int]) -> None:
    """Put each flow in place of the one with its fingerprint."""
    rows = []
    wanted = {flow >> 32: flow for flow in flows}
    for key, row in balancer.kernel.dump(REMEMBERED.name):
        places = [wanted.get(flow >> 32, flow) if flow else 0 for flow in struct.unpack("=8Q", row)]
        rows.append((key, struct.pack("=8Q", *places)))
    balancer.kernel.update(REMEMBERED.name, rows)


def test_transitions_and_flows_outlive_a_swap_of_the_program_and_whoever_wrote_them(balancer: Balancer) -> None:
    features = tuple(feature for feature in lab.FEATURES if feature != "REJECT")
    build_all(features)  # a flow that only began is forgotten after a minute, and compiling may take longer
    assert begin(balancer, lab.TCP, OLD) == 1
    edit(balancer, [2])
    assert begin(balancer, lab.TCP, NEW) == 2
    assert go_on(balancer, lab.UDP, OLD) == 1
    edit(balancer, [3])
    kernel = balancer.kernel
    try:
        kernel.load_program(program_name(features), features)
        handle = kernel.loaded_program()
        assert handle
        descriptor = bpf.open_program(handle.id)
        assert descriptor
        with bpf.closing(descriptor):
            other = Balancer(kernel, descriptor, balancer.netns)
            assert [go_on(other, lab.TCP, c) for c in (OLD, NEW)] == [1, 2]
            assert go_on(other, lab.UDP, OLD) == 1
    finally:
        kernel.load_program(program_name(lab.FEATURES), lab.FEATURES)


def test_another_balancer_sends_flows_to_the_same_endpoints_once_all_is_settled(balancer: Balancer) -> None:
    """It knows nothing of what was before: neither transitions nor flows."""
    ring = np.array([1, 2, 3, 4], np.uint32)[hash_ring(list("abcd"), [1, 2, 3, 4], 64)]
    edit(balancer, [1])
    edit(balancer, ring, ago=STREAM_IDLE + 1)
    assert settle(balancer.kernel, slots.now()) > 0
    flows = {c: begin(balancer, lab.TCP, c) for c in clients(100)}
    assert len(set(flows.values())) == 4
    balancer.clear()
    for id in ENDPOINTS_AT:
        balancer.endpoint(id)
    balancer.settings("10.2.0.1")
    balancer.ring(RING, ring.tolist())
    balancer.vip(VIP)
    serve(balancer, AT[lab.TCP], 1, lab.TCP)
    assert {c: go_on(balancer, lab.TCP, c) for c in flows} == flows


def test_in_a_larger_table_flows_fall_into_all_buckets(balancer: Balancer, tmp_path: Path) -> None:
    kernel = RealKernel(f"{balancer.netns}-large", tmp_path)
    try:
        kernel.load_program(program_name(lab.FEATURES), lab.FEATURES, Sizes(flows=1_000_000))
        handle = kernel.loaded_program()
        assert handle
        descriptor = bpf.open_program(handle.id)
        assert descriptor
        with bpf.closing(descriptor):
            large = Balancer(kernel, descriptor, balancer.netns)
            set_up(large)
            edit(large, [2])
            crowd = clients(64)
            for client in crowd:
                begin(large, lab.TCP, client)
            edit(large, [3])
            assert {go_on(large, lab.TCP, client) for client in crowd} == {2}
            size = kernel.capacity(REMEMBERED.name)
            assert size > REMEMBERED.capacity
            held = {struct.unpack("=I", key)[0] for key, _ in kernel.dump(REMEMBERED.name)}
            assert held == {flow_hash(client) % size for client in crowd}
    finally:
        kernel.unload_program()
        kernel.remove_instance()


# --- forged packets ------------------------------------------------------------------------------------------------
def segment(client: At, flags: str, sequence: int) -> Packet:
    return Tcp(sport=client.port, dport=AT[lab.TCP].port, flags=flags, seq=sequence % 2**32)


@pytest.mark.parametrize("known", [False, True], ids=["unknown", "remembered"])
def test_a_forged_syn_moves_no_connection(balancer: Balancer, known: bool) -> None:
    """An endpoint resets what it does not know, so whoever has the slot now must get nothing of the old connection."""
    sequence = 0x7FFF_0000
    if known:
        edit(balancer, [2])
        assert endpoint_of(balancer, OLD, segment(OLD, "S", sequence)) == 2
        assert endpoint_of(balancer, OLD, segment(OLD, "A", sequence + 1)) == 2
    owner = 2 if known else 1
    edit(balancer, [3])
    for forged in (sequence - 1, sequence + 0x2_0000, 0, 0xFFFF_FFFF):
        assert endpoint_of(balancer, OLD, segment(OLD, "S", forged)) == 3
        assert endpoint_of(balancer, OLD, segment(OLD, "A", sequence + 0x1_0000)) == owner


@pytest.mark.parametrize("flags", ["R", "FA"])
def test_no_flood_of_forged_packets_takes_the_place_of_a_connection_in_use(balancer: Balancer, flags: str) -> None:
    edit(balancer, [2])
    assert endpoint_of(balancer, NEW, segment(NEW, "S", 0)) == 2
    assert endpoint_of(balancer, NEW, segment(NEW, "A", 1)) == 2
    edit(balancer, [3])
    endpoint_of(balancer, NEW, segment(NEW, flags, 5))
    for block in range(1, 30):
        endpoint_of(balancer, NEW, segment(NEW, "S", block << 20))
    assert endpoint_of(balancer, NEW, segment(NEW, "A", 1)) == 2


def test_a_flow_that_goes_on_after_an_end_is_as_open_as_before(balancer: Balancer) -> None:
    edit(balancer, [2], ago=12)
    begin(balancer, lab.TCP, NEW)
    go_on(balancer, lab.TCP, NEW, "R")
    (flow,) = remembered(balancer)
    write_flows(balancer, [flow & ~(0x1FFF << 2) | stamp(2) << 2])
    assert go_on(balancer, lab.TCP, NEW) == 2
    assert [flow & 3 for flow in remembered(balancer)] == [3]


@pytest.mark.parametrize("sequence", [0, 0xFFFF, 0xFFFF_FFFF])
def test_a_connection_is_taken_up_wherever_its_sequence_numbers_begin(balancer: Balancer, sequence: int) -> None:
    """The second one has the addresses of the first, which never said that it ended."""
    edit(balancer, [2])
    for holder in (2, 3):
        edit(balancer, [holder])
        for _ in range(2):
            assert endpoint_of(balancer, NEW, segment(NEW, "S", sequence)) == holder
        assert endpoint_of(balancer, NEW, segment(NEW, "PA", sequence + 1 + 20_000)) == holder  # the first was lost
        assert endpoint_of(balancer, NEW, segment(NEW, "A", sequence + 1)) == holder
        assert len(remembered(balancer)) == 1
        sequence += 0x1000_0000


def test_a_syn_that_nothing_followed_for_a_minute_begins_nothing(balancer: Balancer) -> None:
    edit(balancer, [2], ago=12)
    begin(balancer, lab.TCP, NEW)
    (flow,) = remembered(balancer)
    write_flows(balancer, [flow & ~(0x1FFF << 2) | stamp(6) << 2])
    assert go_on(balancer, lab.TCP, NEW) == 1


def test_an_init_moves_no_association_that_is_open(balancer: Balancer) -> None:
    edit(balancer, [2])
    assert begin(balancer, lab.SCTP, NEW) == 2
    assert go_on(balancer, lab.SCTP, NEW) == 2
    edit(balancer, [3])
    assert begin(balancer, lab.SCTP, NEW) == 2
    assert go_on(balancer, lab.SCTP, NEW) == 2
    assert go_on(balancer, lab.SCTP, NEW, "R") == 2
    assert begin(balancer, lab.SCTP, NEW) == 3
    assert go_on(balancer, lab.SCTP, NEW) == 3


# --- the flow table ----------------------------------------------------------------------------------------------
def test_a_syn_follows_no_earlier_flow_of_the_same_addresses(balancer: Balancer) -> None:
    edit(balancer, [2])
    assert begin(balancer, lab.TCP, NEW) == 2
    assert go_on(balancer, lab.TCP, NEW) == 2
    edit(balancer, [3])
    assert go_on(balancer, lab.TCP, NEW) == 2
    assert begin(balancer, lab.TCP, NEW) == 3
    assert go_on(balancer, lab.TCP, NEW) == 3
    assert len(remembered(balancer)) == 1


@pytest.mark.parametrize(("flags", "state"), [("A", 3), ("FA", 2), ("R", 2), ("RA", 2)])
def test_an_end_makes_room_and_what_follows_still_goes_the_same_way(
    balancer: Balancer, flags: str, state: int
) -> None:
    edit(balancer, [2])
    begin(balancer, lab.TCP, NEW)
    assert remembered(balancer)[0] & 3 == 1
    assert go_on(balancer, lab.TCP, NEW, flags) == 2
    assert remembered(balancer)[0] & 3 == state
    assert go_on(balancer, lab.TCP, NEW) == 2


def in_one_bucket(balancer: Balancer, count: int) -> list[At]:
    """As many clients whose TCP flows share a bucket, found with a model of the hash of bpf/remember.h."""
    found: list[At] = []
    addresses = np.arange(10 << 24, (10 << 24) + (1 << 20), dtype=np.uint64)
    for port in range(1_024, 65_536):
        hits = addresses[hash_flows(addresses, port) % np.uint64(REMEMBERED.capacity) == bucket_of(NEW)]
        found += [At(str(IPv4Address(int(address))), port) for address in hits]
        if len(found) >= count:
            return found[:count]
    raise AssertionError("no client hashes there")


def hash_flows(addresses: np.ndarray, port: int) -> np.ndarray:
    """The hashes of TCP flows to the first service, with the seed of these tests."""
    return mix64(mix64(addresses ^ np.uint64(7)) + np.uint64(port << 32 | 1) ^ np.uint64(11))


def mix64(h: np.ndarray) -> np.ndarray:
    for factor in (0xFF51AFD7ED558CCD, 0xC4CEB9FE1A85EC53):
        h = (h ^ h >> np.uint64(33)) * np.uint64(factor)
    return h ^ h >> np.uint64(33)


def flow_hash(client: At) -> int:
    return int(hash_flows(np.array([int(IPv4Address(client.address))], np.uint64), client.port)[0])


def bucket_of(client: At) -> int:
    return flow_hash(client) % REMEMBERED.capacity


def test_the_hash_is_the_one_that_the_model_computes(balancer: Balancer) -> None:
    edit(balancer, [2])
    begin(balancer, lab.TCP, NEW)
    ((key, row),) = balancer.kernel.dump(REMEMBERED.name)
    assert struct.unpack("=I", key) == (bucket_of(NEW),)
    assert max(struct.unpack("=8Q", row)) >> 32 == flow_hash(NEW) >> 32


def test_a_flood_of_syns_takes_no_place_of_an_open_flow(balancer: Balancer) -> None:
    crowd = in_one_bucket(balancer, 30)
    kept, flood = crowd[:7], crowd[7:]
    edit(balancer, [2])
    for client in kept:
        begin(balancer, lab.TCP, client)
        go_on(balancer, lab.TCP, client)
    for client in flood:
        begin(balancer, lab.TCP, client)
    edit(balancer, [3])
    assert [go_on(balancer, lab.TCP, c) for c in kept] == [2] * 7
    assert len(remembered(balancer)) == 8


def test_a_full_bucket_gives_away_what_is_over_then_what_ends_then_the_oldest(balancer: Balancer) -> None:
    crowd = in_one_bucket(balancer, 12)
    edit(balancer, [2], ago=500)
    for client in crowd[:8]:
        begin(balancer, lab.TCP, client)
        go_on(balancer, lab.TCP, client)
    prints = {flow_hash(c) >> 32: c for c in crowd}
    flows = {prints[flow >> 32]: flow for flow in remembered(balancer)}
    over, ending, old = crowd[5], crowd[2], crowd[6]
    go_on(balancer, lab.TCP, ending, "R")
    flows |= {prints[flow >> 32]: flow for flow in remembered(balancer)}
    restamped = {over: stamp(STREAM_IDLE + 2), ending: stamp(4), old: stamp(62)}
    write_flows(balancer, [flows[c] & ~(0x1FFF << 2) | s << 2 for c, s in restamped.items()])
    for newcomer, loser in zip(crowd[8:11], (over, ending, old), strict=True):
        begin(balancer, lab.TCP, newcomer)
        go_on(balancer, lab.TCP, newcomer)
        left = {prints[flow >> 32] for flow in remembered(balancer)}
        assert newcomer in left
        assert loser not in left


def test_in_the_steady_state_a_flood_fills_no_table(balancer: Balancer) -> None:
    balancer.ring(RING, [1, 2])
    for client in clients(200):
        begin(balancer, lab.TCP, client)
    assert remembered(balancer) == []


def test_two_flows_are_mistaken_for_each_other_only_if_49_bits_of_their_hashes_are_equal(balancer: Balancer) -> None:
    """A place that has the fingerprint of a flow, and nothing else of it, is taken for it: so that is all it is."""
    edit(balancer, [2])
    begin(balancer, lab.TCP, NEW)
    go_on(balancer, lab.TCP, NEW)
    (flow,) = remembered(balancer)
    for bit in range(32, 64):
        write_flows_at(balancer, bucket_of(NEW), flow ^ 1 << bit)
        assert go_on(balancer, lab.TCP, NEW) == 1, "another fingerprint, and still found"
    write_flows_at(balancer, bucket_of(NEW), flow)
    assert go_on(balancer, lab.TCP, NEW) == 2


def write_flows_at(balancer: Balancer, bucket: int, flow: int) -> None:
    row = struct.pack("=8Q", *[0] * 7, flow)
    assert balancer.kernel.update(REMEMBERED.name, [(struct.pack("=I", bucket), row)]) == [None]


# --- pings -------------------------------------------------------------------------------------------------------
def test_a_ping_goes_to_whoever_has_the_slot_now_and_keeps_no_transition_open(balancer: Balancer) -> None:
    """Each stands for itself: a monitor that pings for ever must not be taken for a flow that does not end."""
    serve(balancer, At(VIP, 0), 5, lab.ICMP)
    balancer.vip(VIP, echo=EchoCode.ENDPOINT)
    edit(balancer, [2], ago=STREAM_IDLE + 1)
    client = At("10.7.0.9", 0)
    assert [endpoint_of(balancer, client, Icmp(id=1, seq=seq)) for seq in range(3)] == [2, 2, 2]
    assert remembered(balancer) == []
    assert lab.ICMP not in protocols(balancer.kernel)[RING]
    assert settle(balancer.kernel, slots.now()) == 1
