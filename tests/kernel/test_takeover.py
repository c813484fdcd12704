# SPDX-License-Identifier: Apache-2.0
"""While one program takes over from another, packets of connections that only one of them knows reach that one."""

from __future__ import annotations

import os
import struct
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from ipaddress import IPv4Address
from pathlib import Path

import pytest
from scapy.layers.inet import IP, TCP
from scapy.layers.l2 import Dot1Q, Ether

from reconciler import clock
from reconciler.dataplane.connections import Pair, entry, of_pairs, unit_of
from reconciler.dataplane.layout import (
    CONNECTIONS,
    FRONTS,
    OTHER,
    OTHER_STAGES,
    SEED,
    STAGES,
    VERDICTS,
    ConnectionState,
    MapType,
    Verdict,
)
from reconciler.dataplane.program import program_name
from reconciler.dataplane.rows import Front, Number
from reconciler.kernel import bpf, connections, holders, maps, stages, takeover
from reconciler.kernel.bpf import XdpVerdict
from reconciler.kernel.connections import Table
from reconciler.kernel.maps import Shape
from reconciler.kernel.real import RealKernel
from reconciler.kinds.endpoint import EndpointKind
from reconciler.kinds.endpoint_row import EndpointRow
from reconciler.lab.build import wait_until
from reconciler.limits import Sizes
from reconciler.resource import Change

pytestmark = [pytest.mark.kernel, pytest.mark.usefixtures("attached")]

NAT = ("NAT",)
TRUNK = ("NAT", "VLAN")
ENDPOINT, CLIENT, VIP, OTHER_VIP = "10.2.0.11", "192.0.2.1", "20.20.20.1", "20.20.20.2"
LINK = Ether(dst="02:00:00:00:00:01", src="02:00:00:00:00:02")
PACKET = IP(src=ENDPOINT, dst=CLIENT) / TCP(sport=8080, dport=40_000, flags="A")
REPLY = bytes(LINK / PACKET)
ACCEPTED = bytes(LINK / IP(src=ENDPOINT, dst=CLIENT) / TCP(sport=8080, dport=40_000, flags="SA"))
TAGGED = bytes(LINK / Dot1Q(vlan=0, prio=5) / PACKET)
OPEN = ConnectionState.OPEN
FRONT_OF = {VIP: 3, OTHER_VIP: 4}
NUMBER = struct.Struct("=I")
OURS, UNKNOWN = XdpVerdict.REDIRECT, XdpVerdict.PASS
"""A packet of a known connection is sent on to its client; the kernel gets all others."""


@pytest.fixture
def features() -> tuple[str, ...]:
    return NAT


@pytest.fixture
def attached(inside: str, kernel: RealKernel, features: tuple[str, ...]) -> Iterator[None]:
    """An interface that runs a program, from which another one, with a larger table, is about to take over."""
    for command in (
        "link add front type veth peer name away", "link set front up", "link set away up", "link set lo up",
        "address add 192.0.2.254/24 dev front", f"neighbour add {CLIENT} lladdr 02:00:00:00:00:03 dev front",
    ):  # fmt: skip
        subprocess.run(["ip", *command.split()], check=True, timeout=30)
    subprocess.run(["sysctl", "-qw", "net.ipv4.conf.all.forwarding=1"], check=True, timeout=30)
    kernel.load_program(program_name(features), features, Sizes(flows=1_000))
    row = EndpointRow(IPv4Address(ENDPOINT))
    assert EndpointKind(kernel).write([Change(row.key, None, row)]) == [None]
    for vip, number in FRONT_OF.items():
        front = Front(IPv4Address(vip).packed + bytes(12), 80, 8080, 867, 6, 4)
        assert kernel.update(FRONTS.name, [FRONTS.pack(Number(number), front)]) == [None]
    kernel.attach("front", "native", None)
    yield
    kernel.unload_program()


def running(kernel: RealKernel) -> int:
    return kernel.attached_programs(["front"])[0].id


def run(program: int, frame: bytes) -> bpf.Run:
    with bpf.closing(bpf.open_program(program) or -1) as fd:
        return bpf.test_run(fd, frame)


def verdict(program: int, frame: bytes = REPLY) -> int:
    """What a program does with a reply."""
    return run(program, frame).verdict


