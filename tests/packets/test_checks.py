# SPDX-License-Identifier: Apache-2.0
"""Checks through VIPs: packets of the prober go to the endpoint that their mark names, those for it to the prober."""

from __future__ import annotations

import pytest
from scapy.layers.inet import ICMP, UDP
from scapy.layers.inet6 import ICMPv6EchoReply, ICMPv6ND_NS

from reconciler.dataplane.layout import MARK_TUNNEL, AlgorithmCode, EndpointRowState, ModeCode, Verdict
from reconciler.kernel.bpf import XdpVerdict
from tests.packets.balancer import (
    CLIENT,
    ENDPOINTS6_AT,
    ENDPOINTS_AT,
    VIP,
    WEB,
    Balancer,
    by_mac,
    through_tunnel,
)
from tests.packets.frames import At, frame, frame6, tcp, tcp6

pytestmark = pytest.mark.kernel

CHECKER, CHECKER6 = "10.1.0.9", "2001:db8:1::9"
MAC = "02:6c:62:63:74:6c"
OWN, OWN6 = "10.2.0.1", "2001:db8:2::1"


@pytest.fixture(autouse=True)
def _prober(balancer: Balancer) -> None:
    """The prober is behind `front`; the ring knows endpoint 1 alone."""
    balancer.settings(OWN, source6=OWN6)
    for id in (1, 2, 5):
        balancer.endpoint(id)
    balancer.serve(ring=[1], algorithm=AlgorithmCode.MAGLEV, mode=ModeCode.DSR_L3)
    balancer.prober("front", CHECKER, CHECKER6, MAC)


def marked(content: bytes, mark: int) -> bytes:
    return content[:6] + b"\x02\x00" + mark.to_bytes(4, "big") + content[12:]


QUESTION = tcp(At(CHECKER, 40_000), WEB, "S")


def test_a_check_goes_to_the_endpoint_of_its_mark_whoever_is_in_the_ring(balancer: Balancer) -> None:
    sent = balancer.send(marked(QUESTION, 2 | MARK_TUNNEL))
    assert sent == (XdpVerdict.REDIRECT, through_tunnel(QUESTION, ENDPOINTS_AT[2], OWN))
    assert balancer.send(marked(QUESTION, 2)) == (XdpVerdict.REDIRECT, by_mac(QUESTION, ENDPOINTS_AT[2]))
    balancer.endpoint(2, state=EndpointRowState.DISABLED)
    assert balancer.send(marked(QUESTION, 2)) == (XdpVerdict.REDIRECT, by_mac(QUESTION, ENDPOINTS_AT[2]))
    assert balancer.verdicts() == {Verdict.CHECK: 3}
    assert not any(map(any, (*balancer.traffic_of_services().values(), *balancer.traffic_of_endpoints().values())))


def test_ports_and_protocols_of_no_service_are_checked_too(balancer: Balancer) -> None:
    for layer in (UDP(sport=40_000, dport=5353), ICMP(type=8)):
        content = frame(CHECKER, VIP, layer / b"?")
        assert balancer.send(marked(content, 2)) == (XdpVerdict.REDIRECT, by_mac(content, ENDPOINTS_AT[2]))


def test_an_endpoint_of_ipv6_is_checked_by_its_own_family(balancer: Balancer) -> None:
    content = tcp6(At(CHECKER6, 40_000), At("2001:db8:20::1", 80))
    assert balancer.send(marked(content, 5)) == (XdpVerdict.REDIRECT, by_mac(content, ENDPOINTS6_AT[5]))
    assert balancer.send(marked(content, 2)).verdict == XdpVerdict.DROP


@pytest.mark.parametrize("mark", [0, 9, MARK_TUNNEL])
def test_a_mark_of_no_endpoint_is_dropped(balancer: Balancer, mark: int) -> None:
    assert balancer.send(marked(QUESTION, mark)).verdict == XdpVerdict.DROP
    assert balancer.verdicts() == {Verdict.NO_ENDPOINT: 1}


def test_what_comes_for_the_prober_is_handed_to_it_though_its_source_is_a_vip(balancer: Balancer) -> None:
    answers = (
        tcp(WEB, At(CHECKER, 40_000), "SA"),
        frame(ENDPOINTS_AT[1], CHECKER, ICMP(type=3, code=3) / bytes(28)),
        frame6("2001:db8:20::1", CHECKER6, ICMPv6EchoReply()),
    )
    for content in answers:
        to_it = bytes.fromhex(MAC.replace(":", "")) + content[6:]
        assert balancer.send(content, "back") == (XdpVerdict.REDIRECT, to_it)
    assert balancer.verdicts() == {Verdict.CHECK_ANSWERED: 3}


def test_questions_for_its_mac_stay_with_the_kernel(balancer: Balancer) -> None:
    content = frame6(ENDPOINTS6_AT[5], CHECKER6, ICMPv6ND_NS(tgt=CHECKER6))
    assert balancer.send(content, "back") == (XdpVerdict.PASS, content)


def test_nobody_else_is_taken_for_the_prober(balancer: Balancer) -> None:
    content = tcp(CLIENT, WEB)
    assert balancer.send(marked(content, 2), "back").frame == through_tunnel(marked(content, 2), ENDPOINTS_AT[1], OWN)
    assert balancer.verdicts() == {Verdict.REQUEST: 1}
