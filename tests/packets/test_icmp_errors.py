# SPDX-License-Identifier: Apache-2.0
"""ICMP errors about what endpoints sent: they go to the endpoint that has the flow, path MTU and all."""

from __future__ import annotations

import pytest
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.sctp import SCTP
from scapy.packet import Packet, Raw

from reconciler.dataplane.layout import AlgorithmCode, ModeCode, Verdict
from reconciler.kernel.bpf import XdpVerdict
from tests.packets import balancer as lab
from tests.packets.balancer import ENDPOINTS_AT, STRANGER, VIP, WEB, Balancer, Traffic, by_mac, through_tunnel
from tests.packets.frames import ETHERNET, At, frame, padded
from tests.packets.test_others import RECORD_ROUTE, passes_untouched
from tests.packets.test_schedule import clients, maglev_slot

pytestmark = pytest.mark.kernel

OWN = "10.2.0.1"
ROUTER_ON_THE_WAY = "198.51.100.1"
FRAG_NEEDED = ICMP(type=3, code=4, nexthopmtu=1400)
RING = [1, 2, 3, 4, 2]


def about(reply: Packet, kind: Packet = FRAG_NEEDED, to: str = VIP, quoted: int = 28, **ip: object) -> bytes:
    """The error of a router on the way, which quotes the first bytes of a packet of the VIP's."""
    return frame(ROUTER_ON_THE_WAY, to, kind / Raw(bytes(reply)[:quoted]), **ip)


def reply(client: At, transport: type[Packet] = TCP, **ip: object) -> Packet:
    """What an endpoint sent."""
    ip = {"src": VIP, "dst": client.address} | ip
    return IP(**ip) / transport(sport=WEB.port, dport=client.port) / Raw(b"x" * 40)


@pytest.fixture(autouse=True)
def _endpoints(balancer: Balancer) -> None:
    balancer.settings(OWN)
    for id in ENDPOINTS_AT:
        balancer.endpoint(id)


def serve(balancer: Balancer, mode: ModeCode, protocol: int = lab.TCP) -> None:
    balancer.serve(ring=RING, algorithm=AlgorithmCode.MAGLEV, mode=mode, protocol=protocol)


@pytest.mark.parametrize(
    ("transport", "protocol"), [(TCP, lab.TCP), (UDP, lab.UDP), (SCTP, lab.SCTP)], ids=["TCP", "UDP", "SCTP"]
)
def test_an_error_goes_to_the_endpoint_that_the_clients_requests_go_to(
    balancer: Balancer, transport: type[Packet], protocol: int
) -> None:
    for client in clients(50):
        endpoint = ENDPOINTS_AT[RING[maglev_slot(client, len(RING), protocol)]]
        content = about(reply(client, transport))
        serve(balancer, ModeCode.DSR_L3, protocol)
        assert balancer.send(content) == (XdpVerdict.REDIRECT, through_tunnel(content, endpoint, OWN))
        serve(balancer, ModeCode.DSR_L2, protocol)
        assert balancer.send(content) == (XdpVerdict.REDIRECT, by_mac(content, endpoint))
    assert balancer.verdicts() == {Verdict.ICMP_ERROR: 100}


ERRORS = {
    "network unreachable": ICMP(type=3, code=0),
    "port unreachable": ICMP(type=3, code=3),
    "prohibited": ICMP(type=3, code=13),
    "time exceeded": ICMP(type=11, code=0),
    "parameter problem": ICMP(type=12, code=0),
}


@pytest.mark.parametrize("kind", ERRORS.values(), ids=ERRORS)
@pytest.mark.parametrize("quoted", [28, 60, 80])
def test_every_kind_of_error_is_forwarded_however_much_it_quotes(
    balancer: Balancer, kind: Packet, quoted: int
) -> None:
    serve(balancer, ModeCode.DSR_L3)
    client = clients(1)[0]
    content = padded(about(reply(client), kind, quoted=quoted))
    endpoint = ENDPOINTS_AT[RING[maglev_slot(client, len(RING))]]
    assert balancer.send(content).frame == through_tunnel(content, endpoint, OWN)
    assert balancer.traffic_of_services() == {1: Traffic(0, 1, 28 + quoted)}


