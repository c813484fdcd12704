# SPDX-License-Identifier: Apache-2.0
"""From manifests to frames: what `apply` puts into a real kernel makes the real program do what was asked for."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from ipaddress import ip_address, ip_network
from pathlib import Path

import pytest
from scapy.layers.inet import IP
from scapy.layers.l2 import Ether

from reconciler import plan as planning
from reconciler.apply import apply
from reconciler.config.load import load
from reconciler.kernel import bpf
from reconciler.kernel.bpf import XdpVerdict
from reconciler.kernel.layout import RINGS, Verdict
from reconciler.kernel.real import RealKernel
from reconciler.live import read_live
from reconciler.model import Fleet
from reconciler.reconcile import desired_of
from reconciler.resource import Desired
from tests.config.manifests import node, pool, service
from tests.packets.balancer import CLIENT, ENDPOINTS_AT, WEB, Balancer, by_mac, inside, namespace, through_tunnel
from tests.packets.frames import At, sctp, tcp, udp

pytestmark = pytest.mark.kernel

FIRST, SECOND = ENDPOINTS_AT[1], ENDPOINTS_AT[2]
Apply = Callable[[str], Balancer]


@pytest.fixture
def run_manifests(tmp_path: Path) -> Iterator[Apply]:
    """Apply manifests in a namespace; what results, and what it does with frames, is returned. A plan made anew
    must find nothing to do."""
    name = f"lbw-{os.getpid()}"
    kernel = RealKernel(name, tmp_path / "run")
    (tmp_path / "run").mkdir()
    with ExitStack() as stack:
        stack.enter_context(namespace(name))
        stack.enter_context(inside(name))

        def run(text: str) -> Balancer:
            directory = tmp_path / "manifests"
            directory.mkdir(exist_ok=True)
            (directory / "all.yaml").write_text(text)
            fleet = load(directory).fleet
            assert fleet
            bring(kernel, fleet)
            handle = kernel.loaded_program()
            descriptor = bpf.open_program(handle.id) if handle else None
            assert descriptor
            stack.enter_context(bpf.closing(descriptor))
            return Balancer(kernel, descriptor, name)

        try:
            yield run
        finally:
            apply(planning.plan(Desired(), read_live(kernel)), kernel).raise_if_failed()
            kernel.remove_instance()


def bring(kernel: RealKernel, fleet: Fleet) -> None:
    desired = desired_of(fleet, None)
    apply(planning.plan(desired, read_live(kernel, desired.resources)), kernel).raise_if_failed()
    assert planning.plan(desired, read_live(kernel, desired.resources)).changes == ()


def test_a_tunnel_comes_from_the_first_declared_address(run_manifests: Apply) -> None:
    balancer = run_manifests(service(more="mode: dsr-l3") + pool(endpoints=f"{{address: {FIRST}}}") + node())
    syn = tcp(CLIENT, WEB)
    assert balancer.send(syn) == (XdpVerdict.REDIRECT, through_tunnel(syn, FIRST, "10.1.0.1"))


def test_each_flow_has_a_source_of_its_own_out_of_the_declared_network(run_manifests: Apply) -> None:
    network = ip_network("10.200.0.0/16")
    balancer = run_manifests(
        service(more="mode: dsr-l3") + pool(endpoints=f"{{address: {FIRST}}}")
        + node(more=f"tunnelSource: {{ipv4: {network}}}")
    )  # fmt: skip
    sources = []
    for port in range(2_000, 2_064):
        frames = [tcp(At(CLIENT.address, port), WEB, flags) for flags in "SA"]
        sources.append({Ether(balancer.send(content).frame)[IP].src for content in frames})
    assert all(len(of_flow) == 1 for of_flow in sources)
    found = set.union(*sources)
    assert all(ip_address(source) in network for source in found)
    assert len(found) > 60


def test_services_of_all_modes_and_protocols_stand_side_by_side(run_manifests: Apply) -> None:
    text = service("web", more="mode: nat", pool="first") + pool("first", endpoints=f"{{address: {FIRST}}}")
    for protocol in ("tcp", "udp", "sctp"):
        for port, mode, name in ((81, "dsr-l2", "first"), (82, "dsr-l3", "second")):
            more = f"mode: {mode}, protocol: {protocol}"
            text += service(f"{mode}-{protocol}", ports=f"[{port}]", more=more, pool=name)
    balancer = run_manifests(text + pool("second", endpoints=f"{{address: {SECOND}}}") + node())
    for make in (tcp, udp, sctp):
        content = make(CLIENT, At(WEB.address, 81))
        assert balancer.send(content) == (XdpVerdict.REDIRECT, by_mac(content, FIRST))
        content = make(CLIENT, At(WEB.address, 82))
        assert balancer.send(content) == (XdpVerdict.REDIRECT, through_tunnel(content, SECOND, "10.1.0.1"))
    assert Ether(balancer.send(tcp(CLIENT, WEB)).frame)[IP].dst == FIRST
    assert balancer.verdicts() == {Verdict.REQUEST: 7}


@pytest.mark.parametrize("mode", ["dsr-l2", "dsr-l3"])
@pytest.mark.parametrize(
    ("policy", "verdict"), [("answer", Verdict.TOO_BIG_ANSWERED), ("drop", Verdict.TOO_BIG)]
)  # fmt: skip
def test_who_sends_packets_that_are_too_big_is_told_unless_that_is_off(
    run_manifests: Apply, mode: str, policy: str, verdict: Verdict
) -> None:
    balancer = run_manifests(
        service(more=f"mode: {mode}") + pool(endpoints=f"{{address: {FIRST}}}") + node(more=f"packetTooBig: {policy}")
    )
    balancer.send(tcp(CLIENT, WEB, "A", bytes(1600)))
    assert balancer.verdicts() == {verdict: 1}


def test_slots_are_as_many_as_were_asked_for(run_manifests: Apply) -> None:
    two = f"{{address: {FIRST}}}, {{address: {SECOND}}}"
    balancer = run_manifests(service(more="mode: dsr-l2") + pool(endpoints=two, more="ringSize: 65537") + node())
    content = balancer.kernel.read_inner(RINGS.name, 1)
    assert content is not None
    assert len(content) == 4 * (1 + 65_537)
