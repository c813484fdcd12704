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
from scapy.layers.inet6 import ICMPv6EchoRequest, IPv6
from scapy.layers.l2 import Ether

from reconciler import plan as planning
from reconciler.apply import apply
from reconciler.config.load import load
from reconciler.dataplane.layout import Verdict
from reconciler.kernel import bpf
from reconciler.kernel.bpf import XdpVerdict
from reconciler.kernel.real import RealKernel
from reconciler.kinds.endpoint import numbered_rows
from reconciler.live import read_live
from reconciler.model import Fleet
from reconciler.reconcile import desired_of
from reconciler.resource import Desired
from tests.config.manifests import node, pool, service
from tests.packets.balancer import (
    CLIENT,
    CLIENT6,
    ENDPOINTS6_AT,
    ENDPOINTS_AT,
    WEB,
    Balancer,
    by_mac,
    inside,
    ip,
    macs_towards,
    namespace,
    through_tunnel,
    to_endpoint,
)
from tests.packets.frames import At, frame6, sctp, tcp, tcp6, tunnelled6, udp
from tests.rings import read_ring

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
        ip("-n", name, "link", "set", "lo", "up")
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
    text += service("calls", more="mode: nat, protocol: sctp, targetPort: 5060", pool="first")
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
    content = sctp(CLIENT, WEB)
    assert balancer.send(content) == (XdpVerdict.REDIRECT, to_endpoint(content, At(FIRST, 5_060)))
    assert balancer.verdicts() == {Verdict.REQUEST: 8}


NODE6 = node(interfaces=(
    "{name: front, addresses: [10.1.0.1/24, '2001:db8:1::1/64']}, "
    "{name: back, addresses: [10.2.0.1/24, '2001:db8:2::1/64']}"
))  # fmt: skip
VIP6, SERVER6 = "2001:db8:20::1", ENDPOINTS6_AT[5]
CLIENT6_AT = At(CLIENT6, 40_000)


def test_ipv6_by_mac(run_manifests: Apply) -> None:
    text = service(vip=f"'{VIP6}'", more="mode: dsr-l2") + pool(endpoints=f"{{address: '{SERVER6}'}}") + NODE6
    balancer = run_manifests(text)
    syn = tcp6(CLIENT6_AT, At(VIP6, 80))
    assert balancer.send(syn) == (XdpVerdict.REDIRECT, by_mac(syn, SERVER6))


def test_pings_of_an_ipv6_vip_are_answered_or_handed_to_an_endpoint(run_manifests: Apply) -> None:
    text = service(vip=f"'{VIP6}'", more="mode: dsr-l2") + pool(endpoints=f"{{address: '{SERVER6}'}}") + NODE6
    ping = frame6(CLIENT6, VIP6, ICMPv6EchoRequest(id=7, seq=1))
    assert run_manifests(text).send(ping).verdict == XdpVerdict.TX
    text = text.replace("mode: dsr-l2", "mode: dsr-l2, echo: endpoint")
    assert run_manifests(text).send(ping) == (XdpVerdict.REDIRECT, by_mac(ping, SERVER6))


def test_both_families_through_tunnels_to_ipv6_endpoints_beside_ipv4(run_manifests: Apply) -> None:
    """A mixed pool gets IPv4 packets by IPv4 tunnels and by IPv6 tunnels."""
    vips = f"vips: [20.20.20.1, '{VIP6}']"
    both = f"{{address: {FIRST}}}, {{address: '{SERVER6}'}}"
    balancer = run_manifests(
        service(more="mode: dsr-l3").replace("vip: 20.20.20.1", vips) + pool(endpoints=f"{{address: '{SERVER6}'}}")
        + service("mixed", ports="[81]", more="mode: dsr-l3", pool="mixed") + pool("mixed", endpoints=both) + NODE6
    )  # fmt: skip
    for content in (tcp6(CLIENT6_AT, At(VIP6, 80)), tcp(CLIENT, WEB)):
        action, out = balancer.send(content)
        assert action == XdpVerdict.REDIRECT
        assert out == tunnelled6(content, "2001:db8:1::1", SERVER6, macs_towards(SERVER6), Ether(out)[IPv6].fl)
    endpoints = []
    for port in range(2_000, 2_032):
        content = tcp(At(CLIENT.address, port), At(WEB.address, 81))
        out = balancer.send(content).frame
        if IPv6 in Ether(out):
            assert out == tunnelled6(content, "2001:db8:1::1", SERVER6, macs_towards(SERVER6), Ether(out)[IPv6].fl)
        else:
            assert out == through_tunnel(content, FIRST, "10.1.0.1")
        endpoints.append(IPv6 in Ether(out))
    assert 6 <= sum(endpoints) <= 26


