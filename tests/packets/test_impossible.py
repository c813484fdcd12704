# SPDX-License-Identifier: Apache-2.0
"""Frames that no honest host sends to a VIP, and those that only look strange."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from reconciler.dataplane.layout import AlgorithmCode, ModeCode, Verdict
from reconciler.dataplane.program import program_name
from reconciler.kernel import bpf
from reconciler.kernel.bpf import XdpVerdict
from reconciler.kernel.real import RealKernel
from tests.packets import balancer as lab
from tests.packets.balancer import CLIENT, ENDPOINTS_AT, VIP, WEB, Balancer, by_mac, to_client, to_endpoint
from tests.packets.frames import At, tagged, tcp, tcp6

pytestmark = pytest.mark.kernel

WEB6 = At("2001:db8:20::1", 80)
SOURCES = ["0.0.0.0", "0.1.2.3", "127.0.0.1", "224.0.0.1", "239.9.9.9", "240.0.0.1", "255.255.255.255", VIP]
SOURCES6 = ["::", "::1", "ff02::1", "::ffff:10.1.0.2", WEB6.address]
MODES = pytest.mark.parametrize("mode", [ModeCode.NAT, ModeCode.DSR_L2])


def serve(balancer: Balancer, mode: ModeCode) -> None:
    balancer.endpoint(1)
    algorithm = AlgorithmCode.MAGLEV if mode != ModeCode.NAT else AlgorithmCode.ROUND_ROBIN
    balancer.serve(ring=[1], mode=mode, algorithm=algorithm)


@MODES
@pytest.mark.parametrize("source", SOURCES)
def test_an_address_that_no_other_host_has_opens_no_flow(balancer: Balancer, mode: ModeCode, source: str) -> None:
    serve(balancer, mode)
    assert balancer.send(tcp(At(source, 40_000), WEB)).verdict == XdpVerdict.DROP
    assert balancer.verdicts() == {Verdict.IMPOSSIBLE_SOURCE: 1}
    assert balancer.connections() == {}


@pytest.mark.parametrize("source", SOURCES6)
def test_the_same_of_ipv6(balancer: Balancer, source: str) -> None:
    balancer.endpoint(5)
    balancer.serve(WEB6, ring=[5], mode=ModeCode.DSR_L2, algorithm=AlgorithmCode.MAGLEV)
    assert balancer.send(tcp6(At(source, 40_000), WEB6)).verdict == XdpVerdict.DROP
    assert balancer.verdicts() == {Verdict.IMPOSSIBLE_SOURCE: 1}


@MODES
@pytest.mark.parametrize("mac", ["ff:ff:ff:ff:ff:ff", "01:00:5e:00:00:01", "33:33:00:00:00:01"])
def test_a_frame_for_many_is_forwarded_to_nobody(balancer: Balancer, mode: ModeCode, mac: str) -> None:
    serve(balancer, mode)
    content = bytes.fromhex(mac.replace(":", "")) + tcp(CLIENT, WEB)[6:]
    assert balancer.send(content).verdict == XdpVerdict.DROP
    assert balancer.verdicts() == {Verdict.LINK_BROADCAST: 1}
    assert balancer.connections() == {}


def test_replies_in_frames_for_many_are_dropped_too(balancer: Balancer) -> None:
    serve(balancer, ModeCode.NAT)
    balancer.send(tcp(CLIENT, WEB))
    answer = b"\xff" * 6 + tcp(At(ENDPOINTS_AT[1], 80), CLIENT, "SA")[6:]
    assert balancer.send(answer, "back").verdict == XdpVerdict.DROP
    assert balancer.verdicts()[Verdict.LINK_BROADCAST] == 1


def test_what_is_for_no_vip_is_left_alone_whatever_it_is(balancer: Balancer) -> None:
    serve(balancer, ModeCode.NAT)
    for content in (tcp(At("127.0.0.1", 1), At("192.0.2.1", 80)), b"\xff" * 6 + tcp(CLIENT, At("192.0.2.1", 80))[6:]):
        assert balancer.send(content) == (XdpVerdict.PASS, content)
    assert balancer.verdicts() == {}


def test_a_priority_without_a_vlan_changes_nothing_where_there_are_no_vlans(
    balancer: Balancer, tmp_path: Path
) -> None:
    """IEEE 802.1Q calls VLAN 0 no VLAN. The priority holds for one link, so it doesn't leave with the packet."""
    features = tuple(feature for feature in lab.FEATURES if feature != "VLAN")
    kernel = RealKernel(f"lbi-{os.getpid()}", tmp_path)
    try:
        kernel.load_program(program_name(features), features)
        handle = kernel.loaded_program()
        assert handle
        descriptor = bpf.open_program(handle.id)
        assert descriptor
        with bpf.closing(descriptor):
            other = Balancer(kernel, descriptor, balancer.netns)
            request, reply = tcp(CLIENT, WEB), tcp(At(ENDPOINTS_AT[1], 80), CLIENT, "SA")
            serve(other, ModeCode.NAT)
            assert other.send(tagged(request, 0, 5)).frame == to_endpoint(request, At(ENDPOINTS_AT[1], 80))
            assert other.send(tagged(reply, 0, 5), "back").frame == to_client(reply, WEB)
            serve(other, ModeCode.DSR_L2)
            assert other.send(tagged(request, 0)).frame == by_mac(request, ENDPOINTS_AT[1])
            for content in (tagged(request, 7), tagged(tagged(request, 0), 7), tagged(tagged(request, 7), 0)):
                assert other.send(content) == (XdpVerdict.PASS, content)
    finally:
        kernel.unload_program()
        kernel.remove_instance()