@contextmanager
def map_of(program: int, name: str) -> Iterator[maps.OpenMap]:
    """A program's own map, as anybody may open it."""
    with bpf.closing(bpf.open_program(program) or -1) as fd:
        generation = holders.generations.of_program(bpf.program_info(fd))
    assert generation
    with bpf.closing(generation.open(name) or -1) as fd:
        yield maps.describe(fd)


def connect(program: int, vip: str = VIP, state: ConnectionState = OPEN, silence: int = 0) -> Pair:
    """Have a program know the connection that the reply belongs to, in its own table."""
    seen = (unit_of(clock.now_ns()) - silence) % 2048
    pair = entry(IPv4Address(CLIENT), 40_000, 6, state, seen, endpoint=1, service=FRONT_OF[vip])
    with map_of(program, CONNECTIONS.name) as opened, map_of(program, SEED.name) as seed:
        Table(opened, connections.seed_of(seed)).carry({}, of_pairs([pair]).by_key(), is_used=True)
    return pair


def forget(program: int) -> None:
    with map_of(program, CONNECTIONS.name) as opened:
        maps.words(opened)[:] = 0


def known(kernel: RealKernel) -> set[tuple[int, int, int]]:
    """The connections in the table of the loaded program: client, endpoint, service."""
    program = kernel.loaded_program()
    assert program
    with map_of(program.id, CONNECTIONS.name) as opened:
        found = connections.held(opened)
    return set(zip(found.clients[:, 1].tolist(), found.endpoints.tolist(), found.services.tolist(), strict=True))


def facts(pair: Pair) -> tuple[int, int, int]:
    found = of_pairs([pair])
    return int(found.clients[0, 1]), int(found.endpoints[0]), int(found.services[0])


def test_what_one_program_knows_is_asked_by_the_other_and_stays_known(kernel: RealKernel) -> None:
    former = running(kernel)
    kernel.load_program(program_name(NAT), NAT, Sizes(flows=2_000))
    new = kernel.loaded_program()
    assert new
    with kernel.taking_over():
        assert [verdict(program) for program in (former, new.id)] == [UNKNOWN, UNKNOWN]
        row = connect(former)  # too late to be carried over before the swap
        assert verdict(new.id) == OURS, "it asks the former program"
        kernel.attach("front", "native", former)
        assert known(kernel) == set()
    assert known(kernel) == {facts(row)}
    assert verdict(new.id) == OURS
    assert kernel._instance.pinned() == [f"other-{new.id}", "program", f"stages-{new.id}"]


def test_the_former_program_asks_for_connections_that_began_at_the_new_one(kernel: RealKernel) -> None:
    """One interface was swapped, another one was not yet."""
    former = running(kernel)
    kernel.load_program(program_name(NAT), NAT, Sizes(flows=2_000))
    new = kernel.loaded_program()
    assert new
    with kernel.taking_over():
        row = connect(new.id)
        assert verdict(former) == OURS
        kernel.attach("front", "native", former)
    assert known(kernel) == {facts(row)}


def test_a_takeover_that_was_cut_off_goes_on_and_is_ended_by_the_next_load(kernel: RealKernel) -> None:
    former = running(kernel)
    kernel.load_program(program_name(NAT), NAT, Sizes(flows=2_000))
    new = kernel.loaded_program()
    assert new
    cut_off = kernel.taking_over()
    cut_off.__enter__()
    row = connect(former)
    kernel.attach("front", "native", former)
    again = kernel.loaded_program()
    assert again and again.is_taking_over
    assert verdict(new.id) == OURS, "the former program lives on and is asked"
    kernel.load_program(program_name(NAT), NAT, Sizes(flows=2_000))
    assert kernel.loaded_program() == new
    assert known(kernel) == {facts(row)}
    assert verdict(new.id) == OURS
    cut_off.__exit__(None, None, None)
    assert known(kernel) == {facts(row)}


