# SPDX-License-Identifier: Apache-2.0
"""While one program takes over from another, packets of connections that only one of them knows reach that one."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator

import pytest
from scapy.layers.inet import IP, TCP
from scapy.layers.l2 import Ether

from reconciler import clock
from reconciler.dataplane.layout import ENDPOINTS, FLOWS, Direction, EndpointRowState, FlowState
from reconciler.dataplane.program import program_name
from reconciler.dataplane.rows import Endpoint, Flow, FlowKey, Number
from reconciler.kernel import bpf, holders, maps
from reconciler.kernel.bpf import XdpVerdict
from reconciler.kernel.real import RealKernel
from reconciler.limits import Sizes

pytestmark = [pytest.mark.kernel, pytest.mark.usefixtures("attached")]

NAT = ("NAT",)
ENDPOINT, CLIENT, VIP = "10.2.0.11", "192.0.2.1", "20.20.20.1"
REPLY = bytes(Ether(dst="02:00:00:00:00:01", src="02:00:00:00:00:02") / IP(src=ENDPOINT, dst=CLIENT)
              / TCP(sport=8080, dport=40_000, flags="A"))  # fmt: skip
OURS, UNKNOWN = XdpVerdict.DROP, XdpVerdict.PASS
"""A packet of a known connection is dropped here for want of a route; the kernel gets all others."""


@pytest.fixture
def attached(inside: str, kernel: RealKernel) -> Iterator[None]:
    """An interface that runs a program, from which another one, with a larger table, is about to take over."""
    for command in ("link add front type veth peer name away", "link set front up", "link set away up"):
        subprocess.run(["ip", *command.split()], check=True, timeout=30)
    kernel.load_program(program_name(NAT), NAT, Sizes(flows=1_000))
    row = Endpoint(bytes(map(int, ENDPOINT.split("."))), 0, EndpointRowState.USABLE)
    assert kernel.update(ENDPOINTS.name, [ENDPOINTS.pack(Number(1), row)]) == [None]
    kernel.attach("front", "native", None)
    yield
    kernel.unload_program()


def running(kernel: RealKernel) -> int:
    return kernel.attached_programs(["front"])[0].id


def verdict(program: int) -> int:
    """What a program does with a reply."""
    with bpf.closing(bpf.open_program(program) or -1) as fd:
        return bpf.test_run(fd, REPLY).verdict


def connect(kernel: RealKernel, program: int) -> tuple[bytes, bytes]:
    """Have a program know the connection that the reply belongs to, in its own table."""
    packed = [bytes(map(int, address.split("."))) for address in (ENDPOINT, CLIENT, VIP)]
    key = FlowKey(packed[0], packed[1], 8080, 40_000, 6)
    flow = Flow(packed[2], 80, Direction.REPLY, FlowState.OPEN, 1, 0, clock.now_ns(), 0)
    row = FLOWS.pack(key, flow)
    with bpf.closing(bpf.open_program(program) or -1) as fd:
        generation = holders.generations.of_program(bpf.program_info(fd))
    assert generation
    with bpf.closing(generation.open(FLOWS.name) or -1) as fd:
        assert maps.update(maps.describe(fd), [row]) == [None]
    return row


def test_what_one_program_knows_is_asked_by_the_other_and_stays_known(kernel: RealKernel) -> None:
    former = running(kernel)
    kernel.load_program(program_name(NAT), NAT, Sizes(flows=2_000))
    new = kernel.loaded_program()
    assert new
    with kernel.taking_over():
        assert [verdict(program) for program in (former, new.id)] == [UNKNOWN, UNKNOWN]
        row = connect(kernel, former)  # too late to be carried over before the swap
        assert verdict(new.id) == OURS, "it asks the former program"
        kernel.attach("front", "native", former)
        assert kernel.dump(FLOWS.name) == []
    assert kernel.dump(FLOWS.name) == [row]
    assert verdict(new.id) == OURS
    assert kernel._instance.pinned() == ["program"]


def test_the_former_program_asks_for_connections_that_began_at_the_new_one(kernel: RealKernel) -> None:
    """One interface was swapped, another one was not yet."""
    former = running(kernel)
    kernel.load_program(program_name(NAT), NAT, Sizes(flows=2_000))
    new = kernel.loaded_program()
    assert new
    with kernel.taking_over():
        row = connect(kernel, new.id)
        assert verdict(former) == OURS
        kernel.attach("front", "native", former)
    assert kernel.dump(FLOWS.name) == [row]


def test_a_takeover_that_was_cut_off_goes_on_and_is_ended_by_the_next_load(kernel: RealKernel) -> None:
    former = running(kernel)
    kernel.load_program(program_name(NAT), NAT, Sizes(flows=2_000))
    new = kernel.loaded_program()
    assert new
    cut_off = kernel.taking_over()
    cut_off.__enter__()
    row = connect(kernel, former)
    kernel.attach("front", "native", former)
    again = kernel.loaded_program()
    assert again and again.is_taking_over
    assert verdict(new.id) == OURS, "the former program lives on and is asked"
    kernel.load_program(program_name(NAT), NAT, Sizes(flows=2_000))
    assert kernel.loaded_program() == new
    assert kernel.dump(FLOWS.name) == [row]
    assert verdict(new.id) == OURS
    cut_off.__exit__(None, None, None)
    assert kernel.dump(FLOWS.name) == [row]
