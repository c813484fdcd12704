# SPDX-License-Identifier: Apache-2.0
"""Each CPU keeps the services that it has found, and goes by none that is not so any more."""

from __future__ import annotations

import time

import pytest

from reconciler.dataplane.layout import KNOWN_SERVICES, SERVICES, AlgorithmCode, ModeCode, Verdict
from reconciler.dataplane.rows import Service, ServiceKey
from reconciler.kernel.instance_maps import InstanceMaps
from tests.packets import balancer as lab
from tests.packets.balancer import CLIENT, VIP, WEB, Balancer
from tests.packets.frames import ETHERNET, IPV4, At, tcp, tcp6

pytestmark = pytest.mark.kernel

PATIENCE_S = 60.0
SAME_WORD = At("32.1.13.184", 80)
"""As many bits of an IPv4 address as the first word of SAME_WORD6 has, and they are the same."""
SAME_WORD6 = At("2001:db8::80", 80)
MORE_THAN_ROWS = KNOWN_SERVICES.capacity + 500
DESTINATION_PORT = ETHERNET + IPV4 + 2


@pytest.fixture(autouse=True)
def _site(balancer: Balancer) -> None:
    balancer.settings("10.2.0.1", source6="2001:db8:2::1")
    for number in (1, 2):
        balancer.endpoint(number)
        balancer.ring(number, [number])
    balancer.vip(VIP)


def serve(balancer: Balancer, at: At = WEB, ring: int = 1) -> None:
    balancer.service(at, index=ring, ring=ring, target_port=0, algorithm=AlgorithmCode.MAGLEV, mode=ModeCode.DSR_L3)


def endpoint(balancer: Balancer, at: At = WEB) -> int:
    """The endpoint that gets a packet to a service; 0: none."""
    before = balancer.traffic_of_endpoints()
    client = At("2001:db8:77::1", 40_000) if ":" in at.address else CLIENT
    balancer.send((tcp6 if ":" in at.address else tcp)(client, at, "A"))
    return next((n for n, now in balancer.traffic_of_endpoints().items() if now != before.get(n)), 0)


def test_a_change_of_a_service_is_seen_by_the_next_packet(balancer: Balancer) -> None:
    for ring in (1, 2, 1, 2):
        serve(balancer, ring=ring)
        assert [endpoint(balancer) for _ in range(3)] == [ring] * 3


def test_a_service_that_is_gone_gets_nothing_and_one_that_comes_is_there_at_once(balancer: Balancer) -> None:
    for _ in range(2):
        assert endpoint(balancer) == 0
        assert balancer.verdicts()[Verdict.UNDEFINED]
        serve(balancer)
        assert [endpoint(balancer) for _ in range(2)] == [1, 1]
        balancer.withdraw(WEB)


def test_a_change_that_nobody_counted_is_seen_after_a_moment(
    balancer: Balancer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever made it was killed then."""
    serve(balancer, ring=1)
    assert endpoint(balancer) == 1
    monkeypatch.setattr(InstanceMaps, "_changed", lambda *_: None)
    serve(balancer, ring=2)
    deadline = time.monotonic() + PATIENCE_S
    while (found := endpoint(balancer)) != 2 and time.monotonic() < deadline:
        assert found == 1
    assert found == 2


def test_services_are_told_apart_by_address_family_port_and_protocol(balancer: Balancer) -> None:
    for at in (SAME_WORD, SAME_WORD6):
        balancer.vip(at.address)
    serve(balancer, SAME_WORD, 1)
    serve(balancer, SAME_WORD6, 2)
    balancer.endpoint(2, "10.2.0.77")
    for _ in range(2):
        assert endpoint(balancer, SAME_WORD) == 1
        assert endpoint(balancer, At(SAME_WORD.address, 81)) == 0
    balancer.service(SAME_WORD, index=3, ring=2, target_port=0, algorithm=AlgorithmCode.MAGLEV, mode=ModeCode.DSR_L3,
                     protocol=lab.UDP)  # fmt: skip
    assert endpoint(balancer, SAME_WORD) == 1


def test_more_services_than_a_cpu_keeps_are_never_mistaken(balancer: Balancer) -> None:
    rows = [
        SERVICES.pack(
            ServiceKey(bytes(map(int, VIP.split("."))), port, lab.TCP),
            Service(1 + port % 2, 1 + port % 2, 0, ModeCode.DSR_L3, AlgorithmCode.MAGLEV),
        )
        for port in range(1_000, 1_000 + MORE_THAN_ROWS)
    ]
    assert not any(balancer.kernel.update(SERVICES.name, rows))
    frame, even = tcp(CLIENT, WEB, "A"), range(1_000, 1_000 + MORE_THAN_ROWS, 2)
    for port in (*even, 1_001):
        balancer.send(frame[:DESTINATION_PORT] + port.to_bytes(2, "big") + frame[DESTINATION_PORT + 2 :])
    packets = {number: traffic.request_packets for number, traffic in balancer.traffic_of_services().items()}
    assert packets == {1: len(even), 2: 1}