@pytest.mark.parametrize("frame", [REPLY, ACCEPTED], ids=["data", "SYN-ACK"])
def test_a_program_that_knows_only_what_was_before_asks_the_other_one(kernel: RealKernel, frame: bytes) -> None:
    """A client's port was used before, for another VIP, and is used again just now: one program knows only that."""
    former = running(kernel)
    connect(former, OTHER_VIP, ConnectionState.OVER, silence=1)
    kernel.load_program(program_name(NAT), NAT, Sizes(flows=2_000))
    new = kernel.loaded_program()
    assert new
    with kernel.taking_over():
        row = connect(former)
        assert run(new.id, frame) == (OURS, run(former, frame).frame)
        assert IP(run(new.id, frame).frame[14:]).src == VIP
        forget(new.id)
        kernel.attach("front", "native", former)
    assert facts(row) in known(kernel), "it comes back, having been made anew"
    assert IP(run(new.id, frame).frame[14:]).src == VIP


def test_a_connection_that_is_over_at_both_is_still_handled(kernel: RealKernel) -> None:
    former = running(kernel)
    connect(former, state=ConnectionState.OVER, silence=1)
    kernel.load_program(program_name(NAT), NAT, Sizes(flows=2_000))
    new = kernel.loaded_program()
    assert new
    with kernel.taking_over():
        for program in (former, new.id):
            assert run(program, REPLY).verdict == OURS
            assert IP(run(program, REPLY).frame[14:]).src == VIP


@pytest.mark.parametrize("features", [TRUNK], ids=["trunk"])
def test_the_other_program_sees_a_frame_with_its_tag(kernel: RealKernel, features: tuple[str, ...]) -> None:
    former = running(kernel)
    kernel.load_program(program_name(features), features, Sizes(flows=2_000))
    new = kernel.loaded_program()
    assert new
    for program in (former, new.id):
        assert run(program, TAGGED) == (UNKNOWN, TAGGED), "there is none yet"
    with kernel.taking_over():
        for program in (former, new.id):
            assert run(program, TAGGED) == (UNKNOWN, TAGGED), "neither knows it"
        row = connect(former)
        assert verdict(new.id, TAGGED) == OURS
        kernel.attach("front", "native", former)
    assert known(kernel) == {facts(row)}


def test_the_kernel_never_empties_the_map_by_which_a_program_finds_the_other_one(
    kernel: RealKernel, one_cpu: None
) -> None:
    """It does so some time after the last descriptor was closed, which on a busy machine may be in the middle of a
    takeover. It goes through such maps one after the other, so what came before a map of the test is done with it."""
    for _ in range(2):
        former = running(kernel)
        kernel.load_program(program_name(NAT), NAT, Sizes(flows=2_000))
        ask(former, former)
        empties_a_map(former)
        assert asked(former) == former, "it runs"
        new = kernel.loaded_program()
        assert new
        ask(new.id, former)
        empties_a_map(former)
        assert asked(new.id) == former, "it was loaded"
        with kernel.taking_over():
            kernel.attach("front", "native", former)
        assert asked(new.id) is None
        kernel.load_program(program_name(NAT), NAT, Sizes(flows=1_000))
        again = kernel.loaded_program()
        assert again
        with kernel.taking_over():
            empties_a_map(new.id)
            assert [asked(new.id), asked(again.id)] == [again.id, new.id], "it takes over"
            kernel.attach("front", "native", new.id)


def test_stages_stay_while_their_program_runs_though_all_who_had_them_open_are_gone(
    kernel: RealKernel, run_dir: Path, one_cpu: None
) -> None:
    """And without their pins they stay as long as a process works with the instance, as the agent does."""
    program = running(kernel)
    connect(program)
    with map_of(program, STAGES.name):
        pass
    empties_a_map(program)
    assert verdict(program) == OURS
    kernel.loaded_program()
    subprocess.run(["umount", run_dir / kernel._instance.name / "bpf"], check=True, timeout=30)
    empties_a_map(program)
    assert verdict(program) == OURS


def test_packets_for_a_stage_that_is_gone_are_dropped_and_counted(kernel: RealKernel) -> None:
    program = running(kernel)
    connect(program)
    with map_of(program, STAGES.name) as opened:
        maps.delete_one(opened, bytes(4))
    assert verdict(program) == bpf.XdpVerdict.DROP
    with map_of(program, VERDICTS.name) as opened:
        counted = maps.lookup(opened, NUMBER.pack(Verdict.STAGE_MISSING))
    assert counted and any(counted)


