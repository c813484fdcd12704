# SPDX-License-Identifier: Apache-2.0
"""FullNAT over IPv6: it does what fullnat over IPv4 does. Whole frames, against a model that computes every checksum
anew."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator

import numpy as np
import pytest
from scapy.layers.inet import TCP, UDP
from scapy.layers.inet6 import ICMPv6PacketTooBig, IPv6
from scapy.layers.l2 import Ether
from scapy.packet import Packet

from reconciler.dataplane.layout import (
    ENDPOINTS,
    ENDPOINTS6,
    POOL_PORTS,
    RETURNS6,
    TRANSLATED6,
    EndpointRowState,
    ModeCode,
    UndefinedCode,
    Verdict,
)
from reconciler.dataplane.rows import Number
from reconciler.kernel.bpf import XdpVerdict
from reconciler.limits import Sizes
from reconciler.ports import pools, prune
from tests.packets import balancer as node
from tests.packets.balancer import ENDPOINTS6_AT, ROUTER6, STRANGER6, Balancer, loaded_balancer, macs_towards
from tests.packets.frames import At, answered6, forwarded, frame6, tcp, tcp6, translated, udp6
from tests.packets.test_fullnat import taken
from tests.packets.test_nat6 import ERRORS, QUOTED, error, segment

pytestmark = pytest.mark.kernel

VIP6 = "2001:db8:20::1"
WEB6, CLIENT = At(VIP6, 80), At("2001:db8:77::7", 40_000)
OTHER = At("2001:db8:77::8", CLIENT.port)
SERVER = At(ENDPOINTS6_AT[5], 80)
SOURCE, SECOND = "2001:db8:2::c9", "2001:db8:2::ca"
ROUTER_BEFORE, ROUTER_BEHIND = "2001:db8:ff::1", "2001:db8:2::fd"
FEATURES = (
    "FULLNAT", "FULLNAT6", "IPV6", "UDP", "ROUND_ROBIN", "MAGLEV", "REJECT", "ECHO", "ALLOWED_SOURCES", "DSR_L2",
)  # fmt: skip


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Balancer]:
    run_dir = tmp_path_factory.mktemp("lbg-run")
    with loaded_balancer(run_dir, f"lbg-{os.getpid()}", FEATURES, Sizes(flows=4_000)) as made:
        yield made


@pytest.fixture
def balancer(loaded: Balancer) -> Iterator[Balancer]:
    loaded.sources(SOURCE)
    loaded.endpoint(5)
    yield loaded
    loaded.clear()


def serve(balancer: Balancer, protocol: int = node.TCP) -> None:
    balancer.serve(WEB6, ring=[5], mode=ModeCode.FULLNAT, protocol=protocol)


def to_server(content: bytes, source: At, server: At = SERVER) -> bytes:
    return forwarded(translated(content, source=source, destination=server), macs_towards(server.address))


def to_client(content: bytes, client: At) -> bytes:
    return forwarded(translated(content, source=WEB6, destination=client), macs_towards(ROUTER6))


def source_of(content: bytes) -> At:
    packet = Ether(content)
    return At(packet[IPv6].src, (packet[UDP] if UDP in packet else packet[TCP]).sport)


def opened(balancer: Balancer, client: At) -> At | None:
    """The source that a new connection gets; None if it is refused."""
    action, content = balancer.send(tcp6(client, WEB6, "S"))
    return source_of(content) if action == XdpVerdict.REDIRECT else None


def clients(count: int, port: int = 40_000) -> list[At]:
    return [At(f"2001:db8:78::{number // 250 + 1:x}:{number % 250 + 1:x}", port) for number in range(count)]


def table(balancer: Balancer) -> np.ndarray:
    words = balancer.kernel.words(TRANSLATED6.name)
    assert words is not None
    return words.reshape(-1, TRANSLATED6.value_size // 8)


def rest(balancer: Balancer, units: int) -> None:
    """Let all connections be silent for so much longer."""
    who = table(balancer)[:, :4]
    held = who >> np.uint64(14) != 0
    seen = (who & np.uint64(0x7FF)) - np.uint64(units) & np.uint64(0x7FF)
    who[held] = (who >> np.uint64(11) << np.uint64(11) | seen)[held]


def owned(balancer: Balancer) -> set[tuple[int, int]]:
    """The ports that entries have; each has a word that replies find it by, and there is no other word."""
    words = balancer.kernel.words(RETURNS6.name)
    assert words is not None
    who, ways = table(balancer)[:, :4], table(balancer)[:, 16:20]
    assert not ((ways != 0) & (who >> np.uint64(14) == 0)).any(), "a free place has a port"
    own = {
        (way & 0x7FFF, (way >> 16 & 0xFFFF), bucket * 4 + place)
        for (bucket, place), way in zip(np.argwhere(ways).tolist(), ways[ways != 0].tolist(), strict=True)
    }
    assert {(w >> 43, w >> 27 & 0xFFFF, (w & (1 << 27) - 1) - 1) for w in words[words != 0].tolist()} == own
    return {(pool, port) for pool, port, _ in own}


def test_requests_and_replies_are_translated(balancer: Balancer) -> None:
    serve(balancer)
    source = At(SOURCE, CLIENT.port)
    for flags, payload in (("S", b""), ("A", b"odd"), ("PA", bytes(range(200)))):
        request, reply = tcp6(CLIENT, WEB6, flags, payload, tc=0xB9), tcp6(SERVER, source, "A", payload, hlim=3)
        assert balancer.send(request) == (XdpVerdict.REDIRECT, to_server(request, source))
        assert balancer.send(reply, "back") == (XdpVerdict.REDIRECT, to_client(reply, CLIENT))
    assert balancer.verdicts() == {Verdict.REQUEST: 3, Verdict.REPLY: 3}


def test_clients_with_one_port_get_two(balancer: Balancer) -> None:
    serve(balancer)
    first, second = opened(balancer, CLIENT), opened(balancer, OTHER)
    assert (first, second) == (At(SOURCE, CLIENT.port), At(SOURCE, 1024))
    for client, source in ((CLIENT, first), (OTHER, second)):
        assert source
        reply = tcp6(SERVER, source, "SA")
        assert balancer.send(reply, "back").frame == to_client(reply, client)


def test_datagrams_are_translated_and_those_without_a_checksum_get_none(balancer: Balancer) -> None:
    serve(balancer, node.UDP)
    source = At(SOURCE, CLIENT.port)
    for payload in (b"", b"odd", bytes(1400)):
        question, answer = udp6(CLIENT, WEB6, payload), udp6(SERVER, source, payload)
        assert balancer.send(question).frame == to_server(question, source)
        assert balancer.send(answer, "back").frame == to_client(answer, CLIENT)
    bare = frame6(CLIENT.address, VIP6, UDP(sport=CLIENT.port, dport=80, chksum=0) / b"x")
    assert balancer.send(bare).frame == to_server(bare, source)


@pytest.mark.parametrize("quoted", QUOTED)
@pytest.mark.parametrize("kind", ERRORS.values(), ids=ERRORS)
def test_errors_reach_who_sent_what_they_are_about(balancer: Balancer, kind: Packet, quoted: int) -> None:
    serve(balancer)
    source = opened(balancer, CLIENT)
    assert source
    about_reply = error(ROUTER_BEFORE, VIP6, segment(WEB6, CLIENT), kind, quoted)
    meant = error(ROUTER_BEFORE, SERVER.address, segment(SERVER, source), kind, quoted)
    assert balancer.send(about_reply) == (XdpVerdict.REDIRECT, forwarded(meant, macs_towards(SERVER.address)))
    about_request = error(ROUTER_BEHIND, SOURCE, segment(source, SERVER), kind, quoted)
    meant = error(ROUTER_BEHIND, CLIENT.address, segment(CLIENT, WEB6), kind, quoted)
    assert balancer.send(about_request, "back") == (XdpVerdict.REDIRECT, forwarded(meant, macs_towards(ROUTER6)))
    assert balancer.verdicts() == {Verdict.REQUEST: 1, Verdict.ICMP_ERROR: 1, Verdict.ERROR_RELAYED: 1}


def test_what_is_too_big_is_answered_both_ways(balancer: Balancer) -> None:
    serve(balancer)
    source = opened(balancer, CLIENT)
    assert source
    request, reply = tcp6(CLIENT, WEB6, "A", bytes(1500)), tcp6(SERVER, source, "A", bytes(1500))
    told = ICMPv6PacketTooBig(mtu=1500)
    assert balancer.send(request) == (XdpVerdict.TX, answered6(request, told, 1232))
    assert balancer.send(reply, "back") == (XdpVerdict.TX, answered6(reply, told, 1232))


def test_for_a_neighbour_without_a_known_mac_the_kernel_gets_what_it_forwards(balancer: Balancer) -> None:
    balancer.endpoint(5, STRANGER6)
    serve(balancer)
    request = tcp6(CLIENT, WEB6, "S")
    meant = translated(request, source=At(SOURCE, CLIENT.port), destination=At(STRANGER6, 80))
    assert balancer.send(request) == (XdpVerdict.PASS, meant)


def test_what_belongs_to_no_connection_is_the_kernels_or_undefined_traffic(balancer: Balancer) -> None:
    serve(balancer)
    balancer.vip(VIP6, UndefinedCode.DROP)
    opened(balancer, CLIENT)
    for stranger in (tcp6(SERVER, At(SOURCE, 1), "A"), tcp6(At(SERVER.address, 81), At(SOURCE, CLIENT.port), "A"),
                     tcp6(At(ENDPOINTS6_AT[6], 80), At(SOURCE, CLIENT.port), "A"),
                     tcp6(SERVER, At(SECOND, CLIENT.port), "A")):  # fmt: skip
        assert balancer.send(stranger, "back") == (XdpVerdict.PASS, stranger)
    for elsewhere in (tcp6(CLIENT, At(VIP6, 81), "S"), udp6(CLIENT, WEB6)):
        assert balancer.send(elsewhere).verdict == XdpVerdict.DROP
    assert balancer.verdicts() == {Verdict.REQUEST: 1, Verdict.UNDEFINED: 2}


def test_every_port_is_given_out_once_and_only_then_are_connections_refused(balancer: Balancer) -> None:
    serve(balancer)
    balancer.sources(SOURCE, SECOND, first_port=2000, ports=150)
    got = [opened(balancer, client) for client in clients(300)]
    assert {(at.address, at.port) for at in got if at} == {
        (address, port) for address in (SOURCE, SECOND) for port in range(2000, 2150)
    }  # fmt: skip
    assert opened(balancer, CLIENT) is None
    assert balancer.verdicts()[Verdict.NO_PORT] == 1
    assert {(pool, port + 2000) for pool, port in taken(balancer)} == owned(balancer)


def test_a_sweep_gives_back_the_ports_of_connections_that_are_no_more_and_no_others(balancer: Balancer) -> None:
    serve(balancer)
    balancer.sources(SOURCE, first_port=2000, ports=150)
    for client in clients(150):
        source = opened(balancer, client)
        assert source
        balancer.send(tcp6(SERVER, source, "SA"), "back")
        balancer.send(tcp6(client, WEB6, "A"))
    ended = clients(150)[:40]
    for client in ended:
        balancer.send(tcp6(client, WEB6, "R"))
    buckets = balancer.kernel.capacity(TRANSLATED6.name)
    assert balancer.kernel.sweep_translated(6, buckets) == 0, "they are kept for late packets"
    rest(balancer, 4)
    assert balancer.kernel.sweep_translated(6, buckets) == len(ended)
    assert {(pool, port + 2000) for pool, port in taken(balancer)} == owned(balancer)
    (pool,) = pools(balancer.kernel)
    assert (pool.source, pool.server, pool.used, pool.free) == (SOURCE, f"[{SERVER.address}]:80", 110, 40)
    assert sum(opened(balancer, client) is not None for client in ended) == len(ended)
    assert opened(balancer, CLIENT) is None


def test_a_pool_goes_when_its_server_is_gone(balancer: Balancer) -> None:
    serve(balancer)
    assert opened(balancer, CLIENT)
    assert prune(balancer.kernel) == 0
    balancer.endpoint(5, state=EndpointRowState.FREE)
    balancer.kernel.sweep_translated(6, balancer.kernel.capacity(TRANSLATED6.name))
    assert prune(balancer.kernel) == 0, "a row names the server still"
    for spec in (ENDPOINTS, ENDPOINTS6):
        balancer.kernel.delete(spec.name, [spec.key.pack(Number(5))])
    assert prune(balancer.kernel) == 1
    assert pools(balancer.kernel) == []


def test_both_versions_of_ip_have_pools_of_their_own(balancer: Balancer) -> None:
    serve(balancer)
    balancer.sources("10.2.0.201")
    balancer.endpoint(1)
    balancer.serve(node.WEB, ring=[1], index=2, mode=ModeCode.FULLNAT)
    six = opened(balancer, CLIENT)
    four = Ether(balancer.send(tcp(node.CLIENT, node.WEB, "S")).frame)
    assert six == At(SOURCE, CLIENT.port)
    assert (four["IP"].src, four[TCP].sport) == ("10.2.0.201", node.CLIENT.port)
    assert len({pool.number for pool in pools(balancer.kernel)}) == 2
    assert [pool.version for pool in pools(balancer.kernel)] == [4, 6]
    words = balancer.kernel.words(POOL_PORTS.name)
    assert words is not None
    assert len(taken(balancer)) == 2


def test_ports_and_entries_agree_after_any_history(balancer: Balancer) -> None:
    """Connections that open, close in any way, are forged, silent, and cut off, with few ports and a small table."""
    chance = random.Random(12)
    serve(balancer)
    balancer.serve(At(VIP6, 53), ring=[5], index=2, mode=ModeCode.FULLNAT, protocol=node.UDP)
    balancer.sources(SOURCE, SECOND, first_port=2000, ports=150)
    some = [At(client.address, port) for client in clients(60) for port in (2000, 2149, 40_000)]
    ways: dict[At, At] = {}
    for turn in range(4_000):
        client = chance.choice(some)
        match chance.randrange(12):
            case 0 | 1 | 2 | 3:
                if source := opened(balancer, client):
                    ways[client] = source
            case 4:
                balancer.send(udp6(client, At(VIP6, 53)))
            case 5 | 6:
                action, out = balancer.send(tcp6(client, WEB6, chance.choice(("A", "FA", "R", "PA"))))
                if action == XdpVerdict.REDIRECT:
                    ways[client] = source_of(out)  # such a packet opens one, too
            case 7 | 8 | 9 if client in ways:
                reply = tcp6(SERVER, ways[client], chance.choice(("SA", "A", "FA", "R")))
                action, out = balancer.send(reply, "back")
                if action == XdpVerdict.REDIRECT:
                    known = At(Ether(out)[IPv6].dst, Ether(out)[TCP].dport)
                    assert ways[known] == ways[client], "a reply went to a client that has another source"
            case 10:
                rest(balancer, chance.choice((1, 4, 30)))
            case 11 if turn % 50 == 0:
                balancer.endpoint(5, state=chance.choice((EndpointRowState.DISABLED, EndpointRowState.USABLE)))
            case _:
                balancer.endpoint(5)
        if turn % 100 == 0:
            assert {(pool, port + 2000) for pool, port in taken(balancer)} == owned(balancer)
    assert len(ways) > 100
    assert balancer.verdicts()[Verdict.REPLY] > 40