CLIENT = clients(1)[0]
KERNELS = {
    "about a port without a service": about(IP(src=VIP, dst=CLIENT.address) / TCP(sport=81)),
    "about another protocol": about(reply(CLIENT, UDP)),
    "about a packet of the client's": about(IP(src=CLIENT.address, dst=VIP) / TCP(sport=80, dport=80)),
    "about somebody else's packet": about(reply(CLIENT, src="10.2.0.11")),
    "about a later fragment": about(reply(CLIENT, frag=1)),
    "about a packet with options": about(reply(CLIENT, options=RECORD_ROUTE), quoted=40),
    "about IPv6": about(reply(CLIENT, version=6)),
    "ports cut off": about(reply(CLIENT), quoted=27),
    "quote cut off": about(reply(CLIENT), quoted=19),
    "no quote": about(reply(CLIENT), quoted=0),
    "a redirect": about(reply(CLIENT), ICMP(type=5)),
    "source quench": about(reply(CLIENT), ICMP(type=4)),
    "a fragment": about(reply(CLIENT), flags="MF"),
    "IP options": about(reply(CLIENT), options=RECORD_ROUTE),
}


@pytest.mark.parametrize("content", KERNELS.values(), ids=KERNELS)
def test_errors_about_nothing_that_is_balanced_are_the_kernels(balancer: Balancer, content: bytes) -> None:
    serve(balancer, ModeCode.DSR_L3)
    assert passes_untouched(balancer, content)
    assert passes_untouched(balancer, padded(content))


@pytest.mark.parametrize("length", range(ETHERNET, ETHERNET + 56))
def test_an_error_that_is_cut_off_anywhere_is_never_forwarded(balancer: Balancer, length: int) -> None:
    serve(balancer, ModeCode.DSR_L3)
    content = about(reply(CLIENT))[:length]
    assert passes_untouched(balancer, content)


def test_errors_about_no_connection_of_nat_are_the_kernels(balancer: Balancer) -> None:
    balancer.serve(ring=RING)
    assert passes_untouched(balancer, about(reply(CLIENT)))


def test_an_error_to_another_address_than_it_is_about_is_not_ours(balancer: Balancer) -> None:
    serve(balancer, ModeCode.DSR_L3)
    assert passes_untouched(balancer, about(reply(CLIENT), to="10.2.0.11"))


def test_an_error_that_is_too_big_is_dropped_and_never_answered(balancer: Balancer) -> None:
    serve(balancer, ModeCode.DSR_L3)
    content = frame(ROUTER_ON_THE_WAY, VIP, FRAG_NEEDED / reply(CLIENT) / Raw(bytes(1500)))
    assert balancer.send(content).verdict == XdpVerdict.DROP
    assert balancer.verdicts() == {Verdict.TOO_BIG: 1}


def test_an_error_whose_ttl_is_used_up_or_that_no_endpoint_has_is_dropped(balancer: Balancer) -> None:
    serve(balancer, ModeCode.DSR_L3)
    assert balancer.send(about(reply(CLIENT), ttl=1)).verdict == XdpVerdict.DROP
    balancer.ring(1, [])
    assert balancer.send(about(reply(CLIENT))).verdict == XdpVerdict.DROP
    assert balancer.verdicts() == {Verdict.TTL_EXPIRED: 1, Verdict.NO_ENDPOINT: 1}


def test_an_error_for_an_endpoint_without_a_known_mac_goes_by_the_kernel(balancer: Balancer) -> None:
    for id in ENDPOINTS_AT:
        balancer.endpoint(id, STRANGER)
    serve(balancer, ModeCode.DSR_L3)
    assert balancer.send(about(reply(CLIENT))).verdict == XdpVerdict.PASS
    assert balancer.verdicts() == {Verdict.VIA_KERNEL: 1}