def test_replies_of_endpoints_pass_the_filter_of_a_program_that_has_another_size(kernel: RealKernel) -> None:
    connect(running(kernel))
    kernel.load_program(program_name(NAT), NAT, Sizes(endpoints=50_000, flows=1_000))
    new = kernel.loaded_program()
    assert new
    assert verdict(new.id) == OURS


def test_an_early_version_is_asked_as_a_whole_and_asks_a_stage(kernel: RealKernel) -> None:
    """Its map `other` has one row, for whom it asks, and its main program does NAT itself."""
    former = running(kernel)
    kernel.load_program(program_name(NAT), NAT, Sizes(flows=2_000))
    new = kernel.loaded_program()
    assert new
    with map_of(new.id, STAGES.name) as opened:
        stage = maps.lookup(opened, bytes(4))
    with bpf.closing(maps.create("other", Shape(MapType.PROG_ARRAY, 4, 4, 1))) as fd, bpf.closing(
        bpf.open_program(new.id) or -1
    ) as program:
        opened = maps.describe(fd)
        generation = holders.generations.of_program(bpf.program_info(program))
        assert generation
        takeover._tell(opened, generation)
        assert maps.lookup(opened, bytes(4)) == stage
    early = replace(generation, description=replace(generation.description, ids={}), program=program_info(former))
    with map_of(new.id, OTHER.name) as opened:
        takeover._tell(opened, early)
        rows = [maps.lookup(opened, NUMBER.pack(row)) for row in range(OTHER_STAGES + 1)]
        assert rows == [NUMBER.pack(former)] * (OTHER_STAGES + 1)
        for row in range(OTHER_STAGES + 1):
            maps.delete_one(opened, NUMBER.pack(row))


def program_info(program: int) -> bpf.ProgramInfo:
    with bpf.closing(bpf.open_program(program) or -1) as fd:
        return bpf.program_info(fd)


@pytest.fixture
def one_cpu() -> Iterator[None]:
    """What the kernel is asked to do later, it does in that order on the CPU that asked."""
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(allowed)})
    yield
    os.sched_setaffinity(0, allowed)


def ask(program: int, other: int) -> None:
    with map_of(program, OTHER.name) as opened, bpf.closing(bpf.open_program(other) or -1) as fd:
        maps.update_one(opened, bytes(4), NUMBER.pack(fd))


def asked(program: int) -> int | None:
    with map_of(program, OTHER.name) as opened:
        held = maps.lookup(opened, bytes(4))
    return NUMBER.unpack(held)[0] if held else None


def empties_a_map(program: int) -> None:
    """Wait until the kernel has emptied, and so freed, a map with a program whose only descriptor was closed."""
    with bpf.closing(maps.create("lbctl_test", Shape(MapType.PROG_ARRAY, 4, 4, 1))) as fd:
        opened = maps.describe(fd)
        with bpf.closing(bpf.open_program(program) or -1) as held:
            maps.update_one(opened, bytes(4), NUMBER.pack(held))

    def is_gone() -> bool:
        """To open the map would have the kernel empty it once more."""
        attributes = bpf.memory(struct.pack("=III", opened.id - 1, 0, 0))
        try:
            bpf.call(bpf.Command.MAP_GET_NEXT_ID, attributes)
        except FileNotFoundError:
            return True
        return struct.unpack_from("=II", attributes)[1] != opened.id

    wait_until("the map is gone", is_gone)


def test_a_version_that_knows_fewer_stages_is_told_of_those_alone(kernel: RealKernel) -> None:
    features = ("NAT", "UDP", "FRAGMENTS")
    kernel.load_program(program_name(features), features)
    generation = holders.live(kernel._instance)
    assert generation and max(stages.numbers(generation)) >= 8
    capacity = OTHER_STAGES + 8
    with bpf.closing(maps.create("lbk_other", Shape(MapType.PROG_ARRAY, 4, 4, capacity))) as fd:
        opened = maps.describe(fd)
        takeover._tell(opened, generation)
        told = {row for row in range(capacity) if maps.lookup(opened, NUMBER.pack(row)) is not None}
    assert told == {0} | {OTHER_STAGES + number for number in stages.numbers(generation) if number < 8}
