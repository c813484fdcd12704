# SPDX-License-Identifier: Apache-2.0
"""Checksums are updated by what changed, and must come out as if they were computed anew."""

from __future__ import annotations

import struct
from ipaddress import IPv4Address

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scapy.layers.l2 import Ether

from reconciler.dataplane.layout import AlgorithmCode
from reconciler.kernel.bpf import XdpVerdict
from tests.packets.balancer import CLIENT, ENDPOINTS_AT, ROUTER, WEB, Balancer, to_client, to_endpoint
from tests.packets.frames import ETHERNET, IPV4, At, tcp

pytestmark = pytest.mark.kernel

SERVER = At(ENDPOINTS_AT[1], 8080)
IP_CHECKSUM, IP_ID, TCP_CHECKSUM, TCP_URGENT = ETHERNET + 10, ETHERNET + 4, ETHERNET + IPV4 + 16, ETHERNET + IPV4 + 18

# Public ones, so that none is the node's own: what is sent to those is not forwarded.
addresses = st.integers(0x0B000000, 0x7EFFFFFF).map(lambda number: str(IPv4Address(number))) | st.sampled_from(
    ["11.255.255.255", "12.0.0.0", "126.255.0.0", "193.0.255.255", "128.0.0.1", "223.255.255.255"]
)
ports = st.integers(1, 65_535) | st.sampled_from([0x00FF, 0x0100, 0xFF00, 0xFFFF])


@pytest.fixture
def _ring(balancer: Balancer) -> None:
    balancer.ring(1, [1])


@pytest.mark.usefixtures("_ring")
@settings(
    max_examples=300, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)  # fmt: skip
@given(
    at=st.lists(addresses, min_size=3, max_size=3, unique=True), by=st.tuples(ports, ports, ports),
    payload=st.binary(max_size=64), ttl=st.integers(2, 255), tos=st.integers(0, 255), id=st.integers(0, 65_535),
    flags=st.sampled_from(["PA", "A", "FA", "R", "SEC"]),
)  # fmt: skip
def test_any_packet_comes_out_as_if_its_checksums_were_computed_anew(
    balancer: Balancer, at: list[str], by: tuple[int, ...], payload: bytes, ttl: int, tos: int, id: int, flags: str
) -> None:
    client, service, server = map(At, at, by)
    balancer.endpoint(1, server.address, server.port)
    balancer.vip(service.address)
    balancer.service(service, index=1, target_port=0, algorithm=AlgorithmCode.ROUND_ROBIN)
    balancer.send(tcp(client, service))
    request = tcp(client, service, flags, payload, ttl=ttl, tos=tos, id=id)
    reply = tcp(server, client, flags, payload, ttl=ttl, tos=tos, id=id)

    try:
        assert balancer.send(request).frame == to_endpoint(request, server, next_hop=ROUTER)
        assert balancer.send(reply, "back").frame == to_client(reply, service, next_hop=ROUTER)
    finally:
        balancer.withdraw(service)
        balancer.table.clear()


# --- the two zeros: 0x0000 and 0xffff stand for the same sum -----------------------------------------------------
def word(content: bytes, offset: int) -> int:
    return int(struct.unpack_from(">H", content, offset)[0])


def with_word(content: bytes, offset: int, value: int) -> bytes:
    return content[:offset] + struct.pack(">H", value) + content[offset + 2 :]


def summed(content: bytes) -> bytes:
    """With checksums computed anew."""
    packet = Ether(content)
    del packet["IP"].chksum
    del packet["TCP"].chksum
    return bytes(packet)


BOTH_WAYS = [("front", tcp(CLIENT, WEB, "PA", b"odd")), ("back", tcp(SERVER, CLIENT, "PA", b"odd"))]
"""A packet each way: the interface that it comes in by, and the packet."""


def expected(interface: str, content: bytes) -> bytes:
    return to_endpoint(content, SERVER) if interface == "front" else to_client(content, WEB)


@pytest.fixture
def connection(balancer: Balancer) -> Balancer:
    balancer.endpoint(1, port=SERVER.port)
    balancer.serve(ring=[1])
    balancer.send(tcp(CLIENT, WEB))
    return balancer


@pytest.mark.parametrize("wanted", [0x0000, 0x0001, 0x00FF, 0xFEFF, 0xFF00, 0xFFFE])
@pytest.mark.parametrize(("interface", "content"), BOTH_WAYS, ids=["request", "reply"])
@pytest.mark.parametrize("side", ["before", "after"])
@pytest.mark.parametrize(
    ("checksum", "free"), [(IP_CHECKSUM, IP_ID), (TCP_CHECKSUM, TCP_URGENT)], ids=["IP", "TCP"]
)  # fmt: skip
def test_checksums_at_the_edges_come_out_right(
    connection: Balancer, interface: str, content: bytes, side: str, checksum: int, free: int, wanted: int
) -> None:
    """A field that may have any value is chosen so that the checksum before or after is the wanted one."""
    blank = with_word(content, free, 0)
    base = word(expected(interface, blank) if side == "after" else summed(blank), checksum)
    content = summed(with_word(content, free, (base - wanted) % 0xFFFF))
    result = expected(interface, content)
    assert word(result if side == "after" else content, checksum) == wanted

    assert connection.send(content, interface) == (XdpVerdict.REDIRECT, result)


@pytest.mark.parametrize(("interface", "content"), BOTH_WAYS, ids=["request", "reply"])
@pytest.mark.parametrize(
    ("checksum", "free"), [(IP_CHECKSUM, IP_ID), (TCP_CHECKSUM, TCP_URGENT)], ids=["IP", "TCP"]
)  # fmt: skip
def test_a_checksum_of_ffff_instead_of_0_is_as_good(
    connection: Balancer, interface: str, content: bytes, checksum: int, free: int
) -> None:
    """Receivers accept both. What goes out is the form that a full computation gives."""
    content = summed(with_word(content, free, word(summed(with_word(content, free, 0)), checksum)))
    assert word(content, checksum) == 0
    assert connection.send(with_word(content, checksum, 0xFFFF), interface).frame == expected(interface, content)


@pytest.mark.parametrize(("interface", "content"), BOTH_WAYS, ids=["request", "reply"])
@pytest.mark.parametrize("checksum", [IP_CHECKSUM, TCP_CHECKSUM], ids=["IP", "TCP"])
@pytest.mark.parametrize("damage", [1, 0x0100, 0x8000, 0x7FFF])
def test_damage_stays_visible(
    connection: Balancer, interface: str, content: bytes, checksum: int, damage: int
) -> None:
    broken = with_word(content, checksum, (word(content, checksum) + damage) % 0xFFFF)
    out = connection.send(broken, interface).frame
    right = word(expected(interface, content), checksum)
    assert (word(out, checksum) - right) % 0xFFFF == damage
    assert with_word(out, checksum, right) == expected(interface, content)