def test_ipv6_tunnels_come_from_the_declared_network(run_manifests: Apply) -> None:
    balancer = run_manifests(
        service(vip=f"'{VIP6}'", more="mode: dsr-l3") + pool(endpoints=f"{{address: '{SERVER6}'}}")
        + node(more="tunnelSource: {ipv6: '2001:db8:f::/64'}")
    )  # fmt: skip
    frames = [balancer.send(tcp6(At(CLIENT6, port), At(VIP6, 80))).frame for port in range(2_000, 2_032)]
    sources = {ip_address(Ether(out)[IPv6].src) for out in frames}
    assert len(sources) == len(frames)
    assert all(source in ip_network("2001:db8:f::/64") for source in sources)


def test_ipv6_comes_and_goes_beside_ipv4(run_manifests: Apply) -> None:
    """The program learns and forgets a family under the rows of the other, and numbers stay what they are."""
    ipv4 = service(more="mode: dsr-l2") + pool(endpoints=f"{{address: {FIRST}}}")
    ipv6 = service("six", vip=f"'{VIP6}'", more="mode: dsr-l2", pool="six") + pool(
        "six", endpoints=f"{{address: '{SERVER6}'}}"
    )
    syn, syn6 = tcp(CLIENT, WEB), tcp6(CLIENT6_AT, At(VIP6, 80))
    for text, expected in ((ipv4, [syn]), (ipv4 + ipv6, [syn, syn6]), (ipv6, [syn6]), (ipv6 + ipv4, [syn, syn6])):
        balancer = run_manifests(text + NODE6)
        for content in expected:
            server = FIRST if content == syn else SERVER6
            assert balancer.send(content) == (XdpVerdict.REDIRECT, by_mac(content, server))
    held = numbered_rows(balancer.kernel)
    assert {row.number: row.row.id for row in held} == {1: FIRST, 2: SERVER6}


@pytest.mark.parametrize("left", ["", f"{{address: {FIRST}, weight: 0}}", f"{{address: {FIRST}, state: draining}}",
                                  f"{{address: {FIRST}, state: disabled}}"])  # fmt: skip
def test_a_pool_without_an_active_endpoint_gets_no_new_connection(run_manifests: Apply, left: str) -> None:
    web = service(more="mode: dsr-l3")
    balancer = run_manifests(web + pool(endpoints=f"{{address: {FIRST}}}") + node())
    assert balancer.send(tcp(CLIENT, WEB)).verdict == XdpVerdict.REDIRECT
    balancer = run_manifests(web + pool(endpoints=left) + node())
    assert balancer.send(tcp(At(CLIENT.address, 50_000), WEB)).verdict == XdpVerdict.DROP
    assert balancer.verdicts()[Verdict.NO_ENDPOINT] == 1


def test_a_drained_endpoint_gets_nothing_new_whatever_else_is_edited(run_manifests: Apply) -> None:
    for algorithm in ("maglev", "source-hash", "maglev"):
        balancer = run_manifests(
            service(more=f"mode: dsr-l3, algorithm: {algorithm}")
            + pool(endpoints=f"{{address: {FIRST}, weight: 0}}, {{address: {SECOND}}}") + node()
        )  # fmt: skip
        frames = [balancer.send(tcp(At(CLIENT.address, port), WEB)).frame for port in range(3_000, 3_100)]
        assert {Ether(content)[IP].dst for content in frames} == {SECOND}


def test_a_new_service_inherits_nothing_of_one_that_is_gone(run_manifests: Apply) -> None:
    other = At("20.20.20.9", 80)
    first = run_manifests(service("old", more="mode: dsr-l3") + pool(endpoints=f"{{address: {FIRST}}}") + node())
    assert first.send(tcp(CLIENT, WEB)).verdict == XdpVerdict.REDIRECT
    text = service("new", vip=other.address, more="mode: dsr-l3", pool="fresh")
    balancer = run_manifests(text + pool("fresh", endpoints="") + node())
    assert balancer.send(tcp(CLIENT, other)).verdict == XdpVerdict.DROP
    assert balancer.send(tcp(CLIENT, WEB)).verdict == XdpVerdict.PASS


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
    ring = read_ring(balancer.kernel, 1)
    assert ring is not None
    assert ring.endpoints.size == 65_537
